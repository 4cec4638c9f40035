"""Scratch pages: zeros until written, gone with their owner."""

import copy
import os
import pickle
import struct

import numpy as np
import pytest

import bufferpool as bp
from bufferpool import _core
from bufferpool.errors import (
    PageDiscarded,
    PoolExhausted,
    SpaceClosed,
    SpaceMismatch,
    SpaceNotFound,
    SpacePrivate,
)
from bufferpool.upkeep import memory
from tests.conftest import PAGE, WAIT, fill, kernel_bytes, stamp
from tests.support.memory_store import Memory


def test_scratch_pages_are_zeros_until_written(pool, attach):
    work = pool.open_scratch("work", 10)
    assert not work[3].any()
    fill(work, [3])
    assert np.array_equal(attach(pool).open_scratch("work", 10)[3], stamp(3))
    assert pool.flush() == 0


def test_scratch_of_the_pool_stays_without_any_process(make_pool):
    pool = make_pool()
    fill(pool.open_scratch("work", 10), [3])
    pool.close()
    with bp.Pool.attach(pool.name) as again:
        assert np.array_equal(again.space("work")[3], stamp(3))


def test_scratch_of_a_client_goes_when_it_closes(pool, attach):
    other = attach(pool)
    fill(other.open_scratch("mine", 10, lifetime="process"), range(10))
    assert [s.name for s in pool.stats().spaces] == ["mine"]
    other.close()
    assert pool.stats().spaces == []
    assert pool.stats().frames.live == 0


def test_closing_a_scratch_space_of_a_client_removes_it(pool):
    memory = kernel_bytes(pool)
    with pool.open_scratch("mine", 10, lifetime="process") as work:
        fill(work, range(10))
    assert pool.stats().spaces == []
    with pytest.raises(SpaceClosed):
        work[0]
    assert pool.stats().reclaimed_bytes["drop"] == 10 * PAGE
    with pool.open_scratch("ours", 10) as work:
        fill(work, [1])
    assert np.array_equal(pool.space("ours")[1], stamp(1))
    assert kernel_bytes(pool) > memory


def _own(name, how, ready, go):
    """Makes a private space of the name that the test has too, and says what it finds there."""
    with bp.Pool.attach(name) as pool:
        work = pool.open_scratch("work", 4, lifetime="process")
        found = int(work[1][0])
        fill(work, [1], version=7)
        ready.set()
        assert go.wait(WAIT)
        assert np.array_equal(work[1], stamp(1, version=7))
        if how == "dies":
            os._exit(0)
        return found


@pytest.mark.parametrize("how", ["ends", "dies"])
def test_private_scratch_of_one_name_is_each_process_s_own(pool, child, spawn, how):
    """Two workers that sorted in scratch("sort", lifetime="process") wrote into each other's pages: the second found the
    first one's space by its name."""
    mine = pool.open_scratch("work", 4, lifetime="process")
    fill(mine, [1], version=3)
    ready, go = spawn.Event(), spawn.Event()
    other = child(_own, pool.name, how, ready, go)
    assert ready.wait(WAIT)
    assert np.array_equal(mine[1], stamp(1, version=3))
    owners = {s.owner: s.shown_name for s in pool.stats().spaces}
    assert len(owners) == 2
    assert owners == {c.client: f"work (client {c.client})" for c in pool.clients()}
    go.set()
    if how == "ends":
        assert other.result() == 0
    else:
        other.process.join(WAIT)
    pool.reap()
    assert np.array_equal(mine[1], stamp(1, version=3))
    assert np.array_equal(pool.space("work")[1], stamp(1, version=3))
    assert len(pool.stats().spaces) == 1


def test_private_scratch_of_another_is_not_found_by_its_name(pool, attach, data_file):
    mine = pool.open_scratch("work", 4, lifetime="process")
    fill(mine, [1])
    other = attach(pool)
    with pytest.raises(SpaceNotFound, match=r"private to client 1 .*pool\.open_scratch"):
        other.space("work")
    with pytest.raises(SpaceNotFound, match=r"it has \[\]"):
        other.space("elsewhere")
    # Nor does it stand in the way of a shared space of that name, of any kind.
    shared = other.open_scratch("work", 8)
    assert not shared[1].any()
    fill(shared, [1], version=2)
    assert np.array_equal(mine[1], stamp(1))
    assert np.array_equal(pool.space("work")[1], stamp(1))  # one's own comes first
    assert np.array_equal(pool.open_scratch("work", 4, lifetime="process")[1], stamp(1))
    assert np.array_equal(pool.open_scratch("work", 4)[1], stamp(1, version=2))
    assert np.array_equal(pickle.loads(pickle.dumps(shared))[1], stamp(1, version=2))
    shared.remove()
    table = other.open_file(data_file(4), name="work")
    assert np.array_equal(table[2], stamp(2))
    assert np.array_equal(mine[1], stamp(1))
    mine.close()
    assert np.array_equal(pool.space("work")[2], stamp(2))


def test_a_shared_and_a_private_space_are_not_taken_for_each_other(pool):
    pool.open_scratch("shared", 4)
    with pytest.raises(SpaceMismatch, match="lifetime='pool'"):
        pool.open_scratch("shared", 4, lifetime="process")
    with pool.open_scratch("own", 4, lifetime="process"), pytest.raises(SpaceMismatch, match="lifetime='process'"):
        pool.open_scratch("own", 4)


@pytest.mark.parametrize("lifetime", ["process", "pool"])
def test_a_space_that_exists_is_not_shorter_than_asked_for(pool, lifetime):
    """A caller that asked for 9 pages of a space that had 8 got the 8, without a word."""
    work = pool.open_scratch("work", 8, lifetime=lifetime)
    for n_pages in (9, 100):
        with pytest.raises(
            SpaceMismatch, match=f"has 8 pages, not {n_pages}; open it with n_pages=8, and make it longer"
        ):
            pool.open_scratch("work", n_pages, lifetime=lifetime)
    work.grow(100)
    assert len(pool.open_scratch("work", 100, lifetime=lifetime)) == 100
    assert len(pool.open_scratch("work", 8, lifetime=lifetime)) == 100


@pytest.mark.parametrize("copied", [pickle.dumps, copy.copy, copy.deepcopy])
def test_private_scratch_does_not_travel(pool, copied):
    """An unpickled handle of a private space read and wrote the pages of the process that had made it."""
    work = pool.open_scratch("work", 4, lifetime="process")
    for space in (work, pool.space("work")):
        with pytest.raises(SpacePrivate, match="cannot be pickled: make one in the other process"):
            copied(space)
    assert copied(pool.open_scratch("shared", 4))


def test_closing_a_found_private_space_removes_it_like_any_handle_of_it(pool, attach):
    pool.open_scratch("work", 4, lifetime="process")
    pool.space("work").close()
    assert pool.stats().spaces == []
    with pool.open_scratch("work", 4):
        pass
    assert [s.owner for s in attach(pool).stats().spaces] == [0]


def _make_scratch(name, n_pages, done, finish):
    pool = bp.Pool.attach(name)
    fill(pool.open_scratch("mine", n_pages, lifetime="process"), range(n_pages))
    done.set()
    assert finish.wait(WAIT)
    if n_pages % 2:
        pool.close()
    os._exit(0)


@pytest.mark.parametrize(("n_pages", "end"), [(40, "SIGKILL"), (40, "os._exit"), (41, "close")])
def test_the_memory_of_a_clients_scratch_comes_back_when_it_is_gone(pool, child, spawn, n_pages, end):
    fill(pool.open_scratch("ours", 4), range(4))
    pool.trim()
    before = pool.stats()
    memory = kernel_bytes(pool) - before.metadata_bytes
    done, finish = spawn.Event(), spawn.Event()
    client = child(_make_scratch, pool.name, n_pages, done, finish)
    assert done.wait(WAIT)
    assert pool.stats().resident_bytes >= (n_pages + 4) * PAGE
    if end == "SIGKILL":
        client.kill()  # and no finish.set(): an Event waits for its dead waiters
    else:
        finish.set()
    client.process.join(WAIT)
    pool.reap()
    stats = pool.stats()
    assert [s.name for s in stats.spaces] == ["ours"]
    assert stats.clients == 1
    assert stats.frames.live == 4
    assert stats.resident_bytes <= before.resident_bytes + 2 * 4 * PAGE  # not more than started extents
    assert kernel_bytes(pool) - stats.metadata_bytes == stats.resident_bytes
    assert stats.reclaimed_bytes["client_exit"] >= (n_pages - 8) * PAGE
    assert memory == before.resident_bytes


def test_dropped_scratch_pages_return_their_memory_to_the_byte(pool):
    work = pool.open_scratch("work", 32)
    fill(work, range(32))
    for first, count in ((0, 4), (7, 1), (10, 13), (0, 32)):
        before = kernel_bytes(pool)
        freed = work.drop(first, count)
        assert before - kernel_bytes(pool) == freed
    assert pool.stats().reclaimed_bytes["drop"] == 32 * PAGE


def test_removing_a_scratch_space_returns_its_memory_to_the_byte(pool):
    before = kernel_bytes(pool)
    work = pool.open_scratch("work", 32)
    fill(work, range(32))
    work.remove()
    stats = pool.stats()
    assert stats.reclaimed_bytes["drop"] == 32 * PAGE
    assert stats.kernel_data_bytes == stats.resident_bytes
    assert pool.trim() == stats.resident_bytes
    assert pool.stats().kernel_data_bytes == 0
    assert kernel_bytes(pool) >= before


def test_a_discardable_page_that_was_evicted_raises_page_discarded(pool, data_file):
    work = pool.open_scratch("cache", 8, discardable=True)
    fill(work, range(4))
    assert np.array_equal(work[2], stamp(2))
    table = pool.open_file(data_file(200))
    for _ in range(3):
        for n in range(200):
            assert table[n].size
    gone = []
    for n in range(4):
        try:
            assert np.array_equal(work[n], stamp(n))
        except PageDiscarded:
            gone.append(n)
    assert gone
    n = gone[0]
    for use in (
        lambda: work.read_many([n]),
        lambda: work.pin_many([n]),
        lambda: work.pin(n),
        lambda: work.write(n).__enter__(),
    ):
        with pytest.raises(PageDiscarded, match="drop it, then write it anew") as discarded:
            use()
        assert isinstance(discarded.value, LookupError)
    assert not work[7].any()  # was never written: zeros, nothing is lost
    work.drop(n, 1)
    assert not work[n].any()
    fill(work, [n], version=1)
    assert np.array_equal(work[n], stamp(n, version=1))


def test_a_page_that_is_discarded_while_a_read_of_it_waits_for_a_frame_says_so(make_pool):
    """A miss looked whether its page was discarded, then waited for a frame, and loaded zeros although the page was written and discarded meanwhile."""
    pool, store = make_pool(16 * PAGE), Memory(1)
    work = pool.open_scratch("work", 8, discardable=True)
    table = pool.open_store("table", store, "r+")
    derived = pool.open_derived("derived", 64, lambda n, out: out.fill(n))
    fill(table, [0], version=1)
    held = [derived[n] for n in range(15)]

    def write_and_discard(offset, buffer):
        store.on_write = None
        held.clear()
        fill(work, [3])
        while work.resident([3])[0]:
            pool.trim(PAGE)

    store.on_write = write_and_discard  # called by the flush that makes room for the read
    with pytest.raises(PageDiscarded):
        _ = work[3]
    assert store.on_write is None
    assert not work[4].any()


def test_discardable_scratch_never_exhausts_the_pool(pool):
    work = pool.open_scratch("cache", 500, discardable=True)
    fill(work, range(500))
    assert pool.stats().resident_bytes <= pool.stats().budget_bytes


def test_scratch_that_is_not_discardable_exhausts_the_pool_and_loses_nothing(pool):
    work = pool.open_scratch("work", 100)
    with pytest.raises(PoolExhausted, match=r"hold scratch pages that nothing can evict") as full:
        fill(work, range(100))
    assert isinstance(full.value, MemoryError)
    assert "pool.resize(), up to" in str(full.value)
    assert "of 64 frames" in str(full.value)
    written = int(np.count_nonzero(pool.frames()["dirty"]))
    assert written == 56  # of 64: the rest is kept for everybody else
    for n in range(written):
        assert np.array_equal(work[n], stamp(n))
    kept = [work[n] for n in range(64)]  # what is not dirty is pinned now
    with pytest.raises(PoolExhausted):
        work[64]
    del kept
    work.drop(0, 10)
    assert not work[99].any()
    assert np.array_equal(work[20], stamp(20))


# ---- the share of everybody else ----------------------------------------------------


def _counted(pool):
    """How many scratch pages are counted, and in which pass over the frames."""
    with open(pool.path, "rb") as file:
        file.seek(_core.fields()["Header.kept"][0])
        pages, passes = struct.unpack("<II", file.read(8))
    return pages, passes


def _set_counted(pool, pages, passes=None):
    """Overwrites the number of scratch pages that are counted, and that of the passes."""
    with open(pool.path, "r+b") as file:
        file.seek(_core.fields()["Header.kept"][0])
        file.write(struct.pack("<II", pages, _counted(pool)[1] if passes is None else passes))


def test_scratch_pages_next_to_the_limit_are_not_counted_anew(pool):
    """The nearer the limit, the more often a writer counted all scratch pages: at last for each page, in a pass over all frames."""
    work = pool.open_scratch("work", 400)
    for n in range(56):
        fill(work, [n])
    assert _counted(pool) == (56, 0)
    for n in range(56, 300):
        work.drop(n - 56, 1)
        fill(work, [n])
        fill(work, [n], version=1)  # a page that is there already
    assert _counted(pool)[1] == 0
    with pytest.raises(PoolExhausted):
        fill(work, range(320, 360))
    assert _counted(pool)[0] == np.count_nonzero(pool.frames()["dirty"]) == 56


def test_a_write_that_fails_leaves_no_scratch_page_counted(pool, data_file):
    """The page of a write that fails is subtracted again."""
    work, table = pool.open_scratch("work", 100), pool.open_file(data_file(100))
    pinned = [table[n] for n in range(64)]
    with pytest.raises(PoolExhausted):
        fill(work, [0])
    assert _counted(pool) == (0, 0)
    del pinned
    fill(work, [0])
    assert _counted(pool) == (1, 0)
    work.remove()
    assert _counted(pool) == (0, 0)


def test_what_a_death_leaves_in_the_count_is_found_before_a_page_is_refused(pool):
    """A writer that dies between the count of its page and the page leaves the number too high."""
    with open(pool.path, "r+b") as file:
        file.seek(_core.fields()["Header.kept"][0])
        file.write(struct.pack("<II", 50, 0))
    work = pool.open_scratch("work", 100)
    with pytest.raises(PoolExhausted):
        fill(work, range(100))
    assert _counted(pool)[0] == np.count_nonzero(pool.frames()["dirty"]) == 56


def test_check_finds_that_fewer_scratch_pages_are_counted_than_there_are(pool):
    """Nothing compared the number with the pages: one that was too low let scratch pages take the share of the others."""
    work = pool.open_scratch("work", 100)
    fill(work, range(20))
    assert pool.check() == []
    for number, missing in ((19, 1), (0, 20)):
        _set_counted(pool, number)
        for _ in range(2):  # a check repairs nothing
            assert pool.check() == [f"there are {missing} more scratch pages than are counted"]
    _set_counted(pool, 40)  # as a death leaves it: that is put right
    assert pool.check() == []
    assert _counted(pool)[0] == 20


def test_a_count_that_its_client_did_not_live_to_finish_is_finished_by_another(pool):
    """While scratch pages are counted nobody subtracts those that are dropped; a client that dies then leaves the mark of it."""
    _set_counted(pool, 0, passes=1)
    work = pool.open_scratch("work", 100)
    for first in range(0, 300, 10):
        fill(work, range(10))
        work.drop(0, 10)
        fill(work, [first % 50 + 20])
        work.drop(first % 50 + 20, 1)
    fill(work, range(56))
    pages, passes = _counted(pool)
    assert (pages, passes % 2) == (56, 0)
    assert pool.check() == []


def _drop_until(pool, end):
    work = pool.space("work")
    while not end.is_set():
        for n in range(4):
            work.drop(n, 1)
    return True


def test_a_scratch_page_that_is_dropped_while_it_is_replaced_is_counted(make_pool, child, spawn):
    """A page that was kept already was not counted once more, and then a drop had subtracted it before it was replaced."""
    pool, end = make_pool(64 * PAGE), spawn.Event()
    fill(pool.open_scratch("others", 30), range(30))
    work = pool.open_scratch("work", 4)
    dropper = child(_drop_until, pool, end)
    pages = np.ones((4, PAGE), np.uint8)
    for _ in range(10_000):
        work.write_many(range(4), pages)
    end.set()
    assert dropper.result()
    work.drop(0, 4)
    assert _counted(pool)[0] == 30
    assert pool.check() == []


def _write_group(pool, work):
    with pool.publish_many() as group:
        for n in range(8):
            group.write(work, n)[:] = 1


def test_a_group_that_is_refused_leaves_no_scratch_page_counted(pool, data_file):
    """Each of its tries counted its scratch pages, and none subtracted them."""
    work, table = pool.open_scratch("work", 100), pool.open_file(data_file(100))
    fill(work, range(8))
    work.drop(0, 4)
    clean = [work[n] for n in range(4)]  # resident, and not written
    del clean
    pinned = [table[n] for n in range(52)]
    with pytest.raises(PoolExhausted):
        _write_group(pool, work)
    assert _counted(pool)[0] == 4
    del pinned
    _write_group(pool, work)
    assert _counted(pool)[0] == 8
    assert pool.check() == []


def _fill_until_refused(pool, n_pages):
    work, done = pool.open_scratch("mine", n_pages, lifetime="process"), 0
    try:
        for n in range(n_pages):
            fill(work, [n])
            done += 1
    except PoolExhausted as error:
        return done, str(error), all(np.array_equal(work[n], stamp(n)) for n in range(done))
    return done, "", True


def test_scratch_pages_leave_a_share_of_the_pool_to_the_others(make_pool, data_file):
    """One client's scratch pages took every frame, and the others, which had done nothing, got PoolExhausted."""
    pool = make_pool(256 * PAGE)
    table = pool.open_file(data_file(300), "r+")
    done, text, whole = _fill_until_refused(pool, 300)
    assert whole
    assert done == 196  # seven eighths of the seven eighths that scratch pages may have
    assert "of 256 frames" in text
    assert f"'mine' of client 1 (pid {os.getpid()}): {done}" in text
    for word in ("nothing can evict", "pool.resize()", "drop", "discardable"):
        assert word in text
    for n in range(300):
        assert np.array_equal(table[n], stamp(n))
    fill(table, range(300), version=1)  # flushed as need be
    mine = pool.open_scratch("mine", 300, lifetime="process")
    fill(mine, range(done), version=1)  # what is there may be written again
    with pytest.raises(PoolExhausted):
        fill(mine, [299])
    assert not np.any(mine[299])
    loose = pool.open_scratch("loose", 100, discardable=True)
    fill(loose, range(100))  # those can be evicted
    mine.drop(0, 10)
    fill(mine, range(290, 300))
    pool.resize(240 * PAGE)
    assert pool.check() == []


def test_scratch_pages_of_the_dead_are_nobodys_share(make_pool, child):
    pool = make_pool(64 * PAGE)
    for _ in range(3):
        done, _, whole = child(_fill_until_refused, pool, 100).result()
        assert (done, whole) == (49, True)
    work = pool.open_scratch("work", 56)
    fill(work, range(56))
    assert pool.check() == []


def _take_all(pool, taken, go):
    """A greedy client: private scratch pages in several spaces, until it is refused."""
    done = 0
    try:
        for k in range(4):
            work = pool.open_scratch(f"greedy{k}", 512, lifetime="process")
            for n in range(512):
                fill(work, [n])
                done += 1
    except PoolExhausted as error:
        taken.set()
        assert go.wait(WAIT)
        return done, str(error)
    return done, ""


def _get_along(pool, path, ready, version):
    """One of the others: it reads and writes pages of a file, and needs some scratch pages."""
    assert ready.wait(WAIT)
    table, work = pool.open_file(path, "r+"), pool.open_scratch("small", 16, lifetime="process")
    for n in range(60 * version, 60 * version + 60):
        assert np.array_equal(table[n], stamp(n))
        fill(table, [n], version=version)
    fill(work, range(16))
    assert all(np.array_equal(work[n], stamp(n)) for n in range(16))
    return True


def test_a_greedy_client_leaves_the_others_what_they_need(make_pool, child, data_file, spawn):
    """A client's private scratch pages took all that scratch pages may have: no other client could write one."""
    pool, path = make_pool(512 * PAGE), data_file(300)
    taken, go = spawn.Event(), spawn.Event()
    greedy = child(_take_all, pool, taken, go)
    others = [child(_get_along, pool, path, taken, version) for version in (1, 2, 3)]
    assert [one.result() for one in others] == [True] * 3
    go.set()
    done, text = greedy.result()
    assert done == 392  # of 448 that scratch pages may have, of 512
    for word in (
        "private scratch pages of this process",
        "392 of 512 frames",
        "'greedy0'",
        "may have 392",
        "drop",
        "pool.resize()",
    ):
        assert word in text
    pool.reap()
    assert pool.check() == []


def test_what_another_client_has_removed_is_not_counted_against_its_owner(make_pool, attach):
    """The owner counts its private pages in its own process, and does not see that others remove a space that it has closed."""
    pool = make_pool(64 * PAGE)
    other = attach(pool)
    for _ in range(3):
        work = pool.open_scratch("work", 64, lifetime="process")
        with pytest.raises(PoolExhausted, match="private scratch pages of this process"):
            fill(work, range(64))
        assert _counted(pool)[0] == 49
        with other.client.seg.lock_directory(WAIT):
            other.client.seg.remove_space(work.index)
    assert _counted(pool)[0] == 0
    assert pool.check() == []


def test_several_clients_share_what_scratch_pages_may_have(make_pool, child, data_file):
    pool = make_pool(512 * PAGE)
    table = pool.open_file(data_file(600))
    children = [child(_fill_and_hold, pool) for _ in range(3)]
    for n in list(range(600)) * 3:
        assert np.array_equal(table[n], stamp(n))
    for c in children:
        c.result()
    assert pool.check() == []


def test_the_message_stands_a_space_that_is_removed_meanwhile(make_pool, monkeypatch):
    """A process ended between the reading of the frames and that of the spaces: another's write raised ValueError."""
    pool = make_pool(64 * PAGE)
    work = pool.open_scratch("work", 100)
    fill(work, range(56))

    def read_late(client, read=memory.stats.read_frames):
        frames = read(client)
        frames["space"][np.flatnonzero(frames["dirty"])[:40]] = -1
        return frames

    monkeypatch.setattr(memory.stats, "read_frames", read_late)
    with pytest.raises(PoolExhausted, match=r"'work'.*: 16"):
        fill(work, [56])
    assert pool.check() == []


def _fill_and_hold(pool):
    done, text, whole = _fill_until_refused(pool, 512)
    assert text
    assert whole
    return done
