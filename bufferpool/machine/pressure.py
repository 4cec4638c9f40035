"""Reads how short of memory the machine is, for the steward.

Four sources, each from the kernel: PSI (Documentation/accounting/psi.rst: the share
of time in which tasks stalled for memory), the memory cgroup's limit, the free space of
the tmpfs, and the machine's available memory (MemAvailable of /proc/meminfo).
"""

import collections
import errno
import os
import re
import select
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar, runtime_checkable

from bufferpool._locks import Lock
from bufferpool.machine.descriptor import OwnDescriptor

_PSI_LINE = re.compile(r"^(some|full) avg10=([\d.]+).*total=(\d+)", re.MULTILINE)
# Wake when tasks stalled for 200 ms within two seconds, the shortest window for processes without privilege.
_TRIGGER = b"some 200000 2000000"
_DEAD = select.POLLERR | select.POLLHUP | select.POLLNVAL
_LOOK_S = 1.0  # seconds between two checks whether the descriptors are still ours
MACHINE_PSI = "/proc/pressure/memory"
_T = TypeVar("_T")


@dataclass(frozen=True)
class Reading:
    """Figures of the machine at one moment. None: there is no such limit, or the kernel does not give the figure."""

    psi_some: float | None = None
    """The percentage of about the last two seconds in which some task stalled for memory."""
    psi_full: float | None = None
    """The percentage in which all tasks stalled."""
    cgroup_limit: int | None = None
    """Bytes."""
    cgroup_free: int | None = None
    """Bytes free below the cgroup's limit; page cache that can be dropped counts as free."""
    shm_free: int | None = None
    """Bytes free in the tmpfs that the pool lives in."""
    shm_size: int | None = None
    machine_free: int | None = None
    """Bytes that the machine has available."""
    machine_size: int | None = None


@runtime_checkable
class Source(Protocol):
    """Where readings come from. Tests use sources of their own."""

    def read(self) -> Reading:
        """Reads the present figures."""

    def wait(self, timeout_s: float) -> bool:
        """Sleeps for ``timeout_s`` seconds; returns True, at once, when there is pressure."""

    def close(self) -> None:
        """Closes what it has open."""


# The errors of a figure that the kernel does not give: absent, not mounted, not built in, or not permitted. Other errors
# (no file descriptor left, no memory) are temporary, and are raised.
_NOT_GIVEN = frozenset(
    getattr(errno, name)
    for name in [
        "ENOENT",
        "ENOTDIR",
        "EACCES",
        "EPERM",
        "EOPNOTSUPP",
        "ENODEV",
        "ENXIO",
        "ENOSYS",
        "EINVAL",
        "ESRCH",
        "EROFS",
    ]
)


def given(read: Callable[[], _T]) -> _T | None:
    """The result of ``read()``; None if the kernel does not give the figure."""
    try:
        return read()
    except OSError as error:
        if error.errno in _NOT_GIVEN:
            return None
        raise


# ---- the memory cgroup --------------------------------------------------------------


def cgroup_folders(root: str = "/sys/fs/cgroup", table: str = "/proc/self/cgroup") -> Iterator[tuple[Path, int]]:
    """This process's memory cgroup and its parents, innermost first, with the version (1 or 2)."""
    for line in (given(lambda: Path(table).read_text()) or "").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            bases, version = [Path(root), Path(root) / "unified"], 2
        elif "memory" in controllers.split(","):
            bases, version = [Path(root) / "memory"], 1
        else:
            continue
        for base in bases:
            here = base / path.lstrip("/")
            for folder in (here, *here.parents):
                if folder.is_relative_to(base) and folder.is_dir():
                    yield folder, version


def _limit_of(folder: Path, version: int) -> int | None:
    """The bytes from which on the kernel kills (memory.max), or slows each process that takes memory down (memory.high)."""
    files = ("memory.max", "memory.high") if version == 2 else ("memory.limit_in_bytes",)
    texts = [(folder / name).read_text().strip() for name in files if (folder / name).exists()]
    return min((int(text) for text in texts if text != "max" and int(text) < 1 << 60), default=None)


def _used_of(folder: Path, version: int) -> int:
    """Bytes that count against the limit, less the inactive page cache, which the kernel reclaims first."""
    used = int((folder / ("memory.current" if version == 2 else "memory.usage_in_bytes")).read_text())
    stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    prefix = "" if version == 2 else "total_"
    return max(0, used - int(stat.get(f"{prefix}inactive_file", 0)) - int(stat.get(f"{prefix}active_file", 0)))


def cgroup_limit(root: str = "/sys/fs/cgroup", table: str = "/proc/self/cgroup") -> int | None:
    """The lowest memory limit of this process's cgroups in bytes, version 1 or 2; None without a limit."""
    limits = [_limit_of(folder, version) for folder, version in cgroup_folders(root, table)]
    return min((limit for limit in limits if limit is not None), default=None)


class Room(NamedTuple):
    """The memory that a cgroup has left."""

    limit: int
    """Bytes that its processes may use."""
    free: int
    """Bytes below the limit."""
    cgroup: str
    """Its folder, under the folder in which cgroups are mounted."""


def cgroup_room(root: str = "/sys/fs/cgroup", table: str = "/proc/self/cgroup") -> Room | None:
    """The room of that of this process's cgroups which has the least free; None without a limit."""
    found = []
    for folder, version in cgroup_folders(root, table):
        limit = _limit_of(folder, version)
        if limit is not None:
            found.append(Room(limit, max(0, limit - _used_of(folder, version)), _name_of(folder, root)))
    return min(found, key=lambda room: room.free, default=None)


def _name_of(folder: Path, root: str = "/sys/fs/cgroup") -> str:
    return "/" + str(folder.relative_to(root)).removeprefix(".")


# ---- the machine -----------------------------------------------------------------------


def machine_memory(path: str = "/proc/meminfo") -> tuple[int, int]:
    """(total, available) memory of the machine, in bytes."""
    fields = dict(re.findall(r"^(\w+):\s+(\d+) kB", Path(path).read_text(), re.MULTILINE))
    return int(fields["MemTotal"]) * 1024, int(fields["MemAvailable"]) * 1024


@dataclass(frozen=True)
class Psi:
    """The figures of a pressure file, for "some" and "full"."""

    avg10: tuple[float, float]
    """The percentage of stalled time: a decaying average over ten seconds."""
    total_us: tuple[int, int]
    """The stalled time in microseconds, since the machine or the cgroup started."""


def parse_psi(text: str) -> Psi:
    """Parses the text of a pressure file. Raises ValueError if it is not one."""
    found = {kind: (float(avg10), int(total)) for kind, avg10, total in _PSI_LINE.findall(text)}
    if "some" not in found:
        raise ValueError(f"no pressure file: {text[:80]!r}")
    some, full = found["some"], found.get("full", (0.0, 0))
    return Psi((some[0], full[0]), (some[1], full[1]))


class Stall:
    """The share of the last two seconds that was stalled, from differences of the totals.

    The kernel's own shortest average (avg10) still shows pressure many seconds after it has
    ended. A steward that gave memory back until avg10 falls would give far too much.
    """

    WINDOW_S = 2.0

    def __init__(self) -> None:
        self._seen: collections.deque[tuple[float, tuple[int, int]]] = collections.deque()

    def add(self, now: float, psi: Psi) -> tuple[float, float]:
        """Adds a reading; returns (some, full) in percent of the last two seconds, or avg10 for the first reading."""
        seen = self._seen
        seen.append((now, psi.total_us))
        while len(seen) > 2 and now - seen[1][0] >= self.WINDOW_S:
            seen.popleft()
        since, before = seen[0]
        if now - since < self.WINDOW_S / 10:
            return psi.avg10
        some, full = (min(100.0, (b - a) / 1e4 / (now - since)) for a, b in zip(before, psi.total_us, strict=True))
        return some, full


def psi_stalls(text: str) -> dict[str, float]:
    """Seconds in which some task, and in which all tasks, stalled for memory since the machine started."""
    return {kind: int(total) / 1e6 for kind, _, total in _PSI_LINE.findall(text)}


def psi_files(root: str = "/sys/fs/cgroup", table: str = "/proc/self/cgroup") -> dict[str, str]:
    """The kernel's pressure files: {"": the machine's, the folder of this process's cgroup: that of the cgroup}.

    The cgroup's file comes last. Without PSI there is none; a process in the root cgroup has the machine's alone.
    """
    files = {"": MACHINE_PSI} if os.access(MACHINE_PSI, os.R_OK) else {}
    for folder, version in cgroup_folders(root, table):  # the root cgroup has no cgroup.type
        if version == 2 and (folder / "cgroup.type").exists() and (folder / "memory.pressure").exists():
            return files | {_name_of(folder, root): str(folder / "memory.pressure")}
    return files


def psi_file() -> str | None:
    """The path of this process's pressure file: that of its cgroup, or the machine's; None without PSI."""
    return next(reversed(psi_files().values()), None)


def read_memory(directory: str) -> Reading:
    """Reads the memory available for a pool in ``directory``. PSI is left out: it needs two readings. Raises OSError."""
    shm, room = os.statvfs(directory), given(cgroup_room)
    size, free = given(machine_memory) or (None, None)
    return Reading(
        cgroup_limit=room.limit if room else None,
        cgroup_free=room.free if room else None,
        shm_free=shm.f_bavail * shm.f_frsize if shm.f_blocks else None,
        shm_size=shm.f_blocks * shm.f_frsize if shm.f_blocks else None,
        machine_free=free,
        machine_size=size,
    )


class SystemSource:
    """The kernel's figures. PSI wakes the steward by a trigger if the kernel allows one; else it is read each round."""

    def __init__(self, directory: str, *, trigger: bool = True) -> None:
        """``directory``: the tmpfs of the pool."""
        self.directory = directory
        self._psi = psi_file()
        self._stall = Stall()
        self._lock = Lock()  # guards the descriptors: they are closed once, and not used afterwards
        self._woken = False
        self._pipe: tuple[OwnDescriptor, OwnDescriptor] | None = self._open_pipe()
        self._trigger = self._open_trigger() if trigger and self._psi else None
        _sources.add(self)

    @staticmethod
    def _open_pipe() -> tuple[OwnDescriptor, OwnDescriptor]:
        """The pipe by which :meth:`wake` ends a :meth:`wait`: (the polled end, the written end)."""
        return OwnDescriptor.pipe(os.O_CLOEXEC | os.O_NONBLOCK)

    def _open_trigger(self) -> OwnDescriptor | None:
        """A descriptor that polls as ready (POLLPRI) under pressure; None if the kernel refuses.

        Source: Documentation/accounting/psi.rst, "Monitoring for pressure thresholds".
        """
        assert self._psi is not None
        try:
            trigger = OwnDescriptor.opened(self._psi, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:  # without a trigger the steward reads PSI in each round
            return None
        try:
            os.write(trigger.number, _TRIGGER + b"\0")
        except OSError:
            trigger.close()
            return None
        return trigger

    @property
    def triggered(self) -> bool:
        """Whether the kernel wakes the steward by a trigger."""
        return self._trigger is not None and self._trigger.is_ours()

    def read(self) -> Reading:
        """Reads the present figures."""
        some = full = None
        if self._psi is not None:
            text = given(Path(self._psi).read_text)  # None: PSI is switched off (psi=0), or the cgroup is gone
            if text is not None:
                some, full = self._stall.add(time.monotonic(), parse_psi(text))
        return replace(read_memory(self.directory), psi_some=some, psi_full=full)

    def wait(self, timeout_s: float) -> bool:
        """Sleeps until the time is up, :meth:`wake` is called, or there is pressure (then it returns True).

        Other code of the process may close the descriptors. Closed ones are not polled any more: without the trigger
        the steward reads PSI in each round, and without the pipe it checks each second whether it was woken.
        """
        until = time.monotonic() + timeout_s
        while not self._woken:
            left = until - time.monotonic()
            if self._poll(min(max(0.0, left), _LOOK_S)):
                return True
            if left <= _LOOK_S:
                break
        return False

    def _poll(self, seconds: float) -> bool:
        """Sleeps once, on the descriptors that are still ours; returns whether there is pressure."""
        poll, fds = select.poll(), self._fds()
        for fd, events in zip(fds, (select.POLLIN, select.POLLPRI), strict=True):
            if fd >= 0:
                poll.register(fd, events)
        found = dict(poll.poll(seconds * 1000))
        if self._fds() != fds:  # other code closed one: poll may have seen another file
            return False
        events = found.get(fds[1], 0)
        with self._lock:
            if found.get(fds[0], 0) & _DEAD and self._pipe is not None:  # other code closed the other end
                self._drop_pipe()
            if events & _DEAD and self._trigger is not None:  # the cgroup was removed: read PSI in each round
                self._trigger.close()
                self._trigger = None
        return bool(events & select.POLLPRI and not events & _DEAD)

    def _fds(self) -> tuple[int, int]:
        """The descriptors of the pipe's polled end and of the trigger; -1 for one that was closed."""
        with self._lock:
            if self._pipe is not None and not all(end.is_ours() for end in self._pipe):
                self._drop_pipe()
            if self._trigger is not None and not self._trigger.is_ours():
                self._trigger = None
            return self._pipe[0].number if self._pipe else -1, self._trigger.number if self._trigger else -1

    def _drop_pipe(self) -> None:
        """Closes the ends of the pipe that are still ours."""
        pipe, self._pipe = self._pipe, None
        for end in pipe or ():
            end.close()

    def wake(self) -> None:
        """Ends a :meth:`wait` of another thread, and every later one."""
        with self._lock:
            woken, self._woken = self._woken, True
            if not woken and self._fds()[0] >= 0 and self._pipe is not None:  # both ends are ours: no SIGPIPE
                os.write(self._pipe[1].number, b"x")

    def close(self) -> None:
        """Closes the descriptors that are still ours."""
        with self._lock:
            self._drop_pipe()
            if self._trigger is not None:
                self._trigger.close()
            self._trigger = None


_sources: "weakref.WeakSet[SystemSource]" = weakref.WeakSet()


def _close_inherited() -> None:
    for source in list(_sources):
        source.close()


os.register_at_fork(after_in_child=_close_inherited)
