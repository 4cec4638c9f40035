"""Observers: they read a pool's figures without being its client.

An observer takes no slot, holds no lock and writes nothing: its mapping of the
segment is read-only and ends where the pages begin. So it can read a pool whose
client slots are all in use, or a pool of another user whose permissions allow reading,
and it never disturbs the pool. It allocates no memory in the segment.
A damaged segment raises SegmentCorrupt.
"""

import contextlib
import os
from types import TracebackType
from typing import Any, Self

from bufferpool import _core
from bufferpool.client import segment_file
from bufferpool.errors import SegmentCorrupt, SegmentNotFound, UnsavedPages
from bufferpool.figures.pool_figures import PoolFigures, read_all_unsaved
from bufferpool.units import counted


class Observer(PoolFigures):
    """The figures of a pool. Use it briefly, in a ``with`` block: an open observer keeps the memory of a removed pool.

    ``advise()`` has no points if clients update the simulations whenever it reads them.

    Raises SegmentNotFound, SegmentRefused, SegmentCorrupt, LayoutMismatch, NotTmpfs.
    """

    def __init__(self, name: str, *, directory: str | os.PathLike[str] | None = None) -> None:
        self._path = segment_file.path_of(name, directory)
        with segment_file.open_regular(self._path, os.O_RDONLY) as file, segment_file.named(self._path):
            self._segment = _core.observe(file.fileno())
        self._geometry: dict[str, Any] = self._segment.geometry()
        self._others: dict[int, Self] = {}

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
        """When the pool was created, in seconds since the epoch."""
        return float(self.geometry["created_ns"] / 1e9)

    def page_sizes(self) -> dict[int, Self]:
        """The page sizes of the pool, its own first, each observed as a pool of its own; see :meth:`bufferpool.Pool.page_sizes`."""
        bits = self.seg.page_sizes()[0]
        gone = self.seg.status()["unlinked"]  # then all of its sizes are
        known = {s: o for s, o in self._others.items() if bits & s and (gone or not o.seg.status()["unlinked"])}
        for size in segment_file.sizes_in(bits):
            path = segment_file.path_of_size(self._path, size)
            with contextlib.suppress(SegmentNotFound):  # removed meanwhile
                known[size] = known.get(size) or type(self)(os.path.basename(path), directory=os.path.dirname(path))
        self._others = {size: known[size] for size in sorted(known) if known[size].geometry["home"] == self.uuid}
        return {self.page_size: self, **self._others}

    def close(self) -> None:
        """Closes the observer. A second call does nothing."""
        for other in self._others.values():
            other.close()
        self.seg.close(False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def unsaved_pages(name: str, directory: str | os.PathLike[str] | None = None) -> dict[str, int]:
    """The number of unsaved pages of a pool, by the name of the space. Raises as :class:`Observer` does."""
    with Observer(name, directory=directory) as pool:
        return read_all_unsaved(pool)


def refuse_loss(name: str, directory: str | os.PathLike[str] | None = None) -> None:
    """Raises UnsavedPages if the pool has dirty pages of files or stores, which would be lost with it."""
    try:
        pages = unsaved_pages(name, directory)
    except SegmentCorrupt as error:
        raise SegmentCorrupt(
            f"{error}; its dirty pages cannot be counted: to remove it anyway, pass discard=True (bufferpool rm --discard)"
        ) from error
    if pages:
        which = ", ".join(f"{n} of {space!r}" for space, n in pages.items())
        raise UnsavedPages(
            f"{name!r} has {counted(sum(pages.values()), 'dirty page')} that no file or store has yet ({which}): write them first "
            "(pool.flush(), bufferpool flush), or discard them (discard=True, bufferpool rm --discard)",
            pages,
        )
