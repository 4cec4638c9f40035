"""Others remove a file's space and open it again, in the middle of an operation: their writes are no foreign change."""

import os

import numpy as np
import pytest

from bufferpool.errors import SpaceBusy, SpaceRemoved
from bufferpool.spaces import directory
from bufferpool.stores.base import FileStore
from tests.conftest import PAGE, WAIT, stamp
from tests.support.stewards import put


def test_what_is_found_out_about_a_file_is_not_recorded_for_the_next_space_of_the_slot(
    pool, attach, data_file, monkeypatch
):
    """A process that opened a file recorded its state under the flush lock only. If the space was removed meanwhile, and its slot
    taken by another file, that file was taken for replaced: FileChanged, although nobody had changed it."""
    other = attach(pool)
    first, second = data_file(4), data_file(4)
    old = pool.open_file(first, "r+")
    os.chmod(first, 0o640)  # so that the next one who opens it compares it with the pages in memory
    opened = []
    compare = directory.is_unchanged

    def compare_slowly(*args, **kwargs):
        monkeypatch.setattr(directory, "is_unchanged", compare)
        found = compare(*args, **kwargs)
        record = pool.client.seg.space(old.index)
        with pool.client.seg.lock_directory(WAIT):  # as a process does that had begun to remove it
            pool.client.seg.remove_space(record["index"])
        opened.append(other.open_file(second, "r+"))
        return found

    monkeypatch.setattr(directory, "is_unchanged", compare_slowly)
    again = pool.open_file(first, "r+")
    assert opened[0].index == old.index  # the slot was taken again
    put(opened[0], 1)
    put(again, 2)
    assert other.flush(opened[0]) + pool.flush(again) == 2
    with pytest.raises(SpaceRemoved):
        old[0]
    assert pool.check() == []


def test_a_file_that_was_opened_flushed_and_removed_meanwhile_is_opened_as_it_is_now(
    pool, attach, data_file, monkeypatch
):
    """The state of the file was read before the directory was locked. Between the two another process opened the file, wrote it
    and removed the space: the space had too few pages then, and its first flush raised FileChanged."""
    other, path = attach(pool), data_file(4)
    look = FileStore.fresh_state

    def look_slowly(store):
        state = look(store)
        monkeypatch.setattr(FileStore, "fresh_state", look)
        theirs = other.open_file(path, "r+")
        with theirs.append() as page:
            page[:] = stamp(4)
        assert theirs.flush(timeout=WAIT) == 1
        theirs.remove()
        return state

    monkeypatch.setattr(FileStore, "fresh_state", look_slowly)
    table = pool.open_file(path, "r+")
    assert len(table) == 5
    assert np.array_equal(table[4], stamp(4))
    put(table, 1, version=2)
    assert pool.flush() == 1
    assert os.path.getsize(path) == 5 * PAGE
    assert pool.check() == []


def test_a_space_is_not_removed_while_a_flush_of_it_may_begin(pool, attach, data_file, monkeypatch, threads):
    """A flush that had its lock, and no page yet, did not keep the space from being removed: it could write to the file while
    the next space of the file was opened, which then took that for another program's change."""
    other, path = attach(pool), data_file(4)
    table = pool.open_file(path, "r+")
    put(table, 1, version=2)
    monkeypatch.setattr(directory, "BUSY_S", 0.1)
    held = []
    threads.start(lambda: held.append(other.client.seg.lock_flush(table.index)))
    threads.join()
    with pytest.raises(SpaceBusy):
        table.remove(discard=True)
    assert np.array_equal(table[1], stamp(1, version=2))
    held.clear()
    table.remove(discard=True)
    assert np.array_equal(pool.open_file(path)[1], stamp(1))
    assert pool.check() == []
