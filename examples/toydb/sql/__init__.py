"""SQL over toydb: SQLite parses and plans, toydb stores the tables.

    import toydb.sql

    with toydb.sql.connect("shop.db") as con:
        con.execute("CREATE TABLE item(id INTEGER PRIMARY KEY, name TEXT NOT NULL, price REAL)")
        con.execute("INSERT INTO item(name, price) VALUES(?, ?)", ("lamp", 39.5))
        print(con.execute("SELECT * FROM item WHERE price < 50").fetchall())

A connection is an ``apsw.Connection`` on an empty database in memory, whose tables are
all virtual. APSW's documentation applies, with the exceptions in the README's section on SQL. Each
thread and each process opens its own connection; any number can use one database.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Any

import apsw

from toydb.database import Database
from toydb.sql import check, ddl, parsing, pragma, refused
from toydb.sql.keys import COLLATIONS
from toydb.sql.parsing import ANY_OPERANDS, Statement
from toydb.sql.schemas import Schema
from toydb.sql.session import Pages, SchemaChanged, Session

MOST_REWRITTEN = 500
CHANGES = ("INSERT", "REPLACE", "UPDATE", "DELETE")
TRANSACTIONS = ("BEGIN", "COMMIT", "ROLLBACK", "SAVEPOINT", "RELEASE", "ROLLBACK TO")
CONFIGURES = {apsw.SQLITE_DBCONFIG_ENABLE_FKEY: "foreign_keys", apsw.SQLITE_DBCONFIG_WRITABLE_SCHEMA: "writable_schema"}


def connect(path: str | os.PathLike[str], **options: Any) -> "Connection":
    """Open a database for SQL; ``options`` are those of ``toydb.Database.open``.

    Raises toydb.ToyDBError and what ``Database.open`` raises.
    """
    return Connection(Database.open(path, **options), owns=True)


class Connection(refused.Calls):
    """A SQL connection to an open toydb database, which it closes at the end if it ``owns`` it."""

    def __init__(self, database: Database, *, owns: bool = False) -> None:
        super().__init__(":memory:")
        self.database = database
        self._owns = owns
        self._rewritten: dict[str, tuple[str, Schema | None, str]] = {}
        self.session = Session(self, database)
        self.catalog = ddl.Catalog(self, self.session, self.rewrite, self.check)
        pragma.register(self, self.catalog)
        self.create_scalar_function("changes", self.changes, 0)  # SQLite's count the rows that OR IGNORE skips
        self.create_scalar_function("total_changes", self.total_changes, 0)
        self.cursor_factory = Cursor
        self.catalog.attach()
        self.set_busy_timeout(5000)
        super().config(apsw.SQLITE_DBCONFIG_ENABLE_FKEY, 0)

    def close(self, force: bool = False) -> None:
        """Roll back what is not committed, and close."""
        super().close(force)
        self.session.close()
        if self._owns:
            self.database.close()

    def __enter__(self) -> "Connection":
        super().__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> bool:
        try:
            with self.session.whole():
                return super().__exit__(kind, error, where)
        except apsw.SQLError as told:
            if told.__context__ is None or told.__context__ is error:
                raise
            raise told.__context__ from None  # raise the cause of SQLite's failed commit

    def set_busy_timeout(self, milliseconds: int) -> None:
        """How long a writer waits for another one."""
        super().set_busy_timeout(milliseconds)
        if hasattr(self, "session"):  # (apsw.connection_hooks are called before)
            self.session.timeout_s = milliseconds / 1000

    def config(self, op: int, *args: int) -> int:
        """As in APSW; refuses what :func:`refused.refuse` refuses as a pragma."""
        if op in CONFIGURES and args and args[0] > 0:
            self.execute(f"PRAGMA {CONFIGURES[op]} = 1")
        return super().config(op, *args)

    def pragma(self, name: str, value: Any = None, *, schema: str | None = None) -> Any:
        """As in APSW: the answer of a PRAGMA with as little around it as possible."""
        place = "" if schema is None else f"{parsing.quote(schema)}."
        set_to = "" if value is None else f"({apsw.format_sql_value(value)})"
        return self.execute(f"PRAGMA {place}{name}{set_to}").get

    def column_metadata(
        self, dbname: str | None, table_name: str, column_name: str
    ) -> tuple[str, str, bool, bool, bool]:
        """As in APSW: the type and collation of a column, and whether it is NOT NULL, of the key, and AUTOINCREMENT."""
        ours = dbname is None or parsing.fold(dbname) in parsing.OURS
        hidden = not ours or (dbname is None and self.catalog.is_temporary(table_name))
        table = None if hidden else self.catalog.find(table_name)
        if table is None:
            return super().column_metadata(dbname, table_name, column_name)
        return table.column_metadata(column_name)

    def create_collation(self, name: str, callback: Any) -> None:
        """As in APSW, for ORDER BY and comparisons. SQLite's own collations, by which keys are ordered, stay as they are."""
        if name.upper() in COLLATIONS:
            raise apsw.SQLError(f"keys are ordered by {name.upper()} as SQLite has it: give the collation another name")
        super().create_collation(name, callback)

    def changes(self) -> int:
        """Rows changed by the last INSERT, UPDATE or DELETE."""
        return self.session.changed

    def total_changes(self) -> int:
        """Rows changed since the connection was opened."""
        return self.session.changed_ever

    def pages(self) -> Pages:
        """Pages that this connection has touched so far."""
        return self.session.pages()

    def tables(self) -> list[Schema]:
        """The tables of the database, by name."""
        return self.catalog.tables()

    def check(self) -> list[str]:
        """Checks the database: its pages and trees, then its tables and indexes. Returns the faults, one sentence each."""
        return list(self.database.check()) or check.check(self.session, self.tables())

    def forget_rewritten(self) -> None:
        """Called before each statement after which a name may be that of another table."""
        self._rewritten.clear()

    def rewrite(self, statement: Statement, *, stored: bool = False) -> str:
        """Adds the defaults of the omitted columns to an INSERT; lets toydb answer a PRAGMA about its tables.

        ``stored``: it is in a stored trigger, and means stored tables only.
        """
        if statement.kind == "PRAGMA":
            return pragma.as_select(statement)
        if statement.kind == "CREATE TRIGGER":  # a temporary one
            return self.catalog.temporary_trigger(statement)
        if statement.kind != "INSERT":
            return statement.sql
        table, schema, text = ("", None, "") if stored else self._rewritten.get(statement.sql, ("", None, ""))
        if table and self.catalog.find(table) is schema:
            return text
        target = parsing.insert_target(statement)
        if target is None or (not (stored or target.qualified) and self.catalog.is_temporary(target.table)):
            return statement.sql
        schema = self.catalog.find(target.table)
        text = statement.sql if schema is None else _complete(statement, target, schema)
        if len(self._rewritten) >= MOST_REWRITTEN:
            self._rewritten.clear()
        if not stored:
            self._rewritten[statement.sql] = (target.table, schema, text)
        return text


def _complete(statement: Statement, target: parsing.Target, schema: Schema) -> str:
    if parsing.returns(statement):
        raise apsw.SQLError(
            "INSERT … RETURNING would return what was given, not what is stored: "
            "use last_insert_rowid(), or SELECT the row"
        )
    if target.columns is None and statement.word(target.source) != "DEFAULT":
        return statement.sql
    given = {parsing.fold(name) for name in target.columns or ()}
    defaults = {name: value for name, value in schema.defaults().items() if parsing.fold(name) not in given}
    return parsing.with_defaults(statement, target, defaults) if defaults else statement.sql


class Cursor(apsw.Cursor):
    """Executes statements; the rows are those of the last one."""

    def execute(self, statements: str, bindings: Any = None, **options: Any) -> "Cursor":
        parts = parsing.script(statements)
        if len(parts) == 1:
            return self._execute(parts[0], bindings, options)
        taken = 0
        for number, part in enumerate(parts):
            own = bindings
            if isinstance(bindings, Sequence):
                count = parsing.parameters(part)
                own = bindings[taken:] if number == len(parts) - 1 else bindings[taken : taken + count]
                taken += count
            self._execute(part, own, options)
            if number < len(parts) - 1:
                for _ in self:
                    pass
        return self

    def executemany(self, statements: str, sequenceofbindings: Iterable[Any], **options: Any) -> "Cursor":
        """As in APSW. Inside a transaction the bindings of a list or tuple are executed together, at a third of the cost.

        (Those of other iterables are executed one by one: an iterator may use this connection itself.)
        """
        bindings = iter(sequenceofbindings)
        for first in bindings:
            self.execute(statements, first, **options)
            rest = len(sequenceofbindings) - 1 if isinstance(sequenceofbindings, (list, tuple)) else 0
            if rest and self._may_repeat(statements):
                sql = self._here().rewrite(parsing.script(statements)[0])
                with self._here().session.statement(changes=True) as running:
                    super().executemany(sql, running.each(bindings), **options)
        return self

    def _may_repeat(self, statements: str) -> bool:
        """Whether the statement, which has just been executed, may be executed again without a look at it."""
        parts, work = parsing.script(statements), self._here().session.current
        writes = work is not None and work.write and not self._here().get_autocommit()
        return writes and len(parts) == 1 and parts[0].kind in CHANGES

    def _here(self) -> Connection:
        assert isinstance(self.connection, Connection)
        return self.connection

    def _execute(self, statement: Statement, bindings: Any, options: dict[str, Any]) -> "Cursor":
        connection = self._here()
        statement = connection.catalog.located(statement)
        refused.refuse(statement)
        if statement.kind not in refused.HARMLESS:
            connection.forget_rewritten()
        define: Callable[[Statement, Any], None] | None = connection.catalog.handlers.get(statement.kind)
        if define is not None and not statement.elsewhere:
            self._must_allow(statement, bindings, options)
            try:
                define(statement, bindings)
            except apsw.SQLError as error:
                refused.advise(statement, error)
                raise
            return self
        if statement.kind not in TRANSACTIONS:
            connection.catalog.follow()
        for attempt in (1, 2):
            sql = connection.rewrite(statement)
            connection.session.operands = statement.operands.within(connection.catalog.operands)
            try:
                self._run(connection, sql, bindings, options, statement.kind)
            except apsw.SQLError as error:
                refused.advise(statement, error)
                outdated = isinstance(error, SchemaChanged) or str(error).startswith("no such table")
                if attempt == 2 or not outdated or not connection.catalog.refresh():
                    raise
            else:
                break
            finally:
                connection.session.operands = ANY_OPERANDS
        if statement.elsewhere and statement.kind in ("CREATE VIEW", "CREATE TRIGGER"):
            connection.catalog.operands = statement.operands.within(connection.catalog.operands)
        if statement.kind == "PRAGMA":
            self._after_pragma(connection, statement.pragma.name)
        if statement.kind == "BEGIN" and statement.word(1) in ("IMMEDIATE", "EXCLUSIVE"):
            connection.catalog.begin_write()
        return self

    def _must_allow(self, statement: Statement, bindings: Any, options: dict[str, Any]) -> None:
        """Asks what may keep SQLite from executing a statement, for a definition, which this module executes itself."""
        if options.get("explain", -1) > 0:
            raise apsw.SQLError("toydb cannot explain a definition, only execute it: leave out explain=")
        trace = self.exec_trace
        if trace is not None:  # it may look at the cursor, so that APSW has to call it
            self.exec_trace = lambda cursor, *_: trace(cursor, statement.sql, bindings)
            try:
                super().execute("PRAGMA shrink_memory")
            finally:
                self.exec_trace = trace

    @staticmethod
    def _after_pragma(connection: Connection, name: str) -> None:
        """Follows pragmas that change more than SQLite's own database."""
        if name == "BUSY_TIMEOUT":
            connection.session.timeout_s = connection.catalog.sqlite("PRAGMA busy_timeout").get / 1000
        elif name in ("TEMP_STORE", "TEMP_STORE_DIRECTORY"):
            connection.catalog.make_transaction_table()

    def _run(self, connection: Connection, sql: str, bindings: Any, options: dict[str, Any], kind: str) -> None:
        if kind in TRANSACTIONS:
            with connection.session.whole():
                super().execute(sql, bindings, **options)
                connection.catalog.enlist()
        else:
            connection.catalog.enlist()
            with connection.session.statement(kind in CHANGES):
                super().execute(sql, bindings, **options)
