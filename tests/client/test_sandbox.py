"""A sandbox refuses one system call after the other: each step works without it, or its error has the kernel's errno.

A refused lseek was reported as a descriptor that other code had closed, a refused fstatfs as a file system that is no
tmpfs, and the StoreError of a flush had no errno.
"""

import errno
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import bufferpool as bp
from bufferpool.upkeep.steward import Settings
from tests.conftest import PAGE, WAIT, fill, touch
from tests.support import sandbox

pytestmark = pytest.mark.skipif(not sandbox.NUMBERS, reason="no numbers of system calls for this machine")


def steps(name: str, path: Path) -> Iterator[tuple[str, Callable[[], object]]]:
    """What an application does; the next step is there when the last one has worked."""
    held: dict[str, bp.Pool | bp.Space] = {}
    yield "attach", lambda: held.update(pool=bp.Pool.attach(name))
    pool = held["pool"]
    assert isinstance(pool, bp.Pool)
    yield "open", lambda: held.update(table=pool.open_file(path, "r+"))
    table = held["table"]
    assert isinstance(table, bp.Space)
    yield "miss", lambda: touch(table, [3])
    yield "read_many", lambda: table.read_many(range(10, 30))
    yield "prefetch", lambda: table.prefetch(range(30, 40))
    yield "scan", lambda: [page.size for page in table.scan(40, 50)]
    yield "write", lambda: fill(table, [5], version=1)
    yield "flush", pool.flush
    yield "remove", lambda: pool.open_scratch("work", 8).remove()
    yield "trim", lambda: pool.trim(8 * PAGE)
    yield "resize", lambda: pool.resize(64 * PAGE)
    yield "new file", lambda: pool.open_file(path.with_suffix(".new"), "w+").remove()
    yield "steward", lambda: (pool.start_steward(Settings(pressure=False)), pool.stop_steward())
    yield "save", lambda: pool.save_working_set(path.with_suffix(".set"))
    yield "stats", lambda: (pool.stats(), pool.clients(), pool.reap(), pool.check())


def in_the_sandbox(call: str, error: int, name: str, path: Path) -> str:
    """What has failed with another errno."""
    sandbox.refuse(call, error)
    wrong = []
    for label, step in steps(name, path):
        try:
            step()
        except (bp.BufferPoolError, OSError) as raised:
            if raised.errno not in (error, errno.EAGAIN if call.startswith("clone") else error):
                wrong.append(f"{label}: {type(raised).__name__} {raised.errno}: {raised}")
            if label in ("attach", "open"):
                break
    return "; ".join(wrong)


@pytest.mark.parametrize("error", [errno.EPERM, errno.ENOSYS], ids=["EPERM", "ENOSYS"])
@pytest.mark.parametrize("call", sandbox.NUMBERS)
def test_each_step_works_or_has_the_errno(make_pool, data_file, call, error) -> None:
    pool, path = make_pool(128 * PAGE), data_file(64)
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        signal.alarm(int(WAIT))
        try:
            said = in_the_sandbox(call, error, pool.name, path)
        except BaseException as raised:  # noqa: BLE001  said to the parent
            said = repr(raised)
        os.write(write, said.encode())
        os._exit(0)
    os.close(write)
    with open(read) as file:
        said = file.read()
    assert os.waitpid(pid, 0)[1] == 0
    assert said == ""
    assert pool.reap() <= 2
    assert pool.check() == []
    pool.unlink(discard=True)
