"""Pages: read, of any dtype and size, read-only, read ahead, scanned, dropped."""

import copy
import os
import pickle
import signal

import numpy as np
import pytest

import bufferpool as bp
from bufferpool.errors import PageOutOfRange
from tests.conftest import PAGE, fill, pins, stamp
from tests.support.children import run_python

# ---- reading -------------------------------------------------------------------------


def test_pages_have_the_content_of_the_file(table):
    assert len(table) == 100
    for n in (0, 99, 7, 50, 7):
        assert table[n].shape == (PAGE,)
        assert table[n].dtype == np.uint8
        assert np.array_equal(table[n], stamp(n))


def test_a_file_larger_than_the_pool_reads_right_in_any_order(pool, table):
    for n in np.random.default_rng(1).integers(0, 100, 2000):
        assert np.array_equal(table[int(n)], stamp(int(n)))
    stats = pool.stats()
    assert stats.hits + stats.misses == 2000
    assert stats.misses >= 100
    assert stats.evictions_recycled > 0


def test_numpy_integers_are_page_numbers(table):
    for kind in (np.int8, np.uint16, np.int64, np.uint64):
        assert np.array_equal(table[kind(3)], stamp(3))


@pytest.mark.parametrize("dtype", ["<u8", "<f4", "u1", "S16", [("key", "<u4"), ("value", "<f4"), ("rest", "S8")]])
def test_a_dtype_makes_pages_arrays_of_it(pool, data_file, dtype):
    space = pool.open_file(data_file(4), "r+", dtype=dtype)
    dtype = np.dtype(dtype)
    assert space[2].dtype == dtype
    assert space[2].shape == (PAGE // dtype.itemsize,)
    assert space[2].tobytes() == stamp(2).tobytes()
    with space.pin(1) as page:
        assert page.tobytes() == stamp(1).tobytes()
        assert page.dtype == dtype
    with space.pin_many([3]) as pages:
        assert pages[0].dtype == dtype
        assert pages[0].tobytes() == stamp(3).tobytes()
    assert space.read_many([1, 2]).dtype == dtype
    with space.write(1) as page:
        assert page.dtype == dtype
        page[:] = np.zeros(1, dtype)
    assert not space[1].tobytes().strip(b"\0")


def test_two_handles_of_one_space_may_have_different_dtypes(pool, data_file):
    path = data_file(4)
    assert np.array_equal(pool.open_file(path, dtype="<u8")[1].view(np.uint8), pool.open_file(path)[1])


def test_page_sizes_from_4_kib_to_1_mib(make_pool, data_file):
    for size in (4096, 8192, 65536, 1 << 20):
        pool = make_pool(8 * size, page_size=size, extent_size=max(size, 65536))
        space = pool.open_file(data_file(12, size), "r+")
        for n in range(12):
            assert np.array_equal(space[n], stamp(n, size))
        with space.write(5) as page:
            page[:] = stamp(5, size, 1)
        assert np.array_equal(space[5], stamp(5, size, 1))


# ---- read-only -------------------------------------------------------------------------


def _arrays(space):
    yield "space[n]", space[1]
    yield "pin", space.pin(1).page
    yield "pin_many", space.pin_many([0, 1])[1]
    yield "scan", next(space.scan(1, 2))
    yield "slice", space[1][5:10]
    yield "view", space[1].view(np.uint16)


def test_read_views_are_not_writable(work):
    for what, array in _arrays(work):
        assert not array.flags.writeable, what
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1
        with pytest.raises(ValueError, match="WRITEABLE"):
            array.flags.writeable = True
        with pytest.raises(ValueError, match="WRITEABLE"):
            array.setflags(write=True)
        with pytest.raises(TypeError, match="read-only"):
            memoryview(array)[0] = 1
        with pytest.raises((ValueError, BufferError, TypeError)):
            np.frombuffer(array, np.uint8)[0] = 1
        base = array.base
        while isinstance(base, np.ndarray):
            with pytest.raises(ValueError, match=r"WRITEABLE|writeable"):
                base.flags.writeable = True
            base = base.base
        del base
    assert not work.pool.data.flags.writeable
    with pytest.raises(ValueError, match=r"WRITEABLE|writeable"):
        work.pool.data.flags.writeable = True


_POKE = """
import ctypes, os, bufferpool as bp, resource
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
pool = bp.Pool.create(f"bptest-{os.getppid()}-poke{os.getpid()}", 64 * 4096, page_size=4096)
pool.unlink()
space = pool.open_scratch("work", 4)
pin = space.pin(1)
pages = space.pin_many([1])
array = ARRAY
print("before", flush=True)
ctypes.memset(array.ctypes.data, 1, 1)
print("after", flush=True)
"""


@pytest.mark.parametrize("array", ["space[1]", "pin.page", "pages[0]", "next(space.scan(1))", "pool.data[1]"])
def test_writing_through_ctypes_kills_the_writer_not_the_page(array):
    done = run_python(_POKE.replace("ARRAY", array))
    assert done.stdout == "before\n", done.stderr
    assert done.returncode == -signal.SIGSEGV


# ---- the mapping ---------------------------------------------------------------------------


def _bases(array):
    """An array's bases, outermost last."""
    while (array := getattr(array, "base", None)) is not None:
        yield array


def test_pages_are_arrays_over_a_memmap_of_the_pool(pool, table):
    """pool.data had become a plain array, whose base said nothing about the file that it showed."""
    data = pool.data
    assert type(data) is np.memmap
    assert type(pool.data[3:9]) is np.memmap
    assert (data.shape, data.dtype, data.mode) == ((pool.max_frames, PAGE), np.uint8, "r")
    assert data.filename == pool.path
    assert data[1].filename == pool.path
    assert data.flush() is None
    page = table[9]
    with open(data.filename, "rb") as file:
        file.seek(data.offset + page.ctypes.data - data.ctypes.data)
        assert file.read(PAGE) == stamp(9).tobytes()
    del page
    pin, pages = table.pin(3), table.pin_many([4, 5, 6])
    arrays = [table[2], table[2][5:], pin.page, pages[0], pages[2]]
    for array in arrays:
        assert any(type(base) is np.memmap and base.filename == pool.path for base in _bases(array))
        assert np.may_share_memory(array, data)
    del pin, pages  # the arrays take the pins over
    for array in arrays:
        assert any(type(base) is np.memmap and base.filename == pool.path for base in _bases(array))
    assert [bytes(array[:1]) for array in arrays[2:]] == [bytes(stamp(n)[:1]) for n in (3, 4, 6)]
    assert pins(pool) == 6  # those of pin_many together
    del array, arrays
    assert pins(pool) == 0


def test_a_copy_of_a_row_is_no_mapping(pool, table):
    frame = (table[7].ctypes.data - pool.data.ctypes.data) // PAGE
    for row in (pool.data[frame].copy(), copy.copy(pool.data[frame]), pickle.loads(pickle.dumps(pool.data[frame]))):
        assert np.array_equal(row, stamp(7))
        assert getattr(row, "filename", None) is None
        assert not np.may_share_memory(row, pool.data)


def _mapped(pool):
    """How often this process maps the pool's file."""
    with open("/proc/self/maps") as file:
        return sum(f" {os.stat(pool.path).st_ino} " in line for line in file)


def test_the_mapping_lasts_as_long_as_its_arrays_and_no_longer(make_pool):
    """The arrays that a Pin keeps for its next use must not keep the memory of a pool that is closed and unlinked."""
    pool = make_pool(64 * PAGE, page_size=PAGE)
    work = pool.open_scratch("work", 8)
    fill(work, range(8))
    pin, pages = work.pin(1), work.pin_many([2, 3])
    assert np.array_equal(pin.page, stamp(1))
    assert np.array_equal(pages[0], stamp(2))
    data = pool.data
    with pytest.raises(BufferError):
        data._mmap.close()
    with work.pin(4) as page:
        assert np.array_equal(page, stamp(4))
    pin.release()
    pages.release()
    assert pool.check() == []
    assert _mapped(pool) == 2
    pool.close()
    assert _mapped(pool) == 1
    assert data[0, 0] == data[0, 0]
    del data
    assert _mapped(pool) == 0
    del pin, pages


# ---- prefetch, scan, drop ---------------------------------------------------------------------


def test_prefetch_loads_without_pinning(pool, table):
    assert table.prefetch([5, 6, 7, 6]) == 3
    assert pins(pool) == 0
    stats = pool.stats()
    assert (stats.loads, stats.hits, stats.misses) == (3, 0, 0)
    assert table.prefetch(range(5, 8)) == 0
    assert np.array_equal(table[6], stamp(6))
    stats = pool.stats()
    assert (stats.loads, stats.hits, stats.misses) == (3, 0, 1)  # the first use is what it was loaded for
    assert np.array_equal(table[6], stamp(6))
    assert pool.stats().hits == 1


def test_prefetch_of_a_page_that_does_not_exist_is_refused(table):
    with pytest.raises(PageOutOfRange):
        table.prefetch([1, 100])
    with pytest.raises(PageOutOfRange):
        table.prefetch([-1])


def test_scan_gives_every_page_in_order(pool, table):
    for n, page in enumerate(table.scan()):
        assert np.array_equal(page, stamp(n))
    assert n == 99
    assert [int(page[:8].view(np.uint64)[0] >> 20) for page in table.scan(95)] == [96, 97, 98, 99, 100]
    assert [int(page[:8].view(np.uint64)[0] >> 20) for page in table.scan(3, 6)] == [4, 5, 6]
    assert list(table.scan(50, 50)) == []
    assert len([1 for _ in table.scan(98, 1000)]) == 2
    assert len([1 for _ in table]) == 100
    del page
    assert pins(pool) == 0


@pytest.mark.parametrize("bad", [{"start": -1}, {"stop": -1}, {"ahead": 0}])
def test_a_scan_that_makes_no_sense_is_refused(table, bad):
    """A negative stop gave no page and no error, and other bad arguments were refused only when the first page was asked for."""
    with pytest.raises(ValueError, match="at least"):
        table.scan(**bad)


@pytest.mark.parametrize("bad", [{"start": "1"}, {"stop": 2.0}, {"start": True}, {"ahead": 1.5}])
def test_the_bounds_of_a_scan_are_integers(table, bad):
    with pytest.raises(TypeError, match=rf"{next(iter(bad))} must be an integer"):
        table.scan(**bad)


def test_a_scan_does_not_wash_the_cache_out(make_pool, data_file):
    pool = make_pool(256 * PAGE)
    table = pool.open_file(data_file(2560))
    hot = list(range(0, 1600, 10))  # 160 of 256 frames
    for _ in range(5):
        for n in hot:
            assert table[n][0] == stamp(n)[0]
    for n, page in enumerate(table.scan()):
        assert page[0] == stamp(n)[0]
    del page
    before = pool.stats()
    for n in hot:
        assert np.array_equal(table[n], stamp(n))
    after = pool.stats()
    assert after.misses - before.misses <= len(hot) // 20
    assert after.hits - before.hits >= len(hot) * 19 // 20


def test_point_reads_in_scan_order_do_not_wash_hot_pages_out(make_pool, data_file):
    """The policy resists scans by itself, without a hint."""
    pool = make_pool(256 * PAGE)
    table = pool.open_file(data_file(2560))
    hot = list(range(0, 1600, 10))
    for _ in range(5):
        for n in hot:
            assert table[n].size
    for n in range(2560):
        assert table[n].size
    before = pool.stats().misses
    for n in hot:
        assert table[n].size
    assert pool.stats().misses - before <= len(hot) // 4


def test_drop_forgets_without_writing_back(pool, table, tmp_path):
    with table.write(5) as page:
        page[:] = 1
    assert table.drop(5, 1) == PAGE
    assert np.array_equal(table[5], stamp(5))
    assert pool.stats().frames.dirty == 0
    assert pool.flush() == 0


def test_dropped_scratch_pages_read_as_zeros(work):
    for n in range(16):
        with work.write(n) as page:
            page[:] = 1
    assert work.drop(4, 8) == 8 * PAGE
    assert [int(work[n][0]) for n in range(16)] == [1] * 4 + [0] * 8 + [1] * 4
    work.drop()
    assert [int(work[n][0]) for n in range(16)] == [0] * 16


def test_a_dropped_page_stays_whole_for_those_who_have_pinned_it(pool, work):
    with work.write(3) as page:
        page[:] = 1
    kept = work[3]
    assert work.drop(3, 1) == 0
    assert not work[3].any()
    with work.write(3) as page:
        page[:] = 2
    assert (kept == 1).all()
    assert pool.check() == []
    del kept
    assert np.count_nonzero(pool.frames()["state"] == bp.FrameState.RETIRED) == 0


def test_dropping_pages_that_are_not_there_is_nothing(pool, table):
    assert table.drop() == 0
    assert table.drop(10, 0) == 0
    before = pool.stats()
    assert table.drop(10, 5) == 0
    assert pool.stats() == before


@pytest.mark.parametrize("args", [(-1,), (101,), (0, 101), (99, 2), (5, -1), (2**70,)])
def test_dropping_pages_that_do_not_exist_is_refused(table, args):
    with pytest.raises(PageOutOfRange):
        table.drop(*args)
