"""Checks that tables and indexes agree: each index has exactly one entry for every row."""

from toydb.sql.cursor import whole
from toydb.sql.schemas import Schema, index_prefix
from toydb.sql.session import Session, Work

MOST_FINDINGS = 100


def check(session: Session, schemas: list[Schema]) -> list[str]:
    """Checks all tables in one snapshot, reading every row; returns the faults, one sentence each."""
    found: list[str] = []
    with session.reading() as work:
        for schema in schemas:
            found += _check_table(work, schema)
    return found


def _check_table(work: Work, schema: Schema) -> list[str]:
    found: list[str] = []
    trees = {index.name: work.txn.table(index.storage) for index in schema.indexes}
    rows = 0
    for key, record in work.txn.table(schema.storage).scan():
        rows += 1
        row = whole(schema, key, record)
        if len(row) != len(schema.columns):
            found.append(f"{schema.name}: row {key.hex()} has {len(row)} columns, not {len(schema.columns)}")
            continue
        if not schema.rowid and schema.key_of(row) != key:
            found.append(f"{schema.name}: row {key.hex()} is stored under another key than its own")
        for index in schema.indexes:
            prefix = index_prefix(index, row)
            size = trees[index.name].get(prefix + key)
            if size is None:
                found.append(f"index {index.name}: no entry for row {key.hex()} of {schema.name}")
            elif int.from_bytes(size, "big") != len(prefix):
                found.append(f"index {index.name}: the entry for row {key.hex()} leads elsewhere")
        if len(found) >= MOST_FINDINGS:
            return found
    for index in schema.indexes:
        entries = sum(1 for _ in trees[index.name].scan())
        if entries != rows:
            found.append(f"index {index.name}: {entries} entries for {rows} rows of {schema.name}")
    return found
