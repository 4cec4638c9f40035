"""The rooms of the package: imports go one way, and no module uses the private names of another module's objects."""

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

PACKAGE = ROOT / "bufferpool"
FILES = sorted(PACKAGE.rglob("*.py"))
# A room may import the rooms on later lines, and itself.
ORDER = (
    ("__init__", "__main__"),
    ("cli",),
    ("prometheus", "replay", "integrations"),
    ("pool",),
    ("observer",),
    ("upkeep",),
    ("spaces", "objects"),
    ("client",),
    ("figures",),
    ("stores",),
    ("machine",),
    ("simulation",),
    ("units",),
    ("errors",),
    ("printable", "_locks", "_core"),
)  # fmt: skip
LINE = {room: line for line, rooms in enumerate(ORDER) for room in rooms}
# Part of an interface in spite of the underscore: of a named tuple, and the coroutines of file systems of fsspec and of s3fs.
PUBLIC = {"_replace", "_asdict", "_fields", "_cat_file", "_info", "_walk", "_strip_protocol", "_call_s3"}


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path) for path in FILES}


def imports_of(path: Path) -> Iterator[str]:
    """The modules of the package that a file imports; those under TYPE_CHECKING, and inside of functions, count too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name.startswith("bufferpool."))
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "bufferpool":
            for name in node.names:
                inner = f"{node.module}.{name.name}"
                yield inner if inner in MODULES or node.module == "bufferpool" else node.module


def room_of(module: str) -> str:
    return [*module.split("."), "__init__"][1]


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_imports_go_one_way(path: Path) -> None:
    """Helpers took the whole Pool to reach its segment, and modules of all levels imported each other."""
    here = room_of(module_of(path))
    for module in imports_of(path):
        there = room_of(module)
        assert here == there or LINE[here] < LINE[there], f"{module_of(path)} imports {module}"


def test_no_modules_import_each_other_in_a_circle() -> None:
    list(graphlib.TopologicalSorter({module_of(path): set(imports_of(path)) for path in FILES}).static_order())


def drawing() -> str:
    """The rooms, each with those that it imports. Every arrow points to a room on a later line."""
    arrows: dict[str, set[str]] = {}
    for path in FILES:
        here = room_of(module_of(path))
        arrows.setdefault(here, set()).update(room_of(module) for module in imports_of(path))
    lines = []
    for room in (room for rooms in ORDER for room in rooms if room in arrows and room not in ("__init__", "__main__")):
        below = [other for rooms in ORDER for other in rooms if other in arrows[room] - {room, "__init__", "_core"}]
        lines.append(f"{room:12} -> {', '.join(below)}" if below else room)
    return "\n".join(lines)


def test_the_drawing_of_the_imports_is_true() -> None:
    """CONTRIBUTING.md shows it: no circle, and no arrow to a room on an earlier line."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    assert f"```text\n{drawing()}\n```" in text, f"put this into CONTRIBUTING.md:\n{drawing()}"


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_no_module_uses_private_names_of_another(path: Path) -> None:
    """There were 105 such uses: 53 of ``pool._seg`` alone."""
    tree = ast.parse(path.read_text())
    own = {node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    own |= {
        node.target.id
        for node in ast.walk(tree)
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }
    own |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute) or not node.attr.startswith("_") or node.attr.startswith("__"):
            continue
        mine = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
        assert mine or node.attr in own | PUBLIC, f"{path.name}:{node.lineno}: {ast.unparse(node)}"
