"""The operations of clients that may hang, and how long each has made no progress: loads and flushes of pages, loads of
values of caches, syncs of the engine's log, and saves of the working set.

While such an operation hangs, its client waits, and so does each client that needs its result.
"""

import time
from dataclasses import dataclass

from bufferpool.figures.names import OperationKind
from bufferpool.figures.stats import Inspectable
from bufferpool.printable import printable

LATE_S = 1.0  # `top` and `stat` show an operation that has made no progress for so long
_KEY_SHOWN = 100  # characters


@dataclass(frozen=True)
class Operation:
    """An operation that is under way."""

    kind: OperationKind
    """A load or a flush of pages, a load of a value of a cache, a sync of the engine's log (``log_sync``), or a save of
    the working set."""
    client: int
    """The number of the client that performs it."""
    pid: int
    """The process of that client; 0 if it has left meanwhile."""
    space: str
    """Of a load or a flush, the name of the space; empty if the space has been removed."""
    page_no: int | None
    """One of its pages: of a flush the first page, of a load of several pages one that is not loaded yet; None if it is about no page."""
    seconds: float
    """Seconds without progress: since it began, or since it last claimed or published a page. The resolution is an eighth of a
    second."""
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
    """The flushes under way, found by the flush locks of all spaces or of one. A flush that opens or syncs its store has no
    page, so only the lock shows it.

    ``seconds`` counts from the moment at which the lock was taken.
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
    """The operations of all clients. Those without progress for the longest time come first."""
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
