"""Locks between processes: open-file-description locks on bytes of one file beside the database.

The kernel drops such a lock when its holder dies, for any reason, and
nobody has to guess whether a pid is still the one it was (fcntl(2), F_OFD_SETLK).
The locks of a handle are those of one open of the file, so its threads are kept
apart by an ordinary lock each.

::

    byte  0   open       one process at a time attaches, recovers, or gives a pool up
          1   attached   shared, by every open handle: who can take it alone is alone
          2   write      one write transaction at a time
          3   sync       one process at a time makes the log durable, for all that wait
          4   checkpoint one checkpoint at a time
        100+  snapshots  one byte per open handle: whether its snapshots still count

Order: open, checkpoint, write, sync.
"""

import contextlib
import fcntl
import os
import struct
import threading
import time
from collections.abc import Iterator

from toydb.errors import Busy, TransactionError

OPEN, ATTACHED, WRITE, SYNC, CHECKPOINT, SNAPSHOTS = 0, 1, 2, 3, 4, 100
LONGEST_SLEEP_S = 0.002
_FLOCK = struct.Struct("hhqqi4x")  # struct flock: type, whence, start, length, pid


class LockFile:
    """One open of the lock file."""

    def __init__(self, path: str) -> None:
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)

    def close(self) -> None:
        """Ends every lock of this handle."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def _set(self, byte: int, kind: int, wait: bool) -> bool:
        request = _FLOCK.pack(kind, os.SEEK_SET, byte, 1, 0)
        try:
            fcntl.fcntl(self.fd, fcntl.F_OFD_SETLKW if wait else fcntl.F_OFD_SETLK, request)
        except (BlockingIOError, PermissionError):
            return False
        return True

    def take(self, byte: int, timeout: float | None = None, *, shared: bool = False) -> bool:
        """Takes a byte, waiting for at most ``timeout`` seconds (None: as long as it takes)."""
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
        self._set(byte, fcntl.F_UNLCK, wait=False)


class Lock:
    """One byte of the file, for the threads of this handle too."""

    def __init__(self, file: LockFile, byte: int, what: str) -> None:
        self._file, self._byte, self._what = file, byte, what
        self._threads = threading.Lock()
        self._owner = 0

    def take(self, timeout: float | None = None) -> None:
        """Raises Busy after ``timeout`` seconds, TransactionError if this thread has it already."""
        if self._owner == threading.get_ident():
            raise TransactionError(f"this thread has the {self._what} lock already; end what holds it first")
        start = time.monotonic()
        if not self._threads.acquire(timeout=-1 if timeout is None else timeout):
            raise self._busy(timeout)
        try:
            left = None if timeout is None else max(0.0, timeout - (time.monotonic() - start))
            if not self._file.take(self._byte, left):
                raise self._busy(timeout)
        except BaseException:
            self._file.release(self._byte)  # an interrupt may come when the byte is ours already
            self._threads.release()
            raise
        self._owner = threading.get_ident()

    def _busy(self, timeout: float | None) -> Busy:
        return Busy(f"the {self._what} lock was not free within {timeout} s; try again, or wait longer")

    def release(self) -> None:
        self._owner = 0
        self._file.release(self._byte)
        self._threads.release()

    @contextlib.contextmanager
    def held(self, timeout: float | None = None) -> Iterator[None]:
        self.take(timeout)
        try:
            yield
        finally:
            self.release()
