"""Writing back: the write-ahead rule, checkpoints, failures, and what a kill leaves."""

import os
import random
import signal
import time

import numpy as np
import pytest

import bufferpool as bp
from bufferpool import flush
from bufferpool.errors import PoolExhausted, StoreError
from tests.conftest import PAGE, WAIT, run_python, stamp, wait_until


class Disk:
    """A store whose writes reach the disk with a sync only; each can be made to fail."""

    def __init__(self, n_pages: int) -> None:
        self.cache = np.zeros(n_pages * PAGE, np.uint8)
        self.durable = self.cache.copy()
        self.fails: str | None = None
        self.before_sync = lambda: None

    def read_into(self, offset, buffer):
        buffer[:] = self.cache[offset : offset + buffer.size]
        return buffer.size

    def write_from(self, offset, buffer):
        if self.fails == "write":
            raise OSError(5, "no write today")
        n = buffer.size // 2 if self.fails == "short" else buffer.size
        self.cache[offset : offset + n] = buffer[:n]
        return n

    def sync(self):
        self.before_sync()
        if self.fails == "sync":
            raise OSError(5, "no sync today")
        self.durable[:] = self.cache

    def size(self):
        return self.durable.size

    def version(self, page_no):
        """The LSN in a page that the disk is sure of."""
        return int(self.durable.view(np.uint64)[page_no * PAGE // 8])


def put(space, page_no, lsn):
    """A new version, whose every word is its LSN."""
    write = space.write(page_no, timeout=WAIT)
    write.lsn = lsn
    with write as page:
        page.view(np.uint64)[:] = lsn


def dirty(pool):
    return pool.stats().frames["dirty"]


# ---- flush -------------------------------------------------------------------------------


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
    table = pool.open_store("disk", disk)
    for n in random.Random(1).sample([3, 4, 5, 9, 20, 21, 40], 7):
        put(table, n, 1)
    assert pool.flush() == 7
    assert writes == [(3, 3), (9, 1), (20, 2), (40, 1)]


@pytest.mark.parametrize("how", ["write", "short", "sync"])
def test_a_failed_flush_leaves_every_page_dirty_and_the_next_writes_them_all_again(pool, how):
    disk = Disk(16)
    table, other = pool.open_store("disk", disk), pool.open_store("other", Disk(16))
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


def test_a_flush_misses_no_page_while_others_load_and_compact(make_pool, child, spawn, data_file):
    """What was dirty before flush() is in the file after it, whatever moves pages meanwhile."""
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
        pool.trim(bytes=64 * PAGE)
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
    """Between the look at a space and the flush of it, the space goes, and another gets its entries."""
    old, new = data_file(16), data_file(16)
    table = pool.open_file(old, "r+")
    put(table, 3, 1)
    record = pool._record(table.index)
    table.remove(discard=True)
    other = pool.open_file(new, "r+")
    assert pool._record(other.index)["first_entry"] == record["first_entry"]
    put(other, 3, 2)
    before = old.read_bytes()
    store = flush.file_store(str(old), "r+", PAGE, False)
    monkeypatch.setattr(flush, "store_of", lambda pool, record: store)
    assert flush.flush_part(pool, record, 2**64 - 1, 0, 100).written == 0
    assert old.read_bytes() == before
    assert dirty(pool) == 1
    monkeypatch.undo()
    assert pool.flush() == 1
    assert np.fromfile(new, np.uint64)[3 * PAGE // 8] == 2


def test_a_batch_whose_pages_went_clean_meanwhile_is_not_the_end_of_the_space(pool):
    """flush_part goes on after the last candidate, whether or not all could be had."""
    table = pool.open_store("disk", Disk(64))
    for n in range(32):
        put(table, n, 1)
    record, first, written, parts = pool._record(table.index), 0, 0, 0
    while True:
        part = flush.flush_part(pool, record, 2**64 - 1, first, 5)
        written, first, parts = written + part.written, part.next_page, parts + 1
        if parts == 1:  # somebody else has been faster with the next ones
            assert flush.flush_part(pool, record, 2**64 - 1, 5, 5).next_page == 10
        if not first:
            break
    assert written == 27
    assert dirty(pool) == 0


# ---- the write-ahead rule ------------------------------------------------------------------


def test_no_page_above_the_durable_lsn_is_ever_written(pool):
    disk = Disk(16)
    table = pool.open_store("disk", disk)
    pool.durable_lsn = 10
    put(table, 0, 10)
    put(table, 1, 11)
    assert pool.flush() == 1
    assert [disk.version(n) for n in (0, 1)] == [10, 0]
    pool.advance_durable_lsn(9)  # comes late
    assert pool.durable_lsn == 10
    pool.advance_durable_lsn(11)
    assert pool.flush() == 1
    assert disk.version(1) == 11


def test_advance_from_no_rule_keeps_no_rule(pool):
    assert pool.durable_lsn == 2**64 - 1
    pool.advance_durable_lsn(5)
    assert pool.durable_lsn == 2**64 - 1


def test_a_checkpoint_asks_for_the_log_first(pool):
    disk, asked = Disk(16), []
    table = pool.open_store("disk", disk)
    pool.durable_lsn = 0

    def log_sync(lsn):
        asked.append(lsn)
        assert all(disk.version(n) == 0 for n in range(4))  # the log before the pages
        return lsn

    pool.log_sync = log_sync
    for n in range(4):
        put(table, n, 20 + n)
    assert pool.checkpoint(up_to_lsn=23) == 24
    assert asked == [23]
    assert pool.durable_lsn == 23
    assert [disk.version(n) for n in range(4)] == [20, 21, 22, 23]
    assert pool.checkpoint(up_to_lsn=23) == 24
    assert asked == [23]  # nothing waits: nobody is asked
    assert pool.stats().checkpoints == 2


def test_a_hook_that_sets_the_durable_lsn_itself_or_gets_less_far(pool):
    disk = Disk(16)
    table = pool.open_store("disk", disk)
    pool.durable_lsn = 0
    for n in range(4):
        put(table, n, 20 + n)
    pool.log_sync = lambda lsn: 21
    assert pool.checkpoint(up_to_lsn=23) == 22
    assert [disk.version(n) for n in range(4)] == [20, 21, 0, 0]
    pool.log_sync = lambda lsn: pool.advance_durable_lsn(lsn)
    assert pool.checkpoint(up_to_lsn=23) == 24


def test_what_the_hook_raises_goes_to_whoever_asked_and_nothing_is_written(pool, data_file):
    disk = Disk(64)
    table, rest = pool.open_store("disk", disk), pool.open_file(data_file(200))
    pool.durable_lsn = 0

    def log_sync(lsn):
        raise OSError(28, "the log is full")

    pool.log_sync = log_sync
    for n in range(63):  # the last frame is what a publish needs
        put(table, n, 1)
    assert table[63].size == PAGE
    with pytest.raises(OSError, match="the log is full"):
        pool.checkpoint(up_to_lsn=1)
    held = [table[63]]  # so that no clean page can go
    with pytest.raises(OSError, match="the log is full"):
        rest[0]
    assert dirty(pool) == 63
    assert all(disk.version(n) == 0 for n in range(63))
    pool.log_sync = lambda lsn: lsn
    assert rest[0].size == PAGE  # the miss that finds only held-back pages gets the log synced
    assert disk.version(0) == 1
    assert pool.stats().foreground_flushes > 0
    del held


def test_without_a_hook_a_miss_says_that_the_pages_wait_for_the_log(pool, data_file):
    table, rest = pool.open_store("disk", Disk(64)), pool.open_file(data_file(2))
    pool.durable_lsn = 0
    for n in range(63):
        put(table, n, 1)
    held = [table[63]]
    with pytest.raises(PoolExhausted, match="63 of them above durable_lsn"):
        rest[0]
    del held
    pool.durable_lsn = 1


def test_the_hook_of_one_process_serves_pages_of_all(pool, data_file, child):
    table = pool.open_file(data_file(8), "r+")
    pool.durable_lsn = 0
    child(_put_some, table, 7, context="fork").result()
    asked = []
    pool.log_sync = lambda lsn: asked.append(lsn) or lsn
    assert pool.checkpoint(up_to_lsn=7) == 8
    assert asked == [7]
    assert np.fromfile(table._store.path, np.uint64)[0] == 7


def _put_some(table, lsn):
    for n in range(4):
        put(table, n, lsn)


def test_the_flusher_of_a_file_need_not_have_opened_it(pool, attach, data_file):
    table = pool.open_file(data_file(8), "r+")
    put(table, 2, 9)
    other = attach(pool)
    assert other.flush() == 1
    assert np.fromfile(table._store.path, np.uint64)[2 * PAGE // 8] == 9
    store = pool.open_store("disk", Disk(4))
    put(store, 0, 1)
    with pytest.raises(StoreError, match="open_store"):
        other.flush()
    assert pool.flush() == 1


# ---- checkpoints ---------------------------------------------------------------------------


def test_a_checkpoint_without_a_rule_or_a_limit_takes_what_is_there(pool):
    table = pool.open_store("disk", Disk(8))
    assert pool.checkpoint() == 1
    put(table, 0, 5)
    assert pool.checkpoint() == 6
    put(table, 0, 8)
    assert pool.checkpoint(up_to_lsn=7) == 8  # written now, but 8 and what is beside it was not promised
    assert pool.checkpoint(up_to_lsn=3) == 8  # never goes back
    assert pool.checkpoint(up_to_lsn=2**64 - 1) == 2**64 - 1


def test_pages_without_an_lsn_take_no_part(pool):
    table = pool.open_store("disk", Disk(8))
    with table.write(0) as page:
        page[:] = 1
    put(table, 1, 4)
    assert pool.checkpoint(up_to_lsn=4) == 5
    assert dirty(pool) == 0


def test_the_oldest_change_holds_a_checkpoint_back_not_the_newest(pool):
    disk = Disk(8)
    table = pool.open_store("disk", disk)
    pool.durable_lsn = 5
    put(table, 0, 3)
    put(table, 0, 9)  # one image, two changes: it cannot be written before 9 is durable
    put(table, 1, 4)
    assert pool.checkpoint(up_to_lsn=9) == 3
    assert disk.version(1) == 4
    pool.durable_lsn = 9
    assert pool.checkpoint(up_to_lsn=9) == 10


def test_the_oldest_change_is_still_known_after_the_lsn_was_set_to_zero(pool):
    table = pool.open_store("disk", Disk(8))
    put(table, 0, 3)
    table._store.fails = "sync"
    with pytest.raises(StoreError):
        pool.flush()
    put(table, 0, 0)
    lowest = pool._seg.dirty_range(pool._record(table.index)["first_entry"], 8)[2]
    assert lowest == 3
    table._store.fails = None


def test_a_page_that_is_always_being_written_does_not_hold_checkpoints_back_for_ever(pool):
    """A publish during every sync: the page is never clean, and the checkpoint follows all the same."""
    disk = Disk(8)
    table = pool.open_store("disk", disk)
    lsn = 100
    put(table, 0, lsn)

    def again():
        nonlocal lsn
        lsn += 1
        put(table, 0, lsn)

    disk.before_sync = again
    for _ in range(5):
        before = lsn
        result = pool.checkpoint(up_to_lsn=lsn)
        assert dirty(pool) == 1
        assert disk.version(0) == before
        assert before <= result <= before + 1
    disk.before_sync = lambda: None
    assert pool.checkpoint(up_to_lsn=lsn) == lsn + 1


@pytest.mark.parametrize("seed", range(3))
def test_every_change_below_the_checkpoint_is_in_the_store(make_pool, child, spawn, seed, tmp_path):
    """A model: publishes with LSNs, failures and held-back pages, while another process compacts and resizes."""
    pool, rng = make_pool(96 * PAGE), random.Random(seed)
    disk = Disk(128)
    table = pool.open_store("disk", disk)
    filler = tmp_path / "filler"
    filler.write_bytes(bytes(400 * PAGE))
    stop = spawn.Event()
    other = child(_resize_and_trim, pool, str(filler), stop, seed, context="fork")
    wait_until(lambda: pool.stats().compacted_pages > 0, "pages are moved")
    pool.durable_lsn = 0
    pool.log_sync = lambda lsn: lsn - rng.randrange(3)
    changes: list[tuple[int, int]] = []  # LSN, page
    lsn, last, failed = 0, 0, 0
    for step in range(1500):
        lsn += 1
        page_no = rng.randrange(40)
        put(table, page_no, lsn)
        changes.append((lsn, page_no))
        if rng.random() < 0.1:
            pool.advance_durable_lsn(max(0, lsn - rng.randrange(20)))
        if rng.random() < 0.05:
            table_flushed = flush.flush_part(pool, pool._record(table.index), pool.durable_lsn, rng.randrange(40), 7)
            assert table_flushed.written <= 7
        if rng.random() < 0.06:
            disk.fails = rng.choice(["sync", "write", "short", None, None, None])
            try:
                result = pool.checkpoint(up_to_lsn=lsn)
            except StoreError:
                failed += 1
                result = pool.stats().checkpoint_lsn
            finally:
                disk.fails = None
            assert last <= result <= lsn + 1
            last = result
            # Recovery: what the disk is sure of, and the log from `result` on.
            for change, where in changes:
                assert change >= result or disk.version(where) >= change, f"step {step}: {change} is lost"
    stop.set()
    assert other.result() > 0
    assert failed > 0
    assert last > 0
    assert pool.stats().compacted_pages > 0
    pool.log_sync = None
    pool.durable_lsn = lsn
    assert pool.checkpoint(up_to_lsn=lsn) == lsn + 1


def _resize_and_trim(pool, path, stop, seed):
    pool._stores.clear()  # the fork copied the disk: this process must not write
    rng, turns, table = random.Random(seed), 0, pool.open_file(path)
    while not stop.is_set():
        for _ in range(8):
            table[rng.randrange(len(table))]
        if rng.random() < 0.5:
            pool._seg.set_budget(rng.randrange(70, 97))
            pool._seg.shrink(rng.randrange(1, 24), 0, True)
        else:
            pool._seg.shrink(rng.randrange(1, 24), 4, True)
        turns += 1
    pool._seg.set_budget(96)
    return turns


# ---- killed ----------------------------------------------------------------------------------

_KILLED = """
import os, signal, sys
import numpy as np, bufferpool as bp
from bufferpool.store import FileStore
name, path, where, at = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
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
                os.pwrite(self.fd, np.concatenate(args[1])[: len(args[1]) * 2048 + 100], args[0])
            os.kill(os.getpid(), signal.SIGKILL)
        return real(self, *args)
    setattr(FileStore, method, call)
wrap(where)
for n in range(0, 30):
    w = table.write(n); w.lsn = 200 + n
    with w as page: page.view(np.uint64)[:] = 200 + n
pool.checkpoint(up_to_lsn=300)
"""


@pytest.mark.parametrize(("where", "at"), [("write_pages", 1), ("write_pages", 2), ("sync", 1), ("identity", 1)])
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
    bp.store.FileStore.sync = lambda self: (began.set(), time.sleep(600))
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


def test_stamped_pages_reach_the_file_byte_for_byte(pool, data_file):
    table = pool.open_file(data_file(12), "r+")
    for n in range(12):
        with table.write(n) as page:
            page[:] = stamp(n, version=3)
    pool.flush()
    assert np.array_equal(
        np.fromfile(table._store.path, np.uint8), np.concatenate([stamp(n, version=3) for n in range(12)])
    )
