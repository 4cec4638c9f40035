"""The replacement policy: alone, and under the real protocol."""

from pathlib import Path

import numpy as np
import pytest

import bufferpool as bp
from benchmarks.yardsticks import lru_misses

TRACE = Path(bp.__file__).parent / "replay" / "traces" / "tpcc.npz"
PAGE = 4096


@pytest.fixture(scope="module")
def tpcc() -> np.ndarray:
    return np.load(TRACE)["pages"][:100_000]


def test_what_fits_misses_once_a_page(tpcc: np.ndarray) -> None:
    distinct = len(np.unique(tpcc))
    result = bp.simulate(tpcc, distinct)
    assert (result.misses, result.hits) == (distinct, len(tpcc) - distinct)
    assert result.evictions_cold == result.evictions_hot == 0


@pytest.mark.parametrize("share", [0.05, 0.1, 0.2])
def test_it_misses_less_than_lru_on_a_database_trace(tpcc: np.ndarray, share: float) -> None:
    frames = int(share * len(np.unique(tpcc)))
    assert bp.simulate(tpcc, frames).misses < lru_misses(tpcc, frames)


def test_a_loop_larger_than_the_pool_keeps_most_of_it() -> None:
    loop = np.tile(np.arange(120), 50)
    assert lru_misses(loop, 100) == len(loop)  # LRU loses every page before it comes again
    assert bp.simulate(loop, 100).miss_ratio < 0.4


def test_a_scan_leaves_the_hot_pages_where_they_are() -> None:
    rng = np.random.default_rng(1)
    hot = rng.integers(0, 50, 20_000)
    scan = np.arange(1000, 6000)
    mixed = np.concatenate([hot, scan, hot])
    again = bp.simulate(mixed, 100).misses - bp.simulate(np.concatenate([hot, scan]), 100).misses
    assert again <= 5


@pytest.mark.parametrize("share", [0.1, 0.25])
def test_the_pool_does_what_the_simulator_says(tpcc: np.ndarray, share: float, make_pool, tmp_path: Path) -> None:
    frames = int(share * len(np.unique(tpcc)))
    path = tmp_path / "pages"
    path.write_bytes(b"\0" * PAGE * (int(tpcc.max()) + 1))
    pool = make_pool(frames * PAGE, page_size=PAGE)
    space = pool.open_file(path)
    for page in tpcc.tolist():
        space[page]
    simulated = bp.simulate(tpcc, frames).misses
    assert abs(pool.stats().misses - simulated) <= 0.01 * simulated


@pytest.mark.parametrize(
    ("trace", "frames", "error"),
    [
        ([0.5, 1.0], 4, TypeError),
        ([[1, 2]], 4, TypeError),
        ([1, 2], 0, ValueError),
        ([1, 2], 2.0, TypeError),
        ([-1, 2], 4, ValueError),
    ],
)
def test_bad_arguments_are_refused(trace: list, frames: int, error: type[Exception]) -> None:
    with pytest.raises(error):
        bp.simulate(trace, frames)


def test_an_empty_trace_is_no_error() -> None:
    result = bp.simulate([], 4)
    assert (result.hits, result.misses) == (0, 0)
    assert np.isnan(result.miss_ratio)
