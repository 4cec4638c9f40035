"""The steward: one at a time, another when it dies, and an end without leftovers."""

import gc
import os
import signal
import threading
import time

import pytest

import bufferpool as bp
from bufferpool.errors import PoolReadOnly
from bufferpool.figures.names import EventKind, EventReason
from tests.conftest import wait_until
from tests.support.children import run_python
from tests.support.stewards import Fake, Stop, leader


def lead(pool, stop):
    pool.start_steward(bp.Settings(interval=0.01, pressure=False))
    while not stop.is_set():
        time.sleep(0.005)
    pool.stop_steward()
    return os.getpid()


def test_exactly_one_leads_and_another_takes_over_when_it_is_killed(pool, child, spawn):
    stop = Stop(spawn)
    offers = {child(lead, pool, stop, context="fork") for _ in range(3)}
    previous = 0
    for _ in range(2):
        wait_until(lambda previous=previous: leader(pool) not in (0, previous), "somebody leads")
        client = leader(pool)
        pid = next(c.pid for c in pool.clients() if c.client == client)
        victim = next(offer for offer in offers if offer.pid == pid)
        seen = {leader(pool) for _ in range(200)}
        assert seen == {client}  # and it stays so
        victim.kill()
        offers.remove(victim)
        wait_until(lambda client=client: leader(pool) not in (0, client), "another leads")
        told = (EventReason.DIED, client)
        wait_until(  # the successor takes the steward's lock first, and records the event then
            lambda told=told: told in [(e.reason, e.value) for e in pool.events() if e.kind is EventKind.STEWARD],
            "the takeover is an event",
        )
        previous = client
    wait_until(lambda: pool.stats().clients == 2, "the dead are reaped by the steward")
    stop.set()
    assert len([offer.result() for offer in offers]) == 1
    wait_until(lambda: leader(pool) == 0, "it has resigned")


def test_a_stopped_steward_is_alive_and_remains_the_steward(pool, child, spawn):
    stop = Stop(spawn)
    other = child(lead, pool, stop, context="fork")
    wait_until(lambda: leader(pool) != 0, "it leads")
    client = leader(pool)
    os.kill(other.pid, signal.SIGSTOP)
    mine = pool.start_steward(bp.Settings(interval=0.005, source=(fake := Fake())))
    wait_until(lambda: fake.rounds > 20, "we have asked many times")
    assert not mine.leads
    assert leader(pool) == client
    os.kill(other.pid, signal.SIGCONT)
    stop.set()
    other.result()
    wait_until(lambda: mine.leads, "it has resigned, and we lead")
    assert leader(pool) != client
    event = [e for e in pool.events() if e.kind is EventKind.STEWARD][-1]
    assert event.reason is EventReason.ASKED
    pool.stop_steward()
    assert leader(pool) == 0
    assert fake.closed


def test_the_number_of_a_dead_steward_is_not_taken_for_ours(pool, child, spawn):
    """A new client gets the slot of the one that was steward: it is not the steward for that."""
    stop = Stop(spawn)
    victim = child(lead, pool, stop, context="fork")
    wait_until(lambda: leader(pool) != 0, "it leads")
    client = leader(pool)
    victim.kill()
    pool.reap()
    with bp.Pool.attach(pool.name) as other:
        assert other.client.seg.status()["client"] == client
        assert leader(other) == 0
    assert leader(pool) == 0


def test_two_pools_of_one_process_are_two_clients(pool, attach):
    other = attach(pool)
    first = pool.start_steward(bp.Settings(source=Fake()))
    wait_until(lambda: first.leads, "the first leads")
    second = other.start_steward(bp.Settings(source=(fake := Fake())))
    wait_until(lambda: fake.rounds > 5, "the second asks")
    assert not second.leads
    assert leader(pool) == leader(other) == pool.client.seg.status()["client"]
    pool.stop_steward()
    wait_until(lambda: second.leads, "the second leads")


def test_starting_twice_is_refused_and_starting_again_is_not(pool):
    pool.start_steward(bp.Settings(source=Fake()))
    with pytest.raises(ValueError, match="stop_steward"):
        pool.start_steward()
    pool.stop_steward()
    pool.stop_steward()
    assert pool.start_steward(bp.Settings(source=Fake())).alive


def test_a_read_only_pool_has_none(pool):
    with bp.Pool.attach(pool.name, mode="r") as other, pytest.raises(PoolReadOnly):
        other.start_steward()


@pytest.mark.parametrize(
    "bad",
    [
        {"interval": 0},
        {"flush_every": -1},
        {"flush_every": float("nan")},
        {"idle": 0},
        {"clean": 0.6},
        {"clean": -0.1},
        {"working_set_every": 0},
    ],
)
def test_bad_settings_are_refused(pool, bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        pool.start_steward(bp.Settings(**bad))
    assert not [t for t in threading.enumerate() if t.name.startswith("steward")]


def test_settings_are_one_value(pool):
    """start_steward had nine arguments; a number in the place of the settings must not be taken for one of them."""
    with pytest.raises(TypeError, match=r"settings must be a bufferpool.Settings, not float"):
        pool.start_steward(0.25)


def test_nothing_is_left_of_stewards_that_came_and_went(make_pool):
    pool = make_pool()
    pool.start_steward(bp.Settings(interval=0.01))
    pool.stop_steward()
    gc.collect()
    fds, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
    for _ in range(10):
        pool.start_steward(bp.Settings(interval=0.01))
        pool.stop_steward()
    assert len(os.listdir("/proc/self/fd")) == fds
    assert threading.active_count() == threads


def test_what_ends_the_thread_is_raised_by_stop_and_by_close(pools, monkeypatch):
    monkeypatch.setattr(threading, "excepthook", lambda args: None)
    for end in ("stop_steward", "close"):
        pool = pools.create()
        fake = Fake()
        fake.read = lambda: 1 / 0
        made = pool.start_steward(bp.Settings(source=fake))
        wait_until(lambda made=made: not made.alive, "it ends")
        assert fake.closed
        assert leader(pool) == 0
        with pytest.raises(ZeroDivisionError):
            getattr(pool, end)()
        pool.stop_steward()
        if end == "close":
            assert pool.client.attached is None  # closed all the same


_EXITS = """
import sys, bufferpool as bp
pool = bp.Pool.attach(sys.argv[1])
pool.start_steward(bp.Settings(interval=0.01))
table = pool.open_file(sys.argv[2], "r+")
with table.write(0) as page: page[:] = 1
if sys.argv[3] == "error": raise SystemExit(3)
if sys.argv[3] == "view": view = table[1]
"""


@pytest.mark.parametrize(("how", "code"), [("end", 0), ("error", 3), ("view", 0)])
def test_the_interpreter_ends_with_a_running_steward(pool, data_file, how, code):
    done = run_python(_EXITS, pool.name, str(data_file(4)), how)
    assert (done.returncode, done.stderr) == (code, "")
    pool.reap()
    assert leader(pool) == 0
    assert pool.stats().clients == 1


def test_a_forked_child_has_no_steward_and_leaves_its_parents_alone(pool, child):
    made = pool.start_steward(bp.Settings(interval=0.01))
    wait_until(lambda: made.leads, "we lead")
    mine = leader(pool)
    assert child(_child_of_a_steward, pool, context="fork").result() == (mine, False)
    assert made.alive
    assert made.leads
    assert leader(pool) == mine


def _child_of_a_steward(pool):
    seen = leader(pool)
    pool.stop_steward()
    made = pool.start_steward(bp.Settings(interval=0.01))
    time.sleep(0.05)
    leads = made.leads
    pool.close()
    return seen, leads
