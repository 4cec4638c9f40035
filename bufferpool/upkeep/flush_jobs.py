"""Flushes in threads (jobs.py): a store that hangs does not delay writes to other stores.

The subject of a space's job is the number of its slot, so that there is one flush at a time of each space
in a process. If another client has a space's flush lock, callers that only need some clean frames skip the space.
"""

import time
from collections.abc import Container, Hashable, Iterable
from functools import partial
from math import inf

from bufferpool.client.client import Client, Record
from bufferpool.client.jobs import Job, underway
from bufferpool.client.trouble import tell_late
from bufferpool.errors import WaitTimeout, WouldDeadlock
from bufferpool.figures.operations import Operation, read_flushes
from bufferpool.upkeep.writeback import LOG_HOOK, NO_RULE, WRITTEN, can_write, flush_space, sync_log, wanted_of_log

RETRY_S = 0.001
LOG = "log"  # the subject of the job that syncs it


def refuse_nested(client: Client, record: Record, *, waits: bool = False) -> None:
    """Raises WouldDeadlock if this thread flushes the space already, or if such a flush waits for this thread.

    Where the caller ``waits`` until the space is flushed: also in a thread that flushes anything, while the space is
    flushed by another thread, which might wait for this one.
    """
    if record["index"] in underway() or (waits and underway() and client.jobs.running(record["index"])):
        raise WouldDeadlock(
            f"{record['name']!r} is being flushed already; a signal's handler, or a store, that is called meanwhile "
            "cannot do it again"
        )


def start_flushes(client: Client, *, foreground: bool = False, counted: Container[Hashable] = ()) -> list[Job]:
    """Starts a flush of every space whose store this process can use, each in a thread of its own.

    A failure of a space in ``counted`` is not counted: the caller has tried it before, for the same frame.
    It skips spaces that another client is flushing. Raises WouldDeadlock if the only ones are flushed by this thread.
    """
    jobs, refused = [], None
    me = client.seg.status()["client"]
    for record in client.seg.spaces():
        if not can_write(client, record) or record["flusher"] not in (0, me):
            continue
        try:
            refuse_nested(client, record)
        except WouldDeadlock as error:
            refused = error
            continue
        if client.jobs.running(record["index"]) is None and not client.dirty_pages(record):
            continue
        index = record["index"]
        flush = partial(flush_space, client, record, client.durable_lsn, wait=False)
        work = partial(flush, foreground=foreground, counts=index not in counted)
        jobs.append(client.jobs.start(index, work)[0])
    if refused is not None and not jobs:
        raise refused
    return jobs


def start_log_sync(client: Client) -> Job | None:
    """Starts a sync of the log, as far as dirty pages need it, in a thread; None if there is no log to sync.

    Neither is there one for the engine's hook, which is syncing it.
    """
    if wanted_of_log(client) is None or underway() & {LOG, LOG_HOOK}:
        return None
    return client.jobs.start(LOG, partial(sync_log, client))[0]


def flushes_text(flushes: Iterable[Operation]) -> str:
    """The part of a message that says who flushes, and since when; empty if nobody does."""
    return "".join(f"; {one} has been under way for {one.seconds:.1f} s" for one in flushes)


def _any_done(jobs: list[Job]) -> bool:
    return any(job.done for job in jobs)


def _too_late(spaces: list[tuple[Client, Record]], timeout: float) -> WaitTimeout:
    """The error of a caller that gives up waiting for flushes. Those that hang are recorded."""
    flushes: list[Operation] = []

    def is_late(client: Client, one: Operation) -> bool:
        return one.kind == "flush" and any(its is client and record["index"] == one.origin[0] for its, record in spaces)

    for client in dict.fromkeys(client for client, _ in spaces):
        tell_late(client, partial(is_late, client))
    for client, record in spaces:
        flushes += read_flushes(client, record["index"])
    names = ", ".join(repr(record["name"]) for _, record in spaces)
    return WaitTimeout(f"not flushed within {timeout:.3g} s: {names}. Their pages stay dirty{flushes_text(flushes)}")


def flush_all(parts: Iterable[tuple[Client, Iterable[Record], int]], timeout: float) -> int:
    """Writes the dirty pages of several spaces at once, so that none waits for another's store.

    ``parts``: for each page size its client, the spaces, and the LSN up to which their pages are written. Raises what the
    first one raised, after all have ended, and WaitTimeout.
    """
    end = time.monotonic() + timeout
    written = 0
    failed: BaseException | None = None
    waiting: list[tuple[Client, Record, int, Job | None]] = []
    spaces = [
        (client, record, lsn) for client, records, lsn in parts for record in records if record["kind"] in WRITTEN
    ]
    if timeout == inf and len(spaces) == 1 and not underway():
        return flush_space(*spaces[0])
    for client, record, lsn in spaces:
        if not client.dirty_pages(record):
            continue
        try:
            refuse_nested(client, record, waits=True)
            waiting.append((client, record, lsn, None))
        except WouldDeadlock as error:
            failed = failed or error
    if timeout == inf and len(waiting) == 1 and failed is None:
        return flush_space(*waiting[0][:3])
    while waiting:
        jobs = []
        for i, (client, record, lsn, job) in enumerate(waiting):
            if job is None:  # a flush that began earlier may have skipped pages that are dirty now
                job, new = client.jobs.start(record["index"], partial(flush_space, client, record, lsn))
                waiting[i] = client, record, lsn, job if new else None
            jobs.append(job)
        here = waiting[0][0].jobs
        # The end of a job of another size does not wake this thread.
        slice_s = 1.0 if all(one[0].jobs is here for one in waiting) else 0.02
        if not here.wait(partial(_any_done, jobs), end - time.monotonic(), slice_s):
            raise _too_late([(client, record) for client, record, _, _ in waiting], timeout)
        for *_, job in waiting:
            if job is not None and job.done:
                written += job.result
                failed = failed or job.error
        waiting = [one for one in waiting if one[3] is None or not one[3].done]
    if failed is not None:
        raise failed
    return written


def _sync_log_within(client: Client, timeout: float) -> None:
    """Syncs the log as :func:`sync_log` does. Raises WaitTimeout if the engine's hook takes longer."""
    if timeout == inf:
        sync_log(client)
        return
    job = start_log_sync(client)
    if job is None:
        return
    if not client.jobs.wait(lambda: job.done, timeout):
        tell_late(client, lambda one: one.kind == "log_sync")
        raise WaitTimeout(f"the log was not synced within {timeout:.3g} s: log_sync has not returned yet")
    if job.error is not None:
        raise job.error


def newest_lsn(client: Client) -> int:
    """The newest LSN of all dirty pages of files and stores; 0 if there are none."""
    spaces = [record for record in client.seg.spaces() if record["kind"] in WRITTEN]
    return max((client.seg.dirty_range(r["first_entry"], r["max_pages"])[1] for r in spaces), default=0)


def checkpoint(client: Client, up_to_lsn: int | None, timeout: float = inf) -> int:
    """See :meth:`Pool.checkpoint`. Raises WaitTimeout if the log or a store takes longer than ``timeout`` seconds."""
    if LOG_HOOK in underway():
        raise WouldDeadlock(
            "log_sync cannot make a checkpoint, which calls log_sync: let it sync the log and return the LSN; a thread "
            "that the hook does not wait for can make the checkpoint"
        )
    seg = client.seg
    end = time.monotonic() + timeout
    spaces = [record for record in seg.spaces() if record["kind"] in WRITTEN]

    def oldest() -> int:
        return min((seg.dirty_range(r["first_entry"], r["max_pages"])[2] for r in spaces), default=NO_RULE)

    # 1. Up to where everything has been published: the caller knows.
    if up_to_lsn is None and client.durable_lsn == NO_RULE:
        up_to_lsn = newest_lsn(client)
    limit = client.durable_lsn if up_to_lsn is None else up_to_lsn
    # 2. The log is synced first, then the pages are written.
    _sync_log_within(client, timeout)
    flush_all([(client, spaces, client.durable_lsn)], max(0.0, end - time.monotonic()))
    # 3. What is dirty still (above the durable LSN, or since) needs the log from its first change on.
    return seg.raise_checkpoint_lsn(min(limit + 1, oldest()))


def checkpoint_within(client: Client, up_to_lsn: int, timeout: float) -> int:
    """Repeats a checkpoint until every change up to ``up_to_lsn`` is in its store. Raises WaitTimeout."""
    end = time.monotonic() + timeout
    reached: int | None = None
    while True:
        try:
            reached = checkpoint(client, up_to_lsn, max(0.0, end - time.monotonic()))
        except WaitTimeout:
            if reached is None:
                raise
        if reached > up_to_lsn:
            return reached
        if time.monotonic() >= end:
            raise WaitTimeout(
                f"not every change up to LSN {up_to_lsn} could be written within {timeout} s: recovery must start at {reached}. "
                f"A page is being written by another process, or waits for the log{flushes_text(read_flushes(client))}"
            )
        time.sleep(RETRY_S)
