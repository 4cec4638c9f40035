"""A client is stopped while it holds a lock of the pool: calls with a timeout end when that is over.

``write(timeout=1)``, ``get(n, timeout=1)`` and the others waited for the memory lock without a limit: a process that
was stopped (Ctrl-Z, a debugger, a frozen cgroup) between two instructions held up every miss and every write of all
the others, whatever their timeout said. The lock's word is set by hand here, to a client that lives and does nothing.
"""

import asyncio
import contextlib
import os
import random
import signal
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import bufferpool as bp
from bufferpool._core import fields
from bufferpool.figures.names import FrameState
from bufferpool.objects.cache import Cache as ObjectCache
from tests.conftest import PAGE, WAIT

SHORT = 0.05


def _attach_and_wait(name: str, said: object, go_on: object) -> None:
    with bp.Pool.attach(name):
        said.set()  # type: ignore[attr-defined]
        go_on.wait()  # type: ignore[attr-defined]


@pytest.fixture
def owner(pool, child, spawn) -> Iterator[int]:
    """The number of another client, which lives."""
    said, go_on = spawn.Event(), spawn.Event()
    process = child(_attach_and_wait, pool.name, said, go_on)
    assert said.wait(WAIT)
    (number,) = (c.client for c in pool.clients() if c.pid != os.getpid())
    yield number
    go_on.set()
    process.process.join(WAIT)


@pytest.fixture
def in_time() -> Iterator[None]:
    """A wait that does not end by itself is ended by a signal, with another error than the test wants."""

    def ring(*_: object) -> None:
        raise AssertionError("the call still waits")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(int(WAIT) * 2)  # starting the owner takes long under load
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def held(pool: bp.Pool, lock: str, owner: int) -> Iterator[None]:
    """Inside the block the client has the lock."""
    at = fields()[f"Header.{lock}.word"][0]
    with open(pool.path, "r+b", buffering=0) as file:
        file.seek(at)
        file.write(struct.pack("<I", owner))
        try:
            yield
        finally:
            file.seek(at)
            file.write(struct.pack("<I", 0))


CALLS: dict[str, Callable[[bp.Space], object]] = {
    "get": lambda table: table.get(5, timeout=SHORT),
    "pin": lambda table: table.pin(5, timeout=SHORT),
    "pin_many": lambda table: table.pin_many([5, 6], timeout=SHORT),
    "read_many": lambda table: table.read_many([5, 6], timeout=SHORT),
    "write": lambda table: table.write(5, timeout=SHORT).__enter__(),
}


@pytest.mark.usefixtures("in_time")
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_a_miss(pool, data_file, owner, call) -> None:
    """The page is absent, so that a frame is needed: the error names the client that has the lock."""
    table = pool.open_file(data_file(16), "r+")
    with held(pool, "memory", owner), pytest.raises(bp.WaitTimeout, match=f"client {owner} "):
        call(table)
    assert table[5].size == PAGE
    assert pool.check() == []


def _in_group(pool: bp.Pool, table: bp.Space) -> None:
    with pool.publish_many() as group:
        group.write(table, 5, timeout=SHORT)[:] = 1
        group.write(table, 6, timeout=SHORT)[:] = 2


def _in_block(write: bp.Write) -> None:
    with write as page:
        page[:] = 1


TWO = np.ones((2, PAGE), np.uint8)
FIRST_CALLS: dict[str, Callable[[bp.Pool, bp.Space, Any], object]] = {
    **{name: lambda _, table, __, call=call: call(table) for name, call in CALLS.items()},  # type: ignore[misc]
    "write and end": lambda _, table, __: _in_block(table.write(5, timeout=SHORT)),
    "write fresh": lambda _, table, __: _in_block(table.write(5, fresh=True, timeout=SHORT)),
    "write_many": lambda _, table, __: table.write_many([5, 6], TWO, timeout=SHORT),
    "append": lambda _, table, __: _in_block(table.append(timeout=SHORT)),
    "append_many": lambda _, table, __: table.append_many(TWO, timeout=SHORT),
    "grow": lambda _, table, __: table.grow(70, timeout=SHORT),
    "group": lambda pool, table, _: _in_group(pool, table),
    "resize": lambda pool, *_: pool.resize(48 * PAGE, timeout=SHORT),
    "resize up": lambda pool, *_: pool.resize(400 * PAGE, timeout=SHORT),
    "trim": lambda pool, *_: pool.trim(4 * PAGE, timeout=SHORT),
    "flush": lambda pool, *_: pool.flush(timeout=SHORT),
    "check": lambda pool, *_: pool.check(timeout=SHORT),
    "open": lambda pool, _, path: pool.open_file(path, "r+", timeout=SHORT),
    "open with a limit": lambda pool, _, path: pool.open_file(path, "r+", limit=16 * PAGE, timeout=SHORT),
    "open with a long name": lambda pool, _, path: pool.open_file(path, "r+", name="n" * 2000, timeout=SHORT),
}


@pytest.mark.usefixtures("in_time")
@pytest.mark.parametrize("lock", ["memory", "growth", "directory", "objects", "advice"])
@pytest.mark.parametrize("call", FIRST_CALLS.values(), ids=FIRST_CALLS.keys())
def test_the_first_call_of_a_pool(make_pool, attach, data_file, lock, call) -> None:
    """Nothing has memory yet: neither an entry of the space, nor a frame, nor the slot of a seventeenth space.

    ``get(n, timeout=)`` and the others asked for the memory of the page's entry before their time began, so that they waited for
    a stopped owner of the growth lock without a limit. So did ``open_file(timeout=)`` for the slot of the space.
    """
    pool = make_pool(max_capacity=512 * PAGE)
    before = {c.client for c in pool.clients()}
    table = pool.open_file(data_file(64), "r+", name="table", max_pages=128)
    for i in range(15):
        pool.open_scratch(f"space-{i}", 1)
    (owner,) = {c.client for c in attach(pool).clients()} - before
    with held(pool, lock, owner), contextlib.suppress(bp.WaitTimeout, bp.PoolExhausted):
        call(pool, table, data_file(64))
    assert table[6].size == PAGE


@pytest.mark.usefixtures("in_time")
def test_a_derived_page(pool, owner) -> None:
    """The loader is called before a frame is taken; its content is given up with the call."""
    made = pool.open_derived("made", 16, lambda n, out: out.fill(n))
    with held(pool, "memory", owner), pytest.raises(bp.WaitTimeout):
        made.get(3, timeout=SHORT)
    assert made[3][0] == 3
    assert pool.check() == []


@pytest.mark.usefixtures("in_time")
def test_the_end_of_a_write(pool, data_file, owner) -> None:
    """Nothing is published, and the page can be written again."""
    table = pool.open_file(data_file(16), "r+")
    before = np.array(table[5])
    write = table.write(5, timeout=SHORT)
    write.__enter__()[:] = 7
    with held(pool, "memory", owner), pytest.raises(bp.WaitTimeout):
        write.__exit__(None, None, None)
    assert np.array_equal(table[5], before)
    with table.write(5) as page:
        page[:] = 8
    assert table[5][0] == 8
    assert pool.check() == []


@pytest.mark.usefixtures("in_time")
def test_the_end_of_an_append(pool, data_file, owner) -> None:
    """The page needs a frame; its number is given back."""
    table = pool.open_file(data_file(16), "r+", max_pages=32)
    with held(pool, "memory", owner), pytest.raises(bp.WaitTimeout), table.append(timeout=SHORT):
        pass
    with table.append() as page:
        page[:] = 3
    assert len(table) == 17
    assert pool.check() == []


@pytest.mark.usefixtures("in_time")
def test_the_number_of_an_append(pool, data_file, owner) -> None:
    """A number may need memory for its entry, under the growth lock."""
    table = pool.open_file(data_file(16), "r+", max_pages=16384)
    with held(pool, "growth", owner), pytest.raises(bp.WaitTimeout, match=f"client {owner} "):
        _ = [table.append(timeout=SHORT) for _ in range(16384)]
    with table.append() as page:
        page[:] = 3
    assert pool.check() == []


@pytest.mark.usefixtures("in_time")
def test_the_page_of_a_dead_client_that_cannot_be_reaped_now(pool, data_file, owner, child) -> None:
    """Reaping needs the memory lock too: the wait for the page of a client that was killed ends in time."""
    table = pool.open_file(data_file(16), "r+", name="table")
    assert child(_die_in_a_write, pool.name).process.join(WAIT) is None
    with held(pool, "memory", owner), pytest.raises(bp.WaitTimeout):
        table.write(3, timeout=SHORT).__enter__()
    with table.write(3) as page:
        page[:] = 5
    assert pool.check() == []


def _die_in_a_write(name: str) -> None:
    with bp.Pool.attach(name) as pool, pool.space("table", "r+").write(3):
        signal.raise_signal(signal.SIGKILL)


def _dies_with_everything(name: str) -> None:
    """Is killed with pins, with a page that it writes, and with a private scratch space."""
    pool = bp.Pool.attach(name)
    table = pool.space("table", "r+")
    pages = [table[n] for n in range(4)]
    scratch = pool.open_scratch("own", 8, lifetime="process")
    with scratch.write(0), table.write(5):
        assert len(pages) == 4
        signal.raise_signal(signal.SIGKILL)


@pytest.mark.usefixtures("in_time")
@pytest.mark.parametrize("lock", ["memory", "objects"])
def test_a_reap_leaves_to_the_next_what_it_cannot_do(pool, data_file, owner, child, lock) -> None:
    """A reap waited for the lock without a limit, in a fork, in a miss and in the steward: and other threads for it."""
    table = pool.open_file(data_file(16), "r+", name="table")
    pool.cache("objects").put("key", b"value")
    assert child(_dies_with_everything, pool.name).process.join(WAIT) is None
    with held(pool, lock, owner):
        assert pool.reap() == 0
        assert sum(not c.alive for c in pool.clients()) == 1
    assert pool.reap() == 1
    with table.write(5) as page:
        page[:] = 1
    assert pool.check() == []


def _close_when_told(name: str, ready: object, go_on: object) -> str:
    pool = bp.Pool.attach(name)
    scratch = pool.open_scratch("own", 64, lifetime="process")
    for n in range(32):
        with scratch.write(n) as page:
            page[:] = n
    pages = [pool.space("table")[n] for n in range(4)]
    with pool.space("table", "r+").write(0) as page:  # supersedes a page that an array looks at
        page[:] = 1
    pool.cache("objects").put("key", b"value")
    ready.set()  # type: ignore[attr-defined]
    assert go_on.wait(WAIT)  # type: ignore[attr-defined]
    del pages
    pool.close()
    with bp.Pool.attach(name) as again:  # the process may attach again
        return str(again.clients()[-1].client)


@pytest.mark.usefixtures("in_time")
@pytest.mark.parametrize("lock", ["memory", "objects"])
def test_a_close_ends(pool, data_file, owner, child, spawn, lock) -> None:
    """Closing waited for ever. What it could not do, the next reap does: no page, frame or slot is lost."""
    table = pool.open_file(data_file(16), "r+", name="table")
    before = len(pool.clients())
    ready, go_on = spawn.Event(), spawn.Event()
    closing = child(_close_when_told, pool.name, ready, go_on)
    assert ready.wait(WAIT)
    with held(pool, lock, owner):
        go_on.set()
        closing.result()
    pool.reap()
    assert len(pool.clients()) == before
    assert [s.name for s in pool.spaces()] == ["table"]
    assert table[0][0] == 1
    assert not np.any(pool.frames()["state"] == FrameState.BUSY)
    assert pool.check() == []


@pytest.mark.usefixtures("in_time")
def test_a_check(pool, owner) -> None:
    with held(pool, "memory", owner), pytest.raises(bp.WaitTimeout, match=f"client {owner} "):
        pool.check(timeout=SHORT)
    assert pool.check(timeout=WAIT) == []


@pytest.mark.usefixtures("in_time")
def test_a_resize(pool, data_file, owner) -> None:
    """The error names the client; the budget holds, and the next call keeps it."""
    table = pool.open_file(data_file(64))
    _ = table[:64].sum()
    with held(pool, "memory", owner), pytest.raises(bp.PoolExhausted, match=f"client {owner} has the memory lock"):
        pool.resize(32 * PAGE, timeout=SHORT)
    pool.resize(32 * PAGE, timeout=WAIT)
    assert pool.stats().resident_bytes <= 32 * PAGE
    assert pool.check() == []


@pytest.mark.usefixtures("in_time")
def test_a_trim(pool, data_file, owner) -> None:
    """A trim gives back what it can within its time: here nothing."""
    table = pool.open_file(data_file(64))
    _ = table[:64].sum()
    with held(pool, "memory", owner):
        assert pool.trim(32 * PAGE, timeout=SHORT) == 0
        assert pool.trim(timeout=SHORT) == 0
    assert pool.trim(32 * PAGE) >= 32 * PAGE
    assert pool.check() == []


def _work_for_ever(name: str, kind: int) -> None:
    pool, draw = bp.Pool.attach(name), random.Random(kind)
    table, cache = pool.space("table", "r+"), pool.cache("values")
    while True:
        with contextlib.suppress(bp.BufferPoolError):
            if kind == 0:
                with table.write(draw.randrange(200)) as page:
                    page[:] = 1
            elif kind == 1:
                _ = table[draw.randrange(200)][0]
                cache.put(str(draw.randrange(20)), bytes(draw.randrange(9000)))
            else:
                space = pool.open_scratch("own", 4, lifetime="process")
                with space.write(1) as page:
                    page[:] = 1
                space.remove(discard=True)
                pool.trim(4 * PAGE)


@pytest.mark.usefixtures("in_time")
def test_calls_end_while_clients_are_stopped_anywhere(pool, data_file, child) -> None:
    """Clients at work are stopped at random moments, with whatever they hold: each call ends, and nothing is lost or left."""
    table, draw = pool.open_file(data_file(200), "r+", name="table"), random.Random(1)
    workers = [child(_work_for_ever, pool.name, kind) for kind in range(3)]
    while len(pool.clients()) < 4:
        time.sleep(0.01)
    calls: list[Callable[[], object]] = [
        lambda: table.get(draw.randrange(200), timeout=SHORT),
        lambda: table.write(draw.randrange(200), timeout=SHORT).__enter__(),
        lambda: pool.resize(draw.choice((48, 64)) * PAGE, timeout=SHORT),
        lambda: pool.trim(4 * PAGE, timeout=SHORT),
        lambda: pool.flush(timeout=SHORT),
        lambda: pool.open_file(table.path, "r+", timeout=SHORT),
        lambda: pool.check(timeout=SHORT),
        pool.reap,
        lambda: bp.Pool.attach(pool.name).close(),
    ]
    for _ in range(15):
        time.sleep(draw.random() * 0.02)
        for worker in workers:
            os.kill(worker.pid, signal.SIGSTOP)
        try:
            for call in calls:
                with contextlib.suppress(bp.BufferPoolError):
                    call()
        finally:
            for worker in workers:
                os.kill(worker.pid, signal.SIGCONT)
    for worker in workers:
        worker.kill()
    pool.reap()
    assert len(pool.clients()) == 1
    with table.write(3) as page:
        page[:] = 3
    pool.flush()  # waits for the flush of a call above, which continues in its thread, with its pins
    assert pool.check() == []


def _flush_and_wait(name: str, index: int, said: object, go_on: object) -> None:
    with bp.Pool.attach(name) as pool, pool.seg.lock_flush(index):
        said.set()  # type: ignore[attr-defined]
        go_on.wait()  # type: ignore[attr-defined]


@pytest.mark.usefixtures("in_time")
@pytest.mark.parametrize("how", ["open", "overwrite"])
def test_a_file_whose_flusher_is_stopped(pool, data_file, child, spawn, monkeypatch, how) -> None:
    """The file has changed, so that it is looked at under its flush lock: opening it waited for ever."""
    monkeypatch.setattr("bufferpool.spaces.directory.LOCKED_S", SHORT)
    path = data_file(16)
    table = pool.open_file(path, "r+", name="table")
    _ = table[3]
    path.write_bytes(bytes(16 * PAGE))
    calls: dict[str, Callable[[], object]] = {
        "open": lambda: pool.open_file(path, "r+", name="table", timeout=SHORT),
        "overwrite": lambda: pool.overwrite("table"),
    }
    said, go_on = spawn.Event(), spawn.Event()
    process = child(_flush_and_wait, pool.name, table.index, said, go_on)
    assert said.wait(WAIT)
    with pytest.raises(bp.WaitTimeout, match=r"client \d+ is flushing"):
        calls[how]()
    go_on.set()
    process.process.join(WAIT)
    calls[how]()
    assert pool.open_file(path, "r+", name="table")[3][0] == 0
    assert pool.check() == []


@pytest.mark.usefixtures("in_time")
def test_a_space_while_the_directory_is_locked(pool, data_file, owner, monkeypatch) -> None:
    """Opening and removing any space waited for ever for a client that was stopped while it opened one."""
    monkeypatch.setattr("bufferpool.spaces.directory.LOCKED_S", SHORT)
    table, path = pool.open_scratch("scratch", 4), data_file(16)
    with held(pool, "directory", owner):
        for call in (
            lambda: pool.open_file(path, timeout=SHORT),
            lambda: table.remove(discard=True),
            lambda: pool.discard("scratch"),
        ):
            with pytest.raises(bp.WaitTimeout, match=f"client {owner} is opening"):
                call()
    assert [space.name for space in pool.spaces()] == ["scratch"]
    pool.open_file(path)
    table.remove()
    assert pool.check() == []


# ---- the lock of the objects ----------------------------------------------------------------------------


class Rang(Exception):
    """What the handler of a signal raises."""


@contextlib.contextmanager
def signals(raises: bool) -> Iterator[None]:
    """Inside the block a signal comes every now and then. Its handler raises, or does nothing."""

    def ring(*_: object) -> None:
        if raises and not rang.is_set():
            rang.set()
            raise Rang

    def send() -> None:
        while not done.wait(0.1):
            os.kill(os.getpid(), signal.SIGUSR1)

    rang, done, thread = threading.Event(), threading.Event(), threading.Thread(target=send)
    before = signal.signal(signal.SIGUSR1, ring)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        signal.signal(signal.SIGUSR1, before)


def _never(_: object) -> bytes:
    raise AssertionError("the loader was called")


async def _anever(_: object) -> bytes:
    raise AssertionError("the loader was called")


@pytest.fixture
def cache(pool) -> ObjectCache:
    """A cache with values of all kinds of room, and one that has expired."""
    made = pool.cache("values")
    made.put("small", b"small")
    made.put("large", bytes(20_000))
    made.put("expired", b"old", ttl=1e-9)
    while "expired" in made and made.get("expired") is not None:
        time.sleep(0.001)
    return made


LOADS: dict[str, Callable[[ObjectCache], object]] = {
    "get_or_load": lambda cache: cache.get_or_load("absent", _never, timeout=SHORT),
    "get_or_load-expired": lambda cache: cache.get_or_load("expired", _never, timeout=SHORT),
    "get_or_load-at-once": lambda cache: cache.get_or_load("absent", _never, timeout=0),
    "aget_or_load": lambda cache: asyncio.run(cache.aget_or_load("absent", _anever, timeout=SHORT)),
    "aget_or_load-expired": lambda cache: asyncio.run(cache.aget_or_load("expired", _anever, timeout=SHORT)),
}


def _is_whole(pool: bp.Pool, cache: ObjectCache) -> None:
    """Nothing is left of a call that ended: no lock, no load, no block, no half-made entry."""
    assert bytes(cache.get("small")) == b"small"
    assert bytes(cache.get("large")) == bytes(20_000)
    for key in ("absent", "expired", "new"):
        assert bytes(cache.get_or_load(key, lambda: b"loaded", timeout=WAIT)) == b"loaded"
    assert cache.put("new", bytes(30_000))
    assert pool.check() == []


@pytest.mark.usefixtures("in_time")
@pytest.mark.parametrize("signalled", [False, True], ids=["quiet", "signals"])
@pytest.mark.parametrize("call", LOADS.values(), ids=LOADS.keys())
def test_a_load_that_cannot_begin(pool, cache, owner, call, signalled) -> None:
    """The call waited for ever, or raised InterruptedError after a signal whose handler raised nothing."""
    with contextlib.ExitStack() as stack:
        if signalled:
            stack.enter_context(signals(raises=False))
        stack.enter_context(held(pool, "objects", owner))
        with pytest.raises(bp.WaitTimeout, match=f"client {owner} "):
            call(cache)
    _is_whole(pool, cache)


OBJECT_CALLS: dict[str, Callable[[bp.Pool, ObjectCache], object]] = {
    "put": lambda _, cache: cache.put("new", b"value"),
    "put-large": lambda _, cache: cache.put("new", bytes(30_000)),
    "delete": lambda _, cache: cache.delete("small"),
    "clear": lambda _, cache: cache.clear(),
    "get_or_load": lambda _, cache: cache.get_or_load("absent", _never),
    "remove_cache": lambda pool, _: pool.remove_cache("values"),
    "cache": lambda pool, _: pool.cache("another"),
    "check": lambda pool, _: pool.check(),
}


@pytest.mark.usefixtures("in_time")
@pytest.mark.parametrize("call", OBJECT_CALLS.values(), ids=OBJECT_CALLS.keys())
def test_a_handler_that_raises(pool, cache, owner, call) -> None:
    """``put`` and the end of a load could not be interrupted, and ``delete`` said that there was no such key."""
    with held(pool, "objects", owner), signals(raises=True), pytest.raises(Rang):
        call(pool, cache)
    assert len(cache) == 3
    _is_whole(pool, cache)


@pytest.mark.usefixtures("in_time")
def test_a_cache_that_cannot_be_opened_or_removed(pool, cache, owner, monkeypatch) -> None:
    monkeypatch.setattr("bufferpool.objects.cache.LOCKED_S", SHORT)
    monkeypatch.setattr("bufferpool.pool.CACHE_LOCKED_S", SHORT)
    with held(pool, "objects", owner):
        for call in (lambda: pool.cache("another"), lambda: pool.remove_cache("values")):
            with pytest.raises(bp.WaitTimeout, match=f"client {owner} "):
                call()
    assert [one.name for one in pool.caches()] == ["values"]
    _is_whole(pool, cache)


@pytest.mark.usefixtures("in_time")
def test_the_first_cache_while_the_growth_lock_is_held(pool, owner, monkeypatch) -> None:
    monkeypatch.setattr("bufferpool.objects.cache.LOCKED_S", SHORT)
    with held(pool, "growth", owner), pytest.raises(bp.WaitTimeout, match=f"client {owner} "):
        pool.cache("values")
    assert pool.cache("values").put("key", b"value")
    assert pool.check() == []


def _fails(error: BaseException) -> bytes:
    raise error


ENDS: dict[str, tuple[Callable[[], bytes], type[BaseException] | None]] = {
    "value": (lambda: b"value", None),
    "large": (lambda: bytes(30_000), None),
    "error": (lambda: _fails(KeyError("missing")), KeyError),
    "interrupt": (lambda: _fails(KeyboardInterrupt()), KeyboardInterrupt),
}


@pytest.mark.usefixtures("in_time")
@pytest.mark.parametrize("key", ["absent", "expired"])
@pytest.mark.parametrize(("end", "error"), ENDS.values(), ids=ENDS.keys())
@pytest.mark.parametrize("asynchronous", [False, True], ids=["thread", "task"])
def test_the_end_of_a_load(pool, cache, owner, key, end, error, asynchronous) -> None:
    """The end of the load waited for ever. Now the caller gets its value, or its error; and another caller that waits loads the
    value itself."""
    with contextlib.ExitStack() as stack:

        def load() -> bytes:
            stack.enter_context(held(pool, "objects", owner))
            return end()

        async def aload() -> bytes:
            return load()

        wanted = pytest.raises(error) if error else contextlib.nullcontext()
        with wanted:
            value = asyncio.run(cache.aget_or_load(key, aload)) if asynchronous else cache.get_or_load(key, load)
            assert bytes(value) == end()
        waiting: list[bytes] = []
        other = threading.Thread(
            target=lambda: waiting.append(bytes(cache.get_or_load(key, lambda: b"loaded", timeout=WAIT)))
        )
        other.start()
    other.join()
    assert waiting == [b"loaded"]
    assert pool.operations() == []
    _is_whole(pool, cache)


@pytest.mark.usefixtures("in_time")
def test_a_waiter_for_a_load_that_was_left(pool, cache, owner, child) -> None:
    """Another process waits for the load all the while: it loads the value when it gets the lock."""
    with contextlib.ExitStack() as stack:

        def load() -> bytes:
            process.append(child(_load_another, pool.name))
            while cache.stats().waits == 0:
                time.sleep(0.01)
            stack.enter_context(held(pool, "objects", owner))
            return b"value"

        process: list[Any] = []
        assert bytes(cache.get_or_load("absent", load)) == b"value"
    assert process[0].result() == b"another"
    _ = cache.delete("absent")
    _is_whole(pool, cache)


def _load_another(name: str) -> bytes:
    with bp.Pool.attach(name) as pool:
        cache = pool.cache("values")
        # The count of the waits is raised at the end of a wait only: a task asks again and again.
        return bytes(asyncio.run(cache.aget_or_load("absent", _another, timeout=WAIT)))


async def _another(_: object) -> bytes:
    return b"another"


@pytest.mark.usefixtures("in_time")
@pytest.mark.parametrize("values", [1, 40])
def test_the_last_view_of_a_value_that_was_deleted(make_pool, child, spawn, values) -> None:
    """Its memory is free when the next call has the lock."""
    pool = make_pool(512 * PAGE)
    cache = pool.cache("values")
    said, go_on = spawn.Event(), spawn.Event()
    process = child(_attach_and_wait, pool.name, said, go_on)
    assert said.wait(WAIT)
    for n in range(values):
        assert cache.put(n, bytes(20_000))
    views = [cache.get(n) for n in range(values)]
    for n in range(values):
        assert cache.delete(n)
    (owner,) = (c.client for c in pool.clients() if c.pid != os.getpid())
    with held(pool, "objects", owner):
        views.clear()
    assert cache.put("next", b"value")
    assert pool.check() == []
    go_on.set()
    process.process.join(WAIT)


@pytest.mark.usefixtures("in_time")
def test_a_put_for_which_the_tables_grow(pool, owner) -> None:
    """The call waited for the growth lock, and had the interpreter's lock meanwhile: no other thread could run and end the
    wait."""
    cache = pool.cache("values")
    cache.put("first", b"value")
    going_on, begun = threading.Event(), 0
    with open(pool.path, "r+b", buffering=0) as file:

        def release_when_it_waits() -> None:
            before = -1
            while before != begun or begun == 0:  # no put has ended meanwhile
                before = begun
                time.sleep(0.2)
            going_on.set()
            file.seek(fields()["Header.growth.word"][0])
            file.write(struct.pack("<I", 0))

        with held(pool, "growth", owner):
            thread = threading.Thread(target=release_when_it_waits)
            thread.start()
            for n in range(2000):
                cache.put(n, b"value")
                begun = n + 1
                if going_on.is_set():
                    break
            thread.join()
    assert len(cache) == begun + 1
    assert begun < 2000
    assert pool.check() == []


@pytest.mark.usefixtures("in_time")
def test_a_put_for_which_the_tables_cannot_grow(pool, owner) -> None:
    cache, n = pool.cache("values"), 0
    with held(pool, "growth", owner), signals(raises=False), contextlib.suppress(bp.WaitTimeout):
        for n in range(2000):
            cache.get_or_load(n, lambda: b"value", timeout=SHORT)
    assert n < 1999
    assert cache.get(n) is None
    assert bytes(cache.get_or_load(n, lambda: b"value", timeout=WAIT)) == b"value"
    assert len(cache) == n + 1
    assert pool.check() == []


@pytest.mark.usefixtures("in_time")
def test_a_fork_whose_child_has_no_room_for_its_pins(pool, cache, owner) -> None:
    """The pins of a forked child on values need memory, and so the growth lock: the fork waited for it for ever.

    Without memory the parent keeps the child's pins. The child took its pin back from the memory that it does not have:
    the kernel gave some that nobody counted, and a count of -1 pinned the block for the next client in the child's slot.
    """
    view = cache.get("large")
    with held(pool, "growth", owner):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                before = os.stat(pool.path).st_blocks
                whole = bytes(view) == bytes(20_000)
                del view
                code = 0 if whole and os.stat(pool.path).st_blocks == before else 2
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert cache.delete("large")
    assert bytes(view) == bytes(20_000)
    del view
    pool.reap()
    assert pool.check() == []
