"""Reads for which no frame is available.

read_many makes copies anyway, and prefetch need not do anything; both raised PoolExhausted in a pool whose frames were all
pinned, after half a second for each call.
"""

import threading

import numpy as np
import pytest

import bufferpool as bp
from tests.conftest import PAGE, WAIT, fill, stamp, wait_until
from tests.support.memory_store import Memory


@pytest.fixture
def full(make_pool, data_file):
    """A space of 64 pages in a pool whose 16 frames are all pinned by its first pages."""
    space = make_pool(16 * PAGE).open_file(data_file(64), "r+")
    held = [space[n] for n in range(16)]
    yield space
    del held


def test_read_many_never_says_that_the_pool_is_exhausted(full):
    copies = full.read_many([3, 20, 21, 3, 63, 20])
    for copy, n in zip(copies, [3, 20, 21, 3, 63, 20], strict=True):
        assert np.array_equal(copy, stamp(n))
    assert full.resident(range(64)).sum() == 16
    out = np.empty((2, PAGE), np.uint8)
    assert full.read_many(range(30, 32), out) is out
    assert np.array_equal(out[1], stamp(31))
    with pytest.raises(bp.errors.PoolExhausted):
        full[20]
    with pytest.raises(bp.errors.PoolExhausted):
        full.pin_many([1, 20])


def test_many_pages_cost_one_wait(full):
    """After the first page without a frame no other one waits for a frame."""
    before = full.pool.stats()
    full.read_many(range(16, 64))
    after = full.pool.stats()
    assert after.wait_frame - before.wait_frame == 1
    assert after.loads == before.loads


def test_prefetch_loads_nothing_without_frames(full):
    assert full.prefetch(range(20, 40)) == 0
    assert full.resident(range(20, 40)).sum() == 0


def test_read_returns_a_copy_and_bypasses_the_pool_if_asked(full):
    copy = full.read(5)
    copy[:] = 0
    assert np.array_equal(full[5], stamp(5))
    with pytest.raises(bp.errors.PoolExhausted):
        full.read(40)
    past = full.read(40, bypass=True)
    assert np.array_equal(past, stamp(40))
    past[:] = 1  # it is private
    with pytest.raises(bp.errors.PageOutOfRange):
        full.read(64, bypass=True)


def test_a_loader_and_a_store_are_asked_past_the_pool(make_pool):
    pool = make_pool(16 * PAGE)
    asked = []

    def load(page_no, out):
        asked.append(page_no)
        if page_no == 31:
            raise RuntimeError("no such thing")
        out[:] = page_no

    derived = pool.open_derived("derived", 32, load, dtype=np.uint16)
    stored = pool.open_store("stored", Memory(8), "r+")
    held = [derived[n] for n in range(16)]
    assert derived.read(20, bypass=True).tolist() == [20] * (PAGE // 2)
    assert derived.read_many([21, 2]).mean(axis=1).tolist() == [21, 2]
    assert set(asked[16:]) == {20, 21}
    with pytest.raises(bp.errors.LoaderFailed, match="no such thing"):
        derived.read(31, bypass=True)
    assert stored.read_many([0, 7]).shape == (2, PAGE)
    del held


def test_pages_that_no_store_has_are_zeros(make_pool, data_file):
    pool = make_pool(16 * PAGE)
    space = pool.open_file(data_file(4), "r+")
    scratch = pool.open_scratch("work", 8)
    with space.append() as page:
        page[:] = 5
    held = [space.append() for _ in range(3)]  # numbers that nobody has published
    with space.append() as page:
        page[:] = 6
    pinned = [space[n] for n in (0, 1, 2, 3, 4, 8)]
    scratch_pages = [scratch[n] for n in range(8)]
    assert not space.read_many([5, 6, 7]).any()
    assert space.read_many([8, 4])[:, 0].tolist() == [6, 5]
    del held, pinned, scratch_pages


def test_a_discarded_page_is_not_read_as_zeros_past_the_pool(make_pool):
    """After the first page without a frame, read_many read the others past the pool, and took a discarded one for one never written."""
    pool = make_pool(16 * PAGE)
    work = pool.open_scratch("work", 8, discardable=True)
    fill(work, [0])
    derived = pool.open_derived("derived", 64, lambda n, out: out.fill(n))
    for n in range(64):
        assert derived[n][0] == n
    held = [derived[n] for n in range(16)]
    assert not work.read_many([1, 2]).any()  # were never written
    for ids in ([0], [1, 0], [1, 2, 0]):
        with pytest.raises(bp.errors.PageDiscarded):
            work.read_many(ids)
    with pytest.raises(bp.errors.PageDiscarded):
        work.read(0, bypass=True)
    del held


class SlowMemory(Memory):
    """A store that reads a page in two halves, and waits between those of its second read."""

    def __init__(self):
        super().__init__(1)
        self.half_read, self.goes_on = threading.Event(), threading.Event()

    def read_into(self, offset, buffer):
        half = PAGE // 2
        buffer[:half] = np.frombuffer(self.pages[0], np.uint8)[:half]
        if len(self.calls) == 1:
            self.half_read.set()
            assert self.goes_on.wait(WAIT)
        buffer[half:] = np.frombuffer(self.pages[0], np.uint8)[half:]
        self.calls.append("read")
        return buffer.nbytes


def test_a_page_that_is_read_past_the_pool_is_whole(make_pool):
    """A read past the pool claimed no page, so another client loaded, wrote and flushed the page meanwhile, and the copy was half old."""
    pool, store, copies = make_pool(16 * PAGE), SlowMemory(), []
    stored = pool.open_store("stored", store, "r+")
    derived = pool.open_derived("derived", 16, lambda n, out: out.fill(n))
    held = [derived[n] for n in range(16)]
    reader = threading.Thread(target=lambda: copies.append(stored.read(0, bypass=True)))
    reader.start()
    assert store.half_read.wait(WAIT)
    del held

    def write():
        fill(stored, [0], version=1)
        pool.flush()

    writer = threading.Thread(target=write)
    writer.start()

    def waits_or_is_done():
        stats = pool.stats()
        return stats.wait_load + stats.wait_writer > 0 or not writer.is_alive()

    wait_until(waits_or_is_done, "the writer to wait for the reader, or to overtake it")
    store.goes_on.set()
    reader.join(WAIT)
    writer.join(WAIT)
    assert np.array_equal(copies[0], stamp(0))
    assert store.pages[0] == stamp(0, version=1).tobytes()
    assert pool.check() == []


def test_a_read_past_the_pool_meets_a_page_that_came_meanwhile(make_pool):
    """While the store was asked past the pool for one page, its code loads and writes the next one: what is read is what was written."""
    pool, store, held = make_pool(16 * PAGE), Memory(4), []
    stored = pool.open_store("stored", store, "r+")
    derived = pool.open_derived("derived", 16, lambda n, out: out.fill(n))
    read_into = store.read_into

    def read_and_write(offset, buffer):
        if offset == 0 and len(store.calls) == 1:  # the first page, past the pool
            held.clear()
            fill(stored, [1], version=1)
            held.extend(derived[n] for n in range(15))
        return read_into(offset, buffer)

    store.read_into = read_and_write
    held.extend(derived[n] for n in range(16))
    copies = stored.read_many([0, 1, 2])
    assert np.array_equal(copies[1], stamp(1, version=1))
    assert np.array_equal(copies[2], stamp(2))
    held.clear()
