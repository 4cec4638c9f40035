"""Power failures while toydb commits, on a disk with a volatile cache."""

import json
import random
import subprocess
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from lab.disk import Disk, Recording
from lab.guest import Guest, GuestError, Machine

SIZE = 96 << 20
ROUNDS = 2


@dataclass
class Notes:
    """What the processes of the bank said, each with the length of the disk's log when it arrived."""

    disk: Disk
    before: set[tuple[int, int]]
    """The transfers that were acknowledged before the last power failure."""
    lines: list[tuple[int, int, str, int]] = field(default_factory=list)
    """(length of the log, worker, "B", "C" or "R", transfer)."""

    def hear(self, line: str) -> None:
        """Takes a line that the guest prints."""
        words = line.split()
        if len(words) == 3 and words[1] in ("B", "C", "R"):
            self.lines.append((len(self.disk.recording.log), int(words[0]), words[1], int(words[2])))

    def committed(self, at: int) -> set[tuple[int, int]]:
        """The transfers that were acknowledged when the log had that length: (worker, number)."""
        return self.before | {(w, seq) for when, w, kind, seq in self.lines if kind == "C" and when <= at}

    def wrong(self, at: int, there: dict[str, list[int]]) -> str:
        """What is wrong with the transfers that are on the disk after a power failure at that length of the log."""
        found = {(int(worker), seq) for worker, seqs in there.items() for seq in seqs}
        committed = self.committed(at)
        undone = {(w, seq) for _, w, kind, seq in self.lines if kind == "R"}
        if committed - found:
            return f"acknowledged and lost: {sorted(committed - found)[:5]}"
        if found & undone:
            return f"rolled back and there: {sorted(found & undone)[:5]}"
        return ""


def formatted(guest: Guest) -> bytes:
    """A disk with an empty file system of ext4, and 4 KiB past it."""
    image = guest.place / "empty"
    with open(image, "wb") as file:
        file.truncate(SIZE)
    subprocess.run(["mkfs.ext4", "-q", "-b", "4096", "-E", "lazy_itable_init=0,lazy_journal_init=0", image], check=True)
    content = image.read_bytes()
    image.unlink()
    return content + bytes(4096)


def fail(guest: Guest, notes: Notes, seconds: float, number: int) -> Recording:
    """Boots, lets the bank work, and cuts the guest off from power at a random moment."""
    guest.boot(Machine(disks=(notes.disk.drive,)))
    guest.must("mount /dev/vdc /mnt")
    timer = threading.Timer(seconds * random.uniform(0.9, 1.1), guest.cut)
    timer.start()
    try:
        code, said = guest.run(
            f"{guest.environment} python3 -u -m lab.inside.bank work /mnt {number}", 4 * seconds, notes.hear
        )
    except (GuestError, OSError):  # the power failure
        return notes.disk.recording
    finally:
        timer.cancel()
    raise GuestError(f"the bank ended with {code}: {said[-2000:]}")


def verify(guest: Guest, disk: Disk, recording: Recording, notes: Notes, states: list[int]) -> None:
    """Boots once, and recovers the bank from each state of the disk. Raises GuestError."""
    wrong: list[str] = []
    seeds = [random.randrange(1 << 30) for _ in states]
    asked = iter(zip(range(1, len(states) + 1), states, seeds, strict=True))
    current = [0, 0]

    def hear(line: str) -> None:
        if line.startswith("next"):
            number, at, seed = next(asked)
            current[:] = at, seed
            content = recording.state(at, seed)
            content[-4096:-4088] = number.to_bytes(8, "little")
            disk.put(content)
        elif line.startswith("state"):
            seen = json.loads(line[6:])
            trouble = notes.wrong(current[0], seen["there"]) if seen["code"] == 0 else "the recovery failed"
            if trouble:
                wrong.append(f"power failure after {current[0]} writes (seed {current[1]}): {trouble}")

    guest.boot(Machine(disks=(disk.drive,)))
    command = f"{guest.environment} python3 -u -m lab.inside.bank verify /dev/vdc /mnt {len(states)}"
    code, said = guest.run(command, 60.0 * len(states), hear)
    if code or wrong or next(asked, None):
        raise GuestError("; ".join(wrong[:3]) or f"the verification ended with {code}: {said[-3000:]}")


def power(n_states: int, seconds: float = 40.0) -> Callable[[Guest], str]:
    """Cuts the guest off from power ROUNDS times; recovers from what the disk may have had at many random moments."""

    def check(guest: Guest) -> str:
        disk = Disk(Path(guest.place) / "disk", formatted(guest))
        committed: set[tuple[int, int]] = set()
        writes = 0
        try:
            for number in range(ROUNDS):
                notes = Notes(disk, committed)
                recording = fail(guest, notes, seconds, number)
                end = len(recording.log)
                states = [random.randrange(end + 1) for _ in range(n_states // ROUNDS - 1)]
                verify(guest, disk, recording, notes, [*states, end])
                committed = notes.committed(end)
                writes += end
                disk.put(recording.state(end, 1))
        finally:
            guest.cut()
            disk.close()
        return f"{n_states} states of the disk, {ROUNDS} guests killed, {len(committed)} commits, {writes} writes and flushes: none lost"

    return check
