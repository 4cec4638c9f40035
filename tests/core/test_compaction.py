"""Compaction: pages move, what is pinned does not, and reclaimed bytes are counted by reason."""

import numpy as np

from tests.conftest import EXTENT, PAGE, fill, in_step, kernel_bytes, stamp, touch

PER_EXTENT = EXTENT // PAGE


def _scatter(table):
    """64 pages, of which one for each extent is kept: (pages that are kept, frame of each). The other frames are free."""
    touch(table, range(64))
    stay = [int(f["page_no"]) for f in table.pool.frames() if f["frame"] % PER_EXTENT == 1 and f["page_no"] >= 0]
    assert len(stay) == 64 // PER_EXTENT
    for n in set(range(64)) - set(stay):
        assert table._drop_range(n, 1) == 1  # freed, but not given back
    assert in_step(table.pool).frames.free == 64 - len(stay)
    return stay


def test_compaction_gathers_scattered_pages_into_few_extents(pool, data_file):
    table = pool.open_file(data_file(64), "r+")
    stay = _scatter(table)
    before = kernel_bytes(pool)
    given = pool.trim()
    assert given == 48 * PAGE
    assert before - kernel_bytes(pool) == given
    stats = in_step(pool)
    assert stats.compacted_pages == 12
    extents = pool.extents()[: 64 // PER_EXTENT]  # those that the pages were in; the segment has room for more
    assert np.count_nonzero(extents["live"] == PER_EXTENT) == 4
    assert np.count_nonzero(extents["hole"] == PER_EXTENT) == 12
    for n in stay:
        assert np.array_equal(table[n], stamp(n))
    assert pool.stats().misses == 64


def test_compaction_moves_dirty_pages_too_and_they_stay_dirty(pool, data_file):
    path = data_file(64)
    table = pool.open_file(path, "r+")
    stay = _scatter(table)
    fill(table, stay[::2], version=1)
    free = in_step(pool).frames.free
    assert pool.trim() == free * PAGE
    stats = in_step(pool)
    assert stats.compacted_pages > 0
    assert stats.frames.dirty == 8
    for i, n in enumerate(stay):
        assert np.array_equal(table[n], stamp(n, version=i % 2 == 0))
    assert pool.flush() == 8
    data = path.read_bytes()
    assert all(data[n * PAGE : (n + 1) * PAGE] == stamp(n, version=1).tobytes() for n in stay[::2])


def test_compaction_leaves_pinned_pages_where_they_are(pool, data_file):
    table = pool.open_file(data_file(64), "r+")
    stay = _scatter(table)
    kept = {n: table[n] for n in stay[::3]}
    where = {int(f["page_no"]): int(f["frame"]) for f in pool.frames() if f["pins"]}
    assert len(where) == len(kept) == 6
    before = kernel_bytes(pool)
    given = pool.trim()
    assert given == 48 * PAGE
    assert before - kernel_bytes(pool) == given
    in_step(pool)
    assert {int(f["page_no"]): int(f["frame"]) for f in pool.frames() if f["pins"]} == where
    for n in stay:
        assert np.array_equal(table[n], stamp(n))
    for n, page in kept.items():
        assert np.array_equal(page, stamp(n))
    assert pool.stats().misses == 64


def test_pinned_pages_do_not_move_and_keep_their_content(pool, data_file):
    table = pool.open_file(data_file(64), "r+")
    touch(table, range(64))
    kept = {n: table[n] for n in range(0, 64, 5)}
    frames = pool.frames()
    where = {int(f["page_no"]): int(f["frame"]) for f in frames if f["pins"]}
    before = kernel_bytes(pool)
    given = pool.trim("1GiB")
    assert given == (64 - len(kept)) * PAGE
    assert before - kernel_bytes(pool) == given
    frames = pool.frames()
    assert {int(f["page_no"]): int(f["frame"]) for f in frames if f["pins"]} == where
    for n, page in kept.items():
        assert np.array_equal(page, stamp(n))
    misses = pool.stats().misses
    for n in kept:
        assert np.shares_memory(table[n], kept[n])
    assert pool.stats().misses == misses
    in_step(pool)


def test_a_superseded_version_that_a_reader_keeps_survives_giving_back(pool, data_file):
    table = pool.open_file(data_file(64), "r+")
    old = table[3]
    fill(table, [3], version=1)
    pool.trim("1GiB")
    assert np.array_equal(old, stamp(3))
    assert np.array_equal(table[3], stamp(3, version=1))
    del old
    pool.trim("1GiB")
    assert in_step(pool).kernel_data_bytes == 0


def test_reclaimed_bytes_are_counted_by_reason(pool, data_file):
    table = pool.open_file(data_file(64))
    table.prefetch(range(64))
    given = {
        "drop": table.drop(0, 8),
        "trim": pool.trim(8 * PAGE),
        "budget": pool.resize(16 * PAGE),
        "idle": 0,
        "pressure": 0,
        "client_exit": 0,
    }
    assert given["drop"] == given["trim"] == 8 * PAGE
    assert given["budget"] == 32 * PAGE
    stats = in_step(pool)
    assert stats.reclaimed_bytes == given
    assert stats.reclaimed_total_bytes == 48 * PAGE
