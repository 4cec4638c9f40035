"""The engine's interface over dictionaries: what toydb means, without pages, log or crash.

The contract tests run over this and over the real engine, so that the SQL side can be
tested on either. A database lives as long as the process, under its path.
"""

import bisect
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType

from toydb import errors

MOST_KEY_BYTES = 800


@dataclass
class Stats:
    pages: int = 0
    hits: int = 0
    misses: int = 0


class _Tree:
    """One table's rows; never changed once committed, but replaced by a copy."""

    def __init__(self, meta: bytes = b"", rows: dict[bytes, bytes] | None = None) -> None:
        self.meta = meta
        self.rows = {} if rows is None else rows
        self.keys = sorted(self.rows)

    def copy(self) -> "_Tree":
        return _Tree(self.meta, dict(self.rows))


class _Shared:
    def __init__(self) -> None:
        self.trees: dict[str, _Tree] = {}
        self.version = 0
        self.writer = threading.Lock()
        self.owner = 0  # the thread that writes


_databases: dict[str, _Shared] = {}


def forget(path: str | os.PathLike[str]) -> None:
    """Remove a database."""
    del _databases[os.path.abspath(os.fspath(path))]


class Database:
    def __init__(self, shared: _Shared) -> None:
        self._shared = shared
        self._closed = False

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, create: bool = True, **_options: object) -> "Database":
        name = os.path.abspath(os.fspath(path))
        if name not in _databases and not create:
            raise errors.DatabaseNotFound(f"{name}: no such database")
        return cls(_databases.setdefault(name, _Shared()))

    def begin(self, write: bool = False, *, timeout: float | None = None) -> "Transaction":
        if self._closed:
            raise errors.DatabaseClosed("this database was closed")
        if write and self._shared.owner == threading.get_ident():
            raise errors.TransactionError("this thread writes already")
        if write and not self._shared.writer.acquire(timeout=-1 if timeout is None else timeout):
            raise errors.Busy("another transaction writes")
        if write:
            self._shared.owner = threading.get_ident()
        return Transaction(self._shared, write)

    def checkpoint(self) -> int:
        return self._shared.version

    def check(self) -> list[str]:
        return [f"{name}: keys" for name, tree in self._shared.trees.items() if tree.keys != sorted(tree.rows)]

    def close(self) -> None:
        self._closed = True


class Transaction:
    def __init__(self, shared: _Shared, write: bool) -> None:
        self.stats = Stats()
        self.snapshot = shared.version
        self._shared = shared
        self._write = write
        self._trees = dict(shared.trees)
        self._own: set[str] = set()  # the trees that are private copies
        self._savepoints: list[tuple[int, dict[str, _Tree]]] = []
        self._number = 0
        self._ended = False

    def __enter__(self) -> "Transaction":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self._ended:
            return
        if kind is None:
            self.commit()
        else:
            self.rollback()

    def commit(self) -> None:
        self._running()
        self._ended = True
        if self._write:
            if self._trees != self._shared.trees:
                self._shared.trees = self._trees
                self._shared.version += 1
            self._release()

    def rollback(self) -> None:
        self._running()
        self._ended = True
        if self._write:
            self._release()

    def pause(self) -> None:
        self.rollback()

    def resume(self) -> bool:
        return False

    def _release(self) -> None:
        self._shared.owner = 0
        self._shared.writer.release()

    def create_table(self, name: str, meta: bytes = b"") -> "Table":
        self._writing()
        if name in self._trees:
            raise errors.TableExists(f"table {name} exists")
        self._trees[name] = _Tree(meta)
        self._own.add(name)
        return Table(self, name)

    def table(self, name: str) -> "Table":
        self._running()
        if name not in self._trees:
            raise errors.NoSuchTable(f"no such table: {name}")
        return Table(self, name)

    def drop_table(self, name: str) -> None:
        self._writing()
        self.table(name)
        del self._trees[name]
        self._own.discard(name)

    def rename_table(self, name: str, new: str) -> "Table":
        self._writing()
        self.table(name)
        if new in self._trees:
            raise errors.TableExists(f"table {new} exists")
        self._trees[new] = self._trees.pop(name)
        self._own.discard(name)
        return Table(self, new)

    def tables(self) -> list[str]:
        self._running()
        return sorted(self._trees)

    def savepoint(self) -> int:
        self._writing()
        self._number += 1
        self._savepoints.append((self._number, dict(self._trees)))
        self._own.clear()
        return self._number

    def rollback_to(self, savepoint: int) -> None:
        self._writing()
        self._cut(savepoint)
        self._trees = dict(self._savepoints[-1][1])
        self._own.clear()

    def release(self, savepoint: int) -> None:
        self._writing()
        self._cut(savepoint)
        self._savepoints.pop()

    def renew(self, savepoint: int) -> None:
        self.release(savepoint)
        self._savepoints.append((savepoint, dict(self._trees)))
        self._own.clear()

    def _cut(self, savepoint: int) -> None:
        numbers = [number for number, _ in self._savepoints]
        if savepoint not in numbers:
            raise ValueError(f"no savepoint {savepoint}")
        del self._savepoints[numbers.index(savepoint) + 1 :]

    def _running(self) -> None:
        if self._ended:
            raise errors.TransactionEnded("this transaction has ended")

    def _writing(self) -> None:
        self._running()
        if not self._write:
            raise errors.ReadOnly("this transaction only reads: begin(write=True)")

    def _to_read(self, name: str) -> _Tree:
        self._running()
        self.stats.pages += 1
        self.stats.hits += 1
        return self._trees[name]

    def _to_write(self, name: str) -> _Tree:
        self._writing()
        if name not in self._own:
            self._trees[name] = self._trees[name].copy()
            self._own.add(name)
        return self._trees[name]


class Table:
    def __init__(self, txn: Transaction, name: str) -> None:
        self._txn = txn
        self.name = name

    @property
    def meta(self) -> bytes:
        return self._txn._to_read(self.name).meta

    def set_meta(self, meta: bytes) -> None:
        self._txn._to_write(self.name).meta = meta

    def get(self, key: bytes) -> bytes | None:
        return self._txn._to_read(self.name).rows.get(key)

    def put(self, key: bytes, value: bytes) -> None:
        if len(key) > MOST_KEY_BYTES:
            raise errors.KeyTooLong(f"a key of {len(key)} bytes")
        tree = self._txn._to_write(self.name)
        if key not in tree.rows:
            bisect.insort(tree.keys, key)
        tree.rows[key] = value

    def insert(self, key: bytes, value: bytes) -> None:
        if self.get(key) is not None:
            raise errors.KeyExists(f"key {key!r} exists in {self.name}")
        self.put(key, value)

    def delete(self, key: bytes) -> bool:
        if self.get(key) is None:
            return False
        tree = self._txn._to_write(self.name)
        del tree.rows[key]
        del tree.keys[bisect.bisect_left(tree.keys, key)]
        return True

    def estimate(self, lo: bytes | None = None, hi: bytes | None = None) -> int:
        return sum(1 for _ in self.scan(lo, hi, hi_open=True))

    def scan(
        self,
        lo: bytes | None = None,
        hi: bytes | None = None,
        *,
        lo_open: bool = False,
        hi_open: bool = False,
        reverse: bool = False,
    ) -> Iterator[tuple[bytes, bytes]]:
        """Sees what the transaction changes ahead of it, as a scan over pages does."""
        low, high = (b"" if lo is None else lo), hi
        while True:
            tree = self._txn._to_read(self.name)
            first = (bisect.bisect_right if lo_open else bisect.bisect_left)(tree.keys, low)
            last = len(tree.keys)
            if high is not None:
                last = (bisect.bisect_left if hi_open else bisect.bisect_right)(tree.keys, high)
            if first >= last:
                return
            key = tree.keys[last - 1 if reverse else first]
            yield key, tree.rows[key]
            if reverse:
                high, hi_open = key, True
            else:
                low, lo_open = key, True

    def scan_leaves(
        self, lo: bytes | None = None, hi: bytes | None = None, *, hi_open: bool = False, reverse: bool = False
    ) -> Iterator[tuple[list[bytes], list[bytes]]]:
        return (([key], [value]) for key, value in self.scan(lo, hi, hi_open=hi_open, reverse=reverse))
