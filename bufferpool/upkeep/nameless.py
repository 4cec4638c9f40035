"""The end of a pool whose name was removed: its dirty pages would end with the last process that is attached.

So every process that leaves such a pool writes the pages of files and stores first. Not only the last one: two processes that
leave at the same moment would each take the other for the last. ``unlink(discard=True)`` says that nobody needs the pages.
"""

from math import inf

from bufferpool.client.client import Client
from bufferpool.errors import StoreError, UnsavedPages, WaitTimeout
from bufferpool.figures.stats import read_clients
from bufferpool.units import counted
from bufferpool.upkeep.flush_jobs import flush_all, start_log_sync
from bufferpool.upkeep.writeback import can_write

STILL_S = 10.0  # seconds without a page that gets clean until the process that closes its pool gives up


def save(client: Client) -> None:
    """Writes the dirty pages of a pool without a name before this process leaves it; nothing if the pool has a name.

    Raises StoreError and WaitTimeout, if a store fails or hangs, and UnsavedPages, if pages are left that no other
    process can write either. Then the pool is still open.
    """
    pages = client.unsaved()
    if not pages:
        return
    try:
        if client.mode != "r":
            _write(client)
            client.warn_if_nameless()
    except (StoreError, WaitTimeout) as error:
        error.add_note(
            f"Pool {client.name!r} has no name any more, so these pages end with the last process that has it open: "
            "mend the cause and close it again, or lose them (close(discard=True))"
        )
        raise
    pages = client.unsaved()
    if pages and not any(
        other.alive and other.client != client.seg.status()["client"] for other in read_clients(client)
    ):
        raise _lost(client, pages)


def _lost(client: Client, pages: dict[str, int]) -> UnsavedPages:
    which = ", ".join(f"{n} of {space!r}" for space, n in pages.items())
    why = (
        "it is attached for reading only"
        if client.mode == "r"
        else "their stores are not open in it, or their LSN is above durable_lsn"
    )
    return UnsavedPages(
        f"pool {client.name!r} has no name any more, this is the last process that has it open, and it cannot write "
        f"{counted(sum(pages.values()), 'dirty page')} ({which}): {why}. Open the stores here (open_store), or raise durable_lsn, and close "
        "the pool again; or lose the pages (close(discard=True))",
        pages,
    )


def _write(client: Client) -> None:
    """Syncs the log and flushes, for as long as that makes progress. Raises StoreError, WaitTimeout, and what the log's hook raises."""
    log = start_log_sync(client)
    if log is not None:
        if not client.jobs.wait(lambda: log.done, STILL_S):
            raise WaitTimeout(f"the log of pool {client.name!r} was not synced within {STILL_S:g} s")
        if log.error is not None:
            raise log.error
    left = inf
    while True:
        records = [record for record in client.seg.spaces() if can_write(client, record)]
        try:
            flush_all([(client, records, client.durable_lsn)], STILL_S)
            return
        except WaitTimeout:
            now = sum(client.dirty_pages(record) for record in records)
            if now >= left:
                raise
            left = now
