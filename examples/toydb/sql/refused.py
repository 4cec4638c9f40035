"""Statements that are not supported, and what to use instead.

SQLite would execute some statements on its own empty database in memory, where they have no lasting
effect. Others it refuses for any virtual table, without naming an alternative.
"""

from typing import Any

import apsw

from toydb.sql.parsing import OURS, Statement, fold

HARMLESS = ("SELECT", "INSERT", "REPLACE", "UPDATE", "DELETE", "BEGIN", "COMMIT")  # those of each moment
LOST = ("USER_VERSION", "APPLICATION_ID")
OF_SQLITE = "this pragma would tell of SQLite's own empty database: Connection.database and its pool have the figures of toydb's"
OWN = ("PAGE_COUNT", "FREELIST_COUNT", "DATA_VERSION", "SCHEMA_VERSION", "MAX_PAGE_COUNT")
SWITCHES = {
    "FOREIGN_KEYS": "toydb does not enforce foreign keys: check them in the transaction, by a SELECT",
    "DEFER_FOREIGN_KEYS": "toydb does not enforce foreign keys: check them in the transaction, by a SELECT",
    "IGNORE_CHECK_CONSTRAINTS": "toydb always checks: leave the CHECK out of the table",
    "WRITABLE_SCHEMA": "this schema is made from the stored one: use ALTER TABLE",
    "COUNT_CHANGES": "a statement that changes rows has no rows of its own: use Connection.changes()",
}
OFF = ("OFF", "FALSE", "NO", "0")
ACTIONS = ("ROLLBACK", "FAIL", "IGNORE", "REPLACE")
ADVICE = {
    "no such table: sqlite_sequence": "toydb keeps the largest row id of an AUTOINCREMENT table by itself; SELECT max(rowid) "
    "FROM the table shows the largest one in use",
    "UPSERT not implemented": "INSERT OR IGNORE does nothing instead, INSERT OR REPLACE replaces the row; "
    "or UPDATE first, and INSERT if changes() is 0",
    "RETURNING is not available": "SELECT the rows before, in the same transaction",
    "cannot create triggers on virtual tables": "toydb has triggers on views only (INSTEAD OF)",
    "no such index": "INDEXED BY knows no index of a virtual table; the planner finds it by itself",
}


def refuse(statement: Statement) -> None:
    """Raises apsw.SQLError for a statement that would have no lasting effect."""
    if statement.kind in HARMLESS:
        return
    defines = statement.kind in ("CREATE TABLE", "CREATE VIRTUAL", "ALTER TABLE") and not statement.elsewhere
    if defines and (action := _conflict_clause(statement)):
        raise apsw.SQLError(
            f"ON CONFLICT {action} in a constraint is not supported: leave it out, and write INSERT OR {action} or "
            f"UPDATE OR {action}"
        )
    if statement.kind == "PRAGMA":
        _refuse_pragma(statement)
    if statement.kind == "DROP TABLE" and statement.names and fold(statement.name) == "toydb_transaction":
        raise apsw.SQLError("table toydb_transaction may not be dropped: this connection needs it for its transactions")
    if statement.kind == "REINDEX":
        raise apsw.SQLError("toydb does not rebuild indexes in place: DROP INDEX, and CREATE INDEX")
    if statement.kind == "VACUUM" and any(token.word == "INTO" for token in statement.tokens):
        raise apsw.SQLError(
            "VACUUM INTO would copy nothing of toydb: close the database everywhere, and copy its files"
        )


def _refuse_pragma(statement: Statement) -> None:
    _, name, value = statement.pragma
    if name in SWITCHES and value is not None and value.upper() not in OFF:
        raise apsw.SQLError(SWITCHES[name])
    if name in LOST and value is not None:
        raise apsw.SQLError("this pragma would be lost with the connection: keep the number in a table")
    if name == "JOURNAL_MODE" and value is not None and value.upper() == "OFF":
        raise apsw.SQLError("this schema could not be rolled back; toydb has a log of its own, which is always on")
    if name in OWN:
        raise apsw.SQLError(OF_SQLITE)


def _conflict_clause(statement: Statement) -> str:
    """The action of the first ON CONFLICT that is not ABORT, which is what every constraint does; or nothing."""
    for at in range(statement.at, len(statement.tokens) - 2):
        if statement.word(at) == "ON" and statement.word(at + 1) == "CONFLICT" and statement.word(at + 2) in ACTIONS:
            return statement.word(at + 2)
    return ""


def advise(statement: Statement, error: apsw.SQLError) -> None:
    """Adds the alternative to SQLite's error message."""
    if statement.kind.startswith("DROP"):
        return
    text = str(error)
    for refused, instead in ADVICE.items():
        if refused in text and instead not in text:
            error.args = (f"{text}: {instead}",)


class Calls(apsw.Connection):
    """Refuses methods that would ask or change SQLite's own empty database, or take a function that SQLite does not call as it should."""

    def serialize(self, name: str) -> bytes:
        _not_ours(name, "this would copy nothing of toydb: close the database everywhere, and copy its files")
        return super().serialize(name)

    def deserialize(self, name: str, contents: Any) -> None:
        _not_ours(name, "toydb has its tables in its own files: INSERT the rows")
        super().deserialize(name, contents)

    def backup(self, databasename: str, sourceconnection: Any, sourcedatabasename: str) -> Any:
        _not_ours(databasename, "toydb has its tables in its own files: INSERT the rows")
        return super().backup(databasename, sourceconnection, sourcedatabasename)

    def data_version(self, schema: str | None = None) -> int:
        _not_ours(schema or "main", OF_SQLITE)
        return super().data_version(schema)

    def set_busy_handler(self, callable: Any) -> None:
        _no_function(callable, "toydb has locks of its own: use set_busy_timeout()")

    def set_update_hook(self, callable: Any, **options: Any) -> None:
        _no_function(callable, "it would see no row that changes in toydb")

    set_preupdate_hook = set_update_hook

    def set_commit_hook(self, callable: Any, **options: Any) -> None:
        _no_function(callable, "SQLite would call it after toydb's commit, when it can refuse nothing any more")


def _not_ours(name: str, why: str) -> None:
    if fold(name) in OURS:
        raise apsw.SQLError(why)


def _no_function(function: object, why: str) -> None:
    if function is not None:
        raise apsw.SQLError(why)
