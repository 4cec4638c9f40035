"""The mount of a directory, and whether its files may have huge pages."""

import errno
import os
import re
from dataclasses import dataclass
from pathlib import Path

KNOB = Path("/sys/kernel/mm/transparent_hugepage/shmem_enabled")


@dataclass(frozen=True)
class Mount:
    """A line of /proc/self/mountinfo."""

    point: str
    kind: str
    options: tuple[str, ...]

    def option(self, name: str, default: str = "") -> str:
        """The value of the mount option ``name=value``."""
        return next((o.partition("=")[2] for o in self.options if o.startswith(f"{name}=")), default)


def mount_of(directory: str) -> Mount:
    """The mount that a directory is on. Raises OSError."""
    about = os.stat(directory)
    device = f"{os.major(about.st_dev)}:{os.minor(about.st_dev)}"
    found = None
    for line in Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines():
        fields = line.split()
        if fields[2] == device:
            dash = fields.index("-")
            found = Mount(fields[4], fields[dash + 1], (*fields[5].split(","), *fields[dash + 3].split(",")))
    if found is None:
        raise OSError(errno.ENOENT, "no mount found in /proc/self/mountinfo", directory)
    return found


def shmem_enabled() -> str:
    """The kernel's setting for huge pages in shared memory (sysfs, transparent_hugepage/shmem_enabled)."""
    found = re.search(r"\[(\w+)\]", KNOB.read_text()) if KNOB.exists() else None
    return found[1] if found else "not built in"


def are_huge(word: str, mounted: str) -> bool:
    """Whether a tmpfs mounted with ``huge=mounted`` has huge pages when ``shmem_enabled`` is ``word``.

    Source: the kernel's Documentation/admin-guide/mm/transhuge.rst.
    """
    return word == "force" or (word not in ("deny", "not built in") and mounted in ("always", "within_size"))


def has_huge_pages(directory: str) -> bool:
    """Whether the kernel gives huge pages to files of a tmpfs. Raises OSError if that cannot be read."""
    return are_huge(shmem_enabled(), mount_of(directory).option("huge", "never"))
