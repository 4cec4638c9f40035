"""What a pool outlives: its handles (pickled), its processes, its files, its name."""

import os
import pickle
import pickletools
import time
from pathlib import Path

import numpy as np
import pytest

import bufferpool as bp
from bufferpool.errors import (
    FileChanged,
    PoolClosed,
    SegmentNotFound,
    SegmentReplaced,
    SpaceRemoved,
)
from tests.conftest import PAGE, SHM, remove, stamp, write_file

# ---- pickling ------------------------------------------------------------------------


def _page_of(space, n):
    return bytes(space[n]), space.pool.stats().clients, len(space)


def _pool_stats(pool):
    attached_before = pool.client.attached is not None
    return attached_before, pool.page_size, pool.stats().clients


def test_a_pickled_pool_attaches_when_first_used(pool, child):
    assert child(_pool_stats, pool).result() == (False, PAGE, 2)


@pytest.mark.parametrize("kind", ["file", "scratch"])
def test_a_pickled_space_attaches_when_first_used(pool, child, data_file, kind):
    if kind == "file":
        space = pool.open_file(data_file(10), "r+")
    else:
        space = pool.open_scratch("work", 10)
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
        data = pickle.dumps((pool, pool.open_scratch("work", 4)))
        pool.unlink()
    again, space = pickle.loads(data)
    assert again.name == pool_name
    with pytest.raises(SegmentNotFound):
        again.stats()
    with pytest.raises(SegmentNotFound):
        len(space)


def test_a_pickled_pool_does_not_take_another_of_the_same_name(pool_name):
    with bp.Pool.create(pool_name, 64 * PAGE, page_size=PAGE) as pool:
        data = pickle.dumps((pool, pool.open_scratch("work", 4)))
        pool.unlink()
    with bp.Pool.create(pool_name, 64 * PAGE, page_size=PAGE) as pool:
        again, space = pickle.loads(data)
        for use in (again.stats, lambda: space[0], again.check):
            with pytest.raises(SegmentReplaced, match="another one created"):
                use()
        assert pool.stats().clients == 1
        assert pool.stats().spaces == []


def test_pickling_a_pool_that_was_never_used_here_does_not_attach_it(pool):
    """A copy that was only passed on took a client slot when it was pickled once more."""
    again = pickle.loads(pickle.dumps(pickle.loads(pickle.dumps(pool))))
    assert again.client.attached is None
    assert pool.stats().clients == 1


def test_a_closed_pool_does_not_pickle(pool):
    pool.close()
    with pytest.raises(PoolClosed):
        pickle.dumps(pool)


def test_a_pickled_handle_of_a_removed_space_does_not_make_it_anew(pool):
    space = pool.open_scratch("work", 4)
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
    _read_all(pool.name, path, "r+")  # entries reserved for growth, in either mode
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
    assert pool.stats().frames.dirty == 1
    frames = pool.frames()
    frame = frames[frames["dirty"]]["frame"][0]
    assert bytes(pool.data[frame]) == stamp(7, version=9).tobytes()
    assert path.read_bytes()[:8] == stamp(0, version=3)[:8].tobytes()


def test_after_file_changed_the_pages_can_be_given_up_as_the_message_says(pool, data_file):
    path = data_file(10)
    space = pool.open_file(path, "r+")
    with space.write(7) as page:
        page[:] = stamp(7, version=9)
    _change(path, 10, 3)
    with pytest.raises(FileChanged, match=r"pool\.discard"):
        pool.open_file(path, "r+")
    assert pool.discard(space.name) == 1
    assert bytes(pool.open_file(path, "r+")[7]) == stamp(7, version=3).tobytes()


def test_a_handle_that_is_open_while_its_file_is_replaced_raises(pool, attach, data_file):
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


def test_the_pickle_of_a_space_names_one_function(pool, data_file):
    """cloudpickle, which dask and Ray fall back to, calls Python code for each class and function that a pickle names: a space
    as an argument of a task cost 66 microseconds more than an int, and costs half of that."""
    for space in (pool.open_file(data_file(4)), pool.open_scratch("work", 4, lifetime="pool")):
        ops = [op.name for op, *_ in pickletools.genops(pickle.dumps(space, 5))]
        assert ops.count("STACK_GLOBAL") == 1
    own, copy = pickle.loads(pickle.dumps((pool, space)))
    assert copy.pool is own


def test_copies_of_one_pickle_are_independent(pool, data_file):
    """Copies are made of one template: what happens to one of them must not happen to the others."""
    table = pool.open_file(data_file(4), "r+")
    packed = pickle.dumps(table)
    one, two = pickle.loads(packed), pickle.loads(packed)
    assert one.pool is not two.pool
    assert np.array_equal(one[1], stamp(1))
    one.pool.close()
    assert np.array_equal(two[1], stamp(1))
    with two.write(2) as page:
        page[:] = stamp(2, version=1)
    assert np.array_equal(pickle.loads(packed)[2], stamp(2, version=1))
    table.remove(discard=True)
    again = pool.open_file(table.path, "r+")
    with pytest.raises(SpaceRemoved):
        two[1]
    assert np.array_equal(pickle.loads(pickle.dumps(again))[1], stamp(1))
    assert pickle.dumps(again) != packed
