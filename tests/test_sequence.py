"""A space behaves as a sequence of pages does: the habits that people bring from lists and numpy."""

import inspect
import pickle
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import bufferpool as bp
from bufferpool import _core
from tests.conftest import WAIT, new_name


@pytest.fixture
def space() -> Iterator[bp.Space]:
    pool = bp.Pool.create(new_name(), "1MiB", page_size=4096)

    def fill(n: int, out: np.ndarray) -> None:
        out[:] = n

    yield pool.open_derived("squares", 10, fill, dtype=np.uint64)
    assert pool.check() == []
    pool.close()
    pool.unlink()


def test_negative_numbers_count_from_the_end(space: bp.Space) -> None:
    assert space[-1][0] == 9
    assert space[-10][0] == 0
    for outside in (10, -11, 2**70, -(2**70)):
        with pytest.raises(bp.PageOutOfRange):
            space[outside]


def test_methods_take_numbers_from_zero(space: bp.Space) -> None:
    """A -1 that pads an array of neighbours must not load the last page."""
    for call in (space.get, space.pin, lambda n: space.read_many([n]), lambda n: space.pin_many([n])):
        with pytest.raises(bp.PageOutOfRange):
            call(-1)


def test_a_slice_is_a_read_only_copy_of_its_pages(space: bp.Space) -> None:
    pages = space[2:5]
    assert pages.shape == (3, 512)
    assert pages.dtype == np.uint64
    assert pages[:, 7].tolist() == [2, 3, 4]
    with pytest.raises(ValueError, match="read-only"):
        pages[0, 0] = 1
    assert space[::-4][:, 0].tolist() == [9, 5, 1]
    assert space[8:100].shape == (2, 512)
    assert space[5:5].shape == (0, 512)


def test_membership_truth_and_iteration(space: bp.Space) -> None:
    assert 9 in space
    assert np.int32(0) in space
    assert 10 not in space
    assert -1 not in space
    with pytest.raises(TypeError, match="page number"):
        _ = "nine" in space
    assert [int(page[0]) for page in reversed(space)] == list(range(9, -1, -1))
    empty = space.pool.open_derived("none", 0, lambda n, out: None)
    assert len(empty) == 0
    assert empty


def test_writing_without_a_block_names_the_block() -> None:
    """``space[n] = x`` and ``space.write(n)[0] = x`` ended with messages of Python's that named no remedy."""
    pool = bp.Pool.create(new_name(), "1MiB", page_size=4096)
    try:
        space = pool.open_scratch("work", 4)
        with pytest.raises(TypeError, match=r"with space.write\(n\) as page"):
            space[0] = np.zeros(4096, np.uint8)
        with pytest.raises(TypeError, match=r"with space.write\(n\) as page"):
            space.write(0)[0] = 1
        with pytest.raises(TypeError, match=r"with space.append\(\) as page"):
            space.append()[0]
        with pytest.raises(AttributeError, match=r"has no 'fill'.*with space.write\(n\) as page"):
            space.write(0).fill(1)
        assert not hasattr(space.write(0), "__array__")
        assert space[0][0] == 0
        del space
        assert pool.check() == []
    finally:
        pool.close()
        pool.unlink()


def test_an_lsn_is_an_argument_of_write_and_append(tmp_path) -> None:
    path = tmp_path / "table"
    path.write_bytes(bytes(4096))
    pool = bp.Pool.create(new_name(), "1MiB", page_size=4096)
    try:
        table = pool.open_file(path, "r+", max_pages=4)
        with table.write(0, lsn=7) as page:
            page[0] = 1
        with table.append(lsn=8) as page:
            page[0] = 2
        with table.pin(0) as _:
            pass
        assert [table.pin(n).lsn for n in range(2)] == [7, 8]
        with table.write(0) as page:
            page[1] = 1
        assert table.pin(0).lsn == 7
        with pytest.raises(ValueError, match="LSN"):
            table.write(0, lsn=-1)
        with pytest.raises(TypeError, match="LSN"):
            table.append(lsn="8")
        with table.append() as page:  # the number that the refused append had reserved is used again
            page[0] = 3
        assert len(table) == 3
        assert pool.check() == []
    finally:
        pool.close()
        pool.unlink(discard=True)


def test_reprs_say_what_and_in_which_state(space: bp.Space) -> None:
    scratch = space.pool.open_scratch("work", 4)
    write = scratch.write(3)
    assert repr(write) == "<Write of page 3 of space 'work', not begun>"
    with write:
        assert "open" in repr(write)
    assert "ended" in repr(write)
    pin = space.pin(2)
    assert repr(pin) == "<Pin of page 2 of space 'squares'>"
    pin.release()
    assert repr(pin) == "<Pin of page 2, released>"
    with space.pin_many([1, 2, 3]) as pages:
        assert repr(pages) == "<PinnedPages: 3 pages>"
    assert "released" in repr(pages)


def test_reprs_of_pools_and_spaces_have_size_and_state_and_never_raise(space: bp.Space) -> None:
    """They gave the name only, and whether the pool was closed: not how large it is, nor that a space was removed."""
    pool = space.pool
    assert repr(pool) == f"<Pool {pool.name!r}, 1.0 MiB>"
    assert repr(space) == f"<Space 'squares' (derived) of pool {pool.name!r}, 10 pages>"
    copied_pool, copied = pickle.loads(pickle.dumps((pool, pool.open_scratch("work", 4))))
    assert "not attached yet" in repr(copied_pool)
    assert "not attached yet" in repr(copied)
    assert copied_pool.client.attached is None, "the repr has not attached it"
    with bp.Pool.attach(pool.name, mode="r") as reader:
        assert repr(reader) == f"<Pool {pool.name!r}, 1.0 MiB, for reading>"
        seen = reader.space("squares")
    assert repr(reader) == f"<Pool {pool.name!r}, closed>"
    assert repr(seen) == f"<Space 'squares' (derived) of pool {pool.name!r}, closed>"
    other = pool.open_scratch("gone", 4)
    other.remove()
    assert "unusable (SpaceRemoved)" in repr(other)


def test_the_repr_of_a_space_says_that_it_is_open_for_reading(space: bp.Space, tmp_path: Path) -> None:
    """A file and a store are opened for reading unless a mode is given. Only the refused write said so."""
    (tmp_path / "t.db").write_bytes(bytes(2 * 4096))
    pool = space.pool
    shown = f"<Space 't.db' (file) of pool {pool.name!r}, 2 pages"
    assert repr(pool.open_file(tmp_path / "t.db")) == f"{shown}, for reading>"
    assert repr(pool.open_file(tmp_path / "t.db", mode="r+")) == f"{shown}>"
    scratch = pool.open_scratch("work", 4)
    assert "for reading" not in repr(scratch)
    assert "for reading" in repr(pool.space("work"))
    with bp.Pool.attach(pool.name, mode="r") as reader:
        assert "for reading" in repr(reader.space("t.db"))


def test_a_space_and_a_pool_say_what_they_are(space: bp.Space, tmp_path: Path) -> None:
    pool = space.pool
    assert (space.page_size, space.path, pool.capacity) == (4096, None, 1 << 20)
    space[3], space[3]
    stats = space.stats()
    assert (stats.name, stats.kind, stats.pages, stats.resident, stats.dirty) == ("squares", "derived", 10, 1, 0)
    assert (stats.hits, stats.misses) == (1, 1)
    assert [s.name for s in pool.spaces()] == ["squares"]
    path = tmp_path / "table"
    path.write_bytes(bytes(4096))
    table = pool.open_file(path)
    assert table.path == str(path.resolve())
    table.remove()
    with pytest.raises(bp.SpaceRemoved):
        table.stats()


def test_a_client_says_whether_it_is_the_steward(space: bp.Space) -> None:
    pool = space.pool
    assert [c.is_steward for c in pool.clients()] == [False]
    pool.start_steward(bp.Settings(interval=0.05))
    deadline = time.monotonic() + WAIT
    while not pool.clients()[0].is_steward and time.monotonic() < deadline:
        time.sleep(0.01)
    assert [c.is_steward for c in pool.clients()] == [True]
    pool.stop_steward()
    assert [c.is_steward for c in pool.clients()] == [False]


@pytest.mark.parametrize("name", ["get", "pin", "pin_many", "read_many", "write", "append"])
def test_native_methods_have_signatures_and_docstrings(name: str) -> None:
    method = getattr(_core.Space, name)
    assert "timeout" in inspect.signature(method).parameters or name == "append"
    assert len(method.__doc__.splitlines()) >= 3


def without_help(name: str, found: object) -> bool:
    """True if ``help`` does not say what a method or property does, or which parameters it has."""
    function = found.__func__ if isinstance(found, classmethod | staticmethod) else found
    if name.startswith("_") or not (inspect.isroutine(function) or inspect.isdatadescriptor(function)):
        return False
    try:
        return not inspect.getdoc(function) or (inspect.isroutine(function) and not inspect.signature(function))
    except ValueError:  # a method of C without a text signature
        return True


def test_help_says_what_each_public_method_does_and_takes() -> None:
    """``help`` showed ``release(...)`` of a pin without its parameters, and nothing about the methods of a FileStore."""
    exported = [getattr(bp, name) for name in bp.__all__]
    bases = {
        base
        for each in exported
        if inspect.isclass(each)
        for base in each.__mro__
        if base.__module__.startswith("bufferpool")
    }
    assert _core.Space in bases
    assert [
        f"{base.__qualname__}.{name}"
        for base in bases
        for name, found in vars(base).items()
        if without_help(name, found)
    ] == []


def test_help_says_what_each_internal_call_of_the_core_does_and_takes() -> None:
    """``help(_core.Segment.shrink)`` was empty, so a reader of the Python rooms had to look for the C++ function."""
    types = [found for found in vars(_core).values() if inspect.isclass(found)]
    calls = {f"_core.{name}": found for name, found in vars(_core).items() if inspect.isbuiltin(found)}
    assert {"Segment", "Held", "Batch", "CacheBase"} <= {found.__name__ for found in types}
    assert "_core.read_many" in calls
    for found in types:
        calls |= {f"{found.__name__}.{name}": each for name, each in vars(found).items() if not name.startswith("__")}
    assert [name for name, found in calls.items() if without_help(name.split(".")[0], found)] == []
