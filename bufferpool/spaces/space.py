"""Spaces: numbered pages with one origin."""

import os
from collections.abc import Callable, Iterator, Sequence
from enum import IntEnum
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import numpy.typing as npt

from bufferpool import _core
from bufferpool.errors import LoaderFailed, LoaderReturned, PageOutOfRange, SpacePrivate, StoreError, WouldDeadlock
from bufferpool.figures.events import What
from bufferpool.printable import shown
from bufferpool.stores.base import Buffer, FileStore, GuardedBuffer, Store, read_page
from bufferpool.stores.checksum import CheckedFile
from bufferpool.upkeep import trouble

if TYPE_CHECKING:
    from bufferpool.pool import Pool

Loader = Callable[[int, npt.NDArray[Any]], None]
Ids = Sequence[int] | npt.NDArray[np.integer[Any]] | range


def _is_deadlock(error: BaseException | None) -> bool:
    """Whether a loader failed only because it and others waited for each other."""
    while error is not None and not isinstance(error, WouldDeadlock):
        error = error.__cause__
    return error is not None


class Kind(IntEnum):
    """What is behind the pages of a space."""

    FILE = 1
    DERIVED = 2
    SCRATCH = 3
    STORE = 4


def removed_message(name: str) -> str:
    """What SpaceRemoved says of a space."""
    return (
        f'space {name!r} has been removed from its pool since this handle was opened: by open_file(mode="w+"), '
        "open_derived with another version=, pool.discard(), pool.overwrite() or space.remove(), here or in another process; "
        "open it again"
    )


def kind_name(kind: int) -> str:
    """The name of a kind of space, as the segment has it."""
    return Kind(kind).name.lower() if kind in Kind._value2member_map_ else f"kind {kind}"


class Space(_core.Space):
    """Pages of one origin, shared by all processes of the pool.

    Made by :meth:`Pool.open_file`, :meth:`Pool.open_derived`, :meth:`Pool.open_store`
    and :meth:`Pool.scratch`. ``space[n]`` is page ``n``: a read-only array of
    ``space.dtype`` and shape ``(page_size // itemsize,)`` that keeps the page
    pinned for as long as any array looks at it; ``space[-1]`` is the last page (methods
    take page numbers from 0 only, so that a -1 by mistake is found).
    ``space[a:b]`` is a read-only copy of several pages, of shape ``(b - a, page_size // itemsize)``
    (pages do not lie side by side in the pool; ``pin_many(range(a, b))`` gives them without a copy). Pickles: in the other process
    it attaches when first used.

    ``append()`` hands out the next page number at once (``Write.page_no``); the
    page exists when its block has ended. A number that was handed out and never
    published reads as zeros once a later page exists.
    """

    _store: Store | None = None
    _loader: Loader | None = None
    _generation: int | None = None  # of the slot that the handle was bound to

    def __init__(self, pool: "Pool", name: str, kind: Kind, dtype: npt.DTypeLike, options: dict[str, Any]) -> None:
        self.pool = pool
        self.name = name
        self.kind = kind
        self.dtype = np.dtype(dtype)
        self._options = options
        self.index = -1

    def __repr__(self) -> str:
        return f"<Space {self.name!r} ({self.kind.name.lower()}) of pool {self.pool.name!r}>"

    def __reduce__(self) -> tuple[Any, ...]:
        if self.private:
            raise SpacePrivate(
                f'{self!r} belongs to this process alone (owner="client") and cannot be pickled: '
                'make one in the other process, or share one (owner="pool")'
            )
        return (
            Space,
            (self.pool, self.name, self.kind, self.dtype, self._options),
            {
                "_loader": self._loader,
                "_store": None if isinstance(self._store, FileStore) else self._store,
                "_generation": self._generation,
            },
        )

    @property
    def private(self) -> bool:
        """Whether the space belongs to one process alone: scratch pages with owner "client"."""
        return self.kind is Kind.SCRATCH and bool(self._options.get("owner") == "client")

    def __iter__(self) -> Iterator[np.ndarray]:
        return self.scan()

    def __reversed__(self) -> Iterator[np.ndarray]:
        return (self[page_no] for page_no in range(len(self) - 1, -1, -1))

    def __bool__(self) -> bool:
        """True, for a space without pages too: `if space:` asks whether there is a handle."""
        return True

    def __contains__(self, page_no: object) -> bool:
        """Whether the space has a page of this number."""
        if isinstance(page_no, (int, np.integer)) and not isinstance(page_no, bool):
            return 0 <= int(page_no) < len(self)
        raise TypeError(f"`in` asks for a page number, which is an integer, not {type(page_no).__name__}")

    def __setitem__(self, page_no: object, value: object) -> NoReturn:
        raise TypeError(
            "pages are written in a block, which publishes the new version as a whole: "
            "`with space.write(n) as page: page[:] = ...`"
        )

    def _slice(self, pages: slice) -> npt.NDArray[Any]:
        """Called by the core for ``space[a:b]``: a copy of these pages, which cannot be written."""
        copied = self.read_many(range(*pages.indices(len(self))))
        copied.flags.writeable = False
        return copied

    def _attach(self) -> None:
        """Called by the core when an unpickled space is first used."""
        self.pool._bind(self)

    def _fill(self, page_no: int) -> tuple[Buffer, bool]:
        """Called by the core on a miss that Python must serve: the page, and whether the store has something else."""
        page_size = self.pool.page_size
        if self._loader is None:
            if self._store is None:
                raise StoreError(f"{self!r} has no store in this process; open it here too")
            if page_no >= self.pool._record(self.index)["stored"]:
                return np.zeros(page_size, np.uint8), False
            if isinstance(self._store, CheckedFile):
                page, repaired = self._store.load(page_no, self.name, self.pool._seg.count)
                return page, repaired and self._store.writable and self.pool.mode == "r+"
            return read_page(self._store, page_no, page_size), False
        buffer = GuardedBuffer(page_size)
        try:
            returned = self._loader(page_no, buffer.page.view(self.dtype))
        except Exception as error:
            # Of loaders that ask for each other's pages only the innermost tells: a repr of a repr doubles its quotes.
            what = "it needs a page whose loader failed" if isinstance(error, LoaderFailed) else shown(error)
            failed = LoaderFailed(
                f"the loader of {self.name!r} raised for page {page_no}: {what}; nothing was published"
            )
            if not _is_deadlock(error):  # that is over for those who waited
                failed.told = str(failed).encode(errors="backslashreplace").replace(b"\0", b"")
            raise failed from error
        buffer.check(f"the loader of {self.name!r}")
        if returned is not None:
            raise LoaderReturned(
                f"the loader of {self.name!r} returned {type(returned).__name__} for page {page_no}; nothing was published: "
                "write the page into the array that it is given (out[:] = ...), and return nothing"
            )
        return buffer.page, False

    def _load_failed(self, page_no: int, error: BaseException, number: int) -> None:
        """Called by the core when a load has failed; ``number`` is the errno of a read that the core did itself."""
        if number:
            error.__cause__ = OSError(number, os.strerror(number))
        if self._loader is None and isinstance(error, StoreError):
            trouble.tell(
                self.pool,
                What.LOAD_FAILED,
                error,
                trouble.Origin(self.index, self._generation or 0, self.name, page_no),
            )

    def _range(self, first: int, count: int | None) -> tuple[int, int]:
        pages = len(self)
        if (
            isinstance(first, bool)
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
                f"{what} {'does' if size < 2 else 'do'} not exist: {self.name!r} has {pages} pages, numbered from 0"
            )
        return int(first), size

    def prefetch(self, ids: Ids) -> int:
        """Reads pages ahead, without pinning them; returns how many were loaded.

        A page read ahead earns no place among the hot ones until it is used.
        For a file, it first asks the kernel to read ahead (posix_fadvise), so that the reads
        overlap. Raises as ``space[n]`` does.
        """
        numbers = np.asarray(ids)
        valid = numbers.ndim == 1 and numbers.size and numbers.dtype.kind in "iu"
        if isinstance(self._store, FileStore) and valid and numbers.min() >= 0 and numbers.max() < len(self):
            size, numbers = self.pool.page_size, np.unique(numbers)
            for run in np.split(numbers, np.flatnonzero(np.diff(numbers) != 1) + 1):
                os.posix_fadvise(self._store.fd, int(run[0]) * size, len(run) * size, os.POSIX_FADV_WILLNEED)
        return self._load_many(ids)

    def scan(self, start: int = 0, stop: int | None = None, *, ahead: int = 32) -> Iterator[np.ndarray]:
        """The pages from ``start`` to before ``stop``, in order, each as ``space[n]``.

        As in a slice, bounds beyond the last page count as the end of the space; negative ones are refused.
        Reads ``ahead`` pages ahead, and leaves the pages of others in the pool: a page
        seen by a scan counts as no reference for the replacement policy.

        Raises TypeError and ValueError at once, and what ``space[n]`` raises when it gets to a page.
        """
        pages = len(self)
        bounds = {"start": start, "stop": pages if stop is None else stop, "ahead": ahead}
        for what, value in bounds.items():
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
                raise TypeError(f"{what} must be an integer, not {type(value).__name__}")
            if value < (what == "ahead"):
                raise ValueError(f"{what} must be at least {int(what == 'ahead')}, not {value}")
        return self._scan(int(start), min(int(bounds["stop"]), pages), int(ahead))

    def _scan(self, start: int, end: int, ahead: int) -> Iterator[np.ndarray]:
        ahead = max(1, min(ahead, self.pool.budget_frames // 8))
        for first in range(start, end, ahead):
            last = min(first + ahead, end)
            self.prefetch(range(first, last))
            for page_no in range(first, last):
                yield self._once(page_no)

    def drop(self, first: int = 0, count: int | None = None) -> int:
        """Drops pages now, without write-back, and gives their memory back.

        Returns the number of bytes that the kernel got back. A file's pages read as the
        file has them afterwards, scratch pages as zeros, derived pages are
        made anew. A page that a reader has pinned stays whole for that reader,
        and its memory comes free when the reader is done.

        Raises PageOutOfRange, WaitTimeout.
        """
        self.pool._require_writable("drop pages")
        first, count = self._range(first, count)
        freed = self._drop_range(first, count) if count else 0
        return self.pool._give_back(freed, "drop")

    def flush(self, *, timeout: float | None = None) -> int:
        """Writes the dirty pages of this space and syncs its store; returns their number.

        Raises StoreError, WaitTimeout."""
        return self.pool.flush(self, timeout=timeout)

    def _removed(self) -> str:
        """The message of SpaceRemoved, which the core raises too."""
        return removed_message(self.name)

    def remove(self, *, discard: bool = False) -> None:
        """Takes the space out of the pool, for every process.

        Dirty pages are flushed first, or lost with ``discard=True``. Other
        processes' handles raise SpaceRemoved from then on; arrays that look at
        pages stay valid. Raises SpaceBusy, StoreError.
        """
        self.pool._remove(self, discard)

    def close(self) -> None:
        """Ends the use of the space by this handle.

        A scratch space with owner "client" is removed by the process that owns it;
        everything else stays warm in the pool.
        """
        if self.private and self.pool._owns(self):
            self.remove(discard=True)

    def __enter__(self) -> "Space":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
