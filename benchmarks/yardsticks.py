"""The policies beside which the pool's is measured: misses of FIFO, LRU and OPT over an array of page numbers.

They are plain Python, and take a few tenths of a microsecond an access.
"""

from collections import deque
from heapq import heapify, heappop, heappush

import numpy as np
import numpy.typing as npt

Pages = npt.NDArray[np.integer]


def fifo_misses(pages: Pages, frames: int) -> int:
    """Misses of a cache of ``frames`` pages that evicts the page that was loaded first."""
    resident, queue, misses = bytearray(int(pages.max()) + 1), deque[int](), 0
    for page in pages.tolist():
        if resident[page]:
            continue
        misses += 1
        if len(queue) == frames:
            resident[queue.popleft()] = 0
        queue.append(page)
        resident[page] = 1
    return misses


def lru_misses(pages: Pages, frames: int) -> int:
    """Misses of a cache of ``frames`` pages that evicts the page whose last use is longest ago."""
    cache: dict[int, None] = {}
    misses = 0
    for page in pages.tolist():
        if page in cache:
            del cache[page]
        else:
            misses += 1
            if len(cache) == frames:
                del cache[next(iter(cache))]
        cache[page] = None
    return misses


def next_uses(pages: Pages) -> npt.NDArray[np.int64]:
    """For each access the index of the next one to the same page; the length of the trace if there is none."""
    order = np.argsort(pages, kind="stable")
    again = pages[order[1:]] == pages[order[:-1]]
    following = np.full(len(pages), len(pages), np.int64)
    following[order[:-1][again]] = order[1:][again]
    return following


def opt_misses(pages: Pages, frames: int) -> int:
    """Misses of the optimal cache: it evicts the page whose next use is farthest away.

    Source: Belady, "A study of replacement algorithms for a virtual-storage
    computer", IBM Systems Journal 1966. A page that misses is always cached.

    A resident page is represented by the time of its next use: an access at that time
    is a hit. Times that have passed sink to the bottom of the heap, of which only
    the farthest time is used; they are removed now and then.
    """
    end = len(pages)
    expected = bytearray(end + 1)  # the page used at this time is resident
    heap: list[int] = []  # times, negated
    resident = misses = 0
    limit = 8 * frames + 1024
    for now, following in enumerate(next_uses(pages).tolist()):
        if not expected[now]:
            misses += 1
            if resident == frames:
                expected[-heappop(heap)] = 0
            else:
                resident += 1
        expected[following] = 1
        heappush(heap, -following)
        if len(heap) > limit:
            heap = [time for time in heap if -time > now]
            heapify(heap)
    return misses
