"""Data loaders of PyTorch decode costly samples: with a dict in each worker, and with one pool for all workers.

Each epoch reads every sample once, in another order, so a worker mostly gets samples that another worker has decoded before:
its dict helps little at first, and in the end every worker has its own copy of every sample. The pool has one copy, and
every sample is decoded once. A sample costs --cost milliseconds. Memory is what the workers have for themselves beyond that of
a loader whose samples are empty, and the memory of the pool by the kernel's count.
"""

import importlib.util
import sys
import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from machine import kernel_bytes
from workload import BLUE, MIB, ORANGE, Run, main, mib

SIDE = 96  # of an image
KINDS = {"a dict in each worker": ORANGE, "one pool": BLUE}


@dataclass
class Course:
    """The memory and the time of one kind of cache, epoch by epoch."""

    kind: str
    seconds: list[float] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)
    decoded: int = 0


class Images:
    """A map-style dataset. Decoding an image takes a while, and writes a byte to a file, so that it can be counted."""

    def __init__(self, count: int, cost_ms: float, log: Path) -> None:
        self.count, self.cost_ms, self.log = count, cost_ms, log

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        import torch

        time.sleep(self.cost_ms / 1e3)
        with self.log.open("ab") as log:
            log.write(b".")
        return {"image": torch.full((3, SIDE, SIDE + index % SIDE), float(index)), "label": index}


class WithDict(Images):
    """The usual remedy: each worker keeps what it has decoded."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.kept: dict[int, dict[str, Any]] = {}

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index not in self.kept:
            self.kept[index] = super().__getitem__(index)
        return self.kept[index]


def looked_at(samples: list[dict[str, Any]]) -> list[tuple[int, bool]]:
    """In the worker: the labels of a batch, and whether each image is that of its label."""
    return [(one["label"], bool((one["image"] == one["label"]).all())) for one in samples]


def loader_of(run: Run, dataset: Any) -> Any:
    from torch.utils.data import DataLoader

    options = run.options
    return DataLoader(
        dataset, batch_size=8, shuffle=True, num_workers=options.workers, persistent_workers=True, collate_fn=looked_at,
        multiprocessing_context="fork",
    )  # fmt: skip


def memory_of(loader: Any) -> int:
    """The memory of the loader's workers that they share with nobody."""
    lines = (
        line.split()
        for worker in loader._iterator._workers
        for line in Path(f"/proc/{worker.pid}/smaps_rollup").read_text().splitlines()
    )
    return sum(int(size[0]) << 10 for name, *size in lines if name in ("Private_Clean:", "Private_Dirty:"))


def course(run: Run, kind: str, dataset: Images, shared: Any, pool: Any, empty: int) -> Course:
    """All epochs with one kind of cache."""
    found = Course(kind)
    loader = loader_of(run, shared)
    with run.progress(kind, run.options.epochs) as advance:
        for _ in range(run.options.epochs):
            began = time.monotonic()
            seen = sorted(one for batch in loader for one in batch)
            found.seconds.append(time.monotonic() - began)
            if seen != [(n, True) for n in range(len(dataset))]:
                run.check(False, f"{kind}: an epoch has every sample once, and each is the right one")
            found.memory.append(memory_of(loader) - empty + (kernel_bytes(pool) if pool is not None else 0))
            advance(1)
    found.decoded = dataset.log.stat().st_size
    run.check(True, f"{kind}: {run.options.epochs} epochs had every sample once, and each was the right one")
    return found


def work(run: Run) -> None:
    """Both kinds, one after the other."""
    if importlib.util.find_spec("torch") is None:
        run.say("skipped: torch is not installed (pip install 'bufferpool[torch]')")
        sys.exit(0)
    import torch

    warnings.filterwarnings(
        "ignore", "This DataLoader will create"
    )  # more workers than processors, because they mostly wait
    from bufferpool.integrations.torch import CachedDataset

    torch.set_num_threads(1)
    options, folder = run.options, run.folder()
    arguments = options.samples, options.cost, folder / "dict"
    nothing = loader_of(run, [{"image": np.zeros(1), "label": 0}] * 64)
    for _ in nothing:
        pass
    empty = memory_of(nothing)
    size = options.samples * 3 * SIDE * SIDE * 2 * 4
    pool = run.pool(max(16 * MIB, 4 * size))
    images = Images(options.samples, options.cost, folder / "pool")
    cached = CachedDataset(images, pool.cache("images"), version=1, copy=False)  # type: ignore[arg-type]
    with_dict = WithDict(*arguments)
    courses = [
        course(run, "a dict in each worker", with_dict, with_dict, None, empty),
        course(run, "one pool", images, cached, pool, empty),
    ]
    report(run, courses)
    run.check(pool.check() == [], "every invariant of the pool holds")


def report(run: Run, courses: list[Course]) -> None:
    """Prints and draws the two courses."""
    theirs, ours = courses
    run.table(
        f"{run.options.samples} samples, {run.options.workers} workers, {run.options.epochs} epochs",
        ("", "decoded", "first epoch", "last epoch", "all epochs", "memory in the end"),
        [
            (one.kind, str(one.decoded), f"{one.seconds[0]:.2f} s", f"{one.seconds[-1]:.2f} s", f"{sum(one.seconds):.2f} s",
             mib(one.memory[-1]))
            for one in courses
        ],
    )  # fmt: skip
    run.check(ours.decoded == run.options.samples, f"with the pool each sample is decoded once: {ours.decoded} times")
    run.check(ours.decoded < theirs.decoded, f"with a dict in each worker {theirs.decoded} samples are decoded")
    run.plot(draw, courses)


def draw(courses: list[Course]) -> Any:
    """Memory to the left, the time of each epoch to the right."""
    from matplotlib import pyplot

    figure, (memory, speed) = pyplot.subplots(1, 2, figsize=(9, 3.2))
    for one in courses:
        epochs = range(1, len(one.seconds) + 1)
        memory.plot(epochs, [size / MIB for size in one.memory], color=KINDS[one.kind], label=one.kind, marker="o")
        speed.plot(epochs, one.seconds, color=KINDS[one.kind], marker="o")
    memory.set(title="memory of the samples (MiB)", xlabel="epoch", ylim=(0, None))
    speed.set(title="time of an epoch (s)", xlabel="epoch", ylim=(0, None))
    figure.legend(loc="outside lower center", ncols=2)
    return figure


if __name__ == "__main__":
    main(
        work,
        workers=(4, 2, "processes of a data loader"),
        samples=(300, 40, "samples of 108 to 216 KiB"),
        epochs=(8, 3, "epochs"),
        cost=(10.0, 2.0, "milliseconds that a sample takes to decode"),
    )
