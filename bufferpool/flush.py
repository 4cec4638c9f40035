"""Writing dirty pages back.

One flush at a time and space, under the space's flush lock, so that the file's
size and time that the pool remembers are those that it made itself. A page is
clean only after the store has synced (rule 6 of docs/design.md).
"""

from typing import TYPE_CHECKING, Any

import numpy as np

from bufferpool import inspect
from bufferpool.errors import BufferPoolError, FileChanged, ShortWrite, StoreError
from bufferpool.space import Kind
from bufferpool.store import FileStore, Store, describe

if TYPE_CHECKING:
    from bufferpool.pool import Pool

BATCH_PAGES = 4096
_ITEM = np.dtype([("page", np.uint32), ("frame", np.uint32)])


def dirty_pages(pool: "Pool", index: int) -> int:
    """How many pages of a space are dirty now."""
    return int(inspect.read_summary(pool).spaces[index, 1])


def _write(pool: "Pool", store: Store, first_entry: int, items: "np.ndarray[Any, Any]") -> None:
    """Writes pages in order, neighbours together."""
    numbers = items["page"].astype(np.int64) - first_entry
    size = pool.page_size
    for run in np.split(np.arange(len(items)), np.flatnonzero(np.diff(numbers) != 1) + 1):
        offset = int(numbers[run[0]]) * size
        pages = [pool.data[frame] for frame in items["frame"][run]]
        if isinstance(store, FileStore):
            store.write_pages(offset, pages)
            continue
        image = np.concatenate(pages)  # a private copy: the store may keep it
        image.flags.writeable = False
        done = store.write_from(offset, image)
        if done != image.nbytes:
            raise ShortWrite(
                f"the store took {done} of {image.nbytes} bytes at {offset}; the pages stay dirty, flush again"
            )


def _flush_batch(pool: "Pool", record: dict[str, Any], store: Store, lsn: int, foreground: bool) -> tuple[int, bool]:
    """One batch of one space: (pages written, more to do)."""
    seg, index = pool._seg, record["index"]
    batch = seg.begin_flush(record["first_entry"], record["max_pages"], lsn, BATCH_PAGES)
    items = np.frombuffer(batch.items, _ITEM)
    synced = False
    try:
        if len(items):
            seg.record_store(index, 0, True, 0, 0)
            _write(pool, store, record["first_entry"], items)
            store.sync()
            synced = True
            stored = int(items["page"].max()) - record["first_entry"] + 1
            seg.record_store(index, stored, True, 0, 0)
    except BufferPoolError:
        raise
    except OSError as error:
        raise StoreError(
            f"{record['name']!r} cannot be written: {describe(error)}; its pages stay dirty, flush again"
        ) from error
    except Exception as error:
        raise StoreError(
            f"{record['name']!r} cannot be written: {error!r}; its pages stay dirty, flush again"
        ) from error
    finally:
        batch.end(synced, foreground)
        if len(items) and isinstance(store, FileStore):
            _, _, size, mtime = store.identity()
            seg.record_store(index, 0, False, size, mtime)
        elif len(items):
            seg.record_store(index, 0, False, 0, 0)
    return len(items), len(items) == BATCH_PAGES


def store_of(pool: "Pool", record: dict[str, Any]) -> Store:
    """The store to flush a space with, opened here if this process has not."""
    known = pool._stores.get(record["index"])
    if known is not None and known[0] == record["generation"] and getattr(known[1], "writable", True):
        return known[1]
    if record["kind"] != Kind.FILE:
        raise StoreError(
            f"{record['name']!r} has dirty pages, but its store is not open in this process; open it here (open_store)"
        )
    try:
        store = FileStore(record["path"], "r+")
        if store.identity()[:2] != (record["device"], record["inode"]):
            raise FileChanged(
                f"{record['path']} is another file by now, and the pool has dirty pages of the one that it was: "
                "put it back, or give the pages up (space.remove(discard=True))"
            )
    except OSError as error:
        raise StoreError(
            f"{record['path']} has dirty pages, but cannot be opened to write them: {error.strerror}"
        ) from error
    pool._stores[record["index"]] = (record["generation"], store)
    return store


def flush_space(pool: "Pool", record: dict[str, Any], lsn: int, *, foreground: bool = False) -> int:
    """Writes the dirty pages of one space whose LSN is at most ``lsn``; returns their number."""
    if record["kind"] not in (Kind.FILE, Kind.STORE):
        return 0
    if not dirty_pages(pool, record["index"]):
        return 0
    store = store_of(pool, record)
    written, more = 0, True
    with pool._seg.lock_flush(record["index"]):
        while more and written <= 2 * pool.max_frames:
            n, more = _flush_batch(pool, record, store, lsn, foreground)
            written += n
    return written
