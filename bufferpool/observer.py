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

from bufferpool import _core
from bufferpool.client import segment_file
from bufferpool.errors import SegmentCorrupt, UnsavedPages
from bufferpool.figures.pool_figures import PoolFigures
from bufferpool.figures.stats import read_unsaved


class Observer(PoolFigures):
    """A pool, observed. Use it for a moment, in a ``with`` block: while it is open, memory of a removed pool stays.

    ``advise()`` has no points while clients are at work on it all the time.

    Raises SegmentNotFound, SegmentRefused, SegmentCorrupt, LayoutMismatch, NotTmpfs.
    """

    def __init__(self, name: str, *, directory: str | os.PathLike[str] | None = None) -> None:
        self._path = segment_file.path_of(name, directory)
        fd = segment_file.open_regular(self._path, os.O_RDONLY)
        try:
            self._segment = _core.observe(fd)
        finally:
            os.close(fd)
        self._geometry: dict[str, Any] = self._segment.geometry()

    @property
    def path(self) -> str:
        """The path of the pool's segment."""
        return self._path

    @property
    def seg(self) -> _core.Segment:
        """The segment in the core (internal)."""
        return self._segment

    @property
    def geometry(self) -> dict[str, Any]:
        """The sizes and limits that were fixed when the segment was created (internal)."""
        return self._geometry

    @property
    def created_at(self) -> float:
        """When the pool was created: seconds since the epoch."""
        return float(self.geometry["created_ns"] / 1e9)

    def close(self) -> None:
        """Ends the look. Closing twice is fine."""
        self.seg.close(False)

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
