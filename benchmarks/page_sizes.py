"""Pages of several sizes in one budget, in two designs: runs of neighbouring frames of one pool, and a segment for each size.

Traces with sizes made by formulas (`made_objects.py`), each size rounded to a page size: a power of two, 4 KiB to 256 KiB. The budget is a
fifth of the bytes of all pages, the pages of the last eight accesses are pinned, and the least recently used page is evicted first, so that the designs differ
and not the policies. What both are compared with is one pool in which a page may lie anywhere: no design can do that, and it has no fragments.

- runs, evict: a page of n frames takes n neighbouring frames at a multiple of n. If none are free, the pages of the frames are evicted whose last use is the longest ago.
- runs, move: pages are evicted as in the pool without fragments, and then moved until such frames are free; pinned ones cannot move.
- segments: each size has its own least recently used pages in a part of the budget. Parts change in steps of a 32nd, to where the step saves most
  misses if that is a quarter more than it costs, as `bufferpool/upkeep/page_sizes.py` does it.

Printed for each design: used, bytes of pages as a share of the budget (mean of the second half); objects and bytes, its misses and missed bytes
divided by those without fragments; extra, pages evicted for each miss although pages used longer ago remain; moved, bytes copied for each byte loaded. Then the same by page size,
with misses per access.

    benchmarks/page_sizes.py           every trace, a minute
    benchmarks/page_sizes.py --quick   a quarter of each
"""

import argparse
from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from made_objects import Trace, made_objects, zipf

FRAME = 4096
LARGEST = 64  # frames of the largest page size
SHARE = 0.2  # of the bytes of all pages
PINNED = 8
ACCESSES = 60_000
STEP_SHARE, LEAST_SHARE, MARGIN = 32, 64, 1.25  # as in upkeep/page_sizes.py
PERIOD = 500  # accesses between two steps
Use = tuple[int, int]  # a page, and its frames


@dataclass
class Result:
    """What one design did over one trace."""

    misses: dict[int, int] = field(default_factory=lambda: defaultdict(int))  # by frames of a page
    extra: int = 0
    moved: int = 0
    shares: list[float] = field(default_factory=list)

    def total(self, weighted: bool) -> int:
        return sum(n * (size if weighted else 1) for size, n in self.misses.items())

    @property
    def used(self) -> float:
        return float(np.mean(self.shares[len(self.shares) // 2 :]))


class Pins:
    """The pages of the last accesses."""

    def __init__(self) -> None:
        self.held: deque[int] = deque(maxlen=PINNED)

    def __contains__(self, page: int) -> bool:
        return page in self.held


def oldest(pages: OrderedDict[int, int], pins: Pins) -> int:
    return next(page for page in pages if page not in pins.held)


def anywhere(trace: list[Use], budget: int) -> Result:
    """One pool, in which the frames of a page may lie anywhere."""
    result, pages, pins, used = Result(), OrderedDict[int, int](), Pins(), 0
    for page, size in trace:
        if page in pages:
            pages.move_to_end(page)
        else:
            result.misses[size] += 1
            while used + size > budget:
                used -= pages.pop(oldest(pages, pins))
            pages[page], used = size, used + size
        pins.held.append(page)
        result.shares.append(used / budget)
    return result


class Frames:
    """The frames of one pool: which page has each, and when it was last used (never: 0; pinned: infinity)."""

    def __init__(self, budget: int) -> None:
        self.page = np.full(budget, -1)
        self.last = np.zeros(budget)
        self.place: dict[int, Use] = {}  # page -> (first frame, frames)

    def put(self, page: int, first: int, size: int, time: float) -> None:
        self.place[page] = first, size
        self.page[first : first + size], self.last[first : first + size] = page, time

    def remove(self, page: int) -> float:
        first, size = self.place.pop(page)
        time = float(self.last[first])
        self.page[first : first + size], self.last[first : first + size] = -1, 0
        return time

    def set_time(self, page: int, time: float) -> None:
        if page in self.place:
            first, size = self.place[page]
            self.last[first : first + size] = time

    def within(self, first: int, size: int) -> list[int]:
        return [int(page) for page in np.unique(self.page[first : first + size]) if page >= 0]

    def coldest(self, size: int) -> int:
        """Where the frames for a page of this size are whose pages were used the longest ago."""
        return size * int(self.last.reshape(-1, size).max(axis=1).argmin())


class Held:
    """Marks pinned pages, and gives them their time back afterwards."""

    def __init__(self, frames: Frames) -> None:
        self.frames, self.times = frames, deque[tuple[int, int]]()

    def use(self, page: int, time: int) -> None:
        self.frames.set_time(page, np.inf)
        self.times.append((page, time))
        if len(self.times) > PINNED:
            gone, then = self.times.popleft()
            if all(gone != other for other, _ in self.times):
                self.frames.set_time(gone, then)


def runs_evict(trace: list[Use], budget: int) -> Result:
    """Runs of neighbouring frames; what lies in the frames that were used the longest ago is evicted."""
    result, frames = Result(), Frames(budget)
    held, live = Held(frames), 0
    for time, (page, size) in enumerate(trace, 1):
        if page not in frames.place:
            result.misses[size] += 1
            first = frames.coldest(size)
            gone = frames.within(first, size)
            times = {one: frames.last[frames.place[one][0]] for one in gone}
            for one in gone:
                live -= frames.place[one][1]
                frames.remove(one)
            left = frames.last[frames.page >= 0].min(initial=np.inf) if len(gone) > 1 else np.inf
            result.extra += sum(then > left for then in times.values())
            frames.put(page, first, size, time)
            live += size
        held.use(page, time)
        result.shares.append(live / budget)
    return result


def make_run(frames: Frames, size: int, result: Result, avoid: tuple[int, int] = (0, 0)) -> int | None:
    """Moves pages until a run is free outside of the frames `avoid`; returns where, or None if no run can be emptied."""
    live = (frames.page >= 0).reshape(-1, size).sum(axis=1).astype(float)
    pinned = np.isinf(frames.last).reshape(-1, size).any(axis=1)
    larger = np.array([False] * len(live))
    for first, of in (place for place in frames.place.values() if place[1] > size):
        larger[first // size : (first + of) // size] = True
    live[pinned | larger] = np.inf
    live[avoid[0] // size : -(-avoid[1] // size)] = np.inf
    at = int(live.argmin())
    if np.isinf(live[at]):
        return None
    first = at * size
    for page in sorted(frames.within(first, size), key=lambda one: -frames.place[one][1]):
        _, of = frames.place[page]
        time = float(frames.last[frames.place[page][0]])
        to = free_run(frames, of, (first, first + size))
        if to is None:
            to = make_run(frames, of, result, (min(first, avoid[0] or first), max(first + size, avoid[1])))
        if to is None:
            return None
        frames.remove(page)
        frames.put(page, to, of, time)
        result.moved += of
    return first


def free_run(frames: Frames, size: int, avoid: tuple[int, int] = (0, 0)) -> int | None:
    """A free run, in the fullest surroundings."""
    free = np.asarray((frames.page < 0).reshape(-1, size).all(axis=1))
    free[avoid[0] // size : -(-avoid[1] // size)] = False
    if not free.any():
        return None
    around = (frames.page >= 0).reshape(-1, LARGEST).sum(axis=1)
    places = np.flatnonzero(free)
    return size * int(places[around[places * size // LARGEST].argmax()])


def runs_move(trace: list[Use], budget: int) -> Result:
    """Runs of neighbouring frames; the least recently used pages are evicted, and others moved."""
    result, frames, pages, pins = Result(), Frames(budget), OrderedDict[int, int](), Pins()
    held, used = Held(frames), 0
    for time, (page, size) in enumerate(trace, 1):
        if page in pages:
            pages.move_to_end(page)
        else:
            result.misses[size] += 1
            first = None
            while first is None:
                fits = used + size <= budget
                if fits:
                    first = free_run(frames, size)
                    first = make_run(frames, size, result) if first is None else first
                if first is None:
                    gone = oldest(pages, pins)
                    used -= pages.pop(gone)
                    frames.remove(gone)
                    result.extra += fits
            frames.put(page, first, size, time)
            pages[page], used = size, used + size
        held.use(page, time)
        pins.held.append(page)
        result.shares.append(used / budget)
    return result


class Part:
    """The pages of one size: those in memory, the last step's worth of them apart, and those that left since a step ago."""

    def __init__(self, size: int, step: int) -> None:
        self.size, self.step = size, step // size
        self.frames = 0
        self.warm, self.tail, self.ghosts = OrderedDict[int, int](), OrderedDict[int, int](), OrderedDict[int, int]()
        self.gain = self.loss = 0.0

    @property
    def room(self) -> int:
        return self.frames // self.size

    @property
    def count(self) -> int:
        return len(self.warm) + len(self.tail)

    def use(self, page: int, pins: Pins) -> bool:
        """An access; returns whether it was a hit."""
        hit = page in self.warm or page in self.tail
        if page in self.tail:
            self.loss += 1
            del self.tail[page]
        elif not hit and self.ghosts.pop(page, None) is not None:
            self.gain += 1
        self.warm[page] = 1
        self.warm.move_to_end(page)
        self.fit(pins)
        return hit

    def fit(self, pins: Pins) -> None:
        while len(self.warm) > max(1, self.room - self.step):
            self.tail[self.warm.popitem(last=False)[0]] = 1
        while self.count > self.room:
            pages = self.tail if any(page not in pins.held for page in self.tail) else self.warm
            gone = oldest(pages, pins)
            del pages[gone]
            self.ghosts[gone] = 1
            if len(self.ghosts) > self.step:
                self.ghosts.popitem(last=False)


def balance(parts: list[Part], budget: int, step: int, pins: Pins) -> None:
    """A step of memory to the size where it saves most misses."""
    least = {part.size: max(4 * part.size, budget // LEAST_SHARE, (PINNED + 1) * part.size) for part in parts}
    best = max(parts, key=lambda part: part.gain if part.count >= 0.95 * part.room else -1.0)
    givers = [part for part in parts if part is not best and part.frames - step >= least[part.size]]
    if not givers:
        return
    unused = {part.size: (part.room - part.count) * part.size >= step for part in parts}
    giver = min(givers, key=lambda part: 0.0 if unused[part.size] else part.loss)
    if unused[giver.size] or best.gain > MARGIN * giver.loss:
        giver.frames -= step
        giver.fit(pins)
        best.frames += step
    for part in parts:
        part.gain, part.loss = part.gain / 2, part.loss / 2


def segments(trace: list[Use], budget: int) -> Result:
    """A segment for each page size, each with a part of the budget."""
    result, pins = Result(), Pins()
    step = max(LARGEST, budget // STEP_SHARE // LARGEST * LARGEST)
    parts = {size: Part(size, step) for size in sorted({size for _, size in trace})}
    for part in parts.values():
        part.frames = budget // len(parts) // LARGEST * LARGEST
    used = 0
    for time, (page, size) in enumerate(trace, 1):
        part = parts[size]
        before = part.count
        result.misses[size] += not part.use(page, pins)
        used += (part.count - before) * size
        pins.held.append(page)
        if time % PERIOD == 0:
            balance(list(parts.values()), budget, step, pins)
            used = sum(part.count * part.size for part in parts.values())
        result.shares.append(used / budget)
    return result


DESIGNS = {"anywhere": anywhere, "runs, evict": runs_evict, "runs, move": runs_move, "segments": segments}


def sizes_in_turns(rng: np.random.Generator) -> Trace:
    """Zipf's law over pages of 4 KiB, and of 256 KiB, in turns of 7,500 accesses."""
    rows, tiles, turn = 20_000, 400, 7500
    parts = [zipf(rng, turn, rows, 0.8) if i % 2 == 0 else rows + zipf(rng, turn, tiles, 0.8) for i in range(8)]
    return np.concatenate(parts), np.where(np.arange(rows + tiles) < rows, FRAME, LARGEST * FRAME)


def traces(most: int) -> Iterator[tuple[str, list[Use], int]]:
    """The name, the accesses and the budget in frames of each trace."""
    made = made_objects()
    keys, of_key = sizes_in_turns(np.random.default_rng(1))
    made["sizes in turns"] = keys, of_key[keys]
    for name, (keys, sizes) in made.items():
        frames = 1 << np.ceil(np.log2(np.clip(-(-sizes // FRAME), 1, LARGEST))).astype(int)
        keys, frames = keys[:most], frames[:most]
        _, first = np.unique(keys, return_index=True)
        budget = int(SHARE * frames[first].sum()) // LARGEST * LARGEST
        if budget >= 32 * LARGEST:
            yield name, list(zip(keys.tolist(), frames.tolist(), strict=True)), budget


def mean(values: list[float]) -> float:
    return float(np.exp(np.mean(np.log(values))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a quarter of each trace")
    most = ACCESSES // 4 if parser.parse_args().quick else ACCESSES
    rows: dict[str, list[tuple[float, ...]]] = defaultdict(list)
    by_size: dict[int, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    print(f"{'':<32}{'':<14}{'used':>8}{'objects':>10}{'bytes':>8}{'extra':>8}{'moved':>8}")
    for name, trace, budget in traces(most):
        results = {design: run(trace, budget) for design, run in DESIGNS.items()}
        ideal = results["anywhere"]
        for _, size in trace:
            by_size[size]["accesses"] += 1
        for design, result in results.items():
            objects, missed = result.total(False), result.total(True)
            row = (
                result.used,
                objects / ideal.total(False),
                missed / ideal.total(True),
                result.extra / objects,
                result.moved / missed,
            )
            rows[design].append(row)
            for size, n in result.misses.items():
                by_size[size][design] += n
            print(
                f"{name:<32}{design:<14}{row[0]:>8.3f}{row[1]:>10.3f}{row[2]:>8.3f}{row[3]:>8.3f}{row[4]:>8.2f}",
                flush=True,
            )
    print("\nall traces; the ratios are geometric means, and the worst of each")
    for design, found in rows.items():
        shares, pages, lost, early, copied = (column.tolist() for column in np.array(found).T)
        print(
            f"{design:<14} used {np.mean(shares):.3f} (least {min(shares):.3f})  objects {mean(pages):.3f} ({max(pages):.3f})  "
            f"bytes {mean(lost):.3f} ({max(lost):.3f})  extra {np.mean(early):.3f} ({max(early):.3f})  moved {np.mean(copied):.2f} ({max(copied):.2f})"
        )
    print("\nmisses per access, by page size")
    for size, counts in sorted(by_size.items()):
        ratios = "  ".join(f"{design} {counts[design] / counts['accesses']:.3f}" for design in DESIGNS)
        print(f"{size * FRAME // 1024:>4} KiB  {counts['accesses']:>8} accesses  {ratios}")


if __name__ == "__main__":
    main()
