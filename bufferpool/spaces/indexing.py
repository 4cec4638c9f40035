"""Indexing a space as the two-dimensional array that it is: one row for each page.

``space[n]`` and ``space[a:b]`` need nothing of this; it serves ``space[a:b, c:d]``, ``space[..., 0]``, ``space[[5, 17]]``
and ``space[mask]``, with numpy's rules, so that libraries such as dask take a space for an array.
"""

from collections.abc import Sequence
from types import EllipsisType
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from bufferpool.errors import PageOutOfRange
from bufferpool.units import counted


class Rows(Protocol):
    """What has rows that can be read: a space."""

    def __len__(self) -> int: ...
    def __getitem__(self, page_no: int, /) -> npt.NDArray[Any]: ...
    def read_many(self, ids: Sequence[int] | npt.NDArray[Any] | range) -> npt.NDArray[Any]: ...


def parts_of(index: Any) -> tuple[Any, ...]:
    """The index of the pages and those of the items, with an ellipsis written out. Raises IndexError, TypeError."""
    parts = index if isinstance(index, tuple) else (index,)
    if any(part is None for part in parts):
        raise TypeError("a space has two dimensions, and no more can be added: index the array that space[a:b] returns")
    gaps = [at for at, part in enumerate(parts) if part is Ellipsis]
    if len(gaps) > 1:
        raise IndexError("an index can have one ellipsis only")
    used = sum(_dimensions(part) for part in parts if part is not Ellipsis)
    if used > 2:
        raise IndexError(f"a space has two dimensions, page and item, and {used} were indexed")
    if gaps:
        at, full = gaps[0], (slice(None),) * (2 - used)
        parts = (*parts[:at], *full, *parts[at + 1 :])
    return parts or (slice(None),)


def _dimensions(part: Any) -> int:
    """How many dimensions a part of an index uses up: as many as a mask has, and else one."""
    return np.ndim(part) if not isinstance(part, (slice, EllipsisType)) and np.asarray(part).dtype == bool else 1


def select(space: Rows, index: Any) -> Any:
    """What ``np.stack(pages)[index]`` would be: a copy that is read-only, a page's own array, or a plain value."""
    pages, *items = parts_of(index)
    if isinstance(pages, slice):
        rows = space.read_many(range(*pages.indices(len(space))))
        return _sealed(rows[(slice(None), *items)])
    if isinstance(pages, (int, np.integer)) and not isinstance(pages, bool):
        row = space[int(pages)]
        return row[tuple(items)] if items else row
    chosen = np.asarray(pages)
    if chosen.dtype == bool:
        return _sealed(_masked(space, chosen, items))
    if chosen.size and not np.issubdtype(chosen.dtype, np.integer):
        raise TypeError(f"pages are chosen by integers, slices or masks, not by {chosen.dtype}")
    numbers = _from_the_start(chosen.ravel(), len(space))
    rows = space.read_many(numbers)
    return _sealed(rows[(np.arange(chosen.size).reshape(chosen.shape), *items)])


def _masked(space: Rows, mask: npt.NDArray[np.bool_], items: list[Any]) -> npt.NDArray[Any]:
    """The pages, or with a mask of two dimensions the items, for which the mask is true."""
    pages = len(space)
    if not mask.ndim or mask.shape[0] != pages:
        raise IndexError(f"the mask must have one value for each of the {pages} pages, not the shape {mask.shape}")
    wanted = mask.any(axis=1) if mask.ndim == 2 else mask
    rows = space.read_many(np.flatnonzero(wanted))
    return rows[mask[wanted]] if mask.ndim == 2 else rows[(np.arange(len(rows)), *items)]


def _from_the_start(numbers: npt.NDArray[Any], pages: int) -> npt.NDArray[np.int64]:
    """Page numbers of which negative ones count from the end. Raises PageOutOfRange."""
    numbers = numbers.astype(np.int64)
    found = np.where(numbers < 0, numbers + pages, numbers)
    if bad := numbers[(found < 0) | (found >= pages)].tolist():
        raise PageOutOfRange(f"page {bad[0]} does not exist: the space has {counted(pages, 'page')}, numbered from 0")
    return found


def _sealed(found: Any) -> Any:
    """The same array, which can no longer be written: what is written to a copy would be lost."""
    if isinstance(found, np.ndarray):
        found.flags.writeable = False
    return found
