"""A process is killed while a disk, which stands still, has its reads and writes: they are carried out later.

The kernel does not wait for an io_uring when its process ends. The reads of a dead process overwrote pages, where the frames were huge
pages, because such a page is not split while a read has it; its writes stored what the frames had by then: other pages.
"""

import os
import subprocess
import time

import numpy as np
import pytest

import bufferpool as bp
from bufferpool._core import has_io_uring
from bufferpool.stores.base import Caching
from tests.conftest import PAGE, WAIT, write_file
from tests.support.children import exit_code, forked
from tests.support.fuse_disk import HeldDisk
from tests.support.loop_disk import LoopDisk

PAGES = range(64, 64 + 15 * 40, 40)  # far from each other, and few: each is a transfer of its own
FRAMES = 512


@pytest.fixture
def server(tmp_path):
    with HeldDisk(tmp_path, 32 << 20) as made:
        yield made


@pytest.fixture
def data(server, tmp_path):
    """A file of 1,000 pages on a disk whose requests can be held up."""
    if not has_io_uring():
        pytest.skip("no io_uring here")
    disk = LoopDisk(tmp_path, "ext4")
    disk.image = server.file
    with disk:
        path = write_file(disk.place / "data", 1000)
        for written in (path, server.file):  # the disk's reads must come to the server
            with open(written, "rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        yield path
        server.let_go()


@pytest.fixture
def huge_pool(tmp_path):
    """A pool whose frames are parts of huge pages."""
    place = tmp_path / "huge"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m,huge=always", "tmpfs", place], check=False).returncode:
        pytest.skip("a tmpfs with huge pages cannot be mounted here")
    try:
        with bp.Pool.create("p", FRAMES * PAGE, page_size=PAGE, extent_size=4 * PAGE, directory=place) as pool:
            yield pool
            pool.unlink(discard=True)
    finally:
        subprocess.run(["umount", "-l", place], check=True)


def has_ended(pid: int, within_s: float) -> bool:
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            return True
        time.sleep(0.01)
    return False


def _read(space):
    space.read_many(PAGES)


def test_a_read_of_a_dead_process_does_not_reach_a_frame_that_another_page_has(huge_pool, data, server):
    space = huge_pool.open_file(data)
    if space._store.caching is not Caching.DIRECT:
        pytest.skip("no O_DIRECT here")
    assert space[0].size
    server.hold("read")
    pid = forked(_read, space)
    server.wait_until_held()
    time.sleep(0.2)  # the others come to the disk, too
    os.kill(pid, 9)
    assert has_ended(pid, WAIT)  # what was read to its own memory is not waited for
    huge_pool.reap()
    work = huge_pool.open_derived("work", FRAMES, lambda n, out: out.fill(n % 251))
    kept = [work[n] for n in range(FRAMES - 4)]
    assert server.let_go()
    assert exit_code(pid) == -9
    assert np.array_equal(space.read_many(range(700, 716))[3], space[703])  # the disk has done what came before
    assert [n for n, page in enumerate(kept) if not (page == n % 251).all()] == []
    del kept


def _write(pool, space):
    for n in PAGES:
        with space.write(n, fresh=True) as page:
            page[:] = 17
    pool.flush()


def test_a_process_does_not_end_while_a_disk_may_take_its_frames(pool, data, server):
    """It has the flush lock until then, so no other process takes the frames, or writes the pages, before it."""
    space = pool.open_file(data, "r+")
    if space._store.caching is not Caching.DIRECT:
        pytest.skip("no O_DIRECT here")
    assert space[0].size
    server.hold("write")
    pid = forked(_write, pool, space)
    server.wait_until_held()
    os.kill(pid, 9)
    assert not has_ended(pid, 2.0)
    pool.reap()
    assert pool.stats().clients == 2
    assert server.let_go()
    assert exit_code(pid) == -9
    pool.reap()
    assert pool.flush(timeout=WAIT) >= 0
    image = np.fromfile(data, np.uint8).reshape(-1, PAGE)
    assert all((image[n] == 17).all() for n in PAGES)
