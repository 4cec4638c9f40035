"""What a hit, a miss and an attach cost beside how many other clients are attached, and what these take.

    python benchmarks/clients.py [--clients 1 64 500 2000] [--rounds 7]

One process attaches to each pool many times: a client is an attachment, and what one costs the others does not depend on whose process it is.
The pools are measured in turn, round after round; a figure is the median of the ratios to the pool with the fewest clients.
"""

import argparse
import contextlib
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

import bufferpool as bp

PAGE, FRAMES, PAGES, BATCH = 8192, 512, 4096, 4096


class Crowd:
    """A pool with so many clients attached, of which one is measured."""

    def __init__(self, stack: contextlib.ExitStack, path: Path, clients: int) -> None:
        self.clients = clients
        made = bp.Pool.create(
            f"clients-{os.getpid()}-{clients}",
            FRAMES * PAGE,
            page_size=PAGE,
            max_clients=max(256, clients),
            room=FRAMES * PAGE,  # each attachment maps it
            max_pages=2 * PAGES,
        )
        self.pool = stack.enter_context(made)
        stack.callback(self.pool.unlink)
        self.table = self.pool.open_file(path, cache="kernel")
        begin = time.thread_time()
        for _ in range(clients - 1):
            stack.enter_context(bp.Pool.attach(self.pool.name))
        self.attach_s = (time.thread_time() - begin) / max(1, clients - 1)
        self.next = 0

    def misses(self) -> float:
        """Seconds of processor time a miss: pages in order, eight times as many as the pool has frames."""
        begin = time.thread_time()
        for _ in range(BATCH):
            self.table[self.next]
            self.next = (self.next + 1) % PAGES
        return (time.thread_time() - begin) / BATCH

    def hits(self) -> float:
        """The same a hit."""
        self.table[0]
        begin = time.thread_time()
        for _ in range(BATCH):
            self.table[0]
        return (time.thread_time() - begin) / BATCH


def ratios(crowds: list[Crowd], measure: Callable[[Crowd], float], rounds: int) -> list[float]:
    """The medians of the ratios to the first one."""
    seen = [[measure(crowd) for crowd in crowds] for _ in range(rounds)]
    return [statistics.median(row[i] / row[0] for row in seen) for i in range(len(crowds))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 64, 500, 2000])
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        path = Path(folder) / "pages"
        np.zeros(PAGES * PAGE, np.uint8).tofile(path)
        crowds = [Crowd(stack, path, clients) for clients in options.clients]
        for crowd in crowds:
            crowd.misses()
        misses, hits = ratios(crowds, Crowd.misses, options.rounds), ratios(crowds, Crowd.hits, options.rounds)
        print(f"{'clients':>8} {'miss':>6} {'hit':>6} {'attach':>8} {'metadata':>10}")
        for crowd, miss, hit in zip(crowds, misses, hits, strict=True):
            memory = crowd.pool.stats().metadata_bytes / 2**20
            print(f"{crowd.clients:8} {miss:6.2f} {hit:6.2f} {crowd.attach_s * 1e3:5.1f} ms {memory:6.1f} MiB")


if __name__ == "__main__":
    main()
