"""Containers of podman, without images: their root file system is an overlay of the guest's own.

python -m lab.inside.containers default|user|shared
"""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from lab.inside.kernel import report

PLACE = Path("/run/containers-of-the-lab")
OPTIONS = ["--cgroup-manager=cgroupfs", "--events-backend=none", "--log-level=error", f"--root={PLACE}/storage",
           f"--runroot={PLACE}/run"]  # fmt: skip
_numbers = itertools.count(1)


def container(program: str, *options: str) -> subprocess.Popen[str]:
    """Starts a program of contained.py in a container of its own."""
    folder = PLACE / str(next(_numbers))
    for name in ("upper", "work", "root"):
        (folder / name).mkdir(parents=True)
    layers = f"lowerdir=/,upperdir={folder}/upper,workdir={folder}/work"
    subprocess.run(["mount", "-t", "overlay", "-o", layers, "overlay", folder / "root"], check=True)
    command = ["podman", *OPTIONS, "run", "--network=none", "--log-driver=none", "--volume=/lab:/lab:ro", "--workdir=/lab",
               f"--env=PYTHONPATH={os.environ['PYTHONPATH']}", *options, "--rootfs", str(folder / "root"),
               "python3", "-m", "lab.inside.contained", *program.split()]  # fmt: skip
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ended(running: subprocess.Popen[str]) -> dict[str, Any]:
    """The exit code of a container, and what its last line says."""
    out, error = running.communicate(timeout=1800)
    last = out.strip().splitlines()[-1] if out.strip() else "null"
    return {"code": running.returncode, "error": error[-1500:], "facts": json.loads(last)}


def shared() -> None:
    """Two containers share the memory of a third: one is killed, one ends; the pids of each are its own."""
    server = container("serve", "--name=server")
    while subprocess.run(
        ["podman", *OPTIONS, "exec", "server", "test", "-e", "/dev/shm/lab-shared"], capture_output=True
    ).returncode:
        if server.poll() is not None:
            report(server=ended(server))
    clients = [
        ended(container(program, "--ipc=container:server", "--user=1000:1000")) for program in ("use", "use die")
    ]
    subprocess.run(["podman", *OPTIONS, "exec", "server", "touch", "/dev/shm/lab-go"], check=True)
    report(server=ended(server), clients=clients)


if __name__ == "__main__":
    PLACE.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", PLACE], check=True)  # an overlay's upper layer is no overlay
    if sys.argv[1] == "shared":
        shared()
    report(**ended(container("look", *(["--user=1000:1000"] if sys.argv[1] == "user" else []))))
