"""Failures of stores: the caller gets the error, and the failure is also recorded for the pool's operator.

The records are an event in the pool, which every process and the metrics can read, and a line in the log of the
process in which it failed. A failing disk fails for each page, so each space gets one event and one line of a kind in ten
seconds.
"""

import errno
import logging
import time
from dataclasses import dataclass

from bufferpool.client.client import Client
from bufferpool.errors import FileChanged, PageCorrupt, ShortRead
from bufferpool.figures.events import NewEvent
from bufferpool.figures.names import ERROR_CLASSES, EventKind, EventReason, error_class

LOG = logging.getLogger("bufferpool")
AGAIN_S = 10.0

_told_at: dict[tuple[str, EventKind, int, int], float] = {}


@dataclass(frozen=True)
class Origin:
    """What failed: a space, and a page."""

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


def class_of(error: BaseException) -> str:
    """The class of a store's failure, one of ``ERROR_CLASSES``."""
    if isinstance(error, (PageCorrupt, ShortRead, FileChanged)):
        return "corrupt"
    return error_class(errno_of(error))


def count(client: Client, what: EventKind, error: BaseException, index: int, generation: int) -> None:
    """Counts one failure of a space's store: a load, or a flush (``FLUSH_FAILED``)."""
    number = ERROR_CLASSES.index(class_of(error))
    client.seg.count_failure(index, generation, what is EventKind.FLUSH_FAILED, number)


def tell(client: Client, what: EventKind, error: BaseException, origin: Origin) -> None:
    """Posts the event and logs the line, unless the same failure was recorded in the last ten seconds."""
    now, kind = time.monotonic(), (client.path, what, origin.index, origin.generation)
    if now - _told_at.get(kind, float("-inf")) < AGAIN_S:
        return
    _told_at[kind] = now
    number = errno_of(error)
    where = (origin.index, origin.generation, number)
    client.post(NewEvent(what, EventReason.STORE, origin=where, page=origin.page_no))
    code = f" ({errno.errorcode.get(number, f'errno {number}')})" if number else ""
    place = f"space {origin.space!r}" + (f", page {origin.page_no}" if origin.page_no is not None else "")
    fields = {
        "kind": what.name.lower(), "reason": "store", "space": origin.space, "page_no": origin.page_no, "errno": number,
        "error": type(error).__name__,
    }  # fmt: skip
    # The text, not the error: a handler that keeps its records would keep the pages in the error's traceback pinned.
    LOG.warning("pool %r, %s: %s%s", client.name, place, str(error), code, extra={"fields": fields})
