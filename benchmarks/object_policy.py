"""The eviction of objects beside LRU, GDSF, S3-FIFO and W-TinyLFU, on traces with sizes made by formulas.

    benchmarks/object_policy.py                  every trace
    benchmarks/object_policy.py FILE.npz …       your own: arrays `keys` and `sizes`, one for each access
    benchmarks/object_policy.py --cache          also a real cache of as many bytes, including its index and rounding

For each policy: its miss ratio divided by the best yardstick's, for objects and for bytes; the geometric mean
over all traces and budgets, and the worst. The cache runs with three costs of a load: its default, equal ones, and
the bytes.
The exit code is 1 when the bars are not met.
"""

import argparse
import os
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
from made_objects import Trace, made_objects
from object_yardsticks import YARDSTICKS, misses_of

import bufferpool as bp

SHARES = (0.03, 0.2)  # of the bytes of all objects
OURS, EQUAL, BYTES = "bufferpool", "bufferpool, equal costs", "bufferpool, costs as bytes"
CACHE = "bufferpool, a real cache"
NEAR = 1.1, 1.15  # bars of the default cost, for objects and bytes; with costs to match, the best yardstick is the bar
Ratios = dict[str, tuple[float, float]]


def cache_misses(keys: np.ndarray, sizes: np.ndarray, budget: int) -> tuple[int, int]:
    """The misses, and their bytes, of a cache in a pool. Each miss puts its object into the cache."""
    block, missed = bytes(int(sizes.max())), 0
    with bp.Pool.create(f"bufferpool-bench-{os.getpid()}", max(2 * budget, 1 << 20)) as pool:
        try:
            cache, misses = pool.cache("trace", limit=budget), 0
            for key, size in zip(keys.tolist(), sizes.tolist(), strict=True):
                if cache.get(key) is None:
                    cache.put(key, block[:size])
                    misses, missed = misses + 1, missed + size
        finally:
            pool.unlink(discard=True)
    return misses, missed


def measure(keys: np.ndarray, sizes: np.ndarray, budget: int, real: bool) -> Ratios:
    """Policy -> (misses, missed bytes)."""
    uses = list(zip(keys.tolist(), sizes.tolist(), strict=True))
    found: Ratios = {name: misses_of(name, uses, budget) for name in YARDSTICKS}
    for name, costs in ((OURS, None), (EQUAL, np.ones(len(keys))), (BYTES, sizes)):
        simulated = bp.simulate_objects(keys, sizes, budget, costs=costs)
        found[name] = simulated.misses, simulated.missed_bytes
    if real:
        found[CACHE] = cache_misses(keys, sizes, budget)
    return found


def compare(traces: dict[str, Trace], real: bool) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Policy -> its misses and its missed bytes, divided by the best yardstick's, at every point."""
    points: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for name, (keys, sizes) in traces.items():
        _, first = np.unique(keys, return_index=True)
        for share in SHARES:
            row = measure(keys, sizes, int(share * sizes[first].sum()), real)
            best = [min(row[y][i] for y in YARDSTICKS) for i in (0, 1)]
            cells = "".join(f"{m / len(keys):9.4f} {b / sizes.sum():6.4f}" for m, b in row.values())
            print(f"{name:<34}{share:5.2f}{cells}", flush=True)
            for policy, (misses, missed) in row.items():
                points[policy].append((misses / best[0], missed / best[1]))
    return {policy: tuple(np.array(p).T) for policy, p in points.items()}


def load(files: list[Path]) -> dict[str, Trace]:
    if not files:
        return made_objects()
    return {file.stem: (np.load(file)["keys"], np.load(file)["sizes"]) for file in files}


def main() -> int:
    parser = argparse.ArgumentParser(description="Measures the eviction of objects beside other policies.")
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help=".npz with arrays 'keys' and 'sizes'")
    parser.add_argument("--cache", action="store_true", help="also a real cache in a pool")
    options = parser.parse_args()
    files = options.files
    columns = *YARDSTICKS, OURS, EQUAL, BYTES, *[CACHE] * options.cache
    print(f"{'misses, missed bytes':<39}" + "".join(f"{name[-15:]:>16}" for name in columns))
    found = compare(load(files), options.cache)
    print(f"\n{'divided by the best yardstick':<32}{'objects':>9}{'worst':>7}{'bytes':>9}{'worst':>7}")
    means = {policy: [float(np.exp(np.log(ratios).mean())) for ratios in both] for policy, both in found.items()}
    for policy, both in found.items():
        cells = "".join(f"{mean:>9.3f}{ratios.max():>7.2f}" for mean, ratios in zip(means[policy], both, strict=True))
        print(f"{policy:<32}{cells}")
    best = [min(means[name][which] for name in YARDSTICKS) for which in (0, 1)]
    met = means[EQUAL][0] <= best[0] and means[BYTES][1] <= best[1] and np.less_equal(means[OURS], NEAR).all()
    print(
        f"\nequal costs at most {best[0]:.3f}, costs as bytes {best[1]:.3f}, default {NEAR}: {'ok' if met else 'MISSED'}"
    )
    return 0 if met or files else 1


if __name__ == "__main__":
    sys.exit(main())
