"""Reads a table for SQLite (xFilter, xNext, xColumn), by the plan that SQLite chose."""

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any, Protocol

import apsw

from toydb.sql import planning
from toydb.sql.keys import Value, decode_integer, prefixes
from toydb.sql.planning import Plan
from toydb.sql.schemas import Row, Schema
from toydb.sql.session import Session, Work
from toydb.table import Table

Entry = tuple[bytes, bytes]


class Planned(Protocol):
    """The virtual table that a cursor reads."""

    schema: Schema
    session: Session

    def plan(self, number: int, text: str) -> Plan: ...


class Cursor:
    """Reads rows of one table by one plan, in the transaction that is open at xFilter."""

    __slots__ = ("_alias", "_entry", "_row", "_rows", "_table", "_work")

    def __init__(self, table: Planned) -> None:
        self._table = table
        self._alias = -1 if table.schema.alias is None else table.schema.alias
        self._work: Work | None = None
        self._rows: Iterator[Entry] = iter(())
        self._entry: Entry | None = None
        self._row: Row | None = None  # without its INTEGER PRIMARY KEY, which is the key

    def Filter(self, number: int, text: str, values: Sequence[object]) -> None:
        session, schema = self._table.session, self._table.schema
        if self._work is None:
            self._work = session.acquire()
        elif self._work is not session.current:
            self._leave()
            self._work = session.acquire()
        plan = self._table.plan(number, text)
        base = session.table(self._work, schema)
        index = plan.path.index
        if index is None and (key := planning.only_key(plan, schema, values)) is not None:
            self._rows, self._row = iter(()), None
            record = base.get(key)
            self._entry = None if record is None else (key, record)
            return
        wanted, exact, width = planning.ranges(plan, schema, values)
        if width == len(plan.path.columns) and index is None:
            rows = _look_up(base, wanted, plan.reverse)
        else:
            tree = base if index is None else session.storage(self._work, index.storage)
            rows = _scan(tree, wanted, plan.reverse, self._work.write)
        if plan.ordered and not exact:
            rows = _by_rest(rows, len(plan.equal), plan.reverse)
        self._rows = rows if index is None else _by_index(rows, base, schema)
        self.Next()

    def Next(self) -> None:
        self._row = None
        self._entry = next(self._rows, None)

    def Eof(self) -> bool:
        return self._entry is None

    def Column(self, number: int) -> Value:
        row = self._row
        if row is None:
            if self._entry is None:
                return None
            row = self._row = self._table.schema.unpack(self._entry[1])
        if number == self._alias or number < 0:
            return self.Rowid()
        return row[number] if number < len(row) else self._entry[0]  # type: ignore[index]

    def ColumnNoChange(self, _number: int) -> Any:
        return apsw.no_change

    def Rowid(self) -> int:
        assert self._entry is not None
        return decode_integer(self._entry[0])

    def Close(self) -> None:
        self._leave()

    def _leave(self) -> None:
        self._rows = iter(())
        work, self._work = self._work, None
        if work is not None:
            self._table.session.release(work)


def whole(schema: Schema, key: bytes, record: bytes) -> Row:
    """The row of a record, its INTEGER PRIMARY KEY included."""
    row = schema.unpack(record)
    if schema.alias is not None:
        row[schema.alias] = decode_integer(key)
    return row


def _scan(tree: Table, wanted: list[planning.Range], reverse: bool, changing: bool) -> Iterator[Entry]:
    """The entries of these ranges. ``changing``: the statement may change the table meanwhile."""
    scan = tree.scan if changing else tree.scan_leaves
    parts = (scan(lo, hi, hi_open=True, reverse=reverse) for lo, hi in (reversed(wanted) if reverse else wanted))
    return chain.from_iterable(parts)


def _by_index(entries: Iterator[Entry], base: Table, schema: Schema) -> Iterator[Entry]:
    """The rows to which the entries of an index lead."""
    for entry, size in entries:
        key = entry[int.from_bytes(size, "big") :]
        record = base.get(key)
        if record is None:
            raise apsw.CorruptError(f"{schema.name}: an index has an entry for a missing row; run .check")
        yield key, record


def _look_up(tree: Table, wanted: list[planning.Range], reverse: bool) -> Iterator[Entry]:
    """As _scan, for ranges that are one whole key each: looks the keys up."""
    for lo, hi in reversed(wanted) if reverse else wanted:
        if hi[:-1] == lo:
            value = tree.get(lo)
            if value is not None:
                yield lo, value
        else:
            yield from tree.scan(lo, hi, hi_open=True, reverse=reverse)


def _by_rest(rows: Iterator[Entry], columns: int, reverse: bool) -> Iterator[Entry]:
    """Sorts rows by the key's columns after the first ``columns``, for ranges with several values of the first ones."""

    def rest(row: Entry) -> bytes:
        cuts = prefixes(row[0])
        return row[0][len(cuts[columns - 1]) :]

    return iter(sorted(rows, key=rest, reverse=reverse))
