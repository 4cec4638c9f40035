"""The command ``bufferpool``: shows pools, changes them, replays traces, and examines the machine."""

import argparse
import contextlib
import importlib
import io
import os
import signal
import sys
import threading
from collections.abc import Iterator

# No command does linear algebra, and to start the threads of OpenBLAS takes nearly as long as the rest of numpy.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import bufferpool
from bufferpool.cli.apart import run_apart
from bufferpool.cli.common import PLAIN, Commands, StoppedBySignal, complain
from bufferpool.errors import BufferPoolError
from bufferpool.machine.descriptor import opened
from bufferpool.printable import printable

_ABOUT = """\
A pool is one file in /dev/shm that any number of processes share. It outlives
them, so that the next process finds its pages warm. These commands show the
pools, check them, change them, and remove them.
"""
_EXAMPLES = """\
examples:
  bufferpool replay --demo            run a pool on a recorded trace
  bufferpool doctor                   whether this machine has what a pool needs
  bufferpool ls                       list the pools: memory, clients, state
  bufferpool top                      the same, live, and one pool in detail
  bufferpool stat orders              one pool: hits, misses, memory, clients, spaces
  bufferpool advise orders            the hit ratio that another budget would give
  bufferpool pins orders orders.db 42 which clients pin page 42 of orders.db
  bufferpool check orders             check the invariants of a pool in use
  bufferpool export                   metrics of every pool, for Prometheus
  bufferpool rm orders                remove a pool and free its memory

exit codes: 0 success; 1 a failure, or a fault was found; 2 wrong usage;
128 + n ended by signal n (130: Ctrl-C)
"""


# Which module has a command. Only that one is imported: the replay alone would take longer than `ls`.
MODULES = {
    "show": ("top", "ls", "stat", "spaces", "clients", "pins", "frames", "extents", "events", "operations", "check"),
    "advise": ("advise",),
    "frame_map": ("map",),
    "manage": ("resize", "trim", "flush", "dirty", "discard", "drop", "remove", "remove-cache", "gc", "steward", "rm"),
    "export": ("export",),
    "bench": ("bench",),
    "tools": ("replay", "doctor", "completion"),
}
WITH_TIMEOUT = ("flush", "resize")  # they end in time, even if the kernel holds their writes


def make_parser(command: str = "") -> argparse.ArgumentParser:
    """The parser of the whole command line, or of one command alone."""
    parser = argparse.ArgumentParser("bufferpool", description=_ABOUT, epilog=_EXAMPLES, formatter_class=PLAIN)
    parser.add_argument("--version", action="version", version=f"bufferpool {bufferpool.__version__}")
    commands = Commands(parser)
    wanted = [name for name, has in MODULES.items() if command in has and command != "completion"]
    for name in wanted or MODULES:
        importlib.import_module(f"bufferpool.cli.{name}").register(commands)
    return parser


def _use_streams() -> None:
    """Makes the standard streams accept all text: replaces closed streams, and escapes names that are not UTF-8."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 - open for as long as the process lives
        elif mode == "w" and isinstance(stream, io.TextIOWrapper):
            utf8 = stream.encoding.lower() in ("utf-8", "utf8")
            stream.reconfigure(errors="surrogateescape" if utf8 else "backslashreplace")


@contextlib.contextmanager
def _ending_with_sigterm() -> Iterator[None]:
    """Turns SIGTERM into SystemExit, so that a command detaches from its pool.

    It is needed for process 1 of a container too, for which SIGTERM has no default action.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, _frame: object) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def script() -> int:
    """Runs the command of the command line; returns its exit code."""
    apart = len(sys.argv) > 1 and sys.argv[1] in WITH_TIMEOUT
    return run_apart(main) if apart else main()


def main(argv: list[str] | None = None) -> int:
    """Runs one command; returns its exit code: 0, 1 for a failure, 128 + n after signal n.

    Wrong usage ends in SystemExit(2), as in argparse, SIGTERM in SystemExit(143).
    """
    _use_streams()
    words = sys.argv[1:] if argv is None else argv
    args, unknown = make_parser(words[0] if words else "").parse_known_args(words)
    if unknown:  # argparse would print the usage of bufferpool
        args.parser.error(f"unrecognized arguments: {' '.join(map(printable, unknown))}")
    try:
        with _ending_with_sigterm():
            code: int = args.run(args)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # the reader of our output has ended
        with contextlib.suppress(OSError), opened(os.devnull, os.O_WRONLY | os.O_CLOEXEC) as nothing:
            os.dup2(nothing.fileno(), sys.stdout.fileno())
        return 1
    except StoppedBySignal as stopped:
        complain(stopped)
        return 128 + stopped.signal
    except (BufferPoolError, OSError) as error:
        complain(error)
        return 1
    except KeyboardInterrupt:
        return 130
