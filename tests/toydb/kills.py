"""Kills the processes of a bank (bank.py), at named points, at random, and all at once, and checks what is left.

    python -m tests.toydb.kills --points            a death at each point, of the engine as it is
    python -m tests.toydb.kills --kills 2000        that many deaths at random moments

Prints a report as JSON; ends with 1 if anything was lost, or hung.
"""

import contextlib
import faulthandler
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
    sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.support import deaths
from tests.toydb import bank
from toydb import points
from toydb.log import SEGMENT_BYTES, Log

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "examples" / "toydb").glob("*.py"))
POINTS = sorted({p for source in SOURCES for p in re.findall(r'\bpoint\("([^"]+)"\)', source.read_text())})
HANGS_S = 60.0
SYNC_S = 0.001  # what a sync takes at least: the arena is in memory, and processes are to die in it too
ROUNDS_PER_BANK = 12


@dataclass
class Report(deaths.Report):
    at_points: dict[str, int] = field(default_factory=dict)
    at_random: int = 0
    pools_lost: int = 0
    power_failures: int = 0
    log_bytes_cut: int = 0
    pages_torn: int = 0
    commits: int = 0


class Arena:
    """One bank, its pool, and the processes at work in it."""

    def __init__(self, report: Report, seed: int) -> None:
        self.report = report
        self.rng = random.Random(seed)
        self.directory = Path(tempfile.mkdtemp(prefix="bptest-toydb-", dir="/dev/shm"))
        self.pool_name = f"bptest-kills-{os.getpid()}"
        self.segment = Path("/dev/shm") / self.pool_name
        self.living: dict[int, str] = {}
        self.workers = 0
        self.noted = 0

    def close(self) -> None:
        self.kill_all()
        shutil.rmtree(self.directory)
        self.segment.unlink(missing_ok=True)
        self.report.commits += self.noted

    # ---- processes -----------------------------------------------------------------

    def start(self, what: Callable[[], None], point: str = "", count: int = 1) -> int:
        """Runs a function in a process of its own, which dies at that point."""
        pid = os.fork()
        if pid:
            self.living[pid] = point
            return pid
        status = 1
        try:
            log = os.open(self.directory / "stderr", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
            os.dup2(log, 2)
            faulthandler.register(signal.SIGUSR1)
            note_syncs(self.directory / "synced")
            points.arm(point, count)
            what()
            status = 0
        except BaseException:  # noqa: BLE001  the parent reads it in the file
            with open(self.directory / "failures", "a") as failures:
                failures.write(traceback.format_exc() + "\n")
        finally:
            os._exit(status)

    def work(self, n: int, point: str = "", count: int = 1) -> int:
        self.workers += 1
        worker = self.workers
        return self.start(lambda: bank.work(self.directory, self.pool_name, worker, n), point, count)

    def wait(self, pid: int, timeout: float = HANGS_S) -> int:
        """How a process ended: its exit code, or minus the signal."""
        end = time.monotonic() + timeout
        while True:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                break
            if time.monotonic() > end:
                os.kill(pid, signal.SIGUSR1)
                time.sleep(0.5)
                stacks = (self.directory / "stderr").read_text()[-3000:]
                self.report.findings.append(f"process {pid} ({self.living[pid]!r}) hangs:\n{stacks}")
                os.kill(pid, signal.SIGKILL)
                _, status = os.waitpid(pid, 0)
                break
            time.sleep(0.001)
        point, code = self.living.pop(pid), os.waitstatus_to_exitcode(status)
        if code == -signal.SIGKILL:
            self.report.kills += 1
            if point:
                self.report.at_points[point] = self.report.at_points.get(point, 0) + 1
            else:
                self.report.at_random += 1
        elif code:
            self._tell(f"a process ended with {code}")
        return code

    def _tell(self, what: str) -> None:
        failures = self.directory / "failures"
        text = failures.read_text() if failures.exists() else ""
        failures.unlink(missing_ok=True)
        self.report.findings.append(f"{what}\n{text}")

    def kill(self, pid: int) -> None:
        os.kill(pid, signal.SIGKILL)
        self.wait(pid)

    def kill_all(self) -> None:
        for pid in list(self.living):
            os.kill(pid, signal.SIGKILL)
        for pid in list(self.living):
            self.wait(pid)

    # ---- worse ------------------------------------------------------------------------

    def lose_pool(self) -> None:
        """All processes die, and the pool with them; the files are as they were left."""
        self.kill_all()
        self.report.pools_lost += 1
        self.segment.unlink(missing_ok=True)

    def lose_power(self) -> None:
        """The same, and what was not synced is lost in part: the log's tail, and any page that the log has."""
        self.kill_all()
        self.report.power_failures += 1
        log = Log(f"{os.path.realpath(self.directory / 'bank.db')}-log.")
        segments = log.segments()
        synced = self._synced()
        for segment in segments:
            self._spoil_tail(log, segment, segment + synced[os.stat(log.path(segment)).st_ino] - SEGMENT_BYTES)
        data = self.directory / "bank.db"
        if segments and data.exists():
            images = log.redo()[2]
            with open(data, "r+b") as file:
                pages = data.stat().st_size // bank.PAGE_SIZE
                for page_no in self.rng.sample(sorted(images), min(len(images), 5)):
                    if page_no < pages:
                        file.seek(page_no * bank.PAGE_SIZE + self.rng.randrange(0, bank.PAGE_SIZE, 512))
                        file.write(self.rng.randbytes(512))
                        self.report.pages_torn += 1
        log.close()
        self.segment.unlink(missing_ok=True)

    def _synced(self) -> Counter[int]:
        """Of each file, by inode, the size up to which it was synced."""
        sizes: Counter[int] = Counter()
        for line in (self.directory / "synced").read_text().splitlines():
            inode, size = map(int, line.split())
            sizes[inode] = max(sizes[inode], size)
        return sizes

    def _spoil_tail(self, log: Log, segment: int, durable: int) -> None:
        """Cuts a segment somewhere behind what is durable of it, or puts nonsense there."""
        end = log.end(segment)
        if end <= durable:
            return
        keep = self.rng.randrange(durable, end + 1)
        if self.rng.random() < 0.5:
            log.truncate(segment, keep)
            self.report.log_bytes_cut += end - keep
        elif keep < end:
            at = keep - segment + SEGMENT_BYTES
            with open(log.path(segment), "r+b") as file:
                file.seek(at)
                file.write(self.rng.randbytes(min(64, end - keep)))
            self.report.log_bytes_cut += end - keep

    # ---- looking -----------------------------------------------------------------------

    def verify(self, what: str) -> None:
        """Opens the bank in another process, and checks everything."""
        result = self.directory / "result"
        result.unlink(missing_ok=True)
        pid = self.start(lambda: self._verify(result))
        self.living[pid] = f"verify after {what}"
        if self.wait(pid) == 0:
            self.noted = int(result.read_text())
            self.report.verified += 1
        else:
            self.report.findings.append(f"(the above: after {what})")

    def _verify(self, result: Path) -> None:
        result.write_text(str(bank.verify(self.directory, self.pool_name)))


def note_syncs(path: Path) -> None:
    """Every sync that this process makes is noted, with what it covers: more than that, a power failure may take."""
    notes = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)

    def noting(sync: Callable[[int], None]) -> Callable[[int], None]:
        def noted(fd: int) -> None:
            about = os.fstat(fd)
            time.sleep(SYNC_S)
            sync(fd)
            os.write(notes, b"%d %d\n" % (about.st_ino, about.st_size))

        return noted

    os.fsync, os.fdatasync = noting(os.fsync), noting(os.fdatasync)


def prepare(arena: Arena, point: str) -> None:
    """Brings the bank into a state in which a process comes to that point."""
    if point.startswith("make."):
        arena.lose_pool()
        for path in arena.directory.iterdir():
            path.unlink()
        return
    if point.startswith(("recover.", "open.unlinked")):
        arena.wait(
            arena.work(400, "sync.durable")
        )  # a commit that no checkpoint follows: there is something to recover
        arena.lose_pool()
    if point == "open.unlinked":  # a pool that is there, and of no use: its recovery was not completed
        arena.wait(arena.work(3, "recover.pool"))
    if point.startswith("settle."):
        before = {
            "settle.found": "commit.appended",
            "settle.cut": "commit.appending",
            "settle.rotating": "rotate.created",
        }
        arena.wait(arena.work(400, before[point]))


def die_at(arena: Arena, point: str, count: int) -> None:
    """One process dies at a point; others continue, or are started later."""
    prepare(arena, point)
    alone = point.startswith(("make.", "recover.", "open.unlinked", "settle."))
    others = [] if alone else [arena.work(12)]
    code = arena.wait(arena.work(400, point, count))
    if code != -signal.SIGKILL:
        arena.report.findings.append(f"nobody died at {point}: exit code {code}")
    others.append(arena.work(6))
    fate = arena.rng.random()
    if fate < 0.25:
        arena.lose_power()
    elif fate < 0.4:
        arena.lose_pool()
    for pid in others:
        if pid in arena.living:
            arena.wait(pid)
    arena.verify(f"{point}:{count}")


@contextlib.contextmanager
def ending(arena: Arena) -> Iterator[None]:
    """Removes everything that the arena has made."""
    try:
        yield
    except BaseException:
        arena.close()
        raise


def kill_at_points(report: Report, counts: tuple[int, ...], seed: int = 1) -> None:
    arena = Arena(report, seed)
    rounds = [(point, count) for count in counts for point in POINTS]
    for i, (point, count) in enumerate(rounds):
        if i % ROUNDS_PER_BANK == ROUNDS_PER_BANK - 1:
            arena.close()
            arena = Arena(report, seed + i)
            arena.wait(arena.work(10))
        once = point.startswith(("open.", "make.", "settle.", "recover."))  # a process passes it only once
        with ending(arena):
            die_at(arena, point, 1 if once else count)
    arena.close()


def kill_at_random(report: Report, kills: int, seed: int = 1) -> None:
    arena, rng, rounds = Arena(report, seed), random.Random(seed), 0
    last = report.kills + kills
    while report.kills < last:
        rounds += 1
        with ending(arena):
            kill_some(arena, rng, f"round {rounds} of seed {seed}")
        if rounds % 4 == 0:
            arena.close()
            arena = Arena(report, seed + rounds)
    arena.close()


def kill_some(arena: Arena, rng: random.Random, what: str) -> None:
    """One round: some are killed at random moments, and at last all."""
    running = [arena.work(1_000_000, rng.choice(["", "", *POINTS]), rng.randrange(1, 20)) for _ in range(3)]
    for _ in range(rng.randrange(4, 12)):
        time.sleep(rng.uniform(0.001, 0.06))
        victim = rng.choice(running)
        running.remove(victim)
        arena.kill(victim)
        running.append(arena.work(1_000_000))
    end = rng.random()
    if end < 0.3:
        arena.lose_power()
    elif end < 0.5:
        arena.lose_pool()
    else:
        arena.kill_all()
    arena.verify(what)


def main() -> None:
    parser = deaths.arguments(__doc__)
    parser.add_argument("--points", action="store_true", help="a death at each named point")
    parser.add_argument("--counts", type=int, nargs="*", default=[1, 3], help="at the how-manieth time")
    parser.add_argument("--only", help="one point")
    args = parser.parse_args()
    report = Report()
    if args.only:
        POINTS[:] = [args.only]
    if args.points:
        kill_at_points(report, tuple(args.counts), args.seed)
    if args.kills:
        kill_at_random(report, args.kills, args.seed)
    report.tell()


if __name__ == "__main__":
    main()
