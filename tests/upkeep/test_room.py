"""Resizing: a pool may grow up to the size of its tmpfs, independent of max_capacity."""

import os
import resource
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import bufferpool as bp
from bufferpool.upkeep.steward import Settings, Steward
from tests.client.test_limits import MIB, in_child
from tests.conftest import PAGE, fill, in_step, kernel_bytes, stamp, touch, wait_until
from tests.support.children import on_small_tmpfs, run_python
from tests.upkeep import test_steward_memory as memory


def ones(page_no: int, out: np.ndarray) -> None:
    out[:] = page_no % 251


# ---- growing ------------------------------------------------------------------------


def test_a_pool_grows_beyond_what_was_said_at_its_creation(make_pool, attach):
    """A pool without max_capacity could never have more than its capacity: resize() raised ValueError."""
    pool = make_pool(16 * PAGE)
    other = attach(pool)
    assert pool.max_frames == 16
    assert pool.room_frames * PAGE >= os.statvfs("/dev/shm").f_blocks * os.statvfs("/dev/shm").f_frsize - 4 * PAGE
    made = pool.open_derived("made", 6000, ones)
    mine = other.open_derived("made", 6000, ones)
    for frames in (64, 700, 6000):
        pool.resize(frames * PAGE)
        assert pool.max_frames == other.max_frames == frames
        for n in range(frames):
            assert mine[n][0] == n % 251
        assert in_step(pool).resident_bytes == frames * PAGE
        assert pool.check() == []
    before = pool.stats().loads
    touch(made, range(6000))
    assert pool.stats().loads == before
    assert pool.resize(16 * PAGE) == 5984 * PAGE
    assert in_step(other).max_bytes == 16 * PAGE
    assert len(pool.data) >= 6000, "frames that are in use have rows"


def test_room_takes_no_memory(make_pool):
    """Rings, sets and shadows get their memory as they are used: the room of a whole tmpfs costs a few pages of tables."""
    wide, narrow = make_pool(64 * PAGE), make_pool(64 * PAGE, room=64 * PAGE)
    assert wide.room_frames > 1000 * narrow.room_frames
    for pool in (wide, narrow):
        fill(pool.open_scratch("work", 32), range(32))
    assert kernel_bytes(wide) - kernel_bytes(narrow) <= 8 * os.sysconf("SC_PAGESIZE")
    assert wide.stats().room_bytes == wide.room_frames * PAGE


@pytest.mark.parametrize("scans", [False, True], ids=["hot", "scanned"])
def test_no_page_is_lost_when_rings_that_wrap_grow(make_pool, data_file, scans):
    """Pages that no ring has could never be evicted again."""
    pool = make_pool(600 * PAGE)
    table = pool.open_file(data_file(5000))
    rng = np.random.default_rng(1)
    for frames in (800, 1500, 2400, 4000):
        for n in range(5000) if scans else rng.integers(0, 5000, 5000):  # the rings turn
            assert np.array_equal(table[int(n)], stamp(int(n)))
        assert pool.check() == []
        pool.resize(frames * PAGE)
        for n in range(0, 5000, 3):
            touch(table, [n, (7 * n) % 5000])
        assert pool.check() == []
    pool.resize(16 * PAGE)
    assert in_step(pool).resident_bytes == 16 * PAGE, "all can go"
    touch(table, range(5000))


def test_advice_goes_on_after_growth(make_pool, data_file):
    """The shadows of a pool of 64 frames cannot stand for one of thousands: they get more memory, and start anew."""
    pool = make_pool(64 * PAGE)
    table = pool.open_file(data_file(3000))
    touch(table, range(3000))
    before = pool.stats().metadata_bytes
    pool.resize(2000 * PAGE)
    assert pool.stats().metadata_bytes > before

    def sees_the_loop() -> bool:  # references are recorded in bursts, seconds apart where the machine is fast
        for _ in range(20):
            touch(table, range(3000))
        return pool.advise().points[-1].hit_ratio > 0.5

    wait_until(sees_the_loop, "the advice knows that 16,000 frames would hold the loop")
    advice = pool.advise()
    assert advice.references > 0
    assert [p.budget_frames for p in advice.points][3] == 1500
    assert advice.points[0].hit_ratio < 0.5 < advice.points[-1].hit_ratio


# ---- the steward's bounds -------------------------------------------------------------------


def test_a_steward_stays_within_its_bounds(make_pool, data_file, monkeypatch):
    """What a pool has room for is not what its steward may take: that is max_capacity, or what was asked for by hand."""
    pool = make_pool(64 * PAGE, max_capacity=128 * PAGE)
    table = pool.open_file(data_file(1000))
    monkeypatch.setattr(Steward, "_curve", staticmethod(lambda advise: lambda frames: 1e6 - 100.0 * frames))
    fake = memory.Fake()

    def settles(frames: int, rounds: int) -> bool:
        touch(table, range(1000))
        return pool.budget_frames == frames and fake.rounds > rounds

    pool.start_steward(Settings(interval=0.01, source=fake, rules=memory.FAST))
    for asked, most in ((64, 128), (400, 400), (64, 128)):
        pool.resize(asked * PAGE)
        assert pool.max_frames == most
        wait_until(partial(settles, most, 0), "the budget grows")
        wait_until(partial(settles, most, fake.rounds + 20), "it could grow more")
        assert pool.budget_frames == most
    pool.stop_steward()


# ---- how much room there is -----------------------------------------------------------------


_ROOM = """
import os, sys, bufferpool as bp
def pool(**options):
    return bp.Pool.create("pool", 64 * 4096, page_size=4096, extent_size=16384, directory=sys.argv[1], max_clients=8, **options)
"""


@pytest.mark.parametrize("size", ["8m", "0"])
def test_the_room_is_the_tmpfs(tmp_path: Path, size: str):
    """Without a limit (size=0) it is the machine's memory; and a max_capacity beyond the tmpfs holds."""
    code = f"""{_ROOM}
with pool() as made:
    print(made.room_frames, made.check())
    try:
        made.resize((made.room_frames + 1) * 4096)
    except ValueError as error:
        print("room=" in str(error), "tmpfs" in str(error), made.budget_frames)
    made.unlink()
with pool(max_capacity="16MiB") as made:
    print(made.max_frames, made.room_frames >= 4096)
    made.unlink()
with pool(room="1MiB") as made:
    print(made.max_frames, made.room_frames)
"""
    room, refused, beyond, given = on_small_tmpfs(code, tmp_path, size).splitlines()
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGESIZE")
    assert room == f"{2048 if size == '8m' else memory // 16384 * 4} []"
    assert refused == "True True 64"
    assert beyond == "4096 True"
    assert given == "64 256"


def test_no_memory_to_grow_into_leaves_the_budget_as_it_was(tmp_path: Path):
    """Memory for the tables may be refused half-way: a typed error, the old budget, and no memory that is not counted."""
    code = f"""{_ROOM}
from bufferpool.errors import SharedMemoryFull
made = pool()
work, more = made.open_scratch("work", 600), made.open_scratch("more", 1200)
with open(sys.argv[1] + "/ballast", "wb") as ballast:
    free = os.statvfs(sys.argv[1]).f_bavail * 4096
    os.posix_fallocate(ballast.fileno(), 0, free - 16384)
try:
    made.resize(2048 * 4096)
except SharedMemoryFull as error:
    print(error.errno, made.budget_frames, made.max_frames, made.check())
os.unlink(sys.argv[1] + "/ballast")
print(made.resize(1200 * 4096), made.max_frames)
for n in range(600):
    with work.write(n) as page:
        page[:] = n % 251
with open(sys.argv[1] + "/ballast", "wb") as ballast:
    free = os.statvfs(sys.argv[1]).f_bavail * 4096
    os.posix_fallocate(ballast.fileno(), 0, free)
try:
    for n in range(1200):
        with more.write(n) as page:
            page[:] = 1
except SharedMemoryFull as error:
    print("full", made.check())
print(all((work[n] == n % 251).all() for n in range(600)))
"""
    assert on_small_tmpfs(code, tmp_path).splitlines() == ["28 64 64 []", "0 1200", "full []", "True"]


@pytest.mark.parametrize("limit", ["RLIMIT_AS", "RLIMIT_FSIZE"])
def test_limits_of_the_creator_leave_less_room(pool_name: str, limit: str):
    """ulimit -v and -f allow a small pool, though not one with room for the whole tmpfs: it is made with less."""

    def create() -> object:
        # What this process has mapped already, pools of earlier tests perhaps, comes on top.
        mapped = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        most = (8 << 30) + (mapped if limit == "RLIMIT_AS" else 0)
        resource.setrlimit(getattr(resource, limit), (most, most))
        with bp.Pool.create(pool_name, "1MiB", page_size=PAGE) as pool:
            fill(pool.open_scratch("work", 64), range(64))
            return MIB < pool.room_frames * PAGE < 8 << 30, pool.check()

    assert in_child(create) == "(True, [])"


def test_a_process_that_may_not_map_the_room_learns_how_to_make_a_smaller_one(make_pool):
    """A worker under ulimit -v attaches to a pool that was made with less room, and hears of that where it cannot."""
    code = """
import resource, sys
import bufferpool as bp
resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
with bp.Pool.attach(sys.argv[1]) as pool:
    print(pool.check())
try:
    bp.Pool.attach(sys.argv[2])
except bp.errors.SegmentError as error:
    print(error.errno, "room=" in str(error))
"""
    done = run_python(code, make_pool(64 * PAGE, room=64 * PAGE).name, make_pool(64 * PAGE).name)
    assert done.stdout.splitlines() == ["[]", "12 True"], done.stderr
