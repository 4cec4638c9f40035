"""The work of a process of the storm (tests/support/storm.py), and the ledger that all of them share."""

import logging
import os
import random
import signal
import sys
import threading
import time
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

import bufferpool as bp
from bufferpool import errors
from tests.support import deaths
from tests.support.deaths import alive, guarded

PAGE, FILE_PAGES, MOST_PAGES, DERIVED_PAGES = 4096, 400, 1500, 60
LEAST, MOST = 120, 320  # frames; from 256 on, writers keep spare frames
WORKERS = 6
HALF = WORKERS  # row r + HALF of the ledger belongs to the child that worker r has forked
RAMP = np.arange(PAGE // 8, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
# What a full pool, or a process that was stopped, may cause: no operation happened.
LEGAL = (
    errors.PoolExhausted, errors.TooManySpaces, errors.SpaceFull, errors.SpaceBusy, errors.WaitTimeout, errors.TooManyClients,
)  # fmt: skip
# ledger.head: end your work; SIGSTOPs sent; processes stopped now; do nothing for a while
STOP, STOPS, STOPPED, PAUSE = range(4)
OPS = {
    "read": 30, "pin": 10, "write": 24, "append": 1.5, "scan": 2, "read_many": 4, "derived": 6, "hold": 6, "look_again": 4,
    "resize": 1.5, "trim": 1.5, "idle": 1, "flush": 2, "own_scratch": 3, "pool_scratch": 1, "shared": 3, "fork": 1.5, "heir": 0.7,
    "again": 1.5, "reap": 0.5, "hot": 4, "attach_and_fork": 0.25, "side": 2, "hung": 0.1, "as_one": 4, "lengthen": 0.5,
}  # fmt: skip


class Lost(AssertionError):
    """A page has a wrong version or content."""


def stamp(page: Any, page_no: int, version: int) -> None:
    np.bitwise_xor(RAMP, np.uint64(page_no << 32 | version), out=page.view(np.uint64))


def look(page: Any, page_no: int) -> int:
    """The version of a page, all of which is compared. Raises Lost."""
    words = page.view(np.uint64)
    if page_no >= FILE_PAGES and not words.any():
        return 0  # the number was taken by an append that was not completed
    word = words[0]
    if not np.array_equal(words, RAMP ^ word):
        raise Lost(f"page {page_no} is mixed: {np.unique(words ^ RAMP)[:8]}")
    if int(word) >> 32 != page_no:
        raise Lost(f"page {page_no} has the content of page {int(word) >> 32}")
    return int(word) & 0xFFFFFFFF


def look_at_pair(pair: Any) -> None:
    """Reads two pages that are only written together. Raises Lost if the one that is read last is older."""
    for first, last in ((0, 1), (1, 0)):
        older, newer = (pair[n].view(np.uint64) for n in (first, last))
        if (older != older[0]).any() or (newer != newer[0]).any():
            raise Lost("a page that was published with another is mixed")
        if newer[0] < older[0]:
            raise Lost(f"of two pages that were published as one, {newer[0]} was seen after {older[0]}")


def make_derived(page_no: int, out: Any) -> None:
    stamp(np.asarray(out), page_no, 7)


class Ledger:
    """Arrays in a file that all processes of a run map."""

    def __init__(self, path: Path) -> None:
        rows = 2 * HALF
        parts = [("head", np.uint64, (8,)), ("pids", np.int64, (rows,)), ("ops", np.uint64, (rows,)),
                 ("paused", np.uint8, (rows,)), ("verified", np.uint64, (rows,)), ("refused", np.uint64, (rows, len(LEGAL))), ("since", np.float64, (rows,)),
                 ("longest", np.float64, (rows, len(OPS))), ("intended", np.uint32, (MOST_PAGES,)),
                 ("floor", np.uint32, (rows, MOST_PAGES))]  # fmt: skip
        vars(self).update(deaths.shared_arrays(path, parts))

    head: Any
    pids: Any
    ops: Any
    paused: Any
    verified: Any
    refused: Any
    since: Any
    longest: Any
    intended: Any
    floor: Any


class Worker:
    """One process: takes a random operation, again and again."""

    def __init__(self, directory: str, name: str, row: int, seed: int) -> None:
        self.directory, self.name, self.row = Path(directory), name, row
        self.random = random.Random(seed)
        self.ledger = Ledger(self.directory / "ledger")
        self.ledger.pids[row] = os.getpid()
        self.held: deque[tuple[int, int, Any]] = deque(maxlen=12)
        self.number = 0
        self.attach()

    def attach(self) -> None:
        """Attaches to the pool. If all of its slots are taken, it waits for one."""
        while True:
            try:
                self.pool = bp.Pool.attach(self.name)
                break
            except errors.TooManyClients:
                self.ledger.refused[self.row, LEGAL.index(errors.TooManyClients)] += 1
                if self.ledger.head[STOP]:
                    os._exit(0)
                time.sleep(0.002)
        self.table = self.pool.open_file(self.directory / "table.db", "r+", name="table", max_pages=MOST_PAGES)
        self.made = self.pool.open_derived("derived", DERIVED_PAGES, make_derived)

    def run(self) -> None:
        names, weights, ledger = list(OPS), list(OPS.values()), self.ledger
        numbers = {name: i for i, name in enumerate(names)}
        while not ledger.head[STOP]:
            name = self.random.choices(names, weights)[0]
            stops, quiet = ledger.head[STOPS], ledger.head[STOPPED] == 0
            if ledger.head[PAUSE]:
                self.pause()
            ledger.since[self.row] = begin = time.monotonic()
            try:
                getattr(self, name)()
                ledger.ops[self.row] += 1
            except LEGAL as error:
                ledger.refused[self.row, [isinstance(error, kind) for kind in LEGAL].index(True)] += 1
            took = time.monotonic() - begin
            if quiet and ledger.head[STOPS] == stops:  # nobody was stopped meanwhile
                longest = ledger.longest[self.row]
                longest[numbers[name]] = max(longest[numbers[name]], took)
        ledger.since[self.row] = 0
        self.held.clear()
        if self.random.random() < 0.5:
            self.pool.close()

    def pause(self) -> None:
        """Pauses, and tells the ledger so, until the pause ends."""
        self.ledger.since[self.row], self.ledger.paused[self.row] = 0, 1
        while self.ledger.head[PAUSE] and not self.ledger.head[STOP]:
            time.sleep(0.001)
        self.ledger.paused[self.row] = 0

    def any_page(self) -> int:
        return self.random.randrange(len(self.table))

    def oldest(self, page_no: int) -> int:
        """The version that a read that begins now must find, or a newer one."""
        return int(self.ledger.floor[:, page_no].max())

    def seen(self, page: Any, page_no: int, oldest: int) -> int:
        version = look(page, page_no)
        if not oldest <= version <= self.ledger.intended[page_no]:
            raise Lost(
                f"page {page_no} has version {version}: {oldest} to {self.ledger.intended[page_no]} are possible"
            )
        self.raise_floor(page_no, version)
        self.ledger.verified[self.row] += 1
        return version

    def raise_floor(self, page_no: int, version: int) -> None:
        mine = self.ledger.floor[self.row]
        mine[page_no] = max(int(mine[page_no]), version)

    def read(self) -> None:
        n = self.any_page()
        oldest = self.oldest(n)
        self.seen(self.table[n], n, oldest)

    def pin(self) -> None:
        n = self.any_page()
        oldest = self.oldest(n)
        with self.table.pin(n) as page:
            version = self.seen(page, n, oldest)
            if self.random.random() < 0.3:
                time.sleep(0.002)
            if look(page, n) != version:
                raise Lost(f"page {n} changed under a pin")
        del page

    def write(self) -> None:
        n = self.any_page()
        oldest = self.oldest(n)
        with self.table.write(n) as page:
            version = self.seen(page, n, oldest) + 1
            self.ledger.intended[n] = max(int(self.ledger.intended[n]), version)
            stamp(page, n, version)
        self.raise_floor(n, version)

    def as_one(self) -> None:
        """Writes a page of the table, and two that are only written together: all three, or none."""
        with suppress(errors.SpaceRemoved, errors.SpaceNotFound):
            pair = self.pool.open_scratch("pool-pair", 2)
            look_at_pair(pair)
            n = self.any_page()
            oldest = self.oldest(n)
            with self.pool.publish_many() as group:
                page = group.write(self.table, n)
                version = self.seen(page, n, oldest) + 1
                self.ledger.intended[n] = max(int(self.ledger.intended[n]), version)
                stamp(page, n, version)
                one, other = (group.write(pair, k).view(np.uint64) for k in (0, 1))
                if one[0] != other[0]:
                    raise Lost(f"of two pages that were published as one, one has {one[0]} and the other {other[0]}")
                one[:] = other[:] = one[0] + np.uint64(1)
            self.raise_floor(n, version)

    def append(self) -> None:
        block = self.table.append()
        with block as page:
            n = block.page_no
            self.ledger.intended[n] = max(int(self.ledger.intended[n]), 1)
            stamp(page, n, 1)
        self.raise_floor(n, 1)

    def lengthen(self) -> None:
        """Makes the space longer by pages of zeros, which any worker writes. Nothing that others append or write meanwhile may get lost."""
        pages = len(self.table) + self.random.randrange(3)
        if self.table.grow(pages) < pages or len(self.table) < pages:
            raise Lost(f"the table was to have {pages} pages, and has {len(self.table)}")

    def scan(self) -> None:
        first = self.any_page()
        last = min(first + 24, len(self.table))
        oldest = [self.oldest(n) for n in range(first, last)]
        for n, page in enumerate(self.table.scan(first, last), first):
            self.seen(page, n, oldest[n - first])

    def read_many(self) -> None:
        ids = [self.any_page() for _ in range(8)]
        oldest = [self.oldest(n) for n in ids]
        for n, old, page in zip(ids, oldest, self.table.read_many(ids), strict=True):
            self.seen(page, n, old)

    def derived(self) -> None:
        n = self.random.randrange(DERIVED_PAGES)
        if look(self.made[n], n) != 7:
            raise Lost(f"derived page {n} is wrong")
        if self.random.random() < 0.3:
            self.made.drop(n, min(4, DERIVED_PAGES - n))
        if self.random.random() < 0.02:
            self.made.set_share(limit=self.random.choice((8, DERIVED_PAGES // 2, DERIVED_PAGES)) * PAGE)

    def hold(self) -> None:
        n = self.any_page()
        oldest = self.oldest(n)
        page = self.table[n]
        self.held.append((n, self.seen(page, n, oldest), page))

    def look_again(self) -> None:
        for n, version, page in self.held:
            if look(page, n) != version:
                raise Lost(f"page {n} changed under a view")

    def resize(self) -> None:
        self.pool.resize(self.random.randrange(LEAST, MOST + 1) * PAGE, timeout=0.2)

    def trim(self) -> None:
        self.pool.trim(self.random.randrange(1, 40) * PAGE)

    def idle(self) -> None:
        self.pool.trim_idle(0.2) if self.random.random() < 0.5 else self.pool.trim()

    def flush(self) -> None:
        try:
            self.pool.flush()
        except errors.StoreError as error:  # the store's process was killed: other pages are written all the same
            if "pool-hung" not in str(error):
                raise

    def reap(self) -> None:
        self.pool.reap()

    def scratch(self, lifetime: str) -> None:
        self.number += 1
        name = f"{lifetime}-{os.getpid()}-{self.number}"
        space = self.pool.open_scratch(name, 6, lifetime=lifetime)
        try:
            for n in range(6):
                with space.write(n) as page:
                    stamp(page, n, self.number)
            if self.random.random() < 0.3:
                space.drop(0, 2)
            for n in range(2, 6):
                if look(space[n], n) != self.number:
                    raise Lost(f"page {n} of {name} is wrong")
        finally:
            space.remove(discard=True)

    def own_scratch(self) -> None:
        self.scratch("process")

    def pool_scratch(self) -> None:
        self.scratch("pool")

    def shared(self) -> None:
        """A scratch space that others use, and that any worker may remove at any moment."""
        with suppress(errors.SpaceRemoved, errors.SpaceNotFound):
            space = self.pool.open_scratch(f"pool-shared{self.random.randrange(2)}", 2)
            mark = (space.generation or 0) << 6 | space.index  # no other space is marked so
            for _ in range(3):
                block = space.append() if self.random.random() < 0.3 else space.write(self.random.randrange(2))
                with block as page:
                    stamp(page, block.page_no, mark)
                n = self.random.randrange(max(1, len(space)))
                page = space[n]
                if page.any() and look(page, n) != mark:
                    raise Lost(f"page {n} of {space.name} has the content of another space")
            if self.random.random() < 0.3:
                space.remove(discard=True)

    def fork(self) -> None:
        """A child that reads what it inherited, and dies; sometimes of a fork inside a write."""
        n, inside = self.any_page(), self.random.random() < 0.3
        if inside:
            with self.table.write(n):
                pid = fork()
                if pid == 0:
                    guarded(self.directory, self.child)
        else:
            pid = fork()
            if pid == 0:
                guarded(self.directory, self.child)
        if self.random.random() < 0.5:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def child(self) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        self.end_without_a_slot()
        self.look_again()
        with suppress(errors.PoolExhausted):
            n = self.any_page()
            look(self.table[n], n)
        self.look_again()
        if self.random.random() < 0.3:
            os.kill(os.getpid(), signal.SIGKILL)

    def end_without_a_slot(self) -> None:
        """A forked child for which there was no client slot keeps what it has inherited, and can do nothing else."""
        try:
            len(self.table)
        except errors.TooManyClients:
            self.look_again()
            time.sleep(self.random.random() * 0.005)
            self.look_again()
            os._exit(0)

    def heir(self) -> None:
        """A child that continues as a worker of its own, with what it inherited."""
        row = self.row + HALF
        if self.row >= HALF or alive(int(self.ledger.pids[row])):
            return
        seed = self.random.random()
        if fork():
            return
        self.row, self.random = row, random.Random(seed)
        self.ledger.pids[row] = os.getpid()
        self.end_without_a_slot()
        self.look_again()

    def again(self) -> None:
        self.held.clear()
        self.pool.close()
        self.attach()

    def hot(self) -> None:
        """All workers read one page, and one of them writes it, while the storm stops readers for fractions of a millisecond."""
        if self.random.random() < 0.2:
            with self.table.write(0) as page:
                version = look(page, 0) + 1
                self.ledger.intended[0] = max(int(self.ledger.intended[0]), version)
                stamp(page, 0, version)
            self.raise_floor(0, version)
        for _ in range(60):
            oldest = self.oldest(0)
            page = self.table[0]
            version = self.seen(page, 0, oldest)
            if look(page, 0) != version:
                raise Lost("page 0 changed under a view")

    def attach_and_fork(self) -> None:
        """Children that are forked while another thread attaches and detaches."""
        done = threading.Event()

        def attach() -> None:
            while not done.is_set():
                with suppress(*LEGAL), bp.Pool.attach(self.name) as pool:
                    pool.stats()

        thread = threading.Thread(target=attach, daemon=True)
        thread.start()
        for _ in range(3):
            if fork() == 0:
                guarded(self.directory, self.child_that_attaches)
        done.set()
        thread.join()

    def child_that_attaches(self) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        self.end_without_a_slot()
        self.look_again()
        with suppress(*LEGAL), bp.Pool.attach(self.name) as pool:
            pool.stats()
        self.look_again()

    def side(self) -> None:
        """A space that others open and remove at the same time: derived, in versions, on a store, or of a file."""
        which, version = self.random.randrange(3), self.random.randrange(3)
        mark = which << 8 | version
        kind = self.random.choice(["derived", "store", "file"])
        name = f"pool-side-{kind}{which}"
        with suppress(errors.SpaceRemoved, errors.SpaceNotFound):
            if kind == "derived":
                space = self.pool.open_derived(name, 8, Marked(mark), version=version)
            elif kind == "store":
                mark = which
                space = self.pool.open_store(name, MarkedStore(mark), mode="r")
            else:
                mark = 0
                space = self.pool.open_file(self.directory / f"side{which}.db", "r", name=name)
            for n in self.random.sample(range(8), 3):
                if look(space[n], n) != mark:
                    raise Lost(f"page {n} of {name} is {look(space[n], n)}, not {mark}")
            if self.random.random() < 0.5:
                space.remove(discard=True)

    def hung(self) -> None:
        """A store that takes long to read, to write and to sync. No user of other spaces may have to wait for it."""
        with suppress(errors.SpaceRemoved, errors.SpaceNotFound):
            space = self.pool.open_store(f"pool-hung{self.row}", SlowStore(self.random.uniform(0.2, 1.0)), mode="r+")
            with space.write(self.random.randrange(8)) as page:
                page[:8] = 1
            space.flush()
            space.remove(discard=True)


class Marked:
    """A loader that writes its version into the page."""

    def __init__(self, mark: int) -> None:
        self.mark = mark

    def __call__(self, page_no: int, out: Any) -> None:
        stamp(out, page_no, self.mark)


class MarkedStore:
    """A store of eight pages, made when they are read."""

    def __init__(self, mark: int) -> None:
        self.mark = mark

    def read_into(self, offset: int, buffer: Any) -> int:
        stamp(buffer, offset // PAGE, self.mark)
        return len(buffer)

    def write_from(self, offset: int, buffer: Any) -> int:
        return len(buffer)

    def sync(self) -> None:
        pass

    def size(self) -> int:
        return 8 * PAGE


class SlowStore(MarkedStore):
    """The same, on a disk that hangs for a while."""

    def __init__(self, seconds: float) -> None:
        super().__init__(0)
        self.seconds = seconds

    def read_into(self, offset: int, buffer: Any) -> int:
        time.sleep(self.seconds)
        return super().read_into(offset, buffer)

    def sync(self) -> None:
        time.sleep(self.seconds)


class Ending:
    """Ends the process at SIGTERM, and not within a fork: CPython ignores what a handler raises in a hook of the fork, and the lock
    of ``logging``, which such a hook releases, would be held for ever.
    """

    forks = asked = False

    def __call__(self, *_: object) -> None:
        self.asked = True
        if not self.forks:
            sys.exit(143)


ending = Ending()


def fork() -> int:
    ending.forks = True
    try:
        return os.fork()
    finally:
        ending.forks = False
        if ending.asked:
            sys.exit(143)


def work(directory: str, name: str, row: int, seed: int) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    logging.disable()  # it would log every space whose store was killed
    if seed % 2:
        signal.signal(signal.SIGTERM, ending)
    Worker(directory, name, row, seed).run()
