"""The names that a segment has as numbers, each defined once: kinds of spaces, states of frames, reasons, events."""

from enum import IntEnum


class Kind(IntEnum):
    """What is behind the pages of a space."""

    FILE = 1
    DERIVED = 2
    SCRATCH = 3
    STORE = 4


def kind_name(kind: int) -> str:
    """The name of a kind of space, as the segment has it."""
    return Kind(kind).name.lower() if is_known(Kind, kind) else f"kind {kind}"


def is_known(names: type[IntEnum], number: int) -> bool:
    """Whether a number of the segment is one of ``names``; a damaged segment may have others."""
    return any(name == number for name in names)


REASONS = ("budget", "idle", "pressure", "drop", "trim", "client_exit")
"""Why memory was given back to the kernel, in the order of enum Reason of the core."""


def reason_number(name: str) -> int:
    """The number of a reason for giving memory back."""
    return REASONS.index(name)


# In the order of struct Counters (core/layout/layout.h).
COUNTERS = (
    "loads", "load_failures", "load_bytes", "evictions_recycled", "evictions_reclaimed", "publishes", "appends",
    "flushes", "flushed_pages", "foreground_flushes", "compacted_pages", "wait_load", "wait_writer", "wait_memory",
    "wait_frame", "reaped", "pins_broken", "rebuilds", "checkpoints", "flush_failures", "corrupt_pages", "repaired_pages",
)  # fmt: skip

# In the order of enum Latency. Bucket i counts what took less than 2**(BUCKET_SHIFT + i) ns, the last what took longer.
LATENCIES = ("load", "flush", "reclaim", "wait")


class FrameState(IntEnum):
    """The state of a frame (docs/design.md)."""

    HOLE = 0
    FREE = 1
    BUSY = 2
    LIVE = 3
    RETIRED = 4


AGE_BANDS = {"1s": 1.0, "10s": 10.0, "1m": 60.0, "10m": 600.0, "1h": 3600.0, "older": float("inf")}
"""Bands of the time since a page's last use, each with its upper limit in seconds, as AGE_LIMITS_S of the core has them."""
AGE_LIMITS_S = tuple(AGE_BANDS.values())


class EventKind(IntEnum):
    """What happened. The numbers are in segments: never reused."""

    CREATED = 1
    RESIZED = 2
    """The budget was set by hand."""
    SHRANK = 3
    """The steward lowered the budget."""
    GREW = 4
    """The steward raised the budget."""
    TRIMMED = 5
    """Memory was given back, the budget stayed."""
    REAPED = 6
    """A client that died was cleared away."""
    STEWARD = 7
    """Another client became the steward."""
    FLUSH_FAILED = 9
    CANNOT_SHRINK = 10
    """Memory was to go back, and pages that cannot go stood in the way, or the kernel did not take it."""
    SAVE_FAILED = 11
    """The steward could not save the working set."""
    LOAD_FAILED = 12
    """A page could not be read from its store."""
    ROUND_FAILED = 13
    """A round of the steward failed; it goes on with the next."""


class EventReason(IntEnum):
    """Why, and what ``Event.value`` is."""

    ASKED = 1
    """By a call; no value."""
    PSI = 2
    """Tasks stalled for memory: percent of the time (PSI, some)."""
    CGROUP = 3
    """The memory cgroup is nearly full: bytes of headroom."""
    SHM = 4
    """The tmpfs is nearly full: bytes free."""
    MACHINE = 5
    """The machine has little memory available: bytes."""
    IDLE = 6
    """Nobody had touched it: for how many seconds."""
    PAYS = 7
    """The miss-ratio curve says that it pays: misses saved, a second."""
    DIED = 8
    """A client is gone: its number."""
    STORE = 10
    """A store failed; no value."""
    LOG = 11
    """The engine's ``log_sync`` failed; no value."""
    KERNEL = 12
    """The kernel refused a call: its errno."""
    HANGS = 20
    """A store does not come back: for how many seconds."""


def hit_ratio(hits: float, misses: float) -> float:
    """Hits divided by references; NaN before the first reference."""
    return hits / (hits + misses) if hits + misses else float("nan")
