"""A toydb table as a virtual table of SQLite: reading, and changes.

The key of a row is its row id, if the table has an INTEGER PRIMARY KEY or no primary key;
otherwise it is the primary key. To SQLite, tables of the second kind are WITHOUT ROWID,
with a hidden column for the encoded key, by which SQLite identifies rows.
Each index is a tree of its own. Its keys are the indexed columns, then the row's key; its values
are the length of the first part.
"""

from collections.abc import Sequence
from typing import Any

import apsw

from toydb.errors import KeyExists
from toydb.sql import bestindex, planning
from toydb.sql.bestindex import Figures
from toydb.sql.cursor import Cursor, whole
from toydb.sql.keys import END, decode_integer, encode
from toydb.sql.planning import Plan
from toydb.sql.schemas import Index, Row, Schema, index_prefix
from toydb.sql.session import Session, Work
from toydb.table import Table

LARGEST_ROWID = (1 << 63) - 1
SEQUENCE = "toydb:sequence"  # the largest row id ever of AUTOINCREMENT tables
_REPLACE, _IGNORE, _FAIL = apsw.SQLITE_REPLACE, apsw.SQLITE_IGNORE, apsw.SQLITE_FAIL


class VirtualTable:
    """xBestIndex, xUpdate and the transaction's calls, for one table."""

    def __init__(self, connection: apsw.Connection, session: Session, schema: Schema) -> None:
        self.schema = schema
        self.session = session
        self._connection = connection
        self._plans: dict[tuple[int, str], Plan] = {}  # by what SQLite stores of a plan: its number and text
        self._paths = planning.paths(schema)
        self._figures: Figures | None = None

    # -- reading -------------------------------------------------------------------------

    def BestIndexObject(self, info: apsw.IndexInfo) -> bool:
        chosen = bestindex.choose(info, self.schema, self._paths, self._current_figures(), self.session.operands)
        bestindex.answer(info, self.schema, chosen)
        self._plans[chosen.plan.number, chosen.plan.text(self.schema)] = chosen.plan
        return True

    def Open(self) -> Cursor:
        return Cursor(self)

    def plan(self, number: int, text: str) -> Plan:
        return self._plans[number, text]

    def _current_figures(self) -> Figures:
        """The present :class:`Figures` of the table; estimated again as the table grows."""
        with self.session.reading() as work:
            rows = self.session.table(work, self.schema).estimate()
            known = self._figures
            if known is None or not 0.8 * known.rows <= rows <= 1.25 * known.rows:
                trees = [self.session.storage(work, path.storage(self.schema)) for path in self._paths]
                sharing = [
                    bestindex.sharing(tree, len(path.columns)) for tree, path in zip(trees, self._paths, strict=True)
                ]
                known = self._figures = Figures(float(rows), tuple(sharing))
        return known

    # -- the transaction -----------------------------------------------------------------

    def Begin(self) -> None:
        self.session.table(self.session.begin_write(), self.schema)

    def Sync(self) -> None:
        self.session.sync()

    def Commit(self) -> None:
        self.session.end()

    def Rollback(self) -> None:
        self.session.end()

    def Disconnect(self) -> None:
        """Does nothing; the module's subclass removes the table from its catalog."""

    def Destroy(self) -> None:
        """Drops the rows."""

    # -- changes -------------------------------------------------------------------------

    def UpdateInsertRow(self, rowid: int | None, fields: Sequence[Any]) -> int:
        number = self._insert_row(rowid, fields)
        self.session.given_rowid = None if rowid is None else number
        return number

    def _insert_row(self, rowid: int | None, fields: Sequence[Any]) -> int:
        """Inserts a row; returns its row id, or the last one if there is none."""
        schema, mode = self.schema, self._connection.vtab_on_conflict()
        work = self.session.begin_write()
        rows = self.session.table(work, schema)
        row: Row = list(fields[: len(schema.columns)])
        if schema.rowid:
            rowid = self._new_rowid(work, rows, rowid, row)
        key = self._admitted(rows, row, None, mode)
        if schema.rowid and schema.alias is None:
            key = encode(rowid) if key is not None else None
        inserted = key is not None and self._insert(work, rows, key, row, mode)
        if schema.autoincrement:  # a row that OR IGNORE skips takes its number, too
            self._note_rowid(work, row[schema.alias])  # type: ignore[index, arg-type]
            self._raise_sequence(work, row[schema.alias])  # type: ignore[index, arg-type]
        if not inserted or not schema.rowid:
            return self._connection.last_insert_rowid()
        number: int = rowid if schema.alias is None else row[schema.alias]  # type: ignore[assignment]
        self._note_rowid(work, number)
        return number

    def _insert(self, work: Work, rows: Table, key: bytes, row: Row, mode: int) -> bool:
        """Stores a new row, if the constraints allow it. Returns False if OR IGNORE skips it."""
        if mode == _REPLACE and not self.schema.indexes:
            rows.put(key, self.schema.pack(row))
        elif mode == _REPLACE or any(index.unique for index in self.schema.indexes):
            if not self._resolve_conflicts(work, rows, key, row, None, mode):
                return False
            rows.put(key, self.schema.pack(row))
        else:
            taken = False
            try:
                rows.insert(key, self.schema.pack(row))
            except KeyExists:
                taken = True  # (the error's traceback holds a page; it ends here)
            if taken:
                self._refuse(*self._key_in_use(), mode)
                return False
        for index in self.schema.indexes:
            prefix = index_prefix(index, row)
            self.session.storage(work, index.storage).put(prefix + key, len(prefix).to_bytes(2, "big"))
        return True

    def UpdateChangeRow(self, name: int | bytes, new_rowid: int | bytes, fields: Sequence[Any]) -> None:
        schema = self.schema
        work = self.session.begin_write()
        rows = self.session.table(work, schema)
        old_key = _key(name)
        record = rows.get(old_key)
        if record is None:
            return  # OR REPLACE of another row in this statement has removed it
        old = whole(schema, old_key, record)
        row: Row = [was if new is apsw.no_change else new for was, new in zip(old, fields, strict=False)]
        if schema.alias is not None and name != new_rowid:  # UPDATE t SET rowid = …
            row[schema.alias] = new_rowid
        mode = self._connection.vtab_on_conflict()
        key = self._admitted(rows, row, old_key, mode)
        if key is None:
            return
        if schema.rowid and schema.alias is None:
            key = _key(new_rowid)
        if not self._resolve_conflicts(work, rows, key, row, old_key, mode):
            return
        self._replace(work, rows, old_key, old, key, row)
        if schema.rowid:
            self._note_rowid(work, decode_integer(key))

    def UpdateDeleteRow(self, name: int | bytes) -> None:
        work = self.session.begin_write()
        rows = self.session.table(work, self.schema)
        key = _key(name)
        self._remove(work, rows, key, self._row(rows, key))
        work.last_rowid.pop(self.schema.storage, None)

    def add_index(self, work: Work, index: Index) -> None:
        """Fills a new index from the existing rows."""
        tree = work.txn.create_table(index.storage)
        rows = work.txn.table(self.schema.storage)
        for key, record in rows.scan():
            row = whole(self.schema, key, record)
            if index.unique and self._conflict(tree, index, row, None) is not None:
                self._refuse(self._columns_text(index.columns), apsw.SQLITE_CONSTRAINT_UNIQUE, apsw.SQLITE_ABORT)
            prefix = index_prefix(index, row)
            tree.put(prefix + key, len(prefix).to_bytes(2, "big"))

    def _row(self, rows: Table, key: bytes) -> Row:
        record = rows.get(key)
        if record is None:
            raise apsw.CorruptError(f"{self.schema.name}: an index has an entry for a missing row; run .check")
        return whole(self.schema, key, record)

    def _remove(self, work: Work, rows: Table, key: bytes, row: Row) -> None:
        rows.delete(key)
        for index in self.schema.indexes:
            self.session.storage(work, index.storage).delete(index_prefix(index, row) + key)

    def _replace(self, work: Work, rows: Table, old_key: bytes, old: Row, key: bytes, row: Row) -> None:
        if key != old_key:
            rows.delete(old_key)
        rows.put(key, self.schema.pack(row))
        for index in self.schema.indexes:
            before, prefix = index_prefix(index, old), index_prefix(index, row)
            if before != prefix or key != old_key:
                tree = self.session.storage(work, index.storage)
                tree.delete(before + old_key)
                tree.put(prefix + key, len(prefix).to_bytes(2, "big"))

    # -- row ids ---------------------------------------------------------------------------

    def _new_rowid(self, work: Work, rows: Table, rowid: int | None, row: Row) -> int | None:
        """The given row id, or the largest so far plus one. It is set in the row as well."""
        alias = self.schema.alias
        if alias is not None and rowid is not None:
            row[alias] = rowid
        if rowid is not None or (alias is not None and row[alias] is not None):
            return rowid
        last = work.last_rowid.get(self.schema.storage)
        if last is None:
            last = next((decode_integer(key) for key, _ in rows.scan(reverse=True)), 0)
            if self.schema.autoincrement:
                last = max(last, self._sequence(work))
            work.last_rowid[self.schema.storage] = last
        if last >= LARGEST_ROWID:
            raise apsw.FullError(f"{self.schema.name}: the largest row id is in use; give one explicitly")
        if alias is not None:
            row[alias] = last + 1
        return last + 1

    def _note_rowid(self, work: Work, number: int) -> None:
        """Updates the largest row id, if it is cached."""
        if number > work.last_rowid.get(self.schema.storage, number):
            work.last_rowid[self.schema.storage] = number

    def _sequence(self, work: Work) -> int:
        if SEQUENCE not in work.txn.tables():
            return 0
        last = work.txn.table(SEQUENCE).get(self.schema.storage.encode())
        return 0 if last is None else int.from_bytes(last, "big")

    def _raise_sequence(self, work: Work, number: int) -> None:
        if number > self._sequence(work):
            exists = SEQUENCE in work.txn.tables()
            tree = work.txn.table(SEQUENCE) if exists else work.txn.create_table(SEQUENCE)
            tree.put(self.schema.storage.encode(), number.to_bytes(8, "big"))

    # -- constraints -----------------------------------------------------------------------

    def _admitted(self, rows: Table, row: Row, old_key: bytes | None, mode: int) -> bytes | None:
        """Converts the row to what its columns store, in place; returns its key, or None if OR IGNORE skips it."""
        if not self.schema.is_plain(row) and not self._convert(rows, row, old_key, mode):
            return None
        if self.schema.alias is not None:
            return encode(row[self.schema.alias])
        return b"" if self.schema.rowid else self.schema.key_of(row)

    def _convert(self, rows: Table, row: Row, old_key: bytes | None, mode: int) -> bool:
        """Converts the row to what its columns store, in place; returns False if OR IGNORE skips it."""
        schema = self.schema
        schema.admit_rowid(row)
        missing = schema.null_where_forbidden(row)
        while mode == _REPLACE and missing is not None and (value := schema.default_value(missing)) is not None:
            row[missing] = value
            missing = schema.null_where_forbidden(row)
        if missing is not None:
            text = self._columns_text((missing,))
            self._refuse(text, apsw.SQLITE_CONSTRAINT_NOTNULL, mode, "NOT NULL constraint failed")
            return False
        try:
            row[:] = schema.admit(row)
        except apsw.ConstraintError as error:
            if getattr(error, "extendedresult", 0) == apsw.SQLITE_CONSTRAINT_DATATYPE:
                if mode in (apsw.SQLITE_ABORT, _REPLACE):
                    raise
                if schema.alias is not None:  # SQLite looks whether the row id is in use before it looks at the types
                    key = encode(row[schema.alias])
                    if key != old_key and rows.get(key) is not None:
                        self._refuse(*self._key_in_use(), mode)
                        return False
                raise apsw.MismatchError(str(error)) from error  # ABORT in all modes, which a ConstraintError is not
            if mode == _IGNORE:
                self.session.ignored += 1
                return False
            self.session.keep_after_error = mode == _FAIL
            raise
        return True

    def _resolve_conflicts(
        self, work: Work, rows: Table, key: bytes, row: Row, old_key: bytes | None, mode: int
    ) -> bool:
        """Enforces PRIMARY KEY and UNIQUE. Returns False if OR IGNORE skips the row.

        It checks all constraints before it changes anything; OR REPLACE then removes
        the conflicting rows.
        """
        in_the_way: list[bytes] = []
        if key != old_key and rows.get(key) is not None:
            if mode != _REPLACE:
                self._refuse(*self._key_in_use(), mode)
                return False
            in_the_way.append(key)
        for index in self.schema.indexes:
            if not index.unique:
                continue
            other = self._conflict(self.session.storage(work, index.storage), index, row, old_key)
            if other is None or other in in_the_way:
                continue
            if mode != _REPLACE:
                self._refuse(self._columns_text(index.columns), apsw.SQLITE_CONSTRAINT_UNIQUE, mode)
                return False
            in_the_way.append(other)
        for other in in_the_way:
            self._remove(work, rows, other, self._row(rows, other))
            work.last_rowid.pop(self.schema.storage, None)
        return True

    def _key_in_use(self) -> tuple[str, int]:
        schema = self.schema
        if schema.rowid and schema.alias is None:
            return f"{schema.name}.rowid", apsw.SQLITE_CONSTRAINT_ROWID
        columns = schema.primary_key if schema.alias is None else (schema.alias,)
        return self._columns_text(columns), apsw.SQLITE_CONSTRAINT_PRIMARYKEY

    def _conflict(self, tree: Table, index: Index, row: Row, old_key: bytes | None) -> bytes | None:
        """The key of another row with the same values in a unique index; NULLs are never equal."""
        if any(row[column] is None for column in index.columns):
            return None
        prefix = index_prefix(index, row)
        for entry, size in tree.scan(prefix, prefix + END):
            other = entry[int.from_bytes(size, "big") :]
            if other != old_key:
                return other
        return None

    def _columns_text(self, columns: Sequence[int]) -> str:
        return ", ".join(f"{self.schema.name}.{self.schema.columns[column].name}" for column in columns)

    def _refuse(self, where: str, code: int, mode: int, what: str = "UNIQUE constraint failed") -> None:
        """Raises apsw.ConstraintError with SQLite's message; returns if OR IGNORE skips the row."""
        if mode == _IGNORE:
            self.session.ignored += 1
            return
        self.session.keep_after_error = mode == _FAIL
        error = apsw.exception_for(code)
        error.args = (f"{what}: {where}",)
        raise error


def _key(name: int | bytes) -> bytes:
    """The key of the row that SQLite identifies by its row id or its hidden column."""
    return name if isinstance(name, bytes) else encode(name)
