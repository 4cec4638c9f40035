"""Many pages in one call: pinned together, or copied."""

import numpy as np
import pytest

import bufferpool as bp
from bufferpool.errors import PageOutOfRange
from tests.conftest import PAGE, pins, stamp
from tests.support.children import run_python


def test_pin_many_is_a_sequence_of_pages(pool, table):
    ids = [5, 3, 5, 99]
    with table.pin_many(ids) as pages:
        assert len(pages) == 4
        assert pins(pool) == 4
        for n, page in zip(ids, pages, strict=True):
            assert np.array_equal(page, stamp(n))
        del page
        assert np.array_equal(pages[-1], stamp(99))
        assert np.array_equal(pages[-4], stamp(5))
        for i in (4, -5, 10**30):
            with pytest.raises(IndexError):
                pages[i]
        with pytest.raises(TypeError):
            pages["1"]
    assert pins(pool) == 0
    with pytest.raises(ValueError, match="released"):
        pages[0]
    pages.release()


def test_pin_many_takes_lists_arrays_and_ranges(table):
    for ids in (
        [1, 2, 3],
        (1, 2, 3),
        range(1, 4),
        np.array([1, 2, 3]),
        np.array([1, 9, 2, 9, 3])[::2],
        np.uint8([1, 2, 3]),
    ):
        with table.pin_many(ids) as pages:
            assert [int(pages[i][0:8].view(np.uint64)[0]) >> 20 for i in range(3)] == [2, 3, 4]
        assert np.array_equal(table.read_many(ids), [stamp(1), stamp(2), stamp(3)])


def test_pin_many_of_nothing(table):
    for ids in ([], np.array([], int), range(0)):
        with table.pin_many(ids) as pages:
            assert len(pages) == 0
            assert list(pages) == []
    assert table.read_many([]).shape == (0, PAGE)
    assert table.prefetch([]) == 0


def test_pin_many_with_live_views_raises_and_they_keep_their_pages(pool, table):
    with pytest.raises(BufferError, match="2 pages"):  # noqa: SIM117
        with table.pin_many([1, 2]) as pages:
            kept = pages[1][100:]
    del pages
    assert np.array_equal(kept, stamp(2)[100:])
    assert pins(pool) >= 1
    for n in range(100):
        assert table[n][0] == stamp(n)[0]
    assert np.array_equal(kept, stamp(2)[100:])
    del kept
    assert pins(pool) == 0


def test_pin_many_pins_nothing_when_one_page_does_not_exist(pool, table):
    with pytest.raises(PageOutOfRange):
        table.pin_many([1, 2, 100])
    with pytest.raises(PageOutOfRange):
        table.read_many([1, -1])
    assert pins(pool) == 0


def test_pin_many_pins_nothing_when_one_page_fails_to_load(pool):
    def loader(n, out):
        if n == 150:
            raise OSError("broken")

    space = pool.open_derived("derived", 200, loader)
    ids = [*range(10), 150]
    with pytest.raises(bp.errors.LoaderFailed):
        space.pin_many(ids)
    with pytest.raises(bp.errors.LoaderFailed):
        space.read_many(ids)
    assert pins(pool) == 0


def test_pin_many_of_more_pages_than_the_pool_has_is_refused_and_releases(pool, table):
    with pytest.raises(bp.errors.PoolExhausted):
        table.pin_many(range(100))
    assert pins(pool) == 0


def test_read_many_keeps_order_and_duplicates(table):
    ids = [9, 3, 9, 0, 99, 3]
    assert np.array_equal(table.read_many(ids), [stamp(n) for n in ids])


def test_read_many_reads_more_pages_than_the_pool_has(pool, table):
    ids = np.random.default_rng(3).permutation(100)
    assert np.array_equal(table.read_many(ids), [stamp(n) for n in ids])
    assert pins(pool) == 0


def test_read_many_into_out(table):
    out = np.zeros((3, PAGE), np.uint8)
    assert table.read_many([1, 2, 3], out=out) is out
    assert np.array_equal(out, [stamp(1), stamp(2), stamp(3)])
    assert table.read_many([4, 5, 6], out) is out
    assert table.read_many([4], None).flags.owndata
    big = np.zeros((10, PAGE), np.uint8)
    table.read_many([7, 8], out=big[4:6])
    assert np.array_equal(big[4:6], [stamp(7), stamp(8)])
    assert not big[:4].any()
    assert not big[6:].any()


def test_read_many_refuses_an_out_that_does_not_fit(pool, table):
    read_only = np.zeros((2, PAGE), np.uint8)
    read_only.flags.writeable = False
    for out in (
        np.zeros((3, PAGE), np.uint8),
        np.zeros((2, PAGE - 1), np.uint8),
        np.zeros(2 * PAGE, np.uint8),
        np.zeros((2, PAGE), np.int8),
        np.zeros((2, PAGE // 8), np.uint64),
        np.zeros((4, PAGE), np.uint8)[::2],
        np.zeros((PAGE, 2), np.uint8).T,
        bytearray(2 * PAGE),
        "out",
        read_only,
        pool.data[:2],
    ):
        with pytest.raises(ValueError, match="out must be"):
            table.read_many([1, 2], out=out)
    assert not read_only.any()


_CHANGING_IDS = """
import os, numpy as np, bufferpool as bp, resource
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
pool = bp.Pool.create(f"bptest-{os.getppid()}-ids{os.getpid()}", 64 * 4096, page_size=4096)
pool.unlink()
ids = np.array([0, 1, 2])
def loader(n, out):
    ids[1:] = 10**9
    out[:] = n
space = pool.open_derived("derived", 10, loader)
try:
    result = space.CALL(ids)
    result = [int(page[0]) for page in result] if hasattr(result, "__len__") else result
except IndexError as error:
    result = "refused"
print(result, pool.check())
"""


@pytest.mark.parametrize("call", ["pin_many", "read_many", "_load_many"])
def test_page_numbers_that_change_during_the_call_do_no_harm(call):
    """The array of page numbers is the caller's: a loader or a thread may change it meanwhile."""
    done = run_python(_CHANGING_IDS.replace("CALL", call))
    assert done.returncode == 0, done.stderr
    assert done.stdout in ("[0, 1, 2] []\n", "3 []\n", "refused []\n")
