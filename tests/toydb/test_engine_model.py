"""The engine against dicts: tables, transactions, savepoints, snapshots, two handles, reopening warm and cold."""

import copy
import random
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

import toydb
from tests.conftest import SHM, new_name, remove

Tables = dict[str, dict[bytes, bytes]]

NAMES = st.sampled_from(["a", "b", "c"])
KEYS = st.one_of(
    st.integers(0, 400).map(lambda i: b"%04d" % i),
    st.integers(0, 40).map(lambda i: b"long-%04d-" % i + b"x" * (i * 18)),
    st.binary(max_size=6),
)
VALUES = st.one_of(
    st.binary(max_size=20), st.tuples(st.integers(0, 9000), st.integers(0, 255)).map(lambda t: bytes([t[1]]) * t[0])
)


class EngineModel(RuleBasedStateMachine):
    @initialize()
    def start(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="bptest-model-", dir=SHM))
        self.pool_name = new_name()
        self.committed: Tables = {}
        self.handles = [self._open(), self._open()]
        self.txn: toydb.Transaction | None = None
        self.working: Tables = {}
        self.savepoints: list[Tables] = []
        self.snapshots: list[tuple[toydb.Transaction, Tables]] = []

    def _open(self) -> toydb.Database:
        return toydb.Database.open(
            self.directory / "m.db", capacity="4MiB", pool_name=self.pool_name, checkpoint_bytes="256KiB"
        )

    def teardown(self) -> None:
        if not hasattr(self, "handles"):
            return
        try:
            for snapshot in self.snapshots:
                self._compare(*snapshot)
                snapshot[0].commit()
            if self.txn is not None:
                self.txn.rollback()
            with self.handles[1].begin() as txn:
                self._compare(txn, self.committed)
            assert self.handles[0].check() == []
        finally:
            for handle in self.handles:
                handle.close()
            shutil.rmtree(self.directory)
            remove(SHM / self.pool_name)

    def _compare(self, txn: toydb.Transaction, wanted: Tables) -> None:
        assert txn.tables() == sorted(wanted)
        for name, rows in wanted.items():
            table = txn.table(name)
            assert list(table.scan()) == sorted(rows.items())
            assert list(table.scan(reverse=True)) == sorted(rows.items(), reverse=True)
            assert table.meta == name.encode() * 3

    # ---- writing -----------------------------------------------------------------

    @precondition(lambda self: self.txn is None)
    @rule(which=st.integers(0, 1))
    def begin(self, which: int) -> None:
        self.txn = self.handles[which].begin(write=True)
        self.working, self.savepoints = copy.deepcopy(self.committed), []

    @precondition(lambda self: self.txn is not None)
    @rule(name=NAMES)
    def create_or_drop(self, name: str) -> None:
        assert self.txn is not None
        if name in self.working and len(self.working[name]) % 3 == 0:
            self.txn.drop_table(name)
            del self.working[name]
        elif name in self.working:
            with pytest.raises(toydb.TableExists):
                self.txn.create_table(name)
        else:
            self.txn.create_table(name, name.encode() * 3)
            self.working[name] = {}

    @precondition(lambda self: self.txn is not None and self.working)
    @rule(name=NAMES, key=KEYS, value=VALUES, replace=st.booleans())
    def put(self, name: str, key: bytes, value: bytes, replace: bool) -> None:
        assert self.txn is not None
        if name not in self.working:
            with pytest.raises(toydb.NoSuchTable):
                self.txn.table(name)
            return
        rows, table = self.working[name], self.txn.table(name)
        if not replace and key in rows:
            with pytest.raises(toydb.KeyExists):
                table.insert(key, value)
            return
        (table.put if replace else table.insert)(key, value)
        rows[key] = value

    @precondition(lambda self: self.txn is not None and self.working)
    @rule(name=NAMES, key=KEYS)
    def delete(self, name: str, key: bytes) -> None:
        if name in self.working and self.txn is not None:
            assert self.txn.table(name).delete(key) == (self.working[name].pop(key, None) is not None)

    @precondition(lambda self: self.txn is not None and self.working)
    @rule(name=NAMES, seed=st.integers(0, 2**32), n=st.integers(1, 300), fraction=st.floats(0, 1))
    def many(self, name: str, seed: int, n: int, fraction: float) -> None:
        """So that trees have several levels, and lose them again."""
        if name not in self.working or self.txn is None:
            return
        rng, rows, table = random.Random(seed), self.working[name], self.txn.table(name)
        for _ in range(n):
            key = b"%04d" % rng.randrange(400) + b"-" * rng.choice([0, 0, 0, 300])
            if rng.random() < fraction:
                table.put(key, value := rng.randbytes(rng.choice([0, 30, 30, 400, 5000])))
                rows[key] = value
            else:
                assert table.delete(key) == (rows.pop(key, None) is not None)

    @precondition(lambda self: self.txn is not None)
    @rule()
    def savepoint(self) -> None:
        assert self.txn is not None
        assert self.txn.savepoint() == len(self.savepoints)
        self.savepoints.append(copy.deepcopy(self.working))

    @precondition(lambda self: self.txn is not None and self.savepoints)
    @rule(data=st.data(), release=st.booleans())
    def end_savepoint(self, data: st.DataObject, release: bool) -> None:
        assert self.txn is not None
        i = data.draw(st.integers(0, len(self.savepoints) - 1))
        if release:
            self.txn.release(i)
            del self.savepoints[i:]
        else:
            self.txn.rollback_to(i)
            self.working = copy.deepcopy(self.savepoints[i])
            del self.savepoints[i + 1 :]

    @precondition(lambda self: self.txn is not None)
    @rule(commit=st.booleans())
    def end(self, commit: bool) -> None:
        assert self.txn is not None
        self._compare(self.txn, self.working)
        if commit:
            self.txn.commit()
            self.committed = self.working
        else:
            self.txn.rollback()
        self.txn = None

    # ---- reading -------------------------------------------------------------------

    @precondition(lambda self: len(self.snapshots) < 4)
    @rule(which=st.integers(0, 1))
    def snapshot(self, which: int) -> None:
        self.snapshots.append((self.handles[which].begin(), copy.deepcopy(self.committed)))

    @precondition(lambda self: self.snapshots)
    @rule(data=st.data(), end=st.booleans())
    def look(self, data: st.DataObject, end: bool) -> None:
        i = data.draw(st.integers(0, len(self.snapshots) - 1))
        self._compare(*self.snapshots[i])
        if end:
            self.snapshots.pop(i)[0].rollback()

    @precondition(lambda self: self.working)
    @rule(name=NAMES, lo=KEYS, hi=KEYS, lo_open=st.booleans(), hi_open=st.booleans(), reverse=st.booleans())
    def scan(self, name: str, lo: bytes, hi: bytes, lo_open: bool, hi_open: bool, reverse: bool) -> None:
        for txn, tables in [*self.snapshots, (self.txn, self.working)]:
            if txn is None or name not in tables:
                continue
            wanted = [
                (key, value)
                for key, value in sorted(tables[name].items(), reverse=reverse)
                if (key > lo or (key == lo and not lo_open)) and (key < hi or (key == hi and not hi_open))
            ]
            assert list(txn.table(name).scan(lo, hi, lo_open=lo_open, hi_open=hi_open, reverse=reverse)) == wanted
            assert txn.table(name).get(lo) == tables[name].get(lo)

    @rule(which=st.integers(0, 1))
    def latest(self, which: int) -> None:
        with self.handles[which].begin(latest=True) as txn:
            self._compare(txn, self.committed)

    # ---- the rest --------------------------------------------------------------------

    @precondition(lambda self: self.txn is None)
    @rule(which=st.integers(0, 1))
    def checkpoint(self, which: int) -> None:
        self.handles[which].checkpoint()

    @rule(cold=st.booleans())
    def reopen(self, cold: bool) -> None:
        """All open transactions are lost; what was committed is kept."""
        for handle in self.handles:
            handle.close()
        if cold:
            remove(SHM / self.pool_name)
        self.txn, self.snapshots, self.savepoints, self.working = None, [], [], {}
        self.handles = [self._open(), self._open()]


CHECKS = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]


def test_the_engine_is_a_dict_of_dicts() -> None:
    run_state_machine_as_test(
        EngineModel,
        settings=settings(max_examples=40, stateful_step_count=40, deadline=None, suppress_health_check=CHECKS),
    )


@pytest.mark.soak
def test_the_engine_is_a_dict_of_dicts_for_long() -> None:
    run_state_machine_as_test(
        EngineModel,
        settings=settings(max_examples=1500, stateful_step_count=80, deadline=None, suppress_health_check=CHECKS),
    )
