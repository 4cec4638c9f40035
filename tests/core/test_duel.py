"""The duel of modes: the adaptive split of the policy alone got stuck, or was slower than a plain clock.

Two patterns showed it. After a phase that had left the cold ring large, a loop longer than the pool kept every page from
being used twice, for good: no ghost of it was young enough to vote. And a working set of about the pool's size that was
replaced, or drifted, missed up to twice as often as with LRU.
"""

import mmap
import os
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

import bufferpool as bp
from bufferpool import _core
from tests.conftest import PAGE

Pages = npt.NDArray[np.int64]

SET = 256  # pages of a working set, and frames of the pool


def replaced(rng: np.random.Generator, times: int) -> Pages:
    """Working sets of SET pages, each in turn used at random, 20 times a page."""
    return np.concatenate([SET * i + rng.integers(0, SET, 20 * SET) for i in range(times)])


def stuck(times: int = 40) -> Pages:
    """Working sets that are replaced, then a loop of one and a half times the pool."""
    loop = 100 * SET + np.arange(SET * 3 // 2)
    return np.concatenate([replaced(np.random.default_rng(3), 6), np.tile(loop, times)])


def drifting() -> Pages:
    rng = np.random.default_rng(4)
    return rng.integers(0, SET, 200 * SET) + np.arange(200 * SET) // 13


def alternating() -> Pages:
    rng = np.random.default_rng(5)
    return np.concatenate([SET * (i % 2) + rng.integers(0, SET, 10 * SET) for i in range(20)])


# ---- the policy alone -------------------------------------------------------------


def test_a_loop_does_not_get_stuck_after_working_sets_that_were_replaced() -> None:
    """The adaptive mode alone misses 0.93 of the references in the loop, through all of its turns; OPT misses a third."""
    before, after = bp.simulate(stuck(0), SET), bp.simulate(stuck(60), SET)
    loop = 60 * SET * 3 // 2
    assert (after.misses - before.misses) / loop < 0.45
    assert after.mode_changes >= 1


@pytest.mark.parametrize(("trace", "most"), [(drifting, 0.155), (alternating, 0.115)])
def test_working_sets_of_the_pools_size_that_change(trace, most: float) -> None:
    """The adaptive mode alone misses 0.172 and 0.136 of the references."""
    assert bp.simulate(trace(), SET).miss_ratio < most


def test_a_pool_of_less_than_64_frames_has_no_duel() -> None:
    assert bp.simulate(stuck(), 63).mode_changes == 0
    assert bp.simulate(stuck() // 4, 64).mode_changes > 0


# ---- the pool ----------------------------------------------------------------------


def open_pages(pool: bp.Pool, folder: Path, n_pages: int, mode: str = "r") -> bp.Space:
    path = folder / "pages"
    with path.open("ab") as file:
        file.truncate(n_pages * PAGE)
    return pool.open_file(path, mode)  # type: ignore[arg-type]


def read(space: bp.Space, pages: Pages) -> None:
    for page in pages.tolist():
        space[page]


@pytest.mark.parametrize("trace", [stuck, drifting, alternating])
def test_the_pool_changes_its_mode_as_the_simulator_does(trace, make_pool, tmp_path: Path) -> None:
    pages = trace()
    pool = make_pool(SET * PAGE)
    read(open_pages(pool, tmp_path, int(pages.max()) + 1), pages)
    simulated, stats = bp.simulate(pages, SET), pool.stats()
    assert abs(stats.misses - simulated.misses) <= 0.02 * simulated.misses
    assert stats.mode_changes == simulated.mode_changes > 0
    changes = [event for event in pool.events() if event.kind is bp.EventKind.MODE_CHANGED]
    assert len(changes) == stats.mode_changes
    assert bp.PolicyMode(int(changes[-1].value)).name.lower() == stats.policy_mode
    assert f"{stats.policy_mode} misses less often" in str(changes[-1])


def test_other_processes_hits_count_in_the_duel(make_pool, attach, tmp_path: Path) -> None:
    """One client only hits, another one misses: the policy must see that the first one's pages are in use."""
    pool = make_pool(SET * PAGE)
    space = open_pages(pool, tmp_path, 100 * SET)
    other = attach(pool).space("pages")
    hot = np.arange(SET // 2)
    for turn in range(60):
        read(other, hot)
        read(space, 10 * SET + turn * SET // 4 + np.arange(SET // 4))  # a scan, which no mode can help
    added = _core.fields()["Duel.hits_added"]
    assert number(pool, added) > 0
    assert number(pool, _core.fields()["Duel.hits_taken"]) > number(pool, added) - 256
    before = pool.stats().misses
    read(other, hot)
    assert pool.stats().misses - before <= len(hot) // 20
    assert pool.stats().mode_changes <= 2


@pytest.mark.parametrize("taken", ["pinned", "dirty"])
def test_frames_that_others_take_do_not_make_the_modes_alternate(taken: str, make_pool, tmp_path: Path) -> None:
    """Half of the frames cannot be evicted, and every miniature pool looks better than the pool is.

    Each change of mode after a short time doubles the lead that the next change needs.
    """
    pool = make_pool(SET * PAGE)
    space = open_pages(pool, tmp_path, 100 * SET, "r+")
    half = range(90 * SET, 90 * SET + SET // 2)
    held = []
    if taken == "pinned":
        held = [space[n] for n in half]
    else:
        scratch = pool.open_scratch("temporary", SET // 2)
        for n in range(SET // 2):
            with scratch.write(n) as page:
                page[:] = 1
    rng = np.random.default_rng(6)
    read(space, rng.integers(0, SET, 400 * SET))
    stats = pool.stats()
    assert stats.misses > 10 * SET
    assert stats.mode_changes <= stats.misses // 1000
    del held


def test_pages_that_were_given_back_are_no_modes_fault(make_pool, tmp_path: Path) -> None:
    """After a trim or a drop the pool misses what its miniatures still have: that is no reason to change the mode."""
    pool = make_pool(SET * PAGE)
    space = open_pages(pool, tmp_path, 2 * SET)
    rng = np.random.default_rng(7)
    read(space, rng.integers(0, SET // 2, 20 * SET))
    for give_back in (lambda: pool.trim(SET * PAGE), lambda: space.drop(), lambda: pool.trim_idle(0)):
        for _ in range(20):
            give_back()
            read(space, rng.permutation(SET // 2))
    assert pool.stats().misses > 15 * SET
    assert pool.stats().mode_changes == 0


def test_the_duel_goes_on_with_another_budget(make_pool, tmp_path: Path) -> None:
    pool = make_pool(4 * SET * PAGE)
    pages = stuck(20)
    space = open_pages(pool, tmp_path, int(pages.max()) + 1)
    for frames in (SET, 4 * SET, 40, SET // 2, SET):
        pool.resize(frames * PAGE)
        read(space, pages)
        assert pool.check() == []
    assert pool.stats().mode_changes > 0
    pool.resize(40 * PAGE)
    space.drop()
    read(space, pages[:1])
    before = pool.stats().mode_changes
    read(space, pages)
    assert pool.stats().mode_changes == before  # there is none in a pool as small as that


def test_a_pool_that_becomes_too_small_for_a_duel_is_adaptive_again(make_pool, tmp_path: Path) -> None:
    """Nothing could end the mode of such a pool: in the loop mode, it kept its old hot pages for good."""
    pool = make_pool(SET * PAGE)
    pages = stuck()
    space = open_pages(pool, tmp_path, int(pages.max()) + 1)
    read(space, pages)
    before = pool.stats()
    assert before.policy_mode != "adaptive"
    pool.resize(63 * PAGE)
    read(space, pages[: 2 * SET])
    after = pool.stats()
    assert (after.policy_mode, after.mode_changes) == ("adaptive", before.mode_changes + 1)
    last = [event for event in pool.events() if event.kind is bp.EventKind.MODE_CHANGED][-1]
    assert (last.reason, bp.PolicyMode(int(last.value))) == (bp.EventReason.SMALL, bp.PolicyMode.ADAPTIVE)
    assert "adaptive, as always below 64 frames" in str(last)
    pool.resize(SET * PAGE)
    read(space, pages)
    assert pool.stats().policy_mode != "adaptive"


# ---- deaths and damage -------------------------------------------------------------


def number(pool: bp.Pool, place: tuple[int, int]) -> int:
    """A number of the duel's area."""
    fields = _core.fields()
    with open(pool.path, "rb") as file:
        base = fields["Header.geometry"][0] + fields["Geometry.duel_at"][0]
        at = int.from_bytes(os.pread(file.fileno(), 8, base), "little")
        return int.from_bytes(os.pread(file.fileno(), place[1], at + place[0]), "little")


@pytest.fixture
def damaged(pool: bp.Pool) -> Iterator[mmap.mmap]:
    """The whole segment, to be written in."""
    with open(pool.path, "r+b") as file, mmap.mmap(file.fileno(), 0) as shm:
        yield shm


def place_of_duel(shm: mmap.mmap) -> tuple[int, int]:
    fields = _core.fields()
    base = fields["Header.geometry"][0] + fields["Geometry.duel_at"][0]
    return int.from_bytes(shm[base : base + 8], "little"), fields["Duel"][1]


@pytest.fixture
def pool(make_pool) -> bp.Pool:
    return make_pool(SET * PAGE)


def test_a_death_with_the_memory_lock_loses_the_mode_not_pages(
    pool: bp.Pool, damaged: mmap.mmap, tmp_path: Path
) -> None:
    """The owner may have died while it worked on the duel, so the inheritor of the lock starts it anew."""
    pages = stuck()
    space = open_pages(pool, tmp_path, int(pages.max()) + 1)
    read(space, pages)
    assert pool.stats().policy_mode != "adaptive"
    resident, changes = pool.stats().resident_bytes, pool.stats().mode_changes
    at, size = _core.fields()["Header.memory.word"]
    damaged[at : at + size] = (7).to_bytes(size, "little")  # a client that is not there
    space.prefetch([0])
    stats = pool.stats()
    assert (stats.rebuilds, stats.policy_mode, stats.resident_bytes) == (1, "adaptive", resident)
    last = [event for event in pool.events() if event.kind is bp.EventKind.MODE_CHANGED][-1]
    assert (last.reason, last.value, stats.mode_changes) == (
        bp.EventReason.REBUILT,
        bp.PolicyMode.ADAPTIVE,
        changes + 1,
    )
    assert "a client died" in str(last)
    assert pool.check() == []
    read(space, pages)
    assert pool.stats().policy_mode != "adaptive"


@pytest.mark.parametrize("seed", range(8))
def test_nothing_in_the_area_is_trusted(seed: int, pool: bp.Pool, damaged: mmap.mmap, tmp_path: Path) -> None:
    rng = random.Random(seed)
    pages = np.random.default_rng(seed).integers(0, 3 * SET, 2 * SET)
    space = open_pages(pool, tmp_path, 3 * SET)
    at, size = place_of_duel(damaged)
    for _ in range(6):
        if rng.random() < 0.5:
            damaged[at + 8 : at + size] = rng.randbytes(size - 8)  # its first words, which say that it has begun, stay
        else:
            damaged[at + 8 : at + size] = bytes([rng.choice([0, 1, 127, 255])]) * (size - 8)
        mode, width = _core.fields()["Header.policy.mode"]
        damaged[mode : mode + width] = rng.choice([0, 1, 2, 3, 2**32 - 1]).to_bytes(width, "little")
        read(space, pages)
        assert pool.stats().policy_mode
        assert str(pool.events())
    assert pool.check() == []
