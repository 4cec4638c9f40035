"""A database: opening, beginning transactions, checkpoints, closing."""

import os
import threading
import weakref

import numpy as np

import bufferpool as bp
from bufferpool._core import MAX_SPACES
from bufferpool.units import parse_size
from toydb.check import check
from toydb.engine import Engine
from toydb.errors import Busy, DatabaseClosed
from toydb.recovery import open_engine
from toydb.transaction import Kind, Transaction

LEAST_PAGES = 16

_open_databases: "weakref.WeakSet[Database]" = weakref.WeakSet()


class Database:
    """An open database. Any number of processes and threads may have it open at once.

    Beside the data file lie its log (``NAME-log.…``) and a lock file (``NAME-lock``);
    its pages are in the pool ``pool.name``, which stays when all have closed: the next to open
    the database finds it warm. After a fork the child opens the database anew.
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
        """Opens the database ``path``, and makes it if there is none and ``create`` says so.

        If its pool is still there, from other processes or from before, it is used as it is;
        else it is made, with ``capacity`` bytes for pages, and the database recovered
        into it. ``page_size`` counts for a new database, an old one keeps its own.
        ``checkpoint_bytes``: log after which a commit makes a checkpoint.

        Raises DatabaseNotFound, NotADatabase, PoolRemoved, PoolTaken, LogCorrupt, Busy, OSError, and the errors
        of the pool; ValueError for an option that cannot be.
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
        """The pool that has the pages. Its path is ``pool.path``, after closing too."""
        return self._engine.pool

    def _must_be_open(self) -> None:
        if self.closed:
            raise DatabaseClosed(f"{self.path} was closed here, or belongs to the parent of a fork; open it again")

    def begin(self, write: bool = False, *, latest: bool = False, timeout: float | None = None) -> Transaction:
        """Begins a transaction.

        ``write``: one at a time, over all processes; waits up to ``timeout`` seconds for its
        turn (None: as long as it takes; the turn of a process that is killed ends with it).
        Otherwise a snapshot: it sees what was committed when it began, and nothing later.
        ``latest``: no snapshot; each read sees what is committed by then, durable or not.

        Raises Busy, LogFailed, DatabaseClosed.
        """
        self._must_be_open()
        if write and latest:
            raise ValueError("a write transaction sees the latest pages anyway: give write= or latest=, not both")
        kind: Kind = "write" if write else "latest" if latest else "snapshot"
        if not write:
            return Transaction(self, self._engine, kind)
        self._engine.write_lock.take(timeout)
        try:
            self._engine.settle()
            return Transaction(self, self._engine, kind)
        except BaseException:
            self._engine.write_lock.release()
            raise

    def _misses(self) -> int:
        """Pages of the data file that the pool has read so far. (pool.stats() says so too, with everything else.)"""
        words = np.frombuffer(self._engine.pool.client.seg.counters(), np.uint64)
        return int(words[-2 * MAX_SPACES :][2 * self._engine.space.index + 1])

    def _committed(self) -> None:
        """After a commit: a checkpoint, if the log has grown enough and nobody is at it."""
        state = self._engine.shared.current()
        if state.committed - state.segment >= self._checkpoint_bytes:
            try:
                self._engine.checkpoint(timeout=0)
            except Busy:
                return  # somebody else's, or a page that cannot be written yet: the next commit tries again
            except Exception as error:
                error.add_note("the transaction is committed and durable; only the checkpoint after it failed")
                raise

    def checkpoint(self) -> int:
        """Writes every page that is dirty; returns the LSN from which recovery would start.

        Raises LogFailed, Busy, bufferpool.StoreError; the log is kept then.
        """
        self._must_be_open()
        return self._engine.checkpoint()

    def check(self) -> list[str]:
        """What is wrong with the database, in words; [] if nothing is. Usable while others work.

        Every tree: order, levels, keys within low and high key, links, overflow
        chains; every page used exactly once, or free; and the pool's own check.
        """
        self._must_be_open()
        with self.begin() as txn:
            found = check(txn)
        return found + [f"pool: {finding}" for finding in self._engine.pool.check()]

    def close(self) -> None:
        """Ends this handle. Transactions that are open are rolled back. The pool stays, warm.

        Raises BufferError while arrays look at pages of the pool.
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
        except BufferError:  # by pages in the traceback: then the handle ends with the process
            if kind is None:
                raise

    def __repr__(self) -> str:
        return f"<Database {self.path!r}{' (closed)' if self.closed else ''}>"

    def __reduce__(self) -> tuple[object, ...]:
        return _reopen, (self.path, self._options)

    def _forked(self) -> None:
        """In the child of a fork: the locks are the parent's, and must not outlive it here."""
        if not self.closed:
            self.closed = True
            self._engine.file.close()


def _reopen(path: str, options: dict[str, object]) -> Database:
    return Database.open(path, **options)  # type: ignore[arg-type]


def _after_fork() -> None:
    for database in list(_open_databases):
        database._forked()


os.register_at_fork(after_in_child=_after_fork)
