"""The absent pages of one call are loaded together: each once, complete, and independent of the others' failures."""

import errno
import os
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import bufferpool as bp
from bufferpool._core import has_io_uring
from bufferpool.errors import PoolExhausted, ShortRead
from bufferpool.stores.base import Caching
from tests.conftest import PAGE, WAIT, pins, stamp, write_file
from tests.support import native_build, sandbox

PAGES = 1200


@pytest.fixture
def big(tmp_path: Path) -> Path:
    return write_file(tmp_path / "big", PAGES)


@pytest.fixture
def large(make_pool: Callable[..., bp.Pool]) -> bp.Pool:
    return make_pool(2 * PAGES * PAGE)


def expected(ids: "np.ndarray | range | list[int]") -> np.ndarray:
    return np.array([stamp(int(n)) for n in ids])


@pytest.mark.kernel
def test_pages_in_any_order_and_more_than_once(large, big):
    """Pages that one call names twice, that neighbour each other, and that are there already come to their places."""
    space = large.open_file(big)
    assert space[7].size == space[600].size
    ids = np.random.default_rng(1).integers(0, PAGES, 900)
    ids[:4] = 7, 8, 7, 8
    assert np.array_equal(space.read_many(ids), expected(ids))
    distinct = len(set(ids.tolist()) | {600})
    assert (space.stats().misses, space.stats().hits) == (distinct, 900 + 2 - distinct)
    with space.pin_many(range(900, 1200)) as pages:
        assert pins(large) == 300
        assert np.array_equal(np.array([page.copy() for page in pages]), expected(range(900, 1200)))
    assert pins(large) == 0
    assert large.check() == []


def test_a_page_read_ahead_with_others_is_a_miss_when_it_is_used(pool, big):
    """The same reads count the same, whether or not the pages were loaded together before."""
    space = pool.open_file(big)
    assert space.prefetch([5, 3, 5, 4, 90]) == 4
    assert (space.stats().misses, space.stats().hits) == (0, 0)
    space.read_many([3, 4, 5, 90, 3])
    assert (space.stats().misses, space.stats().hits) == (4, 1)


def test_more_pages_than_the_pool_has(pool, big):
    """A call for more pages than there are frames evicts its own first pages, and claims an eighth of the budget at most."""
    space = pool.open_file(big)
    ids = np.random.default_rng(2).permutation(PAGES)
    assert np.array_equal(space.read_many(ids), expected(ids))
    with pytest.raises(PoolExhausted):
        space.pin_many(ids)
    assert pins(pool) == 0
    assert all(np.array_equal(page, stamp(n)) for n, page in enumerate(space.scan()))
    assert pool.check() == []


def test_a_page_that_cannot_be_read_does_not_lose_the_others(pool, big):
    """The file was cut behind the pool's back: a run of neighbours that ends beyond the file's end is read up to that end."""
    space = pool.open_file(big)
    os.truncate(big, 1000 * PAGE)
    ids = [*range(990, 1010), 3]
    with pytest.raises(ShortRead, match="page 1000"):
        space.read_many(ids)
    assert pins(pool) == 0
    with pytest.raises(ShortRead, match="page 1000"):
        space.pin_many(ids)
    assert pins(pool) == 0
    assert space.stats().resident == 11
    assert np.array_equal(space.read_many([*range(990, 1000), 3]), expected([*range(990, 1000), 3]))
    assert pool.check() == []


def test_pages_that_the_file_has_not_are_zeros(pool, tmp_path):
    """A number that append() handed out and nobody published is zeros, beside neighbours that the file has."""
    path = tmp_path / "short"
    path.write_bytes(expected(range(3)).tobytes())
    space = pool.open_file(path, mode="r+")
    given = [space.append() for _ in range(3)]
    with given[2] as page:
        page[:] = stamp(5)
    wanted = np.array([stamp(0), stamp(1), stamp(2), np.zeros(PAGE, np.uint8), np.zeros(PAGE, np.uint8), stamp(5)])
    assert np.array_equal(space.read_many(range(6)), wanted)
    space.flush()


def read_in_order(name: str, path: str, barrier: object, backwards: bool) -> None:
    with bp.Pool.attach(name) as pool:
        space = pool.open_file(path)
        barrier.wait(WAIT)  # type: ignore[attr-defined]
        for first in range(0, PAGES, 300):
            ids = list(range(first, first + 300))
            ids = ids[::-1] if backwards else ids
            assert np.array_equal(space.read_many(ids), expected(ids))


def test_two_processes_that_want_the_same_pages_load_each_once(large, big, child, spawn):
    """Calls that overlap, in opposite orders, neither wait for each other for ever nor load a page twice."""
    space = large.open_file(big)
    barrier = spawn.Barrier(2)
    children = [child(read_in_order, large.name, str(big), barrier, backwards) for backwards in (False, True)]
    for each in children:
        each.result()
    assert (space.stats().misses, space.stats().hits) == (PAGES, PAGES)
    assert large.check() == []


def read_all(name: str, path: str, refused: tuple[str, ...]) -> None:
    for call in refused:
        sandbox.refuse(call, errno.ENOSYS if call == "clone3" else errno.EAGAIN if call == "clone" else errno.EPERM)
    with bp.Pool.attach(name) as pool:
        space = pool.open_file(path)
        for _ in range(3):
            ids = np.random.default_rng(3).permutation(PAGES)
            assert np.array_equal(space.read_many(ids), expected(ids))
            space.drop()


@pytest.mark.kernel
@pytest.mark.skipif(not sandbox.NUMBERS, reason="no numbers of system calls for this machine")
@pytest.mark.parametrize(
    "refused",
    [(), ("io_uring_setup",), ("io_uring_setup", "clone3", "clone")],
    ids=["all", "no io_uring", "no threads"],
)
def test_what_the_kernel_refuses_is_done_another_way(large, big, child, refused):
    """Without io_uring a few threads read, and where none can be started, one page comes after the other."""
    child(read_all, large.name, str(big), refused).result()
    large.reap()
    assert large.check() == []


def calls_so_far(kind: str) -> int:
    """How many calls of the kernel that read (``syscr``), or write, this process has made."""
    return int(dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())[kind])


def calls_of(kind: str, work: Callable[[], object]) -> int:
    before = calls_so_far(kind)
    work()
    return calls_so_far(kind) - before


def read_and_write_neighbours(name: str, path: str, out: Path) -> None:
    sandbox.refuse("io_uring_setup", errno.EPERM)  # what it does is not counted
    with bp.Pool.attach(name) as pool:
        space = pool.open_file(path, "r+", cache="kernel")
        space.prefetch([1000, 1002])  # the threads have started
        found = []
        for ids in (range(128), range(200, 584, 3)):
            found.append(calls_of("syscr", lambda ids=ids: space.read_many(ids)))
            space.write_many(ids, np.zeros((128, PAGE), np.uint8))
            found.append(calls_of("syscw", space.flush))
        out.write_text(" ".join(map(str, found)))


@pytest.mark.kernel
@pytest.mark.skipif(not sandbox.NUMBERS, reason="no numbers of system calls for this machine")
@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="this kernel does not count calls")
def test_neighbours_are_read_and_written_by_one_call(large, big, child, tmp_path):
    """One system call for each page gives the right content, too, so that no test noticed it."""
    child(read_and_write_neighbours, large.name, str(big), tmp_path / "calls").result()
    read, wrote, read_apart, wrote_apart = map(int, (tmp_path / "calls").read_text().split())
    assert read_apart >= 128
    assert wrote_apart >= 128
    assert read <= 20
    assert wrote <= 20


@pytest.mark.kernel
def test_a_forked_child_reads_as_its_parent_does(large, big):
    """A forked child must not use its parent's io_uring; afterwards both can read."""
    space = large.open_file(big)
    assert np.array_equal(space.read_many(range(100)), expected(range(100)))
    pid = os.fork()
    if pid == 0:
        right = np.array_equal(space.read_many(range(200, 500)), expected(range(200, 500)))
        os._exit(0 if right else 1)
    assert np.array_equal(space.read_many(range(500, 900)), expected(range(500, 900)))
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    large.reap()
    assert large.check() == []


def staging_areas() -> int:
    """The huge pages of this process that a file is read into first: 2 MiB that a forked child does not inherit."""
    found, kilobytes = 0, {}
    for line in Path("/proc/self/smaps").read_text().splitlines():
        name, _, value = line.partition(":")
        if name in ("Size", "AnonHugePages"):
            kilobytes[name] = int(value.split()[0])
        elif name == "VmFlags":
            huge = kilobytes.get("Size") == kilobytes.get("AnonHugePages") == 2048
            found += huge and "dc" in value.split()
    return found


def read_staged(name: str, path: str) -> list[int]:
    counts = []
    with bp.Pool.attach(name) as pool:
        space = pool.open_file(path)

        def read(seed: int, pages: int) -> None:
            ids = np.random.default_rng(seed).permutation(PAGES)[:pages]
            assert np.array_equal(space.read_many(ids), expected(ids))

        def read_in_threads() -> None:
            with ThreadPoolExecutor(20) as threads:
                list(threads.map(lambda seed: read(seed, 300), range(20)))

        for use in (lambda: read(0, 8), lambda: read(1, 300), lambda: read(2, 300), read_in_threads):
            space.drop()
            use()
            counts.append(staging_areas())
        pid = os.fork()
        if pid == 0:
            space.drop()
            read(3, 300)
            os._exit(staging_areas())
        counts.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    return counts


@pytest.mark.kernel
def test_many_pages_are_read_into_a_few_huge_pages_first(large, big, child):
    """A disk whose queue has a descriptor for each small page of memory worked on few reads at one time.

    A batch has a huge page, which it shares with no other batch; the process has at most eight, for any number of
    threads; and a forked child has its own.
    """
    space = large.open_file(big)
    if space._store.caching is not Caching.DIRECT or not has_io_uring():
        pytest.skip("the file is not read by O_DIRECT and io_uring here")
    few, first, again, threads, forked = child(read_staged, large.name, str(big)).result()
    if first == 0:
        pytest.skip("the kernel gives no huge page, or does not say so (before Linux 6.1)")
    assert (few, first, again, forked) == (1, 1, 1, 1)
    assert 1 <= threads <= 8
    large.reap()
    assert large.check() == []


@pytest.mark.kernel
def test_large_reads_wait_for_a_place_in_the_staging(tmp_path):
    """Beyond the eighth read of 256 KiB, each was read past the full huge page, into small pages that fill a disk's queue.

    So a prefetch of 4 MiB of neighbours took longer than two of 2 MiB.
    """
    program = native_build.program("staging", tmp_path / "staging", "-O2")
    path = tmp_path / "numbered"
    path.write_bytes(b"".join(bytes([n % 251]) * 4096 for n in range(20 * 64)))
    said = subprocess.run([program, path, "20"], capture_output=True, text=True, check=True, timeout=WAIT).stdout
    if said.startswith("no "):
        pytest.skip(f"{said.strip()} here")
    assert int(said) == 8


def test_threads_load_the_same_pages_together(large, big, threads):
    """Calls of several threads, each with an operation of its own, share the pages that they claim."""
    space = large.open_file(big)

    def read(seed: int) -> None:
        for ids in np.random.default_rng(seed).permutation(PAGES).reshape(4, 300):
            assert np.array_equal(space.read_many(ids), expected(ids))

    for seed in range(4):
        threads.start(read, seed)
    threads.join()
    assert space.stats().misses == PAGES
    assert large.check() == []


def test_a_loader_is_asked_for_each_page_once(pool):
    """Of pages that do not neighbour each other, a call for more than an eighth of the budget had each loaded many times."""
    asked: list[list[int]] = []

    def load_many(numbers, outs):
        asked.append(numbers)
        for n, out in zip(numbers, outs, strict=True):
            out[:] = stamp(n)

    ids = [7 * n % 1009 for n in range(50)]
    space = pool.open_derived("d", 1009, lambda n, out: load_many([n], [out]), load_many=load_many)
    assert np.array_equal(space.read_many(ids), expected(ids))
    assert sorted(n for numbers in asked for n in numbers) == sorted(ids)
    assert max(map(len, asked)) == 8
    assert len(asked) <= 8
