"""The handler of a signal raises while a forked child gets its locks anew.

CPython ignores what the hooks of a fork raise ("Exception ignored in ..."). A SIGTERM whose handler raises SystemExit
left some locks of the child as they were in its parent: held by threads that the child does not have.
"""

import signal
import threading

import pytest

from bufferpool import _locks
from tests.conftest import WAIT
from tests.support.children import exit_code, forked


class Ringing(_locks.Lock):
    """A signal arrives while it is renewed."""

    rung = False

    def _renew(self) -> None:
        if not self.rung:
            self.rung = True
            signal.raise_signal(signal.SIGUSR2)
        super()._renew()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_handler_that_raises_in_the_midst() -> None:
    """Another thread holds twenty locks at the time of the fork; the child can take each of them."""
    locks = [_locks.Lock() for _ in range(10)] + [Ringing()] + [_locks.Lock() for _ in range(10)]
    held, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        for lock in locks:
            lock.__enter__()
        held.set()
        go_on.wait(WAIT)
        for lock in locks:
            lock.__exit__()

    def leave(*_: object) -> None:
        raise SystemExit(143)

    thread = threading.Thread(target=hold)
    thread.start()
    assert held.wait(WAIT)
    before = signal.signal(signal.SIGUSR2, leave)
    pid = forked(lambda: sum(lock.acquire(timeout=0.01) for lock in locks))
    signal.signal(signal.SIGUSR2, before)
    go_on.set()
    thread.join(WAIT)
    assert exit_code(pid) == len(locks)
