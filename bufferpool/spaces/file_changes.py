"""How the pool notices that another program has changed a file of which it has pages.

The space's slot records the state of the file after the pool last read or wrote it: the file's identity, its size
and its times. If the state differs, another program has changed the file. In two cases the state alone is not enough:

- *The same time.* A write soon after the pool read the state may leave the same time: the clock of file times
  has a resolution of up to ten milliseconds, on some file systems of seconds. So a record that was made within one step
  of the file's time is doubtful (as Git's "racy" index entries are), and the pages in memory are compared
  with the file before the record is trusted. After its own flush the pool sets a modification time that no later
  write gives the file (only the owner of the file may), so that the record is not doubtful.
- *Times that were set back* (``touch -r``, ``rsync -t``). That alters the change time (ctime), which ``chmod`` and ``ln``
  also alter: then the pages in memory are compared with the file.
"""

import os

from bufferpool.client.client import Client, Record
from bufferpool.errors import FileChanged
from bufferpool.stores.base import FileStore
from bufferpool.stores.file_state import Doubt, FileState
from bufferpool.units import counted

GONE = "was moved away or deleted (or this process sees other paths, in a container or after chroot: then flush in one that opened the file)"


def recorded(record: Record) -> FileState:
    """The state of the file that the space's slot records."""
    return FileState(
        record["device"],
        record["inode"],
        record["size_bytes"],
        record["mtime_ns"],
        record["ctime_ns"],
        record["doubt"],
    )


def with_state(record: Record, state: FileState) -> Record:
    """The record of a space with another state of its file."""
    names = ("device", "inode", "size_bytes", "mtime_ns", "ctime_ns", "doubt")
    return record | dict(zip(names, state, strict=True))


def first_changed(client: Client, record: Record, store: FileStore) -> int:
    """The first clean page in memory that differs from the file; -1 if there is none. Needs the flush lock."""
    return client.seg.first_changed(record["index"], store.fd, client.page_size - store.trailer_bytes)


def is_unchanged(client: Client, record: Record, store: FileStore, *, opening: bool) -> bool:
    """Whether the file's state, and pages in memory if it is doubtful, show no change. Needs the flush lock."""
    before, now = recorded(record), store.state()
    if now.content != before.content:
        return False
    doubtful = before.doubt == Doubt.OPENED or (opening and before.doubt == Doubt.FLUSHED)
    if now.ctime_ns == before.ctime_ns and not doubtful:
        return True
    return first_changed(client, record, store) < 0


def _what_happened(client: Client, record: Record, store: FileStore, interrupted: bool) -> str:
    """How another program has changed the file of a space, as text; "" if it has not. Needs the flush lock."""
    before, now = recorded(record), store.state()
    if now.file != before.file:
        return "is another file than the one that the pool has pages of"
    if os.fstat(store.fd).st_nlink == 0:
        return "was deleted"
    try:
        named = os.stat(store.path)
    except (FileNotFoundError, NotADirectoryError):
        return GONE
    except OSError as error:  # the path cannot be examined from this process
        if error.errno is None:
            raise
        named = None
    if named is not None and (named.st_dev, named.st_ino) != now.file:
        return "was replaced by another file (renamed over it)"
    if now.size < before.size:
        return f"was cut from {before.size} to {now.size} bytes by another program"
    if interrupted:  # an interrupted flush left an unknown size and time
        return ""
    if now.size > before.size:
        return f"was extended from {before.size} to {now.size} bytes by another program"
    if not is_unchanged(client, record, store, opening=False):
        return "was written by another program"
    return ""


def refuse_changed(client: Client, record: Record, store: FileStore, interrupted: bool) -> None:
    """Raises FileChanged if another program has changed the file of a space. Needs the flush lock; called before a write."""
    what = _what_happened(client, record, store, interrupted)
    if what:
        raise changed(client, record, what, client.dirty_pages(record), missing=not os.path.exists(store.path))


def changed(client: Client, record: Record, what: str, dirty: int, *, missing: bool = False) -> FileChanged:
    """The error, with its remedies; ``missing``: there is no file at the path, so it cannot be overwritten yet."""
    name = record["name"]
    first = "Restore the file"
    if missing:
        first += " at its path, or create an empty file there first (pages that are not dirty are zeros in it, or do not exist)"
    return FileChanged(
        f"{record['path']} {what}, and the pool has {counted(dirty, 'dirty page')} of it; nothing was written. {first}, or read "
        f"the pages (pool.dirty_pages({name!r}), bufferpool dirty {client.name} {name}), then discard them (pool.discard({name!r}), "
        f"bufferpool discard {client.name} {name}) or write them over the change (pool.overwrite({name!r}), "
        f"bufferpool flush {client.name} {name} --overwrite)"
    )
