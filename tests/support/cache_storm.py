"""The storm over a cache: processes get, put, delete, load and resize, and are killed at random moments.

    python tests/support/cache_storm.py --seconds 60
    python tests/support/cache_storm.py --kills 10000

A value has its key and its version in every word, so that a wrong or mixed value is always detected. The ledger, a file outside the
pool, records two numbers for every key: the last version that a process was about to put (`intended`), and the lowest version that a
process may still find (`floor`, a number for each process: the last version that it has put, seen or deleted). A key may be absent at
any time, because it may be evicted. The storm stops at intervals: then no worker lives, and nothing may be leaked. The exit code is 1
if a value was wrong, anything was leaked, or a process hung.
"""

import ctypes
import os
import random
import signal
import sys
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from typing import Any

import numpy as np

import bufferpool as bp
from bufferpool import errors

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))

from bufferpool.objects.cache import LOAD, Cache
from tests.support import deaths
from tests.support.deaths import alive, guarded

WORKERS = 5
KEPT, LOADED, KEYS = (
    30,
    60,
    240,
)
MIB = 1 << 20
LEAST, MOST, CLIENTS = 3 * MIB, 8 * MIB, 24
SLOW = "slow"  # a loader that sleeps, so that others wait for it and it is killed
OPS = {
    "get": 40, "put": 25, "delete": 4, "load": 15, "hold": 6, "look_again": 5, "resize": 1, "trim": 0.7, "clear": 0.1,
    "change": 3, "touch": 1, "expire": 2, "renew": 3, "failing": 2, "again": 1, "fork": 1, "count": 1, "remove": 1,
}  # fmt: skip
LEGAL = (errors.CacheRemoved, errors.PoolExhausted, errors.TooManyClients, errors.WaitTimeout)


class Wrong(AssertionError):
    """A value has a wrong key or version, or is mixed."""


class Failing(Exception):
    """A loader raises this on purpose."""


def size_of(key: int, version: int) -> int:
    """Words of a value: 3 to 128 Ki (1 MiB), so heavy-tailed that all values together do not fit."""
    dice = random.Random(key << 32 | version).paretovariate(0.3)
    return min(int(3 * dice), 128 << 10)


def value_of(key: int, version: int) -> Any:
    """An array for every other version, bytes for the rest."""
    words = np.arange(size_of(key, version), dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    words ^= np.uint64(key << 32 | version)
    return words if version % 2 else words.tobytes()


def look(value: Any, key: int) -> int:
    """The version of a value, every byte of which is compared. Raises Wrong."""
    words = value if isinstance(value, np.ndarray) else np.frombuffer(value, np.uint64)
    word = int(words[0]) if len(words) else 0
    found, version = word >> 32, word & 0xFFFFFFFF
    if found != key:
        raise Wrong(f"key {key} has the value of {found}, version {version}")
    right = value_of(key, version)
    if isinstance(right, np.ndarray) != isinstance(value, np.ndarray):
        raise Wrong(f"key {key}, version {version}, is a {type(value).__name__}")
    if not np.array_equal(words, right if isinstance(right, np.ndarray) else np.frombuffer(right, np.uint64)):
        raise Wrong(f"key {key}, version {version}, is mixed: {len(words)} words")
    return version


class Watched(Cache):
    """A cache that knows whether its last load was claimed. (All callers that waited load a value that cannot be kept.)"""

    claimed = False
    ledger: "Ledger"
    calm = -1  # calls of clear() that had begun before the claim, if all of them had ended; otherwise -1

    def begin(self, *args: Any) -> tuple[int, Any]:
        ended, begun = (
            int(self.ledger.clears[1].sum()),
            self.ledger.clears_begun,
        )  # in this order: equal means none runs
        self.calm = begun if begun == ended else -1
        outcome = super().begin(*args)
        self.claimed = outcome[0] == LOAD
        return outcome


class Ledger:
    """Arrays in a file that all processes of a run map."""

    def __init__(self, path: Path) -> None:
        parts = [
            ("head", np.uint64, (1,)), ("clears", np.int64, (2, WORKERS)), ("begun", np.int64, (LOADED,)), ("ops", np.uint64, (WORKERS,)), ("verified", np.uint64, (WORKERS,)),
            ("since", np.float64, (WORKERS,)), ("intended", np.uint32, (KEYS,)), ("loading", np.int64, (LOADED,)),
            ("floor", np.uint32, (WORKERS + 1, KEYS)),
        ]  # fmt: skip
        vars(self).update(deaths.shared_arrays(path, parts))

    head: Any
    clears: Any
    begun: Any
    ops: Any
    verified: Any
    since: Any
    intended: Any
    loading: Any
    floor: Any

    @property
    def clears_begun(self) -> int:
        """Calls of clear() that have begun; each worker counts its own, since two that add to one number lose one."""
        return int(self.clears[0].sum())

    @property
    def stop(self) -> bool:
        return bool(self.head[0])

    @stop.setter
    def stop(self, value: bool) -> None:
        self.head[0] = value


class Worker:
    """One process: takes a random operation, again and again."""

    def __init__(self, directory: Path, name: str, row: int, seed: int) -> None:
        self.name, self.row, self.random = name, row, random.Random(seed)
        self.ledger = Ledger(directory / "ledger")
        self.held: deque[tuple[int, int, Any]] = deque(maxlen=6)
        self.attach()

    def attach(self) -> None:
        while True:
            try:
                self.pool = bp.Pool.attach(self.name)
                break
            except errors.TooManyClients:
                time.sleep(0.002)
        self.pool.cache("storm")
        self.cache = Watched(self.pool, "storm")
        self.cache.ledger = self.ledger
        self.brief = self.pool.cache("brief", ttl=0.02)

    def run(self) -> None:
        names, weights, ledger = list(OPS), list(OPS.values()), self.ledger
        while not ledger.stop:
            ledger.since[self.row] = time.monotonic()
            with suppress(*LEGAL):
                getattr(self, self.random.choices(names, weights)[0])()
                ledger.ops[self.row] += 1
        ledger.since[self.row] = 0
        self.held.clear()
        if self.random.random() < 0.5:
            self.pool.close()

    # ---- checks

    def verify(self, value: Any, key: int, least: int) -> int:
        version = look(value, key)
        if not least <= version <= self.ledger.intended[key]:
            raise Wrong(f"key {key} has version {version}, not {least} to {self.ledger.intended[key]}")
        self.ledger.verified[self.row] += 1
        floor = self.ledger.floor[self.row]
        floor[key] = max(floor[key], version) if key >= LOADED else 0
        return version

    def least(self, key: int) -> int:
        return int(self.ledger.floor[:, key].max())

    def any_key(self) -> int:
        return min(int(self.random.expovariate(1 / 60)), KEYS - 1)

    def my_key(self) -> int:
        return LOADED + self.row + WORKERS * self.random.randrange((KEYS - LOADED) // WORKERS)

    # ---- operations

    def get(self) -> None:
        key = self.any_key()
        least = self.least(key)
        if (value := self.cache.get(key)) is not None:
            self.verify(value, key, least)

    def put(self) -> None:
        key, ledger = self.my_key(), self.ledger
        version = int(ledger.intended[key]) + 1
        ledger.intended[key] = version
        kept = self.cache.put(key, value_of(key, version))
        if kept is not False:
            ledger.floor[self.row, key] = version
        elif (value := self.cache.get(key)) is not None:  # it was not kept, so no older value may remain
            self.verify(value, key, version)

    def change(self) -> None:
        key, ledger = self.my_key(), self.ledger
        least = self.least(key)

        def change(value: Any) -> Any:
            self.verify(value, key, least)
            ledger.intended[key] = version = int(ledger.intended[key]) + 1
            return value_of(key, version)

        if self.cache.update(key, change) is not None:
            ledger.floor[self.row, key] = ledger.intended[key]

    def touch(self) -> None:
        key = self.any_key()
        self.cache.touch(key, self.random.choice([0.05, 10, float("inf")]))

    def delete(self) -> None:
        key = self.my_key()
        after = int(self.ledger.intended[key]) + 1
        self.cache.delete(key)
        self.ledger.floor[self.row, key] = after

    def load(self) -> None:
        key, ledger = min(int(self.random.expovariate(1 / 15)), LOADED - 1), self.ledger

        def load(asked: int) -> Any:
            other = int(ledger.loading[key])  # delete() and clear() end the load's claim
            claimed, clears = self.cache.claimed, ledger.clears_begun
            # No clear() has begun between the other process's claim and ours.
            again = claimed and key < KEPT and other not in (0, os.getpid()) and ledger.begun[key] == clears
            if again and alive(other):
                raise Wrong(f"key {key} is loaded by {other} and {os.getpid()} at once")
            if claimed:
                ledger.begun[key] = self.cache.calm  # -1 if a clear() may end this load
                ledger.loading[key] = os.getpid()
            try:
                ledger.intended[key] = version = int(ledger.intended[key]) + 1
                if self.random.random() < 0.3:
                    time.sleep(self.random.random() * 0.02)
                return value_of(asked, version)
            finally:
                if claimed:
                    ledger.loading[key] = 0

        self.verify(self.cache.get_or_load(key, load, timeout=30), key, 0)
        if key >= KEPT and self.random.random() < 0.3:
            self.cache.delete(key)

    def failing(self) -> None:
        def load(_: object) -> Any:
            time.sleep(self.random.random() * 0.005)
            raise Failing

        with suppress(Failing):
            raise Wrong(f"a load that raised gave {self.cache.get_or_load('failing', load, timeout=30)!r}")

    def hold(self) -> None:
        key = self.any_key()
        least = self.least(key)
        if (value := self.cache.get(key)) is not None:
            self.held.append((key, self.verify(value, key, least), value))

    def look_again(self) -> None:
        if self.held:
            key, version, value = self.random.choice(self.held)
            if (now := look(value, key)) != version:
                raise Wrong(f"the value of key {key} was version {version}, and is {now} while it is held")

    def expire(self) -> None:
        key = self.random.randrange(20)
        self.brief.put(key, value_of(key, 1))
        if self.random.random() < 0.2:
            time.sleep(0.025)
        if (value := self.brief.get(key)) is not None:
            look(value, key)

    def renew(self) -> None:
        key = self.random.randrange(20)

        def load(_: object) -> Any:
            if self.random.random() < 0.3:
                time.sleep(self.random.random() * 0.01)
            return value_of(key, 1)

        stale = self.random.random() < 0.5
        look(self.brief.get_or_load(key, load, stale_while_loading=stale, timeout=30), key)

    def remove(self) -> None:
        """Uses a cache that other workers remove meanwhile, and make again under the same name."""
        name, key = f"gone {self.random.randrange(3)}", self.random.randrange(20)
        cache = self.pool.cache(name)
        for version in range(self.random.randrange(8)):
            cache.put(key, value_of(key, version))
            if (value := cache.get(key)) is not None:
                look(value, key)
        if self.random.random() < 0.3:
            self.pool.remove_cache(name)

    def count(self) -> None:
        if not 0 <= len(self.cache) <= KEYS + 1:
            raise Wrong(f"the cache has {len(self.cache)} values")
        self.cache.stats()

    def clear(self) -> None:
        after = {key: int(self.ledger.intended[key]) + 1 for key in range(LOADED + self.row, KEYS, WORKERS)}
        self.ledger.clears[0, self.row] += 1
        self.cache.clear()
        self.ledger.clears[1, self.row] += 1
        for key, version in after.items():
            self.ledger.floor[self.row, key] = version

    def resize(self) -> None:
        self.pool.resize(self.random.randrange(LEAST, MOST, 64 << 10))

    def trim(self) -> None:
        dice = self.random.random()
        if dice < 0.6:
            self.pool.trim(self.random.randrange(1, MIB))
        elif dice < 0.8:
            self.pool.trim()
        else:
            self.pool.trim_idle(0.5)

    def again(self) -> None:
        self.held.clear()
        if self.random.random() < 0.5:
            self.pool.close()
        self.attach()

    def fork(self) -> None:
        """Forks a child that compares its inherited values, and gets others. The parent continues."""
        child = os.fork()
        if child == 0:
            guarded(self.directory, self.heir)

    directory: Path

    def heir(self) -> None:
        for _ in range(self.random.randrange(1, 20)):
            self.look_again()
            self.get()
        self.held.clear()


def work(directory: Path, name: str, row: int, seed: int) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    worker = Worker(directory, name, row, seed)
    worker.directory = directory
    worker.run()


@dataclass
class Report(deaths.Report):
    started: int = 0
    pauses: int = 0
    operations: int = 0
    longest_stall_s: float = 0.0
    wrong: int = 0
    leaked: int = 0
    hung: int = 0
    figures: dict[str, Any] = field(default_factory=dict)


class Storm(deaths.Storm):
    """Starts the workers, kills them, and checks what they leave."""

    def __init__(self, directory: Path, seed: int) -> None:
        self.directory, self.name = directory, f"bptest-{directory.name}-pool"
        self.random, self.seed, self.report = random.Random(seed), seed, Report()
        self.ledger, self.pids = Ledger(directory / "ledger"), [0] * WORKERS
        bp.Pool.create(
            self.name, MOST, max_capacity=MOST, page_size=4096, extent_size=16384, max_clients=CLIENTS
        ).close()
        ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER: the children of the dead become ours

    def start(self) -> None:
        for row, pid in enumerate(self.pids):
            if pid and alive(pid):
                continue
            self.seed += 1
            self.ledger.since[row] = 0
            self.pids[row] = os.fork()
            if not self.pids[row]:
                guarded(self.directory, work, self.directory, self.name, row, self.seed)
            self.report.started += 1

    def bury(self) -> bool:
        """Reaps the children that have ended. Returns False when no child is left."""
        return deaths.bury(partial(self.find, "wrong"), 9)

    def describe(self, pid: int) -> str:
        return f"see {self.directory}/stacks"

    def kill(self, pids: list[int]) -> None:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                self.report.kills += 1

    def blow(self, seconds: float) -> None:
        """Lets the workers run, and kills some at random. At the end no worker lives."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and not self.report.findings:
            self.start()
            time.sleep(self.random.random() * 0.05)
            self.bury()
            living = [pid for pid in self.pids if alive(pid)]
            self.kill(self.random.sample(living, min(len(living), self.random.choice([1, 1, 1, 2, 3]))))
            self.look_for_hangs(self.pids, self.ledger.since.tolist())
        if self.random.random() < 0.5:
            self.ledger.stop = True
            asked = time.monotonic()
            while any(map(alive, self.pids)) and time.monotonic() < asked + self.HANGS_S:
                self.bury()
                time.sleep(0.005)
        self.kill([pid for pid in self.pids if alive(pid)])
        asked = time.monotonic()
        while self.bury():  # the forked children of dead workers end by themselves
            time.sleep(0.002)
            left = [int(pid) for pid in Path("/proc/self/task", str(os.getpid()), "children").read_text().split()]
            if any(self.hangs(pid, time.monotonic() - asked) for pid in left):
                self.find("hung", f"children {left} of dead workers do not end: see {self.directory}/stacks")
                for pid in left:
                    deaths.kill_with_stack(pid)
        self.ledger.stop = False
        self.ledger.loading[:] = 0
        self.ledger.clears[1] = self.ledger.clears[0]  # the calls of killed workers have ended, too

    def audit(self) -> None:
        """Runs while no worker lives: the values of the cache must be right, and nothing may be leaked."""
        self.report.pauses += 1
        with bp.Pool.attach(self.name) as pool:
            pool.reap()
            cache = pool.cache("storm")
            for key in range(KEYS):
                try:
                    value = cache.get(key)
                    if (
                        value is not None
                        and not self.ledger.floor[:, key].max() <= look(value, key) <= self.ledger.intended[key]
                    ):
                        raise Wrong(
                            f"key {key} has version {look(value, key)}, and the floor is {self.ledger.floor[:, key].max()}"
                        )
                    self.report.verified += value is not None
                    del value
                except Wrong as error:
                    self.find("wrong", str(error))
            self.look_for_leaks(pool)
            if self.random.random() < 0.3:
                for name in ("storm", "brief"):
                    pool.cache(name).clear()
                    if count := len(pool.cache(name)):
                        self.find("leaked", f"{count} values after clear()")
                    if size := pool.cache(name).stats().bytes:
                        self.find("leaked", f"{size} bytes after clear()")
                self.look_for_leaks(pool)
            if self.random.random() < 0.5:
                pool.resize(MOST)

    def look_for_leaks(self, pool: bp.Pool) -> None:
        stats = pool.stats()
        wrong = pool.check() + [f"client {c}" for c in pool.clients() if c.pid != os.getpid()]
        held = stats.kernel_bytes - stats.metadata_bytes
        if held > pool.capacity + MIB // 4:
            wrong.append(f"the kernel counts {held} bytes of data, and the budget is {pool.capacity}")
        for what in wrong:
            self.find("leaked", what)

    def run(self, seconds: float, kills: int) -> Report:
        report = self.report
        while report.clean and (time.monotonic() < report.began + seconds or report.kills < kills):
            self.blow(self.random.uniform(1, 4))
            for path in (self.directory / "wrong", self.directory / "broken"):
                if path.exists():
                    self.find("wrong", path.read_text())
                    path.unlink()
            self.audit()
        report.operations, report.verified = (
            int(self.ledger.ops.sum()),
            report.verified + int(self.ledger.verified.sum()),
        )
        if report.clean:
            with bp.Pool.attach(self.name) as pool:
                report.figures = {str(k): v for k, v in vars(pool.cache("storm").stats()).items()}
                pool.unlink(discard=True)
        return report


def main() -> None:
    parser = deaths.arguments(__doc__)
    parser.add_argument("--seconds", type=float, default=0.0, help="of storm, at least")
    options = parser.parse_args()
    directory = Path(mkdtemp(prefix="cache-storm-"))
    storm = Storm(directory, options.seed)
    report = storm.run(options.seconds, options.kills)
    if report.clean:
        rmtree(directory)
    else:
        report.findings.append(f"the pool and the ledger are in {deaths.keep_evidence(directory, storm.name)}")
    report.tell()


if __name__ == "__main__":
    main()
