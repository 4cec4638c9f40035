"""A process of tests/core/test_no_memory.py: every request of the core for memory fails in turn, in each operation.

Arguments: the pool's name, a file for its pages, and whether all requests after the one that fails do, too.
"""

import ctypes
import os
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import bufferpool as bp
from bufferpool.observer import Observer

PAGE, PAGES = 4096, 300


def _prepare() -> ctypes.CDLL:
    """The preloaded library, which then knows where the core is."""
    library = ctypes.CDLL(None)
    library.fail_at.argtypes = [ctypes.c_long, ctypes.c_int]
    library.how_many_failed.restype = ctypes.c_long
    with open("/proc/self/maps") as maps:
        ranges = [line.split()[0].split("-") for line in maps if line.rstrip().endswith(bp._core.__file__)]
    library.the_core_is(ctypes.c_void_p(int(ranges[0][0], 16)), ctypes.c_void_p(int(ranges[-1][1], 16)))
    return library


def _operations(pool: bp.Pool, path: str) -> dict[str, tuple[Callable[[], Any] | None, Callable[[], Any]]]:
    """name: (what comes before it, with memory; the operation)."""
    table = pool.open_file(path, "r+")
    every = list(range(PAGES))

    def write_some() -> None:
        for n in range(0, PAGES, 20):
            with table.write(n) as page:
                page[0] = 1

    def pin_many() -> None:
        with table.pin_many(every) as pages:
            assert all(page[0] in (0, 1) for page in pages)

    def pin() -> None:
        with table.pin(5) as page:
            assert page[0] in (0, 1)

    def fork() -> None:
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0

    def append() -> None:
        with table.append() as page:
            page[0] = 1

    def observe() -> None:
        with Observer(pool.name) as seen:
            seen.stats()

    read = partial(table.read_many, every)
    return {
        "flush": (write_some, pool.flush),
        "checkpoint": (write_some, pool.checkpoint),
        "write": (None, write_some),
        "append": (None, append),
        "pin": (None, pin),
        "pin_many": (None, pin_many),
        "read_many": (None, read),
        "miss": (table.drop, lambda: table[7]),
        "scan": (table.drop, lambda: [page[0] for page in table.scan(0, 50)]),
        "trim": (read, lambda: pool.trim("256KiB")),
        "drop": (read, lambda: table.drop(0, 100)),
        "resize": (read, lambda: (pool.resize("1MiB"), pool.resize("2MiB"))),
        "fork": (None, fork),
        "check": (None, pool.check),
        "reap": (None, pool.reap),
        "advise": (None, pool.advise),
        "frames": (None, lambda: pool.client.seg.raw_frames()),
        "pins": (None, lambda: pool.client.seg.raw_pins()),
        "clients": (None, pool.clients),
        "events": (None, lambda: pool.client.seg.events()),
        "status": (None, lambda: (pool.client.seg.status(), pool.client.seg.summary(), pool.client.seg.counters())),
        "open a space": (None, lambda: pool.open_scratch("more", 10, lifetime="process").close()),
        "open a file": (None, lambda: pool.open_file(path, "r+")),
        "attach": (None, lambda: bp.Pool.attach(pool.name).close()),
        "observe": (None, observe),
    }


def main() -> None:
    library, switch = _prepare(), os.getppid
    name, path, everything = sys.argv[1], sys.argv[2], int(sys.argv[3])
    pool = bp.Pool.create(name, "2MiB", page_size=PAGE, min_capacity="64KiB", extent_size="16KiB")
    for what, (before, operation) in _operations(pool, path).items():
        failed = at = 1
        while failed:
            if before is not None:
                before()
            library.fail_at(at, everything)
            switch()
            try:
                operation()
            except MemoryError:
                pass
            finally:
                switch()
            failed = library.how_many_failed()
            found = pool.check()
            assert found == [], f"{what}, request {at}: {found}"
            at += 1
        print(what, at - 2, flush=True)
    pool.close()


if __name__ == "__main__":
    main()
