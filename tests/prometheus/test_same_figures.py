"""One workload, counted by hand: `top`, `stat`, the metrics and the dashboard show the same figures, and the right ones.

The dashboard's own queries are asked of a Prometheus server that has two scrapes, a minute apart: before and after.
"""

import asyncio
import errno
import json
import pickle
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pytest

import bufferpool as bp
from bufferpool.client import trouble
from bufferpool.errors import PageCorrupt, PoolExhausted, StoreError, TooManyClients
from bufferpool.figures.names import OPERATION_KINDS
from bufferpool.prometheus import collector, server
from bufferpool.stores.checksum import seal
from tests.conftest import PAGE, ROOT, WAIT
from tests.support.backfill import SPAN_S, server_of
from tests.support.memory_store import Memory
from tests.support.scrape import get, read

DASHBOARD = json.loads((ROOT / "dashboards" / "bufferpool.json").read_text())
TRIMMED, LOG_PAGE = 61, 65536
HELD, HELD_BLOCK = 10_000, 3 * 4096  # a value that has a block of its own, and the memory of that
EVICTED = 59  # of the trimmed pages; two are old versions, free already


def record(key_bytes: int, value_bytes: int) -> int:
    """The bytes of a value in the log: a head of 8 bytes and the key, then the value, each up to a multiple of 16."""
    return -(-(-(-(8 + key_bytes) // 16) * 16 + value_bytes) // 16) * 16


# A key is a tag, and the eight bytes of an int, or the text. An error is its text and its pickle.
INT_KEY, TEXT_KEY = 1 + 8, 1 + len("held")
ERROR = ZeroDivisionError("integer division or modulo by zero")
TOLD = pickle.dumps((f"ZeroDivisionError: {ERROR}", pickle.dumps(ERROR, 5)), 5)
CACHE_BYTES = 5 * record(INT_KEY, 100) + record(TEXT_KEY, HELD) + record(INT_KEY, len(TOLD))

EVENTS = {
    ("created", "asked"): 1, ("trimmed", "asked"): 1, ("reaped", "died"): 1, ("load_failed", "store"): 2,
    ("flush_failed", "store"): 1, ("flush_recovered", "store"): 1,
}  # fmt: skip


def read_and_wait(pool, ready):
    """A client that pins a page until it is killed."""
    page = pool.open_file(pool.space("table").path, name="table")[150]
    ready.set()
    time.sleep(600)
    del page


def attach(name):
    with pytest.raises(TooManyClients):
        bp.Pool.attach(name)


def go_wrong(pool, table, data_file, child, spawn):
    """What an operator has alerts for: each counted."""
    ready = spawn.Event()
    victim = child(read_and_wait, pool, ready)  # 1 miss, 1 load, 1 pin
    assert ready.wait(WAIT)
    child(attach, pool.name).result()  # 1 client is refused: both slots are taken
    victim.kill()
    assert pool.reap() == 1  # 1 pin is broken; event
    full = Memory(10)
    disk = pool.open_store("disk", full, mode="r+")
    with disk.write(3) as page:  # 1 miss, 1 load, 1 published
        page[:] = 6
    full.fail_write = OSError(errno.ENOSPC, "full")
    with pytest.raises(StoreError):
        disk.flush()  # 1 failed flush; event
    full.fail_write = None
    assert disk.flush() == 1  # 1 flush, 1 page; event
    path = data_file(4)
    pages = np.fromfile(path, np.uint8).reshape(4, PAGE)
    for n, page in enumerate(pages):
        seal(page, n)
    right = pages[1].tobytes()
    pages[1:3, 7] += 1
    pages.tofile(path)
    sealed = pool.open_file(path, "r", name="sealed", checksum=True, repair=lambda n, _: right if n == 1 else None)
    assert sealed[1][7] == right[7]  # 1 miss, 1 load, 1 corrupt, 1 repaired
    with pytest.raises(PageCorrupt):
        sealed[2]  # 1 miss, 1 corrupt, 1 failure, and a frame that is free; event
    pool.checkpoint(1)  # 1 checkpoint; table's page 5 is written: 1 flush, 1 page
    del table


def work(pool, data_file, child, spawn):
    """A workload of which each figure is known."""
    table = pool.open_file(data_file(200), "r+", name="table")
    store = Memory(40)
    bad = pool.open_store("bad", store, mode="r+")
    held = [table[n] for n in range(64)]  # 64 misses: the pool is full, and pinned
    with pytest.raises(PoolExhausted):
        table[64]  # 1 miss, 1 failed load, 1 wait for a frame
    del held
    for n in range(10):  # 10 hits
        table[n]
    for n in range(
        4
    ):  # 4 hits, 4 published; the first copy takes a frame of another page, the others that of the old one
        with table.write(n) as page:
            page[:] = 1
    assert pool.flush() == 4
    with table.write(5) as page:  # 1 hit; one dirty page
        page[:] = 2
    scratch = pool.open_scratch("scratch", n_pages=4)
    with scratch.write(0) as page:  # no miss; another page is evicted
        page[:] = 3
    assert table.prefetch(range(100, 105)) == 5  # 5 loads; 4 pages are evicted
    for n in range(100, 103):  # 3 misses
        table[n]
    table.drop(103, 1)
    with pool.publish_many() as group:  # 2 hits, 2 published as one
        group.write(table, 5)[:] = 4
        group.write(scratch, 0)[:] = 4
    assert pool.trim(TRIMMED * PAGE) == TRIMMED * PAGE  # all but three: one was read ahead and not used
    pool.durable_lsn = 1
    with bad.write(30, lsn=9) as page:  # 1 miss, 1 load, 1 published; a dirty page that waits for the log
        page[:] = 5
    store.fail_read = OSError(errno.EIO, "sector")
    for n in range(3):  # 3 misses, 3 failures
        with pytest.raises(StoreError):
            bad[n]
    cache = pool.cache("values", limit=1 << 17, reserve=1 << 15)
    for n in range(5):  # 5 misses, 5 loads
        cache.get_or_load(n, lambda _: bytes(100))
    for n in range(3):  # 3 hits
        cache.get(n)
    for n in range(7, 9):  # 2 misses
        cache.get(n)
    with pytest.raises(ZeroDivisionError):  # 1 miss, 1 failure
        cache.get_or_load(9, lambda _: 1 // 0)
    cache.put("held", bytes(HELD))  # 1 put
    table.set_share(limit=32 * PAGE, reserve=8 * PAGE)
    go_wrong(pool, table, data_file, child, spawn)
    # 4 misses, 4 pinned pages, 1 hit of the cache, 1 value that is held
    return [*(table[n] for n in range(120, 124)), cache.get("held")]


class Figure(NamedTuple):
    """A figure, its right value, and where it is shown: in `stat` and `top` (as PoolStats has it), in a metric, in a panel."""

    right: float
    stats: Callable[[Any], float]
    metric: str
    labels: dict[str, str]
    panel: tuple[str, str, str] | None = None  # title, legend, and the label of one of its series
    """What the panel shows is the same number; of a rate, that of a minute."""


def _plain(name: str, right: float, metric: str = "", panel: tuple[str, str, str] | None = None) -> Figure:
    return Figure(right, lambda s: s[name], metric or f"{name}_total", {}, panel)


def _space(field: str, right: float, space: str, metric: str) -> Figure:
    return Figure(right, lambda s: _named(s["spaces"], space)[field], metric, {"space": space, "client": ""})


def _cache(field: str, right: float, panel: tuple[str, str, str] | None = None, kind: str = "_total") -> Figure:
    return Figure(
        right, lambda s: _named(s["caches"], "values")[field], f"cache_{field}{kind}", {"cache": "values"}, panel
    )


def _named(rows: list[dict[str, Any]], name: str) -> dict[str, Any]:
    return next(row for row in rows if row["name"] == name)


def _shown(state: str, right: float) -> Figure:
    def read_stat(s: dict[str, Any]) -> float:
        f = s["frames"]
        dirty = f["dirty"] - f["pinned_dirty"]
        clean = f["live"] - f["pinned_live"] - dirty
        return {"clean": clean, "dirty": dirty, "pinned": f["pinned_live"], "hole": f["hole"], "free": f["free"]}[state]

    panel = None if state == "hole" else ("Memory by content", state, state)
    return Figure(right, read_stat, "frames", {"state": state}, panel)


FIGURES = (
    _plain("hits", 17),
    _plain("misses", 80, panel=("Misses and evictions per second", "misses", "")),
    _plain("loads", 77),
    _plain("load_bytes", 77 * PAGE, "loaded_bytes_total", ("Read from the stores", "{{pool}}", "")),
    _plain("load_failures", 5, panel=("Failed loads", "pages", "")),
    _plain("exhausted", 1, panel=("Failed loads", "exhausted", "")),
    _plain("prefetched", 5, panel=("Read ahead", "read ahead", "")),
    _plain("prefetched_unused", 1, panel=("Read ahead", "evicted unused", "")),
    _plain("publishes", 10),
    _plain("appends", 0),
    _plain("flushes", 3),
    _plain("flushed_pages", 6, panel=("Pages flushed per second", "pages", "")),
    _plain("foreground_flushes", 0, panel=("Pages flushed per second", "foreground batches", "")),
    _plain("flush_failures", 1, panel=("Pages flushed per second", "failures", "")),
    _plain("checkpoints", 1, panel=("Pages flushed per second", "checkpoints", "")),
    _plain("refused_clients", 1),
    _plain("reaped", 1, "clients_reaped_total", ("Clients reaped", "", "")),
    _plain("pins_broken", 1, panel=("Deaths and their consequences", "pins broken", "")),
    _plain("corrupt_pages", 2),
    _plain("repaired_pages", 1),
    _plain("object_bytes", LOG_PAGE + HELD_BLOCK, "object_bytes", ("Memory by content", "values of caches", "")),
    _plain("lent_bytes", LOG_PAGE + HELD_BLOCK, "lent_bytes"),
    _plain("resident_bytes", 12 * PAGE, "resident_bytes", ("How much memory", "resident", "")),
    _plain("budget_bytes", 64 * PAGE, "budget_bytes", ("How much memory", "budget", "")),
    _plain("max_bytes", 64 * PAGE, "max_bytes", ("How much memory", "maximum", "")),
    *(
        Figure(right, lambda s, w=why: s[f"wait_{w}"], "waits_total", {"reason": why}, ("Waits by cause", "{{reason}}", why))
        for why, right in (("load", 0), ("writer", 0), ("memory", 0), ("frame", 1))
    ),
    *(
        Figure(
            right, lambda s, w=why: s[f"evictions_{w}"], "evictions_total", {"reason": why},
            ("Misses and evictions per second", "evictions, {{reason}}", why),
        )
        for why, right in (("recycled", 7), ("reclaimed", EVICTED))
    ),
    *(
        Figure(
            right * PAGE, lambda s, w=why: s["reclaimed_bytes"][w], "reclaimed_bytes_total", {"reason": why},
            ("Given back to the kernel, by reason", "{{reason}}", why),
        )
        for why, right in (("drop", 1), ("trim", TRIMMED), ("idle", 0), ("pressure", 0), ("client_exit", 0), ("budget", 0))
    ),
    _shown("clean", 5), _shown("dirty", 2), _shown("pinned", 4), _shown("hole", 52), _shown("free", 1),
    _plain("held_back_pages", 1, "held_back_pages"),
    Figure(2, lambda s: s["frames"]["dirty"], "dirty_pages", {}),
    Figure(1, lambda s: sum(s["unsaved_pages"].values()), "unsaved_pages", {}),
    *(
        Figure(0, lambda s, w=what: s["pending_operations"][w], "pending_operations",
               {"operation": what}, ("Operations under way", "{{operation}}", what))
        for what in OPERATION_KINDS
    ),
    *(
        Figure(0, lambda s, w=what: s["oldest_operation_s"][w], "oldest_operation_seconds", {"operation": what},
               ("Longest operation", "{{operation}}", what))
        for what in OPERATION_KINDS
    ),
    _space("hits", 16, "table", "space_hits_total"),
    _space("misses", 73, "table", "space_misses_total"),
    _space("misses", 4, "bad", "space_misses_total"),
    _space("hits", 1, "scratch", "space_hits_total"),
    _space("misses", 0, "scratch", "space_misses_total"),
    _space("resident", 7, "table", "space_resident_pages"),
    _space("resident", 1, "scratch", "space_resident_pages"),
    _space("dirty", 0, "table", "space_dirty_pages"),
    _space("pages", 200, "table", "space_pages"),
    _space("limit", 32 * PAGE, "table", "space_limit_bytes"),
    _space("reserve", 8 * PAGE, "table", "space_reserve_bytes"),
    _cache("limit", 1 << 17, kind="_bytes"), _cache("reserve", 1 << 15, kind="_bytes"),
    # The five that were loaded, the one that was put, and the error of the load that failed.
    Figure(7, lambda s: _named(s["caches"], "values")["count"], "cache_objects", {"cache": "values"}),
    Figure(CACHE_BYTES, lambda s: _named(s["caches"], "values")["bytes"], "cache_bytes", {"cache": "values"}),
    Figure(2, lambda s: 2, "max_clients", {}),
    _cache("hits", 4), _cache("misses", 8), _cache("puts", 6),
    _cache("loads", 5, ("Loads and evictions of caches", "loads", "")),
    _cache("load_failures", 1, ("Failed loads", "values of caches", "")),
    _cache("waits", 0, ("Loads and evictions of caches", "waits", "")),
    _cache("evictions", 0, ("Loads and evictions of caches", "evictions", "")),
    _cache("refused", 0, ("Loads and evictions of caches", "refused", "")),
    _cache("superseded", 0, ("Loads and evictions of caches", "superseded", "")),
)  # fmt: skip

# Panels with figures that are not counted: times, ages, the machine, and the ratios of counted ones.
RATIOS = {
    ("Budget in use", "", ""): (12 * PAGE + LOG_PAGE + HELD_BLOCK) / (64 * PAGE),
    ("Hit ratio", "", ""): 17 / 97,
    ("Hit ratio by pool", "{{pool}}", ""): 17 / 97,
    ("Hit ratio by space", "{{pool}}: {{space}}", "table"): 16 / 89,
    ("Hit ratio by space", "{{pool}}: {{space}}", "bad"): 0,
    ("Hit ratio by space", "{{pool}}: {{space}}", "scratch"): 1,
    ("Hit ratio by space", "{{pool}}: {{space}}", "disk"): 0,
    ("Hit ratio by space", "{{pool}}: {{space}}", "sealed"): 0,
    ("Resident pages by space", "{{pool}}: {{space}}", "table"): 7 * PAGE,
    **{("Resident pages by space", "{{pool}}: {{space}}", name): PAGE for name in ("bad", "scratch", "disk", "sealed")},
    ("Memory by content", "busy", "busy"): 0,
    ("Memory by content", "retired", "retired"): 0,
    ("Hit ratio by cache", "{{pool}}: {{cache}}", "values"): 4 / 12,
    ("Given back", "", ""): (1 + TRIMMED) * PAGE,
    ("Misses per second", "", ""): 80 / SPAN_S,
    ("Clients", "", ""): 1,
    ("Attached clients", "{{state}}", "alive"): 1,
    ("Attached clients", "{{state}}", "dead"): 0,
    ("Attached clients", "stewards", ""): 0,
    ("Dirty pages", "{{pool}} dirty", ""): 2 * PAGE,
    ("Dirty pages", "{{pool}} held back", ""): PAGE,
    ("Working set by age, against the budget", "budget", ""): 64 * PAGE,
}


def shown_by_stat(pool) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "bufferpool.cli", "stat", pool.name, "--json"],
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def differences(stat: dict[str, Any], series: Any, pool: Any) -> list[str]:
    """The figures that are not right, in `stat` and in the metrics."""
    found = []
    for figure in FIGURES:
        for view, value in (
            ("stat", figure.stats(stat)),
            ("metric", get(series, figure.metric, pool, **figure.labels)),
        ):
            if value != figure.right:
                found.append(f"{view} {figure.metric} {figure.labels}: {value}, not {figure.right}")
    return found


def test_every_view_shows_the_same_and_the_right_figures(make_pool, data_file, tmp_path, child, spawn, monkeypatch):
    monkeypatch.setattr(
        trouble, "AGAIN_S", float("inf")
    )  # one event for each failing space, however slow the machine is
    pool = make_pool(64 * PAGE, max_clients=2)
    before, empty = read(pool.name), pytest.importorskip("bufferpool.cli.top.figures").read_snapshot(pool.name, None)
    kept = work(pool, data_file, child, spawn)
    stat, series = shown_by_stat(pool), read(pool.name)
    assert differences(stat, series, pool) == []
    for name, count in (("load", 77), ("flush", 3), ("sync", 3)):
        assert get(series, f"{name}_seconds_count", pool) == count
    assert get(series, "space_load_failures_total", pool, space="bad", error="io") == 3
    assert get(series, "eviction_age_seconds_count", pool) == 7 + EVICTED
    assert sum(get(series, "pages", pool, age=age) for age in collector.AGES) == 11
    assert get(series, "clients", pool, state="alive") == len(stat["clients"]) == 1
    assert stat["frames"]["clean"] == 9  # pinned ones too
    assert [client["held_bytes"] for client in stat["clients"]] == [HELD_BLOCK]
    the_events_are_the_same_and_right(pool, series)
    the_text_of_stat_shows_the_same(pool)
    top_shows_the_same(pool, series)
    the_screen_of_top_shows_the_same(pool, empty)
    if shutil.which("promtool") and shutil.which("prometheus"):
        the_dashboard_shows_the_same(tmp_path, before, series, pool)
    del kept


def the_events_are_the_same_and_right(pool, series):
    command = [sys.executable, "-m", "bufferpool.cli", "events", pool.name, "--json"]
    shown = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert Counter((event["kind"], event["reason"]) for event in shown) == EVENTS
    exported = {
        (labels["event"], labels["reason"]): value
        for (name, found), value in series.items()
        if name == "bufferpool_events_total" and (labels := dict(found))["pool"] == pool.name
    }
    assert exported == EVENTS
    assert get(series, "space_load_failures_total", pool, space="sealed", error="corrupt") == 1
    assert get(series, "space_flush_failures_total", pool, space="disk", error="full") == 1


# Of `bufferpool stat`, as it is printed. Figures that are not counted are left out: the kernel's, and the room for resize().
TEXT = """
page size    4096 B
resident     49,152 B, as the pool counts
objects      77,824 B in 1 cache; 76.0 KiB of the budget is lent
frames       11 live, 1 free, 0 busy, 0 retired, 52 hole
live frames  5 clean, 2 dirty, 4 pinned; 1 dirty ones wait for the log, which is durable up to LSN 1
unsaved      1 dirty page of files and stores, in memory only until a flush
hit ratio    17.53% (17 hits, 80 misses)
loads        77, of them 5 read ahead (1 evicted unused); 5 failed
reclaimed    248.0 KiB (drop 4.0 KiB, trim 244.0 KiB)
evictions    7 recycled, 59 reclaimed
writes       10 published, 0 appended, 6 flushed
flushes      3, of them 0 by a client that needed a frame; 1 failed
checksums    2 corrupt pages, 1 repaired
under way    0 loads, 0 flushes
exhausted    1 request found every frame pinned or dirty
clients      1 reaped, 1 refused; at most 2 at a time
NAME     KIND     PAGES  RESIDENT  DIRTY  HITS  MISSES      LIMIT   RESERVE
table    file       200         7      0    16      73  128.0 KiB  32.0 KiB
bad      store       40         1      1     0       4          -         -
scratch  scratch      4         1      1     1       0          -         -
disk     store       10         1      0     0       1          -         -
sealed   file         4         1      0     0       2          -         -
NAME    VALUES   BYTES  HITS  MISSES  LOADS  EVICTIONS  REFUSED      LIMIT   RESERVE
values       7  10,928     4       8      5          0        0  128.0 KiB  32.0 KiB
clients (1)
"""


def the_text_of_stat_shows_the_same(pool):
    command = [sys.executable, "-m", "bufferpool.cli", "stat", pool.name]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for line in TEXT.strip().splitlines():
        assert line in shown.splitlines(), shown
    assert shown.splitlines()[-1].split()[-5:] == ["4", "4", "12.0", "KiB", "-"]


# Of the screen of `top`, if the whole workload had taken half a second.
RATES = ["hit ratio 17.53%", "hits 34/s", "misses 160/s", "given back 496K/s", "evicted 132/s", "flushed 12/s", ""]


def the_screen_of_top_shows_the_same(pool, empty):
    """What is on the screen, not only what it is made from. ``empty``: what ``top`` read before the workload."""
    app = pytest.importorskip("bufferpool.cli.top.app", reason="top needs textual")

    async def session():
        top = app.Top(pool.name, None, 3600.0)
        async with top.run_test(size=(200, 60)) as pilot:
            await pilot.pause()
            rows = {
                name: [
                    [str(cell) for cell in top.query_one(f"#{name}").get_row_at(i)]
                    for i in range(top.query_one(f"#{name}").row_count)
                ]
                for name in ("spaces", "caches", "clients")
            }
            first = [str(top.query_one(name).render()) for name in ("#head", "#memory", "#events")]
            # Rates, as if the workload had taken half a second; and ages, of which each has a size of its own.
            spaces = [replace(space, hits=0, misses=0) for space in top.last.stats.spaces]
            top.before = replace(empty, at=top.last.at - 0.5, stats=replace(empty.stats, spaces=spaces))
            top._show(replace(top.last, age_bytes=[n << 10 for n in range(1, len(top.last.age_bytes) + 1)]))
            table = next(row for row in map(top.query_one("#spaces").get_row_at, range(5)) if str(row[0]) == "table")
            then = [str(top.query_one(name).render()) for name in ("#rates", "#ages")]
            return rows, *first, *then, [str(cell) for cell in table]

    rows, head, memory, events, rates, ages, table = asyncio.run(session())
    assert rates.split("  ") == RATES
    assert table[5:8] == ["32", "146", "17.98%"]
    bands = [f"< {age}" if age != "older" else age for age in collector.AGES]
    assert ages.splitlines()[1].split("■")[1:] == [f" {band} {n}.0K  " for n, band in enumerate(bands, start=1)]
    assert [line.partition("  ")[2] for line in events.splitlines()] == [str(one) for one in reversed(pool.events())]
    assert sorted(rows["spaces"]) == [
        ["bad", "store", "40", "1", "1", "0", "0", "-", "-", "-"],
        ["disk", "store", "10", "1", "0", "0", "0", "-", "-", "-"],
        ["scratch", "scratch", "4", "1", "1", "0", "0", "-", "-", "-"],
        ["sealed", "file", "4", "1", "0", "0", "0", "-", "-", "-"],
        ["table", "file", "200", "7", "0", "0", "0", "-", "128K", "32.0K"],
    ]
    assert rows["caches"] == [["values", "7", "10.7K", "0", "0", "-", "0", "0", "128K", "32.0K"]]
    assert [row[3:] for row in rows["clients"]] == [["4", "4", "12.0K", ""]]
    assert f"{pool.name}  48.0K of 256K budget" in head
    assert "caches 76.0K" in head
    assert "pinned 16.0K  ■ dirty 8.0K  ■ clean 20.0K  ■ free 4.0K  ■ given back 208K" in memory


def top_shows_the_same(pool, series):
    figures = pytest.importorskip("bufferpool.cli.top.figures", reason="top needs textual")
    snapshot = figures.read_snapshot(pool.name, None)
    for name, size in figures.memory_parts(snapshot.stats).items():
        state = "hole" if name == "given back" else name
        assert size == get(series, "frames", pool, state=state) * PAGE, state
    assert {name for name, _ in figures.PARTS} == set(figures.memory_parts(snapshot.stats))
    assert snapshot.stats.misses == get(series, "misses_total", pool)
    assert [(c.pins, c.held_bytes) for c in snapshot.clients] == [(4, HELD_BLOCK)]
    assert [(c.name, c.hits, c.misses) for c in snapshot.stats.caches] == [("values", 4, 8)]
    assert snapshot.operations == []


def the_dashboard_shows_the_same(folder, before, series, pool):
    shown = {}
    with server_of(folder, before, series) as server_with_them:
        for panel in DASHBOARD["panels"]:
            for target in panel.get("targets", []):
                is_rate = "rate(" in target["expr"] and "/" not in target["expr"] and "quantile" not in target["expr"]
                minute = SPAN_S if is_rate else 1
                for label, value in server_with_them.to(target["expr"]).items():
                    shown[panel["title"], target["legendFormat"], label] = value * minute
    right = {figure.panel: figure.right for figure in FIGURES if figure.panel is not None}
    for state in ("clean", "dirty", "pinned", "free"):
        right["Memory by content", state, state] *= PAGE
    right |= {
        ("Misses per second", "", ""): 80,
        **{key: value for key, value in RATIOS.items() if key[0] != "Misses per second"},
        **right_by_the_metrics(series, pool),
        **right_of_the_machine(before, series),
    }
    assert [key for key in shown if key not in right and key[1] != "{{cgroup}}, {{state}}"] == [], "not compared"
    assert {key: shown.get(key) for key in right} == {
        key: pytest.approx(value, abs=1e-6) for key, value in right.items()
    }


# The panels of durations, and the words of their metrics.
DURATIONS = {
    "Duration of loads": "load", "Duration of flushes": "flush", "Duration of giving memory back": "reclaim",
    "Duration of waits": "wait",
}  # fmt: skip


def right_by_the_metrics(series, pool):
    """What panels show that is not counted by hand: times and ages. They show what the metrics have."""

    def metric(name, **labels):
        return get(series, name, pool, **labels)

    right = {
        ("Age of evicted pages", "{{pool}}", ""): metric("eviction_age_seconds_sum") / metric("eviction_age_seconds_count"),
        ("Attached clients", "maximum", ""): 2,
        ("Deaths and their consequences", "clients reaped", ""): 1,
        ("Deaths and their consequences", "locks repaired", ""): 0,
        ("How much memory", "kernel's count", ""): metric("kernel_bytes"),
        ("How much memory", "minimum", ""): metric("min_bytes"),
        ("Values of caches", "{{pool}}: {{cache}}", "values"): CACHE_BYTES,
    }  # fmt: skip
    for what in ("load", "wait", "flush", "sync", "reclaim"):
        right["Time spent waiting and loading", what, ""] = metric(f"{what}_seconds_sum")
    for age in collector.AGES:
        right["Working set by age, against the budget", age, age] = metric("pages", age=age) * PAGE
    for panel, what in DURATIONS.items():
        bounds = [dict(labels)["le"] for name, labels in series if name == f"bufferpool_{what}_seconds_bucket"]
        buckets = sorted((float(le), metric(f"{what}_seconds_bucket", le=le)) for le in bounds)
        below = [0.0, *(count for _, count in buckets)]
        for le in bounds:  # the metric's are cumulative
            right[panel, "{{le}}", le] = metric(f"{what}_seconds_bucket", le=le)
        for percent in (50, 95, 99):
            rank = percent / 100 * below[-1]
            at = next(i for i, (_, count) in enumerate(buckets) if count >= rank)
            low, high = ([0.0] + [le for le, _ in buckets])[at : at + 2]
            share = (rank - below[at]) / (below[at + 1] - below[at])
            right[f"{panel}: percentiles", f"p{percent}", ""] = low + (high - low) * share
    return right


def right_of_the_machine(before, series):
    """The panels of the machine show what the metrics have; of the time stalled, that of the minute between the scrapes."""
    right = {}
    for title, metric in (
        ("free in the tmpfs", "bufferpool_shm_free_bytes"),
        ("size of the tmpfs", "bufferpool_shm_size_bytes"),
        ("available memory", "bufferpool_machine_available_bytes"),
    ):
        right["Shared memory and the machine", title, metric] = series[metric, ()]
    for (name, labels), seconds in series.items():
        if name == "bufferpool_memory_pressure_seconds_total" and not dict(labels)["cgroup"]:
            stalled = seconds - before[name, labels]
            right["Memory pressure", "machine, {{state}}", dict(labels)["state"]] = stalled
    return right


def test_each_wrong_figure_is_found(make_pool, data_file, child, spawn):
    """The test above must not pass for any figure that is one off, in either view."""
    pool = make_pool(64 * PAGE, max_clients=2)
    kept = work(pool, data_file, child, spawn)
    stat, series = shown_by_stat(pool), read(pool.name)
    assert differences(stat, series, pool) == []
    for figure in FIGURES:
        labels = {"pool": pool.name, **figure.labels}
        key = f"bufferpool_{figure.metric}", tuple(sorted(labels.items()))
        assert key in series
        assert len(differences(stat, {**series, key: series[key] + 1}, pool)) == 1, figure
    for where in (
        stat, stat["frames"], stat["reclaimed_bytes"], stat["pending_operations"], *stat["spaces"], *stat["caches"]
    ):  # fmt: skip
        for name, value in list(where.items()):
            if (isinstance(value, int) and name in NOT_COMPARED) or not isinstance(value, int):
                continue
            where[name] = value + 1
            found = differences(stat, series, pool)
            where[name] = value
            assert found or where.get("name") in OTHER_SPACES, f"{name} of {where.get('name', 'the pool')}"
    del kept


OTHER_SPACES = ("bad", "scratch", "disk", "sealed")  # each figure of a space is compared for `table`, some for these

# Figures of `stat` that are no counts of this workload: of the kernel, of the policy, or fixed.
NOT_COMPARED = {
    "page_size", "min_bytes", "room_bytes", "metadata_bytes", "kernel_bytes", "kernel_data_bytes", "reclaimed_total_bytes",
    "durable_lsn", "checkpoint_lsn", "compacted_pages", "clean", "rebuilds", "mode_changes", "retired", "busy", "pinned", "hot", "number",
    "owner", "opened_at",
}  # fmt: skip


# Families that are not in FIGURES, and why.
APART = {
    "events",
    "space_load_failures",
    "space_flush_failures",
    "clients",
    "pages",
    "eviction_age_seconds",
}  # compared above, in a form of their own; of `pages` and `eviction_age_seconds` the sum and the count
OF_TIME = {"last_event_timestamp_seconds", "last_checkpoint_timestamp_seconds"}  # when the test ran
OF_THE_KERNEL = {"kernel_bytes", "metadata_bytes", "room_bytes"}  # depends on its pages, and on the tmpfs
OF_THE_POLICY = {
    "policy_mode",
    "policy_mode_changes",
    "advised_hit_ratio",
    "advised_budget_bytes",
    "compacted_pages",
}  # a simulation needs thousands of references: test_advice.py, test_policy.py, test_compaction.py
FIXED = {"min_bytes", "page_size_bytes"}  # as the pool was made
ELSEWHERE = {"steward", "lock_repairs"}  # no steward, and no lock whose holder died: test_metrics.py


def test_every_metric_of_a_pool_is_compared_or_named():
    """A metric that is new is not compared unless somebody counts it."""
    compared = {figure.metric.removesuffix("_total") for figure in FIGURES}
    families = {family.name.removeprefix("bufferpool_") for family in collector.FAMILIES}
    assert families - compared == APART | OF_TIME | OF_THE_KERNEL | OF_THE_POLICY | FIXED | ELSEWHERE


def test_the_dashboard_asks_for_what_is_exported_and_nothing_else_by_name(make_pool, data_file, child, spawn):
    """A query of the dashboard for a label's value that no series has shows an empty panel, which looks like calm."""
    pool = make_pool(64 * PAGE, max_clients=2)
    kept = work(pool, data_file, child, spawn)
    text = server.text_of(pool.name)
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", []):
            for metric, matchers in re.findall(r"(bufferpool_\w+)\{([^}]*)\}", target["expr"]):
                for label, value in re.findall(r'(\w+)="([^"$]+)"', matchers):
                    if label == "budget":
                        continue  # there is no advice yet
                    assert re.search(rf'^{metric}\{{[^}}]*{label}="{re.escape(value)}"', text, re.MULTILINE), target[
                        "expr"
                    ]
    del kept
