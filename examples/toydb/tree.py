"""B-link trees (Lehman and Yao, 1981), over any object that hands out pages.

Reading takes no lock. A page is the right one for a reader if it
belongs to the tree, has the expected level, and its low and high key
enclose the sought key; how the reader got there does not matter. If the
key is at or above the high key, the reader moves right. Otherwise the page was freed
meanwhile, and the reader starts over from the root, which never moves.

A snapshot, and the one writer, see a tree that does not change, and never start over: for them
a wrong page is damage. A reader of the latest pages may read one page before a commit
is published and the next one after it (a large commit is published in several groups, in the order
of :mod:`toydb.engine`), and sees each key as before the commit or as after it.

The writer splits a page that is full and merges one that is less than a quarter
full with a sibling, from the leaf upwards, along the path that it came down.
"""

from collections.abc import Iterator
from functools import partial
from itertools import accumulate
from typing import NamedTuple, Protocol

import xxhash

from toydb.errors import Corrupt, KeyExists, KeyTooLong
from toydb.page import (
    FIRST_SLOT,
    INNER,
    LEAF,
    OVERFLOW,
    REFERENCE,
    TRAILER,
    Entries,
    Inner,
    Page,
    cell_key,
    fits,
    inner_cell,
    leaf_cell,
    max_cell,
    max_key,
    overflow_cell,
)

MOST_LEVELS = 60
MOST_MOVES = 10_000


class Stale(Exception):
    """A reader of the latest pages found a page that was freed or reused meanwhile; it starts over."""


class Pager(Protocol):
    """What a tree needs of a transaction: pages to read, and, for the writer, to change."""

    page_size: int
    moving: bool
    """Whether others may publish changes between two reads."""
    changes: int
    """The number of changes that this transaction has made."""
    shape: int
    """The number of changes that may have made another page the one for some key."""

    def inner(self, page_no: int) -> Inner | None: ...
    def remember(self, page: Page) -> None: ...
    def read(self, page_no: int) -> Page: ...
    def change(self, page_no: int) -> Page: ...
    def new(self, kind: int, tree: int, level: int = 0) -> Page: ...
    def free(self, page_no: int) -> None: ...


class Changed(NamedTuple):
    """The leaf that was changed last: it has the keys in [low, high) while the pager's ``shape`` is the same."""

    shape: int
    low: bytes
    high: bytes | None
    leaf: Page


class Tree:
    """One tree, identified by its root page."""

    def __init__(self, pager: Pager, root: int) -> None:
        self.pager = pager
        self.root = root
        self._max_key, self._max_cell = max_key(pager.page_size), max_cell(pager.page_size)
        self._latest: Changed | None = None

    # ---- finding ---------------------------------------------------------------

    def _wrong(self, page: Page, what: str) -> Exception:
        if self.pager.moving:
            return Stale()
        return Corrupt(
            f"page {page.page_no} (kind {page.kind}, tree {page.tree}, level {page.level}) {what} of tree {self.root}; "
            "Database.check() lists all damage"
        )

    def _visit(self, page_no: int, level: int) -> Page:
        page = self.pager.read(page_no)
        if page.tree != self.root or page.level != level or page.kind != (INNER if level else LEAF):
            raise self._wrong(page, f"is no page of level {level}")
        return page

    def _step(self, page: Page, key: bytes | None, before: bool) -> Page:
        """Moves right until the page is the one for ``key`` (see :meth:`_descend`)."""
        for _ in range(MOST_MOVES):
            high = page.high
            if high is None:  # the last page of its level
                break
            if key is not None and (key < high or (before and key == high)):
                break
            page = self._visit(page.right, page.level)
        low = page.low
        if key is not None and low and (key < low or (before and key == low)):
            raise self._wrong(page, f"begins at {low!r}, above {key!r},")
        return page

    def _descend(self, key: bytes | None, *, before: bool = False, level: int = 0) -> list[Page]:
        """The pages from the root down to the page that has ``key``, or would have it.

        ``before``: down to the page of the greatest key below ``key``. A ``key`` of None is above all keys.
        """
        page = self.pager.read(self.root)
        if page.tree != self.root or page.kind not in (LEAF, INNER) or page.level > MOST_LEVELS:
            raise self._wrong(page, "is not the root")
        path = [page]
        while page.level > level:
            self.pager.remember(page)
            search = page.lower if before else page.upper  # for the first child that begins too far right
            end = page.count if key is None else search(key)
            page = self._step(self._visit(page.child(max(end - 1, 0)), page.level - 1), key, before)
            path.append(page)
        return path

    def _leaf(self, key: bytes) -> Page:
        """The leaf that has ``key``, or would have it. It uses inner pages that are decoded already, as long as it can."""
        if self._latest is not None:
            shape, low, high, leaf = self._latest
            if shape == self.pager.shape and low <= key and (high is None or key < high):
                return leaf
        page_no, level = self.root, -1  # the next page on the path, and its level; that of the root is not known yet
        while (inner := self.pager.inner(page_no)) is not None:
            child = inner.child(key)
            if inner.tree != self.root or level not in (-1, inner.level) or child is None:
                break  # the page has another use now, or other keys
            page_no, level = child, inner.level - 1
            if level == 0:
                return self._step(self._visit(page_no, 0), key, False)
        return self._descend(key)[-1]

    def _value(self, page: Page, i: int) -> bytes:
        value, length, first = page.value(i)
        if not first:
            return value
        parts, page_no, digest = [], first, REFERENCE.unpack(value)[1]
        while length > 0 and page_no:
            part = self.pager.read(page_no)
            if part.kind != OVERFLOW or part.tree != self.root:
                raise self._wrong(part, "is no overflow page")
            size = min(length, self.pager.page_size - FIRST_SLOT - TRAILER)
            parts.append(bytes(part.bytes[FIRST_SLOT : FIRST_SLOT + size]))
            length, page_no = length - size, part.right
        value = b"".join(parts)
        if length or xxhash.xxh3_64_intdigest(value) != digest:
            raise self._wrong(page, f"has a value whose overflow pages (from {first}) do not match it, in the leaf")
        return value

    def get(self, key: bytes) -> bytes | None:
        return self.find(key)[1]

    def find(self, key: bytes) -> tuple[Page, bytes | None]:
        """The leaf of a key, and its value there."""
        leaf = self._leaf(key)
        i, found = leaf.find(key)
        return leaf, self._value(leaf, i) if found else None

    def estimate(self, lo: bytes | None, hi: bytes | None) -> int:
        """About how many keys lie in [lo, hi): exact within one leaf, else as if all pages of a level had
        as many cells as those on the two paths."""
        first, last = self._place(lo or b""), self._place(hi)
        size = max(first[1], last[1])
        return max(0, round((last[0] - first[0]) * size))

    def _place(self, key: bytes | None) -> tuple[float, float]:
        """The position of a key in the tree, from 0 to 1, and the number of keys, extrapolated from its path."""
        place, size = 0.0, 1.0
        for page in self._descend(key):
            if key is None:
                before = page.count - bool(page.level)
            else:  # of an inner page: the children before the one that is descended to
                before = page.upper(key) - 1 if page.level else page.lower(key)
            place += max(before, 0) / max(page.count, 1) / size
            size *= max(page.count, 1)
        return place, size

    def scan(
        self, lo: bytes | None, hi: bytes | None, lo_open: bool, hi_open: bool, reverse: bool
    ) -> Iterator[tuple[bytes, bytes]]:
        """Yields keys and values in order. Each leaf is read as a whole; after a change by this
        transaction the position is found again, so that changes to later keys are seen."""
        pager, more = self.pager, True
        while more:
            more, changes = False, pager.changes
            for keys, values in self.leaves(lo, hi, lo_open=lo_open, hi_open=hi_open, reverse=reverse):
                for row in zip(keys, values, strict=True):
                    yield row
                    if pager.changes != changes:
                        more = True
                        break
                if more:
                    lo, lo_open, hi, hi_open = (lo, lo_open, row[0], True) if reverse else (row[0], True, hi, hi_open)
                    break

    def leaves(
        self, lo: bytes | None, hi: bytes | None, *, lo_open: bool = False, hi_open: bool = False, reverse: bool = False
    ) -> Iterator[Entries]:
        """Yields the keys and the values of a leaf at a time. This transaction must not change the tree meanwhile."""
        leaf = self._descend(hi, before=hi_open and bool(hi))[-1] if reverse else self._leaf(lo or b"")
        while True:
            low, high, right = leaf.low, leaf.high, leaf.right
            first, last = 0, leaf.count
            if lo is not None and (lo > low or (lo == low and lo_open)):  # this leaf may have keys before the range
                first = leaf.upper(lo) if lo_open else leaf.lower(lo)
            if hi is not None and (high is None or hi < high):  # it may have keys after the range
                last = leaf.lower(hi) if hi_open else leaf.upper(hi)
            keys, values = leaf.part(first, max(first, last), partial(self._value, leaf))
            del leaf  # so that no page is pinned while the caller works
            if keys:
                yield (keys[::-1], values[::-1]) if reverse else (keys, values)
            # For a reader of the latest pages the next leaf may have keys of this one, too. So the range ends, or begins, here.
            if reverse:
                if not low or (lo is not None and low <= lo):
                    return
                hi, hi_open = low, True
                leaf = self._descend(low, before=True)[-1]  # there are no left links
            else:
                if high is None or (hi is not None and (high > hi or (high == hi and hi_open))):
                    return
                lo, lo_open = high, False
                leaf = self._step(self._visit(right, 0), high, False)

    # ---- changing ----------------------------------------------------------------

    def put(self, key: bytes, value: bytes, *, replace: bool = True) -> None:
        """Inserts a key, or replaces its value. Raises KeyExists (unless ``replace``), KeyTooLong."""
        if len(key) > self._max_key:
            raise KeyTooLong(
                f"a key of {len(key)} bytes does not fit: with pages of {self.pager.page_size} bytes it may have "
                f"{self._max_key}"
            )
        leaf = self._leaf(key)
        i, found = self._place_in(leaf, key)
        if found and not replace:
            raise KeyExists(f"the key {key!r} exists; put() replaces it")
        if found:
            self._free_value(leaf, i)
        cell = leaf_cell(key, value)
        if len(cell) > self._max_cell:
            cell = overflow_cell(key, len(value), self._store_value(value), xxhash.xxh3_64_intdigest(value))
        leaf = self.pager.change(leaf.page_no)
        if leaf.overwrite(i, cell) if found else leaf.insert(i, cell):
            if self._latest is None or self._latest.leaf is not leaf or self._latest.shape != self.pager.shape:
                self._latest = Changed(self.pager.shape, leaf.low, leaf.high, leaf)
            return
        if found:
            leaf.remove(i)
        self._insert(self._descend(key), i, cell)
        if found:
            self._merge(self._descend(key))

    def _place_in(self, leaf: Page, key: bytes) -> tuple[int, bool]:
        """(position of a key, whether it is there); at once where keys are appended."""
        return (leaf.count, False) if leaf.count and leaf.key(leaf.count - 1) < key else leaf.find(key)

    def delete(self, key: bytes) -> bool:
        path = self._descend(key)
        i, found = path[-1].find(key)
        if not found:
            return False
        self._free_value(path[-1], i)
        path[-1] = self.pager.change(path[-1].page_no)
        path[-1].remove(i)
        self._merge(path)
        return True

    def _store_value(self, value: bytes) -> int:
        """Writes the overflow pages of a value, last first; returns the first page's number."""
        size, following = self.pager.page_size - FIRST_SLOT - TRAILER, 0
        for start in reversed(range(0, len(value), size)):
            page = self.pager.new(OVERFLOW, self.root)
            part = value[start : start + size]
            page.bytes[FIRST_SLOT : FIRST_SLOT + len(part)] = part
            page.right = following
            page.store()
            following = page.page_no
        return following

    def _free_value(self, leaf: Page, i: int) -> None:
        page_no = leaf.value(i)[2]
        while page_no:
            following = self.pager.read(page_no).right
            self.pager.free(page_no)
            page_no = following

    def _insert(self, path: list[Page], i: int, cell: bytes) -> None:
        """Puts a cell into the last page of the path, splitting pages upwards as far as necessary."""
        page = self.pager.change(path[-1].page_no)
        if page.insert(i, cell):
            return
        if page.page_no == self.root:
            path = [*self._grow(page)]
            page = path[-1]
        right = self._append(page, cell) if i == page.count and page.high is None else None
        if right is None:
            right = self._split(page, i, cell)
        parent, middle = path[-2], right.low
        self._insert(path[:-1], parent.upper(middle), inner_cell(middle, right.page_no))

    def _split(self, page: Page, i: int, cell: bytes) -> Page:
        """Splits a page to which a cell is added; returns its new right sibling."""
        cells = page.cells()
        cells.insert(i, cell)
        cut = self._cut(page, cells)
        middle = self._between(page, cells[cut - 1], cells[cut])
        right = self.pager.new(page.kind, self.root, page.level)
        right.rebuild(cells[cut:], middle, page.high, page.right)
        page.rebuild(cells[:cut], page.low, middle, right.page_no)
        return right

    def _append(self, page: Page, cell: bytes) -> Page | None:
        """Begins a new last page of a level, so that appended keys fill their pages. None: it needs a split."""
        middle = self._between(page, page.cell(page.count - 1), cell)
        if not page.has_gap(len(middle)):
            return None
        right = self.pager.new(page.kind, self.root, page.level)
        right.rebuild([cell], middle, None, 0)
        page.close(middle, right.page_no)
        return right

    def _between(self, page: Page, left: bytes, right: bytes) -> bytes:
        """The key at which a page is split between two cells."""
        key = cell_key(right)
        return separator(cell_key(left), key) if page.kind == LEAF else key

    def _grow(self, root: Page) -> tuple[Page, Page]:
        """Adds a level to the tree. The root keeps its number; its content moves to a child."""
        child = self.pager.new(root.kind, self.root, root.level)
        child.rebuild(root.cells(), b"", None, 0)
        root.format(self.root, INNER, self.root, root.level + 1)
        root.rebuild([inner_cell(b"", child.page_no)], b"", None, 0)
        return root, child

    def _cut(self, page: Page, cells: list[bytes]) -> int:
        """Where to split: in the middle by bytes, or as near to it as both halves fit."""
        size, low, high = self.pager.page_size, page.low, page.high
        offsets = [0, *accumulate(map(len, cells))]
        for cut in sorted(range(1, len(cells)), key=lambda cut: abs(2 * offsets[cut] - offsets[-1])):
            middle = self._between(page, cells[cut - 1], cells[cut])
            if fits(size, cells[:cut], low, middle) and fits(size, cells[cut:], middle, high):
                return cut
        raise Corrupt(f"page {page.page_no} of tree {self.root} cannot be split: its cells are too large")

    def _merge(self, path: list[Page]) -> None:
        """Merges the last page of the path with a sibling if it is nearly empty, and so on upwards."""
        while len(path) > 1:
            page = path.pop()
            if page.used() >= self.pager.page_size // 4:
                return
            parent = self.pager.change(path[-1].page_no)
            path[-1] = parent
            mine = next(i for i in range(parent.count) if parent.child(i) == page.page_no)
            for i in (mine, mine - 1):
                if 0 <= i < parent.count - 1 and self._merge_pair(parent, i):
                    break
            else:
                return
        self._shrink()

    def _merge_pair(self, parent: Page, i: int) -> bool:
        """Merges child i + 1 of the parent into child i, if one page can hold them."""
        left, right = self.pager.read(parent.child(i)), self.pager.read(parent.child(i + 1))
        cells = left.cells() + right.cells()
        if not fits(self.pager.page_size, cells, left.low, right.high):
            return False
        left = self.pager.change(left.page_no)
        left.rebuild(cells, left.low, right.high, right.right)
        parent.remove(i + 1)
        self.pager.free(right.page_no)
        return True

    def _shrink(self) -> None:
        """Removes a level: a root with one child gets the child's content."""
        root = self.pager.read(self.root)
        while root.kind == INNER and root.count == 1:
            child = self.pager.read(root.child(0))
            root = self.pager.change(self.root)
            root.format(self.root, child.kind, self.root, child.level)
            root.rebuild(child.cells(), b"", None, 0)
            self.pager.free(child.page_no)

    def drop(self) -> None:
        """Frees every page of the tree."""
        for page in self.pages():
            if page.kind == LEAF:
                for i in range(page.count):
                    self._free_value(page, i)
            self.pager.free(page.page_no)

    def pages(self) -> Iterator[Page]:
        """Every page but overflow pages, children before their parents."""
        stack = [(self._descend(b"")[0], 0)]
        while stack:
            page, i = stack.pop()
            if page.kind == INNER and i < page.count:
                stack.append((page, i + 1))
                stack.append((self._visit(page.child(i), page.level - 1), 0))
            else:
                yield page


def create(pager: Pager) -> int:
    """An empty tree; returns its root."""
    root = pager.new(LEAF, 0)
    root.tree = root.page_no
    root.rebuild([], b"", None, 0)
    return int(root.page_no)


def separator(left: bytes, right: bytes) -> bytes:
    """The shortest key above ``left`` and not above ``right`` (Bayer and Unterauer 1977)."""
    same = next((i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), len(left))
    return right[: same + 1]
