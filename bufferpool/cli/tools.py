"""The commands that need no pool: the replay, which makes its own, the doctor, and shell completion."""

import argparse
import sys
from dataclasses import asdict

from bufferpool.cli import doctor
from bufferpool.cli.common import Commands, StoppedBySignal, print_json, size, tell
from bufferpool.errors import BufferPoolError
from bufferpool.replay.replay import DEMO_REPEAT, Options, ReplayStopped, replay

_DEMO = Options(repeat=DEMO_REPEAT)


def _replay(args: argparse.Namespace) -> int:
    if args.demo == (args.trace is not None):
        args.parser.error("give a TRACE, or --demo for the one that ships with bufferpool")
    names = ("trace", "capacity", "processes", "page_size", "writes", "limit", "seed", "directory", "temp")
    given = {name: getattr(args, name) for name in names}
    try:
        options = Options(**given, repeat=args.repeat or (_DEMO.repeat if args.demo else 1))
    except ValueError as error:
        args.parser.error(str(error))
    out = sys.stderr if args.json else sys.stdout
    if args.demo:
        print("demo: TPC-C on SQLite, 400,000 page accesses, replayed", options.repeat, "times", file=out)
    try:
        report = replay(options, out)
    except ReplayStopped as stopped:
        raise StoppedBySignal(str(stopped), stopped.signal) from stopped
    if args.json:
        print_json(asdict(report))
    else:
        print(report.table())
    return 0


def _doctor(args: argparse.Namespace) -> int:
    findings = []
    for finding in doctor.examine(args.directory):
        findings.append(finding)
        if not args.json:
            tell(f"{finding.level:<4}  {finding.what:<14}  {finding.text}")
            if finding.remedy:
                tell(f"{'':22}-> {finding.remedy}")
    if args.json:
        print_json([asdict(finding) for finding in findings])
    return 1 if any(finding.level is doctor.Level.FAIL for finding in findings) else 0


def _completion(args: argparse.Namespace) -> int:
    try:
        import shtab
    except ImportError as error:
        raise BufferPoolError("completion needs the library shtab: pip install shtab") from error
    print(shtab.complete(args.whole, args.shell))
    return 0


def register(commands: Commands) -> None:
    """Adds these commands."""
    completion = commands.add(
        "completion",
        _completion,
        "print a completion script for a shell",
        "examples:\n  bufferpool completion bash > ~/.local/share/bash-completion/completions/bufferpool\n"
        "  bufferpool completion zsh > ~/.zfunc/_bufferpool",
        pool=False,
        js=False,
    )
    completion.add_argument("shell", choices=["bash", "zsh", "tcsh"])
    completion.set_defaults(whole=commands.parser)
    sub = commands.add(
        "replay",
        _replay,
        "replay a trace of page accesses through a pool, and verify every access",
        "Builds a file with one stamped page for every page of the trace, replays the trace through one\n"
        "pool with several processes, verifies every page that is read, halves the budget meanwhile and\n"
        "restores it, and compares the pool's counts of memory with the kernel's. Leaves nothing behind.\n\n"
        "examples:\n  bufferpool replay --demo\n"
        "  bufferpool replay trace.npy --capacity 64MiB --processes 4 --page-size 8192 --writes 0.1\n\n"
        "TRACE is a .npy file with a one-dimensional array of integers, the page number of each access, or an\n"
        ".npz file with such an array named 'pages'.",
        pool=False,
    )
    sub.add_argument("trace", nargs="?", metavar="TRACE", help="the trace: .npy or .npz")
    sub.add_argument("--demo", action="store_true", help="use the trace that ships with bufferpool (TPC-C on SQLite)")
    for flag, kind, metavar, about in (
        ("--capacity", size, "SIZE", "the pool's budget (default: a quarter of the file)"),
        ("--processes", int, "N", "workers (default: %(default)s)"),
        ("--page-size", size, "SIZE", "a power of two (default: %(default)s)"),
        ("--writes", float, "SHARE", "share of writes, 0 to 1 (default: %(default)s)"),
        ("--limit", int, "N", "only the first N accesses of the trace"),
        ("--seed", int, "N", "which accesses write (default: %(default)s)"),
    ):
        default = getattr(_DEMO, flag[2:].replace("-", "_"))
        sub.add_argument(flag, type=kind, default=default, metavar=metavar, help=about)
    sub.add_argument(
        "--repeat", type=int, metavar="N", help=f"passes over the trace (default: 1; {_DEMO.repeat} for the demo)"
    )
    sub.add_argument(
        "--temp", metavar="DIR", help="where to build the file (default: the system's temporary directory)"
    )
    commands.add(
        "doctor",
        _doctor,
        "check whether the machine has what a pool needs, and name the remedies",
        "OK: nothing to do; WARN: pools work, with a limitation; FAIL: pools do not work (exit code 1).\n\n"
        "example:\n  bufferpool doctor --directory /mnt/pools",
        pool=False,
    )
