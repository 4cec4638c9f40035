"""Memory: making room for a page, shrinking the budget, giving bytes back.

What goes and how is the core's (core/protocol/shrink.h); here is what needs a store
(dirty pages are flushed first) or patience (pages that are in use for a moment).
A store may hang: flushes run in threads (jobs.py), and a caller that needs memory waits,
up to its own timeout, for the first of them that frees some.
"""

import os
import threading
import time
from typing import TYPE_CHECKING

import numpy as np

from bufferpool.client import segment_file
from bufferpool.client.request import FIXED
from bufferpool.errors import PoolExhausted, SegmentError, StoreError, WouldDeadlock, caused
from bufferpool.figures import events, stats
from bufferpool.figures.events import What, Why
from bufferpool.spaces.space import Kind
from bufferpool.upkeep.flush_jobs import hanging, start_flushes, start_log_sync
from bufferpool.upkeep.jobs import Job

if TYPE_CHECKING:
    from bufferpool.pool import Pool

ROOM_S = 0.5  # how long a frame is waited for before PoolExhausted
SLOW_S = 10.0  # how long a flush may be under way until it counts as one that hangs, and is not waited for any more
PAUSE_S = 0.02  # between two looks for a frame
SAME_WANT_S = 0.05  # calls closer than this are about the same frame


class Room(threading.local):
    """One thread's present want of a frame."""

    last = since = 0.0
    tries = 0

    def __init__(self) -> None:
        self.jobs: list[Job] = []


def reason(name: str) -> int:
    """The number of a reason for giving memory back."""
    return stats.REASONS.index(name)


def refusal(pool: "Pool", error: int) -> SegmentError:
    """The kernel does not take memory back (a sandbox, mostly); ``error``: the errno."""
    return caused(
        SegmentError(
            f"the kernel does not take memory of pool {pool.name!r} back (madvise MADV_REMOVE, fallocate PUNCH_HOLE): "
            f"{os.strerror(error)}; allow these calls (bufferpool doctor tries them)"
        ),
        error,
    )


def post_refused(pool: "Pool", error: int) -> None:
    """The pool keeps what the kernel did not take: an event says so."""
    events.post(pool, What.CANNOT_SHRINK, Why.KERNEL, value=error)


def flushed_pages(pool: "Pool") -> int:
    """How many pages all clients have flushed so far."""
    return int(stats.read_counters(pool).plain["flushed_pages"])


def write_some(
    pool: "Pool", jobs: list[Job], seconds: float, *, foreground: bool = False, ask_log: bool = True
) -> tuple[bool, Exception | None]:
    """Has dirty pages written, and waits until some are, by whomever; until nobody here writes any; or so many seconds.

    ``jobs`` are those that the caller has started before; afterwards, those that still run. Returns whether pages
    were written, and the first error. With ``ask_log``, the log is asked for where nothing else can be written;
    raises what the engine's ``log_sync`` raised.
    """
    before = flushed_pages(pool)
    try:
        jobs.extend(job for job in start_flushes(pool, foreground=foreground) if job not in jobs)
    except WouldDeadlock as error:
        return False, error
    end = time.monotonic() + seconds
    pool._jobs.wait(lambda: flushed_pages(pool) != before or all(job.done for job in jobs), seconds)
    failed = next((job.error for job in jobs if job.error is not None), None)
    if failed is not None and not isinstance(failed, (StoreError, WouldDeadlock)):
        jobs.clear()
        raise failed
    wrote = flushed_pages(pool) != before
    if (
        ask_log and not wrote and failed is None and all(job.done for job in jobs)
    ):  # all that is dirty may wait for the log
        log = start_log_sync(pool)
        if log is not None:
            pool._jobs.wait(lambda: log.done, end - time.monotonic())
            if log.error is not None:
                raise log.error
            wrote = bool(log.result)  # they may be written now
    jobs[:] = [job for job in jobs if not job.done]
    return wrote, failed


def make_room(pool: "Pool", want: Room, what: str, dirty: int, in_use: int, error: int, left: float) -> None:
    """Called when no frame can be had: makes room, waits a little, or raises; ``left``: seconds of the caller's timeout.

    Raises PoolExhausted (its cause is the store's error, if flushing failed) or
    SharedMemoryFull (or SegmentError, where the kernel refuses memory for another reason; ``error``: its errno).
    """
    if what == "scratch":  # no wait: only their owners can drop them
        if pool._seg.reap():
            return
        raise PoolExhausted(scratch_message(pool, dirty, in_use))
    now = time.monotonic()
    if now - want.last > SAME_WANT_S:
        want.since, want.tries, want.jobs = now, 0, []
    want.tries += 1
    failed = None
    if pool._seg.reap():
        return
    slow: list[tuple[float, str]] = []
    if dirty or in_use:  # a page that somebody is flushing counts as in use
        wrote, failed = write_some(pool, want.jobs, min(PAUSE_S, left), foreground=True)
        if wrote:
            want.last = 0.0
            return
        slow = hanging(pool)
    ages = [seconds for seconds, _ in slow] + [time.monotonic() - job.began for job in want.jobs]
    over = time.monotonic() - want.since > ROOM_S and (failed is not None or min(ages, default=SLOW_S) >= SLOW_S)
    if over or time.monotonic() - now >= left:
        want.last = 0.0
        if what == "no_space":
            raise segment_file.no_memory(os.path.dirname(pool.path), error) from failed
        told = "".join(f"; {text}" for _, text in slow) + (f"; flushing failed: {failed}" if failed else "")
        raise PoolExhausted(exhausted_message(pool) + told) from failed
    time.sleep(max(0.0, now + min(0.001 * want.tries, PAUSE_S, left) - time.monotonic()))
    want.last = time.monotonic()


def _give_more(pool: "Pool") -> str:
    """How the pool may have more frames."""
    if pool.budget_frames < pool.max_frames:
        return f"give the pool more (pool.resize(), up to {pool.max_frames} frames)"
    return f"give a new pool more ({FIXED})"


def scratch_message(pool: "Pool", held: int, most: int) -> str:
    """Why no more scratch pages can be written: which spaces have how many, and whose they are."""
    frames = stats.read_frames(pool)
    numbers = np.bincount(frames["space"][frames["dirty"]], minlength=1)
    spaces = [r for r in pool._seg.spaces() if r["kind"] == Kind.SCRATCH and r["index"] < len(numbers)]
    pids = {c.client: c.pid for c in stats.read_clients(pool)}
    parts = []
    for r in sorted(spaces, key=lambda r: -int(numbers[r["index"]])):
        owner = f" of client {r['owner']} (pid {pids[r['owner']]})" if r["owner"] in pids else ""
        if numbers[r["index"]]:
            parts.append(f"{r['name']!r}{owner}: {numbers[r['index']]}")
    more = f", and {len(parts) - 5} more spaces" if len(parts) > 5 else ""
    return (
        f"{held} of {pool.budget_frames} frames of pool {pool.name!r} hold scratch pages that nothing can evict "
        f"({', '.join(parts[:5])}{more}), and they may have {most}: the rest is kept for everybody else. "
        f"Drop pages (space.drop()), make them discardable (discardable=True), or {_give_more(pool)}"
    )


def exhausted_message(pool: "Pool") -> str:
    """Why no frame can be had, and what to do about it."""
    frames = stats.read_frames(pool)
    status = pool._seg.status()
    kinds = {r["index"]: r["kind"] for r in pool._seg.spaces()}
    dirty = frames[frames["dirty"]]
    unwritten = int(np.count_nonzero(dirty["lsn"] > status["durable_lsn"]))
    scratch = sum(kinds.get(int(space)) == Kind.SCRATCH for space in dirty["space"])
    pinned = int(np.count_nonzero((frames["pins"] > 0) & (frames["state"] != stats.FrameState.HOLE)))
    busy = int(np.count_nonzero(frames["state"] == stats.FrameState.BUSY))
    who = ", ".join(
        f"client {c.client} (pid {c.pid}) pins {c.pinned_frames}" for c in stats.read_clients(pool) if c.pinned_frames
    )
    parts = [f"{pinned} pinned" + (f" ({who})" if who else "")]
    if scratch:
        parts.append(f"{scratch} hold scratch pages that are not discardable")
    if len(dirty) - scratch:
        parts.append(
            f"{len(dirty) - scratch} dirty" + (f", {unwritten} of them above durable_lsn" if unwritten else "")
        )
    if busy:
        parts.append(f"{busy} in use by operations under way")
    return (
        f"no frame can be had in pool {pool.name!r}: of {status['budget_frames']} frames, {'; '.join(parts)}. "
        f"Release pins (delete arrays over pages), flush or drop pages, or {_give_more(pool)}"
    )


def resize(pool: "Pool", frames: int, timeout: float) -> int:
    """Sets the budget and shrinks to it; returns the frames given back. Raises PoolExhausted, StoreError."""
    seg, given, deadline, before = pool._seg, 0, time.monotonic() + timeout, pool.budget_frames
    seg.set_budget(frames)
    seg.set_asked_frames(frames)
    if frames < seg.status()["min_frames"]:
        seg.set_min_frames(frames)  # what is asked for by hand holds
    try:
        given = _shrink_to(pool, frames, deadline)
    finally:
        events.post(pool, What.RESIZED, Why.ASKED, before=before, after=frames, bytes=given * pool.page_size)
    return given


def _shrink_to(pool: "Pool", frames: int, deadline: float) -> int:
    seg, given = pool._seg, 0
    jobs: list[Job] = []
    while (over := seg.status()["resident_frames"] - frames) > 0:
        done, _moved, pinned, dirty, busy, refused = seg.shrink(over, reason("budget"), True)
        given += done
        if refused:
            post_refused(pool, refused)
            raise refusal(pool, refused)
        if done >= over:
            continue
        failed, left = None, deadline - time.monotonic()
        if (dirty or busy) and left > 0:
            wrote, failed = write_some(pool, jobs, left)
            if wrote:
                continue
        if time.monotonic() > deadline:
            if failed is not None:
                raise failed
            told = "".join(f"; {text}" for _, text in hanging(pool))
            raise PoolExhausted(
                f"the pool is {over - done} frames above its new budget ({pinned} pinned). {exhausted_message(pool)}{told}"
            )
        seg.reap()
        time.sleep(0.005)
    return given


def trim(pool: "Pool", frames: int, timeout: float) -> int:
    """Gives up to ``frames`` frames back, coldest pages first; returns how many. Raises StoreError."""
    seg, given, deadline = pool._seg, 0, time.monotonic() + timeout
    frames = min(frames, seg.status()["resident_frames"])
    jobs: list[Job] = []
    while True:
        done, _moved, _pinned, dirty, busy, refused = seg.shrink(frames - given, reason("trim"), True)
        given += done
        if refused:
            post_refused(pool, refused)
        left = deadline - time.monotonic()
        if given >= frames or left <= 0 or refused or not (dirty or (busy and jobs)):
            break
        wrote, failed = write_some(pool, jobs, left)
        if failed is not None:
            raise failed
        if not wrote:
            break
    events.post(pool, What.TRIMMED, Why.ASKED, bytes=given * pool.page_size)
    return given
