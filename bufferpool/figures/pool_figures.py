"""What a pool shows of itself, the same for a client of the pool and for an observer."""

import heapq
from abc import abstractmethod
from collections.abc import Mapping
from typing import Self

import numpy as np
import numpy.typing as npt

from bufferpool.figures.advice import Advice, read_advice
from bufferpool.figures.cache_advice import CacheAdvice, read_cache_advice
from bufferpool.figures.events import Event, read_events
from bufferpool.figures.operations import Operation, read_operations
from bufferpool.figures.stats import (
    ClientInfo,
    Inspectable,
    PoolStats,
    SpaceStats,
    added,
    read_clients,
    read_extents,
    read_frames,
    read_stats,
    read_unsaved,
)


class PoolFigures(Inspectable):
    """The figures of a pool. The base of :class:`bufferpool.Pool` and :class:`bufferpool.Observer`."""

    @abstractmethod
    def page_sizes(self) -> Mapping[int, Self]:
        """The page sizes of the pool, its own first, each as a pool of its own."""

    def _other_sizes(self) -> list[Self]:
        return [] if not self.seg.page_sizes()[0] else list(self.page_sizes().values())[1:]

    def stats(self) -> PoolStats:
        """Figures of the whole pool, over all clients, present and past, and over all page sizes."""
        own = read_stats(self)
        others = [read_stats(other) for other in self._other_sizes()]
        return added(own, others, self.seg.page_sizes()[1]) if others else own

    def spaces(self) -> list[SpaceStats]:
        """The spaces of the pool, each with its kind, its pages and its counters."""
        return self.stats().spaces

    def frames(self) -> npt.NDArray[np.void]:
        """Every frame that has ever been used: a structured array, dtype ``stats.FRAME``."""
        return read_frames(self)

    def extents(self) -> npt.NDArray[np.void]:
        """Every extent that has ever been used: a structured array, dtype ``stats.EXTENT``."""
        return read_extents(self)

    def clients(self) -> list[ClientInfo]:
        """The attached processes, how many pages each of them pins, and which one is the steward."""
        return read_clients(self)

    def operations(self) -> list[Operation]:
        """What is under way in stores, loaders and the log, of all clients, the one that has waited longest first."""
        found = map(read_operations, (self, *self._other_sizes()))
        return list(heapq.merge(*found, key=lambda operation: -operation.seconds))

    def events(self) -> list[Event]:
        """The last thousand decisions about the pool's memory, oldest first: when, kind, reason, bytes."""
        found = map(read_events, (self, *self._other_sizes()))
        # A merge keeps the order of the events of each size, which is that of their numbers.
        return list(heapq.merge(*found, key=lambda event: event.time))

    def advise(self) -> Advice:
        """What the hit ratio would be with an eighth to eight times the budget, from recent references.

        No points while there are too few references.
        """
        return read_advice(self)

    def advise_caches(self) -> tuple[CacheAdvice, ...]:
        """What the hit ratios of each cache would be with an eighth to eight times its present bytes, from recent uses of some keys.

        No points while there are too few uses. It takes some 30 milliseconds for each cache.
        """
        return read_cache_advice(self)


def read_all_unsaved(pool: PoolFigures) -> dict[str, int]:
    """The number of unsaved pages of each space of a pool, of all page sizes, by the name of the space."""
    found: dict[str, int] = {}
    for one in pool.page_sizes().values():
        found |= read_unsaved(one)
    return found
