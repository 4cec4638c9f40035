"""Clients with high numbers, and many of them: what has a client's number has room for it.

A pool had 511 clients at most, because entries had nine bits for a client. Most tests here need few processes: the low numbers are taken
(tests/support/client_numbers.py). The others attach more clients than nine bits can tell apart.
"""

import dataclasses
import os
import signal
import struct
import threading
from collections.abc import Callable, Iterator

import numpy as np
import pytest

import bufferpool as bp
from bufferpool import _core, errors
from bufferpool.client import segment_file
from tests.conftest import EXTENT, PAGE, WAIT, fill, kernel_bytes, pins, stamp, touch
from tests.support.client_numbers import number_of, numbers_from
from tests.support.memory_store import Memory

LAST = _core.CLIENTS_LIMIT
HIGH = [1000, 3777]  # where the tests' clients begin: bits of all twelve


@pytest.fixture(params=HIGH)
def high(request: pytest.FixtureRequest) -> Iterator[int]:
    """The number of the first client of a pool."""
    with numbers_from(request.param):
        yield request.param


@pytest.fixture
def pool(high: int, make_pool: Callable[..., bp.Pool]) -> bp.Pool:
    made = make_pool()
    assert number_of(made) == high
    return made


def _child(run: Callable[[], None]) -> int:
    """Forks; the child runs the function and is stopped until it is killed. Returns its pid."""
    pid = os.fork()
    if pid == 0:
        try:
            run()
            os.kill(os.getpid(), signal.SIGSTOP)
        finally:
            os._exit(1)
    _, status = os.waitpid(pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)
    return pid


def _kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def test_a_pin_keeps_its_frame(pool, attach, data_file):
    table = pool.open_file(data_file(200), "r+")
    other = attach(pool)
    kept = other.space("data1.db")[7]
    touch(table, range(200))
    touch(table, range(200))
    assert np.array_equal(kept, stamp(7))
    frames = pool.frames()
    assert (frames["pins"].sum(), frames["pinners"].max()) == (1, 1)
    assert [client.pins for client in pool.clients() if client.client == number_of(other)] == [1]


def test_the_frame_table_names_the_writer_and_the_flusher(pool, attach, high):
    other, store, flushers = attach(pool), Memory(4), []
    store.on_write = lambda offset, buffer: flushers.append(pool.frames()["flusher"].max())
    space = pool.open_store("store", store, "r+")
    work = pool.open_scratch("work", 16)
    with work.write(3) as page, other.space("work", "r+").write(4) as theirs:
        page[:] = theirs[:] = 1
        assert sorted(set(pool.frames()["writer"].tolist())) == [0, high, high + 1]
    assert pool.frames()["writer"].max() == 0
    fill(space, [1], version=1)
    pool.flush()
    assert flushers == [high]
    assert pool.frames()["flusher"].max() == 0


def test_pages_published_as_one_have_an_owner_with_a_high_number(pool, attach, high):
    """A page that is being published with others names the client and the operation: neither loses a bit to the other."""
    other = attach(pool)
    work = pool.open_scratch("work", 8)
    theirs = other.space("work", "r+")
    fill(work, range(8))
    over, wrong = threading.Event(), []

    def read() -> None:
        while not over.is_set():
            first, second = int(theirs[0].view(np.uint64)[0]), int(theirs[1].view(np.uint64)[0])
            if second < first:
                wrong.append((first, second))

    reader = threading.Thread(target=read)
    reader.start()
    for version in range(1 << 50, (1 << 50) + 400):
        with (pool if version % 2 else other).publish_many() as group:
            for n in range(4):
                group.write(work if version % 2 else theirs, n).view(np.uint64)[:] = version
    over.set()
    reader.join(WAIT)
    assert wrong == []
    assert [int(work[n].view(np.uint64)[0]) for n in range(4)] == [(1 << 50) + 399] * 4


def test_many_groups_of_one_client_are_published_at_once(pool, threads):
    """The number of the operation stands beside the frame of a page, and has bits of its own."""
    work = pool.open_scratch("work", 32)
    fill(work, range(32))

    def run(me: int) -> None:
        for version in range(40):
            with pool.publish_many() as group:
                for n in (2 * me, 2 * me + 1):
                    group.write(work, n).view(np.uint64)[:] = version

    for me in range(16):
        threads.start(run, me)
    threads.join()
    assert {int(work[n].view(np.uint64)[0]) for n in range(32)} == {39}


def test_what_a_killed_client_held_is_released(pool, high):
    work = pool.open_scratch("work", 16)
    fill(work, range(16))
    kept = [work[5]]

    def hold() -> None:
        kept.extend([work[6], work.write(7)])
        kept[-1].__enter__()

    pid = _child(hold)
    assert pool.frames()["writer"].max() == high + 1
    _kill(pid)
    assert pool.reap() == 1
    assert pool.frames()["writer"].max() == 0
    assert pins(pool) == 1
    with work.write(7, timeout=WAIT) as page:
        page[:] = 9


def test_a_waiter_takes_over_the_load_of_a_killed_client(pool, high):
    """The entry of the page names the client that loads it, which is reaped by the one that waits."""
    ready, go = os.pipe()

    def load(pages, out) -> None:
        if os.getpid() != parent:
            os.write(go, b".")
            signal.pause()
        out[:] = 3

    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        try:
            pool.open_derived("derived", 4, load)[2]
        finally:
            os._exit(1)
    assert os.read(ready, 1) == b"."
    derived = pool.open_derived("derived", 4, load)
    _kill(pid)
    assert (derived[2] == 3).all()
    os.close(ready)
    os.close(go)


def test_a_forked_child_has_a_number_of_its_own(pool, high):
    work = pool.open_scratch("work", 4)
    fill(work, range(4))
    view = work[2]

    def look() -> None:
        assert number_of(pool) == high + 1
        assert np.array_equal(view, stamp(2))
        touch(work, range(4))

    _kill(_child(look))
    assert pool.reap() == 1


def test_locks_of_a_dead_client_are_inherited(pool, high):
    """The words of locks have the number of their owner: one that died in them is followed by another."""
    offset, _size = _core.fields()["Header.memory.word"]
    dead = _child(lambda: None)
    number = max(client.client for client in pool.clients())
    _kill(dead)
    fd = os.open(pool.path, os.O_RDWR)
    os.pwrite(fd, struct.pack("<I", number), offset)
    os.close(fd)
    work = pool.open_scratch("work", 4)
    fill(work, range(4))
    assert pool.stats().rebuilds >= 1


@pytest.mark.kernel
def test_more_clients_than_nine_bits_can_tell_apart(make_pool):
    """Each of 640 clients pins a page of its own; no eviction takes one of them, and none is counted for another client."""
    many = 640
    pool = make_pool(2 * many * PAGE, max_clients=many + 8)
    work = pool.open_scratch("work", 4 * many)
    fill(work, range(many + 1))
    others = [bp.Pool.attach(pool.name) for _ in range(many)]
    numbers = [number_of(other) for other in others]
    assert (len(set(numbers)), max(numbers)) == (many, many + 1 + 16)  # 16 slots are for guests
    views = [other.space("work")[n] for n, other in enumerate(others)]
    assert pool.stats().clients == many + 1
    for n in range(many + 1, 4 * many):
        fill(work, [n])
        work.drop(n, 1)
    touch(work, range(many + 1, 4 * many))
    assert all(np.array_equal(view, stamp(n)) for n, view in enumerate(views))
    assert {client.client for client in pool.clients() if client.pins == 1} == set(numbers)
    frames = pool.frames()
    assert frames["pinners"].max() == 1
    del views
    for other in others:
        other.close()
    assert pool.check() == []


def test_the_last_number_is_a_client_and_after_it_there_is_none(make_pool, attach):
    with numbers_from(LAST - 1):
        pool = make_pool(max_clients=LAST)
        other = attach(pool)
        assert [number_of(pool), number_of(other)] == [LAST - 1, LAST]
        with pytest.raises(errors.TooManyClients, match="max_clients"):
            attach(pool)
        work = other.open_scratch("work", 4)
        fill(work, range(4))
        view = pool.space("work")[1]
        assert sorted(client.client for client in pool.clients()) == [LAST - 1, LAST]
        assert pins(pool) == 1
        del view


def test_slots_get_their_memory_by_the_bank(make_pool, attach):
    """A pool for 4,000 clients took 19 MiB for their slots when it was created."""
    few, many = make_pool(max_clients=40), make_pool(max_clients=4000)
    assert kernel_bytes(many) - kernel_bytes(few) < 128 << 10
    assert many.stats().metadata_bytes == kernel_bytes(many)
    with numbers_from(700):
        pool = make_pool(max_clients=1000)
        assert number_of(pool) == 700
        assert pool.stats().metadata_bytes == kernel_bytes(pool)


def test_a_slot_without_memory_is_nobodys(make_pool):
    """A damaged word may name a client whose slot has no memory: to read it there would take memory that nobody counts."""
    pool = make_pool(max_clients=4000)
    work = pool.open_scratch("work", 4)
    fill(work, range(4))
    offset, _size = _core.fields()["Header.memory.word"]
    before = kernel_bytes(pool)
    fd = os.open(pool.path, os.O_RDWR)
    os.pwrite(fd, struct.pack("<I", 3000), offset)
    os.close(fd)
    with work.write(1) as page:
        page[:] = 1
    pool.reap()
    assert kernel_bytes(pool) == before


def test_a_pool_has_as_many_frames_as_an_entry_can_name(monkeypatch):
    """A frame's number has 26 bits in an entry: more room than that is refused, and the default ends there without a word."""
    most = _core.FRAMES_LIMIT // 4 * 4
    sizes = segment_file.Sizes(64 * PAGE, PAGE, extent_size=EXTENT, room=most * PAGE)
    assert segment_file.plan(sizes).room_frames == most
    for larger in ({"room": (most + 1) * PAGE}, {"capacity": 1 << 40, "room": None}):
        with pytest.raises(ValueError, match=f"at most {most * PAGE} bytes .* use a larger page_size"):
            segment_file.plan(dataclasses.replace(sizes, **larger))
    huge = os.statvfs_result((PAGE, PAGE, 1 << 40, 1 << 40, 1 << 40, 0, 0, 0, 0, 255))
    monkeypatch.setattr(os, "fstatvfs", lambda fd: huge)
    monkeypatch.setattr(segment_file, "_may_map", lambda wanted, frames: True)
    assert segment_file._room_for(segment_file.plan(dataclasses.replace(sizes, room=None)), -1) == most
