"""The house rules of the core's text: the rooms and their order, the length of functions and of lines, their arguments."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from tests.conftest import ROOT
from tests.support.native_build import CORE, SOURCES

ROOMS = ["os", "layout", "policy", "protocol", "python"]
FUNCTION_LINES, COLUMNS, ARGUMENTS = 60, 120, 6
PYTHON = ("bufferpool", "benchmarks", "dashboards", "docs", "examples", "lab", "tests", "tools")
# What a user calls with keywords reads best with one keyword for each setting.
KEYWORD_INTERFACES = {"pool.py": {"create", "open", "open_file", "open_derived", "open_store", "open_scratch"}}


def includes(path: Path) -> list[str]:
    """What a file includes with quotation marks, but for the explorer's model of the kernel."""
    return [name for name in re.findall(r'^#include "(.+)"', path.read_text(), re.MULTILINE) if name != "prim_model.h"]


def functions(text: str) -> Iterator[tuple[str, int]]:
    """The first line and the number of lines of each block that begins at most four columns in, but not of types."""
    lines = text.splitlines()
    for start, line in enumerate(lines):
        opened = re.match(r"( {0,4})(?!(namespace|class|struct|enum|union|extern)\b)[^\s/#}].*\{$", line)
        if opened and "=" not in line.partition("(")[0]:
            end = next(i for i in range(start + 1, len(lines)) if re.match(rf"{opened[1]}\}}", lines[i]))
            yield line.strip(), end - start + 1


def test_an_include_points_to_the_same_room_or_an_earlier_one() -> None:
    """The order of the rooms is that in which a reader can understand them: nothing needs what comes later."""
    for path in SOURCES:
        room = path.parent.name
        for name in includes(path):
            assert (CORE / name).is_file(), f"{path}: {name} is not named from the core's root"
            assert ROOMS.index(name.partition("/")[0]) <= ROOMS.index(room), f"{path} includes {name}, of a later room"


def test_the_drawing_of_the_includes_is_true() -> None:
    """The README of the core shows it: no arrow to a room on an earlier line."""
    arrows = {
        room: {name.partition("/")[0] for p in SOURCES if p.parent.name == room for name in includes(p)}
        for room in ROOMS
    }
    lines = []
    for room in reversed(ROOMS):
        below = [other for other in reversed(ROOMS) if other in arrows[room] - {room}]
        lines.append(f"{room:8} -> {', '.join(below)}" if below else room)
    drawing = "\n".join(lines)
    assert f"```text\n{drawing}\n```" in (CORE / "README.md").read_text(), f"put this into core/README.md:\n{drawing}"


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


def test_functions_and_lines_can_be_taken_in() -> None:
    """A function of the core has at most 60 lines, so that it can be read at a glance; a file may be as long as its subject."""
    found = [
        f"{path.name}: {n} lines: {name}"
        for path in SOURCES
        for name, n in functions(path.read_text())
        if n > FUNCTION_LINES
    ]
    found += [
        f"{path.name}:{number}: {len(line)} columns"
        for path in SOURCES
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if len(line) > COLUMNS
    ]
    assert found == []


def arguments_of(function: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    """The names of a function's arguments, without self or cls."""
    given = function.args
    names = [one.arg for one in (*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg) if one]
    return names[1:] if names[:1] in (["self"], ["cls"]) else names


def parameters_of(text: str) -> Iterator[tuple[str, int]]:
    """The functions that a file of the core defines or declares, and how many parameters each has."""
    text = re.sub(r"//[^\n]*|\"(?:\\.|[^\"\n])*\"", "", text)
    while (plain := re.sub(r"<[^<>;{}()]*>", "", text)) != text:  # the commas of templates are no parameters'
        text = plain
    types = r"(?:const |static |inline |constexpr |unsigned |struct )*[\w:]+[ *&]+"
    for found in re.finditer(rf"^ {{0,4}}{types}(\w+)\(([^(){{}};]*)\)[\w ]*[{{;]", text, re.MULTILINE):
        if re.search(r"\w [*&]?\w", found[2]):  # types and names: a declaration, not a call
            yield found[1], found[2].count(",") + 1


def test_functions_take_few_arguments() -> None:
    """Thirteen numbers in a row are mixed up unseen: from the seventh argument on, a function takes a struct."""
    found = []
    for path in (
        path for room in PYTHON for path in sorted((ROOT / room).rglob("*.py*")) if path.suffix in (".py", ".pyi")
    ):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) or len(arguments_of(node)) <= ARGUMENTS:
                continue
            if node.name.startswith("test_"):  # pytest passes fixtures by name
                continue
            if node.name in KEYWORD_INTERFACES.get(path.name, ()):
                positional = [*node.args.posonlyargs, *node.args.args][1:]  # without self, or cls
                assert len(positional) <= 3, f"{path.name}: {node.name}: settings are keyword-only"
            else:
                found.append(f"{path.name}: {node.name}: {len(arguments_of(node))} arguments")
    for path in SOURCES:
        found += [
            f"{path.name}: {name}: {n} parameters" for name, n in parameters_of(path.read_text()) if n > ARGUMENTS
        ]
    assert found == []


def test_parameters_are_counted() -> None:
    text = "bool none(u32 a);\nstatic Pair<u32, u64> seven(Segment& s, int a, int b, Map<u8, u8> c, int d, int e, int f) {\n"
    assert list(parameters_of(text)) == [("none", 1), ("seven", 7)]


def test_the_reading_order_names_every_file() -> None:
    text = (CORE / "README.md").read_text()
    missing = [str(path.relative_to(CORE)) for path in SOURCES if f"`{path.name}`" not in text]
    assert missing == []


# How tests write the limit of a wait in seconds.
LIMITS = re.compile(
    r"(?:capture_output|communicate|subprocess\.run|urlopen|Barrier|deaths\.run)\b.*timeout=(\d+)\b(?! \*)"
    r"|\b(?:dump_traceback_later|alarm)\((\d\d+)|\.wait\((\d\d+)\)|wait_until\(.*, (\d+)\)$"
    r"|^ *(?:deadline|end) = time\.monotonic\(\) \+ (\d\d+)$",
    re.MULTILINE,
)


def test_no_wait_has_a_short_limit() -> None:
    """Beside twenty other busy processes, limits of 20 to 60 s ended tests whose programs were only slow."""
    short = [
        f"{path.name}: {found[0].strip()}"
        for path in sorted((ROOT / "tests").rglob("*.py"))
        for found in LIMITS.finditer(path.read_text())
        if int(found[found.lastindex or 0]) < 300
    ]
    assert short == [], "take WAIT of tests/conftest.py"


def test_no_file_has_the_marks_of_a_merge_that_was_not_ended() -> None:
    """A conflict in the design document was committed with both sides of it: nothing else reads a document's every line."""
    marks = re.compile(r"^(<<<<<<< |>>>>>>> )", re.MULTILINE)
    texts = [*ROOT.glob("*.md"), *(p for top in (*PYTHON, ".github") for p in (ROOT / top).rglob("*.*"))]
    read = [
        p
        for p in texts
        if p.suffix in {".md", ".py", ".pyi", ".h", ".cpp", ".toml", ".yml", ".json", ".jsonnet", ".tsx"}
    ]
    assert len(read) > 400
    assert [p for p in read if "node_modules" not in p.parts and marks.search(p.read_text(errors="replace"))] == []
