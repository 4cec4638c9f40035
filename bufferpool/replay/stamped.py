"""A database file whose pages can be verified in the file and in the pool.

Each page is one 64-bit *stamp*, repeated: page number and version, mixed by a
invertible function. One comparison and one multiplication tell the right page from a torn page,
another page, an old version and a page of zeros.
"""

import os
import shutil
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from bufferpool.errors import BufferPoolError
from bufferpool.units import format_size

_CHUNK = 4 << 20  # bytes of the file written or read at a time
_MASK = 2**64 - 1
_MIX, _SALT = 0x9E3779B97F4A7C15, 0x6275666665720002
_UNMIX = pow(_MIX, -1, 2**64)

Words = npt.NDArray[np.uint64]


class ReplayFailed(BufferPoolError):
    """A check of the replay failed, or a worker ended early."""

    _lines = True


def stamp(page_no: int, version: int) -> int:
    """The 64-bit word that fills a version of a page."""
    return ((page_no << 32 | version) * _MIX & _MASK) ^ _SALT


def stamps(page_nos: Words, versions: Words) -> Words:
    """:func:`stamp` for arrays of one shape, uint64."""
    words: Words = ((page_nos << np.uint64(32) | versions) * np.uint64(_MIX)) ^ np.uint64(_SALT)
    return words


def verify(page: npt.NDArray[Any], page_no: int, oldest: int) -> int:
    """Checks a page (shape (page_size // 8,), uint64); returns its version. Raises ReplayFailed.

    ``oldest``: the newest version that the caller has seen; an older one is an error.
    """
    word = page[0]
    if not (page == word).all():
        raise ReplayFailed(f"page {page_no} is torn: it has {len(np.unique(page))} different words instead of one")
    found = (int(word) ^ _SALT) * _UNMIX & _MASK
    if found >> 32 != page_no:
        raise ReplayFailed(f"page {page_no} has the content of page {found >> 32} or of none (its word is {word:#x})")
    version = found & 0xFFFFFFFF
    if version < oldest:
        raise ReplayFailed(f"page {page_no} went back from version {oldest} to {version}")
    return version


def build_file(path: str, pages: int, page_size: int, may_go_on: Callable[[], None]) -> None:
    """Writes the file: every page stamped with its number and version 0. ``may_go_on`` may raise, to stop it.

    Raises OSError, and ReplayFailed if the disk is too small.
    """
    free = shutil.disk_usage(os.path.dirname(path)).free
    if free < pages * page_size:
        raise ReplayFailed(
            f"{os.path.dirname(path)} has {format_size(free)} free, and the file takes {format_size(pages * page_size)}: "
            "free some, or name another directory (--temp)"
        )
    per_chunk = max(1, _CHUNK // page_size)
    with open(path, "wb") as file:
        for first in range(0, pages, per_chunk):
            may_go_on()
            numbers = np.arange(first, min(first + per_chunk, pages), dtype=np.uint64)
            np.repeat(stamps(numbers, np.zeros_like(numbers)), page_size // 8).tofile(file)


def verify_file(path: str, versions: Words, page_size: int, may_go_on: Callable[[], None]) -> None:
    """Compares every page of the file with the version that it must have (``versions``, shape (pages,)). Raises ReplayFailed."""
    wrong: list[str] = []
    bad = 0
    size = os.stat(path).st_size
    if size != len(versions) * page_size:
        raise ReplayFailed(f"the file has {size} bytes at the end instead of {len(versions) * page_size}")
    per_chunk = max(1, _CHUNK // page_size)
    with open(path, "rb") as file:
        for first in range(0, len(versions), per_chunk):
            may_go_on()
            expected = versions[first : first + per_chunk]
            numbers = np.arange(first, first + len(expected), dtype=np.uint64)
            words = np.fromfile(file, np.uint64, len(expected) * page_size // 8).reshape(len(expected), -1)
            right = (words == stamps(numbers, expected)[:, None]).all(axis=1)
            bad += int(np.count_nonzero(~right))
            for i in np.flatnonzero(~right)[: 3 - len(wrong)].tolist():
                try:
                    version = verify(words[i], first + i, 0)
                    wrong.append(f"page {first + i} has version {version}, and {expected[i]} were published")
                except ReplayFailed as error:
                    wrong.append(str(error))
    if bad:
        raise ReplayFailed(f"{bad} of {len(versions)} pages of the file are wrong at the end: {'; '.join(wrong)}")
