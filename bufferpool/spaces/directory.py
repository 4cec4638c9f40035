"""The directory: the spaces of a segment, and how a handle finds its space.

Slots change under the segment's directory lock, so that two processes that open the
same space get the same one. Every process that opens or removes a space needs that lock, so no
store is called and no file is examined while it is held: a process asks the store
first, and starts over if the directory has changed when it gets the lock. A process that
also needs a space's flush lock takes that lock first, and never waits for it while it holds the directory lock.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from bufferpool._core import LONGEST_TEXT, MAX_SPACES
from bufferpool.client.client import Client, Record
from bufferpool.errors import (
    SpaceBusy,
    SpaceFull,
    SpaceMismatch,
    SpaceNotFound,
    SpacePrivate,
    SpaceRemoved,
    StoreError,
)
from bufferpool.figures.names import KERNEL_CACHE, Kind, kind_name
from bufferpool.spaces.claim import claimed, drop_unused, keep_store
from bufferpool.spaces.file_changes import changed, is_unchanged, recorded
from bufferpool.stores.base import MOST_PAGES, Caching, FileStore, Store, store_pages
from bufferpool.stores.checksum import CheckedFile, file_store
from bufferpool.stores.file_state import NO_FILE, FileState
from bufferpool.units import counted, is_utf8

DISCARDABLE, WRITABLE, CHECKSUM = 1, 2, 4  # flags of a space, as in core/layout/layout.h
GROWTH_PAGES = 1 << 20  # page numbers that a space which may grow gets, while there are many
_SHOWN = 20  # spaces that a message names
BUSY_S = 1.0  # seconds to wait for a space in use, before SpaceBusy
LOCKED_S = 30.0  # seconds to wait for a lock of another client, which is stopped then, or whose disk hangs


@dataclass
class Wanted:
    """A space that this process opens: the request, and the store or loader for its pages."""

    name: str
    kind: Kind
    options: dict[str, Any] = field(default_factory=dict)
    """The caller's request: path, mode, max_pages, checksum, repair; n_pages, version; lifetime, read_only, discardable.
    ``found``: the space exists, and is accepted as it is."""
    store: Store | None = None
    generation: int | None = None
    """The generation of the slot to which the handle is bound; None before."""
    slot: int = -1
    """The number of this slot: the next space of the name may have the same generation of another one."""
    patience: float = LOCKED_S
    """Seconds that this process waits, when it opens the space, for another client that opens or flushes one."""

    @property
    def private(self) -> bool:
        """Whether the space belongs to one process: scratch pages with lifetime "process"."""
        return self.kind is Kind.SCRATCH and bool(self.options.get("lifetime") == "process")

    @property
    def writable(self) -> bool:
        """Whether pages of the space may be written, if the pool is attached for writing."""
        if self.kind is Kind.SCRATCH:
            return not self.options.get("read_only")
        return self.kind is not Kind.DERIVED and self.options.get("mode") == "r+"


class NewSpace(NamedTuple):
    """A space that a process adds to the directory."""

    name: bytes
    path: bytes
    kind: Kind
    flags: int
    owned: bool
    """Whether it is private to the process."""
    pages: int
    max_pages: int
    state: FileState
    version: int


@dataclass
class Bound:
    """How a handle was bound: the space's record then, and its file."""

    record: Record
    store: FileStore | None
    binding: Any = None
    """What the core was given for the last copy: copies after it are given the same."""

    @property
    def slot(self) -> tuple[int, int]:
        """The space's slot, and the generation of it."""
        return self.record["index"], self.record["generation"]


def removed_message(name: str) -> str:
    """The message of SpaceRemoved."""
    return (
        f'space {name!r} has been removed from its pool since this handle was opened: by open_file(mode="w+"), '
        "open_derived with another version=, pool.discard(), pool.overwrite() or space.remove(), here or in another process; "
        "open it again"
    )


def busy(name: str) -> SpaceBusy:
    return SpaceBusy(
        f"{name!r} has pages that a living process is writing or loading; pool.clients() lists the clients; try again"
    )


def refuse_unfit(client: Client, wanted: Wanted, dtype: "np.dtype[Any]") -> None:
    """Checks a space before its store is asked. Raises TypeError, ValueError."""
    name = wanted.name
    if not isinstance(name, str):
        raise TypeError(f"a space's name must be a string, not {type(name).__name__}")
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        raise ValueError(f"a space's name must be text that UTF-8 can encode, not {name!r}; pass name=") from None
    if not 1 <= size < LONGEST_TEXT or "\0" in name:
        raise ValueError(
            f"a space's name must be 1 to {LONGEST_TEXT - 1} bytes long, without NUL, not {name!r}; pass name="
        )
    if dtype.itemsize == 0 or client.page_size % dtype.itemsize or dtype.hasobject or dtype.subdtype:
        raise ValueError(
            f"dtype {dtype} does not fit: its size must divide the page size {client.page_size}, and it must hold plain values"
        )
    if wanted.options.get("max_pages") is not None:
        count_of(wanted.options["max_pages"], "max_pages")


def bind(client: Client, wanted: Wanted, dtype: "np.dtype[Any]", truncate: bool = False) -> Record:
    """Finds the space's slot in the directory, or fills one; returns its record."""
    options = wanted.options
    refuse_unfit(client, wanted, dtype)
    client.warn_if_nameless()
    if wanted.kind is Kind.FILE and wanted.store is None:
        wanted.store = _store_of_a_copy(client, wanted) or file_store(
            options["path"], options["mode"], client.page_size, bool(options.get("checksum")), options.get("repair"),
            options["cache"],
        )  # fmt: skip
    store, record = wanted.store, None
    try:
        with claimed(client, store) if isinstance(store, FileStore) and options["mode"] == "r+" else nullcontext():
            while record is None:  # None: the directory has changed meanwhile
                record = _connect(client, wanted, truncate)
    finally:
        drop_unused(client)
    if store is not None and wanted.kind in (Kind.FILE, Kind.STORE):
        mine = client.stores.get(record["index"])
        if mine is None or mine[0] != record["generation"] or options.get("mode") == "r+":
            keep_store(client, record, store)
    if (key := _key_of(client, wanted, dtype, (record["index"], record["generation"]))) is not None:
        client.bound[key] = Bound(record, store if isinstance(store, FileStore) else None)
    return record


def _key_of(client: Client, wanted: Wanted, dtype: "np.dtype[Any]", slot: tuple[int, int]) -> tuple[object, ...] | None:
    """What all handles have in common that are bound alike; None for a private space, or one with a store or code of its own."""
    if wanted.private or wanted.kind is Kind.STORE or wanted.options.get("repair") is not None:
        return None
    return client.mode, wanted.name, *slot, dtype, *wanted.options.items()


def bound_before(client: Client, wanted: Wanted, dtype: "np.dtype[Any]") -> Bound | None:
    """How this process has bound an earlier copy of an unpickled space, which is the same space with the same pages.

    Executors unpickle the arguments of each task anew, so that a copy must cost microseconds. None: there was no such
    copy, or its file is no longer as it was then.
    """
    if wanted.generation is None:
        return None
    segment = client.seg  # attaches; a copy then shares what its process has bound
    key = _key_of(client, wanted, dtype, (wanted.slot, wanted.generation))
    found: Bound | None = None if key is None else client.bound.get(key)
    if found is None or not segment.is_current(*found.slot):
        return None
    if found.store is None:
        return found
    record = segment.space(found.record["index"])
    if record is None or record["generation"] != wanted.generation or not found.store.is_at_path():
        return None
    before, now = recorded(record), found.store.state()
    same = not before.doubt and (now.content, now.ctime_ns) == (before.content, before.ctime_ns)
    return found if same else None


def _store_of_a_copy(client: Client, wanted: Wanted) -> FileStore | None:
    """The store that this process already has open for an unpickled space, so that its copies share one descriptor."""
    options = wanted.options
    if options.get("repair") is not None:
        return None
    for record in spaces_named(client, wanted.name):
        _, store = client.stores.get(record["index"], (0, None))
        if (
            isinstance(store, FileStore)
            and store.path == options["path"]
            and store.writable == (options["mode"] == "r+")
            and isinstance(store, CheckedFile) == bool(options.get("checksum"))
            and getattr(store, "repair", None) is None
            and store.cache == options["cache"]
            and store.is_at_path()
        ):
            return store
    return None


def _state(store: Store | None) -> FileState:
    return store.state() if isinstance(store, FileStore) else NO_FILE


def _connect(client: Client, wanted: Wanted, truncate: bool) -> Record | None:
    """Tries once to find the slot of the space, or to fill one. Returns None if the directory has changed meanwhile."""
    removals, state = client.seg.removals(), _state(wanted.store)
    record = _find_record(client, wanted, state, truncate)
    before = None if wanted.generation is None else (wanted.slot, wanted.generation)
    if before is not None and (record is None or (record["index"], record["generation"]) != before):
        raise SpaceRemoved(removed_message(wanted.name))
    if record is None and wanted.options.get("found"):
        raise SpaceNotFound(no_such_space(client, wanted.name))
    if record is not None:
        if _has_another_version(wanted, record):
            client.require_writable(f"replace {wanted.name!r}, whose pages another version of its loader made")
            return _add_space(client, wanted, state, False, record)
        return _refresh_file(client, wanted, record, truncate) if wanted.kind is Kind.FILE else record
    if isinstance(wanted.store, FileStore):
        state = wanted.store.fresh_state()
    return _add_space(client, wanted, state, truncate, None, removals)


def _find_record(client: Client, wanted: Wanted, state: FileState, truncate: bool) -> Record | None:
    """The record of the space, if it exists; else None. Raises SpaceMismatch."""
    store = wanted.store
    for other in client.seg.spaces_of_file(*state.file) if wanted.kind is Kind.FILE else ():
        if other["name"] != wanted.name and _same_file(other, state):
            raise SpaceMismatch(
                f"{other['path']} is in the pool already, as {other['name']!r}; pass name={other['name']!r}"
            )
    record = visible(client, wanted.name, private=wanted.private)
    if record is None:
        return None
    if record["kind"] != wanted.kind:
        raise SpaceMismatch(
            f"space {wanted.name!r} is a {kind_name(record['kind'])} space, not {wanted.kind.name.lower()}; {_other_or_discard(wanted)}"
        )
    limit = None if truncate or wanted.generation is not None else wanted.options.get("max_pages")
    if limit not in (None, record["max_pages"]):
        raise SpaceMismatch(
            f"space {wanted.name!r} was opened with room for {record['max_pages']} pages, not {limit}; omit max_pages, or remove the "
            f"space first: flush it, then pool.discard({wanted.name!r})"
        )
    if wanted.kind is Kind.FILE:
        assert isinstance(store, FileStore)
        if record["path"] != store.path and not _same_file(record, state):
            raise SpaceMismatch(
                f"space {wanted.name!r} is the file {record['path']}, not {store.path}; pass another name="
            )
        if not truncate and bool(record["flags"] & CHECKSUM) != bool(wanted.options.get("checksum")):
            raise SpaceMismatch(
                f"space {wanted.name!r} was opened {'with' if record['flags'] & CHECKSUM else 'without'} checksums; "
                f"pass checksum={bool(record['flags'] & CHECKSUM)}, or remove the space first: flush it, then pool.discard({wanted.name!r})"
            )
    elif not _has_another_version(wanted, record):
        _refuse_another(wanted, record)
    return record


def _same_file(record: Record, state: FileState) -> bool:
    return record["kind"] == Kind.FILE and recorded(record).file == state.file


def spaces_named(client: Client, name: str) -> list[Record]:
    """The records of all spaces with a name: the shared one, and private ones of all processes."""
    if not isinstance(name, str):
        raise TypeError(f"a space's name must be a string, not {type(name).__name__}")
    return [r for r in client.seg.spaces_named(name.encode()) if r["name"] == name] if is_utf8(name) else []


def visible(client: Client, name: str, *, private: bool) -> Record | None:
    """The record of the space that this process finds by a name; None if there is none.

    Private scratch spaces of other processes are not found. If there are a shared and a private space of the name,
    ``private`` chooses.
    """
    found = [r for r in spaces_named(client, name) if r["mine"] or not r["owner"]]
    found.sort(key=lambda r: r["mine"] != private)
    return found[0] if found else None


@contextmanager
def _once(client: Client, wanted: Wanted, state: FileState) -> Iterator[bool]:
    """Held while a space is added: among all page sizes of a pool there is one space of a name, and of a file.

    Gives whether the pool has other page sizes. Raises SpaceMismatch if a space of another size has the name, or the file,
    and SpaceBusy if the page size was just removed.
    """
    home = client.home()
    if not client.is_part and (wanted.private or not home.seg.page_sizes()[0]):
        yield False
        return
    with home.lock_sizes(wanted.patience):
        if client.is_part and (not home.seg.page_sizes()[0] & client.page_size or client.was_removed_from(home)):
            raise SpaceBusy(
                f"pages of {client.page_size} bytes were removed from pool {home.name!r} (remove_page_size): open the space in that pool, "
                f"with page_size={client.page_size}"
            )
        for other in (home, *home.others()) if not wanted.private else ():
            if other.page_size != client.page_size:
                _refuse_in(other, client, wanted, state)
        yield True


def _refuse_in(other: Client, client: Client, wanted: Wanted, state: FileState) -> None:
    if visible(other, wanted.name, private=False) is not None:
        raise SpaceMismatch(
            f"space {wanted.name!r} has pages of {other.page_size} bytes, not {client.page_size}: pass page_size={other.page_size}, "
            f"use another name, or remove that space first: flush it, then pool.discard({wanted.name!r})"
        )
    for record in other.seg.spaces_of_file(*state.file) if wanted.kind is Kind.FILE else ():
        if _same_file(record, state):
            raise SpaceMismatch(
                f"{record['path']} is in the pool already, as {record['name']!r} with pages of {other.page_size} bytes: pass "
                f"name={record['name']!r} and page_size={other.page_size}"
            )


def no_such_space(client: Client, name: str) -> str:
    """The message for a name that is not found, with the names of the spaces."""
    theirs = [r["owner"] for r in spaces_named(client, name) if r["owner"] and not r["mine"]]
    if theirs:
        return (
            f'the space {name!r} of pool {client.name!r} is private to client {theirs[0]} (lifetime="process"; see '
            'pool.clients()); make one here with pool.open_scratch(), or share one with lifetime="pool"'
        )
    names = [r["name"] for r in client.seg.spaces() if r["mine"] or not r["owner"]]
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"pool {client.name!r} has no space {name!r}; it has {names[:_SHOWN]}{more}"


def _has_another_version(wanted: Wanted, record: Record) -> bool:
    """Whether an existing derived space has another version than the one that is being opened."""
    if wanted.kind is not Kind.DERIVED or wanted.generation is not None or "version" not in wanted.options:
        return False  # it is opened by its name alone, or is an unpickled copy: any version will do
    return bool(record["version"] != wanted.options["version"])


def _other_or_discard(wanted: Wanted) -> str:
    """The remedy if a name belongs to another space."""
    return f"use another name, or remove the existing space (pool.discard({wanted.name!r}); its dirty pages are lost)"


def _refuse_another(wanted: Wanted, record: Record) -> None:
    """Raises SpaceMismatch if an existing derived or scratch space differs from the request."""
    if wanted.options.get("found") or wanted.generation is not None or wanted.kind is Kind.STORE:
        return
    asked = wanted.options
    few = asked["n_pages"] > record["pages"]  # a scratch space may have more, by append() or grow()
    if few or (wanted.kind is Kind.DERIVED and asked["n_pages"] != record["pages"]):
        grow = (
            f"open it with n_pages={record['pages']}, and make it longer (grow), "
            if wanted.kind is Kind.SCRATCH
            else ""
        )
        raise SpaceMismatch(
            f"space {wanted.name!r} has {counted(record['pages'], 'page')}, not {asked['n_pages']}; {grow}{_other_or_discard(wanted)}"
        )
    if wanted.kind is Kind.SCRATCH:
        has = ("process" if record["owner"] else "pool", bool(record["flags"] & DISCARDABLE))
        if has != (asked["lifetime"], asked["discardable"]):
            raise SpaceMismatch(
                f"space {wanted.name!r} has lifetime={has[0]!r} and discardable={has[1]}; {_other_or_discard(wanted)}"
            )


def _refresh_file(client: Client, wanted: Wanted, record: Record, truncate: bool) -> Record | None:
    """Drops stale pages if the file has changed; replaces the space if the file is another one or was cut.

    Returns the record, or None: the space was removed meanwhile.
    """
    seg, index, store = client.seg, record["index"], wanted.store
    assert isinstance(store, FileStore)
    before, now = recorded(record), store.state()
    if not truncate and not before.doubt and (now.content, now.ctime_ns) == (before.content, before.ctime_ns):
        return record
    with seg.lock_flush(index, True, wanted.patience) as held:
        store.fresh_state()  # taken before the state that is recorded below
        found = client.current(record)
        if found is None:
            return None
        if not truncate and not held.interrupted and is_unchanged(client, found, store, opening=True):
            _record_state(client, record, store.state(), patience=wanted.patience)  # this record is less doubtful
            return client.current(record)
        before, now = recorded(found), store.state()
        another, cut = now.file != before.file, now.size < before.size
        dirty = 0 if truncate else client.dirty_pages(found)
        if dirty and (another or cut or not held.interrupted):
            what = "is another file now" if another else "was cut" if cut else "was changed"
            raise changed(client, found, f"{what} by another program", dirty)
        if held.interrupted and not truncate:
            store.pad_to_whole_pages(before.size, client.page_size)
            now = store.state()
        if truncate or another or now.size < found["stored"] * client.page_size:
            return _add_space(client, wanted, now, truncate, found)
        adopt(client, found, store)
        return client.current(record)


def adopt(client: Client, record: Record, store: FileStore) -> None:
    """Accepts the present file as the space's file, and drops the clean pages in memory. Needs the flush lock.

    Raises FileSizeMismatch, SpaceFull, StoreError.
    """
    seg, index, state = client.seg, record["index"], store.state()
    pages = store.pages(client.page_size, state.size)
    done, freed = seg.drop_clean(index)
    if not done:
        raise StoreError(f"{store.path} was changed, and pages of it are being written or loaded; try again")
    if freed:
        client.give_back(freed, "drop")
    _record_state(client, record, state, pages)


def _record_state(client: Client, record: Record, state: FileState, pages: int = 0, patience: float = LOCKED_S) -> None:
    """Records the state of a file, which has so many pages at least, unless another space has the slot by now. Needs the flush lock."""
    seg, index = client.seg, record["index"]
    with seg.lock_directory(patience):
        if client.current(record) is not None:
            seg.grow_space(index, pages)
            seg.record_store(index, pages, False, state)


def _pages_of(client: Client, wanted: Wanted, state: FileState, truncate: bool) -> int:
    """The number of pages of a new space: that of its store, or the requested one."""
    store = wanted.store
    if isinstance(store, FileStore):
        return 0 if truncate else store.pages(client.page_size, state.size)
    if store is None:
        return int(wanted.options["n_pages"])
    return store_pages(store, client.page_size)


def _add_space(
    client: Client, wanted: Wanted, state: FileState, truncate: bool, old: Record | None, removals: int | None = None
) -> Record | None:
    """Adds the space, instead of ``old`` if given (whose flush lock the caller holds).

    Returns None, and does nothing, if the directory has changed since it was read. If there was no space, ``removals`` is how many
    had been removed when ``state`` was read: since then, a space of the same file may have been opened, flushed and removed. A file that is to be emptied is
    emptied last, after all checks; until then its record has a time that no file can have, so
    that a process that opens it meanwhile waits for the flush lock.
    """
    seg, pages, held = client.seg, _pages_of(client, wanted, state, truncate), None
    known = NO_FILE._replace(device=state.device, inode=state.inode) if truncate else state
    with nullcontext(True) if old else _once(client, wanted, state) as once, seg.lock_directory(wanted.patience):
        found = _find_record(client, wanted, state, truncate)
        if removals is not None and seg.removals() != removals:
            return None
        if (found and (found["index"], found["generation"])) != (old and (old["index"], old["generation"])):
            return None
        freed = seg.remove_space(old["index"])[1] if old and not truncate else 0
        index = _take_slot(client, wanted, pages, known)
        if not once and not wanted.private and client.home().seg.page_sizes()[0]:
            seg.remove_space(index)  # the first other page size was made meanwhile, and may have a space of this name
            return None
        if truncate:
            held = seg.lock_flush(index, False)
            if held is None:  # a flush of the slot's former space is just ending
                seg.remove_space(index)
                return None
            freed = seg.remove_space(old["index"])[1] if old else 0
        record = client.record(index)
    if freed:
        client.give_back(freed, "drop")
    if held is None:
        return record
    with held:
        store = wanted.store
        assert isinstance(store, FileStore)
        os.ftruncate(store.fd, 0)
        _record_state(client, record, store.state(), patience=wanted.patience)
    return client.current(record)


def _room_to_grow(client: Client) -> int:
    """How many page numbers a space that may grow gets: many for the first spaces, and fewer later, so that thousands of spaces find some."""
    most, free = client.geometry["max_pages"], client.seg.free_pages()
    return GROWTH_PAGES if free > most // 2 else int(min(free // (2 * MAX_SPACES), GROWTH_PAGES))


def _take_slot(client: Client, wanted: Wanted, pages: int, state: FileState) -> int:
    """Fills a slot of the directory, under its lock; returns the slot's number."""
    options, store = wanted.options, wanted.store
    fixed = options.get("max_pages")
    if fixed is not None and count_of(fixed, "max_pages") < pages:
        raise ValueError(f"max_pages ({fixed}) is below the {pages} pages that exist")
    if fixed is None:
        least = max(pages, 1) if wanted.kind is Kind.DERIVED else max(2 * pages, 1024)
        fixed = least if store is None else max(least, _room_to_grow(client))
    flags = (DISCARDABLE if options.get("discardable") else 0) | (WRITABLE if options.get("mode") == "r+" else 0)
    flags |= CHECKSUM if options.get("checksum") else 0
    flags |= KERNEL_CACHE if isinstance(store, FileStore) and store.caching is Caching.KERNEL else 0
    made = NewSpace(
        name=wanted.name.encode(),
        path=os.fsencode(store.path if isinstance(store, FileStore) else ""),
        kind=wanted.kind,
        flags=flags,
        owned=options.get("lifetime") == "process",
        pages=pages,
        max_pages=fixed,
        state=state,
        version=options.get("version", 0),
    )
    while True:
        try:
            return client.seg.add_space(made, wanted.patience)
        except SpaceFull:  # without max_pages, the numbers for growth are optional
            if options.get("max_pages") is not None or made.max_pages <= max(pages, 1):
                raise
            made = made._replace(max_pages=max(pages, 1, made.max_pages // 4))


def remove(client: Client, name: str, index: int, generation: int | None, discard: bool) -> int:
    """Removes a space from the pool; waits up to BUSY_S seconds while its pages are written, loaded or flushed.

    Returns the number of dirty pages that are lost. Raises SpaceRemoved, SpaceBusy.
    """
    deadline = time.monotonic() + BUSY_S
    while True:
        lost = remove_now(client, name, index, generation, discard)
        if lost is not None:
            return lost
        if time.monotonic() > deadline:
            raise busy(name)
        time.sleep(0.002)


def remove_now(
    client: Client, name: str, index: int, generation: int | None, discard: bool, *, flushing: bool = False
) -> int | None:
    """Tries once to remove a space; returns the number of lost dirty pages, or None if its pages are in use.

    ``flushing``: the caller has its flush lock. Without this lock a flush might begin now, and write to the file while the next
    space of this file is opened: for that one it would be a change by another program.
    """
    seg = client.seg
    with seg.lock_directory(LOCKED_S):
        record = client.record(index)
        if record["generation"] != generation:
            raise SpaceRemoved(removed_message(name))
        if record["owner"] and not record["mine"]:
            raise SpacePrivate(f"{name!r} is private to client {record['owner']}, and only that client can remove it")
        dirty = client.dirty_pages(record)
        if dirty and not discard:
            raise SpaceBusy(
                f"{name!r} has {counted(dirty, 'dirty page')} that the flush has left: newer than the flush, or with an LSN above "
                "the durable LSN; flush again, or discard the changes (discard=True)"
            )
        if seg.space_in_use(index):
            return None
        held = nullcontext() if flushing else seg.lock_flush(index, False)
        if held is None:
            return None
        with held:  # pages that an operation has just begun to use are removed when it ends
            _, freed = seg.remove_space(index)
    drop_unused(client)
    if freed:
        client.give_back(freed, "drop")
    return dirty


def record_named(client: Client, name: str) -> Record:
    """The record of the space ``name``: this process's own comes first. Raises SpaceNotFound."""
    record = visible(client, name, private=True)
    if record is None:
        raise SpaceNotFound(no_such_space(client, name))
    return record


def records_of(client: Client, index: int, generation: int | None) -> list[Record]:
    """The record of the space of a handle, in a list; none if it has been removed."""
    record = client.seg.space(index)
    return [record] if record is not None and record["generation"] == generation else []


def count_of(value: int, what: str) -> int:
    """Checks a number of pages, and returns it. Raises TypeError, ValueError."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{what} must be an integer, not {type(value).__name__}")
    if value < 0:
        raise ValueError(f"{what} must not be negative")
    if value > MOST_PAGES:
        raise ValueError(f"{what} must be below {MOST_PAGES + 1}, not {value}")
    return int(value)


def version_of(version: int | str | None) -> int:
    """The number that the segment stores for the version of a derived space: a hash, or 0 for None. Raises TypeError."""
    if version is None:
        return 0
    if isinstance(version, bool) or not isinstance(version, (int, np.integer, str)):
        raise TypeError(f"version must be an integer or a string, not {type(version).__name__}")
    named = f"str {version!s}" if isinstance(version, str) else f"int {int(version)}"
    from hashlib import blake2b  # not at the top: it imports OpenSSL

    return int.from_bytes(blake2b(named.encode(errors="surrogatepass"), digest_size=8).digest(), "little") or 1
