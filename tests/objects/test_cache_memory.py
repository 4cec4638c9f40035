"""The memory of a cache: what a held value keeps, a full tmpfs, and memory that is given back to the kernel."""

import gc
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bufferpool as bp
from bufferpool.errors import PoolExhausted
from tests.conftest import PAGE, fill, kernel_bytes
from tests.support.children import on_small_tmpfs

MIB = 1 << 20


@pytest.fixture
def pool(pools: Any) -> bp.Pool:
    made: bp.Pool = pools.create(48 * MIB, page_size=8192)
    return made


def _plain(value: Any) -> Any:
    return [value["x"].tolist()] if isinstance(value, dict) else list(value)


@pytest.mark.parametrize("value", [bytes(5000), np.zeros(700), {"x": np.zeros(700)}, list(range(3000))], ids=type)
def test_small_values_that_are_held_do_not_stop_a_cache(pool: bp.Pool, value: Any) -> None:
    """A view of a small value pinned the log page of 256 KiB in which it lay: four of them, and a cache of 1 MiB kept
    nothing any more."""
    cache = pool.cache("held", limit=MIB)
    held = []
    for n in range(600):
        assert cache.put(n, value), n
        held.append(cache.get(n))
        assert held[-1] is not None
    assert pool.seg.held_objects() == []
    assert all(pickle.dumps(_plain(one)) == pickle.dumps(_plain(value)) for one in held)


@pytest.mark.parametrize("limit", [5000, 20_000, 100_000, 300_000])
def test_a_small_limit_is_enough_for_small_values(pool: bp.Pool, limit: int) -> None:
    """A cache whose limit was less than a log page kept nothing at all."""
    cache = pool.cache("little", limit=limit)
    for n in range(300):
        assert cache.put(n, b"value %d" % n)
        assert cache.get(n) == b"value %d" % n
    assert cache.stats().bytes <= limit


def test_large_values_that_are_held_are_not_kept_twice_but_nothing_raises(pool: bp.Pool) -> None:
    """A cache that is full of held values does not keep the next one, and gives it out all the same."""
    cache = pool.cache("held", limit=2 * MIB)
    held = []
    for n in range(20):
        cache.put(n, bytes(400_000))
        held.append(cache.get(n))
        assert len(cache.get_or_load(("load", n), lambda: bytes(300_000))) == 300_000
    assert sum(one is not None for one in held) >= 4
    assert not cache.put("more", bytes(400_000))
    assert cache.get("more") is None
    del held
    gc.collect()
    assert cache.put("more", bytes(400_000))


# ---- memory that is given back to the kernel ----------------------------------------------------


def _fill(pool: bp.Pool) -> Any:
    cache = pool.cache("all")
    for n in range(400):
        cache.put(n, bytes(100 + n * 97 % 60_000))
    for n in range(20):
        cache.put(("large", n), bytes(300_000))
    return cache


@pytest.mark.parametrize("how", ["trim", "trim some", "trim_idle", "clear"])
def test_free_blocks_go_back_to_the_kernel(pool: bp.Pool, how: str) -> None:
    """The memory of deleted values stayed with the cache: after clear() and trim() the segment had most of it."""
    begin = kernel_bytes(pool)
    cache = _fill(pool)
    had = kernel_bytes(pool)
    before = pool.stats().reclaimed_total_bytes
    if how == "clear":
        cache.clear()
    else:
        for n in range(400):
            cache.delete(n)
        for n in range(20):
            cache.delete(("large", n))
        given = {"trim": pool.trim, "trim some": lambda: pool.trim(64 * MIB), "trim_idle": lambda: pool.trim_idle(1000)}[how]()  # fmt: skip
        assert given > 6 * MIB
    left, stats = kernel_bytes(pool) - begin, pool.stats()
    assert left < (had - begin) // 10
    assert stats.object_bytes == stats.lent_bytes == 0
    assert stats.reclaimed_total_bytes - before > 6 * MIB
    assert pool.check() == []
    assert cache.put("again", bytes(70_000))


def test_trim_keeps_what_values_use(pool: bp.Pool) -> None:
    cache = _fill(pool)
    count = len(cache)
    for n in range(200):
        count -= cache.delete(n)
    pool.trim()
    assert len(cache) == count
    assert all(cache.get(n) is not None for n in range(200, 400))
    assert pool.stats().object_bytes >= cache.stats().bytes


def test_a_resize_that_held_values_stop_says_who_holds_them(pool: bp.Pool) -> None:
    """The error named pinned pages only, of which there were none."""
    cache = pool.cache("held", limit=20 * MIB)
    for n in range(6):
        assert cache.put(n, bytes(2 * MIB))
    held = [cache.get(n) for n in range(6)]
    with pytest.raises(PoolExhausted, match=r"client \d+ \(pid \d+\) holds values of 12\.0 MiB"):
        pool.resize(4 * MIB, timeout=0.05)
    del held
    gc.collect()
    pool.resize(4 * MIB)
    assert kernel_bytes(pool) - pool.stats().metadata_bytes <= 4 * MIB


# ---- a full tmpfs ---------------------------------------------------------------------------------

FULL = """
import os, random, sys
import bufferpool as bp

directory = sys.argv[1]
with bp.Pool.create("full", 12 << 20, directory=directory, page_size=4096, max_clients=8) as pool:
    cache = pool.cache("values", limit="10M")
    for n in range({before}):
        cache.put(n, bytes([n % 251]) * (n % 40 * 500))
    other = os.open(directory + "/other", os.O_WRONLY | os.O_CREAT)  # somebody else takes all that is left
    try:
        while os.write(other, bytes(4096)):
            pass
    except OSError:
        os.close(other)
    kept = wrong = loaded = 0
    random.seed(1)
    for n in range(1500):
        size = random.choice((50, 700, 3000, 20_000, 90_000, 400_000))
        key, value = random.randrange(500), bytes([n % 251]) * size
        kept += cache.put(key, value)
        found = cache.get(key)
        wrong += found is not None and found != value
        wrong += cache.get_or_load(("load", n), lambda: value) != value
        del found
    if os.fork() == 0:  # another client, which has no memory for its pins yet
        code = 1
        try:
            other_pool = bp.Pool.attach("full", directory=directory)
            mine = other_pool.cache("values")
            for n in range(50):
                mine.put(n, b"child")
                assert mine.get(n) in (None, b"child")
                assert mine.get_or_load(("child", n), lambda: 5) == 5
            code = 0
        except bp.errors.SharedMemoryFull:
            code = 2 if {before} else 0
        finally:
            os._exit(code)
    child = os.waitstatus_to_exitcode(os.wait()[1])
    os.unlink(directory + "/other")
    again = cache.put("again", bytes(100_000))
    print(kept > {least}, wrong, child, again, pool.check())
    pool.unlink(discard=True)
"""


@pytest.mark.parametrize(("before", "least"), [(0, -1), (400, 200)], ids=["empty", "with values"])
def test_a_full_tmpfs_does_not_stop_a_cache(tmp_path: Path, before: int, least: int) -> None:
    """The kernel had no memory for a value although the budget had: the cache evicted nothing, and kept nothing more."""
    out = on_small_tmpfs(FULL.format(before=before, least=least), tmp_path, "8m")
    assert out == "True 0 0 True []\n"


NEWCOMER = """
import os, sys
import bufferpool as bp

directory = sys.argv[1]
with bp.Pool.create("full", 6 << 20, directory=directory, page_size=4096, max_clients=8) as pool:
    cache = pool.cache("values", limit="5M")
    n = 0
    while not cache.stats().evictions:
        cache.put(n, bytes(20_000))
        n += 1
    pool.trim_idle(3600)  # no free block keeps its memory
    with open(directory + "/other", "wb", buffering=0) as other:  # somebody else takes all that is left
        try:
            while other.write(bytes(4096)):
                pass
        except OSError:
            pass
    child = os.fork()
    if child == 0:
        code = 1
        try:
            mine = bp.Pool.attach("full", directory=directory).cache("values")
            code = 0 if mine.put("child", b"value") and mine.get("child") == b"value" else 2
        except bp.errors.SharedMemoryFull:
            code = 3
        finally:
            os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), pool.check())
    pool.unlink(discard=True)
"""


def test_a_new_client_makes_room_for_its_own_pins(tmp_path: Path) -> None:
    """A client could evict only after it had memory for its pins, and on a full tmpfs it had none for them: opening the
    cache raised SharedMemoryFull, unless some block happened to be free."""
    assert on_small_tmpfs(NEWCOMER, tmp_path, "8m") == "0 []\n"


SHARED = """
import sys
import bufferpool as bp


def use_pages(pool):
    space = pool.open_derived("pages", 2000, lambda n, out: out.fill(n % 256))
    assert all(space[n][0] == n % 256 for n in range(2000))
    return pool.stats().resident_bytes


def use_objects(pool):
    cache = pool.cache("values", limit="10M")
    kept = [n for n in range(400) if cache.put(n, bytes([n % 251]) * 10_000)]
    assert all(cache.get(n) in (None, bytes([n % 251]) * 10_000) for n in kept)
    return len(kept)


calls = {"pages": use_pages, "objects": use_objects}
with bp.Pool.create("shared", 12 << 20, directory=sys.argv[1], page_size=4096, max_clients=8) as pool:
    done = [calls[what](pool) > 30 for what in sys.argv[2].split()]
    print(done, pool.check())
    pool.unlink(discard=True)
"""


@pytest.mark.parametrize("order", ["pages objects pages", "objects pages objects"])
def test_pages_and_objects_evict_each_other_on_a_full_tmpfs(tmp_path: Path, order: str) -> None:
    """The pages of a space had all of the tmpfs: no cache could be opened (SharedMemoryFull), and one that was open kept
    nothing, although all of these pages could be evicted. In the other order, no space could be opened."""
    out = on_small_tmpfs(SHARED.replace("sys.argv[2]", repr(order)), tmp_path, "4m")
    assert out == "[True, True, True] []\n"


def test_an_overwrite_needs_no_call_of_the_kernel(pool: bp.Pool) -> None:
    """Each put of a large value wrote to the file, and all writes to a file wait for each other: four processes took ten
    times as long as one, although the block had memory from the value before."""

    def written() -> int:
        return int(dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())["syscw"])

    cache, values = pool.cache("overwritten"), [bytes([n]) * 200_000 for n in range(8)]
    for _ in range(5):
        for n in range(8):
            cache.put(n, values[n])
    before = written()
    for _ in range(20):
        for n in range(8):
            cache.put(n, values[n])
    assert written() - before < 20
    assert all(cache.get(n) == values[n] for n in range(8))


def test_a_resize_takes_the_log_page_that_has_no_value_any_more(pools: Any) -> None:
    """A resize that evicted the last value left the log page that was being filled to the caches: it raised PoolExhausted, and so did each miss
    after it, for want of frames whose memory nobody used."""
    pool = pools.create(64 * PAGE, extent_size=4 * PAGE)
    cache = pool.cache("cache")
    assert cache.put(1, b"short")
    fill(pool.open_scratch("work", 10), range(10))
    derived = pool.open_derived("derived", 8, lambda n, out: out.fill(n))
    pool.resize(25 * PAGE)
    assert cache.get(1) is None
    assert derived[3][0] == 3
    assert pool.check() == []
