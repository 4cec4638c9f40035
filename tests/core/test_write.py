"""Writing: a private copy, published whole at the end of its block, or not at all."""

import gc
import os
import signal
import threading
import time
from contextlib import suppress

import numpy as np
import pytest

import bufferpool as bp
from bufferpool.errors import WaitTimeout, WouldDeadlock
from tests.conftest import WAIT, pins


def test_write_publishes_when_the_block_ends(pool, attach, work):
    other = attach(pool).space("work")
    with work.write(3) as page:
        assert page.flags.writeable
        assert not page.any()
        page[:] = 7
        assert not work[3].any()
        assert not other[3].any()
    assert (work[3] == 7).all()
    assert (other[3] == 7).all()
    with work.write(3) as page:
        assert (page == 7).all()
        page[5] = 8
    assert other[3][5] == 8
    assert pool.stats().publishes == 2


def test_a_block_that_raises_publishes_nothing(pool, work):
    with work.write(3) as page:
        page[:] = 7
    for error in (KeyError("mine"), KeyboardInterrupt(), SystemExit()):
        with pytest.raises(type(error)):  # noqa: PT012, SIM117
            with work.write(3) as page:
                page[:] = 8
                raise error
        assert (work[3] == 7).all()
    with work.write(3, timeout=0) as page:  # and the page is free
        page[:] = 9
    assert pool.stats().publishes == 2
    assert pool.frames()["writer"].sum() == 0


def test_an_abandoned_block_publishes_nothing_and_frees_the_page(work):
    def generator():
        with work.write(3) as page:
            page[:] = 8
            yield

    suspended = generator()
    next(suspended)
    del suspended
    gc.collect()
    assert not work[3].any()
    with work.write(3, timeout=0):
        pass


def test_a_write_that_was_never_opened_holds_nothing(work):
    unused = work.write(3)
    with work.write(3, timeout=0):
        pass
    with pytest.raises(ValueError, match="not open"):
        unused.__exit__(None, None, None)


def test_a_write_is_used_once(work):
    write = work.write(3)
    with write, pytest.raises(ValueError, match="once"):
        write.__enter__()
    with pytest.raises(ValueError, match="once"):
        write.__enter__()


def test_an_array_kept_after_its_block_is_a_private_copy_that_is_read_only(pool, attach, work):
    """What was written to the copy after its block was lost, without a word."""
    with work.write(3) as page:
        page[:] = 7
    with pytest.raises(ValueError, match="read-only"):
        page[:] = 8
    assert (page == 7).all()
    assert (work[3] == 7).all()
    assert (attach(pool).space("work")[3] == 7).all()
    assert pins(pool) == 0
    assert not np.shares_memory(page, work[3])
    assert not np.shares_memory(page, pool.data)


@pytest.mark.parametrize("how", ["append", "raised", "group", "group that raised", "abandoned"])
def test_the_copy_is_read_only_however_its_block_ends(pool, work, data_file, how):
    copies = []

    def suspended():
        with work.write(3) as page:
            copies.append(page)
            yield

    with suppress(KeyError):
        if how == "append":
            with pool.open_file(data_file(1), "r+").append() as page:
                copies.append(page)
        elif how == "abandoned":
            begun = suspended()
            next(begun)
            begun.close()
        elif how.startswith("group"):
            with pool.publish_many() as group:
                copies.append(group.write(work, 3))
                if "raised" in how:
                    raise KeyError
        else:
            with work.write(3) as page:
                copies.append(page)
                raise KeyError
    assert [page.flags.writeable for page in copies] == [False]


def test_readers_keep_the_snapshot_that_they_have(pool, work):
    snapshots = []
    for version in range(1, 6):
        with work.write(3) as page:
            page[:] = version
        snapshots.append(work[3])
    assert [set(page.tolist()) for page in snapshots] == [{1}, {2}, {3}, {4}, {5}]
    frames = pool.frames()
    assert np.count_nonzero(frames["state"] == bp.FrameState.RETIRED) == 4
    assert pool.check() == []
    del snapshots
    assert np.count_nonzero(pool.frames()["state"] == bp.FrameState.RETIRED) == 0


@pytest.mark.kernel
def test_a_reader_in_another_process_keeps_its_snapshot(pool, work, child, spawn):
    with work.write(3) as page:
        page[:] = 1
    have, go = spawn.Event(), spawn.Event()
    reader = child(_keep_page, work, 3, have, go)
    assert have.wait(WAIT)
    with work.write(3) as page:
        page[:] = 2
    assert sum(client.pins for client in pool.clients() if client.pid == reader.pid) == 1
    go.set()
    assert reader.result() == ([1], [2])
    assert pins(pool) == 0


def _keep_page(space, n, have, go):
    page = space[n]
    have.set()
    assert go.wait(WAIT)
    return np.unique(page).tolist(), np.unique(space[n]).tolist()


def test_pages_carry_the_lsn_of_their_version(pool, attach, work):
    write = work.write(3)
    with write as page:
        page[:] = 1
        write.lsn = 2**63
    assert work.pin(3).lsn == 2**63
    with work.write(3) as page:  # keeps it unless set
        page[:] = 2
    assert attach(pool).space("work").pin(3).lsn == 2**63
    write = work.write(3)
    write.lsn = 7
    with write:
        assert write.lsn == 7
    assert work.pin(3).lsn == 7
    frames = pool.frames()
    assert frames["lsn"][(frames["page_no"] == 3) & (frames["state"] == bp.FrameState.LIVE)].tolist() == [7]
    assert write.page_no == 3


@pytest.mark.parametrize(
    ("lsn", "error"), [(-1, ValueError), (2**64, ValueError), ("1", TypeError), (1.0, TypeError), (None, TypeError)]
)
def test_an_lsn_that_is_none_is_refused(work, lsn, error):
    write = work.write(3)
    with write, pytest.raises(error, match="LSN"):
        write.lsn = lsn
    assert work.pin(3).lsn == 0


def test_writing_a_page_twice_in_one_thread_raises_at_once(work):
    with work.write(3) as page:
        page[:] = 7
        with pytest.raises(WouldDeadlock, match="page 3"):
            work.write(3, timeout=1000).__enter__()
        with work.write(4) as other:
            other[:] = 8
    assert (work[3] == 7).all()
    assert (work[4] == 8).all()


def test_writing_one_page_through_two_handles_in_one_thread_raises_at_once(pool, work):
    again = pool.space("work", "r+")
    with work.write(3), pytest.raises(WouldDeadlock):
        again.write(3, timeout=1000).__enter__()


@pytest.mark.kernel
def test_writers_of_one_page_wait_for_each_other(work, threads):
    inside, order = threading.Event(), []

    def second():
        assert inside.wait(WAIT)
        with work.write(3, timeout=WAIT) as page:
            order.append(int(page[0]))
            page[:] += 1

    threads.start(second)
    with work.write(3) as page:
        inside.set()
        time.sleep(0.1)  # so that the other one waits, mostly; right either way
        page[:] = 5
    threads.join()
    assert order == [5]
    assert (work[3] == 6).all()


def _hold_write(space, n, holds, go):
    with space.write(n) as page:
        page[:] = 77
        holds.set()
        assert go.wait(WAIT)


@pytest.mark.kernel
def test_a_write_that_waits_too_long_says_for_whom(pool, work, child, spawn):
    holds, go = spawn.Event(), spawn.Event()
    holder = child(_hold_write, work, 3, holds, go)
    assert holds.wait(WAIT)
    (client,) = [c.client for c in pool.clients() if c.pid == holder.pid]
    for timeout in (0, 0.1):
        with pytest.raises(WaitTimeout, match=f"client {client} "):
            work.write(3, timeout=timeout).__enter__()
    with pytest.raises(TimeoutError):
        work.write(3, timeout=0).__enter__()
    assert not work[3].any()  # readers do not wait
    with work.write(4, timeout=0):
        pass
    go.set()
    holder.result()
    with work.write(3, timeout=WAIT) as page:
        assert (page == 77).all()


@pytest.mark.kernel
def test_a_write_without_a_timeout_waits_as_long_as_it_takes(work, child, spawn):
    holds, go = spawn.Event(), spawn.Event()
    holder = child(_hold_write, work, 3, holds, go)
    assert holds.wait(WAIT)
    timer = threading.Timer(0.3, go.set)
    timer.start()
    with work.write(3, timeout=None) as page:
        assert (page == 77).all()
    timer.join()
    holder.result()


@pytest.mark.kernel
def test_a_killed_writer_publishes_nothing_and_frees_the_page(pool, work, child, spawn):
    with work.write(3) as page:
        page[:] = 1
    holds, go = spawn.Event(), spawn.Event()
    holder = child(_hold_write, work, 3, holds, go)
    assert holds.wait(WAIT)
    holder.kill()
    with work.write(3, timeout=WAIT) as page:
        assert (page == 1).all()
    assert pool.stats().clients == 1


def test_a_page_is_not_lost_by_closing_the_pool_inside_its_write_block(pool, attach, work):
    """close() refuses, or the open write ends: the page must not stay locked for ever."""
    with work.write(3) as page:
        page[:] = 1
    other = attach(pool)
    try:
        with work.write(3) as page:
            page[:] = 2
            pool.close()
    except (bp.errors.PoolClosed, BufferError):
        pass
    assert other.check() == []
    with other.space("work", "r+").write(3, timeout=1) as page:
        assert (page == 1).all()


@pytest.mark.kernel
def test_ctrl_c_ends_a_wait(work, child, spawn):
    holds, go = spawn.Event(), spawn.Event()
    holder = child(_hold_write, work, 3, holds, go)
    assert holds.wait(WAIT)
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        work.write(3, timeout=WAIT).__enter__()
    timer.join()
    go.set()
    holder.result()
