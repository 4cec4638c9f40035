"""The advice: its error against exact simulation, its cost, and its memory.

``python benchmarks/advice.py [FOLDER]`` feeds the traces of a folder (NAME.npz with an
array ``pages``; default: those that the package ships) to the simulations that a pool
runs of itself, and compares their curve with exact simulation at an eighth to eight times
2, 5, 10, 20 and 50 % of the distinct pages. Exits with 1 if the mean absolute error over all
is above 0.02. ``--cost`` measures hits by second of processor time beside a build without advice.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import sysconfig
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

import bufferpool as bp
from bufferpool.advise import advise_trace

PACKAGE = Path(bp.__file__).parent
SHARES = (0.02, 0.05, 0.1, 0.2, 0.5)
LEAST_FRAMES = 200
BAR = 0.02
GAP = 1_000_000  # references left out between two bursts: a second of a pool under full load

WORKER = """
import os, random, sys, tempfile, time
import numpy as np, bufferpool as bp
pages = int(sys.argv[1])
with tempfile.NamedTemporaryFile() as file:
    file.truncate(8192 * pages)
    pool = bp.Pool.create(f"bpadvice-{os.getpid()}", 8192 * pages, page_size=8192)
    s = pool.open_file(file.name)
    for n in range(pages): s[n]
    ids = random.Random(1).choices(range(pages), k=6400)
    batches, out = np.array(ids).reshape(-1, 64), np.empty((64, 8192), np.uint8)
    def single():
        for n in ids: s[n]
    def hot():
        for _ in range(100):
            for n in ids[:64]: s[n]
    def pin_many():
        for batch in batches:
            with s.pin_many(batch): pass
    def read_many():
        for batch in batches: s.read_many(batch, out=out)
    print("ready", flush=True)
    try:
        for line in sys.stdin:
            work, seconds = globals()[line.split()[0]], float(line.split()[1])
            start, rounds = time.process_time(), 0
            while time.process_time() - start < seconds:
                work()
                rounds += 1
            print(rounds / (time.process_time() - start), flush=True)
    finally:
        pool.unlink()
"""


def traces(folder: Path | None) -> dict[str, npt.NDArray[np.integer]]:
    files = sorted((folder or PACKAGE / "traces").glob("*.npz"))
    if not files:
        sys.exit(f"{folder} has no .npz files")
    return {file.stem: np.load(file)["pages"] for file in files}


def error_table(folder: Path | None) -> float:
    """Prints the error of every trace and size; returns the mean."""
    print(f"{'trace':<16} {'frames':>8} {'rate':>6} {'memory':>9} {'error':>7} {'worst':>7} {'busy':>7} {'uncalib.':>8}")
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


def build_without(directory: Path) -> None:
    """The package once more, compiled without advice."""
    shutil.copytree(PACKAGE, directory / "bufferpool", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    flags = "-std=c++20 -O3 -fPIC -shared -fno-exceptions -fno-rtti -fvisibility=hidden -w -DNDEBUG -DBP_NO_ADVICE"
    includes = [f"-I{np.get_include()}", f"-I{sysconfig.get_path('include')}"]
    sources = sorted(map(str, (PACKAGE / "core").glob("*.cpp")))
    library = directory / "bufferpool" / f"_core{sysconfig.get_config_var('EXT_SUFFIX')}"
    subprocess.run([os.environ.get("CXX", "g++"), *flags.split(), *includes, *sources, "-o", str(library)], check=True)


def cost_table(rounds: int, seconds: float) -> None:
    """Prints the throughput of hits with advice by that without, measured in turns."""
    with tempfile.TemporaryDirectory() as directory:
        build_without(Path(directory))
        for pages in (1024, 16384):
            workers = {}
            for which, path in (("with", PACKAGE.parent), ("without", Path(directory))):
                workers[which] = subprocess.Popen(
                    [sys.executable, "-c", WORKER, str(pages)],
                    env={**os.environ, "PYTHONPATH": str(path)},
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )

            def ask(which: str, command: str, workers: dict[str, subprocess.Popen[str]] = workers) -> float:
                streams = workers[which]
                assert streams.stdin is not None
                assert streams.stdout is not None
                if command:
                    print(command, file=streams.stdin, flush=True)
                line = streams.stdout.readline().strip()
                return 0.0 if line == "ready" else float(line)

            for which in workers:
                ask(which, "")
            for work in ("single", "hot", "pin_many", "read_many"):
                ratios = []
                for i in range(rounds):
                    order = ("with", "without") if i % 2 else ("without", "with")
                    got = {which: ask(which, f"{work} {seconds}") for which in order}
                    ratios.append(got["with"] / got["without"])
                low, mid, high = statistics.quantiles(ratios, n=4)
                print(f"{pages:>6} pages, {work:<10} {mid:.4f} of the throughput without ({low:.4f} to {high:.4f})", flush=True)
            for process in workers.values():
                process.communicate()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, help="traces, NAME.npz with an array 'pages'")
    parser.add_argument("--rates", action="store_true", help="the error at several sampling rates")
    parser.add_argument("--cost", action="store_true", help="the throughput of hits with and without")
    parser.add_argument("--rounds", type=int, default=61)
    parser.add_argument("--seconds", type=float, default=0.1)
    args = parser.parse_args()
    if args.cost:
        cost_table(args.rounds, args.seconds)
        return 0
    if args.rates:
        rate_table(args.folder)
        return 0
    return 1 if error_table(args.folder) > BAR else 0


if __name__ == "__main__":
    sys.exit(main())
