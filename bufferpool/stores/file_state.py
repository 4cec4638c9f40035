"""The state of a file at one moment: its identity, size and times, and whether a later change would show in its times."""

import os
import time
from enum import IntEnum
from typing import NamedTuple

CLOCK_STEP_NS = 20_000_000
WHOLE_SECONDS_NS = 2_000_000_000 + CLOCK_STEP_NS  # FAT has even seconds; and the file system's clock lags by a step


class Doubt(IntEnum):
    """Whether the times in a :class:`FileState` show every later change of the file."""

    NONE = 0
    OPENED = 1
    """A later change may not show: the next flush or open compares pages."""
    FLUSHED = 2
    """The same, after a flush of the pool: only the next open compares pages, so that not every flush has to."""


class FileState(NamedTuple):
    """The state of a file at one moment."""

    device: int
    inode: int
    size: int
    mtime_ns: int
    """The modification time, modulo 2^64, as a slot of the segment stores it: that of a file may be before 1970."""
    ctime_ns: int
    doubt: int
    """A :class:`Doubt`."""

    @property
    def file(self) -> tuple[int, int]:
        """The identity of the file: (device, inode)."""
        return self[:2]

    @property
    def content(self) -> tuple[int, int, int, int]:
        """The fields that an ordinary change alters: identity, size and modification time."""
        return self[:4]


NO_FILE = FileState(0, 0, 0, 0, 0, Doubt.NONE)


def state_of(fd: int) -> FileState:
    """The present state of an open file."""
    now, about = time.time_ns(), os.fstat(fd)
    step = CLOCK_STEP_NS if about.st_mtime_ns % 1_000_000_000 else WHOLE_SECONDS_NS
    doubt = Doubt.OPENED if abs(now - about.st_mtime_ns) < step else Doubt.NONE
    mtime_ns, ctime_ns = about.st_mtime_ns % 2**64, about.st_ctime_ns % 2**64
    return FileState(about.st_dev, about.st_ino, about.st_size, mtime_ns, ctime_ns, doubt)


def stamped(fd: int) -> FileState:
    """The state of a file that this process has just written, after setting a modification time that no later write gives it, if permitted."""
    about = os.fstat(fd)
    stamp = time.time_ns() // 1000 * 1000 + 1 + os.getpid() % 999
    state = _with_time(fd, about, stamp)
    if state.mtime_ns == stamp:
        return state._replace(doubt=Doubt.NONE)
    # Not permitted, or the file system keeps whole seconds: then the last time before that of our own write.
    state = _with_time(fd, about, about.st_mtime_ns - 1)
    return state._replace(doubt=Doubt.NONE if state.mtime_ns < about.st_mtime_ns % 2**64 else Doubt.FLUSHED)


def _with_time(fd: int, about: os.stat_result, mtime_ns: int) -> FileState:
    """The state of a file after an attempt to set its modification time."""
    try:
        os.utime(fd, ns=(about.st_atime_ns, mtime_ns))
    except OSError as error:  # not permitted: the doubt remains
        if error.errno is None:  # without an errno it comes from a signal's handler
            raise
    return state_of(fd)
