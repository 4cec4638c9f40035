"""Forked children without a client slot or a descriptor keep what they inherited, and an error says what they lack."""

import os
import resource

import numpy as np
import pytest

import bufferpool as bp
from bufferpool.errors import SegmentError, TooManyClients
from tests.conftest import WAIT, pins
from tests.machine.test_descriptors import forked_with_pipes, let_go, tell_and_wait
from tests.support.children import exit_code, forked
from tests.support.rights import needs_another_user


def _look_at(views, work, error, match):
    """The child: no write of another process changes its views, and the error says why it cannot use the pool."""
    tell_and_wait()
    assert [set(view.tolist()) for view in views] == [{n + 1} for n in range(len(views))]
    with pytest.raises(error, match=match):
        work[0]
    with pytest.raises(error, match=match):
        work.write(7).__enter__()
    with pytest.raises(error, match=match):
        work.pool.stats()
    views.clear()


def _children_look(pool, work, forks, error, match):
    """Forks children that keep views of pages 0 to 2; writes these, and all other pages, until nothing old would be left."""
    for n in range(3):
        with work.write(n) as page:
            page[:] = n + 1
    views = [work[n] for n in range(3)]
    kids = [forked_with_pipes(_look_at, views, work, error, match) for _ in range(forks)]
    views.clear()
    for version in range(100, 110):
        for n in range(16):
            with work.write(n) as page:
                page[:] = version
    assert pool.check() == []
    assert [let_go(*kid) for kid in kids] == [0] * forks
    pool.reap()
    assert pool.stats().clients == 1
    assert pins(pool) == 0
    assert pool.frames()["state"].tolist().count(4) == 0, "a superseded frame is kept"
    assert pool.check() == []


@pytest.mark.parametrize("forks", [1, 5])
def test_views_of_a_child_without_a_client_slot_stay_true(make_pool, forks):
    """All client slots were taken when a process forked: nobody pinned the pages that the child had arrays over."""
    pool = make_pool(max_clients=1)
    _children_look(pool, pool.open_scratch("work", 16), forks, TooManyClients, "max_clients")


@pytest.mark.parametrize("max_clients", [8, 4000])
def test_views_of_a_child_without_a_descriptor_stay_true(make_pool, max_clients):
    """No descriptor was left for the child (EMFILE): it holds no byte lock, and is alive while its process is.

    Its slot was one of the last of the pool, so that all clients there could be got memory for their pins.
    """
    pool = make_pool(max_clients=max_clients)
    work = pool.open_scratch("work", 16)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for n in range(3):
        with work.write(n) as page:
            page[:] = n + 1
    views = [work[n] for n in range(3)]
    memory = pool.stats().metadata_bytes
    read, write = os.pipe()
    told, tell = os.pipe()
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    pid = os.fork()
    if pid == 0:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            os.dup2(read, 0)
            os.dup2(tell, 1)
            os.close(write)
            _look_at(views, work, SegmentError, "Too many open files")
            os._exit(0)
        except BaseException as error:  # noqa: BLE001
            os.write(2, repr(error).encode())
            os._exit(1)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    for fd in (read, tell):
        os.close(fd)
    assert os.read(told, 1) == b"."
    os.close(told)
    views.clear()
    assert pool.reap() == 0, "the child lives"
    assert pool.stats().metadata_bytes == memory
    for version in range(100, 110):
        for n in range(16):
            with work.write(n) as page:
                page[:] = version
    assert let_go(pid, write) == 0
    assert pool.reap() == 1
    assert pins(pool) == 0
    assert pool.check() == []


@needs_another_user
def test_views_of_a_child_of_a_process_that_became_another_user_stay_true(make_pool):
    """A server attached as root, gave its rights up, and forked: nobody may open the segment any more (EACCES)."""
    pool = make_pool(max_clients=8)
    work = pool.open_scratch("work", 16)
    for n in range(3):
        with work.write(n) as page:
            page[:] = n + 1

    def serve():
        views = [work[n] for n in range(3)]
        os.setuid(65534)
        kid = forked(_look_at, views, work, SegmentError, "Permission denied")
        views.clear()
        os._exit(exit_code(kid))

    server, write = forked_with_pipes(serve)
    assert pool.reap() == 0, "both live"
    for version in range(100, 110):
        for n in range(16):
            with work.write(n) as page:
                page[:] = version
    assert let_go(server, write) == 0
    pool.reap()
    assert pool.stats().clients == 1
    assert pins(pool) == 0
    assert pool.check() == []


def test_more_children_than_there_are_slots_for_guests(make_pool):
    """Beyond the slots for guests, the parent's own column keeps what its children look at, until it leaves."""
    pool = make_pool(max_clients=1)
    work = pool.open_scratch("work", 16)
    for n in range(3):
        with work.write(n) as page:
            page[:] = n + 1
    views = [work[n] for n in range(3)]
    kids = [forked_with_pipes(_look_at, views, work, TooManyClients, "max_clients") for _ in range(20)]
    views.clear()
    for version in range(100, 110):
        for n in range(16):
            with work.write(n) as page:
                page[:] = version
    assert [let_go(*kid) for kid in kids] == [0] * 20
    pool.reap()
    assert pool.stats().clients == 1
    assert exit_code(forked(lambda: None)) == 0
    assert pool.check() == []
    name = pool.name
    pool.close()
    with bp.Pool.attach(name) as pool:
        assert pins(pool) == 0
        assert pool.check() == []


def test_three_hundred_clients(make_pool):
    """Pin counts get their memory in banks of 64 clients: a pin of the 300th is seen by an eviction as that of the first is."""
    pool = make_pool(max_clients=300)
    work = pool.open_scratch("work", 16)
    with work.write(1) as page:
        page[:] = 1
    before = pool.stats().metadata_bytes
    view = work[1]

    def hold():
        tell_and_wait()
        assert (view == 1).all()
        with work.write(2, timeout=WAIT) as page:
            page.view(np.uint64)[:] += 1

    kids = [forked_with_pipes(hold) for _ in range(299)]
    assert pool.stats().clients == 300
    assert pool.stats().metadata_bytes > before
    assert pins(pool) == 300
    view = None
    with work.write(1) as page:
        page[:] = 2
    for n in range(3, 16):
        with work.write(n) as page:
            page[:] = n
    assert [let_go(*kid) for kid in kids] == [0] * 299
    assert int(work[2].view(np.uint64)[0]) == 299
    pool.reap()
    assert pins(pool) == 0
    assert pool.stats().clients == 1
    assert pool.check() == []
