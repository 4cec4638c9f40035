"""Files that another program changes: a flush destroys nothing and reports the change, and there is a remedy."""

import errno
import os
import time

import numpy as np
import pytest

import bufferpool as bp
from bufferpool.cli import main
from bufferpool.errors import (
    FileChanged,
    NotRegularFile,
    PoolReadOnly,
    ShortRead,
    SpaceBusy,
    SpaceNotFound,
    SpaceRemoved,
    StoreError,
)
from bufferpool.machine.mounts import mount_of
from bufferpool.spaces import file_changes
from bufferpool.upkeep import writeback
from tests.client.test_outlive import _touch
from tests.conftest import PAGE, WAIT, fill, page_of, stamp, wait_until, write_file
from tests.support.disks import dirty
from tests.support.loop_disk import LoopDisk


def bytes_at(path):
    return path.read_bytes() if path.is_file() else None


def write_page(path, n, version):
    """Another program's write of one page, in place."""
    with open(path, "r+b") as file:
        file.seek(n * PAGE)
        file.write(stamp(n, version=version))


_utime = os.utime  # tests replace it for the pool


def set_times(path, about):
    """Another program gives a file the times that it had."""
    _utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))


def settle(path):
    """Gives a file a time long ago: what is recorded of it is beyond doubt."""
    os.utime(path, ns=(10**18 + 1, 10**18 + 1))
    return path


def rename_over(path):
    path.with_name("new").write_bytes(b"n" * (16 * PAGE))
    os.replace(path.with_name("new"), path)


def replace_by_a_folder(path):
    path.unlink()
    path.mkdir()


def replace_by_a_pipe(path):
    path.unlink()
    os.mkfifo(path)


def rewrite_in_place_with_its_old_time(path):
    before = path.stat()
    write_page(path, 5, version=7)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


CHANGES = {
    "page written": lambda path: (write_page(path, 5, version=7), _touch(path)),
    "page appended": lambda path: path.write_bytes(path.read_bytes() + b"\xc8" * PAGE),
    "half a page appended": lambda path: path.write_bytes(path.read_bytes() + b"\xc8" * 100),
    "cut": lambda path: os.truncate(path, 4 * PAGE),
    "cut inside a page": lambda path: os.truncate(path, 4 * PAGE + 17),
    "emptied": lambda path: os.truncate(path, 0),
    "deleted": lambda path: path.unlink(),
    "renamed": lambda path: path.rename(path.with_name("elsewhere")),
    "renamed over": rename_over,
    "replaced by a folder": replace_by_a_folder,
    "replaced by a pipe": replace_by_a_pipe,
    "written, and its time set back": rewrite_in_place_with_its_old_time,
    "touched": _touch,
}


@pytest.mark.parametrize("what", CHANGES)
@pytest.mark.parametrize("flusher", ["the writer", "another process's pool"])
def test_a_flush_does_not_hide_what_another_program_did_to_the_file(pool, attach, data_file, what, flusher):
    """A flush used to write in spite of the change, and then recorded the file's new time as its own: the pages
    in memory were stale for ever, an append of another program was overwritten, a file that was cut
    grew again, and pages went into a file that nobody can open any more."""
    path = settle(data_file(16))
    space = pool.open_file(path, "r+")
    assert np.array_equal(space[5], stamp(5))
    fill(space, [6, 15], version=1)
    keep = path.with_name("kept")
    os.link(path, keep)  # to look at the file after its name has gone
    CHANGES[what](path)
    after = keep.read_bytes(), bytes_at(path)
    other = pool if flusher == "the writer" else attach(pool)
    for _ in range(2):
        with pytest.raises(FileChanged, match=r"2 dirty pages .* nothing was written"):
            other.flush()
    assert dirty(pool) == 2
    assert (keep.read_bytes(), bytes_at(path)) == after
    assert np.array_equal(space[6], stamp(6, version=1))
    if what.startswith(("cut", "emptied")):
        with pytest.raises(ShortRead):
            space[9]
    with pytest.raises((FileChanged, FileNotFoundError, NotRegularFile)):
        attach(pool).open_file(path, "r+")


@pytest.mark.parametrize("change", ["chmod", "link", "restored"])
def test_a_change_that_leaves_the_pages_as_they_are_does_not_stop_a_flush(pool, data_file, change):
    """The change time moves with the mode and the links of a file as well as with its bytes: the pages in memory say which it was."""
    path = settle(data_file(16))
    space = pool.open_file(path, "r+")
    assert np.array_equal(space[5], stamp(5))
    fill(space, [6], version=1)
    if change == "chmod":
        path.chmod(0o640)
    elif change == "link":
        os.link(path, path.with_name("backup"))
    else:
        rewrite_in_place_with_its_old_time(path)
        with pytest.raises(FileChanged, match="written by another program"):
            pool.flush()
        before = path.stat()
        write_page(path, 5, version=0)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert pool.flush() == 1
    assert page_of(path, 6) == stamp(6, version=1).tobytes()


def test_a_flush_after_a_killed_one_still_sees_a_cut_and_another_file(pool, data_file):
    """An interrupted flush leaves an unknown size and time; but if the file shrank or is another one, another program changed it."""
    for change in (lambda path: os.truncate(path, 4 * PAGE), rename_over, lambda path: path.unlink()):
        path = settle(data_file(16))
        space = pool.open_file(path, "r+")
        fill(space, [6], version=1)
        pool.client.seg.record_store(space.index, 0, True, None)  # as a flush leaves it that was killed
        change(path)
        with pytest.raises(FileChanged):
            pool.flush(space)
        if path.exists():
            with pytest.raises(FileChanged):
                pool.open_file(path, "r+")
        assert pool.discard(space.name) == 1


# ---- times that cannot show a change ---------------------------------------------------------


@pytest.fixture
def coarse(monkeypatch):
    """A file system whose times are whole seconds, and whose change time says nothing."""
    real = os.fstat

    def fstat(fd):
        about = real(fd)
        seconds = about.st_mtime_ns // 10**9
        fields = [
            getattr(about, name) for name in ("st_mode", "st_ino", "st_dev", "st_nlink", "st_uid", "st_gid", "st_size")
        ]

        class Coarse:
            st_mode, st_ino, st_dev, st_nlink, st_uid, st_gid, st_size = fields
            st_mtime_ns = st_ctime_ns = st_atime_ns = seconds * 10**9

        return Coarse

    monkeypatch.setattr(file_changes.os, "fstat", fstat)


@pytest.mark.parametrize("mode", ["r", "r+"])
def test_a_change_in_the_second_in_which_the_file_was_opened_is_seen(coarse, pool, attach, data_file, mode):
    """The file's time was the same before and after, so the next opener got the old page."""
    path = data_file(16)
    second = time.time_ns() // 10**9 * 10**9
    os.utime(path, ns=(second, second))
    assert np.array_equal(pool.open_file(path, mode)[5], stamp(5))
    write_page(path, 5, version=7)
    os.utime(path, ns=(second, second))
    assert np.array_equal(attach(pool).open_file(path, mode)[5], stamp(5, version=7))


@pytest.fixture
def not_the_owner(monkeypatch):
    """This process may write the file, and may not set its times."""

    def utime(*_, **__):
        raise PermissionError(errno.EPERM, "not the owner")

    monkeypatch.setattr(file_changes.os, "utime", utime)


def test_a_change_in_the_second_of_a_flush_is_seen_at_the_next_open(coarse, not_the_owner, pool, attach, data_file):
    """The limit: a flush by a process that may not set the file's time leaves the time of its own write, and another
    program's write in the same second leaves the same one. The next flush sees nothing, and the next open compares pages."""
    path = data_file(16)
    space = pool.open_file(path, "r+")
    assert np.array_equal(space[5], stamp(5))
    fill(space, [6], version=1)
    assert pool.flush() == 1
    before = path.stat()
    write_page(path, 5, version=7)
    set_times(path, before)
    fill(space, [7], version=1)
    assert pool.flush() == 1
    again = attach(pool).open_file(path, "r+")
    assert np.array_equal(again[5], stamp(5, version=7))
    assert np.array_equal(again[6], stamp(6, version=1))


@pytest.fixture
def whole_seconds(tmp_path):
    """A file on an ext2 with small inodes, which keeps whole seconds: not more than a third of this one is over."""
    with LoopDisk(tmp_path, "ext2", "-I", "128") as disk:
        path = write_file(disk.place / "data.db", 16)
        assert path.stat().st_mtime_ns % 10**9 == 0
        wait_until(lambda: time.time() % 1 < 0.3, "a second begins")
        yield path


def test_a_change_in_the_second_of_a_flush_is_seen_by_the_next_flush(whole_seconds, pool):
    """A flush left the second of its own write as the file's time. Another program's write in that second did not change
    it, and the next flush wrote over it. Now the flush leaves the second before, which no later write can leave."""
    path = whole_seconds
    space = pool.open_file(path, "r+")
    fill(space, [5], version=1)
    assert pool.flush() == 1
    fill(space, [5, 6], version=2)
    write_page(path, 5, version=7)
    with pytest.raises(FileChanged, match="written by another program"):
        pool.flush()
    assert page_of(path, 5) == stamp(5, version=7).tobytes()
    assert page_of(path, 6) == stamp(6).tobytes()
    assert pool.discard(space.name) == 2


def test_flushes_of_the_pool_itself_in_one_second_are_no_change(whole_seconds, pool, attach):
    """The pool sets the file's time back by a second at most, to a time of its own: no flush and no open takes it for a change."""
    path = whole_seconds
    space = pool.open_file(path, "r+")
    for version in range(1, 6):
        fill(space, [5, 6], version=version)
        assert pool.flush() == 2
        assert abs(path.stat().st_mtime - time.time()) < WAIT
    misses = pool.stats().misses
    again = attach(pool).open_file(path, "r+")
    assert np.array_equal(again[6], stamp(6, version=5))
    assert pool.stats().misses == misses


def test_a_time_that_is_set_back_in_the_step_of_the_clock_of_a_flush_is_not_seen(whole_seconds, pool, attach):
    """The limit: a tool that writes and sets the time back is noticed by the change time, whose step is a second here."""
    path = whole_seconds
    space = pool.open_file(path, "r+")
    assert np.array_equal(space[5], stamp(5))
    fill(space, [6], version=1)
    assert pool.flush() == 1
    before = path.stat()
    write_page(path, 5, version=7)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    seen = path.stat().st_ctime_ns != before.st_ctime_ns  # the second was over already
    again = attach(pool).open_file(path, "r+")
    assert np.array_equal(again[5], stamp(5, version=7 if seen else 0))


def test_a_flush_in_the_second_of_the_opening_compares_what_it_can(coarse, pool, data_file):
    path = data_file(16)
    second = time.time_ns() // 10**9 * 10**9
    os.utime(path, ns=(second, second))
    space = pool.open_file(path, "r+")
    assert np.array_equal(space[5], stamp(5))
    fill(space, [6], version=1)
    write_page(path, 5, version=7)
    os.utime(path, ns=(second, second))
    with pytest.raises(FileChanged):
        pool.flush()
    assert page_of(path, 6) == stamp(6).tobytes()


@pytest.mark.parametrize("flushed", [False, True])
def test_reopening_a_file_that_nobody_changed_compares_no_page(pool, attach, data_file, monkeypatch, flushed):
    """What is beyond doubt costs a look at the file's state, however many pages are in memory."""
    path = settle(data_file(16))
    space = pool.open_file(path, "r+")
    space.read_many(range(16))
    if flushed:
        fill(space, [6], version=1)
        assert pool.flush() == 1
    asked = []
    monkeypatch.setattr(file_changes, "first_changed", lambda *_: asked.append(1) or -1)
    misses = pool.stats().misses
    again = attach(pool).open_file(path, "r+")
    again.read_many(range(16))
    fill(again, [7], version=1)
    assert pool.flush() == 1
    assert not asked
    assert pool.stats().misses == misses


def test_a_write_while_the_pool_syncs_is_seen_at_the_next_open(pool, attach, data_file, monkeypatch):
    """The record was made after the sync, which may take long: what others wrote meanwhile counted as the pool's own."""
    path = settle(data_file(16))
    space = pool.open_file(path, "r+")
    assert np.array_equal(space[5], stamp(5))
    fill(space, [6], version=1)
    sync = writeback.FileStore.sync
    monkeypatch.setattr(writeback.FileStore, "sync", lambda self: (write_page(path, 5, version=7), sync(self)))
    assert pool.flush() == 1
    monkeypatch.undo()
    assert np.array_equal(attach(pool).open_file(path, "r+")[5], stamp(5, version=7))


def test_a_store_through_a_mapping_is_seen_where_the_file_system_gives_it_a_time(pool, attach, data_file):
    """A page that was mapped and dirty when the pool loaded it was stored to without a fault, and no time changed."""
    path = data_file(16)
    if mount_of(str(path.parent)).kind not in ("ext4", "xfs", "btrfs"):
        pytest.skip("nobody knows when this file system gives a file a new time for stores through a mapping")
    mapped = np.memmap(path, np.uint8, "r+")
    for first, second in ((1, 99), (98, 97)):
        mapped[5 * PAGE] = first
        time.sleep(0.05)  # longer than a step of the clock of file times: the record is beyond doubt
        assert attach(pool).open_file(path)[5][0] == first
        time.sleep(0.05)
        mapped[5 * PAGE] = second
        mapped.flush()
        assert attach(pool).open_file(path)[5][0] == second


# ---- the remedies ---------------------------------------------------------------------------


@pytest.fixture
def stuck(pool, data_file):
    """(pool, path): the file has another page 5, and pages 6 and 15 are dirty; the process that wrote them is gone."""
    path = settle(data_file(16, name="stuck.db"))
    with bp.Pool.attach(pool.name) as writer:
        space = writer.open_file(path, "r+")
        assert np.array_equal(space[5], stamp(5))
        fill(space, [6, 15], version=1)
    write_page(path, 5, version=7)
    write_page(path, 6, version=7)
    _touch(path)
    with pytest.raises(FileChanged):
        pool.open_file(path, "r+")
    return pool, path


def test_dirty_pages_can_be_looked_at_without_a_handle(stuck):
    """No handle could be opened any more, so what the error advised (space.remove) could not be done."""
    pool, path = stuck
    before = path.read_bytes()
    for _ in range(2):
        found = dict(pool.dirty_pages("stuck.db"))
        assert sorted(found) == [6, 15]
        assert all(np.array_equal(image, stamp(n, version=1)) for n, image in found.items())
        assert all(image.flags.owndata and image.flags.writeable for image in found.values())
    assert path.read_bytes() == before
    with pytest.raises(SpaceNotFound):
        list(pool.dirty_pages("nothing"))


def test_looking_at_dirty_pages_is_no_use_of_them(stuck, tmp_path):
    """Each page that `dirty --save` wrote counted as a hit, so a rescue looked like an application that reads."""
    pool, _path = stuck
    before = pool.stats()
    assert main(["dirty", pool.name, "stuck.db", "--save", str(tmp_path / "saved")]) == 0
    assert len(dict(pool.dirty_pages("stuck.db"))) == 2
    after = pool.stats()
    assert (after.hits, after.misses, after.loads) == (before.hits, before.misses, before.loads)


def test_dirty_pages_can_be_given_up_without_a_handle(stuck):
    pool, path = stuck
    before = path.read_bytes()
    assert pool.discard("stuck.db") == 2
    assert path.read_bytes() == before
    again = pool.open_file(path, "r+")
    assert [bytes(again[n]) for n in (5, 6, 15)] == [
        stamp(n, version=v).tobytes() for n, v in ((5, 7), (6, 7), (15, 0))
    ]
    assert pool.flush() == 0


def test_dirty_pages_can_be_written_over_the_change_on_purpose(stuck):
    """Page 6 is the pool's afterwards, page 5 the other program's."""
    pool, path = stuck
    assert pool.overwrite("stuck.db") == 2
    for again in (pool.open_file(path, "r+"), [np.frombuffer(page_of(path, n), np.uint8) for n in range(16)]):
        assert all(np.array_equal(again[n], stamp(n, version=v)) for n, v in ((5, 7), (6, 1), (15, 1), (3, 0)))
    assert pool.flush() == 0


@pytest.mark.parametrize("change", ["page appended", "cut", "renamed over", "touched"])
def test_pages_are_written_over_every_kind_of_change(pool, attach, data_file, change):
    path = settle(data_file(16))
    space = pool.open_file(path, "r+")
    fill(space, [6, 15], version=1)
    CHANGES[change](path)
    changed = path.read_bytes()
    assert attach(pool).overwrite(space.name) == 2
    size = max(len(changed), 16 * PAGE)
    expected = bytearray(changed.ljust(size, b"\0"))
    for n in (6, 15):
        expected[n * PAGE : (n + 1) * PAGE] = stamp(n, version=1).tobytes()
    assert path.read_bytes() == expected
    if change == "renamed over":
        with pytest.raises(SpaceRemoved):
            space[6]
    again = attach(pool).open_file(path, "r+")
    assert len(again) == size // PAGE
    assert all(bytes(again[n]) == expected[n * PAGE : (n + 1) * PAGE] for n in range(len(again)))
    fill(again, [3], version=2)
    assert pool.flush() == 1


@pytest.mark.parametrize("change", ["page written", "cut", "renamed over"])
def test_an_overwrite_with_a_page_above_the_durable_lsn_changes_nothing(pool, data_file, change):
    """The call was refused after the new file had been recorded: old handles published pages of the old file as those of the
    new."""
    path = settle(data_file(16))
    space = pool.open_file(path, "r+")
    pool.durable_lsn = 10
    fill(space, [6], version=1)
    write = space.write(12)
    with write as page:
        page[:] = stamp(12, version=1)
        write.lsn = 20
    CHANGES[change](path)
    changed = path.read_bytes()
    with pytest.raises(SpaceBusy, match=r"LSN 20, above the durable LSN 10.*advance_durable_lsn\(20\)"):
        pool.overwrite(space.name)
    assert path.read_bytes() == changed
    assert [n for n, _ in pool.dirty_pages(space.name)] == [6, 12]
    if change == "renamed over":
        assert np.array_equal(space[8], stamp(8))  # a page of the file that the handle has open
    for refused in (lambda: pool.open_file(path, "r+"), pool.flush):  # the record is still that of the old file
        with pytest.raises(FileChanged):
            refused()
    pool.advance_durable_lsn(20)
    assert pool.overwrite(space.name) == 2
    again = pool.open_file(path, "r+")
    expected = bytearray(changed.ljust(13 * PAGE, b"\0"))
    for n in (6, 12):
        expected[n * PAGE : (n + 1) * PAGE] = stamp(n, version=1).tobytes()
    assert path.read_bytes() == expected
    assert all(bytes(again[n]) == expected[n * PAGE : (n + 1) * PAGE] for n in range(len(again)))
    assert pool.check() == []


@pytest.mark.parametrize("change", ["cut", "renamed over"])
def test_no_page_of_an_old_handle_passes_for_one_of_the_file_that_is_overwritten(pool, data_file, monkeypatch, change):
    """An old handle that loads pages while the new file is written, and a sync that fails then, left the old pages in the space."""
    path = settle(data_file(16))
    space = pool.open_file(path, "r+")
    fill(space, [1], version=1)
    CHANGES[change](path)
    loaded = []

    def fails(_store):
        loaded.append(bytes(space[3]))
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(bp.FileStore, "sync", fails)
        with pytest.raises(StoreError):
            pool.overwrite(space.name)
    assert loaded == [stamp(3).tobytes()]
    assert dirty(pool) == 1
    with pytest.raises(FileChanged):
        pool.flush()
    assert pool.overwrite(space.name) == 1
    again = pool.open_file(path, "r+")
    assert all(bytes(again[n]) == page_of(path, n) for n in range(len(again)))
    assert pool.check() == []


def test_pages_of_a_deleted_file_can_be_saved_and_written_once_it_is_back(pool, data_file):
    path = settle(data_file(16))
    space = pool.open_file(path, "r+")
    fill(space, [6], version=1)
    backup = path.read_bytes()
    path.unlink()
    with pytest.raises(FileChanged, match="create an empty file"):
        pool.overwrite(space.name)
    assert [n for n, _ in pool.dirty_pages(space.name)] == [6]
    path.write_bytes(backup)
    assert pool.overwrite(space.name) == 1
    assert page_of(path, 6) == stamp(6, version=1).tobytes()


def test_pages_of_a_deleted_file_can_be_written_to_an_empty_file(pool, data_file, attach):
    """FileChanged offered overwrite, which was a bare FileNotFoundError: there was no file to write over."""
    path = settle(data_file(16))
    space = pool.open_file(path, "r+")
    fill(space, [6], version=1)
    path.unlink()
    for refused in (pool.flush, attach(pool).flush, lambda: pool.overwrite(space.name)):
        with pytest.raises(FileChanged, match=r"deleted.* at its path, or create an empty file there first") as told:
            refused()
    assert told.value.errno == errno.ENOENT
    path.touch()
    assert pool.overwrite(space.name) == 1
    assert page_of(path, 6) == stamp(6, version=1).tobytes()
    assert pool.check() == []


def test_who_may_only_read_looks_and_changes_nothing(stuck):
    pool, _path = stuck
    with bp.Pool.attach(pool.name, mode="r") as reader:
        assert [n for n, _ in reader.dirty_pages("stuck.db")] == [6, 15]
        for refused in (reader.discard, reader.overwrite):
            with pytest.raises(PoolReadOnly):
                refused("stuck.db")
    assert dirty(pool) == 2


def test_the_commands_do_the_same(stuck, tmp_path, capsys):
    pool, path = stuck
    assert main(["flush", pool.name]) == 1
    assert "bufferpool dirty" in capsys.readouterr().err
    assert main(["dirty", pool.name, "stuck.db", "--save", str(tmp_path / "saved")]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["page", "6", "15"]
    assert (tmp_path / "saved" / "page-0000000006").read_bytes() == stamp(6, version=1).tobytes()
    assert main(["flush", pool.name, "stuck.db", "--overwrite"]) == 0
    assert page_of(path, 6) == stamp(6, version=1).tobytes()
    assert main(["dirty", pool.name, "stuck.db"]) == 0
    assert "no page" in capsys.readouterr().out
    fill(pool.open_file(path, "r+"), [1], version=3)
    assert main(["discard", pool.name, "stuck.db"]) == 0
    assert page_of(path, 1) == stamp(1).tobytes()
    with pytest.raises(SystemExit):
        main(["flush", pool.name, "--overwrite"])


# ---- writes that fail -------------------------------------------------------------------------


def test_a_write_that_fails_half_way_leaves_whole_pages(pool, data_file, monkeypatch):
    """A file with a part of a page at its end could not be opened any more."""
    path = settle(data_file(4))
    space = pool.open_file(path, "r+")
    for n in range(4, 10):
        with space.append() as page:
            page[:] = stamp(n, version=1)

    def full(fd, buffers, offset):
        if len(os.pread(fd, 1, offset)) == 0:  # the disk has room for two pages and a half
            os.pwrite(fd, np.concatenate(buffers)[: 2 * PAGE + 1000], offset)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwritev", full)
    with pytest.raises(StoreError, match="disk is full"):
        pool.flush()
    monkeypatch.undo()
    assert path.stat().st_size == 6 * PAGE
    assert dirty(pool) == 6
    assert len(pool.open_file(path, "r+")) == 10
    assert pool.flush() == 6
    assert path.read_bytes() == b"".join(stamp(n, version=n >= 4).tobytes() for n in range(10))


@pytest.mark.parametrize("seconds", [-(10**9), -5, -1, 0, 1, 2**33, 10**10], ids=str)
def test_a_time_of_any_year_is_no_change(pool, attach, data_file, seconds):
    """A time before 1970 was recorded without its sign: each reopening dropped the pages, and no flush ever wrote one."""
    path, other = data_file(4), attach(pool)
    os.utime(path, ns=(0, seconds * 10**9 + 7))
    if os.stat(path).st_mtime_ns != seconds * 10**9 + 7:
        pytest.skip("the file system keeps no such time")
    table = pool.open_file(path, "r+")
    assert table[2].any()
    assert other.open_file(path, "r+")[1].any()
    assert pool.stats().frames.live == 2
    fill(table, [1], version=1)
    assert pool.flush() == 1
    os.utime(path, ns=(0, seconds * 10**9 + 8))
    fill(table, [1], version=2)
    os.truncate(path, 3 * PAGE)
    with pytest.raises(FileChanged):
        pool.flush()
    pool.discard(table.name)


def _flush_elsewhere(pool, root):
    os.chroot(root)
    with pytest.raises(FileChanged) as refused:
        pool.flush()
    return str(refused.value)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may call chroot")
def test_a_process_that_sees_other_paths_gets_an_error_that_says_so(pool, data_file, child, tmp_path):
    """After chroot, or in another container, a flush said that the file had been deleted, and asked for it to be restored."""
    table = pool.open_file(data_file(4), "r+")
    fill(table, [1], version=1)
    (tmp_path / "root").mkdir()
    said = child(_flush_elsewhere, pool, tmp_path / "root", context="fork").result()
    assert "this process sees other paths, in a container or after chroot" in said
    assert pool.flush() == 1
    assert pool.check() == []
