"""The database: the interface. (The engine behind it follows.)"""

import os

from toydb.transaction import Transaction


class Database:
    """An open database. Any number of processes and threads may have it open at once."""

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        capacity: int | str = "64MiB",
        create: bool = True,
        pool_name: str | None = None,
        page_size: int = 4096,
    ) -> "Database":
        raise NotImplementedError

    def begin(self, write: bool = False, *, timeout: float | None = None) -> Transaction:
        raise NotImplementedError

    def checkpoint(self) -> int:
        raise NotImplementedError

    def check(self) -> list[str]:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError
