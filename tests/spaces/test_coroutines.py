"""Loaders that are coroutine functions.

A loader that awaited something had to be wrapped in a function that blocks a thread; so as many pages could be loaded at
the same time as the executor had threads, and ten thousand coroutines that waited for ten thousand pages took hundreds of rounds.
"""

import asyncio
import threading

import numpy as np
import pytest

import bufferpool as bp
from bufferpool.errors import LoaderFailed, LoaderReturned, WaitTimeout, WouldDeadlock
from tests.conftest import PAGE, WAIT


def doubled(pool: bp.Pool, calls: list[int], pages: int = 64) -> bp.Space:
    async def load(page_no, out):
        calls.append(page_no)
        await asyncio.sleep(0)
        out[:] = 2 * page_no

    return pool.open_derived("doubled", pages, load, dtype=np.uint32)


def test_ten_thousand_pages_are_loaded_at_the_same_time_without_threads(make_pool):
    """All loaders have begun before one of them ends, in a pool that has frames for few of the pages."""
    pool, many, before = make_pool(64 * PAGE), 10_000, threading.active_count()
    begun = 0
    all_of_them: asyncio.Event

    async def load(page_no, out):
        nonlocal begun
        begun += 1
        if begun == many:
            all_of_them.set()
        await all_of_them.wait()
        out[:] = page_no

    space = pool.open_derived("many", many, load, dtype=np.uint32)

    async def value(n: int) -> int:
        page = await space.aget(n)
        assert (page == n).all()
        return int(page[0])

    async def total() -> int:
        nonlocal all_of_them
        all_of_them = asyncio.Event()
        values = await asyncio.wait_for(asyncio.gather(*map(value, range(many))), WAIT)
        assert threading.active_count() == before
        return sum(values)

    assert asyncio.run(total()) == sum(range(many))
    assert begun == many
    assert pool.stats().loads == many
    assert pool.check() == []


def test_a_loader_runs_once_a_page_however_many_coroutines_ask(pool):
    calls: list[int] = []
    space = doubled(pool, calls)

    async def ask() -> None:
        pages = await asyncio.gather(*(space.aget(i % 8) for i in range(400)))
        assert [int(page[0]) for page in pages] == [2 * (i % 8) for i in range(400)]

    asyncio.run(ask())
    asyncio.run(ask())  # another loop
    assert sorted(calls) == list(range(8))
    assert pool.check() == []


def test_calls_that_do_not_await_run_the_loader_too(pool):
    """Several absent pages of one call wait together; a thread that runs an event loop cannot wait for another one."""
    at_once, most = 0, 0

    async def load(page_no, out):
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        for _ in range(3):
            await asyncio.sleep(0)
        at_once -= 1
        out[:] = page_no

    space = pool.open_derived("plain", 64, load)
    assert int(space[3][0]) == 3
    assert space.read_many(range(10, 20))[:, 0].tolist() == list(range(10, 20))
    assert most > 1
    assert [int(page[0]) for page in space.scan(0, 5)] == list(range(5))

    async def wrong() -> None:
        assert int(space[3][0]) == 3  # a hit waits for nothing
        for use in (lambda: space[40], lambda: space.read_many([41, 42])):
            with pytest.raises(WouldDeadlock, match="aget"):
                use()

    asyncio.run(wrong())
    assert int(space[40][0]) == 40
    assert pool.check() == []


def test_what_is_wrong_with_a_loader_is_raised_and_the_next_one_may_succeed(pool):
    fails = {3: RuntimeError("no such tile"), 4: None}

    async def load(page_no, out):
        await asyncio.sleep(0)
        out[:] = page_no
        if page_no in fails:
            if error := fails[page_no]:
                raise error
            return page_no
        return None

    space = pool.open_derived("tiles", 8, load)

    async def ask() -> list[object]:
        return await asyncio.gather(*(space.aget(n) for n in (2, 3, 3, 4)), return_exceptions=True)

    two, three, again, four = asyncio.run(ask())
    assert isinstance(two, np.ndarray)
    assert isinstance(three, LoaderFailed)
    assert isinstance(again, LoaderFailed)
    assert "no such tile" in str(three)
    assert isinstance(four, LoaderReturned)
    with pytest.raises(LoaderFailed, match="no such tile"):
        space[3]
    fails.clear()
    assert int(asyncio.run(space.aget(3))[0]) == 3
    for wrong in ({"load_many": load}, {"load_many": lambda _numbers, _outs: None}):
        with pytest.raises(TypeError, match="coroutine"):
            pool.open_derived("other", 8, load, **wrong)
    assert pool.check() == []


def test_a_loader_may_await_other_pages_and_a_cycle_ends(pool):
    """Pages that wait for each other would wait for ever, and nothing but a timeout would tell."""
    needs = {0: 1, 1: 2, 5: 6, 6: 7, 7: 5, 8: 8}

    async def load(page_no, out):
        await asyncio.sleep(0)
        out[:] = page_no + (int((await space.aget(needs[page_no]))[0]) if page_no in needs else 0)

    space = pool.open_derived("tree", 16, load)

    async def ask(*numbers: int) -> list[object]:
        return await asyncio.wait_for(asyncio.gather(*map(space.aget, numbers), return_exceptions=True), WAIT)

    (three,) = asyncio.run(ask(0))
    assert isinstance(three, np.ndarray)
    assert three[0] == 3
    for numbers in ((5,), (5, 6, 7), (8,)):
        answers = asyncio.run(ask(*numbers))
        assert all(isinstance(answer, LoaderFailed) for answer in answers), answers
    assert pool.check() == []


def test_a_cancelled_coroutine_does_not_end_the_load(pool):
    calls: list[int] = []
    space = doubled(pool, calls)

    async def ask() -> None:
        task = asyncio.ensure_future(space.aget(1))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        while space.try_get(1) is None:
            await asyncio.sleep(0)

    asyncio.run(asyncio.wait_for(ask(), WAIT))
    assert calls == [1]


def test_many_pages_are_awaited_together(make_pool):
    pool, calls = make_pool(32 * PAGE), list[int]()
    space = doubled(pool, calls, 300)
    ids = [7, 5, 7, *range(100, 300)]
    out = np.zeros((len(ids), space.shape[1]), space.dtype)
    for given in (None, out):
        pages = asyncio.run(space.aread_many(ids, given))
        assert pages[:, 3].tolist() == [2 * n for n in ids]
    assert pages is out
    with pytest.raises(ValueError, match="shape"):
        asyncio.run(space.aread_many(ids, out[1:]))

    async def never(_page_no, _out):
        await asyncio.sleep(WAIT)

    with pytest.raises(WaitTimeout):
        asyncio.run(pool.open_derived("never", 4, never).aread_many([1, 2], timeout=0.05))
    assert pool.check() == []
    assert pool.frames()["pins"].sum() == 0


def _ask(pool: bp.Pool) -> list[int]:
    calls: list[int] = []
    space = doubled(pool, calls)
    return [int(page[0]) for page in asyncio.run(_pages(space))]


async def _pages(space: bp.Space) -> list[np.ndarray]:
    return await asyncio.gather(*map(space.aget, range(64)))


def test_two_processes_await_the_same_pages(make_pool, child):
    pool = make_pool(128 * PAGE)
    others = [child(_ask, pool) for _ in range(2)]
    assert _ask(pool) == [2 * n for n in range(64)]
    assert [other.result() for other in others] == [[2 * n for n in range(64)]] * 2
    pool.reap()
    assert pool.check() == []
