"""A shrink among everything that can be in its way, while other processes work."""

import contextlib
import os
import signal
import threading
import time

import numpy as np
import pytest

import bufferpool as bp
from bufferpool.figures.names import EventKind
from tests.conftest import EXTENT, PAGE, WAIT, stamp, touch, wait_until
from tests.support.disks import Disk
from tests.support.stewards import CALM, FAST, PRESSED, Fake, Stop, leader, put, whats

HELD = 24  # pages of 128; the budget falls to 16


def _is_stamped(view, n):
    return np.array_equal(np.asarray(view), stamp(n))


def _pinned(pool, path, held, _resume):
    views = held.enter_context(pool.open_file(path, "r+").pin_many(range(HELD)))
    return lambda: all(_is_stamped(view, n) for n, view in enumerate(views))


def _dirty(pool, path, _held, _resume):
    table = pool.open_file(path, "r+")
    pool.durable_lsn = 0  # the log is not there yet: nobody may write them
    for n in range(HELD):
        put(table, n, version=7, lsn=1)

    def verify():
        whole = all(np.array_equal(table[n], stamp(n, version=7)) for n in range(HELD))
        pool.durable_lsn = 1
        return whole

    return verify


def _written(pool, path, held, _resume):
    table = pool.open_file(path, "r+")
    copies = [held.enter_context(table.write(n)) for n in range(HELD)]
    for copy in copies:
        copy.view(np.uint64)[0] = 99

    def verify():
        kept = all(_is_stamped(table[n], n) for n in range(HELD))  # not published yet
        held.close()
        return kept and all(table[n].view(np.uint64)[0] == 99 for n in range(HELD))

    return verify


def _loading(pool, _path, _held, resume):
    begun, results = threading.Semaphore(0), []

    def loader(n, out):
        begun.release()
        assert resume.wait(WAIT)
        out[:] = stamp(n)

    made = pool.open_derived("made", HELD, loader)
    loads = [threading.Thread(target=lambda n=n: results.append(_is_stamped(made[n], n))) for n in range(HELD)]
    for load in loads:
        load.start()
    for _ in loads:
        assert begun.acquire(timeout=WAIT)

    def verify():
        for load in loads:
            load.join(WAIT)
        return results == [True] * HELD

    return verify


def _leaving(pool, path, _held, _resume):
    """Dropped, and still looked at: the frames go with their last reader."""
    table = pool.open_file(path, "r+")
    views = [table[n] for n in range(HELD)]
    table.drop(0, HELD)

    def verify():
        return all(_is_stamped(view, n) for n, view in enumerate(views))

    return verify


def _flushed(pool, path, _held, resume):
    """In the hands of a flush whose disk takes its time."""
    disk, begun = Disk(HELD), threading.Event()
    disk.before_sync = lambda: (begun.set(), resume.wait(WAIT))
    table = pool.open_store("disk", disk, mode="r+")
    for n in range(HELD):
        put(table, n)
    flush = threading.Thread(target=table.flush)
    flush.start()
    assert begun.wait(WAIT)

    def verify():
        flush.join(WAIT)
        return np.array_equal(disk.durable, np.concatenate([stamp(n, version=1) for n in range(HELD)]))

    return verify


STATES = {
    "pinned": (_pinned, "pinned"),
    "dirty": (_dirty, "dirty"),
    "being written": (_written, "live"),
    "loading": (_loading, None),  # in private buffers: they take frames when they are there
    "leaving": (_leaving, "retired"),
    "being flushed": (_flushed, "dirty"),
}


def _hold(pool, path, state, ready, resume):
    """Brings pages into a state, and keeps them there; whether they were right all the time."""
    with contextlib.ExitStack() as held:
        verify = STATES[state][0](pool, path, held, resume)
        ready.set()
        assert resume.wait(WAIT)
        return verify()


def _work(pool, path, began, stop):
    """Reads and verifies other pages, and writes some, as far as there is room; sets `began` after the first one."""
    table, rng, done = pool.open_file(path, "r+"), np.random.default_rng(5), 0
    while not stop.is_set():
        n = int(rng.integers(HELD, 128))
        with contextlib.suppress(bp.errors.PoolExhausted):
            if done % 5 == 0:
                with table.write(n, timeout=WAIT) as page:
                    page[:] = stamp(n)
            assert _is_stamped(table[n], n)
        done += 1
        began.set()
    return done


@pytest.mark.parametrize("state", STATES)
def test_a_shrink_steps_round_what_cannot_go_and_takes_it_when_it_can(make_pool, data_file, child, spawn, state):
    """More pages of one state, in another process, than the budget is to have; a third process works meanwhile."""
    pool, path = make_pool(128 * PAGE, min_capacity=16 * PAGE), data_file(128)
    touch(pool.open_file(path, "r+"), range(128))
    ready, resume, began, stop = spawn.Event(), spawn.Event(), spawn.Event(), Stop(spawn)
    holder = child(_hold, pool, str(path), state, ready, resume, context="fork")
    assert ready.wait(WAIT)
    worker = child(_work, pool, str(path), began, stop, context="fork")
    counted = STATES[state][1]
    assert counted is None or getattr(pool.stats().frames, counted) >= HELD
    fake = Fake(PRESSED["machine"][0])
    pool.start_steward(bp.Settings(interval=0.01, flush_every=0.2, source=fake, rules=FAST))
    wait_until(lambda: pool.budget_frames == 16, "the budget falls")
    # All other memory is given back; the worker uses a frame or two at any moment.
    wait_until(lambda: pool.stats().resident_bytes <= (HELD + 8) * PAGE, "all other memory is given back")
    if counted is not None:
        assert getattr(pool.stats().frames, counted) >= HELD
        wait_until(lambda: EventKind.CANNOT_SHRINK in whats(pool), "it says so")
    fake.reading = CALM
    pool.client.seg.set_budget(128)  # a publish needs a frame
    resume.set()
    assert holder.result()
    fake.reading = PRESSED["machine"][0]
    wait_until(lambda: pool.budget_frames == 16 and pool.stats().resident_bytes <= 16 * PAGE, "they go when they can")
    assert began.wait(WAIT)  # while nothing was free, the worker may have waited at its first page
    stop.set()
    assert worker.result() > 0
    pool.stop_steward()
    pool.flush()


def _storm(pool, path, seed, stop, done):
    """Pins, writes, loads, appends, drops, flushes: pages in every state. Counts its operations in done[seed]."""
    table, rng, held = pool.open_file(path, "r+"), np.random.default_rng(seed), []
    made = pool.open_derived("made", 200, _slow)
    work = pool.open_scratch("work", 8)
    while not stop.is_set():
        n = int(rng.integers(0, 300))
        try:
            match int(rng.integers(0, 8)):
                case 0 | 1:
                    with table.write(n, timeout=WAIT) as page:
                        page.view(np.uint64)[1:] = page.view(np.uint64)[0] + np.uint64(done[seed])
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
        done[seed] += 1


def _slow(page_no, out):
    out[:] = page_no
    if page_no % 7 == 0:
        time.sleep(0.002)


def test_a_shrink_meets_pages_in_every_state_while_other_processes_work(make_pool, data_file, child, spawn):
    pool = make_pool(192 * PAGE, min_capacity=48 * PAGE)
    path, stop, done = data_file(300), Stop(spawn), spawn.RawArray("q", 3)
    workers = [child(_storm, pool, str(path), seed, stop, done, context="fork") for seed in range(3)]
    wait_until(lambda: min(done) > 30, "each of them works")
    fake = Fake(CALM)
    pool.start_steward(bp.Settings(interval=0.01, flush_every=0.2, source=fake, rules=FAST))
    for _ in range(6):
        pool.client.seg.set_budget(192)
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
    for worker in workers[1:]:
        worker.result()
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
    path, stop, done = data_file(300), Stop(spawn), spawn.RawArray("q", 1)
    worker = child(_storm, pool, str(path), 0, stop, done, context="fork")
    wait_until(lambda: done[0] > 0, "it works")
    for seed in range(6):
        victim = child(_breathe, pool, context="fork")
        events = len(pool.events())
        wait_until(lambda least=events + 3 + seed: len(pool.events()) > least, "it shrinks and grows")
        victim.kill()
        wait_until(lambda: pool.reap() > 0 or pool.stats().clients == 2, "it is reaped")
    stop.set()
    worker.result()
    assert leader(pool) == 0
    pool.resize(48 * PAGE, timeout=WAIT)
    assert pool.stats().resident_bytes <= 48 * PAGE
    assert pool.check() == []


def _breathe(pool):
    fake = Fake(PRESSED["psi"][0])
    pool.start_steward(bp.Settings(interval=0.01, flush_every=0.1, source=fake, rules=FAST))
    while True:
        time.sleep(0.02)
        pool.client.seg.set_budget(192)
