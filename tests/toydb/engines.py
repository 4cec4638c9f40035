"""The two engines that the contract and the SQL side are tested on, and what the tests of SQL share."""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import toydb
from tests.conftest import SHM, remove
from toydb.sql import Connection

from . import memengine

ENGINES = ("memory", "pages")
Opener = Callable[[], Any]


@contextmanager
def opener(engine: str, directory: Path) -> Iterator[Opener]:
    """A function that opens one and the same new database; it is checked and removed at the end."""
    path = directory / "test.db"
    if engine == "memory":
        yield lambda: memengine.Database.open(path)
        assert memengine.Database.open(path).check() == []
        memengine.forget(path)
        return
    name = f"toysql-{os.getpid()}-{abs(hash(str(path))) % 10**8}"
    opened: list[toydb.Database] = []

    def open_database() -> toydb.Database:
        opened.append(toydb.Database.open(path, capacity="8MiB", pool_name=name))
        return opened[-1]

    try:
        yield open_database
        with toydb.Database.open(path, pool_name=name) as database:
            assert database.check() == []
    finally:
        for database in opened:
            database.close()
        remove(SHM / name)


@pytest.fixture(params=ENGINES)
def connect(request, tmp_path):
    """A function that opens one more connection to the test's database. All are checked at the end."""
    with opener(request.param, tmp_path) as open_database:
        made = []

        def open_connection():
            made.append(Connection(open_database()))
            return made[-1]

        yield open_connection
        for connection in made:
            if connection.session.current is None:
                assert connection.check() == []
            connection.close()


@pytest.fixture
def con(connect):
    return connect()


def rows(connection, sql, *values):
    return connection.execute(sql, values).fetchall()


def plan(connection, sql):
    return [
        re.split(r"INDEX \d:", row[3])[-1]
        for row in rows(connection, "EXPLAIN QUERY PLAN " + sql, *"x" * sql.count("?"))
    ]


MANY = "WITH RECURSIVE up(n) AS (SELECT 1001 UNION ALL SELECT n + 1 FROM up WHERE n < 2000) SELECT n, n FROM up"


def fill(connection):
    connection.execute(
        """
        CREATE TABLE item(id INTEGER PRIMARY KEY, name TEXT, price REAL);
        CREATE TABLE line(orders INTEGER, number INTEGER, item INTEGER, PRIMARY KEY(orders, number));
        CREATE INDEX by_name ON item(name, price);
        """
    )
    with connection:
        connection.executemany(
            "INSERT INTO item VALUES(?, ?, ?)", [(n, f"name{n % 50}", n / 4) for n in range(1, 1001)]
        )
        connection.executemany("INSERT INTO line VALUES(?, ?, ?)", [(n // 5, n % 5, n) for n in range(1000)])
