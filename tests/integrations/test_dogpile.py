"""dogpile.cache with values and locks in a pool."""

import os
import signal
import threading
import time
from typing import Any

import pytest

pytest.importorskip("dogpile.cache")

from dogpile.cache import make_region
from dogpile.cache.api import NO_VALUE

from bufferpool.integrations import dogpile
from tests.conftest import WAIT, wait_until


@pytest.fixture
def region(name: str) -> Any:
    return make_region().configure("bufferpool", arguments={"pool": name, "size": "8MiB"})


def test_values(region: Any) -> None:
    assert region.get("key") is NO_VALUE
    region.set("key", {"a": [1]})
    assert region.get("key") == {"a": [1]}
    region.set_multi({"b": None, "c": b"bytes"})
    assert region.get_multi(["b", "absent", "c"]) == [None, NO_VALUE, b"bytes"]
    region.delete("key")
    region.delete("key")
    region.delete_multi(["b", "c"])
    assert region.get_multi(["key", "b", "c"]) == [NO_VALUE] * 3


def test_functions_are_computed_once_and_again_when_they_expire(region: Any) -> None:
    calls: list[int] = []

    @region.cache_on_arguments(expiration_time=0.05)
    def square(x: int) -> int:
        calls.append(x)
        return x * x

    assert [square(3), square(3)] == [9, 9]
    assert calls == [3]
    time.sleep(0.08)
    assert square(3) == 9
    assert calls == [3, 3]
    square.invalidate(3)
    assert square(3) == 9
    assert calls == [3, 3, 3]


def test_processes_compute_a_value_once(region: Any) -> None:
    """The locks of dogpile's backends in memory are those of one process: each process computed each value."""
    read, write = os.pipe()
    children = []
    for _ in range(4):
        children.append(os.fork())
        if not children[-1]:
            code = 9
            try:
                for n in range(5):
                    region.get_or_create(f"key {n}", lambda: (os.write(write, b"."), time.sleep(0.02)) and "made")
                code = 0
            finally:
                os._exit(code)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * 4
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        assert pipe.read() == b"." * 5


class TestMutex:
    def test_one_thread_at_a_time(self, region: Any) -> None:
        mutex, order = region.backend.get_mutex("key"), list[str]()
        assert mutex.acquire()
        assert mutex.locked()
        assert not region.backend.get_mutex("key").acquire(wait=False)
        assert region.backend.get_mutex("other").acquire(wait=False)
        other = threading.Thread(target=lambda: (region.backend.get_mutex("key").acquire(), order.append("second")))
        other.start()
        order.append("first")
        mutex.release()
        other.join(WAIT)
        assert order == ["first", "second"]
        assert not mutex.locked()

    def test_the_mutex_of_a_dead_process_is_free(self, region: Any) -> None:
        child = os.fork()
        if not child:
            region.backend.get_mutex("key").acquire()
            os.kill(os.getpid(), signal.SIGKILL)
        os.waitpid(child, 0)
        mutex = region.backend.get_mutex("key")
        wait_until(lambda: bool(mutex.acquire(wait=False)), "the mutex of a dead process")
        mutex.release()


def test_arguments_that_are_unknown_are_refused(name: str) -> None:
    dogpile.PoolBackend({"pool": name, "size": "8MiB"})
    with pytest.raises(ValueError, match="no argument 'siez'"):
        dogpile.PoolBackend({"pool": name, "siez": "8MiB"})
    with pytest.raises(ValueError, match="no pool"):
        dogpile.PoolBackend({})
