"""Hostility: damaged segments, file systems that fill up, forks, signals, stopped processes, other users."""

import mmap
import os
import signal
import struct
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pytest

import bufferpool as bp
from bufferpool.errors import WaitTimeout

from . import fuzz_damage, fuzz_segment
from .conftest import PAGE, ROOT, WAIT, on_small_tmpfs, pins, run_python, stamp, wait_until

MEMORY_LOCK, DIRECTORY_LOCK = (fuzz_damage.HEADER[f"{name}.word"][0] for name in ("memory", "directory"))


# ---- damaged segments ----------------------------------------------------------------------


def test_a_damaged_segment_ends_in_results_or_typed_errors():
    run = fuzz_segment.fuzz_in_parallel(1, fuzz_segment.Limits(seconds=12, findings=3))
    assert [str(finding) for finding in run.found] == []
    assert run.mutations > 2000


@pytest.mark.soak
def test_a_million_damages_end_in_results_or_typed_errors_under_the_sanitizers():
    limits = fuzz_segment.Limits(mutations=1_000_000, findings=20)
    run = fuzz_segment.fuzz_in_parallel(1_000_000, limits, "address,undefined")
    print(run.mutations, "mutations", run.operations, "operations")
    assert [str(finding) for finding in run.found] == []
    assert run.mutations >= 1_000_000


_DAMAGE = """
import mmap, os, struct, sys
import numpy as np
import bufferpool as bp
from bufferpool.errors import BufferPoolError
from tests.fuzz_damage import CLIENT, FRAME, HEADER, HEADER_KEPT, INTENTS, SPACE, SPACE_FIELDS, Layout, fields
name, path = sys.argv[1:]
pool = bp.Pool.create(name, 32 * 4096, page_size=4096, extent_size=16384, max_capacity=1 << 20, max_clients=8, max_pages=8192)
with open(path, "wb") as file:
    file.write(bytes(48 * 4096))
table = pool.open_file(path, "r+", name="table", max_pages=400)
work = pool.scratch("work", 16)
for n in (*range(48), 3, 4, 5):
    table[n].sum()
with table.write(3) as page:
    page[:] = 1
with work.write(0) as page:
    page[:] = 1
shm = mmap.mmap(os.open(pool.path, os.O_RDWR), os.stat(pool.path).st_size)
at = Layout(shm)
FIRST = at.space(shm, 1, 'first_entry')  # of the scratch space
ME = pool._seg.status()["client"]
def put(offset, value, size=8):
    shm[offset : offset + size] = value.to_bytes(size, "little")
def header(field, value):
    put(HEADER[field][0], value, HEADER[field][1])
def space(i, field, value):
    put(at.spaces_at + i * SPACE + SPACE_FIELDS[field][0], value, SPACE_FIELDS[field][1])
def entry(page, value):
    put(at.entries_at + 8 * page, value)
def typed(use):
    try:
        use()
    except (BufferPoolError, BufferError, ValueError):
        pass
def everything():
    for use in (lambda: [table[n].sum() for n in range(48)], lambda: table.read_many(range(48)), lambda: table.prefetch(range(48)),
                lambda: pool.trim(bytes="64KiB"), lambda: pool.trim(), lambda: pool.flush(), lambda: pool.stats(),
                lambda: pool.frames(), lambda: pool.check(), lambda: table.drop(0, 4), lambda: pool.resize("64KiB", timeout=0.1)):
        typed(use)
"""

_DAMAGES = {
    "a ring that begins outside": "header('policy.cold.head', 0xffffffff); header('policy.hot.head', 0x7fffffff); everything()",
    "rings with four billion elements": "header('policy.cold.count', 0xffffffff); header('policy.hot.count', 0xfffffff0); everything()",
    "a budget of the policy that is none": "header('policy.frames', 0xffffffff); header('policy.cold.head', 1 << 30); everything()",
    "the check of endless rings": "header('policy.cold.count', 0xffffffff); typed(pool.check)",
    "a memory lock that nobody can have": "header('memory.word', 511); everything()",
    "a directory lock that nobody can have": "header('directory.word', 9); typed(lambda: pool.scratch('more', 4))",
    "a growth lock that nobody can have": "header('growth.word', 9 | 1 << 31); typed(lambda: pool.scratch('more', 4))",
    "a flush lock that nobody can have": "space(0, 'flush_lock.word', 300); typed(pool.flush)",
    "a memory lock in our own name": "header('memory.word', ME); everything()",
    "a growth lock in our own name, with waiters": "header('growth.word', ME | 1 << 31); typed(lambda: pool.scratch('more', 4))",
    "a directory lock in our own name": "header('directory.word', ME); pool.scratch('more', 4)",
    "a flush lock in our own name": "space(0, 'flush_lock.word', ME); typed(pool.flush)",
    "a page loaded by us": "entry(40, 1 | ME << 8); assert table[40].sum() == 0",
    "a page evicted by us": "entry(40, 3 | ME << 8 | 7 << 32); typed(lambda: table[40])",
    "a page flushed by us": "entry(40, 2 | ME << 17 | 4 << 32); typed(lambda: table.drop(40, 1)); everything()",
    "a page loaded by nobody": "entry(40, 1); typed(lambda: table[40])",
    "a page loaded by a client that cannot be": "entry(40, 1 | 400 << 8); typed(lambda: table[40])",
    "a page loaded by a dead client without an intent": "entry(40, 1 | 7 << 8); typed(lambda: table[40])",
    "a page evicted by nobody": "entry(40, 3 | 7 << 32); typed(lambda: table[40])",
    "a page evicted from a frame that is none": "entry(40, 3 | 9 << 8 | 0xffffffff << 32); typed(lambda: table[40])",
    "a page in a frame that is none": "entry(40, 2 | 0xffffffff << 32); everything()",
    "a page written by a client that cannot be": "entry(40, 2 | 400 << 8 | 4 << 32); typed(lambda: table.drop(40, 1)); everything()",
    "a page flushed by a client that cannot be": "entry(40, 2 | 400 << 17 | 4 << 32); typed(lambda: table.drop(40, 1)); everything()",
    "a space whose remover died at once": """
held = [work[n] for n in range(8)]; del held
extent = int.from_bytes(shm[at.spaces_at + SPACE : at.spaces_at + SPACE + 8], "little")
space(1, 'extent', ((extent >> 40) + 1) << 40 | 1 << 39)
pool.scratch("more", 4)
assert "work" not in [record["name"] for record in pool._seg.spaces()], "it is still there"
assert (pool.frames()["space"] != 1).all() or pool._seg.spaces()[-1]["name"] == "more"
assert pool.check() == []
new = pool.scratch("work", 16)
assert new[0].sum() == 0, "an old page in a new space"
""",
    "more pages than the space may have": """
generation = int.from_bytes(shm[at.spaces_at : at.spaces_at + 8], "little") >> 40
space(0, 'extent', generation << 40 | (1 << 33))
for use in (lambda: table.read_many([1 << 32, 4000000000]), lambda: table.pin_many([4000000000]), lambda: table.prefetch([4000000000]),
            lambda: table[4000000000], lambda: table.write(4000000000).__enter__(), lambda: table.drop(4000000000, 1)):
    typed(use)
""",
    "an append to a space in no known state": """
space(1, 'state', 7); space(1, 'entries_ready', 0)
typed(lambda: work.append())
""",
    "a first entry that is none, then an append": """
before = os.stat(pool.path).st_blocks
space(1, 'first_entry', 0xfffffe00); space(1, 'entries_ready', 0)
typed(lambda: work.append())
assert os.stat(pool.path).st_blocks <= before + 64, "memory beyond the entries"
""",
    "a page whose frame changes during its write": """
def write():
    with work.write(0) as page:
        entry(FIRST, 2 | 1 << 8 | 0xfffffff0 << 32)
typed(write)
""",
    "an endless count of entries, and a changed file": """
space(0, 'entries_ready', 2**64 - 1)
typed(pool.flush); os.utime(path); typed(lambda: pool.open_file(path, name="table")); typed(lambda: table.remove())
""",
    "a count of entries that wraps, repaired by the growth lock": """
magic = shm[:HEADER_KEPT]
space(1, 'entries_ready', (2**64 - at.entries_at - FIRST * 8) // 8)
header('growth.word', 7)  # dead: its inheritor repairs
typed(lambda: pool.scratch('more', 4))
assert shm[:HEADER_KEPT] == magic, "the header was given back to the kernel"
""",
    "free frames that are pages": """
for i in range(24):
    put(at.queues_at + 8 * (i % 6), 2**64 - 1)
kept = {n: table[n].copy() for n in (3, 4, 5)}
with work.write(9) as page:
    page[:] = 9
typed(lambda: [work[n] for n in range(10, 16)])
for n in kept:
    typed(lambda n=n: (table[n] == kept[n]).all() or sys.exit("another page's content"))
""",
    "an intent to flush everything, of a dead client": """
base = at.clients_at + 2 * CLIENT
before = os.stat(pool.path).st_blocks
shm[base + INTENTS : base + INTENTS + 20] = struct.pack("<5I", 5, 0, 0, 0xffffffff, 0)
put(base + fields("Client")["state"][0], 1, 4)
typed(pool.reap)
assert os.stat(pool.path).st_blocks <= before + 16, "entries that no space has got memory"
""",
    "a page in a ring that is none": """
e = int.from_bytes(shm[at.entries_at + 24 : at.entries_at + 32], "little")
entry(3, e | 3 << 4)
typed(pool.check); everything()
""",
    "frames that are not ready yet": "header('frames_ready', 0xffffffff); everything()",
    "a budget without end": "header('budget_frames', 0xffffffff); everything()",
    "no budget": "header('budget_frames', 0); everything()",
    "less than no memory in use": "header('resident', 0xfffffff0); everything()",
    "a kind of space that is none": "space(0, 'kind', 77); space(1, 'kind', 0); typed(lambda: pool.space('table')); everything()",
}


@pytest.mark.parametrize("damage", _DAMAGES)
def test_damage(damage, pool_name, tmp_path):
    code = f"{_DAMAGE}\nimport faulthandler; faulthandler.dump_traceback_later(8, exit=True)\n{_DAMAGES[damage]}\nos._exit(0)"
    done = run_python(code, pool_name, str(tmp_path / "data.db"), timeout=30)
    assert done.returncode == 0, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"


def test_a_flush_does_not_write_into_another_file_of_the_same_path(pool_name, tmp_path):
    """The file was replaced; the process that flushes has never opened it."""
    path = tmp_path / "data.db"
    path.write_bytes(bytes(8 * PAGE))
    writer = """
import sys, bufferpool as bp
pool = bp.Pool.create(sys.argv[1], "256KiB", page_size=4096)
with pool.open_file(sys.argv[2], "r+").write(1) as page:
    page[:] = 1
"""
    assert run_python(writer, pool_name, str(path)).returncode == 0
    other = tmp_path / "other.db"
    other.write_bytes(b"\x55" * (8 * PAGE))
    os.replace(other, path)
    with bp.Pool.attach(pool_name) as pool, pytest.raises(bp.errors.StoreError):
        pool.flush()
    assert path.read_bytes() == b"\x55" * (8 * PAGE)


# ---- a file system that fills up at every point ----------------------------------------------

_FILLING = """
import os, sys
import bufferpool as bp
from bufferpool.errors import SharedMemoryFull, PoolExhausted
where, path = sys.argv[1], sys.argv[2]
with open(path, "wb") as file:
    file.write(bytes(range(256)) * 16 * 64)
def steps(pool):
    table = pool.open_file(path, "r+", name="table")
    yield
    yield [table[n] for n in range(12)]
    for n in range(20, 26):
        with table.write(n) as page:
            page[:] = n
        yield
    yield pool.scratch("huge", 40000)
    work = pool.scratch("work", 100)
    for n in range(0, 100, 20):
        with work.write(n) as page:
            page[:] = 1
        yield
    with table.append() as page:
        page[:] = 5
    yield bp.Pool.attach("pool", directory=where)
    yield pool.flush(), pool.trim(), pool.resize("2MiB"), pool.resize("4MiB")
    yield [work[n] for n in range(100)]
full = whole = 0
for room in [*range(0, 640, 4), *range(640, 3600, 200)]:  # KiB
    ballast = os.open(where + "/ballast", os.O_RDWR | os.O_CREAT)
    os.posix_fallocate(ballast, 0, (os.statvfs(where).f_bavail - room // 4) * 4096)
    pool = None
    steps_of = None
    try:
        pool = bp.Pool.create("pool", "4MiB", page_size=4096, extent_size="64KiB", max_clients=64, directory=where)
        steps_of = steps(pool)
        for _ in steps_of:
            pass
        whole += 1
    except SharedMemoryFull:
        full += 1
    os.ftruncate(ballast, 0)
    os.close(ballast)
    if pool is None:
        assert os.listdir(where) == ["ballast"]
        continue
    _ = steps_of = None  # the arrays
    assert pool.check() == [], (room, pool.check())
    with pool.open_file(path, "r+", name="table").write(30) as page:
        page[:] = 7
    assert pool.scratch("more", 500)[400].sum() == 0
    pool.unlink()
    pool.close()
print(full > 20, whole > 2)
"""


def test_a_file_system_that_fills_up_at_any_point_is_a_typed_error(tmp_path):
    code = _FILLING.replace("sys.argv[2]", repr(str(tmp_path / "data.db")))
    assert on_small_tmpfs(code, tmp_path).splitlines() == ["True True"]


# ---- fork -----------------------------------------------------------------------------------


def _fork(function):
    """The exit code of a forked child that runs the function; it must end within 20 s."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # fork with threads, from Python 3.12
        pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = function() or 0
        finally:
            os._exit(code)
    waited = []

    def ended():
        done, status = os.waitpid(pid, os.WNOHANG)
        waited.extend([status] if done else [])
        return bool(done)

    try:
        wait_until(ended, "the forked child ends", 20)
    finally:
        if not waited:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(waited[0])


def test_a_fork_in_the_midst_of_a_load_by_another_thread(pool, threads):
    inside, go = threading.Event(), threading.Event()

    def loader(page_no, out):
        if page_no == 3 and threading.current_thread() is not threading.main_thread():
            inside.set()
            assert go.wait(WAIT)
        out[:] = page_no + 1

    space = pool.open_derived("made", 8, loader)
    kept = space[1]
    threads.start(lambda: space[3])
    assert inside.wait(WAIT)
    try:

        def in_child():
            assert (kept == 2).all()
            assert (space[5] == 6).all()
            pool.scratch("childs", 4, owner="client")
            return 7

        assert _fork(in_child) == 7
        pool.reap()
        assert pool.stats().clients == 1
    finally:
        go.set()
    threads.join()
    assert (space[3] == 4).all()
    assert pins(pool) == 1


@pytest.mark.parametrize("end", ["exit", "exception", "signal"])
def test_a_child_forked_inside_write_leaves_the_block_to_its_parent(pool, end):
    work = pool.scratch("work", 4)
    view = work[1]
    with work.write(2) as page:
        page[:] = 9

        def in_child():
            with work.write(1, timeout=WAIT) as own:
                assert (view == 0).all()
                own[:] = 1
            assert (view == 0).all()
            if end == "exception":
                raise SystemExit(5)
            if end == "signal":
                os.kill(os.getpid(), signal.SIGKILL)
            return 5

        code = {"exit": 5, "exception": 1, "signal": -signal.SIGKILL}[end]
        assert _fork(in_child) == code
        pool.reap()
        assert (view == 0).all()
        assert (work[1] == 1).all()
        assert (work[2] == 0).all()
    assert (work[2] == 9).all()
    assert pins(pool) == 1


# ---- signals --------------------------------------------------------------------------------


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
    wait_until(lambda: pool._seg.entry_words(np.array([3], np.uint32))[0] & 3 == 1, "the page is being loaded")
    timer, began = _interrupt_soon(), time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        space[3].sum()
    assert time.monotonic() - began < 5
    timer.join()
    loading.kill()
    assert pool.reap() == 1


def _hold(name, ready, go):
    """Attached, and nothing else."""
    with bp.Pool.attach(name) as pool:
        ready.put(pool._seg.status()["client"])
        go.wait(WAIT)


_UNDER_THE_LOCK = {
    "miss": (MEMORY_LOCK, lambda pool, work: work[7].sum()),
    "trim": (MEMORY_LOCK, lambda pool, work: pool.trim(bytes="64KiB")),
    "write": (MEMORY_LOCK, lambda pool, work: work.write(9).__enter__()),
    "open": (DIRECTORY_LOCK, lambda pool, work: pool.scratch("more", 4)),
    "remove": (DIRECTORY_LOCK, lambda pool, work: work.remove()),
}


@pytest.mark.parametrize("use", _UNDER_THE_LOCK)
def test_ctrl_c_ends_the_wait_for_a_lock_that_a_living_client_holds(pool, child, spawn, use):
    at, do = _UNDER_THE_LOCK[use]
    work = pool.scratch("work", 64)
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
    table, work = pool.open_file(data_file(200), "r+"), pool.scratch("work", 8)
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
                pool.trim(bytes="32KiB")
                bp.Pool.attach(pool.name).close()
    finally:
        stop.set()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    threads.join()
    assert len(came) > 500
    assert i > 20


# ---- threads, and the end of the interpreter ----------------------------------------------------


def test_sixty_four_threads_share_one_client(make_pool, data_file, threads):
    pool = make_pool("1MiB")
    table, work = pool.open_file(data_file(400), "r+"), pool.scratch("work", 64)
    barrier = threading.Barrier(64)

    def use(me):
        random = np.random.default_rng(me)
        barrier.wait(WAIT)
        for i in range(60):
            n = int(random.integers(0, 400))
            assert np.array_equal(table[n], stamp(n))
            with work.write(0, timeout=WAIT) as page:
                page.view(np.uint64)[:] += 1
            with work.write(me) if me else work.pin(0) as page:
                assert len(np.unique(page)) == 1 or me == 0
                if me:
                    page[:] = i
            if i % 30 == me % 30:
                pool.trim(bytes="64KiB")
                table.flush()

    for me in range(64):
        threads.start(use, me)
    threads.join()
    assert (work[0].view(np.uint64) == 64 * 60).all()
    assert all((work[me] == 59).all() for me in range(1, 64))
    assert pins(pool) == 0
    assert pool.stats().clients == 1


_SHUTDOWN = """
import sys, threading, time
import bufferpool as bp
name, path, how = sys.argv[1:]
pool = bp.Pool.create(name, 32 * 4096, page_size=4096, extent_size=16384)
with open(path, "wb") as file:
    file.write(bytes(400 * 4096))
table = pool.open_file(path, "r+")
work = pool.scratch("work", 8)
slow = pool.open_derived("slow", 8, lambda n, out: time.sleep(60))
kept = [table[1], table.pin(2), table.pin_many([3, 4]), work.write(5)]
page = kept[3].__enter__()
keep_for_ever = table[6]
sys.keep_for_ever = keep_for_ever
def loads(me):
    i = me
    while True:
        i += 37
        table[i % 400].sum()
        if how == "writers":
            with table.write(i % 400) as page:
                page[:] = 1
def waits():
    work.write(5, timeout=None).__enter__()
def loader():
    slow[3]
targets = {"readers": [loads], "writers": [loads], "waiters": [waits], "loaders": [loader, loader]}[how]
for me in range(6):
    if how in ("readers", "writers"):
        threading.Thread(target=loads, args=(me * 61,), daemon=True).start()
    else:
        threading.Thread(target=targets[me % len(targets)], daemon=True).start()
time.sleep(0.3)
"""


@pytest.mark.parametrize("how", ["readers", "writers", "waiters", "loaders"])
def test_the_interpreter_ends_with_live_views_and_threads_inside_the_core(pool_name, tmp_path, how):
    for _ in range(3):
        done = run_python(_SHUTDOWN, pool_name, str(tmp_path / "data.db"), how, timeout=30)
        assert done.returncode == 0, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
        with bp.Pool.attach(pool_name) as pool:
            pool.reap()
            assert pool.check() == []
            assert pins(pool) == 0
            pool.unlink()


def _use_until(name, path, ready, stop):
    with bp.Pool.attach(name) as pool:
        table = pool.open_file(path)
        ready.set()
        n = 0
        while not stop.is_set():
            n += 1
            assert np.array_equal(table[n % 100], stamp(n % 100))
        return pool.check()


def test_unlink_and_close_disturb_nobody_who_is_at_work(make_pool, data_file, child, spawn):
    pool, path = make_pool(), str(data_file(100))
    stop, ready = spawn.Event(), [spawn.Event() for _ in range(2)]
    workers = [child(_use_until, pool.name, path, event, stop) for event in ready]
    assert all(event.wait(WAIT) for event in ready)
    pool.unlink()
    pool.close()
    time.sleep(0.3)
    stop.set()
    assert [worker.result() for worker in workers] == [[], []]


# ---- stopped processes, other pid namespaces -------------------------------------------------


def _write_slowly(space, ready):
    with space.write(3) as page:
        ready.set()
        time.sleep(0.5)  # no event: a stopped process may hold its lock
        page[:] = 7
    return os.getpid()


def test_a_stopped_client_is_alive_and_goes_on(pool, child, spawn):
    work = pool.scratch("work", 8)
    ready = spawn.Event()
    writer = child(_write_slowly, work, ready)
    assert ready.wait(WAIT)
    os.kill(writer.pid, signal.SIGSTOP)
    try:
        assert pool.reap() == 0
        with pytest.raises(WaitTimeout):
            work.write(3, timeout=0.5).__enter__()
        assert pool.reap() == 0
        assert all(client.alive for client in pool.clients())
        assert (work[3] == 0).all()
        with work.write(4) as page:  # nobody else is stopped
            page[:] = 1
    finally:
        os.kill(writer.pid, signal.SIGCONT)
    assert writer.result() == writer.pid
    assert (work[3] == 7).all()
    assert pool.stats().reaped == 0


_ELSEWHERE = """
import os, sys
import bufferpool as bp
pool = bp.Pool.attach(sys.argv[1])
work = pool.space("work")
view = work[1]
write = work.write(2)
write.__enter__()[:] = 9
print(os.getpid(), [client.alive for client in pool.clients()], pool.reap(), flush=True)
sys.stdin.read()
"""


def test_a_client_in_another_pid_namespace_is_seen_alive_and_reaped_when_it_is_killed(pool):
    if subprocess.run(["unshare", "--pid", "--fork", "true"], capture_output=True, check=False).returncode:
        pytest.skip("no pid namespaces here (unshare --pid)")
    work = pool.scratch("work", 4)
    command = ["unshare", "--pid", "--fork", "--kill-child", sys.executable, "-c", _ELSEWHERE, pool.name]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "1 [True, True] 0\n"
            assert pool.reap() == 0
            assert [client.alive for client in pool.clients()] == [True, True]
            assert pins(pool) == 1
            with pytest.raises(WaitTimeout):
                work.write(2, timeout=0.2).__enter__()
        finally:
            process.kill()
            process.wait(WAIT)
    with work.write(2, timeout=10) as page:
        page[:] = 1
    wait_until(lambda: bool(pool.reap()) or pool.stats().clients == 1, "the killed client is reaped", 10)
    assert pins(pool) == 0


# ---- other users --------------------------------------------------------------------------------

_AS_NOBODY = """
import mmap, os, sys  # while we may read them
import bufferpool as bp
from bufferpool.errors import SegmentRefused
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
name, mode = sys.argv[1:]
for use in (lambda: bp.Pool.attach(name), lambda: bp.Pool.open(name, "1MiB")):
    try:
        use()
    except SegmentRefused as error:
        assert isinstance(error, PermissionError)
    else:
        sys.exit("attached")
try:
    pool = bp.Pool.attach(name, owner=0)
except SegmentRefused:
    print("refused")
else:
    print("attached", pool.check())
for use in (lambda: os.unlink("/dev/shm/" + name), lambda: bp.Pool.create(name, "1MiB")):
    try:
        use()
    except OSError:
        continue
    sys.exit("removed or replaced")
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
@pytest.mark.parametrize(("mode", "want"), [(0o600, "refused"), (0o666, "attached []")])
def test_another_user_cannot_attach_unless_the_mode_and_both_users_say_so(make_pool, mode, want):
    pool = make_pool(mode=mode)
    done = run_python(_AS_NOBODY, pool.name, str(mode))
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert done.stdout.splitlines() == [want]
    assert Path(pool.path).exists()
