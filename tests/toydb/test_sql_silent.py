"""What was accepted and then ignored, silently: a wrong answer is worse than a refusal."""

import apsw
import pytest

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


@pytest.mark.parametrize(
    ("sql", "told"),
    [
        ("CREATE TABLE a(x INTEGER PRIMARY KEY ON CONFLICT REPLACE)", "ON CONFLICT REPLACE.*INSERT OR REPLACE"),
        ("CREATE TABLE a(x TEXT NOT NULL ON CONFLICT IGNORE)", "ON CONFLICT IGNORE.*INSERT OR IGNORE"),
        ("CREATE TABLE a(x, UNIQUE(x) ON CONFLICT FAIL)", "ON CONFLICT FAIL"),
        ("CREATE VIRTUAL TABLE a USING toydb(x UNIQUE ON CONFLICT ROLLBACK)", "ON CONFLICT ROLLBACK"),
        ("ALTER TABLE t ADD COLUMN x NOT NULL ON CONFLICT IGNORE DEFAULT 1", "ON CONFLICT IGNORE"),
        ("PRAGMA foreign_keys = ON", "does not enforce foreign keys"),
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
                      PRIMARY KEY(size, code), UNIQUE(owner, price));
    CREATE INDEX by_price ON item(price DESC, code COLLATE NOCASE)
"""


@pytest.mark.parametrize(
    "pragma",
    [
        "table_info(item)", "main.table_info('item')", "table_xinfo = item", 'index_list("item")', "index_info(by_price)",
        "index_xinfo(by_price)", "index_info(sqlite_autoindex_item_1)", "foreign_key_list(item)", "table_info(absent)",
        "table_info(other)", "index_list(other)",
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


def test_temporary_and_attached_tables_are_described_by_sqlite(con):
    con.execute(f"{TABLE}; CREATE TEMP TABLE t(mine); ATTACH ':memory:' AS far; CREATE TABLE far.away(x PRIMARY KEY)")
    assert [row[1] for row in rows(con, "PRAGMA table_info(t)")] == ["mine"]
    assert [row[1] for row in rows(con, "PRAGMA main.table_info(t)")] == ["id", "name", "n"]
    assert [row[1] for row in rows(con, "PRAGMA far.table_info(away)")] == ["x"]
    assert len(rows(con, "PRAGMA far.index_list(away)")) == 1


def test_last_insert_rowid(con):
    con.execute(f"{TABLE}; INSERT INTO t(name) VALUES('a')")
    assert (con.last_insert_rowid(), rows(con, "SELECT last_insert_rowid()")) == (1, [(1,)])
    con.execute("INSERT INTO t(id) VALUES(40)")
    assert con.last_insert_rowid() == 40
    con.executemany("INSERT INTO t(name) VALUES(?)", [(str(n),) for n in range(5)])
    assert con.last_insert_rowid() == 45
