"""``bufferpool doctor``: checks whether this machine has what a pool needs. Every finding names a remedy."""

import contextlib
import ctypes
import errno
import fcntl
import glob
import mmap
import os
import platform
import re
import resource
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from bufferpool import _core
from bufferpool.client import segment_file
from bufferpool.errors import SegmentError
from bufferpool.machine.auto_size import LEAST_BYTES, auto, read_memory
from bufferpool.machine.descriptor import opened
from bufferpool.machine.mounts import KNOB, are_huge, mount_of, shmem_enabled
from bufferpool.machine.pressure import SystemSource, cgroup_limit, psi_file
from bufferpool.observer import Observer, unsaved_pages
from bufferpool.stores.base import RWF_DONTCACHE
from bufferpool.units import counted, format_size

_CLOCK = Path("/sys/devices/system/clocksource/clocksource0/current_clocksource")
_SLOW_CLOCKS = frozenset(("acpi_pm", "hpet", "jiffies", "pit", "refined-jiffies"))  # the vDSO cannot read them
_SMALL_SHM = 64 << 20  # what Docker and Podman give a container
_EXTENT = 256 << 10
_PROBE = 8 * _EXTENT
_PUNCH = 1 | 2  # FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE


class Level(StrEnum):
    """The severity of a finding."""

    OK = "OK"
    WARN = "WARN"
    FAIL = "FAIL"


@dataclass(frozen=True)
class Finding:
    """One result of the doctor."""

    level: Level
    what: str
    text: str
    remedy: str = ""


def in_use(path: str) -> bool:
    """Whether a living process is attached to a pool, sound or damaged, or to another page size of it.

    Every client holds a lock on a byte of the segment's file; the kernel drops it when
    the client dies. This changes nothing. Raises OSError.
    """
    return any(map(_has_client, (path, *segment_file.other_sizes(path))))


def _has_client(path: str) -> bool:
    with opened(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC) as file:
        return segment_file.is_locked(file.fileno())


# ---- the machine -------------------------------------------------------------------


def _kernel(directory: str) -> Iterator[Finding]:
    release, machine = platform.release(), platform.machine()
    known = machine in ("x86_64", "aarch64")
    yield Finding(
        Level.OK if known else Level.WARN,
        "kernel",
        f"Linux {release} on {machine}",
        "" if known else "bufferpool is tested on x86-64 and arm64 only; run its tests here first",
    )
    yield _huge_pages(directory, release)


def _huge_pages(directory: str, release: str) -> Finding:
    """Whether the tmpfs has huge pages: some kernels return wrong data after MADV_REMOVE of a part of one, others
    give its memory back late.
    """
    word = shmem_enabled()
    mounted = mount_of(directory).option("huge", "never")
    text = f"shmem_enabled is {word}, {directory} is mounted huge={mounted}"
    if not are_huge(word, mounted):
        return Finding(Level.OK, "huge pages", f"{text}: none in a pool")
    numbers = re.match(r"(\d+)\.(\d+)", release)
    version = (int(numbers[1]), int(numbers[2])) if numbers else (0, 0)
    affected = (6, 14) <= version < (7, 0) or "7.0.0-rc1" in release or "7.0-rc1" in release
    remedy = f"mount -o remount,huge=never {directory}" + (
        f"; echo never > {KNOB}" if word == "force" else f", or: echo deny > {KNOB}"
    )
    if affected:
        text += "; kernels 6.14 to 7.0-rc1 return wrong data after MADV_REMOVE of a part of a huge page"
        return Finding(Level.FAIL, "huge pages", text, remedy)
    return Finding(Level.WARN, "huge pages", f"{text}: memory is given back to the kernel less exactly", remedy)


def _space_in(directory: str) -> Iterator[Finding]:
    mount = mount_of(directory)
    if mount.kind != "tmpfs":
        yield Finding(
            Level.FAIL,
            directory,
            f"is on {mount.kind} ({mount.point}), not on a tmpfs: pools refuse it",
            "mount -t tmpfs tmpfs /dev/shm, or name the mount point of a tmpfs (--directory)",
        )
        return
    space = os.statvfs(directory)
    size, free = space.f_blocks * space.f_frsize, space.f_bavail * space.f_frsize
    text = f"a tmpfs of {format_size(size)}, {format_size(free)} free"
    larger = f"mount -o remount,size=… {mount.point}; in a container: docker run --shm-size=… (Kubernetes: an emptyDir with medium: Memory)"
    if not os.access(directory, os.W_OK | os.X_OK):
        yield Finding(Level.FAIL, directory, f"{text}, but you may not write there", f"chmod 1777 {directory}")
    elif size and size <= _SMALL_SHM:
        yield Finding(Level.WARN, directory, f"{text}: what containers start with, too small for most pools", larger)
    elif size and free < max(size // 10, _PROBE):
        yield Finding(Level.WARN, directory, f"{text}: nearly full", f"bufferpool ls, bufferpool rm; {larger}")
    else:
        yield Finding(Level.OK, directory, text if size else "a tmpfs without a limit of its own")


def _limits(_directory: str) -> Iterator[Finding]:
    effects = (
        (
            "RLIMIT_AS",
            "ulimit -v",
            "a process maps the room of a pool twice, and cannot attach to a pool with more: create the pool with a smaller room=",
        ),
        ("RLIMIT_FSIZE", "ulimit -f", "a pool is one file, so a pool that is created here gets no more room than this"),
    )
    for name, command, effect in effects:
        soft, _ = resource.getrlimit(getattr(resource, name))
        if soft == resource.RLIM_INFINITY:
            yield Finding(Level.OK, name, "unlimited")
        else:
            yield Finding(Level.WARN, name, f"{format_size(soft)}: {effect}", f"{command} unlimited")
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    text = "unlimited" if soft == resource.RLIM_INFINITY else format_size(soft)
    yield Finding(Level.OK, "RLIMIT_MEMLOCK", f"{text}: matters only to programs that lock their memory (mlockall)")


def _memory(directory: str) -> Iterator[Finding]:
    limit, space = cgroup_limit(), os.statvfs(directory)
    size = space.f_blocks * space.f_frsize
    if limit is None:
        yield Finding(Level.OK, "cgroup", "no memory limit")
    elif limit < size:
        yield Finding(
            Level.WARN,
            "cgroup",
            f"memory limit {format_size(limit)}, below the {format_size(size)} of {directory}: "
            "pages of a pool count, and at the limit the kernel kills processes (memory.max) or slows them down (memory.high)",
            "keep the budget of all pools well below the limit, or raise it (version 1: memory.limit_in_bytes)",
        )
    else:
        yield Finding(Level.OK, "cgroup", f"memory limit {format_size(limit)}")
    found = re.search(r"SwapTotal:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    swap = int(found[1]) * 1024 if found else 0
    if swap == 0:
        yield Finding(Level.OK, "swap", "none: pages of a pool are never swapped out")
    elif "noswap" in mount_of(directory).options:
        yield Finding(Level.OK, "swap", f"{format_size(swap)}, but {directory} is mounted noswap")
    else:
        yield Finding(
            Level.WARN,
            "swap",
            f"{format_size(swap)}: the kernel may swap pages of a pool out before the pool drops them",
            f"mount -o remount,noswap {directory} (Linux 6.4 and newer), or give the pool a smaller budget",
        )


def _auto_size(directory: str) -> Iterator[Finding]:
    """What ``capacity="auto"`` would choose now, with the reasons."""
    try:
        sizing = auto(read_memory(directory), LEAST_BYTES, _EXTENT)
    except SegmentError as error:
        yield Finding(Level.WARN, "auto size", str(error), "Pool.create(capacity=…) takes what you say")
        return
    sizes = f"{format_size(sizing.capacity)} ({format_size(sizing.min_capacity)} to {format_size(sizing.max_capacity)})"
    yield Finding(Level.OK, "auto size", f"{sizes}: {'; '.join(sizing.reasons)}")


# ---- probes --------------------------------------------------------------------------


def _blocks(fd: int) -> int:
    return os.fstat(fd).st_blocks * 512


def _madvise(fd: int, at: int) -> None:
    with mmap.mmap(fd, _PROBE) as view:
        view.madvise(mmap.MADV_REMOVE, at, _EXTENT)


def _punch(fd: int, at: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.fallocate(fd, _PUNCH, ctypes.c_int64(at), ctypes.c_int64(_EXTENT)) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _probe_reclaim(fd: int, name: str, give_back: Callable[[int, int], None]) -> Finding:
    """Fills a file, gives its second extent back, and checks what the kernel did."""
    remedy = "use a Linux kernel with tmpfs (CONFIG_SHMEM); sandboxes such as gVisor lack it: pools cannot shrink there"
    os.posix_fallocate(fd, 0, _PROBE)
    os.pwrite(fd, b"\xa5" * _PROBE, 0)
    before = _blocks(fd)
    try:
        give_back(fd, _EXTENT)
    except OSError as error:
        return Finding(Level.FAIL, name, f"fails: {error.strerror}", remedy)
    fell = before - _blocks(fd)
    if fell != _EXTENT:
        return Finding(Level.FAIL, name, f"gave {fell} bytes back instead of {_EXTENT} (st_blocks)", remedy)
    expected = b"\xa5" * _EXTENT + bytes(_EXTENT) + b"\xa5" * (_PROBE - 2 * _EXTENT)
    if os.pread(fd, _PROBE, 0) != expected:
        return Finding(Level.FAIL, name, "returns wrong data around the hole", "use another kernel, or huge=never")
    return Finding(Level.OK, name, f"gave {_EXTENT} bytes back, as st_blocks says, and left the rest alone")


def _probe_huge_page(fd: int) -> Finding:
    """Whether a pool that is created with huge_pages=True gets huge pages."""
    os.ftruncate(fd, segment_file.HUGE_BYTES)
    try:
        _core.try_huge_page(fd)
    except OSError as error:
        return Finding(Level.OK, "huge_pages=", f"gives nothing here (MADV_COLLAPSE): {error.strerror}")
    return Finding(Level.OK, "huge_pages=", "may be used: the kernel made a huge page of 2 MiB (MADV_COLLAPSE)")


def _probe_locks(fd: int) -> Finding:
    """Locks the same byte through two descriptors, as two clients would."""
    wanted = segment_file.FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 7, 1, 0)
    remedy = "use Linux 3.15 or newer; without these locks a pool cannot tell a dead client from a living one"
    with opened(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_CLOEXEC) as file:
        other = file.fileno()
        try:
            fcntl.fcntl(fd, fcntl.F_OFD_SETLK, wanted)
        except OSError as error:
            return Finding(Level.FAIL, "OFD locks", f"fail: {error.strerror}", remedy)
        try:
            fcntl.fcntl(other, fcntl.F_OFD_SETLK, wanted)
            return Finding(Level.FAIL, "OFD locks", "two descriptors got the same lock", remedy)
        except BlockingIOError:
            seen = segment_file.is_locked(other)
        except OSError as error:
            return Finding(Level.FAIL, "OFD locks", f"fail: {error.strerror}", remedy)
    if not seen:
        return Finding(Level.FAIL, "OFD locks", "a held lock is not seen", remedy)
    return Finding(Level.OK, "OFD locks", "exclude each other between two descriptors")


def _io_uring(_directory: str) -> Iterator[Finding]:
    if _core.has_io_uring():
        yield Finding(Level.OK, "io_uring", "granted: absent pages of one call are read together")
        return
    yield Finding(
        Level.WARN,
        "io_uring",
        "refused: absent pages of one call are read by a few threads, which reaches less of a fast device's rate",
        "Linux 5.18 or newer; sysctl kernel.io_uring_disabled=0; in a container: a seccomp profile that allows io_uring",
    )


def _uncached(_directory: str) -> Iterator[Finding]:
    with open(__file__, "rb") as file:
        try:
            os.preadv(file.fileno(), [bytearray(1)], 0, RWF_DONTCACHE)
            text = "granted: files without O_DIRECT leave no second copy of a page in the kernel's page cache"
        except OSError:
            text = "refused (Linux 6.14 has it): pages of files without O_DIRECT are dropped from the kernel's page cache after use"
    yield Finding(Level.OK, "RWF_DONTCACHE", text)


def _clock(_directory: str) -> Iterator[Finding]:
    """Whether a process can read the clock without a system call: the core does so several times for each miss."""
    try:
        name = _CLOCK.read_text().strip()
    except OSError:  # no /sys here
        return
    if name in _SLOW_CLOCKS:
        text = f"{name}: each look at the time is a system call, and a miss takes several"
        yield Finding(
            Level.WARN,
            "clock",
            text,
            "boot with clocksource=tsc (tsc=reliable in a virtual machine, if its host keeps it stable)",
        )
    else:
        yield Finding(Level.OK, "clock", f"{name}: read without a system call")


def _pressure(directory: str) -> Iterator[Finding]:
    """Whether the kernel reports stalls for memory, and wakes the steward when they begin."""
    path, source = psi_file(), SystemSource(directory)
    try:
        figures, triggered = source.read().psi_some is not None, source.triggered
    finally:
        source.close()
    if triggered:
        yield Finding(Level.OK, "PSI", f"{path} wakes the steward when tasks stall for memory")
    elif figures:
        text = f"{path} grants this process no trigger: the steward reads it in each round"
        yield Finding(Level.OK, "PSI", f"{text} (Linux 6.5 and newer grant one to any user)")
    else:
        text = "the kernel does not report stalls for memory: the steward knows only what is free"
        yield Finding(Level.WARN, "PSI", text, "boot with psi=1, or use a kernel with CONFIG_PSI")


def _page_caches(directory: str) -> Iterator[Finding]:
    """The files whose pages the kernel's page cache keeps, besides the pools."""
    for one in segment_file.find(directory):
        name = os.path.basename(one.path)
        with contextlib.suppress(SegmentError), Observer(name, directory=directory) as pool:
            twice = [space.name for space in pool.stats().spaces if space.cache == "kernel"]
            if twice:
                yield Finding(
                    Level.OK,
                    f"pool {name}",
                    f"the kernel's page cache keeps pages of {', '.join(sorted(twice)[:5])}"
                    f'{" and others" if len(twice) > 5 else ""} too (open_file(cache="kernel"), or a file on a tmpfs)',
                )


def _probes(directory: str) -> Iterator[Finding]:
    """The probes. Each uses a file without a name, so it leaves nothing behind."""
    if mount_of(directory).kind != "tmpfs":
        return
    for probe in (
        lambda fd: _probe_reclaim(fd, "MADV_REMOVE", _madvise),
        lambda fd: _probe_reclaim(fd, "PUNCH_HOLE", _punch),
        _probe_locks,
        _probe_huge_page,
    ):
        with opened(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600) as file:
            yield probe(file.fileno())


def _leftovers(directory: str) -> Iterator[Finding]:
    """The segments in the directory, and whether processes still use them."""
    found = list(segment_file.find(directory))
    if not found:
        yield Finding(Level.OK, "pools", "none")
    where = "" if directory == segment_file.SHM else f" --directory {directory}"
    for one in found:
        name = os.path.basename(one.path)
        size = format_size(one.kernel_bytes)
        if segment_file.is_part(one.path) and not one.trouble:  # another page size of a pool, which is removed with it
            continue
        try:
            used = in_use(one.path)
        except FileNotFoundError:  # removed since it was listed
            continue
        remove = f"bufferpool rm {name}{where}"
        use = "in use" if used else "nobody attached"
        if one.trouble:
            remedy = f"end the processes that are attached, then: {remove}" if used else remove
            yield Finding(Level.WARN, f"pool {name}", f"{size}, {use}, {one.condition}: {one.trouble}", remedy)
            continue
        unsaved = _count_unsaved(name, directory)
        pages = f", {counted(unsaved, 'dirty page')} in memory only" if unsaved else ""
        if used:
            yield Finding(Level.OK, f"pool {name}", f"{size}, in use{pages}")
        else:
            remedy = f"nothing, if a later process will use it; else: {remove}"
            if unsaved:
                remedy = f"bufferpool flush {name}{where} writes the dirty pages to their files; then {remedy}"
            yield Finding(Level.WARN, f"pool {name}", f"{size}, nobody attached{pages}", remedy)


def _budgets(directory: str) -> Iterator[Finding]:
    """Whether the tmpfs has the memory that the budgets of its pools promise."""
    space = os.statvfs(directory)
    if not space.f_blocks:  # a tmpfs without a limit of its own does not say what is free
        return
    free, promised = space.f_bavail * space.f_frsize, 0
    wants: list[tuple[int, str]] = []
    for one in segment_file.find(directory):
        name = os.path.basename(one.path)
        with contextlib.suppress(SegmentError), Observer(name, directory=directory) as pool:
            status = pool.seg.status()
            more = max(0, status["budget_frames"] - status["resident_frames"]) * pool.page_size
            wants.append((more, name))
            promised += more
    text = f"the pools may take {format_size(promised)} more, and {format_size(free)} are free"
    if promised <= free:
        yield Finding(Level.OK, "budgets", text)
        return
    largest = ", ".join(f"{name} {format_size(more)}" for more, name in sorted(wants, reverse=True)[:3])
    remedy = (
        f"bufferpool resize POOL SIZE, or a larger tmpfs: mount -o remount,size=… {mount_of(directory).point}; "
        "a pool that gets no memory uses what it has, and raises SharedMemoryFull if it has no frame at all"
    )
    yield Finding(Level.WARN, "budgets", f"{text} ({largest})", remedy)


def _count_unsaved(name: str, directory: str) -> int:
    """The unsaved pages of a pool; 0 if the pool cannot be read, or has been removed meanwhile."""
    try:
        return sum(unsaved_pages(name, directory).values())
    except SegmentError:
        return 0


def _nameless(directory: str) -> Iterator[Finding]:
    """Segments whose name was removed while processes are attached, as far as we may read /proc of these processes."""
    at, size = _core.fields()["Header.unlinked"]
    users: dict[tuple[int, int], tuple[str, bool, set[int]]] = {}
    for link in glob.iglob("/proc/[0-9]*/fd/*"):
        with contextlib.suppress(OSError):  # no permission, or the process has ended
            path, about = os.readlink(link), os.stat(link)
            if about.st_nlink or not stat.S_ISREG(about.st_mode) or os.path.dirname(path) != directory:
                continue
            with open(link, "rb") as file:
                header = file.read(at + size)
            if header[:7] == b"BUFPOOL":
                name = os.path.basename(path).removesuffix(" (deleted)")
                found = users.setdefault((about.st_dev, about.st_ino), (name, header[at] != 0, set()))
                found[2].add(int(link.split("/")[2]))
    for name, on_purpose, pids in users.values():
        text = f"its name was removed, and it is in use by {', '.join(f'pid {pid}' for pid in sorted(pids))}"
        remedy = "flush it in these processes, end them, and open it anew; RemoveIPC=no in logind.conf keeps names at a logout"
        yield Finding(Level.OK if on_purpose else Level.WARN, f"pool {name}", text, "" if on_purpose else remedy)


def examine(directory: str | None = None) -> Iterator[Finding]:
    """Yields every finding. It changes nothing."""
    where = os.path.abspath(segment_file.SHM if directory is None else directory)
    if not os.path.isdir(where):
        yield Finding(
            Level.FAIL,
            where,
            "does not exist",
            "mount -t tmpfs tmpfs /dev/shm, or name the mount point of a tmpfs (--directory)",
        )
        return
    for part in (
        _kernel,
        _space_in,
        _limits,
        _memory,
        _auto_size,
        _probes,
        _io_uring,
        _uncached,
        _clock,
        _pressure,
        _budgets,
        _leftovers,
        _page_caches,
        _nameless,
    ):
        try:
            yield from part(where)
        except OSError as error:
            what = part.__name__.strip("_").replace("_", " ")
            remedy = "free some room there (bufferpool ls), or enlarge it" if error.errno == errno.ENOSPC else ""
            yield Finding(Level.FAIL, what, f"cannot be looked at: {error}", remedy)
