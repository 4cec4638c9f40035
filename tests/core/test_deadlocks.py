"""Loaders that wait for each other in a cycle, in threads or in processes, get WouldDeadlock; no other loader does."""

import threading
import time
import traceback

import numpy as np
import pytest

import bufferpool as bp
from bufferpool.errors import LoaderFailed, WouldDeadlock
from tests.conftest import WAIT, stamp, wait_until
from tests.support.children import run_python

OPS = 64  # operations that a process may have under way


def why(error):
    """The type of the first exception in a chain of causes."""
    while error.__cause__ is not None:
        error = error.__cause__
    return type(error)


def ask(space, n):
    """The first byte of a page, or the type of the error by which its loader failed."""
    try:
        return int(space[n][0])
    except LoaderFailed as error:
        return why(error)


def _ask_around(name, me, ring, begun):
    """One of a ring of processes: the loader of its page asks for the next one's."""

    def loader(page_no, out):
        if page_no == me:
            begun.wait(WAIT)
        if page_no < ring:
            _ = space[(page_no + 1) % ring]
        out[:] = page_no + 1

    with bp.Pool.attach(name) as pool:
        space = pool.open_derived("made", 8, loader)
        return ask(space, me)


@pytest.mark.parametrize("ring", [2, 3])
def test_loaders_of_processes_that_wait_for_each_other_get_an_error(pool, child, spawn, ring):
    begun = spawn.Barrier(ring)
    asking = [child(_ask_around, pool.name, me, ring, begun) for me in range(ring)]
    assert [process.result() for process in asking] == [WouldDeadlock] * ring
    assert pool.check() == []
    assert int(pool.open_derived("made", 8, lambda n, out: out.fill(7))[0][0]) == 7


def _ask_for_the_others(name, begun):
    def loader(page_no, out):
        if page_no == 2:
            begun.wait(WAIT)
            _ = space[0]
        out[:] = page_no + 1

    with bp.Pool.attach(name) as pool:
        space = pool.open_derived("made", 8, loader)
        return ask(space, 2)


def test_a_ring_of_two_threads_and_a_process_gets_an_error(pool, child, spawn, threads):
    """0 and 1 are loaded by threads of one process, 2 by another one: 0 -> 1 -> 2 -> 0. Which load gets WouldDeadlock, and which
    thread loads the failed page again, is not determined; but one does, and all of them end."""
    begun, ended, came = spawn.Barrier(3), {}, set()

    def loader(page_no, out):
        if page_no not in came and page_no < 2:
            came.add(page_no)
            begun.wait(WAIT)
            _ = space[page_no + 1]
        out[:] = page_no + 1

    space = pool.open_derived("made", 8, loader)
    other = child(_ask_for_the_others, pool.name, begun)
    for n in (0, 1):
        threads.start(lambda n=n: ended.update({n: ask(space, n)}))
    ended[2] = other.result()
    threads.join()
    assert all(ended[n] in (n + 1, WouldDeadlock) for n in range(3))
    assert WouldDeadlock in ended.values()


def test_threads_whose_loaders_ask_in_one_direction_are_never_told(pool, threads):
    """Many threads load a pyramid of tiles, each made of the two below it: they wait for each other, but never in a cycle."""
    waits = []

    def loader(n, out):
        time.sleep(0.0005)
        out[:] = 1 if n >= 63 else (int(space[2 * n + 1][0]) + int(space[2 * n + 2][0])) % 251
        waits.append(n)

    space = pool.open_derived("tiles", 127, loader)

    def use(seed):
        random = np.random.default_rng(seed)
        for _ in range(30):
            n = int(random.integers(0, 127))
            assert int(space[n][0]) == 2 ** (6 - int(np.log2(n + 1))) % 251
            if random.random() < 0.2:
                pool.trim("128KiB")

    for seed in range(8):
        threads.start(use, seed)
    threads.join()
    assert len(waits) > 127, "nothing was loaded twice"
    assert pool.stats().wait_load > 0


def _load_and_die(name, ready):
    def loader(page_no, out):
        if page_no == 1:
            ready.set()
            _ = space[0]  # loaded by the other process, which asks for ours
        out[:] = 9

    with bp.Pool.attach(name) as pool:
        space = pool.open_derived("made", 8, loader)
        space[1]


def test_a_ring_with_a_dead_process_in_it_is_none(pool, child, spawn):
    """The other process of the cycle died: its load is undone, and ours continues."""
    ready, told = spawn.Event(), []

    def loader(page_no, out):
        if page_no == 0:
            other = child(_load_and_die, pool.name, ready)
            assert ready.wait(WAIT)
            wait_until(lambda: pool.stats().wait_load > 0, "it waits for us")
            other.kill()
            try:
                out[:] = space[1][0] + 1
            except WouldDeadlock as error:
                told.append(error)
        else:
            out[:] = page_no

    space = pool.open_derived("made", 8, loader)
    assert int(space[0][0]) == 2
    assert told == []


# ---- more loads than a process may have under way -----------------------------------------------


def test_more_threads_than_operations_load_at_once(make_pool, threads):
    pool = make_pool("1MiB")
    inside = threading.Semaphore(0)
    go = threading.Event()

    def loader(n, out):
        inside.release()
        assert go.wait(WAIT)
        out[:] = stamp(n)

    space = pool.open_derived("made", 200, loader)
    for n in range(OPS + 20):
        threads.start(lambda n=n: np.testing.assert_array_equal(space[n], stamp(n)))
    for _ in range(OPS):
        assert inside.acquire(timeout=WAIT)
    assert not inside.acquire(timeout=0.1), "more operations than there are intents"
    go.set()
    threads.join()
    assert pool.stats().loads == OPS + 20


_DEEP = """
import faulthandler, sys
import bufferpool as bp
faulthandler.dump_traceback_later(300, exit=True)
pool = bp.Pool.create(sys.argv[1], "1MiB", page_size=4096)
told = []
def loader(n, out):
    if n:
        try:
            out[:] = space[n - 1][0] + 1
        except bp.errors.WouldDeadlock:
            told.append(n)
            raise
space = pool.open_derived("d", 200, loader)
assert int(space[60][0]) == 60
pool.trim("1MiB")
try:
    space[150]
except bp.errors.LoaderFailed as error:
    while error.__cause__:
        error = error.__cause__
    assert isinstance(error, bp.errors.WouldDeadlock), error
assert told == [150 - 63], told
assert int(space[10][0]) == 10
assert pool.check() == []
"""


def test_loaders_that_ask_deeper_than_there_are_operations_get_an_error(pool_name):
    done = run_python(_DEEP, pool_name)
    assert done.returncode == 0, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"


def test_threads_that_together_ask_too_deeply_get_an_error(pool, threads):
    """Each of 64 threads has a load, and its loader asks for one more: none of them could end."""
    begun, ended = threading.Barrier(OPS), []

    def loader(n, out):
        if n < OPS:
            begun.wait(WAIT)
            _ = space[OPS + n]
        out[:] = 1

    space = pool.open_derived("made", 2 * OPS, loader)

    def use(n):
        try:
            ended.append(ask(space, n))
        except Exception:
            traceback.print_exc()
            raise

    for n in range(OPS):
        threads.start(use, n)
    threads.join()
    assert len(ended) == OPS
    assert set(ended) <= {1, WouldDeadlock}
    assert WouldDeadlock in ended
