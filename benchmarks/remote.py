"""Measures remote files read through the pool, beside the caches of fsspec: `make peers`.

The origin is an HTTP server with a latency of 20 ms. Four processes query one Parquet file, which they open for each query, as a
service does. One process reads an HDF5 file, a netCDF file and a GeoTIFF. The ways to read take turns, and each begins with an empty
cache in each round. The processes have read from the origin before, so they know its link.
Bars: of the bytes that blockcache fetches at most 0.8 times as many, no block twice, and no more time than the fastest cache of fsspec.

Whether a file has changed: the pool asks the server at each open, as readahead does, and as no cache at all does. blockcache and filecache
ask once, and never see a change, with check_files=True neither: fsspec takes files of HTTP servers for unchangeable. "filecache, asks" is
filecache with check_files=True over a file system that does ask (with fsspec's own ukey() of other file systems); "pool, max_age" is the
pool that asks once a minute. So the pool is also compared with those that ask as often as it does, and each figure says with what. The first
tables are of a server without a limit: to download a whole file costs nothing there but processor time. The second ones are of a link of
1 Gbit/s, which all connections share.
"""

import argparse
import json
import multiprocessing
import os
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))

import bufferpool
from bufferpool.integrations.fsspec import PoolOptions, blocks_of
from integrations.origin import Origin

PROCESSES, QUERIES, LATENCY_S, BUDGET = 4, 10, 0.02, "512MiB"
ROWS, COLUMNS, GROUPS = 400_000, 20, 16
POOL = f"bufferpool-bench-{os.getpid()}-"
POOLS = {"pool": 0.0, "pool, max_age": 60.0}
"""Ways to read through a pool, with the seconds for which an answer about a file is used."""
KINDS = (*POOLS, "blockcache", "filecache", "filecache, asks", "readahead", "none")
ASK_ALWAYS = ("filecache, asks", "readahead", "none")
"""The ways that ask at each open whether the file has changed, as "pool" does."""
RATES = {"": None, "a link of 1 Gbit/s": 125e6}


@dataclass(frozen=True)
class Task:
    """The work of one process: it reads a file in one way, at random places."""

    kind: str
    reader: str
    url: str
    pool: str
    seed: int


# ---- in the processes -----------------------------------------------------------------


def file_system(task: Task) -> Any:
    """A file system that has cached nothing."""
    import fsspec

    if task.kind in POOLS:
        options = {"target_protocol": "http", "pool": task.pool, "budget": BUDGET, "steward": False}
        options["max_age"] = POOLS[task.kind]
        return fsspec.filesystem("bufferpool", skip_instance_cache=True, **options)
    if task.kind == "filecache, asks":
        asking = http_that_changes()(skip_instance_cache=True)
        return fsspec.filesystem("filecache", fs=asking, check_files=True, skip_instance_cache=True)
    if task.kind.endswith("cache"):
        return fsspec.filesystem(task.kind, target_protocol="http", skip_instance_cache=True)
    return fsspec.filesystem("http", cache_type=task.kind)


def http_that_changes() -> Any:
    """HTTPFileSystem, whose files may change: it asks the server for what distinguishes a version, as other file systems do."""
    from fsspec.implementations.http import HTTPFileSystem
    from fsspec.spec import AbstractFileSystem

    class Asking(HTTPFileSystem):  # type: ignore[misc]
        ukey = AbstractFileSystem.ukey

    return Asking


def read_parquet(task: Task, fs: Any) -> None:
    import pyarrow.parquet as pq

    choices = np.random.default_rng(task.seed)
    for _ in range(QUERIES):
        group = int(choices.zipf(1.5)) % GROUPS
        columns = [f"c{n}" for n in choices.choice(COLUMNS, 2, replace=False)]
        with fs.open(task.url, "rb") as file:
            found = pq.ParquetFile(file).read_row_group(group, columns)
        assert found.num_rows == ROWS // GROUPS


def read_h5py(task: Task, fs: Any) -> None:
    import h5py

    with fs.open(task.url, "rb") as opened, h5py.File(opened) as file:
        for n in (3, 70, 41):
            assert file["data"][n].shape == (400, 400)


def read_xarray(task: Task, fs: Any) -> None:
    import xarray

    with fs.open(task.url, "rb") as opened, xarray.open_dataset(opened, engine="h5netcdf") as found:
        assert found["data"].isel(time=slice(40, 48)).load().shape == (8, 400, 400)


def read_rasterio(task: Task, fs: Any) -> None:
    import rasterio
    from rasterio.windows import Window

    with rasterio.open(task.url, opener=fs) as file:  # of an open file it would read the whole first
        for x, y in ((100, 100), (3000, 1500), (6000, 7000)):
            assert file.read(1, window=Window(x, y, 300, 300)).shape == (300, 300)


READERS: dict[str, Callable[[Task, Any], None]] = {
    "parquet": read_parquet,
    "h5py": read_h5py,
    "xarray": read_xarray,
    "rasterio": read_rasterio,
}


def work(connection: Connection) -> None:
    """A process. It performs each task that it gets, and answers with the exception, if there was one."""
    import aiohttp  # noqa: F401 - so that no import is timed
    import fsspec  # noqa: F401

    while (task := connection.recv()) is not None:
        fs = file_system(task)
        try:
            READERS[task.reader](task, fs)
        except Exception as error:  # noqa: BLE001 - raised in the main process
            connection.send(error)
        else:
            connection.send(None)


# ---- the files --------------------------------------------------------------------------


def make_files(folder: Path) -> dict[str, bytes]:
    """One file for each reader whose library is installed."""
    made: dict[str, bytes] = {}
    for name, make in (
        ("parquet", make_parquet),
        ("h5py", make_h5py),
        ("xarray", make_xarray),
        ("rasterio", make_tiff),
    ):
        try:
            make(folder / name)
        except ImportError as error:
            print(f"{name} is left out: {error}")
            continue
        made[name] = (folder / name).read_bytes()
    return made


def make_parquet(path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    numbers = np.random.default_rng(1)
    table = pa.table({f"c{n}": numbers.integers(0, 1 << 40, ROWS) for n in range(COLUMNS)})
    pq.write_table(table, path, row_group_size=ROWS // GROUPS)


def make_h5py(path: Path) -> None:
    import h5py

    with h5py.File(path, "w") as file:
        data = np.random.default_rng(2).normal(size=(100, 400, 400)).astype(np.float32)
        file.create_dataset("data", data=data, chunks=(1, 200, 200), compression="gzip", compression_opts=1)


def make_xarray(path: Path) -> None:
    import xarray

    data = np.random.default_rng(3).normal(size=(100, 400, 400)).astype(np.float32)
    made = xarray.Dataset({"data": (("time", "y", "x"), data)})
    made.to_netcdf(path, engine="h5netcdf", encoding={"data": {"chunksizes": (4, 200, 200)}})


def make_tiff(path: Path) -> None:
    import rasterio

    data = np.random.default_rng(4).integers(0, 255, (1, 8192, 8192), dtype=np.uint8)
    shape = {
        "width": 8192,
        "height": 8192,
        "count": 1,
        "dtype": "uint8",
        "tiled": True,
        "blockxsize": 256,
        "blockysize": 256,
    }
    with rasterio.open(path, "w", "GTiff", transform=rasterio.transform.from_origin(5, 50, 0.1, 0.1), **shape) as file:
        file.write(data)


# ---- the measurement ----------------------------------------------------------------------


class Readers:
    """The processes that read."""

    def __init__(self, n: int) -> None:
        context = multiprocessing.get_context("spawn")
        pipes = [context.Pipe() for _ in range(n)]
        self.connections = [here for here, _ in pipes]
        self.processes = [context.Process(target=work, args=(there,), daemon=True) for _, there in pipes]
        for process in self.processes:
            process.start()

    def run(self, n: int, kind: str, reader: str, url: str) -> float:
        """Has ``n`` processes read at the same time; returns the seconds until the last one is done."""
        pool = POOL + secrets.token_hex(4)
        if kind in POOLS:  # it is there before its first reader as a rule, without the blocks
            blocks_of(PoolOptions(pool, BUDGET, steward=False)).pool.close()
        seeds = [int(seed) for seed in np.random.default_rng(5).integers(0, 1 << 30, n)]
        begin = time.perf_counter()
        for connection, seed in zip(self.connections, seeds, strict=False):
            connection.send(Task(kind, reader, url, pool, seed))
        failed = [connection.recv() for connection in self.connections[:n]]
        taken = time.perf_counter() - begin
        if kind in POOLS:
            with bufferpool.Pool.attach(pool) as made:
                wrong = made.check()
                made.unlink()
            assert wrong == [], wrong
        for error in filter(None, failed):
            raise error
        return taken

    def close(self) -> None:
        for connection in self.connections:
            connection.send(None)
        for process in self.processes:
            process.join(10)


def measure(readers: Readers, origin: Origin, reader: str, rounds: int) -> dict[str, dict[str, float]]:
    """The median time, the bytes fetched and the requests of each way to read."""
    n = PROCESSES if reader == "parquet" else 1
    url = f"{origin.url}/{reader}"
    kinds = KINDS if reader == "parquet" else ("pool", "readahead", "none")
    samples: dict[str, list[tuple[float, int, int]]] = {kind: [] for kind in kinds}
    for number in range(rounds + 1):
        for kind in kinds:
            origin.forget()
            taken = readers.run(n, kind, reader, url)
            if number:  # the first one imports the reader's library
                samples[kind].append((taken, origin.bytes_sent, len(origin.requests)))
    found = {
        kind: dict(
            zip(("seconds", "bytes", "requests"), (median(each) for each in zip(*taken, strict=True)), strict=True)
        )
        for kind, taken in samples.items()
    }
    others = [kind for kind in kinds if kind not in POOLS]
    best = {"best": min(others, key=lambda kind: found[kind]["seconds"])}
    best["best that asks"] = min(set(others) & set(ASK_ALWAYS), key=lambda kind: found[kind]["seconds"])
    for kind in POOLS:
        if kind in kinds:
            for name, other in (*best.items(), *((other, other) for other in others)):
                ratios = [ours[0] / theirs[0] for ours, theirs in zip(samples[kind], samples[other], strict=True)]
                found[kind] |= dict(zip((f"{name} low", name, f"{name} high"), quantiles(ratios, n=4), strict=True))
    return found


def show(reader: str, link: str, found: dict[str, dict[str, float]]) -> None:
    n = PROCESSES if reader == "parquet" else 1
    print(f"\n{reader}, {n} processes, cold, {LATENCY_S * 1000:.0f} ms latency{link and ', ' + link}")
    print(f"  {'':15} {'seconds':>9} {'MiB':>9} {'requests':>9}")
    for kind, each in found.items():
        print(f"  {kind:15} {each['seconds']:9.2f} {each['bytes'] / (1 << 20):9.1f} {each['requests']:9.0f}")
    load, *_ = os.getloadavg()
    for kind, ours in found.items():
        if kind in POOLS:
            ratio = f"{ours['best']:.2f}, quartiles {ours['best low']:.2f} to {ours['best high']:.2f}"
            print(f"  {kind}: time, against the fastest of the others: {ratio} (bar 1.0), at a load of {load:.1f}")
            if kind == "pool" and "blockcache" in found:
                ratio = f"{ours['best that asks']:.2f}, quartiles {ours['best that asks low']:.2f} to {ours['best that asks high']:.2f}"
                print(f"  {kind}: time, against the fastest of those that ask at each open, too: {ratio}")
            print("   ", "; ".join(f"{other} {ours[other]:.2f}" for other in found if other not in POOLS))
    if "blockcache" in found:
        print(f"  bytes, against blockcache: {found['pool']['bytes'] / found['blockcache']['bytes']:.3f} (bar 0.8)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=READERS, action="append", help="one reader; may be given several times")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="bufferpool-bench-"))
    readers = Readers(PROCESSES)
    try:
        files, results = make_files(folder), {}
        for link, rate in RATES.items():
            with Origin(LATENCY_S, rate=rate) as origin:
                for name, content in files.items():
                    origin.put(name, content)
                    if given.only is None or name in given.only:
                        key = f"{name}, {link}" if link else name
                        results[key] = measure(readers, origin, name, given.rounds)
                        show(name, link, results[key])
        if given.json:
            given.json.write_text(json.dumps(results, indent=2))
    finally:
        readers.close()
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
