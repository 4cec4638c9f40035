"""A Prometheus server that has two scrapes, a minute apart, so that its answers can be computed by hand."""

import subprocess
import sys
import time
import urllib.error
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.conftest import ROOT, WAIT
from tests.support.scrape import Series

sys.path.insert(0, str(ROOT / "dashboards"))
import live

SPAN_S = 60
LABELS = {"job": "bufferpool", "instance": "here"}


def text_of(before: Series, after: Series, at: int) -> str:
    """The samples in OpenMetrics; a series that is new began at 0."""
    lines = []
    for name, labels in sorted(after):
        shown = ",".join(f'{key}="{value}"' for key, value in sorted({**dict(labels), **LABELS}.items()))
        for series, time_s in ((before, at), (after, at + SPAN_S)):
            lines.append(f"{name}{{{shown}}} {float(series.get((name, labels), 0.0))!r} {time_s}")
    return "\n".join([*lines, "# EOF", ""])


@contextmanager
def server_of(folder: Path, before: Series, after: Series) -> Iterator["Answers"]:
    """A server that has only these scrapes."""
    at = int(time.time()) // 7200 * 7200 - 3 * 7200
    (folder / "scrapes").write_text(text_of(before, after, at))
    (folder / "empty.yml").write_text("global: {}\n")
    made = ["promtool", "tsdb", "create-blocks-from", "openmetrics", str(folder / "scrapes"), str(folder / "data")]
    subprocess.run(made, check=True, capture_output=True)
    port = live.free_port()
    command = [
        "prometheus", f"--config.file={folder}/empty.yml", f"--storage.tsdb.path={folder}/data",
        f"--web.listen-address=127.0.0.1:{port}", "--log.level=error",
    ]  # fmt: skip
    with subprocess.Popen(command) as process:
        try:
            answers = Answers(port, at + SPAN_S)
            answers.wait(process)
            yield answers
        finally:
            process.terminate()


class Answers:
    """The answer of the server to a query at the time of the second scrape."""

    def __init__(self, port: int, at: int) -> None:
        self.port, self.at = port, at

    def wait(self, process: "subprocess.Popen[bytes]") -> None:
        end = time.monotonic() + WAIT
        while process.poll() is None and time.monotonic() < end:
            try:
                live.ask(self.port, "/api/v1/query", query="1")
                return
            except (TimeoutError, urllib.error.URLError, ConnectionError):
                time.sleep(0.05)
        raise AssertionError("Prometheus does not answer")

    def to(self, expr: str) -> dict[str, float]:
        """{the values of its labels, in the order of their names: the value}."""
        for name, value in {
            "$__rate_interval": f"{SPAN_S}s", "$__range": f"{SPAN_S}s", "$job": ".*", "$instance": ".*", "$pool": ".*",
        }.items():  # fmt: skip
            expr = expr.replace(name, value)
        found = live.ask(self.port, "/api/v1/query", query=expr, time=str(self.at))["result"]
        return {
            " ".join(value for key, value in sorted(one["metric"].items()) if key not in ("pool", *LABELS)): float(
                one["value"][1]
            )
            for one in found
        }
