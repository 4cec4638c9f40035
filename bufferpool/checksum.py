"""Files whose pages carry a checksum, so that a torn or damaged page is found when it is loaded.

::

    page    +------------------------------------------+----------+
            | the engine's                             | checksum |
            +------------------------------------------+----------+
            0                                page_size - 8        page_size

The checksum is XXH3 (64 bits, little-endian) over the bytes before it, seeded with
the page number, so that a page that was written to the wrong place is found too.
A page of nothing but zeros is whole: it has never been written. The last eight bytes
belong to the pool: what the engine puts there is replaced on the way to the file.
"""

import os
from collections.abc import Callable
from typing import Any

import numpy as np

from bufferpool.errors import PageCorrupt, ShortRead, StoreError
from bufferpool.store import Buffer, FileStore

CHECKSUM_BYTES = 8

Repair = Callable[[int, Buffer], Any]


def _xxh3(data: Buffer, page_no: int) -> bytes:
    import xxhash

    return xxhash.xxh3_64(data.data, seed=page_no).digest()[::-1]


def seal(page: Buffer, page_no: int) -> None:
    """Puts the checksum into the last eight bytes of ``page`` (uint8, writable)."""
    page[-CHECKSUM_BYTES:] = np.frombuffer(_xxh3(page[:-CHECKSUM_BYTES], page_no), np.uint8)


def is_whole(page: Buffer, page_no: int) -> bool:
    """Whether the checksum is right, or the page was never written."""
    return page[-CHECKSUM_BYTES:].tobytes() == _xxh3(page[:-CHECKSUM_BYTES], page_no) or not page.any()


class CheckedFile(FileStore):
    """A file of pages with checksums."""

    native = False
    trailer_bytes = CHECKSUM_BYTES

    def __init__(self, path: str | os.PathLike[str], mode: str, page_size: int, repair: Repair | None = None) -> None:
        """As :class:`FileStore`; needs the library xxhash (ImportError).

        ``repair(page_no, image)`` is asked for the right bytes of a page whose checksum is
        wrong; ``image`` is what the file has. It returns a page of bytes, or None.
        """
        try:
            import xxhash  # noqa: F401
        except ImportError as error:
            raise ImportError("page checksums need the library xxhash: pip install 'bufferpool[checksum]'") from error
        if repair is not None and not callable(repair):
            raise TypeError(f"repair must be a function of (page_no, image), not {type(repair).__name__}")
        super().__init__(path, mode)
        self.page_size, self.repair = page_size, repair

    def write_pages(self, offset: int, pages: list[Buffer]) -> None:
        """Writes neighbouring pages, each with its checksum, from private copies."""
        sealed = [page.copy() for page in pages]
        for i, page in enumerate(sealed, offset // self.page_size):
            seal(page, i)
        super().write_pages(offset, sealed)

    def load(self, page_no: int, space: str, count: Callable[[str], None]) -> tuple[Buffer, bool]:
        """One page, whole, and whether it had to be repaired.

        The file is not touched: a repaired page is dirty in the pool, and a flush mends the file.
        ``count`` is told of ``corrupt_pages`` and ``repaired_pages``.

        Raises PageCorrupt, ShortRead, StoreError.
        """
        page, offset = np.empty(self.page_size, np.uint8), page_no * self.page_size
        try:
            got = self.read_into(offset, page)
        except OSError as error:
            raise StoreError(f"page {page_no} cannot be read: {error.strerror}; nothing is lost, try again") from error
        if got != self.page_size:
            raise ShortRead(f"page {page_no}: the file ends after {got} of {self.page_size} bytes; restore the file")
        if is_whole(page, page_no):
            return page, False
        count("corrupt_pages")
        where = f"page {page_no} of {space!r} (offset {offset} of {self.path}) has a wrong checksum"
        good = self._repaired(page_no, page, where, space, offset)
        count("repaired_pages")
        return good, True

    def _repaired(self, page_no: int, page: Buffer, where: str, space: str, offset: int) -> Buffer:
        remedy = "restore it from the log or a backup (repair= is asked for it), or write zeros there to give it up"
        if self.repair is None:
            raise PageCorrupt(f"{where}; {remedy}", space, page_no, offset)
        try:
            found = self.repair(page_no, page)
        except Exception as error:
            raise PageCorrupt(f"{where}, and repair raised {error!r}; {remedy}", space, page_no, offset) from error
        if found is None:
            raise PageCorrupt(f"{where}, and repair has no image of it; {remedy}", space, page_no, offset)
        try:
            good = np.frombuffer(found, np.uint8).copy()
        except (TypeError, ValueError, BufferError) as error:
            raise PageCorrupt(
                f"{where}, and repair gave no bytes ({error}); {remedy}", space, page_no, offset
            ) from error
        if good.size != self.page_size:
            raise PageCorrupt(
                f"{where}, and repair gave {good.size} bytes instead of {self.page_size}; {remedy}",
                space,
                page_no,
                offset,
            )
        seal(good, page_no)
        return good
