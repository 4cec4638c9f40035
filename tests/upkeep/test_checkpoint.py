"""The write-ahead rule, and checkpoints: from where recovery must start."""

import random
import threading

import numpy as np
import pytest

from bufferpool.errors import PoolExhausted, StoreError, WaitTimeout, WouldDeadlock
from bufferpool.upkeep import writeback
from tests.conftest import PAGE, WAIT, wait_until
from tests.support.disks import Disk, dirty, put


def test_no_page_above_the_durable_lsn_is_ever_written(pool):
    disk = Disk(16)
    table = pool.open_store("disk", disk, mode="r+")
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
    table = pool.open_store("disk", disk, mode="r+")
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
    table = pool.open_store("disk", disk, mode="r+")
    pool.durable_lsn = 0
    for n in range(4):
        put(table, n, 20 + n)
    pool.log_sync = lambda lsn: 21
    assert pool.checkpoint(up_to_lsn=23) == 22
    assert [disk.version(n) for n in range(4)] == [20, 21, 0, 0]
    pool.log_sync = lambda lsn: pool.advance_durable_lsn(lsn)
    assert pool.checkpoint(up_to_lsn=23) == 24


def test_what_the_hook_raises_is_raised_to_the_caller_and_nothing_is_written(pool, data_file):
    disk = Disk(64)
    table, rest = pool.open_store("disk", disk, mode="r+"), pool.open_file(data_file(200))
    pool.durable_lsn = 0

    def log_sync(lsn):
        raise OSError(28, "the log is full")

    pool.log_sync = log_sync
    for n in range(63):  # the last frame is what a publish needs
        put(table, n, 1)
    assert table[63].size == PAGE
    with pytest.raises(OSError, match="the log is full"):
        pool.checkpoint(up_to_lsn=1)
    held = [table[63]]  # so that no clean page can be evicted
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
    table, rest = pool.open_store("disk", Disk(64), mode="r+"), pool.open_file(data_file(2))
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
    store = pool.open_store("disk", Disk(4), mode="r+")
    put(store, 0, 1)
    with pytest.raises(StoreError, match="open_store"):
        other.flush()
    assert pool.flush() == 1


# ---- checkpoints ---------------------------------------------------------------------------


def test_a_checkpoint_without_a_rule_or_a_limit_takes_what_is_there(pool):
    table = pool.open_store("disk", Disk(8), mode="r+")
    assert pool.checkpoint() == 1
    put(table, 0, 5)
    assert pool.checkpoint() == 6
    put(table, 0, 8)
    assert pool.checkpoint(up_to_lsn=7) == 8  # written now, but 8 and what is beside it was not promised
    assert pool.checkpoint(up_to_lsn=3) == 8  # it never decreases
    assert pool.checkpoint(up_to_lsn=2**64 - 1) == 2**64 - 1


def test_pages_without_an_lsn_take_no_part(pool):
    table = pool.open_store("disk", Disk(8), mode="r+")
    with table.write(0) as page:
        page[:] = 1
    put(table, 1, 4)
    assert pool.checkpoint(up_to_lsn=4) == 5
    assert dirty(pool) == 0


def test_the_oldest_change_holds_a_checkpoint_back_not_the_newest(pool):
    disk = Disk(8)
    table = pool.open_store("disk", disk, mode="r+")
    pool.durable_lsn = 5
    put(table, 0, 3)
    put(table, 0, 9)  # one image, two changes: it cannot be written before 9 is durable
    put(table, 1, 4)
    assert pool.checkpoint(up_to_lsn=9) == 3
    assert disk.version(1) == 4
    pool.durable_lsn = 9
    assert pool.checkpoint(up_to_lsn=9) == 10


def test_the_oldest_change_is_still_known_after_the_lsn_was_set_to_zero(pool):
    table = pool.open_store("disk", Disk(8), mode="r+")
    put(table, 0, 3)
    table._store.fails = "sync"
    with pytest.raises(StoreError):
        pool.flush()
    put(table, 0, 0)
    lowest = pool.client.seg.dirty_range(pool.client.record(table.index)["first_entry"], 8)[2]
    assert lowest == 3
    table._store.fails = None


def test_a_page_that_is_always_being_written_does_not_hold_checkpoints_back_for_ever(pool):
    """A publish during every sync: the page is never clean, and the checkpoint follows all the same."""
    disk = Disk(8)
    table = pool.open_store("disk", disk, mode="r+")
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
    table = pool.open_store("disk", disk, mode="r+")
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
            which = writeback.Selection(pool.durable_lsn, rng.randrange(40), 7)
            table_flushed = writeback.flush_part(pool.client, pool.client.record(table.index), which)
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
    pool.client.stores.clear()  # the fork copied the disk: this process must not write
    rng, turns, table = random.Random(seed), 0, pool.open_file(path)
    while not stop.is_set():
        for _ in range(8):
            table[rng.randrange(len(table))]
        if rng.random() < 0.5:
            pool.client.seg.set_budget(rng.randrange(70, 97))
            pool.client.seg.shrink(rng.randrange(1, 24), 0, True)
        else:
            pool.client.seg.shrink(rng.randrange(1, 24), 4, True)
        turns += 1
    pool.client.seg.set_budget(96)
    return turns


def test_a_checkpoint_waits_for_a_page_that_is_being_written(pool, threads):
    """An engine that wants to remove its old log had to ask again and again, in a loop of its own."""
    disk = Disk(16)
    table = pool.open_store("disk", disk, mode="r+")
    pool.durable_lsn = 5
    put(table, 1, 4)
    put(table, 2, 9)  # above the durable LSN: its page waits for the log
    with pytest.raises(ValueError, match="up_to_lsn="):
        pool.checkpoint(timeout=1)
    assert pool.checkpoint(up_to_lsn=10) == 9
    with pytest.raises(WaitTimeout, match="recovery must start at 9"):
        pool.checkpoint(up_to_lsn=10, timeout=0.05)
    waited = threading.Event()
    pool.log_sync = lambda lsn: waited.set()

    def sync_the_log():
        assert waited.wait(WAIT)
        pool.advance_durable_lsn(10)

    threads.start(sync_the_log)
    assert pool.checkpoint(up_to_lsn=10, timeout=WAIT) == 11
    assert disk.version(2) == 9
    assert pool.checkpoint(up_to_lsn=10, timeout=None) == 11
    assert pool.check() == []


@pytest.mark.parametrize("timeout", [0.0, WAIT], ids=["0.0", "60.0"])
def test_a_checkpoint_within_log_sync_is_refused(pool, data_file, timeout):
    """A checkpoint called the hook, which made a checkpoint, which called the hook: RecursionError. All else that a hook does
    works."""
    table, said = pool.open_file(data_file(64), "r+"), []
    pool.durable_lsn = 0

    def sync(lsn: int) -> int:
        try:
            pool.checkpoint(lsn, timeout=timeout)
        except WouldDeadlock as error:
            said.append(str(error))
        assert pool.flush() == 0
        for page_no in range(40):  # more than the pool has frames: others are evicted
            assert table[page_no].size
        return lsn

    pool.log_sync = sync
    with table.write(1, lsn=7) as page:
        page[:] = 1
    assert pool.checkpoint(7) == 8
    assert said
    assert all("log_sync" in text for text in said)
    assert pool.check() == []
