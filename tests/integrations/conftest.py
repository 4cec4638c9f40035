"""An origin, and options of a pool for its blocks."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from bufferpool.integrations import origins, shared
from integrations.origin import Origin


@pytest.fixture(autouse=True)
def unknown_links(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that stands still, so that no link becomes known, and what is fetched does not depend on the load of the machine."""
    monkeypatch.setattr(origins, "clock", lambda: 0.0)


@pytest.fixture
def origin() -> Iterator[Origin]:
    with Origin() as served:
        yield served


@pytest.fixture
def name(pools: Any) -> Iterator[str]:
    """The name of a pool that a framework opens from its settings; it is checked at the end."""
    name = pools.name()
    yield name
    shared._pools.pop(name).close()
    pools.attach(name)


@pytest.fixture
def options(pools: Any) -> Callable[..., dict[str, Any]]:
    """options(**more): those of a new pool of 4 MiB for remote blocks, which is checked at the end."""

    def make(**more: Any) -> dict[str, Any]:
        return {"pool": pools.name(), "budget": "4MiB", "steward": False} | more

    return make
