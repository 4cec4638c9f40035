"""Two pools that both write one file overwrite each other's pages: a pool claims the files that it writes.

A claim is a read lock of an open file description (OFD, fcntl(2)) on one byte far beyond the end of the file, whose
place is taken from the pool's uuid. So all processes of a pool share it, and another pool sees it: it looks for locks on all other
bytes of that range. It locks first and looks then, so of two that come together at least one sees the other. The kernel
drops a claim with its process; an attachment keeps those it has until it is closed, or sees that no space of its pool
has the file any more (drop_unused).

The lock is advisory. Programs that are no pools neither see it nor are stopped by it, and a file system
without such locks (ENOLCK, EINVAL) gives none: then only the file's times tell (file_changes.py).
"""

import errno
import fcntl
import os
import random
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager

from bufferpool._locks import Lock
from bufferpool.client.client import Client, Record
from bufferpool.errors import FileInUse
from bufferpool.figures.names import Kind
from bufferpool.stores.base import FileStore, Store

FIRST, PLACES = 1 << 61, 1 << 60
_FLOCK = struct.Struct("hhqqi0q")  # struct flock
_TRIES = 5
# Another program has locked the whole file, or the file system, or a filter of system calls, allows no such locks.
_NO_LOCKS = (errno.EAGAIN, errno.EACCES, errno.EPERM, errno.ENOLCK, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS)


def _lock(fd: int, kind: int, at: int) -> None:
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, at, 1, 0))


def _is_locked(fd: int, first: int, end: int) -> bool:
    """Whether another pool has locked one of these bytes; locks that begin before them are other programs'."""
    if first >= end:
        return False
    found = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, first, end - first, 0))
    kind, _, at, _, _ = _FLOCK.unpack(found)
    return bool(kind != fcntl.F_UNLCK and first <= at < end)


def _claimed(fd: int, place: int) -> bool:
    """Locks ``place``, unless another pool has claimed the file."""
    _lock(fd, fcntl.F_RDLCK, place)
    if not _is_locked(fd, FIRST, place) and not _is_locked(fd, place + 1, FIRST + PLACES):
        return True
    _lock(fd, fcntl.F_UNLCK, place)
    return False


_changing = Lock()
_coming: list[tuple[int, int]] = []  # files that are being claimed for a space which is not in the directory yet
os.register_at_fork(after_in_child=_coming.clear)


@contextmanager
def claimed(client: Client, store: FileStore) -> Iterator[None]:
    """Claims a file while a space of it is opened in the block; the space keeps the claim. Raises FileInUse."""
    file = store.state().file
    with _changing:
        _coming.append(file)
    try:
        claim(client, store)
        yield
    finally:
        with _changing:
            _coming.remove(file)


def keep_store(client: Client, record: Record, store: Store) -> None:
    """Keeps the store of a space for flushes by this process."""
    with _changing:
        client.stores[record["index"]] = (record["generation"], store)


def drop_unused(client: Client) -> list[Record]:
    """Ends the claims, and closes the stores, that this attachment has kept for spaces which are gone.

    Returns the spaces that are there.

    Any process may remove a space, and the others are not told. So each looks for itself: in every round of its
    steward, and when it flushes, opens or removes a space, or reaps.
    """
    gone: list[object] = []  # closed after the lock is released: a disk may hang
    with _changing:  # what is kept from here on belongs to a space that the directory has, or is coming
        spaces = client.seg.spaces()
        live = {(r["index"], r["generation"]) for r in spaces}
        files = {(r["device"], r["inode"]) for r in spaces if r["kind"] == Kind.FILE} | set(_coming)
        gone += [
            client.stores.pop(i) for i, (generation, _) in list(client.stores.items()) if (i, generation) not in live
        ]
        gone += [client.claims.pop(file) for file in list(client.claims) if file not in files]
    return spaces


def claim(client: Client, store: FileStore) -> None:
    """Claims a file that is open for writing, unless this attachment has a claim on it. Raises FileInUse."""
    file = store.state().file
    if file in client.claims and client.claims[file].has_descriptor():
        return
    holder = FileStore(store.path, "r")  # locks belong to what was opened, not to the file
    if holder.state().file != file:  # it was renamed just now; the flush will say so
        return
    place = FIRST + int.from_bytes(client.uuid[:8], "little") % PLACES
    try:
        for _ in range(_TRIES):
            if _claimed(holder.fd, place):
                client.claims[file] = holder
                return
            time.sleep(random.uniform(0.001, 0.02))  # two that came together let go, and try again
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return
        raise
    raise FileInUse(
        f"{store.path} is open for writing in another pool: the two would overwrite each other's pages. Close it there "
        "(bufferpool spaces NAME lists the files of a pool), or open it here with mode='r'"
    )
