"""Measures the rows: yardstick and pool take turns, in many short rounds.

The figure of a row is the median of the rounds' ratios, so that other programs, or a change of the
processor's clock, affect both sides by the same factor.
"""

import mmap
import os
import random
import secrets
import tempfile
import time
import timeit
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt

import bufferpool
from bufferpool.figures.names import FrameState

PAGE = 8192
OS_PAGE = os.sysconf("SC_PAGE_SIZE")
EXTENT = 256 << 10
SHM = "/dev/shm"
UNROLLED = 32  # statements are unrolled, so that no loop is timed
CLIENTS = 64

Sample = Callable[[], float]
Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Bar:
    """What a row is compared with. By default the ratio to the yardstick must be at most the bar."""

    value: float
    at_least: bool = False
    absolute: bool = False
    """Whether our own figure is compared, not its ratio to the yardstick."""


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    what: str
    yardstick: str
    unit: str
    ours: float
    base: float | None  # the yardstick, in the same unit
    value: float  # compared with the bar: the ratio ours / yardstick, or a plain figure
    low: float  # quartiles of `value` over the rounds
    high: float
    bar: float
    at_least: bool = False
    beside: str = ""
    void: bool = False  # the machine was too busy for a figure

    @property
    def ok(self) -> bool:
        """Whether the bar is met."""
        return not self.void and (self.value >= self.bar if self.at_least else self.value <= self.bar)


@dataclass(frozen=True)
class Pairs:
    """The samples of the two sides."""

    base: list[float]
    ours: list[float]

    def row(self, name: str, what: str, yardstick: str, unit: str, bar: float | Bar, beside: str = "") -> Row:
        """The row of the table; a number as ``bar`` is a bar of the ratio."""
        limit = bar if isinstance(bar, Bar) else Bar(bar)
        values = self.ours if limit.absolute else self.ratios
        low, high = np.quantile(values, [0.25, 0.75])
        return Row(
            name, what, yardstick, unit, median(self.ours), median(self.base), median(values),
            float(low), float(high), limit.value, limit.at_least, beside,
        )  # fmt: skip

    @property
    def ratios(self) -> list[float]:
        return [ours / base for base, ours in zip(self.base, self.ours, strict=True)]


def in_turns(base: Sample, ours: Sample, rounds: int) -> Pairs:
    """Measures yardstick and pool in turns; the first round of each is a warm-up."""
    base(), ours()
    taken = [(base(), ours()) for _ in range(rounds)]
    return Pairs([b for b, _ in taken], [o for _, o in taken])


def timed(statements: list[str], per: int = 0, seconds: float = 0.001, **names: Any) -> Sample:
    """A sampler of `statements`, compiled into one function: ns per statement (or per `per` items)."""
    setup = "; ".join(f"{name} = _names[{name!r}]" for name in names) or "pass"
    timer = timeit.Timer("\n".join(statements), setup, timer=time.perf_counter_ns, globals={"_names": names})
    timer.timeit(1)
    once = max(1.0, min(timer.timeit(3) / 3 for _ in range(5)))
    number = max(1, round(seconds * 1e9 / once))
    things = number * (per or len(statements))
    return lambda: timer.timeit(number) / things


def read_file(path: Path) -> None:
    """Brings a file into the page cache."""
    with open(path, "rb", buffering=0) as file:
        buffer = bytearray(1 << 20)
        while file.readinto(buffer):
            pass


def segment_like(size: int) -> tuple[mmap.mmap, mmap.mmap]:
    """A bare tmpfs file of `size` bytes, mapped twice: writable, and read-only as the pool does for its views.

    It has no name, and is freed with the last array over it.
    """
    with tempfile.TemporaryFile(dir=SHM) as file:
        file.truncate(size)
        return mmap.mmap(file.fileno(), size), mmap.mmap(file.fileno(), size, prot=mmap.PROT_READ)


class Bench:
    """The resources that the rows share. Files and segments are removed when the block ends."""

    def __init__(self, quick: bool) -> None:
        self.quick = quick
        self.file_pages = 4096 if quick else 16384
        self.rounds = 100 if quick else 600  # of a millisecond or less
        self.long_rounds = 11 if quick else 31
        self.random = random.Random(1)
        self._stack = ExitStack()

    def __enter__(self) -> "Bench":
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    @cached_property
    def file(self) -> Path:
        """A file in the page cache, of `file_pages` pages."""
        directory = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="bufferpool-bench-"))
        path = Path(directory, "pages")
        block = np.random.default_rng(1).integers(0, 256, 1 << 20, np.uint8).tobytes()
        with open(path, "wb") as file:
            for _ in range(self.file_pages * PAGE >> 20):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())  # otherwise write-back would run during the measurements
        read_file(path)
        return path

    @contextmanager
    def pool(self, pages: int, *, named: bool = False) -> Iterator[bufferpool.Pool]:
        """A new pool; its name is removed at once, unless ``named``."""
        name = f"bufferpool-bench-{os.getpid()}-{secrets.token_hex(4)}"
        pool = bufferpool.Pool.create(name, pages * PAGE, page_size=PAGE, extent_size=EXTENT, max_clients=CLIENTS)
        try:
            if not named:
                pool.unlink(discard=True)
            with pool:
                yield pool
        finally:
            if named:
                pool.unlink(discard=True)

    @cached_property
    def hot(self) -> "Hot":
        """Hot pages, for all rows that only read."""
        pool = self._stack.enter_context(self.pool(4096))
        space = pool.open_file(self.file, cache="kernel")
        for n in range(min(4096, self.file_pages)):
            space[n]
        return Hot(pool, space)

    def numbers(self, count: int, most: int) -> list[int]:
        """Different random numbers below `most`."""
        return self.random.sample(range(most), count)


class Hot:
    """A space whose pages are all in the pool, and the same memory as a plain ndarray."""

    def __init__(self, pool: bufferpool.Pool, space: bufferpool.Space) -> None:
        self.space = space
        self.rows: Bytes = np.asarray(pool.data)
        frames = pool.frames()
        live = frames[(frames["state"] == FrameState.LIVE) & (frames["space"] == space.index)]
        self.pages = len(live)
        self.frame_of: npt.NDArray[np.int64] = np.full(self.pages, -1)
        self.frame_of[live["page_no"]] = live["frame"]
        int(self.rows[live["frame"], ::OS_PAGE].sum())  # every page of the mapping, in this process's page table
