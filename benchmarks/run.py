"""Prints the table of speeds: `make bench`, or `python benchmarks/run.py --help`."""

import argparse
import json
import os
import platform
import signal
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from harness import SHM, Bench, Row
from speed import ROWS

SHM_NEEDED = 512 << 20


def machine() -> dict[str, Any]:
    """The facts about the machine on which the figures depend."""
    names = [
        line.split(":", 1)[1].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return {
        "cpu": names[0] if names else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "load": round(os.getloadavg()[0], 2),
    }


def number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}" if value < 10 else f"{value:.1f}"


def line(row: Row) -> str:
    """One row as text."""
    base = "" if row.base is None else f"{number(row.base)} {row.unit}"
    sign = "≥" if row.at_least else "≤"
    spread = f"{row.low:.2f}–{row.high:.2f}"
    verdict = "no figure" if row.void else "ok" if row.ok else "MISSED"
    return (
        f"{row.what:<36} {number(row.ours) + ' ' + row.unit:>14}  {row.yardstick:<26} {base:>14} "
        f"{row.value:>8.2f} {spread:>13}  {sign} {row.bar:<5.3g} {verdict}"
        + (f"\n      {row.beside}" if row.beside else "")
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Measures bufferpool beside its yardsticks.")
    parser.add_argument("--quick", action="store_true", help="a smaller file and fewer rounds, for a first impression")
    parser.add_argument(
        "--only", metavar="NAME", action="append", choices=list(ROWS), help=f"one row: {', '.join(ROWS)}"
    )
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write everything to FILE")
    options = parser.parse_args()
    # SIGTERM must unwind, so that segments and files are removed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))

    free = os.statvfs(SHM)
    if free.f_bavail * free.f_frsize < SHM_NEEDED:
        sys.exit(f"{SHM} needs {SHM_NEEDED >> 20} MiB free for this (containers: --shm-size=1g)")
    facts = machine()
    print(", ".join(f"{name} {value}" for name, value in facts.items()))
    print(f"\n{'':<36} {'ours':>14}  {'yardstick':<26} {'':>14} {'value':>8} {'quartiles':>13}  bar")
    rows: list[Row] = []
    start = time.monotonic()
    with Bench(options.quick) as bench:
        for name in options.only or ROWS:
            for row in ROWS[name](bench):
                rows.append(row)
                print(line(row), flush=True)
    facts["seconds"] = round(time.monotonic() - start, 1)
    facts["load_after"] = round(os.getloadavg()[0], 2)
    if options.json:
        table = [asdict(row) | {"ok": row.ok} for row in rows]
        options.json.write_text(json.dumps({"machine": facts, "quick": options.quick, "rows": table}, indent=1) + "\n")
    print(f"\n{facts['seconds']} s, load {facts['load']} to {facts['load_after']}")
    print(f"{sum(row.ok for row in rows)} of {len(rows)} bars met")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
