"""Reads a table for SQLite (xFilter, xNext, xColumn), by the plan that SQLite chose."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any, Protocol

import apsw

from toydb.sql import planning
from toydb.sql.keys import Value, decode_integer, prefixes
from toydb.sql.planning import Plan
from toydb.sql.schemas import Row, Schema, unpack
from toydb.sql.session import Session, Work
from toydb.table import Table

Part = tuple[Sequence[bytes], Sequence[bytes]]  # some entries of a tree, in order: their keys, and their values
Decoded = tuple[bytes | None, Sequence[Value]]  # a row and its key
_END: Decoded = (None, ())


class Planned(Protocol):
    """The virtual table that a cursor reads."""

    schema: Schema
    session: Session

    def plan(self, number: int, text: str) -> Plan: ...


class Cursor:
    """Reads rows of one table by one plan, in the transaction that is open at xFilter.

    SQLite calls Next, Eof, and Column for each column of each row, so these do as little as possible: rows are decoded by a
    chain of iterators, none of which runs Python code for a row.
    """

    __slots__ = ("_alias", "_key", "_row", "_rows", "_table", "_work")

    def __init__(self, table: Planned) -> None:
        self._table = table
        self._alias = -1 if table.schema.alias is None else table.schema.alias
        self._work: Work | None = None
        self._rows: Iterator[Decoded] = iter(())
        self._key: bytes | None = None  # of the present row; None: there is none
        self._row: Sequence[Value] = ()  # with None for the INTEGER PRIMARY KEY, which is the key

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
            record = base.get(key)
            self._rows = iter(() if record is None else ((key, unpack(record)),))
        else:
            self._rows = self._planned(plan, base, values)
        self.Next()

    def _planned(self, plan: Plan, base: Table, values: Sequence[object]) -> Iterator[Decoded]:
        """The rows of a plan, from the table itself or by an index."""
        assert self._work is not None
        schema, index = self._table.schema, plan.path.index
        wanted, exact, width = planning.ranges(plan, schema, values)
        if width == len(plan.path.columns) and index is None:
            leaves = _look_up(base, wanted, plan.reverse)
        else:
            tree = base if index is None else self._table.session.storage(self._work, index.storage)
            leaves = _scan(tree, wanted, plan.reverse, self._work.write)
        if plan.ordered and not exact:
            leaves = _by_rest(leaves, len(plan.equal), plan.reverse)
        if index is not None:
            leaves = _by_index(leaves, base, schema)
        return chain.from_iterable(zip(keys, map(unpack, records), strict=True) for keys, records in leaves)

    def Next(self) -> None:
        self._key, self._row = next(self._rows, _END)

    def Eof(self) -> bool:
        return self._key is None

    def Column(self, number: int) -> Value:
        try:
            value = self._row[number]
        except IndexError:  # the hidden column of the key; or there is no row
            return self._key
        return self.Rowid() if value is None and number == self._alias else value

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
    row = unpack(record)
    if schema.alias is not None:
        row[schema.alias] = decode_integer(key)
    return row


def _scan(tree: Table, wanted: list[planning.Range], reverse: bool, changing: bool) -> Iterator[Part]:
    """The entries of these ranges. ``changing``: the statement may change the table meanwhile."""
    for lo, hi in reversed(wanted) if reverse else wanted:
        if changing:
            yield from _one_by_one(tree.scan(lo, hi, hi_open=True, reverse=reverse))
        else:
            yield from tree.scan_leaves(lo, hi, hi_open=True, reverse=reverse)


def _one_by_one(entries: Iterable[tuple[bytes, bytes]]) -> Iterator[Part]:
    return (((key,), (value,)) for key, value in entries)


def _by_index(parts: Iterator[Part], base: Table, schema: Schema) -> Iterator[Part]:
    """The rows to which the entries of an index lead."""
    for entries, sizes in parts:
        for entry, size in zip(entries, sizes, strict=True):
            key = entry[int.from_bytes(size, "big") :]
            record = base.get(key)
            if record is None:
                raise apsw.CorruptError(f"{schema.name}: an index has an entry for a missing row; run .check")
            yield (key,), (record,)


def _look_up(tree: Table, wanted: list[planning.Range], reverse: bool) -> Iterator[Part]:
    """As _scan, for ranges that are one whole key each: looks the keys up."""
    for lo, hi in reversed(wanted) if reverse else wanted:
        if hi[:-1] == lo:
            value = tree.get(lo)
            if value is not None:
                yield (lo,), (value,)
        else:
            yield from _one_by_one(tree.scan(lo, hi, hi_open=True, reverse=reverse))


def _by_rest(parts: Iterator[Part], columns: int, reverse: bool) -> Iterator[Part]:
    """Sorts rows by the key's columns after the first ``columns``, for ranges with several values of the first ones."""

    def rest(row: tuple[bytes, bytes]) -> bytes:
        cuts = prefixes(row[0])
        return row[0][len(cuts[columns - 1]) :]

    rows = chain.from_iterable(zip(keys, values, strict=True) for keys, values in parts)
    return _one_by_one(sorted(rows, key=rest, reverse=reverse))
