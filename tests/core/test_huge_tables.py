"""Huge pages behind the tables of a large pool: each process maps them for itself, and they change nothing but speed."""

import mmap
import os
import subprocess
import sys

import numpy as np
import pytest

import bufferpool as bp
from tests.conftest import WAIT, kernel_bytes, stamp
from tests.support.children import run_python

MIB = 1 << 20
UNIT = os.sysconf("SC_PAGESIZE") // 8  # pages whose entries share an OS page
PAGES = 2 * 2 * MIB // 8  # the entries of so many fill two huge pages, so one of them is aligned


def can_collapse() -> bool:
    """Whether the kernel puts huge pages behind a tmpfs file when it is asked to (Linux 6.1, unless an administrator forbids it)."""
    fd = os.memfd_create("probe")
    try:
        os.ftruncate(fd, 8 * MIB)
        offset = 0
        for _ in range(10):  # until the address is aligned as the offset is
            with mmap.mmap(fd, 4 * MIB, offset=offset) as probe:
                probe[:] = bytes(4 * MIB)
                address = np.frombuffer(probe, np.uint8).ctypes.data
                if (address - offset) % (2 * MIB) == 0:
                    probe.madvise(mmap.MADV_HUGEPAGE, -address % (2 * MIB), 2 * MIB)
                    probe.madvise(25, -address % (2 * MIB), 2 * MIB)  # MADV_COLLAPSE
                    return True
                offset = address % (2 * MIB)
        return False
    except OSError:
        return False
    finally:
        os.close(fd)


needs_collapse = pytest.mark.skipif(not can_collapse(), reason="this kernel makes no huge pages on request")


def huge_bytes(pool: bp.Pool) -> int:
    """How much of the pool this process has mapped in huge pages."""
    found, ours = 0, False
    with open("/proc/self/smaps") as file:
        for line in file:
            if "-" in line.split(" ", 1)[0]:
                ours = os.path.basename(pool.path) in line
            elif ours and line.startswith("ShmemPmdMapped:"):
                found += int(line.split()[1]) << 10
    return found


def counts_every_byte(pool: bp.Pool) -> bool:
    stats = pool.stats()
    return stats.metadata_bytes + stats.resident_bytes == kernel_bytes(pool)


@pytest.fixture
def pool(make_pool):
    return make_pool(16 * MIB, max_clients=8)


@needs_collapse
def test_tables_that_are_full_have_huge_pages_and_no_byte_more(pool):
    """A hit at random in 4 GiB waited for three translations of addresses, because each table lay on OS pages of 4 KiB."""
    space = pool.open_scratch("wide", PAGES)
    space.read_many(range(0, PAGES // 2, UNIT))
    before = huge_bytes(pool)
    space.read_many(range(0, PAGES, UNIT))
    assert huge_bytes(pool) >= before + 2 * MIB, "the entries fill a huge page, and have none"
    assert counts_every_byte(pool)
    seen = run_python(
        "import sys, bufferpool as bp\n"
        "from tests.core.test_huge_tables import huge_bytes\n"
        "with bp.Pool.attach(sys.argv[1]) as pool: print(huge_bytes(pool))",
        pool.name,
    )
    assert int(seen.stdout) >= 2 * MIB, f"a client that attaches later has none: {seen.stderr}"
    space.drop()
    assert counts_every_byte(pool)
    space.remove(discard=True)
    assert pool.check() == []


@needs_collapse
def test_clients_that_use_the_tables_meanwhile_notice_nothing(pool):
    """The kernel moves the tables to their huge page while other processes load, write and wait for pages in them."""
    space = pool.open_scratch("wide", PAGES)
    ids = [*range(0, PAGES, UNIT)]
    for n in ids[:64]:
        with space.write(n) as page:
            page[:] = stamp(n, size=4096)
    script = (
        "import sys, bufferpool as bp\n"
        "from tests.conftest import stamp\n"
        "with bp.Pool.attach(sys.argv[1]) as pool:\n"
        f"    space, ids = pool.open_scratch('wide', {PAGES}), range(0, {PAGES}, {UNIT})\n"
        "    for turn in range(20):\n"
        "        for n in ids[:64]:\n"
        "            with space.write(n) as page: page[:] = stamp(n, size=4096)\n"
        "        assert not space.read_many(ids[64::7]).any()\n"
        "        for n in ids[:64]: assert (space[n] == stamp(n, size=4096)).all()\n"
    )
    children = [subprocess.Popen([sys.executable, "-c", script, pool.name]) for _ in range(2)]
    try:
        space.read_many(ids)
        for _ in range(10):
            bp.Pool.attach(pool.name).close()
        run_python(
            "import os, sys, bufferpool as bp\nwith bp.Pool.attach(sys.argv[1]): os.kill(os.getpid(), 9)", pool.name
        )
        assert [child.wait(WAIT) for child in children] == [0, 0]
    finally:
        for child in children:
            child.kill()
            child.wait()
    assert pool.check() == []
    assert counts_every_byte(pool)
