"""The report of runs that kill processes: how many died, what was found, how long it took; and how such runs collect the dead."""

import argparse
import faulthandler
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import numpy as np


@dataclass
class Report:
    """The report of one run. Each finding is something that was lost, leaked or broken, or a process that hung."""

    kills: int = 0
    verified: int = 0
    seconds: float = 0.0
    findings: list[str] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic, repr=False)

    @property
    def clean(self) -> bool:
        return not self.findings

    def tell(self) -> NoReturn:
        """Prints the report as JSON, and ends the process: with 1 if anything was found."""
        self.seconds = round(time.monotonic() - self.began, 1)
        figures = {name: value for name, value in asdict(self).items() if name != "began"}
        print(json.dumps(figures, indent=1))
        sys.exit(not self.clean)


class Storm:
    """What the storms have in common: a report of findings by kind, and the search for processes that hang."""

    HANGS_S = 60.0 * float(os.environ.get("BP_PATIENCE", "1"))
    """A process that is longer in one operation hangs."""

    report: Any

    def find(self, kind: str, what: str) -> None:
        """Adds a finding, and counts it in the report's field ``kind``."""
        setattr(self.report, kind, getattr(self.report, kind) + 1)
        self.report.findings.append(f"{kind}: {what}")

    def look_for_hangs(self, pids: Iterable[int], since: Iterable[float]) -> None:
        """Kills the processes that have been in one operation for too long; ``since``: when each has begun its operation, or 0."""
        now = time.monotonic()
        for pid, began in zip(pids, since, strict=True):
            if not began or not alive(pid):
                continue
            self.report.longest_stall_s = max(self.report.longest_stall_s, now - began)
            if self.hangs(pid, now - began):
                what = f"pid {pid} has been in one operation for {now - began:.1f} s, its stack is in stacks"
                self.find("hung", f"{what}; {self.describe(pid)}")
                kill_with_stack(pid)

    def hangs(self, pid: int, seconds: float) -> bool:
        """Whether a process hangs that needs so long. One that only waits for a processor has ten times as long."""
        return seconds > 10 * self.HANGS_S or (seconds > self.HANGS_S and not is_runnable(pid))

    def describe(self, pid: int) -> str:
        """The facts that may explain a hang."""
        raise NotImplementedError


def shared_arrays(path: Path, parts: list[tuple[str, Any, tuple[int, ...]]]) -> dict[str, Any]:
    """Arrays in a file that all processes of a run map, by name; ``parts`` are their names, types and shapes."""
    kind = np.dtype(parts)
    if not path.exists():
        path.write_bytes(bytes(kind.itemsize))
    whole = np.memmap(path, kind, "r+", shape=(1,))
    return {name: np.asarray(whole[name][0]) for name, _, _ in parts}


def keep_evidence(directory: str | Path, pool: str) -> str:
    """Moves the files of a run with findings out of /dev/shm, so that they take no memory. Returns the new directory."""
    kept = tempfile.mkdtemp(prefix="storm-evidence-")
    shutil.copytree(directory, kept, dirs_exist_ok=True)
    shutil.rmtree(directory)
    segment = Path("/dev/shm", pool)
    if segment.exists():  # it is sparse: its length is that of the whole tmpfs
        subprocess.run(["cp", "--sparse=always", segment, Path(kept, "segment")], check=True)
        segment.unlink()
    return kept


PF_EXITING = 4  # of the flags in /proc/PID/stat, see linux/sched.h


def alive(pid: int) -> bool:
    """Whether a process runs. False from the moment it begins to exit: its locks are released before its state becomes Z."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return False
    return fields[0] not in "ZX" and not int(fields[6]) & PF_EXITING


def is_runnable(pid: int) -> bool:
    """Whether a thread of a process runs, would if there were a processor for it, or is busy in the kernel (a fork)."""
    with suppress(OSError):
        return any(
            (thread / "stat").read_text().rpartition(")")[2].split()[0] in "RD"
            for thread in Path(f"/proc/{pid}/task").iterdir()
        )
    return False


def tell_on_signal(directory: Path) -> None:
    """Makes SIGUSR1 write the stacks of this process's threads to the file ``stacks``."""
    global _stacks
    _stacks = open(directory / "stacks", "a")  # noqa: SIM115  open until the process ends
    faulthandler.register(signal.SIGUSR1, _stacks)
    faulthandler.enable(_stacks)


def guarded(directory: Path, work: Callable[..., object], *args: Any) -> NoReturn:
    """Runs ``work`` in this forked process, and ends the process: with 143 after SystemExit, with 9 after another exception.

    The exception is written to the directory: an AssertionError, which means that data is wrong, to the file ``wrong``, another to ``broken``.
    """
    code = 0
    try:
        tell_on_signal(directory)
        work(*args)
    except SystemExit:
        code = 143
    except BaseException as error:  # noqa: BLE001  it is a finding
        code = 9
        text = (
            f"pid {os.getpid()}: {traceback.format_exc()}\n".encode()
        )  # in one call: the process may be killed between two
        file = directory / ("wrong" if isinstance(error, AssertionError) else "broken")
        os.write(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND), text)
    finally:
        os._exit(code)


def exit_code(pid: int, timeout_s: float) -> int | None:
    """How a child ended: its exit code, or minus the number of the signal. One that does not end in time is killed: None."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


def bury(find: Callable[[str], None], *expected: int) -> bool:
    """Reaps the children that have ended. ``find`` is called with a text about each exit code that is not ``expected``, 0 or SIGKILL's.

    Returns False when no child is left.
    """
    try:
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return True
            if (code := os.waitstatus_to_exitcode(status)) not in (0, -signal.SIGKILL, *expected):
                find(f"pid {pid} ended with {code}")
    except ChildProcessError:
        return False


def kill_with_stack(pid: int) -> None:
    """Kills a process that hangs, after it has written the stacks of its threads (SIGUSR1)."""
    os.kill(pid, signal.SIGUSR1)
    time.sleep(0.3)
    os.kill(pid, signal.SIGKILL)


def arguments(text: str | None) -> argparse.ArgumentParser:
    """A parser with the arguments that all such scripts take."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=0, help="deaths at random moments, at least")
    parser.add_argument("--seed", type=int, default=1)
    return parser


def run(script: Path, *args: str, timeout: float) -> dict[str, Any]:
    """Runs such a script, and returns its report. The test fails if the report has findings."""
    done = subprocess.run(
        [sys.executable, str(script), *args], capture_output=True, text=True, timeout=timeout, check=False
    )
    assert done.stdout, done.stderr
    print(done.stdout)
    report: dict[str, Any] = json.loads(done.stdout)
    assert report["findings"] == [], "\n".join(report["findings"])
    assert done.returncode == 0, done.stderr
    return report
