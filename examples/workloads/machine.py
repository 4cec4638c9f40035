"""The kernel's counts, and limits that a workload sets for itself: a memory cgroup, a small tmpfs, a swap file.

A limit that cannot be set raises Refused, with the reason.
"""

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import bufferpool as bp
from bufferpool.machine.pressure import cgroup_folders

SHM = Path("/dev/shm")
UNLIMITED = 1 << 62


def kernel_bytes(pool: bp.Pool) -> int:
    """The kernel's count of the segment's bytes (st_blocks)."""
    return os.stat(pool.path).st_blocks * 512


def pss(pid: int, *files: Path) -> tuple[int, ...]:
    """The proportional set size of a process in bytes: of its private memory, and of its mappings of each file.

    Of each page that n processes (or mappings) share, it counts 1/n: the sum over processes counts each page once
    (Documentation/filesystems/proc.rst). Other files are left out: their part depends on other programs.
    """
    private, sizes, mapped = 0, dict.fromkeys(map(str, files), 0), ""
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        key, *rest = line.split(maxsplit=5)
        if not key.endswith(":"):  # address, permissions, offset, device, inode, path
            mapped = rest[4] if len(rest) == 5 else ""
        elif key == "Pss:" and mapped in sizes:
            sizes[mapped] += int(rest[0]) * 1024
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss_Anon:"):
            private = int(line.split()[1]) * 1024
    return (private, *sizes.values())


def bytes_read(pid: int | str = "self") -> int:
    """Bytes that a process has had read from disks so far, from swap too (Documentation/filesystems/proc.rst, io)."""
    lines = Path(f"/proc/{pid}/io").read_text().splitlines()
    return int(dict(line.split(": ") for line in lines)["read_bytes"])


# ---- limits ------------------------------------------------------------------------------


class Refused(Exception):
    """The machine does not allow it; the message says why."""


class MemoryCgroup:
    """A memory cgroup (version 1 or 2) that this process has made."""

    def __init__(self, folder: Path, version: int, home: Path) -> None:
        self.folder, self.version, self.home = folder, version, home

    def _write(self, name: str, value: int | str) -> None:
        (self.folder / name).write_text(str(value))

    def _stat(self, name: str) -> int:
        lines = (self.folder / "memory.stat").read_text().splitlines()
        return int(dict(line.split() for line in lines).get(name, 0))

    def add(self, pid: int) -> None:
        """Moves a process into the cgroup: its new memory counts here."""
        self._write("cgroup.procs", pid)

    def limit(self, size: int) -> None:
        """Sets the limit, in bytes. Raises OSError (EBUSY) if that much cannot be freed."""
        self._write("memory.max" if self.version == 2 else "memory.limit_in_bytes", size)

    def used(self) -> int:
        """Bytes that count against the limit."""
        return int((self.folder / ("memory.current" if self.version == 2 else "memory.usage_in_bytes")).read_text())

    def swapped(self) -> int:
        """Bytes in swap."""
        return int((self.folder / "memory.swap.current").read_text()) if self.version == 2 else self._stat("swap")

    def push_out(self, size: int) -> None:
        """Makes the kernel reclaim up to ``size`` bytes: shared memory is written to swap."""
        try:
            if self.version == 2 and (self.folder / "memory.reclaim").exists():
                self._write("memory.reclaim", size)
            elif self.version == 2:  # before Linux 5.19: what is above memory.high is reclaimed when it is set
                self._write("memory.high", max(0, self.used() - size))
                self._write("memory.high", "max")
            else:
                self.limit(self.used() - size)
        except OSError as error:
            if error.errno not in (errno.EBUSY, errno.EAGAIN):  # the kernel reclaimed less
                raise
        if self.version == 1:
            self.limit(UNLIMITED)

    def close(self) -> None:
        """Removes the cgroup; its processes are moved to this process's former cgroup."""
        for pid in (self.folder / "cgroup.procs").read_text().split():
            with suppress(ProcessLookupError):
                (self.home / "cgroup.procs").write_text(pid)
        self.folder.rmdir()


@contextmanager
def memory_cgroup() -> Iterator[MemoryCgroup]:
    """A new, empty memory cgroup; removed when the block ends."""
    reasons = []
    folders = list(cgroup_folders())
    for folder, version in folders:
        home = next(f for f, v in folders if v == version)
        if version == 2 and "memory" not in (folder / "cgroup.subtree_control").read_text().split():
            reasons.append(f"{folder} does not delegate the memory controller")
            continue
        group = MemoryCgroup(folder / f"workload-{os.getpid()}", version, home)
        try:
            group.folder.mkdir()
        except OSError as error:
            reasons.append(str(error))
            continue
        try:
            yield group
        finally:
            group.close()
        return
    raise Refused("no memory cgroup can be made: " + ("; ".join(reasons) or "there are none"))


@contextmanager
def small_tmpfs(size: int, folder: Path) -> Iterator[Path]:
    """A tmpfs of ``size`` bytes of its own. Needs root, or :func:`in_own_namespace`."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={size},mode=700", "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Refused(f"no tmpfs can be mounted: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def in_own_namespace() -> None:
    """Starts this script anew in user and mount namespaces of its own, where it may mount. Raises Refused."""
    if os.environ.get("WORKLOAD_NAMESPACE"):
        return
    if subprocess.run(["unshare", "-Urm", "true"], capture_output=True, check=False).returncode:
        raise Refused("no user and mount namespaces can be made (unshare -Urm)")
    os.environ["WORKLOAD_NAMESPACE"] = "1"
    sys.stdout.flush()
    os.execvp("unshare", ["unshare", "-Urm", sys.executable, *sys.argv])


@contextmanager
def swap_file(path: Path, size: int) -> Iterator[None]:
    """Adds a swap file until the block ends. Needs root."""
    with open(path, "xb") as file:
        os.fchmod(file.fileno(), 0o600)
        for _ in range(size >> 20):
            file.write(bytes(1 << 20))
        os.fsync(file.fileno())
    try:
        for command in ("mkswap", "swapon"):
            try:
                done = subprocess.run([command, str(path)], capture_output=True, text=True, check=False)
            except FileNotFoundError:
                raise Refused(f"{command} is not installed") from None
            if done.returncode:
                raise Refused(f"{command}: {done.stderr.strip()}")
        try:
            yield
        finally:
            subprocess.run(["swapoff", str(path)], check=True)
    finally:
        path.unlink()


def swap_size() -> int:
    """Bytes of swap that the machine has."""
    return sum(int(line.split()[2]) for line in Path("/proc/swaps").read_text().splitlines()[1:]) * 1024
