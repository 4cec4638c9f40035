"""What is there after closing, crashing, and errors of the disk."""

import gc
import os
import pickle
import random
from pathlib import Path
from typing import Any

import pytest

import bufferpool as bp
import toydb
from tests.conftest import ROOT, damage, remove
from tests.toydb.conftest import OpenDatabase, fill, lose_pool
from toydb.log import ALL

# ---- opening and recovery ---------------------------------------------------------------


def test_open_warm_and_cold(open_db: OpenDatabase) -> None:
    db = open_db()
    rows = fill(db, 1000)
    db.close()
    with pytest.raises(toydb.DatabaseClosed):
        db.begin()
    db = open_db(create=False)
    loads = db.pool.stats().loads
    with db.begin() as txn:
        assert dict(txn.table("t").scan()) == rows
    assert db.pool.stats().loads == loads, "a warm database reads nothing"
    lose_pool(db)
    db = open_db()
    with db.begin() as txn:
        assert dict(txn.table("t").scan()) == rows
    db.checkpoint()
    lose_pool(db)
    db = open_db()
    assert db.pool.stats().publishes == db.pool.stats().publishes
    with db.begin() as txn:
        assert dict(txn.table("t").scan()) == rows
        assert txn.stats.misses > 0


def test_a_database_that_is_dropped_keeps_no_descriptor(open_db: OpenDatabase) -> None:
    """The log and the lock file of a handle that was not closed remained open: two descriptors for each, until the process ended."""
    db = open_db()
    fill(db, 10)
    data = pickle.dumps(db)

    def drop_one() -> int:
        other = pickle.loads(data)
        with other.begin() as txn:
            assert len(list(txn.table("t").scan())) == 10
        other.itself = other  # only the garbage collector frees it
        del other, txn
        gc.collect()
        return len(os.listdir("/proc/self/fd"))

    before = drop_one()
    assert max(drop_one() for _ in range(5)) == before


def test_no_database(open_db: OpenDatabase, tmp_path: Path) -> None:
    with pytest.raises(toydb.DatabaseNotFound):
        open_db("none.db", create=False)
    (tmp_path / "text.db").write_text("Dear diary")
    with pytest.raises(toydb.NotADatabase):
        open_db("text.db")
    assert (tmp_path / "text.db").read_text() == "Dear diary"
    with pytest.raises(toydb.DatabaseNotFound, match="there is no folder"):
        open_db("nowhere/new.db")
    (tmp_path / "folder").mkdir()
    with pytest.raises(toydb.NotADatabase, match="is a folder"):
        open_db("folder")
    with pytest.raises(ValueError, match="at least 16 pages"):
        open_db("small.db", capacity="32KiB")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "text.db"]


def test_a_database_keeps_its_page_size(open_db: OpenDatabase) -> None:
    db = open_db(page_size=8192)
    rows = fill(db, 500)
    lose_pool(db)
    db = open_db(page_size=4096)
    assert db.pool.page_size == 8192
    with db.begin() as txn:
        assert dict(txn.table("t").scan()) == rows


def test_a_pool_that_lost_its_name_is_not_shared_by_half(open_db: OpenDatabase) -> None:
    db = open_db()
    fill(db, 10)
    os.unlink(db.pool.path)
    with pytest.raises(toydb.PoolRemoved):
        open_db()
    with pytest.warns(bp.PoolNameless):  # it writes what it has
        db.close()
    with open_db().begin() as txn:
        assert len(list(txn.table("t").scan())) == 10


def test_the_pool_of_somebody_else_is_left_alone(db: toydb.Database, tmp_path: Path, make_pool: Any) -> None:
    rows = fill(db, 10)
    other = make_pool("1MiB")
    other.open_scratch("orders", 5)
    for name in (db.pool.name, other.name):
        with pytest.raises(toydb.PoolTaken):
            toydb.Database.open(tmp_path / "other.db", pool_name=name)
    assert [space.name for space in other.stats().spaces] == ["orders"]
    with db.begin() as txn:
        assert dict(txn.table("t").scan()) == rows


def test_half_a_database_is_refused_and_its_pool_kept(open_db: OpenDatabase, tmp_path: Path) -> None:
    db = open_db()
    rows = fill(db, 10)
    db.checkpoint()
    fill(db, 10, table="u")
    pool = Path(db.pool.path)
    db.close()
    for path in (Path(db.path), next(tmp_path.glob("test.db-log*"))):
        path.rename(tmp_path / "moved")
        with pytest.raises(toydb.NotADatabase):
            open_db()
        assert pool.exists()
        (tmp_path / "moved").rename(path)
    with open_db().begin() as txn:
        assert dict(txn.table("t").scan()) == rows


def test_a_pool_of_other_files_is_not_believed(open_db: OpenDatabase, tmp_path: Path) -> None:
    """The files were put back from a copy while the pool lived on: what counts is the files."""
    db = open_db()
    rows = fill(db, 100)
    db.close()
    copies = {path: path.read_bytes() for path in tmp_path.glob("test.db*")}
    db = open_db()
    fill(db, 200, size=7)
    db.close()
    for path in tmp_path.glob("test.db*"):
        path.unlink()
    for path, content in copies.items():
        path.write_bytes(content)
    with open_db().begin() as txn:
        assert dict(txn.table("t").scan()) == rows


def test_a_torn_tail_is_cut_and_a_hole_in_the_log_is_not_ignored(open_db: OpenDatabase) -> None:
    db = open_db()
    rows = fill(db, 100)
    log = db._engine.log
    (segment,) = log.segments()
    lose_pool(db)
    with open(log.path(segment), "ab") as file:
        file.write(os.urandom(100))
    db = open_db()
    with db.begin() as txn:
        assert dict(txn.table("t").scan()) == rows
    with db._engine.write_lock.held():
        db._engine.rotate()
    fill(db, 100, size=2)
    assert len(log.segments()) == 2
    lose_pool(db)
    with open(log.path(segment), "r+b") as file:
        file.seek(-50, os.SEEK_END)
        file.write(os.urandom(8))
    with pytest.raises(toydb.LogCorrupt):
        open_db()


@pytest.mark.parametrize("how", ["cut", "removed"])
def test_a_log_that_another_program_spoils_takes_no_more_commits(open_db: OpenDatabase, how: str) -> None:
    """A commit after that was acknowledged: behind a hole, at which the recovery cut the log off, or in a file without a name."""
    db = open_db()
    rows = fill(db, 100)
    path = db._engine.log.path(db._engine.log.segments()[0])
    if how == "cut":
        os.truncate(path, os.path.getsize(path) - 50)
    else:
        os.unlink(path)
    for _ in range(2):
        with pytest.raises(toydb.LogCorrupt, match=f"another program has {how}"):
            db.begin(write=True)
        with pytest.raises(toydb.LogCorrupt, match=f"another program has {how}"):
            db.checkpoint()
    with db.begin() as txn:
        assert dict(txn.table("t").scan()) == rows


@pytest.mark.parametrize("change", [-5000, -100, 100])
def test_a_data_file_that_was_growing(open_db: OpenDatabase, change: int) -> None:
    """A power failure leaves a file whose last pages are there in part, or not at all."""
    db = open_db()
    rows = fill(db, 500)
    db.pool.flush()
    lose_pool(db)
    with open(db.path, "r+b") as file:
        file.truncate(os.path.getsize(db.path) + change)
    with open_db().begin() as txn:
        assert dict(txn.table("t").scan()) == rows


def test_pages_torn_in_the_file_are_whole_again(open_db: OpenDatabase) -> None:
    db = open_db()
    fill(db, 500)
    db.checkpoint()
    rows = fill(db, 500, size=60)
    db.pool.flush()
    state = db._engine.shared.current()
    numbers = {
        change.page_no for record in db._engine.log.records(state.segment, state.segment) for change in record.changes
    }
    assert len(numbers) > 5
    lose_pool(db)
    with open(db.path, "r+b") as file:
        for page_no in numbers:
            file.seek(page_no * 4096 + 512 * random.randrange(8))
            file.write(os.urandom(512))
    with open_db().begin() as txn:
        assert dict(txn.table("t").scan()) == rows


def test_a_page_damaged_in_the_file_is_repaired_from_the_log_or_reported(open_db: OpenDatabase) -> None:
    db = open_db()
    fill(db, 500)
    db.checkpoint()
    rows = fill(db, 500, size=60)
    with db.begin() as txn:
        root = txn.table("t")._root
        leaf = txn.read(root).child(0)
    db.pool.flush()
    db._engine.space.drop()
    damage(db.path, leaf * 4096 + 2000, b"rot")
    with db.begin() as txn:
        assert dict(txn.table("t").scan()) == rows
    assert db.pool.stats().repaired_pages == 1
    db.checkpoint()
    db._engine.space.drop()
    sound = Path(db.path).read_bytes()[leaf * 4096 + 2000 :][:3]
    for content in (b"rot", sound):
        damage(db.path, leaf * 4096 + 2000, content)
        with db.begin() as txn:
            if content == b"rot":
                with pytest.raises(bp.errors.PageCorrupt):
                    list(txn.table("t").scan())
            else:
                assert dict(txn.table("t").scan()) == rows


def test_the_log_is_bounded_by_checkpoints(open_db: OpenDatabase, tmp_path: Path) -> None:
    db = open_db(checkpoint_bytes="128KiB")
    for i in range(60):
        fill(db, 200, size=i + 1)
    log = sum(path.stat().st_size for path in tmp_path.glob("test.db-log*"))
    assert log < 1 << 20
    assert db.pool.stats().checkpoints > 3


def test_the_log_has_whole_pages_only_after_a_checkpoint(db: toydb.Database) -> None:
    fill(db, 200)
    db.checkpoint()
    for i in range(3):
        with db.begin(write=True) as txn:
            txn.table("t").put(b"000100", b"%05d" % i * 10)
    state = db._engine.shared.current()
    records = list(db._engine.log.records(state.segment, state.segment))
    bitmaps = [[bitmap for _, bitmap, _ in record.changes] for record in records]
    assert all(bitmap == ALL for bitmap in bitmaps[0])
    assert all(bitmap != ALL for bitmap in bitmaps[1] + bitmaps[2])


def test_a_full_disk_commits_nothing_and_harms_nothing(db: toydb.Database, monkeypatch: Any) -> None:
    rows = fill(db, 10)

    def no_space(fd: int, data: bytes, at: int) -> None:
        os.pwrite(fd, data[: len(data) // 2], at)
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("toydb.log.write_all", no_space)
        with pytest.raises(toydb.LogFailed), db.begin(write=True) as txn:
            txn.table("t").put(b"x", b"y")
    with db.begin(write=True) as txn:
        assert dict(txn.table("t").scan()) == rows
        txn.table("t").put(b"z", b"y")
    with db.begin() as txn:
        assert dict(txn.table("t").scan()) == {**rows, b"z": b"y"}


def test_after_a_sync_that_failed_nothing_is_called_durable(open_db: OpenDatabase, monkeypatch: Any) -> None:
    db = open_db()
    fill(db, 10)
    db.pool.log_sync = None

    def fail(fd: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr("os.fdatasync", fail)
        with pytest.raises(toydb.LogFailed), db.begin(write=True) as txn:
            txn.table("t").put(b"x", b"y")
    with pytest.raises(toydb.LogFailed):
        db.begin(write=True)
    with pytest.raises(toydb.LogFailed):
        db.checkpoint()
    with db.begin() as txn:
        assert txn.table("t").get(b"x") is None
    db.close()
    with open_db().begin(write=True) as txn:
        txn.table("t").put(b"x", b"w")


def test_an_exception_between_log_and_pool_is_made_good_by_the_next(open_db: OpenDatabase, monkeypatch: Any) -> None:
    db, other = open_db(), open_db()
    fill(db, 300)
    engine, left = db._engine, [3]
    engine.most_as_one = 4
    publish_as_one = engine.publish_as_one

    def interrupted(*args: Any) -> int:
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt
        return publish_as_one(*args)

    with monkeypatch.context() as patched:
        patched.setattr(engine, "publish_as_one", interrupted)
        txn = db.begin(write=True)
        for i in range(300):
            txn.table("t").put(b"%06d" % i, b"new")
        with pytest.raises(KeyboardInterrupt) as caught:
            txn.commit()
    assert "the next write transaction completes it" in caught.value.__notes__[0]
    with other.begin() as txn:
        assert b"new" not in dict(txn.table("t").scan()).values()
    with other.begin(write=True) as txn:
        assert set(dict(txn.table("t").scan()).values()) == {b"new"}
    with db.begin() as txn:
        assert set(dict(txn.table("t").scan()).values()) == {b"new"}


@pytest.mark.parametrize("capacity", ["256KiB", "1MiB"])
def test_a_commit_larger_than_the_pool(open_db: OpenDatabase, capacity: str) -> None:
    db = open_db(capacity=capacity)
    rows = {b"%06d" % i: os.urandom(900) for i in range(2000)}
    with db.begin(write=True) as txn:
        t = txn.create_table("t")
        for key, value in rows.items():
            t.put(key, value)
    with db.begin() as txn:
        assert dict(txn.table("t").scan()) == rows
    lose_pool(db)
    with open_db(capacity=capacity).begin() as txn:
        assert dict(txn.table("t").scan()) == rows


def test_the_readme(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    text = (ROOT / "examples" / "toydb" / "README.md").read_text()
    code = text.split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    try:
        exec(code, names)
    finally:
        remove(Path(names["db"].pool.path))
    printed = capsys.readouterr().out.splitlines()
    assert printed == ["b'12'", "[(b'pear', b'7')]", "[]"]


def test_pickle_and_fork(open_db: OpenDatabase) -> None:
    db = open_db()
    rows = fill(db, 10)
    with pickle.loads(pickle.dumps(db)) as other, other.begin() as txn:
        assert dict(txn.table("t").scan()) == rows
    txn = db.begin(write=True)
    pid = os.fork()
    if not pid:
        code = 1
        try:
            db.begin()
        except toydb.DatabaseClosed:
            with pickle.loads(pickle.dumps(db)) as mine:
                try:
                    mine.begin(write=True, timeout=0)
                except toydb.Busy:
                    code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    txn.table("t").put(b"x", b"y")
    txn.commit()
