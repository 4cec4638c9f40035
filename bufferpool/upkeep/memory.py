"""Memory: freeing a frame for a page, shrinking to the budget, giving memory back.

The core decides which pages to evict, and how (core/protocol/shrink.h); here is what needs a store
(dirty pages are flushed first) or patience (pages that are in use for a moment).
A store may hang: flushes run in threads (jobs.py), and a caller that needs memory waits,
up to its own timeout, for the first of them that frees some.
"""

import os
import threading
import time
from collections.abc import Hashable
from math import inf
from typing import Any, NamedTuple

import numpy as np

from bufferpool.client import segment_file
from bufferpool.client.client import Client
from bufferpool.client.jobs import Job
from bufferpool.client.request import FIXED
from bufferpool.errors import PoolExhausted, SegmentError, StoreError, WouldDeadlock, caused
from bufferpool.figures import stats
from bufferpool.figures.events import NewEvent
from bufferpool.figures.names import EventKind, EventReason, FrameState, Kind, reason_number
from bufferpool.figures.operations import Operation, read_flushes
from bufferpool.machine.mounts import has_huge_pages
from bufferpool.machine.pressure import given as if_given
from bufferpool.units import format_size
from bufferpool.upkeep import page_sizes
from bufferpool.upkeep.flush_jobs import flushes_text, start_flushes, start_log_sync

ROOM_S = 0.5  # seconds to wait for a frame before PoolExhausted
SLOW_S = 30.0  # seconds until a flush is not waited for by a caller without a timeout: Linux gives a disk so long for a command
REST_S = 1.0  # seconds until misses ask for memory of other page sizes again, if a lock was not free
PAUSE_S = 0.02  # seconds between two tries to get a frame
UNASKED_BYTES = 4 << 20  # memory that the pool has not asked for, and that a trim looks for
SAME_WANT_S = 0.05  # calls closer than this are about the same frame


class Room(threading.local):
    """One thread's present wait for a frame."""

    last = since = 0.0
    tries = 0
    over = False
    """Whether no flush that could make room was under way at the last attempt."""

    def __init__(self) -> None:
        self.jobs: list[Job] = []
        self.failed: set[Hashable] = set()
        """The spaces whose flush has failed in this wait: each counts as one failure, however often it is tried."""


class Shortage(NamedTuple):
    """Why no frame is free, as the core found it."""

    what: str
    """"scratch": there are too many scratch pages; "own_scratch": this client has too many private ones; "limit": the space has as
    many pages as it may have; "no_space": the kernel gives no memory; "memory": nothing is missing yet, and misses ask for memory
    of other page sizes. Any other text: no frame is free."""
    pinned: int
    dirty: int
    in_use: int
    error: int
    """The errno of the kernel."""
    left: float
    """Seconds that are left of the caller's timeout."""
    budget: int
    """The budget when the core looked, in frames."""


class MakesRoom:
    """What the core calls when no frame is free, or after misses in a pool of several page sizes (:class:`Client`), with what each thread wants."""

    def __init__(self) -> None:
        self._room: Room | None = None  # made when it is first needed: every unpickled copy of a pool has one of these
        self._next_move = 0.0  # when misses may ask for memory of other page sizes again

    def __call__(self, client: Client, *figures: Any) -> None:
        found = Shortage(*figures)
        if found.what == "memory":
            if time.monotonic() >= self._next_move and not page_sizes.follow_misses(client):
                self._next_move = time.monotonic() + REST_S
            return
        try:
            if self._room is None:
                self._room = Room()
            make_room(client, self._room, found)
        except PoolExhausted:
            if client.budget_frames > found.budget:
                return  # another client has resized the pool since the core looked: it looks once more
            client.seg.count("exhausted")
            raise


def refusal(client: Client, error: int) -> SegmentError:
    """The kernel does not take memory back (a sandbox, mostly); ``error``: the errno."""
    return caused(
        SegmentError(
            f"the kernel does not take memory of pool {client.name!r} back (madvise MADV_REMOVE, fallocate PUNCH_HOLE): "
            f"{os.strerror(error)}; allow these calls (bufferpool doctor tries them)"
        ),
        error,
    )


def flushed_pages(client: Client) -> int:
    """The number of pages that all clients have flushed so far."""
    return int(stats.read_counters(client).plain["flushed_pages"])


def write_some(
    client: Client,
    jobs: list[Job],
    seconds: float,
    failures: set[Hashable] | None = None,
    *,
    foreground: bool = False,
    ask_log: bool = True,
) -> tuple[bool, Exception | None]:
    """Starts flushes, and waits until any client has written a page, no flush runs here, or ``seconds`` are over.

    ``jobs`` are those that the caller has started before; afterwards, those that still run. ``failures``: of a caller that
    tries again, the spaces whose failures have been counted. Returns whether pages
    were written, and the first error. With ``ask_log``, the log is asked for where nothing else can be written;
    raises what the engine's ``log_sync`` raised.
    """
    before = flushed_pages(client)
    try:
        started = start_flushes(client, foreground=foreground, counted=failures or ())
        jobs.extend(job for job in started if job not in jobs)
    except WouldDeadlock as error:
        return False, error
    end = time.monotonic() + seconds
    client.jobs.wait(lambda: flushed_pages(client) != before or all(job.done for job in jobs), seconds)
    failed = next((job.error for job in jobs if job.error is not None), None)
    if failures is not None:
        failures.update(job.subject for job in jobs if job.error is not None)
    if failed is not None and not isinstance(failed, (StoreError, WouldDeadlock)):
        jobs.clear()
        raise failed
    wrote = flushed_pages(client) != before
    if (
        ask_log and not wrote and failed is None and all(job.done for job in jobs)
    ):  # all that is dirty may wait for the log
        log = start_log_sync(client)
        if log is not None:
            client.jobs.wait(lambda: log.done, end - time.monotonic())
            if log.error is not None:
                raise log.error
            wrote = bool(log.result)  # they may be written now
    jobs[:] = [job for job in jobs if not job.done]
    return wrote, failed


def make_room(client: Client, want: Room, found: Shortage) -> None:
    """Called when no frame is free: makes room, waits a little, or raises.

    Raises PoolExhausted (its cause is the store's error, if flushing failed) or
    SharedMemoryFull (or SegmentError, where the kernel refuses memory for another reason).
    """
    if found.what in ("scratch", "own_scratch"):  # no wait: only the owners of scratch pages can drop them
        if client.seg.reap() or page_sizes.more(client):
            return
        raise PoolExhausted(scratch_message(client, found))
    now = time.monotonic()
    if now - want.last > SAME_WANT_S:
        want.since, want.tries, want.jobs, want.failed, want.over = now, 0, [], set(), False
    want.tries += 1
    failed = None
    if client.seg.reap() or (found.what != "limit" and page_sizes.more(client)):
        return
    flushes: list[Operation] = []
    if found.dirty or found.in_use:  # a page that somebody is flushing counts as in use
        wrote, failed = write_some(client, want.jobs, min(PAUSE_S, found.left), want.failed, foreground=True)
        if wrote:
            want.last = 0.0
            return
        flushes = read_flushes(client)
    ages = [one.seconds for one in flushes] + [time.monotonic() - job.began for job in want.jobs]
    # While a flush runs, a caller's own timeout says how long it waits for it.
    stuck = not ages or (found.left == inf and min(ages) >= SLOW_S)
    over = time.monotonic() - want.since > ROOM_S and (failed is not None or stuck)
    # A flush may have ended since the core looked for a frame: the core looks once more before this thread gives up.
    if (over and want.over) or time.monotonic() - now >= found.left:
        want.last = 0.0
        if found.what == "no_space":
            raise segment_file.no_memory(os.path.dirname(client.path), found.error) from failed
        why = limit_message(client, found) if found.what == "limit" else exhausted_message(client)
        error = f"; flushing failed: {failed}" if failed else ""
        raise PoolExhausted(why + flushes_text(flushes) + error) from failed
    want.over = over
    time.sleep(max(0.0, now + min(0.001 * want.tries, PAUSE_S, found.left) - time.monotonic()))
    want.last = time.monotonic()


def _give_more(client: Client) -> str:
    """The remedy that gives the pool more frames."""
    if client.budget_frames < client.room_frames:
        return f"give the pool more (pool.resize(), up to {format_size(client.room_frames * client.page_size)})"
    return f"give a new pool more ({FIXED})"


def scratch_message(client: Client, found: Shortage) -> str:
    """Says why no more scratch pages can be written: which spaces have how many, and to whom the spaces belong."""
    frames, own = stats.read_frames(client), found.what == "own_scratch"
    owned = frames["dirty"] & (frames["space"] >= 0)  # a space that is removed meanwhile is not in the list of spaces
    numbers = np.bincount(frames["space"][owned], minlength=1)
    spaces = [r for r in client.seg.spaces() if r["kind"] == Kind.SCRATCH and r["index"] < len(numbers)]
    spaces = [r for r in spaces if r["mine"]] if own else spaces
    pids = {c.client: c.pid for c in stats.read_clients(client)}
    parts = []
    for r in sorted(spaces, key=lambda r: -int(numbers[r["index"]])):
        owner = f" of client {r['owner']} (pid {pids[r['owner']]})" if r["owner"] in pids else ""
        if numbers[r["index"]]:
            parts.append(f"{r['name']!r}{owner}: {numbers[r['index']]}")
    more = f", and {len(parts) - 5} more spaces" if len(parts) > 5 else ""
    whose = (
        "private scratch pages of this process, which nothing can evict"
        if own
        else "scratch pages that nothing can evict"
    )
    rest = "the rest is kept for the scratch pages of others" if own else "the rest is kept for other clients"
    return (
        f"{found.dirty} of {client.budget_frames} frames of pool {client.name!r} hold {whose} "
        f"({', '.join(parts[:5])}{more}), and they may have {found.in_use}: {rest}. "
        f"Drop pages (space.drop()), make them discardable (discardable=True), or {_give_more(client)}"
    )


def limit_message(client: Client, found: Shortage) -> str:
    """Says why no more pages can be loaded of a space that has as many as its limit allows, and which spaces those are."""
    spaces = stats.read_stats(client).spaces
    full = [s for s in spaces if s.limit and (s.resident + 1) * client.page_size > s.limit]
    names = ", ".join(
        f"{s.shown_name!r} has {s.resident} pages and may have {s.limit // client.page_size}" for s in full
    )
    why = [text for n, text in ((found.pinned, "pinned"), (found.dirty, "dirty"), (found.in_use, "in use")) if n]
    return (
        f"no frame is available within the limit of a space of pool {client.name!r} ({names or 'which has room by now'}), because its pages "
        f"are {' or '.join(why) or 'in use'}. Release pins (delete arrays over its pages), flush or drop pages, or raise the limit "
        "(space.set_share(limit=))"
    )


def _held_values(clients: list[stats.ClientInfo]) -> str:
    """Says which clients hold values of caches: their memory cannot be taken away."""
    who = ", ".join(
        f"client {c.client} (pid {c.pid}) holds values of {format_size(c.held_bytes)}" for c in clients if c.held_bytes
    )
    return f" ({who})" if who else ""


def exhausted_message(client: Client) -> str:
    """Says why no frame is available, and what to do about it."""
    frames, clients = stats.read_frames(client), stats.read_clients(client)
    status = client.seg.status()
    kinds = {r["index"]: r["kind"] for r in client.seg.spaces()}
    dirty = frames[frames["dirty"]]
    unwritten = int(np.count_nonzero(dirty["lsn"] > status["durable_lsn"]))
    scratch = sum(kinds.get(int(space)) == Kind.SCRATCH for space in dirty["space"])
    pinned = int(np.count_nonzero((frames["pins"] > 0) & (frames["state"] != FrameState.HOLE)))
    busy = int(np.count_nonzero(frames["state"] == FrameState.BUSY))
    who = ", ".join(f"client {c.client} (pid {c.pid}) pins {c.pinned_frames}" for c in clients if c.pinned_frames)
    parts = [f"{pinned} pinned" + (f" ({who})" if who else "")]
    if status["lent_frames"]:
        parts.append(f"{status['lent_frames']} are lent to caches{_held_values(clients)}")
    if scratch:
        parts.append(f"{scratch} hold scratch pages that are not discardable")
    if len(dirty) - scratch:
        parts.append(
            f"{len(dirty) - scratch} dirty" + (f", {unwritten} of them above durable_lsn" if unwritten else "")
        )
    if busy:
        parts.append(f"{busy} in use by operations under way")
    return (
        f"no frame is available in pool {client.name!r}: of {status['budget_frames']} frames, {'; '.join(parts)}. "
        f"Release pins (delete arrays over pages, and values of caches that are held), flush or drop pages, or {_give_more(client)}"
    )


def resize(client: Client, frames: int, timeout: float) -> int:
    """Sets the budget and shrinks to it; returns the frames given back. Raises PoolExhausted, StoreError."""
    seg, given, deadline, before = client.seg, 0, time.monotonic() + timeout, client.budget_frames
    seg.grow_advice(frames, timeout)  # the only step that may fail
    if not page_sizes.set_own_budget(client, frames, timeout):
        return resize_all(client, frames * client.page_size, timeout) // client.page_size
    _asked_for(client, frames)
    try:
        given = _shrink_to(client, frames, deadline)
    finally:
        client.post(
            NewEvent(EventKind.RESIZED, EventReason.ASKED, before=before, after=frames, bytes=given * client.page_size)
        )
    return given


def _asked_for(client: Client, frames: int) -> None:
    """Records the budget that a call asks for, which overrides the steward's lower bound."""
    client.seg.set_asked_frames(frames)
    if frames < client.seg.status()["min_frames"]:
        client.seg.set_min_frames(frames)


def resize_all(home: Client, size_bytes: int, timeout: float) -> int:
    """Sets the budget of all page sizes of a pool together, and shrinks them to it; returns the bytes given back.

    Raises PoolExhausted, StoreError.
    """
    deadline, before = time.monotonic() + timeout, page_sizes.whole_bytes(home)
    given = page_sizes.set_whole(home, size_bytes, timeout)
    frames = size_bytes // home.page_size
    _asked_for(home, frames)
    try:
        for client in page_sizes.members(home):
            given += _shrink_to(client, client.budget_frames, deadline) * client.page_size
    finally:
        old = before // home.page_size
        home.post(NewEvent(EventKind.RESIZED, EventReason.ASKED, before=old, after=frames, bytes=given))
    return given


class InTheWay(NamedTuple):
    """Frames that a shrink could not take, as the core counted them."""

    pinned: int
    dirty: int
    in_use: int


WHO_MOST = 4  # clients whose pins are events


def post_in_the_way(client: Client, over: int, found: InTheWay) -> None:
    """Records what keeps the pool ``over`` frames above its budget: an event for each client with pins, and so on."""
    above = over * client.page_size

    def cannot(reason: EventReason, value: float, who: int = 0) -> None:
        client.post(NewEvent(EventKind.CANNOT_SHRINK, reason, bytes=above, value=value, client=who))

    clients = stats.read_clients(client)
    pinning = [c for c in clients if c.pinned_frames] if found.pinned else []
    for c in sorted(pinning, key=lambda c: -c.pinned_frames)[:WHO_MOST]:
        cannot(EventReason.PINNED, c.pinned_frames, c.client)
    if found.dirty:
        cannot(EventReason.DIRTY, found.dirty)
    if found.in_use:
        cannot(EventReason.IN_USE, found.in_use)
    holding = [c for c in clients if c.held_bytes]
    for c in sorted(holding, key=lambda c: -c.held_bytes)[:WHO_MOST]:
        cannot(EventReason.OBJECTS, c.held_bytes, c.client)
    if not pinning and not holding and not found.dirty and not found.in_use:
        cannot(EventReason.ASKED, 0)


def _shrink_to(client: Client, frames: int, deadline: float) -> int:
    seg, given, last_look = client.seg, 0, False
    jobs: list[Job] = []
    failures: set[Hashable] = set()
    failed: Exception | None = None
    given += seg.fit_objects(None, reason_number("budget"), deadline - time.monotonic())[0] // client.page_size
    while (over := page_sizes.held_frames(client) - frames) > 0:
        left = deadline - time.monotonic()
        done, _moved, pinned, dirty, busy, refused = seg.shrink(over, reason_number("budget"), True, left)
        given += done
        if refused:
            client.post_refused(refused)
            raise refusal(client, refused)
        if done >= over:
            continue
        left = deadline - time.monotonic()
        failed = failed if dirty else None
        if (dirty or busy) and left > 0:
            wrote, error = write_some(client, jobs, left, failures)
            failed = None if wrote else error or failed  # a try that is not over yet says nothing
            if wrote:
                continue
        if time.monotonic() > deadline and not last_look:
            last_look = True  # what was in the way may have gone while this waited for a flush
            seg.reap()
            continue
        if time.monotonic() > deadline:
            if failed is not None:
                raise failed
            post_in_the_way(client, over - done, InTheWay(pinned, dirty, busy))
            whole = "; pinned pages each keep a huge page" if client.geometry["huge_pages"] else f" ({pinned} pinned)"
            raise PoolExhausted(
                f"the pool is {over - done} frames above its new budget{whole}. "
                f"{exhausted_message(client)}{flushes_text(read_flushes(client))}{_locked(client)}"
            )
        seg.reap()
        given += seg.fit_objects(None, reason_number("budget"), deadline - time.monotonic())[0] // client.page_size
        time.sleep(0.005)
    return given


def _locked(client: Client) -> str:
    """Says which client has the memory lock at this moment: a stopped process that has it delays all clients that need it."""
    owner = client.seg.status()["memory_lock_owner"]
    return f"; client {owner} has the memory lock, and pool.clients() says who that is" if owner else ""


def counted_bytes(client: Client, status: dict[str, Any]) -> int:
    """The memory of the segment as the pool counts it; ``status``: what the core reports."""
    counted: int = status["metadata_bytes"] + status["resident_frames"] * client.page_size + status["object_bytes"]
    return counted


def may_have_huge_pages(client: Client) -> bool:
    """Whether the pool's tmpfs has huge pages: the kernel gives more memory than was asked for then."""
    return bool(if_given(lambda: has_huge_pages(os.path.dirname(client.path))))


def unasked_bytes(client: Client) -> int:
    """How much more memory the kernel counts for the segment than the pool does: below 0 if less.

    What the kernel has given unasked, as to a process that calls mlockall(MCL_CURRENT). Where a tmpfs has huge pages it counts more
    as a rule: then 0.
    """
    status = client.seg.status()
    more: int = status["kernel_bytes"] - counted_bytes(client, status)
    return 0 if more > 0 and may_have_huge_pages(client) else more


def give_back_unasked(client: Client, timeout: float) -> int:
    """Gives memory back that the kernel has given unasked to parts of the segment that are not in use; returns the bytes."""
    before = unasked_bytes(client)
    if before < UNASKED_BYTES:  # so much may be under way
        return 0
    client.seg.punch_holes(timeout)
    return max(0, before - unasked_bytes(client))


def _trim_objects(client: Client, frames: int, timeout: float) -> int:
    """Gives back so many frames' worth of the objects' memory, and what is lent to them and not used; returns the frames."""
    used = -(-client.seg.status()["object_bytes"] // client.page_size)
    return client.seg.fit_objects(max(0, used - frames), reason_number("trim"), timeout)[0] // client.page_size


def trim(client: Client, frames: int, timeout: float) -> int:
    """Gives up to ``frames`` frames back: what objects do not use, then the coldest pages, then objects.

    Returns their number. Raises StoreError.
    """
    seg, deadline = client.seg, time.monotonic() + timeout
    unused = client.give_back_objects("trim", frames * client.page_size, timeout) // client.page_size
    wanted, given = max(0, frames - unused), 0
    frames = min(wanted, seg.status()["resident_frames"])
    jobs: list[Job] = []
    while True:
        done, _moved, _pinned, dirty, busy, refused = seg.shrink(
            frames - given, reason_number("trim"), True, deadline - time.monotonic()
        )
        given += done
        if refused:
            client.post_refused(refused)
        left = deadline - time.monotonic()
        if given >= frames or left <= 0 or refused or not (dirty or (busy and jobs)):
            break
        wrote, failed = write_some(client, jobs, left)
        if failed is not None:
            raise failed
        if not wrote:
            break
    if given < wanted:
        given += _trim_objects(client, wanted - given, deadline - time.monotonic())
    given += unused
    client.post(NewEvent(EventKind.TRIMMED, EventReason.ASKED, bytes=given * client.page_size))
    return given
