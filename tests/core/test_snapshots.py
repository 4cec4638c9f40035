"""The LSNs at which processes read: every process finds those of the living, and no others.

An engine of several processes that keeps old versions of pages had to find out by itself which snapshots are in use: by pages of its
own, and byte locks in a file, because a dead process must not hold versions for ever.
"""

import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

import bufferpool as bp
from bufferpool import errors
from tests.conftest import WAIT, wait_until


def test_every_client_finds_the_snapshots_of_all(pool: bp.Pool, attach: Callable[..., bp.Pool]) -> None:
    other = attach(pool)
    assert pool.snapshots() == []
    pool.begin_snapshot(7)
    other.begin_snapshot(2**64 - 1)
    other.begin_snapshot(0)
    other.begin_snapshot(7)
    assert pool.snapshots() == other.snapshots() == [0, 7, 2**64 - 1]
    pool.end_snapshot(7)
    assert pool.snapshots() == [0, 7, 2**64 - 1]
    other.end_snapshot(7)
    assert pool.snapshots() == [0, 2**64 - 1]
    other.close()
    assert pool.snapshots() == []
    attach(pool)  # in the slot of the one that was closed
    assert pool.snapshots() == []
    assert pool.check() == []


def test_a_snapshot_that_was_begun_twice_is_ended_twice(pool: bp.Pool) -> None:
    for lsn in (5, 9, 5):
        pool.begin_snapshot(lsn)
    pool.end_snapshot(5)
    assert pool.snapshots() == [5, 9]
    pool.end_snapshot(5)
    assert pool.snapshots() == [9]
    with pytest.raises(ValueError, match="no snapshot at the LSN 5"):
        pool.end_snapshot(5)


def test_the_thirty_third_is_refused_and_a_place_that_is_free_again_is_used(pool: bp.Pool) -> None:
    for lsn in range(32):
        pool.begin_snapshot(lsn)
    with pytest.raises(errors.TooManySnapshots, match="32 other LSNs"):
        pool.begin_snapshot(32)
    pool.begin_snapshot(31)
    pool.end_snapshot(4)
    pool.begin_snapshot(32)
    assert pool.snapshots() == [*range(4), *range(5, 33)]


@pytest.mark.parametrize("wrong", [True, -1, 2**64, 1.0, None, "1"])
def test_what_is_no_lsn_is_refused(pool: bp.Pool, wrong: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        pool.begin_snapshot(wrong)
    with pytest.raises((TypeError, ValueError)):
        pool.end_snapshot(wrong)
    assert pool.snapshots() == []


def test_a_pool_that_was_closed_has_none(pool: bp.Pool, attach: Callable[..., bp.Pool]) -> None:
    other = attach(pool)
    other.close()
    for use in (lambda: other.begin_snapshot(1), lambda: other.end_snapshot(1), other.snapshots):
        with pytest.raises(errors.PoolClosed):
            use()


def hold(pool: bp.Pool) -> None:
    pool.begin_snapshot(3)
    pool.begin_snapshot(5)
    time.sleep(WAIT)


def test_the_dead_hold_none_before_anyone_has_reaped_them(
    pool: bp.Pool, attach: Callable[..., bp.Pool], child: Any
) -> None:
    """A kill leaves the words as they were. Neither they nor the next client in the slot may count."""
    pool.begin_snapshot(4)
    victim = child(hold, pool, context="spawn")
    wait_until(lambda: pool.snapshots() == [3, 4, 5], "the child begins its snapshots")
    victim.kill()
    assert pool.snapshots() == [4]
    pool.reap()
    other = attach(pool)
    assert pool.snapshots() == [4]
    for lsn in range(32):  # all places of the slot are free
        other.begin_snapshot(lsn)
    assert pool.snapshots() == list(range(32))
    assert pool.check() == []


def test_a_forked_child_has_none(pool: bp.Pool) -> None:
    """A child that ended its parent's snapshot would let the versions go that the parent reads."""
    pool.begin_snapshot(8)
    pid = os.fork()
    if pid == 0:
        try:
            pool.end_snapshot(8)
        except ValueError:
            pool.begin_snapshot(9)
            pool.begin_snapshot(8)
            pool.end_snapshot(8)
            os._exit(7 if pool.snapshots() == [8, 9] else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
    assert pool.snapshots() == [8]


def test_threads_begin_and_end_at_the_same_lsns(pool: bp.Pool, attach: Callable[..., bp.Pool]) -> None:
    other, wrong = attach(pool), list[str]()

    def work(first: int) -> None:
        for n in range(3000):
            lsn = (first + n) % 8
            pool.begin_snapshot(lsn)
            if lsn not in other.snapshots():
                wrong.append(f"{lsn} is not there")
            pool.end_snapshot(lsn)

    workers = [threading.Thread(target=work, args=(first,)) for first in (0, 0, 3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(WAIT)
    assert wrong == []
    assert pool.snapshots() == []


def test_a_stopped_process_keeps_its_snapshots(pool: bp.Pool, child: Any) -> None:
    """A stopped reader has its snapshot still when it continues."""
    stopped = child(hold, pool, context="spawn")
    wait_until(lambda: pool.snapshots() == [3, 5], "the child begins its snapshots")
    os.kill(stopped.pid, signal.SIGSTOP)
    try:
        assert pool.snapshots() == [3, 5]
    finally:
        os.kill(stopped.pid, signal.SIGCONT)
    stopped.kill()
    assert pool.snapshots() == []
