"""What clients have under way that may hang, and for how long it has not come forward: loads and flushes of pages, loads
of values of caches, syncs of the engine's log, and saves of the working set.

While such a call hangs, its client waits, and so does each client that wants what it brings.
"""

import time
from dataclasses import dataclass

from bufferpool.figures.names import OperationKind
from bufferpool.figures.stats import Inspectable
from bufferpool.printable import printable

_KEY_SHOWN = 100  # characters


@dataclass(frozen=True)
class Operation:
    """An operation that is under way."""

    kind: OperationKind
    """A load or a flush of pages, a load of a value of a cache, a sync of the engine's log (``log_sync``), or a save of
    the working set."""
    client: int
    """The client that does it."""
    pid: int
    """The process of that client; 0 if it has left meanwhile."""
    space: str
    """Of a load or a flush, the name of the space; empty if the space has been removed."""
    page_no: int | None
    """A page that it is about: of a flush the first one, of a load of several pages one that has not come yet."""
    seconds: float
    """How long it has not come forward: since it began, or since a page of it was last claimed or published. The unit is
    an eighth of a second."""
    origin: tuple[int, int] = (0, 0)
    """The number of the space's slot, and its generation."""
    cache: str = ""
    """Of a load of a value, the name of the cache; empty if the cache has been removed."""
    key: str = ""
    """Of a load of a value, its key, or the first characters of it."""
    cache_number: int = 0

    def __str__(self) -> str:
        page = "" if self.page_no is None else f" page {self.page_no} of"
        what = {
            "cache_load": f"a load of {self.key or 'a value'} of cache {self.cache!r}",
            "log_sync": "a sync of the log",
            "save": "a save of the working set",
        }.get(self.kind, f"a {self.kind} of{page} {self.space!r}")
        return f"{what} by client {self.client} (pid {self.pid})"


def read_flushes(pool: Inspectable, index: int | None = None) -> list[Operation]:
    """The flushes under way by the flush locks of the spaces, or of one space: also those that have no page in hand yet.

    Their ``seconds`` are those since the lock was taken. Of a flush that opens or syncs its store there is no other trace.
    """
    now, pids = time.clock_gettime_ns(time.CLOCK_BOOTTIME), {client[0]: client[1] for client in pool.seg.clients()}
    return [
        Operation(
            "flush",
            record["flusher"],
            pids.get(record["flusher"], 0),
            record["name"],
            None,
            max(0.0, (now - record["flush_since_ns"]) / 1e9),
            (record["index"], record["generation"]),
        )
        for record in pool.seg.spaces()
        if record["flusher"] and index in (None, record["index"])
    ]


def read_operations(pool: Inspectable) -> list[Operation]:
    """What is under way, of all clients, the one that has waited longest first."""
    pages, values = pool.seg.operations(), pool.seg.value_loads(True)
    if not pages and not values:
        return []
    records, pids = pool.seg.spaces(), {client[0]: client[1] for client in pool.seg.clients()}
    caches = pool.seg.cache_names() if values else {}
    found = [
        Operation(
            "cache_load",
            client,
            pids.get(client, 0),
            "",
            None,
            seconds,
            cache=caches.get(number, ""),
            key="" if key is None else shown_key(key),
            cache_number=number,
        )
        for client, number, key, seconds in values
    ]
    for client, kind, entry, seconds in pages:
        of_page = (r for r in records if r["first_entry"] <= entry < r["first_entry"] + r["max_pages"])
        record = next(of_page, None) if kind in ("load", "flush") else None
        found.append(
            Operation(
                kind,
                client,
                pids.get(client, 0),
                "" if record is None else record["name"],
                None if record is None else entry - record["first_entry"],
                seconds,
                (0, 0) if record is None else (record["index"], record["generation"]),
            )
        )
    return sorted(found, key=lambda operation: -operation.seconds)


def shown_key(key: bytes) -> str:
    """A key of a cache as text, from the first bytes of its form in the pool (core/python/object_values.cpp)."""
    text = printable(_text_of(key))
    return text if len(text) <= _KEY_SHOWN else f"{text[: _KEY_SHOWN - 1]}…"


def _text_of(key: bytes) -> str:
    kind, rest = key[:1], key[1:]
    if kind == b"s":
        return repr(rest.decode("utf-8", "replace"))
    if kind == b"i" and len(rest) == 8:
        return str(int.from_bytes(rest, "little", signed=True))
    if kind == b"I":
        return rest.decode("ascii", "replace")
    if kind == b"b":
        return repr(rest)
    if kind != b"t":
        return repr(key)
    parts, at = [], 4
    for _ in range(int.from_bytes(rest[:4], "little")):
        size = int.from_bytes(rest[at : at + 4], "little")
        if at + 4 >= len(rest):  # the key is longer than what was read of it
            parts.append("…")
            break
        parts.append(_text_of(rest[at + 4 : at + 4 + size]))
        at += 4 + size
    return f"({', '.join(parts)}{',' if len(parts) == 1 else ''})"
