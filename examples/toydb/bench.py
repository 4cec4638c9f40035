"""How fast toydb is beside SQLite and LMDB: prints a table, in microseconds per operation.

    python -m toydb.bench             in examples/; two minutes
    python -m toydb.bench --quick     some seconds, and no figure to rely on
    python -m toydb.bench --processor processor time: for a machine that others use; without waits for the disk

SQLite has a write-ahead log. With synchronous=FULL a commit is durable when it returns, as in toydb and LMDB; with NORMAL it
may be lost in a power failure. Every store is in one folder (``--folder``), so that all sync the same disk. The stores are
measured in turn, round by round, so that other load on the machine affects them alike; what is printed is the median, and
the median of the ratios to SQLite FULL in the same round.
"""

import argparse
import multiprocessing
import os
import random
import shutil
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

import toydb
import toydb.sql

try:
    import lmdb
except ImportError:
    lmdb = None

Rows = list[tuple[bytes, bytes]]

BATCH, SCANNED, GETS = 1000, 1000, 2000
PROCESSES = (1, 2, 4)


def key_of(number: int) -> bytes:
    return b"%08d" % number


def value_of(number: int, version: int = 0) -> bytes:
    return b"value %07d of row %d " % (version, number) * 2


class Store(Protocol):
    """What is measured. Each process opens its own."""

    def get(self, key: bytes) -> object: ...
    def get_all(self, keys: list[bytes]) -> None: ...
    def insert(self, rows: Rows) -> None: ...
    def scan(self, lo: bytes, hi: bytes) -> int: ...
    def close(self) -> None: ...


class ToyDB:
    """By key, without SQL."""

    def __init__(self, path: str) -> None:
        self.db = toydb.Database.open(path + ".toydb", capacity="64MiB", checkpoint_bytes="64MiB")
        with self.db.begin(write=True) as txn:
            if "t" not in txn.tables():
                txn.create_table("t")

    def get(self, key: bytes) -> object:
        with self.db.begin() as txn:
            return txn.table("t").get(key)

    def get_all(self, keys: list[bytes]) -> None:
        with self.db.begin() as txn:
            table = txn.table("t")
            for key in keys:
                table.get(key)

    def insert(self, rows: Rows) -> None:
        with self.db.begin(write=True) as txn:
            table = txn.table("t")
            for key, value in rows:
                table.put(key, value)

    def scan(self, lo: bytes, hi: bytes) -> int:
        with self.db.begin() as txn:
            return sum(1 for _ in txn.table("t").scan(lo, hi))

    def close(self) -> None:
        self.db.close()


class SQL:
    """SQLite itself, or toydb through SQLite's virtual tables: the same statements."""

    def __init__(self, connection: Any) -> None:
        self.con = connection
        self.con.execute("CREATE TABLE IF NOT EXISTS t(k BLOB PRIMARY KEY, v BLOB) WITHOUT ROWID")

    def get(self, key: bytes) -> object:
        return self.con.execute("SELECT v FROM t WHERE k = ?", (key,)).fetchone()

    def get_all(self, keys: list[bytes]) -> None:
        self.con.execute("BEGIN")
        for key in keys:
            self.get(key)
        self.con.execute("COMMIT")

    def insert(self, rows: Rows) -> None:
        self.con.execute("BEGIN IMMEDIATE")
        self.con.executemany("INSERT OR REPLACE INTO t VALUES(?, ?)", rows)
        self.con.execute("COMMIT")

    def scan(self, lo: bytes, hi: bytes) -> int:
        return sum(1 for _ in self.con.execute("SELECT k, v FROM t WHERE k BETWEEN ? AND ?", (lo, hi)))

    def close(self) -> None:
        self.con.close()


class LMDB:
    def __init__(self, path: str) -> None:
        self.env = lmdb.open(path + ".lmdb", map_size=1 << 30)

    def get(self, key: bytes) -> object:
        with self.env.begin() as txn:
            return txn.get(key)

    def get_all(self, keys: list[bytes]) -> None:
        with self.env.begin() as txn:
            for key in keys:
                txn.get(key)

    def insert(self, rows: Rows) -> None:
        with self.env.begin(write=True) as txn:
            for key, value in rows:
                txn.put(key, value)

    def scan(self, lo: bytes, hi: bytes) -> int:
        count = 0
        with self.env.begin() as txn:
            cursor = txn.cursor()
            cursor.set_range(lo)
            for key, _ in cursor:
                if key > hi:
                    break
                count += 1
        return count

    def close(self) -> None:
        self.env.close()


def sqlite(path: str, synchronous: str) -> SQL:
    con = sqlite3.connect(f"{path}.{synchronous}.sqlite", isolation_level=None, timeout=60)
    con.execute("PRAGMA journal_mode = WAL")
    con.execute(f"PRAGMA synchronous = {synchronous}")
    return SQL(con)


def toydb_sql(path: str) -> SQL:
    return SQL(toydb.sql.connect(path + ".toysql", capacity="64MiB", checkpoint_bytes="64MiB"))


BASE = "SQLite FULL"
STORES: dict[str, Callable[[str], Store]] = {
    "toydb": ToyDB,
    "toydb SQL": toydb_sql,
    BASE: lambda path: sqlite(path, "FULL"),
    "SQLite NORMAL": lambda path: sqlite(path, "NORMAL"),
    **({"LMDB": LMDB} if lmdb else {}),
}


# ---- the work: returns the number of operations ----------------------------------------


def get(store: Store, rng: random.Random, rows: int) -> int:
    for _ in range(GETS):
        if not store.get(key_of(rng.randrange(rows))):
            raise AssertionError("a row is missing")
    return GETS


def get_in_one(store: Store, rng: random.Random, rows: int) -> int:
    store.get_all([key_of(rng.randrange(rows)) for _ in range(GETS)])
    return GETS


def scan(store: Store, rng: random.Random, rows: int) -> int:
    first = rng.randrange(rows - SCANNED)
    for _ in range(5):
        if (found := store.scan(key_of(first), key_of(first + SCANNED - 1))) != SCANNED:
            raise AssertionError(f"{found} rows are there, not {SCANNED}")
    return 5 * SCANNED


def insert(store: Store, rng: random.Random, rows: int) -> int:
    """In the order of the key, beyond those that are there."""
    first = rng.randrange(10_000, 99_000) * 1000
    store.insert([(key_of(number), value_of(number)) for number in range(first, first + BATCH)])
    return BATCH


def replace(store: Store, rng: random.Random, rows: int) -> int:
    """Anywhere, by new values: toydb writes nothing for an old one."""
    numbers = [rng.randrange(rows) for _ in range(BATCH)]
    store.insert([(key_of(number), value_of(number, rng.randrange(10**7))) for number in numbers])
    return BATCH


def commit(store: Store, rng: random.Random, rows: int) -> int:
    for _ in range(5):
        number = rng.randrange(rows)
        store.insert([(key_of(number), value_of(number, rng.randrange(10**7)))])
    return 5


WORK: dict[str, Callable[[Store, random.Random, int], int]] = {
    "get, a snapshot each": get,
    "get, in one snapshot": get_in_one,
    "scan, per row": scan,
    "insert, 1000 a commit": insert,
    "replace, 1000 a commit": replace,
}
SHARED: dict[str, Callable[[Store, random.Random, int], int]] = {"get": get, "commit of one row": commit}


# ---- measuring -----------------------------------------------------------------------


class Workers:
    """Processes that have opened one store, and work at the same time."""

    def __init__(self, name: str, path: str, n: int, rows: int, processor: bool) -> None:
        self.processor = processor
        context = multiprocessing.get_context("spawn")
        self.pipes, self.processes = [], []
        for seed in range(n):
            mine, theirs = context.Pipe()
            process = context.Process(target=serve, args=(theirs, name, path, seed, rows), daemon=True)
            process.start()
            self.pipes.append(mine)
            self.processes.append(process)
        self.run("")  # they have opened it

    def run(self, work: str) -> float:
        """The time of an operation: of all of them, divided by all their operations; or their processor time."""
        began = time.perf_counter()
        for pipe in self.pipes:
            pipe.send(work)
        operations, used = zip(*(pipe.recv() for pipe in self.pipes), strict=True)
        return (sum(used) if self.processor else time.perf_counter() - began) / max(sum(operations), 1)

    def close(self) -> None:
        for pipe in self.pipes:
            pipe.send(None)
        for process in self.processes:
            process.join()


def serve(pipe: Any, name: str, path: str, seed: int, rows: int) -> None:
    store, rng = STORES[name](path), random.Random(seed)
    while (work := pipe.recv()) is not None:
        began = time.process_time()
        operations = {**WORK, **SHARED}[work](store, rng, rows) if work else 0
        pipe.send((operations, time.process_time() - began))
    store.close()


Times = dict[str, list[float]]


def measure(workers: dict[str, Workers], work: str, rounds: int) -> Times:
    """The times of each store, in turn; a first round is not counted."""
    times: Times = {name: [] for name in workers}
    for number in range(rounds + 1):
        for name, one in workers.items():
            taken = one.run(work)
            if number:
                times[name].append(taken)
    return times


def line(label: str, times: Times) -> str:
    cells = []
    for taken in times.values():
        ratio = statistics.median(a / b for a, b in zip(taken, times[BASE], strict=True))
        cells.append(f"{statistics.median(taken) * 1e6:9.1f} {f'({ratio:.2f})':>7}")
    return f"{label:<26}" + "".join(f"{cell:>18}" for cell in cells)


def fill(path: str, rows: int) -> None:
    for opened in STORES.values():
        store = opened(path)
        for first in range(0, rows, 10_000):
            store.insert([(key_of(n), value_of(n)) for n in range(first, min(first + 10_000, rows))])
        store.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--folder", help="where the stores are made; the default is the temporary folder")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--processor", action="store_true", help="measure processor time")
    args = parser.parse_args()
    rows, rounds = (3000, 2) if args.quick else (args.rows, args.rounds)
    folder = tempfile.mkdtemp(prefix="toydb-bench-", dir=args.folder)
    path = os.path.join(folder, "bench")
    try:
        fill(path, rows)
        kind = " of processor time" if args.processor else ""
        print(f"{rows} rows; µs{kind} per operation (ratio to {BASE})")
        print(" " * 26 + "".join(f"{name:>18}" for name in STORES))
        for n in PROCESSES:
            workers = {name: Workers(name, path, n, rows, args.processor) for name in STORES}
            for work in (*(WORK if n == 1 else ()), *SHARED):
                label = work if n == 1 else f"{work}, {n} processes"
                print(line(label, measure(workers, work, rounds)), flush=True)
            for one in workers.values():
                one.close()
    finally:
        for name in ("toydb", "toysql"):
            with toydb.Database.open(f"{path}.{name}") as db:
                db.pool.unlink(discard=True)  # the folder is removed as well
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
