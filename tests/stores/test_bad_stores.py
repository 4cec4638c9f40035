"""Stores that hang, return wrong data, or fail in fsync; and the memory cgroup's limit.

Stores that raise, read short or write short stand in test_stores.py, and so does a
process that is killed in its sync.
"""

import gc
import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import bufferpool as bp
from bufferpool.errors import StoreError
from tests.conftest import PAGE, WAIT, pins, stamp, wait_until
from tests.support.memory_store import Memory


class Hangs(Memory):
    """Hangs in the chosen method, until it is released."""

    def __init__(self, n_pages):
        super().__init__(n_pages)
        self.where, self.inside, self.go = None, threading.Event(), threading.Event()

    def _hang(self, where):
        if self.where == where:
            self.inside.set()
            assert self.go.wait(WAIT)

    def read_into(self, offset, buffer):
        self._hang(("read", offset // PAGE))
        return super().read_into(offset, buffer)

    def write_from(self, offset, buffer):
        self._hang("write")
        return super().write_from(offset, buffer)

    def sync(self):
        self._hang("sync")
        super().sync()


@pytest.fixture
def hanging(pool):
    store = Hangs(16)
    yield store, pool.open_store("store", store, mode="r+")
    store.go.set()


def _interrupted(use):
    """Ctrl-C comes 0.2 s after ``use`` has begun: whether it ended that, well before WAIT."""
    timer, began = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)), time.monotonic()
    timer.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            use()
    finally:
        timer.join()
    return time.monotonic() - began < WAIT / 2


def test_a_read_that_hangs_holds_up_only_those_who_want_that_page(pool, hanging, threads):
    store, space = hanging
    store.where = ("read", 3)
    got = []
    threads.start(lambda: got.append(space[3].copy()))
    assert store.inside.wait(WAIT)
    for n in (2, 4, 5):
        assert np.array_equal(space[n], stamp(n))
    with space.write(4) as page:
        page[:] = 9
    assert pool.flush() == 1
    pool.trim(PAGE)
    assert pool.check() == []
    assert _interrupted(lambda: space[3])
    assert _interrupted(lambda: space.read_many([2, 3]))
    assert _interrupted(lambda: space.write(3).__enter__())
    waiting = []
    threads.start(lambda: waiting.append(space[3].copy()))
    assert not got
    assert not waiting
    store.go.set()
    threads.join()
    assert np.array_equal(got[0], stamp(3))
    assert np.array_equal(waiting[0], stamp(3))
    assert pins(pool) == 0


@pytest.mark.parametrize("where", ["write", "sync"])
def test_a_flush_that_hangs_holds_up_no_reader_no_writer_and_no_other_space(pool, hanging, data_file, threads, where):
    store, space = hanging
    path = data_file(8)
    other = pool.open_file(path, "r+")
    with space.write(1) as page:
        page[:] = stamp(1, version=1)
    store.where = where
    threads.start(lambda: pool.flush())
    assert store.inside.wait(WAIT)
    assert np.array_equal(space[1], stamp(1, version=1))
    with space.write(1, timeout=WAIT) as page:
        page[:] = stamp(1, version=2)
    with other.write(2) as page:
        page[:] = stamp(2, version=1)
    assert other.flush() == 1
    assert path.read_bytes()[2 * PAGE : 3 * PAGE] == stamp(2, version=1).tobytes()
    assert _interrupted(space.flush)
    assert pool.stats().frames.dirty == 1
    store.go.set()
    threads.join()
    assert pool.stats().frames.dirty == 1, "the version that came during the flush"
    assert pool.flush() == 1
    assert store.pages[1] == stamp(1, version=2).tobytes()


def test_wrong_data_is_the_page_of_that_number_and_of_no_other(pool):
    """What a store returns is not looked at: the shape is promised, and that it reaches one page only."""
    store = Memory(8)
    right, store.pages[3] = store.pages[3], stamp(5, version=7).tobytes()
    space = pool.open_store("store", store, mode="r+")
    assert space[3].shape == (PAGE,)
    assert np.array_equal(space[3], stamp(5, version=7))
    assert all(np.array_equal(space[n], stamp(n)) for n in range(8) if n != 3)
    store.pages[3] = right
    space.drop(3, 1)
    assert np.array_equal(space[3], stamp(3))


def test_after_a_failed_fsync_every_page_since_the_last_good_one_is_written_again(pool, data_file, monkeypatch):
    """The kernel reports a lost write once, and the next fsync succeeds without it."""
    path = data_file(12)
    space = pool.open_file(path, "r+")
    fails, wrote = [], []
    fdatasync, pwritev = os.fdatasync, os.pwritev

    def broken(fd):
        if fails:
            raise OSError(fails.pop(), "Input/output error")
        fdatasync(fd)

    def counted(fd, buffers, offset):
        wrote.extend(range(offset // PAGE, offset // PAGE + len(buffers)))
        return pwritev(fd, buffers, offset)

    monkeypatch.setattr(os, "fdatasync", broken)
    monkeypatch.setattr(os, "pwritev", counted)
    for n in (1, 2, 7):
        with space.write(n) as page:
            page[:] = stamp(n, version=1)
    assert pool.flush() == 3
    for n in (2, 3, 9):
        with space.write(n) as page:
            page[:] = stamp(n, version=2)
    fails.append(5)
    wrote.clear()
    with pytest.raises(StoreError, match="stay dirty"):
        pool.flush()
    assert wrote == [2, 3, 9]
    frames = pool.frames()
    assert sorted(frames["page_no"][frames["dirty"]]) == [2, 3, 9]
    assert not frames["flusher"].any()
    data = bytearray(path.read_bytes())
    for n in (2, 3, 9):  # what the kernel did not write, it may drop from its cache
        data[n * PAGE : (n + 1) * PAGE] = stamp(n).tobytes()
    before = path.stat()
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # and no file's time shows it
    wrote.clear()
    assert pool.flush() == 3, "the second fsync succeeds: the pages must be written before it"
    assert wrote == [2, 3, 9]
    assert all(path.read_bytes()[n * PAGE : (n + 1) * PAGE] == stamp(n, version=2).tobytes() for n in (2, 3, 9))


def test_loaders_of_two_threads_that_wait_for_each_other_get_an_error(pool, threads):
    begun, recursive = [threading.Event(), threading.Event()], [True]

    def loader(page_no, out):
        if recursive[0]:
            begun[page_no].set()
            assert begun[1 - page_no].wait(WAIT)
            _ = space[1 - page_no]
        out[:] = page_no + 1

    space = pool.open_derived("made", 4, loader)
    ended = {}

    def ask(n):
        try:
            ended[n] = int(space[n][0])
        except bp.errors.LoaderFailed as error:
            while error.__cause__ is not None:
                error = error.__cause__
            ended[n] = type(error)

    threads.start(ask, 0)
    threads.start(ask, 1)
    threads.join()
    assert ended == {0: bp.errors.WouldDeadlock, 1: bp.errors.WouldDeadlock}
    recursive[0] = False
    assert int(space[0][0]) == 1
    assert int(space[1][0]) == 2
    assert pool.check() == []


# ---- the memory cgroup's limit ------------------------------------------------------------------

V1, V2 = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")


@pytest.fixture
def memory_cgroup():
    """memory_cgroup(bytes): a directory whose members may use so much memory, and no swap."""
    made = []

    def make(limit):
        v1 = (V1 / "memory.limit_in_bytes").exists()
        if not v1 and not (
            (V2 / "cgroup.controllers").exists() and "memory" in (V2 / "cgroup.subtree_control").read_text()
        ):
            pytest.skip("no memory cgroups here")
        place = (V1 if v1 else V2) / f"bptest-{os.getpid()}"
        try:
            place.mkdir()
            made.append(place)
            (place / ("memory.limit_in_bytes" if v1 else "memory.max")).write_text(str(limit))
            if not v1 and (place / "memory.swap.max").exists():
                (place / "memory.swap.max").write_text("0")
        except OSError as error:
            pytest.skip(f"no memory cgroup can be made here: {error}")
        return place

    yield make
    for place in made:
        wait_until(lambda place=place: not (place / "cgroup.procs").read_text(), "the cgroup is empty")
        place.rmdir()


def _fill_in(cgroup, name, n_pages, progress):
    """Joins a cgroup, and writes pages until it is done, refused, or killed."""
    (Path(cgroup) / "cgroup.procs").write_text(str(os.getpid()))
    with bp.Pool.attach(name) as pool:
        work = pool.space("work", "r+")
        try:
            for n in range(n_pages):
                with work.write(n) as page:
                    page[:] = stamp(n)
                progress.value = n + 1
        except bp.errors.SharedMemoryFull:
            return "refused"
        return "done"


MiB = 1 << 20


def test_a_client_at_its_cgroups_limit_is_refused_or_killed_and_nobody_else_notices(
    make_pool, child, spawn, memory_cgroup
):
    """The kernel charges a page of tmpfs to the process that first touches it, and kills a process when it finds nothing to
    reclaim."""
    limit, n_pages = 48 * MiB, 64 * MiB // PAGE
    cgroup = memory_cgroup(limit)
    pool = make_pool("80MiB")
    work, mine = pool.open_scratch("work", n_pages), pool.open_scratch("mine", 100)
    progress = spawn.Value("q", 0)
    filling = child(_fill_in, str(cgroup), pool.name, n_pages, progress)
    n = 0
    while filling.process.is_alive():
        with mine.write(n % 100, timeout=WAIT) as page:
            page[:] = stamp(n % 100, version=n)
        n += 1
    filling.process.join(WAIT)
    if filling.process.exitcode == 0 and filling.result() == "done":
        pytest.skip("this kernel does not charge tmpfs to the cgroup")
    assert filling.process.exitcode in (0, -signal.SIGKILL)
    published = progress.value
    assert 0 < published * PAGE < limit
    pool.reap()
    assert pool.stats().clients == 1
    assert pool.check() == []
    assert pins(pool) == 0
    for i in range(published):
        assert np.array_equal(work[i], stamp(i)), "a published page is lost"
    with work.write(n_pages - 1, timeout=WAIT) as page:  # there is memory for others
        page[:] = 1


def test_a_pool_below_the_cgroups_limit_evicts_and_stays_below(make_pool, child, memory_cgroup, data_file):
    """The remedy: a capacity (or a resize) below the limit."""
    cgroup = memory_cgroup(96 * MiB)
    pool = make_pool("8MiB")
    path = data_file(48 * MiB // PAGE)
    assert child(_read_all, str(cgroup), pool.name, str(path)).result() == 48 * MiB // PAGE
    assert pool.stats().resident_bytes <= 8 * MiB
    pool.reap()


def _read_all(cgroup, name, path):
    (Path(cgroup) / "cgroup.procs").write_text(str(os.getpid()))
    with bp.Pool.attach(name) as pool:
        table = pool.open_file(path)
        for n in range(len(table)):
            assert np.array_equal(table[n], stamp(n))
        return len(table)


# ---- what a store's methods return ----------------------------------------------------


class Answers(Memory):
    """Does its work, and returns what it is given to return."""

    def __init__(self, **returned):
        super().__init__(8)
        self.returned = returned

    def read_into(self, offset, buffer):
        return self.returned.get("read_into", super().read_into(offset, buffer))

    def write_from(self, offset, buffer):
        return self.returned.get("write_from", super().write_from(offset, buffer))

    def sync(self):
        super().sync()
        return self.returned.get("sync")

    def size(self):
        return self.returned.get("size", super().size())


class AsyncSync(Memory):
    async def sync(self):
        super().sync()


class AsyncReadsAndWrites(Memory):
    async def read_into(self, offset, buffer):
        return super().read_into(offset, buffer)

    async def write_from(self, offset, buffer):
        return super().write_from(offset, buffer)


def _dirty_one(space):
    with space.write(1) as page:
        page[:] = 7


@pytest.mark.filterwarnings("error")  # a coroutine that nobody awaits or closes warns
def test_a_sync_that_is_a_coroutine_leaves_the_pages_dirty(pool):
    """An ``async def sync`` never ran, and the flush called its pages clean."""
    store = AsyncSync(8)
    space = pool.open_store("store", store, mode="r+")
    _dirty_one(space)
    with pytest.raises(StoreError, match=r"sync\(\) of AsyncSync returned <coroutine .*no async def"):
        pool.flush()
    gc.collect()
    assert ("sync",) not in store.calls
    assert pool.stats().frames.dirty == 1
    space.remove(discard=True)
    assert pool.check() == []


@pytest.mark.parametrize("value", [False, True, 0, "done", object()], ids=["false", "true", "zero", "str", "object"])
def test_a_sync_that_returns_something_leaves_the_pages_dirty(pool, value):
    """A store that reports failure by ``return False`` was believed to have synced."""
    store = Answers(sync=value)
    space = pool.open_store("store", store, mode="r+")
    _dirty_one(space)
    with pytest.raises(StoreError, match=r"sync\(\) of Answers returned"):
        pool.flush()
    assert pool.stats().frames.dirty == 1
    store.returned = {}
    assert pool.flush() == 1
    assert pool.check() == []


SIZES = [None, True, 4096.0, "4096", -PAGE, 2**63, 2**64 * PAGE, (2**32 - 1) * PAGE, 10**5000, AsyncSync(0)]


@pytest.mark.parametrize("size", SIZES, ids=[str(n) for n in range(len(SIZES))])
def test_a_size_that_is_none_is_refused(pool, size):
    """A store of 2**64 pages became a space of 0 pages, and a size of another type a TypeError from the inside."""
    store = Answers(size=size)
    with pytest.raises(StoreError, match=r"size\(\) of Answers returned .*an integer of 0 to") as refused:
        pool.open_store("store", store, mode="r+")
    if isinstance(size, int) and size < 10**100:
        assert f"returned {size};" in str(refused.value)
    assert pool.client.seg.spaces() == []
    store.returned = {}
    assert len(pool.open_store("store", store, mode="r+")) == 8
    assert pool.check() == []


def test_a_size_that_raises_is_a_store_error_with_that_cause(pool):
    """Code that catches StoreError did not catch what size() raised."""
    store = Memory(8)
    failure = KeyError("no such object")
    store.size = lambda: (_ for _ in ()).throw(failure)
    with pytest.raises(StoreError, match=r"size\(\) of Memory failed: KeyError\('no such object'\)") as failed:
        pool.open_store("store", store, mode="r+")
    assert failed.value.__cause__ is failure
    assert pool.client.seg.spaces() == []
    assert pool.check() == []


@pytest.mark.parametrize(
    "value", [None, True, float(PAGE), str(PAGE), 10**5000], ids=["none", "true", "float", "str", "long"]
)
def test_a_read_or_a_write_that_returns_no_integer_is_refused(pool, value):
    """A float that is equal to the number of bytes was taken, and an integer too long to print was a bare ValueError."""
    store = Answers(read_into=value)
    space = pool.open_store("store", store, mode="r+")
    with pytest.raises(StoreError, match=r"read_into\(\) of Answers returned"):
        space[2]
    store.returned = {}
    assert np.array_equal(space[2], stamp(2))
    store.returned = {"write_from": value}
    _dirty_one(space)
    with pytest.raises(StoreError, match=r"write_from\(\) of Answers returned"):
        pool.flush()
    assert pool.stats().frames.dirty == 1
    store.returned = {"write_from": np.int64(PAGE)}
    assert pool.flush() == 1
    assert pool.check() == []


@pytest.mark.filterwarnings("error")
def test_reads_and_writes_that_are_coroutines_are_refused(pool):
    """The error was a short read of <coroutine object> bytes, and Python warned that nobody awaited them."""
    space = pool.open_store("store", AsyncReadsAndWrites(8), mode="r+")
    with pytest.raises(StoreError, match=r"read_into\(\) of AsyncReadsAndWrites returned <coroutine .*no async def"):
        space[2]
    gc.collect()
    assert pool.check() == []
