"""Spaces: the handles through which pages are used."""

import inspect
import os
import pickle
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any, Literal, NamedTuple, Never, Protocol

import numpy as np
import numpy.typing as npt

from bufferpool import _core
from bufferpool._locks import Event
from bufferpool.client import trouble
from bufferpool.client.client import Client, Record
from bufferpool.client.jobs import underway
from bufferpool.client.threads import Worker
from bufferpool.errors import (
    BufferPoolError,
    LoaderFailed,
    LoaderReturned,
    PageOutOfRange,
    SpaceClosed,
    SpacePrivate,
    SpaceRemoved,
    StoreError,
    WouldDeadlock,
)
from bufferpool.figures.names import EventKind, Kind
from bufferpool.figures.stats import PoolStats, SpaceStats, read_frames, read_space
from bufferpool.printable import shown
from bufferpool.spaces import awaiting, coroutines, directory
from bufferpool.spaces.coroutines import CoroutineLoader
from bufferpool.spaces.directory import DISCARDABLE, Wanted, records_of, removed_message
from bufferpool.spaces.indexing import select
from bufferpool.spaces.read_ahead import ReadAhead
from bufferpool.spaces.share import Share
from bufferpool.stores.base import (
    Buffer,
    Caching,
    FileStore,
    GuardedBuffer,
    ManyStore,
    Store,
    read_page,
    read_pages,
    told,
)
from bufferpool.stores.checksum import CheckedFile
from bufferpool.units import counted, flag_of

Loader = Callable[[int, npt.NDArray[Any]], None]
ManyLoader = Callable[[list[int], list[npt.NDArray[Any]]], None]
SCAN_BYTES = 4 << 20  # read ahead by a scan at most, unless it says otherwise
SCAN_FIRST_PAGES = 16
APART_S = 0.001  # a load that waits so long is worth threads of its own
APART_THREADS = 32

Ids = Sequence[int] | npt.NDArray[np.integer[Any]] | range


class HomePool(Protocol):
    """The type of ``space.pool`` for a type checker: the calls of :class:`bufferpool.Pool` that are about the whole pool.

    (This room cannot import ``Pool``, which imports this room.)
    """

    @property
    def client(self) -> Client: ...
    @property
    def name(self) -> str: ...
    @property
    def path(self) -> str: ...
    @property
    def page_size(self) -> int: ...
    @property
    def capacity(self) -> int: ...
    def stats(self) -> PoolStats: ...
    def spaces(self) -> list[SpaceStats]: ...
    def space(self, name: str, mode: Literal["r", "r+"] = "r") -> "Space": ...
    def flush(self, space: "Space | None" = None, *, timeout: float | None = None) -> int: ...
    def check(self) -> list[str]: ...
    def reap(self) -> int: ...
    def resize(self, capacity: int | str, *, timeout: float | None = 5.0) -> int: ...
    def trim(self, size: int | str | None = None, *, timeout: float | None = 5.0) -> int: ...
    def trim_idle(self, seconds: float) -> int: ...
    def unlink(self, *, discard: bool = False) -> None: ...
    def close(self) -> None: ...


class Binding(NamedTuple):
    """What a handle in the core knows of its space."""

    slot: int
    generation: int
    first_entry: int
    max_pages: int
    kind: int
    fd: int
    """The descriptor that the core reads misses from; -1: Python serves them."""
    caching: int
    """How it reads from there: a :class:`bufferpool.stores.base.Caching`."""
    store: Store | None
    dtype: "np.dtype[Any]"
    writable: bool
    discardable: bool
    zero_fill: bool
    """Whether a page that is not in the pool is zeros."""
    private: bool


def _is_deadlock(error: BaseException | None) -> bool:
    """Whether a loader failed only because it and others waited for each other in a cycle."""
    while error is not None and not isinstance(error, WouldDeadlock):
        error = error.__cause__
    return error is not None


def is_coroutine_function(function: object) -> bool:
    """Whether a call of it must be awaited."""
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004


class Space(_core.Space):
    """Pages of one origin, shared by all processes of the pool.

    :meth:`Pool.open_file`, :meth:`Pool.open_derived`, :meth:`Pool.open_store`
    and :meth:`Pool.open_scratch` make spaces. ``space[n]`` is page ``n``: a read-only array of
    ``space.dtype`` and shape ``(page_size // itemsize,)`` that pins the page
    while it, or an array derived from it, exists; ``space[-1]`` is the last page (methods
    take page numbers from 0 only, so that a wrong -1 raises).
    ``space[a:b]`` is a read-only copy of several pages, of shape ``(b - a, page_size // itemsize)``
    (pages are not adjacent in the pool; ``pin_many(range(a, b))`` gives them without a copy). A space has the
    ``shape``, ``ndim``, ``dtype`` and indexing (``space[a:b, c:d]``, ``space[[5, 17]]``) of an array with one row for each page,
    so that libraries such as dask take it for one. A space can be pickled: in the other process it attaches when first used.

    ``append()`` allocates the next page number at once (``Write.page_no``); the
    page exists when its block has ended. A number that was allocated and never
    published reads as zeros once a later page exists. ``grow(n)`` makes the space n pages long at once.
    """

    def __init__(
        self, pool: HomePool, wanted: Wanted, dtype: npt.DTypeLike, loader: Loader | CoroutineLoader | None = None,
        load_many: ManyLoader | None = None,
    ) -> None:  # fmt: skip
        self.pool = pool
        """The pool of the space."""
        self.dtype = np.dtype(dtype)
        self.index = -1
        self._client = pool.client
        self._wanted = wanted
        self._loader, self._many_loader = loader, load_many
        # A test for None here would cost more than the rest of the function.
        is_coroutine = loader is not None and is_coroutine_function(loader)
        self._coroutines = coroutines.Loops() if is_coroutine else None
        self._native = False  # whether the core reads the pages from a file, without Python
        self._loops: awaiting.Loops[awaiting.Awaited] = awaiting.Loops()  # a parametrized class is slower to call
        self._pickle: tuple[int, int | None, Callable[..., Any], bytes] | None = None
        self._closed = False

    @property
    def name(self) -> str:
        """The name of the space in its pool."""
        return self._wanted.name

    @property
    def kind(self) -> Kind:
        """Where the pages come from: a file, a store, a loader, or nowhere (scratch)."""
        return self._wanted.kind

    @property
    def page_size(self) -> int:
        """The bytes of a page."""
        return self._client.page_size

    @property
    def shape(self) -> tuple[int, int]:
        """As an array a space has one row for each page: (pages, page_size // itemsize)."""
        return len(self), self._client.page_size // self.dtype.itemsize

    @property
    def ndim(self) -> int:
        """The dimensions that the space has as an array: page, and item of a page."""
        return 2

    @property
    def path(self) -> str | None:
        """The path of the space's file; None for a space that has no file."""
        path = self._wanted.options.get("path")
        return None if path is None else str(path)

    @property
    def generation(self) -> int | None:
        """The generation of the slot that this handle belongs to; None before the handle is attached."""
        return self._wanted.generation

    @property
    def _store(self) -> Store | None:
        return self._wanted.store

    def __repr__(self) -> str:
        return f"<Space {self.name!r} ({self.kind.name.lower()}) of pool {self._client.name!r}, {self._state()}>"

    def _state(self) -> str:
        """For the repr, which neither attaches nor raises: the number of pages, or why there is none to tell."""
        if self._closed or self._client.closed:
            return "closed"
        if self.index < 0:
            return "not attached yet"
        try:
            reading = self.kind is not Kind.DERIVED and not (self._wanted.writable and self._client.mode == "r+")
            return f"{counted(len(self), 'page')}{', for reading' if reading else ''}"
        except BufferPoolError as error:
            return f"unusable ({type(error).__name__})"

    def __reduce__(self) -> tuple[Any, ...]:
        if self._closed:
            self._raise_closed()
        known, wanted = self._pickle, self._wanted
        if known is not None and known[0] == wanted.slot and known[1] == wanted.generation:
            return known[2], (self.pool, known[3])
        if self.private:
            raise SpacePrivate(
                f'{self!r} is private to this process (lifetime="process") and cannot be pickled: '
                'make one in the other process, or share one (lifetime="pool")'
            )
        # Without a file's store: the copy opens the file for itself.
        wanted = replace(wanted, store=None) if isinstance(wanted.store, FileStore) else wanted
        if self._loader is not None or wanted.store is not None or wanted.options.get("repair") is not None:
            return Space, (self.pool, wanted, self.dtype, self._loader, self._many_loader)
        make: Any = self.pool.__reduce__()[0]
        make = copy_of if isinstance(make, type) else make
        packed = pickle.dumps((wanted, self.dtype), 5)
        self._pickle = wanted.slot, wanted.generation, make, packed  # of this state; it has no code of the user
        return make, (self.pool, packed)

    @property
    def private(self) -> bool:
        """Whether the space belongs to one process: scratch pages with lifetime "process"."""
        return self._wanted.private

    def __iter__(self) -> Iterator[np.ndarray]:
        return self.scan()

    def __reversed__(self) -> Iterator[np.ndarray]:
        return (self[page_no] for page_no in range(len(self) - 1, -1, -1))

    def __bool__(self) -> bool:
        """True, even for a space without pages: `if space:` tests whether there is a handle."""
        return True

    def __contains__(self, page_no: object) -> bool:
        """Whether the space has a page of this number."""
        if isinstance(page_no, (int, np.integer)) and not isinstance(page_no, bool):
            return 0 <= int(page_no) < len(self)
        raise TypeError(f"`in` asks for a page number, which is an integer, not {type(page_no).__name__}")

    def __setitem__(self, page_no: Never, value: Never) -> None:  # Never: a type checker finds every use
        raise TypeError(
            "pages are written in a block, which publishes the new version as a whole: "
            "`with space.write(n) as page: page[:] = ...`"
        )

    def _select(self, index: Any) -> Any:
        """Called by the core for all that is no single page: ``space[a:b]``, ``space[a:b, c:d]``, ``space[[5, 17]]``."""
        return select(self, index)

    def __dask_tokenize__(self) -> tuple[object, ...]:
        """What dask names results by: pages that never change have one token, and all others a new one each time."""
        never_change = self.kind is Kind.DERIVED and self.generation is not None
        state = (self._wanted.slot, self.generation) if never_change else os.urandom(16).hex()
        return "bufferpool.Space", self._client.known_uuid, self.name, self.dtype.str, state

    def _raise_closed(self) -> Never:
        """Called by the core when a closed handle is used."""
        raise SpaceClosed(f"this handle of space {self.name!r} was closed; open the space again")

    def _attach(self) -> None:
        """Called by the core when an unpickled space is first used: as the copies before it, or anew."""
        if self._closed:
            self._raise_closed()
        found = directory.bound_before(self._client, self._wanted, self.dtype)
        if found is None:
            self._bind()
        else:
            self._wanted.store = found.store or self._wanted.store
            if found.binding is None:
                found.binding = self._connect_to(found.record)
            else:
                self._bound_to(*found.slot)
                self._native = found.binding.fd >= 0
                self._bind_core(self._client.seg, found.binding)

    def _bound_to(self, slot: int, generation: int) -> None:
        self.index = self._wanted.slot = slot
        self._wanted.generation = generation

    def _bind(self, truncate: bool = False) -> None:
        """Finds the space in the directory, or adds it, and connects this handle to it."""
        self._connect_to(directory.bind(self._client, self._wanted, self.dtype, truncate))

    def _connect_to(self, record: Record) -> Binding:
        """Connects this handle to the slot of its space, with the store that the handle has."""
        store = self._store
        fd, caching = -1, Caching.KERNEL
        if isinstance(store, FileStore) and store.native:
            fd, caching = store.fd, store.caching
        return self._connect(record, fd, caching, writable=self._wanted.writable and self._client.mode == "r+")

    def _connect(self, record: Record, fd: int, caching: Caching, *, writable: bool) -> Binding:
        """Connects this handle to a slot. ``fd``: the descriptor from which the core reads misses; -1: Python loads them."""
        self._bound_to(record["index"], record["generation"])
        self._native = fd >= 0
        binding = Binding(
            slot=record["index"],
            generation=record["generation"],
            first_entry=record["first_entry"],
            max_pages=record["max_pages"],
            kind=record["kind"],
            fd=fd,
            caching=caching,
            store=self._store,
            dtype=self.dtype,
            writable=writable,
            discardable=bool(record["flags"] & DISCARDABLE),
            zero_fill=self.kind is Kind.SCRATCH,
            private=bool(record["owner"]),
        )
        self._bind_core(self._client.seg, binding)
        return binding

    def _fill(self, page_no: int) -> tuple[Buffer, bool]:
        """Called by the core on a miss that Python must load: (the page, whether it differs from the store)."""
        page_size = self._client.page_size
        if self._loader is None:
            if self._store is None:
                what, call = ("loader", "open_derived") if self.kind is Kind.DERIVED else ("store", "open_store")
                raise StoreError(
                    f"page {page_no} of {self.name!r} is not in the pool, and this process has no {what} for the space: "
                    f"open it with pool.{call}() here, too"
                )
            if isinstance(self._store, CheckedFile):
                page, repaired = self._store.load(page_no, self.name, self._client.seg.count)
                return page, repaired and self._store.writable and self._client.mode == "r+"
            return read_page(self._store, page_no, page_size), False
        if self._coroutines is not None:
            ready = self._coroutines.ready.get(page_no)
            return (ready if ready is not None else coroutines.run(self.name, partial(self._compute, page_no))), False
        buffer = GuardedBuffer(page_size)
        self._run_loader(partial(self._loader, page_no, buffer.page.view(self.dtype)), [buffer], f"page {page_no}")
        return buffer.page, False

    async def _compute(self, page_no: int) -> Buffer:
        """What a coroutine loader makes of a page. Raises LoaderFailed, LoaderOverrun, LoaderReturned."""
        buffer, what = GuardedBuffer(self._client.page_size), f"page {page_no}"
        assert self._loader is not None
        try:
            making: Any = self._loader(page_no, buffer.page.view(self.dtype))
            returned = await making
        except Exception as error:
            raise self._loader_failed(error, what) from error
        self._check_loaded(returned, [buffer], what)
        return buffer.page

    async def _compute_all(self, page_nos: list[int]) -> list[tuple[Buffer, bool] | Exception]:
        import asyncio

        pages = await asyncio.gather(*map(self._compute, page_nos), return_exceptions=True)
        for page in pages:
            if isinstance(page, BaseException) and not isinstance(page, Exception):
                raise page
        return [page if isinstance(page, Exception) else (page, False) for page in pages]  # type: ignore[misc]

    @property
    def _fills_many(self) -> bool:
        """Whether there is a method that loads several pages at once. Asked by the core."""
        if self._loader is not None:
            return self._many_loader is not None or self._coroutines is not None
        return isinstance(self._store, (CheckedFile, ManyStore))

    def _fill_many(self, page_nos: list[int]) -> list[tuple[Buffer, bool] | Exception]:
        """As :meth:`_fill`, of several pages: each, or what is wrong with it. Raises what is wrong with all of them."""
        page_size, store = self._client.page_size, self._store
        if isinstance(store, CheckedFile):
            loaded = store.load_many(page_nos, self.name, self._client.seg.count)
            mends = store.writable and self._client.mode == "r+"
            return [one if isinstance(one, Exception) else (one[0], one[1] and mends) for one in loaded]
        if self._coroutines is not None:
            pages: list[tuple[Buffer, bool] | Exception]
            pages = coroutines.run(self.name, partial(self._compute_all, list(page_nos)))
            return pages
        if self._many_loader is None:
            assert isinstance(store, ManyStore)
            return [
                one if isinstance(one, Exception) else (one, False) for one in read_pages(store, page_nos, page_size)
            ]
        buffers = [GuardedBuffer(page_size) for _ in page_nos]
        outs = [buffer.page.view(self.dtype) for buffer in buffers]
        what = f"pages {page_nos[0]} to {page_nos[-1]}"
        self._run_loader(partial(self._many_loader, list(page_nos), outs), buffers, what)
        return [(buffer.page, False) for buffer in buffers]

    def _load_apart(self, page_nos: list[int], once: bool, deadline_ns: int) -> int:
        """Called by the core where several pages are absent and no method loads many: each by itself, several at a time.

        Only if the first one shows that a load waits rather than works, and if this thread is in no load, flush or
        write: what waits for this thread would wait for those that help it. Returns how many were loaded here.
        Raises what the first page raises that cannot be loaded; then no further one is begun.
        """
        began, worked = time.monotonic(), time.thread_time()
        loaded = int(self._early(page_nos[0], once, deadline_ns))
        waited = (time.monotonic() - began) - (time.thread_time() - worked)
        if waited < APART_S or underway() or not self._unbound():
            return loaded
        left, failed = deque(page_nos[1:]), dict[int, BaseException]()
        done = [loaded]

        def help_out() -> None:
            while left and not failed:
                with suppress(IndexError):
                    page_no = left.popleft()
                    try:
                        done.append(int(self._early(page_no, once, deadline_ns)))
                    except BaseException as error:  # noqa: BLE001 - raised by the thread that asked
                        failed[page_no] = error

        most = min(APART_THREADS, len(page_nos) - 1)
        try:
            helpers = Worker.several(help_out, most)
            if len(helpers) < most:
                help_out()  # with those that there are
            for helper in helpers:
                helper.join()
        except BaseException:
            left.clear()
            raise
        if failed:
            raise failed[min(failed)]
        return sum(done)

    def _run_loader(self, call: Callable[[], Any], buffers: list[GuardedBuffer], what: str) -> None:
        """Calls a loader, which fills these buffers. Raises LoaderFailed, LoaderOverrun, LoaderReturned."""
        try:
            returned = call()
        except Exception as error:
            raise self._loader_failed(error, what) from error
        self._check_loaded(returned, buffers, what)

    def _loader_failed(self, error: Exception, what: str) -> LoaderFailed:
        # Of nested loaders only the innermost error is quoted: a repr of a repr would double its quotes.
        why = "it needs a page whose loader failed" if isinstance(error, LoaderFailed) else shown(error)
        failed = LoaderFailed(f"the loader of {self.name!r} raised for {what}: {why}; nothing was published")
        if not _is_deadlock(error):  # a deadlock has ended for the callers that waited
            failed.told = told(failed)
        return failed

    def _check_loaded(self, returned: Any, buffers: list[GuardedBuffer], what: str) -> None:
        for buffer in buffers:
            buffer.check(f"the loader of {self.name!r}")
        if returned is not None:
            raise LoaderReturned(
                f"the loader of {self.name!r} returned {type(returned).__name__} for {what}; nothing was published: "
                "write the page into the array out (out[:] = ...), and return None"
            )

    def _load_failed(self, page_no: int, error: BaseException, number: int = 0) -> None:
        """Called by the core when a load has failed; ``number`` is the errno of the core's own read."""
        if number:
            error.__cause__ = OSError(number, os.strerror(number))
        if not isinstance(error, StoreError) or (self._loader is None and self._store is None):
            return  # the latter: nothing has failed, this process has no store or loader to ask
        trouble.count(self._client, EventKind.LOAD_FAILED, error, self.index, self.generation or 0)
        if self._loader is None:
            trouble.tell(
                self._client,
                EventKind.LOAD_FAILED,
                error,
                trouble.Origin(self.index, self.generation or 0, self.name, page_no),
            )

    def _waited_too_long(self, page_no: int) -> None:
        """Called by the core when the timeout of a call is over that waits for another thread or process to load a page."""
        trouble.tell_late(
            self._client, lambda one: (one.kind, one.origin[0], one.page_no) == ("load", self.index, page_no)
        )

    def _range(self, first: int, count: int | None) -> tuple[int, int]:
        pages = len(self)
        if (
            isinstance(first, bool)
            or isinstance(count, bool)
            or not isinstance(first, (int, np.integer))
            or not isinstance(count, (int, np.integer, type(None)))
        ):
            raise TypeError("first and count must be integers")
        size = max(0, pages - int(first)) if count is None else int(count)
        if size < 0:
            raise PageOutOfRange(f"count must not be negative, not {count}")
        if first < 0 or first + size > pages:
            what = f"page {first}" if size < 2 else f"pages {first} to {first + size - 1}"
            raise PageOutOfRange(
                f"{what} {'does' if size < 2 else 'do'} not exist: {self.name!r} has {counted(pages, 'page')}, numbered from 0"
                + (" (space[-1] is the last one; methods take no negative numbers)" if first < 0 else "")
            )
        return int(first), size

    def stats(self) -> SpaceStats:
        """Reads the space's figures: pages, resident and dirty pages, hits, misses. Raises SpaceRemoved."""
        len(self)  # attaches an unpickled handle; raises SpaceRemoved
        found = read_space(self._client, self.index, self.generation)
        if found is None:
            raise SpaceRemoved(self._removed())
        return found

    @property
    def misses(self) -> int:
        """How many uses of pages by all processes were misses since the space was opened; cheaper than :meth:`stats`.

        Raises SpaceRemoved.
        """
        len(self)  # attaches an unpickled handle; raises SpaceRemoved
        return self._client.seg.misses(self.index)

    @property
    def own_uses(self) -> tuple[int, int]:
        """The hits and the misses of this process alone, by this handle of the pool: numbers that only grow, for differences.

        They cost no more than a hit, so they can be read around each operation. They begin anew in a forked child, and need
        not begin at 0 if another space had the slot before. Raises SpaceRemoved.
        """
        len(self)  # attaches an unpickled handle; raises SpaceRemoved
        return self._client.seg.own_uses(self.index)

    def prefetch(self, ids: Ids) -> int:
        """Reads pages ahead, without pinning them; returns the number of loaded pages.

        Pages of a file are read together, in whichever order ``ids`` has. The replacement policy does not count this
        as a use of the page. It stops if no frame is available. A page that ``ids`` has twice is loaded, and counted, twice if it was
        evicted in between. Raises what ``space[n]`` raises except PoolExhausted.
        """
        return self._load_many(ids)

    def load_together(self, ids: Ids) -> int:
        """Loads those pages that can be loaded together, for uses that follow; returns how many are absent still (internal).

        It waits neither for a frame nor for another client, and pins nothing. Raises what their loader raises.
        """
        return self._load_together(ids)

    def load_early(self, page_no: int) -> None:
        """Loads a page for a use that follows, or waits for the client that loads it, and does not pin it (internal).

        Raises what ``space[n]`` raises.
        """
        self._early(page_no, False, 0)

    def read(self, page_no: int, *, bypass: bool = False, timeout: float | None = None) -> npt.NDArray[Any]:
        """Returns a private copy of a page, of shape ``(page_size // itemsize,)``, which may be changed and kept.

        ``bypass``: if no frame is available, because all of them are pinned or dirty, the page is read from its store, or computed by
        its loader, past the pool, instead of raising PoolExhausted. ``timeout`` is in seconds. Raises what
        ``space.get(page_no)`` raises.
        """
        copy: npt.NDArray[Any]
        flag_of(bypass, "bypass")
        copy = self.read_many([page_no], timeout=timeout)[0] if bypass else self.get(page_no, timeout=timeout).copy()
        return copy

    async def aget(self, page_no: int, /) -> npt.NDArray[Any]:
        """Returns page ``page_no`` as ``space[page_no]`` does, without blocking the event loop.

        A page that is in the pool is returned at once. For others the coroutine awaits a load in the loop's
        default executor; pages that several coroutines ask for in one turn of the loop are loaded together. A coroutine may be
        cancelled, or awaited with ``asyncio.timeout``; the load continues. Raises what ``space.get(page_no)`` raises.
        """
        page = self.try_get(page_no)
        if page is not None:
            return page
        if self._coroutines is not None:
            return await self._coroutines.of(self).page(int(page_no), self._compute, self._load_failed)
        loops = self._loops.of(lambda loop: awaiting.Awaited(self, loop, native=self._native))
        return await loops.page(int(page_no))

    async def aread_many(
        self, ids: Ids, out: npt.NDArray[Any] | None = None, *, timeout: float | None = None
    ) -> npt.NDArray[Any]:
        """Copies many pages as ``read_many`` does, without blocking the event loop.

        If all of the pages are in the pool they are copied at once, otherwise in a thread of the loop's default executor. Returns
        an array of shape ``(len(ids), page_size // itemsize)``, or ``out``. ``timeout`` is in seconds. Raises what
        ``read_many`` raises.
        """
        if self._coroutines is not None:
            return await coroutines.read_many(self, ids, out, timeout)
        return await awaiting.read_many(lambda: self.read_many(ids, out, timeout=timeout), self.resident(ids))

    def scan(self, start: int = 0, stop: int | None = None, *, ahead: int | None = None) -> Iterator[np.ndarray]:
        """Yields the pages from ``start`` to before ``stop``, in order, each as ``space[n]``.

        As in a slice, bounds beyond the last page mean the end of the space; negative bounds raise ValueError.
        While the caller works on some pages of a file, a thread reads the next ones: more of them for as long as the
        caller has to wait, up to ``ahead`` pages (None: 4 MiB) and an eighth of the budget. A scan does not evict the
        pages that others use: the replacement policy does not count the scan's reads as uses. Raises TypeError
        and ValueError at once, and what ``space[n]`` raises when it reaches a page.
        """
        pages = len(self)
        most = max(1, SCAN_BYTES // self.page_size) if ahead is None else ahead
        bounds = {"start": start, "stop": pages if stop is None else stop, "ahead": most}
        for what, value in bounds.items():
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
                raise TypeError(f"{what} must be an integer, not {type(value).__name__}")
            if value < (what == "ahead"):
                raise ValueError(f"{what} must be at least {int(what == 'ahead')}, not {value}")
        return self._scan(int(start), min(int(bounds["stop"]), pages), int(most))

    def _scan(self, start: int, end: int, most: int) -> Iterator[np.ndarray]:
        most = max(1, min(most, self._client.budget_frames // 8))
        size, windows = min(most, SCAN_FIRST_PAGES), min(most, 2)  # of pages ahead, which are so many windows
        begun: deque[tuple[range, Event | None]] = deque([(range(start, min(start + size, end)), None)])
        with ReadAhead(self._load_ahead) as ahead:
            while begun:
                pages, read = begun.popleft()
                following = begun[-1][0].stop if begun else pages.stop
                while following < end and len(begun) < windows:
                    window = range(following, min(following + size // windows, end))
                    begun.append((window, ahead.begin(window) if self._absent(window) else None))
                    following = window.stop
                if read is None:
                    self.prefetch(pages)
                elif ahead.wait(read):
                    size = min(2 * size, most)
                for page_no in pages:
                    yield self._once(page_no)

    def _dirty_images(self) -> Iterator[tuple[int, Buffer]]:
        frames = read_frames(self._client)
        numbers = frames["page_no"][(frames["space"] == self.index) & frames["dirty"]]
        for page_no in np.sort(numbers).tolist():
            page = self._peek(page_no)
            if page is not None:  # else it was written and evicted meanwhile
                yield page_no, page.copy()

    def drop(self, first: int = 0, count: int | None = None) -> int:
        """Drops pages now, without write-back, and gives their memory back.

        Returns the number of bytes given back. Afterwards pages of a file are read from the
        file again, scratch pages are zeros, and derived pages are computed again.
        A page that a reader has pinned is kept for that reader,
        and its memory is given back when the reader releases it.

        Raises PageOutOfRange, WaitTimeout.
        """
        self._client.require_writable("drop pages")
        first, count = self._range(first, count)
        freed = self._drop_range(first, count) if count else 0
        return self._client.give_back(freed, "drop")

    def flush(self, *, timeout: float | None = None) -> int:
        """Writes the dirty pages of this space and syncs its store; returns their number.

        Raises StoreError, WaitTimeout."""
        return self.pool.flush(self, timeout=timeout)

    def _removed(self) -> str:
        """The message of SpaceRemoved, which the core raises too."""
        return removed_message(self.name)

    def set_share(self, limit: int | str | None = None, reserve: int | str | None = None) -> None:
        """Sets what the space may have of the pool, for all processes; what is None remains as it is.

        ``limit``: the most bytes of its pages that are in the pool, at least 8 pages. A page that would be one more takes the
        frame of another page of the space. Versions of written pages that readers still hold do not count. Where all
        pages within the limit are pinned or dirty, a load flushes and waits, and then raises PoolExhausted, as in a full pool.

        ``reserve``: bytes of its pages that pages of other spaces, and caches, cannot take; 0 ends it. All reserves together may
        be seven eighths of the pool; if the pool shrinks, each keeps its part of that. ``trim``, and a steward under
        pressure, evict pages within a reserve last; ``trim_idle`` evicts all that were not used.

        The share ends with the space. Raises ValueError, TypeError, TooManySpaces (64 spaces may have a share), SpaceRemoved, PoolReadOnly; and
        WaitTimeout, if another client that is stopped has a lock of the pool.
        """
        self.take_share(Share.of(limit, reserve, self._client.page_size))

    def take_share(self, share: Share) -> "Space":
        """Takes the share that a call gives, if it gives one (internal)."""
        if share.is_given:
            share.give(self._client, self._record(), self._wanted.patience)
        return self

    def _record(self) -> Record:
        """The record of the space. Raises SpaceRemoved, SpaceClosed."""
        len(self)  # attaches an unpickled handle
        records = records_of(self._client, self.index, self.generation)
        if not records:
            raise SpaceRemoved(removed_message(self.name))
        return records[0]

    def remove(self, *, discard: bool = False) -> None:
        """Removes the space from the pool, for every process.

        Dirty pages are flushed first, or lost with ``discard=True``. Other
        handles then raise SpaceRemoved; arrays over its pages
        remain valid. Raises SpaceBusy, StoreError.
        """
        self._client.require_writable("remove a space")
        flag_of(discard, "discard")
        self._record()
        if not discard:
            self.pool.flush(self)
        lose = discard or self.kind is Kind.SCRATCH
        directory.remove(self._client, self.name, self.index, self.generation, lose)

    def close(self) -> None:
        """Closes this handle: every later use of it raises SpaceClosed. Arrays over its pages, and blocks that write, remain valid.

        In the process that made it, this removes a scratch space with lifetime "process";
        all other spaces remain in the pool, with their pages. Closing a handle twice does nothing.
        """
        if self._client.closed or self._closed:
            return  # a private space has ended with the attachment
        record = self._client.seg.space(self.index) if self.private else None
        if record is not None and record["mine"] and record["generation"] == self.generation:
            self.remove(discard=True)
        self._closed = True
        self._close()

    def __enter__(self) -> "Space":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def open_space(
    pool: HomePool, wanted: Wanted, dtype: npt.DTypeLike, loader: Loader | CoroutineLoader | None = None,
    load_many: ManyLoader | None = None, *, truncate: bool = False,
) -> Space:  # fmt: skip
    """Opens a handle of a space, and adds the space to the pool if it does not exist."""
    space = Space(pool, wanted, dtype, loader, load_many)
    space._bind(truncate)
    return space


def dirty_images(pool: HomePool, record: Record) -> Iterator[tuple[int, Buffer]]:
    """Yields (page number, copy) of the dirty pages of a space. It does not read the space's file or store."""
    space = Space(pool, Wanted(record["name"], Kind(record["kind"]), {"found": True}), np.uint8)
    space._connect(record, -1, Caching.KERNEL, writable=False)
    return space._dirty_images()


_TEMPLATES_MOST = 256
_templates: dict[bytes, tuple[Wanted, Any]] = {}
"""What copies were made of, by their pickle: executors send the same one with each task."""


def copy_of(pool: HomePool, packed: bytes) -> Space:
    """The unpickled copy of a space."""
    found = _templates.get(packed)
    if found is None:
        found = pickle.loads(packed)
        if len(_templates) >= _TEMPLATES_MOST:
            _templates.clear()
        _templates[packed] = found
    wanted, dtype = found
    own = Wanted(wanted.name, wanted.kind, wanted.options, None, wanted.generation, wanted.slot)
    return Space(pool, own, dtype)
