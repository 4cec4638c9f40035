"""Derived pages: a loader computes each once, whichever process wants it, and whichever process dies."""

import ctypes
import pickle
import threading
import time

import numpy as np
import pytest

import bufferpool as bp
from bufferpool.errors import (
    LoaderFailed,
    LoaderOverrun,
    LoaderReturned,
    PoolReadOnly,
    SpaceMismatch,
    SpaceReadOnly,
    SpaceRemoved,
    StoreError,
    WouldDeadlock,
)
from bufferpool.figures.names import EventKind
from tests.conftest import PAGE, WAIT, stamp, wait_until
from tests.support.memory_store import Memory


def test_a_loader_fills_pages_from_zeros(pool):
    asked = []

    def loader(n, out):
        assert out.dtype == np.uint8
        assert out.shape == (PAGE,)
        assert not out.any()
        asked.append(n)
        out[: PAGE // 2] = n

    space = pool.open_derived("d", 10, loader)
    for n in (3, 3, 7, 3):
        assert (space[n][: PAGE // 2] == n).all()
        assert not space[n][PAGE // 2 :].any()
    assert asked == [3, 7]


def test_a_buffer_that_the_loader_keeps_is_not_the_page(pool):
    kept = []

    def loader(n, out):
        out[:] = 1
        kept.append(out)

    space = pool.open_derived("d", 2, loader)
    page = space[0]
    kept[0][:] = 2
    assert (page == 1).all()
    assert (space[0] == 1).all()


@pytest.mark.parametrize("dtype", [np.float64, ">u2", "datetime64[s]", [("key", "<u4"), ("value", "<f4")], "S16"])
def test_a_loader_fills_an_array_of_the_space_s_dtype(pool, dtype):
    """A loader of a float64 space was given bytes, and out[:] = 1.5 became a page of ones of another type."""
    kind, given = np.dtype(dtype), []
    values = np.arange(PAGE, dtype=np.uint8).view(kind)

    def loader(n, out):
        given.append((out.dtype, out.shape))
        assert not out.view(np.uint8).any()
        out[:] = values

    space = pool.open_derived("d", 4, loader, dtype=dtype)
    assert space[2].tobytes() == values.tobytes()
    assert space.read_many([2])[0].tobytes() == values.tobytes()
    assert given == [(kind, (PAGE // kind.itemsize,))]


def test_a_value_that_a_loader_writes_is_the_value_that_is_read(pool):
    space = pool.open_derived("d", 4, lambda n, out: out.fill(n + 0.5), dtype=np.float64)
    assert (space[2] == 2.5).all()


@pytest.mark.parametrize("use", [lambda space: space.write(0), lambda space: space.append()])
def test_a_derived_space_says_why_it_is_not_written(pool, use):
    """The error of append() on a derived space advised mode 'r+', although open_derived has no mode."""
    with pytest.raises(SpaceReadOnly, match=r"come from their loader.*open_file") as refused:
        use(pool.open_derived("d", 4, lambda n, out: None))
    assert "mode" not in str(refused.value)
    assert pool.check() == []


async def _coroutine(n, out):
    out[:] = 1


@pytest.mark.filterwarnings("ignore:coroutine")
@pytest.mark.parametrize(
    "loader",
    [
        lambda n, out: np.full(PAGE, 7, np.uint8),
        lambda n, out: bytes(PAGE),
        lambda n, out: out,
        lambda n, out: False,
        lambda n, out: (out[:1] for _ in range(1)),
        lambda n, out: _coroutine(n, out),  # no coroutine function: nothing says that it must be awaited
    ],
)
def test_a_loader_that_returns_something_gets_an_error_that_says_to_fill_out(pool, loader):
    """A loader that returned its page published zeros: the array that it was given had not been touched."""
    space = pool.open_derived("d", 10, loader)
    for use in (lambda: space[3], lambda: space.pin_many([3]), lambda: space.prefetch([3]), lambda: list(space.scan())):
        with pytest.raises(LoaderReturned, match=r"nothing was published: write the page into .*out\[:\]") as told:
            use()
        assert isinstance(told.value, (StoreError, TypeError))
    assert pool.stats().frames.live == 0
    assert (pool.open_derived("d", 10, lambda n, out: out.fill(3))[3] == 3).all()


def test_a_loader_that_overruns_and_returns_gets_the_error_of_the_overrun(pool):
    def loader(n, out):
        np.lib.stride_tricks.as_strided(out, (PAGE // 2 + 1,))[PAGE // 2] ^= 1
        return out

    with pytest.raises(LoaderOverrun):
        pool.open_derived("d", 10, loader, dtype=np.uint16)[3]


# ---- versions of the loader ---------------------------------------------------------------


def _tile(value):
    return lambda n, out: out.fill(value)


@pytest.mark.parametrize(("old", "new"), [(None, 1), (1, None), (1, 2), (1, "1"), ("a", "b"), (0, None), ("", None)])
def test_pages_of_another_version_of_the_loader_are_not_believed(pool, attach, old, new):
    """A new release of a program read the tiles that the old release's code had made, for as long as the pool lived."""
    other = attach(pool)
    before = other.open_derived("d", 10, _tile(1), version=old)
    kept = before[3]
    assert (kept == 1).all()
    after = pool.open_derived("d", 20, _tile(2), version=new)  # with another number of pages, too
    assert (after[3] == 2).all()
    assert len(after) == 20
    for use in (lambda: before[3], lambda: before[4], lambda: len(before), lambda: before.read_many([1])):
        with pytest.raises(SpaceRemoved, match="open it again"):
            use()
    assert (kept == 1).all()
    assert [s.name for s in pool.stats().spaces] == ["d"]
    assert (pool.open_derived("d", 20, _tile(3), version=new)[3] == 2).all()


def test_pages_of_the_same_version_are_shared_as_ever(pool, attach):
    first = pool.open_derived("d", 10, _tile(1), version="2.1")
    assert (first[3] == 1).all()
    assert (attach(pool).open_derived("d", 10, _tile(9), version="2.1")[3] == 1).all()
    assert (pool.space("d")[3] == 1).all()
    assert (first[3] == 1).all()
    with pytest.raises(SpaceMismatch, match="10 pages"):
        pool.open_derived("d", 11, _tile(1), version="2.1")


def test_a_handle_that_was_pickled_does_not_replace_a_newer_version(pool):
    space = pool.open_derived("d", 10, CountingLoader(None), version=1)
    pickled = pickle.dumps(space)
    assert (pool.open_derived("d", 10, _tile(2), version=2)[3] == 2).all()
    with pytest.raises(SpaceRemoved):
        pickle.loads(pickled)[3]
    assert (pool.open_derived("d", 10, _tile(9), version=2)[3] == 2).all()


def test_a_version_can_be_replaced_while_its_loader_runs(pool, threads):
    """The load that is under way publishes nothing into the space of the next version."""
    inside, go, failed = threading.Event(), threading.Event(), []

    def slow(n, out):
        inside.set()
        assert go.wait(WAIT)
        out[:] = 1

    before = pool.open_derived("d", 10, slow, version=1)

    def read():
        try:
            before[3]
        except SpaceRemoved as error:
            failed.append(error)

    threads.start(read)
    assert inside.wait(WAIT)
    after = pool.open_derived("d", 10, _tile(2), version=2)
    assert (after[3] == 2).all()
    go.set()
    threads.join()
    assert len(failed) == 1
    assert (after[3] == 2).all()


def test_a_pool_for_reading_replaces_no_version(pool):
    made = pool.open_derived("d", 10, _tile(1), version=1)
    assert (made[3] == 1).all()
    with bp.Pool.attach(pool.name, mode="r") as reader:
        with pytest.raises(PoolReadOnly, match="another version"):
            reader.open_derived("d", 10, _tile(2), version=2)
        assert (reader.open_derived("d", 10, _tile(2), version=1)[3] == 1).all()
    assert (made[3] == 1).all()


@pytest.mark.parametrize("version", [1.5, b"1", True, (1, 2)])
def test_a_version_is_an_integer_or_a_string(pool, version):
    with pytest.raises(TypeError, match="version"):
        pool.open_derived("d", 10, _tile(1), version=version)


class CountingLoader:
    def __init__(self, calls):
        self.calls = calls

    def __call__(self, n, out):
        with self.calls.get_lock():
            self.calls[n] += 1
        time.sleep(0.002)
        out[:] = stamp(n)


def _read_derived(name, calls, barrier):
    with bp.Pool.attach(name) as pool:
        space = pool.open_derived("d", 40, CountingLoader(calls))
        barrier.wait(WAIT)
        return [bytes(space[n]) for n in range(40)]


def test_a_loader_runs_once_a_page_however_many_ask(pool, child, spawn):
    calls, barrier = spawn.Array("i", 40), spawn.Barrier(3)
    children = [child(_read_derived, pool.name, calls, barrier) for _ in range(3)]
    for c in children:
        assert c.result() == [stamp(n).tobytes() for n in range(40)]
    assert list(calls) == [1] * 40


def test_a_loader_runs_once_a_page_among_threads(pool, threads):
    calls = []

    def loader(n, out):
        calls.append(n)
        time.sleep(0.005)
        out[:] = stamp(n)

    space = pool.open_derived("d", 10, loader)
    barrier = threading.Barrier(6)

    def read():
        barrier.wait(WAIT)
        for n in range(10):
            assert np.array_equal(space[n], stamp(n))

    for _ in range(6):
        threads.start(read)
    threads.join()
    assert sorted(calls) == list(range(10))


def test_a_loader_that_raises_is_the_cause_and_the_page_can_be_loaded_later(pool, attach):
    broken = True

    def loader(n, out):
        out[:] = 1
        if broken:
            raise OSError("no such tile")
        out[:] = 2

    space = pool.open_derived("d", 10, loader)
    for use in (lambda: space[3], lambda: space.pin(3), lambda: space.read_many([3]), lambda: space.prefetch([3])):
        with pytest.raises(LoaderFailed, match="no such tile") as failed:
            use()
        assert isinstance(failed.value.__cause__, OSError)
        assert isinstance(failed.value, StoreError)
    stats = pool.stats()
    assert (stats.load_failures, stats.loads, stats.frames.live, stats.frames.busy) == (4, 0, 0, 0)
    assert pool.check() == []
    broken = False
    assert (space[3] == 2).all()


def test_ctrl_c_in_a_loader_is_ctrl_c(pool):
    def loader(n, out):
        raise KeyboardInterrupt

    space = pool.open_derived("d", 10, loader)
    with pytest.raises(KeyboardInterrupt):
        space[3]
    assert pool.stats().frames.busy == 0


def test_a_caller_that_waited_for_a_failing_loader_gets_an_error_and_may_ask_again(pool, threads):
    inside, first = threading.Event(), []

    def loader(n, out):
        if not first:
            first.append(threading.get_ident())
            assert inside.wait(WAIT)
            raise OSError("the first one fails")
        out[:] = 5

    space = pool.open_derived("d", 10, loader)
    errors = []

    def fails():
        try:
            space[3]
        except LoaderFailed as error:
            errors.append(error)

    threads.start(fails)
    wait_until(lambda: bool(first), "the loader runs")
    threads.start(lambda: (wait_until(lambda: pool.stats().wait_load > 0, "somebody waits"), inside.set()))
    with pytest.raises(LoaderFailed, match=r"which this waited for.*the first one fails"):
        space[3]
    assert (space[3] == 5).all()
    threads.join()
    assert len(errors) == 1


@pytest.mark.parametrize("where", [-1, PAGE, -4096, PAGE + 4095])
@pytest.mark.parametrize("how", ["ctypes", "as_strided"])
def test_a_loader_that_writes_outside_its_buffer_is_found(pool, how, where):
    wrong = True

    def loader(n, out):
        out[:] = 7
        if not wrong:
            return
        if how == "ctypes":
            before = ctypes.c_uint8.from_address(out.ctypes.data + where)
            before.value ^= 0xFF
        else:
            whole = np.lib.stride_tricks.as_strided(out, (2 * PAGE,), (1 if where > 0 else -1,), writeable=True)
            whole[abs(where)] ^= 0xFF

    space = pool.open_derived("d", 10, loader)
    with pytest.raises(LoaderOverrun, match="outside"):
        space[3]
    assert pool.stats().frames.live == 0
    wrong = False
    assert (space[3] == 7).all()


def test_a_loader_that_asks_for_its_own_page_gets_an_error(pool):
    def loader(n, out):
        if n == 3:
            with pytest.raises(WouldDeadlock, match="page 3"):
                space[3]
            with pytest.raises(WouldDeadlock):
                space.read_many([3])
        out[:] = 4

    space = pool.open_derived("d", 10, loader)
    assert (space[3] == 4).all()


def test_a_loader_that_does_not_catch_it_raises_would_deadlock_as_the_cause(pool):
    space = pool.open_derived("d", 10, lambda n, out: space[n])
    with pytest.raises(LoaderFailed) as failed:
        space[3]
    assert isinstance(failed.value.__cause__, WouldDeadlock)


def test_a_loader_may_use_other_pages_and_other_spaces(pool, data_file):
    table = pool.open_file(data_file(10))

    def loader(n, out):
        out[:] = table[n]
        if n:
            out[0] = space[n - 1][0] ^ 1

    space = pool.open_derived("d", 10, loader)
    assert np.array_equal(space[9][1:], stamp(9)[1:])
    assert pool.stats().loads == 20


def _load_and_hang(name, inside):
    def loader(n, out):
        inside.set()
        time.sleep(WAIT)

    with bp.Pool.attach(name) as pool:
        return pool.open_derived("d", 10, loader)[3][0]


def test_a_client_killed_in_its_loader_leaves_the_page_to_others(pool, child, spawn):
    inside = spawn.Event()
    loading = child(_load_and_hang, pool.name, inside)
    assert inside.wait(WAIT)
    space = pool.open_derived("d", 10, lambda n, out: out.fill(9))
    loading.kill()
    assert (space[3] == 9).all()
    assert pool.stats().clients == 1


def test_derived_pages_are_dropped_freely_and_made_again(pool):
    calls = []

    def loader(n, out):
        calls.append(n)
        out[:] = stamp(n)

    space = pool.open_derived("d", 200, loader)
    for _ in range(2):
        for n in range(200):
            assert np.array_equal(space[n], stamp(n))
    assert len(calls) > 300
    assert space.flush() == 0
    space.drop(0, 200)
    assert np.array_equal(space[5], stamp(5))


def test_a_space_without_its_loader_says_what_to_do(pool, attach, caplog):
    """The error spoke of a store. It was also an event and a failure of the store, which an operator looked for in vain."""
    pool.open_derived("d", 10, lambda n, out: out.fill(1))[2]
    pool.open_store("s", Memory(10))[2]
    for name, message in (("d", r"no loader.*open_derived\(\)"), ("s", r"no store.*open_store\(\)")):
        other = attach(pool).space(name)
        assert other[2].any()
        with pytest.raises(StoreError, match=rf"page 3 of '{name}'.*{message}"):
            other[3]
        with pytest.raises(StoreError, match=rf"page 3 of '{name}'.*{message}"):
            other.read_many([3, 4])
    assert not any(any(space.load_failures.values()) for space in pool.spaces()), "no store has failed"
    assert [event for event in pool.events() if event.kind is EventKind.LOAD_FAILED] == []
    assert caplog.records == []
