"""Run sqllogictest files: the format of SQLite's public test corpus.

(https://sqlite.org/sqllogictest/doc/trunk/about.wiki) A file is records parted by blank
lines::

    statement ok | statement error
    CREATE TABLE t(a INTEGER)

    query IIT rowsort label-1
    SELECT …
    ----
    1
    NULL
    (empty)

    query I nosort
    SELECT …
    ----
    90 values hashing to 3c13dee48d9356ae19af2515e05e6b54

and ``hash-threshold N``, ``halt``, ``skipif NAME``, ``onlyif NAME`` and comments. Values
are written by their column's letter: T text, I integer, R ``%.3f``.

Each query runs twice: on toydb, and on ordinary tables of a plain SQLite connection
beside it. Both must give what the file says.

    python -m tests.toydb.sqllogic.runner FILE …     run them on toydb
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import apsw

NAMES = ("sqlite", "toydb")  # what skipif and onlyif know us by
SORTS = ("nosort", "rowsort", "valuesort")


class SyntaxProblem(Exception):
    """The file is not of the format."""


class Mismatch(Exception):
    """A statement or query did not do what the file says."""


@dataclass(frozen=True)
class Record:
    line: int
    kind: str  # "statement", "query", "halt" or "hash-threshold"
    sql: str = ""
    fails: bool = False
    types: str = ""
    sort: str = "nosort"
    label: str = ""
    expected: tuple[str, ...] | None = None
    number: int = 0  # of hash-threshold


@dataclass
class Tally:
    statements: int = 0
    queries: int = 0
    skipped: int = 0


def parse(text: str) -> Iterator[Record]:
    """The records of a file that are meant for us."""
    lines = [line.rstrip("\r") for line in text.split("\n")]
    at = 0
    while at < len(lines):
        block, first = [], at
        while at < len(lines) and lines[at].strip():
            block.append(lines[at])
            at += 1
        at += 1
        wanted = True
        while block and (block[0].startswith(("#", "skipif", "onlyif"))):
            words = block[0].split("#")[0].split()
            if words:
                if len(words) < 2:
                    raise SyntaxProblem(f"line {first + 1}: {words[0]} needs a name")
                wanted &= (words[1] in NAMES) == (words[0] == "onlyif")
            block, first = block[1:], first + 1
        if block:
            record = _record(block, first + 1)
            yield record if wanted else Record(first + 1, "skipped")


def _record(block: list[str], line: int) -> Record:
    words = block[0].split()
    kind = words[0]
    if kind == "halt":
        return Record(line, "halt")
    if kind == "hash-threshold":
        return Record(line, kind, number=int(words[1]))
    if kind == "statement" and len(words) >= 2 and words[1] in ("ok", "error"):
        return Record(line, kind, "\n".join(block[1:]), fails=words[1] == "error")
    if kind != "query" or len(words) < 2 or set(words[1]) - set("TIR"):
        raise SyntaxProblem(f"line {line}: {block[0]!r}")
    sort = words[2] if len(words) > 2 else "nosort"
    if sort not in SORTS:
        raise SyntaxProblem(f"line {line}: no sort mode {sort!r}")
    label = words[3] if len(words) > 3 else ""
    body = block[1:]
    expected = None
    if "----" in body:
        cut = body.index("----")
        body, expected = body[:cut], tuple(body[cut + 1 :])
    return Record(line, kind, "\n".join(body), types=words[1], sort=sort, label=label, expected=expected)


def format_value(value: Any, letter: str) -> str:
    """One value as the format writes it."""
    if value is None:
        return "NULL"
    if letter == "I":
        return str(_integer(value))
    if letter == "R":
        return f"{_real(value):.3f}"
    text = value if isinstance(value, str) else _as_text(value)
    return "".join(c if " " <= c <= "~" else "@" for c in text) or "(empty)"


def _integer(value: Any) -> int:
    """As sqlite3_column_int64 converts."""
    return int(_scratch("SELECT CAST(? AS INTEGER)", value))


def _real(value: Any) -> float:
    return float(_scratch("SELECT CAST(? AS REAL)", value))


def _as_text(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode("latin-1")
    return str(_scratch("SELECT CAST(? AS TEXT)", value))


_cast = apsw.Connection(":memory:")


def _scratch(sql: str, value: Any) -> Any:
    row = _cast.execute(sql, (value,)).fetchone()
    return row[0]


def values_of(rows: list[tuple[Any, ...]], types: str, sort: str) -> list[str]:
    """All values of a result, formatted and sorted as a record asks."""
    written = []
    for row in rows:
        if len(row) != len(types):
            raise Mismatch(f"{len(row)} columns where {types} was said")
        written.append([format_value(value, letter) for value, letter in zip(row, types, strict=True)])
    if sort == "rowsort":
        written.sort(key=lambda row: [value.encode() for value in row])
    values = [value for row in written for value in row]
    return sorted(values, key=str.encode) if sort == "valuesort" else values


def summary(values: list[str]) -> str:
    """The one line that stands for a long result."""
    digest = hashlib.md5("".join(value + "\n" for value in values).encode(), usedforsecurity=False).hexdigest()
    return f"{len(values)} values hashing to {digest}"


class Runner:
    """Runs records on one connection, and on SQLite's own tables beside it."""

    def __init__(self, connection: apsw.Connection, reference: apsw.Connection | None = None) -> None:
        self._connection = connection
        self._reference = apsw.Connection(":memory:") if reference is None else reference
        self._labels: dict[str, str] = {}
        self.tally = Tally()

    def run(self, text: str) -> Tally:
        for record in parse(text):
            if record.kind == "halt":
                break
            if record.kind == "skipped":
                self.tally.skipped += 1
            elif record.kind == "statement":
                self._statement(record)
            elif record.kind == "query":
                self._query(record)
        return self.tally

    def _statement(self, record: Record) -> None:
        self.tally.statements += 1
        for name, connection in (("SQLite", self._reference), ("toydb", self._connection)):
            try:
                connection.execute(record.sql).fetchall()
                failed = None
            except apsw.Error as error:
                failed = error
            if (failed is not None) != record.fails:
                what = f"failed with {failed!r}" if failed else "should have failed"
                raise Mismatch(f"line {record.line}: {name}: {what}\n{record.sql}") from failed

    def _query(self, record: Record) -> None:
        self.tally.queries += 1
        for name, connection in (("SQLite", self._reference), ("toydb", self._connection)):
            try:
                values = values_of(connection.execute(record.sql).fetchall(), record.types, record.sort)
            except (apsw.Error, Mismatch) as error:
                raise Mismatch(f"line {record.line}: {name}: {error}\n{record.sql}") from error
            self._compare(name, record, values)

    def _compare(self, name: str, record: Record, values: list[str]) -> None:
        digest = summary(values)
        if record.label and self._labels.setdefault(record.label, digest) != digest:
            raise Mismatch(f"line {record.line}: {name}: another result for label {record.label}\n{record.sql}")
        expected = record.expected
        if expected is None:
            raise SyntaxProblem(f"line {record.line}: a query without a result")
        hashed = len(expected) == 1 and " values hashing to " in expected[0]
        if (digest != expected[0]) if hashed else (values != list(expected)):
            got = digest if hashed else values
            raise Mismatch(f"line {record.line}: {name} gives {got}, not {list(expected)}\n{record.sql}")


def main(paths: list[str]) -> int:
    """Run files on fresh toydb databases in a temporary directory."""
    import tempfile

    import toydb.sql

    failed = 0
    for path in paths:
        with tempfile.TemporaryDirectory() as directory:
            connection = toydb.sql.connect(Path(directory) / "test.db")
            try:
                tally = Runner(connection).run(Path(path).read_text())
                print(f"{path}: {tally.statements} statements, {tally.queries} queries, {tally.skipped} skipped")
            except Mismatch as error:
                failed += 1
                print(f"{path}: {error}")
            finally:
                connection.close()
    return 1 if failed else 0


if __name__ == "__main__":
    import sys

    sys.exit(main(sys.argv[1:]))
