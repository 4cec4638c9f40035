"""A pool with a steward, in a guest whose host takes memory back: says "filled", gives way, says how far.

python -m lab.inside.balloon           until the size of the machine's memory has stayed the same for a while
python -m lab.inside.balloon STOP      until there is a file STOP
"""

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

import bufferpool as bp
from bufferpool.upkeep.steward import Settings
from lab.inside.kernel import MIB, meminfo, report

NAME, PAGE, CAPACITY = "lab-balloon", 64 << 10, 512 * MIB


def make(page_no: int, out: Any) -> None:
    """The loader of a derived page."""
    np.asarray(out)[:] = page_no % 251


def main() -> None:
    """Keeps the pool in use while the memory of the machine falls."""
    stop = Path(sys.argv[1]) if sys.argv[1:] else None
    with bp.Pool.create(NAME, CAPACITY, page_size=PAGE, min_capacity=8 * MIB, max_capacity=CAPACITY) as pool:
        tiles = pool.open_derived("tiles", CAPACITY // PAGE, make)
        for n in range(len(tiles) * 9 // 10):
            assert int(tiles[n][3]) == n % 251
        full = pool.stats().resident_bytes
        pool.start_steward(Settings(idle=None))
        print("filled", full, meminfo("MemTotal"), flush=True)
        wrong, end, random, total, since = 0, time.monotonic() + 360, np.random.default_rng(1), meminfo("MemTotal"), 0.0
        while time.monotonic() < end and (not stop.exists() if stop else not since or time.monotonic() - since < 20):
            for n in random.integers(0, len(tiles), 16).tolist():
                wrong += int(tiles[n][7]) != n % 251
            time.sleep(0.02)
            if meminfo("MemTotal") != total:
                total, since = meminfo("MemTotal"), time.monotonic()
        pool.stop_steward()
        facts = {
            "full": full,
            "resident": pool.stats().resident_bytes,
            "total": total,
            "wrong": wrong,
            "check": pool.check(),
        }
        facts["reasons"] = sorted({event.reason.name for event in pool.events()})
        print("given", flush=True)
        time.sleep(1)
        pool.unlink(discard=True)
    report(**facts)


if __name__ == "__main__":
    sys.exit(main())
