"""Looking at a pool without being its client.

An observer takes no slot, holds no lock and writes nothing: its mapping of the
segment is read-only and ends where the pages begin. So it sees a pool whose
client slots are all taken, and one of another user whose mode lets it be read;
and nothing that it does disturbs the pool. It allocates no page of the segment,
and a damaged segment ends in SegmentCorrupt.
"""

import os
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from bufferpool import _core
from bufferpool.client import segment_file
from bufferpool.errors import SegmentCorrupt, UnsavedPages
from bufferpool.figures.advice import Advice, read_advice
from bufferpool.figures.events import Event, read_events
from bufferpool.figures.stats import (
    ClientInfo,
    PoolStats,
    read_clients,
    read_extents,
    read_frames,
    read_stats,
    read_unsaved,
)


class Observer:
    """A pool, observed. Use it for a moment, in a ``with`` block: while it is open, memory of a removed pool stays.

    ``advise()`` has no points while clients are at work on it all the time.

    Raises SegmentNotFound, SegmentRefused, SegmentCorrupt, LayoutMismatch, NotTmpfs.
    """

    def __init__(self, name: str, *, directory: str | os.PathLike[str] | None = None) -> None:
        self.path = segment_file.path_of(name, directory)
        fd = segment_file.open_regular(self.path, os.O_RDONLY)
        try:
            self.seg: _core.Segment = _core.observe(fd)
        finally:
            os.close(fd)
        self.geometry: dict[str, Any] = self.seg.geometry()

    @property
    def name(self) -> str:
        """The pool's name: that of its file."""
        return os.path.basename(self.path)

    @property
    def page_size(self) -> int:
        """Bytes of a page."""
        return int(self.geometry["page_size"])

    @property
    def max_frames(self) -> int:
        """Frames that the segment has room for."""
        return int(self.geometry["max_frames"])

    @property
    def uuid(self) -> bytes:
        """The bytes that distinguish this pool from another one that had its name before."""
        return bytes(self.geometry["uuid"])

    @property
    def created_at(self) -> float:
        """When the pool was created: seconds since the epoch."""
        return float(self.geometry["created_ns"] / 1e9)

    def close(self) -> None:
        """Ends the look. Closing twice is fine."""
        self.seg.close(False)

    def stats(self) -> PoolStats:
        """Figures of the whole pool, over all clients, present and past."""
        return read_stats(self)

    def frames(self) -> npt.NDArray[np.void]:
        """Every frame that has ever been used: a structured array, dtype ``stats.FRAME``."""
        return read_frames(self)

    def extents(self) -> npt.NDArray[np.void]:
        """Every extent that has ever been used: a structured array, dtype ``stats.EXTENT``."""
        return read_extents(self)

    def clients(self) -> list[ClientInfo]:
        """The attached processes, and how many pages each of them pins."""
        return read_clients(self)

    def steward(self) -> int:
        """The client number of the pool's steward, 0 if it has none."""
        return int(self.seg.steward())

    def events(self) -> list[Event]:
        """The last thousand decisions about the pool's memory, oldest first: when, kind, reason, bytes."""
        return read_events(self)

    def advise(self) -> Advice:
        """What the hit ratio would be with an eighth to eight times the budget, from recent references.

        No points while there are too few references.
        """
        return read_advice(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def unsaved_pages(name: str, directory: str | os.PathLike[str] | None = None) -> dict[str, int]:
    """Dirty pages of the files and stores of a pool, by space. Raises as :class:`Observer` does."""
    with Observer(name, directory=directory) as pool:
        return read_unsaved(pool)


def refuse_loss(name: str, directory: str | os.PathLike[str] | None = None) -> None:
    """Raises UnsavedPages if the pool has dirty pages of files or stores: they are nowhere else."""
    try:
        pages = unsaved_pages(name, directory)
    except SegmentCorrupt as error:
        raise SegmentCorrupt(
            f"{error}; nobody can count its dirty pages: to remove it all the same, pass discard=True (bufferpool rm --discard)"
        ) from error
    if pages:
        which = ", ".join(f"{n} of {space!r}" for space, n in pages.items())
        raise UnsavedPages(
            f"{name!r} has {sum(pages.values())} dirty pages that no file or store has yet ({which}): write them first "
            "(pool.flush(), bufferpool flush), or give them up (discard=True, bufferpool rm --discard)",
            pages,
        )
