"""Locks between processes: open-file-description locks on bytes of one file beside the database.

The kernel releases such a lock when its process dies for any reason, so no process has to
find out whether a pid was reused. Source: fcntl(2), F_OFD_SETLK. The locks belong to one open file
description, which the threads of a handle share; ordinary locks exclude them from each other.

::

    byte  0   open       one process at a time attaches, recovers, or removes a pool
          1   attached   shared by every open handle: a process that gets it exclusively is the only one
          2   write      one write transaction at a time
          3   sync       one process at a time syncs the log, for all that wait
          4   checkpoint one checkpoint at a time

Locks are taken in the order open, checkpoint, write, sync.
"""

import contextlib
import fcntl
import math
import os
import struct
import threading
import time
import weakref
from collections.abc import Iterator
from functools import cache

from toydb.errors import Busy, DatabaseClosed, TransactionError

OPEN, ATTACHED, WRITE, SYNC, CHECKPOINT = range(5)
LONGEST_SLEEP_S = 0.002
LOOK_S = 0.05  # a handler may keep a thread from waking the next one, which looks by itself, too
_FLOCK = struct.Struct("hhqqi4x")  # struct flock: type, whence, start, length, pid


@cache
def _request(kind: int, byte: int) -> bytes:
    return _FLOCK.pack(kind, os.SEEK_SET, byte, 1, 0)


_open_files: "weakref.WeakSet[LockFile]" = weakref.WeakSet()


class LockFile:
    """One open file description of the lock file."""

    fd = -1

    def __init__(self, path: str) -> None:
        _open_files.add(self)  # the locks are the process's own: a forked child must not keep them
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)

    def close(self) -> None:
        """Releases every lock of this handle."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:  # of a database that was dropped, and not closed
        self.close()

    def must_be_open(self) -> None:
        """Raises DatabaseClosed."""
        if self.fd < 0:
            raise DatabaseClosed("the database was closed, or this process was forked; open it again")

    def _set(self, byte: int, kind: int, wait: bool) -> bool:
        self.must_be_open()
        try:
            fcntl.fcntl(self.fd, fcntl.F_OFD_SETLKW if wait else fcntl.F_OFD_SETLK, _request(kind, byte))
        except (BlockingIOError, PermissionError):
            return False
        return True

    def take(self, byte: int, timeout: float | None = None, *, shared: bool = False) -> bool:
        """Locks a byte, waiting for at most ``timeout`` seconds (None: without limit); returns whether it is locked."""
        kind = fcntl.F_RDLCK if shared else fcntl.F_WRLCK
        if timeout is None:
            return self._set(byte, kind, wait=True)
        deadline, sleep_s = time.monotonic() + timeout, 0.0001
        while not self._set(byte, kind, wait=False):
            if time.monotonic() >= deadline:
                return False
            time.sleep(sleep_s)
            sleep_s = min(2 * sleep_s, LONGEST_SLEEP_S)
        return True

    def release(self, byte: int) -> None:
        if self.fd >= 0:  # else it is released
            self._set(byte, fcntl.F_UNLCK, wait=False)


class Lock:
    """A lock on one byte of the file, which also excludes the threads of this handle: they get it in the order in which they came.

    A signal's handler may raise after any call, so that its result is lost. So nothing here depends on a result: who has the lock
    stands in ``_holder``, and what gives it back may be called once more. (Python handles no signal between taking the lock
    of a ``with`` statement and entering its block.)
    """

    def __init__(self, file: LockFile, byte: int, what: str) -> None:
        self._file, self._byte, self._what = file, byte, what
        # Guards the fields below; nobody waits while he has it. Reentrant, because a handler, or the end of a transaction that the
        # garbage collector finds, may come in between: where that matters, nothing is called.
        self._mutex = threading.RLock()
        self._holder: object = None
        self._thread = 0  # which took it
        self._waiting: dict[object, tuple[int, threading.Lock]] = {}  # by holder: its thread, and where that sleeps

    def take(self, holder: object, timeout: float | None = None) -> None:
        """Takes the lock for ``holder``, a new object.

        Raises Busy after ``timeout`` seconds, TransactionError if this thread has it, DatabaseClosed.
        """
        if self._thread == threading.get_ident():
            raise TransactionError(f"this thread has the {self._what} lock already; end its transaction first")
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        try:
            self._await_threads(holder, timeout, deadline)
            left = None if timeout is None else max(0.0, deadline - time.monotonic())
            if not self._file.take(self._byte, left):
                raise self._busy(timeout)
        except BaseException:
            self.release(holder)
            raise

    def _await_threads(self, holder: object, timeout: float | None, deadline: float) -> None:
        """Waits until no other thread of this handle has the lock."""
        woken = threading.Lock()
        woken.acquire()
        thread = threading.get_ident()
        me = thread, woken
        with self._mutex:
            if self._holder is None:
                self._holder, self._thread = holder, thread
            else:
                self._waiting[holder] = me
        while self._holder is not holder:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise self._busy(timeout)
            self._file.must_be_open()
            woken.acquire(timeout=min(left_s, LOOK_S))

    def _busy(self, timeout: float | None) -> Busy:
        return Busy(f"the {self._what} lock was not free within {timeout} s; try again, or wait longer")

    def release(self, holder: object) -> None:
        """Gives the lock to the thread that waits for the longest time; does nothing if ``holder`` does not have it."""
        woken = None
        with self._mutex:
            if self._holder is holder:
                self._file.release(self._byte)
                self._holder, self._thread = None, 0
                for after in self._waiting:
                    self._holder = after
                    self._thread, woken = self._waiting[after]
                    del self._waiting[after]
                    break
            elif holder in self._waiting:
                del self._waiting[holder]
        if woken is not None:
            woken.release()

    @contextlib.contextmanager
    def held(self, timeout: float | None = None) -> Iterator[None]:
        holder = object()
        try:
            self.take(holder, timeout)
            yield
        finally:
            try:
                self.release(holder)
            finally:  # a handler may have raised in the first call
                self.release(holder)


def _after_fork() -> None:
    for file in list(_open_files):
        file.close()


os.register_at_fork(after_in_child=_after_fork)
