"""Pins: every array that looks at a page owns one; released early, and never under a view."""

import gc
import weakref

import numpy as np
import pytest

from tests.conftest import pins, stamp

pytestmark = pytest.mark.kernel

# ---- views own their pins ------------------------------------------------------------------


def _views(page):
    yield "array", page
    yield "slice", page[16:]
    yield "slice of a slice", page[16:][16:]
    yield "view", page.view(np.uint64)
    yield "slice of a view", page.view(np.uint64)[3:9]
    yield "reshaped", page.reshape(64, 64)[5]
    yield "memoryview", memoryview(page)
    yield "slice of a memoryview", memoryview(page)[10:20]
    yield "frombuffer", np.frombuffer(page, np.uint32)
    yield "array of a memoryview", np.asarray(memoryview(page))
    yield "iterator", iter(page)


@pytest.mark.parametrize("how", ["space[n]", "pin", "pin_many", "scan"])
def test_whatever_looks_at_a_page_keeps_it_pinned(pool, table, how):
    names = [what for what, _ in _views(table[0])]
    assert pins(pool) == 0
    for i, what in enumerate(names):
        if how == "space[n]":
            page = table[3]
        elif how == "pin":
            page = table.pin(3).page
        elif how == "pin_many":
            page = table.pin_many([3])[0]
        else:
            page = next(table.scan(3, 4))
        views = list(_views(page))
        view = views[i][1]
        del page, views
        assert pins(pool) == 1, what
        frames = pool.frames()
        (pinned,) = frames[frames["pins"] > 0]
        assert (pinned["page_no"], pinned["pinners"]) == (3, 1)
        assert pool.clients()[0].pinned_frames == 1
        before = memoryview(view).tobytes() if what != "iterator" else None
        for n in range(100):  # more pages than the pool has
            assert table[n][0] == stamp(n)[0]
        if before is not None:
            assert memoryview(view).tobytes() == before
        else:
            assert next(view) == stamp(3)[0]
        del view
        assert pins(pool) == 0, what


def test_every_array_of_a_page_has_a_pin_of_its_own(pool, table):
    pages = [table[3] for _ in range(5)]
    assert pins(pool) == 5
    assert pool.clients()[0].pinned_frames == 1
    del pages[2:]
    assert pins(pool) == 2


def test_a_cycle_of_garbage_gives_its_pin_back(pool, table):
    cycle = [table[3]]
    cycle.append(cycle)
    gone = weakref.ref(cycle[0])
    del cycle
    gc.collect()
    assert gone() is None
    assert pins(pool) == 0


def test_a_page_may_be_pinned_very_often(pool, table):
    pages = [table.pin(3) for _ in range(60_000)]
    assert pins(pool) == 60_000
    with pytest.raises(OverflowError, match="pinned"):
        pages.extend(table.pin(3) for _ in range(10_000))
    assert pins(pool) == len(pages) <= 65_535
    assert np.array_equal(pages[-1].page, stamp(3))
    del pages
    assert pins(pool) == 0


# ---- pin ---------------------------------------------------------------------------------


def test_pin_as_a_block_releases_at_its_end(pool, table):
    with table.pin(3) as page:
        assert np.array_equal(page, stamp(3))
        assert pins(pool) == 1
    assert pins(pool) == 0
    assert page.shape == (0,)
    assert page.dtype == np.uint8


def test_a_pin_knows_its_page(table):
    pin = table.pin(3)
    assert pin.page_no == 3
    assert pin.lsn == 0
    assert pin.page is pin.page
    pin.release()
    pin.release()
    assert pin.page_no == 3
    with pytest.raises(ValueError, match="released"):
        _ = pin.page
    with pytest.raises(ValueError, match="released"):
        _ = pin.lsn


def test_a_forgotten_pin_releases_itself(pool, table):
    pin = table.pin(3)
    assert pins(pool) == 1
    del pin
    assert pins(pool) == 0


@pytest.mark.parametrize("view", ["slice", "memoryview", "view", "frombuffer", "iterator", "list"])
def test_release_with_a_live_view_raises_and_the_view_keeps_the_pin(pool, table, view):
    def make(page):
        return {
            "slice": lambda: page[8:],
            "memoryview": lambda: memoryview(page),
            "view": lambda: page.view(np.uint64),
            "frombuffer": lambda: np.frombuffer(page, np.uint8),
            "iterator": lambda: iter(page),
            "list": lambda: [page],
        }[view]()

    with pytest.raises(BufferError, match="copy what you keep"):  # noqa: SIM117
        with table.pin(3) as page:
            kept = make(page)
    del page
    assert pins(pool) == 1
    del kept
    gc.collect()
    assert pins(pool) == 0


@pytest.mark.parametrize("view", ["memoryview", "frombuffer", "iterator", "list"])
def test_a_view_counts_when_the_name_of_the_page_is_gone(pool, table, view):
    """No other reference to the page's array exists, but a memoryview still uses the page."""
    pin = table.pin(3)
    kept = {"memoryview": memoryview, "frombuffer": np.frombuffer, "iterator": iter, "list": lambda page: [page]}[view](
        *([pin.page] if view != "frombuffer" else [pin.page, np.uint8])
    )
    try:
        pin.release()
    except BufferError:
        assert pins(pool) == 1
    else:
        # Each object that still shows bytes must have kept the page pinned.
        seen = kept[0] if view != "iterator" else next(kept, None)
        shows_bytes = getattr(seen, "size", 1) > 0 and seen is not None
        assert not shows_bytes, "released while a view looks at the page"
    del kept, pin


@pytest.mark.parametrize("view", ["memoryview", "frombuffer"])
def test_a_view_counts_when_the_page_was_pinned_with_others(pool, table, view):
    pages = table.pin_many([3, 4])
    kept = memoryview(pages[0]) if view == "memoryview" else np.frombuffer(pages[0], np.uint8)
    with pytest.raises(BufferError):
        pages.release()
    assert pins(pool) == 2
    del kept, pages


def test_a_released_page_that_is_still_viewed_does_not_change_under_the_view(work):
    with work.write(0) as page:
        page[:] = 7
    pin = work.pin(0)
    kept = memoryview(pin.page)
    try:
        pin.release()
    except BufferError:
        pin = None
    for n in range(16):
        with work.write(n) as page:
            page[:] = 9
    assert kept[0] == 7
    del kept, pin


def test_release_works_once_the_views_are_gone(pool, table):
    pin = table.pin(3)
    tail = pin.page[8:]
    with pytest.raises(BufferError):
        pin.release()
    assert np.array_equal(pin.page, stamp(3))
    del tail
    pin.release()
    assert pins(pool) == 0


def test_an_exception_in_a_pin_block_is_not_masked(pool, table):
    kept = []
    with pytest.raises(KeyError, match="mine"):  # noqa: PT012, SIM117
        with table.pin(3) as page:
            kept.append(page[8:])
            raise KeyError("mine")
    assert np.array_equal(kept[0], stamp(3)[8:])
    with pytest.raises(KeyError, match="mine"):  # noqa: PT012, SIM117
        with table.pin_many([1, 2]) as pages:
            kept.append(pages[1][8:])
            raise KeyError("mine")
    assert np.array_equal(kept[1], stamp(2)[8:])
    del page, pages
    gc.collect()
    assert pins(pool) == 3
    kept.clear()
    gc.collect()
    assert pins(pool) == 0
