"""Metrics for Prometheus: one Collector that reads any number of pools from their segments.

::

    from prometheus_client import REGISTRY
    from bufferpool.prometheus import PoolCollector

    REGISTRY.register(PoolCollector())  # every pool in /dev/shm that this user may read

A pool's counters lie in its segment, and include those of dead clients. So any
process can export the whole pool: the application itself, each worker of a prefork
server (they all give the same answer; no multiprocess mode), or ``bufferpool export``.
A scrape takes no client slot, no lock, and no memory of the segment; between two
scrapes the collector keeps nothing open.

Names and units follow the Prometheus conventions; docs/metrics.md lists them all.
"""

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
    SummaryMetricFamily,
)
from prometheus_client.registry import Collector

import bufferpool
from bufferpool import _core
from bufferpool.client import segment_file
from bufferpool.errors import BufferPoolError, LayoutMismatch, SegmentCorrupt, SegmentNotFound
from bufferpool.figures import events
from bufferpool.figures import stats as pool_stats
from bufferpool.figures.advice import Advice, AdvicePoint
from bufferpool.figures.names import AGE_BANDS, EventKind, EventReason, PolicyMode
from bufferpool.figures.stats import SpaceStats
from bufferpool.machine import pressure
from bufferpool.observer import Observer
from bufferpool.printable import printable

AGES = tuple(AGE_BANDS)

_LIMITS = [str(2.0 ** (_core.BUCKET_SHIFT + i) / 1e9) for i in range(_core.BUCKETS - 1)] + ["+Inf"]


@dataclass(frozen=True)
class Snapshot:
    """The figures of one pool, read at one moment: everything that is exported."""

    stats: pool_stats.PoolStats
    summary: pool_stats.Summary
    created_at: float
    """Seconds since the epoch."""
    alive: int
    dead: int
    """The number of attached clients that live, and of those that died and have not been reaped yet."""
    max_clients: int
    steward: bool
    advice: Advice
    events: dict[tuple[EventKind, EventReason], float]
    """The time of the last event of each kind and reason, in seconds since the epoch."""
    posted: dict[tuple[EventKind, EventReason], int]
    """How many events of each kind and reason there have been."""


def read_snapshot(name: str, directory: str | os.PathLike[str] | None = None) -> Snapshot:
    """Reads one pool as an observer. Raises SegmentError (or a subclass), and OSError."""
    with Observer(name, directory=directory) as pool:
        counters, summary = pool_stats.read_counters(pool), pool_stats.read_summary(pool)
        alive = [client[-1] for client in pool.seg.clients()]
        return Snapshot(
            stats=pool_stats.stats_of(pool, counters, summary),
            summary=summary,
            created_at=pool.created_at,
            alive=alive.count(True),
            dead=alive.count(False),
            max_clients=pool.geometry["max_clients"],
            steward=pool.seg.steward() != 0,
            advice=pool.advise(),
            events=events.last_times(pool),
            posted=events.posted(pool),
        )


# ---- what is exported --------------------------------------------------------------

Sample = tuple[tuple[str, ...], float | tuple[float, float]]
"""Label values (after the pool's name), and the value; of a summary, the count and the sum."""


@dataclass(frozen=True)
class Family:
    """One metric: its name, its help text, and how its samples are read from a snapshot."""

    kind: type[GaugeMetricFamily] | type[CounterMetricFamily] | type[SummaryMetricFamily]
    name: str
    help: str
    read: Callable[[Snapshot], Iterable[Sample]]
    labels: tuple[str, ...] = ()
    unit: str = ""


def _text(name: str) -> str:
    """A name as a label value: bytes that are not UTF-8, and control characters, are escaped."""
    return printable(name.encode(errors="surrogateescape").decode(errors="replace"))


def _gauge(name: str, help: str, value: Callable[[Snapshot], float], unit: str = "") -> Family:
    return Family(GaugeMetricFamily, name, help, lambda s: [((), value(s))], unit=unit)


def _counter(name: str, help: str, field: str, unit: str = "") -> Family:
    return Family(CounterMetricFamily, name, help, lambda s: [((), getattr(s.stats, field))], unit=unit)


def _frames(snapshot: Snapshot) -> Iterator[Sample]:
    """The frames by state. Each frame is counted once: the values add up to the pool's maximum."""
    return (((state,), n) for state, n in snapshot.summary.frames.shown().items())


def _per_space(field: str) -> Callable[[Snapshot], Iterable[Sample]]:
    """A sample for each space. A private space is labelled with its client, because clients may use the same name."""
    return lambda snapshot: [(_labels(space), getattr(space, field)) for space in snapshot.stats.spaces]


_CLASSES = (
    "io (the device), full (it or a quota), access (permission), missing (the file or device is gone), corrupt (a checksum, "
    "or a file that was cut or changed), code (an error without an errno), other."
)


def _per_class(field: str) -> Callable[[Snapshot], Iterable[Sample]]:
    """A sample for each space and each class of error that there has been: most spaces have none."""
    return lambda snapshot: [
        ((*_labels(space), error), n)
        for space in snapshot.stats.spaces
        for error, n in getattr(space, field).items()
        if n
    ]


def _labels(space: SpaceStats) -> tuple[str, str]:
    return _text(space.name), str(space.owner or "")


MEMORY = (
    _gauge("bufferpool_resident_bytes", "Bytes of all frames that have memory behind them: what the pool's pages take.",
           lambda s: s.stats.resident_bytes, "bytes"),
    _gauge("bufferpool_budget_bytes", "Bytes that the pool's pages may take now; moved by resize() and by the steward.",
           lambda s: s.stats.budget_bytes, "bytes"),
    _gauge("bufferpool_min_bytes", "The lower bound of the budget: the steward sets no lower one.",
           lambda s: s.stats.min_bytes, "bytes"),
    _gauge("bufferpool_max_bytes", "The upper bound of the budget: the steward does not raise the budget above it; resize() does.",
           lambda s: s.stats.max_bytes, "bytes"),
    _gauge("bufferpool_room_bytes", "How far resize() can raise the budget, fixed when the pool was created.",
           lambda s: s.stats.room_bytes, "bytes"),
    _gauge("bufferpool_kernel_bytes", "Bytes that the kernel counts for the whole segment (st_blocks): pages and metadata.",
           lambda s: s.stats.kernel_bytes, "bytes"),
    _gauge("bufferpool_metadata_bytes", "Bytes of the segment that are not page data, as the pool counts them.",
           lambda s: s.stats.metadata_bytes, "bytes"),
    _gauge("bufferpool_page_size_bytes", "Bytes of one page, and of one frame.", lambda s: s.stats.page_size, "bytes"),
    Family(GaugeMetricFamily, "bufferpool_frames",
           "Frames by state, each counted once. hole: no memory behind it; free: memory, no page; busy: being filled or "
           "given back; clean, dirty: a page, without or with changes that its store lacks, that no client pins; pinned: a "
           "page that a client pins; retired: a superseded or dropped version, still pinned by a reader.",
           _frames, ("state",)),
    Family(GaugeMetricFamily, "bufferpool_pages",
           "Resident pages by the time since their last use, each in the youngest band that it fits: within 1s, 10s, 1m, "
           "10m, 1h, or older. The sum of the young bands is the working set as the pool sees it.",
           lambda s: [((age,), n) for age, n in zip(AGES, s.summary.ages.values(), strict=True)], ("age",)),
    _gauge("bufferpool_dirty_pages", "Pages with changes that their store lacks, pinned ones included.",
           lambda s: s.summary.frames.dirty),
    _gauge("bufferpool_unsaved_pages", "Dirty pages of files and stores: they are in memory only, until a flush.",
           lambda s: sum(space.dirty for space in s.stats.spaces if space.kind in ("file", "store"))),
    _gauge("bufferpool_held_back_pages",
           "Dirty pages that may not be written yet: their LSN is above the durable LSN (the write-ahead rule).",
           lambda s: s.stats.held_back_pages),
    Family(CounterMetricFamily, "bufferpool_reclaimed_bytes",
           "Bytes given back to the kernel, by reason: budget (the pool shrank), idle (not used for a while), pressure "
           "(the machine is short of memory), drop (pages or a space were dropped), trim (by a call), client_exit (a "
           "client died).",
           lambda s: [((reason,), n) for reason, n in s.stats.reclaimed_bytes.items()], ("reason",), "bytes"),
)  # fmt: skip

ACCESS = (
    _counter("bufferpool_hits", "References to pages that were in the pool.", "hits"),
    _counter("bufferpool_misses", "References to pages that had to be loaded, or were read ahead and used for the first time.",
             "misses"),
    _counter("bufferpool_loads", "Pages filled from a file, a store or a loader, read-ahead included.", "loads"),
    _counter("bufferpool_loaded_bytes", "Bytes of the pages that were filled.", "load_bytes", "bytes"),
    _counter("bufferpool_load_failures",
             "Loads that ended in an error: of the store, of the loader, or because no frame was available.", "load_failures"),
    _counter("bufferpool_exhausted", "Requests for a frame that found none (PoolExhausted).", "exhausted"),
    _counter("bufferpool_prefetched", "Pages read ahead (prefetch, scan). Each is a load; its first use is a miss, not a hit.",
             "prefetched"),
    _counter("bufferpool_prefetched_unused", "Pages read ahead that were evicted before their first use.", "prefetched_unused"),
    Family(SummaryMetricFamily, "bufferpool_eviction_age_seconds",
           "How long evicted pages had not been used: the sum, and the number of evictions. A mean of a few seconds means that "
           "pages are evicted that are needed again.",
           lambda s: [((), (s.stats.evictions_recycled + s.stats.evictions_reclaimed, s.stats.eviction_age_sum_s))],
           unit="seconds"),
    Family(CounterMetricFamily, "bufferpool_evictions",
           "Pages evicted, by reason: recycled (another page needed the frame), reclaimed (the frame's memory was given back).",
           lambda s: [(("recycled",), s.stats.evictions_recycled), (("reclaimed",), s.stats.evictions_reclaimed)],
           ("reason",)),
    _counter("bufferpool_publishes", "New versions of pages published.", "publishes"),
    _counter("bufferpool_appends", "Pages added at the end of a space.", "appends"),
    _counter("bufferpool_compacted_pages", "Pages moved to another frame so that their extent could be given back.", "compacted_pages"),
)  # fmt: skip

WRITE_BACK = (
    _counter("bufferpool_flushes", "Batches of dirty pages written and synced.", "flushes"),
    _counter("bufferpool_flushed_pages", "Dirty pages written to their stores.", "flushed_pages"),
    _counter("bufferpool_foreground_flushes",
             "Batches that a client had to write itself, because it needed a frame and found only dirty pages. "
             "The client waits for the store meanwhile; with a steward that keeps up, the value is zero.", "foreground_flushes"),
    _counter("bufferpool_flush_failures", "Flushes that failed in a store; the pages stay dirty. What one caller tries again while it waits counts once.", "flush_failures"),
    Family(GaugeMetricFamily, "bufferpool_last_checkpoint_timestamp_seconds",
           "When the last checkpoint was. Absent while there has been none.",
           lambda s: [((), s.stats.checkpoint_at)] if s.stats.checkpoint_at else [], unit="seconds"),
    Family(GaugeMetricFamily, "bufferpool_pending_operations",
           "What is under way at the moment: loads and flushes of pages, loads of values of caches, syncs of the engine's log, "
           "and saves of the working set.",
           lambda s: [((kind,), n) for kind, n in s.stats.pending_operations.items()], ("operation",)),
    Family(GaugeMetricFamily, "bufferpool_oldest_operation_seconds",
           "How long the one of each kind that has waited longest has made no progress; 0 if none is under way. A store, a loader "
           "or a log that hangs makes it grow (bufferpool operations names the space, the page or the key, and the process).",
           lambda s: [((kind,), age) for kind, age in s.stats.oldest_operation_s.items()], ("operation",), "seconds"),
    _counter("bufferpool_checkpoints", "Checkpoints: each wrote all pages that were dirty before it.", "checkpoints"),
    _counter("bufferpool_corrupt_pages", "Pages whose checksum did not match when they were read.", "corrupt_pages"),
    _counter("bufferpool_repaired_pages", "Corrupt pages that were repaired.", "repaired_pages"),
    Family(GaugeMetricFamily, "bufferpool_policy_mode",
           "1 for the mode that the replacement policy is in: adaptive, recency or loop; 0 for the others.",
           lambda s: [((mode.name.lower(),), float(mode.name.lower() == s.stats.policy_mode)) for mode in PolicyMode],
           ("mode",)),
    _counter("bufferpool_policy_mode_changes", "How often the replacement policy changed its mode.", "mode_changes"),
)  # fmt: skip

CLIENTS = (
    Family(CounterMetricFamily, "bufferpool_waits",
           "Waits by cause: load (another client is filling the page), writer (another client writes it), memory (the "
           "memory lock was held), frame (no frame was free).",
           lambda s: [((why,), getattr(s.stats, f"wait_{why}")) for why in ("load", "writer", "memory", "frame")],
           ("reason",)),
    Family(GaugeMetricFamily, "bufferpool_clients",
           "Attached clients by state: alive, or dead (died and not reaped yet).",
           lambda s: [(("alive",), s.alive), (("dead",), s.dead)], ("state",)),
    _gauge("bufferpool_max_clients", "Clients that can be attached at once, fixed when the pool was created.",
           lambda s: s.max_clients),
    _counter("bufferpool_refused_clients", "Attempts to attach that found every client slot taken (TooManyClients).",
             "refused_clients"),
    _gauge("bufferpool_steward", "1 if a client does the background work (flushing, trimming, watching pressure), else 0.",
           lambda s: float(s.steward)),
    _counter("bufferpool_clients_reaped", "Dead clients that were reaped: their pins, locks and frames were released.",
             "reaped"),
    _counter("bufferpool_pins_broken", "Pins that dead clients had left.", "pins_broken"),
    _counter("bufferpool_lock_repairs", "Locks taken over from a dead owner, after a repair of what they protect.",
             "rebuilds"),
)  # fmt: skip

SPACE_LABELS = ("space", "client")
SPACES = (
    Family(GaugeMetricFamily, "bufferpool_space_pages", "Pages of a space, resident or not.", _per_space("pages"),
           SPACE_LABELS),
    Family(GaugeMetricFamily, "bufferpool_space_resident_pages", "Pages of a space that are in the pool.",
           _per_space("resident"), SPACE_LABELS),
    Family(GaugeMetricFamily, "bufferpool_space_dirty_pages", "Pages of a space with changes that its store lacks.",
           _per_space("dirty"), SPACE_LABELS),
    Family(GaugeMetricFamily, "bufferpool_space_limit_bytes", "The most bytes of the pages of a space in the pool; 0: no limit.",
           _per_space("limit"), SPACE_LABELS, "bytes"),
    Family(GaugeMetricFamily, "bufferpool_space_reserve_bytes", "Bytes of the pages of a space that others cannot take.",
           _per_space("reserve"), SPACE_LABELS, "bytes"),
    Family(CounterMetricFamily, "bufferpool_space_hits", "References to pages of a space that were in the pool.",
           _per_space("hits"), SPACE_LABELS),
    Family(CounterMetricFamily, "bufferpool_space_misses", "References to pages of a space that had to be loaded, or were read ahead.",
           _per_space("misses"), SPACE_LABELS),
    Family(CounterMetricFamily, "bufferpool_space_load_failures",
           "Loads that the store or the loader of a space failed, by class of error: " + _CLASSES,
           _per_class("load_failures"), (*SPACE_LABELS, "error")),
    Family(CounterMetricFamily, "bufferpool_space_flush_failures",
           "Flushes that the store of a space failed, by class of error; the pages stay dirty. " + _CLASSES,
           _per_class("flush_failures"), (*SPACE_LABELS, "error")),
)  # fmt: skip


def _per_budget(value: Callable[[AdvicePoint], float]) -> Callable[[Snapshot], Iterable[Sample]]:
    """A sample for each budget of the advice. The label is the budget as a multiple of the present one: 0.125 to 8."""
    return lambda snapshot: [
        ((f"{round(8 * point.budget_frames / snapshot.advice.budget_frames) / 8:g}",), value(point))
        for point in snapshot.advice.points
    ]


ADVICE = (
    Family(GaugeMetricFamily, "bufferpool_advised_hit_ratio",
           "What the hit ratio would be with another budget, from a simulation of the pool that runs all the time; budget is "
           "that budget as a multiple of the present one. Absent while there have been too few references.",
           _per_budget(lambda point: point.hit_ratio), ("budget",)),
    Family(GaugeMetricFamily, "bufferpool_advised_budget_bytes", "The budgets of bufferpool_advised_hit_ratio in bytes.",
           _per_budget(lambda point: point.budget_bytes), ("budget",), "bytes"),
)  # fmt: skip

EVENTS = (
    Family(CounterMetricFamily, "bufferpool_events",
           "Events by kind and reason (bufferpool events lists the last thousand).",
           lambda s: [((what.name.lower(), why.name.lower()), n) for (what, why), n in s.posted.items()],
           ("event", "reason")),
    Family(GaugeMetricFamily, "bufferpool_last_event_timestamp_seconds",
           "When the last event of this kind and reason was recorded, of the last thousand events: shrank and grew "
           "are the steward's decisions, resized is a call.",
           lambda s: [((what.name.lower(), why.name.lower()), at) for (what, why), at in s.events.items()],
           ("event", "reason"), "seconds"),
)  # fmt: skip


def _per_cache(field: str) -> Callable[[Snapshot], Iterable[Sample]]:
    return lambda s: [((_text(cache.name),), getattr(cache, field)) for cache in s.stats.caches]


CACHES = (
    _gauge("bufferpool_object_bytes", "Bytes of memory that the values of caches have, beside the pages.",
           lambda s: s.stats.object_bytes, "bytes"),
    _gauge("bufferpool_lent_bytes", "Bytes of the budget that pages have given up for the values of caches.",
           lambda s: s.stats.lent_bytes, "bytes"),
    Family(GaugeMetricFamily, "bufferpool_cache_objects", "Values in a cache, loads of it that are under way, and errors of loads that failed.",
           _per_cache("count"), ("cache",)),
    Family(GaugeMetricFamily, "bufferpool_cache_bytes", "Bytes of the keys and values in a cache.",
           _per_cache("bytes"), ("cache",), "bytes"),
    Family(GaugeMetricFamily, "bufferpool_cache_limit_bytes", "The most bytes of the keys and values of a cache; 0: no limit.",
           _per_cache("limit"), ("cache",), "bytes"),
    Family(GaugeMetricFamily, "bufferpool_cache_reserve_bytes", "Bytes that other caches cannot take from a cache.",
           _per_cache("reserve"), ("cache",), "bytes"),
    *(Family(CounterMetricFamily, f"bufferpool_cache_{name}", help, _per_cache(name), ("cache",)) for name, help in (
        ("hits", "Lookups of a key that found a value."),
        ("misses", "Lookups of a key that found no value."),
        ("puts", "Values that were stored, those of loads included."),
        ("loads", "Values that were loaded, each once for all processes."),
        ("load_failures", "Loads of a value whose loader raised."),
        ("waits", "Calls that waited for the load of another thread or process."),
        ("evictions", "Values that were evicted for others."),
        ("refused", "Values that were not kept: too large, or there was no room."),
        ("superseded", "Loaded values that were not kept, because the key was put or deleted meanwhile."),
    )),
)  # fmt: skip

FAMILIES: tuple[Family, ...] = (*MEMORY, *ACCESS, *WRITE_BACK, *CLIENTS, *SPACES, *CACHES, *ADVICE, *EVENTS)

LATENCIES = {
    "load": "Time to fill a page from its file, store or loader.",
    "flush": "Time to write and sync a batch of dirty pages.",
    "sync": "Time of the sync alone, of a batch of dirty pages; the rest of bufferpool_flush_seconds is the writing.",
    "reclaim": "Time of one system call that gives memory back (MADV_REMOVE).",
    "wait": "Time that clients waited for each other: for a page, a lock or a frame.",
}


# ---- the collector ------------------------------------------------------------------


def why_unreadable(error: BaseException) -> str:
    """The reason for which a pool could not be read, as a label."""
    if isinstance(error, (SegmentNotFound, FileNotFoundError)):
        return "removed"
    if isinstance(error, PermissionError):
        return "permission"
    if isinstance(error, LayoutMismatch):
        return "layout"
    return "damaged" if isinstance(error, SegmentCorrupt) else "other"


class PoolCollector(Collector):
    """A Collector for a ``prometheus_client`` registry.

    ``names``: the pools to export; without any, every pool in ``directory`` (default:
    /dev/shm) that this user may read, listed anew at each scrape. A
    pool that cannot be read has ``bufferpool_up`` 0 and nothing else.
    """

    def __init__(self, *names: str, directory: str | os.PathLike[str] | None = None) -> None:
        for name in names:
            segment_file.path_of(name, directory)
        self._names = names
        self._directory = directory

    def describe(self) -> Iterable[Metric]:
        """The metrics, so that their names are known (``/metrics?name[]=…``); reads no pool."""
        return [*self._health({}, {}, {}), *_machine(None), *self._families({})]

    def collect(self) -> Iterable[Metric]:
        """The metrics of every pool, now."""
        snapshots: dict[str, Snapshot | None] = {}
        seconds, why = {}, {}
        for name in self._names or self._find():
            start = time.perf_counter()
            try:
                snapshots[name] = read_snapshot(name, self._directory)
            except (BufferPoolError, OSError) as error:
                if isinstance(error, SegmentNotFound) and not self._names:
                    continue  # removed since it was listed
                snapshots[name], why[name] = None, why_unreadable(error)
            seconds[name] = time.perf_counter() - start
        if not self._names:
            why |= dict.fromkeys(segment_file.closed_to_us(self._directory), "permission")
        return [*self._health(snapshots, seconds, why), *_machine(self._directory), *self._families(snapshots)]

    def _find(self) -> list[str]:
        return [os.path.basename(found.path) for found in segment_file.find(self._directory)]

    def _health(
        self, snapshots: dict[str, Snapshot | None], seconds: dict[str, float], why: dict[str, str]
    ) -> Iterator[Metric]:
        up = GaugeMetricFamily(
            "bufferpool_up",
            "1 if the pool could be read, else 0: bufferpool_unreadable has the reason.",
            labels=["pool"],
        )
        unreadable = GaugeMetricFamily(
            "bufferpool_unreadable",
            "1 for a pool that could not be read, with the reason: removed, permission (this user may not; if it was not asked "
            "for by name, it may be another file and has no bufferpool_up), damaged, layout (another version of the "
            "library made it), or other.",
            labels=["pool", "reason"],
        )
        took = GaugeMetricFamily(
            "bufferpool_collect_seconds", "How long this scrape took to read the pool.", labels=["pool"], unit="seconds"
        )
        for name, snapshot in snapshots.items():
            up.add_metric([_text(name)], float(snapshot is not None))
            took.add_metric([_text(name)], seconds[name])
        for name, reason in why.items():
            unreadable.add_metric([_text(name), reason], 1.0)
        yield up
        yield unreadable
        build = GaugeMetricFamily(
            "bufferpool_build_info",
            "1, with the exporter's version of bufferpool and the layout version of the segments that it reads.",
            labels=["version", "layout"],
        )
        build.add_metric([bufferpool.__version__, str(_core.LAYOUT_VERSION)], 1.0)
        yield build
        yield took

    def _families(self, snapshots: dict[str, Snapshot | None]) -> Iterator[Metric]:
        seen = [(_text(name), snapshot) for name, snapshot in snapshots.items() if snapshot is not None]
        for family in FAMILIES:
            metric: Any = family.kind(family.name, family.help, labels=("pool", *family.labels), unit=family.unit)
            for name, snapshot in seen:
                for labels, value in family.read(snapshot):
                    if isinstance(value, tuple):  # of a summary
                        _summary(metric, (name, *labels), value, snapshot.created_at)
                    elif family.kind is CounterMetricFamily:
                        metric.add_metric((name, *labels), value, created=_created(snapshot, family, labels))
                    else:
                        metric.add_metric((name, *labels), value)
            yield metric
        for what, text in LATENCIES.items():
            yield _histogram(what, text, seen)


def _machine(directory: str | os.PathLike[str] | None) -> Iterator[Metric]:
    """Figures of the machine's memory, which a steward uses too: the same for every pool."""
    stalled = CounterMetricFamily(
        "bufferpool_memory_pressure_seconds",
        "Time in which some task, or all tasks (full), stalled for memory, as the kernel counts it (PSI): of the machine "
        '(cgroup=""), and of the exporter\'s cgroup.',
        labels=["cgroup", "state"],
        unit="seconds",
    )
    for cgroup, path in pressure.psi_files().items():
        with contextlib.suppress(OSError):  # EOPNOTSUPP: PSI is switched off (psi=0)
            for state, seconds in pressure.psi_stalls(Path(path).read_text()).items():
                stalled.add_metric([_text(cgroup), state], seconds)
    shm = os.statvfs(directory or segment_file.SHM)
    memory = pressure.given(pressure.machine_memory)  # None: /proc shows processes only
    figures: list[tuple[str, str, float | None]] = [
        ("bufferpool_shm_size_bytes", "Size of the tmpfs that the pools live in.", shm.f_blocks * shm.f_frsize),
        ("bufferpool_shm_free_bytes", "Bytes free in the tmpfs that the pools live in.", shm.f_bavail * shm.f_frsize),
    ]
    if memory is not None:
        figures.append(("bufferpool_machine_memory_bytes", "Memory of the machine.", memory[0]))
        figures.append(
            (
                "bufferpool_machine_available_bytes",
                "Memory that the machine has available (MemAvailable).",
                memory[1],
            )
        )
    yield stalled
    for name, text, value in figures:
        yield GaugeMetricFamily(name, text, value=value, unit="bytes")
    room = pressure.given(pressure.cgroup_room)  # None where there is no limit
    limit, free = (
        GaugeMetricFamily(f"bufferpool_cgroup_{what}_bytes", text, labels=["cgroup"], unit="bytes")
        for what, text in (
            ("limit", "Memory limit of the exporter's cgroup, or of the one around it that has the least free."),
            ("free", "Bytes below the memory limit of that cgroup."),
        )
    )
    if room is not None:
        limit.add_metric([_text(room.cgroup)], room.limit)
        free.add_metric([_text(room.cgroup)], room.free)
    yield limit
    yield free


def _summary(metric: Any, labels: tuple[str, ...], value: tuple[float, float], created: float) -> None:
    count, total = value
    metric.add_metric(labels, count, total)
    metric.add_sample(f"{metric.name}_created", dict(zip(("pool",), labels, strict=True)), created)


def _created(snapshot: Snapshot, family: Family, labels: tuple[str, ...]) -> float:
    """When a counter began, in seconds since the epoch."""
    if family.labels[:2] == SPACE_LABELS:
        return next(space.opened_at for space in snapshot.stats.spaces if _labels(space) == labels[:2])
    return snapshot.created_at


def _histogram(what: str, text: str, seen: list[tuple[str, Snapshot]]) -> Metric:
    metric = HistogramMetricFamily(f"bufferpool_{what}_seconds", text, labels=["pool"], unit="seconds")
    for name, snapshot in seen:
        latency = snapshot.stats.latencies[what]
        total, buckets = 0, []
        for limit, count in zip(_LIMITS, latency.counts, strict=True):
            total += count
            buckets.append((limit, float(total)))
        metric.add_metric([name], buckets, latency.sum_s)
        metric.add_sample(f"{metric.name}_created", {"pool": name}, snapshot.created_at)
    return metric
