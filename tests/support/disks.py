"""A simulated disk, and the pages that tests write to it."""

import numpy as np

from tests.conftest import PAGE, WAIT


class Disk:
    """A store whose writes reach the disk with a sync only; each can be made to fail."""

    def __init__(self, n_pages: int) -> None:
        self.cache = np.zeros(n_pages * PAGE, np.uint8)
        self.durable = self.cache.copy()
        self.fails: str | None = None
        self.before_sync = lambda: None

    def read_into(self, offset, buffer):
        buffer[:] = self.cache[offset : offset + buffer.size]
        return buffer.size

    def write_from(self, offset, buffer):
        if self.fails == "write":
            raise OSError(5, "no write today")
        n = buffer.size // 2 if self.fails == "short" else buffer.size
        self.cache[offset : offset + n] = buffer[:n]
        return n

    def sync(self):
        self.before_sync()
        if self.fails == "sync":
            raise OSError(5, "no sync today")
        self.durable[:] = self.cache

    def size(self):
        return self.durable.size

    def version(self, page_no):
        """The LSN in the durable version of a page."""
        return int(self.durable.view(np.uint64)[page_no * PAGE // 8])


def put(space, page_no, lsn):
    """A new version, whose every word is its LSN."""
    write = space.write(page_no, timeout=WAIT)
    write.lsn = lsn
    with write as page:
        page.view(np.uint64)[:] = lsn


def dirty(pool):
    return pool.stats().frames.dirty
