"""A process and a segment: creating, finding, attaching, leaving, removing."""

import atexit
import mmap
import os
import warnings
import weakref
from pathlib import Path
from typing import Any, Self, cast

import numpy as np

from bufferpool import _core
from bufferpool._locks import Lock
from bufferpool.client import segment_file
from bufferpool.client.request import Request
from bufferpool.errors import (
    PoolClosed,
    PoolDiffers,
    PoolExhausted,
    PoolMismatch,
    PoolNameless,
    PoolReadOnly,
    SegmentExists,
    SegmentNotFound,
    SegmentReplaced,
)
from bufferpool.figures import events
from bufferpool.machine.auto_size import LEAST_BYTES, auto, look
from bufferpool.observer import refuse_loss
from bufferpool.stores.base import FileStore, Store
from bufferpool.units import parse_size

Mapped = np.memmap[Any, np.dtype[np.uint8]]
_open_pools: "weakref.WeakSet[Attachment]" = weakref.WeakSet()
_sharing = Lock()  # held while a handle joins an attachment, or leaves one


@atexit.register
def _close_all() -> None:
    failed: BaseException | None = None
    for pool in list(_open_pools):
        try:
            pool._close(late=True)
        except BufferError:
            continue  # a thread is still in it: the kernel ends this client with the process
        except Exception as error:  # noqa: BLE001 - of a steward; raised when all are closed
            failed = failed or error
    if failed is not None:
        raise failed


def _room_for_data(path: str, geometry: dict[str, Any]) -> Mapped:
    """What is to show the data area: an array over address space that nobody can touch until the core maps it there.

    numpy.memmap would map the file readable at once: under mlockall(MCL_FUTURE) the kernel gives memory to all of it,
    holes too. And its mmap would keep a descriptor, which other code can close and take.
    """
    shape = (geometry["max_frames"], geometry["page_size"])
    try:
        room = mmap.mmap(-1, shape[0] * shape[1], mmap.MAP_PRIVATE, 0)
    except OSError as error:
        _core.raise_unmapped(error.errno or 0)
    data: Any = np.frombuffer(room, np.uint8).reshape(shape).view(np.memmap)  # whose export keeps it from being closed
    data._mmap, data.mode, data.offset, data.filename = room, "r", geometry["data_at"], os.path.abspath(path)
    return cast(Mapped, data)


class Attachment:
    """One process's attachment to a segment; what is done with it is :class:`bufferpool.Pool`'s."""

    def __init__(self, path: str, owner: int | None, uuid: bytes | None, mode: str = "r+") -> None:
        self.path = path
        self._owner = owner
        self._uuid = uuid
        self._segment: _core.Segment | None = None
        self._data: Mapped
        self._closed = False
        self._stores: dict[int, tuple[int, Store]] = {}
        self._told_nameless = False
        self._claims: dict[tuple[int, int], FileStore] = {}  # on files that this process writes: see claim.py
        self._lock = Lock()
        self._unpickled = uuid is not None
        self._handles: weakref.WeakSet[Attachment] = weakref.WeakSet((self,))  # all that share this attachment
        self.mode = mode

    def _make_room(self, what: str, pinned: int, dirty: int, in_use: int, error: int, left: float) -> None:
        """Called by the core when no frame can be had: makes room, or raises."""
        raise PoolExhausted("no frame can be had")

    def _end_background(self) -> None:
        """Ends what this process does in the background, before it detaches."""

    @classmethod
    def create(
        cls,
        name: str,
        capacity: int | str = "auto",
        *,
        page_size: int = 8192,
        min_capacity: int | str | None = None,
        max_capacity: int | str | None = None,
        extent_size: int | str = "256KiB",
        max_clients: int = 256,
        max_pages: int = 1 << 27,
        mode: int = 0o600,
        directory: str | os.PathLike[str] | None = None,
    ) -> Self:
        """Makes a new pool and attaches to it.

        ``capacity``: bytes that its pages may take (the budget), or "auto": a quarter of
        what the machine has to give, see ``bufferpool/machine/auto_size.py``. A steward moves it
        between ``min_capacity`` (default: an eighth of it) and ``max_capacity`` (default: the
        capacity), which is fixed at creation.
        ``page_size``: a power of two, at least 4096 bytes. ``extent_size``:
        bytes given back to the kernel at a time. ``max_clients``: processes
        attached at once. ``max_pages``: pages of all its spaces together.
        ``mode``: permissions of the file. ``directory``: another tmpfs mount.

        Raises SegmentExists, SharedMemoryFull, NotTmpfs, SegmentRefused,
        ValueError, TypeError.
        """
        path = segment_file.path_of(name, directory)
        segment_file.check_permissions(mode, "mode (here the permissions of the file)")
        if capacity == "auto":
            sizing = auto(look(os.path.dirname(path)), LEAST_BYTES, parse_size(extent_size, "extent_size"))
            least = sizing.min_capacity if min_capacity is None else parse_size(min_capacity, "min_capacity")
            most = sizing.max_capacity if max_capacity is None else parse_size(max_capacity, "max_capacity")
            least = min(least, most) if min_capacity is None else least  # what is given holds
            most = max(least, most) if max_capacity is None else most
            capacity, min_capacity, max_capacity = min(max(sizing.capacity, least), most), least, most
        plan = segment_file.plan(
            parse_size(capacity, "capacity"),
            page_size=page_size,
            min_capacity=None if min_capacity is None else parse_size(min_capacity, "min_capacity"),
            max_capacity=None if max_capacity is None else parse_size(max_capacity, "max_capacity"),
            extent_size=parse_size(extent_size, "extent_size"),
            max_clients=max_clients,
            max_pages=max_pages,
        )
        segment_file.create(path, plan, mode)
        pool = cls.attach(name, directory=directory)
        events.post(pool, events.What.CREATED, events.Why.ASKED)
        return pool

    @classmethod
    def attach(
        cls,
        name: str,
        *,
        mode: str = "r+",
        directory: str | os.PathLike[str] | None = None,
        owner: int | None = None,
    ) -> Self:
        """Attaches to an existing pool that belongs to user ``owner`` (default: oneself).

        With ``mode="r"`` this process reads spaces that have a file, a store or a
        loader, and all other pages that are in the pool; it changes no page and
        no setting (PoolReadOnly).

        Raises SegmentNotFound, SegmentRefused, SegmentCorrupt, LayoutMismatch,
        NotTmpfs, TooManyClients.
        """
        if mode not in ("r", "r+"):
            raise ValueError(f"mode must be 'r' or 'r+', not {mode!r}")
        pool = cls(segment_file.path_of(name, directory), owner, None, mode)
        _ = pool._seg
        return pool

    @classmethod
    def open(
        cls,
        name: str,
        capacity: int | str = "auto",
        *,
        mode: str = "r+",
        page_size: int | None = None,
        min_capacity: int | str | None = None,
        max_capacity: int | str | None = None,
        extent_size: int | str | None = None,
        max_clients: int | None = None,
        max_pages: int | None = None,
        permissions: int | None = None,
        directory: str | os.PathLike[str] | None = None,
    ) -> Self:
        """Attaches to the pool, or creates it; safe between processes starting together.

        Takes the sizes of :meth:`create`; ``permissions`` are those of the file. What is not given is the
        pool's own, or the default for a new one. Every argument is checked, whether or not the pool exists.
        What is given is compared with a pool that exists: another ``page_size``, ``extent_size``,
        ``max_capacity``, ``max_clients`` or ``max_pages`` raises PoolMismatch, because these are fixed; another
        ``capacity`` (than was last asked for: at creation, or by ``resize``; not what a steward made of it),
        ``min_capacity`` or ``permissions`` is the warning PoolDiffers, and the pool stays as it is.

        ``mode="r"`` attaches for reading (see :meth:`attach`), and creates nothing: SegmentNotFound.

        Raises what :meth:`attach` and :meth:`create` raise, and PoolMismatch.
        """
        if mode not in ("r", "r+"):
            hint = "; permissions= gives the file's permissions" if isinstance(mode, int) else ""
            raise (ValueError if isinstance(mode, str) else TypeError)(f"mode must be 'r' or 'r+', not {mode!r}{hint}")
        request = Request(
            capacity, page_size, min_capacity, max_capacity, extent_size, max_clients, max_pages, permissions
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
        """Raises PoolMismatch, or warns, if this pool differs from what was asked for."""
        found = request.differences(self)
        if any(not difference.remedy for difference in found):
            raise PoolMismatch(
                f"pool {self.name!r} exists, and {'; '.join(map(str, found))}: leave out what may be as it is, "
                "use another name, or remove the pool and create it anew (bufferpool rm)",
                {difference.what: (difference.asked, difference.found) for difference in found},
            )
        if found:
            warnings.warn(PoolDiffers(f"pool {self.name!r} exists, and {'; '.join(map(str, found))}"), stacklevel=3)

    @property
    def _seg(self) -> _core.Segment:
        seg = self._segment
        if seg is None:
            seg = self._connect()
        return seg

    def _connect(self) -> _core.Segment:
        with self._lock:
            if self._segment is not None:
                return self._segment
            if self._closed:
                raise PoolClosed(f"pool {self.name!r} is closed; attach it again")
            if not self._unpickled:
                return self._attach()
            with _sharing:  # copies that are used for the first time together get one attachment
                return self._join() or self._attach()

    def _attach(self) -> _core.Segment:
        """A new attachment to the segment."""
        with self._lock:
            fd = segment_file.open_trusted(self.path, self._owner)
            try:
                uuid = _core.geometry(fd)["uuid"]
                if self._uuid not in (None, uuid):
                    raise SegmentReplaced(
                        f"{self.path} is another pool than the one that was pickled; it was removed and created anew"
                    )
                handles = self._handles
                try:
                    comm = Path("/proc/self/comm").read_text(errors="replace").strip()
                except OSError:  # a name to show, where there is one
                    comm = ""

                def make_room(*why: Any) -> None:
                    pool = next((pool for pool in list(handles) if pool._segment is not None), None)
                    if pool is None:
                        raise PoolExhausted("no frame can be had, and the pool is being closed")
                    pool._make_room(*why)

                seg = _core.Segment(fd, make_room, comm)
                geometry = seg.geometry()
            finally:
                os.close(fd)
            self._geometry, self._uuid = geometry, uuid
            _open_pools.add(self)
            seg.give_to(
                self, _room_for_data(self.path, geometry)
            )  # from here on it is ours, and a forked child inherits it
            return seg

    def _join(self) -> _core.Segment | None:
        """Uses the attachment that this process has to the segment; None if it has none. Under ``_sharing``.

        A pool that was unpickled would take a client slot and a mapping for every copy: executors make
        one for each task.
        """
        for other in list(_open_pools):
            if other._segment is None or other._uuid != self._uuid or other.path != self.path:
                continue
            self._geometry, self._data, self._handles = other._geometry, other._data, other._handles
            self._stores, self._claims = other._stores, other._claims
            self._handles.add(self)
            _open_pools.add(self)
            self._segment = other._segment
            return self._segment
        return None

    def _leave(self) -> bool:
        """Gives up this handle's part in an attachment that other handles use. False: there are none."""
        with _sharing:
            if not any(other is not self and other._segment is not None for other in list(self._handles)):
                return False
            self._handles.discard(self)
            self._handles, self._stores, self._claims = weakref.WeakSet((self,)), {}, {}
            self._segment = None
            del self._data
            return True

    def close(self) -> None:
        """Detaches; a steward of this process, and working sets that it loads, stop.

        Copies of the pool that were unpickled in this process share one attachment: the last one to be closed
        detaches.

        Raises BufferError while arrays look at pages of the pool, and what had ended the
        steward before, if something had (the pool is closed all the same). The end of a ``with`` block does not
        raise it: then the pool is closed, the arrays stay valid, and it detaches when the last of them goes.
        """
        self._close(late=False)

    def _close(self, late: bool) -> None:
        try:
            self._end_background()
        finally:
            with self._lock:
                if self._segment is not None and not self._leave():
                    self._segment.close(late)
                    self._segment = None
                    self._stores.clear()
                    self._claims.clear()
                    del self._data
                self._closed = True

    def unlink(self, *, discard: bool = False) -> None:
        """Removes the pool's name. Processes that are attached keep working; memory goes with the last one.

        Raises UnsavedPages if files or stores have dirty pages in it, unless ``discard`` gives them up;
        SegmentNotFound; and SegmentReplaced if the name belongs to another pool by now.
        """
        self._require_writable("remove it")
        if self._uuid is not None:
            segment_file.refuse_another(self.path, self._uuid, self._owner)
        if not discard:
            refuse_loss(self.name, os.path.dirname(self.path))
        if self._segment is not None:
            self._segment.mark_unlinked()
        segment_file.unlink(self.path)

    def _warn_if_nameless(self) -> None:
        """Gives the warning PoolNameless, once, if the name was removed, and not by :meth:`unlink`."""
        status = self._seg.status()
        if self._told_nameless or status["links"] or status["unlinked"]:
            return
        self._told_nameless = True
        warnings.warn(
            PoolNameless(
                f"{self.path} was removed, or is another pool by now, while this process is attached to pool {self.name!r}: no other "
                "process finds it, and its pages are lost when the last one that is attached ends. flush() writes them; then close "
                "it and open it anew. systemd removes what users have in /dev/shm when they log out (RemoveIPC= in logind.conf)"
            ),
            stacklevel=4,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *exc: object) -> None:
        try:
            self._close(late=True)
        except BufferError:  # a write block, or another thread, is in it
            if kind is None:
                raise

    def __reduce__(self) -> tuple[Any, ...]:
        if self._closed or self._uuid is None:
            _ = self._seg  # raises PoolClosed; or learns which pool it is
        return type(self), (self.path, self._owner, self._uuid, self.mode)

    def __repr__(self) -> str:
        return f"<Pool {self.name!r}{' (closed)' if self._closed else ''}>"

    @property
    def name(self) -> str:
        """The pool's name: that of its file."""
        return os.path.basename(self.path)

    @property
    def data(self) -> Mapped:
        """The mapping that all views come from: a read-only numpy.memmap, uint8, shape (max_frames, page_size).

        Row f is frame f; the base of a page's array leads here. A row is stable only while its page is pinned, and
        reading one that is a hole makes the kernel allocate it: so look at rows, and do not copy,
        pickle or sum up the whole.
        """
        _ = self._seg
        return self._data

    @property
    def uuid(self) -> bytes:
        """What tells the pool from another that had its name before."""
        _ = self._seg
        return bytes(self._geometry["uuid"])

    @property
    def page_size(self) -> int:
        """Bytes of a page."""
        _ = self._seg
        return int(self._geometry["page_size"])

    @property
    def max_frames(self) -> int:
        """Frames that the segment has room for."""
        _ = self._seg
        return int(self._geometry["max_frames"])

    @property
    def budget_frames(self) -> int:
        """Frames that may have memory now."""
        return int(self._seg.status()["budget_frames"])

    def _require_writable(self, what: str) -> None:
        if self.mode == "r":
            raise PoolReadOnly(
                f"pool {self.name!r} is attached for reading only, which does not allow to {what}; attach it with mode='r+'"
            )
