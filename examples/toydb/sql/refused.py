"""Statements that are not supported, and what to use instead.

SQLite would execute some statements on its own empty database in memory, where they have no lasting
effect. Others it refuses for any virtual table, without naming an alternative.
"""

import apsw

from toydb.sql.parsing import Statement

HARMLESS = ("SELECT", "INSERT", "REPLACE", "UPDATE", "DELETE", "BEGIN", "COMMIT")  # those of each moment
LOST = ("USER_VERSION", "APPLICATION_ID")
OWN = ("PAGE_COUNT", "FREELIST_COUNT", "DATA_VERSION", "SCHEMA_VERSION", "MAX_PAGE_COUNT")
SWITCHES = {
    "FOREIGN_KEYS": "toydb does not enforce foreign keys: check them in the transaction, by a SELECT",
    "DEFER_FOREIGN_KEYS": "toydb does not enforce foreign keys: check them in the transaction, by a SELECT",
    "IGNORE_CHECK_CONSTRAINTS": "toydb always checks: leave the CHECK out of the table",
    "WRITABLE_SCHEMA": "this schema is made from the stored one: use ALTER TABLE",
}
ON = ("ON", "TRUE", "YES")
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
    words = {token.word for token in statement.tokens[1:5]}
    defines = statement.kind in ("CREATE TABLE", "CREATE VIRTUAL", "ALTER TABLE") and not statement.elsewhere
    if defines and (action := _conflict_clause(statement)):
        raise apsw.SQLError(
            f"ON CONFLICT {action} in a constraint is not supported: leave it out, and write INSERT OR {action} or "
            f"UPDATE OR {action}"
        )
    if statement.kind == "PRAGMA":
        _refuse_pragma(statement, words)
    if statement.kind == "DROP TABLE" and statement.names and statement.name.lower() == "toydb_transaction":
        raise apsw.SQLError("table toydb_transaction may not be dropped: this connection needs it for its transactions")
    if statement.kind == "REINDEX":
        raise apsw.SQLError("toydb does not rebuild indexes in place: DROP INDEX, and CREATE INDEX")
    if statement.kind == "VACUUM" and "INTO" in words:
        raise apsw.SQLError(
            "VACUUM INTO would copy nothing of toydb: close the database everywhere, and copy its files"
        )


def _refuse_pragma(statement: Statement, words: set[str]) -> None:
    for switch, why in SWITCHES.items():
        if switch in words and _is_on(statement):
            raise apsw.SQLError(why)
    if words.intersection(LOST) and words.intersection("=("):
        raise apsw.SQLError("this pragma would be lost with the connection: keep the number in a table")
    if words.intersection(OWN):
        raise apsw.SQLError(
            "this pragma would tell of SQLite's own empty database: Connection.database and its pool have the figures of toydb's"
        )


def _conflict_clause(statement: Statement) -> str:
    """The action of the first ON CONFLICT that is not ABORT, which is what every constraint does; or nothing."""
    for at in range(statement.at, len(statement.tokens) - 2):
        if statement.word(at) == "ON" and statement.word(at + 1) == "CONFLICT" and statement.word(at + 2) in ACTIONS:
            return statement.word(at + 2)
    return ""


def _is_on(statement: Statement) -> bool:
    """Whether a PRAGMA sets a switch: on, yes, true, or a number other than 0."""
    at = next((at for at in range(len(statement.tokens)) if statement.word(at) in ("=", "(")), len(statement.tokens))
    if at + 1 >= len(statement.tokens):
        return False
    value = statement.tokens[at + 1].name.upper()
    return value in ON or (value.isdigit() and int(value) != 0)


def advise(statement: Statement, error: apsw.SQLError) -> None:
    """Adds the alternative to SQLite's error message."""
    if statement.kind.startswith("DROP"):
        return
    text = str(error)
    for refused, instead in ADVICE.items():
        if refused in text and instead not in text:
            error.args = (f"{text}: {instead}",)
