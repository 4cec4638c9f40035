"""Pages that are written as a whole, without a read of what they replace.

`with space.write(n) as page: page[:] = new` read the old page from its file first, only to overwrite it, and could not replace a page that cannot
be read any more. Many appended pages took a block each.
"""

import errno
import threading

import numpy as np
import pytest

import bufferpool as bp
from bufferpool.errors import (
    PageCorrupt,
    PageDiscarded,
    PageOutOfRange,
    PoolExhausted,
    SpaceFull,
    SpaceReadOnly,
    SpaceRemoved,
    WaitTimeout,
    WouldDeadlock,
)
from bufferpool.stores.checksum import seal
from tests.conftest import PAGE, WAIT, pins, stamp
from tests.support.memory_store import Forgetful

PAGES = 64


@pytest.fixture
def space(pool, data_file):
    return pool.open_file(data_file(PAGES), "r+")


def rows(*page_nos: int, version: int = 1) -> np.ndarray:
    return np.array([stamp(n, version=version) for n in page_nos])


def stored(space: bp.Space, page_no: int) -> np.ndarray:
    return np.fromfile(space.path, np.uint8, PAGE, offset=page_no * PAGE)


def test_a_fresh_write_reads_nothing(pool, space):
    with space.write(3, fresh=True) as page:
        assert not page.any()
        assert space.try_get(3) is None  # others see the old version, or none, until the block ends
        page[:] = stamp(3, version=1)
    assert np.array_equal(space[3], stamp(3, version=1))
    assert (pool.stats().loads, space.stats().misses) == (0, 0)
    assert space.flush() == 1
    assert np.array_equal(stored(space, 3), stamp(3, version=1))
    assert pool.check() == []


def test_a_resident_page_is_replaced_as_well(pool, attach, space):
    other = attach(pool).open_file(space.path)
    old = other[3]
    with space.write(3, fresh=True) as page:
        assert not page.any()
        assert np.array_equal(other[3], stamp(3))
        page[:] = stamp(3, version=1)
    assert np.array_equal(other[3], stamp(3, version=1))
    assert np.array_equal(old, stamp(3))
    assert pool.check() == []


def test_a_block_that_raises_replaces_nothing(space):
    with pytest.raises(KeyError), space.write(3, fresh=True) as page:  # noqa: PT012
        page[:] = 9
        raise KeyError
    assert np.array_equal(space[3], stamp(3))
    with space.write(3, timeout=0):
        pass


def test_write_many_replaces_pages_in_order(pool, space):
    space[5]
    space.write_many([9, 5, 9, 60], np.concatenate([rows(9, 5), rows(9, 60, version=2)]))
    assert np.array_equal(space.read_many([5, 9, 60]), np.concatenate([rows(5), rows(9, 60, version=2)]))
    assert pool.stats().loads == 1
    assert space.flush() == 3
    assert np.array_equal(stored(space, 9), stamp(9, version=2))
    space.write_many([], np.empty((0, PAGE), np.uint8))
    assert pins(pool) == 0
    assert pool.check() == []


def test_write_many_takes_more_pages_than_the_pool_has(make_pool, data_file):
    pool = make_pool(16 * PAGE)
    space = pool.open_file(data_file(200), "r+")
    space.write_many(range(200), rows(*range(200)))
    assert np.array_equal(space.read_many(range(200)), rows(*range(200)))
    space.flush()
    assert all(np.array_equal(stored(space, n), stamp(n, version=1)) for n in (0, 99, 199))
    assert pool.check() == []


def test_append_many_numbers_follow_each_other(pool, attach, space):
    other = attach(pool).open_file(space.path, "r+")
    assert space.append_many(rows(64, 65, 66)) == range(64, 67)
    assert other.append_many(rows(67)) == range(67, 68)
    assert space.append_many(np.empty((0, PAGE), np.uint8)) == range(68, 68)
    assert len(other) == 68
    assert np.array_equal(space[64:68], rows(64, 65, 66, 67))
    assert space.flush() == 4
    assert np.array_equal(np.fromfile(space.path, np.uint8).reshape(68, PAGE)[64:], rows(64, 65, 66, 67))
    assert pool.stats().appends == 4
    assert pool.check() == []


def test_append_many_takes_numbers_for_all_or_none(pool, data_file):
    space = pool.open_file(data_file(4), "r+", max_pages=10)
    with pytest.raises(SpaceFull, match="7 more do not fit"):
        space.append_many(np.zeros((7, PAGE), np.uint8))
    assert space.append_many(np.zeros((6, PAGE), np.uint8)) == range(4, 10)
    assert pool.check() == []


class Full(Forgetful):
    """A store that takes nothing while it is full."""

    full = True

    def write_from(self, offset, buffer):
        if self.full:
            raise OSError(errno.ENOSPC, "full")
        return super().write_from(offset, buffer)


def test_appends_that_fail_give_their_numbers_back(make_pool):
    """The store takes nothing and the pool is full of dirty pages: published pages are kept, and the next append comes behind
    them."""
    pool, store = make_pool(16 * PAGE), Full(4)
    space = pool.open_store("full", store, mode="r+", max_pages=1000)
    with pytest.raises(PoolExhausted, match="disk is full"):
        space.append_many(rows(*range(4, 100)))
    end = len(space)
    assert 4 < end <= 20
    assert np.array_equal(space[4:end], rows(*range(4, end)))
    store.full = False
    assert space.append_many(rows(end, end + 1)) == range(end, end + 2)
    assert pool.check() == []


def test_a_page_that_cannot_be_read_is_replaced(pool, tmp_path):
    """A page with a wrong checksum raised in every write of it, so a program that has its content could not repair it."""
    pytest.importorskip("xxhash")
    page = stamp(0)
    seal(page, 0)
    page[100] ^= 1
    path = tmp_path / "sealed.db"
    path.write_bytes(page.tobytes())
    space = pool.open_file(path, "r+", checksum=True)
    with pytest.raises(PageCorrupt), space.write(0):
        pass
    with space.write(0, fresh=True) as fresh:
        fresh[:-8] = stamp(0, version=1)[:-8]
    space.flush()
    space.drop()
    assert np.array_equal(space[0][:-8], stamp(0, version=1)[:-8])
    assert pool.check() == []


def test_a_discarded_page_is_replaced(make_pool):
    pool = make_pool(16 * PAGE)
    space = pool.open_scratch("work", 64, discardable=True)
    space.write_many(range(64), rows(*range(64)))
    gone = np.flatnonzero(~space.resident(range(64)))
    assert gone.size
    with pytest.raises(PageDiscarded), space.write(int(gone[0])):
        pass
    space.write_many(gone[:1], rows(int(gone[0]), version=2))
    assert np.array_equal(space[int(gone[0])], stamp(int(gone[0]), version=2))
    assert pool.check() == []


def lsn_of(space: bp.Space, page_no: int) -> int:
    frames = space.pool.frames()
    (lsn,) = frames["lsn"][(frames["space"] == space.index) & (frames["page_no"] == page_no)]
    return int(lsn)


def test_a_version_carries_the_lsn_that_is_given_or_the_old_one(space):
    with space.write(3, lsn=7) as page:
        page[:] = 1
    with space.write(3, fresh=True):
        pass
    assert lsn_of(space, 3) == 7
    with space.write(3, fresh=True, lsn=9):
        pass
    assert lsn_of(space, 3) == 9
    space.write_many([3, 4], rows(3, 4))
    assert (lsn_of(space, 3), lsn_of(space, 4)) == (9, 0)
    space.write_many([3, 4], rows(3, 4), lsn=11)
    assert (lsn_of(space, 3), lsn_of(space, 4)) == (11, 11)
    assert lsn_of(space, space.append_many(rows(64), lsn=12)[0]) == 12
    for wrong, error in ((-1, ValueError), ("9", TypeError)):
        with pytest.raises(error, match="LSN"):
            space.write_many([3], rows(3), lsn=wrong)
        with pytest.raises(error, match="LSN"):
            space.append_many(rows(3), lsn=wrong)
    assert len(space) == 65


def test_a_fresh_write_waits_for_another_writer_at_its_end(space, threads):
    writing, go = threading.Event(), threading.Event()

    def write():
        with space.write(3) as page:
            page[:] = 9
            writing.set()
            assert go.wait(WAIT)

    threads.start(write)
    assert writing.wait(WAIT)
    with pytest.raises(WaitTimeout), space.write(3, 0.05, fresh=True) as page:
        page[:] = 8
    with pytest.raises(WaitTimeout):
        space.write_many([2, 3], rows(2, 3), timeout=0.05)
    assert np.array_equal(space.read_many([2, 3]), np.array([stamp(2, version=1), stamp(3)]))
    go.set()
    threads.join()
    space.write_many([3], rows(3))
    assert np.array_equal(space[3], stamp(3, version=1))
    assert space.pool.check() == []


def test_a_thread_that_would_wait_for_itself_gets_an_error(space):
    with space.write(3) as page:
        with pytest.raises(WouldDeadlock), space.write(3, fresh=True):
            pass
        with pytest.raises(WouldDeadlock):
            space.write_many([3], rows(3))
        page[:] = stamp(3, version=2)
    assert np.array_equal(space[3], stamp(3, version=2))
    with space.write(3, fresh=True) as outer:
        outer[:] = 2
        with space.write(3, fresh=True) as inner:
            inner[:] = 1
    assert (space[3] == 2).all()  # of two blind writes the one that ends last


def test_what_is_no_page_is_refused_before_anything_is_written(pool, space, data_file):
    wrong = [
        np.zeros((2, PAGE - 1), np.uint8),
        np.zeros((1, PAGE), np.uint8),
        np.zeros(PAGE, np.uint8),
        [[1, 2], [3, 4]],
    ]
    for pages in wrong:
        with pytest.raises(ValueError, match="pages"):
            space.write_many([3, 4], pages)
    for pages in (wrong[0], wrong[2]):
        with pytest.raises(ValueError, match="shape"):
            space.append_many(pages)
    for pages in (np.zeros((2, PAGE), np.float32), [["a"] * PAGE] * 2):
        with pytest.raises((TypeError, ValueError)):
            space.write_many([3, 4], pages)
    for ids in ([3, PAGES], [3, -1]):
        with pytest.raises(PageOutOfRange):
            space.write_many(ids, rows(3, 4))
    only = pool.open_file(data_file(4, name="only"))
    for use in (
        lambda: only.write(0, fresh=True),
        lambda: only.write_many([0], rows(0)),
        lambda: only.append_many(rows(0)),
    ):
        with pytest.raises(SpaceReadOnly, match=r"r\+"):
            use()
    assert (pool.stats().publishes, pool.stats().appends, space.stats().dirty) == (0, 0, 0)


def test_a_removed_space_takes_no_pages(pool, attach, space):
    write = space.write(3, fresh=True)
    with pytest.raises(SpaceRemoved), write as page:  # noqa: PT012
        page[:] = 1
        attach(pool).open_file(space.path).remove()
    for use in (lambda: space.write_many([3], rows(3)), lambda: space.append_many(rows(3))):
        with pytest.raises(SpaceRemoved):
            use()
    assert pool.check() == []


def replace_all(name: str, path: str, barrier: object, version: int) -> None:
    with bp.Pool.attach(name) as pool:
        space = pool.open_file(path, "r+")
        barrier.wait(WAIT)  # type: ignore[attr-defined]
        for _ in range(8):
            space.write_many(range(PAGES), np.full((PAGES, PAGE), version, np.uint8))
            seen = space.read_many(range(PAGES))
            assert (seen == seen[:, :1]).all()
            assert set(seen[:, 0].tolist()) <= {1, 2}


def test_two_processes_replace_the_same_pages(make_pool, data_file, child, spawn):
    """In a pool smaller than the file, where pages are absent and resident in turn, no reader sees a mixed page."""
    pool = make_pool(32 * PAGE)
    space = pool.open_file(data_file(PAGES), "r+")
    barrier = spawn.Barrier(2)
    children = [child(replace_all, pool.name, space.path, barrier, version) for version in (1, 2)]
    for each in children:
        each.result()
    space.flush()
    assert set(np.fromfile(space.path, np.uint8).tolist()) <= {1, 2}
    assert pool.check() == []
