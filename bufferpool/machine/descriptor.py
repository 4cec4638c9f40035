"""A descriptor that is known to be ours before each use.

Other code of the process may close it (a daemon that closes all that it inherits), and open a file of its own under the
same number. Such a number is neither used nor closed.
"""

import os
from typing import ClassVar

from bufferpool import _core


class OwnDescriptor:
    """An open file, by a number that programs do not close in passing, and never 0, 1 or 2."""

    _holders: ClassVar[dict[int, object]] = {}  # number -> who got it last: two of ours may be of the same file
    _number = -1

    def __init__(self, fd: int) -> None:
        """Takes ``fd`` over: its old number is closed, also when this raises OSError."""
        number = _core.move_up(fd)
        about = os.fstat(number)
        self.file = about.st_dev, about.st_ino
        self._token = self._holders[number] = object()
        self._number = number

    @property
    def number(self) -> int:
        """The number; -1 when it is closed, or is not ours any more."""
        return self._number if self.is_ours() else -1

    def is_ours(self) -> bool:
        """Whether the number is still that of the file that was opened."""
        if self._number < 0 or self._holders.get(self._number) is not self._token:
            return False
        try:
            about = os.fstat(self._number)
        except OSError:
            return False
        return (about.st_dev, about.st_ino) == self.file

    def close(self) -> None:
        """Closes it, if it is ours still."""
        number, self._number = self.number, -1
        if number >= 0:
            self._holders.pop(number, None)
            os.close(number)

    def __del__(self) -> None:
        self.close()
