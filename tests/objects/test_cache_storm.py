"""The storm over a cache (tests/support/cache_storm.py), in a short and a long form."""

from typing import Any

import pytest

from tests.conftest import ROOT
from tests.support import deaths

STORM = ROOT / "tests" / "support" / "cache_storm.py"


def judge(figures: dict[str, Any], kills: int) -> None:
    assert (figures["wrong"], figures["leaked"], figures["hung"]) == (0, 0, 0)
    assert figures["kills"] >= kills
    assert figures["operations"] > 5 * kills
    assert figures["verified"] > 2 * kills


def test_no_death_leaves_a_wrong_value_or_a_leak() -> None:
    """It looks for wrong values, leaks and hangs that no single death causes: deaths at the same time, and inheritors that
    die."""
    judge(deaths.run(STORM, "--seconds", "6", "--kills", "40", timeout=600), 40)


@pytest.mark.soak
def test_ten_thousand_deaths_leave_no_wrong_value_and_no_leak() -> None:
    judge(deaths.run(STORM, "--kills", "10000", "--seed", "1000", timeout=7200), 10_000)
