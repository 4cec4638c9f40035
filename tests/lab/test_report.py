"""The table of the lab tells a check that failed, one without a result, and one that is not run on a kernel."""

import threading
from pathlib import Path

import pytest

from lab import report
from lab.report import Cell, record, table


def test_cells_that_passed_failed_are_missing_or_are_not_planned() -> None:
    """An empty cell could mean either that a check is still to be run, or that it never is."""
    results = {
        "pins": {"5.10": Cell(True, "25 passed", 90, "5.10.0", 30, "2026-11-28 21:40", "0123abc"),
                 "6.1": Cell(False, "1 failed | 24\nlong", 60, "6.1.0", 31)},
        "power": {"6.1": Cell(True, "none lost", 30, "6.1.0", 0), "5.10": Cell(True, "of an earlier plan", 600, "5.10.0", 0)},
        "storm": {"5.10": Cell(True, "60 kills", 0, "5.10.0", 0)},
        "gone": {"6.1": Cell(True, "a check that the lab had once", 600, "6.1.0", 0)},
    }  # fmt: skip
    planned = {"pins": {"5.10", "6.1"}, "storm": {"5.10", "6.1"}, "power": {"6.1"}}
    lines = table(results, planned, {}).splitlines()
    assert lines[0] == "| check | Linux 5.10 | Linux 6.1 |"
    assert lines[2:5] == [
        r"| pins | ✓ 25 passed (2026-11-28, 0123abc) | **✗** 1 failed \| 24 |",
        "| storm | ✓ 60 kills |  |",
        "| power | – | ✓ none lost |",
    ]
    assert len(lines) == 7
    assert lines[-1] == (
        "The kernels were 5.10.0, 6.1.0; the checks of this machine took 3 minutes,"
        " for 2 of which 1 minutes of processor time were measured."
    )


def test_a_run_on_another_machine_keeps_the_cells_that_it_has_no_result_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The table was written from the results in the cache only: a part of the lab, run on a machine with an empty cache, took
    all other cells out of the document."""
    monkeypatch.setattr(report, "RESULTS", tmp_path / "results.json")
    monkeypatch.setattr(report, "DOCUMENT", tmp_path / "lab.md")
    planned = {"pins": {"5.10", "6.1"}, "storm": {"5.10", "6.1"}, "power": {"6.1"}}
    report.DOCUMENT.write_text("# The lab\n" + report.BEGIN + report.END + "## Pictures\n")
    record("pins", "6.1", Cell(False, "1 failed | 24", 60, "6.1.0", 31))
    record("power", "6.1", Cell(True, "none lost", 30, "6.1.0", 9))
    report.write(planned)
    first = report.DOCUMENT.read_text()
    report.write(planned)
    assert report.DOCUMENT.read_text() == first

    report.RESULTS.unlink()
    record("pins", "5.10", Cell(True, "25 passed", 90, "5.10.0", 30))
    record("power", "6.1", Cell(True, "none lost again", 30, "6.1.9", 9))
    report.write(planned)
    lines = report.DOCUMENT.read_text().splitlines()
    assert lines[2] == "| check | Linux 5.10 | Linux 6.1 |"
    assert lines[4:7] == [
        r"| pins | ✓ 25 passed | **✗** 1 failed \| 24 |",
        "| storm |  |  |",
        "| power | – | ✓ none lost again |",
    ]
    assert lines[8] == (
        "The kernels were 5.10.0, 6.1.9; the checks of this machine took 2 minutes, with 0 minutes of processor time."
    )
    assert (lines[0], lines[-1]) == ("# The lab", "## Pictures")


def test_runs_at_the_same_time_lose_no_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each run wrote all results that it had read when it began: of two at the same time, the last had those of itself only."""
    monkeypatch.setattr(report, "RESULTS", tmp_path / "results.json")

    def run(kernel: str) -> None:
        for number in range(50):
            record(f"check {number}", kernel, Cell(True, "", 1, kernel))

    running = [threading.Thread(target=run, args=(kernel,)) for kernel in ("5.10", "6.1", "6.12")]
    for each in running:
        each.start()
    for each in running:
        each.join()
    results = report.load()
    assert len(results) == 50
    assert all(set(row) == {"5.10", "6.1", "6.12"} for row in results.values())
