"""Advice: what the hit ratio would be with another budget.

The pool simulates itself in miniature all the time (core/layout/advice.h): nine pools of an
eighth to eight times the budget, each with the pool's own policy, over a sample of the
pages (SHARDS: Waldspurger, Park, Garthwaite, Ahmad, "Efficient MRC Construction with
SHARDS", FAST 2015). These functions read the figures.
"""

from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bufferpool import _core
from bufferpool.errors import BufferPoolError
from bufferpool.figures.stats import Inspectable
from bufferpool.simulation import dense_trace
from bufferpool.units import format_size

LEAST_EXPECTED = 256
"""Sampled references below which there is no advice."""
LEAST_SHIFT = 1
"""At most one page in 2**LEAST_SHIFT is sampled."""
FORMATS = (".png", ".svg", ".pdf")


@dataclass(frozen=True)
class AdvicePoint:
    """One budget, and what to expect of it."""

    budget_frames: int
    budget_bytes: int
    hit_ratio: float
    """0 to 1."""
    misses_per_s: float
    """At the rate at which the pool is referenced now."""


@dataclass(frozen=True)
class Advice:
    """The miss-ratio curve of a pool, over its recent references."""

    budget_frames: int
    """The present budget."""
    page_size: int
    """Bytes of a page."""
    points: tuple[AdvicePoint, ...]
    """By budget, an eighth to eight times the present one; empty while there are too few references."""
    sampling_rate: float
    """The share of the pages that is simulated, 2**-k."""
    references: int
    """References of all pages that the simulations stand for since they began; some go by between two samples."""
    references_per_s: float
    """Of the pool, over the last ten to twenty seconds, or since it was created."""
    resets: int
    """How often the simulations began: 1, and once more for each client that died at work on them."""

    @property
    def present(self) -> AdvicePoint | None:
        """The point of the present budget; None while there are too few references."""
        return next((p for p in self.points if p.budget_frames == self.budget_frames), None)


def calibrate(miss_ratios: npt.NDArray[np.float64], present: float, measured: float) -> npt.NDArray[np.float64]:
    """Moves a curve so that it goes through what was measured at the present budget.

    Where the curve is below its value ``present`` there, the misses are scaled, where it
    is above, the hits: it stays within 0 to 1. Anything that makes the sample miss more or
    less often than all pages do, does so at other budgets too.
    """
    fewer = miss_ratios * (measured / present if present > 0 else 1.0)
    more = 1 - (1 - miss_ratios) * ((1 - measured) / (1 - present) if present < 1 else 1.0)
    return np.clip(np.where(miss_ratios <= present, fewer, more), 0.0, 1.0)


def _curve(raw: dict[str, Any], measured: float | None) -> tuple[list[int], npt.NDArray[np.float64]]:
    """Budgets in frames, and the miss ratio of each."""
    frames = [n for n, _ in raw["missed"]]
    ratios = np.array([missed for _, missed in raw["missed"]]) / raw["expected"]
    ratios = np.clip(np.nan_to_num(ratios, nan=1.0), 0.0, 1.0)
    if measured is not None:
        present = float(ratios[frames.index(raw["budget_frames"])])
        ratios = calibrate(ratios, present, min(max(measured, 0.0), 1.0))
    return frames, np.minimum.accumulate(ratios)


def read_advice(pool: Inspectable) -> Advice:
    """The advice of this moment; costs some ten microseconds."""
    raw, size = pool.seg.advice(), pool.page_size
    points = []
    if raw["expected"] >= LEAST_EXPECTED:
        frames, ratios = _curve(raw, raw["missed_by_pool"] / raw["expected"])
        rate = raw["references_per_s"]
        points = [
            AdvicePoint(n, n * size, 1 - float(ratio), float(ratio) * rate)
            for n, ratio in dict(zip(frames, ratios, strict=True)).items()
        ]
    return Advice(
        raw["budget_frames"] or pool.seg.budget_frames(),  # none yet: nobody has begun
        size,
        tuple(points),
        2.0 ** -raw["shift"],
        raw["references"],
        raw["references_per_s"],
        raw["resets"],
    )


@dataclass(frozen=True)
class TraceAdvice:
    """What the simulations say of a trace."""

    frames: tuple[int, ...]
    miss_ratios: npt.NDArray[np.float64]
    sampling_rate: float
    samples: int
    """References that were worked off."""
    area_bytes: int
    """Memory of the simulations."""


def advise_trace(
    trace: npt.ArrayLike, n_frames: int, *, measured: float | None = None, gap: int = 0, least_shift: int = LEAST_SHIFT
) -> TraceAdvice:
    """The advice of a pool of ``n_frames`` after a trace, by the very code that the pool runs.

    ``trace``: page numbers, as for :func:`bufferpool.simulate`. ``measured``: the miss
    ratio of the pool itself, to calibrate by, as a pool does. ``gap``: references that go
    by between two bursts of samples (a pool under full load leaves some out).
    ``least_shift``: at most one page in 2**least_shift is sampled. Raises TypeError,
    ValueError.
    """
    numbers, distinct = dense_trace(trace, n_frames)
    raw, samples, area = _core.advise(numbers, distinct, int(n_frames), int(n_frames), gap, least_shift)
    frames, ratios = _curve(raw, measured)
    return TraceAdvice(tuple(frames), ratios, 2.0 ** -raw["shift"], samples, area)


def plot(advice: Advice, file: str | PathLike[str], title: str) -> None:
    """Draws the curve into a file: .png, .svg or .pdf.

    Raises ValueError for another kind of file, BufferPoolError without matplotlib or
    without a point to draw.
    """
    path = Path(file)
    if path.suffix.lower() not in FORMATS:
        raise ValueError(f"a plot is one of {', '.join(FORMATS)}, not {path.name!r}")
    if not advice.points:
        raise BufferPoolError("there is nothing to draw yet: the pool has seen too few references")
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import FuncFormatter, NullLocator
    except ImportError as error:
        raise BufferPoolError("a plot needs the library matplotlib: pip install matplotlib") from error
    sizes = [p.budget_bytes for p in advice.points]
    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(sizes, [100 * p.hit_ratio for p in advice.points], "o-", color="#1f5f8b")
    present = advice.present
    if present is not None:
        axes.axvline(present.budget_bytes, color="#999999", linestyle="--", linewidth=1)
        axes.annotate(
            f"now: {present.hit_ratio:.1%}",
            (present.budget_bytes, 100 * present.hit_ratio),
            xytext=(8, -14),
            textcoords="offset points",
        )
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes[::2] if len(sizes) > 5 else sizes)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: format_size(x)))
    axes.set_xlabel("budget")
    axes.set_ylabel("hit ratio, %")
    axes.set_title(title)
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
