"""Death at every line of Python that makes, moves, resizes or removes a page size.

The steps are Python, so no kill point of the core lies between them: a tracer kills the process before its n-th line instead, for each n. What the core
does within one line dies at its own kill points (tests/core/test_killpoints.py).
"""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import pytest

import bufferpool as bp
from bufferpool.client import client, segment_file
from bufferpool.spaces import directory
from bufferpool.upkeep import memory, page_sizes
from tests.conftest import SHM
from tests.spaces.test_page_sizes import BIG, load, memory_of, parts, use

WHOLE = 4 << 20
TRACED = {module.__file__ for module in (page_sizes, segment_file, client, directory, memory)}
STRIDE = 31  # in the suite; the soak dies at every line
Act = Callable[[bp.Pool], object]


def make(pool: bp.Pool) -> None:
    pool.open_derived("b", 60, load, page_size=BIG)


def move(pool: bp.Pool) -> None:
    pool.balance()


def shrink(pool: bp.Pool) -> None:
    pool.resize(WHOLE // 2)


def grow(pool: bp.Pool) -> None:
    pool.resize(WHOLE + WHOLE // 2)


def remove(pool: bp.Pool) -> None:
    pool.remove_page_size(BIG)


def prepare(pool: bp.Pool, act: Act) -> None:
    """The state in which an act has all of its work to do."""
    if pool.capacity != WHOLE:
        pool.resize(WHOLE)
    small = pool.open_derived("a", 1500, load)
    if act is make:
        if "b" in {space.name for space in pool.spaces()}:
            pool.space("b").remove()
        if BIG in pool.page_sizes():
            pool.remove_page_size(BIG)
        use(small, range(0, 1500, 2))
        return
    large = pool.open_derived("b", 60, load, page_size=BIG)
    use(large, range(60))
    if act is remove:
        large.remove()
    if act is move:  # a balance gives the small pages what the large ones do not use
        pool.page_sizes()[BIG].trim()
        large.close()
    use(small, range(1500))


class Dies:
    """Kills this process before the n-th line of the traced modules; counts them for n = 0."""

    def __init__(self, at: int) -> None:
        self.at, self.lines = at, 0

    def __call__(self, frame: FrameType, event: str, arg: Any) -> Any:
        if frame.f_code.co_filename not in TRACED:
            return None
        if event == "line":
            self.lines += 1
            if self.lines == self.at:
                os.kill(os.getpid(), signal.SIGKILL)
        return self


def die(pool: bp.Pool, act: Act, at: int) -> int:
    """Runs an act in a forked child that dies before its n-th line; returns how many lines it had, 0 if it died."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            dies = Dies(at)
            sys.settrace(dies)
            act(pool)
            sys.settrace(None)
            os.write(writer, str(dies.lines).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        text = pipe.read()
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status) == (not text), "the child raised"
    return int(text or 0)


@pytest.fixture
def pool(make_pool: Any) -> Iterator[bp.Pool]:
    made = make_pool(WHOLE, max_capacity=2 * WHOLE)
    yield made
    made.unlink(discard=True)


def survive(pool: bp.Pool, act: Act, at: int) -> None:
    """What is true after a death: no memory above the budget, everybody goes on, and no memory is lost."""
    assert memory_of(pool) <= pool.capacity, at
    assert sum(parts(pool).values()) <= pool.capacity, at
    pool.reap()
    use(pool.open_derived("a", 1500, load), range(0, 1500, 3))
    use(pool.open_derived("b", 60, load, page_size=BIG), range(0, 60, 3))
    assert memory_of(pool) <= pool.capacity, at
    for _ in range(3):
        pool.balance()
    assert pool.capacity - 2 * BIG <= sum(parts(pool).values()) <= pool.capacity, at
    assert pool.check() == [], at
    assert [len(one.clients()) for one in pool.page_sizes().values()] == [1, 1], at
    assert len(list(SHM.glob(f"{pool.name}*"))) == 2, at


def run(pool: bp.Pool, act: Act, stride: int) -> int:
    prepare(pool, act)
    lines = die(pool, act, 0)
    assert lines > 20
    deaths = 0
    for at in range(1, lines + 1, stride):
        prepare(pool, act)
        deaths += die(pool, act, at) == 0  # a run may have fewer lines, if there was less to do
        survive(pool, act, at)
    return deaths * stride


ACTS = [make, move, shrink, grow, remove]


@pytest.mark.parametrize("act", ACTS, ids=lambda act: act.__name__)
def test_a_death_at_any_line_loses_no_memory_and_stops_nobody(pool: bp.Pool, act: Act) -> None:
    assert run(pool, act, STRIDE) > 20


@pytest.mark.soak
@pytest.mark.parametrize("act", ACTS, ids=lambda act: act.__name__)
def test_a_death_at_every_line_loses_no_memory_and_stops_nobody(pool: bp.Pool, act: Act) -> None:
    assert run(pool, act, 1) > 20
