"""The write-ahead log. A transaction is committed when its record is in the log.

The log is a sequence of bytes; a position in it is an LSN. It is stored in
segment files, ``NAME-log.<LSN of its start, 16 hex digits>``, each of which
begins where the previous one ends. Recovery starts at the oldest segment file.
A checkpoint starts a new segment, and when every earlier change is in the
data file, it removes the older ones.

::

    segment   0  8   "TOYLOG1\\0"
              8 16   uuid of the database
             24 u64  LSN where it starts
             32 u32  page size · u32 -
             40 u64  xxh3 of the 40 bytes before
             48      records

    record    0 u32  bytes of the body
              4 u32  pages in it
              8 u64  LSN of its end: the LSN of the commit
             16 u64  xxh3 of the 16 bytes before and the body; seeded with the uuid and the LSN where it starts
             24      body: for each page  u32 page number · u32 - · u64 bitmap · the chunks that changed

A page is divided into 64 chunks; bit i of the bitmap says that chunk i follows. The first
change of a page in a segment has all 64. So redo needs no page of the data
file, and a page that a power failure tore there is repaired (as PostgreSQL's full_page_writes).

The checksum's seed includes the record's position, so that older bytes at that
position, or bytes of another database, are never taken for a record.
"""

import os
import uuid as uuids
from collections.abc import Iterator
from dataclasses import dataclass
from struct import Struct
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import xxhash

from toydb.errors import LogCorrupt, LogFailed
from toydb.points import armed, point

MAGIC = b"TOYLOG1\0"
SEGMENT = Struct("<8s16sQII")
DIGEST = Struct("<Q")
SEGMENT_BYTES = SEGMENT.size + DIGEST.size
RECORD = Struct("<IIQ")
RECORD_BYTES = RECORD.size + DIGEST.size
PART = Struct("<IIQ")
LSN = Struct("<Q")
ALL = 2**64 - 1
CHUNKS = 64
MOST_BODY = 2**32 - 1
READ_BYTES = 1 << 20
KEPT_OPEN = 8
assert SEGMENT_BYTES == 48
assert RECORD_BYTES == 24


class Change(NamedTuple):
    """What a record says of one page. A ``bitmap`` of ALL: ``chunks`` are the whole page."""

    page_no: int
    bitmap: int
    chunks: bytes


@dataclass(frozen=True)
class Record:
    """One commit, as it is in the log."""

    start: int
    lsn: int
    changes: list[Change]


def bitmap_of(old: bytes, new: bytes | bytearray) -> int:
    """The bitmap of the chunks in which two versions of a page differ."""
    a, b = (np.frombuffer(image, np.uint64).reshape(CHUNKS, -1) for image in (old, new))
    return int(np.packbits((a != b).any(axis=1), bitorder="little").view(np.uint64)[0])


def apply(change: Change, image: bytearray) -> None:
    """Applies a change to an image of the page, in place."""
    if change.bitmap == ALL:
        image[:] = change.chunks
        return
    size, at = len(image) // CHUNKS, 0
    for i in range(CHUNKS):
        if change.bitmap >> i & 1:
            image[i * size : (i + 1) * size] = change.chunks[at : at + size]
            at += size


class Log:
    """The log of one database, as one process uses it. The caller holds the locks."""

    def __init__(self, base: str) -> None:
        self.base = base
        self.uuid = b""
        self.page_size = 0
        self._fds: dict[int, int] = {}

    # ---- segments ------------------------------------------------------------

    def path(self, start: int) -> str:
        return f"{self.base}{start:016x}"

    def segments(self) -> list[int]:
        """The LSNs at which the segments start, oldest first."""
        directory, prefix = os.path.split(self.base)
        names = (name.removeprefix(prefix) for name in os.listdir(directory or ".") if name.startswith(prefix))
        return sorted(int(name, 16) for name in names if len(name) == 16)

    def fd(self, start: int) -> int:
        """The descriptor of a segment; it is opened and checked when first used. Raises LogCorrupt."""
        if start in self._fds:
            return self._fds[start]
        try:
            fd = os.open(self.path(start), os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            raise LogCorrupt(f"the log {self.path(start)} is missing; put it back") from None
        head = os.pread(fd, SEGMENT_BYTES, 0)
        sound = len(head) == SEGMENT_BYTES and head[40:] == DIGEST.pack(xxhash.xxh3_64_intdigest(head[:40]))
        magic, uuid, begins, page_size, _ = SEGMENT.unpack(head[:40]) if sound else (b"",) * 5
        if magic != MAGIC or begins != start or self.uuid not in (b"", uuid):
            os.close(fd)
            raise LogCorrupt(f"{self.path(start)} belongs to another database or position; put the right file back")
        self.uuid, self.page_size = uuid, page_size
        for old in sorted(self._fds)[:-KEPT_OPEN]:  # not the latest: another thread may be syncing it
            os.close(self._fds.pop(old))
        self._fds[start] = fd
        return fd

    def identity(self, start: int) -> int:
        """The inode of a segment, which identifies the file."""
        return os.fstat(self.fd(start)).st_ino

    def create(self, start: int, first: bytes = b"") -> None:
        """Creates a segment. Its name appears only when the file is complete and durable."""
        head = SEGMENT.pack(MAGIC, self.uuid, start, self.page_size, 0)
        temporary = f"{self.base}new"
        try:
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
            try:
                write_all(fd, head + DIGEST.pack(xxhash.xxh3_64_intdigest(head)) + first, 0)
                os.fsync(fd)
            finally:
                os.close(fd)
            point("segment.written")
            os.rename(temporary, self.path(start))
            point("segment.named")
            sync_directory(self.base)
        except OSError as error:
            raise LogFailed(
                error.errno, f"{self.path(start)} cannot be created: {error.strerror}; nothing is lost"
            ) from error

    def remove_below(self, start: int) -> int:
        """Removes the segments before ``start``, oldest first; returns their number."""
        old = [segment for segment in self.segments() if segment < start]
        for segment in old:
            os.unlink(self.path(segment))
            point("segment.removed")
        if old:
            sync_directory(self.base)
        return len(old)

    def close(self) -> None:
        while self._fds:
            os.close(self._fds.popitem()[1])

    def __del__(self) -> None:  # of a database that was dropped, and not closed
        self.close()

    # ---- records -------------------------------------------------------------

    def _digest(self, start: int, data: bytes) -> bytes:
        return DIGEST.pack(xxhash.xxh3_64_intdigest(data, int.from_bytes(self.uuid[:8], "little") ^ start))

    def encode(self, start: int, pages: list[tuple[int, bytes | None, bytearray]]) -> tuple[int, bytes]:
        """Encodes a record to be written at ``start``; returns (its LSN, its bytes).

        ``pages``: (number, the version to which the change is relative (None: log all
        64 chunks), the new version, whose LSN field is set here).
        """
        chunk = self.page_size // CHUNKS
        # Chunk 0 (bit 0) is always in the record: it has the page's LSN, which changes below.
        bitmaps = [ALL if old is None else bitmap_of(old, new) | 1 for _, old, new in pages]
        size = sum(PART.size + bitmap.bit_count() * chunk for bitmap in bitmaps)
        if size > MOST_BODY:
            raise LogFailed(0, f"a transaction of {size} bytes is too large for one record; commit in between")
        lsn, parts = start + RECORD_BYTES + size, []
        for (page_no, _, new), bitmap in zip(pages, bitmaps, strict=True):
            LSN.pack_into(new, 0, lsn)
            parts.append(PART.pack(page_no, 0, bitmap))
            if bitmap == ALL:
                parts.append(bytes(new))
            else:
                parts += [bytes(new[i * chunk : (i + 1) * chunk]) for i in range(CHUNKS) if bitmap >> i & 1]
        body = b"".join(parts)
        head = RECORD.pack(len(body), len(pages), lsn)
        return lsn, head + self._digest(start, head + body) + body

    def append(self, segment: int, start: int, record: bytes) -> None:
        """Writes a record at the end of the log. Raises LogFailed: then it is not in the log."""
        fd, at = self.fd(segment), start - segment + SEGMENT_BYTES
        try:
            if armed("commit.appending"):
                write_all(fd, record[: len(record) // 2], at)
                point("commit.appending")
            write_all(fd, record, at)
        except OSError as error:
            os.ftruncate(fd, at)
            raise LogFailed(
                error.errno, f"the log cannot be written: {error.strerror}; the transaction was not committed"
            ) from error

    def end(self, segment: int) -> int:
        """The LSN at which the segment's file ends, including an incomplete record."""
        return segment + os.fstat(self.fd(segment)).st_size - SEGMENT_BYTES

    def must_have(self, segment: int, lsn: int) -> None:
        """Raises LogCorrupt if another program has removed the segment's file, or cut it off below ``lsn``."""
        end, removed = self.end(segment), not os.fstat(self.fd(segment)).st_nlink
        if removed or end < lsn:
            raise LogCorrupt(
                f"another program has {'removed' if removed else 'cut off'} the log {self.path(segment)}, and commits would be lost: "
                "copy what you need, from transactions that read, before the database is closed"
            )

    def truncate(self, segment: int, lsn: int) -> None:
        os.ftruncate(self.fd(segment), lsn - segment + SEGMENT_BYTES)

    def sync(self, segment: int) -> None:
        """Syncs the segment: everything appended to it is durable then. Raises LogFailed."""
        try:
            os.fdatasync(self.fd(segment))
        except OSError as error:
            raise LogFailed(error.errno, f"the log cannot be synced: {error.strerror}") from error

    def records(self, segment: int, start: int) -> Iterator[Record]:
        """The complete records of the segment, from ``start`` on."""
        fd = self.fd(segment)
        size = os.fstat(fd).st_size
        while True:
            at = start - segment + SEGMENT_BYTES
            head = os.pread(fd, RECORD_BYTES, at)
            if len(head) < RECORD_BYTES:
                return
            length, count, lsn = RECORD.unpack(head[: RECORD.size])
            if lsn != start + RECORD_BYTES + length or at + RECORD_BYTES + length > size:
                return
            body = read_all(fd, length, at + RECORD_BYTES)
            if head[RECORD.size :] != self._digest(start, head[: RECORD.size] + body):
                return
            yield Record(start, lsn, list(self._changes(body, count)))
            start = lsn

    def _changes(self, body: bytes, count: int) -> Iterator[Change]:
        at, chunk = 0, self.page_size // CHUNKS
        for _ in range(count):
            page_no, _, bitmap = PART.unpack_from(body, at)
            size = bitmap.bit_count() * chunk
            yield Change(page_no, bitmap, body[at + PART.size : at + PART.size + size])
            at += PART.size + size

    def redo(self, up_to: int = ALL) -> tuple[int, int, dict[int, bytearray]]:
        """Replays the log; returns (start of the last segment, the log's end, page number -> image of each page in it).

        ``up_to``: only the commits up to that LSN.

        Raises LogCorrupt if a part is missing before a later one.
        """
        images: dict[int, bytearray] = {}
        segments = self.segments()
        for segment, following in zip(segments, [*segments[1:], None], strict=True):
            end = segment
            for record in self.records(segment, segment):
                if record.lsn > up_to:
                    return segment, end, images
                for change in record.changes:
                    if change.page_no not in images and change.bitmap != ALL:
                        raise LogCorrupt(
                            f"{self.path(segment)}: the first change of page {change.page_no} is no full image; "
                            "an older part of the log is missing: put it back"
                        )
                    apply(change, images.setdefault(change.page_no, bytearray(self.page_size)))
                end = record.lsn
            if following not in (None, end):
                raise LogCorrupt(
                    f"{self.path(segment)} ends at {end:#x}, and the next begins at {following:#x}: "
                    "a part of the log is damaged or missing; put a copy back"
                )
        return segment, end, images


def new_uuid() -> bytes:
    return uuids.uuid4().bytes


def write_all(fd: int, data: bytes, at: int) -> None:
    view: npt.NDArray[np.uint8] | memoryview = memoryview(data)
    while len(view):
        done = os.pwrite(fd, view, at)
        view, at = view[done:], at + done


def read_all(fd: int, length: int, at: int) -> bytes:
    parts = []
    while length > 0:
        part = os.pread(fd, min(length, READ_BYTES), at)
        if not part:
            break
        parts.append(part)
        length, at = length - len(part), at + len(part)
    return b"".join(parts)


def sync_directory(path: str) -> None:
    fd = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
