"""What the steward writes: every dirty page in time, ahead of demand, and what it says when it cannot."""

import threading
import time

import numpy as np
import pytest

from bufferpool.errors import PoolClosed, PoolExhausted, SegmentCorrupt, StoreError
from bufferpool.figures.names import EventKind, EventReason
from bufferpool.upkeep import working_set
from bufferpool.upkeep.steward import Settings
from tests.conftest import PAGE, wait_until
from tests.support.disks import Disk, dirty
from tests.support.memory_store import Memory
from tests.support.stewards import Fake, by_hand, put, whats


def test_every_dirty_page_is_written_within_flush_every(make_pool, data_file):
    """By a clock of our own: a page that is dirtied at any time is clean 15 seconds later."""
    pool = make_pool(4096 * PAGE)
    table = pool.open_file(data_file(4000), "r+")
    made = by_hand(pool, clean=0.0)
    rng, since, most = np.random.default_rng(2), {}, 0
    for tick in range(200):
        now = tick * 0.25
        for n in rng.integers(0, 4000, 60 if tick < 120 else 0).tolist():
            put(table, n)
            since.setdefault(n, now)
        before = pool.stats().flushed_pages
        made._flush(now)
        most = max(most, pool.stats().flushed_pages - before)
        frames = pool.frames()
        still = set(frames["page_no"][frames["dirty"]].tolist())
        since = {n: at for n, at in since.items() if n in still}
        assert all(now - at <= 15.0 for at in since.values())
    assert not since
    assert most <= 400  # spread, not in bursts: 60 a round are dirtied


def test_an_infinite_flush_every_writes_only_when_clean_frames_get_short(make_pool, data_file):
    pool = make_pool(64 * PAGE)
    table = pool.open_file(data_file(100), "r+")
    made = by_hand(pool, clean=0.25, flush_every=float("inf"))
    for n in range(40):
        put(table, n)
    for tick in range(100):
        made._flush(tick * 10.0)
    assert dirty(pool) == 40
    for n in range(40, 60):
        put(table, n)
    made._flush(1001.0)
    assert 64 - dirty(pool) >= 16


def test_clean_frames_are_ready_before_they_are_needed(make_pool, data_file):
    """A steady writer and misses: nobody has to write pages back himself."""
    pool = make_pool(256 * PAGE)
    table = pool.open_file(data_file(4000), "r+")
    pool.start_steward(Settings(interval=0.05, clean=0.25, pressure=False))
    rng = np.random.default_rng(4)
    for i in range(1500):
        n = int(rng.integers(0, 4000))
        if i % 3 == 0:
            put(table, n)
        else:
            assert table[n].size
        if i % 4 == 0:
            time.sleep(0.002)
    stats = pool.stats()
    assert stats.misses > 500
    assert stats.flushed_pages > 200
    assert stats.foreground_flushes <= 2


def test_rounds_come_sooner_when_clean_frames_run_out(pool):
    made = by_hand(pool, interval=0.5)
    assert made.pause_s() == 0.5
    made.leads, made._demand_per_s, made._ready = True, 1000.0, 100
    assert made.pause_s() == pytest.approx(0.05)
    made._ready = 0
    assert made.pause_s() == 0.005
    made._ready = 10**6
    assert made.pause_s() == 0.5


def test_a_store_that_fails_is_an_event_and_the_others_are_served(pool, data_file):
    disk = Disk(64)
    disk.fails = "write"
    bad, good = pool.open_store("bad", disk, mode="r+"), pool.open_file(data_file(20), "r+")
    for n in range(5):
        put(bad, n)
        put(good, n)
    fake = Fake()
    made = pool.start_steward(Settings(flush_every=0.02, interval=0.01, source=fake))
    wait_until(lambda: dirty(pool) == 5, "the good one is flushed")
    wait_until(lambda: pool.stats().flush_failures >= 2, "it tries again")
    assert made.alive
    assert "no write today" in str(made.trouble)
    failed = [e for e in pool.events() if e.kind is EventKind.FLUSH_FAILED]
    assert len(failed) == 1  # not one a round: the ring has better use
    assert failed[0].reason is EventReason.STORE
    disk.fails = None
    wait_until(lambda: dirty(pool) == 0, "it recovers")
    pool.stop_steward()  # raises nothing


def test_the_log_is_synced_for_pages_that_wait_for_it_and_its_failure_is_an_event(pool, data_file):
    table = pool.open_file(data_file(20), "r+")
    pool.durable_lsn = 5
    put(table, 0, lsn=5)
    put(table, 1, lsn=9)
    works = threading.Event()

    def log_sync(lsn):
        if not works.is_set():
            raise OSError(28, "the log is full")
        return lsn

    pool.log_sync = log_sync
    made = pool.start_steward(Settings(flush_every=0.02, interval=0.01, source=Fake()))
    wait_until(lambda: dirty(pool) == 1, "what may be written is")
    wait_until(lambda: EventReason.LOG in [e.reason for e in pool.events()], "the event")
    assert "the log is full" in str(made.trouble)
    assert made.alive
    works.set()
    wait_until(lambda: dirty(pool) == 0, "the log works again")
    assert pool.durable_lsn == 9
    wait_until(lambda: EventKind.FLUSH_RECOVERED in whats(pool), "the event of the end")
    (end,) = [e for e in pool.events() if e.is_recovery]
    assert str(end) == "flush recovered: the log could be synced"


def test_the_working_set_is_saved_and_a_failure_to_save_is_no_end(pool, data_file, tmp_path):
    table = pool.open_file(data_file(20))
    for n in range(10):
        assert table[n].size
    folder = tmp_path / "later"
    made = pool.start_steward(
        Settings(working_set=folder / "set", working_set_every=0.01, interval=0.01, source=Fake())
    )
    wait_until(lambda: EventKind.SAVE_FAILED in whats(pool), "the event")
    assert made.alive
    folder.mkdir()
    wait_until((folder / "set").exists, "it is saved")
    wait_until(lambda: EventKind.SAVE_RECOVERED in whats(pool), "the event of the end")
    pool.stop_steward()
    (end,) = [e for e in pool.events() if e.is_recovery]
    assert str(end) == "save recovered: the working set was saved"
    assert len(working_set.read_working_set(folder / "set").page) == 10


def dirty_of(pool, space):
    return next(s.dirty for s in pool.stats().spaces if s.name == space.name)


class Ends(BaseException):
    """What foreign code ends a thread with."""


class NoRepr(Exception):
    """An exception whose repr fails."""

    def __repr__(self):
        raise RuntimeError("no repr")

    __str__ = __repr__


RAISED = [
    SystemExit(3),
    KeyboardInterrupt(),
    Ends(),
    PoolClosed("of another pool"),
    SegmentCorrupt("no"),
    NoRepr(),
    MemoryError(),
]


@pytest.mark.parametrize("where", ["write", "sync"])
@pytest.mark.parametrize("raised", RAISED, ids=lambda error: type(error).__name__)
def test_nothing_that_a_store_raises_ends_the_steward_or_stops_the_other_spaces(pool, data_file, where, raised):
    """A store that raised SystemExit, or an error of a pool of its own, ended the steward for good; after one that had no
    memory once, the steward wrote nothing any more."""
    store = Memory(16)
    setattr(store, f"fail_{where}", raised)
    bad, good = pool.open_store("bad", store, mode="r+"), pool.open_file(data_file(16), "r+")
    steward = pool.start_steward(Settings(interval=0.01, flush_every=0.02, pressure=False))
    for n in range(3):  # round after round
        put(bad, n)
        store.calls.clear()
        wait_until(lambda: len(store.calls) > 3, "it tries again")
        put(good, n)
        wait_until(lambda: not dirty_of(pool, good), "the good one is flushed")
    assert steward.alive
    assert dirty_of(pool, bad) == 3
    store.fail_write = store.fail_sync = None
    wait_until(lambda: dirty(pool) == 0, "it recovers")
    pool.stop_steward()  # raises nothing
    assert pool.check() == []


@pytest.mark.parametrize("raised", RAISED[:-1], ids=lambda error: type(error).__name__)
def test_a_miss_elsewhere_does_not_raise_what_a_store_raised(make_pool, data_file, raised):
    """The store of another space is written to make room, in a thread of the pool's."""
    pool = make_pool(16 * PAGE)
    store = Memory(64)
    store.fail_write = raised
    bad, good = pool.open_store("bad", store, mode="r+"), pool.open_file(data_file(64), "r+")
    for n in range(12):
        put(bad, n)
    for n in range(64):
        put(good, n)
    assert dirty_of(pool, bad) == 12
    pool.flush(good)
    kept = good.pin_many(range(4))
    with pytest.raises(PoolExhausted) as found:
        bad.write(20).__enter__()
    assert isinstance(found.value.__cause__, StoreError)
    kept.release()
    assert pool.check() == []
