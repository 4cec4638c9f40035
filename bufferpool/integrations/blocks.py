"""Blocks of remote files, of any number of files, in one space of a pool.

A space for each file is not possible: a pool has 4,096 spaces, and a data set may have more files. So all blocks are in one derived
space. No directory records which page has which block. The key of a block is a hash of its file, of the file's version and of its
number. The key determines two page numbers at which the block may be, and the last bytes of a page are the key of the block that it
has. A page with another key is a miss, as in a two-way set associative cache of a CPU. There are at least 16 page numbers for each
frame of memory, so two blocks that are both in use rarely need the same page. If they do, the later one takes its second page, or
replaces the first. A block of another version has another key, so versions never mix, and blocks that no reader asks for any more
are evicted as any cold page is.

The pool loads each page once, however many threads and processes ask for it, and completes what a killed process began.
"""

from __future__ import annotations

import hashlib
import itertools
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, NamedTuple, TypeVar

import numpy as np

from bufferpool.errors import (
    BufferPoolError,
    LoaderFailed,
    PoolExhausted,
    SharedMemoryFull,
    SpaceMismatch,
    SpaceNotFound,
    SpaceRemoved,
    StoreError,
    WaitTimeout,
)
from bufferpool.objects.cache import Cache
from bufferpool.pool import Pool
from bufferpool.spaces.space import Space

T = TypeVar("T")
KEY_BYTES = 16
TRAILER_BYTES = 64
"""The bytes at the end of each page that hold the key of its block. They are a whole cache line, so that blocks are aligned to one."""
PLACES_PER_FRAME, LEAST_PLACES = 16, 1 << 16
MOST_AT_ONCE = 256
"""The most pages that the core asks a loader for at once. It never asks for more than an eighth of the budget."""
PARTS_AT_ONCE = 4
TRIES = 4
"""How often a read tries again when another block takes its page at the same time, or when what it has waited for is not there. Then
it fetches its block past the pool."""
FULL_S = 1.0
"""Seconds after a wait for a frame in vain in which reads of this process wait for no other one."""
SPACE = "blocks"
ONCE_S = 5.0
"""Seconds for which the first read of a file may keep others from opening it."""
NAMES = "remote files"
"""The cache of the names of files that some process has opened."""
NAMES_PART, NAMES_LEAST_BYTES = 64, 64 << 10
"""It takes at most this part of the budget, or so many bytes."""


class Block(NamedTuple):
    """One block of one version of a file."""

    file: bytes
    """The key of the file and its version."""
    number: int
    key: bytes


class Range(NamedTuple):
    """The bytes from ``start`` to before ``end`` of one version of a file, which has them all."""

    file: bytes
    start: int
    end: int


Fetched = bytes | memoryview | Exception
Fetch = Callable[[list[Block]], Sequence[Fetched]]
"""Fetches blocks from their origin: the bytes of each (a file's last block may be short), or an exception."""


class _Asked(threading.local):
    """What a thread asks the pool for: its loader is called with page numbers only."""

    fetch: Fetch | None = None

    def __init__(self) -> None:
        self.blocks: dict[int, Block] = {}
        self.fetched: dict[bytes, Fetched] = {}


class Blocks:
    """The blocks of remote files in one pool. All threads of a process may use it at once."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.block_size = pool.page_size - TRAILER_BYTES
        self._asked = _Asked()
        self._full_until = 0.0
        self._names: Cache | None = None
        self._views: dict[int, weakref.ref[np.ndarray]] = {}
        self._view_numbers = itertools.count()
        self._space = self._open()

    def _open(self) -> Space:
        frames = self.pool.capacity // self.pool.page_size
        places = max(LEAST_PLACES, 1 << (PLACES_PER_FRAME * frames - 1).bit_length())
        while True:
            try:
                places = len(self.pool.space(SPACE))  # the first process has chosen it
            except SpaceNotFound:
                places = min(places, self.pool.geometry["max_pages"] // 2)
            try:
                self._n_places = places
                return self.pool.open_derived(SPACE, places, self._load, load_many=self._load_many, version="blocks 1")
            except SpaceMismatch:
                continue  # another process has opened it meanwhile, with another number of pages

    # ---- reading ---------------------------------------------------------------

    def blocks_of(self, wanted: Range) -> list[Block]:
        """The blocks that have the bytes of a range."""
        if wanted.start >= wanted.end:
            return []
        return [
            self.block(wanted.file, number)
            for number in range(wanted.start // self.block_size, (wanted.end - 1) // self.block_size + 1)
        ]

    def block(self, file: bytes, number: int) -> Block:
        """A block by its number."""
        return Block(file, number, hashlib.blake2b(file + number.to_bytes(8), digest_size=KEY_BYTES).digest())

    def try_read(self, ranges: Sequence[Range]) -> list[bytes] | None:
        """The bytes of ranges of which all blocks are in the pool; None if one is absent."""
        return self._reopening(lambda: self._try_read(ranges))

    def _try_read(self, ranges: Sequence[Range]) -> list[bytes] | None:
        out: list[bytes] = []
        for wanted in ranges:
            pages = self._there(wanted)
            if pages is None:
                return None
            out.append(b"".join(self._parts_of(wanted, pages)))
        return out

    def try_read_into(self, wanted: Range, into: memoryview) -> bool:
        """Copies a range of which all blocks are in the pool, without another copy in between; False if one is absent."""
        pages = self._reopening(lambda: self._there(wanted))
        if pages is None:
            return False
        at = 0
        for part in self._parts_of(wanted, pages):
            into[at : at + len(part)] = part
            at += len(part)
        return True

    def _there(self, wanted: Range) -> list[Any] | None:
        """The pages of a range; None if one of its blocks is absent."""
        pages = []
        for block in self.blocks_of(wanted):
            page = self._resident(block)
            if page is None:
                return None
            pages.append(page)
        return pages

    def try_view(self, wanted: Range) -> np.ndarray | None:
        """A range without a copy, as a read-only array that pins its page; None if it is not in one block, or the block is absent.

        None, too, while such arrays pin a quarter of the budget: the others need pages, too.
        """
        blocks = self.blocks_of(wanted)
        if len(blocks) != 1 or len(self._views) >= self.pool.budget_frames // 4:
            return None
        page = self._reopening(lambda: self._resident(blocks[0]))
        if page is None:
            return None
        first = wanted.start % self.block_size
        view = page[first : first + wanted.end - wanted.start]
        number = next(self._view_numbers)
        self._views[number] = weakref.ref(view, lambda _: self._views.pop(number, None))
        return view

    def read(self, ranges: Sequence[Range], fetch: Fetch, ahead: Iterable[Block] = ()) -> list[bytes | Exception]:
        """The bytes of each range, or an exception. Absent blocks are fetched together.

        ``ahead``: further blocks that are fetched with them, if any block of the ranges is absent.
        """
        wanted = [(asked, self.blocks_of(asked)) for asked in ranges]
        return self._reopening(lambda: self._read(wanted, fetch, list(ahead)))

    def _read(
        self, wanted: list[tuple[Range, list[Block]]], fetch: Fetch, ahead: list[Block]
    ) -> list[bytes | Exception]:
        every = {block.key: block for _, blocks in wanted for block in blocks}
        found: dict[bytes, Any] = {key: self._resident(block) for key, block in every.items()}
        missing = {key: block for key, block in every.items() if found[key] is None}
        if missing:
            # A read that waits, for a frame or for another client, pins no page: that one may wait for the pinned frame.
            found = {key: page.tobytes() for key, page in found.items() if page is not None}
            missing |= {block.key: block for block in ahead if block.key not in every and self._resident(block) is None}
            self._obtain(missing, found, fetch)
        return [self._joined(asked, [found[block.key] for block in blocks]) for asked, blocks in wanted]

    def _reopening(self, call: Callable[[], T]) -> T:
        """Returns what ``call`` returns. Opens the space again if it has been removed, by `bufferpool remove` or another program."""
        for _ in range(TRIES):
            try:
                return call()
            except SpaceRemoved:
                self._space = self._open()
        return call()

    def _joined(self, asked: Range, pages: list[Any]) -> bytes | Exception:
        wrong = next((page for page in pages if isinstance(page, Exception)), None)
        return b"".join(self._parts_of(asked, pages)) if wrong is None else wrong

    def _parts_of(self, wanted: Range, pages: list[Any]) -> list[memoryview]:
        """The parts of a range in the contents of its blocks."""
        if not pages:
            return []
        parts = [memoryview(page)[: self.block_size] for page in pages]
        first = wanted.start % self.block_size
        last = wanted.end - (wanted.end - 1) // self.block_size * self.block_size
        parts[-1] = parts[-1][:last]
        parts[0] = parts[0][first:]
        return parts

    def once(self, name: bytes, call: Callable[[], None]) -> None:
        """Calls ``call`` if no process has called this with the name before, as far as the pool remembers; else waits for that call, up to
        ONCE_S. ``call`` may not raise."""

        def called() -> bool:
            call()
            return True

        try:
            names = self._names
            if names is None:
                limit = max(NAMES_LEAST_BYTES, self.pool.capacity // NAMES_PART)
                names = self._names = self.pool.cache(NAMES, limit=limit)
            try:
                names.get_or_load(name, called, timeout=ONCE_S)
            except WaitTimeout:  # that process may be stopped: nobody else waits for it
                names.put(name, True)
        except BufferPoolError:  # no memory for the cache's table, or somebody removes the cache
            self._names = None

    # ---- places ----------------------------------------------------------------

    def _places(self, block: Block) -> tuple[int, int]:
        n = self._n_places
        one, two = int.from_bytes(block.key[:8]) % n, int.from_bytes(block.key[8:]) % n
        return one, two if two != one else (one + 1) % n

    def _resident(self, block: Block) -> np.ndarray | None:
        """The page that has the block, pinned; None if none has it."""
        for place in self._places(block):
            page = self._space.try_get(place)
            if page is not None and self._has(page, block):
                return page
        return None

    def _place_for(self, block: Block, taken: dict[int, Block]) -> int | None:
        """The page into which a block is loaded; None if blocks of the same call take both of its pages."""
        places = {place: self._holds(place, block) for place in self._places(block) if place not in taken}
        for state in (True, None):  # True: another process has loaded the block since it was found absent
            for place, holds in places.items():
                if holds is state:
                    return place
        first = next(iter(places), None)
        if first is not None:  # another block has the page, and a page has room for one block only
            with suppress(WaitTimeout):  # the page is in use: the read will find the other block there
                self._space.drop(first, 1)
        return first

    def _holds(self, place: int, block: Block) -> bool | None:
        """Whether a page has the block; None if the page is absent."""
        page = self._space.try_get(place)
        return None if page is None else self._has(page, block)

    # ---- loading ---------------------------------------------------------------

    def _obtain(self, missing: dict[bytes, Block], found: dict[bytes, Any], fetch: Fetch) -> None:
        """Loads the missing blocks into the pool, and adds their contents, or the exceptions, to ``found``."""
        for _ in range(TRIES):
            asked: dict[int, Block] = {}
            for block in missing.values():
                place = self._place_for(block, asked)
                if place is not None:
                    asked[place] = block
            for key, content in self._load_parts(list(self._parts(asked)), fetch):
                found[key] = content
                del missing[key]
            if not missing:
                return
            if self._is_full():
                break
        last = list(missing.values())
        found.update(zip(missing, fetch(last), strict=True))

    def _parts(self, asked: dict[int, Block]) -> Iterator[dict[int, Block]]:
        """Divides pages into parts that the pool loads at once, so that neighbouring blocks of a file are fetched together."""
        most = min(MOST_AT_ONCE, max(1, self.pool.budget_frames // 8))
        places = list(asked)
        for first in range(0, len(places), most):
            yield {place: asked[place] for place in places[first : first + most]}

    def _load_parts(self, parts: list[dict[int, Block]], fetch: Fetch) -> Iterator[tuple[bytes, Any]]:
        """Loads several parts at the same time, so that a large read waits for its origin once."""
        if len(parts) == 1:
            yield from self._load_part(parts[0], fetch).items()
            return
        with ThreadPoolExecutor(PARTS_AT_ONCE) as threads:
            for loaded in threads.map(lambda part: self._load_part(part, fetch), parts):
                yield from loaded.items()

    def _load_part(self, asked: dict[int, Block], fetch: Fetch) -> dict[bytes, Any]:
        """Has the pool load pages; returns the contents of the blocks that are there now, and what failed in this thread."""
        mine = self._asked
        mine.blocks, mine.fetch, mine.fetched = asked, fetch, {}
        found: dict[bytes, Any] = {}
        try:
            self._load_what_has_room(dict(asked), found)
        except LoaderFailed as failed:
            if failed.__cause__ is not None and not mine.fetched:
                raise failed.__cause__ from None
            # Blocks that have failed in another thread or process are fetched here next.
        except SharedMemoryFull:  # other programs have filled the tmpfs: absent blocks are read without the pool
            pass
        else:
            return found
        finally:
            fetched = mine.fetched
            mine.blocks, mine.fetch, mine.fetched = {}, None, {}
        return found | fetched

    def _load_what_has_room(self, left: dict[int, Block], found: dict[bytes, Any]) -> None:
        """Loads pages, or waits for the clients that load them, and adds their contents to ``found``.

        It waits for a frame only if nothing else can be done, and pins no page then.
        """
        waits = 0
        while left and waits < TRIES:
            absent = self._space.load_together(list(left))
            if self._take(left, found):
                continue
            waits += 1
            if absent and self._is_full():
                return
            try:
                self._space.load_early(next(iter(left)))
            except PoolExhausted:
                self._full_until = time.monotonic() + FULL_S
            self._take(left, found)

    def _is_full(self) -> bool:
        """Whether a read has just waited for a frame in vain. Then absent blocks are fetched past the pool, all of a read together."""
        return time.monotonic() < self._full_until

    def _take(self, left: dict[int, Block], found: dict[bytes, Any]) -> bool:
        """Moves the blocks that this thread has fetched, or that are in the pool, from ``left`` to ``found``. Whether there are some.

        What another block has taken the page of is in neither: its reader asks for another page.
        """
        n = len(left)
        for place, block in list(left.items()):
            page = self._space.try_get(place)  # counts the use
            fetched = self._asked.fetched.get(block.key)
            if fetched is not None:
                found[block.key] = fetched
            elif page is not None and self._has(page, block):
                found[block.key] = page.tobytes()
            elif page is None:
                continue
            del left[place]
        return len(left) < n

    def _has(self, page: np.ndarray, block: Block) -> bool:
        return bool(page[self.block_size :][:KEY_BYTES].tobytes() == block.key)

    def _load(self, place: int, out: np.ndarray) -> None:
        self._load_many([place], [out])

    def _load_many(self, places: list[int], outs: list[np.ndarray]) -> None:
        """Called by the pool, in the thread that asked, for the pages that it has claimed."""
        mine = self._asked
        if mine.fetch is None or not all(place in mine.blocks for place in places):
            raise StoreError("a page of remote blocks is loaded only by a read of its file; nothing to do")
        blocks = [mine.blocks[place] for place in places]
        contents = mine.fetch(blocks)
        mine.fetched.update({block.key: content for block, content in zip(blocks, contents, strict=True)})
        wrong = next((content for content in contents if isinstance(content, Exception)), None)
        if wrong is not None:
            raise wrong
        for block, content, out in zip(blocks, contents, outs, strict=True):
            out[: len(content)] = np.frombuffer(content, np.uint8)  # type: ignore[arg-type]
            out[self.block_size : self.block_size + KEY_BYTES] = np.frombuffer(block.key, np.uint8)
