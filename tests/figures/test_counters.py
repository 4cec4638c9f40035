"""The counters for operators: each is compared with a count made by hand."""

import errno
import os
import time

import numpy as np
import pytest

import bufferpool as bp
from bufferpool.errors import LoaderFailed, PageCorrupt, PoolExhausted, StoreError, TooManyClients
from bufferpool.figures import events
from bufferpool.figures.names import EventKind, EventReason, error_class
from bufferpool.prometheus import server
from bufferpool.prometheus.collector import why_unreadable
from tests.conftest import PAGE, new_name, stamp, touch
from tests.support.memory_store import Memory
from tests.support.scrape import get, read


def test_pages_read_ahead_are_counted_apart(make_pool, data_file):
    """No figure said how many pages are read ahead, nor how many of them are never used."""
    pool = make_pool(16 * PAGE)
    table = pool.open_file(data_file(200))
    assert table.prefetch(range(8)) == 8
    touch(table, range(4))
    touch(table, range(100, 140))
    stats = pool.stats()
    assert (stats.prefetched, stats.prefetched_unused) == (8, 4)
    assert (stats.loads, stats.misses, stats.hits) == (48, 44, 0)
    series = read(pool.name)
    assert get(series, "prefetched_total", pool) == 8
    assert get(series, "prefetched_unused_total", pool) == 4
    assert pool.check() == []


def test_a_new_scratch_page_is_neither_a_miss_nor_a_load(make_pool, data_file):
    """Zeros were made and nothing was read, but a sort in scratch pages made the hit ratio look bad."""
    pool = make_pool(64 * PAGE)
    table, work = pool.open_file(data_file(10)), pool.open_scratch("sort", n_pages=20)
    touch(table, range(10))
    for n in range(10):
        with work.write(n) as page:
            page[:] = n
    assert not work[15].any()
    stats = pool.stats()
    assert (stats.hits, stats.misses, stats.loads) == (0, 10, 10)
    assert sum(stats.latencies["load"].counts) == 10
    touch(work, range(10))
    assert (pool.stats().hits, pool.stats().misses) == (10, 10)
    assert all(work[n][0] == n for n in range(10))


def test_the_age_of_evicted_pages_is_known(make_pool, data_file):
    """Whether what is evicted was old or in use a moment ago tells a pool that is too small from one that is full."""
    pool = make_pool(16 * PAGE)
    table = pool.open_file(data_file(100))
    assert np.isnan(pool.stats().eviction_age_s)
    touch(table, range(16))
    time.sleep(1.0)
    touch(table, range(50, 66))
    stats = pool.stats()
    assert stats.evictions_recycled == 16
    assert stats.eviction_age_s > 0
    series = read(pool.name)
    assert get(series, "eviction_age_seconds_count", pool) == 16
    assert get(series, "eviction_age_seconds_sum", pool) == pytest.approx(stats.eviction_age_sum_s)


def test_who_finds_no_frame_or_no_slot_is_counted(make_pool, data_file):
    pool = make_pool(16 * PAGE, max_clients=1)
    table = pool.open_file(data_file(100), "r+")
    kept = [table[n] for n in range(16)]
    for _ in range(2):
        with pytest.raises(PoolExhausted):
            table[50]
    with pytest.raises(PoolExhausted), table.write(0):
        pass
    in_child = os.fork()
    if in_child == 0:
        os._exit(_is_refused(pool.name))
    assert os.waitstatus_to_exitcode(os.waitpid(in_child, 0)[1]) == 0
    stats = pool.stats()
    assert (stats.exhausted, stats.refused_clients, stats.load_failures) == (3, 1, 2)
    series = read(pool.name)
    assert get(series, "exhausted_total", pool) == 3
    assert get(series, "refused_clients_total", pool) == 1
    assert np.array_equal(kept[3], stamp(3))
    del kept


def _is_refused(name: str) -> int:
    try:
        bp.Pool.attach(name).stats()
    except TooManyClients:
        return 0
    return 1


def test_failures_are_counted_by_space_and_class(make_pool):
    """The counter of failures did not say which of the stores fails, nor whether a disk is full, or broken."""
    pool = make_pool()
    good, bad = Memory(20), Memory(20)
    pool.open_store("good", good, mode="r+")
    table = pool.open_store("bad", bad, mode="r+")
    computed = pool.open_derived("computed", 5, lambda n, out: 1 / 0)
    bad.fail_read = OSError(errno.EIO, "bad sector")
    for n in range(3):
        with pytest.raises(StoreError):
            table[n]
    bad.fail_read = OSError(errno.EACCES, "no")
    with pytest.raises(StoreError):
        table[0]
    with pytest.raises(LoaderFailed):
        computed[0]
    bad.fail_read, bad.fail_write = None, OSError(errno.ENOSPC, "full")
    with table.write(0) as page:
        page[:] = 1
    for _ in range(2):
        with pytest.raises(StoreError):
            pool.flush()
    bad.fail_write, bad.fail_sync = None, OSError(errno.EIO, "sync")
    with pytest.raises(StoreError):
        pool.flush()
    bad.fail_sync = None
    spaces = {space.name: space for space in pool.stats().spaces}
    seen = {name: n for name, n in spaces["bad"].load_failures.items() if n}
    assert seen == {"io": 3, "access": 1}
    assert {name: n for name, n in spaces["bad"].flush_failures.items() if n} == {"full": 2, "io": 1}
    assert {name: n for name, n in spaces["computed"].load_failures.items() if n} == {"code": 1}
    assert not any(spaces["good"].load_failures.values())
    series = read(pool.name)
    assert get(series, "space_load_failures_total", pool, space="bad", error="io") == 3
    assert get(series, "space_flush_failures_total", pool, space="bad", error="full") == 2
    assert not any("good" in str(key) and "failures" in str(key) for key in series)
    pool.flush()
    table.remove()
    again = pool.open_store("again", Memory(20), mode="r+")  # in the same slot
    assert not any(again.stats().load_failures.values())
    assert not any(again.stats().flush_failures.values())


def test_every_class_of_error_has_a_name():
    """An errno that nobody thought of is of a class, too."""
    assert {error_class(n) for n in (errno.EIO, errno.ENOSPC, errno.EACCES, errno.ENOENT, 0, errno.EINTR)} == {
        "io", "full", "access", "missing", "code", "other",
    }  # fmt: skip
    from bufferpool.client.trouble import class_of

    assert class_of(PageCorrupt("x", "s", 1, 0)) == "corrupt"


def test_a_sync_has_its_time_apart_from_the_writing(pool):
    store = Memory(20)
    table = pool.open_store("s", store, mode="r+")
    for n in range(3):
        with table.write(n) as page:
            page[:] = 1
        pool.flush()
    store.fail_sync = OSError(errno.EIO, "no")
    with table.write(0) as page:
        page[:] = 2
    with pytest.raises(StoreError):
        pool.flush()
    latencies = pool.stats().latencies
    assert sum(latencies["sync"].counts) == sum(latencies["flush"].counts) == 3
    assert latencies["sync"].sum_s <= latencies["flush"].sum_s
    store.fail_sync = None


def test_events_are_counted_beyond_the_ring(pool):
    """The ring keeps a thousand events: a rate cannot be computed from it."""
    before = events.posted(pool).get((EventKind.SHRANK, EventReason.PSI), 0)
    for _ in range(1500):
        events.post(pool.client.seg, events.NewEvent(EventKind.SHRANK, EventReason.PSI))
    pool.client.seg.post_event((99, 99, 0, 0, 0, 0.0, 0, 0, 0))  # of a later version
    assert events.posted(pool)[EventKind.SHRANK, EventReason.PSI] == before + 1500
    series = read(pool.name)
    assert get(series, "events_total", pool, event="shrank", reason="psi") == before + 1500
    assert get(series, "events_total", pool, event="created", reason="asked") == 1


def test_the_age_of_the_last_checkpoint_is_known(pool):
    assert "last_checkpoint" not in str(read(pool.name))
    before = time.time()
    pool.checkpoint(7)
    at = get(read(pool.name), "last_checkpoint_timestamp_seconds", pool)
    assert before - 1 <= at <= time.time() + 1
    assert pool.stats().checkpoint_at == pytest.approx(at, abs=0.01)


def test_what_is_under_way_is_counted(pool):
    """A store that hangs is seen while it hangs, and not only once it has come back."""
    seen = []

    def counts():
        found = pool.stats().pending_operations
        return found["load"], found["flush"]

    def load(n, out):
        seen.append(counts())

    pool.open_derived("d", 4, load)[1]
    store = Memory(4)
    store.on_write = lambda *_: seen.append(counts())
    table = pool.open_store("s", store, mode="r+")
    with table.write(1) as page:
        page[:] = 1
    pool.flush()
    assert seen == [(1, 0), (0, 1)]
    assert counts() == (0, 0)


def test_why_a_pool_cannot_be_read_is_a_label(make_pool, tmp_path):
    """up was 0 for a pool that was removed, or damaged, or another user's: three causes with three remedies."""
    pool = make_pool()
    gone = new_name()
    series = read(pool.name, gone)
    assert get(series, "up", gone) == 0
    assert get(series, "unreadable", gone, reason="removed") == 1
    assert "unreadable" not in str([key for key in series if pool.name in str(key)])
    with open(pool.path, "r+b") as file:
        sound = file.read(64)
        file.seek(8)
        file.write(b"\xff\xff\0\0")
    try:
        assert get(read(pool.name), "unreadable", pool, reason="layout") == 1
        with open(pool.path, "r+b") as file:
            file.write(b"NOTAPOOL")
        assert get(read(pool.name), "unreadable", pool, reason="damaged") == 1
    finally:
        with open(pool.path, "r+b") as file:
            file.write(sound)
    assert why_unreadable(bp.errors.SegmentRefused("no")) == "permission"


def test_a_pool_that_may_not_be_read_is_named(make_pool, monkeypatch):
    """The exporter of another user left such a pool out, so that nobody missed it."""
    pool = make_pool()
    real = os.access
    monkeypatch.setattr(os, "access", lambda path, how: os.path.basename(path) != pool.name and real(path, how))
    text = server.text_of()
    assert f'bufferpool_unreadable{{pool="{pool.name}",reason="permission"}} 1.0' in text


def test_the_version_is_a_metric():
    assert f'bufferpool_build_info{{layout="{bp._core.LAYOUT_VERSION}",version="{bp.__version__}"}} 1.0' in (
        server.text_of(new_name())
    )


def test_the_misses_of_one_space_are_those_of_its_stats(make_pool, data_file, child):
    """An engine that asked for them at each transaction summed the counters of every space and client: 6 µs of its 30."""
    pool = make_pool(64 * PAGE)
    table, other = pool.open_file(data_file(40)), pool.open_scratch("other", n_pages=40)
    assert table.misses == 0
    touch(table, [*range(10), *range(10)])
    touch(other, range(20))
    assert table.misses == table.stats().misses == 10
    assert other.misses == other.stats().misses
    child(use_pages, pool.name, table.name).result()  # what a process that has ended has counted is kept
    assert table.misses == table.stats().misses == 25
    index = table.index
    table.remove()
    again = pool.open_file(data_file(3))
    assert (again.index, again.misses) == (index, 0)
    touch(again, range(3))
    assert again.misses == 3
    with pytest.raises(bp.errors.SpaceRemoved):
        _ = table.misses
    assert pool.check() == []


def test_the_uses_of_this_process_are_counted_apart(make_pool, attach, data_file, child):
    """An engine reads them around each transaction: the sum over all clients cost it 1.6 µs, as much as 16 hits."""
    pool = make_pool(64 * PAGE)
    table, scratch = pool.open_file(data_file(40)), pool.open_scratch("other", n_pages=40)
    assert table.own_uses == (0, 0)
    touch(table, [*range(10), *range(10)])
    assert table.own_uses == (10, 10)
    assert scratch.own_uses == (0, 0)
    other = attach(pool).space(table.name)
    touch(other, range(12))
    assert other.own_uses == (10, 2)
    child(use_pages, pool.name, table.name).result()
    assert table.own_uses == (10, 10)
    assert table.misses == 25
    table.remove()
    for handle in (table, other):
        with pytest.raises(bp.errors.SpaceRemoved):
            _ = handle.own_uses


def use_pages(name, space):
    with bp.Pool.attach(name) as pool:
        touch(pool.space(space), range(10, 25))
