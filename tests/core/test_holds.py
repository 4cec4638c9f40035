"""The steps under one hold of the memory lock are counted, not timed: a larger pool must not need more of them.

The fault was the count of scratch pages: next to their limit, each new page was counted by a pass over all frames."""

import functools
import os
import subprocess
from pathlib import Path

import pytest

from tests.conftest import WAIT
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
        "evict(search, EVICT_STEPS)",
        "evict(search, 1u << 20)",
        "misses, all pages pinned",
    ),
    "dirty pages that stay in the rings": (
        "policy.h",
        "} else if (env_.set_aside(page, r)) {",
        "} else if (false) {",
        "misses, all but few set aside",
    ),
    "dropped scratch pages that are still counted": (  # so that each further page needs a pass over the frames
        "drop.h",
        "if (kept) uncount_kept(s, pass);",
        "if (false) uncount_kept(s, pass);",
        "scratch pages next to their limit",
    ),
    "all idle pages looked at in one go": (
        "shrink.h",
        "end = f + LOOK_BATCH;",
        "end = s.ready;",
        "idle, no page",
    ),
}


def holds(
    program: Path, frames: int, extent_frames: int, *scenario: str, mistake: int = 0
) -> dict[str, tuple[int, int, int]]:
    """By scenario: how many holds there were, the most steps in one, and how many it may be."""
    command = [str(program), str(frames), str(extent_frames), *scenario]
    environment = os.environ | {"MISTAKE": str(mistake)}
    run = subprocess.run(command, capture_output=True, text=True, check=True, timeout=WAIT, env=environment)
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


@pytest.fixture(scope="session")
def mistaken_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program with all the mistakes in it."""

    def change(before: str, after: str, text: str) -> str:
        assert text.count(before) == 1, "the mistake no longer fits the source"
        return text.replace(before, after)

    place = tmp_path_factory.mktemp("mistakes")
    mistakes = [(name, functools.partial(change, before, after)) for name, before, after, _ in MISTAKES.values()]
    core, native = native_build.with_mistakes(place, mistakes)
    return native_build.program("holds", place / "holds", "-DBP_NO_ADVICE", core=core, native=native)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_hold_without_bound_is_found(mistaken_program: Path, mistake: str) -> None:
    scenario = MISTAKES[mistake][3]
    number = list(MISTAKES).index(mistake) + 1
    for made, is_bounded in ((number, False), (0, True)):
        _, most, bound = holds(mistaken_program, FRAMES[1], 64, scenario, mistake=made)[scenario]
        assert (most <= bound) == is_bounded
