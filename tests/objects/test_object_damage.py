"""Words of the objects that are damaged: every call ends, in a result or a typed error, and no other memory is touched.

What was seen: a log page whose word was damaged while it was being filled made every put of a small value run for ever,
with the interpreter's lock. A block with a damaged class was written into a list behind the last one, which is a word of
a cache. An entry with a damaged place ended the process that cleared its cache. And a log page with a damaged record was
cleaned again and again, each time in vain.
"""

import contextlib
from collections.abc import Callable
from typing import Any

import pytest

import bufferpool as bp
from tests.conftest import PAGE, WAIT
from tests.support.object_area import FREE, LOG, Area


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


def _value(key: int, size: int) -> bytes:
    return key.to_bytes(4, "little") * (size // 4)


def _free_blocks(area: Area) -> list[int]:
    return [b for b in range(area.get("ObjectsHeader.blocks_high")) if area.get("ObjectBlock.word", b) & 0xFF == FREE]


def damage_memory(area: Area) -> None:
    """A free block seems to have memory up to the end of the area: it was taken from the blocks behind it."""
    for b in _free_blocks(area):
        area.set("ObjectBlock.memory", 0xFFFF_FFFF, b)


def damage_data_used(area: Area) -> None:
    """New blocks got the places of those that are in use."""
    area.set("ObjectsHeader.data_used", 0)


def damage_free_list(area: Area) -> None:
    """A list of large free blocks leads to a small one: a large value was written beyond its end."""
    at, size = area.at("ObjectsHeader.free_full", 0)
    small = next(b for b in _free_blocks(area) if area.get("ObjectBlock.word", b) >> 24 == 15)
    lists = size // 4
    area.shm[at : at + size] = (small + 1).to_bytes(4, "little") * lists


NEIGHBOURS: dict[str, Callable[[Area], None]] = {
    "memory": damage_memory,
    "data-used": damage_data_used,
    "free-list": damage_free_list,
}


def _damage_beside(name: str, damage: str) -> None:
    with bp.Pool.attach(name) as pool:
        cache = pool.cache("values")
        for key in range(20):
            assert cache.put(key, _value(key, 20_000))
            assert cache.put(100 + key, _value(100 + key, 60_000))
        for key in range(0, 20, 4):
            cache.delete(key)
            cache.delete(100 + key)
        views = {key: cache.get(key) for key in (1, 2, 3, 101, 102, 103)}
        NEIGHBOURS[damage](Area(pool))
        for key in range(200, 220):
            cache.put(key, _value(key, 60_000))
            cache.put(100 + key, _value(100 + key, 20_000))
        with contextlib.suppress(bp.BufferPoolError):
            pool.trim(timeout=5)
        for key, view in views.items():
            assert bytes(view) == _value(key, 20_000 if key < 100 else 60_000), f"the held value of {key} has changed"
        for key in (*range(20), *range(100, 120), *range(200, 220), *range(300, 320)):
            if (found := cache.get(key)) is not None:
                assert bytes(found) == _value(key, found.nbytes), f"{key} has another value"
        del view, views, found


@pytest.mark.parametrize("damage", NEIGHBOURS)
def test_values_beside_a_damaged_block(make_pool, pools, child, damage):
    """Only what is damaged is lost. A process of its own, because a fault may end it."""
    pool = make_pool(1000 * PAGE, max_capacity=1000 * PAGE, room=1000 * PAGE)
    pools.unchecked.add(pool.name)
    child(_damage_beside, pool.name, damage).result()


@pytest.mark.parametrize("size", [1000, 40_000])
def test_a_value_whose_length_is_damaged(make_pool, pools, size):
    """It had the first bytes of the next value, or of what was there before."""
    pool = make_pool(1000 * PAGE, max_capacity=1000 * PAGE, room=1000 * PAGE)
    pools.unchecked.add(pool.name)
    cache = pool.cache("values")
    for key in range(3):
        assert cache.put(key, _value(key, size))
    area = Area(pool)
    value = area.get("ObjectEntry.value", 0)
    for damaged in (value + 64, value - 64, value + (1 << 40)):
        area.set("ObjectEntry.value", damaged, 0)
        assert cache.get(0) is None
    area.set("ObjectEntry.value", value, 0)
    assert bytes(cache.get(0)) == _value(0, size)
    area.shm.close()


@pytest.mark.parametrize("size", [1000, 40_000])
def test_a_value_whose_kind_is_damaged(make_pool, pools, size):
    """EOFError, or UnpicklingError, of bytes that were taken for a pickle."""
    pool = make_pool(1000 * PAGE, max_capacity=1000 * PAGE, room=1000 * PAGE)
    pools.unchecked.add(pool.name)
    cache = pool.cache("values")
    assert cache.put(0, bytes(size))
    area = Area(pool)
    area.set("ObjectEntry.value", size, 0)
    with pytest.raises(bp.SegmentCorrupt):
        cache.get(0)
    area.shm.close()
