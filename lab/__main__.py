"""Runs the lab, and writes its table to docs/lab.md. Ends with 1 if a check failed.

python -m lab                             all checks on the kernels of x86-64
python -m lab --kernels 6.1 --groups core --checks doctor pins
python -m lab --list
"""

import argparse
import fcntl
import shutil
import sys
import time

from lab import report
from lab.checks import GROUPS, Group
from lab.guest import Guest, GuestError
from lab.images import CACHE, KERNELS, Kernel, images, require_tools

ORDER = list(dict.fromkeys(name for group in GROUPS.values() for name in group.checks))  # of the table's rows


def perform(kernel: Kernel, group: Group, only: list[str], results: report.Results) -> bool:
    """Runs checks of a group in one guest; a check that loses the guest gets a new one for those that follow."""
    wanted = [name for name in group.checks if not only or name in only]
    if not wanted or kernel.name not in group.kernels:
        return True
    made, passed, guest = images(kernel), True, None
    try:
        for name in wanted:
            began = time.monotonic()
            try:
                guest = guest or Guest(kernel, made, group.machine)
                cell = report.Cell(True, group.checks[name](guest), int(time.monotonic() - began), guest.release)
            except GuestError as error:
                release = guest.release if guest else kernel.name
                cell = report.Cell(False, str(error), int(time.monotonic() - began), release)
                passed = False
                if guest is not None:
                    guest.close()
                guest = None
            results.setdefault(name, {})[kernel.name] = cell
            report.save(results)
            print(
                f"{kernel.name:5} {name:16} {'passed' if cell.passed else 'FAILED'} {cell.seconds:4} s  {cell.text}",
                flush=True,
            )
    finally:
        if guest is not None:
            guest.close()
    return passed


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m lab", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    usual = [name for name, kernel in KERNELS.items() if kernel.arch == "amd64"]
    parser.add_argument("--kernels", nargs="+", choices=KERNELS, default=usual, metavar="KERNEL")
    parser.add_argument("--groups", nargs="+", choices=GROUPS, default=list(GROUPS), metavar="GROUP")
    parser.add_argument("--checks", nargs="+", default=[], metavar="CHECK")
    parser.add_argument("--no-table", action="store_true", help="leave docs/lab.md as it is")
    parser.add_argument("--list", action="store_true", help="print the groups and their checks")
    args = parser.parse_args()
    if args.list:
        for name, group in GROUPS.items():
            print(f"{name}: {', '.join(group.checks)}")
        return 0
    require_tools(KERNELS[name] for name in args.kernels)
    CACHE.mkdir(parents=True, exist_ok=True)
    with open(CACHE / "lock", "w") as lock:  # one guest at a time: they are heavy
        fcntl.flock(lock, fcntl.LOCK_EX)
        for left in CACHE.glob("run-*"):
            shutil.rmtree(left)
        return run(args)


def run(args: argparse.Namespace) -> int:
    """Runs the checks that the arguments name."""
    results = report.load()
    done = [
        perform(KERNELS[kernel], GROUPS[name], args.checks, results) for name in args.groups for kernel in args.kernels
    ]
    if not args.no_table:
        report.write({name: results[name] for name in ORDER if name in results})
    return int(not all(done))


if __name__ == "__main__":
    sys.exit(main())
