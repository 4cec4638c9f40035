"""Failures of stores: the caller gets the error, and the failure is also recorded for the pool's operator.

The records are an event in the pool, which every process and the metrics can read, and a line in the log of the
process in which it failed. A failing disk fails for each page, so each space gets one event and one line of a kind in ten
seconds.
"""

import errno
import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from bufferpool.client.client import Client
from bufferpool.errors import FileChanged, PageCorrupt, ShortRead
from bufferpool.figures.events import NewEvent, cache_origin, read_events
from bufferpool.figures.names import ERROR_CLASSES, EventKind, EventReason, OperationKind, error_class
from bufferpool.figures.operations import Operation, read_operations

LOG = logging.getLogger("bufferpool")
AGAIN_S = 10.0
HANGS_S = 10.0  # an operation that has not come forward for so long is an event
LATE_S = 1.0  # or for so long, when a client has given up waiting for it; `top` and `stat` show it from then on

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


def tell_hanging(client: Client, operations: Iterable[Operation], least_s: float) -> list[Operation]:
    """Posts an event for the operation of each kind, and of each space or cache, that hangs longest, if it has for
    ``least_s`` seconds.

    It is posted again when it hangs twice as long, whichever process finds it: the events in the pool say what was
    posted already. Returns the operations that are new.
    """
    longest: dict[tuple[str, tuple[int, int], int], Operation] = {}
    for operation in operations:
        longest.setdefault((operation.kind, operation.origin, operation.cache_number), operation)
    late = [operation for operation in longest.values() if operation.seconds >= least_s]
    if not late:
        return []
    now, new = time.time(), []
    hangs = [event for event in read_events(client) if event.reason in (EventReason.HANGS, EventReason.LOG_HANGS)]
    for one in late:
        made = _event_of(one)
        told = [
            event.value
            for event in hangs
            if (event.kind, event.reason, event.client) == (made.kind, made.reason, made.client)
            and (event.space or "", event.cache or "", event.page_no) == (one.space, one.cache, one.page_no)
            and event.time > now - one.seconds - 1
        ]
        if one.seconds >= 2 * max(told, default=0.0):
            client.post(made)
            new.append(one)
    return new


_KINDS: dict[OperationKind, EventKind] = {
    "load": EventKind.LOAD_FAILED, "cache_load": EventKind.LOAD_FAILED, "flush": EventKind.FLUSH_FAILED,
    "log_sync": EventKind.FLUSH_FAILED, "save": EventKind.SAVE_FAILED,
}  # fmt: skip


def _event_of(one: Operation) -> NewEvent:
    reason = EventReason.LOG_HANGS if one.kind == "log_sync" else EventReason.HANGS
    origin = None
    if one.kind == "cache_load":
        origin = cache_origin(one.cache_number)
    elif one.kind in ("load", "flush"):
        origin = (*one.origin, 0)
    return NewEvent(_KINDS[one.kind], reason, value=one.seconds, origin=origin, page=one.page_no, client=one.client)


def tell_late(client: Client, waited_for: Callable[[Operation], bool]) -> None:
    """A thread of this process gives up waiting for an operation: posts the event and logs the line, if it hangs."""
    for one in tell_hanging(client, filter(waited_for, read_operations(client)), LATE_S):
        made = _event_of(one)
        fields = {
            "kind": made.kind.name.lower(), "reason": made.reason.name.lower(), "space": one.space, "cache": one.cache,
            "page_no": one.page_no, "client": one.client, "value": one.seconds,
        }  # fmt: skip
        LOG.warning("pool %r, %s has not come back for %.0f s", client.name, one, one.seconds, extra={"fields": fields})
