"""Failures are counted once, and are events: references of scans, frames that were not there, stores that fail."""

import errno
import gc
import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from bufferpool.client import trouble
from bufferpool.errors import PageCorrupt, PoolExhausted, ShortRead, StoreError
from bufferpool.figures.events import unread_pages
from bufferpool.figures.names import EventKind, EventReason
from bufferpool.upkeep import memory
from bufferpool.upkeep.steward import Settings
from tests.conftest import PAGE, WAIT, fill, stamp, touch, wait_until
from tests.support.memory_store import Memory


def counts(pool):
    stats = pool.stats()
    return stats.hits, stats.misses, stats.loads


# ---- references ---------------------------------------------------------------------


def test_a_scan_that_loads_every_page_has_no_hits(make_pool, data_file):
    """Each page of a scan is loaded by the scan's own reading ahead; that was no load, and its use a hit: a ratio of 1.0."""
    pool = make_pool(64 * PAGE)
    table = pool.open_file(data_file(400))
    for rounds in range(1, 4):
        for n, page in enumerate(table.scan()):
            assert np.array_equal(page, stamp(n))
        assert counts(pool) == (0, 400 * rounds, 400 * rounds)
    assert pool.stats().hit_ratio == 0
    assert pool.check() == []


@pytest.mark.parametrize("read", ["index", "once", "pin_many", "read_many", "write"])
def test_what_was_read_ahead_is_a_miss_once(make_pool, data_file, read):
    pool = make_pool(64 * PAGE)
    table = pool.open_file(data_file(100), "r+")

    def use():
        if read == "index":
            touch(table, range(10))
        elif read == "once":
            for _ in table.scan(0, 10):
                pass
        elif read == "pin_many":
            with table.pin_many(range(10)):
                pass
        elif read == "read_many":
            table.read_many(range(10))
        else:
            fill(table, range(10))

    assert table.prefetch(range(10)) == 10
    assert counts(pool) == (0, 0, 10)
    use()
    assert counts(pool) == (0, 10, 10)
    use()
    assert counts(pool) == (10, 10, 10)


def test_the_advice_follows_the_same_rule(make_pool, data_file):
    """The shadows saw each page of a scan twice, and said that a pool of an eighth of the size has a hit ratio of 1.0."""
    pool = make_pool(128 * PAGE)
    table = pool.open_file(data_file(1000))
    for _ in range(20):
        for _page in table.scan():
            pass
    points = pool.advise().points
    assert points
    assert all(p.hit_ratio < 0.1 for p in points if p.budget_frames < 800)


# ---- one failure, one count ------------------------------------------------------------


def test_a_frame_that_is_not_there_is_one_failure_and_one_wait(make_pool, data_file):
    """Each of the thirty tries in half a second was counted, and no histogram had any of them."""
    pool = make_pool(16 * PAGE)
    table = pool.open_file(data_file(100), "r+")
    kept = [table[n] for n in range(16)]
    for n in range(1, 3):
        with pytest.raises(PoolExhausted):
            table[50]
        with pytest.raises(PoolExhausted), table.write(0) as page:
            page[:] = 1
        stats = pool.stats()
        assert (stats.load_failures, stats.wait_frame) == (n, 2 * n)
        waits = stats.wait_load + stats.wait_writer + stats.wait_memory + stats.wait_frame
        assert sum(stats.latencies["wait"].counts) == waits
        assert stats.latencies["wait"].sum_s > 0.5
    del kept
    assert np.array_equal(table[50], stamp(50))


@pytest.mark.parametrize("which", ["frame", "resize"])
def test_a_flush_that_fails_again_and_again_for_one_caller_is_one_failure(make_pool, monkeypatch, which):
    """Each of the sixty tries in half a second was counted: a full disk counted thousands of failures in a few minutes."""
    monkeypatch.setattr(
        memory, "SAME_WANT_S", 60.0
    )  # a machine under load may stop a thread for longer between two tries
    pool = make_pool(16 * PAGE)
    store = Memory(20)
    table = pool.open_store("orders", store, mode="r+")
    store.fail_write = OSError(errno.ENOSPC, "no space")
    for n in range(8):
        with table.write(n) as page:
            page[:] = n
    kept = [table[n] for n in range(8, 16)]
    for n in range(1, 3):
        if which == "frame":
            with pytest.raises(PoolExhausted, match="the disk is full"):
                table[18]
        else:
            with pytest.raises(StoreError, match="the disk is full"):
                pool.resize(4 * PAGE, timeout=2.0)
        stats = pool.stats()
        assert sum(call[0] == "write" for call in store.calls) > n
        assert stats.flush_failures == n
        assert stats.spaces[0].flush_failures["full"] == n
    store.fail_write = None
    del kept
    assert table.flush() == 8


# ---- stores that fail ------------------------------------------------------------------


def _last(pool, what):
    return [e for e in pool.events() if e.kind is what][-1]


def test_a_store_that_cannot_be_read_is_reported_with_its_place(pool, caplog):
    """EIO reached no event, no log line and no alert: only the caller knew."""
    store = Memory(20)
    store.fail_read = OSError(errno.EIO, "bad sector")
    table = pool.open_store("orders", store, mode="r+")
    with caplog.at_level(logging.WARNING, "bufferpool"):
        for n in range(5, 10):
            with pytest.raises(StoreError, match="bad sector"):
                table[n]
    event = _last(pool, EventKind.LOAD_FAILED)
    assert (event.reason, event.space, event.page_no, event.errno) == (EventReason.STORE, "orders", 5, errno.EIO)
    assert str(event) == "load failed: the store failed, EIO (space 'orders', page 5)"
    lines = [r.getMessage() for r in caplog.records if r.name == "bufferpool"]
    assert len(lines) == 1  # a disk that fails does so for each page
    for word in (pool.name, "'orders'", "page 5", "EIO", "bad sector"):
        assert word in lines[0]
    assert pool.stats().load_failures == 5
    table.remove()
    assert _last(pool, EventKind.LOAD_FAILED).space is None  # the slot may be another's


def test_a_handler_that_keeps_its_records_keeps_no_pages(pool, caplog):
    """The record held the error, its traceback the frames, and they the pages: the pool could not be closed."""
    store = Memory(20)
    table = pool.open_store("orders", store, mode="r+")
    store.fail_read = OSError(errno.EIO, os.strerror(errno.EIO))
    held = pool.open_scratch("held", 4)

    def read():
        page = held[1]
        return page[0] + table[7][0]

    with caplog.at_level(logging.WARNING, "bufferpool"), pytest.raises(StoreError):
        read()
    store.fail_read = None  # it has the same traceback
    assert any("page 7" in r.getMessage() for r in caplog.records)
    gc.collect()
    pool.close()


def test_a_file_that_was_cut_is_reported(pool, data_file, caplog):
    path = data_file(20)
    table = pool.open_file(path)
    os.truncate(path, 10 * PAGE)
    with pytest.raises(ShortRead):
        table[15]
    event = _last(pool, EventKind.LOAD_FAILED)
    assert (event.space, event.page_no, event.errno, event.error) == (table.name, 15, 0, "corrupt")
    assert "corrupt: a checksum does not match, or the file was cut or changed (space" in str(event)
    assert any("page 15" in r.getMessage() for r in caplog.records)


def test_the_errno_of_a_read_of_the_core_is_kept(pool, data_file):
    """No disk here fails on demand: this is what the core calls when preadv() has failed."""
    table = pool.open_file(data_file(20))
    failed = StoreError("page 3 cannot be read")
    table._load_failed(3, failed, errno.EIO)
    assert failed.__cause__.errno == errno.EIO
    event = _last(pool, EventKind.LOAD_FAILED)
    assert (event.space, event.page_no, event.errno, event.error) == (table.name, 3, errno.EIO, "io")


@pytest.mark.parametrize("read_by", ["file", "store"])
def test_a_page_that_could_be_loaded_at_last_is_an_event(pool, data_file, read_by):
    """The last event was a failure for ever, so that a mended store looked like a broken one. A page beside the one that
    failed says nothing, and a steward that comes later finds what was recorded before it."""
    path, store = data_file(20), Memory(20)
    table = pool.open_file(path, name="orders") if read_by == "file" else pool.open_store("orders", store)
    other = pool.open_store("other", Memory(4))
    size = os.path.getsize(path)
    os.truncate(path, 5 * PAGE)
    store.fail_read = OSError(errno.EIO, os.strerror(errno.EIO))
    with pytest.raises(StoreError):
        table[7]
    pool.start_steward(Settings(interval=0.02, pressure=False))
    touch(other, range(4))
    store.fail_read = None
    table[3]
    rounds = time.monotonic()
    wait_until(lambda: time.monotonic() - rounds > 2.5, "two looks of the steward")
    assert [e for e in pool.events() if e.is_recovery] == []
    os.truncate(path, size)
    table[7]
    wait_until(lambda: any(e.is_recovery for e in pool.events()), "the event")
    pool.stop_steward()
    assert unread_pages(pool) == []  # what the next steward looks for
    (found,) = [e for e in pool.events() if e.is_recovery]
    assert (found.kind, found.reason, found.space, found.page_no) == (
        EventKind.LOAD_RECOVERED, EventReason.STORE, "orders", 7,
    )  # fmt: skip
    assert str(found) == "load recovered: the page could be read (space 'orders', page 7)"
    assert pool.check() == []


def test_a_removed_space_is_not_waited_for(pool):
    store = Memory(4)
    table = pool.open_store("orders", store)
    store.fail_read = OSError(errno.EIO, "sector")
    with pytest.raises(StoreError):
        table[2]
    ((record, page_no),) = unread_pages(pool)
    assert (record["name"], page_no) == ("orders", 2)
    assert trouble.tell_read(pool.client, unread_pages(pool)) == [(record, 2)]
    table.remove()
    assert unread_pages(pool) == []
    assert trouble.tell_read(pool.client, [(record, 2)]) == []
    assert not any(e.is_recovery for e in pool.events())


def test_a_loader_that_raises_is_its_callers_business(pool, caplog):
    def fails(n, out):
        raise OSError(errno.EIO, "as it likes")

    space = pool.open_derived("made", 4, fails)
    with pytest.raises(StoreError):
        space[1]
    assert EventKind.LOAD_FAILED not in [e.kind for e in pool.events()]
    assert caplog.records == []


def test_a_damaged_page_is_reported(pool, tmp_path):
    pytest.importorskip("xxhash")
    path = tmp_path / "checked"
    with pool.open_file(path, "w+", checksum=True) as table:
        with table.append() as page:
            page[:8] = 1
        pool.flush()
        table.drop()
        data = bytearray(path.read_bytes())
        data[100] ^= 1
        times = os.stat(path)
        path.write_bytes(data)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        with pytest.raises(PageCorrupt):
            table[0]
        event = _last(pool, EventKind.LOAD_FAILED)
        assert (event.space, event.page_no, event.error) == (table.name, 0, "corrupt")


def test_a_full_disk_is_reported_by_the_process_that_flushes(pool, caplog):
    store = Memory(20)
    table = pool.open_store("orders", store, mode="r+")
    fill(table, range(3, 8))
    store.fail_write = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    for _ in range(3):
        with pytest.raises(StoreError):
            pool.flush()
    found = [e for e in pool.events() if e.kind is EventKind.FLUSH_FAILED]
    assert [(e.space, e.page_no, e.errno) for e in found] == [("orders", 3, errno.ENOSPC)]
    assert len([r for r in caplog.records if r.name == "bufferpool" and "ENOSPC" in r.getMessage()]) == 1
    assert pool.stats().flush_failures == 3
    assert pool.stats().frames.dirty == 5


def test_pages_that_could_be_written_at_last_are_an_event(pool, caplog):
    """The last event was a failure for ever, so that a mended disk looked like a full one. A page beside the one that
    fails says nothing: of a disk with a bad sector most pages can be written."""
    caplog.set_level(logging.INFO, "bufferpool")
    store = Memory(20)
    table = pool.open_store("orders", store, mode="r+")
    fill(table, range(3, 8))
    store.fail_write = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(StoreError):
        pool.flush()
    recovered = EventKind.FLUSH_RECOVERED
    trouble.tell_written(pool.client, next(r for r in pool.client.seg.spaces() if r["name"] == "orders"))
    assert recovered not in {e.kind for e in pool.events()}
    store.fail_write = None
    assert pool.flush() == 5
    fill(table, [4])
    assert pool.flush() == 1
    found = [e for e in pool.events() if e.kind is recovered]
    assert [(e.space, e.page_no, e.reason) for e in found] == [("orders", 3, EventReason.STORE)]
    assert str(found[0]) == "flush recovered: the store takes pages again (space 'orders', page 3)"


def test_a_failure_soon_after_the_end_of_another_is_an_event_too(pool):
    """On a disk with room for a few pages the page that had failed was written, and the next ones were not: for ten seconds
    the last event said that the store takes pages again."""
    store = Memory(20)
    table = pool.open_store("orders", store, mode="r+")
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    for page_no in (3, 7):
        fill(table, [page_no])
        store.fail_write = full
        with pytest.raises(StoreError):
            pool.flush()
        store.fail_write = None
        assert pool.flush() == 1
    failed, recovered = EventKind.FLUSH_FAILED, EventKind.FLUSH_RECOVERED
    told = [(e.kind, e.page_no) for e in pool.events() if e.kind in (failed, recovered)]
    assert told == [(failed, 3), (recovered, 3), (failed, 7), (recovered, 7)]


def test_a_steward_says_on_its_standard_error_that_the_disk_is_full(make_pool, data_file, tmp_path: Path):
    pool = make_pool(64 * PAGE)
    path = data_file(20)
    table = pool.open_file(path, "r+")
    fill(table, range(2, 8))
    limited = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)); "
    limited += "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
    limited += "from bufferpool.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-B", "-c", limited, "steward", pool.name, "--flush-every", "0.05", "--no-pressure"]
    log = tmp_path / "log"
    with open(log, "w", encoding="utf-8") as to, subprocess.Popen(command, stdout=to, stderr=to) as steward:
        try:
            wait_until(lambda: "EFBIG" in log.read_text(), "the line", WAIT)
        finally:
            steward.terminate()
    text = log.read_text()
    assert "page 2" in text
    assert repr(table.name) in text
    assert _last(pool, EventKind.FLUSH_FAILED).errno == errno.EFBIG
