"""A pool with a steward, while the memory of the machine is unplugged block by block. Prints what happened.

python -m lab.inside.unplug
"""

import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

import bufferpool as bp
from bufferpool.upkeep.budget import Rules
from bufferpool.upkeep.steward import Settings
from lab.inside.kernel import MIB, fork, meminfo, report, result

NAME, PAGE, CAPACITY = "lab-unplug", 64 << 10, 448 * MIB
BLOCKS = Path("/sys/devices/system/memory")
ABOVE = 4 << 30  # where a DIMM lies that was plugged in
PATIENCE_S = 120
HEADROOM = 0.3
"""A block of 128 MiB is taken at once: more than that must be free when it is, or the kernel kills a process."""


def make(page_no: int, out: Any) -> None:
    """The loader of a derived page."""
    np.asarray(out)[:] = page_no % 251


def blocks_of_the_dimm() -> list[Path]:
    """The memory blocks of the DIMM."""
    size = int((BLOCKS / "block_size_bytes").read_text(), 16)
    found = sorted(BLOCKS.glob("memory[0-9]*"), key=lambda block: int(block.name[6:]))
    return [block for block in found if int(block.name[6:]) * size >= ABOVE]


def plug_in() -> int:
    """Puts the blocks of the DIMM into use for pages that can move; returns how many blocks there are."""
    blocks = blocks_of_the_dimm()
    for block in blocks:
        if (block / "state").read_text().strip() == "offline":
            (block / "state").write_text("online_movable")
    return len(blocks)


def take_away(block: Path) -> float:
    """Puts a block out of use; the kernel moves its pages, and tries again until it has room. Returns the seconds it took."""
    began = time.monotonic()
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(PATIENCE_S)  # only a signal ends the kernel's attempts
    while True:
        try:
            (block / "state").write_text("offline")
            return time.monotonic() - began
        except OSError:  # a page could not be moved this time
            time.sleep(0.2)


def take_all_away() -> list[float]:
    """Puts all blocks out of use."""
    return [take_away(block) for block in blocks_of_the_dimm()]


def main() -> None:
    """Keeps the pool in use while the DIMM is put out of use."""
    blocks, total = plug_in(), meminfo("MemTotal")
    with bp.Pool.create(NAME, CAPACITY, page_size=PAGE, min_capacity=8 * MIB, max_capacity=CAPACITY) as pool:
        tiles = pool.open_derived("tiles", CAPACITY // PAGE, make)
        work = pool.open_scratch("work", 64)
        for n in range(64):  # what only the pool has: it must move, and not be lost
            with work.write(n) as page:
                page[:] = n + 1
        for n in range(len(tiles) * 8 // 10):
            assert int(tiles[n][3]) == n % 251
        full, wrong, random = pool.stats().resident_bytes, 0, np.random.default_rng(1)
        pool.start_steward(Settings(idle=None, rules=Rules(headroom=HEADROOM)))
        taker = fork(take_all_away)
        while Path(f"/proc/{taker[0]}/wchan").exists() and "Z" not in Path(f"/proc/{taker[0]}/stat").read_text():
            for n in random.integers(0, len(tiles), 16).tolist():
                wrong += int(tiles[n][7]) != n % 251
            time.sleep(0.02)
        code, seconds = result(taker)
        pool.stop_steward()
        wrong += sum(int(work[n][PAGE - 1]) != n + 1 for n in range(64))
        facts = {
            "full": full, "resident": pool.stats().resident_bytes, "blocks": blocks, "code": code, "seconds": seconds,
            "total": [total, meminfo("MemTotal")], "wrong": wrong, "check": pool.check(),
            "states": [(block / "state").read_text().strip() for block in blocks_of_the_dimm()],
            "reasons": sorted({event.reason.name for event in pool.events()}),
        }  # fmt: skip
        pool.unlink(discard=True)
    report(**facts)


if __name__ == "__main__":
    sys.exit(main())
