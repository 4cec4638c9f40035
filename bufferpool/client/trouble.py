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
from typing import Any

import numpy as np

from bufferpool.client.client import Client
from bufferpool.errors import FileChanged, PageCorrupt, ShortRead
from bufferpool.figures import words
from bufferpool.figures.events import Event, NewEvent, cache_origin, class_code, posted, read_events
from bufferpool.figures.names import ERROR_CLASSES, RECOVERIES, EventKind, EventReason, OperationKind, error_class
from bufferpool.figures.operations import LATE_S, Operation, read_operations

LOG = logging.getLogger("bufferpool")
AGAIN_S = 10.0
HANGS_S = 10.0  # an operation that has made no progress for so long is an event (after LATE_S, if a client gave up waiting for it)

_told_at: dict[tuple[str, EventKind, int, int], float] = {}
_unwritten: dict[tuple[str, int, int], int] = {}
"""Of each space whose flush has failed in this process, as an event says: a page that could not be written."""


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
    number, what_class = errno_of(error), class_of(error)
    code_of = class_code(what_class) if what_class == "corrupt" or not number else number
    where = (origin.index, origin.generation, code_of)
    client.post(NewEvent(what, EventReason.STORE, origin=where, page=origin.page_no))
    if what is EventKind.FLUSH_FAILED and origin.page_no is not None:
        _unwritten[client.path, origin.index, origin.generation] = origin.page_no
    code = f" ({errno.errorcode.get(number, f'errno {number}')})" if number else ""
    place = f"space {origin.space!r}" + (f", page {origin.page_no}" if origin.page_no is not None else "")
    fields = {
        "kind": what.name.lower(), "reason": "store", "space": origin.space, "page_no": origin.page_no, "errno": number,
        "error": type(error).__name__,
    }  # fmt: skip
    # The text, not the error: a handler that keeps its records would keep the pages in the error's traceback pinned.
    LOG.warning("pool %r, %s: %s%s", client.name, place, str(error), code, extra={"fields": fields})


def tell_written(client: Client, record: dict[str, Any]) -> None:
    """Pages of a space were written: posts the event if the page that could not be written before is among them."""
    space = client.path, record["index"], record["generation"]
    page_no = _unwritten.get(space)
    if page_no is None or client.seg.dirty_range(record["first_entry"] + page_no, 1)[0]:
        return
    if _unwritten.pop(space, None) is not None:  # else another thread tells it
        path, index, generation = space
        _told_at.pop((path, EventKind.FLUSH_FAILED, index, generation), None)  # the next failure is reported at once
        client.post(NewEvent(EventKind.FLUSH_RECOVERED, EventReason.STORE, origin=(index, generation, 0), page=page_no))


def tell_read(client: Client, unread: list[tuple[dict[str, Any], int]]) -> list[tuple[dict[str, Any], int]]:
    """Posts an event for each of these pages, which could not be loaded, that is in the pool now. Returns the others.

    Each has the record of its space, see :func:`unread_pages`. Those of a removed space are left out.
    """
    left = []
    for record, page_no in unread:
        if client.current(record) is None:
            continue
        if words.is_resident(client.seg.entry_words(np.array([record["first_entry"] + page_no], np.uint32))).all():
            origin = (record["index"], record["generation"], 0)
            client.post(NewEvent(EventKind.LOAD_RECOVERED, EventReason.STORE, origin=origin, page=page_no))
        else:
            left.append((record, page_no))
    return left


_HANGING = (EventReason.HANGS, EventReason.LOG_HANGS)


def hangs_posted(client: Client) -> int:
    """How many events about operations that hang there have been, the ends of them included."""
    return sum(n for (_, reason), n in posted(client).items() if reason in _HANGING)


def tell_recovered(client: Client, operations: Iterable[Operation]) -> int:
    """Posts an event for each operation of which an event says that it hangs, and which has come back since.

    An operation whose client has died, or whose space has been removed, has no such event. Returns how many still hang.
    """
    now, open_ones = time.time(), _open_hangs(client)
    attached_at = {number: since / 1e9 for number, _pid, _start, since, _name, alive in client.seg.clients() if alive}
    origins = {(record["name"], record["owner"]): record for record in client.seg.spaces()}
    caches = {name: number for number, name in client.seg.cache_names().items()}
    hanging = [(_hang_of(_KINDS[one.kind], one), one.seconds) for one in operations]
    left = 0
    for key, event in open_ones.items():
        since_s = now - event.time
        if any(key == other and seconds >= since_s - 1 for other, seconds in hanging):
            left += 1
            continue
        if attached_at.get(event.client, now) > event.time:
            continue
        origin = None
        if event.space is not None:
            record = origins.get((event.space, event.client)) or origins.get((event.space, 0))
            origin = None if record is None else (record["index"], record["generation"], 0)
        elif event.cache is not None:
            origin = cache_origin(caches[event.cache]) if event.cache in caches else None
        client.post(
            NewEvent(
                RECOVERIES[event.kind],
                event.reason,
                value=since_s + event.value,
                origin=origin,
                page=event.page_no,
                client=event.client,
            )
        )
    return left


_Hang = tuple[EventKind, int, str, str, bool]


def _hang_of(kind: EventKind, about: Event | Operation) -> _Hang:
    """The key of an operation that hangs: an event about it, and the operation in the list, have the same key."""
    log = about.reason is EventReason.LOG_HANGS if isinstance(about, Event) else about.kind == "log_sync"
    return kind, about.client, about.space or "", about.cache or "", log


def _open_hangs(client: Client) -> dict[_Hang, Event]:
    """The last event about each operation that hangs and of whose end there is no event."""
    found: dict[_Hang, Event] = {}
    failures = {recovery: failure for failure, recovery in RECOVERIES.items()}
    for event in read_events(client):
        if event.reason not in _HANGING:
            continue
        if event.is_recovery:
            found.pop(_hang_of(failures[event.kind], event), None)
        else:
            found[_hang_of(event.kind, event)] = event
    return found


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
    hangs = [event for event in read_events(client) if event.reason in _HANGING]
    for one in late:
        made = _event_of(one)
        told = [
            event.value
            for event in hangs
            if _hang_of(event.kind, event) == _hang_of(made.kind, one)
            and event.page_no == one.page_no
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
