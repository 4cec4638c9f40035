"""Stores that fail: the caller gets the error, and the failure is recorded for the pool's operator, too.

The records are an event in the pool, which every process and the metrics see, and a line in the log of the process
that met the failure. A failing disk fails for each page, so each space gets one event and one line of a kind in ten
seconds.
"""

import errno
import logging
import time
from dataclasses import dataclass

from bufferpool.client.client import Client
from bufferpool.figures.events import NewEvent
from bufferpool.figures.names import EventKind, EventReason

LOG = logging.getLogger("bufferpool")
AGAIN_S = 10.0

_told_at: dict[tuple[str, EventKind, int, int], float] = {}


@dataclass(frozen=True)
class Origin:
    """What failed."""

    index: int
    generation: int
    space: str
    page_no: int | None


def errno_of(error: BaseException | None) -> int:
    """The errno behind an error, or behind one of its causes; 0 if there is none."""
    while error is not None:
        if isinstance(error, OSError) and error.errno:
            return error.errno
        error = error.__cause__
    return 0


def tell(client: Client, what: EventKind, error: BaseException, origin: Origin) -> None:
    """Posts the event and writes the line, unless there were such ones a moment ago."""
    now, kind = time.monotonic(), (client.path, what, origin.index, origin.generation)
    if now - _told_at.get(kind, float("-inf")) < AGAIN_S:
        return
    _told_at[kind] = now
    number = errno_of(error)
    where = (origin.index, origin.generation, number)
    client.post(NewEvent(what, EventReason.STORE, origin=where, page=origin.page_no))
    code = f" ({errno.errorcode.get(number, f'errno {number}')})" if number else ""
    place = f"space {origin.space!r}" + (f", page {origin.page_no}" if origin.page_no is not None else "")
    # The text, not the error: a handler that keeps its records would keep the pages that the error's traceback holds.
    LOG.warning("pool %r, %s: %s%s", client.name, place, str(error), code)
