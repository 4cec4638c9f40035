"""``bufferpool map``: draws the segment with one cell for each frame, or for several, grouped by extent."""

import argparse
import math
import os
import shutil
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from bufferpool.cli import colours
from bufferpool.cli.common import Commands, observe, print_json, tell
from bufferpool.errors import BufferPoolError
from bufferpool.figures.names import AGE_LIMITS_S, FrameState
from bufferpool.figures.stats import read_stats
from bufferpool.observer import Observer
from bufferpool.units import format_size

# Name, letter (used without colours), colour.
STATES = (
    ("hole", "·", colours.HOLE),
    ("free", "-", colours.FREE),
    ("in use by an operation", "*", colours.BUSY),
    ("clean", "o", colours.CLEAN),
    ("dirty", "d", colours.DIRTY),
    ("pinned", "P", colours.PINNED),
    ("retired", "x", colours.RETIRED),
)
HOLE, FREE, BUSY, CLEAN, DIRTY, PINNED, RETIRED = range(len(STATES))
AGES = (
    *((f"< {age}" if age != "older" else age, str(i), colour) for i, (age, colour) in enumerate(colours.AGES)),
    ("no page", "·", colours.HOLE),
)
Kinds = tuple[tuple[str, str, str], ...]


def cells_of(pool: Observer, by: str) -> tuple[npt.NDArray[np.uint8], Kinds]:
    """The kind of each frame of whole extents, uint8, and the list of kinds that it indexes."""
    frames, per = pool.frames(), int(pool.geometry["extent_frames"])
    cells = -(-max(pool.max_frames, len(frames)) // per) * per
    if by == "age":
        out = np.full(cells, len(AGES) - 1, np.uint8)
        live = frames["state"] == FrameState.LIVE
        out[: len(frames)][live] = np.searchsorted(AGE_LIMITS_S[:-1], frames["idle_s"][live], side="right")
        return out, AGES
    out = np.full(cells, HOLE, np.uint8)
    shown = np.array([HOLE, FREE, BUSY, CLEAN, RETIRED], np.uint8)[frames["state"]]
    live = shown == CLEAN
    shown[live & frames["dirty"]] = DIRTY
    shown[live & (frames["pins"] > 0)] = PINNED
    out[: len(frames)] = shown
    return out, STATES


class Shape(NamedTuple):
    """How a map lies on lines of a given width."""

    label: int
    """Columns of the number before each line, with the space after it."""
    across: int
    """Boxes side by side."""
    piece: int
    """Cells of a box on one line."""


def shape_of(box: int, last: int, width: int) -> Shape:
    """The shape of a map whose boxes have ``box`` cells each; ``last`` is the number of the last extent."""
    label = len(str(last)) + 2
    return Shape(label, max(1, (width - label + 1) // (box + 1)), min(box, max(8, width - label)))


def fold(cells: npt.NDArray[np.uint8], per: int, width: int, rows: int) -> tuple[npt.NDArray[np.uint8], int, int]:
    """Makes a map fit ``rows`` lines: each cell shows the most frequent kind of a power of two of frames.

    Returns the cells, the cells of a box, and the frames of a cell. A box is one extent while that has at least 8
    cells, else several extents.
    """
    extents = len(cells) // per
    each, box = 1, per
    while each < len(cells):
        boxes = -(-len(cells) // (each * box))
        shape = shape_of(box, extents - 1, width)
        if -(-boxes // shape.across) * -(-box // shape.piece) <= rows:
            break
        each *= 2
        box = max(per // each, 8)
    padded = np.pad(cells, (0, -len(cells) % (each * box)), mode="edge").reshape(-1, each)
    counts = np.stack([np.count_nonzero(padded == kind, axis=1) for kind in range(int(cells.max()) + 1)])
    return counts.argmax(axis=0).astype(np.uint8), box, each


def lines(
    cells: npt.NDArray[np.uint8], kinds: Kinds, box: int, width: int, colour: bool, step: int = 1
) -> Iterator[str]:
    """The lines of the map: as many boxes (``box`` cells each) side by side as ``width`` columns hold.

    A line begins with the number of its first extent; a box stands for ``step`` extents.
    """
    boxes = cells.reshape(-1, box)
    shape = shape_of(box, (len(boxes) - 1) * step, width)
    for first in range(0, len(boxes), shape.across):
        row = boxes[first : first + shape.across]
        for at in range(0, box, shape.piece):
            start = str(first * step) if at == 0 else ""
            parts = (_cells(part[at : at + shape.piece], kinds, colour) for part in row)
            yield f"{start:>{shape.label - 2}}  " + " ".join(parts)


def _cells(cells: npt.NDArray[np.uint8], kinds: Kinds, colour: bool) -> str:
    if not colour:
        return "".join(kinds[c][1] for c in cells)
    out, last = [], -1
    for c in cells:
        if c != last:
            out.append(_paint(kinds[c][2]))
            last = int(c)
        out.append("█")
    return "".join(out) + "\x1b[0m"


def _paint(colour: str) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"\x1b[38;2;{red};{green};{blue}m"


def _legend(cells: npt.NDArray[np.uint8], kinds: Kinds, page_size: int, colour: bool) -> str:
    counts = np.bincount(cells, minlength=len(kinds))
    parts = [
        (f"{_paint(c)}█\x1b[0m" if colour else letter) + f" {name} {format_size(int(n) * page_size)}"
        for (name, letter, c), n in zip(kinds, counts, strict=True)
        if n
    ]
    return "   ".join(parts)


def draw(cells: npt.NDArray[np.uint8], kinds: Kinds, per: int, title: str, page_size: int, path: str) -> None:
    """Draws the map into ``path`` (.png or .svg), with an outlined box for each extent.

    Raises BufferPoolError without matplotlib.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise BufferPoolError("a picture needs the library matplotlib: pip install matplotlib") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.collections import LineCollection
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    extents = cells.reshape(-1, per)
    wide = 2 ** math.ceil(math.log2(max(1, per)) / 2)
    high = -(-per // wide)
    across = max(1, min(len(extents), round(math.sqrt(len(extents) * 2.2 * high / wide))))
    down = -(-len(extents) // across)
    grid: npt.NDArray[Any] = np.full((down * (high + 1) - 1, across * (wide + 1) - 1), np.nan)
    outlines = []
    for i, extent in enumerate(extents):
        y, x = i // across * (high + 1), i % across * (wide + 1)
        box = np.full(high * wide, np.nan)
        box[:per] = extent
        grid[y : y + high, x : x + wide] = box.reshape(high, wide)
        left, top, right, low = x - 0.5, y - 0.5, x + wide - 0.5, y + high - 0.5
        outlines.append([(left, top), (right, top), (right, low), (left, low), (left, top)])
    width = 11.0
    fig, ax = pyplot.subplots(
        figsize=(width, max(1.6, width * grid.shape[0] / grid.shape[1]) + 1.1), layout="constrained"
    )
    colours = ListedColormap([colour for *_, colour in kinds])
    ax.imshow(grid, cmap=colours, vmin=-0.5, vmax=len(kinds) - 0.5, interpolation="nearest")
    ax.add_collection(LineCollection(outlines, colors="#8a93a0", linewidths=0.6))
    ax.set(xlim=(-1, grid.shape[1]), ylim=(grid.shape[0], -1))  # so that the outermost outlines are whole
    ax.set_axis_off()
    ax.set_title(title, loc="left", fontsize=11)
    counts = np.bincount(cells, minlength=len(kinds))
    patches = [
        Patch(color=colour, label=f"{name}  {format_size(int(n) * page_size)}")
        for (name, _, colour), n in zip(kinds, counts, strict=True)
        if n
    ]
    fig.legend(handles=patches, loc="outside lower left", ncols=4, frameon=False, fontsize=9)
    fig.savefig(path, dpi=130)
    pyplot.close(fig)


def _map(args: argparse.Namespace) -> int:
    if args.output and os.path.splitext(args.output)[1].lower() not in (".png", ".svg"):
        args.parser.error(f"--output must end in .png or .svg, not {args.output!r}")
    with observe(args) as pool:
        cells, kinds = cells_of(pool, args.by)
        per, stats = int(pool.geometry["extent_frames"]), read_stats(pool)
        others = [one.name for one in pool.page_sizes().values()][1:]
    title = (
        f"{args.name}: {len(cells):,} frames of {format_size(stats.page_size)}, {per} an extent; "
        f"{format_size(stats.resident_bytes)} resident of a budget of {format_size(stats.budget_bytes)}"
    )
    if args.output:
        draw(cells, kinds, per, title, stats.page_size, args.output)
        tell(f"written to {args.output}")
        return 0
    if args.json:
        names = [name for name, *_ in kinds]
        print_json({"name": args.name, "extent_frames": per, "frames": [names[cell] for cell in cells]})
        return 0
    colour = args.color == "always" or (args.color == "auto" and sys.stdout.isatty() and "NO_COLOR" not in os.environ)
    screen = shutil.get_terminal_size((100, 30))
    rows = sys.maxsize if args.full else max(4, screen.lines - 4)  # the title, the legend, and the next prompt
    folded, box, each = fold(cells, per, screen.columns, rows)
    tell(title + (f"; each cell shows the most frequent kind of {each:,} frames" if each > 1 else ""))
    for line in lines(folded, kinds, box, screen.columns, colour, box * each // per):
        print(line)
    print(_legend(cells, kinds, stats.page_size, colour))
    if others:
        tell(f"pages of other sizes: bufferpool map {' | '.join(others)}")
    return 0


def register(commands: Commands) -> None:
    """Adds the command."""
    sub = commands.add(
        "map", _map, "show the segment as a picture",
        "A cell is a frame, and a box an extent, the unit in which memory is given back; each line begins with its first extent's "
        "number. In a pool that is too large for the screen, a cell shows the most frequent kind of several frames.\n\n"
        "examples:\n  bufferpool map orders\n  bufferpool map orders --by age\n  bufferpool map orders --output orders.png",
    )  # fmt: skip
    sub.add_argument(
        "--by", choices=["state", "age"], default="state", help="what the colours show (default: %(default)s)"
    )
    sub.add_argument("--output", metavar="FILE", help="write a picture there (.png or .svg) instead")
    sub.add_argument("--full", action="store_true", help="show a cell for each frame, however many there are")
    sub.add_argument("--color", choices=["auto", "always", "never"], default="auto", help="default: on a terminal")
