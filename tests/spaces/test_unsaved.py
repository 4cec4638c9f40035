"""Removing a pool, or a space, does not lose unsaved pages, unless `discard` asks for it."""

import io
import json
import os

import numpy as np
import pytest

import bufferpool as bp
from bufferpool.cli import main
from bufferpool.errors import SegmentCorrupt, SegmentNotFound, SegmentRefused, SpaceBusy, UnsavedPages
from tests.conftest import PAGE, SHM, fill, new_name, remove, stamp
from tests.core.test_altered import area, poke
from tests.support.disks import Disk, dirty, put


@pytest.fixture
def unsaved(pool, data_file):
    """(pool, paths): two files and a store with dirty pages, and scratch pages, which nobody expects to find again."""
    paths = data_file(16, name="a.db"), data_file(16, name="b.db")
    fill(pool.open_file(paths[0], "r+"), [1, 2, 3], version=1)
    fill(pool.open_file(paths[1], "r+"), [7], version=1)
    put(pool.open_store("disk", Disk(8), mode="r+"), 2, 5)
    fill(pool.open_scratch("temporary", 8), [0, 1])
    pool.open_derived("tiles", 4, lambda n, out: out.fill(n))[1]
    return pool, paths


@pytest.mark.parametrize("attached", [True, False])
def test_unlink_refuses_to_lose_dirty_pages_and_says_which(unsaved, attached):
    """unlink and close lost everything that nobody had flushed, without a word."""
    pool, paths = unsaved
    remover = pool if attached else bp.Pool.attach(pool.name)
    if not attached:
        remover.close()
    with pytest.raises(UnsavedPages, match=r"5 dirty pages .*3 of 'a.db', 1 of 'b.db', 1 of 'disk'.*flush") as refused:
        remover.unlink()
    assert refused.value.pages == {"a.db": 3, "b.db": 1, "disk": 1}
    assert os.path.exists(pool.path)
    assert pool.flush() == 5
    remover.unlink()
    assert not os.path.exists(pool.path)
    assert paths[0].read_bytes()[PAGE : 2 * PAGE] == stamp(1, version=1).tobytes()
    with pytest.raises(SegmentNotFound):
        remover.unlink()


def test_unlink_loses_them_where_the_caller_asks_for_it(unsaved):
    pool, paths = unsaved
    before = [path.read_bytes() for path in paths]
    pool.unlink(discard=True)
    assert not os.path.exists(pool.path)
    assert [path.read_bytes() for path in paths] == before
    assert dirty(pool) == 7  # a process that is attached still has them


def test_ls_and_stat_show_what_no_file_has(unsaved, capsys):
    """ls and stat showed no dirty page: that a pool held the only copy of 5 pages was seen when rm refused to remove it."""
    pool, _ = unsaved
    assert main(["ls"]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    line = next(line for line in lines if line.startswith(pool.name))
    assert line[: head.index("UNSAVED") + len("UNSAVED")].split()[-1] == "5"
    assert main(["stat", pool.name]) == 0
    out = capsys.readouterr().out
    assert "5 dirty pages of files and stores" in out
    assert ["a.db", "file", "16", "3", "3"] in [line.split()[:5] for line in out.splitlines()]
    assert main(["stat", "--json", pool.name]) == 0
    assert json.loads(capsys.readouterr().out)["unsaved_pages"] == {"a.db": 3, "b.db": 1, "disk": 1}
    assert pool.flush() == 5
    assert main(["stat", pool.name]) == 0
    assert ["unsaved", "nothing:"] in [line.split()[:2] for line in capsys.readouterr().out.splitlines()]


def test_scratch_pages_do_not_keep_a_pool(pool):
    fill(pool.open_scratch("temporary", 8), range(8))
    pool.unlink()
    assert not os.path.exists(pool.path)


def test_rm_refuses_to_lose_dirty_pages(unsaved, capsys):
    pool, _ = unsaved
    name = pool.name
    pool.close()
    for argv in (["rm", name], ["rm", "--force", name], ["rm", "--json", name]):
        assert main(argv) == 1
        captured = capsys.readouterr()
        assert "3 of 'a.db'" in captured.err
        assert "--discard" in captured.err
    assert (SHM / name).exists()
    assert main(["rm", "--discard", name]) == 0
    assert not (SHM / name).exists()


def test_gc_asks_about_pools_with_dirty_pages_and_yes_keeps_them(data_file, capsys, monkeypatch):
    """--yes answers the question whether pools that nobody uses may be removed, not whether pages may be lost."""
    name, path = new_name(), data_file(4)
    find = bp.client.segment_file.find
    monkeypatch.setattr(
        "bufferpool.client.segment_file.find", lambda where=None: (f for f in find(where) if f.path == str(SHM / name))
    )
    try:
        with bp.Pool.create(name, "1MiB", page_size=PAGE) as pool:
            fill(pool.open_file(path, "r+"), [1], version=1)
        assert main(["gc", "--yes"]) == 1
        assert "1 dirty page" in capsys.readouterr().err
        assert (SHM / name).exists()
        assert main(["gc", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)[0]["unsaved_pages"] == 1
        monkeypatch.setattr("sys.stdin", io.StringIO("yes\n"))
        assert main(["gc"]) == 0
        assert "1 dirty page that no file has yet" in capsys.readouterr().out
        assert not (SHM / name).exists()
    finally:
        remove(SHM / name)


def test_remove_says_how_many_dirty_pages_it_will_not_lose(pool, data_file):
    space = pool.open_file(data_file(16), "r+")
    pool.durable_lsn = 10
    for n, lsn in ((1, 5), (2, 11), (3, 12)):
        put(space, n, lsn)
    with pytest.raises(SpaceBusy, match=r"2 dirty pages .*discard=True"):
        space.remove()
    assert dirty(pool) == 2
    assert np.array_equal(space[2].view(np.uint64), np.full(PAGE // 8, 11))
    space.remove(discard=True)
    assert dirty(pool) == 0


def test_a_damaged_pool_is_removed_where_the_loss_is_accepted(pools, unsaved):
    """Its dirty pages cannot be counted: the error advised to remove the segment, and the removal was refused."""
    pool, _ = unsaved
    pools.unchecked.add(pool.name)
    poke(pool, area(pool, "texts_at"), "SpaceTexts.path", "<I", 0x777)
    with pytest.raises(bp.errors.SegmentCorrupt, match="discard=True"):
        pool.unlink()
    pool.unlink(discard=True)
    assert not os.path.exists(pool.path)


def test_a_pool_is_removed_by_its_name(unsaved, tmp_path):
    """An engine that found its pool useless had to remove the file by itself, by a path from the library's inside."""
    pool, _ = unsaved
    with pytest.raises(UnsavedPages, match="5 dirty pages"):
        bp.Pool.remove(pool.name)
    assert os.path.exists(pool.path)
    assert pool.flush() == 5
    bp.Pool.remove(pool.name)
    assert not os.path.exists(pool.path)
    with pytest.raises(SegmentNotFound, match="there is no pool"):
        bp.Pool.remove(pool.name)
    (SHM / pool.name).write_bytes(b"somebody's notes")
    with pytest.raises(SegmentRefused, match="is no pool"):
        bp.Pool.remove(pool.name, discard=True)
    assert (SHM / pool.name).read_bytes() == b"somebody's notes"
    remove(SHM / pool.name)
    with pytest.raises(ValueError, match="must be 1 to 200 bytes"):
        bp.Pool.remove("../notes")


def test_a_damaged_pool_is_removed_by_its_name_only_with_what_it_has(make_pool):
    pool = make_pool(64 * PAGE)
    with open(pool.path, "r+b") as file:
        file.truncate(os.path.getsize(pool.path) // 2)
    with pytest.raises(SegmentCorrupt):
        bp.Pool.remove(pool.name)
    assert os.path.exists(pool.path)
    bp.Pool.remove(pool.name, discard=True)
    assert not os.path.exists(pool.path)
