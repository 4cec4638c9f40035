"""The steward: the background work of a pool, done by one process at a time.

Any number of processes may offer to be the steward of a pool; the kernel
chooses one (by a byte lock of the segment file, as for liveness), and another one
when that process ends in any way. Each round has numbered phases:

1. dead clients are reaped;
2. dirty pages are written, so that misses find clean frames and no page stays dirty for long;
3. the budget follows the pressure and the miss-ratio curve (budget.py);
4. if `idle` is set, pages and free frames that were not used for so long are given back;
5. the working set is saved, if asked for.

What may hang (stores, the log, the working set's file) runs in threads of its own (jobs.py), of which a
round waits for at most ``interval`` seconds: the other spaces are flushed, and the rounds go on, meanwhile.
"""

import contextlib
import errno
import math
import os
import struct
import time
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from bufferpool import _core
from bufferpool._locks import Event
from bufferpool.client import segment_file
from bufferpool.client.client import Client
from bufferpool.client.jobs import Job
from bufferpool.client.threads import Worker
from bufferpool.client.trouble import AGAIN_S, HANGS_S, LOG, hangs_posted, tell_hanging, tell_read, tell_recovered
from bufferpool.errors import (
    BufferPoolError,
    DescriptorLost,
    PoolClosed,
    PoolReadOnly,
    SegmentCorrupt,
    SegmentReplaced,
    StoreError,
    TooManyClients,
    WrongProcess,
)
from bufferpool.figures import stats
from bufferpool.figures.advice import read_advice
from bufferpool.figures.events import NewEvent, posted, unread_pages
from bufferpool.figures.names import EventKind, EventReason, OperationKind, reason_number
from bufferpool.figures.operations import read_flushes, read_operations
from bufferpool.machine.pressure import Source, SystemSource
from bufferpool.spaces.claim import drop_unused
from bufferpool.units import bad_number, flag_of, is_number
from bufferpool.upkeep import budget as govern
from bufferpool.upkeep import flush_jobs, memory, page_sizes, writeback
from bufferpool.upkeep import working_set as warm
from bufferpool.upkeep.event_log import EventLog

FLUSH_PAGES = 1024  # of one space and sync, at most
LEAST_FLUSH_PAGES = 64  # of a round, at least: fewer are not worth a sync
SHRINK_BYTES = 64 << 20  # at most, in one step: a short step delays no other client, and the next one comes soon
STOP_S = 2.0  # seconds to wait at the end for flushes under way
SAVING = "working set"  # the subject of the job that saves it
MANY = 1 << 32  # more frames than there are
BALANCE_S = 1.0  # between two looks at which page size earns most
STALE_S = 5.0  # a steward without a round for so long does not count


# What follows for others while an operation of each kind hangs.
_UNTIL_THEN: dict[OperationKind, str] = {
    "load": "threads that want the page wait until its store or loader comes back",
    "flush": "its pages stay dirty until its store comes back",
    "cache_load": "threads that want the value wait until its loader returns",
    "log_sync": "pages above the durable LSN stay dirty until it returns",
    "save": "the working set is not saved until then",
}


@dataclass(frozen=True)
class Settings:
    """What a steward does. Times are in seconds."""

    interval: float = 0.25
    """Seconds between two rounds."""
    flush_every: float = 15.0
    """A page is dirty for at most this many seconds. Infinite: only when clean frames get short."""
    clean: float = 0.1
    """Share of the budget that is kept free or clean, ahead of demand."""
    pressure: bool = True
    """Whether the budget follows the memory pressure of the machine and the miss-ratio curve."""
    idle: float | None = None
    """Seconds after which the memory of unused pages and free frames is given back. None: it is kept."""
    working_set: str | os.PathLike[str] | None = None
    """Where the working set is saved; see :func:`bufferpool.upkeep.working_set.save_working_set`."""
    working_set_every: float = 300.0
    """Seconds between two saves of the working set."""
    rules: govern.Rules = field(default_factory=govern.Rules)
    """The rules for the budget."""
    source: Source | None = None
    """Where the memory pressure is read. None: from the kernel. A steward closes it when it ends."""

    def __post_init__(self) -> None:
        for name in ("interval", "flush_every", "working_set_every", "idle"):
            value = getattr(self, name)
            if value is None and name == "idle":
                continue
            if not is_number(value):
                raise TypeError(f"{name} must be a number of seconds above 0, not {type(value).__name__}")
            if not value > 0:
                raise ValueError(f"{name} must be a number of seconds above 0, not {value!r}")
        flag_of(self.pressure, "pressure")
        if not is_number(self.clean) or not 0 <= self.clean <= 0.5:
            raise bad_number(self.clean, f"clean must be a share from 0 to 0.5, not {self.clean!r}")
        if self.working_set is not None:
            os.fspath(self.working_set)  # raises TypeError
        if not isinstance(self.rules, govern.Rules):
            raise TypeError(f"rules must be bufferpool.Rules, not {type(self.rules).__name__}")
        if self.source is not None and not isinstance(self.source, Source):
            raise TypeError(
                f"source must have the methods read, wait and close, and {type(self.source).__name__} has not all of them"
            )


def peers(path: str) -> Iterator[float]:
    """The hits per second that a MiB earns in each other pool of the directory whose steward could give memory."""
    where = _core.fields()

    def number(header: bytes, name: str, form: str) -> float:
        return float(struct.unpack_from(form, header, where[f"Header.{name}"][0])[0])

    for found in segment_file.find(os.path.dirname(path)):
        if found.path == path or found.trouble or found.owner != os.geteuid():
            continue
        try:
            with open(found.path, "rb") as file:
                header = file.read(where["Header"][1])
        except OSError:  # removed since it was listed, or no permission
            continue
        looked = number(header, "steward_ns", "<Q") / 1e9
        at = where["Header.home"][0]
        if any(header[at : at + 16]):  # another page size of a pool, whose steward speaks for all of them
            continue
        led = number(header, "steward", "<I") and time.clock_gettime(time.CLOCK_BOOTTIME) - looked < STALE_S
        if led and number(header, "budget_frames", "<I") > number(header, "min_frames", "<I"):
            yield number(header, "worth", "<d")


def passes(error: BaseException) -> bool:
    """Whether an error may be temporary: no descriptor, no memory, a full file system.

    A pool that is closed or damaged, or a mistake in a program, does not pass. Foreign code that ended its thread
    (SystemExit) has ended that job, and not the steward.
    """
    lasting = (PoolClosed, PoolReadOnly, SegmentCorrupt, SegmentReplaced, TooManyClients, WrongProcess)
    if not isinstance(error, Exception):
        return True
    return isinstance(error, (OSError, MemoryError, BufferPoolError)) and not isinstance(error, lasting)


class Steward:
    """The background thread of one process. Made by :meth:`Pool.start_steward`."""

    def __init__(self, client: Client, settings: Settings) -> None:
        self.client, self.settings = client, settings
        self.error: BaseException | None = None
        """The error that ended the thread, if any."""
        self.trouble: BaseException | None = None
        """What a store, the log, the working set's file or the kernel raised last; it is tried again, and is an event."""
        self.leads = False
        """Whether this process is the pool's steward now."""
        self.pid = os.getpid()
        self._events = EventLog(client)
        self._source = SystemSource(os.path.dirname(client.path)) if settings.source is None else settings.source
        self._governor = govern.Governor(settings.rules)
        self._stopping = Event()
        self._cursors: dict[int, tuple[int, int]] = {}  # space -> its generation, the next page to flush
        self._pass_ends = self._flushed_at = float("-inf")
        self._pass_left = False
        self._worth = 0.0
        self._last = govern.Decision(0, EventReason.ASKED, 0.0)
        self._idle_at = self._saved_at = time.monotonic()
        self._least_free = MANY  # frames, in any round since the last look for idle pages
        self._told_at: dict[EventKind, float] = {}
        self._in_the_way = memory.InTheWay(0, 0, 0)  # of the last shrink
        self._shrinking: list[Job] = []  # flushes that make pages clean which the budget has no room for
        self._jobs: list[Job] = []  # of this steward, that have not been looked at since they ended
        self._looked_at = float("-inf")  # for operations that hang
        self._hangs_over = 0  # events about such operations when none was left that hung
        self._log_fails = self._save_fails = False
        self._failed_loads = 0  # events about them when `_unread` was read
        self._unread: list[tuple[dict[str, Any], int]] = []  # pages that could not be loaded, and have not been since
        self._patience_s = settings.interval  # how long a round waits for its jobs
        self._seen: tuple[float, int] | None = None
        self._demand_per_s = 0.0
        self._ready = 0
        self._members: dict[int, Steward] = {}  # by page size
        self._home = True  # whether the segment is a pool's own, and not another page size of it
        self._balanced_at = float("-inf")
        self._thread: Worker | None = None

    def begin(self) -> None:
        """Starts the thread. If an exception is raised meanwhile, :meth:`stop` ends what has begun. Raises ValueError."""
        try:
            if self.client.is_part:
                raise ValueError(
                    f"{self.client.name!r} is a page size of the pool {self.client.home().name!r}, whose steward serves all of them: start that"
                )
            self._thread = Worker(self._run)
        except BaseException:
            self._stopping.set()
            if self.settings.source is None:
                self._source.close()
            raise

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread is not None and not self._thread.ended

    def pause_s(self) -> float:
        """The seconds to the next round: fewer if half of the clean frames would be used by then."""
        if not self.leads or not self._demand_per_s:
            return self.settings.interval
        return min(self.settings.interval, max(0.005, 0.5 * self._ready / self._demand_per_s))

    def stop(self) -> None:
        """Ends the thread, and resigns. Raises the error that has ended it before, if one has."""
        self._stopping.set()
        if isinstance(self._source, SystemSource):
            self._source.wake()
        if self._thread is not None and not self._thread.is_current():
            self._thread.join()
        self.client.jobs.wait(lambda: all(job.done for job in self._jobs), STOP_S)
        if self.error is not None:
            error, self.error = self.error, None
            raise error

    def wait(self, timeout: float) -> bool:
        """Waits until the thread has ended, for ``timeout`` seconds at most; whether it has."""
        return self._thread is None or self._thread.join(timeout)

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                try:
                    self.round()
                    for one in (self, *self._members.values()):
                        if one.leads:
                            one._events.write()
                    self._source.wait(self.pause_s())
                except Exception as error:
                    if not passes(error):
                        raise
                    self._tell_of_round(error)
                    self._stopping.wait(self.settings.interval)
        except BaseException as error:
            self.error = error
            raise  # threading.excepthook shows it; stop() raises it again
        finally:
            for one in (*self._members.values(), self):
                if one.leads:
                    with contextlib.suppress(
                        DescriptorLost, PoolClosed
                    ):  # the steward's lock was lost with that descriptor
                        one.client.seg.resign()
                    one.leads = False
            self._source.close()

    def _tell_of_round(self, error: BaseException) -> None:
        """Records a temporary error as an event."""
        self.trouble = error
        number = getattr(error, "errno", None)
        with contextlib.suppress(MemoryError):  # there may be no memory for more than the event
            self._tell(
                time.monotonic(), EventKind.ROUND_FAILED, EventReason.KERNEL, error, value=number or errno.ENOMEM
            )

    # ---- one round --------------------------------------------------------------

    def round(self) -> None:
        """Does one round, if this process is the active steward or can become it."""
        seg, before = self.client.seg, self.leads
        drop_unused(self.client)  # also if another process is the active steward: this one may have been it
        predecessor = seg.lead(self._worth)
        self.leads = predecessor >= 0
        if not self.leads:
            self._events.leave_to_steward(seg.status()["steward_ns"])
            return
        if not before:
            self._idle_at, self._least_free = time.monotonic(), MANY
            self.client.post(
                NewEvent(EventKind.STEWARD, EventReason.DIED if predecessor else EventReason.ASKED, value=predecessor)
            )
        now = time.monotonic()
        # 1. Dead clients.
        seg.reap()
        # 2. Dirty pages.
        self._flush(now)
        # 3. The budget, and its parts.
        if self._home and self.client.seg.page_sizes() != (0, 0):
            self._govern_sizes(now)
        elif self._home and self.settings.pressure:
            self._govern(now)
        # 4. Idle pages.
        if self.settings.idle is not None:
            self._give_idle(now, self.settings.idle)
        # 5. The working set.
        path = self.settings.working_set
        if path is not None and now - self._saved_at >= self.settings.working_set_every:
            self._saved_at = now
            self._start(SAVING, partial(self._save, now, path))
            self._wait()

    def _of_other_sizes(self) -> list["Steward"]:
        """The stewards of the pool's other page sizes, whose rounds are parts of this one's."""
        for client in self.client.others():
            if client.page_size not in self._members or self._members[client.page_size].client is not client:
                path, size = self.settings.working_set, segment_file.size_text(client.page_size)
                path = None if path is None else f"{os.fspath(path)}@{size}"
                settings = replace(self.settings, working_set=path, source=self._source)
                made = self._members[client.page_size] = Steward(client, settings)
                made._stopping, made._home = self._stopping, False
        present = {client.page_size for client in self.client.others()}
        self._members = {size: one for size, one in self._members.items() if size in present}
        return list(self._members.values())

    def _govern_sizes(self, now: float) -> None:
        """The rounds of all other page sizes; then the whole budget and its parts, and what is above them."""
        others = self._of_other_sizes()
        for member in others:
            member.round()
        clients = [self.client, *(member.client for member in others)]
        if self.settings.pressure:
            self._govern_whole(now, clients)
        if now - self._balanced_at >= BALANCE_S:
            self._balanced_at = now
            page_sizes.balance(self.client, self._patience_s)
        for one in (self, *others):
            over = page_sizes.held_frames(one.client) - one.client.budget_frames
            given = one._shrink(over) if over > 0 else 0
            one._tell_in_the_way(now, over, given)

    def _govern_whole(self, now: float, clients: list[Client]) -> None:
        """The budget of all page sizes together follows the pressure, and what its last and its next bytes earn in any of them."""
        client, size = self.client, self.client.page_size
        held = sum(page_sizes.held_frames(one) * one.page_size for one in clients)
        least = max(client.seg.status()["min_frames"] * size, page_sizes.least_bytes(client))
        whole = page_sizes.whole_bytes(client)
        figures = govern.Pool(whole // size, held // size, -(-least // size), client.max_frames, size)
        decision = self._decide(now, figures, page_sizes.curve(clients, whole))
        if decision is not None:
            given = page_sizes.set_whole(client, decision.frames * size, self._patience_s)
            self._post_decision(decision, figures, given)

    def _start(self, subject: Hashable, work: Callable[[], int]) -> bool:
        """Starts a job; False if there is one on its subject already. Raises what ended an earlier one, unless it may pass."""
        failed = [job.error for job in self._jobs if job.error is not None]
        self._jobs = [job for job in self._jobs if not job.done]
        for error in failed:
            if not passes(error):
                raise error
            self._tell_of_round(error)
        job, new = self.client.jobs.start(subject, work)
        if new:
            self._jobs.append(job)
        return new

    def _wait(self) -> None:
        """Waits for the jobs of this round, for at most ``interval`` seconds."""
        began = time.monotonic()
        jobs = [job for job in self._jobs if job.began > began - self._patience_s]
        self.client.jobs.wait(lambda: self._stopping.is_set() or all(job.done for job in jobs), self._patience_s)

    def _save(self, now: float, path: str | os.PathLike[str]) -> int:
        try:
            saved = warm.save_working_set(self.client, path)
        except OSError as error:
            self._save_fails = True
            self._tell(now, EventKind.SAVE_FAILED, EventReason.STORE, error)
            return 0
        if self._save_fails:
            self._save_fails = False
            self.client.post(NewEvent(EventKind.SAVE_RECOVERED, EventReason.STORE))
        return saved

    def _tell(
        self,
        now: float,
        kind: EventKind,
        reason: EventReason,
        error: BaseException | None = None,
        *,
        value: float = 0,
    ) -> None:
        """Records trouble that later rounds may end: an event and a line in the log, not too often.

        A flush that failed has recorded the trouble of its store already (trouble.py).
        """
        if error is not None:
            self.trouble = error
        told = (kind, reason) == (EventKind.FLUSH_FAILED, EventReason.STORE)
        if not told and now - self._told_at.get(kind, float("-inf")) >= AGAIN_S:
            self._told_at[kind] = now
            self.client.post(NewEvent(kind, reason, value=value))
            if error is not None:
                LOG.warning("pool %r, %s: %s", self.client.name, kind.name.lower().replace("_", " "), str(error))

    def _give_idle(self, now: float, idle_s: float) -> None:
        """Gives back pages that were not used for ``idle_s`` seconds, and frames that were free all that time.

        How many frames were never needed since the last look is what was free in the round that
        had the fewest (the low-water mark of tcmalloc's free lists). One extent of them is kept: a
        client that needs one frame plugs a whole extent, which would be given back and plugged again and again.
        """
        if now - self._idle_at < max(1.0, idle_s / 8):
            return
        unused = max(0, self._least_free - self.client.geometry["extent_frames"])
        self._idle_at, self._least_free = now, MANY
        idle = self.client.seg.evict_idle(idle_s, self._patience_s)
        given = self.client.give_back(idle + unused, "idle", self._patience_s)
        given += self.client.give_back_objects("idle", timeout=self._patience_s)
        if given:
            self.client.post(NewEvent(EventKind.TRIMMED, EventReason.IDLE, bytes=given, value=idle_s))

    # ---- flushing ------------------------------------------------------------------

    def _flush(self, now: float) -> None:
        """Writes what is due: a shortage of clean frames at once, everything else within ``flush_every``.

        In page order, from where the last round ended, so that neighbours go together (an elevator).
        """
        summary = stats.read_summary(self.client)
        self._least_free = min(self._least_free, summary.frames.free)
        self._tell_of_hung(now)
        spaces = self.client.seg.spaces()
        spaces = [
            r
            for r in spaces
            if r["kind"] in writeback.WRITTEN
            and stats.pair_of(summary.spaces, r["index"])[1]
            and writeback.can_write(self.client, r)
        ]
        busy = [r for r in spaces if r["flusher"] or self.client.jobs.running(r["index"])]
        spaces = [r for r in spaces if r not in busy]  # spaces that another client flushes already
        dirty = sum(stats.pair_of(summary.spaces, r["index"])[1] for r in spaces)
        due = max(self._shortage_of_clean(now, summary), self._due_by_age(now, dirty))
        if due <= 0 or not dirty:
            return
        if summary.held_back:
            self._start(flush_jobs.LOG, partial(self._sync_log, now))
            self._wait()
        for record in spaces:
            share = -(-due * stats.pair_of(summary.spaces, record["index"])[1] // dirty)
            self._start(record["index"], partial(self._flush_space, now, record, share))
        self._wait()
        self._pass_left = any(
            self.client.jobs.running(r["index"]) or self._cursors.get(r["index"], (0, 0))[1] for r in spaces
        )

    def _tell_of_hung(self, now: float) -> None:
        """Records an event for operations of any client that hang."""
        if now - self._looked_at < HANGS_S / 10:
            return
        self._looked_at = now
        found = read_operations(self.client)
        for one in tell_hanging(self.client, found, HANGS_S):
            self.trouble = StoreError(f"{one} has not come back for {one.seconds:.0f} s; {_UNTIL_THEN[one.kind]}")
        news = hangs_posted(self.client) != self._hangs_over
        if news and not tell_recovered(self.client, [*found, *read_flushes(self.client)]):
            self._hangs_over = hangs_posted(self.client)
        self._tell_of_unread()

    def _tell_of_unread(self) -> None:
        """Records an event for pages that could not be loaded, and that are in the pool now."""
        failed = posted(self.client).get((EventKind.LOAD_FAILED, EventReason.STORE), 0)
        if failed != self._failed_loads:
            self._failed_loads, self._unread = failed, unread_pages(self.client)
        if self._unread:
            self._unread = tell_read(self.client, self._unread)

    def _sync_log(self, now: float) -> int:
        try:
            synced = writeback.sync_log(self.client)
        except Exception as error:  # noqa: BLE001 - not swallowed: the pages wait, and _tell keeps it
            self._log_fails = True
            self._tell(now, EventKind.FLUSH_FAILED, EventReason.LOG, error)
            return 0
        if self._log_fails:
            self._log_fails = False
            self.client.post(NewEvent(EventKind.FLUSH_RECOVERED, EventReason.LOG))
        return synced

    def _due_by_age(self, now: float, dirty: int) -> int:
        """How many pages this round should write, so that none stays dirty for ``flush_every`` seconds.

        Passes over all spaces, each spread over half of that time: what is dirtied right behind
        a pass is written by the end of the next.
        """
        half_s, since, self._flushed_at = self.settings.flush_every / 2, self._flushed_at, now
        if now >= self._pass_ends:
            self._pass_ends, self._pass_left, since = now + half_s, True, now
        if not self._pass_left or half_s == float("inf"):
            return 0
        steps = max(1.0, (self._pass_ends - now) / max(now - since, self.settings.interval))
        return min(dirty, max(LEAST_FLUSH_PAGES, math.ceil(dirty / steps)))

    def _flush_space(self, now: float, record: dict[str, Any], due: int) -> int:
        """Writes ``due`` dirty pages of a space, from where the last round ended; notes where the next one begins."""
        written = 0
        generation, first = self._cursors.get(record["index"], (record["generation"], 0))
        first = first if generation == record["generation"] else 0
        try:
            while due > 0 and not self._stopping.is_set():
                which = writeback.Selection(self.client.durable_lsn, first, min(due, FLUSH_PAGES))
                part = writeback.flush_part(self.client, record, which, wait=False)
                first, due = part.next_page, due - max(1, part.written)
                written += part.written
                if not first:
                    break
        except StoreError as error:  # counted; its pages stay dirty, and the next pass tries again
            first = 0
            self._tell(now, EventKind.FLUSH_FAILED, EventReason.STORE, error)
        self._cursors[record["index"]] = (record["generation"], first)
        return written

    def _shortage_of_clean(self, now: float, summary: stats.Summary) -> int:
        """How many pages should be clean that are not: for the demand of two seconds, within limits."""
        budget = self.client.budget_frames
        counters = stats.read_counters(self.client).plain
        taken = counters["loads"] + counters["publishes"]
        if self._seen is not None and now > self._seen[0]:
            rate = (taken - self._seen[1]) / (now - self._seen[0])
            self._demand_per_s += 0.3 * (rate - self._demand_per_s)
        self._seen = now, taken
        frames = summary.frames
        holes = max(0, budget - (frames.free + frames.busy + frames.live + frames.retired))
        ready = self._ready = frames.free + frames.clean + holes
        wanted = max(int(budget * self.settings.clean), min(int(2 * self._demand_per_s), budget // 2))
        return wanted - ready

    # ---- the budget ------------------------------------------------------------------

    def _govern(self, now: float) -> None:
        client, status = self.client, self.client.seg.status()
        figures = govern.Pool(
            status["budget_frames"],
            page_sizes.held_frames(client),
            status["min_frames"],
            client.max_frames,
            client.page_size,
        )
        decision = self._decide(now, figures, self._curve(read_advice(client)))
        if decision is not None:
            if not page_sizes.set_own_budget(client, decision.frames, self._patience_s):
                return  # another page size has just been made: the next round looks at both
            client.seg.fit_objects(None, reason_number("budget"), self._patience_s)
        over = page_sizes.held_frames(client) - client.budget_frames
        given = self._shrink(over) if over > 0 else 0
        if decision is not None:
            self._post_decision(decision, figures, given)
        elif given:  # a shrink of several rounds continues
            client.post(NewEvent(EventKind.TRIMMED, self._last.reason, bytes=given, value=self._last.value))
        self._tell_in_the_way(now, over, given)

    def _decide(self, now: float, figures: govern.Pool, curve: govern.Curve | None) -> govern.Decision | None:
        """Reads the memory pressure, and decides on a new budget by the rules; None for no change."""
        rules = self._governor.rules
        self._worth = govern.worth(curve, figures, rules)
        reading = self._source.read()
        rivals = list(peers(self.client.path)) if govern.shortage(reading, rules) else []
        return self._governor.decide(now, figures, reading, curve, rivals)

    def _post_decision(self, decision: govern.Decision, figures: govern.Pool, given: int) -> None:
        """Records a new budget as an event; ``given``: the bytes that were given back for it."""
        what = EventKind.GREW if decision.frames > figures.budget else EventKind.SHRANK
        before, after = figures.budget, decision.frames
        self.client.post(NewEvent(what, decision.reason, bytes=given, before=before, after=after, value=decision.value))
        self._last = decision

    def _tell_in_the_way(self, now: float, over: int, given: int) -> None:
        """Records what keeps the pool above its budget, if nothing of ``over`` frames was given back; not too often."""
        last = self._told_at.get(EventKind.CANNOT_SHRINK, float("-inf"))
        if over > 0 and not given and now - last >= AGAIN_S:
            self._told_at[EventKind.CANNOT_SHRINK] = now
            memory.post_in_the_way(self.client, over, self._in_the_way)

    _curve = staticmethod(govern.curve_of)  # an attribute, so that tests can give a steward another curve

    def _shrink(self, over: int) -> int:
        """Gives up to ``over`` frames back, a bounded step of them, dirty pages first written; returns the bytes."""
        client, size = self.client, self.client.page_size
        want = min(over, max(1, SHRINK_BYTES // size))
        done, _moved, pinned, dirty, busy, refused = client.seg.shrink(
            want, reason_number("pressure"), True, self._patience_s
        )
        if done < want and dirty:
            wrote, failed = memory.write_some(client, self._shrinking, self._patience_s, ask_log=False)
            if failed is not None:
                self._tell(time.monotonic(), EventKind.FLUSH_FAILED, EventReason.STORE, failed)
            if wrote:
                more, _moved, pinned, dirty, busy, refused = client.seg.shrink(
                    want - done, reason_number("pressure"), True, self._patience_s
                )
                done += more
        self._in_the_way = memory.InTheWay(pinned, dirty, busy)
        if refused:
            self._tell(
                time.monotonic(),
                EventKind.CANNOT_SHRINK,
                EventReason.KERNEL,
                memory.refusal(client, refused),
                value=refused,
            )
        return int(done) * size


def run(client: Client, settings: Settings) -> None:
    """A steward in the calling thread, until the process is asked to end (KeyboardInterrupt, SystemExit).

    Or until the pool has been removed and no other process is attached: then its memory has no use.
    """
    steward = Steward(client, settings)
    steward.begin()
    try:
        while not steward.wait(0.5):
            if client.seg.status()["links"] == 0 and client.seg.alone():
                break
    finally:
        steward.stop()
