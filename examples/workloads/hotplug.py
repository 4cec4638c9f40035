"""A guest's memory in blocks on a scratch space: plugged, used and unplugged in any order.

This is what the memory hotplug of a virtual machine, or User Mode Linux, does with MADV_REMOVE. The guest's memory is
one scratch space, a block is a range of its pages. Virtual CPUs (processes) write and check pages of the blocks
that they own. Meanwhile the host plugs blocks (gives one to a CPU) and unplugs them, in random order. It
drops an unplugged block: its memory is given back at once, by the kernel's count, and a block that is plugged again
reads as zeros. At the end a block is unplugged while a device still pins one page of it: that page's memory
is given back when the device releases it.
"""

import time
from typing import Any

import numpy as np
from machine import kernel_bytes
from pages import PAGE, WORDS, stamp, word
from workload import BLUE, GREEN, GREY, MIB, ORANGE, Pipe, Run, Worker, main, mib

import bufferpool as bp


class Cpu:
    """A virtual CPU: a process that uses its blocks until the order to end."""

    def __init__(self, guest: bp.Space, block_pages: int, seed: int) -> None:
        self.guest, self.block_pages = guest, block_pages
        self.random = np.random.default_rng(seed)
        self.blocks: list[int] = []
        self.versions = np.zeros(len(guest), np.int64)
        self.writes = self.reads = self.wrong = 0

    def write(self, n: int) -> None:
        """Writes the next version of a page."""
        self.versions[n] += 1
        with self.guest.write(n) as page:
            page[:] = stamp(n, int(self.versions[n]))
        self.writes += 1

    def pages(self, block: int) -> range:
        """The page numbers of a block."""
        return range(block * self.block_pages, (block + 1) * self.block_pages)

    def plug(self, block: int) -> None:
        """Gets a block, and checks that it is zeros."""
        for n in self.pages(block):
            self.wrong += int(np.count_nonzero(self.guest[n]))
            self.write(n)
        self.blocks.append(block)

    def unplug(self, block: int) -> None:
        """Gives a block up, after a check of all of it."""
        for n in self.pages(block):
            self.wrong += int(np.count_nonzero(self.guest[n] != stamp(n, int(self.versions[n]))))
        self.blocks.remove(block)

    def work(self) -> None:
        """Checks a word of a random page of its blocks, and one time in four writes that page anew."""
        first = self.blocks[self.random.integers(len(self.blocks))] * self.block_pages
        n, k = first + int(self.random.integers(self.block_pages)), int(self.random.integers(WORDS))
        self.wrong += self.guest[n].item(k) != word(n, k, int(self.versions[n]))
        self.reads += 1
        if self.random.random() < 0.25:
            self.write(n)


def run_cpu(pipe: Pipe, guest: bp.Space, block_pages: int, seed: int) -> tuple[int, int, int]:
    """Works, and carries out orders in between; returns (writes, reads, wrong words)."""
    cpu = Cpu(guest, block_pages, seed)
    while True:
        if cpu.blocks and not pipe.waiting():
            cpu.work()
            continue
        order, block = pipe.get()
        if order == "end":
            return cpu.writes, cpu.reads, cpu.wrong
        if order == "plug":
            cpu.plug(block)
        elif order == "unplug":
            cpu.unplug(block)
        pipe.put(order)
        if order == "pause":
            pipe.get()


class Host:
    """Plugs and unplugs blocks, and records the sizes."""

    def __init__(self, run: Run) -> None:
        options = run.options
        self.run, self.random = run, np.random.default_rng(options.seed)
        self.block_pages = int(options.block * MIB) // PAGE
        self.block_bytes = self.block_pages * PAGE
        # Scratch pages may have seven eighths of a pool.
        self.pool = run.pool(options.blocks * self.block_bytes * 8 // 7 + 4 * MIB)
        self.guest = self.pool.open_scratch("guest", options.blocks * self.block_pages, dtype=np.uint64)
        seeds = range(options.seed + 1, options.seed + 1 + options.cpus)
        self.cpus = [run.start(run_cpu, self.guest, self.block_pages, seed) for seed in seeds]
        for cpu in self.cpus:
            self.ask(cpu, "ready?")
        self.plugged: dict[int, Worker] = {}
        self.freed: list[int] = []  # bytes freed by each unplug
        self.began = time.monotonic()
        self.sizes: list[tuple[float, int, int]] = []  # time, bytes plugged, bytes by the kernel's count
        self.uses: list[tuple[int, int, float, float]] = []  # block, CPU, from, to
        self._since: dict[int, float] = {}

    def now(self) -> float:
        """The seconds since the start; records the sizes."""
        now = time.monotonic() - self.began
        data = kernel_bytes(self.pool) - self.pool.stats().metadata_bytes
        self.sizes.append((now, len(self.plugged) * self.block_bytes, data))
        return now

    def ask(self, cpu: Worker, order: str, block: int = -1) -> None:
        """Gives an order to a CPU, and waits until it is carried out."""
        cpu.put((order, block))
        cpu.get()

    def plug(self, block: int) -> None:
        """Gives a block to a random CPU."""
        self._since[block] = self.now()
        cpu = self.cpus[self.random.integers(len(self.cpus))]
        self.ask(cpu, "plug", block)
        self.plugged[block] = cpu
        self.now()

    def take(self, block: int) -> Worker:
        """Takes a block from its CPU, and returns the CPU; no process writes to the block afterwards."""
        self.now()
        cpu = self.plugged.pop(block)
        self.ask(cpu, "unplug", block)
        return cpu

    def unplug(self, block: int) -> None:
        """Takes a block from its CPU, and gives its memory back."""
        self.drop(block, self.take(block))

    def drop(self, block: int, cpu: Worker) -> None:
        """Gives the memory of a block that ``cpu`` had back to the kernel."""
        self.freed.append(self.guest.drop(block * self.block_pages, self.block_pages))
        self.uses.append((block, self.cpus.index(cpu), self._since.pop(block), self.now()))

    def settle(self) -> tuple[int, int]:
        """Gives free frames back, while no CPU runs; returns (the pool's count, the kernel's count) in bytes."""
        for cpu in self.cpus:
            self.ask(cpu, "pause")
        self.pool.trim()
        stats = self.pool.stats()
        for cpu in self.cpus:
            cpu.put("go on")
        return stats.resident_bytes, kernel_bytes(self.pool) - stats.metadata_bytes


def unplug_under_a_device(host: Host) -> None:
    """Unplugs the last block while a page of it is pinned."""
    run, block = host.run, next(iter(host.plugged))
    cpu = host.take(block)
    page = host.guest[block * host.block_pages]  # pinned after the CPU's last write: the version that is dropped
    seen = page.copy()
    host.drop(block, cpu)
    run.check(
        host.freed[-1] == host.block_bytes - PAGE and bool((page == seen).all()),
        f"a device looks at a page of block {block}: {host.freed[-1]:,} of its {host.block_bytes:,} bytes came free, the page stays whole",
    )
    before = host.settle()[1]
    del page
    after = host.settle()[1]
    run.check(before - after == PAGE, f"the device lets go: {before - after} bytes more")


def work(run: Run) -> None:
    """Runs random steps; now and then all CPUs pause and the counts are compared."""
    host, n_blocks = Host(run), run.options.blocks
    allowed = (run.options.cpus + 1) * 4 * PAGE  # each process may keep a few spare frames
    exact, most = [], 0
    with run.progress("plugging and unplugging", run.options.steps) as advance:
        for step in range(run.options.steps):
            wanted = 0.5 - 0.4 * np.cos(4 * np.pi * step / run.options.steps)  # two waves
            if len(host.plugged) < wanted * n_blocks:
                host.plug(int(host.random.choice([b for b in range(n_blocks) if b not in host.plugged])))
            elif host.plugged:
                host.unplug(int(host.random.choice(list(host.plugged))))
            if step % 10 == 9:
                resident, kernel = host.settle()
                exact.append(resident == kernel)
                most = max(most, kernel - len(host.plugged) * host.block_bytes)
            advance(1)
    while len(host.plugged) > 1:
        host.unplug(int(host.random.choice(list(host.plugged))))
    full = [freed == host.block_bytes for freed in host.freed]
    run.check(all(full), f"{len(full)} blocks unplugged, each gave back all of its {mib(host.block_bytes)}")
    run.check(all(exact), f"{len(exact)} pauses: the pool and the kernel count the same, to the byte")
    run.check(
        most <= allowed, f"above what was plugged, the kernel never counted more than {most} bytes of spare frames"
    )
    if host.plugged:
        unplug_under_a_device(host)
    finish(run, host)
    run.plot(draw, host)


def finish(run: Run, host: Host) -> None:
    """Ends the CPUs, and checks that all memory was given back."""
    for cpu in host.cpus:
        cpu.put(("end", -1))
    writes, reads, wrong = (sum(part) for part in zip(*(cpu.get() for cpu in host.cpus), strict=True))
    run.check(
        wrong == 0, f"{reads:,} words checked and {writes:,} pages written while blocks came and went, {wrong} wrong"
    )
    for cpu in host.cpus:
        cpu.end()
    host.pool.reap()
    host.pool.trim()
    stats = host.pool.stats()
    left = kernel_bytes(host.pool) - stats.metadata_bytes
    run.check(left == stats.resident_bytes == 0, f"at the end the kernel counts {left} bytes of guest memory")
    run.check(host.pool.check() == [], "every invariant holds")
    run.say(f"     {mib(sum(host.freed))} came free, {mib(stats.reclaimed_total_bytes)} went back to the machine")


def draw(host: Host) -> Any:
    """Draws the blocks over time, and their memory below."""
    from matplotlib import pyplot

    figure, (blocks, sizes) = pyplot.subplots(2, 1, sharex=True, figsize=(9, 4.6), height_ratios=(2, 1.4))
    colors = (BLUE, GREEN, ORANGE, GREY)
    for block, cpu, since, until in host.uses:
        blocks.broken_barh([(since, until - since)], (block - 0.4, 0.8), color=colors[cpu % len(colors)], lw=0)
    for n in range(len(host.cpus)):
        blocks.barh([0], [0], color=colors[n % len(colors)], label=f"virtual CPU {n + 1}")
    blocks.set(title="who has which block", ylabel="block")
    blocks.legend(loc="lower left", bbox_to_anchor=(0.6, 1.0), ncols=len(host.cpus), borderpad=0)
    times, plugged, kernel = np.array(host.sizes).T
    sizes.plot(times, plugged / MIB, color=ORANGE, drawstyle="steps-post", lw=3, alpha=0.6, label="plugged")
    sizes.plot(times, kernel / MIB, color=BLUE, drawstyle="steps-post", lw=1, label="the kernel's count (st_blocks)")
    sizes.set(ylabel="MiB", xlabel="seconds", ylim=(0, 1.35 * kernel.max() / MIB), xlim=(0, None))
    sizes.legend(loc="upper right", ncols=2)
    return figure


if __name__ == "__main__":
    main(
        work,
        cpus=(2, 2, "virtual CPUs"),
        blocks=(24, 8, "blocks of the guest's memory"),
        block=(4, 1, "size of a block in MiB"),
        steps=(160, 30, "how often a block is plugged or unplugged"),
    )
