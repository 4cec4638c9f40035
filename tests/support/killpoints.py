"""Deaths at the named points of the core: the program behind test_killpoints.py.

Runs with a copy of bufferpool in which BP_POINT kills (tests/native/faults.h).
Reads lines "point count"; for each, a victim works beside two others until it
dies at that point; then the others continue, and then nothing may be lost or left.
Answers each line with one of JSON.
"""

import json
import os
import shutil
import signal
import sys
import tempfile
import time
from contextlib import suppress
from typing import Any

import bufferpool as bp
from tests.support.client_numbers import take_what_is_free_below
from tests.support.deaths import alive, exit_code, guarded
from tests.support.storm import Storm
from tests.support.storm_worker import (
    DERIVED_PAGES,
    HALF,
    LEGAL,
    MOST,
    PAGE,
    PAUSE,
    STOP,
    Worker,
    make_derived,
    stamp,
    work,
)

OTHERS = (1, 2)  # the rows of the processes in the ledger
GROWN = 1000  # frames
BANKS = 5  # of client slots
REACH_S, GO_ON_S = 120.0, 60.0  # more than a loaded machine needs
MIX = (
    "read", "write", "orphan", "append", "failing_load", "grow", "scan", "own_scratch", "read_many", "flush", "shrink", "derived",
    "trim", "pool_scratch", "shared", "write", "again", "fork", "resize", "hold", "idle", "reap", "as_one", "lengthen",
    "beyond",
)  # fmt: skip


class Victim(Worker):
    """Performs all operations in turn, so that it soon passes every point."""

    grown = touched = banks = 0
    alone = False  # the pool is grown, and gets slots, while the others pause

    def run(self) -> None:
        end = time.monotonic() + REACH_S
        while time.monotonic() < end:
            for name in MIX:
                with suppress(*LEGAL):
                    for _ in range(8 if name in ("read", "write") else 1):
                        getattr(self, name)()

    def orphan(self) -> None:
        """A child dies with pins, spare frames and a scratch space, and we reap it."""
        pid = os.fork()
        if pid == 0:
            os.environ.pop("BUFFERPOOL_KILL")
            guarded(self.directory, self.leave_all)
        with suppress(ChildProcessError):
            os.waitpid(pid, 0)
        self.pool.reap()

    def leave_all(self) -> None:
        with suppress(*LEGAL):
            self.pool.resize(MOST * PAGE)
            space = self.pool.open_scratch(f"client-{os.getpid()}", 4, lifetime="process")
            for n in range(4):
                with space.write(n) as page:
                    stamp(page, n, 1)
            for _ in range(4):
                self.hold()
                self.write()
        os._exit(0)

    def failing_load(self) -> None:
        def fails(page_no: int, out: Any) -> None:
            raise OSError("as it should")

        space = self.pool.open_derived(f"pool-fails-{os.getpid()}", 4, fails, limit=8 * PAGE)
        with suppress(bp.errors.LoaderFailed):
            space[1]
        space.remove(discard=True)
        self.touched += 1
        wide = self.pool.open_scratch(f"pool-wide-{os.getpid()}", 1 << 20)  # each time an entry that had no memory yet
        _ = wide[(self.touched * ((1 << 18) + (1 << 13))) % (1 << 20)]  # in a block of entries that no other space has
        del _
        wide.remove(discard=True)
        name = "n" * 2000  # too long for the place that each space has
        for space in [self.pool.open_scratch(f"pool-{name}-{i}-{os.getpid()}", 1) for i in range(3)]:
            space.remove(discard=True)

    def grow(self) -> None:
        """More frames than have ever been used, so that the metadata grows."""
        if self.grown > 2:
            return
        self.grown += 1
        if self.alone:  # a client that needs a frame grows the pool; without a pause the others would do so before us
            self.let_others_pause()
        self.pool.resize((GROWN + 64 * self.grown) * PAGE)  # more than the capacity at creation
        space = self.pool.open_derived(f"pool-grown-{os.getpid()}", GROWN, make_derived)
        for n in range(GROWN):
            space.prefetch([n])
        space.remove(discard=True)
        self.ledger.head[PAUSE] = 0

    def beyond(self) -> None:
        """One more client, where all slots that have memory are taken."""
        if self.alone and not self.banks:
            self.let_others_pause()
        with open(self.pool.path, "r+b") as file:
            while self.banks + 1 < BANKS:
                self.banks += 1
                take_what_is_free_below(file.fileno(), self.banks * bp._core.CLIENT_BANK + 1)
                bp.Pool.attach(self.name).close()
        self.ledger.head[PAUSE] = 0

    def let_others_pause(self) -> None:
        self.ledger.head[PAUSE] = 1
        end = time.monotonic() + REACH_S
        rows = [row for row in range(1, len(self.ledger.pids)) if row != HALF]
        while any(alive(int(self.ledger.pids[row])) and not self.ledger.paused[row] for row in rows):
            if time.monotonic() > end:
                raise TimeoutError("the others do not pause")
            time.sleep(0.001)

    def shrink(self) -> None:
        """Holes in many extents: their pages must be moved."""
        self.held.clear()
        self.pool.resize(MOST * PAGE)
        for n in range(DERIVED_PAGES):
            self.made[n]
        self.flush()
        for n in range(0, DERIVED_PAGES, 2):
            self.made.drop(n, 1)
        self.pool.trim(40 * PAGE)


def victim(directory: str, name: str, point: str, count: int) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    os.environ["BUFFERPOOL_KILLED"] = f"{directory}/killed"
    os.environ["BUFFERPOOL_KILL"] = f"{point}:{count}"
    made = Victim(directory, name, 0, count)
    made.alone = point.startswith("grow.") or point == "attach.slots"
    made.run()


def start(storm: Storm, function: Any, *args: Any) -> int:
    pid = os.fork()
    if pid == 0:
        os.setpgid(0, 0)
        guarded(storm.directory, function, str(storm.directory), storm.name, *args)
    return pid


def go_on(storm: Storm, others: dict[int, int]) -> float:
    """Waits until each of the others has done more; returns how long that took."""
    ops, begin = storm.ledger.ops, time.monotonic()
    least = {row: int(ops[row]) + 20 for row in others}
    while any(ops[row] < least[row] for row in others):
        if time.monotonic() > begin + GO_ON_S:
            storm.find("hung", "the others do not go on")
            for pid in others.values():
                os.kill(pid, signal.SIGUSR1)
            time.sleep(0.2)
            storm.find("hung", (storm.directory / "stacks").read_text())
            break
        time.sleep(0.002)
    return time.monotonic() - begin


def kill_at(point: str, count: int) -> dict[str, Any]:
    directory = tempfile.mkdtemp(prefix="storm-", dir="/dev/shm")
    storm = Storm(directory, count, GROWN, BANKS * bp._core.CLIENT_BANK)
    others = {row: start(storm, work, row, 100 * count + row) for row in OTHERS}
    dying = start(storm, victim, point, count)
    code = exit_code(dying, REACH_S + 10)
    storm.ledger.head[PAUSE] = 0
    killed = storm.directory / "killed"
    reached = killed.read_text() if killed.exists() else ""
    stall = go_on(storm, others)
    storm.ledger.head[STOP] = 1
    codes = [exit_code(pid, GO_ON_S) for pid in others.values()]
    for pid in (dying, *others.values()):  # what they have forked
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
    while storm.bury():
        time.sleep(0.001)
    storm.audit()
    storm.look_for_errors()
    if not os.environ.get("KEEP") or storm.report.clean:
        os.unlink(f"/dev/shm/{storm.name}")
    longest = float(storm.ledger.longest.max())
    answer = {
        "point": point, "reached": reached, "code": code, "others": codes, "stall": max(stall, longest),
        "verified": storm.report.verified, "findings": storm.report.findings,
    }  # fmt: skip
    shutil.rmtree(directory)
    return answer


def main() -> None:
    for line in sys.stdin:
        point, count = line.split()
        print(json.dumps(kill_at(point, int(count))), flush=True)


if __name__ == "__main__":
    main()
