"""Measures the advice: its error against exact simulation, its cost, and its memory.

``python benchmarks/advice.py [FOLDER]`` feeds the traces of a folder (NAME.npz with an
array ``pages``; default: those that the package ships) to the simulations that a pool
runs of itself, and compares their curve with exact simulation at an eighth to eight times
2, 5, 10, 20 and 50 % of the distinct pages. Exits with 1 if the mean absolute error over all
is above 0.02. ``--cost`` measures its share of the throughput of hits (``advice_cost.py``), and
exits with 1 if recording takes 1 % or more.
"""

import argparse
import sys
from functools import cache
from pathlib import Path

import advice_cost
import numpy as np
import numpy.typing as npt

import bufferpool as bp
from bufferpool.figures.advice import advise_trace

PACKAGE = Path(bp.__file__).parent
SHARES = (0.02, 0.05, 0.1, 0.2, 0.5)
LEAST_FRAMES = 200
BAR = 0.02
GAP = 1_000_000  # references that are left out between two bursts, as many as a pool under full load has in a second


def traces(folder: Path | None) -> dict[str, npt.NDArray[np.integer]]:
    files = sorted((folder or PACKAGE / "replay" / "traces").glob("*.npz"))
    if not files:
        sys.exit(f"{folder} has no .npz files")
    return {file.stem: np.load(file)["pages"] for file in files}


def error_table(folder: Path | None) -> float:
    """Prints the error of every trace and size; returns the mean."""
    print(
        f"{'trace':<16} {'frames':>8} {'rate':>6} {'memory':>9} {'error':>7} {'worst':>7} {'busy':>7} {'uncalib.':>8}"
    )
    errors: list[tuple[float, float, float]] = []
    for name, trace in traces(folder).items():
        distinct = len(np.unique(trace))

        @cache
        def exact(frames: int, trace: npt.NDArray[np.integer] = trace) -> float:
            return bp.simulate(trace, frames).miss_ratio

        for frames in (int(share * distinct) for share in SHARES):
            if frames < LEAST_FRAMES:
                continue
            found = advise_trace(trace, frames, measured=exact(frames))
            true = np.array([exact(max(n, 1)) for n in found.frames])

            def off(curve: npt.NDArray[np.float64], true: npt.NDArray[np.float64] = true) -> npt.NDArray[np.float64]:
                return np.abs(curve - true)

            error = off(found.miss_ratios)
            busy = off(advise_trace(trace, frames, measured=exact(frames), gap=GAP).miss_ratios).mean()
            raw = off(advise_trace(trace, frames).miss_ratios).mean()
            errors.append((float(error.mean()), float(busy), float(raw)))
            rate = f"1/{1 / found.sampling_rate:.0f}"
            print(
                f"{name:<16} {frames:>8,} {rate:>6} {found.area_bytes:>9,} {error.mean():>7.4f} {error.max():>7.4f} "
                f"{busy:>7.4f} {raw:>8.4f}",
                flush=True,
            )
    mean, busy, raw = np.mean(errors, axis=0)
    print(f"mean absolute error {mean:.4f}, of a busy pool {busy:.4f}, not calibrated {raw:.4f}; bar {BAR}")
    return float(mean)


def rate_table(folder: Path | None) -> None:
    """Prints the mean error by sampling rate."""
    for shift in range(7):
        errors = []
        for trace in traces(folder).values():
            distinct = len(np.unique(trace))
            for frames in (int(share * distinct) for share in SHARES):
                if frames >= LEAST_FRAMES:
                    measured = bp.simulate(trace, frames).miss_ratio
                    found = advise_trace(trace, frames, measured=measured, least_shift=shift)
                    true = np.array([bp.simulate(trace, max(n, 1)).miss_ratio for n in found.frames])
                    errors.append(np.abs(found.miss_ratios - true).mean())
        print(f"rate at most 1/{2**shift:<3} mean error {np.mean(errors):.4f}, worst {np.max(errors):.4f}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, help="traces, NAME.npz with an array 'pages'")
    parser.add_argument("--rates", action="store_true", help="the error at several sampling rates")
    parser.add_argument("--cost", action="store_true", help="what it takes of the throughput of hits")
    parser.add_argument("--seconds", type=float, default=300.0, help="for --cost (default: %(default)s)")
    args = parser.parse_args()
    if args.cost:
        return 1 if advice_cost.cost_table(args.seconds) >= advice_cost.BAR else 0
    if args.rates:
        rate_table(args.folder)
        return 0
    return 1 if error_table(args.folder) > BAR else 0


if __name__ == "__main__":
    sys.exit(main())
