"""Pools in memory cgroups of version 2: limits, nested groups, pressure, and what the kernel does at a limit.

python -m lab.inside.groups limits|killed|gives_way|high|pressure|exporter
"""

import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

import bufferpool as bp
from bufferpool.cli import doctor
from bufferpool.machine.auto_size import LEAST_BYTES, auto
from bufferpool.machine.pressure import SystemSource, cgroup_limit, cgroup_room, psi_file, read_memory
from bufferpool.upkeep.steward import Settings
from lab.inside.kernel import MIB, cgroup, count, fork, report, result

NAME, PAGE = "lab-groups", 16 << 10
LIMIT = 96 * MIB


def make(page_no: int, out: Any) -> None:
    """The loader of a derived page."""
    np.asarray(out)[:] = page_no % 251


def figures() -> dict[str, Any]:
    """What a process sees of its limits."""
    room = cgroup_room()
    sizing = auto(read_memory("/dev/shm"), LEAST_BYTES, 256 << 10)
    warned = [f.text for f in doctor.examine() if f.what == "cgroup" and f.level == "WARN"]
    return {"limit": cgroup_limit(), "room": room, "most": sizing.max_capacity, "psi": psi_file(), "doctor": warned}


def limits() -> None:
    """The limit of a parent, by memory.max and by memory.high, is seen from a nested group without limits."""
    found = {}
    for kind, size in (("max", 300 * MIB), ("high", 200 * MIB)):
        with cgroup(f"lab-{kind}", **{kind: size}), cgroup(f"lab-{kind}/inner") as inner:
            found[kind] = result(fork(figures, inner))
    with cgroup("lab-none") as group:
        found["none"] = result(fork(lambda: {"limit": cgroup_limit()}, group))
    report(**found)


def overfill() -> int:
    """Writes scratch pages without end."""
    with bp.Pool.attach(NAME) as pool:
        work = pool.open_scratch("work", 4 * LIMIT // PAGE)
        for n in range(len(work)):
            with work.write(n) as page:
                page[:] = 1
    return 0


def killed() -> None:
    """The kernel kills a client that takes more than its group may; the others lose nothing."""
    with bp.Pool.create(NAME, 4 * LIMIT, page_size=PAGE) as pool:
        tiles = pool.open_derived("tiles", 64, make)
        before = [int(tiles[n][5]) for n in range(64)]
        with cgroup("lab-killed", max=LIMIT) as group:
            code, _ = result(fork(overfill, group))
            kills = count(group, "memory.events", "oom_kill")
        same = [int(tiles[n][5]) for n in range(64)] == before
        pool.reap()
        wrong, clients = pool.check(), pool.stats().clients
        pool.unlink(discard=True)
    report(code=code, oom_kills=kills, others_unharmed=same, check=wrong, clients=clients)


def browse(seconds: float) -> int:
    """Reads tiles of twice the limit, with a steward in this process; returns how many reads were wrong."""
    wrong, end = 0, time.monotonic() + seconds
    with bp.Pool.attach(NAME) as pool:
        tiles = pool.open_derived("tiles", 2 * LIMIT // PAGE, make)
        pool.start_steward(Settings(idle=None))
        random = np.random.default_rng(1)
        while time.monotonic() < end:
            for n in random.integers(0, len(tiles), 16).tolist():
                wrong += int(tiles[n][7]) != n % 251
            time.sleep(0.01)
        pool.stop_steward()
    return wrong


def under(**limit: int) -> None:
    """A pool that may become larger than its group: the steward keeps it below the limit, and nobody is killed."""
    samples = []
    with bp.Pool.create(NAME, LIMIT, page_size=PAGE, min_capacity=8 * MIB, max_capacity=2 * LIMIT) as pool:
        with cgroup("lab-under", **limit) as group:
            child = fork(lambda: browse(60.0), group)
            done = threading.Event()
            watcher = threading.Thread(target=watch, args=(group, samples, done))
            watcher.start()
            code, wrong = result(child)
            done.set()
            watcher.join()
            events = {name: count(group, "memory.events", name) for name in ("high", "max", "oom", "oom_kill")}
        reasons = sorted({str(event.reason) for event in pool.events()})
        check, budget = pool.check(), pool.stats().budget_bytes
        pool.unlink(discard=True)
    report(code=code, wrong=wrong, events=events, reasons=reasons, check=check, budget=budget, limit=LIMIT,
           most_used=max(used for used, _ in samples), late_high=events["high"] - samples[len(samples) // 2][1])  # fmt: skip


def watch(group: Path, samples: list[tuple[int, int]], done: threading.Event) -> None:
    """Notes what the group uses, and how often memory.high was passed."""
    while not done.wait(0.2):
        samples.append((int((group / "memory.current").read_text()), count(group, "memory.events", "high")))


def stall(source: SystemSource) -> bool:
    """Waits until the trigger of this process's group fires."""
    return any(source.wait(5.0) for _ in range(12))


def pressure() -> None:
    """The steward waits for the pressure of its own group: a neighbour in it that stalls wakes it."""
    with cgroup("lab-pressure", high=16 * MIB) as group:

        def waiting() -> dict[str, Any]:
            source = SystemSource("/dev/shm")
            facts = {
                "file": psi_file(),
                "trigger": source.triggered,
                "woken": stall(source),
                "some": source.read().psi_some,
            }
            source.close()
            return facts

        def hog() -> int:
            kept, end = [], time.monotonic() + 60
            while time.monotonic() < end:
                kept.append(np.ones(MIB, np.uint8))
            return len(kept)

        child, other = fork(waiting, group), fork(hog, group)
        found = result(child)
        os.kill(other[0], 9)
        result(other)
    report(code=found[0], **found[1])


def exporter() -> None:
    """An exporter in another group than the pool's has the figures of its own group, and of the machine's pools."""
    from prometheus_client import CollectorRegistry, generate_latest

    from bufferpool.prometheus import PoolCollector

    def scrape() -> dict[str, float]:
        registry = CollectorRegistry()
        registry.register(PoolCollector())
        lines = generate_latest(registry).decode().splitlines()
        wanted = ("bufferpool_cgroup_limit_bytes", "bufferpool_budget_bytes", "bufferpool_kernel_bytes")
        return {line.split()[0].partition("{")[0]: float(line.split()[-1]) for line in lines if line.startswith(wanted)}

    with cgroup("lab-pool", max=LIMIT) as mine, cgroup("lab-exporter", max=256 * MIB) as other:
        ready, go = os.pipe(), os.pipe()

        def hold() -> list[str]:
            with bp.Pool.create(NAME, "8MiB", page_size=PAGE) as pool:
                pool.open_scratch("work", 64)
                os.write(ready[1], b"x")
                os.read(go[0], 1)
                wrong = pool.check()
                pool.unlink(discard=True)
                return wrong

        child = fork(hold, mine)
        os.read(ready[0], 1)
        scraped = result(fork(scrape, other))
        os.write(go[1], b"x")
        held = result(child)
    report(scraped=scraped, held=held, exporters_limit=256 * MIB)


if __name__ == "__main__":
    programs = {"limits": limits, "killed": killed, "pressure": pressure, "exporter": exporter,
                "gives_way": lambda: under(max=LIMIT), "high": lambda: under(high=LIMIT)}  # fmt: skip
    programs[sys.argv[1]]()
