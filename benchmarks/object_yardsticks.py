"""The policies beside which the eviction of objects is measured: LRU, GDSF, S3-FIFO and W-TinyLFU, with sizes.

They are plain Python, keep every object of at most a quarter of the budget, and take some microseconds an access.
Each is a class with ``use(key, size)``, which returns whether the object was in the cache.
"""

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
from heapq import heapify, heappop, heappush

Misses = tuple[int, int]


class Lru:
    """Evicts the object whose last use is longest ago."""

    def __init__(self, budget: int) -> None:
        self.budget, self.used = budget, 0
        self.sizes: OrderedDict[int, int] = OrderedDict()

    def use(self, key: int, size: int) -> bool:
        if key in self.sizes:
            self.sizes.move_to_end(key)
            return True
        if size <= self.budget // 4:
            while self.used + size > self.budget:
                self.used -= self.sizes.popitem(last=False)[1]
            self.sizes[key] = size
            self.used += size
        return False


class Gdsf:
    """GreedyDual-Size with frequency: evicts the least value, which is uses / size and that of the last evicted.

    Source: Cherkasova, "Improving WWW proxies performance with Greedy-Dual-Size-Frequency caching policy", HP Labs
    1998.
    """

    def __init__(self, budget: int) -> None:
        self.budget, self.used, self.floor = budget, 0, 0.0
        self.values: dict[int, float] = {}
        self.uses: dict[int, int] = {}
        self.sizes: dict[int, int] = {}
        self.heap: list[tuple[float, int]] = []  # with values that are out of date

    def use(self, key: int, size: int) -> bool:
        found = key in self.values
        if not found and size > self.budget // 4:
            return False
        while not found and self.used + size > self.budget:
            self._evict()
        self.used += 0 if found else size
        self.sizes[key] = size
        self.uses[key] = self.uses[key] + 1 if found else 1
        self.values[key] = self.floor + self.uses[key] / size
        heappush(self.heap, (self.values[key], key))
        if len(self.heap) > 4 * len(self.values) + 1024:
            self.heap = [(value, k) for k, value in self.values.items()]
            heapify(self.heap)
        return found

    def _evict(self) -> None:
        while True:
            value, key = heappop(self.heap)
            if self.values.get(key) == value:
                self.floor = value
                del self.values[key]
                self.used -= self.sizes[key]
                return


class S3Fifo:
    """A small queue of a tenth for new objects, a main one with reinsertion, and ghosts of what the small one evicted.

    Source: Yang et al., "FIFO queues are all you need for cache eviction", SOSP 2023.
    """

    def __init__(self, budget: int) -> None:
        self.budget, self.small_bytes, self.main_bytes, self.ghost_bytes = budget, 0, 0, 0
        self.small: OrderedDict[int, int] = OrderedDict()
        self.main: OrderedDict[int, int] = OrderedDict()
        self.ghosts: OrderedDict[int, int] = OrderedDict()
        self.uses: dict[int, int] = {}

    def use(self, key: int, size: int) -> bool:
        if key in self.small or key in self.main:
            self.uses[key] = min(self.uses[key] + 1, 3)
            return True
        if size > self.budget // 4:
            return False
        while self.small_bytes + self.main_bytes + size > self.budget:
            if self.small and (self.small_bytes >= self.budget // 10 or not self.main):
                self._evict_small()
            else:
                self._evict_main()
        self.uses[key] = 0
        if key in self.ghosts:
            self.ghost_bytes -= self.ghosts.pop(key)
            self.main[key] = size
            self.main_bytes += size
        else:
            self.small[key] = size
            self.small_bytes += size
        return False

    def _evict_main(self) -> None:
        while True:
            key, size = self.main.popitem(last=False)
            if not self.uses[key]:
                self.main_bytes -= size
                return
            self.uses[key] -= 1
            self.main[key] = size

    def _evict_small(self) -> None:
        key, size = self.small.popitem(last=False)
        self.small_bytes -= size
        if self.uses[key] > 1:
            self.uses[key] = 0
            self.main[key] = size
            self.main_bytes += size
            return
        self.ghosts[key] = size
        self.ghost_bytes += size
        while self.ghost_bytes > self.budget * 9 // 10:
            self.ghost_bytes -= self.ghosts.popitem(last=False)[1]


class WTinyLfu:
    """A window of a hundredth, and a segmented LRU: a candidate enters if it is used more than all it would evict.

    Source: Einziger, Eytan, Friedman and Manes, "Lightweight robust size aware cache management", ACM TOS 2022 (the
    variant AV). The frequencies are exact ones that are halved, in place of a sketch's estimates.
    """

    def __init__(self, budget: int) -> None:
        self.main_budget, self.window_budget = budget - budget // 100, budget // 100
        self.budget = budget
        self.bytes = Counter[str]()
        self.queues: dict[str, OrderedDict[int, int]] = {q: OrderedDict() for q in ("window", "probation", "protected")}
        self.frequency = Counter[int]()
        self.counted = 0

    def use(self, key: int, size: int) -> bool:
        self._count(key)
        for name, queue in self.queues.items():
            if key in queue:
                self._move(name, "window" if name == "window" else "protected", key)
                while self.bytes["protected"] > self.main_budget * 8 // 10:
                    self._move("protected", "probation", next(iter(self.queues["protected"])))
                return True
        if size <= self.budget // 4:
            self._add("window", key, size)
            while self.bytes["window"] > self.window_budget:
                self._admit(*self._take("window", next(iter(self.queues["window"]))))
        return False

    def _count(self, key: int) -> None:
        self.frequency[key] += 1
        self.counted += 1
        resident = sum(map(len, self.queues.values()))
        if self.counted >= 10 * max(resident, 64):
            self.counted //= 2
            self.frequency = Counter({k: n >> 1 for k, n in self.frequency.items() if n > 1})

    def _add(self, queue: str, key: int, size: int) -> None:
        self.queues[queue][key] = size
        self.bytes[queue] += size

    def _take(self, queue: str, key: int) -> tuple[int, int]:
        size = self.queues[queue].pop(key)
        self.bytes[queue] -= size
        return key, size

    def _move(self, queue: str, to: str, key: int) -> None:
        self._add(to, *self._take(queue, key))

    def _admit(self, key: int, size: int) -> None:
        room = self.main_budget - self.bytes["probation"] - self.bytes["protected"]
        victims: list[tuple[str, int]] = []
        least = 0
        for queue in ("probation", "protected"):
            for victim, freed in self.queues[queue].items():
                if room >= size:
                    break
                victims.append((queue, victim))
                least += self.frequency[victim]
                room += freed
                if self.frequency[key] <= least:
                    for name, spared in victims:
                        self._move(name, name, spared)
                    return
        for name, victim in victims:
            self._take(name, victim)
        self._add("probation", key, size)


YARDSTICKS: dict[str, Callable[[int], Lru | Gdsf | S3Fifo | WTinyLfu]] = {
    "LRU": Lru, "GDSF": Gdsf, "S3-FIFO": S3Fifo, "W-TinyLFU": WTinyLfu,
}  # fmt: skip


def misses_of(name: str, uses: Iterable[tuple[int, int]], budget: int) -> Misses:
    """The misses, and their bytes, of a policy over (key, size)."""
    policy = YARDSTICKS[name](budget)
    missed = [size for key, size in uses if not policy.use(key, size)]
    return len(missed), sum(missed)
