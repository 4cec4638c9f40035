"""A pool with four workers, for the dashboard, its test and its pictures.

    python dashboards/workload.py --name demo --seconds 600

A table three times as large as the pool, read with a few pages hot and many cold, and
written; tiles that a function makes; a temporary table; a cache of values. In every period the budget is
lowered and raised, cold pages are given back, a range of pages is dropped, a scan runs, a
reader keeps pages pinned, and one worker is killed and replaced. It removes all that it
made when it ends, also by SIGTERM.
"""

import argparse
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import numpy as np

import bufferpool as bp

PAGE, PAGES, CAPACITY = 8192, 12288, 32 << 20
WORKERS = 4
LEGAL = (bp.errors.PoolExhausted, bp.errors.WaitTimeout, bp.errors.PageDiscarded)


def paint(number: int, out: np.ndarray) -> None:
    """Computes a tile. It takes a while, as for pages that are worth caching."""
    out[:] = number % 256
    time.sleep(0.0002)


def sleep_until(end: float) -> None:
    """Sleeps until a monotonic time, at most a second at once: Python handles a signal that arrives just before a sleep when the sleep is over."""
    while (left := end - time.monotonic()) > 0:
        time.sleep(min(left, 1.0))


def total(number: int) -> bytes:
    """Computes a value of the cache."""
    return bytes(1000 + number % 7 * 1000)


def work(name: str, path: str, seed: int, period: float) -> None:
    """A worker; it runs until it is killed."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    random = np.random.default_rng(seed)
    pool = bp.Pool.attach(name)
    table = pool.open_file(path, mode="r+", name="orders")
    tiles = pool.open_derived("tiles", 2000, paint)
    cache = pool.cache("totals")
    temporary = pool.open_scratch(f"sort-{seed % WORKERS}", n_pages=64, lifetime="process", discardable=True)
    while True:
        phase = time.monotonic() / period
        wide = 0.5 + 0.4 * np.sin(phase * 2 * np.pi)  # the used share of the table grows and shrinks
        pages = np.minimum((random.pareto(1.0, 64) * PAGES * wide / 20).astype(int), PAGES - 1)
        with suppress(*LEGAL):
            for page in pages.tolist():
                _ = table[page][0]
            for page in pages[:4].tolist():
                with table.write(page, timeout=1.0) as copy:
                    copy[8:16] = seed % 256
            for page in (pages[4:20] % 2000).tolist():
                _ = tiles[page][0]
            for page in (pages[:8] % 500).tolist():
                cache.get_or_load(page, total)
            with temporary.write(int(pages[0]) % 64) as copy:
                copy[0] = 1
            if seed % WORKERS == 0 and int(phase * 50) % 50 == 25:
                for _ in table.scan(0, 3000):
                    pass
            if seed % WORKERS == 1 and int(phase * 10) % 10 == 3:
                with table.pin_many(np.unique(pages)):
                    time.sleep(0.05)
        time.sleep(0.03)


class Show:
    """The pool, its workers, and the actions of a period."""

    def __init__(self, name: str, folder: str, period: float) -> None:
        self.path = os.path.join(folder, "orders.db")
        np.zeros(PAGES * PAGE, np.uint8).tofile(self.path)
        self.name, self.period, self.born = name, period, 0
        self.workers: list[multiprocessing.process.BaseProcess] = []
        self.pool = bp.Pool.create(
            name, CAPACITY, page_size=PAGE, max_capacity=2 * CAPACITY, max_clients=16, permissions=0o644
        )
        try:
            self.table = self.pool.open_file(
                self.path, mode="r+", name="orders"
            )  # opened here, so that this process's steward can write its pages
            self.tiles = self.pool.open_derived("tiles", 2000, paint)
            for _ in range(WORKERS):
                self.workers.append(self.start())
            self.pool.start_steward(bp.Settings(flush_every=min(5.0, period / 4), pressure=False))
        except BaseException:
            self.close()
            raise

    def start(self) -> multiprocessing.process.BaseProcess:
        self.born += 1
        process = multiprocessing.get_context("spawn").Process(
            target=work, args=(self.name, self.path, self.born - 1, self.period), daemon=True
        )
        process.start()
        return process

    def steps(self) -> list[tuple[float, object]]:
        """The actions, each with its time as a share of the period."""

        def kill() -> None:
            victim = self.workers.pop(0)
            victim.kill()
            victim.join()
            self.pool.reap()
            self.workers.append(self.start())

        return [
            (0.15, lambda: self.pool.resize(CAPACITY // 2)),
            (0.35, lambda: self.pool.trim_idle(self.period / 10)),
            (0.45, kill),
            (0.55, lambda: self.pool.resize(CAPACITY)),
            (0.70, lambda: self.tiles.drop(0, 500)),
            (0.80, lambda: self.pool.trim("2MiB")),
            (0.90, lambda: self.pool.flush()),
        ]

    def run(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            start = time.monotonic()
            for at, step in self.steps():
                sleep_until(min(start + at * self.period, end))
                if time.monotonic() >= end:
                    return
                with suppress(*LEGAL):
                    step()  # type: ignore[operator]
            sleep_until(min(start + self.period, end))

    def close(self) -> None:
        for worker in self.workers:
            worker.kill()
            worker.join()
        self.pool.reap()
        self.pool.unlink(discard=True)  # its file is removed as well
        self.pool.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", default="demo", help="of the pool (default: demo)")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="how long (default: until it is ended)")
    parser.add_argument("--period", type=float, default=60.0, help="seconds of one round of everything (default: 60)")
    options = parser.parse_args()
    early: list[int] = []  # signals that arrive before the pool is ready to be closed
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: early.append(number))
    with tempfile.TemporaryDirectory(prefix="bufferpool-demo-") as folder:
        show = Show(options.name, folder, options.period)
        print(f"pool {options.name} in {Path(show.pool.path).parent}, {WORKERS} workers", flush=True)
        try:
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
            signal.signal(signal.SIGINT, signal.default_int_handler)
            show.run(0.0 if early else options.seconds)
        except KeyboardInterrupt:
            pass
        finally:
            show.close()


if __name__ == "__main__":
    main()
