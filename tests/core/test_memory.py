"""Memory: the budget, recycling, and giving back; what the pool reports is what the kernel counts, to the byte."""

import os
import re
import shutil
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

import bufferpool as bp
from bufferpool.errors import PoolExhausted
from tests.conftest import EXTENT, PAGE, PATIENCE, ROOT, WAIT, fill, in_step, kernel_bytes, stamp, touch, wait_until

pytestmark = pytest.mark.kernel

PER_EXTENT = EXTENT // PAGE

# ---- the budget ------------------------------------------------------------------------


def test_nothing_is_allocated_before_it_is_used(make_pool, data_file):
    pool = make_pool("512MiB", extent_size="256KiB")
    assert in_step(pool).kernel_data_bytes == 0
    table = pool.open_file(data_file(10))
    assert in_step(pool).kernel_data_bytes == 0
    touch(table, [3])
    assert 0 < in_step(pool).kernel_data_bytes <= 256 << 10


def test_the_budget_holds_at_every_moment_while_a_file_much_larger_is_read(pool, data_file, child, spawn):
    path = data_file(1000)
    stop = spawn.Event()
    done = spawn.RawArray("q", 2)
    readers = [child(_read_and_write, pool, str(path), seed, stop, done) for seed in range(2)]
    most = samples = 0
    end, enough = time.monotonic() + WAIT, 0.0  # enough: when to stop, once both readers are at work
    while time.monotonic() < (enough or end) or samples <= 10:
        stats = pool.stats()
        assert stats.resident_bytes <= stats.budget_bytes
        data = kernel_bytes(pool) - pool.stats().metadata_bytes
        most, samples = max(most, data), samples + 1
        assert data <= stats.budget_bytes
        if not enough:
            enough = time.monotonic() + 1.5 if _have_done(readers, done, 50) else 0.0
            time.sleep(0.01)
    stop.set()
    for reader in readers:
        reader.result()
    assert min(done) >= 50
    assert most > 0
    assert samples > 10
    stats = in_step(pool)
    assert stats.kernel_data_bytes <= stats.budget_bytes
    assert stats.misses > 64


def _read_and_write(pool, path, seed, stop, done):
    """Reads and verifies pages, and writes some, until it is stopped; counts them in done[seed]."""
    table = pool.open_file(path, "r+")
    random = np.random.default_rng(seed)
    while not stop.is_set():
        n = int(random.integers(0, len(table)))
        if done[seed] % 10 == 0:
            with table.write(n, timeout=WAIT) as page:
                assert np.array_equal(page, stamp(n))
        else:
            assert np.array_equal(table[n], stamp(n))
        done[seed] += 1


def _have_done(workers, done, least):
    """Whether each worker has done so much; raises what has ended one of them."""
    for worker in workers:
        if not worker.process.is_alive():
            worker.result()
    return min(done) >= least


def test_frames_are_recycled_without_giving_memory_back_while_the_pool_is_full(pool, data_file):
    table = pool.open_file(data_file(1000))
    touch(table, range(100))
    before = in_step(pool)
    for n in range(1000):
        assert np.array_equal(table[n], stamp(n))
    after = in_step(pool)
    assert after.evictions_recycled - before.evictions_recycled >= 900
    assert after.reclaimed_bytes == before.reclaimed_bytes
    assert after.resident_bytes == before.resident_bytes == after.budget_bytes
    assert after.kernel_data_bytes == before.kernel_data_bytes
    assert after.evictions_reclaimed == before.evictions_reclaimed


_FULL = """
import os, sys, time, bufferpool as bp
pool = bp.Pool.create(f"bptest-{os.getppid()}-strace{os.getpid()}", 64 * 4096, page_size=4096, extent_size=16384)
pool.unlink()
table = pool.open_file(sys.argv[1], "r+")
for n in range(200):
    table[n]
began = time.monotonic()
os.path.exists("/begin-here")
for n in range(1000):
    assert table[n][0] == 0
os.path.exists("/end-here")
print(time.monotonic() - began)
"""


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
def test_a_miss_in_a_full_pool_is_one_system_call(tmp_path):
    path, log = tmp_path / "zeros", tmp_path / "strace"
    path.write_bytes(bytes(1000 * PAGE))
    done = subprocess.run(
        ["strace", "-f", "-o", str(log), sys.executable, "-c", _FULL, str(path)],
        cwd=ROOT, capture_output=True, text=True, timeout=WAIT, check=False,
    )  # fmt: skip
    if "ptrace" in done.stderr or "Operation not permitted" in done.stderr:
        pytest.skip(f"strace does not work here: {done.stderr.strip()[:100]}")
    assert done.returncode == 0, done.stderr
    text = log.read_text()
    inside = text[text.index("/begin-here") : text.index("/end-here")]
    calls = re.findall(r"^\d+ +(\w+)\(", inside, re.M)
    assert calls.count("pread64") >= 900
    # A look at the time is a system call only where the machine has no clock that processes can read. The descriptors are
    # looked at some times a second; and a load that takes long asks how long its thread has waited for a processor.
    rest = [call for call in calls if call not in ("pread64", "futex", "clock_gettime")]
    assert len(rest) <= 20 + 50 * float(done.stdout), sorted(set(rest))


def test_looking_allocates_nothing(pool, data_file):
    table = pool.open_file(data_file(20))
    table.prefetch(range(20))
    table.drop(0, 10)
    extra = pool.open_scratch("extra", 10)
    fill(extra, [1])
    extra.remove()
    table.remove()
    before = kernel_bytes(pool)
    pool.stats(), pool.frames(), pool.extents(), pool.clients(), pool.check(), pool.budget_frames
    assert kernel_bytes(pool) == before


def test_metadata_is_at_most_200_bytes_a_frame(make_pool, data_file):
    pool = make_pool("32MiB", page_size=8192, extent_size="256KiB", max_clients=64)
    table = pool.open_file(data_file(4096, 8192))
    before = pool.stats().metadata_bytes
    table.prefetch(range(4096))
    stats = pool.stats()
    assert stats.resident_bytes == 32 << 20
    assert (stats.metadata_bytes - before) / 4096 <= 200  # with the entry of its page


# ---- giving back ----------------------------------------------------------------------------


def test_trim_gives_back_the_bytes_that_it_reports(pool, data_file):
    table = pool.open_file(data_file(200))
    touch(table, range(200))
    for want in (EXTENT, PAGE, 3 * PAGE, 5 * EXTENT, 7 * PAGE, "16KiB"):
        before, stats = kernel_bytes(pool), in_step(pool)
        given = pool.trim(want)
        assert given == (EXTENT if want == "16KiB" else want)
        assert before - kernel_bytes(pool) == given
        after = in_step(pool)
        assert after.reclaimed_bytes["trim"] - stats.reclaimed_bytes["trim"] == given
        assert after.reclaimed_total_bytes - stats.reclaimed_total_bytes == given
        assert after.budget_bytes == stats.budget_bytes
    left = in_step(pool).resident_bytes
    assert pool.trim("1GiB") == left
    assert in_step(pool).kernel_data_bytes == 0
    assert pool.trim(PAGE) == 0
    assert all(np.array_equal(table[n], stamp(n)) for n in range(200))


def test_trim_of_half_a_page_gives_a_page(pool, data_file):
    pool.open_file(data_file(10)).prefetch(range(10))
    assert pool.trim(1) == PAGE
    assert pool.trim(0) == 0
    assert pool.trim(PAGE + 1) == 2 * PAGE
    in_step(pool)


def test_trim_takes_the_coldest_pages(pool, data_file):
    table = pool.open_file(data_file(64))
    touch(table, range(64))
    for _ in range(10):
        touch(table, range(0, 64, 4))
        table.prefetch(range(64))
    assert pool.trim(32 * PAGE) == 32 * PAGE
    before = pool.stats().misses
    for n in range(0, 64, 4):
        assert np.array_equal(table[n], stamp(n))
    assert pool.stats().misses - before <= 4


def test_trim_flushes_dirty_pages_and_loses_nothing(pool, data_file):
    path = data_file(60)
    table = pool.open_file(path, "r+")
    fill(table, range(60), version=1)
    before = kernel_bytes(pool)
    given = pool.trim("1GiB")
    assert given >= 60 * PAGE
    assert before - kernel_bytes(pool) == given
    assert in_step(pool).frames.live == 0
    assert path.read_bytes() == b"".join(stamp(n, version=1).tobytes() for n in range(60))
    assert np.array_equal(table[7], stamp(7, version=1))


def test_trim_without_arguments_gives_the_free_frames_back(pool, data_file):
    table = pool.open_file(data_file(64))
    kept = [table[n] for n in range(0, 64, 8)]
    touch(table, range(64))
    pool.open_scratch("work", 1).remove()
    assert pool.trim() == in_step(pool).frames.free * PAGE == 0
    before = kernel_bytes(pool)
    freed = table.drop(1, 5)
    assert before - kernel_bytes(pool) == freed == 5 * PAGE
    pinned = kept.pop()
    table.drop(56, 1)
    del pinned
    assert in_step(pool).frames.free == 1
    before = kernel_bytes(pool)
    assert pool.trim() == PAGE
    assert before - kernel_bytes(pool) == PAGE
    assert in_step(pool).frames.free == 0
    assert all(np.array_equal(page, stamp(8 * i)) for i, page in enumerate(kept))


def test_trim_by_idle_time_gives_back_what_nobody_has_touched(pool, data_file):
    table = pool.open_file(data_file(40), "r+")
    touch(table, range(40))
    with table.write(5) as page:
        page[:] = stamp(5, version=1)
    kept = table[6]
    assert pool.trim_idle(3600) == pool.trim_idle(float("inf")) == 0
    for bad, error in (("60", TypeError), (True, TypeError), (-1, ValueError), (float("nan"), ValueError)):
        with pytest.raises(error, match="seconds must be"):
            pool.trim_idle(bad)
    gap = 1.2 * PATIENCE  # longer on a slow machine, which takes its time between two lines
    time.sleep(gap)
    began = time.monotonic()
    touch(table, range(10, 20))
    frames = pool.frames()
    live = frames[frames["state"] == bp.FrameState.LIVE]
    touched = live["idle_s"][(live["page_no"] >= 10) & (live["page_no"] < 20)]
    assert (touched < time.monotonic() - began + 0.2).all()
    assert (live["idle_s"][live["page_no"] >= 20] >= gap - 0.2).all()
    before = kernel_bytes(pool)
    given = pool.trim_idle(time.monotonic() - began + gap / 2)
    assert given == (40 - 12) * PAGE
    assert before - kernel_bytes(pool) == given
    assert in_step(pool).reclaimed_bytes["idle"] == given
    frames = pool.frames()
    assert set(frames["page_no"][frames["state"] == bp.FrameState.LIVE].tolist()) == {5, 6, *range(10, 20)}
    assert np.array_equal(kept, stamp(6))


@pytest.mark.parametrize(
    ("size", "error"), [(-1, ValueError), ("much", ValueError), (1.5, TypeError), (True, TypeError)]
)
def test_a_trim_that_makes_no_sense_is_refused(pool, size, error):
    with pytest.raises(error, match="size"):
        pool.trim(size)


def test_drop_gives_back_the_bytes_that_it_reports(pool, data_file):
    table = pool.open_file(data_file(64), "r+")
    fill(table, range(60))
    for first, count in ((0, 1), (3, 10), (20, 4), (0, 64)):
        before, stats = kernel_bytes(pool), in_step(pool)
        freed = table.drop(first, count)
        assert before - kernel_bytes(pool) == freed
        assert in_step(pool).reclaimed_bytes["drop"] - stats.reclaimed_bytes["drop"] == freed
    assert pool.stats().reclaimed_bytes["drop"] == 60 * PAGE
    pool.trim()
    assert in_step(pool).kernel_data_bytes == 0


def test_resize_gives_back_the_bytes_that_it_reports(pool, data_file):
    table = pool.open_file(data_file(200), "r+")
    touch(table, range(200))
    fill(table, range(20), version=1)
    for frames in (60, 33, 32, 7, 4, 64, 50):
        before, stats = kernel_bytes(pool), in_step(pool)
        given = pool.resize(frames * PAGE)
        after = in_step(pool)
        assert before - kernel_bytes(pool) == given == max(0, stats.resident_bytes - frames * PAGE)
        assert after.reclaimed_bytes["budget"] - stats.reclaimed_bytes["budget"] == given
        assert after.budget_bytes == frames * PAGE == pool.budget_frames * PAGE
        for n in range(100):
            assert np.array_equal(table[n], stamp(n, version=n < 20))
        assert in_step(pool).resident_bytes <= frames * PAGE
    assert pool.stats().resident_bytes == 50 * PAGE


def test_a_pool_may_grow_as_far_as_its_tmpfs_goes(make_pool, data_file):
    pool = make_pool(8 * PAGE, max_capacity="1MiB")
    table = pool.open_file(data_file(256))
    for frames in (8, 256, 100, 256):
        pool.resize(frames * PAGE)
        touch(table, range(256))
        assert in_step(pool).resident_bytes == frames * PAGE
    pool.resize("2MiB")  # a user's call may exceed the steward's maximum
    assert pool.budget_frames == 512
    pool.resize(256 * PAGE)
    for bad in (3 * PAGE, 0, 1 << 60):
        with pytest.raises(ValueError, match="capacity must be"):
            pool.resize(bad)
    assert pool.budget_frames == 256


def test_resize_while_others_read_and_write(make_pool, data_file, child, spawn):
    pool = make_pool(256 * PAGE)
    path = data_file(600)
    stop = spawn.Event()
    done = spawn.RawArray("q", 2)
    workers = [child(_read_and_write, pool, str(path), seed, stop, done) for seed in range(2)]
    wait_until(lambda: _have_done(workers, done, 1), "both are at work")
    random, given, before = np.random.default_rng(4), [], list(done)

    def resized_enough():
        frames = int(random.integers(16, 257))
        given.append(pool.resize(frames * PAGE, timeout=WAIT))
        assert pool.stats().resident_bytes <= frames * PAGE
        meanwhile = [now - was for now, was in zip(done, before, strict=True)]
        return len(given) >= 20 and _have_done(workers, meanwhile, 20)

    wait_until(resized_enough, "20 sizes, and each of the two has used 20 pages meanwhile")
    stop.set()
    for worker in workers:
        worker.result()
    stats = in_step(pool)
    assert stats.reclaimed_bytes["budget"] == sum(given) > 0


def test_resize_below_what_is_pinned_says_so_and_holds_all_the_same(pool, data_file):
    table = pool.open_file(data_file(64))
    kept = [table[n] for n in range(20)]
    before = kernel_bytes(pool)
    with pytest.raises(PoolExhausted, match=f"20 pinned.*pid {os.getpid()}"):
        pool.resize(8 * PAGE, timeout=0.1)
    assert before - kernel_bytes(pool) == pool.stats().reclaimed_bytes["budget"]
    assert pool.budget_frames == 8
    assert all(np.array_equal(page, stamp(n)) for n, page in enumerate(kept))
    del kept
    before = kernel_bytes(pool)
    given = pool.resize(8 * PAGE)
    assert before - kernel_bytes(pool) == given > 0
    assert in_step(pool).resident_bytes == 8 * PAGE


def test_trim_and_resize_while_threads_work(make_pool, data_file, threads):
    pool = make_pool(128 * PAGE)
    table = pool.open_file(data_file(300), "r+")
    stop = threading.Event()

    def work(seed):
        random = np.random.default_rng(seed)
        try:
            while not stop.is_set():
                n = int(random.integers(0, 300))
                if n % 5:
                    assert np.array_equal(table[n], stamp(n))
                else:
                    with table.write(n, timeout=WAIT) as page:
                        assert np.array_equal(page, stamp(n))
        finally:
            stop.set()

    for seed in range(3):
        threads.start(work, seed)
    deadline = time.monotonic() + 1.5
    random = np.random.default_rng(9)
    try:
        while time.monotonic() < deadline and not stop.is_set():
            pool.trim(int(random.integers(0, 64 * PAGE)))
            pool.resize(64 * PAGE, timeout=WAIT)
            pool.trim_idle(0.0)
            pool.resize(128 * PAGE)
    finally:
        stop.set()
    threads.join()
    in_step(pool)
