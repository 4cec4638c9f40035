"""Names for the numbers in a segment: kinds of spaces, states of frames, reasons, events."""

import errno
from enum import IntEnum
from typing import Literal, get_args


class Kind(IntEnum):
    """Where the pages of a space come from."""

    FILE = 1
    """A file."""
    DERIVED = 2
    """A loader, which computes them."""
    SCRATCH = 3
    """Nowhere: they are zeros until they are written."""
    STORE = 4
    """A store of the user."""


KERNEL_CACHE = 8  # a flag of a file space: the kernel's page cache keeps its pages too


def cache_of(flags: int) -> Literal["pool", "kernel"]:
    """The setting ``cache`` of a file space: with "pool" the kernel's page cache keeps no copy, as far as the file system allows."""
    return "kernel" if flags & KERNEL_CACHE else "pool"


def kind_name(kind: int) -> str:
    """The name of a kind of space; of an unknown number, a text with the number."""
    return Kind(kind).name.lower() if is_known(Kind, kind) else f"kind {kind}"


def is_known(names: type[IntEnum], number: float) -> bool:
    """Whether ``names`` has this number. A damaged segment may have numbers without a name."""
    return any(name == number for name in names)


REASONS = ("budget", "idle", "pressure", "drop", "trim", "client_exit")
"""The reasons for giving memory back to the kernel, in the order of the core's enum Reason."""


def reason_number(name: str) -> int:
    """The number of a reason for giving memory back."""
    return REASONS.index(name)


# In the order of struct Counters (core/layout/layout.h).
COUNTERS = (
    "loads", "load_failures", "load_bytes", "evictions_recycled", "evictions_reclaimed", "publishes", "appends",
    "flushes", "flushed_pages", "foreground_flushes", "compacted_pages", "wait_load", "wait_writer", "wait_memory",
    "wait_frame", "reaped", "pins_broken", "rebuilds", "checkpoints", "flush_failures", "corrupt_pages", "repaired_pages",
    "mode_changes", "prefetched", "prefetched_unused", "exhausted", "eviction_ticks",
)  # fmt: skip

OperationKind = Literal["load", "flush", "cache_load", "log_sync", "save"]
OPERATION_KINDS: tuple[OperationKind, ...] = get_args(OperationKind)
"""What a client may have under way that may hang: see :class:`bufferpool.figures.operations.Operation`."""

# In the order of enum Latency. Bucket i counts what took less than 2**(BUCKET_SHIFT + i) ns, the last what took longer.
LATENCIES = ("load", "flush", "reclaim", "wait", "sync")

ERROR_CLASSES = ("io", "full", "access", "missing", "corrupt", "code", "other")
"""The classes of failures of a store, in the order of the segment's counters.

io: the device failed; full: it, or a quota, is full; access: permission; missing: the file or the device is gone;
corrupt: a checksum does not match, or the file was cut or changed; code: the store or the loader raised an error
without an errno; other: another errno.
"""

_CLASS_OF = {
    errno.EIO: "io", errno.EREMOTEIO: "io", errno.ETIMEDOUT: "io", errno.EBADMSG: "io", errno.EUCLEAN: "io",
    errno.ENOSPC: "full", errno.EDQUOT: "full", errno.EFBIG: "full",
    errno.EACCES: "access", errno.EPERM: "access", errno.EROFS: "access",
    errno.ENOENT: "missing", errno.ESTALE: "missing", errno.ENODEV: "missing", errno.ENXIO: "missing",
    errno.EBADF: "missing", errno.ENOTDIR: "missing",
}  # fmt: skip


def error_class(number: int) -> str:
    """The class of a failure with this errno; 0: it had none."""
    return _CLASS_OF.get(number, "other") if number else "code"


class FrameState(IntEnum):
    """The state of a frame (docs/design.md)."""

    HOLE = 0
    """It has no memory."""
    FREE = 1
    """It has memory, and holds no page."""
    BUSY = 2
    """A client fills it, gives it back, or keeps it for its next write."""
    LIVE = 3
    """It holds the newest version of a page."""
    RETIRED = 4
    """It holds a version that was superseded or dropped, and that a reader still pins."""


AGE_BANDS = {"1s": 1.0, "10s": 10.0, "1m": 60.0, "10m": 600.0, "1h": 3600.0, "older": float("inf")}
"""Bands of the time since a page's last use, with their upper limits in seconds (AGE_LIMITS_S of the core)."""
AGE_LIMITS_S = tuple(AGE_BANDS.values())


class EventKind(IntEnum):
    """The kind of an event. The numbers are in segments, so they are never reused."""

    CREATED = 1
    """The pool was created."""
    RESIZED = 2
    """The budget was set by a call of resize()."""
    SHRANK = 3
    """The steward lowered the budget."""
    GREW = 4
    """The steward raised the budget."""
    TRIMMED = 5
    """Memory was given back, with an unchanged budget."""
    REAPED = 6
    """A dead client was reaped."""
    STEWARD = 7
    """Another client became the steward."""
    FLUSH_FAILED = 9
    """Pages could not be written, or the engine's log could not be synced."""
    CANNOT_SHRINK = 10
    """Memory could not be given back: pages could not be evicted, or the kernel refused."""
    SAVE_FAILED = 11
    """The steward could not save the working set."""
    LOAD_FAILED = 12
    """A page could not be read from its store."""
    ROUND_FAILED = 13
    """A round of the steward failed; the next round tries again."""
    MODE_CHANGED = 14
    """The replacement policy changed its mode."""
    LOAD_RECOVERED = 15
    """A load that hung has come back, with a page or with an error; or a page that could not be loaded is in the pool."""
    FLUSH_RECOVERED = 16
    """A flush, or a sync of the log, that hung has come back; or pages that could not be written were written."""
    SAVE_RECOVERED = 17
    """The write of a working set that hung has come back; or one that failed has succeeded since."""


RECOVERIES = {
    EventKind.LOAD_FAILED: EventKind.LOAD_RECOVERED,
    EventKind.FLUSH_FAILED: EventKind.FLUSH_RECOVERED,
    EventKind.SAVE_FAILED: EventKind.SAVE_RECOVERED,
}
"""For each kind of trouble, the kind of its end."""


class EventReason(IntEnum):
    """The reason of an event, and the meaning of ``Event.value``."""

    ASKED = 1
    """A call asked for it; no value."""
    PSI = 2
    """Tasks stalled for memory: percent of the time (PSI, some)."""
    CGROUP = 3
    """The memory cgroup is nearly full: bytes of headroom."""
    SHM = 4
    """The tmpfs is nearly full: bytes free."""
    MACHINE = 5
    """The machine has little memory available: bytes."""
    IDLE = 6
    """Pages were not used for a while: for how many seconds."""
    PAYS = 7
    """A larger budget pays, by the miss-ratio curve: misses saved per second."""
    DIED = 8
    """A client died: its number."""
    STORE = 10
    """A store failed; with a recovery, it works again. No value."""
    LOG = 11
    """The engine's ``log_sync`` failed; with a recovery, it works again. No value."""
    KERNEL = 12
    """The kernel refused a call: its errno."""
    HANGS = 20
    """A call of a store or a loader, or the write of a working set, has not returned: for how many seconds.
    With a recovery: it has returned, after how many seconds."""
    DUEL = 21
    """A miniature pool in another mode missed less often: the mode's number in :class:`PolicyMode`."""
    SMALL = 27
    """A pool of less than 64 frames is in the adaptive mode: its number in :class:`PolicyMode`."""
    REBUILT = 28
    """A client died while it changed the policy, which begins anew in the adaptive mode: its number in :class:`PolicyMode`."""
    PINNED = 22
    """A client pins pages: how many frames."""
    DIRTY = 23
    """Dirty pages could not be written in time: how many."""
    IN_USE = 24
    """Pages are in use by operations under way: how many."""
    LOG_HANGS = 26
    """The engine's ``log_sync`` has not returned: for how many seconds. With a recovery: it has, after how many."""
    OBJECTS = 25
    """A client holds values of caches, whose memory cannot be given back: how many bytes."""


class PolicyMode(IntEnum):
    """How the replacement policy splits the pool between its two rings (core/policy/duelling.h)."""

    ADAPTIVE = 0
    """The split follows the misses on pages that were evicted a short time ago."""
    RECENCY = 1
    """One ring, which keeps what was used last: for working sets that are replaced."""
    LOOP = 2
    """Most of the hot pages are kept, however long a loop is: for loops longer than the pool."""


def mode_name(mode: float) -> str:
    """The name of a mode of the replacement policy, as the segment or an event has it."""
    return PolicyMode(int(mode)).name.lower() if is_known(PolicyMode, mode) else f"mode {mode:g}"


def hit_ratio(hits: float, misses: float) -> float:
    """Hits divided by references; NaN before the first reference."""
    return hits / (hits + misses) if hits + misses else float("nan")
