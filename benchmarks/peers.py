"""Measures other ways to share pages between processes beside the pool: `make peers`.

Each has the same 4096 pages of 8 KiB, all of them in memory, and does the same two things:

- *read*: the newest version of a page, whole, as an ndarray of uint8; a byte of it is looked at;
- *write*: eight bytes of a page are changed, so that a reader sees the old page or the new one.

They are measured in turns with the pool (see `speed.py`), alone and while another process reads
pages at random, the same way. All options that make them faster are on: nothing is synced to a disk, everything lies in
/dev/shm, nothing is evicted. Their other abilities are not measured: LMDB has transactions over
many keys, a Manager shares any object.
"""

import argparse
import multiprocessing
import os
import secrets
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import diskcache
import lmdb
import numpy as np
from harness import PAGE, SHM, UNROLLED, Bench, Pairs, Sample, in_turns, timed

PAGES = 4096
WINDOW_S = 0.03  # of one sample beside a reader
Names = dict[str, Any]


@dataclass(frozen=True)
class Peer:
    """One way to share pages. It is pickled for other processes, and each process connects for itself."""

    name: str
    read: str  # statements; {n} is the page
    write: str  # "" where it cannot be compared
    connect: Callable[[Any], Names]  # the names that the statements use, in this process
    shared: Any  # passed to connect() in another process


# ---- the peers -----------------------------------------------------------------------------


def fill(n: int) -> bytes:
    return n.to_bytes(8, "little") * (PAGE // 8)


def connect_pool(space: Any) -> Names:
    return {"space": space}


def connect_lmdb(path: str) -> Names:
    env = lmdb.open(path, map_size=4 * PAGES * PAGE, sync=False, metasync=False, writemap=True, map_async=True)
    return {"begin": env.begin, "array": np.array, "of": np.frombuffer}


def connect_snapshot(path: str) -> Names:
    env = lmdb.open(path, map_size=4 * PAGES * PAGE, readonly=True)
    return {"get": env.begin(buffers=True).get, "of": np.frombuffer}


def connect_cache(path: str) -> Names:
    cache = diskcache.Cache(path, eviction_policy="none", size_limit=1 << 40)
    return {"cache": cache, "array": np.array, "of": np.frombuffer}


def connect_array(shared: tuple[str, Any]) -> Names:
    path, lock = shared
    return {"rows": np.asarray(np.memmap(path, np.uint8, "r+", shape=(PAGES, PAGE))), "lock": lock}


def connect_manager(proxy: Any) -> Names:
    return {"pages": proxy, "array": np.array, "of": np.frombuffer}


def folder(stack: ExitStack, name: str) -> str:
    """A folder in /dev/shm, removed at the end."""
    path = Path(SHM, f"bufferpool-bench-{os.getpid()}-{name}-{secrets.token_hex(3)}")
    path.mkdir()
    stack.callback(shutil.rmtree, path)
    return str(path)


def ours(stack: ExitStack, bench: Bench) -> Peer:
    pool = stack.enter_context(bench.pool(PAGES * 8 // 7 + 64, named=True))
    space = pool.open_scratch("pages", PAGES)  # scratch pages may have seven eighths of a pool
    for n in range(PAGES):
        with space.write(n) as page:
            page[:] = np.frombuffer(fill(n), np.uint8)
    write = "with space.write({n}) as page: page[:8] = eight"
    return Peer("bufferpool", "space[{n}][0]", write, connect_pool, space)


def filled_lmdb(stack: ExitStack) -> str:
    path = folder(stack, "lmdb")
    with lmdb.open(path, map_size=4 * PAGES * PAGE, sync=False) as env, env.begin(write=True) as txn:
        for n in range(PAGES):
            txn.put(b"%d" % n, fill(n))
    return path


def peers(stack: ExitStack) -> list[Peer]:
    """All of them, filled."""
    read = "with begin(buffers=True) as t: of(t.get(b'{n}'), 'u1')[0]"
    get = "array(of(t.get(b'{n}'), 'u1'))"
    change = f"with begin(write=True, buffers=True) as t: page = {get}; page[:8] = eight; t.put(b'{{n}}', page)"
    old = "of(get(b'{n}'), 'u1')[0]"  # one open transaction: it sees no later change, and LMDB cannot reuse its pages
    made = [
        Peer("lmdb", read, change, connect_lmdb, filled_lmdb(stack)),
        Peer("lmdb, an old snapshot", old, "", connect_snapshot, filled_lmdb(stack)),
    ]

    path = folder(stack, "diskcache")
    with diskcache.Cache(path, eviction_policy="none", size_limit=1 << 40) as cache, cache.transact():
        for n in range(PAGES):
            cache[n] = fill(n)
    change = "page = array(of(cache[{n}], 'u1')); page[:8] = eight; cache[{n}] = page.tobytes()"
    made.append(Peer("diskcache", "of(cache[{n}], 'u1')[0]", change, connect_cache, path))

    path = f"{folder(stack, 'array')}/rows"
    Path(path).write_bytes(b"".join(map(fill, range(PAGES))))
    shared = path, multiprocessing.get_context("spawn").Lock()
    read, change = "with lock: page = rows[{n}].copy()\npage[0]", "with lock: rows[{n}][:8] = eight"
    made.append(Peer("a shared array, a Lock", read, change, connect_array, shared))

    manager = stack.enter_context(multiprocessing.get_context("spawn").Manager())
    proxy = manager.dict({n: fill(n) for n in range(PAGES)})
    change = "page = array(of(pages[{n}], 'u1')); page[:8] = eight; pages[{n}] = page.tobytes()"
    made.append(Peer("Manager().dict()", "of(pages[{n}], 'u1')[0]", change, connect_manager, proxy))
    return made


# ---- measuring -------------------------------------------------------------------------------


def statements(template: str, seed: int) -> list[str]:
    numbers = np.random.default_rng(seed).choice(PAGES, UNROLLED, replace=False)
    return [template.format(n=n) for n in numbers]


def read_on(peer: Peer, orders: Connection) -> None:
    """The reading process: it reads pages at random for as many seconds as each order says."""
    names = peer.connect(peer.shared)
    code = compile("\n".join(statements(peer.read, 2)), peer.name, "exec")
    exec(code, names)
    orders.send(None)
    while True:
        try:
            seconds = orders.recv()
        except EOFError:
            return
        end = time.monotonic() + seconds
        orders.send(None)
        while time.monotonic() < end:
            exec(code, names)


def reader_of(stack: ExitStack, peer: Peer) -> Connection:
    context = multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe()
    process = context.Process(target=read_on, args=(peer, theirs), daemon=True)
    process.start()
    theirs.close()
    stack.callback(process.join, 5)
    stack.callback(process.terminate)
    stack.callback(mine.close)
    mine.recv()
    return mine


def beside(reader: Connection, sample: Sample) -> Sample:
    """The sample, taken while the other process reads."""

    def taken() -> float:
        reader.send(WINDOW_S * 1.2)
        reader.recv()
        end, taken = time.monotonic() + WINDOW_S, [sample()]
        while time.monotonic() < end:
            taken.append(sample())
        time.sleep(WINDOW_S * 0.3)  # the reader ends
        return median(taken)

    return taken


def line(peer: str, what: str, pairs: Pairs) -> str:
    low, mid, high = np.quantile(pairs.ratios, [0.25, 0.5, 0.75])
    times = f"{median(pairs.base):>12,.0f} ns {median(pairs.ours):>12,.0f} ns"
    return f"{peer:<26} {what:<24} {times} {mid:>10,.1f} times ({low:,.1f} to {high:,.1f})"


def measure(stack: ExitStack, bench: Bench) -> None:
    """Every peer beside the pool."""
    mine = ours(stack, bench)
    eight, my_reader = np.arange(8, dtype=np.uint8), reader_of(stack, mine)
    my_names = mine.connect(mine.shared) | {"eight": eight}
    for peer in peers(stack):
        with ExitStack() as inner:
            names = peer.connect(peer.shared) | {"eight": eight}
            reader = reader_of(inner, peer)
            for what in ("read", "write") if peer.write else ("read",):
                base = timed(statements(getattr(mine, what), 1), **my_names)
                theirs = timed(statements(getattr(peer, what), 1), **names)
                rounds = bench.long_rounds
                print(line(peer.name, what, in_turns(base, theirs, rounds)), flush=True)
                pairs = in_turns(beside(my_reader, base), beside(reader, theirs), rounds)
                print(line("", f"{what} beside a reader", pairs), flush=True)
            names.clear()


def main() -> None:
    parser = argparse.ArgumentParser(description="Measures other ways to share pages beside bufferpool.")
    parser.add_argument("--quick", action="store_true", help="fewer rounds, for a first impression")
    options = parser.parse_args()
    print(f"{'':<26} {'':<24} {'bufferpool':>15} {'the other':>15} {'median of ratios (quartiles)':>30}")
    with Bench(options.quick) as bench, ExitStack() as stack:
        measure(stack, bench)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
