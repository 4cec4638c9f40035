"""Several absent pages of a store or a loader: by one call of a method for many, else in several threads."""

import threading
import time

import numpy as np
import pytest

from bufferpool.errors import LoaderFailed, PageCorrupt, ShortRead, StoreError, WouldDeadlock
from tests.conftest import PAGE, WAIT, pins, stamp
from tests.support.memory_store import Memory

PAGES = 64
SLOW_S = 0.02


class Slow(Memory):
    """A store far away. It remembers which threads read, and how many at a time."""

    def __init__(self, pages: int = PAGES) -> None:
        super().__init__(pages)
        self.lock = threading.Lock()
        self.now = self.most = self.reads = 0
        self.threads: set[int] = set()
        self.broken: Exception | None = None

    def read_into(self, offset, buffer):
        with self.lock:
            self.reads += 1
            self.now += 1
            self.most = max(self.most, self.now)
            self.threads.add(threading.get_ident())
        time.sleep(SLOW_S)
        with self.lock:
            self.now -= 1
        if self.broken is not None:
            raise self.broken
        return super().read_into(offset, buffer)


class Many(Slow):
    """One request for many pages."""

    def __init__(self) -> None:
        super().__init__()
        self.requests: list[list[int]] = []
        self.short: int | None = None

    def read_many_into(self, offsets, buffers):
        self.requests.append([offset // PAGE for offset in offsets])
        self.threads.add(threading.get_ident())
        if self.broken is not None:
            raise self.broken
        return [
            Memory.read_into(self, offset, buffer) if offset // PAGE != self.short else 7
            for offset, buffer in zip(offsets, buffers, strict=True)
        ]


@pytest.fixture
def large(make_pool):
    return make_pool(1024 * PAGE)


def test_a_slow_store_is_read_by_several_threads(large):
    """64 pages of a store that takes 20 ms each took 1.3 seconds, one after the other."""
    store = Slow()
    space = large.open_store("slow", store)
    ids = np.random.default_rng(1).permutation(PAGES)
    assert np.array_equal(space.read_many(ids), np.array([stamp(n) for n in ids]))
    assert store.reads == PAGES
    assert store.most >= 8
    assert (space.stats().misses, space.stats().hits) == (PAGES, 0)
    space.drop()
    assert space.prefetch(range(PAGES)) == PAGES
    assert (space.stats().misses, space.stats().hits) == (PAGES, 0)
    with space.pin_many(range(PAGES)):
        assert pins(large) == PAGES
    assert (space.stats().misses, space.stats().hits) == (2 * PAGES, 0)
    assert large.check() == []


def test_a_store_that_fails_costs_its_callers_one_failure(large, threads):
    """Each caller that waited for a page of a store that timed out asked the store again, and waited for its timeout."""
    store = Slow()
    store.broken = OSError("timed out")
    space = large.open_store("slow", store)
    with pytest.raises(StoreError, match="timed out"):
        space.read_many(range(PAGES))
    assert store.reads <= 33  # those that had been begun when the first one failed
    store.reads = 0
    begun = threading.Event()
    real = store.read_into

    def slower(offset, buffer):
        begun.set()
        time.sleep(10 * SLOW_S)
        return real(offset, buffer)

    store.read_into = slower  # type: ignore[method-assign]

    def wait_for_it() -> None:
        assert begun.wait(WAIT)
        with pytest.raises(StoreError, match="timed out"):
            space[3]

    for _ in range(4):
        threads.start(wait_for_it)
    with pytest.raises(StoreError, match="timed out"):
        space[3]
    threads.join()
    assert store.reads == 1
    assert large.check() == []


def test_a_store_with_a_method_for_many_pages_gets_one_request(large):
    store = Many()
    space = large.open_store("many", store)
    ids = np.random.default_rng(2).permutation(PAGES)
    assert np.array_equal(space.read_many(ids), np.array([stamp(n) for n in ids]))
    assert store.requests == [list(range(PAGES))]
    assert store.reads == 0
    assert store.threads == {threading.get_ident()}
    assert (space.stats().misses, space.stats().hits) == (PAGES, 0)
    assert large.check() == []


def test_one_page_of_a_request_that_is_short_does_not_lose_the_others(large):
    store = Many()
    store.short = 5
    space = large.open_store("many", store)
    with pytest.raises(ShortRead, match="page 5"):
        space.read_many(range(PAGES))
    assert space.stats().resident == PAGES - 1
    assert pins(large) == 0
    assert np.array_equal(space[5], stamp(5))  # by itself, through read_into
    assert large.check() == []


def test_a_request_that_fails_fails_once_for_all(large):
    store = Many()
    store.broken = OSError("gone")
    space = large.open_store("many", store)
    for call in (space.read_many, space.pin_many, space.prefetch):
        store.requests.clear()
        with pytest.raises(StoreError, match="gone"):
            call(range(PAGES))
        assert len(store.requests) == 1
        assert store.reads == 0
    assert pins(large) == 0
    store.broken = None
    assert np.array_equal(space.read_many(range(PAGES)), np.array([stamp(n) for n in range(PAGES)]))
    assert large.check() == []


@pytest.mark.parametrize("answer", [None, 5, [PAGE], [PAGE] * (PAGES - 1) + ["all"]])
def test_what_a_method_for_many_pages_returns_is_checked(large, answer):
    store = Many()
    store.read_many_into = lambda offsets, buffers: answer  # type: ignore[method-assign]
    space = large.open_store("many", store)
    with pytest.raises(StoreError, match="read_many_into"):
        space.read_many(range(PAGES))
    assert space.stats().resident == 0
    assert large.check() == []


def fill(page_nos, outs):
    for page_no, out in zip(page_nos, outs, strict=True):
        out[:] = page_no


def one_by_one(page_no, out):
    out[:] = page_no


def test_a_loader_of_many_pages(large):
    asked = []

    def load_many(page_nos, outs):
        asked.append(page_nos)
        fill(page_nos, outs)

    space = large.open_derived("made", PAGES, one_by_one, dtype=np.int64, load_many=load_many)
    assert np.array_equal(space.read_many(range(10, 40))[:, 0], np.arange(10, 40))
    assert asked == [list(range(10, 40))]
    assert [int(page[0]) for page in space.scan()] == list(range(PAGES))
    assert int(space[3][0]) == 3
    with pytest.raises(TypeError, match="load_many"):
        large.open_derived("other", PAGES, one_by_one, load_many=3)
    assert large.check() == []


def test_a_loader_of_many_pages_that_fails_tells_those_who_wait(large, threads):
    """One failure is raised in all callers that wait for one of the pages: none runs the loader again."""
    begun, calls = threading.Event(), []

    def load_many(page_nos, outs):
        calls.append(page_nos)
        begun.set()
        time.sleep(0.2)
        raise KeyError("no such thing")

    space = large.open_derived("made", PAGES, one_by_one, load_many=load_many)

    def wait_for_it() -> None:
        assert begun.wait(WAIT)
        with pytest.raises(LoaderFailed, match="no such thing"):
            space[7]

    threads.start(wait_for_it)
    with pytest.raises(LoaderFailed, match="no such thing"):
        space.read_many(range(PAGES))
    threads.join()
    assert len(calls) == 1
    assert large.check() == []


def test_a_loader_of_many_pages_that_asks_for_its_own_pages(large):
    """The loader would wait for itself: the chain of loads leads through the operation that loads all of them."""

    def load_many(page_nos, outs):
        space[page_nos[-1]]
        fill(page_nos, outs)

    space = large.open_derived("made", PAGES, one_by_one, load_many=load_many)
    with pytest.raises(LoaderFailed) as raised:
        space.read_many(range(8))
    assert isinstance(raised.value.__cause__, WouldDeadlock)
    assert space.stats().resident == 0
    assert large.check() == []


def test_two_loaders_of_many_pages_that_ask_for_each_other(large, threads):
    """A cycle through two operations, each of which loads several pages: one of them gets WouldDeadlock, and both end."""
    both = threading.Barrier(2)

    def asks(other):
        def load_many(page_nos, outs):
            both.wait(WAIT)
            spaces[other].get(page_nos[0])
            fill(page_nos, outs)

        return load_many

    spaces = {
        name: large.open_derived(name, PAGES, one_by_one, load_many=asks(other))
        for name, other in (("a", "b"), ("b", "a"))
    }
    ended = []

    def read(name: str) -> None:
        try:
            spaces[name].read_many(range(4))
            ended.append("read")
        except LoaderFailed:
            ended.append("failed")

    for name in spaces:
        threads.start(read, name)
    threads.join()
    assert len(ended) == 2
    assert "failed" in ended
    assert large.check() == []


def test_a_load_within_a_load_uses_no_other_threads(large):
    """A thread that helps would wait for the page that the asking thread loads, and nobody would see the cycle."""
    store = Slow()
    inner = large.open_store("slow", store)

    def loader(page_no, out):
        out[:] = inner.read_many(range(4))[0][: out.size]

    outer = large.open_derived("outer", 4, loader)
    assert np.array_equal(outer[0], stamp(0))
    assert store.most == 1
    assert store.threads == {threading.get_ident()}
    assert large.check() == []


def test_pages_with_checksums_are_read_together_and_verified(large, tmp_path):
    pytest.importorskip("xxhash")
    path = tmp_path / "sealed"
    space = large.open_file(path, "w+", checksum=True)
    for n in range(PAGES):
        with space.append() as page:
            page[:] = stamp(n)
    space.flush()
    space.drop()
    with path.open("r+b") as file:
        file.seek(9 * PAGE + 100)
        file.write(b"damage")
    others = [n for n in range(PAGES) if n != 9]
    assert np.array_equal(space.read_many(others)[:, :-8], np.array([stamp(n)[:-8] for n in others]))
    space.drop()
    with pytest.raises(PageCorrupt, match="page 9"):
        space.read_many(range(PAGES))
    assert space.stats().resident == PAGES - 1
    assert large.check() == []
