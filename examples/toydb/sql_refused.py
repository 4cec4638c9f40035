"""Statements that are not supported, and what to use instead.

SQLite would execute some statements on its own empty database in memory, where they have no lasting
effect. Others it refuses for any virtual table, without naming an alternative.
"""

import apsw

from toydb.sql_text import Statement

LOST = ("USER_VERSION", "APPLICATION_ID")
ADVICE = {
    "UPSERT not implemented": "INSERT OR IGNORE does nothing instead, INSERT OR REPLACE replaces the row; "
    "or UPDATE first, and INSERT if changes() is 0",
    "RETURNING is not available": "SELECT the rows before, in the same transaction",
    "cannot create triggers on virtual tables": "toydb has triggers on views only (INSTEAD OF)",
    "no such index": "INDEXED BY knows no index of a virtual table; the planner finds it by itself",
}


def refuse(statement: Statement) -> None:
    """Raises apsw.SQLError for a statement that would have no lasting effect."""
    words = {token.word for token in statement.tokens[1:5]}
    if statement.kind == "DROP TABLE" and statement.names and statement.name.lower() == "toydb_transaction":
        raise apsw.SQLError("table toydb_transaction may not be dropped: this connection needs it for its transactions")
    if statement.kind == "REINDEX":
        raise apsw.SQLError("toydb does not rebuild indexes in place: DROP INDEX, and CREATE INDEX")
    if statement.kind == "VACUUM" and "INTO" in words:
        raise apsw.SQLError(
            "VACUUM INTO would copy nothing of toydb: close the database everywhere, and copy its files"
        )
    if statement.kind == "PRAGMA" and words.intersection(LOST) and words.intersection("=("):
        raise apsw.SQLError("this pragma would be lost with the connection: keep the number in a table")


def advise(statement: Statement, error: apsw.SQLError) -> None:
    """Adds the alternative to SQLite's error message."""
    if statement.kind.startswith("DROP"):
        return
    text = str(error)
    for refused, instead in ADVICE.items():
        if refused in text and instead not in text:
            error.args = (f"{text}: {instead}",)
