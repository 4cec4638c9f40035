"""PRAGMA table_info and its kin, for toydb's tables.

SQLite would answer from its own schema, in which each table is a virtual table without keys and indexes, so that tools that
read a schema (SQLAlchemy, for one) would find none. Each of these pragmas is also a table-valued function of SQLite. This module
replaces the functions, and a PRAGMA statement becomes a SELECT from its function.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, cast

import apsw

from toydb.sql.parsing import OURS, Statement, fold, quote
from toydb.sql.schemas import Schema

if TYPE_CHECKING:
    from toydb.sql.ddl import Catalog

COLUMNS = {
    "table_info": ("cid", "name", "type", "notnull", "dflt_value", "pk"),
    "table_xinfo": ("cid", "name", "type", "notnull", "dflt_value", "pk", "hidden"),
    "index_list": ("seq", "name", "unique", "origin", "partial"),
    "index_info": ("seqno", "cid", "name"),
    "index_xinfo": ("seqno", "cid", "name", "desc", "coll", "key"),
    "foreign_key_list": ("id", "seq", "table", "from", "to", "on_update", "on_delete", "match"),
    "table_list": ("schema", "name", "type", "ncol", "wr", "strict"),
    "integrity_check": ("integrity_check",),
    "quick_check": ("quick_check",),
    "foreign_key_check": ("table", "rowid", "parent", "fkid"),
}
OF_ALL = ("table_list", "integrity_check", "quick_check", "foreign_key_check")  # those that need no name


EQUAL = apsw.SQLITE_INDEX_CONSTRAINT_EQ
NEVER = 2_147_483_647  # the cost and the rows of a plan that is only taken if there is no other


class Answer:
    """The table-valued function of one pragma: the module of a table that is there without being made.

    Its arguments are hidden columns, ``arg`` and ``place``. (SQLite's pragmas call the second one ``schema``, which is a column of table_list.)
    """

    def __init__(self, catalog: "Catalog", pragma: str) -> None:
        self._catalog = catalog
        self._pragma = pragma
        self.columns = COLUMNS[pragma]

    def Connect(self, *_: Any) -> tuple[str, "Answer"]:
        hidden = f"arg HIDDEN, {'place' if 'schema' in self.columns else 'schema'} HIDDEN"
        return f"CREATE TABLE x({', '.join(map(quote, self.columns))}, {hidden})", self

    def BestIndexObject(self, info: apsw.IndexInfo) -> bool:
        """Takes the arguments; refuses a plan in which the table that gives an argument comes later (as SQLite's pragmas do)."""
        given: dict[int, int] = {}
        for at in range(info.nConstraint):
            number = info.get_aConstraint_iColumn(at) - len(self.columns)
            if number < 0 or info.get_aConstraint_op(at) != EQUAL:
                continue
            if not info.get_aConstraint_usable(at):
                return False
            given[number] = at
        for place, number in enumerate(sorted(given), 1):
            info.set_aConstraintUsage_argvIndex(given[number], place)
            info.set_aConstraintUsage_omit(given[number], True)
        info.idxNum = sum(1 << number for number in given)
        if 0 in given or self._pragma in OF_ALL:
            info.estimatedCost, info.estimatedRows = 1.0, 20
        else:
            info.estimatedCost, info.estimatedRows = float(NEVER), NEVER
        return True

    def Open(self) -> "Cursor":
        return Cursor(self)

    def Disconnect(self) -> None:
        """Does nothing: the table has no state."""

    Destroy = Disconnect

    def rows(self, arg: Any, place: Any) -> Iterable[tuple[Any, ...]]:
        """The answer about a table or an index, in one database or in any."""
        if self._pragma == "foreign_key_check":
            raise apsw.SQLError("toydb does not check foreign keys: SELECT the rows whose parent is missing")
        if self._pragma in ("integrity_check", "quick_check"):
            return [(fault,) for fault in self._catalog.check()] or [("ok",)]
        if self._pragma == "table_list":
            return self._catalog.table_list(arg, place)
        if arg is None:
            return []
        of = self._table(str(arg), None if place is None else fold(str(place)))
        if of is not None:
            return of.pragma(self._pragma, str(arg))
        where = "" if place is None else f"{quote(str(place))}."
        return self._catalog.sqlite(f"PRAGMA {where}{self._pragma}({quote(str(arg))})").fetchall()

    def _table(self, name: str, place: str | None) -> Schema | None:
        """The table of this name, or of the index of this name; None if SQLite stores it itself, or a temporary one hides it."""
        of_index = self._pragma in ("index_info", "index_xinfo")
        kinds = ("'index'",) if of_index else ()
        if (place or "main") not in OURS or (place is None and self._catalog.is_temporary(name, *kinds)):
            return None
        if not of_index:
            return self._catalog.find(name)
        return next((table for table in self._catalog.tables() if table.has_index(name)), None)


class Cursor:
    """Reads an answer."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._rows: list[tuple[Any, ...]] = []
        self._arguments: list[Any] = []
        self._at = 0

    def Filter(self, given: int, _plan: str | None, values: tuple[Any, ...]) -> None:
        left = list(values)
        self._arguments = [left.pop(0) if given >> number & 1 else None for number in range(2)]
        self._rows, self._at = list(self._answer.rows(*self._arguments)), 0

    def Eof(self) -> bool:
        return self._at >= len(self._rows)

    def Column(self, number: int) -> Any:
        if number < 0:
            return self._at + 1
        columns = len(self._answer.columns)
        return self._rows[self._at][number] if number < columns else self._arguments[number - columns]

    def Rowid(self) -> int:
        return self._at + 1

    def Next(self) -> None:
        self._at += 1

    def Close(self) -> None:
        """Does nothing: the rows are in memory."""


def register(connection: apsw.Connection, catalog: "Catalog") -> None:
    """Replaces SQLite's functions by those that know toydb's tables."""
    for pragma in COLUMNS:
        answer = cast(Any, Answer(catalog, pragma))
        connection.create_module(
            f"pragma_{pragma}", answer, use_bestindex_object=True, eponymous=True, eponymous_only=True, read_only=True
        )


def as_select(statement: Statement) -> str:
    """A PRAGMA of these as a SELECT from its function; any other statement as it is."""
    place, name, value = statement.pragma
    pragma = name.lower()
    if pragma not in COLUMNS or (value is None and pragma not in OF_ALL):
        return statement.sql
    names = ", ".join(quote(column) for column in COLUMNS[pragma])
    arguments = ", ".join("NULL" if text is None else "'" + text.replace("'", "''") + "'" for text in (value, place))
    return f"SELECT {names} FROM pragma_{pragma}({arguments})"
