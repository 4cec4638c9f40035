"""The pages of the workloads: their content, which every reader can check, and the distribution of references."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from workload import Run

PAGE = 8192  # bytes
WORDS = PAGE // 8


def stamp(page_no: int, version: int = 0) -> npt.NDArray[np.uint64]:
    """The content of a page: every word differs from every word of other pages and versions."""
    return np.arange(WORDS, dtype=np.uint64) + np.uint64(word(page_no, 0, version))


def word(page_no: int, at: int, version: int = 0) -> int:
    """Word ``at`` of :func:`stamp`."""
    return (version << 44) + ((page_no + 1) << 16) + at


def write_dataset(run: "Run", path: Path, n_pages: int) -> None:
    """A file of stamped pages, on disk and in the page cache."""
    with run.progress("writing the dataset", n_pages) as advance, open(path, "wb", buffering=1 << 20) as file:
        for first in range(0, n_pages, 1024):
            count = min(1024, n_pages - first)
            numbers = np.arange(first, first + count, dtype=np.uint64)[:, None]
            file.write((np.arange(WORDS, dtype=np.uint64) + ((numbers + np.uint64(1)) << np.uint64(16))).tobytes())
            advance(count)
        file.flush()
        os.fsync(file.fileno())


def zipf(random: np.random.Generator, n: int, s: float, size: int, *, shuffled: bool = True) -> npt.NDArray[np.int64]:
    """``size`` numbers below ``n``: the k-th most frequent one has weight 1/k**s.

    That number is k - 1, or with ``shuffled`` the k-th of a permutation, the same in every process.
    """
    cdf = np.cumsum(np.arange(1, n + 1, dtype=np.float64) ** -s)
    ranks: npt.NDArray[np.int64] = np.searchsorted(cdf, random.random(size) * cdf[-1])
    if not shuffled:
        return ranks
    chosen: npt.NDArray[np.int64] = np.random.default_rng(n).permutation(n)[ranks]
    return chosen
