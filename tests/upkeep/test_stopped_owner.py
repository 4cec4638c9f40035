"""A client is stopped while it holds a lock of the pool: calls with a timeout end when that is over.

``write(timeout=1)``, ``get(n, timeout=1)`` and the others waited for the memory lock without a limit: a process that
was stopped (Ctrl-Z, a debugger, a frozen cgroup) between two instructions held up every miss and every write of all
the others, whatever their timeout said. The lock's word is set by hand here, to a client that lives and does nothing.
"""

import contextlib
import os
import signal
import struct
from collections.abc import Callable, Iterator

import numpy as np
import pytest

import bufferpool as bp
from bufferpool._core import fields
from tests.conftest import PAGE, WAIT

SHORT = 0.05


def _attach_and_wait(name: str, said: object, go_on: object) -> None:
    with bp.Pool.attach(name):
        said.set()  # type: ignore[attr-defined]
        go_on.wait()  # type: ignore[attr-defined]


@pytest.fixture
def owner(pool, child, spawn) -> Iterator[int]:
    """The number of another client, which lives."""
    said, go_on = spawn.Event(), spawn.Event()
    process = child(_attach_and_wait, pool.name, said, go_on)
    assert said.wait(WAIT)
    (number,) = (c.client for c in pool.clients() if c.pid != os.getpid())
    yield number
    go_on.set()
    process.process.join(WAIT)


@pytest.fixture
def in_time() -> Iterator[None]:
    """A wait that does not end by itself is ended by a signal, with another error than the test wants."""

    def ring(*_: object) -> None:
        raise AssertionError("the call still waits")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(int(WAIT) // 2)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def held(pool: bp.Pool, lock: str, owner: int) -> Iterator[None]:
    """Inside the block the client has the lock."""
    at = fields()[f"Header.{lock}.word"][0]
    with open(pool.path, "r+b", buffering=0) as file:
        file.seek(at)
        file.write(struct.pack("<I", owner))
        try:
            yield
        finally:
            file.seek(at)
            file.write(struct.pack("<I", 0))


CALLS: dict[str, Callable[[bp.Space], object]] = {
    "get": lambda table: table.get(5, timeout=SHORT),
    "pin": lambda table: table.pin(5, timeout=SHORT),
    "pin_many": lambda table: table.pin_many([5, 6], timeout=SHORT),
    "read_many": lambda table: table.read_many([5, 6], timeout=SHORT),
    "write": lambda table: table.write(5, timeout=SHORT).__enter__(),
}


@pytest.mark.usefixtures("in_time")
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_a_miss(pool, data_file, owner, call) -> None:
    """The page is absent, so that a frame is needed: the error names the client that has the lock."""
    table = pool.open_file(data_file(16), "r+")
    with held(pool, "memory", owner), pytest.raises(bp.WaitTimeout, match=f"client {owner} "):
        call(table)
    assert table[5].size == PAGE
    assert pool.check() == []


@pytest.mark.usefixtures("in_time")
def test_a_derived_page(pool, owner) -> None:
    """The loader is called before a frame is taken; its content is given up with the call."""
    made = pool.open_derived("made", 16, lambda n, out: out.fill(n))
    with held(pool, "memory", owner), pytest.raises(bp.WaitTimeout):
        made.get(3, timeout=SHORT)
    assert made[3][0] == 3
    assert pool.check() == []


@pytest.mark.usefixtures("in_time")
def test_the_end_of_a_write(pool, data_file, owner) -> None:
    """Nothing is published, and the page can be written again."""
    table = pool.open_file(data_file(16), "r+")
    before = np.array(table[5])
    write = table.write(5, timeout=SHORT)
    write.__enter__()[:] = 7
    with held(pool, "memory", owner), pytest.raises(bp.WaitTimeout):
        write.__exit__(None, None, None)
    assert np.array_equal(table[5], before)
    with table.write(5) as page:
        page[:] = 8
    assert table[5][0] == 8
    assert pool.check() == []


@pytest.mark.usefixtures("in_time")
def test_the_end_of_an_append(pool, data_file, owner) -> None:
    """The page needs a frame; its number is given back."""
    table = pool.open_file(data_file(16), "r+", max_pages=32)
    with held(pool, "memory", owner), pytest.raises(bp.WaitTimeout), table.append(timeout=SHORT):
        pass
    with table.append() as page:
        page[:] = 3
    assert len(table) == 17
    assert pool.check() == []


@pytest.mark.usefixtures("in_time")
def test_the_number_of_an_append(pool, data_file, owner) -> None:
    """A number may need memory for its entry, under the growth lock."""
    table = pool.open_file(data_file(16), "r+", max_pages=16384)
    with held(pool, "growth", owner), pytest.raises(bp.WaitTimeout, match=f"client {owner} "):
        _ = [table.append(timeout=SHORT) for _ in range(16384)]
    with table.append() as page:
        page[:] = 3
    assert pool.check() == []


@pytest.mark.usefixtures("in_time")
def test_the_page_of_a_dead_client_that_cannot_be_reaped_now(pool, data_file, owner, child) -> None:
    """Reaping needs the memory lock too: the wait for the page of a client that was killed ends in time."""
    table = pool.open_file(data_file(16), "r+", name="table")
    assert child(_die_in_a_write, pool.name).process.join(WAIT) is None
    with held(pool, "memory", owner), pytest.raises(bp.WaitTimeout):
        table.write(3, timeout=SHORT).__enter__()
    with table.write(3) as page:
        page[:] = 5
    assert pool.check() == []


def _die_in_a_write(name: str) -> None:
    with bp.Pool.attach(name) as pool, pool.space("table", "r+").write(3):
        signal.raise_signal(signal.SIGKILL)
