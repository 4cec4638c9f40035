"""Stores: what holds the pages of a space outside the pool.

A store is any object with the four methods of :class:`Store`. Offsets and
sizes are bytes; a buffer is one-dimensional, uint8, C-contiguous. Stores
written in Python never see the segment: they fill and read private buffers.

The pool also calls their methods in threads of its own: when it writes pages to free frames, in
``pool.flush()`` of several spaces, and in a steward. So a method must not wait for a lock that a thread holds while it
uses pages.
"""

import errno
import fcntl
import inspect
import os
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from enum import IntEnum
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from bufferpool import _core
from bufferpool.errors import (
    BufferPoolError,
    DescriptorLost,
    FileInUse,
    FileSizeMismatch,
    LoaderOverrun,
    NotRegularFile,
    ShortRead,
    ShortWrite,
    StoreError,
    WouldDeadlock,
)
from bufferpool.machine.descriptor import OwnDescriptor, is_segment, opened
from bufferpool.printable import shown
from bufferpool.stores.file_state import FileState, state_of

Buffer = npt.NDArray[np.uint8]


@runtime_checkable
class Store(Protocol):
    """The methods of a store. Any of them may raise; nothing is lost then.

    Their results are checked. They are plain functions, not coroutines: their work is done when they return.
    """

    def read_into(self, offset: int, buffer: Buffer) -> int:
        """Fills ``buffer`` (one page) from ``offset``; returns the number of bytes read."""

    def write_from(self, offset: int, buffer: Buffer) -> int:
        """Writes ``buffer`` (one or more pages, read-only) at ``offset``; returns the number of bytes written."""

    def sync(self) -> None:
        """Returns when everything written so far is durable."""

    def size(self) -> int:
        """The size of the store in bytes: a whole number of pages."""


@runtime_checkable
class ManyStore(Store, Protocol):
    """A store with a method for many pages at once, which is called instead of ``read_into`` where several are absent.

    It runs in the thread that asked for the pages. Without it, that many calls of ``read_into`` run in several threads if
    they take long.
    """

    def read_many_into(self, offsets: list[int], buffers: list[Buffer]) -> list[int]:
        """Fills each buffer (one page) from its offset; returns how many bytes were read of each."""


FileMode = Literal["r", "r+", "w+"]
Cache = Literal["pool", "kernel"]
RWF_DONTCACHE = 0x80  # Linux 6.14
MANY_PAGES = 8  # fewer are written one after the other


class Caching(IntEnum):
    """How a file is read and written, as far as the kernel's page cache is concerned. The core knows the numbers."""

    KERNEL = 0
    """Through the page cache, which keeps a second copy of each page."""
    DIRECT = 1
    """O_DIRECT: past the page cache."""
    UNCACHED = 2
    """RWF_DONTCACHE: through the page cache, which drops a page that was read; written ones as with DROPPED."""
    DROPPED = 3
    """Through the page cache, and POSIX_FADV_DONTNEED afterwards."""


def _set_direct(fd: int, on: bool) -> None:
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    fcntl.fcntl(fd, fcntl.F_SETFL, flags | os.O_DIRECT if on else flags & ~os.O_DIRECT)


def _best_caching(fd: int) -> Caching:
    """The way that leaves no second copy of the pages of this file. A file on tmpfs is in the page cache itself."""
    with suppress(OSError):  # a sandbox refuses fstatfs: then it is tried
        if _core.is_tmpfs(fd):
            return Caching.KERNEL
    with suppress(OSError):
        _set_direct(fd, True)
        return Caching.DIRECT
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)  # nothing would drop what the kernel reads ahead
    with suppress(OSError):
        os.preadv(fd, [bytearray(1)], 0, RWF_DONTCACHE)
        return Caching.UNCACHED
    return Caching.DROPPED


def aligned(n_bytes: int) -> Buffer:
    """A private buffer that a file opened with O_DIRECT can be read into."""
    room = np.empty(n_bytes + 4096, np.uint8)
    return room[-room.ctypes.data % 4096 :][:n_bytes]


def _stat(path: str | os.PathLike[str]) -> os.stat_result | None:
    try:
        return os.stat(path)
    except OSError:  # opening it raises the reason
        return None


def name_of_file(path: str | os.PathLike[str]) -> str:
    """The name of a file without symbolic links. Raises FileNotFoundError for a file without a name, and NotRegularFile.

    The links in /proc/self/fd lead to files that were deleted, or made without a name, but their text is no name of the file:
    it names nothing, or another file.
    """
    # A program may rename another file over it between the two looks, or during the first, which then sees a file without links.
    for _ in range(100):
        real = os.path.realpath(os.fsdecode(path))
        about, named = _stat(path), _stat(real)
        if about is None or (named is not None and os.path.samestat(about, named)):
            return real
        if not stat.S_ISREG(about.st_mode):
            raise NotRegularFile(_irregular(path))
    raise FileNotFoundError(
        errno.ENOENT,
        "the file has no name (it was deleted, or made without one), and each process of the pool opens a file by its name: give it "
        "one (os.link), or a store of your own (open_store)",
        os.fspath(path),
    )


def _irregular(path: str | os.PathLike[str]) -> str:
    return f"{os.fspath(path)} is not a regular file; use a regular file, or a store of your own (open_store)"


class FileStore:
    """A file. Misses are read by the core, straight into the frame."""

    native = True  # the core reads its pages itself
    created = False  # whether this store created the file
    trailer_bytes = 0  # bytes at the end of a page that the pool uses

    def __init__(self, path: str | os.PathLike[str], mode: FileMode, cache: Cache = "kernel") -> None:
        """Opens ``path``; ``mode`` is 'r', 'r+' or 'w+' (created if missing; an existing file is not emptied here).

        ``cache``: "pool" if the kernel's page cache is to keep no copy of the pages.

        Raises FileNotFoundError, PermissionError, NotRegularFile, ValueError, and FileInUse for the segment of a pool.
        """
        flags = {"r": os.O_RDONLY, "r+": os.O_RDWR, "w+": os.O_RDWR}
        if mode not in flags:
            raise ValueError(f"mode must be 'r', 'r+' or 'w+', not {mode!r}")
        self.path = name_of_file(path)
        self.writable = mode != "r"
        directory = os.path.isdir(self.path)
        if not directory:
            self._open(flags[mode] | os.O_CLOEXEC | os.O_NONBLOCK, mode == "w+")
        if directory or not stat.S_ISREG(os.fstat(self.fd).st_mode):
            raise NotRegularFile(_irregular(self.path))
        if self.writable and is_segment(self.fd):
            raise FileInUse(
                f"{self.path} is the segment of a pool: writing to it would destroy the pool, and end its processes by SIGBUS; "
                "name another file, or remove the pool first (bufferpool rm)"
            )
        self.cache: Cache = cache
        self._caching = _best_caching(self.fd) if cache == "pool" else Caching.KERNEL
        self._unsynced: list[tuple[int, int]] = []  # ranges that were written, and that the page cache is to drop

    def _open(self, flags: int, may_create: bool) -> None:
        """Opens the file. If it creates one, it syncs the folder, so that the name is durable."""
        while True:
            try:
                self._descriptor = OwnDescriptor.opened(self.path, flags)
                break
            except BlockingIOError:
                # Another program has a lease on the file (F_SETLEASE: Samba, an NFS server). The kernel has asked it to give the lease
                # up, and an open that may wait waits for that: 45 seconds at most (fs.lease-break-time).
                about = _stat(self.path)
                if not flags & os.O_NONBLOCK or about is None or not stat.S_ISREG(about.st_mode):
                    raise
                flags &= ~os.O_NONBLOCK
            except FileNotFoundError as error:
                if not may_create:
                    text = f"{error.strerror} (mode='w+' makes the file)"
                    raise FileNotFoundError(error.errno, text, self.path) from None
                with suppress(FileExistsError):  # another process created it first
                    self._descriptor = OwnDescriptor.opened(self.path, flags | os.O_CREAT | os.O_EXCL, 0o666)
                    self.created = True
                    break
        if self.created:
            try:
                sync_directory(os.path.dirname(self.path))
            except BaseException:
                self.uncreate()
                raise

    def uncreate(self) -> None:
        """Removes the file if this store created it and it is still empty."""
        if self.created and self.size() == 0:
            with suppress(OSError):
                if os.path.samestat(os.stat(self.path), os.fstat(self.fd)):
                    os.unlink(self.path)

    def is_at_path(self) -> bool:
        """Whether the descriptor still belongs to the file, and the path still leads to it."""
        try:
            about = os.stat(self.path)
        except OSError:
            return False
        return self.has_descriptor() and (about.st_dev, about.st_ino) == self._descriptor.file

    def has_descriptor(self) -> bool:
        """Whether the descriptor still belongs to the file."""
        return self._descriptor.is_ours()

    @property
    def fd(self) -> int:
        """The descriptor, after a check that it still belongs to the file. Raises DescriptorLost."""
        fd = self._descriptor.number
        if fd < 0:
            raise DescriptorLost(
                f"the descriptor of {self.path} was closed by other code, as daemons do that close all inherited "
                "descriptors; open the file again, and do not close descriptors of others"
            )
        return fd

    @property
    def caching(self) -> Caching:
        """How the file is read and written now: the core turns O_DIRECT off where a file system refuses a read."""
        direct = self._caching is Caching.DIRECT and not fcntl.fcntl(self.fd, fcntl.F_GETFL) & os.O_DIRECT
        return Caching.KERNEL if direct else self._caching

    def read_into(self, offset: int, buffer: Buffer) -> int:
        """Fills ``buffer`` from the file at ``offset``; returns the number of bytes read."""
        flags = RWF_DONTCACHE if self._caching is Caching.UNCACHED else 0
        got = os.preadv(self.fd, [buffer], offset, flags)
        if self._caching is Caching.DROPPED:
            os.posix_fadvise(self.fd, offset, len(buffer), os.POSIX_FADV_DONTNEED)
        return got

    def write_from(self, offset: int, buffer: Buffer) -> int:
        """Writes ``buffer`` to the file at ``offset``; returns the number of bytes written."""
        self.write_pages(offset, [buffer])
        return buffer.nbytes

    def write_batch(self, batch: _core.Batch, numbers: npt.NDArray[np.int64], page_size: int) -> npt.NDArray[np.bool_]:
        """Writes the pages of a batch, which have these numbers: neighbours together, several runs at a time, in no order.

        Returns which of them it has written; the caller writes the others, and so learns the reason.
        """
        if not self.native or len(numbers) < MANY_PAGES:
            return np.zeros(len(numbers), np.bool_)
        whole = np.frombuffer(batch.write_to(self.fd), np.bool_)
        if self._caching in (Caching.DROPPED, Caching.UNCACHED):
            starts = np.flatnonzero(np.diff(numbers, prepend=-2) != 1)
            lengths = np.diff(starts, append=len(numbers)) * page_size
            self._unsynced += zip((numbers[starts] * page_size).tolist(), lengths.tolist(), strict=True)
        return whole

    def write_pages(self, offset: int, pages: list[Buffer]) -> None:
        """Writes neighbouring pages with as few calls as the kernel allows."""
        most, rest = os.sysconf("SC_IOV_MAX"), [memoryview(page) for page in pages]
        if self._caching in (Caching.DROPPED, Caching.UNCACHED):
            self._unsynced.append((offset, sum(page.nbytes for page in rest)))
        while rest:
            done = self._write(offset, rest[:most])
            if done == 0:
                raise ShortWrite(f"{self.path} takes no more bytes at {offset}; the pages stay dirty")
            offset += done
            while rest and done >= rest[0].nbytes:
                done -= rest.pop(0).nbytes
            if done:  # usually a full disk: the next write raises the reason
                rest[0] = rest[0][done:]

    def _write(self, offset: int, buffers: list[memoryview]) -> int:
        """One call of the kernel; returns how many bytes it took."""
        try:
            return os.pwritev(self.fd, buffers, offset)
        except OSError as error:
            if error.errno != errno.EINVAL or self._caching is not Caching.DIRECT:
                raise
        # What is left is no whole block of the disk, or the file system refuses direct writes after all.
        _set_direct(self.fd, False)
        try:
            return os.pwritev(self.fd, buffers, offset)
        finally:
            _set_direct(self.fd, True)

    def cut_to_whole_pages(self, before: int, page_size: int) -> None:
        """After a failed write that extended the file from ``before`` bytes: cuts off an incomplete last page."""
        size = self.size()
        if size > before and size % page_size:
            os.ftruncate(self.fd, max(before, size // page_size * page_size))

    def pad_to_whole_pages(self, before: int, page_size: int) -> None:
        """After a flush that was killed while it extended the file from ``before`` bytes: completes the last page with zeros."""
        size = self.size()
        if size > before and size % page_size:
            # This store may be open for reading only.
            with opened(f"/proc/self/fd/{self.fd}", os.O_WRONLY | os.O_CLOEXEC) as file:
                os.ftruncate(file.fileno(), -(-size // page_size) * page_size)

    def sync(self) -> None:
        """Returns when everything written so far is on the disk."""
        os.fdatasync(self.fd)
        for offset, n_bytes in self._unsynced:
            os.posix_fadvise(self.fd, offset, n_bytes, os.POSIX_FADV_DONTNEED)
        self._unsynced = []

    def size(self) -> int:
        """The size of the file in bytes."""
        return os.fstat(self.fd).st_size

    def pages(self, page_size: int, size: int) -> int:
        """How many pages a file of ``size`` bytes has. Raises FileSizeMismatch."""
        if size % page_size:
            raise FileSizeMismatch(
                f"{self.path} has {size} bytes, which is no multiple of the page size {page_size}: "
                f"cut or pad it to {size // page_size * page_size} or {-(-size // page_size) * page_size} bytes, "
                "open it with another page_size= that divides its size, or read it through a store of your own that "
                "pads the last page (pool.open_store; docs/how-to/data_loader.md)"
            )
        return size // page_size

    def fresh_state(self) -> FileState:
        """The present state of the file, taken so that later stores through a shared mapping change its time.

        A store to a mapped page that is dirty already causes no fault, so it does not change the file's time. Once
        write-back of the page has begun, the next store faults. On tmpfs, which has no write-back, such stores are
        never seen.
        """
        _core.begin_writeback(self.fd)  # if it fails, such stores are not seen
        return self.state()

    def state(self) -> FileState:
        """The present state of the file."""
        return state_of(self.fd)


MOST_PAGES = 2**32 - 2  # the most pages of a space
_GUARD = 4096
# The highest bytes of the multiples of 2^64 divided by the golden ratio. (To import numpy.random would take as long as half of numpy.)
_PATTERN = (np.arange(1, _GUARD + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(56)).astype(np.uint8)
_GUARDS = _PATTERN.tobytes()


class GuardedBuffer:
    """A private buffer of one page with guard bytes on both sides, to be filled by a store or a loader."""

    def __init__(self, page_size: int) -> None:
        self._all = np.empty(page_size + 2 * _GUARD, np.uint8)
        self._all[:_GUARD] = self._all[-_GUARD:] = _PATTERN
        self.page = self._all[_GUARD:-_GUARD]
        self.page[:] = 0

    def check(self, who: str) -> None:
        """Raises LoaderOverrun if the guards were written."""
        # Not np.array_equal(): it swallows what a signal's handler raises, and says that they differ.
        if not (self._all[:_GUARD].tobytes() == self._all[-_GUARD:].tobytes() == _GUARDS):
            raise LoaderOverrun(
                f"{who} wrote outside the buffer of one page that it was given; nothing was published: correct the code"
            )


def _refuse(store: Store, method: str, value: Any, wanted: str) -> StoreError:
    """The error for a method of a store that returned ``value``."""
    if inspect.iscoroutine(value):
        value.close()  # avoids the warning about a coroutine that was never awaited
    return StoreError(
        f"{method}() of {type(store).__name__} returned {shown(value, 100)}; it must return {wanted}: correct the store"
    )


@contextmanager
def calling(store: Store, method: str) -> Iterator[None]:
    """Wraps a call of a store's method that writes, so that its errors are not taken for the pool's own.

    A store may use another pool and raise that pool's PoolClosed, or raise SystemExit in a thread of this pool.
    Both become StoreError. In the main thread KeyboardInterrupt and SystemExit come from a signal's handler, and
    are passed on.
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
    """Checks what ``read_into`` or ``write_from`` returned: a number of bytes. Raises StoreError."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not 0 <= value < 2**63:
        raise _refuse(store, method, value, "the number of bytes, as an integer, when they are done (no async def)")
    return int(value)


def sync_store(store: Store) -> None:
    """Calls ``sync`` of a store. Raises StoreError if it returns a value, such as a coroutine that has not run."""
    with calling(store, "sync"):
        done: Any = store.sync()  # type: ignore[func-returns-value]
    if done is not None:
        raise _refuse(store, "sync", done, "None, once all that was written is durable (no async def)")


def store_pages(store: Store, page_size: int) -> int:
    """The number of pages of a store written in Python. Raises StoreError (its cause: what ``size`` raised), FileSizeMismatch."""
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
    """Reads one page of a store written in Python; returns a private buffer, shape (page_size,), uint8.

    Raises StoreError (its cause: what the store raised), ShortRead, LoaderOverrun.
    """
    buffer = GuardedBuffer(page_size)
    try:
        got = store.read_into(page_no * page_size, buffer.page)
    except Exception as error:
        raise _unread(f"page {page_no}", error) from error
    buffer.check(f"read_into of {type(store).__name__}")
    if bytes_done(store, "read_into", got) != page_size:
        raise ShortRead(f"page {page_no}: the store gave {got} of {page_size} bytes; nothing was published")
    return buffer.page


def read_pages(store: ManyStore, page_nos: list[int], page_size: int) -> list[Buffer | StoreError]:
    """Reads pages of a store with ``read_many_into`` into private buffers; an error for a page that it gave too little of.

    Raises what :func:`read_page` raises, for all of them.
    """
    buffers = [GuardedBuffer(page_size) for _ in page_nos]
    what = f"pages {page_nos[0]} to {page_nos[-1]}"
    try:
        got = store.read_many_into([page_no * page_size for page_no in page_nos], [buffer.page for buffer in buffers])
    except Exception as error:
        raise _unread(what, error) from error
    for buffer in buffers:
        buffer.check(f"read_many_into of {type(store).__name__}")
    if not isinstance(got, (list, tuple)) or len(got) != len(page_nos):
        raise _refuse(store, "read_many_into", got, "a list with the bytes read of each page, when they are read")
    out: list[Buffer | StoreError] = []
    for page_no, buffer, n in zip(page_nos, buffers, got, strict=True):
        whole = bytes_done(store, "read_many_into", n) == page_size
        short = f"page {page_no}: the store gave {n} of {page_size} bytes; nothing was published"
        out.append(buffer.page if whole else ShortRead(short))
    return out


def _unread(what: str, error: Exception) -> StoreError:
    """The error of a load; the callers that wait for the load get its text, and none loads the page again."""
    failed = StoreError(f"{what} cannot be read: {shown(error)}; nothing is lost, try again once the store works")
    failed.told = told(failed)
    return failed


def told(error: Exception) -> bytes:
    """The text of an error for the callers that waited for the load, in other processes too."""
    return str(error).encode(errors="backslashreplace").replace(b"\0", b"")


def sync_directory(path: str | os.PathLike[str]) -> None:
    """Syncs a folder, so that the names of files that were created, renamed or removed there are durable."""
    try:
        folder = opened(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except PermissionError:  # the folder may be written but not read: sync everything
        os.sync()
        return
    with folder:
        try:
            os.fsync(folder.fileno())
        except OSError as error:
            if error.errno != errno.EINVAL:  # EINVAL: a file system that cannot sync folders
                raise


def describe(error: OSError) -> str:
    """The text of an I/O error, with a remedy if the disk is full."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "the disk is full: free space there"
    return error.strerror or shown(error)
