"""The figures that ``top`` shows, and how they are drawn."""

import time
from dataclasses import dataclass

from rich.text import Text

from bufferpool.cli import colours
from bufferpool.figures import stats as pool_stats
from bufferpool.figures.operations import Operation
from bufferpool.figures.stats import ClientInfo, PoolStats
from bufferpool.observer import Observer

# The parts of the memory bar, from left to right.
PARTS = (
    ("pinned", colours.PINNED),
    ("dirty", colours.DIRTY),
    ("clean", colours.CLEAN),
    ("retired", colours.RETIRED),
    ("busy", colours.BUSY),
    ("free", colours.FREE),
    ("given back", colours.HOLE),
)


@dataclass(frozen=True)
class Snapshot:
    """The figures of one pool, read at one moment."""

    at: float
    uuid: bytes
    stats: PoolStats
    age_bytes: list[int]
    """Bytes of resident pages by the time since their last use, as in :class:`Summary`."""
    clients: list[ClientInfo]
    operations: list[Operation]
    events: list[str]


def read_snapshot(name: str, directory: str | None) -> Snapshot:
    """Reads everything that the screen shows of a pool. Raises SegmentError (or a subclass), and OSError."""
    with Observer(name, directory=directory) as pool:
        return Snapshot(
            time.monotonic(),
            pool.uuid,
            pool.stats(),
            _age_bytes(pool),
            pool.clients(),
            pool.operations(),
            [f"{time.strftime('%H:%M:%S', time.localtime(e.time))}  {e}" for e in pool.events()[-50:]],
        )


def _age_bytes(pool: Observer) -> list[int]:
    sizes = pool.page_sizes()
    ages = [[n * size for n in pool_stats.read_summary(one).ages.values()] for size, one in sizes.items()]
    return [sum(band) for band in zip(*ages, strict=True)]


def rate(before: Snapshot, now: Snapshot, *names: str) -> float:
    """By how much the sum of these counters grew, per second."""
    grown = sum(getattr(now.stats, name) - getattr(before.stats, name) for name in names)
    return float(grown) / (now.at - before.at)


def bar(shares: list[tuple[float, str]], width: int) -> Text:
    """A bar of coloured cells in proportion to the shares; a share above 0 gets at least one cell."""
    total = sum(share for share, _ in shares) or 1.0
    cells = [max(1, int(share / total * width)) if share else 0 for share, _ in shares]
    while sum(cells) != width and any(cells):  # the largest share absorbs the rounding
        i = max(range(len(cells)), key=cells.__getitem__)
        cells[i] += 1 if sum(cells) < width else -1
    text = Text(no_wrap=True)
    for n, (_, colour) in zip(cells, shares, strict=True):
        text.append("█" * n, colour)
    return text


def legend(parts: list[tuple[str, str, str]]) -> Text:
    """Name, colour and figure of each part."""
    text = Text(no_wrap=True, overflow="ellipsis")
    for name, colour, figure in parts:
        text.append("■ ", colour)
        text.append(f"{name} ", "dim")
        text.append(f"{figure}  ", "bold")
    return text


def memory_parts(stats: PoolStats) -> dict[str, int]:
    """The bytes of each part of the memory bar: the states of ``bufferpool_frames``; holes were given back."""
    parts: dict[str, int] = {}
    for one in stats.by_page_size.values() or [stats]:
        for name, n in one.frames.shown().items():
            shown = "given back" if name == "hole" else name
            parts[shown] = parts.get(shown, 0) + n * one.page_size
    return parts


def brief(size: int) -> str:
    """A number of bytes in a few characters."""
    value, units = float(size), "BKMGT"
    while value >= 1024 and len(units) > 1:
        value, units = value / 1024, units[1:]
    return f"{value:.0f}{units[0]}" if value >= 100 or units[0] == "B" else f"{value:.1f}{units[0]}"


def short(number: float) -> str:
    """A figure in a few characters."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= 10 * size:
            return f"{number / size:.0f}{unit}"
        if number >= size:
            return f"{number / size:.1f}{unit}"
    return f"{number:.0f}"
