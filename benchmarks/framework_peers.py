"""Measures the pool under zarr, PyTorch and dask, beside the caches that their users have: a part of `make peers`.

- *zarr*: four processes read an array whose chunks are all in the cache: decoded in the pool, by a DecodedArray or by zarr's own
  array, or compressed in the memory of zarr's own CacheStore, one a process.
- *torch*: an epoch of a data loader with four workers. A sample costs 20 ms, as from an origin with that latency, unless
  it is cached: in the pool, or in a dict of each worker. The memory is the private memory of the workers, and that
  of the pool.
- *dask*: tasks on four workers use chunks that cost 20 ms: from the pool, or from an LRU cache in each worker.
- *argument*: a task with a space as its argument, beside one with an int; once for a function of a module, and once for a
  function of the program itself (a notebook's), which dask sends by value (cloudpickle). Then the same in a worker that does not
  have the pool open, and attaches for the task, beside one that has.

Both sides are measured in turns; the ratio is the median of the rounds' ratios. A row whose library is missing is skipped.
"""

import argparse
import functools
import multiprocessing
import os
import secrets
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from harness import Pairs, in_turns, timed

import bufferpool as bp

LATENCY_S = 0.02
WORKERS = 4
MIB = 1 << 20


@contextmanager
def new_pool(capacity: str) -> Iterator[bp.Pool]:
    """A pool that is removed at the end."""
    pool = bp.Pool.create(f"bufferpool-bench-{os.getpid()}-{secrets.token_hex(4)}", capacity)
    try:
        with pool:
            yield pool
    finally:
        pool.unlink(discard=True)


def private_bytes(pids: list[int]) -> int:
    """The memory that these processes do not share with others."""
    total = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith(("Private_Clean:", "Private_Dirty:")):
                total += int(line.split()[1]) << 10
    return total


def report(name: str, yardstick: str, base: float, ours: float, bar: float, unit: str = "ms") -> bool:
    """Prints a row; returns whether the bar is met."""
    ok = ours <= bar * base
    verdict = "" if ok else "   above the bar"
    print(
        f"{name:<36} {yardstick:<32} {base:>10,.1f} {ours:>10,.1f} {unit:<4} {ours / base:>7.2f}  bar {bar}{verdict}",
        flush=True,
    )
    return ok


def ratio_row(name: str, yardstick: str, pairs: Pairs, bar: float) -> bool:
    """A row whose ratio is the median of the rounds' ratios."""
    base = median(pairs.base)
    return report(name, yardstick, base * 1e3, base * median(pairs.ratios) * 1e3, bar)


# ---- zarr ----------------------------------------------------------------------------------


def zarr_worker(orders: Connection, folder: str, cache: Any) -> None:
    """Reads the array from one of the two caches at each order, and answers how long it took."""
    import zarr
    from zarr.experimental.cache_store import CacheStore
    from zarr.storage import LocalStore, MemoryStore

    from bufferpool.integrations.zarr import PIPELINE, CachedStore, DecodedArray

    source = LocalStore(folder)
    arrays = {"base": zarr.open_array(CacheStore(source, cache_store=MemoryStore()), mode="r")}
    with zarr.config.set({"codec_pipeline.path": PIPELINE}):
        arrays["zarr's"] = zarr.open_array(CachedStore(source, cache), mode="r")
    arrays["ours"] = DecodedArray(arrays["zarr's"])
    rng = np.random.default_rng(os.getpid())
    for array in arrays.values():
        array[:]
    while (order := orders.recv()) is not None:
        side, windows = order
        corners = rng.integers(0, 1900, (windows, 2)).tolist()
        began = time.perf_counter()
        if not windows:
            arrays[side][:]
        for row, column in corners:
            arrays[side][row : row + 100, column : column + 100]
        orders.send(time.perf_counter() - began)


def zarr_rows(rounds: int) -> list[bool]:
    import zarr
    from zarr.storage import LocalStore

    context = multiprocessing.get_context("spawn")
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="bufferpool-bench-"))
        pool = stack.enter_context(new_pool("128MiB"))
        steps = np.random.default_rng(1).integers(-3, 4, (2000, 2000))
        zarr.create_array(LocalStore(folder), data=steps.cumsum(axis=1).astype(np.float32), chunks=(500, 500))
        pipes = []
        for _ in range(WORKERS):
            mine, theirs = context.Pipe()
            process = context.Process(target=zarr_worker, args=(theirs, folder, pool.cache("zarr")), daemon=True)
            process.start()
            stack.callback(process.join, 10)
            pipes.append(mine)

        def all_read(side: str, windows: int) -> float:
            for pipe in pipes:
                pipe.send((side, windows))
            return float(sum(pipe.recv() for pipe in pipes) / WORKERS)

        pairs = [
            in_turns(functools.partial(all_read, "base", n), functools.partial(all_read, side, n), rounds)
            for n in (0, 50)
            for side in ("ours", "zarr's")
        ]
        for pipe in pipes:
            pipe.send(None)
    names = ("the whole array", "the same, zarr's Array", "windows of 100 x 100", "the same, zarr's Array")
    return [
        ratio_row(f"zarr: warm, {name}", "CacheStore in memory", one, 0.15)
        for name, one in zip(names, pairs, strict=True)
    ]


# ---- torch ---------------------------------------------------------------------------------


def decoded(index: int) -> dict[str, Any]:
    """A costly sample of 128 to 384 KiB."""
    time.sleep(LATENCY_S)
    rng = np.random.default_rng(index)
    return {"image": rng.random((3, 104, 104 + index % 208), np.float32), "label": index}


def as_label(samples: list[dict[str, Any]]) -> list[int]:
    return [one["label"] for one in samples]


def torch_rows(rounds: int) -> list[bool]:
    warnings.filterwarnings("ignore", "This DataLoader will create")
    import torch
    from torch.utils.data import DataLoader, Dataset

    from bufferpool.integrations.torch import CachedDataset

    torch.set_num_threads(1)

    class Samples(Dataset):  # type: ignore[misc]
        def __len__(self) -> int:
            return 200

        def __getitem__(self, index: int) -> dict[str, Any]:
            return decoded(index)

    class WithDict(Samples):
        def __init__(self) -> None:
            self.kept: dict[int, dict[str, Any]] = {}

        def __getitem__(self, index: int) -> dict[str, Any]:
            if index not in self.kept:
                self.kept[index] = super().__getitem__(index)
            return self.kept[index]

    def epoch(loader: Any) -> float:
        began = time.perf_counter()
        seen = sum(len(batch) for batch in loader)
        assert seen == 200
        return time.perf_counter() - began

    def workers(loader: Any) -> list[int]:
        return [worker.pid for worker in loader._iterator._workers]

    with new_pool("192MiB") as pool:
        sides = {"base": WithDict(), "ours": CachedDataset(Samples(), pool.cache("samples"), version=1, copy=False)}
        loaders = {
            side: DataLoader(
                dataset, batch_size=8, shuffle=True, num_workers=WORKERS, persistent_workers=True, collate_fn=as_label,
                multiprocessing_context="fork",
            )
            for side, dataset in sides.items()
        }  # fmt: skip
        empty = DataLoader(
            [0] * 200, batch_size=8, num_workers=WORKERS, persistent_workers=True, multiprocessing_context="fork"
        )
        for _ in empty:
            pass
        pairs = in_turns(lambda: epoch(loaders["base"]), lambda: epoch(loaders["ours"]), rounds)
        nothing = private_bytes(workers(empty))
        base = private_bytes(workers(loaders["base"])) - nothing
        ours = private_bytes(workers(loaders["ours"])) - nothing + pool.stats().kernel_bytes
    return [
        ratio_row("torch: epoch, costly samples", "a dict in each worker", pairs, 0.25),
        report("torch: memory", "a dict in each worker", base / MIB, ours / MIB, 0.6, "MiB"),
    ]


# ---- dask ----------------------------------------------------------------------------------

CHUNK = 1 << 17  # float64 values: 1 MiB


def chunk_of(round_no: int, chunk_no: int) -> Any:
    time.sleep(LATENCY_S)
    return np.random.default_rng(chunk_no).random(CHUNK) + round_no


kept_chunk = functools.lru_cache(maxsize=None)(chunk_of)


def from_lru(round_no: int, chunk_no: int) -> float:
    return float(kept_chunk(round_no, chunk_no)[:10].sum())


def from_pool(round_no: int, chunk_no: int) -> float:
    from bufferpool.integrations.dask import worker_pool

    cache = worker_pool().cache("chunks")
    return float(cache.get_or_load((round_no, chunk_no), lambda key: chunk_of(*key))[:10].sum())


def pool_bytes() -> int:
    from bufferpool.integrations.dask import worker_pool

    return worker_pool().stats().kernel_bytes


def nothing_with(_: Any, n: int) -> int:
    return n


def dask_rows(rounds: int) -> list[bool]:
    import framework_peers as tasks  # not __main__: dask would send its functions by value, with their caches
    from distributed import Client, LocalCluster

    from bufferpool.integrations.dask import PoolPlugin

    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    chunks = np.random.default_rng(1).integers(0, 60, 400).tolist()
    with (
        LocalCluster(n_workers=WORKERS, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        client.register_plugin(PoolPlugin("512MiB"))
        client.run(tasks.pool_bytes)
        pids = list(client.run(os.getpid).values())
        numbers = iter(range(1_000_000))

        def run(task: Callable[[int, int], float]) -> float:
            began, round_no = time.perf_counter(), next(numbers)
            client.gather(client.map(task, [round_no] * len(chunks), chunks, pure=False, batch_size=100))
            return time.perf_counter() - began

        run(tasks.from_lru), run(tasks.from_pool)
        before, in_pool = private_bytes(pids), client.submit(tasks.pool_bytes, pure=False).result()
        run(tasks.from_lru)
        between = private_bytes(pids)
        run(tasks.from_pool)
        with_pool = client.submit(tasks.pool_bytes, pure=False).result() - in_pool + private_bytes(pids) - between
        pairs = in_turns(lambda: run(tasks.from_lru), lambda: run(tasks.from_pool), rounds)
        return [
            ratio_row("dask: costly chunks", "an LRU in each worker", pairs, 0.6),
            report("dask: memory", "an LRU in each worker", (between - before) / MIB, with_pool / MIB, 0.4, "MiB"),
        ]


def argument_rows(rounds: int) -> list[bool]:
    """The steps of dask for an argument: it pickles the task, and unpickles it in the worker, which uses the argument."""
    import framework_peers as tasks  # not __main__

    functions = {"a module's function": tasks.nothing_with, "a notebook's function": nothing_with}
    rows = [argument_row(which, call, rounds) for which, call in functions.items()]
    return [*rows, not_open_row(tasks.nothing_with, rounds)]


def argument_row(function: str, call: Callable[[Any, int], int], rounds: int) -> bool:
    """One of the two rows, of tasks that call one function."""
    from dask._task_spec import Task
    from distributed.protocol import pickle

    def sampler(use: str, argument: Any) -> Callable[[], float]:
        task = Task("key", call, argument, 3)
        return timed(
            [f"{use.format('loads(dumps(task)).args[0]')}"] * 8, dumps=pickle.dumps, loads=pickle.loads, task=task
        )

    with new_pool("16MiB") as pool:
        space = pool.open_scratch("argument", n_pages=16)
        pairs = in_turns(sampler("{}", 5), sampler("{}[3]", space), 20 * rounds)
    return report_more(f"dask: a space, {function}", "an int", pairs, 30)


def not_open_row(call: Callable[[Any, int], int], rounds: int) -> bool:
    """A worker unpickles the task and uses the space: it has the pool open, or attaches for the task and detaches after it."""
    from dask._task_spec import Task
    from distributed.protocol import pickle

    with new_pool("16MiB") as pool:
        path, space = Path(pool.path), pool.open_scratch("argument", n_pages=16)
        data = pickle.dumps(Task("key", call, space, 3))
        pool.close()
        sample = timed(["loads(data).args[0][3]"] * 8, loads=pickle.loads, data=data)

        def while_open() -> float:
            with bp.Pool.attach(path.name, directory=path.parent):
                return sample()

        pairs = in_turns(while_open, sample, 20 * rounds)
        with bp.Pool.attach(path.name, directory=path.parent) as again:
            assert len(again.clients()) == 1, "the copies have detached"
    return report_more("dask: a space, the pool not open", "the pool open", pairs, 500)


def report_more(name: str, yardstick: str, pairs: Pairs, bar: int) -> bool:
    """Prints a row that says how many microseconds more ours takes; returns whether the bar is met."""
    more = median(ours - base for base, ours in zip(pairs.base, pairs.ours, strict=True)) / 1e3
    times = f"{median(pairs.base) / 1e3:>10,.1f} {median(pairs.ours) / 1e3:>10,.1f} us  "
    verdict = "" if more <= bar else "   above the bar"
    print(f"{name:<36} {yardstick:<32} {times} {more:>+6.1f}  bar +{bar} us{verdict}", flush=True)
    return more <= bar


ROWS: dict[str, tuple[str, Callable[[int], list[bool]]]] = {
    "zarr": ("zarr", zarr_rows), "torch": ("torch", torch_rows), "dask": ("distributed", dask_rows),
    "argument": ("distributed", argument_rows),
}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Measures the pool under zarr, PyTorch and dask, beside their users' caches."
    )
    parser.add_argument("--quick", action="store_true", help="fewer rounds, for a first impression")
    parser.add_argument("--only", action="append", choices=ROWS, help="may be repeated")
    options = parser.parse_args()
    print(f"{'':<36} {'yardstick':<32} {'theirs':>10} {'ours':>10}      {'ratio':>7}")
    missed = []
    for name in options.only or ROWS:
        library, rows = ROWS[name]
        try:
            __import__(library)
        except ImportError:
            print(f"{name}: skipped, because {library} is not installed")
            continue
        missed += [ok for ok in rows(3 if options.quick else 9) if not ok]
    print(f"{len(missed)} bars are missed." if missed else "All bars are met.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
