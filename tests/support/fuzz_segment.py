"""Damages live segments and uses them: nothing may crash, hang, or leave the segment.

    python tests/support/fuzz_segment.py --seed 1 --mutations 100000 [--processes 2] [--sanitize address,undefined]

Every round takes a fresh copy of one segment (a file space, a scratch space, a
derived space, dirty, dropped and superseded pages, and a client that died in a
write block). Then, step by step, it changes a few words of it through a mapping
of its own and runs an operation or two, each of which must end, within seconds,
in a result or a typed error. After most steps the words that no process has changed
meanwhile are put back, so that every damage meets a segment that otherwise works; the
damage of the other steps is left in place. A mutation counts if it changed a byte and an
operation came after it. The rounds run in a child process, so that a crash is
seen as its end; the round's number is the seed, so that a finding can be run again:

    python tests/support/fuzz_segment.py --seed N --rounds 1
"""

import argparse
import faulthandler
import json
import mmap
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

if __name__ == "__main__":
    sys.path.append(str(Path(__file__).parents[2]))

import bufferpool as bp
from bufferpool.spaces import directory
from bufferpool.upkeep import memory
from tests.support import native_build
from tests.support.fuzz_damage import HEADER_KEPT, Mutator
from tests.support.fuzz_use import TYPED, Hang, Template, operations

HANG_S, STUCK_S = 3.0, 12.0  # an operation that a signal ends; one that no signal ends
STEPS, MOST = 40, 3  # of a round; words damaged in a step
STAYS = 0.1  # of the damages


@dataclass
class Finding:
    """One event that must not happen."""

    seed: int
    op: str
    how: str  # "signal 11", "hang", "stuck" (not even a signal ends it), "untyped", "outside"
    detail: str
    did: str

    def __str__(self) -> str:
        return f"seed {self.seed}: {self.how} in {self.op}, after {self.did} {self.detail}"


@dataclass
class Fuzzed:
    """The work of a run, and its findings."""

    rounds: int = 0
    mutations: int = 0
    operations: int = 0
    found: list[Finding] = field(default_factory=list)


# ---- rounds ---------------------------------------------------------------------------


class Rounds:
    """Runs in the child process: announces every operation, reports every finding."""

    def __init__(self, template: Template, say: Callable[[dict[str, Any]], None], note: int) -> None:
        self.template, self.say, self.note = template, say, note
        self.kept: list[Any] = []  # what cannot be closed
        self.seed, self.label, self.mutations, self.fresh, self.operations = 0, "", 0, 0, 0

    def announce(self, op: str) -> None:
        note = json.dumps([self.seed, op, self.mutations, self.operations, self.label])
        os.pwrite(self.note, note.ljust(1000).encode()[:1000], 0)

    def run(self, op: str, do: Callable[[], Any]) -> bool:
        """False after a hang: the segment is of no further use."""
        self.mutations, self.fresh = self.mutations + self.fresh, 0
        self.operations += 1
        self.announce(op)
        began = time.monotonic()
        signal.setitimer(signal.ITIMER_REAL, HANG_S)
        how = detail = ""
        try:
            do()
        except Hang:
            how = "hang"
        except TYPED:
            pass
        except Exception as error:  # noqa: BLE001  a finding
            how, detail = "untyped", repr(error)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        if not how and time.monotonic() - began > HANG_S:
            how = "hang"
        if how:
            self.say({"seed": self.seed, "op": op, "how": how, "detail": detail, "did": self.label})
        return how != "hang"

    def round(self, seed: int) -> None:
        self.seed, self.label, self.fresh = seed, "", 0
        template, name = self.template, f"r{seed}"
        template.restore_file()
        fd = template.copy(name)
        spaces: dict[str, Any] = {}
        pools: list[bp.Pool] = []
        try:
            with mmap.mmap(fd, template.size) as shm:
                self.steps(random.Random(seed), shm, name, spaces, pools)
                kept = shm[:HEADER_KEPT] == template.runs[0][1][:HEADER_KEPT]
            about = os.fstat(fd)
            if not kept or about.st_size != template.size or about.st_blocks * 512 > template.size:
                what = "the header or the size changed"
                self.say({"seed": seed, "op": "end", "how": "outside", "detail": what, "did": self.label})
        finally:
            os.close(fd)
            (template.place / name).unlink(missing_ok=True)

    def steps(
        self, rng: random.Random, shm: mmap.mmap, name: str, spaces: dict[str, Any], pools: list[bp.Pool]
    ) -> None:
        early = rng.random() < 0.3
        mutator = Mutator(shm, rng, early)

        def damage() -> None:
            changed = sum(mutator.mutate() for _ in range(rng.randint(1, MOST)))
            self.fresh += changed
            self.label = "; ".join(mutator.done[-6:])

        if early:
            damage()
        ok = self.run("attach", lambda: pools.append(bp.Pool.attach(name, directory=self.template.place)))
        if not pools or not ok:
            return
        pool = pools[0]
        ops = operations(pool, self.template.place, self.template.file, rng, spaces)
        for op, do in [] if early else rng.sample(ops, 4):
            ok = ok and self.run(op, do)

        def damage_in_write() -> None:
            with spaces["scratch"].write(rng.randrange(4), timeout=0.1):
                damage()

        mutator.saved.clear()  # that damage is left in place
        for _ in range(STEPS):
            if rng.random() < 0.05 and "scratch" in spaces:
                ok = ok and self.run("damage in a write block", damage_in_write)
                mutator.saved.clear()  # they name a living writer
            else:
                damage()
            for op, do in rng.sample(ops, rng.choice([1, 1, 2])):
                ok = ok and self.run(op, do)
            if not ok:
                self.kept.append((pool, spaces))
                return
            mutator.mend(lambda: rng.random() > STAYS)
        ops.clear()
        spaces.clear()
        if not self.run("close", pool.close) or not pool.client.closed:
            self.kept.append(pool)


def child(place: Path, first: int, limits: "Limits") -> None:
    """The child process: rounds first, first + 1, …"""
    note = os.open(place / "note", os.O_RDWR)
    out = os.open(place / "findings", os.O_WRONLY | os.O_APPEND)
    warnings.simplefilter("ignore")
    np.seterr(all="ignore")
    faulthandler.enable()
    memory.ROOM_S = directory.BUSY_S = 0.01  # no other client would make room
    memory.SLOW_S = 1.0  # a damaged lock of flushes may name a client that lives: that wait must end within HANG_S

    def on_alarm(*_: object) -> None:
        raise Hang

    def say(finding: dict[str, Any]) -> None:
        os.write(out, (json.dumps(finding) + "\n").encode())

    signal.signal(signal.SIGALRM, on_alarm)
    run = Rounds(Template(place), say, note)
    end = time.monotonic() + limits.seconds
    for seed in range(first, first + limits.rounds):
        run.round(seed)
        if time.monotonic() > end or run.mutations >= limits.mutations:
            break
    run.seed, run.label = seed + 1, ""
    run.announce("done")
    os._exit(0)


# ---- their parent ---------------------------------------------------------------------


@dataclass
class Limits:
    """The limits of a run, which ends at the first of them."""

    rounds: int = 10**9
    mutations: int = 10**9
    seconds: float = 1e9
    findings: int = 10**9


def fuzz(seed: int, limits: Limits, sanitize: str = "") -> Fuzzed:
    """Runs rounds, from this seed on, in one child process after the other."""
    environment = dict(os.environ)
    if sanitize:
        extra = native_build.sanitized(sanitize)
        if extra is None:
            raise RuntimeError(f"the compiler has no runtime for -fsanitize={sanitize}")
        environment |= extra
    end, done = time.monotonic() + limits.seconds, Fuzzed()
    while True:
        left = Limits(limits.rounds - done.rounds, limits.mutations - done.mutations, end - time.monotonic(),
                      limits.findings - len(done.found))  # fmt: skip
        if min(left.rounds, left.mutations, left.seconds, left.findings) <= 0:
            return done
        place = Path(tempfile.mkdtemp(prefix=f"bptest-{os.getpid()}-fuzz", dir="/dev/shm"))
        try:
            _one_child(place, seed + done.rounds, left, environment, done)
        finally:
            shutil.rmtree(place)


def _one_child(place: Path, first: int, left: Limits, environment: dict[str, str], done: Fuzzed) -> None:
    note, out, errors = place / "note", place / "findings", place / "errors"
    note.touch()
    out.touch()
    command = [sys.executable, __file__, "--child", str(place), "--seed", str(first), "--rounds", str(left.rounds),
               "--mutations", str(left.mutations), "--seconds", str(left.seconds)]  # fmt: skip
    with errors.open("wb") as stderr, subprocess.Popen(command, env=environment, stderr=stderr) as process:
        code, stuck = _watch(process, note)
    done.found += [Finding(**json.loads(line)) for line in out.read_text().splitlines()]
    told, err = note.read_text(), errors.read_text(errors="replace")
    if not told:
        raise RuntimeError(f"the rounds did not start: {err}")
    at, op, mutations, operated, label = _parse(told)
    done.mutations += mutations
    done.operations += operated
    done.rounds += at - first + (op != "done")
    if op != "done":
        how = "stuck" if stuck else f"signal {-code}" if code < 0 else f"exit code {code}"
        said = [
            line.strip() for line in err.splitlines() if "ERROR:" in line or "runtime error" in line or "File " in line
        ]
        done.found.append(Finding(at, op, how, " | ".join(said)[:600] or err[-300:], label))


def _parse(note: str) -> tuple[int, str, int, int, str]:
    """The last announcement; its label may have been cut off."""
    try:
        seed, op, mutations, operated, label = json.loads(note)
    except ValueError:
        cut = note.index('"', note.index('"') + 1)  # after the operation
        seed, op, mutations, operated = json.loads(",".join([note[:cut] + '"', *note[cut + 1 :].split(",")[1:3]]) + "]")
        label = note[cut:]
    return seed, op, mutations, operated, label


def _watch(process: "subprocess.Popen[bytes]", note: Path) -> tuple[int, bool]:
    """Waits for the end of the process, or kills it when its note has not changed for STUCK_S. Returns the exit code, and whether it
    was killed."""
    last, since = b"", time.monotonic()
    while True:
        try:
            return process.wait(0.5), False
        except subprocess.TimeoutExpired:
            now = note.read_bytes()
        if now != last or not now:
            last, since = now, time.monotonic()
        elif time.monotonic() - since > STUCK_S:
            process.send_signal(signal.SIGABRT)  # faulthandler says where
            return process.wait(), True


def _arguments() -> Iterator[argparse.Namespace]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=10**9)
    parser.add_argument("--mutations", type=int, default=10**9)
    parser.add_argument("--seconds", type=float, default=1e9)
    parser.add_argument(
        "--processes", type=int, default=1, help="the first takes seeds from SEED on, the next from SEED + 10**7"
    )
    parser.add_argument("--sanitize", default="", help="kinds, as of the compiler's -fsanitize")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    yield parser.parse_args()


def fuzz_in_parallel(seed: int, limits: Limits, sanitize: str = "", processes: int = 2) -> Fuzzed:
    """The same from several processes, each with its share of the mutations and rounds."""
    if sanitize:
        native_build.sanitized(sanitize)  # once
    share = Limits(-(-limits.rounds // processes), -(-limits.mutations // processes), limits.seconds, limits.findings)
    with ThreadPoolExecutor(processes) as pool:
        runs = list(pool.map(lambda i: fuzz(seed + 10**7 * i, share, sanitize), range(processes)))
    return Fuzzed(sum(run.rounds for run in runs), sum(run.mutations for run in runs),
                  sum(run.operations for run in runs), [finding for run in runs for finding in run.found])  # fmt: skip


def main() -> int:
    (args,) = _arguments()
    if args.child:
        child(args.child, args.seed, Limits(args.rounds, args.mutations, args.seconds))
    began = time.monotonic()
    run = fuzz_in_parallel(args.seed, Limits(args.rounds, args.mutations, args.seconds), args.sanitize, args.processes)
    for finding in run.found:
        print(finding)
    took = time.monotonic() - began
    print(f"{run.mutations} mutations and {run.operations} operations in {run.rounds} rounds and {took:.0f} s "
          f"({60 * run.mutations / took:.0f} mutations a minute): {len(run.found)} findings")  # fmt: skip
    return 1 if run.found else 0


if __name__ == "__main__":
    sys.exit(main())
