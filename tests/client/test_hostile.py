"""Hostility: forks and threads in odd places, the interpreter's end, stopped processes, pid namespaces, other users."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import bufferpool as bp
from bufferpool.errors import WaitTimeout
from tests.conftest import ROOT, WAIT, pins, stamp, wait_until
from tests.support.children import exit_code, forked, run_python
from tests.support.rights import needs_another_user

# ---- fork -----------------------------------------------------------------------------------


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
            pool.open_scratch("childs", 4, lifetime="process")
            return 7

        assert exit_code(forked(in_child)) == 7
        pool.reap()
        assert pool.stats().clients == 1
    finally:
        go.set()
    threads.join()
    assert (space[3] == 4).all()
    assert pins(pool) == 1


@pytest.mark.parametrize("end", ["exit", "exception", "signal"])
def test_a_child_forked_inside_write_leaves_the_block_to_its_parent(pool, end):
    work = pool.open_scratch("work", 4)
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
        assert exit_code(forked(in_child)) == code
        pool.reap()
        assert (view == 0).all()
        assert (work[1] == 1).all()
        assert (work[2] == 0).all()
    assert (work[2] == 9).all()
    assert pins(pool) == 1


# ---- threads, and the end of the interpreter ----------------------------------------------------


def test_sixty_four_threads_share_one_client(make_pool, data_file, threads):
    pool = make_pool("1MiB")
    table, work = pool.open_file(data_file(400), "r+"), pool.open_scratch("work", 64)
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
                pool.trim("64KiB")
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
work = pool.open_scratch("work", 8)
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
        done = run_python(_SHUTDOWN, pool_name, str(tmp_path / "data.db"), how)
        assert done.returncode == 0, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
        with bp.Pool.attach(pool_name) as pool:
            pool.reap()
            assert pool.check() == []
            assert pins(pool) == 0
            pool.unlink(discard=True)


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
    work = pool.open_scratch("work", 8)
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
work = pool.space("work", "r+")
view = work[1]
write = work.write(2)
write.__enter__()[:] = 9
print(os.getpid(), [client.alive for client in pool.clients()], pool.reap(), flush=True)
sys.stdin.read()
"""


def test_a_client_in_another_pid_namespace_is_seen_alive_and_reaped_when_it_is_killed(pool):
    if subprocess.run(["unshare", "--pid", "--fork", "true"], capture_output=True, check=False).returncode:
        pytest.skip("no pid namespaces here (unshare --pid)")
    work = pool.open_scratch("work", 4)
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
    with work.write(2, timeout=WAIT) as page:
        page[:] = 1
    wait_until(lambda: bool(pool.reap()) or pool.stats().clients == 1, "the killed client is reaped")
    assert pins(pool) == 0


# ---- other users --------------------------------------------------------------------------------

_AS_NOBODY = """
import mmap, os, sys  # while we may read them
from bufferpool import Pool  # imported at once, for the same reason
from bufferpool.errors import SegmentRefused
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
name, mode = sys.argv[1:]
for use in (lambda: Pool.attach(name), lambda: Pool.open(name, "1MiB")):
    try:
        use()
    except SegmentRefused as error:
        assert isinstance(error, PermissionError)
    else:
        sys.exit("attached")
try:
    pool = Pool.attach(name, trusted_uid=0)
except SegmentRefused:
    print("refused")
else:
    print("attached", pool.check())
for use in (lambda: os.unlink("/dev/shm/" + name), lambda: Pool.create(name, "1MiB")):
    try:
        use()
    except OSError:
        continue
    sys.exit("removed or replaced")
"""


@needs_another_user
@pytest.mark.parametrize(("mode", "want"), [(0o600, "refused"), (0o666, "attached []")])
def test_another_user_cannot_attach_unless_the_mode_and_both_users_say_so(make_pool, mode, want):
    pool = make_pool(permissions=mode)
    done = run_python(_AS_NOBODY, pool.name, str(mode))
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert done.stdout.splitlines() == [want]
    assert Path(pool.path).exists()
