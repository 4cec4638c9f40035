"""One workload, counted by hand: `top`, `stat`, the metrics and the dashboard show the same figures, and the right ones."""

import errno
import json
import re
import subprocess
import sys

import numpy as np
import pytest

from bufferpool.errors import PoolExhausted, StoreError
from bufferpool.prometheus import server
from tests.conftest import PAGE, ROOT
from tests.support.memory_store import Memory
from tests.support.scrape import get, read

DASHBOARD = json.loads((ROOT / "dashboards" / "bufferpool.json").read_text())


def work(pool, data_file):
    """A workload of which each figure is known."""
    table = pool.open_file(data_file(100), "r+", name="table")
    store = Memory(40)
    bad = pool.open_store("bad", store, mode="r+")
    for n in range(20):  # 20 misses
        table[n]
    for n in range(10):  # 10 hits
        table[n]
    assert table.prefetch(range(30, 35)) == 5  # 5 loads
    for n in range(30, 33):  # 3 misses
        table[n]
    for n in range(4):  # 4 published
        with table.write(n) as page:
            page[:] = 1
    store.fail_read = OSError(errno.EIO, "sector")
    for n in range(3):  # 3 misses, 3 failures
        with pytest.raises(StoreError):
            bad[n]
    store.fail_read = None
    assert pool.flush() == 4
    with table.write(5) as page:  # one dirty page
        page[:] = 2
    scratch = pool.open_scratch("scratch", n_pages=4)
    with scratch.write(0) as page:
        page[:] = 3
    return [table[n] for n in range(60, 64)]  # 4 misses, 4 pinned pages


RIGHT = {
    "misses": 30, "loads": 29, "load_failures": 3, "prefetched": 5, "prefetched_unused": 0, "exhausted": 0, "flushed_pages": 4,
    "flushes": 1, "flush_failures": 0, "checkpoints": 0, "refused_clients": 0,
}  # fmt: skip


def test_every_view_shows_the_same_and_the_right_figures(make_pool, data_file):
    pool = make_pool(64 * PAGE)
    kept = work(pool, data_file)
    done = subprocess.run(
        [sys.executable, "-m", "bufferpool.cli", "stat", pool.name, "--json"],
        capture_output=True,
        text=True,
        check=True,
    )
    stat, series, stats = json.loads(done.stdout), read(pool.name), pool.stats()
    for name, right in RIGHT.items():
        assert stat[name] == right, name
        assert get(series, f"{name}_total", pool) == right, name
    assert stat["hits"] == get(series, "hits_total", pool) == stats.hits
    assert get(series, "load_seconds_count", pool) == RIGHT["loads"]
    assert get(series, "sync_seconds_count", pool) == get(series, "flush_seconds_count", pool) == 1
    assert get(series, "space_load_failures_total", pool, space="bad", error="io") == 3
    assert get(series, "unsaved_pages", pool) == sum(stat["unsaved_pages"].values()) == 1
    assert get(series, "dirty_pages", pool) == stat["frames"]["dirty"] == 2
    assert get(series, "frames", pool, state="pinned") == stat["frames"]["pinned_live"] == 4
    assert get(series, "clients", pool, state="alive") == len(stat["clients"]) == 1
    top_shows_the_same(pool, series)
    assert all(np.any(page) for page in kept)


def top_shows_the_same(pool, series):
    figures = pytest.importorskip("bufferpool.cli.top.figures", reason="top needs textual")
    snapshot = figures.read_snapshot(pool.name, None)
    for name, size in figures.memory_parts(snapshot.stats).items():
        state = "hole" if name == "given back" else name
        assert size == get(series, "frames", pool, state=state) * PAGE, state
    assert {name for name, _ in figures.PARTS} == set(figures.memory_parts(snapshot.stats))
    assert snapshot.stats.misses == get(series, "misses_total", pool)
    assert sum(c.pins for c in snapshot.clients) == 4


def test_the_dashboard_asks_for_what_is_exported_and_nothing_else_by_name(make_pool, data_file):
    """A query of the dashboard for a label's value that no series has shows an empty panel, which looks like calm."""
    pool = make_pool(64 * PAGE)
    kept = work(pool, data_file)
    with pytest.raises(PoolExhausted):
        kept.extend(pool.space("table")[n] for n in range(100))
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
