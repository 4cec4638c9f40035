"""The six core workloads of YCSB (Cooper et al., SoCC 2010) on toydb, with one to --processes processes.

  A  half reads, half updates       D  reads of the newest records, 5 % inserts
  B  95 % reads, 5 % updates        E  scans of up to 100 records, 5 % inserts
  C  reads only                     F  half reads, half read-modify-writes

Records have ten fields of 100 bytes; which ones are asked for is Zipf-distributed (0.99), in D by age. Each
operation is a transaction of its own, durable when it returns. Every record read is checked as a whole. Each
update increments a counter in the field that it changes, so that at the end the sum over all fields must be the
number of committed updates: none was lost, and none was done twice.
"""

import struct
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from hdrh.histogram import HdrHistogram  # type: ignore[import-untyped]
from pages import zipf
from workload import BLUE, GREEN, GREY, MIB, ORANGE, Pipe, Run, main

from toydb import Database, SnapshotTooOld, Transaction

FIELDS, FIELD = 10, 100  # fields of a record, bytes of a field
HEAD = struct.Struct("<QII")  # record, field, how often it was changed
TABLE = "usertable"
MIXES = {
    "A": {"read": 0.5, "update": 0.5},
    "B": {"read": 0.95, "update": 0.05},
    "C": {"read": 1.0},
    "D": {"read": 0.95, "insert": 0.05},
    "E": {"scan": 0.95, "insert": 0.05},
    "F": {"read": 0.5, "read-modify-write": 0.5},
}
READS = ("read", "scan")
DRAWN = 1000  # random numbers at a time
PERCENTILES = (50, 95, 99)


# ---- records -------------------------------------------------------------------------------


def key_of(n: int) -> bytes:
    """The key of record ``n``. Records with consecutive numbers have distant keys."""
    return b"user%020d" % (n * 0x9E3779B97F4A7C15 % 2**64)


def field_of(n: int, i: int, count: int) -> bytes:
    """Field ``i`` of record ``n``, changed ``count`` times."""
    return (HEAD.pack(n, i, count) * 7)[:FIELD]


def new_record(n: int) -> bytes:
    """A new record, with all counters at 0."""
    return b"".join(field_of(n, i, 0) for i in range(FIELDS))


def counts_of(record: bytes | None) -> list[int] | None:
    """The counter of each field; None if this is not a record, or a mixture of several."""
    if record is None or len(record) != FIELDS * FIELD:
        return None
    n, counts = HEAD.unpack_from(record)[0], [HEAD.unpack_from(record, i * FIELD)[2] for i in range(FIELDS)]
    return counts if record == b"".join(field_of(n, i, count) for i, count in enumerate(counts)) else None


# ---- a client ------------------------------------------------------------------------------


class Client:
    """One process that does operations, and times them."""

    def __init__(self, database: Database, n_records: int, first_new: int, seed: int, newest: bool) -> None:
        self.database, self.n_records, self.newest = database, n_records, newest
        self.random = np.random.default_rng(seed)
        self.own: list[int] = []  # numbers of the records that it has inserted
        self.next = first_new
        self.done: dict[str, int] = {}
        self.wrong = self.too_old = 0
        self.times = {name: HdrHistogram(1, 60_000_000, 3) for name in ("reads", "writes")}  # microseconds
        self._drawn: list[int] = []

    def choose(self) -> int:
        """The number of a record: Zipf-distributed, over numbers or over ages."""
        if not self._drawn:
            self._drawn = zipf(self.random, self.n_records, 0.99, DRAWN, shuffled=not self.newest).tolist()
        drawn = self._drawn.pop()
        if not self.newest:
            return drawn
        age = drawn - len(self.own)
        return self.own[-1 - drawn] if age < 0 else self.n_records - 1 - age

    def looked(self, record: bytes | None, n: int) -> None:
        """Checks a record."""
        self.wrong += counts_of(record) is None or HEAD.unpack_from(record or b"")[0] != n

    def read(self, txn: Transaction) -> None:
        """One record."""
        n = self.choose()
        self.looked(txn.table(TABLE).get(key_of(n)), n)

    def scan(self, txn: Transaction) -> None:
        """Up to a hundred records, in order of their keys."""
        keys, most = [], int(self.random.integers(1, 101))
        for key, record in txn.table(TABLE).scan(key_of(self.choose())):
            keys.append(key)
            self.looked(record, HEAD.unpack_from(record)[0])
            if len(keys) == most:
                break
        self.wrong += keys != sorted(set(keys)) or not keys

    def update(self, txn: Transaction) -> None:
        """One field of a record; toydb's values are whole records, so it is read first."""
        n, i, table = self.choose(), int(self.random.integers(FIELDS)), txn.table(TABLE)
        record = table.get(key_of(n))
        self.looked(record, n)
        counts = counts_of(record)
        if record is not None and counts is not None:
            at = i * FIELD
            table.put(key_of(n), record[:at] + field_of(n, i, counts[i] + 1) + record[at + FIELD :])

    def insert(self, txn: Transaction) -> None:
        """A new record."""
        txn.table(TABLE).insert(key_of(self.next), new_record(self.next))

    def once(self, name: str) -> None:
        """One operation, in a transaction of its own."""
        reads = name in READS
        action = {"read": self.read, "scan": self.scan, "insert": self.insert}.get(name, self.update)
        began = time.perf_counter_ns()
        while True:
            try:
                with self.database.begin(write=not reads) as txn:
                    action(txn)
                break
            except SnapshotTooOld:  # a reader that was overtaken by many writers begins anew
                self.too_old += 1
        self.times["reads" if reads else "writes"].record_value(max(1, (time.perf_counter_ns() - began) // 1000))
        if name == "insert":
            self.own.append(self.next)
            self.next += 1
        self.done[name] = self.done.get(name, 0) + 1


def client(
    pipe: Pipe, path: Path, pool_name: str, mix: dict[str, float], seconds: float, *numbers: Any
) -> dict[str, Any]:
    """A process: operations of a mix for some time."""
    with Database.open(path, pool_name=pool_name, create=False) as database:
        one = Client(database, *numbers)
        names, shares = list(mix), list(mix.values())
        one.once(names[0])  # the first operation opens the tables
        pipe.put("ready")
        pipe.get()
        before, began = dict(one.done), time.monotonic()
        one.times = {name: HdrHistogram(1, 60_000_000, 3) for name in one.times}
        while sum(one.done.values()) == sum(before.values()) or time.monotonic() < began + seconds:
            for which in one.random.choice(len(names), 20, p=shares):
                one.once(names[which])
        took = time.monotonic() - began
        return {
            "done": one.done,
            "per_s": (sum(one.done.values()) - sum(before.values())) / took,
            "wrong": one.wrong,
            "too_old": one.too_old,
            "times": {name: times.encode() for name, times in one.times.items()},
        }


# ---- the runs ------------------------------------------------------------------------------


@dataclass
class Result:
    """The result of a workload with a number of processes. Times are in microseconds, by percentile."""

    name: str
    processes: int
    per_s: float
    times: dict[str, dict[int, float]]


class Bench:
    """The database, and the counts of operations."""

    def __init__(self, run: Run) -> None:
        self.run, self.options = run, run.options
        self.path = run.folder() / "ycsb.db"
        self.pool_name = run.pool_name()
        capacity = int(self.options.cache * MIB)
        self.database = run.stack.enter_context(Database.open(self.path, capacity=capacity, pool_name=self.pool_name))
        self.updates = self.inserts = self.wrong = self.operations = self.too_old = self.runs = 0

    def fill(self) -> None:
        """The records of the beginning."""
        with self.database.begin(write=True) as txn:
            txn.create_table(TABLE)
        with self.run.progress("loading", self.options.records) as advance:
            for first in range(0, self.options.records, 500):
                numbers = range(first, min(first + 500, self.options.records))
                with self.database.begin(write=True) as txn:
                    table = txn.table(TABLE)
                    for n in numbers:
                        table.insert(key_of(n), new_record(n))
                advance(len(numbers))

    def measure(self, name: str, processes: int) -> Result:
        """One workload."""
        options = self.options
        self.runs += 1
        workers = [
            self.run.start(
                client, self.path, self.pool_name, MIXES[name], options.seconds,
                options.records, (100 * self.runs + n) * 1_000_000, options.seed + 100 * self.runs + n, name == "D",
            )
            for n in range(processes)
        ]  # fmt: skip
        for worker in workers:
            worker.get()
        for worker in workers:
            worker.put("go")
        found = [worker.get() for worker in workers]
        times = {kind: HdrHistogram(1, 60_000_000, 3) for kind in ("reads", "writes")}
        for part in found:
            self.operations += sum(part["done"].values())
            self.updates += part["done"].get("update", 0) + part["done"].get("read-modify-write", 0)
            self.inserts += part["done"].get("insert", 0)
            self.wrong += part["wrong"]
            self.too_old += part["too_old"]
            for kind, encoded in part["times"].items():
                times[kind].decode_and_add(encoded)
        return Result(
            name,
            processes,
            sum(part["per_s"] for part in found),
            {
                kind: {p: float(t.get_value_at_percentile(p)) for p in PERCENTILES}
                for kind, t in times.items()
                if t.get_total_count()
            },
        )

    def verify(self) -> None:
        """Counts everything."""
        run, total, records, broken = self.run, 0, 0, 0
        with self.database.begin() as txn:
            for _, record in txn.table(TABLE).scan():
                counts = counts_of(record)
                records += 1
                broken += counts is None
                total += sum(counts or ())
        run.check(self.wrong == 0, f"{self.operations:,} operations, {self.wrong} of them saw a wrong record")
        run.check(broken == 0, f"every one of {records:,} records is whole")
        expected = self.options.records + self.inserts
        run.check(records == expected, f"{records:,} records are there, {expected:,} were inserted")
        run.check(
            total == self.updates, f"the fields were changed {total:,} times, {self.updates:,} updates were committed"
        )
        run.check(self.database.check() == [], "toydb.check finds nothing")


def ms(result: Result, kind: str) -> list[str]:
    """The percentiles of one kind of operation, in milliseconds."""
    times = result.times.get(kind)
    return [f"{times[p] / 1000:.2f}" if times else "" for p in PERCENTILES]


def work(run: Run) -> None:
    """All workloads, with more and more processes."""
    bench = Bench(run)
    bench.fill()
    numbers = [n for n in (1, 2, 4, 8, 16) if n < run.options.processes] + [run.options.processes]
    results = []
    with run.progress("workloads A to F", len(MIXES) * len(numbers)) as advance:
        for name in MIXES:
            for processes in numbers:
                results.append(bench.measure(name, processes))
                advance(1)
    run.table(
        "operations a second, and their times in milliseconds (percentiles 50, 95, 99)",
        ("workload", "processes", "per second", "reads 50", "95", "99", "writes 50", "95", "99"),
        [(r.name, str(r.processes), f"{r.per_s:,.0f}", *ms(r, "reads"), *ms(r, "writes")) for r in results],
    )
    run.say(f"     {bench.too_old} transactions began anew because their snapshot had become too old")
    bench.verify()
    run.plot(draw, results, numbers)


def draw(results: list[Result], numbers: list[int]) -> Any:
    """Throughput to the left, latencies with most processes to the right."""
    from matplotlib import pyplot

    figure, (speed, times) = pyplot.subplots(1, 2, figsize=(9, 3.8))
    width, names = 0.8 / len(numbers), list(MIXES)
    for n, processes in enumerate(numbers):
        heights = [r.per_s for r in results if r.processes == processes]
        x = np.arange(len(names)) + (n - (len(numbers) - 1) / 2) * width
        label = f"{processes} process{'es' if processes > 1 else ''}"
        speed.bar(x, heights, width * 0.92, color=(GREY, BLUE, GREEN, ORANGE, "#b03a48", "#444444")[n], label=label)
    speed.set(title="operations a second", xticks=range(len(names)), xticklabels=names, yscale="log")
    speed.set_ylim(100, 5 * max(r.per_s for r in results))
    speed.legend(loc="upper left", ncols=3, fontsize=9, columnspacing=1, handlelength=1.2)
    for offset, kind, color in ((-0.12, "reads", BLUE), (0.12, "writes", ORANGE)):
        for at, name in enumerate(names):
            found = next(r for r in results if r.name == name and r.processes == numbers[-1]).times.get(kind)
            if found:
                values = [found[p] / 1000 for p in PERCENTILES]
                times.plot([at + offset] * 3, values, "-", color=color, alpha=0.5)
                for value, marker in zip(values, "o_^", strict=True):
                    times.plot([at + offset], [value], marker, color=color, ms=6)
        times.plot([], [], "-", color=color, label=kind)
    for marker, p in zip("o_^", PERCENTILES, strict=True):
        times.plot([], [], marker, color=GREY, label=f"{p} %")
    times.set(title=f"milliseconds, {numbers[-1]} processes", xticks=range(len(names)), xticklabels=names, yscale="log")
    times.set_ylim(top=6 * times.get_ylim()[1])
    times.legend(loc="upper left", ncols=5, fontsize=9, columnspacing=1, handlelength=1.2, handletextpad=0.4)
    return figure


if __name__ == "__main__":
    main(
        work,
        processes=(4, 2, "the most processes at once"),
        records=(10_000, 600, "records at the beginning, of 1000 bytes"),
        cache=(8, 1, "size of the database's pool in MiB"),
        seconds=(2.0, 0.15, "how long each workload runs with each number of processes"),
    )
