"""Sessions with temporary tables come and go; some disconnect, some just end, some are killed in mid-write.

Each session is a process with a temporary table in a scratch space that it owns (lifetime="process"). However it
ends, all of the table's memory is given back to the kernel, by the kernel's count, and no other table changes.

If the machine has swap and a memory cgroup can be made, pages of a session's table are pushed into swap, and
the session is killed: the kernel frees them in swap without reading them. --swap FILE adds a
swap file during the run (root).
"""

import os
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from machine import MemoryCgroup, Refused, bytes_read, kernel_bytes, memory_cgroup, swap_file, swap_size
from pages import PAGE, stamp
from workload import BLUE, GREEN, MIB, ORANGE, Pipe, Run, Worker, eventually, main, mib

import bufferpool as bp

ENDS = {"disconnects": GREEN, "just ends": ORANGE, "is killed": "#b03a48"}
SPARE_PAGES = 4  # frames that a writing process may keep beside its pages


def session(pipe: Pipe, pool: bp.Pool, name: str, n_pages: int) -> None:
    """A session: fills its table, and then follows orders from the pipe."""
    pipe.get()
    table = pool.open_scratch(name, n_pages, lifetime="process", dtype=np.uint64)
    for n in range(n_pages):
        with table.write(n) as page:
            page[:] = stamp(n)
    pipe.put("filled")
    held = table[0]  # a pin, which must be released when the process ends
    while True:
        order = pipe.get()
        if order == "check":
            pipe.put(sum(int((table[n] != stamp(n)).any()) for n in range(n_pages)))
        elif order == "disconnects":
            del held
            table.close()
            pool.close()
            return
        elif order == "just ends":
            os._exit(0)  # nothing is closed
        else:
            pipe.put("writing")
            while True:
                n = int.from_bytes(os.urandom(4)) % n_pages
                with table.write(n) as page:
                    page[:] = stamp(n)


@dataclass
class Books:
    """The recorded figures. Times are in seconds, sizes in bytes."""

    pool: bp.Pool
    began: float = field(default_factory=time.monotonic)
    sizes: list[tuple[float, int, int]] = field(
        default_factory=list
    )  # (time, bytes of the live tables, the kernel's count)
    ends: list[tuple[float, str, int]] = field(default_factory=list)
    live: dict[Worker, int] = field(default_factory=dict)  # session -> pages of its table
    in_swap: float | None = None  # when two tables were in swap
    extra: list[int] = field(
        default_factory=list
    )  # pages that the kernel counts beside the tables, while no session writes

    def note(self) -> int:
        """Records the sizes; returns the kernel's count."""
        data: int = kernel_bytes(self.pool) - self.pool.stats().metadata_bytes
        self.sizes.append((time.monotonic() - self.began, sum(self.live.values()) * PAGE, data))
        return data


def begin(run: Run, books: Books, n: int, n_pages: int, group: MemoryCgroup | None = None) -> None:
    """Starts a session, with its memory in ``group``."""
    worker = run.start(session, books.pool, f"temporary {n}", n_pages)
    books.note()
    if group is not None:
        group.add(worker.pid)
    worker.put("fill")
    worker.get()
    books.live[worker] = n_pages
    books.note()


def end(books: Books, worker: Worker, how: str) -> None:
    """Ends a session in one of the three ways, and compares the counts."""
    books.note()
    worker.put(how)
    if how == "is killed":
        worker.get()
        time.sleep(0.003)
        worker.kill()
    worker.process.join()
    books.pool.reap()
    books.pool.trim()  # give back free frames, which the pool would keep for the next session
    gone = books.live.pop(worker)
    data = books.note()
    books.ends.append((time.monotonic() - books.began, how, gone * PAGE))
    books.extra.append(data // PAGE - sum(books.live.values()))


def come_and_go(run: Run, books: Books) -> None:
    """Runs the sessions, at most ``--at_once`` at a time."""
    options, random = run.options, np.random.default_rng(run.options.seed)
    most_pages = int(options.table * MIB) // PAGE
    with run.progress("sessions", options.sessions) as advance:
        for n in range(options.sessions):
            if len(books.live) >= options.at_once:
                end(books, list(books.live)[random.integers(len(books.live))], list(ENDS)[n % 3])
            begin(run, books, n, int(random.integers(most_pages // 4, most_pages)))
            advance(1)
    wrong = 0
    for worker in list(books.live):
        worker.put("check")
        wrong += worker.get()
    run.check(wrong == 0, f"the {len(books.live)} sessions that are left have their tables, {wrong} wrong pages")
    for n, worker in enumerate(list(books.live)):
        end(books, worker, list(ENDS)[n % 3])


# ---- swap ----------------------------------------------------------------------------------


def killed_in_swap(run: Run, books: Books, group: MemoryCgroup) -> None:
    """Pushes the pages of two sessions into swap and kills one; the other must keep its table."""
    n_pages = int(run.options.table * MIB) // PAGE
    for n in (1000, 1001):
        begin(run, books, n, n_pages, group)
    first, second = books.live

    def pushed() -> bool:
        group.push_out(n_pages * PAGE // 2)  # the kernel stops at pages in use, or under write-back
        return group.swapped() >= 3 * n_pages * PAGE // 2

    eventually(pushed)
    swapped, before = group.swapped(), bytes_read()
    books.in_swap = time.monotonic() - books.began
    run.check(swapped >= n_pages * PAGE, f"swap: {mib(swapped)} of two tables of {mib(n_pages * PAGE)} are in swap")
    first.kill()
    gone = books.live.pop(first)
    books.pool.reap()
    read, left = bytes_read() - before, group.swapped()
    books.ends.append((time.monotonic() - books.began, "is killed", gone * PAGE))
    data = books.note()
    run.check(
        read <= (swapped - left) // 8,
        f"swap: a session is killed, {mib(swapped - left)} of swap come free, {read:,} bytes were read back in",
    )
    run.check(
        data <= (n_pages + 64) * PAGE,
        f"swap: the kernel counts {mib(data)} of tables, of which {mib(n_pages * PAGE)} are the other session's",
    )
    before = bytes_read(second.pid)
    second.put("check")
    wrong, read = second.get(), bytes_read(second.pid) - before
    run.check(wrong == 0, f"swap: the other session reads its table back in, {mib(read)}, {wrong} wrong")
    end(books, second, "is killed")
    free = eventually(
        lambda: group.swapped() <= swapped // 8
    )  # the kernel sums its per-processor counters only now and then
    run.check(free, f"swap: at the end {mib(group.swapped())} are in swap")


def with_swap(run: Run, books: Books) -> None:
    """Runs the part with swap, or prints why it cannot."""
    with ExitStack() as stack:
        try:
            if run.options.swap is not None:
                stack.enter_context(swap_file(run.options.swap, 6 * int(run.options.table * MIB)))
            if not swap_size():
                raise Refused("this machine has no swap; --swap FILE adds some, for root")
            killed_in_swap(run, books, stack.enter_context(memory_cgroup()))
        except Refused as reason:
            run.say(f"     swap: left out, {reason}")


def work(run: Run) -> None:
    """Runs the sessions, with and without swap."""
    options = run.options
    pool = run.pool(int((options.at_once + 2) * options.table * MIB))
    books = Books(pool)
    come_and_go(run, books)
    with_swap(run, books)
    extra, allowed = max(books.extra), SPARE_PAGES * options.at_once
    run.check(
        extra <= allowed,
        f"{len(books.ends)} sessions ended; after each the kernel counted the others' tables and at most {extra} pages",
    )
    pool.trim()
    stats = pool.stats()
    left = books.note()
    run.check(left == stats.resident_bytes == 0, f"at the end the kernel counts {left} bytes of tables")
    run.check(
        not stats.spaces and stats.clients == 1, f"{len(stats.spaces)} tables and {stats.clients - 1} sessions are left"
    )
    run.check(pool.check() == [], "every invariant holds")
    run.table(
        "how they ended",
        ("", "sessions", "their tables"),
        [
            (how, str(len(sizes)), mib(sum(sizes)))
            for how in ENDS
            for sizes in [[s for _, h, s in books.ends if h == how]]
        ],
    )
    run.plot(draw, books)


def draw(books: Books) -> Any:
    """Draws memory over time, with each end of a session marked."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 3.6))
    times, tables, kernel = np.array(books.sizes).T
    axes.fill_between(times, tables / MIB, step="post", color=BLUE, alpha=0.15, lw=0, label="tables of live sessions")
    axes.plot(times, kernel / MIB, color=BLUE, drawstyle="steps-post", label="the kernel's count (st_blocks)")
    for how, color in ENDS.items():
        ends = [at for at, kind, _ in books.ends if kind == how]
        axes.plot(ends, np.interp(ends, times, kernel / MIB), "v", color=color, ms=7, label=f"a session {how}")
    axes.set(xlabel="seconds", ylabel="MiB", ylim=(0, 1.45 * kernel.max() / MIB), xlim=(0, None))
    axes.legend(loc="upper left", ncols=3)
    if books.in_swap is not None:
        height = kernel[np.searchsorted(times, books.in_swap) - 1] / MIB  # before the session is killed
        axes.annotate("in swap", (books.in_swap, height), (0, 5), textcoords="offset points", ha="right")
    axes.set_title("temporary tables of sessions that come and go")
    return figure


if __name__ == "__main__":
    main(
        work,
        {"--swap": {"type": Path, "metavar": "FILE", "help": "add a swap file there for the time of the run (root)"}},
        sessions=(30, 9, "sessions in all"),
        at_once=(6, 3, "sessions at once"),
        table=(16, 4, "size of the largest table in MiB"),
    )
