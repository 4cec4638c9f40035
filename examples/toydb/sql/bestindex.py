"""The answer to xBestIndex: the cheapest plan for a set of constraints.

Costs count pages and rows: a page costs as much as ``PAGE_COST`` rows. How many rows share the
first columns of a key is estimated from the tree: for its first and its last entry, from the
fan-out of its pages, without counting. A bound is assumed to leave one row in four.
"""

import math
from dataclasses import dataclass

import apsw

from toydb.sql.keys import END, prefixes
from toydb.sql.parsing import Operands
from toydb.sql.planning import (
    EQ,
    GE,
    GT,
    IS,
    IS_NULL,
    LE,
    LT,
    NOT_NULL,
    PAGE_COST,
    ROW_COST,
    ROWS_PER_PAGE,
    Path,
    Plan,
    Term,
)
from toydb.sql.schemas import Schema
from toydb.table import Table

_EQUALITIES = (EQ, IS, IS_NULL)
_LOWER, _UPPER = (GT, GE), (LT, LE)


@dataclass(frozen=True)
class Figures:
    """The size of a table. ``sharing``: for each path, how many rows share its first 1, 2, … columns."""

    rows: float
    sharing: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Constraint:
    """One usable constraint as SQLite offers it."""

    number: int
    column: int  # -1: the row id of a table without INTEGER PRIMARY KEY
    operator: int
    collation: str
    known: object  # the value, where it is a constant


@dataclass(frozen=True)
class Wanted:
    """What a query asks of a table: the constraints, those of them that are IN lists, and ORDER BY as (column, descending)."""

    offered: list[Constraint]
    in_lists: set[int]
    order: list[tuple[int, bool]]
    values: bool  # whether the other side of each constraint is a value without an affinity


@dataclass(frozen=True)
class Candidate:
    plan: Plan
    used: tuple[int, ...]  # the constraints behind the plan's terms, in the order of their arguments
    sure: int  # the number of the first of them that every row of the ranges meets: SQLite need not test them again
    rows: float
    cost: float
    one_row: bool


def constraints(info: apsw.IndexInfo, schema: Schema, operands: Operands) -> list[Constraint]:
    """The usable constraints on columns that are part of a key.

    Not those of an IN with a subquery, unless the column is numeric: SQLite passes one value at a time, and then compares it without
    the affinity of the subquery's column, so that text that is equal as a number would be missing. Where the left side is a row value,
    nothing but the unknown value distinguishes them from other equalities.
    """
    found = []
    for number in range(info.nConstraint):
        if not info.get_aConstraint_usable(number):
            continue
        operator = info.get_aConstraint_op(number)
        known = info.get_aConstraint_rhs(number)
        if operator == EQ and not _is_numeric(schema, info.get_aConstraint_iColumn(number)):
            if operands.in_subquery and info.get_aConstraintUsage_in(number):
                continue
            if operands.in_row and known is None:
                continue
        if operator not in (*_EQUALITIES, *_LOWER, *_UPPER, NOT_NULL):
            continue
        column = info.get_aConstraint_iColumn(number)
        if column < 0 and schema.alias is not None:
            column = schema.alias
        collation = info.get_aConstraint_collation(number).upper()
        found.append(Constraint(number, column, operator, collation, known))
    return found


def sharing(tree: Table, columns: int) -> tuple[float, ...]:
    """How many entries share their first 1, 2, … ``columns`` columns: the geometric mean for the first and last entry."""
    ends = [next(tree.scan(reverse=reverse), None) for reverse in (False, True)]
    found = []
    for width in range(columns):
        counts = [float(max(1, tree.estimate(p[width], p[width] + END))) for p in (prefixes(e[0]) for e in ends if e)]
        found.append(math.prod(counts) ** (1 / len(counts)) if counts else 1.0)
    return tuple(found)


def wanted_order(info: apsw.IndexInfo, schema: Schema) -> list[tuple[int, bool]]:
    """ORDER BY as (column, descending)."""
    order = []
    for number in range(info.nOrderBy):
        column = info.get_aOrderBy_iColumn(number)
        if column < 0 and schema.alias is not None:
            column = schema.alias
        order.append((column, info.get_aOrderBy_desc(number)))
    return order


def choose(info: apsw.IndexInfo, schema: Schema, paths: list[Path], figures: Figures, operands: Operands) -> Candidate:
    """The cheapest candidate over all ``paths``."""
    offered = constraints(info, schema, operands)
    order = wanted_order(info, schema)
    in_lists = {c.number for c in offered if c.operator == EQ and info.get_aConstraintUsage_in(c.number)}
    wanted = Wanted(offered, in_lists, order, operands.values)
    candidates = [
        _candidate(schema, path, wanted, figures.rows, sharing)
        for path, sharing in zip(paths, figures.sharing, strict=True)
    ]
    return min(candidates, key=lambda c: c.cost + (0.0 if c.plan.ordered or not order else _sort_cost(c.rows)))


def answer(info: apsw.IndexInfo, schema: Schema, chosen: Candidate) -> None:
    """Writes the chosen plan into ``info``."""
    for argument, number in enumerate(chosen.used):
        info.set_aConstraintUsage_argvIndex(number, argument + 1)
        info.set_aConstraintUsage_omit(number, argument < chosen.sure)
    info.idxNum = chosen.plan.number
    info.idxStr = chosen.plan.text(schema)
    info.orderByConsumed = chosen.plan.ordered
    info.estimatedRows = max(1, round(chosen.rows))
    info.estimatedCost = chosen.cost
    if chosen.one_row:
        info.idxFlags = apsw.SQLITE_INDEX_SCAN_UNIQUE


def _candidate(schema: Schema, path: Path, wanted: Wanted, table_rows: float, sharing: tuple[float, ...]) -> Candidate:
    equal: list[Term] = []
    used: list[int] = []
    sure = 0
    fixed = 0  # the number of first columns with one value each: rows are ordered by the next column
    one_row = True
    looped = False  # an IN list: SQLite iterates over it, and passes one value at a time
    for column, collation in zip(path.columns, path.collations, strict=True):
        match = _first(wanted.offered, column, collation, _EQUALITIES)
        if match is None:
            break
        is_in = match.number in wanted.in_lists
        looped |= is_in
        equal.append(Term(column, match.operator, _argument(match, used)))
        sure += not is_in and sure == len(used) - 1 and _is_sure(schema, column, wanted.values)
        if fixed == len(equal) - 1 and not is_in:
            fixed += 1
            one_row &= match.operator == EQ and _is_exact(schema, match)
    bounds: list[Term] = []
    if len(equal) < len(path.columns):
        column, collation = path.columns[len(equal)], path.collations[len(equal)]
        for operators in (_LOWER, _UPPER, (NOT_NULL,)):
            match = _first(wanted.offered, column, collation, operators)
            if match is not None:
                literal = match.known is not None
                bounds.append(Term(column, match.operator, _argument(match, used), literal))
                sure += sure == len(used) - 1 and _is_sure(schema, column, wanted.values)
    ordered, reverse = _order(schema, path, fixed, wanted.order)
    ordered &= not looped
    rows = _rows(path, len(equal), bounds, table_rows, sharing)
    one_row &= fixed >= path.unique > 0
    plan = Plan(path, tuple(equal), tuple(bounds), reverse, ordered, wanted.values)
    cost = _cost(path, rows, table_rows)
    return Candidate(plan, tuple(used), sure, 1.0 if one_row else rows, cost, one_row)


def _first(offered: list[Constraint], column: int, collation: str, operators: tuple[int, ...]) -> Constraint | None:
    for constraint in offered:
        if constraint.column == column and constraint.operator in operators:
            if column >= 0 and constraint.operator not in (IS_NULL, NOT_NULL) and constraint.collation != collation:
                continue
            return constraint
    return None


def _argument(constraint: Constraint, used: list[int]) -> int | None:
    """Requests the constraint's value; returns its index among the values. IS NULL and NOT NULL have none."""
    if constraint.operator in (IS_NULL, NOT_NULL):
        return None
    used.append(constraint.number)
    return len(used) - 1


def _is_sure(schema: Schema, column: int, values: bool) -> bool:
    """Whether the ranges of a constraint on this column have the rows that meet it and no others, whatever its value is."""
    return _is_numeric(schema, column) or (values and schema.columns[column].affinity == "BLOB")  # planning.SURE


def _is_numeric(schema: Schema, column: int) -> bool:
    return column < 0 or schema.columns[column].affinity in ("INTEGER", "REAL", "NUMERIC")


def _is_exact(schema: Schema, constraint: Constraint) -> bool:
    """Whether the constraint leaves exactly one value of the column (see the docstring of planning)."""
    if constraint.column < 0 or constraint.operator == IS_NULL:
        return True
    if _is_numeric(schema, constraint.column):
        return True
    if schema.columns[constraint.column].affinity == "TEXT":
        return isinstance(constraint.known, (str, bytes))
    return isinstance(constraint.known, bytes)


def _order(schema: Schema, path: Path, fixed: int, order: list[tuple[int, bool]]) -> tuple[bool, bool]:
    """Whether the path gives the wanted order, and whether it does so backwards."""
    if not order:
        return False, False
    directions: set[bool] = set()
    place = fixed
    for column, descending in order:
        if column in path.columns[:fixed]:
            continue  # one value only
        if place >= len(path.columns) or path.columns[place] != column:
            return False, False
        if column >= 0 and path.collations[place] != schema.columns[column].collation:
            return False, False
        directions.add(descending)
        place += 1
        if len(directions) == 2:
            return False, False
        if place == len(path.columns) and path.whole:
            break  # the rows are unique by now: later terms of ORDER BY change nothing
    return True, directions == {True}


def _rows(path: Path, equal: int, bounds: list[Term], table_rows: float, sharing: tuple[float, ...]) -> float:
    table_rows = max(table_rows, 1.0)
    if equal >= path.unique > 0:
        return 1.0
    rows = min(table_rows, sharing[equal - 1]) if equal else table_rows
    for term in bounds:
        if term.operator != NOT_NULL:
            rows /= 4.0
    return max(1.0, rows)


def _cost(path: Path, rows: float, table_rows: float) -> float:
    height = 1.0 + math.log(max(table_rows, 2.0), 50.0)
    pages = height + rows / ROWS_PER_PAGE
    if path.index is not None:
        pages += rows * height  # each entry leads to a row of the table
    return pages * PAGE_COST + rows * ROW_COST


def _sort_cost(rows: float) -> float:
    return rows * math.log2(max(rows, 2.0))
