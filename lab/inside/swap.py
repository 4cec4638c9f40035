"""Pages of a pool that were swapped out are given back without being read back in, and swap comes back to the byte.

python -m lab.inside.swap zram|file|noswap
"""

import ctypes
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

import bufferpool as bp
from bufferpool.cli import doctor
from lab.inside.kernel import MIB, cgroup, fork, meminfo, push_out, report, result, stop_swap, use_swap, vmstat

PAGE, PAGES, OTHERS = 64 << 10, 768, 128  # 48 MiB, and 8 MiB each of a client's own pages and of a file
NAME = "lab-swap"


def swapped() -> int:
    """Bytes of swap in use, without those that are in memory, too."""
    return meminfo("SwapTotal") - meminfo("SwapFree")


def of_doctor(directory: str) -> str:
    """How the doctor finds that the machine has swap."""
    return next(finding.level for finding in doctor.examine(directory) if finding.what == "swap")


def settle() -> int:
    """Bytes of swap in use, once the kernel has given back what it frees later."""
    subprocess.run(["sync"], check=True)
    Path("/proc/sys/vm/drop_caches").write_text("1")
    return swapped()


def fill(directory: str, file: str) -> int:
    """Writes all pages, in a process whose memory counts in the cgroup. Its own is gone when it ends; the pool's stays."""
    rng = np.random.default_rng(1)
    with bp.Pool.attach(NAME, directory=directory) as pool:
        work = pool.open_scratch("work", PAGES)
        for n in range(PAGES):
            with work.write(n) as page:
                page[:] = rng.integers(0, 256, PAGE, np.uint8)
        pool.open_file(file, name="file").prefetch(range(OTHERS))
    return 0


class Steps:
    """What the pool has in memory and in swap, and how many pages were read back, step by step."""

    def __init__(self, pool: bp.Pool) -> None:
        self.pool, self.before = pool, settle()
        self.taken: list[tuple[str, int, int, int]] = []

    def take(self, name: str) -> dict[str, float]:
        """The figures after a step; returns how they have changed since the last one."""
        size, used = os.stat(self.pool.path).st_blocks * 512, swapped() - self.before
        self.taken.append((name, size - used, used, vmstat("pswpin")))
        last, now = self.taken[-2:] if len(self.taken) > 1 else (self.taken[0],) * 2
        fell = last[1] + last[2] - size
        return {"fell_mib": fell / MIB, "swap_fell_mib": (last[2] - used) / MIB, "read_back": now[3] - last[3]}


def hold(directory: str, ready: int, go: int) -> int:
    """A client with 8 MiB of its own; it attaches, and disconnects, when it may."""
    rng = np.random.default_rng(3)
    ctypes.CDLL(None).mlockall(1)  # its own memory stays (MCL_CURRENT), so that what is read back is the pool's
    os.read(go, 1)
    with bp.Pool.attach(NAME, directory=directory) as pool:
        own = pool.open_scratch("own", OTHERS, lifetime="process")
        for n in range(OTHERS):
            with own.write(n) as page:
                page[:] = rng.integers(0, 256, PAGE, np.uint8)
        os.write(ready, b"x")
        os.read(go, 1)
        del own
    return 0


def measure(directory: str) -> dict[str, object]:
    """Swaps a pool out, and gives its pages back: by drop, by a client that ends, by trim, and by unlink."""
    found: dict[str, object] = {}
    with cgroup("lab-swap") as folder, tempfile.NamedTemporaryFile(dir="/var/tmp") as file:
        file.write(np.random.default_rng(2).bytes(OTHERS * PAGE))
        file.flush()
        os.fsync(file.fileno())
        ready, go = os.pipe(), os.pipe()
        client = fork(
            lambda: hold(directory, ready[1], go[0]), folder
        )  # it has no pool yet: mlockall would fill its room
        os.close(ready[1])
        pool = bp.Pool.create(NAME, "80MiB", page_size=PAGE, directory=directory)
        steps, work = Steps(pool), pool.open_scratch("work", PAGES)
        os.write(go[1], b"x")
        if not os.read(ready[0], 1):
            raise SystemExit("the client has ended")
        if result(fork(lambda: fill(directory, file.name), folder))[0]:
            raise SystemExit("the pool was not filled")
        steps.take("filled")
        push_out(folder, (PAGES + 2 * OTHERS) * PAGE)
        found["swapped_mib"] = -steps.take("swapped out")["swap_fell_mib"]
        kept = pool.check()
        work.drop(0, 1)  # the kernel has read back what the pool itself needs for it: the rest is pages
        pool.trim(PAGE)
        found["warm"] = steps.take("check")
        gone = work.drop(1, PAGES // 2)
        found["dropped_mib"] = gone / MIB
        found["drop"] = steps.take(f"drop of {gone // MIB} MiB")
        os.write(go[1], b"x")
        if result(client)[0]:
            raise SystemExit("the client did not disconnect")
        found["disconnect"] = steps.take("a client disconnects")
        found["trimmed_mib"] = pool.trim(OTHERS * PAGE // 2) / MIB
        found["trim"] = steps.take("trim of 4 MiB")
        rng = np.random.default_rng(1)
        wrong = 0
        for n in range(PAGES):
            want = rng.integers(0, 256, PAGE, np.uint8)
            if n > PAGES // 2 and n % 16 == 0:
                wrong += not np.array_equal(work[n], want)
        found["wrong"] = wrong
        found["read_when_used"] = steps.take("some are read")["read_back"]
        kept += pool.check()
        steps.take("check again")
        pool.unlink(discard=True)
        del work
        pool.close()
        found["check"] = kept
        read = steps.taken[-1][3]
        steps.taken.append(("unlink", 0, max(0, swapped() - steps.before), vmstat("pswpin")))
        found["read_back_by_unlink"] = steps.taken[-1][3] - read
        found["steps"] = steps.taken
    found["left_in_swap_bytes"] = settle() - steps.before
    found["doctor"] = of_doctor(directory)
    found["slot_caches_bytes"] = 2 * 64 * 4096 * os.cpu_count()
    found["SwapCached"] = meminfo("SwapCached")
    return found


def without_swapping() -> dict[str, object]:
    """The same in a tmpfs that is mounted noswap, where the kernel knows that."""
    os.makedirs("/run/noswap", exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", "noswap,size=128M", "tmpfs", "/run/noswap"]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        return {"refused": True, "doctor": of_doctor("/dev/shm")}
    return {"refused": False, **measure("/run/noswap")}


if __name__ == "__main__":
    kind = sys.argv[1]
    use_swap("file" if kind == "file" else "zram", 128 * MIB)
    try:
        facts = without_swapping() if kind == "noswap" else measure("/dev/shm")
    finally:
        stop_swap()
    report(**facts)
