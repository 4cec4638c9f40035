"""What is in a pool: counters, frames, extents, clients.

Everything is read through the core, which copies what has memory behind it:
looking allocates nothing.
"""

import time
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from bufferpool import _core
from bufferpool.figures.names import AGE_LIMITS_S, COUNTERS, LATENCIES, REASONS, FrameState, Kind, hit_ratio, kind_name


class Inspectable(Protocol):
    """What can be looked at: a :class:`~bufferpool.Pool`, or an :class:`~bufferpool.observer.Observer` of one."""

    @property
    def name(self) -> str: ...
    @property
    def page_size(self) -> int: ...
    @property
    def seg(self) -> _core.Segment: ...
    @property
    def geometry(self) -> dict[str, Any]: ...


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
        ("idle_s", np.float32),  # since its last use, to 0.13 s
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
    """One space's share; its counters run since it was opened first."""

    name: str
    kind: str
    pages: int
    resident: int
    dirty: int
    hits: int
    misses: int
    opened_at: float
    """Seconds since the epoch."""
    owner: int = 0
    """The client whose private space it is; 0: the pool's."""

    @property
    def shown_name(self) -> str:
        """The name, with the client that a private space belongs to: others may have one of the same name."""
        return f"{self.name} (client {self.owner})" if self.owner else self.name


@dataclass(frozen=True)
class PoolStats:
    """A pool at one moment; counters run since it was created, over all clients."""

    name: str
    page_size: int
    budget_bytes: int
    min_bytes: int
    max_bytes: int
    resident_bytes: int
    """Bytes of all frames that have memory, as the pool counts them."""
    metadata_bytes: int
    """Bytes of everything that is not page data, as the pool counts them."""
    kernel_bytes: int
    """Bytes that the kernel counts for the whole segment (st_blocks)."""
    frames: dict[str, int]
    """Frames by state: hole, free, busy, live, retired; of the live ones: clean, dirty, pinned."""
    hits: int
    misses: int
    reclaimed_bytes: dict[str, int]
    """Bytes given back to the kernel, by reason: budget, idle, pressure, drop, trim, client_exit."""
    clients: int
    durable_lsn: int
    checkpoint_lsn: int
    loads: int
    load_failures: int
    load_bytes: int
    evictions_recycled: int
    evictions_reclaimed: int
    publishes: int
    appends: int
    flushes: int
    flushed_pages: int
    foreground_flushes: int
    compacted_pages: int
    wait_load: int
    wait_writer: int
    wait_memory: int
    wait_frame: int
    reaped: int
    pins_broken: int
    rebuilds: int
    checkpoints: int
    flush_failures: int
    corrupt_pages: int
    repaired_pages: int
    latencies: dict[str, Latency]
    """Histograms of load, flush, reclaim (one call of the kernel) and wait."""
    spaces: list[SpaceStats] = field(default_factory=list)

    @property
    def hit_ratio(self) -> float:
        """Hits by references; NaN before the first."""
        return hit_ratio(self.hits, self.misses)

    @property
    def kernel_data_bytes(self) -> int:
        """What the kernel counts for page data: its figure less the metadata."""
        return self.kernel_bytes - self.metadata_bytes

    @property
    def reclaimed_total_bytes(self) -> int:
        """Bytes given back to the kernel, for all reasons."""
        return sum(self.reclaimed_bytes.values())


@dataclass(frozen=True)
class ClientInfo:
    """An attached process."""

    client: int
    pid: int
    start_time: int
    """Field 22 of /proc/PID/stat: with the pid it names a process for good."""
    attached_at: float
    """Seconds since the epoch."""
    name: str
    alive: bool
    pins: int
    pinned_frames: int
    is_steward: bool = False
    """Whether it is the process that runs the pool's background work now."""


def _ages(touched: npt.NDArray[np.uint32], has_page: npt.NDArray[np.bool_]) -> npt.NDArray[np.float32]:
    tick = np.uint32((time.clock_gettime_ns(time.CLOCK_MONOTONIC) >> _core.TICK_SHIFT) & 0xFFFFFFFF)
    ticks = (tick - touched).view(np.int32).clip(0)
    ages: npt.NDArray[np.float32] = np.where(has_page, ticks * (2**_core.TICK_SHIFT / 1e9), np.nan).astype(np.float32)
    return ages


def read_pins(pool: Inspectable) -> npt.NDArray[np.uint16]:
    """Pin counts, shape (frames with slots, max_clients), uint16; column c is client c + 1."""
    return pool.seg.raw_pins()


def read_frames(pool: Inspectable) -> npt.NDArray[np.void]:
    """Every frame that has ever been used: a structured array of dtype FRAME."""
    pins = read_pins(pool)
    slots = np.frombuffer(pool.seg.raw_frames(), _SLOT)[: len(pins)]
    pins = pins[: len(slots)]
    word = slots["word"]
    pages = (word >> np.uint64(32)).astype(np.uint32)
    out = np.zeros(len(slots), FRAME)
    out["frame"] = np.arange(len(slots))
    state = word & np.uint64(7)
    out["state"] = np.where(state <= FrameState.RETIRED, state, FrameState.BUSY)  # a damaged one is nobody's to use
    out["state"][state == _core.SETTLING] = FrameState.RETIRED  # for the moment in which a client reads its pins
    live = out["state"] == FrameState.LIVE
    entries = np.zeros(len(slots), np.uint64)
    entries[live] = pool.seg.entry_words(pages[live])  # of live frames only: other entries may have no memory
    named = live & ((entries & np.uint64(3)) == 2) & ((entries >> np.uint64(32)) == out["frame"])
    out["dirty"] = named & ((entries >> np.uint64(3)) & np.uint64(1)).astype(bool)
    out["hot"] = named & (((entries >> np.uint64(4)) & np.uint64(3)) == 2)
    out["writer"] = np.where(named, (entries >> np.uint64(8)) & np.uint64(511), 0)
    out["flusher"] = np.where(named, (entries >> np.uint64(17)) & np.uint64(511), 0)
    out["pins"] = pins.sum(axis=1, dtype=np.uint32)
    out["pinners"] = np.count_nonzero(pins, axis=1)
    out["lsn"] = np.where(live, slots["lsn"], 0)
    out["space"] = -1
    out["page_no"] = -1
    has_page = out["state"] >= FrameState.LIVE
    out["idle_s"] = _ages(slots["touched"], has_page)
    for record in pool.seg.spaces():
        first = record["first_entry"]
        inside = has_page & (pages >= first) & (pages < first + record["max_pages"])
        out["space"][inside] = record["index"]
        out["page_no"][inside] = pages[inside].astype(np.int64) - first
    return out


def read_extents(pool: Inspectable) -> npt.NDArray[np.void]:
    """Every extent that has ever been used: a structured array of dtype EXTENT."""
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
    """Who is attached, and what each pins."""
    pins, steward = read_pins(pool), pool.seg.steward()
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
            is_steward=client == steward,
        )
        for client, pid, start, attached, name, alive in pool.seg.clients()
    ]


class Counters(NamedTuple):
    """Everything that is counted, over all clients, present and past."""

    plain: dict[str, int]
    reclaimed_bytes: dict[str, int]
    spaces: npt.NDArray[np.uint64]
    """Hits and misses, shape (MAX_SPACES, 2)."""
    latencies: dict[str, Latency]


def read_counters(pool: Inspectable) -> Counters:
    """All counters, from the segment."""
    words = np.frombuffer(pool.seg.counters(), np.uint64)
    per = _core.BUCKETS + 1
    ends = np.cumsum([len(COUNTERS), len(REASONS), len(LATENCIES) * per])
    plain, reclaimed, latencies, spaces = np.split(words, ends)
    return Counters(
        dict(zip(COUNTERS, map(int, plain), strict=True)),
        dict(zip(REASONS, map(int, reclaimed), strict=True)),
        spaces.reshape(_core.MAX_SPACES, 2),
        {
            name: Latency(tuple(map(int, row[:-1])), int(row[-1]) / 1e9)
            for name, row in zip(LATENCIES, latencies.reshape(-1, per), strict=True)
        },
    )


@dataclass(frozen=True)
class Summary:
    """The frames of a pool, counted in one pass of the core."""

    frames: dict[str, int]
    """By state: hole, free, busy, live, retired; of the live ones: clean, dirty, pinned, hot, pinned_live (those of the
    pinned ones that are live) and pinned_dirty."""
    ages: dict[float, int]
    """Resident pages by the time since their last use: upper limit in seconds (inf at last) -> pages."""
    held_back: int
    """Dirty pages whose LSN is above the durable LSN: they cannot be written."""
    spaces: npt.NDArray[np.uint64]
    """Resident and dirty pages, shape (MAX_SPACES, 2)."""


def read_summary(pool: Inspectable) -> Summary:
    """The figures of :class:`Summary`, now; a few milliseconds for a million frames, and no memory."""
    found = pool.seg.summary()
    frames = {state.name.lower(): int(n) for state, n in zip(FrameState, found["states"], strict=True)}
    frames["clean"] = frames["live"] - found["dirty"]
    frames |= {name: int(found[name]) for name in ("dirty", "pinned", "pinned_live", "pinned_dirty", "hot")}
    return Summary(
        frames=frames,
        ages=dict(zip(AGE_LIMITS_S, found["ages"], strict=True)),
        held_back=found["held_back"],
        spaces=np.frombuffer(found["spaces"], np.uint64).reshape(_core.MAX_SPACES, 2),
    )


def read_unsaved(pool: Inspectable) -> dict[str, int]:
    """Dirty pages of spaces that have a file or a store, by the name of the space: what would be lost with the pool."""
    dirty = read_summary(pool).spaces[:, 1]
    written = (r for r in pool.seg.spaces() if r["kind"] in (Kind.FILE, Kind.STORE) and dirty[r["index"]])
    return {r["name"]: int(dirty[r["index"]]) for r in written}


def read_spaces(pool: Inspectable, counters: Counters, summary: Summary) -> list[SpaceStats]:
    """The live spaces; a space that came after ``counters`` were read has no hits yet."""
    return [_space_stats(record, counters, summary) for record in pool.seg.spaces()]


def read_space(pool: Inspectable, index: int, generation: int | None) -> SpaceStats | None:
    """One space, now; None if it has been removed."""
    for record in pool.seg.spaces():
        if (record["index"], record["generation"]) == (index, generation):
            return _space_stats(record, read_counters(pool), read_summary(pool))
    return None


def _space_stats(record: dict[str, Any], counters: Counters, summary: Summary) -> SpaceStats:
    index = record["index"]
    return SpaceStats(
        record["name"],
        kind_name(record["kind"]),
        record["pages"],
        resident=int(summary.spaces[index, 0]),
        dirty=int(summary.spaces[index, 1]),
        hits=max(0, int(counters.spaces[index, 0]) - record["hits_before"]),
        misses=max(0, int(counters.spaces[index, 1]) - record["misses_before"]),
        opened_at=record["opened_ns"] / 1e9,
        owner=record["owner"],
    )


def read_stats(pool: Inspectable) -> PoolStats:
    """The figures of :class:`PoolStats`, now."""
    counters, summary = read_counters(pool), read_summary(pool)
    return stats_of(pool, counters, summary)


def stats_of(pool: Inspectable, counters: Counters, summary: Summary) -> PoolStats:
    """The figures of :class:`PoolStats`, from what was read already."""
    status = pool.seg.status()
    size = pool.page_size
    return PoolStats(
        name=pool.name,
        page_size=size,
        budget_bytes=status["budget_frames"] * size,
        min_bytes=status["min_frames"] * size,
        max_bytes=pool.geometry["max_frames"] * size,
        resident_bytes=status["resident_frames"] * size,
        metadata_bytes=status["metadata_bytes"],
        kernel_bytes=status["kernel_bytes"],
        frames=summary.frames,
        hits=int(counters.spaces[:, 0].sum()),
        misses=int(counters.spaces[:, 1].sum()),
        reclaimed_bytes=counters.reclaimed_bytes,
        clients=sum(client[0] <= pool.geometry["max_clients"] for client in pool.seg.clients()),  # without guests
        durable_lsn=status["durable_lsn"],
        checkpoint_lsn=status["checkpoint_lsn"],
        latencies=counters.latencies,
        spaces=read_spaces(pool, counters, summary),
        **counters.plain,
    )
