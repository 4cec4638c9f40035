"""Damages live segments and uses them: nothing may crash, hang, or leave the segment.

    python tests/fuzz_segment.py --seed 1 --rounds 5000 [--mutations 3]

Every round takes a fresh copy of one segment (a file space, a scratch space, a
derived space, dirty, dropped and superseded pages, and a client that died in a
write block), changes a few words of it through a mapping of its own, and runs
operations on it. Each must end, within seconds, in a result or a typed error.
The rounds run in a child process, so that a crash is seen as its end; the round
number is the seed, so that every finding can be run again:

    python tests/fuzz_segment.py --seed N --rounds 1 --mutations M
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

import bufferpool as bp
from bufferpool import directory as _directory
from bufferpool import pool as _pool
from tests.fuzz_damage import HEADER_KEPT, Mutator
from tests.fuzz_use import TYPED, Hang, Store, operations

HANG_S, STUCK_S = 3.0, 7.0  # an operation that a signal ends; one that none does


# ---- rounds ---------------------------------------------------------------------------


class Rounds:
    """Runs in the child process: announces every operation, reports every finding."""

    def __init__(self, store: Store, say: Callable[[dict[str, Any]], None], note: int, mutations: int) -> None:
        self.store, self.say, self.note, self.mutations = store, say, note, mutations
        self.kept: list[Any] = []  # what cannot be closed
        self.seed, self.label = 0, ""

    def announce(self, op: str) -> None:
        os.pwrite(self.note, json.dumps([self.seed, op, self.label]).ljust(1000).encode()[:1000], 0)

    def run(self, op: str, do: Callable[[], Any]) -> bool:
        """False after a hang: the segment is of no further use."""
        self.announce(op)
        began = time.monotonic()
        faulthandler.dump_traceback_later(STUCK_S, exit=True)
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
            faulthandler.cancel_dump_traceback_later()
        if not how and time.monotonic() - began > HANG_S:
            how = "hang"
        if how:
            self.say({"seed": self.seed, "op": op, "how": how, "detail": detail, "did": self.label})
        return how != "hang"

    def round(self, seed: int) -> None:
        self.seed, self.label = seed, ""
        rng = random.Random(seed)
        store, name = self.store, f"r{seed}"
        store.restore_file()
        fd = store.copy(name)
        spaces: dict[str, Any] = {}
        pools: list[bp.Pool] = []
        try:
            with mmap.mmap(fd, store.size) as shm:
                self.steps(rng, shm, name, spaces, pools)
                header = shm[:HEADER_KEPT]
            about = os.fstat(fd)
            if (
                header != store.runs[0][1][:HEADER_KEPT]
                or about.st_size != store.size
                or about.st_blocks * 512 > store.size
            ):
                self.say(
                    {
                        "seed": seed,
                        "op": "end",
                        "how": "outside",
                        "detail": "the header or the size changed",
                        "did": self.label,
                    }
                )
        finally:
            os.close(fd)
            (store.place / name).unlink(missing_ok=True)

    def steps(
        self, rng: random.Random, shm: mmap.mmap, name: str, spaces: dict[str, Any], pools: list[bp.Pool]
    ) -> None:
        store = self.store
        early = rng.random() < 0.3
        mutator = Mutator(shm, rng, early)

        def damage() -> None:
            for _ in range(rng.randint(1, self.mutations)):
                mutator.mutate()
            self.label = "; ".join(mutator.done[-self.mutations :])

        if early:
            damage()
        ok = self.run("attach", lambda: pools.append(bp.Pool.attach(name, directory=store.place)))
        if not pools or not ok:
            return
        pool = pools[0]
        ops = operations(pool, store.place, store.file, rng, spaces)
        if not early:
            for op, do in rng.sample(ops, 4):
                if not self.run(op, do):
                    self.kept.append((pool, spaces))
                    return
            in_write = rng.random() < 0.15 and "scratch" in spaces

            def damage_in_write() -> None:
                with spaces["scratch"].write(rng.randrange(4), timeout=0.1):
                    damage()

            if in_write:
                ok = self.run("damage in a write block", damage_in_write)
            else:
                damage()
        for op, do in rng.sample(ops, 12):
            ok = ok and self.run(op, do)
        del ops
        spaces.clear()
        ok = ok and self.run("close", pool.close)
        if not ok or not pool._closed:
            self.kept.append(pool)


def child(place: Path, first: int, rounds: int, mutations: int, seconds: float, note: int, out: int) -> None:
    """The child process: rounds first, first + 1, …"""
    warnings.simplefilter("ignore")
    np.seterr(all="ignore")
    faulthandler.enable()
    _pool._ROOM_S = _directory.BUSY_S = 0.05  # type: ignore[attr-defined]

    def on_alarm(*_: object) -> None:
        raise Hang

    signal.signal(signal.SIGALRM, on_alarm)
    run = Rounds(
        Store(place), lambda finding: void(os.write(out, (json.dumps(finding) + "\n").encode())), note, mutations
    )
    end = time.monotonic() + seconds
    for seed in range(first, first + rounds):
        run.round(seed)
        if time.monotonic() > end:
            break
    run.seed, run.label = seed + 1, ""
    run.announce("done")
    os._exit(0)


def void(_: object) -> None:
    pass


@dataclass
class Finding:
    """One thing that must not happen."""

    seed: int
    op: str
    how: str  # "signal 11", "hang", "stuck" (not even a signal ends it), "untyped", "outside"
    detail: str
    did: str

    def __str__(self) -> str:
        return f"seed {self.seed}: {self.how} in {self.op}, after {self.did} {self.detail}"


def fuzz(
    seed: int, rounds: int, mutations: int = 3, seconds: float = 1e9, findings: int = 10**9
) -> tuple[int, list[Finding]]:
    """Runs rounds in child processes; returns how many were run, and what was found."""
    end, first, found = time.monotonic() + seconds, seed, list[Finding]()
    while first < seed + rounds and time.monotonic() < end and len(found) < findings:
        place = Path(tempfile.mkdtemp(prefix=f"bptest-{os.getpid()}-fuzz", dir="/dev/shm"))
        try:
            first = _one_child(place, first, seed + rounds - first, mutations, end - time.monotonic(), found)
        finally:
            shutil.rmtree(place)
    return first - seed, found


def _one_child(place: Path, first: int, rounds: int, mutations: int, seconds: float, found: list[Finding]) -> int:
    note, out = place / "note", place / "findings"
    note.touch()
    out.touch()
    command = [sys.executable, __file__, "--child", str(place), "--seed", str(first), "--rounds", str(rounds),
               "--mutations", str(mutations), "--seconds", str(seconds)]  # fmt: skip
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=min(max(seconds, 0), 1e6) + 60
        )
        code, err = done.returncode, done.stderr
    except subprocess.TimeoutExpired:
        code, err = -9, "no end"
    found += [Finding(**json.loads(line)) for line in out.read_text().splitlines()]
    told = json.loads(note.read_text() or '[0, "start", ""]')
    if told[1] == "done":
        return int(told[0])
    if told[1] == "start":
        raise RuntimeError(f"the rounds did not start: {err}")
    at = max(int(told[0]), first)
    how = "stuck" if "Timeout (" in err else f"signal {-code}" if code < 0 else f"exit code {code}"
    where = " | ".join(line.strip() for line in err.splitlines() if "File " in line)[:300]
    found.append(Finding(at, told[1], how, where or err[-300:], told[2]))
    return at + 1


def _arguments() -> Iterator[argparse.Namespace]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--mutations", type=int, default=3, help="at most so many in a round")
    parser.add_argument("--seconds", type=float, default=1e9)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    yield parser.parse_args()


def main() -> int:
    (args,) = _arguments()
    if args.child:
        note = os.open(args.child / "note", os.O_RDWR)
        out = os.open(args.child / "findings", os.O_WRONLY | os.O_APPEND)
        child(args.child, args.seed, args.rounds, args.mutations, args.seconds, note, out)
    began = time.monotonic()
    rounds, found = fuzz(args.seed, args.rounds, args.mutations, args.seconds)
    for finding in found:
        print(finding)
    print(f"{rounds} rounds in {time.monotonic() - began:.0f} s: {len(found)} findings")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
