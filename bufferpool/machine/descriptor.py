"""A file descriptor that is checked before each use: whether its number is still that of the file.

Other code of the process may close it (as a daemon that closes all inherited descriptors does), and open another file
under the same number. Then the number is neither used nor closed.
"""

import os
from typing import ClassVar

from bufferpool import _core


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

    def is_ours(self) -> bool:
        """Whether the number still belongs to the file that was opened."""
        if self._number < 0 or self._holders.get(self._number) is not self._token:
            return False
        try:
            about = os.fstat(self._number)
        except OSError:
            return False
        return (about.st_dev, about.st_ino) == self.file

    def close(self) -> None:
        """Closes the file, if the number still belongs to it."""
        number, self._number = self.number, -1
        if number >= 0:
            self._holders.pop(number, None)
            os.close(number)

    def __del__(self) -> None:
        self.close()
