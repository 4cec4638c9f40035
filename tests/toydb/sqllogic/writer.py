"""Writes one sqllogictest file; SQLite's own tables say what its statements and queries do."""

from pathlib import Path

import apsw

from .runner import summary, values_of

THRESHOLD = 12


class Writer:
    """A .test file being written, and the SQLite that answers its queries."""

    def __init__(self, what: str) -> None:
        self.lines = [f"# {what}", "# Written by generate.py.", "", f"hash-threshold {THRESHOLD}", ""]
        self.sqlite = apsw.Connection(":memory:")
        self.queries = 0

    def statement(self, sql: str) -> None:
        try:
            self.sqlite.execute(sql).fetchall()
            outcome = "ok"
        except apsw.Error:
            outcome = "error"
        self.lines += [f"statement {outcome}", sql, ""]

    def query(self, sql: str, sort: str = "rowsort", label: str = "") -> None:
        cursor = self.sqlite.execute(sql)
        rows = cursor.fetchall()
        types = "".join(_letter([row[column] for row in rows]) for column in range(len(rows[0]))) if rows else "T"
        if not rows:
            types = "T" * _width(self.sqlite, sql)
        values = values_of(rows, types, sort)
        self.lines += [f"query {types} {sort} {label}".rstrip(), sql, "----"]
        self.lines += values if len(values) <= THRESHOLD else [summary(values)]
        self.lines.append("")
        self.queries += 1

    def save(self, path: Path) -> None:
        path.write_text("\n".join(self.lines), encoding="utf-8")


def _letter(values: list[object]) -> str:
    kinds = {type(value) for value in values} - {type(None)}
    if kinds <= {int}:
        return "I"
    return "R" if kinds <= {float} else "T"


def _width(sqlite: apsw.Connection, sql: str) -> int:
    width = 0

    def trace(cursor: apsw.Cursor, *_: object) -> bool:
        nonlocal width
        width = len(cursor.get_description())
        return True

    cursor = sqlite.cursor()
    cursor.exec_trace = trace
    cursor.execute(sql).fetchall()
    return width
