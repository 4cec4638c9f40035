"""The state of a file at one moment: which file it is, its size and its times; and how far its times can be trusted."""

import os
import time
from enum import IntEnum
from typing import NamedTuple

CLOCK_STEP_NS = 20_000_000
WHOLE_SECONDS_NS = 2_000_000_000


class Doubt(IntEnum):
    """Whether the times of a record show every later change."""

    NONE = 0
    OPENED = 1
    """They may not: the next flush or open compares pages."""
    FLUSHED = 2
    """The same after a flush of our own: the next open compares, and not every flush in a row."""


class FileState(NamedTuple):
    """A file as somebody saw it."""

    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int
    doubt: int
    """A :class:`Doubt`."""

    @property
    def file(self) -> tuple[int, int]:
        """Which file it is."""
        return self[:2]

    @property
    def content(self) -> tuple[int, int, int, int]:
        """What differs after an ordinary change."""
        return self[:4]


NO_FILE = FileState(0, 0, 0, 0, 0, Doubt.NONE)


def state_of(fd: int) -> FileState:
    """The state of an open file, now."""
    now, about = time.time_ns(), os.fstat(fd)
    step = CLOCK_STEP_NS if about.st_mtime_ns % 1_000_000_000 else WHOLE_SECONDS_NS
    doubt = Doubt.OPENED if abs(now - about.st_mtime_ns) < step else Doubt.NONE
    return FileState(about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns, doubt)


def stamped(fd: int) -> FileState:
    """The state of a file that we have just written, with a time of its own where the kernel lets us set one."""
    about = os.fstat(fd)
    stamp = time.time_ns() // 1000 * 1000 + 1 + os.getpid() % 999
    try:
        os.utime(fd, ns=(about.st_atime_ns, stamp))
    except OSError as error:  # not the owner, or a file system without such times: the doubt stays
        if error.errno is None:  # the kernel's have one: this is of a signal's handler
            raise
        stamp = -1
    state = state_of(fd)
    return state._replace(doubt=Doubt.NONE if state.mtime_ns == stamp else Doubt.FLUSHED)
