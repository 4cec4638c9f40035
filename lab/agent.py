"""The first process of a guest: runs the commands that the host sends over the virtio port, and reaps orphans.

A command is a line of JSON, {"command": text}; the answers are lines {"out": text}, and at the end {"rc": code}. The host
ends the guest if a command takes too long: the guest's own clock may be the host's, and the host may be busy.
"""

import contextlib
import json
import os
import selectors
import subprocess
import time
from pathlib import Path
from typing import Any, BinaryIO


def find_port(name: str) -> str:
    """The device of the virtio port with that name."""
    while True:
        for place in Path("/sys/class/virtio-ports").glob("*/name"):
            if place.read_text().strip() == name:
                return f"/dev/{place.parent.name}"
        time.sleep(0.1)


def answer(port: BinaryIO, message: dict[str, Any]) -> None:
    """Sends one line to the host."""
    data = json.dumps(message).encode() + b"\n"
    while data:
        data = data[port.raw.write(data) or 0 :] if hasattr(port, "raw") else data[port.write(data) or 0 :]


def perform(port: BinaryIO, command: str) -> None:
    """Runs one command, sends its output as it appears, and reports its exit code."""
    process = subprocess.Popen(
        ["bash", "-c", command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    assert process.stdout is not None
    os.set_blocking(process.stdout.fileno(), False)
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while process.poll() is None:
            if selector.select(0.2):
                text = process.stdout.read(65536)
                if text:
                    answer(port, {"out": text.decode(errors="replace")})
    rest = process.stdout.read() or b""
    answer(port, {"out": rest.decode(errors="replace")})
    answer(port, {"rc": process.returncode})


def serve() -> None:
    """Performs the host's commands, one after the other."""
    os.environ.update(
        PATH="/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        HOME="/root", LANG="C.UTF-8", TMPDIR="/tmp", PYTHONDONTWRITEBYTECODE="1",
    )  # fmt: skip
    os.chdir("/lab")
    with open(find_port("lab"), "r+b", buffering=0) as port:
        answer(port, {"ready": os.uname().release})
        waiting = b""
        while True:
            waiting += port.read(65536) or b""
            while b"\n" in waiting:
                line, _, waiting = waiting.partition(b"\n")
                perform(port, json.loads(line)["command"])
            if not waiting:
                time.sleep(0.01)  # the port reads as empty while the host is not connected


def main() -> None:
    """Serves in a child. The first process itself only reaps orphans, as an init does."""
    child = os.fork()
    if child == 0:
        serve()
    while True:
        with contextlib.suppress(ChildProcessError, InterruptedError):
            if os.wait()[0] == child:
                break
    print("the agent ended", flush=True)
    time.sleep(3600)


if __name__ == "__main__":
    main()
