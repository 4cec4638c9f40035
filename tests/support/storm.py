"""The storm: processes do everything that a pool can, and are killed at random moments.

    python tests/support/storm.py --seconds 60
    python tests/support/storm.py --kills 20000

The ledger, a file outside the pool, records for every page the last version that a process was about to publish (`intended`), and
the last version that each process has published or seen (`floor`). No process may read a version below any floor, or above the
intended one. The exit code is 1 if anything was lost, leaked, or broken.
"""

import argparse
import ctypes
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import bufferpool as bp
from bufferpool._core import fields
from bufferpool.observer import Observer

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))
    if "--worker" in sys.argv:  # before anything that may take long, or hang
        import faulthandler

        stacks = sys.argv[sys.argv.index("--worker") + 1] + "/stacks"
        faulthandler.register(signal.SIGUSR1, open(stacks, "a"))  # noqa: SIM115  open until the process ends

from tests.support import deaths
from tests.support.deaths import alive, guarded
from tests.support.storm_worker import (
    FILE_PAGES,
    HALF,
    LEAST,
    LEGAL,
    MOST,
    MOST_PAGES,
    OPS,
    PAGE,
    STOP,
    STOPPED,
    STOPS,
    WORKERS,
    Ledger,
    Lost,
    look,
    stamp,
    work,
)  # fmt: skip

CLIENTS = (40, 9, 400)  # client slots of the pools, in turn: enough, too few, and room for a crowd
CROWD = 300  # clients at once
PAUSES = 3  # stretches with one pool
SPAWNED = 0.01  # the share of the workers that begin as a new program, which takes as long as 20 forks of this process


@dataclass
class Report(deaths.Report):
    signals: dict[str, int] = field(default_factory=dict)
    started: int = 0
    pauses: int = 0
    stutters: int = 0
    crowds: int = 0
    pools: dict[str, int] = field(default_factory=dict)
    operations: int = 0
    refused: dict[str, int] = field(default_factory=dict)
    lost: int = 0
    leaked: int = 0
    broken: int = 0
    hung: int = 0
    longest_stall_s: float = 0.0
    stalls: dict[str, float] = field(default_factory=dict)


class Storm(deaths.Storm):
    """Starts the workers, kills them, and checks what they leave."""

    def __init__(self, directory: str, seed: int, most: int = MOST, clients: int = CLIENTS[0]) -> None:
        self.directory, self.name = Path(directory), f"{Path(directory).name}-pool"
        self.random, self.seed = random.Random(seed), seed
        self.report = Report()
        self.stopped: list[tuple[float, int]] = []  # when to continue them, and which
        with open(self.directory / "table.db", "wb") as file:
            for n in range(FILE_PAGES):
                page = np.empty(PAGE, np.uint8)
                stamp(page, n, 0)
                file.write(page)
        for which in range(3):
            (self.directory / f"side{which}.db").write_bytes((self.directory / "table.db").read_bytes()[: 8 * PAGE])
        self.ledger = Ledger(self.directory / "ledger")
        self.most, self.clients = most, clients
        self.create()
        ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER: orphans become ours
        self.group = 0
        self.killed: set[int] = set()  # in this stretch
        self.operations = 0  # of all workers, when it struck last

    def create(self) -> None:
        bp.Pool.create(
            self.name,
            LEAST * PAGE,
            max_capacity=self.most * PAGE,
            page_size=PAGE,
            extent_size=4 * PAGE,
            max_clients=self.clients,
        ).close()

    def change(self) -> None:
        """Replaces the pool by one with another number of client slots. The table's file remains."""
        with bp.Pool.attach(self.name) as pool:
            with suppress(bp.errors.SpaceNotFound):  # the last look may have taken it out
                pool.space("table").remove()
            pool.unlink()
        self.clients = CLIENTS[self.report.pauses // PAUSES % len(CLIENTS)]
        self.create()

    # ---- weather

    def pids(self) -> list[int]:
        return [pid for pid in self.ledger.pids.tolist() if alive(pid)]

    def start(self) -> None:
        for row in range(WORKERS):
            if any(alive(int(self.ledger.pids[r])) for r in (row, row + HALF)):
                continue
            self.seed += 1
            args = (str(self.directory), self.name, row, self.seed)
            if self.random.random() < SPAWNED:
                command = [sys.executable, __file__, "--worker", *map(str, args)]
                pid = os.posix_spawn(sys.executable, command, os.environ, setpgroup=self.group)
            else:
                pid = os.fork()
                if pid == 0:
                    os.setpgid(0, self.group)
                    guarded(self.directory, work, *args)
            with suppress(PermissionError, ProcessLookupError):
                os.setpgid(pid, self.group)
            self.ledger.pids[row] = pid
            self.ledger.since[row] = self.ledger.since[row + HALF] = 0
            self.report.started += 1

    def send(self, pid: int, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.kill(pid, number)
            self.report.signals[number.name] = self.report.signals.get(number.name, 0) + 1
            if number != signal.SIGSTOP:
                self.killed.add(pid)

    def strikes_due(self) -> int:
        """One, and one more for every hundred operations of the workers since the last: on a busy machine this process comes late."""
        done, before = int(self.ledger.ops.sum()), self.operations
        self.operations = done
        return 1 + min((done - before) // 100, 5)

    def go_on(self) -> None:
        """Continues the processes that have been stopped for long enough."""
        now = time.monotonic()
        for at, pid in [entry for entry in self.stopped if entry[0] < now]:
            self.stopped.remove((at, pid))
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
            self.ledger.head[STOPPED] -= 1

    def strike(self) -> None:
        self.go_on()
        now, pids = time.monotonic(), self.pids()
        if not pids:
            return
        dice = self.random.random()
        if dice < 0.08:
            self.stutter(self.random.choice(pids))
        elif self.clients > CROWD and dice < 0.09:
            self.crowd()
        elif dice < 0.16 and not self.stopped:
            self.ledger.head[STOPS] += 1
            self.ledger.head[STOPPED] += 1
            victim = self.random.choice(pids)
            self.send(victim, signal.SIGSTOP)
            self.stopped.append((now + self.random.random() * 0.15, victim))
        elif dice < 0.3:
            self.send(self.random.choice(pids), signal.SIGTERM)
        else:
            for pid in self.random.sample(pids, min(len(pids), self.random.choice([1, 1, 1, 2, 3, 6]))):
                self.send(pid, signal.SIGKILL)

    def stutter(self, pid: int) -> None:
        """Stops a process again and again for 0.1 to 2 ms, so that it stops between two steps of a pin, for example."""
        for _ in range(12):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
                self.report.stutters += 1
            time.sleep(self.random.uniform(0.0001, 0.002))
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
            time.sleep(self.random.uniform(0.0001, 0.002))

    def crowd(self) -> None:
        """Hundreds of clients at once. A process that has a page pinned forks them, and they are killed together."""
        leader = os.fork()
        if leader == 0:
            os.setpgid(0, self.group)
            signal.signal(signal.SIGCHLD, signal.SIG_IGN)
            guarded(self.directory, lead_a_crowd, str(self.directory), self.name)
        began = time.monotonic()
        while not os.waitpid(leader, os.WNOHANG)[0]:
            if self.hangs(leader, time.monotonic() - began):
                self.find("hung", f"the leader of a crowd does not end, {state_of(leader)}")
                os.kill(leader, signal.SIGUSR1)
                time.sleep(0.2)
                os.kill(leader, signal.SIGKILL)
            self.go_on()  # a process that is stopped with a lock stops the crowd, too
            self.look_at_workers()
            time.sleep(0.01)
        self.report.crowds += 1

    def bury(self) -> bool:
        """Reaps the children that have ended. Returns False when no child is left."""
        return deaths.bury(partial(self.find, "broken"), 9, 143, -signal.SIGTERM)

    def look_at_workers(self) -> None:
        self.look_for_hangs(self.ledger.pids.tolist(), self.ledger.since.tolist())

    def describe(self, pid: int) -> str:
        """The facts that may explain a hang: the lock words, and the clients."""
        with Observer(self.name) as pool, open(f"/dev/shm/{self.name}", "rb") as file:
            words = {}
            for lock in ("memory", "directory", "growth", "advice"):
                file.seek(fields()[f"Header.{lock}.word"][0])
                words[lock] = hex(int.from_bytes(file.read(4), "little"))
            clients = [(c.client, c.pid, "alive" if c.alive else "dead", alive(c.pid)) for c in pool.clients()]
            spaces = [(r["name"], r["flusher"]) for r in pool.seg.spaces()]
            return (
                f"{state_of(pid)}, locks {words}, clients {clients}, spaces {spaces}, {pool.frames()['state'].tolist()}"
            )

    def blow(self, seconds: float) -> None:
        """Lets the workers run, and kills some at random. At the end no worker lives."""
        self.group = os.fork()  # a process that only gives its number to the group
        if self.group == 0:
            os.setpgid(0, 0)
            signal.pause()
            os._exit(0)
        with suppress(PermissionError):
            os.setpgid(self.group, self.group)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.start()
            time.sleep(self.random.random() * 0.06)
            self.bury()
            for _ in range(self.strikes_due()):
                self.strike()
            self.look_at_workers()
        for _, pid in self.stopped:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        self.stopped.clear()
        self.ledger.head[STOPPED] = 0
        if self.random.random() < 0.4:  # they are asked
            self.ledger.head[STOP] = 1
            asked = time.monotonic()
            while any(not self.hangs(pid, time.monotonic() - asked) for pid in self.pids()):
                time.sleep(0.005)
                self.bury()
            for pid in self.pids():
                what = f"pid {pid} does not end when asked, {state_of(pid)}; its stack is in stacks"
                self.find("hung", f"{what}; {self.describe(pid)}")
                os.kill(pid, signal.SIGUSR1)
                time.sleep(0.2)
        self.report.kills += len(self.killed.union(self.pids()))
        self.killed.clear()
        while self.bury():
            with suppress(ProcessLookupError):
                os.killpg(self.group, signal.SIGKILL)
            time.sleep(0.001)
        self.ledger.head[STOP] = 0
        self.ledger.pids[:] = 0

    # ---- calm

    def audit(self) -> None:
        """Runs while no worker lives: the pool must have exactly the pages that were published."""
        self.report.pauses += 1
        with bp.Pool.attach(self.name) as pool:
            table = pool.open_file(self.directory / "table.db", "r+", name="table", max_pages=MOST_PAGES)
            pool.reap()
            for record in pool.client.seg.spaces():
                if record["name"].startswith("client-"):
                    self.find("leaked", f"scratch space {record['name']} of a client that is gone")
                if record["name"] == "pool-pair":
                    self.look_at_pair(pool.space("pool-pair"))
                if record["name"].startswith("pool-"):  # these are to stay
                    pool.space(record["name"]).remove(discard=True)
            self.look_for_leaks(pool)
            oldest = self.ledger.floor.max(axis=0)
            for n in range(len(table)):
                try:
                    version = look(table[n], n)
                    if not oldest[n] <= version <= self.ledger.intended[n]:
                        raise Lost(f"page {n} has version {version}, not {oldest[n]} to {self.ledger.intended[n]}")
                    self.report.verified += 1
                except Lost as error:
                    self.find("lost", str(error))
            if np.any(oldest[len(table) :]):
                self.find(
                    "lost", f"appended pages: there are {len(table)}, and {np.flatnonzero(oldest).max()} was published"
                )
            if self.random.random() < 0.3 or len(table) > MOST_PAGES - 100:
                self.look_at_the_file(table, oldest)
            pool.resize(self.random.randrange(LEAST, MOST + 1) * PAGE)
            self.look_for_leaks(pool)

    def look_at_pair(self, pair: Any) -> None:
        """Runs while no worker lives: two pages that are always published as one must have the same version."""
        one, other = (pair[n].view(np.uint64)[0] for n in (0, 1))
        if one != other:
            self.find("lost", f"of two pages that were published as one, one has {one} and the other {other}")

    def look_for_leaks(self, pool: bp.Pool) -> None:
        stats, frames, clients = pool.stats(), pool.frames(), pool.clients()
        wrong = pool.check()
        wrong += [f"client {c}" for c in clients if c.pid != os.getpid()]
        wrong += [f"{n} frames {state}" for state in ("busy", "retired") if (n := getattr(stats.frames, state))]
        wrong += [f"{int(frames[f].sum())} frames have a {f}" for f in ("pins", "writer", "flusher") if frames[f].any()]
        if stats.kernel_bytes != stats.metadata_bytes + stats.resident_bytes:
            wrong.append(
                f"the kernel counts {stats.kernel_bytes}, the pool {stats.metadata_bytes + stats.resident_bytes}"
            )
        wrong += [f"space {s.name}" for s in stats.spaces if s.name not in ("table", "derived")]
        for what in wrong:
            self.find("leaked", what)

    def look_for_errors(self) -> None:
        for kind, file in (("lost", "wrong"), ("broken", "broken")):
            path = self.directory / file
            if path.exists():
                self.find(kind, path.read_text())
                path.unlink()

    def look_at_the_file(self, table: bp.Space, oldest: Any) -> None:
        """Removes the table from the pool: its file must have all pages. The appended pages are cut off."""
        table.remove()
        data = np.fromfile(self.directory / "table.db", np.uint8).reshape(-1, PAGE)
        for n, page in enumerate(data):
            version = look(page, n)
            if not oldest[n] <= version <= self.ledger.intended[n]:
                self.find("lost", f"page {n} of the file has version {version}, not {oldest[n]}")
        os.truncate(self.directory / "table.db", FILE_PAGES * PAGE)
        self.ledger.floor[:, FILE_PAGES:] = 0
        self.ledger.intended[FILE_PAGES:] = 0

    def run(self, seconds: float, kills: int) -> Report:
        report = self.report
        try:
            while report.clean and (time.monotonic() < report.began + seconds or report.kills < kills):
                self.blow(self.random.uniform(1, 4))
                self.audit()
                self.look_for_errors()
                slots = f"{self.clients} slots"
                report.pools[slots] = report.pools.get(slots, 0) + 1
                if report.clean and report.pauses % PAUSES == 0:
                    self.change()
        finally:
            with suppress(ProcessLookupError):
                if self.group:
                    os.killpg(self.group, signal.SIGKILL)
            if report.clean:
                os.unlink(f"/dev/shm/{self.name}")
        report.operations = int(self.ledger.ops.sum())
        refused = self.ledger.refused.sum(axis=0).tolist()
        report.refused = {kind.__name__: n for kind, n in zip(LEGAL, refused, strict=True)}
        report.verified += int(self.ledger.verified.sum())
        stalls = self.ledger.longest.max(axis=0).tolist()
        report.stalls = dict(sorted(zip(OPS, stalls, strict=True), key=lambda item: -item[1]))
        report.longest_stall_s = max(
            s for op, s in report.stalls.items() if op != "hung"
        )  # this operation hangs on purpose
        return report


def state_of(pid: int) -> str:
    """The kernel's facts about the threads of a process: the state of each, what it waits for, and its processor time."""
    found = []
    with suppress(OSError):
        for thread in sorted(Path(f"/proc/{pid}/task").iterdir()):
            fields = (thread / "stat").read_text().rpartition(")")[2].split()
            waits = (thread / "wchan").read_text(), (thread / "syscall").read_text().split()[:2]
            found.append(f"{fields[0]} {waits[0]} {' '.join(waits[1])} {(int(fields[11]) + int(fields[12])) / 100} s")
    return f"threads {found}, load {os.getloadavg()[0]:.0f}"


def lead_a_crowd(directory: str, name: str) -> None:
    """Forks many clients; each checks a page that it inherited, and another one. Kills most of them."""
    path = Path(directory) / "table.db"
    pool = bp.Pool.attach(name)
    table = pool.open_file(path, "r", name="table")
    page, members = table[1], []
    version = look(page, 1)
    for n in range(CROWD):
        pid = os.fork()
        if pid == 0:
            guarded(Path(directory), one_of_a_crowd, table, page, version, n % FILE_PAGES)
        members.append(pid)
    look(table[0], 0)
    for pid in members[: CROWD * 2 // 3]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    os._exit(0)


def one_of_a_crowd(table: bp.Space, page: Any, version: int, page_no: int) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with suppress(*LEGAL):
        look(table[page_no], page_no)
    time.sleep(0.3)
    if look(page, 1) != version:
        raise Lost("page 1 changed under a view that a child inherited")


def storm(seconds: float = 0, kills: int = 0, seed: int = 1) -> Report:
    """Runs a storm; keeps its pool and its directory, outside of /dev/shm, if something was wrong."""
    directory = tempfile.mkdtemp(prefix="storm-", dir="/dev/shm")  # fsync takes no time there
    storm = Storm(directory, seed)
    report = storm.run(seconds, kills)
    if report.clean:
        shutil.rmtree(directory)
    else:
        report.findings.append(f"the pool and its files are in {deaths.keep_evidence(directory, storm.name)}")
    return report


def main() -> None:
    parser = deaths.arguments(__doc__)
    parser.add_argument("--seconds", type=float, default=0)
    parser.add_argument("--worker", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        directory, name, row, seed = args.worker
        guarded(Path(directory), work, directory, name, int(row), int(seed))
    storm(args.seconds, args.kills, args.seed).tell()


if __name__ == "__main__":
    main()
