"""What transactions promise: atomicity, snapshots, turns, durability, readers without a lock."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import toydb
from tests.conftest import WAIT, wait_until
from tests.support.children import Threads
from tests.toydb.conftest import OpenDatabase, fill
from toydb import locks

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
        assert slot in db._engine.versions.live()
        victim.kill()
        change(250, 250)
        assert dict(mine.table("t").scan()) == before
        assert slot not in db._engine.versions.live()


def hold_a_snapshot(db: toydb.Database) -> None:
    with db.begin():
        time.sleep(WAIT)


def wait_for_a_snapshot(db: toydb.Database) -> int:
    """The LSN of a snapshot of another process, once there is one beside an older one of this process."""
    live = db._engine.versions.live
    wait_until(lambda: len(live()) == 2, "another process begins a snapshot")
    return live()[-1]


def test_a_snapshot_that_is_too_old_says_so(db: toydb.Database) -> None:
    fill(db, 10_000)  # more pages than the version store has room for
    old = db.begin()
    for first in range(0, 10_000, 200):  # in commits that are small: the versions of a large one go to a file
        with db.begin(write=True) as txn:
            for n in range(first, first + 200):
                txn.table("t").put(b"%06d" % n, b"new" * 50)
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
    with other.begin(write=True, timeout=WAIT) as txn:
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
                assert others.acquire(timeout=WAIT)
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
    assert inside.wait(WAIT)
    for i in range(1, 7):
        threads.start(put, i)
    threads.join()
    assert len(syncs) == 2, "the first, and one for the six that came meanwhile"


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_waits_for_the_commit_once(db: toydb.Database, monkeypatch: Any, times: int) -> None:
    fill(db, 1)
    append = db._engine.log.append

    def interrupted(*args: Any) -> None:
        for _ in range(times):
            signal.raise_signal(signal.SIGINT)
        append(*args)

    txn = db.begin(write=True)
    txn.table("t").put(b"x", b"new")
    with monkeypatch.context() as patched:
        patched.setattr(db._engine.log, "append", interrupted)
        with pytest.raises(KeyboardInterrupt) as caught:
            txn.commit()
    assert txn.committed == (times == 1)
    assert caught.value.__notes__ == [f"the transaction {'is committed' if times == 1 else 'was rolled back'}"]
    with db.begin(write=True, timeout=0) as after:
        assert after.table("t").get(b"x") == (b"new" if times == 1 else None)


def _begin_and_roll_back(db: toydb.Database) -> None:
    db.begin(write=True).rollback()


def _put(db: toydb.Database) -> None:
    with db.begin(write=True) as txn:
        txn.table("t").put(b"000000", db.path.encode() + os.urandom(4))


class Raised(BaseException):
    """What the handler of a signal raises, as that of Celery's time limit does."""


def _raise_at(moment: int, what: Callable[[], None]) -> bool:
    """Calls ``what``, and raises in its ``moment``-th call, or after it: there Python calls handlers. False: it has fewer calls."""
    calls = 0

    def count(_frame: FrameType, event: str, _of: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_return")
        if calls == moment and event in ("call", "c_return"):
            raise Raised

    try:
        sys.setprofile(count)
        what()
    except Raised:
        return True
    finally:
        sys.setprofile(None)
    return calls >= moment  # what __del__ raises is lost


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("what", [_begin_and_roll_back, _put])
def test_an_exception_of_a_handler_leaves_no_lock_behind(open_db: OpenDatabase, what: Callable[..., None]) -> None:
    """It left the write lock taken, until the handle was closed, if it came between the locking and the return of begin();

    and Ctrl-C without effect, if it came when commit() had just put it off.
    """
    db, other = open_db(), open_db()
    fill(db, 1)
    moment = 1
    while _raise_at(moment, lambda: what(db)):
        for handle in (other, db):
            handle.begin(write=True, timeout=0).rollback()
            for lock in (handle._engine.sync_lock, handle._engine.checkpoint_lock):
                with lock.held(0):
                    pass
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        moment += 1
    assert moment > 40
    with db.begin() as txn:
        assert [key for key, _ in txn.table("t").scan()] == [b"000000"]


def test_threads_of_a_handle_get_their_turn_in_order(db: toydb.Database, threads: Threads) -> None:
    """Who released the lock took it again: a thread that polls kept a thread that commits away for seconds."""
    fill(db, 1)
    turns: list[str] = []

    def turn(name: str) -> None:
        with db.begin(write=True):
            turns.append(name)

    waiting = db._engine.write_lock._waiting
    txn = db.begin(write=True)
    for count, name in enumerate("bcd", 1):
        threads.start(turn, name)
        wait_until(lambda count=count: len(waiting) == count, "it waits")
    with pytest.raises(toydb.TransactionError, match="already"):
        db.begin(write=True)
    txn.rollback()
    turn("a")
    threads.join()
    assert turns == ["b", "c", "d", "a"]


def test_close_ends_the_wait_of_another_thread(db: toydb.Database, threads: Threads) -> None:
    fill(db, 1)
    outcomes: list[BaseException] = []

    def wait() -> None:
        try:
            db.begin(write=True)
        except toydb.DatabaseClosed as error:
            outcomes.append(error)

    txn = db.begin(write=True)
    threads.start(wait)
    wait_until(lambda: len(db._engine.write_lock._waiting) == 1, "it waits")
    db.close()
    threads.join()
    assert len(outcomes) == 1
    txn.rollback()


def test_a_child_of_a_fork_during_open_keeps_no_lock(tmp_path: Path) -> None:
    """It had the lock file of a database that was not open yet: when the parent was killed, its locks lived on in the child."""
    file = locks.LockFile(str(tmp_path / "lock"))
    assert file.take(locks.WRITE, 0)
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(send, b"closed" if file.fd < 0 else b"open!!")
        os._exit(0)
    assert os.read(receive, 6) == b"closed"
    os.waitpid(child, 0)
    other = locks.LockFile(str(tmp_path / "lock"))
    assert not other.take(locks.WRITE, 0)  # the parent has it still
    file.close()
    assert other.take(locks.WRITE, 0)
    other.close()
    os.close(receive)
    os.close(send)


def test_a_handler_may_begin_while_the_lock_changes_hands(db: toydb.Database, monkeypatch: Any) -> None:
    """As may the end of a dropped transaction, which the garbage collector calls anywhere: the thread would wait for itself."""
    fill(db, 1)
    release, refused = db._engine.file.release, []

    def interrupted(byte: int) -> None:
        if byte == locks.WRITE:
            with pytest.raises(toydb.TransactionError):
                db.begin(write=True, timeout=0)
            refused.append(byte)
        release(byte)

    monkeypatch.setattr(db._engine.file, "release", interrupted)
    with db.begin(write=True) as txn:
        txn.table("t").put(b"x", b"y")
    monkeypatch.undo()
    assert refused == [locks.WRITE]
    db.begin(write=True, timeout=0).rollback()


def test_a_segment_is_durable_before_the_next_begins(db: toydb.Database, monkeypatch: Any) -> None:
    fill(db, 10)
    engine, steps = db._engine, []
    sync, create = engine.log.sync, engine.log.create
    monkeypatch.setattr(engine.log, "sync", lambda segment: (steps.append(("sync", segment)), sync(segment)))
    monkeypatch.setattr(engine.log, "create", lambda start: (steps.append(("create", start)), create(start)))
    with db.begin(write=True) as txn:
        txn.table("t").put(b"000000", b"new")
        old = engine.shared.current().segment
        state, lsn = engine.append(pages := txn._changed())
        engine.complete(state, pages, lsn)  # and not synced yet
        engine.rotate()
        txn.rollback()
    assert steps[:2] == [("sync", old), ("create", lsn)]


def test_nobody_sees_what_is_not_durable(db: toydb.Database, threads: Threads, monkeypatch: Any) -> None:
    fill(db, 3)
    engine, inside, go_on = db._engine, threading.Event(), threading.Event()
    sync = engine.log.sync

    def slow_sync(segment: int) -> None:
        inside.set()
        assert go_on.wait(WAIT)
        sync(segment)

    monkeypatch.setattr(engine.log, "sync", slow_sync)

    def put() -> None:
        with db.begin(write=True) as txn:
            txn.table("t").put(b"000000", b"new")

    threads.start(put)
    assert inside.wait(WAIT)
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
    """After each single page of a commit is published, as of one that is too large for a group, every key is found."""
    rows = fill(db, 300)
    engine, looks = db._engine, 0
    engine.most_as_one = 1
    publish_as_one = engine.publish_as_one

    def look_after(pages: list[tuple[int, bytearray]], lsn: int) -> int:
        nonlocal looks
        done = publish_as_one(pages, lsn)
        looks += 1
        with db.begin(latest=True) as txn:
            t = txn.table("t")
            for key in list(rows)[::7]:
                assert t.get(key) == rows[key]
            assert txn.stats.restarts == 0, f"page {pages[0][0]} was published too early"
        return done

    monkeypatch.setattr(engine, "publish_as_one", look_after)
    with db.begin(write=True) as txn:
        t = txn.table("t")
        for i in range(300):
            t.put(b"%06d+" % i, bytes(90))
    assert looks > 10
