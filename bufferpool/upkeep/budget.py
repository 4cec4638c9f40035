"""The steward's rules for the budget: how much memory a pool should take.

1. Under pressure the budget falls at once, by an eighth a step, or by the shortage
   if that is more, down to its lower bound. There is a shortage if less memory
   is free than the headroom.
2. Without pressure the budget rises slowly, by a sixteenth a step, if the pool is full,
   if the miss-ratio curve says that it saves misses worth having, and if twice
   the headroom stays free afterwards.
3. After pressure the budget is not raised for a while. If growing brought the pressure back, this pause is
   twice as long the next time, up to a limit: so the budget does not oscillate with a
   changing load (multiplicative decrease and backing off, as in TCP; Jacobson 1988).
4. Of several pools the one whose bytes earn the fewest hits gives memory first: the others wait a
   moment, and give memory too if there is still pressure.

Everything here is arithmetic on its arguments, which tests choose freely.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bufferpool.figures.advice import Advice
from bufferpool.figures.names import EventReason
from bufferpool.machine.pressure import Reading
from bufferpool.units import is_number

MIB = 1 << 20


@dataclass(frozen=True)
class Rules:
    """The parameters of the rules."""

    psi_some_percent: float = 10.0
    """Pressure if some task stalled for memory for this percentage of the last two seconds."""
    psi_full_percent: float = 2.0
    """Pressure if all tasks stalled for memory, at the same time, for this percentage of the last two seconds."""
    psi_calm_percent: float = 1.0
    """The budget may grow while the percentage (some) is below this."""
    headroom: float = 0.05
    """The share of the cgroup's limit, of the tmpfs and of the machine's memory that should be free."""
    shrink_step: float = 1 / 8
    """The share of the budget by which it falls in one step, or by more if more bytes are missing."""
    grow_step: float = 1 / 16
    """The share of the budget by which it rises in one step."""
    shrink_every_s: float = 0.5
    """Seconds between two steps down, at least."""
    grow_every_s: float = 2.0
    """Seconds between two steps up, at least."""
    rest_s: float = 10.0
    """Seconds between the last pressure and the next growth. They double when growth brings the pressure back."""
    most_rest_s: float = 600.0
    """The most that these seconds become."""
    pays_per_mib_s: float = 0.1
    """Growth pays if it saves this many misses per second and MiB."""
    yield_s: float = 1.0
    """Seconds that a pool waits for each pool whose bytes earn less."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not is_number(value):
                raise TypeError(f"{name} must be a number, not {type(value).__name__}")
            if not value >= 0:
                raise ValueError(f"{name} must be a number of at least 0, not {value!r}")
        for name in ("headroom", "shrink_step", "grow_step"):
            if getattr(self, name) > 1:
                raise ValueError(f"{name} is a share, from 0 to 1, not {getattr(self, name)!r}")


@dataclass(frozen=True)
class Need:
    """A shortage: at least how many bytes, and the reason."""

    bytes: int
    reason: EventReason
    value: float


@dataclass(frozen=True)
class Decision:
    """A new budget, in frames."""

    frames: int
    reason: EventReason
    value: float


@dataclass(frozen=True)
class Pool:
    """The figures of a pool that the rules use, in frames."""

    budget: int
    resident: int
    least: int
    most: int
    page_size: int


Curve = Callable[[int], float]
"""Budget in frames -> estimated misses a second."""


def curve_of(advice: Advice) -> Curve | None:
    """Misses a second at a budget, between the points of the advice; None while there are too few references.

    Below the first point it rises to one miss for each reference, without any frame: pages have as little where caches have the rest.
    """
    points = [(p.budget_frames, p.misses_per_s) for p in advice.points]
    if len(points) < 2:
        return None
    points.insert(0, (0, max(advice.references_per_s, points[0][1])))

    def misses(frames: int) -> float:
        below = max((p for p in points if p[0] <= frames), default=points[0])
        above = min((p for p in points if p[0] >= frames), default=points[-1])
        if above[0] == below[0]:
            return float(below[1])
        return float(below[1] + (above[1] - below[1]) * (frames - below[0]) / (above[0] - below[0]))

    return misses


def shortage(reading: Reading, rules: Rules) -> Need | None:
    """The worst shortage of a reading, None if there is none."""
    found = []
    for free, size, why in (
        (reading.shm_free, reading.shm_size, EventReason.SHM),
        (reading.cgroup_free, reading.cgroup_limit, EventReason.CGROUP),
        (reading.machine_free, reading.machine_size, EventReason.MACHINE),
    ):
        if free is not None and size and free < rules.headroom * size:
            found.append(Need(int(rules.headroom * size) - free, why, free))
    if found:
        return max(found, key=lambda need: need.bytes)
    some, full = reading.psi_some or 0.0, reading.psi_full or 0.0
    if some >= rules.psi_some_percent or full >= rules.psi_full_percent:
        return Need(0, EventReason.PSI, some)
    return None


def room(reading: Reading, rules: Rules) -> int:
    """How many bytes may be taken so that twice the headroom is still free everywhere."""
    pairs = (
        (reading.shm_free, reading.shm_size),
        (reading.cgroup_free, reading.cgroup_limit),
        (reading.machine_free, reading.machine_size),
    )
    rooms = [int(free - 2 * rules.headroom * size) for free, size in pairs if free is not None and size]
    return max(0, min(rooms, default=1 << 62))


def worth(curve: Curve | None, pool: Pool, rules: Rules) -> float:
    """The hits per second that the last MiB of the budget earns, which would be lost with it. 0 without a curve."""
    step = max(1, int(pool.budget * rules.shrink_step))
    if curve is None or pool.budget <= step:
        return 0.0
    return max(0.0, curve(pool.budget - step) - curve(pool.budget)) / (step * pool.page_size / MIB)


class Governor:
    """The rules with their state. Times are seconds of a monotonic clock."""

    def __init__(self, rules: Rules | None = None) -> None:
        self.rules = Rules() if rules is None else rules
        self.rest_s = self.rules.rest_s
        self._pressed_at = self._shrunk_at = self._grew_at = float("-inf")
        self._pressed_since: float | None = None
        self._grown_since_rest = False

    def decide(
        self,
        now: float,
        pool: Pool,
        reading: Reading,
        curve: Curve | None = None,
        peers: Sequence[float] = (),
    ) -> Decision | None:
        """Decides on a new budget; None for no change.

        ``peers``: the hits per second that a MiB earns in each other pool that could give memory; see :func:`worth`.
        """
        need = shortage(reading, self.rules)
        if need is not None:
            return self._press(now, pool, need, curve, peers)
        self._pressed_since = None
        return self._grow(now, pool, reading, curve)

    def _press(
        self, now: float, pool: Pool, need: Need, curve: Curve | None, peers: Sequence[float]
    ) -> Decision | None:
        rules = self.rules
        if self._pressed_since is None:
            self._pressed_since = now
            if self._grown_since_rest:  # growing brought the pressure back
                self.rest_s = min(2 * self.rest_s, rules.most_rest_s)
            self._grown_since_rest = False
        self._pressed_at = now
        if now - self._shrunk_at < rules.shrink_every_s:
            return None
        cheaper = sum(peer < worth(curve, pool, rules) for peer in peers)
        if now - self._pressed_since < cheaper * rules.yield_s:
            return None
        taken = min(pool.budget, max(pool.resident, pool.least))
        step = max(1, int(taken * rules.shrink_step), -(-need.bytes // pool.page_size))
        frames = max(pool.least, taken - step)
        if frames >= pool.budget:
            return None
        self._shrunk_at = now
        return Decision(frames, need.reason, need.value)

    def _grow(self, now: float, pool: Pool, reading: Reading, curve: Curve | None) -> Decision | None:
        rules = self.rules
        calm = (reading.psi_some or 0.0) < rules.psi_calm_percent
        if not calm or now - self._pressed_at < self.rest_s or now - self._grew_at < rules.grow_every_s:
            return None
        if now - self._pressed_at > 4 * self.rest_s:  # no pressure for long: reset the pause
            self.rest_s = max(rules.rest_s, self.rest_s / 2)
            self._pressed_at = now - self.rest_s
        if curve is None or pool.budget >= pool.most or pool.resident < 0.95 * pool.budget:
            return None
        step = min(max(1, int(pool.budget * rules.grow_step)), pool.most - pool.budget)
        step = min(step, room(reading, rules) // pool.page_size)
        if step < 1:
            return None
        saved = curve(pool.budget) - curve(pool.budget + step)
        if saved < rules.pays_per_mib_s * step * pool.page_size / MIB:
            return None
        self._grew_at, self._grown_since_rest = now, True
        return Decision(pool.budget + step, EventReason.PAYS, saved)
