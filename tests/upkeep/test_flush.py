"""Writing back: what is written, when it fails, and what a kill leaves."""

import errno
import os
import pickle
import random
import resource
import signal
import sys
import time

import numpy as np
import pytest

import bufferpool as bp
from bufferpool.errors import SpaceRemoved, StoreError, WouldDeadlock, WrongProcess
from bufferpool.upkeep import writeback
from tests.conftest import PAGE, WAIT, stamp, wait_until
from tests.support.children import run_python
from tests.support.disks import Disk, dirty, put
from tests.support.memory_store import Memory


def test_flushing_a_space_that_was_removed_says_so_and_writes_no_other(pool, attach):
    """The slot of a removed space was another's by then, whose pages were flushed, or whose store was missed."""
    old = pool.open_store("old", Memory(4), mode="r+")
    attach(pool).space("old").remove(discard=True)
    store = Memory(4)
    new = pool.open_store("new", store, mode="r+")
    assert new.index == old.index
    with new.write(1) as page:
        page[:] = stamp(1, version=1)
    for use in (old.flush, lambda: pool.flush(old), old.remove):
        with pytest.raises(SpaceRemoved):
            use()
    assert not store.written
    assert new.flush() == 1


def test_flushing_an_unpickled_space_flushes_it(pool, data_file):
    """A handle that had come from another process and was used for nothing else flushed nothing, and said 0."""
    table = pool.open_file(data_file(4), "r+")
    with table.write(1) as page:
        page[:] = stamp(1, version=1)
    assert pickle.loads(pickle.dumps(table)).flush() == 1


def test_flush_writes_one_space_or_all_and_says_how_many(pool, data_file):
    one, two = (pool.open_file(data_file(10), "r+") for _ in range(2))
    for n in range(4):
        put(one, n, 1)
        put(two, n, 1)
    put(one, 0, 2)
    assert pool.flush(one) == 4
    assert dirty(pool) == 4
    assert pool.flush() == 4
    assert dirty(pool) == 0
    assert pool.flush() == 0
    assert np.fromfile(one._store.path, np.uint64)[0] == 2
    stats = pool.stats()
    assert (stats.flushes, stats.flushed_pages, stats.foreground_flushes, stats.flush_failures) == (2, 8, 0, 0)
    assert sum(stats.latencies["flush"].counts) == 2
    assert stats.latencies["flush"].sum_s > 0


def test_flush_up_to_an_lsn_leaves_what_is_above_it(pool, data_file):
    table = pool.open_file(data_file(10), "r+")
    for n in range(6):
        put(table, n, 10 + n)
    assert pool.flush(up_to_lsn=12) == 3
    on_disk = np.fromfile(table._store.path, np.uint64)[:: PAGE // 8]
    assert on_disk[:3].tolist() == [10, 11, 12]
    assert not np.isin(on_disk[3:6], [13, 14, 15]).any()
    assert pool.flush(table, up_to_lsn=13) == 1
    assert dirty(pool) == 2
    pool.durable_lsn = 14  # and the smaller of the two counts
    assert pool.flush(up_to_lsn=100) == 1
    assert dirty(pool) == 1
    for bad in (-1, 2**64):
        with pytest.raises(ValueError, match="LSN"):
            pool.flush(up_to_lsn=bad)
    with pytest.raises(TypeError):
        pool.flush(up_to_lsn=1.5)
    pool.durable_lsn = 15
    assert pool.flush() == 1


def test_neighbours_are_written_together_in_file_order(pool):
    disk, writes = Disk(64), []
    original = disk.write_from
    disk.write_from = lambda offset, buffer: (
        writes.append((offset // PAGE, buffer.size // PAGE)),
        original(offset, buffer),
    )[1]
    table = pool.open_store("disk", disk, mode="r+")
    for n in random.Random(1).sample([3, 4, 5, 9, 20, 21, 40], 7):
        put(table, n, 1)
    assert pool.flush() == 7
    assert writes == [(3, 3), (9, 1), (20, 2), (40, 1)]


@pytest.mark.parametrize("how", ["write", "short", "sync"])
def test_a_failed_flush_leaves_every_page_dirty_and_the_next_writes_them_all_again(pool, how):
    disk = Disk(16)
    table, other = pool.open_store("disk", disk, mode="r+"), pool.open_store("other", Disk(16), mode="r+")
    for n in range(8):
        put(table, n, 5)
        put(other, n, 5)
    disk.fails = how
    with pytest.raises(StoreError):
        pool.flush()
    assert dirty(pool) == 8  # the other space was flushed all the same
    assert pool.stats().flush_failures == 1
    assert all(disk.version(n) == 0 for n in range(8))
    with pytest.raises(StoreError):
        pool.checkpoint(up_to_lsn=5)
    assert pool.stats().checkpoint_lsn == 0
    assert [int(table[n].view(np.uint64)[0]) for n in range(8)] == [5] * 8
    disk.fails = None
    disk.cache[:] = 0xFF  # after a failed fsync nobody knows what the kernel has: it must be written again
    assert pool.flush() == 8
    assert all(disk.version(n) == 5 for n in range(8))
    assert pool.checkpoint(up_to_lsn=5) == 6


def test_what_a_call_for_many_did_not_write_is_written_once_more_for_the_reason(pool, data_file):
    """The core writes the pages of a file several runs at a time; a file that takes no more has taken some of them."""
    path = data_file(4)
    table = pool.open_file(path, "r+")
    for n in range(60):
        with table.append() as page:
            page[:] = stamp(4 + n)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    was = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20 * PAGE, limit[1]))
        with pytest.raises(StoreError) as failed:
            pool.flush()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, was)
    assert failed.value.errno == errno.EFBIG
    assert dirty(pool) == 60
    assert pool.flush() == 60
    assert np.array_equal(np.fromfile(path, np.uint8), np.concatenate([stamp(n) for n in range(64)]))


def test_a_flush_misses_no_page_while_others_load_and_compact(make_pool, child, spawn, data_file):
    """What was dirty before flush() is in the file after it, even if pages are moved meanwhile."""
    pool = make_pool(256 * PAGE)
    table = pool.open_file(data_file(600), "r+")
    stop = spawn.Event()
    others = [child(f, pool, table, stop, context="fork") for f in (_move_pages, _read_pages)]
    before = pool.stats().compacted_pages
    wait_until(lambda: pool.stats().compacted_pages > before, "pages are moved")
    for lsn in range(1, 80):
        for n in range(0, 120, 3):
            put(table, n, lsn)
        pool.flush()
        on_disk = np.fromfile(table._store.path, np.uint64)[:: PAGE // 8][0:120:3]
        assert (on_disk == lsn).all(), f"round {lsn}: {np.flatnonzero(on_disk != lsn) * 3} were missed"
    stop.set()
    assert [other.result() > 0 for other in others] == [True, True]
    assert pool.stats().compacted_pages > before


def _move_pages(pool, table, stop):
    turns = 0
    while not stop.is_set():
        pool.trim(64 * PAGE)
        turns += 1
    return turns


def _read_pages(pool, table, stop):
    turns, numbers = 0, np.random.default_rng(3)
    while not stop.is_set():
        for n in numbers.integers(0, 600, 64):
            table[int(n)]
        turns += 1
    return turns


def test_a_flush_that_comes_late_does_not_write_another_spaces_pages(pool, data_file, monkeypatch):
    """Between the look at a space and its flush, the space is removed, and another one gets its entries."""
    old, new = data_file(16), data_file(16)
    table = pool.open_file(old, "r+")
    put(table, 3, 1)
    record = pool.client.record(table.index)
    table.remove(discard=True)
    other = pool.open_file(new, "r+")
    assert pool.client.record(other.index)["first_entry"] == record["first_entry"]
    put(other, 3, 2)
    before = old.read_bytes()
    store = writeback.file_store(str(old), "r+", PAGE, False)
    monkeypatch.setattr(writeback, "store_of", lambda pool, record: store)
    assert writeback.flush_part(pool.client, record, writeback.Selection(2**64 - 1)).written == 0
    assert old.read_bytes() == before
    assert dirty(pool) == 1
    monkeypatch.undo()
    assert pool.flush() == 1
    assert np.fromfile(new, np.uint64)[3 * PAGE // 8] == 2


def core_calls(work) -> list[str]:
    """The names of the core's functions that ``work()`` calls from Python, on this thread."""
    calls = []

    def note(frame, event, called):
        if event == "c_call" and type(getattr(called, "__self__", None)).__module__ == "bufferpool._core":
            calls.append(called.__name__)

    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(None)
    return calls


def test_a_flush_of_a_page_calls_the_core_three_times(pool, data_file):
    """A flush took eight calls: for the lock, the pages, the record, the dirty pages, twice for the file, and for the end."""
    table = pool.open_file(data_file(16), "r+")
    put(table, 3, 1)
    table.flush()  # the first one compares pages with a file whose times are fresh
    put(table, 4, 1)
    record = pool.client.record(table.index)
    calls = core_calls(lambda: writeback.flush_part(pool.client, record, writeback.Selection(2**64 - 1)))
    assert calls == ["begin_flush", "mark_open", "end"]
    assert dirty(pool) == 0
    put(table, 3, 2)
    calls = core_calls(table.flush)
    assert len(calls) <= 7, calls  # three of them look up what there is, and one the name of the pool
    assert dirty(pool) == 0
    assert pool.check() == []


def test_the_durable_lsn_and_the_budget_are_one_call_of_the_core(pool):
    """Each of these figures was read from a survey of the whole pool, which took 20 to 35 microseconds."""
    assert core_calls(lambda: pool.durable_lsn) == ["durable_lsn"]
    assert core_calls(lambda: pool.budget_frames) == ["budget_frames"]


def test_an_ended_batch_holds_no_lock_and_does_nothing_more(pool):
    """One object holds the lock of a space and the pages that are written, and releases all of them once."""
    table = pool.open_store("disk", Disk(8), mode="r+")
    put(table, 3, 1)
    record = pool.client.record(table.index)
    seg, key = pool.client.seg, (record["index"], record["generation"])
    everything = writeback.Selection(2**64 - 1)
    batch = seg.begin_flush(*key, everything, True)
    with pytest.raises(WouldDeadlock):
        seg.begin_flush(*key, everything, True)
    assert len(batch.items) == 8
    batch.end(False, None)
    with pytest.raises(WrongProcess):
        batch.end(True, None)
    with pytest.raises(WrongProcess):
        batch.mark_open()
    assert dirty(pool) == 1
    assert seg.begin_flush(key[0], key[1] + 1, everything, True) is None, "another generation"
    del batch
    dropped = seg.begin_flush(*key, everything, True)
    assert dropped is not None
    del dropped  # as an exception between two bytecodes does
    with seg.lock_flush(key[0]) as held:
        with pytest.raises(WouldDeadlock):
            seg.begin_flush(*key, everything, False)
        inner = held.begin_flush(key[1], everything)
        inner.end(True, (4, None))
    assert dirty(pool) == 0
    with seg.lock_directory(WAIT) as held, pytest.raises(ValueError, match="flush lock"):
        held.begin_flush(key[1], everything)
    assert pool.check() == []


def test_a_batch_whose_pages_went_clean_meanwhile_is_not_the_end_of_the_space(pool):
    """flush_part continues after the last candidate, even if some could not be taken."""
    table = pool.open_store("disk", Disk(64), mode="r+")
    for n in range(32):
        put(table, n, 1)
    record, first, written, parts = pool.client.record(table.index), 0, 0, 0
    while True:
        part = writeback.flush_part(pool.client, record, writeback.Selection(2**64 - 1, first, 5))
        written, first, parts = written + part.written, part.next_page, parts + 1
        if parts == 1:  # another client has flushed the next ones
            assert writeback.flush_part(pool.client, record, writeback.Selection(2**64 - 1, 5, 5)).next_page == 10
        if not first:
            break
    assert written == 27
    assert dirty(pool) == 0


def test_stamped_pages_reach_the_file_byte_for_byte(pool, data_file):
    table = pool.open_file(data_file(12), "r+")
    for n in range(12):
        with table.write(n) as page:
            page[:] = stamp(n, version=3)
    pool.flush()
    assert np.array_equal(
        np.fromfile(table._store.path, np.uint8), np.concatenate([stamp(n, version=3) for n in range(12)])
    )


# ---- killed ----------------------------------------------------------------------------------

_KILLED = """
import os, signal, sys
import numpy as np, bufferpool as bp
from bufferpool.stores import base
from bufferpool.stores.base import FileStore
name, path, where, at = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
if where == "write_pages":
    base.MANY_PAGES = 1 << 30  # else the core writes them
pool = bp.Pool.attach(name)
table = pool.open_file(path, "r+")
calls = 0
def wrap(method):
    real = getattr(FileStore, method)
    def call(self, *args):
        global calls
        calls += 1
        if calls == at:
            if method == "write_pages":  # half of it: a torn write
                fd = os.open(self.path, os.O_WRONLY)  # self.fd may have O_DIRECT
                os.pwrite(fd, np.concatenate(args[1])[: len(args[1]) * 2048 + 100], args[0])
            if method == "write_batch":  # some of its runs, in any order
                args[0].write_to(self.fd)
                os.pwrite(os.open(self.path, os.O_WRONLY), bytes(100), int(args[1][3]) * args[2] + 500)
            os.kill(os.getpid(), signal.SIGKILL)
        return real(self, *args)
    setattr(FileStore, method, call)
wrap(where)
for n in range(0, 30):
    w = table.write(n); w.lsn = 200 + n
    with w as page: page.view(np.uint64)[:] = 200 + n
pool.checkpoint(up_to_lsn=300)
"""


@pytest.mark.parametrize(
    ("where", "at"), [("write_pages", 1), ("write_pages", 2), ("write_batch", 1), ("sync", 1), ("state", 2)]
)
def test_killed_in_the_middle_of_a_checkpoint_the_next_one_is_right(pool, data_file, where, at):
    path = data_file(40)
    table = pool.open_file(path, "r+")
    put(table, 35, 150)  # two runs: two writes
    done = run_python(_KILLED, pool.name, str(path), where, str(at))
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert pool.stats().checkpoint_lsn == 0
    # Nobody has reaped the dead one: the flush itself must not pass its pages over.
    assert pool.checkpoint(up_to_lsn=300) == 301
    assert dirty(pool) == 0
    on_disk = np.fromfile(path, np.uint64)[:: PAGE // 8]
    assert on_disk[:30].tolist() == list(range(200, 230))
    assert on_disk[35] == 150
    for n in (5, 35):
        assert np.array_equal(np.fromfile(path, np.uint8)[n * PAGE :][:PAGE], table[n])


def test_a_flush_that_comes_late_misses_no_store_of_a_removed_space(pool, attach, tmp_path):
    """Between the look at a space and its flush, the space is removed, and another one gets its entries: the dirty pages of
    that one were taken for the first one's, whose store nobody has here any more, or whose file is gone."""
    file = tmp_path / "gone.db"
    for make in (lambda: pool.open_store("old", Memory(4), mode="r+"), lambda: pool.open_file(file, "r+")):
        file.write_bytes(bytes(4 * PAGE))
        space = make()
        record = pool.client.record(space.index)
        space.remove(discard=True)
        file.unlink(missing_ok=True)
        other = attach(pool).open_store("new", Memory(4), max_pages=record["max_pages"], mode="r+")
        put(other, 1, 1)
        assert pool.client.record(other.index)["first_entry"] == record["first_entry"]
        assert writeback.flush_space(pool.client, record, 2**64 - 1) == 0
        assert dirty(pool) == 1
        with pytest.raises(StoreError, match="open_store"):  # of one that is there it is said
            writeback.flush_space(pool.client, pool.client.record(other.index), 2**64 - 1)
        other.remove(discard=True)


def test_a_flusher_that_is_stopped_is_waited_for_and_one_that_is_killed_is_not(pool, child, spawn, data_file):
    table = pool.open_file(data_file(8), "r+")
    put(table, 1, 5)
    began = spawn.Event()
    victim = child(_hang_in_sync, pool, table, began, context="fork")
    assert began.wait(WAIT)
    assert int(pool.frames()["flusher"].max()) > 0
    os.kill(victim.pid, signal.SIGSTOP)
    os.kill(victim.pid, signal.SIGKILL)
    wait_until(lambda: pool.flush() == 1 or dirty(pool) == 0, "the page is flushed")
    assert np.fromfile(table._store.path, np.uint64)[PAGE // 8] == 5


def _hang_in_sync(pool, table, began):
    bp.stores.base.FileStore.sync = lambda self: (began.set(), time.sleep(600))
    len(table)
    pool.flush()


def test_what_a_flush_extended_and_did_not_finish_can_be_opened_again(pool, tmp_path):
    path = tmp_path / "grown"
    path.write_bytes(bytes(4 * PAGE))
    table = pool.open_file(path, "r+")
    for _ in range(8):
        with table.append() as page:
            page[:] = 7
    code = _KILLED.replace("for n in range(0, 30):", "for n in range(0):")
    done = run_python(code, pool.name, str(path), "write_pages", "1")
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert path.stat().st_size % PAGE  # torn
    again = pool.open_file(path, "r+")
    assert pool.flush() == 8
    assert path.stat().st_size == 12 * PAGE
    assert np.array_equal(again[11], np.full(PAGE, 7, np.uint8))
    assert np.array_equal(np.fromfile(path, np.uint8)[4 * PAGE :], np.full(8 * PAGE, 7, np.uint8))
