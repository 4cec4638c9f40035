"""With cache="pool" the kernel's page cache keeps no second copy of a file's pages."""

import ctypes
import errno
import fcntl
import mmap
import os
import resource
import signal
from pathlib import Path

import numpy as np
import pytest

import bufferpool as bp
from bufferpool import _core
from bufferpool.cli import doctor
from bufferpool.stores import base
from tests.client.test_limits import in_child
from tests.conftest import PAGE, SHM, fill, new_name, stamp, write_file
from tests.support import sandbox

PAGES = 2048


def cached_pages(path: Path) -> int:
    """How many pages of a file the kernel's page cache has."""
    size = path.stat().st_size
    with path.open("rb") as file, mmap.mmap(file.fileno(), size, prot=mmap.PROT_READ) as view:
        here = np.frombuffer(view, np.uint8)
        there = np.zeros(size // PAGE, np.uint8)
        libc = ctypes.CDLL(None, use_errno=True)
        assert (
            libc.mincore(ctypes.c_void_p(here.ctypes.data), ctypes.c_size_t(size), ctypes.c_void_p(there.ctypes.data))
            == 0
        )
        del here
    return int((there & 1).sum())


@pytest.fixture
def cold(tmp_path: Path) -> Path:
    """A file of which the page cache has nothing; a file system that keeps no page cache of its own choice."""
    path = write_file(tmp_path / "cold", PAGES)
    with path.open("rb") as file:
        if _core.is_tmpfs(file.fileno()):
            pytest.skip("temporary files lie on a tmpfs here, which is the page cache itself")
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    assert cached_pages(path) == 0
    return path


def use_everything(space: bp.Space) -> None:
    """Misses of every kind, and a flush."""
    ids = np.random.default_rng(4).permutation(PAGES)
    assert np.array_equal(space.read_many(ids[:500]), np.array([stamp(n) for n in ids[:500]]))
    for n in ids[500:520].tolist():
        assert np.array_equal(space[n], stamp(n))
    space.prefetch(ids[520:900])
    assert all(np.array_equal(page, stamp(n)) for n, page in enumerate(space.scan(0, 600)))
    fill(space, range(100, 140), version=1)
    space.flush()
    assert np.array_equal(space[120], stamp(120, version=1))


@pytest.mark.kernel
def test_nothing_of_what_is_loaded_and_flushed_stays_in_the_page_cache(make_pool, cold):
    """Each page that was read or written stood in the page cache as well: a pool that promises memory back held it twice."""
    pool = make_pool(256 * PAGE)
    space = pool.open_file(cold, "r+")
    use_everything(space)
    assert cached_pages(cold) <= PAGES // 100
    assert space.stats().cache == "pool"
    assert pool.check() == []


@pytest.mark.kernel
def test_a_file_that_the_kernel_may_cache_is(make_pool, cold):
    """The yardstick of the test above, and the way to files that other programs read anyway."""
    pool = make_pool(256 * PAGE)
    space = pool.open_file(cold, "r+", cache="kernel")
    use_everything(space)
    assert cached_pages(cold) > PAGES // 2
    assert (space.stats().cache, pool.space(space.name).stats().cache) == ("kernel", "kernel")
    found = [finding for finding in doctor.examine() if finding.what == f"pool {pool.name}"]
    assert any("cold" in finding.text and "page cache" in finding.text for finding in found)


def use_without(name: str, path: str, dont_cache: bool, caching: base.Caching) -> None:
    sandbox.refuse("fcntl", errno.EINVAL, [(1, fcntl.F_SETFL)])
    if not dont_cache:
        base.RWF_DONTCACHE = 1 << 30  # a flag that no kernel knows
    with bp.Pool.attach(name) as pool:
        space = pool.open_file(path, "r+")
        assert space._store is not None
        assert space._store.caching is caching
        use_everything(space)
        assert cached_pages(Path(path)) <= PAGES // 100


def knows_dont_cache(path: Path) -> bool:
    with path.open("rb") as file:
        try:
            os.preadv(file.fileno(), [bytearray(1)], 0, base.RWF_DONTCACHE)
        except OSError:
            return False
        finally:  # what the kernel has read ahead here would lead it on
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return True


@pytest.mark.kernel
@pytest.mark.skipif(not sandbox.NUMBERS, reason="no numbers of system calls for this machine")
@pytest.mark.parametrize("caching", [base.Caching.UNCACHED, base.Caching.DROPPED])
def test_without_o_direct_the_copies_are_dropped(make_pool, cold, child, caching):
    """A file system that has no O_DIRECT: RWF_DONTCACHE where the kernel has it, else POSIX_FADV_DONTNEED after use."""
    if caching is base.Caching.UNCACHED and not knows_dont_cache(cold):
        pytest.skip("a kernel or a file system without RWF_DONTCACHE")
    pool = make_pool(256 * PAGE)
    child(use_without, pool.name, str(cold), caching is base.Caching.UNCACHED, caching).result()
    pool.reap()
    assert pool.check() == []


@pytest.mark.kernel
def test_a_file_on_a_tmpfs_is_in_the_page_cache_anyway(pool):
    path = write_file(SHM / f"{new_name()}-file", 8)
    try:
        space = pool.open_file(path)
        assert np.array_equal(space.read_many(range(8)), np.array([stamp(n) for n in range(8)]))
        assert space.stats().cache == "kernel"
    finally:
        path.unlink()


def test_a_cache_that_there_is_not_is_refused(pool, cold):
    with pytest.raises(ValueError, match="'pool' or 'kernel'"):
        pool.open_file(cold, cache="none")


def limit_files(size_bytes: int) -> None:
    """Lets no file of this process grow beyond this size."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, resource.RLIM_INFINITY))


def test_a_short_write_names_the_reason_with_o_direct_too(make_pool, cold):
    """What is left of a write that a limit cut short is no whole block: it is written through the page cache, and raises its reason."""
    pool = make_pool(256 * PAGE)
    space = pool.open_file(cold, "r+")

    def limited() -> None:
        limit_files(PAGES * PAGE + 700)
        for _ in range(2):
            with space.append() as page:
                page[:] = 7
        with pytest.raises(bp.errors.StoreError, match="File too large"):
            space.flush()

    assert in_child(limited) == "None"
    assert cold.stat().st_size == PAGES * PAGE
    space.flush()
    assert cold.stat().st_size == (PAGES + 2) * PAGE
    pool.reap()
    assert pool.check() == []


@pytest.mark.kernel
def test_many_runs_are_written_together(make_pool, cold):
    """Each run of dirty pages was one write, which the device ended before the next one began."""
    pool = make_pool(1024 * PAGE)
    space = pool.open_file(cold, "r+")
    dirty = [*range(0, PAGES, 7), *range(701, 800)]
    fill(space, dirty, version=2)
    syncs = sum(pool.stats().latencies["sync"].counts)
    assert space.flush() == len(set(dirty))
    assert sum(pool.stats().latencies["sync"].counts) == syncs + 1
    space.drop()
    image = np.fromfile(cold, np.uint8).reshape(PAGES, PAGE)
    assert all(np.array_equal(image[n], stamp(n, version=2 if n in set(dirty) else 0)) for n in range(PAGES))
    assert cold.stat().st_size == PAGES * PAGE
    assert pool.check() == []


def test_one_of_many_runs_that_cannot_be_written_raises_its_reason(make_pool, cold):
    """The file may not grow any more: pages beyond its limit remain dirty, the error has the reason, and a later flush writes
    them."""
    pool = make_pool(1024 * PAGE)
    space = pool.open_file(cold, "r+")
    fill(space, range(0, PAGES, 100), version=3)
    with space.append() as page:
        page[:] = 9

    def limited() -> None:
        limit_files(PAGES * PAGE)
        with pytest.raises(bp.errors.StoreError, match="File too large"):
            space.flush()

    assert in_child(limited) == "None"
    pool.reap()
    assert space.stats().dirty > 0
    space.flush()
    assert space.stats().dirty == 0
    assert cold.stat().st_size == (PAGES + 1) * PAGE
    assert pool.check() == []
