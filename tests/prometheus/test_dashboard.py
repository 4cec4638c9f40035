"""The dashboard and the alerts: they agree with their source, and every expression in them works.

The last is tried with a real Prometheus server (Debian's package `prometheus`), the
exporter, and dashboards/workload.py at work.
"""

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from bufferpool.cli import make_parser
from bufferpool.machine.pressure import psi_files
from bufferpool.observer import unsaved_pages
from bufferpool.prometheus import server as exporter
from bufferpool.prometheus.collector import AGES
from tests.conftest import ROOT, SHM, WAIT, new_name, remove, wait_until

FOLDER = ROOT / "dashboards"
sys.path.append(str(FOLDER))
import alerts  # noqa: E402 - modules of that folder
import live  # noqa: E402 - a module of that folder
import workload  # noqa: E402 - a module of that folder

DASHBOARD = json.loads((FOLDER / "bufferpool.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
PERIOD = 5.0
needs_prometheus = pytest.mark.skipif(
    not (shutil.which("prometheus") and shutil.which("promtool")),
    reason="no prometheus here: apt-get install prometheus (Debian's package has promtool too)",
)


# ---- the files ---------------------------------------------------------------------------


def test_the_dashboard_is_what_its_source_makes():
    pytest.importorskip("grafana_foundation_sdk", reason="pip install --group dashboards")
    done = subprocess.run([sys.executable, "-c", "import generate; print(generate.text(), end='')"], cwd=FOLDER,
                          capture_output=True, text=True, check=True)  # fmt: skip
    assert done.stdout == (FOLDER / "bufferpool.json").read_text(), "run python dashboards/generate.py"


def test_the_workload_ended_while_it_begins_leaves_nothing():
    name = new_name()
    started = subprocess.Popen([sys.executable, str(FOLDER / "workload.py"), "--name", name], cwd=ROOT)
    wait_until((SHM / name).exists, "the workload's pool")
    started.send_signal(signal.SIGTERM)
    try:
        assert started.wait(WAIT) == 0
        assert not (SHM / name).exists()
    finally:
        remove(SHM / name)


def test_the_workload_ended_with_dirty_pages_leaves_nothing(tmp_path):
    """The workload could not remove its pool, which had unsaved pages, although it removes their file as well."""
    name, said = new_name(), tmp_path / "said"
    command = [sys.executable, str(FOLDER / "workload.py"), "--name", name, "--period", "10000"]
    with open(said, "w") as file:
        started = subprocess.Popen(command, cwd=ROOT, stdout=file, start_new_session=True)
    try:
        wait_until(lambda: "workers" in said.read_text(), "SIGTERM ends the work from here on")
        wait_until(lambda: unsaved_pages(name).get("orders", 0) > 20, "pages that are dirty")
        started.send_signal(signal.SIGTERM)
        assert started.wait(WAIT) == 0
        assert not (SHM / name).exists()
    finally:
        if started.poll() is None:
            os.killpg(started.pid, signal.SIGKILL)
            started.wait()
        remove(SHM / name)


def test_the_workload_hears_a_signal_that_comes_just_before_it_sleeps(monkeypatch):
    """It slept for a quarter of an hour at once. On a busy machine SIGTERM arrived after Python's last look for signals and
    before the sleep, and the workload ended after the sleep."""
    sleeps, now = [], [0.0]

    def sleep(seconds):
        sleeps.append(seconds)
        now[0] += seconds

    monkeypatch.setattr(workload, "time", SimpleNamespace(sleep=sleep, monotonic=lambda: now[0]))
    show = object.__new__(workload.Show)
    show.period = 10000.0
    show.steps = lambda: [(0.15, lambda: None)]
    show.run(3000.0)
    assert now[0] == pytest.approx(3000)
    assert 0 < max(sleeps) <= 1


def _unit(panel):
    """The unit of a panel's values; a heatmap has it at its axis, and no settings for fields."""
    return panel.get("fieldConfig", {"defaults": {}})["defaults"].get("unit")


def test_every_panel_says_what_it_shows():
    assert len(PANELS) > 20
    titles = [panel["title"] for panel in PANELS]
    assert len(set(titles)) == len(titles)
    for panel in PANELS:
        assert len(panel["description"]) > 30, panel["title"]
        assert panel["datasource"]["uid"] == "${datasource}"
        unit = _unit(panel) or panel["options"]["yAxis"]["unit"]
        assert unit in ("bytes", "binBps", "percentunit", "ops", "s", "short")
        for target in panel["targets"]:
            assert "$pool" in target["expr"] or re.search(r"memory_pressure|shm|machine", target["expr"])


def expressions(text: str) -> list[str]:
    """The matchers of each metric in an expression; a metric without any is an empty one."""
    return re.findall(r"\bbufferpool_[a-z_]+(\{[^}]*\})?", text)


def test_the_rules_of_the_dashboard_linter_hold():
    """Grafana's dashboard-linter (docs/rules of its repository), as far as a rule concerns this dashboard."""
    variables = {v["name"]: v for v in DASHBOARD["templating"]["list"]}
    # template-datasource-rule, template-job-rule, template-instance-rule
    assert variables["datasource"]["type"] == "datasource"
    assert variables["datasource"]["label"] == "Data source"
    for name in ("job", "instance", "pool"):
        found = variables[name]
        assert (found["type"], found["multi"], found["includeAll"]) == ("query", True, True)
        assert found["label"] == name.capitalize()
        assert found["allValue"] == ".+", "an empty label must not match"
        assert found["datasource"]["uid"] == "${datasource}"
        assert found["refresh"] == 2  # template-on-time-change-reload-rule
    assert DASHBOARD["editable"] is False  # template-uneditable-rule: it is generated
    for panel in PANELS:
        assert panel["title"]  # panel-title-description-rule
        assert panel["description"]
        assert panel["datasource"]["uid"] == "${datasource}"  # panel-datasource-rule
        assert _unit(panel) or panel["type"] == "heatmap", panel["title"]  # panel-units-rule
        assert panel["targets"]  # panel-no-targets-rule
        for target in panel["targets"]:
            expr = target["expr"]
            for matchers in expressions(expr):  # target-job-rule, target-instance-rule
                assert 'job=~"$job"' in matchers, (panel["title"], expr)
                assert 'instance=~"$instance"' in matchers, (panel["title"], expr)
            counters = re.findall(r"(\w+)\(bufferpool_\w+_total", expr)  # target-counter-agg-rule
            assert set(counters) <= {"rate", "increase"}, expr
            assert len(counters) == len(re.findall(r"bufferpool_\w+_total", expr)), expr
            for window in re.findall(r"\[([^]]+)\]", expr):  # target-rate-interval-rule
                assert window in ("$__rate_interval", "$__range"), expr
            for window in re.findall(r"\brate\([^\[]*\[([^]]+)\]", expr):
                assert window == "$__rate_interval", expr
    for mark in DASHBOARD["annotations"]["list"]:
        assert all('job=~"$job"' in matchers for matchers in expressions(mark["expr"]))


def test_the_legends_have_the_last_value_and_the_highest():
    """Three lines of similar colour without a number could not be told apart on a phone at night.

    Below a panel a legend shows three lines: of the memory by content, the largest part was not named.
    """
    for panel in PANELS:
        if panel["type"] == "timeseries":
            legend = panel["options"]["legend"]
            assert (legend["calcs"], legend["placement"]) == (["lastNotNull", "max"], "right"), panel["title"]


def test_the_dashboard_links_to_the_runbooks():
    assert any("runbooks" in link["url"] for link in DASHBOARD["links"])


def test_every_metric_that_is_used_is_exported(make_pool):
    pool = make_pool()
    pool.open_derived("d", 4, lambda n, out: None)
    text = exporter.text_of(pool.name)
    exported = {
        *re.findall(r"^(\w+)", text, re.MULTILINE),
        *re.findall(r"^# TYPE (\w+) (?:gauge|counter)", text, re.MULTILINE),
    }
    files = (FOLDER / "bufferpool.json").read_text() + (FOLDER / "alerts.yml").read_text()
    used = set(re.findall(r"bufferpool_[a-z_]+", files))
    assert used - exported == set()
    assert set(AGES) <= set(re.findall(r'age=\\"(\w+)\\"', files))


def alert_names() -> list[str]:
    return re.findall(r"- alert: (\w+)", (FOLDER / "alerts.yml").read_text())


def test_the_alerts_are_what_their_source_makes():
    assert alerts.text() == (FOLDER / "alerts.yml").read_text(), "run python dashboards/alerts.py"


def test_every_alert_has_a_runbook():
    """Somebody who has only the text of an alert finds the commands that show the cause."""
    text = (FOLDER / "alerts.yml").read_text()
    pages = {path.stem: path.read_text() for path in (ROOT / "docs" / "runbooks").glob("BufferPool*.md")}
    assert pages.keys() == set(alert_names())
    for one in alerts.alerts(alerts.Mixin()):
        assert f"/runbooks/{one.name}.html" in text
        assert "## Find the cause" in pages[one.name]
        assert one.expr in pages[one.name], "the page shows another expression than the alert has"


def test_every_runbook_says_how_to_see_that_it_is_over():
    """After a mend the last event was still a failure, and nothing said which figure shows that the fault has gone."""
    for path in (ROOT / "docs" / "runbooks").glob("BufferPool*.md"):
        over = path.read_text().partition("## It is over when\n")[2].partition("\n## ")[0]
        assert re.search(r"`(bufferpool|curl|cat|df|free) ", over), f"{path.name} names no command that shows the end"


def test_the_commands_of_the_runbooks_exist():
    parser = make_parser()
    for path in (ROOT / "docs" / "runbooks").glob("BufferPool*.md"):
        for words in re.findall(r"`bufferpool ([a-z]+(?: [^`|]+)?)[|`]", path.read_text()):
            given = [word if word != "SIZE" else "1MiB" for word in words.split()]
            if given[0] in ("steward", "top", "export") or len(given) > 1:
                parser.parse_args(given)


@needs_prometheus
def test_the_parameters_of_the_alerts_reach_each_of_them(tmp_path):
    made = alerts.text(alerts.Mixin(selector='cluster="eu"', labels={"team": "storage"}, shm_free=0.25, job="pools"))
    for one in alerts.alerts(alerts.Mixin(selector='cluster="eu"')):
        names = re.findall(r"\b(?:bufferpool_[a-z_]+|up)\b(?=[{\[ \n)]|$)", one.expr)
        assert one.expr.count('cluster="eu"') == len(names) > 0, one.expr
    assert made.count("team: storage") == len(alert_names())
    assert "* 0.25" in made
    assert 'up{job="pools", cluster="eu"}' in made
    (tmp_path / "a.yml").write_text(made)
    subprocess.run(["promtool", "check", "rules", str(tmp_path / "a.yml")], check=True, capture_output=True)


@needs_prometheus
def test_promtool_accepts_the_files(tmp_path):
    for command in (["test", "rules", "alerts_test.yml"], ["check", "config", "prometheus.yml"]):
        done = subprocess.run(["promtool", *command], cwd=FOLDER, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_tested_both_ways():
    tests = (FOLDER / "alerts_test.yml").read_text()
    assert len(alert_names()) > 15
    for alert in alert_names():
        assert re.search(rf"{alert}, eval_time: \w+, exp_alerts: \[\]", tests), f"{alert} is not shown not to fire"
        assert re.search(rf"alertname: {alert}\n\s+eval_time: \w+\n\s+exp_alerts:\n\s+- ", tests), (
            f"{alert}: not to fire"
        )


# ---- a real server -------------------------------------------------------------------------


class Prometheus:
    """A running server's HTTP API."""

    def __init__(self, port: int, pool: str) -> None:
        self.pool, self.port = pool, port
        self.get = partial(live.ask, port)

    def filled(self, expr: str) -> str:
        """The expression as Grafana would send it."""
        values = {
            "$__rate_interval": "4s", "$__range": "15s", "$pool": self.pool, "$job": "bufferpool", "$instance": ".+",
        }  # fmt: skip
        for name, value in values.items():
            expr = expr.replace(name, value)
        assert "$" not in expr, expr
        return expr

    def query(self, expr: str) -> list[float]:
        """The values now. Fails where the server does."""
        try:
            result = self.get("/api/v1/query", query=self.filled(expr))["result"]
        except urllib.error.HTTPError as error:
            if error.code == 503:  # it is starting
                raise
            pytest.fail(f"{expr}\n{error.read().decode()}")
        return [float(one["value"][1]) for one in result]

    def history(self, expr: str, seconds: float) -> list[float]:
        """All the values of the last time."""
        now = time.time()
        result = self.get(
            "/api/v1/query_range", query=self.filled(expr), start=str(now - seconds), end=str(now), step="1"
        )["result"]
        return [float(value) for one in result for _, value in one["values"]]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """A workload, the exporter and Prometheus, for some seconds."""
    name = new_name()
    with live.running(tmp_path_factory.mktemp("prometheus"), name, PERIOD) as (port, started):
        made = Prometheus(port, name)
        wait_for_all(made, started)
        yield made
    left = (SHM / name).exists()
    remove(SHM / name)
    assert not left, "the workload did not remove its pool"


def wait_for_all(server: Prometheus, started: list[subprocess.Popen[bytes]]) -> None:
    """Until the server has seen a round of everything."""
    end = time.monotonic() + WAIT
    while time.monotonic() < end:
        assert [process.poll() for process in started] == [None, None, None], "a program ended"
        try:
            if server.query("increase(bufferpool_clients_reaped_total[30s]) > 0") and all(
                server.query(f'increase(bufferpool_reclaimed_bytes_total{{reason="{why}"}}[30s]) > 0')
                for why in ("budget", "trim", "drop")
            ):
                return
        except (urllib.error.URLError, ConnectionError):
            pass  # it is starting
        time.sleep(0.5)
    pytest.fail("the workload, the exporter or Prometheus did not come up within a minute")


@needs_prometheus
def test_every_expression_of_every_panel_has_values(server):
    for panel in PANELS:
        for target in panel["targets"]:
            if "memory_pressure" in target["expr"] and not Path("/proc/pressure/memory").exists():
                continue  # this kernel has no PSI, and there is nothing to show
            if 'cgroup!=""' in target["expr"] and not any(psi_files()):
                continue  # the exporter is in no cgroup of version 2, or in the root
            values = server.query(target["expr"])
            values = values if any(not math.isnan(v) for v in values) else server.history(target["expr"], 10)
            assert [v for v in values if not math.isnan(v)], f"{panel['title']}: {target['expr']}"
            assert all(v >= 0 or math.isnan(v) for v in values), f"{panel['title']}: {target['expr']}"


@needs_prometheus
def test_the_panels_show_what_happens(server):
    """Not only zeros: the workload has something for each."""
    assert sum(server.history('sum(rate(bufferpool_reclaimed_bytes_total{reason="budget"}[4s]))', 20)) > 0
    panels = {panel["title"]: panel["targets"] for panel in PANELS}
    for title in ("How much memory", "Memory by content", "Misses and evictions per second", "Duration of loads", "Duration of giving memory back",
                  "Time spent waiting and loading", "Attached clients"):  # fmt: skip
        assert any(value > 0 for target in panels[title] for value in server.history(target["expr"], 20)), title


@needs_prometheus
@pytest.mark.skipif(
    not ((FOLDER / "scenes" / "node_modules").exists() and shutil.which("node")),
    reason="Grafana's engine is not here: cd dashboards/scenes && npm ci",
)
def test_the_engine_of_grafana_runs_the_dashboard(server):
    """Our own replacement of the variables cannot show that Grafana's engine fills in the same, or runs the queries at all."""
    done = subprocess.run(
        ["node", "check.cjs", f"http://127.0.0.1:{server.port}", json.dumps({"pool": [server.pool]})],
        cwd=FOLDER / "scenes", capture_output=True, text=True, timeout=WAIT, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    for seen in (found, found["chosen"]):
        assert [panel for panel in seen["panels"] if panel["error"]] == []
        assert {panel["title"] for panel in seen["panels"]} == {panel["title"] for panel in PANELS}
        assert [name for name, one in seen["variables"].items() if one["error"] or not one["options"]] == []
        assert all(one["events"] for one in seen["annotations"]), seen["annotations"]
        assert not any("$" in one["expr"] for one in seen["sent"])
    assert all('pool=~".+"' in one["expr"] for one in found["sent"] if "pool=" in one["expr"])
    of_pools = [one["expr"] for one in found["chosen"]["sent"]]
    assert len(of_pools) > 80
    assert all(f'pool=~"{server.pool}"' in expr for expr in of_pools)


@needs_prometheus
def test_every_variable_finds_its_values(server):
    chosen = {"job": "bufferpool", "pool": server.pool}
    for variable in [v for v in DASHBOARD["templating"]["list"] if v["type"] == "query"]:
        found = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"])
        assert found is not None
        assert found[2] == variable["name"]
        values = server.get(f"/api/v1/label/{found[2]}/values", **{"match[]": server.filled(found[1])})
        assert len(values) == 1
        assert values[0] == chosen.get(found[2], values[0])


@needs_prometheus
def test_every_annotation_marks_something(server):
    marks = DASHBOARD["annotations"]["list"]
    assert len(marks) == 2
    for mark in marks:
        assert server.history(mark["expr"], 30), mark["name"]


# Their series are not there where no store has failed, or the cgroup has no limit.
RARE = ("BufferPoolLoadFailing", "BufferPoolFlushFailing", "BufferPoolCgroupMemoryLow")


@needs_prometheus
def test_every_alert_can_be_evaluated(server):
    """As it stands, and with comparisons that keep both outcomes, so that no part of it finds nothing."""
    groups = server.get("/api/v1/rules")["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert len(rules) == (FOLDER / "alerts.yml").read_text().count("- alert:")
    for rule in rules:
        assert rule["health"] in ("ok", "unknown"), rule
        server.query(rule["query"])
        kept, comparisons = re.subn(r" (>|<|>=|<=|==|!=) ", r" \1 bool ", rule["query"])
        assert comparisons, rule["name"]
        assert rule["name"] in RARE or server.query(kept), rule["name"]
