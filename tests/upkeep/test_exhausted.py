"""No frame is free: which callers get PoolExhausted, which wait, and which find a frame nevertheless."""

import contextlib
import errno
import os
import time

import numpy as np
import pytest

from bufferpool.errors import PoolExhausted
from bufferpool.figures.names import FrameState
from bufferpool.upkeep import memory
from tests.conftest import PAGE, WAIT, fill, pins, stamp, touch
from tests.support.memory_store import Memory


def _pin_some(space, first, count, holds, go):
    pages = [space[n] for n in range(first, first + count)]
    holds.set()
    assert go.wait(WAIT)
    return len(pages)


def test_pool_exhausted_names_the_clients_that_pin(pool, data_file, child, spawn):
    table = pool.open_file(data_file(200))
    holds, go = spawn.Event(), spawn.Event()
    other = child(_pin_some, table, 0, 10, holds, go)
    assert holds.wait(WAIT)
    kept = [table[n] for n in range(10, 64)]
    before = pool.stats()
    with pytest.raises(PoolExhausted) as full:
        table[100]
    text = str(full.value)
    assert "64 pinned" in text
    assert f"(pid {other.pid}) pins 10" in text
    assert f"(pid {os.getpid()}) pins 54" in text
    for what in ("of 64 frames", "Release pins", "pool.resize()", pool.name):
        assert what in text
    after = pool.stats()
    assert (after.resident_bytes, after.frames, after.clients) == (before.resident_bytes, before.frames, before.clients)
    assert np.array_equal(table[5], stamp(5))
    del kept[:1]
    assert np.array_equal(table[100], stamp(100))
    go.set()
    assert other.result() == 10


def test_a_killed_client_exhausts_nobody(pool, data_file, child, spawn):
    table = pool.open_file(data_file(200))
    holds, go = spawn.Event(), spawn.Event()
    other = child(_pin_some, table, 0, 64, holds, go)
    assert holds.wait(WAIT)
    other.kill()
    for n in range(64, 128):
        assert np.array_equal(table[n], stamp(n))
    assert pins(pool) == 0
    assert pool.stats().reaped == 1


def test_a_waiting_miss_goes_on_when_a_pin_is_released(pool, data_file, threads):
    table = pool.open_file(data_file(200))
    kept = [table[n] for n in range(64)]
    threads.start(lambda: [time.sleep(0.1), kept.pop()])
    for _ in range(20):
        try:
            assert np.array_equal(table[100], stamp(100))
            break
        except PoolExhausted:
            continue
    else:
        pytest.fail("the page that came free was not used")
    threads.join()


def test_many_dirty_pages_do_not_exhaust_a_pool_that_can_write_them(pool, data_file, child, spawn):
    """Foreground flushes of several clients for longer than a frame is waited for."""
    path = data_file(200)
    children = [child(_write_for, pool, str(path), seed, 2.0) for seed in range(3)]
    assert all(c.result() > 0 for c in children)
    assert pool.stats().foreground_flushes > 0


def _write_for(pool, path, seed, seconds):
    table = pool.open_file(path, "r+")
    random, done, end = np.random.default_rng(seed), 0, time.monotonic() + seconds
    while not done or time.monotonic() < end:
        with table.write(int(random.integers(0, len(table))), timeout=WAIT) as page:
            page[:] = seed
        done += 1
    return done


# ---- one page that can be evicted is enough ---------------------------------------------
#
# The search for a victim ended after a number of pages that could not be evicted, long before it had come to those that
# could: PoolExhausted beside thousands of clean pages. The pools below have more frames than it used to look at.

FRAMES = 1024
FREE_TO_GO = 12  # pages
SCRATCH = FRAMES - FRAMES // 8  # as many as may be kept


def _read_beside(pool, others, rounds=3):
    """Pages that find a frame although all but a few frames are unavailable."""
    for _ in range(rounds):
        for n in range(200):
            assert np.array_equal(others[n], stamp(n))
    stats = pool.stats()
    assert stats.frames.free == 0
    assert stats.evictions_recycled > 400
    assert stats.foreground_flushes == stats.wait_frame == 0
    assert pool.check() == []


@pytest.mark.parametrize("warm", [False, True])
def test_scratch_pages_beside_clean_ones(make_pool, data_file, warm):
    """A sort that wrote a few hundred scratch pages found no frame, in a pool full of clean pages in use."""
    pool = make_pool(FRAMES * PAGE)
    others, work = pool.open_file(data_file(FRAMES)), pool.open_scratch("work", FRAMES)
    for _ in range(4 if warm else 1):
        touch(others, range(FRAMES))
    for n in range(SCRATCH):
        fill(work, [n])
        if warm and n % 50 == 49:
            touch(others, range(FRAMES // 2))
    assert pool.stats().frames.dirty == SCRATCH
    _read_beside(pool, others)
    assert all(np.array_equal(work[n], stamp(n)) for n in range(SCRATCH))


def test_a_reader_that_pins_nearly_all(make_pool, data_file):
    pool = make_pool(FRAMES * PAGE)
    others, held = pool.open_file(data_file(200)), pool.open_file(data_file(FRAMES))
    pins = [held[n] for n in range(FRAMES - FREE_TO_GO)]
    _read_beside(pool, others)
    assert all(np.array_equal(page, stamp(n)) for n, page in enumerate(pins))


def test_writers_that_have_nearly_all(make_pool, data_file):
    pool = make_pool(FRAMES * PAGE)
    others, written = pool.open_file(data_file(200)), pool.open_file(data_file(FRAMES), "r+")
    with contextlib.ExitStack() as writes:
        for n in range(FRAMES - FREE_TO_GO):
            writes.enter_context(written.write(n))[:] = stamp(n, version=1)
        _read_beside(pool, others)
    assert all(np.array_equal(written[n], stamp(n, version=1)) for n in range(FRAMES - FREE_TO_GO))


def test_dirty_pages_whose_store_fails(make_pool, data_file):
    """A read has nothing to do with them while another page can be evicted."""
    pool = make_pool(FRAMES * PAGE)
    others, store = pool.open_file(data_file(200)), Memory(FRAMES)
    store.fail_write = OSError(errno.EIO, "not now")
    table = pool.open_store("table", store, mode="r+")
    fill(table, range(FRAMES - FREE_TO_GO), version=1)
    _read_beside(pool, others)
    with pytest.raises(PoolExhausted, match="not now") as full:
        fill(table, range(FRAMES - FREE_TO_GO, FRAMES), version=1)
    assert "dirty" in str(full.value)
    store.fail_write = None
    pool.flush()
    touch(others, range(200))
    assert pool.check() == []


def test_pages_above_the_durable_lsn(make_pool, data_file):
    pool = make_pool(FRAMES * PAGE)
    others, table = pool.open_file(data_file(200)), pool.open_file(data_file(FRAMES), "r+")
    pool.durable_lsn = 10
    for n in range(FRAMES - FREE_TO_GO):
        write = table.write(n)
        write.lsn = 11
        with write as page:
            page[:] = stamp(n, version=1)
    _read_beside(pool, others)
    pool.durable_lsn = 11
    assert pool.flush() == FRAMES - FREE_TO_GO


def test_what_was_set_aside_can_go_when_it_is_flushed(make_pool, data_file):
    """Dirty pages stand in no ring once a search has met them; a flush puts them back before they are clean."""
    pool = make_pool(FRAMES * PAGE)
    others, table = pool.open_file(data_file(4 * FRAMES)), pool.open_file(data_file(FRAMES), "r+")
    for version in range(1, 4):
        fill(table, range(FRAMES - FREE_TO_GO), version=version)
        touch(others, range(2 * FRAMES))
        assert pool.stats().frames.dirty == FRAMES - FREE_TO_GO
        assert pool.check() == []
        pool.flush()
        assert pool.check() == []
        touch(others, range(4 * FRAMES))
        touch(others, range(4 * FRAMES))
        frames = pool.frames()
        left = np.count_nonzero(frames["space"][frames["state"] == FrameState.LIVE] == table.index)
        assert left == 0
        assert np.array_equal(table[5], stamp(5, version=version))


def test_what_was_set_aside_can_be_dropped(make_pool, data_file):
    pool = make_pool(FRAMES * PAGE)
    others, work = pool.open_file(data_file(2 * FRAMES)), pool.open_scratch("work", FRAMES)
    for _ in range(3):
        fill(work, range(SCRATCH))
        touch(others, range(2 * FRAMES))
        work.drop(0, FRAMES)
        assert pool.check() == []
        touch(others, range(2 * FRAMES))
        assert pool.stats().frames.free == 0
        assert pool.check() == []


def test_a_shrink_finds_every_page_that_can_go(make_pool, data_file):
    pool = make_pool(FRAMES * PAGE)
    others, work = pool.open_file(data_file(FRAMES)), pool.open_scratch("work", FRAMES)
    fill(work, range(FRAMES // 2))
    for _ in range(4):
        touch(others, range(FRAMES // 2))
    assert pool.trim(100 * PAGE) == 100 * PAGE
    assert pool.resize((FRAMES // 2 + 1) * PAGE) == (FRAMES // 2 - 101) * PAGE
    assert pool.stats().frames.dirty == FRAMES // 2
    assert pool.stats().resident_bytes == (FRAMES // 2 + 1) * PAGE
    assert pool.check() == []
    with pytest.raises(PoolExhausted, match="scratch pages that are not discardable"):
        pool.resize(FRAMES // 4 * PAGE, timeout=0.1)


def test_pages_that_cannot_go_do_not_stay_hot(make_pool, data_file):
    frames, kept = 512, 140  # more pages than one look at the rings takes steps
    pool = make_pool(frames * PAGE)
    work = pool.open_scratch("work", kept)
    fill(work, range(kept))
    table = pool.open_file(data_file(4 * frames))
    random = np.random.default_rng(1)
    for i in range(40_000):  # places that move on: pages are used again soon and then no more, so the cold ring wins
        if i % 50 == 0:
            touch(work, range(kept))
        touch(table, [(i // 2 - int(random.exponential(300))) % len(table)])
    stats = pool.stats()
    assert stats.frames.dirty == kept
    assert stats.evictions_recycled > 10_000


@pytest.mark.parametrize("scratch", [False, True], ids=["pins", "scratch"])
def test_resize_is_a_remedy_as_far_as_there_is_room(make_pool, data_file, scratch):
    """A pool at its max_capacity could not grow, even if its tmpfs had memory; and PoolExhausted still named pool.resize()."""
    pool, kept = make_pool(16 * PAGE, max_capacity=32 * PAGE, room=48 * PAGE), []
    table, work = pool.open_file(data_file(64)), pool.open_scratch("work", 64)

    def use_all():
        for n in range(64):
            if scratch:
                with work.write(n) as page:
                    page[:] = 1
            else:
                kept.append(table[n])

    for frames in (32, 48):
        with pytest.raises(PoolExhausted, match=r"pool\.resize\(\), up to 192\.0 KiB") as full:
            use_all()
        assert "fixed at creation" not in str(full.value)
        pool.resize(frames * PAGE)
    with pytest.raises(PoolExhausted, match=r"room for was fixed at creation.*larger room=") as full:
        use_all()
    assert "resize" not in str(full.value)
    with pytest.raises(ValueError, match="room for was fixed at creation"):
        pool.resize(64 * PAGE)
    with pytest.raises(ValueError, match="capacity must be") as small:
        pool.resize(PAGE)
    assert "fixed at creation" not in str(small.value)
    kept.clear()
    assert pool.check() == []


@pytest.mark.parametrize("scratch", [False, True], ids=["pins", "scratch"])
def test_a_pool_that_another_client_enlarges_meanwhile_is_not_exhausted(
    make_pool, data_file, attach, monkeypatch, scratch
):
    """Between the search for a frame and the error another process had enlarged the pool. The error said of a pool of 37,742
    frames that 720 scratch pages use up all that there may be.
    """
    pool, kept = make_pool(16 * PAGE, max_capacity=16 * PAGE, room=64 * PAGE), []
    table, work, other = pool.open_file(data_file(40)), pool.open_scratch("work", 40), attach(pool)

    def resized_first(message):
        def text(*args):
            other.resize((other.budget_frames + 8) * PAGE)
            return message(*args)

        return text

    for name in ("exhausted_message", "scratch_message"):
        monkeypatch.setattr(memory, name, resized_first(getattr(memory, name)))
    for n in range(40):
        if scratch:
            with work.write(n) as page:
                page[:] = stamp(n)
        else:
            kept.append(table[n])
    for n in range(40):
        assert np.array_equal((work if scratch else table)[n], stamp(n))
    assert pool.budget_frames > 16
    assert pool.stats().exhausted == 0
    kept.clear()


def test_a_resize_looks_once_more_when_its_time_is_over(make_pool, data_file, monkeypatch):
    """A resize waited for a flush until its timeout was over, and then said that pages were in the way which had long gone."""
    pool = make_pool()
    table, work, waits = pool.open_file(data_file(64)), pool.open_scratch("work", 4), []
    fill(work, [0])
    kept = [table[n] for n in range(40)]

    def wait(client, jobs, seconds, *_, **__):
        kept.clear()
        waits.append(seconds)
        time.sleep(max(0.0, seconds) + 0.01)
        return False, None

    monkeypatch.setattr(memory, "write_some", wait)
    pool.resize(16 * PAGE, timeout=0.1)
    assert waits
    assert pool.stats().frames.live <= 16
