"""Runs the lab, and writes its table to docs/lab.md. Ends with 1 if a check failed.

python -m lab                             all checks on all kernels
python -m lab --kernels 6.1 --groups core --checks doctor pins
python -m lab --jobs 1                    one guest at a time
python -m lab --list
"""

import argparse
import ctypes
import os
import resource
import shutil
import signal
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from lab import report
from lab.checks import GROUPS, Check
from lab.guest import Guest, GuestError, Machine
from lab.images import CACHE, KERNELS, Kernel, images, require_tools
from lab.uml import UserMode

PLANNED = {
    name: {k for g in GROUPS.values() if name in g.checks for k in g.kernels}
    for group in GROUPS.values()
    for name in group.checks
}
"""The checks, in the order of the rows of the table, with the kernels on which each runs."""


class Course:
    """Checks on one kernel and one machine. They share a guest. After a check that fails, the next checks get a new guest."""

    def __init__(self, kernel: Kernel, machine: Machine | None) -> None:
        self.kernel, self.machine = kernel, machine
        self.checks: list[tuple[str, str]] = []  # each check with its group
        self.guest: Any = None  # a Guest, or a UserMode

    def perform(self) -> bool:
        """Runs the checks; returns whether they passed."""
        images(self.kernel)  # make what is missing before the time of a check begins
        self.tree = report.tree()
        try:
            passed = [self.run(name, GROUPS[group].checks[name]) for group, name in self.checks]
            return all(passed)
        finally:
            self.close()

    def run(self, name: str, check: Check) -> bool:
        """Runs one check, prints and stores its result."""
        began, spent = time.monotonic(), self.spent()
        try:
            self.guest = self.guest or self.boot()
            passed, text, release = True, check(self.guest), self.guest.release
        except Exception as error:  # noqa: BLE001  a check that breaks has failed, and the others run
            text = str(error) if isinstance(error, GuestError) else repr(error)
            passed, release = False, getattr(self.guest, "release", self.kernel.name)
        seconds, cpu = time.monotonic() - began, self.spent() - spent
        if not passed:
            self.close()
        cell = report.Cell(passed, text, int(seconds), release, int(cpu), report.now(), self.tree)
        report.record(name, self.kernel.name, cell)
        said = f"{'passed' if passed else 'FAILED'} {seconds:4.0f} s, {cpu:4.0f} s of the processor"
        print(f"{self.kernel.name:5} {name:16} {said}  {text}", flush=True)
        return passed

    def boot(self) -> Any:
        """A new guest."""
        made = images(self.kernel)
        return UserMode(self.kernel, made) if self.kernel.user_mode else Guest(self.kernel, made, self.machine)

    def spent(self) -> float:
        """Seconds of processor time that the children of this process have used, the running guest among them."""
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime + (self.guest.spent() if self.guest is not None else 0.0)

    def close(self) -> None:
        """Ends the guest."""
        if self.guest is not None:
            self.guest.close()
        self.guest = None


def courses(kernels: Iterable[str], groups: Iterable[str], only: Iterable[str]) -> list[Course]:
    """The selected checks, grouped by kernel and machine, the longest courses first."""
    found: dict[tuple[str, Machine | None], Course] = {}
    for kernel in kernels:
        for name in groups:
            group, wanted = GROUPS[name], [check for check in GROUPS[name].checks if not only or check in only]
            if wanted and kernel in group.kernels:
                course = found.setdefault((kernel, group.machine), Course(KERNELS[kernel], group.machine))
                course.checks += [(name, check) for check in wanted]
    return sorted(found.values(), key=lambda course: -len(course.checks))


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m lab", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kernels", nargs="+", choices=KERNELS, default=list(KERNELS), metavar="KERNEL")
    parser.add_argument("--groups", nargs="+", choices=GROUPS, default=list(GROUPS), metavar="GROUP")
    parser.add_argument("--checks", nargs="+", choices=PLANNED, default=[], metavar="CHECK")
    parser.add_argument("--jobs", type=int, default=min(3, os.cpu_count() or 1), help="guests at a time (%(default)s)")
    parser.add_argument("--no-table", action="store_true", help="leave docs/lab.md as it is")
    parser.add_argument(
        "--table", action="store_true", help="write the table from the recorded results, and run nothing"
    )
    parser.add_argument("--list", action="store_true", help="print the groups and their checks")
    args = parser.parse_args()
    if args.list:
        for name, group in GROUPS.items():
            print(f"{name}: {', '.join(group.checks)}")
        return 0
    passed = True
    if not args.table:
        require_tools(KERNELS[name] for name in args.kernels)
        passed = run(courses(args.kernels, args.groups, args.checks), args.jobs)
    if not args.no_table:
        report.write(PLANNED)
    return int(not passed)


def end_with_parent() -> None:
    """Makes the kernel kill this process and its guest when the run is killed."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def run(planned: list[Course], jobs: int) -> bool:
    """Runs courses, several at a time. Prints how long all of them took, and returns whether all checks passed."""
    CACHE.mkdir(parents=True, exist_ok=True)
    for left in CACHE.glob("run-*"):  # of a run that was killed
        if not Path("/proc", left.name.split("-")[1]).exists():
            shutil.rmtree(left)
    began = time.monotonic()
    with ProcessPoolExecutor(jobs, get_context("fork"), end_with_parent) as processes:
        passed = list(processes.map(Course.perform, planned))
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(
        f"{sum(len(course.checks) for course in planned)} checks in {(time.monotonic() - began) / 60:.0f} minutes,"
        f" with {(used.ru_utime + used.ru_stime) / 60:.0f} minutes of processor time"
    )
    return all(passed)


if __name__ == "__main__":
    sys.exit(main())
