"""The memory that objects of many sizes need, in two designs: slots of size classes in sparse memory, and runs of neighbouring
frames.

In both, an object has whole OS pages, and the least recently used object is evicted first. The columns:

- live: bytes of the objects in the cache, as a share of the budget (mean over the trace after the cache was full);
- extra: objects evicted only because no run of free frames was long enough, for each object inserted;
- moved: bytes copied for each byte inserted, if a compaction moves all objects together instead of evicting these;
- calls: system calls that give memory to a slot or take it, for each object inserted (runs need none).
"""

import bisect
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import numpy as np
from made_objects import Trace, made_objects

PAGE = 4096
SHARE = 0.2  # of the bytes of all objects


class Runs:
    """Free runs of pages, by address, within a budget that is also the address space; an object takes the best fit."""

    def __init__(self, pages: int) -> None:
        self.starts, self.lengths = [0], {0: pages}

    def take(self, pages: int) -> int | None:
        fits = [(length, start) for start, length in self.lengths.items() if length >= pages]
        if not fits:
            return None
        length, start = min(fits)
        self.starts.remove(start)
        del self.lengths[start]
        if length > pages:
            bisect.insort(self.starts, start + pages)
            self.lengths[start + pages] = length - pages
        return start

    def give(self, start: int, pages: int) -> None:
        at = bisect.bisect(self.starts, start)
        if at < len(self.starts) and self.starts[at] == start + pages:
            pages += self.lengths.pop(self.starts.pop(at))
        if at and self.starts[at - 1] + self.lengths[self.starts[at - 1]] == start:
            self.lengths[self.starts[at - 1]] += pages
        else:
            self.starts.insert(at, start)
            self.lengths[start] = pages


def misses(trace: Trace, pages: int, cache: OrderedDict[int, Any]) -> Iterator[tuple[int, int, int]]:
    """The (key, size, pages) of each miss in an LRU cache that may be kept there; the caller inserts it."""
    for key, size in zip(*(column.tolist() for column in trace), strict=True):
        if key in cache:
            cache.move_to_end(key)
        elif -(-size // PAGE) <= pages // 4:
            yield key, size, -(-size // PAGE)


def runs(trace: Trace, pages: int) -> tuple[float, float, float]:
    """(live, extra, moved) of runs of neighbouring frames."""
    free, cache = Runs(pages), OrderedDict[int, tuple[int, int, int]]()
    used = live = extra = moved = inserted = inserted_bytes = 0
    shares: list[float] = []

    def evict() -> None:
        nonlocal used, live
        start, length, size = cache.popitem(last=False)[1]
        free.give(start, length)
        used, live = used - length, live - size

    for key, size, length in misses(trace, pages, cache):
        while used + length > pages:
            evict()
        start = free.take(length)
        if start is None:
            moved += used * PAGE
        while start is None:
            evict()
            extra += 1
            start = free.take(length)
        cache[key] = start, length, size
        used, live = used + length, live + size
        inserted, inserted_bytes = inserted + 1, inserted_bytes + length * PAGE
        shares.append(live / (pages * PAGE))
    return float(np.mean(shares[len(shares) // 2 :])), extra / inserted, moved / inserted_bytes


def classes(trace: Trace, pages: int) -> tuple[float, float]:
    """(live, calls) of slots of powers of two, of which only the pages that an object needs have memory."""
    cache = OrderedDict[int, tuple[int, int]]()
    idle: dict[int, list[int]] = {}  # by class: the pages of memory that each free slot still has
    used = live = calls = inserted = 0
    shares: list[float] = []
    for key, size, length in misses(trace, pages, cache):
        while used + length > pages:
            others = [kind for kind, slots in idle.items() if slots]
            if others:  # memory of free slots of other classes is given back first
                used -= idle[others[-1]].pop()
                calls += 1
                continue
            _, (gone, gone_size) = cache.popitem(last=False)
            live -= gone_size
            idle.setdefault(gone.bit_length(), []).append(gone)
        slots = idle.setdefault(length.bit_length(), [])
        had = slots.pop() if slots else 0
        used, live = used + length - had, live + size
        calls += had != length
        inserted += 1
        cache[key] = length, size
        shares.append(live / (pages * PAGE))
    return float(np.mean(shares[len(shares) // 2 :])), calls / inserted


def main() -> None:
    print(f"{'':<32}{'runs: live':>12}{'extra':>8}{'moved':>8}{'slots: live':>14}{'calls':>8}")
    for name, (keys, sizes) in made_objects().items():
        large = sizes >= 2 * PAGE  # smaller ones share pages in both designs
        keys, sizes = keys[large][:60_000], sizes[large][:60_000]
        _, first = np.unique(keys, return_index=True)
        pages = int(SHARE * sizes[first].sum()) // PAGE
        live, extra, moved = runs((keys, sizes), pages)
        sparse, calls = classes((keys, sizes), pages)
        print(f"{name:<32}{live:>12.3f}{extra:>8.2f}{moved:>8.1f}{sparse:>14.3f}{calls:>8.2f}", flush=True)


if __name__ == "__main__":
    main()
