"""Clients with high numbers, without thousands of processes.

A client takes the lowest slot that is free and whose byte lock it gets. One description may hold the locks of a whole range of bytes: while it
does, no client gets a number of that range.
"""

import fcntl
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest

from bufferpool import _core
from bufferpool.client import segment_file
from bufferpool.pool import Pool


def _take(fd: int, first: int, count: int) -> None:
    lock = struct.pack("hhqqi", fcntl.F_WRLCK, os.SEEK_SET, _core.LOCKS_AT + first, count, 0)
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, lock + bytes(4))


def take_below(fd: int, first: int) -> None:
    """Takes all numbers below ``first``, but for those of guests, for as long as the description ``fd`` lives."""
    geometry = _core.geometry(fd)
    before = geometry["before_guests"]
    after = before + geometry["guests"] + 1
    _take(fd, 1, before)
    _take(fd, after, first - after)


def take_what_is_free_below(fd: int, first: int) -> None:
    """The same, and clients that have such numbers keep them."""
    for number in range(1, first):
        with suppress(BlockingIOError):
            _take(fd, number, 1)


@contextmanager
def numbers_from(first: int) -> Iterator[None]:
    """Pools that this process creates meanwhile have room for many clients, and give them numbers from ``first`` on."""
    if first == 1:
        yield
        return
    create, plan, taken = _core.create, segment_file.plan, []

    def plan_for_many(asked: segment_file.Sizes) -> segment_file.Plan:
        planned = plan(asked)
        return planned._replace(max_clients=min(planned.max_clients + first, _core.CLIENTS_LIMIT - 16))

    def create_and_take(fd: int, *rest: Any) -> None:
        create(fd, *rest)
        taken.append(os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_CLOEXEC))
        take_below(taken[-1], first)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_core, "create", create_and_take)
        patch.setattr(segment_file, "plan", plan_for_many)
        try:
            yield
        finally:
            for fd in taken:
                os.close(fd)


def number_of(pool: Pool) -> int:
    """The number of the client that the pool's object is."""
    return int(pool.client.seg.status()["client"])
