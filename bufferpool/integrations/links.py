"""What is known of the way to an origin: its latency and its rate, and whether what was fetched around a read was read later.

A request waits for its origin for one latency, and while it waits, a fast link could carry megabytes. So a read whose neighbourhood is
often read next fetches as much of it as arrives in half a latency. On a slow link that is less than what is read ahead anyway.

Each process keeps a link for each origin, over all file systems and files that are opened. A forked child keeps what its parent knew.
"""

from __future__ import annotations

from collections import deque
from statistics import median_low
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from bufferpool._locks import Lock

SMALL_BYTES = 128 << 10
"""Requests of at most so many bytes say what the latency is."""
LARGE_BYTES = 512 << 10
"""Requests of at least so many bytes say what the rate is."""
KEPT = 16
"""The requests of each of these two kinds that are remembered."""
LEAST = 2
"""The requests of each kind without which nothing is known."""
LINKS = 256
"""The most origins of which a process keeps a link."""
WINDOWS = 16
"""The neighbourhoods that are remembered."""
CREDIT_LEAST, CREDIT_FIRST, CREDIT_MOST, CREDIT_PAID = -4, 4, 8, 2
"""A neighbourhood costs a credit, and each read in one pays two: it would have waited for a latency, and the neighbourhood takes half
of one. So neighbourhoods are fetched where at least one of two reads is near another one."""


class Window(NamedTuple):
    """Blocks around a read that were fetched with it."""

    file: bytes
    first: int
    last: int
    """The blocks of the read are from ``first`` to ``last``."""
    around: range


class Link:
    """The latency and the rate of one origin, as its recent requests show them.

    The latency is the time of a quick small request: of the eighth part that was quickest, the slowest one. One answer that came at
    once, as from a nearer cache, is not the latency. The rate is the median of that of large requests, above the latency.
    """

    def __init__(self) -> None:
        self._small: deque[float] = deque(maxlen=KEPT)  # seconds
        self._large: deque[tuple[int, float]] = deque(maxlen=KEPT)  # bytes, seconds
        self._half_latency_bytes = 0
        self._credit = CREDIT_FIRST
        self._windows: deque[Window] = deque(maxlen=WINDOWS)
        self._using = Lock()

    def note(self, n_bytes: int, seconds: float) -> None:
        """A request of so many bytes took so many seconds. A clock that has stood still says nothing."""
        with self._using:
            if seconds <= 0:
                return
            if n_bytes <= SMALL_BYTES:
                self._small.append(seconds)
            elif n_bytes >= LARGE_BYTES:
                self._large.append((n_bytes, seconds))
            else:
                return
            self._half_latency_bytes = self._estimate()

    def _estimate(self) -> int:
        small, large = sorted(self._small), list(self._large)
        if min(len(small), len(large)) < LEAST:
            return 0
        latency_s = small[len(small) // 8]
        # A large request that is hardly slower than a small one says no more than that the rate is not lower than this.
        return int(median_low(n / max(seconds - latency_s, latency_s / 8) for n, seconds in large) * latency_s / 2)

    @property
    def window_bytes(self) -> int:
        """The bytes that arrive in half a latency; 0 while that is not known."""
        return self._half_latency_bytes

    def is_worth(self, window: Window) -> bool:
        """Whether to fetch the neighbourhood of a read, which is judged by earlier ones, also by those that were not fetched."""
        with self._using:
            worth = self._credit >= 1
            if not self._has(window.file, window.first):
                self._credit = max(CREDIT_LEAST, self._credit - 1)
                self._windows.append(window)
        return worth

    def read(self, file: bytes, number: int, beyond: int) -> None:
        """A large read begins in a block. If a neighbourhood has it, fetching that one saves a latency.

        ``beyond``: so many blocks behind the read of a neighbourhood do not count.
        """
        with self._using:
            if self._has(file, number, beyond):
                self._credit = min(CREDIT_MOST, self._credit + CREDIT_PAID)

    def _has(self, file: bytes, number: int, beyond: int = 0) -> bool:
        """Whether a block is in a neighbourhood of an earlier read, and not of that read itself."""
        return any(
            window.file == file and number in window.around and not window.first <= number <= window.last + beyond
            for window in self._windows
        )


_using = Lock()
_links: dict[Any, Link] = {}


def link_of(path: str, origin: bytes) -> Link:
    """The link to the server of a file: by host for a URL of one, else by what distinguishes the file system, and its bucket."""
    host = urlsplit(path).netloc if "://" in path else ""
    key = host or (origin, path.lstrip("/").partition("/")[0])
    with _using:
        link = _links.pop(key, None) or Link()
        _links[key] = link  # the latest last
        if len(_links) > LINKS:
            del _links[next(iter(_links))]
    return link
