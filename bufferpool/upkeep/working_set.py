"""Saves and loads the working set, so that a new pool is warm after a restart of the machine.

PostgreSQL's autoprewarm and InnoDB's buffer pool dump do the same: page numbers are
written, not pages. The file is a numpy ``.npz``: ``spaces`` (JSON: name, kind and path of each),
``space`` (uint16, an index into it) and ``page`` (uint32), in order of heat, hottest first;
``hot`` (one number) of them were hot. That is six bytes a page before compression.
"""

import contextlib
import errno
import fcntl
import io
import json
import os
import re
import stat
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from bufferpool._core import MAX_SPACES
from bufferpool._locks import Event
from bufferpool.client.client import Client, Record
from bufferpool.client.threads import Worker
from bufferpool.errors import BufferPoolError, WorkingSetError
from bufferpool.figures.names import KERNEL_CACHE, FrameState, Kind
from bufferpool.figures.stats import read_frames, read_summary
from bufferpool.machine.descriptor import opened
from bufferpool.spaces.directory import CHECKSUM, visible
from bufferpool.spaces.space import Space
from bufferpool.stores.base import name_of_file, sync_directory

FORMAT = 1
CHUNK_PAGES = 128
_HEAD = b"PK\x03\x04"  # a .npz file is a zip file
_KEPT = (Kind.FILE, Kind.DERIVED, Kind.STORE)


def save_working_set(client: Client, path: str | os.PathLike[str]) -> int:
    """See :meth:`Pool.save_working_set`."""
    with client.seg.under_way("save"):
        return _save(client, path)


def _save(client: Client, path: str | os.PathLike[str]) -> int:
    records = [r for r in client.seg.spaces() if r["kind"] in _KEPT]
    frames = read_frames(client)
    kept = (frames["state"] == FrameState.LIVE) & np.isin(frames["space"], [r["index"] for r in records])
    frames = frames[kept]
    frames = frames[np.lexsort((frames["idle_s"], ~frames["hot"]))]
    number = np.zeros(MAX_SPACES, np.uint16)
    for i, record in enumerate(records):
        number[record["index"]] = i
    spaces = [
        {"name": r["name"], "kind": Kind(r["kind"]).name, "path": r["path"], "flags": r["flags"]} for r in records
    ]
    image = io.BytesIO()
    np.savez_compressed(
        image,
        format=np.uint32(FORMAT),
        page_size=np.uint32(client.page_size),
        spaces=np.frombuffer(json.dumps(spaces).encode(), np.uint8),
        space=number[frames["space"]],
        page=frames["page_no"].astype(np.uint32),
        hot=np.uint32(np.count_nonzero(frames["hot"])),
    )
    _replace(_replaceable(path), image.getbuffer())
    return len(frames)


def _replaceable(path: str | os.PathLike[str]) -> str:
    """The path, without symbolic links, of a working set that may be replaced. Raises WorkingSetError for any other file."""
    where = name_of_file(path)
    try:
        file = opened(where, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except (FileNotFoundError, PermissionError):
        return where  # a file that may not be read is replaced: the folder's permissions count
    with file:
        fd = file.fileno()
        about = os.fstat(fd)
        if stat.S_ISDIR(about.st_mode) or (stat.S_ISREG(about.st_mode) and os.pread(fd, len(_HEAD), 0) in (b"", _HEAD)):
            return where
    raise WorkingSetError(
        f"{path} exists and is no working set, so it is not replaced; name another file, or remove it first"
    )


def _replace(where: str, image: memoryview) -> None:
    """Replaces a file atomically: a reader finds the old file or the new one, complete."""
    # 1. Write a draft beside it. First remove drafts of killed savers, which may fill the disk.
    with _draft(where) as file:
        try:
            _clear(where)
            file.write(image)
            file.flush()
            os.fsync(file.fileno())
            # 2. Rename it, and sync the folder.
            os.replace(file.name, where)
            sync_directory(os.path.dirname(os.path.abspath(where)))
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(file.name)
            raise


def _draft(where: str) -> BinaryIO:
    """Makes a file with a unique name in the same folder, locked while it is open."""
    for _ in range(16):
        file = open(f"{where}.{os.urandom(4).hex()}.part", "xb")  # noqa: SIM115 - the caller closes it
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.exists(file.name):
                return file
        file.close()  # another saver took it for a leftover before it was locked, and removes it
    raise OSError(errno.EAGAIN, "other processes remove every draft of it", where)


def _clear(where: str) -> None:
    """Removes the drafts that are not locked: their savers were killed."""
    folder, name = os.path.split(os.path.abspath(where))
    draft = re.compile(re.escape(name) + r"\.[0-9a-f]{8}\.part")
    with contextlib.suppress(PermissionError):  # a folder that cannot be listed keeps them
        for found in filter(draft.fullmatch, os.listdir(folder)):
            path = os.path.join(folder, found)
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            # A draft that is being written, was removed already, or may not be opened, is left.
            with contextlib.suppress(OSError), opened(path, flags) as file:
                fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.unlink(path)


@dataclass(frozen=True)
class WorkingSet:
    """A saved working set."""

    page_size: int
    spaces: list[dict[str, Any]]
    space: npt.NDArray[np.uint16]
    page: npt.NDArray[np.uint32]
    hot: int


def read_working_set(path: str | os.PathLike[str]) -> WorkingSet:
    """Reads and checks the file. Raises FileNotFoundError, WorkingSetError."""
    with (
        opened(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC) as owner,
        open(owner.fileno(), "rb", closefd=False) as file,
    ):
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):  # a device or a pipe may have no end
            raise WorkingSetError(f"{path} is no working set: it is not a regular file")
        head = file.read(len(_HEAD))
        if head != _HEAD:
            raise WorkingSetError(f"{path} is no working set, or is damaged; remove it, and save it anew")
        data = io.BytesIO(head + file.read())
    try:
        with np.load(data, allow_pickle=False) as found:
            if int(found["format"]) != FORMAT:
                raise WorkingSetError(f"{path} has format {int(found['format'])}, not {FORMAT}; save it anew")
            spaces = json.loads(found["spaces"].tobytes())
            saved = WorkingSet(
                int(found["page_size"]), spaces, found["space"], found["page"].astype(np.uint32), int(found["hot"])
            )
        known = [Kind[s["kind"]] in _KEPT and s["name"] + s["path"] and s["flags"] >= 0 for s in spaces]
        sound = saved.space.shape == saved.page.shape and saved.space.ndim == 1 and 0 <= saved.hot <= len(saved.page)
        sound = sound and all(known) and saved.space.dtype == np.uint16
        if not sound or (len(saved.space) and int(saved.space.max()) >= len(known)):
            raise WorkingSetError(f"{path} contradicts itself; remove it, and save the working set anew")
    except WorkingSetError:
        raise
    except Exception as error:  # the readers of zip, zlib, npy and JSON raise many types for a damaged file
        raise WorkingSetError(
            f"{path} is no working set, or is damaged ({error!r}); remove it, and save it anew"
        ) from error
    return saved


@dataclass
class WarmUp:
    """A working set that is being loaded, in a thread of its own."""

    total: int = 0
    """Pages of the working set that fit into the pool."""
    done: int = 0
    """Pages that have been handled so far."""
    loaded: int = 0
    """Those of them that were read. The others were resident already, do not exist any more, or were skipped."""
    skipped: dict[str, str] = field(default_factory=dict)
    """Spaces whose pages could not be loaded, and why."""
    error: BaseException | None = None
    """What ended it early, if something did."""
    _stop: Event = field(default_factory=Event)
    _thread: Worker | None = None

    @property
    def finished(self) -> bool:
        """Whether it has ended. In a forked child it has, because the thread is the parent's."""
        return self._thread is None or self._thread.ended

    def cancel(self) -> None:
        """Ends it after the pages that are being read."""
        self._stop.set()

    def join(self, timeout: float | None = None) -> None:
        """Waits until it has ended in any way, for ``timeout`` seconds at most."""
        if self._thread is not None and not self._thread.is_current():
            self._thread.join(timeout)

    def wait(self, timeout: float | None = None) -> bool:
        """Waits until it has ended, for ``timeout`` seconds at most; whether it has.

        Raises what ended it early, if something did.
        """
        if self._thread is not None:
            self._thread.join(timeout)
        if self.error is not None:
            raise self.error
        return self.finished


def load_working_set(
    client: Client, path: str | os.PathLike[str], spaces: Iterable[Space], open_record: Callable[[Record], Space]
) -> WarmUp:
    """See :meth:`Pool.load_working_set`. ``open_record`` opens a space by its record in the directory."""
    saved = read_working_set(path)
    if saved.page_size != client.page_size:
        raise WorkingSetError(f"{path} is of pages of {saved.page_size} bytes, the pool's have {client.page_size}")
    # 1. Choose the hottest pages that fit, in file order.
    room = max(0, client.budget_frames - read_summary(client).frames.live)
    number, page = saved.space[:room].astype(np.int64), saved.page[:room].astype(np.int64)
    order = np.lexsort((page, number))
    work = WarmUp(total=len(order))
    handles = {space.name: space for space in spaces}
    # 2. Open the spaces here, so that the caller gets errors in the arguments.
    opened: dict[int, Space] = {}
    for i, about in enumerate(saved.spaces):
        try:
            opened[i] = _open(client, about, open_record) if about["name"] not in handles else handles[about["name"]]
        except (BufferPoolError, OSError) as error:
            work.skipped[about["name"]] = str(error)

    def run() -> None:
        try:
            for i in range(len(saved.spaces)):
                mine = order[number[order] == i]
                if i in opened:
                    _load(work, opened[i], page[mine], mine < saved.hot)
                else:
                    work.done += len(mine)
        except BaseException as error:  # noqa: BLE001 - not swallowed: wait() raises it
            work.error = error

    work._thread = Worker(run)
    return work


def _open(client: Client, about: dict[str, Any], open_record: Callable[[Record], Space]) -> Space:
    if about["kind"] != "FILE":
        raise WorkingSetError(f"{about['name']!r} has a loader or a store of its own: pass its handle in spaces=")
    record = visible(client, about["name"], private=False)
    if record is None or record["owner"]:
        flags = about["flags"] & (CHECKSUM | KERNEL_CACHE)  # without WRITABLE: opened for reading
        record = {"name": about["name"], "kind": Kind.FILE, "path": about["path"], "flags": flags}
    elif record["path"] != about["path"]:
        raise WorkingSetError(f"{about['name']!r} is another space now: {record['path'] or 'not a file'}")
    return open_record(record)


def _load(work: WarmUp, space: Space, pages: npt.NDArray[np.int64], hot: npt.NDArray[np.bool_]) -> None:
    """Loads the pages of one space in chunks. Hot pages are referenced once more, so that they are kept longer."""
    for at in range(0, len(pages), CHUNK_PAGES):
        chunk, warm = pages[at : at + CHUNK_PAGES], hot[at : at + CHUNK_PAGES]
        if work._stop.is_set():
            return
        there = chunk < len(space)
        try:
            work.loaded += space.prefetch(chunk[there])
            ids = chunk[there & warm]
            if len(ids):
                with space.pin_many(ids):
                    pass
        except BufferPoolError as error:
            work.skipped[space.name] = str(error)
            work.done += len(pages) - at
            return
        work.done += len(chunk)
