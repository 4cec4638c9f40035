"""A disk that does not answer: a file system on a loop device, frozen by the kernel (fsfreeze)."""

import subprocess
import sys

import numpy as np
import pytest

from bufferpool.errors import WaitTimeout
from bufferpool.upkeep.steward import Settings
from tests.conftest import PAGE, WAIT, fill, stamp, wait_until, write_file
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


@pytest.mark.parametrize("command", ["flush", "resize"])
def test_a_command_that_gives_up_ends_while_the_disk_is_frozen(disk, pool, command):
    """`bufferpool flush --timeout S` said that it gave up, and did not end before the disk was back: the kernel had its writes. Its
    output remained open as long, and it counted as a client that died."""
    space = pool.open_file(write_file(disk.place / "orders.db", 32), "r+")
    fill(space, range(32), version=1)
    disk.freeze()
    try:
        more = [] if command == "flush" else [str(16 * PAGE)]
        argv = [sys.executable, "-m", "bufferpool", command, pool.name, *more, "--timeout", "0.5"]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=WAIT, check=False)
        assert done.returncode == 1, done.stderr
        assert dirty(pool) == 32
    finally:
        disk.thaw()
    wait_until(lambda: pool.reap() >= 0 and pool.stats().clients == 1, "the client of the command has ended")
    assert pool.stats().reaped == 0
    in_time(pool.flush)
    assert dirty(pool) == 0
