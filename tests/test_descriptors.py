"""Descriptors that other code of the process closes behind the pool, and whose numbers strangers get."""

import os
import time
import traceback
from pathlib import Path

import numpy as np
import pytest

import bufferpool as bp
from bufferpool.errors import DescriptorLost
from bufferpool.observer import Observer

from .children import run_python
from .conftest import PAGE, WAIT, pins, stamp, wait_until

STRANGER = b"x" * (1 << 18)


def _descriptors(path):
    """The numbers of this process's descriptors of a file."""
    found = []
    for number in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{number}") == os.fspath(path):
                found.append(int(number))
        except OSError:
            continue
    return found


def _strangers(tmp_path, numbers):
    """Puts files of the application in the place of descriptors that it has closed."""
    files = []
    for number in numbers:
        path = tmp_path / f"stranger{number}"
        path.write_bytes(STRANGER)
        fd = os.open(path, os.O_RDWR)
        if fd != number:
            os.dup2(fd, number)
            os.close(fd)
        files.append(path)
    return files


def _forked(function, *args):
    """Runs a function in a fork; its process, and a pipe that lets it go on. It exits with 0 unless it raises."""
    read, write = os.pipe()
    told, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.dup2(read, 0)
            os.dup2(tell, 1)
            os.close(write)
            function(*args)
            os._exit(0)
        except BaseException:  # noqa: BLE001
            os.write(2, traceback.format_exc().encode())
            os._exit(1)
    os.close(read)
    os.close(tell)
    assert os.read(told, 1) == b"."
    os.close(told)
    return pid, write


def _tell_and_wait():
    os.write(1, b".")
    os.read(0, 1)


def _let_go(pid, write):
    os.write(write, b".")
    os.close(write)
    waited = []

    def ended():
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            waited.append(os.waitstatus_to_exitcode(status))
        return bool(done)

    wait_until(ended, "the forked child ends", WAIT)
    return waited[0]


def _daemonize(pool, work, tmp_path):
    view = work[0]
    write = work.write(1)
    write.__enter__()[:] = 9
    numbers = _descriptors(pool.path)
    assert numbers
    os.closerange(3, 1 << 16)
    files = _strangers(tmp_path, numbers)
    _tell_and_wait()
    time.sleep(0.3)  # misses and writes look at the descriptor eight times a second
    assert (view == 7).all()
    with pytest.raises(DescriptorLost, match="attach it after"):
        write.__exit__(None, None, None)
    refused = [
        lambda: work[43],
        lambda: work.write(42).__enter__(),
        lambda: work.append().__enter__(),
        lambda: work.prefetch([44]),
        lambda: work.drop(45, 1),
        pool.reap,
        pool.trim,
        pool.flush,
        pool.stats,
        pool.check,
        lambda: pool.scratch("more", 4),
    ]
    for use in refused:
        with pytest.raises(DescriptorLost):
            use()
    assert (view == 7).all()
    view = None
    pool.close()
    assert all(path.read_bytes() == STRANGER for path in files)
    for number in numbers:
        os.fstat(number)  # closing the pool closed no descriptor of the application


def test_a_daemon_that_closed_the_pools_descriptors_harms_nobody(pool, tmp_path):
    """A daemon closed all its descriptors after it had attached, and opened its own files.

    The pool's numbers were its files' by then: they were given memory, cut and written instead of the segment, and
    other processes reaped the daemon, whose byte lock was gone, and let the pages go that it looked at.
    """
    work = pool.scratch("work", 64)
    with work.write(0) as page:
        page[:] = 7
    pid, write = _forked(_daemonize, pool, work, tmp_path)
    assert pool.reap() == 0, "the daemon lives, and its arrays look at the pool"
    assert next(c for c in pool.clients() if c.pid == pid).alive
    for n in range(20):
        with work.write(0) as page:
            page[:] = 8 + n
        assert work[n].size
    assert _let_go(pid, write) == 0
    pool.reap()
    assert pool.stats().clients == 1
    assert pins(pool) == 0
    with work.write(1, timeout=0):
        pass
    assert pool.check() == []


def _usual_daemon(pool, work):
    os.closerange(3, 256)
    assert (work[0] == 7).all()
    with work.write(1) as page:
        page[:] = 5
    _tell_and_wait()
    pool.close()


def test_the_descriptors_are_beyond_the_usual_range(pool):
    """Daemons that close the first few hundred numbers only keep the pool, which has none of them."""
    work = pool.scratch("work", 4)
    with work.write(0) as page:
        page[:] = 7
    for number in _descriptors(pool.path):
        assert number > 255
        assert not os.get_inheritable(number)
    pid, write = _forked(_usual_daemon, pool, work)
    assert (work[1] == 5).all()
    assert _let_go(pid, write) == 0
    assert pool.check() == []


@pytest.mark.parametrize("what", ["flush", "miss", "close"])
def test_a_file_whose_descriptor_is_a_strangers_is_neither_read_nor_written(pool, data_file, tmp_path, what):
    """The number of a space's file was another file's: a flush wrote pages into that, a miss published its bytes."""
    path = data_file(20)
    table = pool.open_file(path, "r+")
    with table.write(3) as page:
        page[:] = stamp(3, version=1)
    numbers = _descriptors(path)
    assert numbers
    for number in numbers:
        os.close(number)
    files = _strangers(tmp_path, numbers)
    time.sleep(0.3)  # reads look at the descriptor eight times a second
    if what == "flush":
        with pytest.raises(DescriptorLost, match="open the file again"):
            pool.flush()
        assert np.array_equal(table[3], stamp(3, version=1))
    elif what == "miss":
        with pytest.raises(DescriptorLost, match="open the file again"):
            table[4]
    again = pool.open_file(path, "r+")
    assert np.array_equal(again[5], stamp(5))
    assert pool.flush() == 1
    assert np.array_equal(np.fromfile(path, np.uint8)[3 * PAGE : 4 * PAGE], stamp(3, version=1))
    del table, again
    pool.close()
    assert all(file.read_bytes() == STRANGER for file in files)
    for number in numbers:
        os.close(number)


def test_another_description_of_the_same_segment_is_not_taken_for_ours(pool):
    """The number may be the segment's again, opened by somebody else: the file is right, and has not our byte lock."""
    work = pool.scratch("work", 4)
    numbers = _descriptors(pool.path)
    kept = [os.dup(number) for number in numbers]
    for number in numbers:
        fd = os.open(pool.path, os.O_RDWR)
        os.dup2(fd, number)
        os.close(fd)
    with pytest.raises(DescriptorLost):
        pool.reap()
    for number, fd in zip(numbers, kept, strict=True):
        os.dup2(fd, number, inheritable=False)
        os.close(fd)
    assert not work[1].any()


_ATTACHES_AGAIN = """
import os, sys, time
import bufferpool as bp
from bufferpool.errors import DescriptorLost
pool = bp.Pool.attach(sys.argv[1])
work = pool.space("work")
view = work[0]
os.closerange(3, 1 << 16)
time.sleep(0.3)
again = bp.Pool.attach(sys.argv[1])
print(again.reap(), end=" ")
new = again.space("work")
for n in range(50):
    with new.write(0) as page:
        page[:] = n
print(set(view.tolist()), end=" ")
try:
    work[1]
except DescriptorLost:
    print("lost", end=" ")
del view
pool.close()
print(set(new[0].tolist()), again.reap(), again.check())
"""


def test_a_process_that_lost_its_descriptor_attaches_again(pool):
    """What it had stays true, what it attaches anew works, and closing the one closes no descriptor of the other."""
    with pool.scratch("work", 4).write(0) as page:
        page[:] = 7
    done = run_python(_ATTACHES_AGAIN, pool.name)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[0] == "0 {7} lost {49} 1 []"
    assert pool.check() == []


def test_a_process_that_became_another_program_is_dead(pool):
    """exec keeps the process's number and start time, and not what it had mapped."""
    view = pool.scratch("work", 4)[1]
    pid = os.fork()
    if pid == 0:
        os.execv("/bin/sleep", ["sleep", "60"])
    try:
        wait_until(lambda: Path(f"/proc/{pid}/comm").read_text() == "sleep\n", "the child is another program")
        assert pool.reap() == 1
        assert pins(pool) == 1
        assert not view.any()
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
    assert pool.check() == []


def test_an_observer_reads_no_strangers_file(pool, tmp_path):
    """An observer asks the kernel by descriptor which parts were written, which moves the file's offset."""
    before = set(_descriptors(pool.path))
    observer = Observer(pool.name)
    numbers = sorted(set(_descriptors(pool.path)) - before)
    for number in numbers:
        os.close(number)
    files = _strangers(tmp_path, numbers)
    with pytest.raises(DescriptorLost):
        observer.stats()
    assert [os.lseek(number, 0, os.SEEK_CUR) for number in numbers] == [0] * len(files)
    del observer
    for number in numbers:
        os.fstat(number)
        os.close(number)


def test_a_client_whose_process_is_unknown_is_judged_by_its_byte_lock(pool, child):
    """A recorded process number may be another's by now: it must have started then, and have the segment mapped."""
    done = child(_attach_and_die, pool.name)
    done.process.join(WAIT)
    start = time.monotonic()
    wait_until(lambda: pool.reap() == 1 or time.monotonic() - start > WAIT, "the dead client is reaped")
    assert pool.stats().clients == 1


def _attach_and_die(name):
    bp.Pool.attach(name)
    os.kill(os.getpid(), 9)
