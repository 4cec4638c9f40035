"""A fork while other threads attach, detach, or hold the locks of the package."""

import gc
import os
import re
import threading
from pathlib import Path

import numpy as np
import pytest

import bufferpool as bp
from bufferpool import _locks
from tests.conftest import PAGE, WAIT, pins
from tests.support.children import exit_code, forked, run_python

ROOT = Path(bp.__file__).parent


class _Held:
    """A thread that stops in the middle of something until the test lets it continue."""

    def __init__(self, what, *args):
        self.there, self.go = threading.Event(), threading.Event()
        self.thread = threading.Thread(target=what, args=(self, *args), daemon=True)

    def __enter__(self):
        self.thread.start()
        assert self.there.wait(WAIT)
        return self

    def __exit__(self, *exc):
        self.go.set()
        self.thread.join(WAIT)
        assert not self.thread.is_alive()

    def stop_here(self):
        self.there.set()
        assert self.go.wait(WAIT)


def test_a_child_waits_for_no_lock_of_a_thread_that_it_has_not(pool):
    """A thread of the parent was using an unpickled space for the first time, and held the lock of its pool.

    The forked child used the same space, and waited for ever for a thread that it did not have.
    """
    work = pool.open_scratch("work", 4)

    def hold(held):
        with pool.client._lock:
            held.stop_here()

    def use():
        with work.write(1) as page:
            page[:] = 3
        pool.close()

    with _Held(hold):
        assert exit_code(forked(use)) == 0
    assert (work[1] == 3).all()
    assert pool.check() == []


def test_every_lock_and_event_of_the_package_is_renewed_in_a_child():
    """A lock that a thread of the parent holds is free in the child, and an event that it would set is set."""
    lock, event = _locks.Lock(), _locks.Event()

    def hold(held):
        with lock:
            held.stop_here()

    def use():
        with lock:
            pass
        assert event.wait(0)

    with _Held(hold):
        assert exit_code(forked(use)) == 0
        assert not event.is_set()


def test_no_lock_of_the_package_is_made_outside_of_the_list():
    """A lock that is not on the list would not be renewed in a forked child."""
    kinds = "Lock|RLock|Condition|Semaphore|BoundedSemaphore|Barrier|Event"
    made = re.compile(rf"threading\.({kinds})\b|from threading import|default_factory=threading\.")
    for path in sorted(ROOT.rglob("*.py")):
        if path.name != "_locks.py":
            assert not made.search(path.read_text()), (
                f"{path.name} makes a lock of its own; bufferpool/_locks.py has one"
            )
    fork = (ROOT / "core" / "python" / "fork.cpp").read_text()
    for path in sorted((ROOT / "core").rglob("*")):
        if path.suffix in (".h", ".cpp"):
            for name in re.findall(r"^\s*(?:static |inline )*std::\w*mutex (\w+);", path.read_text(), re.MULTILINE):
                assert re.search(rf"new \(&(\w+\.)*{name}\)", fork), (
                    f"{name} of {path.name} is not renewed in a forked child"
                )


_FORKS_WHILE_A_THREAD_ATTACHES = """
import os, signal, sys, threading, warnings
import bufferpool as bp
from bufferpool.client import client
warnings.simplefilter("ignore")
there, go, Segment = threading.Event(), threading.Event(), client._core.Segment

def stop(*args):  # the core has attached, and Python does not know it yet
    seg = Segment(*args)
    there.set()
    go.wait()
    return seg

pool = bp.Pool(f"/dev/shm/{sys.argv[1]}", None, None)
client._core.Segment = stop
thread = threading.Thread(target=pool.stats, daemon=True)
thread.start()
assert there.wait(300)
kid = os.fork()
client._core.Segment = Segment
"""

_AND_DIES = """
if kid == 0:
    os.close(1)
    os.close(2)
    signal.pause()
print(kid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""

_AND_ITS_CHILD_ATTACHES = """
if kid == 0:
    print([(c.pid == os.getpid()) for c in pool.clients()], (pool.space("work")[1] == 7).all(), flush=True)
    pool.close()
    os._exit(0)
os.waitpid(kid, 0)
go.set()
thread.join()
print([(c.pid == os.getpid()) for c in pool.clients()])
"""


def test_a_dead_parent_is_dead_though_it_forked_while_a_thread_attached(pool):
    """The child of a process in which a thread was attaching had that thread's description, with its byte lock.

    When the parent was killed, its client was said to live for as long as the child did, with all it had pinned.
    """
    done = run_python(_FORKS_WHILE_A_THREAD_ATTACHES + _AND_DIES, pool.name)
    kid = int(done.stdout)
    try:
        assert pool.stats().clients == 2, "the parent was killed when it was a client"
        assert pool.reap() == 1
        assert pool.stats().clients == 1
        assert pool.check() == []
    finally:
        os.kill(kid, 9)


def test_a_child_attaches_what_a_thread_of_its_parent_was_attaching(pool):
    """What the absent thread had begun is not left half-made: the child is a client once, and so is its parent."""
    with pool.open_scratch("work", 4).write(1) as page:
        page[:] = 7
    done = run_python(_FORKS_WHILE_A_THREAD_ATTACHES + _AND_ITS_CHILD_ATTACHES, pool.name)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["[False, False, True] True", "[False, True]"]
    pool.reap()
    assert pool.stats().clients == 1
    assert pool.check() == []


@pytest.mark.parametrize("seed", range(4))
def test_forks_while_threads_attach_and_detach(pool, seed, threads):
    """The parent's clients are gone when it has closed them, although a thread attached and detached during the fork."""
    stop = threading.Event()

    def come_and_go():
        while not stop.is_set():
            other = bp.Pool(pool.path, None, None)
            other.stats()
            other.close()

    threads.start(come_and_go)
    random, kids = np.random.default_rng(seed), []
    try:
        for _ in range(10):
            stop.wait(float(random.random()) * 0.003)
            kids.append(forked(lambda: stop.wait(WAIT)))
    finally:
        stop.set()
        threads.join()
    gc.collect()
    mine = [c for c in pool.clients() if c.pid == os.getpid()]
    for kid in kids:
        os.kill(kid, 9)
        os.waitpid(kid, 0)
    assert len(mine) == 1
    pool.reap()
    assert [c.pid for c in pool.clients()] == [os.getpid()]
    assert pins(pool) == 0
    assert pool.check() == []
    assert pool.page_size == PAGE
