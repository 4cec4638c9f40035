"""The shell and the CSV import, as processes of their own."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import apsw
import pytest

import toydb
from tests.conftest import SHM, WAIT, remove
from toydb import sql
from toydb.sql import importer
from toydb.sql.shell import complete, describe, main

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture
def shell(tmp_path, monkeypatch, capfd):
    """Runs the shell on a database of the test's own, in this process; ``shell.command`` is for another one."""
    name = f"toysql-shell-{os.getpid()}"
    monkeypatch.chdir(tmp_path)
    arguments = [str(tmp_path / "shop.db"), "--pool", name]

    def run(*more, stdin="", check=None):
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        try:
            code = main([*arguments, *more])
        except SystemExit as end:
            code = end.code
        out, error = capfd.readouterr()
        assert check is None or code == check, error
        return subprocess.CompletedProcess(more, code, out, error)

    run.pool = name
    run.command = [sys.executable, "-m", "toydb", *arguments]
    run.environment = {**os.environ, "PYTHONPATH": str(EXAMPLES), "PYTHONWARNINGS": "error"}
    yield run
    remove(SHM / name)


def test_it_runs_as_a_module(shell):
    for form, wanted in (("--csv", "one\n1\n"), ("--json", '[\n {\n  "one": 1\n }\n]\n')):
        command = [*shell.command, form, "SELECT 1 AS one"]
        done = subprocess.run(command, capture_output=True, text=True, env=shell.environment, timeout=WAIT)
        assert (done.returncode, done.stdout, done.stderr) == (0, wanted, "")


def test_statements_and_formats(shell, tmp_path):
    made = shell(
        "CREATE TABLE t(a INTEGER PRIMARY KEY, b TEXT, c BLOB); INSERT INTO t VALUES(1, 'é', x'00ff'), (10, NULL, 'x\ny')",
        check=0,
    )
    assert made.stdout == made.stderr == ""
    table = shell("SELECT * FROM t", check=0).stdout
    assert table == " a  b     c\n──  ────  ───────\n 1  é     x'00ff'\n10  NULL  x·y\n(2 rows)\n"
    as_json = json.loads(shell("--json", "SELECT a, b, a FROM t", check=0).stdout)
    assert as_json == [{"a": 1, "b": "é", "a:2": 1}, {"a": 10, "b": None, "a:2": 10}]
    assert shell("SELECT * FROM t", "--csv", check=0).stdout == 'a,b,c\n1,é,00ff\n10,,"x\ny"\n'
    piped = shell(stdin="SELECT a\nFROM t;\n\n.tables\n.mode csv\nSELECT 'no semicolon'\n", check=0).stdout
    assert piped.splitlines()[:4] == [" a", "──", " 1", "10"]
    assert piped.endswith("'no semicolon'\nno semicolon\n")


def test_errors_are_one_line(shell):
    shell("CREATE TABLE t(a UNIQUE)", check=0)
    for statement, message in (
        ("SELEC 1", 'error: near "SELEC": syntax error'),
        ("INSERT INTO t VALUES(1), (1)", "error: UNIQUE constraint failed: t.a"),
        (".nothing", "error: no command .nothing; .help lists them"),
        (".import", "error: .import FILE.csv TABLE"),
        (".import no.csv t", "error: no.csv: No such file or directory"),
        (".import 'two words.csv' t", "error: two words.csv: No such file or directory"),
        (".schema nothing", "error: no such table: nothing"),
    ):
        done = shell(statement, check=1)
        assert done.stdout == ""
        assert done.stderr == message + "\n"
    assert shell("--nonsense", check=2).stderr.startswith("usage:")
    assert shell(stdin="SELECT 1;\nSELEC 2;\nSELECT 3;\n", check=1).stdout == "1\n─\n1\n(1 row)\n"


def test_a_database_that_is_not_there(tmp_path):
    command = [sys.executable, "-m", "toydb", str(tmp_path / "no.db"), "--existing", "SELECT 1"]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(EXAMPLES)}, timeout=WAIT
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "no.db").exists()


def test_commands(shell, tmp_path):
    shell("CREATE TABLE t(a INTEGER PRIMARY KEY, b); CREATE INDEX i ON t(b); CREATE VIEW v AS SELECT a FROM t", check=0)
    assert shell(".schema", check=0).stdout.splitlines() == [
        'CREATE TABLE "t"(a INTEGER PRIMARY KEY, b);',
        'CREATE INDEX "i" ON t(b);',
        "CREATE VIEW v AS SELECT a FROM t;",
    ]
    assert shell(".tables", "--csv", check=0).stdout == "name,type\nt,table\nv,view\n"
    assert "recovery would start at LSN" in shell(".checkpoint", check=0).stdout
    assert shell(".check", check=0).stdout == "the database is sound\n"
    assert ".import FILE.csv TABLE" in shell(".help", check=0).stdout


def test_explain_shows_plan_and_pages(shell):
    shell("CREATE TABLE t(a INTEGER PRIMARY KEY, b)", check=0)
    done = shell("--explain", "SELECT * FROM t WHERE a > 3 ORDER BY a DESC", check=0)
    plan, pages = done.stderr.splitlines()
    assert plan == "SCAN t BY PRIMARY KEY (a>?) DESC"
    touched, hit, missed = (int(word) for word in pages.replace(",", "").replace(":", "").split() if word.isdigit())
    assert touched == hit + missed > 0
    assert "pages touched" in shell(stdin=".explain on\nSELECT * FROM t;\n", check=0).stderr


def test_csv_import(shell, tmp_path):
    rows = "".join(f"{n},name {n},{n / 8},00{n}\n" for n in range(1500))
    (tmp_path / "items.csv").write_text(
        "﻿id,name,price,code\n" + rows + '1500,"a ""quoted"", name",,\n', encoding="utf-8"
    )
    assert shell(".import items.csv item", check=0).stdout == "1,501 rows into item (new table)\n"
    assert (
        shell(".schema item", check=0).stdout
        == 'CREATE TABLE "item"("id" INTEGER, "name" TEXT, "price" REAL, "code" TEXT);\n'
    )
    got = json.loads(shell("--json", "SELECT count(*) n, sum(price) s, max(code) c FROM item; ", check=0).stdout)
    assert got == [{"n": 1501, "s": sum(n / 8 for n in range(1500)), "c": "00999"}]
    assert (
        shell("SELECT name, price FROM item WHERE id = 1500", "--csv", check=0).stdout.splitlines()[1]
        == '"a ""quoted"", name",'
    )
    shell("CREATE TABLE u(id INTEGER PRIMARY KEY, name TEXT DEFAULT 'none')", check=0)
    (tmp_path / "u.csv").write_text("id\n3\n4\n")
    assert shell(".import u.csv u", check=0).stdout == "2 rows into u\n"
    assert shell("SELECT * FROM u", "--csv", check=0).stdout == "id,name\n3,none\n4,none\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file is empty"),
        ("a,a\n1,2\n", "a name of its own"),
        ("a,\n1,2\n", "a name of its own"),
        ("a,b\n1,2\n3\n", "line 3: 1 fields where the header has 2"),
        ('a,b\n1,"2\n', "line"),
        ("a,b\n1,2\n1,3\n", "line 3: UNIQUE constraint failed: t.a; nothing was imported"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_whole(text, message, tmp_path):
    from . import memengine

    path = tmp_path / "x.csv"
    path.write_text(text)
    con = sql.Connection(memengine.Database.open(tmp_path / "x.db"))
    con.execute("CREATE TABLE t(a INTEGER PRIMARY KEY, b)")
    with pytest.raises(importer.ImportFailed, match=message):
        importer.import_csv(con, path, "t")
    assert con.execute("SELECT count(*) FROM t").fetchall() == [(0,)]
    assert con.check() == []
    seen = []
    path.write_text("a,b\n" + "".join(f"{n},x\n" for n in range(1200)))
    assert importer.import_csv(con, path, "t", progress=lambda read, size: seen.append((read, size))).rows == 1200
    assert seen[-1] == (path.stat().st_size,) * 2
    assert len(seen) == 3


def test_ctrl_c_ends_a_statement(shell):
    """A query over a table, and one that never leaves SQLite's own machine."""
    shell(
        "CREATE TABLE t(a); INSERT INTO t WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c LIMIT 300) SELECT n FROM c",
        check=0,
    )
    for statement in (
        "SELECT 'go'; SELECT count(*) FROM t a, t b, t c, t d",
        "SELECT 'go'; WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c) SELECT sum(n) FROM c",
    ):
        running = subprocess.Popen(
            [*shell.command, statement], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**shell.environment, "PYTHONUNBUFFERED": "1"}
        )  # fmt: skip
        for _ in range(4):
            running.stdout.readline()
        time.sleep(0.2)
        running.send_signal(signal.SIGINT)
        out, error = running.communicate(timeout=WAIT)
        assert (running.returncode, error) == (130, "interrupted\n"), out
    assert shell("SELECT count(*) FROM t", "--csv", check=0).stdout == "count(*)\n300\n"


def test_ctrl_c_ends_waiting_for_another_writer(shell, tmp_path):
    shell("CREATE TABLE t(a)", check=0)
    with toydb.Database.open(tmp_path / "shop.db", pool_name=shell.pool) as database, database.begin(write=True):
        for statement in ("INSERT INTO t VALUES(1)", "BEGIN IMMEDIATE", "CREATE TABLE u(a)"):
            running = subprocess.Popen(
                [*shell.command, f"SELECT 'go'; {statement}"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                env={**shell.environment, "PYTHONUNBUFFERED": "1"}
            )  # fmt: skip
            for _ in range(4):
                running.stdout.readline()
            running.send_signal(signal.SIGINT)
            assert running.communicate(timeout=WAIT)[1] == "interrupted\n"
            assert running.returncode == 130


def test_a_reader_that_has_seen_enough(shell):
    numbers = "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c LIMIT 30000) SELECT n FROM c"
    running = subprocess.Popen(
        [*shell.command, numbers], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=shell.environment
    )
    running.stdout.readline()
    running.stdout.close()
    assert running.stderr.read() == ""
    assert running.wait(WAIT) == 1
    running.stderr.close()


def test_a_transaction_that_is_left_open_is_reported(shell):
    shell("CREATE TABLE t(a)", check=0)
    left = shell(stdin="BEGIN; INSERT INTO t VALUES(1);\nexit\nSELECT 1;\n", check=0)
    assert (left.stdout, left.stderr) == ("", "the transaction was not committed: rolled back\n")
    assert shell("--csv", "SELECT count(*) FROM t", check=0).stdout == "count(*)\n0\n"


def test_what_is_a_whole_statement():
    assert complete("exit")
    assert [complete(text) for text in ("", " .tables", "SELECT 1;", "SELECT 1", "SELECT ';", "/* ; */")] == [
        True,
        True,
        True,
        False,
        False,
        False,
    ]
    assert not complete("CREATE TRIGGER g INSTEAD OF INSERT ON v BEGIN SELECT 1;")
    assert describe(apsw.SQLError("two\nlines")) == "error: two lines"
    assert describe(ValueError()) == "error: ValueError"
