"""The replacement policy beside FIFO, LRU, OPT and published figures, on page traces.

    benchmarks/policy.py                        the cuts that come with the project
    benchmarks/policy.py --made                 patterns made by formulas
    benchmarks/policy.py --sets                 working sets that change, and loops after them, at half, one and twice a set's size
    benchmarks/policy.py TRACES [--published FILE]   every TRACES/*.npz (array `pages`)

Score of a policy at a size: (MR - MR_OPT) / (MR_FIFO - MR_OPT), where FIFO and
OPT differ by more than 0.01: 0 is OPT, 1 is FIFO. The mean over a trace's
sizes, then over traces. The exit code is 1 when the bars are not met, or when
published figures of FIFO or OPT differ from the computed ones.
"""

import argparse
import csv
import re
import sys
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from made import SET, changing_sets, made_traces
from yardsticks import fifo_misses, lru_misses, opt_misses

import bufferpool as bp

SHARES = (0.001, 0.01, 0.05, 0.1, 0.2, 0.5)  # of the distinct pages
LEAST_FRAMES, LEAST_DIFFERENCE = 10, 0.01
OURS = "bufferpool"
FORMER = "ALR"  # the figures of the policy as it was first drawn, in a file of published ones
BEHIND = 0.05
ROOT = Path(__file__).parent.parent
SHIPPED = {
    "tpcc": ROOT / "bufferpool" / "replay" / "traces",
    "htap": ROOT / "tests" / "traces",
    "tpch": ROOT / "tests" / "traces",
}
BARS = {
    "folder": (0.33, 1.05),
    "cuts": (0.62, 1.05),
    "made": (0.63, 1.1),
    "sets": (0.66, 1.05),
}  # mean score, worst point

Published = dict[tuple[str, int], dict[str, float]]


@dataclass
class Measured:
    """One trace: the miss ratio of every policy at every size."""

    name: str
    pages: np.ndarray
    distinct: int
    ratios: dict[int, dict[str, float]] = field(default_factory=dict)  # frames -> policy -> miss ratio
    seconds: float = 0.0  # of our simulations

    def scores(self, policy: str) -> dict[int, float]:
        """frames -> score, where FIFO and OPT differ enough."""
        found = {}
        for frames, row in self.ratios.items():
            span = row["FIFO"] - row["OPT"]
            if span > LEAST_DIFFERENCE and policy in row:
                found[frames] = (row[policy] - row["OPT"]) / span
        return found

    def policies(self) -> list[str]:
        """All policies that have a figure at every size, best first, after ours and OPT."""
        common = set.intersection(*(set(row) for row in self.ratios.values())) - {OURS, "OPT"}
        return [OURS, "OPT", *sorted(common, key=lambda p: np.mean([row[p] for row in self.ratios.values()]))]


def sizes(distinct: int) -> list[int]:
    """Frames at which a trace is measured."""
    return [frames for share in SHARES if (frames := int(share * distinct)) >= LEAST_FRAMES]


def measure(name: str, pages: np.ndarray, published: Published, wrong: list[str], kind: str) -> Measured:
    """Measures all policies on one trace. A contradiction to a published figure is added to `wrong`."""
    trace = Measured(name, pages, len(np.unique(pages)))
    for frames in [SET // 2, SET, 2 * SET] if kind == "sets" else sizes(trace.distinct):
        start = time.perf_counter()
        row = {OURS: bp.simulate(pages, frames).misses / len(pages)}
        trace.seconds += time.perf_counter() - start
        given = published.get((name, frames), {})
        row |= {"FIFO": fifo_misses(pages, frames) / len(pages), "OPT": opt_misses(pages, frames) / len(pages)}
        for policy, ratio in row.items():
            if policy in given and abs(given[policy] - ratio) > 1e-6:
                wrong.append(f"{name}, {frames} frames: {policy} is published as {given[policy]}, and {ratio:.6f} here")
        if "LRU" not in given:
            row["LRU"] = lru_misses(pages, frames) / len(pages)
        trace.ratios[frames] = given | row
    return trace


def read_published(path: Path) -> Published:
    """The rows trace, policy, cache_pages, miss_ratio of a CSV file."""
    found: Published = defaultdict(dict)
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            found[row["trace"], int(row["cache_pages"])][row["policy"]] = float(row["miss_ratio"])
    return found


def table_of(trace: Measured) -> str:
    """One trace: miss ratio and score of every policy at every size."""
    head = "".join(f"{frames:>16,}" for frames in trace.ratios)
    lines = [f"\n{trace.name}: {len(trace.pages):,} accesses to {trace.distinct:,} pages", f"{'frames':<20}{head}"]
    for policy in trace.policies():
        scores = trace.scores(policy)
        cells = [
            f"{row[policy]:9.4f}" + (f" ({scores[frames]:4.2f})" if frames in scores else f"{'':7}")
            for frames, row in trace.ratios.items()
        ]
        lines.append(f"{policy:<20}" + "".join(cells))
    return "\n".join(lines)


def summary(traces: list[Measured]) -> dict[str, tuple[float, float]]:
    """Policy -> (mean score, worst point), over the policies that every trace has; best first."""
    common = set.intersection(*(set(trace.policies()) for trace in traces)) - {"OPT"}
    found = {}
    for policy in common:
        points = [list(trace.scores(policy).values()) for trace in traces]
        found[policy] = float(np.mean([np.mean(p) for p in points if p])), max(max(p) for p in points if p)
    return dict(sorted(found.items(), key=lambda item: item[1][0]))


def families(traces: list[Measured]) -> list[str]:
    """A line for each kind of trace (the name up to a comma or digit): ours and LRU, mean score over its traces and worst point."""
    kinds = defaultdict[str, list[Measured]](list)
    for trace in traces:
        if trace.scores(OURS):
            kinds[re.split(r"[,\d]", trace.name)[0].strip()].append(trace)
    found = []
    for kind, members in kinds.items():
        figures = summary(members)
        found.append(f"{kind:<20}" + "".join(f"{value:>12.2f}" for name in (OURS, "LRU") for value in figures[name]))
    return found


def better_elsewhere(traces: list[Measured]) -> list[str]:
    """The points where another policy misses less often than ours by more than BEHIND, with the best one and its share of our misses."""
    found = []
    for trace in traces:
        for frames, row in trace.ratios.items():
            others = {name: ratio for name, ratio in row.items() if name not in (OURS, "OPT", FORMER)}
            best = min(others, key=others.__getitem__)
            share = others[best] / row[OURS]
            if share < 1 - BEHIND:
                lru = f", LRU {row['LRU'] / row[OURS]:.2f}" if best != "LRU" else ""
                found.append(
                    f"{trace.name}, {frames:,} frames ({frames / trace.distinct:.1%}): {best} {share:.2f}{lru}"
                )
    return found


def load(options: argparse.Namespace) -> tuple[dict[str, np.ndarray], str]:
    """The traces asked for, and which bars hold for them."""
    if options.made:
        return {name: np.asarray(pages) for name, pages in made_traces().items()}, "made"
    if options.sets:
        return {name: np.asarray(pages) for name, pages in changing_sets().items()}, "sets"
    if options.traces is None:
        files = [folder / f"{name}.npz" for name, folder in SHIPPED.items()]
    else:
        files = sorted(options.traces.glob("*.npz"))
    if not files:
        sys.exit(f"{options.traces} has no .npz files, each with an array 'pages'")
    return {file.stem: np.load(file)["pages"] for file in files}, "cuts" if options.traces is None else "folder"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measures the replacement policy beside others, on page traces.")
    parser.add_argument("traces", nargs="?", type=Path, help="a folder of .npz files (default: the project's cuts)")
    parser.add_argument("--made", action="store_true", help="patterns made by formulas instead")
    parser.add_argument("--sets", action="store_true", help="working sets that change, made by formulas")
    parser.add_argument("--published", type=Path, metavar="FILE", help="CSV: trace,policy,cache_pages,miss_ratio")
    parser.add_argument("--plots", type=Path, metavar="DIR", help="also draw miss-ratio curves (needs matplotlib)")
    return parser.parse_args()


def main() -> int:
    options = arguments()
    chosen, kind = load(options)
    published = read_published(options.published) if options.published else {}
    traces, wrong = [], list[str]()
    for name, pages in chosen.items():
        traces.append(measure(name, pages, published, wrong, kind))
        print(table_of(traces[-1]), flush=True)
    if not any(trace.scores(OURS) for trace in traces):
        sys.exit("FIFO and OPT nowhere differ by more than 0.01: these traces cannot distinguish policies")
    found = summary(traces)
    print(f"\n{'policy':<20}{'mean score':>12}{'worst point':>13}")
    for policy, (mean, worst) in found.items():
        print(f"{policy:<20}{mean:>12.3f}{worst:>13.2f}")
    print(f"\n{'kind':<20}{OURS:>12}{'worst':>12}{'LRU':>12}{'worst':>12}")
    print("\n".join(families(traces)))
    print(f"\nOthers miss less often by more than {BEHIND:.0%}; misses beside ours:")
    for line in better_elsewhere(traces):
        print(f"  {line}")
    accesses = sum(len(trace.pages) * len(trace.ratios) for trace in traces)
    print(f"\nsimulate(): {accesses / sum(trace.seconds for trace in traces) / 1e6:.0f} million accesses a second")
    if options.plots:
        from plots import draw

        print(f"{len(draw(traces, found, options.plots))} pictures in {options.plots}")
    (mean, worst), (most_mean, most_worst) = found[OURS], BARS[kind]
    met = mean <= most_mean and worst <= most_worst
    print(
        f"mean {mean:.3f} (at most {most_mean}), worst {worst:.2f} (at most {most_worst}): {'ok' if met else 'MISSED'}"
    )
    for line in wrong:
        print(f"WRONG  {line}")
    return 0 if met and not wrong else 1


if __name__ == "__main__":
    sys.exit(main())
