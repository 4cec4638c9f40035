"""Makes bufferpool.json: `python dashboards/generate.py` (dependency group `dashboards`).

From top to bottom the panels show: memory, and what was given back with the reasons; hit ratios;
latencies; waits; write-back; caches; clients; the machine. Each panel's description says how to read it.
"""

import json
import sys
from pathlib import Path
from typing import Any

from grafana_foundation_sdk.builders import bargauge, common, dashboard, heatmap, prometheus, stat, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as kinds
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models import heatmap as heat
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

FILE = Path(__file__).with_name("bufferpool.json")
SOURCE = models.DataSourceRef(type_val="prometheus", uid="${datasource}")
MACHINE = 'job=~"$job", instance=~"$instance"'
MATCH = f'{MACHINE}, pool=~"$pool"'
HERE, THERE = f"{{{MATCH}}}", f"{{{MACHINE}}}"
RUNBOOKS = "https://example.org/bufferpool/docs/runbooks/index.html"
BYTES, RATIO, SECONDS, PER_SECOND, BYTES_PER_SECOND, COUNT = "bytes", "percentunit", "s", "ops", "binBps", "short"

# Colours that mean the same in every panel.
COLORS = {
    "clean": "green", "dirty": "orange", "pinned": "purple", "retired": "red", "busy": "yellow", "free": "#808080",
    "budget": "red", "maximum": "#808080", "minimum": "#606060", "resident": "blue", "kernel's count": "light-blue",
    "1s": "dark-orange", "10s": "orange", "1m": "light-yellow", "10m": "light-blue", "1h": "blue", "older": "dark-blue",
    "alive": "green", "dead": "red", "values of caches": "semi-dark-blue",
}  # fmt: skip

AGES = ("1s", "10s", "1m", "10m", "1h", "older")  # from the bottom of a stack to its top
BUDGETS = (0.125, 0.25, 0.5, 0.75, 1, 1.5, 2, 4, 8)  # the budgets of the advice, as multiples of the present one
LATENCIES = (
    ("load", "Duration of loads", "Time to fill a page from its store. Two bands are normal: loads from the page cache, and from the disk."),
    ("flush", "Duration of flushes", "Time to write and sync a batch of dirty pages. The sync dominates."),
    ("reclaim", "Duration of giving memory back", "One call to the kernel. It grows with the number of processes attached."),
    ("wait", "Duration of waits", "Clients waiting for each other. Waits of 20 ms and more mean a client that was stopped or died."),
)  # fmt: skip
PERCENTILES = ((0.5, "p50"), (0.95, "p95"), (0.99, "p99"))
STATES = ("pinned", "dirty", "retired", "busy", "clean", "free")

Query = tuple[str, str]
"""(expression, legend)."""


def query(expr: str, legend: str, index: int, instant: bool = False) -> prometheus.Dataquery:
    made = prometheus.Dataquery().datasource(SOURCE).expr(expr).legend_format(legend).ref_id(chr(65 + index))
    return made.instant() if instant else made.range()


def colored(panel: timeseries.Panel, names: set[str]) -> timeseries.Panel:
    """Gives fixed colours to the series that have one."""
    if "{{state}}" in names:
        names |= {"alive", "dead"}
    for name in sorted(names & COLORS.keys()):
        color = COLORS[name]
        fixed = {"mode": "fixed", "fixedColor": color}
        panel.override_by_name(name, [models.DynamicConfigValue(id_val="color", value=fixed)])
    return panel


def number(title: str, about: str, expr: str, unit: str, steps: list[tuple[float | None, str]]) -> stat.Panel:
    """A panel with one figure, coloured by thresholds."""
    thresholds = dashboard.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE)
    thresholds.steps([models.Threshold(value=at, color=color) for at, color in steps])
    made = stat.Panel().title(title).description(about).datasource(SOURCE).unit(unit).thresholds(thresholds)
    made.with_target(query(expr, "", 0)).height(4).span(4).no_value("none yet")
    made.graph_mode(kinds.BigValueGraphMode.NONE).color_mode(kinds.BigValueColorMode.VALUE)
    return made.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))


FREE = (None, None)  # an axis that follows the figures


def lines(
    title: str, about: str, unit: str, *queries: Query, style: str = "", axis: tuple[float | None, float | None] = FREE
) -> timeseries.Panel:
    """A panel with figures over time.

    ``style``: "stack" if their sum has a meaning, "bars", or both words. ``axis``: where it ends, and what it shows at least.
    """
    stack, bars, (top, at_least) = "stack" in style, "bars" in style, axis
    made = timeseries.Panel().title(title).description(about).datasource(SOURCE).unit(unit).min(0)
    made.height(8).span(12).line_width(1).show_points(kinds.VisibilityMode.NEVER)
    made.draw_style(kinds.GraphDrawStyle.BARS if bars else kinds.GraphDrawStyle.LINE)
    made.fill_opacity(60 if stack else 8)
    if stack:
        made.stacking(common.StackingConfig().mode(kinds.StackingMode.NORMAL).group("A"))
    if top is not None:
        made.max(top)
    if at_least is not None:
        made.axis_soft_max(at_least)
    legend = common.VizLegendOptions().display_mode(kinds.LegendDisplayMode.TABLE).show_legend(True)
    made.legend(legend.placement(kinds.LegendPlacement.RIGHT).calcs(["lastNotNull", "max"]))
    made.tooltip(common.VizTooltipOptions().mode(kinds.TooltipDisplayMode.MULTI))
    for i, (expr, legend_format) in enumerate(queries):
        made.with_target(query(expr, legend_format, i))
    return colored(made, {legend for _, legend in queries})


def unstacked(panel: timeseries.Panel, *names: str) -> timeseries.Panel:
    """Draws these series as lines over the stack."""
    for name in names:
        panel.override_by_name(
            name,
            [
                models.DynamicConfigValue(id_val="custom.stacking", value={"mode": "none", "group": "B"}),
                models.DynamicConfigValue(id_val="custom.fillOpacity", value=0),
                models.DynamicConfigValue(id_val="custom.lineWidth", value=2),
            ],
        )
    return panel


def latency(what: str, title: str, about: str) -> heatmap.Panel:
    """A heatmap of durations: a column for each interval, a row for each power of two."""
    expr = f"sum by (le) (increase(bufferpool_{what}_seconds_bucket{HERE}[$__rate_interval]))"
    made = heatmap.Panel().title(title).description(about).datasource(SOURCE).height(8).span(12).calculate(False)
    made.with_target(query(expr, "{{le}}", 0).format(PromQueryFormat.HEATMAP))
    made.y_axis(heatmap.YAxisConfig().unit(SECONDS).axis_placement(kinds.AxisPlacement.LEFT))
    made.color(
        heatmap.HeatmapColorOptions().mode(heat.HeatmapColorMode.SCHEME).scheme("Oranges").steps(64).exponent(0.5)
    )
    return made.filter_values(heatmap.FilterValueRange().le(1e-9)).show_legend().cell_gap(1)


def percentiles(what: str, title: str) -> timeseries.Panel:
    """The percentiles of the durations that a heatmap shows; Grafana draws no lines over a heatmap."""
    buckets = f"sum by (le) (rate(bufferpool_{what}_seconds_bucket{HERE}[$__rate_interval]))"
    return lines(f"{title}: percentiles",
                 "Half of all, 95 of a hundred and 99 of a hundred take at most this long. Estimated within their power of two.",
                 SECONDS, *((f"histogram_quantile({share}, {buckets})", name) for share, name in PERCENTILES))  # fmt: skip


def rate(metric: str, by: str = "", more: str = "") -> str:
    """The rate per second of a counter, over the selected pools."""
    group = f"sum by ({by})" if by else "sum"
    return f"{group} (rate(bufferpool_{metric}{{{MATCH}{more}}}[$__rate_interval]))"


def in_bytes(metric: str, by: str, more: str = "") -> str:
    """A number of pages or frames, converted to bytes."""
    return (
        f"sum by ({by}) (bufferpool_{metric}{{{MATCH}{more}}} * on (job, instance, pool) group_left () "
        f"bufferpool_page_size_bytes{HERE})"
    )


def hit_ratio(by: str, prefix: str = "") -> str:
    hits, misses = rate(f"{prefix}hits_total", by), rate(f"{prefix}misses_total", by)
    return f"{hits} / ({hits} + {misses})"


def glance() -> list[Any]:
    return [
        number("Budget in use", "The memory of pages and of values of caches, divided by the budget. A pool in use is near 100 %. "
               "Above that it cannot shrink to a lower budget: pages are pinned, or dirty and not flushed.",
               f"(sum(bufferpool_resident_bytes{HERE}) + sum(bufferpool_object_bytes{HERE})) / sum(bufferpool_budget_bytes{HERE})", RATIO,
               [(None, "green"), (1.02, "orange"), (1.1, "red")]),
        number("Hit ratio", "References to pages that were in the pool, divided by all references. Which value is good depends on the store: compare "
               "with yesterday, and with the panels on the working set and on latency.",
               hit_ratio(""), RATIO, [(None, "red"), (0.5, "orange"), (0.9, "green")]),
        number("Misses per second", "Pages that had to be loaded: each is one read of the store.", rate("misses_total"), PER_SECOND,
               [(None, "blue")]),
        number("Given back", "Bytes given back to the kernel in the time shown, for all reasons.",
               f"sum(increase(bufferpool_reclaimed_bytes_total{HERE}[$__range]))", BYTES, [(None, "blue")]),
        number("Clients", "Processes that are attached and alive.", f'sum(bufferpool_clients{{{MATCH}, state="alive"}})', COUNT,
               [(None, "blue")]),
        number("Clients reaped", "Processes that ended without detaching in the time shown: killed, or out of memory. The pool loses nothing by "
               "it, but find out why they ended.",
               f"round(sum(increase(bufferpool_clients_reaped_total{HERE}[$__range])))", COUNT, [(None, "green"), (0.5, "orange"), (5, "red")]),
    ]  # fmt: skip


def memory() -> list[Any]:
    ages = lines("Working set by age, against the budget",
                 "Pages by the time since their last use. The young ones are the working set: if they fill the budget, the pool is too "
                 "small; if most are old, it is larger than it need be, and trim_idle(…) gives the rest back.",
                 BYTES, *((in_bytes("pages", "age", f', age="{age}"'), age) for age in AGES), (f"sum(bufferpool_budget_bytes{HERE})", "budget"), style="stack")  # fmt: skip
    return [
        lines("How much memory", "The memory of the pages, between the bounds of the budget. The kernel's count includes the metadata: if it remains "
              "above the resident bytes by more than the metadata, run bufferpool check.",
              BYTES, (f"sum(bufferpool_resident_bytes{HERE})", "resident"), (f"sum(bufferpool_budget_bytes{HERE})", "budget"),
              (f"sum(bufferpool_kernel_bytes{HERE})", "kernel's count"), (f"sum(bufferpool_max_bytes{HERE})", "maximum"),
              (f"sum(bufferpool_min_bytes{HERE})", "minimum")),
        lines("Memory by content", "The frames that have memory, by what is in them. Dirty and pinned frames cannot be given back; clean and free ones "
              "can. Retired frames hold versions that were superseded and that a reader still pins. Values of caches are beside the frames.",
              BYTES, *((in_bytes("frames", "state", f', state="{state}"'), state) for state in STATES),
              (f"sum(bufferpool_object_bytes{HERE})", "values of caches"), style="stack"),
        lines("Given back to the kernel, by reason", "budget: the pool was made smaller; idle: untouched for a given time; pressure: the machine "
              "was short of memory; drop: pages were dropped; trim: by a call; client_exit: a client died.",
              BYTES_PER_SECOND, (rate("reclaimed_bytes_total", "reason"), "{{reason}}"), style="stack bars"),
        unstacked(ages, "budget"),
    ]  # fmt: skip


def advice() -> bargauge.Panel:
    """The miss-ratio curve: a bar for each budget."""
    made = (
        bargauge.Panel()
        .title("What another budget would give")
        .datasource(SOURCE)
        .unit(RATIO)
        .min(0)
        .max(1)
        .height(8)
        .span(12)
    )
    made.description(
        "The hit ratio that the pool would have with a multiple of its present budget (the miss-ratio curve), from a simulation in the "
        "pool. Where the bars stop growing, more memory does not help; where they hardly fall, memory can be given back."
    )
    for i, times in enumerate(BUDGETS):
        expr = f'avg(bufferpool_advised_hit_ratio{{{MATCH}, budget="{times}"}})'
        made.with_target(query(expr, f"{times} ×", i, instant=True))
    made.thresholds(
        dashboard.ThresholdsConfig()
        .mode(models.ThresholdsMode.ABSOLUTE)
        .steps([models.Threshold(value=None, color="blue")])
    )
    made.orientation(kinds.VizOrientation.HORIZONTAL).display_mode(kinds.BarGaugeDisplayMode.BASIC).no_value(
        "too early"
    )
    return made.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))


def hits() -> list[Any]:
    return [
        lines("Hit ratio by pool", "References to pages that were in the pool, divided by all references. A fall with a steady load means that the working set "
              "outgrew the budget.", RATIO, (hit_ratio("pool"), "{{pool}}"), axis=(1, None)),
        lines("Misses and evictions per second", "recycled: a frame went from one page to another, normal in a full pool; reclaimed: a page was evicted "
              "so that its memory could be given back.",
              PER_SECOND, (rate("misses_total"), "misses"), (rate("evictions_total", "reason"), "evictions, {{reason}}")),
        lines("Hit ratio by space", "Which file, loader or table the misses come from.", RATIO, (hit_ratio("pool, space", "space_"), "{{pool}}: {{space}}"),
              axis=(1, None)),
        lines("Resident pages by space", "How many pages of each space are in the pool.",
              BYTES, (in_bytes("space_resident_pages", "pool, space"), "{{pool}}: {{space}}"), style="stack"),
        lines("Read ahead", "Pages that scans and prefetch read before they were asked for, and those of them that were evicted unused: if many are, "
              "less should be read ahead, or the pool is too small.",
              PER_SECOND, (rate("prefetched_total"), "read ahead"), (rate("prefetched_unused_total"), "evicted unused")),
        lines("Age of evicted pages", "How long evicted pages had not been used, on average. Seconds mean that the pool evicts what is needed again.",
              SECONDS, (f"sum by (pool) (rate(bufferpool_eviction_age_seconds_sum{HERE}[$__rate_interval])) / "
                        f"sum by (pool) (rate(bufferpool_eviction_age_seconds_count{HERE}[$__rate_interval]))", "{{pool}}")),
        advice(),
        lines("Read from the stores", "Bytes that misses and read-ahead loaded. What exceeds the misses is read-ahead.",
              BYTES_PER_SECOND, (rate("loaded_bytes_total", "pool"), "{{pool}}")),
    ]  # fmt: skip


def latencies() -> list[Any]:
    return [
        panel for what, title, about in LATENCIES for panel in (latency(what, title, about), percentiles(what, title))
    ]


def waiting() -> list[Any]:
    return [
        lines("Waits by cause", "load: for a page that another client is filling; writer: for another client's write of the page; memory: for "
              "the memory lock, which misses need; frame: because no frame was free.",
              PER_SECOND, (rate("waits_total", "reason"), "{{reason}}"), style="stack"),
        lines("Time spent waiting and loading", "The share of time that clients spend, all of them together: 100 % is one client that does "
              "nothing else. sync is a part of flush.",
              RATIO, *((rate(f"{what}_seconds_sum"), what) for what in ("load", "wait", "flush", "sync", "reclaim"))),
    ]  # fmt: skip


def cached() -> list[Any]:
    return [
        lines("Hit ratio by cache", "Lookups of a key that found a value, divided by all.",
              RATIO, (hit_ratio("pool, cache", "cache_"), "{{pool}}: {{cache}}"), axis=(1, None)),
        lines("Values of caches", "Bytes of keys and values. Caches share the budget of their pool with its pages: what is used more for each byte stays.",
              BYTES, (f"sum by (pool, cache) (bufferpool_cache_bytes{HERE})", "{{pool}}: {{cache}}"), style="stack"),
        lines("Loads and evictions of caches", "A value is loaded once for all processes; the others wait for it. Refused values were not kept: too large, or "
              "there was no room. Superseded: loaded values that were not kept, because their key was put or deleted meanwhile.",
              PER_SECOND, *((rate(f"cache_{name}_total"), name) for name in ("loads", "waits", "evictions", "refused", "superseded"))),
        lines("Failed loads", "Loads of pages that raised, requests that found no frame (exhausted), and loads of values of caches that raised. The "
              "events of the pool say of which space, and why.",
              PER_SECOND, (rate("load_failures_total"), "pages"), (rate("exhausted_total"), "exhausted"),
              (rate("cache_load_failures_total"), "values of caches")),
    ]  # fmt: skip


def write_back() -> list[Any]:
    return [
        lines("Dirty pages", "Pages with changes that the store lacks. Held back: pages that must not be written before the log is durable (the write-ahead rule); "
              "if they grow, check the log.",
              BYTES, (in_bytes("dirty_pages", "pool"), "{{pool}} dirty"), (in_bytes("held_back_pages", "pool"), "{{pool}} held back")),
        lines("Pages flushed per second", "foreground: batches that a client had to write itself because only dirty pages were left. The steward, or "
              "a larger budget, avoids this.",
              PER_SECOND, (rate("flushed_pages_total"), "pages"), (rate("foreground_flushes_total"), "foreground batches"),
              (rate("flush_failures_total"), "failures"), (rate("checkpoints_total"), "checkpoints")),
        lines("Longest operation", "How long the one of each kind that has waited longest has made no progress: loads and flushes of pages, loads of values of "
              "caches, syncs of the log, saves of the working set. It grows where one hangs: bufferpool operations names the page or the key, and the process.",
              SECONDS, (f"max by (operation) (bufferpool_oldest_operation_seconds{HERE})", "{{operation}}"), axis=(None, 1)),
        lines("Operations under way", "What is under way at the moment of the scrape, by kind.",
              COUNT, (f"sum by (operation) (bufferpool_pending_operations{HERE})", "{{operation}}")),
    ]  # fmt: skip


def clients() -> list[Any]:
    return [
        lines("Attached clients", "dead: died and not yet reaped. The steward reaps them, or a client that waits for them.",
              COUNT, (f"sum by (state) (bufferpool_clients{HERE})", "{{state}}"), (f"sum(bufferpool_steward{HERE})", "stewards"),
              (f"sum(bufferpool_max_clients{HERE})", "maximum")),
        lines("Deaths and their consequences", "Clients reaped, the pins that they left, and the locks that were taken over and repaired, in the four "
              "scrapes before each point: one death is a few bars side by side, and one annotation.", COUNT,
              *((f"round(sum(increase(bufferpool_{metric}_total{HERE}[$__rate_interval])))", name) for metric, name in
                (("clients_reaped", "clients reaped"), ("pins_broken", "pins broken"), ("lock_repairs", "locks repaired"))), style="bars"),
    ]  # fmt: skip


def machine() -> list[Any]:
    return [
        lines("Memory pressure", "The share of time in which some task, or all of them (full), waited for memory (PSI): of the machine, and of the exporter's "
              "cgroup. The steward gives memory back when that of its own cgroup rises, or the machine's if it has none.", RATIO,
              *((f"rate(bufferpool_memory_pressure_seconds_total{{{MACHINE}, cgroup{match}}}[$__rate_interval])", legend)
                for match, legend in (('=""', "machine, {{state}}"), ('!=""', "{{cgroup}}, {{state}}"))), axis=(None, 0.1)),
        lines("Shared memory and the machine", "Free memory in the tmpfs that holds the pools, and in the machine. Containers start with 64 MiB of "
              "/dev/shm.", BYTES, (f"bufferpool_shm_free_bytes{THERE}", "free in the tmpfs"), (f"bufferpool_shm_size_bytes{THERE}", "size of the tmpfs"),
              (f"bufferpool_machine_available_bytes{THERE}", "available memory")),
    ]  # fmt: skip


ROWS = (
    ("At a glance", glance),
    ("Memory", memory),
    ("Hits and misses", hits),
    ("Latency", latencies),
    ("Waiting", waiting),
    ("Write-back", write_back),
    ("Caches, and what fails", cached),
    ("Clients", clients),
    ("The machine", machine),
)

# The name, the label and the series of each variable: each is chosen among those that the ones before it leave.
VARIABLES = (
    ("job", "Job", "bufferpool_build_info"),
    ("instance", "Instance", 'bufferpool_build_info{job=~"$job"}'),
    ("pool", "Pool", f"bufferpool_up{THERE}"),
)

# Grafana's Prometheus source has options for annotations that the SDK's type lacks.
ANNOTATIONS = {
    "Budget changed": (f"changes(bufferpool_budget_bytes{HERE}[1m]) > 0", "blue", "{{pool}}: the budget changed"),
    "Client reaped": (
        f"increase(bufferpool_clients_reaped_total{HERE}[1m]) > 0",
        "red",
        "{{pool}}: a client died and was reaped",
    ),
}


def build() -> dict[str, Any]:
    """The dashboard, as an object for JSON."""
    board = dashboard.Dashboard("Buffer pools").uid("bufferpool").tags(["bufferpool"]).readonly().refresh("10s")
    board.description("Pools of bufferpool: memory, hits, latency, waiting, write-back, clients.")
    board.time("now-30m", "now").tooltip(models.DashboardCursorSync.CROSSHAIR)
    board.with_variable(dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus"))
    for name, label, series in VARIABLES:
        variable = (
            dashboard.QueryVariable(name).label(label).datasource(SOURCE).query(f"label_values({series}, {name})")
        )
        variable.refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED).multi(True).include_all(True).all_value(".+")
        board.with_variable(variable.current(models.VariableOption(text="All", value="$__all")))
    board.link(dashboard.DashboardLink("Runbooks").type(models.DashboardLinkType.LINK).url(RUNBOOKS).target_blank(True))
    for name in ANNOTATIONS:
        board.annotation(
            dashboard.AnnotationQuery().name(name).datasource(SOURCE).enable(True).icon_color(ANNOTATIONS[name][1])
        )
    for title, panels in ROWS:
        board.with_row(dashboard.Row(title))
        for panel in panels():
            board.with_panel(panel)
    made: dict[str, Any] = json.loads(JSONEncoder(sort_keys=True).encode(board.build()))
    for i, panel in enumerate(made["panels"]):
        panel["id"] = i + 1
    for annotation in made["annotations"]["list"]:
        expr, _, title = ANNOTATIONS[annotation["name"]]
        annotation |= {"expr": expr, "step": "60s", "titleFormat": title}
    return made


def text() -> str:
    """The text of bufferpool.json."""
    return json.dumps(build(), indent=1, sort_keys=True, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    FILE.write_text(text())
    print(f"{FILE}: {len(build()['panels'])} panels and rows", file=sys.stderr)
