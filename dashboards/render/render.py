"""Makes the picture of the dashboard: `python dashboards/render/render.py`.

Runs the workload, the exporter and Prometheus for some minutes, asks Prometheus for
what every panel of bufferpool.json shows, and draws the panels with Grafana's own
components (page.tsx, @grafana/ui) in a headless Chromium.

Needs Debian's prometheus, chromium, nodejs and npm; `npm ci` in this folder comes first.
It does not use Grafana's own engine of variables, queries and plugins: this script fills in the
variables, and page.tsx draws the heatmaps, which are a plugin in Grafana.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
DASHBOARDS = HERE.parent
ROOT = DASHBOARDS.parent
IMAGES = ROOT / "docs" / "images"
sys.path.append(str(DASHBOARDS))
import live  # noqa: E402 - a module of the folder above

POOL = "shop"
STEP_S = 2


def filled(expr: str) -> str:
    for name, value in {
        "$__rate_interval": "8s",
        "$__range": "10m",
        "$pool": POOL,
        "$job": ".+",
        "$instance": ".+",
    }.items():
        expr = expr.replace(name, value)
    return expr


def legend(target: dict[str, Any], labels: dict[str, str]) -> str:
    return re.sub(r"{{(\w+)}}", lambda m: labels.get(m[1], ""), target.get("legendFormat", ""))


def collect(seconds: float, period: float, data: Path) -> None:
    """Runs all programs, and writes the panels' data as JSON."""
    with tempfile.TemporaryDirectory() as folder, live.running(Path(folder), POOL, period) as (port, _):
        time.sleep(seconds)
        data.write_text(json.dumps(read(port, seconds - 12)))


def history(port: int, expr: str, when: dict[str, str]) -> Any:
    return live.ask(port, "/api/v1/query_range", query=expr, **when)["result"]


def read(port: int, seconds: float) -> dict[str, Any]:
    """Every panel with its series: [{name, times, values}]."""
    board = json.loads((DASHBOARDS / "bufferpool.json").read_text())
    now = int(time.time())
    when = {"start": str(now - seconds), "end": str(now), "step": str(STEP_S)}
    panels = []
    for panel in board["panels"]:
        series = []
        for target in panel.get("targets", []):
            for one in history(port, filled(target["expr"]), when):
                times, values = zip(*one["values"], strict=True)
                numbers = [None if value == "NaN" else float(value) for value in values]
                series.append(
                    {"name": legend(target, one["metric"]), "labels": one["metric"], "times": times, "values": numbers}
                )
        panels.append({"panel": panel, "series": series})
    marks = []
    for mark in board["annotations"]["list"]:
        expr = filled(mark["expr"]).replace("[1m]", f"[{STEP_S}s]").replace(f"changes(bufferpool_budget_bytes{{pool=~\"{POOL}\"}}[2s])",
                                                                        f'changes(bufferpool_budget_bytes{{pool=~"{POOL}"}}[3s])')  # fmt: skip
        expr = expr.replace(f"[{STEP_S}s]", "[3s]")
        for one in history(port, expr, when):
            marks += [{"name": mark["name"], "color": mark["iconColor"], "time": at} for at, _ in one["values"]]
    return {"panels": panels, "from": now - seconds, "to": now, "marks": marks}


def draw(data: Path, width: int, image: Path, rows: list[str], scheme: str) -> None:
    """Draws the page in Chromium into a PNG of the page's height."""
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder)
        settings = {"rows": rows, "width": width, "scheme": scheme}
        (page / "data.js").write_text(f"window.DATA = {data.read_text()}; window.SETTINGS = {json.dumps(settings)};")
        esbuild = HERE / "node_modules" / ".bin" / "esbuild"
        subprocess.run(
            [esbuild, HERE / "page.tsx", "--bundle", "--format=esm", f"--outfile={page}/page.js", "--loader:.svg=dataurl", "--loader:.woff2=dataurl", "--loader:.woff=dataurl",
             "--loader:.png=dataurl", "--loader:.ttf=dataurl", "--jsx=automatic", "--define:process.env.NODE_ENV=\"production\"", "--define:global=window",
             "--log-level=error", "--minify"], check=True)  # fmt: skip
        (page / "index.html").write_text(
            "<!doctype html><meta charset=utf-8><link rel=stylesheet href=page.css><body><div id=root></div><script src=data.js></script><script type=module src=page.js></script>"
        )
        height = height_of(data, rows)
        done = subprocess.run(
            ["chromium", "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--allow-file-access-from-files",
             "--enable-logging=stderr", f"--window-size={width},{height}", "--virtual-time-budget=20000", f"--screenshot={image}",
             f"file://{page}/index.html"],
            check=True, capture_output=True, text=True, timeout=180)  # fmt: skip
        wrong = [line for line in done.stderr.splitlines() if "CONSOLE" in line and "Uncaught" in line]
        if wrong:
            sys.exit("the page does not draw:\n" + "\n".join(wrong))
    print(f"{image}: {image.stat().st_size:,} bytes", file=sys.stderr)


def bring_up_to_date(data: Path) -> None:
    """Replaces the panels in the data of an earlier run by the present ones."""
    found = json.loads(data.read_text())
    now = {
        (panel["type"], panel["title"]): panel
        for panel in json.loads((DASHBOARDS / "bufferpool.json").read_text())["panels"]
    }
    for one in found["panels"]:
        one["panel"] = now[one["panel"]["type"], one["panel"]["title"]]
    data.write_text(json.dumps(found))


def height_of(data: Path, rows: list[str]) -> int:
    """The height of the shown rows in pixels, by the grid of page.tsx."""
    shown, units = False, 0
    last: dict[int, int] = {}
    for one in json.loads(data.read_text())["panels"]:
        panel = one["panel"]
        if panel["type"] == "row":
            shown = not rows or panel["title"] in rows
            units += 1 if shown else 0
        elif shown:
            last[panel["gridPos"]["y"]] = panel["gridPos"]["h"]
    return (units + sum(last.values())) * 38 + 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=240, help="how long the workload runs (default: 240)")
    parser.add_argument("--period", type=float, default=60, help="of the workload (default: 60)")
    parser.add_argument("--data", type=Path, help="draw this file of an earlier run; made if it is not there")
    options = parser.parse_args()
    data = options.data or Path(tempfile.mkdtemp()) / "data.json"
    if not data.exists():
        collect(options.seconds, options.period, data)
    bring_up_to_date(data)
    IMAGES.mkdir(exist_ok=True, parents=True)
    draw(data, 1280, IMAGES / "dashboard.png", ["At a glance", "Memory", "Hits and misses"], "dark")
    draw(
        data,
        1280,
        IMAGES / "dashboard-latency.png",
        ["Latency", "Waiting", "Write-back", "Clients", "The machine"],
        "dark",
    )


if __name__ == "__main__":
    main()
