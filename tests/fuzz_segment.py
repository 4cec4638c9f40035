"""Damages live segments and uses them: nothing may crash, hang, or leave the segment.

    python tests/fuzz_segment.py --seed 1 --rounds 5000 [--mutations 3]

Every round takes a fresh copy of one segment (a file space, a scratch space, a
derived space, dirty, dropped and superseded pages, and a client that died in a
write block), changes a few words of it through a mapping of its own, and runs
operations on it. Each must end, within seconds, in a result or a typed error.
The rounds run in a child process, so that a crash is seen as its end; the round
number is the seed, so that every finding can be run again:

    python tests/fuzz_segment.py --seed N --rounds 1 --mutations M
"""

import argparse
import faulthandler
import json
import mmap
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

import bufferpool as bp
from bufferpool import directory as _directory
from bufferpool import pool as _pool

PAGE, EXTENT = 4096, 16384
FRAMES, MOST, PAGES = 32, 256, 8192
FILE_PAGES, SCRATCH_PAGES, DERIVED_PAGES = 48, 16, 24
CLIENTS = 8
HANG_S, STUCK_S = 3.0, 7.0  # an operation that a signal ends; one that none does
DEAD = 1  # the client of the template, which died


# ---- where things are -----------------------------------------------------------


@dataclass(frozen=True)
class Layout:
    """Offsets of one segment (core/layout.h)."""

    max_frames: int
    max_clients: int
    stripe_clients: int
    capacity: int
    max_pages: int
    clients_at: int
    spaces_at: int
    entries_at: int
    frames_at: int
    pins_at: int
    stripe_bytes: int
    queues_at: int
    data_at: int
    total: int

    @classmethod
    def of(cls, header: bytes) -> "Layout":
        numbers = struct.unpack_from("<8I10Q", header, 40)
        return cls(*numbers[4:])


CLIENT, INTENTS, SPACE, FRAME = 3392, 1344, 1216, 32
HEADER = {
    "budget": (192, 4), "frames_ready": (196, 4), "policy_tag": (200, 4), "durable_lsn": (208, 8),
    "memory lock": (256, 4), "directory lock": (260, 4), "growth lock": (264, 4),
    "resident": (320, 4), "old_frames": (324, 4),
    "policy.now": (328, 4), "policy.hev": (332, 4), "policy.frames": (336, 4), "policy.cold_target": (340, 4),
    "policy.capacity": (344, 4), "policy.cold.head": (352, 4), "policy.cold.count": (356, 4),
    "policy.hot.head": (360, 4), "policy.hot.count": (364, 4),
    "attaches": (384, 8), "folded": (392, 8),
}  # fmt: skip
CLIENT_FIELDS = {
    "state": (0, 4), "pid": (4, 4), "start_time": (8, 8), "attached_ns": (16, 8), "generation": (24, 8), "folded": (32, 4),
    "name": (36, 8),
}  # fmt: skip
INTENT_FIELDS = {"op": (0, 4), "page": (4, 4), "frame": (8, 4), "old": (12, 4), "victim": (16, 4)}
SPACE_FIELDS = {
    "extent": (0, 8), "reserved": (8, 8), "stored": (16, 8), "entries_ready": (24, 8), "state": (32, 4), "kind": (36, 4),
    "flags": (40, 4), "owner": (44, 4), "first_entry": (48, 4), "max_pages": (52, 4), "flush_lock": (56, 4),
    "flush_open": (60, 4), "device": (64, 8), "inode": (72, 8), "size_bytes": (80, 8), "mtime_ns": (88, 8),
    "owner_generation": (96, 8), "name": (104, 8), "name end": (160, 8), "path": (168, 8),
}  # fmt: skip


# ---- changing them ----------------------------------------------------------------


class Mutator:
    """Changes words of a segment, chosen by a seeded generator."""

    def __init__(self, shm: mmap.mmap, rng: random.Random, early: bool) -> None:
        self.shm, self.rng = shm, rng
        self.early = early  # nobody is attached yet: the dead client is dead, and its slot is not taken again
        self.layout = Layout.of(shm[:256])
        self.done: list[str] = []

    def client(self) -> int:
        """A client's number, of none that lives or will: waiting for the living is right."""
        return self.rng.choice([0, 7, 8, 9, 200, 511, DEAD if self.early else 8])

    def never_living(self, entry: int) -> int:
        """The entry word, with no owner and no flusher that may live."""
        for shift in (8, 17):
            if 1 <= (entry >> shift & 511) <= 6 and not (self.early and (entry >> shift & 511) == DEAD):
                entry ^= (entry >> shift & 511 ^ 7) << shift
        return entry

    def entry(self) -> int:
        r = self.rng
        frame = r.choice([0, r.randrange(FRAMES), r.randrange(MOST), MOST, MOST - 1, 128, 2**32 - 1, r.getrandbits(32)])
        flusher = r.choice([0, 0, self.client()])
        return frame << 32 | flusher << 17 | self.client() << 8 | r.getrandbits(8)

    def frame(self) -> int:
        r = self.rng
        page = r.choice([0, r.randrange(64), r.randrange(PAGES), PAGES, 2**32 - 1, r.getrandbits(32)])
        return page << 32 | self.client() << 3 | r.getrandbits(3)

    def number(self, bits: int) -> int:
        r = self.rng
        near = r.choice([FRAMES, MOST, PAGES, FILE_PAGES, SCRATCH_PAGES, CLIENTS, 128, 432, 1 << 40, 1 << 31, 1 << 61])
        value = r.choice(
            [
                0,
                1,
                2,
                3,
                2**bits - 1,
                2**bits - r.randrange(1, 600),
                near + r.randrange(-2, 3),
                r.getrandbits(bits),
                r.randrange(512),
            ]
        )
        return value % 2**bits

    def place(self) -> tuple[str, int, int, str]:
        """(what, offset, bytes, kind of value)"""
        r, at = self.rng, self.layout
        area = r.choice(["header"] * 5 + ["client", "intent", "intent", "space", "space", "space"] + ["entry"] * 4
                        + ["frame"] * 4 + ["pins", "ring", "ring", "bitmap", "bitmap"])  # fmt: skip
        if area == "header":
            name = r.choice(sorted(HEADER))
            return name, *HEADER[name], "lock" if "lock" in name else "number"
        if area == "client":
            c, name = r.randrange(1, 4), r.choice(sorted(CLIENT_FIELDS))
            offset, size = CLIENT_FIELDS[name]
            return f"client {c + 1} {name}", at.clients_at + c * CLIENT + offset, size, "number"
        if area == "intent":
            c, i, name = r.randrange(3), r.randrange(3), r.choice(sorted(INTENT_FIELDS))
            base = at.clients_at + c * CLIENT + INTENTS + i * 32
            if r.random() < 0.5:  # a whole one
                return f"intent {c + 1}.{i}", base, 20, "intent"
            return f"intent {c + 1}.{i} {name}", base + INTENT_FIELDS[name][0], 4, "number"
        if area == "space":
            i, name = r.choice([0, 1, 2, 3, 4, 63]), r.choice(sorted(SPACE_FIELDS))
            offset, size = SPACE_FIELDS[name]
            return f"space {i} {name}", at.spaces_at + i * SPACE + offset, size, "lock" if "lock" in name else "number"
        if area == "entry":
            unit = 512  # entries lie in whole OS pages
            page = r.choice([0, unit, 3 * unit, 4 * unit]) + r.randrange(FILE_PAGES)
            return f"entry {page}", at.entries_at + 8 * page, 8, "entry"
        if area == "frame":
            f = r.randrange(FRAMES + 4)
            if r.random() < 0.2:
                return f"frame {f} slot", at.frames_at + FRAME * f + 8 * r.randrange(1, 3), 8, "number"
            return f"frame {f}", at.frames_at + FRAME * f, 8, "frame"
        if area == "pins":
            f, c = r.randrange(FRAMES), r.randrange(CLIENTS)
            offset = at.pins_at + (c % 8) * at.stripe_bytes + (f * at.stripe_clients + c // 8) * 2
            return f"pins of {c + 1} on {f}", offset, 2, "number"
        words = (at.max_frames + 63) // 64 + (at.max_frames + 4095) // 4096 + (at.max_frames + 262143) // 262144
        if area == "bitmap":
            which, i = r.randrange(2), r.randrange(words)
            return f"bitmap {('free', 'holes')[which]} {i}", at.queues_at + 8 * (which * words + i), 8, "bits"
        which, i = r.randrange(2), r.randrange(FILE_PAGES)
        offset = at.queues_at + 16 * words + 8 * (which * at.capacity + i)
        return f"ring {('cold', 'hot')[which]} {i}", offset, 8, "element"

    def mutate(self) -> None:
        r = self.rng
        what, at, size, kind = self.place()
        old = self.shm[at : at + size]
        if kind == "intent":
            page, entry = r.randrange(PAGES), r.choice([r.randrange(512), 2**32 - 1, PAGES, r.getrandbits(32)])
            frame = r.choice([r.randrange(FRAMES), MOST, 2**32 - 1, r.getrandbits(32)])
            new = struct.pack(
                "<5I", r.randrange(8), r.choice([entry, page, r.randrange(48)]), frame, entry, r.choice([page, entry])
            )
        else:
            value = {"entry": self.entry, "frame": self.frame}.get(kind, lambda: self.number(8 * size))()
            if kind == "lock":
                value = self.client() | r.choice([0, 1 << 31, 1 << 30, 3 << 30, r.getrandbits(21) << 9])
            elif kind in ("entry", "frame") and r.random() < 0.3:  # the word of another, or a flipped bit
                value = int.from_bytes(old, "little") ^ 1 << r.randrange(64)
            elif kind == "bits":
                value = r.choice(
                    [0, 2**64 - 1, r.getrandbits(64), int.from_bytes(old, "little") ^ 1 << r.randrange(64)]
                )
            elif kind == "element":
                value = r.choice([r.randrange(64), PAGES - 1, 2**32 - 1, r.randrange(PAGES)]) << 32 | r.getrandbits(32)
            if kind == "entry":
                value = self.never_living(value)
            new = value.to_bytes(size, "little")
        self.shm[at : at + size] = new
        self.done.append(f"{what}: {old[::-1].hex()} -> {new[::-1].hex()}")


# ---- one segment, to be copied ------------------------------------------------------


def _loader(page_no: int, out: Any) -> None:
    out[:] = page_no % 251


class Store:
    """The template: the sparse content of a segment, and the file behind its file space."""

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
        """A pool with everything in it; its process ends in the midst of a write."""
        pool = bp.Pool.create("template", FRAMES * PAGE, page_size=PAGE, max_capacity=MOST * PAGE, extent_size=EXTENT,
                              max_clients=CLIENTS, max_pages=PAGES, directory=self.place)  # fmt: skip
        file = pool.open_file(self.file, "r+", name="file", max_pages=FILE_PAGES + 64)
        scratch = pool.scratch("scratch", SCRATCH_PAGES)
        derived = pool.open_derived("derived", DERIVED_PAGES, _loader)
        own = pool.scratch("own", 4, owner="client")
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
    """Everything that can be done with a pool, each bounded in time."""

    def handle(name: str) -> Any:
        if name not in spaces:
            if name == "file":
                spaces[name] = pool.open_file(file_path, "r+", name="file", max_pages=FILE_PAGES + 64)
            elif name == "scratch":
                spaces[name] = pool.scratch("scratch", SCRATCH_PAGES)
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
        pool.resize(rng.choice([8, 16, 48, MOST]) * PAGE, timeout=0.05)

    def frames() -> None:
        pool.frames()
        pool.extents()

    def lists() -> None:
        pool.clients()
        for record in pool._seg.spaces():
            assert record["index"] < 64

    def by_name() -> None:
        for name in ("file", "scratch", "own"):
            with suppress(*TYPED):
                len(pool.space(name))

    def scratch() -> None:
        space = pool.scratch(f"new{rng.randrange(3)}", 20, owner="client")
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
        ("prefetch", prefetch), ("write", write), ("append", append), ("drop", drop), ("scan", scan), ("resize", resize),
        ("trim", lambda: pool.trim()), ("trim bytes", lambda: pool.trim(bytes=8 * PAGE)), ("trim idle", lambda: pool.trim(idle=0)),
        ("flush", lambda: pool.flush()), ("stats", lambda: pool.stats()), ("frames", frames), ("lists", lists),
        ("check", lambda: pool.check()), ("reap", lambda: pool.reap()), ("by name", by_name), ("scratch", scratch),
        ("remove", remove), ("second", second), ("changed file", touch_file),
    ]  # fmt: skip


# ---- rounds ---------------------------------------------------------------------------


class Rounds:
    """Runs in the child process: announces every operation, reports every finding."""

    def __init__(self, store: Store, say: Callable[[dict[str, Any]], None], note: int, mutations: int) -> None:
        self.store, self.say, self.note, self.mutations = store, say, note, mutations
        self.kept: list[Any] = []  # what cannot be closed
        self.seed, self.label = 0, ""

    def announce(self, op: str) -> None:
        os.pwrite(self.note, json.dumps([self.seed, op, self.label]).ljust(1000).encode()[:1000], 0)

    def run(self, op: str, do: Callable[[], Any]) -> bool:
        """False after a hang: the segment is of no further use."""
        self.announce(op)
        began = time.monotonic()
        faulthandler.dump_traceback_later(STUCK_S, exit=True)
        signal.setitimer(signal.ITIMER_REAL, HANG_S)
        how = detail = ""
        try:
            do()
        except Hang:
            how = "hang"
        except TYPED:
            pass
        except Exception as error:  # noqa: BLE001  a finding
            how, detail = "untyped", repr(error)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            faulthandler.cancel_dump_traceback_later()
        if not how and time.monotonic() - began > HANG_S:
            how = "hang"
        if how:
            self.say({"seed": self.seed, "op": op, "how": how, "detail": detail, "did": self.label})
        return how != "hang"

    def round(self, seed: int) -> None:
        self.seed, self.label = seed, ""
        rng = random.Random(seed)
        store, name = self.store, f"r{seed}"
        store.restore_file()
        fd = store.copy(name)
        spaces: dict[str, Any] = {}
        pools: list[bp.Pool] = []
        try:
            with mmap.mmap(fd, store.size) as shm:
                self.steps(rng, shm, name, spaces, pools)
                header = shm[:192]
            about = os.fstat(fd)
            if header != store.runs[0][1][:192] or about.st_size != store.size or about.st_blocks * 512 > store.size:
                self.say(
                    {
                        "seed": seed,
                        "op": "end",
                        "how": "outside",
                        "detail": "the header or the size changed",
                        "did": self.label,
                    }
                )
        finally:
            os.close(fd)
            (store.place / name).unlink(missing_ok=True)

    def steps(
        self, rng: random.Random, shm: mmap.mmap, name: str, spaces: dict[str, Any], pools: list[bp.Pool]
    ) -> None:
        store = self.store
        early = rng.random() < 0.3
        mutator = Mutator(shm, rng, early)

        def damage() -> None:
            for _ in range(rng.randint(1, self.mutations)):
                mutator.mutate()
            self.label = "; ".join(mutator.done[-self.mutations :])

        if early:
            damage()
        ok = self.run("attach", lambda: pools.append(bp.Pool.attach(name, directory=store.place)))
        if not pools or not ok:
            return
        pool = pools[0]
        ops = operations(pool, store.place, store.file, rng, spaces)
        if not early:
            for op, do in rng.sample(ops, 4):
                if not self.run(op, do):
                    self.kept.append((pool, spaces))
                    return
            in_write = rng.random() < 0.15 and "scratch" in spaces

            def damage_in_write() -> None:
                with spaces["scratch"].write(rng.randrange(4), timeout=0.1):
                    damage()

            if in_write:
                ok = self.run("damage in a write block", damage_in_write)
            else:
                damage()
        for op, do in rng.sample(ops, 12):
            ok = ok and self.run(op, do)
        del ops
        spaces.clear()
        ok = ok and self.run("close", pool.close)
        if not ok or not pool._closed:
            self.kept.append(pool)


def child(place: Path, first: int, rounds: int, mutations: int, seconds: float, note: int, out: int) -> None:
    """The child process: rounds first, first + 1, …"""
    warnings.simplefilter("ignore")
    np.seterr(all="ignore")
    faulthandler.enable()
    _pool._ROOM_S = _directory.BUSY_S = 0.05  # type: ignore[attr-defined]

    def on_alarm(*_: object) -> None:
        raise Hang

    signal.signal(signal.SIGALRM, on_alarm)
    run = Rounds(
        Store(place), lambda finding: void(os.write(out, (json.dumps(finding) + "\n").encode())), note, mutations
    )
    end = time.monotonic() + seconds
    for seed in range(first, first + rounds):
        run.round(seed)
        if time.monotonic() > end:
            break
    run.seed, run.label = seed + 1, ""
    run.announce("done")
    os._exit(0)


def void(_: object) -> None:
    pass


@dataclass
class Finding:
    """One thing that must not happen."""

    seed: int
    op: str
    how: str  # "signal 11", "hang", "stuck" (not even a signal ends it), "untyped", "outside"
    detail: str
    did: str

    def __str__(self) -> str:
        return f"seed {self.seed}: {self.how} in {self.op}, after {self.did} {self.detail}"


def fuzz(
    seed: int, rounds: int, mutations: int = 3, seconds: float = 1e9, findings: int = 10**9
) -> tuple[int, list[Finding]]:
    """Runs rounds in child processes; returns how many were run, and what was found."""
    end, first, found = time.monotonic() + seconds, seed, list[Finding]()
    while first < seed + rounds and time.monotonic() < end and len(found) < findings:
        place = Path(tempfile.mkdtemp(prefix=f"bptest-{os.getpid()}-fuzz", dir="/dev/shm"))
        try:
            first = _one_child(place, first, seed + rounds - first, mutations, end - time.monotonic(), found)
        finally:
            shutil.rmtree(place)
    return first - seed, found


def _one_child(place: Path, first: int, rounds: int, mutations: int, seconds: float, found: list[Finding]) -> int:
    note, out = place / "note", place / "findings"
    note.touch()
    out.touch()
    command = [sys.executable, __file__, "--child", str(place), "--seed", str(first), "--rounds", str(rounds),
               "--mutations", str(mutations), "--seconds", str(seconds)]  # fmt: skip
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=min(max(seconds, 0), 1e6) + 60
        )
        code, err = done.returncode, done.stderr
    except subprocess.TimeoutExpired:
        code, err = -9, "no end"
    found += [Finding(**json.loads(line)) for line in out.read_text().splitlines()]
    told = json.loads(note.read_text() or '[0, "start", ""]')
    if told[1] == "done":
        return int(told[0])
    if told[1] == "start":
        raise RuntimeError(f"the rounds did not start: {err}")
    at = max(int(told[0]), first)
    how = "stuck" if "Timeout (" in err else f"signal {-code}" if code < 0 else f"exit code {code}"
    where = " | ".join(line.strip() for line in err.splitlines() if "File " in line)[:300]
    found.append(Finding(at, told[1], how, where or err[-300:], told[2]))
    return at + 1


def _arguments() -> Iterator[argparse.Namespace]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--mutations", type=int, default=3, help="at most so many in a round")
    parser.add_argument("--seconds", type=float, default=1e9)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    yield parser.parse_args()


def main() -> int:
    (args,) = _arguments()
    if args.child:
        note = os.open(args.child / "note", os.O_RDWR)
        out = os.open(args.child / "findings", os.O_WRONLY | os.O_APPEND)
        child(args.child, args.seed, args.rounds, args.mutations, args.seconds, note, out)
    began = time.monotonic()
    rounds, found = fuzz(args.seed, args.rounds, args.mutations, args.seconds)
    for finding in found:
        print(finding)
    print(f"{rounds} rounds in {time.monotonic() - began:.0f} s: {len(found)} findings")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
