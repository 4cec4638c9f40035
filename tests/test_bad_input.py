"""Bad input: each kind has its own error, a message that says what to do, and leaves the pool as it was."""

import multiprocessing

import numpy as np
import pytest

import bufferpool as bp
from bufferpool.errors import (
    BufferPoolError,
    PageOutOfRange,
    PoolClosed,
    SegmentExists,
    SegmentNotFound,
    WrongProcess,
)
from tests.conftest import PAGE, SHM, WAIT, new_name

# ---- page numbers ------------------------------------------------------------------------

USES = {
    "get": lambda space, n: space.get(n),
    "pin": lambda space, n: space.pin(n),
    "write": lambda space, n: space.write(n),
    "pin_many": lambda space, n: space.pin_many([n]),
    "read_many": lambda space, n: space.read_many([n]),
    "prefetch": lambda space, n: space.prefetch([n]),
    "drop": lambda space, n: space.drop(n, 1),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize(
    "n", [10, 11, 2**31, 2**32, 2**32 + 3, 2**40, 2**62, -1, -10, -(2**63), np.int64(10), np.int8(-1)]
)
def test_a_page_number_out_of_range_is_an_index_error(unchanged, use, n):
    _, table = unchanged
    with pytest.raises(PageOutOfRange, match="10 pages, numbered from 0") as refused:
        USES[use](table, n)
    assert isinstance(refused.value, IndexError)
    assert str(n) in str(refused.value)


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("n", [2**63, 2**64, 2**64 + 3, -(2**63) - 1, 10**30])
def test_a_page_number_beyond_any_integer_is_refused(unchanged, use, n):
    _, table = unchanged
    with pytest.raises((PageOutOfRange, TypeError)):
        USES[use](table, n)


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize(
    "n", [1.0, "1", None, b"1", [1], (1,), slice(1, 2), 1j, np.float64(1), np.array([1, 2]), Ellipsis, True, np.True_]
)
def test_a_page_number_that_is_no_integer_is_a_type_error(unchanged, use, n):
    _, table = unchanged
    with pytest.raises(TypeError, match="integer"):
        USES[use](table, n)


@pytest.mark.parametrize(
    "ids", [5, None, "12", 1.5, [[1, 2]], np.zeros((2, 2), int), {1: 2}, [1, "2"], [1, None], [True, False], [1.0]]
)
def test_page_numbers_that_are_no_list_of_integers_are_a_type_error(unchanged, ids):
    _, table = unchanged
    for use in (table.pin_many, table.read_many, table.prefetch):
        with pytest.raises(TypeError, match=r"integer|len\(\)"):
            use(ids)


def test_a_ragged_list_of_page_numbers_is_refused(unchanged):
    _, table = unchanged
    for use in (table.pin_many, table.read_many, table.prefetch):
        with pytest.raises((TypeError, ValueError)):
            use([1, [2, 3]])


@pytest.mark.parametrize("timeout", [-1, float("nan"), -0.001])
def test_a_timeout_that_makes_no_sense_is_refused(unchanged, timeout):
    _, table = unchanged
    with pytest.raises(ValueError, match="timeout"):
        table.write(1, timeout=timeout)
    with pytest.raises(TypeError):
        table.write(1, timeout="soon")


# ---- every parameter, by its kind ---------------------------------------------------------------

NAN, INF = float("nan"), float("inf")
NO_SECONDS = {
    TypeError: [True, False, np.True_, "1", b"1", [1], 1j, np.array([1.0])],
    ValueError: [NAN, -1, -0.5, -INF, -(10**400), np.float64("nan")],
}
NO_FLAG: dict[type, list] = {TypeError: [0, 1, "no", "False", None, 0.0, []]}
NO_LSN = {TypeError: [True, 1.0, "1", NAN, [1]], ValueError: [-1, 2**64, 10**400]}
NO_SIZE = {TypeError: [True, 1e6, NAN, INF, b"1MiB", [1]], ValueError: ["", "inf", "-1", "9" * 5000, "1e6", -1]}
NO_COUNT = {TypeError: [True, 1.0, "1", NAN], ValueError: [-1, 10**30]}
NO_SHARE = {TypeError: [True, "0.1"], ValueError: [NAN, -0.1, INF]}


def _ignored(page_no: int, out: np.ndarray) -> None:
    out[:] = page_no


def _grouped(pool: bp.Pool, table: bp.Space, **given) -> None:
    with pool.publish_many() as group:
        group.write(table, 1, **given)


SECONDS = {
    "get": lambda pool, table, v: table.get(1, timeout=v),
    "pin": lambda pool, table, v: table.pin(1, timeout=v),
    "read": lambda pool, table, v: table.read(1, timeout=v),
    "pin_many": lambda pool, table, v: table.pin_many([1], timeout=v),
    "read_many": lambda pool, table, v: table.read_many([1], timeout=v),
    "write": lambda pool, table, v: table.write(1, timeout=v),
    "write_many": lambda pool, table, v: table.write_many([1], np.zeros((1, PAGE), np.uint8), timeout=v),
    "append": lambda pool, table, v: table.append(timeout=v),
    "append_many": lambda pool, table, v: table.append_many(np.zeros((1, PAGE), np.uint8), timeout=v),
    "group.write": lambda pool, table, v: _grouped(pool, table, timeout=v),
    "space.flush": lambda pool, table, v: table.flush(timeout=v),
    "flush": lambda pool, table, v: pool.flush(timeout=v),
    "checkpoint": lambda pool, table, v: pool.checkpoint(5, timeout=v),
    "resize": lambda pool, table, v: pool.resize(16 * PAGE, timeout=v),
    "trim": lambda pool, table, v: pool.trim(timeout=v),
    "trim_idle": lambda pool, table, v: pool.trim_idle(v),
    "check": lambda pool, table, v: pool.check(timeout=v),
    "cache.ttl": lambda pool, table, v: pool.cache("values", ttl=v),
    "put.ttl": lambda pool, table, v: pool.cache("values").put("key", 1, ttl=v),
    "get_or_load": lambda pool, table, v: pool.cache("values").get_or_load("key", lambda: 1, timeout=v),
    "get_or_load.ttl": lambda pool, table, v: pool.cache("values").get_or_load("key", lambda: 1, ttl=v),
    "interval": lambda pool, table, v: bp.Settings(interval=v),
    "flush_every": lambda pool, table, v: bp.Settings(flush_every=v),
    "idle": lambda pool, table, v: bp.Settings(idle=v),
    "working_set_every": lambda pool, table, v: bp.Settings(working_set_every=v),
    "rest_s": lambda pool, table, v: bp.Rules(rest_s=v),
}
FLAGS = {
    "unlink": lambda pool, table, v: pool.unlink(discard=v),
    "remove": lambda pool, table, v: bp.Pool.remove(pool.name, discard=v),
    "space.remove": lambda pool, table, v: table.remove(discard=v),
    "checksum": lambda pool, table, v: pool.open_file(table.path, name="other", checksum=v),
    "discardable": lambda pool, table, v: pool.open_scratch("other", 1, discardable=v),
    "bypass": lambda pool, table, v: table.read(1, bypass=v),
    "fresh": lambda pool, table, v: table.write(1, fresh=v),
    "stale_while_loading": lambda pool, table, v: pool.cache("values").get_or_load(
        "key", lambda: 1, stale_while_loading=v
    ),
    "pressure": lambda pool, table, v: bp.Settings(pressure=v),
}
LSNS = {
    "write": lambda pool, table, v: table.write(1, lsn=v),
    "append": lambda pool, table, v: table.append(lsn=v),
    "write_many": lambda pool, table, v: table.write_many([1], np.zeros((1, PAGE), np.uint8), lsn=v),
    "append_many": lambda pool, table, v: table.append_many(np.zeros((1, PAGE), np.uint8), lsn=v),
    "group.write": lambda pool, table, v: _grouped(pool, table, lsn=v),
    "durable_lsn": lambda pool, table, v: setattr(pool, "durable_lsn", v),
    "advance_durable_lsn": lambda pool, table, v: pool.advance_durable_lsn(v),
    "checkpoint": lambda pool, table, v: pool.checkpoint(v),
    "flush": lambda pool, table, v: pool.flush(up_to_lsn=v),
}
SIZES = {
    "resize": lambda pool, table, v: pool.resize(v),
    "trim": lambda pool, table, v: pool.trim(v),
    "limit": lambda pool, table, v: pool.cache("values", limit=v),
    "reserve": lambda pool, table, v: pool.cache("values", reserve=v),
    "simulate_objects": lambda pool, table, v: bp.simulate_objects([1], [1], v),
}
COUNTS = {
    "n_pages": lambda pool, table, v: pool.open_scratch("other", v),
    "derived": lambda pool, table, v: pool.open_derived("other", v, _ignored),
    "max_pages": lambda pool, table, v: pool.open_file(table.path, name="other", max_pages=v),
    "drop.first": lambda pool, table, v: table.drop(v),
    "drop.count": lambda pool, table, v: table.drop(0, v),
    "simulate": lambda pool, table, v: bp.simulate([1], v),
    "trusted_uid": lambda pool, table, v: bp.Pool.attach(pool.name, trusted_uid=v),
}
SHARES = {
    "jitter": lambda pool, table, v: pool.cache("values", jitter=v),
    "clean": lambda pool, table, v: bp.Settings(clean=v),
    "grow_step": lambda pool, table, v: bp.Rules(grow_step=v),
}
KINDS = [
    (SECONDS, NO_SECONDS),
    (FLAGS, NO_FLAG),
    (LSNS, NO_LSN),
    (SIZES, NO_SIZE),
    (COUNTS, NO_COUNT),
    (SHARES, NO_SHARE),
]


@pytest.mark.parametrize(
    ("call", "bad"),
    [pytest.param(call, bad, id=f"{name}-{i}") for i, (calls, bad) in enumerate(KINDS) for name, call in calls.items()],
)
def test_a_value_of_the_wrong_kind_is_refused_by_each_parameter(unchanged, call, bad):
    """`lsn=True` was LSN 1, `get(timeout=True)` waited a second, `discard="no"` discarded, `timeout=10**400` was an OverflowError.

    A value of the wrong type is a TypeError and one out of range a ValueError (or an error of the package that is one);
    nothing is done.
    """
    pool, table = unchanged
    for error, values in bad.items():
        for value in values:
            with pytest.raises((error, PageOutOfRange) if error is ValueError else error):
                call(pool, table, value)


@pytest.mark.parametrize("call", SECONDS.values(), ids=SECONDS)
def test_any_real_number_of_seconds_is_a_time(pool, data_file, call):
    """Also those of numpy, and one that no double can have: it is as good as infinity."""
    table = pool.open_file(data_file(10), "r+", max_pages=64)
    for value in (1, 0.5, np.float32(0.5), np.int64(1), INF, 10**400):
        made = call(pool, table, value)
        if isinstance(made, bp.Write):
            with made:
                pass
        del made
    assert pool.check() == []


def test_a_flush_of_another_pools_space_is_refused(pool, make_pool, data_file):
    """It flushed the space that has the same slot in this pool, if there was one, and else said that it was removed."""
    other = make_pool()
    table, foreign = pool.open_file(data_file(4), "r+"), other.open_file(data_file(4), "r+")
    with table.write(0), pytest.raises(ValueError, match="another pool"):
        pool.flush(foreign)
    with pytest.raises(TypeError, match="space"):
        pool.flush(table.name)
    assert pool.flush(table) == 1


# ---- sizes and names ---------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, -4096, 512, 2048, 4095, 4097, 5000, 12288, 1 << 31, 10**30])
def test_a_page_size_that_is_no_power_of_two_from_4096_is_refused(pool_name, size):
    with pytest.raises(ValueError, match=r"page_size must (be a power of two from 4096|not be negative)"):
        bp.Pool.create(pool_name, "64MiB", page_size=size)
    assert not (SHM / pool_name).exists()


@pytest.mark.parametrize("size", [4096.0, None, True, b"4096"])
def test_a_page_size_that_is_no_size_is_refused(pool_name, size):
    with pytest.raises(TypeError, match="page_size must be a number of bytes"):
        bp.Pool.create(pool_name, "64MiB", page_size=size)
    assert not (SHM / pool_name).exists()


@pytest.mark.parametrize("capacity", [0, 1, 4095, 3 * 4096, "12KiB", "0"])
def test_a_budget_below_the_minimum_is_refused(pool_name, capacity):
    with pytest.raises(ValueError, match="at least 4 pages"):
        bp.Pool.create(pool_name, capacity, page_size=4096)
    assert not (SHM / pool_name).exists()


@pytest.mark.parametrize("capacity", ["", "MiB", "64 mebibytes", "-1", "1e6", "64MiB64", "0x100", "inf", -1, -(2**70)])
def test_a_budget_that_is_no_size_is_refused(pool_name, unchanged, capacity):
    pool, _ = unchanged
    with pytest.raises(ValueError, match="capacity"):
        bp.Pool.create(pool_name, capacity)
    with pytest.raises(ValueError, match="capacity"):
        pool.resize(capacity)
    assert not (SHM / pool_name).exists()


@pytest.mark.parametrize("capacity", [None, 1e6, True, b"64MiB", [1]])
def test_a_budget_of_another_type_is_refused(pool_name, unchanged, capacity):
    pool, _ = unchanged
    with pytest.raises(TypeError, match="capacity must be a number of bytes or a string"):
        bp.Pool.create(pool_name, capacity)
    with pytest.raises(TypeError, match="capacity"):
        pool.resize(capacity)


@pytest.mark.parametrize(
    ("size", "n"),
    [
        ("65536", 65536),
        ("64KiB", 65536),
        ("64kib", 65536),
        (" 64 K ", 65536),
        ("1MiB", 1 << 20),
        ("0.5MiB", 1 << 19),
        ("100KB", 100_000),
    ],
)
def test_sizes_may_be_strings(make_pool, size, n):
    pool = make_pool(size, max_capacity="1MiB")
    assert pool.budget_frames == n // PAGE


@pytest.mark.parametrize("capacity", ["8EiB", 2**62, 2**64, 2**80, "99999999TiB"])
def test_a_budget_beyond_any_machine_is_refused(pool_name, capacity):
    with pytest.raises((ValueError, BufferPoolError, OverflowError)) as refused:
        bp.Pool.create(pool_name, capacity, page_size=4096)
    assert str(refused.value)
    assert not (SHM / pool_name).exists()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"max_capacity": 4 * 4096}, "max_capacity"),
        ({"extent_size": 0}, "extent_size"),
        ({"extent_size": 5000}, "extent_size"),
        ({"extent_size": "1"}, "extent_size"),
        ({"max_clients": 0}, "max_clients"),
        ({"max_clients": -1}, "max_clients"),
        ({"max_clients": 100_000}, "max_clients"),
        ({"max_pages": 0}, "max_pages"),
        ({"max_pages": 2**32}, "max_pages"),
    ],
)
def test_other_sizes_out_of_range_are_refused(pool_name, options, match):
    with pytest.raises(ValueError, match=match):
        bp.Pool.create(pool_name, 64 * 4096, page_size=4096, **options)
    assert not (SHM / pool_name).exists()


@pytest.mark.parametrize("name", ["a/b", "/", "/dev/shm/x", "../x", "", ".", "..", "x" * 201, "a\0b", "ü" * 101])
def test_a_name_that_is_no_file_name_is_refused(name):
    before = sorted(SHM.iterdir())
    for use in (bp.Pool.attach, lambda n: bp.Pool.create(n, "64MiB"), lambda n: bp.Pool.open(n, "64MiB")):
        with pytest.raises(ValueError, match="1 to 200 bytes without '/'"):
            use(name)
    assert [path for path in SHM.iterdir() if path not in before and name in path.name] == []


@pytest.mark.parametrize("name", [None, 5, b"pool", ["pool"]])
def test_a_name_that_is_no_string_is_refused(name):
    for use in (bp.Pool.attach, lambda n: bp.Pool.create(n, "64MiB"), lambda n: bp.Pool.open(n, "64MiB")):
        with pytest.raises(TypeError, match="string"):
            use(name)


def test_an_unusual_name_is_a_name(pool_name):
    name = f"{pool_name} ü\n*?"
    with bp.Pool.create(name, 64 * PAGE, page_size=PAGE) as pool:
        try:
            with bp.Pool.attach(name) as other:
                assert other.name == name
        finally:
            pool.unlink()


def test_open_refuses_bad_options_though_the_pool_exists(pool):
    """open(max_clients=-3), or of a capacity that is no size, attached to a pool that existed without a word."""
    bad = [
        {"page_size": 5000}, {"page_size": "5000"}, {"page_size": 0}, {"page_size": True}, {"capacity": "much"},
        {"capacity": -1}, {"capacity": 1.5}, {"capacity": 1}, {"capacity": None}, {"min_capacity": "1TiB"},
        {"min_capacity": 0}, {"max_capacity": PAGE}, {"max_capacity": "64 parsecs"}, {"extent_size": 1000},
        {"extent_size": "x"}, {"extent_size": 0}, {"max_clients": 0}, {"max_clients": -3}, {"max_clients": 10**6},
        {"max_clients": "many"}, {"max_pages": 0}, {"max_pages": 2**40}, {"max_pages": 2.5}, {"permissions": 0o400},
        {"permissions": 0o2600}, {"permissions": "rw"}, {"permissions": -1}, {"mode": "w"}, {"mode": 0o660},
        {"mode": None}, {"pagesize": PAGE}, {"owner": 0},
    ]  # fmt: skip
    missing = new_name()
    for options in bad:
        said = []
        for name in (pool.name, missing):
            with pytest.raises((TypeError, ValueError)) as refused:
                bp.Pool.open(name, **{"capacity": 64 * PAGE, "page_size": PAGE, **options})
            said.append((type(refused.value), str(refused.value)))
        assert said[0] == said[1], options
        assert not isinstance(refused.value, bp.errors.BufferPoolError)
    assert pool.stats().clients == 1
    with pytest.raises(SegmentNotFound):
        bp.Pool.attach(missing)


@pytest.mark.parametrize("mode", [0o400, 0o2600, "r+", None, -1])
def test_create_refuses_permissions_that_nobody_can_use(pool_name, mode):
    with pytest.raises((TypeError, ValueError), match="permissions must be"):
        bp.Pool.create(pool_name, 64 * PAGE, permissions=mode)


# ---- use after close ------------------------------------------------------------------------------------


def test_every_use_after_close_says_so(pool, data_file):
    path = data_file(10)
    table = pool.open_file(path, "r+")
    work = pool.open_scratch("work", 4)
    iterator = iter(table)
    unused, appending = table.write(1), table.append()
    pool.close()
    uses = [
        lambda: table[1],
        lambda: table.pin(1),
        lambda: table.pin_many([1]),
        lambda: table.read_many([1]),
        lambda: table.write(1),
        table.append,
        lambda: table.prefetch([1]),
        lambda: next(table.scan()),
        lambda: next(iterator),
        lambda: table.drop(1, 1),
        table.flush,
        lambda: len(table),
        work.remove,
        unused.__enter__,
        appending.__enter__,
        pool.flush,
        pool.stats,
        pool.frames,
        pool.extents,
        pool.clients,
        pool.check,
        pool.reap,
        pool.trim,
        lambda: pool.trim(1),
        lambda: pool.resize("64KiB"),
        lambda: pool.open_scratch("new", 4),
        lambda: pool.open_file(path),
        lambda: pool.open_derived("d", 4, lambda n, out: None),
        lambda: pool.space("work"),
        lambda: pool.durable_lsn,
        lambda: setattr(pool, "durable_lsn", 4),
        lambda: pool.page_size,
        lambda: pool.max_frames,
        lambda: pool.budget_frames,
        pool.__reduce__,
    ]
    for use in uses:
        with pytest.raises(PoolClosed, match="closed") as refused:
            use()
        assert isinstance(refused.value, ValueError)
    pool.close()
    assert pool.name in repr(pool)
    assert "work" in repr(work)


def test_a_removed_pool_says_what_to_do(pool_name):
    with pytest.raises(SegmentNotFound, match=r"Pool\.open\(\) creates one"):
        bp.Pool.attach(pool_name)
    with bp.Pool.create(pool_name, 64 * PAGE, page_size=PAGE) as pool:
        with pytest.raises(SegmentExists, match="attach to it"):
            bp.Pool.create(pool_name, 64 * PAGE, page_size=PAGE)
        pool.unlink()


# ---- fork -----------------------------------------------------------------------------------------------


def _forked(connection, write):
    try:
        write.__exit__(None, None, None)
    except BaseException as error:  # noqa: BLE001  reported to the parent
        connection.send((type(error).__name__, str(error)))
    else:
        connection.send(("nothing", ""))


def test_a_write_of_the_parent_is_refused_in_a_forked_child(pool):
    work = pool.open_scratch("work", 4)
    context = multiprocessing.get_context("fork")
    receive, send = context.Pipe(duplex=False)
    with work.write(1) as page:
        page[:] = 1
        write = work.write(2)
        inner = write.__enter__()
        inner[:] = 2
        process = context.Process(target=_forked, args=(send, write))
        process.start()
        assert receive.poll(WAIT)
        name, text = receive.recv()
        process.join(WAIT)
        write.__exit__(None, None, None)
    assert name == WrongProcess.__name__
    assert "forked child" in text
    assert (work[1] == 1).all()
    assert (work[2] == 2).all()
    assert pool.reap() in (0, 1)
    assert pool.stats().clients == 1


def test_every_error_is_in_one_tree_and_explains_itself():
    errors = [
        e
        for e in vars(bp.errors).values()
        if isinstance(e, type) and issubclass(e, Exception) and not issubclass(e, Warning)
    ]
    assert len(errors) > 30
    for error in errors:
        assert issubclass(error, BufferPoolError)
        assert error.__doc__
        assert getattr(bp, error.__name__) is error
