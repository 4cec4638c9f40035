"""The shape of the interface: which arguments its calls take, and with which defaults.

The calls had grown apart: a mode was "r" in one call and "r+" in the next, a size was a string in some places only,
``create`` hid its arguments behind ``**options``, and types that calls returned could not be imported.
"""

import ast
import dataclasses
import enum
import inspect
import textwrap
from typing import Any

import pytest

import bufferpool as bp

OPENING = (bp.Pool.open_file, bp.Pool.open_store, bp.Pool.open_derived, bp.Pool.open_scratch)
SIZES = {"capacity", "page_size", "min_capacity", "max_capacity", "extent_size", "room", "limit", "reserve", "size"}
CALLS = (
    bp.Pool.create, bp.Pool.open, bp.Pool.attach, bp.Pool.resize, bp.Pool.trim, bp.Pool.cache, bp.Pool.remove_page_size,
    bp.Space.set_share, *OPENING,
)  # fmt: skip


def parameters(call: Any) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(call).parameters)


@pytest.mark.parametrize("call", [bp.Pool.open_file, bp.Pool.open_store, bp.Pool.space], ids=lambda call: call.__name__)
def test_a_space_is_opened_for_reading_unless_a_call_says_more(call) -> None:
    assert parameters(call)["mode"].default == "r"


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.__name__)
def test_every_argument_has_a_name_and_every_size_may_be_text(call) -> None:
    found = parameters(call)
    assert not [one.name for one in found.values() if one.kind in (one.VAR_KEYWORD, one.VAR_POSITIONAL)]
    sizes = SIZES & set(found)
    assert [name for name in sizes if not {"int", "str"} <= set(str(found[name].annotation).split(" | "))] == []


def test_a_call_that_opens_a_space_takes_its_share_and_its_page_size() -> None:
    for call in OPENING:
        assert {"limit", "reserve", "page_size", "dtype"} <= set(parameters(call)), call


def test_rights_and_users_have_names_of_their_own() -> None:
    assert "permissions" in parameters(bp.Pool.create)
    assert {"permissions", "mode"} <= set(parameters(bp.Pool.open))
    assert {"mode", "trusted_uid"} <= set(parameters(bp.Pool.attach))
    assert list(parameters(bp.Pool.trim_idle))[1] == "seconds"
    assert parameters(bp.Pool.trim)["size"].default is None
    assert parameters(bp.Pool.open_scratch)["lifetime"].default == "pool"
    assert {"lsn", "timeout"} <= set(parameters(bp.Space.write)) & set(parameters(bp.Space.append))


@pytest.mark.parametrize("name", sorted(set(bp.__all__) - set(bp.errors.__all__)))
def test_every_field_of_what_calls_return_is_documented(name: str) -> None:
    """``help`` and the reference showed the hits of a cache, the steps of the steward's rules and the kinds of spaces without a word."""
    kind = getattr(bp, name)
    if not inspect.isclass(kind) or not (dataclasses.is_dataclass(kind) or issubclass(kind, enum.Enum)):
        return
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(tree, ast.ClassDef)
    for field, following in zip(tree.body, [*tree.body[1:], None], strict=True):
        if not isinstance(field, (ast.Assign, ast.AnnAssign)):
            continue
        target = field.target if isinstance(field, ast.AnnAssign) else field.targets[0]
        is_text = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
        assert is_text or ast.unparse(target).startswith("_"), f"{name}.{ast.unparse(target)}"


def test_what_calls_return_can_be_imported() -> None:
    for name in (
        "Event",
        "EventKind",
        "EventReason",
        "Observer",
        "WarmUp",
        "Steward",
        "Settings",
        "Rules",
        "FrameCounts",
    ):
        assert name in bp.__all__, name
        assert inspect.isclass(getattr(bp, name)), name
    for kind in (bp.PoolStats, bp.SpaceStats, bp.CacheStats, bp.FrameCounts, bp.ClientInfo, bp.Settings, bp.Rules):
        assert dataclasses.is_dataclass(kind), kind
