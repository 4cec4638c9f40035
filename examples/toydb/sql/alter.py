"""ALTER TABLE: SQLite alters the table's SQL text, and the rows are rewritten to match.

The table's own CREATE statements, and one of its rows, are put into an empty scratch
database, and the ALTER is executed there. The resulting statements are the new
schema; an ALTER that SQLite refuses is refused. If the number of columns changed, each row is checked
against the new schema and written anew.

Views and triggers that mention the table are not rewritten: a change of names is refused
while there are any.
"""

from typing import TYPE_CHECKING

import apsw

from toydb.sql import parsing
from toydb.sql.cursor import whole
from toydb.sql.parsing import Statement, fold, quote
from toydb.sql.schemas import Row, Schema, scratch
from toydb.sql.session import Work
from toydb.sql.virtual import SEQUENCE

if TYPE_CHECKING:
    from toydb.sql.ddl import Catalog


def alter(catalog: "Catalog", work: Work, statement: Statement) -> None:
    """ALTER TABLE, inside the definition's transaction. Raises apsw.SQLError, apsw.ConstraintError."""
    old = catalog.find(statement.name)
    if old is None:  # a temporary table
        catalog.sqlite(statement.sql)
        return
    if fold(old.name) == "toydb_schema":
        raise apsw.SQLError(f"table {old.name} may not be altered")
    rows = work.txn.table(old.storage)
    first = next((whole(old, key, record) for key, record in rows.scan()), None)
    new = _altered(old, statement.rest(statement.at), first)
    if statement.word(statement.at) != "ADD":
        _refuse_mentioned(catalog, old)
    if fold(new.name) != fold(old.name):
        if catalog.exists(new.name):
            raise apsw.SQLError(f"there is already another table or view with this name: {new.name}")
        _rename(work, old, new)
    elif len(new.columns) != len(old.columns):
        _rewrite(work, old, new)
    catalog.change(work, old, new)


def _altered(old: Schema, change: str, row: Row | None) -> Schema:
    """The schema after ``ALTER TABLE name change``, by SQLite, which looks at a row too."""
    made = scratch()
    for sql in (old.sql, *old.index_sqls):
        made.execute(sql)
    if row is not None:
        made.execute(f"INSERT INTO {quote(old.name)} VALUES({', '.join('?' * len(row))})", row)
    made.execute(f"ALTER TABLE {quote(old.name)} {change}")
    listed = "SELECT sql FROM sqlite_schema WHERE type = '{}' AND sql NOT NULL AND name NOT LIKE 'sqlite^_%' ESCAPE '^' ORDER BY rowid"
    table, indexes = (made.execute(listed.format(kind)).fetchall() for kind in ("table", "index"))
    return Schema(str(table[0][0]), [str(sql) for (sql,) in indexes])


def _refuse_mentioned(catalog: "Catalog", table: Schema) -> None:
    for kind, name, sql in catalog.definitions():
        if any(fold(token.name) == fold(table.name) for token in parsing.tokenize(sql)):
            raise apsw.SQLError(f"{kind} {name} uses {table.name}: drop it, alter the table, and create it again")


def _rename(work: Work, old: Schema, new: Schema) -> None:
    """Renames the trees, which are found by the names of the table and its indexes."""
    work.txn.rename_table(old.storage, new.storage)
    for was, now in zip(old.indexes, new.indexes, strict=True):
        if was.storage != now.storage:  # an index of a UNIQUE constraint is named after the table
            work.txn.rename_table(was.storage, now.storage)
    if old.autoincrement and SEQUENCE in work.txn.tables():
        last = work.txn.table(SEQUENCE).get(old.storage.encode())
        if last is not None:
            work.txn.table(SEQUENCE).delete(old.storage.encode())
            work.txn.table(SEQUENCE).put(new.storage.encode(), last)
    work.forget()


def _rewrite(work: Work, old: Schema, new: Schema) -> None:
    """Rewrites each row, with the added column or without the dropped one."""
    rows = work.txn.table(old.storage)
    added = len(new.columns) > len(old.columns)
    names = [column.name for column in new.columns]
    gone = next((n for n, column in enumerate(old.columns) if column.name not in names), None)
    value = new.default_value(len(old.columns)) if added and new.columns[-1].default is not None else None
    for key, record in rows.scan():
        row = whole(old, key, record)
        if gone is not None:
            del row[gone]
        else:
            row.append(value)
        rows.put(key, new.pack(new.admit(row)))
