"""Imports a CSV file into a table, as one transaction.

The first line names the columns. A missing table is created, each column with
the narrowest type that its first thousand values allow. Empty fields are NULL.
"""

import csv
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any

import apsw

from toydb.sql import Connection
from toydb.sql.parsing import fold, quote

SAMPLE_ROWS = 1000
PROGRESS_ROWS = 500

_INTEGER = re.compile(r"[+-]?\d{1,18}", re.ASCII)
_REAL = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)


class ImportFailed(apsw.SQLError):
    """The file does not fit the table; the message names the line. Nothing was imported."""


@dataclass(frozen=True)
class Imported:
    rows: int
    created: bool  # the table was made


def import_csv(
    connection: Connection,
    path: str | os.PathLike[str],
    table: str,
    *,
    delimiter: str = ",",
    encoding: str = "utf-8-sig",
    progress: Callable[[int, int], None] | None = None,
) -> Imported:
    """Insert the rows of a CSV file into ``table``, all of them or none.

    ``progress`` is called now and then with (bytes read, bytes of the file).
    Raises ImportFailed, OSError, and what the table's constraints raise, with the line.
    """
    size = os.stat(path).st_size
    with Path(path).open(newline="", encoding=encoding) as file:
        lines = csv.reader(file, delimiter=delimiter, strict=True)
        header = next(lines, None)
        if not header:
            raise ImportFailed(f"{path}: the file is empty; its first line should name the columns")
        columns = _columns(path, header)
        with connection:
            created = connection.catalog.find(table) is None
            sample = list(islice(_rows(path, lines, len(columns)), SAMPLE_ROWS))
            if created:
                kinds = [_kind([row[n] for _, row in sample]) for n in range(len(columns))]
                declared = ", ".join(f"{quote(c)} {kind}" for c, kind in zip(columns, kinds, strict=True))
                connection.execute(f"CREATE TABLE {quote(table)}({declared})")
            insert = (
                f"INSERT INTO {quote(table)}({', '.join(map(quote, columns))}) VALUES({', '.join('?' * len(columns))})"
            )
            count = 0
            for rows in (sample, _rows(path, lines, len(columns))):
                for line, row in rows:
                    _insert(connection, insert, path, line, row)
                    count += 1
                    if progress is not None and count % PROGRESS_ROWS == 0:
                        progress(_position(file), size)
            if progress is not None:
                progress(size, size)
    return Imported(count, created)


def _insert(connection: Connection, sql: str, path: str | os.PathLike[str], line: int, row: list[str | None]) -> None:
    try:
        connection.execute(sql, row)
    except (apsw.ConstraintError, apsw.MismatchError) as error:
        raise ImportFailed(f"{path}, line {line}: {error}; nothing was imported") from error


def _columns(path: str | os.PathLike[str], header: list[str]) -> list[str]:
    columns = [name.strip() for name in header]
    names = [fold(name) for name in columns]
    if "" in names or len(set(names)) < len(names):
        raise ImportFailed(f"{path}: the first line should give each column a name of its own, not {header}")
    return columns


def _rows(path: str | os.PathLike[str], lines: Any, width: int) -> Iterator[tuple[int, list[str | None]]]:
    try:
        for row in lines:
            if not row:
                continue
            if len(row) != width:
                raise ImportFailed(f"{path}, line {lines.line_num}: {len(row)} fields where the header has {width}")
            yield lines.line_num, [field or None for field in row]
    except (csv.Error, UnicodeDecodeError) as error:
        raise ImportFailed(f"{path}, line {lines.line_num + 1}: {error}; nothing was imported") from error


def _kind(values: list[str | None]) -> str:
    given = [value for value in values if value is not None]
    if given and all(_INTEGER.fullmatch(value) for value in given):
        plain = all(str(int(value)) == value for value in given)  # "007" is text: as a number it would lose its zeros
        return "INTEGER" if plain else "TEXT"
    return "REAL" if given and all(_REAL.fullmatch(value) for value in given) else "TEXT"


def _position(file: IO[str]) -> int:
    return os.lseek(file.fileno(), 0, os.SEEK_CUR)
