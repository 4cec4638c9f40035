"""Two processes of the bank of tests/toydb on a disk; prints "worker kind transfer" when a transfer begins and commits.

python -m lab.inside.bank work FOLDER ROUND            until the power fails; each round has workers of its own
python -m lab.inside.bank verify DEVICE FOLDER N      mounts N states of the disk in turn, and prints the transfers in each
"""

import json
import mmap
import os
import selectors
import subprocess
import sys
import time
from pathlib import Path

from lab.inside.kernel import fork, result
from tests.toydb import bank

POOL, WORKERS = "lab-bank", 2


def start(folder: Path, worker: int) -> int:
    """Starts a worker; returns the end of the pipe at which its notes arrive."""
    read, write = os.pipe()
    notes = folder / f"notes-{worker}"
    notes.unlink(missing_ok=True)
    notes.symlink_to(f"/proc/self/fd/{write}")
    if os.fork() == 0:
        bank.work(folder, POOL, worker, 1 << 30)
    os.close(write)
    return read


def work(folder: Path, number: int) -> None:
    """Prints the notes of the workers as they come, without end."""
    with bank.open_bank(folder, POOL) as db:
        bank.found(db)
    with selectors.DefaultSelector() as selector:
        for worker in range(number * WORKERS + 1, (number + 1) * WORKERS + 1):
            selector.register(start(folder, worker), selectors.EVENT_READ, worker)
        while True:
            for key, _ in selector.select():
                notes = os.read(key.fd, 65536).decode()
                if not notes:
                    raise SystemExit(f"worker {key.data} has ended")
                for line in notes.splitlines():
                    print(key.data, line, flush=True)


def verify(folder: Path) -> dict[int, list[int]]:
    """Recovers the bank, and checks it; returns the transfers in its journal. Raises Wrong."""
    Path("/dev/shm", POOL).unlink(missing_ok=True)
    with bank.open_bank(folder, POOL) as db:
        bank.found(db)
        findings = db.check()
        if findings:
            raise bank.Wrong(f"check: {findings}")
        with db.begin() as txn:
            return bank.audit(txn)


def number_of(device: Path) -> int:
    """The number of the state that the host has put on the disk: it stands in the last 4 KiB, past the file system."""
    with mmap.mmap(-1, 4096) as page:
        fd = os.open(device, os.O_RDONLY | os.O_DIRECT)
        try:
            os.preadv(fd, [page], os.lseek(fd, 0, os.SEEK_END) - 4096)
        finally:
            os.close(fd)
        return int.from_bytes(page[:8], "little")


def verify_states(device: Path, folder: Path, n: int) -> None:
    """Asks for n states of the disk, one after the other, and prints what is in each: "state" and a line of JSON."""
    for number in range(1, n + 1):
        print("next", number, flush=True)
        while number_of(device) != number:
            time.sleep(0.02)
        subprocess.run(["mount", device, folder], check=True)
        try:
            code, there = result(fork(lambda: verify(folder)))
        finally:
            subprocess.run(["umount", folder], check=True)
        print("state", json.dumps({"code": code, "there": there}), flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "work":
        work(Path(sys.argv[2]), int(sys.argv[3]))
    verify_states(Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
