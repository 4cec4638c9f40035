"""Descriptors: opened so that none is lost, and checked before each use: whether the number is still that of the file.

Other code of the process may close a descriptor (as a daemon that closes all inherited descriptors does), and open another
file under the same number. Then the number is neither used nor closed.

A signal's handler may raise between any two bytecodes of the main thread, also when ``os.open`` has returned a number that is
not stored yet: nothing would close it. So one call of C code opens a file and gives the descriptor to the object that closes it.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import chain
from typing import ClassVar

from bufferpool import _core

try:
    from select import epoll as epoll
except ImportError:  # gevent and eventlet remove the name from the module: then a new copy of the module has it
    from importlib.util import module_from_spec

    _spec = sys.modules["select"].__spec__
    assert _spec is not None
    assert _spec.loader is not None
    _copy = module_from_spec(_spec)
    _spec.loader.exec_module(_copy)
    epoll = _copy.epoll  # type: ignore[misc]


def is_segment(fd: int) -> bool:
    """Whether a file begins as the segment of a pool does, sound or not. One that cannot be read is none: it is not in memory."""
    with suppress(OSError):
        return os.pread(fd, 7, 0) == b"BUFPOOL"
    return False


def opened(path: str | os.PathLike[str], flags: int, mode: int = 0o777) -> epoll:
    """Opens a file, as os.open does; returns an object that closes it, at the end of a ``with`` block or when it is deleted.

    Its ``fileno()`` is the descriptor. Raises OSError. ``epoll`` is the type of the standard library that can own a descriptor
    of any kind and is written in C; nothing is polled.
    """
    return next(map(epoll.fromfd, map(os.open, (path,), (flags,), (mode,))))


class OwnDescriptor:
    """An open file, under a number above those that programs close in loops, and never 0, 1 or 2."""

    _holders: ClassVar[
        dict[int, object]
    ] = {}  # number -> the object that got it last: two objects may have the same file
    _number = -1
    _token: object = None
    file = (-1, -1)
    """The device and the inode."""

    def __init__(self, opening: Iterator[int]) -> None:
        """Takes over the next descriptor of an iterator that opens the file; it gets another number. Raises OSError."""
        any(map(setattr, (self,), ("_number",), map(_core.move_up, opening)))  # one call of C code, as above
        about = os.fstat(self._number)
        self.file = about.st_dev, about.st_ino
        self._holders[self._number] = token = object()
        self._token = token

    @classmethod
    def opened(cls, path: str | os.PathLike[str], flags: int, mode: int = 0o777) -> "OwnDescriptor":
        """Opens a file, as os.open does. Raises OSError."""
        return cls(map(os.open, (path,), (flags,), (mode,)))

    @classmethod
    def pipe(cls, flags: int) -> "tuple[OwnDescriptor, OwnDescriptor]":
        """A pipe, as os.pipe2 makes it: the end to read and the end to write. Raises OSError."""
        read, write = map(epoll.fromfd, chain.from_iterable(map(os.pipe2, (flags,))))
        with read, write:
            return cls(map(os.dup, (read.fileno(),))), cls(map(os.dup, (write.fileno(),)))

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
        # That of an object that was not finished was opened just now: no other code can have closed it.
        number = self._number if self._token is None else self.number
        if number >= 0:
            # The holder remains in the table: as soon as this has closed, another thread may open a file under the number.
            close(number)
        self._number = -1

    def __del__(self) -> None:
        try:
            self.close()
        finally:
            self.close()  # if a signal's handler has raised in the first call; else it does nothing
