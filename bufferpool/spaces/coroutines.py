"""Loaders that are coroutine functions: ``async def load(page_no, out)``.

Such a loader runs in the event loop of the coroutine that asks for the page. So any number of loads can wait at the same time,
and they take no threads. A page is computed into private memory, and is then loaded into the pool from there.

In each event loop the loader of a handle runs once for a page, however many coroutines ask for it. No claim in the pool is held
while a loader awaits. So if two processes ask for the same absent page at the same time, both compute it, and the result of the
first one is kept.

A call that does not await (``space[n]``, ``read_many``, ``scan``) runs the loader in an event loop of its own, in its thread; for several
absent pages it runs them together. A thread that runs an event loop cannot wait for another one: it gets WouldDeadlock.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Coroutine, Iterator
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from bufferpool._locks import Lock
from bufferpool.errors import PoolExhausted, StoreError, WaitTimeout, WouldDeadlock
from bufferpool.spaces import awaiting
from bufferpool.stores.base import Buffer

if TYPE_CHECKING:  # imported by the functions: it would double the time that a program without it takes to begin
    import asyncio

Array = npt.NDArray[Any]
CoroutineLoader = Callable[[int, Array], Coroutine[Any, Any, None]]
PAGES_AT_ONCE = 64
"""The pages that one aread_many computes at the same time. With more, they would evict each other."""


class Computed(Protocol):
    """The part of :class:`bufferpool.Space` that this module uses."""

    @property
    def name(self) -> str: ...
    def get(self, page_no: int, /, *, timeout: float | None = None) -> Array: ...


def run(name: str, make: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    """Runs a coroutine to its end for a thread that does not await. Raises WouldDeadlock in a thread with an event loop."""
    import asyncio

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(make())
    raise WouldDeadlock(
        f"the loader of {name!r} is a coroutine function, and this thread runs an event loop: use "
        "`await space.aget(n)` or `await space.aread_many(ids)` here"
    )


class Ready:
    """Pages that have been computed and are not in the pool yet."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._pages: dict[int, list[Buffer]] = {}  # several event loops may have computed the same page

    @contextlib.contextmanager
    def holding(self, page_no: int, page: Buffer) -> Iterator[None]:
        with self._lock:
            self._pages.setdefault(page_no, []).append(page)
        try:
            yield
        finally:
            with self._lock:
                pages = self._pages[page_no]
                pages.pop()
                if not pages:
                    del self._pages[page_no]

    def get(self, page_no: int) -> Buffer | None:
        with self._lock:
            pages = self._pages.get(page_no)
            return pages[-1] if pages else None


Key = tuple["Computing", int]
_making: ContextVar[Key | None] = ContextVar("bufferpool_making", default=None)
"""The page that the current task computes."""


class Load:
    """A page that is being computed, or has been and is not in the pool yet."""

    def __init__(self, task: asyncio.Task[Buffer]) -> None:
        self.task = task
        self.waiters = 0


class Computing:
    """The pages of one space that coroutines of one event loop wait for. Only the loop's thread uses it."""

    def __init__(self, space: Computed, ready: Ready) -> None:
        self._space = weakref.ref(space)
        self._ready = ready
        self._loads: dict[int, Load] = {}
        self._needs: dict[int, set[Key]] = {}

    async def page(
        self,
        page_no: int,
        compute: Callable[[int], Coroutine[Any, Any, Buffer]],
        failed: Callable[[int, Exception], None],
    ) -> Array:
        """Returns the page, and computes it with ``compute`` first if it is absent. ``failed`` is called with an error. Raises
        WouldDeadlock.

        A coroutine that is cancelled does not end the load.
        """
        import asyncio

        space = self._space()
        assert space is not None  # its method awaits this
        load, maker = self._loads.get(page_no), _making.get()
        if load is None:
            load = self._loads[page_no] = Load(asyncio.ensure_future(self._make(page_no, compute, failed)))
            load.task.add_done_callback(lambda _: self._ended(page_no))
        if maker is not None and _leads_to((self, page_no), maker):
            raise WouldDeadlock(f"page {page_no} of {space.name!r} needs, by way of loaders, a page that needs it")
        needs = set[Key]() if maker is None else maker[0].needs_of(maker[1])
        needs.add((self, page_no))
        load.waiters += 1
        try:
            # Each waiter takes the page when the event loop resumes it, so a page has no frame before.
            return await self._take(space, page_no, await asyncio.shield(load.task))
        finally:
            needs.discard((self, page_no))
            load.waiters -= 1
            if load.task.done() and not load.waiters:
                self._loads.pop(page_no, None)

    def needs_of(self, page_no: int) -> set[Key]:
        """The pages that the loader of a page awaits."""
        return self._needs.get(page_no, set())

    async def _make(
        self,
        page_no: int,
        compute: Callable[[int], Coroutine[Any, Any, Buffer]],
        failed: Callable[[int, Exception], None],
    ) -> Buffer:
        _making.set((self, page_no))
        self._needs[page_no] = set()
        try:
            return await compute(page_no)
        except StoreError as error:
            failed(page_no, error)
            raise

    def _ended(self, page_no: int) -> None:
        load, space = self._loads[page_no], self._space()
        self._needs.pop(page_no, None)
        failed = load.task.cancelled() or load.task.exception() is not None
        if load.waiters:
            return
        del self._loads[page_no]
        if not failed and space is not None:  # no coroutine waits: load it for the next one
            with contextlib.suppress(Exception), self._ready.holding(page_no, load.task.result()):
                space.get(page_no, timeout=0)

    async def _take(self, space: Computed, page_no: int, page: Buffer) -> Array:
        import asyncio

        with self._ready.holding(page_no, page):
            with contextlib.suppress(WaitTimeout, PoolExhausted):
                return space.get(page_no, timeout=0)
            return await asyncio.get_running_loop().run_in_executor(None, space.get, page_no)  # a thread can wait


def _leads_to(key: Key, goal: Key) -> bool:
    """Whether the loader of a page waits, directly or by way of other pages, for another page."""
    seen, left = {key}, [key]
    while left:
        at = left.pop()
        if at == goal:
            return True
        new = at[0].needs_of(at[1]) - seen
        seen |= new
        left += new
    return False


class Loops:
    """The :class:`Computing` of one space in each event loop, and the pages that all of them have computed."""

    def __init__(self) -> None:
        self.ready = Ready()
        self._computing = awaiting.Loops[Computing]()

    def of(self, space: Computed) -> Computing:
        return self._computing.of(lambda _: Computing(space, self.ready))


async def read_many(space: Any, ids: Any, out: Array | None, timeout: float | None) -> Array:
    """As ``space.read_many``, with absent pages computed in this event loop, some at a time. Raises WaitTimeout."""
    import asyncio

    if space.resident(ids).all():
        return np.asarray(space.read_many(ids, out, timeout=timeout))
    numbers = np.array(ids)
    copies = np.empty((len(numbers), space.shape[1]), space.dtype) if out is None else out
    if copies.shape != (len(numbers), space.shape[1]):
        raise ValueError(f"out must be an array of shape {(len(numbers), space.shape[1])}, not {copies.shape}")

    async def copy(i: int) -> None:
        copies[i] = await space.aget(int(numbers[i]))

    try:
        async with asyncio.timeout(timeout):
            for at in range(0, len(numbers), PAGES_AT_ONCE):
                await asyncio.gather(*(copy(i) for i in range(at, min(len(numbers), at + PAGES_AT_ONCE))))
    except TimeoutError as error:
        raise WaitTimeout(f"not all pages of {space.name!r} were computed within {timeout} s; try again") from error
    return copies
