"""A load that rises, falls and moves, and a pool whose memory follows it.

Two processes read pages of a region that changes from phase to phase; the pool's steward gives pages back that
have not been used for a while. Then a neighbour process takes memory under a real limit (a memory cgroup if
one can be made, else a small tmpfs that the pool shares with it): the budget falls, and when
the neighbour has ended it rises again, as far as it pays by the miss-ratio curve. The report compares the kernel's
count, the pool's count, and the memory of a cache of fixed size, which never gives memory back.
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from machine import MemoryCgroup, Refused, in_own_namespace, kernel_bytes, memory_cgroup, small_tmpfs
from pages import PAGE, WORDS, stamp, word
from rich.progress import BarColumn, Progress, TextColumn
from workload import BLUE, GREEN, GREY, MIB, ORANGE, PALE, Pipe, Run, Worker, eventually, main, mib

import bufferpool as bp
from bufferpool.upkeep.budget import Rules

BATCH = 500  # reads between two checks of the pipe
STEP = 2 * MIB  # the neighbour takes memory in steps
SAMPLE_S = 0.05
PHASES = (  # the region, as shares of the largest pool: where it begins, and its size
    ("rises", 0, 0.15), ("rises more", 0, 0.45), ("peaks", 0, 0.9),
    ("falls", 0, 0.2), ("moves", 1.2, 0.2), ("grows", 1.0, 0.7),
)  # fmt: skip
PATIENCE_S = 60.0  # the time limit for the pool to follow; it takes a second or two


# ---- the load and the neighbour: processes -----------------------------------------------------


def make(page_no: int, out: npt.NDArray[np.uint64]) -> None:
    """The loader: computes a page."""
    out[:] = stamp(page_no)


def load(pipe: Pipe, pool: bp.Pool, n_pages: int, touched_path: Path, seed: int) -> tuple[int, int]:
    """Reads random pages of the region in its last message; returns (reads, wrong words).

    Messages: (first page, number of pages), each answered; 0 pages: pause; None: end.
    """
    random, region, reads, wrong = np.random.default_rng(seed), (0, 0), 0, 0
    tiles = pool.open_derived("tiles", n_pages, make, dtype=np.uint64)
    touched = np.memmap(touched_path, np.uint8, "r+")
    while True:
        if pipe.waiting() or not region[1]:
            region = pipe.get()
            if region is None:
                return reads, wrong
            pipe.put("so be it")
            continue
        pages = random.integers(region[0], region[0] + region[1], BATCH)
        for n, k in zip(pages.tolist(), random.integers(0, WORDS, BATCH).tolist(), strict=True):
            wrong += tiles[n].item(k) != word(n, k)
        touched[pages] = 1
        reads += BATCH


def neighbour(pipe: Pipe, folder: Path | None) -> None:
    """Takes as many bytes as each message says: of its own memory, or in a file of the tmpfs. 0: gives all back."""
    blocks: list[npt.NDArray[np.uint8]] = []
    while True:
        size, had = pipe.get(), sum(block.nbytes for block in blocks)
        if folder is not None:
            with open(folder / "neighbour", "ab") as file:
                had = file.tell()
                os.posix_fallocate(file.fileno(), had, size) if size else file.truncate(0)
        elif size:
            blocks.append(np.ones(size, np.uint8))
        else:
            blocks.clear()
        pipe.put(had + size if size else 0)


# ---- the limit ---------------------------------------------------------------------------------


@dataclass
class Limit:
    """The limit that the pool shares with the neighbour."""

    name: str
    size: int
    group: MemoryCgroup | None = None
    folder: Path | None = None  # the tmpfs, if that is the limit

    def room(self) -> int:
        """Bytes free below the limit."""
        if self.group is not None:
            return self.size - self.group.used()
        found = os.statvfs(str(self.folder))
        return found.f_bavail * found.f_frsize

    def enforce(self, size: int, headroom: float) -> None:
        """Sets the limit so that the pool and the processes may take ``size`` bytes more than now.

        The steward raises the budget only while twice the headroom, a share of the limit, stays free: the limit has that besides.
        """
        if self.group is not None:
            self.size = int((self.group.used() + size) / (1 - 2 * headroom))
            self.group.limit(self.size)


def limit_for(run: Run, size: int) -> Limit | None:
    """Makes a memory cgroup or a tmpfs of ``size`` bytes; returns None, and prints why, if neither is possible."""
    kind = run.options.limit
    try:
        if kind in ("auto", "cgroup"):
            group = run.stack.enter_context(memory_cgroup())
            group.add(os.getpid())  # the steward is a thread of this process, and reads its cgroup
            return Limit(f"a memory cgroup (version {group.version})", size, group)
    except Refused as reason:
        run.say(str(reason))
    try:
        if kind in ("auto", "tmpfs"):
            if os.geteuid():
                in_own_namespace()
            mount = run.stack.enter_context(small_tmpfs(size, run.folder()))
            return Limit("a tmpfs", size, folder=mount)
    except Refused as reason:
        run.say(str(reason))
    run.say("no limit: this run has no memory pressure")
    return None


# ---- the pool and the processes -------------------------------------------------------------------------------


@dataclass
class Sample:
    """The figures of one moment: the time in seconds, all others in bytes."""

    time: float
    region: int
    budget: int
    pool: int
    kernel: int
    fixed: int
    neighbour: int


class Stage:
    """The pool, the load, the neighbour, and the samples."""

    def __init__(self, run: Run) -> None:
        options = run.options
        self.run, self.most = run, int(options.pool * MIB)
        self.limit = limit_for(run, 3 * self.most // 2)
        where = {} if self.limit is None or self.limit.folder is None else {"directory": self.limit.folder}
        self.pool = run.pool(self.most, min_capacity=self.most // 16, **where)
        self.n_pages = 2 * self.most // PAGE
        path = run.folder() / "touched"
        self.touched = np.memmap(path, np.uint8, "w+", shape=(self.n_pages,))
        self.loads = [self.begin(load, self.pool, self.n_pages, path, options.seed + n) for n in (1, 2)]
        folder = self.limit.folder if self.limit else None
        self.neighbour = self.begin(neighbour, folder)
        self.region = (0, 0)
        self.taken = 0
        self.take(0)
        self.move(0, 0.1)
        time.sleep(0.5)  # until every process has allocated its own memory
        rules = Rules(headroom=0.08, rest_s=1.0, grow_every_s=options.idle / 6)  # faster than the defaults
        if self.limit is not None:
            self.limit.enforce(3 * self.most // 2 - kernel_bytes(self.pool), rules.headroom)
        self.samples: list[Sample] = []
        self.phases: list[tuple[float, str]] = []
        self.exact: list[bool] = []
        self.pool.start_steward(bp.Settings(interval=SAMPLE_S, idle=options.idle, rules=rules))
        self.bars = Progress(TextColumn("{task.description:<24}"), BarColumn(50), TextColumn("{task.fields[size]:>11}"),
                             console=run.console)  # fmt: skip
        names = (
            "the load's region",
            "the budget",
            "the pool",
            "the kernel's count",
            "a cache of fixed size",
            "the neighbour",
        )
        self.tasks = [self.bars.add_task(name, total=self.most, size="") for name in names]
        run.stack.enter_context(self.bars)
        self.began = time.monotonic()

    def begin(self, function: Callable[..., Any], *arguments: Any) -> Worker:
        """Starts a process under the limit."""
        worker = self.run.start(function, *arguments)
        if self.limit is not None and self.limit.group is not None:
            self.limit.group.add(worker.pid)
        return worker

    def sample(self) -> Sample:
        """Takes a sample."""
        stats = self.pool.stats()
        now = Sample(
            time.monotonic() - self.began,
            self.region[1] * PAGE,
            stats.budget_bytes,
            stats.resident_bytes,
            kernel_bytes(self.pool) - stats.metadata_bytes,
            min(self.most, int(np.count_nonzero(self.touched)) * PAGE),
            self.taken,
        )
        self.samples.append(now)
        shown = (now.region, now.budget, now.pool, now.kernel, now.fixed, now.neighbour)
        for task, size in zip(self.tasks, shown, strict=True):
            self.bars.update(task, completed=size, size=mib(size))
        return now

    def watch(self, until: Callable[[Sample], bool]) -> bool:
        """Takes samples until ``until`` holds; returns False if it never does."""
        end = time.monotonic() + PATIENCE_S
        while not until(self.sample()):
            if time.monotonic() > end:
                return False
            time.sleep(SAMPLE_S)
        return True

    def hold(self) -> None:
        """Takes samples for a while: long enough for unused pages to be given back."""
        end = time.monotonic() + 1.5 * self.run.options.idle
        self.watch(lambda _: time.monotonic() > end)

    def move(self, first: float, size: float) -> None:
        """Moves the load's region; given as shares of the largest pool."""
        self.region = int(first * self.most) // PAGE, int(size * self.most) // PAGE
        for worker in self.loads:
            worker.put(self.region)
        for worker in self.loads:
            worker.get()

    def take(self, size: int) -> None:
        """Lets the neighbour take ``size`` bytes; 0: give all back."""
        self.neighbour.put(size)
        self.taken = self.neighbour.get()

    def count_exactly(self) -> None:
        """Compares the pool's and the kernel's counts while the load pauses."""
        region = self.region
        self.move(0, 0)

        def equal() -> bool:
            stats = self.pool.stats()
            return stats.resident_bytes == kernel_bytes(self.pool) - stats.metadata_bytes

        self.exact.append(eventually(equal))  # the steward may just be giving memory back
        self.move(region[0] * PAGE / self.most, region[1] * PAGE / self.most)

    def phase(self, name: str, first: float, size: float) -> None:
        """Moves the load, and checks that the pool's memory follows."""
        self.phases.append((time.monotonic() - self.began, name))
        self.move(first, size)
        region = self.region[1] * PAGE
        low, high = 0.85 * region, 1.2 * region + 2 * MIB
        self.hold()
        followed = self.watch(lambda now: low <= now.kernel <= high)
        if not self.run.options.quick:
            self.hold()  # for the picture
        now = self.samples[-1]
        self.run.check(
            followed,
            f"{name}: the load uses {mib(region)}, the pool holds {mib(now.kernel)}, a fixed cache {mib(now.fixed)}",
        )
        self.count_exactly()


# ---- the phases --------------------------------------------------------------------------------


def share(stage: Stage, limit: Limit) -> None:
    """Checks that the budget falls when the neighbour takes memory, and rises when it ends."""
    run, pool = stage.run, stage.pool
    stage.phases.append((time.monotonic() - stage.began, "a neighbour"))
    before, goal = pool.stats(), stage.region[1] * PAGE // 2

    def given() -> int:
        return pool.stats().reclaimed_bytes["pressure"] - before.reclaimed_bytes["pressure"]

    def give_way(now: Sample) -> bool:
        if now.kernel > goal and limit.room() > 2 * STEP:  # without free memory it would be killed, or refused
            stage.take(STEP)
        return now.kernel <= goal and given() >= goal // 2  # a delayed load also gives pages back as idle

    gave = stage.watch(give_way)
    stage.hold()
    gave &= stage.watch(lambda now: now.kernel <= now.budget)  # wait until the pool has shrunk to the lowered budget
    now = stage.samples[-1]
    run.check(
        gave,
        f"a neighbour took {mib(now.neighbour)} under {limit.name} of {mib(limit.size)}: "
        f"the pool gave {mib(given())} for pressure, and holds {mib(now.kernel)}",
    )
    stage.count_exactly()
    stage.phases.append((time.monotonic() - stage.began, "it leaves"))
    stage.take(0)
    region = stage.region[1] * PAGE
    grew = stage.watch(lambda now: now.kernel >= 0.85 * region)
    stage.hold()
    now = stage.samples[-1]
    run.check(grew, f"the neighbour left: the budget rose to {mib(now.budget)}, the pool holds {mib(now.kernel)} again")


def work(run: Run) -> None:
    """Runs the phases, then compares the counts."""
    stage = Stage(run)
    pool = stage.pool
    for name, first, size in PHASES[3:] if run.options.quick else PHASES:
        stage.phase(name, first, size)
    if stage.limit is not None:
        share(stage, stage.limit)
    stage.phases.append((time.monotonic() - stage.began, "ends"))
    stage.move(0, 0)
    gone = stage.watch(lambda now: now.kernel <= MIB)
    stage.hold()
    stage.bars.stop()
    now = stage.samples[-1]
    run.check(gone, f"the load ends: the pool holds {mib(now.kernel)}, a fixed cache {mib(now.fixed)}")
    for worker in stage.loads:
        worker.put(None)
    reads, wrong = (sum(part) for part in zip(*(worker.get() for worker in stage.loads), strict=True))
    run.check(wrong == 0, f"{reads:,} words read, {wrong} of them wrong")
    run.check(
        all(stage.exact),
        f"{len(stage.exact)} times the load paused: the pool and the kernel count the same, to the byte",
    )
    most = max(sample.kernel for sample in stage.samples)
    run.check(most <= stage.most, f"the kernel never counted more than {mib(most)}, of {mib(stage.most)} at most")
    pool.stop_steward()
    run.check(pool.check() == [], "every invariant holds")
    report(run, stage)
    run.plot(draw, stage.samples, stage.phases, stage.limit)


def report(run: Run, stage: Stage) -> None:
    """Prints the steward's decisions with their reasons, and the average memory."""
    decisions: dict[tuple[str, str], list[bp.figures.events.Event]] = {}
    for event in stage.pool.events():
        decisions.setdefault((event.kind.name.lower(), event.reason.name.lower()), []).append(event)
    run.table(
        "what the steward did (pool.events())",
        ("what", "why", "times", "given back"),
        [
            (what.replace("_", " "), why, str(len(found)), mib(sum(e.bytes for e in found)))
            for (what, why), found in decisions.items()
        ],
    )
    for found in decisions.values():
        run.say(f"     for instance: {found[-1]}")
    lasted = np.diff([s.time for s in stage.samples])
    means = {
        name: float(np.average([getattr(s, name) for s in stage.samples[:-1]], weights=lasted))
        for name in ("region", "kernel", "fixed")
    }
    run.say(
        f"on average the load used {mib(means['region'])}, the pool held {mib(means['kernel'])}, "
        f"a cache of fixed size {mib(means['fixed'])}: {means['fixed'] / means['kernel']:.1f} times as much"
    )


def draw(samples: list[Sample], phases: list[tuple[float, str]], limit: Limit | None) -> Any:
    """Draws all figures over time."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 4.4))
    times = [s.time for s in samples]

    def series(name: str) -> npt.NDArray[np.float64]:
        return np.array([getattr(s, name) for s in samples]) / MIB

    axes.fill_between(times, series("region"), step="post", color=PALE, lw=0, label="what the load uses")
    axes.plot(times, series("fixed"), color=ORANGE, label="a cache of fixed size")
    axes.plot(times, series("budget"), color=GREY, ls="--", lw=1.1, label="the pool's budget")
    axes.plot(times, series("pool"), color=GREEN, lw=4, alpha=0.45, label="the pool, by its own count")
    axes.plot(times, series("kernel"), color=BLUE, lw=1.1, label="the pool, by the kernel's count (st_blocks)")
    highest = series("budget").max()
    if limit is not None:
        highest = max(highest, series("neighbour").max())
        axes.plot(times, series("neighbour"), color="#b03a48", ls=":", label="a neighbour, in the same limit")
    top = 1.12 * highest
    for n, (at, name) in enumerate(phases):
        axes.axvline(at, color=GREY, lw=0.6, ls=":")
        axes.text(at, top * (0.995 if n % 2 else 0.95), f" {name}", va="top", fontsize=8.5)
    axes.set(xlabel="seconds", ylabel="MiB", xlim=(0, times[-1]), ylim=(0, top))
    figure.legend(loc="outside lower center", ncols=3)
    return figure


if __name__ == "__main__":
    choice = {
        "choices": ["auto", "cgroup", "tmpfs", "none"],
        "default": "auto",
        "help": "the limit that a neighbour shares with the pool (default: auto, the first that is possible)",
    }
    main(
        work,
        {"--limit": choice},
        pool=(256, 48, "what the pool may have at most, in MiB"),
        idle=(1.5, 0.5, "seconds after which untouched pages go back"),
    )
