"""Large commits beside snapshots.

A commit that replaced more pages than the version store holds dropped the versions that every new snapshot needed while
it was being published: of 167 scans beside such commits 102 were refused. If its process died meanwhile, every begin
and check failed until another transaction committed.
"""

import os
import signal
import threading

import pytest

import toydb
from toydb import points

from .conftest import OpenDatabase, fill

ROWS = 6000  # in some 300 pages; the version store of a pool of 2 MiB has 128


def change_all(db: toydb.Database, size: int) -> dict[bytes, bytes]:
    return fill(db, ROWS, size=size)


def scanned(db: toydb.Database) -> dict[bytes, bytes]:
    with db.begin() as txn:
        return dict(txn.table("t").scan())


def batches(db: toydb.Database) -> list[int]:
    return [batch.count for batch in db._engine.versions._spill.batches()]


def test_snapshots_work_while_a_large_commit_is_published(open_db: OpenDatabase, monkeypatch) -> None:
    """A reader scans at many moments of the publication; each scan sees all of the old rows."""
    db, reader = open_db(), open_db()
    old = change_all(db, 50)
    seen: list[dict[bytes, bytes]] = []
    publish = db._engine.publish_as_one

    def publish_as_one(*args: object) -> int:
        seen.append(scanned(reader))
        return publish(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(db._engine, "publish_as_one", publish_as_one)
    db._engine.most_as_one = 50
    new = change_all(db, 51)
    assert len(seen) >= 5
    assert all(rows == old for rows in seen)
    assert scanned(reader) == new
    assert batches(db) == [batches(db)[0]]
    assert batches(db)[0] > 100


@pytest.mark.parametrize(
    "place",
    ["spill.written", "versions.spilled", "publish.group", "publish.published:2", "publish.group:2", "publish.done"],
)
def test_a_large_commit_whose_process_died_starves_nobody(place: str, open_db: OpenDatabase) -> None:
    """Snapshots, scans and the check need nobody to commit; the next writer completes the commit."""
    db = open_db()
    old = change_all(db, 50)
    name, _, count = place.partition(":")
    child = os.fork()
    if child == 0:
        mine = toydb.Database.open(db.path, pool_name=db.pool.name)
        points.arm(name, int(count or 1))
        change_all(mine, 51)
        os._exit(1)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    for _ in range(3):
        assert scanned(db) == old
    assert db.check() == []
    with db.begin(write=True) as txn:
        txn.table("t").put(b"another", b"1")
    rows = scanned(db)
    assert len(rows) == ROWS + 1
    assert rows[b"000001"] == b"1" * 51
    assert db.check() == []


def test_a_long_snapshot_sees_its_rows_through_many_large_commits(db: toydb.Database) -> None:
    old = change_all(db, 50)
    with db.begin() as txn:
        for size in (51, 52, 53):
            change_all(db, size)
        assert dict(txn.table("t").scan()) == old
        assert len(batches(db)) >= 1
    change_all(db, 54)
    size = len(db._engine.shared.spill)
    for _ in range(3):  # the pages of batches that nobody needs are used again
        change_all(db, 55)
        change_all(db, 56)
    assert len(db._engine.shared.spill) <= 2 * size
    assert len(batches(db)) <= 2


def test_readers_beside_large_commits_are_never_refused(open_db: OpenDatabase) -> None:
    db, reader = open_db(), open_db()
    change_all(db, 50)
    wrong: list[str] = []
    done = threading.Event()

    def read() -> None:
        scans = 0
        while not done.is_set() or scans < 3:
            sizes = {len(value) // len(key.lstrip(b"0") or b"0") for key, value in scanned(reader).items()}
            if len(sizes) != 1:
                wrong.append(f"rows of several commits: {sizes}")
            scans += 1

    thread = threading.Thread(target=read)
    thread.start()
    try:
        for size in range(51, 57):
            change_all(db, size)
    finally:
        done.set()
        thread.join()
    assert wrong == []


def test_a_recovery_empties_the_spill_file(open_db: OpenDatabase) -> None:
    db = open_db()
    change_all(db, 50)
    new = change_all(db, 51)
    path = db.path
    pool = db.pool.path
    db.close()
    os.unlink(pool)
    again = open_db()
    assert scanned(again) == new
    assert batches(again) == []
    assert len(again._engine.shared.spill) == 0
    assert os.path.exists(f"{path}-spill")
