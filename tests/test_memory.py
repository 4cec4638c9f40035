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
from tests.conftest import EXTENT, PAGE, ROOT, WAIT, kernel_bytes, on_small_tmpfs, pins, stamp

PER_EXTENT = EXTENT // PAGE


def fill(space, pages, version=0):
    for n in pages:
        with space.write(n) as page:
            page[:] = stamp(n, version=version)


def touch(space, pages):
    """Reads pages, and keeps none of them pinned."""
    for n in pages:
        assert space[n].size


def in_step(pool):
    """The pool's figures and the kernel's agree to the byte (on a quiet pool)."""
    stats = pool.stats()
    assert stats.kernel_bytes == kernel_bytes(pool)
    assert stats.kernel_data_bytes == stats.resident_bytes
    assert stats.frames["hole"] * PAGE + stats.resident_bytes == stats.max_bytes
    return stats


# ---- the budget ------------------------------------------------------------------------


def test_nothing_is_allocated_before_it_is_used(make_pool, data_file):
    pool = make_pool("1GiB", extent_size="256KiB")
    assert in_step(pool).kernel_data_bytes == 0
    table = pool.open_file(data_file(10))
    assert in_step(pool).kernel_data_bytes == 0
    touch(table, [3])
    assert 0 < in_step(pool).kernel_data_bytes <= 256 << 10


def test_the_budget_holds_at_every_moment_while_a_file_much_larger_is_read(pool, data_file, child, spawn):
    path = data_file(1000)
    stop = spawn.Event()
    readers = [child(_read_and_write, pool, str(path), seed, stop) for seed in range(2)]
    most = samples = 0
    started = deadline = time.monotonic()
    while time.monotonic() < deadline + 1.5 and time.monotonic() < started + 60:
        stats = pool.stats()
        if stats.loads < 200 or samples <= 10:  # the readers take their time to start
            deadline = time.monotonic()
        assert stats.resident_bytes <= stats.budget_bytes
        data = kernel_bytes(pool) - pool.stats().metadata_bytes
        most, samples = max(most, data), samples + 1
        assert data <= stats.budget_bytes
    stop.set()
    assert sum(reader.result() for reader in readers) > 100
    assert most > 0
    assert samples > 10
    stats = in_step(pool)
    assert stats.kernel_data_bytes <= stats.budget_bytes
    assert stats.misses > 64


def _read_and_write(pool, path, seed, stop):
    table = pool.open_file(path, "r+")
    random, done = np.random.default_rng(seed), 0
    while not stop.is_set():
        n = int(random.integers(0, len(table)))
        if done % 10 == 0:
            with table.write(n, timeout=WAIT) as page:
                assert np.array_equal(page, stamp(n))
        else:
            assert np.array_equal(table[n], stamp(n))
        done += 1
    return done


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
    assert after.kernel_bytes == before.kernel_bytes
    assert after.evictions_reclaimed == before.evictions_reclaimed


_FULL = """
import os, sys, bufferpool as bp
pool = bp.Pool.create(f"bptest-{os.getppid()}-strace{os.getpid()}", 64 * 4096, page_size=4096, extent_size=16384)
pool.unlink()
table = pool.open_file(sys.argv[1], "r+")
for n in range(200):
    table[n]
os.path.exists("/begin-here")
for n in range(1000):
    assert table[n][0] == 0
os.path.exists("/end-here")
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
    rest = [call for call in calls if call not in ("pread64", "futex")]
    assert len(rest) <= 20, sorted(set(rest))


# ---- giving back ----------------------------------------------------------------------------


def test_trim_gives_back_the_bytes_that_it_reports(pool, data_file):
    table = pool.open_file(data_file(200))
    touch(table, range(200))
    for want in (EXTENT, PAGE, 3 * PAGE, 5 * EXTENT, 7 * PAGE, "16KiB"):
        before, stats = kernel_bytes(pool), in_step(pool)
        given = pool.trim(bytes=want)
        assert given == (EXTENT if want == "16KiB" else want)
        assert before - kernel_bytes(pool) == given
        after = in_step(pool)
        assert after.reclaimed_bytes["trim"] - stats.reclaimed_bytes["trim"] == given
        assert after.reclaimed_total_bytes - stats.reclaimed_total_bytes == given
        assert after.budget_bytes == stats.budget_bytes
    left = in_step(pool).resident_bytes
    assert pool.trim(bytes="1GiB") == left
    assert in_step(pool).kernel_data_bytes == 0
    assert pool.trim(bytes=PAGE) == 0
    assert all(np.array_equal(table[n], stamp(n)) for n in range(200))


def test_trim_of_half_a_page_gives_a_page(pool, data_file):
    pool.open_file(data_file(10)).prefetch(range(10))
    assert pool.trim(bytes=1) == PAGE
    assert pool.trim(bytes=0) == 0
    assert pool.trim(bytes=PAGE + 1) == 2 * PAGE
    in_step(pool)


def test_trim_takes_the_coldest_pages(pool, data_file):
    table = pool.open_file(data_file(64))
    touch(table, range(64))
    for _ in range(10):
        touch(table, range(0, 64, 4))
        table.prefetch(range(64))
    assert pool.trim(bytes=32 * PAGE) == 32 * PAGE
    before = pool.stats().misses
    for n in range(0, 64, 4):
        assert np.array_equal(table[n], stamp(n))
    assert pool.stats().misses - before <= 4


def test_trim_flushes_dirty_pages_and_loses_nothing(pool, data_file):
    path = data_file(60)
    table = pool.open_file(path, "r+")
    fill(table, range(60), version=1)
    before = kernel_bytes(pool)
    given = pool.trim(bytes="1GiB")
    assert given >= 60 * PAGE
    assert before - kernel_bytes(pool) == given
    assert in_step(pool).frames["live"] == 0
    assert path.read_bytes() == b"".join(stamp(n, version=1).tobytes() for n in range(60))
    assert np.array_equal(table[7], stamp(7, version=1))


def test_trim_without_arguments_gives_the_free_frames_back(pool, data_file):
    table = pool.open_file(data_file(64))
    kept = [table[n] for n in range(0, 64, 8)]
    touch(table, range(64))
    pool.scratch("work", 1).remove()
    assert pool.trim() == in_step(pool).frames["free"] * PAGE == 0
    before = kernel_bytes(pool)
    freed = table.drop(1, 5)
    assert before - kernel_bytes(pool) == freed == 5 * PAGE
    pinned = kept.pop()
    table.drop(56, 1)
    del pinned
    assert in_step(pool).frames["free"] == 1
    before = kernel_bytes(pool)
    assert pool.trim() == PAGE
    assert before - kernel_bytes(pool) == PAGE
    assert in_step(pool).frames["free"] == 0
    assert all(np.array_equal(page, stamp(8 * i)) for i, page in enumerate(kept))


def test_trim_by_idle_time_gives_back_what_nobody_has_touched(pool, data_file):
    table = pool.open_file(data_file(40), "r+")
    touch(table, range(40))
    with table.write(5) as page:
        page[:] = stamp(5, version=1)
    kept = table[6]
    assert pool.trim(idle=3600) == 0
    time.sleep(1.2)
    touch(table, range(10, 20))
    frames = pool.frames()
    live = frames[frames["state"] == bp.FrameState.LIVE]
    assert (live["idle_s"][(live["page_no"] >= 10) & (live["page_no"] < 20)] < 1.0).all()
    assert (live["idle_s"][live["page_no"] >= 20] >= 1.0).all()
    before = kernel_bytes(pool)
    given = pool.trim(idle=0.9)
    assert given == (40 - 12) * PAGE
    assert before - kernel_bytes(pool) == given
    assert in_step(pool).reclaimed_bytes["idle"] == given
    frames = pool.frames()
    assert set(frames["page_no"][frames["state"] == bp.FrameState.LIVE].tolist()) == {5, 6, *range(10, 20)}
    assert np.array_equal(kept, stamp(6))


@pytest.mark.parametrize(
    "bad", [{"idle": -1}, {"idle": float("nan")}, {"bytes": -1}, {"bytes": 1, "idle": 1}, {"bytes": "much"}]
)
def test_a_trim_that_makes_no_sense_is_refused(pool, bad):
    with pytest.raises(ValueError, match=r"idle|bytes"):
        pool.trim(**bad)


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


def test_a_pool_may_grow_up_to_its_maximum(make_pool, data_file):
    pool = make_pool(8 * PAGE, max_capacity="1MiB")
    table = pool.open_file(data_file(256))
    for frames in (8, 256, 100, 256):
        pool.resize(frames * PAGE)
        touch(table, range(256))
        assert in_step(pool).resident_bytes == frames * PAGE
    for bad in (3 * PAGE, 257 * PAGE, 0, "2MiB"):
        with pytest.raises(ValueError, match="capacity must be"):
            pool.resize(bad)
    assert pool.budget_frames == 256


def test_resize_while_others_read_and_write(make_pool, data_file, child, spawn):
    pool = make_pool(256 * PAGE)
    path = data_file(600)
    stop = spawn.Event()
    workers = [child(_read_and_write, pool, str(path), seed, stop) for seed in range(2)]
    random, resizes = np.random.default_rng(4), 0
    deadline = time.monotonic() + 60
    given = 0
    done = 0
    while (resizes < 20 or pool.stats().publishes < done + 40) and time.monotonic() < deadline:
        if len(pool.clients()) < 3:  # they take their time to start
            resizes, done = 0, pool.stats().publishes
        frames = int(random.integers(16, 257))
        given += pool.resize(frames * PAGE, timeout=WAIT)
        stats = pool.stats()
        assert stats.resident_bytes <= frames * PAGE
        resizes += 1
        time.sleep(0.01)
    stop.set()
    assert all(worker.result() > 0 for worker in workers)
    assert resizes >= 20
    stats = in_step(pool)
    assert stats.reclaimed_bytes["budget"] == given > 0


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
            pool.trim(bytes=int(random.integers(0, 64 * PAGE)))
            pool.resize(64 * PAGE, timeout=WAIT)
            pool.trim(idle=0.0)
            pool.resize(128 * PAGE)
    finally:
        stop.set()
    threads.join()
    in_step(pool)


# ---- compaction -----------------------------------------------------------------------------


def _scatter(table):
    """64 pages, of which one an extent stays: (pages that stay, frame of each). The other frames are free."""
    touch(table, range(64))
    stay = [int(f["page_no"]) for f in table.pool.frames() if f["frame"] % PER_EXTENT == 1]
    assert len(stay) == 64 // PER_EXTENT
    for n in set(range(64)) - set(stay):
        assert table._drop_range(n, 1) == 1  # freed, but not given back
    assert in_step(table.pool).frames["free"] == 64 - len(stay)
    return stay


def test_compaction_gathers_scattered_pages_into_few_extents(pool, data_file):
    table = pool.open_file(data_file(64), "r+")
    stay = _scatter(table)
    before = kernel_bytes(pool)
    given = pool.trim()
    assert given == 48 * PAGE
    assert before - kernel_bytes(pool) == given
    stats = in_step(pool)
    assert stats.compacted_pages == 12
    extents = pool.extents()
    assert np.count_nonzero(extents["live"] == PER_EXTENT) == 4
    assert np.count_nonzero(extents["hole"] == PER_EXTENT) == 12
    for n in stay:
        assert np.array_equal(table[n], stamp(n))
    assert pool.stats().misses == 64


def test_compaction_moves_dirty_pages_too_and_they_stay_dirty(pool, data_file):
    path = data_file(64)
    table = pool.open_file(path, "r+")
    stay = _scatter(table)
    fill(table, stay[::2], version=1)
    free = in_step(pool).frames["free"]
    assert pool.trim() == free * PAGE
    stats = in_step(pool)
    assert stats.compacted_pages > 0
    assert stats.frames["dirty"] == 8
    for i, n in enumerate(stay):
        assert np.array_equal(table[n], stamp(n, version=i % 2 == 0))
    assert pool.flush() == 8
    data = path.read_bytes()
    assert all(data[n * PAGE : (n + 1) * PAGE] == stamp(n, version=1).tobytes() for n in stay[::2])


def test_compaction_leaves_pinned_pages_where_they_are(pool, data_file):
    table = pool.open_file(data_file(64), "r+")
    stay = _scatter(table)
    kept = {n: table[n] for n in stay[::3]}
    where = {int(f["page_no"]): int(f["frame"]) for f in pool.frames() if f["pins"]}
    assert len(where) == len(kept) == 6
    before = kernel_bytes(pool)
    given = pool.trim()
    assert given == 48 * PAGE
    assert before - kernel_bytes(pool) == given
    in_step(pool)
    assert {int(f["page_no"]): int(f["frame"]) for f in pool.frames() if f["pins"]} == where
    for n in stay:
        assert np.array_equal(table[n], stamp(n))
    for n, page in kept.items():
        assert np.array_equal(page, stamp(n))
    assert pool.stats().misses == 64


def test_pinned_pages_do_not_move_and_keep_their_content(pool, data_file):
    table = pool.open_file(data_file(64), "r+")
    touch(table, range(64))
    kept = {n: table[n] for n in range(0, 64, 5)}
    frames = pool.frames()
    where = {int(f["page_no"]): int(f["frame"]) for f in frames if f["pins"]}
    before = kernel_bytes(pool)
    given = pool.trim(bytes="1GiB")
    assert given == (64 - len(kept)) * PAGE
    assert before - kernel_bytes(pool) == given
    frames = pool.frames()
    assert {int(f["page_no"]): int(f["frame"]) for f in frames if f["pins"]} == where
    for n, page in kept.items():
        assert np.array_equal(page, stamp(n))
    misses = pool.stats().misses
    for n in kept:
        assert np.shares_memory(table[n], kept[n])
    assert pool.stats().misses == misses
    in_step(pool)


def test_a_superseded_version_that_a_reader_keeps_survives_giving_back(pool, data_file):
    table = pool.open_file(data_file(64), "r+")
    old = table[3]
    fill(table, [3], version=1)
    pool.trim(bytes="1GiB")
    assert np.array_equal(old, stamp(3))
    assert np.array_equal(table[3], stamp(3, version=1))
    del old
    pool.trim(bytes="1GiB")
    assert in_step(pool).kernel_data_bytes == 0


def test_reclaimed_bytes_are_counted_by_reason(pool, data_file):
    table = pool.open_file(data_file(64))
    table.prefetch(range(64))
    given = {
        "drop": table.drop(0, 8),
        "trim": pool.trim(bytes=8 * PAGE),
        "budget": pool.resize(16 * PAGE),
        "idle": 0,
        "pressure": 0,
        "client_exit": 0,
    }
    assert given["drop"] == given["trim"] == 8 * PAGE
    assert given["budget"] == 32 * PAGE
    stats = in_step(pool)
    assert stats.reclaimed_bytes == given
    assert stats.reclaimed_total_bytes == 48 * PAGE


# ---- nothing can go ---------------------------------------------------------------------------


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


# ---- a full /dev/shm ---------------------------------------------------------------------------

_SMALL = """
import os, sys
import numpy as np
import bufferpool as bp
from bufferpool.errors import SharedMemoryFull, PoolExhausted
where = sys.argv[1]
def create(name="pool", capacity="64MiB", **options):
    return bp.Pool.create(name, capacity, page_size=4096, directory=where, **options)
def ballast(room):
    "Fills the file system but for `room` bytes."
    with open(os.path.join(where, "ballast"), "wb") as file:
        free = os.statvfs(where).f_bavail * 4096
        os.posix_fallocate(file.fileno(), 0, free - room)
def full(use):
    try:
        use()
    except SharedMemoryFull as error:
        assert isinstance(error, MemoryError)
        assert "--shm-size" in str(error), error
        return "full"
    return "room"
"""

_CASES = {
    "create": """
ballast(64 << 10)
print(full(create), sorted(os.listdir(where)))
os.unlink(where + "/ballast")
pool = create()
print(full(lambda: pool.scratch("work", 4)[0]), pool.check())
""",
    "attach": """
pool = create()
ballast(0)
other = bp.Pool.attach("pool", directory=where)
print(pool.stats().clients, full(lambda: other.scratch("work", 1000)), pool.check())
os.unlink(where + "/ballast")
print(full(lambda: other.scratch("work", 1000)[5]), pool.check())
""",
    "load": """
path = sys.argv[2]
open(path, "wb").write(bytes(range(256)) * 16 * 4000)
pool = create()
table = pool.open_file(path)
before = pool.stats().kernel_bytes
for n in range(4000):  # 16 MB through 8 MiB: eviction, or an error, never a signal
    assert table[n][7] == 7
stats = pool.stats()
print(stats.resident_bytes < 8 << 20, stats.evictions_recycled > 0, pool.check())
kept = []
print(full(lambda: kept.extend(table[n] for n in range(4000))), len(kept) > 500)
assert all(page[9] == 9 for page in kept)
kept.clear()
print(all(table[n][3] == 3 for n in range(0, 4000, 7)), pool.check())
""",
    "write": """
pool = create()
work = pool.scratch("work", 4000)
done = []
def fill():
    for n in range(4000):
        with work.write(n) as page:
            page[:] = n % 251
        done.append(n)
print(full(fill), len(done) > 500)
print(all((work[n] == n % 251).all() for n in done), pool.check())
freed = work.drop(0, 100)
with work.write(3999) as page:
    page[:] = 5
print(freed == 100 * 4096, (work[3999] == 5).all(), all((work[n] == n % 251).all() for n in done[100:]), pool.check())
""",
    "append": """
path = sys.argv[2]
pool = create()
table = pool.open_file(path, "w+")
errors = 0
while len(table) < 3000:
    try:
        with table.append() as page:
            page[:] = (len(table)) % 251
    except SharedMemoryFull:
        errors += 1
        assert pool.trim(bytes="1MiB") > 0 and errors < 100
print(len(table), all((table[n] == n % 251).all() for n in range(3000)), pool.check())
""",
    "squeezed": """
pool = create()
work = pool.scratch("work", 2000)
for n in range(300):
    with work.write(n) as page:
        page[:] = 1
ballast(0)
done = []
def fill():
    for n in range(300, 2000):
        with work.write(n) as page:
            page[:] = 1
        done.append(n)
print(full(fill), len(done) < 300)
print((work[100] == 1).all(), pool.check())
os.unlink(where + "/ballast")
print(full(lambda: [work.write(1999).__enter__()]), pool.check())
""",
    "entries": """
pool = create(max_pages=1 << 27)
ballast(256 << 10)
print(full(lambda: pool.scratch("huge", 1 << 20)), pool.stats().spaces, pool.check())
os.unlink(where + "/ballast")
print(full(lambda: pool.scratch("small", 1000)[999]), pool.check())
""",
    "frames": """
pool = create(capacity="512MiB", max_clients=500)
ballast(100 << 10)
work = pool.scratch("work", 100)
print(full(lambda: [work[n] for n in range(100)]), pool.check())
os.unlink(where + "/ballast")
print(full(lambda: work[50]), pool.check())
""",
}

_WANT = {
    "create": ["full ['ballast']", "room []"],
    "attach": ["2 full []", "room []"],
    "load": ["True True []", "full True", "True []"],
    "write": ["full True", "True []", "True True True []"],
    "append": ["3000 True []"],
    "squeezed": ["full True", "True []", "room []"],
    "entries": ["full [] []", "room []"],
    "frames": ["full []", "room []"],
}


@pytest.mark.parametrize("case", _CASES)
def test_a_full_file_system_is_a_typed_error_never_sigbus(tmp_path, case):
    code = (_SMALL + _CASES[case]).replace("sys.argv[2]", repr(str(tmp_path / "data.db")))
    assert on_small_tmpfs(code, tmp_path).splitlines() == _WANT[case]


def test_looking_allocates_nothing(pool, data_file):
    table = pool.open_file(data_file(20))
    table.prefetch(range(20))
    table.drop(0, 10)
    extra = pool.scratch("extra", 10)
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
    queues = 3 * 8 + 1  # two rings of one and a half elements, two bitmaps
    assert (stats.metadata_bytes - before) / 4096 + queues <= 200


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
