"""Databases under pool names of their own, which end with the checker."""

import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import toydb
from tests.conftest import SHM, new_name, remove

from .engines import con, connect  # noqa: F401  (fixtures)

OpenDatabase = Callable[..., toydb.Database]


@pytest.fixture
def open_db(tmp_path: Path) -> Iterator[OpenDatabase]:
    """open_db(name="test.db", **options): a handle of the database; each name has a pool of its own."""
    opened: list[toydb.Database] = []
    pools: dict[str, str] = {}

    def open_one(name: str = "test.db", **options: Any) -> toydb.Database:
        options.setdefault("capacity", "2MiB")
        options["pool_name"] = pools.setdefault(name, new_name())
        opened.append(toydb.Database.open(tmp_path / name, **options))
        return opened[-1]

    yield open_one
    gc.collect()
    findings = []
    for db in opened:
        if not db.closed:
            findings += db.check()
            db.close()
    for name in pools.values():
        remove(SHM / name)
    assert findings == []


@pytest.fixture
def db(open_db: OpenDatabase) -> toydb.Database:
    return open_db()


def lose_pool(*databases: toydb.Database) -> None:
    """Closes the handles and removes their pool: the next to open recovers from the log."""
    path = databases[0].pool.path
    for database in databases:
        database.close()
    remove(Path(path))


def fill(db: toydb.Database, n: int, table: str = "t", size: int = 50) -> dict[bytes, bytes]:
    rows = {b"%06d" % i: b"%d" % i * size for i in range(n)}
    with db.begin(write=True) as txn:
        t = txn.table(table) if table in txn.tables() else txn.create_table(table)
        for key, value in rows.items():
            t.put(key, value)
    return rows
