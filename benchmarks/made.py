"""Page traces made by formulas: patterns that are rare in recorded traces."""

import numpy as np
import numpy.typing as npt

Pages = npt.NDArray[np.int64]

PAGES, LENGTH = 5000, 200_000
SET = PAGES // 5  # pages of a working set


def _zipf(rng: np.random.Generator, length: int, exponent: float) -> Pages:
    """Ranks 0 to PAGES - 1, drawn with probability proportional to 1 / (rank + 1) ** exponent."""
    weights = np.cumsum(1 / np.arange(1, PAGES + 1) ** exponent)
    ranks: Pages = np.searchsorted(weights, rng.random(length) * weights[-1])
    return ranks


def _walk(rng: np.random.Generator, stride: int) -> Pages:
    steps = np.repeat(np.cumsum(rng.integers(-stride, stride + 1, LENGTH // 4)), 4)
    return np.abs(steps + (rng.standard_normal(LENGTH) * 4 * stride).astype(np.int64)) % PAGES


def _recency(rng: np.random.Generator) -> Pages:
    """Distances in the LRU stack are Pareto-distributed: recent pages are used again."""
    stack, pages = list(range(4000)), []
    for depth in np.minimum((rng.pareto(0.9, LENGTH // 2) * 3).astype(np.int64), 3999).tolist():
        pages.append(stack.pop(depth))
        stack.insert(0, pages[-1])
    return np.array(pages)


def _changing(rng: np.random.Generator) -> dict[str, Pages]:
    """Working sets of a fifth of the pages that change in several ways, and loops after them."""
    size = SET

    def used(first: int, times: int = 20) -> Pages:
        return first + rng.integers(0, size, times * size)

    found = {
        "set, replaced": np.concatenate([used(size * i) for i in range(5)]),
        "set, half replaced": np.concatenate([used(size // 2 * i) for i in range(9)]),
        "sets, alternating": np.concatenate([used(size * (i % 2), 10) for i in range(20)]),
        "set, drifting": used(0, 160) + np.arange(160 * size) // 40,
    }
    for turns in (0.6, 1.1, 1.5, 3):
        loop = PAGES + np.arange(int(turns * size))
        parts = [used(size * i) for i in range(5)]
        found[f"set replaced, then a loop of {turns}"] = np.concatenate([*parts, np.tile(loop, 60)])
    return found


def changing_sets(seed: int = 1) -> dict[str, Pages]:
    """Those of the traces whose working sets change."""
    return _changing(np.random.default_rng(seed))


def made_traces(seed: int = 1) -> dict[str, Pages]:
    """The traces by name; a seed always gives the same ones."""
    rng = np.random.default_rng(seed)
    loop, whole = np.arange(3000), np.arange(PAGES)
    traces = {f"zipf {exponent}": _zipf(rng, LENGTH, exponent) for exponent in (0.7, 1.0)}
    for every in (200, 60, 20):  # the hot set moves on by one page after so many accesses
        traces[f"hot set, moves every {every}"] = (_zipf(rng, LENGTH, 1.0) + np.arange(LENGTH) // every) % PAGES
    parts = [rng.permutation(PAGES)[_zipf(rng, LENGTH // 8, 1.0)] for _ in range(8)]
    traces["hot set, replaced 7 times"] = np.concatenate(parts)
    traces["loop"] = np.tile(loop, 60)
    traces["zigzag"] = np.tile(np.concatenate([loop, loop[::-1]]), 30)
    parts = [part for _ in range(25) for part in (_zipf(rng, 6000, 0.9), loop + PAGES)]
    traces["zipf and scans"] = np.concatenate(parts)
    mixed = np.stack([_zipf(rng, LENGTH // 2, 1.0), np.resize(loop, LENGTH // 2) + PAGES], axis=1)
    traces["zipf beside a loop"] = mixed.ravel()
    phases = [np.tile(whole[:1500], 30), _zipf(rng, 40_000, 1.0), whole, np.tile(whole[:3500], 12)]
    traces["phases"] = np.concatenate(phases * 2)
    draws = rng.permutation(PAGES)[_zipf(rng, LENGTH // 2, 0.9)]
    traces |= _changing(rng)
    traces["bursts"] = np.repeat(draws, rng.integers(1, 5, len(draws)))
    traces["recency"] = _recency(rng)
    traces["walk, small steps"], traces["walk, large steps"] = _walk(rng, 20), _walk(rng, 200)
    newest = np.arange(LENGTH) // 60
    traces["newest most"] = np.maximum(newest - (rng.pareto(1.0, LENGTH) * 20).astype(np.int64), 0)
    index, rows = rng.integers(0, 300, LENGTH // 2), rng.integers(300, 300 + PAGES, LENGTH // 2)
    traces["index and rows"] = np.stack([index, rows], axis=1).ravel()
    return traces
