"""The segment's life: made, found, trusted, removed."""

import os
import stat

import numpy as np
import pytest

import bufferpool as bp
from bufferpool.errors import (
    NotTmpfs,
    PoolClosed,
    SegmentError,
    SegmentExists,
    SegmentNotFound,
    SegmentRefused,
    TooManyClients,
)
from tests.conftest import PAGE, SHM, WAIT, stamp
from tests.support.children import on_small_tmpfs
from tests.support.rights import needs_another_user

# ---- create, attach, open, close, unlink ---------------------------------------------


@pytest.mark.kernel
def test_a_created_pool_is_a_sparse_file_of_mode_0600(make_pool):
    pool = make_pool("512MiB", page_size=8192, extent_size="256KiB")
    about = os.stat(SHM / pool.name)
    assert stat.S_ISREG(about.st_mode)
    assert stat.S_IMODE(about.st_mode) == 0o600
    assert about.st_uid == os.geteuid()
    assert about.st_size > 512 << 20
    assert about.st_blocks * 512 < 32 << 20
    assert (pool.page_size, pool.max_frames, pool.budget_frames) == (8192, 65536, 65536)


@pytest.mark.kernel
def test_the_mode_can_be_chosen_whatever_the_umask(make_pool):
    before = os.umask(0o077)
    try:
        pool = make_pool(permissions=0o660)
    finally:
        os.umask(before)
    assert stat.S_IMODE(os.stat(pool.path).st_mode) == 0o660


@pytest.mark.kernel
def test_an_attached_pool_sees_what_the_creator_wrote(pool, attach):
    work = pool.open_scratch("work", 4)
    with work.write(2) as page:
        page[:] = stamp(2)
    other = attach(pool)
    assert other.page_size == PAGE
    assert other.stats().clients == 2
    assert np.array_equal(other.space("work")[2], stamp(2))


def test_creating_a_name_twice_is_refused_and_changes_nothing(pool):
    before = os.stat(pool.path)
    with pytest.raises(SegmentExists, match="attach"):
        bp.Pool.create(pool.name, 64 * PAGE, page_size=PAGE)
    after = os.stat(pool.path)
    assert (before.st_ino, before.st_size) == (after.st_ino, after.st_size)
    assert isinstance(SegmentExists(""), FileExistsError)


def test_attaching_to_nothing_says_how_to_get_one(pool_name):
    with pytest.raises(SegmentNotFound, match=r"Pool\.open\(\) creates one"):
        bp.Pool.attach(pool_name)
    with pytest.raises(FileNotFoundError):
        bp.Pool.attach(pool_name)


def test_open_creates_and_then_attaches(pool_name):
    with bp.Pool.open(pool_name, 64 * PAGE, page_size=PAGE) as first:
        with bp.Pool.open(pool_name) as second:
            assert second.max_frames == first.max_frames
            assert second.client.known_uuid == first.client.known_uuid
            assert second.check() == []
        first.unlink()


def test_open_refuses_another_page_size_and_leaves_no_client_behind(pool):
    with pytest.raises(ValueError, match="page_size is 4096, not 8192"):
        bp.Pool.open(pool.name, "1MiB", page_size=8192)
    assert pool.stats().clients == 1


def test_a_pool_is_a_context_manager_that_detaches(pool):
    with bp.Pool.attach(pool.name) as other:
        assert pool.stats().clients == 2
    assert pool.stats().clients == 1
    with pytest.raises(PoolClosed):
        other.stats()


def test_close_twice_is_fine(pool):
    pool.close()
    pool.close()
    assert "closed" in repr(pool)


def test_close_is_refused_while_arrays_look_at_pages(pool):
    page = pool.open_scratch("work", 4)[1]
    tail = page[8:]
    del page
    with pytest.raises(BufferError, match="arrays"):
        pool.close()
    assert tail[0] == 0
    assert pool.stats().clients == 1
    del tail
    pool.close()


def test_leaving_a_block_by_an_exception_is_not_masked_by_live_arrays(pool):
    page = pool.open_scratch("work", 4)[1]
    with pytest.raises(KeyError, match="mine"), pool:
        raise KeyError("mine")
    assert page[0] == 0


@pytest.mark.kernel
def test_an_unlinked_pool_keeps_working_for_those_attached(make_pool, attach):
    pool = make_pool()
    other = attach(pool)
    work = pool.open_scratch("work", 8)
    pool.unlink()
    assert not os.path.exists(pool.path)
    with work.write(3) as page:
        page[:] = 9
    assert other.space("work")[3][0] == 9
    assert pool.check() == []
    with pytest.raises(SegmentNotFound):
        bp.Pool.attach(pool.name)
    with pytest.raises(SegmentNotFound):
        pool.unlink()


def test_a_closed_pool_can_still_be_unlinked(pool):
    pool.close()
    pool.unlink()
    assert not os.path.exists(pool.path)


@pytest.mark.kernel
def test_client_slots_are_limited_and_come_back(make_pool):
    pool = make_pool(max_clients=3)
    others = [bp.Pool.attach(pool.name) for _ in range(2)]
    with pytest.raises(TooManyClients, match="max_clients"):
        bp.Pool.attach(pool.name)
    assert {client.pid for client in pool.clients()} == {os.getpid()}
    assert all(client.alive for client in pool.clients())
    for other in others:
        other.close()
    bp.Pool.attach(pool.name).close()
    assert pool.stats().clients == 1


def test_a_thousand_attaches_leave_nothing(pool):
    descriptors = len(os.listdir("/proc/self/fd"))
    memory = os.stat(pool.path).st_blocks
    for _ in range(1000):
        bp.Pool.attach(pool.name).close()
    assert pool.stats().clients == 1
    assert len(os.listdir("/proc/self/fd")) == descriptors
    assert os.stat(pool.path).st_blocks == memory


def _open_at_once(name, barrier):
    barrier.wait(WAIT)
    pool = bp.Pool.open(name, 64 * PAGE, page_size=PAGE, max_clients=16)
    work = pool.open_scratch("work", 16)
    with work.write(os.getpid() % 16) as page:
        page[:8] = 1
    barrier.wait(WAIT)
    result = pool.client.known_uuid, pool.stats().clients, len(pool.stats().spaces)
    barrier.wait(WAIT)
    pool.close()
    return result


@pytest.mark.kernel
def test_open_by_many_processes_at_once_makes_one_segment(pool_name, child, spawn):
    n = 6
    for _ in range(3):
        barrier = spawn.Barrier(n)
        results = [c.result() for c in [child(_open_at_once, pool_name, barrier) for _ in range(n)]]
        assert len({uuid for uuid, _, _ in results}) == 1
        assert {(clients, spaces) for _, clients, spaces in results} == {(n, 1)}
        with bp.Pool.attach(pool_name) as pool:
            assert pool.stats().clients == 1
            assert pool.check() == []
            pool.unlink()


# ---- where it may live -----------------------------------------------------------


@pytest.mark.kernel
def test_an_ordinary_directory_is_refused(tmp_path):
    here = os.statvfs(tmp_path)
    with pytest.raises(NotTmpfs, match="tmpfs"):
        bp.Pool.create("x", 64 * PAGE, page_size=PAGE, directory=tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert here.f_bsize == os.statvfs(tmp_path).f_bsize


@pytest.mark.kernel
def test_a_segment_copied_to_a_disk_is_refused(pool, tmp_path):
    copy = tmp_path / "copy"
    with open(pool.path, "rb") as source, open(copy, "wb") as target:
        os.sendfile(target.fileno(), source.fileno(), 0, 1 << 16)
        os.truncate(copy, os.stat(pool.path).st_size)
    with pytest.raises(NotTmpfs):
        bp.Pool.attach("copy", directory=tmp_path)


def test_a_directory_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(SegmentError, match="nowhere"):
        bp.Pool.create("x", 64 * PAGE, directory=tmp_path / "nowhere")


_ELSEWHERE = """
import os, sys, bufferpool as bp
pool = bp.Pool.create("here", 64 * 4096, page_size=4096, directory=sys.argv[1])
with pool.open_scratch("work", 8).write(1) as page:
    page[:] = 7
other = bp.Pool.attach("here", directory=sys.argv[1])
print(other.space("work")[1][0], os.path.exists(os.path.join(sys.argv[1], "here")), pool.check())
other.close()
with bp.Pool.open("here", 64 * 4096, page_size=4096, directory=sys.argv[1]) as again:
    print(again.client.known_uuid == pool.client.known_uuid)
pool.unlink()
print(os.listdir(sys.argv[1]), os.path.exists("/dev/shm/here"))
"""


@pytest.mark.kernel
def test_another_tmpfs_mount_works(tmp_path):
    assert on_small_tmpfs(_ELSEWHERE, tmp_path, "64m").splitlines() == ["7 True []", "True", "[] False"]


# ---- what is not trusted -----------------------------------------------------------


@pytest.mark.kernel
def test_a_symbolic_link_under_the_name_is_not_followed(pool, pool_name):
    os.symlink(pool.path, SHM / pool_name)
    with pytest.raises(SegmentRefused, match="regular file"):
        bp.Pool.attach(pool_name)
    with pytest.raises(SegmentRefused):
        bp.Pool.open(pool_name, 64 * PAGE, page_size=PAGE)
    with pytest.raises(SegmentExists):
        bp.Pool.create(pool_name, 64 * PAGE, page_size=PAGE)
    assert pool.stats().clients == 1


@pytest.mark.kernel
def test_a_dangling_symbolic_link_does_not_place_the_segment_elsewhere(pool_name, tmp_path):
    os.symlink(tmp_path / "elsewhere", SHM / pool_name)
    with pytest.raises(SegmentError):
        bp.Pool.open(pool_name, 64 * PAGE, page_size=PAGE)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.kernel
def test_a_fifo_under_the_name_is_refused_at_once(pool_name):
    os.mkfifo(SHM / pool_name)
    with pytest.raises(SegmentRefused, match="regular file"):
        bp.Pool.attach(pool_name)


@pytest.mark.kernel
def test_a_directory_under_the_name_is_refused(pool_name):
    os.mkdir(SHM / pool_name)
    with pytest.raises(SegmentRefused, match="regular file"):
        bp.Pool.attach(pool_name)


@pytest.mark.kernel
def test_the_owner_is_checked(pool):
    uid = os.geteuid()
    with pytest.raises(SegmentRefused, match=f"belongs to user {uid}, not {uid + 1}"):
        bp.Pool.attach(pool.name, trusted_uid=uid + 1)
    with pytest.raises(PermissionError):
        bp.Pool.attach(pool.name, trusted_uid=uid + 1)
    bp.Pool.attach(pool.name, trusted_uid=uid).close()
    assert pool.stats().clients == 1


@pytest.mark.kernel
@needs_another_user
def test_a_segment_of_another_user_is_refused_unless_that_user_is_named(pool):
    os.chown(pool.path, 12345, 12345)
    with pytest.raises(SegmentRefused, match="trusted_uid=12345"):
        bp.Pool.attach(pool.name)
    bp.Pool.attach(pool.name, trusted_uid=12345).close()
