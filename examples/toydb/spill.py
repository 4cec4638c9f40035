"""Old page versions that have no room in the version store (versions.py): batches in a file of their own.

A commit that replaces many pages would push out the versions that new snapshots need while it is being published. They
go into the file ``NAME-spill`` instead. It is a space of the pool: its pages are flushed and evicted like any others, so
memory does not limit a batch. Nothing in it needs to last: recovery empties it.

A batch belongs to one commit, and lies in consecutive pages::

    directory   u32 page numbers, sorted; the rest of the last page is filled with NOBODY
    versions    the replaced versions, in the order of the directory

The control page ``batches`` names those that a snapshot may need, with the LSN of their commit::

    8 bytes of zero · u64 number of batches · (u64 first page · u64 versions · u64 until) for each

A writer, who has the write lock, publishes that page after the batch is complete; so a batch of a dead writer is complete
or does not exist. It reuses the pages of a batch only when no snapshot below ``until`` exists or can still begin.
"""

from dataclasses import astuple, dataclass
from struct import Struct

import numpy as np

from toydb.page import Page
from toydb.points import point
from toydb.shared import BATCHES, Shared

NOBODY = 0xFFFF_FFFF
HEAD, BATCH = Struct("<QQ"), Struct("<QQQ")


@dataclass(frozen=True)
class Batch:
    first: int
    count: int
    until: int

    def directory(self, page_size: int) -> int:
        """How many pages the directory has."""
        return -(-self.count * 4 // page_size)

    def end(self, page_size: int) -> int:
        return self.first + self.directory(page_size) + self.count


class Spill:
    """The batches, as one process sees them."""

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._page_size = shared.pool.page_size
        self._most = (self._page_size - HEAD.size) // BATCH.size

    def batches(self) -> list[Batch]:
        page = self._shared.control[BATCHES]
        _, count = HEAD.unpack_from(page)
        at = range(HEAD.size, HEAD.size + min(count, self._most) * BATCH.size, BATCH.size)
        return [Batch(*BATCH.unpack_from(page, offset)) for offset in at]

    def keep(self, versions: list[tuple[int, bytes]], until: int, oldest: int) -> None:
        """Writes a batch, under the write lock. ``oldest``: the LSN of the oldest snapshot that exists or can begin."""
        kept = [batch for batch in self.batches() if batch.until > oldest][1 - self._most :]
        first = max((batch.end(self._page_size) for batch in kept), default=0)
        batch = Batch(first, len(versions), until)
        versions = sorted(versions)
        numbers = np.full(batch.directory(self._page_size) * self._page_size // 4, NOBODY, np.uint32)
        numbers[: len(versions)] = [page_no for page_no, _ in versions]
        directory = numbers.view(np.uint8).reshape(-1, self._page_size)
        self._shared.spill.grow(batch.end(self._page_size))
        for number, content in enumerate([*directory, *(np.frombuffer(image, np.uint8) for _, image in versions)]):
            with self._shared.spill.write(first + number, fresh=True) as page:
                page[:] = content
        point("spill.written")
        named = b"".join(BATCH.pack(*astuple(one)) for one in [*kept, batch])
        self._shared.publish(BATCHES, HEAD.pack(0, len(kept) + 1) + named)

    def find(self, page_no: int, snapshot: int) -> Page | None:
        """The version of a page that a snapshot sees, or None."""
        for batch in sorted(self.batches(), key=lambda one: one.until):
            if batch.until <= snapshot:
                continue
            at = self._index(batch, page_no)
            if at is None:
                continue
            page = Page(self._shared.spill[batch.first + batch.directory(self._page_size) + at])
            if page.page_no == page_no and page.lsn <= snapshot:
                return page
        return None

    def _index(self, batch: Batch, page_no: int) -> int | None:
        """The position of a page in a batch: the directory page by bisection, then the number in it."""
        each = self._page_size // 4
        low, high = 0, batch.directory(self._page_size) - 1
        while low < high:
            middle = (low + high + 1) // 2
            starts_at = int(self._shared.spill[batch.first + middle].view(np.uint32)[0])
            low, high = (middle, high) if starts_at <= page_no else (low, middle - 1)
        numbers = self._shared.spill[batch.first + low].view(np.uint32)
        at = int(np.searchsorted(numbers, page_no))
        return low * each + at if at < each and numbers[at] == page_no else None
