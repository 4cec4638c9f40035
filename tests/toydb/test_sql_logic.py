"""sqllogictest files over both engines, each query also on SQLite's own tables."""

from pathlib import Path

import apsw
import pytest

from toydb.sql import Connection

from .engines import ENGINES, opener
from .sqllogic import generate
from .sqllogic.runner import Mismatch, Runner, SyntaxProblem, format_value, parse, summary, values_of

WRITTEN = sorted((Path(__file__).parent / "sqllogic").glob("*.test"))  # by hand


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The files by name: those written by hand, and the generated ones."""
    folder = tmp_path_factory.mktemp("sqllogic")
    generate.main(folder)
    return {path.stem: path for path in (*WRITTEN, *folder.iterdir())}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", [*(path.stem for path in WRITTEN), *generate.FILES])
def test_file(name, files, engine, tmp_path):
    path = files[name]
    with opener(engine, tmp_path) as open_database:
        connection = Connection(open_database())
        tally = Runner(connection).run(path.read_text(encoding="utf-8"))
        if connection.get_autocommit():
            assert connection.check() == []
        connection.close()
    assert tally.queries > 0
    assert tally.skipped == 0


def test_there_are_enough_queries(files):
    queries = [r.sql for path in files.values() for r in parse(path.read_text(encoding="utf-8")) if r.kind == "query"]
    assert len(queries) >= 2000
    assert len(set(queries)) >= 1500


def test_the_generator_writes_the_same_files_each_time(files, tmp_path):
    generate.main(tmp_path)
    written = {path.stem: path.read_bytes() for path in tmp_path.iterdir()}
    assert set(written) == set(generate.FILES)
    for name, text in written.items():
        assert files[name].read_bytes() == text


EXAMPLE = """
# a comment
hash-threshold 3

skipif sqlite
statement ok
CREATE NONSENSE

onlyif toydb # this is for us
statement ok
CREATE TABLE t(a INTEGER, b TEXT, c REAL)

onlyif mysql
query I
SELECT nonsense
----
1

statement error
INSERT INTO nothing VALUES(1)

statement ok
INSERT INTO t
VALUES(2, '', 1.5), (10, NULL, 2), (1, 'tab\there', NULL)

query ITR rowsort first
SELECT a, b,
c FROM t
----
1
tab@here
NULL
10
NULL
2.000
2
(empty)
1.500

query II valuesort
SELECT a, a * 2 FROM t
----
1
10
2
2
20
4

query I nosort
SELECT a FROM t ORDER BY a
----
3 values hashing to ea4dde2dd7f6ab99ed5f3cf3ccd57174

halt

query I
SELECT never
----
"""


def connections():
    return apsw.Connection(":memory:"), apsw.Connection(":memory:")


def test_the_whole_format_is_understood():
    values = ["1", "2", "10"]
    text = EXAMPLE.replace("3 values hashing to ea4dde2dd7f6ab99ed5f3cf3ccd57174", summary(values))
    tally = Runner(*connections()).run(text)
    assert (tally.statements, tally.queries, tally.skipped) == (3, 3, 2)
    assert summary(["1"]).startswith("1 values hashing to b026324c6904b2a9cb4b88d6d61c81d1")  # md5 of "1\n"


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (("(empty)", "NULL"), "toydb|SQLite"),
        (("valuesort", "nosort"), "gives"),
        (("statement error\nINSERT", "statement ok\nINSERT"), "failed with"),
        (("statement ok\nINSERT", "statement error\nINSERT"), "should have failed"),
        (("query II valuesort", "query III valuesort"), "columns"),
    ],
)
def test_a_wrong_file_is_found_out(change, what):
    assert change[0] in EXAMPLE
    with pytest.raises(Mismatch, match=what):
        Runner(*connections()).run(EXAMPLE.replace(*change))


def test_a_wrong_engine_is_found_out():
    """The same statement must do the same on both sides."""
    ours, sqlite = connections()
    ours.execute("CREATE TABLE t(a); INSERT INTO t VALUES(2)")
    sqlite.execute("CREATE TABLE t(a); INSERT INTO t VALUES(1)")
    with pytest.raises(Mismatch, match="toydb gives"):
        Runner(ours, sqlite).run("query I\nSELECT a FROM t\n----\n1\n")
    with pytest.raises(Mismatch, match="label x"):
        Runner(*connections()).run("query I nosort x\nSELECT 1\n----\n1\n\nquery I nosort x\nSELECT 2\n----\n2\n")


@pytest.mark.parametrize(
    "text",
    [
        "query X\nSELECT 1\n----\n",
        "query I sideways\nSELECT 1\n----\n",
        "quarry I\nSELECT 1",
        "statement maybe\nx",
        "query I\nSELECT 1",
        "skipif\nhalt",
    ],
)
def test_a_malformed_file_is_refused(text):
    with pytest.raises(SyntaxProblem):
        Runner(*connections()).run(text)


def test_values_are_written_as_the_format_says():
    assert [format_value(v, "I") for v in (None, 3, 2.9, "17x")] == ["NULL", "3", "2", "17"]
    assert [format_value(v, "R") for v in (1, 0.0625, "2.5")] == ["1.000", "0.062", "2.500"]
    assert [format_value(v, "T") for v in ("", "a\nb", 1.5, b"\xff")] == ["(empty)", "a@b", "1.5", "@"]
    assert values_of([(10, "b"), (9, "a")], "IT", "rowsort") == ["10", "b", "9", "a"]
