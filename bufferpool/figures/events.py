"""The last thousand events of a pool: decisions about its memory, deaths and failures.

They are in a ring in the segment (core/protocol/events.h), which any process can read.
"""

import os
from dataclasses import dataclass
from errno import errorcode
from typing import Any

import numpy as np

from bufferpool import _core
from bufferpool.figures.names import (
    ERROR_CLASSES,
    RECOVERIES,
    EventKind,
    EventReason,
    error_class,
    is_known,
    mode_name,
)
from bufferpool.figures.stats import Inspectable
from bufferpool.units import format_size


def errno_text(value: float) -> str:
    """The text of an errno that an event records; of an impossible one, its number."""
    return os.strerror(int(value)) if 0 < value < 4096 else f"errno {value:g}"


@dataclass(frozen=True)
class Event:
    """One event."""

    number: int
    """The number of the event in its pool, or page size, from 1."""
    time: float
    """Seconds since the epoch."""
    kind: EventKind
    """What happened."""
    reason: EventReason
    """Why it happened."""
    bytes: int
    """Bytes that were given back, or asked for."""
    budget_before: int
    """The budget in bytes before the event."""
    budget_after: int
    """The budget in bytes after the event."""
    value: float
    """A figure that depends on ``reason``: see :class:`EventReason`."""
    client: int
    """The client that recorded it; of HANGS, PINNED and OBJECTS, the client that it is about."""
    space: str | None = None
    """For a failure: the name of the space, if it still exists."""
    cache: str | None = None
    """For a load of a value that hangs: the name of the cache, if it still exists."""
    page_no: int | None = None
    """For a failure: the page, or the first page of a batch."""
    errno: int = 0
    """For a failure: the errno of the store's error; 0 if it had none."""
    error: str = ""
    """For a failure of a store: the class of its error, one of ``ERROR_CLASSES``."""
    pid: int = 0
    """The process of ``client``; 0 if that client has left since."""

    @property
    def _what_hangs(self) -> str:
        if self.kind in (EventKind.SAVE_FAILED, EventKind.SAVE_RECOVERED):
            return "the write of the working set"
        if self.reason is EventReason.LOG_HANGS:
            return "log_sync"
        if self.cache is not None:
            return f"the loader of cache {self.cache!r}"
        # A derived space has a loader. The event does not say which kind of space it is about.
        return "the store or loader" if self.kind in (EventKind.LOAD_FAILED, EventKind.LOAD_RECOVERED) else "the store"

    def _how_it_hangs(self) -> str:
        if self.is_recovery:
            return f"{self._what_hangs} came back to {self._who} after {self.value:.0f} s"
        return f"{self._what_hangs} has not come back to {self._who} for {self.value:.0f} s"

    @property
    def _of_the_store(self) -> str:
        """What happened to the store, or to the file of the working set."""
        if not self.is_recovery:
            return _STORE_FAILED.get(self.error, "the store failed")
        return {
            EventKind.LOAD_RECOVERED: "the page could be read", EventKind.SAVE_RECOVERED: "the working set was saved",
        }.get(self.kind, "the store takes pages again")  # fmt: skip

    @property
    def is_recovery(self) -> bool:
        """Whether it is the end of trouble of which an earlier event says the beginning."""
        return self.kind in RECOVERIES.values()

    @property
    def _who(self) -> str:
        return f"client {self.client}" + (f" (pid {self.pid})" if self.pid else "")

    @property
    def _predecessor(self) -> str:
        return "an earlier process in its slot" if self.value == self.client else f"client {self.value:g}"

    def __str__(self) -> str:
        words = [self.kind.name.lower().replace("_", " ")]
        if self.reason in (EventReason.HANGS, EventReason.LOG_HANGS):
            words = [words[0].replace("failed", "hangs")]  # it is no failure, and is not counted as one
        if self.budget_before != self.budget_after:
            words.append(f"from {format_size(self.budget_before)} to {format_size(self.budget_after)}")
        if self.bytes:
            above = self.kind is EventKind.CANNOT_SHRINK
            words.append(f"{format_size(self.bytes)} {'above the budget' if above else 'given back'}")
        reason = {
            EventReason.ASKED: f"{self._who} is active now" if self.kind is EventKind.STEWARD else "asked for",
            EventReason.PSI: f"memory pressure, tasks stalled {self.value:.1f} % of the time",
            EventReason.CGROUP: f"the memory cgroup has {format_size(self.value)} left",
            EventReason.SHM: f"the tmpfs has {format_size(self.value)} left",
            EventReason.MACHINE: f"the machine has {format_size(self.value)} available",
            EventReason.IDLE: f"untouched for {self.value:g} s",
            EventReason.PAYS: f"saves {self.value:.1f} misses a second",
            EventReason.DIED: f"{self._who} took over from {self._predecessor}, which had died"
            if self.kind is EventKind.STEWARD
            else f"client {self.client} found client {self.value:g} dead",
            EventReason.STORE: self._of_the_store,
            EventReason.LOG: "the log could be synced" if self.is_recovery else "the log could not be synced",
            EventReason.KERNEL: f"the kernel refuses: {errno_text(self.value)}",
            EventReason.DUEL: f"{mode_name(self.value)} misses less often",
            EventReason.SMALL: f"{mode_name(self.value)}, as always below 64 frames",
            EventReason.REBUILT: f"{mode_name(self.value)} again, as a client died while it changed the policy",
            EventReason.HANGS: self._how_it_hangs(),
            EventReason.LOG_HANGS: self._how_it_hangs(),
            EventReason.PINNED: f"{self._who} pins {self.value:.0f} frames",
            EventReason.DIRTY: f"{self.value:.0f} dirty pages could not be written",
            EventReason.IN_USE: f"{self.value:.0f} pages are in use by operations under way",
            EventReason.OBJECTS: f"{self._who} holds values of caches of {format_size(self.value)}",
        }[self.reason]
        place = f" (space {self.space!r}" + (f", page {self.page_no})" if self.page_no is not None else ")")
        code = f", {errorcode.get(self.errno, f'errno {self.errno}')}" if self.errno else ""
        return f"{', '.join(words)}: {reason}{code}{place if self.space is not None else ''}"


_STORE_FAILED = {
    "corrupt": "corrupt: a checksum does not match, or the file was cut or changed",
    "code": "the store raised an exception without an errno",
}
_CLASS_AT = 0x1F0  # from here on, an event's number of an error is no errno, but that of a class
_ORIGIN_BITS, _SPACE_BITS = 0x1FF << 13, 0xFFC01FFF

_EVENT = np.dtype(
    [
        ("number", np.uint64), ("time_ns", np.uint64), ("bytes", np.uint64), ("from_frames", np.uint32),
        ("to_frames", np.uint32), ("kind", np.uint32), ("reason", np.uint32), ("client", np.uint32), ("origin", np.uint32),
        ("value", np.float64), ("page", np.uint64),
    ]
)  # fmt: skip


@dataclass(frozen=True)
class NewEvent:
    """An event to be recorded."""

    kind: EventKind
    reason: EventReason
    bytes: int = 0
    before: int | None = None
    """The budget before it, in frames. None: the present one."""
    after: int | None = None
    """The budget after it."""
    value: float = 0.0
    origin: tuple[int, int, int] | None = None
    """Of a failure: the number and the generation of the space, and the errno or :func:`class_code`."""
    page: int | None = None
    """A page of that space."""
    client: int = 0
    """The client that it is about; 0: the one that records it."""


def post(seg: _core.Segment, event: NewEvent) -> None:
    """Records an event."""
    now = seg.budget_frames() if event.before is None or event.after is None else 0
    seg.post_event(
        (
            event.kind,
            event.reason,
            event.bytes,
            now if event.before is None else event.before,
            now if event.after is None else event.after,
            float(event.value),
            0 if event.origin is None else _origin_word(*event.origin),
            0 if event.page is None else event.page + 1,
            event.client,
        )
    )


def _origin_word(index: int, generation: int, number: int) -> int:
    return (generation & 0x3FF) << 22 | min(number, 0x1FF) << 13 | index + 1


def class_code(name: str) -> int:
    """What an event has in the place of an errno for a failure that has none: its class, one of ``ERROR_CLASSES``."""
    return _CLASS_AT + ERROR_CLASSES.index(name)


def _error_of(origin: int) -> tuple[int, str]:
    """The errno of a failure, or 0, and the class of its error."""
    number = (origin & _ORIGIN_BITS) >> 13
    if number < _CLASS_AT:
        return number, error_class(number) if number else ""
    known = number - _CLASS_AT < len(ERROR_CLASSES)
    return 0, ERROR_CLASSES[number - _CLASS_AT] if known else ""


def cache_origin(number: int) -> tuple[int, int, int]:
    """The origin of an event about a cache, by the cache's number. Its slots come after those of the spaces."""
    return _core.MAX_SPACES + number % _core.CACHES, number // _core.CACHES, 0


def _pid_at(client: tuple[int, int] | None, time_ns: int) -> int:
    """The process that has a client's number, if it had it when an event was recorded; else 0."""
    return client[0] if client is not None and client[1] <= time_ns else 0


def read_events(pool: Inspectable) -> list[Event]:
    """The events in the ring, oldest first, at most 1024. Damaged ones are left out."""
    size = pool.page_size
    found = np.frombuffer(pool.seg.events(), _EVENT)
    clients = {client[0]: (client[1], client[3]) for client in pool.seg.clients()}  # pid, attached since
    names = {_origin_word(r["index"], r["generation"], 0): r["name"] for r in pool.seg.spaces()}
    caches = {_origin_word(*cache_origin(number)): name for number, name in pool.seg.cache_names().items()}
    return [
        Event(
            number=int(e["number"]),
            time=int(e["time_ns"]) / 1e9,
            kind=EventKind(int(e["kind"])),
            reason=EventReason(int(e["reason"])),
            bytes=int(e["bytes"]),
            budget_before=int(e["from_frames"]) * size,
            budget_after=int(e["to_frames"]) * size,
            value=float(e["value"]),
            client=int(e["client"]),
            space=names.get(int(e["origin"]) & _SPACE_BITS),
            cache=caches.get(int(e["origin"]) & _SPACE_BITS),
            page_no=int(e["page"]) - 1 if e["page"] else None,
            errno=(error := _error_of(int(e["origin"])))[0],
            error=error[1],
            pid=_pid_at(clients.get(int(e["client"])), int(e["time_ns"])),
        )
        for e in found
        if is_known(EventKind, int(e["kind"])) and is_known(EventReason, int(e["reason"]))
    ]


def fields_of(event: Event) -> dict[str, Any]:
    """The fields of an event, for JSON."""
    return {**vars(event), "kind": event.kind.name.lower(), "reason": event.reason.name.lower(), "text": str(event)}


def unread_pages(pool: Inspectable) -> list[tuple[dict[str, Any], int]]:
    """The spaces whose last event about a failed load says that it failed: the record of each, and the page."""
    found = np.frombuffer(pool.seg.events(), _EVENT)
    about = np.isin(found["kind"], (EventKind.LOAD_FAILED, EventKind.LOAD_RECOVERED))
    last = {int(e["origin"]) & _SPACE_BITS: e for e in found[about & (found["reason"] == EventReason.STORE)]}
    records = {_origin_word(r["index"], r["generation"], 0): r for r in pool.seg.spaces()}
    return [
        (records[word], int(e["page"]) - 1)
        for word, e in last.items()
        if e["kind"] == EventKind.LOAD_FAILED and e["page"] and word in records
    ]


def posted(pool: Inspectable) -> dict[tuple[EventKind, EventReason], int]:
    """How many events of each kind and reason there have been since the pool was created, without those of 0."""
    counts = np.frombuffer(pool.seg.events_posted(), np.uint64).reshape(_core.EVENT_KINDS, _core.EVENT_REASONS)
    found = {(int(kind), int(reason)): int(counts[kind, reason]) for kind, reason in np.argwhere(counts)}
    return {
        (EventKind(kind), EventReason(reason)): n
        for (kind, reason), n in found.items()
        if is_known(EventKind, kind) and is_known(EventReason, reason)
    }


def last_times(pool: Inspectable) -> dict[tuple[EventKind, EventReason], float]:
    """The time of the last event of each kind and reason in the ring, in seconds since the epoch."""
    found = np.frombuffer(pool.seg.events(), _EVENT)
    times = {}
    for kind, reason in np.unique(found[["kind", "reason"]]).tolist():
        if is_known(EventKind, kind) and is_known(EventReason, reason):
            mine = (found["kind"] == kind) & (found["reason"] == reason)
            times[EventKind(kind), EventReason(reason)] = int(found["time_ns"][mine].max()) / 1e9
    return times
