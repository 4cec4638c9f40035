"""The engine's contract, as the SQL side needs it: the same tests over both engines."""

from concurrent.futures import ThreadPoolExecutor

import pytest

import toydb
from toydb.errors import Busy, KeyExists, NoSuchTable, ReadOnly, TableExists, TransactionEnded, TransactionError

from .engines import ENGINES, opener


@pytest.fixture(params=ENGINES)
def db(request, tmp_path):
    with opener(request.param, tmp_path) as open_database:
        yield open_database()


def rows(db, **options):
    with db.begin() as txn:
        return list(txn.table("t").scan(**options))


def fill(db, *keys):
    with db.begin(write=True) as txn:
        table = txn.table("t") if "t" in txn.tables() else txn.create_table("t", b"meta")
        for key in keys:
            table.put(key, b"v" + key)


def test_a_table_is_an_ordered_map(db):
    fill(db, b"b", b"a", b"c")
    with db.begin(write=True) as txn:
        table = txn.table("t")
        assert table.meta == b"meta"
        table.set_meta(b"other")
        table.put(b"a", b"new")
        assert table.get(b"a") == b"new"
        assert table.get(b"x") is None
        assert table.delete(b"b") is True
        assert table.delete(b"b") is False
        with pytest.raises(KeyExists):
            table.insert(b"c", b"")
        table.insert(b"d", b"")
    assert rows(db) == [(b"a", b"new"), (b"c", b"vc"), (b"d", b"")]
    with db.begin() as txn:
        assert txn.table("t").meta == b"other"


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("lo_open", [False, True])
@pytest.mark.parametrize("hi_open", [False, True])
def test_scans_keep_to_their_bounds(db, reverse, lo_open, hi_open):
    keys = [bytes([65 + n]) for n in range(10)]
    fill(db, *keys)
    for lo in (None, b"A", b"C", b"Cx", b"Z"):
        for hi in (None, b"A", b"C", b"Fx", b"J", b"Z"):
            wanted = [
                key
                for key in keys
                if (lo is None or key > lo or (key == lo and not lo_open))
                and (hi is None or key < hi or (key == hi and not hi_open))
            ]
            if reverse:
                wanted.reverse()
            assert [k for k, _ in rows(db, lo=lo, hi=hi, lo_open=lo_open, hi_open=hi_open, reverse=reverse)] == wanted


@pytest.mark.parametrize("reverse", [False, True])
def test_a_scan_bears_the_changes_of_its_own_transaction(db, reverse):
    fill(db, *[b"%04d" % n for n in range(0, 600, 2)])
    with db.begin(write=True) as txn:
        table = txn.table("t")
        seen = []
        for key, _ in table.scan(reverse=reverse):
            seen.append(int(key))
            table.delete(key)
            table.put(b"%04d" % (int(key) + 1 if int(key) % 2 == 0 else 999), b"new")
        assert sorted(set(seen) & set(range(0, 600, 2))) == list(range(0, 600, 2))
        assert len(seen) == len(set(seen))
        txn.rollback()
    assert len(rows(db)) == 300


def test_a_snapshot_does_not_move(db):
    fill(db, b"a")
    with db.begin() as reader:
        fill(db, b"b")
        assert [k for k, _ in reader.table("t").scan()] == [b"a"]
        with db.begin() as later:
            assert later.snapshot != reader.snapshot
            assert [k for k, _ in later.table("t").scan()] == [b"a", b"b"]
    with db.begin() as reader, db.begin(write=True) as writer:
        assert writer.snapshot == reader.snapshot


def test_an_exception_rolls_back(db):
    fill(db, b"a")

    def fail():
        with db.begin(write=True) as txn:
            txn.table("t").put(b"b", b"")
            txn.create_table("u")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    with db.begin() as txn:
        assert txn.tables() == ["t"]
    assert rows(db) == [(b"a", b"va")]


def test_savepoints_nest_and_can_be_used_again(db):
    fill(db, b"a")
    with db.begin(write=True) as txn:
        table = txn.table("t")
        outer = txn.savepoint()
        table.put(b"b", b"")
        inner = txn.savepoint()
        table.put(b"c", b"")
        txn.rollback_to(inner)
        assert [k for k, _ in table.scan()] == [b"a", b"b"]
        table.put(b"d", b"")
        txn.release(inner)
        assert [k for k, _ in table.scan()] == [b"a", b"b", b"d"]
        txn.rollback_to(outer)
        assert [k for k, _ in table.scan()] == [b"a"]
        txn.create_table("u").put(b"x", b"")
        txn.rollback_to(outer)
        assert txn.tables() == ["t"]
        table.put(b"e", b"")
        txn.release(outer)
    assert [k for k, _ in rows(db)] == [b"a", b"e"]


def test_tables_come_and_go(db):
    fill(db, b"a")
    with db.begin(write=True) as txn:
        with pytest.raises(TableExists):
            txn.create_table("t")
        txn.drop_table("t")
        with pytest.raises(NoSuchTable):
            txn.table("t")
        assert txn.create_table("t").get(b"a") is None
        txn.drop_table("t")
    with db.begin() as txn:
        assert txn.tables() == []
        with pytest.raises(NoSuchTable):
            txn.table("t")


def test_a_table_takes_another_name(db):
    fill(db, b"a")
    with db.begin(write=True) as txn:
        txn.create_table("u")
        with pytest.raises(TableExists):
            txn.rename_table("t", "u")
        saved = txn.savepoint()
        renamed = txn.rename_table("t", "s")
        assert (renamed.get(b"a"), renamed.meta) == (b"va", b"meta")
        renamed.put(b"b", b"")
        assert txn.tables() == ["s", "u"]
        with pytest.raises(NoSuchTable):
            txn.rename_table("t", "r")
        txn.rollback_to(saved)
        assert list(txn.table("t").scan()) == [(b"a", b"va")]
        txn.rename_table("t", "s")
    with db.begin() as txn:
        assert txn.tables() == ["s", "u"]
        assert list(txn.table("s").scan()) == [(b"a", b"va")]
        with pytest.raises(ReadOnly):
            txn.rename_table("s", "t")


def test_what_is_not_allowed_is_said(db):
    fill(db, b"a")
    with db.begin() as txn:
        with pytest.raises(ReadOnly):
            txn.table("t").put(b"b", b"")
        with pytest.raises(ReadOnly):
            txn.create_table("u")
    with pytest.raises(TransactionEnded):
        txn.table("t")
    with db.begin(write=True):
        with pytest.raises(TransactionError):
            db.begin(write=True)
        with ThreadPoolExecutor(1) as other, pytest.raises(Busy):
            other.submit(db.begin, write=True, timeout=0.05).result()


def test_the_estimate_is_near(db):
    fill(db, *[b"%06d" % n for n in range(4000)])
    with db.begin() as txn:
        table = txn.table("t")
        assert 2000 <= table.estimate() <= 8000
        assert 500 <= table.estimate(b"001000", b"002000") <= 2000
        assert 5 <= table.estimate(b"001000", b"001010") <= 100
        assert table.estimate(b"x", b"y") <= 1
        assert txn.stats.pages > 0
        assert txn.stats.hits + txn.stats.misses >= txn.stats.pages or txn.stats.misses == 0


def test_the_errors_are_of_one_tree():
    assert issubclass(Busy, toydb.ToyDBError)
    assert issubclass(KeyExists, toydb.ToyDBError)
