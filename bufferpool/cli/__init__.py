"""The command ``bufferpool``: look at pools, change them, try one out, examine the machine."""

import argparse
import contextlib
import io
import os
import signal
import sys
import threading
from collections.abc import Iterator

import bufferpool
from bufferpool.cli import advise, bench, export, frame_map, manage, show, tools
from bufferpool.cli.common import PLAIN, Commands, complain
from bufferpool.errors import BufferPoolError
from bufferpool.replay.replay import ReplayStopped

_ABOUT = """\
A pool is one file in /dev/shm that any number of processes share. It stays
when they end, so that the next one finds its pages warm: these commands show
what is there, say whether it is sound, and remove it.
"""
_EXAMPLES = """\
examples:
  bufferpool replay --demo            see a pool at work, on a real trace
  bufferpool doctor                   does this machine have what a pool needs?
  bufferpool ls                       every pool: its memory, its clients, its state
  bufferpool top                      the same, live, and one of them in full
  bufferpool stat orders              one pool: hits, misses, memory, clients, spaces
  bufferpool advise orders            the hit ratio that another budget would give
  bufferpool pins orders orders.db 42 who keeps page 42 of orders.db in the pool
  bufferpool check orders             every invariant of a pool, while others use it
  bufferpool export                   metrics of every pool, for Prometheus
  bufferpool rm orders                give all its memory back

exit codes: 0 all is well; 1 something failed, or was found wrong; 2 wrong usage;
128 + n ended by signal n (130: Ctrl-C)
"""


def make_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    parser = argparse.ArgumentParser("bufferpool", description=_ABOUT, epilog=_EXAMPLES, formatter_class=PLAIN)
    parser.add_argument("--version", action="version", version=f"bufferpool {bufferpool.__version__}")
    commands = Commands(parser)
    for module in (show, advise, frame_map, manage, export, bench, tools):
        module.register(commands)
    return parser


def _use_streams() -> None:
    """Makes the standard streams accept all text: closed streams, and names that are no UTF-8."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 - open for as long as the process lives
        elif mode == "w" and isinstance(stream, io.TextIOWrapper):
            utf8 = stream.encoding.lower() in ("utf-8", "utf8")
            stream.reconfigure(errors="surrogateescape" if utf8 else "backslashreplace")


@contextlib.contextmanager
def _ending_with_sigterm() -> Iterator[None]:
    """SIGTERM ends a command as Ctrl-C does, so that it detaches; also as process 1 of a container, without a default."""
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


def main(argv: list[str] | None = None) -> int:
    """Runs one command; returns its exit code: 0, 1 for a failure, 128 + n after signal n.

    Wrong usage ends in SystemExit(2), as argparse has it, SIGTERM in SystemExit(143).
    """
    _use_streams()
    args = make_parser().parse_args(argv)
    try:
        with _ending_with_sigterm():
            code: int = args.run(args)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # the reader of our output has ended
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except ReplayStopped as stopped:
        complain(stopped)
        return 128 + stopped.signal
    except (BufferPoolError, OSError) as error:
        complain(error)
        return 1
    except KeyboardInterrupt:
        return 130
