"""A disk that stands still: a file system on a loop device, frozen by the kernel (fsfreeze)."""

import numpy as np
import pytest

from bufferpool.errors import WaitTimeout
from bufferpool.upkeep.steward import Settings
from tests.conftest import PAGE, fill, stamp, wait_until, write_file
from tests.support.disks import dirty
from tests.support.hanging import in_time
from tests.support.loop_disk import LoopDisk


@pytest.fixture
def disk(tmp_path):
    with LoopDisk(tmp_path, "ext4") as made:
        yield made


def test_a_frozen_disk_holds_up_those_who_want_its_pages_and_nobody_else(disk, pool, data_file):
    """Writes to a frozen file system do not come back, and no signal ends them: nothing else may wait for them."""
    there = pool.open_file(write_file(disk.place / "there.db", 16), "r+")
    here = pool.open_file(data_file(200), "r+")
    fill(there, range(4), version=1)
    disk.freeze()
    try:
        leader = pool.start_steward(Settings(interval=0.02, flush_every=0.2, pressure=False))
        wait_until(
            lambda: any(r["flusher"] for r in pool.client.seg.spaces()), "a flush of the frozen file is under way"
        )
        in_time(fill, here, range(200), version=1)
        wait_until(lambda: dirty(pool) == 4, "what can be written is written")
        assert np.array_equal(in_time(there.__getitem__, 2), stamp(2, version=1))
        in_time(in_time(pool.open_scratch, "work", 4).remove, discard=True)
        with pytest.raises(WaitTimeout, match="there"):
            in_time(pool.flush, timeout=0.2)
        assert in_time(pool.trim, size=32 * PAGE) > 0
        in_time(pool.resize, 32 * PAGE)
        assert leader.alive
        in_time(pool.stop_steward)
    finally:
        disk.thaw()
    in_time(pool.flush)
    assert dirty(pool) == 0
    image = (disk.place / "there.db").read_bytes()
    assert all(image[n * PAGE : (n + 1) * PAGE] == stamp(n, version=1).tobytes() for n in range(4))
    wait_until(lambda: not pool.client.jobs.all(), "no flush is under way")
