"""Two processes of the bank of tests/toydb; prints "worker kind transfer" when a transfer begins and commits.

python -m lab.inside.bank work FOLDER ROUND      until the power fails; each round has workers of its own
python -m lab.inside.bank verify                 recovers the bank in each folder that it reads, and prints the transfers
"""

import json
import os
import selectors
import sys
from pathlib import Path

from lab.inside.kernel import fork, result
from tests.toydb import bank

POOL, WORKERS = f"bptest-{os.getpid()}-lab-bank", 2


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
    with bank.open_bank(folder, POOL) as db:
        bank.found(db)
        findings = db.check()
        if findings:
            raise bank.Wrong(f"check: {findings}")
        with db.begin() as txn:
            return bank.audit(txn)


def verify_all() -> None:
    """Verifies the bank in each folder of the standard input; each result is a line of JSON."""
    for line in sys.stdin:
        folder = Path(line.strip())
        code, there = result(fork(lambda folder=folder: verify(folder)))  # type: ignore[misc]
        Path("/dev/shm", POOL).unlink(missing_ok=True)
        print(json.dumps({"code": code, "there": there}), flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "work":
        work(Path(sys.argv[2]), int(sys.argv[3]))
    verify_all()
