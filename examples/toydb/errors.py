"""Every error of toydb, in one tree.

::

    ToyDBError
    ├── DatabaseNotFound     (FileNotFoundError) no such file, and create=False
    ├── DatabaseClosed       (ValueError) the handle was closed, or belongs to the parent of a fork
    ├── NotADatabase         (ValueError) the file is something else, or has another page size
    ├── Busy                 (TimeoutError) another process writes for longer than the timeout
    ├── PoolRemoved          others still work with a pool that was removed from /dev/shm
    ├── PoolTaken            the pool of that name is used for something else
    ├── Corrupt              pages or the log contradict themselves
    │   └── LogCorrupt       the log has a gap: a part that was durable is missing
    ├── LogFailed            (OSError) the log could not be written or synced
    └── TransactionError
        ├── TransactionEnded (ValueError) it was committed or rolled back already
        ├── ReadOnly         (TypeError) a change in a read transaction
        ├── SnapshotTooOld   the versions that the snapshot needs had to make room
        ├── TableExists      (ValueError)
        ├── NoSuchTable      (LookupError)
        ├── KeyExists        (ValueError)
        └── KeyTooLong       (ValueError) a key takes at most about a fifth of a page

Wrong arguments raise ``ValueError`` or ``TypeError``; errors of the pool
(:mod:`bufferpool.errors`) pass through as they are.
"""


class ToyDBError(Exception):
    """The root of all operating errors."""


class DatabaseNotFound(ToyDBError, FileNotFoundError):
    """There is no such database."""


class DatabaseClosed(ToyDBError, ValueError):
    """The handle was closed, or was inherited by a fork."""


class NotADatabase(ToyDBError, ValueError):
    """The file is no database, or one of another page size."""


class Busy(ToyDBError, TimeoutError):
    """The lock was not free within the timeout."""


class PoolRemoved(ToyDBError):
    """Living processes work with a pool that has lost its name."""


class PoolTaken(ToyDBError):
    """The pool belongs to another database, or to no database."""


class Corrupt(ToyDBError):
    """The pages contradict themselves."""


class LogCorrupt(Corrupt):
    """A part of the log that was durable is missing or damaged."""


class LogFailed(ToyDBError, OSError):
    """The log cannot be written or synced."""


class TransactionError(ToyDBError):
    """One transaction."""


class TransactionEnded(TransactionError, ValueError):
    """It was committed or rolled back already."""


class ReadOnly(TransactionError, TypeError):
    """A change in a transaction that was begun for reading."""


class SnapshotTooOld(TransactionError):
    """Versions of pages that this snapshot needs had to make room for newer ones."""


class TableExists(TransactionError, ValueError):
    """The database has a table of this name."""


class NoSuchTable(TransactionError, LookupError):
    """The database has no table of this name."""


class KeyExists(TransactionError, ValueError):
    """The table has the key already."""


class KeyTooLong(TransactionError, ValueError):
    """The key does not fit."""
