"""Runs the replacement policies of pages and of objects over traces, without pages and objects."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bufferpool import _core
from bufferpool.units import parse_size

_SPARSE = 1 << 20  # numbers below this are not renumbered: the table is small, and sorting takes longer


@dataclass(frozen=True)
class Simulation:
    """The hits, misses and evictions of a simulated pool over a trace."""

    frames: int
    """Frames of the simulated pool."""
    hits: int
    """Accesses to pages that were in the pool."""
    misses: int
    """Accesses to pages that were not."""
    evictions_cold: int
    """Pages evicted from the cold ring: pages used once, or not for long."""
    evictions_hot: int
    """Pages evicted from the hot ring."""
    mode_changes: int
    """How often the policy changed its mode (``core/policy/duelling.h``)."""

    @property
    def miss_ratio(self) -> float:
        """Misses divided by accesses; NaN for an empty trace."""
        total = self.hits + self.misses
        return self.misses / total if total else float("nan")


def simulate(trace: npt.ArrayLike, n_frames: int) -> Simulation:
    """Simulates a pool with the replacement policy ALR, by the pool's own code (``core/policy/policy.h``).

    ``trace``: page numbers in order of access, one-dimensional, integers of at
    least 0; ``n_frames``: frames of the simulated pool, at least 1. It handles tens of
    millions of accesses a second; memory grows with the number of distinct pages.
    Raises TypeError, ValueError.
    """
    numbers, distinct = dense_trace(trace, n_frames)
    hits, misses, cold, hot, changes = _core.simulate(numbers, int(n_frames), distinct)
    return Simulation(int(n_frames), hits, misses, cold, hot, changes)


@dataclass(frozen=True)
class ObjectSimulation:
    """The hits and misses of a simulated cache of objects over a trace."""

    budget: int
    """Bytes that the objects may take."""
    hits: int
    """Accesses to objects that were in the cache."""
    misses: int
    """Accesses to objects that were not."""
    hit_bytes: int
    """Bytes that were found in the cache."""
    missed_bytes: int
    """Bytes that were not."""
    evictions: int
    """Objects that were evicted."""
    not_kept: int
    """Misses of objects that are larger than a quarter of the budget."""

    @property
    def miss_ratio(self) -> float:
        """Misses divided by accesses; NaN for an empty trace."""
        total = self.hits + self.misses
        return self.misses / total if total else float("nan")

    @property
    def byte_miss_ratio(self) -> float:
        """Missed bytes divided by the bytes of all accesses; NaN for an empty trace."""
        total = self.hit_bytes + self.missed_bytes
        return self.missed_bytes / total if total else float("nan")


def simulate_objects(
    keys: npt.ArrayLike, sizes: npt.ArrayLike, budget: int | str, *, costs: npt.ArrayLike | None = None
) -> ObjectSimulation:
    """Simulates the eviction of a cache of objects, by the cache's own code (``core/policy/worth.h``).

    ``keys`` and ``sizes``: integers, one for each access in order, sizes in bytes and at least 1; ``budget``: bytes
    of the cache. ``costs``: what each load costs, in any unit. If it is None, a request costs as
    much as the transfer of 64 KiB. Equal costs keep the miss ratio low, and costs in proportion
    to the sizes the byte miss ratio.
    Raises TypeError, ValueError.
    """
    total = parse_size(budget, "budget")
    if total < 1:
        raise ValueError(f"budget must be at least 1, not {budget}")
    numbers, distinct = dense_trace(keys, 1)
    lengths, prices = np.asarray(sizes), None if costs is None else np.asarray(costs, np.float32)
    if lengths.ndim != 1 or (lengths.dtype.kind not in "iu" and lengths.size):
        raise TypeError("sizes are a one-dimensional array of integers")
    if lengths.size and not 1 <= lengths.min() <= lengths.max() < 2**32:
        raise ValueError("sizes are 1 to 4294967295")
    if prices is None:
        prices = (1 + lengths / 65536).astype(np.float32)
    if len(lengths) != len(numbers) or prices.shape != lengths.shape:
        raise ValueError("keys, sizes and costs must have the same length")
    if prices.size and not (np.isfinite(prices) & (prices > 0)).all():
        raise ValueError("costs must be finite and above 0")
    lengths = np.ascontiguousarray(lengths, dtype=np.uint32)
    hits, hit_bytes, evictions, not_kept = _core.simulate_objects(
        numbers, lengths, np.ascontiguousarray(prices), total, distinct
    )
    every = int(lengths.sum(dtype=np.uint64))
    return ObjectSimulation(total, hits, len(numbers) - hits, hit_bytes, every - hit_bytes, evictions, not_kept)


def dense_trace(trace: npt.ArrayLike, n_frames: int) -> tuple[npt.NDArray[np.uint32], int]:
    """Checks the arguments of a simulation. Returns (page numbers, uint32, renumbered if they are sparse; a bound above them).

    Raises TypeError, ValueError.
    """
    pages: npt.NDArray[Any] = np.asarray(trace)
    if pages.ndim != 1 or (pages.dtype.kind not in "iu" and pages.size):
        raise TypeError("a trace is a one-dimensional array of integers")
    if isinstance(n_frames, bool) or not isinstance(n_frames, (int, np.integer)):
        raise TypeError(f"n_frames must be an integer, not {type(n_frames).__name__}")
    if not 1 <= n_frames < 2**31:
        raise ValueError(f"n_frames must be 1 to {2**31 - 1}, not {n_frames}")
    if pages.size and pages.min() < 0:
        raise ValueError("page numbers are at least 0")
    n_pages = int(pages.max()) + 1 if pages.size else 1
    if n_pages > max(_SPARSE, 2 * pages.size):  # sparse numbers: renumber them without gaps
        distinct, pages = np.unique(pages, return_inverse=True)
        n_pages = len(distinct)
    return np.ascontiguousarray(pages, dtype=np.uint32), n_pages
