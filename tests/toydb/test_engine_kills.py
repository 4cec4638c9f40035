"""The engine's processes are killed: at each named point, at random, all at once, with the pool, with the power."""

import pytest

from tests.conftest import ROOT
from tests.support import deaths
from tests.toydb.kills import POINTS

KILLS = ROOT / "tests" / "toydb" / "kills.py"


def test_points_are_found() -> None:
    assert len(POINTS) > 30


def test_a_death_at_each_point() -> None:
    report = deaths.run(KILLS, "--points", "--counts", "1", "4", timeout=1800)
    assert set(report["at_points"]) == set(POINTS)
    assert report["verified"] == 2 * len(POINTS)
    assert report["power_failures"] > 5


def test_deaths_at_random() -> None:
    report = deaths.run(KILLS, "--kills", "200", timeout=1800)
    assert report["kills"] >= 200
    assert report["commits"] > 20  # how many depends on the load: the deaths come by the clock
    assert report["verified"] > 5


@pytest.mark.soak
def test_deaths_at_each_point_many_times() -> None:
    for seed in range(4):
        report = deaths.run(
            KILLS, "--points", "--counts", "1", "2", "3", "5", "8", "--seed", str(100 * seed), timeout=1800
        )
        assert set(report["at_points"]) == set(POINTS)


@pytest.mark.soak
def test_deaths_at_random_by_the_thousand() -> None:
    report = deaths.run(KILLS, "--kills", "5000", "--seed", "7", timeout=3600)
    assert report["kills"] >= 5000
