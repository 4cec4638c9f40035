"""The figures of a pool: what they count, how they are shown, and that a client and an observer show the same."""

import dataclasses
import inspect
import itertools

import pytest

import bufferpool as bp
from bufferpool.client.client import Client
from bufferpool.figures.pool_figures import PoolFigures
from bufferpool.figures.stats import Inspectable
from tests.conftest import new_name


def test_frames_are_counted_once_each(pool, data_file):
    """``stats().frames`` was a dict, whose keys nobody could complete or check."""
    table = pool.open_file(data_file(8), "r+")
    with table.write(0) as page:
        page[:] = 1
    table.flush()
    reader = table[0]  # clean, and pinned
    with table.write(1) as page:
        page[:] = 1
    assert len(table.read_many([2, 3, 4])) == 3
    frames = pool.stats().frames
    assert frames.hole + frames.free + frames.busy + frames.live + frames.retired == pool.max_frames
    assert (frames.live, frames.clean, frames.dirty) == (5, 4, 1)
    assert (frames.pinned, frames.pinned_live, frames.pinned_dirty) == (1, 1, 0)
    with table.write(0) as page:
        page[:] = 2
    frames = pool.stats().frames
    assert (frames.retired, frames.live, frames.pinned, frames.pinned_live) == (1, 5, 1, 0)
    shown = frames.shown()
    assert sum(shown.values()) == pool.max_frames
    assert (shown["retired"], shown["pinned"], shown["dirty"], shown["clean"]) == (1, 0, 2, 3)
    assert reader.any()


def test_the_figures_say_in_one_line_what_matters(pool, data_file):
    """The repr of the figures was that of a dataclass of forty fields: two thousand characters on one line."""
    table = pool.open_file(data_file(4), "r+")
    with table.write(0) as page:
        page[:] = 1
    text = repr(pool.stats())
    assert text.startswith(f"<PoolStats of {pool.name!r}: ")
    assert "1 page, 1 dirty, 0 pinned" in text
    assert len(text) < 250


def test_an_observer_and_a_client_show_the_same_figures(pool):
    """Pool, Client and Observer each had these properties and methods, word for word."""
    shared = {name for name, _ in inspect.getmembers(PoolFigures) if not name.startswith("_")} - {
        "path",
        "seg",
        "geometry",
        "page_sizes",
    }
    for kind in (bp.Pool, bp.Observer):
        assert issubclass(kind, PoolFigures)
        assert not shared & vars(kind).keys()
    assert issubclass(Client, Inspectable)
    assert not {"name", "page_size", "max_frames", "uuid"} & vars(Client).keys()
    with bp.Observer(pool.name) as observer:
        assert (observer.name, observer.uuid, observer.page_size) == (pool.name, pool.uuid, pool.page_size)
        assert dataclasses.asdict(observer.stats()) == dataclasses.asdict(pool.stats())
        assert observer.spaces() == pool.spaces()


@pytest.mark.parametrize("kind", [bp.PoolStats, bp.FrameCounts, bp.SpaceStats, bp.ClientInfo, bp.Settings])
def test_every_figure_is_documented(kind):
    """The counters of PoolStats had names, and nothing said what they count."""
    lines = inspect.getsource(kind).splitlines()
    names = {field.name for field in dataclasses.fields(kind)}
    told = {
        line.split(":")[0].strip()
        for line, after in itertools.pairwise(lines)
        if after.strip().startswith('"""') and ":" in line
    }
    assert names - told == set()


def test_sizes_are_strings_for_the_page_size_too(pool_name):
    """page_size="16KiB" was a TypeError, while all other sizes took such strings."""
    with bp.Pool.create(pool_name, "1MiB", page_size="16KiB", extent_size="64KiB") as pool:
        assert pool.page_size == 16 << 10
        with bp.Pool.open(pool_name, page_size="16KiB") as same:
            assert same.page_size == 16 << 10
        with pytest.raises(bp.errors.PoolMismatch, match="page_size is 16384, not 8192"):
            bp.Pool.open(pool_name, page_size="8KiB")
    for size in ("12KiB", "2KiB", "16 parsecs"):
        with pytest.raises(ValueError, match="page_size"):
            bp.Pool.create(new_name(), "1MiB", page_size=size)
