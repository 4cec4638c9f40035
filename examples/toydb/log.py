"""The write-ahead log: what makes a commit a commit.

The log is one endless run of bytes; a position in it is an LSN. It lies in
segment files, ``NAME-log.<LSN where it starts, 16 hex digits>``, each of which
begins where the one before ends. Recovery starts at the oldest segment that
there is: a checkpoint starts a new one, and when every change below is in the
data file, it removes the old ones. Nothing else says where recovery starts.

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

A page is 64 chunks; bit i of the bitmap says that chunk i follows. The first
change of a page in a segment carries all 64. So redo needs no page of the data
file, and a page that was torn there by a power failure does no harm.

The checksum's seed ties a record to its place: what is left of older bytes
there, or of another database, never passes for a record.
"""

import os
import uuid as uuids
from collections.abc import Iterator
from dataclasses import dataclass
from struct import Struct

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

Change = tuple[int, int, bytes]  # page number, bitmap, chunks


@dataclass(frozen=True)
class Record:
    """One commit, as the log has it."""

    start: int
    lsn: int
    changes: list[Change]


def bitmap_of(old: bytes, new: bytes | bytearray) -> int:
    """Which 64th parts of a page differ."""
    a, b = (np.frombuffer(image, np.uint64).reshape(CHUNKS, -1) for image in (old, new))
    return int(np.packbits((a != b).any(axis=1), bitorder="little").view(np.uint64)[0])


def apply(change: Change, image: bytearray) -> None:
    """Puts a change into an image of the page."""
    _, bitmap, chunks = change
    if bitmap == ALL:
        image[:] = chunks
        return
    size, at = len(image) // CHUNKS, 0
    for i in range(CHUNKS):
        if bitmap >> i & 1:
            image[i * size : (i + 1) * size] = chunks[at : at + size]
            at += size


class Log:
    """The log of one database, in one process. The caller holds the locks."""

    def __init__(self, base: str) -> None:
        self.base = base
        self.uuid = b""
        self.page_size = 0
        self._fds: dict[int, int] = {}

    # ---- segments ------------------------------------------------------------

    def path(self, start: int) -> str:
        return f"{self.base}{start:016x}"

    def segments(self) -> list[int]:
        """Where the segments start, oldest first."""
        directory, prefix = os.path.split(self.base)
        names = (name.removeprefix(prefix) for name in os.listdir(directory or ".") if name.startswith(prefix))
        return sorted(int(name, 16) for name in names if len(name) == 16)

    def fd(self, start: int) -> int:
        """The descriptor of a segment, opened and checked when first asked for. Raises LogCorrupt."""
        if start in self._fds:
            return self._fds[start]
        try:
            fd = os.open(self.path(start), os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            raise LogCorrupt(f"the log {self.path(start)} is gone; put it back from where you moved it") from None
        head = os.pread(fd, SEGMENT_BYTES, 0)
        sound = len(head) == SEGMENT_BYTES and head[40:] == DIGEST.pack(xxhash.xxh3_64_intdigest(head[:40]))
        magic, uuid, begins, page_size, _ = SEGMENT.unpack(head[:40]) if sound else (b"",) * 5
        if magic != MAGIC or begins != start or self.uuid not in (b"", uuid):
            os.close(fd)
            raise LogCorrupt(f"{self.path(start)} is not the log that it should be; put the right one back")
        self.uuid, self.page_size = uuid, page_size
        for old in sorted(self._fds)[:-KEPT_OPEN]:  # the latest may still be being synced, by another thread
            os.close(self._fds.pop(old))
        self._fds[start] = fd
        return fd

    def identity(self, start: int) -> int:
        """A number that another file of the same name would not have."""
        return os.fstat(self.fd(start)).st_ino

    def create(self, start: int, first: bytes = b"") -> None:
        """Makes a segment; it appears under its name whole and durable, or not at all."""
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
                error.errno, f"{self.path(start)} cannot be made: {error.strerror}; nothing is lost"
            ) from error

    def remove_below(self, start: int) -> int:
        """Removes the segments before this one, oldest first; returns how many."""
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

    # ---- records -------------------------------------------------------------

    def _digest(self, start: int, data: bytes) -> bytes:
        return DIGEST.pack(xxhash.xxh3_64_intdigest(data, int.from_bytes(self.uuid[:8], "little") ^ start))

    def encode(self, start: int, pages: list[tuple[int, bytes | None, bytearray]]) -> tuple[int, bytes]:
        """A record to be written at ``start``: its LSN and its bytes.

        ``pages``: number, the version that the change is told against (None: all
        64 chunks), and the new version, which is stamped with the LSN here.
        """
        chunk = self.page_size // CHUNKS
        bitmaps = [ALL if old is None else bitmap_of(old, new) | 1 for _, old, new in pages]  # the stamp is in chunk 0
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
        """Writes a record where the log ends. Raises LogFailed: then it is not in the log."""
        fd, at = self.fd(segment), start - segment + SEGMENT_BYTES
        try:
            if armed("commit.appending"):
                write_all(fd, record[: len(record) // 2], at)
                point("commit.appending")
            write_all(fd, record, at)
        except OSError as error:
            os.ftruncate(fd, at)
            raise LogFailed(
                error.errno, f"the log takes no more: {error.strerror}; nothing of this was committed"
            ) from error

    def end(self, segment: int) -> int:
        """The LSN where the segment's file ends, whatever is in it."""
        return segment + os.fstat(self.fd(segment)).st_size - SEGMENT_BYTES

    def truncate(self, segment: int, lsn: int) -> None:
        os.ftruncate(self.fd(segment), lsn - segment + SEGMENT_BYTES)

    def sync(self, segment: int) -> None:
        """Returns when all that was appended to the segment is durable. Raises LogFailed."""
        try:
            os.fdatasync(self.fd(segment))
        except OSError as error:
            raise LogFailed(error.errno, f"the log cannot be synced: {error.strerror}") from error

    def records(self, segment: int, start: int) -> Iterator[Record]:
        """The records from ``start`` to the last whole one of the segment."""
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
            yield page_no, bitmap, body[at + PART.size : at + PART.size + size]
            at += PART.size + size

    def redo(self, up_to: int = ALL) -> tuple[int, int, dict[int, bytearray]]:
        """All pages that the log has changed: (last segment, its end, page number -> image).

        ``up_to``: commits up to that LSN only.

        Raises LogCorrupt if a part is missing that was durable before what follows it.
        """
        images: dict[int, bytearray] = {}
        segments = self.segments()
        for segment, following in zip(segments, [*segments[1:], None], strict=True):
            end = segment
            for record in self.records(segment, segment):
                if record.lsn > up_to:
                    return segment, end, images
                for change in record.changes:
                    if change[0] not in images and change[1] != ALL:
                        raise LogCorrupt(
                            f"{self.path(segment)}: the first change of page {change[0]} is no full image; "
                            "an older part of the log is missing: put it back"
                        )
                    apply(change, images.setdefault(change[0], bytearray(self.page_size)))
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
