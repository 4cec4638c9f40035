"""Nothing irreversible happens before everything has been checked."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import bufferpool as bp
from bufferpool import _core
from bufferpool.errors import FileInUse, NotRegularFile, PoolReadOnly, SpaceFull, SpaceMismatch, TooManySpaces
from bufferpool.stores import base
from bufferpool.upkeep import working_set
from tests.conftest import PAGE, WAIT, fill, stamp
from tests.support.disks import Disk, dirty


def no_slots(pool):
    for i in range(_core.MAX_SPACES - len(pool.stats().spaces)):
        pool.open_scratch(f"s{i}", 1)


ANY = (TypeError, ValueError)
REFUSED = {
    "max_pages below 0": (ValueError, {"max_pages": -1}, None),
    "max_pages of text": (TypeError, {"max_pages": "10"}, None),
    "max_pages of a float": (TypeError, {"max_pages": 10.0}, None),
    "max_pages beyond 32 bits": (ValueError, {"max_pages": 2**40}, None),
    "max_pages beyond the pool's": (SpaceFull, {"max_pages": 1 << 30}, None),
    "name too long": (ValueError, {"name": "n" * _core.LONGEST_TEXT}, None),
    "name empty": (ValueError, {"name": ""}, None),
    "name with NUL": (ValueError, {"name": "a\0b"}, None),
    "name no text": (TypeError, {"name": 7}, None),
    "name no UTF-8": (ValueError, {"name": "a\udcff"}, None),
    "name of a scratch space": (SpaceMismatch, {"name": "taken"}, lambda pool: pool.open_scratch("taken", 1)),
    "name of a store": (SpaceMismatch, {"name": "taken"}, lambda pool: pool.open_store("taken", Disk(1), mode="r+")),
    "dtype too large": (ValueError, {"dtype": f"S{2 * PAGE}"}, None),
    "dtype that does not divide": (ValueError, {"dtype": "S3"}, None),
    "dtype of objects": (ValueError, {"dtype": object}, None),
    "dtype that is none": (TypeError, {"dtype": "no such type"}, None),
    "repair without checksum": (ValueError, {"repair": print}, None),
    "repair that is none": (TypeError, {"checksum": True, "repair": 7}, None),
    "no slot left": (TooManySpaces, {}, no_slots),
}


@pytest.mark.parametrize("there", [True, False], ids=["a file", "no file"])
@pytest.mark.parametrize("what", REFUSED)
def test_a_refused_w_plus_leaves_the_file_as_it_is(pool, data_file, what, there):
    """The file was emptied first, and the arguments were checked afterwards."""
    expected, options, prepare = REFUSED[what]
    path = data_file(16)
    before = path.read_bytes(), path.stat().st_mtime_ns
    if not there:
        path.unlink()
    if prepare is not None:
        prepare(pool)
    spaces = [s.name for s in pool.stats().spaces]
    with pytest.raises(expected):
        pool.open_file(path, "w+", **options)
    assert path.exists() == there
    if there:
        assert (path.read_bytes(), path.stat().st_mtime_ns) == before
    assert [s.name for s in pool.stats().spaces] == spaces


@pytest.mark.parametrize("why", ["another name", "another mode", "reader", "no slot left"])
def test_a_refused_w_plus_leaves_a_file_and_its_dirty_pages_that_the_pool_has(pool, attach, data_file, why):
    path = data_file(16)
    space = pool.open_file(path, "r+")
    fill(space, [6], version=1)
    before = path.read_bytes()
    if why == "another name":
        with pytest.raises(SpaceMismatch):
            pool.open_file(path, "w+", name="other")
    elif why == "another mode":
        with pytest.raises(ValueError, match="mode"):
            pool.open_file(path, "w")
    elif why == "reader":
        with bp.Pool.attach(pool.name, mode="r") as reader, pytest.raises(PoolReadOnly):
            reader.open_file(path, "w+")
    else:
        with pytest.raises(SpaceFull):
            attach(pool).open_file(path, "w+", max_pages=1 << 30)
    assert path.read_bytes() == before
    assert dirty(pool) == 1
    assert np.array_equal(space[6], stamp(6, version=1))
    assert pool.flush() == 1


@pytest.mark.parametrize("mode", ["r+", "w+"])
@pytest.mark.parametrize("whose", ["its own", "another pool's"])
def test_the_segment_of_a_pool_is_no_file_to_write(pool, make_pool, mode, whose):
    """``open_file(pool.path, "w+")`` emptied a living segment: every process of the pool ended by SIGBUS."""
    other = pool if whose == "its own" else make_pool()
    size = os.path.getsize(other.path)
    with pytest.raises(FileInUse, match="is the segment of a pool"):
        pool.open_file(other.path, mode)
    assert os.path.getsize(other.path) == size
    fill(other.open_scratch("work", 4), range(4))
    assert other.check() == []


def test_a_file_name_that_is_no_text_needs_a_name_of_its_own(pool, tmp_path):
    path = os.fsdecode(os.fsencode(tmp_path) + b"/m\xff.db")
    with open(path, "wb") as file:
        file.write(b"1" * PAGE)
    with pytest.raises(ValueError, match="pass name="):
        pool.open_file(path, "w+")
    assert os.path.getsize(path) == PAGE
    space = pool.open_file(path, "r+", name="m")
    fill(space, [0], version=1)
    assert pool.flush() == 1


@pytest.mark.parametrize("mode", ["r", "r+", "w+"])
@pytest.mark.parametrize("how", ["deleted", "nameless", "memfd"])
def test_a_file_without_a_name_is_not_opened_under_the_name_that_proc_gives_it(pool, data_file, tmp_path, mode, how):
    """/proc/self/fd says "PATH (deleted)": "w+" made a file of that name and opened it, and "r" opened one that had it."""
    path = data_file(4)
    if how == "memfd":
        fd = os.memfd_create("pages")
    elif how == "nameless":
        fd = os.open(tmp_path, os.O_TMPFILE | os.O_RDWR)
    else:
        fd = os.open(path, os.O_RDWR)
        assert pool.open_file(f"/proc/self/fd/{fd}", name="named")[2].any()
        os.unlink(path)
    os.truncate(fd, 4 * PAGE)
    link = f"/proc/self/fd/{fd}"
    try:
        before = sorted(os.listdir(tmp_path))
        with pytest.raises(FileNotFoundError, match=r"has no name .*os\.link.*open_store") as error:
            pool.open_file(link, mode, name="other")
        assert error.value.filename == link
        with pytest.raises(FileNotFoundError, match="has no name"):
            pool.save_working_set(link)
        assert sorted(os.listdir(tmp_path)) == before
        if how == "deleted":
            Path(os.readlink(link)).write_bytes(bytes(4 * PAGE))  # another file of that name is not taken for it
            with pytest.raises(FileNotFoundError, match="has no name"):
                pool.open_file(link, mode, name="other")
    finally:
        os.close(fd)


def test_a_path_of_bytes_is_the_same_file(pool, data_file):
    """The name of its space was bytes, which no space may have."""
    path = os.fsencode(data_file(4))
    table = pool.open_file(path, "r+")
    fill(table, [1], version=1)
    assert pool.flush() == 1
    assert pool.open_file(os.fsdecode(path)).name == table.name == os.fsdecode(os.path.basename(path))
    pool.save_working_set(path + b".set")
    assert os.path.getsize(path + b".set") > 0


@pytest.mark.parametrize("mode", ["r", "r+", "w+"])
@pytest.mark.parametrize("path", ["/", "//", ".", "/dev/.."])
def test_a_folder_is_no_file(pool, path, mode):
    """The error of the root was about the name of its space, which would have been empty."""
    with pytest.raises(NotRegularFile, match="open_store"):
        pool.open_file(path, mode)


def test_a_pipe_by_its_descriptor_is_no_file(pool):
    read, write = os.pipe()
    try:
        with pytest.raises(NotRegularFile, match="open_store"):
            pool.open_file(f"/proc/self/fd/{read}")
    finally:
        os.close(read)
        os.close(write)


def test_a_file_that_is_replaced_all_the_time_is_opened_all_the_same(pool, data_file, threads):
    """Between two looks at its path another file may be there: that is no file without a name."""
    path, end = Path(data_file(4)), threading.Event()

    def replace():
        while not end.is_set():
            new = path.with_suffix(".new")
            new.write_bytes(bytes(4 * PAGE))
            new.rename(path)

    threads.start(replace)
    try:
        for n in range(100):
            pool.open_file(path, name=f"copy{n % 3}").remove()
    finally:
        end.set()
        threads.join()


def test_a_look_during_a_replacement_sees_a_file_without_links(tmp_path, monkeypatch):
    """The first look was believed: a file that another program replaced at that moment was refused as one without a name."""
    path, real, looks = tmp_path / "data", os.stat, []

    def stat(path, **options):
        looks.append(path)
        about = real(path, **options)
        if len(looks) > 2:
            return about
        return os.stat_result([*about[:1], about.st_ino + len(looks), about.st_dev, 0, *about[4:]])

    path.write_bytes(bytes(4 * PAGE))
    monkeypatch.setattr(base.os, "stat", stat)
    assert base.name_of_file(path) == os.path.realpath(path)


def test_a_file_that_a_refused_w_plus_created_stays_once_somebody_has_written_to_it(pool, tmp_path, monkeypatch):
    path = tmp_path / "new.db"
    real = base.sync_directory

    def meanwhile(where):
        path.write_bytes(stamp(0).tobytes())
        real(where)

    no_slots(pool)
    monkeypatch.setattr(base, "sync_directory", meanwhile)
    with pytest.raises(TooManySpaces):
        pool.open_file(path, "w+")
    assert path.read_bytes() == stamp(0).tobytes()


# ---- names are durable -------------------------------------------------------------------------


@pytest.fixture
def synced(monkeypatch):
    """The folders that were synced, each with the names that it had then."""
    found = []
    fsync = os.fsync

    def counted(fd):
        where = os.readlink(f"/proc/self/fd/{fd}")
        if os.path.isdir(where):
            found.append((where, frozenset(os.listdir(where))))
        fsync(fd)

    monkeypatch.setattr(os, "fsync", counted)
    return found


def test_the_name_of_a_new_file_is_durable(pool, tmp_path, synced):
    """A flush syncs the file's pages, and not its name: after a power failure there was no file."""
    path = tmp_path / "new.db"
    with pool.open_file(path, "w+").append() as page:
        page[:] = 1
    assert synced == [(str(tmp_path), frozenset({"new.db"}))]
    pool.open_file(path, "w+")
    pool.open_file(path, "r+")
    assert len(synced) == 1


def test_the_name_of_a_saved_working_set_is_durable(table, pool, tmp_path, synced):
    table.read_many(range(8))
    pool.save_working_set(tmp_path / "set")
    (where, names), *more = synced
    assert not more
    assert where == str(tmp_path)
    assert {name for name in names if name.startswith("set")} == {"set"}
    assert len(working_set.read_working_set(tmp_path / "set").page) == 8


def test_a_folder_that_may_not_be_read_is_synced_with_everything_else(pool, tmp_path, monkeypatch):
    calls = []
    real = os.open

    def refuse(path, flags, *rest):
        if flags & os.O_DIRECTORY:
            raise PermissionError(13, "Permission denied", path)
        return real(path, flags, *rest)

    monkeypatch.setattr(os, "open", refuse)
    monkeypatch.setattr(os, "sync", lambda: calls.append(1))
    pool.open_file(tmp_path / "new.db", "w+")
    assert calls == [1]


_LIMITED = """
import resource, sys, bufferpool as bp
name, path = sys.argv[1:]
pool = bp.Pool.attach(name)
table = pool.open_file(path, "r+")
for n in range(6):
    with table.append() as page: page[:] = n + 1
resource.setrlimit(resource.RLIMIT_FSIZE, (6 * 4096 + 1000, resource.RLIM_INFINITY))
try: pool.flush()
except bp.errors.StoreError as error: print(error)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))  # for what coverage writes at the end
"""


def test_a_file_at_its_size_limit_keeps_whole_pages(pool, data_file):
    """The kernel writes what fits and refuses the rest: the file ended in the middle of a page."""
    path = data_file(4)
    done = subprocess.run(
        [sys.executable, "-c", _LIMITED, pool.name, str(path)], capture_output=True, text=True, timeout=WAIT, check=True
    )
    assert "too large" in done.stdout
    assert path.stat().st_size == 6 * PAGE
    assert dirty(pool) == 6
    assert len(pool.open_file(path, "r+")) == 10
    assert pool.flush() == 6
    assert path.stat().st_size == 10 * PAGE
