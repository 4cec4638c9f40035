"""The locks of this package. In a forked child every lock is replaced by a new one.

A fork copies all locks, but only the thread that forks: a lock that another thread held
would never be released in the child. So a child starts with free locks, and
with events that are set, because the threads that would set them do not exist there.
"""

import os
import threading
import weakref
from typing import Any

_made: "weakref.WeakSet[Lock | Event | Condition]" = weakref.WeakSet()


class Lock:
    """A reentrant lock between the threads of this process."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        _made.add(self)

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *exc: Any) -> None:
        self._lock.release()

    def _renew(self) -> None:
        self._lock = threading.RLock()


class Event:
    """Like threading.Event. In a forked child it is set, because the thread that would set it does not exist there."""

    def __init__(self) -> None:
        self._event = threading.Event()
        _made.add(self)

    def is_set(self) -> bool:
        return self._event.is_set()

    def set(self) -> None:
        self._event.set()

    def wait(self, timeout: float | None = None) -> bool:
        return self._event.wait(timeout)

    def _renew(self) -> None:
        self._event = threading.Event()
        self._event.set()


class Condition:
    """Like threading.Condition. In a forked child no thread waits for it."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        _made.add(self)

    def __enter__(self) -> None:
        self._condition.acquire()

    def __exit__(self, *exc: Any) -> None:
        self._condition.release()

    def wait(self, timeout: float | None = None) -> bool:
        return self._condition.wait(timeout)

    def notify_all(self) -> None:
        self._condition.notify_all()

    def _renew(self) -> None:
        self._condition = threading.Condition()


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
