"""Numbers that the core and the package both know: kinds, states, reasons, counters, flags.

They stand in C++ and in Python, and nothing compared them: a counter that was inserted in one of the lists would have shifted
every figure behind it.
"""

import re
from collections.abc import Iterator

import pytest

from bufferpool.figures import names
from bufferpool.objects import cache
from bufferpool.spaces import directory
from bufferpool.stores.base import Caching
from tests.support.native_build import CORE

LAYOUT = (CORE / "layout" / "layout.h").read_text()


def enum_of(path: str, name: str) -> dict[str, int]:
    """The members of an enum of the core, with their numbers."""
    body = re.search(rf"enum (?:class )?{name}(?: : \w+)? {{(.*?)}};", (CORE / path).read_text(), re.DOTALL)
    assert body is not None, name
    found, number = {}, 0
    for member in re.findall(r"(\w+)(?: = (\d+))?\s*(?:,|$)", re.sub(r"//.*", "", body[1]).strip()):
        number = int(member[1]) if member[1] else number
        found[member[0]] = number
        number += 1
    return found


def fields_of(struct: str) -> Iterator[str]:
    """The names of the plain counters of a struct, in order."""
    body = re.search(rf"struct {struct} {{(.*?)\n}};", LAYOUT, re.DOTALL)
    assert body is not None
    for line in re.findall(r"Atomic<u64> ([\w, ]+);", body[1]):
        yield from line.split(", ")


@pytest.mark.parametrize(
    ("path", "enum", "prefix", "python"),
    [
        ("layout/layout.h", "SpaceKind", "KIND_", names.Kind),
        ("layout/words.h", "FrameState", "", names.FrameState),
        ("layout/policy_state.h", "PolicyMode", "MODE_", names.PolicyMode),
        ("os/prim.h", "Caching", "", Caching),
    ],
    ids=["kind", "frame", "mode", "caching"],
)  # fmt: skip
def test_the_package_has_the_numbers_of_the_core(path, enum, prefix, python) -> None:
    core = {name.removeprefix(prefix): number for name, number in enum_of(path, enum).items()}
    assert {one.name: core.get(one.name) for one in python} == {one.name: one.value for one in python}


def test_the_core_has_the_numbers_of_the_events() -> None:
    text = "".join((CORE / "protocol" / name).read_text() for name in ("events.h", "memory.h"))
    core = {name: int(number) for name, number in re.findall(r"((?:KIND|REASON)_\w+) = (\d+)", text)}
    assert core == {
        "KIND_REAPED": names.EventKind.REAPED, "REASON_DIED": names.EventReason.DIED,
        "KIND_MODE": names.EventKind.MODE_CHANGED, "REASON_DUEL": names.EventReason.DUEL,
        "REASON_SMALL": names.EventReason.SMALL,
        "REASON_REBUILT": names.EventReason.REBUILT,
    }  # fmt: skip


def test_the_lists_have_the_order_of_the_core() -> None:
    assert list(names.COUNTERS) == list(fields_of("Counters"))
    reasons = [name.lower() for name in enum_of("layout/layout.h", "Reason")][:-1]
    assert list(names.REASONS) == reasons
    latencies = [name.removeprefix("LATENCY_").lower() for name in enum_of("layout/layout.h", "Latency")][:-1]
    assert list(names.LATENCIES) == latencies
    limits = re.search(r"AGE_LIMITS_S\[AGES - 1\] = {([\d, ]+)}", (CORE / "python" / "segment_figures.cpp").read_text())
    assert limits is not None
    assert (*map(float, limits[1].split(", ")), float("inf")) == names.AGE_LIMITS_S
    flags = enum_of("layout/layout.h", "SpaceFlags")
    assert flags == {f"SPACE_{name}": getattr(directory, name) for name in ("DISCARDABLE", "WRITABLE", "CHECKSUM")}
    outcomes = enum_of("python/cache.cpp", "Outcome")
    assert outcomes == {name: getattr(cache, name.removeprefix("OUT_")) for name in outcomes}
