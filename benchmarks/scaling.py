"""How costs grow with the size of the pool, and the rate of misses with the number of processes: two plots, and their figures.

    python benchmarks/scaling.py [--out docs/images] [--json FILE]

For each size of the pool: the processor time of a hit (``space[n][0]``), and that of each page of ``pin_many`` and ``read_many`` of
64 pages, at random over the whole pool. The yardstick is a row of a bare mapping of the same memory.

For each number of processes: the misses a second that they reach together in one pool, of a file that is in the page cache. The
yardstick is as many processes that only call ``os.preadv``. Both plots name the machine.
"""

import argparse
import json
import multiprocessing
import os
import random
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from harness import PAGE, Bench
from large import AT_ONCE, bare, copies, hits, large, pins, size_of, takes
from run import machine

import bufferpool

ROUNDS = 9
READS = 60 * AT_ONCE
WINDOW_S = 0.4
PROCESSES = (1, 2, 4, 8)
LABELS = {
    "bare": "rows[n][0], a bare mapping",
    "space[n]": "space[n][0]",
    "pin_many": "pin_many of 64, release",
    "read_many": "read_many of 64, with the copy of 8 KiB",
    "take": "np.take of 64, mode='clip'",
    "misses": "misses of one pool, file in the page cache",
    "preadv": "os.preadv without a pool",
}


SIDES = {"bare": bare, "space[n]": hits, "pin_many": pins, "read_many": copies, "take": takes}


def by_size(bench: Bench) -> list[dict[str, float]]:
    """Nanoseconds of a page, for pools from 2 MiB to as large as the machine allows."""
    found, size, most, draw = [], 2 << 20, size_of(bench), np.random.default_rng(1)
    while size <= most:
        times: dict[str, list[float]] = {name: [] for name in SIDES}
        with large(bench, size) as hot:
            for turn in range(ROUNDS + 1):
                for name, side in SIDES.items():
                    took = side(hot, list(draw.integers(0, hot.pages, (READS // AT_ONCE, AT_ONCE))))
                    if turn:  # the first one is a warm-up
                        times[name].append(took / READS)
        found.append({"size": float(size)} | {name: float(np.quantile(of, 0.25)) for name, of in times.items()})
        size *= 4 if size * 4 <= most or size * 2 > most else 2
    return found


def _misses(pool: bufferpool.Pool, space: bufferpool.Space, path: str, orders: Connection) -> None:
    """One process. For each order (start, stop, with the pool or without) it reads pages at random, and answers how many it has read."""
    draw, clock, buffer = random.Random(os.getpid()), time.monotonic, [memoryview(bytearray(PAGE))]
    pages = len(space)
    with open(path, "rb", buffering=0) as file:
        fd, preadv = file.fileno(), os.preadv
        orders.send(None)
        while order := orders.recv():
            start, stop, ours = order
            done = 0
            while clock() < start:
                time.sleep(0.001)
            while clock() < stop:
                for n in [draw.randrange(pages) for _ in range(50)]:
                    if ours:
                        space[n]
                    else:
                        preadv(fd, buffer, n * PAGE)
                done += 50
            orders.send(done)
    pool.close()


def rounds_by_processes(bench: Bench) -> dict[tuple[int, bool], list[float]]:
    """Misses a second of 1, 2, 4 and 8 processes in one pool, an eighth of the file, and their calls of preadv without it.

    By (processes, with the pool or without), one figure for each round.
    """
    context = multiprocessing.get_context("spawn")
    rates: dict[tuple[int, bool], list[float]] = {}
    with bench.pool(bench.file_pages // 8, named=True) as pool:
        space = pool.open_file(bench.file, cache="kernel")
        workers = []
        for _ in range(PROCESSES[-1]):
            mine, theirs = context.Pipe()
            context.Process(target=_misses, args=(pool, space, str(bench.file), theirs), daemon=True).start()
            workers.append(mine)
        for worker in workers:
            worker.recv()
        for _ in range(ROUNDS):
            for count in PROCESSES:
                for ours in (False, True):
                    before, start = space.misses, time.monotonic() + 0.05
                    for worker in workers[:count]:
                        worker.send((start, start + WINDOW_S, ours))
                    done = sum(worker.recv() for worker in workers[:count])
                    done = space.misses - before if ours else done
                    rates.setdefault((count, ours), []).append(done / WINDOW_S)
        for worker in workers:
            worker.send(None)
    return rates


def by_processes(bench: Bench) -> list[dict[str, float]]:
    """The upper quartiles of these rounds."""
    rates = rounds_by_processes(bench)
    return [
        {
            "processes": count,
            "misses": float(np.quantile(rates[count, True], 0.75)),
            "preadv": float(np.quantile(rates[count, False], 0.75)),
        }
        for count in PROCESSES
    ]


def describe(about: dict[str, Any]) -> str:
    return (
        f"{about['cores']} cores of {about['cpu']}, Linux {about['kernel']}, Python {about['python']}, "
        f"load {about['load']:.0f} when it began"
    )


def draw(found: dict[str, Any], folder: Path) -> None:
    from matplotlib.figure import Figure

    for name, rows, x, label, title, series in (
        ("cost-by-size", found["by_size"], "size", "pool, bytes", "Processor time a page at random, ns (lower quartile)",
         tuple(SIDES)),
        ("misses-by-processes", found["by_processes"], "processes", "processes", "Pages a second, all processes together",
         ("misses", "preadv")),
    ):  # fmt: skip
        figure = Figure(figsize=(7, 4.2), layout="constrained")
        axes = figure.subplots()
        at = [row[x] for row in rows]
        for one in series:
            axes.plot(at, [row[one] for row in rows], marker="o", label=LABELS[one])
        axes.set_xscale("log", base=2)
        ticks = [f"{n / (1 << 20):.0f} MiB" if n < 1 << 30 else f"{n / (1 << 30):.3g} GiB" for n in at]
        axes.set_xticks(at, ticks if x == "size" else [str(n) for n in at])
        axes.set_ylim(bottom=0)
        axes.set_xlabel(f"{label}\n{describe(found['machine'])}", fontsize=8)
        axes.set_title(title, fontsize=10)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
        figure.savefig(folder / f"{name}.png", dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description="Draws cost against pool size, and misses against processes.")
    parser.add_argument("--out", type=Path, default=Path("docs/images"), help="the folder of the pictures")
    parser.add_argument("--json", type=Path, help="write the figures, too")
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    with Bench(arguments.quick) as bench:
        found = {"machine": machine(), "by_size": by_size(bench), "by_processes": by_processes(bench)}
    print(json.dumps(found, indent=1))
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1))
    draw(found, arguments.out)


if __name__ == "__main__":
    main()
