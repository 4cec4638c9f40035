"""A death at every named point of the objects, while another process uses the same cache."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import SHM, new_name
from tests.core.test_killpoints import Driver, is_of_objects, points_of
from tests.support.native_build import SOURCES

POINTS = points_of(source for source in SOURCES if is_of_objects(source))


@pytest.fixture(scope="session")
def object_driver(faulty_package: Path) -> Iterator[Driver]:
    made = Driver(faulty_package, "tests.support.object_deaths")
    yield made
    made.close()


@pytest.mark.parametrize("point", POINTS)
def test_a_death_at(object_driver: Driver, point: str) -> None:
    """No value is wrong afterwards, nothing is left, and the other process continues."""
    name = new_name()
    answer = object_driver.ask(f"{name} {point} 1")
    assert answer["code"] == -9, f"the victim never came to {point}: {answer}"
    assert answer["reached"]
    assert answer["findings"] == []
    assert answer["went_on"]
    assert not (SHM / name).exists()
