"""Delays Ctrl-C while an operation must not be interrupted."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

KEEP = "later.<locals>.keep"  # the handler inside a block


@contextmanager
def later() -> Iterator[None]:
    """Delays a Ctrl-C inside the block to its end. A second one takes effect at once, so that the user is never stuck.

    Only the main thread can be interrupted, and only if a Python handler is set. Blocks may nest.
    """
    before = signal.getsignal(signal.SIGINT)
    main = threading.current_thread() is threading.main_thread()
    if not main or not callable(before) or getattr(before, "__qualname__", "") == KEEP:
        yield
        return
    came: list[FrameType | None] = []

    def keep(number: int, frame: FrameType | None) -> None:
        came.append(frame)
        if len(came) > 1:
            signal.signal(signal.SIGINT, before)
            before(number, frame)

    try:
        signal.signal(signal.SIGINT, keep)
        yield
    finally:
        try:
            signal.signal(signal.SIGINT, before)
        finally:  # the handler of another signal may have raised in the first call
            signal.signal(signal.SIGINT, before)
        if len(came) == 1:
            before(signal.SIGINT, came[0])
