"""Every Python snippet of the README and the documentation runs as printed, from any folder, and prints what its comments say."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import bufferpool as bp
from tests.conftest import ROOT, SHM, new_name

OPTIONAL = (
    r"^ *(?:import|from) (dask|distributed|torch|zarr|fsspec)\b"  # libraries of integrations, which may be missing
)
UNTESTED = {"design.md", "changelog.md"}  # they have no program
LINKED = ["README.md", *sorted(page.relative_to(ROOT).as_posix() for page in (ROOT / "docs").rglob("*.md"))]
PAGES = [page for page in LINKED if "```python" in (ROOT / page).read_text() and Path(page).name not in UNTESTED]


def programs_of(text: str) -> list[str]:
    """The snippets of a page: those with a main function of their own, and all others as one program, in order."""
    snippets = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    alone = [snippet for snippet in snippets if "__main__" in snippet]
    return [*alone, "\n".join(snippet for snippet in snippets if snippet not in alone)]


def promised(program: str) -> list[str]:
    """What the comments behind the program's print calls say, up to a colon."""
    return [
        line.split("  # ")[1].split(": ")[0] for line in program.splitlines() if re.match(r" *print\(.*\)  # ", line)
    ]


def test_the_pages_are_found() -> None:
    assert {"README.md", "docs/tutorial.md", "docs/how-to/engine.md", "docs/metrics.md"} <= set(PAGES)


@pytest.mark.parametrize("page", PAGES)
def test_the_snippets_of_a_page_work(page: str, tmp_path: Path) -> None:
    """The ten lines of the README left a pool behind, and its line for metrics was an AttributeError."""
    for library in sorted(set(re.findall(OPTIONAL, (ROOT / page).read_text(), re.MULTILINE))):
        pytest.importorskip(library)
    for number, program in enumerate(programs_of((ROOT / page).read_text())):
        names = {name: new_name() for name in re.findall(r'Pool\.(?:open|create)\(\s*"(\w+)"', program)}
        for name, unique in names.items():
            program = re.sub(rf'\b(open|create|attach|Collector)\((\s*)"{name}"', rf'\1(\2"{unique}"', program)
        script = tmp_path / f"snippet{number}.py"
        script.write_text(program)
        try:
            run = subprocess.run(
                [sys.executable, script.name], cwd=tmp_path, capture_output=True, text=True, timeout=400
            )
        finally:
            left = [unique for unique in names.values() if (SHM / unique).exists()]
            for unique in left:
                (SHM / unique).unlink()
        assert run.returncode == 0, run.stderr
        assert not left, "the page leaves a pool behind"
        shown = [line for line in run.stdout.splitlines() if line]
        for line in promised(program):
            assert line in shown, f"{page} promises {line!r}; it prints {shown}"


@pytest.mark.parametrize("page", LINKED)
def test_the_files_that_a_page_names_exist(page: str) -> None:
    """Files move; the tables that say which test shows what, and the links, must follow."""
    text, folder = (ROOT / page).read_text(), (ROOT / page).parent
    targets = [target.partition("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in target]
    gone = [target for target in targets if target and not (folder / target).exists()]
    gone += [name for name in re.findall(r"`(tests/[\w/.]+)`", text) if not (ROOT / name).exists()]
    assert not gone, f"{page} names {gone}"


@pytest.mark.parametrize("page", LINKED)
def test_the_names_that_a_page_uses_exist(page: str) -> None:
    """docs/metrics.md offered an ASGI application under a name that could not be imported."""
    text = (ROOT / page).read_text()
    for start, owner in (("bufferpool", bp), ("pool", bp.Pool), ("space", bp.Space)):
        for dotted in re.findall(rf"`{start}\.((?:[a-z_]+\.)*[A-Za-z_]+)\(", text):
            found: object = owner
            for part in dotted.split("."):
                assert hasattr(found, part), f"{page}: {start}.{dotted}"
                found = getattr(found, part)


def test_the_words_of_the_code_in_the_design_exist() -> None:
    """The design named ``set_data`` and ``clean_only`` long after the code had other names for them."""
    rooms = ("bufferpool", "tests", "examples", "benchmarks", "lab", "tools")
    sources = [
        path for room in rooms for path in (ROOT / room).rglob("*.*") if path.suffix in (".py", ".pyi", ".h", ".cpp")
    ]
    sources += [ROOT / name for name in ("Makefile", "setup.py", "pyproject.toml")]
    code = "\n".join(
        [*(path.read_text() for path in sources if path != Path(__file__)), *(path.name for path in sources)]
    )
    known = set(re.findall(r"\w+", code))
    for page in ("docs/design.md", "docs/guarantees.md", "bufferpool/core/README.md", "CONTRIBUTING.md"):
        text = re.sub(r"```.*?```", "", (ROOT / page).read_text(), flags=re.DOTALL)
        spans = [span for span in re.findall(r"`([^`\n]+)`", text) if " " not in span and "/" not in span]
        words = {word for span in spans for word in re.findall(r"[A-Za-z_]{2,}\w*", span) if "_" in word.strip("_")}
        assert words - known == set(), page


def test_each_promise_names_its_tests():
    """A row of the table without a test, or with one that was renamed, promises what nothing shows."""
    rows = re.findall(
        r"^\| (?!promise|---)(.+) \| (.+) \|$", (ROOT / "docs" / "guarantees.md").read_text(), re.MULTILINE
    )
    assert len(rows) > 40
    for promise, shown_by in rows:
        named = re.findall(r"`((?:tests/)?(?:\w+/)*\w+\.py)`", shown_by)
        places = [
            ROOT / name if name.startswith("tests/") else next(ROOT.glob(f"tests/**/{name}"), ROOT / name)
            for name in named
        ]
        assert named or "`tests/" in shown_by or "make " in shown_by, promise
        assert [place for place in places if not place.exists()] == []
