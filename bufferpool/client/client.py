"""The client: one process's attachment to a segment. Attaching, detaching, and what the other rooms use."""

import _thread
import fcntl
import io
import math
import mmap
import os
import time
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import starmap
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np

from bufferpool import _core
from bufferpool._locks import Lock
from bufferpool.client import segment_file
from bufferpool.client.jobs import Jobs
from bufferpool.errors import (
    BufferPoolError,
    PoolClosed,
    PoolExhausted,
    PoolNameless,
    PoolReadOnly,
    SegmentNotFound,
    SegmentReplaced,
    SpaceNotFound,
    WaitTimeout,
)
from bufferpool.figures.events import NewEvent, post
from bufferpool.figures.names import EventKind, EventReason, reason_number
from bufferpool.figures.stats import Inspectable, read_unsaved
from bufferpool.stores.base import FileStore, Store

Mapped = np.memmap[Any, np.dtype[np.uint8]]
Record = dict[str, Any]
"""One space of the segment's directory, as the core reads it."""

_attached: "weakref.WeakSet[Client]" = weakref.WeakSet()
_latest: "weakref.WeakValueDictionary[tuple[str, bytes | None], Client]" = weakref.WeakValueDictionary()
"""By segment: the client whose attachment was shared last. A new client tries to share this one's attachment first."""
_nobody: "weakref.WeakSet[Client]" = weakref.WeakSet()  # the sharers of a client that is not attached
_holding: "weakref.WeakSet[io.FileIO]" = weakref.WeakSet()  # open files with the lock of the page sizes, or waiting
_dropped: "set[Client]" = set()  # clients of segments without a name, whose pages are being saved
LOOK_S = 0.002  # between two attempts to get that lock
_sharing = Lock()  # held while a client joins the attachment of another, or leaves it
_of_copies = Lock()  # the lock of all unpickled clients, because a lock of its own would make each copy dearer


def _release_in_child() -> None:
    """A forked child does not hold the locks of its parent's threads."""
    for file in list(_holding):
        file.close()


os.register_at_fork(after_in_child=_release_in_child)


def _try_lock(file: io.FileIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _room_for_data(path: str, geometry: dict[str, Any]) -> Mapped:
    """An array, shape (max_frames, page_size), uint8, over reserved addresses, to which the core then maps the data area.

    numpy.memmap would map the file at once, and under mlockall(MCL_FUTURE) the kernel would allocate all of it, holes
    too. Its mmap would also keep a descriptor, which other code might close and reuse.
    """
    shape = (geometry["room_frames"], geometry["page_size"])
    size = shape[0] * shape[1]
    more = segment_file.HUGE_BYTES if geometry["huge_pages"] else 0  # for an address that is aligned to huge pages
    try:
        room = mmap.mmap(-1, size + more, mmap.MAP_PRIVATE, 0)
    except OSError as error:
        _core.raise_unmapped(error.errno or 0)
    # The array's export keeps `room` from being closed.
    start = -np.frombuffer(room, np.uint8).ctypes.data % more if more else 0
    data: Any = np.frombuffer(room, np.uint8, size, start).reshape(shape).view(np.memmap)
    data._mmap, data.mode, data.offset, data.filename = room, "r", geometry["data_at"], os.path.abspath(path)
    return cast(Mapped, data)


def _program_name() -> str:
    """The name of this program, shown beside its client number; "" if /proc does not give it."""
    try:
        return Path("/proc/self/comm").read_text(errors="replace").strip()
    except OSError:
        return ""


def mark_ending() -> None:
    """Tells every attached pool that this process ends in good order: if it cannot detach, because a store hangs, its end is no death."""
    for client in list(_attached):
        if client._segment is not None:
            client._segment.mark_ending()


def _has_no_name(client: "Client | None") -> bool:
    """Whether the pages of a segment end with its last process, and nobody has said that they may be lost."""
    segment = None if client is None else client.attached
    try:
        status = segment and segment.status()
    except BufferPoolError:  # a forked child that has got no client, for example: it can save nothing
        return False
    return bool(status and not status["links"] and not status["may_lose"])


def _close_dropped(client: "Client") -> None:
    """Closes a client whose pool nothing refers to any more.

    The garbage collector may have closed the files of its stores already: they are opened again.
    """
    for index, (_, store) in list(client.stores.items()):
        if isinstance(store, FileStore):
            del client.stores[index]
    client.claims.clear()
    client.new_claims.clear()
    try:
        client.close(late=True)
    except Exception as error:  # noqa: BLE001 - nobody is there who could catch it
        tell_unsaved(client, error)  # it remains, and the end of the process tries again
    else:
        _dropped.discard(client)


def close_dropped() -> None:
    """Closes the clients whose pools nothing refers to any more, at the end of the process."""
    for client in list(_dropped):
        _close_dropped(client)


def tell_unsaved(client: "Client", error: Exception) -> None:
    """Gives the warning PoolNameless: the dirty pages of a segment without a name cannot be saved, because of the ``error``."""
    text = f"pool {client.name!r} has no name any more, and its dirty pages cannot be written before this process leaves it: {error}"
    warnings.warn(PoolNameless(text), stacklevel=3)


class Client(Inspectable):
    """An attachment to a segment. It attaches when ``seg`` is first read.

    The core calls ``make_room(client, what, pinned, dirty, in_use, error, left, budget)`` when no frame is free: it
    frees some, or raises. It calls the same, with ``what`` "memory", before a miss in a pool of several page sizes.

    It calls ``save(client)`` before this process leaves the segment: where that raises, the client remains attached.

    Unpickled clients share the attachment that their process already has to the same segment. Each keeps its own mode.
    """

    def __init__(
        self,
        path: str,
        trusted_uid: int | None,
        uuid: bytes | None,
        mode: Literal["r", "r+"] = "r+",
        *,
        make_room: Callable[..., None],
        save: "Callable[[Client], None]",
    ) -> None:
        self._path = path
        self.mode: Literal["r", "r+"] = mode
        self.trusted_uid = trusted_uid
        """The user that the segment must belong to; None: the user of this process."""
        self.known_uuid = uuid
        """The uuid of the segment, once it is known."""
        self.closed = False
        self.stores: dict[int, tuple[int, Store]] = {}
        """The stores by which this process flushes spaces: slot -> (generation of the space, store)."""
        self.claims: dict[tuple[int, int], FileStore] = {}
        """The claims on files that this process writes: (device, inode) -> claim (spaces/claim.py)."""
        self.new_claims: set[tuple[int, int]] = set()
        """Those of the claims that :func:`bufferpool.spaces.claim.drop_unused` has not looked at yet."""
        self.bound: dict[tuple[object, ...], Any] = {}
        """How this process has bound spaces, for the next copies of them (spaces/directory.py)."""
        self.removals_seen = -1
        """How many spaces had been removed from the pool when the stores and claims were last looked at."""
        self.log_sync: Callable[[int], int | None] | None = None
        """See :attr:`bufferpool.Pool.log_sync`."""
        self._make_room, self._save = make_room, save
        self._segment: _core.Segment | None = None
        self._data: Mapped
        self._geometry: dict[str, Any]
        self._own_jobs: Jobs | None = None
        self._warned_nameless = False
        self._lock = Lock() if uuid is None else _of_copies
        self._unpickled = uuid is not None
        self._others: dict[int, Client] = {}  # by page size
        self._home: Client | None = None
        self._sharers = _nobody  # all clients of this attachment

    @property
    def path(self) -> str:
        """The path of the pool's segment."""
        return self._path

    # ---- the pool's other page sizes ---------------------------------------------------

    def others(self) -> list["Client"]:
        """The clients of the pool's other page sizes, by size. Most pools have none, which one load shows.

        One whose segment was removed by hand is not among them (:func:`bufferpool.upkeep.page_sizes.check` reports it).
        """
        sizes = segment_file.sizes_in(self.seg.page_sizes()[0])
        return [found for size in sizes if (found := self.other(size)) is not None]

    def other(self, page_size: int) -> "Client | None":
        """The client of another page size; None if there is no segment of it."""
        found = self._others.get(page_size)
        if found is not None and not found.closed and not found.was_removed_from(self):
            return found
        path = segment_file.path_of_size(self.path, page_size)
        while True:
            try:
                about = segment_file.look_at(path, self.trusted_uid)
            except SegmentNotFound:
                return None
            if about["home"] != self.known_uuid:
                return None
            found = Client(path, self.trusted_uid, about["uuid"], self.mode, make_room=self._make_room, save=self._save)
            found._home, found.log_sync = self, self.log_sync
            # Perhaps another process has removed the size since the look, and made it again: then it is looked at again.
            with suppress(SegmentNotFound, SegmentReplaced):
                _ = found.seg
                self._others[page_size] = found
                return found

    def was_removed_from(self, home: "Client") -> bool:
        """Whether this page size was removed from its pool; with a pool that is removed, its sizes remain to those attached."""
        return bool(self.seg.status()["unlinked"] and not home.seg.status()["unlinked"])

    @contextmanager
    def lock_sizes(self, timeout: float) -> Iterator[None]:
        """Holds the lock of the pool's page sizes: of the parts of the budget, and of the names of new spaces.

        It is a lock of an open file description (flock), which the kernel releases when its process dies, and it is taken before all
        locks of the core. Raises WaitTimeout.
        """
        end = time.monotonic() + timeout
        with next(map(io.FileIO, starmap(self.seg.reopen, ((),)), ("rb",))) as file:  # in one call: see `opened`
            _holding.add(file)
            while not _try_lock(file):
                if time.monotonic() >= end:
                    raise WaitTimeout(
                        f"another process divides the budget of pool {self.name!r} among its page sizes, or opens a space of one, for "
                        "longer than the timeout: it is stopped perhaps (pool.clients() lists the clients); try again"
                    )
                time.sleep(LOOK_S)
            try:
                yield
            finally:  # a child that some library forks without Python has the description, too
                fcntl.flock(file, fcntl.LOCK_UN)

    def forget(self, page_size: int) -> None:
        """Drops the client of a page size that was removed. Its attachment ends when nothing uses it any more."""
        self._others.pop(page_size, None)

    @property
    def pool_uuid(self) -> bytes:
        """The uuid of the pool, which all of its page sizes have in common."""
        home = bytes(self.geometry["home"])
        return home if any(home) else self.uuid

    @property
    def is_part(self) -> bool:
        """Whether the segment is another page size of a pool, and not the pool's own."""
        return any(self.geometry["home"])

    def home(self) -> "Client":
        """The client of the pool itself, of which this segment is another page size; this one, if it is the pool's own."""
        if not self.is_part:
            return self
        if self._home is None or self._home.closed:
            path = segment_file.home_of_size(self.path)
            self._home = Client(
                path, self.trusted_uid, self.pool_uuid, self.mode, make_room=self._make_room, save=self._save
            )
        return self._home

    # ---- attaching, and leaving -----------------------------------------------------

    @property
    def seg(self) -> _core.Segment:
        """The attached segment."""
        seg = self._segment
        if seg is None:
            seg = self._connect()
        return seg

    @property
    def attached(self) -> _core.Segment | None:
        """The attached segment; None if this client is not attached."""
        return self._segment

    def _connect(self) -> _core.Segment:
        with self._lock:
            if self._segment is not None:
                return self._segment
            if self.closed:
                raise PoolClosed(f"pool {self.name!r} is closed; attach it again")
            if not self._unpickled:
                return self._attach()
            with _sharing:  # copies that several threads use first at the same time share one attachment
                return self._join() or self._attach()

    def _attach(self) -> _core.Segment:
        """Makes a new attachment to the segment."""
        with self._lock:
            with segment_file.open_trusted(self.path, self.trusted_uid) as file:
                fd = file.fileno()
                with segment_file.named(self.path):
                    uuid = _core.geometry(fd)["uuid"]
                if self.known_uuid not in (None, uuid):
                    raise SegmentReplaced(
                        f"{self.path} is not the pool that was pickled; that pool was removed and another one created"
                    )
                sharers = self._sharers = weakref.WeakSet((self,))

                def make_room(*why: Any) -> None:
                    client = next((one for one in list(sharers) if one.attached is not None), None)
                    if client is None and why[0] == "memory":
                        return
                    if client is None:
                        raise PoolExhausted("no frame is free, and the pool is being closed")
                    client._make_room(client, *why)

                with segment_file.named(self.path):
                    seg = _core.Segment(fd, make_room, _program_name())
                geometry = seg.geometry()
            self._geometry, self.known_uuid = geometry, uuid
            _attached.add(self)
            # The last step: from here on a forked child inherits the attachment.
            seg.give_to(self, _room_for_data(self.path, geometry))
            return seg

    def _join(self) -> _core.Segment | None:
        """Shares this process's existing attachment to the segment; returns None if it has none. Needs ``_sharing``.

        Otherwise every unpickled copy would take a client slot and a mapping, and executors unpickle one for each
        task.
        """
        path, uuid = self._path, self.known_uuid
        latest = _latest.get((path, uuid))
        for other in (latest,) if latest is not None and latest._segment is not None else list(_attached):
            segment = other._segment
            if segment is None or other.known_uuid != uuid or other._path != path or segment.is_closed():
                continue
            self._geometry, self._data, self._sharers = other._geometry, other._data, other._sharers
            self.stores, self.claims, self.new_claims = other.stores, other.claims, other.new_claims
            self.bound = other.bound
            self._sharers.add(self)
            _attached.add(self)
            if other is not latest:
                _latest[path, uuid] = other
            self._segment = segment
            return segment
        return None

    def _is_shared(self) -> bool:
        """Whether other clients of this process have this attachment, too. Needs ``_sharing``."""
        return any(other is not self and other._segment is not None for other in list(self._sharers))

    def _leave(self) -> bool:
        """Leaves an attachment that other clients share. Returns False if no other client shares it."""
        with _sharing:
            if not self._is_shared():
                return False
            # If a signal's handler raises in between, the others keep their attachment.
            self.closed = True
            self._segment = None
            self._sharers.discard(self)
            self._sharers, self.stores, self.claims, self.new_claims = _nobody, {}, {}, set()
            self.bound = {}
            del self._data
            return True

    def close(self, late: bool, discard: bool = False) -> None:
        """Detaches, unless other clients share the attachment. ``late``: if arrays over pages exist, the last one detaches.

        ``discard``: the dirty pages of a segment without a name may be lost. Raises BufferError if arrays over pages exist and ``late``
        is false, and what ``save`` raises.
        """
        others = list(self._others.values())
        if others:
            self._prepare_close([*others, self], late, discard)
        for other in others:
            other.close(late, discard)
        self._others = {}
        while not self._detach(late, discard):
            self._save(self)  # without a lock, because a store may hang
            discard = True

    def _prepare_close(self, clients: "list[Client]", late: bool, discard: bool) -> None:
        """Raises what would refuse the close of one of a pool's page sizes before any is closed, and saves the pages of all of them."""
        with _sharing:
            leaving = [
                (client, client._segment)
                for client in clients
                if client._segment is not None and not client._is_shared()
            ]
        for _, segment in leaving:
            segment.close(late, True)
        failed: Exception | None = None
        for client, _ in leaving:
            try:
                if not discard and client.unsaved():
                    self._save(client)
            except Exception as error:  # noqa: BLE001 - of a store or the log's hook; raised when all others have saved theirs
                failed = failed or error
        if failed is not None:
            raise failed

    def _detach(self, late: bool, discard: bool) -> bool:
        """Returns False, and does nothing, if pages are to be saved before."""
        with self._lock:
            segment = self._segment
            if segment is not None and not self._leave():
                if not discard and self.unsaved():
                    return False
                try:
                    segment.close(late)
                finally:
                    if segment.is_closed():  # also if a signal's handler has raised meanwhile
                        self._forget()
            self.closed = True
            return True

    def unsaved(self) -> dict[str, int]:
        """The dirty pages of files and stores that end with the last process: their number, by the name of the space.

        {} if the segment, or its pool, has a name, or if somebody has said that the pages may be lost.
        """
        return read_unsaved(self) if any(map(_has_no_name, (self, self._home))) else {}

    def __del__(self) -> None:
        """A client that nothing refers to any more detaches; not before its pages are saved, if they would be lost."""
        if self.__dict__.get("closed", True) or self._segment is None or len(self._sharers) > (self in self._sharers):
            return  # it is not attached, or other clients have the attachment
        if self.unsaved():
            _attached.add(self)  # the collector has taken it out
            self._sharers.add(self)
            _dropped.add(self)
            with suppress(RuntimeError, MemoryError):  # no thread: it is closed at the end of the process
                _thread.start_new_thread(_close_dropped, (self,))  # a finalizer must not wait

    def abandon_jobs(self) -> None:
        """Gives up the jobs that run now, of all page sizes: close() does not wait for them."""
        for client in (self, *self._others.values()):
            client.jobs.abandon()

    def _forget(self) -> None:
        """Ends this client, whose attachment has ended."""
        self.closed = True
        self._segment = None
        self.stores.clear()
        self.claims.clear()
        self.bound.clear()
        del self._data

    def warn_if_nameless(self) -> None:
        """Gives the warning PoolNameless, once, if the pool's name was removed by other means than ``Pool.unlink``."""
        status = self.seg.status()
        if self._warned_nameless or status["links"] or status["unlinked"]:
            return
        self._warned_nameless = True
        warnings.warn(
            PoolNameless(
                f"{self.path} was removed, or is another pool now, while this process is attached to pool {self.name!r}: no other "
                "process finds it, and its pages are lost when the last attached process ends. flush() writes them; then close "
                "it and open it anew. systemd removes what users have in /dev/shm when they log out (RemoveIPC= in logind.conf)"
            ),
            stacklevel=4,
        )

    def require_writable(self, what: str) -> None:
        """Raises PoolReadOnly if the pool is attached for reading; ``what``: the refused operation, as a verb."""
        if self.mode == "r":
            raise PoolReadOnly(
                f"pool {self.name!r} is attached for reading only, which does not allow to {what}; attach it with mode='r+'"
            )

    # ---- the pool's figures ------------------------------------------------------------

    @property
    def geometry(self) -> dict[str, Any]:
        """The sizes and limits that were fixed when the segment was created."""
        _ = self.seg
        return self._geometry

    @property
    def data(self) -> Mapped:
        """The pages of all frames; see :attr:`bufferpool.Pool.data`."""
        _ = self.seg
        return self._data

    @property
    def room_frames(self) -> int:
        """Frames that the segment has room for."""
        return int(self.geometry["room_frames"])

    @property
    def budget_frames(self) -> int:
        """The budget in frames."""
        return self.seg.budget_frames()

    @property
    def durable_lsn(self) -> int:
        """The LSN up to which the log is durable."""
        return self.seg.durable_lsn()

    @property
    def jobs(self) -> Jobs:
        """The jobs of this process: work in threads, because it may hang. A forked child starts without jobs."""
        jobs = self._own_jobs
        if jobs is None or jobs.pid != os.getpid():
            with self._lock:
                jobs = self._own_jobs
                if jobs is None or jobs.pid != os.getpid():
                    jobs = self._own_jobs = Jobs()
        return jobs

    # ---- spaces ----------------------------------------------------------------------

    def record(self, index: int) -> Record:
        """The record of the space in a slot of the directory. Raises SpaceNotFound."""
        record = self.seg.space(index)
        if record is not None:
            return record
        raise SpaceNotFound("the space has been removed from its pool; open it again")

    def current(self, record: Record) -> Record | None:
        """The present record of a space; None if the space has been removed."""
        now = self.seg.space(record["index"])
        return now if now is not None and now["generation"] == record["generation"] else None

    def dirty_pages(self, record: Record) -> int:
        """The present number of dirty pages of a space."""
        return self.seg.dirty_range(record["first_entry"], record["max_pages"])[0]

    # ---- memory, and what is recorded ---------------------------------------------------

    def give_back(self, frames: int, reason: str, timeout: float = math.inf) -> int:
        """Gives up to ``frames`` free frames back to the kernel, within ``timeout`` seconds; returns the bytes."""
        if not frames:
            return 0
        done, *_, refused = self.seg.shrink(frames, reason_number(reason), False, timeout)
        if refused:
            self.post_refused(refused)
        return int(done) * self.page_size

    def give_back_objects(self, reason: str, size: int = 2**62, timeout: float = math.inf) -> int:
        """Gives memory back that caches have and no value of them uses: up to about ``size`` bytes; returns the bytes."""
        return self.seg.release_objects(size, reason_number(reason), timeout)

    def post(self, event: NewEvent) -> None:
        """Records an event."""
        post(self.seg, event)

    def post_refused(self, error: int) -> None:
        """Records the event that the kernel refused to take memory back; ``error`` is the errno."""
        self.post(NewEvent(EventKind.CANNOT_SHRINK, EventReason.KERNEL, value=error))
