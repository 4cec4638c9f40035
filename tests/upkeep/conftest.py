"""What the tests of the upkeep share."""

from collections.abc import Iterator

import pytest

import bufferpool as bp
from tests.support.hanging import Hanging


@pytest.fixture
def hung(pool: bp.Pool) -> Iterator[Hanging]:
    """A store of 64 pages whose methods can be made to hang; they continue when the test ends, before the pool is closed."""
    store = Hanging(64)
    yield store
    store.open()
