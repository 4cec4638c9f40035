"""The map of the segment that the fuzzer and other tools use (core/fields.cpp) has every field of every struct.

It is a list beside the structs, and fields were added to the structs alone: the number of banks of clients, the count of
pages that are set aside, the mark of a client without a byte lock. So the fuzzer never damaged them.
"""

import itertools
import re
from pathlib import Path

from bufferpool import _core
from tests.support.native_build import CORE

MAPPED = (
    "Header",
    "Geometry",
    "Client",
    "Intent",
    "Failure",
    "SpaceSlot",
    "SpaceTexts",
    "LongTexts",
    "Uses",
    "FrameSlot",
    "Event",
    "Advice",
    "Duel",
    "ObjectEntry",
    "ObjectHead",
    "ObjectBlock",
    "CacheUses",
    "CacheSlot",
    "ObjectsHeader",
)
TAKEN_APART = {"LockWord", "PolicyState", "RingState"}  # their fields stand under the name of what they are in


def header(name: str) -> str:
    """The text of a header of the core, without its comments."""
    path = CORE / "layout" / name
    return re.sub(r"//[^\n]*", "", Path(path).read_text())


def body_of(text: str, struct: str) -> str:
    """What stands between the braces of a struct, without what stands between braces in it."""
    start = re.search(rf"\bstruct (?:alignas\(\w+\) )?{struct} {{", text)
    assert start is not None, f"{struct} is not declared"
    depth, out = 1, ""
    for char in text[start.end() :]:
        depth += (char == "{") - (char == "}")
        if depth == 0:
            return out
        if depth == 1:
            out += ";" if char == "}" and out.rstrip().endswith(")") else "" if char == "}" else char
    raise AssertionError(f"{struct} does not end")


def members(text: str, struct: str) -> dict[str, str]:
    """{field: type} of a struct."""
    found = {}
    for declaration in body_of(text, struct).split(";"):
        words = re.sub(r"alignas\(\w+\)", "", declaration).strip()
        if not words or "(" in words or words.startswith(("static", "constexpr", "explicit", "using")):
            continue  # a method, or a constant
        kind, names = words.split(None, 1)
        if kind == "struct":
            kind, names = names.split(None, 1)
        for name in names.split(","):
            one = name.strip()
            found[one.partition("[")[0]] = f"{kind}[]" if "[" in one else kind
    return found


def names_of(text: str, struct: str, before: str) -> set[str]:
    out = set()
    for name, kind in members(text, struct).items():
        out |= names_of(text, kind, f"{before}{name}.") if kind in TAKEN_APART else {f"{before}{name}"}
    return out


def test_every_field_of_the_segments_structs_is_on_the_map() -> None:
    text = header("layout.h") + header("policy_state.h") + header("advice.h") + header("duel.h") + header("objects.h")
    wanted = set().union(*(names_of(text, struct, f"{struct}.") for struct in MAPPED))
    assert {"Header.more_banks", "Header.policy.hot.count", "Client.unlocked", "FrameSlot.mark"} <= wanted
    padding = {name for name in wanted if name.endswith(".pad")}
    mapped = {name for name in _core.fields() if "." in name}
    assert wanted - padding - mapped == set()
    assert mapped - wanted == set()


def test_the_places_on_the_map_do_not_overlap() -> None:
    fields = _core.fields()
    for struct in MAPPED:
        places = sorted(place for name, place in fields.items() if name.startswith(f"{struct}."))
        for (at, size), (after, _) in itertools.pairwise(places):
            assert at + size <= after, f"{struct}: {at} + {size} > {after}"
        assert sum(places[-1]) <= fields[struct][1]
