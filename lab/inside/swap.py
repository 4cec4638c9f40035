"""Pages of a pool that were swapped out are dropped without being read back, and swap comes back to the byte.

python -m lab.inside.swap zram|file|noswap
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np

import bufferpool as bp
from bufferpool.cli import doctor
from lab.inside.kernel import MIB, cgroup, fork, meminfo, push_out, report, result, use_swap, vmstat

PAGE, PAGES = 64 << 10, 768  # 48 MiB
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


def fill(directory: str) -> int:
    """Writes all pages, in a process whose memory counts in the cgroup. Its own is gone when it ends; the pool's stays."""
    rng = np.random.default_rng(1)
    with bp.Pool.attach(NAME, directory=directory) as pool:
        work = pool.open_scratch("work", PAGES)
        for n in range(PAGES):
            with work.write(n) as page:
                page[:] = rng.integers(0, 256, PAGE, np.uint8)
    return 0


def measure(directory: str) -> dict[str, object]:
    """Swaps a pool out, and gives its pages back: by drop, by a client that ends, and by unlink."""
    found: dict[str, object] = {}
    before = settle()
    with cgroup("lab-swap") as folder:
        pool = bp.Pool.create(NAME, "64MiB", page_size=PAGE, directory=directory)
        work = pool.open_scratch("work", PAGES)
        if result(fork(lambda: fill(directory), folder))[0]:
            raise SystemExit("the pool was not filled")
        push_out(folder, PAGES * PAGE)
        found["swapped_mib"] = (swapped() - before) / MIB
        kept = pool.check()
        work.drop(0, 1)  # the kernel has read back what the pool itself needs for it: the rest is pages
        held, blocks, read = swapped(), os.stat(pool.path).st_blocks * 512, vmstat("pswpin")
        gone = work.drop(1, PAGES // 2)
        found["dropped_mib"] = gone / MIB
        found["st_blocks_fell_by_mib"] = (blocks - os.stat(pool.path).st_blocks * 512) / MIB
        found["swap_fell_by_mib"] = (held - swapped()) / MIB
        found["pages_read_back"] = vmstat("pswpin") - read
        rng = np.random.default_rng(1)
        wrong = 0
        for n in range(PAGES):
            want = rng.integers(0, 256, PAGE, np.uint8)
            if n > PAGES // 2 and n % 16 == 0:
                wrong += not np.array_equal(work[n], want)
        found["wrong"] = wrong
        found["read_when_used"] = vmstat("pswpin") - read
        read = vmstat("pswpin")
        pool.unlink(discard=True)
        kept += pool.check()
        del work
        pool.close()
        found["read_back_by_unlink"] = vmstat("pswpin") - read
        found["check"] = kept
    found["left_in_swap_bytes"] = settle() - before
    found["doctor"] = of_doctor(directory)
    found["slot_caches_bytes"] = 2 * 64 * 4096 * os.cpu_count()
    found["SwapCached"] = meminfo("SwapCached")
    return found


if __name__ == "__main__":
    if sys.argv[1] != "noswap":
        use_swap(sys.argv[1], 128 * MIB)
        report(**measure("/dev/shm"))
    use_swap("zram", 128 * MIB)
    os.makedirs("/run/noswap", exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", "noswap,size=128M", "tmpfs", "/run/noswap"]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        report(refused=True, doctor=of_doctor("/dev/shm"))
    report(refused=False, **measure("/run/noswap"))
