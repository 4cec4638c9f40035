"""What the steward gives back: idle pages, and a budget that gives way, grows when it pays, and gives in turn."""

import os
import struct
import time

import pytest

from bufferpool import _core
from bufferpool.figures import stats as inspect
from bufferpool.figures.names import EventKind, EventReason
from bufferpool.units import format_size
from bufferpool.upkeep import steward
from bufferpool.upkeep.budget import Rules
from bufferpool.upkeep.steward import Settings, Steward
from tests.conftest import EXTENT, PAGE, kernel_bytes, touch, wait_until
from tests.support.stewards import CALM, FAST, PRESSED, Fake, Stop, by_hand, put, whats

# ---- what is idle ----------------------------------------------------------------------------------

IDLE_S = 0.6


def pages(pool):
    """The frames that have a page."""
    frames = pool.frames()
    return frames[frames["state"] == inspect.FrameState.LIVE]


def live(pool):
    return set(pages(pool)["page_no"].tolist())


def look(made):
    """The round in which idle pages are looked for."""
    made._idle_at = float("-inf")
    made.round()


def test_idle_pages_go_back_and_touched_ones_stay(pool, data_file):
    table, made = pool.open_file(data_file(40)), by_hand(pool, idle=IDLE_S, pressure=False)
    made.round()  # it is the steward now
    for _ in range(100):  # a machine that is so busy that the hot pages were idle too shows nothing
        touch(table, range(40))
        wait_until(lambda: pages(pool)["idle_s"].min() > IDLE_S + 0.3, "all are idle")  # ages are in ticks of 0.134 s
        touched_at = time.monotonic()
        touch(table, range(4))
        look(made)
        if time.monotonic() - touched_at < IDLE_S / 2:
            break
    assert live(pool) == {0, 1, 2, 3}
    idle = [e for e in pool.events() if e.reason is EventReason.IDLE]
    assert idle
    assert all(e.kind is EventKind.TRIMMED and e.value == IDLE_S for e in idle)
    stats = pool.stats()
    assert sum(e.bytes for e in idle) == stats.reclaimed_bytes["idle"] >= 36 * PAGE
    assert stats.kernel_data_bytes <= 4 * PAGE + EXTENT
    pool.client.seg.resign()


def test_frames_that_nobody_takes_go_back_but_for_an_extent(pool, data_file):
    """What was free in every round since the last look, not what is free at this moment."""
    table, made = pool.open_file(data_file(40), "r+"), by_hand(pool, idle=3600.0, pressure=False)
    held = [table[n] for n in range(24)]
    for n in range(24):
        put(table, n)
    held.clear()
    assert pool.stats().frames.free == 24
    made.round()
    held = [table[n] for n in range(10)]
    for n in range(10):
        put(table, n)
    made.round()
    assert pool.stats().frames.free == 14
    held.clear()
    assert pool.stats().frames.free == 24
    before = kernel_bytes(pool)
    look(made)
    assert before - kernel_bytes(pool) == pool.stats().reclaimed_bytes["idle"] == 14 * PAGE - EXTENT
    look(made)
    assert pool.stats().kernel_data_bytes == 24 * PAGE + EXTENT
    look(made)
    assert pool.stats().kernel_data_bytes == 24 * PAGE + EXTENT  # and so it stays
    assert live(pool) == set(range(24))
    pool.client.seg.resign()


def _use(pool, path, pages, stop):
    table = pool.open_file(path, "r+")
    while not stop.is_set():
        touch(table, range(pages))
        put(table, 0)
        time.sleep(0.01)


def test_the_kernel_has_back_all_but_the_working_set(make_pool, data_file, child, spawn):
    """A pool full of pages, some dirty, of which another process uses a tenth."""
    pool, path, stop = make_pool(240 * PAGE), data_file(240), Stop(spawn)
    table, empty = pool.open_file(path, "r+"), kernel_bytes(pool)
    for n in range(240):
        if n % 4:
            touch(table, [n])
        else:
            put(table, n)
    assert kernel_bytes(pool) >= empty + 240 * PAGE
    used = set(range(24))
    worker = child(_use, pool, str(path), len(used), stop, context="fork")
    pool.start_steward(Settings(interval=0.05, flush_every=0.2, idle=1.0, pressure=False))

    def is_down():
        stats = pool.stats()
        spares = stats.frames.busy + stats.frames.retired
        return live(pool) == used and stats.kernel_data_bytes <= len(used) * PAGE + EXTENT + spares * PAGE

    wait_until(is_down, "the working set is what stays")
    stop.set()
    worker.result()
    pool.stop_steward()
    assert pool.stats().reclaimed_bytes["idle"] >= 200 * PAGE


# ---- the budget ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", PRESSED)
def test_under_pressure_the_pool_gives_way_to_its_lower_bound_and_not_below(make_pool, data_file, kind):
    pool = make_pool(256 * PAGE, min_capacity=32 * PAGE)
    table = pool.open_file(data_file(300))
    for n in range(256):
        assert table[n].size
    fake, why = Fake(PRESSED[kind][0]), PRESSED[kind][1]
    pool.start_steward(Settings(interval=0.01, source=fake, rules=FAST))
    wait_until(lambda: pool.budget_frames == 32, "the budget falls")
    rounds = fake.rounds
    wait_until(lambda: fake.rounds > rounds + 10, "the pressure lasts")
    pool.stop_steward()
    stats = pool.stats()
    assert stats.budget_bytes == stats.min_bytes == 32 * PAGE
    assert stats.resident_bytes <= 32 * PAGE
    assert stats.reclaimed_bytes["pressure"] == 224 * PAGE
    shrank = [e for e in pool.events() if e.kind is EventKind.SHRANK]
    assert {e.reason for e in shrank} == {why}
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
    pool.start_steward(Settings(interval=0.01, source=fake, rules=FAST))
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
    grew = [e for e in pool.events() if e.kind is EventKind.GREW]
    assert all(e.reason is EventReason.PAYS and e.value > 0 and e.budget_after > e.budget_before for e in grew)


def test_what_cannot_go_is_an_event_and_goes_when_it_can(make_pool, data_file):
    pool = make_pool(64 * PAGE, min_capacity=16 * PAGE)
    table = pool.open_file(data_file(64))
    held = table.pin_many(range(64))
    fake = Fake(PRESSED["machine"][0])
    pool.start_steward(Settings(interval=0.01, source=fake, rules=FAST))
    wait_until(lambda: EventKind.CANNOT_SHRINK in whats(pool), "the event")
    wait_until(lambda: pool.budget_frames == 16, "the budget falls all the same")
    assert pool.stats().resident_bytes == 64 * PAGE
    (event,) = [e for e in pool.events() if e.kind is EventKind.CANNOT_SHRINK]
    assert (event.reason, event.client, event.value) == (EventReason.PINNED, 1, 64)
    assert (
        f"cannot shrink, {format_size(event.bytes)} above the budget: client 1 (pid {os.getpid()}) pins 64 frames"
        in str(event)
    )
    with held:
        pass
    del held
    wait_until(lambda: pool.stats().resident_bytes <= 16 * PAGE, "its memory is given back")
    assert whats(pool).count(EventKind.CANNOT_SHRINK) == 1


def test_one_step_gives_a_bounded_amount(make_pool, data_file, monkeypatch):
    monkeypatch.setattr(steward, "SHRINK_BYTES", 8 * PAGE)
    pool = make_pool(64 * PAGE, min_capacity=16 * PAGE)
    table = pool.open_file(data_file(64))
    for n in range(64):
        assert table[n].size
    made = by_hand(pool, source=Fake(PRESSED["machine"][0]), rules=FAST)
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


@pytest.fixture
def only_ours(monkeypatch, pools):
    """Stewards find the pools of this test only: a test suite beside this one has pools in /dev/shm, too."""
    find = steward.segment_file.find
    ours = lambda directory=None: (one for one in find(directory) if os.path.basename(one.path) in pools.names)  # noqa: E731
    monkeypatch.setattr(steward.segment_file, "find", ours)


def test_other_pools_tell_what_their_bytes_earn(make_pool, only_ours):
    """Beside the same test of another process it found that one's pools, whose bytes earn the same."""
    mine, other, third = (make_pool(64 * PAGE) for _ in range(3))

    def seen():
        return sorted(steward.peers(mine.path))

    assert seen() == []
    assert other.client.seg.lead(12.5) == 0
    assert third.client.seg.lead(99.0) == 0
    assert seen() == [12.5, 99.0]
    third.client.seg.set_budget(third.client.seg.status()["min_frames"])
    assert seen() == [12.5]  # the third has nothing to give
    now = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    _set(other, "steward_ns", struct.pack("<Q", now - int(6e9)))
    assert seen() == []  # suspended, or dead: it gives nothing
    assert other.client.seg.lead(12.5) == other.client.seg.status()["client"]
    assert seen() == [12.5]
    other.client.seg.resign()
    assert seen() == []


def test_damaged_and_foreign_files_beside_are_passed_over(make_pool, pools):
    mine = make_pool()
    (bp_path := os.path.join("/dev/shm", pools.name()))
    with open(bp_path, "wb") as file:
        file.write(b"BUFPOOL1" + os.urandom(5000))
    pools.unchecked.add(os.path.basename(bp_path))
    assert isinstance(list(steward.peers(mine.path)), list)


def test_the_pool_that_earns_less_gives_first(make_pool, data_file, monkeypatch, only_ours):
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
        self._curve = lambda advise: lambda frames: 1e6 - slopes[self.client.name] * frames
        real(self, now)

    monkeypatch.setattr(Steward, "_govern", govern)
    monkeypatch.setattr(steward, "peers", lambda path, real=steward.peers: [w for w in real(path) if w > 0])
    for pool in (rich, poor):
        pool.start_steward(Settings(interval=0.01, source=fakes[pool.name], rules=rules))
    wait_until(lambda: all(f.rounds > 5 for f in fakes.values()), "both know what they earn")
    for fake in fakes.values():
        fake.reading = PRESSED["psi"][0]

    # The budget is less at once; the memory follows.
    def gave():
        return poor.budget_frames == 16 and poor.stats().resident_bytes <= 16 * PAGE

    wait_until(gave, "the poor one gives all it can")
    rich_gave = [e for e in rich.events() if e.kind is EventKind.SHRANK]
    poor_gave = [e for e in poor.events() if e.kind is EventKind.SHRANK]
    assert len(poor_gave) > 5
    # The event of a step is posted after the step: the rich pool may act on the poor pool's last step before its event exists.
    assert not rich_gave or rich_gave[0].time >= poor_gave[-2].time
    for pool in (rich, poor):
        pool.stop_steward()
