"""What a handle remembers to be fast: its last snapshot, the roots of tables, inner pages. None of it may be out of date."""

import gc
import os
import random

import pytest

import toydb

from .conftest import OpenDatabase, fill


def test_a_snapshot_between_two_commits_writes_nothing(db: toydb.Database) -> None:
    """Each snapshot wrote its slot twice, which took a quarter of the time of a get."""
    rows = fill(db, 100)
    with db.begin() as txn:
        assert txn.table("t").get(b"000001") == rows[b"000001"]
    before = db.pool.stats().publishes
    for _ in range(50):
        with db.begin() as txn:
            assert txn.table("t").get(b"000001") == rows[b"000001"]
    assert db.pool.stats().publishes == before
    with db.begin(write=True) as txn:
        txn.table("t").put(b"000001", b"new")
    with db.begin() as txn:
        assert txn.table("t").get(b"000001") == b"new"


def test_a_handle_without_a_transaction_keeps_no_old_version(open_db: OpenDatabase) -> None:
    """Each snapshot is in use from its begin to its end, for every handle, and several at one LSN are one until the last has ended."""
    db, other = open_db(), open_db()
    fill(db, 100)
    with other.begin() as txn:
        assert len(list(txn.table("t").scan())) == 100
        used = txn.snapshot
        assert used in db._engine.versions.live()
        with other.begin() as second:
            assert second.snapshot == used
        assert used in db._engine.versions.live()
    assert db._engine.versions.live() == other._engine.versions.live() == []
    with db.begin(write=True) as txn:
        txn.table("t").put(b"x", b"y")
    with other.begin() as txn:
        assert txn.snapshot > used
        assert txn.table("t").get(b"x") == b"y"
        assert txn.snapshot in db._engine.versions.live()
    assert db._engine.versions.live() == []


def test_a_handle_with_too_many_snapshots_is_busy(db: toydb.Database) -> None:
    """Corner: the pool has room for 32 LSNs of one client. Snapshots at an LSN that is in use need none."""
    fill(db, 10)
    open_ones = []
    for i in range(32):
        open_ones.append(db.begin())
        with db.begin(write=True) as txn:
            txn.table("t").put(b"x", b"%d" % i)
    with pytest.raises(toydb.Busy, match="32"):
        db.begin()
    open_ones.pop().rollback()
    with db.begin() as txn, db.begin() as same:
        assert same.table("t").get(b"x") == txn.table("t").get(b"x") == b"31"
    for txn in open_ones:
        txn.rollback()
    assert db._engine.versions.live() == []


def test_a_handle_with_a_snapshot_keeps_it_while_others_of_it_end(open_db: OpenDatabase) -> None:
    db, other = open_db(), open_db()
    rows = fill(db, 2000)
    long = other.begin()
    for i in range(40):
        with db.begin(write=True) as txn:
            for key in list(rows)[i * 50 : i * 50 + 50]:
                txn.table("t").put(key, b"new")
        with other.begin() as short:
            assert short.table("t").get(list(rows)[i * 50]) == b"new"
    with long:
        assert dict(long.table("t").scan()) == rows


def test_a_begin_that_fails_holds_no_snapshot(db: toydb.Database, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(db, 10)
    versions = db._engine.versions
    for answers in ([], [versions.shared.visible()]):  # it fails before the snapshot is entered, and after it
        with monkeypatch.context() as patched:
            patched.setattr(versions.shared, "visible", lambda left=answers: left.pop() if left else 1 / 0)
            with pytest.raises(ZeroDivisionError):
                db.begin()
        assert versions.live() == []


def test_a_begin_that_is_overtaken_by_a_commit_begins_again(
    db: toydb.Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A writer that looked for snapshots before this one was entered keeps nothing for it. So the reader looks again whether its
    LSN is still the newest."""
    fill(db, 10)
    versions, shared = db._engine.versions, db._engine.shared
    true = shared.visible()
    answers = [true, true, true, true - 8]  # from the end: the old one, and then the newest
    monkeypatch.setattr(shared, "visible", lambda: answers.pop())
    assert versions.begin() == true
    assert answers == []
    assert versions.live() == [true]
    versions.end(true)
    monkeypatch.undo()
    with db.begin() as txn:
        assert len(list(txn.table("t").scan())) == 10


def test_a_table_that_was_dropped_and_made_anew_elsewhere(open_db: OpenDatabase) -> None:
    """Its root may be another page, or the same page in another version; each snapshot sees its own table."""
    db, other = open_db(), open_db()
    for round in range(6):
        rows = fill(db, 5 + 400 * (round % 2), size=round + 1)
        with other.begin() as txn:
            assert dict(txn.table("t").scan()) == rows
        old, latest = other.begin(), other.begin(latest=True)
        with db.begin(write=True) as txn:
            txn.drop_table("t")
            if round % 3 == 1:
                txn.create_table("u" * round)
            txn.create_table("t", b"%d" % round).put(b"only", b"this")
        with other.begin() as txn:
            assert dict(txn.table("t").scan()) == {b"only": b"this"}
            assert txn.table("t").meta == b"%d" % round
        assert dict(old.table("t").scan()) == rows
        assert dict(latest.table("t").scan()) == {b"only": b"this"}
        old.rollback()
        latest.rollback()
        with db.begin(write=True) as txn:
            txn.drop_table("t")
        with other.begin() as txn, pytest.raises(toydb.NoSuchTable):
            txn.table("t")


def test_a_table_that_this_transaction_changes(db: toydb.Database) -> None:
    rows = fill(db, 10)
    with db.begin(write=True) as txn:
        saved = txn.savepoint()
        txn.table("t").set_meta(b"mine")
        assert txn.table("t").meta == b"mine"
        txn.drop_table("t")
        with pytest.raises(toydb.NoSuchTable):
            txn.table("t")
        assert txn.create_table("t")._root
        txn.rollback_to(saved)
        assert dict(txn.table("t").scan()) == rows
        assert txn.table("t").meta == b""
        txn.table("t").set_meta(b"theirs")
        txn.rollback()
    with db.begin() as txn:
        assert txn.table("t").meta == b""


@pytest.mark.parametrize("key_size", [6, 300])
def test_inner_pages_that_another_handle_splits_and_merges(open_db: OpenDatabase, key_size: int) -> None:
    db, other = open_db(capacity="8MiB"), open_db()
    rng, rows = random.Random(key_size), fill(db, 1)
    for round in range(25):
        changed = {b"%06d" % rng.randrange(5000) * (key_size // 6): os.urandom(rng.choice([5, 60])) for _ in range(200)}
        old, before = dict(rows), db.begin()
        with db.begin(write=True) as txn:
            for key, value in changed.items():
                if round % 4 == 3 and rng.random() < 0.9:
                    assert txn.table("t").delete(key) == (rows.pop(key, None) is not None)
                else:
                    txn.table("t").put(key, value)
                    rows[key] = value
                assert txn.table("t").get(key) == rows.get(key)
        with other.begin() as now, other.begin(latest=True) as latest:
            for key in rng.sample(sorted(changed), 50):
                assert now.table("t").get(key) == latest.table("t").get(key) == rows.get(key)
            assert dict(now.table("t").scan()) == rows
        with before:
            assert dict(before.table("t").scan()) == old
            for key in rng.sample(sorted(changed), 50):
                assert before.table("t").get(key) == old.get(key)
    assert other.check() == []


def test_what_is_remembered_is_bounded(db: toydb.Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("toydb.transaction.MOST_KNOWN", 8)
    for i in range(30):
        fill(db, 100, table=f"t{i}")
    with db.begin() as txn:
        for i in range(30):
            assert len(list(txn.table(f"t{i}").scan())) == 100
    assert len(db._engine.tables) <= 8
    assert len(db._engine.inner_pages) <= 8


@pytest.mark.parametrize("reverse", [False, True])
def test_leaves_are_what_a_scan_is(db: toydb.Database, reverse: bool) -> None:
    rows = fill(db, 1500)
    with db.begin(write=True) as txn:
        txn.table("t").put(b"000700", b"far" * 5000)
    rows[b"000700"] = b"far" * 5000
    rng = random.Random(1)
    with db.begin() as txn:
        t = txn.table("t")
        for _ in range(60):
            lo, hi = sorted(b"%06d" % rng.randrange(-5, 1520) for _ in range(2))
            lo_, hi_ = rng.choice([(lo, hi), (None, hi), (lo, None), (lo, lo)])
            for hi_open in (False, True):
                wanted = [
                    (key, value) for key, value in sorted(rows.items(), reverse=reverse)
                    if (lo_ is None or key >= lo_) and (hi_ is None or key < hi_ or (key == hi_ and not hi_open))
                ]  # fmt: skip
                leaves = t.scan_leaves(lo_, hi_, hi_open=hi_open, reverse=reverse)
                assert [row for leaf in leaves for row in zip(*leaf, strict=True)] == wanted
                assert list(t.scan(lo_, hi_, hi_open=hi_open, reverse=reverse)) == wanted
    with db.begin(latest=True) as txn:
        leaves = txn.table("t").scan_leaves(reverse=reverse)
        assert dict(row for leaf in leaves for row in zip(*leaf, strict=True)) == rows


def test_a_transaction_that_has_ended_is_no_work_for_the_garbage_collector(db: toydb.Database) -> None:
    """A transaction and its tables named each other; so every few hundred gets the collector looked at all objects."""
    rows = fill(db, 100)
    while gc.collect():  # of earlier tests: what a finalizer lets go is found by the next pass
        pass
    gc.disable()
    try:
        for _ in range(50):
            with db.begin() as txn:
                assert txn.table("t").get(b"000001") == rows[b"000001"]
            with db.begin(write=True) as txn:
                txn.table("t").put(b"000001", rows[b"000001"])
        del txn
        assert gc.collect() == 0
    finally:
        gc.enable()
