"""Which process a client's slot names: after an exec, in other namespaces, and while a forked child has not run yet.

A client that has lost its byte lock lives if its process has the segment mapped. The process is known by its pid and the time at
which it started, which an exec does not change and which mean another process in another namespace.
"""

import subprocess
import sys

import pytest

from bufferpool.errors import WaitTimeout
from tests.conftest import ROOT, WAIT, wait_until
from tests.support.children import run_python
from tests.support.rights import needs_another_user

_EXEC = """
import os, sys
import bufferpool as bp
pool = bp.Pool.attach(sys.argv[1])
work = pool.space("work", "r+")
if sys.argv[2] == "first":
    views = [work[n] for n in range(3)]
    work.write(5).__enter__()
    os.execv(sys.executable, [sys.executable, "-c", sys.argv[3], sys.argv[1], "second"])
print("attached", flush=True)
sys.stdin.readline()
"""


def test_a_program_that_starts_itself_anew_and_attaches_leaves_nothing_locked(make_pool):
    """A server replaced itself by exec (a reload) and attached again: its pid and its start time were those of its former client, and
    it had the segment mapped, so that client was taken for one that had lost its descriptor. Its writes and pins stayed."""
    pool = make_pool()
    work = pool.open_scratch("work", 16)
    for n in range(6):
        with work.write(n) as page:
            page[:] = n + 1
    command = [sys.executable, "-c", _EXEC, pool.name, "first", _EXEC]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as server:
        assert server.stdout.readline() == "attached\n"
        try:
            with work.write(5, timeout=10.0) as page:
                page[:] = 50
        except WaitTimeout:
            pytest.fail("the writer that ended by the exec is taken for one that lives")
        pool.reap()
        assert [(c.pid, c.alive, c.pins) for c in pool.clients()][1:] == [(server.pid, True, 0)]
        server.communicate("\n", timeout=WAIT)
    assert server.returncode == 0
    assert pool.stats().clients == 1


_GUEST = """
import os, resource, sys
if os.fork():  # the first process of a pid namespace, which ends with it
    while True:
        try:
            os.wait()
        except ChildProcessError:
            os._exit(0)
import bufferpool as bp
pool = bp.Pool.attach(sys.argv[1])
view = pool.space("work")[3]
if sys.argv[2] == "pid":
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
else:  # with descriptors left, the child learns its start time
    os.setuid(65534)
parent = os.getpid()
if os.fork() == 0:  # a guest without a descriptor: only its process shows that it lives
    while os.getppid() == parent:
        pass
    os.read(0, 1)
    print("waits", flush=True)
    os.read(0, 1)
    print(set(view.tolist()), flush=True)
    del view
    sys.exit()  # a guest that were killed here would keep its pin: nobody outside knows its pid
os._exit(0)
"""


@pytest.mark.parametrize("namespace", ["pid", pytest.param("time", marks=needs_another_user)])
def test_a_guest_in_another_namespace_keeps_its_views(make_pool, namespace):
    """A container shares /dev/shm. A forked child there without a descriptor had a pid that meant nothing, or another process, to
    the reaper outside (in another time namespace: another start time), and was taken for dead."""
    of_pids = ["--map-root-user", "--pid", "--fork", "--mount-proc"]
    prefix = ["unshare", *(of_pids if namespace == "pid" else ["--time", "--boottime", "100000"])]
    if subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode:
        pytest.skip(f"no {namespace} namespaces here ({' '.join(prefix)})")
    pool = make_pool(max_clients=8)
    work = pool.open_scratch("work", 16)

    def write_all(version):
        for n in range(16):
            with work.write(n) as page:
                page[:] = version

    write_all(7)
    command = [*prefix, sys.executable, "-c", _GUEST, pool.name, namespace]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as container:
        _tell(container)
        assert container.stdout.readline() == "waits\n"
        pool.reap()
        assert len(pool.clients()) == 2, "the guest is alone: its parent has ended"
        for version in range(100, 110):
            write_all(version)
        _tell(container)
        assert container.stdout.read() == "{7}\n"
        container.stdin.close()
        container.wait(WAIT)
    wait_until(lambda: bool(pool.reap()) or len(pool.clients()) == 1, "the guest's slot is free")
    assert pool.check() == []


def _tell(process):
    process.stdin.write(".")
    process.stdin.flush()


_SLOW = """
import ctypes, os, resource, sys
libc = ctypes.PyDLL(None)
read, write = os.pipe()
byte = ctypes.create_string_buffer(1)
slow = False

@ctypes.PYFUNCTYPE(None)
def wait():  # the first of all handlers in a child
    if slow:
        libc.read(read, byte, 1)

libc.__register_atfork(None, None, wait, None)
import bufferpool as bp
pool = bp.Pool.attach(sys.argv[1])
work = pool.space("work", "r+")
view = work[3]
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
slow = True
pid = os.fork()
if pid == 0:
    os.read(read, 1)
    sys.exit(set(view.tolist()) != {7})
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
del view
assert pool.reap() == 0, "the child lives, and has not run yet"
def write_all():
    for version in range(100, 110):
        for n in range(16):
            with work.write(n) as page:
                page[:] = version
write_all()
os.write(write, b".")
while pool.clients()[-1].pid != pid:
    pass
write_all()
os.write(write, b".")
assert os.waitpid(pid, 0)[1] == 0, "the child's view has changed"
assert pool.reap() == 1
assert pool.check() == []
"""


def test_a_parent_does_not_reap_a_child_that_has_not_run_yet(make_pool):
    """The parent holds the lock of a child without a descriptor until the child has stored its pid. To the parent itself its own lock
    does not show: it reaped its child, whose views then changed."""
    pool = make_pool(max_clients=8)
    work = pool.open_scratch("work", 16)
    for n in range(16):
        with work.write(n) as page:
            page[:] = 7
    done = run_python(_SLOW, pool.name)
    assert done.returncode == 0, done.stderr
    pool.reap()
    assert pool.stats().clients == 1
