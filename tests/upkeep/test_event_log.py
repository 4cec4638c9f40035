"""The log: decisions, failures and deaths are lines of the logger "bufferpool", and of the command ``steward``."""

import errno
import json
import logging
import os
import signal
import subprocess
import sys
import time

import pytest

import bufferpool as bp
from bufferpool.figures import events
from bufferpool.figures.events import NewEvent
from bufferpool.figures.names import EventKind, EventReason
from tests.conftest import PAGE, WAIT, wait_until
from tests.support.memory_store import Memory


def lines_of(caplog):
    return [r.getMessage() for r in caplog.records if r.name == "bufferpool"]


def attach_and_wait(name: str) -> None:
    pool = bp.Pool.attach(name)
    pool.stats()
    time.sleep(WAIT)
    pool.close()


def test_a_steward_logs_what_is_decided_and_who_died(make_pool, child, caplog):
    """The events were in the segment alone: the log of the process that decides had none of them."""
    pool = make_pool()
    other = child(attach_and_wait, pool.name)
    wait_until(lambda: pool.stats().clients == 2, "the other client attaches")
    with caplog.at_level(logging.INFO, "bufferpool"):
        pool.start_steward(bp.Settings(interval=0.02, pressure=False))
        wait_until(lambda: pool.stats() and any("steward" in line for line in lines_of(caplog)), "it is the steward")
        other.kill()
        wait_until(lambda: any("reaped" in line for line in lines_of(caplog)), "the death is logged")
        pool.resize(32 * PAGE)
        wait_until(lambda: any("resized" in line for line in lines_of(caplog)), "the new budget is logged")
        pool.stop_steward()
    lines = lines_of(caplog)
    assert all(pool.name in line for line in lines)
    assert sum("reaped" in line for line in lines) == 1
    fields = [r.fields for r in caplog.records if r.name == "bufferpool" and "reaped" in r.getMessage()]
    assert fields[0]["kind"] == "reaped"
    assert fields[0]["reason"] == "died"


def test_an_error_of_a_store_is_one_line_with_its_place(make_pool, caplog):
    """The steward must not repeat what its own process has logged with the text of the error."""
    pool = make_pool()
    store = Memory(20)
    store.fail_write = OSError(errno.ENOSPC, "no room")
    table = pool.open_store("orders", store, mode="r+")
    with caplog.at_level(logging.INFO, "bufferpool"):
        with table.write(3) as page:
            page[:] = 1
        pool.start_steward(bp.Settings(interval=0.02, flush_every=0.05, pressure=False))
        wait_until(lambda: pool.stats().flush_failures >= 3, "it tries again")
        with table.write(4) as page:
            page[:] = 1
        store.fail_write = None
        wait_until(lambda: not pool.stats().frames.dirty, "the disk has room again")
        pool.stop_steward()
    failed = [r for r in caplog.records if r.name == "bufferpool" and "cannot be written" in r.getMessage()]
    assert len(failed) == 1
    assert (failed[0].fields["space"], failed[0].fields["page_no"], failed[0].fields["errno"]) == (
        "orders",
        3,
        errno.ENOSPC,
    )
    assert not any("flush failed" in line for line in lines_of(caplog))


def lead_and_wait(name: str) -> None:
    pool = bp.Pool.attach(name)
    pool.start_steward(bp.Settings(interval=0.02, pressure=False))
    time.sleep(WAIT)
    pool.close()


def test_a_steward_that_takes_over_repeats_nothing_and_leaves_nothing_out(make_pool, child, caplog):
    """It wrote all events since it had been started: each worker of a server that ended had the next one repeat up to a thousand lines."""
    pool = make_pool()

    def post(value: float) -> int:
        pool.client.post(NewEvent(EventKind.RESIZED, EventReason.ASKED, value=value))
        return max(event.number for event in pool.events() if event.kind is EventKind.RESIZED)

    first = child(lead_and_wait, pool.name)
    wait_until(pool.client.seg.steward, "the first steward")
    with caplog.at_level(logging.INFO, "bufferpool"):
        second = pool.start_steward(bp.Settings(interval=0.02, pressure=False))
        written = post(1)
        wait_until(lambda: second._events._last >= written, "the first steward has written it")
        os.kill(first.pid, signal.SIGSTOP)
        post(2), post(3)
        time.sleep(0.1)  # for some rounds of the second steward; there is no further one of the first
        first.kill()
        wait_until(lambda: any("reaped" in line for line in lines_of(caplog)), "the second steward takes over")
        pool.stop_steward()
    values = [record.fields["value"] for record in caplog.records if record.fields["kind"] == "resized"]
    assert values == [2, 3]


# ---- the commands ---------------------------------------------------------------------


def run(*words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "bufferpool.cli", *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("js", [False, True])
def test_the_command_prints_what_the_steward_does(make_pool, child, js):
    pool = make_pool()
    other = child(attach_and_wait, pool.name)
    wait_until(lambda: pool.stats().clients == 2, "the other client attaches")
    steward = run("steward", pool.name, "--no-pressure", *(["--json"] if js else []))
    try:
        wait_until(lambda: pool.client.seg.steward(), "a steward")
        other.kill()
        wait_until(lambda: pool.stats().reaped == 1, "it reaps")
        pool.resize(32 * PAGE)
        lines = []
        while not any("resized" in line for line in lines):
            lines.append(steward.stdout.readline())
            assert lines[-1], lines
        assert any("reaped" in line and "WARNING" in line for line in lines) or js
        if js:
            found = [json.loads(line) for line in lines]
            assert {"reaped", "resized"} <= {one.get("kind") for one in found}
            assert all({"time", "level", "message"} <= one.keys() for one in found)
    finally:
        steward.send_signal(signal.SIGTERM)
        steward.communicate(timeout=WAIT)
    assert steward.returncode == 143


def test_a_steward_that_cannot_work_fails(pool_name, make_pool):
    """Its exit code was 0, or there was none to see: a supervisor did not start it again."""
    none = run("steward", pool_name)
    assert "there is no pool" in none.communicate(timeout=WAIT)[1]
    assert none.returncode == 1


def test_a_steward_that_ends_with_unsaved_pages_fails(tmp_path, pool_name):
    """The file cannot be written, the pool is removed, and the pages are lost: no success."""
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "file").write_bytes(bytes(10 * PAGE))
    with bp.Pool.create(pool_name, 64 * PAGE, page_size=PAGE) as pool:
        table = pool.open_file(folder / "file", "r+")
        steward = run("steward", pool_name, "--no-pressure", "--flush-every", "1000")
        wait_until(lambda: pool.client.seg.steward(), "a steward")
        with table.write(1) as page:
            page[:] = 1
        os.rename(folder, tmp_path / "moved")
        pool.unlink(discard=True)
        del table
    said = steward.communicate(timeout=WAIT)
    assert steward.returncode == 1, said
    assert "could not be written" in said[1]


def test_events_are_followed(make_pool):
    pool = make_pool()
    follower = run("events", pool.name, "--follow", "--json")
    try:
        assert json.loads(follower.stdout.readline())["kind"] == "created"
        events.post(pool.client.seg, events.NewEvent(EventKind.SHRANK, EventReason.PSI, value=3.0))
        told = json.loads(follower.stdout.readline())
        assert (told["kind"], told["reason"]) == ("shrank", "psi")
        assert "memory pressure" in told["text"]
        pool.unlink(discard=True)
        assert "there is no pool" in follower.communicate(timeout=WAIT)[1]
        assert follower.returncode == 1
    finally:
        follower.kill()
        follower.wait()


@pytest.mark.parametrize(("since", "found"), [("1h", 1), ("2020-01-01", 1), ("2200-01-01T00:00", 0), ("0", 0)])
def test_events_since_a_time(pool, since, found):
    asked = run("events", pool.name, "--since", since, "--json")
    assert len(json.loads(asked.communicate(timeout=WAIT)[0])) == found
    wrong = run("events", pool.name, "--since", "yesterday")
    assert "must be a time" in wrong.communicate(timeout=WAIT)[1]
    assert wrong.returncode == 2
