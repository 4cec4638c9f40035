"""What huge pages for the data give and cost: two full pools of one size, one of them with ``huge_pages=True``, in turns.

The pages are read at random, so most accesses miss the processor's caches, and without huge pages its table of addresses (TLB), too.
Processor time is measured, because nothing here waits.

    benchmarks/huge_pages.py           two pools of 2 GiB (or a sixth of what is free), a minute
    benchmarks/huge_pages.py --quick   two of 256 MiB

Printed for each operation: the time with huge pages divided by the time without, the median of the rounds and its quartiles.
"fill" is the time to write every page of the new pool, with the memory that the kernel gives for it.
"""

import argparse
import os
import secrets
import time
from collections.abc import Callable
from contextlib import ExitStack

import large
import numpy as np
from harness import PAGE, Bench, Hot, in_turns

import bufferpool


def fill(stack: ExitStack, size: int, huge_pages: bool) -> tuple[Hot, float]:
    """A full pool, and the seconds of processor time that filling it took."""
    name = f"bufferpool-bench-{os.getpid()}-{secrets.token_hex(4)}"
    pool = bufferpool.Pool.create(name, size, page_size=PAGE, huge_pages=huge_pages)
    pool.unlink(discard=True)
    stack.callback(pool.close, discard=True)
    pages = size // PAGE * 7 // 8 - 64  # scratch pages leave an eighth to other spaces
    space = pool.open_scratch("large", pages)
    block = np.ones((1024, PAGE), np.uint8)
    start = time.thread_time()
    for first in range(0, pages, len(block)):
        ids = range(first, min(first + len(block), pages))
        space.write_many(ids, block[: len(ids)])
    return Hot(pool, space), time.thread_time() - start


def row(what: str, without: Callable[[], float], with_huge: Callable[[], float], rounds: int) -> None:
    ratios = in_turns(without, with_huge, rounds).ratios
    low, middle, high = np.quantile(ratios, [0.25, 0.5, 0.75])
    print(f"{what:40} {middle:5.2f}  ({low:.2f} to {high:.2f})", flush=True)


def measure(quick: bool) -> None:
    with Bench(quick) as bench, ExitStack() as stack:
        size = (256 << 20 if quick else large.size_of(bench) // 2) >> 21 << 21
        (small, small_s), (huge, huge_s) = (fill(stack, size, huge_pages) for huge_pages in (False, True))
        print(f"two pools of {size >> 20} MiB, pages of {PAGE >> 10} KiB; with huge pages / without\n")
        random = np.random.default_rng(1)

        def sample(side: large.Side, hot: Hot) -> Callable[[], float]:
            return lambda: side(hot, list(random.integers(0, hot.pages, (large.READS // large.AT_ONCE, large.AT_ONCE))))

        for what, side in (
            ("space[n][0]", large.hits),
            ("a row of the mapping, one byte", large.bare),
            ("pin_many of 64", large.pins),
            ("read_many of 64", large.copies),
        ):
            row(what, sample(side, small), sample(side, huge), bench.long_rounds)
        print(f"{'fill':40} {huge_s / small_s:5.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="two pools of 256 MiB, and fewer rounds")
    measure(parser.parse_args().quick)


if __name__ == "__main__":
    main()
