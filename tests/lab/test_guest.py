"""A small part of the lab: the oldest kernel and the newest, the doctor and some tests in them."""

import os
import shutil
import subprocess
import sys

import pytest

from lab.images import NEEDS
from tests.conftest import ROOT

MISSING = [tool for tool in NEEDS if not shutil.which(tool, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")]


@pytest.mark.soak
@pytest.mark.skipif(os.geteuid() != 0 or bool(MISSING), reason=f"the lab needs root, and {MISSING}")
@pytest.mark.parametrize("kernel", ["5.10", "6.12"])
def test_the_core_on_other_kernels(kernel: str) -> None:
    """Everything was seen on one kernel: features that another lacks have fallbacks that had never run."""
    checks = ["doctor", "features", "pins", "write", "cgroup: limits, nested"]
    command = [sys.executable, "-m", "lab", "--kernels", kernel, "--groups", "core", "cgroup", "--no-table", "--checks"]
    done = subprocess.run([*command, *checks], cwd=ROOT, capture_output=True, text=True, timeout=7200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(" passed ") == len(checks)
