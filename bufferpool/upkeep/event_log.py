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
    """Writes the events since it was made to the log, but for those that another steward has written meanwhile."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._posted = self._count()
        self._last = self._newest()
        self._marks: list[tuple[int, int]] = []
        """For the last two rounds of another steward: when the round began, and the newest event soon afterwards."""

    def _count(self) -> int:
        return sum(posted(self._client).values())

    def _newest(self) -> int:
        return max((event.number for event in read_events(self._client)), default=0)

    def leave_to_steward(self, round_ns: int) -> None:
        """Leaves out the events that another steward has written by now. ``round_ns``: when its present round began.

        A steward writes the lines at the end of each round. So the events that were seen during a round are written when
        the next round has ended, which the beginning of the one after that shows. If that steward dies, the next one writes
        the events since then, a few of them perhaps for the second time: no event is left out.
        """
        if self._marks and self._marks[-1][0] == round_ns:
            return
        if len(self._marks) == 2:
            self._last = max(self._last, self._marks.pop(0)[1])
        count = self._count()
        self._marks.append((round_ns, self._marks[-1][1] if self._marks and count == self._posted else self._newest()))
        self._posted = count

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
