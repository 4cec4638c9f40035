"""Every error of bufferpool, in one tree.

::

    BufferPoolError
    ├── SegmentError                 the shared-memory file
    │   ├── SegmentNotFound          (FileNotFoundError) no such segment
    │   ├── SegmentExists            (FileExistsError) the name is taken
    │   ├── SegmentRefused           (PermissionError) wrong user, permissions or kind of file
    │   ├── SegmentReplaced          the name now belongs to another segment
    │   ├── PoolMismatch             (ValueError) the existing pool was created with other fixed sizes
    │   ├── SegmentCorrupt           it contradicts itself, is truncated, or is not a segment
    │   ├── LayoutMismatch           it was made by another version of the library
    │   ├── NotTmpfs                 the directory is not on a tmpfs
    │   └── SharedMemoryFull         (MemoryError) the tmpfs has no memory left
    ├── PoolClosed                   (ValueError) the pool was closed
    ├── DescriptorLost               other code closed a descriptor of the pool, or of a file of it
    ├── PoolReadOnly                 (PermissionError) it was attached for reading only
    ├── PoolExhausted                (MemoryError) no frame can be freed
    ├── GroupFull                    (ValueError) too many pages to be published as one
    ├── UnsavedPages                 dirty pages of files or stores would be lost
    ├── TooManyClients               every client slot is in use
    ├── TooManySnapshots             (OverflowError) one process reads at 32 LSNs already
    ├── ThreadRefused                (RuntimeError) this process can have no further thread
    ├── CacheRemoved                 (LookupError) the cache was removed from the pool
    ├── NoWorkerPool                 (LookupError) this process is no worker of a cluster that has a pool
    ├── WrongProcess                 a write that belongs to the parent of a fork
    ├── WaitTimeout                  (TimeoutError) the page, or a space, was in use for too long
    ├── WouldDeadlock                (RuntimeError) waiting for the page would never end
    ├── WorkingSetError              (ValueError) a saved working set that cannot be used
    ├── PageError
    │   ├── PageOutOfRange           (IndexError) no such page
    │   ├── PageReleased             (ValueError) the page of a with block that has ended
    │   ├── PageDiscarded            (LookupError) a discardable page was dropped
    │   └── TooManyPins              (OverflowError) one page, pinned 65,280 times
    ├── SpaceError
    │   ├── SpaceNotFound            (LookupError) no space of that name
    │   ├── SpaceMismatch            (ValueError) the name belongs to a different space
    │   ├── SpaceReadOnly            (TypeError) it was not opened for writing
    │   ├── SpaceFull                it has reached max_pages
    │   ├── SpaceRemoved             it was removed from the pool
    │   ├── SpaceClosed              (ValueError) this handle was closed
    │   ├── SpaceBusy                it has pages that cannot be removed now
    │   ├── SpacePrivate             it belongs to another process
    │   └── TooManySpaces            every space slot is in use
    └── StoreError                   the store of a space failed
        ├── PageCorrupt              a page's checksum is wrong, and it could not be repaired
        ├── ShortRead                it gave fewer bytes than a page
        ├── ShortWrite               it took fewer bytes than it was given
        ├── FileSizeMismatch         (ValueError) not a whole number of pages
        ├── NotRegularFile           (ValueError) a folder, a pipe or a device
        ├── FileChanged              another program changed the file, and the pool has dirty pages of it
        ├── FileInUse                another pool writes the file
        ├── RemoteChanged            (OSError) a remote file is no longer the version that was opened
        ├── LoaderFailed             a loader raised; its exception is the cause
        ├── LoaderReturned           (TypeError) a loader returned something instead of filling its buffer
        └── LoaderOverrun            a loader wrote outside its buffer

``Pool.open`` gives the warning ``PoolDiffers`` if an existing pool has another capacity than was asked for,
creating one gives ``PoolTooLarge`` if its tmpfs cannot hold the capacity,
and opening a space or flushing gives ``PoolNameless`` if the pool's name has been removed.
Wrong arguments raise ``ValueError`` or ``TypeError``; releasing a pin, or
closing a pool, while arrays over its pages exist raises ``BufferError``.
"""

import errno
from typing import TypeVar

from bufferpool.printable import printable

__all__ = [
    "BufferPoolError",
    "CacheRemoved",
    "DescriptorLost",
    "FileChanged",
    "FileInUse",
    "FileSizeMismatch",
    "GroupFull",
    "LayoutMismatch",
    "LoaderFailed",
    "LoaderOverrun",
    "LoaderReturned",
    "NoWorkerPool",
    "NotRegularFile",
    "NotTmpfs",
    "PageCorrupt",
    "PageDiscarded",
    "PageError",
    "PageOutOfRange",
    "PageReleased",
    "PoolClosed",
    "PoolDiffers",
    "PoolExhausted",
    "PoolMismatch",
    "PoolNameless",
    "PoolReadOnly",
    "PoolTooLarge",
    "RemoteChanged",
    "SegmentCorrupt",
    "SegmentError",
    "SegmentExists",
    "SegmentNotFound",
    "SegmentRefused",
    "SegmentReplaced",
    "SharedMemoryFull",
    "ShortRead",
    "ShortWrite",
    "SpaceBusy",
    "SpaceClosed",
    "SpaceError",
    "SpaceFull",
    "SpaceMismatch",
    "SpaceNotFound",
    "SpacePrivate",
    "SpaceReadOnly",
    "SpaceRemoved",
    "StoreError",
    "ThreadRefused",
    "TooManyClients",
    "TooManyPins",
    "TooManySnapshots",
    "TooManySpaces",
    "UnsavedPages",
    "WaitTimeout",
    "WorkingSetError",
    "WouldDeadlock",
    "WrongProcess",
]


_Error = TypeVar("_Error", bound="BufferPoolError")


def caused(error: _Error, cause: int | OSError) -> _Error:
    """Sets the errno of the failed system call on the error, and returns it."""
    error.errno = cause if isinstance(cause, int) else cause.errno
    return error


def remedy(number: int | None) -> str:
    """The remedy for an errno whose text says little: the end of a message, or ""."""
    text = {
        errno.EMFILE: "this process has no file descriptor left; raise ulimit -n, or close some",
        errno.ENFILE: "the machine has no file descriptor left; raise fs.file-max",
        errno.EFBIG: "the limit of a file's size is too low; raise ulimit -f (RLIMIT_FSIZE)",
        errno.EROFS: "the file system is mounted read-only; remount it for writing, or name another directory=",
        errno.ENOLCK: "the kernel has no room for locks, or a sandbox refuses them",
        errno.EAGAIN: "this process locks its memory (mlockall) and may not lock so much: raise ulimit -l",
        errno.EACCES: "this process may not open the file; if it has changed its user (setuid), attach the pool afterwards",
        errno.EPERM: "a sandbox refuses this call (seccomp); allow it. bufferpool doctor tries what a pool needs",
        errno.ENOSYS: "a sandbox, or the kernel, does not have this call; bufferpool doctor tries what a pool needs",
        errno.ENOENT: "/proc is not mounted here, or the file has been removed",
    }.get(number or 0)
    return f"; {text}" if text else ""


class BufferPoolError(Exception):
    """The root of all operating errors."""

    errno: int | None = None
    """The errno of the failed system call; None if no system call failed."""
    _lines = False  # whether the message may have several lines

    def __init__(self, *args: object) -> None:
        """Escapes control characters in the message, because names in it may come from other users."""

        def shown(text: str) -> str:
            return "\n".join(map(printable, text.split("\n"))) if self._lines else printable(text)

        super().__init__(*(shown(part) if isinstance(part, str) else part for part in args))


class SegmentError(BufferPoolError):
    """The shared-memory file is not usable."""


class SegmentNotFound(SegmentError, FileNotFoundError):
    """There is no segment of this name."""


class SegmentExists(SegmentError, FileExistsError):
    """The name is taken."""


class SegmentRefused(SegmentError, PermissionError):
    """The file belongs to another user, is not a regular file, or is a symbolic link."""


class SegmentReplaced(SegmentError):
    """The name now belongs to another segment."""


class PoolMismatch(SegmentError, ValueError):
    """The pool exists, and differs from the request in a property that is fixed at creation.

    ``differences``: (the requested value, the pool's value), by the name of the argument.
    """

    def __init__(self, message: str, differences: dict[str, tuple[object, object]]) -> None:
        super().__init__(message, differences)
        self.differences = differences

    def __str__(self) -> str:
        return str(self.args[0])


class _PoolWarning(UserWarning):
    """The root of the warnings, which escape control characters as the errors do."""

    def __init__(self, *args: object) -> None:
        super().__init__(*(printable(part) if isinstance(part, str) else part for part in args))


class PoolDiffers(_PoolWarning):
    """The pool exists, and differs from the request in a property that can be changed later."""


class PoolTooLarge(_PoolWarning):
    """A new pool's capacity is more than its tmpfs can hold."""


class PoolNameless(_PoolWarning):
    """The pool's name has been removed: its pages are lost when the last attached process ends."""


class SegmentCorrupt(SegmentError):
    """The segment contradicts itself, or the file is not a segment."""


class LayoutMismatch(SegmentError):
    """The segment has another layout version."""


class NotTmpfs(SegmentError):
    """The directory is not on a tmpfs: there MADV_REMOVE would destroy data of a file on a disk."""


class SharedMemoryFull(SegmentError, MemoryError):
    """The tmpfs, or the memory cgroup, has no memory left."""


class CacheRemoved(BufferPoolError, LookupError):
    """The cache is not in the pool, or not any more; ``pool.cache(name)`` makes a new one."""


class PoolClosed(BufferPoolError, ValueError):
    """The pool was closed."""


class DescriptorLost(BufferPoolError):
    """A descriptor of the pool, or of a file whose pages it has, was closed by other code of this process."""


class PoolReadOnly(BufferPoolError, PermissionError):
    """The pool was attached with mode="r"."""


class PoolExhausted(BufferPoolError, MemoryError):
    """No frame can be freed: every frame is pinned, dirty, or holds a scratch page that must be kept."""


class GroupFull(BufferPoolError, ValueError):
    """A group of pages that are published as one would have more than a quarter of the pool's frames."""


class UnsavedPages(BufferPoolError):
    """The operation would lose dirty pages of files or stores."""

    def __init__(self, message: str, pages: dict[str, int]) -> None:
        super().__init__(message, pages)
        self.pages = pages
        """The number of unsaved pages, by the name of their space."""

    def __str__(self) -> str:
        return str(self.args[0])


class TooManyClients(BufferPoolError):
    """Every client slot belongs to a living process."""


class TooManySnapshots(BufferPoolError, OverflowError):
    """One process has snapshots at 32 other LSNs of the pool already."""


class ThreadRefused(BufferPoolError, RuntimeError):
    """A thread for work in the background cannot be started."""


class NoWorkerPool(BufferPoolError, LookupError):
    """This process has no pool of a cluster: it is no worker, or no plugin of that name is registered."""


class WrongProcess(BufferPoolError):
    """A Write that the parent of a fork has begun was used in the child."""


class WaitTimeout(BufferPoolError, TimeoutError):
    """Another thread or process used the page, or flushed the space, for longer than the timeout."""


class WouldDeadlock(BufferPoolError, RuntimeError):
    """Waiting would never end: this thread uses the page itself, or loaders wait for each other in a cycle."""


class WorkingSetError(BufferPoolError, ValueError):
    """A saved working set is damaged, or of another page size, or its path leads to a file that is none."""


class PageError(BufferPoolError):
    """An error that concerns one page."""


class PageOutOfRange(PageError, IndexError):
    """The space has no page of this number."""


class PageReleased(PageError, ValueError):
    """An array was used after the end of its ``with`` block, when its page had been released."""


class PageDiscarded(PageError, LookupError):
    """A page of a discardable space was dropped to free its frame."""


class TooManyPins(PageError, OverflowError):
    """This process already has the largest number of pins on the page."""


class SpaceError(BufferPoolError):
    """An error that concerns one space."""


class SpaceNotFound(SpaceError, LookupError):
    """The pool has no space of this name."""


class SpaceMismatch(SpaceError, ValueError):
    """The pool has a space of this name, of another kind, size or file."""


class SpaceReadOnly(SpaceError, TypeError):
    """The space was not opened for writing, or cannot be written."""


class SpaceFull(SpaceError):
    """The space has reached its ``max_pages``."""


class SpaceRemoved(SpaceError):
    """The space was removed from the pool."""


class SpaceClosed(SpaceError, ValueError):
    """The handle of the space was closed; the space is in the pool still, unless it was private."""


class SpaceBusy(SpaceError):
    """The space has pages that cannot be removed now, because they are dirty or in use."""


class SpacePrivate(SpaceError):
    """The scratch space belongs to another process (lifetime="process")."""


class TooManySpaces(SpaceError):
    """The pool has no space slot left."""


class StoreError(BufferPoolError):
    """The store of a space failed. If a system call failed, ``__cause__`` is its OSError."""

    page_no: int | None = None
    """The page, or the first page of a batch; None if the error concerns no page."""
    told: bytes | None = None  # the text for the callers that waited for the load


class PageCorrupt(StoreError):
    """A page's checksum is wrong: a torn write, a damaged disk, or another program wrote to the file."""

    def __init__(self, message: str, space: str, page_no: int, offset: int) -> None:
        super().__init__(message, space, page_no, offset)
        self.space, self.page_no = space, page_no
        self.offset = offset
        """The offset of the page in its file, in bytes."""

    def __str__(self) -> str:
        return str(self.args[0])


class ShortRead(StoreError):
    """The store gave fewer bytes than a page."""


class ShortWrite(StoreError):
    """The store took fewer bytes than it was given."""


class FileSizeMismatch(StoreError, ValueError):
    """The size of the file is not a whole number of pages."""


class NotRegularFile(StoreError, ValueError):
    """The path of a file space does not lead to a regular file."""


class FileChanged(StoreError):
    """Another program changed the file, and the pool has dirty pages of it. The pages are kept; the file is not written."""


class FileInUse(StoreError):
    """Another pool has the file open for writing, or the file is the segment of a pool."""


class RemoteChanged(StoreError, OSError):
    """A remote file is no longer the version that was opened, and the bytes that are asked for are not in the pool."""


class LoaderFailed(StoreError):
    """A loader raised; if it ran in this thread, ``__cause__`` is its exception.

    Every caller that waited for this load gets LoaderFailed, too. If the load ran in another thread or process, the
    error has the text of the loader's exception, and no ``__cause__``.
    """


class LoaderReturned(StoreError, TypeError):
    """A loader returned a value; it must fill ``out``, and return None."""


class LoaderOverrun(StoreError):
    """A loader wrote outside its buffer."""
