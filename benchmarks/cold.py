"""Pages that are not in the pool: the share of the device's rate that a call for many of them reaches, and how many bytes remain in
the kernel's page cache."""

import ctypes
import mmap
import os
import subprocess
import sysconfig
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import numpy as np
import numpy.typing as npt
from harness import PAGE, Bar, Bench, Bytes, Row, in_turns

import bufferpool

Ints = npt.NDArray[np.int64]
DEPTH, AT_ONCE = 64, 256
ROOT = Path(__file__).parent.parent
CORE = ROOT / "bufferpool" / "core"


def yardstick_program(bench: Bench) -> Path:
    """The plain io_uring loop, compiled."""
    out = bench.file.parent / "uring"
    if not out.exists():
        compiler = (sysconfig.get_config_var("CXX") or "c++").split()
        source = Path(__file__).parent / "uring.cpp"
        subprocess.run(
            [*compiler, "-std=c++20", "-O2", f"-I{CORE}", str(source), "-o", str(out), "-pthread"], check=True
        )
    return out


def forget(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@contextmanager
def cold_space(bench: Bench) -> Iterator[tuple[bufferpool.Pool, bufferpool.Space]]:
    """A file four times as large as the pool. Neither the pool nor the page cache has any of it."""
    forget(bench.file)
    with bench.pool(bench.file_pages // 4) as pool:
        yield pool, pool.open_file(bench.file)


@contextmanager
def full_pool(bench: Bench) -> Iterator[tuple[bufferpool.Space, Callable[[], None], Callable[[], None]]]:
    """The same, with two functions. One fills the pool with pages of another file, so that every miss evicts a page, as in a pool
    that has been in use. The other one empties the pool."""
    with cold_space(bench) as (pool, space):
        other = bench.file.with_name("other")
        other.write_bytes(bench.file.read_bytes()[: bench.file_pages // 4 * PAGE])
        forget(other)
        others = pool.open_file(other)

        def empty() -> None:
            space.drop()
            others.drop()

        def fill() -> None:
            empty()
            others.prefetch(range(len(others)))

        yield space, fill, empty
    other.unlink()


def _cold(bench: Bench, name: str, what: str, use: Callable[[bufferpool.Space, Ints], object]) -> list[Row]:
    program, reads = yardstick_program(bench), bench.file_pages
    with full_pool(bench) as (space, fill, empty):
        seeds = iter(range(1, 1 << 20))

        def plain(buffers: int = DEPTH) -> float:
            command = [program, bench.file, PAGE, reads, DEPTH, next(seeds), "d", buffers]
            return float(
                subprocess.run([str(word) for word in command], check=True, capture_output=True, text=True).stdout
            )

        def ours(begin: Callable[[], object] = fill) -> float:
            begin()
            ids = np.random.default_rng(next(seeds)).permutation(reads)  # each page once: every read is a miss
            start = time.perf_counter()
            for at in range(0, reads, AT_ONCE):
                use(space, ids[at : at + AT_ONCE])
            return reads / (time.perf_counter() - start)

        pairs = in_turns(plain, ours, bench.long_rounds)
        few = bench.long_rounds // 3
        spread = in_turns(lambda: plain(reads // 4), ours, few)
        anew = in_turns(plain, lambda: ours(empty), few)
    beside = (
        f"{median(spread.ratios):.2f} of such a loop that reads into memory as large as the pool; "
        f"{median(anew.ratios):.2f} from an empty pool, which gets its memory meanwhile"
    )
    return [pairs.row(name, what, f"io_uring, depth {DEPTH}, O_DIRECT", "/s", Bar(0.8, at_least=True), beside)]


def cold_read_many(bench: Bench) -> list[Row]:
    out = np.empty((AT_ONCE, PAGE), np.uint8)
    return _cold(
        bench, "cold_read_many", "cold read_many of 256", lambda space, ids: space.read_many(ids, out[: len(ids)])
    )


def cold_prefetch(bench: Bench) -> list[Row]:
    return _cold(bench, "cold_prefetch", "cold prefetch of 256", lambda space, ids: space.prefetch(ids))


def cold_pin_many(bench: Bench) -> list[Row]:
    return _cold(
        bench, "cold_pin_many", "cold pin_many of 256, release", lambda space, ids: space.pin_many(ids).release()
    )


def cold_scan(bench: Bench) -> list[Row]:
    block = mmap.mmap(-1, 1 << 20)
    size = bench.file_pages * PAGE
    with full_pool(bench) as (space, fill, empty):
        fd = os.open(bench.file, os.O_RDONLY | os.O_DIRECT)

        def plain() -> float:
            start = time.perf_counter()
            for at in range(0, size, 1 << 20):
                os.preadv(fd, [block], at)
            return size / 1e6 / (time.perf_counter() - start)

        def ours(begin: Callable[[], object] = fill) -> float:
            begin()
            start = time.perf_counter()
            for page in space.scan():
                page[0]
            return size / 1e6 / (time.perf_counter() - start)

        pairs = in_turns(plain, ours, bench.long_rounds)
        anew = in_turns(plain, lambda: ours(empty), bench.long_rounds // 3)
        os.close(fd)
    beside = f"{median(anew.ratios):.2f} from an empty pool, which gets its memory meanwhile"
    return [pairs.row("cold_scan", "cold scan", "preadv of 1 MiB, O_DIRECT", "MB/s", Bar(0.9, at_least=True), beside)]


def cached_bytes(path: Path) -> int:
    """The part of a file that is in the page cache."""
    size, os_page = path.stat().st_size, mmap.PAGESIZE
    with path.open("rb") as file, mmap.mmap(file.fileno(), size, prot=mmap.PROT_READ) as view:
        here, there = np.frombuffer(view, np.uint8), np.zeros(size // os_page, np.uint8)
        ctypes.CDLL(None).mincore(
            ctypes.c_void_p(here.ctypes.data), ctypes.c_size_t(size), ctypes.c_void_p(there.ctypes.data)
        )
        del here
    return int((there & 1).sum()) * os_page


def page_cache(bench: Bench) -> list[Row]:
    """The bytes that 256 MiB of misses and the flush of 64 MiB leave in the page cache."""

    def left(flush: bool) -> Callable[[], float]:
        def run() -> float:
            with cold_space(bench) as _, bench.pool(bench.file_pages // 4) as pool:
                space, done = pool.open_file(bench.file, "r+"), 0
                ids = np.random.default_rng(5).permutation(bench.file_pages)
                while done < (64 << 20 if flush else 256 << 20):
                    some = ids[: bench.file_pages // 8]
                    ids = np.roll(ids, -len(some))
                    if flush:
                        for n in some.tolist():
                            with space.write(n) as page:
                                page[0] ^= 1
                        space.flush()
                    else:
                        space.prefetch(some)
                    done += len(some) * PAGE
                return 100 * cached_bytes(bench.file) / done

        return run

    rows = []
    for flush, what in ((False, "page cache left by 256 MiB of misses"), (True, "page cache left by 64 MiB flushed")):
        pairs = in_turns(lambda: 100.0, left(flush), 1)
        rows.append(pairs.row("page_cache", what, "bytes loaded or flushed", "%", Bar(1, absolute=True)))
    return rows


class _Far:
    """A store with 20 ms of latency."""

    def __init__(self) -> None:
        self.page = np.ones(PAGE, np.uint8)

    def request(self) -> float:
        start = time.perf_counter()
        time.sleep(0.02)
        return time.perf_counter() - start

    def read_into(self, _offset: int, buffer: Bytes) -> int:
        self.request()
        buffer[:] = self.page
        return PAGE

    def write_from(self, _offset: int, buffer: Bytes) -> int:
        return buffer.nbytes

    def sync(self) -> None: ...

    def size(self) -> int:
        return 64 * PAGE


class _FarMany(_Far):
    def read_many_into(self, offsets: list[int], buffers: list[Bytes]) -> list[int]:
        self.request()
        for buffer in buffers:
            buffer[:] = self.page
        return [PAGE] * len(offsets)


def far_store(bench: Bench) -> list[Row]:
    rows = []
    for store, what, bar in ((_FarMany(), "with a method for many", 1.5), (_Far(), "page by page, in threads", 4.0)):
        with bench.pool(1024) as pool:
            space = pool.open_store("far", store)

            def ours(space: bufferpool.Space = space) -> float:
                space.drop()
                start = time.perf_counter()
                space.read_many(range(64))
                return 1e3 * (time.perf_counter() - start)

            def one(store: _Far = store) -> float:
                return 1e3 * store.request()

            pairs = in_turns(one, ours, bench.long_rounds)
            rows.append(pairs.row("far_store", f"64 pages, 20 ms away, {what}", "one request", "ms", bar))
    return rows


def flush(bench: Bench) -> list[Row]:
    """64 MiB dirty at random (or half the file), beside pwritev of the same runs and fdatasync."""
    n = min(64 << 20, bench.file_pages * PAGE // 2) // PAGE
    with bench.pool(2 * n) as pool:
        space = pool.open_file(bench.file, "r+")
        ids = np.sort(np.random.default_rng(6).permutation(bench.file_pages)[:n])
        runs = np.split(ids, np.flatnonzero(np.diff(ids) != 1) + 1)
        other = bench.file.with_name("flushed")  # otherwise the pool would find its file changed
        other.write_bytes(bench.file.read_bytes())
        fd, image = os.open(other, os.O_RDWR), memoryview(bytearray(b"1") * PAGE)

        def plain() -> float:
            start = time.perf_counter()
            for run in runs:
                os.pwritev(fd, [image] * len(run), int(run[0]) * PAGE)
            os.fdatasync(fd)
            took = time.perf_counter() - start
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            return n * PAGE / 1e6 / took

        def ours() -> float:
            for page_no in ids.tolist():
                with space.write(page_no) as page:
                    page[0] ^= 1
            start = time.perf_counter()
            space.flush()
            return n * PAGE / 1e6 / (time.perf_counter() - start)

        pairs = in_turns(plain, ours, bench.long_rounds)
        os.close(fd)
    return [
        pairs.row(
            "flush", f"flush of {n * PAGE >> 20} MiB", "pwritev of the runs, fdatasync", "MB/s", Bar(0.9, at_least=True)
        )
    ]


COLD = (cold_read_many, cold_prefetch, cold_pin_many, cold_scan, page_cache, far_store, flush)
