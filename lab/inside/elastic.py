"""The workload elastic.py in a cgroup; its last line has the samples of its picture: a guest has nothing that draws.

python -m lab.inside.elastic
"""

import json
import sys
from dataclasses import asdict
from typing import Any

from lab.images import ROOT

sys.path.insert(0, str(ROOT / "examples" / "workloads"))
import elastic
import workload


def collect(run: Any, draw: Any, samples: list[Any], phases: list[tuple[float, str]], limit: Any) -> None:
    """Prints what Run.plot would draw."""
    print(json.dumps({"samples": [asdict(sample) for sample in samples], "phases": phases}), flush=True)


if __name__ == "__main__":
    workload.Run.plot = collect
    # One slow processor for the load, the steward and the neighbour: a step of the budget took 3.5 s instead of one on Linux 5.10.
    elastic.PATIENCE_S = 300.0
    sys.argv[1:] = ["--limit", "cgroup", "--pool", "32", "--idle", "6", "--quick"]
    workload.main(elastic.work, {"--limit": {"default": "cgroup"}}, pool=(32, 32, "MiB"), idle=(6, 6, "seconds"))
