"""What the process or the machine does not allow: it works all the same, or the error names what is missing, by its errno."""

import contextlib
import ctypes
import errno
import os
import resource
import subprocess
from collections.abc import Callable
from typing import Any

import pytest

import bufferpool as bp
from bufferpool.errors import SegmentError
from bufferpool.figures.names import EventKind, EventReason
from bufferpool.observer import Observer
from tests.conftest import PAGE, fill, kernel_bytes, new_name, wait_until
from tests.support import sandbox
from tests.support.children import on_small_tmpfs, run_python
from tests.support.rights import needs_another_user

needs_seccomp = pytest.mark.skipif(not sandbox.NUMBERS, reason="no numbers of system calls for this machine")
MIB = 1 << 20


def in_child(function: Callable[[], Any]) -> Any:
    """What a function returns, as text. It runs in a forked child, so that it may set limits."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            said = str(function())
        except BaseException as error:  # noqa: BLE001 - said to the parent
            said = f"{type(error).__name__} {getattr(error, 'errno', None)}: {error}"
        os.write(write, said.encode())
        os._exit(0)
    os.close(write)
    with open(read, "rb") as file:
        said = file.read().decode()
    assert os.waitpid(pid, 0)[1] == 0
    return said


@pytest.fixture
def pool():
    made = bp.Pool.create(new_name(), 64 * PAGE, page_size=PAGE)
    yield made
    assert made.check() == []
    made.unlink()
    made.close()


# ---- limits of the process ------------------------------------------------------------


def _lock_what_is_mapped(name: str) -> str:
    pool = bp.Pool.create(name, "1MiB", page_size=PAGE, max_capacity="8MiB", room="32MiB", max_pages=1 << 20)
    work = pool.open_scratch("work", 100)
    fill(work, range(100))
    work.drop(0, 50)
    pool.trim()
    before = kernel_bytes(pool)
    if ctypes.CDLL(None, use_errno=True).mlockall(1) != 0:  # MCL_CURRENT
        return "refused"
    taken = kernel_bytes(pool) - before
    found = pool.check()
    given = pool.trim()
    same = kernel_bytes(pool) == before
    read = all(work[n].any() for n in range(50, 100))
    fill(work, range(50))
    return f"{taken > 32 * MIB} {given == taken} {same} {read} {pool.check()} {'pool.trim() gives it back, except' in str(found)}"


@pytest.mark.kernel
def test_what_a_process_that_locks_its_memory_later_has_given_to_holes_can_be_given_back(pool_name, child):
    """mlockall(MCL_CURRENT) gives memory to the whole room of an open pool, and nothing gave it back but the pool's end.

    A process of its own, because a forked child has the segments of all pools that its parent has open: it would fill /dev/shm.
    """
    said = child(_lock_what_is_mapped, pool_name).result()
    if said == "refused":
        pytest.skip("may not lock memory (RLIMIT_MEMLOCK)")
    assert said == "True True True True [] True"


@pytest.mark.kernel
def test_a_process_that_locks_all_its_memory_gives_none_to_holes():
    """Under mlockall(MCL_FUTURE) the kernel gave 1034 MiB to a pool of 8 MiB: to all that was mapped."""
    name = new_name()

    def locked() -> str:
        if ctypes.CDLL(None, use_errno=True).mlockall(2) != 0:  # MCL_FUTURE
            return "refused"
        pool = bp.Pool.create(name, "8MiB", page_size=PAGE, max_pages=1 << 27)
        made = kernel_bytes(pool)
        work = pool.open_scratch("work", 1000)
        fill(work, range(1000))
        read = all(work[n].any() for n in range(1000))
        grown = kernel_bytes(pool) - made
        freed = work.drop()
        with Observer(name) as seen:
            seen.stats()
        return f"{made < 3 * MIB} {read} {4 * MIB <= grown < 5 * MIB} {freed} {pool.check()}"

    said = in_child(locked)
    if said == "refused":
        pytest.skip("may not lock memory (RLIMIT_MEMLOCK)")
    os.unlink(f"/dev/shm/{name}")
    assert said == f"True True True {1000 * PAGE} []"


@pytest.mark.parametrize("limit", ["ulimit -v", "ulimit -n"])
def test_a_pool_that_cannot_be_attached_to_is_not_left_behind(limit):
    """``Pool.create`` raised, and its pool was there all the same: a second attempt got SegmentExists."""
    name = new_name()

    def create() -> object:
        free = os.open("/", os.O_RDONLY)
        what, least = (resource.RLIMIT_AS, 64 * MIB) if limit == "ulimit -v" else (resource.RLIMIT_NOFILE, free + 1)
        os.close(free)
        resource.setrlimit(what, (least, resource.getrlimit(what)[1]))
        try:
            return bp.Pool.create(name, 64 * PAGE, page_size=PAGE)
        finally:
            resource.setrlimit(what, (resource.getrlimit(what)[1],) * 2)
            assert not os.path.lexists(f"/dev/shm/{name}")
            bp.Pool.create(name, 64 * PAGE, page_size=PAGE).unlink()

    said = in_child(create)
    assert limit in said


def test_no_address_space(pool):
    """ulimit -v: the mapping fails, which is not a full file system."""

    def attach() -> object:
        resource.setrlimit(resource.RLIMIT_AS, (64 * MIB, 64 * MIB))
        return bp.Pool.attach(pool.name)

    said = in_child(attach)
    assert said.startswith(("SegmentError 12:", "MemoryError"))
    assert "ulimit -v" in said


def test_no_descriptor(pool):
    """ulimit -n: EMFILE is named, and the remedy; once there is one, it works."""

    code = """
import os, resource, sys
from bufferpool import Pool  # it is imported at once: later there is no descriptor
from bufferpool.errors import SegmentError
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
held, said = [], []
try:
    while True:
        held.append(os.open("/dev/null", os.O_RDONLY))
except OSError:
    pass
while held and "attached" not in said:
    try:
        Pool.attach(sys.argv[1])
        said.append("attached")
    except SegmentError as error:
        said.append(f"{error.errno} {'ulimit -n' in str(error)}")
    os.close(held.pop())
print(",".join(dict.fromkeys(said)))
"""
    done = run_python(code, pool.name)
    assert done.stdout.strip() == f"{errno.EMFILE} True,attached", done.stderr


def test_no_large_files():
    """ulimit -f: EFBIG is named, for the pool's file; the signal that comes with it kills nobody."""

    def create() -> object:
        resource.setrlimit(resource.RLIMIT_FSIZE, (MIB, MIB))
        return bp.Pool.create(new_name(), "8MiB")

    said = in_child(create)
    assert said.startswith(f"SegmentError {errno.EFBIG}:")
    assert "ulimit -f" in said


# ---- sandboxes ---------------------------------------------------------------------------


@pytest.mark.kernel
@needs_seccomp
def test_no_memory_by_a_sandbox_that_refuses_fallocate(pool):
    """EPERM from fallocate was reported as a full file system, with 22 GB free."""
    work = pool.open_scratch("work", 64)

    def miss() -> object:
        sandbox.refuse("fallocate", errno.EPERM)
        return work[0]

    said = in_child(miss)
    assert said.startswith(f"SegmentError {errno.EPERM}:")
    assert "fallocate" in said
    assert "full" not in said
    assert work[0].size == PAGE

    def create() -> object:
        sandbox.refuse("fallocate", errno.ENOSYS)
        return bp.Pool.create(new_name(), "1MiB")

    assert in_child(create).startswith(f"SegmentError {errno.ENOSYS}:")


@pytest.mark.kernel
@needs_seccomp
def test_no_client_by_a_sandbox_that_refuses_locks(pool):
    """Locks that are refused were reported as "all client slots are taken"."""
    code = (
        "import sys; from tests.support import sandbox; import bufferpool as bp, errno\n"
        "sandbox.refuse('fcntl', errno.ENOLCK, [(1, sandbox.OFD_SETLK)])\n"
        "try: bp.Pool.attach(sys.argv[1])\n"
        "except Exception as error: print(type(error).__name__, error.errno, 'F_OFD_SETLK' in str(error))"
    )
    done = run_python(code, pool.name)
    assert done.stdout.split() == ["SegmentError", str(errno.ENOLCK), "True"], done.stderr


@pytest.mark.kernel
@needs_seccomp
def test_memory_goes_back_where_madvise_is_refused(pool):
    """A sandbox refuses MADV_REMOVE: PUNCH_HOLE frees the memory, and the pool reports the kernel's count of bytes."""
    work = pool.open_scratch("work", 64)
    fill(work, range(48))

    def give() -> str:
        sandbox.refuse("madvise", errno.EPERM, [(2, sandbox.MADV_REMOVE)])
        before = kernel_bytes(pool)
        given = work.drop(0, 40) + pool.trim()
        return f"{given > 0} {given == before - kernel_bytes(pool)}"

    assert in_child(give) == "True True"


@pytest.mark.kernel
@needs_seccomp
def test_memory_that_the_kernel_does_not_take_is_not_told_as_given_back(pool):
    """With both calls refused, drop() reported 160 KiB that the kernel never got, and resize(timeout=1) never ended."""
    work = pool.open_scratch("work", 64)
    fill(work, range(48))

    def give() -> str:
        before, told = kernel_bytes(pool), pool.stats().reclaimed_bytes
        sandbox.refuse("madvise", errno.EPERM, [(2, sandbox.MADV_REMOVE)])
        sandbox.refuse("fallocate", errno.EPERM, [(1, 3)])  # PUNCH_HOLE | KEEP_SIZE
        said = [work.drop(0, 40), pool.trim()]
        try:
            pool.resize(16 * PAGE, timeout=1)
        except SegmentError as error:
            said.append((error.errno, "MADV_REMOVE" in str(error)))
        said += [before - kernel_bytes(pool), pool.stats().reclaimed_bytes == told, pool.check()]
        events = [(e.kind, e.reason, e.value) for e in pool.events()]
        return f"{said} {(EventKind.CANNOT_SHRINK, EventReason.KERNEL, errno.EPERM) in events}"

    assert in_child(give) == f"{[0, 0, (errno.EPERM, True), 0, True, []]} True"
    pool.resize(64 * PAGE)


# ---- file systems ------------------------------------------------------------------------


@pytest.mark.kernel
def test_a_tmpfs_without_inodes(tmp_path):
    """ENOSPC with room for gigabytes: it is inodes that are missing."""
    said = on_small_tmpfs(
        """
import os, sys, errno, bufferpool as bp
from bufferpool.errors import SharedMemoryFull
where = sys.argv[1]
n = 0
try:
    while True:
        open(f"{where}/f{n}", "x").close()
        n += 1
except OSError:
    pass
try:
    bp.Pool.create("pool", "1MiB", directory=where)
except SharedMemoryFull as error:
    print(error.errno == errno.ENOSPC, "inode" in str(error), "nr_inodes" in str(error))
os.unlink(f"{where}/f0")
print(bp.Pool.create("pool", "1MiB", directory=where).check())
""",
        tmp_path,
        "64m,nr_inodes=20",
    )
    assert said.split("\n")[:2] == ["True True True", "[]"]


@pytest.mark.kernel
def test_a_tmpfs_mounted_read_only(tmp_path):
    """EROFS: not "no tmpfs", and it says what to do; a look is possible."""
    said = on_small_tmpfs(
        """
import os, sys, errno, subprocess, bufferpool as bp
from bufferpool.errors import SegmentError
from bufferpool.observer import Observer
where = sys.argv[1]
bp.Pool.create("pool", "1MiB", directory=where).close()
subprocess.run(["mount", "-o", "remount,ro", where], check=True)
for use in (lambda: bp.Pool.create("other", "1MiB", directory=where), lambda: bp.Pool.attach("pool", directory=where)):
    try:
        use()
    except SegmentError as error:
        print(type(error).__name__, error.errno == errno.EROFS, "read-only" in str(error))
with Observer("pool", directory=where) as seen:
    print(seen.stats().clients)
""",
        tmp_path,
    )
    assert said.split("\n")[:3] == ["SegmentError True True", "SegmentError True True", "0"]


@pytest.mark.kernel
def test_a_tmpfs_of_huge_pages_gives_back_to_the_byte(tmp_path):
    """mount -o huge=always: a pool takes what its pages take, and gives it back."""
    said = on_small_tmpfs(
        """
import os, sys, bufferpool as bp
where = sys.argv[1]
pool = bp.Pool.create("pool", "32MiB", page_size=4096, directory=where)
kernel = lambda: os.stat(pool.path).st_blocks * 512
work = pool.open_scratch("work", 8000)
for n in range(6000):
    with work.write(n) as page:
        page[0] = 7
full = kernel()
given = work.drop(0, 3000)
print(full - kernel() == given, all(work[n][0] == 7 for n in range(3000, 6000)), pool.check())
given += work.drop() + pool.trim()
print(full - kernel() == given >= 6000 * 4096, pool.check())
""",
        tmp_path,
        "200m,huge=always",
    )
    assert said.split("\n")[:2] == ["True True []", "True []"]


# ---- /proc, and what passes --------------------------------------------------------------


_PROC = """
import os, sys, bufferpool as bp
from bufferpool.machine import pressure
name = sys.argv[1]
reading = pressure.read_memory("/dev/shm")
pool = bp.Pool.open(name)
steward = pool.start_steward(bp.Settings(interval=0.05))
import time
deadline = time.monotonic() + 300
while not steward.leads and steward.alive and time.monotonic() < deadline:
    time.sleep(0.01)
time.sleep(0.3)
print(reading.machine_free, steward.alive, steward.leads, repr(steward.error), repr(steward.trouble))
work = pool.open_scratch("work", 4)
with work.write(0) as page:
    page[0] = 1
print(pool.check())
pool.unlink()
pool.close()
"""


@pytest.mark.kernel
def test_a_proc_that_shows_processes_only():
    """subset=pid, as hardened containers have it: "/dev/shm does not exist", and a steward that died at once."""
    if subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode:
        pytest.skip("no mount namespaces here (unshare -m)")
    script = 'mount -t proc proc /proc -o subset=pid || exit 99; exec "$@"'
    done = run_python(_PROC, new_name(), prefix=("unshare", "-m", "sh", "-c", script, "sh"))
    if done.returncode == 99:
        pytest.skip("this kernel mounts no proc with subset=pid")
    assert done.stdout.split("\n")[:2] == ["None True True None None", "[]"], done.stderr


@pytest.mark.kernel
def test_no_proc_at_all():
    """Without /proc nobody can attach: the error names it."""
    if subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode:
        pytest.skip("no mount namespaces here (unshare -m)")
    code = (
        "import sys, bufferpool as bp\n"
        "try: bp.Pool.create(sys.argv[1], '1MiB')\n"
        "except Exception as error: print(type(error).__name__, error.errno, '/proc' in str(error))"
    )
    script = 'mount -t tmpfs tmpfs /proc || exit 99; exec "$@"'
    done = run_python(code, new_name(), prefix=("unshare", "-m", "sh", "-c", script, "sh"))
    assert done.stdout.split() == ["SegmentError", str(errno.ENOENT), "True"], done.stderr


def test_the_steward_outlives_a_lack_of_descriptors(pool):
    """A process that had no descriptor left for a moment lost its steward for good."""
    steward = pool.start_steward(bp.Settings(interval=0.02))
    wait_until(lambda: steward.leads, "it is the steward")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    held: list[int] = []

    def met_the_lack() -> bool:
        with contextlib.suppress(OSError):
            while True:  # again and again: what the garbage collector closes meanwhile would be one for the steward
                held.append(os.open("/dev/null", os.O_RDONLY))
        return steward.trouble is not None or not steward.alive

    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 20, hard))
        wait_until(met_the_lack, "the trouble")
    finally:
        for fd in held:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert steward.alive
    assert isinstance(steward.trouble, OSError)
    assert steward.trouble.errno == errno.EMFILE
    assert any(
        (e.kind, e.reason, e.value) == (EventKind.ROUND_FAILED, EventReason.KERNEL, errno.EMFILE) for e in pool.events()
    )
    work = pool.open_scratch("work", 64)
    fill(work, range(8))
    assert steward.leads
    pool.stop_steward()


@needs_another_user
def test_a_process_that_has_given_up_its_user_gets_an_error_that_says_what_to_do(pool):
    """A server attached as root and became the user nobody: its first cache raised "Permission denied", without a remedy."""

    def opens() -> str:
        os.setuid(65534)
        with pytest.raises(SegmentError) as refused:
            pool.cache("values")
        assert refused.value.errno == errno.EACCES
        pool.trim()
        return str(refused.value)

    assert "setuid" in in_child(opens)
    assert pool.cache("values").put("key", 1)
    assert pool.check() == []
