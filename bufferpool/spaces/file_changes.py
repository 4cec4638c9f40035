"""What the pool remembers of a file, and what shows that somebody else has changed it.

The space's slot has the state of the file as the pool last saw it or made it: which file it is, its size
and its times. A difference is somebody else's change. Two kinds of change leave no difference that can be trusted:

- *Times that stand still.* A write soon after the pool looked may leave the same time: the clock of file times
  moves in steps of up to ten milliseconds, on some file systems in whole seconds. So a record that was made within one step
  of the file's time is doubtful, as racy entries of Git's index are, and the pages in memory are compared
  with the file before it is believed. The pool's own flush gives the file a time of its own, with
  nanoseconds that no step of the clock has (only the owner of the file may), and leaves no doubt.
- *Times that were set back* (``touch -r``, ``rsync -t``). That changes the change time (ctime), which also ``chmod`` and ``ln``
  change: the pages in memory say which it was.
"""

import os

from bufferpool.client.client import Client, Record
from bufferpool.errors import FileChanged
from bufferpool.stores.base import FileStore
from bufferpool.stores.file_state import Doubt, FileState


def recorded(record: Record) -> FileState:
    """The state that a space's slot has."""
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
    """The first clean page in memory that the file has otherwise, -1 if there is none. Under the flush lock."""
    return client.seg.first_changed(record["index"], store.fd, client.page_size - store.trailer_bytes)


def is_unchanged(client: Client, record: Record, store: FileStore, *, opening: bool) -> bool:
    """Whether no other program has changed the file, as far as its state shows. Under the flush lock."""
    before, now = recorded(record), store.state()
    if now.content != before.content:
        return False
    doubtful = before.doubt == Doubt.OPENED or (opening and before.doubt == Doubt.FLUSHED)
    if now.ctime_ns == before.ctime_ns and not doubtful:
        return True
    return first_changed(client, record, store) < 0


def _what_happened(client: Client, record: Record, store: FileStore, interrupted: bool) -> str:
    """What somebody else did to the file of a space, "" if nothing. Under the flush lock."""
    before, now = recorded(record), store.state()
    if now.file != before.file:
        return "is another file than the one that the pool has pages of"
    if os.fstat(store.fd).st_nlink == 0:
        return "was deleted"
    try:
        named = os.stat(store.path)
    except (FileNotFoundError, NotADirectoryError):
        return "was moved away or deleted"
    except OSError as error:  # the path cannot be looked at from here: it says nothing
        if error.errno is None:
            raise
        named = None
    if named is not None and (named.st_dev, named.st_ino) != now.file:
        return "was replaced by another file (renamed over it)"
    if now.size < before.size:
        return f"was cut from {before.size} to {now.size} bytes by somebody else"
    if interrupted:  # of a flush that did not end nobody knows which size and time it left
        return ""
    if now.size > before.size:
        return f"was extended from {before.size} to {now.size} bytes by somebody else"
    if not is_unchanged(client, record, store, opening=False):
        return "was written by somebody else"
    return ""


def refuse_changed(client: Client, record: Record, store: FileStore, interrupted: bool) -> None:
    """Raises FileChanged if somebody else has changed the file of a space. Under the flush lock, before it is written."""
    what = _what_happened(client, record, store, interrupted)
    if what:
        raise changed(client, record, what, client.dirty_pages(record), missing=not os.path.exists(store.path))


def changed(client: Client, record: Record, what: str, dirty: int, *, missing: bool = False) -> FileChanged:
    """The error, with the ways out; ``missing``: nothing is at the path, so nothing can be written over it yet."""
    name = record["name"]
    first = "Restore the file"
    if missing:
        first += " at its path, or create an empty file there first (pages that are not dirty are zeros in it, or do not exist)"
    return FileChanged(
        f"{record['path']} {what}, and the pool has {dirty} dirty pages of it; nothing was written. {first}, or look at "
        f"the pages (pool.dirty_pages({name!r}), bufferpool dirty {client.name} {name}), then give them up (pool.discard({name!r}), "
        f"bufferpool discard {client.name} {name}) or write them over the change (pool.overwrite({name!r}), "
        f"bufferpool flush {client.name} {name} --overwrite)"
    )
