"""What was accepted and then ignored, silently: a wrong answer is worse than a refusal."""

import apsw
import pytest

from toydb.sql import parsing

from . import fuzz_sql
from .engines import rows

TRIGGER = (
    "CREATE TRIGGER g INSTEAD OF INSERT ON v BEGIN INSERT INTO t(id) VALUES(new.id); "
    "INSERT INTO t(id, n) SELECT new.id + 100, 3; SELECT CASE WHEN 1 THEN 2 END; END"
)
TABLE = "CREATE TABLE t(id INTEGER PRIMARY KEY, name TEXT DEFAULT 'none', n INTEGER NOT NULL DEFAULT 7)"


def test_an_insert_in_a_trigger_gets_the_defaults(con):
    """SQLite passes NULL for an omitted column of a virtual table, and INSERTs inside triggers were not completed."""
    con.execute(f"{TABLE}; CREATE VIEW v AS SELECT id FROM t; {TRIGGER}; INSERT INTO v(id) VALUES(5)")
    assert rows(con, "SELECT * FROM t") == [(5, "none", 7), (105, "none", 3)]


def test_a_trigger_follows_the_defaults_of_its_table(con):
    con.execute(f"CREATE VIEW v AS SELECT 1 AS id; {TRIGGER}; {TABLE}")  # the trigger comes first
    con.execute("ALTER TABLE t ADD COLUMN more TEXT DEFAULT 'x'; INSERT INTO v(id) VALUES(1)")
    assert rows(con, "SELECT * FROM t WHERE id = 1") == [(1, "none", 7, "x")]
    con.execute("BEGIN; DROP TRIGGER g; ROLLBACK; INSERT INTO v(id) VALUES(2)")
    assert rows(con, "SELECT * FROM t WHERE id = 2") == [(2, "none", 7, "x")]
    assert rows(con, "SELECT count(*) FROM toydb_schema WHERE sql LIKE '%none%'") == [(0,)]  # stored as it was written


def test_another_connection_completes_a_trigger_too(connect):
    one, two = connect(), connect()
    one.execute(f"{TABLE}; CREATE VIEW v AS SELECT id FROM t; {TRIGGER}")
    two.execute("INSERT INTO v(id) VALUES(1)")
    one.execute("ALTER TABLE t ADD COLUMN more TEXT DEFAULT 'x'")
    two.execute("INSERT INTO v(id) VALUES(2)")
    assert rows(one, "SELECT * FROM t WHERE id < 100") == [(1, "none", 7, "x"), (2, "none", 7, "x")]


def test_views_and_triggers_that_another_connection_changes_are_the_new_ones(connect):
    """A connection that knew a view went on with it, and with its triggers, until it made a definition of its own: it read and wrote the wrong rows."""
    one, two = connect(), connect()
    one.execute(
        "CREATE TABLE t(x); INSERT INTO t VALUES(1), (2); CREATE TABLE log(x); CREATE VIEW v AS SELECT x FROM t WHERE x = 1"
    )
    one.execute("CREATE TRIGGER g INSTEAD OF INSERT ON v BEGIN INSERT INTO t VALUES(new.x); END")
    assert rows(two, "SELECT * FROM v") == [(1,)]
    one.execute("DROP VIEW v; CREATE VIEW v AS SELECT x FROM t WHERE x = 2")
    assert rows(two, "SELECT * FROM v") == [(2,)]
    one.execute("CREATE TRIGGER g INSTEAD OF INSERT ON v BEGIN INSERT INTO log VALUES(new.x); END")
    two.execute("INSERT INTO v VALUES(2)")
    assert (rows(two, "SELECT * FROM v"), rows(two, "SELECT * FROM log")) == ([(2,)], [(2,)])
    one.execute("DROP TRIGGER g")
    with pytest.raises(apsw.SQLError, match="cannot modify v"):
        two.execute("INSERT INTO v VALUES(2)")
    one.execute("DROP VIEW v; CREATE VIEW v AS SELECT 'without a table'")
    assert rows(two, "SELECT * FROM v") == [("without a table",)]
    one.execute("DROP VIEW v")
    with pytest.raises(apsw.SQLError, match="no such table: v"):
        rows(two, "SELECT * FROM v")


def test_a_rollback_takes_no_definition_of_another_connection_back(connect):
    one, two = connect(), connect()
    one.execute("CREATE TABLE t(x); INSERT INTO t VALUES(1), (2); CREATE VIEW v AS SELECT x FROM t WHERE x = 1")
    assert rows(two, "SELECT * FROM v") == [(1,)]
    one.execute("DROP VIEW v; CREATE VIEW v AS SELECT x FROM t WHERE x = 2")
    two.execute("BEGIN")
    assert rows(two, "SELECT * FROM v") == [(2,)]
    two.execute("ROLLBACK")
    assert rows(two, "SELECT * FROM v") == [(2,)]
    two.execute("BEGIN; DROP VIEW v; ROLLBACK")
    assert rows(two, "SELECT * FROM v") == [(2,)]
    two.execute("BEGIN; INSERT INTO t VALUES(2); DROP VIEW v; CREATE VIEW v AS SELECT 3")
    assert rows(two, "SELECT * FROM v") == [(3,)]
    two.execute("COMMIT")
    assert (rows(one, "SELECT * FROM v"), rows(two, "SELECT * FROM v")) == ([(3,)], [(3,)])


@pytest.mark.parametrize(
    ("sql", "told"),
    [
        ("CREATE TABLE a(x INTEGER PRIMARY KEY ON CONFLICT REPLACE)", "ON CONFLICT REPLACE.*INSERT OR REPLACE"),
        ("CREATE TABLE a(x TEXT NOT NULL ON CONFLICT IGNORE)", "ON CONFLICT IGNORE.*INSERT OR IGNORE"),
        ("CREATE TABLE a(x, UNIQUE(x) ON CONFLICT FAIL)", "ON CONFLICT FAIL"),
        ("CREATE VIRTUAL TABLE a USING toydb(x UNIQUE ON CONFLICT ROLLBACK)", "ON CONFLICT ROLLBACK"),
        ("ALTER TABLE t ADD COLUMN x NOT NULL ON CONFLICT IGNORE DEFAULT 1", "ON CONFLICT IGNORE"),
        ("PRAGMA foreign_keys = ON", "does not enforce foreign keys"),
        ("PRAGMA foreign_keys = +1", "does not enforce foreign keys"),
        ("PRAGMA foreign_keys = 0x1", "does not enforce foreign keys"),
        ('PRAGMA "user_version" = 7', "lost with the connection"),
        ("PRAGMA count_changes = 1", "changes\\(\\)"),
        ("PRAGMA journal_mode = OFF", "rolled back"),
        ("PRAGMA main.foreign_keys(1)", "does not enforce foreign keys"),
        ("SELECT * FROM sqlite_sequence", "max\\(rowid\\)"),
    ],
)
def test_what_would_be_ignored_is_refused(con, sql, told):
    con.execute(TABLE)
    with pytest.raises(apsw.SQLError, match=told):
        con.execute(sql)
    assert [schema.name for schema in con.tables()] == ["t"]


def test_what_says_the_default_is_accepted(con):
    con.execute("CREATE TABLE a(x INTEGER PRIMARY KEY ON CONFLICT ABORT); PRAGMA foreign_keys = OFF")
    con.execute("CREATE TEMP TABLE b(x PRIMARY KEY ON CONFLICT IGNORE)")  # SQLite stores this one itself
    assert rows(con, "PRAGMA foreign_keys") == [(0,)]


DESCRIBED = """
    CREATE TABLE other(id INTEGER PRIMARY KEY);
    CREATE TABLE item(code TEXT, size INTEGER, price REAL NOT NULL DEFAULT 1.5, owner REFERENCES other(id) ON DELETE CASCADE,
                      PRIMARY KEY(size, code), UNIQUE(owner, price)) WITHOUT ROWID;
    CREATE TABLE user_version(foreign_keys);
    CREATE INDEX by_price ON item(price DESC, code COLLATE NOCASE)
"""


@pytest.mark.parametrize(
    "pragma",
    [
        "table_info(item)", "main.table_info('item')", "table_xinfo = item", 'index_list("item")', "index_info(by_price)",
        "index_xinfo(by_price)", "index_info(sqlite_autoindex_item_1)", "foreign_key_list(item)", "table_info(absent)",
        "table_info(other)", "index_list(other)", "index_info(sqlite_autoindex_item_2)", "index_xinfo(SQLITE_autoindex_item_1)",
        "table_info(user_version)",
    ],
)  # fmt: skip
def test_a_table_is_described_as_sqlite_describes_it(con, pragma):
    """Tools that read a schema found no key and no index: SQLite described the virtual table."""
    ordinary = apsw.Connection(":memory:")
    for connection in (con, ordinary):
        connection.execute(DESCRIBED)
    told, wanted = con.execute(f"PRAGMA {pragma}"), ordinary.execute(f"PRAGMA {pragma}")
    assert told.fetchall() == wanted.fetchall()
    function, _, name = pragma.replace("main.", "").replace(" = ", "(").rstrip(")").partition("(")
    name = name.strip("'\"")
    assert rows(con, f"SELECT * FROM pragma_{function}('{name}')") == rows(
        ordinary, f"SELECT * FROM pragma_{function}('{name}')"
    )


@pytest.mark.parametrize(
    "query",
    [
        "SELECT m.name, i.* FROM sqlite_schema m, pragma_table_info(m.name) i WHERE m.name IN ('item', 'other')",
        "SELECT l.name, i.name FROM pragma_index_list('item') l JOIN pragma_index_info(l.name) i",
        "SELECT i.name FROM pragma_table_info(o.name) i, (SELECT 'item' AS name UNION SELECT 'other') o",
        "SELECT name FROM pragma_table_info WHERE arg = 'item' AND pk",
        "SELECT name FROM pragma_table_info('item') WHERE arg = 'other'",
        "SELECT name FROM pragma_table_info WHERE arg IN ('item', 'other')",
        "SELECT name, arg, schema FROM pragma_table_info('item', 'main')",
        "SELECT count(*) FROM pragma_table_info WHERE arg LIKE 'item'",
    ],
)
def test_a_join_gives_the_name_of_the_table(con, query):
    """The function came first in the join, without its argument, and the answer was empty."""
    ordinary = apsw.Connection(":memory:")
    for connection in (con, ordinary):
        connection.execute(DESCRIBED)
    assert sorted(rows(con, query)) == sorted(rows(ordinary, query))


def test_temporary_and_attached_tables_are_described_by_sqlite(con):
    con.execute(f"{TABLE}; CREATE TEMP TABLE t(mine); ATTACH ':memory:' AS far; CREATE TABLE far.away(x PRIMARY KEY)")
    assert [row[1] for row in rows(con, "PRAGMA table_info(t)")] == ["mine"]
    assert [(name, key) for _, name, *_, key in rows(con, "PRAGMA main.table_info(t)")] == [
        ("id", 1),
        ("name", 0),
        ("n", 0),
    ]
    assert [row[1] for row in rows(con, "PRAGMA far.table_info(away)")] == ["x"]
    assert len(rows(con, "PRAGMA far.index_list(away)")) == 1


def test_last_insert_rowid(con):
    con.execute(f"{TABLE}; INSERT INTO t(name) VALUES('a')")
    assert (con.last_insert_rowid(), rows(con, "SELECT last_insert_rowid()")) == (1, [(1,)])
    con.execute("INSERT INTO t(id) VALUES(40)")
    assert con.last_insert_rowid() == 40
    con.executemany("INSERT INTO t(name) VALUES(?)", [(str(n),) for n in range(5)])
    assert con.last_insert_rowid() == 45


def both(con, script):
    """Executes statements here and in SQLite itself; the answers of both to each."""
    ordinary = apsw.Connection(":memory:")

    def answer(connection, sql):
        try:
            return sorted(rows(connection, sql), key=repr)
        except apsw.Error:
            return "refused"

    return [(answer(con, one.sql), answer(ordinary, one.sql), one.sql) for one in parsing.script(script)]


SAME = {
    "names that differ in the case of letters that are not ASCII": """
        CREATE TABLE É(ü DEFAULT 'ß', Ü); CREATE TABLE é(a DEFAULT 5, b); INSERT INTO É(Ü) VALUES(1); INSERT INTO é(b) VALUES(2);
        SELECT * FROM É; SELECT * FROM é; ALTER TABLE é RENAME TO \u212a; CREATE TABLE k(x); INSERT INTO k VALUES(3); SELECT * FROM \u212a;
        CREATE INDEX Ö ON É(ü); CREATE INDEX ö ON É(Ü); DROP INDEX Ö; PRAGMA index_list(É)""",
    "names with characters that are no letters": """
        CREATE TABLE "cafe\u0301"("a\u00a0" DEFAULT 1, \U0001f600\U0001f600 DEFAULT 5, b); INSERT INTO cafe\u0301(b) VALUES(2);
        INSERT INTO cafe\u0301(a\u00a0) VALUES(3); INSERT INTO cafe\u0301(\U0001f600\U0001f600, b) VALUES(4, 4);
        \ufeffINSERT INTO cafe\u0301(b) VALUES(5); SELECT * FROM cafe\u0301; CREATE TABLE 'it''s'(a, b DEFAULT 6);
        INSERT INTO "it's"(a) VALUES(1); SELECT * FROM 'it''s'; PRAGMA table_info('it''s')""",
    "triggers and indexes that are called as a table or a view is": """
        CREATE TABLE t(a, b DEFAULT 5); CREATE TEMP TABLE w(a); CREATE INDEX temp.t ON w(a);
        CREATE TEMP TRIGGER t AFTER INSERT ON w BEGIN SELECT 1; END; INSERT INTO t(a) VALUES(1); SELECT * FROM t; PRAGMA table_info(t);
        CREATE VIEW v AS SELECT a FROM t; CREATE TRIGGER IF NOT EXISTS v INSTEAD OF INSERT ON v BEGIN INSERT INTO t(a) VALUES(new.a); END;
        INSERT INTO v VALUES(2); CREATE TRIGGER u INSTEAD OF DELETE ON v BEGIN SELECT 1; END; CREATE VIEW IF NOT EXISTS u AS SELECT b FROM t;
        CREATE TABLE IF NOT EXISTS u(x); SELECT * FROM u; CREATE TRIGGER IF NOT EXISTS v INSTEAD OF INSERT ON v BEGIN SELECT 1; END;
        INSERT INTO v VALUES(3); SELECT * FROM t""",
    "temporary objects that are not called so": """
        CREATE TABLE t(a, b DEFAULT 5); INSERT INTO t(a) VALUES(1); CREATE TEMP TABLE t(a, b DEFAULT 6, c); INSERT INTO t(a) VALUES(1);
        CREATE TABLE u(a, b DEFAULT 7); ALTER TABLE t ADD COLUMN d DEFAULT 8; CREATE UNIQUE INDEX i ON t(c); INSERT INTO main.t(a) VALUES(1);
        SELECT * FROM main.t; SELECT * FROM t; PRAGMA index_list(t); PRAGMA main.index_list(t); PRAGMA index_info(i); DROP INDEX i;
        CREATE TRIGGER g AFTER INSERT ON t BEGIN INSERT INTO u(a) VALUES(new.a); END; INSERT INTO t(a) VALUES(2); SELECT * FROM u;
        BEGIN; DROP TABLE t; INSERT INTO t(a) VALUES(3); ROLLBACK; INSERT INTO t(a) VALUES(3); SELECT * FROM t; SELECT * FROM main.t;
        ALTER TABLE t RENAME TO w; SELECT * FROM t; SELECT * FROM w""",
    "a stored trigger beside a temporary table with the name of its table": """
        CREATE TABLE t(a, b DEFAULT 5); CREATE VIEW v AS SELECT a FROM t; CREATE TEMP TABLE t(a, b DEFAULT 6);
        CREATE TRIGGER g INSTEAD OF INSERT ON v BEGIN INSERT INTO t(a) VALUES(new.a); END; INSERT INTO v VALUES(1);
        CREATE TABLE other(x); INSERT INTO v VALUES(2); SELECT * FROM main.t; SELECT * FROM temp.t""",
    "digits and types with characters that are not ASCII": """
        CREATE TABLE t(a INTEGER PRIMARY KEY, b REAL UNIQUE, c \u0131nt); INSERT INTO t VALUES(3, 3.5, '1x'), (4, 4, '2'); CREATE INDEX i ON t(c);
        SELECT a FROM t WHERE a = '\u0663'; SELECT a FROM t WHERE b >= '\u0663.5'; SELECT a FROM t WHERE a < '\uff14' ORDER BY a;
        SELECT typeof(c) FROM t WHERE c > 1 ORDER BY a""",
    "temporary tables that a pragma drops": """
        CREATE TABLE t(a); PRAGMA temp_store = 2; BEGIN; INSERT INTO t VALUES(1); SAVEPOINT s; INSERT INTO t VALUES(2); ROLLBACK TO s; COMMIT;
        SELECT * FROM t""",
    "a temporary trigger that inserts into a stored table": """
        CREATE TABLE t(a, b DEFAULT 5); CREATE TEMP TABLE w(a);
        CREATE TEMP TRIGGER g AFTER INSERT ON w BEGIN INSERT INTO t(a) VALUES(new.a); END;
        INSERT INTO w VALUES(1); ALTER TABLE t ADD COLUMN c DEFAULT 'z'; INSERT INTO w VALUES(2); SELECT * FROM t;
        BEGIN; ALTER TABLE t ADD COLUMN d DEFAULT 'q'; INSERT INTO w VALUES(3); ROLLBACK; INSERT INTO w VALUES(4); SELECT * FROM t""",
    "a temporary table that hides a stored one": """
        CREATE TABLE t(a, b DEFAULT 5); CREATE TEMP TABLE t(a, b DEFAULT 6); INSERT INTO t(a) VALUES(1); SELECT * FROM t;
        INSERT INTO main.t(a) VALUES(1); SELECT * FROM main.t; DROP TABLE temp.t; INSERT INTO t(a) VALUES(2); SELECT * FROM t""",
    "changes() after rows that OR IGNORE skips": """
        CREATE TABLE t(a UNIQUE); INSERT INTO t VALUES(1), (2); INSERT OR IGNORE INTO t VALUES(1), (3), (2);
        SELECT changes(), total_changes(); SELECT changes(); CREATE INDEX i ON t(a); SELECT changes(); BEGIN; SELECT changes(); COMMIT;
        WITH q(x) AS (VALUES(9)) UPDATE t SET a = a + 10 WHERE a < (SELECT x FROM q); SELECT changes(), total_changes();
        INSERT INTO nowhere VALUES(1); SELECT changes(); INSERT INTO t VALUES(5), (11); SELECT changes(), total_changes()""",
    "last_insert_rowid() of a row id that is given": """
        CREATE TABLE t(a); INSERT INTO t(rowid, a) VALUES(44, 1); SELECT last_insert_rowid(); INSERT INTO t(a) VALUES(1);
        SELECT last_insert_rowid(); INSERT INTO t(oid, a) VALUES(3, 1), (2, 5); SELECT last_insert_rowid();
        INSERT OR IGNORE INTO t(rowid, a) VALUES(3, 1); SELECT last_insert_rowid(), changes()""",
    "pragmas that look at all": """
        CREATE TABLE t(a); CREATE TABLE u(a INT PRIMARY KEY) STRICT, WITHOUT ROWID; PRAGMA table_list(u); PRAGMA table_list = t;
        PRAGMA integrity_check; PRAGMA main.quick_check(5); SELECT * FROM pragma_integrity_check""",
    "ANY in a STRICT table": """
        CREATE TABLE t(a ANY) STRICT; INSERT INTO t VALUES('007'), (7), (7.0), (x'37'); SELECT typeof(a) FROM t WHERE a = 7;
        CREATE INDEX i ON t(a); SELECT typeof(a) FROM t WHERE a = 7; SELECT typeof(a) FROM t WHERE a = '007'""",
    "a default that is NULL where NULL is forbidden": """
        CREATE TABLE t(a NOT NULL DEFAULT NULL, b NOT NULL DEFAULT 3); REPLACE INTO t(b) VALUES(1); REPLACE INTO t VALUES(1, NULL);
        SELECT * FROM t""",
    "a row id that is none, before all constraints": """
        CREATE TABLE t(a INTEGER PRIMARY KEY, b NOT NULL); INSERT OR IGNORE INTO t(a) VALUES('x'), (1);
        INSERT OR IGNORE INTO t VALUES('5', 1), (6.0, 2), (' 7 ', 3); SELECT a, typeof(a) FROM t""",
    "a type that STRICT refuses": """
        CREATE TABLE t(a INTEGER PRIMARY KEY, b REAL) STRICT; INSERT OR IGNORE INTO t(b) VALUES(1), ('x'); SELECT * FROM t;
        INSERT OR FAIL INTO t(b) VALUES(1), ('x'); SELECT * FROM t""",
    "a row id in use, before a type that STRICT refuses": """
        CREATE TABLE t(a INTEGER PRIMARY KEY, b TEXT) STRICT; INSERT INTO t VALUES(1, 'p'), (2, 'q');
        INSERT OR FAIL INTO t VALUES(-3, 'r'), ('1', x'61'), (9, 's'); SELECT * FROM t;
        INSERT OR IGNORE INTO t VALUES(4, 'r'), (1, x'61'), (5, 's'); SELECT * FROM t;
        UPDATE OR IGNORE t SET a = 1, b = x'61' WHERE a = 2; SELECT * FROM t;
        INSERT OR IGNORE INTO t VALUES(6, 'r'), (7, x'61'); SELECT * FROM t""",
    "numbers of rows that OR IGNORE skips": """
        CREATE TABLE t(a INTEGER PRIMARY KEY AUTOINCREMENT, b UNIQUE); INSERT OR IGNORE INTO t(b) VALUES(1), (1), (1), (2);
        SELECT * FROM t; DELETE FROM t; INSERT INTO t(b) VALUES(4); SELECT * FROM t""",
    "the zero below zero": "CREATE TABLE t(a REAL, b); INSERT INTO t VALUES(1.0, 1), (-0.0, -0.0); SELECT a, b FROM t",
    "a whole key of which one column may be text or a number": """
        CREATE TABLE t(a NUMERIC, b, PRIMARY KEY(b, a)) WITHOUT ROWID; INSERT INTO t VALUES(10, 0), (10, '0'), (11, 0);
        SELECT * FROM t WHERE b = 0 AND a = 10; SELECT * FROM t WHERE b IN (0, 1) AND a = '1e1'""",
    "text in a numeric column, on the other side": """
        CREATE TABLE t(a TEXT PRIMARY KEY, n INT) WITHOUT ROWID; INSERT INTO t VALUES('1.0e+300', 1), (' 2', '0x1'), ('x', 3);
        SELECT l.a, r.n FROM t l JOIN t r ON l.a < r.n ORDER BY 1, 2; SELECT l.a, r.n FROM t l JOIN t r ON l.a >= r.n ORDER BY 1, 2;
        SELECT a FROM t WHERE a < 'a'; SELECT a FROM t WHERE a < CAST('a' AS NUMERIC) ORDER BY a""",
    "a subquery of numbers, in text": """
        CREATE TABLE t(a TEXT UNIQUE, b UNIQUE, n NUMERIC); INSERT INTO t VALUES('1', '1', 1), ('01', '02', 2), ('x', 2, 'x');
        SELECT a FROM t WHERE a IN (SELECT n FROM t); SELECT b FROM t WHERE b IN (SELECT n FROM t);
        CREATE VIEW v AS SELECT a FROM t WHERE a IN (SELECT n FROM t); SELECT * FROM v;
        SELECT a FROM t WHERE a IN ('1', 'x', 1) ORDER BY a; SELECT a FROM t WHERE a IN (SELECT n FROM t WHERE 0)""",
    "a subquery of rows of numbers, in rows of text": """
        CREATE TABLE t(a TEXT, b TEXT, c, PRIMARY KEY(b DESC, a)) WITHOUT ROWID; INSERT INTO t VALUES('1', '1', 1), ('1.0', '1', 2), ('x', '01', 3);
        CREATE TABLE u(n INT, m NUMERIC); INSERT INTO u VALUES(1, 1), (2, 'x'); SELECT * FROM t WHERE (a, b) IN (SELECT n, n FROM u);
        SELECT * FROM t WHERE (b, a) IN u; SELECT * FROM t WHERE (b, c) IN (WITH q AS (SELECT n, m FROM u) SELECT * FROM q);
        SELECT * FROM t WHERE (a, b) IN (VALUES(1, 1), ('1.0', '1')); SELECT * FROM t WHERE (+a, b) IN (SELECT m, n FROM u);
        SELECT * FROM t WHERE (a, b) = (SELECT n, m FROM u); SELECT t.a, u.n FROM u JOIN t ON (a, b) = (n, m);
        CREATE VIEW v AS SELECT a FROM t WHERE (a, b) IN (SELECT n, n FROM u); SELECT * FROM v; SELECT * FROM t WHERE a IN (SELECT n FROM u);
        CREATE TEMP VIEW w AS SELECT c FROM t WHERE (a, b) IN (SELECT n, n FROM u); SELECT * FROM w""",
}


@pytest.mark.parametrize("script", SAME.values(), ids=SAME)
def test_the_answer_is_that_of_sqlite(con, script):
    """Found by random statements, and by twenty inputs of each kind: each gave a wrong answer without a word."""
    for ours, theirs, sql in both(con, script):
        assert ours == theirs, sql
    assert con.check() == []


@pytest.mark.parametrize(
    ("sql", "told"),
    [
        ("PRAGMA foreign_key_check", "does not check foreign keys"),
        ("SELECT * FROM pragma_foreign_key_check('t')", "does not check foreign keys"),
        ("PRAGMA defer_foreign_keys = ON", "does not enforce foreign keys"),
        ("PRAGMA ignore_check_constraints = ON", "always checks"),
        ("PRAGMA writable_schema = 1", "ALTER TABLE"),
        ("PRAGMA data_version", "SQLite's own empty database"),
        ("PRAGMA main.page_count", "SQLite's own empty database"),
    ],
)
def test_a_pragma_that_would_answer_for_another_database_is_refused(con, sql, told):
    con.execute(TABLE)
    with pytest.raises(apsw.SQLError, match=told):
        rows(con, sql)


def test_the_check_by_pragma_finds_what_the_check_finds(con, monkeypatch):
    """PRAGMA integrity_check said "ok" for SQLite's own empty database, whatever toydb's had."""
    monkeypatch.setattr(con.catalog, "check", lambda: ["page 3 is lost"])
    assert rows(con, "PRAGMA integrity_check") == [("page 3 is lost",)]


@pytest.mark.parametrize("query", ["SELECT max(c) FROM t", "SELECT min(c) FROM t", "SELECT DISTINCT c FROM t"])
def test_of_equal_values_any_is_an_answer(connect, query):
    """The fuzzer reported four databases in which toydb gave 'A' and SQLite 'a', which are equal in a column with NOCASE. SQLite itself
    gives either: which one depends on its indexes. The fuzzer no longer asks for one of such values; the README names it."""
    answers = []
    for index in ("", "CREATE INDEX i ON t(c)", "CREATE INDEX i ON t(c, d)"):
        theirs, ours = apsw.Connection(":memory:"), connect()
        for con in (theirs, ours):
            con.execute(
                f"DROP TABLE IF EXISTS t; CREATE TABLE t(c TEXT COLLATE NOCASE, d); INSERT INTO t VALUES('A', 2), ('a', 1); {index}"
            )
        answers.append(rows(theirs, query))
        assert rows(ours, query) in ([("A",)], [("a",)])
    assert [("A",)] in answers
    assert [("a",)] in answers


def test_random_statements_have_the_answers_of_sqlite(tmp_path):
    """A short run of the fuzzer."""
    for seed in (1, 2, 6, 5000):
        assert fuzz_sql.fuzz(seed, tmp_path, 100) == ""


@pytest.mark.soak
def test_many_random_statements_have_the_answers_of_sqlite(tmp_path):
    for seed in range(3000):
        assert fuzz_sql.fuzz(seed, tmp_path) == ""


def test_a_definition_that_is_only_to_be_explained_or_traced_is_not_executed(con):
    """`explain=` and the cursor's trace were ignored, and the table was gone."""
    con.execute(TABLE)
    with pytest.raises(apsw.SQLError, match="explain"):
        con.execute("DROP TABLE t", explain=1)
    seen = []
    cursor = con.cursor()
    cursor.exec_trace = lambda cursor, *given: bool(seen.append((cursor.get_description(), *given)))
    with pytest.raises(apsw.ExecTraceAbort):
        cursor.execute("DROP TABLE t")
    assert seen == [((), "DROP TABLE t", None)]
    assert [schema.name for schema in con.tables()] == ["t"]


def connected(con):
    """What some methods say of a table."""
    con.execute(
        "CREATE TABLE t(a INTEGER PRIMARY KEY AUTOINCREMENT, b TEXT COLLATE NOCASE NOT NULL); CREATE TEMP TABLE u(a REAL)"
    )
    asked = (("t", "a"), ("t", "b"), ("u", "a"))
    return (
        [con.column_metadata(None, table, column) for table, column in asked],
        con.pragma("table_info", "t"),
        con.pragma("encoding"),
    )


def test_methods_answer_for_the_stored_tables(con):
    """They asked SQLite's own database: `pragma` did not pass through the statements that are rewritten or refused."""
    assert connected(con) == connected(apsw.Connection(":memory:"))


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda con: con.pragma("foreign_keys", True), "does not enforce foreign keys"),
        (lambda con: con.pragma("user_version", 5), "lost with the connection"),
        (lambda con: con.config(apsw.SQLITE_DBCONFIG_ENABLE_FKEY, 1), "does not enforce foreign keys"),
        (lambda con: con.serialize("main"), "copy its files"),
        (lambda con: con.backup("main", apsw.Connection(":memory:"), "main"), "INSERT"),
        (lambda con: con.deserialize("main", b""), "INSERT"),
        (lambda con: con.set_update_hook(print), "no row"),
        (lambda con: con.set_commit_hook(lambda: True), "refuse nothing"),
        (lambda con: con.set_busy_handler(print), "set_busy_timeout"),
        (lambda con: con.data_version(), "empty database"),
        (lambda con: con.create_collation("nocase", lambda one, two: 0), "another name"),
    ],
)
def test_a_method_that_would_act_on_another_database_is_refused(con, call, told):
    """A commit hook that returned True raised ConstraintError, and the transaction was committed all the same."""
    with pytest.raises(apsw.SQLError, match=told):
        call(con)


def test_the_pragma_for_the_time_to_wait_counts(connect):
    """It was accepted, and a writer waited for the five seconds of before; it told 0, and they were 5000."""
    one, two = connect(), connect()
    assert one.pragma("busy_timeout") == 5000
    one.execute("CREATE TABLE t(a); PRAGMA busy_timeout = 0")
    assert (one.session.timeout_s, two.session.timeout_s) == (0, 5)
    assert one.config(apsw.SQLITE_DBCONFIG_ENABLE_FKEY, 0) == 0


def test_the_hooks_of_new_connections_are_called(connect, monkeypatch):
    """APSW's recommended hooks set a timeout, for which it was too early, and foreign keys, which the check of rows then enforced."""
    hooks = [lambda con: con.set_busy_timeout(1), lambda con: con.pragma("foreign_keys", True)]
    monkeypatch.setattr(apsw, "connection_hooks", hooks)
    con = connect()
    assert (con.pragma("busy_timeout"), con.pragma("foreign_keys")) == (5000, 0)
    con.execute(
        "CREATE TABLE p(id INTEGER PRIMARY KEY); CREATE TABLE c(id REFERENCES p CHECK(id > 0)); INSERT INTO c VALUES(5)"
    )
    con.execute("ALTER TABLE c ADD COLUMN more DEFAULT 1")
    assert rows(con, "SELECT * FROM c") == [(5, 1)]
