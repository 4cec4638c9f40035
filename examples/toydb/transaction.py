"""Transactions: which version of a page each kind sees, and where a writer keeps its changes.

A *snapshot* transaction sees the pages as they were at its LSN. A *latest* transaction, which
only reads, sees each page as it is now. It registers no snapshot, and is never too old. It sees each
key as of some commit, but not all keys as of the same commit. A *write* transaction
has the write lock, sees the latest pages, and keeps changed pages in its own memory until it
commits.

Page 0 is the meta page. It has the allocator: the number of pages ever used, and a list of
free pages. Page 1 is the root of the catalog, a tree: table name -> u32 root, meta.

::

    meta page, from byte 40:   8 "TOYDB1\\0\\0" · 16 uuid · u32 page size · u32 pages · u32 first free · u32 free pages
"""

from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from struct import Struct
from types import TracebackType
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeVar
from weakref import WeakValueDictionary

import bufferpool as bp
from toydb.engine import Engine, KnownTable, Pages
from toydb.errors import (
    Corrupt,
    DatabaseClosed,
    NoSuchTable,
    NotADatabase,
    ReadOnly,
    TableExists,
    TransactionEnded,
    TransactionError,
)
from toydb.interrupts import later
from toydb.page import FIRST_SLOT, FREE, INNER, META, Inner, Page
from toydb.table import ROOT as ROOT
from toydb.table import Table as Table
from toydb.table import as_bytes
from toydb.tree import Stale, Tree, create

if TYPE_CHECKING:
    from toydb.database import Database

META_PAGE, CATALOG = 0, 1
MAGIC = b"TOYDB1\0\0"
FIELDS = Struct("<8s16sIIII")
LSN = Struct("<Q")
NO_LIMIT = 2**64 - 1
MOST_RESTARTS = 100
MOST_KNOWN = 1024  # inner pages, and tables, that a handle remembers

T = TypeVar("T")
Kind = Literal["snapshot", "latest", "write"]


@dataclass
class MetaPage:
    """The fields of page 0."""

    uuid: bytes
    page_size: int
    n_pages: int
    first_free: int
    n_free: int

    @classmethod
    def load(cls, page: Page) -> "MetaPage":
        magic, *fields = FIELDS.unpack_from(page.bytes, FIRST_SLOT)
        if page.kind != META or magic != MAGIC:
            raise NotADatabase("page 0 is no meta page: this file is no database, or is damaged")
        return cls(*fields)

    def store(self, page: Page) -> None:
        fields = (self.uuid, self.page_size, self.n_pages, self.first_free, self.n_free)
        FIELDS.pack_into(page.bytes, FIRST_SLOT, MAGIC, *fields)


class Stats(NamedTuple):
    """The pages that a transaction has used so far."""

    pages: int
    """Page references; a page counts each time."""
    misses: int
    """Pages that the pool read from the data file meanwhile, for this handle."""
    restarts: int
    """How often a latest reader found a page that had been freed or split meanwhile, and started over."""

    @property
    def hits(self) -> int:
        return max(0, self.pages - self.misses)


class Transaction:
    """One transaction, for one thread. :meth:`Database.begin` makes it. It is a context manager:

    the end of the block commits, an exception rolls back.
    """

    changes = 0
    """How often a page has changed: an iterator that finds another number looks for its place again."""
    shape = 0
    """How often a page was allocated, freed or brought back: what remembers page numbers looks again."""
    committed = False
    """Whether the record is in the log: then the transaction is committed, even if commit() raises."""
    _open = False
    _holder: object = None
    """What has, or may have, the write lock for this transaction; None: nothing."""
    _pages = _restarts = _misses = 0
    _since: int | None = None
    """The handle's misses when this transaction began or was resumed; None while it is paused or has ended."""

    def __init__(self, database: "Database", engine: Engine, kind: Kind, timeout: float | None = None) -> None:
        self.kind = kind
        self._database = database
        self._engine = engine
        self._space = engine.space
        self.page_size = engine.page_size
        self.moving = kind == "latest"
        # What a writer has changed, by page number: the private copies, their bytes before the transaction (None: a new page),
        # and for each savepoint the bytes that a page had there (None: it had no copy).
        self._dirty: dict[int, Page] = {}
        self._before: dict[int, bytes | None] = {}
        self._undo: list[dict[int, bytes | None]] = []
        # A writer has no cycle with its tables: if it is dropped, it ends at once, and the write lock is free.
        self._tables: MutableMapping[str, Table] = WeakValueDictionary() if kind == "write" else {}
        # A version of a page with an LSN above _newest is not seen: an older version is looked for. ``moving``: the pages that it sees
        # may change while it reads.
        if kind == "snapshot":
            self._newest = self.snapshot = engine.versions.begin()
        else:
            self._newest, self.snapshot = NO_LIMIT, 0
        if kind == "write":
            self._take_turn(timeout)
            return
        self._since = engine.space.own_uses[1]
        self._open = True

    def _take_turn(self, timeout: float | None) -> None:
        """Takes the write lock, and completes what a dead writer has left: a writer sees every earlier commit."""
        self._holder = object()
        try:
            self._engine.write_lock.take(self._holder, timeout)
            self._engine.settle()
            self.snapshot = self._engine.shared.current().published
            self._since = self._engine.space.own_uses[1]
            self._open = True
        except BaseException:
            self._give_turn()
            raise

    def _give_turn(self) -> None:
        self._open = False
        self._engine.write_lock.release(self._holder)
        self._holder = None

    # ---- life ----------------------------------------------------------------------

    def __enter__(self) -> "Transaction":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        if not self._open:
            return
        if kind is None:
            self.commit()
        else:
            self.rollback()

    def __del__(self) -> None:
        self.rollback()

    def must_be_open(self) -> None:
        """Raises TransactionEnded, DatabaseClosed."""
        if not self._open:
            raise TransactionEnded("this transaction has been committed or rolled back; begin another")
        if self._database.closed:
            raise DatabaseClosed("the database was closed, or this process was forked; open it again")

    def must_write(self) -> None:
        """Raises ReadOnly, and what must_be_open() raises."""
        if not self._open or self._database.closed:
            self.must_be_open()
        if self.kind != "write":
            raise ReadOnly("this transaction only reads; begin(write=True) makes changes")

    def commit(self) -> None:
        """Commits; returns when the changes are durable and visible to new snapshots.

        A write transaction without changes waits until what it has read is durable. A Ctrl-C is
        delayed until the commit is done (:mod:`toydb.interrupts`).

        Raises LogFailed: then nothing was committed, unless :attr:`committed` is true, as the error's note says too.
        """
        self.must_be_open()
        if self.kind != "write":
            self.committed = True
            self._end()
            return
        try:
            with later():
                self._commit()
        except KeyboardInterrupt as error:
            if not hasattr(error, "__notes__"):
                error.add_note(f"the transaction {'is committed' if self.committed else 'was rolled back'}")
            raise
        finally:
            self.rollback()  # where an exception of a signal's handler has kept _commit() from its end

    def _commit(self) -> None:
        try:
            if pages := self._changed():
                state, lsn = self._engine.append(pages)
                self.committed = True
                self._stop_counting()  # publishing is no reference of the transaction
                self._engine.complete(state, pages, lsn)
            else:
                lsn = self._engine.shared.current().published
            self.committed = True
        finally:
            self._end()
        try:
            self._engine.make_visible(lsn)
        except BaseException as error:
            error.add_note("the commit is in the log; whether it is durable is unknown")
            raise
        self._database._committed()

    def rollback(self) -> None:
        """Discards all changes. It does nothing to a transaction that has ended."""
        if self._open or self._holder is not None:  # an exception of a signal's handler may have interrupted its end
            self._end()

    def pause(self) -> None:
        """Ends a snapshot as :meth:`rollback` does, but keeps what is known of its tables, for :meth:`resume`."""
        if self._database.closed:
            self.rollback()
        elif self._open:
            self._open = False
            self._stop_counting()
            self._engine.versions.end(self.snapshot)

    def resume(self) -> bool:
        """Begins a paused snapshot again, if nothing has been committed since. False: it has ended. Raises DatabaseClosed."""
        self._database._must_be_open()
        lsn = self._engine.versions.begin()
        if lsn != self.snapshot:
            self._engine.versions.end(lsn)
            return False
        self._open, self._since = True, self._space.own_uses[1]
        return True

    def _stop_counting(self) -> None:
        """What the pool reads from here on is for others."""
        if self._since is not None and not self._database.closed:
            self._misses += self._space.own_uses[1] - self._since
        self._since = None

    def _end(self) -> None:
        self._open = False
        self._stop_counting()
        self.changes += 1
        self.shape += 1
        self._dirty.clear()
        self._before.clear()
        self._tables.clear()  # no cycle remains: what has ended is freed without the garbage collector
        if self._database.closed:
            return
        if self._holder is not None:
            self._give_turn()
        elif self.kind == "snapshot":
            self._engine.versions.end(self.snapshot)

    def _changed(self) -> Pages:
        return [
            (page_no, self._before[page_no], page.bytes.obj)  # type: ignore[misc]
            for page_no, page in sorted(self._dirty.items())
            if page.bytes.obj != self._before[page_no]
        ]

    @property
    def stats(self) -> Stats:
        since = 0 if self._since is None else self._space.own_uses[1] - self._since
        return Stats(self._pages, self._misses + since, self._restarts)

    # ---- pages: what a tree needs ----------------------------------------------------

    def inner(self, page_no: int) -> Inner | None:
        """An inner page that is decoded already, if its version is the one that this transaction sees."""
        dirty = self._dirty.get(page_no)
        if dirty is not None:
            self._pages += 1
            return dirty.inner() if dirty.kind == INNER else None
        known = self._engine.inner_pages.get(page_no)
        if known is None or known.lsn > self._newest or LSN.unpack_from(self._space[page_no])[0] != known.lsn:
            return None
        self._pages += 1
        return known

    def _sees(self, page_no: int, lsn: int) -> bool:
        """Whether the transaction sees this version of a page. (No two versions of a page have the same LSN.)"""
        return lsn <= self._newest and LSN.unpack_from(self._space[page_no])[0] == lsn

    def remember(self, page: Page) -> None:
        """Keeps an inner page decoded, for the later transactions of this handle."""
        pages = self._engine.inner_pages
        if page.page_no in self._dirty or ((known := pages.get(page.page_no)) is not None and known.lsn >= page.lsn):
            return
        if len(pages) >= MOST_KNOWN:
            pages.clear()
        pages[page.page_no] = page.inner()

    def read(self, page_no: int) -> Page:
        """The version of a page that this transaction sees."""
        if not self._open or self._database.closed:
            self.must_be_open()
        self._pages += 1
        dirty = self._dirty.get(page_no)
        if dirty is not None:
            return dirty
        try:
            page = Page(self._space[page_no])
        except bp.errors.PageOutOfRange as error:
            if self.moving:
                raise Stale() from None
            raise Corrupt(f"page {page_no} is beyond the end of the data file") from error
        if page.lsn > self._newest:
            page = self._engine.versions.find(page_no, self.snapshot)
        if page.page_no != page_no and not self.moving:
            raise Corrupt(
                f"page {page_no} has the number {page.page_no} in its header; Database.check() lists all damage"
            )
        return page

    def change(self, page_no: int) -> Page:
        """The transaction's private copy of a page, which it may change."""
        self.changes += 1
        page = self._dirty.get(page_no)
        if page is None:
            before = bytes(self.read(page_no).bytes)
            page = Page(bytearray(before))
            self._enter(page_no, page, before)
        elif self._undo and page_no not in self._undo[-1]:
            self._undo[-1][page_no] = bytes(page.bytes)
        return page

    def _enter(self, page_no: int, page: Page, before: bytes | None) -> None:
        self._dirty[page_no] = page
        self._before.setdefault(page_no, before)
        if self._undo:
            self._undo[-1].setdefault(page_no, None)

    def new(self, kind: int, tree: int, level: int = 0) -> Page:
        """Allocates a page: from the free list, or at the end of the file."""
        self.shape += 1
        meta_page = self.change(META_PAGE)
        meta = MetaPage.load(meta_page)
        if meta.first_free:
            page = self.change(meta.first_free)
            if page.kind != FREE:
                raise Corrupt(f"page {page.page_no} is on the free list, but in use (kind {page.kind})")
            page_no, meta.first_free, meta.n_free = page.page_no, page.right, meta.n_free - 1
        else:
            page_no, meta.n_pages = meta.n_pages, meta.n_pages + 1
            page = Page(bytearray(self.page_size))
            self._enter(page_no, page, None)
        meta.store(meta_page)
        page.format(page_no, kind, tree, level)
        return page

    def free(self, page_no: int) -> None:
        """Frees a page: puts it on the free list."""
        self.shape += 1
        meta_page = self.change(META_PAGE)
        meta = MetaPage.load(meta_page)
        page = self.change(page_no)
        page.format(page_no, FREE, 0)
        page.right, meta.first_free, meta.n_free = meta.first_free, page_no, meta.n_free + 1
        page.store()
        meta.store(meta_page)

    # ---- savepoints --------------------------------------------------------------------

    def savepoint(self) -> int:
        """Makes a savepoint, to which :meth:`rollback_to` can return. Savepoints nest."""
        self.must_write()
        self._undo.append({})
        return len(self._undo) - 1

    def _must_exist(self, savepoint: int) -> None:
        self.must_write()
        if not 0 <= savepoint < len(self._undo):
            raise TransactionError(f"there is no savepoint {savepoint}: it was released, or rolled back over")

    def rollback_to(self, savepoint: int) -> None:
        """Undoes every change since the savepoint. The savepoint remains; later ones are removed."""
        self._must_exist(savepoint)
        for saved in reversed(self._undo[savepoint:]):
            for page_no, image in saved.items():
                if image is None:
                    del self._dirty[page_no]
                else:
                    self._dirty[page_no] = Page(bytearray(image))
        self._undo[savepoint:] = [{}]
        self.changes += 1
        self.shape += 1
        for name, table in self._tables.items():
            table._root, table._meta = self._entry(name)

    def renew(self, savepoint: int) -> None:
        """Moves the last savepoint to the present: the changes since it are kept."""
        self._must_exist(savepoint)
        saved, before = self._undo[savepoint], self._undo[savepoint - 1] if savepoint else None
        if before is not None:
            for page_no, image in saved.items():
                before.setdefault(page_no, image)
        self._undo[savepoint:] = [{}]

    def release(self, savepoint: int) -> None:
        """Removes a savepoint, and those after it; their changes are kept."""
        self._must_exist(savepoint)
        released = self._undo[savepoint:]
        del self._undo[savepoint:]
        if self._undo:
            for saved in released:
                for page_no, image in saved.items():
                    self._undo[-1].setdefault(page_no, image)

    # ---- tables --------------------------------------------------------------------------

    def steadily(self, what: Callable[[], T]) -> T:
        """Runs a read. A latest reader that finds a freed page starts over, and after some attempts reads in a snapshot."""
        if not self.moving:
            return what()
        for _ in range(MOST_RESTARTS):
            try:
                return what()
            except Stale:
                self._restarts += 1
        self._newest = self.snapshot = self._engine.versions.begin()
        self.kind, self.moving = "snapshot", False
        try:
            return what()
        finally:
            self._engine.versions.end(self.snapshot)
            self._newest, self.snapshot, self.kind, self.moving = NO_LIMIT, 0, "latest", True

    def _catalog(self) -> Tree:
        return Tree(self, CATALOG)

    def _entry(self, name: str) -> tuple[int, bytes]:
        """A table's root and meta; the root is 0 if there is no such table.

        The handle remembers in which version of which leaf of the catalog it found them: while the transaction
        sees that version, they are the same.
        """
        known = self._engine.tables.get(name)
        if known is not None and known.leaf not in self._dirty and self._sees(known.leaf, known.lsn):
            return known.root, known.meta
        if not isinstance(name, str):
            raise TypeError(f"the name of a table must be a str, not {type(name).__name__}")
        leaf, entry = self.steadily(lambda: self._catalog().find(name.encode()))
        root, meta = (int(ROOT.unpack_from(entry)[0]), entry[ROOT.size :]) if entry else (0, b"")
        if root and leaf.page_no not in self._dirty and (known is None or known.lsn < leaf.lsn):
            if len(self._engine.tables) >= MOST_KNOWN:
                self._engine.tables.clear()
            self._engine.tables[name] = KnownTable(leaf.page_no, leaf.lsn, root, meta)
        return root, meta

    def create_table(self, name: str, meta: bytes = b"") -> "Table":
        """Raises TableExists, ReadOnly, KeyTooLong."""
        self.must_write()
        if self._entry(name)[0]:
            raise TableExists(f"table {name!r} exists; drop it first, or use table()")
        meta = as_bytes(meta, "meta")
        root = create(self)
        self._catalog().put(name.encode(), ROOT.pack(root) + meta)
        return self._table(name, root, meta)

    def table(self, name: str) -> "Table":
        """Raises NoSuchTable."""
        self.must_be_open()
        root, meta = self._entry(name)
        if not root:
            raise NoSuchTable(f"there is no table {name!r}; there are {self.tables()}")
        return self._table(name, root, meta)

    def _table(self, name: str, root: int, meta: bytes) -> "Table":
        table = self._tables.get(name)
        if table is None:
            table = self._tables[name] = Table(self, name)
        table._root, table._meta = root, meta
        return table

    def drop_table(self, name: str) -> None:
        """Raises NoSuchTable, ReadOnly."""
        self.must_write()
        table = self.table(name)
        table._tree().drop()
        self._catalog().delete(name.encode())
        table._root = 0

    def rename_table(self, name: str, new: str) -> "Table":
        """Raises NoSuchTable, TableExists, ReadOnly, KeyTooLong."""
        self.must_write()
        table = self.table(name)
        if self._entry(new)[0]:
            raise TableExists(f"table {new!r} exists; drop it first")
        self._catalog().put(new.encode(), ROOT.pack(table._root) + table.meta)
        self._catalog().delete(name.encode())
        renamed = self._table(new, table._root, table.meta)
        table._root = 0
        return renamed

    def tables(self) -> list[str]:
        """The names of all tables, sorted."""
        self.must_be_open()
        return self.steadily(lambda: [key.decode() for key, _ in self._catalog().scan(None, None, False, False, False)])
