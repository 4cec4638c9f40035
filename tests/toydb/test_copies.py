"""A copy of a database that is in use, made as the README says."""

import multiprocessing
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import toydb
from tests.conftest import ROOT, wait_until

from .conftest import OpenDatabase, fill

COPIES = 4


def commit_for_ever(path: str, pool_name: str, number: int, noted: Path) -> None:
    """Commits keys of this process, and notes the last one that was committed; checkpoints come after every few commits."""
    db = toydb.Database.open(path, pool_name=pool_name, checkpoint_bytes="96KiB")
    for n in range(10**9):
        with db.begin(write=True) as txn:
            txn.table("t").put(b"%d-%09d" % (number, n), os.urandom(900))
        noted.write_text(str(n))


def last_of(noted: Path) -> int:
    text = noted.read_text() if noted.exists() else ""
    return int(text) if text else -1


def copied_by(snippet: str) -> Callable[[toydb.Database, Path], None]:
    """The README's way to copy a database, into a folder."""
    within = re.search(r"^with .*db\.begin\(write=True\):\n(?:    .*\n)+", snippet, re.MULTILINE)
    assert within
    body = within[0].replace('toydb.Database.open("shop.db") as db, ', "").replace('"copies/"', "folder")
    code = compile(snippet[: within.start()] + body, "README.md", "exec")

    def copy(db: toydb.Database, folder: Path) -> None:
        exec(code, {"db": db, "folder": folder})

    return copy


def wait_for_a_commit(notes: list[Path]) -> None:
    before = sum(map(last_of, notes))
    wait_until(lambda: sum(map(last_of, notes)) > before, "another commit")


def kept(open_db: OpenDatabase, name: str) -> set[bytes]:
    copy = open_db(name)
    assert copy.check() == []
    with copy.begin() as txn:
        return {key for key, _ in txn.table("t").scan()}


def snippet_of_the_readme() -> str:
    readme = (ROOT / "examples" / "toydb" / "README.md").read_text()
    return readme.split("\n## Files, copies, upgrades\n")[1].split("```python\n")[1].split("```")[0]


def test_nothing_is_committed_between_the_log_and_the_data_file(
    open_db: OpenDatabase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page of a later commit, in a data file that is copied after the log, is one that the log of the copy does not know."""
    db, other = open_db("shop.db"), open_db("shop.db")
    rows = fill(db, 300)
    db.checkpoint()  # the log alone would have all pages otherwise
    copied, refused = [], []
    shutil_copy = shutil.copy

    def copy(file: str, folder: Path) -> None:
        shutil_copy(file, folder)
        copied.append(file)
        try:
            with other.begin(write=True, timeout=0) as txn:
                for number in range(2000):
                    txn.table("t").put(b"later %06d" % number, bytes(300))
        except toydb.Busy:
            refused.append(file)
        other.pool.flush()

    monkeypatch.setattr(shutil, "copy", copy)
    (tmp_path / "copy").mkdir()
    copied_by(snippet_of_the_readme())(db, tmp_path / "copy")
    assert refused == copied
    assert copied[-1] == db.path
    assert kept(open_db, "copy/shop.db") == set(rows)


def test_a_copy_of_a_database_in_use_has_every_commit_before_it(open_db: OpenDatabase, tmp_path: Path) -> None:
    """The README did not say how to copy one: files that are copied one after the other are of different moments."""
    copy = copied_by(snippet_of_the_readme())
    db = open_db("shop.db")
    with db.begin(write=True) as txn:
        txn.create_table("t")
    notes = [tmp_path / f"noted{number}" for number in range(2)]
    context = multiprocessing.get_context("spawn")
    workers = [
        context.Process(target=commit_for_ever, args=(db.path, db.pool.name, number, notes[number]), daemon=True)
        for number in range(2)
    ]
    for worker in workers:
        worker.start()
    try:
        wait_until(lambda: min(map(last_of, notes)) >= 0, "both have committed")
        for number in range(COPIES):
            folder = tmp_path / f"copy{number}"
            wait_for_a_commit(notes)
            least = [last_of(noted) for noted in notes]
            while True:
                folder.mkdir()
                try:
                    copy(db, folder)
                    break
                except FileNotFoundError:  # as the README says
                    shutil.rmtree(folder)
            there = kept(open_db, f"{folder.name}/shop.db")
            for worker_no, last in enumerate(least):
                assert all(b"%d-%09d" % (worker_no, n) in there for n in range(last + 1))
    finally:
        for worker in workers:
            worker.kill()
            worker.join()
