"""Power failures: records the operations of a program on the files of a folder, and builds states that a crash could leave.

What a file system promises (POSIX, and the weakest that ALICE found in use: Pillai et al., "All File Systems Are Not
Created Equal", OSDI 2014; CrashMonkey: Mohan et al., OSDI 2018):

- A write, and a change of a file's size, is durable when an ``fsync`` or ``fdatasync`` of the file that began after it
  has returned. Before that it survives or not, and a write survives in part: each aligned block of 512 or 4096 bytes
  for itself, in any order. Where a write that extended a file is lost, the file may have its new size all the same,
  and zeros or old bytes there.
- Creating, renaming and removing a name is durable when an ``fsync`` of the folder has returned. Before that, a
  prefix of these operations survives, independent of the writes to the files.

:class:`Recorder` has a program's events in order, :func:`crash` builds one state of the folder from the first of them.
"""

import builtins
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from bufferpool.stores import base

FOLDER = 0  # the "file" that a sync of the folder names
SYNC_S = 0.0005  # what a sync takes at least, so that other threads write meanwhile


@dataclass(frozen=True)
class Write:
    file: int
    offset: int
    data: bytes


@dataclass(frozen=True)
class Resize:
    file: int
    size: int


@dataclass(frozen=True)
class Create:
    name: str
    file: int


@dataclass(frozen=True)
class Rename:
    name: str
    new: str


@dataclass(frozen=True)
class Remove:
    name: str


@dataclass(frozen=True)
class SyncBegun:
    file: int


@dataclass(frozen=True)
class Synced:
    file: int
    begun: int
    """The position of its SyncBegun: what came before that is durable now."""


@dataclass(frozen=True)
class Note:
    """What the program noted: it promised something, or began to do it."""

    what: str
    number: int


NameEvent = Create | Rename | Remove
Event = NameEvent | Write | Resize | SyncBegun | Synced | Note


@dataclass
class Trace:
    """The first content of a folder, all of it durable, and the operations on it since."""

    before: dict[str, bytes]
    events: list[Event] = field(default_factory=list)

    def noted(self, at: int, *what: str) -> int:
        """The highest number that was noted so before position ``at``; 0 if none was."""
        return max((e.number for e in self.events[:at] if isinstance(e, Note) and e.what in what), default=0)


class Recorder:
    """Records into ``trace`` the operations of this process on the files of a folder. Meanwhile Python's calls are replaced."""

    def __init__(self, folder: Path) -> None:
        self.folder = os.path.realpath(folder)
        self.trace = Trace(contents(folder))
        self._mutex = threading.RLock()
        self._files = {name: number for number, name in enumerate(sorted(self.trace.before), FOLDER + 1)}
        self._last = len(self._files)

    def note(self, what: str, number: int) -> None:
        self._add(Note(what, number))

    def _add(self, event: Event) -> int:
        with self._mutex:
            self.trace.events.append(event)
            return len(self.trace.events) - 1

    def _name(self, path: Any) -> str | None:
        """The name of a file in the folder; None for any other file."""
        path = os.readlink(f"/proc/self/fd/{path}") if isinstance(path, int) else os.path.abspath(os.fsdecode(path))
        folder, name = os.path.split(path)
        return name if folder == self.folder and not name.endswith(" (deleted)") else None

    def _file(self, path: Any) -> int | None:
        """The number of a file of the folder, or of the folder itself."""
        if isinstance(path, int) and os.readlink(f"/proc/self/fd/{path}") == self.folder:
            return FOLDER
        name = self._name(path)
        return None if name is None else self._files[name]

    # ---- the calls -----------------------------------------------------------------

    @contextmanager
    def recording(self) -> Iterator["Recorder"]:
        with pytest.MonkeyPatch.context() as patched:
            for name in ("pwrite", "pwritev", "ftruncate", "truncate", "rename", "unlink", "fsync", "fdatasync"):
                patched.setattr(os, name, self._wrapped(getattr(self, f"_{name.removeprefix('f')}"), getattr(os, name)))
            patched.setattr(os, "open", self._wrapped(self._os_open, os.open))
            patched.setattr(builtins, "open", self._wrapped(self._open, open))
            patched.setattr(base, "MANY_PAGES", 1 << 60)  # so that the core writes no pages by itself
            yield self

    def _wrapped(self, recorded: Callable[..., Any], real: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **kwargs: recorded(real, *args, **kwargs)

    def _pwrite(self, real: Callable[..., int], fd: int, data: Any, offset: int) -> int:
        return self._pwritev(lambda fd, buffers, offset: real(fd, buffers[0], offset), fd, [data], offset)

    def _pwritev(self, real: Callable[..., int], fd: int, buffers: list[Any], offset: int, flags: int = 0) -> int:
        with self._mutex:
            file = self._file(fd)
            if file is None:
                return real(fd, buffers, offset)
            copies = [bytes(buffer) for buffer in buffers]  # the program may change a page while it is written
            done = real(fd, copies, offset)
            self._add(Write(file, offset, b"".join(copies)[:done]))
            return done

    def _truncate(self, real: Callable[..., None], path: Any, size: int) -> None:
        with self._mutex:
            real(path, size)
            if (file := self._file(path)) is not None:
                self._add(Resize(file, size))

    def _rename(self, real: Callable[..., None], old: Any, new: Any) -> None:
        with self._mutex:
            real(old, new)
            before, after = self._name(old), self._name(new)
            if before is not None and after is not None:
                self._files[after] = self._files.pop(before)
                self._add(Rename(before, after))

    def _unlink(self, real: Callable[..., None], path: Any, **kwargs: Any) -> None:
        with self._mutex:
            real(path, **kwargs)
            if not kwargs and (name := self._name(path)) is not None:
                del self._files[name]
                self._add(Remove(name))

    def _sync(self, real: Callable[..., None], fd: int) -> None:
        with self._mutex:
            file = self._file(fd)
            begun = -1 if file is None else self._add(SyncBegun(file))
        if file is not None:
            time.sleep(SYNC_S)
        real(fd)
        if file is not None:
            self._add(Synced(file, begun))

    _datasync = _sync

    def _opened(self, path: Any, real: Callable[[], Any], creates: bool, empties: bool) -> Any:
        name = self._name(path) if creates else None
        if name is None:
            return real()
        with self._mutex:
            there = os.path.exists(path)
            opened = real()
            if not there:
                self._last += 1
                self._files[name] = self._last
                self._add(Create(name, self._last))
            elif empties:
                self._add(Resize(self._files[name], 0))
            return opened

    def _os_open(self, real: Callable[..., int], path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        creates, empties = bool(flags & os.O_CREAT), bool(flags & os.O_TRUNC)
        opened: int = self._opened(path, lambda: real(path, flags, *args, **kwargs), creates, empties)
        return opened

    def _open(self, real: Callable[..., Any], path: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        """A file that is opened so is only created or emptied; its content is written by descriptor."""
        return self._opened(path, lambda: real(path, mode, *args, **kwargs), mode[0] in "wax", mode[0] == "w")


# ---- what is left --------------------------------------------------------------------

KEPT, DROPPED, SOME, TORN_512, TORN_4096 = "kept", "dropped", "some kept", "torn at 512 bytes", "torn at 4096 bytes"
FATES = (KEPT, DROPPED, SOME, TORN_512, TORN_4096)
_BLOCKS = {TORN_512: 512, TORN_4096: 4096}


def crash(trace: Trace, at: int, fate: str, rng: random.Random) -> dict[str, bytes]:
    """The content of the folder after a power failure before event ``at``: name -> content.

    ``fate``: what becomes of writes that were not synced. Of the operations on names that were not synced, a prefix
    of random length survives.
    """
    events = trace.events[:at]
    durable = _durable(events)
    changes = [(position, event) for position, event in enumerate(events) if isinstance(event, NameEvent)]
    least = sum(position < durable.get(FOLDER, 0) for position, _ in changes)
    survive = rng.choice([least, len(changes), rng.randint(least, len(changes))])
    names = _names(trace, [event for _, event in changes[:survive]])
    files = {file: bytearray() for file in names.values()}
    for file, name in enumerate(sorted(trace.before), FOLDER + 1):
        if file in files:
            files[file] += trace.before[name]
    odds = rng.choice([0.1, 0.5, 0.9])
    for position, event in enumerate(events):
        if isinstance(event, (Write, Resize)) and event.file in files:
            survives = position < durable.get(event.file, 0) or fate == KEPT
            if survives or fate != DROPPED:
                _apply(event, files[event.file], fate if not survives else KEPT, odds, rng)
    return {name: bytes(files[file]) for name, file in names.items()}


def _durable(events: list[Event]) -> dict[int, int]:
    """For each file, the position before which everything is durable."""
    durable: dict[int, int] = {}
    for event in events:
        if isinstance(event, Synced):
            durable[event.file] = max(durable.get(event.file, 0), event.begun)
    return durable


def everything(trace: Trace) -> dict[str, bytes]:
    """The content of the folder after all events, without a failure."""
    last = Trace(trace.before, [*trace.events, SyncBegun(FOLDER), Synced(FOLDER, len(trace.events))])
    return crash(last, len(last.events), KEPT, random.Random())


def _names(trace: Trace, changes: list[NameEvent]) -> dict[str, int]:
    """The names after these operations, and their files."""
    names = {name: file for file, name in enumerate(sorted(trace.before), FOLDER + 1)}
    for event in changes:
        if isinstance(event, Create):
            names[event.name] = event.file
        elif isinstance(event, Rename):
            names[event.new] = names.pop(event.name)
        else:
            del names[event.name]
    return names


def _apply(event: Write | Resize, content: bytearray, fate: str, odds: float, rng: random.Random) -> None:
    """Applies the surviving parts of a change to a file."""
    if isinstance(event, Resize):
        if fate == KEPT or rng.random() < odds:
            _resize(content, event.size)
        return
    end = event.offset + len(event.data)
    block = _BLOCKS.get(fate, end)
    first = event.offset // block * block
    for start in range(first, end, block):
        if fate == KEPT or rng.random() < odds:
            begin, stop = max(start, event.offset), min(start + block, end)
            if len(content) < begin:
                _resize(content, begin)
            content[begin:stop] = event.data[begin - event.offset : stop - event.offset]
    if len(content) < end and rng.random() < 0.5:  # the size survived, what was written did not
        lost = end - len(content)
        _resize(content, end)
        if rng.random() < 0.3:
            content[end - lost :] = event.data[:lost].ljust(lost, b"\xa5")  # old bytes, of another place


def _resize(content: bytearray, size: int) -> None:
    del content[size:]
    content.extend(bytes(size - len(content)))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def put_back(files: dict[str, bytes], folder: Path) -> None:
    """Makes a folder with these files, and nothing else in it."""
    folder.mkdir(exist_ok=True)
    for path in folder.iterdir():
        if path.name not in files:
            path.unlink()
    for name, content in files.items():
        (folder / name).write_bytes(content)
