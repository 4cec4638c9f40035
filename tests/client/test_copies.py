"""Copies of a pool that were unpickled in one process share its attachment."""

import contextlib
import multiprocessing
import os
import pickle
import threading
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import numpy as np
import pytest

import bufferpool as bp
from bufferpool import _locks
from bufferpool.errors import CacheRemoved, PoolClosed, PoolReadOnly, SegmentNotFound, SegmentReplaced, SpaceRemoved
from bufferpool.spaces import directory
from tests.conftest import PAGE, WAIT, stamp


def _first_word(space, n):
    return int(space[n].view(np.uint64)[0]), os.getpid()


def descriptors():
    return len(os.listdir("/proc/self/fd"))


def test_a_thousand_copies_take_one_client_slot_and_one_descriptor(pool, data_file):
    """Each copy took a client slot, a mapping and a descriptor: 62 copies, and it was TooManyClients."""
    space = pool.open_file(data_file(8))
    data = pickle.dumps(space)
    before = descriptors()
    copies = [pickle.loads(data) for _ in range(1000)]
    for n, copy in enumerate(copies):
        assert np.array_equal(copy[n % 8], stamp(n % 8))
    assert pool.stats().clients == 1
    assert descriptors() == before
    assert copies[0].pool is not pool


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_the_workers_of_an_executor_are_one_client_each(pool, data_file, method):
    """Executors pickle the arguments of each task anew."""
    space = pool.open_file(data_file(8))
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context(method)) as workers:
        results = list(workers.map(_first_word, [space] * 200, [n % 8 for n in range(200)], chunksize=1))
        assert pool.stats().clients <= 3
    assert [word for word, _ in results] == [int(stamp(n % 8).view(np.uint64)[0]) for n in range(200)]


def test_a_process_that_never_attached_shares_among_its_copies(pool_name):
    with bp.Pool.create(pool_name, 64 * PAGE, page_size=PAGE) as pool:
        data = pickle.dumps(pool.open_scratch("work", 4))
    copies = [pickle.loads(data) for _ in range(20)]
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(len, copies)) == [4] * 20
    assert copies[0].pool.stats().clients == 1
    copies[0].pool.unlink()
    for copy in copies:
        copy.pool.close()


def test_the_last_handle_that_is_closed_detaches(pool):
    space = pool.open_scratch("work", 4)
    copy = pickle.loads(pickle.dumps(pool))
    assert copy.stats().clients == 1
    copy.close()
    with pytest.raises(PoolClosed):
        copy.stats()
    assert space[0].sum() == 0
    again = pickle.loads(pickle.dumps(pool))
    assert again.page_size == PAGE
    pool.close()
    assert again.stats().clients == 1
    assert again.check() == []
    again.close()
    with pytest.raises(PoolClosed):
        again.stats()


def test_the_first_handle_may_be_closed_while_a_copy_needs_frames(pool, data_file):
    """The core asks a pool for room: the one that had attached may be closed by then."""
    copy = pickle.loads(pickle.dumps(pool)).open_file(data_file(200), "r+")
    pool.close()
    for n in range(200):
        with copy.write(n) as page:
            page[:] = stamp(n, version=1)
    assert copy.pool.flush() >= 0
    assert np.array_equal(copy[150], stamp(150, version=1))
    assert copy.pool.check() == []
    copy.pool.unlink(discard=True)
    copy.pool.close()


def test_a_copy_for_reading_stays_one_beside_a_handle_that_writes(pool):
    with bp.Pool.attach(pool.name, mode="r") as reader:
        copy = pickle.loads(pickle.dumps(reader))
    assert copy.page_size == PAGE
    with pytest.raises(PoolReadOnly):
        copy.trim()
    assert pool.stats().clients == 1


def test_one_steward_a_process(pool):
    copy = pickle.loads(pickle.dumps(pool))
    assert copy.page_size == PAGE
    pool.start_steward(bp.Settings(pressure=False))
    with pytest.raises(ValueError, match="steward of the pool already"):
        copy.start_steward(bp.Settings(pressure=False))
    pool.stop_steward()


# ---- copies are bound as the one before them -------------------------------------------------------


def _fill_with_number(n, out):
    out[:] = n


def _refuse(*_):
    raise AssertionError("the directory was searched again")


@pytest.mark.parametrize("kind", ["file", "scratch", "derived"])
def test_the_next_copy_does_not_search_the_directory(pool, data_file, kind, monkeypatch):
    """Each task of an executor searched the directory for its argument: 40 to 80 microseconds a task."""
    path = data_file(8)
    os.utime(path, ns=(0, 1_500_000_000_123_456_789))  # of a file that was just written the pool trusts no time
    made = {
        "file": lambda: pool.open_file(path, "r+"),
        "scratch": lambda: pool.open_scratch("work", 8),
        "derived": lambda: pool.open_derived("sums", 8, _fill_with_number),
    }
    space = made[kind]()
    data = pickle.dumps(space)
    expected = pickle.loads(data)[3].copy()
    monkeypatch.setattr(directory, "bind", _refuse)
    copies = [pickle.loads(data) for _ in range(3)]
    for copy in copies:
        assert np.array_equal(copy[3], expected)
    if kind != "derived":
        with copies[0].write(3) as page:
            page[:] = 9
        assert copies[1][3].tolist() == [9] * PAGE


def test_a_copy_of_a_removed_space_says_so(pool):
    space = pool.open_scratch("work", 4)
    data = pickle.dumps(space)
    assert pickle.loads(data)[0].sum() == 0
    space.remove(discard=True)
    with pytest.raises(SpaceRemoved):
        _ = pickle.loads(data)[0]
    again = pool.open_scratch("work", 2)
    with pytest.raises(SpaceRemoved):
        _ = pickle.loads(data)[0]
    assert pickle.loads(pickle.dumps(again))[1].sum() == 0


def test_a_copy_of_a_removed_space_does_not_become_one_of_the_next_space_of_its_name(pool, data_file):
    """The generation of a slot was compared, and not the slot. A space that replaces another may take another slot, in which its
    generation is the same number."""
    table = pool.open_file(data_file(4), "r+")
    old = pickle.dumps(table)
    new = pool.open_file(table.path, "w+")
    with new.append():
        pass
    assert new.generation == table.generation  # otherwise this test shows nothing
    with pytest.raises(SpaceRemoved):
        len(pickle.loads(old))
    assert pool.check() == []


def first_version(page_no, out):
    if page_no == 0:
        _inside.set()
        assert _go_on.wait(WAIT)
    out.fill(1)


_inside, _go_on = threading.Event(), threading.Event()


def test_a_copy_of_an_old_version_does_not_become_one_of_the_next_version(pool, threads):
    """It loaded pages by the old loader, and published them as pages of the new version. Dask took the results for the same."""
    made = pool.open_derived("made", 4, first_version, version=1)

    def read():
        with contextlib.suppress(SpaceRemoved):
            made[0]

    threads.start(read)
    assert _inside.wait(WAIT)  # the old slot is in use, so that the new version gets another one
    old, token = pickle.dumps(made), made.__dask_tokenize__()
    made_anew = pool.open_derived("made", 4, lambda page_no, out: out.fill(2), version=2)
    assert made_anew.generation == made.generation
    with pytest.raises(SpaceRemoved):
        pickle.loads(old)[1]
    assert made_anew[1][0] == 2
    assert made_anew.__dask_tokenize__() != token
    _go_on.set()
    threads.join()
    assert pool.check() == []


def test_a_copy_notices_that_its_file_was_changed_or_replaced(pool, data_file, tmp_path):
    """The next copy opens the file, as the first one did: what another program has written to it is read."""
    path = data_file(8)
    data = pickle.dumps(pool.open_file(path))
    assert np.array_equal(pickle.loads(data)[3], stamp(3))
    content = bytearray(path.read_bytes())
    content[3 * PAGE : 4 * PAGE] = stamp(3, version=5).tobytes()
    path.write_bytes(content)
    assert np.array_equal(pickle.loads(data)[3], stamp(3, version=5))
    other = tmp_path / "other"
    other.write_bytes(b"".join(stamp(n, version=6).tobytes() for n in range(8)))
    os.replace(other, path)
    assert np.array_equal(pickle.loads(data)[3], stamp(3, version=6))


def test_what_is_kept_for_copies_ends_with_the_space(pool, data_file):
    """A server that opens and removes spaces all day would keep a record, and a descriptor, of each."""
    before = descriptors()
    for _ in range(20):
        space = pool.open_file(data_file(8))
        assert pickle.loads(pickle.dumps(space))[0].size
        space.remove()
        assert pickle.loads(pickle.dumps(pool.open_scratch("work", 4)))[0].sum() == 0
        pool.discard("work")
    pool.open_scratch("last", 1)
    assert len(pool.client.bound) <= 1
    del space
    assert descriptors() <= before + 1


def test_a_copy_in_a_child_is_bound_in_the_child(pool, data_file, child):
    space = pool.open_file(data_file(8), "r+")
    data = pickle.dumps(space)
    assert pickle.loads(data)[1].size
    assert child(_first_word, space, 2, context="fork").result()[0] == int(stamp(2).view(np.uint64)[0])
    assert child(_first_word, space, 2, context="spawn").result()[0] == int(stamp(2).view(np.uint64)[0])


def test_a_copy_makes_nothing_that_it_may_not_need(pool: bp.Pool) -> None:
    """dask and Ray unpickle the arguments of each task: a lock and a thread's state of its own took 2 of the 9 microseconds of a copy."""
    space = pool.open_scratch("scratch", n_pages=4)
    packed = pickle.dumps(space)
    first = pickle.loads(packed)
    assert first[0].shape
    locks = len(_locks._made)
    copy = pickle.loads(packed)
    assert copy[0].shape
    assert len(_locks._made) == locks
    assert copy.pool.client._make_room._room is None
    assert space.__reduce__()[1][1] is space.__reduce__()[1][1], "the pickle of a space is made once"
    space.close()
    with pytest.raises(bp.SpaceClosed):
        pickle.dumps(space)


def _value(cache, key):
    value = cache.get(key)
    return None if value is None else bytes(value)


def test_a_pickle_of_a_pool_that_is_gone_can_be_read(pool_name):
    """Reading the pickle of a cache attached to the pool, and failed without it. An executor's worker that cannot read its
    next task ends, and the executor with it (BrokenProcessPool).
    """
    other = bp.Pool.create(pool_name, 64 * PAGE, page_size=PAGE)
    cache = other.cache("values")
    cache.put("key", b"value")
    data = pickle.dumps({"of": [cache, other.open_scratch("work", 4), other]})
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as workers:
        assert workers.submit(_value, cache, "key").result(WAIT) == b"value"
        other.unlink()
        other.close()
        workers.submit(os.getpid).result(WAIT)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as workers:
        read = pickle.loads(data)["of"]
        with pytest.raises(SegmentNotFound):
            workers.submit(_value, read[0], "key").result(WAIT)
        assert workers.submit(len, repr(read)).result(WAIT)
        again = pickle.loads(pickle.dumps(read))
    new = bp.Pool.create(pool_name, 64 * PAGE, page_size=PAGE)
    for use in (lambda: again[0].get("key"), lambda: len(again[0]), lambda: again[1][0], lambda: again[2].stats()):
        with pytest.raises(SegmentReplaced):
            use()
    new.close()


def test_a_copy_of_a_cache_that_was_removed_does_not_make_it_again(pool):
    """A worker that read an old pickle made a new cache of the name, without the ttl and the limit, for all processes."""
    cache = pool.cache("values", ttl=60)
    cache.put("key", b"value")
    data = pickle.dumps(cache)
    assert _value(pickle.loads(data), "key") == b"value"
    pool.remove_cache("values")
    uses = (
        lambda copy: copy.get("key"),
        lambda copy: copy.put("key", b"other"),
        lambda copy: copy.get_or_load("key", lambda: b"other"),
        lambda copy: "key" in copy,
        len,
    )
    for use in uses:
        with pytest.raises(CacheRemoved):
            use(pickle.loads(data))
    assert pool.caches() == []
    pool.cache("values").put("key", b"new")
    with pytest.raises(CacheRemoved):
        pickle.loads(data).get("key")
