"""A cache by item access, as cachetools and others want it."""

from collections.abc import Callable
from typing import Any

import pytest

import bufferpool as bp
from bufferpool.integrations.mapping import CacheMapping
from bufferpool.objects.cache import plain_key


@pytest.fixture
def mapping(make_pool: Callable[..., bp.Pool]) -> CacheMapping:
    return CacheMapping(make_pool(8 << 20, max_capacity=8 << 20).cache("mapping"))


def test_items(mapping: CacheMapping) -> None:
    mapping["a"] = [1]
    mapping["none"] = None
    assert mapping["a"] == [1]
    assert mapping["none"] is None
    assert mapping.get("none", 7) is None
    assert mapping.get("absent", 7) == 7
    assert "a" in mapping
    assert "absent" not in mapping
    assert len(mapping) == 2
    assert mapping.pop("a") == [1]
    assert mapping.pop("a", 3) == 3
    for missing in (lambda: mapping["a"], lambda: mapping.pop("a"), lambda: mapping.__delitem__("a")):
        with pytest.raises(KeyError):
            missing()
    mapping.update({"b": 2})
    assert mapping.setdefault("b", 3) == 2
    assert mapping.setdefault("c", 3) == 3
    mapping.clear()
    assert len(mapping) == 0
    assert mapping


def test_keys_are_not_listed(mapping: CacheMapping) -> None:
    """An iteration over what happens to be left would look like one over everything."""
    mapping["a"] = 1
    for listing in (list, dict, mapping.popitem, lambda m=mapping: m.items().__iter__().__next__()):
        with pytest.raises(TypeError, match="does not list its keys"):
            listing(mapping) if listing in (list, dict) else listing()


def test_different_keys_have_different_values(mapping: CacheMapping) -> None:
    """A float and the tuple by which it was written gave the same value."""
    keys: list[Any] = [
        1, 1.0, True, None, "1", b"1", ("1",), (1,), (1.0,), ((1.0,),), (), ((),), ("=", "float", "1.0"), ("(", 1), int, ("(",),
        ("=", "NoneType", "None"), ("None",), float("inf"), "inf", -0.0, 0.0,
    ]  # fmt: skip
    assert len({plain_key(key) for key in keys}) == len(keys)
    for number, key in enumerate(keys):
        mapping[key] = number
    assert [mapping[key] for key in keys] == list(range(len(keys)))


@pytest.mark.parametrize("key", [[1], {1}, object(), (1, [2]), bytearray(b"a")])
def test_other_keys_are_refused(mapping: CacheMapping, key: Any) -> None:
    with pytest.raises(TypeError, match="a key is"):
        mapping[key] = 1


def test_cachetools_keeps_results_in_it(mapping: CacheMapping) -> None:
    cachetools = pytest.importorskip("cachetools")
    calls: list[Any] = []

    @cachetools.cached(mapping)
    def area(width: float, height: float = 1, *, unit: str | None = None) -> str:
        calls.append((width, height, unit))
        return f"{width * height} {unit}"

    for _ in range(2):
        assert area(2, 3.5) == "7.0 None"
        assert area(2, 3.5, unit="m") == "7.0 m"
        assert area(2, height=3.5) == "7.0 None"
    assert calls == [(2, 3.5, None), (2, 3.5, "m"), (2, 3.5, None)]
