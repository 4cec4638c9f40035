"""Pool.open: what is asked for, and the pool that is there already."""

import os
import warnings

import numpy as np
import pytest

import bufferpool as bp
from bufferpool.errors import PoolDiffers, PoolMismatch, PoolReadOnly, PoolTooLarge, SegmentNotFound
from tests.conftest import EXTENT, PAGE, stamp

ALL = {
    "capacity": 64 * PAGE, "page_size": PAGE, "min_capacity": 16 * PAGE, "max_capacity": 128 * PAGE, "extent_size": EXTENT,
    "max_clients": 8, "max_pages": 1 << 20, "room": 192 * PAGE, "permissions": 0o640,
}  # fmt: skip


@pytest.fixture
def opened(pools):
    pool = bp.Pool.open(pools.name(), **ALL)
    pools.pools.append(pool)
    return pool


def test_a_new_pool_has_what_was_asked_for(opened):
    stats = opened.stats()
    assert (stats.budget_bytes, stats.min_bytes, stats.max_bytes) == (64 * PAGE, 16 * PAGE, 128 * PAGE)
    assert os.stat(opened.path).st_mode & 0o7777 == 0o640
    assert (opened.client.geometry["max_clients"], opened.client.geometry["max_pages"]) == (8, 1 << 20)


def test_the_same_arguments_find_the_same_pool_without_a_word(opened):
    """Ten workers that start with one line of code: the first creates, the others attach."""
    for arguments in (ALL, {}, {"capacity": "256KiB"}, {"capacity": "auto"}, {"page_size": PAGE}):
        with bp.Pool.open(opened.name, **arguments) as other:
            assert other.client.known_uuid == opened.client.known_uuid


@pytest.mark.parametrize(
    ("what", "asked"),
    [
        ("page_size", 2 * PAGE),
        ("extent_size", 2 * EXTENT),
        ("max_clients", 9),
        ("max_pages", 1 << 21),
        ("max_capacity", 256 * PAGE),
        ("room", 256 * PAGE),
    ],
)
def test_what_is_fixed_at_creation_and_differs_is_an_error(opened, what, asked):
    """Another number of clients, or another upper bound, than the pool has was swallowed: TooManyClients came later."""
    with pytest.raises(PoolMismatch, match=rf"{what} is .*, not .*omit the .*bufferpool rm") as told:
        bp.Pool.open(opened.name, **{what: asked})
    assert told.value.differences == {what: (asked, ALL[what])}
    assert isinstance(told.value, ValueError)
    assert opened.stats().clients == 1


@pytest.mark.parametrize(
    ("what", "asked", "remedy"),
    [
        ("capacity", 32 * PAGE, "resize"),
        ("capacity", 192 * PAGE, "resize"),
        ("min_capacity", 8 * PAGE, "resize"),
        ("permissions", 0o600, "chmod"),
    ],
)
def test_what_can_be_changed_and_differs_is_a_warning(opened, what, asked, remedy):
    """The first creator's capacity won, and a worker that asked for another one never heard of it."""
    with pytest.warns(PoolDiffers, match=rf"{what} is .*, not .*{remedy}") as told:
        other = bp.Pool.open(opened.name, **{what: asked})
    assert told[0].filename == __file__
    other.close()
    assert opened.stats().budget_bytes == 64 * PAGE


@pytest.mark.parametrize(
    ("what", "asked", "remedy"),
    [
        ("capacity", 256 * PAGE, "room for was fixed at creation.*room="),
        ("min_capacity", 32 * PAGE, "create it with min_capacity="),
    ],
)
def test_resize_is_no_remedy_where_it_would_be_refused(opened, what, asked, remedy):
    """The warning said that pool.resize() changes it, and resize() raised ValueError."""
    with pytest.warns(PoolDiffers, match=f"{what} is .*, not .*{remedy}") as told:
        bp.Pool.open(opened.name, **{what: asked}).close()
    assert "resize" not in str(told[0].message)
    assert opened.check() == []


def test_all_that_differs_is_said_at_once(opened):
    with pytest.raises(PoolMismatch) as told:
        bp.Pool.open(opened.name, 32 * PAGE, max_clients=9, max_pages=1 << 21)
    assert set(told.value.differences) == {"capacity", "max_clients", "max_pages"}
    assert opened.stats().clients == 1


def test_a_warning_that_is_an_error_leaves_no_client_behind(opened):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(PoolDiffers):
            bp.Pool.open(opened.name, 32 * PAGE)
    assert opened.stats().clients == 1


def test_a_capacity_that_a_steward_has_moved_is_not_a_difference(opened):
    """What counts is the last size that a user asked for: a worker that starts anew gets no warning about the steward's
    changes."""
    opened.client.seg.set_budget(20)
    bp.Pool.open(opened.name, **ALL).close()
    opened.resize(32 * PAGE)
    bp.Pool.open(opened.name, 32 * PAGE).close()
    with pytest.warns(PoolDiffers, match="capacity"):
        bp.Pool.open(opened.name, 64 * PAGE).close()


def test_open_for_reading_creates_nothing(pool_name):
    with pytest.raises(SegmentNotFound, match="no pool"):
        bp.Pool.open(pool_name, 64 * PAGE, mode="r")
    assert not os.path.exists(f"/dev/shm/{pool_name}")


def test_open_for_reading_reads(opened, data_file):
    table = opened.open_file(data_file(4), "r+", name="table")
    with table.write(1) as page:
        page[:] = stamp(1, version=1)
    with bp.Pool.open(opened.name, mode="r") as reader:
        assert np.array_equal(reader.space("table")[1], stamp(1, version=1))
        with pytest.raises(PoolReadOnly):
            reader.resize(32 * PAGE)
        with pytest.raises(PoolReadOnly):
            reader.open_scratch("work", 4)


def test_a_capacity_that_the_tmpfs_cannot_hold_gives_a_warning(pool_name):
    """A pool of a terabyte was made without a word; it got SharedMemoryFull when the tmpfs was full."""
    for make in (bp.Pool.create, bp.Pool.open):
        with pytest.warns(PoolTooLarge, match=r"capacity of .*, and /dev/shm holds .*enlarge the tmpfs"):
            pool = make(pool_name, 2 * os.statvfs("/dev/shm").f_blocks * os.statvfs("/dev/shm").f_frsize)
        pool.unlink()
        pool.close()


def test_a_pool_whose_warning_is_an_error_is_not_left_behind(pool_name):
    """Under ``python -W error`` the call raised the warning, and left a pool that nobody had: the next try raised SegmentExists."""
    too_large = 2 * os.statvfs("/dev/shm").f_blocks * os.statvfs("/dev/shm").f_frsize
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for make in (bp.Pool.create, bp.Pool.open):
            with pytest.raises(PoolTooLarge):
                make(pool_name, too_large)
            assert not os.path.exists(f"/dev/shm/{pool_name}")
