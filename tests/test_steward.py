"""The steward: one at a time, flushing ahead of demand, a budget that gives way, and an end without leftovers."""

import gc
import os
import signal
import struct
import threading
import time

import numpy as np
import pytest

import bufferpool as bp
from bufferpool import _core, inspect, steward, warm
from bufferpool.errors import PoolReadOnly
from bufferpool.events import What, Why
from bufferpool.govern import Rules
from bufferpool.pressure import Reading
from bufferpool.steward import Settings, Steward
from tests.conftest import EXTENT, PAGE, WAIT, run_python, stamp, wait_until

GIB = 1 << 30
CALM = Reading(psi_some=0.0, psi_full=0.0, machine_free=8 * GIB, machine_size=16 * GIB)
PRESSED = {
    "psi": (Reading(psi_some=50.0, machine_free=8 * GIB, machine_size=16 * GIB), Why.PSI),
    "shm": (Reading(shm_free=0, shm_size=1 << 20), Why.SHM),
    "cgroup": (Reading(cgroup_free=0, cgroup_limit=1 << 20), Why.CGROUP),
    "machine": (Reading(machine_free=0, machine_size=1 << 20), Why.MACHINE),
}
FAST = Rules(shrink_every_s=0.0, grow_every_s=0.0, rest_s=0.0)


class Fake:
    """A source that says what the test wants, and lets rounds run when it wants them."""

    def __init__(self, reading: Reading = CALM, *, free: bool = True) -> None:
        self.reading, self.closed = reading, False
        self.go = threading.Event()
        self.rounds = 0
        if free:
            self.go.set()

    def read(self):
        return self.reading

    def wait(self, timeout_s):
        self.rounds += 1
        time.sleep(0.002)
        return not self.go.wait(WAIT)

    def close(self):
        self.closed = True


def whats(pool):
    return [event.what for event in pool.events()]


def put(space, page_no, version=1, lsn=0):
    write = space.write(page_no, timeout=WAIT)
    if lsn:
        write.lsn = lsn
    with write as page:
        page[:] = stamp(page_no, version=version)


def dirty(pool):
    return pool.stats().frames["dirty"]


class Stop:
    """A flag for processes that may be killed: an Event of multiprocessing waits for dead waiters."""

    def __init__(self, context):
        self.value = context.RawValue("i", 0)

    def set(self):
        self.value.value = 1

    def is_set(self):
        return bool(self.value.value)


def lead(pool, stop):
    pool.start_steward(interval=0.01, pressure=False)
    while not stop.is_set():
        time.sleep(0.005)
    pool.stop_steward()
    return os.getpid()


# ---- the office -----------------------------------------------------------------------------------


def test_exactly_one_leads_and_another_takes_over_when_it_is_killed(pool, child, spawn):
    stop = Stop(spawn)
    offers = {child(lead, pool, stop, context="fork") for _ in range(3)}
    previous = 0
    for _ in range(2):
        wait_until(lambda previous=previous: pool.steward() not in (0, previous), "somebody leads")
        client = pool.steward()
        pid = next(c.pid for c in pool.clients() if c.client == client)
        victim = next(offer for offer in offers if offer.pid == pid)
        seen = {pool.steward() for _ in range(200)}
        assert seen == {client}  # and it stays so
        victim.kill()
        offers.remove(victim)
        wait_until(lambda client=client: pool.steward() not in (0, client), "another leads")
        event = [e for e in pool.events() if e.what is What.STEWARD][-1]
        assert (event.why, event.value) == (Why.DIED, client)
        previous = client
    wait_until(lambda: pool.stats().clients == 2, "the dead are reaped by the steward")
    stop.set()
    assert len([offer.result() for offer in offers]) == 1
    wait_until(lambda: pool.steward() == 0, "it has resigned")


def test_a_stopped_steward_is_alive_and_keeps_the_office(pool, child, spawn):
    stop = Stop(spawn)
    other = child(lead, pool, stop, context="fork")
    wait_until(lambda: pool.steward() != 0, "it leads")
    client = pool.steward()
    os.kill(other.pid, signal.SIGSTOP)
    mine = pool.start_steward(interval=0.005, source=(fake := Fake()))
    wait_until(lambda: fake.rounds > 20, "we have asked many times")
    assert not mine.leads
    assert pool.steward() == client
    os.kill(other.pid, signal.SIGCONT)
    stop.set()
    other.result()
    wait_until(lambda: mine.leads, "it has resigned, and we lead")
    assert pool.steward() != client
    event = [e for e in pool.events() if e.what is What.STEWARD][-1]
    assert event.why is Why.ASKED
    pool.stop_steward()
    assert pool.steward() == 0
    assert fake.closed


def test_the_number_of_a_dead_steward_is_not_taken_for_ours(pool, child, spawn):
    """A new client gets the slot of the one that was steward: it is not the steward for that."""
    stop = Stop(spawn)
    victim = child(lead, pool, stop, context="fork")
    wait_until(lambda: pool.steward() != 0, "it leads")
    client = pool.steward()
    victim.kill()
    pool.reap()
    with bp.Pool.attach(pool.name) as other:
        assert other._seg.status()["client"] == client
        assert other.steward() == 0
    assert pool.steward() == 0


def test_two_pools_of_one_process_are_two_clients(pool, attach):
    other = attach(pool)
    first = pool.start_steward(source=Fake())
    wait_until(lambda: first.leads, "the first leads")
    second = other.start_steward(source=(fake := Fake()))
    wait_until(lambda: fake.rounds > 5, "the second asks")
    assert not second.leads
    assert pool.steward() == other.steward() == pool._seg.status()["client"]
    pool.stop_steward()
    wait_until(lambda: second.leads, "the second leads")


def test_starting_twice_is_refused_and_starting_again_is_not(pool):
    pool.start_steward(source=Fake())
    with pytest.raises(ValueError, match="stop_steward"):
        pool.start_steward()
    pool.stop_steward()
    pool.stop_steward()
    assert pool.start_steward(source=Fake()).alive


def test_a_read_only_pool_has_none(pool):
    with bp.Pool.attach(pool.name, mode="r") as other, pytest.raises(PoolReadOnly):
        other.start_steward()


@pytest.mark.parametrize(
    "bad",
    [
        {"interval": 0},
        {"flush_every": -1},
        {"flush_every": float("nan")},
        {"idle": 0},
        {"clean": 0.6},
        {"clean": -0.1},
        {"working_set_every": 0},
    ],
)
def test_bad_settings_are_refused(pool, bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        pool.start_steward(**bad)
    assert not [t for t in threading.enumerate() if t.name.startswith("steward")]


def test_nothing_is_left_of_stewards_that_came_and_went(make_pool):
    pool = make_pool()
    pool.start_steward(interval=0.01)
    pool.stop_steward()
    gc.collect()
    fds, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
    for _ in range(10):
        pool.start_steward(interval=0.01)
        pool.stop_steward()
    assert len(os.listdir("/proc/self/fd")) == fds
    assert threading.active_count() == threads


def test_what_ends_the_thread_is_raised_by_stop_and_by_close(pools, monkeypatch):
    monkeypatch.setattr(threading, "excepthook", lambda args: None)
    for end in ("stop_steward", "close"):
        pool = pools.create()
        fake = Fake()
        fake.read = lambda: 1 / 0
        made = pool.start_steward(source=fake)
        wait_until(lambda made=made: not made.alive, "it ends")
        assert fake.closed
        assert pool.steward() == 0
        with pytest.raises(ZeroDivisionError):
            getattr(pool, end)()
        pool.stop_steward()
        if end == "close":
            assert pool._segment is None  # closed all the same


_EXITS = """
import sys, bufferpool as bp
pool = bp.Pool.attach(sys.argv[1])
pool.start_steward(interval=0.01)
table = pool.open_file(sys.argv[2], "r+")
with table.write(0) as page: page[:] = 1
if sys.argv[3] == "error": raise SystemExit(3)
if sys.argv[3] == "view": view = table[1]
"""


@pytest.mark.parametrize(("how", "code"), [("end", 0), ("error", 3), ("view", 0)])
def test_the_interpreter_ends_with_a_running_steward(pool, data_file, how, code):
    done = run_python(_EXITS, pool.name, str(data_file(4)), how)
    assert (done.returncode, done.stderr) == (code, "")
    pool.reap()
    assert pool.steward() == 0
    assert pool.stats().clients == 1


def test_a_forked_child_has_no_steward_and_leaves_its_parents_alone(pool, child):
    made = pool.start_steward(interval=0.01)
    wait_until(lambda: made.leads, "we lead")
    mine = pool.steward()
    assert child(_child_of_a_steward, pool, context="fork").result() == (mine, False)
    assert made.alive
    assert made.leads
    assert pool.steward() == mine


def _child_of_a_steward(pool):
    seen = pool.steward()
    pool.stop_steward()
    made = pool.start_steward(interval=0.01)
    time.sleep(0.05)
    leads = made.leads
    pool.close()
    return seen, leads


# ---- flushing ------------------------------------------------------------------------------------


@pytest.fixture
def by_hand(monkeypatch):
    """A steward without a thread, whose rounds the test calls: by_hand(pool, source, rules, **settings)."""
    monkeypatch.setattr(threading.Thread, "start", lambda self: None)

    def make(pool, source=None, rules=None, **settings):
        made = Steward(pool, Settings(**settings), source or Fake(), rules)
        monkeypatch.setattr(made, "stop", lambda: None)
        return made

    yield make
    monkeypatch.undo()


def test_every_dirty_page_is_written_within_flush_every(make_pool, data_file, by_hand):
    """By a clock of our own: a page that is dirtied at any time is clean 15 seconds later."""
    pool = make_pool(4096 * PAGE)
    table = pool.open_file(data_file(4000), "r+")
    made = by_hand(pool, clean=0.0)
    rng, since, most = np.random.default_rng(2), {}, 0
    for tick in range(200):
        now = tick * 0.25
        for n in rng.integers(0, 4000, 60 if tick < 120 else 0).tolist():
            put(table, n)
            since.setdefault(n, now)
        before = pool.stats().flushed_pages
        made._flush(now)
        most = max(most, pool.stats().flushed_pages - before)
        frames = pool.frames()
        still = set(frames["page_no"][frames["dirty"]].tolist())
        since = {n: at for n, at in since.items() if n in still}
        assert all(now - at <= 15.0 for at in since.values())
    assert not since
    assert most <= 400  # spread, not in bursts: 60 a round are dirtied


def test_an_infinite_flush_every_writes_only_when_clean_frames_get_short(make_pool, data_file, by_hand):
    pool = make_pool(64 * PAGE)
    table = pool.open_file(data_file(100), "r+")
    made = by_hand(pool, clean=0.25, flush_every=float("inf"))
    for n in range(40):
        put(table, n)
    for tick in range(100):
        made._flush(tick * 10.0)
    assert dirty(pool) == 40
    for n in range(40, 60):
        put(table, n)
    made._flush(1001.0)
    assert 64 - dirty(pool) >= 16


def test_clean_frames_are_ready_before_they_are_needed(make_pool, data_file):
    """A steady writer and misses: nobody has to write pages back himself."""
    pool = make_pool(256 * PAGE)
    table = pool.open_file(data_file(4000), "r+")
    pool.start_steward(interval=0.05, clean=0.25, pressure=False)
    rng = np.random.default_rng(4)
    for i in range(1500):
        n = int(rng.integers(0, 4000))
        if i % 3 == 0:
            put(table, n)
        else:
            assert table[n].size
        if i % 4 == 0:
            time.sleep(0.002)
    stats = pool.stats()
    assert stats.misses > 500
    assert stats.flushed_pages > 200
    assert stats.foreground_flushes <= 2


def test_rounds_come_sooner_when_clean_frames_run_out(pool, by_hand):
    made = by_hand(pool, interval=0.5)
    assert made.pause_s() == 0.5
    made.leads, made._demand_per_s, made._ready = True, 1000.0, 100
    assert made.pause_s() == pytest.approx(0.05)
    made._ready = 0
    assert made.pause_s() == 0.005
    made._ready = 10**6
    assert made.pause_s() == 0.5


class BadDisk:
    """A store that fails while `fails`."""

    def __init__(self):
        self.data, self.fails = np.zeros(64 * PAGE, np.uint8), True

    def read_into(self, offset, buffer):
        buffer[:] = self.data[offset : offset + buffer.size]
        return buffer.size

    def write_from(self, offset, buffer):
        if self.fails:
            raise OSError(5, "broken")
        self.data[offset : offset + buffer.size] = buffer
        return buffer.size

    def sync(self):
        pass

    def size(self):
        return self.data.size


def test_a_store_that_fails_is_an_event_and_the_others_are_served(pool, data_file):
    disk = BadDisk()
    bad, good = pool.open_store("bad", disk), pool.open_file(data_file(20), "r+")
    for n in range(5):
        put(bad, n)
        put(good, n)
    fake = Fake()
    made = pool.start_steward(flush_every=0.02, interval=0.01, source=fake)
    wait_until(lambda: dirty(pool) == 5, "the good one is flushed")
    wait_until(lambda: pool.stats().flush_failures >= 2, "it tries again")
    assert made.alive
    assert "broken" in str(made.trouble)
    failed = [e for e in pool.events() if e.what is What.FLUSH_FAILED]
    assert len(failed) == 1  # not one a round: the ring has better use
    assert failed[0].why is Why.STORE
    disk.fails = False
    wait_until(lambda: dirty(pool) == 0, "it recovers")
    pool.stop_steward()  # raises nothing


def test_the_log_is_synced_for_pages_that_wait_for_it_and_its_failure_is_an_event(pool, data_file):
    table = pool.open_file(data_file(20), "r+")
    pool.durable_lsn = 5
    put(table, 0, lsn=5)
    put(table, 1, lsn=9)
    works = threading.Event()

    def log_sync(lsn):
        if not works.is_set():
            raise OSError(28, "the log is full")
        return lsn

    pool.log_sync = log_sync
    made = pool.start_steward(flush_every=0.02, interval=0.01, source=Fake())
    wait_until(lambda: dirty(pool) == 1, "what may be written is")
    wait_until(lambda: Why.LOG in [e.why for e in pool.events()], "the event")
    assert "the log is full" in str(made.trouble)
    assert made.alive
    works.set()
    wait_until(lambda: dirty(pool) == 0, "the log works again")
    assert pool.durable_lsn == 9


def test_the_working_set_is_saved_and_a_failure_to_save_is_no_end(pool, data_file, tmp_path):
    table = pool.open_file(data_file(20))
    for n in range(10):
        assert table[n].size
    folder = tmp_path / "later"
    made = pool.start_steward(working_set=folder / "set", working_set_every=0.01, interval=0.01, source=Fake())
    wait_until(lambda: What.SAVE_FAILED in whats(pool), "the event")
    assert made.alive
    folder.mkdir()
    wait_until((folder / "set").exists, "it is saved")
    pool.stop_steward()
    assert len(warm.read_working_set(folder / "set").page) == 10


def test_idle_pages_go_back_and_touched_ones_stay(pool, data_file, by_hand):
    table = pool.open_file(data_file(40))
    for n in range(40):
        assert table[n].size
    made = by_hand(pool, idle=0.6, pressure=False)
    end = time.monotonic() + WAIT
    while pool.stats().frames["live"] > 4 and time.monotonic() < end:
        for n in range(4):
            assert table[n].size
        made._idle_at = float("-inf")
        made.round()
        time.sleep(0.05)
    frames = pool.frames()
    assert set(frames["page_no"][frames["state"] == inspect.FrameState.LIVE].tolist()) == {0, 1, 2, 3}
    idle = [e for e in pool.events() if e.why is Why.IDLE]
    assert idle
    assert all(e.what is What.TRIMMED and e.value == 0.6 for e in idle)
    assert sum(e.bytes for e in idle) == pool.stats().reclaimed_bytes["idle"] == 36 * PAGE
    pool._seg.resign()


# ---- the budget ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", PRESSED)
def test_under_pressure_the_pool_gives_way_to_its_lower_bound_and_not_below(make_pool, data_file, kind):
    pool = make_pool(256 * PAGE, min_capacity=32 * PAGE)
    table = pool.open_file(data_file(300))
    for n in range(256):
        assert table[n].size
    fake, why = Fake(PRESSED[kind][0]), PRESSED[kind][1]
    pool.start_steward(interval=0.01, source=fake, rules=FAST)
    wait_until(lambda: pool.budget_frames == 32, "the budget falls")
    rounds = fake.rounds
    wait_until(lambda: fake.rounds > rounds + 10, "the pressure goes on")
    pool.stop_steward()
    stats = pool.stats()
    assert stats.budget_bytes == stats.min_bytes == 32 * PAGE
    assert stats.resident_bytes <= 32 * PAGE
    assert stats.reclaimed_bytes["pressure"] == 224 * PAGE
    shrank = [e for e in pool.events() if e.what is What.SHRANK]
    assert {e.why for e in shrank} == {why}
    assert sum(e.bytes for e in shrank) == 224 * PAGE
    assert shrank[-1].budget_after == 32 * PAGE
    assert "given back" in str(shrank[0])
    if kind == "psi":  # nothing says how much is missing: an eighth at a time
        assert all(e.budget_before - e.budget_after <= e.budget_before // 8 for e in shrank)


def test_it_grows_again_when_it_pays_and_says_so(make_pool, data_file, monkeypatch):
    pool = make_pool(64 * PAGE, max_capacity=256 * PAGE)
    table = pool.open_file(data_file(300))
    curve = {"saves": 0.0}
    monkeypatch.setattr(Steward, "_curve", staticmethod(lambda advise: lambda frames: 1e6 - curve["saves"] * frames))
    fake = Fake()
    pool.start_steward(interval=0.01, source=fake, rules=FAST)
    for n in range(300):
        assert table[n].size
    wait_until(lambda: fake.rounds > 10, "rounds pass")
    assert pool.budget_frames == 64  # full, calm, and not worth it
    curve["saves"] = 100.0
    for i in range(100_000):
        assert table[i % 300].size
        if pool.budget_frames == 256:
            break
    pool.stop_steward()
    assert pool.budget_frames == 256
    grew = [e for e in pool.events() if e.what is What.GREW]
    assert all(e.why is Why.PAYS and e.value > 0 and e.budget_after > e.budget_before for e in grew)


def test_what_cannot_go_is_an_event_and_goes_when_it_can(make_pool, data_file):
    pool = make_pool(64 * PAGE, min_capacity=16 * PAGE)
    table = pool.open_file(data_file(64))
    held = table.pin_many(range(64))
    fake = Fake(PRESSED["machine"][0])
    pool.start_steward(interval=0.01, source=fake, rules=FAST)
    wait_until(lambda: What.CANNOT_SHRINK in whats(pool), "the event")
    wait_until(lambda: pool.budget_frames == 16, "the budget falls all the same")
    assert pool.stats().resident_bytes == 64 * PAGE
    with held:
        pass
    del held
    wait_until(lambda: pool.stats().resident_bytes <= 16 * PAGE, "it goes")
    assert whats(pool).count(What.CANNOT_SHRINK) == 1


def test_one_step_gives_a_bounded_amount(make_pool, data_file, monkeypatch, by_hand):
    monkeypatch.setattr(steward, "SHRINK_BYTES", 8 * PAGE)
    pool = make_pool(64 * PAGE, min_capacity=16 * PAGE)
    table = pool.open_file(data_file(64))
    for n in range(64):
        assert table[n].size
    made = by_hand(pool, Fake(PRESSED["machine"][0]), FAST)
    given = []
    for _ in range(10):
        before = pool.stats().resident_bytes
        made._govern(time.monotonic())
        given.append((before - pool.stats().resident_bytes) // PAGE)
    assert given[:6] == [8] * 6
    assert sum(given) == 48


# ---- several pools -----------------------------------------------------------------------------------


def _set(pool, name, data):
    at, _ = _core.fields()[f"Header.{name}"]
    with open(pool.path, "r+b") as file:
        file.seek(at)
        file.write(data)


def test_other_pools_tell_what_their_bytes_earn(make_pool):
    mine, other, third = (make_pool(64 * PAGE) for _ in range(3))

    def seen():
        return sorted(w for w in steward.peers(mine.path) if w in (12.5, 99.0))

    assert seen() == []
    assert other._seg.lead(12.5) == 0
    assert third._seg.lead(99.0) == 0
    assert seen() == [12.5, 99.0]
    third._seg.set_budget(third._seg.status()["min_frames"])
    assert seen() == [12.5]  # the third has nothing to give
    now = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    _set(other, "steward_ns", struct.pack("<Q", now - int(6e9)))
    assert seen() == []  # suspended, or dead: it gives nothing
    assert other._seg.lead(12.5) == other._seg.status()["client"]
    assert seen() == [12.5]
    other._seg.resign()
    assert seen() == []


def test_damaged_and_foreign_files_beside_are_passed_over(make_pool, pools):
    mine = make_pool()
    (bp_path := os.path.join("/dev/shm", pools.name()))
    with open(bp_path, "wb") as file:
        file.write(b"BUFPOOL1" + os.urandom(5000))
    pools.unchecked.add(os.path.basename(bp_path))
    assert isinstance(list(steward.peers(mine.path)), list)


def test_the_pool_that_earns_less_gives_first(make_pool, data_file, monkeypatch):
    """Two real pools under one pressure: the rich one waits as long as the poor one can give."""
    rich, poor = (make_pool(64 * PAGE, min_capacity=16 * PAGE) for _ in range(2))
    for pool in (rich, poor):
        table = pool.open_file(data_file(64), name="t")
        for n in range(64):
            assert table[n].size
    slopes = {rich.name: 1000.0, poor.name: 1.0}
    rules = Rules(shrink_every_s=0.0, yield_s=3600.0)  # the rich one waits for ever
    fakes = {pool.name: Fake(CALM) for pool in (rich, poor)}
    real = Steward._govern

    def govern(self, now):
        self._curve = lambda advise: lambda frames: 1e6 - slopes[self.pool.name] * frames
        real(self, now)

    monkeypatch.setattr(Steward, "_govern", govern)
    monkeypatch.setattr(steward, "peers", lambda path, real=steward.peers: [w for w in real(path) if w > 0])
    for pool in (rich, poor):
        pool.start_steward(interval=0.01, source=fakes[pool.name], rules=rules)
    wait_until(lambda: all(f.rounds > 5 for f in fakes.values()), "both know what they earn")
    for fake in fakes.values():
        fake.reading = PRESSED["psi"][0]
    wait_until(lambda: poor.budget_frames == 16, "the poor one gives all it can")
    assert poor.stats().resident_bytes <= 16 * PAGE
    rich_gave = [e for e in rich.events() if e.what is What.SHRANK]
    poor_gave = [e for e in poor.events() if e.what is What.SHRANK]
    assert poor_gave
    assert not rich_gave or rich_gave[0].time >= poor_gave[-1].time
    for pool in (rich, poor):
        pool.stop_steward()


# ---- a shrink among everything that can be in its way ---------------------------------------------------


def _storm(pool, path, seed, stop):
    """Pins, writes, loads, appends, drops, flushes: pages in every state."""
    table, rng, done, held = pool.open_file(path, "r+"), np.random.default_rng(seed), 0, []
    made = pool.open_derived("made", 200, _slow)
    work = pool.scratch("work", 8)
    while not stop.is_set():
        n = int(rng.integers(0, 300))
        try:
            match int(rng.integers(0, 8)):
                case 0 | 1:
                    with table.write(n, timeout=WAIT) as page:
                        page.view(np.uint64)[1:] = page.view(np.uint64)[0] + np.uint64(done)
                case 2 | 3:
                    page = table[n].view(np.uint64)
                    assert (page[1:] == page[1]).all() or np.array_equal(page.view(np.uint8), stamp(n))
                case 4:
                    assert made[n % 200][0] == n % 200
                case 5:
                    held.append(table[n])
                    del held[:-4]
                case 6:
                    pool.flush()
                case 7:
                    made.drop(n % 190, 10)
                    with work.write(n % 8, timeout=WAIT) as page:
                        page[0] ^= 1
        except bp.errors.PoolExhausted:
            held.clear()
        done += 1
    return done


def _slow(page_no, out):
    out[:] = page_no
    if page_no % 7 == 0:
        time.sleep(0.002)


def test_a_shrink_meets_pages_in_every_state_while_other_processes_work(make_pool, data_file, child, spawn):
    pool = make_pool(192 * PAGE, min_capacity=48 * PAGE)
    path, stop = data_file(300), Stop(spawn)
    workers = [child(_storm, pool, str(path), seed, stop, context="fork") for seed in range(3)]
    wait_until(lambda: pool.stats().publishes > 100, "they work")
    fake = Fake(CALM)
    pool.start_steward(interval=0.01, flush_every=0.2, source=fake, rules=FAST)
    for _ in range(6):
        pool._seg.set_budget(192)
        wait_until(lambda: pool.stats().resident_bytes > 150 * PAGE, "it fills")
        fake.reading = PRESSED["machine"][0]
        wait_until(lambda: pool.budget_frames == 48, "it gives way")
        wait_until(lambda: pool.stats().resident_bytes <= 48 * PAGE, "all of it")
        fake.reading = CALM
    os.kill(workers[0].pid, signal.SIGKILL)
    wait_until(lambda: pool.stats().reaped > 0, "the steward reaps the dead")
    fake.reading = PRESSED["machine"][0]
    wait_until(lambda: pool.budget_frames == 48 and pool.stats().resident_bytes <= 48 * PAGE, "once more")
    stop.set()
    assert all(worker.result() > 0 for worker in workers[1:])
    pool.stop_steward()
    stats = pool.stats()
    assert stats.resident_bytes <= stats.budget_bytes == 48 * PAGE
    assert stats.reclaimed_bytes["pressure"] > 6 * 100 * PAGE
    assert stats.kernel_data_bytes == stats.resident_bytes
    assert pool.check() == []
    assert EXTENT  # extents of four pages: compaction had work
    assert stats.compacted_pages > 0


def test_a_steward_killed_at_work_leaves_a_pool_in_order(make_pool, data_file, child, spawn):
    pool = make_pool(192 * PAGE, min_capacity=48 * PAGE)
    path, stop = data_file(300), Stop(spawn)
    worker = child(_storm, pool, str(path), 1, stop, context="fork")
    for seed in range(6):
        victim = child(_breathe, pool, context="fork")
        events = len(pool.events())
        wait_until(lambda least=events + 3 + seed: len(pool.events()) > least, "it shrinks and grows")
        victim.kill()
        wait_until(lambda: pool.reap() > 0 or pool.stats().clients == 2, "it is reaped")
    stop.set()
    assert worker.result() > 0
    assert pool.steward() == 0
    pool.resize(48 * PAGE, timeout=WAIT)
    assert pool.stats().resident_bytes <= 48 * PAGE
    assert pool.check() == []


def _breathe(pool):
    fake = Fake(PRESSED["psi"][0])
    pool.start_steward(interval=0.01, flush_every=0.1, source=fake, rules=FAST)
    while True:
        time.sleep(0.02)
        pool._seg.set_budget(192)
