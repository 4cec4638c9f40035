"""The engine: how a commit becomes durable and visible, and how what a dead process began is ended.

Commit, under the write lock:

1. the record is appended to the log: from here on the commit holds, even if processes die;
2. the versions to be replaced are kept for snapshots (versions.py);
3. the pages are published in the pool, each as a whole: new pages first, then those
   that were there, leaves before their parents, and pages given away last, so that a
   link never leads a reader of the latest pages to a page that is not there yet;
4. ``committed`` moves to the record's end; the write lock is let go;
5. the log is synced, by one for all: who gets the sync lock reads ``committed``,
   syncs, and moves ``durable`` there. Who waited meanwhile finds it done.

Snapshots begin at ``durable``: nobody sees what a power failure could still take
back, and nobody sees a commit that is half published, because to them none of its
pages count. So a process may die anywhere above, and no reader has to repair
anything or to wait. The next writer finds that the log goes on behind ``committed``:
a whole record there is published (again, perhaps: pages that have its LSN already
are left alone), half a record is cut off. That is :meth:`Engine.settle`.

A page with an LSN above the pool's ``durable_lsn`` is never written to the data file, so that the file has no change that the log could lose. Changes of a
transaction that has not committed are in its process's own memory only: there is
nothing to undo, ever.

Checkpoint: start a new log segment at ``committed`` (from here on, the first change of
a page is logged as a whole again) · flush the pages that are dirty from before · remove
the older segments. A page that changes meanwhile need not reach the file: all of it is in
the new segment.
"""

import os
import time

import numpy as np

import bufferpool as bp
from toydb import locks
from toydb.errors import Busy, LogCorrupt, LogFailed
from toydb.log import Log, apply
from toydb.page import FREE, OVERFLOW, Page
from toydb.points import point
from toydb.shared import Shared, State
from toydb.versions import Versions

FLUSH_S = 30.0  # how long a checkpoint tries to write its last page

Pages = list[tuple[int, bytes | None, bytearray]]  # number, the version before, the new one


class Engine:
    """Pool, data file, log and locks of one database, in one process."""

    def __init__(self, pool: bp.Pool, space: bp.Space, log: Log, file: locks.LockFile, shared: Shared) -> None:
        self.pool, self.space, self.log, self.file, self.shared = pool, space, log, file, shared
        self.versions = Versions(shared, file)
        self.write_lock = locks.Lock(file, locks.WRITE, "write")
        self.sync_lock = locks.Lock(file, locks.SYNC, "sync")
        self.checkpoint_lock = locks.Lock(file, locks.CHECKPOINT, "checkpoint")
        pool.log_sync = self.harden

    def close(self) -> None:
        """Raises BufferError while arrays look at pages of the pool: then nothing is closed."""
        self.pool.close()
        self.log.close()
        self.file.close()

    # ---- pages -------------------------------------------------------------------

    def write_page(self, page_no: int, image: bytes | bytearray, lsn: int) -> None:
        """Publishes a version of a page, growing the space up to it."""
        content = np.frombuffer(image, np.uint8)
        while page_no >= len(self.space):
            new = self.space.append()
            new.lsn = lsn
            with new as page:
                if new.page_no == page_no:
                    page[:] = content
            if new.page_no == page_no:
                return
        old = self.space.write(page_no)
        old.lsn = lsn
        with old as page:
            page[:] = content

    def publish(self, state: State, pages: Pages, lsn: int) -> State:
        """Steps 2 to 4 of a commit; also what a dead process left to be done."""
        self.versions.keep([(page_no, old) for page_no, old, _ in pages if old is not None], lsn)
        point("publish.kept")
        for _, page_no, image in sorted((publish_rank(old, new), page_no, new) for page_no, old, new in pages):
            self.write_page(page_no, image, lsn)
            point("publish.page")
        state = self.shared.set_state(state, committed=lsn)
        point("publish.committed")
        return state

    # ---- commit ------------------------------------------------------------------

    def append(self, pages: Pages) -> tuple[State, int]:
        """Step 1 of a commit, under the write lock; returns the state to :meth:`complete`, and the commit's LSN.

        Raises LogFailed: then nothing was committed.
        """
        state = self.shared.current()
        told = [
            (page_no, old if old is not None and Page(old).lsn > state.segment else None, new)
            for page_no, old, new in pages
        ]
        lsn, record = self.log.encode(state.committed, told)
        point("commit.encoded")
        self.log.append(state.segment, state.committed, record)
        return state, lsn

    def complete(self, state: State, pages: Pages, lsn: int) -> None:
        """Steps 2 to 4. The commit is durable after :meth:`sync_to`."""
        try:
            point("commit.appended")
            if len(pages) > self.pool.max_frames // 8:
                self.harden(lsn)  # so that the pool can write these pages out while more are published
            self.publish(state, pages, lsn)
        except BaseException as error:
            error.add_note("the commit is in the log, and the next write transaction completes it")
            raise

    def sync_to(self, lsn: int) -> None:
        """Returns when everything up to ``lsn`` is durable. One sync serves all who wait. Raises LogFailed."""
        while self.shared.durable() < lsn:
            with self.sync_lock.held():
                if self.shared.durable() >= lsn:
                    return
                point("sync.locked")
                state = self.shared.current()
                self._sync(state.segment)
                point("sync.synced")
                self.pool.advance_durable_lsn(state.committed)
                self.shared.set_durable(state.committed)
                point("sync.durable")

    def harden(self, lsn: int) -> int:
        """Makes the log durable up to a record that need not be published yet, so that the flusher may write its
        pages: the pool's hook, called in any thread, so it takes no lock. Returns ``lsn``. Raises LogFailed.

        Who knows ``lsn`` from a page knows that its record is in the log, and in the present segment or an older one,
        which was synced before the present one was begun.
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
                raise  # else a checkpoint removed it meanwhile: it was synced long before
        except LogFailed:
            self.shared.set_failed()
            raise

    # ---- what others left ----------------------------------------------------------

    def settle(self) -> State:
        """Ends what a dead writer began; the write lock is held. Returns the state as it is then. Raises LogFailed."""
        self.must_work()
        state = self.shared.current()
        if state.rotating:
            point("settle.rotating")
            start = state.rotating if os.path.exists(self.log.path(state.rotating)) else state.segment
            state = self.shared.set_state(state, segment=start, inode=self.log.identity(start), rotating=0)
        end = self.log.end(state.segment)
        if end == state.committed:
            return state
        for record in self.log.records(state.segment, state.committed):
            point("settle.found")
            self.harden(record.lsn)
            pages: Pages = []
            for change in record.changes:
                old = bytes(self.space[change[0]]) if change[0] < len(self.space) else None
                if old is not None and Page(old).lsn == record.lsn:
                    continue
                image = bytearray(old or self.pool.page_size)
                apply(change, image)
                pages.append((change[0], old if old is not None and Page(old).lsn else None, image))
            state = self.publish(state, pages, record.lsn)
        if end > state.committed:
            self.log.truncate(state.segment, state.committed)
            point("settle.cut")
        return state

    # ---- checkpoint ------------------------------------------------------------------

    def rotate(self) -> int:
        """Starts a new log segment where the log ends, under the write lock; returns where."""
        state = self.settle()
        if state.committed == state.segment:
            return state.segment
        self.sync_to(state.committed)
        state = self.shared.set_state(state, rotating=state.committed)
        point("rotate.begun")
        self.log.create(state.committed)
        point("rotate.created")
        inode = self.log.identity(state.committed)
        self.shared.set_state(state, segment=state.committed, inode=inode, rotating=0)
        point("rotate.done")
        return state.committed

    def checkpoint(self, timeout: float | None = None) -> int:
        """Returns the LSN from which recovery would start now. Raises Busy, LogFailed, bufferpool.StoreError."""
        with self.checkpoint_lock.held(timeout):
            point("checkpoint.begun")
            with self.write_lock.held():
                start = self.rotate()
            self._flush(start)
            point("checkpoint.flushed")
            self.log.remove_below(start)
            point("checkpoint.done")
            return start

    def _flush(self, start: int) -> None:
        """Writes every page that is dirty from before ``start``."""
        deadline = time.monotonic() + FLUSH_S
        while (oldest := self.pool.checkpoint(start)) <= start:
            if time.monotonic() > deadline:
                raise Busy(
                    f"a page from {oldest:#x} could not be written within {FLUSH_S} s; the log is kept: try again"
                )
            time.sleep(0.001)


def publish_rank(old: bytes | None, new: bytearray) -> tuple[int, int]:
    """The place of a page in the order of step 3."""
    page = Page(new)
    if page.kind == FREE:
        return 2, 0
    if page.kind == OVERFLOW or old is None or Page(old).kind == FREE:
        return 0, page.level
    return 1, page.level
