"""A timer storm: a signal's handler raises at random moments, while the main thread uses a pool.

    python -m tests.support.timer_storm ROUNDS SEED FOLDER

In each round a timer (setitimer) is set to a random moment, and one operation runs: a hit, a miss, a write, an append, a flush, an
opening, a closing, a cache's put, and so on. Another client writes and loads at the same time, so that operations have to wait. At
the end another process must be able to use every page, and no lock may have an owner. Prints one line of JSON.
"""

import gc
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import bufferpool as bp
from bufferpool.figures.names import FrameState

PAGE, PAGES, FRAMES = 4096, 64, 40
MEAN_S = 0.0015
LIMIT_S = 60.0


class Struck(Exception):
    """The exception that the handler raises."""


armed = False


def strike(*_: object) -> None:
    if armed:
        raise Struck


def make(page_no: int, out: np.ndarray[Any, Any]) -> None:
    out[:] = page_no


def attempt(operation: Callable[[], object], seconds: float) -> bool:
    """Runs an operation under the timer. Returns whether the handler has raised."""
    global armed
    try:
        try:
            armed = True
            signal.setitimer(signal.ITIMER_REAL, seconds)
            operation()
        finally:
            armed = False
    except (
        Struck,
        bp.errors.StoreError,
        bp.errors.LoaderFailed,
    ) as error:  # a store cannot tell it from its own errors
        while error is not None and not isinstance(error, Struck):
            error = error.__cause__
        if error is None:
            raise
        return True
    except (bp.errors.PoolExhausted, bp.errors.WaitTimeout, bp.errors.SpaceNotFound, bp.errors.SpaceBusy, BufferError):
        pass  # BufferError: an interrupted call's job still uses the pool
    return False


def other_client(name: str) -> None:
    """Writes and loads at the same time, until its standard input ends."""
    pool = bp.Pool.attach(name)
    table, rng = pool.space("table", "r+"), random.Random(0)
    os.set_blocking(0, False)
    while True:
        try:
            if os.read(0, 1) == b"":
                break
        except BlockingIOError:
            pass
        with table.write(rng.randrange(PAGES)) as page:
            page[:] = rng.randrange(256)
        _ = table[rng.randrange(PAGES)][0]
        time.sleep(0.0005)
    pool.close()


def use_all(name: str) -> None:
    """Checks that no lock has an owner: another process gets every page, for reading and for writing, and each lock."""
    with bp.Pool.attach(name) as pool:
        table = pool.space("table", "r+")
        for n in range(PAGES):
            with table.write(n, timeout=LIMIT_S) as page:
                page[:] = 7
        pool.flush(timeout=LIMIT_S)
        pool.open_scratch("new", 4).remove(discard=True)
        pool.resize(FRAMES * PAGE, timeout=LIMIT_S)


def run_part(what: str, name: str, **more: Any) -> "subprocess.Popen[bytes]":
    code = f"from tests.support.timer_storm import {what}; {what}({name!r})"
    return subprocess.Popen([sys.executable, "-c", code], **more)


class Victim:
    """All operations of a process on a pool."""

    def __init__(self, name: str, path: Path, rng: random.Random) -> None:
        self.name, self.path, self.rng = name, path, rng
        self.attach()
        self.operations = [getattr(self, name) for name in dir(type(self)) if name.startswith("do_")]

    def attach(self) -> None:
        self.ready = False
        self.pool = bp.Pool.attach(self.name)
        self.table = self.pool.open_file(self.path, "r+", name="table", max_pages=1 << 16)
        self.made = self.pool.open_derived("made", PAGES, make)
        self.cache = self.pool.cache("cache")
        self.ready = True

    def any_page(self) -> int:
        return self.rng.randrange(PAGES)

    def do_read(self) -> None:
        for _ in range(8):
            page = self.made[self.any_page()]
            assert page.min() == page.max()

    def do_get(self) -> None:
        self.table.get(self.any_page(), timeout=1.0)

    def do_write(self) -> None:
        with self.table.write(self.any_page()) as page:
            page[:] = self.rng.randrange(256)

    def do_replace(self) -> None:
        with self.table.write(self.any_page(), fresh=True) as page:
            page[:] = self.rng.randrange(256)

    def do_append(self) -> None:
        if len(self.table) < 4 * PAGES:
            with self.table.append() as page:
                page[:] = 1

    def do_pin_many(self) -> None:
        with self.made.pin_many([self.any_page() for _ in range(8)]) as pages:
            assert len(pages) == 8

    def do_read_many(self) -> None:
        self.table.read_many([self.any_page() for _ in range(16)])

    def do_scan(self) -> None:
        for page in self.table.scan(0, 16):
            assert page.size == PAGE

    def do_prefetch(self) -> None:
        self.made.prefetch([self.any_page() for _ in range(8)])

    def do_flush(self) -> None:
        self.pool.flush()

    def do_flush_in_time(self) -> None:
        self.pool.flush(timeout=LIMIT_S)

    def do_drop(self) -> None:
        self.made.drop(self.any_page(), 1)

    def do_trim(self) -> None:
        self.pool.trim(8 * PAGE)

    def do_resize(self) -> None:
        self.pool.resize(self.rng.choice((FRAMES, FRAMES - 8)) * PAGE)

    def do_scratch(self) -> None:
        space = self.pool.open_scratch("own", 8, lifetime="process")
        with space.write(3) as page:
            page[:] = 3
        space.remove(discard=True)

    def do_open_again(self) -> None:
        self.pool.open_file(self.path, "r+", name="table", max_pages=1 << 16)
        self.pool.open_derived("made", PAGES, make)

    def do_open_and_close(self) -> None:
        with bp.Pool.attach(self.name) as pool:
            _ = pool.space("table")[self.any_page()][0]

    def do_close(self) -> None:
        """Everything is closed: the process detaches, and attaches again."""
        self.ready = False
        self.pool.close()
        self.attach()

    def do_put(self) -> None:
        self.cache.put(str(self.any_page()), bytes(self.rng.randrange(20_000)))

    def do_look(self) -> None:
        self.cache.get_or_load(str(self.any_page()), lambda key: key.encode())

    def do_reap_and_check(self) -> None:
        self.pool.reap()

    def settle(self) -> None:
        """After an interruption in do_close() the process may have no pool."""
        end = time.monotonic() + LIMIT_S
        while not self.ready:
            gc.collect()  # an interrupted frame may be in a cycle with its exception
            try:
                self.pool.close()
                self.attach()
            except BufferError:  # the job of an interrupted flush ends first
                if time.monotonic() > end:
                    raise
                time.sleep(0.01)


def storm(rounds: int, seed: int, folder: Path) -> dict[str, object]:
    rng = random.Random(seed)
    name, path = f"bptest-{os.getpid()}-timer", folder / "table.db"
    path.write_bytes(bytes(PAGE * PAGES))
    sys.unraisablehook = lambda *_: None  # raised where an object is freed: the interpreter drops it
    signal.signal(signal.SIGALRM, strike)
    keeper = bp.Pool.create(name, FRAMES * PAGE, page_size=PAGE, max_capacity=4 << 20)
    other = None
    try:
        keeper.open_file(path, "r+", name="table", max_pages=1 << 16)
        keeper.close()
        victim = Victim(name, path, rng)
        other = run_part("other_client", name, stdin=subprocess.PIPE)
        struck = 0
        for _ in range(rounds):
            victim.settle()
            struck += attempt(rng.choice(victim.operations), rng.expovariate(1 / MEAN_S) + 1e-6)
        signal.setitimer(signal.ITIMER_REAL, 0)
        other.communicate(timeout=LIMIT_S)
        victim.settle()
        victim.pool.flush(timeout=LIMIT_S)
        gc.collect()
        pool = victim.pool
        use_all_code = run_part("use_all", name).wait(4 * LIMIT_S)
        pins = sum(client.pins for client in pool.clients())
        busy = int(np.count_nonzero(pool.frames()["state"] == FrameState.BUSY))
        found = {
            "struck": struck, "other": other.returncode, "use_all": use_all_code, "pins": pins, "busy": busy,
            "check": pool.check(), "clients": len(pool.clients()),
        }  # fmt: skip
        pool.close()
        return found
    finally:
        signal.signal(signal.SIGALRM, signal.SIG_IGN)
        if other is not None and other.poll() is None:
            other.kill()
        bp.Pool.remove(name, discard=True)


def main() -> None:
    print(json.dumps(storm(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))))


if __name__ == "__main__":
    main()
