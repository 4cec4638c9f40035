"""Many threads of one process on the same objects, with the GIL and without it (`make free-threaded`).

With the GIL a thread is stopped between two bytecodes, and where the core waits; without it the threads are in the core
at the same time. Then a list of pins, a reference count that decides whether a page may be released, or a segment that
is unmapped while a reader looks at it is a crash, a lost pin, or a page that shows another one's bytes.
"""

import contextlib
import pickle
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import bufferpool as bp
from bufferpool.observer import Observer
from tests.conftest import WAIT, fill, new_name, pins, stamp, wait_until

THREADS = 6
PAGES = 100


@pytest.fixture(autouse=True)
def _switch_often() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def together(threads: Any, function: Callable[[int], None], n: int = THREADS) -> None:
    """Runs function(0) … function(n - 1) in threads that begin at the same time, and waits for them."""
    barrier = threading.Barrier(n)

    def run(me: int) -> None:
        barrier.wait(WAIT)
        function(me)

    for me in range(n):
        threads.start(run, me)
    threads.join()
    threads.threads.clear()


def test_the_gil_stays_off_where_there_is_none():
    """CPython turns the GIL on again for an extension that does not say that it needs none."""
    if "free-threading" in sys.version:
        assert not sys._is_gil_enabled()


def test_one_pin_is_released_once_by_many_threads(pool, table, threads):
    """Two releases of a Pin would release two pins: the second one is another reader's, whose page could then be evicted."""
    kept = [table[n] for n in range(10)]
    for round_ in range(60):
        pin = table.pin(round_ % 10)

        def use(_: int, pin: Any = pin) -> None:
            for _step in range(5):
                try:
                    assert pin.lsn == 0
                    assert pin.page is not None
                    pin.release()
                except (BufferError, ValueError):  # another thread has the array; or the pin has been released
                    pass

        together(threads, use, 3)
        pin.release()
        assert pins(pool) == len(kept)
    for n, page in enumerate(kept):
        assert np.array_equal(page, stamp(n))
    kept.clear()
    del page
    assert pins(pool) == 0
    assert pool.check() == []


def test_pins_that_are_superseded_are_released_once(pool, table, threads):
    """Releasing the last pin of an old version lets other threads run, between the end of the pin and that of its object."""
    for round_ in range(60):
        pin, many = table.pin(1), table.pin_many([1, 2, 1])
        with table.write(1) as page:
            page[:] = stamp(1, version=round_)
        with table.write(2) as page:
            page[:] = stamp(2, version=round_)

        def release(me: int, pin: Any = pin, many: Any = many) -> None:
            (many if me % 2 else pin).release()

        together(threads, release, 4)
        assert pins(pool) == 0
    assert np.array_equal(table[1], stamp(1, version=59))
    assert pool.check() == []


def test_one_write_is_opened_and_published_once(pool, work, threads):
    """A Write that two threads open at once would be in the list of open writes twice, and the page be owned for ever."""
    opened = []

    def use(write: Any) -> None:
        try:
            with write as page:
                page[:8] += 1
                opened.append(write)
        except ValueError:  # another thread is opening it, or it has been used
            pass

    for _ in range(60):
        write = work.write(3, timeout=WAIT)
        together(threads, lambda _: use(write), 3)  # noqa: B023
    assert len(opened) == 60
    assert work[3][0] == 60
    assert pool.stats().publishes == 60
    assert pool.check() == []


def test_a_write_waits_while_another_thread_uses_it(pool, work, threads):
    """A thread waits in __enter__ for the page's writer; meanwhile another thread enters the same Write."""
    with work.write(3) as page:
        page[:] = 1
        write = work.write(3, timeout=WAIT)
        results: list[str] = []
        waiting = threading.Event()

        def enter() -> None:
            waiting.set()
            with write as inner:
                inner[:] = 2
            results.append("published")

        threads.start(enter)
        waiting.wait(WAIT)
        wait_until(lambda: pool.stats().wait_writer > 0, "the thread waits")
        with pytest.raises(ValueError, match="another thread"):
            write.__enter__()
    threads.join()
    assert results == ["published"]
    assert work[3][0] == 2
    assert pool.check() == []


def test_one_space_in_many_threads(pool, table, threads):
    """One handle, all that can be done with it at once: no wrong byte, no lost pin, no lost count."""
    before = pool.stats()
    rounds = 150

    def use(me: int) -> None:
        random = np.random.default_rng(me)
        for step in range(rounds):
            n = int(random.integers(0, PAGES))
            if step % 4 == 0:
                assert np.array_equal(table[n], stamp(n))
            elif step % 4 == 1:
                with table.pin(n) as page:
                    assert np.array_equal(page, stamp(n))
            elif step % 4 == 2:
                with table.pin_many([n, (n + 1) % PAGES]) as (first, second):
                    assert first[8] == stamp(n)[8]
                    assert second[8] == stamp((n + 1) % PAGES)[8]
                del first, second
            else:
                assert np.array_equal(table.read_many([n])[0], stamp(n))

    together(threads, use)
    after = pool.stats()
    uses = after.hits + after.misses - before.hits - before.misses
    assert uses == THREADS * (rounds + sum(step % 4 == 2 for step in range(rounds)))
    assert pins(pool) == 0
    assert pool.check() == []


def test_arrays_are_let_go_by_other_threads(pool, table, threads):
    """An array is made in one thread and freed in another: the pins are in one list that all threads change."""
    shelves: list[list[Any]] = [[] for _ in range(THREADS)]

    def use(me: int) -> None:
        for step in range(100):
            n = (step * THREADS + me) % 40  # of 64 that may be pinned
            shelves[(me + 1) % THREADS].append((n, table[n]))
            many = table.pin_many([n, (n + 7) % 40])
            shelves[(me + 2) % THREADS].append((n, many[0][:16]))
            del many
            shelf = shelves[me]
            while len(shelf) > 2:
                number, page = shelf.pop()
                assert np.array_equal(page, stamp(number)[: len(page)])
                del page

    together(threads, use)
    for shelf in shelves:
        shelf.clear()
    assert pins(pool) == 0
    assert pool.check() == []


def test_pinned_pages_are_released_once_by_many_threads(pool, table, threads):
    for round_ in range(40):
        many = table.pin_many(range(round_, round_ + 20))

        def use(me: int, many: Any = many) -> None:
            for i in range(20):
                try:
                    assert many[(me + i) % 20] is not None
                    if i % 5 == 4:
                        many.release()
                except (BufferError, ValueError):
                    pass

        together(threads, use, 3)
        many.release()
        del many, use
        assert pins(pool) == 0
    assert pool.check() == []


def test_a_copy_that_was_unpickled_is_bound_by_many_threads(pool, table, threads):
    """The threads find the copy unbound at the same time: each binds it, and the first binding holds."""
    for _ in range(20):
        copy = pickle.loads(pickle.dumps(table))

        def use(me: int, copy: Any = copy) -> None:
            assert np.array_equal(copy[me], stamp(me))

        together(threads, use)
        copy.pool.close()
        del copy, use
    assert pins(pool) == 0
    assert pool.check() == []


def test_spaces_come_and_go_in_threads(pool, data_file, threads):
    """Each thread makes spaces, reads those of others, and removes its own."""
    path = data_file(10)
    names: dict[int, str] = {}

    def use(me: int) -> None:
        for step in range(15):
            name = f"work-{me}-{step}"
            work = pool.open_scratch(name, 4, lifetime="pool")
            names[me] = name
            fill(work, range(4), me)
            for n in range(4):
                assert np.array_equal(work[n], stamp(n, version=me))
            table = pool.open_file(path, "r")
            assert np.array_equal(table[step % 10], stamp(step % 10))
            other = (me + 1) % THREADS
            with contextlib.suppress(bp.SpaceNotFound, bp.SpaceRemoved, KeyError):
                page = pool.space(names[other])[1]
                assert not page.any() or np.array_equal(page, stamp(1, version=other))  # not filled yet, or whole
                del page
            work.remove()

    together(threads, use)
    assert [space.name for space in pool.stats().spaces if space.kind == "scratch"] == []
    assert pins(pool) == 0
    assert pool.check() == []


def test_pools_are_attached_and_closed_in_threads(pool, data_file, threads):
    """Attaching and detaching change a list of this process's attachments, which a fork walks through."""
    path = data_file(PAGES)

    def use(me: int) -> None:
        for step in range(20):
            with bp.Pool.attach(pool.name) as mine:
                again, n = mine.open_file(path, "r"), (me * 20 + step) % PAGES
                assert np.array_equal(again[n], stamp(n))
                del again

    together(threads, use)
    assert pool.stats().clients == 1
    assert pool.check() == []


@pytest.mark.parametrize("rounds", [5, pytest.param(50, marks=pytest.mark.soak)])
def test_close_while_others_use_the_pool(pool, data_file, threads, rounds):
    """close() unmaps the segment: not under a thread that looks at it. It waits for what is short, or refuses.

    The other threads end after some thousand steps: while five of them load pages, a close may be refused for minutes.
    """
    path = data_file(PAGES)
    for _ in range(rounds):
        mine = bp.Pool.attach(pool.name)
        again = mine.open_file(path, "r")

        def close(mine: bp.Pool = mine) -> None:
            deadline = time.monotonic() + WAIT
            while time.monotonic() < deadline:
                try:
                    with mine:  # its end closes the pool although arrays look at pages
                        return
                except BufferError:  # another thread is loading a page
                    time.sleep(0.0001)

        def use(me: int, mine: bp.Pool = mine, again: bp.Space = again, close: Callable[[], None] = close) -> None:
            with contextlib.suppress(bp.PoolClosed):
                if me == 0:
                    close()
                for step in range(5_000):
                    n = (me * 31 + step) % PAGES
                    if me == 1:
                        mine.stats()
                    elif step % 2:
                        assert again[n][0] == stamp(n)[0]
                    else:
                        with again.pin(n) as page:
                            assert page[8] == stamp(n)[8]
                        del page

        together(threads, use)
        with pytest.raises(bp.PoolClosed):
            again[0]
        del again, mine, use, close
    assert pool.stats().clients == 1
    assert pins(pool) == 0
    assert pool.check() == []


def test_the_last_of_many_arrays_ends_a_pool_that_was_closed_late(pool, data_file, threads):
    """The block of a pool ends while threads hold arrays; the last one that is freed detaches, and only that one."""
    path = data_file(PAGES)
    for _ in range(25):
        with bp.Pool.attach(pool.name) as mine:
            again = mine.open_file(path, "r")
            shelves = [[again[n], again[n + 1]] for n in range(0, 2 * THREADS, 2)]

        def let_go(me: int, shelves: list[list[Any]] = shelves) -> None:
            assert np.array_equal(shelves[me][0], stamp(2 * me))
            shelves[me].clear()

        together(threads, let_go)
        assert pool.stats().clients == 1
        with pytest.raises(bp.PoolClosed):
            again[0]
        del again, mine, let_go
    assert pins(pool) == 0
    assert pool.check() == []


def test_an_observer_in_many_threads(pool, table, threads):
    """Each call of an observer learns from the kernel which memory there is; the calls of all threads share what they learn."""
    fill(table, range(20))
    with Observer(pool.name) as observer:

        def use(_: int) -> None:
            for _step in range(20):
                stats = observer.stats()
                assert stats.frames.dirty == 20

        together(threads, use)
    assert pool.check() == []


def test_new_pools_in_threads(threads):
    """Each thread creates a pool of its own, uses it, and removes it."""
    names = [new_name() for _ in range(THREADS)]

    def use(me: int) -> None:
        for _ in range(5):
            with bp.Pool.create(names[me], 64 * 4096, page_size=4096) as mine:
                work = mine.open_scratch("work", 8)
                fill(work, range(8), me)
                assert np.array_equal(work[7], stamp(7, version=me))
                assert mine.check() == []
                mine.unlink(discard=True)

    together(threads, use)
