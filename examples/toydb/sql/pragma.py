"""PRAGMA table_info and its kin, for toydb's tables.

SQLite would answer from its own schema, in which each table is a virtual table without keys and indexes, so that tools that
read a schema (SQLAlchemy, for one) would find none. Each of these pragmas is also a table-valued function of SQLite. This module
replaces the functions, and a PRAGMA statement becomes a SELECT from its function.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import apsw
import apsw.ext

from toydb.sql.parsing import OURS, Statement, quote
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


class Answer:
    """The table-valued function of one pragma."""

    def __init__(self, catalog: "Catalog", pragma: str) -> None:
        self._catalog = catalog
        self._pragma = pragma
        self.columns = COLUMNS[pragma]
        self.column_access = apsw.ext.VTColumnAccess.By_Index

    def __call__(self, arg: Any = None, schema: Any = None) -> Iterable[tuple[Any, ...]]:
        if self._pragma == "foreign_key_check":
            raise apsw.SQLError("toydb does not check foreign keys: SELECT the rows whose parent is missing")
        if self._pragma in ("integrity_check", "quick_check"):
            return [(fault,) for fault in self._catalog.check()] or [("ok",)]
        if arg is None:
            return []
        of = None if schema is not None and str(schema).lower() not in OURS else self._table(str(arg))
        if of is not None:
            return of.pragma(self._pragma, str(arg))
        place = "" if schema is None else f"{quote(str(schema))}."
        return self._catalog.sqlite(f"PRAGMA {place}{self._pragma}({quote(str(arg))})").fetchall()

    def _table(self, name: str) -> Schema | None:
        """The table of this name, or of the index of this name; None if SQLite stores it itself."""
        if not self._pragma.startswith("index_") or self._pragma == "index_list":
            temporary = "SELECT 1 FROM sqlite_temp_schema WHERE lower(name) = lower(?)"
            return None if self._catalog.sqlite(temporary, (name,)).fetchone() else self._catalog.find(name)
        return next((table for table in self._catalog.tables() if table.has_index(name)), None)


class TableList(Answer):
    """The function of PRAGMA table_list, one of whose columns is called schema."""

    def __call__(self, arg: Any = None, place: Any = None) -> Iterable[tuple[Any, ...]]:
        return self._catalog.table_list(arg, place)


def register(connection: apsw.Connection, catalog: "Catalog") -> None:
    """Replaces SQLite's functions by those that know toydb's tables."""
    for pragma in COLUMNS:
        answer = (TableList if pragma == "table_list" else Answer)(catalog, pragma)
        apsw.ext.make_virtual_module(connection, f"pragma_{pragma}", answer)


def as_select(statement: Statement) -> str:
    """A PRAGMA of these as a SELECT from its function; any other statement as it is."""
    at, schema = 1, ""
    if statement.word(2) == "." and len(statement.tokens) > 3:
        schema, at = statement.tokens[1].name, 3
    pragma = statement.word(at).lower()
    given = statement.word(at + 1) in ("(", "=") and at + 2 < len(statement.tokens)
    if pragma not in COLUMNS or not (given or pragma in OF_ALL):
        return statement.sql
    names = ", ".join(quote(name) for name in COLUMNS[pragma])
    texts = (statement.tokens[at + 2].name if given else None, schema or None)
    arguments = ", ".join("NULL" if text is None else "'" + text.replace("'", "''") + "'" for text in texts)
    return f"SELECT {names} FROM pragma_{pragma}({arguments})"
