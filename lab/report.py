"""The table of docs/lab.md: one column for each kernel, one row for each check, with the time each took."""

import json
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


Results = dict[str, dict[str, Cell]]
"""By check, then by kernel."""


def load() -> Results:
    """The results of earlier runs."""
    if not RESULTS.exists():
        return {}
    stored = json.loads(RESULTS.read_text())
    return {check: {kernel: Cell(**cell) for kernel, cell in row.items()} for check, row in stored.items()}


def save(results: Results) -> None:
    """Stores the results in the cache."""
    plain = {check: {kernel: asdict(cell) for kernel, cell in row.items()} for check, row in results.items()}
    RESULTS.write_text(json.dumps(plain, indent=1))


def write(results: Results) -> None:
    """Writes the table of the document."""
    before, _, rest = DOCUMENT.read_text().partition(BEGIN)
    after = rest.partition(END)[2]
    DOCUMENT.write_text(before + BEGIN + table(results) + END + after)


def table(results: Results) -> str:
    """The results as a table of Markdown."""
    kernels = [name for name in KERNELS if any(name in row for row in results.values())]
    lines = ["| check | " + " | ".join(f"Linux {kernel}" for kernel in kernels) + " |"]
    lines.append("| --- |" + " --- |" * len(kernels))
    for check, row in results.items():
        cells = [shown(row[kernel]) if kernel in row else "" for kernel in kernels]
        lines.append(f"| {check} | " + " | ".join(cells) + " |")
    releases = [next(row[kernel].release for row in results.values() if kernel in row) for kernel in kernels]
    seconds = sum(cell.seconds for row in results.values() for cell in row.values())
    lines += ["", f"The kernels were {', '.join(releases)}; the checks took {seconds // 60} minutes together."]
    return "\n".join(lines) + "\n"


def shown(cell: Cell) -> str:
    """A cell of the table; of what went wrong only the first line."""
    text = cell.text.splitlines()[0].replace("|", "\\|") if cell.text else ""
    return f"{'✓' if cell.passed else '**✗**'} {text[:160]}"
