"""Several processes, by fork, spawn and forkserver; and what a fork inherits."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np
import pytest

import bufferpool as bp
from tests.conftest import WAIT, pins, stamp, wait_until

CONTEXTS = ["fork", "spawn", "forkserver"]


def _workload(table, work, derived_name, me, barrier):
    pool = table.pool
    derived = pool.open_derived(derived_name, 50, _make)
    barrier.wait(WAIT)
    random = np.random.default_rng(me)
    for _ in range(150):
        n = int(random.integers(0, 100))
        page = table[n]
        assert np.array_equal(page[8:], stamp(n)[8:])
        with table.write(n, timeout=WAIT) as page:
            page[me] = page[me] ^ 0xFF
        with work.write(n % 4, timeout=WAIT) as page:
            page.view(np.uint64)[:] += 1
        assert np.array_equal(derived[n % 50], stamp(n % 50, version=9))
        ids = random.integers(0, 100, 4)
        assert np.array_equal(table.read_many(ids)[:, 8:], [stamp(int(i))[8:] for i in ids])
    appended = table.append()
    with appended as page:
        page[:] = me
    del page
    return os.getpid(), appended.page_no, pins(pool) >= 0


def _make(n, out):
    out[:] = stamp(n, version=9)


@pytest.mark.parametrize("context", CONTEXTS)
def test_the_same_work_by_every_way_to_start_a_process(pool, data_file, child, context):
    table, work = pool.open_file(data_file(100), "r+"), pool.open_scratch("work", 4)
    barrier = multiprocessing.get_context(context).Barrier(3)
    children = [child(_workload, table, work, "derived", me, barrier, context=context) for me in range(3)]
    results = [c.result() for c in children]
    assert len({pid for pid, _, _ in results}) == 3
    assert sorted(page_no for _, page_no, _ in results) == [100, 101, 102]
    assert len(table) == 103
    assert {int(np.unique(table[n])[0]) for n in (100, 101, 102)} == {0, 1, 2}
    assert sum(int(work[n].view(np.uint64)[0]) for n in range(4)) == 450
    assert all(len(np.unique(work[n].view(np.uint64))) == 1 for n in range(4))
    pool.reap()
    stats = pool.stats()
    assert stats.clients == 1
    assert stats.publishes >= 900
    with table.write(0) as page:  # all else may have been written by a miss that found only dirty pages
        page[0] ^= 1
    assert pool.flush() > 0


# ---- executors ------------------------------------------------------------------------------


def _sum_of(space, ids):
    return int(space.read_many(ids).sum(dtype=np.uint64)), os.getpid()


@pytest.mark.parametrize("context", CONTEXTS)
def test_a_process_pool_executor_takes_a_space(pool, data_file, context):
    table = pool.open_file(data_file(100))
    parts = np.array_split(np.random.default_rng(1).permutation(100), 8)
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context(context)) as executor:
        results = list(executor.map(_sum_of, [table] * 8, parts))
    assert [total for total, _ in results] == [
        int(sum(stamp(int(n)).sum(dtype=np.uint64) for n in part)) for part in parts
    ]
    assert os.getpid() not in {pid for _, pid in results}
    wait_until(lambda: pool.reap() >= 0 and pool.stats().clients == 1, "the workers are gone")


def _many_at_once(space):
    """A worker that attaches anew with every task does not use up the clients."""
    return int(space[1][0]), space.pool.stats().clients


def test_tasks_of_one_worker_do_not_use_up_the_client_slots(make_pool, data_file):
    pool = make_pool(max_clients=4)
    table = pool.open_file(data_file(10))
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as executor:
        results = [executor.submit(_many_at_once, table).result(WAIT) for _ in range(20)]
    assert {value for value, _ in results} == {int(stamp(1)[0])}
    assert max(clients for _, clients in results) <= 3


def test_a_pool_object_that_is_collected_detaches(pool):
    for _ in range(100):  # more than max_clients
        other = bp.Pool.attach(pool.name)
        del other
    assert pool.stats().clients == 1


def test_a_space_keeps_its_pool_attached(pool, data_file):
    path = data_file(4)
    table = bp.Pool.attach(pool.name).open_file(path)
    page = table[1]
    assert np.array_equal(page, stamp(1))
    del table
    assert np.array_equal(page, stamp(1))
    assert pins(pool) == 1
    del page
    assert pool.stats().clients == 1


# ---- the end of a process ---------------------------------------------------------------


def _use(pool: bp.Pool, how: str) -> None:
    page = pool.open_scratch("shared", 8)[3]
    assert page.size
    pool.open_scratch("own", 4, lifetime="process")
    if how == "raises":
        raise SystemExit(3)


_OF_A_FORK_SERVER = """
import multiprocessing
import sys

import bufferpool as bp


def use(pool):
    pool.open_scratch("shared", 8)[3]


if __name__ == "__main__":
    with bp.Pool.attach(sys.argv[1]) as pool:
        process = multiprocessing.get_context("forkserver").Process(target=use, args=(pool,))
        process.start()
        process.join()
    sys.exit(process.exitcode)
"""


def test_a_process_that_imports_the_package_after_the_fork_detaches(pool, tmp_path) -> None:
    """A fork server that had not imported the package forked processes that did it when they unpickled a pool. They did not know
    yet that multiprocessing had started them, and did not detach."""
    program = tmp_path / "program.py"
    program.write_text(_OF_A_FORK_SERVER)
    done = subprocess.run(
        [sys.executable, program, pool.name], check=False, capture_output=True, text=True, timeout=WAIT
    )
    assert done.returncode == 0, done.stderr
    assert [client.pid for client in pool.clients()] == [os.getpid()]


def _use_later(pool: bp.Pool, worked: Any) -> None:
    def use() -> None:
        time.sleep(0.5)  # multiprocessing runs its finalizers meanwhile
        worked.value = pool.open_scratch("shared", 8)[3].size

    threading.Thread(target=use).start()


@pytest.mark.parametrize("how", ["returns", "raises"])
@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_a_process_of_multiprocessing_detaches_when_it_ends(pool, method, how) -> None:
    """multiprocessing ends a process that it has forked by os._exit(): its client, its pins and its private pages remained until
    the next reap, which recorded its death.
    """
    shared = pool.open_scratch("shared", 8)
    with shared.write(3) as page:
        page[:] = 0
    process = multiprocessing.get_context(method).Process(target=_use, args=(pool, how))
    process.start()
    process.join(WAIT)
    assert process.exitcode == (3 if how == "raises" else 0)
    assert [client.pid for client in pool.clients()] == [os.getpid()]
    assert pins(pool) == 0
    assert "reaped" not in {event.kind.name.lower() for event in pool.events()}
    assert [space.name for space in pool.stats().spaces] == ["shared"]


def test_the_pool_of_a_process_whose_threads_still_run_is_not_closed(pool) -> None:
    """multiprocessing runs its finalizers before it waits for the process's threads."""
    with pool.open_scratch("shared", 8).write(3) as page:
        page[:] = 0
    context = multiprocessing.get_context("fork")
    worked = context.Value("i", 0)
    process = context.Process(target=_use_later, args=(pool, worked))
    process.start()
    process.join(WAIT)
    assert worked.value == 4096
    pool.reap()
    assert pool.check() == []


def _load_and_write_for_ever(table, work, ready):
    """A client of many states: loads, evictions, writes, scratch pages, groups and moves."""
    random = np.random.default_rng(os.getpid())
    for step in range(1 << 30):
        n = int(random.integers(0, 300))
        assert table[n].size
        with table.write(n, timeout=WAIT) as page:
            page[0] += 1
        work.write_many([n % 16], np.ones((1, 4096), np.uint8))
        work.drop(int(random.integers(0, 16)), 1)
        if step % 16 == 0:
            table.pool.flush()
            ready.set()


@pytest.mark.parametrize("seed", range(3))
def test_a_check_finds_nothing_while_clients_die(make_pool, data_file, child, spawn, seed):
    """What a client holds when it is killed, and what is read before and after it is reaped, is no violation."""
    pool = make_pool(64 * 4096)
    table, work = pool.open_file(data_file(300), "r+"), pool.open_scratch("work", 16)
    random = np.random.default_rng(seed)
    for _ in range(4):
        ready = spawn.Event()
        clients = [child(_load_and_write_for_ever, table, work, ready) for _ in range(2)]
        assert ready.wait(WAIT)
        for client in clients:
            time.sleep(float(random.uniform(0, 0.02)))
            assert pool.check() == []
            os.kill(client.pid, signal.SIGKILL)
            assert pool.check() == []
        for client in clients:
            client.kill()
    pool.reap()
    assert pool.check() == []
