"""Pages for asyncio: a hit costs no thread, and misses of one turn of the event loop are loaded together.

A coroutine that waits for a page awaits a future, and occupies no thread. The pages that coroutines ask for in one turn of the
event loop are collected, and a thread of the loop's default executor loads them as one batch. While all threads of a space are
busy, pages wait, and the next free thread takes all of them. So ten thousand waiting coroutines need a few threads, and a batch
gives the device as many requests at once as it can work on.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from bufferpool._locks import Lock

if TYPE_CHECKING:  # imported by the functions: it would double the time that a program without it takes to begin
    import asyncio

Array = npt.NDArray[Any]
_T = TypeVar("_T")
Answer = tuple[int, Array | BaseException]  # a page number, and the page or why there is none

NATIVE_THREADS, NATIVE_PAGES = 4, 256
"""For pages that the core reads from a file: the number of threads, and the most pages of one batch."""
PYTHON_THREADS = 16
"""The number of threads for pages of a Python loader or store. Each loads one page, so a page that hangs delays no other one."""


class Paged(Protocol):
    """The part of :class:`bufferpool.Space` that this module uses."""

    def get(self, page_no: int, /) -> Array: ...
    def prefetch(self, ids: Sequence[int]) -> int: ...


class Awaited:
    """The pages of one space that coroutines of one event loop wait for. Only the loop's thread uses it."""

    def __init__(self, space: Paged, loop: asyncio.AbstractEventLoop, *, native: bool) -> None:
        self._space = weakref.ref(space)
        self._loop = weakref.ref(loop)
        self._threads, self._pages = (NATIVE_THREADS, NATIVE_PAGES) if native else (PYTHON_THREADS, 1)
        self._waiting: dict[int, list[asyncio.Future[Array]]] = {}  # no thread has taken them yet
        self._loading: dict[int, list[asyncio.Future[Array]]] = {}
        self._busy = 0
        self._scheduled = False

    def page(self, page_no: int) -> asyncio.Future[Array]:
        """A future of the page, for a coroutine of the loop."""
        import asyncio

        loop = asyncio.get_running_loop()
        future: asyncio.Future[Array] = loop.create_future()
        group = self._loading.get(page_no)
        if group is None:
            group = self._waiting.setdefault(page_no, [])
        group.append(future)
        if not self._scheduled:
            self._scheduled = True
            loop.call_soon(self._start)
        return future

    def _start(self) -> None:
        """Gives waiting pages to threads, until no page waits or all threads are busy."""
        self._scheduled = False
        space, loop = self._space(), self._loop()
        if space is None or loop is None:
            return
        while self._waiting and self._busy < self._threads:
            numbers = [n for n in list(self._waiting)[: self._pages] if self._wanted(n)]
            if not numbers:
                continue
            for n in numbers:
                self._loading[n] = self._waiting.pop(n)
            self._busy += 1
            task = loop.run_in_executor(None, load, space, numbers)
            task.add_done_callback(lambda done, numbers=numbers: self._done(numbers, done))  # type: ignore[misc]

    def _wanted(self, page_no: int) -> bool:
        """True if a coroutine still waits for a page; otherwise the page is forgotten."""
        wanted = any(not future.done() for future in self._waiting[page_no])
        if not wanted:
            del self._waiting[page_no]
        return wanted

    def _done(self, numbers: list[int], done: asyncio.Future[list[Answer]]) -> None:
        import asyncio

        self._busy -= 1
        error = asyncio.CancelledError() if done.cancelled() else done.exception()
        answers = [(n, error) for n in numbers] if error is not None else done.result()
        for n, answer in answers:
            for future in self._loading.pop(n, []):
                if future.done():
                    continue  # its coroutine was cancelled
                if isinstance(answer, asyncio.CancelledError):
                    future.cancel()
                elif isinstance(answer, BaseException):
                    future.set_exception(answer)
                else:
                    future.set_result(answer)
        self._start()


def load(space: Paged, numbers: list[int]) -> list[Answer]:
    """Loads pages in a thread: first as one batch, then one by one, so that each page has its own error."""
    if len(numbers) > 1:
        with contextlib.suppress(Exception):  # get() raises for the pages that have failed, and loads the others
            space.prefetch(numbers)
    found: list[Answer] = []
    for n in numbers:
        try:
            found.append((n, space.get(n)))
        except Exception as error:  # noqa: BLE001  raised by the coroutine that waits for the page
            found.append((n, error))
    return found


class Loops(Generic[_T]):
    """What one space has for each event loop: an object for each thread that runs a loop."""

    _lock = Lock()  # one lock for all spaces: most spaces are never used in an event loop

    def __init__(self) -> None:
        self._by_loop: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _T] | None = None

    def of(self, make: Callable[[asyncio.AbstractEventLoop], _T]) -> _T:
        """Returns the object of the running event loop; the first call in a loop makes it."""
        import asyncio

        loop = asyncio.get_running_loop()
        with self._lock:
            if self._by_loop is None:
                self._by_loop = weakref.WeakKeyDictionary()
            found = self._by_loop.get(loop)
            if found is None:
                found = self._by_loop[loop] = make(loop)
            return found


async def read_many(read: Callable[[], Array], there: npt.NDArray[np.bool_]) -> Array:
    """Calls ``read`` at once if all of its pages are in the pool, else in a thread of the loop's default executor."""
    import asyncio

    if there.all():
        return read()
    return await asyncio.get_running_loop().run_in_executor(None, read)
