"""Reference cycles that lead through the core are collected: a closed pool leaves no descriptor open."""

import gc
import os
import weakref
from pathlib import Path

import numpy as np
import pytest

import bufferpool as bp
from tests.conftest import PAGE, new_name, stamp, write_file

ROUNDS = 50


def descriptors() -> int:
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


class Engine:
    """An engine whose space has a function of its own for damaged pages: engine, space, store, function, engine."""

    def __init__(self, path: Path, checksum: bool) -> None:
        self.pool = bp.Pool.create(new_name(), 64 * PAGE, page_size=PAGE)
        repair = self.repair if checksum else None
        self.space = self.pool.open_file(path, "r+", checksum=checksum, repair=repair)
        self.space.engine = self

    def repair(self, page_no: int, image: np.ndarray) -> None:
        return None

    def close(self) -> None:
        self.pool.unlink(discard=True)
        self.pool.close()


@pytest.mark.parametrize("checksum", [False, True], ids=["plain", "with repair"])
def test_an_engine_that_its_store_leads_back_to_gives_its_descriptors_back(tmp_path, checksum):
    """Each round left a descriptor of the file: the space's handle held its store where the collector did not look."""
    if checksum:
        pytest.importorskip("xxhash")
    path = write_file(tmp_path / "table", 0 if checksum else 4)
    before, gone = descriptors(), []
    for _ in range(ROUNDS):
        engine = Engine(path, checksum)
        if not checksum:
            assert np.array_equal(engine.space[1], stamp(1))
        engine.close()
        gone.append(weakref.ref(engine.space))
        del engine
    assert descriptors() <= before
    assert not any(ref() for ref in gone)


def test_a_pool_that_was_never_closed_is_collected_with_its_repair(tmp_path):
    pytest.importorskip("xxhash")
    path = write_file(tmp_path / "table", 0)
    pool = bp.Pool.create(new_name(), 64 * PAGE, page_size=PAGE)

    def once() -> None:
        other = bp.Pool.attach(pool.name)
        other.open_file(path, "r+", checksum=True, repair=lambda page_no, image: other and None)

    before = descriptors()
    for _ in range(ROUNDS):
        once()
        gc.collect()
    assert descriptors() <= before
    assert pool.stats().clients == 1
    assert pool.check() == []
    pool.unlink()
    pool.close()


def test_the_collector_leaves_what_is_in_use(tmp_path):
    """A page, and a write under way, keep their space whole while the collector runs."""
    pool = bp.Pool.create(new_name(), 64 * PAGE, page_size=PAGE)
    space = pool.open_file(write_file(tmp_path / "table", 8), "r+")
    space.self = space
    write, pin = space.write(3), space.pin(2)
    del space
    with write as page:
        gc.collect()
        page[:] = stamp(9)
    assert np.array_equal(pin.page, stamp(2))
    del pin, write
    gc.collect()
    assert np.array_equal(pool.space("table")[3], stamp(9))
    assert pool.check() == []
    pool.unlink(discard=True)
    pool.close()
