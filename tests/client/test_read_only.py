"""A pool attached with mode="r" reads, and changes nothing."""

import pickle

import numpy as np
import pytest

import bufferpool as bp

PAGE = 4096


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "data"
    path.write_bytes(b"".join(bytes([n]) * PAGE for n in range(40)))
    return path


@pytest.fixture
def pool(make_pool, file):
    pool = make_pool(16 * PAGE, page_size=PAGE)
    pool.open_file(file, "r+")
    return pool


def test_it_reads_files_and_what_others_publish(pool, file):
    with bp.Pool.attach(pool.name, mode="r") as reader:
        table = reader.open_file(file)
        assert [int(table[n][7]) for n in range(40)] == list(range(40))
        assert np.array_equal(table.read_many([3, 1])[:, 0], [3, 1])
        with pool.space("data", "r+").write(5) as page:
            page[:] = 99
        assert table[5][0] == 99
        assert len(list(table.scan(0, 10))) == 10
        assert reader.check() == []


def test_it_changes_no_page_and_no_setting(pool, file):
    work = pool.open_scratch("work", 4)
    with work.write(0) as page:
        page[:] = 7
    before = pool.stats()
    with bp.Pool.attach(pool.name, mode="r") as reader:
        table, seen = reader.open_file(file), reader.space("work")
        assert seen[0][0] == 7
        for attempt in (
            lambda: reader.open_file(file, "r+"),
            lambda: reader.open_scratch("mine", 4),
            lambda: reader.resize(8 * PAGE),
            lambda: reader.trim(),
            lambda: table.drop(),
            lambda: table.remove(),
            lambda: setattr(reader, "durable_lsn", 5),
            reader.unlink,
            reader.flush,
            table.flush,
        ):
            with pytest.raises(bp.PoolReadOnly, match=r"mode='r\+'"):
                attempt()
        for space in (table, seen):
            with pytest.raises(bp.SpaceReadOnly):
                space.write(0)
            with pytest.raises(bp.SpaceReadOnly):
                space.append()
    after = pool.stats()
    assert (after.publishes, after.budget_bytes, after.reclaimed_bytes) == (
        before.publishes,
        before.budget_bytes,
        before.reclaimed_bytes,
    )


def test_its_flush_writes_no_file(pool, file):
    """A pool that was attached for reading wrote the dirty pages of the other processes to their file."""
    table = pool.open_file(file, "r+")
    with table.write(5) as page:
        page[:] = 99
    with bp.Pool.attach(pool.name, mode="r") as reader:
        with pytest.raises(bp.PoolReadOnly, match="write pages"):
            reader.flush()
        assert file.read_bytes()[5 * PAGE] == 5
        assert pool.stats().frames.dirty == 1
    assert pool.flush() == 1


def test_it_stays_read_only_through_pickle(pool, file):
    with bp.Pool.attach(pool.name, mode="r") as reader:
        again, table = pickle.loads(pickle.dumps((reader, reader.open_file(file))))
        assert table[3][0] == 3
        with pytest.raises(bp.PoolReadOnly):
            again.resize(8 * PAGE)
        with pytest.raises(bp.SpaceReadOnly):
            table.write(3)
        again.close()


def test_another_mode_is_refused(pool):
    with pytest.raises(ValueError, match="'r' or 'r\\+'"):
        bp.Pool.attach(pool.name, mode="w")
