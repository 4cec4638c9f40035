"""Snapshots: the list of them, and the old page versions that they need.

A snapshot is an LSN, S: it sees the commits up to the LSN that was visible when it began. It
reads a page in the pool if its LSN is at most S. Otherwise it reads the version
that was current at S from the version store, a scratch space of the pool into
which each commit copies the pages that it is about to replace.

A version that was current from LSN ``since`` until LSN ``until`` is needed while a
snapshot S with since <= S < until exists, or can still begin (S = visible, so:
until > visible). Versions that are not needed are overwritten. So a page that changes a
thousand times under one long snapshot has two old versions, not a thousand.

The directory is set-associative, like a processor's cache: the versions of page n
lie in set n mod sets. A set is one page: u64 (page + 1, since, until) for each way.
If more than MOST_DROPPED versions of one commit have no way, they go to the spill file (spill.py): so while a large
commit is being published, or after its process died, every new snapshot works. A smaller number replaces the oldest
versions: a snapshot that needed one raises SnapshotTooOld.

How a writer learns of a snapshot S of another process: the pool has a list of the LSNs at which living processes read
(``pool.begin_snapshot``). The reader

1. reads ``visible``, and enters that LSN, S, into the list,
2. reads ``visible`` again: if it has moved, it leaves the list and begins again at 1.

A writer reads ``visible`` (call it V), and then the list. If it misses S, the reader entered S later, and read ``visible`` at step
2 later still. ``visible`` only grows, so the reader found V or more there; if it stays, it found S, and V is at most S. A
version that S needs has until > S, so until > V: the writer keeps it.
"""

import numpy as np
import numpy.typing as npt

import bufferpool as bp
from toydb.errors import Busy, SnapshotTooOld
from toydb.page import Page
from toydb.points import point
from toydb.shared import FIRST_SET, Shared
from toydb.spill import Spill

MOST_TRIES = 1000
MOST_DROPPED = 16  # versions without a way that one commit may drop

Set = npt.NDArray[np.uint64]  # a row for each way
PAGE, SINCE, UNTIL = range(3)  # its columns; PAGE is the page's number + 1


class Versions:
    """The snapshots of one process, and the version store that all share."""

    def __init__(self, shared: Shared) -> None:
        self.shared = shared
        self._pool = shared.pool
        self._spill = Spill(shared)

    # ---- snapshots -------------------------------------------------------------

    def begin(self) -> int:
        """The LSN of a new snapshot. Raises Busy."""
        for _ in range(MOST_TRIES):
            lsn = self.shared.visible()
            try:
                self._pool.begin_snapshot(lsn)
            except bp.errors.TooManySnapshots as error:
                raise Busy(f"{error}, by this handle of the database") from error
            try:
                point("snapshot.announced")
                if self.shared.visible() == lsn:
                    return lsn
            except BaseException:
                self.end(lsn)
                raise
            self.end(lsn)
        raise Busy("commits came too fast to begin a snapshot between two of them; try again")

    def end(self, lsn: int) -> None:
        self._pool.end_snapshot(lsn)

    def live(self) -> list[int]:
        """The LSNs of all snapshots in use."""
        return self._pool.snapshots()

    # ---- old versions ------------------------------------------------------------

    def _read_set(self, page_no: int) -> tuple[int, Set]:
        index = page_no % self.shared.n_sets
        page = self.shared.control[FIRST_SET + index]
        return index, np.frombuffer(page, np.uint64, self.shared.ways * 3).reshape(-1, 3)

    def find(self, page_no: int, snapshot: int) -> Page:
        """The version of a page that a snapshot sees. Raises SnapshotTooOld."""
        for _ in range(MOST_TRIES):
            index, ways = self._read_set(page_no)
            seen = (ways[:, SINCE] <= snapshot) & (ways[:, UNTIL] > snapshot)
            found = np.flatnonzero(seen & (ways[:, PAGE] == page_no + 1))
            if not found.size:
                break
            way = int(found[0])
            page = Page(self.shared.versions[index * self.shared.ways + way])
            if page.page_no == page_no and page.lsn == ways[way, SINCE]:
                return page  # otherwise the way has another version meanwhile: look again
        spilled = self._spill.find(page_no, snapshot)
        if spilled is not None:
            return spilled
        raise SnapshotTooOld(
            f"page {page_no} as it was at {snapshot:#x} was dropped to keep newer versions; "
            "begin the transaction anew, or open the database with a larger capacity"
        )

    def keep(self, pages: list[tuple[int, bytes]], until: int) -> None:
        """Keeps versions that are about to be replaced: the pages first, then the directory that names them."""
        sets: dict[int, list[tuple[int, bytes]]] = {}
        for page_no, image in pages:
            sets.setdefault(page_no % self.shared.n_sets, []).append((page_no, image))
        free, oldest = self._free(sets)
        over = {index: images[len(free[index]) :] for index, images in sets.items()}
        if sum(map(len, over.values())) > MOST_DROPPED:
            self._spill.keep([version for versions in over.values() for version in versions], until, oldest)
            point("versions.spilled")
            sets = {index: images[: len(free[index])] for index, images in sets.items()}
        for index, images in sets.items():
            if images:
                self._keep_in_set(index, images, free[index], until)

    def _free(self, sets: dict[int, list[tuple[int, bytes]]]) -> tuple[dict[int, npt.NDArray[np.intp]], int]:
        """The free ways of these sets, and the LSN of the oldest snapshot that is in use or can begin."""
        visible = self.shared.visible()
        live = self.live()
        free = {index: free_ways(self._read_set(index)[1], visible, live) for index in sets}
        return free, min([visible, *live])

    def _keep_in_set(self, index: int, images: list[tuple[int, bytes]], free: npt.NDArray[np.intp], until: int) -> None:
        """Keeps versions of one set: in free ways, and then in place of the oldest."""
        ways = self._read_set(index)[1].copy()
        if len(free) < len(images):
            rest = np.argsort(ways[:, UNTIL], kind="stable")
            free = np.concatenate([free, rest[~np.isin(rest, free)]])
        for (page_no, image), way in zip(images, free.tolist(), strict=False):
            with self.shared.versions.write(index * self.shared.ways + way) as page:
                page[:] = np.frombuffer(image, np.uint8)
            ways[way] = page_no + 1, Page(image).lsn, until
        point("versions.copied")
        self.shared.publish(FIRST_SET + index, ways.tobytes())


def free_ways(ways: Set, visible: int, live: list[int]) -> npt.NDArray[np.intp]:
    """The indexes of the ways (rows of ``ways``) whose versions no snapshot needs, lowest first."""
    needed = ways[:, UNTIL] > visible
    for lsn in set(live):
        needed |= (ways[:, SINCE] <= lsn) & (ways[:, UNTIL] > lsn)
    return np.flatnonzero(~needed)
