"""Several processes read a remote file: with a cache of fsspec in each process, and with one pool for all of them.

An HTTP server in this process answers after 20 ms, and counts what it sends. The workers open the file for each request, as the
workers of a service do, read ranges with a Zipf distribution, and check words of each. Every kind of cache begins empty.

  readahead   what fsspec.open("http://...") does: the bytes around each read, for as long as the file is open
  blockcache  blocks of 5 MiB on the disk, for each process
  pool        bufferpool::http://..., one pool for all processes

In the round of the pool one worker is killed in the middle, and in the end the file is replaced at the server.
"""

import os
import signal
import time
from dataclasses import dataclass
from typing import Any

import fsspec
import numpy as np
from pages import PAGE, WORDS, word, write_dataset, zipf
from workload import BLUE, MIB, ORANGE, Pipe, Run, Worker, draw_bars, main, mib

import bufferpool as bp
from integrations.origin import Origin

KINDS = ("readahead", "blockcache", "pool")
PAGES = 8  # of one read
LATENCY_S = 0.02


@dataclass(frozen=True)
class Task:
    """What each worker reads, and through which cache."""

    kind: str
    url: str
    pool: str
    n_pages: int
    reads: int


@dataclass
class Round:
    """The result of one kind of cache, over all workers."""

    kind: str
    fetched: int
    seconds: float


def opened(kind: str, pool: str) -> Any:
    """A file system that has cached nothing in this process."""
    if kind == "readahead":
        return fsspec.filesystem("http", cache_type="readahead")
    options: dict[str, Any] = {"pool": pool, "budget": "64MiB", "steward": False} if kind == "pool" else {}
    name = "bufferpool" if kind == "pool" else kind
    return fsspec.filesystem(name, target_protocol="http", skip_instance_cache=True, **options)


def reader(pipe: Pipe, task: Task, seed: int) -> int:
    """Opens and reads the file again and again; returns the number of wrong words."""
    random = np.random.default_rng(seed)
    fs, wrong = opened(task.kind, task.pool), 0
    pipe.put("ready")
    pipe.get()
    for first in zipf(random, task.n_pages - PAGES, 1.0, task.reads).tolist():
        with fs.open(task.url) as file:
            file.seek(first * PAGE)
            found = np.frombuffer(file.read(PAGES * PAGE), np.uint64).reshape(PAGES, WORDS)
        k = int(random.integers(WORDS))
        wrong += sum(int(found[i, k]) != word(first + i, k) for i in range(PAGES))
        pipe.put(1)
    pipe.put("read")
    return wrong


def follow(workers: list[Worker], advance: Any, victim: Worker | None) -> None:
    """Waits until every worker has read everything; kills the victim on the way."""
    left = [worker for worker in workers if worker is not victim]
    if victim is not None:
        for _ in range(3):
            victim.get()
        os.kill(victim.pid, signal.SIGKILL)
    while left:
        for worker in list(left):
            if worker.get() == "read":
                left.remove(worker)
            else:
                advance(1)


def measure(run: Run, origin: Origin, kind: str, url: str, n_pages: int) -> Round:
    """One kind of cache, from cold."""
    options, pool = run.options, run.pool_name()
    task = Task(kind, url, pool, n_pages, options.reads)
    workers = [run.start(reader, task, options.seed + n) for n in range(options.workers)]
    for worker in workers:
        worker.get()
    victim = workers[-1] if kind == "pool" else None
    origin.forget()
    began = time.monotonic()
    for worker in workers:
        worker.put("go")
    with run.progress(f"reading: {kind}", options.workers * options.reads) as advance:
        follow(workers, advance, victim)
    seconds = time.monotonic() - began
    wrong = sum(worker.get() for worker in workers if worker is not victim)
    fetched = origin.bytes_sent
    run.check(wrong == 0, f"{kind}: {mib(fetched)} fetched in {seconds:.1f} s, {wrong} words wrong")
    if kind == "pool":
        check_pool(run, origin, url, pool)
    return Round(kind, fetched, seconds)


def check_pool(run: Run, origin: Origin, url: str, name: str) -> None:
    """What holds after a worker was killed, and when the file is replaced."""
    with bp.Pool.attach(name) as pool:
        run.check(
            pool.check() == [], f"after kill -9 of a worker every invariant holds: {pool.stats().loads} blocks loaded"
        )
        used, budget = pool.stats().resident_bytes, pool.capacity
        run.check(used <= budget, f"the blocks take {mib(used)} of a budget of {mib(budget)}")
    fs, old = opened("pool", name), origin.files["dataset"].content
    with fs.open(url) as file:
        first = file.read(1000)
        origin.put("dataset", old[::-1])
        try:
            rest = file.read()
        except bp.errors.RemoteChanged as error:
            rest = b""
            run.say(f"    {error}"[:110] + "…")
        run.check(first + rest in (first, old), "the open file shows no byte of the new version")
    run.check(fs.cat_file(url) == old[::-1], "opened again, it has the new version")
    origin.put("dataset", old)
    fs.blocks.pool.close()


def work(run: Run) -> None:
    """Runs all rounds."""
    n_pages = int(run.options.dataset * MIB) // PAGE
    path = run.folder() / "dataset"
    write_dataset(run, path, n_pages)
    with Origin(LATENCY_S) as origin:
        url = origin.put("dataset", path.read_bytes())
        rounds = [measure(run, origin, kind, url, n_pages) for kind in KINDS]
    pool = rounds[-1]
    run.table(
        f"{run.options.workers} workers, {run.options.reads} requests each, a file of {mib(n_pages * PAGE)}",
        ("", "fetched", "to the pool's", "seconds", "to the pool's"),
        [
            (
                r.kind,
                mib(r.fetched),
                f"{r.fetched / pool.fetched:.1f}",
                f"{r.seconds:.1f}",
                f"{r.seconds / pool.seconds:.1f}",
            )
            for r in rounds
        ],
    )
    for other in rounds[:-1]:
        run.check(
            pool.fetched < other.fetched, f"the pool fetches {mib(pool.fetched)}, {other.kind} {mib(other.fetched)}"
        )
    run.plot(draw, rounds, run.options.workers)


def draw(rounds: list[Round], n_workers: int) -> Any:
    """Bytes to the left, time to the right."""
    from matplotlib import pyplot

    figure, (fetched, seconds) = pyplot.subplots(1, 2, sharey=True, figsize=(9, 2.6))
    names, colors = [r.kind for r in rounds], [ORANGE, ORANGE, BLUE]
    sizes, times = [r.fetched / MIB for r in rounds], [r.seconds for r in rounds]
    title = f"fetched for {n_workers} workers (MiB)"
    draw_bars(fetched, title, names, [f"{size:.0f}" for size in sizes], (sizes, colors, ""))
    draw_bars(seconds, "until all requests are answered (s)", names, [f"{s:.1f}" for s in times], (times, colors, ""))
    return figure


if __name__ == "__main__":
    main(
        work,
        workers=(4, 3, "worker processes"),
        dataset=(64, 16, "size of the file in MiB"),
        reads=(40, 8, "requests of each worker"),
    )
