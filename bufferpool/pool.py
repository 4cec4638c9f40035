"""The pool: the interface to a segment that this process is attached to."""

import atexit
import math
import os
import time
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Any, Literal, Self, cast

import numpy as np
import numpy.typing as npt

from bufferpool import _core
from bufferpool._locks import Lock
from bufferpool.client import segment_file
from bufferpool.client.client import Client, Mapped, Record, close_dropped, mark_ending, tell_unsaved
from bufferpool.client.process_end import AtEnd
from bufferpool.client.request import FIXED, Request
from bufferpool.errors import (
    BufferPoolError,
    PoolDiffers,
    PoolMismatch,
    PoolTooLarge,
    SegmentExists,
    SegmentNotFound,
    SegmentReplaced,
    SpaceRemoved,
    StoreError,
    UnsavedPages,
    WaitTimeout,
)
from bufferpool.figures.events import NewEvent
from bufferpool.figures.names import EventKind, EventReason, FrameState, Kind, cache_of
from bufferpool.figures.pool_figures import PoolFigures
from bufferpool.figures.stats import CacheStats, read_caches, read_summary
from bufferpool.machine.auto_size import LEAST_BYTES, auto, read_memory
from bufferpool.objects.cache import LOCKED_S as CACHE_LOCKED_S
from bufferpool.objects.cache import Cache as ObjectCache
from bufferpool.objects.cache import Settings as CacheSettings
from bufferpool.observer import refuse_loss
from bufferpool.spaces import directory, read_ahead
from bufferpool.spaces.claim import drop_unused
from bufferpool.spaces.coroutines import CoroutineLoader
from bufferpool.spaces.directory import (
    CHECKSUM,
    DISCARDABLE,
    Wanted,
    count_of,
    record_named,
    refuse_unfit,
    removed_message,
    version_of,
)
from bufferpool.spaces.share import Share
from bufferpool.spaces.space import (
    Loader,
    ManyLoader,
    Space,
    copy_of,
    dirty_images,
    is_coroutine_function,
    open_space,
)
from bufferpool.stores.base import Buffer, Cache, Store, name_of_file
from bufferpool.stores.checksum import Repair, file_store
from bufferpool.units import flag_of, format_size, is_utf8, lsn_of, parse_size, seconds_of
from bufferpool.upkeep import memory, nameless
from bufferpool.upkeep import page_sizes as sizes
from bufferpool.upkeep import working_set as warm
from bufferpool.upkeep.flush_jobs import checkpoint, checkpoint_within, flush_all, newest_lsn
from bufferpool.upkeep.overwrite import overwrite
from bufferpool.upkeep.steward import STOP_S, Settings, Steward
from bufferpool.upkeep.writeback import NO_RULE

_open_pools: "weakref.WeakSet[Pool]" = weakref.WeakSet()
_offering = Lock()  # held while a steward is started


@atexit.register
def _close_all() -> None:
    """Closes the pools of this process while all modules still have their names.

    Later CPython removes the names and ends the generators that are suspended in a block: their blocks must have nothing left to do.
    """
    mark_ending()
    read_ahead.close_all(STOP_S)
    failed: BaseException | None = None
    for pool in list(_open_pools):
        try:
            pool._close(late=True)
        except BufferError:
            continue  # a thread still uses the pool: the client ends with the process
        except (StoreError, WaitTimeout, UnsavedPages) as error:
            tell_unsaved(pool.client, error)
        except Exception as error:  # noqa: BLE001 - of a steward; raised when all are closed
            failed = failed or error
        finally:
            pool._ended = pool.client.closed = True
    close_dropped()
    if failed is not None:
        raise failed


_at_end = AtEnd(_close_all)


def _warn_if_too_large(path: str, capacity: int) -> None:
    """Gives PoolTooLarge if the tmpfs of a segment is smaller than the capacity."""
    directory = os.path.dirname(path)
    about = os.statvfs(directory)
    size = about.f_blocks * about.f_frsize  # 0: without a limit
    if 0 < size < capacity:
        text = (
            f"pool {os.path.basename(path)!r} has a capacity of {format_size(capacity)}, and {directory} holds {format_size(size)}: "
            "ask for less (capacity='auto'), or enlarge the tmpfs (mount -o remount,size=…; docker run --shm-size=…)"
        )
        warnings.warn(PoolTooLarge(text), stacklevel=3)


def _auto_sizes(path: str, page_size: int, extent: int | None, huge_pages: bool) -> tuple[int, int, int]:
    """The least, the first and the largest capacity of a pool with capacity="auto": no more than it can have frames for."""
    segment_file.check_page_size(page_size)
    extent_size = segment_file.extent_bytes(page_size, extent, huge_pages)
    found = auto(read_memory(os.path.dirname(path)), LEAST_BYTES, extent_size)
    bound = segment_file.most_bytes(page_size, extent_size)
    return min(found.min_capacity, bound), min(found.capacity, bound), min(found.max_capacity, bound)


class Pool(PoolFigures):
    """An attached buffer pool.

    :meth:`create`, :meth:`attach` and :meth:`open` make pools. A pool can be pickled: in the other
    process it attaches when first used. After a fork the child is a client of
    its own, which also pins the pages of the arrays that it inherited.
    """

    def __new__(cls, *attachment: Any, **_: Any) -> Self:
        if len(attachment) < 3:
            raise TypeError(
                f"{cls.__name__}.open(name, capacity=...) opens or makes a pool, {cls.__name__}.attach(name) opens one that "
                f"exists, {cls.__name__}.create(name, capacity) makes one: {cls.__name__}(...) itself is internal"
            )
        return super().__new__(cls)

    def __init__(self, path: str, trusted_uid: int | None, uuid: bytes | None, mode: Literal["r", "r+"] = "r+") -> None:
        self._begin(Client(path, trusted_uid, uuid, mode, make_room=memory.MakesRoom(), save=nameless.save))

    def _begin(self, client: Client) -> None:
        self.client = client
        self._sized: dict[int, Self] = {}  # its other page sizes
        self._steward: Steward | None = None
        self._warming: list[warm.WarmUp] = []
        self._ended = False  # with the interpreter
        _open_pools.add(self)
        _at_end.attached()

    # ---- making, attaching, leaving --------------------------------------------

    @classmethod
    def create(
        cls,
        name: str,
        capacity: int | str = "auto",
        *,
        page_size: int | str = 8192,
        min_capacity: int | str | None = None,
        max_capacity: int | str | None = None,
        extent_size: int | str | None = None,
        max_clients: int = 256,
        max_pages: int = 1 << 27,
        room: int | str | None = None,
        huge_pages: bool = False,
        permissions: int = 0o600,
        directory: str | os.PathLike[str] | None = None,
    ) -> Self:
        """Makes a new pool and attaches to it.

        Sizes are numbers of bytes, or strings such as "256MiB".

        - ``capacity``: bytes that its pages may take (the budget), or "auto": a quarter of the available memory, see
          ``bufferpool/machine/auto_size.py``.
        - ``page_size``: a power of two, at least 4096 bytes.
        - ``min_capacity``, ``max_capacity``: a steward moves the budget between them (default: an eighth of the capacity, and
          the capacity).
        - ``extent_size``: bytes given back to the kernel at a time (default: 256 KiB, or a huge page).
        - ``max_clients``: the most processes attached at once, up to 4095.
        - ``max_pages``: the most pages of all its spaces together.
        - ``room``: how far :meth:`resize` can raise the budget (default: the size of the tmpfs, or as much as the limits of
          this process allow). The room takes address space in every process that attaches, twice, and no memory.
        - ``huge_pages``: the pages lie in huge pages of 2 MiB, so that a random access finds its address sooner. The pool
          takes memory from the kernel, and gives it back, in whole huge pages: a pinned page keeps all of its huge page.
          Sizes should be multiples of 2 MiB; what is left over gets OS pages. See ``docs/decisions/0030-huge-pages-for-data.md``.
        - ``permissions``: the permissions of the segment's file, as ``os.chmod`` takes them; by default only its user may use it.
        - ``directory``: another tmpfs mount than /dev/shm.

        A capacity above the size of the tmpfs gives the warning PoolTooLarge.

        Raises SegmentExists, SharedMemoryFull, NotTmpfs, SegmentRefused, SegmentError (no huge pages here),
        ValueError, TypeError.
        """
        path = segment_file.path_of(name, directory)
        segment_file.check_permissions(permissions, "permissions")
        extent = None if extent_size is None else parse_size(extent_size, "extent_size")
        if capacity == "auto":
            least, start, most = _auto_sizes(path, parse_size(page_size, "page_size"), extent, huge_pages)
            least = least if min_capacity is None else parse_size(min_capacity, "min_capacity")
            most = most if max_capacity is None else parse_size(max_capacity, "max_capacity")
            least = min(least, most) if min_capacity is None else least
            most = max(least, most) if max_capacity is None else most
            capacity, min_capacity, max_capacity = min(max(start, least), most), least, most
        sizes = segment_file.Sizes(
            parse_size(capacity, "capacity"),
            page_size=parse_size(page_size, "page_size"),
            min_capacity=None if min_capacity is None else parse_size(min_capacity, "min_capacity"),
            max_capacity=None if max_capacity is None else parse_size(max_capacity, "max_capacity"),
            extent_size=extent,
            max_clients=max_clients,
            max_pages=max_pages,
            room=None if room is None else parse_size(room, "room"),
            huge_pages=huge_pages,
        )
        plan = segment_file.plan(sizes)
        if huge_pages and sizes.capacity < segment_file.HUGE_BYTES:
            raise ValueError(
                f"capacity must be at least {segment_file.HUGE_BYTES} bytes with huge_pages=True, not {sizes.capacity} bytes"
            )
        made = segment_file.create(path, plan, permissions)
        try:
            _warn_if_too_large(path, sizes.capacity)
            pool = cls.attach(name, directory=directory)
        except BaseException:
            segment_file.uncreate(path, made)
            raise
        pool.client.post(NewEvent(EventKind.CREATED, EventReason.ASKED))
        return pool

    @classmethod
    def attach(
        cls,
        name: str,
        *,
        mode: Literal["r", "r+"] = "r+",
        directory: str | os.PathLike[str] | None = None,
        trusted_uid: int | None = None,
    ) -> Self:
        """Attaches to an existing pool that belongs to the user ``trusted_uid`` (default: the effective user).

        With ``mode="r"`` this process reads spaces that have a file, a store or a
        loader, and all other pages that are in the pool; it changes no page and
        no setting (PoolReadOnly).

        Raises SegmentNotFound, SegmentRefused, SegmentCorrupt, LayoutMismatch,
        NotTmpfs, TooManyClients.
        """
        if mode not in ("r", "r+"):
            raise ValueError(f"mode must be 'r' or 'r+', not {mode!r}")
        segment_file.check_user(trusted_uid)
        pool = cls(segment_file.path_of(name, directory), trusted_uid, None, mode)
        _ = pool.client.seg
        return pool

    @classmethod
    def open(
        cls,
        name: str,
        capacity: int | str = "auto",
        *,
        mode: Literal["r", "r+"] = "r+",
        page_size: int | str | None = None,
        min_capacity: int | str | None = None,
        max_capacity: int | str | None = None,
        extent_size: int | str | None = None,
        max_clients: int | None = None,
        max_pages: int | None = None,
        room: int | str | None = None,
        huge_pages: bool | None = None,
        permissions: int | None = None,
        directory: str | os.PathLike[str] | None = None,
    ) -> Self:
        """Attaches to the pool, or creates it. Processes that start at the same time may all call it.

        It creates a pool for a mistyped name, too. Use :meth:`attach` where the pool must exist.

        It takes the arguments of :meth:`create`. An argument that is not given accepts what the pool has, or is the
        default for a new pool. Every argument is checked, whether or not the pool exists.
        Given arguments are compared with an existing pool: another ``page_size``, ``extent_size``,
        ``max_capacity``, ``max_clients``, ``max_pages``, ``room`` or ``huge_pages`` raises PoolMismatch, because these are fixed; another
        ``capacity`` (compared with the last one that was asked for, at creation or by ``resize``, not with a steward's),
        ``min_capacity`` or ``permissions`` gives the warning PoolDiffers, and the pool is not changed.

        ``mode="r"`` attaches for reading (see :meth:`attach`), and creates nothing: SegmentNotFound.

        Raises what :meth:`attach` and :meth:`create` raise, and PoolMismatch.
        """
        if mode not in ("r", "r+"):
            hint = "; permissions= gives the file's permissions" if isinstance(mode, int) else ""
            raise (ValueError if isinstance(mode, str) else TypeError)(f"mode must be 'r' or 'r+', not {mode!r}{hint}")
        request = Request(
            capacity,
            page_size,
            min_capacity,
            max_capacity,
            extent_size,
            max_clients,
            max_pages,
            room,
            huge_pages,
            permissions,
        )
        request.check()
        for _ in range(100):
            try:
                pool = cls.attach(name, mode=mode, directory=directory)
            except SegmentNotFound:
                if mode == "r":
                    raise
                try:
                    return cls.create(name, directory=directory, **request.for_creation())
                except SegmentExists:
                    continue
            try:
                pool._compare(request)
            except BaseException:
                pool.close()
                raise
            return pool
        raise SegmentReplaced(f"pool {name!r} was created and removed a hundred times meanwhile; use another name")

    def _compare(self, request: Request) -> None:
        """Raises PoolMismatch, or gives PoolDiffers, if this pool differs from the request."""
        found = request.differences(self.client)
        if any(not difference.remedy for difference in found):
            raise PoolMismatch(
                f"pool {self.name!r} exists, and {'; '.join(map(str, found))}: omit the arguments that may differ, "
                "use another name, or remove the pool and create a new one (bufferpool rm)",
                {difference.what: (difference.asked, difference.found) for difference in found},
            )
        if found:
            warnings.warn(PoolDiffers(f"pool {self.name!r} exists, and {'; '.join(map(str, found))}"), stacklevel=3)

    def close(self, *, discard: bool = False) -> None:
        """Detaches. It stops a steward of this process, and working sets that are being loaded.

        Copies of the pool that were unpickled in this process share one attachment, which the last one to be
        closed ends.

        A pool whose name was removed (:meth:`unlink`, RemoveIPC) ends with its last process. So each process that closes it
        writes its dirty pages of files and stores first, unless ``discard`` is true or :meth:`unlink` was called with it. Where pages cannot
        be written, it raises StoreError, WaitTimeout or UnsavedPages, and the pool is still open (its steward, too). At the end of the process, or where
        the pool was dropped without being closed, the warning PoolNameless takes the place of the error.

        Raises BufferError if arrays over pages of the pool exist. It also raises an error that has ended the
        steward (and closes the pool). The end of a ``with`` block does not raise BufferError: then the pool
        is closed, the arrays remain valid, and the process detaches when the last of them is deleted.
        """
        if not self._ended:  # else no module has its names any more
            self._close(late=False, discard=flag_of(discard, "discard"))

    def _close(self, late: bool, discard: bool = False) -> None:
        if self._ended:
            return
        steward = self._steward if self._steward is not None and self._steward.alive else None
        try:
            for pool in self._sized.values():
                pool._end_background()
            self._end_background()
        finally:
            try:
                self.client.close(late, discard)
            except BaseException:
                if steward is not None and not self.client.closed:  # refused: the pool is as it was
                    self.start_steward(steward.settings)
                raise

    def _end_background(self) -> None:
        """Ends the background work of this process, before it detaches."""
        for warming in self._warming:
            warming.cancel()
        try:
            self.stop_steward()
        finally:
            for warming in self._warming:
                warming.join(STOP_S)
            self._warming = []
            self.client.jobs.wait_until_idle(STOP_S)

    def unlink(self, *, discard: bool = False) -> None:
        """Removes the pool's name. Attached processes keep working; the memory is freed when the last one detaches.

        Raises UnsavedPages if the pool has dirty pages of files or stores, unless ``discard`` is true;
        SegmentNotFound; and SegmentReplaced if the name now belongs to another pool.
        """
        if not isinstance(self, Pool):
            raise TypeError("unlink() is a method of an open pool; Pool.remove(name) removes a pool by its name")
        client = self.client
        client.require_writable("remove it")
        flag_of(discard, "discard")
        if client.known_uuid is not None:
            segment_file.refuse_another(client.path, client.known_uuid, client.trusted_uid)
        if not discard:
            refuse_loss(client.name, os.path.dirname(client.path))
        if client.attached is not None:
            for other in client.others():
                other.seg.mark_unlinked(discard)
            client.attached.mark_unlinked(discard)
        segment_file.unlink_all(client.path)

    @staticmethod
    def remove(name: str, *, directory: str | os.PathLike[str] | None = None, discard: bool = False) -> None:
        """Removes the name of a pool, as :meth:`unlink` does, without attaching to it: one that is damaged, or was made by
        another version of the library, can be removed too, with ``discard``.

        Raises UnsavedPages if the pool has dirty pages of files or stores, unless ``discard`` is true; SegmentNotFound;
        SegmentRefused if the file is no pool or may not be removed; and what attaching to a damaged pool raises, unless
        ``discard`` is true.
        """
        path = segment_file.path_of(name, directory)
        flag_of(discard, "discard")
        segment_file.must_find(path)
        if discard:
            segment_file.mark_may_lose(path)
        else:
            refuse_loss(name, directory)
        segment_file.unlink_all(path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            self._close(late=True)
        except (BufferError, StoreError, WaitTimeout, UnsavedPages) as refused:
            # A write block, or another thread, uses the pool; or pages cannot be saved.
            if kind is None:
                raise
            if not isinstance(refused, BufferError):
                tell_unsaved(self.client, refused)

    def __reduce__(self) -> tuple[Any, ...]:
        client = self.client
        if client.closed or client.known_uuid is None:
            _ = client.seg  # raises PoolClosed; or learns which pool it is
        make = unpickled if type(self) is Pool else type(self)
        return make, (client.path, client.trusted_uid, client.known_uuid, client.mode)

    def __repr__(self) -> str:
        return f"<Pool {self.name!r}, {self._state()}>"

    def _state(self) -> str:
        """For the repr, which neither attaches nor raises: the budget, or why there is none to tell."""
        if self.client.closed:
            return "closed"
        if self.client.attached is None:
            return "not attached yet"
        try:
            return f"{format_size(self.capacity)}{', for reading' if self.mode == 'r' else ''}"
        except BufferPoolError as error:
            return f"unusable ({type(error).__name__})"

    @property
    def path(self) -> str:
        """The path of the pool's segment."""
        return self.client.path

    @property
    def seg(self) -> _core.Segment:
        """The segment in the core (internal)."""
        return self.client.seg

    @property
    def geometry(self) -> dict[str, Any]:
        """The sizes and limits that were fixed when the segment was created (internal)."""
        return self.client.geometry

    @property
    def mode(self) -> Literal["r", "r+"]:
        """The mode of the attachment: "r+", or "r" for reading only."""
        return self.client.mode

    @property
    def data(self) -> Mapped:
        """The mapping that all views come from: a read-only numpy.memmap, uint8, a row of page_size bytes for each frame.

        Row f is frame f, and there are ``max_frames`` rows, or more if the pool had more once; the base of a page's array
        leads to the memmap that this is the beginning of. A row is stable only while its page is pinned, and
        reading one that is a hole makes the kernel allocate it: so look at rows, and do not copy,
        pickle or sum up the whole.
        """
        status = self.client.seg.status()
        return cast(Mapped, self.client.data[: max(status["max_frames"], status["frames_ready"])])

    @property
    def room_frames(self) -> int:
        """Frames that the segment has room for: how far ``resize`` may go."""
        return self.client.room_frames

    @property
    def huge_pages(self) -> bool:
        """Whether the pages lie in huge pages of 2 MiB (``Pool.create(huge_pages=True)``)."""
        return bool(self.client.geometry["huge_pages"])

    @property
    def capacity(self) -> int:
        """The present budget, in bytes: how much memory the pages may take, of all page sizes. :meth:`resize` changes it."""
        return sizes.whole_bytes(self.client)

    @property
    def budget_frames(self) -> int:
        """The present budget, in frames."""
        return self.client.budget_frames

    # ---- spaces ---------------------------------------------------------------

    def open_file(
        self,
        path: str | os.PathLike[str],
        mode: Literal["r", "r+", "w+"] = "r",
        *,
        name: str | None = None,
        dtype: npt.DTypeLike = np.uint8,
        max_pages: int | None = None,
        checksum: bool = False,
        repair: Repair | None = None,
        cache: Cache = "pool",
        limit: int | str | None = None,
        reserve: int | str | None = None,
        page_size: int | str | None = None,
        timeout: float | None = 30.0,
    ) -> Space:
        """Opens the pages of a file: 'r', 'r+', or 'w+' (created or emptied, after all checks have passed).

        Its size must be a whole number of pages. It grows by ``append``, up to
        ``max_pages``. If another program has changed the file since the pool last
        saw it, this call drops the clean pages that the pool has of it. Only opening and flushing notice such a change; reads do not.

        ``checksum``: the last eight bytes of every page belong to the pool, which stores
        a checksum there and checks it when it loads the page (PageCorrupt); see
        ``bufferpool/stores/checksum.py``. For a damaged page ``repair(page_no, image)`` is called, and returns the
        right bytes or None; the page is dirty until a flush has repaired the file. ``repair`` is pickled with
        the space. Checksums need the library xxhash.

        ``cache``: with "pool" the kernel's page cache keeps no copy of the pages, so that each page takes memory once and
        memory that the pool gives back is free: O_DIRECT, or where the file system has none, the copy is
        dropped after use. With "kernel" a miss may be served by the page cache: for files that other programs read
        anyway, or that the pool has room for a small part of. On tmpfs it is always "kernel".

        ``limit``, ``reserve``: the share of the space in the pool, see :meth:`Space.set_share`.

        ``page_size``: bytes of a page of this space (default: the pool's), see :meth:`page_sizes`.

        ``timeout``: how many seconds to wait for another process that flushes the file, or opens a space at this moment, and
        is stopped or has a disk that hangs.

        Raises FileNotFoundError, PermissionError, NotRegularFile, FileSizeMismatch, FileChanged,
        SpaceMismatch, SpaceFull, TooManySpaces, WaitTimeout, ValueError, TypeError.
        """
        if mode not in ("r", "r+", "w+"):
            raise ValueError(f"mode must be 'r', 'r+' or 'w+', not {mode!r}")
        if mode != "r":
            self.client.require_writable("open a file for writing")
        if repair is not None and not callable(repair):
            raise TypeError(f"repair must be a function of (page_no, image), not {type(repair).__name__}")
        flag_of(checksum, "checksum")
        if repair is not None and not checksum:
            raise ValueError("repair= needs checksum=True: without checksums damage is not detected")
        pool, share = self._place_for(page_size, limit, reserve, seconds_of(timeout))
        if cache not in ("pool", "kernel"):
            raise ValueError(f"cache must be 'pool' or 'kernel', not {cache!r}")
        where = name_of_file(path)
        name = (os.path.basename(where) or where) if name is None else name  # "/" is refused below, as all folders are
        options: dict[str, Any] = {"path": where, "mode": "r" if mode == "r" else "r+", "max_pages": max_pages}
        options |= {"checksum": bool(checksum), "repair": repair, "cache": cache}
        wanted = Wanted(name, Kind.FILE, options, patience=seconds_of(timeout))
        refuse_unfit(pool.client, wanted, np.dtype(dtype))  # before a file is created
        wanted.store = store = file_store(where, mode, pool.page_size, checksum, repair, cache)
        try:
            return pool._open_space(wanted, dtype, share, truncate=mode == "w+")
        except BaseException:
            store.uncreate()
            raise

    def open_derived(
        self,
        name: str,
        n_pages: int,
        loader: Loader | CoroutineLoader,
        *,
        dtype: npt.DTypeLike = np.uint8,
        version: int | str | None = None,
        load_many: ManyLoader | None = None,
        limit: int | str | None = None,
        reserve: int | str | None = None,
        page_size: int | str | None = None,
    ) -> Space:
        """Opens pages that ``loader(page_no, out)`` computes, and that the pool may drop at any time.

        ``out`` is a private array of one page, of the space's dtype and shape, zeroed. The loader fills
        it and returns None; any other result raises LoaderReturned. It runs once for a
        missing page, however many callers want it. Every process that uses the space must give the loader.

        ``load_many(page_nos, outs)`` is called instead where one call (``read_many``, ``pin_many``, ``prefetch``, ``scan``) needs
        several missing pages, in the thread of that call. Without it the loader runs in several threads at once
        then, if it takes more than a millisecond of waiting.

        ``loader`` may be a coroutine function. It runs in the event loop of the coroutine that awaits ``space.aget(n)``, so that any number of
        pages are loaded at the same time without a thread each; in one event loop it runs once for a missing page, but two
        processes that want the page at the same time may both run it. Calls that do not await run it in an event loop of
        their own; in a thread with a running event loop they raise WouldDeadlock.

        ``version`` identifies the code that computes the pages. If the space exists with another version (or
        without one), an empty space replaces it, which may have another number of pages: handles
        of the old space then raise SpaceRemoved, and arrays over its pages remain valid. Versions that
        are in use at the same time need spaces with different names.

        ``limit``, ``reserve``: the share of the space in the pool, see :meth:`Space.set_share`.

        ``page_size``: bytes of a page of this space (default: the pool's), see :meth:`page_sizes`.

        Raises SpaceMismatch, and PoolReadOnly if a space of another version is in a pool that is
        attached for reading only.
        """
        if not callable(loader):
            raise TypeError(f"loader must be a function of (page_no, out), not {type(loader).__name__}")
        if load_many is not None and not callable(load_many):
            raise TypeError(f"load_many must be a function of (page_nos, outs), not {type(load_many).__name__}")
        if load_many is not None and (is_coroutine_function(loader) or is_coroutine_function(load_many)):
            raise TypeError("a coroutine function can be the loader, without load_many: many of its loads run together")
        options = {"n_pages": count_of(n_pages, "n_pages"), "version": version_of(version)}
        pool, share = self._place_for(page_size, limit, reserve)
        return pool._open_space(Wanted(name, Kind.DERIVED, options), dtype, share, loader, load_many)

    def open_store(
        self,
        name: str,
        store: Store,
        mode: Literal["r", "r+"] = "r",
        *,
        dtype: npt.DTypeLike = np.uint8,
        max_pages: int | None = None,
        limit: int | str | None = None,
        reserve: int | str | None = None,
        page_size: int | str | None = None,
    ) -> Space:
        """Opens the pages of an object with the methods of :class:`bufferpool.Store`: 'r' reads them, 'r+' writes them too.

        Every process that uses the space must give the store.

        ``limit``, ``reserve``: the share of the space in the pool, see :meth:`Space.set_share`.

        ``page_size``: bytes of a page of this space (default: the pool's), see :meth:`page_sizes`.

        Raises SpaceMismatch, FileSizeMismatch, TypeError.
        """
        if not isinstance(store, Store):
            raise TypeError("a store has the methods read_into, write_from, sync and size (see bufferpool.Store)")
        if mode not in ("r", "r+"):
            raise ValueError(f"mode must be 'r' or 'r+', not {mode!r}")
        if mode != "r":
            self.client.require_writable("open a store for writing")
        options = {"mode": mode, "max_pages": max_pages}
        pool, share = self._place_for(page_size, limit, reserve)
        return pool._open_space(Wanted(name, Kind.STORE, options, store), dtype, share)

    def open_scratch(
        self,
        name: str,
        n_pages: int,
        *,
        lifetime: Literal["process", "pool"] = "pool",
        discardable: bool = False,
        dtype: npt.DTypeLike = np.uint8,
        limit: int | str | None = None,
        reserve: int | str | None = None,
        page_size: int | str | None = None,
    ) -> Space:
        """Opens pages without a store: zeros until they are written.

        A space that exists may have more than ``n_pages`` pages, by ``append`` or ``grow``, and not fewer (SpaceMismatch).

        ``lifetime``: "pool" (all processes share the space, until it is removed) or "process" (the space is
        private to this process, and is removed when the process ends in any way). Each process that opens a private
        space of a name has its own: other processes do not find it, it cannot be
        pickled, and in a forked child the parent's handle raises SpacePrivate.
        ``discardable``: the pool may drop written pages when it needs their frames; they then raise
        PageDiscarded. Otherwise they are kept, up to seven eighths of the budget for all scratch pages, and seven eighths of that for
        the private pages of one process; a write beyond that raises PoolExhausted.

        ``limit``, ``reserve``: the share of the space in the pool, see :meth:`Space.set_share`.

        ``page_size``: bytes of a page of this space (default: the pool's), see :meth:`page_sizes`.

        Raises SpaceMismatch, TooManySpaces, PoolReadOnly, ValueError.
        """
        self.client.require_writable("make scratch pages")
        if lifetime not in ("pool", "process"):
            raise ValueError(f"lifetime must be 'pool' or 'process', not {lifetime!r}")
        options = {"n_pages": count_of(n_pages, "n_pages"), "lifetime": lifetime}
        options |= {"discardable": flag_of(discardable, "discardable")}
        pool, share = self._place_for(page_size, limit, reserve)
        return pool._open_space(Wanted(name, Kind.SCRATCH, options), dtype, share)

    def space(self, name: str, mode: Literal["r", "r+"] = "r") -> Space:
        """Opens a space that is in the pool already, by name: 'r' reads its pages, 'r+' writes them too.

        Private scratch spaces of other processes are not found; one of this process comes before
        a shared space of the same name.
        A derived space, or one on a store object, reads only pages that are in the pool, because it has no
        loader or store here; :meth:`open_derived` and :meth:`open_store` give them.

        Raises SpaceNotFound, what :meth:`open_file` raises, and ValueError.
        """
        if mode not in ("r", "r+"):
            raise ValueError(f"mode must be 'r' or 'r+', not {mode!r}")
        pool = self._with_space(name)
        return pool._found(record_named(pool.client, name), mode)

    def _found(self, record: Record, mode: Literal["r", "r+"] = "r") -> Space:
        """Makes a handle of the existing space of ``record``."""
        name, kind, flags = record["name"], Kind(record["kind"]), record["flags"]
        if kind is Kind.FILE:
            checksum = bool(flags & CHECKSUM)
            return self.open_file(record["path"], mode, name=name, checksum=checksum, cache=cache_of(record["flags"]))
        if mode == "r+":
            self.client.require_writable("open a space for writing")
        options = {"n_pages": record["pages"], "found": True}
        if kind is Kind.SCRATCH:
            options |= {"lifetime": "process" if record["owner"] else "pool", "discardable": bool(flags & DISCARDABLE)}
            options |= {"read_only": mode == "r"}
        else:
            options |= {"mode": mode}
        return open_space(self, Wanted(name, kind, options), np.uint8)

    # ---- other page sizes ---------------------------------------------------------

    def page_sizes(self) -> dict[int, Self]:
        """The page sizes of the pool, its own first, each as a pool of its own that has the spaces with such pages.

        ``page_size=`` of the calls that open a space gives the space pages of another size than the pool's: a power of two,
        of which 32 pages fit the budget. The first space of a size makes a segment for it, a file beside the
        pool's (``NAME@64KiB``), which is removed with the pool. All sizes have one budget in bytes: ``capacity``. Memory moves to
        the size where it saves most misses for each byte. A steward moves it; without one, the processes that miss pages do.

        Calls on the pool are about all sizes: ``spaces``, ``space``, ``flush``, ``stats``, ``resize``, ``trim``, ``check`` and so on. ``frames``,
        ``extents``, ``clients``, ``advise``, ``data``, ``publish_many`` and working sets are about its own size; the pools that this
        returns have those of the others: ``pool.page_sizes()[65536].advise()``.
        """
        return {pool.page_size: pool for pool in (self, *self._other_sizes())}

    def remove_page_size(self, page_size: int | str) -> int:
        """Removes a page size that has no space left, with its segment; returns the bytes of memory that it had.

        The pool's own size cannot be removed. Raises SpaceBusy while the size has spaces, or pages that are pinned; SpaceNotFound, ValueError,
        PoolReadOnly, WaitTimeout.
        """
        self.client.require_writable("remove a page size")
        size = parse_size(page_size, "page_size")
        if size == self.page_size:
            raise ValueError(
                f"{page_size!r} is the page size of the pool itself, which is removed with the pool (unlink)"
            )
        given = sizes.remove(self.client.home(), size)
        self._sized.pop(size, None)
        return given

    def balance(self) -> int:
        """Moves a step of memory to the page size where it saves most misses, as a steward does each second; returns the bytes.

        It returns 0 for a pool with one page size, if no move pays, and while another process moves memory. Raises PoolReadOnly.
        """
        self.client.require_writable("move memory")
        return sizes.balance(self.client.home(), timeout=5.0)

    def _pool_of(self, client: Client) -> Self:
        """The pool of another page size."""
        found = self._sized.get(client.page_size)
        if found is None or found.client is not client:
            found = self._sized[client.page_size] = type(self).__new__(
                type(self), client.path, client.trusted_uid, client.known_uuid
            )
            found._begin(client)
        return found

    def _other_sizes(self) -> list[Self]:
        return [self._pool_of(client) for client in self.client.others()]

    def _of_size(self, page_size: int | str | None, timeout: float = sizes.LOCKED_S) -> Self:
        """The pool whose pages have this size; makes it if there is none."""
        size = self.page_size if page_size is None else parse_size(page_size, "page_size")
        if size == self.page_size:
            return self
        home = self.client.home()
        if self.client.is_part:
            raise ValueError(
                f"{self.name!r} has pages of {self.page_size} bytes; open spaces of other sizes in the pool {home.name!r}"
            )
        return self._pool_of(sizes.add(home, size, timeout))

    def _place_for(
        self,
        page_size: int | str | None,
        limit: int | str | None,
        reserve: int | str | None,
        timeout: float = sizes.LOCKED_S,
    ) -> tuple[Self, Share]:
        """For the arguments of a call that opens a space: the pool of its page size, and its share there."""
        pool = self._of_size(page_size, timeout)
        return pool, Share.of(limit, reserve, pool.page_size)

    def _with_space(self, name: str) -> Self:
        """The pool of the page size that has a space of this name; this one if none has."""
        others = self._other_sizes()
        if others and directory.visible(self.client, name, private=True) is None:
            return next((p for p in others if directory.visible(p.client, name, private=True) is not None), self)
        return self

    def _open_space(
        self, wanted: Wanted, dtype: npt.DTypeLike, share: Share, loader: Loader | CoroutineLoader | None = None,
        load_many: ManyLoader | None = None, *, truncate: bool = False,
    ) -> Space:  # fmt: skip
        """Opens a space, with the share that a call gives."""
        space = open_space(self, wanted, dtype, loader, load_many, truncate=truncate)
        if share.reserve:
            sizes.ensure_reserve(self.client, share.reserve)
        return space.take_share(share)

    def cache(
        self,
        name: str,
        *,
        ttl: float | None = None,
        jitter: float | None = None,
        limit: int | str | None = None,
        reserve: int | str | None = None,
    ) -> ObjectCache:
        """Opens a cache of values by key, which all processes of the pool share; makes it if there is none of this name.

        Its memory is a part of the pool's budget, which pages have given up: at most ``limit`` bytes (default: half
        of the budget, for all caches without a limit together). ``reserve``: bytes that other caches cannot take
        from it. ``ttl``: seconds until a value expires; ``jitter``: a value expires up to such a part of
        its ttl earlier, so that what was put together does not expire together. What is given here replaces what the cache had,
        for all handles of all processes. A pool has at most 64 caches: :meth:`remove_cache`. Raises ValueError, TypeError,
        TooManySpaces, SharedMemoryFull, PoolReadOnly, and WaitTimeout if a client that has a lock of the pool is stopped for
        more than 30 seconds.
        """
        self.client.require_writable("use a cache")
        if self.client.is_part:
            raise ValueError(
                f"{self.name!r} is a page size of the pool {self.client.home().name!r}: open the cache there"
            )
        return ObjectCache(self, name, CacheSettings.of(ttl, jitter, limit, reserve))

    def remove_cache(self, name: str) -> bool:
        """Removes a cache, with all its values and settings, for all processes; returns whether there was one.

        Its handles raise CacheRemoved from then on; values that are held stay as they were. Raises TypeError, PoolReadOnly,
        and WaitTimeout if a client that has a lock of the pool is stopped for more than 30 seconds.
        """
        self.client.require_writable("remove a cache")
        if not isinstance(name, str):
            raise TypeError(f"the name of a cache must be a string, not {type(name).__name__}")
        return is_utf8(name) and "\0" not in name and self.client.seg.remove_cache(name, CACHE_LOCKED_S)

    def caches(self) -> list[CacheStats]:
        """The figures of all caches of the pool."""
        return read_caches(self.client)

    # ---- write-back -------------------------------------------------------------

    @property
    def log_sync(self) -> Callable[[int], int | None] | None:
        """The engine's hook for the write-ahead rule in this process. The pool calls ``log_sync(lsn)`` before it
        writes pages up to that LSN, if the log is not durable that far. The hook syncs the log and
        returns the LSN up to which it is durable then (or returns None and sets ``durable_lsn`` itself).
        The steward, ``checkpoint``, and a miss that finds only such pages call it, in
        their own threads: so it must not wait for a lock that a thread holds while it uses pages, nor make a checkpoint
        (WouldDeadlock)."""
        return self.client.log_sync

    @log_sync.setter
    def log_sync(self, hook: Callable[[int], int | None] | None) -> None:
        if hook is not None and not callable(hook):
            raise TypeError(f"log_sync must be a function of an LSN, or None, not {type(hook).__name__}")
        for client in (self.client, *self.client.others()):
            client.log_sync = hook

    def publish_many(self) -> _core.PublishGroup:
        """Publishes several written pages as one: a block, at whose end all of them are published, or none if it raises.

        ::

            with pool.publish_many() as group:
                left = group.write(tree, 3, lsn=lsn)  # private copies, of spaces of this pool
                right = group.write(tree, 9, lsn=lsn)
                right[:2048], left[2048:] = left[2048:], 0

        There is one moment at which all new versions replace the old ones, for every reader. If a process dies, all of
        them are there, or none. No reader waits meanwhile. A reader of several pages reads them one after the
        other, as always, so it may see one before that moment and the next one after it, but no new page and then an old one.

        ``group.write(space, page_no, timeout=10.0, lsn=None, fresh=False)`` is ``space.write(page_no, …)`` and returns the copy
        at once; no other client writes the page until the block ends. ``fresh``: the copy is zeros, and not the old version. (An
        absent page is loaded all the same: until the block ends its old version is the page's.) So groups whose pages overlap must take them in the same order;
        otherwise each waits for the other until WaitTimeout. The pages are flushed one by one, as always: after a power failure a
        file may have some of them, unless a log tells it (``durable_lsn``).

        Raises (at the block's end) PoolExhausted, SpaceRemoved; then nothing is published. ``group.write`` raises what
        ``Space.write`` raises; GroupFull for more than a quarter of the pool's frames, or more pages of a space than its
        limit allows; and ValueError for a space of another pool, or a discardable one.

        In the block ``space.write`` and ``write_many`` raise ValueError for the spaces of this pool: they would publish their pages by
        themselves. ``append`` and ``grow`` are allowed there, and are not part of the group.
        """
        self.client.require_writable("publish pages")
        return self.client.seg.publish_many()

    def flush(self, space: Space | None = None, *, up_to_lsn: int | None = None, timeout: float | None = None) -> int:
        """Writes dirty pages to their stores and syncs the stores; returns the number of pages.

        It writes pages of one ``space``, or of all, whose LSN is at most ``up_to_lsn``. Pages
        whose LSN is above ``durable_lsn`` stay dirty in any case. Several spaces are written
        at the same time, each store in a thread of its own, so that a store that hangs does not delay the
        others. After ``timeout`` seconds unfinished flushes continue in the background.

        Raises StoreError: then no page is marked clean that is not stored, and the other
        spaces were flushed. Raises WaitTimeout, which names the spaces that are not flushed yet,
        SpaceRemoved for a space that has been removed, and PoolReadOnly.
        """
        self.client.require_writable("write pages")
        if space is not None:
            self._require_own(space)
        seconds = seconds_of(timeout)
        pools: list[Pool] = [self]
        if space is None:
            pools += self._other_sizes()
        elif space.pool.client.known_uuid != self.client.known_uuid:
            other = self.client.other(space.page_size)
            if other is None:
                raise SpaceRemoved(removed_message(space.name))
            pools = [self._pool_of(other)]
        written = flush_all([pool._to_flush(space, up_to_lsn) for pool in pools], seconds)
        for pool in pools:
            pool.client.warn_if_nameless()
        return written

    def _to_flush(self, space: Space | None, up_to_lsn: int | None) -> tuple[Client, list[Record], int]:
        """What a flush writes of this page size: of which spaces, and up to which LSN."""
        lsn = self.durable_lsn if up_to_lsn is None else min(self.durable_lsn, lsn_of(up_to_lsn))
        drop_unused(self.client)
        if space is None:
            return self.client, self.client.seg.spaces(), lsn
        records = directory.records_of(self.client, space.index, space.generation)
        if not records:
            raise SpaceRemoved(removed_message(space.name))
        return self.client, records, lsn

    def _require_own(self, space: Space) -> None:
        """Raises TypeError, ValueError unless it is a space of this pool; attaches one that was unpickled.

        Raises SpaceRemoved, SpaceClosed, SpacePrivate."""
        if not isinstance(space, Space):
            raise TypeError(
                f"space must be a space of this pool, not {type(space).__name__}; flush() writes all of them"
            )
        len(space)
        _ = self.client.seg, space.pool.client.seg  # they know their segments then
        if self.client.known_uuid not in (space.pool.client.known_uuid, space.pool.client.pool_uuid):
            raise ValueError(f"{space!r} is a space of another pool, not of {self.name!r}")

    def dirty_pages(self, name: str) -> Iterator[tuple[int, Buffer]]:
        """Yields the dirty pages of the space ``name``: (page number, a copy, shape (page_size,), uint8).

        It needs no handle, and does not read the file. It is meant for pages that cannot be written, because
        another program has changed the file (FileChanged). Raises SpaceNotFound.
        """
        pool = self._with_space(name)
        return dirty_images(pool, record_named(pool.client, name))

    def discard(self, name: str) -> int:
        """Discards the dirty pages of the space ``name`` and removes the space from the pool; returns their number.

        It needs no handle. The next call that opens the file reads its contents; open handles raise SpaceRemoved.
        Raises SpaceNotFound, SpaceBusy.
        """
        self.client.require_writable("discard pages")
        client = self._with_space(name).client
        record = record_named(client, name)
        return directory.remove(client, name, record["index"], record["generation"], True)

    def overwrite(self, name: str) -> int:
        """Writes the dirty pages of the space ``name`` to its file, although another program has changed it; returns their number.

        It needs no handle. All other pages are those of the file that is now at the space's path. If the file was
        cut, lost pages that are not dirty read as zeros, or do not exist. If it was cut or is another file,
        open handles raise SpaceRemoved afterwards. If there is no file at the path, it raises FileChanged:
        restore the file, or create an empty one, first. Raises FileChanged, FileSizeMismatch, SpaceNotFound, StoreError;
        and SpaceBusy, before it changes anything, if the LSN of a dirty page is above ``durable_lsn``.
        """
        self.client.require_writable("write pages")
        return overwrite(self._with_space(name).client, name)

    @property
    def durable_lsn(self) -> int:
        """The LSN up to which the engine's log is durable: a page with a higher LSN is never written.

        It is 2**64 - 1 (every page may be written) until an engine sets it.
        """
        return self.client.durable_lsn

    @durable_lsn.setter
    def durable_lsn(self, lsn: int) -> None:
        self.client.require_writable("set the durable LSN")
        self.client.seg.set_durable_lsn(lsn_of(lsn))
        for other in self.client.others():
            other.seg.set_durable_lsn(lsn_of(lsn))

    def advance_durable_lsn(self, lsn: int) -> None:
        """Raises ``durable_lsn`` to ``lsn``; does nothing if it is already at least ``lsn``.

        It is meant for engines of several processes, in which a process may come late with an older value.
        """
        self.client.require_writable("set the durable LSN")
        self.client.seg.raise_durable_lsn(lsn_of(lsn))
        for other in self.client.others():
            other.seg.raise_durable_lsn(lsn_of(lsn))

    def begin_snapshot(self, lsn: int) -> None:
        """Says to all processes that this one reads the pages as they were at ``lsn``, until :meth:`end_snapshot`.

        It is meant for engines that keep the version of a page that they replace while a reader needs it: which LSNs are in use
        is known to every process (:meth:`snapshots`), and the death of a process ends its own. The pool keeps no version for it.
        Begun twice, it must be ended twice. It costs no system call, and no lock that another process has.

        If new snapshots begin at an LSN that moves, a reader can be overtaken between the read of that LSN and this call. So it reads it
        once more afterwards, and if it has moved, ends the snapshot and begins again. A writer reads the LSN first
        and then ``snapshots()``, and keeps what either of them needs. Then no reader is overlooked::

            while True:
                pool.begin_snapshot(lsn := newest())
                if newest() == lsn:
                    break
                pool.end_snapshot(lsn)

        A forked child has no snapshots. Raises TooManySnapshots if this process has snapshots at 32 other LSNs.
        """
        self.client.require_writable("begin a snapshot")
        self.client.seg.begin_snapshot(lsn)

    def end_snapshot(self, lsn: int) -> None:
        """Ends a snapshot that this process has begun. Raises ValueError if it has none at ``lsn``."""
        self.client.seg.end_snapshot(lsn)

    def snapshots(self) -> list[int]:
        """The LSNs at which living processes read, sorted; each once. It may be called in any process."""
        return sorted(set(self.client.seg.snapshots()))

    def checkpoint(self, up_to_lsn: int | None = None, *, timeout: float | None = 0.0) -> int:
        """Flushes dirty pages; returns the LSN from which recovery must start.

        Every change with a smaller LSN is in its store. ``up_to_lsn``: all changes up to it
        have been published when this is called (default: ``durable_lsn``; an engine
        that raises ``durable_lsn`` before it publishes must give ``up_to_lsn``). It calls ``log_sync`` first, if
        pages wait for the log. Other processes may write meanwhile: the result is at most the recovery LSN of
        each page that is still dirty, which is the LSN of its first change that the store does not have. Pages
        without an LSN do not count. Source: the recovery LSN of ARIES (Mohan et al., TODS 1992).

        ``timeout``: for how many seconds to repeat it while the result is not above ``up_to_lsn`` (which it needs), because a page is
        being written by another process, or waits for the log (0: it is made once; None: without limit).

        Raises StoreError: nothing is lost, and the previous checkpoint remains valid; and WaitTimeout, if ``timeout`` is not 0.
        """
        self.client.require_writable("make a checkpoint")
        seconds = seconds_of(timeout)
        others = self._other_sizes()
        if others:
            return self._checkpoint_all(others, up_to_lsn, seconds)
        if seconds == 0:
            return checkpoint(self.client, None if up_to_lsn is None else lsn_of(up_to_lsn))
        if up_to_lsn is None:
            raise ValueError("give up_to_lsn= with timeout=: the LSN up to which every change is to be in its store")
        return checkpoint_within(self.client, lsn_of(up_to_lsn), seconds)

    def _checkpoint_all(self, others: list[Self], up_to_lsn: int | None, seconds: float) -> int:
        """A checkpoint of all page sizes: recovery must start at the least of theirs."""
        if up_to_lsn is None and seconds:
            raise ValueError("give up_to_lsn= with timeout=: the LSN up to which every change is to be in its store")
        limit = self.durable_lsn if up_to_lsn is None else lsn_of(up_to_lsn)
        if up_to_lsn is None and limit == NO_RULE:
            limit = max(newest_lsn(pool.client) for pool in (self, *others))
        end = time.monotonic() + seconds
        start = min(pool.checkpoint(limit, timeout=_left(end) if seconds else 0.0) for pool in others)
        if seconds:
            return checkpoint_within(self.client, limit, end - time.monotonic())
        return checkpoint(self.client, max(0, min(limit, start - 1)))

    # ---- memory -------------------------------------------------------------------

    def resize(self, capacity: int | str, *, timeout: float | None = 5.0) -> int:
        """Changes the budget while the pool is in use; returns the bytes given back.

        It may be more than ``max_capacity``, up to the room of the segment (``room``: by default the size of
        the tmpfs). A steward then moves it up to there, and no higher than ``max_capacity`` once less is asked for.

        A smaller budget evicts, coldest first, and gives whole extents back; dirty pages are flushed for it. Raises ValueError, and PoolExhausted if pages
        that cannot go, or a store that hangs, keep the pool above the new budget for ``timeout`` seconds
        (the new budget holds all the same: call again when they are released).
        """
        self.client.require_writable("change the budget")
        if self.client.is_part:
            raise ValueError(
                f"{self.name!r} is a page size of the pool {self.client.home().name!r}, which has the budget: resize that pool"
            )
        frames = parse_size(capacity, "capacity") // self.page_size
        if self.client.seg.page_sizes()[0] and frames * self.page_size < (least := sizes.least_bytes(self.client)):
            raise ValueError(
                f"capacity must be at least {least} bytes, four pages of each page size of the pool, not {capacity!r}"
            )
        if not segment_file.MIN_FRAMES <= frames <= self.room_frames:
            more = f"; {FIXED}" if frames > self.room_frames else ""
            raise ValueError(
                f"capacity must be {segment_file.MIN_FRAMES * self.page_size} to {self.room_frames * self.page_size} bytes, "
                f"not {capacity!r}{more}"
            )
        return memory.resize(self.client, frames, seconds_of(timeout)) * self.page_size

    def trim(self, size: int | str | None = None, *, timeout: float | None = 5.0) -> int:
        """Gives memory back to the kernel now; returns the bytes.

        ``size``: at least so many bytes: what caches have and no value uses, then the coldest pages, then values of caches
        (fewer if they are pinned, or dirty and cannot be flushed within ``timeout`` seconds). Without it: the memory of
        free frames, what caches have and no value uses, and what the kernel has given without being asked (to a process that called
        mlockall(MCL_CURRENT) after it had opened the pool). With ``huge_pages=True`` it gives back whole huge pages. The budget is unchanged; the pool
        takes memory again when it is used. Raises ValueError, TypeError.
        """
        self.client.require_writable("give memory back")
        seconds = seconds_of(timeout)
        self.client.seg.reap()
        if size is None:
            given = sum(pool.trim(timeout=timeout) for pool in self._other_sizes())
            given += memory.give_back_unasked(self.client, seconds)
            given += self.client.give_back_objects("trim", timeout=seconds)
            return given + self.client.give_back(read_summary(self).frames.free, "trim", seconds)
        left, given = parse_size(size, "size"), 0
        pools = sorted((self, *self._other_sizes()), key=lambda pool: pool.client.budget_frames * -pool.page_size)
        for pool in pools:  # the one that has most first
            frames = -(-left // pool.page_size)
            if frames > 0:
                trimmed = memory.trim(pool.client, frames, seconds) * pool.page_size
                left, given = left - trimmed, given + trimmed
        return given

    def trim_idle(self, seconds: float) -> int:
        """Gives the memory of every clean page back that no process has used for ``seconds``, and what caches have and no
        value uses; returns the bytes.

        Raises ValueError, TypeError.
        """
        self.client.require_writable("give memory back")
        if seconds is None:
            raise TypeError("seconds must be a number, not None")
        idle_s = seconds_of(seconds, "seconds")
        self.client.seg.reap()
        others = sum(pool.trim_idle(seconds) for pool in self._other_sizes())
        given = others + self.client.give_back(self.client.seg.evict_idle(min(idle_s, 1e9)), "idle")
        return given + self.client.give_back_objects("idle")

    # ---- the steward ------------------------------------------------------------------

    def start_steward(self, settings: Settings | None = None) -> Steward:
        """Starts the steward of the pool in a thread of this process, unless another process is it already.

        Every process may call it: one steward is active, and another takes over when that one ends. It reaps dead clients,
        writes dirty pages ahead of demand, moves the budget between ``min_capacity`` and ``max_capacity``, gives idle
        pages back and saves the working set, as ``settings`` say: ``start_steward(Settings(idle=600))``.
        ``events()`` shows what it did. It ends with :meth:`stop_steward`, :meth:`close`, or the process; until then it keeps the pool
        open, even if nothing else refers to it.

        Raises ValueError if this process is a steward of the pool already, TypeError, and PoolReadOnly.
        """
        if not isinstance(settings, Settings | None):
            raise TypeError(f"settings must be a bufferpool.Settings, not {type(settings).__name__}")
        self.client.require_writable("be its steward")
        segment = self.client.seg
        with _offering:
            stewards = [pool._steward for pool in list(_open_pools) if pool.client.attached is segment]
            if any(steward is not None and steward.alive and steward.pid == os.getpid() for steward in stewards):
                raise ValueError("this process is a steward of the pool already; stop_steward() first")
            self._steward = Steward(self.client, Settings() if settings is None else settings)
            self._steward.begin()
            return self._steward

    def stop_steward(self) -> None:
        """Ends the steward of this process, if there is one. Raises the error that has ended it before, if one has."""
        steward = self._steward
        try:
            if steward is not None and steward.pid == os.getpid():
                steward.stop()
        finally:
            if steward is not None and not (steward.pid == os.getpid() and steward.alive):
                self._steward = None  # else a signal's handler has interrupted the stop: it can be asked for again

    def save_working_set(self, path: str | os.PathLike[str]) -> int:
        """Writes the list of resident pages to a file, the hottest first, a few bytes each; returns their number.

        Replaces the file as a whole, and syncs it. Scratch pages are not in it. Raises OSError, and WorkingSetError if the
        path leads to something else than a working set, which is not replaced.
        """
        return warm.save_working_set(self.client, path)

    def load_working_set(self, path: str | os.PathLike[str], spaces: Iterable[Space] = ()) -> warm.WarmUp:
        """Loads the pages that :meth:`save_working_set` wrote, in the background, in file order.

        It loads as many of the hottest as the budget allows. Files are opened for reading; spaces with a
        loader or a store object must be in ``spaces``. Raises FileNotFoundError, WorkingSetError.
        """
        work = warm.load_working_set(self.client, path, spaces, self._found)
        self._warming = [earlier for earlier in self._warming if not earlier.finished] + [work]
        return work

    # ---- looking after it ------------------------------------------------------------

    def reap(self) -> int:
        """Reaps dead clients: releases their pins, locks and frames; returns the number of clients.

        The pool also does this by itself: in the steward, and when an operation waits for a dead client. While a process
        is stopped that has a lock of the pool, some clients may be left for the next call.
        """
        others = sum(pool.reap() for pool in self._other_sizes())
        drop_unused(self.client)
        return others + int(self.client.seg.reap())

    def check(self, *, timeout: float | None = 30.0) -> list[str]:
        """Checks every invariant; returns the violations, [] if there are none.

        It may run while other processes use the pool. It reaps dead clients first. Raises WaitTimeout if a process that
        has a lock of the pool does not release it within ``timeout`` seconds, because it is stopped; ValueError, TypeError.
        """
        found = [f"{pool.name}: {text}" for pool in self._other_sizes() for text in pool.check(timeout=timeout)]
        found += [] if self.client.is_part else sizes.check(self.client)
        found += list(self.client.seg.check(seconds_of(timeout)))
        for _ in range(20):
            alone, status, frames = self.client.seg.alone(), self.client.seg.status(), self.frames()
            counted = memory.counted_bytes(self.client, status)
            off = abs(counted - status["kernel_bytes"])
            if off <= np.count_nonzero(frames["state"] == FrameState.BUSY) * self.page_size:
                return found
            if alone:  # no other process changes the pool meanwhile
                break
            time.sleep(0.005)
        if status["kernel_bytes"] > counted and memory.may_have_huge_pages(self.client):
            return found  # huge pages: the kernel allocates more than was asked for (bufferpool doctor reports it)
        text = f"the kernel counts {status['kernel_bytes']} bytes for the segment, the pool {counted}"
        if status["kernel_bytes"] - counted >= memory.UNASKED_BYTES:
            text += ": a process has locked all of its memory after it opened the pool (mlockall), perhaps; pool.trim() gives it back, except for the room of caches"
        return [*found, text]


def _left(end: float) -> float | None:
    """The seconds that are left; None: without limit."""
    return None if end == math.inf else max(0.0, end - time.monotonic())


def unpickled(first: Any, *rest: Any) -> Any:
    """The unpickled copy of a pool, or of a space if the first argument is its pool.

    It is one function for both, so that a pickle of a space names one function: cloudpickle, which dask and Ray use for the
    functions of notebooks, calls Python code for each that a pickle names.
    """
    return copy_of(first, *rest) if isinstance(first, Pool) else Pool(first, *rest)
