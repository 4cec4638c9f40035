"""Write the generated .test files: statements and queries by chance, results by SQLite itself.

    python -m tests.toydb.sqllogic.generate FOLDER

Each file has its own seed, so the same program writes the same files. Results are
those of ordinary tables; the runner computes them again, beside toydb's.
"""

import random
import sys
from collections.abc import Callable
from pathlib import Path

import apsw

from .writer import Writer

# -- expressions over a table of integers ------------------------------------------------


def expressions(rng: random.Random, path: Path) -> None:
    out = Writer("Expressions, subqueries, grouping and ordering over one table.")
    out.statement("CREATE TABLE t1(a INTEGER, b INTEGER, c INTEGER, d INTEGER, e INTEGER)")
    for first in range(100, 245, 5):
        row = rng.sample(range(first, first + 5), 5)
        out.statement(f"INSERT INTO t1(e, c, b, d, a) VALUES({', '.join(map(str, row))})")
    out.statement("INSERT INTO t1(a, b) VALUES(NULL, 7), (300, NULL)")
    scalar = [
        "a", "b", "c", "d", "e", "a+b*2", "abs(b-c)", "(a+b+c+d+e)/5", "c-d", "d%7", "coalesce(c, a, 0)", "-e", "a||'-'||b",
        "CASE WHEN c>(SELECT avg(c) FROM t1) THEN a*2 ELSE b*10 END",
        "CASE a+1 WHEN b THEN 111 WHEN c THEN 222 ELSE 555 END",
        "(SELECT count(*) FROM t1 AS x WHERE x.b<t1.b)", "(SELECT max(x.a) FROM t1 AS x WHERE x.c<t1.d)",
    ]  # fmt: skip
    tests = [
        "a>b", "b>c", "c>d", "d>e", "c BETWEEN b-2 AND d+2", "d NOT BETWEEN 110 AND 150", "e IN (101, 113, 227, 230)",
        "(e>c OR e<d)", "(a>b-2 AND a<b+2)", "EXISTS(SELECT 1 FROM t1 AS x WHERE x.b<t1.b)", "b IS NOT NULL", "c IS NULL",
        "NOT (a>c)", "a IN (SELECT e FROM t1)", "coalesce(a, b, c)<>0", "a LIKE '1%2'",
    ]  # fmt: skip
    for _ in range(220):
        picked = rng.sample(scalar, rng.randint(1, 4))
        where = " WHERE " + rng.choice([" AND ", " OR "]).join(rng.sample(tests, rng.randint(1, 3)))
        order = f" ORDER BY {', '.join(str(n + 1) for n in rng.sample(range(len(picked)), len(picked)))}"
        where, order = rng.choice((where, where, "")), rng.choice((order, ""))
        out.query(f"SELECT {', '.join(picked)} FROM t1{where}{order}", "nosort" if order else "rowsort")
    totals = ["count(*)", "count(c)", "sum(a)", "min(b)", "max(e)", "avg(d)", "total(c)", "count(DISTINCT d%5)"]
    for _ in range(60):
        key = rng.choice(["a%4", "b%3", "d>150", "c/25"])
        picked = rng.sample(totals, rng.randint(1, 3))
        having = rng.choice(["", " HAVING count(*)>3", " HAVING max(a)>150"])
        out.query(
            f"SELECT {key}, {', '.join(picked)} FROM t1 WHERE {rng.choice(tests)} GROUP BY 1{having} ORDER BY 1",
            "nosort",
        )
    out.save(path)


# -- the same rows with and without indexes ------------------------------------------------


def indexes(rng: random.Random, path: Path) -> None:
    out = Writer("Conditions on tables that differ in their keys and indexes only; a label names what must agree.")
    columns = "pk INTEGER PRIMARY KEY, c0 INTEGER, c1 FLOAT, c2 TEXT, c3 INTEGER, c4 FLOAT, c5 TEXT"
    tables = ["bare", "indexed", "multi", "backward"]
    for table in tables:
        out.statement(f"CREATE TABLE {table}({columns})")
    out.statement("CREATE INDEX i0 ON indexed(c0)")
    out.statement("CREATE INDEX i1 ON indexed(c1)")
    out.statement("CREATE INDEX i2 ON indexed(c2)")
    out.statement("CREATE INDEX m0 ON multi(c3, c0)")
    out.statement("CREATE UNIQUE INDEX m1 ON multi(c4, c1, pk)")
    out.statement("CREATE INDEX m2 ON multi(c5, c3 DESC)")
    out.statement("CREATE INDEX b0 ON backward(c0 DESC, c1)")
    words = ["ant", "bee", "cow", "dog", "eel", "fox", "gnu"]
    for pk in range(40):
        row = [pk * 2, rng.choice([None, *range(20)]), rng.randint(0, 80) / 4, rng.choice(words), rng.randint(0, 9),
               rng.choice([None, 1.5, 2.0, 99.25]), rng.choice(words)]  # fmt: skip
        values = ", ".join(apsw.format_sql_value(value) for value in row)
        for table in tables:
            out.statement(f"INSERT INTO {table} VALUES({values})")
    for table in tables[1:]:
        out.statement(f"DELETE FROM {table} WHERE pk IN (10, 20)")
    out.statement("DELETE FROM bare WHERE pk=10 OR pk=20")

    def condition(depth: int) -> str:
        if depth and rng.random() < 0.5:
            joined = f" {rng.choice(['AND', 'AND', 'OR'])} ".join(
                condition(depth - 1) for _ in range(rng.randint(2, 3))
            )
            return f"({joined})"
        column = rng.choice(["pk", "c0", "c1", "c2", "c3", "c4", "c5"])
        text = column in ("c2", "c5")

        def value() -> str:
            return repr(rng.choice(words)) if text else str(rng.choice([rng.randint(0, 60), 7.25, 2.0]))

        form = rng.randint(0, 9)
        if form < 5:
            return f"{column} {rng.choice(['=', '<', '<=', '>', '>='])} {value()}"
        if form == 5:
            return f"{column} BETWEEN {value()} AND {value()}"
        if form == 6:
            return f"{column} IN ({', '.join(value() for _ in range(rng.randint(1, 4)))})"
        if form == 7:
            return f"{column} IS {rng.choice(['', 'NOT '])}NULL"
        if form == 8:
            return f"{column} = (SELECT max({column}) FROM bare WHERE c3 < {rng.randint(0, 9)})"
        return f"NOT {column} > {value()}"

    for number in range(160):
        where = condition(2)
        form = rng.randint(0, 3)
        for table in tables:
            label = f"label-{number}"
            if form == 0:
                out.query(f"SELECT pk FROM {table} WHERE {where} ORDER BY 1 DESC", "nosort", label)
            elif form == 1:
                out.query(f"SELECT pk, c0 FROM {table} WHERE {where}", "rowsort", label)
            elif form == 2:
                out.query(f"SELECT c0, c1, pk FROM {table} WHERE {where} ORDER BY c0 DESC, c1, pk", "nosort", label)
            else:
                out.query(f"SELECT count(*), sum(c0), max(c1) FROM {table} WHERE {where}", "nosort", label)
    out.save(path)


# -- keys of all types ---------------------------------------------------------------------


def keys(rng: random.Random, path: Path) -> None:
    out = Writer("Keys of every type, and of several columns: comparisons, affinities and order.")
    values = [
        "-9223372036854775808", "-5", "-1", "-0.5", "0", "0.25", "1", "1.0", "1.5", "2", "10", "255", "256", "9007199254740993",
        "9007199254740992.0", "9223372036854775807", "1e300", "-1e300", "''", "'1'", "'1.0'", "'10'", "'abc'", "'ABC'", "'abd'",
        "'ab'", "'abc '", "'é'", "'ß'", "x''", "x'00'", "x'0001'", "x'ff'", "x'61'",
    ]  # fmt: skip
    kinds = {
        "i": "INTEGER",
        "r": "REAL",
        "n": "NUMERIC",
        "x": "TEXT",
        "b": "",
        "z": "TEXT COLLATE NOCASE",
        "s": "TEXT COLLATE RTRIM",
    }
    for name, kind in kinds.items():
        out.statement(f"CREATE TABLE k{name}(id INTEGER PRIMARY KEY, v {kind}, w {kind})")
        out.statement(f"CREATE INDEX k{name}v ON k{name}(v, w)")
        out.statement(
            f"CREATE TABLE p{name}(v {kind} NOT NULL, w {kind} NOT NULL, id INTEGER, PRIMARY KEY(v, w)) WITHOUT ROWID"
        )
        for number, value in enumerate(values):
            out.statement(f"INSERT INTO k{name} VALUES({number}, {value}, {rng.choice([*values, 'NULL'])})")
            out.statement(f"INSERT OR IGNORE INTO p{name} VALUES({value}, {rng.choice(values)}, {number})")
        out.statement(f"INSERT INTO k{name} VALUES(900, NULL, 1), (901, NULL, NULL)")
        out.query(f"SELECT id, typeof(v), v FROM k{name} ORDER BY v, w, id", "nosort")
        out.query(f"SELECT id, typeof(v), v FROM k{name} ORDER BY v DESC, w DESC, id DESC", "nosort")
        out.query(f"SELECT id, v, w FROM p{name} ORDER BY v DESC, w DESC", "nosort")
        for operator in ("=", "<", "<=", ">", ">=", "IS"):
            for value in rng.sample(values, 9):
                out.query(f"SELECT id FROM k{name} WHERE v {operator} {value}")
        for _ in range(8):
            low, high, other = rng.choice(values), rng.choice(values), rng.choice(values)
            out.query(f"SELECT id FROM p{name} WHERE v = {low} AND w > {other}")
            cast = rng.choice(["INTEGER", "TEXT", "REAL", "BLOB"])
            wide = f"v = CAST({low.replace('ff', '7f')} AS {cast})"  # text must be UTF-8
            out.query(f"SELECT id, w FROM k{name} WHERE {wide} ORDER BY w DESC, id DESC", "nosort")
            out.query(f"SELECT id, w FROM p{name} WHERE {wide} ORDER BY w", "nosort")
            out.query(f"SELECT id FROM p{name} WHERE v IN ({low}, {high}, {other}) ORDER BY v, w", "nosort")
            out.query(f"SELECT id, v FROM p{name} WHERE v BETWEEN {low} AND {high} ORDER BY v, w LIMIT 5", "nosort")
    for left in kinds:
        for right in kinds:
            out.query(f"SELECT k.id, p.id FROM k{left} AS k, p{right} AS p WHERE k.v = p.v")
            out.query(f"SELECT k.id, p.id FROM p{right} AS p CROSS JOIN k{left} AS k WHERE k.v = p.v AND k.w >= p.w")
    out.save(path)


# -- changes ----------------------------------------------------------------------------------


def changes(rng: random.Random, path: Path) -> None:
    out = Writer("Changes of every kind, conflicts included, with the whole table looked at between them.")
    out.statement(
        "CREATE TABLE r(id INTEGER PRIMARY KEY, u INTEGER UNIQUE, n INTEGER NOT NULL DEFAULT 3, t TEXT CHECK(t <> 'bad'))"
    )
    out.statement(
        "CREATE TABLE w(a TEXT NOT NULL, b INTEGER NOT NULL, c REAL, d TEXT UNIQUE, PRIMARY KEY(a, b)) WITHOUT ROWID"
    )
    out.statement("CREATE TABLE plain(x, y)")
    out.statement("CREATE INDEX wc ON w(c, b)")
    out.statement("CREATE INDEX rt ON r(t)")

    def number() -> str:
        return rng.choice([*map(str, range(9)), "NULL", "'7'", "2.0"])

    def word() -> str:
        return rng.choice(["'a'", "'b'", "'c'", "'bad'", "NULL", "5"])

    def change() -> str:
        conflict = rng.choice(["", "", "OR IGNORE ", "OR REPLACE ", "OR FAIL ", "OR ABORT "])
        # A virtual table's UPDATE computes all rows before it changes the first; where REPLACE
        # removes rows that are still to be updated, that shows.
        update = conflict.replace("OR REPLACE ", "")
        forms: list[Callable[[], str]] = [
            lambda: f"INSERT {conflict}INTO r VALUES({number()}, {number()}, {number()}, {word()})",
            lambda: f"INSERT {conflict}INTO r(u, t) VALUES({number()}, {word()}), ({number()}, {word()})",
            lambda: f"INSERT {conflict}INTO w VALUES({word()}, {number()}, {number()}, {word()})",
            lambda: f"INSERT {conflict}INTO w SELECT coalesce(t, 'z'), id, u, t FROM r WHERE id < {number()}",
            lambda: f"UPDATE {update}r SET u = u + 1 WHERE id > {number()}",
            lambda: f"UPDATE {update}r SET id = {number()}, n = {number()} WHERE u = {number()}",
            lambda: f"UPDATE {update}r SET t = {word()} WHERE n = {number()}",
            lambda: f"UPDATE {update}w SET b = b + 10 WHERE a = {word()}",
            lambda: f"UPDATE {update}w SET a = {word()}, c = c * 2 WHERE a = {word()} AND b > 1",
            lambda: f"UPDATE {update}w SET d = {word()} WHERE a = {word()} AND b = {number()}",
            lambda: f"DELETE FROM r WHERE u = {number()} OR t = {word()}",
            lambda: f"DELETE FROM w WHERE b > {rng.randint(5, 20)}",
            lambda: f"DELETE FROM w WHERE a IN (SELECT t FROM r WHERE n = {number()})",
            lambda: f"INSERT INTO plain SELECT id, t FROM r WHERE id < {number()}",
            lambda: f"DELETE FROM plain WHERE rowid % 3 = {rng.randint(0, 2)}",
            lambda: f"UPDATE plain SET x = rowid WHERE y IS {word()}",
        ]
        return rng.choice(forms)()

    for _ in range(30):
        inside = rng.random() < 0.5
        if inside:
            out.statement("BEGIN")
        for step in range(rng.randint(2, 6)):
            out.statement(change())
            if inside and step == 1:
                out.statement("SAVEPOINT s")
                out.statement(change())
                out.statement(change())
                out.statement(rng.choice(["ROLLBACK TO s", "RELEASE s"]))
        out.query("SELECT * FROM r ORDER BY id", "nosort")
        out.query("SELECT * FROM w ORDER BY a, b", "nosort")
        out.query("SELECT d, a FROM w ORDER BY d DESC, a", "nosort")
        if inside:
            out.statement(rng.choice(["COMMIT", "ROLLBACK"]))
        out.query("SELECT u, id FROM r WHERE u > 2 ORDER BY u", "nosort")
        out.query("SELECT rowid, x, y FROM plain ORDER BY rowid", "nosort")
        out.query("SELECT r.id, w.b, w.c FROM r LEFT JOIN w ON w.d = r.t")
    out.save(path)


# -- savepoints --------------------------------------------------------------------------------


def savepoints(rng: random.Random, path: Path) -> None:
    out = Writer(
        "Savepoints inside each other, with and without BEGIN, over three tables; statements that fail between."
    )
    tables = ["one", "two", "three"]
    for table in tables:
        out.statement(f"CREATE TABLE {table}(k INTEGER PRIMARY KEY, v INTEGER UNIQUE)")
    for _ in range(500):
        table = rng.choice(tables)
        name = rng.choice("abc")
        k, v = rng.randint(1, 6), rng.randint(1, 6)
        conflict = rng.choice(["", "", "", "OR FAIL ", "OR IGNORE ", "OR REPLACE ", "OR ROLLBACK "])
        update = conflict.replace("OR REPLACE ", "")  # see changes()
        out.statement(
            rng.choice(
                [
                    "BEGIN", "BEGIN IMMEDIATE", "COMMIT", "ROLLBACK", f"SAVEPOINT {name}", f"SAVEPOINT {name}", f"SAVEPOINT {name}",
                    f"RELEASE {name}", f"ROLLBACK TO {name}", f"ROLLBACK TO {name}",
                    f"INSERT {conflict}INTO {table} VALUES({k}, {v})",
                    f"INSERT {conflict}INTO {table} VALUES({k}, {v}), ({k + 1}, {v + 1}), ({k + 2}, {v})",
                    f"INSERT {conflict}INTO {table} SELECT k + 1, v + 1 FROM {rng.choice(tables)}",
                    f"UPDATE {update}{table} SET v = v - 1, k = {k} WHERE v > {v}",
                    f"DELETE FROM {table} WHERE k > {k}",
                    f"SELECT abs(-9223372036854775807 - (k = {k})) FROM {table}",
                ]
            )
        )  # fmt: skip
        if rng.random() < 0.4:
            out.query("SELECT 1, * FROM one UNION ALL SELECT 2, * FROM two UNION ALL SELECT 3, * FROM three")
    out.save(path)


# -- joins -----------------------------------------------------------------------------------


def joins(rng: random.Random, path: Path) -> None:
    out = Writer("Joins, subqueries, set operations, common table expressions and windows over a small shop.")
    out.statement("CREATE TABLE customer(id INTEGER PRIMARY KEY, name TEXT NOT NULL, city TEXT)")
    out.statement("CREATE TABLE orders(id INTEGER PRIMARY KEY, customer INTEGER, day TEXT)")
    out.statement(
        "CREATE TABLE line(orders INTEGER, number INTEGER, item TEXT, pieces INTEGER, price REAL, PRIMARY KEY(orders, number))"
    )
    out.statement("CREATE INDEX by_customer ON orders(customer, day)")
    out.statement("CREATE INDEX by_city ON customer(city)")
    for id in range(1, 21):
        out.statement(
            f"INSERT INTO customer VALUES({id}, 'name{id:02}', {rng.choice(['NULL', repr('Rome'), repr('Oslo'), repr('Lima')])})"
        )
    for id in range(1, 41):
        out.statement(
            f"INSERT INTO orders VALUES({id}, {rng.randint(1, 25)}, '2024-0{rng.randint(1, 9)}-1{rng.randint(0, 9)}')"
        )
        lines = ", ".join(
            f"({id}, {n}, 'item{rng.randint(1, 8)}', {rng.randint(1, 9)}, {rng.randint(4, 400) / 4})"
            for n in range(1, rng.randint(2, 5))
        )
        out.statement(f"INSERT INTO line VALUES {lines}")
    join = rng.choice
    for _ in range(60):
        where = join(["c.city = 'Oslo'", "o.day > '2024-05'", "l.pieces >= 5", "c.id BETWEEN 3 AND 9", "l.item IN ('item1', 'item5')",
                      "c.city IS NULL", "o.id % 3 = 1", "l.price * l.pieces > 100", "c.name LIKE 'name1%'"])  # fmt: skip
        kind = join(["JOIN", "LEFT JOIN"])
        out.query(
            f"SELECT c.name, o.id, l.number FROM customer c {kind} orders o ON o.customer = c.id {kind} line l ON l.orders = o.id WHERE {where}"
        )
        out.query(
            f"SELECT c.city, count(*), sum(l.pieces), max(l.price) FROM line l JOIN orders o ON o.id = l.orders "
            f"JOIN customer c ON c.id = o.customer WHERE {where} GROUP BY c.city ORDER BY c.city DESC", "nosort"
        )  # fmt: skip
    for n in range(1, 16):
        out.query(f"SELECT day FROM orders WHERE customer = {n} ORDER BY day DESC, id", "nosort")
        out.query(f"SELECT number, item FROM line WHERE orders = {n} AND number >= 2 ORDER BY number DESC", "nosort")
        out.query(
            f"SELECT name FROM customer c WHERE (SELECT count(*) FROM orders o WHERE o.customer = c.id) = {n % 4}"
        )
        out.query(
            f"SELECT id FROM orders EXCEPT SELECT orders FROM line WHERE pieces > {n % 9} ORDER BY 1 DESC LIMIT 7 OFFSET 1",
            "nosort",
        )
        out.query(
            f"WITH RECURSIVE up(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM up WHERE n < {n}) SELECT n, name FROM up LEFT JOIN customer ON id = n"
        )
        out.query(
            f"SELECT id, customer, row_number() OVER (PARTITION BY customer ORDER BY day, id) FROM orders WHERE id < {n * 3} ORDER BY id",
            "nosort",
        )
        out.query(f"SELECT DISTINCT item FROM line WHERE orders > {n * 2} ORDER BY item DESC", "nosort")
        out.query(
            f"SELECT a.id, b.id FROM orders a JOIN orders b USING (customer) WHERE a.id < b.id AND a.id > {n * 2}"
        )
        out.query(f"SELECT max(day), min(id) FROM orders WHERE (customer, day) > ({n}, '2024-04')", "nosort")
        out.query(f"SELECT id FROM customer WHERE city = 'Rome' OR id = {n} OR name = 'name0{n % 10}'")
    out.save(path)


# -- tables that are altered -----------------------------------------------------------------


def alters(rng: random.Random, path: Path) -> None:
    out = Writer("Tables and columns that come, go and take other names, in transactions and outside, with indexes.")
    kinds = ["", "INT", "TEXT", "REAL", "TEXT COLLATE NOCASE", "NUMERIC"]
    limits = ["", "", "UNIQUE", "NOT NULL DEFAULT 4", "CHECK (1)", "DEFAULT 7", "DEFAULT 'z'", "NOT NULL"]
    tables, names = ["t", "u", '"V w"'], ["a", "b", "c", "d", '"e f"', "G"]
    values = ["NULL", "1", "2", "'x'", "'Y'", "3.5", "x'00'", "'10'", "7"]

    def columns(table: str) -> list[str]:
        listed = out.sqlite.execute("SELECT name FROM pragma_table_info(?)", (table.strip('"'),)).fetchall()
        return [f'"{name}"' for (name,) in listed]

    def step(table: str, there: list[str]) -> str:
        some, column, name = rng.sample(there, rng.randint(1, len(there))), rng.choice(there), rng.choice(names)
        typed = f"{name} {rng.choice(kinds)} {rng.choice(limits)}"
        made = [f"{n} {rng.choice(kinds)} {rng.choice(limits)}" for n in rng.sample(names, 3)]
        made[0] = rng.choice(
            [made[0], f"{made[0].rsplit(' ')[0]} INTEGER PRIMARY KEY" if " f" not in made[0] else made[0]]
        )
        index = f"i{rng.randint(1, 3)}"
        inserts = [f"INSERT INTO {table}({', '.join(some)}) VALUES({', '.join(rng.choice(values) for _ in some)})"] * 9
        return rng.choice(
            [
                f"CREATE TABLE {table}({', '.join(made)})", f"ALTER TABLE {table} ADD {typed}", f"ALTER TABLE {table} ADD {typed}",
                f"ALTER TABLE {table} ADD {typed}", f"ALTER TABLE {table} DROP {column}", f"ALTER TABLE {table} DROP {column}",
                f"ALTER TABLE {table} RENAME {column} TO {name}", f"ALTER TABLE {table} RENAME TO {rng.choice(tables)}",
                f"CREATE {rng.choice(['', 'UNIQUE '])}INDEX {index} ON {table}({column})", f"DROP INDEX {index}",
                rng.choice(["BEGIN", "COMMIT", "ROLLBACK", "SAVEPOINT s", "RELEASE s", "ROLLBACK TO s"]),
                f"UPDATE {table} SET {column} = {rng.choice(values)} WHERE {rng.choice(there)} > {rng.choice(values)}",
                f"DELETE FROM {table} WHERE {column} = {rng.choice(values)}", *inserts,
            ]
        )  # fmt: skip

    for _ in range(500):
        table = rng.choice(tables)
        out.statement(step(table, columns(table) or ["a"]))
        if rng.random() < 0.4 and (there := columns(table)):
            out.query(f"SELECT {', '.join(there)} FROM {table} WHERE {rng.choice(there)} IS NOT {rng.choice(values)}")
    out.save(path)


FILES = {write.__name__: write for write in (expressions, indexes, keys, changes, joins, savepoints, alters)}


def main(folder: Path) -> None:
    """Writes all of them."""
    for seed, (name, write) in enumerate(FILES.items()):
        write(random.Random(seed), folder / f"{name}.test")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
