"""Read-ahead of a scan: threads read the next pages of a file while the caller works on earlier ones.

The threads belong to one scan and end with it, because each has an io_uring of its own. There are two of them: while one publishes
the pages that it has read, the device reads for the other.
"""

import weakref
from collections import deque
from collections.abc import Callable
from contextlib import suppress

from bufferpool._locks import Condition, Event
from bufferpool.client.threads import Worker
from bufferpool.errors import BufferPoolError, ThreadRefused

THREADS = 2
_open: "weakref.WeakSet[ReadAhead]" = weakref.WeakSet()
IDLE_S = 1.0  # seconds after which a thread without work ends, because the caller may never resume the scan


class ReadAhead:
    """The threads of one scan. When the block ends they have ended."""

    def __init__(self, load: Callable[[range], None]) -> None:
        self._load = load
        self._changed = Condition()
        self._asked: deque[tuple[range, Event]] = deque()
        self._threads: list[Worker] = []
        self._serving = self._idle = 0  # all threads, and those that wait for work
        self._closed = False
        _open.add(self)

    def __enter__(self) -> "ReadAhead":
        return self

    def __exit__(self, *exc: object) -> None:
        if not self._closed:
            self.close()

    def close(self, timeout: float | None = None) -> None:
        """Ends the threads, and waits for each of them, for ``timeout`` seconds at most."""
        with self._changed:
            self._closed = True
            self._asked.clear()
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(timeout)

    def begin(self, pages: range) -> Event | None:
        """Asks the threads to read these pages. The event is set when they have been read. None: no thread can be started."""
        read = Event()
        with self._changed:
            self._threads = [thread for thread in self._threads if not thread.ended]
            if not self._threads:
                self._serving = self._idle = 0  # in a forked child, too
            self._asked.append((pages, read))
            self._changed.notify_all()
            more = self._serving < THREADS and self._idle < len(self._asked)
            self._serving += more
        if more:
            try:
                self._threads.append(Worker(self._serve))
            except ThreadRefused:
                with self._changed:
                    self._serving -= 1
                    if not self._serving:
                        self._asked.clear()
                        return None
        return read

    def wait(self, read: Event) -> bool:
        """Waits until pages have been read. Returns whether it had to wait."""
        if read.is_set():
            return False
        while not read.wait(IDLE_S) and not all(thread.ended for thread in self._threads):
            pass
        return True

    def _next(self) -> tuple[range, Event] | None:
        with self._changed:
            self._idle += 1
            while not self._asked and not self._closed and self._changed.wait(IDLE_S):
                pass
            self._idle -= 1
            if self._asked:
                return self._asked.popleft()
            self._serving -= 1
            return None

    def _serve(self) -> None:
        while asked := self._next():
            pages, read = asked
            try:
                with suppress(BufferPoolError):  # the scan raises it when it comes to the page
                    self._load(pages)
            finally:
                read.set()


def close_all(timeout: float) -> None:
    """Ends the threads of all unfinished scans, before the interpreter ends.

    The interpreter ends the scans themselves later, when it may have removed the names of this module. By then there is nothing left
    for them to do.
    """
    for ahead in list(_open):
        ahead.close(timeout)
