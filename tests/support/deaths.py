"""What runs that kill processes tell: how many there were, what was found, how long it took."""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NoReturn


@dataclass
class Report:
    """Of one run. Each finding is something that was lost, leaked or broken, or that hung."""

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


def keep_evidence(directory: str | Path, pool: str) -> str:
    """Moves what a run with findings left out of /dev/shm, which is everybody's memory; the new directory, to be looked at."""
    kept = tempfile.mkdtemp(prefix="storm-evidence-")
    shutil.copytree(directory, kept, dirs_exist_ok=True)
    shutil.rmtree(directory)
    segment = Path("/dev/shm", pool)
    if segment.exists():  # it is sparse: its length is that of the whole tmpfs
        subprocess.run(["cp", "--sparse=always", segment, Path(kept, "segment")], check=True)
        segment.unlink()
    return kept


def bury(find: Callable[[str], None], *expected: int) -> bool:
    """Collects the children that have ended. ``find`` gets the text about an exit code that is neither ``expected``, nor 0, nor SIGKILL's.

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
    """Kills a process that hangs, after it has written where its threads are (SIGUSR1)."""
    os.kill(pid, signal.SIGUSR1)
    time.sleep(0.3)
    os.kill(pid, signal.SIGKILL)


def arguments(text: str | None) -> argparse.ArgumentParser:
    """A parser with what all of them take."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=0, help="deaths at random moments, at least")
    parser.add_argument("--seed", type=int, default=1)
    return parser


def run(script: Path, *args: str, timeout: float) -> dict[str, Any]:
    """Runs such a script; its report, in which nothing was found."""
    done = subprocess.run(
        [sys.executable, str(script), *args], capture_output=True, text=True, timeout=timeout, check=False
    )
    assert done.stdout, done.stderr
    print(done.stdout)
    report: dict[str, Any] = json.loads(done.stdout)
    assert report["findings"] == [], "\n".join(report["findings"])
    assert done.returncode == 0, done.stderr
    return report
