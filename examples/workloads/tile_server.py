"""Four prefork HTTP workers serve map tiles: with a cache in each worker, with one shared cache, and with Redis if it is installed.

The map is made of the pictures of the documentation; a tile is cut out, scaled and encoded as PNG when it is first
asked for, so tiles have from some hundred bytes to some hundred KiB. Users move over the map: to the next tiles, in
and out, and now and then to another place. The workers accept connections on one socket, so that each request reaches any of them.

  private  a cache of --cache MiB in each worker, LRU by bytes
  quarter  the same, with a part of --cache MiB for each worker: as much memory as the shared one
  shared   one cache of --cache MiB in a pool, for all of them
  redis    a Redis server with --cache MiB, over a Unix socket, if redis-server and its client library are installed

Memory is the growth of the proportional set size of the workers (and of Redis), shared memory included. Every answer is compared with the first one
for its tile.
"""

import http.client
import io
import shutil
import socket
import subprocess
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from machine import pss
from workload import BLUE, GREEN, MIB, ORANGE, Pipe, Run, Worker, draw_bars, main, mib

import bufferpool as bp

PICTURES = Path(__file__).resolve().parents[2] / "docs" / "images"
SIDE, TILE, DEEPEST = 640, 256, 7  # pixels of a picture in the map, pixels of a tile, the last level
WINDOW = (3, 2)  # tiles that a user sees at once

Tile = tuple[int, int, int]  # level, column, row
Load = Callable[[Tile], bytes]


class Map:
    """The pictures side by side; tiles are computed from it."""

    def __init__(self) -> None:
        from PIL import Image

        self.image = Image
        paths = sorted(PICTURES.glob("*.png"))
        across = int(np.ceil(np.sqrt(len(paths))))
        self.whole = Image.new("RGB", (across * SIDE, across * SIDE), "white")
        for n, path in enumerate(paths):
            with Image.open(path) as picture:
                self.whole.paste(picture.convert("RGB").resize((SIDE, SIDE)), (n % across * SIDE, n // across * SIDE))

    def render(self, tile: Tile) -> bytes:
        level, column, row = tile
        side = self.whole.width / (1 << level)
        box = (column * side, row * side, (column + 1) * side, (row + 1) * side)
        encoded = io.BytesIO()
        self.whole.resize((TILE, TILE), self.image.Resampling.BICUBIC, box).save(encoded, "png")
        return encoded.getvalue()


# ---- the caches: each is a function that returns the bytes of a tile, which ``load`` computes if it must -------


class Private:
    """An LRU cache in this process, limited by its bytes."""

    def __init__(self, budget: int) -> None:
        self.budget, self.used, self.kept = budget, 0, OrderedDict[Tile, bytes]()

    def __call__(self, tile: Tile, load: Load) -> bytes:
        if tile in self.kept:
            self.kept.move_to_end(tile)
            return self.kept[tile]
        made = load(tile)
        while self.kept and self.used + len(made) > self.budget:
            self.used -= len(self.kept.popitem(last=False)[1])
        self.kept[tile] = made
        self.used += len(made)
        return made


def in_pool(name: str) -> Callable[[Tile, Load], Any]:
    return bp.Pool.attach(name).cache("tiles").get_or_load


def in_redis(path: str) -> Callable[[Tile, Load], bytes]:
    import redis

    server = redis.Redis(unix_socket_path=path)

    def find(tile: Tile, load: Load) -> bytes:
        key = "/".join(map(str, tile))
        made = server.get(key)
        if made is None:
            made = load(tile)
            server.set(key, made)
        return made  # type: ignore[return-value]

    return find


def cache_of(kind: str, where: Any) -> Callable[[Tile, Load], Any]:
    return Private(where) if kind in ("private", "quarter") else (in_pool if kind == "shared" else in_redis)(where)


# ---- a worker ----------------------------------------------------------------------------


class Server(HTTPServer):
    """One of the workers: it accepts connections from a socket that all of them have."""

    def __init__(self, listening: socket.socket, answer: Callable[[Tile], Any]) -> None:
        super().__init__(("", 0), Handler, bind_and_activate=False)
        self.socket.close()
        self.socket, self.answer, self.requests, self.renders = listening, answer, 0, 0


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        level, column, row = map(int, self.path.split("/")[1:])
        body = self.server.answer((level, column, row))
        self.server.requests += 1
        self.send_response(200)
        self.send_header("Content-Type", "image/png")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


def serve(pipe: Pipe, kind: str, where: Any, listening: socket.socket) -> tuple[int, int]:
    """Serves until a message comes through the pipe; returns (requests, tiles computed)."""
    world, cache = Map(), cache_of(kind, where)

    def load(tile: Tile) -> bytes:
        server.renders += 1
        return world.render(tile)

    server = Server(listening, lambda tile: cache(tile, load))
    world.render((0, 0, 0))  # so that what the libraries allocate is not taken for the cache's memory
    pipe.put("ready")
    # A daemon, so that this process ends at once if the parent ends meanwhile.
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    pipe.get()
    pipe.put((server.requests, server.renders))
    pipe.get()  # keeps the cache until it has been measured
    server.shutdown()
    return server.requests, server.renders


# ---- users ---------------------------------------------------------------------------------


def walks(random: np.random.Generator, requests: int, users: int = 20) -> Iterator[Tile]:
    """The tiles that users ask for while they move over the map."""
    places = [(DEEPEST - 2, *random.integers(0, 1 << DEEPEST - 2, 2).tolist()) for _ in range(users)]
    favourites = random.integers(0, 1 << DEEPEST - 1, (40, 2)).tolist()
    for step in range(requests // (WINDOW[0] * WINDOW[1])):
        level, column, row = places[step % users]
        dice, right, down = random.random(), *random.integers(-1, 2, 2).tolist()
        if dice < 0.12 and level < DEEPEST:
            level, column, row = level + 1, 2 * column, 2 * row
        elif dice < 0.24 and level > 2:
            level, column, row = level - 1, column // 2, row // 2
        elif dice < 0.34:  # to one of some well-known places, the first ones most often
            level, (column, row) = DEEPEST - 1, favourites[int(40 ** random.random()) - 1]
        side = 1 << level
        column, row = (column + right) % side, (row + down) % side
        places[step % users] = level, column, row
        for n in range(WINDOW[0] * WINDOW[1]):
            yield level, (column + n % WINDOW[0]) % side, (row + n // WINDOW[0]) % side


class Users:
    """Threads that ask for the tiles, and compare what they get with the first answer for it."""

    def __init__(self, port: int) -> None:
        self.port, self.wrong, self.first, self.sizes = port, 0, dict[Tile, int](), dict[Tile, int]()
        self.lock, self.left = threading.Lock(), False

    def ask(self, tiles: Iterator[Tile], advance: Callable[[int], None]) -> None:
        while True:
            with self.lock:
                tile = next(tiles, None)
            if tile is None:
                return
            try:
                status, body = self.get(tile)
            except (OSError, http.client.HTTPException):
                if self.left:
                    return  # the workload ends before its time, the workers first
                raise
            with self.lock:
                self.sizes[tile] = len(body)
                self.wrong += status != 200 or self.first.setdefault(tile, hash(body)) != hash(body)
                advance(1)

    def get(self, tile: Tile) -> tuple[int, bytes]:
        """The status of the answer, and its body."""
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)) as connection:
            connection.request("GET", "/" + "/".join(map(str, tile)))
            answer = connection.getresponse()
            return answer.status, answer.read()

    def leave(self) -> None:
        """From now on the users end, if no worker answers them."""
        self.left = True


# ---- the rounds ------------------------------------------------------------------------------


@dataclass
class Round:
    """The result of one kind of cache, over all workers."""

    kind: str
    memory: int
    requests: int
    renders: int
    seconds: float

    @property
    def hit_ratio(self) -> float:
        return 1 - self.renders / self.requests


def start_redis(run: Run, budget: int) -> tuple[str, int]:
    """(its socket, its process id)."""
    directory = run.folder()
    options = ["--port", "0", "--unixsocket", f"{directory}/socket", "--dir", str(directory), "--save", ""]
    limit = ["--maxmemory", str(budget), "--maxmemory-policy", "allkeys-lru"]
    server = subprocess.Popen(["redis-server", *options, *limit], stdout=subprocess.DEVNULL)
    run.stack.callback(server.wait)
    run.stack.callback(server.terminate)
    while not (directory / "socket").exists():
        if server.poll() is not None:
            raise RuntimeError("redis-server does not start")
        time.sleep(0.01)
    return f"{directory}/socket", server.pid


def measure(run: Run, kind: str, sizes: dict[Tile, int]) -> Round:
    """One kind of cache, from cold to warm."""
    options, budget, pids, pool, where = run.options, int(run.options.cache * MIB), list[int](), None, Any
    if kind == "shared":
        pool = run.pool(budget + 2 * MIB)
        pool.cache("tiles", limit=budget)
        where = pool.name
    elif kind == "redis":
        where, server = start_redis(run, budget)
        pids.append(server)
    else:
        where = budget if kind == "private" else budget // options.workers
    listening = run.stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=128))
    workers = [run.start(serve, kind, where, listening) for _ in range(options.workers)]
    for worker in workers:
        worker.get()
    pids += [worker.pid for worker in workers]
    segment = Path(pool.path if pool else "none")
    before = sum(sum(pss(pid, segment)) for pid in pids)
    users, tiles = Users(listening.getsockname()[1]), walks(np.random.default_rng(options.seed), options.requests)
    run.stack.callback(users.leave)  # before the callbacks that end the workers
    began = time.monotonic()
    with run.progress(f"serving: {kind}", options.requests) as advance:
        threads = [
            threading.Thread(target=users.ask, args=(tiles, advance), daemon=True) for _ in range(2 * options.workers)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    seconds = time.monotonic() - began
    counts = [stopped(worker) for worker in workers]
    memory = sum(sum(pss(pid, segment)) for pid in pids) - before
    requests, renders = map(sum, zip(*counts, strict=True))
    sizes.update(users.sizes)
    run.check(users.wrong == 0, f"{kind}: {requests:,} tiles served, {users.wrong} of them wrong")
    if pool is not None:
        run.check(pool.check() == [], "shared: every invariant holds")
        run.check(memory <= budget + 8 * MIB, f"shared: {mib(memory)} of memory, for a cache of {mib(budget)}")
    for worker in workers:
        worker.put("end")
        worker.end()
    return Round(kind, memory, requests, renders, seconds)


def stopped(worker: Worker) -> Any:
    worker.put("stop")
    return worker.get()


def work(run: Run) -> None:
    """Runs all rounds."""
    kinds = ["private", "quarter", "shared"]
    if shutil.which("redis-server") and find_spec("redis"):
        kinds.append("redis")
    sizes: dict[Tile, int] = {}
    rounds = [measure(run, kind, sizes) for kind in kinds]
    known = np.array(list(sizes.values()))
    run.say(f"{len(known):,} different tiles of {known.min():,} to {known.max():,} bytes, {mib(known.sum())} in all")
    run.table(
        f"{run.options.workers} workers, caches of {mib(run.options.cache * MIB)}",
        ("", "memory (PSS)", "hit ratio", "tiles computed", "requests/s"),
        [
            (r.kind, mib(r.memory), f"{r.hit_ratio:.1%}", f"{r.renders:,}", f"{r.requests / r.seconds:,.0f}")
            for r in rounds
        ],
    )
    private, quarter, shared = rounds[:3]
    run.check(
        shared.renders < private.renders, f"shared: {shared.renders:,} tiles computed, private: {private.renders:,}"
    )
    run.check(
        shared.renders < quarter.renders, f"shared: {shared.renders:,} tiles computed, quarter: {quarter.renders:,}"
    )
    run.check(shared.memory < private.memory, f"shared: {mib(shared.memory)} of memory, private: {mib(private.memory)}")
    run.plot(draw, rounds, run.options.workers)


def draw(rounds: list[Round], n_workers: int) -> Any:
    """Memory to the left, hit ratio to the right."""
    from matplotlib import pyplot

    figure, (memory, hits) = pyplot.subplots(1, 2, sharey=True, figsize=(9, 2.8))
    names = [r.kind for r in rounds]
    colors = [BLUE if r.kind == "shared" else GREEN if r.kind == "redis" else ORANGE for r in rounds]
    sizes, ratios = [r.memory / MIB for r in rounds], [r.hit_ratio for r in rounds]
    title = f"memory of {n_workers} workers' caches (PSS, MiB)"
    draw_bars(memory, title, names, [f"{size:.0f}" for size in sizes], (sizes, colors, ""))
    draw_bars(
        hits, "requests answered from the cache", names, [f"{ratio:.0%}" for ratio in ratios], (ratios, colors, "")
    )
    return figure


if __name__ == "__main__":
    main(
        work,
        workers=(4, 2, "worker processes"),
        cache=(16.0, 2.0, "size of each cache in MiB"),
        requests=(24_000, 900, "tiles that users ask for"),
    )
