"""What tables promise, and what the checker finds."""

import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import toydb
from tests.toydb.conftest import fill
from toydb import locks, page
from toydb.page import max_key
from toydb.tree import Tree

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


@pytest.mark.parametrize("wrong", [3, True, None, "text", 1.5, [1, 2]])
def test_keys_and_values_that_are_no_bytes_are_refused(db: toydb.Database, wrong: Any) -> None:
    """put(3, …) made a key of three zeros, and put(key, 7) a value of seven."""
    with db.begin(write=True) as txn:
        t = txn.create_table("t")
        t.put(bytearray(b"k"), memoryview(b"v"))
        for call in (
            lambda: t.put(wrong, b""),
            lambda: t.put(b"", wrong),
            lambda: t.insert(wrong, b""),
            lambda: t.insert(b"", wrong),
            lambda: t.get(wrong),
            lambda: t.delete(wrong),
            lambda: t.set_meta(wrong),
            lambda: txn.create_table("other", wrong),
        ):
            with pytest.raises(TypeError, match=f"must be bytes, not {type(wrong).__name__}"):
                call()
        if wrong is not None:
            for more in ({"lo": wrong}, {"hi": wrong}):
                for read in (t.scan, t.scan_leaves, t.estimate):
                    with pytest.raises(TypeError, match="must be bytes"):
                        list(read(**more))  # type: ignore[call-overload]
        assert list(t.scan()) == [(b"k", b"v")]
        assert txn.tables() == ["t"]
        with pytest.raises(TypeError, match="must be a str, not bytes"):
            txn.table(b"t")  # type: ignore[arg-type]


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


# ---- the checker checks -------------------------------------------------------------------


class Pages:
    """Three pages of a tree, read by a reader of the latest versions: the root, and a leaf with keys from 20 to 29 after one from 10 to 19."""

    page_size, moving, changes, shape = 512, True, 0, 0

    def __init__(self) -> None:
        self.pages: dict[int, page.Page] = {}
        self.put(7, [page.inner_cell(b"", 2), page.inner_cell(b"20", 3)], (b"", None), 0)
        self.put(2, [page.leaf_cell(b"%d" % n, b"") for n in range(10, 20)], (b"", b"20"), 3)
        self.put(3, [page.leaf_cell(b"%d" % n, b"") for n in range(20, 30)], (b"20", None), 0)

    def put(self, page_no: int, cells: list[bytes], limits: tuple[bytes, bytes | None], right: int) -> None:
        one = self.pages[page_no] = page.Page(bytearray(self.page_size))
        one.format(page_no, page.INNER if page_no == 7 else page.LEAF, 7, int(page_no == 7))
        one.rebuild(cells, *limits, right)

    def inner(self, page_no: int) -> None: ...

    def remember(self, one: page.Page) -> None: ...

    def read(self, page_no: int) -> page.Page:
        return self.pages[page_no]


@pytest.mark.parametrize("reverse", [False, True])
def test_a_scan_of_the_latest_pages_gives_no_key_twice(reverse: bool) -> None:
    """Corner: between two leaves of a scan the next one is freed and used for other keys, or gets those of the present one by a
    merge. It has keys then that the scan has given already."""
    pages = Pages()
    leaves = Tree(pages, 7).leaves(None, None, reverse=reverse)  # type: ignore[arg-type]
    keys = next(leaves)[0]
    if reverse:
        pages.put(2, [page.leaf_cell(b"%d" % n, b"") for n in range(10, 30)], (b"", None), 0)
    else:
        pages.put(3, [page.leaf_cell(b"%d" % n, b"") for n in range(15, 30)], (b"15", None), 0)
    keys += [key for leaf in leaves for key in leaf[0]]
    assert keys == sorted({b"%d" % n for n in range(10, 30)}, reverse=reverse)


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
        swap: "keys do not ascend", unlink: "right link", lose: "is lost", leak: "is lost", free_twice: "used 2 times",
        garbage: "do not add up", overflow: "do not match",
    }  # fmt: skip
    for change, finding in expected.items():
        found = broken(db, change)
        assert any(finding in line for line in found), (change.__name__, found)


def check_is_clean(txn: toydb.Transaction) -> bool:
    from toydb.check import check

    return check(txn) == []
