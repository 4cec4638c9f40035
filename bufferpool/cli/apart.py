"""A command in a process of its own, whose end nobody waits for.

A write to a disk that hangs keeps its process in the kernel (state D): not even SIGKILL ends it before the disk is back. So a command
that has a timeout runs in a child, which tells its exit code when it is done, and the process that the shell waits for ends then.
"""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from bufferpool.machine.descriptor import opened


@contextmanager
def _passing_on(pid: int) -> Iterator[None]:
    """Sends a process the signals by which people and supervisors end this one."""
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = [signal.signal(number, lambda number, _frame: os.kill(pid, number)) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def _silence() -> None:
    """Lets go of the standard output streams, which a reader would otherwise wait for."""
    with opened(os.devnull, os.O_RDWR | os.O_CLOEXEC) as nothing:
        for stream in (1, 2):
            os.dup2(nothing.fileno(), stream)


def _tell_code(command: Callable[[], int], there: int) -> int:
    """Runs the command in the child, and tells its exit code."""
    try:
        code = command()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    _silence()
    os.write(there, bytes([code]))
    return code


def run_apart(command: Callable[[], int]) -> int:
    """Runs a command in a child process; returns its exit code as soon as it is known, in both processes.

    A child that ends without a code was ended by a signal: 128 + its number.
    """
    here, there = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(here)
        return _tell_code(command, there)
    os.close(there)
    with _passing_on(pid):
        told = os.read(here, 1)
        if told:
            return told[0]
        return 128 - min(0, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
