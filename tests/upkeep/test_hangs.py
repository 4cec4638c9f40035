"""A store that hangs delays the callers that need its pages, and no other caller."""

import os
import signal
import threading
import time

import numpy as np
import pytest

from bufferpool.errors import PoolExhausted, SpaceRemoved, WaitTimeout, WouldDeadlock
from bufferpool.figures.names import EventKind, EventReason
from bufferpool.spaces import directory
from bufferpool.upkeep import memory, steward
from bufferpool.upkeep.steward import Settings
from tests.conftest import PAGE, WAIT, fill, stamp, wait_until
from tests.support.disks import Disk, dirty
from tests.support.hanging import Hanging, file_that_hangs, in_time
from tests.support.memory_store import Memory
from tests.support.stewards import put


def test_a_store_whose_size_hangs_holds_up_no_other_opening(pool, data_file, hung, threads):
    """A store's size() was asked for under the lock of the directory: while it hung, nobody could open a space."""
    hung.sizes.shut()
    threads.start(pool.open_store, "hung", hung)
    hung.sizes.wait_until_somebody_came()
    work = in_time(pool.open_scratch, "work", 4)
    table = in_time(pool.open_file, data_file(4), "r+")
    assert np.array_equal(table[2], stamp(2))
    in_time(work.remove, discard=True)
    assert [r["name"] for r in pool.client.seg.spaces()] == [table.name]
    hung.sizes.open()
    threads.join()
    assert pool.check() == []
    assert len(pool.space("hung")) == 64


def test_two_who_open_a_store_at_once_get_one_space(pool, hung, threads):
    """The store is asked before the lock is taken: a process that finds the space there by then uses that one."""
    spaces = []
    hung.sizes.shut()
    threads.start(lambda: spaces.append(pool.open_store("one", hung, mode="r+")))
    hung.sizes.wait_until_somebody_came()
    other = Hanging(16)
    spaces.append(in_time(pool.open_store, "one", other))
    hung.sizes.open()
    threads.join()
    assert len({(space.index, space.generation) for space in spaces}) == 1
    assert len(pool.client.seg.spaces()) == 1


def test_who_waits_for_the_flush_of_a_file_to_open_it_holds_up_no_other_opening(pool, data_file, monkeypatch, threads):
    """A process that opened a file waited for its flush, and held the directory lock meanwhile."""
    path = data_file(16)
    table = pool.open_file(path, "r+")
    fill(table, [3], version=1)
    with file_that_hangs(monkeypatch, path) as sync:
        threads.start(pool.flush, table)
        sync.wait_until_somebody_came()
        waits = pool.stats().wait_memory
        threads.start(pool.open_file, path, "r")  # its time has changed: by whom is known after the flush
        wait_until(lambda: pool.stats().wait_memory > waits, "somebody waits for the flush lock")
        in_time(pool.open_scratch, "work", 1)
        in_time(pool.open_file(data_file(4)).remove)
    threads.join()
    assert pool.check() == []


def test_a_space_in_use_that_is_to_be_removed_holds_up_no_opening(pool, monkeypatch, threads):
    """remove() waited for the writer of a page with the lock of the directory held."""
    monkeypatch.setattr(directory, "BUSY_S", 3600.0)
    used = pool.open_scratch("used", 4)
    looks = []
    in_use = directory.remove_now
    monkeypatch.setattr(directory, "remove_now", lambda *a: looks.append(1) or in_use(*a))
    with used.write(1) as page:
        threads.start(lambda: used.remove(discard=True))
        wait_until(lambda: len(looks) > 2, "somebody waits for the writer")
        in_time(pool.open_scratch, "other", 4)
        page[:] = 1
    threads.join()
    assert [r["name"] for r in pool.client.seg.spaces()] == ["other"]


def test_who_opens_a_file_while_it_is_emptied_waits_until_it_is_empty(pool, data_file, monkeypatch, threads):
    """A file is emptied after its space was added, without the lock of the directory: a process that opens it meanwhile sees it
    empty."""
    path, opened = data_file(16), []
    cut, table = os.ftruncate, pool.open_file(path, "r+")

    def cut_late(fd, size):
        waits = pool.stats().wait_memory
        threads.start(lambda: opened.append(pool.open_file(path, "r+")))
        wait_until(lambda: pool.stats().wait_memory > waits, "somebody waits for the flush lock")
        cut(fd, size)

    monkeypatch.setattr(directory.os, "ftruncate", cut_late)
    emptied = pool.open_file(path, "w+")
    threads.join()
    assert len(emptied) == len(opened[0]) == path.stat().st_size == 0
    assert emptied.index == opened[0].index
    with pytest.raises(SpaceRemoved):
        len(table)
    with emptied.append() as page:
        page[:] = stamp(0, version=2)
    pool.flush()
    assert path.read_bytes() == stamp(0, version=2).tobytes()


# ---- making room ----------------------------------------------------------------------


def _dirty_hung(pool, hung, pages, threads=None):
    """The space of a store, with dirty pages, whose syncs hang; with ``threads``, one hangs already."""
    space = pool.open_store("hung", hung, mode="r+")
    fill(space, range(pages))
    hung.syncs.shut()
    if threads is not None:
        threads.start(pool.flush, space)
        hung.syncs.wait_until_somebody_came()
    return space


@pytest.mark.parametrize("flushing", [False, True])
def test_who_needs_a_frame_is_not_held_up_by_the_store_of_others(pool, data_file, hung, threads, flushing):
    """A miss that found dirty pages only flushed all spaces in turn, and hung with the first store that hung."""
    table = pool.open_file(data_file(200), "r+")
    _dirty_hung(pool, hung, 4, threads if flushing else None)
    in_time(fill, table, range(200), version=1)
    assert pool.stats().foreground_flushes > 0
    assert np.array_equal(in_time(table.__getitem__, 3), stamp(3, version=1))
    hung.syncs.open()
    wait_until(lambda: not pool.client.jobs.all(), "the flush of the store ends")
    assert pool.flush() > 0


def _fill_up(table):
    """Pins more pages than there are frames beside 40 dirty pages."""
    return len([table[n] for n in range(30)])


def test_a_slow_flush_is_waited_for_although_it_takes_longer_than_a_frame_does(pool, data_file, hung, threads):
    """A disk that needs a second for a sync is no reason to say that there are no frames."""
    table = pool.open_file(data_file(30))
    _dirty_hung(pool, hung, 40)
    threads.start(lambda: (hung.syncs.wait_until_somebody_came(), time.sleep(3 * memory.ROOM_S), hung.open()))
    assert in_time(_fill_up, table) == 30


def test_a_flush_that_ends_between_two_looks_is_no_reason_to_give_up(pool, data_file, hung, threads, monkeypatch):
    """A flush ended after the core had looked for a frame and before the caller looked for flushes: no flush was under way,
    so it raised PoolExhausted, in a pool whose pages were all clean.
    """
    read_flushes = memory.read_flushes

    def end_it_and_look(client):
        if time.monotonic() - began > memory.ROOM_S:
            hung.open()
            threads.join()
        return read_flushes(client)

    monkeypatch.setattr(memory, "ROOM_S", 0.2)
    monkeypatch.setattr(memory, "read_flushes", end_it_and_look)
    table = pool.open_file(data_file(30))
    _dirty_hung(pool, hung, 40, threads)  # flushed by another thread than those that this one starts
    began = time.monotonic()
    assert in_time(_fill_up, table) == 30


def test_a_timeout_says_how_long_a_slow_flush_is_waited_for(pool, data_file, hung, threads, monkeypatch):
    """A disk that was busy with other work took 15 s for a sync: callers with more time than that got PoolExhausted after ten."""
    monkeypatch.setattr(memory, "SLOW_S", 0.1)
    monkeypatch.setattr(memory, "ROOM_S", 0.1)
    table = pool.open_file(data_file(30))
    _dirty_hung(pool, hung, 40)
    threads.start(lambda: (hung.syncs.wait_until_somebody_came(), time.sleep(0.5), hung.open()))
    assert len([in_time(table.get, n, timeout=2 * WAIT) for n in range(30)]) == 30


def test_where_only_a_store_that_hangs_could_make_room_the_error_names_its_flush(
    pool, data_file, hung, monkeypatch, threads
):
    """A caller needs a frame, and only a hung store's dirty pages could go: the error names the flush and its age."""
    monkeypatch.setattr(memory, "SLOW_S", 0.1)
    table = pool.open_file(data_file(30))
    _dirty_hung(pool, hung, 40, threads)
    found = rf"a flush of 'hung' by client \d+ \(pid {os.getpid()}\) has been under way for \d"
    with pytest.raises(PoolExhausted, match=found):
        in_time(_fill_up, table)
    hung.open()
    threads.join()
    assert _fill_up(table) == 30


def test_a_log_that_hangs_holds_up_nobody_for_ever_and_is_asked_once_at_a_time(pool, data_file, threads, monkeypatch):
    """Every thread that needed a frame called log_sync, and hung with it."""
    monkeypatch.setattr(memory, "SLOW_S", 2.0)
    calls, refused, go = [], [], threading.Event()

    def log_sync(lsn):
        calls.append(lsn)
        assert go.wait(2 * WAIT)
        return lsn

    def use():
        with pytest.raises(PoolExhausted) as full:
            _fill_up(table)
        refused.append(str(full.value))

    pool.durable_lsn, pool.log_sync = 1, log_sync
    logged = pool.open_store("logged", Disk(40), mode="r+")
    table = pool.open_file(data_file(30))
    for n in range(40):
        put(logged, n, lsn=9)
    try:
        for _ in range(4):
            threads.start(use)
        threads.join()
        assert len(calls) == 1
        assert all("40 of them above durable_lsn" in text for text in refused)
    finally:
        go.set()
    assert in_time(_fill_up, table) == 30


# ---- calls with a timeout -----------------------------------------------------------------


def test_resize_and_trim_end_in_time_while_a_store_hangs(pool, data_file, hung):
    """resize(timeout=) and trim() called the store themselves: while it hung they never came back."""
    table = pool.open_file(data_file(64), "r+")
    _dirty_hung(pool, hung, 16)
    fill(table, range(40))
    with pytest.raises(PoolExhausted, match="'hung'"):
        in_time(pool.resize, 8 * PAGE, timeout=0.3)
    assert in_time(pool.trim, size=60 * PAGE, timeout=0.3) < 60 * PAGE
    assert dirty(pool) == 16, "what the other store could take was written"
    hung.open()
    assert in_time(pool.resize, 8 * PAGE) > 0


def test_a_checkpoint_ends_in_time_while_a_store_or_the_log_hangs(pool, data_file, hung):
    """``timeout=`` was looked at only between two rounds: a store or a log that hung held up the checkpoint without limit."""
    held = threading.Event()
    table, other = pool.open_store("hung", hung, mode="r+"), pool.open_file(data_file(4), "r+")
    put(table, 1, lsn=4)
    put(other, 1, lsn=5)
    hung.writes.shut()
    with pytest.raises(WaitTimeout, match=r"'hung'.* has been under way"):
        in_time(pool.checkpoint, 5, timeout=0.1)
    hung.writes.open()
    assert in_time(pool.checkpoint, 5, timeout=WAIT) == 6
    pool.durable_lsn = 5
    put(other, 2, lsn=7)
    pool.log_sync = lambda lsn: held.wait(WAIT) and lsn
    with pytest.raises(WaitTimeout, match="log_sync has not returned"):
        in_time(pool.checkpoint, 7, timeout=0.1)
    held.set()
    assert in_time(pool.checkpoint, 7, timeout=WAIT) == 8
    assert pool.check() == []


def test_a_flush_of_all_writes_the_other_spaces_and_names_the_one_that_hangs(pool, data_file, hung):
    """flush() wrote one space after the other: those behind a store that hung were not written."""
    paths = [data_file(8), data_file(8)]
    first = pool.open_file(paths[0], "r+")
    _dirty_hung(pool, hung, 4)
    second = pool.open_file(paths[1], "r+")
    fill(first, [1], version=1)
    fill(second, [2], version=1)
    with pytest.raises(WaitTimeout, match="'hung'") as late:
        in_time(pool.flush, timeout=1.0)
    assert first.name not in str(late.value)
    for path, n in zip(paths, (1, 2), strict=True):
        assert path.read_bytes()[n * PAGE : (n + 1) * PAGE] == stamp(n, version=1).tobytes()
    running = threading.active_count()
    for _ in range(10):
        with pytest.raises(WaitTimeout):
            in_time(pool.flush, timeout=0.01)
    assert threading.active_count() <= running, "each call has left a thread"
    hung.open()
    assert in_time(pool.flush) in (0, 4)  # or the flush that hung has written them by now
    assert dirty(pool) == 0


def test_stores_that_ask_for_a_flush_while_they_are_flushed_are_refused(pool):
    """Each flush runs in a thread of its own: two whose stores flush the pool would wait for each other."""
    stores = [Memory(4), Memory(4)]
    for i, store in enumerate(stores):
        store.on_write = lambda offset, buffer: pool.flush()
        fill(pool.open_store(f"store{i}", store, mode="r+"), [1], version=1)
    with pytest.raises(WouldDeadlock, match="being flushed already"):
        in_time(pool.flush)
    assert dirty(pool) > 0
    for store in stores:
        store.on_write = None
    in_time(pool.flush)
    assert dirty(pool) == 0


# ---- the steward --------------------------------------------------------------------------


def _die():
    os.kill(os.getpid(), signal.SIGKILL)


def _attach_and_die(name):
    import bufferpool as bp

    pool = bp.Pool.attach(name)
    pool.clients()
    _die()


def test_a_steward_flushes_and_reaps_while_a_store_hangs(pool, data_file, hung, child, monkeypatch):
    """The steward's thread called the stores itself: while one hung, nobody reaped, flushed, or moved the budget."""
    monkeypatch.setattr(steward, "HANGS_S", 0.05)
    path = data_file(16)
    table = pool.open_file(path, "r+")
    _dirty_hung(pool, hung, 4)
    leader = pool.start_steward(Settings(interval=0.02, flush_every=0.2, pressure=False))
    hung.syncs.wait_until_somebody_came()
    fill(table, [3], version=1)
    wait_until(lambda: dirty(pool) == 4, "the other space is flushed")
    assert path.read_bytes()[3 * PAGE : 4 * PAGE] == stamp(3, version=1).tobytes()
    child(_attach_and_die, pool.name).process.join(WAIT)
    wait_until(lambda: pool.stats().reaped > 0, "the dead are reaped")
    told = lambda: [event for event in pool.events() if event.reason is EventReason.HANGS]  # noqa: E731
    wait_until(lambda: bool(told()), "the flush that hangs is an event")
    assert "'hung'" in str(leader.trouble)
    # (On a busy machine a flush of the file may take 0.05 s, too.)
    assert {(e.kind, e.client) for e in told() if e.space == "hung"} == {(EventKind.FLUSH_FAILED, 1)}
    in_time(pool.stop_steward)
    assert dirty(pool) == 4
    hung.open()
    wait_until(lambda: dirty(pool) == 0, "the flush ends with the store's hanging")


def test_a_pool_whose_store_hangs_is_refused_to_close_in_time(pool, hung):
    """close() waited for the steward, and the steward for the store."""
    _dirty_hung(pool, hung, 4)
    pool.start_steward(Settings(interval=0.02, flush_every=0.2, pressure=False))
    hung.syncs.wait_until_somebody_came()
    with pytest.raises(BufferError, match="another thread is using it"):
        in_time(pool.close)
    hung.open()
    wait_until(lambda: not pool.client.jobs.all(), "the flush ends")
