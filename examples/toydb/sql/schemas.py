"""The schema of a table: its columns, key and indexes, and the check of rows before they are stored.

The schema that is stored (a table's ``meta``) is the user's own SQL text. To read it,
SQLite itself executes it in an empty scratch database in memory, and its pragmas return
the details; so there is no second parser that could understand a type or a key differently.

The scratch table has a second use. A value must be converted to its column's affinity and pass
NOT NULL and CHECK. For nearly all values this is obvious; a row with any other value is
inserted into the scratch table and read back, so that SQLite decides.

Meta, UTF-8 JSON::

    {"format": 1, "sql": "CREATE TABLE …", "indexes": ["CREATE INDEX …", …]}
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import apsw
import msgspec.msgpack

from toydb.sql import parsing
from toydb.sql.keys import COLLATIONS, Value, encode

Row = list[Value]

HIDDEN_KEY = "_toydb_key"
MOST_PLAIN_ROWS = 256
_pack = msgspec.msgpack.Encoder().encode
unpack: Callable[[bytes], Row] = msgspec.msgpack.Decoder(
    list
).decode  # of a record; an INTEGER PRIMARY KEY is None in it
_PLAIN: dict[str, frozenset[type]] = {  # value types that an affinity does not convert
    "INTEGER": frozenset((int, bytes, type(None))),
    "NUMERIC": frozenset((int, bytes, type(None))),
    "REAL": frozenset((float, bytes, type(None))),
    "TEXT": frozenset((str, bytes, type(None))),
    "BLOB": frozenset((int, float, str, bytes, type(None))),
}
_CONSTANTS = ("NULL", "TRUE", "FALSE", "CURRENT_TIME", "CURRENT_DATE", "CURRENT_TIMESTAMP")


def affinity(declared: str) -> str:
    """A column's affinity by its declared type (SQLite, "Datatypes", section 3.1)."""
    kind = parsing.fold(declared)
    if "int" in kind:
        return "INTEGER"
    if any(word in kind for word in ("char", "clob", "text")):
        return "TEXT"
    if not kind or "blob" in kind:
        return "BLOB"
    return "REAL" if any(word in kind for word in ("real", "floa", "doub")) else "NUMERIC"


@dataclass(frozen=True)
class Column:
    name: str
    declared: str
    affinity: str
    collation: str
    not_null: bool
    default: str | None


@dataclass(frozen=True)
class Index:
    """An index. Its entries are the columns, then the row's key. ``storage``: the name of its tree."""

    name: str
    columns: tuple[int, ...]
    collations: tuple[str, ...]
    unique: bool
    sql: str | None  # None for a UNIQUE constraint of the table

    @property
    def storage(self) -> str:
        return "index:" + parsing.fold(self.name)


def scratch() -> apsw.Connection:
    """An empty database of SQLite's own, which enforces no foreign keys, whatever apsw.connection_hooks ask for."""
    made = apsw.Connection(":memory:")
    made.config(apsw.SQLITE_DBCONFIG_ENABLE_FKEY, 0)
    return made


class Schema:
    """A table as its SQL text declares it.

    If ``rowid``, the key of a row is its 64-bit row id (``alias`` is then
    the INTEGER PRIMARY KEY column, if there is one); otherwise it is the PRIMARY KEY columns.
    """

    def __init__(self, sql: str, index_sqls: Sequence[str] = ()) -> None:
        self.sql = sql
        self.index_sqls = tuple(index_sqls)
        self._meta = json.dumps({"format": 1, "sql": self.sql, "indexes": self.index_sqls}).encode()
        self._scratch = scratch()
        for statement in (sql, *index_sqls):
            self._scratch.execute(statement)
        self.name = str(self._one("SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"))
        self.storage = "table:" + parsing.fold(self.name)
        self.strict = bool(self._one("SELECT strict FROM pragma_table_list WHERE name = ?", self.name))
        self.columns = self._read_columns()
        self.indexes: list[Index] = []
        self.primary_key: tuple[int, ...] = ()
        self.key_collations: tuple[str, ...] = ()
        self._read_indexes()
        self.rowid = not self.primary_key
        self.alias = self._read_alias() if self.rowid else None
        self.autoincrement = self.alias is not None and self._is_autoincrement()
        self._prepare_gate()

    def meta(self) -> bytes:
        """The schema as bytes for the table's meta."""
        return self._meta

    def with_index(self, index_sql: str) -> "Schema":
        return Schema(self.sql, (*self.index_sqls, index_sql))

    def without_index(self, name: str) -> "Schema":
        kept = [index.sql for index in self.indexes if index.sql and parsing.fold(index.name) != parsing.fold(name)]
        return Schema(self.sql, kept)

    def declaration(self) -> str:
        """The CREATE TABLE statement that declares the virtual table to SQLite."""
        parts = []
        for column in self.columns:
            collate = "" if column.collation == "BINARY" else f" COLLATE {column.collation}"
            kind = (
                "" if self.strict and column.affinity == "BLOB" else column.declared
            )  # ANY is a type of STRICT tables only
            parts.append(f"{parsing.quote(column.name)} {kind}{collate}")
        if self.rowid:
            return f"CREATE TABLE x({', '.join(parts)})"
        parts.append(f"{HIDDEN_KEY} BLOB HIDDEN NOT NULL PRIMARY KEY")
        return f"CREATE TABLE x({', '.join(parts)}) WITHOUT ROWID"

    def virtual(self) -> str:
        """The CREATE VIRTUAL TABLE statement for SQLite's schema."""
        statement = parsing.script(self.sql)[0]
        body = parsing.parenthesised(statement, statement.at)
        return f"CREATE VIRTUAL TABLE main.{parsing.quote(self.name)} USING toydb({body.inside if body else ''})"

    def defaults(self) -> dict[str, str]:
        """Default expressions by column name."""
        return {column.name: _expression(column.default) for column in self.columns if column.default is not None}

    def pragma(self, pragma: str, name: str) -> list[Any]:
        """What SQLite answers to a PRAGMA about the table or one of its indexes."""
        return self._rows(f"PRAGMA {pragma}({parsing.quote(name)})")

    def listed(self) -> tuple[Any, ...]:
        """Its row of PRAGMA table_list, without the first column."""
        query = "SELECT name, type, ncol, wr, strict FROM pragma_table_list WHERE name = ?"
        return tuple(self._rows(query, self.name)[0])

    def has_index(self, name: str) -> bool:
        """Whether the table has an index of this name, be it that of a constraint."""
        return bool(self._one("SELECT 1 FROM pragma_index_list(?) WHERE lower(name) = lower(?)", self.name, name))

    def column_metadata(self, column: str) -> tuple[str, str, bool, bool, bool]:
        """What SQLite's function of this name says of a column: its type, collation, and three flags."""
        return self._scratch.column_metadata("main", self.name, column)

    # -- reading the scratch database --------------------------------------------------

    def _one(self, sql: str, *values: Value) -> Any:
        row = self._scratch.execute(sql, values).fetchone()
        return None if row is None else row[0]

    def _rows(self, sql: str, *values: Value) -> list[Any]:
        return self._scratch.execute(sql, values).fetchall()

    def _read_columns(self) -> tuple[Column, ...]:
        columns = []
        for _, name, declared, not_null, default, _, hidden in self._rows(
            "SELECT * FROM pragma_table_xinfo(?)", self.name
        ):
            if hidden:
                raise apsw.SQLError(f"{self.name}.{name}: toydb does not store generated columns; use a view")
            if parsing.fold(name) == HIDDEN_KEY:
                raise apsw.SQLError(f"a column cannot be called {HIDDEN_KEY}")
            collation = str(self._scratch.column_metadata("main", self.name, name)[1]).upper()
            kind = "BLOB" if self.strict and declared.upper() == "ANY" else affinity(declared)
            columns.append(Column(name, declared, kind, collation, bool(not_null), default))
        return tuple(columns)

    def _read_indexes(self) -> None:
        listed = self._rows(
            'SELECT name, "unique", origin, partial FROM pragma_index_list(?) ORDER BY seq DESC', self.name
        )
        for name, unique, origin, partial in listed:
            parts = self._rows("SELECT cid, coll FROM pragma_index_xinfo(?) WHERE key", name)
            columns = tuple(cid for cid, _ in parts)
            collations = tuple(str(collation).upper() for _, collation in parts)
            if partial or min(columns) < 0:
                raise apsw.SQLError(
                    f"index {name}: toydb indexes plain columns, without WHERE and expressions: add a column for it"
                )
            unknown = set(collations) - set(COLLATIONS)
            if unknown:
                raise apsw.SQLError(f"index {name}: keys cannot be ordered by {', '.join(sorted(unknown))}")
            if origin == "pk":
                self.primary_key, self.key_collations = columns, collations
            else:
                sql = self._one("SELECT sql FROM sqlite_schema WHERE name = ?", name)
                self.indexes.append(Index(name, columns, collations, bool(unique), sql))

    def _read_alias(self) -> int | None:
        position: int | None = self._one("SELECT cid FROM pragma_table_xinfo(?) WHERE pk", self.name)
        return position

    def _is_autoincrement(self) -> bool:
        return any(
            self._scratch.column_metadata("main", self.name, column.name)[4]
            for position, column in enumerate(self.columns)
            if position == self.alias
        )

    # -- checking rows -----------------------------------------------------------------

    def _prepare_gate(self) -> None:
        checked = any(token.word == "CHECK" for token in parsing.tokenize(self.sql))
        self._always_scratch = checked or self.strict
        self._plain = [_PLAIN[column.affinity] for column in self.columns]
        self._reals = [i for i, column in enumerate(self.columns) if column.affinity == "REAL"]
        required = {i for i, column in enumerate(self.columns) if column.not_null} | set(self.primary_key)
        self._required = sorted(required - {self.alias})
        if self.alias is not None:
            self._plain[self.alias] = frozenset((int,))
        self._plain_rows: set[tuple[type, ...]] = set()  # the types of rows that need no check and no conversion
        names = ", ".join(parsing.quote(column.name) for column in self.columns)
        marks = ", ".join("?" * len(self.columns))
        quoted = parsing.quote(self.name)
        self._insert = f"INSERT INTO {quoted}({names}) VALUES({marks}) RETURNING {names}"
        self._clear = f"DELETE FROM {quoted}"

    def is_plain(self, row: Row) -> bool:
        """Whether a row with values of the same types was admitted as it was: then this one is, too."""
        return tuple(map(type, row)) in self._plain_rows and not (self._reals and 0.0 in row)

    def null_where_forbidden(self, row: Row) -> int | None:
        """The first column that is NULL and must not be."""
        for position in self._required:
            if row[position] is None:
                return position
        return None

    def admit_rowid(self, row: Row) -> None:
        """Makes an integer of the INTEGER PRIMARY KEY, before all constraints. Raises apsw.MismatchError if it is none."""
        if self.alias is None or type(row[self.alias]) is int:
            return
        if row[self.alias] is None:
            raise apsw.MismatchError("datatype mismatch")
        self._scratch.execute(f"CREATE TEMP TABLE IF NOT EXISTS {HIDDEN_KEY}(rowid INTEGER PRIMARY KEY)")
        try:
            row[self.alias] = self._one(f"INSERT INTO {HIDDEN_KEY} VALUES(?) RETURNING rowid", row[self.alias])
        finally:
            self._scratch.execute(f"DELETE FROM {HIDDEN_KEY}")

    def admit(self, row: Row) -> Row:
        """Checks a row, and returns it as its columns store it.

        Raises apsw.ConstraintError (NOT NULL, CHECK, types of a STRICT table).
        """
        for position in self._reals:
            value = row[position]
            if type(value) is int or value == 0.0:
                row[position] = float(value) + 0.0  # (-0.0 is stored as 0.0)
        if not self._always_scratch:
            for value, plain in zip(row, self._plain, strict=True):
                if type(value) not in plain:
                    break
            else:
                if len(self._plain_rows) < MOST_PLAIN_ROWS and self.null_where_forbidden(row) is None:
                    self._plain_rows.add(tuple(map(type, row)))
                return row
        return self._by_scratch(row)

    def _by_scratch(self, row: Row) -> Row:
        try:
            admitted = self._scratch.execute(self._insert, row).fetchone()
        finally:
            self._scratch.execute(self._clear)
        if admitted is None:
            raise apsw.ConstraintError(f"{self.name}: SQLite refused the row without saying why")
        return list(admitted)

    def default_value(self, column: int) -> Value:
        """The present value of a column's default expression; None if it has none."""
        default = self.columns[column].default
        value: Value = None if default is None else self._one(f"SELECT {_expression(default)}")
        return value

    # -- bytes -------------------------------------------------------------------------

    def key_of(self, row: Row) -> bytes:
        """The primary key of a row that is not stored by row id."""
        return b"".join(
            [
                encode(row[column], collation)
                for column, collation in zip(self.primary_key, self.key_collations, strict=True)
            ]
        )

    def pack(self, row: Row) -> bytes:
        """A row as a record: a MessagePack array; the INTEGER PRIMARY KEY is in the key alone."""
        if self.alias is not None:
            row = row.copy()
            row[self.alias] = None
        return _pack(row)


def index_prefix(index: Index, row: Row) -> bytes:
    """The columns of an index entry."""
    return b"".join(
        [encode(row[column], collation) for column, collation in zip(index.columns, index.collations, strict=True)]
    )


def _expression(default: str) -> str:
    """A default as an expression that is valid anywhere. (In a DEFAULT clause SQLite takes a bare or quoted name as text.)"""
    tokens = list(parsing.tokenize(default))
    if len(tokens) == 1 and (
        tokens[0].kind == "quoted" or (tokens[0].kind == "word" and tokens[0].word not in _CONSTANTS)
    ):
        return apsw.format_sql_value(tokens[0].name)
    return f"({default})"


def load(meta: bytes) -> Schema:
    """The schema that a table's meta describes."""
    stored = json.loads(meta)
    if stored.get("format") != 1:
        raise apsw.FormatError(f"this table was made by a newer toydb: schema format {stored.get('format')}")
    return Schema(stored["sql"], stored["indexes"])
