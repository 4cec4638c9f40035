"""Power failures while toydb commits, on a disk with a volatile cache.

python -m lab.power RECORDING N            recovers the bank from N more states of a disk that was recorded before
python -m lab.power RECORDING N AT SEED    recovers it from N states after AT entries of the log, from that seed on
"""

import json
import os
import pickle
import random
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from lab.disk import Disk, Recording
from lab.guest import Guest, GuestError, Machine
from lab.images import CACHE, ROOT

SIZE = 64 << 20
ROUNDS = 2


@dataclass
class Notes:
    """The messages of the processes of the bank, each with the length of the disk's log at its arrival."""

    before: set[tuple[int, int]]
    """The transfers that were acknowledged before the last power failure."""
    lines: list[tuple[int, int, str, int]] = field(default_factory=list)
    """(length of the log, worker, "B", "C" or "R", transfer)."""

    def hear(self, line: str, length: int) -> None:
        """Records a line that the guest has printed when the log had that length."""
        words = line.split()
        if len(words) == 3 and words[1] in ("B", "C", "R"):
            self.lines.append((length, int(words[0]), words[1], int(words[2])))

    def committed(self, at: int) -> set[tuple[int, int]]:
        """The transfers that were acknowledged when the log had that length: (worker, number)."""
        return self.before | {(w, seq) for when, w, kind, seq in self.lines if kind == "C" and when <= at}

    def wrong(self, at: int, there: dict[str, list[int]]) -> str:
        """The errors in the transfers that are on the disk after a power failure at that length of the log."""
        found = {(int(worker), seq) for worker, seqs in there.items() for seq in seqs}
        committed = self.committed(at)
        undone = {(w, seq) for _, w, kind, seq in self.lines if kind == "R"}
        if committed - found:
            return f"acknowledged and lost: {sorted(committed - found)[:5]}"
        if found & undone:
            return f"rolled back and there: {sorted(found & undone)[:5]}"
        return ""


# ---- in the guest: what is written, and when it is acknowledged ------------------------------


def formatted(guest: Guest) -> bytes:
    """A disk with an empty file system of ext4."""
    image = guest.place / "empty"
    with open(image, "wb") as file:
        file.truncate(SIZE)
    subprocess.run(["mkfs.ext4", "-q", "-b", "4096", "-E", "lazy_itable_init=0,lazy_journal_init=0", image], check=True)
    content = image.read_bytes()
    image.unlink()
    return content


def fail(guest: Guest, disk: Disk, notes: Notes, seconds: float, number: int) -> Recording:
    """Boots the guest, lets the bank work, and cuts the power off at a random moment."""
    guest.boot(Machine(disks=(disk.drive,)))
    guest.must("mount /dev/vdc /mnt")  # the kernel replays the journal of the power failure before
    failure = guest.cut_later(seconds * random.uniform(0.9, 1.1))
    command = f"{guest.environment} python3 -u -m lab.inside.bank work /mnt {number}"
    try:
        code, said = guest.run(command, 4 * seconds, lambda line: notes.hear(line, len(disk.recording.log)))
    except (GuestError, OSError):  # the power failure
        return disk.recording
    finally:
        guest.cut()
        failure.join()
    raise GuestError(f"the bank ended with {code}: {said[-2000:]}")


# ---- on the host: what a power failure may leave ---------------------------------------------


def unpack(content: bytearray, place: Path) -> str:
    """Repairs the file system as after a power failure, and copies its files to ``place``/files. Returns what failed."""
    image, files = place / "image", place / "files"
    image.write_bytes(content)
    files.mkdir()
    done = subprocess.run(["e2fsck", "-f", "-p", image], capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1):
        return f"ext4 is damaged: {done.stdout[-300:]}{done.stderr[-300:]}"
    subprocess.run(["debugfs", "-R", f"rdump / {files}", image], capture_output=True, check=True)
    return ""


def recovered(bank: "subprocess.Popen[str]", content: bytearray, folder: Path) -> tuple[str, dict[str, list[int]]]:
    """Recovers the bank from a disk, in a new part of ``folder``; returns what failed, and the transfers in its journal."""
    with tempfile.TemporaryDirectory(dir=folder, prefix="state-") as made:
        failed = unpack(content, Path(made))
        if failed:
            return failed, {}
        assert bank.stdin is not None
        assert bank.stdout is not None
        bank.stdin.write(f"{made}/files\n")
        bank.stdin.flush()
        seen = json.loads(bank.stdout.readline())
        return "" if seen["code"] == 0 else "the recovery failed", seen["there"] or {}


def verify(recording: Recording, notes: Notes, failures: Iterable[tuple[int, int]], folder: Path) -> list[str]:
    """Recovers the bank after power failures at these lengths of the log, with these seeds. Returns what went wrong.

    It needs room in ``folder`` for one state of the disk.
    """
    wrong = []
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'examples'}"}
    command = [sys.executable, "-u", "-m", "lab.inside.bank", "verify"]
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as bank:
        for at, seed in failures:
            failed, there = recovered(bank, recording.state(at, seed), folder)
            failed = failed or notes.wrong(at, there)
            if failed:
                wrong.append(f"power failure after {at} writes (seed {seed}): {failed}")
    return wrong


def power(n_states: int, seconds: float = 40.0) -> Callable[[Guest], str]:
    """Cuts the guest's power off ROUNDS times. Recovers from states that the disk may have had at many random moments."""

    def check(guest: Guest) -> str:
        disk = Disk(Path(guest.place) / "disk", formatted(guest))
        committed: set[tuple[int, int]] = set()
        writes = 0
        try:
            for number in range(ROUNDS):
                notes = Notes(committed)
                recording = fail(guest, disk, notes, seconds, number)
                end = len(recording.log)
                kept = CACHE / f"power-{guest.kernel.name}-{number}.pickle"
                kept.write_bytes(zlib.compress(pickle.dumps((recording, notes)), 1))
                failures = [(random.randrange(end + 1), seed) for seed in range(n_states // ROUNDS - 1)]
                wrong = verify(recording, notes, [*failures, (end, 1)], guest.place)
                if wrong:
                    raise GuestError(f"{'; '.join(wrong[:3])} ({kept})")
                committed = notes.committed(end)
                writes += end
                disk.put(recording.state(end, 1))
        finally:
            guest.cut()
            disk.close()
        return f"{n_states} states of the disk, {ROUNDS} guests killed, {len(committed)} commits, {writes} writes and flushes: none lost"

    return check


def main() -> int:
    """Verifies more states of a recording."""
    recording, notes = pickle.loads(zlib.decompress(Path(sys.argv[1]).read_bytes()))
    n, end = int(sys.argv[2]), len(recording.log)
    if len(sys.argv) > 3:
        failures = [(int(sys.argv[3]), int(sys.argv[4]) + i) for i in range(n)]
    else:
        failures = [(random.randrange(end + 1), random.randrange(1 << 30)) for _ in range(n)]
    wrong = verify(recording, notes, failures, Path(sys.argv[1]).parent)
    print(f"{n} states of {end} writes and flushes, {len(notes.committed(end))} commits: {len(wrong)} wrong")
    print("\n".join(wrong))
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
