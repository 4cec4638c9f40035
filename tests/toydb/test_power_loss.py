"""The power fails at any moment: no commit is lost that was acknowledged, and none is there in part.

Until these tests the tree had only kills, after which a process's writes are all in the files. A power failure also loses
writes that no sync covered, in any part, and names whose folder was not synced.
"""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.support import deaths
from tests.support.power_loss import (
    DROPPED,
    FATES,
    FOLDER,
    KEPT,
    SOME,
    TORN_512,
    TORN_4096,
    Create,
    Event,
    Recorder,
    Remove,
    Rename,
    Resize,
    SyncBegun,
    Synced,
    Trace,
    Write,
    contents,
    crash,
    everything,
)

POWER = ROOT / "tests" / "toydb" / "power.py"


def test_no_commit_is_lost() -> None:
    """Hundreds of crash states of a workload with checkpoints, new log segments, large commits and dropped tables."""
    report = deaths.run(POWER, "--states", "200", timeout=1800)
    assert report["verified"] == report["states"] >= 200
    assert report["segments"] > 3
    assert min(report["by_fate"].values()) > 10


@pytest.mark.parametrize("broken", ["log", "folder", "pages", "ahead"])
def test_a_sync_that_is_left_out_is_noticed(broken: str) -> None:
    """Without a sync of the log, of the folder, or of the pages, and without the write-ahead rule, commits are lost."""
    command = [sys.executable, POWER, "--break", broken, "--states", "2000"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800, check=False)
    assert done.returncode == 1, done.stderr
    assert json.loads(done.stdout)["findings"]


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(4))
def test_no_commit_is_lost_in_tens_of_thousands_of_crash_states(seed: int) -> None:
    report = deaths.run(POWER, "--states", "10000", "--seed", str(100 + seed), timeout=3600)
    assert report["verified"] == report["states"] >= 10_000
    assert report["crashed_again"] > 50


# ---- the crash states are those that a file system can leave ---------------------------

A, B = b"a" * 1024, b"b" * 1024


def states(events: list[Event], fate: str, before: dict[str, bytes] | None = None) -> list[dict[str, bytes]]:
    """All crash states that come up in many tries, each once."""
    found: list[dict[str, bytes]] = []
    for seed in range(400):
        state = crash(Trace(before or {}, events), len(events), fate, random.Random(seed))
        if state not in found:
            found.append(state)
    return found


def test_what_was_synced_survives_and_the_rest_in_part() -> None:
    synced: list[Event] = [Write(1, 0, A), SyncBegun(1), Synced(1, 1)]
    then: list[Event] = [*synced, Write(1, 0, B)]
    torn = [first * 512 + second * 512 for first in (b"a", b"b") for second in (b"a", b"b")]
    for fate, expected in {KEPT: [B], DROPPED: [A], SOME: [A, B], TORN_512: torn, TORN_4096: [A, B]}.items():
        assert sorted(state["f"] for state in states(then, fate, {"f": b""})) == sorted(expected)


def test_a_sync_covers_what_came_before_it_began_and_only_when_it_has_returned() -> None:
    during: list[Event] = [Write(1, 0, A), SyncBegun(1), Write(1, 0, B), Synced(1, 1)]
    assert states(during, DROPPED, {"f": b""}) == [{"f": A}]
    assert states(during[:3], DROPPED, {"f": b""}) == [{"f": b""}]


def test_a_lost_write_may_leave_the_new_size_and_what_the_disk_had() -> None:
    for fate in (SOME, TORN_512, TORN_4096):
        found = [state["f"] for state in states([Write(1, 0, A)], fate, {"f": b""})]
        assert {b"", A, bytes(1024)} <= set(found)
    assert {b"", A} == {state["f"] for state in states([Resize(1, 0)], SOME, {"f": A})}


def test_of_the_names_a_prefix_survives_and_a_synced_one_in_any_case() -> None:
    events: list[Event] = [Create("a", 1), Rename("a", "b"), Create("c", 2), Remove("b")]
    prefixes: list[set[str]] = [set(), {"a"}, {"b"}, {"b", "c"}, {"c"}]
    assert sorted(map(sorted, states(events, DROPPED))) == sorted(map(sorted, prefixes))
    synced = [*events[:2], SyncBegun(FOLDER), Synced(FOLDER, 2), *events[2:]]
    assert sorted(map(sorted, states(synced, DROPPED))) == [["b"], ["b", "c"], ["c"]]


def test_the_recorder_sees_what_a_program_does(tmp_path: Path) -> None:
    (tmp_path / "old").write_bytes(A)
    with Recorder(tmp_path).recording() as recorder:
        fd = os.open(tmp_path / "new", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        os.pwrite(fd, B, 100)
        os.pwritev(fd, [A, B], 5000)
        os.ftruncate(fd, 6000)
        os.fsync(fd)
        os.close(fd)
        os.rename(tmp_path / "new", tmp_path / "renamed")
        os.truncate(tmp_path / "old", 10)
        with open(tmp_path / "other", "wb"):
            pass
        os.unlink(tmp_path / "other")
        folder = os.open(tmp_path, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)
    recorder.note("done", 7)
    trace = recorder.trace
    assert everything(trace) == contents(tmp_path)
    assert trace.noted(len(trace.events), "done") == 7
    assert trace.noted(len(trace.events) - 1, "done") == 0
    for fate in FATES:  # all of it is synced, but for the size of the old file
        for state in states(trace.events, fate, trace.before):
            assert state["renamed"] == (tmp_path / "renamed").read_bytes()
            assert state["old"] in (A, A[:10])
