"""An origin, and options of a pool for its blocks."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from integrations.origin import Origin


@pytest.fixture
def origin() -> Iterator[Origin]:
    with Origin() as served:
        yield served


@pytest.fixture
def options(pools: Any) -> Callable[..., dict[str, Any]]:
    """options(**more): those of a new pool of 4 MiB for remote blocks, which is checked at the end."""

    def make(**more: Any) -> dict[str, Any]:
        return {"pool": pools.name(), "budget": "4MiB", "steward": False} | more

    return make
