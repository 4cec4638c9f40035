"""The ring of events: what was decided, by whom, and why; any process reads it, also after its writer has died."""

import os
import signal
import struct
import time

import pytest

from bufferpool import _core
from bufferpool.figures import events
from bufferpool.figures.events import Event
from bufferpool.figures.names import EventKind, EventReason
from tests.conftest import PAGE, WAIT, wait_until

RING = 1024


def _ring_at(pool):
    """Where the ring begins in the segment: 64 bytes an event."""
    fields = _core.fields()
    with open(pool.path, "rb") as file:
        file.seek(fields["Header.geometry"][0] + fields["Geometry.events_at"][0])
        return struct.unpack("<Q", file.read(8))[0]


def test_the_first_event_is_the_creation(pool):
    (event,) = pool.events()
    assert (event.number, event.kind, event.reason) == (1, EventKind.CREATED, EventReason.ASKED)
    assert event.budget_before == event.budget_after == 64 * PAGE
    assert abs(event.time - time.time()) < 60
    assert event.client == pool.client.seg.status()["client"]


def test_resize_and_trim_are_events_with_their_bytes(pool, data_file):
    table = pool.open_file(data_file(64))
    for n in range(64):
        assert table[n].size
    given = pool.resize(32 * PAGE)
    trimmed = pool.trim(8 * PAGE)
    _, resized, trim = pool.events()
    assert (resized.kind, resized.reason, resized.bytes) == (EventKind.RESIZED, EventReason.ASKED, given)
    assert (resized.budget_before, resized.budget_after) == (64 * PAGE, 32 * PAGE)
    assert (trim.kind, trim.reason, trim.bytes) == (EventKind.TRIMMED, EventReason.ASKED, trimmed)
    assert given == 32 * PAGE
    assert trimmed >= 8 * PAGE


def test_a_client_that_died_is_an_event(pool, child, spawn):
    ready = spawn.Event()
    victim = child(_wait, pool, ready)
    assert ready.wait(WAIT)
    client = next(c.client for c in pool.clients() if c.pid == victim.pid)
    victim.kill()
    pool.reap()
    event = pool.events()[-1]
    assert (event.kind, event.reason, event.value) == (EventKind.REAPED, EventReason.DIED, client)
    assert f"client {event.client} found client {client} dead" in str(event)


@pytest.mark.parametrize(
    ("kind", "reason", "text"),
    [
        (EventKind.STEWARD, EventReason.ASKED, "steward: client 1 (pid {pid}) is active now"),
        (EventKind.STEWARD, EventReason.DIED, "steward: client 1 (pid {pid}) took over from client 12, which had died"),
        (EventKind.FLUSH_FAILED, EventReason.HANGS, "flush hangs: the store has not come back to client 1"),
        (EventKind.FLUSH_FAILED, EventReason.LOG_HANGS, "flush hangs: log_sync has not come back to client 1"),
        (EventKind.LOAD_FAILED, EventReason.HANGS, "load hangs: the store or loader has not come back to client 1"),
        (EventKind.SAVE_FAILED, EventReason.HANGS, "save hangs: the write of the working set has not come back"),
        (EventKind.FLUSH_FAILED, EventReason.STORE, "flush failed: the store failed"),
    ],
)
def test_the_text_of_an_event_says_what_it_is(pool, kind, reason, text):
    """A hang read "flush failed", which the counter of failures did not have; a new steward read "asked for"."""
    events.post(pool.client.seg, events.NewEvent(kind, reason, value=12.0))
    assert str(pool.events()[-1]).startswith(text.format(pid=os.getpid()))


def test_a_steward_that_has_the_slot_of_the_dead_one_is_not_named_twice(pool):
    """It read "client 1 took over from client 1, which had died"."""
    events.post(pool.client.seg, events.NewEvent(EventKind.STEWARD, EventReason.DIED, value=1.0))
    text = f"steward: client 1 (pid {os.getpid()}) took over from an earlier process in its slot, which had died"
    assert str(pool.events()[-1]) == text


def _wait(pool, ready):
    pool.stats()
    ready.set()
    time.sleep(600)


def test_the_ring_keeps_the_last_thousand(pool):
    for i in range(2 * RING + 100):
        events.post(pool.client.seg, events.NewEvent(EventKind.GREW, EventReason.PAYS, value=i, before=i, after=i + 1))
    found = pool.events()
    assert len(found) == RING
    assert [e.number for e in found] == list(range(RING + 102, 2 * RING + 102))
    assert [e.value for e in found] == [e.number - 2 for e in found]
    assert all(e.budget_before == e.value * PAGE for e in found)


def test_events_survive_the_process_that_posted_them(pool, child):
    child(_post, pool, 5, 10).result()
    assert [e.value for e in pool.events()[1:]] == [5.0] * 10
    assert len({e.client for e in pool.events()}) == 2


def _post(pool, value, n):
    for _ in range(n):
        events.post(
            pool.client.seg,
            events.NewEvent(EventKind.GREW, EventReason.PAYS, value=value, bytes=value, before=value, after=value),
        )


def test_posters_in_threads_and_processes_lose_nothing_and_mix_nothing(pool, child, threads):
    others = [child(_post, pool, value, 150, context="fork") for value in (1, 2)]
    for value in (3, 4):
        threads.start(_post, pool, value, 150)
    threads.join()
    for other in others:
        other.result()
    found = pool.events()[1:]
    assert len(found) == 600
    assert [e.number for e in found] == list(range(2, 602))
    assert sorted(e.value for e in found) == sorted([1.0, 2.0, 3.0, 4.0] * 150)
    assert all(e.value == e.bytes == e.budget_before // PAGE for e in found)


def test_a_reader_sees_whole_events_while_the_ring_is_lapped(pool, child, spawn):
    stop, posted = spawn.Event(), [spawn.RawValue("q", 0) for _ in range(2)]
    posters = [child(_post_until, pool, 7 + n, stop, posted[n], context="fork") for n in range(2)]
    wait_until(lambda: min(n.value for n in posted) > RING, "each of the two has filled the ring")
    seen = 0
    for _ in range(20):
        found = pool.events()
        assert all(e.value == e.bytes == e.budget_before // PAGE for e in found if e.kind is EventKind.GREW)
        numbers = [e.number for e in found]
        assert numbers == sorted(set(numbers))
        seen += len(found)
    stop.set()
    for poster in posters:
        poster.result()
    assert seen > 0


def _post_until(pool, value, stop, posted):
    while not stop.is_set():
        _post(pool, value, 50)
        posted.value += 50


def test_an_event_whose_poster_died_in_the_middle_is_left_out(pool):
    """The number is stored first as 0 and last as what it is: a dead poster leaves 0."""
    for i in range(5):
        events.post(pool.client.seg, events.NewEvent(EventKind.GREW, EventReason.PAYS, value=i))
    with open(pool.path, "r+b") as file:
        start = _ring_at(pool)
        file.seek(start + 3 * 64)
        file.write(bytes(8))
        file.seek(start + 4 * 64)
        file.write(struct.pack("<Q", 4711))
    found = pool.events()
    assert [e.number for e in found] == [1, 2, 3, 6]
    events.post(pool.client.seg, events.NewEvent(EventKind.GREW, EventReason.PAYS, value=9))
    assert [e.number for e in pool.events()] == [1, 2, 3, 6, 7]


def test_events_that_mean_nothing_are_left_out(pool):
    pool.client.seg.post_event((99, int(EventReason.PSI), 0, 0, 0, 0.0, 0, 0, 0))
    pool.client.seg.post_event((int(EventKind.GREW), 0, 0, 0, 0, 0.0, 0, 0, 0))
    pool.client.seg.post_event(
        (int(EventKind.GREW), int(EventReason.PSI), 2**64 - 1, 2**32 - 1, 0, float("nan"), 0, 0, 0)
    )
    found = pool.events()
    assert [e.number for e in found] == [1, 4]
    assert str(found[-1])


def test_a_damaged_count_of_events_is_no_crash(pool):
    where = _core.fields()["Header.events"][0]
    for n in (2**64 - 1, 2**63, 5000):
        with open(pool.path, "r+b") as file:
            file.seek(where)
            file.write(struct.pack("<Q", n))
        assert len(pool.events()) <= RING
        events.post(pool.client.seg, events.NewEvent(EventKind.GREW, EventReason.PAYS, value=9))
    assert pool.events()[-1].value == 9


@pytest.mark.parametrize("why", EventReason)
def test_each_says_what_it_is(why):
    for what in EventKind:
        event = Event(1, 0.0, what, why, 3 << 20, 8 << 20, 4 << 20, 12.5, 3)
        text = str(event)
        hangs = why in (EventReason.HANGS, EventReason.LOG_HANGS)
        name = what.name.replace("FAILED", "HANGS") if hangs else what.name
        assert name.lower().replace("_", " ") in text
        assert "from 8.0 MiB to 4.0 MiB" in text
        assert "3.0 MiB" in text
        assert len(text.split(": ", 1)[1]) > 3


def test_a_read_only_client_sees_them(pool):
    import bufferpool as bp

    with bp.Pool.attach(pool.name, mode="r") as other:
        assert other.events() == pool.events()


def test_a_poster_killed_at_any_moment_leaves_a_ring_that_can_be_read(pool, child, spawn):
    for _ in range(5):
        stop = spawn.Event()
        poster = child(_post_until, pool, 3, stop, spawn.RawValue("q", 0), context="fork")
        before = len(pool.events())
        wait_until(lambda before=before: pool.events()[-1].number > before + 20, "it posts")
        os.kill(poster.pid, signal.SIGKILL)
        poster.process.join(WAIT)
        last = pool.events()[-1].number
        events.post(pool.client.seg, events.NewEvent(EventKind.GREW, EventReason.PAYS, value=1))
        found = pool.events()
        assert last < found[-1].number <= last + 2
        assert all(e.value == e.bytes for e in found if e.value == 3)
    assert pool.reap() >= 1


def test_an_event_that_two_posters_have_written_is_left_out(pool):
    """A poster is stopped between two fields of its event, for a turn of the ring; then it writes into a later one."""
    for n in range(5):
        events.post(pool.client.seg, events.NewEvent(EventKind.GREW, EventReason.PAYS, bytes=n, value=n))
    before = pool.events()
    later = before[-2].number
    with open(pool.path, "r+b") as file:
        file.seek(_ring_at(pool) + (later - 1) * 64 + 16)
        file.write(struct.pack("<Q", 77))  # its bytes
    assert [e.number for e in pool.events()] == [e.number for e in before if e.number != later]
