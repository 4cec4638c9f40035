"""A small part of the lab: the oldest kernel and the newest, the doctor and some tests in them."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lab.guest import Clock, Guest, Machine, processor_time
from lab.images import KERNELS, NEEDS, Images
from tests.conftest import ROOT, WAIT

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


def test_the_clock_of_a_guest_leaves_out_its_waits_for_a_processor() -> None:
    """Limits were in the time of the host: with a tenth of a processor a guest came to them before it had done its work, and
    cells of the table were red for the load of the host. Here three processes share one processor: each gets a third."""
    one = min(os.sched_getaffinity(0))
    spin = [sys.executable, "-c", f"import os; os.sched_setaffinity(0, [{one}]); print(flush=True)\nwhile True: pass"]
    spinning = [subprocess.Popen(spin, stdout=subprocess.PIPE) for _ in range(3)]
    try:
        for process in spinning:
            assert process.stdout is not None
            process.stdout.readline()
        clock, began = Clock(spinning[0].pid), processor_time(spinning[0].pid)
        clock.sleep(1.0)
        used = processor_time(spinning[0].pid) - began
    finally:
        for process in spinning:
            process.kill()
            process.communicate()
    assert used > 0.5, f"the process had a processor for {used} s only of {clock.seconds:.2f} s of its clock"


def test_the_clock_of_an_idle_guest_is_that_of_the_host() -> None:
    """A guest that waits for ever uses no processor: a limit in its processor time would never come."""
    with subprocess.Popen(["sleep", "600"]) as idle:
        clock, began = Clock(idle.pid), time.monotonic()
        clock.sleep(0.5)
        idle.kill()
    assert time.monotonic() - began < WAIT
    assert clock.seconds >= 0.5


@pytest.mark.parametrize(("kernel", "counted", "want"), [("6.1", True, "1"), ("6.12", True, "2"), ("6.1", False, "2")])
def test_an_old_kernel_has_one_processor_where_instructions_are_counted(kernel: str, counted: bool, want: str) -> None:
    """Linux 6.1 polled for its second processor without giving it a turn, and every guest that counts instructions hung there."""
    guest = object.__new__(Guest)
    guest.kernel, guest.images, guest.machine = KERNELS[kernel], Images(*map(Path, "kirp")), Machine(counted=counted)
    guest.place, guest.console = Path("place"), Path("console")
    command = guest._command()
    assert command[command.index("-smp") + 1] == want
