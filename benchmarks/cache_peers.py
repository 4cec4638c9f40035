"""Measures other caches that processes share beside the pool's: `make peers`.

Each has the same values, all of them in memory, and does the same two things, in one process and in four at once:

- *get*: the value of a key; a byte of it is looked at;
- *put*: the value of a key is replaced by another one of its size.

They are measured in turns with the pool's cache, with all options that make them faster: nothing is synced to a disk, files are in
/dev/shm, nothing is evicted. Two more rows show the memory that values of a heavy-tailed distribution take, and how often values are
computed when many processes ask for them at once. Redis is left out if its server is not installed.
"""

import argparse
import multiprocessing
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from itertools import product
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import diskcache
import lmdb
import numpy as np
from harness import UNROLLED, Pairs, in_turns, timed
from made_objects import heavy_tailed
from peers import folder

import bufferpool as bp

SIZES = {"100 B": 100, "2 kB": 2000, "100 kB": 100_000, "1 MB": 1_000_000}
KEYS = {"100 B": 1000, "2 kB": 1000, "100 kB": 200, "1 MB": 40}
PROCESSES, WINDOW_S = 4, 0.15
Names = dict[str, Any]


@dataclass(frozen=True)
class Peer:
    """One cache. It is pickled for other processes, and each process connects for itself."""

    name: str
    get: str  # statements; {key} is the key, value the new value
    put: str
    connect: Callable[[Any], Names]  # the names that the statements use, in this process
    shared: Any  # passed to connect()
    bars: tuple[float, float | None]  # the pool's time for a get and a put, at most, divided by this one's


# ---- the caches ------------------------------------------------------------------------------


def connect_pool(name: str) -> Names:
    pool = bp.Pool.attach(name)
    cache = pool.cache("values")
    return {"get": cache.get, "put": cache.put, "pool": pool}


def connect_lmdb(path: str) -> Names:
    env = lmdb.open(path, map_size=1 << 30, sync=False, metasync=False, writemap=True, map_async=True)
    return {"begin": env.begin}


def connect_diskcache(path: str) -> Names:
    return {"cache": diskcache.Cache(path, eviction_policy="none", size_limit=1 << 40)}


def connect_redis(path: str) -> Names:
    import redis

    client = redis.Redis(unix_socket_path=path)
    return {"get": client.get, "put": client.set}


def start_redis(stack: ExitStack) -> str:
    """A server without persistence, at a socket in /dev/shm."""
    directory = folder(stack, "redis")
    command = ["redis-server", "--port", "0", "--unixsocket", f"{directory}/socket", "--dir", directory]
    server = subprocess.Popen([*command, "--save", "", "--appendonly", "no"], stdout=subprocess.DEVNULL)
    stack.callback(server.wait)
    stack.callback(server.terminate)
    while not Path(directory, "socket").exists():
        if server.poll() is not None:
            sys.exit("redis-server does not start")
        time.sleep(0.01)
    return f"{directory}/socket"


def make_pool(stack: ExitStack, capacity: int) -> bp.Pool:
    name = f"bufferpool-bench-{os.getpid()}-cache-{random.randrange(1 << 30)}"
    pool = stack.enter_context(bp.Pool.create(name, capacity, max_clients=64))
    stack.callback(pool.unlink, discard=True)
    return pool


def ours(stack: ExitStack) -> Peer:
    pool = make_pool(stack, 512 << 20)
    pool.cache("values", limit=480 << 20)
    return Peer("bufferpool", "get('{key}')[0]", "put('{key}', value)", connect_pool, pool.name, (1.0, 1.0))


def peers(stack: ExitStack) -> Iterator[Peer]:
    get, put = (
        "with begin(buffers=True) as t: t.get(b'{key}')[0]",
        "with begin(write=True) as t: t.put(b'{key}', value)",
    )
    yield Peer("lmdb", get, put, connect_lmdb, folder(stack, "lmdb"), (1.0, 1.0))
    get, put = "cache['{key}'][0]", "cache['{key}'] = value"
    yield Peer("diskcache in /dev/shm", get, put, connect_diskcache, folder(stack, "diskcache"), (0.1, None))
    if shutil.which("redis-server"):
        yield Peer(
            "redis, a Unix socket",
            "get('{key}')[0]",
            "put('{key}', value)",
            connect_redis,
            start_redis(stack),
            (0.1, None),
        )


# ---- get and put -----------------------------------------------------------------------------


def statements(template: str, size: str, seed: int) -> list[str]:
    numbers = np.random.default_rng(seed).integers(0, KEYS[size], UNROLLED)
    return [template.format(key=f"{size.replace(' ', '')}-{n}") for n in numbers]


def fill(peer: Peer) -> None:
    names = peer.connect(peer.shared)
    for size, count in KEYS.items():
        value = bytes(range(256)) * (SIZES[size] // 256 + 1)
        names["value"] = value[: SIZES[size]]
        for n in range(count):
            exec(peer.put.format(key=f"{size.replace(' ', '')}-{n}"), names)


def serve(peer: Peer, orders: Connection) -> None:
    """One of four processes. It runs the statement of each order for the given time, and answers how often it has run."""
    names = peer.connect(peer.shared)
    codes = {}
    for number, (what, size) in enumerate((w, s) for w in ("get", "put") for s in SIZES):
        lines = "\n".join(statements(getattr(peer, what), size, os.getpid() + number))
        codes[what, size] = compile(lines, peer.name, "exec")
    orders.send(None)
    with suppress(EOFError):
        while True:
            what, size = orders.recv()
            names["value"] = os.urandom(SIZES[size])
            end, done = time.monotonic() + WINDOW_S, 0
            while time.monotonic() < end:
                exec(codes[what, size], names)
                done += UNROLLED
            orders.send(done)


def start(stack: ExitStack, peer: Peer) -> list[Connection]:
    context, servers = multiprocessing.get_context("spawn"), []
    for _ in range(PROCESSES):
        mine, theirs = context.Pipe()
        process = context.Process(target=serve, args=(peer, theirs), daemon=True)
        process.start()
        theirs.close()
        stack.callback(process.join, 5)
        stack.callback(process.terminate)
        servers.append(mine)
    for server in servers:
        server.recv()
    return servers


def together(servers: list[Connection], what: str, size: str) -> float:
    """ns of an operation, for all processes together."""
    for server in servers:
        server.send((what, size))
    return WINDOW_S * 1e9 / float(sum(server.recv() for server in servers))


def line(peer: Peer, what: str, pairs: Pairs, bar: float | None) -> bool:
    """Prints a row. Returns whether its bar is met."""
    low, mid, high = np.quantile(pairs.ratios, [0.25, 0.5, 0.75])
    verdict = "" if bar is None else f"≤ {bar} {'ok' if mid <= bar else 'MISSED'}"
    times = f"{median(pairs.ours):>12,.0f} ns {median(pairs.base):>12,.0f} ns"
    print(f"{peer.name:<24} {what:<28} {times} {mid:>8.3f} ({low:.3f} to {high:.3f})  {verdict}", flush=True)
    return bar is None or bool(mid <= bar)


def speeds(stack: ExitStack, rounds: int) -> list[bool]:
    mine = ours(stack)
    fill(mine)
    mine_names, mine_servers, met = mine.connect(mine.shared), start(stack, mine), []
    for peer in peers(stack):
        with ExitStack() as inner:
            fill(peer)
            names, servers = peer.connect(peer.shared), start(inner, peer)
            for (what, bar), size in product(zip(("get", "put"), peer.bars, strict=True), SIZES):
                value, code = os.urandom(SIZES[size]), [statements(getattr(p, what), size, 1) for p in (peer, mine)]
                theirs, own = (
                    timed(c, seconds=0.003, **n, value=value) for c, n in zip(code, (names, mine_names), strict=True)
                )
                met.append(line(peer, f"{what} {size}", in_turns(theirs, own, rounds), bar))
                theirs, own = (partial(together, processes, what, size) for processes in (servers, mine_servers))
                pairs = in_turns(theirs, own, max(rounds // 4, 3))
                met.append(line(peer, f"{what} {size}, {PROCESSES} processes", pairs, bar))
            names.clear()
    return met


# ---- memory and stampedes --------------------------------------------------------------------


def memory(count: int) -> bool:
    """The memory that values of a heavy-tailed distribution take (median 2 kB, up to 4 MB), beside the sum of their sizes."""
    sizes = heavy_tailed(np.random.default_rng(1), count, 2000, 1.5, 4 << 20).tolist()
    total, block = sum(sizes), os.urandom(4 << 20)
    with ExitStack() as stack:
        pool = make_pool(stack, int(1.5 * total) + (64 << 20))
        cache = pool.cache("values", limit=int(1.45 * total) + (48 << 20))
        path = Path("/dev/shm", pool.name)
        before = path.stat().st_blocks * 512
        kept = sum(cache.put(f"value {n}", block[:size]) for n, size in enumerate(sizes))
        grown = path.stat().st_blocks * 512 - before
    ratio = grown / total
    good = ratio <= 1.15 and kept == count
    print(
        f"memory of {count:,} values, {total / 1e6:,.0f} MB, of which {kept:,} are kept: {ratio:.3f} times "
        f"≤ 1.15 {'ok' if good else 'MISSED'}",
        flush=True,
    )
    return good


def stampede(name: str, seed: int, pipe: int, keys: int) -> None:
    order = list(range(keys))
    random.Random(seed).shuffle(order)
    cache = bp.Pool.attach(name).cache("values")

    def load(key: int) -> bytes:
        os.write(pipe, b".")
        time.sleep(0.002)
        return bytes(1000 + key)

    for key in order:
        if len(cache.get_or_load(key, load)) != 1000 + key:
            os._exit(1)
    os._exit(0)


def computed(processes: int = 8, keys: int = 200) -> bool:
    """How many values are computed by processes that ask for all keys at once."""
    with ExitStack() as stack:
        pool = make_pool(stack, 64 << 20)
        pool.cache("values")
        read, write = os.pipe()
        children = []
        for seed in range(processes):
            children.append(os.fork())
            if not children[-1]:
                try:
                    stampede(pool.name, seed % 3, write, keys)
                finally:
                    os._exit(2)
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        os.close(write)
        with os.fdopen(read, "rb") as pipe:
            loads = len(pipe.read())
    good = loads == keys and not any(codes)
    print(f"computed by {processes} processes that ask for {keys} keys: {loads} = {keys} {'ok' if good else 'MISSED'}")
    return good


def main() -> int:
    parser = argparse.ArgumentParser(description="Measures other shared caches beside the pool's.")
    parser.add_argument("--quick", action="store_true", help="fewer rounds and values, for a first impression")
    quick = parser.parse_args().quick
    met = [computed(), memory(10_000 if quick else 100_000)]
    print(f"\n{'':<53} {'bufferpool':>15} {'the other':>15} {'ratio':>8} (quartiles)")
    with ExitStack() as stack:
        met += speeds(stack, 11 if quick else 41)
    print(f"\n{sum(met)} of {len(met)} bars met, or without a bar")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
