"""What the engine promises, one promise a test."""

import os
import pickle
import random
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bufferpool as bp
import toydb
from tests.conftest import WAIT, Threads, wait_until
from tests.toydb.conftest import OpenDatabase, lose_pool
from toydb import locks, page
from toydb.log import ALL
from toydb.page import max_key


def fill(db: toydb.Database, n: int, table: str = "t", size: int = 50) -> dict[bytes, bytes]:
    rows = {b"%06d" % i: b"%d" % i * size for i in range(n)}
    with db.begin(write=True) as txn:
        t = txn.table(table) if table in txn.tables() else txn.create_table(table)
        for key, value in rows.items():
            t.put(key, value)
    return rows


# ---- tables -------------------------------------------------------------------------


def test_tables_and_their_meta(db: toydb.Database) -> None:
    with db.begin(write=True) as txn:
        txn.create_table("b", b"schema").put(b"k", b"v")
        txn.create_table("a")
        with pytest.raises(toydb.TableExists):
            txn.create_table("a")
    with db.begin() as txn:
        assert txn.tables() == ["a", "b"]
        assert txn.table("b").meta == b"schema"
        assert txn.table("a").meta == b""
        with pytest.raises(toydb.NoSuchTable):
            txn.table("c")
    with db.begin(write=True) as txn:
        txn.table("b").set_meta(bytes(20_000))
        gone = txn.table("a")
        txn.drop_table("a")
        with pytest.raises(toydb.NoSuchTable):
            gone.get(b"x")
    with db.begin() as txn:
        assert txn.tables() == ["b"]
        assert txn.table("b").meta == bytes(20_000)
        assert txn.table("b").get(b"k") == b"v"


def test_get_put_insert_delete(db: toydb.Database) -> None:
    with db.begin(write=True) as txn:
        t = txn.create_table("t")
        t.insert(b"k", b"1")
        with pytest.raises(toydb.KeyExists):
            t.insert(b"k", b"2")
        t.put(b"k", b"3")
        t.put(b"", b"the empty key")
        assert (t.get(b"k"), t.get(b""), t.get(b"x")) == (b"3", b"the empty key", None)
        assert t.delete(b"k")
        assert not t.delete(b"k")
        assert list(t.scan()) == [(b"", b"the empty key")]


@pytest.mark.parametrize("size", [0, 1, 700, 820, 5000, 300_000])
def test_values_of_any_size_and_their_pages_come_back(db: toydb.Database, size: int) -> None:
    fill(db, 10)
    with db.begin() as txn:
        before = db_pages(txn)
    for _ in range(3):
        with db.begin(write=True) as txn:
            txn.table("t").put(b"large", os.urandom(size))
            txn.table("t").put(b"large", value := os.urandom(size))
        with db.begin() as txn:
            assert txn.table("t").get(b"large") == value
        with db.begin(write=True) as txn:
            assert txn.table("t").delete(b"large")
    with db.begin() as txn:
        n_pages, n_free = db_pages(txn)
        assert n_pages - n_free == before[0] - before[1]


def db_pages(txn: toydb.Transaction) -> tuple[int, int]:
    from toydb.transaction import MetaPage

    meta = MetaPage.load(txn.read(0))
    return meta.n_pages, meta.n_free


def test_keys_have_a_limit_that_fits(db: toydb.Database) -> None:
    longest = max_key(4096)
    with db.begin(write=True) as txn:
        t = txn.create_table("t")
        with pytest.raises(toydb.KeyTooLong):
            t.put(bytes(longest + 1), b"")
        rows = {}
        for i in random.Random(5).sample(range(600), 600):  # long keys that differ at their end, and at their beginning
            key = (b"%04d" % i).ljust(longest, b"x") if i % 2 else (b"%04d" % i).rjust(longest, b"x")
            rows[key] = b"v" * (i % 30)
            t.put(key, rows[key])
        assert list(t.scan()) == sorted(rows.items())
        for key in list(rows)[:500]:
            assert t.delete(key)
            del rows[key]
        assert list(t.scan()) == sorted(rows.items())


def test_pages_given_away_are_used_again(db: toydb.Database) -> None:
    fill(db, 3000)
    with db.begin() as txn:
        n_pages = db_pages(txn)[0]
    for _ in range(3):
        with db.begin(write=True) as txn:
            txn.drop_table("t")
        fill(db, 3000)
    with db.begin() as txn:
        assert db_pages(txn)[0] == n_pages


def test_deletes_merge(db: toydb.Database) -> None:
    rows = fill(db, 5000)
    with db.begin(write=True) as txn:
        t = txn.table("t")
        assert txn.read(t._root).level >= 1
        for key in list(rows)[:-10]:
            assert t.delete(key)
        assert txn.read(t._root).level == 0
        assert [key for key, _ in t.scan()] == sorted(rows)[-10:]


# ---- scans --------------------------------------------------------------------------


def test_ranges(db: toydb.Database) -> None:
    rows = fill(db, 500)
    keys = sorted(rows)
    rng = random.Random(1)
    with db.begin() as txn:
        t = txn.table("t")
        for _ in range(200):
            lo, hi = (rng.choice([None, rng.choice(keys), b"%06d5" % rng.randrange(500), b"", b"z"]) for _ in "ab")
            lo_open, hi_open, reverse = (rng.random() < 0.5 for _ in range(3))
            wanted = [
                key
                for key in keys
                if (lo is None or key > lo or (key == lo and not lo_open))
                and (hi is None or key < hi or (key == hi and not hi_open))
            ]
            found = [key for key, _ in t.scan(lo, hi, lo_open=lo_open, hi_open=hi_open, reverse=reverse)]
            assert found == (wanted[::-1] if reverse else wanted), (lo, hi, lo_open, hi_open, reverse)


@pytest.mark.parametrize("reverse", [False, True])
def test_a_scan_bears_changes_by_its_own_transaction(db: toydb.Database, reverse: bool) -> None:
    rows = fill(db, 2000)
    with db.begin(write=True) as txn:
        t = txn.table("t")
        seen, added = [], set()
        for i, (key, _) in enumerate(t.scan(reverse=reverse)):
            seen.append(key)
            t.delete(key)
            t.put(b"~%d" % i if reverse else b"!%d" % i, bytes(300))  # behind: not to be seen
            ahead = int(key[:6]) + (-5 if reverse else 5)
            if i % 3 == 0 and t.delete(b"%06d" % ahead):
                rows.pop(b"%06d" % ahead, None)
            if i % 7 == 0 and 0 < ahead < 2000:
                t.put(b"%06d+" % ahead, bytes(1500))
                added.add(b"%06d+" % ahead)
        assert seen == sorted({*rows, *added}, reverse=reverse)


# ---- transactions -------------------------------------------------------------------


def test_an_exception_rolls_back_and_a_block_commits(db: toydb.Database) -> None:
    rows = fill(db, 100)
    def fail() -> None:
        with db.begin(write=True) as txn:
            txn.table("t").put(b"x", b"y")
            txn.create_table("u")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    with db.begin(write=True) as txn:
        assert dict(txn.table("t").scan()) == rows
        assert txn.tables() == ["t"]
        txn.table("t").put(b"x", b"y")
        txn.rollback()
    with db.begin() as txn:
        assert dict(txn.table("t").scan()) == rows
        txn.commit()
        with pytest.raises(toydb.TransactionEnded):
            txn.table("t")


def test_a_reader_does_not_write(db: toydb.Database) -> None:
    fill(db, 1)
    for txn in (db.begin(), db.begin(latest=True)):
        with txn, pytest.raises(toydb.ReadOnly):
            txn.table("t").put(b"a", b"b")
    with pytest.raises(ValueError, match="not both"):
        db.begin(write=True, latest=True)


def test_savepoints(db: toydb.Database) -> None:
    rows = fill(db, 300)
    with db.begin(write=True) as txn:
        t = txn.table("t")
        t.put(b"a", b"1")
        first = txn.savepoint()
        for key in list(rows)[:250]:
            t.delete(key)
        u = txn.create_table("u")
        second = txn.savepoint()
        t.put(b"a", b"2")
        txn.drop_table("u")
        txn.rollback_to(second)
        assert t.get(b"a") == b"1"
        u.put(b"b", bytes(10_000))
        txn.release(second)
        with pytest.raises(toydb.TransactionError):
            txn.rollback_to(second)
        txn.rollback_to(first)
        assert dict(t.scan()) == {**rows, b"a": b"1"}
        with pytest.raises(toydb.NoSuchTable):
            u.get(b"b")
        txn.rollback_to(first)
        t.put(b"c", b"3")
        txn.release(first)
    with db.begin() as txn:
        assert dict(txn.table("t").scan()) == {**rows, b"a": b"1", b"c": b"3"}


def test_a_snapshot_stays_as_it_was(db: toydb.Database) -> None:
    seen = []
    for i in range(8):
        rows = fill(db, 400, size=i + 1)
        seen.append((db.begin(), rows))
    with db.begin(write=True) as txn:
        txn.drop_table("t")
    for _ in range(50):  # many versions, of which no snapshot needs any
        fill(db, 20, table="u", size=3)
    for txn, rows in seen:
        with txn:
            assert dict(txn.table("t").scan()) == rows
            assert dict(txn.table("t").scan(reverse=True)) == rows


def test_old_versions_are_bounded_by_the_snapshots(db: toydb.Database) -> None:
    fill(db, 10)
    with db.begin() as txn:
        for i in range(60):
            with db.begin(write=True) as other:
                other.table("t").put(b"000001", b"%d" % i)
        assert txn.table("t").get(b"000001") == b"1" * 50
        shared = db._engine.shared
        kept = [f for f in db.pool.frames() if f["space"] == shared.versions.index]
        assert len(kept) < 12


def test_snapshots_of_the_dead_do_not_count(db: toydb.Database, child: Any) -> None:
    def change(first: int, n: int) -> None:
        with db.begin(write=True) as txn:
            for i in range(first, first + n):
                txn.table("t").put(b"%06d" % i, os.urandom(700))

    with db.begin(write=True) as txn:
        t = txn.create_table("t")
        for i in range(500):
            t.put(b"%06d" % i, bytes(700))
    with db.begin() as mine:  # about 100 leaves of the table have five rows each
        before = dict(mine.table("t").scan())
        change(0, 250)
        victim = child(hold_a_snapshot, db, context="spawn")
        slot = wait_for_a_snapshot(db)
        change(0, 250)
        assert slot in db._engine.versions._live()
        victim.kill()
        change(250, 250)
        assert dict(mine.table("t").scan()) == before
        assert slot not in db._engine.versions._live()


def hold_a_snapshot(db: toydb.Database) -> None:
    with db.begin():
        time.sleep(WAIT)


def wait_for_a_snapshot(db: toydb.Database) -> int:
    """The LSN of a snapshot of another process, once there is one."""
    versions = db._engine.versions
    wait_until(lambda: len(set(versions._live()) - set(versions._mine)) == 1, "another process begins a snapshot")
    (lsn,) = set(versions._live()) - set(versions._mine)
    return lsn


def test_a_snapshot_that_is_too_old_says_so(db: toydb.Database) -> None:
    fill(db, 10_000)  # more pages than the version store has room for
    old = db.begin()
    fill(db, 10_000, size=51)
    with old, pytest.raises(toydb.SnapshotTooOld):
        list(old.table("t").scan())


def test_a_writer_waits_for_its_turn(open_db: OpenDatabase, threads: Threads) -> None:
    db, other = open_db(), open_db()
    with db.begin(write=True) as txn:
        txn.create_table("t")
        with pytest.raises(toydb.TransactionError):
            db.begin(write=True)

        def wait(handle: toydb.Database) -> None:
            with pytest.raises(toydb.Busy):
                handle.begin(write=True, timeout=0.02)

        threads.start(wait, db)
        threads.start(wait, other)
        threads.join()
        with pytest.raises(toydb.Busy):
            other.begin(write=True, timeout=0)
    with other.begin(write=True, timeout=10) as txn:
        txn.table("t").put(b"a", b"b")
    with db.begin() as txn:
        assert txn.table("t").get(b"a") == b"b"


def test_threads_share_a_handle(open_db: OpenDatabase, threads: Threads) -> None:
    db = open_db()
    with db.begin(write=True) as txn:
        txn.create_table("t").put(b"n", b"0")

    def count(handle: toydb.Database) -> None:
        for _ in range(25):
            with handle.begin(write=True) as txn:
                t = txn.table("t")
                t.put(b"n", b"%d" % (int(t.get(b"n") or b"") + 1))
            with handle.begin() as txn:
                assert int(txn.table("t").get(b"n") or b"") > 0

    for handle in (db, db, open_db()):
        threads.start(count, handle)
    threads.join()
    with db.begin() as txn:
        assert txn.table("t").get(b"n") == b"75"


def test_a_commit_is_one_sync_for_all_who_wait(db: toydb.Database, threads: Threads, monkeypatch: Any) -> None:
    fill(db, 1)
    engine, syncs, inside = db._engine, [], threading.Event()
    others = threading.Semaphore(0)
    sync = engine.log.sync

    def slow_sync(segment: int) -> None:
        syncs.append(segment)
        if len(syncs) == 1:
            inside.set()
            for _ in range(6):
                assert others.acquire(timeout=60)
        sync(segment)

    publish = engine.publish

    def telling_publish(*args: Any) -> Any:
        state = publish(*args)
        if inside.is_set():
            others.release()
        return state

    monkeypatch.setattr(engine.log, "sync", slow_sync)
    monkeypatch.setattr(engine, "publish", telling_publish)

    def put(i: int) -> None:
        with db.begin(write=True) as txn:
            txn.table("t").put(b"%d" % i, b"")

    threads.start(put, 0)
    assert inside.wait(60)
    for i in range(1, 7):
        threads.start(put, i)
    threads.join()
    assert len(syncs) == 2, "the first, and one for the six that came meanwhile"


def test_a_segment_is_durable_before_the_next_begins(db: toydb.Database, monkeypatch: Any) -> None:
    fill(db, 10)
    engine, steps = db._engine, []
    sync, create = engine.log.sync, engine.log.create
    monkeypatch.setattr(engine.log, "sync", lambda segment: (steps.append(("sync", segment)), sync(segment)))
    monkeypatch.setattr(engine.log, "create", lambda start: (steps.append(("create", start)), create(start)))
    with db.begin(write=True) as txn:
        txn.table("t").put(b"000000", b"new")
        old = engine.shared.current().segment
        lsn = engine.commit(txn._changed())  # appended, and not synced yet
        engine.rotate()
        txn.rollback()
    assert steps[:2] == [("sync", old), ("create", lsn)]


def test_nobody_sees_what_is_not_durable(db: toydb.Database, threads: Threads, monkeypatch: Any) -> None:
    fill(db, 3)
    engine, inside, go_on = db._engine, threading.Event(), threading.Event()
    sync = engine.log.sync

    def slow_sync(segment: int) -> None:
        inside.set()
        assert go_on.wait(60)
        sync(segment)

    monkeypatch.setattr(engine.log, "sync", slow_sync)

    def put() -> None:
        with db.begin(write=True) as txn:
            txn.table("t").put(b"000000", b"new")

    threads.start(put)
    assert inside.wait(60)
    db.pool.log_sync = None
    with db.begin() as txn:
        assert txn.table("t").get(b"000000") == b"0" * 50
    with db.begin(latest=True) as txn:
        assert txn.table("t").get(b"000000") == b"new"
    assert db.pool.flush() >= 0
    written = Path(db.path).read_bytes()
    assert b"new" not in written, "the flusher wrote a page that the log could lose"
    go_on.set()
    threads.join()
    with db.begin() as txn:
        assert txn.table("t").get(b"000000") == b"new"


# ---- readers without a lock -----------------------------------------------------------


def test_a_latest_reader_comes_through_while_pages_split_and_merge(open_db: OpenDatabase, threads: Threads) -> None:
    db, other = open_db(), open_db()
    stays = {b"%05d" % i: b"v" * 40 for i in range(0, 1200, 50)}
    with db.begin(write=True) as txn:
        t = txn.create_table("t")
        for key, value in stays.items():
            t.put(key, value)
    done = threading.Event()
    restarts = []

    def read() -> None:
        while not done.is_set():
            with other.begin(latest=True) as txn:
                t = txn.table("t")
                for key, value in stays.items():
                    assert t.get(key) == value, key
                found = [key for key, _ in t.scan(reverse=len(restarts) % 2 == 1) if key in stays]
                assert sorted(found) == sorted(stays)
                restarts.append(txn.stats.restarts)

    threads.start(read)
    for _ in range(4):
        for step in (put_all, delete_all):
            with db.begin(write=True) as txn:
                step(txn.table("t"), stays)
    done.set()
    threads.join()
    assert restarts


def put_all(t: toydb.Table, stays: dict[bytes, bytes]) -> None:
    for i in range(1200):
        key = b"%05d" % i
        if key not in stays:
            t.put(key, bytes(60))


def delete_all(t: toydb.Table, stays: dict[bytes, bytes]) -> None:
    for key, _ in t.scan():
        if key not in stays:
            t.delete(key)


def test_a_latest_reader_at_each_step_of_a_split(db: toydb.Database, monkeypatch: Any) -> None:
    """After each single page of a commit is published, every key is found, without starting over."""
    rows = fill(db, 300)
    engine, looks = db._engine, 0
    write_page = engine.write_page

    def look_after(page_no: int, image: bytes, lsn: int) -> None:
        nonlocal looks
        write_page(page_no, image, lsn)
        looks += 1
        with db.begin(latest=True) as txn:
            t = txn.table("t")
            for key in list(rows)[::7]:
                assert t.get(key) == rows[key]
            assert txn.stats.restarts == 0, f"page {page_no} was published too early"

    monkeypatch.setattr(engine, "write_page", look_after)
    with db.begin(write=True) as txn:
        t = txn.table("t")
        for i in range(300):
            t.put(b"%06d+" % i, bytes(90))
    assert looks > 10


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


def test_no_database(open_db: OpenDatabase, tmp_path: Path) -> None:
    with pytest.raises(toydb.DatabaseNotFound):
        open_db("none.db", create=False)
    (tmp_path / "text.db").write_text("Dear diary")
    with pytest.raises(toydb.NotADatabase):
        open_db("text.db")
    assert (tmp_path / "text.db").read_text() == "Dear diary"


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
    db.close()
    with open_db().begin() as txn:
        assert len(list(txn.table("t").scan())) == 10


def test_the_pool_of_somebody_else_is_left_alone(db: toydb.Database, tmp_path: Path, make_pool: Any) -> None:
    rows = fill(db, 10)
    other = make_pool("1MiB")
    other.scratch("orders", 5)
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
    numbers = {change[0] for record in db._engine.log.records(state.segment, state.segment) for change in record.changes}
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
    with open(db.path, "r+b") as file:
        file.seek(leaf * 4096 + 2000)
        file.write(b"rot")
    with db.begin() as txn:
        assert dict(txn.table("t").scan()) == rows
    assert db.pool.stats().repaired_pages == 1
    db.checkpoint()
    db._engine.space.drop()
    sound = Path(db.path).read_bytes()[leaf * 4096 + 2000 :][:3]
    for content in (b"rot", sound):
        with open(db.path, "r+b") as file:
            file.seek(leaf * 4096 + 2000)
            file.write(content)
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
    write_page = engine.write_page

    def interrupted(*args: Any) -> None:
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt
        write_page(*args)

    with monkeypatch.context() as patched:
        patched.setattr(engine, "write_page", interrupted)
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


# ---- the checker checks -------------------------------------------------------------------


def test_locks_exclude_and_end_with_their_holder(tmp_path: Path) -> None:
    a, b = (locks.LockFile(str(tmp_path / "lock")) for _ in "ab")
    assert a.take(5, 0)
    assert not b.take(5, 0.01)
    assert b.take(6, 0)
    a.close()
    assert b.take(5, 0)
    b.close()


def broken(db: toydb.Database, change: Any) -> list[str]:
    """What check() says of a database in which one page was changed, without a commit of it."""
    from toydb.check import check

    with db.begin(write=True) as txn:
        change(txn)
        txn.stats  # noqa: B018
        found = check(txn)
        txn.rollback()
    return found


def test_check_finds_what_is_wrong(db: toydb.Database) -> None:
    fill(db, 1000)
    with db.begin(write=True) as txn:
        txn.table("t").put(b"large", bytes(20_000))
        txn.create_table("u")
        txn.drop_table("u")
        root = txn.table("t")._root
        leaf = txn.read(root).child(1)
        assert check_is_clean(txn)

    def swap(txn: toydb.Transaction) -> None:
        p = txn.change(leaf)
        first, second = p.slot(0), p.slot(1)
        np.frombuffer(p.bytes, np.uint16, 2, 40)[:] = second, first

    def unlink(txn: toydb.Transaction) -> None:
        p = txn.change(leaf)
        p.right = 0
        p.store()

    def lose(txn: toydb.Transaction) -> None:
        txn.change(root).remove(1)

    def leak(txn: toydb.Transaction) -> None:
        txn.new(page.LEAF, root)

    def free_twice(txn: toydb.Transaction) -> None:
        txn.free(leaf)

    def garbage(txn: toydb.Transaction) -> None:
        p = txn.change(leaf)
        p.garbage += 8
        p.store()

    def overflow(txn: toydb.Transaction) -> None:
        last = txn.table("t")._tree()._descend(b"large")[-1]
        i, _ = last.find(b"large")
        txn.change(last.value(i)[2]).bytes[100] ^= 1

    expected = {
        swap: "keys do not grow", unlink: "right link", lose: "is lost", leak: "is lost", free_twice: "used 2 times",
        garbage: "do not add up", overflow: "do not match",
    }  # fmt: skip
    for change, finding in expected.items():
        found = broken(db, change)
        assert any(finding in line for line in found), (change.__name__, found)


def check_is_clean(txn: toydb.Transaction) -> bool:
    from toydb.check import check

    return check(txn) == []
