"""Several processes read one dataset: with a cache in each process, with np.memmap, and with one shared pool.

The workers read pages of a file with a Zipf distribution and check a word of each. The file is in the page
cache before each round, so that no disk is timed. Memory is the growth of the workers' proportional set size
(PSS) while they read, in private memory, the file and the pool: a page that several processes map is counted
once. Page cache that no process maps is not included: the kernel can reclaim it. Reads are counted in the second half, when the caches are warm.

  private  an LRU cache of --cache MiB in each worker, filled by pread (functools.lru_cache)
  memmap   np.memmap: the workers map the page cache, as much of it as they use
  pool     one bufferpool of --cache MiB for all of them
  whole    one bufferpool that the whole dataset fits into, as for memmap
"""

import functools
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from machine import kernel_bytes, pss
from pages import PAGE, WORDS, word, write_dataset, zipf
from workload import BLUE, GREEN, MIB, ORANGE, Pipe, Run, Worker, draw_bars, main, mib

import bufferpool as bp

CHUNK = 5000  # reads between two reports
KINDS = ("private", "memmap", "pool", "whole")


@dataclass
class Round:
    """The result of one kind of cache, over all workers: bytes, and reads per second."""

    kind: str
    anon: int
    file: int
    shm: int
    reads_per_s: float
    hit_ratio: float

    @property
    def memory(self) -> int:
        """The sum in bytes: private memory, file and pool."""
        return self.anon + self.file + self.shm


# ---- a worker ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Task:
    """What each worker reads, and through which cache."""

    kind: str
    path: Path
    cache_pages: int
    pool: bp.Pool | None
    n_pages: int
    reads: int


def opened(kind: str, path: Path, cache_pages: int, pool: bp.Pool | None) -> tuple[Callable[[int], np.ndarray], Any]:
    """(a function that returns a page, the object that counts hits)."""
    if pool is not None:
        return pool.open_file(path, dtype=np.uint64).__getitem__, None
    if kind == "memmap":
        rows = np.asarray(np.memmap(path, np.uint64, "r")).reshape(-1, WORDS)  # a plain array: faster to index
        return rows.__getitem__, None
    fd = os.open(path, os.O_RDONLY)
    cached = functools.lru_cache(cache_pages)(lambda n: np.frombuffer(os.pread(fd, PAGE, n * PAGE), np.uint64))
    return cached, cached.cache_info


def reader(pipe: Pipe, task: Task, seed: int) -> tuple[int, float, float, float]:
    """Reads, reports each chunk, and returns (wrong words, begin and end of the second half, hit ratio)."""
    random, reads = np.random.default_rng(seed), task.reads
    pages, places = zipf(random, task.n_pages, 1.0, reads), random.integers(0, WORDS, reads)
    read, info = opened(task.kind, task.path, task.cache_pages, task.pool)
    pipe.put("ready")
    pipe.get()
    wrong, began = 0, 0.0
    for first in range(0, reads, CHUNK):
        if first >= reads // 2 and not began:
            began = time.monotonic()
        chunk = slice(first, first + CHUNK)
        for n, k in zip(pages[chunk].tolist(), places[chunk].tolist(), strict=True):
            if read(n).item(k) != word(n, k):
                wrong += 1
        pipe.put(len(pages[chunk]))
    ended = time.monotonic()
    pipe.put("read")
    pipe.get()  # keeps the cache until it has been measured
    return wrong, began, ended, info().hits / reads if info else float("nan")


# ---- the rounds ----------------------------------------------------------------------------


def total(workers: list[Worker], *files: Path) -> list[int]:
    """The workers' PSS, added up: private memory, and each file."""
    return [sum(parts) for parts in zip(*(pss(worker.pid, *files) for worker in workers), strict=True)]


def warm(path: Path) -> None:
    """Reads a file into the page cache, in parts: the workers, which are forks of this process, would inherit the memory that a read of
    all of it had left to malloc, and a cache that takes its pages from there looks smaller than it is."""
    with open(path, "rb", buffering=0) as file:
        part = bytearray(1 << 16)
        while file.readinto(part):
            pass


def follow(workers: list[Worker], advance: Callable[[int], None]) -> None:
    """Waits until every worker has read everything."""
    left = list(workers)
    while left:
        for worker in list(left):
            step = worker.get()
            if step == "read":
                left.remove(worker)
            else:
                advance(step)


def measure(run: Run, kind: str, path: Path, n_pages: int) -> Round:
    """One kind of cache, from cold to warm."""
    options = run.options
    capacity = int(options.cache * MIB) if kind != "whole" else n_pages * PAGE
    pool = run.pool(capacity) if kind in ("pool", "whole") else None
    warm(path)
    task = Task(kind, path, capacity // PAGE, pool, n_pages, options.reads)
    workers = [run.start(reader, task, options.seed + n) for n in range(options.workers)]
    for worker in workers:
        worker.get()
    files = (path, Path(pool.path if pool is not None else "none"))
    before = total(workers, *files)
    for worker in workers:
        worker.put("go")
    with run.progress(f"reading: {kind}", options.workers * options.reads) as advance:
        follow(workers, advance)
    after = total(workers, *files)
    for worker in workers:
        worker.put("end")
    wrong, began, ended, hits = zip(*(worker.get() for worker in workers), strict=True)
    reads = options.workers * options.reads
    run.check(sum(wrong) == 0, f"{kind}: {reads:,} words read, {sum(wrong)} of them wrong")
    if pool is not None:
        check_pool(run, kind, pool, capacity, after[2])
    for worker in workers:  # end all workers, so that the next round shares no memory with them
        worker.end()
    anon, file, shm = (now - then for now, then in zip(after, before, strict=True))
    speed, hit_ratio = reads / 2 / (max(ended) - min(began)), pool.stats().hit_ratio if pool else float(np.mean(hits))
    return Round(kind, anon, file, shm, speed, hit_ratio)


def check_pool(run: Run, kind: str, pool: bp.Pool, capacity: int, in_pss: int) -> None:
    """Compares the pool's count of its memory with both counts of the kernel."""
    whole = kernel_bytes(pool)
    data = whole - pool.stats().metadata_bytes
    run.check(data <= capacity, f"{kind}: its pages take {mib(data)} by the kernel's count, of {mib(capacity)}")
    run.check(in_pss <= whole, f"{kind}: the workers' PSS has {mib(in_pss)} of the segment's {mib(whole)}")
    run.check(pool.check() == [], f"{kind}: every invariant holds")


def work(run: Run) -> None:
    """Runs all rounds."""
    n_pages = int(run.options.dataset * MIB) // PAGE
    path = run.folder() / "dataset"
    write_dataset(run, path, n_pages)
    rounds = [measure(run, kind, path, n_pages) for kind in KINDS]
    private, memmap, pool, _ = rounds
    run.table(
        f"{run.options.workers} workers, {mib(n_pages * PAGE)} of data, caches of {mib(run.options.cache * MIB)}",
        ("", "memory (PSS)", "to the pool's", "reads/s", "to the pool's", "hit ratio"),
        [
            (r.kind, mib(r.memory), f"{r.memory / pool.memory:.2f}", f"{r.reads_per_s:,.0f}",
             f"{r.reads_per_s / pool.reads_per_s:.2f}", f"{r.hit_ratio:.1%}" if r.hit_ratio == r.hit_ratio else "")
            for r in rounds
        ],
    )  # fmt: skip
    for other in (private, memmap):
        run.check(
            pool.memory < other.memory,
            f"the pool takes {mib(pool.memory)}, {other.kind} {mib(other.memory)}",
        )
    run.plot(draw, rounds, run.options.workers)


def draw(rounds: list[Round], n_workers: int) -> Any:
    """Memory to the left, throughput to the right."""
    from matplotlib import pyplot

    figure, (memory, speed) = pyplot.subplots(1, 2, sharey=True, figsize=(9, 3.2))
    names = [r.kind for r in rounds]
    parts = (("private memory", "anon", ORANGE), ("mapped page cache", "file", GREEN), ("shared memory", "shm", BLUE))
    sizes = [([max(0, getattr(r, part)) / MIB for r in rounds], color, label) for label, part, color in parts]
    title = f"memory of {n_workers} workers (PSS, MiB)"
    draw_bars(memory, title, names, [f"{r.memory / MIB:.0f}" for r in rounds], *sizes)
    figure.legend(loc="outside lower center", ncols=3)
    speeds = [r.reads_per_s / 1e6 for r in rounds]
    texts = [f"{millions:.2f}" for millions in speeds]
    colors = [ORANGE, GREEN, BLUE, BLUE]
    draw_bars(speed, "verified reads a second (millions)", names, texts, (speeds, colors, ""))
    return figure


if __name__ == "__main__":
    main(
        work,
        workers=(4, 2, "worker processes"),
        dataset=(256, 24, "size of the file in MiB"),
        cache=(64, 4, "size of each cache in MiB"),
        reads=(300_000, 20_000, "reads of each worker"),
    )
