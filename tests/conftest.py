"""What all tests share: pools with unique names that end with the checker, and stamped files."""

import functools
import gc
import itertools
import os
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bufferpool as bp
from bufferpool.units import parse_size

pytest_plugins = ["tests.support.children"]

SHM = Path("/dev/shm")
ROOT = Path(bp.__file__).parent.parent  # so that child processes take the same package
PAGE = 4096
EXTENT = 16384
# BP_PATIENCE: the factor of a slow (emulated) machine.
PATIENCE = float(os.environ.get("BP_PATIENCE", "1"))
# BP_FIRST_CLIENT: pools that tests create give their clients numbers from this one on (tests/support/client_numbers.py).
FIRST_CLIENT = int(os.environ.get("BP_FIRST_CLIENT", "1"))
# No test waits longer for anything, and nothing is measured with it. It is enough beside twenty other busy processes.
WAIT = 300.0 * PATIENCE
# What a pool may ask for in a test marked `kernel`: it fits into /dev/shm of a machine with 2 GiB, as are the lab's.
SMALL = 512 << 20

_prefix = f"bptest-{os.getpid()}-"
_numbers = itertools.count(1)


def new_name() -> str:
    """A pool name that nobody else has."""
    return f"bptest-{os.getpid()}-{next(_numbers)}"  # a forked child has the numbers of its parent


# ---- content ---------------------------------------------------------------------


def stamp(page_no: int, size: int = PAGE, version: int = 0) -> np.ndarray:
    """The content of a page: every word differs from every word of other pages and versions."""
    base = (version << 44) + ((page_no + 1) << 20)
    return (np.arange(size // 8, dtype=np.uint64) + np.uint64(base)).view(np.uint8)


def write_file(path: Path, n_pages: int, size: int = PAGE, version: int = 0) -> Path:
    path.write_bytes(b"".join(stamp(n, size, version).tobytes() for n in range(n_pages)))
    return path


def page_of(path: Path, page_no: int) -> bytes:
    """A page of a file, not read through a pool."""
    return path.read_bytes()[page_no * PAGE : (page_no + 1) * PAGE]


def damage(path: str | os.PathLike[str], offset: int, data: bytes) -> None:
    """Changes bytes of a file as a disk does: its times do not show it."""
    about = os.stat(path)
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(data)
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))


def client_of(pool: bp.Pool, pid: int) -> bp.ClientInfo:
    """The client of a process."""
    return next(client for client in pool.clients() if client.pid == pid)


def kernel_bytes(pool: bp.Pool) -> int:
    """Bytes that the kernel counts for the segment."""
    return os.stat(pool.path).st_blocks * 512


def pins(pool: bp.Pool) -> int:
    """Pins of all clients."""
    return sum(client.pins for client in pool.clients())


def fill(space: bp.Space, pages: Iterable[int], version: int = 0) -> None:
    for n in pages:
        with space.write(n) as page:
            page[:] = stamp(n, version=version)


def touch(space: bp.Space, pages: Iterable[int]) -> None:
    """Reads pages, and keeps none of them pinned."""
    for n in pages:
        assert space[int(n)].size


def in_step(pool: bp.Pool) -> bp.PoolStats:
    """The pool's figures and the kernel's agree to the byte (on a quiet pool)."""
    stats = pool.stats()
    assert stats.kernel_bytes == kernel_bytes(pool)
    assert stats.kernel_data_bytes == stats.resident_bytes
    assert stats.frames.hole * PAGE + stats.resident_bytes == stats.max_bytes
    return stats


def wait_until(holds: Callable[[], bool], what: str, timeout: float = WAIT) -> None:
    """Waits, with a bound, until something holds."""
    end = time.monotonic() + timeout
    while not holds():
        if time.monotonic() > end:
            pytest.fail(f"waited {timeout} s in vain: {what}")
        time.sleep(0.005)


# ---- pools ---------------------------------------------------------------------------


class Pools:
    """Makes pools; ends them with the checker."""

    def __init__(self, small: bool = False) -> None:
        self.small = small
        self.names: list[str] = []
        self.pools: list[bp.Pool] = []
        self.unchecked: set[str] = set()

    def name(self) -> str:
        self.names.append(new_name())
        return self.names[-1]

    def create(self, capacity: int | str = 64 * PAGE, **options: Any) -> bp.Pool:
        if self.small:
            assert capacity == "auto" or parse_size(capacity) <= SMALL, "it is too large for a machine of the lab"
        options.setdefault("page_size", PAGE)
        options.setdefault("extent_size", max(EXTENT, options["page_size"]))
        pool = bp.Pool.create(self.name(), capacity, **options)
        self.pools.append(pool)
        return pool

    def attach(self, pool: bp.Pool | str) -> bp.Pool:
        other = bp.Pool.attach(pool if isinstance(pool, str) else pool.name)
        self.pools.append(other)
        return other

    def finish(self, passed: bool) -> list[str]:
        """Checks every pool, closes and removes it; returns what was wrong."""
        gc.collect()
        wrong: list[str] = []
        for pool in self.pools:
            pool.stop_steward()  # its flushes pin pages
        for name in self.names:
            if name in self.unchecked or not (SHM / name).is_file():
                continue
            try:
                pool = next((p for p in self.pools if p.name == name and p.client.attached is not None), None)
                opened = pool is None
                pool = bp.Pool.attach(name) if pool is None else pool
                wrong += [f"{name}: {finding}" for finding in pool.check()]
                if passed and pins(pool):
                    wrong.append(f"{name}: {pins(pool)} pins are left over")
                if opened:
                    pool.close()
            except bp.errors.BufferPoolError as error:
                wrong.append(f"{name}: {error!r}")
        for pool in self.pools:
            try:
                pool.close()
            except BufferError as error:
                if passed:
                    wrong.append(f"{pool.name} does not close: {error}")
        for name in self.names:
            for path in (SHM / name, *SHM.glob(f"{name}@*")):  # and its other page sizes
                remove(path)
        return wrong


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    report = yield
    if report.when == "call":
        item.stash[_passed] = report.passed
    return report


_passed = pytest.StashKey[bool]()


def pytest_configure() -> None:
    """A shell starts background jobs with SIGINT ignored, and nohup with SIGHUP ignored; tests need both."""
    for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, usual)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Gives tests to the processes of pytest-xdist one by one, but a file whose tests share a build or a server as one."""
    from xdist.scheduler import LoadScopeScheduling

    shares = functools.cache(lambda path: re.search(r'scope="(module|session)"', (ROOT / path).read_text()) is not None)

    class Scheduling(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            path = nodeid.partition("::")[0]
            return path if shares(path) else nodeid

    return Scheduling(config, log)


def pytest_collection_finish() -> None:
    """The imported modules are kept for good, so that garbage collections in the tests need not look at them."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def faulty_package() -> Path:
    """A copy of bufferpool whose core dies at named points (tests/native/faults.h)."""
    from tests.support.native_build import kept

    return kept("faulty", ["-O0", "-include", str(ROOT / "tests" / "native" / "faults.h")])


@pytest.fixture(autouse=True)
def _client_numbers() -> Iterator[None]:
    from tests.support.client_numbers import numbers_from

    with numbers_from(FIRST_CLIENT):
        yield


@pytest.fixture
def pools(request: pytest.FixtureRequest) -> Iterator[Pools]:
    made = Pools(small=request.node.get_closest_marker("kernel") is not None)
    yield made
    assert made.finish(passed=request.node.stash.get(_passed, False)) == []


@pytest.fixture
def make_pool(pools: Pools) -> Callable[..., bp.Pool]:
    """make_pool(capacity=..., **options): a pool under a unique name, checked at the end."""
    return pools.create


@pytest.fixture
def attach(pools: Pools) -> Callable[..., bp.Pool]:
    """attach(pool or name): one more client of it in this process."""
    return pools.attach


@pytest.fixture
def pool(make_pool: Callable[..., bp.Pool]) -> bp.Pool:
    """64 pages of 4 KiB, extents of 4."""
    return make_pool()


@pytest.fixture
def pool_name() -> Iterator[str]:
    """A unique name for a segment; the segment is removed at the end."""
    name = new_name()
    yield name
    remove(SHM / name)


@pytest.fixture
def data_file(tmp_path: Path) -> Callable[..., Path]:
    """data_file(n_pages, page_size=4096): a file of stamped pages."""
    numbers = itertools.count(1)

    def make(n_pages: int, page_size: int = PAGE, name: str | None = None) -> Path:
        return write_file(tmp_path / (name or f"data{next(numbers)}.db"), n_pages, page_size)

    return make


@pytest.fixture
def table(pool, data_file):
    """A file of 100 stamped pages, in a pool of 64."""
    return pool.open_file(data_file(100), "r+")


@pytest.fixture
def work(pool):
    """16 pages of scratch."""
    return pool.open_scratch("work", 16)


@pytest.fixture
def unchanged(pool, data_file):
    """(pool, table): at the end all is as it was before the test."""
    table = pool.open_file(data_file(10), "r+")
    with table.write(3) as page:
        page[:] = stamp(3, version=1)

    def state():
        stats, frames = pool.stats(), pool.frames()
        # Refused calls may count as failed loads, and may have left a frame free; nothing else.
        return stats.clients, stats.spaces, stats.frames.live, stats.frames.dirty, stats.publishes, len(frames)

    before, memory = state(), kernel_bytes(pool) - pool.stats().metadata_bytes
    yield pool, table
    assert pool.check() == []
    after = state()
    assert after[0] == before[0]
    assert [(s.name, s.pages) for s in after[1]] == [(s.name, s.pages) for s in before[1]]
    assert after[2:] == before[2:]
    # Entries keep their memory: a space that was made and removed again has left some.
    assert kernel_bytes(pool) - pool.stats().metadata_bytes == memory
    assert np.array_equal(table[3], stamp(3, version=1))
    assert np.array_equal(table[4], stamp(4))


@pytest.fixture(scope="session", autouse=True)
def _nothing_is_left() -> Iterator[None]:
    yield
    gc.collect()
    left = sorted(path.name for path in SHM.iterdir() if path.name.startswith(_prefix))
    for name in left:
        remove(SHM / name)
    assert left == []
