"""Pictures of what benchmarks/policy.py measured: miss-ratio curves, and a summary."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl

mpl.use("agg")
import matplotlib.pyplot as plt

if TYPE_CHECKING:
    from policy import Measured

OURS = "bufferpool"
STYLES: dict[str, dict[str, Any]] = {
    OURS: {"color": "#c0392b", "linewidth": 2.2, "zorder": 5},
    "OPT": {"color": "black", "linewidth": 1.4, "linestyle": "--"},
    "FIFO": {"color": "#7f8c8d", "linewidth": 1.4, "linestyle": ":"},
    "LRU": {"color": "#2980b9", "linewidth": 1.4},
    "ARC": {"color": "#27ae60", "linewidth": 1.0},
    "LIRS": {"color": "#8e44ad", "linewidth": 1.0},
    "S3-FIFO": {"color": "#e67e22", "linewidth": 1.0},
    "W-TinyLFU-climber": {"color": "#c78a9a", "linewidth": 1.0},
}
FARTHEST = 5.0  # larger scores are printed instead of drawn


def _curve(trace: "Measured", to: Path) -> Path:
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    frames = list(trace.ratios)
    for policy, style in STYLES.items():
        if all(policy in row for row in trace.ratios.values()):
            axes.plot(frames, [row[policy] for row in trace.ratios.values()], label=policy, marker=".", **style)
    axes.set_xscale("log")
    axes.set_xticks(frames, [f"{n:,}" for n in frames])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.set_xlabel("frames")
    axes.set_ylabel("miss ratio")
    axes.set_title(f"{trace.name}: {len(trace.pages):,} accesses, {trace.distinct:,} pages")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    path = to / f"{trace.name.replace(' ', '-').replace(',', '')}.png"
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path


def _summary(found: dict[str, tuple[float, float]], to: Path) -> Path:
    names = list(found)[::-1]
    figure, axes = plt.subplots(figsize=(7, 1.2 + 0.27 * len(names)), layout="constrained")
    colors = [STYLES[OURS]["color"] if name == OURS else "#95a5a6" for name in names]
    axes.barh(names, [found[name][0] for name in names], color=colors, label="mean over traces")
    farthest = min(FARTHEST, 1.1 * max(worst for _, worst in found.values()))
    axes.plot([min(found[name][1], farthest) for name in names], names, "k|", markersize=9, label="worst point")
    for name in names:
        if found[name][1] > farthest:
            axes.annotate(
                f"{found[name][1]:.1f} →",
                (farthest, name),
                (-6, 0),
                textcoords="offset points",
                ha="right",
                va="center",
            )
    axes.axvline(1, color="black", linewidth=0.8, linestyle=":")
    axes.set_xlim(0, farthest)
    axes.margins(y=0.02)
    axes.set_xlabel("score: 0 is OPT, 1 is FIFO")
    axes.legend(loc="upper right", fontsize=8)
    path = to / "summary.png"
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path


def draw(traces: list["Measured"], found: dict[str, tuple[float, float]], to: Path) -> list[Path]:
    """One picture a trace, and the summary; returns their paths."""
    to.mkdir(parents=True, exist_ok=True)
    return [*(_curve(trace, to) for trace in traces), _summary(found, to)]
