"""Every error of bufferpool, in one tree.

::

    BufferPoolError
    ├── SegmentError                 the shared-memory file
    │   ├── SegmentNotFound          (FileNotFoundError) no such segment
    │   ├── SegmentExists            (FileExistsError) the name is taken
    │   ├── SegmentRefused           (PermissionError) wrong owner, mode or kind of file
    │   ├── SegmentReplaced          the name belongs to another segment by now
    │   ├── PoolMismatch             (ValueError) the pool that exists was created with other fixed sizes
    │   ├── SegmentCorrupt           it contradicts itself, is truncated, or is no segment
    │   ├── LayoutMismatch           it was made by another version of the library
    │   ├── NotTmpfs                 the directory is not on a tmpfs
    │   └── SharedMemoryFull         (MemoryError) the tmpfs has no memory left
    ├── PoolClosed                   (ValueError) the pool was closed
    ├── DescriptorLost               a descriptor of the pool, or of a file of it, was closed behind it
    ├── PoolReadOnly                 (PermissionError) it was attached for reading only
    ├── PoolExhausted                (MemoryError) no frame can be had
    ├── UnsavedPages                 dirty pages of files or stores would be lost
    ├── TooManyClients               every client slot is taken
    ├── ThreadRefused                (RuntimeError) this process can have no further thread
    ├── WrongProcess                 a write that belongs to the parent of a fork
    ├── WaitTimeout                  (TimeoutError) somebody else has the page
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
    │   ├── SpaceBusy                it has pages that cannot go now
    │   ├── SpacePrivate             it belongs to one process alone
    │   └── TooManySpaces            every space slot is taken
    └── StoreError                   what is behind a space failed
        ├── PageCorrupt              a page's checksum is wrong, and nobody could repair it
        ├── ShortRead                it gave fewer bytes than a page
        ├── ShortWrite               it took fewer bytes than it was given
        ├── FileSizeMismatch         (ValueError) no whole number of pages
        ├── NotRegularFile           (ValueError) a folder, a pipe or a device
        ├── FileChanged              somebody else wrote the file, and pages here are dirty
        ├── FileInUse                another pool writes the file
        ├── LoaderFailed             a loader raised; its exception is the cause
        ├── LoaderReturned           (TypeError) a loader returned something instead of filling its buffer
        └── LoaderOverrun            a loader wrote outside its buffer

``Pool.open`` gives the warning ``PoolDiffers`` where a pool that exists has another capacity than was asked for,
and opening a space or flushing gives ``PoolNameless`` where somebody has removed the pool's name.
Wrong arguments raise ``ValueError`` or ``TypeError``; releasing a pin, or
closing a pool, while arrays look at its pages raises ``BufferError``.
"""

import errno
from typing import TypeVar

from bufferpool.printable import printable

__all__ = [
    "BufferPoolError",
    "DescriptorLost",
    "FileChanged",
    "FileInUse",
    "FileSizeMismatch",
    "LayoutMismatch",
    "LoaderFailed",
    "LoaderOverrun",
    "LoaderReturned",
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
    "TooManySpaces",
    "UnsavedPages",
    "WaitTimeout",
    "WorkingSetError",
    "WouldDeadlock",
    "WrongProcess",
]


_Error = TypeVar("_Error", bound="BufferPoolError")


def caused(error: _Error, cause: int | OSError) -> _Error:
    """The error, with the errno of the system call that failed."""
    error.errno = cause if isinstance(cause, int) else cause.errno
    return error


def remedy(number: int | None) -> str:
    """What to do about an errno that says little by itself: the end of a message, or nothing."""
    text = {
        errno.EMFILE: "this process has no file descriptor left; raise ulimit -n, or close some",
        errno.ENFILE: "the machine has no file descriptor left; raise fs.file-max",
        errno.EFBIG: "files may not be so large; raise ulimit -f (RLIMIT_FSIZE)",
        errno.EROFS: "the file system is mounted read-only; remount it for writing, or name another directory=",
        errno.ENOLCK: "the kernel has no room for locks, or a sandbox refuses them",
        errno.EAGAIN: "this process locks its memory (mlockall) and may not lock so much: raise ulimit -l",
        errno.EPERM: "a sandbox refuses this call (seccomp); allow it. bufferpool doctor tries what a pool needs",
        errno.ENOSYS: "a sandbox, or the kernel, does not have this call; bufferpool doctor tries what a pool needs",
        errno.ENOENT: "/proc is not mounted here, or the file has been removed",
    }.get(number or 0)
    return f"; {text}" if text else ""


class BufferPoolError(Exception):
    """The root of all operating errors."""

    errno: int | None = None
    """Of the system call that failed, where one did."""
    _lines = False  # whether its message has several

    def __init__(self, *args: object) -> None:
        """Names in a message are others' making: what a terminal would obey is escaped."""

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
    """The file has another owner, is no regular file, or is a symbolic link."""


class SegmentReplaced(SegmentError):
    """The name belongs to another segment than it did."""


class PoolMismatch(SegmentError, ValueError):
    """The pool exists, and what was asked for differs in what is fixed when a pool is created.

    ``differences``: what was asked for and what was found, by the name of the argument.
    """

    def __init__(self, message: str, differences: dict[str, tuple[object, object]]) -> None:
        super().__init__(message, differences)
        self.differences = differences

    def __str__(self) -> str:
        return str(self.args[0])


class PoolDiffers(UserWarning):
    """The pool exists, and what was asked for differs in what can be changed while it lives."""


class PoolNameless(UserWarning):
    """Somebody has removed the pool's name: its pages are lost when the last attached process ends."""


class SegmentCorrupt(SegmentError):
    """The segment contradicts itself, or is none."""


class LayoutMismatch(SegmentError):
    """The segment has another layout version."""


class NotTmpfs(SegmentError):
    """MADV_REMOVE would cut holes into a file on a disk."""


class SharedMemoryFull(SegmentError, MemoryError):
    """The tmpfs, or the memory cgroup, has no memory left."""


class PoolClosed(BufferPoolError, ValueError):
    """The pool was closed."""


class DescriptorLost(BufferPoolError):
    """A descriptor of the pool, or of a file whose pages it has, was closed by other code of this process."""


class PoolReadOnly(BufferPoolError, PermissionError):
    """The pool was attached with mode="r"."""


class PoolExhausted(BufferPoolError, MemoryError):
    """Every frame is pinned, dirty or not discardable."""


class UnsavedPages(BufferPoolError):
    """What was asked for would lose dirty pages of files or stores."""

    def __init__(self, message: str, pages: dict[str, int]) -> None:
        super().__init__(message, pages)
        self.pages = pages
        """How many, by the name of their space."""

    def __str__(self) -> str:
        return str(self.args[0])


class TooManyClients(BufferPoolError):
    """Every client slot belongs to a living process."""


class ThreadRefused(BufferPoolError, RuntimeError):
    """A thread for work in the background cannot be started."""


class WrongProcess(BufferPoolError):
    """A write was opened before a fork, in the parent."""


class WaitTimeout(BufferPoolError, TimeoutError):
    """Somebody else has the page for longer than the timeout."""


class WouldDeadlock(BufferPoolError, RuntimeError):
    """Waiting would never end: this thread has the page, or its loader waits for a page of ours, here or in another process."""


class WorkingSetError(BufferPoolError, ValueError):
    """A saved working set is damaged, or of another page size."""


class PageError(BufferPoolError):
    """One page."""


class PageOutOfRange(PageError, IndexError):
    """The space has no page of this number."""


class PageReleased(PageError, ValueError):
    """The array of a ``with`` block that has ended: it looks at no page any more."""


class PageDiscarded(PageError, LookupError):
    """A page of a discardable space was dropped to make room."""


class TooManyPins(PageError, OverflowError):
    """This process pins the page too often."""


class SpaceError(BufferPoolError):
    """One space."""


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


class SpaceBusy(SpaceError):
    """The space has pages that cannot go now."""


class SpacePrivate(SpaceError):
    """The scratch space belongs to one process alone (lifetime="process"), and this is another."""


class TooManySpaces(SpaceError):
    """The pool has no space slot left."""


class StoreError(BufferPoolError):
    """What is behind a space failed; if the system said why, ``__cause__`` is its OSError."""

    page_no: int | None = None
    """The page, or the first one of those that were to be written, if one was meant."""


class PageCorrupt(StoreError):
    """A page's checksum is wrong: a torn write, a damaged disk, or another program's writing."""

    def __init__(self, message: str, space: str, page_no: int, offset: int) -> None:
        super().__init__(message, space, page_no, offset)
        self.space, self.page_no = space, page_no
        self.offset = offset
        """Of the page in its file, in bytes."""

    def __str__(self) -> str:
        return str(self.args[0])


class ShortRead(StoreError):
    """The store gave fewer bytes than a page."""


class ShortWrite(StoreError):
    """The store took fewer bytes than it was given."""


class FileSizeMismatch(StoreError, ValueError):
    """The file is no whole number of pages."""


class NotRegularFile(StoreError, ValueError):
    """What is at the path of a file space is no regular file."""


class FileChanged(StoreError):
    """Somebody else changed the file, and the pool has dirty pages of it: they stay, and the file is not written."""


class FileInUse(StoreError):
    """Another pool has the file open for writing."""


class LoaderFailed(StoreError):
    """A loader raised; ``__cause__`` is its exception, where it ran in this thread.

    Every caller that waited for this load gets LoaderFailed, too. If the load ran in another thread or process, the
    error has the text of the loader's exception, and no ``__cause__``.
    """

    told: bytes | None = None  # the text for the callers that waited for the load


class LoaderReturned(StoreError, TypeError):
    """A loader returned something; it is to fill ``out``, and to return nothing."""


class LoaderOverrun(StoreError):
    """A loader wrote outside its buffer."""
