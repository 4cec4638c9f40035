"""A scan reads ahead in two threads of its own.

It started a thread, with a new io_uring, for each window, and while a window was ending and the next one beginning the device had
nothing to do: a scan had a third of the device's throughput.
"""

import threading
from itertools import islice

import numpy as np
import pytest

from bufferpool.client.threads import Worker
from bufferpool.errors import ThreadRefused
from bufferpool.spaces import read_ahead
from tests.conftest import PAGE, pins, stamp, wait_until
from tests.support.children import exit_code, forked

PAGES = 600


@pytest.fixture
def space(make_pool, data_file):
    return make_pool(256 * PAGE).open_file(data_file(PAGES))


@pytest.fixture
def begun(monkeypatch) -> list[Worker]:
    """The threads that scans begin."""
    workers: list[Worker] = []

    def begin(work):
        workers.append(Worker(work))
        return workers[-1]

    monkeypatch.setattr(read_ahead, "Worker", begin)
    return workers


def is_right(pages, first=0):
    return all(np.array_equal(page, stamp(first + k)) for k, page in enumerate(pages))


def test_a_scan_has_two_threads_which_end_with_it(space, begun):
    assert is_right(space.scan(ahead=32))
    assert len(begun) == 2
    assert all(worker.ended for worker in begun)
    assert (space.stats().misses, space.stats().hits) == (PAGES, 0)
    assert space.pool.check() == []


def test_a_scan_that_is_abandoned_reads_no_more(space, begun):
    """Its threads ended with the window that each had begun, so a pool could be closed right after a `break`."""
    scan = space.scan()
    assert is_right(islice(scan, 100))
    assert begun
    scan.close()
    assert all(worker.ended for worker in begun)
    assert pins(space.pool) == 0
    assert space.pool.check() == []


def test_a_suspended_scan_keeps_no_thread(space, begun, monkeypatch):
    """A generator that nobody resumes must not hold threads for as long as it exists; resumed, it starts new ones."""
    monkeypatch.setattr(read_ahead, "IDLE_S", 0.01)
    scan = space.scan(ahead=32)
    assert is_right(islice(scan, 50))
    wait_until(lambda: all(worker.ended for worker in begun), "the threads of the scan end")
    assert is_right(scan, 50)
    assert len(begun) > 2
    assert space.pool.check() == []


def test_a_scan_where_no_thread_can_be_started(space, monkeypatch):
    def refuse(work):
        raise ThreadRefused("no thread")

    monkeypatch.setattr(read_ahead, "Worker", refuse)
    assert is_right(space.scan())
    assert space.pool.check() == []


def test_a_scan_where_one_thread_can_be_started(space, begun, monkeypatch):
    def begin_one(work):
        if begun:
            raise ThreadRefused("no second thread")
        begun.append(Worker(work))
        return begun[-1]

    monkeypatch.setattr(read_ahead, "Worker", begin_one)
    assert is_right(space.scan())
    assert [worker.ended for worker in begun] == [True]
    assert space.pool.check() == []


def test_a_thread_that_dies_does_not_stop_the_scan(space, begun, monkeypatch):
    """A thread that meets no memory for its list ends with an exception: the scan loads those pages by itself."""
    told = []
    monkeypatch.setattr(threading, "excepthook", told.append)

    def load(pages):
        raise MemoryError

    monkeypatch.setattr(space, "_load_ahead", load, raising=False)
    assert is_right(space.scan(ahead=32))
    assert [each.exc_type for each in told] == [MemoryError] * len(begun)
    assert space.pool.check() == []


def test_a_scan_goes_on_in_a_forked_child(space):
    """The child has the generator and none of its threads: it neither waits for them nor asks them for more."""
    scan = space.scan(ahead=32)
    assert is_right(islice(scan, 100))
    pid = forked(lambda: 0 if is_right(scan, 100) else 1)
    assert is_right(scan, 100)
    assert exit_code(pid) == 0
    assert space.pool.check() == []


def test_windows_grow_only_while_the_caller_waits(space, monkeypatch):
    """A caller slower than the file needs no deep read-ahead, which would fill the pool with pages that are used much later."""
    windows, events = [], []
    begin = read_ahead.ReadAhead.begin

    def begin_and_tell(self, pages):
        windows.append(len(pages))
        events.append(begin(self, pages))
        return events[-1]

    monkeypatch.setattr(read_ahead.ReadAhead, "begin", begin_and_tell)
    for _ in space.scan(ahead=256):
        wait_until(lambda: all(event.is_set() for event in events), "the next pages have been read")
    assert set(windows) == {8}
    assert len(windows) == (PAGES - 16) // 8
    assert space.pool.check() == []
