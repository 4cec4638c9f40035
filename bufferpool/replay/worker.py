"""The worker process of a replay, and the board: the file in which parent and workers exchange their state."""

import os
import time
import traceback
from dataclasses import dataclass
from multiprocessing import connection
from typing import Any

import numpy as np
import numpy.typing as npt

from bufferpool.errors import BufferPoolError
from bufferpool.pool import Pool
from bufferpool.replay.stamped import ReplayFailed, Words, stamp, verify
from bufferpool.spaces.space import Space

_BLOCK = 256  # accesses between two times that a worker reads the board

GO, STOP = 0, 1  # columns of Board.parent
READY, ACCESSES, WRITES = 0, 1, 2  # columns of Board.progress


class Board:
    """The state of parent and workers: one mapped file, each row written by one process."""

    def __init__(self, path: str, processes: int, pages: int) -> None:
        rows = 1 + processes
        with open(path, "ab") as file:
            file.truncate(rows * 64 + processes * pages * 4)
        self._rows = np.memmap(path, np.int64, "r+", 0, (rows, 8))
        self.parent = self._rows[0]  # go, stop
        self.progress = self._rows[1:]  # of each worker: ready, accesses, writes
        self.writes = np.memmap(path, np.uint32, "r+", rows * 64, (processes, pages))

    def versions(self) -> Words:
        """The version that each page must have: shape (pages,), uint64."""
        versions: Words = self.writes.sum(axis=0, dtype=np.uint64)
        return versions


@dataclass(frozen=True)
class Job:
    """The parameters of a worker; the trace, the database file and the board are files in ``folder``."""

    pool: str
    directory: str | None
    folder: str
    pages: int
    processes: int
    page_size: int
    writes: float
    repeat: int
    seed: int
    parent: int

    def board(self) -> Board:
        """The board, mapped."""
        return Board(os.path.join(self.folder, "board"), self.processes, self.pages)

    @property
    def database(self) -> str:
        """The path of the database file."""
        return os.path.join(self.folder, "replay.db")

    @property
    def trace(self) -> str:
        """The path of the trace, as load_trace() returned it."""
        return os.path.join(self.folder, "trace.npy")


def _do_block(
    space: Space, block: npt.NDArray[np.uint32], write: npt.NDArray[np.bool_], seen: list[int], mine: npt.NDArray[Any]
) -> None:
    for page_no, writes in zip(block.tolist(), write.tolist(), strict=True):
        if writes:
            with space.write(page_no) as page:
                version = verify(page, page_no, seen[page_no]) + 1
                page.fill(stamp(page_no, version))
            mine[page_no] += 1
        else:
            version = verify(space[page_no], page_no, seen[page_no])
        seen[page_no] = version


def _work(index: int, job: Job) -> None:
    board = job.board()
    progress, mine = board.progress[index], board.writes[index]
    trace = np.load(job.trace, mmap_mode="r")
    random = np.random.default_rng([job.seed, index])
    seen = [0] * job.pages
    with Pool.attach(job.pool, directory=job.directory) as pool:
        space = pool.open_file(job.database, "r+", dtype=np.uint64)
        progress[READY] = 1
        while not board.parent[GO] and not board.parent[STOP] and os.getppid() == job.parent:
            time.sleep(0.001)
        for _ in range(job.repeat):
            for start in range(index * _BLOCK, len(trace), job.processes * _BLOCK):
                if board.parent[STOP] or os.getppid() != job.parent:
                    return
                block = trace[start : start + _BLOCK]
                write = random.random(len(block)) < job.writes
                _do_block(space, block, write, seen, mine)
                progress[ACCESSES] += len(block)
                progress[WRITES] += np.count_nonzero(write)


def main(index: int, job: Job, sender: "connection.Connection[Any, Any]") -> None:
    """The main function of a worker. It sends an error to the parent as text, and exits with 1."""
    try:
        _work(index, job)
    except (BufferPoolError, OSError) as error:
        sender.send(str(error) if isinstance(error, ReplayFailed) else f"{type(error).__name__}: {error}")
        raise SystemExit(1) from None
    except Exception:  # noqa: BLE001 - not swallowed: the parent raises it
        sender.send("an unexpected error\n" + traceback.format_exc()[-8000:])
        raise SystemExit(1) from None
