"""What a cache does with odd settings, odd loaders, and loads that meet each other."""

import asyncio
import functools
import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import bufferpool as bp
from bufferpool.errors import CacheRemoved, TooManySpaces, WouldDeadlock
from bufferpool.objects.cache import BUSY
from tests.conftest import WAIT, wait_until

MIB = 1 << 20


@pytest.fixture
def pool(pools: Any) -> bp.Pool:
    made: bp.Pool = pools.create(32 * MIB, page_size=8192)
    return made


# ---- keys -----------------------------------------------------------------------------------------


def test_an_integer_of_numpy_is_the_key_that_the_int_is(pool: bp.Pool) -> None:
    """Ids that came out of an array were refused as keys (TypeError), also as arguments of a memoized function."""
    cache, calls = pool.cache("ids"), []
    cache.put(np.int64(5), b"five")
    cache.put((np.uint8(7), "x"), b"seven")
    assert cache.get(5) == b"five"
    assert cache.get((7, "x")) == b"seven"

    @cache.memoize(version=1)
    def twice(n: int) -> int:
        calls.append(n)
        return int(n) * 2

    assert [twice(np.int32(4)), twice(4)] == [8, 8]
    assert len(calls) == 1
    for key in (np.float64(2), np.arange(3), 1.5):
        with pytest.raises(TypeError, match="a key is"):
            cache.get(key)


def test_a_value_that_cannot_be_pickled_is_named(pool: bp.Pool) -> None:
    """The error of pickle alone named neither the value nor what a cache keeps."""
    for call in (lambda c: c.put("f", lambda: 1), lambda c: c.get_or_load("f", lambda: lambda: 1)):
        with pytest.raises((AttributeError, pickle.PicklingError)) as refused:
            call(pool.cache("values"))
        assert "objects that can be pickled; this value, of type function" in refused.value.__notes__[0]
    assert pool.cache("values").get_or_load("f", lambda: 5) == 5


# ---- settings -------------------------------------------------------------------------------------


@pytest.mark.parametrize("ttl", [1e-9, 1e-10, 5e-324])
def test_the_shortest_ttl_expires(pool: bp.Pool, ttl: float) -> None:
    """A ttl below a nanosecond was 0 in nanoseconds, which is none: the value stayed for ever."""
    one, two = pool.cache("one"), pool.cache("two", ttl=ttl, jitter=0.9)
    for _ in range(50):  # the jitter, too
        one.put("key", 1, ttl=ttl)
        two.put("key", 1)
        wait_until(lambda: "key" not in one, "it expires")
        wait_until(lambda: "key" not in two, "it expires")


@pytest.mark.parametrize("what", ["limit", "reserve"])
@pytest.mark.parametrize("size", [2**64, 2**70, 10**40, "100000000TiB"])
def test_a_size_that_no_pool_has_is_refused(pool: bp.Pool, what: str, size: Any) -> None:
    """Such a setting raised an OverflowError from C."""
    with pytest.raises(ValueError, match=f"{what} .*must be at most|{what} .*more than caches can have"):
        pool.cache("sizes", **{what: size})


def test_settings_that_contradict_each_other_are_refused(pool: bp.Pool) -> None:
    """Given one after the other, a reserve above the limit was taken, and so was one above the budget."""
    cache = pool.cache("one", limit=4 * MIB)
    with pytest.raises(ValueError, match=r"reserve .* must not be above limit"):
        pool.cache("one", reserve=5 * MIB)
    with pytest.raises(ValueError, match="more than caches can have"):
        pool.cache("two", reserve=40 * MIB)
    pool.cache("two", reserve=20 * MIB)
    with pytest.raises(ValueError, match="others have reserved 20971520"):
        pool.cache("three", reserve=20 * MIB)
    with pytest.raises(ValueError, match="limit must be above 0"):
        pool.cache("one", limit=0)
    assert (cache.stats().limit, cache.stats().reserve) == (4 * MIB, 0)


def test_new_settings_hold_for_older_handles(pool: bp.Pool, pools: Any) -> None:
    """A handle kept the ttl that the cache had when it was opened: values of one process expired, of another not."""
    old = pool.cache("shared")
    old.put("before", 1)
    pools.attach(pool).cache("shared", ttl=0.01, limit=3 * MIB)
    old.put("after", 2)
    wait_until(lambda: "after" not in old, "it expires")
    assert old.get("before") == 1
    assert old.stats().limit == 3 * MIB


# ---- delete, and the figures ------------------------------------------------------------------------


def test_delete_says_whether_there_was_a_value(pool: bp.Pool) -> None:
    """delete() returned True for an expired value, and for the exception of a load."""
    cache = pool.cache("deleted")
    cache.put("expired", 1, ttl=0.001)
    wait_until(lambda: "expired" not in cache, "it expires")
    assert not cache.delete("expired")
    with pytest.raises(ZeroDivisionError):
        cache.get_or_load("failed", lambda: 1 // 0)
    assert not cache.delete("failed")
    cache.put("none", None)
    assert cache.delete("none")
    assert not cache.delete("none")


def test_superseded_loads_are_counted_apart(pool: bp.Pool) -> None:
    """A load that came after a put was counted with the values for which there was no room."""
    cache = pool.cache("counted", limit=MIB)

    def load(key: str) -> str:
        cache.put(key, "newer")
        return "older"

    assert cache.get_or_load("key", load) == "older"
    assert not cache.put("large", bytes(600_000))
    stats = cache.stats()
    assert (stats.superseded, stats.refused) == (1, 1)


def test_caches_can_be_removed(pool: bp.Pool, pools: Any) -> None:
    """A pool had at most 64 caches in its life."""
    held = []
    for n in range(150):
        cache = pool.cache(f"cache {n}", ttl=0.5)
        assert (cache.stats().hits, cache.stats().evictions, len(cache)) == (0, 0, 0)
        cache.put("key", bytes([n]) * 70_000)
        held.append(cache.get("key"))
        assert pool.remove_cache(f"cache {n}")
        for use in (lambda c=cache: c.get("key"), lambda c=cache: c.put("key", 1), lambda c=cache: len(c)):
            with pytest.raises(CacheRemoved, match="open it again"):
                use()
    assert not pool.remove_cache("cache 0")
    assert all(bytes(view) == bytes([n]) * 70_000 for n, view in enumerate(held))
    other = pools.attach(pool)
    for n in range(64):
        other.cache(f"more {n}").put("key", n)
    with pytest.raises(TooManySpaces, match="remove_cache"):
        pool.cache("one more")
    assert [one.name for one in pool.caches()] == [f"more {n}" for n in range(64)]
    assert [pool.cache(f"more {n}").get("key") for n in range(64)] == list(range(64))


# ---- functions ----------------------------------------------------------------------------------------


def test_a_coroutine_function_is_memoized_as_one(pool: bp.Pool) -> None:
    """The cache tried to keep the coroutine itself, which cannot be pickled."""
    cache, calls = pool.cache("async"), []

    @cache.memoize(version=1)
    async def double(n: int) -> int:
        calls.append(n)
        await asyncio.sleep(0.01)
        return 2 * n

    async def run() -> list[int]:
        return await asyncio.gather(*(double(n % 3) for n in range(9)))

    assert asyncio.run(run()) == [0, 2, 4] * 3
    assert sorted(calls) == [0, 1, 2]
    assert double.cache_key(1) in cache  # type: ignore[attr-defined]


def _generator() -> Iterator[int]:
    yield 1


@pytest.mark.parametrize("function", [_generator, functools.partial(int, "7")], ids=["generator", "partial"])
def test_what_cannot_be_memoized_is_refused(pool: bp.Pool, function: Callable[[], Any]) -> None:
    with pytest.raises(TypeError, match=r"return a list|which has a name"):
        pool.cache("refused").memoize()(function)


def test_loaders_of_the_other_kind_are_refused(pool: bp.Pool) -> None:
    cache = pool.cache("refused")

    async def coroutine() -> int:
        return 1

    with pytest.raises(TypeError, match="use aget_or_load"):
        cache.get_or_load("key", coroutine)
    with pytest.raises(TypeError, match="use get_or_load"):
        asyncio.run(cache.aget_or_load("key", lambda: 1))  # type: ignore[arg-type, return-value]
    assert cache.get_or_load("key", lambda: 1, timeout=WAIT) == 1


# ---- exceptions that do not travel -----------------------------------------------------------------------

LOADER = """
import sys, time
import bufferpool as bp

class Mine(Exception):  # the one that waits has no such class
    pass

class Text(Exception):
    def __reduce__(self):
        return "sys"

class Raises(Exception):
    def __reduce__(self):
        raise RuntimeError("not to be pickled")

class Exits(Exception):
    def __reduce__(self):
        return exit_here, ()

def exit_here():
    return 1 // 0

errors = {"mine": Mine("mine"), "text": Text("text"), "raises": Raises("raises"), "exits": Exits("exits"), "huge": ValueError("huge " + 30_000_000 * "x")}

def load(key):
    print("began", flush=True)
    sys.stdin.readline()
    raise errors[key]

with bp.Pool.attach(sys.argv[1]) as pool:
    try:
        pool.cache("errors", limit=int(sys.argv[3])).get_or_load(sys.argv[2], load)
    except Exception as error:
        assert error is errors[sys.argv[2]]
"""


@pytest.mark.parametrize(
    ("kind", "limit"),
    [*((kind, 8 * MIB) for kind in ("mine", "text", "raises", "exits", "huge")), ("mine", 20_000), ("huge", 20_000)],
)
def test_an_exception_that_does_not_travel_comes_as_text(pool: bp.Pool, child: Any, kind: str, limit: int) -> None:
    """The one that waited got an AttributeError of pickle, or no exception at all, and loaded again."""
    pool.cache("errors", limit=limit)
    began = multiprocessing.get_context("fork").Event()
    loading = _Loader(LOADER, pool.name, kind, str(limit))
    loading.wait_until_begun()
    waiting = child(_wait_for, pool, kind, began, context="fork")
    assert began.wait(WAIT)
    time.sleep(0.3)  # so that it waits; one that came later would load
    loading.go()
    outcome = waiting.result()
    assert outcome[0] == "LoaderFailed"
    assert kind in outcome[1]
    assert len(outcome[1]) < 2000


class _Loader:
    """A program with a ``__main__`` of its own, that loads a value when the test asks it to."""

    def __init__(self, code: str, *args: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, *args], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def wait_until_begun(self) -> None:
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "began\n"

    def go(self) -> None:
        _, _ = self.process.communicate("go\n", timeout=WAIT)
        assert self.process.returncode == 0


def _wait_for(pool: bp.Pool, key: str, began: Any) -> tuple[str, str]:
    began.set()
    try:
        pool.cache("errors").get_or_load(key, lambda: "a load of its own")
    except Exception as error:  # noqa: BLE001 - of any type
        return type(error).__name__, str(error)
    return "nothing", ""


# ---- loaders that end what they are in --------------------------------------------------------------------


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("awaited", [False, True])
def test_a_loader_may_close_the_pool(pool: bp.Pool, pools: Any, fails: bool, awaited: bool) -> None:
    """The load was still that of a client that had left, whose number another client got: callers for the key then waited for
    ever."""
    other = pools.attach(pool)

    def load(key: str) -> str:
        other.close()
        if fails:
            raise KeyError(key)
        return "value"

    async def aload(key: str) -> str:
        return load(key)

    def run() -> str:
        cache = other.cache("closed")
        return asyncio.run(cache.aget_or_load("key", aload)) if awaited else cache.get_or_load("key", load)

    if fails:
        with pytest.raises(KeyError, match="key"):
            run()
    else:
        assert run() == "value"
    again = pools.attach(pool)  # it has the number of the one that left
    assert pool.cache("closed").get_or_load("key", lambda: "mine", timeout=WAIT) == "mine"
    assert again.cache("closed").get("key") == "mine"


@pytest.mark.parametrize("ends", ["returns", "raises", "asks again"])
def test_a_forked_child_does_not_end_its_parents_load(pool: bp.Pool, ends: str) -> None:
    """A child that was forked in a loader had the parent's load: what it returned was kept in the parent's name, and its
    exception was raised in all waiting callers."""
    cache, pids = pool.cache("forks"), []

    def load(key: str) -> str:
        pid = os.fork()
        if pid:
            pids.append(pid)
            assert os.waitpid(pid, 0)[1] == 0
            return "the parent's"
        if ends == "asks again":
            with pytest.raises(bp.errors.WaitTimeout):  # the parent is loading it; not WouldDeadlock
                cache.get_or_load(key, lambda: "the child's", timeout=0.05)
            os._exit(0)
        if ends == "raises":
            raise KeyError(key)
        return "the child's"

    parent = os.getpid()
    try:
        value = cache.get_or_load("key", load)
    except KeyError:
        os._exit(0)
    if os.getpid() != parent:
        os._exit(0)
    assert value == "the parent's"
    assert cache.get("key") == "the parent's"
    assert len(pids) == 1


# ---- loads that meet each other ------------------------------------------------------------------------------


def test_values_that_cannot_be_kept_are_loaded_at_the_same_time(pool: bp.Pool) -> None:
    """The waiting callers loaded the value one after the other, each while the others waited."""
    cache = pool.cache("unkept", limit=MIB)
    began, go, together = threading.Event(), threading.Event(), threading.Barrier(5)

    def first(key: str) -> bytes:
        began.set()
        assert go.wait(WAIT)
        return bytes(600_000)

    def mine(key: str) -> bytes:
        together.wait(WAIT)  # broken if they come one after the other
        return bytes(600_000)

    sizes: list[int] = []
    threads = [threading.Thread(target=lambda f=f: sizes.append(len(cache.get_or_load("key", f)))) for f in [first] + [mine] * 5]  # fmt: skip
    threads[0].start()
    assert began.wait(WAIT)
    for thread in threads[1:]:
        thread.start()
    time.sleep(0.3)  # so that they wait
    go.set()
    for thread in threads:
        thread.join(WAIT)
    assert sizes == [600_000] * 6
    assert "key" not in cache


@pytest.mark.parametrize("first_is_stale", [False, True])
def test_renewals_and_plain_loads_are_one_load(pool: bp.Pool, first_is_stale: bool) -> None:
    """A plain load began beside the renewal of an expired value, and one of the two results was thrown away."""
    cache = pool.cache("renewed")
    cache.put("key", "old", ttl=0.01)
    wait_until(lambda: "key" not in cache, "it expires")
    began, go, calls = threading.Event(), threading.Event(), []

    def load(key: str) -> str:
        calls.append(key)
        began.set()
        assert go.wait(WAIT)
        return "new"

    found: list[tuple[bool, str]] = []

    def ask(stale: bool) -> None:
        found.append((stale, cache.get_or_load("key", load, stale_while_loading=stale, timeout=WAIT)))

    threads = [threading.Thread(target=ask, args=(stale,)) for stale in (first_is_stale, False, True, False)]
    threads[0].start()
    assert began.wait(WAIT)
    for thread in threads[1:]:
        thread.start()
    threads[2].join(WAIT)  # it has the old value, while the new one is loaded
    assert found == [(True, "old")]
    for n in range(300):  # an eviction does not end the load
        cache.put(n, bytes(100_000))
    time.sleep(0.2)
    go.set()
    for thread in threads:
        thread.join(WAIT)
    assert sorted(value for _, value in found) == ["new", "new", "new", "old"]
    assert calls == ["key"]
    assert cache.get("key") == "new"


@pytest.mark.parametrize("stale", [False, True])
def test_those_who_wait_for_a_renewal_that_fails_go_on(pool: bp.Pool, stale: bool) -> None:
    cache = pool.cache("renewed")
    cache.put("key", "old", ttl=0.01)
    wait_until(lambda: "key" not in cache, "it expires")
    began, go, outcomes = threading.Event(), threading.Event(), list[str]()

    def fails(key: str) -> str:
        began.set()
        assert go.wait(WAIT)
        raise KeyError(key)

    def ask(load: Any, stale: bool) -> None:
        try:
            outcomes.append(cache.get_or_load("key", load, stale_while_loading=stale, timeout=WAIT))
        except KeyError:
            outcomes.append("raised")

    threads = [threading.Thread(target=ask, args=(fails, stale)), threading.Thread(target=ask, args=(lambda: "mine", False))]  # fmt: skip
    threads[0].start()
    assert began.wait(WAIT)
    threads[1].start()
    time.sleep(0.2)
    go.set()
    for thread in threads:
        thread.join(WAIT)
    assert sorted(outcomes) == (["mine", "raised"] if stale else ["raised", "raised"])


def test_the_renewal_of_a_dead_process_is_taken_over(pool: bp.Pool, child: Any) -> None:
    cache = pool.cache("renewed")
    cache.put("key", "old", ttl=0.01)
    wait_until(lambda: "key" not in cache, "it expires")
    began = multiprocessing.get_context("spawn").Event()
    loading = child(_hang, pool, began, context="spawn")
    assert began.wait(WAIT)
    assert cache.get_or_load("key", lambda: "not called", stale_while_loading=True) == "old"
    waiting = threading.Thread(target=lambda: cache.get_or_load("key", lambda: "new", timeout=WAIT))
    waiting.start()
    time.sleep(0.1)
    loading.kill()
    waiting.join(WAIT)
    assert cache.get("key") == "new"
    assert pool.check() == []


@pytest.mark.parametrize("renewed", [False, True])
def test_a_coroutine_takes_over_the_load_of_a_dead_process(pool: bp.Pool, child: Any, renewed: bool) -> None:
    """It got WaitTimeout, whatever its time was: the short time of one look at the load ended while it reaped the process."""
    cache = pool.cache("renewed")
    if renewed:
        cache.put("key", "old", ttl=0.01)
        wait_until(lambda: "key" not in cache, "it expires")
    began = multiprocessing.get_context("spawn").Event()
    loading = child(_hang, pool, began, context="spawn")
    assert began.wait(WAIT)

    async def load() -> str:
        return "new"

    async def wait() -> list[str]:
        waiting = [asyncio.create_task(cache.aget_or_load("key", load, timeout=WAIT)) for _ in range(3)]
        await asyncio.sleep(0.1)
        loading.kill()
        return await asyncio.gather(*waiting)

    assert asyncio.run(wait()) == ["new"] * 3
    assert pool.check() == []


def test_a_process_that_shall_not_wait_takes_over_the_load_of_a_dead_one(pool: bp.Pool, child: Any) -> None:
    cache = pool.cache("renewed")
    began = multiprocessing.get_context("spawn").Event()
    loading = child(_hang, pool, began, context="spawn")
    assert began.wait(WAIT)
    assert cache.begin("key", 0.0, False, False, False)[0] == BUSY
    loading.kill()
    loads: list[Any] = []
    wait_until(lambda: cache.begin("key", 0.0, False, True, False, loads)[0] != BUSY, "the dead one is reaped")
    assert len(loads) == 1
    assert cache.fail(loads[0], "key", None, False, 1.0)
    assert pool.check() == []


def _hang(pool: bp.Pool, began: Any) -> None:
    def load(key: str) -> str:
        began.set()
        time.sleep(WAIT)
        return ""

    pool.cache("renewed").get_or_load("key", load, stale_while_loading=True)


# ---- what a user has tried -------------------------------------------------------------------------


def test_coroutines_that_wait_for_a_load_are_counted_once_each(pool: bp.Pool) -> None:
    """Coroutines ask again and again, and each time was counted as a wait: 115 for 19 coroutines."""
    cache = pool.cache("waits")

    async def load(key: Any) -> int:
        await asyncio.sleep(0.2)
        return 1

    async def ask() -> list[int]:
        return await asyncio.gather(*(cache.aget_or_load("key", load) for _ in range(20)))

    assert asyncio.run(ask()) == [1] * 20
    assert cache.stats().loads == 1
    assert cache.stats().waits <= 19


def test_a_key_that_is_nested_too_deep_is_refused(pool: bp.Pool) -> None:
    """The message said that a key may be a tuple, and that this one was a tuple."""
    cache, key = pool.cache("deep"), ("leaf",)
    for _ in range(8):
        key = (key,)  # type: ignore[assignment]
    cache.put(key, 1)
    assert cache.get(key) == 1
    with pytest.raises(ValueError, match="nested 9 deep"):
        cache.put((key,), 1)
    with pytest.raises(ValueError, match="without NUL"):
        pool.cache("a\0b")


def test_a_plain_call_does_not_wait_for_a_task_of_its_own_thread(pool: bp.Pool) -> None:
    """A task that called get_or_load, while another task of its event loop awaited the load of the key, waited for ever: the loop that
    would have ended the load stood still. Greenlets of one thread did the same."""
    cache = pool.cache("tasks")

    async def both() -> bytes:
        begun, go_on = asyncio.Event(), asyncio.Event()

        async def load() -> bytes:
            begun.set()
            await go_on.wait()
            return b"value"

        task = asyncio.create_task(cache.aget_or_load("key", load))
        await begun.wait()
        with pytest.raises(WouldDeadlock, match="another task or greenlet of this thread is loading 'key'"):
            cache.get_or_load("key", lambda: b"other", timeout=20.0)
        assert bytes(cache.get_or_load("another", lambda: b"other")) == b"other"
        go_on.set()
        return bytes(await task)

    assert asyncio.run(both()) == b"value"
    assert bytes(cache.get_or_load("key", lambda: b"other")) == b"value"
