"""Transactions: the interface. (The engine behind it follows.)"""

from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType


@dataclass
class Stats:
    """What a transaction has cost so far."""

    pages: int = 0  # pages touched
    hits: int = 0  # of these, found in the pool
    misses: int = 0  # read from the file


class Table:
    """An ordered map from bytes to bytes, in one transaction."""

    name: str

    @property
    def meta(self) -> bytes:
        raise NotImplementedError

    def set_meta(self, meta: bytes) -> None:
        raise NotImplementedError

    def get(self, key: bytes) -> bytes | None:
        raise NotImplementedError

    def put(self, key: bytes, value: bytes) -> None:
        raise NotImplementedError

    def insert(self, key: bytes, value: bytes) -> None:
        raise NotImplementedError

    def delete(self, key: bytes) -> bool:
        raise NotImplementedError

    def scan(
        self,
        lo: bytes | None = None,
        hi: bytes | None = None,
        *,
        lo_open: bool = False,
        hi_open: bool = False,
        reverse: bool = False,
    ) -> Iterator[tuple[bytes, bytes]]:
        raise NotImplementedError


class Transaction:
    """A unit of work; made by ``Database.begin``."""

    stats: Stats

    def __enter__(self) -> "Transaction":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None) -> None:
        raise NotImplementedError

    def commit(self) -> None:
        raise NotImplementedError

    def rollback(self) -> None:
        raise NotImplementedError

    def create_table(self, name: str, meta: bytes = b"") -> Table:
        raise NotImplementedError

    def table(self, name: str) -> Table:
        raise NotImplementedError

    def drop_table(self, name: str) -> None:
        raise NotImplementedError

    def tables(self) -> list[str]:
        raise NotImplementedError

    def savepoint(self) -> int:
        raise NotImplementedError

    def rollback_to(self, savepoint: int) -> None:
        raise NotImplementedError

    def release(self, savepoint: int) -> None:
        raise NotImplementedError
