"""What the workloads share: arguments, progress, worker processes, checks, and the look of the plots.

A workload is a module with a function ``work(run)``: it measures, verifies with ``run.check``, and
hands a figure to ``run.plot``. ``main`` does the rest. A check that fails makes the exit code 1.
"""

import argparse
import inspect
import multiprocessing
import os
import secrets
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from machine import SHM
from pages import PAGE
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

import bufferpool as bp

if TYPE_CHECKING:
    from matplotlib.figure import Figure

sys.path.append(str(Path(__file__).resolve().parent.parent))  # where toydb is

MIB = 1 << 20
WAIT_S = 120.0  # the longest wait for a worker
PROCESSES = multiprocessing.get_context("forkserver")  # numpy is preloaded, so that workers start in milliseconds
PROCESSES.set_forkserver_preload(["numpy", "rich.progress", "bufferpool"])

INK, BLUE, ORANGE, GREEN, GREY, PALE = "#1f2933", "#2f6fb0", "#d9812b", "#3f8f5f", "#8a94a0", "#d7dde4"


def mib(size: float) -> str:
    """A number of bytes as text, in MiB."""
    return f"{size / MIB:,.1f} MiB"


def draw_bars(
    axes: Any, title: str, names: Sequence[str], texts: Sequence[str], *parts: tuple[Sequence[float], Any, str]
) -> None:
    """A bar for each name, the first at the top, with a text behind it.

    It has ``parts`` from left to right: (lengths, colour or a colour for each name, label of the legend or "").
    """
    left = [0.0] * len(names)
    for lengths, color, label in parts:
        axes.barh(names, lengths, left=left, color=color, label=label or None, height=0.55)
        left = [a + b for a, b in zip(left, lengths, strict=True)]
    axes.bar_label(axes.containers[-1], texts, padding=4)
    axes.set(title=title, xlim=(0, max(left) * 1.15), ylim=(len(names) - 0.5, -0.5))
    axes.tick_params(axis="y", length=0)


def eventually(holds: Callable[[], bool]) -> bool:
    """Waits until ``holds()`` is true; returns False if it is not within WAIT_S."""
    end = time.monotonic() + WAIT_S
    while not holds():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


class Run:
    """One run of a workload: its options, its output, and its checks."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
        self.stack = ExitStack()
        self.verified = 0
        self.failed: list[str] = []

    def check(self, holds: bool, what: str) -> None:
        """Records whether a check holds, and prints it; ``what`` is a sentence with the figures."""
        self.verified += 1
        if not holds:
            self.failed.append(what)
        self.console.print(f"{'[green]ok[/]  ' if holds else '[red]FAIL[/]'} {escape(what)}", soft_wrap=True)

    def say(self, text: str) -> None:
        """Prints a line of the report."""
        self.console.print(text, markup=False, soft_wrap=True)

    def table(self, title: str, columns: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
        """Prints a table, with its first column aligned to the left."""
        table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="dim")
        for n, column in enumerate(columns):
            table.add_column(column, justify="right" if n else "left", no_wrap=True)
        for row in rows:
            table.add_row(*map(escape, row))
        self.console.print(table)

    @contextmanager
    def progress(self, what: str, total: int) -> Iterator[Callable[[int], None]]:
        """Shows a progress bar while the block runs; yields ``advance(steps)``."""
        columns = (
            TextColumn("{task.description:<28}"),
            BarColumn(40),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=self.console) as bars:
            task = bars.add_task(escape(what), total=total)
            yield lambda steps: bars.advance(task, steps)

    def pool(self, capacity: int, **options: Any) -> bp.Pool:
        """A pool with a name of its own, removed when the run ends."""
        pool = bp.Pool.create(self.pool_name(), capacity, page_size=PAGE, **options)
        self.stack.callback(pool.close)
        return pool

    def pool_name(self) -> str:
        """A name for a pool of this run; the pool is removed when the run ends."""
        name = f"workload-{os.getpid()}-{secrets.token_hex(3)}"
        self.stack.callback((SHM / name).unlink, missing_ok=True)
        return name

    def folder(self) -> Path:
        """A folder for files, in TMPDIR, removed when the run ends."""
        return Path(self.stack.enter_context(tempfile.TemporaryDirectory(prefix="workload-")))

    def start(self, function: Callable[..., Any], *arguments: Any) -> "Worker":
        """A worker process; killed at the end if it still runs."""
        worker = Worker(function, arguments)
        self.stack.callback(worker.end)
        return worker

    def plot(self, draw: Callable[..., "Figure"], *figures: Any) -> None:
        """Writes the picture that ``draw(*figures)`` makes, if one was asked for."""
        if self.options.plot is None:
            return
        import matplotlib as mpl

        mpl.use("Agg")
        with mpl.rc_context(STYLE):
            figure = draw(*figures)
            figure.savefig(self.options.plot, dpi=100)
        self.say(f"picture: {self.options.plot}")


STYLE: Any = {
    "figure.figsize": (9.0, 4.2),
    "figure.constrained_layout.use": True,
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "lines.linewidth": 1.6,
}


def main(
    work: Callable[[Run], None], more: Mapping[str, Any] | None = None, **numbers: tuple[float, float, str]
) -> None:
    """The command line of a workload, and its exit code.

    ``numbers``: options of the workload, each with its default, the default of ``--quick``, and its help;
    ``more``: others, as argparse has them.
    """
    doc = inspect.getdoc(sys.modules[work.__module__]) or ""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plot", type=Path, metavar="FILE", help="write a picture (PNG) there")
    parser.add_argument("--quick", action="store_true", help="a small form, of a few seconds")
    parser.add_argument("--seed", type=int, default=1, help="of the random numbers (default: 1)")
    for flag, settings in (more or {}).items():
        parser.add_argument(flag, **settings)
    for name, (normal, quick, text) in numbers.items():
        text = f"{text} (default: {normal}; quick: {quick})"
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(normal), help=text, metavar="N")
    options = parser.parse_args()
    for name, (normal, quick, _) in numbers.items():
        if getattr(options, name) is None:
            setattr(options, name, quick if options.quick else normal)
        elif getattr(options, name) <= 0:
            parser.error(f"--{name.replace('_', '-')} must be above 0, not {getattr(options, name)}")
    if options.plot is not None and not options.plot.parent.is_dir():
        parser.error(f"--plot: there is no folder {options.plot.parent}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    run = Run(options)
    try:
        with run.stack:
            work(run)
    except KeyboardInterrupt:
        sys.exit(130)
    run.say(f"{run.verified - len(run.failed)} of {run.verified} checks hold")
    sys.exit(1 if run.failed or not run.verified else 0)


# ---- worker processes ------------------------------------------------------------------


class WorkerFailed(Exception):
    """A worker raised, died, or did not answer in time."""


class Worker:
    """A process that runs ``function(pipe, *arguments)``; :meth:`get` raises what it raises."""

    def __init__(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        self.pipe, theirs = PROCESSES.Pipe()
        self.process = PROCESSES.Process(target=_serve, args=(theirs, function, arguments), daemon=True)
        self.process.start()
        theirs.close()

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self.process.pid is not None
        return self.process.pid

    def put(self, message: Any) -> None:
        """Sends a message to the worker."""
        self.pipe.send(message)

    def get(self, timeout_s: float = WAIT_S) -> Any:
        """Waits for the worker's next message, or for its result. Raises WorkerFailed."""
        if not self.pipe.poll(timeout_s):
            raise WorkerFailed(f"worker {self.pid} did not answer within {timeout_s:g} s")
        try:
            fine, value = self.pipe.recv()
        except EOFError:
            self.process.join()
            raise WorkerFailed(f"worker {self.pid} died, exit code {self.process.exitcode}") from None
        if not fine:
            raise WorkerFailed(value)
        return value

    def kill(self) -> None:
        """Kills the worker (SIGKILL), and waits for its end."""
        self.process.kill()
        self.process.join()

    def end(self) -> None:
        """Waits a little for the worker to end, then kills it."""
        self.pipe.close()
        self.process.join(5)
        if self.process.is_alive():
            self.kill()


class Pipe:
    """The worker's end of the pipe."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe

    def put(self, value: Any) -> None:
        """Sends a message, which :meth:`Worker.get` returns."""
        self._pipe.send((True, value))

    def get(self) -> Any:
        """Waits for a message. Raises EOFError if the other end is closed."""
        return self._pipe.recv()

    def waiting(self) -> bool:
        """Whether a message has arrived."""
        return self._pipe.poll()


def _serve(pipe: Connection, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    try:
        answer = True, function(Pipe(pipe), *arguments)
    except EOFError:
        return  # the parent has gone
    except Exception:  # noqa: BLE001  raised in the parent
        answer = False, traceback.format_exc()
    try:
        pipe.send(answer)
    except BrokenPipeError:
        return
