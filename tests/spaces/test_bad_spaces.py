"""Bad files, spaces, loaders and stores: each has its own error, and leaves the pool as it was."""

import pickle

import numpy as np
import pytest

import bufferpool as bp
from bufferpool.errors import (
    FileSizeMismatch,
    LoaderFailed,
    LoaderOverrun,
    SpaceFull,
    SpaceMismatch,
    SpaceRemoved,
)
from tests.conftest import PAGE
from tests.support.children import run_python

# ---- files and spaces ---------------------------------------------------------------------------


@pytest.mark.parametrize("extra", [1, 100, PAGE - 1])
def test_a_file_of_no_whole_number_of_pages_is_refused(unchanged, tmp_path, extra):
    pool, _ = unchanged
    path = tmp_path / "odd.db"
    path.write_bytes(bytes(3 * PAGE + extra))
    for mode in ("r", "r+"):
        with pytest.raises(FileSizeMismatch, match=f"cut or pad it to {3 * PAGE} or {4 * PAGE} bytes") as refused:
            pool.open_file(path, mode)
        assert isinstance(refused.value, ValueError)
    assert path.stat().st_size == 3 * PAGE + extra


def test_a_store_of_no_whole_number_of_pages_is_refused(unchanged):
    class Odd:
        def read_into(self, offset, buffer): ...
        def write_from(self, offset, buffer): ...
        def sync(self): ...
        def size(self):
            return 5000

    pool, _ = unchanged
    with pytest.raises(FileSizeMismatch, match="5000"):
        pool.open_store("odd", Odd(), mode="r+")


@pytest.mark.parametrize("mode", ["w", "a", "rw", "", "R", "r+b", None, 1])
def test_an_unknown_mode_is_refused(unchanged, data_file, mode):
    pool, _ = unchanged
    with pytest.raises(ValueError, match=r"'r', 'r\+' or 'w\+'"):
        pool.open_file(data_file(2), mode)


_SPECIAL = """
import os, sys, bufferpool as bp
os.mkfifo(sys.argv[1] + "/fifo")
pool = bp.Pool.create(f"bptest-{os.getppid()}-special{os.getpid()}", 64 * 4096, page_size=4096)
pool.unlink()
for name in sys.argv[2:]:
    try:
        pool.open_file(name)
        print("opened")
    except (OSError, ValueError, bp.errors.BufferPoolError) as error:
        print("refused")
"""


def test_what_is_no_regular_file_is_refused_at_once(tmp_path):
    done = run_python(_SPECIAL, str(tmp_path), str(tmp_path / "fifo"), str(tmp_path), "/dev/null")
    assert done.stdout.splitlines() == ["refused"] * 3, done.stderr


@pytest.mark.parametrize("dtype", ["S3", "u1,u2", "O", "V5000", "S8192", [("a", "O")], "(2,)u4", "S0", "U"])
def test_a_dtype_that_does_not_fit_a_page_is_refused(unchanged, dtype, data_file):
    pool, _ = unchanged
    path = data_file(2)
    for use in (lambda: pool.open_scratch("new", 4, dtype=dtype), lambda: pool.open_file(path, dtype=dtype)):
        with pytest.raises(ValueError, match="does not fit"):
            use()


def test_a_dtype_that_is_none_is_refused(unchanged):
    pool, _ = unchanged
    with pytest.raises(TypeError):
        pool.open_scratch("new", 4, dtype="nonsense")


@pytest.mark.parametrize("name", ["", "x" * 4096, "ü" * 2048, "a\0b", 5, b"new"])
def test_a_space_name_that_is_none_is_refused(unchanged, name):
    pool, _ = unchanged
    with pytest.raises((ValueError, TypeError), match="name"):
        pool.open_scratch(name, 4)


@pytest.mark.parametrize("n_pages", [-1, 1.5, "4", None, True])
def test_a_page_count_that_is_none_is_refused(unchanged, n_pages):
    pool, _ = unchanged
    error = ValueError if n_pages == -1 else TypeError
    with pytest.raises(error, match="n_pages"):
        pool.open_scratch("new", n_pages)
    with pytest.raises(error, match="n_pages"):
        pool.open_derived("new", n_pages, lambda n, out: None)


@pytest.mark.parametrize("n_pages", [2**31, 2**32, 2**40, 2**62, 2**63, 2**63 + 4, 2**64, 2**64 + 1, 2**80])
def test_more_pages_than_the_pool_can_translate_are_refused(unchanged, n_pages):
    pool, _ = unchanged
    for use in (
        lambda: pool.open_scratch("new", n_pages),
        lambda: pool.open_derived("new", n_pages, lambda n, out: None),
    ):
        with pytest.raises((SpaceFull, ValueError, OverflowError)):
            use()


def test_max_pages_below_the_size_of_the_file_is_refused(unchanged, data_file):
    pool, _ = unchanged
    path = data_file(10)
    for bad in (5, -1, 1.5, "20"):
        with pytest.raises((SpaceFull, ValueError, TypeError)):
            pool.open_file(path, "r+", max_pages=bad)


def test_another_max_pages_than_the_space_has_is_refused(pool, attach, data_file):
    """Where the space was open already, ``max_pages=`` was ignored: an append beyond what another process had asked for raised SpaceFull."""
    path, other = data_file(4), attach(pool)
    table = pool.open_file(path, "r+", max_pages=100)
    for mode in ("r", "r+"):
        with pytest.raises(SpaceMismatch, match="room for 100 pages, not 200"):
            other.open_file(path, mode, max_pages=200)
        assert len(other.open_file(path, mode, max_pages=100)) == len(other.open_file(path, mode)) == 4
    assert len(other.open_file(path, "w+", max_pages=200)) == 0  # it replaces the space
    with pytest.raises(SpaceRemoved):
        len(pickle.loads(pickle.dumps(table)))
    assert pool.check() == []


def test_max_pages_beyond_any_integer_is_refused(unchanged, data_file):
    pool, _ = unchanged
    with pytest.raises((SpaceFull, ValueError, OverflowError)):
        pool.open_file(data_file(10), "r+", max_pages=2**64 + 20)


def test_options_that_make_no_sense_are_refused(unchanged):
    pool, _ = unchanged
    with pytest.raises(ValueError, match="lifetime"):
        pool.open_scratch("new", 4, lifetime="nobody")
    with pytest.raises(TypeError, match="loader"):
        pool.open_derived("new", 4, "loader")


def test_a_scratch_space_with_other_options_than_the_one_that_is_there_is_refused(unchanged):
    pool, _ = unchanged
    with pool.open_scratch("keep", 4, lifetime="process"):
        for options in ({"discardable": True, "lifetime": "process"},):
            with pytest.raises(SpaceMismatch):
                pool.open_scratch("keep", 4, **options)
        with pytest.raises(SpaceMismatch):
            pool.open_scratch("keep", 5000)


# ---- loaders ---------------------------------------------------------------------------------------


def test_a_loader_that_raises_or_overruns_leaves_the_pool_as_it_was(pool, unchanged):
    def raises(n, out):
        raise ZeroDivisionError("odd tile")

    def overruns(n, out):
        np.lib.stride_tricks.as_strided(out, (PAGE + 1,), (1,))[PAGE] ^= 1

    for name, loader, error in (("raises", raises, LoaderFailed), ("overruns", overruns, LoaderOverrun)):
        with pytest.raises(error, match=f"{name}.*nothing was published"):
            pool.open_derived(name, 4, loader)[1]
        pool.space(name).remove()


def test_a_loader_that_takes_other_arguments_gets_its_type_error(pool):
    with pytest.raises(LoaderFailed, match="TypeError") as failed:
        pool.open_derived("derived", 4, lambda: None)[1]
    assert isinstance(failed.value.__cause__, TypeError)


def test_a_store_that_returns_nonsense_is_a_store_error(pool):
    class Odd:
        wrong = None

        def read_into(self, offset, buffer):
            return self.wrong

        def write_from(self, offset, buffer):
            return self.wrong

        def sync(self): ...
        def size(self):
            return 4 * PAGE

    store = Odd()
    space = pool.open_store("odd", store, mode="r+")
    for store.wrong in (None, "4096", -1, 0, PAGE - 1, PAGE + 1, 2**70):
        with pytest.raises(bp.errors.StoreError):
            space[1]
    store.wrong = PAGE
    with space.write(1) as page:
        page[:] = 1
    for store.wrong in (None, "4096", -1, 0, PAGE - 1, PAGE + 1, 2**70):
        with pytest.raises(bp.errors.StoreError):
            pool.flush()
        assert pool.stats().frames.dirty == 1
