"""What the programs of the lab ask of the kernel: its counts, cgroups of version 2, swap."""

import json
import os
import re
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

CGROUPS = Path("/sys/fs/cgroup")
MIB = 1 << 20


def meminfo(name: str) -> int:
    """A figure of /proc/meminfo, in bytes."""
    found = re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    assert found is not None, name
    return int(found[1]) * 1024


def vmstat(name: str) -> int:
    """A count of /proc/vmstat."""
    return int(dict(line.split() for line in Path("/proc/vmstat").read_text().splitlines())[name])


def count(folder: Path, file: str, name: str) -> int:
    """A figure of a cgroup's memory.events or memory.stat."""
    return int(dict(line.split() for line in (folder / file).read_text().splitlines()).get(name, 0))


@contextmanager
def cgroup(path: str, **limits: int) -> Iterator[Path]:
    """A new cgroup, with limits such as max=bytes and high=bytes; its parents are made, and stay."""
    folder, here = CGROUPS / path, CGROUPS
    for part in path.split("/"):
        (here / "cgroup.subtree_control").write_text("+memory")
        here /= part
        here.mkdir(exist_ok=True)
    for name, size in limits.items():
        (folder / f"memory.{name}").write_text(str(size))
    try:
        yield folder
    finally:
        with suppress(OSError):  # a process of the group still ends
            folder.rmdir()


def join(folder: Path) -> None:
    """Moves this process into a cgroup; its new memory counts there."""
    (folder / "cgroup.procs").write_text(str(os.getpid()))


def fork(function: Callable[[], Any], folder: Path | None = None) -> tuple[int, int]:
    """Runs a function in a process of its own, in a cgroup; returns its pid, and where its result can be read."""
    read, write = os.pipe()
    pid = os.fork()
    if pid:
        os.close(write)
        return pid, read
    try:
        if folder is not None:
            join(folder)
        os.write(write, json.dumps(function()).encode())
        os._exit(0)
    except BaseException:  # noqa: BLE001  the parent sees the exit code
        traceback.print_exc()
        os._exit(1)


def result(child: tuple[int, int]) -> tuple[int, Any]:
    """The exit code of such a process, or minus its signal, and what its function returned."""
    with os.fdopen(child[1], "rb") as pipe:
        said = pipe.read()
    code = os.waitstatus_to_exitcode(os.waitpid(child[0], 0)[1])
    return code, json.loads(said) if said else None


def stop_swap() -> None:
    """Turns all swap off: the checks that follow in the same guest begin without any."""
    subprocess.run(["swapoff", "-a"], check=True)
    Path("/sys/block/zram0/reset").write_text("1")
    Path("/swapfile").unlink(missing_ok=True)


def use_swap(kind: str, size: int) -> None:
    """Turns swap on: "zram", or "file" on the root file system. Pages are read back one by one."""
    if kind == "zram":
        Path("/sys/block/zram0/disksize").write_text(str(size))
        device = "/dev/zram0"
    else:
        device = "/swapfile"
        with open(device, "wb") as file:
            os.fchmod(file.fileno(), 0o600)
            for _ in range(size // MIB):
                file.write(bytes(MIB))
            os.fsync(file.fileno())
    for command in (["mkswap", device], ["swapon", device]):
        subprocess.run(command, check=True, capture_output=True)
    Path("/proc/sys/vm/page-cluster").write_text("0")


def push_out(folder: Path, size: int) -> None:
    """Makes the kernel reclaim about ``size`` bytes of a cgroup: shared memory is written to swap."""
    used = int((folder / "memory.current").read_text())
    with suppress(OSError):  # the kernel reclaimed less
        if (folder / "memory.reclaim").exists():
            (folder / "memory.reclaim").write_text(str(size))
        else:  # before Linux 5.19
            (folder / "memory.high").write_text(str(max(0, used - size)))
    (folder / "memory.high").write_text("max")


def report(**facts: Any) -> None:
    """Ends the program with its result."""
    print(json.dumps(facts))
    sys.exit(0)
