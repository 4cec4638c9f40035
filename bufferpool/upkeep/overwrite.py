"""Writes dirty pages over a file that another program has changed, which a flush refuses to do."""

import time

from bufferpool._core import Held
from bufferpool.client.client import Client, Record
from bufferpool.client.jobs import working_on
from bufferpool.errors import SpaceBusy, SpaceRemoved
from bufferpool.figures.names import Kind
from bufferpool.spaces import directory
from bufferpool.spaces.claim import claimed, drop_unused, keep_store
from bufferpool.spaces.directory import adopt, busy, record_named, remove_now, removed_message
from bufferpool.spaces.file_changes import recorded
from bufferpool.stores.base import FileStore
from bufferpool.stores.checksum import CheckedFile
from bufferpool.upkeep.writeback import flush_space, open_to_write, telling, write_over


def overwrite(client: Client, name: str) -> int:
    """See :meth:`Pool.overwrite`."""
    record, lsn = record_named(client, name), client.durable_lsn
    if record["kind"] != Kind.FILE:
        return flush_space(client, record, lsn)
    store = open_to_write(client, record)
    _refuse_held_back(client, record, lsn)
    try:
        with claimed(client, store):  # it may be a file that no space has
            written = _overwrite_file(client, record, store, lsn)
            return flush_space(client, record, lsn) if written is None else written
    finally:
        drop_unused(client)


def _overwrite_file(client: Client, record: Record, store: FileStore, lsn: int) -> int | None:
    """Writes the dirty pages to another file, or to one that was cut. Returns None if it is the same file: then a flush writes them."""
    with (
        telling(client, record),
        client.seg.lock_flush(record["index"], True, directory.LOCKED_S) as held,
        working_on(record["index"]),
    ):
        found = client.current(record)
        if found is None:
            raise SpaceRemoved(removed_message(record["name"]))
        _refuse_held_back(client, found, lsn)
        now = store.state()
        if isinstance(store, CheckedFile):
            store.lost_below = found["stored"] * client.page_size
        if now.file != recorded(found).file or now.size < found["stored"] * client.page_size:
            return _write_over_and_remove(client, found, held, store, lsn)
        adopt(client, found, store)
        keep_store(client, record, store)
        return None


def _refuse_held_back(client: Client, record: Record, lsn: int) -> None:
    """Raises SpaceBusy if a dirty page may not be written yet, because its LSN is above ``lsn``, the durable one."""
    wanted = client.seg.dirty_range(record["first_entry"], record["max_pages"])[1]
    if wanted > lsn:
        raise SpaceBusy(
            f"{record['name']!r} has dirty pages up to LSN {wanted}, above the durable LSN {lsn}, which must not be written yet; "
            f"nothing was adopted. Make the log durable up to there, call pool.advance_durable_lsn({wanted}), and overwrite "
            f"again; or give the pages up (pool.discard({record['name']!r}))"
        )


def _write_over_and_remove(client: Client, record: Record, held: Held, store: FileStore, lsn: int) -> int:
    """Writes the dirty pages to another file, or to one that was cut, and removes the space. The caller holds its flush lock.

    Open handles still read the old file, or count pages that the file has lost. So their space never gets the record of
    this file: they publish what they read under the old record, and the next open of the file adds a new space.
    If this fails, the space and the pages that are still dirty remain for the next attempt.
    """
    store.pages(client.page_size, store.size())  # raises FileSizeMismatch
    if client.seg.space_in_use(record["index"]):
        raise busy(record["name"])
    written, deadline = 0, time.monotonic() + directory.BUSY_S
    while True:
        written += write_over(client, record, held, store, lsn)
        _refuse_held_back(client, record, lsn)
        clean = not client.dirty_pages(record)
        gone = (
            remove_now(client, record["name"], record["index"], record["generation"], False, flushing=True)
            if clean
            else None
        )
        if gone is not None:
            return written
        if time.monotonic() > deadline:
            raise busy(record["name"])
        time.sleep(0.002)  # a page is being written or loaded
