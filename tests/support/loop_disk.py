"""A file system of our own on a loop device: only root can mount one."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import WAIT


class LoopDisk:
    """A file system of 32 MiB at ``place``, that can be frozen; a test is skipped where it cannot be mounted."""

    def __init__(self, folder: Path, kind: str, *options: str) -> None:
        self.image, self.place = folder / "disk.img", folder / "disk"
        self.kind, self.options = kind, options
        self.mounted = self.frozen = False

    def __enter__(self) -> "LoopDisk":
        for tool in (f"mkfs.{self.kind}", "fsfreeze", "mount", "umount"):
            if shutil.which(tool) is None:
                pytest.skip(f"no {tool} here")
        if os.geteuid() != 0:
            pytest.skip("only root mounts and freezes file systems")
        self.place.mkdir()
        with open(self.image, "wb") as file:
            file.truncate(32 << 20)
        self._run(f"mkfs.{self.kind}", "-q", *self.options, str(self.image))
        self._run("mount", "-o", "loop", str(self.image), str(self.place))
        self.mounted = True
        return self

    def _run(self, *command: str) -> None:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=WAIT)
        if done.returncode:
            pytest.skip(f"{command[0]} does not work here: {done.stderr.strip()}")

    def freeze(self) -> None:
        self._run("fsfreeze", "-f", str(self.place))
        self.frozen = True

    def thaw(self) -> None:
        if self.frozen:
            subprocess.run(["fsfreeze", "-u", str(self.place)], check=True, timeout=WAIT)
            self.frozen = False

    def __exit__(self, *_: object) -> None:
        self.thaw()
        if self.mounted:
            subprocess.run(["umount", "-l", str(self.place)], check=True, timeout=WAIT)
