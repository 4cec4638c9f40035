"""Checks the invariants of a database in a snapshot:

1. Every page below the meta page's count is used once: by the meta page, one tree, one value, or the free list.
2. A page's header has its own number and its tree; an inner page's children are one level below it.
3. The keys of a page ascend, and all lie within [low, high); a child's low key is its cell's key, its high key the next cell's.
4. On each level the right links lead through all pages, from the one with low key b"" to the one without a high key.
5. The sizes of the heap, the slots and the garbage of a page add up.
6. The overflow pages of a value match its length and its hash; the free list has as many pages as the meta page says.
"""

from collections import Counter
from itertools import pairwise
from typing import TYPE_CHECKING

from toydb.errors import ToyDBError
from toydb.page import CELL, FIRST_SLOT, FREE, INNER, LEAF, TRAILER, Page
from toydb.tree import Tree

if TYPE_CHECKING:
    from toydb.transaction import Transaction


def check(txn: "Transaction") -> list[str]:
    """The violations, one sentence each; [] if there are none."""
    from toydb.transaction import CATALOG, META_PAGE, ROOT, MetaPage

    found: list[str] = []
    used: Counter[int] = Counter([META_PAGE])
    meta = MetaPage.load(txn.read(META_PAGE))
    if meta.page_size != txn.page_size:
        found.append(f"the meta page says that pages have {meta.page_size} bytes")
    _check_tree(txn, CATALOG, "the catalog", used, found)
    try:
        entries = list(Tree(txn, CATALOG).scan(None, None, False, False, False))
    except ToyDBError as error:
        return [*found, f"the catalog cannot be read: {error}"]
    for name, entry in entries:
        _check_tree(txn, ROOT.unpack_from(entry)[0], f"table {name.decode()!r}", used, found)
    page_no, free = meta.first_free, 0
    while page_no and free <= meta.n_pages:
        page = txn.read(page_no)
        used[page_no] += 1
        if page.kind != FREE:
            found.append(f"page {page_no} is on the free list, but of kind {page.kind}")
        page_no, free = page.right, free + 1
    if free != meta.n_free:
        found.append(f"the free list has {free} pages, the meta page says {meta.n_free}")
    found += [f"page {page_no} is used {n} times" for page_no, n in used.items() if n != 1]
    found += [f"page {page_no} is lost" for page_no in range(meta.n_pages) if page_no not in used]
    found += [f"page {page_no} is used, beyond the end" for page_no in used if page_no >= meta.n_pages]
    return found


def _check_tree(txn: "Transaction", root: int, what: str, used: Counter[int], found: list[str]) -> None:
    """One tree, level by level from the root."""
    level: list[tuple[int, bytes, bytes | None]] = [(root, b"", None)]
    expected = txn.read(root).level
    while level:
        below: list[tuple[int, bytes, bytes | None]] = []
        for i, (page_no, low, high) in enumerate(level):
            page = txn.read(page_no)
            used[page_no] += 1
            where = f"{what}, page {page_no}"
            if used[page_no] > 1:
                continue
            if (page.page_no, page.tree, page.level) != (page_no, root, expected):
                found.append(
                    f"{where}: it is page {page.page_no} of tree {page.tree}, level {page.level} not {expected}"
                )
            if page.kind != (INNER if expected else LEAF):
                found.append(f"{where}: kind {page.kind} on level {expected}")
                continue
            following = level[i + 1][0] if i + 1 < len(level) else 0
            if page.right != following:
                found.append(f"{where}: its right link leads to {page.right}, not {following}")
            if (page.low, page.high) != (low, high):
                found.append(f"{where}: has keys from {page.low!r} to {page.high!r}, not from {low!r} to {high!r}")
            found += [f"{where}: {finding}" for finding in _check_page(page)]
            if page.kind == INNER:
                keys = [*page.keys(), page.high]
                below += [(page.child(j), keys[j] or b"", keys[j + 1]) for j in range(page.count)]
            else:
                _check_values(txn, root, page, where, used, found)
        level, expected = below, expected - 1


def _check_page(page: Page) -> list[str]:
    found = []
    keys = page.keys()
    if any(a >= b for a, b in pairwise(keys)):
        found.append("its keys do not ascend")
    if keys and (keys[0] < page.low or (page.high is not None and keys[-1] >= page.high)):
        found.append("it has keys outside its own limits")
    if page.kind == INNER and (not keys or keys[0] != page.low):
        found.append("its first child does not begin at its low key")
    sizes = sum(len(cell) for cell in page.cells()) + page.low_len + page.high_len + page.garbage
    if page.heap + sizes != len(page.bytes) - TRAILER or page.heap < FIRST_SLOT + 2 * page.count:
        found.append("its cells, keys and garbage do not add up to its heap")
    if any(page.slot(i) < page.heap or page.slot(i) + CELL.size > len(page.bytes) for i in range(page.count)):
        found.append("a slot leads out of the heap")
    return found


def _check_values(txn: "Transaction", root: int, page: Page, where: str, used: Counter[int], found: list[str]) -> None:
    tree = Tree(txn, root)
    for i in range(page.count):
        page_no = page.value(i)[2]
        if not page_no:
            continue
        try:
            tree._value(page, i)
        except ToyDBError as error:
            found.append(f"{where}: {error}")
        for _ in range(1 << 20):
            if not page_no or used[page_no]:
                break
            used[page_no] += 1
            page_no = txn.read(page_no).right
        if page_no:
            found.append(f"{where}: its overflow pages lead to page {page_no}, which is used already")
