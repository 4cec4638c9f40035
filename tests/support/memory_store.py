"""Stores for tests: one in memory, whose pages tests read directly and which they make fail, and one that keeps nothing."""

import numpy as np

from tests.conftest import PAGE, stamp


class Memory:
    """A store in memory, that can be made to fail."""

    def __init__(self, n_pages=0, version=0):
        self.pages = {n: stamp(n, version=version).tobytes() for n in range(n_pages)}
        self.written = {}
        self.calls = []
        self.fail_read = self.fail_write = self.fail_sync = self.short_read = self.short_write = None
        self.on_write = None

    def read_into(self, offset, buffer):
        self.calls.append(("read", offset // PAGE))
        if self.fail_read:
            raise self.fail_read
        n = offset // PAGE
        buffer[:] = np.frombuffer(self.pages[n], np.uint8)
        return buffer.nbytes if self.short_read is None else self.short_read

    def write_from(self, offset, buffer):
        assert not buffer.flags.writeable
        assert offset % PAGE == buffer.nbytes % PAGE == 0
        self.calls.append(("write", offset // PAGE, buffer.nbytes // PAGE))
        if self.on_write:
            self.on_write(offset, buffer)
        if self.fail_write:
            raise self.fail_write
        if self.short_write is not None:
            return self.short_write
        for i in range(buffer.nbytes // PAGE):
            data = buffer[i * PAGE : (i + 1) * PAGE].tobytes()
            self.pages[offset // PAGE + i] = data
            self.written.setdefault(offset // PAGE + i, []).append(data)
        return buffer.nbytes

    def sync(self):
        self.calls.append(("sync",))
        if self.fail_sync:
            raise self.fail_sync

    def size(self):
        return len(self.pages) * PAGE


class Forgetful:
    """A store of ``n_pages`` stamped pages that takes every write and keeps none."""

    def __init__(self, n_pages=0):
        self.n_pages = n_pages

    def read_into(self, offset, buffer):
        buffer[:] = stamp(offset // PAGE)
        return buffer.nbytes

    def write_from(self, offset, buffer):
        return buffer.nbytes

    def sync(self):
        pass

    def size(self):
        return self.n_pages * PAGE
