"""SQLite databases over HTTP: the answers are those of the local file, and the pages of a query are fetched once."""

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fsspec")
pytest.importorskip("aiohttp")
apsw = pytest.importorskip("apsw")

from bufferpool.errors import RemoteChanged  # noqa: E402
from bufferpool.integrations.sqlite import connect  # noqa: E402

Options = Callable[..., dict[str, Any]]
POINT, SUM = "select name from person where id = ?", "select count(*), sum(length(name)) from person"


def database(path: Path, rows: int = 20_000, *, wal: bool = False, page_size: int = 4096) -> bytes:
    with sqlite3.connect(path) as made:
        made.execute(f"pragma page_size = {page_size}")
        made.execute(f"pragma journal_mode = {'wal' if wal else 'delete'}")
        made.execute("create table person (id integer primary key, name text)")
        made.executemany("insert into person values (?, ?)", ((n, f"person {n} " * 5) for n in range(rows)))
        made.execute("create index by_name on person (name)")
        made.commit()
        made.execute("pragma wal_checkpoint(truncate)")
    made.close()
    return path.read_bytes()


@pytest.mark.parametrize(("wal", "page_size"), [(False, 512), (False, 4096), (True, 4096), (False, 65536)])
def test_answers_are_those_of_the_local_file(
    origin: Any, options: Options, tmp_path: Path, wal: bool, page_size: int
) -> None:
    """Every size of page, also larger than a block, and a database in WAL mode, which SQLite opens without its -wal file."""
    url = origin.put("a.sqlite", database(tmp_path / "a.sqlite", 3000, wal=wal, page_size=page_size))
    with sqlite3.connect(tmp_path / "a.sqlite") as local:
        expected = [local.execute(SUM).fetchall(), local.execute("select * from person order by name").fetchall()]
    local.close()
    remote = connect(url, **options())
    assert [remote.execute(SUM).fetchall(), remote.execute("select * from person order by name").fetchall()] == expected
    with pytest.raises(apsw.ReadOnlyError):
        remote.execute("delete from person")
    remote.execute("create temp table t as select * from person; select count(*) from t").fetchall()
    remote.close()


def test_a_query_fetches_what_it_needs_and_once(origin: Any, options: Options, tmp_path: Path) -> None:
    data = database(tmp_path / "a.sqlite")
    url, given = origin.put("a.sqlite", data), options()
    first, second = connect(url, **given), connect(url, **given)
    assert first.execute(POINT, (17_777,)).fetchall() == [("person 17777 " * 5,)]
    assert 0 < origin.bytes_sent < len(data) / 2
    origin.forget()
    assert second.execute(POINT, (17_777,)).fetchall() == [("person 17777 " * 5,)]
    assert origin.bytes_sent == 0
    first.close()
    second.close()


def test_a_database_that_changes_while_it_is_open(origin: Any, options: Options, tmp_path: Path) -> None:
    """Pages of two versions are a corrupt database: the query raises, and a new connection has the new rows."""
    url = origin.put("a.sqlite", database(tmp_path / "a.sqlite"))
    given = options()
    old = connect(url, **given)
    assert old.execute(POINT, (1,)).fetchall() == [("person 1 " * 5,)]
    origin.put("a.sqlite", database(tmp_path / "b.sqlite", 21_000))
    with pytest.raises(RemoteChanged):
        old.execute(SUM).fetchall()
    old.close()
    new = connect(url, **given)
    assert new.execute("select count(*) from person").fetchall() == [(21_000,)]
    new.close()


def test_what_cannot_be_opened(origin: Any, options: Options) -> None:
    from integrations.origin import Origin

    with pytest.raises(FileNotFoundError):
        connect(f"{origin.url}/none", **options())
    with Origin(ranges=False) as whole, pytest.raises(ValueError, match="in parts"):
        connect(whole.put("a.sqlite", b"x" * 4096), **options())
    broken = connect(origin.put("b.sqlite", b"x" * 8192), **options())
    with pytest.raises(apsw.NotADBError):
        broken.execute("select 1 from sqlite_master").fetchall()
    broken.close()
