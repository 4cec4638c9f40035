"""Copies of a pool that were unpickled in one process share its attachment."""

import multiprocessing
import os
import pickle
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import numpy as np
import pytest

import bufferpool as bp
from bufferpool.errors import PoolClosed, PoolReadOnly
from tests.conftest import PAGE, stamp


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
