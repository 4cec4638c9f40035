"""What is done under one hold of the memory lock: counted, not timed, and no more in a larger pool."""

import subprocess
from pathlib import Path

import pytest

from tests.support import native_build

# Enough frames that a hold which depends on their number is over its bound.
FRAMES = (4096, 16384)

# What would make a hold as long as the pool is large, and where that shows.
MISTAKES: dict[str, tuple[str, str, str, str]] = {
    "a shrink that looks for victims until it has a batch": (
        "shrink.h",
        "i < EVICT_BATCH && env.looks < most && freed < want",
        "i < EVICT_BATCH && freed < want && most",
        "shrink, all but few pinned",
    ),
    "a miss that takes everything dropped from its ring": (
        "policy.h",
        "i < GONE && ring(r).count",
        "ring(r).count",
        "misses of ghosts, all other pages dropped",
    ),
    "a search for a victim that lets nobody in": (
        "frames.h",
        "constexpr u32 EVICT_STEPS = 128;",
        "constexpr u32 EVICT_STEPS = 128, ENDLESS = 1u << 20;",
        "misses, all pages pinned",
    ),
    "all idle pages looked at in one go": (
        "shrink.h",
        "end = f + LOOK_BATCH;",
        "end = s.ready;",
        "idle, no page",
    ),
}


def holds(program: Path, frames: int, extent_frames: int, *scenario: str) -> dict[str, tuple[int, int, int]]:
    """By scenario: how many holds there were, the most steps in one, and how many it may be."""
    run = subprocess.run(
        [program, str(frames), str(extent_frames), *scenario], capture_output=True, text=True, check=True, timeout=120
    )
    lines = [line.rpartition(": ") for line in run.stdout.splitlines()]
    figures = {name: tuple(map(int, rest.split())) for name, _, rest in lines}
    return {name: (count, most, bound) for name, (count, most, bound) in figures.items()}


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return native_build.program("holds", tmp_path_factory.mktemp("holds") / "holds", "-DBP_NO_ADVICE")


@pytest.mark.parametrize(("frames", "extent_frames"), [(FRAMES[0], 64), (FRAMES[1], 64), (FRAMES[1], 1024)])
def test_no_hold_does_more_than_its_bound(program: Path, frames: int, extent_frames: int) -> None:
    found = holds(program, frames, extent_frames)
    assert len(found) > 15
    for name, (count, most, bound) in found.items():
        print(f"{name}: {count} holds, {most} of {bound} steps at most")
        assert count > 0, f"{name}: the lock was never held"
        assert most > 0, f"{name}: nothing was counted"
        assert most <= bound, f"{name}: {most} steps in one hold of the memory lock, {bound} are allowed"


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_hold_without_bound_is_found(mistake: str, tmp_path: Path) -> None:
    name, before, after, scenario = MISTAKES[mistake]

    def change(text: str) -> str:
        assert text.count(before) == 1, "the mistake no longer fits the source"
        text = text.replace(before, after)
        return text.replace("evict(search, EVICT_STEPS)", "evict(search, ENDLESS)") if "ENDLESS" in after else text

    core, native = native_build.altered(tmp_path, name, change)
    program = native_build.program("holds", tmp_path / "holds", "-DBP_NO_ADVICE", core=core, native=native)
    _, most, bound = holds(program, FRAMES[1], 64, scenario)[scenario]
    assert most > bound
