"""Metrics: what they say, and that counters only grow. That a scrape changes nothing: test_observer.py."""

import re
import shutil
import subprocess
import time
from contextlib import suppress

import numpy as np
import pytest
from prometheus_client import generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

import bufferpool as bp
from bufferpool import _core
from bufferpool.figures import events
from bufferpool.figures import stats as inspect
from bufferpool.figures.names import EventKind, EventReason
from bufferpool.observer import Observer
from bufferpool.prometheus import server
from bufferpool.prometheus.collector import FAMILIES, LATENCIES
from tests.conftest import PAGE, ROOT, kernel_bytes, wait_until
from tests.support.scrape import Series, busy_pool, get, read

# ---- what they say --------------------------------------------------------------------


def test_every_figure_is_that_of_the_pool(make_pool, data_file):
    pool = busy_pool(make_pool, data_file)
    page = pool.space("table")[9]
    series, stats = read(pool.name), pool.stats()
    for name in ("resident_bytes", "budget_bytes", "min_bytes", "max_bytes", "metadata_bytes"):
        assert get(series, name, pool) == getattr(stats, name), name
    assert get(series, "kernel_bytes", pool) == kernel_bytes(pool)
    assert get(series, "page_size_bytes", pool) == PAGE
    for metric, field in {
        "hits": "hits", "misses": "misses", "loads": "loads", "loaded_bytes": "load_bytes",
        "load_failures": "load_failures", "publishes": "publishes", "appends": "appends", "flushes": "flushes",
        "flushed_pages": "flushed_pages", "foreground_flushes": "foreground_flushes", "flush_failures": "flush_failures",
        "checkpoints": "checkpoints", "compacted_pages": "compacted_pages", "clients_reaped": "reaped",
        "pins_broken": "pins_broken", "lock_repairs": "rebuilds", "corrupt_pages": "corrupt_pages",
        "repaired_pages": "repaired_pages", "policy_mode_changes": "mode_changes",
    }.items():  # fmt: skip
        assert get(series, f"{metric}_total", pool) == getattr(stats, field), metric
    for mode in ("adaptive", "recency", "loop"):
        assert get(series, "policy_mode", pool, mode=mode) == (stats.policy_mode == mode)
    for why in ("load", "writer", "memory", "frame"):
        assert get(series, "waits_total", pool, reason=why) == getattr(stats, f"wait_{why}")
    for why, n in stats.reclaimed_bytes.items():
        assert get(series, "reclaimed_bytes_total", pool, reason=why) == n
    assert get(series, "reclaimed_bytes_total", pool, reason="trim") > 0
    for why in ("recycled", "reclaimed"):
        assert get(series, "evictions_total", pool, reason=why) == getattr(stats, f"evictions_{why}") > 0
    for space in stats.spaces:
        for name in ("pages", "resident_pages", "dirty_pages", "hits_total", "misses_total"):
            value = getattr(
                space, name.removesuffix("_total").replace("resident_pages", "resident").replace("dirty_pages", "dirty")
            )
            assert get(series, f"space_{name}", pool, space=space.name) == value
    assert get(series, "clients", pool, state="alive") == 1
    assert get(series, "max_clients", pool) == 8
    assert get(series, "up", pool) == 1
    del page


def test_each_frame_is_in_one_state(make_pool, data_file):
    pool = busy_pool(make_pool, data_file)
    table = pool.space("table", "r+")
    old = table[20]
    with table.write(20) as page:
        page[0] = 3
    held = table.pin_many([20, 21])
    series, frames = read(pool.name), pool.frames()
    live, pinned, dirty = frames["state"] == inspect.FrameState.LIVE, frames["pins"] > 0, frames["dirty"]
    states = {state: get(series, "frames", pool, state=state) for state in
              ("hole", "free", "busy", "clean", "dirty", "pinned", "retired")}  # fmt: skip
    assert sum(states.values()) == pool.max_frames
    assert states["pinned"] == np.count_nonzero(live & pinned) == 2
    assert states["dirty"] == np.count_nonzero(live & dirty & ~pinned) == 2  # page 9, and one of the scratch space
    assert get(series, "dirty_pages", pool) == np.count_nonzero(dirty) == 3
    assert states["clean"] == np.count_nonzero(live & ~dirty & ~pinned)
    assert states["retired"] == 1
    assert states["hole"] + states["free"] + states["busy"] == pool.max_frames - np.count_nonzero(live) - 1
    ages = [value for (name, _), value in series.items() if name == "bufferpool_pages"]
    assert sum(ages) == np.count_nonzero(live)
    held.release()
    del old


def test_histograms_are_exact_and_cumulative(make_pool, data_file):
    pool = busy_pool(make_pool, data_file)
    series, stats = read(pool.name), pool.stats()
    for what in LATENCIES:
        counts = stats.latencies[what].counts
        edges = [(float(dict(labels)["le"]), value) for (name, labels), value in series.items()
                 if name == f"bufferpool_{what}_seconds_bucket"]  # fmt: skip
        assert [edge for edge, _ in edges] == [*(2.0 ** (10 + i) / 1e9 for i in range(_core.BUCKETS - 1)), float("inf")]
        assert [value for _, value in edges] == list(np.cumsum(counts))
        assert get(series, f"{what}_seconds_count", pool) == sum(counts)
        assert get(series, f"{what}_seconds_sum", pool) == pytest.approx(stats.latencies[what].sum_s)
    assert get(series, "load_seconds_count", pool) == stats.loads > 0
    assert get(series, "reclaim_seconds_count", pool) > 0


def test_no_counter_is_forgotten(make_pool, data_file, monkeypatch):
    """Every counter of the segment moves a metric."""
    pool = busy_pool(make_pool, data_file)
    before, plain = read(pool.name), inspect.read_counters(pool.client).plain
    real = inspect.read_counters
    for counter in inspect.COUNTERS:
        changed = plain | {counter: plain[counter] + 1000}
        monkeypatch.setattr(inspect, "read_counters", lambda seen, to=changed: real(seen)._replace(plain=to))
        after = read(pool.name)
        more = 1000 * (inspect.TICK_S if counter == "eviction_ticks" else 1)
        assert any(after[key] == pytest.approx(before[key] + more) for key in before if key in after), counter


def test_names_units_labels_and_help(make_pool, data_file):
    pool = busy_pool(make_pool, data_file)
    text = generate_openmetrics(server.registry_of(pool.name)).decode()
    families = list(parse_openmetrics(text))
    assert len({family.name for family in families}) == len(families) >= len(FAMILIES) + len(LATENCIES) + 2
    for family in families:
        assert re.fullmatch(r"bufferpool(_[a-z]+)+", family.name)
        assert family.documentation.endswith(".")
        assert len(family.documentation) > 20
        assert not family.unit or family.name.endswith(f"_{family.unit}")
        assert family.unit in ("", "bytes", "seconds")
        assert ("bytes" in family.name or "seconds" in family.name) == bool(family.unit)
        for sample in family.samples:
            assert set(sample.labels) <= {
                "pool",
                "space",
                "client",
                "reason",
                "state",
                "age",
                "budget",
                "event",
                "le",
                "mode",
                "error",
                "operation",
                "version",
                "layout",
                "cgroup",
                "cache",
            }
    created = [s for family in families for s in family.samples if s.name.endswith("_created")]
    assert len(created) >= 40
    assert all(time.time() - 600 < s.value <= time.time() for s in created)
    plain = generate_latest(server.registry_of(pool.name)).decode()
    assert {f.name for f in families} <= {f.name for f in parse_text(plain)}
    if shutil.which("promtool"):
        done = subprocess.run(
            ["promtool", "check", "metrics"], input=plain, capture_output=True, text=True, check=False
        )
        said = [line for line in (done.stdout + done.stderr).splitlines() if "_created" not in line]
        assert said == []


def test_the_page_about_the_metrics_has_all_of_them(make_pool):
    """Nothing compared the table in docs/metrics.md with what a scrape has."""
    text = generate_openmetrics(server.registry_of(make_pool().name)).decode()
    _, _, after = (ROOT / "docs" / "metrics.md").read_text().partition("## What there is")
    table = after.partition("## The dashboard")[0]
    cells = [row.split("|")[1] for row in table.splitlines() if row.startswith("| `")]
    names = ["bufferpool" * name.startswith("_") + name for cell in cells for name in re.findall(r"`(\w+)`", cell)]
    assert sorted(name.removesuffix("_total") for name in names) == sorted(f.name for f in parse_openmetrics(text))


def test_a_space_counts_from_when_it_was_opened(make_pool):
    pool = make_pool()
    first = pool.open_derived("first", 10, lambda n, out: None)
    for _ in range(5):
        first[0]
    assert get(read(pool.name), "space_hits_total", pool, space="first") == 4
    first.remove()
    series = read(pool.name)
    assert not any("first" in str(labels) for _, labels in series)
    assert get(series, "hits_total", pool) == 4
    second = pool.open_derived("second", 10, lambda n, out: None)  # takes the same slot
    second[1]
    series = read(pool.name)
    assert get(series, "space_hits_total", pool, space="second") == 0
    assert get(series, "space_misses_total", pool, space="second") == 1
    assert get(series, "space_hits_created", pool, space="second") > get(series, "hits_created", pool)
    assert get(series, "misses_total", pool) == 2


def test_the_advice_is_that_of_the_pool(make_pool):
    pool = make_pool(256 * PAGE)
    space = pool.open_derived("d", 1000, lambda n, out: None)
    for n in np.random.default_rng(3).integers(0, 1000, 100_000).tolist():
        space[n]
    advice, series = pool.advise(), read(pool.name)
    assert len(advice.points) > 5
    for point in advice.points:
        budget = f"{point.budget_frames / 256:g}"
        assert get(series, "advised_budget_bytes", pool, budget=budget) == point.budget_bytes
        assert get(series, "advised_hit_ratio", pool, budget=budget) == pytest.approx(point.hit_ratio, abs=0.05)


def test_why_the_budget_moved_is_in_the_metrics(make_pool):
    pool = make_pool()
    events.post(pool.client.seg, events.NewEvent(EventKind.SHRANK, EventReason.PSI, before=64, after=48))
    events.post(pool.client.seg, events.NewEvent(EventKind.GREW, EventReason.PAYS, before=48, after=64))
    events.post(pool.client.seg, events.NewEvent(EventKind.SHRANK, EventReason.PSI, before=64, after=32))
    pool.client.seg.post_event((99, int(EventReason.PSI), 0, 0, 0, 0.0, 0, 0, 0))  # of a later version
    last, series = {(e.kind, e.reason): e.time for e in pool.events()}, read(pool.name)
    assert len(last) == 3
    for (what, why), at in last.items():
        labels = {"event": what.name.lower(), "reason": why.name.lower()}
        assert get(series, "last_event_timestamp_seconds", pool, **labels) == pytest.approx(at, abs=1e-3)
    assert sum("last_event" in str(name) for name in series) == 3


def test_dead_clients_count_and_are_seen(make_pool, child):
    pool = make_pool()
    other = child(attach_and_read, pool.name, 7)
    wait_until(lambda: get(read(pool.name), "hits_total", pool) == 6, "the other client reads")
    assert get(read(pool.name), "clients", pool, state="alive") == 2
    other.kill()
    series = read(pool.name)
    assert get(series, "clients", pool, state="alive") == 1
    assert get(series, "clients", pool, state="dead") == 1
    assert get(series, "hits_total", pool) == 6
    pool.reap()
    series = read(pool.name)
    assert get(series, "clients", pool, state="dead") == 0
    assert get(series, "clients_reaped_total", pool) == 1
    assert get(series, "hits_total", pool) == 6


def attach_and_read(name: str, times: int) -> None:
    space = bp.Pool.attach(name).open_derived("d", 4, lambda n, out: None)
    for _ in range(times):
        space[1]
    time.sleep(60)


# ---- counters only grow ---------------------------------------------------------------------


def only_grew(before: Series, after: Series) -> list[str]:
    """Counters and buckets that went back, or are gone."""
    ends = ("_total", "_bucket", "_count", "_sum")
    return [f"{key}: {value} -> {after.get(key)}" for key, value in before.items()
            if key[0].endswith(ends) and not after.get(key, -1.0) >= value]  # fmt: skip


def work_until_killed(name: str, path: str, seed: int) -> None:
    """A client that does everything, for ever; now and then it detaches and comes back."""
    random = np.random.default_rng(seed)
    while True:
        with bp.Pool.attach(name) as pool:
            table = pool.open_file(path, mode="r+", name="table")
            tiles = pool.open_derived("tiles", 200, lambda n, out: out.fill(n))
            for _ in range(int(random.integers(20, 400))):
                n = int(random.integers(0, 200))
                with suppress(bp.errors.PoolExhausted, bp.errors.WaitTimeout):
                    tiles[n]
                    table[n]
                    if n % 10 == 0:
                        with table.write(n, timeout=1.0) as page:
                            page[8:16] = 1
                    if n == 7:
                        pool.flush()
                    if n == 9:
                        pool.trim(8 * PAGE)
            del table, tiles


def test_counters_never_go_backwards_while_clients_are_killed(make_pool, data_file, child):
    """Each scrape is by a new collector, as if the exporter had just been restarted."""
    pool = make_pool(64 * PAGE, max_clients=12)
    path = str(data_file(200))
    pool.open_file(path, mode="r+", name="table")
    pool.open_derived("tiles", 200, lambda n, out: out.fill(n))
    random, kills, scrapes = np.random.default_rng(5), 0, 0
    workers = [child(work_until_killed, pool.name, path, i, context="fork") for i in range(6)]
    before, end = read(pool.name), time.monotonic() + 6
    while time.monotonic() < end or kills < 20:
        for _ in range(8):
            after = read(pool.name)
            assert only_grew(before, after) == []
            before, scrapes = after, scrapes + 1
        victim = int(random.integers(0, len(workers)))
        workers[victim].kill()
        kills += 1
        if kills % 2:
            pool.reap()
        workers[victim] = child(work_until_killed, pool.name, path, 100 + kills, context="fork")
    for worker in workers:
        worker.kill()
    pool.reap()
    after = read(pool.name)
    assert only_grew(before, after) == []
    assert get(after, "clients_reaped_total", pool) >= kills
    # A death between the count of a load and that of its time leaves the one without the other.
    assert 0 <= get(after, "loads_total", pool) - get(after, "load_seconds_count", pool) <= kills + len(workers)
    for what in ("hits", "misses"):
        spaces = sum(value for (name, _), value in after.items() if name == f"bufferpool_space_{what}_total")
        assert get(after, f"{what}_total", pool) == spaces
    assert scrapes > 100
    pool.flush()


def come_and_go(name: str) -> None:
    """A process that attaches, reads, and detaches, for ever."""
    while True:
        with bp.Pool.attach(name) as pool:
            space = pool.open_derived("d", 4, lambda n, out: None)
            for _ in range(100):
                space[1]
            del space


def test_a_sum_never_goes_backwards_while_clients_fold_theirs(make_pool, child):
    """The core's sum alone, again and again, while counters are folded."""
    pool = make_pool(max_clients=6)
    children = [child(come_and_go, pool.name, context="fork") for _ in range(3)]
    with Observer(pool.name) as observer:
        before, sums, end = np.frombuffer(observer.seg.counters(), np.uint64), 0, time.monotonic() + 4
        while time.monotonic() < end or sums < 1000:
            after = np.frombuffer(observer.seg.counters(), np.uint64)
            assert len(after) >= len(
                before
            )  # the spaces' counters stand last, and get their memory as spaces are opened
            same = after[: len(before)]
            assert (same >= before).all(), np.flatnonzero(same < before)
            before, sums = after, sums + 1
    for one in children:
        one.kill()


def test_the_figures_of_caches_are_exported(make_pool):
    """A pool whose memory was lent to a cache showed 0 bytes resident, and nothing said where the memory was."""
    pool = make_pool(capacity=1 << 20)
    cache = pool.cache("tiles")
    cache.put("a", bytes(50_000))
    assert cache.get("a") is not None
    assert cache.get("b") is None
    assert cache.get_or_load("c", lambda: 7) == 7
    stats, series = pool.stats(), read(pool.name)
    assert stats.caches == [cache.stats()]
    assert 50_000 <= stats.object_bytes <= stats.lent_bytes <= stats.budget_bytes
    assert get(series, "object_bytes", pool) == stats.object_bytes
    assert get(series, "lent_bytes", pool) == stats.lent_bytes
    for name, value in {"objects": 2, "bytes": cache.stats().bytes, "hits_total": 1, "misses_total": cache.stats().misses,
                        "puts_total": 2, "loads_total": 1, "load_failures_total": 0, "evictions_total": 0}.items():  # fmt: skip
        assert get(series, f"cache_{name}", pool, cache="tiles") == value, name


def test_a_killed_steward_is_none(make_pool, child):
    """The exporter still reported a steward after its death: the alert NoSteward could never fire."""
    pool = make_pool()
    steward = child(_steward, pool.name)
    wait_until(lambda: get(read(pool.name), "steward", pool) == 1, "there is a steward")
    steward.kill()
    assert get(read(pool.name), "steward", pool) == 0
    assert not any(client.is_steward for client in pool.clients())
    pool.reap()
    assert get(read(pool.name), "steward", pool) == 0


def _steward(name):
    pool = bp.Pool.attach(name)
    pool.start_steward()
    time.sleep(600)
