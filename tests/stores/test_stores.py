"""Stores: any object with the four methods, and what happens when they fail."""

import ctypes

import numpy as np
import pytest

import bufferpool as bp
from bufferpool.errors import (
    LoaderOverrun,
    PoolExhausted,
    ShortRead,
    ShortWrite,
    SpaceReadOnly,
    StoreError,
)
from tests.conftest import PAGE, fill, pins, stamp
from tests.support.memory_store import Memory


def test_any_object_with_the_four_methods_is_a_store(pool):
    assert isinstance(Memory(), bp.Store)
    store = Memory(10)
    space = pool.open_store("store", store, mode="r+")
    assert len(space) == 10
    assert np.array_equal(space[3], stamp(3))
    fill(space, [3, 4, 8], version=1)
    with space.append() as page:
        page[:] = stamp(10)
    assert space.flush() == 4
    assert store.calls == [
        ("read", 3),
        ("read", 4),
        ("read", 8),
        ("write", 3, 2),
        ("write", 8, 1),
        ("write", 10, 1),
        ("sync",),
    ]
    assert store.pages[4] == stamp(4, version=1).tobytes()
    assert store.pages[10] == stamp(10).tobytes()
    assert store.size() == 11 * PAGE


def test_a_store_without_its_methods_is_refused(pool):
    class Half:
        def read_into(self, offset, buffer): ...

    with pytest.raises(TypeError, match="write_from"):
        pool.open_store("store", Half(), mode="r+")
    with pytest.raises(ValueError, match="mode"):
        pool.open_store("store", Memory(1), mode="w+")


def test_a_store_opened_for_reading_is_not_written(pool):
    space = pool.open_store("store", Memory(4), mode="r")
    with pytest.raises(SpaceReadOnly):
        space.write(1)


def test_a_buffer_that_a_store_keeps_does_not_change(pool):
    store, kept = Memory(4), []
    store.on_write = lambda offset, buffer: kept.append(buffer)
    space = pool.open_store("store", store, mode="r+")
    fill(space, [1], version=1)
    pool.flush()
    fill(space, [1], version=2)
    pool.flush()
    assert kept[0].tobytes() == stamp(1, version=1).tobytes()


def test_a_store_that_cannot_be_read_fails_those_who_ask_and_works_later(pool):
    store = Memory(4)
    space = pool.open_store("store", store, mode="r+")
    store.fail_read = OSError(5, "Input/output error")
    with pytest.raises(StoreError, match="Input/output error") as failed:
        space[1]
    assert failed.value.__cause__ is store.fail_read
    store.fail_read = None
    store.short_read = 100
    with pytest.raises(ShortRead, match="100 of 4096"):
        space[1]
    store.short_read = None
    assert pool.stats().frames.live == pool.stats().frames.busy == 0
    assert np.array_equal(space[1], stamp(1))


def test_a_failing_write_keeps_the_pages_dirty(pool):
    store = Memory(10)
    space = pool.open_store("store", store, mode="r+")
    fill(space, [1, 2, 5], version=1)
    for error, match in ((OSError(28, "No space left on device"), "full"), (RuntimeError("odd"), "odd")):
        store.fail_write = error
        with pytest.raises(StoreError, match=match) as failed:
            pool.flush()
        assert "stay dirty" in str(failed.value)
        assert failed.value.__cause__ is error
        assert pool.stats().frames.dirty == 3
        assert pool.stats().flushed_pages == 0
        assert pool.frames()["flusher"].sum() == 0
        assert pins(pool) == 0
    store.fail_write = None
    assert pool.flush() == 3
    assert [store.pages[n] for n in (1, 2, 5)] == [stamp(n, version=1).tobytes() for n in (1, 2, 5)]


def test_a_short_write_keeps_the_pages_dirty(pool):
    store = Memory(10)
    space = pool.open_store("store", store, mode="r+")
    fill(space, [1], version=1)
    for short in (0, 100, PAGE + 1):
        store.short_write = short
        with pytest.raises(ShortWrite):
            pool.flush()
        assert pool.stats().frames.dirty == 1
    store.short_write = None
    assert pool.flush() == 1


def test_a_failing_sync_keeps_the_pages_dirty_and_they_are_written_again(pool):
    store = Memory(10)
    space = pool.open_store("store", store, mode="r+")
    fill(space, [1, 2], version=1)
    store.fail_sync = OSError(5, "Input/output error")
    for _ in range(2):
        with pytest.raises(StoreError, match="stay dirty"):
            pool.flush()
        assert pool.stats().frames.dirty == 2
    store.fail_sync = None
    assert pool.flush() == 2
    assert len(store.written[1]) == 3
    assert pool.stats().frames.dirty == 0


def test_a_store_that_fails_does_not_keep_other_spaces_from_being_flushed(pool, data_file):
    store, path = Memory(4), data_file(4)
    bad, good = pool.open_store("bad", store, mode="r+"), pool.open_file(path, "r+")
    fill(bad, [1], version=1)
    fill(good, [1, 2], version=1)
    store.fail_write = OSError("broken")
    with pytest.raises(StoreError, match="bad"):
        pool.flush()
    assert path.read_bytes()[PAGE : 2 * PAGE] == stamp(1, version=1).tobytes()
    assert pool.stats().frames.dirty == 1


def test_a_pool_full_of_pages_that_a_store_does_not_take_says_so(pool):
    store = Memory(200)
    space = pool.open_store("store", store, mode="r+")
    store.fail_write = OSError("broken")
    with pytest.raises((PoolExhausted, StoreError)):
        fill(space, range(200), version=1)
    dirty = pool.stats().frames.dirty
    assert dirty > 50
    store.fail_write = None
    fill(space, range(200), version=2)
    pool.flush()
    assert all(store.pages[n] == stamp(n, version=2).tobytes() for n in range(200))


def test_a_store_that_writes_outside_its_buffer_is_found(pool):
    class Overrun(Memory):
        def read_into(self, offset, buffer):
            ctypes.memset(buffer.ctypes.data - 1, 0x55, 1)
            ctypes.memset(buffer.ctypes.data - 2, 0xAA, 1)
            return buffer.nbytes

    space = pool.open_store("store", Overrun(4), mode="r+")
    with pytest.raises(LoaderOverrun, match="Overrun"):
        space[1]


def test_another_process_needs_the_store_to_flush_it(pool, attach):
    space = pool.open_store("store", Memory(4), mode="r+")
    fill(space, [1], version=1)
    other = attach(pool)
    with pytest.raises(StoreError, match="open_store"):
        other.flush()
    assert pool.stats().frames.dirty == 1
    store = Memory(4)
    other.open_store("store", store, mode="r+")
    assert other.flush() == 1
    assert store.pages[1] == stamp(1, version=1).tobytes()


def test_a_page_that_the_store_does_not_have_yet_is_zeros(pool, monkeypatch):
    """A miss beyond the store's end built a dict of every space for one integer; the core knows it, and calls no Python."""
    space = pool.open_store("store", Memory(2), mode="r+", max_pages=8)
    first, second = space.append(), space.append()
    with second as page:  # the space has four pages now, and nobody has written the third
        page[:] = stamp(3)
    monkeypatch.setattr(type(space), "_fill", lambda *args: pytest.fail("Python was asked for a page of zeros"))
    assert not space[2].any()
    assert np.array_equal(space[3], stamp(3))
    monkeypatch.undo()
    assert np.array_equal(space[1], stamp(1))
    with first as page:
        page[:] = stamp(2)
    assert np.array_equal(space[2], stamp(2))
