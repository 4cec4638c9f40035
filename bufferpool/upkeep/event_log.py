"""The steward's log: each event of its pool, from any client, becomes a line of the logger "bufferpool".

So the log of one process shows the decisions about the pool's memory, the failures of its stores, and its dead
clients. The record has the fields of the event as ``fields``, for handlers that write JSON.
"""

import logging

from bufferpool.client.client import Client
from bufferpool.client.trouble import LOG
from bufferpool.figures.events import Event, fields_of, posted, read_events
from bufferpool.figures.names import EventKind, EventReason

_FAILURES = (
    EventKind.REAPED, EventKind.FLUSH_FAILED, EventKind.CANNOT_SHRINK, EventKind.SAVE_FAILED, EventKind.LOAD_FAILED,
    EventKind.ROUND_FAILED,
)  # fmt: skip


def _is_told(event: Event, me: int) -> bool:
    """Whether this process wrote a line with the error itself when it recorded the event (trouble.py, steward.py)."""
    with_error = event.reason in (EventReason.STORE, EventReason.LOG) or event.kind is EventKind.ROUND_FAILED
    return event.client == me and with_error and not event.is_recovery


class EventLog:
    """Writes the events since it was made to the log."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._posted = self._count()
        self._last = max((event.number for event in read_events(client)), default=0)

    def _count(self) -> int:
        return sum(posted(self._client).values())

    def write(self) -> None:
        """Writes a line for each event since the last call."""
        count = self._count()
        if count == self._posted:
            return
        self._posted, me = count, self._client.seg.status()["client"]
        for event in read_events(self._client):
            if event.number <= self._last:
                continue
            self._last = event.number
            if not _is_told(event, me):
                level = logging.WARNING if event.kind in _FAILURES else logging.INFO
                LOG.log(level, "pool %r, %s", self._client.name, event, extra={"fields": fields_of(event)})
