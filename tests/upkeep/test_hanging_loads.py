"""Operators see a load that hangs: in the events, in the log, in the commands and in the metrics.

Such a load left no event: only a flush that hung did. And the alert looked whether any load of the pool had ended, so that a
store that hung beside others that worked was not found. Besides, a loader of a cache, the engine's log and the write of a working
set were missing everywhere.
"""

import json
import logging
import os
import signal
import threading
import time

import pytest

import bufferpool as bp
from bufferpool.cli import main
from bufferpool.client import trouble
from bufferpool.errors import WaitTimeout
from bufferpool.figures.names import OPERATION_KINDS, RECOVERIES, EventKind, EventReason
from bufferpool.figures.operations import read_operations
from bufferpool.upkeep import steward, working_set
from bufferpool.upkeep.steward import Settings
from tests.conftest import stamp, wait_until
from tests.support.disks import Disk
from tests.support.hanging import Gate, in_time
from tests.support.scrape import get, read
from tests.support.stewards import put


def hangs(pool):
    return [event for event in pool.events() if event.reason is EventReason.HANGS]


def hang(pool, hung, threads, *call):
    """A space, of which a thread makes a call that hangs in the store."""
    space = pool.open_store("hung", hung)
    hung.reads.shut()
    threads.start(getattr(space, call[0]), *call[1:])
    hung.reads.wait_until_somebody_came()
    return space


def test_the_steward_finds_a_load_that_hangs(pool, hung, threads, monkeypatch, caplog):
    monkeypatch.setattr(steward, "HANGS_S", 0.2)
    caplog.set_level(logging.WARNING, "bufferpool")
    hang(pool, hung, threads, "__getitem__", 7)
    pool.start_steward(Settings(interval=0.02, pressure=False))
    wait_until(lambda: bool(hangs(pool)), "the event")
    first = hangs(pool)[0]
    assert (first.kind, first.space, first.page_no, first.client) == (EventKind.LOAD_FAILED, "hung", 7, 1)
    assert first.value >= 0.2
    wait_until(lambda: f"has not come back to client 1 (pid {os.getpid()})" in caplog.text, "the line of the log")
    assert "(space 'hung', page 7)" in caplog.text
    hung.open()
    threads.join()
    pool.stop_steward()
    assert read_operations(pool) == []
    assert pool.check() == []


@pytest.mark.parametrize("what", ["load", "flush"])
def test_the_end_of_a_hang_is_an_event(pool, hung, threads, monkeypatch, what):
    """The last event was still the hang, so that a reader of the events did not see that the store worked again."""
    monkeypatch.setattr(steward, "HANGS_S", 0.2)
    space = pool.open_store("hung", hung, mode="r+")
    kind = EventKind.LOAD_RECOVERED if what == "load" else EventKind.FLUSH_RECOVERED
    if what == "flush":
        with space.write(7) as page:
            page[:] = 1
        hung.syncs.shut()
        threads.start(space.flush)
        hung.syncs.wait_until_somebody_came()
    else:
        hung.reads.shut()
        threads.start(space.__getitem__, 7)
        hung.reads.wait_until_somebody_came()
    pool.start_steward(Settings(interval=0.02, pressure=False))
    wait_until(lambda: bool(hangs(pool)), "the event")
    begin = time.monotonic()
    wait_until(lambda: time.monotonic() - begin > 1.5, "several looks of the steward")
    assert RECOVERIES[hangs(pool)[-1].kind] is kind, "it hangs still"
    hung.open()
    threads.join()
    wait_until(lambda: hangs(pool)[-1].kind is kind, "the event of the end")
    event = hangs(pool)[-1]
    assert (event.space, event.client) == ("hung", 1)
    assert event.value > 1.5
    store = "the store or loader" if kind is EventKind.LOAD_RECOVERED else "the store"
    assert f"{what} recovered: {store} came back to client 1 (pid {os.getpid()}) after" in str(event)
    pool.stop_steward()
    with bp.Pool.attach(pool.name) as other:  # the next client that looks finds the event
        assert trouble.tell_recovered(other.client, other.operations()) == 0
    assert [e.kind for e in hangs(pool)].count(kind) == 1
    assert pool.check() == []


def load_and_hang(name):
    bp.Pool.attach(name).open_derived("endless", 4, lambda _n, _out: time.sleep(600))[1]


def test_the_hang_of_a_client_that_was_killed_has_not_come_back(pool, child):
    """Its operation has ended, which says nothing about the store."""
    killed = child(load_and_hang, pool.name)
    wait_until(lambda: pool.stats().oldest_operation_s["load"] > 0.5, "it hangs")
    assert len(trouble.tell_hanging(pool.client, pool.operations(), 0.2)) == 1
    assert trouble.tell_recovered(pool.client, pool.operations()) == 1
    killed.kill()
    for reaped in (False, True):
        assert not reaped or pool.reap() == 1
        assert trouble.tell_recovered(pool.client, pool.operations() if reaped else []) == 0
    assert [event.kind for event in hangs(pool)] == [EventKind.LOAD_FAILED]


def test_a_load_that_hangs_is_recorded_when_it_hangs_twice_as_long_and_once_for_all(pool, hung, threads):
    """The stewards and the clients that wait are many: each looks at what the pool's events say already."""
    space = hang(pool, hung, threads, "__getitem__", 7)
    wait_until(lambda: pool.stats().oldest_operation_s["load"] > 0.5, "it hangs")
    (one,) = pool.operations()
    with bp.Pool.attach(pool.name) as other:
        assert len(trouble.tell_hanging(pool.client, [one], 0.2)) == 1
        assert trouble.tell_hanging(other.client, [one], 0.2) == []
        assert trouble.tell_hanging(pool.client, [one], 0.2) == []
    wait_until(lambda: pool.operations()[0].seconds > 2 * one.seconds, "it hangs on")
    assert len(trouble.tell_hanging(pool.client, pool.operations(), 0.2)) == 1
    assert len(hangs(pool)) == 2
    hung.open()
    threads.join()
    hung.reads.shut()
    threads.start(space.__getitem__, 8)
    hung.reads.wait_until_somebody_came()
    wait_until(lambda: pool.stats().oldest_operation_s["load"] > 0.2, "another page hangs")
    assert len(trouble.tell_hanging(pool.client, pool.operations(), 0.2)) == 1, "another load is another event"
    hung.open()
    threads.join()
    assert pool.check() == []


def test_who_gives_up_waiting_records_the_load_without_a_steward(pool, hung, threads, monkeypatch, caplog):
    monkeypatch.setattr(trouble, "LATE_S", 0.2)
    space = hang(pool, hung, threads, "__getitem__", 7)
    with pytest.raises(WaitTimeout, match=r"page 7: client 1 has been loading it .* pool.operations\(\)"):
        in_time(space.get, 7, timeout=0.6)
    (event,) = hangs(pool)
    assert (event.kind, event.space, event.page_no, event.client) == (EventKind.LOAD_FAILED, "hung", 7, 1)
    assert "a load of page 7 of 'hung' by client 1" in caplog.text
    hung.open()
    threads.join()
    assert pool.check() == []


def test_a_timeout_that_is_short_is_no_event(pool, hung, threads):
    """A caller with a timeout of a few milliseconds expects that it is over."""
    space = hang(pool, hung, threads, "__getitem__", 7)
    with pytest.raises(WaitTimeout):
        in_time(space.get, 7, timeout=0.01)
    assert hangs(pool) == []
    hung.open()
    threads.join()
    assert pool.check() == []


@pytest.mark.parametrize("call", [("read_many", [3, 4, 5]), ("prefetch", [3, 4, 5]), ("__getitem__", 3)])
def test_every_view_names_the_load_that_hangs(pool, hung, threads, capsys, call):
    hang(pool, hung, threads, *call)
    wait_until(lambda: pool.stats().oldest_operation_s["load"] > 0.2, "it hangs")
    (one,) = pool.operations()
    assert (one.kind, one.space, one.client) == ("load", "hung", 1)
    assert one.page_no in (3, 4, 5)
    assert main(["operations", pool.name, "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["kind"], row["space"], row["page_no"], row["pid"]) == ("load", "hung", one.page_no, one.pid)
    assert main(["operations", pool.name]) == 0
    assert "hung" in capsys.readouterr().out
    series = read(pool.name)
    assert get(series, "oldest_operation_seconds", pool, operation="load") >= 0.2
    assert get(series, "oldest_operation_seconds", pool, operation="flush") == 0
    hung.open()
    threads.join()
    assert main(["operations", pool.name]) == 0
    assert "nothing is under way" in capsys.readouterr().out
    assert pool.check() == []


def test_a_load_of_many_pages_that_come_one_after_the_other_does_not_hang(pool):
    """What counts is the time since a page of it came, not since the whole load began."""
    seen, pages = [], 6
    half = threading.Event()

    def load(n, out):
        half.wait(0.3)
        out[:] = stamp(n)
        seen.append(pool.stats().oldest_operation_s["load"])

    space = pool.open_derived("slow", 64, load)
    in_time(space.read_many, range(pages))
    assert len(seen) == pages
    assert max(seen) < 0.3 * pages
    assert pool.check() == []


# ---- what is no load and no flush of pages ------------------------------------------------


class Stuck:
    """A call that hangs until the test lets it continue."""

    def __init__(self, result):
        self.gate, self.result = Gate(), result
        self.gate.shut()

    def __call__(self, *_):
        self.gate.pass_through()
        return self.result


def hanging_loader(pool, threads, stuck, **_):
    cache = pool.cache("thumbs")
    threads.start(cache.get_or_load, ("cat", 7), stuck)


def hanging_renewal(pool, threads, stuck, **_):
    """The value has expired, and is still in the cache while a new one is loaded: no entry is added."""
    cache = pool.cache("thumbs")
    cache.put(("cat", 7), b"old", ttl=1e-9)
    wait_until(lambda: ("cat", 7) not in cache, "it expires")
    threads.start(cache.get_or_load, ("cat", 7), stuck)


def hanging_log(pool, threads, stuck, **_):
    pool.durable_lsn, pool.log_sync = 1, lambda lsn: stuck(lsn) and lsn
    logged = pool.open_store("logged", Disk(4), mode="r+")
    put(logged, 0, lsn=9)
    threads.start(pool.checkpoint)


def hanging_save(pool, threads, stuck, *, tmp_path, monkeypatch):
    monkeypatch.setattr(working_set.os, "fsync", stuck)
    threads.start(pool.save_working_set, tmp_path / "warm.npz")


OTHERS = [
    (hanging_loader, "cache_load", EventKind.LOAD_FAILED, EventReason.HANGS, "cache 'thumbs'"),
    (hanging_renewal, "cache_load", EventKind.LOAD_FAILED, EventReason.HANGS, "cache 'thumbs'"),
    (hanging_log, "log_sync", EventKind.FLUSH_FAILED, EventReason.LOG_HANGS, "log_sync"),
    (hanging_save, "save", EventKind.SAVE_FAILED, EventReason.HANGS, "the working set"),
]


@pytest.mark.parametrize(("begin", "operation", "kind", "reason", "text"), OTHERS)
def test_other_calls_that_hang_are_events_operations_and_metrics(
    pool, threads, monkeypatch, tmp_path, capsys, begin, operation, kind, reason, text
):
    monkeypatch.setattr(steward, "HANGS_S", 0.2)
    stuck = Stuck(b"value")
    try:
        begin(
            pool, threads, stuck, **({"tmp_path": tmp_path, "monkeypatch": monkeypatch} if operation == "save" else {})
        )
        stuck.gate.wait_until_somebody_came()
        wait_until(lambda: pool.stats().oldest_operation_s[operation] > 0.2, "it hangs")
        assert pool.stats().pending_operations == {kind: int(kind == operation) for kind in OPERATION_KINDS}
        (one,) = pool.operations()
        assert (one.kind, one.client, one.pid) == (operation, 1, os.getpid())
        assert (one.cache, one.key) == (("thumbs", "('cat', 7)") if operation == "cache_load" else ("", ""))
        assert main(["operations", pool.name]) == 0
        out = capsys.readouterr().out
        assert operation.replace("_", " ") in out
        assert ("('cat', 7)" in out) == (operation == "cache_load")
        series = read(pool.name)
        for other in OPERATION_KINDS:
            assert get(series, "pending_operations", pool, operation=other) == (other == operation)
            assert (get(series, "oldest_operation_seconds", pool, operation=other) >= 0.2) == (other == operation)
        pool.start_steward(Settings(interval=0.02, pressure=False, flush_every=float("inf")))
        wait_until(lambda: any(event.kind is kind and event.reason is reason for event in pool.events()), "the event")
        event = next(event for event in pool.events() if event.reason is reason)
        assert (event.client, event.space, event.page_no) == (1, None, None)
        assert event.cache == ("thumbs" if operation == "cache_load" else None)
        assert text in str(event)
        assert f"(pid {os.getpid()})" in str(event)
        stuck.gate.open()
        wait_until(lambda: RECOVERIES[kind] in {event.kind for event in pool.events()}, "the event of the end")
        end = next(event for event in pool.events() if event.is_recovery)
        assert (end.reason, end.client, end.cache) == (reason, 1, event.cache)
        assert f"came back to client 1 (pid {os.getpid()}) after" in str(end)
    finally:
        stuck.gate.open()
    threads.join()
    pool.stop_steward()
    assert read_operations(pool) == []
    assert pool.stats().pending_operations == dict.fromkeys(OPERATION_KINDS, 0)
    assert pool.check() == []


def test_who_gives_up_waiting_for_a_value_records_its_loader(pool, threads, monkeypatch):
    monkeypatch.setattr(trouble, "LATE_S", 0.2)
    stuck = Stuck(b"value")
    hanging_loader(pool, threads, stuck)
    stuck.gate.wait_until_somebody_came()
    with pytest.raises(WaitTimeout, match=r"pool.operations\(\)"):
        in_time(pool.cache("thumbs").get_or_load, ("cat", 7), stuck, timeout=0.6)
    (event,) = hangs(pool)
    assert (event.kind, event.cache, event.client) == (EventKind.LOAD_FAILED, "thumbs", 1)
    stuck.gate.open()
    threads.join()
    assert pool.check() == []


def test_who_gives_up_waiting_for_the_log_records_it(pool, threads, monkeypatch):
    monkeypatch.setattr(trouble, "LATE_S", 0.2)
    stuck = Stuck(True)
    hanging_log(pool, threads, stuck)
    stuck.gate.wait_until_somebody_came()
    with pytest.raises(WaitTimeout, match="log_sync"):
        in_time(pool.checkpoint, 9, timeout=0.6)
    assert {event.reason for event in pool.events()} >= {EventReason.LOG_HANGS}
    stuck.gate.open()
    threads.join()
    assert pool.check() == []


def sync_and_die(name):
    pool = bp.Pool.attach(name)
    with pool.client.seg.under_way("log_sync"), pool.client.seg.under_way("save"):
        os.kill(os.getpid(), signal.SIGKILL)


def test_an_operation_of_a_dead_client_ends_with_it(pool, child):
    child(sync_and_die, pool.name)
    wait_until(lambda: {client.alive for client in pool.clients()} == {True, False}, "it dies")
    assert {one.kind for one in pool.operations()} == {"log_sync", "save"}
    assert pool.reap() == 1
    assert pool.operations() == []
    assert pool.check() == []


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("a\nb", r"'a\nb'"), ("\u202ex", r"'\u202ex'"), (b"\x00", r"b'\x00'"), (-5, "-5"), (2**80, hex(2**80)),
        ((), "()"), (("a", (1,)), "('a', (1,))"), ("é" * 2000, "'" + "é" * 98 + "…"), (("x" * 2000, 1), "('" + "x" * 97 + "…"),
    ],
)  # fmt: skip
def test_the_key_of_a_value_that_is_loaded_is_shown_escaped(pool, key, text):
    """A key is bytes in the pool, perhaps more of them than are read, and perhaps with control characters."""
    seen = []

    def load(_):
        seen.extend(pool.operations())
        return b""

    pool.cache("c").get_or_load(key, load)
    assert [one.key for one in seen] == [text]
    assert pool.check() == []
