"""The pictures of docs/lab.md, from measurements in a guest. Without matplotlib, no picture is drawn."""

import sys
from itertools import pairwise
from typing import Any

from lab.images import ROOT

IMAGES = ROOT / "docs" / "images"


def save(figure: Any, name: str) -> None:
    """Writes a picture."""
    figure.savefig(IMAGES / name, dpi=100)


def style() -> Any:
    """The style of the workloads' pictures; None without matplotlib."""
    sys.path.insert(0, str(ROOT / "examples" / "workloads"))
    try:
        import matplotlib as mpl
    except ImportError:
        return None
    from workload import STYLE

    mpl.use("Agg")
    return mpl.rc_context(STYLE)


def elastic(found: dict[str, Any]) -> None:
    """The workload elastic.py under memory.max."""
    if (styled := style()) is None:
        return
    import elastic as workload

    samples = [workload.Sample(**sample) for sample in found["samples"]]
    with styled:
        save(workload.draw(samples, found["phases"], workload.Limit("a memory cgroup", 0)), "lab-elastic.png")


def swap(steps: list[tuple[str, int, int, int]]) -> None:
    """The pool's bytes in memory and in swap after each step, and how many pages were read back in the step."""
    if (styled := style()) is None:
        return
    from matplotlib import pyplot
    from workload import BLUE, ORANGE

    names = [name for name, *_ in steps]
    memory = [size / (1 << 20) for _, size, _, _ in steps]
    swapped = [size / (1 << 20) for _, _, size, _ in steps]
    reads = [0] + [after[3] - before[3] for before, after in pairwise(steps)]
    with styled:
        figure, axes = pyplot.subplots(figsize=(9, 4.2))
        axes.bar(names, swapped, color=ORANGE, width=0.6, label="in swap")
        axes.bar(names, memory, bottom=swapped, color=BLUE, width=0.6, label="in memory")
        for n, (size, read) in enumerate(zip(map(sum, zip(memory, swapped, strict=True)), reads, strict=True)):
            axes.text(n, size + 0.7, f"{read} read back" if n > 1 else "", ha="center", fontsize=8.5)
        axes.set(ylabel="MiB of the pool, by the kernel's counts")
        axes.tick_params(axis="x", labelrotation=20)
        figure.legend(loc="outside lower center", ncols=2)
        save(figure, "lab-swap.png")
