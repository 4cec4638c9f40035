"""Threads and processes on the same pages: nothing half-written, nothing miscounted, closed under use."""

import threading
import time

import numpy as np
import pytest

import bufferpool as bp
from tests.conftest import PAGE, WAIT, pins, wait_until
from tests.support.children import Threads, run_python

pytestmark = pytest.mark.kernel

# ---- many at once ------------------------------------------------------------------------


def test_eight_threads_hammering(pool, data_file, threads):
    table = pool.open_file(data_file(200), "r+", dtype="<u8")
    work = pool.open_scratch("work", 8, dtype="<u8")
    n_threads, rounds = 8, 150

    def run(me):
        random = np.random.default_rng(me)
        for _ in range(rounds):
            n = int(random.integers(0, 200))
            word = (n + 1) << 20
            kind = random.integers(0, 7)
            if kind == 0:
                assert table[n][1] == word + 1
            elif kind == 1:
                with table.pin(n) as page:
                    assert page[2] == word + 2
            elif kind == 2:
                ids = random.integers(0, 200, 3)
                assert table.read_many(ids)[:, 0].tolist() == [(int(i) + 1) << 20 for i in ids]
            elif kind == 3:
                with table.pin_many([n, (n + 1) % 200]) as pages:
                    assert pages[0][0] == word
            elif kind == 4:
                with table.write(n, timeout=WAIT) as page:
                    assert page[3] == word + 3
                    page[-1] = me
            elif kind == 5:
                with work.write(int(random.integers(0, 8)), timeout=WAIT) as page:
                    page[:] += 1
            else:
                table.prefetch([n])
            values = np.unique(work[int(random.integers(0, 8))])
            assert len(values) == 1

    for me in range(n_threads):
        threads.start(run, me)
    threads.join()
    assert pins(pool) == 0
    assert pool.check() == []


def test_counters_in_many_threads_lose_nothing(work, threads):
    def run():
        for i in range(100):
            with work.write(i % 4, timeout=WAIT) as page:
                page.view(np.uint64)[:] += 1

    for _ in range(8):
        threads.start(run)
    threads.join()
    assert [np.unique(work[n].view(np.uint64)).tolist() for n in range(4)] == [[200]] * 4


# ---- never half-written ----------------------------------------------------------------------


def _stamp_writer(space, seed, seconds):
    random, end, done = np.random.default_rng(seed), time.monotonic() + seconds, 0
    while not done or time.monotonic() < end:
        n = int(random.integers(0, len(space)))
        with space.write(n, timeout=WAIT) as page:
            assert (page == page[0]).all()
            page[:] = random.integers(0, 2**63)
        done += 1
    return done


def _stamp_reader(space, seed, seconds):
    random, end, done = np.random.default_rng(seed), time.monotonic() + seconds, 0
    out = np.empty((8, PAGE // 8), np.uint64)
    mixed = 0
    while not done or time.monotonic() < end:
        n = int(random.integers(0, len(space)))
        page = space[n]
        first = int(page[0])
        mixed += not (page == first).all()
        ids = random.integers(0, len(space), 8)
        space.read_many(ids, out=out)
        mixed += int(np.count_nonzero((out != out[:, :1]).any(axis=1)))
        with space.pin(n) as pinned:
            mixed += not (pinned == pinned[0]).all()
        mixed += int(page[-1]) != first  # still the same snapshot
        del page
        done += 10
    return done, mixed


@pytest.mark.parametrize("pages", [2, 100], ids=["two pages", "more pages than frames"])
def test_nobody_ever_sees_a_page_half_written(pool, child, tmp_path, pages):
    path = tmp_path / "stamped"
    path.write_bytes(bytes(pages * PAGE))
    space = pool.open_file(path, "r+", dtype="<u8")
    writers = [child(_stamp_writer, space, seed, 2.0) for seed in range(2)]
    readers = [child(_stamp_reader, space, 100 + seed, 2.0) for seed in range(2)]
    reads = [reader.result() for reader in readers]
    writes = [writer.result() for writer in writers]
    assert all(done > 0 for done, _ in reads)
    assert all(done > 0 for done in writes)
    assert [mixed for _, mixed in reads] == [0, 0]
    pool.flush()
    data = np.fromfile(path, "<u8").reshape(pages, -1)
    assert (data == data[:, :1]).all()


# ---- closing under use ------------------------------------------------------------------------

_CLOSE_IN_LOADER = """
import os, threading, bufferpool as bp, resource
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
pool = bp.Pool.create(f"bptest-{os.getppid()}-close{os.getpid()}", 64 * 4096, page_size=4096)
pool.unlink()
inside, go = threading.Event(), threading.Event()
THREAD = MODE == "thread"
def loader(n, out):
    if THREAD:
        inside.set()
        assert go.wait(WAIT)
    else:
        close()
    out[:] = 5
def close():
    try:
        pool.close()
        print("closed")
    except BufferError:
        print("refused")
def read():
    try:
        print(space[0][0])
    except bp.errors.PoolClosed:
        print("PoolClosed")
space = pool.open_derived("derived", 4, loader)
if THREAD:
    thread = threading.Thread(target=read)
    thread.start()
    assert inside.wait(WAIT)
    close()
    go.set()
    thread.join(WAIT)
else:
    read()
"""


@pytest.mark.parametrize("mode", ["thread", "loader"])
def test_closing_a_pool_while_a_loader_runs_is_refused(mode):
    done = run_python(_CLOSE_IN_LOADER.replace("MODE", repr(mode)).replace("WAIT", str(WAIT)))
    assert done.returncode == 0, done.stderr
    assert done.stdout in ("refused\n5\n", "closed\nPoolClosed\n")


def test_threads_find_the_pool_closed(pool, threads: Threads):
    work = pool.open_scratch("work", 16)
    started, stop, ended = threading.Barrier(5), threading.Event(), []

    def run(me):
        started.wait(WAIT)
        try:
            while not stop.is_set():
                with work.write(me % 16, timeout=WAIT) as page:
                    page[:] = 1
                assert work.read_many([me])[0, 0] == 1
                time.sleep(0.01)  # close() is refused while a thread is inside
        except bp.errors.PoolClosed:
            ended.append(me)

    for me in range(4):
        threads.start(run, me)
    started.wait(WAIT)

    def closes():
        try:
            pool.close()
        except BufferError:
            return False
        return True

    try:
        wait_until(closes, "the pool closes")
        wait_until(lambda: len(ended) == 4, "the threads find it closed")
    finally:
        stop.set()
    threads.join()
    assert sorted(ended) == [0, 1, 2, 3]
