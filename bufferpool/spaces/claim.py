"""Claims: a pool locks the files that it writes, because two pools would overwrite each other's pages.

A claim is a read lock of an open file description (OFD, fcntl(2)) on one byte far beyond the end of the file, at an
offset that depends on the pool's uuid. So all processes of a pool share it, and another pool, which checks all other
bytes of that range for locks, sees it. A pool locks first and checks then, so of two pools that claim at the same time at
least one sees the other. The kernel releases a claim when its process dies. An attachment keeps its claims until it is
closed, or until no space of its pool has the file any more (drop_unused).

The lock is advisory: other programs neither see it nor are stopped by it. On a file system
without such locks (ENOLCK, EINVAL) there is no claim, and only the file's times show a change (file_changes.py).
"""

import errno
import fcntl
import os
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager

from bufferpool._locks import Lock
from bufferpool.client.client import Client, Record
from bufferpool.client.segment_file import FLOCK
from bufferpool.errors import FileInUse
from bufferpool.stores.base import FileStore, Store

FIRST, PLACES = 1 << 61, 1 << 60
_TRIES = 5
# The errors of a lock that cannot be taken: another program has locked the whole file, or the file system or a seccomp
# filter does not allow such locks.
_NO_LOCKS = (errno.EAGAIN, errno.EACCES, errno.EPERM, errno.ENOLCK, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS)


def _lock(fd: int, kind: int, at: int) -> None:
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, FLOCK.pack(kind, os.SEEK_SET, at, 1, 0))


def _is_locked(fd: int, first: int, end: int) -> bool:
    """Whether another pool has locked one of these bytes. A lock that begins before them belongs to another program."""
    if first >= end:
        return False
    found = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, first, end - first, 0))
    kind, _, at, _, _ = FLOCK.unpack(found)
    return bool(kind != fcntl.F_UNLCK and first <= at < end)


def _claimed(fd: int, place: int) -> bool:
    """Locks ``place``, unless another pool has claimed the file."""
    _lock(fd, fcntl.F_RDLCK, place)
    if not _is_locked(fd, FIRST, place) and not _is_locked(fd, place + 1, FIRST + PLACES):
        return True
    _lock(fd, fcntl.F_UNLCK, place)
    return False


_changing = Lock()


class _Coming:
    """A file that is claimed for a space that is not in the directory yet, as long as this object lives."""

    def __init__(self, file: tuple[int, int]) -> None:
        self.file = file


_coming: "weakref.WeakSet[_Coming]" = weakref.WeakSet()
os.register_at_fork(after_in_child=_coming.clear)


@contextmanager
def claimed(client: Client, store: FileStore) -> Iterator[None]:
    """Claims a file while the block opens a space of it; the space keeps the claim. Raises FileInUse."""
    coming = _Coming(store.state().file)
    with _changing:
        _coming.add(coming)
    try:
        claim(client, store)
        yield
    finally:
        with _changing:
            _coming.discard(coming)


def keep_store(client: Client, record: Record, store: Store) -> None:
    """Keeps the store of a space for flushes by this process."""
    with _changing:
        client.stores[record["index"]] = (record["generation"], store)


def drop_unused(client: Client) -> None:
    """Ends the claims, and closes the stores, that this attachment has kept for spaces which are gone.

    Any process may remove a space, and the others get no notice. So each process checks for itself: in every round of its
    steward, and when it flushes, opens or removes a space, or reaps. If a space was removed since the last check, it checks
    all stores and claims. Otherwise it checks only new claims, because the space for which a claim was made may have been refused.
    """
    removals = client.seg.removals()
    changed = client.removals_seen != removals
    if not changed and not client.new_claims:
        return
    gone: list[object] = []  # closed after the lock is released: a disk may hang
    with _changing:  # a store or claim is kept only if its space is in the directory, or being opened
        seg, coming = client.seg, {coming.file for coming in _coming}
        claims = (set(client.claims) if changed else client.new_claims & set(client.claims)) - coming
        client.new_claims -= claims
        gone += [client.claims.pop(file) for file in claims if not seg.spaces_of_file(*file)]
        if changed:
            gone += [client.stores.pop(i) for i, (g, _) in list(client.stores.items()) if not seg.is_current(i, g)]
            removed = [key for key, one in list(client.bound.items()) if not seg.is_current(*one.slot)]
            gone += [client.bound.pop(key, None) for key in removed]
    client.removals_seen = removals


def claim(client: Client, store: FileStore) -> None:
    """Claims a file that is open for writing, unless this attachment has a claim on it. Raises FileInUse."""
    file = store.state().file
    if file in client.claims and client.claims[file].has_descriptor():
        return
    holder = FileStore(store.path, "r")  # a new open file description: the lock belongs to it
    if holder.state().file != file:  # it was just renamed; the flush will raise the error
        return
    place = FIRST + int.from_bytes(client.pool_uuid[:8], "little") % PLACES
    try:
        for _ in range(_TRIES):
            if _claimed(holder.fd, place):
                client.claims[file] = holder
                client.new_claims.add(file)
                return
            from random import uniform  # not at the top: random imports OpenSSL

            time.sleep(uniform(0.001, 0.02))  # two pools saw each other's locks: release, wait, try again
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return
        raise
    raise FileInUse(
        f"{store.path} is open for writing in another pool: the two would overwrite each other's pages. Close it there "
        "(bufferpool spaces NAME lists the files of a pool), or open it here with mode='r'"
    )
