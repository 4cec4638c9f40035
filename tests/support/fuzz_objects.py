"""Damages words of the objects' area at random and uses the cache: every call ends, and no value is another key's.

    python tests/support/fuzz_objects.py --seed 1 --rounds 100

In a round a pool's cache has values of all kinds of room, some of which are held. Then, step by step, one word of the tables,
or of a record in a log page, is damaged, and all operations are performed, each of which must end in a result or a typed error.
The number of the round is the seed, so that a finding can be run again. The rounds run in a process of their own, whose end
shows a crash, and whose silence shows a call that not even a signal ends.
"""

import argparse
import contextlib
import faulthandler
import json
import os
import random
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.append(str(Path(__file__).parents[2]))

import bufferpool as bp
from bufferpool.objects.cache import Cache
from tests.support.object_area import FIELDS, Area

PAGE = 4096
KEYS = 60
SIZES = (16, 160, 1600, 9600, 40_000, 100_000)
HANG_S = 20.0  # of one call, under the load of a whole test run
TYPED = (bp.BufferPoolError, MemoryError)
STEPS = 4  # damages of a round


class Hang(BaseException):
    """A call did not end."""


def value_of(key: int, version: int) -> bytes:
    """The bytes of a version of a key: both numbers, again and again."""
    unit = key.to_bytes(8, "little") + version.to_bytes(8, "little")
    return unit * (SIZES[(key + version) % len(SIZES)] // 16)


class Damage:
    """One word, and what it was before."""

    def __init__(self, area: Area, draw: random.Random) -> None:
        self.area, self.draw = area, draw
        fields = [name for name in FIELDS if name.partition(".")[0] in STRUCTS and name.partition(".")[2]]
        self.name = draw.choice([*fields, "record"])
        if self.name == "record":
            self.at, self.size = self._record(), 4
        else:
            self.at, self.size = area.at(self.name, self._number())
            if self.size > 8:  # an array of words, or of slots
                step = 8 if self.size % 8 == 0 else 4
                self.at, self.size = self.at + step * draw.randrange(self.size // step), step
        self.before = area.shm[self.at : self.at + self.size]
        self.after = self._other(int.from_bytes(self.before, "little")).to_bytes(self.size, "little")

    def _number(self) -> int:
        """Which element of the table: one that is in use."""
        high = {"ObjectEntry": "entries_high", "ObjectBlock": "blocks_high", "ObjectHead": "buckets"}
        struct_name = self.name.partition(".")[0]
        most = self.area.get(f"ObjectsHeader.{high[struct_name]}") if struct_name in high else 1
        return self.draw.randrange(max(1, min(most, 1024)))

    def _record(self) -> int:
        """A word of the head of the first record of a log page."""
        block = self.draw.choice(self.area.log_pages() or [0])
        at = self.area.values + self.area.get("ObjectBlock.at", block) * self.area.os_page
        place = 4 * self.draw.randrange(2)
        return at + place if at + place + 4 <= len(self.area.shm) else self.area.values

    def _other(self, word: int) -> int:
        most = (1 << 8 * self.size) - 1
        ways: list[Callable[[], int]] = [
            lambda: 0,
            lambda: most,
            lambda: word ^ 1 << self.draw.randrange(8 * self.size),
            lambda: word + self.draw.choice((-2, -1, 1, 2, 16, 4096)),
            lambda: self.draw.getrandbits(8 * self.size),
            lambda: self.draw.randrange(64),
        ]
        return self.draw.choice(ways)() & most

    def do(self) -> None:
        self.area.shm[self.at : self.at + self.size] = self.after

    def undo(self) -> None:
        """Puts the word back, unless it has changed since."""
        if self.area.shm[self.at : self.at + self.size] == self.after:
            self.area.shm[self.at : self.at + self.size] = self.before

    def __str__(self) -> str:
        return f"{self.name} at {self.at:#x}: {self.before.hex()} to {self.after.hex()}"


STRUCTS = {"ObjectsHeader", "CacheSlot", "ObjectHead", "ObjectEntry", "ObjectBlock"}


class Round:
    def __init__(self, seed: int) -> None:
        self.seed, self.draw, self.version = seed, random.Random(seed), 0
        self.findings: list[str] = []
        self.name = f"fuzz-objects-{os.getpid()}-{seed}"
        self.held: dict[int, tuple[Any, bytes]] = {}

    def run(self) -> list[str]:
        pool = bp.Pool.create(self.name, 1000 * PAGE, page_size=PAGE, max_capacity=1000 * PAGE, room=1000 * PAGE)
        try:
            cache = pool.cache("values")
            for key in range(KEYS):
                cache.put(key, value_of(key, 0))
            self.hold(cache)
            area = Area(pool)
            done: list[str] = []
            for _ in range(STEPS):
                damage = Damage(area, self.draw)
                damage.do()
                done.append(str(damage))
                self.use(pool, cache, "; ".join(done))
                if self.draw.random() < 0.7:
                    damage.undo()
                    done[-1] += " (put back)"
            self.held.clear()
            self.call("close", "the damages of the round", pool.close)
        finally:
            os.unlink(f"/dev/shm/{self.name}")
        return self.findings

    def hold(self, cache: Cache) -> None:
        for key in range(3, KEYS, 11):
            if (view := cache.get(key)) is not None:
                self.held[key] = view, bytes(view)

    @staticmethod
    def settings(pool: bp.Pool) -> None:
        with contextlib.suppress(ValueError):  # what the cache has contradicts it
            pool.cache("values", limit=1 << 20)

    def call(self, name: str, what: str, function: Callable[[], Any]) -> Any:
        """The result of a call, or None after a typed error."""
        signal.setitimer(signal.ITIMER_REAL, HANG_S)
        try:
            return function()
        except TYPED:
            return None
        except Hang:
            self.findings.append(f"seed {self.seed}: {name} hangs: {what}")
        except Exception as error:  # noqa: BLE001  it is the finding
            self.findings.append(f"seed {self.seed}: {name} raised {type(error).__name__}: {error}: {what}")
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        return None

    def judge(self, key: int, found: Any, what: str) -> None:
        if found is None:
            return
        data = bytes(found) if isinstance(found, memoryview) else None
        if (
            data is None
            or data[:8] != key.to_bytes(8, "little")
            or data != value_of(key, int.from_bytes(data[8:16], "little"))
        ):
            shown = type(found).__name__ if data is None else f"{len(data)} bytes, {data[:24].hex()}"
            self.findings.append(f"seed {self.seed}: wrong value of key {key}: {shown}: {what}")

    def use(self, pool: bp.Pool, cache: Cache, what: str) -> None:
        keys = [self.draw.randrange(KEYS) for _ in range(12)]
        for key in keys:
            self.judge(key, self.call("get", what, lambda key=key: cache.get(key)), what)
        for key in keys[:6]:
            self.version += 1
            self.call("put", what, lambda key=key: cache.put(key, value_of(key, self.version)))
            self.judge(key, self.call("get", what, lambda key=key: cache.get(key)), what)
        for key in keys[6:9]:
            load = lambda key=key: value_of(key, self.version)  # noqa: E731
            loaded = self.call("load", what, lambda key=key, load=load: cache.get_or_load(key, load, timeout=0.2))
            self.judge(key, loaded, what)
        for key in keys[9:]:
            self.call("delete", what, lambda key=key: cache.delete(key))
        calls: list[tuple[str, Callable[[], Any]]] = [
            ("in", lambda: 5 in cache),
            ("len", lambda: len(cache)),
            ("stats", cache.stats),
            ("caches", pool.caches),
            ("operations", pool.operations),
            ("advise", pool.advise_caches),
            ("clients", pool.clients),
            ("small", lambda: pool.resize(200 * PAGE, timeout=2)),
            ("large", lambda: pool.resize(1000 * PAGE, timeout=2)),
            ("trim", lambda: pool.trim(timeout=2)),
            ("check", lambda: pool.check(timeout=2)),
            ("clear", cache.clear),
            ("open", lambda: pool.cache("another").put("key", b"value")),
            ("remove", lambda: pool.remove_cache("another")),
            ("settings", lambda: self.settings(pool)),
        ]
        for name, function in self.draw.sample(calls, 5):
            self.call(name, what, function)
        for key, (view, before) in self.held.items():
            if bytes(view) != before:
                self.findings.append(f"seed {self.seed}: the held value of key {key} has changed: {what}")
                self.held[key] = view, bytes(view)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=100)
    options = parser.parse_args()
    faulthandler.enable()
    warnings.simplefilter("ignore")

    def ring(*_: object) -> None:
        raise Hang

    signal.signal(signal.SIGALRM, ring)
    for seed in range(options.seed, options.seed + options.rounds):
        print(json.dumps({"seed": seed}), flush=True)
        for finding in Round(seed).run():
            print(json.dumps({"finding": finding}), flush=True)
    print(json.dumps({"rounds": options.rounds}), flush=True)


if __name__ == "__main__":
    main()
