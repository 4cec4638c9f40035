"""The segment's file: how it is created, found, checked and removed.

A segment is one file on a tmpfs. It is made without a name (O_TMPFILE), initialised,
and linked under its name in one step. So no process ever sees an incomplete segment,
and two processes that create it at the same time get the same one.
"""

import contextlib
import errno
import fcntl
import mmap
import os
import resource
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from bufferpool import _core
from bufferpool.errors import (
    LayoutMismatch,
    NotTmpfs,
    SegmentError,
    SegmentExists,
    SegmentNotFound,
    SegmentRefused,
    SegmentReplaced,
    SharedMemoryFull,
    caused,
    remedy,
)
from bufferpool.machine.descriptor import epoll, is_segment, opened
from bufferpool.printable import printable

SHM = "/dev/shm"
LEAST_BYTES = 2 << 20  # of a segment: its pages begin at 2 MiB or later
FLOCK = struct.Struct("@hhqqi4x")  # struct flock of 64-bit Linux: type, whence, start, length, pid
OS_PAGE = os.sysconf("SC_PAGESIZE")
EXTENT_BYTES = 256 << 10  # of an extent, if nothing else was asked for
HUGE_BYTES = 2 << 20  # of a huge page, where OS pages have 4 KiB
MIN_FRAMES = 4  # the least frames of a budget


@dataclass(frozen=True)
class Sizes:
    """The requested sizes of a new segment, in bytes. None: the default for the capacity."""

    capacity: int
    page_size: int = 8192
    min_capacity: int | None = None
    max_capacity: int | None = None
    extent_size: int | None = None
    max_clients: int = 256
    max_pages: int = 1 << 27
    room: int | None = None
    huge_pages: bool = False


class Plan(NamedTuple):
    """The checked geometry of a new segment, in frames."""

    page_size: int
    extent_frames: int
    room_frames: int
    """The largest budget that the segment has room for; 0: as much as the tmpfs, or this process, can hold."""
    budget_frames: int
    min_frames: int
    most_frames: int
    max_clients: int
    max_pages: int
    huge_pages: bool


def check_page_size(page_size: int) -> None:
    """Raises ValueError if pages cannot have this size in bytes."""
    least = max(4096, OS_PAGE)
    if page_size < least or page_size & (page_size - 1) or page_size > 1 << 30:
        raise ValueError(f"page_size must be a power of two from {least} to 1 GiB, not {page_size}")


def most_bytes(page_size: int, extent_size: int) -> int:
    """The largest budget, and the largest room, of a segment with pages of this size, in bytes."""
    extent = max(1, extent_size // page_size)
    return _core.FRAMES_LIMIT // extent * extent * page_size


def extent_bytes(page_size: int, extent_size: int | None, huge_pages: bool) -> int:
    """The bytes of an extent. Raises TypeError or ValueError."""
    if not isinstance(huge_pages, bool):
        raise TypeError(f"huge_pages must be True or False, not {type(huge_pages).__name__}")
    if not huge_pages:
        return EXTENT_BYTES if extent_size is None else extent_size
    if extent_size is not None and extent_size != max(HUGE_BYTES, page_size):
        raise ValueError(
            f"with huge_pages=True an extent is a huge page of {HUGE_BYTES} bytes, or a larger page; omit extent_size"
        )
    return max(HUGE_BYTES, page_size)


def plan(asked: Sizes) -> Plan:
    """Checks sizes and turns them into frames. Raises ValueError or TypeError."""
    capacity, page_size = asked.capacity, asked.page_size
    max_clients, max_pages = asked.max_clients, asked.max_pages
    for name, value in (("max_clients", max_clients), ("max_pages", max_pages)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name} must be an integer, not {type(value).__name__}")
    check_page_size(page_size)
    if capacity < MIN_FRAMES * page_size:
        raise ValueError(
            f"capacity must be at least {MIN_FRAMES} pages ({MIN_FRAMES * page_size} bytes), not {capacity} bytes"
        )
    most = capacity if asked.max_capacity is None else asked.max_capacity
    if most < capacity:
        raise ValueError(f"max_capacity ({most} bytes) must not be below capacity ({capacity} bytes)")
    extent_size = extent_bytes(page_size, asked.extent_size, asked.huge_pages)
    least_bytes = max(MIN_FRAMES * page_size, capacity // 8) if asked.min_capacity is None else asked.min_capacity
    if not MIN_FRAMES * page_size <= least_bytes <= capacity:
        raise ValueError(
            f"min_capacity must be {MIN_FRAMES * page_size} (four pages) to {capacity} bytes (the capacity), not {least_bytes}"
        )
    if extent_size % OS_PAGE or extent_size < OS_PAGE:
        raise ValueError(f"extent_size must be a multiple of {OS_PAGE} bytes, not {extent_size}")
    if not 1 <= max_clients <= _core.CLIENTS_LIMIT:
        raise ValueError(f"max_clients must be 1 to {_core.CLIENTS_LIMIT}, not {max_clients}")
    if not 1 <= max_pages < 2**32 - 1:
        raise ValueError(f"max_pages must be 1 to {2**32 - 2}, not {max_pages}")
    extent_frames = max(1, extent_size // page_size)
    if asked.room is not None and asked.room < most:
        raise ValueError(f"room ({asked.room} bytes) must not be below max_capacity ({most} bytes)")

    def whole_extents(size: int, what: str) -> int:
        frames = -(-size // (page_size * extent_frames)) * extent_frames
        if frames > _core.FRAMES_LIMIT:
            raise ValueError(
                f"{what} must be at most {most_bytes(page_size, extent_size)} bytes with pages of {page_size} bytes, because "
                f"a pool has at most {_core.FRAMES_LIMIT} frames; use a larger page_size"
            )
        return frames

    return Plan(
        page_size,
        extent_frames,
        0 if asked.room is None else whole_extents(asked.room, "room"),
        capacity // page_size,
        least_bytes // page_size,
        whole_extents(most, "capacity"),
        max_clients,
        max_pages,
        asked.huge_pages,
    )


def _room_for(wanted: Plan, fd: int) -> int:
    """Frames to make room for: as many as the tmpfs of ``fd`` holds, or as this process may map. Room costs no memory."""
    if wanted.room_frames:
        return wanted.room_frames
    space = os.fstatvfs(fd)
    size = space.f_blocks * space.f_frsize or os.sysconf("SC_PHYS_PAGES") * OS_PAGE
    frames = min(size // wanted.page_size, _core.FRAMES_LIMIT)
    while frames > wanted.most_frames:
        frames = frames // wanted.extent_frames * wanted.extent_frames
        if _may_map(wanted, frames):
            return frames
        frames //= 2
    return wanted.most_frames


def _may_map(plan: Plan, room_frames: int) -> bool:
    """Whether the limits of this process allow a file of that length (ulimit -f), and two mappings of it that leave three
    quarters of the address space free (ulimit -v, -l)."""
    size, data = _core.segment_bytes(plan.page_size, plan.extent_frames, room_frames, plan.max_clients, plan.max_pages)
    most = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    if most != resource.RLIM_INFINITY and size > most:
        return False
    try:
        mmap.mmap(-1, 4 * (size + data), mmap.MAP_PRIVATE, 0).close()
    except (OSError, OverflowError):
        return False
    return True


def check_permissions(permissions: int, what: str) -> None:
    """Raises TypeError or ValueError unless ``permissions`` let the file's owner read and write."""
    if isinstance(permissions, bool) or not isinstance(permissions, int):
        raise TypeError(f"{what} must be an integer such as 0o600, not {type(permissions).__name__}")
    if not 0 <= permissions <= 0o777 or permissions & 0o600 != 0o600:
        raise ValueError(f"{what} must be 0o600 to 0o777, with read and write for the owner, not {permissions:#o}")


def check_user(uid: int | None) -> None:
    """Raises TypeError or ValueError unless ``uid`` may be the number of a user, or is None."""
    if uid is not None and (isinstance(uid, bool) or not isinstance(uid, int)):
        raise TypeError(f"trusted_uid must be the number of a user, not {type(uid).__name__}")
    if uid is not None and not 0 <= uid < 2**32 - 1:
        raise ValueError(f"trusted_uid must be the number of a user, not {uid}")


def path_of(name: str, directory: str | os.PathLike[str] | None = None) -> str:
    """The path of the segment ``name``. Raises TypeError, ValueError."""
    if not isinstance(name, str):
        raise TypeError(f"a pool's name must be a string, not {type(name).__name__}")
    if not name or "/" in name or "\0" in name or name in (".", "..") or len(os.fsencode(name)) > 200:
        raise ValueError(
            f"a pool's name must be 1 to 200 bytes without '/' (it is a file name in {SHM}), not {name!r}; "
            "directory= (--directory) places it elsewhere"
        )
    return os.path.join(os.fspath(directory) if directory is not None else SHM, name)


def size_text(page_size: int) -> str:
    """A page size as in the name of its segment: 64KiB."""
    for unit, letter in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if page_size % unit == 0:
            return f"{page_size // unit}{letter}"
    return f"{page_size}B"


def sizes_in(bits: int) -> list[int]:
    """The page sizes for which a word has bits, as ``Segment.page_sizes`` gives it."""
    return [1 << n for n in range(bits.bit_length()) if bits >> n & 1]


def path_of_size(path: str, page_size: int) -> str:
    """The path of the segment of another page size of the pool ``path``: NAME@64KiB."""
    return f"{path}@{size_text(page_size)}"


def home_of_size(path: str) -> str:
    """The path of the pool of which the segment ``path`` is another page size."""
    return path.rpartition("@")[0]


def home_uuid_of(path: str) -> bytes:
    """The uuid of the pool of which the segment ``path`` is another page size; b"" if it is a pool of its own. Raises OSError."""
    home = _sixteen_bytes(path, _core.fields()["Header.home"][0])
    return home if any(home) else b""


def other_sizes(path: str, uuid: bytes | None = None) -> list[str]:
    """The paths of the segments of other page sizes of the pool ``path``, which may be damaged; ``uuid``: of the pool, if its name is gone."""
    found = []
    with contextlib.suppress(OSError):
        uuid = _uuid_of(path) if uuid is None else uuid
        for bit in range(12, 31):
            other = path_of_size(path, 1 << bit)
            with contextlib.suppress(OSError):
                if home_uuid_of(other) == uuid:
                    found.append(other)
    return found


def _uuid_of(path: str) -> bytes:
    return _sixteen_bytes(path, _core.UUID_AT)


def _sixteen_bytes(path: str, at: int) -> bytes:
    with opened(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC) as file:
        return os.pread(file.fileno(), 16, at)


def is_part(path: str) -> bool:
    """Whether the segment ``path`` is another page size of a pool that exists."""
    with contextlib.suppress(OSError):
        return bool(home_uuid_of(path)) and path in other_sizes(home_of_size(path))
    return False


def refuse_part(path: str) -> None:
    """Raises SegmentRefused if the segment ``path`` is another page size of a pool that exists."""
    if is_part(path):
        raise SegmentRefused(
            f"{os.path.basename(path)!r} is a page size of the pool {os.path.basename(home_of_size(path))!r}, and is removed with it; "
            "pool.remove_page_size() removes it alone, when it has no space"
        )


def look_at(path: str, owner: int | None = None) -> dict[str, Any]:
    """The geometry of a segment, to which this process does not attach. Raises as :func:`open_trusted` does, and SegmentCorrupt."""
    with open_trusted(path, owner) as file, named(path):
        return _core.geometry(file.fileno())


@contextlib.contextmanager
def named(path: str) -> Iterator[None]:
    """Puts the segment's path before the message of an error that the core raises, which knows only the descriptor."""
    try:
        yield
    except SegmentError as error:
        error.args = (f"{printable(path)}: {error}",)
        raise


def _refuse_unless_tmpfs(fd: int, path: str) -> None:
    try:
        is_tmpfs = _core.is_tmpfs(fd)
    except OSError as error:
        raise failed(f"{path} cannot be examined (fstatfs)", error, os.path.dirname(path)) from error
    if not is_tmpfs:
        raise NotTmpfs(
            f"{path} is not on a tmpfs: giving memory back there would cut holes into a file on a disk; "
            f"omit directory= (the pool is then in {SHM}), or name the mount point of a tmpfs"
        )


def _refuse_unless_huge(directory: str) -> None:
    """Raises SegmentError unless the kernel makes huge pages of memory in the directory. That it has none free now is no error."""
    with _nameless(directory, 0o600) as file:
        os.ftruncate(file.fileno(), HUGE_BYTES)
        try:
            _core.try_huge_page(file.fileno())
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EBUSY, errno.ENOMEM):
                raise failed(
                    f"{directory} gives no huge pages (madvise MADV_COLLAPSE needs Linux 6.1, x86-64 or arm64 with OS pages of "
                    "4 KiB, and shmem_enabled other than deny); omit huge_pages=",
                    error,
                    directory,
                ) from error


def create(path: str, wanted: Plan, mode: int = 0o600, home: bytes = b"") -> os.stat_result:
    """Makes the segment ``path``; a process that attaches afterwards finds it complete. Returns what fstat says of it.

    ``home``: the uuid of the pool of which it is another page size.

    Raises SegmentExists, NotTmpfs, SharedMemoryFull, SegmentRefused.
    """
    directory = os.path.dirname(path)
    with _nameless(directory, mode) as file:
        fd = file.fileno()
        _refuse_unless_tmpfs(fd, path)
        os.fchmod(fd, mode)
        if wanted.huge_pages:
            _refuse_unless_huge(directory)
        try:
            _core.create(fd, os.urandom(16), wanted._replace(room_frames=_room_for(wanted, fd)), home)
        except SharedMemoryFull as error:
            raise no_memory(directory, error.errno) from error
        try:
            # A directory descriptor makes Python call linkat(), which follows the
            # link of /proc to the nameless file; link() would not.
            os.link(f"/proc/self/fd/{fd}", path, src_dir_fd=fd, follow_symlinks=True)
        except FileExistsError as error:
            raise caused(
                SegmentExists(f"{path} exists; attach to it, use open(), or remove it (bufferpool rm)"), error
            ) from None
        except OSError as error:
            raise failed(f"{path} cannot be given its name", error, directory) from error
        return os.fstat(fd)


def uncreate(path: str, made: os.stat_result) -> None:
    """Removes the name of a segment that this process has made and cannot attach to, unless another process has attached."""
    # What kept this process from attaching is raised by the caller.
    with contextlib.suppress(OSError), opened(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC) as file:
        fd = file.fileno()
        if not is_locked(fd) and os.path.samestat(os.fstat(fd), made):
            os.unlink(path)


def is_locked(fd: int) -> bool:
    """Whether another description of the file has a lock on a byte of it, as every living client of a segment has. It changes nothing."""
    asked = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
    return bool(FLOCK.unpack(asked)[0] != fcntl.F_UNLCK)


def _nameless(directory: str, mode: int) -> epoll:
    """Makes a file without a name; returns what closes it. Raises SegmentNotFound, SegmentRefused, SharedMemoryFull, NotTmpfs."""
    try:
        return opened(directory, os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, mode)
    except FileNotFoundError as error:
        raise caused(
            SegmentNotFound(f"the directory {directory} does not exist; create it on a tmpfs first"), error
        ) from None
    except PermissionError as error:
        raise caused(SegmentRefused(f"you may not create files in {directory}: {error.strerror}"), error) from None
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOTDIR):
            raise caused(
                NotTmpfs(f"{directory} cannot hold a segment ({error.strerror}); name a directory on a tmpfs"), error
            ) from error
        raise failed(f"no file can be made in {directory}", error, directory) from error


def failed(what: str, error: OSError, directory: str) -> SegmentError:
    """The error for a failed system call on the segment or its directory."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return no_memory(directory, error.errno)
    return caused(SegmentError(f"{what}: {error.strerror}{remedy(error.errno)}"), error)


def no_memory(directory: str, error: int | None) -> SegmentError:
    """The error for memory that the kernel did not give to the segment; ``error``: the errno."""
    space = os.statvfs(directory)
    if error == errno.ENOMEM:
        text = "the memory cgroup of this process has no memory left for the segment: raise its limit, or free some"
    elif error not in (None, errno.ENOSPC, errno.EDQUOT):
        text = f"the kernel gives no memory for the segment (fallocate): {os.strerror(error)}{remedy(error)}"
        return caused(SegmentError(text), error)
    elif space.f_files and not space.f_favail:
        text = (
            f"{directory} has no inode left (all {space.f_files} are taken; it has room for {space.f_bavail * space.f_frsize} "
            "bytes): remove files there, or mount -o remount,nr_inodes=…"
        )
    else:
        text = (
            f"{directory} is full ({space.f_bavail * space.f_frsize} of {space.f_blocks * space.f_frsize} bytes free): "
            "remove pools that are not needed (bufferpool ls, bufferpool rm), or enlarge it "
            "(mount -o remount,size=…; containers start with 64 MiB: docker run --shm-size=…)"
        )
    return caused(SharedMemoryFull(text), errno.ENOSPC if error is None else error)


def open_trusted(path: str, owner: int | None = None) -> epoll:
    """Opens an existing segment for reading and writing; returns what closes it.

    It follows no symbolic link, and opens only a regular file on a tmpfs that
    belongs to ``owner`` (a uid; default: the effective user). Raises SegmentNotFound,
    SegmentRefused, NotTmpfs.
    """
    file = open_regular(path, os.O_RDWR)
    expected = os.geteuid() if owner is None else owner
    found = os.fstat(file.fileno()).st_uid
    if found != expected:
        file.close()  # the traceback keeps it
        raise SegmentRefused(
            f"{path} belongs to user {found}, not {expected}; act as that user, or, if you trust them, pass trusted_uid={found}"
        )
    return file


def open_regular(path: str, access: int) -> epoll:
    """Opens a regular file of any owner on a tmpfs, through no symbolic link; ``access`` as in os.open.

    Raises SegmentNotFound, SegmentRefused, NotTmpfs.
    """
    try:
        file = opened(path, access | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise caused(
            SegmentNotFound(f"there is no pool {path}; bufferpool ls lists the pools, Pool.open() creates one"),
            error,
        ) from None
    except PermissionError as error:
        raise caused(
            SegmentRefused(
                f"{path} belongs to a user who has not given you access (its permissions): {error.strerror}"
            ),
            error,
        ) from None
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise caused(
                SegmentRefused(f"{path} is not a regular file; another user may have put it there: remove it"), error
            ) from None
        raise failed(f"{path} cannot be opened", error, os.path.dirname(path)) from error
    try:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise SegmentRefused(f"{path} is not a regular file; another user may have put it there: remove it")
        _refuse_unless_tmpfs(file.fileno(), path)
    except BaseException:
        file.close()  # the traceback keeps it
        raise
    return file


def refuse_another(path: str, uuid: bytes, owner: int | None) -> None:
    """Raises SegmentReplaced unless ``path`` is the segment that has this uuid."""
    with open_trusted(path, owner) as file:
        fd = file.fileno()
        found = os.pread(fd, 16, _core.UUID_AT)
    if found != uuid:
        raise SegmentReplaced(f"{path} is not this pool any more; this pool was removed and another one created")


def unlink(path: str) -> None:
    """Removes the name. Attached processes keep their attachment."""
    try:
        os.unlink(path)
    except FileNotFoundError as error:
        raise caused(SegmentNotFound(f"there is no pool {path}"), error) from None
    except PermissionError as error:
        raise caused(SegmentRefused(f"you may not remove {path}: {error.strerror}"), error) from None
    except OSError as error:
        raise failed(f"{path} cannot be removed", error, os.path.dirname(path)) from error


def mark_may_lose(path: str) -> None:
    """Marks a segment that is about to lose its name: the processes that are attached need not save its dirty pages."""
    at, _ = _core.fields()["Header.unlinked"]
    mark = _core.MAY_LOSE.to_bytes(8, "little")
    with contextlib.suppress(OSError, SegmentError), opened(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC) as file:
        fd = file.fileno()
        _core.geometry(fd)  # a damaged one has no pages that could be saved
        # A byte of its own, because attached processes may write the others.
        os.pwrite(fd, b"\1", at + mark.index(b"\1"))


def unlink_all(path: str) -> None:
    """Removes the name of a pool, and those of its other page sizes. Raises as :func:`unlink` does, and SegmentRefused."""
    refuse_part(path)
    uuid = b""
    with contextlib.suppress(OSError):  # unlink() says what is wrong
        uuid = _uuid_of(path)
    unlink(path)  # first: a process that makes a page size meanwhile looks for this name when it has made it
    for other in other_sizes(path, uuid):
        with contextlib.suppress(SegmentNotFound):
            unlink(other)


@dataclass(frozen=True)
class Found:
    """A file with the magic number of a segment, sound or not."""

    path: str
    kernel_bytes: int
    owner: int
    trouble: str  # why it cannot be used; "" for a sound segment
    other_layout: bool = False  # whether another version of the library made it

    @property
    def condition(self) -> str:
        """The trouble in a few words; "" for a sound segment."""
        return "" if not self.trouble else "of another layout version" if self.other_layout else "damaged"


def closed_to_us(directory: str | os.PathLike[str] | None = None) -> list[str]:
    """The names of files that may be segments, because they are large enough, and that this user may not read.

    Raises SegmentError.
    """
    names = []
    for entry in _entries(directory):
        with contextlib.suppress(OSError):  # removed since it was listed
            about = entry.lstat()
            if stat.S_ISREG(about.st_mode) and about.st_size >= LEAST_BYTES and not os.access(entry, os.R_OK):
                names.append(entry.name)
    return names


def _entries(directory: str | os.PathLike[str] | None) -> list[Path]:
    where = Path(directory if directory is not None else SHM)
    try:
        return sorted(where.iterdir())
    except OSError as error:
        kind = SegmentNotFound if isinstance(error, FileNotFoundError) else SegmentError
        text = f"no pools in {where}: {error.strerror}; name the mount point of a tmpfs"
        raise caused(kind(text), error) from error


def find(directory: str | os.PathLike[str] | None = None) -> Iterator[Found]:
    """The segments in a directory. It reads them through descriptors, and maps nothing. Raises SegmentError."""
    for entry in _entries(directory):
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        with contextlib.suppress(OSError), opened(entry, flags) as file:
            fd = file.fileno()
            about = os.fstat(fd)
            if not stat.S_ISREG(about.st_mode) or not is_segment(fd):
                continue
            trouble, other_layout = "", False
            try:
                _core.geometry(fd)
            except SegmentError as error:
                trouble, other_layout = str(error), isinstance(error, LayoutMismatch)
            yield Found(str(entry), about.st_blocks * 512, about.st_uid, trouble, other_layout)


def must_find(path: str) -> Found:
    """The segment ``path``, sound or not. Raises SegmentNotFound; SegmentRefused if it is no segment."""
    found = next((one for one in find(os.path.dirname(path)) if one.path == path), None)
    if found is not None:
        return found
    if os.path.lexists(path):
        raise SegmentRefused(f"{path} is no pool, or you may not read it; to delete the file anyway, use rm {path}")
    raise SegmentNotFound(f"there is no pool {path}; bufferpool ls shows what is there")
