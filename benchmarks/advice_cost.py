"""Measures how much the advice slows hits (``benchmarks/advice.py --cost``).

Four sides take turns of some ten milliseconds in one process, on the same pages of one segment: hits
while references are recorded; hits while they are not (``Segment.sampling`` switches, and stops the
sampler's clock while it is off); hits of a second client that does not record; and hits of a client of a
build without advice, which lacks even the one comparison in a hit. So a disturbance of the machine
affects all sides. The last two attach anew for each pair, because the addresses of its page tables and pin
counts make a client some percent faster or slower than another.

References are recorded in bursts of 5 ms every two seconds, which a median over short turns would miss. So the
figure of a pair is the sum over a whole cycle of two seconds. Times are processor times.
"""

import importlib
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

import bufferpool as bp

PACKAGE = Path(bp.__file__).parent
PAGE = 8192
TURN_S, CYCLE_S = 0.01, 2.0
BAR = 0.01  # of the throughput
SIDES = ("recording", "not recording", "another client", "built without")

Work = Callable[[], None]


def build_without(directory: Path) -> None:
    """Builds a copy of the package without advice."""
    shutil.copytree(PACKAGE, directory / "bufferpool", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    flags = "-std=c++20 -O3 -fPIC -shared -fno-exceptions -fno-rtti -fvisibility=hidden -w -DNDEBUG -DBP_NO_ADVICE"
    includes = [f"-I{PACKAGE / 'core'}", f"-I{np.get_include()}", f"-I{sysconfig.get_path('include')}"]
    sources = sorted(map(str, (PACKAGE / "core").rglob("*.cpp")))
    library = directory / "bufferpool" / f"_core{sysconfig.get_config_var('EXT_SUFFIX')}"
    subprocess.run(
        [*shlex.split(os.environ.get("CXX", "g++")), *flags.split(), *includes, *sources, "-o", str(library)],
        check=True,
    )


def imported_from(directory: Path) -> ModuleType:
    """Imports the package of another directory beside the one that is imported already."""

    def ours() -> dict[str, ModuleType]:
        return {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] == "bufferpool"}

    kept = ours()
    sys.path.insert(0, str(directory))
    try:
        return importlib.import_module("bufferpool")
    finally:
        sys.path.remove(str(directory))
        ours()
        sys.modules.update(kept)


def work_on(space: Any, kind: str, ids: npt.NDArray[np.int64], out: npt.NDArray[np.uint8]) -> Work:
    """A few tenths of a millisecond of hits."""
    numbers, batches = ids.tolist(), ids.reshape(-1, 64)

    def single() -> None:
        for n in numbers:
            space[n]

    def hot() -> None:
        for _ in range(100):
            for n in numbers[:64]:
                space[n]

    def pin_many() -> None:
        for batch in batches:
            with space.pin_many(batch):
                pass

    def read_many() -> None:
        for batch in batches[:20]:
            space.read_many(batch, out=out)

    return {"single": single, "hot": hot, "pin_many": pin_many, "read_many": read_many}[kind]


class Sides:
    """The four sides, on one segment whose pages are all resident."""

    def __init__(self, pool: bp.Pool, without: ModuleType, path: str, kind: str, pages: int) -> None:
        self._pool, self._without, self._path, self._kind, self._pages = pool, without, path, kind, pages
        self._random = np.random.default_rng(2)
        self._own = self._hits_of(pool)
        self._sampling = pool.client.seg.sampling
        self._sampling(False)
        self._repeats = 1
        while self._turn(SIDES[1], self._own)[1] < TURN_S / 2:
            self._repeats *= 2

    def _hits_of(self, pool: Any) -> Work:
        space = pool.open_file(self._path, cache="kernel")
        for n in range(self._pages):
            space[n]
        ids = np.random.default_rng(1).integers(0, self._pages, 6400)
        return work_on(space, self._kind, ids, np.empty((64, PAGE), np.uint8))

    def _turn(self, side: str, work: Work) -> tuple[float, float]:
        """Runs the work; returns (processor seconds, elapsed seconds)."""
        self._sampling(side == SIDES[0])
        clock, start = time.perf_counter(), time.thread_time()
        for _ in range(self._repeats):
            work()
        took, clock = time.thread_time() - start, time.perf_counter() - clock
        self._sampling(False)
        return took, clock

    @contextmanager
    def _all(self) -> Iterator[list[Work]]:
        """The work of each side; the two other clients attach in either order."""
        builds = {SIDES[2]: bp, SIDES[3]: self._without}
        with ExitStack() as attached:
            pools = {}
            for i in self._random.permutation([2, 3]):
                pools[SIDES[i]] = attached.enter_context(builds[SIDES[i]].Pool.attach(self._pool.name))
            pools[SIDES[2]].client.seg.sampling(False)
            yield [self._own, self._own, *(self._hits_of(pools[side]) for side in SIDES[2:])]

    def cycle(self) -> tuple[npt.NDArray[np.float64], float]:
        """The processor seconds that each side took for the same work, shape (sides,), and the share of a processor that they had."""
        took, recorded_s, had = np.zeros(len(SIDES)), 0.0, 0.0
        with self._all() as works:
            while had < CYCLE_S:
                for i in self._random.permutation(len(SIDES)):  # the later side finds the caches warmer
                    cpu, clock = self._turn(SIDES[i], works[i])
                    took[i] += cpu
                    if i == 0:
                        recorded_s += clock
                        had += cpu
            works.clear()
        return took, had / recorded_s


def median_and_interval(values: npt.NDArray[np.float64]) -> tuple[float, float, float]:
    """The median, and the 95 % interval of it by the bootstrap (Efron 1979)."""
    drawn = np.random.default_rng(0).choice(values, (10_000, len(values)))
    low, high = np.quantile(np.median(drawn, axis=1), [0.025, 0.975])
    return float(np.median(values)), float(low), float(high)


@contextmanager
def pool_and_file(pages: int) -> Iterator[tuple[bp.Pool, str]]:
    """A pool that can hold a file of ``pages`` pages, and the file's path."""
    with tempfile.NamedTemporaryFile() as file:
        file.truncate(PAGE * pages)
        pool = bp.Pool.create(f"bpadvice-{os.getpid()}", PAGE * pages, page_size=PAGE)
        try:
            yield pool, file.name
        finally:
            pool.unlink(discard=True)
            pool.close()


def cost_table(seconds: float) -> float:
    """Prints the share of the throughput that recording takes, for ``seconds``; returns the worst."""
    kinds = [("single", 1024), ("single", 16384), ("hot", 64), ("pin_many", 1024), ("read_many", 1024)]
    worst = 0.0
    with tempfile.TemporaryDirectory() as directory:
        build_without(Path(directory))
        without = imported_from(Path(directory))
        for kind, pages in kinds:
            with pool_and_file(max(pages, 256)) as (pool, path):
                sides, cycles, shares = Sides(pool, without, path, kind, pages), [], []
                sides.cycle()  # warms up
                end = time.monotonic() + seconds / len(kinds)
                while time.monotonic() < end:
                    took, share = sides.cycle()
                    cycles.append(took)
                    shares.append(share)
            took = np.array(cycles)
            print(f"{kind:<10} {pages:>6} pages, {len(took)} pairs, {np.mean(shares):.0%} of a processor", flush=True)
            for with_it, without_it, name in ((0, 1, "recording"), (2, 3, "the comparison in a hit")):
                mid, low, high = median_and_interval(1 - took[:, without_it] / took[:, with_it])
                print(f"    {name:<28} {mid:>7.2%} of the throughput ({low:.2%} to {high:.2%})", flush=True)
                worst = max(worst, mid if with_it == 0 else 0.0)
    print(f"recording costs at most {worst:.2%}; bar {BAR:.0%}")
    return worst
