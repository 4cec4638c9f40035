"""Pools whose pages lie in huge pages of the kernel, which get their memory and lose it as a whole."""

import errno
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

import bufferpool as bp
from bufferpool import _core
from bufferpool.client.segment_file import HUGE_BYTES
from bufferpool.figures.names import FrameState
from tests.client.test_limits import in_child, needs_seccomp
from tests.conftest import PAGE, fill, stamp, wait_until
from tests.support import sandbox

PER = HUGE_BYTES // PAGE
MIB = 1 << 20


def gives_huge_pages() -> bool:
    """Whether the kernel makes huge pages in /dev/shm."""
    with open(os.open("/dev/shm", os.O_TMPFILE | os.O_RDWR, 0o600), "r+b") as file:
        file.truncate(HUGE_BYTES)
        try:
            _core.try_huge_page(file.fileno())
        except OSError:
            return False
    return True


pytestmark = pytest.mark.skipif(not gives_huge_pages(), reason="the kernel makes no huge pages in /dev/shm")


@pytest.fixture
def make_huge(make_pool):
    return lambda capacity=16 * MIB, **options: make_pool(capacity, huge_pages=True, extent_size=None, **options)


def huge_bytes(pool: bp.Pool, pid: int | str = "self") -> int:
    """How many bytes of the pool a process has mapped by huge pages, in both of its mappings."""
    found, ours = 0, False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            ours = line.endswith(f"/{pool.name}")
        elif ours and line.startswith("ShmemPmdMapped:"):
            found += int(line.split()[1]) << 10
    return found


def extents(pool: bp.Pool) -> list[set[str]]:
    """The states of the frames of each extent."""
    frames = pool.frames()
    names = {state: state.name for state in FrameState}
    states = [names[FrameState(state)] for state in frames["state"]]
    return [set(states[first : first + PER]) for first in range(0, len(states), PER)]


def require_whole(pool: bp.Pool) -> None:
    """No extent has lost a part of its memory, and the kernel has what the pool counts."""
    for states in extents(pool):
        assert "HOLE" not in states or states == {"HOLE"}, states
    stats = pool.stats()
    assert stats.kernel_data_bytes == stats.resident_bytes
    assert stats.resident_bytes % HUGE_BYTES == 0
    assert pool.check() == []


@contextmanager
def program(code: str) -> Iterator[subprocess.Popen[str]]:
    """Runs a program, and kills it in the end."""
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with child:
        try:
            yield child
        finally:
            child.kill()


def numbers(page_no: int, out: np.ndarray) -> None:
    out.view(np.uint64)[:] = page_no


def test_pages_lie_in_huge_pages_in_every_process(make_huge):
    pool = make_huge()
    space = pool.open_derived("made", 4 * PER, numbers)
    assert pool.huge_pages
    assert all(space[n].view(np.uint64)[1] == n for n in range(4 * PER))
    assert huge_bytes(pool) >= 4 * HUGE_BYTES
    with program(
        "import bufferpool as bp, sys\n"
        f"pool = bp.Pool.attach({pool.name!r}, mode='r')\n"
        "print(sum(int(row[0]) for row in pool.data[:2048]), flush=True); sys.stdin.read()"
    ) as child:
        assert child.stdout.readline().strip() == str(sum(n % 256 for n in range(4 * PER)))
        assert huge_bytes(pool, child.pid) >= 4 * HUGE_BYTES
    require_whole(pool)


def test_memory_comes_and_goes_in_whole_huge_pages(make_huge):
    """A pool gave back any run of frames. Of a huge page some kernels return wrong data after that, and others give no
    memory back."""
    pool = make_huge()
    space = pool.open_derived("made", 16 * PER, numbers)
    random = np.random.default_rng(7)
    for budget in (16, 6, 10, 4, 16, 2, 16):
        pool.resize(budget * MIB)
        require_whole(pool)
        assert pool.stats().resident_bytes <= budget * MIB
        for n in random.integers(0, 16 * PER, 3 * PER).tolist():
            assert space[n].view(np.uint64)[-1] == n
        require_whole(pool)
    before = pool.stats().resident_bytes
    given = pool.trim(3 * MIB)
    assert given == before - pool.stats().resident_bytes == 4 * MIB, (
        "whole huge pages, at least as much as was asked for"
    )
    require_whole(pool)
    pool.trim_idle(0)
    require_whole(pool)
    pool.trim(16 * MIB)
    assert pool.stats().resident_bytes == 0


def test_a_pinned_page_keeps_its_huge_page(make_huge):
    pool = make_huge()
    space = pool.open_derived("made", 8 * PER, numbers)
    for n in range(8 * PER):
        space[n]
    page = space[3 * PER + 5]
    pool.trim(16 * MIB)
    assert pool.stats().resident_bytes == HUGE_BYTES
    require_whole(pool)
    assert (page.view(np.uint64) == 3 * PER + 5).all()
    del page
    pool.trim(16 * MIB)
    assert pool.stats().resident_bytes == 0


def test_no_page_is_evicted_in_vain(make_huge):
    """Each extent had a pinned page, so nothing could be given back: trim and resize evicted the other pages all the same."""
    pool = make_huge()
    space = pool.open_derived("made", 8 * PER, numbers)
    held = [page for n in range(8 * PER) if (page := space[n]) is not None and n % PER == 100]
    live = pool.stats().frames.live
    assert pool.trim(2 * MIB) == 0
    with pytest.raises(bp.errors.PoolExhausted, match="each keep a huge page"):
        pool.resize(8 * MIB, timeout=0.1)
    assert pool.stats().frames.live == live
    held.clear()
    del page
    assert pool.resize(8 * MIB) == 8 * MIB
    require_whole(pool)


def test_what_is_dropped_gives_back_the_huge_pages_that_it_fills(make_huge):
    pool = make_huge()
    kept, gone = pool.open_scratch("kept", PER), pool.open_scratch("gone", 4 * PER)
    for n in range(PER):  # the pages of both lie in the same extents
        fill(kept, [n])
        fill(gone, range(4 * n, 4 * n + 4))
    assert pool.stats().resident_bytes == 12 * MIB
    gone.drop()
    require_whole(pool)
    assert pool.stats().resident_bytes == 4 * MIB, "8 MiB were freed, and the kept pages were moved together"


def test_what_small_drops_free_is_given_back_together(make_huge):
    """A drop of one page gave back whole extents only: so many of them gave back nothing."""
    pool = make_huge()
    space = pool.open_scratch("work", 6 * PER)
    fill(space, range(6 * PER))
    for n in range(5 * PER):
        space.drop(n, 1)
    require_whole(pool)
    assert pool.stats().resident_bytes == 2 * HUGE_BYTES, "one huge page is kept, for the next misses"
    pool.trim()
    assert pool.stats().resident_bytes == HUGE_BYTES


def test_a_budget_that_is_no_multiple_of_a_huge_page_is_kept(make_huge):
    pool = make_huge(5 * MIB + 3 * PAGE, max_capacity=16 * MIB)
    space = pool.open_derived("made", 16 * PER, numbers)
    for budget in (None, 3 * MIB, 7 * MIB + PAGE, 16 * MIB, 5 * MIB):
        if budget is not None:
            pool.resize(budget)
        for n in range(0, 16 * PER, 3):
            assert space[n][0] == n % 256
        stats = pool.stats()
        assert stats.resident_bytes <= (budget or 5 * MIB + 3 * PAGE)
        assert stats.kernel_data_bytes == stats.resident_bytes
        assert pool.check() == []


def test_the_pages_of_a_part_of_an_extent_move_to_where_others_were_evicted(make_huge):
    """A resize by one page left the part as it was, because none of its frames was free, and raised PoolExhausted."""
    pool = make_huge(2 * MIB + 4 * PAGE, max_capacity=4 * MIB)
    derived, work = pool.open_derived("made", 65, numbers), pool.open_scratch("work", 451)
    for n in range(65):
        derived[n]
    fill(work, range(451))
    for n in range(65):
        derived[n]
    pool.resize(2 * MIB + 3 * PAGE)
    stats = pool.stats()
    assert stats.kernel_data_bytes == stats.resident_bytes <= 2 * MIB + 3 * PAGE
    assert all(np.array_equal(work[n], stamp(n)) for n in range(451))


def test_killed_processes_leave_whole_huge_pages(make_huge):
    """A reaper punched the frames of a killed process's loads one by one."""
    pool = make_huge(max_clients=8)
    space = pool.open_derived("made", 32 * PER, numbers)
    for kill in range(12):
        with program(
            "import bufferpool as bp, numpy as np, time\n"
            "def load(n, out):\n"
            "    if n % 3 == 0: print('loading', flush=True); time.sleep(600)\n"
            "    out.view(np.uint64)[:] = n\n"
            f"pool = bp.Pool.attach({pool.name!r})\n"
            f"space = pool.open_derived('made', {32 * PER}, load)\n"
            f"for n in range({kill * 2 * PER + 1}, {32 * PER}): space[n]"
        ) as child:
            assert child.stdout.readline() == "loading\n"
            for n in range(kill, 32 * PER, 61):
                assert space.try_get(n) is None or space[n].view(np.uint64)[3] == n
            child.kill()
            child.wait()
        wait_until(lambda: (pool.reap(), len(pool.clients()))[1] == 1, "the dead client to be reaped")
        require_whole(pool)
        if kill % 4 == 3:
            pool.resize(6 * MIB if kill % 8 == 3 else 16 * MIB)
            require_whole(pool)


def test_other_page_sizes_have_huge_pages_too(make_huge):
    pool = make_huge(64 * MIB)
    for page_size in ("64KiB", "2MiB"):
        space = pool.open_derived(f"of{page_size}", 64, numbers, page_size=page_size)
        for n in range(8):
            assert space[n].view(np.uint64)[-1] == n
    assert all(one.huge_pages for one in pool.page_sizes().values())
    assert all(one.check() == [] for one in pool.page_sizes().values())


def test_refused_arguments(make_huge, pools):
    name = pools.name()
    for wrong, error in ((1, TypeError), ("yes", TypeError)):
        with pytest.raises(error, match="huge_pages must be True or False"):
            bp.Pool.create(name, 16 * MIB, huge_pages=wrong)
    with pytest.raises(ValueError, match="at least 2097152 bytes with huge_pages=True"):
        bp.Pool.create(name, MIB, huge_pages=True)
    with pytest.raises(ValueError, match="omit extent_size"):
        bp.Pool.create(name, 16 * MIB, huge_pages=True, extent_size="256KiB")
    pool = make_huge()
    with pytest.raises(bp.PoolMismatch, match="huge_pages is True, not False"):
        bp.Pool.open(pool.name, huge_pages=False)
    bp.Pool.open(pool.name, huge_pages=True).close()
    bp.Pool.open(pool.name).close()


@needs_seccomp
def test_a_kernel_without_huge_pages_is_named(pools):
    """The pool would work without them, and nobody would know."""
    name = pools.name()

    def create() -> object:
        sandbox.refuse("madvise", errno.EINVAL, [(2, 25)])
        return bp.Pool.create(name, 16 * MIB, huge_pages=True)

    said = in_child(create)
    assert said.startswith(f"SegmentError {errno.EINVAL}:"), said
    assert "omit huge_pages=" in said
    assert not Path("/dev/shm", name).exists()
    bp.Pool.create(name, 16 * MIB).close()
