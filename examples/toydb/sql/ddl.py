"""CREATE and DROP: definitions are stored in the database itself, for every connection.

SQLite's own schema is in memory, for this connection only. The stored schema is
authoritative: each table's ``meta`` has its SQL. :meth:`Catalog.refresh` updates SQLite's schema from
the stored one, by CREATE VIRTUAL TABLE and DROP TABLE without touching storage. So SQLite
prepares its statements again, and a ROLLBACK undoes these changes like all others.

Views and their triggers are rows of an ordinary toydb table, ``toydb_schema``.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

import apsw

from toydb.errors import NoSuchTable, TableExists
from toydb.sql import alter
from toydb.sql.parsing import OURS, Operands, Statement, fold, quote, script, target, trigger_body
from toydb.sql.schemas import Schema
from toydb.sql.session import Session, Work
from toydb.sql.virtual import SEQUENCE, VirtualTable

DEFINITIONS = "toydb_schema"
_CREATE_DEFINITIONS = f"CREATE TABLE {DEFINITIONS}(type TEXT, name TEXT, sql TEXT NOT NULL, PRIMARY KEY(type, name))"
TABLES = "'table', 'view'"  # what SQLite keeps in one list of names
_ENLIST = "DELETE FROM temp.toydb_transaction WHERE 0"


class Enlist:
    """The module of a virtual table without rows. A write to it enlists the session in SQLite's transaction."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def Create(self, *_args: Any) -> tuple[str, "EnlistTable"]:
        return "CREATE TABLE x(a)", EnlistTable(self._session)

    Connect = Create


class EnlistTable:
    def __init__(self, session: Session) -> None:
        self._session = session

    def BestIndexObject(self, _info: apsw.IndexInfo) -> bool:
        return True

    def Begin(self) -> None:
        self._session.enlisted = True

    def Sync(self) -> None:
        self._session.sync()

    def Commit(self) -> None:
        self._session.end()

    def Rollback(self) -> None:
        self._session.end()

    def Savepoint(self, level: int) -> None:
        self._session.savepoint(level)

    def Release(self, level: int) -> None:
        self._session.release_to(level)

    def RollbackTo(self, level: int) -> None:
        self._session.rollback_to(level)

    def Disconnect(self) -> None:
        """Does nothing: the table has no state."""

    Destroy = Disconnect


class Module:
    """Makes the virtual tables of ``USING toydb``."""

    def __init__(self, catalog: "Catalog") -> None:
        self._catalog = catalog

    def Create(
        self, connection: apsw.Connection, _module: str, _database: str, name: str, *columns: str
    ) -> tuple[str, VirtualTable]:
        schema = self._catalog.coming
        if schema is None:
            schema = Schema(f"CREATE TABLE {quote(name)}({', '.join(columns)})")
        if not self._catalog.storage_stays:
            self._catalog.create_storage(schema)
        return self._declare(connection, schema)

    def Connect(
        self, connection: apsw.Connection, _module: str, _database: str, name: str, *_columns: str
    ) -> tuple[str, VirtualTable]:
        self._catalog.known.pop(fold(name), None)  # a table that a ROLLBACK removed may still be in use
        schema = self._catalog.find(name)
        if schema is None:
            raise apsw.SQLError(f"no such table: {name}")
        return self._declare(connection, schema)

    def _declare(self, connection: apsw.Connection, schema: Schema) -> tuple[str, VirtualTable]:
        connection.vtab_config(apsw.SQLITE_VTAB_CONSTRAINT_SUPPORT, 1)
        table = DefinedTable(connection, self._catalog, schema)
        self._catalog.known[fold(schema.name)] = table
        return schema.declaration(), table


class DefinedTable(VirtualTable):
    """A virtual table that is registered in a catalog."""

    def __init__(self, connection: apsw.Connection, catalog: "Catalog", schema: Schema) -> None:
        super().__init__(connection, catalog.session, schema)
        self._catalog = catalog

    def Disconnect(self) -> None:
        if self._catalog.known.get(fold(self.schema.name)) is self:
            del self._catalog.known[fold(self.schema.name)]

    def Destroy(self) -> None:
        self.Disconnect()
        if not self._catalog.storage_stays:
            self._catalog.drop_storage(self.schema)


class Catalog:
    """The definitions of a connection, and the statements that change them."""

    def __init__(
        self,
        connection: apsw.Connection,
        session: Session,
        rewrite: Callable[..., str] = lambda one, **_: one.sql,
        check: Callable[[], list[str]] = list,
    ) -> None:
        self._connection = connection
        self.session = session
        self.check = check  # the faults of the whole database
        self._rewrite = rewrite  # of an INSERT: with the defaults of the columns that it omits
        self.known: dict[str, DefinedTable] = {}
        self.operands: Operands | None = (
            None  # of views and triggers, whose SQL a statement may execute; None: there are none
        )
        self._any_stored = False  # whether there are, or were, stored views and triggers
        self._seen: list[tuple[bytes, bytes]] | None = None  # their rows that SQLite knows; None: look again
        self._looked: int | None = None  # the LSN at which they were compared last
        self._triggers: dict[str, tuple[Statement, str]] = {}  # temporary ones by name: as written, and as executed
        self.coming: Schema | None = None  # the schema that the next CREATE VIRTUAL TABLE declares
        self.storage_stays = False
        self.handlers: dict[str, Callable[[Statement, Any], None]] = {
            "CREATE TABLE": self._create_table,
            "CREATE VIRTUAL": self._create_virtual,
            "CREATE INDEX": self._create_index,
            "DROP TABLE": self._drop_table,
            "DROP INDEX": self._drop_index,
            "CREATE VIEW": self._create_definition,
            "CREATE TRIGGER": self._create_definition,
            "DROP VIEW": self._drop_definition,
            "DROP TRIGGER": self._drop_definition,
            "ALTER TABLE": self._alter_table,
        }

    def attach(self) -> None:
        """Declares everything that is stored to SQLite."""
        create = self._connection.create_module
        create("toydb", cast(Any, Module(self)), use_bestindex_object=True, use_no_change=True, iVersion=2)
        create("toydb_transaction", cast(Any, Enlist(self.session)), use_bestindex_object=True, iVersion=2)
        self.make_transaction_table()
        self.refresh()

    def make_transaction_table(self) -> None:
        """Makes the table that enlists the session, at first and where SQLite has dropped all that is temporary."""
        self.sqlite("CREATE VIRTUAL TABLE IF NOT EXISTS temp.toydb_transaction USING toydb_transaction")

    # -- what is there ---------------------------------------------------------------------

    def tables(self) -> list[Schema]:
        with self.session.reading() as work:
            return [self._stored(work, name) for name in work.txn.tables() if name.startswith("table:")]

    def find(self, name: str) -> Schema | None:
        """The schema of a table, or None."""
        known = self.known.get(fold(name))
        if known is not None:
            return known.schema
        with self.session.reading() as work:
            try:
                return self._stored(work, "table:" + fold(name))
            except NoSuchTable:
                return None

    def _stored(self, work: Work, storage: str) -> Schema:
        return self.session.load(work.txn.table(storage).meta)

    def refresh(self) -> bool:
        """Updates SQLite's schema from the stored one; returns whether anything changed."""
        stored = {fold(schema.name): schema for schema in self.tables()}
        listed = self.sqlite("SELECT lower(name) FROM sqlite_schema WHERE sql LIKE 'CREATE VIRTUAL TABLE%'").fetchall()
        there = {str(name) for (name,) in listed}
        changed = False
        for name in there:
            known = self.known.get(name)
            if name not in stored or known is None or known.schema.meta() != stored[name].meta():
                changed |= name not in stored or known is not None
                self._forget(name)
        self.known = {name: table for name, table in self.known.items() if name in stored}
        for name, schema in stored.items():
            if name not in self.known:
                self._learn(schema)
                changed = True
        return self._refresh_definitions(DEFINITIONS in stored) or changed

    def follow(self) -> None:
        """Takes over what other connections have done to the stored views and triggers. (Tables tell it themselves: Session.table.)

        Inside a transaction with a snapshot, or with changes, the definitions are those of its beginning, or its own.
        """
        if not self._any_stored or self.session.current is not None:
            return
        with self.session.look() as txn:
            if txn.snapshot == self._looked:
                return
            looked = txn.snapshot
            try:
                found = list(txn.table("table:" + DEFINITIONS).scan())
            except NoSuchTable:
                found = []
        if found != self._seen:
            self.refresh()
        if self._connection.get_autocommit():  # else a ROLLBACK may take the definitions back in SQLite
            self._seen, self._looked = found, looked

    def definitions(self, table: str = "sqlite_schema") -> list[Any]:
        """(type, name, sql) of views and triggers."""
        return self.sqlite(f"SELECT type, name, sql FROM {table} WHERE type IN ('view', 'trigger')").fetchall()

    def table_list(self, name: Any, place: Any) -> list[tuple[Any, ...]]:
        """The rows of PRAGMA table_list: stored tables as what they are to the user, without those of toydb itself."""
        found = []
        for row in self.sqlite("PRAGMA table_list").fetchall():
            where, called, kind, *_ = row
            if str(called).startswith("toydb_") or (name is not None and fold(str(called)) != fold(str(name))):
                continue
            if place is not None and where != ("main" if fold(str(place)) in OURS else fold(str(place))):
                continue
            schema = self.find(str(called)) if where == "main" and kind == "virtual" else None
            found.append(row if schema is None else (where, *schema.listed()))
        return found

    def is_temporary(self, name: str, kinds: str = TABLES) -> bool:
        """Whether a temporary table or view of this connection hides the stored one. (Triggers and indexes have names of their own.)"""
        query = f"SELECT 1 FROM sqlite_temp_schema WHERE type IN ({kinds}) AND lower(name) = lower(?)"
        return bool(self.sqlite(query, (name,)).fetchall())

    def located(self, statement: Statement) -> Statement:
        """The statement, ``elsewhere`` if its name is that of a temporary object, for which SQLite looks first."""
        if statement.elsewhere or len(statement.names) != 1:
            return statement
        if statement.kind == "ALTER TABLE":
            temporary = self.is_temporary(statement.name)
        elif statement.kind == "DROP INDEX":
            temporary = self.is_temporary(statement.name, "'index'")
        elif statement.kind in ("CREATE INDEX", "CREATE TRIGGER"):
            temporary = self.is_temporary(target(statement))
        else:
            return statement
        return replace(statement, elsewhere=temporary)

    def temporary_trigger(self, statement: Statement) -> str:
        """What SQLite is given for a temporary trigger, which may change stored tables."""
        sql = self._executed(statement.sql, stored=False)
        if not statement.if_exists or fold(statement.name) not in self._temporary_triggers():
            self._triggers[fold(statement.name)] = statement, sql
        return sql

    def _temporary_triggers(self) -> set[str]:
        found = self.sqlite("SELECT lower(name) FROM sqlite_temp_schema WHERE type = 'trigger'").fetchall()
        return {str(name) for (name,) in found}

    def _refresh_temporary(self) -> None:
        """Declares temporary triggers anew where a table that they change has other defaults now."""
        if not self._triggers:
            return
        there = self._temporary_triggers()
        for name, (statement, executed) in list(self._triggers.items()):
            if name not in there:
                continue  # it was dropped, perhaps in a transaction that may be rolled back
            sql = self._executed(statement.sql, stored=False)
            if sql != executed:
                self.sqlite(f"DROP TRIGGER temp.{quote(name)}")
                self.sqlite(sql)
                self._triggers[name] = statement, sql

    def _refresh_definitions(self, any_stored: bool) -> bool:
        """Declares the stored views and triggers; anew, where a table of a trigger has other defaults now."""
        known = set(self.definitions())
        self._any_stored, self._seen, self._looked = any_stored, None, None
        stored = self.definitions(DEFINITIONS) if any_stored else []
        self.operands = None
        for _, _, sql in (*stored, *self.definitions("sqlite_temp_schema")):
            self.operands = script(str(sql))[0].operands.within(self.operands)
        wanted = {(kind, name, self._executed(str(sql))) for kind, name, sql in stored}
        for kind, name, _ in sorted(known - wanted):
            self.sqlite(f"DROP {kind} IF EXISTS {quote(str(name))}")
        for _, _, sql in sorted(wanted - known, reverse=True):  # views before their triggers
            self.sqlite(str(sql))
        self._refresh_temporary()
        return known != wanted

    def _executed(self, sql: str, *, stored: bool = True) -> str:
        """What SQLite is given for a definition: a trigger's INSERTs get the defaults of the columns they omit.

        A stored trigger means stored tables, even if temporary ones have their names.
        """
        statement = script(sql)[0]
        if statement.kind != "CREATE TRIGGER":
            return sql
        out, end = "", 0
        for part in trigger_body(statement):
            out += sql[end : part.start] + self._rewrite(part.statement, stored=stored)
            end = part.end
        return out + sql[end:]

    def _learn(self, schema: Schema) -> None:
        """Declares a stored table to SQLite."""
        self.coming, before, self.storage_stays = schema, self.storage_stays, True
        try:
            self.sqlite(schema.virtual())
        finally:
            self.coming, self.storage_stays = None, before

    def _forget(self, name: str) -> None:
        """Removes a table from SQLite's schema, without its storage."""
        before, self.storage_stays = self.storage_stays, True
        try:
            self.sqlite(f"DROP TABLE main.{quote(name)}")
        finally:
            self.storage_stays = before

    # -- storage ---------------------------------------------------------------------------

    def create_storage(self, schema: Schema) -> None:
        txn = self.session.begin_write().txn
        try:
            txn.create_table(schema.storage, schema.meta())
            for index in schema.indexes:
                txn.create_table(index.storage)
        except TableExists as error:
            raise apsw.SQLError(f"table {quote(schema.name)} already exists") from error

    def drop_storage(self, schema: Schema) -> None:
        work = self.session.begin_write()
        for storage in (schema.storage, *(index.storage for index in schema.indexes)):
            work.txn.drop_table(storage)
            work.tables.pop(storage, None)
        work.last_rowid.pop(schema.storage, None)
        if schema.autoincrement and SEQUENCE in work.txn.tables():
            work.txn.table(SEQUENCE).delete(schema.storage.encode())

    def begin_write(self) -> None:
        """BEGIN IMMEDIATE: begins the write transaction now, or undoes the BEGIN."""
        try:
            self.session.begin_write()
        except BaseException:
            self.sqlite("ROLLBACK")
            raise

    def enlist(self) -> None:
        """Makes SQLite call the session at the end of the transaction and for savepoints."""
        if not self.session.enlisted and not self._connection.get_autocommit():
            self.sqlite(_ENLIST)

    @contextmanager
    def _transaction(self) -> Iterator[Work]:
        """Runs a definition as a transaction of its own, or as a statement of the open one."""
        if not self._connection.get_autocommit():
            self.enlist()
            with self.session.statement(changes=False):
                self.sqlite("SAVEPOINT toydb_definition")
                try:
                    self.session.begin_write()
                    self.refresh()
                    yield self.session.begin_write()
                    self._refresh_definitions(self.find(DEFINITIONS) is not None)
                except BaseException:
                    self.sqlite("ROLLBACK TO toydb_definition")
                    raise
                finally:
                    self.sqlite("RELEASE toydb_definition")
            return
        self.sqlite("BEGIN")
        try:
            self.enlist()
            self.session.begin_write()
            self.refresh()
            yield self.session.begin_write()
            self._refresh_definitions(self.find(DEFINITIONS) is not None)
            with self.session.whole():
                self.sqlite("COMMIT")
        except BaseException:
            if not self._connection.get_autocommit():
                self.sqlite("ROLLBACK")
            raise
        finally:
            self.session.settle()

    def sqlite(self, sql: str, values: tuple[Any, ...] = ()) -> apsw.Cursor:
        """Executes a statement directly, without this module's cursor class."""
        return apsw.Cursor.execute(apsw.Cursor(self._connection), sql, values)

    # -- statements ------------------------------------------------------------------------

    def _create_table(self, statement: Statement, bindings: Any) -> None:
        with self._transaction():
            exists = self.exists(statement.name)
            if exists and statement.if_exists:
                return
            if exists:
                raise apsw.SQLError(f"table {quote(statement.name)} already exists")
            if statement.word(statement.at) == "AS":
                self._create_table_as(statement, bindings)
            else:
                self._define(Schema(f"CREATE TABLE {quote(statement.name)}{statement.rest(statement.at)}"))

    def _create_table_as(self, statement: Statement, bindings: Any) -> None:
        query = statement.rest(statement.at + 1)
        self.sqlite(f"CREATE TEMP TABLE toydb_new AS {query}", bindings or ())
        try:
            columns = self.sqlite("SELECT name, type FROM pragma_table_info('toydb_new')").fetchall()
            declared = ", ".join(f"{quote(str(name))} {kind}" for name, kind in columns)
            self._define(Schema(f"CREATE TABLE {quote(statement.name)}({declared})"))
            self.sqlite(f"INSERT INTO {quote(statement.name)} SELECT * FROM temp.toydb_new")
        finally:
            self.sqlite("DROP TABLE temp.toydb_new")

    def _create_virtual(self, statement: Statement, _bindings: Any) -> None:
        if statement.word(statement.at + 1) != "TOYDB":
            raise apsw.SQLError("toydb does not store other virtual tables: CREATE VIRTUAL TABLE temp.name USING …")
        with self._transaction():
            self.sqlite(statement.sql)

    def _define(self, schema: Schema) -> None:
        self.create_storage(schema)
        self._learn(schema)

    def exists(self, name: str, kinds: str = TABLES) -> bool:
        query = f"SELECT 1 FROM sqlite_schema WHERE type IN ({kinds}) AND lower(name) = lower(?)"
        return bool(self.sqlite(query, (name,)).fetchall())

    def _create_index(self, statement: Statement, _bindings: Any) -> None:
        at = statement.at
        if statement.word(at) != "ON" or at + 1 >= len(statement.tokens):
            raise apsw.SQLError("CREATE INDEX name ON table(columns)")
        with self._transaction() as work:
            table = self.find(statement.tokens[at + 1].name)
            if table is None:
                raise apsw.SQLError(f"no such table: {statement.tokens[at + 1].name}")
            if f"index:{fold(statement.name)}" in work.txn.tables():
                if statement.if_exists:
                    return
                raise apsw.SQLError(f"index {quote(statement.name)} already exists")
            unique = "UNIQUE " if statement.word(1) == "UNIQUE" else ""
            changed = table.with_index(f"CREATE {unique}INDEX {quote(statement.name)} {statement.rest(at)}")
            new = next(index for index in changed.indexes if fold(index.name) == fold(statement.name))
            VirtualTable(self._connection, self.session, changed).add_index(work, new)
            self.change(work, table, changed)

    def _drop_index(self, statement: Statement, _bindings: Any) -> None:
        with self._transaction() as work:
            for table in self.tables():
                for index in table.indexes:
                    if fold(index.name) != fold(statement.name):
                        continue
                    if index.sql is None:
                        raise apsw.SQLError("index associated with UNIQUE or PRIMARY KEY constraint cannot be dropped")
                    work.txn.drop_table(index.storage)
                    work.tables.pop(index.storage, None)
                    self.change(work, table, table.without_index(index.name))
                    return
            if not statement.if_exists:
                raise apsw.SQLError(f"no such index: {statement.name}")

    def change(self, work: Work, old: Schema, new: Schema) -> None:
        """Stores a table's new schema, and declares it."""
        work.txn.table(new.storage).set_meta(new.meta())
        work.tables.pop(new.storage, None)
        self._forget(old.name)
        self._learn(new)

    def _alter_table(self, statement: Statement, _bindings: Any) -> None:
        with self._transaction() as work:
            alter.alter(self, work, statement)

    def _drop_table(self, statement: Statement, _bindings: Any) -> None:
        with self._transaction():
            self.sqlite(statement.sql)

    def _create_definition(self, statement: Statement, _bindings: Any) -> None:
        kind = statement.kind.split()[1].lower()
        with self._transaction():
            if statement.if_exists and self.exists(statement.name, TABLES if kind == "view" else "'trigger'"):
                return
            self.sqlite(statement.sql)
            if self.find(DEFINITIONS) is None:
                self._define(Schema(_CREATE_DEFINITIONS))
            self.sqlite(
                f"INSERT INTO {DEFINITIONS} SELECT type, name, sql FROM sqlite_schema "
                "WHERE type = ? AND lower(name) = lower(?)",
                (kind, statement.name),
            )

    def _drop_definition(self, statement: Statement, _bindings: Any) -> None:
        with self._transaction():
            self.sqlite(statement.sql)
            if self.find(DEFINITIONS) is not None:
                self._refresh_stored_definitions()

    def _refresh_stored_definitions(self) -> None:
        """Removes stored definitions that no longer exist: dropping a view drops its triggers too."""
        self.sqlite(f"DELETE FROM {DEFINITIONS} WHERE (type, name) NOT IN (SELECT type, name FROM sqlite_schema)")
