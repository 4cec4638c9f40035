"""Words of the objects that are damaged: every call ends, in a result or a typed error, and no other memory is touched.

What was seen: a log page whose word was damaged while it was being filled made every put of a small value run for ever,
with the interpreter's lock. A block with a damaged class was written into a list behind the last one, which is a word of
a cache. An entry with a damaged place ended the process that cleared its cache. And a log page with a damaged record was
cleaned again and again, each time in vain.
"""

import contextlib
import mmap
from collections.abc import Callable
from typing import Any

import pytest

import bufferpool as bp
from bufferpool import _core
from tests.conftest import PAGE, WAIT

FIELDS = _core.fields()
LOG = 3  # the state of a block: core/layout/objects.h
SAMPLES, SAMPLE_BYTES, CACHES = 8192, 16, 64


class Area:
    """The tables of the objects in a pool's file."""

    def __init__(self, pool: bp.Pool) -> None:
        with open(pool.path, "r+b") as file:
            self.shm = mmap.mmap(file.fileno(), 0)
        os_page, most_frames, page = (self._geometry(name) for name in ("os_page", "max_frames", "page_size"))
        most_entries = max(1024, most_frames * page // 256)

        def behind(at: int, size: int) -> int:
            return -(-(at + size) // os_page) * os_page

        self.header = behind(self._geometry("total_bytes"), 0)
        heads = behind(behind(self.header, FIELDS["ObjectsHeader"][1]), SAMPLES * SAMPLE_BYTES)
        self.entries = behind(heads, most_entries * FIELDS["ObjectHead"][1])
        self.blocks = behind(self.entries, most_entries * FIELDS["ObjectEntry"][1])
        most_blocks = 2 * (most_frames * page // 8192) + 64
        row = behind(0, CACHES * FIELDS["CacheUses"][1]) + behind(0, most_blocks * 4)
        rows = behind(self.blocks, most_blocks * FIELDS["ObjectBlock"][1])
        self.os_page, self.values = os_page, behind(rows, self._geometry("max_clients") * row)

    def _geometry(self, name: str) -> int:
        return self._read(FIELDS["Header.geometry"][0] + FIELDS[f"Geometry.{name}"][0], FIELDS[f"Geometry.{name}"][1])

    def _read(self, at: int, size: int) -> int:
        return int.from_bytes(self.shm[at : at + size], "little")

    def _at(self, field: str, number: int) -> tuple[int, int]:
        struct_name = field.partition(".")[0]
        base = {"ObjectsHeader": self.header, "ObjectEntry": self.entries, "ObjectBlock": self.blocks}[struct_name]
        at, size = FIELDS[field]
        return base + number * FIELDS[struct_name][1] + at, size

    def get(self, field: str, number: int = 0) -> int:
        return self._read(*self._at(field, number))

    def set(self, field: str, value: int, number: int = 0) -> None:
        at, size = self._at(field, number)
        self.shm[at : at + size] = value.to_bytes(size, "little")

    def log_pages(self) -> list[int]:
        """The log pages that are not being filled."""
        high, now = self.get("ObjectsHeader.blocks_high"), self.get("ObjectsHeader.open") - 1
        return [b for b in range(high) if self.get("ObjectBlock.word", b) & 0xFF == LOG and b != now]

    def other_caches(self) -> bytes:
        """The slots of all caches but the first one."""
        at, size = FIELDS["ObjectsHeader.caches"]
        return self.shm[self.header + at + FIELDS["CacheSlot"][1] : self.header + at + size]


def damage_class_of_open_page(area: Area) -> None:
    area.set("ObjectBlock.word", 200 << 24 | LOG, area.get("ObjectsHeader.open") - 1)


def damage_place_of_open_page(area: Area) -> None:
    area.set("ObjectBlock.at", 1 << 50, area.get("ObjectsHeader.open") - 1)


def damage_open(area: Area) -> None:
    area.set("ObjectsHeader.open", 1 << 31)


def damage_classes(area: Area) -> None:
    for b in area.log_pages():
        area.set("ObjectBlock.word", 200 << 24 | LOG, b)


def damage_places(area: Area) -> None:
    for e in range(0, area.get("ObjectsHeader.entries_high"), 3):
        area.set("ObjectEntry.place", 0x7FFF_FFFF << 32, e)


def damage_records(area: Area) -> None:
    for b in area.log_pages():
        at = area.values + area.get("ObjectBlock.at", b) * area.os_page
        assert area.get("ObjectBlock.filled", b)
        area.shm[at : at + 8] = bytes(8)  # the entry and the length of its first record


DAMAGES: dict[str, Callable[[Area], None]] = {
    "class-of-open-page": damage_class_of_open_page,
    "place-of-open-page": damage_place_of_open_page,
    "open": damage_open,
    "classes": damage_classes,
    "places": damage_places,
}


def _use(pool: bp.Pool, cache: Any) -> list[bool]:
    """Performs all operations. Returns which of the small values were kept."""
    kept = []
    for n in range(400):
        with contextlib.suppress(bp.BufferPoolError):
            kept.append(cache.put(f"new-{n}", bytes(1000)))
    calls: tuple[Callable[[], object], ...] = (
        lambda: cache.put("large", bytes(40_000)),
        lambda: cache.get_or_load("loaded", lambda: b"value", timeout=5),
        lambda: [cache.get(n) for n in range(400)],
        lambda: [cache.delete(n) for n in range(0, 400, 2)],
        lambda: pool.resize(100 * PAGE, timeout=5),
        lambda: pool.resize(1000 * PAGE, timeout=5),
        cache.clear,
        lambda: pool.trim(timeout=5),
        pool.check,
    )
    for call in calls:
        with contextlib.suppress(bp.BufferPoolError):
            call()
    return kept


def _damage_and_use(name: str, damage: str) -> list[bool]:
    with bp.Pool.attach(name) as pool:
        cache = pool.cache("values")
        for n in range(400):
            cache.put(n, bytes(1000))
        area = Area(pool)
        DAMAGES[damage](area)
        kept = _use(pool, cache)
        assert not any(area.other_caches())
        return kept


@pytest.mark.parametrize("damage", DAMAGES)
def test_every_call_ends(make_pool, pools, child, damage):
    pool = make_pool(1000 * PAGE, max_capacity=1000 * PAGE, room=1000 * PAGE)
    pools.unchecked.add(pool.name)
    assert child(_damage_and_use, pool.name, damage).result() == [True] * 400


def _damage_records(name: str) -> int:
    with bp.Pool.attach(name) as pool:
        cache = pool.cache("values")
        for n in range(900):
            cache.put(n, bytes(1000))
        damage_records(Area(pool))
        for n in range(0, 900, 2):
            cache.delete(n)
        pool.resize(100 * PAGE, timeout=WAIT)
        return len(cache)


def test_a_pool_gets_smaller_although_a_log_page_cannot_be_cleaned(make_pool, pools, child):
    """The same page was cleaned a million times, and then nothing was evicted: PoolExhausted."""
    pool = make_pool(1000 * PAGE, max_capacity=1000 * PAGE, room=1000 * PAGE)
    pools.unchecked.add(pool.name)
    assert child(_damage_records, pool.name).result() < 450
