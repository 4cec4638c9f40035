"""Spaces: files, derived pages, scratch, stores; flushing, removing, sharing one budget."""

import ctypes
import os
import signal
import threading
import time

import numpy as np
import pytest

import bufferpool as bp
from bufferpool.errors import (
    LoaderFailed,
    LoaderOverrun,
    PageDiscarded,
    PageOutOfRange,
    PoolExhausted,
    ShortRead,
    ShortWrite,
    SpaceBusy,
    SpaceMismatch,
    SpaceNotFound,
    SpaceReadOnly,
    SpaceRemoved,
    StoreError,
    TooManySpaces,
    WouldDeadlock,
)
from tests.conftest import PAGE, WAIT, kernel_bytes, pins, stamp, wait_until


def fill(space, pages, version=0):
    for n in pages:
        with space.write(n) as page:
            page[:] = stamp(n, version=version)


# ---- files --------------------------------------------------------------------------


def test_mode_r_reads_and_never_writes(pool, data_file):
    path = data_file(4)
    os.chmod(path, 0o400)
    space = pool.open_file(path)
    assert np.array_equal(space[3], stamp(3))
    with pytest.raises(SpaceReadOnly):
        space.write(3)
    assert space.flush() == 0


def test_mode_r_plus_needs_the_file(pool, tmp_path):
    for mode in ("r", "r+"):
        with pytest.raises(FileNotFoundError):
            pool.open_file(tmp_path / "nothing", mode)
    assert pool.stats().spaces == []


def test_mode_w_plus_creates_a_file_and_it_grows(pool, tmp_path):
    path = tmp_path / "new.db"
    space = pool.open_file(path, "w+")
    assert len(space) == 0
    assert path.stat().st_size == 0
    for n in range(10):
        with space.append() as page:
            page[:] = stamp(n)
    assert path.stat().st_size == 0
    assert pool.flush() == 10
    assert path.read_bytes() == b"".join(stamp(n).tobytes() for n in range(10))


def test_mode_w_plus_empties_a_file_that_the_pool_has(pool, attach, data_file):
    path = data_file(10)
    old = pool.open_file(path, "r+")
    fill(old, [3], version=1)
    kept = old[3]
    space = pool.open_file(path, "w+")
    assert len(space) == 0
    assert path.stat().st_size == 0
    with pytest.raises(SpaceRemoved):
        old[3]
    assert np.array_equal(kept, stamp(3, version=1))
    with space.append() as page:
        page[:] = stamp(0, version=2)
    pool.flush()
    assert path.read_bytes() == stamp(0, version=2).tobytes()
    assert np.array_equal(attach(pool).open_file(path)[0], stamp(0, version=2))


def test_flush_writes_exactly_the_dirty_pages(pool, data_file):
    path = data_file(20)
    space = pool.open_file(path, "r+")
    for n in range(20):
        assert space[n].size
    fill(space, [0, 5, 6, 7, 19], version=1)
    assert path.read_bytes() == b"".join(stamp(n).tobytes() for n in range(20))
    assert pool.stats().frames["dirty"] == 5
    assert pool.flush() == 5
    want = [stamp(n, version=n in (0, 5, 6, 7, 19)).tobytes() for n in range(20)]
    assert path.read_bytes() == b"".join(want)
    stats = pool.stats()
    assert (stats.frames["dirty"], stats.flushed_pages, stats.foreground_flushes) == (0, 5, 0)
    assert pool.flush() == 0
    assert pool.stats().flushes == stats.flushes


def test_appended_pages_reach_the_file(pool, data_file):
    path = data_file(3)
    space = pool.open_file(path, "r+")
    for n in range(3, 200):  # more than the pool has
        with space.append() as page:
            page[:] = stamp(n)
    pool.flush()
    assert path.read_bytes() == b"".join(stamp(n).tobytes() for n in range(200))
    assert all(np.array_equal(space[n], stamp(n)) for n in range(200))
    assert pool.stats().foreground_flushes > 0


def test_a_page_that_was_appended_but_not_flushed_is_no_page_of_the_file(pool, data_file):
    path = data_file(3)
    space = pool.open_file(path, "r+")
    with space.append() as page:
        page[:] = 1
    space.drop(3, 1)  # without write-back: the file has nothing there
    assert not space[3].any()
    assert len(space) == 4
    assert path.stat().st_size == 3 * PAGE


def test_flush_of_one_space_leaves_the_others_alone(pool, data_file):
    a, b = pool.open_file(data_file(4), "r+"), pool.open_file(data_file(4), "r+")
    fill(a, [1], version=1)
    fill(b, [1, 2], version=1)
    assert b.flush() == 2
    assert pool.stats().frames["dirty"] == 1
    assert pool.flush(a) == 1


def test_a_version_published_during_a_flush_stays_dirty(pool):
    store = Memory(4)
    space = pool.open_store("store", store)
    fill(space, [1], version=1)

    def during(offset, buffer):
        store.on_write = None
        fill(space, [1], version=2)

    store.on_write = during
    assert pool.flush() >= 1
    assert np.array_equal(space[1], stamp(1, version=2))
    pool.flush()
    assert store.pages[1] == stamp(1, version=2).tobytes()
    assert store.written[1] == [stamp(1, version=v).tobytes() for v in (1, 2)]


def test_a_file_opened_twice_under_two_names_is_refused(pool, data_file):
    path = data_file(4)
    pool.open_file(path, name="first")
    with pytest.raises(SpaceMismatch, match="name='first'"):
        pool.open_file(path, name="second")
    link = path.with_name("link.db")
    os.link(path, link)
    with pytest.raises(SpaceMismatch, match="first"):
        pool.open_file(link)
    assert [space.name for space in pool.stats().spaces] == ["first"]


def test_two_files_of_one_name_are_told_apart(pool, data_file, tmp_path):
    (tmp_path / "other").mkdir()
    first, second = data_file(4, name="x.db"), data_file(5, name="other/x.db")
    pool.open_file(first)
    with pytest.raises(SpaceMismatch, match=r"pass another name="):
        pool.open_file(second)
    assert len(pool.open_file(second, name="y")) == 5


def test_a_file_opened_for_reading_can_be_opened_for_writing_later(pool, attach, data_file):
    path = data_file(4)
    reader = pool.open_file(path)
    writer = attach(pool).open_file(path, "r+")
    fill(writer, [1], version=1)
    assert np.array_equal(reader[1], stamp(1, version=1))
    assert pool.flush() == 1  # by a client that opened it for reading
    assert path.read_bytes()[PAGE : 2 * PAGE] == stamp(1, version=1).tobytes()
    with writer.append() as page:
        page[:] = stamp(4)
    assert np.array_equal(reader[4], stamp(4))


def test_a_file_that_is_cut_under_the_pool_is_a_short_read(pool, data_file):
    path = data_file(10)
    space = pool.open_file(path)
    os.truncate(path, 5 * PAGE + 100)
    assert np.array_equal(space[4], stamp(4))
    for n in (5, 9):
        with pytest.raises(ShortRead, match="cut"):
            space[n]
    with pytest.raises(ShortRead):
        space.pin_many([1, 2, 9])
    assert pins(pool) == 0
    assert pool.stats().load_failures >= 3
    assert pool.stats().frames["busy"] == 0


def test_a_file_opened_for_reading_may_grow_by_somebody_elses_hand(pool, data_file):
    path = data_file(4)
    pool.open_file(path)
    with open(path, "ab") as file:
        file.write(stamp(4).tobytes())
    space = pool.open_file(path)
    assert len(space) == 5
    assert np.array_equal(space[4], stamp(4))


def test_a_directory_is_no_file_of_pages(pool, tmp_path):
    (tmp_path / "dir").mkdir()
    with pytest.raises((OSError, StoreError, ValueError)):
        pool.open_file(tmp_path / "dir", "r")
    assert pool.stats().spaces == []


# ---- spaces that are there ------------------------------------------------------------


def test_a_space_is_found_by_its_name(pool, attach, data_file):
    fill(pool.scratch("work", 4), [1])
    path = data_file(4, name="t.db")
    pool.open_file(path, "r+")
    other = attach(pool)
    assert np.array_equal(other.space("work")[1], stamp(1))
    assert other.space("work").kind is bp.Kind.SCRATCH
    fill(other.space("t.db"), [2], version=1)
    assert other.flush() == 1
    assert [(s.name, s.kind, s.pages) for s in pool.stats().spaces] == [("work", "scratch", 4), ("t.db", "file", 4)]


def test_a_name_that_no_space_has_lists_those_there_are(pool):
    pool.scratch("work", 4)
    with pytest.raises(SpaceNotFound, match="work"):
        pool.space("other")
    with pytest.raises(LookupError):
        pool.space("other")


def test_a_name_belongs_to_one_kind(pool, data_file):
    pool.scratch("x", 4)
    with pytest.raises(SpaceMismatch, match="scratch"):
        pool.open_derived("x", 4, lambda n, out: None)
    with pytest.raises(SpaceMismatch, match="scratch"):
        pool.open_file(data_file(4), name="x")
    with pytest.raises(SpaceMismatch):
        pool.open_store("x", Memory(4))
    pool.open_derived("d", 4, lambda n, out: None)
    with pytest.raises(SpaceMismatch, match="4 pages, not 5"):
        pool.open_derived("d", 5, lambda n, out: None)


def test_spaces_are_limited_and_their_slots_come_back(pool):
    spaces = [pool.scratch(f"s{i}", 1) for i in range(64)]
    with pytest.raises(TooManySpaces, match="remove"):
        pool.scratch("one more", 1)
    fill(spaces[10], [0])
    spaces[10].remove()
    again = pool.scratch("one more", 1)
    assert not again[0].any()
    with pytest.raises(SpaceRemoved):
        spaces[10][0]
    assert pool.check() == []


def test_a_space_of_no_pages(pool, tmp_path):
    (tmp_path / "empty").touch()
    for space in (
        pool.scratch("s", 0),
        pool.open_derived("d", 0, lambda n, out: None),
        pool.open_file(tmp_path / "empty"),
    ):
        assert len(space) == 0
        assert list(space) == []
        assert space.drop() == 0
        with pytest.raises(PageOutOfRange, match="0 pages"):
            space[0]


# ---- derived ----------------------------------------------------------------------------


def test_a_loader_fills_pages_from_zeros(pool):
    asked = []

    def loader(n, out):
        assert out.dtype == np.uint8
        assert out.shape == (PAGE,)
        assert not out.any()
        asked.append(n)
        out[: PAGE // 2] = n

    space = pool.open_derived("d", 10, loader)
    for n in (3, 3, 7, 3):
        assert (space[n][: PAGE // 2] == n).all()
        assert not space[n][PAGE // 2 :].any()
    assert asked == [3, 7]


def test_a_buffer_that_the_loader_keeps_is_not_the_page(pool):
    kept = []

    def loader(n, out):
        out[:] = 1
        kept.append(out)

    space = pool.open_derived("d", 2, loader)
    page = space[0]
    kept[0][:] = 2
    assert (page == 1).all()
    assert (space[0] == 1).all()


class CountingLoader:
    def __init__(self, calls):
        self.calls = calls

    def __call__(self, n, out):
        with self.calls.get_lock():
            self.calls[n] += 1
        time.sleep(0.002)
        out[:] = stamp(n)


def _read_derived(name, calls, barrier):
    with bp.Pool.attach(name) as pool:
        space = pool.open_derived("d", 40, CountingLoader(calls))
        barrier.wait(WAIT)
        return [bytes(space[n]) for n in range(40)]


def test_a_loader_runs_once_a_page_however_many_ask(pool, child, spawn):
    calls, barrier = spawn.Array("i", 40), spawn.Barrier(3)
    children = [child(_read_derived, pool.name, calls, barrier) for _ in range(3)]
    for c in children:
        assert c.result() == [stamp(n).tobytes() for n in range(40)]
    assert list(calls) == [1] * 40


def test_a_loader_runs_once_a_page_among_threads(pool, threads):
    calls = []

    def loader(n, out):
        calls.append(n)
        time.sleep(0.005)
        out[:] = stamp(n)

    space = pool.open_derived("d", 10, loader)
    barrier = threading.Barrier(6)

    def read():
        barrier.wait(WAIT)
        for n in range(10):
            assert np.array_equal(space[n], stamp(n))

    for _ in range(6):
        threads.start(read)
    threads.join()
    assert sorted(calls) == list(range(10))


def test_a_loader_that_raises_is_the_cause_and_the_page_can_be_loaded_later(pool, attach):
    broken = True

    def loader(n, out):
        out[:] = 1
        if broken:
            raise OSError("no such tile")
        out[:] = 2

    space = pool.open_derived("d", 10, loader)
    for use in (lambda: space[3], lambda: space.pin(3), lambda: space.read_many([3]), lambda: space.prefetch([3])):
        with pytest.raises(LoaderFailed, match="no such tile") as failed:
            use()
        assert isinstance(failed.value.__cause__, OSError)
        assert isinstance(failed.value, StoreError)
    stats = pool.stats()
    assert (stats.load_failures, stats.loads, stats.frames["live"], stats.frames["busy"]) == (4, 0, 0, 0)
    assert pool.check() == []
    broken = False
    assert (space[3] == 2).all()


def test_ctrl_c_in_a_loader_is_ctrl_c(pool):
    def loader(n, out):
        raise KeyboardInterrupt

    space = pool.open_derived("d", 10, loader)
    with pytest.raises(KeyboardInterrupt):
        space[3]
    assert pool.stats().frames["busy"] == 0


def test_others_who_wait_for_a_failing_loader_try_themselves(pool, threads):
    inside, first = threading.Event(), []

    def loader(n, out):
        if not first:
            first.append(threading.get_ident())
            assert inside.wait(WAIT)
            raise OSError("the first one fails")
        out[:] = 5

    space = pool.open_derived("d", 10, loader)
    errors = []

    def fails():
        try:
            space[3]
        except LoaderFailed as error:
            errors.append(error)

    threads.start(fails)
    wait_until(lambda: bool(first), "the loader runs")
    threads.start(lambda: inside.set() if not time.sleep(0.05) else None)
    assert (space[3] == 5).all()
    threads.join()
    assert len(errors) == 1


@pytest.mark.parametrize("where", [-1, PAGE, -4096, PAGE + 4095])
@pytest.mark.parametrize("how", ["ctypes", "as_strided"])
def test_a_loader_that_writes_outside_its_buffer_is_found(pool, how, where):
    wrong = True

    def loader(n, out):
        out[:] = 7
        if not wrong:
            return
        if how == "ctypes":
            before = ctypes.c_uint8.from_address(out.ctypes.data + where)
            before.value ^= 0xFF
        else:
            whole = np.lib.stride_tricks.as_strided(out, (2 * PAGE,), (1 if where > 0 else -1,), writeable=True)
            whole[abs(where)] ^= 0xFF

    space = pool.open_derived("d", 10, loader)
    with pytest.raises(LoaderOverrun, match="outside"):
        space[3]
    assert pool.stats().frames["live"] == 0
    wrong = False
    assert (space[3] == 7).all()


def test_a_loader_that_asks_for_its_own_page_is_told(pool):
    def loader(n, out):
        if n == 3:
            with pytest.raises(WouldDeadlock, match="page 3"):
                space[3]
            with pytest.raises(WouldDeadlock):
                space.read_many([3])
        out[:] = 4

    space = pool.open_derived("d", 10, loader)
    assert (space[3] == 4).all()


def test_a_loader_that_does_not_catch_it_raises_would_deadlock_as_the_cause(pool):
    space = pool.open_derived("d", 10, lambda n, out: space[n])
    with pytest.raises(LoaderFailed) as failed:
        space[3]
    assert isinstance(failed.value.__cause__, WouldDeadlock)


def test_a_loader_may_use_other_pages_and_other_spaces(pool, data_file):
    table = pool.open_file(data_file(10))

    def loader(n, out):
        out[:] = table[n]
        if n:
            out[0] = space[n - 1][0] ^ 1

    space = pool.open_derived("d", 10, loader)
    assert np.array_equal(space[9][1:], stamp(9)[1:])
    assert pool.stats().loads == 20


def _load_and_hang(name, inside):
    def loader(n, out):
        inside.set()
        time.sleep(WAIT)

    with bp.Pool.attach(name) as pool:
        return pool.open_derived("d", 10, loader)[3][0]


def test_a_client_killed_in_its_loader_leaves_the_page_to_others(pool, child, spawn):
    inside = spawn.Event()
    loading = child(_load_and_hang, pool.name, inside)
    assert inside.wait(WAIT)
    space = pool.open_derived("d", 10, lambda n, out: out.fill(9))
    loading.kill()
    assert (space[3] == 9).all()
    assert pool.stats().clients == 1


def test_derived_pages_are_dropped_freely_and_made_again(pool):
    calls = []

    def loader(n, out):
        calls.append(n)
        out[:] = stamp(n)

    space = pool.open_derived("d", 200, loader)
    for _ in range(2):
        for n in range(200):
            assert np.array_equal(space[n], stamp(n))
    assert len(calls) > 300
    assert space.flush() == 0
    space.drop(0, 200)
    assert np.array_equal(space[5], stamp(5))


def test_a_space_without_its_loader_says_what_to_do(pool, attach):
    pool.open_derived("d", 10, lambda n, out: out.fill(1))[2]
    other = attach(pool).space("d")
    assert (other[2] == 1).all()
    with pytest.raises(StoreError, match="open it here"):
        other[3]


# ---- scratch --------------------------------------------------------------------------------


def test_scratch_pages_are_zeros_until_written(pool, attach):
    work = pool.scratch("work", 10)
    assert not work[3].any()
    fill(work, [3])
    assert np.array_equal(attach(pool).scratch("work", 10)[3], stamp(3))
    assert pool.flush() == 0


def test_scratch_of_the_pool_stays_without_any_process(make_pool):
    pool = make_pool()
    fill(pool.scratch("work", 10), [3])
    pool.close()
    with bp.Pool.attach(pool.name) as again:
        assert np.array_equal(again.space("work")[3], stamp(3))


def test_scratch_of_a_client_goes_when_it_closes(pool, attach):
    other = attach(pool)
    fill(other.scratch("mine", 10, owner="client"), range(10))
    assert [s.name for s in pool.stats().spaces] == ["mine"]
    other.close()
    assert pool.stats().spaces == []
    assert pool.stats().frames["live"] == 0


def test_closing_a_scratch_space_of_a_client_removes_it(pool):
    memory = kernel_bytes(pool)
    with pool.scratch("mine", 10, owner="client") as work:
        fill(work, range(10))
    assert pool.stats().spaces == []
    with pytest.raises(SpaceRemoved):
        work[0]
    assert pool.stats().reclaimed_bytes["drop"] == 10 * PAGE
    with pool.scratch("ours", 10) as work:
        fill(work, [1])
    assert np.array_equal(work[1], stamp(1))
    assert kernel_bytes(pool) > memory


def _make_scratch(name, n_pages, done, finish):
    pool = bp.Pool.attach(name)
    fill(pool.scratch("mine", n_pages, owner="client"), range(n_pages))
    done.set()
    assert finish.wait(WAIT)
    if n_pages % 2:
        pool.close()
    os._exit(0)


@pytest.mark.parametrize(("n_pages", "end"), [(40, "SIGKILL"), (40, "os._exit"), (41, "close")])
def test_the_memory_of_a_clients_scratch_comes_back_when_it_is_gone(pool, child, spawn, n_pages, end):
    fill(pool.scratch("ours", 4), range(4))
    pool.trim()
    before = pool.stats()
    memory = kernel_bytes(pool) - before.metadata_bytes
    done, finish = spawn.Event(), spawn.Event()
    client = child(_make_scratch, pool.name, n_pages, done, finish)
    assert done.wait(WAIT)
    assert pool.stats().resident_bytes >= (n_pages + 4) * PAGE
    if end == "SIGKILL":
        client.kill()  # and no finish.set(): an Event waits for its dead waiters
    else:
        finish.set()
    client.process.join(WAIT)
    pool.reap()
    stats = pool.stats()
    assert [s.name for s in stats.spaces] == ["ours"]
    assert stats.clients == 1
    assert stats.frames["live"] == 4
    assert stats.resident_bytes <= before.resident_bytes + 2 * 4 * PAGE  # not more than started extents
    assert kernel_bytes(pool) - stats.metadata_bytes == stats.resident_bytes
    assert stats.reclaimed_bytes["client_exit"] >= (n_pages - 8) * PAGE
    assert memory == before.resident_bytes


def test_dropped_scratch_pages_return_their_memory_to_the_byte(pool):
    work = pool.scratch("work", 32)
    fill(work, range(32))
    for first, count in ((0, 4), (7, 1), (10, 13), (0, 32)):
        before = kernel_bytes(pool)
        freed = work.drop(first, count)
        assert before - kernel_bytes(pool) == freed
    assert pool.stats().reclaimed_bytes["drop"] == 32 * PAGE


def test_removing_a_scratch_space_returns_its_memory_to_the_byte(pool):
    before = kernel_bytes(pool)
    work = pool.scratch("work", 32)
    fill(work, range(32))
    work.remove()
    stats = pool.stats()
    assert stats.reclaimed_bytes["drop"] == 32 * PAGE
    assert stats.kernel_data_bytes == stats.resident_bytes
    assert pool.trim() == stats.resident_bytes
    assert pool.stats().kernel_data_bytes == 0
    assert kernel_bytes(pool) >= before


def test_a_discardable_page_that_was_evicted_raises_page_discarded(pool, data_file):
    work = pool.scratch("cache", 8, discardable=True)
    fill(work, range(4))
    assert np.array_equal(work[2], stamp(2))
    table = pool.open_file(data_file(200))
    for _ in range(3):
        for n in range(200):
            assert table[n].size
    gone = []
    for n in range(4):
        try:
            assert np.array_equal(work[n], stamp(n))
        except PageDiscarded:
            gone.append(n)
    assert gone
    n = gone[0]
    for use in (
        lambda: work.read_many([n]),
        lambda: work.pin_many([n]),
        lambda: work.pin(n),
        lambda: work.write(n).__enter__(),
    ):
        with pytest.raises(PageDiscarded, match="drop it, then write it anew") as discarded:
            use()
        assert isinstance(discarded.value, LookupError)
    assert not work[7].any()  # was never written: zeros, nothing is lost
    work.drop(n, 1)
    assert not work[n].any()
    fill(work, [n], version=1)
    assert np.array_equal(work[n], stamp(n, version=1))


def test_discardable_scratch_never_exhausts_the_pool(pool):
    work = pool.scratch("cache", 500, discardable=True)
    fill(work, range(500))
    assert pool.stats().resident_bytes <= pool.stats().budget_bytes


def test_scratch_that_is_not_discardable_exhausts_the_pool_and_loses_nothing(pool):
    work = pool.scratch("work", 100)
    with pytest.raises(PoolExhausted, match=r"hold scratch pages that are not discardable") as full:
        fill(work, range(100))
    assert isinstance(full.value, MemoryError)
    assert "resize" in str(full.value)
    assert "of 64 frames" in str(full.value)
    written = int(np.count_nonzero(pool.frames()["dirty"]))
    assert written >= 60
    for n in range(written):
        assert np.array_equal(work[n], stamp(n))
    kept = [work[n] for n in range(64)]  # what is not dirty is pinned now
    with pytest.raises(PoolExhausted):
        work[64]
    del kept
    work.drop(0, 10)
    assert not work[99].any()
    assert np.array_equal(work[20], stamp(20))


# ---- stores ----------------------------------------------------------------------------------


class Memory:
    """A store in memory, that can be made to fail."""

    def __init__(self, n_pages=0, version=0):
        self.pages = {n: stamp(n, version=version).tobytes() for n in range(n_pages)}
        self.written = {}
        self.calls = []
        self.fail_read = self.fail_write = self.fail_sync = self.short_read = self.short_write = None
        self.on_write = None

    def read_into(self, offset, buffer):
        self.calls.append(("read", offset // PAGE))
        if self.fail_read:
            raise self.fail_read
        n = offset // PAGE
        buffer[:] = np.frombuffer(self.pages[n], np.uint8)
        return buffer.nbytes if self.short_read is None else self.short_read

    def write_from(self, offset, buffer):
        assert not buffer.flags.writeable
        assert offset % PAGE == buffer.nbytes % PAGE == 0
        self.calls.append(("write", offset // PAGE, buffer.nbytes // PAGE))
        if self.on_write:
            self.on_write(offset, buffer)
        if self.fail_write:
            raise self.fail_write
        if self.short_write is not None:
            return self.short_write
        for i in range(buffer.nbytes // PAGE):
            data = buffer[i * PAGE : (i + 1) * PAGE].tobytes()
            self.pages[offset // PAGE + i] = data
            self.written.setdefault(offset // PAGE + i, []).append(data)
        return buffer.nbytes

    def sync(self):
        self.calls.append(("sync",))
        if self.fail_sync:
            raise self.fail_sync

    def size(self):
        return len(self.pages) * PAGE


def test_any_object_with_the_four_methods_is_a_store(pool):
    assert isinstance(Memory(), bp.Store)
    store = Memory(10)
    space = pool.open_store("store", store)
    assert len(space) == 10
    assert np.array_equal(space[3], stamp(3))
    fill(space, [3, 4, 8], version=1)
    with space.append() as page:
        page[:] = stamp(10)
    assert space.flush() == 4
    assert store.calls == [
        ("read", 3),
        ("read", 4),
        ("read", 8),
        ("write", 3, 2),
        ("write", 8, 1),
        ("write", 10, 1),
        ("sync",),
    ]
    assert store.pages[4] == stamp(4, version=1).tobytes()
    assert store.pages[10] == stamp(10).tobytes()
    assert store.size() == 11 * PAGE


def test_a_store_without_its_methods_is_refused(pool):
    class Half:
        def read_into(self, offset, buffer): ...

    with pytest.raises(TypeError, match="write_from"):
        pool.open_store("store", Half())
    with pytest.raises(ValueError, match="mode"):
        pool.open_store("store", Memory(1), mode="w+")


def test_a_store_opened_for_reading_is_not_written(pool):
    space = pool.open_store("store", Memory(4), mode="r")
    with pytest.raises(SpaceReadOnly):
        space.write(1)


def test_a_buffer_that_a_store_keeps_does_not_change(pool):
    store, kept = Memory(4), []
    store.on_write = lambda offset, buffer: kept.append(buffer)
    space = pool.open_store("store", store)
    fill(space, [1], version=1)
    pool.flush()
    fill(space, [1], version=2)
    pool.flush()
    assert kept[0].tobytes() == stamp(1, version=1).tobytes()


def test_a_store_that_cannot_be_read_fails_those_who_ask_and_works_later(pool):
    store = Memory(4)
    space = pool.open_store("store", store)
    store.fail_read = OSError(5, "Input/output error")
    with pytest.raises(StoreError, match="Input/output error") as failed:
        space[1]
    assert failed.value.__cause__ is store.fail_read
    store.fail_read = None
    store.short_read = 100
    with pytest.raises(ShortRead, match="100 of 4096"):
        space[1]
    store.short_read = None
    assert pool.stats().frames["live"] == pool.stats().frames["busy"] == 0
    assert np.array_equal(space[1], stamp(1))


def test_a_failing_write_keeps_the_pages_dirty(pool):
    store = Memory(10)
    space = pool.open_store("store", store)
    fill(space, [1, 2, 5], version=1)
    for error, match in ((OSError(28, "No space left on device"), "full"), (RuntimeError("odd"), "odd")):
        store.fail_write = error
        with pytest.raises(StoreError, match=match) as failed:
            pool.flush()
        assert "stay dirty" in str(failed.value)
        assert failed.value.__cause__ is error
        assert pool.stats().frames["dirty"] == 3
        assert pool.stats().flushed_pages == 0
        assert pool.frames()["flusher"].sum() == 0
        assert pins(pool) == 0
    store.fail_write = None
    assert pool.flush() == 3
    assert [store.pages[n] for n in (1, 2, 5)] == [stamp(n, version=1).tobytes() for n in (1, 2, 5)]


def test_a_short_write_keeps_the_pages_dirty(pool):
    store = Memory(10)
    space = pool.open_store("store", store)
    fill(space, [1], version=1)
    for short in (0, 100, PAGE + 1):
        store.short_write = short
        with pytest.raises(ShortWrite):
            pool.flush()
        assert pool.stats().frames["dirty"] == 1
    store.short_write = None
    assert pool.flush() == 1


def test_a_failing_sync_keeps_the_pages_dirty_and_they_are_written_again(pool):
    store = Memory(10)
    space = pool.open_store("store", store)
    fill(space, [1, 2], version=1)
    store.fail_sync = OSError(5, "Input/output error")
    for _ in range(2):
        with pytest.raises(StoreError, match="stay dirty"):
            pool.flush()
        assert pool.stats().frames["dirty"] == 2
    store.fail_sync = None
    assert pool.flush() == 2
    assert len(store.written[1]) == 3
    assert pool.stats().frames["dirty"] == 0


def test_a_store_that_fails_does_not_keep_other_spaces_from_being_flushed(pool, data_file):
    store, path = Memory(4), data_file(4)
    bad, good = pool.open_store("bad", store), pool.open_file(path, "r+")
    fill(bad, [1], version=1)
    fill(good, [1, 2], version=1)
    store.fail_write = OSError("broken")
    with pytest.raises(StoreError, match="bad"):
        pool.flush()
    assert path.read_bytes()[PAGE : 2 * PAGE] == stamp(1, version=1).tobytes()
    assert pool.stats().frames["dirty"] == 1


def test_a_pool_full_of_pages_that_a_store_does_not_take_says_so(pool):
    store = Memory(200)
    space = pool.open_store("store", store)
    store.fail_write = OSError("broken")
    with pytest.raises((PoolExhausted, StoreError)):
        fill(space, range(200), version=1)
    dirty = pool.stats().frames["dirty"]
    assert dirty > 50
    store.fail_write = None
    fill(space, range(200), version=2)
    pool.flush()
    assert all(store.pages[n] == stamp(n, version=2).tobytes() for n in range(200))


def test_a_store_that_writes_outside_its_buffer_is_found(pool):
    class Overrun(Memory):
        def read_into(self, offset, buffer):
            ctypes.memset(buffer.ctypes.data - 1, 0x55, 1)
            ctypes.memset(buffer.ctypes.data - 2, 0xAA, 1)
            return buffer.nbytes

    space = pool.open_store("store", Overrun(4))
    with pytest.raises(LoaderOverrun, match="Overrun"):
        space[1]


def test_another_process_needs_the_store_to_flush_it(pool, attach):
    space = pool.open_store("store", Memory(4))
    fill(space, [1], version=1)
    other = attach(pool)
    with pytest.raises(StoreError, match="open_store"):
        other.flush()
    assert pool.stats().frames["dirty"] == 1
    store = Memory(4)
    other.open_store("store", store)
    assert other.flush() == 1
    assert store.pages[1] == stamp(1, version=1).tobytes()


# ---- together ----------------------------------------------------------------------------------


def test_several_spaces_share_one_budget(pool, data_file):
    a, b = pool.open_file(data_file(100), "r+"), pool.open_file(data_file(100))
    derived = pool.open_derived("derived", 100, lambda n, out: np.copyto(out, stamp(n, version=3)))
    work = pool.scratch("work", 10)
    fill(work, range(10))
    for n in np.random.default_rng(5).integers(0, 100, 1000):
        n = int(n)
        assert np.array_equal(a[n], stamp(n))
        assert np.array_equal(b[n], stamp(n))
        assert np.array_equal(derived[n], stamp(n, version=3))
        assert np.array_equal(work[n % 10], stamp(n % 10))
    stats = pool.stats()
    assert stats.kernel_data_bytes <= stats.budget_bytes
    assert all(space.misses > 0 for space in stats.spaces)
    assert stats.misses == sum(space.misses for space in stats.spaces)


def test_pages_above_the_durable_lsn_are_held_back(pool, data_file):
    path = data_file(10)
    space = pool.open_file(path, "r+")
    assert pool.durable_lsn == 2**64 - 1
    pool.durable_lsn = 100
    for n, lsn in ((1, 50), (2, 100), (3, 101), (4, 2**64 - 1)):
        write = space.write(n)
        write.lsn = lsn
        with write as page:
            page[:] = stamp(n, version=1)
    assert pool.flush() == 2
    data = path.read_bytes()
    assert [data[n * PAGE : n * PAGE + PAGE] == stamp(n, version=1).tobytes() for n in (1, 2, 3, 4)] == [
        True,
        True,
        False,
        False,
    ]
    assert pool.stats().frames["dirty"] == 2
    pool.durable_lsn = 101
    assert pool.flush() == 1
    pool.durable_lsn = 2**64 - 1
    assert pool.flush() == 1
    assert pool.stats().durable_lsn == 2**64 - 1


def test_a_pool_full_of_pages_above_the_durable_lsn_says_so(pool, data_file):
    space = pool.open_file(data_file(100), "r+")
    pool.durable_lsn = 0

    def write_all():
        for n in range(100):
            write = space.write(n)
            write.lsn = 1
            with write as page:
                page[:] = n

    with pytest.raises(PoolExhausted, match="above durable_lsn"):
        write_all()
    pool.durable_lsn = 1
    write_all()
    assert pool.flush() > 0


def test_a_durable_lsn_that_is_none_is_refused(pool):
    for lsn, error in ((-1, ValueError), (2**64, ValueError), ("1", TypeError), (1.5, TypeError), (True, TypeError)):
        with pytest.raises(error, match="LSN"):
            pool.durable_lsn = lsn
    assert pool.durable_lsn == 2**64 - 1


# ---- removing ---------------------------------------------------------------------------------


def test_remove_flushes_and_old_handles_say_so(pool, attach, data_file):
    path = data_file(10)
    space, other = pool.open_file(path, "r+"), attach(pool).open_file(path, "r+")
    fill(space, [3], version=1)
    kept = other[3]
    space.remove()
    assert path.read_bytes()[3 * PAGE : 4 * PAGE] == stamp(3, version=1).tobytes()
    assert np.array_equal(kept, stamp(3, version=1))
    for handle in (space, other):
        for use in (
            lambda h=handle: h[3],
            lambda h=handle: h.pin(3),
            lambda h=handle: h.pin_many([3]),
            lambda h=handle: h.read_many([3]),
            lambda h=handle: h.write(3),
            lambda h=handle: h.append(),
            lambda h=handle: h.prefetch([3]),
            lambda h=handle: len(h),
            lambda h=handle: h.drop(3, 1),
            lambda h=handle: list(h.scan()),
        ):
            with pytest.raises(SpaceRemoved, match="open it again"):
                use()
    assert pool.stats().spaces == []
    again = pool.open_file(path, "r+")
    assert np.array_equal(again[3], stamp(3, version=1))
    with pytest.raises(SpaceRemoved):
        other[3]


def test_removing_twice_is_told(pool):
    work = pool.scratch("work", 4)
    work.remove()
    with pytest.raises((SpaceRemoved, SpaceNotFound), match="removed"):
        work.remove()


def test_remove_with_discard_loses_dirty_pages_as_asked(pool, data_file):
    path = data_file(4)
    space = pool.open_file(path, "r+")
    fill(space, [1], version=1)
    space.remove(discard=True)
    assert path.read_bytes()[PAGE : 2 * PAGE] == stamp(1).tobytes()
    assert pool.flush() == 0


def test_a_failing_store_keeps_its_space_from_being_removed(pool):
    store = Memory(4)
    space = pool.open_store("store", store)
    fill(space, [1], version=1)
    store.fail_sync = OSError("broken")
    with pytest.raises(StoreError):
        space.remove()
    assert np.array_equal(space[1], stamp(1, version=1))
    store.fail_sync = None
    space.remove()
    assert store.pages[1] == stamp(1, version=1).tobytes()


def test_pages_above_the_durable_lsn_keep_their_space_from_being_removed(pool, data_file):
    space = pool.open_file(data_file(4), "r+")
    pool.durable_lsn = 0
    write = space.write(1)
    write.lsn = 9
    with write as page:
        page[:] = 1
    with pytest.raises(SpaceBusy):
        space.remove()
    assert (space[1] == 1).all()
    pool.durable_lsn = 9
    space.remove()


def _hold(space, n, holds, go):
    with space.write(n) as page:
        page[:] = 1
        holds.set()
        assert go.wait(WAIT)


def test_a_space_that_somebody_is_writing_is_not_half_removed(pool, attach, child, spawn):
    """remove() refuses, or removes; and nobody else has to wait for the one who writes."""
    work = pool.scratch("work", 8)
    fill(work, range(8))
    holds, go = spawn.Event(), spawn.Event()
    writer = child(_hold, work, 3, holds, go)
    assert holds.wait(WAIT)
    removed = True
    try:
        work.remove()
    except SpaceBusy:
        removed = False
    opened = []
    other = attach(pool)
    thread = threading.Thread(target=lambda: opened.extend(other.scratch(f"s{i}", 4) for i in range(5)), daemon=True)
    thread.start()
    thread.join(5)  # far below a millisecond each, unless somebody waits for the writer
    in_time = len(opened) == 5
    still_there = "work" in [space.name for space in pool.stats().spaces]
    go.set()
    try:
        writer.result()
        published = True
    except SpaceRemoved:
        published = False
    thread.join(WAIT)
    assert in_time, "opening spaces waits for a client that writes a page of a removed space"
    assert still_there == published == (not removed)
    if still_there:
        assert np.array_equal(work[5], stamp(5))
        assert (work[3] == 1).all()
    else:
        with pytest.raises(SpaceRemoved):
            work[5]


def test_kinds_are_named_after_what_they_are():
    assert [kind.name for kind in bp.Kind] == ["FILE", "DERIVED", "SCRATCH", "STORE"]


def _flush_and_die(name, path, n):
    class Dies(bp.FileStore):
        def sync(self):
            os.kill(os.getpid(), signal.SIGKILL)

    with bp.Pool.attach(name) as pool:
        space = pool.open_file(path, "r+")
        fill(space, range(n), version=4)
        for index, (generation, store) in list(pool._stores.items()):
            store.__class__ = Dies
            assert pool._stores[index][0] == generation
        pool.flush()


def test_a_client_killed_in_its_flush_leaves_the_pages_dirty_and_the_next_flush_works(pool, data_file, child):
    path = data_file(10)
    dying = child(_flush_and_die, pool.name, str(path), 10)
    dying.process.join(WAIT)
    assert dying.process.exitcode == -signal.SIGKILL
    assert pool.reap() == 1
    assert pool.stats().frames["dirty"] == 10
    assert pool.frames()["flusher"].sum() == 0
    space = pool.open_file(path, "r+")  # written by the pool itself: not "changed by somebody else"
    assert pool.flush() == 10
    assert path.read_bytes() == b"".join(stamp(n, version=4).tobytes() for n in range(10))
    assert np.array_equal(space[3], stamp(3, version=4))
