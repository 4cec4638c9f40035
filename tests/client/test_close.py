"""The end of a ``with`` block: of a pool while arrays over its pages exist, and of a page that is released."""

import copy
import os
import pickle

import numpy as np
import pytest

import bufferpool as bp
from bufferpool.errors import PageReleased, PoolClosed
from tests.conftest import PAGE, fill, new_name, stamp
from tests.support.children import run_python


def mappings(pool: bp.Pool) -> int:
    """How often this process has the segment mapped."""
    with open("/proc/self/maps") as maps:
        return sum(pool.path in line for line in maps)


def test_the_block_of_a_pool_ends_while_a_loop_variable_looks_at_a_page():
    """``for page in table`` leaves its last page behind, and the end of the pool's block raised BufferError."""
    name = new_name()
    watcher = bp.Pool.create(name, 64 * PAGE, page_size=PAGE)
    with bp.Pool.attach(name) as pool:
        work = pool.open_scratch("work", 8)
        fill(work, range(8))
        for n in range(8):
            page = work[n]
        part = page[8:16]
        other = work[3]
    assert np.array_equal(page, stamp(7))
    for use in (
        lambda: work[0],
        lambda: len(work),
        lambda: work.write(0),
        pool.stats,
        lambda: pool.open_scratch("more", 1),
    ):
        with pytest.raises(PoolClosed):
            use()
    assert watcher.stats().clients == 2
    del page, other
    assert watcher.stats().clients == 2
    assert np.array_equal(part, stamp(7)[8:16])
    del part  # the last one: the pool detaches, though the handle of the space is still there
    assert watcher.stats().clients == 1
    assert watcher.check() == []
    with pytest.raises(PoolClosed):
        _ = work[0]
    with watcher:
        watcher.unlink()


def test_pinned_pages_of_each_kind_outlive_the_block():
    name = new_name()
    watcher = bp.Pool.create(name, 64 * PAGE, page_size=PAGE)
    for keep in (lambda w: w[1], lambda w: w.pin(1).page, lambda w: w.pin_many([1, 2])[0], lambda w: w.pin_many([1])):
        with bp.Pool.attach(name) as pool:
            work = pool.open_scratch("work", 4)
            fill(work, range(4))
            kept = keep(work)
        first = kept[0] if isinstance(kept, bp.PinnedPages) else kept
        assert np.array_equal(first, stamp(1))
        assert watcher.stats().clients == 2
        del kept, first, work
        assert watcher.stats().clients == 1
        assert watcher.check() == []
    watcher.unlink()
    watcher.close()


def test_a_forked_child_of_a_block_that_has_ended_keeps_its_pages():
    name = new_name()
    watcher = bp.Pool.create(name, 64 * PAGE, page_size=PAGE)
    with bp.Pool.attach(name) as pool:
        work = pool.open_scratch("work", 4)
        fill(work, range(4))
        page = work[2]
    pid = os.fork()
    if pid == 0:
        right = np.array_equal(page, stamp(2))
        del page
        os._exit(0 if right and mappings(watcher) == 2 else 1)  # the watcher's two
    assert os.waitpid(pid, 0)[1] == 0
    assert np.array_equal(page, stamp(2))
    del page
    watcher.reap()
    assert watcher.stats().clients == 1
    assert watcher.check() == []
    watcher.unlink()
    watcher.close()


def test_an_explicit_close_still_says_that_arrays_look():
    pool = bp.Pool.create(new_name(), 64 * PAGE, page_size=PAGE)
    page = pool.open_scratch("work", 4)[0]
    with pytest.raises(BufferError, match=r"arrays over its pages exist.*loop variable.*_ .*with pool"):
        pool.close()
    assert pool.check() == []
    del page
    pool.unlink()
    pool.close()


@pytest.mark.parametrize("where", [PAGE, 4 * PAGE, 16 * PAGE])
def test_a_refused_close_closes_no_page_size(where):
    """A close that was refused, as an array looked at a page, had closed other page sizes already: their spaces raised PoolClosed for good."""
    pool = bp.Pool.create(new_name(), 2048 * PAGE, page_size=PAGE)
    sizes = (PAGE, 4 * PAGE, 16 * PAGE)
    spaces = {size: pool.open_scratch(f"work-{size}", 4, page_size=size) for size in sizes}
    for space in spaces.values():
        with space.write(1) as copy:
            copy[:] = 7
    page = spaces[where][0]
    with pytest.raises(BufferError, match="arrays over its pages exist"):
        pool.close()
    with spaces[where].write(2) as copy:
        copy[:] = 8
        with pytest.raises(BufferError):
            pool.close()
    for space in spaces.values():
        assert (space[1] == 7).all()
    assert (spaces[where][2] == 8).all()
    assert pool.check() == []
    del page
    pool.unlink()
    pool.close()
    for space in spaces.values():
        with pytest.raises(PoolClosed):
            _ = space[1]


def test_a_refused_close_leaves_the_steward_at_work():
    """The close ended the steward first, and then was refused: the pool was open, and nobody flushed it."""
    with bp.Pool.create(new_name(), 64 * PAGE, page_size=PAGE) as pool:
        work = pool.open_scratch("work", 4)
        settings = bp.Settings(idle=77, pressure=False)
        pool.start_steward(settings)
        page = work[0]
        with pytest.raises(BufferError):
            pool.close()
        assert pool._steward.alive
        assert pool._steward.settings == settings
        del page
        pool.stop_steward()
        pool.unlink()


def require_left(pool: bp.Pool) -> None:
    """A child has left nothing in the pool; removes the pool."""
    pool.reap()
    assert pool.stats().clients == 1
    assert pool.check() == []
    pool.unlink()
    pool.close()


def test_the_interpreter_ends_with_pages_in_hand():
    """Nothing is printed, and the slot is free afterwards."""
    name = new_name()
    pool = bp.Pool.create(name, 64 * PAGE, page_size=PAGE)
    done = run_python(
        "import sys, bufferpool as bp\n"
        "pool = bp.Pool.attach(sys.argv[1])\n"
        "page = pool.open_scratch('work', 4)[0]\n"
        "with pool: other = pool.space('work')[1]\n",
        name,
    )
    assert (done.returncode, done.stderr) == (0, "")
    require_left(pool)


def test_the_interpreter_ends_in_the_midst_of_a_scan(tmp_path):
    """The interpreter ends an unfinished scan when only its last thread runs: it waited for ever for the threads that read ahead."""
    path, name = tmp_path / "data", new_name()
    path.write_bytes(bytes(64 * PAGE))
    pool = bp.Pool.create(name, 64 * PAGE, page_size=PAGE)
    done = run_python(
        "import sys, bufferpool as bp\n"
        "pool = bp.Pool.attach(sys.argv[1])\n"
        "rest = pool.open_file(sys.argv[2]).scan()\n"
        "next(rest)\n"
        "def with_steward():\n"
        "    with pool:\n"
        "        pool.start_steward()\n"
        "        yield\n"
        "rounds = with_steward()\n"
        "next(rounds)\n",
        name,
        str(path),
    )
    assert (done.returncode, done.stderr) == (0, "")
    require_left(pool)


SUSPENDED = """
import asyncio, atexit, os, sys

@atexit.register
def end():  # the last of all such functions
    for module in [each for name, each in sys.modules.items() if name.startswith("bufferpool")]:
        for name in [name for name in vars(module) if not name.startswith("__")]:
            setattr(module, name, None)
    while suspended:
        suspended.pop().close()

import bufferpool as bp
from bufferpool.machine.pressure import SystemSource

segment, data = sys.argv[1:]
pool = bp.Pool.attach(segment)
busy = bp.Pool.attach(segment)  # its close() at exit is refused, because a page is being written
work, tables = busy.open_scratch("work", 16), pool.open_file(data)
source = SystemSource("/dev/shm")

def steward():
    with bp.Pool.attach(segment) as other:
        other.start_steward()
        yield

def stopped():
    other = bp.Pool.attach(segment)
    other.start_steward()
    try:
        yield
    finally:
        other.stop_steward()
        other.close()

def pages():
    with busy, busy.open_scratch("own", 4, lifetime="process"), work.write(1), work.pin(2), work.pin_many([3, 4]):
        yield

def own():
    with pool.open_scratch("sort", 4, lifetime="process"), bp.Observer(segment):
        yield

def group():
    with pool.publish_many() as group:
        group.write(pool.space("work", mode="r+"), 5)[:] = 1
        yield

def pressure():
    try:
        yield
    finally:
        source.close()

@pool.cache("values").memoize()
async def value(n):
    await asyncio.Future(loop=loop)

loop = asyncio.new_event_loop()
suspended = [tables.scan(), reversed(work), steward(), stopped(), pages(), own(), group(), pressure()]
for each in suspended:
    next(each)
suspended.append(value(1))
asyncio._set_running_loop(loop)  # in which it waits if a steward's thread has the lock of the objects
suspended[-1].send(None)
asyncio._set_running_loop(None)
"""


def test_the_interpreter_removes_the_modules_names_before_it_ends_generators(tmp_path):
    """CPython without the GIL does, always, and others where something keeps a module: each block that was open then ended with
    an AttributeError of None, which was printed."""
    path, name = tmp_path / "data", new_name()
    path.write_bytes(bytes(64 * PAGE))
    pool = bp.Pool.create(name, 64 * PAGE, page_size=PAGE)
    done = run_python(SUSPENDED, name, str(path))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    require_left(pool)


USES = {
    "item": lambda page: page[0],
    "slice": lambda page: page[:],
    "iteration": list,
    "sum": lambda page: page.sum(),
    "np.sum": np.sum,
    "plus": lambda page: page + 1,
    "equal": lambda page: page == 1,
    "array_equal": lambda page: np.array_equal(page, page),
    "copy": lambda page: page.copy(),
    "copy.copy": copy.copy,
    "pickle": pickle.dumps,
    "bytes": lambda page: page.tobytes(),
    "truth": bool,
    "contains": lambda page: 3 in page,
    "view": lambda page: page.view(np.uint64),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_a_page_that_was_released_says_so(use):
    """It said "index 0 is out of bounds for axis 0 with size 0", and its sum was 0."""
    pool = bp.Pool.create(new_name(), 64 * PAGE, page_size=PAGE)
    work = pool.open_scratch("work", 4)
    with work.pin(1) as page:
        assert page.size == PAGE
    with work.pin_many([2, 3]) as pages:
        one = pages[1]
    for released in (page, one):
        with pytest.raises(PageReleased, match="released at the end of its with block"):
            use(released)
        with pytest.raises(ValueError, match="released"):
            use(released)
        assert "released" in repr(released)
        assert released.shape == (0,)
    del page, one, released
    assert pool.check() == []
    pool.unlink()
    pool.close()


def test_released_pages_come_and_go():
    """Each is freed as the array that it was."""
    pool = bp.Pool.create(new_name(), 64 * PAGE, page_size=PAGE)
    work = pool.open_scratch("work", 4)
    kept = []
    for n in range(1000):
        with work.pin(n % 4) as page:
            assert page.size == PAGE
        kept.append(page)
        del page
        kept = kept[-10:]
    assert all(type(page) is type(kept[0]) for page in kept)
    kept.clear()
    assert pool.check() == []
    pool.unlink()
    pool.close()
