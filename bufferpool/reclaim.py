"""Memory: making room for a page, shrinking the budget, giving bytes back.

What goes and how is the core's (core/reclaim.h); here is what needs a store
(dirty pages are flushed first) or patience (pages that are in use for a moment).
"""

import os
import threading
import time
from typing import TYPE_CHECKING

import numpy as np

from bufferpool import events, inspect, segment
from bufferpool.errors import PoolExhausted, SegmentError, StoreError, WouldDeadlock, caused
from bufferpool.events import What, Why
from bufferpool.flush import can_write, flush_space, sync_log
from bufferpool.space import Kind

if TYPE_CHECKING:
    from bufferpool.pool import Pool

ROOM_S = 0.5  # how long a frame is waited for before PoolExhausted
SAME_WANT_S = 0.05  # calls closer than this are about the same frame


class Room(threading.local):
    """One thread's present want of a frame."""

    last = since = 0.0
    tries = 0
    flushed: int | None = None


def reason(name: str) -> int:
    """The number of a reason for giving memory back."""
    return inspect.REASONS.index(name)


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


def flush_what_can(pool: "Pool", *, foreground: bool = False) -> tuple[int, StoreError | WouldDeadlock | None]:
    """Flushes every space whose store this process can reach: (pages, the first error)."""
    written, failed = 0, None
    for record in pool._seg.spaces():
        if not can_write(pool, record):
            continue
        try:
            written += flush_space(pool, record, pool.durable_lsn, foreground=foreground)
        except (StoreError, WouldDeadlock) as error:  # another space may do: raised by the caller if none does
            failed = failed or error
    return written, failed


def make_room(pool: "Pool", want: Room, what: str, dirty: int, in_use: int) -> None:
    """Called when no frame can be had: makes room, waits a little, or raises.

    Raises PoolExhausted (its cause is the store's error, if flushing failed) or
    SharedMemoryFull.
    """
    now = time.monotonic()
    if now - want.last > SAME_WANT_S:
        want.since, want.tries = now, 0
    want.tries += 1
    failed = None
    if pool._seg.reap():
        return
    if (dirty or in_use) and want.tries < 100:  # a page that somebody is flushing counts as in use
        written, failed = flush_what_can(pool, foreground=True)
        if not written and failed is None and sync_log(pool):  # all that was dirty waited for the log
            _, failed = flush_what_can(pool, foreground=True)
        flushed = inspect.read_counters(pool).plain["flushed_pages"]
        if flushed != want.flushed:  # by us, or by the one whose lock we waited for
            want.flushed, want.last = flushed, 0.0
            return
    if now - want.since > ROOM_S:
        want.last = 0.0
        if what == "no_space":
            raise segment.full(os.path.dirname(pool.path)) from failed
        raise PoolExhausted(exhausted_message(pool) + (f"; flushing failed: {failed}" if failed else "")) from failed
    time.sleep(min(0.001 * want.tries, 0.02))
    want.last = time.monotonic()


def exhausted_message(pool: "Pool") -> str:
    """Why no frame can be had, and what to do about it."""
    frames = inspect.read_frames(pool)
    status = pool._seg.status()
    kinds = {r["index"]: r["kind"] for r in pool._seg.spaces()}
    dirty = frames[frames["dirty"]]
    unwritten = int(np.count_nonzero(dirty["lsn"] > status["durable_lsn"]))
    scratch = sum(kinds.get(int(space)) == Kind.SCRATCH for space in dirty["space"])
    pinned = int(np.count_nonzero((frames["pins"] > 0) & (frames["state"] != inspect.FrameState.HOLE)))
    busy = int(np.count_nonzero(frames["state"] == inspect.FrameState.BUSY))
    who = ", ".join(
        f"client {c.client} (pid {c.pid}) pins {c.pinned_frames}" for c in inspect.read_clients(pool) if c.pinned_frames
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
        "Release pins (delete arrays over pages), flush or drop pages, or give the pool more: pool.resize()"
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
    while (over := seg.status()["resident_frames"] - frames) > 0:
        done, _moved, pinned, dirty, _busy, refused = seg.shrink(over, reason("budget"), True)
        given += done
        if refused:
            post_refused(pool, refused)
            raise refusal(pool, refused)
        if done >= over:
            continue
        written, failed = flush_what_can(pool) if dirty else (0, None)
        if written:
            continue
        if time.monotonic() > deadline:
            if failed is not None:
                raise failed
            raise PoolExhausted(
                f"the pool is {over - done} frames above its new budget ({pinned} pinned). {exhausted_message(pool)}"
            )
        seg.reap()
        time.sleep(0.005)
    return given


def trim(pool: "Pool", frames: int) -> int:
    """Gives up to ``frames`` frames back, coldest pages first; returns how many. Raises StoreError."""
    seg, given = pool._seg, 0
    frames = min(frames, seg.status()["resident_frames"])
    for _ in range(8):
        done, _moved, _pinned, dirty, _busy, refused = seg.shrink(frames - given, reason("trim"), True)
        given += done
        if refused:
            post_refused(pool, refused)
        if given >= frames or not dirty or refused:
            break
        written, failed = flush_what_can(pool)
        if failed is not None:
            raise failed
        if not written:
            break
    events.post(pool, What.TRIMMED, Why.ASKED, bytes=given * pool.page_size)
    return given
