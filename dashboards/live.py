"""Runs the workload, its exporter and a Prometheus server, for the test of the dashboard and for its pictures.

Needs Debian's package prometheus.
"""

import json
import shutil
import signal
import socket
import subprocess
import sys
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def free_port() -> int:
    """A TCP port that is free at the moment."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def ask(port: int, path: str, **arguments: str) -> Any:
    """Asks Prometheus; returns its answer. Raises URLError, and its subclass HTTPError for an expression that fails."""
    url = f"http://127.0.0.1:{port}{path}?{urllib.parse.urlencode(arguments)}"
    with urllib.request.urlopen(url, timeout=30) as answer:
        return json.load(answer)["data"]


@contextmanager
def running(folder: Path, pool: str, period: float) -> Iterator[tuple[int, list[subprocess.Popen[bytes]]]]:
    """Starts the programs; yields the port of Prometheus, which scrapes every second, and the processes. Ends them at the end.

    Prometheus' files are in ``folder``, with the configuration and the alerts of this directory.
    """
    exporter, server = free_port(), free_port()
    config = (HERE / "prometheus.yml").read_text().replace("exporter:9184", f"127.0.0.1:{exporter}")
    for often in ("scrape_interval: 5s", "evaluation_interval: 15s"):
        config = config.replace(often, f"{often.split(':')[0]}: 1s")
    (folder / "prometheus.yml").write_text(config)
    shutil.copy(HERE / "alerts.yml", folder)
    commands = [
        [sys.executable, str(HERE / "workload.py"), "--name", pool, "--period", str(period)],
        [sys.executable, "-m", "bufferpool.cli", "export", "--port", str(exporter), pool],
        ["prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data",
         f"--web.listen-address=127.0.0.1:{server}", "--log.level=error"],
    ]  # fmt: skip
    started = [subprocess.Popen(command, cwd=HERE.parent, stdout=subprocess.DEVNULL) for command in commands]
    try:
        yield server, started
    finally:
        for process in reversed(started):
            process.send_signal(signal.SIGTERM)
        for process in started:
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
