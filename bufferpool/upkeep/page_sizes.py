"""The other page sizes of a pool, and how all of them share one budget of bytes.

Pages of another size have a segment of their own, a file beside the pool's (NAME@64KiB) with the same core: frames, entries,
pins, rings and clients of its own, made when a space first asks for the size. The pool's header says which sizes there are,
and how many bytes all of them may take together: the *whole* budget. Of it each segment has a *part*, its own budget, which
bounds its memory as the budget of any pool does. Parts change under the lock of the page sizes only:

    take     the part of the giver becomes smaller, and its pages leave; what cannot leave (it is pinned) counts as its own
    grant    a part becomes larger, by no more than what nobody has

So all pages together never have more memory than the whole budget. A death between the two steps leaves bytes that nobody
has, and the next grant gives them out: there is nothing to repair.

Memory moves to the size where it saves most misses for each byte, by the curves of the advice (:func:`balance`, which a steward
calls, and without one the misses: :func:`follow_misses`); to a size that has no frame left, because its pages are pinned or not evictable (:func:`more`); and to a new size.
"""

import contextlib
import math
import os
import stat
from collections.abc import Sequence
from typing import NamedTuple

from bufferpool.client import segment_file
from bufferpool.client.client import Client
from bufferpool.client.segment_file import MIN_FRAMES, size_text
from bufferpool.errors import (
    BufferPoolError,
    PoolExhausted,
    SegmentExists,
    SpaceBusy,
    SpaceNotFound,
    WaitTimeout,
    WouldDeadlock,
)
from bufferpool.figures.advice import read_advice
from bufferpool.figures.events import NewEvent
from bufferpool.figures.names import EventKind, EventReason, reason_number
from bufferpool.units import format_size
from bufferpool.upkeep import budget as govern

LOCKED_S = 30.0  # seconds to wait for the lock of the page sizes
SETTLE_S = 1.0  # seconds to wait for a memory lock, at least
BRIEFLY_S = 0.05  # the same, for calls that can go on without the lock
LEAST_SHARE = 64  # each size keeps a 64th of the whole budget, or four pages
STEP_SHARE = 32  # what moves at a time, of the whole budget
NEW_SHARE = 8  # what a new size has at least, of the whole budget
FULL = 0.95  # a size that has so much of its part in use can use more
MISS_STEP_BYTES = 16 << 20  # what a miss moves at most: it waits for that
MARGIN = 1.25  # what a byte must earn more in its new place


# ---- what each size has ---------------------------------------------------------------


def members(home: Client) -> list[Client]:
    """The clients of all page sizes of a pool, its own first."""
    return [home, *home.others()]


def whole_bytes(home: Client) -> int:
    """The budget of all page sizes of a pool together, in bytes."""
    return home.seg.page_sizes()[1] or home.budget_frames * home.page_size


def held_frames(client: Client) -> int:
    """The frames that have memory, and those that are lent to caches."""
    status = client.seg.status()
    return int(status["resident_frames"] + status["lent_frames"])


def _claimed_bytes(client: Client, timeout: float) -> int:
    """What a size has, in bytes: its part, or its memory if that is more because pages could not leave.

    Raises WaitTimeout if the memory lock of the size is not free for so long, as a process that has it is stopped.
    """
    # Under the memory lock: a client that gives memory to a frame has counted it by then, or sees the present part.
    return max(client.budget_frames, client.seg.counted_frames(timeout)) * client.page_size


def _reserved_bytes(client: Client) -> int:
    """What the spaces and caches of a size have reserved: an eighth more, so that other pages find frames too."""
    kept: int = sum(r["reserve"] for r in client.seg.spaces()) + sum(c["reserve"] for c in client.seg.caches())
    return -(-kept * 8 // 7)


def least_frames(client: Client, whole: int) -> int:
    """The smallest part of a size, in frames."""
    return max(MIN_FRAMES, whole // LEAST_SHARE // client.page_size, -(-_reserved_bytes(client) // client.page_size))


def _unassigned(sizes: Sequence[Client], whole: int, timeout: float) -> int:
    """Bytes of the whole budget that no size has; below 0 while pages cannot leave after a smaller budget. Raises WaitTimeout."""
    return whole - sum(_claimed_bytes(client, timeout) for client in sizes)


# ---- moving memory, under the lock of the page sizes --------------------------------------


def _take(giver: Client, frames: int, timeout: float) -> int:
    """Makes the part of a size smaller by so many frames, and gives their memory back to the kernel, as far as pages can leave.

    Returns the bytes given back.
    """
    seg, reason, before = giver.seg, reason_number("budget"), giver.budget_frames
    part = max(MIN_FRAMES, before - frames)
    seg.set_budget(part)
    seg.fit_objects(None, reason, timeout)
    done, *_, refused = seg.shrink(max(0, held_frames(giver) - part), reason, True, timeout)
    if refused:
        giver.post_refused(refused)
    given = int(done) * giver.page_size
    if given or part != before:
        giver.post(NewEvent(EventKind.SHRANK, EventReason.ASKED, bytes=given, before=before, after=part))
    return given


def _grant(taker: Client, size_bytes: int, timeout: float, saves: float | None = None) -> int:
    """Makes the part of a size larger by up to so many bytes, which nobody has; returns the bytes."""
    before = taker.budget_frames
    part = min(before + max(0, size_bytes) // taker.page_size, taker.room_frames)
    if part <= before:
        return 0
    taker.seg.grow_advice(part, timeout)
    taker.seg.set_budget(part)
    reason = EventReason.ASKED if saves is None else EventReason.PAYS
    taker.post(NewEvent(EventKind.GREW, reason, before=before, after=part, value=saves or 0.0))
    return (part - before) * taker.page_size


class Earning(NamedTuple):
    """What memory earns in a size: misses a second that a step of bytes less would cost, and one more would save."""

    client: Client
    loss: float
    gain: float
    spare: int
    """Bytes that it can give, without those that values of caches use."""
    least: int
    """Bytes that it keeps in any case."""
    unused: int
    """Bytes of its part that have no memory."""


def _earning(client: Client, step: int, whole: int) -> Earning:
    budget, size, held = client.budget_frames, client.page_size, held_frames(client)
    frames, least = max(1, step // size), least_frames(client, whole)
    curve = govern.curve_of(read_advice(client))
    lent, values = _lent_frames(client)
    spare = max(0, budget - max(least, values)) * size
    unused = max(0, budget - held) * size
    pages = max(1, budget - lent)
    loss = gain = 0.0
    if curve is not None:
        loss = 0.0 if unused >= step else max(0.0, curve(max(1, pages - frames)) - curve(pages))
        gain = max(0.0, curve(pages) - curve(pages + frames)) if held >= FULL * budget else 0.0
    if lent >= FULL * (budget - _kept_by_pages(client)) and lent * size < _lendable_bytes(client, whole):
        gain = math.inf  # caches take what their limits allow from pages, as in a pool of one page size
    return Earning(client, loss, gain, spare, least * size, unused)


def _kept_by_pages(client: Client) -> int:
    """The frames of a size that are not lent to caches: four, and what its spaces have reserved."""
    reserved: int = sum(record["reserve"] for record in client.seg.spaces())
    return MIN_FRAMES + -(-reserved // client.page_size)


def _lent_frames(client: Client) -> tuple[int, int]:
    """The frames that are lent to caches, and the least part with which no value of them is evicted; (0, 0) without caches."""
    status = client.seg.status()
    if not status["lent_frames"]:
        return 0, 0
    used = -(-int(status["object_bytes"]) // client.page_size)
    return int(status["lent_frames"]), used + _kept_by_pages(client) if used else 0


def _lendable_bytes(client: Client, whole: int) -> int:
    """What the limits of all caches allow them of the whole budget; half of it for those without one."""
    limits: list[int] = [record["limit"] for record in client.seg.caches()]
    return max(sum(limits), whole // 2 if 0 in limits else 0)


def _demand(
    sizes: Sequence[Client], taker: Client, wanted: int, timeout: float, whole: int, values: bool = False
) -> int:
    """Gives a size up to ``wanted`` bytes more: of what nobody has, then what others have no use for, then what earns them least.

    With ``values`` at last also what values of caches use. Returns the bytes.
    """
    step = max(wanted, max(client.page_size for client in sizes))
    free = _unassigned(sizes, whole, timeout)
    givers = [_earning(client, step, whole) for client in sizes if client is not taker] if free < wanted else []
    for also_values in (False, True)[: 1 + values]:
        for giver in sorted(givers, key=lambda one: (one.loss, -one.unused)):
            size = giver.client.page_size
            spare = giver.client.budget_frames * size - giver.least if also_values else giver.spare
            frames = min(-(-(wanted - max(0, free)) // size), spare // size)
            if frames > 0 and free < wanted:
                _take(giver.client, frames, timeout)
                free = _unassigned(sizes, whole, timeout)
    return _grant(taker, min(free, wanted), timeout)


# ---- the calls ---------------------------------------------------------------------------


def add(home: Client, page_size: int, timeout: float = LOCKED_S) -> Client:
    """The client of another page size of a pool, whose segment is made if there is none.

    Raises ValueError, TypeError, PoolReadOnly, PoolExhausted, SegmentExists, SegmentReplaced, SharedMemoryFull, WaitTimeout.
    """
    found = home.other(page_size) if home.seg.page_sizes()[0] & page_size else None
    if found is not None:
        return found
    home.require_writable(f"make pages of {size_text(page_size)}, of which it has none yet")
    with home.lock_sizes(timeout):
        bits, whole = home.seg.page_sizes()
        found = home.other(page_size) if bits & page_size else None
        if found is not None:
            return found
        assert home.known_uuid is not None
        segment_file.refuse_another(home.path, home.known_uuid, home.trusted_uid)
        plan = _plan(home, page_size)
        whole = whole or home.budget_frames * home.page_size
        made = _make(home, page_size, plan)
        try:
            segment_file.refuse_another(home.path, home.known_uuid, home.trusted_uid)  # perhaps it was just removed
            _give_first_part(home, made, whole, bits, timeout)
        except BaseException:
            _unlink(made)
            home.forget(page_size)
            with contextlib.suppress(WaitTimeout):  # then the next move gives back what was taken for it
                _settle(home, timeout)
            raise
        _give_share(members(home), made, whole, timeout)
        return made


def _plan(home: Client, page_size: int) -> segment_file.Plan:
    """The geometry of the segment of another page size. Raises ValueError."""
    geometry, status, whole = home.geometry, home.seg.status(), whole_bytes(home)
    least = MIN_FRAMES * page_size
    segment_file.check_page_size(page_size)
    huge_pages = geometry["huge_pages"]
    extent_size = None if huge_pages else max(geometry["extent_frames"] * home.page_size, page_size)
    extent_size = segment_file.extent_bytes(page_size, extent_size, huge_pages)
    most = max(whole, status["max_frames"] * home.page_size, least)
    most = min(most, segment_file.most_bytes(page_size, extent_size))
    plan = segment_file.plan(
        segment_file.Sizes(
            least,
            page_size=page_size,
            min_capacity=least,
            max_capacity=most,
            extent_size=extent_size,
            max_clients=geometry["max_clients"],
            max_pages=geometry["max_pages"],
            huge_pages=huge_pages,
        )
    )
    if NEW_SHARE * least > whole:
        raise ValueError(
            f"pages of {size_text(page_size)} need a pool whose budget is at least {format_size(NEW_SHARE * least)}, and "
            f"{home.name!r} has {format_size(whole)}: use a smaller page_size, or give the pool more (pool.resize())"
        )
    return plan


def _make(home: Client, page_size: int, plan: segment_file.Plan) -> Client:
    path, mode = segment_file.path_of_size(home.path, page_size), stat.S_IMODE(os.stat(home.path).st_mode)
    assert home.known_uuid is not None
    try:
        segment_file.create(path, plan, mode, home.known_uuid)
    except SegmentExists as error:  # a process made it and died before it was in use, or it belongs to another pool
        if home.other(page_size) is None:
            raise SegmentExists(
                f"{path} exists and is no page size of this pool, but perhaps of one that had its name before: remove it "
                f"(bufferpool rm {os.path.basename(path)}), or use another name or page_size"
            ) from error
    made = home.other(page_size)
    assert made is not None
    _ = made.seg
    return made


def _give_first_part(home: Client, made: Client, whole: int, bits: int, timeout: float) -> None:
    """Gives a new size its first part, and enters it in the header: no process uses it before."""
    sizes = [*members(home), made]
    made.seg.set_budget(MIN_FRAMES)
    home.seg.set_page_sizes(bits, whole)
    # 1. Four pages, without which no size works: the other sizes must have given them up before this one is in use.
    lacking = -_unassigned(sizes, whole, timeout)
    for giver in sorted(sizes[:-1], key=lambda client: held_frames(client) - client.budget_frames):
        spare = giver.budget_frames - least_frames(giver, whole)
        if lacking > 0 and spare > 0:
            _take(giver, min(spare, -(-lacking // giver.page_size)), timeout)
            lacking = -_unassigned(sizes, whole, timeout)
    if lacking > 0:
        raise PoolExhausted(
            f"no memory is available for pages of {size_text(made.page_size)}: {format_size(lacking)} of the pages of pool {home.name!r} "
            "are pinned, dirty or in use. Release pins (delete arrays over pages), flush or drop pages, or give the pool more (pool.resize())"
        )
    # 2. The durable LSN that the engine has set so far, so that no page is written before its log.
    _copy_lsn(home, made)
    home.seg.set_page_sizes(bits | made.page_size, whole)
    _copy_lsn(home, made)  # the LSN that was set while the header did not name this size


def _give_share(sizes: Sequence[Client], made: Client, whole: int, timeout: float) -> None:
    """Gives a new size an equal share of what the others do not use, or a small one of what they do."""
    others = [client for client in sizes if client is not made]
    unused = sum(max(0, c.budget_frames - held_frames(c)) * c.page_size for c in others)
    wanted = max(whole // NEW_SHARE, min(whole // len(sizes), unused)) - made.budget_frames * made.page_size
    with contextlib.suppress(WaitTimeout):  # it has its four pages, and gets more when it needs them
        _demand(sizes, made, wanted, timeout, whole)


def _copy_lsn(home: Client, made: Client) -> None:
    while made.durable_lsn != (lsn := home.durable_lsn):
        made.seg.set_durable_lsn(lsn)


def _unlink(client: Client) -> None:
    client.seg.mark_unlinked(False)
    segment_file.unlink(client.path)


def remove(home: Client, page_size: int, timeout: float = LOCKED_S) -> int:
    """Removes a page size that has no space; returns the bytes of memory that it had. Raises SpaceBusy, SpaceNotFound, WaitTimeout."""
    with home.lock_sizes(timeout):
        bits, whole = home.seg.page_sizes()
        client = home.other(page_size) if bits & page_size else None
        if client is None:
            raise SpaceNotFound(f"pool {home.name!r} has no pages of {size_text(page_size)}")
        client.seg.reap()
        names = [record["name"] for record in client.seg.spaces()]
        if names:
            raise SpaceBusy(
                f"pool {home.name!r} has spaces with pages of {size_text(page_size)}: {names[:20]}; remove them first"
            )
        had = client.seg.status()["kernel_bytes"]
        _take(client, client.budget_frames, timeout)
        client.seg.shrink(held_frames(client), reason_number("budget"), True, timeout)
        if held_frames(client):
            raise SpaceBusy(
                f"pages of {size_text(page_size)} that were removed are still pinned: delete the arrays over them"
            )
        home.seg.set_page_sizes(bits & ~page_size, whole)
        _unlink(client)
        _settle(home, timeout)
        home.forget(page_size)
    return int(had)


def more(client: Client) -> bool:
    """Gives memory of the other sizes to a size whose pages cannot be evicted; returns whether it got any. Called when no frame is free."""
    home = client.home()
    if not home.seg.page_sizes()[0]:
        return False
    try:
        with home.lock_sizes(BRIEFLY_S):
            whole = whole_bytes(home)
            taker = client if client is home else home.other(client.page_size)
            if taker is None:
                return False
            wanted = max(4 * client.page_size, whole // STEP_SHARE)
            return _demand(members(home), taker, wanted, SETTLE_S, whole, values=True) > 0
    except (WaitTimeout, WouldDeadlock):  # another process moves memory just now: the caller tries again
        return False


def ensure_reserve(client: Client, reserve: int, timeout: float = LOCKED_S) -> None:
    """Gives a size a part that is large enough for one more reserve of so many bytes, if the others can give it."""
    home = client.home()
    if not home.seg.page_sizes()[0]:
        return
    lacking = (
        _reserved_bytes(client) + -(-reserve * 8 // 7) + client.page_size - client.budget_frames * client.page_size
    )
    if lacking <= 0:
        return
    with home.lock_sizes(timeout):
        taker = client if client is home else home.other(client.page_size)
        if taker is not None:
            _demand(members(home), taker, lacking, timeout, whole_bytes(home), values=True)


def balance(home: Client, timeout: float) -> int:
    """Gives out what nobody has, and moves a step of memory to the size where it saves most misses; returns the bytes that moved.

    Returns 0 while another process has the lock of the page sizes.
    """
    if home.seg.page_sizes() == (0, 0):
        return 0
    try:
        with home.lock_sizes(BRIEFLY_S):
            return _settle(home, timeout) if not home.seg.page_sizes()[0] else _balance(members(home), timeout)
    except (WaitTimeout, WouldDeadlock):
        return 0


def follow_misses(client: Client) -> bool:
    """Called after misses that evicted pages of this size: moves a small step to where memory saves most misses.

    Returns False if that is to be tried later: a process that has a lock is stopped, perhaps. A steward does the same, each second and in
    larger steps, so while one runs nothing is done here. A miss is not the place to report what stands in the way: it goes on without.
    """
    try:
        home = client.home()
        if not home.seg.page_sizes()[0] or home.seg.steward():
            return True
        with home.lock_sizes(0.0):
            _balance(members(home), BRIEFLY_S, MISS_STEP_BYTES)
    except (BufferPoolError, OSError):
        return False
    return True


def _settle(home: Client, timeout: float) -> int:
    """Gives the pool's own size what nobody has; all of it, if there is no other size any more. Returns the bytes."""
    bits, whole = home.seg.page_sizes()
    if not whole:  # another process has done this meanwhile
        return 0
    given = _grant(home, _unassigned(members(home), whole, timeout), timeout)
    if not bits:
        home.seg.set_budget(whole // home.page_size)  # also if its pages could not leave: no other size has any
        home.seg.set_page_sizes(0, 0)
    return given


def _balance(sizes: Sequence[Client], timeout: float, most: int | None = None) -> int:
    """Moves a step of memory, of ``most`` bytes or one page at most, to where it saves most misses; returns the bytes."""
    whole, largest = whole_bytes(sizes[0]), max(client.page_size for client in sizes)
    step = whole // STEP_SHARE if most is None else min(whole // STEP_SHARE, most)
    step = -(-max(step, 1) // largest) * largest
    for client in sizes:  # a process that made a part smaller has died, or pages could not leave then
        if held_frames(client) > client.budget_frames:
            _take(client, 0, timeout)
    earnings = [_earning(client, step, whole) for client in sizes]
    full = [one for one in earnings if one.unused < step]
    best = max(full or earnings, key=lambda one: one.gain)
    moved = _grant(best.client, _unassigned(sizes, whole, timeout), timeout)
    givers = [one for one in earnings if one is not best and one.spare >= step]
    if not givers or not full:
        return moved
    giver = min(givers, key=lambda one: (one.loss, -one.unused))
    idle = giver.unused >= step  # memory that the giver has no use for, so it loses nothing
    if not idle and best.gain <= MARGIN * giver.loss:
        return moved
    _take(giver.client, step // giver.client.page_size, timeout)
    free = min(step, _unassigned(sizes, whole, timeout))
    saves = best.gain - giver.loss
    return moved + _grant(best.client, free, timeout, saves if math.isfinite(saves) else None)


def least_bytes(home: Client) -> int:
    """The smallest whole budget: four pages of each size."""
    return sum(MIN_FRAMES * client.page_size for client in members(home))


def set_own_budget(client: Client, frames: int, timeout: float) -> bool:
    """Sets the budget of a pool that has one page size; False, and nothing is changed, if it has others by now."""
    with client.lock_sizes(max(timeout, BRIEFLY_S)):
        if client.seg.page_sizes()[0]:
            return False
        client.seg.set_budget(frames)
        client.seg.set_page_sizes(0, 0)  # a process may have died while it removed the last other size
        return True


def set_whole(home: Client, size_bytes: int, timeout: float) -> int:
    """Sets the whole budget, and divides what is new, or lacking, in proportion to the parts; returns the bytes given back.

    Pages that cannot leave stay for now, above the new budget. Raises WaitTimeout.
    """
    timeout = max(timeout, SETTLE_S)
    with home.lock_sizes(timeout):
        bits, _ = home.seg.page_sizes()
        sizes = members(home)
        parts = {client.page_size: client.budget_frames * client.page_size for client in sizes}
        over = sum(parts.values()) - size_bytes
        if over > 0:  # the parts first: after a death in between nobody has more than the whole
            given = _take_proportionally(sizes, over, timeout)
            home.seg.set_page_sizes(bits, size_bytes)
            return given
        home.seg.set_page_sizes(bits, size_bytes)
        for client in sizes[1:]:
            share = -over * parts[client.page_size] // sum(parts.values())
            _grant(client, min(share, _unassigned(sizes, size_bytes, timeout)), timeout)
        _grant(home, _unassigned(sizes, size_bytes, timeout), timeout)
        return 0


def _take_proportionally(sizes: Sequence[Client], over: int, timeout: float) -> int:
    """Makes all parts together at least ``over`` bytes smaller, each by as much as it has above the least; returns the bytes given back."""
    given = 0
    spares = {c.page_size: max(0, c.budget_frames - MIN_FRAMES) * c.page_size for c in sizes}
    # The largest pages first: what their rounding takes too much, the smaller ones need not give.
    for client in sorted(sizes, key=lambda client: -client.page_size):
        spare, others = spares[client.page_size], sum(spares.values())
        if over > 0 and spare:
            frames = min(-(-over * spare // (others * client.page_size)), spare // client.page_size)
            given += _take(client, frames, timeout)
            over -= frames * client.page_size
        del spares[client.page_size]
    return given


def check(home: Client) -> list[str]:
    """What is wrong among the page sizes of a pool: memory above the whole budget, names and files twice, a missing segment."""
    bits, whole = home.seg.page_sizes()
    if not bits:
        return []
    found = []
    with home.lock_sizes(LOCKED_S):
        sizes = members(home)
        if len(sizes) - 1 != bits.bit_count():
            found.append(
                f"{bits.bit_count() - len(sizes) + 1} segments of other page sizes were removed by other means"
            )
        parts = sum(client.budget_frames * client.page_size for client in sizes)
        if parts > whole:
            found.append(f"the page sizes have {parts} bytes of budget together, and the whole budget is {whole}")
        seen: dict[str, Client] = {}
        for client in sizes:
            for record in client.seg.spaces():
                if not record["owner"] and seen.setdefault(record["name"], client) is not client:
                    found.append(f"there are two spaces of the name {record['name']!r}, with pages of two sizes")
    return found


def curve(clients: Sequence[Client], whole: int) -> govern.Curve | None:
    """Misses a second at a whole budget, in frames of the first size, if each step is taken, or given, where it counts most.

    None while no size has enough references.
    """
    size = clients[0].page_size
    curves = [(c, of) for c in clients if (of := govern.curve_of(read_advice(c))) is not None]
    if not curves:
        return None
    present = sum(of(client.budget_frames) for client, of in curves)

    def misses(frames: int) -> float:
        change = frames * size - whole
        changed = [of(max(1, c.budget_frames + change // c.page_size)) - of(c.budget_frames) for c, of in curves]
        return present + min(changed)

    return misses
