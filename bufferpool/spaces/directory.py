"""The directory: which spaces a segment has, and which handle belongs to which.

Slots change under the segment's directory lock, so that two processes that open the
same space get the same one. Every process that opens or removes a space needs that lock, so no
store is called and no file is looked at while it is held: a process asks the store
first, and starts over if the directory has changed by the time it has the lock. A process that
also needs a space's flush lock takes that first: nobody waits for it with the directory lock held.
"""

import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np

from bufferpool.errors import (
    SpaceBusy,
    SpaceFull,
    SpaceMismatch,
    SpaceNotFound,
    SpacePrivate,
    SpaceRemoved,
    StoreError,
)
from bufferpool.spaces.claim import claimed, drop_unused, keep_store
from bufferpool.spaces.file_state import NO_FILE, FileState, changed, is_unchanged, recorded
from bufferpool.spaces.space import Kind, Space, kind_name, removed_message
from bufferpool.stores.base import MOST_PAGES, Buffer, FileStore, Store, store_pages
from bufferpool.stores.checksum import CheckedFile
from bufferpool.upkeep.jobs import working_on
from bufferpool.upkeep.writeback import (
    CHECKSUM,
    current,
    dirty_pages,
    file_store,
    flush_space,
    open_to_write,
    telling,
    write_over,
)

if TYPE_CHECKING:
    from bufferpool.pool import Pool

DISCARDABLE, WRITABLE = 1, 2
GROWTH_PAGES = 1 << 20  # entries reserved for a space that may grow
BUSY_S = 1.0  # how long a space in use is waited for, to be removed


def _busy(name: str) -> SpaceBusy:
    return SpaceBusy(
        f"{name!r} has pages that a living process is writing or loading; pool.clients() says who; try again"
    )


def record_of(pool: "Pool", index: int) -> dict[str, Any]:
    for record in pool._seg.spaces():
        if record["index"] == index:
            return record
    raise SpaceNotFound("the space has been removed from its pool; open it again")


def refuse_unfit(pool: "Pool", space: Space) -> None:
    """What can be said against a space before its store is looked at. Raises TypeError, ValueError."""
    name, dtype = space.name, space.dtype
    if not isinstance(name, str):
        raise TypeError(f"a space's name must be a string, not {type(name).__name__}")
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        raise ValueError(f"a space's name must be text that UTF-8 can encode, not {name!r}; pass name=") from None
    if not 1 <= size <= 63 or "\0" in name:
        raise ValueError(f"a space's name must be 1 to 63 bytes long, without NUL, not {name!r}; pass name=")
    if dtype.itemsize == 0 or pool.page_size % dtype.itemsize or dtype.hasobject or dtype.subdtype:
        raise ValueError(
            f"dtype {dtype} does not fit: its size must divide the page size {pool.page_size}, and it must hold plain values"
        )
    if space._options.get("max_pages") is not None:
        count_of(space._options["max_pages"], "max_pages")


def bind(pool: "Pool", space: Space, truncate: bool = False) -> None:
    """Finds the space's slot in the segment, or makes it, and connects the handle."""
    options = space._options
    refuse_unfit(pool, space)
    pool._warn_if_nameless()
    if space.kind is Kind.FILE and space._store is None:
        space._store = _store_of_a_copy(pool, options) or file_store(
            options["path"], options["mode"], pool.page_size, bool(options.get("checksum")), options.get("repair")
        )
    store, record = space._store, None
    try:
        with claimed(pool, store) if isinstance(store, FileStore) and options["mode"] == "r+" else nullcontext():
            while record is None:  # None: the directory has changed since we looked
                record = _connect(pool, space, truncate)
    finally:
        drop_unused(pool)
    fd = store.fd if isinstance(store, FileStore) and store.native else -1
    if store is not None and space.kind in (Kind.FILE, Kind.STORE):
        mine = pool._stores.get(record["index"])
        if mine is None or mine[0] != record["generation"] or options.get("mode") == "r+":
            keep_store(pool, record, store)
    writable = space.kind is Kind.SCRATCH or (space.kind is not Kind.DERIVED and options.get("mode") == "r+")
    _bind_record(pool, space, record, fd, writable=writable and pool.mode == "r+")


def _store_of_a_copy(pool: "Pool", options: dict[str, Any]) -> FileStore | None:
    """The store that this process has open for a space that was unpickled, so that its copies take one descriptor."""
    if options.get("repair") is not None:
        return None
    for _, store in list(pool._stores.values()):
        if (
            isinstance(store, FileStore)
            and store.path == options["path"]
            and store.writable == (options["mode"] == "r+")
            and isinstance(store, CheckedFile) == bool(options.get("checksum"))
            and getattr(store, "repair", None) is None
            and store.is_at_path()
        ):
            return store
    return None


def _bind_record(pool: "Pool", space: Space, record: dict[str, Any], fd: int, *, writable: bool) -> None:
    """Connects a handle to a slot; ``fd`` is what the core reads misses from, if not -1."""
    space.index, space._generation = record["index"], record["generation"]
    space._bind_core(
        pool._seg, record["index"], record["generation"], record["first_entry"], record["max_pages"], record["kind"], fd,
        space._store, space.dtype, writable, bool(record["flags"] & DISCARDABLE), space.kind is Kind.SCRATCH,
        bool(record["owner"]),
    )  # fmt: skip


def _state(store: Store | None) -> FileState:
    return store.state() if isinstance(store, FileStore) else NO_FILE


def _connect(pool: "Pool", space: Space, truncate: bool) -> dict[str, Any] | None:
    """One attempt to find the slot of the space, or to make it. None: the directory has changed meanwhile."""
    state = _state(space._store)
    record = _find_record(pool, space, state, truncate)
    if space._generation is not None and (record is None or record["generation"] != space._generation):
        raise SpaceRemoved(removed_message(space.name))
    if record is None and space._options.get("found"):
        raise SpaceNotFound(no_such_space(pool, space.name))
    if record is not None:
        if _has_another_version(space, record):
            pool._require_writable(f"replace {space.name!r}, whose pages another version of its loader made")
            return _add_space(pool, space, state, False, record)
        return _refresh_file(pool, space, record, truncate) if space.kind is Kind.FILE else record
    if isinstance(space._store, FileStore):
        state = space._store.fresh_state()
    return _add_space(pool, space, state, truncate, None)


def _find_record(pool: "Pool", space: Space, state: FileState, truncate: bool) -> dict[str, Any] | None:
    """The record that the handle belongs to; None if there is none."""
    store, spaces = space._store, pool._seg.spaces()
    for other in spaces:
        if space.kind is Kind.FILE and other["name"] != space.name and _same_file(other, state):
            raise SpaceMismatch(
                f"{other['path']} is in the pool already, as {other['name']!r}; pass name={other['name']!r}"
            )
    record = visible(spaces, space.name, private=space.private)
    if record is None:
        return None
    if record["kind"] != space.kind:
        raise SpaceMismatch(
            f"space {space.name!r} is a {kind_name(record['kind'])} space, not {space.kind.name.lower()}; {_other_or_discard(space)}"
        )
    if space.kind is Kind.FILE:
        assert isinstance(store, FileStore)
        if record["path"] != store.path and not _same_file(record, state):
            raise SpaceMismatch(
                f"space {space.name!r} is the file {record['path']}, not {store.path}; pass another name="
            )
        if not truncate and bool(record["flags"] & CHECKSUM) != bool(space._options.get("checksum")):
            raise SpaceMismatch(
                f"space {space.name!r} was opened {'with' if record['flags'] & CHECKSUM else 'without'} checksums; "
                f"pass checksum={bool(record['flags'] & CHECKSUM)}, or remove the space first: flush it, then pool.discard({space.name!r})"
            )
    elif not _has_another_version(space, record):
        _refuse_another(space, record)
    return record


def _same_file(record: dict[str, Any], state: FileState) -> bool:
    return record["kind"] == Kind.FILE and recorded(record).file == state.file


def visible(spaces: list[dict[str, Any]], name: str, *, private: bool) -> dict[str, Any] | None:
    """The record of the space that this process sees under a name; None if it sees none.

    Private scratch spaces of other processes are not seen. Where there is a shared space and one of our own,
    ``private`` says which.
    """
    found = [r for r in spaces if r["name"] == name and (r["mine"] or not r["owner"])]
    found.sort(key=lambda r: r["mine"] != private)
    return found[0] if found else None


def no_such_space(pool: "Pool", name: str) -> str:
    """Why ``name`` is not found, and what there is."""
    spaces = pool._seg.spaces()
    theirs = [r["owner"] for r in spaces if r["name"] == name and r["owner"] and not r["mine"]]
    if theirs:
        return (
            f'the space {name!r} of pool {pool.name!r} is private to client {theirs[0]} (owner="client"; pool.clients() says '
            'who that is); make one here with pool.scratch(), or share one with owner="pool"'
        )
    return (
        f"pool {pool.name!r} has no space {name!r}; it has {[r['name'] for r in spaces if r['mine'] or not r['owner']]}"
    )


def _has_another_version(space: Space, record: dict[str, Any]) -> bool:
    """Whether the pages of a derived space that exists come from other code than the one that opens it now."""
    found = "version" not in space._options or space._generation is not None
    return space.kind is Kind.DERIVED and not found and bool(record["version"] != space._options["version"])


def _other_or_discard(space: Space) -> str:
    """The remedy where a name belongs to another space."""
    return (
        f"use another name, or remove the space that is there (pool.discard({space.name!r}); its dirty pages are lost)"
    )


def _refuse_another(space: Space, record: dict[str, Any]) -> None:
    """A derived or scratch space that exists must be the one that was asked for."""
    if space._options.get("found") or space._generation is not None or space.kind is Kind.STORE:
        return
    wanted = space._options
    if (space.kind is Kind.DERIVED and wanted["n_pages"] != record["pages"]) or wanted["n_pages"] > record["max_pages"]:
        raise SpaceMismatch(
            f"space {space.name!r} has {record['pages']} pages, not {wanted['n_pages']}; {_other_or_discard(space)}"
        )
    if space.kind is Kind.SCRATCH:
        has = ("client" if record["owner"] else "pool", bool(record["flags"] & DISCARDABLE))
        if has != (wanted["owner"], wanted["discardable"]):
            raise SpaceMismatch(
                f"space {space.name!r} has owner={has[0]!r} and discardable={has[1]}; {_other_or_discard(space)}"
            )


def _refresh_file(pool: "Pool", space: Space, record: dict[str, Any], truncate: bool) -> dict[str, Any] | None:
    """Drops what a changed file has made stale; adds the space anew where nothing of it is left.

    Returns the record, or None: the space was removed meanwhile.
    """
    seg, index, store = pool._seg, record["index"], space._store
    assert isinstance(store, FileStore)
    before, now = recorded(record), store.state()
    if not truncate and not before.doubt and (now.content, now.ctime_ns) == (before.content, before.ctime_ns):
        return record
    with seg.lock_flush(index) as held:
        store.fresh_state()  # what is recorded below was seen after this
        found = current(pool, record)
        if found is None:
            return None
        if not truncate and not held.interrupted and is_unchanged(pool, found, store, opening=True):
            seg.record_store(index, 0, False, store.state())  # of this time there is less doubt, or none
            return current(pool, record)
        before, now = recorded(found), store.state()
        another, cut = now.file != before.file, now.size < before.size
        dirty = 0 if truncate else dirty_pages(pool, found)
        if dirty and (another or cut or not held.interrupted):
            what = "is another file by now" if another else "was cut" if cut else "was changed"
            raise changed(pool, found, f"{what} by somebody else", dirty)
        if held.interrupted and not truncate:
            store.pad_to_whole_pages(before.size, pool.page_size)
            now = store.state()
        if truncate or another or now.size < found["stored"] * pool.page_size:
            return _add_space(pool, space, now, truncate, found)
        adopt(pool, found, store)
        return current(pool, record)


def adopt(pool: "Pool", record: dict[str, Any], store: FileStore) -> None:
    """Takes a file as it is now for what the space is about: drops the clean pages in memory. Under the flush lock.

    Raises FileSizeMismatch, SpaceFull, StoreError.
    """
    seg, index, state = pool._seg, record["index"], store.state()
    pages = store.pages(pool.page_size, state.size)
    done, freed = seg.drop_clean(index)
    if not done:
        raise StoreError(f"{store.path} was changed, and pages of it are being written or loaded; try again")
    if freed:
        pool._give_back(freed, "drop")
    with seg.lock_directory():
        if current(pool, record) is not None:
            seg.grow_space(index, pages)
            seg.record_store(index, pages, False, state)


def _pages_of(pool: "Pool", space: Space, state: FileState, truncate: bool) -> int:
    """How many pages a new space has: what its store says, or what was asked for."""
    store = space._store
    if isinstance(store, FileStore):
        return 0 if truncate else store.pages(pool.page_size, state.size)
    if store is None:
        return int(space._options["n_pages"])
    return store_pages(store, pool.page_size)


def _add_space(
    pool: "Pool", space: Space, state: FileState, truncate: bool, old: dict[str, Any] | None
) -> dict[str, Any] | None:
    """Adds the space, in the place of ``old`` where there is one (whose flush lock we hold).

    None: the directory has changed since it was looked at; nothing was done. A file that is to be emptied is
    emptied last, after all that may refuse the space; until then its record has a time that fits no file, so
    that a process that opens it meanwhile waits for the flush lock.
    """
    seg, pages, held = pool._seg, _pages_of(pool, space, state, truncate), None
    known = NO_FILE._replace(device=state.device, inode=state.inode) if truncate else state
    with seg.lock_directory():
        found = _find_record(pool, space, state, truncate)
        if (found and (found["index"], found["generation"])) != (old and (old["index"], old["generation"])):
            return None
        freed = seg.remove_space(old["index"])[1] if old and not truncate else 0
        index = _take_slot(pool, space, pages, known)
        if truncate:
            held = seg.lock_flush(index, False)
            if held is None:  # the last flush of the slot's former space is about to let go
                seg.remove_space(index)
                return None
            freed = seg.remove_space(old["index"])[1] if old else 0
        record = record_of(pool, index)
    if freed:
        pool._give_back(freed, "drop")
    if held is None:
        return record
    with held:
        store = space._store
        assert isinstance(store, FileStore)
        os.ftruncate(store.fd, 0)
        state = store.state()
        with seg.lock_directory():
            if current(pool, record) is not None:
                seg.record_store(index, 0, False, state)
    return current(pool, record)


def _take_slot(pool: "Pool", space: Space, pages: int, state: FileState) -> int:
    """Fills a slot of the directory, whose lock is held; returns its number."""
    options, store = space._options, space._store
    fixed = options.get("max_pages")
    if fixed is not None and count_of(fixed, "max_pages") < pages:
        raise ValueError(f"max_pages ({fixed}) is below the {pages} pages that there are")
    if fixed is None:
        fixed = max(pages, 1) if space.kind is Kind.DERIVED else max(2 * pages, 1024 if store is None else GROWTH_PAGES)
    flags = (DISCARDABLE if options.get("discardable") else 0) | (WRITABLE if options.get("mode") == "r+" else 0)
    flags |= CHECKSUM if options.get("checksum") else 0
    path = store.path if isinstance(store, FileStore) else ""
    owned = options.get("owner") == "client"
    while True:
        try:
            return pool._seg.add_space(
                space.name.encode(), os.fsencode(path), space.kind, flags, owned, pages, fixed, state,
                options.get("version", 0),
            )  # fmt: skip
        except SpaceFull:  # room to grow is a wish, unless it was asked for
            if options.get("max_pages") is not None or fixed <= max(pages, 1):
                raise
            fixed = max(pages, 1, fixed // 4)


def remove(pool: "Pool", space: Space, discard: bool) -> None:
    """Takes a space out of the pool, unless somebody is writing, loading or flushing its pages."""
    if not discard:
        pool.flush(space)
    _remove(pool, space.name, space.index, space._generation, discard or space.kind is Kind.SCRATCH)


def _remove(pool: "Pool", name: str, index: int, generation: int | None, discard: bool) -> int:
    """Removes a space; returns how many dirty pages are lost. Raises SpaceRemoved, SpaceBusy."""
    deadline = time.monotonic() + BUSY_S
    while True:
        lost = _remove_now(pool, name, index, generation, discard)
        if lost is not None:
            return lost
        if time.monotonic() > deadline:
            raise _busy(name)
        time.sleep(0.002)


def _remove_now(pool: "Pool", name: str, index: int, generation: int | None, discard: bool) -> int | None:
    """Removes a space if nobody uses its pages in this moment, and does not wait; how many dirty pages are lost."""
    seg = pool._seg
    with seg.lock_directory():
        record = record_of(pool, index)
        if record["generation"] != generation:
            raise SpaceRemoved(removed_message(name))
        if record["owner"] and not record["mine"]:
            raise SpacePrivate(f"{name!r} belongs to client {record['owner']} alone, which removes it")
        dirty = dirty_pages(pool, record)
        if dirty and not discard:
            raise SpaceBusy(
                f"{name!r} has {dirty} dirty pages that are not written: they are newer than the flush, or their LSN is above the "
                "durable LSN; flush again, or give them up (discard=True)"
            )
        if seg.space_in_use(index):
            return None
        # What somebody has begun to use in this moment is removed when that is over.
        _, freed = seg.remove_space(index)
    drop_unused(pool)
    if freed:
        pool._give_back(freed, "drop")
    return dirty


# ---- the way out when a file has changed under dirty pages -----------------------------


def record_named(pool: "Pool", name: str) -> dict[str, Any]:
    """The record of the space ``name``: this process's own comes first. Raises SpaceNotFound."""
    record = visible(pool._seg.spaces(), name, private=True)
    if record is None:
        raise SpaceNotFound(no_such_space(pool, name))
    return record


def dirty_images(pool: "Pool", name: str) -> Iterator[tuple[int, Buffer]]:
    """See :meth:`Pool.dirty_pages`. The file is not looked at."""
    record = record_named(pool, name)
    space = Space(pool, name, Kind(record["kind"]), np.uint8, {"found": True})
    _bind_record(pool, space, record, -1, writable=False)
    frames = pool.frames()
    numbers = frames["page_no"][(frames["space"] == record["index"]) & frames["dirty"]]
    for page_no in np.sort(numbers).tolist():
        try:
            yield page_no, space._once(page_no).copy()
        except StoreError:
            continue  # it was written and evicted meanwhile, and this handle has no store to load it from


def discard(pool: "Pool", name: str) -> int:
    """See :meth:`Pool.discard`."""
    record = record_named(pool, name)
    return _remove(pool, name, record["index"], record["generation"], True)


def overwrite(pool: "Pool", name: str) -> int:
    """See :meth:`Pool.overwrite`."""
    record, lsn = record_named(pool, name), pool.durable_lsn
    if record["kind"] != Kind.FILE:
        return flush_space(pool, record, lsn)
    store = open_to_write(pool, record)
    _refuse_held_back(pool, record, lsn)
    try:
        with claimed(pool, store):  # it may be a file that no space has
            written = _overwrite_file(pool, record, store, lsn)
            return flush_space(pool, record, lsn) if written is None else written
    finally:
        drop_unused(pool)


def _overwrite_file(pool: "Pool", record: dict[str, Any], store: FileStore, lsn: int) -> int | None:
    """Writes the dirty pages to another file, or one that was cut. None: it is the same file, and a flush writes them."""
    with telling(pool, record), pool._seg.lock_flush(record["index"]), working_on(record["index"]):
        found = current(pool, record)
        if found is None:
            raise SpaceRemoved(removed_message(record["name"]))
        _refuse_held_back(pool, found, lsn)
        now = store.state()
        if isinstance(store, CheckedFile):
            store.lost_below = found["stored"] * pool.page_size
        if now.file != recorded(found).file or now.size < found["stored"] * pool.page_size:
            return _write_over_and_remove(pool, found, store, lsn)
        adopt(pool, found, store)
        keep_store(pool, record, store)
        return None


def _refuse_held_back(pool: "Pool", record: dict[str, Any], lsn: int) -> None:
    """Raises SpaceBusy if a dirty page may not be written yet, because its LSN is above ``lsn``, the durable one."""
    wanted = pool._seg.dirty_range(record["first_entry"], record["max_pages"])[1]
    if wanted > lsn:
        raise SpaceBusy(
            f"{record['name']!r} has dirty pages up to LSN {wanted}, above the durable LSN {lsn}, which must not be written yet; "
            f"nothing was adopted. Make the log durable up to there, call pool.advance_durable_lsn({wanted}), and overwrite "
            f"again; or give the pages up (pool.discard({record['name']!r}))"
        )


def _write_over_and_remove(pool: "Pool", record: dict[str, Any], store: FileStore, lsn: int) -> int:
    """Writes the dirty pages to a file that is another one, or was cut, and removes the space. Under its flush lock.

    Handles that are open read the file that it was, or count pages that the file has lost. So the record of this file is
    never that of their space: they publish what they read under the old record, and the file gets a generation of its own
    when it is next opened. What fails leaves the space, and the pages that are dirty still, for the next attempt.
    """
    store.pages(pool.page_size, store.size())  # raises FileSizeMismatch
    if pool._seg.space_in_use(record["index"]):
        raise _busy(record["name"])
    written, deadline = 0, time.monotonic() + BUSY_S
    while True:
        written += write_over(pool, record, store, lsn)
        _refuse_held_back(pool, record, lsn)
        clean = not dirty_pages(pool, record)
        if clean and _remove_now(pool, record["name"], record["index"], record["generation"], False) is not None:
            return written
        if time.monotonic() > deadline:
            raise _busy(record["name"])
        time.sleep(0.002)  # somebody writes or loads a page


def count_of(value: int, what: str) -> int:
    """A number of pages, checked. Raises TypeError, ValueError."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{what} must be an integer, not {type(value).__name__}")
    if value < 0:
        raise ValueError(f"{what} must not be negative")
    if value > MOST_PAGES:
        raise ValueError(f"{what} must be below {MOST_PAGES + 1}, not {value}")
    return int(value)


def version_of(version: int | str | None) -> int:
    """What the segment keeps of the version of a derived space: 0 if there is none. Raises TypeError."""
    if version is None:
        return 0
    if isinstance(version, bool) or not isinstance(version, (int, np.integer, str)):
        raise TypeError(f"version must be an integer or a string, not {type(version).__name__}")
    named = f"str {version!s}" if isinstance(version, str) else f"int {int(version)}"
    return int.from_bytes(hashlib.blake2b(named.encode(errors="surrogatepass"), digest_size=8).digest(), "little") or 1
