"""Plans: by which key, in which ranges and in which order a statement reads a table.

SQLite's planner asks each table, through xBestIndex, what a set of constraints would
cost; it passes the chosen answer to the table's cursor, with the values. Here an answer
is a :class:`Plan`: a *path* (the primary key or an index), the values that its
first columns equal, bounds on the column after them, and a direction. Its text is what
EXPLAIN QUERY PLAN shows.

A comparison converts its operands by the affinities of both sides, but a table gets only the
value, not the affinity of the other side. So where it matters, the ranges here are wider
than the constraint, never narrower, and SQLite tests every row again. It does not where the
ranges are sure to be those of the constraint (:data:`SURE`): a call less for each row.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import apsw

from toydb.sql.keys import AFTER_NULL, END, NUMBERS, TEXTS, Value, encode
from toydb.sql.schemas import Index, Schema

EQ, GT, LE, LT, GE = (
    apsw.SQLITE_INDEX_CONSTRAINT_EQ,
    apsw.SQLITE_INDEX_CONSTRAINT_GT,
    apsw.SQLITE_INDEX_CONSTRAINT_LE,
    apsw.SQLITE_INDEX_CONSTRAINT_LT,
    apsw.SQLITE_INDEX_CONSTRAINT_GE,
)
IS, IS_NULL, NOT_NULL = (
    apsw.SQLITE_INDEX_CONSTRAINT_IS,
    apsw.SQLITE_INDEX_CONSTRAINT_ISNULL,
    apsw.SQLITE_INDEX_CONSTRAINT_ISNOTNULL,
)
_SIGN = {EQ: "=", IS: " IS ", GT: ">", GE: ">=", LT: "<", LE: "<=", IS_NULL: " IS NULL", NOT_NULL: " IS NOT NULL"}
_NUMBER = re.compile(r"[ \t\n\v\f\r]*([+-]?\d+|[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)[ \t\n\v\f\r]*", re.ASCII)

UNCONVERTED = ""  # no affinity on either side: values are compared as they are
SURE = (
    "INTEGER",
    "REAL",
    "NUMERIC",
    UNCONVERTED,
)  # the rows that meet a comparison have one range, whatever its value is
Range = tuple[bytes, bytes]  # [from, to)
_NUMBERS = frozenset((int, float, bytes))
_OWN = {  # values that equal only themselves, as a column of an affinity stores them
    "INTEGER": _NUMBERS,
    "REAL": _NUMBERS,
    "NUMERIC": _NUMBERS,
    "TEXT": frozenset((str, bytes)),
    "BLOB": frozenset((bytes,)),
}

ROWS_PER_PAGE = 40.0
PAGE_COST, ROW_COST = 4.0, 1.0


@dataclass(frozen=True)
class Path:
    """An order in which rows are stored: the table itself (``index`` is None) or an index."""

    label: str
    columns: tuple[int, ...]
    collations: tuple[str, ...]
    unique: int  # the number of first columns that determine the row; 0: none do
    index: Index | None
    whole: bool = True  # all columns together determine the row, also where some are NULL

    def storage(self, schema: Schema) -> str:
        return schema.storage if self.index is None else self.index.storage


@dataclass(frozen=True)
class Term:
    """One constraint that a plan uses. ``argument``: the index of its value, or None if it has none."""

    column: int
    operator: int
    argument: int | None
    literal: bool = True  # the value is a constant, and the other side of the comparison has no affinity


@dataclass(frozen=True)
class Plan:
    path: Path
    equal: tuple[Term, ...]
    bounds: tuple[Term, ...]
    reverse: bool
    ordered: bool  # SQLite relies on the order of the columns after the equal ones
    values: bool = False  # the other side of each comparison has no affinity

    @property
    def number(self) -> int:
        """What distinguishes plans of the same text."""
        return self.ordered + 2 * self.values + sum(4 << i for i, term in enumerate(self.bounds) if not term.literal)

    def text(self, schema: Schema) -> str:
        parts = []
        for term in (*self.equal, *self.bounds):
            name = "rowid" if term.column < 0 else schema.columns[term.column].name
            if term.operator in (IS_NULL, NOT_NULL):
                parts.append(name + _SIGN[term.operator])
            else:
                parts.append(name + _SIGN[term.operator] + "?")
        conditions = f" ({' AND '.join(parts)})" if parts else ""
        return self.path.label + conditions + (" DESC" if self.reverse else "")


def paths(schema: Schema) -> list[Path]:
    """All paths of a table; the table itself comes first."""
    if schema.rowid:
        key: tuple[int, ...] = (-1,) if schema.alias is None else (schema.alias,)
        key_collations: tuple[str, ...] = ("BINARY",)
        label = "ROWID" if schema.alias is None else "PRIMARY KEY"
    else:
        key, key_collations, label = schema.primary_key, schema.key_collations, "PRIMARY KEY"
    found = [Path(label, key, key_collations, len(key), None)]
    for index in schema.indexes:
        columns, collations = index.columns + key, index.collations + key_collations
        width = next((i for i, column in enumerate(columns) if column in columns[:i]), len(columns))
        columns, collations = columns[:width], collations[:width]  # (the path ends before a column that it has already)
        compared = set(zip(columns, collations, strict=True))
        whole = all(
            (column, collation) in compared or (column, "BINARY") in compared
            for column, collation in zip(key, key_collations, strict=True)
        )
        unique = len(index.columns) if index.unique else width if whole else 0
        found.append(Path(f"INDEX {index.name}", columns, collations, unique, index, whole))
    return found


# -- values to ranges ----------------------------------------------------------------


class Ranges(NamedTuple):
    """The key ranges that hold every row a plan can give, ascending and disjoint.

    ``exact``: each of the plan's equal columns has one value in them. If not, the
    columns after those are not in order.
    ``width``: how many of the equal columns the ranges say anything about.
    """

    parts: list[Range]
    exact: bool
    width: int


def only_key(plan: Plan, schema: Schema, values: Sequence[object]) -> bytes | None:
    """The one key that a plan can give, if every column of its path equals a value of the column's own kind."""
    if len(plan.equal) < len(plan.path.columns):
        return None
    key = b""
    for term, collation in zip(plan.equal, plan.path.collations, strict=True):
        value = None if term.argument is None else values[term.argument]
        if type(value) not in _OWN[_affinity(schema, term.column)]:
            return None
        key += encode(value, collation)  # type: ignore[arg-type]
    return key


def ranges(plan: Plan, schema: Schema, values: Sequence[object]) -> Ranges:
    """The ranges of a plan for given values of its constraints."""
    found: list[Range] = [(b"", END)]
    for width, (term, collation) in enumerate(zip(plan.equal, plan.path.collations, strict=False), 1):
        kind = _kind(plan, schema, term)
        if term.operator == IS_NULL:
            wanted: list[Range] = [(b"\x05", b"\x05" + END)]
        else:
            wanted = _equal(kind, collation, values[term.argument or 0], term.operator == IS)
        found = [(prefix + lo, prefix + hi) for prefix, _ in found for lo, hi in wanted]
        if len(found) > 1 or any(lo != hi[:-1] for lo, hi in found):
            return Ranges(found, exact=False, width=width)
    if plan.bounds:
        lo, hi = _bounded(plan, schema, values)
        found = [(prefix + lo, prefix + hi) for prefix, _ in found if lo < hi]
    return Ranges(found, exact=True, width=len(plan.equal))


def _bounded(plan: Plan, schema: Schema, values: Sequence[object]) -> Range:
    lo, hi = AFTER_NULL, END
    collation = plan.path.collations[len(plan.equal)]
    for term in plan.bounds:
        if term.operator == NOT_NULL:
            continue
        value = values[term.argument or 0]
        if value is None:
            return (END, b"")  # a comparison with NULL is never true
        below, above = _limits(_kind(plan, schema, term), collation, value, term)
        lo, hi = max(lo, below), min(hi, above)
    return lo, hi


def _affinity(schema: Schema, column: int) -> str:
    return "INTEGER" if column < 0 else schema.columns[column].affinity


def _kind(plan: Plan, schema: Schema, term: Term) -> str:
    """The affinity of a term's column; or UNCONVERTED."""
    affinity = _affinity(schema, term.column)
    return UNCONVERTED if affinity == "BLOB" and plan.values else affinity


def _exact(value: Value, collation: str) -> Range:
    key = encode(value, collation)
    return key, key + END


def _equal(kind: str, collation: str, value: object, null_too: bool) -> list[Range]:
    """The ranges of rows whose column equals ``value`` under any affinity of the other side; ascending."""
    if value is None:
        return [_exact(None, collation)] if null_too else []
    value = _compared(kind, value)
    if isinstance(value, bytes) or kind in SURE:
        return [_exact(value, collation)]
    if isinstance(value, str):
        return [_exact(value, collation)] if kind == "TEXT" else [NUMBERS, _exact(value, collation)]
    return [TEXTS] if kind == "TEXT" else [_exact(value, collation), TEXTS]


def _limits(kind: str, collation: str, value: object, term: Term) -> Range:
    """Bounds for ``column operator value`` under any affinity of the other side."""
    value = _compared(kind, value)
    key = encode(value, collation)
    operator = term.operator
    lower = operator in (GT, GE)
    if not isinstance(value, bytes) and kind not in SURE:
        number = not isinstance(value, str)
        if kind == "TEXT" and number:  # the value may be compared as text: any text may match
            return (TEXTS[0], END) if lower else (AFTER_NULL, TEXTS[1])
        if kind == "BLOB" and number and not lower:  # text may be compared as a number
            return AFTER_NULL, TEXTS[1]
        if not (number or lower or term.literal):  # text may be compared as a number, which is below all texts
            return AFTER_NULL, TEXTS[1]
        if kind == "BLOB" and not number and lower:  # numbers may be compared as text
            return NUMBERS[0], END
    if lower:
        return (key if operator == GE else key + END), END
    return AFTER_NULL, (key if operator == LT else key + END)


def _compared(kind: str, value: object) -> Value:
    """Converts the value as a comparison with a column of this affinity does."""
    if not isinstance(value, (int, float, str, bytes)):
        raise TypeError(f"no SQL value: {type(value).__name__}")
    if isinstance(value, str) and kind in ("INTEGER", "REAL", "NUMERIC"):
        match = _NUMBER.fullmatch(value)
        if match:
            try:
                number = int(match.group(1))
            except ValueError:
                return float(match.group(1))
            return number if -(1 << 63) <= number < 1 << 63 else float(number)
    return value
