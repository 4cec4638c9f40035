"""Random SQL, executed by toydb and by SQLite itself: each answer must be the same, or both must refuse.

    python -m tests.toydb.fuzz_sql SECONDS [SEED]

A statement is chosen so that its result does not depend on the order in which rows are visited. What toydb refuses and SQLite does
not is a finding too, unless the README names it (``REFUSED``).
"""

import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import apsw

import bufferpool as bp
import toydb.sql

TYPES = ("", "INTEGER", "INT", "REAL", "TEXT", "BLOB", "NUMERIC", "VARCHAR(9)", "BOOLEAN", "DATETIME")
STRICT = ("INTEGER", "REAL", "TEXT", "BLOB", "ANY")
COLLATIONS = ("", "", "", " COLLATE NOCASE", " COLLATE RTRIM", " COLLATE BINARY")
VALUES = (
    "0", "1", "2", "-1", "3.5", "1.0", "'a'", "'A'", "'b '", "'b'", "''", "'1'", "' 2'", "'1e1'", "x'61'", "x''", "1e300", "TRUE",
    "9007199254740993", "-9223372036854775808", "9223372036854775807", "'é'", "0.1", "NULL", "NULL", "'0x1'", "-0.0", "'3.0'", "1e19",
)  # fmt: skip
DEFAULTS = ("5", "'d'", "(1 + 2)", "-1", "NULL", "TRUE", "x'01'", "'it''s'", "1.5")
SIGNS = ("=", "<", "<=", ">", ">=", "<>", "IS", "IS NOT", "==")
REFUSED = ("largest row id is in use",)  # SQLite looks for a free one


class Table:
    """What the generator knows of a table."""

    def __init__(self, numbers: random.Random, name: str) -> None:
        self.name, self.numbers = name, numbers
        self.strict = numbers.random() < 0.2
        self.columns = [f"c{n}" for n in range(numbers.randint(2, 4))]
        self.key = numbers.choice(("rowid", "integer", "integer", "auto", "plain", "pair"))
        self.unique: list[str] = []

    def sql(self) -> str:
        parts, numbers = [], self.numbers
        for n, column in enumerate(self.columns):
            kind = numbers.choice(STRICT if self.strict else TYPES)
            part = f"{column} {kind}{numbers.choice(COLLATIONS)}"
            if n == 0 and self.key in ("integer", "auto"):
                part = f"{column} INTEGER PRIMARY KEY{' AUTOINCREMENT' if self.key == 'auto' else ''}"
            elif n == 0 and self.key == "plain":
                part += " PRIMARY KEY NOT NULL"
            else:
                part += f" DEFAULT {numbers.choice(DEFAULTS)}" if numbers.random() < 0.4 else ""
                part += " NOT NULL" if numbers.random() < 0.2 or (self.key == "pair" and n < 2) else ""
                if numbers.random() < 0.12:
                    part += " UNIQUE"
                    self.unique.append(column)
                part += f" CHECK({column} <> 2)" if numbers.random() < 0.1 else ""
            parts.append(part)
        if self.key == "pair":
            parts.append(f"PRIMARY KEY(c1, c0{' DESC' if numbers.random() < 0.3 else ''})")
        options = ["STRICT"] if self.strict else []
        options += ["WITHOUT ROWID"] if self.key in ("plain", "pair") else []
        return f"CREATE TABLE {self.name}({', '.join(parts)}) {', '.join(options)}"

    @property
    def fixed(self) -> list[str]:
        """Columns that an UPDATE of many rows must not make equal."""
        return [*self.unique, *(["c0", "c1"] if self.key == "pair" else ["c0"] if self.key != "rowid" else [])]


class Fuzzer:
    """One database on each side, and statements for both."""

    def __init__(self, seed: int, folder: Path) -> None:
        self.numbers = random.Random(seed)
        self.ours = toydb.sql.connect(folder / f"{seed}.db", capacity="1MiB")
        self.theirs = apsw.Connection(":memory:")
        self.tables: list[Table] = []
        self.log: list[str] = []
        self.over = False  # toydb has refused what SQLite has not

    def close(self) -> None:
        name = self.ours.database._engine.pool.name
        self.ours.close()
        self.theirs.close()
        bp.Pool.remove(name, discard=True)

    # -- parts of statements -------------------------------------------------------------

    def value(self) -> str:
        return self.numbers.choice(VALUES)

    def condition(self, columns: list[str], depth: int = 0) -> str:
        pick, column = self.numbers.random(), self.numbers.choice(columns)
        if depth < 2 and pick < 0.3:
            joined = self.numbers.choice((" AND ", " OR "))
            return f"({joined.join(self.condition(columns, depth + 1) for _ in range(2))})"
        if pick < 0.4:
            return f"{column} IN ({', '.join(self.value() for _ in range(self.numbers.randint(0, 3)))})"
        if pick < 0.5:
            return f"{column} BETWEEN {self.value()} AND {self.value()}"
        if pick < 0.55:
            return f"{column} LIKE {self.numbers.choice(('a%', 'A', '_', '%b%', ''))!r}"
        if pick < 0.6:
            return f"{column} GLOB {self.numbers.choice(('a*', '?', 'B*'))!r}"
        if pick < 0.65:
            return f"NOT {column} {self.numbers.choice(SIGNS)} {self.value()}"
        if pick < 0.75:
            return f"{column} {self.numbers.choice(SIGNS)} {self.numbers.choice(columns)}"
        collate = self.numbers.choice(COLLATIONS)
        return f"{column}{collate} {self.numbers.choice(SIGNS)} {self.value()}"

    # -- statements ----------------------------------------------------------------------

    def create(self) -> str:
        table = Table(self.numbers, f"t{len(self.tables)}")
        self.tables.append(table)
        return table.sql()

    def index(self, table: Table) -> str:
        columns = self.numbers.sample(table.columns, self.numbers.randint(1, 2))
        parts = [c + self.numbers.choice(COLLATIONS) + self.numbers.choice(("", "", " DESC")) for c in columns]
        return f"CREATE INDEX i{len(self.log)} ON {table.name}({', '.join(parts)})"

    def insert(self, table: Table) -> str:
        verb = self.numbers.choice(
            ("INSERT", "INSERT", "INSERT OR IGNORE", "INSERT OR REPLACE", "REPLACE", "INSERT OR FAIL")
        )
        columns = (
            table.columns
            if self.numbers.random() < 0.5
            else self.numbers.sample(table.columns, self.numbers.randint(1, len(table.columns)))
        )
        head = f"{verb} INTO {table.name}({', '.join(columns)})"
        if self.numbers.random() < 0.15:
            other = self.numbers.choice(self.tables)
            picked = [self.numbers.choice([*other.columns, self.value()]) for _ in columns]
            order = ", ".join(str(n + 1) for n in range(len(picked)))
            return f"{head} SELECT DISTINCT {', '.join(picked)} FROM {other.name} WHERE {self.condition(other.columns)} ORDER BY {order} LIMIT 3"
        if self.numbers.random() < 0.05:
            return f"{verb} INTO {table.name} DEFAULT VALUES"
        rows = (f"({', '.join(self.value() for _ in columns)})" for _ in range(self.numbers.randint(1, 4)))
        return f"{head} VALUES{', '.join(rows)}"

    def update(self, table: Table) -> str:
        free = [c for c in table.columns if c not in table.fixed] or table.columns
        column, other = self.numbers.choice(free), self.numbers.choice(table.columns)
        new = self.numbers.choice(
            (self.value(), other, f"{other} + 1", f"{other} || 'x'", f"(SELECT max(c0) FROM {table.name})")
        )
        where = self.condition(table.columns)
        if column in table.fixed:
            where = f"{table.columns[0]} = {self.value()} AND (SELECT count(*) FROM {table.name}) < 2"
        return f"UPDATE {table.name} SET {column} = {new} WHERE {where}"

    def delete(self, table: Table) -> str:
        return f"DELETE FROM {table.name} WHERE {self.condition(table.columns)} AND {self.condition(table.columns)}"

    def select(self, table: Table) -> str:
        numbers, all_of = self.numbers, ", ".join(table.columns)
        where = self.condition(table.columns)
        kinds = [f"typeof({c}), {c}" for c in table.columns]
        order = ", ".join(
            f"{c}{numbers.choice(COLLATIONS)}{numbers.choice(('', ' DESC'))}" for c in numbers.sample(table.columns, 2)
        )
        pick, column = numbers.random(), numbers.choice(table.columns)
        if pick < 0.4:
            return f"SELECT {', '.join(kinds)} FROM {table.name} WHERE {where}"
        if pick < 0.5:
            return f"SELECT {column}{numbers.choice(COLLATIONS)} IS NULL, count(*), count(DISTINCT {column}) FROM {table.name} WHERE {where} GROUP BY 1"
        if pick < 0.6:
            return f"SELECT min({column}) + 0.5, max({column}) + 0.5, count({column}) FROM {table.name} WHERE {where}"
        if pick < 0.7:
            other = numbers.choice(self.tables)
            on = f"a.{column} {numbers.choice(SIGNS)} b.{numbers.choice(other.columns)}"
            return f"SELECT a.{column}, b.{numbers.choice(other.columns)} FROM {table.name} a {numbers.choice(('JOIN', 'LEFT JOIN', 'CROSS JOIN'))} {other.name} b ON {on}"
        if pick < 0.78:
            return f"WITH q AS (SELECT {all_of} FROM {table.name} WHERE {where}) SELECT {column} FROM q WHERE {column} IN (SELECT {numbers.choice(table.columns)} FROM {table.name})"
        if pick < 0.86:
            return f"SELECT {column}, count(*) OVER (PARTITION BY {column}), dense_rank() OVER (ORDER BY {order}) FROM {table.name}"
        if pick < 0.93:
            return f"SELECT DISTINCT typeof({column}) FROM {table.name} WHERE {where} UNION SELECT {self.value()}"
        return f"SELECT dense_rank() OVER (ORDER BY {order}) FROM {table.name} WHERE {where} ORDER BY {order} LIMIT {numbers.randint(0, 9)}"

    def transaction(self) -> str:
        return self.numbers.choice(("BEGIN", "COMMIT", "ROLLBACK", "SAVEPOINT s", "RELEASE s", "ROLLBACK TO s"))

    def statement(self) -> str:
        if not self.tables:
            return self.create()
        table, pick = self.numbers.choice(self.tables), self.numbers.random()
        for share, make in (
            (0.02, lambda: self.create() if len(self.tables) < 3 else self.select(table)),
            (0.05, lambda: self.index(table)),
            (0.38, lambda: self.insert(table)),
            (0.48, lambda: self.update(table)),
            (0.53, lambda: self.delete(table)),
            (0.61, self.transaction),
            (0.63, lambda: "SELECT changes(), total_changes()"),
        ):
            if pick < share:
                return make()
        return self.select(table)

    # -- comparing -----------------------------------------------------------------------

    @staticmethod
    def answer(connection: apsw.Connection, sql: str) -> list[Any] | apsw.Error:
        try:
            return sorted(map(repr, connection.execute(sql)))
        except apsw.Error as error:
            return error

    def step(self) -> str:
        """Executes a statement on both sides; returns a finding, or nothing."""
        sql = self.statement()
        self.log.append(sql)
        ours, theirs = self.answer(self.ours, sql), self.answer(self.theirs, sql)
        if isinstance(ours, Exception) and any(word in str(ours) for word in REFUSED):
            self.over = True
        elif isinstance(theirs, Exception) and "cannot store" in str(theirs):
            self.over = True  # inside a transaction SQLite keeps the rows before the one that STRICT refuses
        elif isinstance(ours, Exception) and isinstance(theirs, Exception):
            if "OR FAIL" in sql and any(table.key == "auto" for table in self.tables):
                self.over = True  # the rows that are kept count for AUTOINCREMENT; SQLite forgets their numbers
            return self.contents()
        elif ours != theirs:
            return f"{ours!r}, and SQLite {theirs!r}"
        return "" if self.over or sql.startswith(("SELECT", "WITH")) else self.contents()

    def contents(self) -> str:
        for table in self.tables:
            sql = f"SELECT {', '.join(f'typeof({c}), {c}' for c in table.columns)} FROM {table.name}"
            ours, theirs = self.answer(self.ours, sql), self.answer(self.theirs, sql)
            if isinstance(ours, Exception) and isinstance(theirs, Exception):
                continue
            if ours != theirs:
                return f"{table.name} has {ours!r}, and in SQLite {theirs!r}"
        return ""


def fuzz(seed: int, folder: Path, statements: int = 150) -> str:
    """Executes random statements; returns the statements up to the first finding, and it, or nothing."""
    fuzzer = Fuzzer(seed, folder)
    try:
        for _ in range(statements):
            if found := fuzzer.step():
                return f"seed {seed}:\n" + ";\n".join(fuzzer.log) + f";\n-- {found}"
            if fuzzer.over:
                break
        if faults := fuzzer.ours.check() if fuzzer.ours.get_autocommit() else []:
            return f"seed {seed}: {faults}"
        return ""
    finally:
        fuzzer.close()


def main() -> int:
    seconds, seed, found = float(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else random.randrange(1 << 30), 0
    begin, done = time.process_time(), 0
    with tempfile.TemporaryDirectory() as folder:
        while time.process_time() - begin < seconds and found < 10:
            if text := fuzz(seed + done, Path(folder)):
                print(text, flush=True)
                found += 1
            done += 1
            for path in Path(folder).iterdir():
                path.unlink()
    print(f"{done} databases of 150 statements, {found} findings, seed {seed}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
