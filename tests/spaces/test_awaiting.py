"""Pages that are there or not, and pages for asyncio.

A coroutine had to go through a thread for every page, hit or miss: ``asyncio.to_thread(space.get, n)`` costs five hundred
times what a hit costs, and ten thousand coroutines that waited for pages waited for the executor's threads.
"""

import asyncio
import threading

import numpy as np
import pytest

import bufferpool as bp
from tests.conftest import PAGE, WAIT, stamp, wait_until

# ---- here or not ---------------------------------------------------------------------


def test_try_get_returns_a_hit_or_none(make_pool, data_file):
    space = make_pool(16 * PAGE).open_file(data_file(64))
    assert space.try_get(3) is None
    space[3]
    before = space.stats()
    page = space.try_get(3)
    assert page is not None
    assert np.array_equal(page, stamp(3))
    assert space.try_get(4) is None
    after = space.stats()
    assert (after.hits - before.hits, after.misses - before.misses) == (1, 0)
    for n in (64, -1):
        with pytest.raises(bp.errors.PageOutOfRange):
            space.try_get(n)
    with pytest.raises(TypeError):
        space.try_get("3")  # type: ignore[arg-type]
    pinned = space.pool.frames()
    assert pinned["pins"].sum() == 1
    del page


def test_try_get_waits_for_no_loader(pool, threads):
    loading, go = threading.Event(), threading.Event()

    def load(page_no, out):
        loading.set()
        assert go.wait(WAIT)
        out[:] = page_no

    space = pool.open_derived("slow", 8, load)
    threads.start(lambda: space[1])
    assert loading.wait(WAIT)
    try:
        assert space.try_get(1) is None
        assert space.resident([0, 1]).tolist() == [False, False]
    finally:
        go.set()
    threads.join()
    assert space.try_get(1) is not None


def test_resident_tells_which_pages_are_there(make_pool, data_file):
    space = make_pool(16 * PAGE).open_file(data_file(64))
    space.read_many([1, 5])
    before = space.stats()
    there = space.resident(range(8))
    assert there.dtype == np.bool_
    assert np.flatnonzero(there).tolist() == [1, 5]
    assert space.resident([]).shape == (0,)
    assert space.resident(np.array([5, 5, 2])).tolist() == [True, True, False]
    assert space.stats() == before
    with pytest.raises(bp.errors.PageOutOfRange):
        space.resident([1, 64])
    space.drop()
    assert not space.resident(range(8)).any()


def test_a_removed_space_says_so(make_pool, data_file):
    pool = make_pool(16 * PAGE)
    space = pool.open_file(data_file(8))
    space.remove()
    with pytest.raises(bp.errors.SpaceRemoved):
        space.try_get(1)
    with pytest.raises(bp.errors.SpaceRemoved):
        asyncio.run(space.aget(1))


# ---- asyncio -------------------------------------------------------------------------


def test_a_hit_starts_no_thread_and_takes_no_turn_of_the_loop(make_pool, data_file):
    space = make_pool(16 * PAGE).open_file(data_file(64))
    space[7]
    threads = threading.active_count()
    coroutine = space.aget(7)
    with pytest.raises(StopIteration) as done:
        coroutine.send(None)  # it ends at once, without an event loop
    assert np.array_equal(done.value.value, stamp(7))
    assert threading.active_count() == threads


def test_ten_thousand_coroutines_need_few_threads(make_pool, data_file):
    pool = make_pool(256 * PAGE)
    space = pool.open_file(data_file(128))
    before = threading.active_count()

    async def total() -> int:
        pages = await asyncio.gather(*(space.aget(i % 128) for i in range(10_000)))
        assert all(np.array_equal(page, stamp(i % 128)) for i, page in enumerate(pages[:300]))
        return threading.active_count()

    assert asyncio.run(total()) - before <= 5
    stats = space.stats()
    assert stats.misses == 128  # each page is loaded once, and its first use is the miss
    assert pool.stats().loads == 128


def test_each_coroutine_gets_its_own_error(pool):
    def load(page_no, out):
        if page_no % 2:
            raise RuntimeError(f"no page {page_no}")
        out[:] = page_no

    space = pool.open_derived("half", 16, load)

    async def all_of_them() -> list[object]:
        return await asyncio.gather(*(space.aget(n) for n in range(16)), return_exceptions=True)

    for n, answer in enumerate(asyncio.run(all_of_them())):
        if n % 2:
            assert isinstance(answer, bp.errors.LoaderFailed)
            assert f"no page {n}" in str(answer)
        else:
            assert isinstance(answer, np.ndarray)
            assert (answer == n).all()
    with pytest.raises(bp.errors.PageOutOfRange):
        asyncio.run(space.aget(16))


def test_a_loader_that_hangs_delays_no_other_page(pool):
    go = threading.Event()

    def load(page_no, out):
        assert page_no or go.wait(WAIT)
        out[:] = page_no

    space = pool.open_derived("hangs", 64, load)

    async def others() -> None:
        stuck = asyncio.ensure_future(space.aget(0))
        pages = await asyncio.wait_for(asyncio.gather(*(space.aget(n) for n in range(1, 64))), 60)
        assert [int(page[0]) for page in pages] == list(range(1, 64))
        assert not stuck.done()
        go.set()
        assert (await asyncio.wait_for(stuck, 60) == 0).all()

    try:
        asyncio.run(others())
    finally:
        go.set()


def test_a_coroutine_may_give_up(pool):
    """It is cancelled, or out of time; the page is loaded all the same, and the next one finds it."""
    begun, go = threading.Event(), threading.Event()

    def load(page_no, out):
        begun.set()
        assert go.wait(WAIT)
        out[:] = page_no

    space = pool.open_derived("slow", 8, load)

    async def give_up() -> None:
        waits = [asyncio.ensure_future(space.aget(3)) for _ in range(3)]
        while not begun.is_set():
            await asyncio.sleep(0.001)
        waits[0].cancel()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(waits[1], 0.01)
        go.set()
        assert (await asyncio.wait_for(waits[2], 60) == 3).all()
        assert waits[0].cancelled()

    try:
        asyncio.run(give_up())
    finally:
        go.set()
    assert space.try_get(3) is not None


def test_read_many_without_blocking_the_loop(pool):
    go = threading.Event()

    def load(page_no, out):
        assert go.wait(WAIT)
        out[:] = page_no

    space = pool.open_derived("slow", 8, load)

    async def read() -> np.ndarray:
        reading = asyncio.ensure_future(space.aread_many([1, 2, 1]))
        await asyncio.sleep(0)
        go.set()  # the loop runs while the pages are loaded
        first = await asyncio.wait_for(reading, 60)
        out = np.empty_like(first)
        assert await space.aread_many([1, 2, 1], out) is out
        assert np.array_equal(out, first)
        return first

    assert asyncio.run(read())[:, 0].tolist() == [1, 2, 1]


def test_two_loops_in_two_threads_and_a_fork(make_pool, data_file, threads, child):
    pool = make_pool(64 * PAGE)
    space = pool.open_file(data_file(64), name="table")

    def use() -> None:
        async def some() -> None:
            pages = await asyncio.gather(*(space.aget(n) for n in range(40)))
            assert all(np.array_equal(page, stamp(n)) for n, page in enumerate(pages))

        for _ in range(3):
            asyncio.run(some())

    threads.start(use)
    threads.start(use)
    threads.join()
    worker = child(use_in_child, space)
    assert worker.result() == 40
    wait_until(lambda: len(pool.clients()) == 1, "the child is gone")


def use_in_child(space: bp.Space) -> int:
    async def some() -> int:
        return sum(int(page.size > 0) for page in await asyncio.gather(*(space.aget(n) for n in range(40))))

    return asyncio.run(some())
