"""The storm (tests/storm.py), in a short and a long form."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

STORM = Path(__file__).parent / "storm.py"
BAR_S = 1.0  # no survivor waits longer for a process that died


def run_storm(*args: str, timeout: float) -> dict[str, str]:
    run = subprocess.run([sys.executable, str(STORM), *args], capture_output=True, text=True, timeout=timeout)
    print(run.stdout)
    assert run.returncode == 0, f"{run.stdout}\n{run.stderr}"
    return dict(re.findall(r"^(\w+) +(.*)$", run.stdout, re.MULTILINE))


def judge(figures: dict[str, str], kills: int) -> None:
    assert (figures["lost"], figures["leaked"], figures["broken"], figures["hung"]) == ("0", "0", "0", "0")
    assert int(figures["kills"]) >= kills
    assert int(figures["operations"]) > 10 * kills
    assert int(figures["verified"]) > 10 * kills


def test_nobody_notices_a_death() -> None:
    judge(run_storm("--seconds", "30", timeout=300), 100)


@pytest.mark.soak
def test_nobody_notices_ten_thousand_deaths() -> None:
    figures = run_storm("--kills", "10000", "--seed", "1000", timeout=3600)
    judge(figures, 10_000)
    assert float(figures["longest_stall_s"]) < BAR_S
