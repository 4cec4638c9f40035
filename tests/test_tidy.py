"""The house rules of the core's text: the rooms and their order."""

import re
from pathlib import Path

from tests.support.native_build import CORE, SOURCES

ROOMS = ["os", "layout", "policy", "protocol", "python"]


def includes(path: Path) -> list[str]:
    """What a file includes with quotation marks, but for the explorer's model of the kernel."""
    return [name for name in re.findall(r'^#include "(.+)"', path.read_text(), re.MULTILINE) if name != "prim_model.h"]


def test_an_include_points_to_the_same_room_or_an_earlier_one() -> None:
    """The order of the rooms is that in which a reader can understand them: nothing needs what comes later."""
    for path in SOURCES:
        room = path.parent.name
        for name in includes(path):
            assert (CORE / name).is_file(), f"{path}: {name} is not named from the core's root"
            assert ROOMS.index(name.partition("/")[0]) <= ROOMS.index(room), f"{path} includes {name}, of a later room"


def test_no_header_includes_itself_by_way_of_others() -> None:
    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, " -> ".join([*above, name])
        if name not in done:
            for below in includes(CORE / name):
                visit(below, (*above, name))
            done.add(name)

    done: set[str] = set()
    for path in SOURCES:
        visit(str(path.relative_to(CORE)), ())


def test_only_the_last_room_knows_of_python() -> None:
    """The explorer, the races and the fuzzers compile the other rooms without an interpreter."""
    for path in SOURCES:
        if path.parent.name != "python":
            assert not re.search(r"Python\.h|numpy/|\bPy[A-Z_]\w+\(", path.read_text()), path
