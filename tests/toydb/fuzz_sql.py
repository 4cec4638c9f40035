"""Random SQL, executed by toydb and by SQLite itself: each answer must be the same, or both must refuse.

    python -m tests.toydb.fuzz_sql SECONDS [SEED]

A statement is chosen so that its result does not depend on the order in which rows are visited: of values that are equal and not
the same (1 and 1.0, or 'a' and 'A' with NOCASE) ``max`` and ``DISTINCT`` give the one that they meet first. What toydb refuses and SQLite does
not is a finding too, unless the README names it (``REFUSED``).
"""

import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
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
        self.views: list[str] = []
        self.bound: dict[str, str] = {}  # the values of the statement's parameters

    def close(self) -> None:
        name = self.ours.database._engine.pool.name
        self.ours.close()
        self.theirs.close()
        bp.Pool.remove(name, discard=True)

    # -- parts of statements -------------------------------------------------------------

    def value(self) -> str:
        return self.numbers.choice(VALUES)

    def picked(self, ways: Sequence[tuple[float, Callable[..., str]]], *arguments: Any) -> str:
        """What one of several ways gives; each is taken as often as its number says."""
        return self.numbers.choices([way for _, way in ways], [share for share, _ in ways])[0](self, *arguments)

    def condition(self, columns: list[str], depth: int = 0) -> str:
        if depth < 2 and self.numbers.random() < 0.3:
            joined = self.numbers.choice((" AND ", " OR "))
            return f"({joined.join(self.condition(columns, depth + 1) for _ in range(2))})"
        return self.picked(CONDITIONS, self.numbers.choice(columns), columns)

    def among(self, column: str, columns: list[str]) -> str:
        return f"{column} IN ({', '.join(self.value() for _ in range(self.numbers.randint(0, 3)))})"

    def between(self, column: str, columns: list[str]) -> str:
        return f"{column} BETWEEN {self.value()} AND {self.value()}"

    def like(self, column: str, columns: list[str]) -> str:
        return f"{column} LIKE {self.numbers.choice(('a%', 'A', '_', '%b%', ''))!r}"

    def glob(self, column: str, columns: list[str]) -> str:
        return f"{column} GLOB {self.numbers.choice(('a*', '?', 'B*'))!r}"

    def unlike(self, column: str, columns: list[str]) -> str:
        return f"NOT {column} {self.numbers.choice(SIGNS)} {self.value()}"

    def two_columns(self, column: str, columns: list[str]) -> str:
        return f"{column} {self.numbers.choice(SIGNS)} {self.numbers.choice(columns)}"

    def row_value(self, column: str, columns: list[str]) -> str:
        sign = self.numbers.choice(SIGNS[:6])
        return f"({column}, {self.numbers.choice(columns)}) {sign} ({self.value()}, {self.value()})"

    def in_select(self, column: str, columns: list[str]) -> str:
        other = self.numbers.choice(self.tables)
        among = self.numbers.choice(other.columns)
        return f"{column} {self.numbers.choice(('IN', 'NOT IN'))} (SELECT {among} FROM {other.name} WHERE {among} > {self.value()})"

    def compared(self, column: str, columns: list[str]) -> str:
        return f"{column}{self.numbers.choice(COLLATIONS)} {self.numbers.choice(SIGNS)} {self.value()}"

    # -- statements ----------------------------------------------------------------------

    def create(self, table: Table | None = None) -> str:
        if table is not None and len(self.tables) >= 3:
            return self.select(table)
        table = Table(self.numbers, f"t{len(self.tables)}")
        self.tables.append(table)
        return table.sql()

    def index(self, table: Table) -> str:
        columns = self.numbers.sample(table.columns, self.numbers.randint(1, 2))
        parts = [c + self.numbers.choice(COLLATIONS) + self.numbers.choice(("", "", " DESC")) for c in columns]
        return f"CREATE INDEX i{len(self.log)} ON {table.name}({', '.join(parts)})"

    def view(self, table: Table) -> str:
        name, other = f"v{len(self.log)}", self.numbers.choice(self.tables)
        self.views.append(name)
        join = (
            f" a JOIN {other.name} b ON a.{table.columns[0]} = b.{other.columns[-1]}"
            if self.numbers.random() < 0.4
            else " a"
        )
        return f"CREATE VIEW {name} AS SELECT a.c0, a.c1 FROM {table.name}{join}"

    def viewed(self, table: Table) -> str:
        if not self.views:
            return self.select(table)
        return f"SELECT typeof(c0), c0, typeof(c1), c1 FROM {self.numbers.choice(self.views)} WHERE {self.condition(['c0', 'c1'])}"

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
            order = ", ".join(
                f"quote({part})" for part in picked
            )  # 1 and 1.0, or 'a' and 'A', are equal, and not the same
            return f"{head} SELECT {', '.join(picked)} FROM {other.name} WHERE {self.condition(other.columns)} ORDER BY {order} LIMIT 3"
        if self.numbers.random() < 0.05:
            return f"{verb} INTO {table.name} DEFAULT VALUES"
        rows = (f"({', '.join(self.value() for _ in columns)})" for _ in range(self.numbers.randint(1, 4)))
        return f"{head} VALUES{', '.join(rows)}"

    def update(self, table: Table) -> str:
        free = [c for c in table.columns if c not in table.fixed] or table.columns
        column, other = self.numbers.choice(free), self.numbers.choice(table.columns)
        new = self.numbers.choice(
            (self.value(), other, f"{other} + 1", f"{other} || 'x'", f"(SELECT max(quote(c0)) FROM {table.name})")
        )
        where = self.condition(table.columns)
        if column in table.fixed:
            where = f"{table.columns[0]} = {self.value()} AND (SELECT count(*) FROM {table.name}) < 2"
        return f"UPDATE {table.name} SET {column} = {new} WHERE {where}"

    def delete(self, table: Table) -> str:
        return f"DELETE FROM {table.name} WHERE {self.condition(table.columns)} AND {self.condition(table.columns)}"

    def select(self, table: Table) -> str:
        return self.picked(QUERIES, table, self.numbers.choice(table.columns), self.condition(table.columns))

    def plain(self, table: Table, column: str, where: str) -> str:
        """Comparisons of columns with values, of which toydb tests none twice."""
        terms = []
        for one in self.numbers.choices(table.columns, k=self.numbers.randint(1, 3)):
            low, high = (f":p{len(self.bound) + i}" for i in range(2))
            self.bound |= {low[1:]: self.value(), high[1:]: self.value()}
            between = self.numbers.random() < 0.3
            terms.append(
                f"{one} BETWEEN {low} AND {high}" if between else f"{one} {self.numbers.choice(SIGNS[:5])} {low}"
            )
        return f"SELECT {', '.join(f'typeof({c}), {c}' for c in table.columns)} FROM {table.name} WHERE {' AND '.join(terms)}"

    def order(self, table: Table) -> str:
        parts = self.numbers.sample(table.columns, 2)
        return ", ".join(f"{c}{self.numbers.choice(COLLATIONS)}{self.numbers.choice(('', ' DESC'))}" for c in parts)

    def rows(self, table: Table, column: str, where: str) -> str:
        return f"SELECT {', '.join(f'typeof({c}), {c}' for c in table.columns)} FROM {table.name} WHERE {where}"

    def groups(self, table: Table, column: str, where: str) -> str:
        collate = self.numbers.choice(COLLATIONS)
        return f"SELECT {column}{collate} IS NULL, count(*), count(DISTINCT {column}) FROM {table.name} WHERE {where} GROUP BY 1"

    def extremes(self, table: Table, column: str, where: str) -> str:
        return f"SELECT min({column}) + 0.5, max({column}) + 0.5, count({column}) FROM {table.name} WHERE {where}"

    def join(self, table: Table, column: str, where: str) -> str:
        other = self.numbers.choice(self.tables)
        kind = self.numbers.choice(("JOIN", "LEFT JOIN", "CROSS JOIN", "RIGHT JOIN", "FULL JOIN"))
        on = f"a.{column} {self.numbers.choice(SIGNS)} b.{self.numbers.choice(other.columns)}"
        one = self.numbers.choice([f"a.{name}" for name in table.columns] + [f"b.{name}" for name in other.columns])
        where = f" WHERE {one} {self.numbers.choice(SIGNS)} {self.value()}" if self.numbers.random() < 0.5 else ""
        return f"SELECT a.{column}, b.{self.numbers.choice(other.columns)} FROM {table.name} a {kind} {other.name} b ON {on}{where}"

    def common(self, table: Table, column: str, where: str) -> str:
        query = f"WITH q AS (SELECT {', '.join(table.columns)} FROM {table.name} WHERE {where}) SELECT {column} FROM q"
        return f"{query} WHERE {column} IN (SELECT {self.numbers.choice(table.columns)} FROM {table.name})"

    def row_values(self, table: Table, column: str, where: str) -> str:
        other, more = self.numbers.choice(self.tables), self.numbers.choice(table.columns)
        chosen = ", ".join(self.numbers.choices(other.columns, k=2))
        return f"SELECT {column} FROM {table.name} WHERE ({column}, {more}) IN (SELECT {chosen} FROM {other.name})"

    def windows(self, table: Table, column: str, where: str) -> str:
        rank = f"dense_rank() OVER (ORDER BY {self.order(table)})"
        return f"SELECT {column}, count(*) OVER (PARTITION BY {column}), {rank} FROM {table.name}"

    def union(self, table: Table, column: str, where: str) -> str:
        return f"SELECT DISTINCT typeof({column}) FROM {table.name} WHERE {where} UNION SELECT {self.value()}"

    def first_ranks(self, table: Table, column: str, where: str) -> str:
        rank, order = "dense_rank() OVER", self.order(table)
        return f"SELECT {rank} (ORDER BY {order}) FROM {table.name} WHERE {where} ORDER BY {order} LIMIT {self.numbers.randint(0, 9)}"

    def transaction(self, table: Table) -> str:
        return self.numbers.choice(("BEGIN", "COMMIT", "ROLLBACK", "SAVEPOINT s", "RELEASE s", "ROLLBACK TO s"))

    def changes(self, table: Table) -> str:
        return "SELECT changes(), total_changes()"

    def statement(self) -> str:
        return self.picked(STATEMENTS, self.numbers.choice(self.tables)) if self.tables else self.create()

    # -- comparing -----------------------------------------------------------------------

    @staticmethod
    def answer(connection: apsw.Connection, sql: str, values: dict[str, Any] | None = None) -> list[Any] | apsw.Error:
        try:
            found = list(map(repr, connection.execute(sql, values)))
            return found if sql.startswith("SELECT dense_rank()") else sorted(found)  # ranks come in their order
        except apsw.Error as error:
            return error

    def step(self) -> str:
        """Executes a statement on both sides; returns a finding, or nothing."""
        self.bound = {}
        sql = self.statement()
        self.log.append(f"{sql} /* {self.bound} */" if self.bound else sql)
        values = {name: self.theirs.execute(f"SELECT {text}").fetchall()[0][0] for name, text in self.bound.items()}
        ours, theirs = self.answer(self.ours, sql, values), self.answer(self.theirs, sql, values)
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


# The ways of making each part, with the percentages of their shares.
CONDITIONS = (
    (10, Fuzzer.among), (10, Fuzzer.between), (5, Fuzzer.like), (5, Fuzzer.glob), (5, Fuzzer.unlike), (15, Fuzzer.two_columns),
    (5, Fuzzer.row_value), (5, Fuzzer.in_select), (40, Fuzzer.compared),
)  # fmt: skip
QUERIES = (
    (25, Fuzzer.rows), (15, Fuzzer.plain), (10, Fuzzer.groups), (10, Fuzzer.extremes), (10, Fuzzer.join), (8, Fuzzer.common), (8, Fuzzer.row_values), (8, Fuzzer.windows),
    (7, Fuzzer.union), (7, Fuzzer.first_ranks),
)  # fmt: skip
STATEMENTS = (
    (2, Fuzzer.create), (3, Fuzzer.index), (33, Fuzzer.insert), (10, Fuzzer.update), (5, Fuzzer.delete), (8, Fuzzer.transaction),
    (2, Fuzzer.changes), (0.3, Fuzzer.view), (3, Fuzzer.viewed), (34, Fuzzer.select),
)  # fmt: skip


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
