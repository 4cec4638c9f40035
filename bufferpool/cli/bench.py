"""``bufferpool bench``: measures a pool on this machine beside yardsticks, in ten seconds.

Each figure is the median of many short rounds that take turns with the yardstick's, so that
a busy machine slows both by the same factor. The project's own table (``make bench``) is longer and slower.
"""

import argparse
import os
import secrets
import tempfile
import time
from collections.abc import Callable
from statistics import median

import numpy as np

from bufferpool.cli.common import Commands, print_json, print_table
from bufferpool.pool import Pool
from bufferpool.spaces.space import Space

PAGE, PAGES, ROUNDS, BATCH = 8192, 1024, 60, 256
Work = Callable[[], object]


def _in_turns(ours: Work, base: Work, rounds: int) -> tuple[float, float]:
    """The median seconds of ``ours`` and ``base``, run in turns; the first round of each is a warm-up."""
    taken: tuple[list[float], list[float]] = ([], [])
    for i in range(rounds + 1):
        for work, times in zip((base, ours), taken, strict=True):
            start = time.perf_counter()
            work()
            if i:
                times.append(time.perf_counter() - start)
    return median(taken[1]), median(taken[0])


def _hits(
    space: Space, plain: "np.ndarray[tuple[int, int], np.dtype[np.uint8]]", ids: list[int]
) -> list[tuple[str, str, Work, Work, int]]:
    out = np.empty((len(ids), PAGE), np.uint8)

    def each(pages: object) -> Work:
        return lambda: [pages[i][0] for i in ids]  # type: ignore[index]

    def pins() -> None:
        for i in ids:
            with space.pin(i) as page:
                page[0]

    def writes() -> None:
        for i in ids:
            with space.write(i) as page:
                page[0] = 1

    def copies() -> None:
        for i in ids:
            page = plain[i].copy()
            page[0] = 1
            plain[i] = page

    return [
        ("hot space[n], one byte", "row of a plain ndarray", each(space), each(plain), len(ids)),
        ("hot with space.pin(n), one byte", "row of a plain ndarray", pins, each(plain), len(ids)),
        ("read_many of hot pages", "np.take(…, out=out)", lambda: space.read_many(ids, out), lambda: plain.take(ids, 0, out), len(ids)),
        ("write of a hot page", "copy of a page out and back", writes, copies, len(ids)),
    ]  # fmt: skip


def measure(directory: str | None) -> list[dict[str, object]]:
    """Measures all rows: what, yardstick, nanoseconds a page of both, and their ratio."""
    rows = []
    name = f"bufferpool-bench-{os.getpid()}-{secrets.token_hex(4)}"
    with (
        tempfile.NamedTemporaryFile() as file,
        Pool.create(name, PAGES * PAGE, page_size=PAGE, directory=directory) as pool,
    ):
        try:
            file.write(bytes(2 * PAGES * PAGE))
            file.flush()
            space = pool.open_file(file.name, "r+", name="bench", cache="kernel")
            plain = np.zeros((PAGES, PAGE), np.uint8)
            ids = np.random.default_rng(1).permutation(PAGES // 2)[:BATCH].tolist()
            space.read_many(ids)
            work = _hits(space, plain, ids)
            fd, at, buffers = file.fileno(), [0, 0], [memoryview(row) for row in plain]

            def misses() -> None:  # twice as many pages as frames, in order: every one is a miss
                for _ in range(BATCH):
                    space[at[0] % (2 * PAGES)]
                    at[0] += 1

            def reads() -> None:
                for _ in range(BATCH):
                    os.preadv(fd, [buffers[at[1] % PAGES]], at[1] % (2 * PAGES) * PAGE)
                    at[1] += 1

            work.append(("miss, file in the page cache", "os.preadv into a plain array", misses, reads, BATCH))
            for what, yardstick, ours, base, n in work:
                a, b = (t / n * 1e9 for t in _in_turns(ours, base, ROUNDS))
                rows.append({"what": what, "yardstick": yardstick, "ours_ns": a, "yardstick_ns": b, "ratio": a / b})
        finally:
            pool.unlink(discard=True)
    return rows


def _bench(args: argparse.Namespace) -> int:
    rows = measure(args.directory)
    if args.json:
        print_json(rows)
        return 0
    cells = [
        (
            str(r["what"]),
            f"{r['ours_ns']:,.0f} ns",
            str(r["yardstick"]),
            f"{r['yardstick_ns']:,.0f} ns",
            f"{r['ratio']:.2f}",
        )
        for r in rows
    ]
    print_table([("WHAT", "TIME", "YARDSTICK", "TIME", "RATIO"), *cells], right=(1, 3, 4))
    return 0


def register(commands: Commands) -> None:
    """Adds the command."""
    commands.add(
        "bench", _bench, "measure a pool on this machine, beside yardsticks, in a few seconds",
        "Makes a pool of 8 MiB and a file of 16 MiB, and removes both. Each time is of one page.\n\nexample:\n  bufferpool bench",
        pool=False,
    )  # fmt: skip
