"""``capacity="auto"``: what is chosen, and the reasoning, word for word."""

import re

import pytest

import bufferpool as bp
from bufferpool.cli import doctor
from bufferpool.client import segment_file
from bufferpool.errors import NotTmpfs, SharedMemoryFull
from bufferpool.machine import auto_size
from bufferpool.machine.auto_size import auto
from bufferpool.machine.pressure import Reading
from bufferpool.pool import _auto_sizes
from tests.conftest import PAGE

MIB, GIB = 1 << 20, 1 << 30
MACHINE = {"machine_free": 4 * GIB, "machine_size": 16 * GIB}
TMPFS = {"shm_free": 8 * GIB, "shm_size": 8 * GIB}

# ---- the figures, and why ---------------------------------------------------------------------------


def test_auto_takes_a_quarter_of_what_the_tightest_limit_leaves():
    found = auto(Reading(**MACHINE, **TMPFS, cgroup_free=GIB, cgroup_limit=2 * GIB), 16 * MIB, 256 << 10)
    assert (found.min_capacity, found.capacity, found.max_capacity) == (GIB // 32, GIB // 4, GIB // 2)


SHARES = "a pool starts with 1/4 of that and moves between 1/32 and 1/2 of it"


@pytest.mark.parametrize(
    ("about", "reasoning"),
    [
        (
            MACHINE | TMPFS,
            "no memory cgroup limits this process; the tmpfs has 8.0 GiB free of 8.0 GiB; "
            f"the machine has 4.0 GiB free of 16.0 GiB, the smallest of these; {SHARES}",
        ),
        (
            MACHINE | TMPFS | {"cgroup_free": GIB, "cgroup_limit": 2 * GIB},
            "the tmpfs has 8.0 GiB free of 8.0 GiB; the machine has 4.0 GiB free of 16.0 GiB; "
            f"the memory cgroup has 1.0 GiB free of 2.0 GiB, the smallest of these; {SHARES}",
        ),
        (  # a cgroup whose limit is not what is short
            MACHINE | TMPFS | {"cgroup_free": 7 * GIB, "cgroup_limit": 12 * GIB},
            "the memory cgroup has 7.0 GiB free of 12.0 GiB; the tmpfs has 8.0 GiB free of 8.0 GiB; "
            f"the machine has 4.0 GiB free of 16.0 GiB, the smallest of these; {SHARES}",
        ),
        (  # what Docker gives a container
            MACHINE | {"shm_free": 64 * MIB, "shm_size": 64 * MIB},
            "no memory cgroup limits this process; the machine has 4.0 GiB free of 16.0 GiB; "
            f"the tmpfs has 64.0 MiB free of 64.0 MiB, the smallest of these; {SHARES}, but has 16.0 MiB at least",
        ),
        (  # a tmpfs without a limit of its own
            MACHINE,
            f"no memory cgroup limits this process; the machine has 4.0 GiB free of 16.0 GiB; {SHARES}",
        ),
    ],
    ids=["no cgroup", "cgroup", "wide cgroup", "small tmpfs", "machine only"],
)
def test_the_reasoning_names_every_limit_once_and_the_tightest_last(about, reasoning):
    assert "; ".join(auto(Reading(**about), 16 * MIB, 256 << 10).reasons) == reasoning


def test_auto_is_whole_extents_and_at_least_what_a_pool_needs():
    found = auto(Reading(machine_free=100 * MIB + 12345, machine_size=GIB), 16 * MIB, 1 << 20)
    assert found.min_capacity == 16 * MIB
    assert found.capacity == 25 * MIB
    with pytest.raises(SharedMemoryFull, match=r"the machine has 10\.0 MiB free"):
        auto(Reading(machine_free=10 * MIB, machine_size=GIB), 16 * MIB, 1 << 20)


# ---- in pools, and in the doctor ------------------------------------------------------------------------

FAKE = Reading(shm_free=1024 * MIB, shm_size=2048 * MIB, machine_free=512 * MIB, machine_size=4096 * MIB)


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr("bufferpool.pool.read_memory", lambda directory: FAKE)


def sizes(pool):
    stats = pool.stats()
    return stats.min_bytes // MIB, stats.budget_bytes // MIB, stats.max_bytes // MIB


def test_create_and_open_take_auto_by_default(pools, small):
    pool = pools.create("auto")
    assert sizes(pool) == (16, 128, 256)
    name = pools.name()
    opened = bp.Pool.open(name)
    pools.pools.append(opened)
    assert sizes(opened) == (16, 128, 256)


def test_auto_keeps_to_bounds_that_are_given(pools, small):
    assert sizes(pools.create("auto", max_capacity="64MiB")) == (16, 64, 64)
    assert sizes(pools.create("auto", max_capacity="512MiB")) == (16, 128, 512)
    assert sizes(pools.create("auto", min_capacity="192MiB")) == (192, 192, 256)
    assert sizes(pools.create("auto", max_capacity="8MiB")) == (8, 8, 8)
    with pytest.raises(ValueError, match="capacity"):
        pools.create("auto", min_capacity="64MiB", max_capacity="32MiB")


@pytest.mark.parametrize(("page_size", "most"), [(4096, 1 << 38), (8192, 1 << 39), (1 << 20, 1 << 41)])
def test_auto_asks_for_no_more_than_a_pool_can_have(monkeypatch, page_size, most):
    """On a machine with more memory than a pool can have frames for, a pool could not be made without a capacity."""
    monkeypatch.setattr(
        "bufferpool.pool.read_memory", lambda directory: Reading(machine_free=1 << 42, machine_size=1 << 43)
    )
    found = _auto_sizes("/dev/shm/any", page_size, None, False)
    assert list(found) == sorted(found)
    assert found[2] <= most
    assert found[2] > most - (1 << 22)
    sized = segment_file.Sizes(found[1], page_size=page_size, min_capacity=found[0], max_capacity=found[2])
    assert segment_file.plan(sized).budget_frames == found[1] // page_size


def test_auto_without_memory_is_a_typed_error(pools, monkeypatch):
    monkeypatch.setattr("bufferpool.pool.read_memory", lambda directory: Reading(machine_free=MIB, machine_size=MIB))
    with pytest.raises(SharedMemoryFull, match=r"a pool needs 16\.0 MiB"):
        pools.create("auto")
    monkeypatch.undo()
    with pytest.raises(NotTmpfs):
        bp.Pool.create(pools.name(), directory="/nowhere/at/all")


def test_the_doctor_prints_the_reasoning(monkeypatch):
    monkeypatch.setattr("bufferpool.cli.doctor.read_memory", lambda directory: FAKE)
    (finding,) = [f for f in doctor.examine() if f.what == "auto size"]
    assert finding.level is doctor.Level.OK
    assert re.match(r"128\.0 MiB \(16\.0 MiB to 256\.0 MiB\): ", finding.text)
    assert "the machine has 512.0 MiB free of 4.0 GiB" in finding.text
    monkeypatch.setattr(
        "bufferpool.cli.doctor.read_memory", lambda directory: Reading(machine_free=MIB, machine_size=MIB)
    )
    (finding,) = [f for f in doctor.examine() if f.what == "auto size"]
    assert finding.level is doctor.Level.WARN
    assert finding.remedy


def test_a_real_look_is_a_real_size():
    found = auto_size.auto(auto_size.read_memory("/dev/shm"), PAGE, PAGE)
    assert 0 < found.min_capacity <= found.capacity <= found.max_capacity
