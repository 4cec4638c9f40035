"""The table of docs/lab.md: one column for each kernel, one row for each check, with the time each took."""

import fcntl
import json
import os
import re
import subprocess
import time
from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager
from dataclasses import asdict, dataclass

from lab.images import CACHE, KERNELS, ROOT

DOCUMENT = ROOT / "docs" / "lab.md"
BEGIN, END = "<!-- the table begins -->\n", "<!-- the table ends -->\n"
RESULTS = CACHE / "results.json"


@dataclass(frozen=True)
class Cell:
    """The result of one check on one kernel."""

    passed: bool
    text: str
    seconds: int
    release: str
    cpu: int = 0
    """Seconds of processor time; 0 where it was not measured."""
    when: str = ""
    """The day and minute, in UTC; empty where it was not recorded."""
    tree: str = ""
    """The commit, with a plus where files were changed since; empty where it was not recorded."""


Results = dict[str, dict[str, Cell]]
"""By check, then by kernel."""


def now() -> str:
    """The day and minute, in UTC."""
    return time.strftime("%Y-%m-%d %H:%M", time.gmtime())


def tree() -> str:
    """The commit of the tree, with a plus if files other than documents are changed."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    changed = subprocess.run(
        ["git", "status", "--porcelain", "--", ".", ":!docs"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return commit.stdout.strip() + "+" * bool(changed.stdout)


@contextmanager
def _locked() -> Iterator[None]:
    """One process at a time reads the results and writes them anew."""
    with open(RESULTS.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def load() -> Results:
    """The results of earlier runs."""
    if not RESULTS.exists():
        return {}
    stored = json.loads(RESULTS.read_text())
    return {check: {kernel: Cell(**cell) for kernel, cell in row.items()} for check, row in stored.items()}


def record(check: str, kernel: str, cell: Cell) -> None:
    """Adds one result to those in the cache, which several runs may write."""
    with _locked():
        results = load()
        results.setdefault(check, {})[kernel] = cell
        plain = {name: {column: asdict(one) for column, one in row.items()} for name, row in results.items()}
        making = RESULTS.with_suffix(".new")
        making.write_text(json.dumps(plain, indent=1))
        os.replace(making, RESULTS)


def write(planned: Mapping[str, Set[str]]) -> None:
    """Writes the table of the document. ``planned``: the checks in order, and the kernels that each runs on."""
    before, _, rest = DOCUMENT.read_text().partition(BEGIN)
    old, _, after = rest.partition(END)
    DOCUMENT.write_text(before + BEGIN + table(load(), planned, written(old)) + END + after)


Written = dict[str, dict[str, str]]
"""The cells of a table as they are written, by check, then by kernel. Those of ``RELEASES`` are the kernels' releases."""
RELEASES = "The kernels were "


def written(text: str) -> Written:
    """The cells of a table that was written before, perhaps on another machine, whose cache has their results."""
    lines = text.splitlines()
    if not lines:
        return {}
    kernels = [name.removeprefix("Linux ") for name in columns(lines[0])[1:]]
    found = {check: dict(zip(kernels, cells, strict=True)) for check, *cells in map(columns, lines[2:-2])}
    for line in lines:
        if line.startswith(RELEASES):
            releases = line.removeprefix(RELEASES).partition(";")[0].removesuffix(".").split(", ")
            found[RELEASES] = dict(zip(kernels, releases, strict=True))
    return found


def columns(line: str) -> list[str]:
    """The cells of a line of a table; a vertical bar within a cell has a backslash before it."""
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def table(results: Results, planned: Mapping[str, Set[str]], old: Written) -> str:
    """The results as a table of Markdown; a dash where a check does not run. A cell of the old table remains if the cache has
    no result for it."""
    rows = {
        check: {kernel: cell for kernel, cell in results.get(check, {}).items() if kernel in kernels}
        for check, kernels in planned.items()
    }
    cells = {
        check: {kernel: old.get(check, {}).get(kernel, "").strip("–") for kernel in planned[check]}
        | {kernel: shown(cell) for kernel, cell in row.items()}
        for check, row in rows.items()
    }
    kernels = [name for name in KERNELS if any(row.get(name) for row in cells.values())]
    lines = ["| check | " + " | ".join(kernel if kernel == "UML" else f"Linux {kernel}" for kernel in kernels) + " |"]
    lines.append("| --- |" + " --- |" * len(kernels))
    for check, texts in cells.items():
        lines.append(f"| {check} | " + " | ".join(texts.get(kernel, "–") for kernel in kernels) + " |")
    releases = old.get(RELEASES, {}) | {
        kernel: cell.release for row in rows.values() for kernel, cell in row.items() if cell.release != kernel
    }
    ran = [cell for row in rows.values() for cell in row.values()]
    took, measured = sum(cell.seconds for cell in ran), sum(cell.seconds for cell in ran if cell.cpu)
    used = sum(cell.cpu for cell in ran)
    time = f"; the checks of this machine took {took // 60} minutes"
    if measured == took:
        time += f", with {used // 60} minutes of processor time"
    elif measured:
        time += f", for {measured // 60} of which {used // 60} minutes of processor time were measured"
    lines += ["", f"{RELEASES}{', '.join(releases.get(kernel, kernel) for kernel in kernels)}{time if ran else ''}."]
    return "\n".join(lines) + "\n"


def shown(cell: Cell) -> str:
    """A cell of the table: the result (of an error the first line only), and the day and the commit, where they are known."""
    text = cell.text.splitlines()[0].replace("|", "\\|") if cell.text else ""
    origin = f" ({cell.when.partition(' ')[0]}, {cell.tree})" if cell.tree else ""
    return f"{'✓' if cell.passed else '**✗**'} {text[:160]}{origin}"
