"""Hot pages of a large pool, at random: most accesses miss the processor's caches, in the pool as in a plain mapping.

Processor time is measured, because nothing here waits, and other programs change the wall time more.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import numpy as np
from harness import PAGE, SHM, Bar, Bench, Hot, Row, in_turns

AT_ONCE = 64
READS = 200 * AT_ONCE


def size_of(bench: Bench) -> int:
    """4 GiB, or less where the machine has less: a pool takes a third of what is free, on both sides of a row."""
    about = os.statvfs(SHM)
    available = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemAvailable"))
    free = min(about.f_bavail * about.f_frsize, int(available.split()[1]) << 10)
    return min(256 << 20 if bench.quick else 4 << 30, free // 3)


@contextmanager
def large(bench: Bench, size: int) -> Iterator[Hot]:
    """A full pool. Every page is in this process's page table, in the pool's mappings and in the plain one."""
    pages = size // PAGE * 7 // 8 - 64  # scratch pages leave an eighth to other spaces
    with bench.pool(size // PAGE) as pool:
        space = pool.open_scratch("large", pages)
        block = np.ones((1024, PAGE), np.uint8)
        for first in range(0, pages, len(block)):
            ids = range(first, min(first + len(block), pages))
            space.write_many(ids, block[: len(ids)])
        yield Hot(pool, space)


Side = Callable[[Hot, list[np.ndarray]], float]


def _row(bench: Bench, name: str, what: str, yardstick: str, bar: Bar, sides: tuple[Side, Side]) -> list[Row]:
    """A row of `sides`: the yardstick and the pool, each a function of the pages and of the numbers that it reads."""
    size = size_of(bench)
    with large(bench, size) as hot:
        random = np.random.default_rng(1)

        def ids() -> list[np.ndarray]:
            return list(random.integers(0, hot.pages, (READS // AT_ONCE, AT_ONCE)))

        def sample(side: Side) -> Callable[[], float]:
            return lambda: side(hot, ids()) / READS

        pairs = in_turns(sample(sides[0]), sample(sides[1]), bench.long_rounds)
    beside = (
        f"{hot.pages:,} pages; {median(pairs.ratios):.2f} times the yardstick"
        if bar.absolute
        else f"{hot.pages:,} pages"
    )
    return [pairs.row(name, f"{what}, {size / (1 << 30):.3g} GiB", yardstick, "ns/page", bar, beside)]


def bare(hot: Hot, ids: list[np.ndarray]) -> float:
    rows, numbers = hot.rows, hot.frame_of[np.concatenate(ids)].tolist()
    start = time.thread_time_ns()
    for n in numbers:
        rows[n][0]
    return time.thread_time_ns() - start


def hits(hot: Hot, ids: list[np.ndarray]) -> float:
    space, numbers = hot.space, np.concatenate(ids).tolist()
    start = time.thread_time_ns()
    for n in numbers:
        space[n][0]
    return time.thread_time_ns() - start


def pins(hot: Hot, ids: list[np.ndarray]) -> float:
    space = hot.space
    start = time.thread_time_ns()
    for some in ids:
        space.pin_many(some).release()
    return time.thread_time_ns() - start


_out = np.zeros((AT_ONCE, PAGE), np.uint8)


def takes(hot: Hot, ids: list[np.ndarray]) -> float:
    rows, frames = hot.rows, [hot.frame_of[some] for some in ids]
    start = time.thread_time_ns()
    for some in frames:
        np.take(rows, some, axis=0, out=_out, mode="clip")
    return time.thread_time_ns() - start


def copies(hot: Hot, ids: list[np.ndarray]) -> float:
    space = hot.space
    start = time.thread_time_ns()
    for some in ids:
        space.read_many(some, _out)
    return time.thread_time_ns() - start


def large_getitem(bench: Bench) -> list[Row]:
    return _row(bench, "large_getitem", "space[n] at random", "rows[n], one byte read", Bar(1.3), (bare, hits))


def large_pin_many(bench: Bench) -> list[Row]:
    what = "pin_many of 64 at random"
    return _row(bench, "large_pin_many", what, "rows[n], one byte read", Bar(80, absolute=True), (bare, pins))


def large_read_many(bench: Bench) -> list[Row]:
    return _row(
        bench, "large_read_many", "read_many of 64 at random", "np.take(…, mode='clip')", Bar(0.9), (takes, copies)
    )


LARGE = (large_getitem, large_pin_many, large_read_many)
