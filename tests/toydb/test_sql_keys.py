"""Keys sort as SQLite sorts: by chance, and against SQLite's own ORDER BY."""

import apsw
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toydb.sql.keys import BLOBS, COLLATIONS, END, NUMBERS, TEXTS, decode_integer, encode, encode_all, prefixes

INTEGERS = st.integers(-(1 << 63), (1 << 63) - 1)
EDGES = st.sampled_from(
    [n + d for n in (0, 1 << 53, 1 << 62, (1 << 63) - 1, 255, 256, 65535) for d in (-1, 0) if n + d < 1 << 63]
)
REALS = st.floats(allow_nan=False) | st.sampled_from([n / 4 for n in range(-9, 10)])
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=6) | st.sampled_from(
    ["a", "A ", "a\x01", "é", "😀", " "]
)
VALUES = st.none() | INTEGERS | EDGES | EDGES.map(float) | INTEGERS.map(float) | REALS | TEXT | st.binary(max_size=4)
CELLS = VALUES | st.text("a\0\x01", max_size=3)

sqlite = apsw.Connection(":memory:")


def ranks(values, collation):
    """dense_rank of each value by SQLite: equal values have equal ranks."""
    sqlite.execute("DROP TABLE IF EXISTS v; CREATE TABLE v(n, v)")
    sqlite.executemany("INSERT INTO v VALUES(?, ?)", list(enumerate(values)))
    return [
        r for (r,) in sqlite.execute(f"SELECT dense_rank() OVER (ORDER BY v COLLATE {collation}) FROM v ORDER BY n")
    ]


@pytest.mark.parametrize("collation", COLLATIONS)
@settings(max_examples=120, deadline=None)
@given(values=st.lists(VALUES, min_size=2, max_size=12))
def test_a_key_compares_as_sqlite_compares_its_value(collation, values):
    wanted = ranks(values, collation)
    keys = [encode(value, collation) for value in values]
    order = sorted(set(keys))
    assert [order.index(key) + 1 for key in keys] == wanted


@settings(max_examples=60, deadline=None)
@given(values=st.lists(st.text("a\0\x01", max_size=4) | st.binary(max_size=2), min_size=2, max_size=8))
def test_a_zero_byte_sorts_before_all_others(values):
    """(In binary order: SQLite's other collations stop at it.)"""
    test_a_key_compares_as_sqlite_compares_its_value.hypothesis.inner_test("BINARY", values)


@settings(max_examples=120, deadline=None)
@given(rows=st.lists(st.tuples(CELLS, CELLS), min_size=2, max_size=10))
def test_tuples_sort_by_their_columns(rows):
    sqlite.execute("DROP TABLE IF EXISTS p; CREATE TABLE p(n, a, b)")
    sqlite.executemany("INSERT INTO p VALUES(?, ?, ?)", [(n, *row) for n, row in enumerate(rows)])
    wanted = [r for (r,) in sqlite.execute("SELECT dense_rank() OVER (ORDER BY a, b) FROM p ORDER BY n")]
    keys = [encode_all(row) for row in rows]
    order = sorted(set(keys))
    assert [order.index(key) + 1 for key in keys] == wanted


@settings(max_examples=200, deadline=None)
@given(a=VALUES, b=VALUES, c=VALUES)
def test_all_keys_that_begin_with_a_value_lie_before_its_end(a, b, c):
    first = encode(a)
    assert first <= encode_all((a, b)) < first + END
    other = encode_all((c, b))
    assert (first <= other < first + END) == (encode(c) == first)


@settings(max_examples=100, deadline=None)
@given(value=VALUES)
def test_storage_classes_have_ranges_of_their_own(value):
    key = encode(value)
    inside = [lo <= key < hi for lo, hi in (NUMBERS, TEXTS, BLOBS)]
    kinds = [isinstance(value, (int, float)), isinstance(value, str), isinstance(value, bytes)]
    assert inside == kinds


@given(values=st.lists(VALUES, max_size=5))
def test_a_key_can_be_cut_between_its_values(values):
    assert prefixes(encode_all(values)) == [encode_all(values[: n + 1]) for n in range(len(values))]


@given(number=INTEGERS)
def test_integers_come_back(number):
    assert decode_integer(encode(number)) == number


def test_what_is_no_value_is_refused():
    with pytest.raises(OverflowError, match="64 bits"):
        encode(1 << 63)
    with pytest.raises(TypeError, match="list"):
        encode([])
    with pytest.raises(ValueError, match="NOCASE"):
        encode("a", "GERMAN")
    assert encode(float("nan")) == encode(None)
    assert encode(True) == encode(1)
