"""Traces of objects of many sizes, made by formulas: for each access a key and a size in bytes."""

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Trace = tuple[Ints, Ints]

OBJECTS, LENGTH = 20_000, 400_000


def heavy_tailed(rng: np.random.Generator, n: int, median: int = 2000, sigma: float = 1.8, most: int = 4 << 20) -> Ints:
    """Log-normal sizes in bytes: half of them below ``median``, and most of the bytes in a few large ones."""
    return np.clip(rng.lognormal(np.log(median), sigma, n), 32, most).astype(np.int64)


def zipf(rng: np.random.Generator, length: int, n: int, exponent: float) -> Ints:
    """Ranks 0 to n - 1, drawn with probability proportional to 1 / (rank + 1) ** exponent."""
    weights = np.cumsum(1 / np.arange(1, n + 1) ** exponent)
    ranks: Ints = np.searchsorted(weights, rng.random(length) * weights[-1])
    return ranks


def _popular(rng: np.random.Generator) -> dict[str, Trace]:
    """Popularity that does not change, independent of the sizes, with them, and against them."""
    sizes = heavy_tailed(rng, OBJECTS)
    found = {f"zipf {exponent}": (zipf(rng, LENGTH, OBJECTS, exponent), sizes) for exponent in (0.7, 0.9, 1.1)}
    keys, ascending = zipf(rng, LENGTH, OBJECTS, 0.9), np.sort(sizes)
    found |= {"zipf, small are hot": (keys, ascending), "zipf, large are hot": (keys, ascending[::-1])}
    loop = np.resize(np.arange(OBJECTS // 5), LENGTH // 2) + OBJECTS
    beside = np.stack([zipf(rng, LENGTH // 2, OBJECTS, 1.0), loop], axis=1).ravel()
    found["zipf beside a loop"] = beside, heavy_tailed(rng, OBJECTS + OBJECTS // 5)
    found["loop"] = np.tile(np.arange(6000), 40), sizes
    return found


def _scans(rng: np.random.Generator) -> dict[str, Trace]:
    """Small objects that are hot, and scans of large ones, new at each time or the same again."""
    n = OBJECTS // 2
    parts = np.split(zipf(rng, 300_000, n, 0.9), 20)
    once = [x for i, part in enumerate(parts) for x in (part, n + np.arange(1000) + 1000 * i)]
    again = [x for part in parts for x in (part, n + np.arange(400))]
    sizes = np.concatenate([heavy_tailed(rng, n, 500, 1.0, 20_000), np.full(20_000, 100_000)])
    return {
        "hot small, scans of large once": (np.concatenate(once), sizes),
        "hot small, scans of large again": (np.concatenate(again), sizes),
    }


def _changing(rng: np.random.Generator) -> dict[str, Trace]:
    """Working sets that drift or are replaced, bursts, and recency."""
    sizes = heavy_tailed(rng, OBJECTS)
    drift = (zipf(rng, LENGTH, OBJECTS, 1.0) + np.arange(LENGTH) // 20) % OBJECTS
    replaced = np.concatenate([rng.permutation(OBJECTS)[zipf(rng, LENGTH // 8, OBJECTS, 1.0)] for _ in range(8)])
    sets = np.concatenate([(3000 * i + rng.integers(0, 3000, 30_000)) % OBJECTS for i in range(12)])
    draws = rng.permutation(OBJECTS)[zipf(rng, LENGTH // 3, OBJECTS, 0.8)]
    stack, recent = list(range(8000)), []
    for depth in np.minimum((rng.pareto(0.8, LENGTH // 4) * 10).astype(np.int64), 7999).tolist():
        recent.append(stack.pop(depth))
        stack.insert(0, recent[-1])
    return {
        "hot set, drifts": (drift, sizes),
        "hot set, replaced": (replaced, sizes),
        "sets, uniform, replaced": (sets, sizes),
        "bursts": (np.repeat(draws, rng.integers(1, 6, len(draws))), sizes),
        "recency": (np.array(recent), sizes),
    }


def _cdn(rng: np.random.Generator) -> dict[str, Trace]:
    """Objects that are born and lose their popularity, and a quarter of all accesses to objects that are used once."""
    n = 60_000
    uses = np.minimum(rng.poisson(2 * rng.pareto(1.1, n) + 0.4) + 1, 3000)
    ids = np.repeat(np.arange(n), uses)
    times = np.repeat(rng.integers(0, LENGTH, n), uses) + rng.exponential(1, len(ids)) ** 1.5 * LENGTH / 12
    wonders = np.where(rng.random(LENGTH) < 0.25, n + np.arange(LENGTH), zipf(rng, LENGTH, n // 2, 0.85))
    sizes = heavy_tailed(rng, n + LENGTH, 8000, 2.0, 8 << 20)
    return {
        "cdn, births and decay": (ids[np.argsort(times, kind="stable")], sizes),
        "cdn, used once": (wonders, sizes),
    }


def _tiles(rng: np.random.Generator) -> Trace:
    """24 users move over a pyramid of map tiles, and ask for 4 x 3 of them at each step; many are empty, and small."""
    users = [(8, int(rng.integers(256)), int(rng.integers(256))) for _ in range(24)]
    numbers: dict[tuple[int, int, int], int] = {}
    keys: list[int] = []
    for step, (chance, to_x, to_y) in enumerate(rng.random((LENGTH // 12, 3)).tolist()):
        z, x, y = users[step % 24]
        if chance < 0.1 and z < 12:
            z, x, y = z + 1, 2 * x, 2 * y
        elif chance < 0.2 and z > 3:
            z, x, y = z - 1, x // 2, y // 2
        elif chance < 0.23:  # to one of 200 places, the first ones more often
            place = int(200**to_x)
            z, x, y = 8, place * 37 % 256, place * 91 % 256
        else:
            x, y = x + int(3 * to_x) - 1, y + int(3 * to_y) - 1
        side = 1 << z
        users[step % 24] = z, x % side, y % side
        keys += [
            numbers.setdefault((z, (x + right) % side, (y + down) % side), len(numbers))
            for right in range(4)
            for down in range(3)
        ]
    n = len(numbers)
    empty = rng.random(n) < 0.4
    return np.array(keys), np.where(empty, rng.integers(100, 800, n), heavy_tailed(rng, n, 15_000, 0.8, 200_000))


def made_objects(seed: int = 1) -> dict[str, Trace]:
    """Name -> (keys, sizes), one for each access; a seed always gives the same ones."""
    rng = np.random.default_rng(seed)
    by_object = _popular(rng) | _scans(rng) | _changing(rng) | _cdn(rng) | {"tiles": _tiles(rng)}
    return {name: (keys, sizes[keys]) for name, (keys, sizes) in by_object.items()}
