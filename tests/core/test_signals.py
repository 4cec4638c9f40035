"""Signals: Ctrl-C ends every wait, a storm of signals disturbs nothing, and a handler's exception is raised."""

import mmap
import os
import signal
import struct
import threading
import time

import numpy as np
import pytest

import bufferpool as bp
from bufferpool.figures.names import Kind
from bufferpool.spaces.directory import Wanted
from bufferpool.spaces.space import Binding, Space
from bufferpool.stores.base import Caching
from tests.conftest import WAIT, stamp, wait_until
from tests.support import fuzz_damage
from tests.support.children import run_python

MEMORY_LOCK, DIRECTORY_LOCK = (fuzz_damage.HEADER[f"{name}.word"][0] for name in ("memory", "directory"))


def _slow(page_no, out):
    time.sleep(0 if page_no != 3 else 30)


def _load_slowly(name, ready):
    with bp.Pool.attach(name) as pool:
        space = pool.open_derived("made", 8, _slow)
        ready.set()
        space[3].sum()


def _interrupt_soon():
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    return timer


def test_ctrl_c_ends_the_wait_for_a_page_that_another_process_loads(pool, child, spawn):
    space, ready = pool.open_derived("made", 8, _slow), spawn.Event()
    loading = child(_load_slowly, pool.name, ready)
    assert ready.wait(WAIT)
    wait_until(lambda: pool.client.seg.entry_words(np.array([3], np.uint32))[0] & 3 == 1, "the page is being loaded")
    timer, began = _interrupt_soon(), time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        space[3].sum()
    assert time.monotonic() - began < 5
    timer.join()
    loading.kill()
    assert pool.reap() == 1


def _hold(name, ready, go):
    """A process that is attached, and does nothing else."""
    with bp.Pool.attach(name) as pool:
        ready.put(pool.client.seg.status()["client"])
        go.wait(WAIT)


_UNDER_THE_LOCK = {
    "miss": (MEMORY_LOCK, lambda pool, work: work[7].sum()),
    "trim": (MEMORY_LOCK, lambda pool, work: pool.trim("64KiB")),
    "write": (MEMORY_LOCK, lambda pool, work: work.write(9).__enter__()),
    "open": (DIRECTORY_LOCK, lambda pool, work: pool.open_scratch("more", 4)),
    "remove": (DIRECTORY_LOCK, lambda pool, work: work.remove()),
}


@pytest.mark.parametrize("use", _UNDER_THE_LOCK)
def test_ctrl_c_ends_the_wait_for_a_lock_that_a_living_client_holds(pool, child, spawn, use):
    at, do = _UNDER_THE_LOCK[use]
    work = pool.open_scratch("work", 64)
    ready, go = spawn.Queue(), spawn.Event()
    holder = child(_hold, pool.name, ready, go)
    client = ready.get(timeout=WAIT)
    fd = os.open(pool.path, os.O_RDWR)
    with mmap.mmap(fd, mmap.PAGESIZE) as shm:
        os.close(fd)
        shm[at : at + 4] = struct.pack("<I", client)
        timer, began = _interrupt_soon(), time.monotonic()
        bound = threading.Timer(6, shm.__setitem__, (slice(at, at + 4), bytes(4)))
        bound.start()
        try:
            with pytest.raises(KeyboardInterrupt):
                do(pool, work)
            assert time.monotonic() - began < 5, "Ctrl-C had to wait for the lock"
        finally:
            bound.cancel()
            bound.join()
            shm[at : at + 4] = bytes(4)
            timer.join()
    go.set()
    holder.result()
    assert work[8].sum() == 0


def test_a_storm_of_signals_disturbs_nothing(pool, data_file, threads):
    table, work = pool.open_file(data_file(200), "r+"), pool.open_scratch("work", 8)
    came = []
    before = signal.signal(signal.SIGALRM, lambda *_: came.append(1))
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    stop = threading.Event()

    def others():
        random = np.random.default_rng(1)
        while not stop.is_set():
            n = int(random.integers(0, 200))
            assert np.array_equal(table[n], stamp(n))

    threads.start(others)
    try:
        end, i = time.monotonic() + 60, 0
        while len(came) <= 500 and time.monotonic() < end:
            i += 1
            assert np.array_equal(table[i % 200], stamp(i % 200))
            with work.write(i % 8) as page:
                page[:] = i % 251
            with table.write(i % 50) as page:
                page[:] = stamp(i % 50)
            if i % 20 == 0:
                pool.flush()
                pool.trim("32KiB")
                bp.Pool.attach(pool.name).close()
    finally:
        stop.set()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    threads.join()
    assert len(came) > 500
    assert i > 20


# ---- a handler that raises ------------------------------------------------------------------------


class Told(Exception):
    """What a handler raises."""


@pytest.fixture
def alarm():
    """alarm(seconds): SIGALRM so much later, whose handler raises Told."""

    def told(*_):
        raise Told

    before = signal.signal(signal.SIGALRM, told)
    yield lambda seconds: signal.setitimer(signal.ITIMER_REAL, seconds)
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def _own_and_die(name, ready):
    with bp.Pool.attach(name) as pool:
        pool.open_scratch("theirs", 4, lifetime="process")
        ready.set()
        time.sleep(WAIT)


def _handle_of_another_s(pool, name):
    """A handle of another client's private space, which the pool gives to nobody."""
    record = next(r for r in pool.client.seg.spaces() if r["name"] == name)
    space = Space(pool, Wanted(name, Kind.SCRATCH), np.uint8)
    places = (record["index"], record["generation"], record["first_entry"], record["max_pages"], record["kind"])
    space._bind_core(pool.client.seg, Binding(*places, -1, Caching.KERNEL, None, space.dtype, True, False, True, False))
    return space


_CLEARING = {  # whether the dead client has been reaped before, and what is done then
    "reap": (False, lambda pool: pool.reap()),
    "check": (False, lambda pool: pool.check()),
    "open": (True, lambda pool: pool.open_scratch("more", 4)),
    "remove": (True, lambda pool: pool.space("to go").remove()),
    "detach": (True, lambda pool: bp.Pool.attach(pool.name).close()),
}


@pytest.mark.parametrize("use", _CLEARING)
def test_what_a_handler_raises_while_a_dead_client_is_reaped_is_raised(pool, attach, child, spawn, alarm, use):
    """A living process writes a page of a dead client's scratch space: a process that clears up after the dead client
    waits for the page a little, and continues without it. What a handler raises meanwhile is raised by the caller's
    operation: it is neither lost nor a SystemError."""
    ready, (reaped, do) = spawn.Event(), _CLEARING[use]
    owner = child(_own_and_die, pool.name, ready)
    assert ready.wait(WAIT)
    pool.open_scratch("to go", 4)
    write = _handle_of_another_s(attach(pool), "theirs").write(1)
    write.__enter__()[:] = 1
    owner.kill()
    if reaped:
        assert pool.reap() == 1
    alarm(0.01)
    with pytest.raises(Told):  # noqa: PT012  it comes a moment later if nobody waited
        do(pool)
        time.sleep(WAIT)
    with pytest.raises(bp.errors.SpaceRemoved):
        write.__exit__(None, None, None)
    pool.reap()
    pool.open_scratch("another", 4)
    assert "theirs" not in [record["name"] for record in pool.client.seg.spaces()]


class Raised(Exception):
    """What a handler raises."""


@pytest.mark.parametrize("checksum", [False, True])
@pytest.mark.parametrize("raised", [TimeoutError("of the handler"), Raised()], ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("call", ["pwritev", "utime", "fdatasync"])
def test_what_a_handler_raises_while_a_file_is_written_is_raised(pool, data_file, monkeypatch, checksum, raised, call):
    """It was raised as a StoreError of the file, which an application that expects its own TimeoutError does not catch."""
    pytest.importorskip("xxhash") if checksum else None
    path = data_file(8)
    space = pool.open_file(path, "w+" if checksum else "r+", checksum=checksum)
    for n in range(2):
        with space.append() if checksum else space.write(n) as page:
            page[:8] = 1
    handlers, real = [], getattr(os, call)

    def handler(*_):
        raise raised

    def interrupted(*args, **kwargs):
        if not handlers:
            handlers.append(signal.signal(signal.SIGALRM, handler))
            signal.raise_signal(signal.SIGALRM)  # its handler runs before the next bytecode
        return real(*args, **kwargs)

    monkeypatch.setattr(os, call, interrupted)
    with pytest.raises(type(raised)) as found:
        pool.flush()
    signal.signal(signal.SIGALRM, handlers[0])
    assert found.value is raised
    assert pool.stats().frames.dirty == 2
    assert pool.flush() == 2
    assert pool.check() == []


_AGAIN = """
import faulthandler, os, signal, sys
import bufferpool as bp
from bufferpool.figures.names import Kind
from bufferpool.spaces.directory import Wanted
from bufferpool.spaces.space import Space
from tests.support.memory_store import Memory
faulthandler.dump_traceback_later(300, exit=True)
pool = bp.Pool.create(sys.argv[1], "1MiB", page_size=4096)
told, doing = [], []
class Interrupted(Memory):
    def write_from(self, offset, buffer):
        signal.raise_signal(signal.SIGUSR1)  # its handler runs before the next bytecode
        return super().write_from(offset, buffer)
    def size(self):
        if doing:
            signal.raise_signal(signal.SIGUSR1)
        return super().size()
def handler(*_):
    try:
        told.append(doing[0]())
    except Exception as error:
        told.append(type(error).__name__)
signal.signal(signal.SIGUSR1, handler)
space = pool.open_store("store", Interrupted(8), mode="r+")
for what in (pool.flush, space.flush, space.remove, pool.check, lambda: pool.trim(4096) >= 4096, lambda: int(space[5][0]) >= 0):
    with space.write(3) as page:
        page[:] = 1
    doing[:] = [what]
    assert pool.flush() == 1
doing[:] = [lambda: len(pool.open_scratch("inner", 4))]
pool.open_store("another", Interrupted(8), mode="r+")
print(told, pool.check())
"""


def test_what_a_handler_asks_for_in_the_midst_of_the_same_is_refused_not_waited_for(pool_name):
    """A SIGTERM handler that flushes may come while its thread is flushing: that would wait for itself."""
    done = run_python(_AGAIN, pool_name)
    assert done.returncode == 0, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    told = [
        "WouldDeadlock",
        "WouldDeadlock",
        "WouldDeadlock",
        [],
        True,
        True,
        4,
    ]  # no store is asked under the directory lock
    assert done.stdout.strip() == f"{told} []"
