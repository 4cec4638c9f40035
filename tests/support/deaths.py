"""What runs that kill processes tell: how many there were, what was found, how long it took."""

import argparse
import json
import subprocess
import sys
import time
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
