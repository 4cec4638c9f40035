"""Damaged segments: each is refused with an error that says what is wrong."""

import os
import re
import struct

import numpy as np
import pytest

import bufferpool as bp
from bufferpool import _core
from bufferpool.errors import (
    LayoutMismatch,
    SegmentCorrupt,
)
from tests.conftest import PAGE, SHM


@pytest.fixture
def damaged(pools):
    """A segment that nobody is attached to, with bytes to be changed."""

    class Damaged:
        def __init__(self):
            pool = pools.create(room=64 * PAGE)
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


# The start of struct Header (core/layout/layout.h): magic, version, header_bytes, layout_sum, uuid, created_ns,
# geometry, its sum.
VERSION_AT, SUM_AT, UUID_AT, GEOMETRY_AT = 8, 16, 24, 48


def fnv(data):
    """FNV-1a over words of 64 bits, as the core does it."""
    sum_ = 0xCBF29CE484222325
    for (word,) in struct.iter_unpack("<Q", data):
        sum_ = (sum_ ^ word) * 0x100000001B3 % 2**64
    return sum_


def geometry_end(damaged):
    """Where the geometry ends and its sum stands: found by the sum."""
    for end in range(GEOMETRY_AT + 32, 1024, 8):
        data = damaged.read(GEOMETRY_AT, end + 8 - GEOMETRY_AT)
        if fnv(data[:-8]) == struct.unpack("<Q", data[-8:])[0]:
            return end
    pytest.fail("no geometry with its sum in the header")


def test_the_tests_know_where_the_geometry_is(damaged):
    page_size, _, _, extent_frames, max_frames, max_clients = struct.unpack("<6I", damaged.read(GEOMETRY_AT, 24))
    assert (page_size, extent_frames, max_frames, max_clients) == (PAGE, 4, 64, 256 + 16)  # 16 guests
    assert struct.unpack("<I", damaged.read(VERSION_AT, 4)) == (_core.LAYOUT_VERSION,)
    assert geometry_end(damaged) > GEOMETRY_AT


def test_another_layout_version_says_which_is_needed(damaged):
    damaged.write(VERSION_AT, struct.pack("<I", _core.LAYOUT_VERSION + 1))
    with pytest.raises(
        LayoutMismatch, match=f"version {_core.LAYOUT_VERSION + 1}.*reads version {_core.LAYOUT_VERSION}"
    ):
        bp.Pool.attach(damaged.name)


def test_another_build_with_the_same_version_is_named(damaged):
    """The layout changed within a version, and the message said: layout version 3, this library reads version 3."""
    damaged.write(SUM_AT, bytes(8))
    with pytest.raises(
        LayoutMismatch,
        match=r"by another build .* \(sum 0{16}, here [0-9a-f]{16}\); remove the segment \(bufferpool rm\)",
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
    [(0, 0), (0, 4097), (0, 2048), (3, 0), (3, 1000), (4, 0), (4, 1 << 31), (5, 0), (5, 60000), (6, 5), (7, 1 << 20)],
)
def test_a_geometry_with_a_right_sum_that_makes_no_sense_is_refused(damaged, at, value):
    geometry = bytearray(damaged.read(GEOMETRY_AT, geometry_end(damaged) - GEOMETRY_AT))
    struct.pack_into("<I", geometry, 4 * at, value)
    damaged.write(GEOMETRY_AT, geometry + struct.pack("<Q", fnv(geometry)))
    with pytest.raises((SegmentCorrupt, LayoutMismatch)):
        bp.Pool.attach(damaged.name)


def test_an_error_about_a_segment_names_it(damaged):
    """A service with several pools got "this is no bufferpool segment", and the message did not say which file it meant."""
    damaged.write(0, bytes(8))
    for use in (bp.Pool.attach, lambda name: bp.Pool.open(name, 64 * PAGE, page_size=PAGE), bp.Observer):
        with pytest.raises(SegmentCorrupt, match=rf"^{re.escape(str(damaged.path))}: this is no bufferpool segment"):
            use(damaged.name)
