"""What the commands share: output, arguments, and how a command is added."""

import argparse
import contextlib
import datetime
import json
import math
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TextIO

from bufferpool.client import segment_file
from bufferpool.errors import BufferPoolError
from bufferpool.observer import Observer
from bufferpool.printable import printable
from bufferpool.units import parse_size

if TYPE_CHECKING:
    from bufferpool.pool import Pool

PLAIN = argparse.RawDescriptionHelpFormatter
LEAST_COLUMNS = 12  # of a column that is shortened
Run = Callable[[argparse.Namespace], int]


class StoppedBySignal(Exception):
    """A signal ended a command, which has removed what it had made. ``signal`` is its number."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.signal = number


# ---- output ------------------------------------------------------------------------


def _plain(value: Any) -> Any:
    """A value for JSON, which has no NaN: null stands for it."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def print_json(value: Any) -> None:
    print(json.dumps(_plain(value), indent=2, allow_nan=False))


def print_json_stream(values: Iterable[Any]) -> None:
    """Prints a JSON array, one element in a line. It keeps no element, so a million of them take no memory."""
    print("[", end="")
    for i, value in enumerate(values):
        print("," if i else "", json_line(value), sep="\n", end="")
    print("\n]")


def json_line(value: Any) -> str:
    """A value as JSON on one line."""
    return json.dumps(_plain(value), allow_nan=False)


def tell(text: object, *, to: TextIO | None = None, end: str = "\n") -> None:
    """Prints a line, with control characters escaped."""
    print(printable(text), file=to, end=end, flush=True)


def _shortened(text: str, width: int) -> str:
    """Fits a text into so many columns. A longer text loses its beginning, because the end of a path says most."""
    return text if len(text) <= width else "…" + text[len(text) - width + 1 :]


def print_table(rows: Sequence[Sequence[str]], right: Iterable[int] = (), *, fits: bool = False) -> None:
    """Prints aligned columns; ``right``: the indexes of those that are aligned to the right.

    ``fits``: the last column is shortened so that a line fits the terminal; elsewhere it is printed whole.
    """
    rows = [[printable(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    if fits and sys.stdout.isatty():
        left = shutil.get_terminal_size().columns - sum(width + 2 for width in widths[:-1])
        widths[-1] = min(widths[-1], max(left, LEAST_COLUMNS))
        rows = [[*row[:-1], _shortened(row[-1], widths[-1])] for row in rows]
    numbers = set(right)
    for row in rows:
        cells = [
            cell.rjust(w) if i in numbers else cell.ljust(w)
            for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        print("  ".join(cells).rstrip())


def complain(error: Exception) -> None:
    """Prints an error to standard error."""
    first, *more = str(error).split("\n")
    tell(f"bufferpool: {first}", to=sys.stderr)
    for line in more:
        tell(line, to=sys.stderr)


def observe(args: argparse.Namespace) -> Observer:
    """Opens the pool that a command names as an observer: it takes no client slot and changes nothing."""
    return Observer(args.name, directory=args.directory)


@contextlib.contextmanager
def attach(args: argparse.Namespace) -> "Iterator[Pool]":
    """Attaches to the pool that a command names."""
    from bufferpool.pool import Pool  # most commands only look at a pool, as observers

    with Pool.attach(args.name, directory=args.directory) as pool:
        try:
            yield pool
        except BufferPoolError:
            pool.client.abandon_jobs()  # some may hang: to close the pool, and to end the process, would wait for them
            raise


# ---- arguments ----------------------------------------------------------------------


def pool_name(text: str) -> str:
    """An argument that names a pool."""
    try:
        segment_file.path_of(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


def size(text: str) -> int:
    """An argument that is a size."""
    try:
        return parse_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def count(text: str) -> int:
    """An argument that is a count: 0 or more."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be a number, 0 or more, not {text!r}")
    return int(text)


def seconds(text: str) -> float:
    """An argument that is a time: 0 to 1e9 seconds."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1e9:
        raise argparse.ArgumentTypeError(f"must be a number of seconds, 0 or more, not {text!r}")
    return value


def interval(text: str) -> float:
    """An argument that is the time between two rounds: above 0."""
    value = seconds(text)
    if value == 0:
        raise argparse.ArgumentTypeError("must be above 0 seconds")
    return value


def add_seconds(
    command: argparse.ArgumentParser,
    option: str,
    default: float,
    about: str,
    kind: Callable[[str], float] = interval,
) -> None:
    """Adds an option that is a number of seconds: ``option S``."""
    command.add_argument(option, type=kind, default=default, metavar="S", help=f"{about} (default: %(default)s)")


def since(text: str) -> float:
    """An argument that is a time: so many seconds, minutes (m), hours (h) or days (d) ago, or a date in ISO 8601.

    Returns seconds since the epoch.
    """
    units = {"s": 1, "m": 60, "h": 3600, "d": 86400}
    number, unit = (text[:-1], units[text[-1]]) if text[-1:] in units else (text, 1)
    with contextlib.suppress(ValueError):
        return time.time() - seconds(number) * unit if number[:1].isdigit() and "-" not in number else _date(text)
    raise argparse.ArgumentTypeError(f"must be a time, such as 90, 15m, 2h or 2026-03-01T12:00, not {text!r}")


def _date(text: str) -> float:
    return datetime.datetime.fromisoformat(text).timestamp()


class Commands:
    """The parser of the command line, and how a command is added to it."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self.parser = parser
        self._commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def add(
        self, name: str, run: Run, about: str, epilog: str, *, pool: bool = True, js: bool = True
    ) -> argparse.ArgumentParser:
        """Adds a command. ``about``: one line of help; ``epilog``: details and an example; ``pool``: it takes the
        name of a pool; ``js``: it has ``--json``.
        """
        text = about[0].upper() + about[1:] + "."
        sub = self._commands.add_parser(name, help=about, description=text, epilog=epilog, formatter_class=PLAIN)
        sub.set_defaults(run=run, parser=sub)
        sub.add_argument("--directory", metavar="DIR", help="the tmpfs that holds the pools (default: /dev/shm)")
        if js:
            sub.add_argument("--json", action="store_true", help="print JSON; sizes are bytes")
        if pool:
            sub.add_argument("name", metavar="NAME", type=pool_name, help="the pool")
        return sub
