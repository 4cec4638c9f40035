"""Writing dirty pages back.

One flush at a time and space, under the space's flush lock, so that the file's
size and times that the pool remembers are those that it made itself. A file that somebody
else has changed is not written (file_changes.py). A page is clean only after the store has
synced (rule 6 of docs/design.md).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from bufferpool.client import trouble
from bufferpool.client.client import Client, Record
from bufferpool.client.jobs import working_on
from bufferpool.errors import BufferPoolError, NotRegularFile, ShortWrite, StoreError, caused
from bufferpool.figures.names import EventKind, Kind
from bufferpool.printable import shown
from bufferpool.spaces.claim import claim, keep_store
from bufferpool.spaces.directory import CHECKSUM
from bufferpool.spaces.file_changes import changed, refuse_changed
from bufferpool.stores.base import FileStore, Store, bytes_done, calling, describe, sync_store
from bufferpool.stores.checksum import file_store
from bufferpool.stores.file_state import Doubt, FileState, stamped
from bufferpool.units import lsn_of

BATCH_PAGES = 4096
NO_RULE = 2**64 - 1  # the durable LSN until an engine sets it
WRITTEN = (Kind.FILE, Kind.STORE)
_ITEM = np.dtype([("page", np.uint32), ("frame", np.uint32)])


def _write(client: Client, store: Store, first_entry: int, items: "np.ndarray[Any, Any]") -> None:
    """Writes pages in order, neighbours together."""
    numbers = items["page"].astype(np.int64) - first_entry
    size, data = client.page_size, client.data
    for run in np.split(np.arange(len(items)), np.flatnonzero(np.diff(numbers) != 1) + 1):
        offset = int(numbers[run[0]]) * size
        pages = [data[frame] for frame in items["frame"][run]]
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


@dataclass(frozen=True)
class Part:
    """What one batch of a flush did."""

    written: int
    held_back: int
    """Dirty pages passed over because their LSN is above the limit."""
    next_page: int
    """Where the next batch begins; 0 when this one came to the end of the space."""


def _store_batch(
    client: Client, record: Record, items: "np.ndarray[Any, Any]", store: Store, interrupted: bool
) -> None:
    """Writes and syncs the pages of a batch, and records what the file is like then. Under the flush lock."""
    seg, index, start = client.seg, record["index"], record["first_entry"]
    if not isinstance(store, FileStore):
        _write(client, store, start, items)
        sync_store(store)
        seg.record_store(index, int(items["page"][-1]) - start + 1, False, None)
        return
    refuse_changed(client, record, store, interrupted, client.dirty_pages(record))
    before = store.size()
    seg.record_store(index, 0, True, None)
    stored, written = 0, None
    try:
        _write(client, store, start, items)
        written = stamped(store.fd)
        store.sync()
        stored = int(items["page"][-1]) - start + 1
    finally:  # before the pages are let go: until then nobody can remove the space
        if written is None:
            store.cut_to_whole_pages(before, client.page_size)
        seg.record_store(index, stored, False, _settled(written, store.state()))


def _settled(written: FileState | None, now: FileState) -> FileState:
    """What to remember of a file that we wrote, and that may have been written by somebody else since, while it was synced."""
    same = written is not None and (now.content, now.ctime_ns) == (written.content, written.ctime_ns)
    return written if written is not None and same else now._replace(doubt=Doubt.FLUSHED)


def _store_over(client: Client, record: Record, items: "np.ndarray[Any, Any]", store: FileStore) -> None:
    """Writes and syncs the pages of a batch to a file that the space's record does not describe. Under the flush lock."""
    before = store.size()
    try:
        _write(client, store, record["first_entry"], items)
    except BaseException:
        store.cut_to_whole_pages(before, client.page_size)
        raise
    store.sync()


_WriteBatch = Callable[[Record, "np.ndarray[Any, Any]"], None]


def _flush_batch(
    client: Client, record: Record, lsn: int, first: int, most: int, foreground: bool, write: _WriteBatch
) -> Part:
    """Has ``write`` store up to ``most`` dirty pages of a space from page ``first``, under its flush lock."""
    seg, start = client.seg, record["first_entry"]
    batch = seg.begin_flush(start + first, record["max_pages"] - first, lsn, most)
    items = np.frombuffer(batch.items, _ITEM)
    synced = False
    try:
        now = client.current(record) if len(items) else None
        if now is not None:  # else these entries are another space's by now
            write(now, items)
            synced = True
    except Exception as error:
        seg.count("flush_failures")
        failed: Exception = error
        if not isinstance(error, (BufferPoolError, MemoryError)) and not _is_of_a_handler(record, error):
            why = describe(error) if isinstance(error, OSError) else shown(error)
            failed = StoreError(f"{record['name']!r} cannot be written: {why}; its pages stay dirty, flush again")
        if isinstance(failed, StoreError) and failed.page_no is None and len(items):
            failed.page_no = int(items["page"][0]) - start
        if failed is error:
            raise
        raise failed from error
    finally:
        batch.end(synced, foreground)
    return Part(len(items) if synced else 0, batch.held_back, max(0, batch.next - start))


def _is_of_a_handler(record: Record, error: Exception) -> bool:
    """Whether a signal's handler raised the error: a file itself raises only errors with an errno."""
    return record["kind"] == Kind.FILE and (not isinstance(error, OSError) or error.errno is None)


def can_write(client: Client, record: Record) -> bool:
    """Whether this process has the store of a space, or can open it."""
    known = client.stores.get(record["index"])
    return record["kind"] == Kind.FILE or (known is not None and known[0] == record["generation"])


def open_to_write(client: Client, record: Record) -> FileStore:
    """Opens the file that a space's path leads to now, to write its dirty pages. Raises FileChanged, StoreError."""
    try:
        store = file_store(record["path"], "r+", client.page_size, bool(record["flags"] & CHECKSUM))
    except (FileNotFoundError, NotADirectoryError) as error:
        gone = changed(client, record, "was moved away or deleted", client.dirty_pages(record), missing=True)
        raise caused(gone, error) from error
    except NotRegularFile as error:
        what = "is no regular file any more"
        raise changed(client, record, what, client.dirty_pages(record), missing=True) from error
    except (OSError, ImportError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise StoreError(f"{record['path']} has dirty pages, but cannot be opened to write them: {why}") from error
    return store


def store_of(client: Client, record: Record) -> Store:
    """The store to flush a space with, opened here if this process has not."""
    known = client.stores.get(record["index"])
    if known is not None and known[0] == record["generation"] and getattr(known[1], "writable", True):
        return known[1]
    if record["kind"] != Kind.FILE:
        raise StoreError(
            f"{record['name']!r} has dirty pages, but its store is not open in this process; open it here (open_store)"
        )
    store = open_to_write(client, record)
    claim(client, store)
    keep_store(client, record, store)
    return store


def flush_part(
    client: Client,
    record: Record,
    lsn: int,
    first: int,
    most: int,
    *,
    foreground: bool = False,
    wait: bool = True,
) -> Part:
    """Writes up to ``most`` dirty pages of a space from page ``first``, in page order, and syncs them.

    Only pages whose LSN is at most ``lsn``; none, without ``wait``, while somebody else flushes the space.
    Raises StoreError: then they stay dirty, all of them.
    """
    try:
        with telling(client, record):
            store = store_of(client, record)
            held = client.seg.lock_flush(record["index"], wait)
            if held is None:
                return Part(0, 0, 0)
            with held, working_on(record["index"]):
                write = partial(_store_batch, client, store=store, interrupted=held.interrupted)
                return _flush_batch(client, record, lsn, first, most, foreground, write)
    except StoreError:
        if client.current(record) is None:  # removed since it was looked at: the dirty pages were another space's
            return Part(0, 0, 0)
        raise


def write_over(client: Client, record: Record, store: FileStore, lsn: int) -> int:
    """Writes the dirty pages of a space whose LSN is at most ``lsn`` to another file than its record describes.

    Under the space's flush lock. The record stays what it is, so that no page of the space passes for one of this file.
    """
    written, first = 0, 0
    while True:
        part = _flush_batch(client, record, lsn, first, BATCH_PAGES, False, partial(_store_over, client, store=store))
        written, first = written + part.written, part.next_page
        if not first:
            return written


@contextmanager
def telling(client: Client, record: Record) -> Iterator[None]:
    """A StoreError in the block is an event. The block releases its locks: what listens to the log is foreign code."""
    try:
        yield
    except StoreError as error:
        if client.current(record) is not None:
            origin = trouble.Origin(record["index"], record["generation"], record["name"], error.page_no)
            trouble.tell(client, EventKind.FLUSH_FAILED, error, origin)
        raise


def flush_space(client: Client, record: Record, lsn: int, *, foreground: bool = False, wait: bool = True) -> int:
    """Writes the dirty pages of one space whose LSN is at most ``lsn``; returns their number."""
    if record["kind"] not in WRITTEN or not client.dirty_pages(record):
        return 0
    written, first = 0, 0
    while True:
        part = flush_part(client, record, lsn, first, BATCH_PAGES, foreground=foreground, wait=wait)
        written, first = written + part.written, part.next_page
        if not first:
            return written


# ---- the log -------------------------------------------------------


def wanted_of_log(client: Client) -> int | None:
    """How far dirty pages need the log that it is not durable; None if no further, or if there is no hook to ask."""
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

    Whether more pages may be written now. What the engine's hook raises goes to the caller.
    """
    before, wanted = client.durable_lsn, wanted_of_log(client)
    if client.log_sync is None or wanted is None:
        return False
    done = client.log_sync(wanted)
    if done is not None:
        client.seg.raise_durable_lsn(lsn_of(done))
    return client.durable_lsn > before
