"""What the error of a common mistake says: the call that was meant. Each of these said nothing of it, or something else."""

from collections.abc import Callable
from typing import Any

import pytest

import bufferpool as bp
from tests.conftest import PAGE

Use = Callable[[bp.Pool, bp.Space], Any]


def _decorated(pool: bp.Pool) -> None:
    @pool.cache("answers").memoize
    def answer() -> int:
        return 42


def _past_the_limit(pool: bp.Pool) -> None:
    space = pool.open_scratch("limited", 16, limit=8 * PAGE)
    with pool.publish_many() as group:
        for n in range(9):
            group.write(space, n)


MISTAKES: dict[str, tuple[Use, type[Exception], str]] = {
    "Pool(name)": (lambda pool, table: bp.Pool("orders"), TypeError, r"Pool\.open\(name.*Pool\.attach\(name"),
    "Pool.unlink(name)": (lambda pool, table: bp.Pool.unlink("orders"), TypeError, r"Pool\.remove\(name\)"),
    "memoize without parentheses": (lambda pool, table: _decorated(pool), TypeError, r"@cache\.memoize\(\)"),
    "get_or_load of a value": (
        lambda pool, table: pool.cache("answers").get_or_load("k", 42),
        TypeError,
        r"a function.*not int.*put\(key, value\)",
    ),
    "cache[key]": (lambda pool, table: pool.cache("answers")["k"], TypeError, r"cache\.get\(key\)"),
    "cache[key] = value": (lambda pool, table: pool.cache("answers").__setitem__("k", 1), TypeError, r"cache\.put\("),
    "del cache[key]": (lambda pool, table: pool.cache("answers").__delitem__("k"), TypeError, r"cache\.delete\("),
    "a missing file": (lambda pool, table: pool.open_file("missing.db"), FileNotFoundError, r"mode='w\+' makes"),
    "a negative number": (lambda pool, table: table.get(-1), bp.errors.PageOutOfRange, r"space\[-1\] is the last"),
    "a range from the end": (lambda pool, table: table.drop(-2), bp.errors.PageOutOfRange, r"space\[-1\] is the last"),
    "growing what is read": (lambda pool, table: table.grow(9), bp.errors.SpaceReadOnly, r"'r\+' to add a page"),
    "a group past a limit": (
        lambda pool, table: _past_the_limit(pool),
        bp.errors.GroupFull,
        r"limit.*set_share\(limit",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_error_says_what_was_meant(pool: bp.Pool, data_file, mistake: str) -> None:
    use, error, remedy = MISTAKES[mistake]
    with pytest.raises(error, match=f"(?s){remedy}"):
        use(pool, pool.open_file(data_file(4), "r"))
