"""Stores: what is behind the pages of a space.

A store is any object with the four methods of :class:`Store`. Offsets and
sizes are bytes; a buffer is one-dimensional, uint8, C-contiguous. Stores
written in Python never see the segment: they fill and read private buffers.

Their methods are called in threads of the pool's own too: where pages are written to make room, by
``pool.flush()`` of several spaces, and by a steward. So a store takes no lock that a thread holds while it uses pages.
"""

import errno
import inspect
import os
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from bufferpool import _core
from bufferpool.errors import (
    BufferPoolError,
    DescriptorLost,
    FileSizeMismatch,
    LoaderOverrun,
    NotRegularFile,
    ShortRead,
    ShortWrite,
    StoreError,
    WouldDeadlock,
)
from bufferpool.machine.descriptor import OwnDescriptor
from bufferpool.printable import shown
from bufferpool.stores.file_state import FileState, state_of

Buffer = npt.NDArray[np.uint8]


@runtime_checkable
class Store(Protocol):
    """What a space needs of its store. Any method may raise; nothing is lost then.

    What the methods return is checked. They are plain functions, and no coroutines: their work is done when they return.
    """

    def read_into(self, offset: int, buffer: Buffer) -> int:
        """Fills ``buffer`` from ``offset``; returns the number of bytes read."""

    def write_from(self, offset: int, buffer: Buffer) -> int:
        """Writes ``buffer`` (one or more pages, read-only) at ``offset``; returns the number of bytes written."""

    def sync(self) -> None:
        """Returns when everything written so far is durable."""

    def size(self) -> int:
        """The size of the store in bytes: a whole number of pages."""


class FileStore:
    """A file. Misses are read by the core, straight into the frame."""

    native = True  # its pages need no look from Python
    created = False  # by this store
    trailer_bytes = 0  # at the end of a page, which are not the engine's

    def __init__(self, path: str | os.PathLike[str], mode: str) -> None:
        """Opens ``path``; ``mode`` is 'r', 'r+' or 'w+' (created, if there is none; it is not emptied yet).

        Raises FileNotFoundError, PermissionError, NotRegularFile, ValueError.
        """
        flags = {"r": os.O_RDONLY, "r+": os.O_RDWR, "w+": os.O_RDWR}
        if mode not in flags:
            raise ValueError(f"mode must be 'r', 'r+' or 'w+', not {mode!r}")
        self.path = os.path.realpath(path)
        self.writable = mode != "r"
        directory = os.path.isdir(self.path)
        if not directory:
            self._open(flags[mode] | os.O_CLOEXEC | os.O_NONBLOCK, mode == "w+")
        if directory or not stat.S_ISREG(os.fstat(self.fd).st_mode):
            raise NotRegularFile(
                f"{self.path} is not a regular file; pages live in regular files (or in a store: open_store)"
            )

    def _open(self, flags: int, may_create: bool) -> None:
        """Opens the file; one that it creates has its name for good."""
        fd = -1
        while fd < 0:
            try:
                fd = os.open(self.path, flags)
            except FileNotFoundError:
                if not may_create:
                    raise
                with suppress(FileExistsError):  # somebody else was faster
                    fd = os.open(self.path, flags | os.O_CREAT | os.O_EXCL, 0o666)
                    self.created = True
        self._descriptor = OwnDescriptor(fd)
        if self.created:
            try:
                sync_directory(os.path.dirname(self.path))
            except BaseException:
                self.uncreate()
                raise

    def uncreate(self) -> None:
        """Removes a file that this store has created, if nobody has written to it."""
        if self.created and self.size() == 0:
            with suppress(OSError):
                if os.path.samestat(os.stat(self.path), os.fstat(self.fd)):
                    os.unlink(self.path)

    def is_at_path(self) -> bool:
        """Whether the descriptor is the file's still, and the path leads to that file."""
        try:
            about = os.stat(self.path)
        except OSError:
            return False
        return self.has_descriptor() and (about.st_dev, about.st_ino) == self._descriptor.file

    def has_descriptor(self) -> bool:
        """Whether the descriptor is the file's still."""
        return self._descriptor.is_ours()

    @property
    def fd(self) -> int:
        """The descriptor, if it is the file's still: its number may be a stranger's by now. Raises DescriptorLost."""
        fd = self._descriptor.number
        if fd < 0:
            raise DescriptorLost(
                f"the descriptor of {self.path} was closed behind the pool's back, as daemons do that close all that they "
                "inherit; open the file again, and keep descriptors open that are not your own"
            )
        return fd

    def read_into(self, offset: int, buffer: Buffer) -> int:
        return os.preadv(self.fd, [buffer], offset)

    def write_from(self, offset: int, buffer: Buffer) -> int:
        return os.pwrite(self.fd, buffer, offset)

    def write_pages(self, offset: int, pages: list[Buffer]) -> None:
        """Writes neighbouring pages with as few calls as the kernel allows."""
        most = os.sysconf("SC_IOV_MAX")
        while pages:
            batch = pages[:most]
            want = sum(page.nbytes for page in batch)
            done = os.pwritev(self.fd, batch, offset)
            if done < want:  # a full disk, mostly: the next write says why
                flat = np.concatenate(batch)[done:]
                while flat.size:
                    n = os.pwrite(self.fd, flat, offset + done)
                    if n == 0:
                        raise ShortWrite(f"{self.path} took {done} of {want} bytes; the pages stay dirty")
                    flat, done = flat[n:], done + n
            offset += want
            pages = pages[most:]

    def cut_to_whole_pages(self, before: int, page_size: int) -> None:
        """After a write that failed: takes away the part of a page by which it has extended the file from ``before`` bytes."""
        size = self.size()
        if size > before and size % page_size:
            os.ftruncate(self.fd, max(before, size // page_size * page_size))

    def pad_to_whole_pages(self, before: int, page_size: int) -> None:
        """After a flush that was killed while it extended the file from ``before`` bytes: completes the last page with zeros."""
        size = self.size()
        if size > before and size % page_size:
            fd = os.open(
                f"/proc/self/fd/{self.fd}", os.O_WRONLY | os.O_CLOEXEC
            )  # this one may be open for reading only
            try:
                os.ftruncate(fd, -(-size // page_size) * page_size)
            finally:
                os.close(fd)

    def sync(self) -> None:
        os.fdatasync(self.fd)

    def size(self) -> int:
        return os.fstat(self.fd).st_size

    def pages(self, page_size: int, size: int) -> int:
        """How many pages a file of ``size`` bytes has. Raises FileSizeMismatch."""
        if size % page_size:
            raise FileSizeMismatch(
                f"{self.path} has {size} bytes, which is no multiple of the page size {page_size}: "
                f"cut or pad it to {size // page_size * page_size} or {-(-size // page_size) * page_size} bytes, "
                "or use a pool of another page size"
            )
        return size // page_size

    def fresh_state(self) -> FileState:
        """The file as it is now, taken so that stores through a shared mapping from now on give it another time.

        A page that is mapped and dirty can be stored to without a fault, and no time shows it; one that is being
        written back cannot. On tmpfs, which writes nothing back, no store through a mapping shows.
        """
        _core.begin_writeback(self.fd)  # where it cannot, such stores are not seen
        return self.state()

    def state(self) -> FileState:
        """The file as it is now."""
        return state_of(self.fd)


MOST_PAGES = 2**32 - 2  # of a space
_GUARD = 4096
_PATTERN = np.random.default_rng(0x6275666665720001).integers(0, 256, _GUARD, dtype=np.uint8)


class GuardedBuffer:
    """A private page with guard bytes on both sides, for code that we do not know."""

    def __init__(self, page_size: int) -> None:
        self._all = np.empty(page_size + 2 * _GUARD, np.uint8)
        self._all[:_GUARD] = self._all[-_GUARD:] = _PATTERN
        self.page = self._all[_GUARD:-_GUARD]
        self.page[:] = 0

    def check(self, who: str) -> None:
        """Raises LoaderOverrun if the guards were written."""
        if not (np.array_equal(self._all[:_GUARD], _PATTERN) and np.array_equal(self._all[-_GUARD:], _PATTERN)):
            raise LoaderOverrun(
                f"{who} wrote outside the buffer of one page that it was given; nothing was published: correct it"
            )


def _refuse(store: Store, method: str, value: Any, wanted: str) -> StoreError:
    """The error for a method of a store that returned ``value``."""
    if inspect.iscoroutine(value):
        value.close()  # it never ran, and nobody will run it
    return StoreError(
        f"{method}() of {type(store).__name__} returned {shown(value, 100)}; it must return {wanted}: correct the store"
    )


@contextmanager
def calling(store: Store, method: str) -> Iterator[None]:
    """Around a call of a store's method that writes: what it raises is the store's, and is not taken for the pool's own.

    A store may use another pool, and raise that pool's PoolClosed; or end its thread (SystemExit), which may be a
    thread of the pool's. Both are StoreError. In the main thread KeyboardInterrupt and SystemExit come
    from a signal's handler, and go on.
    """
    try:
        yield
    except (StoreError, WouldDeadlock):
        raise
    except BaseException as error:
        ends = not isinstance(error, Exception)
        if threading.get_ident() == threading.main_thread().ident if ends else not isinstance(error, BufferPoolError):
            raise
        raise StoreError(
            f"{method}() of {type(store).__name__} raised {shown(error)}; its pages stay dirty, flush again"
        ) from error


def bytes_done(store: Store, method: str, value: Any) -> int:
    """The number of bytes that ``read_into`` or ``write_from`` returned. Raises StoreError."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not 0 <= value < 2**63:
        raise _refuse(store, method, value, "the number of bytes, as an integer, when they are done (no async def)")
    return int(value)


def sync_store(store: Store) -> None:
    """Calls ``sync`` of a store. Raises StoreError if it returns something: then it may have synced nothing."""
    with calling(store, "sync"):
        done: Any = store.sync()  # type: ignore[func-returns-value]
    if done is not None:
        raise _refuse(store, "sync", done, "None, once all that was written is durable (no async def)")


def store_pages(store: Store, page_size: int) -> int:
    """How many pages a store written in Python has. Raises StoreError (its cause is what ``size`` raised), FileSizeMismatch."""
    try:
        size: Any = store.size()
    except Exception as error:
        raise StoreError(
            f"size() of {type(store).__name__} failed: {shown(error)}; nothing was opened, try again once the store works"
        ) from error
    most = min(2**63 - 1, MOST_PAGES * page_size)
    if isinstance(size, bool) or not isinstance(size, (int, np.integer)) or not 0 <= size <= most:
        raise _refuse(
            store, "size", size, f"the bytes of the store, as an integer of 0 to {most}: {MOST_PAGES} pages at most"
        )
    if size % page_size:
        raise FileSizeMismatch(
            f"size() of {type(store).__name__} returned {size} bytes, which is no multiple of the page size {page_size}"
        )
    return int(size) // page_size


def read_page(store: Store, page_no: int, page_size: int) -> Buffer:
    """One page of a store written in Python, in a private buffer.

    Raises StoreError (its cause is what the store raised), ShortRead, LoaderOverrun.
    """
    buffer = GuardedBuffer(page_size)
    try:
        got = store.read_into(page_no * page_size, buffer.page)
    except Exception as error:
        raise StoreError(
            f"page {page_no} cannot be read: {shown(error)}; nothing is lost, try again once the store works"
        ) from error
    buffer.check(f"read_into of {type(store).__name__}")
    if bytes_done(store, "read_into", got) != page_size:
        raise ShortRead(f"page {page_no}: the store gave {got} of {page_size} bytes; nothing was published")
    return buffer.page


def sync_directory(path: str | os.PathLike[str]) -> None:
    """Makes the names in a folder durable: those of files that were created, renamed or removed there."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except PermissionError:  # a folder that may be written and not read: the call for everything is left
        os.sync()
        return
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system without folders that can be synced
            raise
    finally:
        os.close(fd)


def describe(error: OSError) -> str:
    """What an I/O error means for somebody who has to act on it."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "the disk is full: free space there"
    return error.strerror or shown(error)
