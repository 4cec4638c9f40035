"""A handle of a space that was closed."""

import asyncio
import pickle
from collections.abc import Callable
from typing import Any

import pytest

import bufferpool as bp
from bufferpool.errors import SpaceClosed
from tests.conftest import fill, pins, stamp

USES: dict[str, Callable[[bp.Pool, bp.Space], Any]] = {
    "index": lambda pool, space: space[0],
    "slice": lambda pool, space: space[0:2],
    "len": lambda pool, space: len(space),
    "shape": lambda pool, space: space.shape,
    "in": lambda pool, space: 0 in space,
    "iter": lambda pool, space: list(space),
    "get": lambda pool, space: space.get(0),
    "try_get": lambda pool, space: space.try_get(0),
    "resident": lambda pool, space: space.resident([0]),
    "read": lambda pool, space: space.read(0),
    "read_many": lambda pool, space: space.read_many([0]),
    "aget": lambda pool, space: asyncio.run(space.aget(0)),
    "aread_many": lambda pool, space: asyncio.run(space.aread_many([0])),
    "pin": lambda pool, space: space.pin(0),
    "pin_many": lambda pool, space: space.pin_many([0]),
    "prefetch": lambda pool, space: space.prefetch([0]),
    "scan": lambda pool, space: space.scan(),
    "write": lambda pool, space: space.write(0),
    "write_many": lambda pool, space: space.write_many([0], [stamp(0)]),
    "group": lambda pool, space: _grouped(pool, space),
    "append": lambda pool, space: space.append(),
    "append_many": lambda pool, space: space.append_many([stamp(0)]),
    "grow": lambda pool, space: space.grow(9),
    "drop": lambda pool, space: space.drop(),
    "flush": lambda pool, space: space.flush(),
    "flush by the pool": lambda pool, space: pool.flush(space),
    "stats": lambda pool, space: space.stats(),
    "misses": lambda pool, space: space.misses,
    "own_uses": lambda pool, space: space.own_uses,
    "set_share": lambda pool, space: space.set_share("64KiB"),
    "remove": lambda pool, space: space.remove(),
    "pickle": lambda pool, space: pickle.dumps(space),
}


def _grouped(pool: bp.Pool, space: bp.Space) -> None:
    with pool.publish_many() as group:
        group.write(space, 0)


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("kind", ["file", "process"])
def test_every_use_of_a_closed_handle_raises(pool, data_file, kind, use):
    """close() of any space but a private one did nothing: the handle read and wrote on."""
    opened = {
        "file": lambda: pool.open_file(data_file(4), "r+", name="table"),
        "process": lambda: pool.open_scratch("table", 4, lifetime="process"),
    }
    space = opened[kind]()
    space.close()
    with pytest.raises(SpaceClosed, match="'table' was closed; open"):
        USES[use](pool, space)


def test_the_space_stays_and_other_handles_are_not_concerned(pool, data_file):
    table = pool.open_file(data_file(4), "r+", name="table")
    other = pool.space("table", "r+")
    fill(table, [1], version=1)
    held = table[2]
    with table.write(3) as page:
        table.close()
        page[:] = stamp(3, version=1)
    table.close()
    assert repr(table).endswith("closed>")
    assert (held == stamp(2)).all()
    assert (other[1] == stamp(1, version=1)).all()
    assert (other[3] == stamp(3, version=1)).all()
    assert other.flush() == 2
    del held, page
    assert pins(pool) == 0


def test_a_copy_that_was_closed_before_its_first_use_attaches_nothing(pool, data_file):
    copy = pickle.loads(pickle.dumps(pool.open_file(data_file(4), name="table")))
    copy.close()
    with pytest.raises(SpaceClosed):
        copy[0]
    assert copy.index == -1
