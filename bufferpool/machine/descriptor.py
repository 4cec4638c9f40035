"""A file descriptor that is checked before each use: whether its number is still that of the file.

Other code of the process may close it (as a daemon that closes all inherited descriptors does), and open another file
under the same number. Then the number is neither used nor closed.
"""

import os
from collections.abc import Callable
from contextlib import suppress
from typing import ClassVar

from bufferpool import _core


def is_segment(fd: int) -> bool:
    """Whether a file begins as the segment of a pool does, sound or not. One that cannot be read is none: it is not in memory."""
    with suppress(OSError):
        return os.pread(fd, 7, 0) == b"BUFPOOL"
    return False


class OwnDescriptor:
    """An open file, under a number above those that programs close in loops, and never 0, 1 or 2."""

    _holders: ClassVar[
        dict[int, object]
    ] = {}  # number -> the object that got it last: two objects may have the same file
    _number = -1

    def __init__(self, fd: int) -> None:
        """Takes ``fd`` over: its file gets another number, and ``fd`` is closed, also when this raises OSError."""
        number = _core.move_up(fd)
        about = os.fstat(number)
        self.file = about.st_dev, about.st_ino
        self._token = self._holders[number] = object()
        self._number = number

    @property
    def number(self) -> int:
        """The number; -1 when it is closed, or was closed by other code."""
        return self._number if self.is_ours() else -1

    def is_ours(self, fstat: Callable[[int], os.stat_result] = os.fstat) -> bool:
        """Whether the number still belongs to the file that was opened."""
        if self._number < 0 or self._holders.get(self._number) is not self._token:
            return False
        try:
            about = fstat(self._number)
        except OSError:
            return False
        return (about.st_dev, about.st_ino) == self.file

    def close(self, close: Callable[[int], None] = os.close) -> None:
        """Closes the file, if the number still belongs to it.

        When the interpreter ends it may remove the names of this module first: what this needs is bound as default arguments.
        """
        number, self._number = self.number, -1
        if number >= 0:
            self._holders.pop(number, None)
            close(number)

    def __del__(self) -> None:
        self.close()
