"""A disk that stands still: a file system on a loop device, frozen by the kernel (fsfreeze)."""

import os
import shutil
import subprocess

import numpy as np
import pytest

from bufferpool.errors import WaitTimeout
from bufferpool.upkeep.steward import Settings
from tests.conftest import PAGE, WAIT, fill, stamp, wait_until, write_file
from tests.support.disks import dirty
from tests.support.hanging import in_time


class Disk:
    """An ext4 of its own, that can be frozen."""

    def __init__(self, tmp_path):
        self.image, self.place = tmp_path / "disk.img", tmp_path / "disk"
        self.mounted = self.frozen = False

    def mount(self):
        for tool in ("mkfs.ext4", "fsfreeze", "mount", "umount"):
            if shutil.which(tool) is None:
                pytest.skip(f"no {tool} here")
        if os.geteuid() != 0:
            pytest.skip("only root mounts and freezes file systems")
        self.place.mkdir()
        with open(self.image, "wb") as file:
            file.truncate(32 << 20)
        self._run("mkfs.ext4", "-q", "-F", str(self.image))
        self._run("mount", "-o", "loop", str(self.image), str(self.place))
        self.mounted = True

    def _run(self, *command):
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=WAIT)
        if done.returncode:
            pytest.skip(f"{command[0]} does not work here: {done.stderr.strip()}")

    def freeze(self):
        self._run("fsfreeze", "-f", str(self.place))
        self.frozen = True

    def thaw(self):
        if self.frozen:
            subprocess.run(["fsfreeze", "-u", str(self.place)], check=True, timeout=WAIT)
            self.frozen = False

    def end(self):
        self.thaw()
        if self.mounted:
            subprocess.run(["umount", "-l", str(self.place)], check=True, timeout=WAIT)


@pytest.fixture
def disk(tmp_path):
    made = Disk(tmp_path)
    try:
        made.mount()
        yield made
    finally:
        made.end()


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
