"""Spaces: found by name, limited in number, sharing one budget, removed."""

import os
import signal
import threading

import numpy as np
import pytest

import bufferpool as bp
from bufferpool import _core
from bufferpool.errors import (
    PageOutOfRange,
    PoolExhausted,
    SpaceBusy,
    SpaceMismatch,
    SpaceNotFound,
    SpaceRemoved,
    StoreError,
    TooManySpaces,
)
from tests.conftest import PAGE, WAIT, fill, stamp
from tests.support.memory_store import Memory

# ---- spaces that are there ------------------------------------------------------------


def test_a_space_is_found_by_its_name(pool, attach, data_file):
    fill(pool.open_scratch("work", 4), [1])
    path = data_file(4, name="t.db")
    pool.open_file(path, "r+")
    other = attach(pool)
    assert np.array_equal(other.space("work")[1], stamp(1))
    assert other.space("work").kind is bp.Kind.SCRATCH
    with pytest.raises(bp.SpaceReadOnly):
        fill(other.space("t.db"), [2], version=1)
    with pytest.raises(bp.SpaceReadOnly):
        fill(other.space("work"), [2], version=1)
    fill(other.space("t.db", "r+"), [2], version=1)
    assert other.flush() == 1
    assert [(s.name, s.kind, s.pages) for s in pool.stats().spaces] == [("work", "scratch", 4), ("t.db", "file", 4)]


def test_a_name_that_no_space_has_lists_those_there_are(pool):
    pool.open_scratch("work", 4)
    with pytest.raises(SpaceNotFound, match="work"):
        pool.space("other")
    with pytest.raises(LookupError):
        pool.space("other")


def test_a_name_belongs_to_one_kind(pool, data_file):
    pool.open_scratch("x", 4)
    with pytest.raises(SpaceMismatch, match="scratch"):
        pool.open_derived("x", 4, lambda n, out: None)
    with pytest.raises(SpaceMismatch, match="scratch"):
        pool.open_file(data_file(4), name="x")
    with pytest.raises(SpaceMismatch):
        pool.open_store("x", Memory(4), mode="r+")
    pool.open_derived("d", 4, lambda n, out: None)
    with pytest.raises(SpaceMismatch, match="4 pages, not 5"):
        pool.open_derived("d", 5, lambda n, out: None)


def test_spaces_are_limited_and_their_slots_come_back(pool):
    spaces = [pool.open_scratch(f"s{i}", 1) for i in range(_core.MAX_SPACES)]
    with pytest.raises(TooManySpaces, match="remove"):
        pool.open_scratch("one more", 1)
    fill(spaces[10], [0])
    spaces[10].remove()
    again = pool.open_scratch("one more", 1)
    assert not again[0].any()
    with pytest.raises(SpaceRemoved):
        spaces[10][0]
    assert pool.check() == []


def test_a_space_of_no_pages(pool, tmp_path):
    (tmp_path / "empty").touch()
    for space in (
        pool.open_scratch("s", 0),
        pool.open_derived("d", 0, lambda n, out: None),
        pool.open_file(tmp_path / "empty"),
    ):
        assert len(space) == 0
        assert list(space) == []
        assert space.drop() == 0
        with pytest.raises(PageOutOfRange, match="0 pages"):
            space[0]


# ---- together ----------------------------------------------------------------------------------


def test_several_spaces_share_one_budget(pool, data_file):
    a, b = pool.open_file(data_file(100), "r+"), pool.open_file(data_file(100))
    derived = pool.open_derived("derived", 100, lambda n, out: np.copyto(out, stamp(n, version=3)))
    work = pool.open_scratch("work", 10)
    fill(work, range(10))
    for n in np.random.default_rng(5).integers(0, 100, 1000):
        n = int(n)
        assert np.array_equal(a[n], stamp(n))
        assert np.array_equal(b[n], stamp(n))
        assert np.array_equal(derived[n], stamp(n, version=3))
        assert np.array_equal(work[n % 10], stamp(n % 10))
    stats = pool.stats()
    assert stats.kernel_data_bytes <= stats.budget_bytes
    assert all(space.misses > 0 for space in stats.spaces if space.kind != "scratch")
    assert stats.misses == sum(space.misses for space in stats.spaces)


def test_pages_above_the_durable_lsn_are_held_back(pool, data_file):
    path = data_file(10)
    space = pool.open_file(path, "r+")
    assert pool.durable_lsn == 2**64 - 1
    pool.durable_lsn = 100
    for n, lsn in ((1, 50), (2, 100), (3, 101), (4, 2**64 - 1)):
        write = space.write(n)
        write.lsn = lsn
        with write as page:
            page[:] = stamp(n, version=1)
    assert pool.flush() == 2
    data = path.read_bytes()
    assert [data[n * PAGE : n * PAGE + PAGE] == stamp(n, version=1).tobytes() for n in (1, 2, 3, 4)] == [
        True,
        True,
        False,
        False,
    ]
    assert pool.stats().frames.dirty == 2
    pool.durable_lsn = 101
    assert pool.flush() == 1
    pool.durable_lsn = 2**64 - 1
    assert pool.flush() == 1
    assert pool.stats().durable_lsn == 2**64 - 1


def test_a_pool_full_of_pages_above_the_durable_lsn_says_so(pool, data_file):
    space = pool.open_file(data_file(100), "r+")
    pool.durable_lsn = 0

    def write_all():
        for n in range(100):
            write = space.write(n)
            write.lsn = 1
            with write as page:
                page[:] = n

    with pytest.raises(PoolExhausted, match="above durable_lsn"):
        write_all()
    pool.durable_lsn = 1
    write_all()
    assert pool.flush() > 0


def test_a_durable_lsn_that_is_none_is_refused(pool):
    for lsn, error in ((-1, ValueError), (2**64, ValueError), ("1", TypeError), (1.5, TypeError), (True, TypeError)):
        with pytest.raises(error, match="LSN"):
            pool.durable_lsn = lsn
    assert pool.durable_lsn == 2**64 - 1


# ---- removing ---------------------------------------------------------------------------------


def test_remove_flushes_and_old_handles_say_so(pool, attach, data_file):
    path = data_file(10)
    space, other = pool.open_file(path, "r+"), attach(pool).open_file(path, "r+")
    fill(space, [3], version=1)
    kept = other[3]
    space.remove()
    assert path.read_bytes()[3 * PAGE : 4 * PAGE] == stamp(3, version=1).tobytes()
    assert np.array_equal(kept, stamp(3, version=1))
    for handle in (space, other):
        for use in (
            lambda h=handle: h[3],
            lambda h=handle: h.pin(3),
            lambda h=handle: h.pin_many([3]),
            lambda h=handle: h.read_many([3]),
            lambda h=handle: h.write(3),
            lambda h=handle: h.append(),
            lambda h=handle: h.prefetch([3]),
            lambda h=handle: len(h),
            lambda h=handle: h.drop(3, 1),
            lambda h=handle: list(h.scan()),
        ):
            with pytest.raises(SpaceRemoved, match="open it again"):
                use()
    assert pool.stats().spaces == []
    again = pool.open_file(path, "r+")
    assert np.array_equal(again[3], stamp(3, version=1))
    with pytest.raises(SpaceRemoved):
        other[3]


def test_removing_twice_raises(pool):
    work = pool.open_scratch("work", 4)
    work.remove()
    with pytest.raises((SpaceRemoved, SpaceNotFound), match="removed"):
        work.remove()


def test_remove_with_discard_loses_dirty_pages_as_asked(pool, data_file):
    path = data_file(4)
    space = pool.open_file(path, "r+")
    fill(space, [1], version=1)
    space.remove(discard=True)
    assert path.read_bytes()[PAGE : 2 * PAGE] == stamp(1).tobytes()
    assert pool.flush() == 0


def test_a_failing_store_keeps_its_space_from_being_removed(pool):
    store = Memory(4)
    space = pool.open_store("store", store, mode="r+")
    fill(space, [1], version=1)
    store.fail_sync = OSError("broken")
    with pytest.raises(StoreError):
        space.remove()
    assert np.array_equal(space[1], stamp(1, version=1))
    store.fail_sync = None
    space.remove()
    assert store.pages[1] == stamp(1, version=1).tobytes()


def test_pages_above_the_durable_lsn_keep_their_space_from_being_removed(pool, data_file):
    space = pool.open_file(data_file(4), "r+")
    pool.durable_lsn = 0
    write = space.write(1)
    write.lsn = 9
    with write as page:
        page[:] = 1
    with pytest.raises(SpaceBusy):
        space.remove()
    assert (space[1] == 1).all()
    pool.durable_lsn = 9
    space.remove()


def _hold(space, n, holds, go):
    with space.write(n) as page:
        page[:] = 1
        holds.set()
        assert go.wait(WAIT)


def test_a_space_that_somebody_is_writing_is_not_half_removed(pool, attach, child, spawn):
    """remove() refuses, or removes; and no other process has to wait for the one that writes."""
    work = pool.open_scratch("work", 8)
    fill(work, range(8))
    holds, go = spawn.Event(), spawn.Event()
    writer = child(_hold, work, 3, holds, go)
    assert holds.wait(WAIT)
    removed = True
    try:
        work.remove()
    except SpaceBusy:
        removed = False
    opened = []
    other = attach(pool)
    thread = threading.Thread(
        target=lambda: opened.extend(other.open_scratch(f"s{i}", 4) for i in range(5)), daemon=True
    )
    thread.start()
    thread.join(WAIT)  # the writer does not end before all are open
    in_time = len(opened) == 5
    still_there = "work" in [space.name for space in pool.stats().spaces]
    go.set()
    try:
        writer.result()
        published = True
    except SpaceRemoved:
        published = False
    thread.join(WAIT)
    assert in_time, "opening spaces waits for a client that writes a page of a removed space"
    assert still_there == published == (not removed)
    if still_there:
        assert np.array_equal(work[5], stamp(5))
        assert (work[3] == 1).all()
    else:
        with pytest.raises(SpaceRemoved):
            work[5]


def test_kinds_are_named_after_what_they_are():
    assert [kind.name for kind in bp.Kind] == ["FILE", "DERIVED", "SCRATCH", "STORE"]


def _flush_and_die(name, path, n):
    class Dies(bp.FileStore):
        def sync(self):
            os.kill(os.getpid(), signal.SIGKILL)

    with bp.Pool.attach(name) as pool:
        space = pool.open_file(path, "r+")
        fill(space, range(n), version=4)
        for index, (generation, store) in list(pool.client.stores.items()):
            store.__class__ = Dies
            assert pool.client.stores[index][0] == generation
        pool.flush()


def test_a_client_killed_in_its_flush_leaves_the_pages_dirty_and_the_next_flush_works(pool, data_file, child):
    path = data_file(10)
    dying = child(_flush_and_die, pool.name, str(path), 10)
    dying.process.join(WAIT)
    assert dying.process.exitcode == -signal.SIGKILL
    assert pool.reap() == 1
    assert pool.stats().frames.dirty == 10
    assert pool.frames()["flusher"].sum() == 0
    space = pool.open_file(path, "r+")  # written by the pool itself: not "changed by somebody else"
    assert pool.flush() == 10
    assert path.read_bytes() == b"".join(stamp(n, version=4).tobytes() for n in range(10))
    assert np.array_equal(space[3], stamp(3, version=4))


def test_a_slot_whose_generations_are_used_up_takes_no_more_spaces(pool):
    """A generation tells a handle from those of later spaces in its slot, and generations can run out.

    With 24 bits, a program that opened and removed a space eight million times came round: a handle that it had
    kept of the first one read and wrote the pages of the last.
    """
    fields = _core.fields()

    def at(fd, name):
        offset = fields["Header.geometry"][0] + fields["Geometry.spaces_at"][0]
        spaces = int.from_bytes(os.pread(fd, 8, offset), "little")
        return spaces + fields[name][0]

    first = pool.open_scratch("first", 4)
    assert first.index == 0
    first.remove(discard=True)
    fd = os.open(pool.path, os.O_RDWR)
    try:
        os.pwrite(
            fd, ((2**31 - 2) << 33).to_bytes(8, "little"), at(fd, "SpaceSlot.span")
        )  # one is left, two are needed
    finally:
        os.close(fd)
    fill(pool.open_scratch("second", 4), [1])
    assert pool.space("second").index == 1
    with pytest.raises(SpaceRemoved):
        first[1]
    assert pool.check() == []


def test_space_removed_names_the_space_and_what_removes_one(pool, data_file):
    """ "The space has been removed" named no space, and no cause: the user looked for a remove() that nobody had called."""
    path = data_file(8)
    handle = pool.open_file(path, "r+", name="orders")
    pool.open_file(path, "w+", name="orders")
    uses = [lambda: handle[1], lambda: len(handle), handle.append, lambda: handle.write(1).__enter__(), handle.remove]
    for use in uses:
        with pytest.raises(
            SpaceRemoved, match=r"space 'orders' .*w\+.*version=.*discard.*overwrite.*remove.*open it again"
        ):
            use()
    assert pool.check() == []
