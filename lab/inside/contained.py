"""Programs that run in a container.

python -m lab.inside.contained look          what a container starts with, and what a pool makes of it
python -m lab.inside.contained serve         creates a pool, waits for the clients of other containers, and checks it
python -m lab.inside.contained use [die]     attaches to that pool, writes a page, and ends, or is killed
"""

import os
import signal
import sys
import time
from pathlib import Path

import bufferpool as bp
from bufferpool import _core, errors
from bufferpool.cli import doctor
from lab.inside.kernel import MIB, report

NAME = "lab-shared"


def look() -> None:
    """Fills the small /dev/shm: an error that names the remedy, and pages that stay right."""
    levels = {finding.what: (finding.level, finding.remedy) for finding in doctor.examine()}
    refused = ""
    with bp.Pool.create("lab-look", 256 * MIB, page_size=64 << 10) as pool:
        work = pool.open_scratch("work", 4096)
        written = 0
        try:
            for n in range(4096):
                with work.write(n) as page:
                    page[:] = n % 251
                written += 1
        except errors.BufferPoolError as error:
            refused = f"{type(error).__name__}: {error}"
        wrong = sum(int(work[n][9]) != n % 251 for n in range(written)), pool.check()
        pool.unlink(discard=True)
    report(uid=os.getuid(), pid=os.getpid(), shm=levels["/dev/shm"], failed=[what for what, (level, _) in levels.items() if level == "FAIL"],
           refused=refused, written=written, wrong=wrong, io_uring=_core.has_io_uring())  # fmt: skip


def serve() -> None:
    """Waits for three clients that have written; one of them was killed."""
    with bp.Pool.create(NAME, 16 * MIB, page_size=4096, permissions=0o666) as pool:
        work = pool.open_scratch("work", 64)
        end = time.monotonic() + 1800
        while not Path("/dev/shm/lab-go").exists() and time.monotonic() < end:
            time.sleep(0.2)
        found = sorted(int(work[n][0]) for n in (1, 2))
        pool.reap()
        clients, wrong = pool.stats().clients, pool.check()
        pool.unlink(discard=True)
    report(found=found, clients=clients, check=wrong)


def use(die: bool) -> None:
    """Writes page 1 or 2; the one that dies has a pin and an unfinished write."""
    end = time.monotonic() + 1800
    while not Path("/dev/shm", NAME).exists() and time.monotonic() < end:
        time.sleep(0.2)
    pool = bp.Pool.attach(NAME, trusted_uid=0)
    work, page_no = pool.open_scratch("work", 64), 2 if die else 1
    with work.write(page_no) as page:
        page[:] = 10 * page_no
    if die:
        kept, started = work.pin(page_no), work.write(3)
        started.__enter__()[:] = 1
        os.kill(os.getpid(), signal.SIGKILL)
        del kept
    work = page = None
    pool.close()


if __name__ == "__main__":
    program = sys.argv[1]
    if program == "use" and sys.argv[2:] == ["die"]:  # in a child: the first process of a namespace cannot kill itself
        child = os.fork()
        if child == 0:
            use(True)
        sys.exit(128 - os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    elif program == "use":
        use(False)
    else:
        {"look": look, "serve": serve}[program]()
