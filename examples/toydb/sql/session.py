"""The transactions of one connection: maps SQLite's calls of virtual tables to engine transactions.

A statement outside a transaction reads one snapshot, from its first cursor to its last.
BEGIN takes no snapshot yet; the first read does, and the snapshot lasts until COMMIT or ROLLBACK.
The first write turns it into a write transaction if no other transaction has committed
since; otherwise it raises Busy, because what was read may no longer be true. BEGIN IMMEDIATE
begins a write transaction at once.

The durable commit happens in xSync, in which SQLite accepts a failure.

SQLite numbers savepoints from 0, and calls a virtual table only for those that are made
after the first write to it. So each transaction begins with an empty write to a
virtual table that exists for this purpose (ddl.Enlist), which then gets every call.
While a Python exception is raised, APSW does not pass ROLLBACK TO on. So a
failed statement is undone here, by a savepoint of its own (:meth:`Session.statement`).
"""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import apsw

from toydb.database import Database
from toydb.errors import Busy, NoSuchTable, TransactionError
from toydb.interrupts import later
from toydb.sql import schemas
from toydb.sql.parsing import ANY_OPERANDS
from toydb.sql.schemas import Schema
from toydb.table import Table
from toydb.transaction import Stats, Transaction

LOOK_S = 0.1
Levels = list[tuple[int, int | None]]  # SQLite's level, the engine's savepoint


class SchemaChanged(apsw.SQLError):
    """The stored schema is not the one that this connection knows: it refreshes its schema, and tries once more.

    (Not apsw.SchemaChangeError: SQLite would repeat the statement by itself, fifty times.)
    """


class Pages(NamedTuple):
    """Page references so far; of these, hits in the pool; and pages read from the file."""

    touched: int = 0
    hit: int = 0
    missed: int = 0

    def since(self, before: "Pages") -> "Pages":
        return Pages(self.touched - before.touched, self.hit - before.hit, self.missed - before.missed)


@dataclass
class Work:
    """An engine transaction, and the number of cursors that read in it."""

    txn: Transaction
    write: bool
    start: int = 0  # the savepoint at its beginning
    users: int = 0
    over: bool = False
    tables: dict[str, Table] = field(default_factory=dict)
    last_rowid: dict[str, int] = field(default_factory=dict)

    def forget(self) -> None:
        """Clears what was cached of the tables, after a rollback to a savepoint."""
        self.tables.clear()
        self.last_rowid.clear()


class Running:
    """A statement that is being executed, once or for several bindings."""

    __slots__ = ("_before", "_changes", "_levels", "_mark", "_session", "_work")

    def __init__(self, session: "Session", changes: bool) -> None:
        self._session, self._changes = session, changes

    def __enter__(self) -> "Running":
        session = self._session
        self._work, self._levels, self._mark = session.current, session.levels, None
        self._before = session.counted()
        if self._work is not None and self._work.write:
            self._mark = self._work.txn.savepoint()
        session.start(self._changes)
        session.late = None
        return self

    def each(self, bindings: Iterable[Any]) -> Iterator[Any]:
        """Passes bindings on. An execution that fails is undone, and those before it are not."""
        for binding in bindings:
            self._end(None)
            self._session.start(self._changes)
            if self._work is not None and self._mark is not None:
                self._work.txn.renew(self._mark)
            yield binding

    def __exit__(self, _kind: object, error: BaseException | None, _where: object) -> None:
        session, work = self._session, self._work
        late = session.late if error is None else None
        try:
            if error is not None or late is not None:
                session.failed(work, self._mark, self._levels, error or late)
            elif self._mark is not None and work is not None and not work.over:
                work.txn.release(self._mark)
        finally:
            self._end(error)
            session.settle()
        if late is not None:
            raise late

    def _end(self, error: BaseException | None) -> None:
        """Called after each execution."""
        if self._changes:
            self._session.count(self._before, error)
            self._before = self._session.counted()
        self._session.end_insert()


class Session:
    """The transactions of one SQL connection."""

    def __init__(self, connection: apsw.Connection, database: Database) -> None:
        self._connection = connection
        self._database = database
        self._schemas: dict[bytes, Schema] = {}
        self.levels: Levels = []
        self.enlisted = False
        self.committed = False  # whether the last ended transaction was committed
        self.late: BaseException | None = None  # what sync() kept
        self._past = Pages()
        self._paused: Work | None = None  # the snapshot of the last statement outside a transaction
        self.current: Work | None = None
        self.timeout_s = 5.0
        self.interrupted: Callable[[], bool] = lambda: bool(connection.is_interrupted)
        self.keep_after_error = False  # ON CONFLICT FAIL: keep what the statement has done so far
        self.ignored = 0  # rows that OR IGNORE skipped in the running statement: SQLite counts them as changed
        self.changed = self.changed_ever = (
            0  # rows changed by the last statement of the user's that does so, and by all
        )
        self.operands = ANY_OPERANDS  # of the statement that SQLite plans
        self.given_rowid: int | None = None  # the row id of the last row, if the INSERT gave it: SQLite takes 0 for it

    # -- reading -------------------------------------------------------------------------

    def look(self) -> Transaction:
        """A snapshot beside the session's transaction."""
        return self._database.begin()

    def acquire(self) -> Work:
        """The transaction to read in; call :meth:`release` afterwards."""
        if self.current is None:
            self.current = self._resume() or Work(self._database.begin(), write=False)
        self.current.users += 1
        return self.current

    def _resume(self) -> Work | None:
        """The snapshot of the last statement, with its tables, if nothing has been committed since."""
        work, self._paused = self._paused, None
        if work is None:
            return None
        if work.txn.resume():
            work.over = False
            return work
        self._past = _add(self._past, work.txn.stats)
        return None

    def release(self, work: Work) -> None:
        work.users -= 1
        if work.users == 0 and not work.write and (work is not self.current or self._connection.get_autocommit()):
            self._finish(work)

    @contextmanager
    def reading(self) -> Iterator[Work]:
        work = self.acquire()
        try:
            yield work
        finally:
            self.release(work)

    def table(self, work: Work, schema: Schema) -> Table:
        """A table, after a check that its stored schema is the one that this connection knows."""
        table = work.tables.get(schema.storage)
        if table is None:
            try:
                table = work.txn.table(schema.storage)
            except NoSuchTable as error:
                raise SchemaChanged(f"table {schema.name} was dropped") from error
            if table.meta != schema.meta():
                raise SchemaChanged(f"table {schema.name} was changed")
            work.tables[schema.storage] = table
        return table

    def storage(self, work: Work, name: str) -> Table:
        """The tree of an index, of a table whose schema was checked."""
        table = work.tables.get(name)
        if table is None:
            table = work.tables[name] = work.txn.table(name)
        return table

    def load(self, meta: bytes) -> Schema:
        """The schema that a meta describes; cached."""
        if meta not in self._schemas:
            self._schemas[meta] = schemas.load(meta)
        return self._schemas[meta]

    # -- writing -------------------------------------------------------------------------

    def begin_write(self) -> Work:
        """The write transaction; begins one if there is none (xBegin)."""
        before = self.current
        if before is not None and before.write:
            return before
        txn = self._wait_for_turn()
        if before is not None and not self._connection.get_autocommit() and txn.snapshot != before.txn.snapshot:
            txn.rollback()
            raise _busy_snapshot()
        self.current = Work(txn, write=True, start=txn.savepoint())
        if before is not None and before.users == 0:
            self._finish(before)
        return self.current

    def _wait_for_turn(self) -> Transaction:
        """Waits for the engine's write transaction; checks now and then whether the statement was interrupted."""
        end = time.monotonic() + self.timeout_s
        while True:
            try:
                return self._database.begin(write=True, timeout=max(0.0, min(LOOK_S, end - time.monotonic())))
            except Busy as error:
                if self.interrupted():
                    raise apsw.InterruptError("interrupted while another transaction writes") from error
                if time.monotonic() >= end:
                    raise apsw.BusyError(
                        f"database is locked: another transaction has been writing for {self.timeout_s:g} s; try again"
                    ) from error
            except TransactionError as error:  # another connection in the same thread
                raise apsw.BusyError(f"database is locked: {error}") from error

    def sync(self) -> None:
        """Makes the transaction durable (xSync). An error after the commit is kept, and raised by :meth:`telling`."""
        work = self.current
        if work is not None and work.write and not work.over:
            try:
                work.txn.commit()
            except BaseException as error:
                if not work.txn.committed:
                    raise
                self.late = error
            work.over = True
        self.committed = True

    @contextmanager
    def telling(self) -> Iterator[None]:
        """Wraps a statement that may commit: raises at the end the error that :meth:`sync` kept."""
        self.late = None
        yield
        if self.late is not None:
            raise self.late

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Wraps BEGIN, COMMIT and similar: delays Ctrl-C to their end, with a note on the transaction's outcome."""
        self.committed = False
        try:
            with later(), self.telling():
                try:
                    yield
                finally:
                    self.settle()
        except KeyboardInterrupt as error:
            self._note(error)
            raise

    def _note(self, error: KeyboardInterrupt) -> None:
        """Adds a note on the transaction's outcome."""
        if not hasattr(error, "__notes__"):
            ended = "is committed" if self.committed else "was rolled back"
            error.add_note(f"the transaction {ended if self._connection.get_autocommit() else 'is still open'}")

    def end(self) -> None:
        """Ends the transaction (xCommit after xSync, or xRollback)."""
        work, self.current = self.current, None
        self.levels, self.enlisted = [], False
        if work is not None:
            if work.write or work.users == 0:
                self._finish(work)
            if work is not self._paused:
                work.forget()

    def settle(self) -> None:
        """Called after each statement: outside a transaction, ends an engine transaction that no cursor reads."""
        work = self.current
        if work is not None and self._connection.get_autocommit() and (work.write or work.users == 0):
            self.end()

    def close(self) -> None:
        self.end()
        self._past, self._paused = self.pages(), None

    def _finish(self, work: Work) -> None:
        if work is self.current:
            self.current = None
        if not work.write and not work.over and self._paused is None:
            self._paused = work
            work.txn.pause()
            work.over = True
            return
        self._past = _add(self._past, work.txn.stats)
        if not work.over:
            work.txn.rollback()
            work.over = True

    # -- savepoints ----------------------------------------------------------------------

    def savepoint(self, level: int) -> None:
        """xSavepoint. Before the first write the savepoint is the start of the transaction: None."""
        work = self.current
        number = work.txn.savepoint() if work is not None and work.write else None
        self.levels = [*(entry for entry in self.levels if entry[0] < level), (level, number)]

    def release_to(self, level: int) -> None:
        """xRelease: removes this savepoint and those inside it, and keeps their changes."""
        inside = [number for known, number in self.levels if known >= level and number is not None]
        if inside and self.current is not None and self.current.write:
            self.current.txn.release(inside[0])
        self.levels = [entry for entry in self.levels if entry[0] < level]

    def rollback_to(self, level: int) -> None:
        """xRollbackTo: undoes later changes; the savepoint itself remains.

        A level without a call of xSavepoint was made before all writes; -1 is the level of a
        SAVEPOINT that began the transaction.
        """
        self.levels = [entry for entry in self.levels if entry[0] <= level]
        work = self.current
        if work is not None and work.write:
            number = next((number for known, number in self.levels if known == level), None)
            work.txn.rollback_to(work.start if number is None else number)
            work.forget()

    def statement(self, changes: bool) -> "Running":
        """Wraps the execution of one statement: undoes it as a whole if it fails. ``changes``: whether it may change rows."""
        return Running(self, changes)

    def start(self, changes: bool) -> None:
        """Called before each execution of a statement."""
        self.keep_after_error = self.committed = False
        if changes:
            self.ignored = 0

    def count(self, before: tuple[int, int], error: BaseException | None) -> None:
        """Called after each execution of a statement that changes rows. ``before``: SQLite's two figures, before it."""
        now = self.counted()
        if now != before or type(error) is not apsw.SQLError:  # (that statement was not even executed)
            self.changed = now[0] - self.ignored
        self.changed_ever += now[1] - before[1] - self.ignored

    def counted(self) -> tuple[int, int]:
        """SQLite's figures of changed rows: of the last statement, which may be one of toydb's own, and of all."""
        sqlite = apsw.Connection
        return sqlite.changes(self._connection), sqlite.total_changes(self._connection)

    def end_insert(self) -> None:
        """Called after each execution of a statement: tells SQLite the row id of the last row."""
        if self.given_rowid is not None:
            self._connection.set_last_insert_rowid(self.given_rowid)
            self.given_rowid = None

    def failed(self, work: Work | None, mark: int | None, levels: Levels, error: BaseException | None) -> None:
        """Undoes a failed statement, which began with ``work`` and ``levels``, and made the savepoint ``mark``."""
        self.ignored = 0  # SQLite counts no row of a statement that failed
        if not self._connection.get_autocommit():
            self._undo(work, mark)
            self.levels = levels
        if isinstance(error, KeyboardInterrupt):
            self._note(error)

    def _undo(self, work: Work | None, mark: int | None) -> None:
        """Undoes a failed statement inside a transaction, as SQLite does for its own tables."""
        now = self.current
        if now is None or not now.write or now.over:
            return
        if now is work and mark is not None:
            if not self.keep_after_error:
                now.txn.rollback_to(mark)
            now.txn.release(mark)
        elif not self.keep_after_error:  # the transaction began in this statement
            now.txn.rollback_to(now.start)
        now.forget()

    # -- figures -------------------------------------------------------------------------

    def pages(self) -> Pages:
        """Pages touched by this connection's transactions so far: hits and misses."""
        past = self._past
        for work in (self.current, self._paused):
            past = past if work is None else _add(past, work.txn.stats)
        return past


def _add(past: Pages, now: Stats) -> Pages:
    return Pages(past.touched + now.pages, past.hit + now.hits, past.missed + now.misses)


def _busy_snapshot() -> Exception:
    error = apsw.exception_for(apsw.SQLITE_BUSY_SNAPSHOT)
    error.args = (
        "database is locked: another transaction has committed since this one began to read; "
        "roll back and start again, with BEGIN IMMEDIATE to write from the start",
    )
    return error
