"""Spaces with pages of another size than the pool's: one budget of bytes, and what dies while memory moves."""

import contextlib
import json
import os
import pickle
import random
import signal
import threading
import time

import numpy as np
import pytest

import bufferpool as bp
from bufferpool.cli import doctor, main
from bufferpool.client import segment_file
from bufferpool.errors import (
    PoolExhausted,
    PoolReadOnly,
    SegmentNotFound,
    SegmentRefused,
    SpaceBusy,
    SpaceMismatch,
    SpaceNotFound,
    StoreError,
    UnsavedPages,
    WaitTimeout,
)
from bufferpool.prometheus.collector import read_snapshot
from bufferpool.upkeep import page_sizes
from tests.conftest import PAGE, SHM, WAIT, stamp, wait_until, write_file
from tests.support.children import exit_code, forked
from tests.support.disks import Disk, put

BIG = 65536
WHOLE = 16 << 20


def load(page_no, out):
    out[:] = page_no % 251


@pytest.fixture
def pool(make_pool):
    made = make_pool(WHOLE)
    yield made
    assert memory_of(made) <= made.capacity
    assert made.check() == []


def memory_of(pool):
    """The bytes of pages that the kernel counts for all segments of a pool."""
    found = 0
    for path in (SHM / pool.name, *SHM.glob(f"{pool.name}@*")):
        with contextlib.suppress(SegmentNotFound, FileNotFoundError), bp.Observer(path.name) as seen:  # just removed
            status = seen.seg.status()
            found += path.stat().st_blocks * 512 - status["metadata_bytes"]
    return found


def parts(pool):
    return {size: one.client.budget_frames * size for size, one in pool.page_sizes().items()}


def use(space, pages):
    for n in pages:
        assert space[int(n)][0] == n % 251


def attached(name):
    return bp.Pool.attach(name)


# ---- one pool, several sizes --------------------------------------------------------------


def test_a_pool_of_one_size_has_one_segment(pool):
    """``page_size=`` of the pool itself is no other size."""
    space = pool.open_derived("a", 10, load, page_size=PAGE)
    use(space, range(10))
    assert space.pool is pool
    assert list(pool.page_sizes()) == [PAGE]
    assert pool.client.seg.page_sizes() == (0, 0)
    assert pool.stats().by_page_size == {}
    assert not list(SHM.glob(f"{pool.name}@*"))
    assert pool.balance() == 0


@pytest.mark.parametrize("size", [4096 * 2, BIG, "128KiB"])
def test_a_space_has_pages_of_another_size(pool, tmp_path, size):
    size_bytes = bp.units.parse_size(size)
    path = write_file(tmp_path / "a.db", 20, size_bytes)
    space = pool.open_file(path, "r+", page_size=size)
    assert space.shape == (20, size_bytes)
    for n in range(20):
        assert np.array_equal(space[n], stamp(n, size_bytes))
    with space.write(3) as page:
        page[:] = stamp(3, size_bytes, 1)
    assert pool.stats().frames.dirty == 1
    assert pool.flush() == 1
    assert np.array_equal(np.fromfile(path, np.uint8, size_bytes, offset=3 * size_bytes), stamp(3, size_bytes, 1))
    with space.append() as page:
        page[:] = stamp(20, size_bytes)
    assert pool.flush(space) == 1
    assert path.stat().st_size == 21 * size_bytes
    assert pool.space("a.db").page_size == size_bytes


def test_all_kinds_of_spaces_have_page_sizes(pool):
    class Ones:
        def read_into(self, page_no, out):
            np.frombuffer(out, np.uint8)[:] = 1
            return len(out)

        def write_from(self, page_no, data):
            return len(data)

        def sync(self): ...
        def size(self):
            return 10 * BIG

    scratch = pool.open_scratch("s", 8, page_size=BIG)
    with scratch.write(2) as page:
        page[:] = 9
    assert scratch[2][BIG - 1] == 9
    store = pool.open_store("o", Ones(), page_size=BIG)
    assert len(store) == 10
    assert store[3].sum() == BIG
    use(pool.open_derived("d", 30, load, page_size=2 * BIG), range(30))
    assert sorted(pool.page_sizes()) == [PAGE, BIG, 2 * BIG]
    assert {s.name: s.page_size for s in pool.spaces()} == {"s": BIG, "o": BIG, "d": 2 * BIG}


def test_two_sizes_have_one_budget_in_bytes(pool):
    """Each size had a budget of its own, so that two of them took twice the memory, or one lacked what the other did not use."""
    small, large = pool.open_derived("a", 8000, load), pool.open_derived("b", 400, load, page_size=BIG)
    for first in range(0, 400, 40):
        use(large, range(first, first + 40))
        use(small, range(20 * first, 20 * first + 800))
        assert memory_of(pool) <= WHOLE
        pool.balance()
        assert sum(parts(pool).values()) <= WHOLE
    stats = pool.stats()
    assert stats.budget_bytes == WHOLE
    assert stats.resident_bytes == memory_of(pool) > WHOLE * 0.9
    assert stats.misses == 8400
    assert stats.frames.live == sum(s.resident for s in stats.spaces)
    assert sum(one.resident_bytes for one in stats.by_page_size.values()) == stats.resident_bytes


def test_memory_moves_to_the_size_whose_bytes_earn_more(pool, monkeypatch):
    """A large page must earn more than a small one: what counts is misses saved for each byte."""
    small, large = pool.open_derived("a", 8000, load), pool.open_derived("b", 400, load, page_size=BIG)
    use(small, range(8000))
    use(large, range(400))
    slopes = {PAGE: 1.0, BIG: 10.0}  # misses a second that a frame saves; of a byte the small ones save more
    monkeypatch.setattr(
        page_sizes.govern, "curve_of", lambda advice: lambda frames: 1e9 - slopes[advice.page_size] * frames
    )
    before = parts(pool)
    assert pool.balance() > 0
    assert parts(pool)[BIG] < before[BIG]
    assert parts(pool)[PAGE] > before[PAGE]
    slopes[BIG] = 100.0
    for _ in range(5):
        use(small, range(8000))
        use(large, range(400))
        pool.balance()
        assert memory_of(pool) <= WHOLE
    assert parts(pool)[BIG] > before[BIG]


def test_a_steward_moves_memory_to_the_size_that_misses(pool):
    """The working set of the large pages is three quarters of the pool, and the small ones are not used any more."""
    use(pool.open_derived("a", 4000, load), range(4000))
    large = pool.open_derived("b", 190, load, page_size=BIG)
    pool.start_steward(bp.Settings(interval=0.02, pressure=False))
    rng = np.random.default_rng(1)

    def grown():
        use(large, rng.integers(0, 190, 200))
        return parts(pool)[BIG] > WHOLE * 0.7

    wait_until(grown, "the part of the large pages grows")
    pool.stop_steward()
    assert memory_of(pool) <= WHOLE


def read_one(large, n):
    assert large[n][0] == n % 251


def read_some(large, n):
    assert list(large.read_many([n, (n + 1) % 190])[:, 0]) == [n % 251, (n + 1) % 190 % 251]


@pytest.mark.parametrize("read", [read_one, read_some], ids=["one", "many"])
def test_misses_take_the_memory_that_another_size_does_not_need(pool, read):
    """Without a steward a new size had an eighth of the budget for ever, beside pages that nobody used any more."""
    use(pool.open_derived("a", 4000, load), range(4000))
    large = pool.open_derived("b", 190, load, page_size=BIG)
    assert parts(pool)[BIG] <= WHOLE // 4
    rng = np.random.default_rng(1)

    def grown():
        for n in rng.integers(0, 190, 200):
            read(large, int(n))
        assert memory_of(pool) <= WHOLE
        return parts(pool)[BIG] > WHOLE * 0.7

    wait_until(grown, "the part of the large pages grows")
    before = pool.stats().misses
    for n in rng.integers(0, 190, 400):
        read(large, int(n))
    assert pool.stats().misses - before < 200


def test_misses_move_no_memory_beside_a_steward_or_a_process_that_has_the_lock(pool, monkeypatch):
    """A miss waited for the lock of the page sizes, which a stopped process had."""
    moves = []
    monkeypatch.setattr(page_sizes, "_balance", lambda *how: moves.append(how) or 0)
    use(pool.open_derived("a", 4000, load), range(4000))
    large = pool.open_derived("b", 190, load, page_size=BIG)
    with pool.client.lock_sizes(WAIT):
        assert not page_sizes.follow_misses(large.pool.client)
        use(large, range(190))
    assert moves == []
    pool.start_steward(bp.Settings(interval=60.0))
    assert page_sizes.follow_misses(large.pool.client)
    assert all(page_sizes.MISS_STEP_BYTES not in how for how in moves)  # the steward moves some in its first round
    pool.stop_steward()
    assert page_sizes.follow_misses(large.pool.client)
    assert page_sizes.MISS_STEP_BYTES in moves[-1]


def test_the_steward_writes_and_reaps_in_every_size(pool, tmp_path, child):
    space = pool.open_file(write_file(tmp_path / "a", 8, BIG), "r+", page_size=BIG)
    with space.write(1) as page:
        page[:] = 7
    pool.start_steward(bp.Settings(interval=0.02, flush_every=0.05))
    wait_until(lambda: pool.stats().frames.dirty == 0, "the page is written")
    assert np.fromfile(tmp_path / "a", np.uint8)[BIG] == 7
    pool.stop_steward()


def test_pins_of_one_size_take_memory_of_the_others(pool):
    """A new size has a part of the budget; a process that pinned more pages than that was refused, though the rest was not in
    use."""
    use(pool.open_derived("a", 4000, load), range(4000))
    large = pool.open_derived("b", 400, load, page_size=BIG)
    before, held = parts(pool)[BIG], []
    for n in range(int(WHOLE * 0.8) // BIG):
        held.append(large[n])
    assert parts(pool)[BIG] > before
    assert memory_of(pool) <= WHOLE
    with pytest.raises(PoolExhausted):
        held += [large[n] for n in range(400)]
    assert all(page[0] == n % 251 for n, page in enumerate(held[:100]))
    del held
    use(large, range(400))


def test_scratch_pages_of_one_size_take_memory_of_the_others(pool):
    use(pool.open_derived("a", 4000, load), range(4000))
    work = pool.open_scratch("s", 160, page_size=BIG)
    for n in range(160):
        with work.write(n) as page:
            page[:] = n
    assert all(work[n][5] == n for n in range(160))
    work.drop()


def test_a_reserve_is_made_room_for(pool):
    use(pool.open_derived("a", 4000, load), range(4000))
    large = pool.open_derived("b", 400, load, page_size=BIG, reserve=WHOLE // 2)
    use(large, range(400))
    for _ in range(30):
        pool.balance()
    assert parts(pool)[BIG] >= WHOLE // 2


# ---- names, and what is refused -----------------------------------------------------------


def test_a_name_belongs_to_one_space_of_any_size(pool, tmp_path):
    path = write_file(tmp_path / "f", 32, PAGE)
    pool.open_derived("small", 10, load)
    pool.open_derived("large", 10, load, page_size=BIG)
    pool.open_file(path)
    for open_it in (
        lambda: pool.open_derived("small", 10, load, page_size=BIG),
        lambda: pool.open_derived("large", 10, load),
        lambda: pool.open_scratch("large", 10),
        lambda: pool.open_file(path, page_size=2 * PAGE),
        lambda: pool.open_file(path, name="again", page_size=2 * PAGE),
    ):
        with pytest.raises(SpaceMismatch, match=r"page_size|name="):
            open_it()
    assert pool.space("large").page_size == BIG
    with pytest.raises(SpaceNotFound):
        pool.space("none")


@pytest.mark.parametrize("size", [1000, 100, PAGE * 3, 4 << 20, "x", 0, True, 1 << 31])
def test_page_sizes_that_do_not_fit_are_refused(pool, size):
    with pytest.raises((ValueError, TypeError)):
        pool.open_scratch("s", 4, page_size=size)
    assert list(pool.page_sizes()) == [PAGE]
    assert not list(SHM.glob(f"{pool.name}@*"))


def test_a_size_for_which_there_is_no_memory_is_not_made(pool):
    """All pages were pinned; the file stayed, and the pool had lost four pages of its budget."""
    small = pool.open_derived("a", 5000, load)
    with small.pin_many(range(WHOLE // PAGE - 10)), pytest.raises(PoolExhausted, match="64KiB"):
        pool.open_derived("b", 4, load, page_size=BIG)
    assert not list(SHM.glob(f"{pool.name}@*"))
    assert pool.client.budget_frames * PAGE == pool.capacity == WHOLE
    assert pool.client.seg.page_sizes() == (0, 0)
    use(pool.open_derived("b", 4, load, page_size=BIG), range(4))


def test_a_size_is_removed_beside_a_steward(pool):
    """The steward's round used the attachment that the removal had closed, and ended with PoolClosed."""
    pool.start_steward(bp.Settings(interval=0.001))
    for _ in range(5):
        large = pool.open_derived("b", 20, load, page_size=BIG)
        use(large, range(20))
        time.sleep(0.01)
        large.remove()
        pool.remove_page_size(BIG)
    pool.stop_steward()


def test_who_may_only_read_makes_no_page_size(pool):
    with bp.Pool.attach(pool.name, mode="r") as reader:
        with pytest.raises(PoolReadOnly):
            reader.open_derived("b", 4, load, page_size=BIG)
        pool.open_derived("b", 4, load, page_size=BIG)
        use(reader.open_derived("b", 4, load, page_size=BIG), range(4))


def test_a_group_is_published_in_one_size(pool):
    small, large = pool.open_scratch("a", 4), pool.open_scratch("b", 4, page_size=BIG)
    with pool.publish_many() as group:
        group.write(small, 0)[:] = 1
        with pytest.raises(ValueError, match="another size"):
            group.write(large, 0)
    with large.pool.publish_many() as group:
        for n in (0, 1):
            group.write(large, n)[:] = 5
    assert large[1][0] == 5


def test_a_page_size_is_removed_when_it_is_empty(pool):
    use(pool.open_derived("a", 4000, load), range(4000))
    large = pool.open_derived("b", 100, load, page_size=BIG)
    use(large, range(100))
    with pytest.raises(SpaceBusy):
        pool.remove_page_size(BIG)
    with pytest.raises(ValueError, match="unlink"):
        pool.remove_page_size(PAGE)
    with pytest.raises(SpaceNotFound):
        pool.remove_page_size(2 * BIG)
    large.remove()
    assert pool.remove_page_size("64KiB") > 0
    assert not list(SHM.glob(f"{pool.name}@*"))
    assert pool.client.budget_frames * PAGE == pool.capacity == WHOLE
    use(pool.open_derived("b", 100, load, page_size=BIG), range(100))


@pytest.mark.parametrize("lifetime", ["pool", "process"])
def test_no_space_is_added_to_a_size_that_was_removed(pool, lifetime):
    """A process that had looked for the size before its removal made a space in the removed file, which no other process could
    find."""
    part = pool.open_scratch("b", 4, page_size=BIG).pool
    pool.space("b", "r+").remove()
    pool.remove_page_size(BIG)
    for _ in range(2):
        with pytest.raises(SpaceBusy, match="open the space in that pool"):
            part.open_scratch("c", 4, lifetime=lifetime)
        pool.open_scratch("d", 4, page_size=BIG)  # the size is there again, in a new file


def test_all_sizes_are_removed_with_the_pool(make_pool, tmp_path):
    pool = make_pool(WHOLE)
    space = pool.open_file(write_file(tmp_path / "a", 4, BIG), "r+", page_size=BIG)
    with space.write(0) as page:
        page[:] = 1
    part = f"{pool.name}@64KiB"
    assert (SHM / part).exists()
    with pytest.raises(SegmentRefused, match="page size of the pool"):
        bp.Pool.remove(part, discard=True)
    with pytest.raises(UnsavedPages):
        pool.unlink()
    pool.unlink(discard=True)
    assert not list(SHM.glob(f"{pool.name}*"))
    assert space[1].size == BIG  # attached processes can still use the pool


def test_an_attached_process_keeps_all_sizes_of_a_pool_that_is_removed(make_pool, tmp_path):
    """The sizes of a removed pool counted as removed from it: a flush wrote the pages of the pool's own size only."""
    pool = make_pool(WHOLE)
    small = pool.open_file(write_file(tmp_path / "a", 4), "r+")
    large = pool.open_file(write_file(tmp_path / "b", 4, BIG), "r+", page_size=BIG)
    for space in (small, large):
        with space.write(1) as page:
            page[:] = 7
    with bp.Observer(pool.name) as seen:
        assert list(seen.page_sizes()) == [PAGE, BIG]
        bp.Pool.attach(pool.name).unlink(discard=True)
        assert list(pool.page_sizes()) == list(seen.page_sizes()) == [PAGE, BIG]
    use_one = pool.open_derived("c", 4, load, page_size=BIG)
    assert use_one[3][0] == 3
    assert pool.flush() == 2
    assert np.fromfile(tmp_path / "b", np.uint8)[BIG] == 7


def test_a_steward_of_a_page_size_is_refused_by_the_command(pool, capsys):
    """The command ended with a traceback."""
    pool.open_scratch("s", 4, page_size=BIG)
    with pytest.raises(SystemExit):
        main(["steward", f"{pool.name}@64KiB"])
    assert "serves all of them" in capsys.readouterr().err


def test_a_segment_of_an_earlier_pool_of_the_name_is_not_taken(make_pool, pools):
    """The file of a pool was removed by hand, and those of its other sizes were left."""
    name = make_pool(WHOLE).name
    bp.Pool.attach(name).open_scratch("s", 4, page_size=BIG)
    for pool in pools.pools:
        pool.close()
    os.unlink(SHM / name)
    with bp.Pool.create(name, WHOLE, page_size=PAGE) as pool:
        with pytest.raises(bp.errors.SegmentExists, match="bufferpool rm"):
            pool.open_scratch("s", 4, page_size=BIG)
        bp.Pool.remove(f"{name}@64KiB", discard=True)
        pool.open_scratch("s", 4, page_size=BIG)
        assert pool.check() == []


# ---- the budget ---------------------------------------------------------------------------


def test_resize_is_of_all_sizes(pool):
    small, large = pool.open_derived("a", 8000, load), pool.open_derived("b", 400, load, page_size=BIG)
    use(small, range(4000))
    use(large, range(400))
    for capacity in (WHOLE // 2, WHOLE // 4, 5 << 20, WHOLE, 2 * WHOLE, WHOLE):
        pool.resize(capacity)
        assert pool.capacity == capacity
        assert memory_of(pool) <= capacity
        assert capacity - 2 * BIG <= sum(parts(pool).values()) <= capacity
        use(small, range(4000))
        use(large, range(400))
    with pytest.raises(ValueError, match="four pages of each"):
        pool.resize(5 * BIG - BIG)


def test_a_part_of_the_budget_is_not_changed_alone(pool):
    """A steward of one size would have set its budget as if it were a pool."""
    part = pool.open_derived("b", 4, load, page_size=BIG).pool
    with pytest.raises(ValueError, match="page size of the pool"):
        part.start_steward()
    with pytest.raises(ValueError, match="has the budget"):
        part.resize(WHOLE)
    with pytest.raises(ValueError, match="open spaces of other sizes in the pool"):
        part.open_derived("c", 4, load, page_size=PAGE)


def test_a_file_changes_its_page_size(pool, tmp_path, child):
    """The claim on the file was of the former segment, as if another pool wrote it."""
    path = write_file(tmp_path / "f", 32)
    with pool.open_file(path, "r+").write(0) as page:
        page[:] = 1
    with pytest.raises(SpaceMismatch):
        pool.open_file(path, "r+", page_size=2 * PAGE)
    pool.space("f").remove()
    space = pool.open_file(path, "r+", page_size=2 * PAGE)
    assert len(space) == 16
    with space.write(0) as page:
        assert page[0] == 1
        page[:] = 2
    assert pool.flush() == 1
    with pytest.raises(SpaceMismatch):
        pool.open_file(path)


def test_trim_and_idle_are_of_all_sizes(pool):
    use(pool.open_derived("a", 2000, load), range(2000))
    use(pool.open_derived("b", 100, load, page_size=BIG), range(100))
    before = memory_of(pool)
    assert pool.trim(4 << 20) >= 4 << 20
    assert memory_of(pool) <= before - (4 << 20)
    pool.trim_idle(0.0)
    wait_until(lambda: pool.trim_idle(0.0) == 0 and memory_of(pool) == 0, "all idle pages leave")


def test_lsns_and_the_log_are_of_all_sizes(pool, tmp_path):
    """A page of another size was written before the log, because only the pool's own segment knew the engine's LSN."""
    pool.durable_lsn = 5
    large = pool.open_file(write_file(tmp_path / "b", 4, BIG), "r+", page_size=BIG)
    small = pool.open_file(write_file(tmp_path / "a", 4), "r+")
    for space, lsn in ((large, 10), (small, 20)):
        with space.write(0, lsn=lsn) as page:
            page[:] = 1
    assert pool.flush() == 0
    assert pool.checkpoint() <= 6
    pool.durable_lsn = 10
    assert pool.flush() == 1
    synced = []
    pool.log_sync = lambda lsn: synced.append(lsn) or 30
    with large.write(1, lsn=25) as page:
        page[:] = 2
    assert pool.checkpoint(up_to_lsn=30) > 25
    assert max(synced) >= 25
    assert pool.stats().frames.dirty == 0
    pool.advance_durable_lsn(40)
    assert {one.durable_lsn for one in pool.page_sizes().values()} == {40}


# ---- other processes ----------------------------------------------------------------------


def use_by_name(name, space):
    with attached(name) as pool:
        opened = pool.open_derived("b", 60, load, page_size=BIG)
        use(opened, range(60))
        assert pool.space("b").page_size == BIG
        use(pickle.loads(space), range(60))
        return parts(pool), pool.stats().misses


def test_another_process_finds_the_size_by_name_and_by_pickle(pool, child):
    large = pool.open_derived("b", 60, load, page_size=BIG)
    use(large, range(60))
    found, misses = child(use_by_name, pool.name, pickle.dumps(pool.space("b"))).result()
    assert found == parts(pool)
    assert misses == 60  # they share the pages


def test_a_forked_child_uses_all_sizes(pool):
    large = pool.open_derived("b", 60, load, page_size=BIG)
    held = large[3]

    def in_child():
        use(large, range(60))
        pool.balance()
        assert held[0] == 3

    assert exit_code(forked(in_child)) == 0
    use(large, range(60))


def open_at_once(name, barrier, number):
    barrier.wait(WAIT)
    with attached(name) as pool:
        try:
            space = pool.open_derived("x", 50, load, page_size=BIG if number % 2 else PAGE)
        except SpaceMismatch:
            return None
        use(space, range(50))
        return space.page_size


def test_processes_that_open_a_name_in_two_sizes_at_once_get_one(make_pool, child, spawn):
    """The first of them makes the segment, and the error of a later one names the other size."""
    for _ in range(3):
        pool = make_pool(WHOLE)
        barrier = spawn.Barrier(4)
        sizes = [
            one.result() for one in [child(open_at_once, pool.name, barrier, n, context="spawn") for n in range(4)]
        ]
        assert len({size for size in sizes if size}) == 1
        assert len([s for s in pool.spaces() if s.name == "x"]) == 1
        assert pool.check() == []


# ---- deaths -------------------------------------------------------------------------------


def die(*_args, **_kwargs):
    os.kill(os.getpid(), signal.SIGKILL)


def dies_in(name, where, what):
    """Does something with a pool, and is killed in the middle of it."""
    pool = attached(name)
    setattr(page_sizes, where, die)
    if what == "open":
        pool.open_derived("b", 100, load, page_size=BIG)
    elif what == "balance":
        pool.balance()
    elif what == "remove":
        pool.space("b").remove()
        pool.remove_page_size(BIG)
    else:
        pool.resize(int(what))
    return "it is alive"


@pytest.mark.parametrize("where", ["_give_first_part", "_take", "_copy_lsn", "_demand", "_grant"])
def test_a_death_while_a_size_is_made_leaves_nothing_behind(pool, child, where):
    """Its file was there without a part of the budget; and the memory that was taken for it belonged to no size."""
    small = pool.open_derived("a", 4000, load)
    use(small, range(4000))
    with pytest.raises(AssertionError, match="exit code -9"):
        child(dies_in, pool.name, where, "open").result()
    assert memory_of(pool) <= pool.capacity == WHOLE
    use(pool.open_derived("b", 100, load, page_size=BIG), range(100))
    use(small, range(4000))
    pool.balance()
    assert WHOLE - BIG <= sum(parts(pool).values()) <= WHOLE
    pool.reap()
    assert [len(one.clients()) for one in pool.page_sizes().values()] == [1, 1]


def both_full(pool, monkeypatch=None):
    small, large = pool.open_derived("a", 4000, load), pool.open_derived("b", 200, load, page_size=BIG)
    use(small, range(4000))
    use(large, range(200))
    return small, large


@pytest.mark.parametrize("what", ["balance", "resize"])
@pytest.mark.parametrize("where", ["_take", "_grant", "_take_proportionally"])
def test_a_death_in_a_move_leaves_the_sum_below_the_budget(pool, child, where, what):
    """The step before it is whole; memory that no size has is given out by the next move."""
    small, large = both_full(pool)
    # Give the other size memory that it has no use for, so that a balance moves some.
    pool.trim(8 << 20)
    use(small, range(4000))
    with contextlib.suppress(AssertionError):
        child(dies_in, pool.name, where, "balance" if what == "balance" else str(WHOLE // 2)).result()
    assert memory_of(pool) <= WHOLE
    assert sum(parts(pool).values()) <= pool.capacity
    use(small, range(4000))
    use(large, range(200))
    assert memory_of(pool) <= WHOLE
    pool.balance()
    assert pool.capacity - BIG <= sum(parts(pool).values()) <= pool.capacity
    assert pool.check() == []


def test_what_a_dead_process_has_left_above_a_part_is_given_out(pool):
    """It had made the part of a size smaller, and died before the pages left: they had memory that no part had, and no move changed that."""
    small, _ = both_full(pool)
    before = parts(pool)[PAGE]
    pool.client.seg.set_budget(before // PAGE - 512)
    pool.balance()
    assert WHOLE - BIG <= sum(parts(pool).values()) <= WHOLE
    use(small, range(4000))
    assert memory_of(pool) <= WHOLE


@pytest.mark.parametrize("where", ["_take", "_unlink", "_settle", "_grant"])
def test_a_death_while_a_size_is_removed(pool, child, where):
    both_full(pool)
    with pytest.raises(AssertionError, match="exit code -9"):
        child(dies_in, pool.name, where, "remove").result()
    assert pool.capacity == WHOLE
    assert memory_of(pool) <= WHOLE
    pool.balance()
    bits, whole = pool.client.seg.page_sizes()
    assert whole == (WHOLE if bits else 0)
    assert WHOLE - BIG <= sum(parts(pool).values()) <= WHOLE
    large = pool.open_derived("b", 200, load, page_size=BIG)
    use(large, range(200))
    large.remove()
    pool.remove_page_size(BIG)
    assert pool.client.budget_frames * PAGE == WHOLE


def storm_worker(name, seed):
    rng = random.Random(seed)
    pool = attached(name)
    small = pool.open_derived("a", 3000, load)
    while True:
        try:
            large = pool.open_derived("b", 150, load, page_size=BIG)
            larger = pool.open_derived("c", 60, load, page_size=2 * BIG)
            for _ in range(rng.randrange(40)):
                use(
                    *rng.choice(
                        [
                            (small, rng.sample(range(3000), 50)),
                            (large, rng.sample(range(150), 5)),
                            (larger, rng.sample(range(60), 3)),
                        ]
                    )
                )
            held = [large[n] for n in rng.sample(range(150), 3)]
            what = rng.randrange(4)
            if what == 0:
                pool.balance()
            elif what == 1:
                pool.resize(rng.choice([WHOLE // 2, WHOLE]), timeout=0.05)
            elif what == 2:
                larger.remove()
                pool.remove_page_size(2 * BIG)
            del held
        except (
            PoolExhausted,
            bp.errors.SpaceRemoved,
            SpaceBusy,
            SpaceNotFound,
            bp.errors.WaitTimeout,
            bp.errors.PoolClosed,
        ):
            continue


def test_a_storm_of_kills_over_three_sizes(pool, child):
    """Workers read pages of three sizes, move memory, resize, make and remove a size, and are killed at any moment."""
    rng, end = random.Random(7), time.monotonic() + 20
    workers = [child(storm_worker, pool.name, n) for n in range(3)]
    kills = 0
    while kills < 40 and time.monotonic() < end:
        time.sleep(rng.random() * 0.3)
        victim = rng.randrange(3)
        workers[victim].kill()
        workers[victim] = child(storm_worker, pool.name, 100 + kills)
        kills += 1
        assert memory_of(pool) <= WHOLE
    for worker in workers:
        worker.kill()
    pool.reap()
    pool.resize(WHOLE)
    assert pool.check() == []
    use(pool.open_derived("a", 3000, load), range(3000))
    use(pool.open_derived("b", 150, load, page_size=BIG), range(150))
    pool.balance()
    assert WHOLE - 2 * BIG <= sum(parts(pool).values()) <= WHOLE
    assert memory_of(pool) <= WHOLE


def test_threads_use_two_sizes_while_memory_moves(pool, threads):
    small, large = both_full(pool)
    stop = threading.Event()

    def read(space, pages):
        while not stop.is_set():
            use(space, pages)

    threads.start(read, small, range(3000))
    threads.start(read, large, range(200))
    for capacity in [WHOLE // 2, WHOLE] * 5:
        pool.resize(capacity, timeout=WAIT)
        pool.balance()
        assert memory_of(pool) <= WHOLE
    stop.set()
    threads.join()


# ---- what others see of it ----------------------------------------------------------------


def test_an_observer_sees_a_size_that_is_made_or_removed_later(pool):
    """An observer looked for other sizes once: it never saw a new one, and showed a removed one for ever."""
    with bp.Observer(pool.name) as seen:
        assert seen.stats().by_page_size == {}
        for n in range(2):
            large = pool.open_derived(f"b{n}", 20, load, page_size=BIG)
            use(large, range(20))
            assert list(seen.page_sizes()) == [PAGE, BIG]
            assert seen.stats().resident_bytes == memory_of(pool)
            assert [s.name for s in seen.spaces()] == [f"b{n}"]
            large.remove()
            pool.remove_page_size(BIG)
            assert list(seen.page_sizes()) == [PAGE]
            assert seen.spaces() == []


def test_a_cache_is_of_the_pool_and_not_of_a_page_size(pool):
    """A cache of a page size was another one than the pool's of that name."""
    large = pool.open_derived("b", 20, load, page_size=BIG)
    with pytest.raises(ValueError, match="open the cache there"):
        large.pool.cache("c")
    cache = pool.cache("c")
    cache.put("k", b"v" * 1000)
    use(large, range(20))
    assert bytes(cache.get("k")) == b"v" * 1000


def shown(capsys, *argv):
    assert main(list(argv)) == 0
    return capsys.readouterr().out


def test_the_commands_are_about_all_sizes(pool, tmp_path, capsys):
    """``dirty`` gave the offsets of a page of the pool's own size, and ``remove`` counted bytes by it."""
    space = pool.open_file(write_file(tmp_path / "large", 8, BIG), "r+", page_size=BIG)
    with space.write(3) as page:
        page[:] = 1
    use(pool.open_derived("small", 10, load), range(10))
    name, part = pool.name, f"{pool.name}@64KiB"
    rows = {row["name"]: row for row in json.loads(shown(capsys, "ls", "--json")) if row["name"].startswith(name)}
    assert set(rows) == {name, part}
    assert rows[name]["budget_bytes"] + rows[part]["budget_bytes"] <= WHOLE
    about = json.loads(shown(capsys, "stat", name, "--json"))
    assert (about["budget_bytes"], about["unsaved_pages"]) == (WHOLE, {"large": 1})
    assert "64KiB" in shown(capsys, "stat", name)
    spaces = {row["name"]: row["page_size"] for row in json.loads(shown(capsys, "spaces", name, "--json"))}
    assert spaces == {"small": PAGE, "large": BIG}
    assert json.loads(shown(capsys, "dirty", name, "large", "--json"))[0]["offset"] == 3 * BIG
    assert part in shown(capsys, "map", name)
    shown(capsys, "check", name)
    shown(capsys, "flush", name)
    held = space[5]
    assert [(row["space"], row["page_no"]) for row in json.loads(shown(capsys, "pins", name, "--json"))] == [
        ("large", 5)
    ]
    assert "large" in shown(capsys, "pins", name, "large", "5")
    del held
    removed = json.loads(shown(capsys, "remove", name, "large", "--json"))
    assert removed["resident_bytes"] == 2 * BIG


def test_the_commands_about_frames_take_the_name_of_a_size(pool, capsys):
    large = pool.open_derived("large", 10, load, page_size=BIG)
    use(pool.open_derived("small", 30, load), range(30))
    use(large, range(10))
    held = large[4]
    for name, space, pages, size in ((pool.name, "small", 30, PAGE), (f"{pool.name}@64KiB", "large", 10, BIG)):
        frames = json.loads(shown(capsys, "frames", name, "--json"))
        assert sum(row["space"] == space for row in frames) == pages
        extents = json.loads(shown(capsys, "extents", name, "--json"))
        assert extents
        assert [row["pid"] for row in json.loads(shown(capsys, "clients", name, "--json"))] == [os.getpid()]
        assert json.loads(shown(capsys, "stat", name, "--json"))["page_size"] == size
        shown(capsys, "advise", name)
    del held


def test_a_steward_saves_a_working_set_of_each_size(make_pool, tmp_path):
    """Each size has a file of its own; a new pool loads them when its spaces have made the sizes."""
    files = {PAGE: write_file(tmp_path / "small", 40), BIG: write_file(tmp_path / "large", 20, BIG)}
    first = make_pool(WHOLE)
    for size, path in files.items():
        space = first.open_file(path, page_size=size)
        for n in range(7, 17):
            assert np.array_equal(space[n], stamp(n, size))
    first.start_steward(
        bp.Settings(interval=0.02, working_set=tmp_path / "set", working_set_every=0.05, pressure=False)
    )
    sets = {PAGE: tmp_path / "set", BIG: tmp_path / "set@64KiB"}
    wait_until(lambda: all(path.exists() for path in sets.values()), "both sizes are saved")
    first.stop_steward()
    second = make_pool(WHOLE)
    second.open_file(files[BIG], page_size=BIG)
    parts_of = second.page_sizes()
    assert list(parts_of) == [PAGE, BIG]
    for size, part in parts_of.items():
        work = part.load_working_set(sets[size])
        work.wait(WAIT)
        assert (work.total, work.loaded) == (10, 10)
        space = second.space(files[size].name)
        assert list(np.flatnonzero(space.resident(range(20)))) == list(range(7, 17))
        assert np.array_equal(space[8], stamp(8, size))


def test_rm_removes_all_sizes_and_none_alone(make_pool, tmp_path, capsys):
    pool = make_pool(WHOLE)
    with bp.Pool.attach(pool.name) as writer:
        space = writer.open_file(write_file(tmp_path / "large", 8, BIG), "r+", page_size=BIG)
        with space.write(3) as page:
            page[:] = 1
        del page, space
    name, part = pool.name, f"{pool.name}@64KiB"
    pool.close()
    assert main(["rm", part]) == 1
    assert main(["rm", name]) == 1  # the dirty page
    capsys.readouterr()
    assert (SHM / part).exists()
    assert (SHM / name).exists()
    shown(capsys, "rm", name, "--discard")
    assert not list(SHM.glob(f"{name}*"))


def test_gc_and_doctor_ask_for_all_sizes_of_a_pool_at_once(make_pool, capsys, monkeypatch):
    """A size that only a process of the pool's name uses is no pool that was left; it is removed with the pool."""
    pool = make_pool(WHOLE)
    use(pool.open_derived("large", 8, load, page_size=BIG), range(8))
    name, part, find = pool.name, f"{pool.name}@64KiB", segment_file.find
    monkeypatch.setattr(segment_file, "find", lambda where=None: (f for f in find(where) if name in f.path))

    def warned():
        return [one.what for one in doctor.examine() if name in one.what and one.level is not doctor.Level.OK]

    assert main(["gc", "--yes"]) == 0
    assert [(SHM / one).exists() for one in (name, part)] == [True, True]
    assert warned() == []
    pool.close()
    assert warned() == [f"pool {name}"]
    assert [row["name"] for row in json.loads(shown(capsys, "gc", "--json"))] == [name]
    shown(capsys, "gc", "--yes")
    assert not list(SHM.glob(f"{name}*"))


def test_a_budget_that_another_process_has_settled_remains(pool):
    """A steward had seen a size that was removed before it got the lock; it set a budget of 0 frames: ValueError."""
    assert page_sizes._settle(pool.client, 1.0) == 0
    assert pool.capacity == WHOLE


def test_top_shows_the_pages_of_all_sizes_by_age(pool):
    pytest.importorskip("textual")
    from bufferpool.cli.top.figures import read_snapshot as read_screen

    use(pool.open_derived("a", 30, load), range(30))
    use(pool.open_derived("b", 20, load, page_size=BIG), range(20))
    screen = read_screen(pool.name, None)
    assert sum(screen.age_bytes) == 30 * PAGE + 20 * BIG
    assert screen.stats.resident_bytes == memory_of(pool)
    assert {one.name: one.resident for one in screen.stats.spaces} == {"a": 30, "b": 20}


def test_each_size_has_metrics_and_no_byte_is_counted_twice(pool):
    """Sums over ``pool`` were to be the pool's; so the series of a pool are those of its own page size."""
    use(pool.open_derived("a", 30, load), range(30))
    use(pool.open_derived("b", 20, load, page_size=BIG), range(20))
    seen = {name: read_snapshot(name).stats for name in (pool.name, f"{pool.name}@64KiB")}
    assert [one.misses for one in seen.values()] == [30, 20]
    assert sum(one.resident_bytes for one in seen.values()) == memory_of(pool)
    assert sum(one.budget_bytes for one in seen.values()) <= WHOLE


def test_a_forked_child_does_not_keep_the_lock_of_the_sizes(pool):
    """The lock is of an open file, which a child has, too: it was held until the child ended."""
    use(pool.open_derived("b", 20, load, page_size=BIG), range(20))
    reader, writer = os.pipe()
    with pool.client.lock_sizes(WAIT):
        pid = os.fork()
        if pid == 0:
            os.close(writer)
            os.read(reader, 1)
            os._exit(0)
    try:
        with pool.client.lock_sizes(WAIT):
            pass
    finally:
        os.close(writer)
        os.close(reader)
        os.waitpid(pid, 0)


@pytest.mark.parametrize("again", [False, True], ids=["removed", "removed-and-made"])
def test_a_size_that_another_process_removes_while_this_one_finds_it(pool, monkeypatch, again):
    """A process looks at the file of a size, and attaches to it afterwards. If the size was removed in between, and made again, every call
    about all sizes raised SegmentReplaced, about a pool that somebody had pickled; or SegmentNotFound, if it was not made again."""
    look_at = segment_file.look_at

    def make():
        with attached(pool.name) as other:
            use(other.open_derived("tiles", 50, load, page_size=BIG), [7])

    def remove():
        with attached(pool.name) as other:
            other.space("tiles").remove()
            other.remove_page_size(BIG)

    def look_too_early(path, uid):
        found = look_at(path, uid)
        if "@" in str(path):
            monkeypatch.setattr(segment_file, "look_at", look_at)
            for step in (remove, make) if again else (remove,):
                assert exit_code(forked(step)) == 0
        return found

    assert exit_code(forked(make)) == 0
    monkeypatch.setattr(segment_file, "look_at", look_too_early)
    assert list(pool.page_sizes()) == ([PAGE, BIG] if again else [PAGE])
    if again:
        use(pool.open_derived("tiles", 50, load, page_size=BIG), [7])


# ---- caches beside page sizes ---------------------------------------------------------------


def curves(monkeypatch, **slopes):
    """Gives each page size a curve of the advice: so many misses a second fewer for each MiB more."""
    by_size = {PAGE: slopes["home"], BIG: slopes["other"]}
    monkeypatch.setattr(page_sizes, "read_advice", lambda client: client)

    def curve_of(client):
        return lambda frames: max(0.0, 1e6 - by_size[client.page_size] * frames * client.page_size / (1 << 20))

    monkeypatch.setattr(page_sizes.govern, "curve_of", curve_of)


def fill(pool, pages=2000):
    """Uses more pages of the other size than there is memory for."""
    space = pool.open_derived("tiles", pages, load, page_size=BIG)
    use(space, range(min(pages, 400)))
    return space


def test_misses_of_another_size_evict_no_values(pool, monkeypatch):
    """The curves of the pool's own size know pages only, so what values of caches used seemed to earn nothing: within seconds the misses
    of another size had taken all of it but a 64th of the budget, and a cache that had hit always hit three times in a hundred."""
    curves(monkeypatch, home=0, other=1000)
    cache = pool.cache("values")
    values = {n: os.urandom(20_000) for n in range(250)}  # 5 of 16 MiB
    for key, value in values.items():
        assert cache.put(key, value)
    tiles = fill(pool)
    for _ in range(40):
        pool.balance()
        use(tiles, range(300))
    assert all(cache.get(key) == value for key, value in values.items())
    assert parts(pool)[BIG] > WHOLE // 2  # what the values do not use has moved
    assert sum(parts(pool).values()) <= WHOLE


def test_caches_take_what_their_limit_allows_from_another_size(pool, monkeypatch):
    """Half of the budget is for caches without a limit, and it was half of the part that the pool's own size had: a cache beside another
    size, whose pages nobody used any more, could never have more."""
    curves(monkeypatch, home=0, other=0)
    fill(pool)
    cache = pool.cache("values")
    for round_ in range(40):
        for n in range(20):
            cache.put((round_, n), os.urandom(20_000))
        pool.balance()
    assert cache.stats().bytes > 0.8 * WHOLE / 2
    assert cache.stats().bytes < WHOLE * 0.6


def test_caches_leave_the_pages_of_another_size_what_is_above_their_limit(pool, monkeypatch):
    curves(monkeypatch, home=0, other=1000)
    tiles = fill(pool)
    cache = pool.cache("values", limit=2 << 20)
    for round_ in range(40):
        for n in range(20):
            cache.put((round_, n), os.urandom(20_000))
        use(tiles, range(300))
        pool.balance()
    assert cache.stats().bytes > 1 << 20
    assert parts(pool)[BIG] > WHOLE * 3 // 4


@pytest.mark.parametrize("use_of", ["put", "get_or_load"])
def test_puts_ask_for_memory_of_another_size(pool, monkeypatch, use_of):
    """A process that uses a cache only has no misses of pages, which made the steps where no steward runs."""
    fill(pool)
    cache = pool.cache("values")
    asked = []
    monkeypatch.setattr(page_sizes, "follow_misses", lambda client: not asked.append(client))
    numbers = iter(range(10**9))

    def more():
        for n in (next(numbers) for _ in range(50)):
            if use_of == "put":
                cache.put(n, os.urandom(100_000))
            else:
                cache.get_or_load(n, lambda: os.urandom(100_000))
        return asked

    wait_until(more, "a put asks for memory")
    assert asked[0].page_size == PAGE


def test_a_size_that_has_no_page_left_takes_from_values_too(pool):
    """Values give way where pages of another size would raise PoolExhausted, as before."""
    tiles = pool.open_derived("tiles", 2000, load, page_size=BIG)
    cache = pool.cache("values", limit=WHOLE)
    for n in range(700):
        cache.put(n, os.urandom(20_000))
    held = [tiles[n] for n in range(150)]  # 9.4 of 16 MiB
    assert all(page[0] == n % 251 for n, page in enumerate(held))
    del held


# ---- a store that fails or hangs in one size ----------------------------------------------


def two_stores(pool):
    """A store of each of two page sizes, and their spaces."""
    small, large = Disk(8), Disk(64)
    return (
        small, large, pool.open_store("small", small, mode="r+"), pool.open_store("large", large, mode="r+", page_size=BIG)
    )  # fmt: skip


def write_both(space, other):
    put(space, 2, 5)
    with other.write(2) as page:
        page[:] = 1


def test_a_flush_writes_the_other_sizes_although_a_store_fails_or_hangs(pool, threads):
    """The sizes were flushed one after the other: a store of one that failed, or hung, left all pages of the next sizes dirty."""
    small, large, space, other = two_stores(pool)
    write_both(space, other)
    large.fails = "write"
    with pytest.raises(StoreError, match="'large'"):
        pool.flush()
    assert small.version(2) == 5
    assert pool.stats().frames.dirty == 1
    put(space, 3, 6)
    hanging, release, counts = bp._locks.Event(), bp._locks.Event(), []

    def hang():
        hanging.set()
        release.wait()

    large.fails, large.before_sync = None, hang
    threads.start(lambda: counts.append(pool.flush()))
    wait_until(lambda: hanging.is_set() and small.version(3) == 6, "the page of the other store is written")
    with pytest.raises(WaitTimeout, match="'large'"):
        pool.flush(timeout=0.1)
    release.set()
    threads.join()
    assert counts == [2]
    assert pool.stats().frames.dirty == 0


def test_a_close_saves_the_other_sizes_although_a_store_of_one_fails(make_pool):
    """A pool without a name lost the pages of the sizes that came after the one whose store failed."""
    pool = make_pool(WHOLE)
    small, large, space, other = two_stores(pool)
    pool.unlink()
    write_both(space, other)
    large.fails = "sync"
    with pytest.raises(StoreError, match="no sync today"):
        pool.close()
    assert small.version(2) == 5
    assert (space[2][0], other[2][0]) == (5, 1), "the pool is still open"
    large.fails = None
    pool.close()


def test_a_close_that_is_refused_closes_no_size(pool):
    """The other sizes were closed before the array over a page of the pool's own size was found: their spaces raised PoolClosed."""
    small, large = (pool.open_derived(f"s{size}", 4, load, page_size=size) for size in (PAGE, BIG))
    for kept, other in ((small, large), (large, small)):
        page = kept[1]
        with pytest.raises(BufferError, match="arrays over its pages exist"):
            pool.close()
        assert (kept[2][0], other[2][0]) == (2, 2)
        del page
    with pytest.raises(BufferError, match="write block"), pool.open_scratch("work", 4).write(1):
        pool.close()
    assert large[3][0] == 3
