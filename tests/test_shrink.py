"""A shrink among everything that can be in its way, while other processes work."""

import os
import signal
import time

import numpy as np

import bufferpool as bp
from tests.conftest import EXTENT, PAGE, WAIT, stamp, wait_until
from tests.stewards import CALM, FAST, PRESSED, Fake, Stop


def _storm(pool, path, seed, stop):
    """Pins, writes, loads, appends, drops, flushes: pages in every state."""
    table, rng, done, held = pool.open_file(path, "r+"), np.random.default_rng(seed), 0, []
    made = pool.open_derived("made", 200, _slow)
    work = pool.scratch("work", 8)
    while not stop.is_set():
        n = int(rng.integers(0, 300))
        try:
            match int(rng.integers(0, 8)):
                case 0 | 1:
                    with table.write(n, timeout=WAIT) as page:
                        page.view(np.uint64)[1:] = page.view(np.uint64)[0] + np.uint64(done)
                case 2 | 3:
                    page = table[n].view(np.uint64)
                    assert (page[1:] == page[1]).all() or np.array_equal(page.view(np.uint8), stamp(n))
                case 4:
                    assert made[n % 200][0] == n % 200
                case 5:
                    held.append(table[n])
                    del held[:-4]
                case 6:
                    pool.flush()
                case 7:
                    made.drop(n % 190, 10)
                    with work.write(n % 8, timeout=WAIT) as page:
                        page[0] ^= 1
        except bp.errors.PoolExhausted:
            held.clear()
        done += 1
    return done


def _slow(page_no, out):
    out[:] = page_no
    if page_no % 7 == 0:
        time.sleep(0.002)


def test_a_shrink_meets_pages_in_every_state_while_other_processes_work(make_pool, data_file, child, spawn):
    pool = make_pool(192 * PAGE, min_capacity=48 * PAGE)
    path, stop = data_file(300), Stop(spawn)
    workers = [child(_storm, pool, str(path), seed, stop, context="fork") for seed in range(3)]
    wait_until(lambda: pool.stats().publishes > 100, "they work")
    fake = Fake(CALM)
    pool.start_steward(interval=0.01, flush_every=0.2, source=fake, rules=FAST)
    for _ in range(6):
        pool._seg.set_budget(192)
        wait_until(lambda: pool.stats().resident_bytes > 150 * PAGE, "it fills")
        fake.reading = PRESSED["machine"][0]
        wait_until(lambda: pool.budget_frames == 48, "it gives way")
        wait_until(lambda: pool.stats().resident_bytes <= 48 * PAGE, "all of it")
        fake.reading = CALM
    os.kill(workers[0].pid, signal.SIGKILL)
    wait_until(lambda: pool.stats().reaped > 0, "the steward reaps the dead")
    fake.reading = PRESSED["machine"][0]
    wait_until(lambda: pool.budget_frames == 48 and pool.stats().resident_bytes <= 48 * PAGE, "once more")
    stop.set()
    assert all(worker.result() > 0 for worker in workers[1:])
    pool.stop_steward()
    stats = pool.stats()
    assert stats.resident_bytes <= stats.budget_bytes == 48 * PAGE
    assert stats.reclaimed_bytes["pressure"] > 6 * 100 * PAGE
    assert stats.kernel_data_bytes == stats.resident_bytes
    assert pool.check() == []
    assert EXTENT  # extents of four pages: compaction had work
    assert stats.compacted_pages > 0


def test_a_steward_killed_at_work_leaves_a_pool_in_order(make_pool, data_file, child, spawn):
    pool = make_pool(192 * PAGE, min_capacity=48 * PAGE)
    path, stop = data_file(300), Stop(spawn)
    worker = child(_storm, pool, str(path), 1, stop, context="fork")
    for seed in range(6):
        victim = child(_breathe, pool, context="fork")
        events = len(pool.events())
        wait_until(lambda least=events + 3 + seed: len(pool.events()) > least, "it shrinks and grows")
        victim.kill()
        wait_until(lambda: pool.reap() > 0 or pool.stats().clients == 2, "it is reaped")
    stop.set()
    assert worker.result() > 0
    assert pool.steward() == 0
    pool.resize(48 * PAGE, timeout=WAIT)
    assert pool.stats().resident_bytes <= 48 * PAGE
    assert pool.check() == []


def _breathe(pool):
    fake = Fake(PRESSED["psi"][0])
    pool.start_steward(interval=0.01, flush_every=0.1, source=fake, rules=FAST)
    while True:
        time.sleep(0.02)
        pool._seg.set_budget(192)
