"""Every Python snippet of the documentation runs, and prints what its comments say."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, SHM, new_name

PAGES = sorted(
    page.relative_to(ROOT / "docs").as_posix()
    for page in (ROOT / "docs").rglob("*.md")
    if "```python" in page.read_text() and page.name not in ("design.md", "metrics.md")
)


def program_of(text: str) -> str:
    """The snippets of a page, in order, as one program."""
    return "\n".join(re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE))


def promised(program: str) -> list[str]:
    """What the comments behind the program's print calls at the outermost level say, up to a colon."""
    return [line.split("  # ")[1].split(": ")[0] for line in program.splitlines() if re.match(r"print\(.*\)  # ", line)]


def test_the_pages_are_found() -> None:
    assert {"tutorial.md", "how-to/engine.md"} <= set(PAGES)


@pytest.mark.parametrize("page", PAGES)
def test_the_snippets_of_a_page_work(page: str, tmp_path: Path) -> None:
    program = program_of((ROOT / "docs" / page).read_text())
    names = {name: new_name() for name in re.findall(r'Pool\.open\("(\w+)"', program)}
    for name, unique in names.items():
        program = re.sub(rf'(open|attach|Collector)\("{name}"', rf'\1("{unique}"', program)
    try:
        run = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    finally:
        left = [(SHM / name).unlink(missing_ok=True) for name in names.values() if (SHM / name).exists()]
    assert run.returncode == 0, run.stderr
    assert not left, "the page leaves a pool behind"
    shown = [line for line in run.stdout.splitlines() if line]
    for line in promised(program):
        assert line in shown, f"{page} promises {line!r}; it prints {shown}"
