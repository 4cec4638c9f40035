"""The measurements behind `make bench`: each row beside its yardstick, in the same run (harness.py)."""

import mmap
import multiprocessing
import os
import random
import time
from collections.abc import Callable, Coroutine
from contextlib import ExitStack
from dataclasses import replace
from multiprocessing.connection import Connection
from statistics import median
from typing import Any

import numpy as np
from cold import COLD
from harness import (
    CLIENTS,
    EXTENT,
    OS_PAGE,
    PAGE,
    UNROLLED,
    Bar,
    Bench,
    Bytes,
    Pairs,
    Row,
    in_turns,
    segment_like,
    timed,
)
from large import LARGE

import bufferpool

# ---- hot pages -----------------------------------------------------------------------


def getitem(bench: Bench) -> list[Row]:
    hot, pages = bench.hot, bench.numbers(UNROLLED, bench.hot.pages)
    base = timed([f"rows[{hot.frame_of[n]}][0]" for n in pages], rows=hot.rows)
    ours = timed([f"space[{n}][0]" for n in pages], space=hot.space)
    pairs = in_turns(base, ours, bench.rounds)
    return [pairs.row("getitem", "hot space[n], one byte read", "rows[n], one byte read", "ns", 2.2)]


def pin(bench: Bench) -> list[Row]:
    hot, pages = bench.hot, bench.numbers(UNROLLED, bench.hot.pages)
    base = timed([f"rows[{hot.frame_of[n]}][0]" for n in pages], rows=hot.rows)
    ours = timed([f"with space.pin({n}) as page: page[0]" for n in pages], space=hot.space)
    pairs = in_turns(base, ours, bench.rounds)
    return [pairs.row("pin", "hot space.pin(n), one byte read", "rows[n], one byte read", "ns", 2.7)]


def memmap(bench: Bench) -> list[Row]:
    hot, pages = bench.hot, bench.numbers(UNROLLED, bench.hot.pages)
    mapped = np.memmap(bench.file, np.uint8, "r")
    base = timed([f"mapped[{n * PAGE}:{(n + 1) * PAGE}]" for n in pages], mapped=mapped)
    ours = timed([f"space[{n}]" for n in pages], space=hot.space)
    pairs = in_turns(base, ours, bench.rounds)
    return [pairs.row("memmap", "hot space[n]", "slice of an np.memmap", "ns", 1 / 3)]


def aget(bench: Bench) -> list[Row]:
    space, pages = bench.hot.space, bench.numbers(1000, bench.hot.pages)

    async def plain() -> None:
        for n in pages:
            space[n]

    async def awaited() -> None:
        for n in pages:
            await space.aget(n)

    def ns_each(function: Callable[[], Coroutine[Any, Any, None]]) -> float:
        start = time.perf_counter_ns()
        try:
            function().send(None)  # a hit never suspends the coroutine, so it needs no event loop
        except StopIteration:
            return (time.perf_counter_ns() - start) / len(pages)
        raise RuntimeError("a hit has suspended its coroutine")

    pairs = in_turns(lambda: ns_each(plain), lambda: ns_each(awaited), bench.rounds)
    return [pairs.row("aget", "hot await space.aget(n)", "space[n]", "ns", 5)]


def pin_many(bench: Bench) -> list[Row]:
    hot = bench.hot
    sets = [np.array(bench.numbers(64, hot.pages)) for _ in range(8)]
    base = timed([f"rows[{hot.frame_of[n]}]" for n in sets[0]], rows=hot.rows)
    ours = timed([f"space.pin_many(ids[{i}]).release()" for i in range(8)], 8 * 64, space=hot.space, ids=sets)
    pairs = in_turns(base, ours, bench.rounds)
    beside = f"{median(pairs.ratios):.2f} times 64 plain rows[n]"
    return [
        pairs.row("pin_many", "pin_many of 64 hot pages, release", "rows[n]", "ns/page", Bar(25, absolute=True), beside)
    ]


def read_many(bench: Bench) -> list[Row]:
    hot, out = bench.hot, np.empty((64, PAGE), np.uint8)
    ids = [np.array(bench.numbers(64, hot.pages)) for _ in range(8)]
    frames = [hot.frame_of[i] for i in ids]
    take = [f"take(rows, ids[{i}], axis=0, out=out)" for i in range(8)]
    clip = [statement[:-1] + ", mode='clip')" for statement in take]
    base = timed(take, take=np.take, rows=hot.rows, ids=frames, out=out)
    fast = timed(clip, take=np.take, rows=hot.rows, ids=frames, out=out)
    ours = timed([f"space.read_many(ids[{i}], out)" for i in range(8)], space=hot.space, ids=ids, out=out)
    pairs = in_turns(base, ours, bench.rounds)
    unbuffered = in_turns(fast, ours, bench.rounds)
    beside = f"{median(unbuffered.ratios):.2f} times np.take with mode='clip', which does not buffer ({median(unbuffered.base):,.0f} ns)"
    return [pairs.row("read_many", "read_many of 64 random hot pages", "np.take(…, out=out)", "ns", 1.3, beside=beside)]


def write(bench: Bench) -> list[Row]:
    pages = bench.numbers(UNROLLED, bench.file_pages)
    with bench.pool(1024) as pool:
        space = pool.open_file(bench.file, "r+", cache="kernel")
        rows = np.frombuffer(segment_like(1024 * PAGE)[0], np.uint8).reshape(-1, PAGE)
        rows[:] = 1
        private, eight = np.empty(PAGE, np.uint8), np.arange(8, dtype=np.uint8)
        base = timed([f"private[:] = rows[{n}]; rows[{n}] = private" for n in range(0, 1024, 1024 // UNROLLED)],
                     rows=rows, private=private)  # fmt: skip
        ours = timed([f"with space.write({n}) as page: page[:8] = eight" for n in pages], space=space, eight=eight)
        pairs = in_turns(base, ours, bench.rounds)
        space.drop()  # without writing the changes to the file
    return [pairs.row("write", "write of a hot page, 8 bytes changed", "copy a page out and back", "ns", 4)]


# ---- misses --------------------------------------------------------------------------


def miss(bench: Bench) -> list[Row]:
    """The processor time of a miss. Nothing waits, because the file is in the page cache."""
    pages, reads = bench.file_pages, 1000
    with bench.pool(pages // 8) as pool, open(bench.file, "rb", buffering=0) as file:
        space = pool.open_file(bench.file, cache="kernel")
        fd, draw, clock = file.fileno(), bench.random, time.thread_time_ns
        one = [memoryview(bytearray(PAGE))]
        resident = memoryview(bytearray(b"1") * (pages // 8 * PAGE))
        slots = [[resident[at : at + PAGE]] for at in range(0, len(resident), PAGE)]
        hit = timed([f"space[{n}]" for n in [0] * UNROLLED], space=space)
        hit_ns = median(hit() for _ in range(9))
        shares: list[float] = []

        def preadv(buffers: list[list[memoryview]]) -> float:
            work = [(buffers[draw.randrange(len(buffers))], draw.randrange(pages) * PAGE) for _ in range(reads)]
            read, start = os.preadv, clock()
            for into, offset in work:
                read(fd, into, offset)
            return (clock() - start) / reads

        def ours() -> float:
            ids = [draw.randrange(pages) for _ in range(reads)]
            before = pool.stats().misses
            start = clock()
            for n in ids:
                space[n]
            took = clock() - start
            misses = pool.stats().misses - before
            shares.append(misses / reads)
            return (took - (reads - misses) * hit_ns) / misses

        for _ in range(2 * pages // reads + 1):  # full, and the policy settled
            ours()
        spread = in_turns(lambda: preadv(slots), ours, bench.rounds)
        pairs = in_turns(lambda: preadv([one]), ours, bench.rounds)
    beside = f"{median(shares):.1%} of the reads missed, the hits are taken out"
    what = "a miss, file in the page cache"
    return [
        spread.row("miss", what, "os.preadv, as much memory", "ns", 1.3, beside=beside),
        pairs.row("miss", what, "os.preadv into one buffer", "ns", 2),
    ]


def misses_by_processes(bench: Bench) -> list[Row]:
    """The rate of two, four and eight processes that only miss, divided by that of one process: the median of the rounds' ratios."""
    from scaling import PROCESSES, rounds_by_processes

    rates = rounds_by_processes(bench)
    rows = []
    for count in PROCESSES[1:]:
        pairs = Pairs([rate / 1e3 for rate in rates[1, True]], [rate / 1e3 for rate in rates[count, True]])
        plain = Pairs(rates[1, False], rates[count, False])
        bar = 1.6 if count == 2 and len(os.sched_getaffinity(0)) >= 2 else 1
        beside = f"{median(plain.ratios):.2f} times with os.preadv and no pool: what the machine allows"
        what = f"{count} processes that only miss"
        rows.append(pairs.row("misses_by_processes", what, "one process", "k/s", Bar(bar, at_least=True), beside))
    return rows


def many_spaces(bench: Bench) -> list[Row]:
    """A miss that a loader in Python serves, in a pool of one space and in one of 4,000."""
    spaces, pages, reads = 400 if bench.quick else 4000, 4096, 500
    with bench.pool(512) as few, bench.pool(512) as many:
        alone = few.open_derived("pages", pages, _ones)
        for i in range(spaces - 1):
            many.open_derived(f"other {i}", 1, _ones)
        among = many.open_derived("pages", pages, _ones)
        clock = time.thread_time_ns

        def each(space: bufferpool.Space) -> Callable[[], float]:
            at = 0

            def sample() -> float:
                nonlocal at
                ids = [n % pages for n in range(at, at + reads)]  # each page is evicted before it is read again
                at += reads
                start = clock()
                for n in ids:
                    space[n]
                return (clock() - start) / reads

            return sample

        pairs = in_turns(each(alone), each(among), bench.rounds // 4)
    what = f"a miss by a loader, {spaces:,} spaces"
    return [pairs.row("many_spaces", what, "one space", "ns", 1.1)]


# ---- memory --------------------------------------------------------------------------


def trim(bench: Bench) -> list[Row]:
    pages = bench.file_pages
    size = pages * PAGE
    order = bench.numbers(pages, pages)
    with bench.pool(pages) as pool:
        space = pool.open_file(bench.file, cache="kernel")
        data: Bytes = np.asarray(pool.data)
        mapped, reader = segment_like(size)
        writable, readable = np.frombuffer(mapped, np.uint8), np.frombuffer(reader, np.uint8)
        clock = time.perf_counter_ns

        def madvise(twice: bool = False) -> float:
            writable[::OS_PAGE] = 1
            if twice:
                int(readable[::OS_PAGE].sum())
            start = clock()
            for at in range(0, size, EXTENT):
                mapped.madvise(mmap.MADV_REMOVE, at, EXTENT)
            return size / (clock() - start)

        def ours() -> float:
            for n in order:
                space[n]
            int(data[:, ::OS_PAGE].sum())  # the read mapping too
            full = pool.stats().resident_bytes
            start = clock()
            given = pool.trim(full)
            took = clock() - start
            if given != full or full < size:
                raise RuntimeError(f"the pool had {full} bytes of {size} and gave {given} back")
            return given / took

        # "A segment like it": the pool has two mappings of its data, one that the core
        # writes and one that views read, and the kernel clears the page tables of both.
        pairs = in_turns(lambda: madvise(True), ours, bench.long_rounds)
        once = in_turns(madvise, ours, bench.long_rounds)
    return [
        pairs.row(
            "trim",
            f"trim of a full pool of {size >> 20} MiB",
            "madvise(MADV_REMOVE), mapped alike",
            "GB/s",
            Bar(0.8, at_least=True),
            f"{median(once.ratios):.2f} of a segment that is mapped only once",
        )
    ]


def metadata(bench: Bench) -> list[Row]:
    frames = 1024 if bench.quick else 4096

    def measure(frames: int) -> int:
        """The kernel's count of the metadata of a pool whose frames are all used, in bytes."""
        with bench.pool(frames, named=True) as pool:
            space = pool.open_derived("pages", frames, _ones)
            for n in range(frames):
                space[n]
            stats = pool.stats()
            kernel = os.stat(pool.path).st_blocks * 512
            if stats.resident_bytes != frames * PAGE or kernel != stats.kernel_bytes:
                raise RuntimeError(f"the pool has {stats.resident_bytes} bytes resident of {frames * PAGE}")
            return kernel - stats.resident_bytes

    one, two = measure(frames), measure(2 * frames)
    each = (two - one) / frames
    what = f"metadata a frame, {CLIENTS} clients"
    beside = f"st_blocks of pools of {frames} and {2 * frames} used frames; with the page's own entry"
    return [Row("metadata", what, "", "bytes", each, None, each, each, each, 200, beside=beside)]


def _ones(page_no: int, out: Any) -> None:
    out[:] = 1


# ---- two processes -------------------------------------------------------------------


def _reader(pool: bufferpool.Pool, space: bufferpool.Space, pages: int, orders: Connection) -> None:
    """The reading process. For each order (plain, start, stop) it answers (reads a second, its share of a core)."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this process
    draw = random.Random(os.getpid())
    batches = [[draw.randrange(pages) for _ in range(1000)] for _ in range(50)]
    for batch in batches:
        for n in batch:
            space[n]
    rows: Bytes = np.asarray(pool.data)
    int(rows[:pages, ::OS_PAGE].sum())
    orders.send(None)
    clock = time.monotonic_ns
    while True:
        try:
            plain, start, stop = orders.recv()
        except EOFError:
            break
        while clock() < start:
            pass
        read = rows if plain else space
        i, began, cpu = 0, clock(), time.process_time_ns()
        while (now := clock()) < stop:
            for n in batches[i % 50]:
                read[n][0]
            i += 1
        orders.send((i * 1000 / (now - began) * 1e9, (time.process_time_ns() - cpu) / (clock() - began)))
    pool.close()


def two_processes(bench: Bench) -> list[Row]:
    window, rounds, limit = (0.25, 5, 8.0) if bench.quick else (0.5, 15, 45.0)
    pages = 4096
    context = multiprocessing.get_context("spawn")
    with ExitStack() as stack:
        pool = stack.enter_context(bench.pool(pages, named=True))
        space = pool.open_file(bench.file, cache="kernel")
        for n in range(pages):
            space[n]
        workers: list[Connection] = []
        for _ in range(2):
            mine, theirs = context.Pipe()
            process = context.Process(target=_reader, args=(pool, space, pages, theirs), daemon=True)
            process.start()
            theirs.close()
            stack.callback(process.join, 5)
            stack.callback(process.terminate)
            stack.callback(mine.close)
            workers.append(mine)
        for worker in workers:
            worker.recv()

        def run(chosen: list[Connection], plain: bool = False) -> tuple[float, bool]:
            """Million reads a second, and whether every reader had a core for itself."""
            start = time.monotonic_ns() + 20_000_000
            for worker in chosen:
                worker.send((plain, start, start + int(window * 1e9)))
            answers = [worker.recv() for worker in chosen]
            return sum(rate for rate, _ in answers) / 1e6, all(share > 0.97 for _, share in answers)

        kept: dict[bool, list[tuple[float, float]]] = {False: [], True: []}
        disturbed: dict[bool, list[tuple[float, float]]] = {False: [], True: []}
        end, turn = time.monotonic() + limit, 0
        while len(kept[True]) < rounds and time.monotonic() < end:
            for plain in (False, True):  # the plain rows show what the machine itself allows
                one, alone = run([workers[turn % 2]], plain)
                two, both = run(workers, plain)
                (kept if alone and both else disturbed)[plain].append((one, two))
            turn += 1
    quiet = min(len(pairs) for pairs in kept.values())
    few = quiet < 3
    used = {plain: kept[plain] + (disturbed[plain] if few else []) for plain in (False, True)}
    ceiling = median(two / one for one, two in used[True])
    beside = f"{pages} pages; rows[n] of a plain ndarray, two processes: {ceiling:.2f} times; " + (
        f"other programs disturbed all but {quiet} of {turn} rounds: run it again"
        if few
        else f"{quiet} undisturbed rounds of {turn}"
    )
    pairs = Pairs([one for one, _ in used[False]], [two for _, two in used[False]])
    what = "two processes, hot pages at random"
    row = pairs.row("two_processes", what, "one process", "M/s", Bar(1.8, at_least=True), beside)
    return [replace(row, void=few)]


ROWS: dict[str, Callable[[Bench], list[Row]]] = {
    function.__name__: function
    for function in (
        getitem,
        pin,
        memmap,
        aget,
        pin_many,
        read_many,
        write,
        miss,
        misses_by_processes,
        many_spaces,
        *COLD,
        trim,
        two_processes,
        metadata,
        *LARGE,  # last, because the kernel's work with so much memory would slow the other rows
    )
}
