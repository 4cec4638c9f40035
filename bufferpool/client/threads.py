"""Threads that work in the background.

Not threading.Thread: its start() waits until the new thread has said that it runs, and would wait for ever where the
thread finds no memory to say so (a small RLIMIT_AS or RLIMIT_DATA), because a thread that fails to begin ends
silently. The threads here hold a token, which is dropped when they end, for any reason.
"""

import _thread
import errno
import sys
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import suppress

from bufferpool._locks import Event
from bufferpool.errors import ThreadRefused, caused

_SLICE_S = 0.02


class _Token:
    """An object that only the thread holds: when it is gone, the thread has ended."""


class Worker:
    """A thread that does one piece of work. It does not keep the process from ending."""

    def __init__(self, work: Callable[[], object]) -> None:
        """Returns when the thread has begun. Raises ThreadRefused if no thread can be started; the work is not done then."""
        self._start(work)
        self._wait_until_begun()

    @classmethod
    def several(cls, work: Callable[[], object], most: int) -> "list[Worker]":
        """Starts ``most`` threads that do the same work, or as many as the system allows, and returns those that have begun.

        They begin at the same time: on a busy machine a new thread waits for a processor, and here the threads wait
        together, not one after the other.
        """
        started, begun = list[Worker](), list[Worker]()
        with suppress(ThreadRefused):
            while len(started) < most:
                worker = cls.__new__(cls)
                worker._start(work)
                started.append(worker)
        for worker in started:
            with suppress(ThreadRefused):
                worker._wait_until_begun()
                begun.append(worker)
        return begun

    def _start(self, work: Callable[[], object]) -> None:
        self._work = work
        self._done = Event()  # set in a forked child, which does not have the thread
        self._begun = _thread.allocate_lock()
        self._begun.acquire()
        self._ident = 0
        token = _Token()
        self._token = weakref.ref(token)
        try:
            _thread.start_new_thread(self._run, (token,))
        except (RuntimeError, MemoryError) as error:  # a limit, or the interpreter ends
            raise _refused("the system refuses one more thread", errno.EAGAIN) from error

    def _wait_until_begun(self) -> None:
        while not self._begun.acquire(timeout=_SLICE_S):
            if self._token() is None:
                if self._begun.acquire(blocking=False):
                    return  # since the wait it has begun, and has ended
                raise _refused("the new thread found no memory to begin with", errno.ENOMEM)

    @property
    def ended(self) -> bool:
        """Whether the work is over.

        In a forked child it is, because the thread is the parent's; and when the interpreter is finalizing, because
        CPython lets no other thread run Python code then, so the thread could not say that it has ended.
        """
        return self._done.is_set() or self._token() is None or sys.is_finalizing()

    def is_current(self) -> bool:
        """Whether the caller is this thread."""
        return self._ident == _thread.get_ident() and not self.ended

    def join(self, timeout: float | None = None) -> bool:
        """Waits until the work is over, for at most ``timeout`` seconds; returns whether it is."""
        end = float("inf") if timeout is None else time.monotonic() + timeout
        while not self.ended:
            left = end - time.monotonic()
            if left <= 0:
                return False
            self._done.wait(min(left, 50 * _SLICE_S))  # not for longer: a thread that ends by a failure sets no event
        return True

    def _run(self, token: _Token) -> None:
        self._ident = _thread.get_ident()
        self._begun.release()
        try:
            self._work()
        except SystemExit:
            pass
        except BaseException:  # noqa: BLE001 - not swallowed: the hook shows it
            threading.excepthook(threading.ExceptHookArgs([*sys.exc_info(), None]))
        finally:
            self._done.set()


def _refused(why: str, number: int) -> ThreadRefused:
    limits = "raise ulimit -u, ulimit -v or ulimit -d, or the cgroup's pids.max"
    return caused(ThreadRefused(f"no thread can be started: {why}; {limits}"), number)
