"""Nearest neighbours by a graph index that is larger than its cache: one shared pool beside np.memmap.

The vectors lie on disk in groups, a page each: neighbours in space share a page, and each has links to other vectors, near and far.
A search walks the links. In each hop it reads the pages of the most promising vectors that it has not seen, all at once
(`pin_many`: what is absent is read together), compares the query with every vector of these pages, and follows
their links. Short codes of all vectors, which are in memory, say which vectors are promising, as in DiskANN.

Several processes answer the same queries, from a cold start: nothing of the index is in any cache. The answers
of both kinds must be the same, and nearly those of a search through all vectors. Memory is the pool's, by the kernel's
count, and what the page cache has of the file.

  memmap  np.memmap of the file: the page cache has as much of it as was ever read
  pool    one bufferpool of --cache MiB for all processes
"""

import ctypes
import mmap
import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from machine import kernel_bytes
from pages import PAGE
from workload import BLUE, GREEN, MIB, Pipe, Run, draw_bars, main, mib

import bufferpool as bp

DIMENSIONS, LINKS, FAR_LINKS, CODE = 96, 31, 8, 16
NODE = np.dtype([("number", "<i4"), ("vector", "<f4", DIMENSIONS), ("links", "<i4", LINKS)])
GROUP = PAGE // NODE.itemsize  # vectors of a page
WANTED, WIDTH, LIST = 10, 8, 128  # neighbours of an answer, pages of a hop, candidates that are kept

Vectors = npt.NDArray[np.float32]
Numbers = npt.NDArray[np.int64]
Pages = Callable[[Numbers], AbstractContextManager[Any]]  # a block that has these pages

# ---- the index ---------------------------------------------------------------------------


def vectors_of(random: np.random.Generator, count: int) -> Vectors:
    """Vectors in clusters, as embeddings are."""
    centres = random.normal(size=(max(8, count // 200), DIMENSIONS))
    return (centres[random.integers(0, len(centres), count)] + 0.6 * random.normal(size=(count, DIMENSIONS))).astype(
        "f4"
    )


def grouped(random: np.random.Generator, vectors: Vectors, numbers: Numbers) -> list[Numbers]:
    """Groups of GROUP vectors that are near each other: halves along random directions, and so on."""
    if len(numbers) <= GROUP:
        return [numbers]
    order = numbers[np.argsort(vectors[numbers] @ random.normal(size=DIMENSIONS).astype("f4"))]
    half = (len(order) // GROUP + 1) // 2 * GROUP
    return grouped(random, vectors, order[:half]) + grouped(random, vectors, order[half:])


def nearest(vectors: Vectors, queries: Vectors, count: int) -> Numbers:
    """The nearest vectors of each query, by a look at all of them."""
    distances = (vectors**2).sum(1) - 2 * queries @ vectors.T
    found = np.argpartition(distances, count, axis=1)[:, :count]
    return np.take_along_axis(found, np.take_along_axis(distances, found, 1).argsort(1), 1)


def build(run: Run, path: Path, vectors: Vectors, random: np.random.Generator) -> Vectors:
    """Writes the index; returns the codes of its vectors, in its order."""
    order = np.concatenate(grouped(random, vectors, np.arange(len(vectors))))
    placed = vectors[order]
    nodes = np.zeros(len(placed), NODE)
    nodes["number"], nodes["vector"] = order, placed
    nodes["links"][:, :FAR_LINKS] = random.integers(0, len(placed), (len(placed), FAR_LINKS))
    with run.progress("building the index", len(placed)) as advance:
        for first in range(0, len(placed), 512):
            some = slice(first, first + 512)
            nodes["links"][some, FAR_LINKS:] = nearest(placed, placed[some], LINKS - FAR_LINKS + 1)[:, 1:]
            advance(len(placed[some]))
    with path.open("wb") as file:
        file.write(nodes.tobytes())
        file.flush()
        os.fsync(file.fileno())
    directions = np.linalg.qr(random.normal(size=(DIMENSIONS, CODE)))[0].astype("f4")
    np.save(path.with_suffix(".directions.npy"), directions)
    np.save(path.with_suffix(".codes.npy"), placed @ directions)
    return placed


# ---- a search ----------------------------------------------------------------------------


@dataclass
class Index:
    """An index as one process has it: how it gets at pages, and the codes."""

    pages: Pages
    directions: Vectors
    codes: Vectors
    hops: int = 0

    def search(self, query: Vectors) -> list[int]:
        """The numbers of the nearest vectors that the walk finds, the nearest first."""
        code = query @ self.directions
        known = np.zeros(len(self.codes), bool)
        read = np.zeros(-(-len(self.codes) // GROUP), bool)
        candidates = np.linspace(0, len(self.codes) - 1, WIDTH).astype(np.int64)  # the walk begins anywhere
        known[candidates] = True
        found: list[tuple[float, int]] = []
        while True:
            unread = np.unique(candidates[~read[candidates // GROUP]][:WIDTH] // GROUP)
            if not unread.size:
                return [number for _, number in sorted(found)[:WANTED]]
            self.hops += 1
            read[unread] = True
            links = [candidates]
            with self.pages(unread) as pages:
                for nodes in pages:
                    distances = ((nodes["vector"] - query) ** 2).sum(1)
                    found += zip(distances.tolist(), nodes["number"].tolist(), strict=True)
                    links.append(nodes["links"].ravel().astype(np.int64))
            new = np.unique(np.concatenate(links[1:]))
            new = new[~known[new]]
            known[new] = True
            candidates = np.concatenate([candidates, new])
            order = np.argsort(((self.codes[candidates] - code) ** 2).sum(1), kind="stable")
            candidates = candidates[order[:LIST]]


def searcher(
    pipe: Pipe, path: Path, pool: bp.Pool | None, queries: Vectors
) -> tuple[list[list[int]], float, float, int]:
    """A process that answers queries: (the answers, begin, end, hops)."""
    if pool is not None:
        space = pool.open_file(path, dtype=NODE)
        pages: Pages = space.pin_many
    else:
        mapped = np.memmap(path, NODE, "r").reshape(-1, GROUP)
        pages = lambda numbers: nullcontext([mapped[n] for n in numbers.tolist()])  # noqa: E731
    codes = np.load(path.with_suffix(".codes.npy"))
    index = Index(pages, np.load(path.with_suffix(".directions.npy")), codes)
    pipe.put("ready")
    pipe.get()
    began = time.monotonic()
    answers = []
    for query in queries:
        answers.append(index.search(query))
        pipe.put(1)
    ended = time.monotonic()
    pipe.put("done")
    return answers, began, ended, index.hops


# ---- the two kinds -------------------------------------------------------------------------


@dataclass
class Round:
    """What one kind has done: bytes, and queries per second."""

    kind: str
    answers: list[list[int]]
    pool_bytes: int
    cached_bytes: int
    queries_per_s: float
    hops: float


def cached_bytes(path: Path) -> int:
    """How many bytes of a file the page cache has."""
    size = path.stat().st_size
    with path.open("rb") as file, mmap.mmap(file.fileno(), size, prot=mmap.PROT_READ) as view:
        here, there = np.frombuffer(view, np.uint8), np.zeros(-(-size // mmap.PAGESIZE), np.uint8)
        ctypes.CDLL(None).mincore(
            ctypes.c_void_p(here.ctypes.data), ctypes.c_size_t(size), ctypes.c_void_p(there.ctypes.data)
        )
        del here
    return int((there & 1).sum()) * mmap.PAGESIZE


def measure(run: Run, kind: str, path: Path, queries: Vectors) -> Round:
    """Every process answers its share of the queries, from a cold start."""
    options = run.options
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    pool = run.pool(int(options.cache * MIB)) if kind == "pool" else None
    workers = [run.start(searcher, path, pool, share) for share in np.array_split(queries, options.workers)]
    for worker in workers:
        worker.get()
    for worker in workers:
        worker.put("go")
    with run.progress(f"searching: {kind}", len(queries)) as advance:
        for worker in workers:
            while worker.get() != "done":
                advance(1)
    answers, began, ended, hops = zip(*(worker.get() for worker in workers), strict=True)
    in_pool = 0
    if pool is not None:
        in_pool = kernel_bytes(pool) - pool.stats().metadata_bytes
        run.check(in_pool <= options.cache * MIB, f"pool: its pages take {mib(in_pool)} by the kernel's count")
        run.check(pool.frames()["pins"].sum() == 0, "pool: no pin is left")
        run.check(pool.check() == [], "pool: every invariant holds")
    found = Round(kind, [one for some in answers for one in some], in_pool, cached_bytes(path),
                  len(queries) / (max(ended) - min(began)), sum(hops) / len(queries))  # fmt: skip
    for worker in workers:
        worker.end()
    return found


def work(run: Run) -> None:
    """Builds the index, and searches it by both kinds."""
    options = run.options
    random = np.random.default_rng(options.seed)
    count = int(options.vectors) // GROUP * GROUP
    everything = vectors_of(random, count + int(options.queries))
    vectors, queries = everything[:count], everything[count:]
    path = run.folder() / "index"
    build(run, path, vectors, random)
    right = nearest(vectors, queries, WANTED)
    size = path.stat().st_size
    run.say(f"{count:,} vectors in {mib(size)}, {size / (options.cache * MIB):.1f} times the pool")
    rounds = [measure(run, kind, path, queries) for kind in ("memmap", "pool")]
    memmap, pool = rounds
    run.table(
        f"{options.workers} processes, {len(queries):,} queries, from a cold start",
        ("", "queries/s", "hops a query", "pool", "page cache"),
        [(r.kind, f"{r.queries_per_s:,.0f}", f"{r.hops:.1f}", mib(r.pool_bytes), mib(r.cached_bytes)) for r in rounds],
    )
    recall = np.mean([len(set(a) & set(b)) / WANTED for a, b in zip(pool.answers, right.tolist(), strict=True)])
    run.check(recall >= 0.9, f"{recall:.1%} of the neighbours are those of a search through all vectors")
    run.check(pool.answers == memmap.answers, "both kinds give the same answers")
    if pool.cached_bytes < memmap.cached_bytes:  # not where the file system refuses O_DIRECT
        run.say(f"the pool leaves {mib(pool.cached_bytes)} in the page cache, memmap {mib(memmap.cached_bytes)}")
    run.plot(draw, rounds, options.workers)


def draw(rounds: list[Round], n_workers: int) -> Any:
    """Memory to the left, throughput to the right."""
    from matplotlib import pyplot

    figure, (memory, speed) = pyplot.subplots(1, 2, sharey=True, figsize=(9, 2.4))
    names = [r.kind for r in rounds]
    parts = (("page cache", "cached_bytes", GREEN), ("pool", "pool_bytes", BLUE))
    sizes = [([getattr(r, part) / MIB for r in rounds], color, label) for label, part, color in parts]
    texts = [f"{(r.cached_bytes + r.pool_bytes) / MIB:.0f}" for r in rounds]
    draw_bars(memory, "memory that has pages of the index (MiB)", names, texts, *sizes)
    figure.legend(loc="outside lower center", ncols=2)
    speeds, title = [r.queries_per_s for r in rounds], f"queries a second, {n_workers} processes, cold start"
    draw_bars(speed, title, names, [f"{one:,.0f}" for one in speeds], (speeds, [GREEN, BLUE], ""))
    return figure


if __name__ == "__main__":
    main(
        work,
        workers=(4, 2, "processes that search"),
        vectors=(20_000, 4_000, "vectors of the index, 512 bytes each"),
        queries=(1_000, 60, "queries"),
        cache=(2.5, 0.5, "size of the pool in MiB"),
    )
