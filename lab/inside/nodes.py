"""On which NUMA node the pages of a pool lie."""

import os
import re
import subprocess
from pathlib import Path

import bufferpool as bp
from lab.inside.kernel import fork, report, result

NAME, PAGE = "lab-nodes", 64 << 10


def cpus_of(node: int) -> set[int]:
    """The processors of a node."""
    found: set[int] = set()
    for part in Path(f"/sys/devices/system/node/node{node}/cpulist").read_text().strip().split(","):
        first, _, last = part.partition("-")
        found |= set(range(int(first), int(last or first) + 1))
    return found


def pages_by_node() -> dict[str, int]:
    """How many pages of the pool that this process maps lie on each node."""
    counts: dict[str, int] = {}
    for line in Path("/proc/self/numa_maps").read_text().splitlines():
        if NAME in line:
            for node, n in re.findall(r" (N\d+)=(\d+)", line):
                counts[node] = max(counts.get(node, 0), int(n))
    return counts


def write_from(node: int, first: int, n: int) -> int:
    """Writes pages in a process on that node."""

    def work() -> int:
        os.sched_setaffinity(0, cpus_of(node))
        with bp.Pool.attach(NAME) as pool:
            space = pool.open_scratch("work", 512)
            for i in range(first, first + n):
                with space.write(i) as page:
                    page[:] = 1
        return 0

    return result(fork(work))[0]


def spread() -> list[int]:
    """How many pages lie on each of two nodes, of a pool in a tmpfs that spreads them."""
    os.makedirs("/run/spread", exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mpol=interleave", "tmpfs", "/run/spread"], check=True)
    with bp.Pool.create(NAME, "64MiB", page_size=PAGE, directory="/run/spread") as pool:
        space = pool.open_scratch("work", 256)
        for i in range(256):
            with space.write(i) as page:
                page[:] = 1
        found = pages_by_node()
        pool.unlink(discard=True)
    return [found.get("N0", 0), found.get("N1", 0)]


def main() -> None:
    """Writes 128 pages from each of two nodes, and looks where they are."""
    with bp.Pool.create(NAME, "64MiB", page_size=PAGE) as pool:
        space, places, codes = pool.open_scratch("work", 512), [], []
        for node in (0, 1):
            before = pages_by_node()
            codes.append(write_from(node, node * 128, 128))
            for i in range(node * 128, node * 128 + 128):
                assert (
                    space[i][::4096].sum() == PAGE // 4096
                )  # the kernel counts the pages that this process has touched
            after = pages_by_node()
            places.append({name: after[name] - before.get(name, 0) for name in after})
        wrong = pool.check()
        pool.unlink(discard=True)
    nodes = len(list(Path("/sys/devices/system/node").glob("node[0-9]*")))
    report(codes=codes, places=places, check=wrong, nodes=nodes, spread=spread())


if __name__ == "__main__":
    main()
