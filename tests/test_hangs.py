"""A store that hangs holds up those who want its pages, and nobody else."""

import os

import numpy as np
import pytest

from bufferpool import directory
from bufferpool.errors import SpaceRemoved
from tests.conftest import fill, stamp, wait_until
from tests.hanging import Hanging, file_that_hangs, in_time


@pytest.fixture
def hung(pool):
    """A store of 16 pages whose methods can be made to hang; they go on when the test ends."""
    store = Hanging(16)
    yield store
    store.open()


def test_a_store_whose_size_hangs_holds_up_no_other_opening(pool, data_file, hung, threads):
    """A store's size() was asked for under the lock of the directory: while it hung, nobody could open a space."""
    hung.sizes.shut()
    threads.start(pool.open_store, "hung", hung)
    hung.sizes.wait_until_somebody_came()
    work = in_time(pool.scratch, "work", 4)
    table = in_time(pool.open_file, data_file(4), "r+")
    assert np.array_equal(table[2], stamp(2))
    in_time(work.remove, discard=True)
    assert [r["name"] for r in pool._seg.spaces()] == [table.name]
    hung.sizes.open()
    threads.join()
    assert pool.check() == []
    assert len(pool.space("hung")) == 16


def test_two_who_open_a_store_at_once_get_one_space(pool, hung, threads):
    """What a store says is read before the lock is taken: who finds the space there by then takes that one."""
    spaces = []
    hung.sizes.shut()
    threads.start(lambda: spaces.append(pool.open_store("one", hung)))
    hung.sizes.wait_until_somebody_came()
    other = Hanging(16)
    spaces.append(in_time(pool.open_store, "one", other))
    hung.sizes.open()
    threads.join()
    assert len({(space.index, space._generation) for space in spaces}) == 1
    assert len(pool._seg.spaces()) == 1


def test_who_waits_for_the_flush_of_a_file_to_open_it_holds_up_no_other_opening(pool, data_file, monkeypatch, threads):
    """Whoever opened a file that was just being flushed waited for that with the lock of the directory held."""
    path = data_file(16)
    table = pool.open_file(path, "r+")
    fill(table, [3], version=1)
    with file_that_hangs(monkeypatch, path) as sync:
        threads.start(pool.flush, table)
        sync.wait_until_somebody_came()
        waits = pool.stats().wait_memory
        threads.start(pool.open_file, path, "r")  # its time has changed: by whom is known after the flush
        wait_until(lambda: pool.stats().wait_memory > waits, "somebody waits for the flush lock")
        in_time(pool.scratch, "work", 1)
        in_time(pool.open_file(data_file(4)).remove)
    threads.join()
    assert pool.check() == []


def test_a_space_in_use_that_is_to_be_removed_holds_up_no_opening(pool, monkeypatch, threads):
    """remove() waited for the writer of a page with the lock of the directory held."""
    monkeypatch.setattr(directory, "BUSY_S", 3600.0)
    used = pool.scratch("used", 4)
    looks = []
    in_use = directory._remove_now
    monkeypatch.setattr(directory, "_remove_now", lambda *a: looks.append(1) or in_use(*a))
    with used.write(1) as page:
        threads.start(lambda: used.remove(discard=True))
        wait_until(lambda: len(looks) > 2, "somebody waits for the writer")
        in_time(pool.scratch, "other", 4)
        page[:] = 1
    threads.join()
    assert [r["name"] for r in pool._seg.spaces()] == ["other"]


def test_who_opens_a_file_while_it_is_emptied_waits_until_it_is_empty(pool, data_file, monkeypatch, threads):
    """A file is emptied after its space was added, without the lock of the directory: who opens it then sees it empty."""
    path, opened = data_file(16), []
    cut, table = os.ftruncate, pool.open_file(path, "r+")

    def cut_late(fd, size):
        waits = pool.stats().wait_memory
        threads.start(lambda: opened.append(pool.open_file(path, "r+")))
        wait_until(lambda: pool.stats().wait_memory > waits, "somebody waits for the flush lock")
        cut(fd, size)

    monkeypatch.setattr(directory.os, "ftruncate", cut_late)
    emptied = pool.open_file(path, "w+")
    threads.join()
    assert len(emptied) == len(opened[0]) == path.stat().st_size == 0
    assert emptied.index == opened[0].index
    with pytest.raises(SpaceRemoved):
        len(table)
    with emptied.append() as page:
        page[:] = stamp(0, version=2)
    pool.flush()
    assert path.read_bytes() == stamp(0, version=2).tobytes()
