"""Pages: read, pinned, written, appended, prefetched, scanned, dropped; and never half-written."""

import gc
import os
import signal
import threading
import time
import weakref

import numpy as np
import pytest

import bufferpool as bp
from bufferpool.errors import PageOutOfRange, SpaceFull, SpaceReadOnly, WaitTimeout, WouldDeadlock
from tests.conftest import PAGE, WAIT, Threads, pins, run_python, stamp, wait_until


@pytest.fixture
def table(pool, data_file):
    """A file of 100 stamped pages, in a pool of 64."""
    return pool.open_file(data_file(100), "r+")


@pytest.fixture
def work(pool):
    """16 pages of scratch."""
    return pool.scratch("work", 16)


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
space = pool.scratch("work", 4)
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


# ---- views own their pins ------------------------------------------------------------------


def _views(page):
    yield "array", page
    yield "slice", page[16:]
    yield "slice of a slice", page[16:][16:]
    yield "view", page.view(np.uint64)
    yield "slice of a view", page.view(np.uint64)[3:9]
    yield "reshaped", page.reshape(64, 64)[5]
    yield "memoryview", memoryview(page)
    yield "slice of a memoryview", memoryview(page)[10:20]
    yield "frombuffer", np.frombuffer(page, np.uint32)
    yield "array of a memoryview", np.asarray(memoryview(page))
    yield "iterator", iter(page)


@pytest.mark.parametrize("how", ["space[n]", "pin", "pin_many", "scan"])
def test_whatever_looks_at_a_page_keeps_it_pinned(pool, table, how):
    names = [what for what, _ in _views(table[0])]
    assert pins(pool) == 0
    for i, what in enumerate(names):
        if how == "space[n]":
            page = table[3]
        elif how == "pin":
            page = table.pin(3).page
        elif how == "pin_many":
            page = table.pin_many([3])[0]
        else:
            page = next(table.scan(3, 4))
        views = list(_views(page))
        view = views[i][1]
        del page, views
        assert pins(pool) == 1, what
        frames = pool.frames()
        (pinned,) = frames[frames["pins"] > 0]
        assert (pinned["page_no"], pinned["pinners"]) == (3, 1)
        assert pool.clients()[0].pinned_frames == 1
        before = memoryview(view).tobytes() if what != "iterator" else None
        for n in range(100):  # more pages than the pool has
            assert table[n][0] == stamp(n)[0]
        if before is not None:
            assert memoryview(view).tobytes() == before
        else:
            assert next(view) == stamp(3)[0]
        del view
        assert pins(pool) == 0, what


def test_every_array_of_a_page_has_a_pin_of_its_own(pool, table):
    pages = [table[3] for _ in range(5)]
    assert pins(pool) == 5
    assert pool.clients()[0].pinned_frames == 1
    del pages[2:]
    assert pins(pool) == 2


def test_a_cycle_of_garbage_gives_its_pin_back(pool, table):
    cycle = [table[3]]
    cycle.append(cycle)
    gone = weakref.ref(cycle[0])
    del cycle
    gc.collect()
    assert gone() is None
    assert pins(pool) == 0


def test_a_page_may_be_pinned_very_often(pool, table):
    pages = [table.pin(3) for _ in range(60_000)]
    assert pins(pool) == 60_000
    with pytest.raises(OverflowError, match="pinned"):
        pages.extend(table.pin(3) for _ in range(10_000))
    assert pins(pool) == len(pages) <= 65_535
    assert np.array_equal(pages[-1].page, stamp(3))
    del pages
    assert pins(pool) == 0


# ---- pin ---------------------------------------------------------------------------------


def test_pin_as_a_block_releases_at_its_end(pool, table):
    with table.pin(3) as page:
        assert np.array_equal(page, stamp(3))
        assert pins(pool) == 1
    assert pins(pool) == 0
    assert page.shape == (0,)
    assert page.dtype == np.uint8


def test_a_pin_knows_its_page(table):
    pin = table.pin(3)
    assert pin.page_no == 3
    assert pin.lsn == 0
    assert pin.page is pin.page
    pin.release()
    pin.release()
    assert pin.page_no == 3
    with pytest.raises(ValueError, match="released"):
        _ = pin.page
    with pytest.raises(ValueError, match="released"):
        _ = pin.lsn


def test_a_forgotten_pin_releases_itself(pool, table):
    pin = table.pin(3)
    assert pins(pool) == 1
    del pin
    assert pins(pool) == 0


@pytest.mark.parametrize("view", ["slice", "memoryview", "view", "frombuffer", "iterator", "list"])
def test_release_with_a_live_view_raises_and_the_view_keeps_the_pin(pool, table, view):
    def make(page):
        return {
            "slice": lambda: page[8:],
            "memoryview": lambda: memoryview(page),
            "view": lambda: page.view(np.uint64),
            "frombuffer": lambda: np.frombuffer(page, np.uint8),
            "iterator": lambda: iter(page),
            "list": lambda: [page],
        }[view]()

    with pytest.raises(BufferError, match="copy what you keep"):  # noqa: SIM117
        with table.pin(3) as page:
            kept = make(page)
    del page
    assert pins(pool) == 1
    del kept
    gc.collect()
    assert pins(pool) == 0


@pytest.mark.parametrize("view", ["memoryview", "frombuffer", "iterator", "list"])
def test_a_view_counts_when_the_name_of_the_page_is_gone(pool, table, view):
    """Nobody else holds the page's array, and still somebody looks at the page."""
    pin = table.pin(3)
    kept = {"memoryview": memoryview, "frombuffer": np.frombuffer, "iterator": iter, "list": lambda page: [page]}[view](
        *([pin.page] if view != "frombuffer" else [pin.page, np.uint8])
    )
    try:
        pin.release()
    except BufferError:
        assert pins(pool) == 1
    else:
        # Whatever still shows bytes must have kept the page.
        seen = kept[0] if view != "iterator" else next(kept, None)
        shows_bytes = getattr(seen, "size", 1) > 0 and seen is not None
        assert not shows_bytes, "released while a view looks at the page"
    del kept, pin


@pytest.mark.parametrize("view", ["memoryview", "frombuffer"])
def test_a_view_counts_when_the_page_was_pinned_with_others(pool, table, view):
    pages = table.pin_many([3, 4])
    kept = memoryview(pages[0]) if view == "memoryview" else np.frombuffer(pages[0], np.uint8)
    with pytest.raises(BufferError):
        pages.release()
    assert pins(pool) == 2
    del kept, pages


def test_a_released_page_that_is_still_viewed_does_not_change_under_the_view(pool, work):
    with work.write(0) as page:
        page[:] = 7
    pin = work.pin(0)
    kept = memoryview(pin.page)
    try:
        pin.release()
    except BufferError:
        pin = None
    for n in range(16):
        with work.write(n) as page:
            page[:] = 9
    assert kept[0] == 7
    del kept, pin


def test_release_works_once_the_views_are_gone(pool, table):
    pin = table.pin(3)
    tail = pin.page[8:]
    with pytest.raises(BufferError):
        pin.release()
    assert np.array_equal(pin.page, stamp(3))
    del tail
    pin.release()
    assert pins(pool) == 0


def test_an_exception_in_a_pin_block_is_not_masked(pool, table):
    kept = []
    with pytest.raises(KeyError, match="mine"):  # noqa: PT012, SIM117
        with table.pin(3) as page:
            kept.append(page[8:])
            raise KeyError("mine")
    assert np.array_equal(kept[0], stamp(3)[8:])
    with pytest.raises(KeyError, match="mine"):  # noqa: PT012, SIM117
        with table.pin_many([1, 2]) as pages:
            kept.append(pages[1][8:])
            raise KeyError("mine")
    assert np.array_equal(kept[1], stamp(2)[8:])
    del page, pages
    gc.collect()
    assert pins(pool) == 3
    kept.clear()
    gc.collect()
    assert pins(pool) == 0


# ---- pin_many and read_many ------------------------------------------------------------------


def test_pin_many_is_a_sequence_of_pages(pool, table):
    ids = [5, 3, 5, 99]
    with table.pin_many(ids) as pages:
        assert len(pages) == 4
        assert pins(pool) == 4
        for n, page in zip(ids, pages, strict=True):
            assert np.array_equal(page, stamp(n))
        del page
        assert np.array_equal(pages[-1], stamp(99))
        assert np.array_equal(pages[-4], stamp(5))
        for i in (4, -5, 10**30):
            with pytest.raises(IndexError):
                pages[i]
        with pytest.raises(TypeError):
            pages["1"]
    assert pins(pool) == 0
    with pytest.raises(ValueError, match="released"):
        pages[0]
    pages.release()


def test_pin_many_takes_lists_arrays_and_ranges(table):
    for ids in (
        [1, 2, 3],
        (1, 2, 3),
        range(1, 4),
        np.array([1, 2, 3]),
        np.array([1, 9, 2, 9, 3])[::2],
        np.uint8([1, 2, 3]),
    ):
        with table.pin_many(ids) as pages:
            assert [int(pages[i][0:8].view(np.uint64)[0]) >> 20 for i in range(3)] == [2, 3, 4]
        assert np.array_equal(table.read_many(ids), [stamp(1), stamp(2), stamp(3)])


def test_pin_many_of_nothing(pool, table):
    for ids in ([], np.array([], int), range(0)):
        with table.pin_many(ids) as pages:
            assert len(pages) == 0
            assert list(pages) == []
    assert table.read_many([]).shape == (0, PAGE)
    assert table.prefetch([]) == 0


def test_pin_many_with_live_views_raises_and_they_keep_their_pages(pool, table):
    with pytest.raises(BufferError, match="2 pages"):  # noqa: SIM117
        with table.pin_many([1, 2]) as pages:
            kept = pages[1][100:]
    del pages
    assert np.array_equal(kept, stamp(2)[100:])
    assert pins(pool) >= 1
    for n in range(100):
        assert table[n][0] == stamp(n)[0]
    assert np.array_equal(kept, stamp(2)[100:])
    del kept
    assert pins(pool) == 0


def test_pin_many_pins_nothing_when_one_page_does_not_exist(pool, table):
    with pytest.raises(PageOutOfRange):
        table.pin_many([1, 2, 100])
    with pytest.raises(PageOutOfRange):
        table.read_many([1, -1])
    assert pins(pool) == 0


def test_pin_many_pins_nothing_when_one_page_fails_to_load(pool):
    def loader(n, out):
        if n == 150:
            raise OSError("broken")

    space = pool.open_derived("derived", 200, loader)
    ids = [*range(10), 150]
    with pytest.raises(bp.errors.LoaderFailed):
        space.pin_many(ids)
    with pytest.raises(bp.errors.LoaderFailed):
        space.read_many(ids)
    assert pins(pool) == 0


def test_pin_many_of_more_pages_than_the_pool_has_is_refused_and_releases(pool, table):
    with pytest.raises(bp.errors.PoolExhausted):
        table.pin_many(range(100))
    assert pins(pool) == 0


def test_read_many_keeps_order_and_duplicates(table):
    ids = [9, 3, 9, 0, 99, 3]
    assert np.array_equal(table.read_many(ids), [stamp(n) for n in ids])


def test_read_many_reads_more_pages_than_the_pool_has(pool, table):
    ids = np.random.default_rng(3).permutation(100)
    assert np.array_equal(table.read_many(ids), [stamp(n) for n in ids])
    assert pins(pool) == 0


def test_read_many_into_out(table):
    out = np.zeros((3, PAGE), np.uint8)
    assert table.read_many([1, 2, 3], out=out) is out
    assert np.array_equal(out, [stamp(1), stamp(2), stamp(3)])
    assert table.read_many([4, 5, 6], out) is out
    assert table.read_many([4], None).flags.owndata
    big = np.zeros((10, PAGE), np.uint8)
    table.read_many([7, 8], out=big[4:6])
    assert np.array_equal(big[4:6], [stamp(7), stamp(8)])
    assert not big[:4].any()
    assert not big[6:].any()


def test_read_many_refuses_an_out_that_does_not_fit(pool, table):
    read_only = np.zeros((2, PAGE), np.uint8)
    read_only.flags.writeable = False
    for out in (
        np.zeros((3, PAGE), np.uint8),
        np.zeros((2, PAGE - 1), np.uint8),
        np.zeros(2 * PAGE, np.uint8),
        np.zeros((2, PAGE), np.int8),
        np.zeros((2, PAGE // 8), np.uint64),
        np.zeros((4, PAGE), np.uint8)[::2],
        np.zeros((PAGE, 2), np.uint8).T,
        bytearray(2 * PAGE),
        "out",
        read_only,
        pool.data[:2],
    ):
        with pytest.raises(ValueError, match="out must be"):
            table.read_many([1, 2], out=out)
    assert not read_only.any()


_CHANGING_IDS = """
import os, numpy as np, bufferpool as bp, resource
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
pool = bp.Pool.create(f"bptest-{os.getppid()}-ids{os.getpid()}", 64 * 4096, page_size=4096)
pool.unlink()
ids = np.array([0, 1, 2])
def loader(n, out):
    ids[1:] = 10**9
    out[:] = n
space = pool.open_derived("derived", 10, loader)
try:
    result = space.CALL(ids)
    result = [int(page[0]) for page in result] if hasattr(result, "__len__") else result
except IndexError as error:
    result = "refused"
print(result, pool.check())
"""


@pytest.mark.parametrize("call", ["pin_many", "read_many", "_load_many"])
def test_page_numbers_that_change_during_the_call_do_no_harm(call):
    """The array of page numbers is the caller's: a loader or a thread may change it meanwhile."""
    done = run_python(_CHANGING_IDS.replace("CALL", call))
    assert done.returncode == 0, done.stderr
    assert done.stdout in ("[0, 1, 2] []\n", "3 []\n", "refused []\n")


# ---- write ---------------------------------------------------------------------------------


def test_write_publishes_when_the_block_ends(pool, attach, work):
    other = attach(pool).space("work")
    with work.write(3) as page:
        assert page.flags.writeable
        assert not page.any()
        page[:] = 7
        assert not work[3].any()
        assert not other[3].any()
    assert (work[3] == 7).all()
    assert (other[3] == 7).all()
    with work.write(3) as page:
        assert (page == 7).all()
        page[5] = 8
    assert other[3][5] == 8
    assert pool.stats().publishes == 2


def test_a_block_that_raises_publishes_nothing(pool, work):
    with work.write(3) as page:
        page[:] = 7
    for error in (KeyError("mine"), KeyboardInterrupt(), SystemExit()):
        with pytest.raises(type(error)):  # noqa: PT012, SIM117
            with work.write(3) as page:
                page[:] = 8
                raise error
        assert (work[3] == 7).all()
    with work.write(3, timeout=0) as page:  # and the page is free
        page[:] = 9
    assert pool.stats().publishes == 2
    assert pool.frames()["writer"].sum() == 0


def test_an_abandoned_block_publishes_nothing_and_frees_the_page(work):
    def generator():
        with work.write(3) as page:
            page[:] = 8
            yield

    suspended = generator()
    next(suspended)
    del suspended
    gc.collect()
    assert not work[3].any()
    with work.write(3, timeout=0):
        pass


def test_a_write_that_was_never_opened_holds_nothing(work):
    unused = work.write(3)
    with work.write(3, timeout=0):
        pass
    with pytest.raises(ValueError, match="not open"):
        unused.__exit__(None, None, None)


def test_a_write_is_used_once(work):
    write = work.write(3)
    with write, pytest.raises(ValueError, match="once"):
        write.__enter__()
    with pytest.raises(ValueError, match="once"):
        write.__enter__()


def test_an_array_kept_after_its_block_is_a_private_copy(pool, attach, work):
    with work.write(3) as page:
        page[:] = 7
    page[:] = 8
    assert page.flags.writeable
    assert (work[3] == 7).all()
    assert (attach(pool).space("work")[3] == 7).all()
    assert pins(pool) == 0
    assert not np.shares_memory(page, work[3])
    assert not np.shares_memory(page, pool.data)


def test_readers_keep_the_snapshot_that_they_have(pool, work):
    snapshots = []
    for version in range(1, 6):
        with work.write(3) as page:
            page[:] = version
        snapshots.append(work[3])
    assert [set(page.tolist()) for page in snapshots] == [{1}, {2}, {3}, {4}, {5}]
    frames = pool.frames()
    assert np.count_nonzero(frames["state"] == bp.FrameState.OLD) == 4
    assert pool.check() == []
    del snapshots
    assert np.count_nonzero(pool.frames()["state"] == bp.FrameState.OLD) == 0


def test_a_reader_in_another_process_keeps_its_snapshot(pool, work, child, spawn):
    with work.write(3) as page:
        page[:] = 1
    have, go = spawn.Event(), spawn.Event()
    reader = child(_keep_page, work, 3, have, go)
    assert have.wait(WAIT)
    with work.write(3) as page:
        page[:] = 2
    assert sum(client.pins for client in pool.clients() if client.pid == reader.pid) == 1
    go.set()
    assert reader.result() == ([1], [2])
    assert pins(pool) == 0


def _keep_page(space, n, have, go):
    page = space[n]
    have.set()
    assert go.wait(WAIT)
    return np.unique(page).tolist(), np.unique(space[n]).tolist()


def test_pages_carry_the_lsn_of_their_version(pool, attach, work):
    write = work.write(3)
    with write as page:
        page[:] = 1
        write.lsn = 2**63
    assert work.pin(3).lsn == 2**63
    with work.write(3) as page:  # keeps it unless set
        page[:] = 2
    assert attach(pool).space("work").pin(3).lsn == 2**63
    write = work.write(3)
    write.lsn = 7
    with write:
        assert write.lsn == 7
    assert work.pin(3).lsn == 7
    frames = pool.frames()
    assert frames["lsn"][(frames["page_no"] == 3) & (frames["state"] == bp.FrameState.LIVE)].tolist() == [7]
    assert write.page_no == 3


@pytest.mark.parametrize(
    ("lsn", "error"), [(-1, ValueError), (2**64, ValueError), ("1", TypeError), (1.0, TypeError), (None, TypeError)]
)
def test_an_lsn_that_is_none_is_refused(work, lsn, error):
    write = work.write(3)
    with write, pytest.raises(error, match="LSN"):
        write.lsn = lsn
    assert work.pin(3).lsn == 0


def test_writing_a_page_twice_in_one_thread_is_told_at_once(work):
    with work.write(3) as page:
        page[:] = 7
        with pytest.raises(WouldDeadlock, match="page 3"):
            work.write(3, timeout=1000).__enter__()
        with work.write(4) as other:
            other[:] = 8
    assert (work[3] == 7).all()
    assert (work[4] == 8).all()


def test_writing_one_page_through_two_handles_in_one_thread_is_told_at_once(pool, work):
    again = pool.space("work")
    with work.write(3), pytest.raises(WouldDeadlock):
        again.write(3, timeout=1000).__enter__()


def test_writers_of_one_page_wait_for_each_other(work, threads):
    inside, order = threading.Event(), []

    def second():
        assert inside.wait(WAIT)
        with work.write(3, timeout=WAIT) as page:
            order.append(int(page[0]))
            page[:] += 1

    threads.start(second)
    with work.write(3) as page:
        inside.set()
        time.sleep(0.1)  # so that the other one waits, mostly; right either way
        page[:] = 5
    threads.join()
    assert order == [5]
    assert (work[3] == 6).all()


def _hold_write(space, n, holds, go):
    with space.write(n) as page:
        page[:] = 77
        holds.set()
        assert go.wait(WAIT)


def test_a_write_that_waits_too_long_says_for_whom(pool, work, child, spawn):
    holds, go = spawn.Event(), spawn.Event()
    holder = child(_hold_write, work, 3, holds, go)
    assert holds.wait(WAIT)
    (client,) = [c.client for c in pool.clients() if c.pid == holder.pid]
    for timeout in (0, 0.1):
        with pytest.raises(WaitTimeout, match=f"client {client} "):
            work.write(3, timeout=timeout).__enter__()
    with pytest.raises(TimeoutError):
        work.write(3, timeout=0).__enter__()
    assert not work[3].any()  # readers do not wait
    with work.write(4, timeout=0):
        pass
    go.set()
    holder.result()
    with work.write(3, timeout=WAIT) as page:
        assert (page == 77).all()


def test_a_write_without_a_timeout_waits_as_long_as_it_takes(work, child, spawn):
    holds, go = spawn.Event(), spawn.Event()
    holder = child(_hold_write, work, 3, holds, go)
    assert holds.wait(WAIT)
    timer = threading.Timer(0.3, go.set)
    timer.start()
    with work.write(3, timeout=None) as page:
        assert (page == 77).all()
    timer.join()
    holder.result()


def test_a_killed_writer_publishes_nothing_and_frees_the_page(pool, work, child, spawn):
    with work.write(3) as page:
        page[:] = 1
    holds, go = spawn.Event(), spawn.Event()
    holder = child(_hold_write, work, 3, holds, go)
    assert holds.wait(WAIT)
    holder.kill()
    with work.write(3, timeout=WAIT) as page:
        assert (page == 1).all()
    assert pool.stats().clients == 1


def test_a_page_is_not_lost_by_closing_the_pool_inside_its_write_block(pool, attach, work):
    """close() refuses, or the open write ends: the page must not stay locked for ever."""
    with work.write(3) as page:
        page[:] = 1
    other = attach(pool)
    try:
        with work.write(3) as page:
            page[:] = 2
            pool.close()
    except (bp.errors.PoolClosed, BufferError):
        pass
    assert other.check() == []
    with other.space("work").write(3, timeout=1) as page:
        assert (page == 1).all()


# ---- append ----------------------------------------------------------------------------------


def test_append_adds_a_page_of_zeros_at_the_end(pool, table):
    write = table.append()
    assert write.page_no == 100
    assert len(table) == 100
    with write as page:
        assert page.shape == (PAGE,)
        assert not page.any()
        page[:] = stamp(100)
    assert len(table) == 101
    assert np.array_equal(table[100], stamp(100))
    assert pool.stats().appends == 1


def _append_one(space):
    before = len(space)
    write = space.append()
    with write as page:
        page[:] = stamp(write.page_no)
    return before, write.page_no, len(space)


def test_growth_is_seen_by_other_clients(pool, attach, table, child):
    other = attach(pool).open_file(table._options["path"], "r+")
    assert _append_one(table) == (100, 100, 101)
    assert np.array_equal(other[100], stamp(100))
    assert child(_append_one, table).result() == (101, 101, 102)
    assert len(table) == len(other) == 102
    assert np.array_equal(other[101], stamp(101))
    with pytest.raises(PageOutOfRange):
        table[102]


def test_an_aborted_append_leaves_no_page(table):
    with pytest.raises(KeyError):  # noqa: PT012, SIM117
        with table.append() as page:
            page[:] = 1
            raise KeyError
    unused = table.append()
    assert unused.page_no == 100
    del unused
    assert len(table) == 100
    assert _append_one(table) == (100, 100, 101)


def test_nested_appends_get_pages_of_their_own(table):
    first, second = table.append(), table.append()
    assert (first.page_no, second.page_no) == (100, 101)
    with first as page:
        page[:] = stamp(100)
        with second as inner:
            inner[:] = stamp(101)
        assert not table[100].any()  # not there yet: zeros
    assert len(table) == 102
    assert np.array_equal(table[100], stamp(100))
    assert np.array_equal(table[101], stamp(101))


def test_appends_that_abort_inside_out_leave_no_page(table):
    with pytest.raises(KeyError):  # noqa: SIM117
        with table.append(), table.append(), table.append():
            raise KeyError
    assert _append_one(table) == (100, 100, 101)


def test_many_processes_append_without_losing_a_page(pool, table, child):
    children = [child(_append_many, table, 50) for _ in range(3)]
    numbers = [n for c in children for n in c.result()]
    assert sorted(numbers) == list(range(100, 250))
    assert len(table) == 250
    for n in range(100, 250):
        assert np.array_equal(table[n], stamp(n))
    assert pool.flush() > 0


def _append_many(space, n):
    return [_append_one(space)[1] for _ in range(n)]


def test_append_stops_at_max_pages(pool, data_file):
    space = pool.open_file(data_file(4), "r+", max_pages=6)
    for n in (4, 5):
        assert _append_one(space)[1] == n
    with pytest.raises(SpaceFull, match="max_pages"):
        space.append()
    assert len(space) == 6


def test_append_far_beyond_the_first_entries(make_pool):
    pool = make_pool(max_pages=1 << 20)
    space = pool.scratch("work", 1)
    space.drop()
    path_pages = 3000  # entries get memory in steps of 512
    table = pool.open_store("table", _Null(), max_pages=path_pages)
    for n in range(path_pages):
        assert _append_one(table)[1] == n
    assert pool.check() == []


class _Null:
    """A store that forgets."""

    def read_into(self, offset, buffer):
        buffer[:] = stamp(offset // PAGE)
        return buffer.nbytes

    def write_from(self, offset, buffer):
        return buffer.nbytes

    def sync(self):
        pass

    def size(self):
        return 0


def test_a_space_that_is_open_for_reading_is_not_written(pool, data_file):
    space = pool.open_file(data_file(4))
    for use in (lambda: space.write(0), space.append):
        with pytest.raises(SpaceReadOnly, match=r"r\+"):
            use()
    with pytest.raises(TypeError):
        space.write(0)
    derived = pool.open_derived("derived", 4, lambda n, out: None)
    for use in (lambda: derived.write(0), derived.append):
        with pytest.raises(SpaceReadOnly):
            use()


# ---- prefetch, scan, drop ---------------------------------------------------------------------


def test_prefetch_loads_without_pinning(pool, table):
    assert table.prefetch([5, 6, 7, 6]) == 3
    assert pins(pool) == 0
    stats = pool.stats()
    assert (stats.loads, stats.hits, stats.misses) == (3, 0, 0)
    assert table.prefetch(range(5, 8)) == 0
    assert np.array_equal(table[6], stamp(6))
    stats = pool.stats()
    assert (stats.loads, stats.hits, stats.misses) == (3, 1, 0)


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


@pytest.mark.parametrize("bad", [{"start": -1}, {"ahead": 0}])
def test_a_scan_that_makes_no_sense_is_refused(table, bad):
    with pytest.raises(ValueError, match="at least"):
        next(table.scan(**bad))


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
    """The policy resists scans by itself, without being told."""
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
    assert pool.stats().frames["dirty"] == 0
    assert pool.flush() == 0


def test_dropped_scratch_pages_read_as_zeros(pool, work):
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
    assert np.count_nonzero(pool.frames()["state"] == bp.FrameState.OLD) == 0


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


# ---- many at once ------------------------------------------------------------------------


def test_eight_threads_hammering(pool, data_file, threads):
    table = pool.open_file(data_file(200), "r+", dtype="<u8")
    work = pool.scratch("work", 8, dtype="<u8")
    n_threads, rounds = 8, 150

    def run(me):
        random = np.random.default_rng(me)
        for _ in range(rounds):
            n = int(random.integers(0, 200))
            word = (n + 1) << 20
            kind = random.integers(0, 7)
            if kind == 0:
                assert table[n][1] == word + 1
            elif kind == 1:
                with table.pin(n) as page:
                    assert page[2] == word + 2
            elif kind == 2:
                ids = random.integers(0, 200, 3)
                assert table.read_many(ids)[:, 0].tolist() == [(int(i) + 1) << 20 for i in ids]
            elif kind == 3:
                with table.pin_many([n, (n + 1) % 200]) as pages:
                    assert pages[0][0] == word
            elif kind == 4:
                with table.write(n, timeout=WAIT) as page:
                    assert page[3] == word + 3
                    page[-1] = me
            elif kind == 5:
                with work.write(int(random.integers(0, 8)), timeout=WAIT) as page:
                    page[:] += 1
            else:
                table.prefetch([n])
            values = np.unique(work[int(random.integers(0, 8))])
            assert len(values) == 1

    for me in range(n_threads):
        threads.start(run, me)
    threads.join()
    assert pins(pool) == 0
    assert pool.check() == []


def test_counters_in_many_threads_lose_nothing(work, threads):
    def run():
        for i in range(100):
            with work.write(i % 4, timeout=WAIT) as page:
                page.view(np.uint64)[:] += 1

    for _ in range(8):
        threads.start(run)
    threads.join()
    assert [np.unique(work[n].view(np.uint64)).tolist() for n in range(4)] == [[200]] * 4


# ---- never half-written ----------------------------------------------------------------------


def _stamp_writer(space, seed, seconds):
    random, end, done = np.random.default_rng(seed), time.monotonic() + seconds, 0
    while time.monotonic() < end:
        n = int(random.integers(0, len(space)))
        with space.write(n, timeout=WAIT) as page:
            assert (page == page[0]).all()
            page[:] = random.integers(0, 2**63)
        done += 1
    return done


def _stamp_reader(space, seed, seconds):
    random, end, done = np.random.default_rng(seed), time.monotonic() + seconds, 0
    out = np.empty((8, PAGE // 8), np.uint64)
    mixed = 0
    while time.monotonic() < end:
        n = int(random.integers(0, len(space)))
        page = space[n]
        first = int(page[0])
        mixed += not (page == first).all()
        ids = random.integers(0, len(space), 8)
        space.read_many(ids, out=out)
        mixed += int(np.count_nonzero((out != out[:, :1]).any(axis=1)))
        with space.pin(n) as pinned:
            mixed += not (pinned == pinned[0]).all()
        mixed += int(page[-1]) != first  # still the same snapshot
        del page
        done += 10
    return done, mixed


@pytest.mark.parametrize("pages", [2, 100], ids=["two pages", "more pages than frames"])
def test_nobody_ever_sees_a_page_half_written(pool, child, tmp_path, pages):
    path = tmp_path / "stamped"
    path.write_bytes(bytes(pages * PAGE))
    space = pool.open_file(path, "r+", dtype="<u8")
    writers = [child(_stamp_writer, space, seed, 2.0) for seed in range(2)]
    readers = [child(_stamp_reader, space, 100 + seed, 2.0) for seed in range(2)]
    reads = [reader.result() for reader in readers]
    writes = [writer.result() for writer in writers]
    assert all(done > 0 for done, _ in reads)
    assert all(done > 0 for done in writes)
    assert [mixed for _, mixed in reads] == [0, 0]
    pool.flush()
    data = np.fromfile(path, "<u8").reshape(pages, -1)
    assert (data == data[:, :1]).all()


# ---- closing under use ------------------------------------------------------------------------

_CLOSE_IN_LOADER = """
import os, threading, bufferpool as bp, resource
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
pool = bp.Pool.create(f"bptest-{os.getppid()}-close{os.getpid()}", 64 * 4096, page_size=4096)
pool.unlink()
inside, go = threading.Event(), threading.Event()
THREAD = MODE == "thread"
def loader(n, out):
    if THREAD:
        inside.set()
        assert go.wait(30)
    else:
        close()
    out[:] = 5
def close():
    try:
        pool.close()
        print("closed")
    except BufferError:
        print("refused")
def read():
    try:
        print(space[0][0])
    except bp.errors.PoolClosed:
        print("PoolClosed")
space = pool.open_derived("derived", 4, loader)
if THREAD:
    thread = threading.Thread(target=read)
    thread.start()
    assert inside.wait(30)
    close()
    go.set()
    thread.join(30)
else:
    read()
"""


@pytest.mark.parametrize("mode", ["thread", "loader"])
def test_closing_a_pool_while_a_loader_runs_is_refused(mode):
    done = run_python(_CLOSE_IN_LOADER.replace("MODE", repr(mode)))
    assert done.returncode == 0, done.stderr
    assert done.stdout in ("refused\n5\n", "closed\nPoolClosed\n")


def test_threads_find_the_pool_closed(pool, threads: Threads):
    work = pool.scratch("work", 16)
    started, stop, ended = threading.Barrier(5), threading.Event(), []

    def run(me):
        started.wait(WAIT)
        try:
            while not stop.is_set():
                with work.write(me % 16, timeout=WAIT) as page:
                    page[:] = 1
                assert work.read_many([me])[0, 0] == 1
                time.sleep(0.01)  # close() is refused while a thread is inside
        except bp.errors.PoolClosed:
            ended.append(me)

    for me in range(4):
        threads.start(run, me)
    started.wait(WAIT)

    def closes():
        try:
            pool.close()
        except BufferError:
            return False
        return True

    try:
        wait_until(closes, "the pool closes", 20)
        wait_until(lambda: len(ended) == 4, "the threads find it closed", 20)
    finally:
        stop.set()
    threads.join()
    assert sorted(ended) == [0, 1, 2, 3]


def test_ctrl_c_ends_a_wait(work, child, spawn):
    holds, go = spawn.Event(), spawn.Event()
    holder = child(_hold_write, work, 3, holds, go)
    assert holds.wait(WAIT)
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        work.write(3, timeout=WAIT).__enter__()
    timer.join()
    go.set()
    holder.result()
