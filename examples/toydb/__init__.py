"""toydb: a small database engine on a bufferpool. README.md lists its modules in reading order."""

from toydb.database import Database
from toydb.errors import (
    Busy,
    Corrupt,
    DatabaseClosed,
    DatabaseNotFound,
    KeyExists,
    KeyTooLong,
    LogCorrupt,
    LogFailed,
    NoSuchTable,
    NotADatabase,
    PoolRemoved,
    PoolTaken,
    ReadOnly,
    SnapshotTooOld,
    TableExists,
    ToyDBError,
    TransactionEnded,
    TransactionError,
)
from toydb.transaction import Stats, Table, Transaction

__all__ = [
    "Busy",
    "Corrupt",
    "Database",
    "DatabaseClosed",
    "DatabaseNotFound",
    "KeyExists",
    "KeyTooLong",
    "LogCorrupt",
    "LogFailed",
    "NoSuchTable",
    "NotADatabase",
    "PoolRemoved",
    "PoolTaken",
    "ReadOnly",
    "SnapshotTooOld",
    "Stats",
    "Table",
    "TableExists",
    "ToyDBError",
    "Transaction",
    "TransactionEnded",
    "TransactionError",
]
