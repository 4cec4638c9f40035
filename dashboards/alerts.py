"""Makes alerts.yml: `python dashboards/alerts.py`. A mixin: its selectors, thresholds and labels are parameters.

    python dashboards/alerts.py --selector 'cluster="eu"' --set shm_free=0.05 --label team=storage --output -

Each alert has a runbook: docs/runbooks/ALERT.md.
"""

import argparse
import sys
import textwrap
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

FILE = Path(__file__).with_name("alerts.yml")
HEAD = """\
# Alert rules for bufferpool, made by alerts.py. `promtool test rules alerts_test.yml` shows each one fire and not fire.
groups:
  - name: bufferpool
    rules:
"""
BY = "job, instance, pool"


@dataclass(frozen=True)
class Mixin:
    """The parameters of the alerts."""

    job: str = "bufferpool"
    """The job of the exporter in Prometheus' configuration."""
    selector: str = ""
    """Matchers that are added to each metric, such as `cluster="eu"`."""
    runbooks: str = "https://example.org/bufferpool/docs/runbooks"
    """Where the runbooks are."""
    labels: dict[str, str] = field(default_factory=dict)
    """Labels that each alert gets beside its severity."""
    over_budget: float = 0.02
    """By which share of its budget a pool may be larger than it."""
    shm_free: float = 0.1
    """Below which share of the tmpfs its free space is low, if the pools may still grow by more."""
    memory_free: float = 0.05
    """Below which share of its limit the available memory of a machine or a cgroup is low."""
    clients: float = 0.9
    """Above which share of max_clients the client slots run short."""
    deaths: float = 3
    """More dead clients in a quarter of an hour are too many."""
    hangs_s: float = 60
    """A load or a flush that has made no progress for so many seconds hangs."""
    foreground_per_s: float = 0.1
    """More flushes a second by clients that need a frame are too many."""


@dataclass(frozen=True)
class Alert:
    """One alert. `$S` in its expression is the selector."""

    name: str
    expr: str
    wait: str
    severity: str
    summary: str
    description: str


def _new(metric: str, by: str, window: str) -> str:
    """A counter that has grown, or whose series is new: a series that begins at 1 has no increase."""
    total = f"sum by ({by}) ({metric}{{$S}})"
    before = f"sum by ({by}) ({metric}{{$S}} offset {window})"
    return f"sum by ({by}) (increase({metric}{{$S}}[{window}])) > 0\n  or ({total} > 0 unless {before})"


def of_memory(m: Mixin) -> list[Alert]:
    """Alerts about memory."""
    return [
        Alert("BufferPoolThrashing",
              f'sum by ({BY}) (rate(bufferpool_evictions_total{{reason="recycled"$,S}}[5m]) '
              f"* on ({BY}) group_left () bufferpool_page_size_bytes{{$S}}) * 60\n"
              f"  > sum by ({BY}) (bufferpool_budget_bytes{{$S}})\n"
              f"and sum by ({BY}) (rate(bufferpool_misses_total{{$S}}[5m]))\n"
              f"  > sum by ({BY}) (rate(bufferpool_hits_total{{$S}}[5m]))",
              "10m", "warning", "Pool {{ $labels.pool }} is thrashing",
              "It replaces more than its whole budget every minute, and misses more often than it hits. Its working set does not "
              "fit: give it more (pool.resize, or bufferpool resize), or find out what scans it (bufferpool spaces), or whose pins "
              "hold its frames (bufferpool clients)."),
        Alert("BufferPoolCannotShrink",
              f"bufferpool_resident_bytes{{$S}} + bufferpool_object_bytes{{$S}} > bufferpool_budget_bytes{{$S}} * {1 + m.over_budget:g}",
              "5m", "warning", "Pool {{ $labels.pool }} cannot shrink to its budget",
              "It holds {{ $value | humanize1024 }}B, more than it may, for five minutes. Pages are pinned, or dirty and not to be "
              "flushed: bufferpool events says which, and who pins them."),
        Alert("BufferPoolExhausted", f"sum by ({BY}) (increase(bufferpool_exhausted_total{{$S}}[10m])) > 0",
              "0m", "critical", "Pool {{ $labels.pool }} has no frame for its clients",
              "Requests that found every frame pinned or dirty and raised PoolExhausted, in ten minutes: {{ $value | printf `%.0f` }}. "
              "bufferpool clients, run twice, shows whose pins stay, bufferpool stat how many pages are dirty."),
        Alert("BufferPoolSharedMemoryNearlyFull",
              f"bufferpool_shm_free_bytes{{$S}} < bufferpool_shm_size_bytes{{$S}} * {m.shm_free:g}\n"
              "and on (job, instance) bufferpool_shm_free_bytes{$S}\n"
              "  < on (job, instance) sum by (job, instance) (\n"
              "    clamp_min(bufferpool_budget_bytes{$S} - bufferpool_resident_bytes{$S} - bufferpool_object_bytes{$S}, 0))",
              "5m", "critical", "The tmpfs of the pools on {{ $labels.instance }} is nearly full",
              "{{ $value | humanize1024 }}B are free, less than the pools may still grow by. When nothing is, pools cannot load "
              "pages (SharedMemoryFull). bufferpool ls shows pools that nobody uses; containers need a larger shm_size."),
        Alert("BufferPoolMachineMemoryLow",
              f"bufferpool_machine_available_bytes{{$S}} < bufferpool_machine_memory_bytes{{$S}} * {m.memory_free:g}",
              "5m", "warning", "The machine {{ $labels.instance }} has little memory left",
              "{{ $value | humanize1024 }}B are available. A steward gives memory of the pools back; without one they keep it."),
        Alert("BufferPoolCgroupMemoryLow",
              f"bufferpool_cgroup_free_bytes{{$S}} < bufferpool_cgroup_limit_bytes{{$S}} * {m.memory_free:g}",
              "5m", "warning", "The cgroup of the exporter on {{ $labels.instance }} is nearly full",
              "{{ $value | humanize1024 }}B are left below its limit. Pages of a pool are charged to the cgroup that touched "
              "them first."),
    ]  # fmt: skip


def of_stores(m: Mixin) -> list[Alert]:
    """Alerts about stores and write-back."""
    return [
        Alert("BufferPoolLoadFailing", _new("bufferpool_space_load_failures_total", f"{BY}, space, error", "10m"),
              "0m", "critical", "Pages of {{ $labels.space }} in pool {{ $labels.pool }} cannot be read",
              "Its store, or its loader, fails with an error of the class {{ $labels.error }}. bufferpool events has the page "
              "and the errno."),
        Alert("BufferPoolFlushFailing", _new("bufferpool_space_flush_failures_total", f"{BY}, space, error", "10m"),
              "0m", "critical", "Pages of {{ $labels.space }} in pool {{ $labels.pool }} cannot be written",
              "Its store fails with an error of the class {{ $labels.error }} (full: the disk, or a quota). Dirty pages stay in "
              "memory, and only there. bufferpool events has the page and the errno, bufferpool spaces the path."),
        Alert("BufferPoolStoreHangs", f"bufferpool_oldest_operation_seconds{{$S}} > {m.hangs_s:g}",
              "1m", "critical", "A store or a loader of pool {{ $labels.pool }} does not answer",
              "A {{ $labels.operation }} has made no progress for {{ $value | humanizeDuration }}: a disk, a network file system, a "
              "loader or a log that hangs. bufferpool operations names the space and page, or the cache and key, and the process."),
        Alert("BufferPoolHeldBackGrowing",
              "min_over_time(bufferpool_held_back_pages{$S}[10m]) > 0 and delta(bufferpool_held_back_pages{$S}[10m]) > 0",
              "10m", "warning", "Pages of pool {{ $labels.pool }} wait for the log, more and more of them",
              "{{ $value | printf `%.0f` }} dirty pages and more may not be written before the log is durable, and it does not get "
              "there. See the engine's log."),
        Alert("BufferPoolNoSteward",
              f"bufferpool_unsaved_pages{{$S}} > 0 and on ({BY}) bufferpool_steward{{$S}} == 0",
              "10m", "warning", "Nobody flushes pool {{ $labels.pool }}",
              "Pages of files and stores that are in memory only: {{ $value | printf `%.0f` }}. No steward runs. Start one: "
              "pool.start_steward(), or bufferpool steward."),
        Alert("BufferPoolForegroundFlushing", f"rate(bufferpool_foreground_flushes_total{{$S}}[5m]) > {m.foreground_per_s:g}",
              "10m", "warning", "Clients of pool {{ $labels.pool }} flush pages themselves",
              "Where a client needs a frame it finds only dirty pages, {{ $value | humanize }} times a second, and waits for "
              "their sync. Run a steward, let it flush earlier, or give the pool more."),
        Alert("BufferPoolCorruptPages", "increase(bufferpool_corrupt_pages_total{$S}[1h]) > 0",
              "0m", "critical", "Pool {{ $labels.pool }} read corrupt pages",
              "Pages whose checksum did not match what the store returned: {{ $value | printf `%.0f` }}. Suspect the disk."),
    ]  # fmt: skip


def of_clients(m: Mixin) -> list[Alert]:
    """Alerts about clients and the exporter."""
    return [
        Alert("BufferPoolClientsDying", f"increase(bufferpool_clients_reaped_total{{$S}}[15m]) > {m.deaths:g}",
              "0m", "warning", "Clients of pool {{ $labels.pool }} die often",
              "{{ $value | printf `%.0f` }} processes ended without detaching in a quarter of an hour. The pool has lost nothing; "
              "look for the OOM killer (dmesg), for crashes, and for a supervisor that kills."),
        Alert("BufferPoolDeadClients", 'bufferpool_clients{state="dead"$,S} > 0',
              "5m", "warning", "Dead clients of pool {{ $labels.pool }} are not reaped",
              "Clients that have been dead for five minutes and hold their pins and slots: {{ $value | printf `%.0f` }}. Run a steward, "
              "or bufferpool gc."),
        Alert("BufferPoolClientsNearMaximum",
              f"sum by ({BY}) (bufferpool_clients{{$S}}) > on ({BY}) bufferpool_max_clients{{$S}} * {m.clients:g}",
              "10m", "warning", "Pool {{ $labels.pool }} has few client slots left",
              "{{ $value | printf `%.0f` }} of them are taken. Further processes get TooManyClients; max_clients is fixed when a "
              "pool is created."),
        Alert("BufferPoolClientsRefused", "increase(bufferpool_refused_clients_total{$S}[10m]) > 0",
              "0m", "critical", "Pool {{ $labels.pool }} refuses clients",
              "Processes that found every client slot taken (TooManyClients), in ten minutes: {{ $value | printf `%.0f` }}."),
        Alert("BufferPoolUnreadable", "bufferpool_up{$S} == 0",
              "5m", "warning", "Pool {{ $labels.pool }} cannot be read",
              "It was removed, it is damaged, this user may not read it, or another version of the library made it: the "
              "metric bufferpool_unreadable and bufferpool ls say which."),
        Alert("BufferPoolExporterGone", f'up{{job="{m.job}"$,S}} == 0 or absent(up{{job="{m.job}"$,S}})',
              "2m", "critical", "The exporter of bufferpool does not answer",
              "Nothing is known of the pools, and the other alerts cannot fire. Start bufferpool export; it needs no pool to "
              "be there."),
    ]  # fmt: skip


def alerts(m: Mixin) -> list[Alert]:
    """All alerts, with the selector in their expressions."""
    comma = f", {m.selector}" if m.selector else ""
    made = [*of_memory(m), *of_stores(m), *of_clients(m)]
    return [
        replace(one, expr=one.expr.replace("$,S", comma).replace("{$S}", f"{{{m.selector}}}" if m.selector else ""))
        for one in made
    ]


def _rule(alert: Alert, m: Mixin) -> str:
    labels = "\n".join(f"  {name}: {value}" for name, value in {"severity": alert.severity, **m.labels}.items())
    text = f"""\
- alert: {alert.name}
  expr: |
{textwrap.indent(alert.expr, "    ")}
  for: {alert.wait}
  labels:
{textwrap.indent(labels, "  ")}
  annotations:
    summary: {alert.summary}
    runbook_url: {m.runbooks}/{alert.name}.html
    description: >-
{textwrap.indent(textwrap.fill(alert.description, 110, break_long_words=False, break_on_hyphens=False), "      ")}
"""
    return textwrap.indent(text, "      ")


def text(m: Mixin | None = None) -> str:
    """The text of alerts.yml."""
    m = m or Mixin()
    return HEAD + "\n".join(_rule(alert, m) for alert in alerts(m))


def main() -> None:
    parser = argparse.ArgumentParser(description="Makes the alert rules of bufferpool.")
    texts = {f.name: f.default for f in fields(Mixin) if f.type is str or f.type == "str"}
    for name, default in texts.items():
        parser.add_argument(f"--{name}", default=default, help="default: %(default)r")
    thresholds = [f.name for f in fields(Mixin) if f.type is float or f.type == "float"]
    parser.add_argument("--set", action="append", default=[], metavar="NAME=NUMBER", help=f"of {', '.join(thresholds)}")
    parser.add_argument("--label", action="append", default=[], metavar="NAME=VALUE", help="a label of each alert")
    parser.add_argument("--output", default=str(FILE), help="- is standard output (default: alerts.yml)")
    args = parser.parse_args()
    given = dict(pair.split("=", 1) for pair in args.set)
    if unknown := given.keys() - set(thresholds):
        parser.error(f"there is no threshold {', '.join(sorted(unknown))}; there are {', '.join(thresholds)}")
    made = text(
        Mixin(
            **{name: getattr(args, name) for name in texts},
            labels=dict(pair.split("=", 1) for pair in args.label),
            **{name: float(value) for name, value in given.items()},
        )
    )
    if args.output == "-":
        sys.stdout.write(made)
    else:
        Path(args.output).write_text(made)


if __name__ == "__main__":
    main()
