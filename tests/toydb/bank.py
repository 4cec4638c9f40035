"""A bank on toydb, whose processes may die at any moment, and what must be true of it afterwards.

A transfer moves money between two accounts and writes a line of the journal, in one
transaction. Before it commits, the process notes "B seq" in a file of its own; when commit
has returned, "C seq". So of every process: the journal has each transfer that was noted as
committed, and nothing but those, save the one that it was about when it died. The balances
are the journal's sums, exactly, in every snapshot; that is atomicity and isolation at once.
"""

import os
import random
import struct
import sys
from pathlib import Path

import toydb

N_ACCOUNTS = 40
START = 1000
TOTAL = N_ACCOUNTS * START
BALANCE = struct.Struct("<q")
KEY = struct.Struct(">II")
LINE = struct.Struct("<IIq")
CHURN_KEYS = 300
N_STATEMENTS = 600  # of some 1000 bytes: more pages than the pool's version store has room for
PAGE_SIZE = 4096


class Wrong(AssertionError):
    """The database is not as it must be."""


def account(i: int) -> bytes:
    return b"account-%04d" % i


def open_bank(directory: Path, pool_name: str) -> toydb.Database:
    return toydb.Database.open(
        directory / "bank.db", capacity="2MiB", pool_name=pool_name, checkpoint_bytes="96KiB", page_size=PAGE_SIZE
    )


def found(db: toydb.Database) -> None:
    """Opens the accounts, if nobody has."""
    with db.begin(write=True) as txn:
        if "accounts" in txn.tables():
            return
        accounts = txn.create_table("accounts")
        for i in range(N_ACCOUNTS):
            accounts.put(account(i), BALANCE.pack(START) + bytes(100))
        txn.create_table("journal", b"worker, seq -> from, to, amount")
        txn.create_table("churn")
        txn.create_table("statements")


def send_statements(txn: toydb.Transaction, rng: random.Random) -> None:
    """A large commit: every statement is written anew, all with the same content."""
    statements, content = txn.table("statements"), rng.randbytes(8) * 125
    for i in range(N_STATEMENTS):
        statements.put(b"%d" % i, content)


def transfer(txn: toydb.Transaction, rng: random.Random, worker: int, seq: int) -> None:
    accounts, journal, churn = txn.table("accounts"), txn.table("journal"), txn.table("churn")
    a, b = rng.sample(range(N_ACCOUNTS), 2)
    amount = rng.randrange(1, 50)
    for i, change in ((a, -amount), (b, amount)):
        old = accounts.get(account(i))
        if old is None:
            raise Wrong(f"account {i} is gone")
        accounts.put(account(i), BALANCE.pack(BALANCE.unpack_from(old)[0] + change) + old[BALANCE.size :])
    journal.insert(KEY.pack(worker, seq), LINE.pack(a, b, amount) + rng.randbytes(rng.choice([0, 20, 300, 900])))
    for _ in range(rng.randrange(4)):  # pages split, merge, overflow, and are given away
        key = b"%d-" % rng.randrange(CHURN_KEYS) * rng.choice([1, 1, 30])
        if rng.random() < 0.5:
            churn.delete(key)
        else:
            churn.put(key, rng.randbytes(rng.choice([10, 200, 700, 9000])))
    if rng.random() < 0.02:
        txn.drop_table("churn")
        txn.create_table("churn")


def audit(txn: toydb.Transaction) -> dict[int, list[int]]:
    """The bank as one transaction sees it; returns the journal's numbers by worker. Raises Wrong."""
    balances = dict.fromkeys(range(N_ACCOUNTS), START)
    lines: dict[int, list[int]] = {}
    for key, value in txn.table("journal").scan():
        worker, seq = KEY.unpack(key)
        lines.setdefault(worker, []).append(seq)
        a, b, amount = LINE.unpack_from(value)
        balances[a] -= amount
        balances[b] += amount
    seen = {int(key[-4:]): BALANCE.unpack_from(value)[0] for key, value in txn.table("accounts").scan(reverse=True)}
    if sum(seen.values()) != TOTAL:
        raise Wrong(f"there are {sum(seen.values())} in the accounts, not {TOTAL}")
    if seen != balances:
        raise Wrong(f"balances are not what the journal says: {[i for i in seen if seen[i] != balances.get(i)]}")
    statements = {value for _, value in txn.table("statements").scan()}
    if len(statements) > 1:
        raise Wrong(f"the statements are of {len(statements)} commits")
    return lines


def check_notes(directory: Path, lines: dict[int, list[int]]) -> int:
    """Compares the journal with what the processes noted; returns how many commits were noted. Raises Wrong."""
    committed = 0
    for path in directory.glob("notes-*"):
        worker = int(path.name.partition("-")[2])
        notes = [line.split() for line in path.read_text().splitlines()]
        begun = {int(seq) for kind, seq in notes if kind == "B"}
        done = {int(seq) for kind, seq in notes if kind == "C"}
        undone = {int(seq) for kind, seq in notes if kind == "R"}
        there = set(lines.get(worker, []))
        committed += len(done)
        if done - there:
            raise Wrong(f"worker {worker}: transfers {sorted(done - there)} were committed, and are lost")
        if there & undone or there - begun:
            raise Wrong(f"worker {worker}: transfers {sorted(there & undone | there - begun)} are there, uncommitted")
        if len(there - done) > 1:
            raise Wrong(f"worker {worker}: more than one transfer is in doubt: {sorted(there - done)}")
    return committed


class Change(Exception):
    """A transfer that is rolled back."""


def work(directory: Path, pool_name: str, worker: int, n: int) -> None:
    """One process of the bank: transfers, rollbacks, audits, checkpoints."""
    rng = random.Random(worker)
    notes = os.open(directory / f"notes-{worker}", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)

    def note(kind: str, seq: int) -> None:
        os.write(notes, b"%s %d\n" % (kind.encode(), seq))

    with open_bank(directory, pool_name) as db:
        found(db)
        for seq in range(n):
            kind = rng.random()
            if kind < 0.72:
                note("B", seq)
                with db.begin(write=True) as txn:
                    transfer(txn, rng, worker, seq)
                note("C", seq)
            elif kind < 0.75:
                with db.begin(write=True) as txn:
                    send_statements(txn, rng)
            elif kind < 0.85:
                note("B", seq)
                try:
                    with db.begin(write=True) as txn:
                        saved = txn.savepoint()
                        transfer(txn, rng, worker, seq)
                        if rng.random() < 0.5:
                            txn.rollback_to(saved)
                            transfer(txn, rng, worker, seq)
                        raise Change
                except Change:
                    note("R", seq)
            elif kind < 0.96:
                try:
                    with db.begin() as txn:
                        audit(txn)
                except toydb.SnapshotTooOld:
                    print("too old", file=sys.stderr)
            elif kind < 0.98:
                with db.begin(latest=True) as txn:
                    accounts = txn.table("accounts")
                    for i in range(N_ACCOUNTS):
                        if accounts.get(account(i)) is None:
                            raise Wrong(f"account {i} is not there, for a moment")
            else:
                db.checkpoint()


def verify(directory: Path, pool_name: str) -> int:
    """Everything that must hold; returns the number of commits that were noted. Raises Wrong."""
    with open_bank(directory, pool_name) as db:
        found(db)
        findings = db.check()
        if findings:
            raise Wrong(f"check: {findings}")
        with db.begin() as txn:
            lines = audit(txn)
        return check_notes(directory, lines)
