"""Files whose pages have a checksum, so that a torn or damaged page is found when it is loaded.

::

    page    +------------------------------------------+----------+
            | the engine's bytes                       | checksum |
            +------------------------------------------+----------+
            0                                page_size - 8        page_size

The checksum is XXH3 (64 bits, little-endian) over the bytes before it, seeded with
the page number, so that a page that was written to the wrong place is found too.
The last eight bytes belong to the pool: a flush replaces what the engine stores there.

A page of zeros has a checksum like any other. A page of zeros without a checksum is damaged, unless the file has a hole
there (SEEK_DATA): a page that was never written, in a file made by truncate() or fallocate(), reads as zeros. A write can
turn holes into zeros: it extends the file past pages that were never published, or a block of the file system is larger
than a page. Such pages are written first, as zeros with a checksum. On a file system without holes a file of zeros
is damaged throughout: let the file grow by ``append`` instead.

Source of the hash: XXH3 of the library xxHash (Collet).
"""

import errno
import fcntl
import os
import struct
from collections.abc import Callable
from typing import Any

import numpy as np

from bufferpool import _core
from bufferpool.errors import PageCorrupt, ShortRead, StoreError
from bufferpool.printable import shown
from bufferpool.stores.base import Buffer, Cache, FileMode, FileStore, aligned

CHECKSUM_BYTES = 8

Repair = Callable[[int, Buffer], Any]


def _xxh3(data: Buffer, page_no: int) -> bytes:
    import xxhash

    return xxhash.xxh3_64(data.data, seed=page_no).digest()[::-1]


def seal(page: Buffer, page_no: int) -> None:
    """Puts the checksum into the last eight bytes of ``page`` (uint8, writable)."""
    page[-CHECKSUM_BYTES:] = np.frombuffer(_xxh3(page[:-CHECKSUM_BYTES], page_no), np.uint8)


def is_whole(page: Buffer, page_no: int) -> bool:
    """Whether the checksum of ``page`` (uint8) is right for this page number."""
    return page[-CHECKSUM_BYTES:].tobytes() == _xxh3(page[:-CHECKSUM_BYTES], page_no)


_FIEMAP = 0xC020660B  # FS_IOC_FIEMAP (linux/fiemap.h)
_REQUEST, _EXTENT = struct.Struct("=QQIIII"), struct.Struct("=QQQQQIIII")
_SYNC, _UNWRITTEN, _EXTENTS = 1, 0x800, 16


def _is_reserved(fd: int, offset: int, size: int) -> bool:
    """Whether these bytes are allocated but unwritten (fallocate). SEEK_DATA takes them for data once they were read."""
    answer = bytearray(
        _REQUEST.pack(offset, size, _SYNC, 0, _EXTENTS, 0).ljust(_REQUEST.size + _EXTENTS * _EXTENT.size, b"\0")
    )
    try:
        fcntl.ioctl(fd, _FIEMAP, answer)
    except OSError:  # the file system has no FIEMAP: assume data
        return False
    found = _REQUEST.unpack_from(answer)[3]
    flags = [_EXTENT.unpack_from(answer, _REQUEST.size + i * _EXTENT.size)[5] for i in range(found)]
    return found < _EXTENTS and all(flag & _UNWRITTEN for flag in flags)


class CheckedFile(FileStore):
    """A file of pages with checksums."""

    native = False
    trailer_bytes = CHECKSUM_BYTES
    lost_below = 0
    """Missing pages before this offset were cut off by another program: they are written as damaged pages."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        mode: FileMode,
        page_size: int,
        repair: Repair | None = None,
        cache: Cache = "kernel",
    ) -> None:
        """As :class:`FileStore`; needs the library xxhash (ImportError).

        ``repair(page_no, image)`` is called for a page whose checksum is
        wrong, with the bytes of the file (``image``). It returns the right page of bytes, or None.
        """
        try:
            import xxhash  # noqa: F401
        except ImportError as error:
            raise ImportError("page checksums need the library xxhash: pip install xxhash") from error
        if repair is not None and not callable(repair):
            raise TypeError(f"repair must be a function of (page_no, image), not {type(repair).__name__}")
        super().__init__(path, mode, cache)
        self.page_size, self.repair = page_size, repair

    def write_pages(self, offset: int, pages: list[Buffer]) -> None:
        """Writes neighbouring pages with their checksums, from private copies."""
        sealed = list(aligned(len(pages) * self.page_size).reshape(len(pages), self.page_size))
        for page, image in zip(sealed, pages, strict=True):
            page[:] = image
        for i, page in enumerate(sealed, offset // self.page_size):
            seal(page, i)
        self._seal_around(offset, offset + len(pages) * self.page_size)
        super().write_pages(offset, sealed)

    def _seal_around(self, first: int, end: int) -> None:
        """Seals the pages that a write from ``first`` to ``end`` would turn from holes into zeros.

        They lie between the file's end and ``first``, or share a block of the file system with the written bytes.
        """
        about = os.fstat(self.fd)
        block = max(about.st_blksize, self.page_size)
        start, stop = min(about.st_size, first // block * block), min(about.st_size, -(-end // block) * block)
        if start >= first and stop <= end:
            return
        places = (*range(start, first, self.page_size), *range(end, stop, self.page_size))
        for at in [at for at in places if self.is_hole(at)]:  # a list: find all of them before the first write
            page = aligned(self.page_size)
            page[:] = 0
            if at >= self.lost_below:
                seal(page, at // self.page_size)
            super().write_pages(at, [page])

    def is_hole(self, offset: int) -> bool:
        """Whether the page at ``offset`` was never written, according to the file system."""
        try:
            if os.lseek(self.fd, offset, os.SEEK_DATA) >= offset + self.page_size:
                return True
        except OSError as error:
            if error.errno == errno.ENXIO:  # no data from this offset to the end
                return True
        return _is_reserved(self.fd, offset, self.page_size)

    def load(self, page_no: int, space: str, count: Callable[[str], None]) -> tuple[Buffer, bool]:
        """Reads one page; returns (the page, shape (page_size,), uint8; whether it had to be repaired).

        The file is not changed: a repaired page is dirty in the pool, and a flush repairs the file.
        ``count`` is called with ``corrupt_pages`` and ``repaired_pages``.

        Raises PageCorrupt, ShortRead, StoreError.
        """
        page, offset = aligned(self.page_size), page_no * self.page_size
        try:
            got = self.read_into(offset, page)
        except OSError as error:
            if error.errno is None:  # without an errno it comes from a signal's handler, not from the kernel
                raise
            raise StoreError(f"page {page_no} cannot be read: {error.strerror}; nothing is lost, try again") from error
        if got != self.page_size:
            raise ShortRead(f"page {page_no}: the file ends after {got} of {self.page_size} bytes; restore the file")
        if is_whole(page, page_no) or (not page.any() and self.is_hole(offset)):
            return page, False
        count("corrupt_pages")
        where = f"page {page_no} of {space!r} (offset {offset} of {self.path}) has a wrong checksum"
        good = self._repaired(page_no, page, where, space, offset)
        count("repaired_pages")
        return good, True

    def load_many(
        self, page_nos: list[int], space: str, count: Callable[[str], None]
    ) -> list[tuple[Buffer, bool] | Exception]:
        """Several pages, as :meth:`load`; they are read together. What is wrong with one is in its place."""
        pages = aligned(len(page_nos) * self.page_size).reshape(len(page_nos), self.page_size)
        whole = _core.read_many(self.fd, self.caching, np.array(page_nos, np.int64), pages)
        out: list[tuple[Buffer, bool] | Exception] = []
        for page_no, page, read in zip(page_nos, pages, whole, strict=True):
            if read and is_whole(page, page_no):
                out.append((page, False))
                continue
            try:
                out.append(self.load(page_no, space, count))  # once more, alone: repaired, or with its own error
            except Exception as error:  # noqa: BLE001 - the caller raises it for its page
                out.append(error)
        return out

    def _repaired(self, page_no: int, page: Buffer, where: str, space: str, offset: int) -> Buffer:
        remedy = (
            "restore it from the log or a backup (by repair=), or make a hole there, if the page may be lost "
            f"(fallocate --punch-hole --offset {offset} --length {self.page_size} {self.path})"
        )
        if self.repair is None:
            raise PageCorrupt(f"{where}; {remedy}", space, page_no, offset)
        try:
            found = self.repair(page_no, page)
        except Exception as error:
            raise PageCorrupt(f"{where}, and repair raised {shown(error)}; {remedy}", space, page_no, offset) from error
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


def file_store(
    path: str, mode: FileMode, page_size: int, checksum: bool, repair: Repair | None = None, cache: Cache = "pool"
) -> FileStore:
    """Opens the store of a file space. Raises what :class:`FileStore` and :class:`CheckedFile` raise."""
    return CheckedFile(path, mode, page_size, repair, cache) if checksum else FileStore(path, mode, cache)
