"""The storm (tests/support/storm.py), in a short and a long form."""

from typing import Any

import pytest

from tests.conftest import ROOT
from tests.support import deaths

STORM = ROOT / "tests" / "support" / "storm.py"
BAR_S = 1.0  # no survivor waits longer for a process that died


def judge(figures: dict[str, Any], kills: int) -> None:
    assert (figures["lost"], figures["leaked"], figures["broken"], figures["hung"]) == (0, 0, 0, 0)
    assert figures["kills"] >= kills
    assert figures["operations"] > 10 * kills
    assert figures["verified"] > 10 * kills


def test_nobody_notices_a_death() -> None:
    judge(deaths.run(STORM, "--seconds", "30", "--kills", "100", timeout=900), 100)


@pytest.mark.soak
def test_nobody_notices_twenty_thousand_deaths() -> None:
    figures = deaths.run(STORM, "--kills", "20000", "--seed", "1000", timeout=7200)
    judge(figures, 20_000)
    assert figures["longest_stall_s"] < BAR_S
