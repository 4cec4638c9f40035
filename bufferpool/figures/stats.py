"""Reads what is in a pool: counters, frames, extents, clients.

The core copies only what has memory behind it, so reading allocates no memory in the segment.
"""

import os
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from bufferpool import _core
from bufferpool.figures import words
from bufferpool.figures.names import (
    AGE_LIMITS_S,
    COUNTERS,
    ERROR_CLASSES,
    LATENCIES,
    OPERATION_KINDS,
    REASONS,
    FrameState,
    Kind,
    OperationKind,
    cache_of,
    hit_ratio,
    kind_name,
    mode_name,
)
from bufferpool.units import counted, format_size

TICK_S = 2**_core.TICK_SHIFT / 1e9
"""The unit of the times of last use, in seconds."""


class Inspectable(ABC):
    """What can be looked at: a segment to which this process is attached, or which it observes."""

    @property
    @abstractmethod
    def path(self) -> str:
        """The path of the pool's segment."""

    @property
    @abstractmethod
    def seg(self) -> _core.Segment:
        """The segment in the core (internal)."""

    @property
    @abstractmethod
    def geometry(self) -> dict[str, Any]:
        """The sizes and limits that were fixed when the segment was created (internal)."""

    @property
    def name(self) -> str:
        """The pool's name: that of its file."""
        return os.path.basename(self.path)

    @property
    def page_size(self) -> int:
        """Bytes of a page."""
        return int(self.geometry["page_size"])

    @property
    def max_frames(self) -> int:
        """Frames that the budget may be: ``max_capacity``, or what ``resize`` last asked for if that is more."""
        return int(self.seg.status()["max_frames"])

    @property
    def uuid(self) -> bytes:
        """The bytes that distinguish this pool from another one that had its name before."""
        return bytes(self.geometry["uuid"])


FRAME = np.dtype(
    [
        ("frame", np.uint32),  # its number
        ("state", np.uint8),  # FrameState
        ("space", np.int16),  # index of the page's space, -1 for none
        ("page_no", np.int64),  # -1 for none
        ("dirty", np.bool_),
        ("hot", np.bool_),  # in the policy's hot ring
        ("writer", np.uint16),  # the client that writes the page, 0 for none
        ("flusher", np.uint16),  # the client that writes it back, 0 for none
        ("pins", np.uint32),  # of all clients
        ("pinners", np.uint16),  # clients that pin it
        ("lsn", np.uint64),
        ("idle_s", np.float32),  # seconds since its last use, with a resolution of 0.13 s
    ]
)

EXTENT = np.dtype(
    [("extent", np.uint32)]
    + [(name, np.uint32) for name in ("hole", "free", "busy", "live", "retired", "pinned", "dirty")]
)

_SLOT = np.dtype(
    {
        "names": ["word", "lsn", "touched"],
        "formats": [np.uint64, np.uint64, np.uint32],
        "offsets": [0, 8, 16],
        "itemsize": _core.FRAME_SLOT_BYTES,
    }
)


class Latency(NamedTuple):
    """A histogram of durations: a count for each bucket, and their sum in seconds."""

    counts: tuple[int, ...]
    sum_s: float


@dataclass(frozen=True)
class SpaceStats:
    """The figures of one space. Its counters run since the space was created."""

    name: str
    """The name of the space in its pool."""
    kind: str
    """What is behind its pages: "file", "store", "derived" or "scratch"."""
    pages: int
    """Pages that the space has."""
    resident: int
    """Pages of it that are in the pool."""
    dirty: int
    """Pages of it that its store does not have yet."""
    hits: int
    """Uses of its pages that were in the pool."""
    misses: int
    """Uses of its pages that had to be loaded first."""
    opened_at: float
    """Seconds since the epoch."""
    owner: int = 0
    """The client that a private space belongs to; 0 for a space of the pool."""
    cache: str = ""
    """Of a file: "pool" if only the pool keeps its pages, "kernel" if the kernel's page cache keeps them too; else ""."""
    load_failures: dict[str, int] = field(default_factory=dict)
    """Loads that its store or loader failed, by class of error (``ERROR_CLASSES``)."""
    flush_failures: dict[str, int] = field(default_factory=dict)
    """Flushes that its store failed, by class of error."""
    number: int = 0
    """The number of its slot, from 0, which the static probes (USDT) tell."""
    path: str = ""
    """The path of a file; else ""."""
    limit: int = 0
    """The most bytes that its pages may have in the pool; 0: all of it."""
    reserve: int = 0
    """Bytes of its pages that other spaces cannot take."""
    page_size: int = 0
    """Bytes of one of its pages."""

    @property
    def shown_name(self) -> str:
        """The name; that of a private space with its client, because clients may use the same name."""
        return f"{self.name} (client {self.owner})" if self.owner else self.name


@dataclass(frozen=True)
class CacheStats:
    """What a cache has, and what its clients have counted so far."""

    name: str
    """The name of the cache in its pool."""
    count: int
    """Values, and loads under way. A value that has expired, and the error of a load that failed, which those who waited
    for it get, count until they are replaced or evicted."""
    bytes: int
    """Of their records: keys and values, rounded up to 16 bytes."""
    limit: int
    """The most bytes that they may take; 0: what the pool lends."""
    reserve: int
    """Bytes that other caches cannot take from it."""
    hits: int
    """Lookups that found a value."""
    misses: int
    """Lookups that found none."""
    puts: int
    """Values that were stored, those of loads included."""
    loads: int
    """Calls of loaders: once for all callers that wait for the same value."""
    load_failures: int
    """Loads whose loader raised an exception."""
    waits: int
    """Calls that waited for the load of another thread or process."""
    evictions: int
    """Values that were evicted, so that others have room."""
    refused: int
    """Values that were not kept: too large, or there was no room."""
    superseded: int
    """Loaded values that were not kept, because the key was put or deleted meanwhile."""

    @property
    def hit_ratio(self) -> float:
        """Hits among all lookups; NaN before the first."""
        return hit_ratio(self.hits, self.misses)


@dataclass(frozen=True)
class FrameCounts:
    """How many frames are in each state. The first five add up to all frames of the pool."""

    hole: int
    """Frames without memory."""
    free: int
    """Frames that have memory and hold no page."""
    busy: int
    """Frames that a client is filling or emptying at the moment."""
    live: int
    """Frames that hold the newest version of a page."""
    retired: int
    """Frames that hold a superseded version of a page, which a reader still pins."""
    clean: int
    """Live frames whose page its store has."""
    dirty: int
    """Live frames whose page its store does not have yet."""
    pinned: int
    """Frames that a client pins, live or old."""
    pinned_live: int
    """Live frames that a client pins."""
    pinned_dirty: int
    """Live frames that are dirty and that a client pins."""
    hot: int
    """Live frames in the hot ring of the replacement policy."""

    def shown(self) -> dict[str, int]:
        """Frames by the state that commands and metrics show, each frame once.

        A live frame is pinned if a client pins it, or else dirty or clean. A retired frame holds a superseded version
        of a page: it does not count as pinned.
        """
        dirty = self.dirty - self.pinned_dirty
        return {
            "hole": self.hole,
            "free": self.free,
            "busy": self.busy,
            "clean": max(0, self.live - self.pinned_live - dirty),
            "dirty": dirty,
            "pinned": self.pinned_live,
            "retired": self.retired,
        }


@dataclass(frozen=True, repr=False)
class PoolStats:
    """The figures of a pool at one moment. Counters run since it was created, over all clients."""

    name: str
    """The pool's name."""
    page_size: int
    """Bytes of a page."""
    budget_bytes: int
    """Bytes that the pages may take now."""
    min_bytes: int
    """The least budget that a steward sets."""
    max_bytes: int
    """The largest budget that a steward sets: max_capacity, or what was last asked for by hand if that is more."""
    room_bytes: int
    """The largest budget that may be asked for by hand (``resize``)."""
    resident_bytes: int
    """Bytes of all frames that have memory, as the pool counts them."""
    metadata_bytes: int
    """Bytes of everything that is not page data, as the pool counts them."""
    kernel_bytes: int
    """Bytes that the kernel counts for the whole segment (st_blocks)."""
    frames: FrameCounts
    """Frames by state."""
    hits: int
    """Uses of pages that were in the pool."""
    misses: int
    """Uses of pages that had to be loaded first."""
    reclaimed_bytes: dict[str, int]
    """Bytes given back to the kernel, by reason: budget, idle, pressure, drop, trim, client_exit."""
    clients: int
    """Processes that are attached."""
    durable_lsn: int
    """The LSN up to which the log is durable; 2**64 - 1 while no engine has set it."""
    checkpoint_lsn: int
    """The LSN that the last checkpoint returned: recovery starts there."""
    loads: int
    """Pages loaded from files, stores and loaders."""
    prefetched: int
    """Pages that were read ahead (``prefetch``, ``scan``). Their first use counts as a miss, not as a hit."""
    prefetched_unused: int
    """Pages that were read ahead and evicted before anybody used them."""
    load_failures: int
    """Loads that failed: in the store or the loader, or because no frame was available (``exhausted``)."""
    exhausted: int
    """How often no frame was available (PoolExhausted)."""
    load_bytes: int
    """Bytes of the pages that were loaded."""
    evictions_recycled: int
    """Pages evicted so that their frames hold other pages."""
    evictions_reclaimed: int
    """Pages evicted so that the memory of their frames returns to the kernel."""
    eviction_age_sum_s: float
    """The time since their last use of all pages that were evicted, added up, in seconds."""
    publishes: int
    """New versions of pages that were published."""
    appends: int
    """Pages that were appended."""
    flushes: int
    """Batches of dirty pages that were written and synced."""
    flushed_pages: int
    """Pages that were written and synced."""
    foreground_flushes: int
    """Batches that were written because a miss or a resize found no clean frame."""
    compacted_pages: int
    """Pages moved to another frame so that a whole extent could return to the kernel."""
    wait_load: int
    """Waits for a page that another thread or process loads."""
    wait_writer: int
    """Waits for another writer of the same page."""
    wait_memory: int
    """Waits for the lock of the pool's memory."""
    wait_frame: int
    """Waits for a free frame."""
    refused_clients: int
    """Attempts to attach that found every client slot taken (TooManyClients)."""
    held_back_pages: int
    """Dirty pages that must not be written yet, because their LSN is above the durable LSN of the log."""
    pending_operations: dict[OperationKind, int]
    """How many operations of each kind are under way now: see :class:`Operation`."""
    oldest_operation_s: dict[OperationKind, float]
    """How long the one of each kind that has waited longest has made no progress, in seconds; 0 if none is under way."""
    reaped: int
    """Clients that died and were reaped. A process that ends in good order while a store hangs is not counted."""
    pins_broken: int
    """Pins of dead clients that were released."""
    rebuilds: int
    """How often the lists of frames were rebuilt because a process died while it changed them."""
    checkpoints: int
    """Checkpoints that were made."""
    checkpoint_at: float
    """When the last checkpoint was, in seconds since the epoch; 0 if there was none."""
    flush_failures: int
    """Batches of dirty pages that could not be written or synced."""
    corrupt_pages: int
    """Pages whose checksum did not match when they were loaded."""
    repaired_pages: int
    """Corrupt pages for which the space's ``repair`` had the right bytes."""
    mode_changes: int
    """How often the replacement policy changed its mode."""
    policy_mode: str
    """The mode of the replacement policy: adaptive, recency or loop (:class:`PolicyMode`)."""
    latencies: dict[str, Latency]
    """Histograms of load, flush (write and sync), sync, reclaim (one call of the kernel) and wait."""
    object_bytes: int = 0
    """Bytes of memory that the values of caches have, beside the pages."""
    lent_bytes: int = 0
    """Bytes of the budget that pages have given up for the values of caches."""
    spaces: list[SpaceStats] = field(default_factory=list)
    """The spaces of the pool."""
    caches: list[CacheStats] = field(default_factory=list)
    """The caches of the pool."""
    by_page_size: "dict[int, PoolStats]" = field(default_factory=dict)
    """The figures of each page size, its own first; {} for a pool with one. Then the figures of the pool are their sums;
    but ``page_size``, the policy's mode, checkpoints, and the bounds of the budget are those of the pool's own size."""

    def __repr__(self) -> str:
        frames = self.frames
        return (
            f"<PoolStats of {self.name!r}: {format_size(self.resident_bytes)} resident of a budget of "
            f"{format_size(self.budget_bytes)}; {counted(frames.live, 'page')}, {frames.dirty} dirty, {frames.pinned_live} pinned; "
            f"{counted(self.hits, 'hit')}, {counted(self.misses, 'miss', 'misses')}; {counted(len(self.spaces), 'space')}, {counted(self.clients, 'client')}>"
        )

    @property
    def hit_ratio(self) -> float:
        """Hits divided by references; NaN before the first reference."""
        return hit_ratio(self.hits, self.misses)

    @property
    def eviction_age_s(self) -> float:
        """How long evicted pages had not been used, on average; NaN before the first eviction."""
        evictions = self.evictions_recycled + self.evictions_reclaimed
        return self.eviction_age_sum_s / evictions if evictions else float("nan")

    @property
    def kernel_data_bytes(self) -> int:
        """The kernel's count less the metadata: the bytes of page data."""
        return self.kernel_bytes - self.metadata_bytes

    @property
    def reclaimed_total_bytes(self) -> int:
        """Bytes given back to the kernel, the sum over all reasons."""
        return sum(self.reclaimed_bytes.values())


@dataclass(frozen=True)
class ClientInfo:
    """An attached process."""

    client: int
    """Its client number."""
    pid: int
    """Its process id."""
    start_time: int
    """Field 22 of /proc/PID/stat: together with the pid it identifies a process."""
    attached_at: float
    """Seconds since the epoch."""
    name: str
    """The name of its program."""
    alive: bool
    """Whether the process lives; a dead one has not been reaped yet."""
    pins: int
    """Pins that it holds."""
    pinned_frames: int
    """Frames that it pins."""
    held_bytes: int
    """Memory of values of caches that it holds."""
    is_steward: bool = False
    """Whether this process is the active steward."""


def _ages(touched: npt.NDArray[np.uint32], has_page: npt.NDArray[np.bool_]) -> npt.NDArray[np.float32]:
    tick = np.uint32((time.clock_gettime_ns(time.CLOCK_MONOTONIC) >> _core.TICK_SHIFT) & 0xFFFFFFFF)
    ticks = (tick - touched).view(np.int32).clip(0)
    ages: npt.NDArray[np.float32] = np.where(has_page, ticks * TICK_S, np.nan).astype(np.float32)
    return ages


def read_pins(pool: Inspectable) -> npt.NDArray[np.uint16]:
    """Pin counts, shape (frames with slots, slots of clients that have memory), uint16; column c is client c + 1."""
    return pool.seg.raw_pins()


def read_frames(pool: Inspectable) -> npt.NDArray[np.void]:
    """The frames that have ever been used: a structured array, shape (frames,), dtype FRAME."""
    pins = read_pins(pool)
    slots = np.frombuffer(pool.seg.raw_frames(), _SLOT)[: len(pins)]
    pins = pins[: len(slots)]
    word = slots["word"]
    pages = words.page_of(word)
    out = np.zeros(len(slots), FRAME)
    out["frame"] = np.arange(len(slots))
    state = words.state_of(word)
    # JOINING, while several pages are published as one, is shown as BUSY, and so is a damaged word.
    out["state"] = np.where(state <= FrameState.RETIRED, state, FrameState.BUSY)
    out["state"][state == _core.SETTLING] = FrameState.RETIRED  # a short state, while a client reads the pins
    live = out["state"] == FrameState.LIVE
    entries = np.zeros(len(slots), np.uint64)
    entries[live] = pool.seg.entry_words(pages[live])  # of live frames only: other entries may have no memory
    named = live & words.is_resident(entries) & (words.frame_of(entries) == out["frame"])
    out["dirty"] = named & words.is_dirty(entries)
    out["hot"] = named & words.is_hot(entries)
    out["writer"] = np.where(named, words.writer_of(entries), 0)
    out["flusher"] = np.where(named, words.flusher_of(entries), 0)
    out["pins"] = pins.sum(axis=1, dtype=np.uint32)
    out["pinners"] = np.count_nonzero(pins, axis=1)
    out["lsn"] = np.where(live, slots["lsn"], 0)
    out["space"] = -1
    out["page_no"] = -1
    has_page = out["state"] >= FrameState.LIVE
    out["idle_s"] = _ages(slots["touched"], has_page)
    runs = sorted((r["first_entry"], r["first_entry"] + r["max_pages"], r["index"]) for r in pool.seg.spaces())
    if runs:  # they do not overlap
        first, end, index = np.array(runs, np.int64).T
        run = np.searchsorted(first, pages, side="right") - 1
        inside = has_page & (run >= 0) & (pages < end[run])
        out["space"][inside] = index[run[inside]]
        out["page_no"][inside] = pages[inside].astype(np.int64) - first[run[inside]]
    return out


def read_extents(pool: Inspectable) -> npt.NDArray[np.void]:
    """The extents that have ever been used: a structured array, shape (extents,), dtype EXTENT; counts of frames."""
    frames = read_frames(pool)
    per = pool.geometry["extent_frames"]
    extents = np.zeros(-(-len(frames) // per), EXTENT)
    extents["extent"] = np.arange(len(extents))
    where = frames["frame"] // per
    for state in FrameState:
        extents[state.name.lower()] = np.bincount(where[frames["state"] == state], minlength=len(extents))
    extents["pinned"] = np.bincount(where[frames["pins"] > 0], minlength=len(extents))
    extents["dirty"] = np.bincount(where[frames["dirty"]], minlength=len(extents))
    return extents


def read_clients(pool: Inspectable) -> list[ClientInfo]:
    """The attached clients, and how many frames each pins."""
    found = pool.seg.clients()
    pins, steward, held = read_pins(pool), pool.seg.steward(), dict(pool.seg.held_objects())
    return [
        ClientInfo(
            client=client,
            pid=pid,
            start_time=start,
            attached_at=attached / 1e9,
            name=name,
            alive=alive,
            pins=int(pins[:, client - 1].sum(dtype=np.uint64)),
            pinned_frames=int(np.count_nonzero(pins[:, client - 1])),
            held_bytes=held.get(client, 0),
            is_steward=client == steward,
        )
        for client, pid, start, attached, name, alive in found
    ]


class Counters(NamedTuple):
    """All counters of a pool, over all clients, present and past."""

    plain: dict[str, int]
    reclaimed_bytes: dict[str, int]
    spaces: npt.NDArray[np.uint64]
    """Hits and misses by space, shape (MAX_SPACES, 2), uint64."""
    latencies: dict[str, Latency]


_PER_LATENCY = _core.BUCKETS + 1
_PARTS = tuple(np.cumsum([len(COUNTERS), len(REASONS), len(LATENCIES) * _PER_LATENCY]).tolist())
"""Where the parts of ``Segment.counters()`` end: the plain counters, the reclaimed bytes, the histograms."""


def read_counters(pool: Inspectable) -> Counters:
    """Reads all counters."""
    words = np.frombuffer(pool.seg.counters(), np.uint64)
    plain, reclaimed, latencies, spaces = np.split(words, _PARTS)
    return Counters(
        dict(zip(COUNTERS, map(int, plain), strict=True)),
        dict(zip(REASONS, map(int, reclaimed), strict=True)),
        spaces.reshape(-1, 2),
        {
            name: Latency(tuple(map(int, row[:-1])), int(row[-1]) / 1e9)
            for name, row in zip(LATENCIES, latencies.reshape(-1, _PER_LATENCY), strict=True)
        },
    )


@dataclass(frozen=True)
class Summary:
    """The frames of a pool, counted in one pass of the core."""

    frames: FrameCounts
    ages: dict[float, int]
    """Resident pages by the time since their last use: upper limit of the band in seconds (the last: inf) -> pages."""
    held_back: int
    """Dirty pages whose LSN is above the durable LSN: they cannot be written."""
    spaces: npt.NDArray[np.uint64]
    """Resident and dirty pages by space, shape (MAX_SPACES, 2), uint64."""


def read_summary(pool: Inspectable) -> Summary:
    """Reads a :class:`Summary`; takes a few milliseconds for a million frames."""
    found = pool.seg.summary()
    states = {state.name.lower(): int(n) for state, n in zip(FrameState, found["states"], strict=True)}
    counted = {name: int(found[name]) for name in ("dirty", "pinned", "pinned_live", "pinned_dirty", "hot")}
    return Summary(
        frames=FrameCounts(clean=states["live"] - counted["dirty"], **states, **counted),
        ages=dict(zip(AGE_LIMITS_S, found["ages"], strict=True)),
        held_back=found["held_back"],
        spaces=np.frombuffer(found["spaces"], np.uint64).reshape(-1, 2),
    )


def pair_of(table: npt.NDArray[np.uint64], index: int) -> tuple[int, int]:
    """Two figures of a space; zeros if its slot was used for the first time after the table was read."""
    return (int(table[index, 0]), int(table[index, 1])) if index < len(table) else (0, 0)


def read_unsaved(pool: Inspectable) -> dict[str, int]:
    """Unsaved pages by the name of their space: dirty pages of files and stores, which would be lost with the pool."""
    table = read_summary(pool).spaces
    written = [r for r in pool.seg.spaces() if r["kind"] in (Kind.FILE, Kind.STORE)] if table[:, 1].any() else []
    return {r["name"]: dirty for r in written if (dirty := pair_of(table, r["index"])[1])}


def read_spaces(pool: Inspectable, counters: Counters, summary: Summary) -> list[SpaceStats]:
    """The figures of the live spaces. A space that was created after ``counters`` were read shows no hits yet."""
    return [_space_stats(pool, record, counters, summary) for record in pool.seg.spaces()]


def read_space(pool: Inspectable, index: int, generation: int | None) -> SpaceStats | None:
    """Reads the figures of one space; None if it has been removed."""
    record = pool.seg.space(index)
    if record is None or record["generation"] != generation:
        return None
    return _space_stats(pool, record, read_counters(pool), read_summary(pool))


def _space_stats(pool: Inspectable, record: dict[str, Any], counters: Counters, summary: Summary) -> SpaceStats:
    resident, dirty = pair_of(summary.spaces, record["index"])
    hits, misses = pair_of(counters.spaces, record["index"])
    loads, flushes = pool.seg.failures(record["index"])
    return SpaceStats(
        record["name"],
        kind_name(record["kind"]),
        record["pages"],
        resident=resident,
        dirty=dirty,
        hits=max(0, hits - record["hits_before"]),
        misses=max(0, misses - record["misses_before"]),
        opened_at=record["opened_ns"] / 1e9,
        owner=record["owner"],
        cache=cache_of(record["flags"]) if record["kind"] == Kind.FILE else "",
        load_failures=dict(zip(ERROR_CLASSES, loads, strict=True)),
        flush_failures=dict(zip(ERROR_CLASSES, flushes, strict=True)),
        number=record["index"],
        path=record["path"] if record["kind"] == Kind.FILE else "",
        limit=record["limit"],
        reserve=record["reserve"],
        page_size=pool.page_size,
    )


def read_caches(pool: Inspectable) -> list[CacheStats]:
    """The caches of the pool."""
    return [CacheStats(**one) for one in pool.seg.caches()]


def read_pending(pool: Inspectable) -> dict[OperationKind, list[float]]:
    """For each kind of operation, the seconds for which each one under way has made no progress."""
    found: dict[OperationKind, list[float]] = {kind: [] for kind in OPERATION_KINDS}
    for _, kind, _, seconds in pool.seg.operations():
        found[kind].append(seconds)
    found["cache_load"] = [load[3] for load in pool.seg.value_loads(False)]
    return found


_ADDED = (
    "resident_bytes", "metadata_bytes", "kernel_bytes", "hits", "misses", "loads", "prefetched", "prefetched_unused",
    "load_failures", "exhausted", "load_bytes", "evictions_recycled", "evictions_reclaimed", "eviction_age_sum_s",
    "publishes", "appends", "flushes", "flushed_pages", "foreground_flushes", "compacted_pages", "wait_load",
    "wait_writer", "wait_memory", "wait_frame", "refused_clients", "held_back_pages", "reaped", "pins_broken", "rebuilds",
    "flush_failures", "corrupt_pages", "repaired_pages", "mode_changes", "object_bytes", "lent_bytes",
)  # fmt: skip


def added(own: PoolStats, others: list[PoolStats], budget_bytes: int) -> PoolStats:
    """The figures of a pool with several page sizes: sums, in bytes where pages differ; a frame counts as one, of any size."""
    every = [own, *others]
    sums = {name: sum(getattr(one, name) for one in every) for name in _ADDED}
    counts = {name: sum(getattr(one.frames, name) for one in every) for name in vars(own.frames)}
    latencies = {
        name: Latency(
            tuple(map(sum, zip(*(one.latencies[name].counts for one in every), strict=True))),
            sum(one.latencies[name].sum_s for one in every),
        )
        for name in own.latencies
    }
    return replace(
        own,
        **sums,
        budget_bytes=budget_bytes,
        clients=max(one.clients for one in every),
        frames=FrameCounts(**counts),
        latencies=latencies,
        reclaimed_bytes={r: sum(one.reclaimed_bytes[r] for one in every) for r in own.reclaimed_bytes},
        pending_operations={k: sum(one.pending_operations[k] for one in every) for k in own.pending_operations},
        oldest_operation_s={k: max(one.oldest_operation_s[k] for one in every) for k in own.oldest_operation_s},
        spaces=[space for one in every for space in one.spaces],
        by_page_size={one.page_size: one for one in every},
    )


def read_stats(pool: Inspectable) -> PoolStats:
    """Reads a :class:`PoolStats`."""
    counters, summary = read_counters(pool), read_summary(pool)
    return stats_of(pool, counters, summary)


def stats_of(pool: Inspectable, counters: Counters, summary: Summary) -> PoolStats:
    """Makes a :class:`PoolStats` of counters and a summary that were read already."""
    status = pool.seg.status()
    size = pool.page_size
    plain = dict(counters.plain)
    under_way = read_pending(pool)
    return PoolStats(
        name=pool.name,
        page_size=size,
        budget_bytes=status["budget_frames"] * size,
        min_bytes=status["min_frames"] * size,
        max_bytes=status["max_frames"] * size,
        room_bytes=pool.geometry["room_frames"] * size,
        resident_bytes=status["resident_frames"] * size,
        metadata_bytes=status["metadata_bytes"],
        kernel_bytes=status["kernel_bytes"],
        frames=summary.frames,
        hits=int(counters.spaces[:, 0].sum()),
        misses=int(counters.spaces[:, 1].sum()),
        reclaimed_bytes=counters.reclaimed_bytes,
        clients=status["clients"],
        durable_lsn=status["durable_lsn"],
        checkpoint_lsn=status["checkpoint_lsn"],
        policy_mode=mode_name(status["policy_mode"]),
        latencies=counters.latencies,
        object_bytes=status["object_bytes"],
        lent_bytes=status["lent_frames"] * size,
        spaces=read_spaces(pool, counters, summary),
        caches=read_caches(pool),
        eviction_age_sum_s=plain.pop("eviction_ticks") * TICK_S,
        refused_clients=status["refused_clients"],
        held_back_pages=summary.held_back,
        pending_operations={kind: len(found) for kind, found in under_way.items()},
        oldest_operation_s={kind: max(found, default=0.0) for kind, found in under_way.items()},
        checkpoint_at=status["checkpoint_ns"] / 1e9,
        by_page_size={},
        **plain,
    )
