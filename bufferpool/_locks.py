"""The locks of this package. In a forked child every lock is replaced by a new one.

A fork copies all locks, but only the thread that forks: a lock that another thread held
would never be released in the child. So a child starts with free locks, and
with events that are set, because the threads that would set them do not exist there.

A signal's handler may raise between any two bytecodes of the main thread, also at the beginning of an ``__exit__`` that is
written in Python: its lock would be held for ever. So blocks are entered and left by methods written in C.
"""

import _thread
import contextlib
import os
import threading
import time
import weakref

_made: "weakref.WeakSet[Lock | Event]" = weakref.WeakSet()
_LOOK_S = 0.5  # seconds between two looks of a waiter at an event, in case the gate does not open


class Lock(_thread.RLock):  # type: ignore[misc]  # the stub calls it final, which it is not
    """A reentrant lock between the threads of this process."""

    def __init__(self) -> None:
        _made.add(self)

    def _renew(self) -> None:
        self._at_fork_reinit()  # type: ignore[attr-defined]


class Event:
    """Like threading.Event. In a forked child it is set, because the thread that would set it does not exist there."""

    def __init__(self) -> None:
        self._is_set = False
        self._gate = _thread.allocate_lock()  # held until the event is set
        self._gate.acquire()
        _made.add(self)

    def is_set(self) -> bool:
        return self._is_set

    def set(self) -> None:
        self._is_set = True
        with contextlib.suppress(RuntimeError):  # it is open already
            self._gate.release()

    def wait(self, timeout: float | None = None) -> bool:
        end = float("inf") if timeout is None else time.monotonic() + timeout
        while not self._is_set:
            left = end - time.monotonic()
            if left <= 0:
                break
            if self._gate.acquire(timeout=min(left, _LOOK_S)):
                self.set()  # opens it for the next one
        return self._is_set

    def _renew(self) -> None:
        self._gate = _thread.allocate_lock()
        self._is_set = True


class Condition(Lock):  # type: ignore[misc]
    """Like threading.Condition. In a forked child no thread waits for it."""

    def __init__(self) -> None:
        super().__init__()
        self._condition = threading.Condition(self)

    def wait(self, timeout: float | None = None) -> bool:
        try:
            return self._condition.wait(timeout)
        except BaseException:
            if not self._is_owned():  # type: ignore[attr-defined]  # a handler has raised: the block still ends with the lock
                self.acquire()
            raise

    def notify_all(self) -> None:
        self._condition.notify_all()

    def _renew(self) -> None:
        super()._renew()
        self._condition = threading.Condition(self)


def _renew_all() -> None:
    """Renews all of them, even where the handler of a signal raises meanwhile: CPython ignores what a fork's hook raises,
    and the child would wait for ever for a lock that was left as it was."""
    raised: BaseException | None = None
    while True:
        try:
            for made in list(_made):
                made._renew()
            break
        except BaseException as error:  # noqa: BLE001 - a handler's; CPython shows it when all locks are new
            raised = error
    if raised is not None:
        raise raised


os.register_at_fork(after_in_child=_renew_all)
