"""Pages: the layout of every kind, and slotted pages that are changed in place.

::

     0  u64  lsn       the commit that wrote this version (end of its record in the log)
     8  u32  page_no   its own number
    12  u32  tree      the root page of the tree that it belongs to, 0 for none
    16  u8   kind      META, FREE, LEAF, INNER, OVERFLOW
    17  u8   level     0 for leaves, counted from below
    18  u16  count     cells
    20  u16  heap      where the cells begin; cells are added downwards
    22  u16  garbage   bytes of removed cells in the heap
    24  u32  right     the right sibling; FREE, OVERFLOW: the next page; 0 for none
    28  u16  low_at, low_len      the low key: every key in this page is at least this
    32  u16  high_at, high_len    the high key: every key in this page is below it; high_at 0: no limit
    36  u32  -
    40  u16  slots[count]         offsets of the cells, in the order of their keys
         …   free …   cells and the two keys
    -8       the checksum of the page, which the pool maintains

    leaf cell    u16 key length · u32 value length (top bit: overflow) · key · value
                 | u32 first overflow page · u64 xxh3 of the value
    inner cell   u16 key length · u32 child · key      the child has keys from this key on

The first cell of an inner page has the page's low key. The low key of the
leftmost page is b"", which is below every other. Right link and high key follow
Lehman and Yao (1981): a reader that arrives at a page that was split meanwhile sees that
its key is not below the high key, and moves right. With the low key a reader notices
that a page was freed meanwhile, and starts over.

A :class:`Page` works on bytes in place: on a page of the pool, read-only, or
on a private copy. A change moves as few bytes as possible, so that the log,
which records the changed chunks (64 per page), is small.
"""

import struct
from bisect import bisect_right
from collections.abc import Callable
from typing import Any, NamedTuple

FREE, META, LEAF, INNER, OVERFLOW = range(5)
HEADER = struct.Struct("<QIIBBHHHIHHHHI")
FIRST_SLOT = HEADER.size
TRAILER = 8
CELL = struct.Struct("<HI")
CELL_BYTES = CELL.size
OVERFLOWN = 1 << 31
REFERENCE = struct.Struct("<IQ")  # in a leaf cell: first page, xxh3
_U16 = struct.Struct("<H")
COUNTS_AT, _COUNTS = 18, struct.Struct("<HH")  # count and heap, in the header
assert FIRST_SLOT == 40

Buffer = Any  # ndarray of a pinned page, bytes, or bytearray
Entries = tuple[list[bytes], list[bytes]]  # keys, and their values


def max_key(page_size: int) -> int:
    """The length of the longest key in bytes: a page full of such keys can still be split in two."""
    return (page_size - 96) // 5


def max_cell(page_size: int) -> int:
    """The size of the largest leaf cell in bytes; a longer value is stored in overflow pages."""
    return max_key(page_size) + 20


class Inner(NamedTuple):
    """What a search needs of a version of an inner page."""

    lsn: int
    tree: int
    level: int
    low: bytes
    high: bytes | None
    keys: list[bytes]
    children: list[int]

    def child(self, key: bytes) -> int | None:
        """The child that has ``key``, or would have it; None if the key lies outside the page."""
        if key < self.low or (self.high is not None and key >= self.high):
            return None
        return self.children[bisect_right(self.keys, key) - 1]


class Page:
    """One page: its header as attributes, its cells by position."""

    __slots__ = (
        "bytes", "count", "decoded", "garbage", "heap", "high_at", "high_len", "kind", "level", "low_at", "low_len", "lsn",
        "page_no", "right", "tree",
    )  # fmt: skip

    def __init__(self, buffer: Buffer) -> None:
        self.bytes = memoryview(buffer)
        self.decoded: Inner | None = None
        self.load()

    def load(self) -> None:
        """Reads the header."""
        (
            self.lsn, self.page_no, self.tree, self.kind, self.level, self.count, self.heap, self.garbage, self.right,
            self.low_at, self.low_len, self.high_at, self.high_len, _,
        ) = HEADER.unpack_from(self.bytes)  # fmt: skip

    def store(self) -> None:
        """Writes the header; every change ends with it."""
        self.decoded = None
        HEADER.pack_into(
            self.bytes, 0,
            self.lsn, self.page_no, self.tree, self.kind, self.level, self.count, self.heap, self.garbage, self.right,
            self.low_at, self.low_len, self.high_at, self.high_len, 0,
        )  # fmt: skip

    def format(self, page_no: int, kind: int, tree: int, level: int = 0) -> None:
        """Makes this an empty page of a kind."""
        self.page_no, self.kind, self.tree, self.level = page_no, kind, tree, level
        self.count = self.garbage = self.right = self.low_at = self.low_len = self.high_at = self.high_len = 0
        self.heap = len(self.bytes) - TRAILER
        self.store()

    # ---- reading -------------------------------------------------------------

    @property
    def low(self) -> bytes:
        return bytes(self.bytes[self.low_at : self.low_at + self.low_len])

    @property
    def high(self) -> bytes | None:
        """The high key; None: no limit."""
        return bytes(self.bytes[self.high_at : self.high_at + self.high_len]) if self.high_at else None

    def slot(self, i: int) -> int:
        return int(_U16.unpack_from(self.bytes, FIRST_SLOT + 2 * i)[0])

    def key(self, i: int) -> bytes:
        at = self.slot(i) + CELL.size
        return bytes(self.bytes[at : at + _U16.unpack_from(self.bytes, at - CELL.size)[0]])

    def keys(self) -> list[bytes]:
        return [self.key(i) for i in range(self.count)]

    def child(self, i: int) -> int:
        return int(CELL.unpack_from(self.bytes, self.slot(i))[1])

    def inner(self) -> "Inner":
        """The content of an inner page, decoded once until the page changes."""
        if self.decoded is None:
            children = [self.child(i) for i in range(self.count)]
            self.decoded = Inner(self.lsn, self.tree, self.level, self.low, self.high, self.keys(), children)
        return self.decoded

    def _size(self, at: int) -> int:
        """The bytes of the cell at an offset."""
        key_len, word = CELL.unpack_from(self.bytes, at)
        if self.kind == INNER:
            return int(CELL.size + key_len)
        return int(CELL.size + key_len + (REFERENCE.size if word & OVERFLOWN else word))

    def cell(self, i: int) -> bytes:
        at = self.slot(i)
        return bytes(self.bytes[at : at + self._size(at)])

    def cells(self) -> list[bytes]:
        return [self.cell(i) for i in range(self.count)]

    def value(self, i: int) -> tuple[bytes, int, int]:
        """A leaf's value: (its bytes, 0, 0), or (reference, length, first overflow page)."""
        at = self.slot(i)
        key_len, word = CELL.unpack_from(self.bytes, at)
        at += CELL.size + key_len
        if not word & OVERFLOWN:
            return bytes(self.bytes[at : at + word]), 0, 0
        reference = bytes(self.bytes[at : at + REFERENCE.size])
        return reference, word & ~OVERFLOWN, REFERENCE.unpack(reference)[0]

    def part(self, first: int, last: int, far: Callable[[int], bytes]) -> Entries:
        """The keys and the values of a leaf from one position up to another; ``far(i)`` reads a value in overflow pages."""
        data, unpack = bytes(self.bytes), CELL.unpack_from
        keys, values = list[bytes](), list[bytes]()
        for at in struct.unpack_from(f"<{last - first}H", data, FIRST_SLOT + 2 * first):
            key_len, word = unpack(data, at)
            start = at + CELL_BYTES
            end = start + key_len
            keys.append(data[start:end])
            values.append(data[end : end + word] if word < OVERFLOWN else far(first + len(values)))
        return keys, values

    def _search(self, key: bytes, above: bool) -> int:
        """The position of the first key that is at least ``key``, or above it."""
        data, first, last = bytes(self.bytes), 0, self.count  # a copy: slices of it are found faster
        slots, length = self.bytes[FIRST_SLOT : FIRST_SLOT + 2 * last].cast("H"), _U16.unpack_from
        while first < last:
            middle = (first + last) // 2
            at = slots[middle]
            start = at + CELL_BYTES
            found = data[start : start + length(data, at)[0]]
            if found < key or (above and found == key):
                first = middle + 1
            else:
                last = middle
        return first

    def lower(self, key: bytes) -> int:
        """The position of the first key that is at least ``key``."""
        return self._search(key, above=False)

    def upper(self, key: bytes) -> int:
        """The position of the first key that is above ``key``."""
        return self._search(key, above=True)

    def find(self, key: bytes) -> tuple[int, bool]:
        """(position, whether the key is there)."""
        data, first, last = bytes(self.bytes), 0, self.count
        slots, length = self.bytes[FIRST_SLOT : FIRST_SLOT + 2 * last].cast("H"), _U16.unpack_from
        while first < last:
            middle = (first + last) // 2
            at = slots[middle]
            start = at + CELL_BYTES
            found = data[start : start + length(data, at)[0]]
            if found < key:
                first = middle + 1
            elif found == key:
                return middle, True
            else:
                last = middle
        return first, False

    def room(self) -> int:
        """The free bytes for cells and their slots."""
        return int(self.heap - FIRST_SLOT - 2 * self.count + self.garbage)

    def used(self) -> int:
        """The bytes that cells and their slots use."""
        keys = self.low_len + self.high_len
        return int(len(self.bytes) - TRAILER - FIRST_SLOT - keys - self.room())

    # ---- changing ------------------------------------------------------------

    def _place(self, content: bytes) -> int:
        self.heap -= len(content)
        self.bytes[self.heap : self.heap + len(content)] = content
        return int(self.heap)

    def insert(self, i: int, cell: bytes) -> bool:
        """Puts a cell at a position; False if it does not fit."""
        need, end = len(cell) + 2, FIRST_SLOT + 2 * self.count
        if self.heap - end < need:
            if self.room() < need:
                return False
            self.rebuild(self.cells(), self.low, self.high, self.right)
        data, at = self.bytes, FIRST_SLOT + 2 * i
        if at < end:
            data[at + 2 : end + 2] = bytes(data[at:end])
        _U16.pack_into(data, at, self._place(cell))
        self.count += 1
        if self.decoded is not None:
            self.decoded.keys.insert(i, cell_key(cell))
            self.decoded.children.insert(i, CELL.unpack_from(cell)[1])
        _COUNTS.pack_into(data, COUNTS_AT, self.count, self.heap)
        return True

    def has_gap(self, size: int) -> bool:
        """Whether there are so many free bytes between the slots and the heap."""
        return bool(self.heap - FIRST_SLOT - 2 * self.count >= size)

    def close(self, high: bytes, right: int) -> None:
        """Gives the last page of a level a high key, for which it has a gap, and a right sibling."""
        self.high_at, self.high_len, self.right = self._place(high), len(high), right
        self.store()

    def remove(self, i: int) -> None:
        self.garbage += self._size(self.slot(i))
        at, end = FIRST_SLOT + 2 * i, FIRST_SLOT + 2 * self.count
        self.bytes[at : end - 2] = bytes(self.bytes[at + 2 : end])
        self.count -= 1
        self.store()

    def overwrite(self, i: int, cell: bytes) -> bool:
        """Replaces a cell by one of the same size, in place; False if the sizes differ."""
        at = self.slot(i)
        if self._size(at) != len(cell):
            return False
        self.bytes[at : at + len(cell)] = cell
        return True

    def rebuild(self, cells: list[bytes], low: bytes, high: bytes | None, right: int) -> None:
        """Fills the page with these cells. Raises ValueError if they do not fit, which the caller must check first."""
        self.heap, self.garbage, self.count, self.right = len(self.bytes) - TRAILER, 0, len(cells), right
        self.low_at, self.low_len = self._place(low), len(low)
        self.high_at, self.high_len = (0, 0) if high is None else (self._place(high), len(high))
        slots = [self._place(cell) for cell in cells]
        if self.heap < FIRST_SLOT + 2 * len(slots):
            raise ValueError(f"{len(cells)} cells do not fit into page {self.page_no}")
        struct.pack_into(f"<{len(slots)}H", self.bytes, FIRST_SLOT, *slots)
        self.store()


def leaf_cell(key: bytes, value: bytes) -> bytes:
    return CELL.pack(len(key), len(value)) + key + value


def overflow_cell(key: bytes, length: int, first: int, digest: int) -> bytes:
    return CELL.pack(len(key), length | OVERFLOWN) + key + REFERENCE.pack(first, digest)


def inner_cell(key: bytes, child: int) -> bytes:
    return CELL.pack(len(key), child) + key


def cell_key(cell: bytes) -> bytes:
    return cell[CELL.size : CELL.size + _U16.unpack_from(cell)[0]]


def fits(page_size: int, cells: list[bytes], low: bytes, high: bytes | None) -> bool:
    """Whether these cells and the two keys fit into one page."""
    need = FIRST_SLOT + TRAILER + len(low) + len(high or b"") + sum(len(cell) + 2 for cell in cells)
    return need <= page_size
