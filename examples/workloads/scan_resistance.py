"""Point reads continue while another process scans the whole table: which pages does the cache keep?

One process reads pages with a Zipf distribution; after a while a second one scans the table, from end to end,
--passes times. Both run at once, with as many pages of the scan as point reads, independent of the processor time
that each gets. There are two runs: with the hint that it is a scan (space.scan), and without (space[n] in a loop).
Each process records which page it read when. The two lists, merged by time, are the reference string. A plain LRU of
the same size (functools.lru_cache) is run over the same string, and the hit ratios of the point reads in the
pool and in the LRU are compared. A point read is a hit if its process did not read the store for it.
"""

import functools
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pages import PAGE, WORDS, word, write_dataset, zipf
from workload import BLUE, MIB, ORANGE, PALE, Pipe, Run, main, mib

import bufferpool as bp

STEP = 250  # reads of each process between two checks of the pipe
SHOWN = 1000  # the least number of point reads for a point of the picture


class CountingStore:
    """A file that counts how often it is read: once for each miss of this process."""

    def __init__(self, path: Path) -> None:
        self._file = bp.FileStore(path, "r")
        self.reads = 0

    def read_into(self, offset: int, buffer: npt.NDArray[np.uint8]) -> int:
        """Reads a page, and counts it."""
        self.reads += 1
        return self._file.read_into(offset, buffer)

    def write_from(self, offset: int, buffer: npt.NDArray[np.uint8]) -> int:
        """Raises OSError: the table is only read."""
        raise OSError("the table is opened for reading")

    def sync(self) -> None:
        """Does nothing."""

    def size(self) -> int:
        """The size of the file in bytes."""
        return self._file.size()


@dataclass
class Log:
    """The pages that one process read, with the times."""

    times: npt.NDArray[np.int64]
    pages: npt.NDArray[np.int64]
    missed: npt.NDArray[np.bool_]
    wrong: int
    store_reads: int


@dataclass
class Outcome:
    """A run: whether each point read was a hit, in the pool and in the LRU, and whether it was during the scan."""

    title: str
    pool_hits: npt.NDArray[np.bool_]
    lru_hits: npt.NDArray[np.bool_]
    scanning: npt.NDArray[np.bool_]

    def ratios(self, during: bool) -> tuple[float, float]:
        """Hit ratios (pool, LRU), during the scan or in as many reads before it."""
        where = np.flatnonzero(self.scanning)
        if not during:
            where = where[0] - 1 - np.arange(min(len(where), where[0] // 2))
        return float(self.pool_hits[where].mean()), float(self.lru_hits[where].mean())


# ---- the two processes ---------------------------------------------------------------------


def point_reader(pipe: Pipe, pool: bp.Pool, path: Path, n_pages: int, seed: int) -> Log:
    """Reads random pages, STEP for each message."""
    random, store = np.random.default_rng(seed), CountingStore(path)
    table = pool.open_store("table", store, mode="r", dtype=np.uint64)
    times: list[int] = []
    pages: list[int] = []
    missed: list[bool] = []
    wrong = 0
    while pipe.get() == "go":
        numbers, places = zipf(random, n_pages, 1.0, STEP), random.integers(0, WORDS, STEP)
        for n, k in zip(numbers.tolist(), places.tolist(), strict=True):
            before = store.reads
            wrong += table[n].item(k) != word(n, k)
            times.append(time.monotonic_ns())
            missed.append(store.reads != before)
        pages += numbers.tolist()
        pipe.put("read")
    return Log(np.array(times), np.array(pages), np.array(missed), wrong, store.reads)


def scanner(pipe: Pipe, pool: bp.Pool, path: Path, passes: int, hint: bool) -> Log:
    """Reads every page in order, ``passes`` times, STEP for each message; answers whether more are left."""
    store = CountingStore(path)
    table = pool.open_store("table", store, mode="r", dtype=np.uint64)
    times: list[int] = []
    wrong, n_pages = 0, len(table)
    pipe.get()
    for _ in range(passes):
        for n, page in enumerate(table.scan() if hint else map(table.__getitem__, range(n_pages))):
            if times and len(times) % STEP == 0:
                pipe.put(True)
                pipe.get()
            wrong += page.item(n % WORDS) != word(n, n % WORDS)
            times.append(time.monotonic_ns())
    pipe.put(False)
    pages = np.tile(np.arange(n_pages), passes)
    return Log(np.array(times), pages, np.zeros(len(pages), bool), wrong, store.reads)


# ---- the comparison --------------------------------------------------------------------------


def lru_misses(string: npt.NDArray[np.int64], n_frames: int) -> npt.NDArray[np.bool_]:
    """Which references of a string a plain LRU misses."""
    missed = np.zeros(len(string), bool)
    at = 0

    @functools.lru_cache(n_frames)
    def page(_: int) -> None:
        missed[at] = True

    for at, n in enumerate(string.tolist()):  # noqa: B007  page() reads it
        page(n)
    return missed


def measure(run: Run, path: Path, n_pages: int, hint: bool) -> Outcome:
    """Runs the two processes, then the LRU over their references."""
    options, title = run.options, "space.scan()" if hint else "a loop over space[n]"
    pool = run.pool(int(options.cache * MIB))
    points = run.start(point_reader, pool, path, n_pages, options.seed)
    scans = run.start(scanner, pool, path, options.passes, hint)
    alone, together = -(-options.reads // STEP), 0  # in steps
    with run.progress(f"scan by {title}", 2 * alone * STEP) as advance:
        for step in range(2 * alone):
            if step == alone:  # the cache is warm
                more = True
                while more:
                    scans.put("go")
                    points.put("go")
                    points.get()
                    more = scans.get()
                    together += 1
            points.put("go")
            points.get()
            advance(STEP)
    points.put("end")
    point, scan = points.get(), scans.get()
    stats = pool.stats()
    wrong = point.wrong + scan.wrong
    run.check(wrong == 0, f"{title}: {len(point.pages):,} point reads, {len(scan.pages):,} of the scan, {wrong} wrong")
    run.check(
        stats.loads == point.store_reads + scan.store_reads,
        f"{title}: the pool counts {stats.loads:,} loads, the stores were read as often",
    )
    run.check(pool.check() == [], f"{title}: every invariant holds")
    order = np.argsort(np.concatenate([point.times, scan.times]), kind="stable")
    misses = np.empty(len(order), bool)
    misses[order] = lru_misses(np.concatenate([point.pages, scan.pages])[order], pool.budget_frames)
    step = np.arange(len(point.pages)) // STEP
    scanning = (alone <= step) & (step < alone + together)
    return Outcome(title, ~point.missed, ~misses[: len(point.pages)], scanning)


def work(run: Run) -> None:
    """Measures both kinds of scan."""
    n_pages = int(run.options.table * MIB) // PAGE
    path = run.folder() / "table"
    write_dataset(run, path, n_pages)
    outcomes = [measure(run, path, n_pages, hint) for hint in (True, False)]
    rows = []
    for found in outcomes:
        before, during = found.ratios(False), found.ratios(True)
        for name, was, now in zip(("the pool", "plain LRU"), before, during, strict=True):
            rows.append((f"{name}, scan by {found.title}", f"{was:.1%}", f"{now:.1%}", f"{100 * (now - was):+.1f}"))
        run.check(
            during[0] > during[1],
            f"{found.title}: during the scan {during[0]:.1%} of the point reads hit, with plain LRU {during[1]:.1%}",
        )
    title = f"hit ratio of the point reads, {mib(run.options.cache * MIB)} for {mib(n_pages * PAGE)}"
    run.table(title, ("", "before the scan", "during", "points"), rows)
    run.plot(draw, outcomes)


def draw(outcomes: list[Outcome]) -> Any:
    """Draws hit ratios over time, by windows of reads, with the scan shaded."""
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(outcomes), sharey=True, figsize=(9, 3.4), squeeze=False)
    for axes, found in zip(panels[0], outcomes, strict=True):
        window = max(SHOWN, len(found.pool_hits) // 60)
        ends = np.arange(window, len(found.pool_hits) + 1, window)
        x = (ends - window / 2) / 1000
        for name, hits, color in (("the pool", found.pool_hits, BLUE), ("plain LRU", found.lru_hits, ORANGE)):
            axes.plot(x, 100 * hits[: ends[-1]].reshape(-1, window).mean(axis=1), color=color, label=name)
        where = np.flatnonzero(found.scanning)
        axes.axvspan(where[0] / 1000, where[-1] / 1000, color=PALE, alpha=0.6, lw=0)
        axes.text((where[0] + where[-1]) / 2000, 0.02, "scan", ha="center", transform=axes.get_xaxis_transform())
        axes.set(title=f"scan by {found.title}", xlabel="point reads (thousands)", xlim=(0, None))
    panels[0][0].set(ylabel="point reads that hit (%)", ylim=(50, 90))
    panels[0][-1].legend(loc="lower right")
    return figure


if __name__ == "__main__":
    main(
        work,
        table=(128, 16, "size of the table in MiB"),
        cache=(16, 2, "size of the pool, and of the LRU, in MiB"),
        reads=(100_000, 10_000, "point reads before the scan, and after it"),
        passes=(3, 2, "how often the table is scanned"),
    )
