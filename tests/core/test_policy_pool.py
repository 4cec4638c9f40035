"""The policy in the real pool, under the real protocol: beside the simulator, and what hints, writes, pins and deaths do."""

import mmap
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bufferpool as bp
from tests.conftest import PAGE, ROOT, WAIT
from tests.support import native_build
from tests.support.fuzz_damage import FRAME as FRAME_BYTES
from tests.support.fuzz_damage import FRAME_FIELDS, HEADER, Layout
from tests.support.memory_store import Forgetful

TRACES = {
    "tpcc": Path(bp.__file__).parent / "replay" / "traces" / "tpcc.npz",
    "htap": ROOT / "tests" / "traces" / "htap.npz",
    "tpch": ROOT / "tests" / "traces" / "tpch.npz",
}
BLOCK = 16  # accesses of a ticket


def trace_of(name: str) -> np.ndarray:
    return np.load(TRACES[name])["pages"][:150_000]


def open_sparse(pool: bp.Pool, path: Path, n_pages: int, mode: str = "r") -> bp.Space:
    with path.open("ab") as file:
        file.truncate(n_pages * PAGE)
    return pool.open_file(path, mode)


def frame_field(pool: bp.Pool, name: str, page_no: int) -> int:
    """A byte of the frame slot of a resident page, as the segment has it."""
    frames = pool.frames()
    (frame,) = frames["frame"][(frames["page_no"] == page_no) & (frames["state"] == bp.FrameState.LIVE)]
    with open(pool.path, "rb") as file:
        at, size = FRAME_FIELDS[name]
        data = os.pread(file.fileno(), 1 << 16, 0)
        return int.from_bytes(
            os.pread(file.fileno(), size, Layout(data).frames_at + int(frame) * FRAME_BYTES + at), "little"
        )


# ---- beside the simulator --------------------------------------------------------


@pytest.mark.parametrize("share", [0.05, 0.2])
@pytest.mark.parametrize("name", TRACES)
def test_one_process_misses_what_the_simulator_says(name: str, share: float, make_pool, tmp_path: Path) -> None:
    trace = trace_of(name)
    frames = int(share * len(np.unique(trace)))
    pool = make_pool(frames * PAGE)
    space = open_sparse(pool, tmp_path / "pages", int(trace.max()) + 1)
    for page in trace.tolist():
        space[page]
    simulated = bp.simulate(trace, frames).misses
    assert abs(pool.stats().misses - simulated) <= 0.01 * simulated


def take_tickets(pool_name: str, path: str, trace_name: str, ticket: Any, start: Any) -> int:
    """Replays blocks of the trace, each as its ticket is drawn; returns how many."""
    trace, taken = trace_of(trace_name).tolist(), 0
    with bp.Pool.attach(pool_name) as pool:
        space = pool.open_file(path)
        start.wait()
        while True:
            with ticket.get_lock():
                first, ticket.value = ticket.value, ticket.value + BLOCK
            if first >= len(trace):
                return taken
            for page in trace[first : first + BLOCK]:
                space[page]
            taken += 1


@pytest.mark.parametrize("name", TRACES)
def test_four_processes_miss_what_the_simulator_says(name: str, make_pool, child, spawn, tmp_path: Path) -> None:
    """Four processes draw blocks of 16 accesses from one counter and replay them at the same time.

    The blocks begin in the order of the trace; within the last few the accesses
    mix as the scheduler has it. The simulator runs the trace in the order of the
    tickets, so the difference is what several processes cost the policy.
    """
    trace = trace_of(name)
    frames = int(0.1 * len(np.unique(trace)))
    pool = make_pool(frames * PAGE)
    open_sparse(pool, tmp_path / "pages", int(trace.max()) + 1)
    ticket, start = spawn.Value("q", 0), spawn.Barrier(4)
    arguments = (pool.name, str(tmp_path / "pages"), name, ticket, start)
    taken = [worker.result() for worker in [child(take_tickets, *arguments) for _ in range(4)]]
    assert sum(taken) == -(-len(trace) // BLOCK)
    assert sum(n > 0 for n in taken) >= 2  # a busy machine may leave one without its turn
    stats, simulated = pool.stats(), bp.simulate(trace, frames).misses
    assert stats.hits + stats.misses == len(trace)
    assert abs(stats.misses - simulated) <= 0.03 * simulated


# ---- hints, writes, bursts ---------------------------------------------------------

HOT, FRAMES, FILE = 160, 256, 2560


def scanned(space: bp.Space) -> None:
    for _ in space.scan(HOT):
        pass


def prefetched(space: bp.Space) -> None:
    for first in range(HOT, FILE, 32):
        space.prefetch(range(first, first + 32))


@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize("read", [scanned, prefetched])
def test_a_scan_of_ten_pools_leaves_the_hot_set(read: Callable, times: int, make_pool, tmp_path: Path) -> None:
    """Also when it is repeated: pages that come back only in scans never become hot."""
    pool = make_pool(FRAMES * PAGE)
    space = open_sparse(pool, tmp_path / "pages", FILE)
    rng = np.random.default_rng(1)
    for page in rng.integers(0, HOT, 20 * HOT).tolist():
        space[page]
    for _ in range(times):
        read(space)
        hot = pool.frames()
        hot = hot["page_no"][hot["hot"]]
        assert (hot < HOT).sum() >= 0.95 * HOT
        before = pool.stats()
        for page in rng.integers(0, HOT, 10 * HOT).tolist():
            space[page]
        after = pool.stats()
        assert after.misses - before.misses <= 0.02 * 10 * HOT


def test_pages_that_come_back_only_in_scans_never_become_hot(make_pool, tmp_path: Path) -> None:
    pool = make_pool(FRAMES * PAGE)
    space = open_sparse(pool, tmp_path / "pages", FILE)
    for _ in range(4):
        for first in range(0, 2 * FRAMES, 32):  # of twice the pool: each round finds the ghosts of the last
            space.prefetch(range(first, first + 32))
        for _ in space.scan(0, 2 * FRAMES):
            pass
    assert not pool.frames()["hot"].any()


def test_a_write_counts_as_a_reference_like_a_read(make_pool) -> None:
    """Two pools see the same trace, one of them with every third access a write: they miss the same."""
    rng = np.random.default_rng(3)
    trace = np.minimum(rng.zipf(1.2, 6000), 800) - 1
    misses = []
    for writes in (False, True):
        pool = make_pool(64 * PAGE)
        space = pool.open_store("pages", Forgetful(800), mode="r+")
        for i, page in enumerate(trace.tolist()):
            if writes and i % 3 == 0:
                with space.write(page) as copy:
                    copy[0] = i % 251
                space.flush()  # a dirty page is no victim, which is another rule
            else:
                space[page]
        misses.append(pool.stats().misses)
    assert misses[0] > 1000
    assert abs(misses[1] - misses[0]) <= 0.02 * misses[0]


@pytest.mark.parametrize("how", ["read", "write"])
def test_a_burst_of_one_page_counts_once(how: str, make_pool, tmp_path: Path) -> None:
    pool = make_pool(100 * PAGE)
    space = open_sparse(pool, tmp_path / "pages", 1000, "r+")

    def burst() -> int:
        for _ in range(50):
            if how == "read":
                space[7]
            else:
                with space.write(7) as page:
                    page[0] = 1
        return frame_field(pool, "count", 7) & 3  # beside it: whether the duel samples the page

    assert burst() == 0  # it came in just now
    for n in range(100, 111):  # a tenth of the pool's turnover passes
        space[n]
    assert burst() == 1
    assert burst() == 1
    for n in range(111, 122):
        space[n]
    assert burst() == 2


# ---- deaths, and pages that cannot be evicted ---------------------------------------


def attach_and_wait(name: str, ready: Any, forever: Any) -> None:
    pool = bp.Pool.attach(name)
    ready.set()
    forever.wait()
    pool.close()


def test_a_rebuild_after_a_death_loses_order_not_pages(make_pool, child, spawn, tmp_path: Path) -> None:
    """A process dies with the memory lock, the rings half changed: every page is still resident, and can be evicted."""
    frames = 128
    pool = make_pool(frames * PAGE)
    space = open_sparse(pool, tmp_path / "pages", 1000)
    for page in [*range(frames), *range(0, frames, 2)]:
        space[page]
    ready, forever = spawn.Event(), spawn.Event()
    dying = child(attach_and_wait, pool.name, ready, forever)
    assert ready.wait(WAIT)
    clients = [c.client for c in pool.clients() if c.pid == dying.pid]
    dying.kill()
    with open(pool.path, "r+b") as file, mmap.mmap(file.fileno(), 1 << 14) as header:
        for name, value in {
            "policy.cold.head": 3,
            "policy.hot.head": 9,
            "policy.hot.count": 20,
            "memory.word": clients[0],
        }.items():
            at, size = HEADER[name]
            header[at : at + size] = value.to_bytes(size, "little")
    before = pool.stats()
    space.prefetch([500])  # the first to need the lock repairs what it protects
    assert pool.stats().rebuilds == before.rebuilds + 1
    assert pool.check() == []
    held = set(pool.frames()["page_no"][pool.frames()["state"] == bp.FrameState.LIVE].tolist())
    assert 500 in held
    assert len(held & set(range(frames))) == frames - 1  # one went for page 500
    for page in sorted(held):
        space[page]
    assert pool.stats().hits == before.hits + len(held) - 1  # the first use of page 500, which was read ahead, is none
    assert pool.trim(frames * PAGE) == frames * PAGE  # none of them is stuck


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int, int, int, str], list[int]]:
    program = native_build.program("policy_steps", tmp_path_factory.mktemp("policy") / "steps")

    def run(frames: int, stuck_percent: int, max_steps: int, why: str) -> list[int]:
        command = [str(program), str(frames), str(stuck_percent), str(max_steps), why]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=WAIT)
        return [int(word) for word in done.stdout.split()]

    return run


@pytest.mark.parametrize("why", ["pinned", "dirty"])
@pytest.mark.parametrize("stuck", [0, 50, 90, 99, 100])
def test_pages_that_cannot_go_are_stepped_over_in_bounded_steps(steps: Callable, stuck: int, why: str) -> None:
    """Searches gave up among pages that cannot be evicted, and later searches met the same pages again.

    Steps are counted, not timed; the stuck pages stand at the heads of both rings.
    """
    frames, max_steps = 4000, 128
    evicted, most, total, miss, failed = steps(frames, stuck, max_steps, why)
    free = frames - frames * stuck // 100
    assert evicted == free  # every page that can be evicted is
    assert most <= 4 * max_steps  # one hold of the lock
    share = frames / max(free, 1)
    # An eviction passes the stuck ones between two others.
    assert total <= 8 * frames + free * 2 * share * 2 * np.log(frames)
    assert failed == 0
    assert miss <= 2 * max_steps  # the stuck ones stand out of the way by then
