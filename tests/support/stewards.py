"""Shared parts of the steward's tests: sources whose readings a test sets, and pages to write."""

import threading
import time
from unittest import mock

from bufferpool.figures.names import EventReason
from bufferpool.machine.pressure import Reading
from bufferpool.upkeep.budget import Rules
from bufferpool.upkeep.steward import Settings, Steward
from tests.conftest import WAIT, stamp

GIB = 1 << 30
CALM = Reading(psi_some=0.0, psi_full=0.0, machine_free=8 * GIB, machine_size=16 * GIB)
PRESSED = {
    "psi": (Reading(psi_some=50.0, machine_free=8 * GIB, machine_size=16 * GIB), EventReason.PSI),
    "shm": (Reading(shm_free=0, shm_size=1 << 20), EventReason.SHM),
    "cgroup": (Reading(cgroup_free=0, cgroup_limit=1 << 20), EventReason.CGROUP),
    "machine": (Reading(machine_free=0, machine_size=1 << 20), EventReason.MACHINE),
}
FAST = Rules(shrink_every_s=0.0, grow_every_s=0.0, rest_s=0.0)


class Fake:
    """A source whose readings the test sets, and which lets rounds run when the test wants them."""

    def __init__(self, reading: Reading = CALM, *, free: bool = True) -> None:
        self.reading, self.closed = reading, False
        self.go = threading.Event()
        self.rounds = 0
        if free:
            self.go.set()

    def read(self):
        return self.reading

    def wait(self, timeout_s):
        self.rounds += 1
        time.sleep(0.002)
        return not self.go.wait(WAIT)

    def close(self):
        self.closed = True


def leader(pool):
    """The client number of the pool's steward, 0 if it has none."""
    return next((client.client for client in pool.clients() if client.is_steward), 0)


def whats(pool):
    return [event.kind for event in pool.events()]


def put(space, page_no, version=1, lsn=0):
    write = space.write(page_no, timeout=WAIT)
    if lsn:
        write.lsn = lsn
    with write as page:
        page[:] = stamp(page_no, version=version)


class Stop:
    """A flag for processes that may be killed: an Event of multiprocessing waits for dead waiters."""

    def __init__(self, context):
        self.value = context.RawValue("i", 0)

    def set(self):
        self.value.value = 1

    def is_set(self):
        return bool(self.value.value)


def by_hand(pool, **settings):
    """A steward without a thread, whose rounds the test calls."""
    with mock.patch("bufferpool.upkeep.steward.Worker"):
        made = Steward(pool.client, Settings(**{"source": Fake(), **settings}))
        made.begin()
    made._patience_s = WAIT  # a round is over when its jobs are
    return made
