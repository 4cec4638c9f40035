"""Descriptors that other code of the process closes behind the pool, and whose numbers strangers get."""

import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import bufferpool as bp
from bufferpool.errors import DescriptorLost
from bufferpool.machine.descriptor import OwnDescriptor
from bufferpool.machine.pressure import SystemSource
from bufferpool.observer import Observer
from bufferpool.stores.base import FileStore
from tests.conftest import PAGE, WAIT, pins, stamp, wait_until
from tests.support.children import exit_code, forked, run_python

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


def forked_with_pipes(function, *args):
    """Runs a function in a forked child. Returns the child's pid, and a pipe that lets it continue. It exits with 0 unless it
    raises."""
    read, write = os.pipe()
    told, tell = os.pipe()

    def in_child():
        os.dup2(read, 0)
        os.dup2(tell, 1)
        os.close(write)
        function(*args)

    pid = forked(in_child)
    os.close(read)
    os.close(tell)
    assert os.read(told, 1) == b"."
    os.close(told)
    return pid, write


def tell_and_wait():
    os.write(1, b".")
    os.read(0, 1)


def let_go(pid, write):
    os.write(write, b".")
    os.close(write)
    return exit_code(pid)


def _daemonize(pool, work, tmp_path):
    view = work[0]
    write = work.write(1)
    write.__enter__()[:] = 9
    numbers = _descriptors(pool.path)
    assert numbers
    os.closerange(3, 1 << 16)
    files = _strangers(tmp_path, numbers)
    tell_and_wait()
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
        lambda: pool.open_scratch("more", 4),
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
    work = pool.open_scratch("work", 64)
    with work.write(0) as page:
        page[:] = 7
    pid, write = forked_with_pipes(_daemonize, pool, work, tmp_path)
    assert pool.reap() == 0, "the daemon lives, and its arrays look at the pool"
    assert next(c for c in pool.clients() if c.pid == pid).alive
    for n in range(20):
        with work.write(0) as page:
            page[:] = 8 + n
        assert work[n].size
    assert let_go(pid, write) == 0
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
    tell_and_wait()
    pool.close()


def test_the_descriptors_are_beyond_the_usual_range(pool):
    """Daemons that close the first few hundred numbers only keep the pool, which has none of them."""
    work = pool.open_scratch("work", 4)
    with work.write(0) as page:
        page[:] = 7
    for number in _descriptors(pool.path):
        assert number > 255
        assert not os.get_inheritable(number)
    pid, write = forked_with_pipes(_usual_daemon, pool, work)
    assert (work[1] == 5).all()
    assert let_go(pid, write) == 0
    assert pool.check() == []


@pytest.mark.parametrize("what", ["flush", "miss", "misses", "close"])
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
    elif what == "misses":  # within one tick: the first finding must not count as a look at the right file
        for numbers_of_pages in ([4], [6], [7, 8, 9], [7]):
            with pytest.raises(DescriptorLost, match="open the file again"):
                table.read_many(numbers_of_pages)
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
    """Other code may open the segment under the same number: the file is right, but the description lacks our byte lock."""
    work = pool.open_scratch("work", 4)
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
work = pool.space("work", "r+")
view = work[0]
os.closerange(3, 1 << 16)
time.sleep(0.3)
again = bp.Pool.attach(sys.argv[1])
print(again.reap(), end=" ")
new = again.space("work", "r+")
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
    """Its old views remain right, what it attaches anew works, and closing one attachment closes no descriptor of the other."""
    with pool.open_scratch("work", 4).write(0) as page:
        page[:] = 7
    done = run_python(_ATTACHES_AGAIN, pool.name)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[0] == "0 {7} lost {49} 1 []"
    assert pool.check() == []


def test_a_process_that_became_another_program_is_dead(pool):
    """exec keeps the process's number and start time, and not what it had mapped."""
    view = pool.open_scratch("work", 4)[1]
    pid = os.fork()
    if pid == 0:
        os.execv("/bin/sleep", ["sleep", "60"])
    try:
        wait_until(lambda: Path(f"/proc/{pid}/comm").read_text() == "sleep\n", "the child is another program")
        wait_until(lambda: pool.reap() >= 0 and pins(pool) == 1, "the client that it was is reaped")
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
    assert [client.alive for client in pool.clients()] == [True, False]
    assert pool.reap() == 1
    assert pool.stats().clients == 1


def _attach_and_die(name):
    _pool = bp.Pool.attach(name)  # the client is attached until it dies
    os.kill(os.getpid(), 9)


# ---- the steward's own ---------------------------------------------------------------------------

_STEWARD_LOSES_ITS_DESCRIPTORS = """
import os, sys, threading
import bufferpool as bp
from bufferpool.machine.pressure import SystemSource
pool = bp.Pool.attach(sys.argv[1])
before, wait, idle = set(os.listdir("/proc/self/fd")), SystemSource.wait, threading.Event()
SystemSource.wait = lambda source, seconds: (idle.set(), wait(source, seconds))[1]
pool.start_steward(bp.Settings(interval=60.0))
idle.wait()  # the first round is over, and has no file open
numbers = sorted(int(n) for n in set(os.listdir("/proc/self/fd")) | before if int(n) > 2)
stranger = os.open(sys.argv[2], os.O_RDWR)
os.closerange(3, stranger)
os.closerange(stranger + 1, 1 << 16)
for number in numbers:
    os.dup2(stranger, number)
try:
    pool.stop_steward()
except bp.errors.DescriptorLost:
    pass  # what ended the thread, if it looked at the pool meanwhile
for number in numbers:
    assert os.path.samestat(os.fstat(number), os.stat(sys.argv[2])), number
print("stopped")
os._exit(0)
"""


def test_a_steward_writes_to_no_strangers_file_and_closes_none(pool, tmp_path):
    """A steward was stopped after other code had closed its pipe and its trigger, and had opened its own files.

    It wrote its byte to one of those files, and closed three of them. Where the segment's descriptor was lost too, the
    steward's thread failed when it gave up the steward's lock, and the stop waited for ever.
    """
    path = tmp_path / "stranger"
    path.write_bytes(b"s" * 1000)
    done = run_python(_STEWARD_LOSES_ITS_DESCRIPTORS, pool.name, str(path))
    assert done.returncode == 0, done.stderr
    assert done.stdout == "stopped\n"
    assert path.read_bytes() == b"s" * 1000
    pool.reap()
    assert pool.check() == []


@pytest.fixture
def source():
    """A source, and the numbers of its descriptors."""
    before = set(os.listdir("/proc/self/fd"))
    made = SystemSource("/dev/shm")
    names = [n for n in os.listdir("/proc/self/fd") if n not in before]
    yield made, sorted(int(n) for n in names if os.path.lexists(f"/proc/self/fd/{n}"))
    made.close()


def _taken(numbers):
    """Files that always poll as ready in the place of descriptors."""
    ready = os.open("/dev/zero", os.O_RDWR)
    for number in numbers:
        os.dup2(ready, number)
    os.close(ready)


def _close_all(numbers):
    for number in numbers:
        os.close(number)  # raises if the source has closed it


def _waited_s(waits, timeout_s):
    """How long a wait lasts that no pressure ends: where the machine has no memory for a moment, it is begun again."""
    for _ in range(100):
        began = time.monotonic()
        if not waits.wait(timeout_s):
            return time.monotonic() - began
    pytest.fail("each of 100 waits was ended by pressure")


def test_a_source_does_not_poll_strangers_files(source):
    """The numbers were those of files that are always ready: each wait ended at once, and the steward was a busy loop."""
    waits, numbers = source
    _taken(numbers)
    assert _waited_s(waits, 0.5) >= 0.49
    waits.wake()
    assert waits.wait(600) is False
    waits.close()
    _close_all(numbers)


def test_a_wait_that_loses_its_descriptors_goes_on_and_can_be_ended(source):
    """The descriptors were taken while a steward slept on them: it slept on a file that nobody wakes."""
    waits, numbers = source
    thread = threading.Thread(target=waits.wait, args=(600,), daemon=True)
    thread.start()
    time.sleep(0.2)
    quiet, write = os.pipe()
    for number in numbers:
        os.dup2(quiet, number)
    time.sleep(0.2)
    waits.wake()
    thread.join(WAIT)
    assert not thread.is_alive()
    waits.close()
    _close_all([*numbers, quiet, write])


@pytest.mark.parametrize("which", range(2))
def test_a_pipe_that_has_lost_one_end_is_not_used(source, which):
    """One number only was closed: the other end polls as hung up at once, for ever, and a write to it is a SIGPIPE."""
    waits, _numbers = source
    os.close(waits._pipe[which].number)
    assert _waited_s(waits, 0.5) >= 0.49
    waits.wake()
    assert waits.wait(600) is False


def test_a_forked_child_closes_no_strangers_file(source):
    """A child closes the source's descriptors that it inherits: the numbers were the application's by then."""
    waits, numbers = source
    _taken(numbers)
    assert exit_code(forked(_close_all, numbers)) == 0
    waits.close()
    _close_all(numbers)


_WITHOUT_STANDARD_DESCRIPTORS = """
import os, sys, time
os.dup2(1, 100)
os.closerange(0, 3)
import bufferpool as bp
pool = bp.Pool.attach(sys.argv[1])
pool.start_steward()
found = {0, 1, 2}
for _ in range(20):  # what the steward's thread opens and closes, such as a module that it imports, is not there each time
    found &= {n for n in found if os.path.lexists(f"/proc/self/fd/{n}")}
    time.sleep(0.02)
found = sorted(found)
pool.stop_steward()
os.write(100, repr(found).encode())
os._exit(0)
"""


def test_a_steward_takes_no_standard_descriptor(pool):
    """A process without descriptors 0 to 2 started a steward: what it printed went into the steward's pipe, until that was full."""
    done = run_python(_WITHOUT_STANDARD_DESCRIPTORS, pool.name)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[]"
    pool.reap()
    assert pool.check() == []


def test_a_file_that_is_opened_anew_keeps_its_descriptor(data_file):
    """It gets the number that was lost, and is the same file: the store that had lost it closed it when it was collected."""
    path = data_file(4)
    lost = FileStore(path, "r")
    os.close(lost.fd)
    again = FileStore(path, "r")
    with pytest.raises(DescriptorLost):
        lost.size()
    del lost
    assert again.size() == 4 * PAGE


def test_a_number_that_another_thread_has_got_while_it_was_closed(data_file):
    """The thread that had closed a file removed the entry of the one that had opened another under its number: DescriptorLost."""
    first, second, others = OwnDescriptor.opened(data_file(1), os.O_RDONLY), data_file(1), []
    number = first.number

    def close_and_open(fd: int) -> None:
        os.close(fd)
        others.append(OwnDescriptor.opened(second, os.O_RDONLY))

    first.close(close_and_open)
    assert [other.number for other in others] == [number]
    assert first.number == -1
    others[0].close()
