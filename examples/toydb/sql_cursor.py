"""Reads a table for SQLite (xFilter, xNext, xColumn), by the plan that SQLite chose."""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import apsw

from toydb import sql_plan
from toydb.keys import Value, decode_integer, prefixes
from toydb.sql_plan import Plan
from toydb.sql_schema import Row, Schema
from toydb.sql_session import Session, Work
from toydb.table import Table


class Planned(Protocol):
    """The virtual table that a cursor reads."""

    schema: Schema
    session: Session

    def plan(self, number: int, text: str) -> Plan: ...


class Cursor:
    """Reads rows of one table by one plan, in the transaction that is open at xFilter."""

    __slots__ = ("_base", "_index", "_key", "_record", "_row", "_rows", "_table", "_work")

    def __init__(self, table: Planned) -> None:
        self._table = table
        self._work: Work | None = None
        self._rows: Iterator[tuple[bytes, bytes]] = iter(())
        self._row: Row | None = None
        self._key: bytes | None = None

    def Filter(self, number: int, text: str, values: Sequence[object]) -> None:
        session, schema = self._table.session, self._table.schema
        if self._work is not session.current or self._work is None:
            self._leave()
            self._work = session.acquire()
        plan = self._table.plan(number, text)
        self._base = session.table(self._work, schema)
        self._index = plan.path.index is not None
        tree = session.storage(self._work, plan.path.storage(schema))
        wanted, exact = sql_plan.ranges(plan, schema, values)
        if len(plan.equal) == len(plan.path.columns) and not self._index:
            self._rows = _look_up(tree, wanted, plan.reverse)
        else:
            self._rows = _scan(tree, wanted, plan.reverse)
        if plan.ordered and not exact:
            self._rows = _by_rest(self._rows, len(plan.equal), plan.reverse)
        self.Next()

    def Next(self) -> None:
        self._row = None
        entry = next(self._rows, None)
        if entry is None:
            self._key = None
        elif self._index:
            self._key = entry[0][int.from_bytes(entry[1], "big") :]
            record = self._base.get(self._key)
            if record is None:
                raise apsw.CorruptError(
                    f"{self._table.schema.name}: an index has an entry for a missing row; run .check"
                )
            self._record = record
        else:
            self._key, self._record = entry

    def Eof(self) -> bool:
        return self._key is None

    def Column(self, number: int) -> Value:
        key = self._key
        if key is None:
            return None
        row = self._row
        if row is None:
            row = self._row = whole(self._table.schema, key, self._record)
        if number < 0:
            return decode_integer(key)
        return row[number] if number < len(row) else key

    def ColumnNoChange(self, _number: int) -> Any:
        return apsw.no_change

    def Rowid(self) -> int:
        assert self._key is not None
        return decode_integer(self._key)

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


def _scan(tree: Table, wanted: list[sql_plan.Range], reverse: bool) -> Iterator[tuple[bytes, bytes]]:
    for lo, hi in reversed(wanted) if reverse else wanted:
        yield from tree.scan(lo, hi, hi_open=True, reverse=reverse)


def _look_up(tree: Table, wanted: list[sql_plan.Range], reverse: bool) -> Iterator[tuple[bytes, bytes]]:
    """As _scan, for ranges that are one whole key each: looks the keys up."""
    for lo, hi in reversed(wanted) if reverse else wanted:
        if hi[:-1] == lo:
            value = tree.get(lo)
            if value is not None:
                yield lo, value
        else:
            yield from tree.scan(lo, hi, hi_open=True, reverse=reverse)


def _by_rest(rows: Iterator[tuple[bytes, bytes]], columns: int, reverse: bool) -> Iterator[tuple[bytes, bytes]]:
    """Sorts rows by the key's columns after the first ``columns``, for ranges with several values of the first ones."""

    def rest(row: tuple[bytes, bytes]) -> bytes:
        cuts = prefixes(row[0])
        return row[0][len(cuts[columns - 1]) :]

    return iter(sorted(rows, key=rest, reverse=reverse))
