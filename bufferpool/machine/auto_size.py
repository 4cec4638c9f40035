"""Chooses the size of a pool with ``capacity="auto"``.

The budget is a quarter of the available memory, and may grow to half of it. The available memory is
the smallest of the memory below the cgroup's limit, the tmpfs's free space and the machine's available
memory. The rest is left to the processes and to the page cache. (PostgreSQL's manual recommends a
quarter of the memory for shared_buffers, for the same reason.)
"""

from dataclasses import dataclass

from bufferpool.errors import NotTmpfs, SegmentError, SharedMemoryFull
from bufferpool.machine import pressure
from bufferpool.machine.pressure import Reading
from bufferpool.units import format_size

LEAST_BYTES = 16 << 20
START, MOST, LEAST = 4, 2, 32  # divisors of the available memory: a quarter, a half, a thirty-second


@dataclass(frozen=True)
class Sizing:
    """The chosen sizes in bytes, and the reasons: one sentence for each."""

    min_capacity: int
    capacity: int
    max_capacity: int
    reasons: tuple[str, ...]


def read_memory(directory: str) -> Reading:
    """Reads how much memory is available for a pool in ``directory``. Raises NotTmpfs."""
    try:
        return pressure.read_memory(directory)
    except FileNotFoundError as error:
        raise NotTmpfs(f"{directory} does not exist; name the mount point of a tmpfs") from error


def auto(reading: Reading, least: int, unit: int) -> Sizing:
    """Chooses sizes for a reading: multiples of ``unit`` bytes, at least ``least`` bytes.

    Raises SharedMemoryFull if less is available, SegmentError if no limit is known.
    """
    limits = [
        (free, f"{name} has {format_size(free)} free of {format_size(size)}")
        for name, free, size in (
            ("the memory cgroup", reading.cgroup_free, reading.cgroup_limit),
            ("the tmpfs", reading.shm_free, reading.shm_size),
            ("the machine", reading.machine_free, reading.machine_size),
        )
        if free is not None and size
    ]
    if not limits:
        raise SegmentError(
            "the available memory is unknown (no /proc/meminfo, no limit of a cgroup or of the tmpfs): give capacity="
        )
    tightest = min(limits)
    there, why = tightest
    if there < least:
        raise SharedMemoryFull(
            f"{why}, and a pool needs {format_size(least)}: free some, raise the limit, or give capacity="
        )

    def part(n: int) -> int:
        return max(least, there // n // unit * unit)

    reasons = ["no memory cgroup limits this process"] if reading.cgroup_limit is None else []
    reasons += [text for limit, text in limits if (limit, text) != tightest]
    reasons.append(why if len(limits) == 1 else f"{why}, the smallest of these")
    floor = f", but has {format_size(least)} at least" if there // LEAST < least else ""
    reasons.append(f"a pool starts with 1/{START} of that and moves between 1/{LEAST} and 1/{MOST} of it{floor}")
    return Sizing(part(LEAST), part(START), part(MOST), tuple(reasons))
