"""A database: opening, beginning transactions, checkpoints, closing."""

import os
import threading
import weakref

import bufferpool as bp
from bufferpool.units import parse_size
from toydb.check import check
from toydb.engine import Engine
from toydb.errors import Busy, DatabaseClosed
from toydb.recovery import open_engine
from toydb.transaction import Transaction

LEAST_PAGES = 16

_open_databases: "weakref.WeakSet[Database]" = weakref.WeakSet()


class Database:
    """An open database. Any number of processes and threads may have it open at once.

    Beside the data file lie its log (``NAME-log.…``), a lock file (``NAME-lock``), and a file for old page versions (``NAME-spill``);
    its pages are in the pool ``pool.name``, which remains when all handles are closed: the next process that
    opens the database finds it warm. After a fork the child must open the database anew.
    """

    def __init__(self, engine: Engine, path: str, options: dict[str, object]) -> None:
        self.path = path
        self._engine = engine
        self._options = options
        self._checkpoint_bytes = parse_size(options["checkpoint_bytes"], "checkpoint_bytes")  # type: ignore[arg-type]
        self._state = threading.Lock()
        self.closed = False
        _open_databases.add(self)

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        capacity: int | str = "64MiB",
        create: bool = True,
        pool_name: str | None = None,
        page_size: int = 4096,
        checkpoint_bytes: int | str = "16MiB",
    ) -> "Database":
        """Opens the database ``path``; if there is none, makes it, unless ``create`` is false.

        If its pool exists, from other processes or from before, it is used as it is;
        otherwise a pool with ``capacity`` bytes for pages is made, and the database is recovered
        into it. ``page_size`` applies to a new database; an existing one keeps its own.
        ``checkpoint_bytes``: a commit makes a checkpoint when the log has grown by so many bytes.

        Raises DatabaseNotFound, NotADatabase, PoolRemoved, PoolTaken, LogCorrupt, Busy, OSError, and the errors
        of the pool; ValueError for an invalid option.
        """
        options: dict[str, object] = {
            "capacity": capacity, "create": create, "pool_name": pool_name, "page_size": page_size,
            "checkpoint_bytes": checkpoint_bytes,
        }  # fmt: skip
        parse_size(checkpoint_bytes, "checkpoint_bytes")
        if capacity != "auto" and parse_size(capacity, "capacity") < LEAST_PAGES * page_size:
            raise ValueError(
                f"capacity must be at least {LEAST_PAGES} pages ({LEAST_PAGES * page_size:,} bytes), not {capacity!r}"
            )
        path = os.path.realpath(path)
        engine = open_engine(path, capacity=capacity, create=create, pool_name=pool_name, page_size=page_size)
        return cls(engine, path, options)

    @property
    def pool(self) -> bp.Pool:
        """The pool with the database's pages. ``pool.path`` is valid after closing too."""
        return self._engine.pool

    def _must_be_open(self) -> None:
        if self.closed:
            raise DatabaseClosed(f"{self.path} was closed here, or belongs to the parent of a fork; open it again")

    def begin(self, write: bool = False, *, latest: bool = False, timeout: float | None = None) -> Transaction:
        """Begins a transaction.

        ``write``: a write transaction, one at a time over all processes; waits up to ``timeout`` seconds for the
        write lock (None: without limit; the lock of a killed process is released).
        Otherwise a snapshot: it sees what was committed when it began, and nothing later.
        ``latest``: not a snapshot; each read sees what is committed at that moment, durable or not.

        Raises Busy, LogFailed, LogCorrupt, DatabaseClosed.
        """
        self._must_be_open()
        if write and latest:
            raise ValueError("a write transaction sees the latest pages anyway: give write= or latest=, not both")
        return Transaction(self, self._engine, "write" if write else "latest" if latest else "snapshot", timeout)

    def _committed(self) -> None:
        """Makes a checkpoint after a commit, if the log has grown enough and no other process is making one."""
        state = self._engine.shared.current()
        if state.published - state.segment >= self._checkpoint_bytes:
            try:
                self._engine.checkpoint(timeout=0)
            except Busy:
                return  # another process makes one, or a page cannot be written yet: the next commit tries again
            except Exception as error:
                error.add_note("the transaction is committed and durable; only the checkpoint after it failed")
                raise

    def checkpoint(self) -> int:
        """Flushes every dirty page; returns the LSN from which recovery would start.

        Raises LogFailed, Busy, bufferpool.StoreError; the old log is kept then.
        """
        self._must_be_open()
        return self._engine.checkpoint()

    def check(self) -> list[str]:
        """Checks the database; returns the faults, one sentence each. It can run while others use the database.

        It checks every tree (order, levels, low and high keys, links, overflow
        chains), that every page is used exactly once or free, and the pool's own invariants.
        """
        self._must_be_open()
        with self.begin() as txn:
            found = check(txn)
        return found + [f"pool: {finding}" for finding in self._engine.pool.check()]

    def close(self) -> None:
        """Closes this handle. Open transactions are rolled back. The pool remains, warm.

        Raises BufferError while arrays over pages of the pool exist.
        """
        with self._state:
            if not self.closed:
                self._engine.close()
                self.closed = True

    def __enter__(self) -> "Database":
        return self

    def __exit__(self, kind: object, *exc: object) -> None:
        try:
            self.close()
        except BufferError:  # frames of the traceback hold pages: the handle is closed when the process ends
            if kind is None:
                raise

    def __repr__(self) -> str:
        return f"<Database {self.path!r}{' (closed)' if self.closed else ''}>"

    def __reduce__(self) -> tuple[object, ...]:
        return _reopen, (self.path, self._options)

    def _forked(self) -> None:
        """Closes the handle in the child of a fork, where its lock file is closed already."""
        self.closed = True


def _reopen(path: str, options: dict[str, object]) -> Database:
    return Database.open(path, **options)  # type: ignore[arg-type]


def _after_fork() -> None:
    for database in list(_open_databases):
        database._forked()


os.register_at_fork(after_in_child=_after_fork)
