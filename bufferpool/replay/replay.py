"""Replays a trace of page accesses through one pool, with several processes, and verifies every access.

A database file is built with one stamped page (bufferpool/replay/stamped.py) for every
different page of the trace. Every read checks the stamp. Every write publishes the page's next version,
and the worker counts it in a file that all processes map (the *board*). At the end the version of each
page in the file must be the number of its writes.
"""

import multiprocessing as mp
import os
import secrets
import shutil
import signal
import tempfile
import threading
import time
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.resources import as_file, files
from multiprocessing import connection, resource_tracker
from multiprocessing.process import BaseProcess
from typing import Any, TextIO

import numpy as np
import numpy.typing as npt

from bufferpool import _core
from bufferpool.client import segment_file
from bufferpool.figures.stats import PoolStats
from bufferpool.pool import Pool
from bufferpool.replay import worker
from bufferpool.replay.stamped import ReplayFailed, build_file, verify_file
from bufferpool.replay.worker import ACCESSES, GO, READY, STOP, WRITES, Board, Job
from bufferpool.units import format_size

DEMO_REPEAT = 10  # of the trace that ships with the package
LOWER_AT, RAISE_AT = 0.4, 0.7  # of the accesses: when the budget is halved and restored


class ReplayStopped(Exception):
    """A signal ended the replay; the pool and the files have been removed. ``signal`` is its number."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}; the pool and the temporary files are removed")
        self.signal = number


@dataclass(frozen=True)
class Options:
    """What to replay, and how. Raises ValueError for a value outside its range."""

    trace: str | None = None
    """A .npy or .npz file; None: the trace that ships with the package."""
    capacity: int | None = None
    """The pool's budget in bytes; None: a quarter of the file."""
    processes: int = 4
    page_size: int = 8192
    """Bytes of a page."""
    writes: float = 0.1
    """The share of the accesses that write, 0 to 1."""
    repeat: int = 1
    """How often the trace is replayed."""
    limit: int | None = None
    """Replay only this many accesses, from the start of the trace; None: all."""
    seed: int = 1
    directory: str | None = None
    """The tmpfs mount for the pool; None: /dev/shm."""
    temp: str | None = None
    """The directory for the file; None: the system's directory for temporary files."""

    def __post_init__(self) -> None:
        capacity = segment_file.MIN_FRAMES * self.page_size if self.capacity is None else self.capacity
        segment_file.plan(segment_file.Sizes(capacity, self.page_size))
        if not 1 <= self.processes <= _core.CLIENTS_LIMIT - 4:
            raise ValueError(f"processes must be 1 to {_core.CLIENTS_LIMIT - 4}, not {self.processes}")
        if not 0 <= self.writes <= 1:
            raise ValueError(f"writes must be a share from 0 to 1, not {self.writes}")
        for name in ("repeat", "limit"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")


@dataclass(frozen=True)
class Reclaimed:
    """Bytes given back in one call: by the pool's count, and by the kernel's (the fall of st_blocks)."""

    pool: int
    kernel: int


@dataclass(frozen=True)
class Report:
    """What a replay that verified found."""

    accesses: int
    writes: int
    seconds: float
    pages: int
    processes: int
    stats: PoolStats
    """The pool after the last access, flushed."""
    lowered: Reclaimed
    """What was given back when the budget was halved, while the workers ran."""
    trimmed: Reclaimed
    """What was given back by the last trim, after the workers ended: both counts are equal."""
    reclaimed: dict[str, int]
    """Bytes given back in all, by reason, as the pool counts them."""

    def table(self) -> str:
        """The report as text: a table that is printed at the end."""
        stats, lowered, trimmed = self.stats, self.lowered, self.trimmed
        reasons = ", ".join(f"{reason} {format_size(n)}" for reason, n in self.reclaimed.items() if n)
        left = f"{self.pages:,} of {self.pages:,}, read from the file, not through the pool"
        rows = [
            ("accesses", f"{self.accesses:,} by {self.processes} processes, {self.writes:,} of them writes"),
            ("hit ratio", f"{stats.hit_ratio:.2%} ({stats.hits:,} hits, {stats.misses:,} misses)"),
            ("pages per second", f"{self.accesses / self.seconds:,.0f} ({self.seconds:.1f} s, every access verified)"),
            ("reclaimed", f"{sum(self.reclaimed.values()):,} B ({reasons})"),
            ("", f"{'the pool counts':>18} {'the kernel (st_blocks)':>24}"),
            ("  budget halved, workers at work", f"{lowered.pool:>16,} B {lowered.kernel:>22,} B"),
            ("  trimmed at the end", f"{trimmed.pool:>16,} B {trimmed.kernel:>22,} B"),
            ("  pages held before that trim", f"{stats.resident_bytes:>16,} B {stats.kernel_data_bytes:>22,} B"),
            ("pages verified", left),
            ("check", "clean"),
        ]
        return "\n".join(f"{label:<33} {text}" for label, text in rows)


def load_trace(path: str | None, limit: int | None = None) -> npt.NDArray[np.uint32]:
    """The accesses of a trace file: page numbers, shape (accesses,), uint32, renumbered without gaps in the same order.

    ``path``: a .npy file with one array, or an .npz file with an array
    ``pages`` or with only one; None: the trace that ships with the package.
    ``limit``: only so many accesses, from the start. Raises OSError, ReplayFailed.
    """
    if path is None:
        with as_file(files("bufferpool.replay") / "traces" / "tpcc.npz") as shipped:
            return load_trace(str(shipped), limit)
    try:
        with open(path, "rb") as file:
            loaded = np.load(file, allow_pickle=False)
            if isinstance(loaded, np.lib.npyio.NpzFile):
                names = loaded.files
                if "pages" not in names and len(names) != 1:
                    raise ReplayFailed(f"{path} must have an array 'pages'; it has {names}")
                loaded = loaded["pages" if "pages" in names else names[0]]
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ReplayFailed(f"{path} is no .npy or .npz file of numbers: {error}") from error
    trace = np.asarray(loaded)[:limit] if loaded.ndim else loaded
    if trace.ndim != 1 or trace.dtype.kind not in "iu" or not trace.size:
        raise ReplayFailed(
            f"{path} must hold one row of page numbers (integers), not {trace.dtype} of shape {trace.shape}"
        )
    _, dense = np.unique(trace, return_inverse=True)
    return dense.astype(np.uint32)


class _Workers:
    """The worker processes of a replay."""

    def __init__(self, job: Job, board: Board) -> None:
        self._board = board
        self._running: dict[int, tuple[BaseProcess, connection.Connection[Any, Any]]] = {}
        context = mp.get_context("spawn")
        resource_tracker.ensure_running()  # started here, because it unblocks signals when it starts
        # The workers inherit the mask: a Ctrl-C of the terminal reaches the parent only.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})
        try:
            for index in range(job.processes):
                receiver, sender = context.Pipe(duplex=False)
                process = context.Process(target=worker.main, args=(index, job, sender), name=f"replay-{index}")
                process.start()
                sender.close()
                self._running[index] = process, receiver
        except BaseException:
            self.end()
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def wait(self, seconds: float) -> bool:
        """Waits until a worker ends, at most ``seconds``; returns whether any still runs. Raises ReplayFailed if one failed."""
        connection.wait([process.sentinel for process, _ in self._running.values()], seconds)
        for index, (process, receiver) in list(self._running.items()):
            if process.exitcode is None:
                continue
            if process.exitcode < 0:
                raise ReplayFailed(
                    f"worker {index} was killed by {signal.strsignal(-process.exitcode)} (signal {-process.exitcode})"
                )
            if process.exitcode:
                why = receiver.recv() if receiver.poll() else f"exit code {process.exitcode}; what it printed says why"
                raise ReplayFailed(f"worker {index}: {why}")
            self._close(index)
        return bool(self._running)

    def _close(self, index: int) -> None:
        process, receiver = self._running.pop(index)
        process.join()
        process.close()
        receiver.close()

    def end(self) -> None:
        """Stops the workers that still run: after five seconds, with SIGKILL."""
        self._board.parent[STOP] = 1
        deadline = time.monotonic() + 5
        for index, (process, _) in list(self._running.items()):
            process.join(max(0.0, deadline - time.monotonic()))
            if process.exitcode is None:
                process.kill()
            self._close(index)


# ---- the parent ------------------------------------------------------------------------


class _Stop:
    """Remembers signals. The long steps call it often, and end with ReplayStopped after a signal."""

    def __init__(self) -> None:
        self.signal = 0

    def __call__(self) -> None:
        """Raises ReplayStopped if a signal has come."""
        if self.signal:
            raise ReplayStopped(self.signal)

    def _remember(self, number: int, _frame: object) -> None:
        self.signal = number

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Within the block Ctrl-C, SIGTERM and SIGHUP are remembered, and have no other effect."""
        if threading.current_thread() is not threading.main_thread():
            yield  # only the main thread may set handlers
            return
        wanted = [n for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) != signal.SIG_IGN]
        old = {number: signal.signal(number, self._remember) for number in wanted}
        try:
            yield
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)


class Progress:
    """Live figures: on a terminal one line that changes, elsewhere a line a second."""

    def __init__(self, out: TextIO, total: int) -> None:
        self._out, self._total, self._terminal = out, total, out.isatty()
        self._next = 0.0
        self._open = False

    def show(self, accesses: int, stats: PoolStats, *, last: bool = False) -> None:
        now = time.monotonic()
        if now < self._next and not last:
            return
        self._next = now + (0.2 if self._terminal else 1.0)
        line = (
            f"{accesses / self._total:4.0%}  hits {stats.hits:,}  misses {stats.misses:,}  ratio {stats.hit_ratio:.1%}  "
            f"resident {format_size(stats.resident_bytes)}  budget {format_size(stats.budget_bytes)}  "
            f"reclaimed {format_size(stats.reclaimed_total_bytes)}"
        )
        if self._terminal:
            line = "\r" + line[: shutil.get_terminal_size().columns - 1] + "\x1b[K"
        print(line, end="" if self._terminal else "\n", file=self._out, flush=True)
        self._open = self._terminal

    def say(self, text: str) -> None:
        """Prints a line below the live figures."""
        print(("\n" if self._open else "") + text, file=self._out, flush=True)
        self._open = False


def _kernel_bytes(pool: Pool) -> int:
    return os.stat(pool.path).st_blocks * 512


def _resize(pool: Pool, capacity: int, progress: Progress) -> Reclaimed:
    before = _kernel_bytes(pool)
    given = pool.resize(capacity)
    after = _kernel_bytes(pool)
    progress.say(f"      budget now {format_size(capacity)}: {format_size(given)} given back, workers at work")
    return Reclaimed(given, before - after)


def _watch(
    pool: Pool, workers: _Workers, board: Board, total: int, out: TextIO, stop: _Stop
) -> tuple[float, Reclaimed]:
    """Shows progress, and halves and restores the budget while the workers run. Returns (seconds, what was given back)."""
    while not board.progress[:, READY].all():
        stop()
        workers.wait(0.01)
    full = pool.stats().budget_bytes
    progress, lowered, raised = Progress(out, total), None, False
    started = time.monotonic()
    board.parent[GO] = 1
    while workers.wait(0.05):
        stop()
        done = int(board.progress[:, ACCESSES].sum())
        progress.show(done, pool.stats())
        if lowered is None and done >= LOWER_AT * total:
            lowered = _resize(pool, max(full // 2, segment_file.MIN_FRAMES * pool.page_size), progress)
        elif lowered is not None and not raised and done >= RAISE_AT * total:
            _resize(pool, full, progress)
            raised = True
    seconds = time.monotonic() - started
    if lowered is None:  # the trace was so short that the workers ended first
        lowered = _resize(pool, max(full // 2, segment_file.MIN_FRAMES * pool.page_size), progress)
    progress.show(int(board.progress[:, ACCESSES].sum()), pool.stats(), last=True)
    progress.say("")
    return seconds, lowered


def _verify(pool: Pool, job: Job, board: Board, total: int, stop: _Stop) -> tuple[PoolStats, Reclaimed]:
    """Checks everything that must hold once the workers have ended. Raises ReplayFailed."""
    done = int(board.progress[:, ACCESSES].sum())
    if done != total:
        raise ReplayFailed(f"the workers did {done} accesses instead of {total}")
    pool.flush()
    stats = pool.stats()
    if _kernel_bytes(pool) - stats.metadata_bytes != stats.resident_bytes:
        raise ReplayFailed(
            f"the pool counts {stats.resident_bytes} bytes of pages, and the kernel "
            f"{_kernel_bytes(pool) - stats.metadata_bytes} ({_kernel_bytes(pool)} less {stats.metadata_bytes} of metadata)"
        )
    _check(pool)
    verify_file(job.database, board.versions(), job.page_size, stop)
    before = _kernel_bytes(pool)
    given = pool.trim(stats.resident_bytes)
    trimmed = Reclaimed(given, before - _kernel_bytes(pool))
    counted = pool.stats().reclaimed_bytes["trim"] - stats.reclaimed_bytes["trim"]
    if not trimmed.pool == trimmed.kernel == counted:
        raise ReplayFailed(
            f"a trim gave back {trimmed.pool} bytes and counted {counted}, but the kernel's figure fell by {trimmed.kernel}"
        )
    _check(pool)
    return stats, trimmed


def _check(pool: Pool) -> None:
    violations = pool.check()
    if violations:
        raise ReplayFailed(f"the pool has {len(violations)} violations: " + "; ".join(violations[:5]))


def replay(options: Options, out: TextIO) -> Report:
    """Replays the trace, verifies the result, and writes progress to ``out``.

    The pool and all files are removed at the end, after an error too.

    Raises ReplayFailed when anything does not verify or a worker ends early,
    ReplayStopped after Ctrl-C, SIGTERM or SIGHUP, and the errors of the pool.
    """
    stop = _Stop()
    with ExitStack() as stack:
        stack.enter_context(stop.watching())
        trace = load_trace(options.trace, options.limit)
        pages, total = int(trace.max()) + 1, len(trace) * options.repeat
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="bufferpool-replay-", dir=options.temp))
        name = f"replay-{os.getpid()}-{secrets.token_hex(4)}"
        job = Job(
            name, options.directory, folder, pages, options.processes, options.page_size,
            options.writes, options.repeat, options.seed, os.getpid(),
        )  # fmt: skip
        np.save(job.trace, trace)
        board = job.board()
        file_bytes = pages * options.page_size
        capacity = max(file_bytes // 4, 64 * options.page_size) if options.capacity is None else options.capacity
        print(
            f"file {format_size(file_bytes)} ({pages:,} pages of {options.page_size} B), pool {format_size(capacity)}, "
            f"{options.processes} processes, {total:,} accesses, {options.writes:.0%} writes",
            file=out,
            flush=True,
        )
        build_file(job.database, pages, options.page_size, stop)
        pool = Pool.create(
            name, capacity, page_size=options.page_size, directory=options.directory, max_clients=options.processes + 4
        )
        stack.callback(lambda: pool.unlink(discard=True))  # after an error it may have dirty pages
        stack.enter_context(pool)
        workers = _Workers(job, board)
        stack.callback(workers.end)
        try:
            seconds, lowered = _watch(pool, workers, board, total, out, stop)
        except ReplayFailed:
            stop()  # the same signal may have ended the worker
            raise
        stats, trimmed = _verify(pool, job, board, total, stop)
        written = int(board.progress[:, WRITES].sum())
        reclaimed = pool.stats().reclaimed_bytes
        return Report(
            total, written, seconds, pages, options.processes, stats, lowered, trimmed, reclaimed,
        )  # fmt: skip
