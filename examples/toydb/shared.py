"""The state that the processes of one database share: a few scratch pages in the pool.

They need no latch: each page has one writer at a time, which publishes it as a whole.

::

    page 0    state      written under the write lock (and by recovery, while no other process is attached)
              8  magic · 16 uuid · u64 path · u64 ready · u64 published · u64 segment · u64 segment's inode · u64 rotating
    page 1    visible    written under the sync lock
              u64 visible
    page 2    failed     u64: written by the process whose sync of the log failed
    page 3    batches    written under the write lock: old page versions in the spill file (spill.py)
    page 4…   the directory of old page versions (versions.py)

``path``       the hash of the data file's path: the database that the pool belongs to
``published``  the end of the last commit whose pages are all published: the next record is appended there
``segment``    where the log segment starts to which records are appended
``rotating``   where a new segment is being started, 0 if none is
``visible``    every commit up to here is durable and published: a new snapshot begins here
``failed``     a sync of the log failed: the contents of the disk are unknown until the log is read again

The pool's own ``durable_lsn`` (up to here the log is synced) limits the flusher. It may be ahead of
``visible``: the log can be durable for a commit whose pages are still being published.

All of it is removed with the pool. The log and the data file have everything that recovery needs.
"""

from dataclasses import dataclass, replace
from struct import Struct
from typing import Any

import numpy as np

import bufferpool as bp

MAGIC = b"TOYDB\0\0\3"
STATE = Struct("<8s16sQQQQQQ")
WORD = Struct("<Q")
CONTROL, VERSIONS, SPILL, DATA = "toydb.control", "toydb.versions", "toydb.spill", "toydb.data"
BATCHES, FIRST_SET = 3, 4
LEAST_VERSIONS = 16


@dataclass(frozen=True)
class State:
    uuid: bytes
    path: int
    ready: int
    published: int
    segment: int
    inode: int
    rotating: int = 0


class Shared:
    """The shared pages, as one process uses them."""

    spill: bp.Space  # set by open_spill()

    def __init__(self, pool: bp.Pool) -> None:
        self.pool = pool
        most = (pool.page_size - 16) // 24
        n_versions = max(LEAST_VERSIONS, pool.max_frames // 4)
        self.n_sets = -(-n_versions // most)
        self.ways = -(-n_versions // self.n_sets)
        self.control = pool.open_scratch(CONTROL, FIRST_SET + self.n_sets)
        self.versions = pool.open_scratch(VERSIONS, self.n_sets * self.ways)

    def open_spill(self, path: str) -> None:
        """Opens the spill file of the database at ``path``; it is created if it does not exist."""
        with open(path + "-spill", "ab"):
            pass
        self.spill = self.pool.open_file(path + "-spill", "r+", name=SPILL)

    def publish(self, page_no: int, content: bytes) -> None:
        """Replaces the beginning of a control page."""
        with self.control.write(page_no) as page:
            page[: len(content)] = np.frombuffer(content, np.uint8)

    def state(self) -> State | None:
        """The state; None if no process has used this pool for a database yet."""
        magic, *fields = STATE.unpack_from(self.control[0])
        return State(*fields) if magic == MAGIC else None

    def current(self) -> State:
        state = self.state()
        if state is None:
            raise bp.errors.SegmentCorrupt(f"pool {self.pool.name!r} has lost the state of its database: remove it")
        return state

    def set_state(self, state: State, **changed: Any) -> State:
        state = replace(state, **changed)
        fields = (state.uuid, state.path, state.ready, state.published, state.segment, state.inode, state.rotating)
        self.publish(0, STATE.pack(MAGIC, *fields))
        return state

    def visible(self) -> int:
        return int(WORD.unpack_from(self.control[1])[0])

    def set_visible(self, lsn: int) -> None:
        self.publish(1, WORD.pack(lsn))

    def failed(self) -> bool:
        return bool(WORD.unpack_from(self.control[2])[0])

    def set_failed(self) -> None:
        self.publish(2, WORD.pack(1))
