"""The steward's rules, without a steward: figures in, a budget out, and a clock of our own."""

import itertools
import random

import pytest

from bufferpool.figures.advice import Advice, AdvicePoint
from bufferpool.figures.names import EventReason
from bufferpool.machine.pressure import Reading
from bufferpool.upkeep.budget import Governor, Pool, Rules, curve_of, room, shortage, worth

MIB, GIB, PAGE = 1 << 20, 1 << 30, 8192
CALM = Reading(
    psi_some=0.0, psi_full=0.0, shm_free=8 * GIB, shm_size=16 * GIB, machine_free=8 * GIB, machine_size=16 * GIB
)
STALLED = Reading(psi_some=40.0, psi_full=10.0, machine_free=8 * GIB, machine_size=16 * GIB)


def pool(budget=10_000, resident=None, least=1_000, most=20_000):
    return Pool(budget, budget if resident is None else resident, least, most, PAGE)


def steep(frames):
    """Misses a second: every frame helps."""
    return 1e6 - 10 * frames


def flat(_frames):
    return 500.0


# ---- what counts as pressure ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reading", "why", "missing"),
    [
        (Reading(psi_some=10.0), EventReason.PSI, 0),
        (Reading(psi_some=3.0, psi_full=2.0), EventReason.PSI, 0),
        (Reading(shm_free=40 * MIB, shm_size=GIB), EventReason.SHM, int(0.05 * GIB) - 40 * MIB),
        (Reading(cgroup_free=10 * MIB, cgroup_limit=GIB), EventReason.CGROUP, int(0.05 * GIB) - 10 * MIB),
        (Reading(machine_free=0, machine_size=GIB), EventReason.MACHINE, int(0.05 * GIB)),
        (
            Reading(psi_some=50.0, shm_free=0, shm_size=100, machine_free=0, machine_size=GIB),
            EventReason.MACHINE,
            int(0.05 * GIB),
        ),
    ],
)
def test_a_shortage_says_where_and_how_much(reading, why, missing):
    need = shortage(reading, Rules())
    assert (need.reason, need.bytes) == (why, missing)


@pytest.mark.parametrize(
    "reading", [CALM, Reading(), Reading(psi_some=9.9, psi_full=1.9), Reading(shm_free=0, shm_size=0)]
)
def test_no_shortage(reading):
    assert shortage(reading, Rules()) is None


def test_room_is_what_leaves_twice_the_reserve_everywhere():
    reading = Reading(shm_free=3 * GIB, shm_size=10 * GIB, machine_free=2 * GIB, machine_size=10 * GIB)
    assert room(reading, Rules()) == GIB
    assert room(Reading(shm_free=GIB, shm_size=10 * GIB), Rules()) == 0
    assert room(Reading(), Rules()) > 1 << 60


# ---- falling ------------------------------------------------------------------------------------


def test_under_pressure_the_budget_falls_by_an_eighth_a_step_to_its_bound_and_not_below():
    governor, budget, steps = Governor(), 10_000, []
    for tick in range(200):
        decision = governor.decide(tick * 0.25, pool(budget), STALLED)
        if decision is not None:
            assert decision.reason is EventReason.PSI
            assert decision.value == 40.0
            assert 1_000 <= decision.frames < budget
            assert budget - decision.frames <= max(1, budget // 8)
            steps.append(tick)
            budget = decision.frames
    assert budget == 1_000
    assert all(b - a >= 2 for a, b in itertools.pairwise(steps))  # half a second between two


def test_what_is_missing_is_given_at_once():
    reading = Reading(machine_free=0, machine_size=1000 * 20 * PAGE)
    decision = Governor().decide(0, pool(10_000), reading)
    assert decision.frames == 10_000 - 1_250  # an eighth is more than the missing 1000
    reading = Reading(machine_free=0, machine_size=5000 * 20 * PAGE)
    assert Governor().decide(0, pool(10_000), reading).frames == 5_000
    reading = Reading(machine_free=0, machine_size=10**6 * 20 * PAGE)
    assert Governor().decide(0, pool(10_000), reading).frames == 1_000


def test_a_budget_that_is_not_used_falls_to_what_is():
    assert Governor().decide(0, pool(10_000, resident=2_000), STALLED).frames == 1_750
    assert Governor().decide(0, pool(10_000, resident=10), STALLED).frames == 1_000
    assert Governor().decide(0, pool(1_000, least=1_000), STALLED) is None
    assert Governor().decide(0, pool(500, least=1_000), STALLED) is None  # below by hand: not raised


# ---- rising -------------------------------------------------------------------------------------


def test_it_grows_slowly_and_only_when_everything_speaks_for_it():
    def grown(now=0.0, figures=None, reading=CALM, curve=steep, governor=None):
        return (governor or Governor()).decide(now, figures or pool(), reading, curve)

    decision = grown()
    assert (decision.frames, decision.reason) == (10_625, EventReason.PAYS)
    assert decision.value == pytest.approx(6250)
    assert grown(curve=None) is None
    assert grown(curve=flat) is None
    assert grown(figures=pool(resident=9_000)) is None  # not full
    assert grown(figures=pool(20_000)) is None  # at the bound
    assert grown(figures=pool(19_900)).frames == 20_000
    assert grown(reading=Reading(psi_some=2.0)) is None  # no pressure, but no calm either
    assert grown(reading=Reading(shm_free=GIB, shm_size=10 * GIB)) is None  # no room
    little = Reading(shm_free=GIB + 100 * PAGE, shm_size=10 * GIB)
    assert grown(reading=little).frames == 10_100


def test_growth_takes_its_time():
    governor, budget, at = Governor(), 10_000, []
    for tick in range(100):
        decision = governor.decide(tick * 0.25, pool(budget), CALM, steep)
        if decision is not None:
            budget = decision.frames
            at.append(tick * 0.25)
    assert all(b - a >= 2.0 for a, b in itertools.pairwise(at))
    assert budget == 20_000


def test_it_rests_after_pressure():
    governor = Governor()
    assert governor.decide(0, pool(), STALLED).frames < 10_000
    assert governor.decide(9.9, pool(), CALM, steep) is None
    assert governor.decide(10.1, pool(), CALM, steep) is not None


def test_growth_that_brings_the_pressure_back_makes_it_rest_twice_as_long():
    governor, now, rests = Governor(), 0.0, []
    for _ in range(10):
        governor.decide(now, pool(), STALLED)
        rests.append(governor.rest_s)
        while governor.decide(now, pool(), CALM, steep) is None:
            now += 0.25
        now += 0.25
    assert rests == [10, 20, 40, 80, 160, 320, 600, 600, 600, 600]
    for _ in range(200):  # a long quiet time: forgiven
        now += 4 * governor.rest_s + 1
        governor.decide(now, pool(), CALM, steep)
    assert governor.rest_s == 10


def test_it_does_not_swing_with_a_load_that_comes_and_goes():
    """A sawtooth: another program takes memory and gives it back, every half minute, for two hours."""
    governor, size = Governor(), 4 * GIB
    budget, least, most = 200_000, 20_000, 400_000  # frames of 8 KiB: 1.6 GB
    changes, turns, last = [], 0, 0
    for tick in range(4 * 7200):
        now = tick * 0.25
        other = 1.5 * GIB + 2 * GIB * (now % 30) / 30
        free = int(max(0, size - other - budget * PAGE))
        reading = Reading(psi_some=30.0 if free == 0 else 0.0, machine_free=free, machine_size=size)
        decision = governor.decide(now, Pool(budget, budget, least, most, PAGE), reading, steep)
        if decision is None:
            continue
        direction = 1 if decision.frames > budget else -1
        turns += direction != last
        last, budget = direction, decision.frames
        changes.append(now)
        assert least <= budget <= most
    # 240 teeth: a governor that followed them would turn 480 times.
    assert turns <= 40, f"{turns} turns"
    first_hour = sum(at < 3600 for at in changes)
    assert len(changes) - first_hour <= first_hour


def test_random_readings_never_leave_the_bounds():
    rng, governor, budget = random.Random(5), Governor(), 10_000
    for tick in range(5000):
        reading = Reading(
            psi_some=rng.choice([None, 0.0, 50.0]),
            psi_full=rng.choice([None, 0.0, 50.0]),
            cgroup_free=rng.choice([None, 0, 10 * MIB, GIB]),
            cgroup_limit=rng.choice([None, GIB, 0]),
            machine_free=rng.choice([None, 0, 8 * GIB]),
            machine_size=rng.choice([None, 16 * GIB]),
        )
        figures = pool(budget, resident=rng.randrange(budget + 1))
        curve = rng.choice([None, steep, flat, lambda f: -1.0 * f])
        decision = governor.decide(tick * rng.random(), figures, reading, curve, [rng.random() * 10])
        if decision is not None:
            assert 1_000 <= decision.frames <= 20_000
            assert decision.frames != budget
            budget = decision.frames


# ---- several pools ------------------------------------------------------------------------------


def test_what_the_last_mebibyte_earns():
    rules = Rules()
    assert worth(None, pool(), rules) == 0.0
    assert worth(flat, pool(), rules) == 0.0
    assert worth(steep, pool(), rules) == pytest.approx(10 * MIB / PAGE)
    assert worth(lambda f: 10.0 * f, pool(), rules) == 0.0  # a curve that rises is no reason to pay
    assert worth(steep, Pool(0, 0, 0, 10, PAGE), rules) == 0.0


def test_the_pool_whose_bytes_earn_least_gives_first():
    rich, poor = Governor(), Governor()
    mine = worth(steep, pool(), Rules())
    given = {"rich": [], "poor": []}
    for tick in range(20):
        now = tick * 0.25
        if rich.decide(now, pool(), STALLED, steep, [0.0]):
            given["rich"].append(now)
        if poor.decide(now, pool(), STALLED, flat, [mine]):
            given["poor"].append(now)
    assert given["poor"][0] == 0.0
    assert given["rich"][0] == 1.0  # there is still pressure: it gives, too
    third = Governor()
    assert third.decide(0, pool(), STALLED, steep, [0.0, 1.0, mine + 1]) is None
    assert third.decide(1.5, pool(), STALLED, steep, [0.0, 1.0, mine + 1]) is None  # two earn less
    assert third.decide(2.0, pool(), STALLED, steep, [0.0, 1.0, mine + 1]) is not None


def test_below_its_first_point_a_curve_rises_to_a_miss_for_each_reference():
    """The curves begin at an eighth of the budget, and were level below. Where caches had all but a few frames of it, pages seemed to miss no
    more than with an eighth, so no memory came to them from other page sizes, though they missed three references in four."""
    points = tuple(AdvicePoint(n, n * 4096, 1 - miss, 1000 * miss) for n, miss in ((100, 0.5), (200, 0.25), (800, 0.0)))
    curve = curve_of(Advice(800, 4096, points, 1.0, 10_000, 1000.0, 1))
    assert curve is not None
    assert [curve(n) for n in (0, 50, 100, 150, 800, 9000)] == [1000, 750, 500, 375, 0, 0]
