"""Writing dirty pages back.

Each space has one flush at a time, under its flush lock, so that the recorded size and times
of the file are those of the pool's own writes. A file that another program
has changed is not written (file_changes.py). A page is clean only after the store has
synced (rule 6 of docs/design.md).
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from bufferpool import _core
from bufferpool.client import trouble
from bufferpool.client.client import Client, Record
from bufferpool.client.jobs import working_on
from bufferpool.errors import BufferPoolError, NotRegularFile, ShortWrite, SpaceRemoved, StoreError, caused
from bufferpool.figures.names import EventKind, Kind, cache_of
from bufferpool.printable import shown
from bufferpool.spaces.claim import claim, keep_store
from bufferpool.spaces.directory import CHECKSUM, removed_message
from bufferpool.spaces.file_changes import GONE, changed, refuse_changed, with_state
from bufferpool.stores.base import FileStore, Store, bytes_done, calling, describe, sync_store
from bufferpool.stores.checksum import file_store
from bufferpool.stores.file_state import Doubt, FileState, stamped
from bufferpool.units import lsn_of

BATCH_PAGES = 4096
NO_RULE = 2**64 - 1  # the durable LSN until an engine sets it
WRITTEN = (Kind.FILE, Kind.STORE)
LOG_HOOK = "log_sync"  # what a thread works on while the engine's hook runs
_ITEM = np.dtype([("page", np.uint32), ("frame", np.uint32)])


class Selection(NamedTuple):
    """Which dirty pages of a space are to be written."""

    lsn: int
    """Only pages whose LSN is at most this."""
    first: int = 0
    """Only pages from this number on."""
    most: int = BATCH_PAGES
    """At most so many."""
    foreground: bool = False
    """True if a client waits for their frames."""


@dataclass(frozen=True)
class Part:
    """The result of one batch of a flush."""

    written: int
    held_back: int
    """The number of dirty pages that were skipped because their LSN is above the limit."""
    next_page: int
    """The page at which the next batch begins; 0 at the end of the space."""


@dataclass
class _Outcome:
    """What has become of a batch, while it is written."""

    synced: bool = False
    record: tuple[int, FileState | None] | None = None
    """How many pages the store has at least, and what its file is like. None: the space's slot keeps what it says."""
    sync_ns: int = 0
    """How long the sync took, if it succeeded."""


_Items = npt.NDArray[np.void]
_WriteBatch = Callable[[_core.Batch, _Items, _Outcome], None]


@contextmanager
def timing_sync(outcome: _Outcome) -> Iterator[None]:
    """Counts the time of a sync that succeeds, apart from the time of the writes before it."""
    began = time.monotonic_ns()
    yield
    outcome.sync_ns = time.monotonic_ns() - began


def _write(client: Client, store: Store, batch: _core.Batch, items: _Items) -> None:
    """Writes the pages of a batch, neighbours together: to a file several runs at a time, else in order."""
    size, data, numbers = client.page_size, client.data, items["page"].astype(np.int64)
    if isinstance(store, FileStore):
        left = np.flatnonzero(~store.write_batch(batch, numbers, size))
    else:
        left = np.arange(len(items))
    for run in np.split(left, np.flatnonzero(np.diff(numbers[left]) != 1) + 1) if len(left) else ():
        offset, pages = int(numbers[run[0]]) * size, [data[frame] for frame in items["frame"][run]]
        if isinstance(store, FileStore):
            store.write_pages(offset, pages)
            continue
        image = np.concatenate(pages)  # a private copy: the store may keep it
        image.flags.writeable = False
        with calling(store, "write_from"):
            done = bytes_done(store, "write_from", store.write_from(offset, image))
        if done != image.nbytes:
            raise ShortWrite(
                f"the store took {done} of {image.nbytes} bytes at {offset}; the pages stay dirty, flush again"
            )


def _store_batch(
    client: Client, record: Record, store: Store, batch: _core.Batch, items: _Items, outcome: _Outcome
) -> None:
    """Writes and syncs the pages of a batch, and finds out what the file is like then."""
    pages = int(items["page"][-1]) + 1
    if not isinstance(store, FileStore):
        _write(client, store, batch, items)
        with timing_sync(outcome):
            sync_store(store)
        outcome.record = pages, None
        return
    refuse_changed(client, with_state(record, FileState(*batch.state)), store, batch.interrupted)
    before = store.size()
    batch.mark_open()
    stored, written = 0, None
    try:
        _write(client, store, batch, items)
        written = stamped(store.fd)
        with timing_sync(outcome):
            store.sync()
        stored = pages
    finally:
        if written is None:
            store.cut_to_whole_pages(before, client.page_size)
        outcome.record = stored, _settled(written, store.state())


def _settled(written: FileState | None, now: FileState) -> FileState:
    """The state to record of a file that we have written: another program may have written it while we synced it."""
    same = written is not None and (now.content, now.ctime_ns) == (written.content, written.ctime_ns)
    return written if written is not None and same else now._replace(doubt=Doubt.FLUSHED)


def _store_over(client: Client, store: FileStore, batch: _core.Batch, items: _Items, outcome: _Outcome) -> None:
    """Writes and syncs the pages of a batch to a file that the space's record does not describe."""
    before = store.size()
    try:
        _write(client, store, batch, items)
    except BaseException:
        store.cut_to_whole_pages(before, client.page_size)
        raise
    with timing_sync(outcome):
        store.sync()


def _flush_batch(
    client: Client, record: Record, batch: _core.Batch, write: _WriteBatch, *, counts: bool = True
) -> Part:
    """Lets ``write`` store the pages of a batch, and ends the batch."""
    items, outcome = np.frombuffer(batch.items, _ITEM), _Outcome()
    try:
        if len(items):
            write(batch, items, outcome)
        outcome.synced = True
    except Exception as error:
        if counts:
            client.seg.count("flush_failures")
        failed: Exception = error
        if not isinstance(error, (BufferPoolError, MemoryError)) and not _is_of_a_handler(record, error):
            why = describe(error) if isinstance(error, OSError) else shown(error)
            failed = StoreError(f"{record['name']!r} cannot be written: {why}; its pages stay dirty, flush again")
            if isinstance(error, OSError):
                failed = caused(failed, error)
        if isinstance(failed, StoreError) and failed.page_no is None and len(items):
            failed.page_no = int(items["page"][0])
        if failed is error:
            raise
        raise failed from error
    finally:
        batch.end(outcome.synced, outcome.record, outcome.sync_ns)
    return Part(len(items), batch.held_back, batch.next)


def _is_of_a_handler(record: Record, error: Exception) -> bool:
    """Whether a signal's handler raised the error: a file itself raises only errors with an errno."""
    return record["kind"] == Kind.FILE and (not isinstance(error, OSError) or error.errno is None)


def known_store(client: Client, record: Record) -> Store | None:
    """The store of a space that this process has opened; None if it has not."""
    known = client.stores.get(record["index"])
    return known[1] if known is not None and known[0] == record["generation"] else None


def store_to_write(client: Client, record: Record) -> Store | None:
    """The store of a space that this process has opened for writing; None if it has not."""
    store = known_store(client, record)
    return store if getattr(store, "writable", True) else None


def can_write(client: Client, record: Record) -> bool:
    """Whether this process has the store of a space, or can open it."""
    return record["kind"] == Kind.FILE or known_store(client, record) is not None


def open_to_write(client: Client, record: Record) -> FileStore:
    """Opens the file at a space's path, to write its dirty pages. Raises FileChanged, StoreError."""
    try:
        checksum = bool(record["flags"] & CHECKSUM)
        store = file_store(record["path"], "r+", client.page_size, checksum, cache=cache_of(record["flags"]))
    except (FileNotFoundError, NotADirectoryError) as error:
        gone = changed(client, record, GONE, client.dirty_pages(record), missing=True)
        raise caused(gone, error) from error
    except NotRegularFile as error:
        what = "is not a regular file any more"
        raise changed(client, record, what, client.dirty_pages(record), missing=True) from error
    except (OSError, ImportError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise StoreError(f"{record['path']} has dirty pages, but cannot be opened to write them: {why}") from error
    return store


def store_of(client: Client, record: Record) -> Store:
    """The store to flush a space with, opened here if this process has not."""
    known = store_to_write(client, record)
    if known is not None:
        return known
    if record["kind"] != Kind.FILE:
        raise StoreError(
            f"{record['name']!r} has dirty pages, but its store is not open in this process; open it here (open_store)"
        )
    store = open_to_write(client, record)
    claim(client, store)
    keep_store(client, record, store)
    return store


def flush_part(client: Client, record: Record, which: Selection, *, wait: bool = True, counts: bool = True) -> Part:
    """Writes the dirty pages of a space that ``which`` selects, in page order, and syncs them.

    ``counts``: whether a failure counts, which it does not if the caller repeats a flush that has failed. Returns a part without pages if another client flushes the space and ``wait`` is false. Raises StoreError: then all pages
    are still dirty.
    """
    try:
        with telling(client, record, counts=counts):
            store = store_of(client, record)
            batch = client.seg.begin_flush(record["index"], record["generation"], which, wait)
            if batch is None:
                return Part(0, 0, 0)
            with working_on(record["index"]):
                write = partial(_store_batch, client, record, store)
                part = _flush_batch(client, record, batch, write, counts=counts)
    except StoreError:
        if client.current(record) is None:  # removed since it was looked at: the dirty pages were another space's
            return Part(0, 0, 0)
        raise
    if part.written:
        trouble.tell_written(client, record)
    return part


def write_over(client: Client, record: Record, held: _core.Held, store: FileStore, lsn: int) -> int:
    """Writes the dirty pages of a space whose LSN is at most ``lsn`` to another file than its record describes.

    ``held`` is the space's flush lock. The record is not changed, so that no page of the space is taken for one of this file.
    """
    written, first = 0, 0
    while True:
        batch = held.begin_flush(record["generation"], Selection(lsn, first))
        if batch is None:
            raise SpaceRemoved(removed_message(record["name"]))
        part = _flush_batch(client, record, batch, partial(_store_over, client, store))
        written, first = written + part.written, part.next_page
        if not first:
            return written


@contextmanager
def telling(client: Client, record: Record, *, counts: bool = True) -> Iterator[None]:
    """Records a StoreError of the `with` block as an event, after the block has released its locks, because log handlers are foreign code."""
    try:
        yield
    except StoreError as error:
        if client.current(record) is not None:
            if counts:
                trouble.count(client, EventKind.FLUSH_FAILED, error, record["index"], record["generation"])
            origin = trouble.Origin(record["index"], record["generation"], record["name"], error.page_no)
            trouble.tell(client, EventKind.FLUSH_FAILED, error, origin)
        raise


def flush_space(
    client: Client, record: Record, lsn: int, *, foreground: bool = False, wait: bool = True, counts: bool = True
) -> int:
    """Writes the dirty pages of one space whose LSN is at most ``lsn``; returns their number."""
    if record["kind"] not in WRITTEN:
        return 0
    if store_to_write(client, record) is None and not client.dirty_pages(record):
        return 0  # a batch without pages takes no time, so nobody waits for it
    written, first = 0, 0
    while True:
        part = flush_part(client, record, Selection(lsn, first, foreground=foreground), wait=wait, counts=counts)
        written, first = written + part.written, part.next_page
        if not first:
            return written


# ---- the log -------------------------------------------------------


def wanted_of_log(client: Client) -> int | None:
    """The LSN up to which dirty pages need the log; None if it is durable that far, or there is no hook."""
    durable = client.durable_lsn
    if client.log_sync is None or durable == NO_RULE:
        return None
    ranges = [
        client.seg.dirty_range(r["first_entry"], r["max_pages"]) for r in client.seg.spaces() if r["kind"] in WRITTEN
    ]
    wanted = max((lsn for _, lsn, _ in ranges), default=0)
    return wanted if wanted > durable else None


def sync_log(client: Client) -> bool:
    """Asks the engine to make its log durable as far as the dirty pages need it.

    Returns whether more pages may be written now. An error of the engine's hook is raised to the caller.
    """
    before, wanted = client.durable_lsn, wanted_of_log(client)
    if client.log_sync is None or wanted is None:
        return False
    with client.seg.under_way("log_sync"), working_on(LOG_HOOK):
        done = client.log_sync(wanted)
    if done is not None:
        client.seg.raise_durable_lsn(lsn_of(done))
    return client.durable_lsn > before
