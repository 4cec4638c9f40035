"""Runs the pool's replacement policy over a trace of page numbers, without pages."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bufferpool import _core

_SPARSE = 1 << 20  # numbers below this are not renumbered: the table is small, and sorting takes longer


@dataclass(frozen=True)
class Simulation:
    """The hits, misses and evictions of a simulated pool over a trace."""

    frames: int
    hits: int
    misses: int
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
