"""Two pools that both write one file overwrite each other's pages: a pool claims the files that it writes.

A claim is a read lock of an open file description (OFD, fcntl(2)) on one byte far beyond the end of the file, whose
place is taken from the pool's uuid. So all processes of a pool share it, and another pool sees it: it looks for locks on all other
bytes of that range. It locks first and looks then, so of two that come together at least one sees the other. The kernel
drops a claim with its process; an attachment keeps those it has until the space is removed or it is closed.

The lock is advisory. Programs that are no pools neither see it nor are stopped by it, and a file system
without such locks (ENOLCK, EINVAL) gives none: then only the file's times tell (filestate.py).
"""

import errno
import fcntl
import os
import random
import struct
import time
from typing import TYPE_CHECKING

from bufferpool.errors import FileInUse
from bufferpool.store import FileStore

if TYPE_CHECKING:
    from bufferpool.attachment import Attachment

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


def claim(pool: "Attachment", store: FileStore) -> bool:
    """Claims a file that is open for writing; whether this attachment had no claim on it yet. Raises FileInUse."""
    file = store.state().file
    if file in pool._claims and pool._claims[file].has_descriptor():
        return False
    holder = FileStore(store.path, "r")  # locks belong to what was opened, not to the file
    if holder.state().file != file:  # it was renamed just now; the flush will say so
        return False
    place = FIRST + int.from_bytes(pool.uuid[:8], "little") % PLACES
    try:
        for _ in range(_TRIES):
            if _claimed(holder.fd, place):
                pool._claims[file] = holder
                return True
            time.sleep(random.uniform(0.001, 0.02))  # two that came together let go, and try again
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return False
        raise
    raise FileInUse(
        f"{store.path} is open for writing in another pool: the two would overwrite each other's pages. Close it there "
        "(bufferpool spaces NAME lists the files of a pool), or open it here with mode='r'"
    )


def release(pool: "Attachment", device: int, inode: int) -> None:
    """Ends the claim of this attachment on a file, if it has one."""
    pool._claims.pop((device, inode), None)
