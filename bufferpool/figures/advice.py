"""Advice: the hit ratio that a pool would have with another budget.

A pool simulates nine miniature pools all the time (core/layout/advice.h), of an
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
"""With fewer sampled references there is no advice."""
LEAST_SHIFT = 1
"""At most one page in 2**LEAST_SHIFT is sampled."""
FORMATS = (".png", ".svg", ".pdf")


@dataclass(frozen=True)
class AdvicePoint:
    """One budget, and the hit ratio to expect of it."""

    budget_frames: int
    """The budget, in frames."""
    budget_bytes: int
    """The budget, in bytes."""
    hit_ratio: float
    """Hits divided by references, 0 to 1."""
    misses_per_s: float
    """Misses per second, at the present rate of references."""


@dataclass(frozen=True)
class Advice:
    """The miss-ratio curve of a pool, over its recent references."""

    budget_frames: int
    """The present budget, in frames."""
    page_size: int
    """Bytes of a page."""
    points: tuple[AdvicePoint, ...]
    """By budget, an eighth to eight times the present one; empty while there are too few references."""
    sampling_rate: float
    """The share of the pages that is sampled, 2**-k."""
    references: int
    """References that the simulations represent since they began. Some are left out between two bursts of samples."""
    references_per_s: float
    """References per second of the pool, over the last ten to twenty seconds, or since it was created."""
    resets: int
    """How often the simulations began: once, and again after each client that died while it updated them."""

    @property
    def present(self) -> AdvicePoint | None:
        """The point of the present budget; None while there are too few references."""
        return next((p for p in self.points if p.budget_frames == self.budget_frames), None)


def calibrate(miss_ratios: npt.NDArray[np.float64], present: float, measured: float) -> npt.NDArray[np.float64]:
    """Moves a miss-ratio curve so that it has the measured value at the present budget.

    Points below ``present``, the curve's own value there, have their misses scaled, points above it
    their hits, so the result is within 0 to 1. The reason: if the sample misses more (or less) often
    than all pages do at one budget, it does so at the others. Shapes: (points,), float64.
    """
    fewer = miss_ratios * (measured / present if present > 0 else 1.0)
    more = 1 - (1 - miss_ratios) * ((1 - measured) / (1 - present) if present < 1 else 1.0)
    return np.clip(np.where(miss_ratios <= present, fewer, more), 0.0, 1.0)


def _curve(raw: dict[str, Any], measured: float | None) -> tuple[list[int], npt.NDArray[np.float64]]:
    """The budgets in frames, and the miss ratio of each, shape (budgets,)."""
    frames = [n for n, _ in raw["missed"]]
    ratios = np.array([missed for _, missed in raw["missed"]]) / raw["expected"]
    ratios = np.clip(np.nan_to_num(ratios, nan=1.0), 0.0, 1.0)
    if measured is not None:
        present = float(ratios[frames.index(raw["budget_frames"])])
        ratios = calibrate(ratios, present, min(max(measured, 0.0), 1.0))
    return frames, np.minimum.accumulate(ratios)


def read_advice(pool: Inspectable) -> Advice:
    """Reads the present advice, in some ten microseconds."""
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
        raw["budget_frames"] or pool.seg.budget_frames(),  # 0: no client has begun to sample
        size,
        tuple(points),
        2.0 ** -raw["shift"],
        raw["references"],
        raw["references_per_s"],
        raw["resets"],
    )


@dataclass(frozen=True)
class TraceAdvice:
    """The advice for a trace, with the cost of computing it."""

    frames: tuple[int, ...]
    miss_ratios: npt.NDArray[np.float64]
    sampling_rate: float
    samples: int
    """References of the trace that were processed."""
    area_bytes: int
    """Bytes of memory that the simulations take."""


def advise_trace(
    trace: npt.ArrayLike, n_frames: int, *, measured: float | None = None, gap: int = 0, least_shift: int = LEAST_SHIFT
) -> TraceAdvice:
    """The advice of a pool of ``n_frames`` frames after a trace, computed by the pool's own code.

    ``trace``: page numbers, as for :func:`bufferpool.simulate`. ``measured``: the miss
    ratio of the pool itself, by which the curve is calibrated. ``gap``: references that are
    left out between two bursts of samples (as by a pool under full load).
    ``least_shift``: at most one page in 2**least_shift is sampled. Raises TypeError,
    ValueError.
    """
    numbers, distinct = dense_trace(trace, n_frames)
    raw, samples, area = _core.advise(numbers, distinct, int(n_frames), int(n_frames), gap, least_shift)
    frames, ratios = _curve(raw, measured)
    return TraceAdvice(tuple(frames), ratios, 2.0 ** -raw["shift"], samples, area)


def plot(advice: Advice, file: str | PathLike[str], title: str) -> None:
    """Draws the hit ratio over the budget into a file: .png, .svg or .pdf.

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
