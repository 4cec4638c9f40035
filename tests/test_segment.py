"""The segment's life: made, found, trusted, pickled, outlived, removed."""

import os
import pickle
import stat
import struct
import time
from pathlib import Path

import numpy as np
import pytest

import bufferpool as bp
from bufferpool import _core
from bufferpool.errors import (
    FileChanged,
    LayoutMismatch,
    NotTmpfs,
    PoolClosed,
    SegmentCorrupt,
    SegmentError,
    SegmentExists,
    SegmentNotFound,
    SegmentRefused,
    SegmentReplaced,
    SpaceRemoved,
    TooManyClients,
)
from tests.conftest import PAGE, SHM, on_small_tmpfs, remove, stamp, write_file

# ---- create, attach, open, close, unlink ---------------------------------------------


def test_a_created_pool_is_a_sparse_file_of_mode_0600(make_pool):
    pool = make_pool("1GiB", page_size=8192, extent_size="256KiB")
    about = os.stat(SHM / pool.name)
    assert stat.S_ISREG(about.st_mode)
    assert stat.S_IMODE(about.st_mode) == 0o600
    assert about.st_uid == os.geteuid()
    assert about.st_size > 1 << 30
    assert about.st_blocks * 512 < 64 << 20
    assert (pool.page_size, pool.max_frames, pool.budget_frames) == (8192, 131072, 131072)


def test_the_mode_can_be_chosen_whatever_the_umask(make_pool):
    before = os.umask(0o077)
    try:
        pool = make_pool(mode=0o660)
    finally:
        os.umask(before)
    assert stat.S_IMODE(os.stat(pool.path).st_mode) == 0o660


def test_an_attached_pool_sees_what_the_creator_wrote(pool, attach):
    work = pool.scratch("work", 4)
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
    with pytest.raises(SegmentNotFound, match="create"):
        bp.Pool.attach(pool_name)
    with pytest.raises(FileNotFoundError):
        bp.Pool.attach(pool_name)


def test_open_creates_and_then_attaches(pool_name):
    with bp.Pool.open(pool_name, 64 * PAGE, page_size=PAGE) as first:
        with bp.Pool.open(pool_name, 8 * PAGE, page_size=PAGE) as second:
            assert second.max_frames == first.max_frames
            assert second._uuid == first._uuid
            assert second.check() == []
        first.unlink()


def test_open_refuses_another_page_size_and_leaves_no_client_behind(pool):
    with pytest.raises(ValueError, match="pages of 4096 bytes, not 8192"):
        bp.Pool.open(pool.name, "1MiB", page_size=8192)
    assert pool.stats().clients == 1


def test_a_pool_is_a_context_manager_that_detaches(pool, attach):
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
    page = pool.scratch("work", 4)[1]
    tail = page[8:]
    del page
    with pytest.raises(BufferError, match="arrays"):
        pool.close()
    assert tail[0] == 0
    assert pool.stats().clients == 1
    del tail
    pool.close()


def test_leaving_a_block_by_an_exception_is_not_masked_by_live_arrays(pool):
    page = pool.scratch("work", 4)[1]
    with pytest.raises(KeyError, match="mine"), pool:
        raise KeyError("mine")
    assert page[0] == 0


def test_an_unlinked_pool_keeps_working_for_those_attached(make_pool, attach):
    pool = make_pool()
    other = attach(pool)
    work = pool.scratch("work", 8)
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
    barrier.wait(60)
    pool = bp.Pool.open(name, 64 * PAGE, page_size=PAGE, max_clients=16)
    work = pool.scratch("work", 16)
    with work.write(os.getpid() % 16) as page:
        page[:8] = 1
    barrier.wait(60)
    result = pool._uuid, pool.stats().clients, len(pool.stats().spaces)
    barrier.wait(60)
    pool.close()
    return result


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


def test_an_ordinary_directory_is_refused(tmp_path):
    here = os.statvfs(tmp_path)
    with pytest.raises(NotTmpfs, match="tmpfs"):
        bp.Pool.create("x", 64 * PAGE, page_size=PAGE, directory=tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert here.f_bsize == os.statvfs(tmp_path).f_bsize


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
with pool.scratch("work", 8).write(1) as page:
    page[:] = 7
other = bp.Pool.attach("here", directory=sys.argv[1])
print(other.space("work")[1][0], os.path.exists(os.path.join(sys.argv[1], "here")), pool.check())
other.close()
with bp.Pool.open("here", 64 * 4096, page_size=4096, directory=sys.argv[1]) as again:
    print(again._uuid == pool._uuid)
pool.unlink()
print(os.listdir(sys.argv[1]), os.path.exists("/dev/shm/here"))
"""


def test_another_tmpfs_mount_works(tmp_path):
    assert on_small_tmpfs(_ELSEWHERE, tmp_path, "64m").splitlines() == ["7 True []", "True", "[] False"]


# ---- what is not trusted -----------------------------------------------------------


def test_a_symbolic_link_under_the_name_is_not_followed(pool, pool_name):
    os.symlink(pool.path, SHM / pool_name)
    with pytest.raises(SegmentRefused, match="regular file"):
        bp.Pool.attach(pool_name)
    with pytest.raises(SegmentRefused):
        bp.Pool.open(pool_name, 64 * PAGE, page_size=PAGE)
    with pytest.raises(SegmentExists):
        bp.Pool.create(pool_name, 64 * PAGE, page_size=PAGE)
    assert pool.stats().clients == 1


def test_a_dangling_symbolic_link_does_not_place_the_segment_elsewhere(pool_name, tmp_path):
    os.symlink(tmp_path / "elsewhere", SHM / pool_name)
    with pytest.raises(SegmentError):
        bp.Pool.open(pool_name, 64 * PAGE, page_size=PAGE)
    assert list(tmp_path.iterdir()) == []


def test_a_fifo_under_the_name_is_refused_at_once(pool_name):
    os.mkfifo(SHM / pool_name)
    with pytest.raises(SegmentRefused, match="regular file"):
        bp.Pool.attach(pool_name)


def test_a_directory_under_the_name_is_refused(pool_name):
    os.mkdir(SHM / pool_name)
    with pytest.raises(SegmentRefused, match="regular file"):
        bp.Pool.attach(pool_name)


def test_the_owner_is_checked(pool):
    uid = os.geteuid()
    with pytest.raises(SegmentRefused, match=f"belongs to user {uid}, not {uid + 1}"):
        bp.Pool.attach(pool.name, owner=uid + 1)
    with pytest.raises(PermissionError):
        bp.Pool.attach(pool.name, owner=uid + 1)
    bp.Pool.attach(pool.name, owner=uid).close()
    assert pool.stats().clients == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give a file to another user")
def test_a_segment_of_another_user_is_refused_unless_that_user_is_named(pool):
    os.chown(pool.path, 12345, 12345)
    with pytest.raises(SegmentRefused, match="owner=12345"):
        bp.Pool.attach(pool.name)
    bp.Pool.attach(pool.name, owner=12345).close()


# ---- damaged segments -----------------------------------------------------------------


@pytest.fixture
def damaged(pools):
    """A segment that nobody is attached to, with bytes to be changed."""

    class Damaged:
        def __init__(self):
            pool = pools.create()
            pool.close()
            pools.unchecked.add(pool.name)
            self.name, self.path = pool.name, pool.path

        def read(self, at, n):
            with open(self.path, "rb") as file:
                return os.pread(file.fileno(), n, at)

        def write(self, at, data):
            with open(self.path, "r+b") as file:
                os.pwrite(file.fileno(), data, at)

    return Damaged()


# The start of struct Header (core/layout.h): magic, version, header_bytes, uuid, created_ns, geometry, its sum.
VERSION_AT, UUID_AT, GEOMETRY_AT = 8, 16, 40


def _fnv(data):
    """FNV-1a over words of 64 bits, as the core does it."""
    sum_ = 0xCBF29CE484222325
    for (word,) in struct.iter_unpack("<Q", data):
        sum_ = (sum_ ^ word) * 0x100000001B3 % 2**64
    return sum_


def geometry_end(damaged):
    """Where the geometry ends and its sum stands: found by the sum."""
    for end in range(GEOMETRY_AT + 32, 1024, 8):
        data = damaged.read(GEOMETRY_AT, end + 8 - GEOMETRY_AT)
        if _fnv(data[:-8]) == struct.unpack("<Q", data[-8:])[0]:
            return end
    pytest.fail("no geometry with its sum in the header")


def test_the_tests_know_where_the_geometry_is(damaged):
    page_size, _, _, extent_frames, max_frames, max_clients = struct.unpack("<6I", damaged.read(GEOMETRY_AT, 24))
    assert (page_size, extent_frames, max_frames, max_clients) == (PAGE, 4, 64, 64)
    assert struct.unpack("<I", damaged.read(VERSION_AT, 4)) == (_core.LAYOUT_VERSION,)
    assert geometry_end(damaged) > GEOMETRY_AT


def test_another_layout_version_says_which_is_needed(damaged):
    damaged.write(VERSION_AT, struct.pack("<I", _core.LAYOUT_VERSION + 1))
    with pytest.raises(
        LayoutMismatch, match=f"version {_core.LAYOUT_VERSION + 1}.*reads version {_core.LAYOUT_VERSION}"
    ):
        bp.Pool.attach(damaged.name)


@pytest.mark.parametrize("keep", [0, 1, 7, 100, 4096, 16384, "half", "all but a page", "all but a byte"])
def test_a_truncated_segment_is_refused(damaged, keep):
    size = os.stat(damaged.path).st_size
    keep = {"half": size // 2, "all but a page": size - PAGE, "all but a byte": size - 1}.get(keep, keep)
    os.truncate(damaged.path, keep)
    with pytest.raises(SegmentCorrupt, match="remove"):
        bp.Pool.attach(damaged.name)


def test_a_segment_with_bytes_added_is_refused(damaged):
    os.truncate(damaged.path, os.stat(damaged.path).st_size + PAGE)
    with pytest.raises(SegmentCorrupt):
        bp.Pool.attach(damaged.name)


@pytest.mark.parametrize("size", [1, 100, 16384, 1 << 20])
def test_a_file_of_random_bytes_is_refused(pool_name, size):
    (SHM / pool_name).write_bytes(np.random.default_rng(size).bytes(size))
    with pytest.raises(SegmentCorrupt, match=r"no|not"):
        bp.Pool.attach(pool_name)
    with pytest.raises(SegmentCorrupt):
        bp.Pool.open(pool_name, 64 * PAGE, page_size=PAGE)


def test_a_sparse_file_of_zeros_is_refused(pool_name):
    with open(SHM / pool_name, "wb") as file:
        file.truncate(1 << 30)
    with pytest.raises(SegmentCorrupt):
        bp.Pool.attach(pool_name)
    assert os.stat(SHM / pool_name).st_blocks == 0


def test_every_flipped_byte_of_magic_version_and_geometry_is_found(damaged):
    end = geometry_end(damaged) + 8
    good = damaged.read(0, end)
    for at in [*range(UUID_AT), *range(GEOMETRY_AT, end)]:
        for flip in (0x01, 0x80, 0xFF):
            damaged.write(at, bytes([good[at] ^ flip]))
            with pytest.raises((SegmentCorrupt, LayoutMismatch)):
                bp.Pool.attach(damaged.name)
        damaged.write(at, good[at : at + 1])
    with bp.Pool.attach(damaged.name) as pool:
        assert pool.check() == []


@pytest.mark.parametrize(
    ("at", "value"),
    [(0, 0), (0, 4097), (0, 2048), (3, 0), (3, 1000), (4, 0), (4, 1 << 31), (5, 0), (5, 60000), (6, 5), (7, 1)],
)
def test_a_geometry_with_a_right_sum_that_makes_no_sense_is_refused(damaged, at, value):
    geometry = bytearray(damaged.read(GEOMETRY_AT, geometry_end(damaged) - GEOMETRY_AT))
    struct.pack_into("<I", geometry, 4 * at, value)
    damaged.write(GEOMETRY_AT, geometry + struct.pack("<Q", _fnv(geometry)))
    with pytest.raises((SegmentCorrupt, LayoutMismatch)):
        bp.Pool.attach(damaged.name)


# ---- pickling ------------------------------------------------------------------------


def _page_of(space, n):
    return bytes(space[n]), space.pool.stats().clients, len(space)


def _pool_stats(pool):
    attached_before = pool._segment is not None
    return attached_before, pool.page_size, pool.stats().clients


def test_a_pickled_pool_attaches_when_first_used(pool, child):
    assert child(_pool_stats, pool).result() == (False, PAGE, 2)


@pytest.mark.parametrize("kind", ["file", "scratch"])
def test_a_pickled_space_attaches_when_first_used(pool, child, data_file, kind):
    if kind == "file":
        space = pool.open_file(data_file(10), "r+")
    else:
        space = pool.scratch("work", 10)
        with space.write(5) as page:
            page[:] = stamp(5)
    assert child(_page_of, space, 5).result() == (stamp(5).tobytes(), 2, 10)


def test_a_pickled_space_keeps_its_dtype(pool, data_file):
    space = pool.open_file(data_file(4), dtype="<u8")
    again = pickle.loads(pickle.dumps(space))
    assert again[3].dtype == np.dtype("<u8")
    assert np.array_equal(again[3], space[3])
    again.pool.close()


def test_unpickling_touches_nothing(pool_name):
    with bp.Pool.create(pool_name, 64 * PAGE, page_size=PAGE) as pool:
        data = pickle.dumps((pool, pool.scratch("work", 4)))
        pool.unlink()
    again, space = pickle.loads(data)
    assert again.name == pool_name
    with pytest.raises(SegmentNotFound):
        again.stats()
    with pytest.raises(SegmentNotFound):
        len(space)


def test_a_pickled_pool_does_not_take_another_of_the_same_name(pool_name):
    with bp.Pool.create(pool_name, 64 * PAGE, page_size=PAGE) as pool:
        data = pickle.dumps((pool, pool.scratch("work", 4)))
        pool.unlink()
    with bp.Pool.create(pool_name, 64 * PAGE, page_size=PAGE) as pool:
        again, space = pickle.loads(data)
        for use in (again.stats, lambda: space[0], again.check):
            with pytest.raises(SegmentReplaced, match="another pool"):
                use()
        assert pool.stats().clients == 1
        assert pool.stats().spaces == []


def test_a_closed_pool_does_not_pickle(pool):
    pool.close()
    with pytest.raises(PoolClosed):
        pickle.dumps(pool)


def test_a_pickled_handle_of_a_removed_space_does_not_make_it_anew(pool):
    space = pool.scratch("work", 4)
    data = pickle.dumps(space)
    space.remove()
    again = pickle.loads(data)
    with pytest.raises((SpaceRemoved, LookupError)):
        again[0]
    assert pool.stats().spaces == []


# ---- it outlives its processes -----------------------------------------------------


def _read_all(name, path, mode="r"):
    with bp.Pool.attach(name) as pool:
        space = pool.open_file(path, mode)
        pages = [bytes(space[n]) for n in range(len(space))]
        return pages, pool.stats().misses


def test_pages_stay_warm_without_any_process(make_pool, data_file, child):
    pool = make_pool()
    name, path = pool.name, data_file(20)
    pool.close()
    pages, misses = child(_read_all, name, str(path)).result()
    assert misses == 20
    assert pages == [stamp(n).tobytes() for n in range(20)]
    pages, misses = _read_all(name, path)
    assert misses == 20
    assert pages == [stamp(n).tobytes() for n in range(20)]


def test_dirty_pages_outlive_their_writer_and_can_be_flushed_by_another(make_pool, data_file, child):
    pool = make_pool()
    path = data_file(4)
    child(_write_one, pool.name, str(path)).result()
    assert path.read_bytes()[:PAGE] == stamp(0).tobytes()
    assert bytes(pool.open_file(path, "r+")[0]) == stamp(0, version=5).tobytes()
    assert pool.flush() == 1
    assert path.read_bytes()[:PAGE] == stamp(0, version=5).tobytes()


def _write_one(name, path):
    with bp.Pool.attach(name) as pool, pool.open_file(path, "r+").write(0) as page:
        page[:] = stamp(0, version=5)


def _touch(path: Path) -> None:
    """A new modification time for sure."""
    about = os.stat(path)
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns + 1_000_000_000))


def _change(path: Path, n_pages: int, version: int) -> None:
    write_file(path, n_pages, version=version)
    _touch(path)


def _replace(path: Path, n_pages: int, version: int) -> None:
    write_file(path.with_suffix(".new"), n_pages, version=version)
    os.replace(path.with_suffix(".new"), path)


@pytest.mark.parametrize(
    ("change", "n_pages"),
    [(_change, 10), (_change, 14), (_change, 6), (_change, 0), (_replace, 10), (_replace, 14), (_replace, 6)],
    ids=["same size", "grown", "truncated", "emptied", "replaced", "replaced and grown", "replaced and truncated"],
)
@pytest.mark.parametrize("mode", ["r", "r+"])
def test_a_file_that_somebody_else_changed_drops_its_stale_pages(pool, attach, data_file, change, n_pages, mode):
    path = data_file(10)
    _read_all(pool.name, path, "r+")  # room to grow, whatever the mode now
    change(path, n_pages, 3)
    other = attach(pool)
    space = other.open_file(path, mode)
    assert len(space) == n_pages
    for n in range(n_pages):
        assert bytes(space[n]) == stamp(n, version=3).tobytes()
    if n_pages < 10:
        with pytest.raises(IndexError):
            space[n_pages]


def test_an_unchanged_file_keeps_its_pages_after_a_flush_of_the_pool_itself(pool, data_file):
    path = data_file(10)
    with bp.Pool.attach(pool.name) as first:
        space = first.open_file(path, "r+")
        for n in range(10):
            with space.write(n) as page:
                page[:] = stamp(n, version=1)
        first.flush()
    before = pool.stats().misses
    space = pool.open_file(path, "r+")
    assert [bytes(space[n]) for n in range(10)] == [stamp(n, version=1).tobytes() for n in range(10)]
    assert pool.stats().misses == before


@pytest.mark.parametrize("change", [_change, _replace], ids=["changed", "replaced"])
@pytest.mark.parametrize("n_pages", [10, 12, 8])
def test_a_changed_file_with_dirty_pages_in_the_pool_is_an_error_that_loses_nothing(pool, data_file, change, n_pages):
    path = data_file(10)
    with bp.Pool.attach(pool.name) as first, first.open_file(path, "r+").write(7) as page:
        page[:] = stamp(7, version=9)
    change(path, n_pages, 3)
    with pytest.raises(FileChanged, match="1 dirty page"):
        pool.open_file(path, "r+")
    assert pool.stats().frames["dirty"] == 1
    frames = pool.frames()
    frame = frames[frames["dirty"]]["frame"][0]
    assert bytes(pool.data[frame]) == stamp(7, version=9).tobytes()
    assert path.read_bytes()[:8] == stamp(0, version=3)[:8].tobytes()


def test_after_file_changed_the_space_can_be_removed_as_the_message_says(pool, data_file):
    path = data_file(10)
    space = pool.open_file(path, "r+")
    with space.write(7) as page:
        page[:] = stamp(7, version=9)
    _change(path, 10, 3)
    with pytest.raises(FileChanged, match=r"remove\(discard=True\)"):
        pool.open_file(path, "r+")
    space.remove(discard=True)
    assert bytes(pool.open_file(path, "r+")[7]) == stamp(7, version=3).tobytes()


def test_a_handle_that_is_open_while_its_file_is_replaced_is_told(pool, attach, data_file):
    path = data_file(10)
    old = pool.open_file(path)
    page = old[3]
    _replace(path, 10, 3)
    new = attach(pool).open_file(path)
    assert bytes(new[3]) == stamp(3, version=3).tobytes()
    assert bytes(page) == stamp(3).tobytes()
    with pytest.raises(SpaceRemoved, match="open it again"):
        old[3]


def test_clients_say_who_is_attached_since_when(pool):
    (client,) = pool.clients()
    assert client.pid == os.getpid()
    assert client.alive
    assert abs(client.attached_at - time.time()) < 3600
    assert client.start_time == int(Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()[19])
    assert client.name == Path("/proc/self/comm").read_text().strip()
    assert client.pins == 0


def test_unlink_does_not_remove_another_pool_of_the_same_name(pool_name):
    old = bp.Pool.create(pool_name, 64 * PAGE, page_size=PAGE)
    remove(SHM / pool_name)
    with old, bp.Pool.create(pool_name, 64 * PAGE, page_size=PAGE):
        with pytest.raises((SegmentReplaced, SegmentNotFound)):
            old.unlink()
        assert (SHM / pool_name).exists()
