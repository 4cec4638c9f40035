"""A space as an array of two dimensions: numpy's rules of indexing hold."""

import pickle
import random

import numpy as np
import pytest

import bufferpool as bp
from tests.conftest import Pools

ROWS, ITEMS = 12, 512


@pytest.fixture
def space(pools: Pools) -> bp.Space:
    def load(n: int, out: np.ndarray) -> None:
        out[:] = np.arange(ITEMS) + 1000 * n

    return pools.create().open_derived("numbers", ROWS, load, dtype=np.uint64)


@pytest.fixture
def array(space: bp.Space) -> np.ndarray:
    return np.stack(list(space))


def test_a_space_says_what_array_it_is(space: bp.Space, array: np.ndarray) -> None:
    """dask.array.from_array(space) was an AttributeError: a space had no shape."""
    assert (space.shape, space.ndim, space.dtype) == (array.shape, array.ndim, array.dtype)


MASK = np.arange(ROWS) % 3 == 0
GRID = np.arange(ROWS * ITEMS).reshape(ROWS, ITEMS) % 7 == 0
INDEXES = [
    (slice(2, 5), slice(10, 20)),
    (slice(None, None, -3), 7),
    (3, 5),
    (-1, slice(None, None, 2)),
    (slice(0, 0), slice(0, 0)),
    ...,
    (..., 0),
    (0, ...),
    (..., slice(1, 3), 4),
    (),
    [5, -1, 5],
    ([5, 0], [1, 2]),
    (np.array([[1, 2], [3, 4]]), slice(0, 3)),
    np.array([], np.int64),
    [],
    ([5, 0], slice(3, 9)),
    (np.int32(4), np.uint8(200)),
    MASK,
    MASK.tolist(),
    (MASK, slice(0, 2)),
    (slice(None), np.arange(ITEMS) < 3),
    GRID,
]


@pytest.mark.parametrize("index", INDEXES, ids=lambda index: repr(index)[:30].replace("\n", " "))
def test_an_index_selects_what_numpy_selects(space: bp.Space, array: np.ndarray, index: object) -> None:
    found, expected = space[index], array[index]
    assert type(found) is type(expected)
    assert found.shape == expected.shape
    assert np.array_equal(found, expected)
    if isinstance(found, np.ndarray):
        assert not found.flags.writeable, "what is written to a copy is lost"


def test_random_indexes(space: bp.Space, array: np.ndarray) -> None:
    chance = random.Random(7)

    def part(size: int) -> object:
        bound = [None, *range(-size - 2, size + 3)]
        return chance.choice(
            [
                slice(chance.choice(bound), chance.choice(bound), chance.choice([None, 1, 2, -1, -3])),
                chance.randrange(-size, size),
                [chance.randrange(-size, size) for _ in range(3)],
            ]
        )

    for _ in range(300):
        index = chance.choice([(part(ROWS), part(ITEMS)), (part(ROWS),), (..., part(ITEMS))])
        assert np.array_equal(space[index], array[index]), index


@pytest.mark.parametrize(
    ("index", "error"),
    [
        ((1, 2, 3), IndexError),
        ((..., ...), IndexError),
        ([ROWS], bp.PageOutOfRange),
        ([-ROWS - 1, 0], bp.PageOutOfRange),
        ((ROWS, 0), bp.PageOutOfRange),
        ((0, ITEMS), IndexError),
        (MASK[:-1], IndexError),
        (GRID[:, :5], IndexError),
        ([1.5], TypeError),
        (["a"], TypeError),
        (None, TypeError),
        ((None, 1), TypeError),
        ((1.5, 1), TypeError),
    ],
)  # fmt: skip
def test_a_wrong_index_is_refused(space: bp.Space, index: object, error: type[Exception]) -> None:
    with pytest.raises(error):
        _ = space[index]  # type: ignore[index]


def test_an_item_of_a_page_pins_it_no_longer(space: bp.Space) -> None:
    """space[n, a:b] is a part of the page itself; a plain value holds nothing."""
    part = space[3, 10:20]
    assert space.pool.clients()[0].pins == 1
    assert part.base is not None
    value = space[3, 10]
    del part
    assert space.pool.clients()[0].pins == 0
    assert value == 3010


def test_the_token_by_which_dask_names_results(space: bp.Space) -> None:
    """A result that dask has by name is not computed again: pages that change must not have the name that they had."""
    copy = pickle.loads(pickle.dumps(space.pool)).open_derived("numbers", ROWS, str, dtype=np.uint64)
    assert copy.__dask_tokenize__() == space.__dask_tokenize__()
    other = space.pool.open_derived("others", ROWS, str, dtype=np.uint64)
    assert other.__dask_tokenize__() != space.__dask_tokenize__()
    changing = space.pool.open_scratch("work", 4)
    assert changing.__dask_tokenize__() != changing.__dask_tokenize__()
