"""The pool: everything that a process does with a segment that it is attached to."""

import os
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from bufferpool.client import segment_file
from bufferpool.client.attachment import Attachment
from bufferpool.client.request import FIXED
from bufferpool.figures import stats
from bufferpool.figures.inspection import Inspection
from bufferpool.machine.mounts import has_huge_pages
from bufferpool.machine.pressure import Source, given
from bufferpool.spaces import directory
from bufferpool.spaces.claim import drop_unused
from bufferpool.spaces.directory import (
    DISCARDABLE,
    WRITABLE,
    bind,
    count_of,
    record_named,
    record_of,
    refuse_unfit,
    remove,
    version_of,
)
from bufferpool.spaces.space import Kind, Loader, Space
from bufferpool.stores.base import Buffer, Store
from bufferpool.stores.checksum import Repair
from bufferpool.units import lsn_of, parse_size, seconds_of
from bufferpool.upkeep import memory
from bufferpool.upkeep import working_set as warm
from bufferpool.upkeep.budget import Rules
from bufferpool.upkeep.flush_jobs import flush_all
from bufferpool.upkeep.jobs import Jobs
from bufferpool.upkeep.steward import STOP_S, Settings, Steward
from bufferpool.upkeep.writeback import CHECKSUM, checkpoint, file_store


class Pool(Attachment, Inspection):
    """An attached buffer pool.

    Made by :meth:`create`, :meth:`attach` or :meth:`open`. Pickles: in the other
    process it attaches when first used. After a fork the child is a client of
    its own, and the arrays that it inherited stay pinned in its name.
    """

    def __init__(self, path: str, owner: int | None, uuid: bytes | None, mode: str = "r+") -> None:
        super().__init__(path, owner, uuid, mode)
        self._room = memory.Room()
        self._own_jobs = Jobs()
        self._steward: Steward | None = None
        self._warming: list[warm.WarmUp] = []

    # ---- spaces ---------------------------------------------------------------

    def open_file(
        self,
        path: str | os.PathLike[str],
        mode: str = "r",
        *,
        name: str | None = None,
        dtype: npt.DTypeLike = np.uint8,
        max_pages: int | None = None,
        checksum: bool = False,
        repair: Repair | None = None,
    ) -> Space:
        """The pages of a file: 'r', 'r+', or 'w+' (created, or emptied, once nothing can refuse it any more).

        Its size must be a whole number of pages. It grows by ``append``, up to
        ``max_pages``. If another program has changed the file since the pool last
        saw it, this call drops the pages that the pool has of it. Only opening and flushing notice such a change; reads do not.

        ``checksum``: the last eight bytes of every page belong to the pool, which keeps
        a checksum there and looks at it whenever it loads the page (PageCorrupt); see
        ``bufferpool/stores/checksum.py``. ``repair(page_no, image)`` is then asked for the right
        bytes of a damaged page, and returns them or None; the page is dirty until a flush has mended
        the file. It travels with the space when that is pickled. Needs the library xxhash.

        Raises FileNotFoundError, PermissionError, NotRegularFile, FileSizeMismatch, FileChanged,
        SpaceMismatch, SpaceFull, TooManySpaces, ValueError.
        """
        if mode != "r":
            self._require_writable("open a file for writing")
        if repair is not None and not checksum:
            raise ValueError("repair= needs checksum=True: without checksums nobody knows that a page is damaged")
        where = os.path.realpath(path)
        name = os.path.basename(where) if name is None else name
        options: dict[str, Any] = {"path": where, "mode": "r" if mode == "r" else "r+", "max_pages": max_pages}
        options |= {"checksum": bool(checksum), "repair": repair}
        space = Space(self, name, Kind.FILE, dtype, options)
        refuse_unfit(self, space)  # before a file is created
        space._store = store = file_store(where, mode, self.page_size, checksum, repair)
        try:
            bind(self, space, truncate=mode == "w+")
        except BaseException:
            store.uncreate()
            raise
        return space

    def open_derived(
        self,
        name: str,
        n_pages: int,
        loader: Loader,
        *,
        dtype: npt.DTypeLike = np.uint8,
        version: int | str | None = None,
    ) -> Space:
        """Pages that ``loader(page_no, out)`` can make at any time, and that may be dropped at any time.

        ``out`` is a private array of one page, of the space's dtype and shape, zeroed. The loader fills
        it and returns nothing: one that returns something raises LoaderReturned. It runs once per
        missing page, however many ask for the page. Every process that may miss brings the loader.

        ``version`` says which code makes the pages. If the space exists with another version (no version
        counts as one), an empty space replaces it, and the new one may have another number of pages: handles
        of the old space raise SpaceRemoved from then on, and arrays of its pages stay valid. Versions that
        are in use at the same time need spaces of different names.

        Raises SpaceMismatch, and PoolReadOnly if a space of another version is in a pool that is
        attached for reading only.
        """
        if not callable(loader):
            raise TypeError(f"loader must be a function of (page_no, out), not {type(loader).__name__}")
        options = {"n_pages": count_of(n_pages, "n_pages"), "version": version_of(version)}
        space = Space(self, name, Kind.DERIVED, dtype, options)
        space._loader = loader
        bind(self, space)
        return space

    def open_store(
        self,
        name: str,
        store: Store,
        *,
        mode: str = "r+",
        dtype: npt.DTypeLike = np.uint8,
        max_pages: int | None = None,
    ) -> Space:
        """The pages of any object that follows the protocol :class:`bufferpool.Store`.

        Every process that may miss or flush brings the store. Raises
        SpaceMismatch, FileSizeMismatch, TypeError.
        """
        if not isinstance(store, Store):
            raise TypeError("a store has the methods read_into, write_from, sync and size (see bufferpool.Store)")
        if mode not in ("r", "r+"):
            raise ValueError(f"mode must be 'r' or 'r+', not {mode!r}")
        if mode != "r":
            self._require_writable("open a store for writing")
        space = Space(self, name, Kind.STORE, dtype, {"mode": mode, "max_pages": max_pages})
        space._store = store
        bind(self, space)
        return space

    def scratch(
        self,
        name: str,
        n_pages: int,
        *,
        owner: str = "pool",
        discardable: bool = False,
        dtype: npt.DTypeLike = np.uint8,
    ) -> Space:
        """Pages without a store: zeros until written.

        ``owner``: "pool" (shared by all processes; stays until removed) or "client" (private to
        this process, and removed with it, however it ends). Each process that makes a private
        space of a name has its own: no other process finds its pages by that name, it does not
        pickle, and in a forked child the parent's handle raises SpacePrivate.
        ``discardable``: written pages may be dropped under pressure, and then raise
        PageDiscarded; otherwise they are kept.
        """
        self._require_writable("make scratch pages")
        if owner not in ("pool", "client"):
            raise ValueError(f"owner must be 'pool' or 'client', not {owner!r}")
        options = {"n_pages": count_of(n_pages, "n_pages"), "owner": owner, "discardable": bool(discardable)}
        space = Space(self, name, Kind.SCRATCH, dtype, options)
        bind(self, space)
        return space

    def space(self, name: str) -> Space:
        """A space that is in the pool already, by name. Raises SpaceNotFound.

        Private scratch spaces of other processes are not found; one of this process comes before
        a shared space of the same name.
        A derived space, or one on a store of one's own, is opened with
        :meth:`open_derived` or :meth:`open_store`, which bring the loader or store.
        """
        return self._found(record_named(self, name))

    def _found(self, record: dict[str, Any]) -> Space:
        """A handle of the space that ``record`` says is there."""
        name, kind, flags = record["name"], Kind(record["kind"]), record["flags"]
        if kind is Kind.FILE:
            writable = flags & WRITABLE and self.mode == "r+"
            return self.open_file(record["path"], "r+" if writable else "r", name=name, checksum=bool(flags & CHECKSUM))
        options = {"n_pages": record["pages"], "found": True}
        if kind is Kind.SCRATCH:
            options |= {"owner": "client" if record["owner"] else "pool", "discardable": bool(flags & DISCARDABLE)}
        else:
            options |= {"mode": self.mode}
        space = Space(self, name, kind, np.uint8, options)
        bind(self, space)
        return space

    def _owns(self, space: Space) -> bool:
        """Whether a private space is still there, and is this process's own."""
        return any(
            r["mine"] and (r["index"], r["generation"]) == (space.index, space._generation) for r in self._seg.spaces()
        )

    def _bind(self, space: Space) -> None:
        bind(self, space)

    def _record(self, index: int) -> dict[str, Any]:
        return record_of(self, index)

    def _remove(self, space: Space, discard: bool) -> None:
        self._require_writable("remove a space")
        remove(self, space, discard)

    # ---- write-back -------------------------------------------------------------

    log_sync: Callable[[int], int | None] | None = None
    """The engine's hook for the write-ahead rule, of this process: called as ``log_sync(lsn)`` when
    pages up to that LSN are to be written and the log is not durable that far. It syncs the log and
    returns the LSN up to which it is durable now (or None, having set ``durable_lsn`` itself).
    Called by the steward, by ``checkpoint``, and on a miss that finds only such pages, in
    the thread that needs it: it must take no lock that a thread holds while it uses pages."""

    def flush(self, space: Space | None = None, *, up_to_lsn: int | None = None, timeout: float | None = None) -> int:
        """Writes dirty pages to their stores and syncs them; returns how many.

        Of one ``space``, or of all; only those whose LSN is at most ``up_to_lsn``. Pages
        whose LSN is above ``durable_lsn`` stay dirty in any case. Several spaces are written
        at once, each store in a thread of its own, so that a store that hangs keeps no other from
        being written; with ``timeout``, their flushes go on in the background after so many seconds.

        Raises StoreError: then nothing is marked clean that is not stored, and all that could be
        flushed of other spaces was. Raises WaitTimeout, which names the spaces that are not flushed yet,
        and SpaceRemoved for a space that has been removed.
        """
        if space is not None:
            len(space)  # attaches one that was unpickled; refuses one that was removed, whose slot another may have
        drop_unused(self)
        lsn = self.durable_lsn if up_to_lsn is None else min(self.durable_lsn, lsn_of(up_to_lsn))
        records = [
            r
            for r in self._seg.spaces()
            if space is None or (r["index"], r["generation"]) == (space.index, space._generation)
        ]
        written = flush_all(self, records, lsn, seconds_of(timeout))
        self._warn_if_nameless()
        return written

    @property
    def _jobs(self) -> Jobs:
        """What this process does in threads because it may hang. A forked child has none of its parent's threads."""
        if self._own_jobs.pid != os.getpid():
            self._own_jobs = Jobs()
        return self._own_jobs

    def dirty_pages(self, name: str) -> Iterator[tuple[int, Buffer]]:
        """The dirty pages of the space ``name``: their numbers and, one by one, copies of them (uint8).

        Needs no handle, and does not look at the file: for pages that cannot be written, because
        somebody else has changed the file (FileChanged). Raises SpaceNotFound.
        """
        return directory.dirty_images(self, name)

    def discard(self, name: str) -> int:
        """Gives up the dirty pages of the space ``name`` and takes the space out of the pool; returns their number.

        Needs no handle. The next call that opens the file reads its contents; handles that are open raise SpaceRemoved.
        Raises SpaceNotFound, SpaceBusy.
        """
        self._require_writable("discard pages")
        return directory.discard(self, name)

    def overwrite(self, name: str) -> int:
        """Writes the dirty pages of the space ``name`` to its file, although somebody else has changed it; returns their number.

        Needs no handle. All other pages are what the file that has the space's path now has. If it was
        cut, pages that it has lost and that are not dirty read as zeros, or do not exist. If it was cut or is another file,
        handles that are open raise SpaceRemoved afterwards. If there is no file at the path, it raises FileChanged:
        restore the file, or create an empty one, first. Raises FileChanged, FileSizeMismatch, SpaceNotFound, StoreError;
        and SpaceBusy, before anything is done, if the LSN of a dirty page is above ``durable_lsn``.
        """
        self._require_writable("write pages")
        return directory.overwrite(self, name)

    @property
    def durable_lsn(self) -> int:
        """The log is durable up to this LSN: a page above it is never written.

        2**64 - 1 (no rule) until an engine sets it.
        """
        return int(self._seg.status()["durable_lsn"])

    @durable_lsn.setter
    def durable_lsn(self, lsn: int) -> None:
        self._require_writable("set the durable LSN")
        self._seg.set_durable_lsn(lsn_of(lsn))

    def advance_durable_lsn(self, lsn: int) -> None:
        """Raises ``durable_lsn`` to ``lsn``; leaves it where it is already there or beyond.

        For engines of several processes: a process that comes late with an older figure
        changes nothing.
        """
        self._require_writable("set the durable LSN")
        self._seg.raise_durable_lsn(lsn_of(lsn))

    def checkpoint(self, up_to_lsn: int | None = None) -> int:
        """Writes what is dirty; returns the LSN from which recovery must start.

        Every change with a smaller LSN is in its store. ``up_to_lsn``: all changes up to it
        have been published when this is called (default: ``durable_lsn``; so an engine
        that raises it before it publishes must say). Asks ``log_sync`` first, if there are
        pages that wait for the log. Others go on writing meanwhile: a page that is dirty at the
        end holds the result back to the first change that its store has not (ARIES calls
        that its recovery LSN; Mohan et al. 1992). Pages without an LSN take no part.

        Raises StoreError: nothing is lost, and the last checkpoint holds.
        """
        self._require_writable("make a checkpoint")
        return checkpoint(self, None if up_to_lsn is None else lsn_of(up_to_lsn))

    def _make_room(self, what: str, pinned: int, dirty: int, in_use: int, error: int, left: float) -> None:
        memory.make_room(self, self._room, what, dirty, in_use, error, left)

    def _end_background(self) -> None:
        for warming in self._warming:
            warming.cancel()
        try:
            self.stop_steward()
        finally:
            for warming in self._warming:
                warming.join(STOP_S)
            self._warming = []
            self._jobs.wait(lambda: not self._jobs.all(), STOP_S)

    # ---- memory -------------------------------------------------------------------

    def resize(self, capacity: int | str, *, timeout: float | None = 5.0) -> int:
        """Changes the budget while everybody works; returns the bytes given back.

        A smaller budget evicts, coldest first, and gives whole extents back; dirty
        pages are flushed for it. Raises ValueError, and PoolExhausted if pages
        that cannot go, or a store that hangs, keep the pool above the new budget for ``timeout`` seconds
        (the new budget holds all the same: call again when they are released).
        """
        self._require_writable("change the budget")
        frames = parse_size(capacity, "capacity") // self.page_size
        if not segment_file.MIN_FRAMES <= frames <= self.max_frames:
            more = f"; {FIXED}" if frames > self.max_frames else ""
            raise ValueError(
                f"capacity must be {segment_file.MIN_FRAMES * self.page_size} to {self.max_frames * self.page_size} bytes, "
                f"not {capacity!r}{more}"
            )
        return memory.resize(self, frames, seconds_of(timeout)) * self.page_size

    def trim(self, *, bytes: int | str | None = None, idle: float | None = None, timeout: float | None = 5.0) -> int:
        """Gives memory back to the kernel now; returns the bytes.

        ``bytes``: at least that much, coldest pages first (less if pinned pages
        stand in the way, or dirty ones that cannot be flushed within ``timeout`` seconds). ``idle``: every clean page that
        nobody has touched for that many seconds. Neither: the free frames. The
        budget stays; the pool grows again as it is used.
        """
        self._require_writable("give memory back")
        if bytes is not None and idle is not None:
            raise ValueError("give bytes= or idle=, not both")
        idle_s = seconds_of(idle, "idle")
        seg = self._seg
        seg.reap()
        if idle is not None:
            return self._give_back(seg.evict_idle(min(idle_s, 1e9)), "idle")
        if bytes is None:
            return self._give_back(self.stats().frames["free"], "trim")
        frames = -(-parse_size(bytes, "bytes") // self.page_size)
        return memory.trim(self, frames, seconds_of(timeout)) * self.page_size

    def _give_back(self, frames: int, reason: str) -> int:
        if not frames:
            return 0
        done, *_, refused = self._seg.shrink(frames, memory.reason(reason), False)
        if refused:
            memory.post_refused(self, refused)
        return done * self.page_size

    # ---- the steward ------------------------------------------------------------------

    def start_steward(
        self,
        *,
        interval: float = 0.25,
        flush_every: float = 15.0,
        clean: float = 0.1,
        pressure: bool = True,
        idle: float | None = None,
        working_set: str | os.PathLike[str] | None = None,
        working_set_every: float = 300.0,
        source: Source | None = None,
        rules: Rules | None = None,
    ) -> Steward:
        """Offers this process as the pool's steward, in a thread; of all that offer, one has the office.

        It reaps the dead; writes every dirty page within ``flush_every`` seconds, and earlier when
        less than ``clean`` of the budget is free or clean; with ``pressure``, moves the budget
        between ``min_capacity`` and ``max_capacity`` (``budget.py`` has the ``rules``,
        ``source`` is where it looks: the kernel); gives pages back that nobody has touched for
        ``idle`` seconds; saves the working set to ``working_set``. ``events()`` says what it did.
        It ends with :meth:`stop_steward`, :meth:`close`, or the process. Raises ValueError.
        """
        self._require_writable("be its steward")
        _ = self._seg
        with self._lock:
            stewards = [pool._steward for pool in list(self._handles) if isinstance(pool, Pool)]
            if any(steward is not None and steward.alive and steward.pid == os.getpid() for steward in stewards):
                raise ValueError("this process is a steward of the pool already; stop_steward() first")
            settings = Settings(interval, flush_every, clean, pressure, idle, working_set, working_set_every)
            self._steward = Steward(self, settings, source, rules)
            return self._steward

    def stop_steward(self) -> None:
        """Ends the steward of this process, if there is one. Raises what had ended it before, if something had."""
        steward, self._steward = self._steward, None
        if steward is not None and steward.pid == os.getpid():
            steward.stop()

    def save_working_set(self, path: str | os.PathLike[str]) -> int:
        """Writes which pages are resident, hottest first, a few bytes each; returns their number.

        Replaces the file as a whole, and syncs it. Scratch pages are not in it. Raises OSError.
        """
        return warm.save_working_set(self, path)

    def load_working_set(self, path: str | os.PathLike[str], spaces: Iterable[Space] = ()) -> warm.WarmUp:
        """Loads the pages that :meth:`save_working_set` wrote, in the background, in file order.

        As many of the hottest as find room. Files are opened for reading; spaces with a
        loader or a store of their own are found in ``spaces``. Raises FileNotFoundError, WorkingSetError.
        """
        return warm.load_working_set(self, path, spaces)

    # ---- inspection -----------------------------------------------------------------

    def reap(self) -> int:
        """Ends the business of clients that died; returns how many there were.

        Happens by itself wherever a dead client stands in somebody's way.
        """
        drop_unused(self)
        return int(self._seg.reap())

    def check(self) -> list[str]:
        """Every invariant; returns what is violated, [] if nothing is.

        Usable while others work. Reaps dead clients first.
        """
        found = list(self._seg.check())
        for _ in range(20):
            alone, status, frames = self._seg.alone(), self._seg.status(), self.frames()
            counted = status["metadata_bytes"] + status["resident_frames"] * self.page_size
            off = abs(counted - status["kernel_bytes"])
            if off <= np.count_nonzero(frames["state"] == stats.FrameState.BUSY) * self.page_size:
                return found
            if alone:  # it stays as it is
                break
            time.sleep(0.005)
        if status["kernel_bytes"] > counted and given(lambda: has_huge_pages(os.path.dirname(self.path))):
            return found  # the kernel has given more than was asked for, and rounds up: bufferpool doctor tells
        return [
            *found,
            f"the kernel counts {status['kernel_bytes']} bytes for the segment, the pool {counted}",
        ]
