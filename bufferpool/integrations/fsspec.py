"""A file system for fsspec whose blocks all processes of the machine share: ``bufferpool::s3://bucket/key``.

It wraps any other file system of fsspec ("the target"). Reads are served from the blocks of remote files in a pool (``blocks.py``).
Absent blocks are fetched from the target: one process fetches them for all processes, and those of one call together. All other
calls are passed to the target. The first process creates the pool, and the pool is kept when all processes have ended.

Importing this module also registers a cache type, for files of any file system: ``fs.open(path, cache_type="bufferpool")``.
"""

from __future__ import annotations

import asyncio
import errno
import math
import os
import time
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime
from functools import partial
from glob import has_magic
from itertools import chain
from typing import Any, ClassVar, cast

from bufferpool._core import CLIENTS_LIMIT
from bufferpool._locks import Lock
from bufferpool.errors import PoolMismatch, RemoteChanged
from bufferpool.integrations.blocks import Block, Blocks, Range
from bufferpool.integrations.extras import needs
from bufferpool.integrations.links import Window
from bufferpool.integrations.origins import (
    Early,
    Fetches,
    RemoteFile,
    key_of_any_version,
    link_of_file,
    of_this_process,
)
from bufferpool.pool import Pool
from bufferpool.units import flag_of, format_size, parse_size, seconds_of
from bufferpool.upkeep.steward import Settings

with needs("'bufferpool[fsspec]'"):
    from fsspec import filesystem, get_filesystem_class
    from fsspec.asyn import AbstractAsyncStreamedFile, AsyncFileSystem, get_loop, sync
    from fsspec.caching import BaseCache, register_cache
    from fsspec.implementations.chained import ChainedFileSystem
    from fsspec.spec import AbstractBufferedFile

Asked = tuple[str, int | None, int | None]
"""A path, and the start and end of a range as fsspec gives them."""
PAGE_SIZE = 64 << 10
"""The page size of a new pool: a block, and its trailer."""
CLIENTS = CLIENTS_LIMIT
"""The number of processes that may use such a pool at once."""
READ_THREADS = 64
"""The number of calls by coroutines that may wait for absent blocks at the same time."""
INLINE_BYTES = 1 << 20
"""The most bytes of the pool that a coroutine copies in the event loop; more are copied in a thread."""
AHEAD_BYTES = 8 << 20
FIRST_AHEAD_BYTES = 1 << 20
LARGE_READ_BYTES = 32 << 10
"""A read of so many bytes is expected to be followed by the next bytes of the file, so more are fetched with it."""
HEADER_PART = 16
"""The first read of an open file, if it is a small one, fetches this part of what arrives in half a latency."""
AHEAD_PART = 8
"""What is read ahead takes at most this part of the budget: blocks that others evict before they are read are fetched in vain."""
BUDGET_PART = 16
"""The neighbourhood of a read takes at most this part of the budget."""
EARLY_FRAMES = 256
"""A pool of fewer frames asks for no end of a file together with the file's version."""
READ_FROM_THE_END = (".parquet", ".parq", ".pq", ".orc", ".feather", ".arrow", ".zip")
TAIL_BLOCKS = 3
"""The blocks that have the last 64 KiB of a file, which pyarrow reads first."""
HTML = "text/html"
ABSENT = (404, 410)
"""The answers of an HTTP server that has no such file."""
SAME_MOMENT_S = 0.05
"""isdir() within so many seconds after isfile() has not found a path on an HTTP server does not ask again: rasterio asks both of a
dozen files that may lie beside an image."""
ANSWERS = 4096
"""The most answers about files that are kept for ``max_age`` seconds."""
BLOCK_BYTES = 4096, 1 << 30
"""The least and the largest size of a pool's pages."""
BLOCKS_LEAST = 4
"""The blocks that a budget must have room for."""
OF_FSSPEC = frozenset(
    [
        "asynchronous",
        "loop",
        "batch_size",
        "skip_instance_cache",
        "use_listings_cache",
        "listings_expiry_time",
        "max_paths",
    ]
)
"""The options that fsspec has for every file system."""
CHANGES = 4
"""How often one call starts again because the file has changed meanwhile."""


# ---- the pool --------------------------------------------------------------------


@dataclass(frozen=True)
class PoolOptions:
    """Which pool has the blocks, and how the first process creates it."""

    pool: str | None = None
    """The pool's name; None: "fsspec-" and the number of the user."""
    budget: int | str = "auto"
    """The memory that the blocks may take, in bytes or as "2GiB"; "auto": a quarter of the available memory."""
    block_size: int | str | None = None
    """The bytes of a page, a power of two: a block, and 64 bytes. None: what the pool has, or 64 KiB for a new one."""
    directory: str | None = None
    """Another tmpfs than /dev/shm."""
    idle: float | None = 3600.0
    """Seconds after which the memory of blocks that nobody reads is given back; None: never."""
    steward: bool = True
    """Whether this process may be the pool's steward, which gives idle memory back and follows the machine's memory pressure."""

    def __post_init__(self) -> None:
        block = PAGE_SIZE if self.block_size is None else parse_size(self.block_size, "block_size") or PAGE_SIZE
        if block & block - 1 or not BLOCK_BYTES[0] <= block <= BLOCK_BYTES[1]:
            raise ValueError(f"block_size must be a power of two from 4096 to 1 GiB, not {self.block_size!r}")
        if self.budget != "auto" and parse_size(self.budget, "budget") < BLOCKS_LEAST * block:
            least = format_size(BLOCKS_LEAST * block)
            raise ValueError(
                f"budget must be at least {least} ({BLOCKS_LEAST} blocks of {format_size(block)}), not {self.budget!r}"
            )
        flag_of(self.steward, "steward")
        Settings(idle=self.idle)  # raises TypeError, ValueError

    @property
    def name(self) -> str:
        return f"fsspec-{os.geteuid()}" if self.pool is None else self.pool

    @classmethod
    def of(cls, options: dict[str, Any], what: str) -> PoolOptions:
        """These options, and no others; ``what``: whose options they are. Raises TypeError."""
        unknown = [name for name in options if name not in cls.__dataclass_fields__]
        if unknown:
            raise TypeError(f"{what} has no option {unknown[0]!r}: it has {', '.join(cls.__dataclass_fields__)}")
        return cls(**options)


_opening = Lock()
_opened: dict[PoolOptions, tuple[int, Blocks]] = {}
_threads: list[ThreadPoolExecutor] = []


def _forget_threads() -> None:
    """In a forked child, in which the parent's threads do not exist."""
    _threads.clear()


os.register_at_fork(after_in_child=_forget_threads)


def blocks_of(options: PoolOptions) -> Blocks:
    """The blocks in the pool that the options name; makes the pool if it does not exist."""
    with _opening:
        pid, blocks = _opened.get(options, (0, None))
        if blocks is None or blocks.pool.client.closed:
            pid, blocks = 0, Blocks(_open_pool(options))
        if pid != os.getpid():
            _opened[options] = os.getpid(), blocks
            if options.steward:
                with suppress(ValueError):  # this process is its steward already
                    blocks.pool.start_steward(Settings(idle=options.idle))
        return blocks


def _open_pool(options: PoolOptions) -> Pool:
    """Opens the pool. A pool that exists may have other sizes, except for those that the options give."""
    fixed: dict[str, Any] = {"page_size": options.block_size or PAGE_SIZE, "max_clients": CLIENTS}
    try:
        return Pool.open(options.name, options.budget, directory=options.directory, **fixed)
    except PoolMismatch as differs:
        accepted = {"max_clients"} if options.block_size else {"max_clients", "page_size"}
        if not set(differs.differences) <= accepted:
            raise
        asked = {name: value for name, value in fixed.items() if name not in accepted}
        return Pool.open(options.name, options.budget, directory=options.directory, **asked)


def _in_thread(call: Callable[[], Any]) -> asyncio.Future[Any]:
    with _opening:
        if not _threads:
            _threads.append(ThreadPoolExecutor(READ_THREADS, "bufferpool-fsspec"))
        return asyncio.get_running_loop().run_in_executor(_threads[0], call)


# ---- reading ---------------------------------------------------------------------


class Strides:
    """Detects that a file is read in strides: in parts at equal distances, as the rows of a window of an image are.

    A distance counts as a stride when it was seen twice. From then on a part is fetched together with the one that lies a stride
    ahead of it. The longer the stride continues, the more parts ahead are fetched.
    """

    KEPT = 8  # distances
    ROWS_MOST = 8  # parts that are fetched ahead

    def __init__(self) -> None:
        self._begin = self._end = -1  # of the last part, in bytes
        self._seen: dict[int, int] = {}  # distance -> how often, the latest last
        self._stride = self._steps = 0

    def goes_on(self, start: int, end: int) -> None:
        """The file is read in order: this read continues the last part, or begins a new one close behind it."""
        if start != self._end:
            self._begin = start
        self._end = end

    def step(self, start: int, end: int, most: int) -> list[tuple[int, int]]:
        """A part begins. Returns the ranges to fetch with it: the rest of the part, and parts ahead, at most ``most`` bytes in all."""
        begins, distance, length = self._begin < 0, start - self._begin, max(end - start, self._end - self._begin)
        self._begin, self._end = start, end
        if begins or distance <= 0:
            return []
        times = self._seen.pop(distance, 0) + 1
        self._seen[distance] = times
        if len(self._seen) > self.KEPT:
            del self._seen[next(iter(self._seen))]
        self._steps = self._steps + 1 if distance == self._stride else 0
        if times >= 2:
            self._stride = distance
        if length > self._stride:  # there is none; or the parts would overlap
            return []
        rows = min(self.ROWS_MOST, max(1, self._steps), most // length)
        return [(at, at + length) for at in range(start, start + (rows + 1) * self._stride, self._stride)]


class Reader:
    """Reads one version of a remote file, and reads ahead while it is read in order, or in strides."""

    def __init__(self, blocks: Blocks, file: RemoteFile, most_ahead: int = AHEAD_BYTES) -> None:
        self.blocks, self.file = blocks, file
        self._fetch = Fetches([file], blocks.block_size, getattr(file.fs, "loop", None))
        self._most = most_ahead // blocks.block_size
        self._blocks_of_file = -(-file.size // blocks.block_size)
        self._in_order = 0  # blocks that were read one after the other
        self._next = -1  # the block after the last one that was read
        self._continues = False  # whether the last read began where the one before it had ended
        self._run_bytes = 0  # bytes that were read in order
        self._last_run = 0  # blocks that were read in order before the last skip, if they were many bytes; else 0
        self._strides = Strides()

    def read(self, start: int, end: int) -> bytes:
        """The bytes from ``start`` to before ``end``, or to the end of the file. Raises RemoteChanged, and the errors of the target."""
        wanted = Range(self.file.key, start, min(end, self.file.size))
        if wanted.start >= wanted.end:
            return b""
        ahead = self._read_ahead(wanted)
        there = self.blocks.try_read([wanted])
        return self._read(wanted, ahead) if there is None else there[0]

    def read_into(self, start: int, into: memoryview) -> None:
        """Copies the bytes from ``start`` on into a buffer, which ends with the file or before. Raises what :meth:`read` raises."""
        wanted = Range(self.file.key, start, start + len(into))
        ahead = self._read_ahead(wanted)
        if not self.blocks.try_read_into(wanted, into):
            into[:] = self._read(wanted, ahead)

    def _read(self, wanted: Range, ahead: Iterator[Block]) -> bytes:
        (found,) = self.blocks.read([wanted], self._fetch, ahead)
        if isinstance(found, Exception):
            raise found
        return found

    def view(self, start: int, end: int) -> Any:
        """The bytes as an array over shared memory, if they lie in one block that is in the pool; else None."""
        wanted = Range(self.file.key, start, end)
        view = self.blocks.try_view(wanted)
        if view is not None:
            self._read_ahead(wanted)
        return view

    def _read_ahead(self, wanted: Range) -> Iterator[Block]:
        """The blocks that are fetched together with those of a read: twice as many as were read in order so far.

        After a skip, not more are fetched than were read in order before the skip. A reader of one column of a Parquet file, for
        example, skips the other columns again and again. If the link is fast, the neighbourhood is fetched, too.
        """
        size, most = self.blocks.block_size, min(self._most, self.blocks.pool.budget_frames // AHEAD_PART)
        first, last = wanted.start // size, (wanted.end - 1) // size
        rows: list[tuple[int, int]] = []
        begins, self._continues = self._next < 0, first in (self._next - 1, self._next)
        if self._continues:
            self._strides.goes_on(wanted.start, wanted.end)
            self._in_order += max(0, last + 1 - self._next)
            ahead = min(most, max(FIRST_AHEAD_BYTES // size, 2 * self._in_order))
        else:
            rows = self._strides.step(wanted.start, wanted.end, most * size)
            skips = first > self._next >= 0 and self._run_bytes >= LARGE_READ_BYTES
            self._last_run = self._in_order if skips else 0
            self._in_order, self._run_bytes, ahead = last + 1 - first, 0, 0
            if wanted.end - wanted.start >= LARGE_READ_BYTES and not rows:
                ahead = min(most, max(FIRST_AHEAD_BYTES // size, self._in_order))
        self._run_bytes += wanted.end - wanted.start
        if self._in_order <= self._last_run:
            ahead = min(ahead, self._last_run - self._in_order)
        self._next = last + 1
        large = self._run_bytes >= LARGE_READ_BYTES
        if large:  # reading in order has the next blocks fetched anyway
            self.file.link.read(self.file.key, first, FIRST_AHEAD_BYTES // size if self._continues else 0)
        part = 1 if large and not rows else HEADER_PART if begins else 0
        return self._ahead(first, last, ahead, rows, part)

    def _ahead(self, first: int, last: int, ahead: int, rows: list[tuple[int, int]], part: int) -> Iterator[Block]:
        """The blocks that are fetched together with those from ``first`` to ``last``. They are chosen when a block of the read is absent."""
        size = self.blocks.block_size
        numbers = chain(
            range(last + 1, last + 1 + ahead),
            self._neighbourhood(first, last, ahead, part),
            *(range(at // size, (end - 1) // size + 1) for at, end in rows),
        )
        for number in dict.fromkeys(numbers):
            if number < self._blocks_of_file:
                yield self.blocks.block(self.file.key, number)

    def _neighbourhood(self, first: int, last: int, ahead: int, part: int) -> Iterable[int]:
        """The blocks around a read that arrive in half a latency, or the ``part``-th part of them. None if that is less than what is
        read ahead anyway, and none if such blocks were rarely read.

        Its first block is a multiple of a power of two, so that those that several processes fetch rarely overlap in part.
        """
        link, size = self.file.link, self.blocks.block_size
        window = min(self._most, link.window_bytes // size, self.blocks.pool.budget_frames // BUDGET_PART)
        count, least = self._blocks_of_file, max(ahead, FIRST_AHEAD_BYTES // size)
        if not part or window <= least:
            return ()
        if part > 1:
            return range(last + 1, last + 1 + window // part)
        around = range(last + 1, min(last + 1 + window, count))
        if not self._continues:
            step = 1 << ((2 * window // 5).bit_length() - 1)
            around = range(first // step * step, min(first + window, count))
        ends = len(around) <= least  # the file ends here
        return () if ends or not link.is_worth(Window(self.file.key, first, last, around)) else around


class BlockCache(BaseCache):  # type: ignore[misc]
    """The cache type "bufferpool" of fsspec's files. It keeps the blocks in the pool, and has no memory of its own.

    ``options`` are those of :class:`PoolOptions`: ``cache_options={"pool": "data", "budget": "2GiB"}``.
    """

    name = "bufferpool"

    def __init__(self, blocksize: int, fetcher: Callable[[int, int], bytes], size: int, **options: Any) -> None:
        super().__init__(blocksize, fetcher, size)
        opened = getattr(fetcher, "__self__", None)
        if isinstance(opened, BlockFile):
            self.reader = opened.reader
            return
        if not isinstance(opened, AbstractBufferedFile):
            raise ValueError(
                'cache_type="bufferpool" needs a file of fsspec, which has a file system and a path, to know '
                f"which file it is of; {opened!r} is none: open it with fs.open(), or as bufferpool::URL"
            )
        file = RemoteFile.of(opened.fs, opened.path, opened.fs.info(opened.path))
        if file.size != size:
            raise file.changed(f"size={size}")
        asked = PoolOptions.of(options, 'cache_type="bufferpool"')
        self.reader = Reader(blocks_of(asked), file, max(blocksize or 0, FIRST_AHEAD_BYTES))

    def _fetch(self, start: int | None, stop: int | None) -> bytes:
        return self.reader.read(start or 0, self.size if stop is None else stop)


register_cache(BlockCache, clobber=True)


class BlockFile(AbstractBufferedFile):  # type: ignore[misc]
    """A file that is open for reading. It is one version of the file, and a block is fetched when it is first read."""

    loc: int

    def __init__(self, fs: Any, reader: Reader, **options: Any) -> None:
        self.reader = reader
        options.setdefault("cache_type", "bufferpool")
        super().__init__(fs, reader.file.path, "rb", size=reader.file.size, **options)
        self.details = reader.file.info

    __hash__ = object.__hash__  # rasterio and others keep open files by their identity

    def __eq__(self, other: object) -> bool:
        return self is other

    def _fetch_range(self, start: int, end: int) -> bytes:
        return self.reader.read(start, end)

    def readinto(self, b: Any) -> int:
        """Reads into a writable buffer, and returns the number of bytes. h5py, and xarray through it, call this."""
        into = memoryview(b).cast("B")
        into = into[: max(0, self.size - self.loc)]
        if not into or self.closed or not isinstance(self.cache, BlockCache):
            return int(super().readinto(b))
        self.reader.read_into(self.loc, into)
        self.loc += len(into)
        return len(into)

    def read_buffer(self, length: int = -1) -> Any:
        """As ``read``. Bytes that lie in one block are returned as a read-only array over shared memory, which pins its page. pyarrow
        calls this."""
        end = self.size if length is None or length < 0 else min(self.size, self.loc + length)
        view = self.reader.view(self.loc, end) if end > self.loc and not self.closed else None
        if view is None:
            return self.read(length)
        self.loc = end
        return view


# ---- the file system -------------------------------------------------------------

PREFIX = "bufferpool://"
DELEGATED = [
    "ls",
    "find",
    "du",
    "mkdir",
    "makedirs",
    "rm",
    "rm_file",
    "cp_file",
    "copy",
    "pipe",
    "pipe_file",
    "put",
    "put_file",
    "get",
    "get_file",
    "expand_path",
]
"""Calls that are passed to the target, as functions and as coroutines."""
DELEGATED_PLAIN = [
    "walk",
    "mv",
    "rmdir",
    "created",
    "checksum",
    "ukey",
    "sign",
    "touch",
    "start_transaction",
    "end_transaction",
]
"""Calls that are passed to the target, as functions only."""
READING = {"ls", "find", "du", "get", "get_file", "expand_path", "walk", "created", "checksum", "ukey", "sign"}
"""Those of these calls that change no file. After the others, what the target has said of its files is forgotten."""


def _bare(paths: Any) -> Any:
    """Paths in the form in which the target uses them."""
    if isinstance(paths, str):
        return paths.removeprefix(PREFIX)
    if isinstance(paths, dict):
        return {_bare(path): value for path, value in paths.items()}
    return [_bare(path) for path in paths] if isinstance(paths, list | tuple) else paths


def _refuse_unknown(options: dict[str, Any]) -> None:
    """Raises TypeError if the file system has an option that neither it nor fsspec knows: a misspelt one would do nothing."""
    unknown = sorted(name for name in options if name not in OF_FSSPEC)
    if unknown:
        known = ", ".join(["max_age", *PoolOptions.__dataclass_fields__, "fs", "target_protocol", "target_options"])
        raise TypeError(
            f"the bufferpool file system has no option {unknown[0]!r}: it has {known}, and those of fsspec; options of the target are "
            "given in target_options=, or by its protocol, as https={...}, beside a URL bufferpool::https://..."
        )


def _limits(size: int, start: int | None, end: int | None) -> tuple[int, int]:
    """The bytes that fsspec's ``start`` and ``end`` mean: as those of a slice."""
    first, last, _ = slice(start, end).indices(size)
    return first, max(first, last)


class BufferPoolFileSystem(AsyncFileSystem, ChainedFileSystem):  # type: ignore[misc]
    """Another file system, of which all processes of the machine share the blocks that were read.

    ``fs``, or ``target_protocol`` and ``target_options``: the target. ``max_age``: the seconds for which an answer of the target
    about a file is used; with 0 the target is asked at every open. Further options are those of :class:`PoolOptions`.
    """

    protocol: ClassVar[str] = "bufferpool"

    def __init__(
        self, fs: Any = None, target_protocol: str | None = None, target_options: dict[str, Any] | None = None,
        fo: str | None = None, max_age: float = 0.0, **options: Any,
    ) -> None:  # fmt: skip
        known = {name: options.pop(name) for name in PoolOptions.__dataclass_fields__ if name in options}
        _refuse_unknown(options)
        super().__init__(**options)
        if (fs is None) == (target_protocol is None):
            raise ValueError(
                "name one target: fs=, or target_protocol= and target_options=, or a URL such as bufferpool::s3://bucket/key"
            )
        if fs is None:
            target = dict(target_options or {})
            if get_filesystem_class(target_protocol).async_impl:
                target.setdefault("asynchronous", self.asynchronous)
            fs = filesystem(target_protocol, **target)
        if fs.async_impl and fs.asynchronous != self.asynchronous:
            raise ValueError(
                f"the target has asynchronous={fs.asynchronous}, so pass asynchronous={fs.asynchronous} here, too"
            )
        self._target = fs
        self.pool_options = PoolOptions.of(known, "the file system")
        self.max_age = seconds_of(max_age, "max_age") or 0.0
        self._absent = "", -math.inf  # the path that the last isfile() has not found, and when
        self._answers: dict[str, tuple[float, dict[str, Any]]] = {}
        self._noting = Lock()
        self._written: list[weakref.ref[Any]] = []
        self.__dict__["_strip_protocol"] = self._as_target_path  # per instance, because each has another target

    @property
    def fs(self) -> Any:
        """The target."""
        if self._pid != os.getpid():
            self._follow_fork()
        return self._target

    @property
    def loop(self) -> Any:
        """The event loop of this process; None if the file system is asynchronous."""
        if self._pid != os.getpid():
            self._follow_fork()
        return super().loop

    def _follow_fork(self) -> None:
        """In a forked child, in which the thread of the parent's event loop does not exist."""
        if not self.asynchronous:
            self._target = of_this_process(self._target)
            self._loop, self._pid = get_loop(), os.getpid()

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        return _bare(os.fspath(path) if isinstance(path, os.PathLike) else path)

    def _as_target_path(self, path: Any) -> Any:
        return self.fs._strip_protocol(type(self)._strip_protocol(path))

    @staticmethod
    def _get_kwargs_from_urls(path: str) -> dict[str, Any]:
        """The target of ``bufferpool://https://…``, the form of URL that :meth:`unstrip_protocol` gives, and DuckDB uses."""
        protocol, found, _ = path.removeprefix(PREFIX).partition("://")
        return {"target_protocol": protocol} if found and path.startswith(PREFIX) else {}

    @property
    def fsid(self) -> str:
        """The target's identity, because the files are the target's."""
        return str(self.fs.fsid)

    @property
    def transaction(self) -> Any:
        """The target's transaction."""
        return self.fs.transaction

    @property
    def blocks(self) -> Blocks:
        """The blocks in the pool; makes the pool if it does not exist."""
        return blocks_of(self.pool_options)

    # ---- opening files -------------------------------------------------------------

    def _open(
        self, path: str, mode: str = "rb", block_size: int | None = None, autocommit: bool = True,
        cache_options: dict[str, Any] | None = None, **kwargs: Any,
    ) -> Any:  # fmt: skip
        options: dict[str, Any] = {} if block_size is None else {"block_size": block_size}
        if mode != "rb":
            options |= {} if autocommit else {"autocommit": False}
            return self._noted(self.fs.open(path, mode, **options, **kwargs))
        file = self._file(path, self._info_and_end(path, block_size or AHEAD_BYTES))
        kwargs.pop("size", None)
        if file is None:
            return self.fs.open(path, mode, **options, **kwargs)
        options["cache_options"] = cache_options
        if "cache_type" in kwargs:
            options["cache_type"] = kwargs.pop("cache_type")
        if kwargs:
            raise TypeError(
                f"open() of {type(self).__name__} has no options {sorted(kwargs)}; open the file of its target, fs.fs.open()"
            )
        return BlockFile(self, Reader(self.blocks, file, block_size or AHEAD_BYTES), **options)

    def _noted(self, written: Any) -> Any:
        """The same file, which was opened for writing. What was said of files is forgotten, and nothing is kept until it is closed."""
        with self._noting, suppress(TypeError):  # a file to which there are no weak references
            self._written = [one for one in self._written if one() is not None] + [weakref.ref(written)]
        self._answers.clear()
        return written

    def _writes(self) -> bool:
        """Whether a file is open for writing."""
        with self._noting:
            self._written = [one for one in self._written if not getattr(one(), "closed", True)]
            return bool(self._written)

    def _info_and_end(self, path: str, most: int) -> dict[str, Any]:
        """The target's answer about a file. If no process of the machine has opened the file before, an end of it is asked for at the same
        time, and is in the pool afterwards; processes that open it meanwhile wait for that."""
        fs, blocks = self.fs, self.blocks
        if not _is_http(fs) or fs.asynchronous or blocks.pool.budget_frames < EARLY_FRAMES or self._known(path, {}):
            return self.info(path)
        found: list[dict[str, Any] | Exception] = []

        def open_first() -> None:
            early = self._early(fs._strip_protocol(path), most)
            try:
                info = self.info(path)
                found.append(info)
                file = self._file(path, info)
                if file is not None:
                    fetch = partial(early.fetch, file, blocks.block_size)
                    blocks.read([early.range_of(file, blocks.block_size)], fetch)
            except Exception as error:  # noqa: BLE001 - raised below; those that wait ask for themselves
                found.append(error)

        blocks.once(key_of_any_version(fs, fs._strip_protocol(path)), open_first)
        if not found:
            return self.info(path)
        if isinstance(found[0], Exception):
            raise found[0]
        return found[0]

    def _early(self, path: str, most: int) -> Early:
        """Asks for the end of a file that a reader reads first."""
        fs, blocks = self.fs, self.blocks
        if path.endswith(READ_FROM_THE_END):
            return Early(fs, path, TAIL_BLOCKS * blocks.block_size, tail=True)
        window = min(
            most, link_of_file(fs, path).window_bytes, blocks.pool.budget_frames * blocks.block_size // BUDGET_PART
        )
        return Early(fs, path, (1 + window // HEADER_PART // blocks.block_size) * blocks.block_size, tail=False)

    async def open_async(self, path: str, mode: str = "rb", **kwargs: Any) -> Any:
        """Opens a file for reading by coroutines."""
        if mode != "rb" or kwargs:
            raise NotImplementedError(
                "open_async() reads only (mode='rb'), and has no options: open the file of the target, fs.fs"
            )
        path = self._as_target_path(path)
        file = self._file(path, await self._info(path))
        if file is None:
            return await self.fs.open_async(path, mode)
        return AsyncBlockFile(self, file)

    def _file(self, path: str, info: dict[str, Any]) -> RemoteFile | None:
        """The version of a file that the target has now; None for a folder or a stream of unknown length, which have no blocks."""
        if info["type"] != "file" or info.get("size") is None or info.get("partial") is False:
            return None
        return RemoteFile.of(self.fs, self.fs._strip_protocol(path), info)

    # ---- reading whole ranges --------------------------------------------------------

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any) -> bytes:
        """The bytes of a file from ``start`` to before ``end``, all of one version."""
        if self.fs.async_impl:
            return bytes(sync(self.loop, self._cat_file, path, start, end, **kwargs))
        return self._cat_plainly(path, start, end, kwargs)

    async def _cat_file(self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any) -> bytes:
        if not self.fs.async_impl:
            return bytes(await _in_thread(partial(self._cat_plainly, path, start, end, kwargs)))
        (found,) = await self._read([(self._as_target_path(path), start, end)], kwargs)
        if isinstance(found, Exception):
            raise found
        return bytes(found)

    def _cat_plainly(self, path: str, start: int | None, end: int | None, kwargs: dict[str, Any]) -> bytes:
        """Reads from a target without coroutines."""
        path = self._as_target_path(path)
        for _ in range(CHANGES):
            file = None if kwargs else self._file(path, self.info(path))
            if file is None:
                return bytes(self.fs.cat_file(path, start=start, end=end, **kwargs))
            try:
                return Reader(self.blocks, file, 0).read(*_limits(file.size, start, end))
            except RemoteChanged as error:
                changed = error
                self._answers.clear()
        raise changed

    async def _cat_ranges(
        self, paths: list[str], starts: Any, ends: Any, max_gap: int | None = None, **kwargs: Any
    ) -> list[Any]:
        """The bytes of ranges of files. All ranges of one file are of one version, and absent blocks are fetched together.

        ``on_error``: "return" returns the exception in the place of its range, "raise" raises it.
        """
        on_error, _ = kwargs.pop("on_error", "return"), kwargs.pop("batch_size", None)
        if max_gap is not None:
            raise NotImplementedError(
                "max_gap= is not supported: neighbouring blocks are fetched together anyway; omit it"
            )
        if not isinstance(paths, list):
            raise TypeError(f"paths must be a list, not {type(paths).__name__}")
        starts, ends = (
            [each] * len(paths) if not isinstance(each, Iterable) else list(each) for each in (starts, ends)
        )
        if not len(paths) == len(starts) == len(ends):
            raise ValueError(f"{len(paths)} paths need as many starts and ends, not {len(starts)} and {len(ends)}")
        found = await self._read(list(zip(map(self._as_target_path, paths), starts, ends, strict=True)), kwargs)
        wrong = next((each for each in found if isinstance(each, Exception)), None)
        if wrong is not None and on_error != "return":
            raise wrong
        return found

    async def _read(self, asked: list[Asked], kwargs: dict[str, Any]) -> list[Any]:
        """The bytes of each range, or an exception."""
        out: list[Any] = [None] * len(asked)
        left = list(range(len(asked)))
        for tries_left in reversed(range(CHANGES)):
            files = await self._files({asked[i][0] for i in left})
            cached: list[int] = []
            for i in left:
                path, start, end = asked[i]
                if kwargs or files[path] is None:
                    out[i] = await _outcome(self._from_target("cat_file", path, start=start, end=end, **kwargs))
                elif isinstance(files[path], Exception):
                    out[i] = files[path]
                else:
                    cached.append(i)
            ranges = [Range(files[asked[i][0]].key, *_limits(files[asked[i][0]].size, *asked[i][1:])) for i in cached]
            known = {asked[i][0]: files[asked[i][0]] for i in cached}
            for i, content in zip(cached, await self.read_ranges(ranges, list(known.values())), strict=True):
                out[i] = content
            changed = {asked[i][0] for i in cached if isinstance(out[i], RemoteChanged)}
            for path in changed:
                self._answers.pop(path, None)
            left = [
                i for i in cached if asked[i][0] in changed
            ]  # all ranges of a file that has changed, so that they have one version
            if not left or not tries_left:
                return out
        return out

    async def read_ranges(self, ranges: list[Range], files: list[RemoteFile]) -> list[Any]:
        """The bytes of each range of these files, or an exception."""
        blocks = self.blocks
        if sum(one.end - one.start for one in ranges) <= INLINE_BYTES:
            there = blocks.try_read(ranges)
            if there is not None:
                return list(there)
        fetch = Fetches(files, blocks.block_size, asyncio.get_running_loop())
        return list(await _in_thread(partial(blocks.read, ranges, fetch)))

    async def _files(self, paths: set[str]) -> dict[str, Any]:
        """The present version of each file, or an exception."""
        infos = await asyncio.gather(*(_outcome(self._info(path)) for path in paths))
        return {
            path: info if isinstance(info, Exception) else self._file(path, info)
            for path, info in zip(paths, infos, strict=True)
        }

    # ---- what the target says of a file ------------------------------------------------

    def info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        """The target's answer about a file, which is at most ``max_age`` seconds old."""
        path = self._as_target_path(path)
        known = self._known(path, kwargs)
        if known is not None:
            return known
        if _is_http(self.fs):
            return dict(sync(self.loop, self._info, path, **kwargs))
        return self._keep(path, self.fs.info(path, **kwargs), kwargs)

    async def _info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        path = self._as_target_path(path)
        known = self._known(path, kwargs)
        if known is not None:
            return known
        info = None if kwargs else await self._info_by_head(path)
        return self._keep(path, await self._from_target("info", path, **kwargs) if info is None else info, kwargs)

    async def _info_by_head(self, path: str) -> dict[str, Any] | None:
        """What HTTPFileSystem says of a file, without its second request for one that is absent. None: it must be asked itself."""
        if not _says_what_http_says(self.fs):
            return None
        found, said = await self._head(path)
        if found is False:
            raise FileNotFoundError(errno.ENOENT, "the server has no such file", path)
        return None if said.get("size") is None else said

    def _known(self, path: str, kwargs: dict[str, Any]) -> dict[str, Any] | None:
        when, info = self._answers.get(path, (-math.inf, None))
        return info if not kwargs and time.monotonic() - when <= self.max_age else None

    def _keep(self, path: str, info: dict[str, Any], kwargs: dict[str, Any]) -> dict[str, Any]:
        if self.max_age and not kwargs and not self._writes():
            if len(self._answers) >= ANSWERS:
                self._answers.clear()
            self._answers[path] = time.monotonic(), info
        return info

    def invalidate_cache(self, path: str | None = None) -> None:
        """Forgets the target's answers, and makes the target forget its listings. Blocks are kept, because each is of one version."""
        self._answers.clear()
        self.fs.invalidate_cache(_bare(path))

    def _as_kept(self, name: str, path: str) -> bool | None:
        """What the answer that ``max_age`` keeps says to exists, isfile or isdir. None: there is none, or it does not say."""
        said = self._known(self._as_target_path(path), {})
        if said is None:
            return None
        if name == "isdir" and _is_http(self.fs):  # to which every URL is a file
            return None if said.get("mimetype", "") in ("", HTML) else False
        return name == "exists" or said["type"] == ("file" if name == "isfile" else "directory")

    def _says(self, name: str, path: str, **kwargs: Any) -> bool:
        """The answer to exists, isfile or isdir: the kept one, or the target's."""
        kept = None if kwargs else self._as_kept(name, path)
        return bool(self._asked(name, path, **kwargs)) if kept is None else kept

    def exists(self, path: str, **kwargs: Any) -> bool:
        """Whether there is a file or folder."""
        return self._says("exists", path, **kwargs)

    def isfile(self, path: str) -> bool:
        """Whether there is a file."""
        return self._says("isfile", path)

    def isdir(self, path: str) -> bool:
        """Whether there is a folder. On an HTTP server, a page with links is one."""
        return self._says("isdir", path)

    def size(self, path: str) -> int | None:
        """The bytes of a file; None if the target does not know."""
        return self.info(path).get("size")

    def sizes(self, paths: list[str]) -> list[int | None]:
        """The bytes of several files."""
        if self.fs.async_impl:
            return list(sync(self.loop, self._sizes, paths))
        return [self.size(path) for path in paths]

    def glob(self, path: str, **kwargs: Any) -> Any:
        """The files that match a pattern."""
        return self._asked("glob", path, **kwargs)

    def _asked(self, name: str, path: str, **kwargs: Any) -> Any:
        if not _is_http(self.fs):
            return getattr(self.fs, name)(_bare(path), **kwargs)
        return sync(self.loop, getattr(self, f"_{name}"), path, **kwargs)

    # HTTPFileSystem answers the next four calls by GET, for which its server begins to send the whole file.

    async def _exists(self, path: str, **kwargs: Any) -> bool:
        found = None if kwargs else self._as_kept("exists", path)
        if found is None and not kwargs:
            found, _ = await self._head(path)
        return bool(await self._from_target("exists", _bare(path), **kwargs)) if found is None else found

    async def _isfile(self, path: str) -> bool:
        kept = self._as_kept("isfile", path)
        if kept is not None:
            return kept
        found, _ = await self._head(path)
        if found is False:
            self._absent = _bare(path), time.monotonic()
        return bool(await self._from_target("isfile", _bare(path))) if found is None else found

    async def _isdir(self, path: str) -> bool:
        absent, when = self._absent
        if absent == _bare(path) and time.monotonic() - when < SAME_MOMENT_S:
            return False
        kept = self._as_kept("isdir", path)
        if kept is not None:
            return kept
        found, said = await self._head(path)
        if found is False or (found and said.get("mimetype", "") not in ("", HTML)):
            return False
        return bool(await self._from_target("isdir", _bare(path)))

    async def _glob(self, path: str, **kwargs: Any) -> Any:
        if not _is_http(self.fs) or has_magic(path):
            return await self._from_target("glob", _bare(path), **kwargs)
        try:
            found = {_bare(path): await self._info(path)}
        except FileNotFoundError:
            found = {}
        return found if kwargs.get("detail") else list(found)

    async def _head(self, path: str) -> tuple[bool | None, dict[str, Any]]:
        """Whether an HTTP server has a file, and what it says of the file, which is kept for ``max_age``. None: the server does not say, or
        it is no HTTP server."""
        if not _is_http(self.fs):
            return None, {}
        from aiohttp import ClientError, ClientResponseError
        from fsspec.implementations.http import _file_info

        session = await self.fs.set_session()
        try:
            said = await _file_info(self.fs.encode_url(_bare(path)), session, size_policy="head", **self.fs.kwargs)
        except ClientResponseError as error:
            return False if error.status in ABSENT else None, {}
        except (ClientError, TimeoutError):  # the target interprets this answer
            return None, {}
        said = {"name": self._as_target_path(path), **said, "type": "file"}
        if said.get("size") is not None and _says_what_http_says(self.fs):
            self._keep(said["name"], said, {})
        return True, said

    def modified(self, path: str) -> datetime:
        """When a file was last changed, from the target or from the answer of an HTTP server."""
        said = self.info(path).get("Last-Modified") if _is_http(self.fs) else None
        return parsedate_to_datetime(said) if said else cast(datetime, self.fs.modified(_bare(path)))

    # ---- the target's calls ----------------------------------------------------------

    async def _from_target(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """Calls the target: its coroutine, or its function in a thread."""
        if self.fs.async_impl:
            return await getattr(self.fs, f"_{name}")(*args, **kwargs)
        return await _in_thread(partial(getattr(self.fs, name), *args, **kwargs))

    async def _walk(self, path: str, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        if self.fs.async_impl:
            async for each in self.fs._walk(_bare(path), *args, **kwargs):
                yield each
            return
        for each in await _in_thread(lambda: list(self.fs.walk(_bare(path), *args, **kwargs))):
            yield each


def _is_http(fs: Any) -> bool:
    return "http" in fs.protocol and bool(fs.async_impl)


def _says_what_http_says(fs: Any) -> bool:
    """Whether the file system is an HTTPFileSystem whose ``info`` is what the server's answer to HEAD says."""
    if not _is_http(fs):
        return False
    from fsspec.implementations.http import HTTPFileSystem

    return type(fs)._info is HTTPFileSystem._info


async def _outcome(call: Awaitable[Any]) -> Any:
    """The result of a coroutine, or the exception that it raises."""
    try:
        return await call
    except Exception as error:  # noqa: BLE001 - belongs to one of several ranges, and is raised or returned for it
        return error


def _delegate(name: str, *, plain_only: bool) -> None:
    def function(self: BufferPoolFileSystem, *args: Any, **kwargs: Any) -> Any:
        try:
            return getattr(self.fs, name)(*map(_bare, args), **kwargs)
        finally:
            forget(self)

    async def coroutine(self: BufferPoolFileSystem, *args: Any, **kwargs: Any) -> Any:
        try:
            return await self._from_target(name, *map(_bare, args), **kwargs)
        finally:
            forget(self)

    def forget(self: BufferPoolFileSystem) -> None:
        if name not in READING:
            self._answers.clear()

    original = getattr(AsyncFileSystem, name, None)
    for each, called in ((function, name), (coroutine, f"_{name}")):
        each.__name__, each.__doc__ = called, original.__doc__ if original else None
        if each is function or not plain_only:
            setattr(BufferPoolFileSystem, called, each)


for _name in DELEGATED:
    _delegate(_name, plain_only=False)
for _name in DELEGATED_PLAIN:
    _delegate(_name, plain_only=True)


class AsyncBlockFile(AbstractAsyncStreamedFile):  # type: ignore[misc]
    """A file that is open for reading by coroutines. It is one version of the file."""

    def __init__(self, fs: BufferPoolFileSystem, file: RemoteFile) -> None:
        super().__init__(fs, file.path, "rb", size=file.size)
        self.file = file

    async def _fetch_range(self, start: int, end: int) -> bytes:
        wanted = Range(self.file.key, start, min(end, self.file.size))
        (found,) = await self.fs.read_ranges([wanted], [self.file])
        if isinstance(found, Exception):
            raise found
        return bytes(found)
