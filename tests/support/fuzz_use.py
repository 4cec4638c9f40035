"""The segment that the fuzzer damages, and all operations that it tries (fuzz_segment.py)."""

import os
import random
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import bufferpool as bp
from tests.support.fuzz_damage import (
    CLIENTS,
    DERIVED_PAGES,
    EXTENT,
    FILE_PAGES,
    FRAMES,
    MOST,
    PAGE,
    PAGES,
    SCRATCH_PAGES,
)

# ---- one segment, to be copied ------------------------------------------------------


def _loader(page_no: int, out: Any) -> None:
    out[:] = page_no % 251


class Template:
    """The sparse content of a segment, and the file behind its file space."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.file = place / "data.db"
        self.content = bytes(range(256)) * (FILE_PAGES * PAGE // 256)
        self.file.write_bytes(self.content)
        template = place / "template"
        pid = os.fork()
        if pid == 0:
            try:
                self._make(template)
            except BaseException:  # noqa: BLE001  the parent says so
                import traceback

                traceback.print_exc()
            os._exit(1)
        assert os.waitpid(pid, 0)[1] == 0, "the template cannot be made"
        fd = os.open(template, os.O_RDONLY)
        self.size = os.fstat(fd).st_size
        self.runs: list[tuple[int, bytes]] = []
        at = 0
        with suppress(OSError):  # ENXIO: no data any more
            while True:
                at = os.lseek(fd, at, os.SEEK_DATA)
                end = os.lseek(fd, at, os.SEEK_HOLE)
                self.runs.append((at, os.pread(fd, end - at, at)))
                at = end
        os.close(fd)
        about = os.stat(self.file)
        self.written = bytes(self.file.read_bytes())
        self.times = (about.st_atime_ns, about.st_mtime_ns)

    def _make(self, template: Path) -> None:
        """A pool with all kinds of spaces and pages. Its process dies during a write."""
        pool = bp.Pool.create("template", FRAMES * PAGE, page_size=PAGE, max_capacity=MOST * PAGE, room=2 * MOST * PAGE, extent_size=EXTENT,
                              max_clients=CLIENTS, max_pages=PAGES, directory=self.place)  # fmt: skip
        file = pool.open_file(self.file, "r+", name="file", max_pages=FILE_PAGES + 64)
        scratch = pool.open_scratch("scratch", SCRATCH_PAGES)
        derived = pool.open_derived("derived", DERIVED_PAGES, _loader)
        own = pool.open_scratch("own", 4, lifetime="process")
        for n in list(range(FILE_PAGES)) * 2:
            _ = file[n][0]
        for n in range(DERIVED_PAGES):
            _ = derived[n][0]
        keep = [file[3], scratch[1]]
        for space, pages in ((file, (3, 4, 5, 40)), (scratch, (0, 1, 2)), (own, (0,))):
            for n in pages:
                with space.write(n) as page:
                    page[:] = n + 1
        with file.append() as page:
            page[:] = 77
        derived.drop(0, 4)
        opened = [file.write(4), scratch.write(2)]
        for write in opened:
            write.__enter__()
        assert keep
        os._exit(0)  # with everything open: the client dies here

    def restore_file(self) -> None:
        """The file as it was, down to its inode and time."""
        with suppress(FileNotFoundError):
            about = os.stat(self.file)
            if about.st_mtime_ns == self.times[1] and about.st_size == len(self.written):
                return
        fd = os.open(self.file, os.O_RDWR | os.O_CREAT)
        os.ftruncate(fd, len(self.written))
        os.pwrite(fd, self.written, 0)
        os.utime(fd, ns=self.times)
        os.close(fd)

    def copy(self, name: str) -> int:
        """A fresh copy under a name; returns a descriptor of it."""
        fd = os.open(self.place / name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        os.ftruncate(fd, self.size)
        for at, data in self.runs:
            os.pwrite(fd, data, at)
        return fd


# ---- operations -----------------------------------------------------------------------


class Hang(BaseException):
    """An operation took longer than HANG_S, and a signal could end it."""


Ops = list[tuple[str, Callable[[], Any]]]
TYPED = (bp.errors.BufferPoolError, BufferError, ValueError, InterruptedError, FileNotFoundError, PermissionError)


def operations(pool: bp.Pool, place: Path, file_path: Path, rng: random.Random, spaces: dict[str, Any]) -> Ops:
    """All operations of a pool, each with a time limit."""

    def handle(name: str) -> Any:
        if name not in spaces:
            if name == "file":
                spaces[name] = pool.open_file(file_path, "r+", name="file", max_pages=FILE_PAGES + 64)
            elif name == "scratch":
                spaces[name] = pool.open_scratch("scratch", SCRATCH_PAGES)
            else:
                spaces[name] = pool.open_derived("derived", DERIVED_PAGES, _loader)
        return spaces[name]

    names = ["file", "scratch", "derived"]

    def some() -> Any:
        return handle(rng.choice(names))

    def page_of(space: Any) -> int:
        return rng.choice([rng.randrange(8), max(0, len(space) - 1), rng.randrange(max(1, min(len(space), 4000)))])

    def read() -> None:
        space = some()
        for _ in range(12):
            page = space[page_of(space)]
            assert page.shape == (PAGE,)
            page.sum()

    def read_all() -> None:
        space = some()
        for n in range(min(len(space), 64)):
            space[n].sum()

    def pin() -> None:
        space = some()
        with space.pin(page_of(space)) as page:
            page.sum()

    def pin_many() -> None:
        space = some()
        space.pin_many([page_of(space) for _ in range(5)]).release()

    def read_many() -> None:
        space = some()
        space.read_many([page_of(space) for _ in range(20)]).sum()

    def prefetch() -> None:
        space = some()
        space.prefetch([page_of(space) for _ in range(20)])

    def write() -> None:
        space = handle(rng.choice(names[:2]))
        for _ in range(3):
            with space.write(page_of(space), timeout=0.1) as page:
                page[:] = 1

    def as_one() -> None:
        with pool.publish_many() as group:
            for name in names[:2]:
                group.write(handle(name), page_of(handle(name)), timeout=0.1)[:] = 3

    def append() -> None:
        with handle(rng.choice(names[:2])).append() as page:
            page[:] = 2

    def drop() -> None:
        space = some()
        space.drop(rng.randrange(8), 3)

    def scan() -> None:
        for i, page in enumerate(some().scan()):
            page.sum()
            if i > 40:
                break

    def resize() -> None:
        pool.resize(rng.choice([8, 16, 48, MOST]) * PAGE, timeout=0.01)

    def frames() -> None:
        pool.frames()
        pool.extents()

    def lists() -> None:
        pool.clients()
        for record in pool.client.seg.spaces():
            assert record["index"] < 64

    def by_name() -> None:
        for name in ("file", "scratch", "own"):
            with suppress(*TYPED):
                len(pool.space(name))

    def scratch() -> None:
        space = pool.open_scratch(f"new{rng.randrange(3)}", 20, lifetime="process")
        with space.write(3, timeout=0.1) as page:
            page[:] = 3
        space.close()

    def remove() -> None:
        name = rng.choice(names)
        space = spaces.pop(name, None) or handle(name)
        spaces.pop(name, None)
        space.remove(discard=rng.random() < 0.5)

    def second() -> None:
        other = bp.Pool.attach(pool.name, directory=place)
        try:
            space = other.open_file(file_path, "r", name="file")
            space[page_of(space)].sum()
            other.stats()
        finally:
            other.close()

    def touch_file() -> None:
        os.utime(file_path)
        pool.open_file(file_path, "r", name="file")

    return [
        ("read", read), ("read all", read_all), ("pin", pin), ("pin_many", pin_many), ("read_many", read_many),
        ("prefetch", prefetch), ("write", write), ("as one", as_one), ("append", append), ("drop", drop), ("scan", scan), ("resize", resize),
        ("trim", lambda: pool.trim()), ("trim bytes", lambda: pool.trim(8 * PAGE)), ("trim idle", lambda: pool.trim_idle(0)),
        ("flush", lambda: pool.flush()), ("stats", lambda: pool.stats()), ("frames", frames), ("lists", lists),
        ("check", lambda: pool.check()), ("reap", lambda: pool.reap()), ("by name", by_name), ("advise", lambda: pool.advise()), ("events", lambda: pool.events()), ("scratch", scratch),
        ("remove", remove), ("second", second), ("changed file", touch_file),
    ]  # fmt: skip
