"""Results as tables, JSON or CSV."""

import csv
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.cells import cell_len

FORMATS = ("table", "json", "csv")


@dataclass(frozen=True)
class Result:
    names: list[str]
    rows: Sequence[Sequence[Any]]


def write(result: Result, form: str) -> None:
    """Write a result in one of FORMATS."""
    {"table": _table, "json": _json, "csv": _csv}[form](result)


def _table(result: Result) -> None:
    cells = [[_cell(value) for value in row] for row in result.rows]
    widths = [cell_len(name) for name in result.names]
    for row in cells:
        widths = [max(width, cell_len(cell)) for width, cell in zip(widths, row, strict=True)]
    numbers = [
        all(value is None or isinstance(value, (int, float)) for value in column)
        for column in zip(*result.rows, strict=True)
    ] or [False] * len(widths)
    for row in (result.names, ["─" * width for width in widths], *cells):
        padded = [
            " " * (width - cell_len(cell)) + cell if right else cell + " " * (width - cell_len(cell))
            for cell, width, right in zip(row, widths, numbers, strict=True)
        ]
        sys.stdout.write("  ".join(padded).rstrip() + "\n")
    sys.stdout.write(f"({len(cells):,} row{'' if len(cells) == 1 else 's'})\n")


def _cell(value: Any) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, bytes):
        return f"x'{value.hex()}'"
    text = str(value)
    return text if text.isprintable() else "".join(c if c.isprintable() else "·" for c in text)


def _json(result: Result) -> None:
    names = [f"{name}:{n}" if name in result.names[:n] else name for n, name in enumerate(result.names)]
    plain = [{name: _plain(value) for name, value in zip(names, row, strict=True)} for row in result.rows]
    json.dump(plain, sys.stdout, ensure_ascii=False, allow_nan=False, indent=1)
    sys.stdout.write("\n")


def _plain(value: Any) -> Any:
    if isinstance(value, float) and math.isinf(value):
        return str(value)
    return value.hex() if isinstance(value, bytes) else value


def _csv(result: Result) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(result.names)
    writer.writerows([["" if value is None else _plain(value) for value in row] for row in result.rows])
