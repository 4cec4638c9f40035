"""A process without memory: MemoryError, and the pool as it was.

The core is compiled without exceptions, so that a list of the standard library that found no memory ended the
process: with the page's locks, pins and flusher fields, in the middle of a flush, a trim, a check or a fork.
"""

import errno
import os
import re
import resource
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import bufferpool as bp
from tests.conftest import PAGE, ROOT, WAIT, new_name, write_file
from tests.support import native_build


def _starve(crumbs: int) -> None:
    """From here on the process gets no more memory from the kernel, and has used up what it had but for some crumbs.

    With crumbs there is room for small objects of Python, but for no new mapping: errors have a message then.
    """
    with open("/proc/self/statm") as file:
        size = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size, resource.getrlimit(resource.RLIMIT_AS)[1]))
    eaten: list[bytearray] = []
    try:
        while True:
            eaten.append(bytearray(PAGE if len(eaten) % 2 else 64))
    except MemoryError:
        del eaten[len(eaten) - crumbs :]
        globals()["_kept"] = eaten


def _outcome(operation: Callable[[], object], crumbs: int) -> str:
    """How an operation ends in a forked child that has no memory left: done, or the error and its errno."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            _starve(crumbs)
            operation()
            os.write(write, b"done")
        except MemoryError:
            os.write(write, b"MemoryError")
        except Exception as error:  # noqa: BLE001 - the parent reports it
            globals()["_kept"] = None
            _, hard = resource.getrlimit(resource.RLIMIT_AS)
            resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
            number = getattr(error, "errno", None)
            os.write(write, f"{type(error).__name__} {errno.errorcode.get(number, number)}".encode())
        finally:
            os._exit(0)
    os.close(write)
    with open(read, "rb") as file:
        said = file.read().decode()
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return said or f"ended by {code}"


def test_operations_of_a_process_that_has_used_up_its_address_space(tmp_path: Path) -> None:
    """Under ``ulimit -v`` a flush of many pages aborted: the list of its pages did not find room."""
    path = write_file(tmp_path / "table", 1)
    os.truncate(path, 9000 * PAGE)
    pool = bp.Pool.create(new_name(), 9000 * PAGE, page_size=PAGE)
    table = pool.open_file(path, "r+")
    for n in range(8000):
        with table.write(n) as page:
            page[0] = 1

    def fork() -> None:
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        os.waitpid(pid, 0)

    every = np.arange(8000)
    operations: dict[str, Callable[[], object]] = {
        "flush": pool.flush,
        "pin_many": lambda: table.pin_many(every),
        "read_many": lambda: table.read_many(every),
        "trim": lambda: pool.trim("8MiB"),
        "drop": lambda: table.drop(0, 100),
        "check": pool.check,
        "frames": pool.frames,
        "clients": pool.clients,
        "advise": pool.advise,
        "attach": lambda: bp.Pool.attach(pool.name),
        "open": lambda: pool.open_scratch("more", 100),
        "fork": fork,
    }
    for what, operation in operations.items():
        # A pool that cannot be mapped is an error of its own, with the remedy.
        legal = {"done", "MemoryError"} | ({"SegmentError ENOMEM"} if what == "attach" else set())
        for crumbs in (0, 400):
            assert _outcome(operation, crumbs) in legal, what
            assert pool.check() == []
    pool.unlink(discard=True)
    pool.close()


@pytest.fixture(scope="module")
def failing_malloc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    library = tmp_path_factory.mktemp("failing") / "failing_malloc.so"
    source = native_build.NATIVE / "failing_malloc.c"
    compiler = shlex.split(os.environ.get("CC", "gcc"))
    subprocess.run([*compiler, "-shared", "-fPIC", "-O1", "-Wall", str(source), "-o", str(library)], check=True)
    return library


@pytest.mark.parametrize("everything", [False, True], ids=["one", "all after it"])
def test_every_request_for_memory_may_fail(failing_malloc: Path, tmp_path: Path, everything: bool) -> None:
    """Each request of the core for memory in turn gets none: MemoryError or success, and check() is clean."""
    path, name = tmp_path / "table", new_name()
    with open(path, "wb") as file:
        file.truncate(300 * PAGE)
    environment = os.environ | {"LD_PRELOAD": str(failing_malloc), "PYTHONMALLOC": "malloc"}
    command = [sys.executable, "-m", "tests.support.memory_walk", name, str(path), str(int(everything))]
    try:
        done = subprocess.run(
            command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=4 * WAIT, check=False
        )
    finally:
        (Path("/dev/shm") / name).unlink(missing_ok=True)
    assert done.returncode == 0, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    requests = {line.rpartition(" ")[0]: int(line.rpartition(" ")[2]) for line in done.stdout.splitlines()}
    assert len(requests) == 25
    assert all(requests[what] for what in ("flush", "pin_many", "trim", "check", "miss", "events", "observe")), requests


def test_the_core_takes_memory_in_one_room_only() -> None:
    """An allocation of the standard library that fails ends the process, so the core uses none of its containers."""
    allocates = re.compile(
        r"\bnew [A-Za-z_:<]|std::(vector|string|set|map|unordered_\w+|deque|list|function|shared_ptr|make_\w+|stable_\w+)\b"
        r"|\b(malloc|calloc|realloc|strdup)\("
    )
    found = []
    for source in native_build.SOURCES:
        if source.name in ("heap.h", "prim.h"):
            continue
        for number, line in enumerate(source.read_text().splitlines(), 1):
            code = re.sub(r'"(\\.|[^"\\])*"', '""', line).partition("//")[0]
            if allocates.search(code):
                found.append(f"{source.name}:{number}: {line.strip()}")
    assert found == []
