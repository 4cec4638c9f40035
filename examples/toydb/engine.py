"""The engine: how a commit becomes durable and visible, and how it is completed if its process dies.

Three LSNs (positions in the log) move forward, each with its own name:

- ``durable_lsn`` of the pool: the log is synced up to here. The pool writes no page with a higher LSN to the data
  file, so the file has no change that the log could lose. (This is the write-ahead rule.)
- ``published`` (in the state page): every commit up to here has all of its pages in the pool. The next record
  is appended here.
- ``visible`` (in a page of its own): every commit up to here is durable *and* published. New snapshots begin here.

A commit takes the write lock for steps 1 to 4:

1. Append the record to the log. From here on the commit will be completed, even if this process dies.
2. Keep the page versions that snapshots still need (versions.py).
3. Publish the pages in the pool, as one: every reader of the latest pages finds all of them new, or all old. A group
   of pages has at most a quarter of the pool. A larger commit is several groups: first new pages, then changed
   ones, leaves before their parents, and freed pages last. So no link leads to a page that is not there yet.
4. Move ``published`` to the end of the record, and release the write lock.
5. Sync the log (group commit): the process that gets the sync lock reads ``published``, syncs the log, and
   moves ``durable_lsn`` and ``visible`` there. Processes that waited for the lock find their commit visible.

A snapshot begins at ``visible``. So it sees no commit that a power failure could still undo, and no commit of which
only some pages are published. A process may die at any step, and no reader has to wait or to repair anything. The
next writer looks for records beyond ``published`` (:meth:`Engine.settle`): it publishes the pages of a whole record,
except those that have the record's LSN already, and cuts off an incomplete record.

Uncommitted changes are in the memory of their process only, so nothing is ever undone (no-steal).

A checkpoint starts a new log segment at ``published``, flushes the pages that were dirty before it, and removes the
older segments. The first change of a page after the start of a segment is logged as a whole page. So a page that
changes during the checkpoint need not be flushed: the new segment has all of it.

Sources: write-ahead logging and its terms follow Mohan et al., "ARIES", TODS 1992 (redo only, since nothing is
undone); group commit follows DeWitt et al., SIGMOD 1984.
"""

import os
from typing import NamedTuple

import numpy as np

import bufferpool as bp
from toydb import locks
from toydb.errors import Busy, LogCorrupt, LogFailed
from toydb.log import Log, Record, apply
from toydb.page import FREE, OVERFLOW, Inner, Page
from toydb.points import point
from toydb.shared import Shared, State
from toydb.versions import Versions

FLUSH_S = 30.0  # how long a checkpoint tries to write its last page

Pages = list[tuple[int, bytes | None, bytearray]]  # (page number, the version before or None, the new version)


class KnownTable(NamedTuple):
    """A table's entry in the catalog, and the version of the leaf that has it."""

    leaf: int
    lsn: int
    root: int
    meta: bytes


class Engine:
    """Pool, data file, log and locks of one database, in one process."""

    def __init__(self, pool: bp.Pool, space: bp.Space, log: Log, file: locks.LockFile, shared: Shared) -> None:
        self.pool, self.space, self.log, self.file, self.shared = pool, space, log, file, shared
        self.page_size = pool.page_size
        self.versions = Versions(shared)
        self.write_lock = locks.Lock(file, locks.WRITE, "write")
        self.sync_lock = locks.Lock(file, locks.SYNC, "sync")
        self.checkpoint_lock = locks.Lock(file, locks.CHECKPOINT, "checkpoint")
        self.inner_pages: dict[int, Inner] = {}  # by page number: what this process has decoded, and a version of it
        self.tables: dict[str, KnownTable] = {}
        self.most_as_one = 1 << 20  # pages of one group, if the pool takes so many; tests set less
        pool.log_sync = self.sync_log

    def close(self) -> None:
        """Closes pool, log and lock file. Raises BufferError while arrays over pages of the pool exist; nothing is closed then."""
        self.pool.close()
        self.log.close()
        self.file.close()

    # ---- pages -------------------------------------------------------------------

    def publish_as_one(self, pages: list[tuple[int, bytearray]], lsn: int) -> int:
        """Publishes versions of pages as one: as many as a group takes, from the first on. Returns their number."""
        with self.pool.publish_many() as group:
            for page_no, image in pages:
                try:
                    page = group.write(self.space, page_no, lsn=lsn, fresh=True)
                except bp.errors.GroupFull:
                    break
                page[:] = np.frombuffer(image, np.uint8)
            point("publish.group")
            return len(group)  # (which forgets its pages at the end of the block)

    def publish(self, state: State, pages: Pages, lsn: int) -> State:
        """Does steps 2 to 4 of a commit, of this process or of one that died."""
        self.versions.keep([(page_no, old) for page_no, old, _ in pages if old is not None], lsn)
        point("publish.kept")
        ranked = sorted((publish_rank(old, new), page_no, new) for page_no, old, new in pages)
        left = [(page_no, new) for _, page_no, new in ranked]
        self.space.grow(1 + max((page_no for page_no, _ in left), default=0))
        most = self.most_as_one
        while left:
            try:
                del left[: self.publish_as_one(left[:most], lsn)]
            except bp.errors.PoolExhausted:  # the old versions and the new ones need frames at the same time
                if most == 1:
                    raise
                most = max(1, min(most, len(left)) // 2)
            point("publish.published")
        state = self.shared.set_state(state, published=lsn)
        point("publish.done")
        return state

    # ---- commit ------------------------------------------------------------------

    def append(self, pages: Pages) -> tuple[State, int]:
        """Does step 1 of a commit, under the write lock; returns the state for :meth:`complete`, and the commit's LSN.

        Raises LogFailed: then nothing was committed.
        """
        state = self.shared.current()
        # A page whose last change is in this segment is logged by what differs from its old version; else as a whole (None).
        logged = [
            (page_no, old if old is not None and Page(old).lsn > state.segment else None, new)
            for page_no, old, new in pages
        ]
        lsn, record = self.log.encode(state.published, logged)
        point("commit.encoded")
        self.log.append(state.segment, state.published, record)
        return state, lsn

    def complete(self, state: State, pages: Pages, lsn: int) -> None:
        """Does steps 2 to 4. Step 5 is :meth:`make_visible`."""
        try:
            point("commit.appended")
            if len(pages) > self.pool.max_frames // 8:
                self.sync_log(lsn)  # so that the pool can flush these pages while more are published
            self.publish(state, pages, lsn)
        except BaseException as error:
            error.add_note("the commit is in the log, and the next write transaction completes it")
            raise

    def make_visible(self, lsn: int) -> None:
        """Does step 5: returns when every commit up to ``lsn`` is durable and visible to new snapshots. Raises LogFailed."""
        while self.shared.visible() < lsn:
            with self.sync_lock.held():
                if self.shared.visible() >= lsn:
                    return
                point("sync.locked")
                state = self.shared.current()
                self._sync(state.segment)
                point("sync.synced")
                self.pool.advance_durable_lsn(state.published)
                self.shared.set_visible(state.published)
                point("sync.durable")

    def sync_log(self, lsn: int) -> int:
        """Syncs the log up to ``lsn``, and moves the pool's ``durable_lsn`` there. Returns ``lsn``. Raises LogFailed.

        It is the pool's ``log_sync``: the flusher calls it, in any thread, so it takes no lock. The record of ``lsn``
        need not be published yet. It is in the present segment or in an older one, which was synced before
        the present one was started.
        """
        self._sync(self.shared.current().segment)
        self.pool.advance_durable_lsn(lsn)
        return lsn

    def must_work(self) -> None:
        """Raises LogFailed if a sync of the log failed before, in any process."""
        if self.shared.failed():
            raise LogFailed(
                0,
                "a sync of the log failed, and what the disk has is unknown: close the database everywhere, and open it",
            )

    def _sync(self, segment: int) -> None:
        self.must_work()
        try:
            self.log.sync(segment)
        except LogCorrupt:
            if self.shared.current().segment == segment:
                raise  # otherwise a checkpoint synced and removed the segment meanwhile
        except LogFailed:
            self.shared.set_failed()
            raise

    # ---- after a death ---------------------------------------------------------------

    def settle(self) -> State:
        """Completes what a dead writer began, under the write lock. Returns the new state. Raises LogFailed, LogCorrupt."""
        self.must_work()
        state = self.shared.current()
        if state.rotating:
            point("settle.rotating")
            start = state.rotating if os.path.exists(self.log.path(state.rotating)) else state.segment
            state = self.shared.set_state(state, segment=start, inode=self.log.identity(start), rotating=0)
        self.log.must_have(state.segment, state.published)
        end = self.log.end(state.segment)
        if end == state.published:
            return state
        for record in self.log.records(state.segment, state.published):
            point("settle.found")
            self.sync_log(record.lsn)
            state = self.publish(state, self._unpublished(record), record.lsn)
        if end > state.published:
            self.log.truncate(state.segment, state.published)
            point("settle.cut")
        return state

    def _unpublished(self, record: Record) -> Pages:
        """The pages of a record that the dead writer had not published, as they are before and after it."""
        pages: Pages = []
        for change in record.changes:
            page_no = change.page_no
            image = bytearray(self.space[page_no]) if page_no < len(self.space) else bytearray(self.page_size)
            lsn = Page(image).lsn
            if lsn == record.lsn:
                continue  # it is published
            old = bytes(image) if lsn else None  # zeros: no commit has written this page yet
            apply(change, image)
            pages.append((page_no, old, image))
        return pages

    # ---- checkpoint ------------------------------------------------------------------

    def rotate(self) -> int:
        """Starts a new log segment at ``published``, under the write lock; returns its LSN."""
        state = self.settle()
        if state.published == state.segment:
            return state.segment
        self.make_visible(state.published)
        state = self.shared.set_state(state, rotating=state.published)
        point("rotate.begun")
        self.log.create(state.published)
        point("rotate.created")
        inode = self.log.identity(state.published)
        self.shared.set_state(state, segment=state.published, inode=inode, rotating=0)
        point("rotate.done")
        return state.published

    def checkpoint(self, timeout: float | None = None) -> int:
        """Makes a checkpoint; returns the LSN from which recovery would start. Raises Busy, LogFailed, bufferpool.StoreError."""
        with self.checkpoint_lock.held(timeout):
            point("checkpoint.begun")
            with self.write_lock.held():
                start = self.rotate()
            try:
                self.pool.checkpoint(start, timeout=FLUSH_S)  # every page that was dirty before the new segment
            except bp.errors.WaitTimeout as error:
                raise Busy(f"{error}; the log is kept: try again") from error
            point("checkpoint.flushed")
            self.log.remove_below(start)
            point("checkpoint.done")
            return start


def publish_rank(old: bytes | None, new: bytearray) -> tuple[int, int]:
    """The rank of a page in the order of step 3."""
    page = Page(new)
    if page.kind == FREE:
        return 2, 0
    if page.kind == OVERFLOW or old is None or Page(old).kind == FREE:
        return 0, page.level
    return 1, page.level
