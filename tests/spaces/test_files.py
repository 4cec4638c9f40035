"""Files: opened, grown, flushed, replaced; one file is one space."""

import os
import subprocess
import sys

import numpy as np
import pytest

from bufferpool.errors import (
    ShortRead,
    SpaceMismatch,
    SpaceReadOnly,
    SpaceRemoved,
    StoreError,
)
from tests.conftest import PAGE, fill, pins, stamp
from tests.support.memory_store import Memory

_LEASE = """
import fcntl, os, signal, sys
fd = os.open(sys.argv[1], os.O_RDONLY)
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGIO})  # it may come before this process waits for it
fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
print("has it", flush=True)
signal.sigwait({signal.SIGIO})
fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
"""


def test_mode_r_reads_and_never_writes(pool, data_file):
    path = data_file(4)
    os.chmod(path, 0o400)
    space = pool.open_file(path)
    assert np.array_equal(space[3], stamp(3))
    with pytest.raises(SpaceReadOnly):
        space.write(3)
    assert space.flush() == 0


def test_mode_r_plus_needs_the_file(pool, tmp_path):
    for mode in ("r", "r+"):
        with pytest.raises(FileNotFoundError):
            pool.open_file(tmp_path / "nothing", mode)
    assert pool.stats().spaces == []


def test_mode_w_plus_creates_a_file_and_it_grows(pool, tmp_path):
    path = tmp_path / "new.db"
    space = pool.open_file(path, "w+")
    assert len(space) == 0
    assert path.stat().st_size == 0
    for n in range(10):
        with space.append() as page:
            page[:] = stamp(n)
    assert path.stat().st_size == 0
    assert pool.flush() == 10
    assert path.read_bytes() == b"".join(stamp(n).tobytes() for n in range(10))


def test_mode_w_plus_empties_a_file_that_the_pool_has(pool, attach, data_file):
    path = data_file(10)
    old = pool.open_file(path, "r+")
    fill(old, [3], version=1)
    kept = old[3]
    space = pool.open_file(path, "w+")
    assert len(space) == 0
    assert path.stat().st_size == 0
    with pytest.raises(SpaceRemoved):
        old[3]
    assert np.array_equal(kept, stamp(3, version=1))
    with space.append() as page:
        page[:] = stamp(0, version=2)
    pool.flush()
    assert path.read_bytes() == stamp(0, version=2).tobytes()
    assert np.array_equal(attach(pool).open_file(path)[0], stamp(0, version=2))


def test_flush_writes_exactly_the_dirty_pages(pool, data_file):
    path = data_file(20)
    space = pool.open_file(path, "r+")
    for n in range(20):
        assert space[n].size
    fill(space, [0, 5, 6, 7, 19], version=1)
    assert path.read_bytes() == b"".join(stamp(n).tobytes() for n in range(20))
    assert pool.stats().frames.dirty == 5
    assert pool.flush() == 5
    want = [stamp(n, version=n in (0, 5, 6, 7, 19)).tobytes() for n in range(20)]
    assert path.read_bytes() == b"".join(want)
    stats = pool.stats()
    assert (stats.frames.dirty, stats.flushed_pages, stats.foreground_flushes) == (0, 5, 0)
    assert pool.flush() == 0
    assert pool.stats().flushes == stats.flushes


def test_appended_pages_reach_the_file(pool, data_file):
    path = data_file(3)
    space = pool.open_file(path, "r+")
    for n in range(3, 200):  # more than the pool has
        with space.append() as page:
            page[:] = stamp(n)
    pool.flush()
    assert path.read_bytes() == b"".join(stamp(n).tobytes() for n in range(200))
    assert all(np.array_equal(space[n], stamp(n)) for n in range(200))
    assert pool.stats().foreground_flushes > 0


def test_a_page_that_was_appended_but_not_flushed_is_no_page_of_the_file(pool, data_file):
    path = data_file(3)
    space = pool.open_file(path, "r+")
    with space.append() as page:
        page[:] = 1
    space.drop(3, 1)  # without write-back: the file has nothing there
    assert not space[3].any()
    assert len(space) == 4
    assert path.stat().st_size == 3 * PAGE


def test_flush_of_one_space_leaves_the_others_alone(pool, data_file):
    a, b = pool.open_file(data_file(4), "r+"), pool.open_file(data_file(4), "r+")
    fill(a, [1], version=1)
    fill(b, [1, 2], version=1)
    assert b.flush() == 2
    assert pool.stats().frames.dirty == 1
    assert pool.flush(a) == 1


def test_a_version_published_during_a_flush_stays_dirty(pool):
    store = Memory(4)
    space = pool.open_store("store", store, mode="r+")
    fill(space, [1], version=1)

    def during(offset, buffer):
        store.on_write = None
        fill(space, [1], version=2)

    store.on_write = during
    assert pool.flush() >= 1
    assert np.array_equal(space[1], stamp(1, version=2))
    pool.flush()
    assert store.pages[1] == stamp(1, version=2).tobytes()
    assert store.written[1] == [stamp(1, version=v).tobytes() for v in (1, 2)]


def test_a_file_opened_twice_under_two_names_is_refused(pool, data_file):
    path = data_file(4)
    pool.open_file(path, name="first")
    with pytest.raises(SpaceMismatch, match="name='first'"):
        pool.open_file(path, name="second")
    link = path.with_name("link.db")
    os.link(path, link)
    with pytest.raises(SpaceMismatch, match="first"):
        pool.open_file(link)
    assert [space.name for space in pool.stats().spaces] == ["first"]


def test_two_files_of_one_name_are_told_apart(pool, data_file, tmp_path):
    (tmp_path / "other").mkdir()
    first, second = data_file(4, name="x.db"), data_file(5, name="other/x.db")
    pool.open_file(first)
    with pytest.raises(SpaceMismatch, match=r"pass another name="):
        pool.open_file(second)
    assert len(pool.open_file(second, name="y")) == 5


def test_a_file_opened_for_reading_can_be_opened_for_writing_later(pool, attach, data_file):
    path = data_file(4)
    reader = pool.open_file(path)
    writer = attach(pool).open_file(path, "r+")
    fill(writer, [1], version=1)
    assert np.array_equal(reader[1], stamp(1, version=1))
    assert pool.flush() == 1  # by a client that opened it for reading
    assert path.read_bytes()[PAGE : 2 * PAGE] == stamp(1, version=1).tobytes()
    with writer.append() as page:
        page[:] = stamp(4)
    assert np.array_equal(reader[4], stamp(4))


def test_a_file_that_is_cut_under_the_pool_is_a_short_read(pool, data_file):
    path = data_file(10)
    space = pool.open_file(path)
    os.truncate(path, 5 * PAGE + 100)
    assert np.array_equal(space[4], stamp(4))
    for n in (5, 9):
        with pytest.raises(ShortRead, match="cut"):
            space[n]
    with pytest.raises(ShortRead):
        space.pin_many([1, 2, 9])
    assert pins(pool) == 0
    assert pool.stats().load_failures >= 3
    assert pool.stats().frames.busy == 0


def test_a_file_opened_for_reading_may_grow_by_somebody_elses_hand(pool, data_file):
    path = data_file(4)
    pool.open_file(path)
    with open(path, "ab") as file:
        file.write(stamp(4).tobytes())
    space = pool.open_file(path)
    assert len(space) == 5
    assert np.array_equal(space[4], stamp(4))


def test_a_directory_is_no_file_of_pages(pool, tmp_path):
    (tmp_path / "dir").mkdir()
    with pytest.raises((OSError, StoreError, ValueError)):
        pool.open_file(tmp_path / "dir", "r")
    assert pool.stats().spaces == []


def test_a_file_on_which_another_program_has_a_lease_is_opened_when_that_is_given_up(pool, data_file):
    """Samba and NFS servers take leases on the files of their clients, and give them up when the kernel asks: to open such a file for
    writing raised BlockingIOError."""
    path = data_file(4)
    command = [sys.executable, "-c", _LEASE, path]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        if holder.stdout.readline() != "has it\n":
            pytest.skip("the file system gives no leases (F_SETLEASE)")
        fill(pool.open_file(path, "r+"), [2], version=1)
    assert holder.returncode == 0
    assert pool.flush() == 1
