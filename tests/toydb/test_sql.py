"""The SQL side: definitions, plans, constraints, transactions, several connections; over both engines."""

import sqlite3
from contextlib import suppress

import apsw
import pytest

from toydb.sql.cursor import Cursor
from toydb.sql.parsing import ANY_OPERANDS

from .engines import MANY, fill, plan, rows

# -- plans ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sql", "wanted"),
    [
        ("SELECT * FROM item WHERE id = 5", ["PRIMARY KEY (id=?)"]),
        ("SELECT * FROM item WHERE rowid = 5", ["PRIMARY KEY (id=?)"]),
        ("SELECT * FROM item WHERE id BETWEEN 5 AND 9", ["PRIMARY KEY (id>=? AND id<=?)"]),
        ("SELECT * FROM item WHERE id IN (1, 2)", ["PRIMARY KEY (id=?)"]),
        ("SELECT * FROM item ORDER BY id DESC LIMIT 3", ["PRIMARY KEY DESC"]),
        ("SELECT * FROM item WHERE id > 900 ORDER BY id", ["PRIMARY KEY (id>?)"]),
        ("SELECT * FROM item WHERE name = 'name3'", ["INDEX by_name (name=?)"]),
        ("SELECT * FROM item WHERE name = 'name3' AND price < 9 ORDER BY price DESC", ["INDEX by_name (name=? AND price<?) DESC"]),
        ("SELECT * FROM item WHERE name IS NULL", ["INDEX by_name (name IS NULL)"]),
        ("SELECT * FROM item WHERE name GLOB 'name1*'", ["INDEX by_name (name>=? AND name<?)"]),
        ("SELECT * FROM item WHERE price = 5", ["PRIMARY KEY"]),
        ("SELECT * FROM line WHERE orders = 3", ["PRIMARY KEY (orders=?)"]),
        ("SELECT * FROM line WHERE orders = 3 AND number > 1", ["PRIMARY KEY (orders=? AND number>?)"]),
        ("SELECT * FROM line WHERE orders = 3 ORDER BY number DESC LIMIT 1", ["PRIMARY KEY (orders=?) DESC"]),
        ("SELECT * FROM line ORDER BY orders, number", ["PRIMARY KEY"]),
        ("SELECT * FROM line WHERE number = 3", ["PRIMARY KEY"]),
        ("SELECT * FROM line l JOIN item i ON i.id = l.item WHERE l.orders = 7", ["PRIMARY KEY (orders=?)", "PRIMARY KEY (id=?)"]),
        ("SELECT * FROM item WHERE name = ? ORDER BY price", ["INDEX by_name (name=?)"]),
        ("SELECT max(number) FROM line WHERE orders = 3", ["PRIMARY KEY (orders=?) DESC"]),
        ("SELECT count(*) FROM line GROUP BY orders", ["PRIMARY KEY"]),
    ],
)  # fmt: skip
def test_the_planner_uses_keys_and_indexes(con, sql, wanted):
    """And needs no sort: that would be one more line, USE TEMP B-TREE."""
    fill(con)
    assert plan(con, sql) == wanted


def test_an_order_that_no_key_has_is_sorted(con):
    fill(con)
    assert plan(con, "SELECT * FROM line ORDER BY orders, number DESC")[-1].startswith("USE TEMP B-TREE")
    assert plan(con, "SELECT * FROM item ORDER BY price")[-1].startswith("USE TEMP B-TREE")
    assert plan(con, "SELECT * FROM item WHERE name IN ('name1', 'name2') ORDER BY price")[-1].startswith(
        "USE TEMP B-TREE"
    )


def test_a_view_does_not_keep_other_statements_from_an_index(con):
    """Its SQL may run within any statement; only an IN of row values in it makes an equality with text doubtful."""
    fill(con)
    con.execute("CREATE VIEW v AS SELECT * FROM item WHERE name IN (SELECT id FROM item); CREATE VIEW w AS SELECT 1")
    assert plan(con, "SELECT * FROM item WHERE name = ?") == ["INDEX by_name (name=?)"]
    con.execute("CREATE TEMP VIEW u AS SELECT * FROM item WHERE (name, price) IN (SELECT id, 1 FROM item)")
    assert plan(con, "SELECT * FROM item WHERE name = ?") == ["PRIMARY KEY"]
    assert plan(con, "SELECT * FROM item WHERE name = 'x'") == [
        "INDEX by_name (name=?)"
    ]  # a value that the planner knows
    con.execute("DROP VIEW u; DROP VIEW v")
    assert plan(con, "SELECT * FROM item WHERE name = ?") == ["INDEX by_name (name=?)"]


def test_a_search_touches_few_pages(con):
    fill(con)

    def touched(sql):
        before = con.pages()
        rows(con, sql)
        return con.pages().since(before).touched

    whole = touched("SELECT count(*) FROM item")
    assert touched("SELECT * FROM item WHERE id = 500") < whole
    assert touched("SELECT * FROM item WHERE name = 'name7' AND price = 1.75") < whole
    assert con.pages().touched == con.pages().hit + con.pages().missed


def test_an_index_that_has_a_part_of_the_key_names_more_than_one_row(con):
    """An index on a column of the primary key ended there, and was taken to name one row: DELETE removed one of several, and
    the rows of an ORDER BY came in the order of the first column only."""
    con.execute(
        "CREATE TABLE t(a TEXT, b INTEGER, c INTEGER, PRIMARY KEY(a COLLATE RTRIM, b)); CREATE INDEX by_a ON t(a)"
    )
    con.execute("CREATE TABLE u(a TEXT, b TEXT, PRIMARY KEY(a, b)); CREATE INDEX by_b ON u(b COLLATE NOCASE, a)")
    con.executemany("INSERT INTO t VALUES(?, ?, ?)", [(a, b, -b % 7) for a in "xyz" for b in range(20)])
    con.executemany("INSERT INTO u VALUES('x', ?)", [("b",), ("B",), ("c",)])
    ordered = rows(con, "SELECT c FROM t WHERE a >= 'x' ORDER BY a, c")
    assert ordered == [(c,) for _ in "xyz" for c in sorted(-b % 7 for b in range(20))]
    con.execute("DELETE FROM t WHERE a = 'y' COLLATE BINARY AND c < 9")
    assert rows(con, "SELECT a, count(*) FROM t GROUP BY a") == [("x", 20), ("z", 20)]
    con.execute("DELETE FROM u WHERE b = 'b' COLLATE NOCASE AND a = 'x'")
    assert rows(con, "SELECT b FROM u") == [("c",)]
    con.execute("UPDATE t SET c = 1 WHERE a COLLATE BINARY = 'x'")
    assert rows(con, "SELECT count(*) FROM t WHERE c = 1 AND a = 'x'") == [(20,)]


VALUES = (5, "5", "5.0", 5.5, b"5", "a", "A", 2)
COMPARISONS = (
    "k = 5", "k = '5'", "k > '4'", "k <= 5", "k BETWEEN 3 AND 6", "n >= '5'", "n < 5.2", "n = ' 5'", "k >= 5 ORDER BY n",
    "n = 5 AND k = n", "k = CAST('5' AS INTEGER)", "k <= CAST('5' AS INTEGER)", "k IN (SELECT n FROM u)", "s = 5", "s < 6",
    "k = (SELECT n FROM u WHERE n = 5)", "k = 5 OR k = '5'", "n IN ('5', 2)", "k = +n",
)  # fmt: skip
OTHERS = (
    "SELECT k, count(*) FROM t WHERE k > 1 GROUP BY k HAVING k = CAST('5' AS INTEGER)",
    "SELECT u.n, t.k FROM u JOIN t ON t.k = u.n",
    "SELECT u.n, k FROM u, t WHERE k >= u.n AND u.n = 5",
    "SELECT n, k FROM joined WHERE n = 5",
)


def test_rows_are_tested_again_where_ranges_are_wider_than_a_comparison(con):
    """SQLite tests no row again whose range is sure to be right. It is not where the other side of a comparison may have an
    affinity: of a column, a CAST, a subquery, or in a view, which the text of the statement does not show."""
    theirs = apsw.Connection(":memory:")
    for each in (con, theirs):
        each.execute("CREATE TABLE t(id INTEGER PRIMARY KEY, k, n INTEGER, s TEXT); CREATE TABLE u(n INTEGER)")
        for column in "kns":
            each.execute(f"CREATE INDEX by_{column} ON t({column}, id)")
        each.execute("INSERT INTO u VALUES(5), (2)")
        each.executemany("INSERT INTO t(k, n, s) VALUES(?, ?, ?)", [(value,) * 3 for value in VALUES])
    for query in (*(f"SELECT id, k FROM t WHERE {one}" for one in COMPARISONS), *OTHERS):
        if "joined" in query:
            for each in (con, theirs):
                each.execute("CREATE TEMP VIEW joined AS SELECT u.n, t.k FROM u JOIN t ON t.k = u.n")
        wanted = sorted(map(repr, theirs.execute(query)))
        assert (query, sorted(map(repr, rows(con, query)))) == (query, wanted)
        assert con.session.operands == ANY_OPERANDS, (
            "nothing is known of the next statement, which may be one of toydb's own"
        )


@pytest.mark.parametrize(
    ("where", "calls"),
    [
        ("k BETWEEN ? AND ?", 1),
        ("k >= ? AND k <= ?", 1),
        ("id BETWEEN ? AND ?", 1),
    ],
)
def test_sqlite_asks_for_no_column_twice(con, monkeypatch, where, calls):
    """Each row of a scan by a key cost a call more, in which SQLite tested what the ranges had given already."""
    con.execute("CREATE TABLE t(id INTEGER PRIMARY KEY, k, v); CREATE INDEX by_k ON t(k)")
    con.executemany("INSERT INTO t(k, v) VALUES(?, ?)", [(n, n) for n in range(100)])
    asked, column = [], Cursor.Column
    monkeypatch.setattr(Cursor, "Column", lambda self, number: asked.append(number) or column(self, number))
    assert len(rows(con, f"SELECT v FROM t WHERE {where}", 10, 29)) == 20
    assert len(asked) == 20 * calls


# -- definitions ------------------------------------------------------------------------------


def test_the_schema_outlives_its_connection(connect):
    first = connect()
    fill(first)
    first.execute("CREATE VIEW cheap AS SELECT id FROM item WHERE price < 1")
    second = connect()
    assert rows(second, "SELECT count(*) FROM item") == [(1000,)]
    assert rows(second, "SELECT id FROM cheap ORDER BY id") == [(1,), (2,), (3,)]
    assert plan(second, "SELECT * FROM item WHERE name = 'x'") == ["INDEX by_name (name=?)"]
    assert [schema.name for schema in second.tables()] == ["item", "line", "toydb_schema"]
    assert second.tables()[0].sql == 'CREATE TABLE "item"(id INTEGER PRIMARY KEY, name TEXT, price REAL)'


def test_definitions_of_others_are_noticed(connect):
    one, two = connect(), connect()
    one.execute("CREATE TABLE t(a INTEGER, b)")
    two.execute("INSERT INTO t VALUES(1, 2)")
    two.execute(f"INSERT INTO t {MANY}")
    one.execute("CREATE UNIQUE INDEX u ON t(a)")
    with pytest.raises(apsw.ConstraintError, match=r"t\.a"):
        two.execute("INSERT INTO t VALUES(1, 3)")
    assert plan(two, "SELECT * FROM t WHERE a = 1") == ["INDEX u (a=?)"]
    one.execute("DROP INDEX u")
    two.execute("INSERT INTO t VALUES(1, 3)")
    one.execute("DROP TABLE t; CREATE TABLE t(z)")
    assert rows(two, "SELECT * FROM t") == []
    one.execute("DROP TABLE t; CREATE VIEW t AS SELECT 7")
    assert rows(two, "SELECT * FROM t") == [(7,)]


def test_definitions_are_part_of_transactions(con):
    con.execute(f"CREATE TABLE t(a INT, b); INSERT INTO t {MANY}")
    con.execute("BEGIN; CREATE TABLE u(a); INSERT INTO u VALUES(2); CREATE INDEX i ON t(a); CREATE VIEW v AS SELECT 1")
    assert plan(con, "SELECT * FROM t WHERE a = 1") == ["INDEX i (a=?)"]
    con.execute("SAVEPOINT s; DROP TABLE t")
    with pytest.raises(apsw.SQLError, match="no such table"):
        rows(con, "SELECT * FROM t")
    con.execute("ROLLBACK TO s")
    assert rows(con, "SELECT count(*) FROM t") == [(1000,)]
    con.execute("ROLLBACK")
    assert [schema.name for schema in con.tables()] == ["t"]
    assert con.tables()[0].indexes == []
    assert rows(con, "SELECT count(*) FROM t") == [(1000,)]
    assert plan(con, "SELECT * FROM t WHERE a = 1") == ["ROWID"]
    with pytest.raises(apsw.SQLError, match="no such table: v"):
        rows(con, "SELECT * FROM v")


def test_an_altered_table_is_the_same_to_all(connect):
    one, two = connect(), connect()
    one.execute(
        f"CREATE TABLE t(a INTEGER PRIMARY KEY, b UNIQUE, c); CREATE INDEX i ON t(c); INSERT INTO t(a, b) {MANY}"
    )
    assert rows(two, "SELECT count(*) FROM t") == [(1000,)]
    one.execute("ALTER TABLE t ADD d TEXT DEFAULT 'x'; ALTER TABLE t RENAME TO u")
    assert rows(two, "SELECT * FROM u WHERE b = 1500") == [(1500, 1500, None, "x")]
    assert plan(two, "SELECT * FROM u WHERE b = 1500") == ["INDEX sqlite_autoindex_u_1 (b=?)"]
    with pytest.raises(apsw.SQLError, match="no such table: t"):
        two.execute("INSERT INTO t VALUES(1, 2, 3)")
    two.execute(
        "BEGIN; DROP INDEX i; ALTER TABLE u DROP c; ALTER TABLE u RENAME b TO bb; INSERT INTO u VALUES(1, 2, 3)"
    )
    assert rows(one, "SELECT b, c FROM u WHERE a = 1002") == [(1002, None)]
    two.execute("ROLLBACK")
    assert rows(two, "SELECT b, c FROM u WHERE a = 1002") == [(1002, None)]


@pytest.mark.parametrize(
    "sql", ["ALTER TABLE u ADD b", "CREATE INDEX i ON u(a)", "INSERT INTO u VALUES(1)", "DROP TABLE u"]
)
def test_a_table_that_was_taken_back_is_not_known(con, sql):
    con.execute("BEGIN; CREATE TABLE u(a); INSERT INTO u VALUES(1); SELECT * FROM u; ROLLBACK")
    with pytest.raises(apsw.SQLError, match=r"no such table: (main\.)?u"):
        con.execute(sql)
    assert con.tables() == []


def test_a_database_that_was_attached_is_sqlites_own(con, tmp_path):
    con.execute(f"ATTACH '{tmp_path / 'other.sqlite'}' AS other")
    con.execute(
        "CREATE TABLE other.t(a); CREATE INDEX other.i ON t(a); INSERT INTO other.t VALUES(1); ALTER TABLE other.t ADD b"
    )
    con.execute(
        "CREATE TABLE t(x); INSERT INTO main.t SELECT a + 1 FROM other.t; CREATE TEMP TABLE s(a); ALTER TABLE s ADD b"
    )
    assert [schema.name for schema in con.tables()] == ["t"]
    assert rows(con, "SELECT x, a, b FROM main.t, other.t") == [(2, 1, None)]
    con.execute("DROP INDEX other.i; DROP TABLE other.t")
    assert rows(con, "SELECT x FROM t") == [(2,)]


def test_what_can_be_defined(con):
    con.execute("CREATE TABLE IF NOT EXISTS a(x INT); CREATE TABLE IF NOT EXISTS A(y)")
    con.execute("CREATE TABLE b AS SELECT 1 AS one, 'x' AS two")
    con.execute(
        'CREATE TABLE "odd name"("a ""b" TEXT /* (, */ DEFAULT \'it\'\'s\', [c d] INT, -- a ) comment\n PRIMARY KEY([c d]))'
    )
    con.execute('INSERT INTO "odd name"([c d]) VALUES(4)')
    assert rows(con, 'SELECT * FROM "odd name"') == [("it's", 4)]
    assert rows(con, "SELECT * FROM b") == [(1, "x")]
    con.execute("CREATE TEMP TABLE scratch(a); INSERT INTO scratch VALUES(1); DROP TABLE scratch")
    con.execute("CREATE TABLE strict(a INTEGER, b ANY) STRICT; INSERT INTO strict VALUES(1, '2')")
    with pytest.raises(apsw.ConstraintError, match="cannot store TEXT"):
        con.execute("INSERT INTO strict VALUES('x', 1)")
    con.execute(
        "CREATE VIEW v AS SELECT x FROM a; CREATE TRIGGER g INSTEAD OF INSERT ON v BEGIN INSERT INTO a VALUES(new.x * 2); END"
    )
    con.execute("INSERT INTO v VALUES(21)")
    assert rows(con, "SELECT x FROM v") == [(42,)]
    con.execute("DROP VIEW v")
    assert rows(con, "SELECT * FROM toydb_schema") == []
    con.execute("DROP TABLE a; DROP TABLE IF EXISTS a")


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("CREATE TABLE t(a)", 'table "t" already exists'),
        ("CREATE TABLE u(a, b AS (a + 1))", "generated columns"),
        ("CREATE TABLE u(a a a a, primary)", "syntax error"),
        ("CREATE TABLE u(_toydb_key)", "_toydb_key"),
        ("CREATE INDEX i ON t(a) WHERE a > 1", "without WHERE"),
        ("CREATE INDEX i ON t(a + 1)", "plain columns"),
        ("CREATE INDEX i ON missing(a)", "no such table"),
        ("CREATE INDEX i ON t(missing)", "missing"),
        ("CREATE INDEX there ON t(b)", 'index "there" already exists'),
        ("CREATE UNIQUE INDEX i ON t(b)", "UNIQUE constraint failed: t\\.b"),
        ("DROP INDEX missing", "no such index: missing$"),
        ("DROP TABLE missing", "no such table"),
        ("DROP TABLE toydb_transaction", "may not be dropped"),
        ("ALTER TABLE t RENAME TO T2", "view v uses t: drop it"),
        ("ALTER TABLE t RENAME b TO c", "view v uses t: drop it"),
        ("ALTER TABLE toydb_schema ADD x", "may not be altered"),
        ("ALTER TABLE t ADD c AS (a + 1)", "generated columns"),
        ("CREATE TRIGGER g AFTER INSERT ON t BEGIN SELECT 1; END", "triggers on virtual tables.*on views only"),
        ("INSERT INTO t VALUES(1, 2) ON CONFLICT DO NOTHING", "UPSERT not implemented.*INSERT OR IGNORE"),
        ("REINDEX", "CREATE INDEX"),
        ("REINDEX t", "CREATE INDEX"),
        ("VACUUM main INTO 'x'", "copy its files"),
        ("PRAGMA main.user_version = 3", "keep the number in a table"),
        ("PRAGMA user_version(3)", "keep the number in a table"),
        ("SELECT * FROM t INDEXED BY there", "by itself"),
        ("INSERT INTO t VALUES(1, 2) RETURNING a", "last_insert_rowid"),
        ("DELETE FROM t RETURNING a", "RETURNING.*same transaction"),
        ("CREATE VIRTUAL TABLE f USING fts5(a)", "does not store other virtual tables"),
    ],
)
def test_what_cannot_be_done_is_said(con, sql, message):
    con.execute("CREATE TABLE t(a, b); CREATE INDEX there ON t(a); INSERT INTO t VALUES(1, 2), (3, 2)")
    con.execute("CREATE VIEW v AS SELECT a FROM t")
    before = [schema.meta() for schema in con.tables()]
    with pytest.raises((apsw.SQLError, apsw.ConstraintError), match=message):
        con.execute(sql)
    assert [schema.meta() for schema in con.tables()] == before
    assert rows(con, "SELECT count(*) FROM t") == [(2,)]


# -- rows -------------------------------------------------------------------------------------


def test_defaults_fill_what_is_left_out(con):
    con.execute("CREATE TABLE t(a INTEGER PRIMARY KEY, b TEXT DEFAULT 'x', c INT DEFAULT (1 + 2), d DEFAULT word, e)")
    con.execute("INSERT INTO t(e) VALUES(1), (2)")
    con.execute("INSERT INTO t(b, e) SELECT NULL, e + 10 FROM t WHERE e = 1")
    con.execute("INSERT INTO t DEFAULT VALUES")
    con.execute("WITH w(n) AS (VALUES(99)) INSERT INTO t(a) SELECT n FROM w")
    con.execute("INSERT INTO t(a, c) VALUES(?, ?)", (100, None))
    wanted = [(1, "x", 3, "word", 1), (2, "x", 3, "word", 2), (3, None, 3, "word", 11), (4, "x", 3, "word", None),
              (99, "x", 3, "word", None), (100, "x", None, "word", None)]  # fmt: skip
    assert rows(con, "SELECT * FROM t ORDER BY a") == wanted


@pytest.mark.parametrize(
    ("sql", "message", "code"),
    [
        ("INSERT INTO r VALUES(1, 9, 9)", "UNIQUE constraint failed: r.id", apsw.SQLITE_CONSTRAINT_PRIMARYKEY),
        ("INSERT INTO r VALUES(9, 1, 9)", "UNIQUE constraint failed: r.u", apsw.SQLITE_CONSTRAINT_UNIQUE),
        ("INSERT INTO r VALUES(9, 9, NULL)", "NOT NULL constraint failed: r.n", apsw.SQLITE_CONSTRAINT_NOTNULL),
        ("INSERT INTO r VALUES(9, 9, -9)", "CHECK constraint failed: n >= 0", apsw.SQLITE_CONSTRAINT_CHECK),
        ("UPDATE r SET id = 2 WHERE id = 1", "UNIQUE constraint failed: r.id", apsw.SQLITE_CONSTRAINT_PRIMARYKEY),
        ("INSERT INTO w VALUES('a', 1, 0)", "UNIQUE constraint failed: w.a, w.b", apsw.SQLITE_CONSTRAINT_PRIMARYKEY),
        ("INSERT INTO p(rowid, x) VALUES(1, 0)", "UNIQUE constraint failed: p.rowid", apsw.SQLITE_CONSTRAINT_ROWID),
    ],
)
def test_constraints_fail_as_in_sqlite(con, sql, message, code):
    definitions = """
        CREATE TABLE r(id INTEGER PRIMARY KEY, u UNIQUE, n NOT NULL CHECK(n >= 0));
        CREATE TABLE w(a TEXT, b INT, c, PRIMARY KEY(a, b)) WITHOUT ROWID;
        CREATE TABLE p(x);
        INSERT INTO r VALUES(1, 1, 1), (2, 2, 2); INSERT INTO w VALUES('a', 1, 1); INSERT INTO p VALUES(1);
    """
    for connection in (con, apsw.Connection(":memory:")):
        connection.execute(definitions)
        with pytest.raises(apsw.ConstraintError) as caught:
            connection.execute(sql)
        assert str(caught.value) == message
        assert caught.value.extendedresult == code


def test_row_ids(con):
    con.execute("CREATE TABLE t(id INTEGER PRIMARY KEY, x); CREATE TABLE s(id INTEGER PRIMARY KEY AUTOINCREMENT, x)")
    for table, after in (("t", 10), ("s", 11)):
        con.execute(f"INSERT INTO {table}(x) VALUES('a')")
        assert con.last_insert_rowid() == 1
        con.execute(f"INSERT INTO {table} VALUES(10, 'b'); DELETE FROM {table} WHERE id = 10")
        con.execute(f"INSERT INTO {table}(x) VALUES('c')")
        assert con.last_insert_rowid() == (2 if table == "t" else after)
    con.execute(f"INSERT INTO t VALUES({2**63 - 1}, 1)")
    with pytest.raises(apsw.FullError, match="largest row id"):
        con.execute("INSERT INTO t(x) VALUES(1)")
    with pytest.raises(apsw.MismatchError):
        con.execute("INSERT INTO t VALUES('abc', 1)")


def test_ignored_rows_are_not_counted_as_changes(con):
    con.execute("CREATE TABLE t(a PRIMARY KEY)")
    con.execute("INSERT OR IGNORE INTO t VALUES(1), (1), (2)")
    assert con.changes() == 2


def test_large_values_and_long_keys(con):
    con.execute("CREATE TABLE t(a TEXT PRIMARY KEY, b BLOB)")
    con.execute("INSERT INTO t VALUES('k', ?)", (bytes(range(256)) * 300,))
    assert rows(con, "SELECT length(b), substr(b, 70001, 2) FROM t") == [(76800, bytes([112, 113]))]
    con.execute("INSERT INTO t VALUES(?, NULL)", ("k" * 300,))


def test_several_statements_share_their_bindings(con):
    con.execute("CREATE TABLE t(a, b); INSERT INTO t VALUES(?, ?); INSERT INTO t VALUES(:x, ?1)", (1, 2, 3))
    assert rows(con, "SELECT * FROM t") == [(1, 2), (3, 3)]
    con.execute("INSERT INTO t VALUES(:a, :b); DELETE FROM t WHERE a = :c", {"a": 5, "b": 6, "c": 1})
    assert rows(con, "SELECT count(*) FROM t") == [(2,)]


@pytest.mark.parametrize("kind", ["INTEGER", "REAL", "TEXT", "BLOB", "NUMERIC", "TEXT COLLATE NOCASE", ""])
def test_a_row_is_looked_up_by_a_value_of_any_kind(con, kind):
    """A value of the column's own kind is looked up as one key; any other as the ranges that it may equal."""
    values = [0, 1, -1, 5, 2.5, 2**40, -0.5, "5", "5.0", "abc", "ABC", "", b"5", b"abc", b""]
    lite = sqlite3.connect(":memory:")
    for one in (con, lite):
        own_key = one is lite and kind != "INTEGER"  # as every key of toydb but a row id
        one.execute(f"CREATE TABLE v(a {kind} PRIMARY KEY, b)" + (" WITHOUT ROWID" if own_key else ""))
        for n, value in enumerate(values):
            with suppress(apsw.ConstraintError, apsw.MismatchError, sqlite3.IntegrityError):
                one.execute("INSERT INTO v VALUES(?, ?)", (value, n))
    for value in [*values, None, 5.0, 2**62, "5 ", True]:
        query = "SELECT a, b FROM v WHERE a = ? ORDER BY b"
        assert con.execute(query, (value,)).fetchall() == lite.execute(query, (value,)).fetchall(), repr(value)
        query = "SELECT a, b FROM v WHERE a IS ? ORDER BY b"
        assert con.execute(query, (value,)).fetchall() == lite.execute(query, (value,)).fetchall(), repr(value)
