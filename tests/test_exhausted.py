"""No frame can be had: who is told, who waits, and who finds one all the same."""

import os
import time

import numpy as np
import pytest

from bufferpool.errors import PoolExhausted

from .conftest import PAGE, WAIT, fill, pins, stamp, touch


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
    for what in ("of 64 frames", "Release pins", "resize", pool.name):
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
    while time.monotonic() < end:
        with table.write(int(random.integers(0, len(table))), timeout=WAIT) as page:
            page[:] = seed
        done += 1
    return done


def test_a_hot_ring_of_pages_that_cannot_go_does_not_hide_clean_pages(make_pool, data_file):
    frames, kept = 512, 140  # more pages than one look at the rings takes steps
    pool = make_pool(frames * PAGE)
    work = pool.scratch("work", kept)
    fill(work, range(kept))
    table = pool.open_file(data_file(4 * frames))
    random = np.random.default_rng(1)
    for i in range(40_000):  # places that move on: pages are used again soon and then no more, so the cold ring wins
        if i % 50 == 0:
            touch(work, range(kept))
        touch(table, [(i // 2 - int(random.exponential(300))) % len(table)])
    stats = pool.stats()
    assert stats.frames["dirty"] == kept  # there: nothing but them was hot, and every miss found a clean page
    assert stats.frames["hot"] == kept
    assert stats.evictions_recycled > 10_000
