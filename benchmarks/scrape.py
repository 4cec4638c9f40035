"""Measures a scrape: `python benchmarks/scrape.py`.

A pool of 1 GiB with 64 clients attached, every frame resident. Ours is one snapshot of
it by the collector (`collector.read_snapshot`), and the whole scrape as text. The
yardstick is `pread` of the tables that have to be read (the frames' slots, the
pin counts of 64 clients, the entries) into one buffer. Times are processor times: nothing
here waits.
"""

import os
import sys
import time
from statistics import median

import bufferpool as bp
from bufferpool.prometheus import collector, server

CAPACITY, PAGE, CLIENTS, ROUNDS = 1 << 30, 8192, 64, 60


def tables(pool: bp.Pool) -> list[tuple[int, int]]:
    """(offset, bytes) of the entries in use, the frame slots and the pin counts."""
    geometry, frames = pool.client.geometry, CAPACITY // PAGE
    pins = frames * CLIENTS * 2
    slots = frames * 32
    end = geometry["data_at"]
    return [(end - pins - slots - (8 << 20), slots), (end - pins - (4 << 20), pins), (1 << 20, frames * 8)]


def main() -> None:
    if os.statvfs("/dev/shm").f_bavail * os.statvfs("/dev/shm").f_frsize < CAPACITY * 5 // 4:
        sys.exit("/dev/shm needs 1.25 GiB free for this")
    name = f"bench-scrape-{os.getpid()}"
    pool = bp.Pool.create(name, CAPACITY, page_size=PAGE, max_clients=CLIENTS)
    others = []
    try:
        for _ in range(CLIENTS - 1):
            others.append(bp.Pool.attach(name))
        space = pool.open_derived("d", CAPACITY // PAGE, lambda n, out: None)
        held = [other.open_derived("d", CAPACITY // PAGE, lambda n, out: None) for other in others]
        for first in range(0, CAPACITY // PAGE, 1024):
            space.prefetch(range(first, first + 1024))
        pins = [one.pin_many(range(i, CAPACITY // PAGE, 97)) for i, one in enumerate(held)]
        measure(pool)
        for pin in pins:
            pin.release()
        del held, space
    finally:
        pool.unlink(discard=True)


def measure(pool: bp.Pool) -> None:
    """Prints the table: yardstick and ours in turns."""
    wanted = tables(pool)
    buffer = bytearray(max(n for _, n in wanted))
    view = memoryview(buffer)
    fd = os.open(pool.path, os.O_RDONLY)
    before = os.stat(pool.path).st_blocks
    rows: dict[str, list[float]] = {"yardstick": [], "look": [], "scrape": []}
    for _ in range(ROUNDS):
        start = time.process_time()
        for at, n in wanted:
            os.preadv(fd, [view[:n]], at)
        rows["yardstick"].append(time.process_time() - start)
        start = time.process_time()
        snapshot = collector.read_snapshot(pool.name)
        rows["look"].append(time.process_time() - start)
        start = time.process_time()
        text = server.text_of(pool.name)
        rows["scrape"].append(time.process_time() - start)
    os.close(fd)
    base = median(rows["yardstick"])
    frames = snapshot.summary.frames
    print(
        f"1 GiB, {frames.live:,} pages resident, {frames.pinned:,} pinned, {snapshot.alive} clients, {len(text):,} bytes of text"
    )
    for what, label in (
        ("yardstick", "pread of the same tables"),
        ("look", "reading the pool"),
        ("scrape", "the whole scrape, as text"),
    ):
        times = sorted(rows[what])
        print(
            f"{label:<28} {median(times) * 1e3:6.2f} ms  (quickest {times[0] * 1e3:.2f}, slowest {times[-1] * 1e3:.2f})"
            f"  {median(times) / base:5.2f} times the yardstick"
        )
    print(f"blocks of the segment allocated by {2 * ROUNDS} scrapes: {os.stat(pool.path).st_blocks - before}")
    print(f"a scrape in less than 20 ms: {'yes' if median(rows['scrape']) < 0.020 else 'NO'}")


if __name__ == "__main__":
    main()
