"""What the processes of one database know in common: a few pages of scratch space in the pool.

They need no latch: every page is published as a whole, by one writer of its own.

::

    page 0    state      written under the write lock (and by recovery, while no other process is attached)
              8  magic · 16 uuid · u64 path · u64 ready · u64 committed · u64 segment · u64 segment's inode · u64 rotating
    page 1    durable    written under the sync lock
              u64 durable
    page 2    failed     u64: written by the process that finds that the log cannot be synced
    page 3…   snapshots  one page per open handle: u64 magic · u64 count · u64 LSNs[count]
    after     the directory of old page versions (versions.py)

``path``       the hash of the data file's path: whose pool this is
``committed``  the end of the last commit that is published, all of it: the next record goes there
``segment``    where the log segment starts that records go to
``rotating``   where a new segment is being started, 0 if none is
``durable``    the log is durable up to here, and all of it is published: what a snapshot sees
``failed``     a sync of the log failed: what the disk has is unknown until it is read again

The pool's own ``durable_lsn`` is what the flusher may write. It may be ahead of ``durable``: the log
can be durable for a commit whose pages are still being published.

All of it goes with the pool. The log and the data file have everything that matters.
"""

from dataclasses import dataclass, replace
from struct import Struct
from typing import Any

import numpy as np

import bufferpool as bp

MAGIC = b"TOYDB\0\0\1"
STATE = Struct("<8s16sQQQQQQ")
WORD = Struct("<Q")
CONTROL, VERSIONS, DATA = "toydb.control", "toydb.versions", "toydb.data"
SLOTS = 64  # open handles
FIRST_SLOT, FIRST_SET = 3, 3 + SLOTS
LEAST_VERSIONS = 16


@dataclass(frozen=True)
class State:
    uuid: bytes
    path: int
    ready: int
    committed: int
    segment: int
    inode: int
    rotating: int = 0


class Shared:
    """The common pages, in one process."""

    def __init__(self, pool: bp.Pool) -> None:
        self.pool = pool
        most = (pool.page_size - 16) // 24
        n_versions = max(LEAST_VERSIONS, pool.max_frames // 4)
        self.n_sets = -(-n_versions // most)
        self.ways = -(-n_versions // self.n_sets)
        self.control = pool.open_scratch(CONTROL, FIRST_SET + self.n_sets)
        self.versions = pool.open_scratch(VERSIONS, self.n_sets * self.ways)

    def publish(self, page_no: int, content: bytes) -> None:
        """Replaces the beginning of a control page."""
        with self.control.write(page_no) as page:
            page[: len(content)] = np.frombuffer(content, np.uint8)

    def state(self) -> State | None:
        """None: nobody has begun to use this pool for a database."""
        magic, *fields = STATE.unpack_from(self.control[0])
        return State(*fields) if magic == MAGIC else None

    def current(self) -> State:
        state = self.state()
        if state is None:
            raise bp.errors.SegmentCorrupt(f"pool {self.pool.name!r} has lost the state of its database: remove it")
        return state

    def set_state(self, state: State, **changed: Any) -> State:
        state = replace(state, **changed)
        fields = (state.uuid, state.path, state.ready, state.committed, state.segment, state.inode, state.rotating)
        self.publish(0, STATE.pack(MAGIC, *fields))
        return state

    def durable(self) -> int:
        return int(WORD.unpack_from(self.control[1])[0])

    def set_durable(self, lsn: int) -> None:
        self.publish(1, WORD.pack(lsn))

    def failed(self) -> bool:
        return bool(WORD.unpack_from(self.control[2])[0])

    def set_failed(self) -> None:
        self.publish(2, WORD.pack(1))
