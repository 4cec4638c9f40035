"""Every error of toydb, in one tree.

::

    ToyDBError
    ├── DatabaseNotFound     (FileNotFoundError) no such file, and create=False
    ├── DatabaseClosed       (ValueError) the handle was closed, or belongs to the parent of a fork
    ├── NotADatabase         (ValueError) the file is something else, or one of the database's files is missing
    ├── Busy                 (TimeoutError) another process has a lock for longer than the timeout
    ├── PoolRemoved          other processes still use a pool whose name was removed
    ├── PoolTaken            the pool of that name is used for something else
    ├── Corrupt              pages or the log contradict themselves
    │   └── LogCorrupt       a durable part of the log is missing or damaged
    ├── LogFailed            (OSError) the log could not be written or synced
    └── TransactionError
        ├── TransactionEnded (ValueError) it was committed or rolled back already
        ├── ReadOnly         (TypeError) a change in a read transaction
        ├── SnapshotTooOld   a page version that the snapshot needs was dropped
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
    """The file is no database, or another file of the database is missing."""


class Busy(ToyDBError, TimeoutError):
    """The lock was not free within the timeout."""


class PoolRemoved(ToyDBError):
    """Other processes still use a pool whose name was removed."""


class PoolTaken(ToyDBError):
    """The pool belongs to another database, or to no database."""


class Corrupt(ToyDBError):
    """The pages contradict themselves."""


class LogCorrupt(Corrupt):
    """A part of the log that was durable is missing or damaged."""


class LogFailed(ToyDBError, OSError):
    """The log cannot be written or synced."""


class TransactionError(ToyDBError):
    """An error of one transaction; the database is not affected."""


class TransactionEnded(TransactionError, ValueError):
    """It was committed or rolled back already."""


class ReadOnly(TransactionError, TypeError):
    """A change in a transaction that was begun for reading."""


class SnapshotTooOld(TransactionError):
    """Page versions that this snapshot needs were dropped to keep newer ones."""


class TableExists(TransactionError, ValueError):
    """The database has a table of this name."""


class NoSuchTable(TransactionError, LookupError):
    """The database has no table of this name."""


class KeyExists(TransactionError, ValueError):
    """The table has the key already."""


class KeyTooLong(TransactionError, ValueError):
    """The key does not fit."""
