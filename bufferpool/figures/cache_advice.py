"""Advice for caches: the hit ratios that each cache would have with more or less memory.

Some keys are sampled, chosen by their hash (SHARDS: Waldspurger et al., FAST 2015). A ring holds the last 8,192 uses of sampled
keys (core/layout/objects.h). :func:`read_cache_advice` simulates the cache's own eviction over these uses. The simulated budgets
are as much smaller as the sample is smaller than the set of all keys.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bufferpool import _core
from bufferpool.figures.advice import calibrate
from bufferpool.figures.stats import CacheStats, Inspectable, read_caches
from bufferpool.simulation import simulate_objects

FACTORS = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
LEAST_USES = 512
"""With fewer uses in the ring there is no advice."""
_HIT, _MISS, _PUT = 1, 2, 3  # ObjectUse
_SAMPLE = np.dtype([("hash", np.uint64), ("what", np.uint64)])


@dataclass(frozen=True)
class CacheAdvicePoint:
    """A size of the cache, and the hit ratios that are expected with it."""

    bytes: int
    """The bytes that the records of the cache would take."""
    hit_ratio: float
    """Lookups that find a value, divided by all lookups."""
    byte_hit_ratio: float
    """Bytes of the values found, divided by the bytes of all values that were looked up. Several lookups of a key without a put in
    between count once here."""


@dataclass(frozen=True)
class CacheAdvice:
    """The hit ratios that a cache would have with more or less memory, from its recent uses."""

    name: str
    """The name of the cache."""
    bytes: int
    """Bytes of its records at present."""
    points: tuple[CacheAdvicePoint, ...]
    """An eighth to eight times the present bytes; empty while there are too few uses."""
    uses: int
    """Uses of sampled keys that the simulations have seen; a half of them warms them up."""
    sampling_rate: float
    """The share of the keys that is sampled."""
    left_out: float
    """The share of the sampled uses that are not simulated, because the size of the value is not known: it was never put."""
    large: float
    """The share of the simulated bytes in values that are larger than a quarter of the simulated budget at the present size. The
    simulation never keeps such values, so a large share means that the ratios are too low."""


def _uses(samples: npt.NDArray[np.void]) -> tuple[list[int], list[int], int]:
    """The keys and sizes of the lookups in order, and how many have no size. The size of a miss is that of the put after it."""
    keys, sizes = list[int](), list[int]()
    known, waiting = dict[int, int](), dict[int, int]()
    for key, what in zip(samples["hash"].tolist(), samples["what"].tolist(), strict=True):
        use, size = what & 0xFF, what >> 16
        if use == _PUT:
            known[key] = size
            if key in waiting:
                sizes[waiting.pop(key)] = size
        elif use in (_HIT, _MISS):
            if use == _MISS:
                waiting[key] = len(keys)
            else:
                known[key] = size
            keys.append(key)
            sizes.append(size or known.get(key, 0))
    return keys, sizes, sizes.count(0)


def _advice(stats: CacheStats, samples: npt.NDArray[np.void], shift: int) -> CacheAdvice:
    keys, sizes, unknown = _uses(samples)
    if len(keys) - unknown < LEAST_USES or not stats.bytes:
        return CacheAdvice(stats.name, stats.bytes, (), len(keys), 2.0**-shift, 0.0, 0.0)
    known = np.array(sizes) > 0
    trace, lengths = np.unique(np.array(keys, np.uint64)[known], return_inverse=True)[1], np.array(sizes)[known]
    half, budgets, ratios, byte_ratios = len(trace) // 2, list[int](), list[float](), list[float]()
    for factor in FACTORS:
        budget = int(stats.bytes * factor)
        part = max(1, budget >> shift)
        warm, whole = (simulate_objects(trace[:n], lengths[:n], part) for n in (half, len(trace)))
        missed, all_bytes = whole.missed_bytes - warm.missed_bytes, int(lengths[half:].sum())
        budgets.append(budget)
        ratios.append((whole.misses - warm.misses) / (len(trace) - half))
        byte_ratios.append(missed / all_bytes)
    curve, lookups = np.minimum.accumulate(np.array(ratios)), stats.hits + stats.misses
    if lookups:
        curve = calibrate(curve, float(curve[FACTORS.index(1.0)]), stats.misses / lookups)
    by_bytes = np.minimum.accumulate(np.array(byte_ratios))
    points = zip(budgets, curve.tolist(), by_bytes.tolist(), strict=True)
    large = int(lengths[lengths > (stats.bytes >> shift) // 4].sum()) / int(lengths.sum())
    return CacheAdvice(
        stats.name, stats.bytes, tuple(CacheAdvicePoint(n, 1 - miss, 1 - lost) for n, miss, lost in points),
        len(trace), 2.0**-shift, unknown / len(keys), large,
    )  # fmt: skip


def read_cache_advice(pool: Inspectable) -> tuple[CacheAdvice, ...]:
    """The advice for each cache of the pool."""
    raw = pool.seg.object_samples()
    if raw is None:
        return ()
    shift, older, newer = raw
    samples = np.frombuffer(older + newer, _SAMPLE)
    if shift:  # the ring may have older uses, from a time when there were fewer objects and more of them were sampled
        samples = samples[samples["hash"] >> np.uint64(64 - shift) == 0]
    slots = (samples["what"] >> np.uint64(8)) & np.uint64(0xFF)
    by_name = {one.name: one for one in read_caches(pool)}
    return tuple(
        _advice(by_name[name], samples[slots == number % _core.CACHES], shift)
        for number, name in pool.seg.cache_names().items()
        if name in by_name
    )
