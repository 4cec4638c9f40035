"""Power failures of a database: a workload is recorded, and every state that a crash could leave is recovered.

    python -m tests.toydb.power --states 10000      that many crash states
    python -m tests.toydb.power --seed 3 --break log    without a sync: what is lost then is found

Two handles commit in two threads, beside a reader and checkpoints. Each commit has a number, which it writes into the
table; the workload notes it before the commit, when the commit has returned, and when a snapshot has seen it. After a crash
the database must have exactly the rows that were there after some commit, not before the last that was
acknowledged or seen, and not after the last that was begun. Some crash states are worked on, and crash again.

Prints a report as JSON; ends with 1 if anything was lost.
"""

import contextlib
import gc
import random
import shutil
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
    sys.path.insert(0, str(Path(__file__).parents[2]))

import toydb
from bufferpool.stores.base import FileStore
from tests.support import deaths
from tests.support.power_loss import FATES, Recorder, Rename, Trace, contents, crash, everything, put_back

Rows = dict[bytes, bytes]

NUMBER = b"number"  # the key of a commit's number
PAGE_SIZES = (4096, 8192)
COMMITS = 40
STATES_PER_TRACE = 120
AGAIN = 0.02  # how many crash states are worked on, and crash again
STATES_AGAIN = 6


@dataclass
class Report(deaths.Report):
    states: int = 0
    by_fate: dict[str, int] = field(default_factory=lambda: dict.fromkeys(FATES, 0))
    commits: int = 0
    events: int = 0
    segments: int = 0
    crashed_again: int = 0


class WorkloadFailed(AssertionError):
    """The database has raised an exception while it was in use."""


class Model:
    """The rows after each commit: ``states[n]`` has those after commit ``n``, ``states[0]`` is the empty database."""

    def __init__(self, states: list[Rows] | None = None) -> None:
        self.states = states or [{}]

    def commit(self, db: toydb.Database, recorder: Recorder, rng: random.Random) -> None:
        """One transaction. The write lock makes its number unique."""
        with db.begin(write=True) as txn:
            rows, number = dict(self.states[-1]), len(self.states)
            table = txn.table("t") if rows else txn.create_table("t")
            if rows and rng.random() < 0.05:
                txn.drop_table("t")
                table, rows = txn.create_table("t"), {}
            change(table, rows, rng)
            rows[NUMBER] = b"%d" % number
            table.put(NUMBER, rows[NUMBER])
            self.states.append(rows)
            recorder.note("begun", number)
        recorder.note("acknowledged", number)


def change(table: toydb.Table, rows: Rows, rng: random.Random) -> None:
    """Changes some rows; sometimes so many that the pool has no room for all of their pages."""
    many = rng.random() < 0.06
    for _ in range(150 if many else rng.randrange(1, 6)):
        key = b"%03d" % rng.randrange(200) * rng.choice([1, 1, 1, 40])
        if key in rows and rng.random() < 0.3:
            table.delete(key)
            del rows[key]
        else:
            rows[key] = rng.randbytes(rng.choice([400, 700] if many else [8, 80, 300, 700, 9000]))
            table.put(key, rows[key])


def open_database(folder: Path, pool_name: str) -> toydb.Database:
    """A database has a page size of its own; of a new one it follows from the pool's name."""
    page_size = int(pool_name.rpartition("-")[2])
    return toydb.Database.open(
        folder / "a.db", capacity=64 * page_size, pool_name=pool_name, checkpoint_bytes="96KiB", page_size=page_size
    )


def work(folder: Path, pool_name: str, model: Model, rng: random.Random, commits: int) -> Trace:
    """Runs a workload on the database in a folder; returns what happened to its files."""
    recorder, failures = Recorder(folder), list[str]()
    last = len(model.states) + commits

    def each(step: Callable[[toydb.Database], None]) -> None:
        try:
            with open_database(folder, pool_name) as db:
                while len(model.states) < last and not failures:
                    step(db)
        except BaseException:  # noqa: BLE001  raised below
            failures.append(traceback.format_exc())

    def commit(db: toydb.Database) -> None:
        model.commit(db, recorder, writers.setdefault(threading.get_ident(), random.Random(rng.random())))

    def read(db: toydb.Database) -> None:
        with contextlib.suppress(toydb.SnapshotTooOld), db.begin() as txn:
            if "t" in txn.tables() and (number := txn.table("t").get(NUMBER)) is not None:
                recorder.note("seen", int(number))

    writers: dict[int, random.Random] = {}
    with recorder.recording():
        threads = [threading.Thread(target=each, args=[step]) for step in (commit, commit, read)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    if failures:
        raise WorkloadFailed("the workload failed:\n" + "\n".join(failures))
    if everything(recorder.trace) != contents(folder):
        raise AssertionError("the recorder has missed a write")
    return recorder.trace


class Campaign:
    """Crash states of many traces, each recovered and checked."""

    def __init__(self, report: Report, seed: int) -> None:
        self.report = report
        self.rng = random.Random(seed)
        self.folder = Path(tempfile.mkdtemp(prefix="bptest-power-", dir="/dev/shm"))
        self.pool_name = f"{self.folder.name}-{PAGE_SIZES[0]}"
        self.seed = seed

    def __enter__(self) -> "Campaign":
        return self

    def __exit__(self, *_: object) -> None:
        gc.collect()  # the traceback of a database that did not open holds its pool
        self._remove_pool()
        shutil.rmtree(self.folder)

    def _remove_pool(self) -> None:
        Path("/dev/shm", self.pool_name).unlink(missing_ok=True)

    def run(self, states: int, *, until_found: bool = False) -> None:
        """Examines that many states, or stops at the first one from which something is lost."""
        while self.report.states < states:
            model = Model()
            self._remove_pool()
            self.pool_name = f"{self.folder.name}-{self.rng.choice(PAGE_SIZES)}"
            trace = self._record({}, model, COMMITS)
            for _ in range(min(STATES_PER_TRACE, states - self.report.states)):
                self.examine(trace, model)
                if until_found and self.report.findings:
                    return

    def _record(self, files: dict[str, bytes], model: Model, commits: int) -> Trace:
        before = len(model.states)
        put_back(files, self.folder)
        self._remove_pool()
        trace = work(self.folder, self.pool_name, model, self.rng, commits)
        self._remove_pool()
        self.report.commits += len(model.states) - before
        self.report.events += len(trace.events)
        self.report.segments += sum(isinstance(event, Rename) for event in trace.events)
        return trace

    def examine(self, trace: Trace, model: Model, begins_at: int = 0) -> None:
        """Builds one crash state and recovers it; perhaps uses it, and crashes it again.

        ``begins_at``: the number of the last commit that the trace began with.
        """
        at, fate = self.rng.randint(0, len(trace.events)), self.rng.choice(FATES)
        files = crash(trace, at, fate, self.rng)
        first = max(begins_at, trace.noted(at, "acknowledged", "seen"))
        put_back(files, self.folder)
        self._remove_pool()
        self.report.states += 1
        self.report.by_fate[fate] += 1
        what = f"seed {self.seed}, state {self.report.states}, before event {at} of {len(trace.events)}, writes {fate}"
        number = self._recover(model, first, max(first, trace.noted(at, "begun")), what)
        self._remove_pool()
        if number is not None and len(trace.before) == 0 and self.rng.random() < AGAIN:
            self.report.crashed_again += 1
            longer = Model(model.states[: number + 1])
            try:
                again = self._record(files, longer, 4)
            except WorkloadFailed as error:
                self.report.findings.append(f"{what}, and then more commits: {error}")
                return
            for _ in range(STATES_AGAIN):
                self.examine(again, longer, number)

    def _recover(self, model: Model, first: int, last: int, what: str) -> int | None:
        """Recovers the database; returns the number of its last commit, None if something is wrong with it."""
        try:
            with open_database(self.folder, self.pool_name) as db:
                with db.begin() as txn:
                    rows = dict(txn.table("t").scan()) if "t" in txn.tables() else {}
                wrong = db.check()
            number = int(rows.get(NUMBER, b"0"))
        except Exception as error:  # noqa: BLE001  of any type: code that reads damaged pages may raise anything
            wrong, rows, number = [f"it does not open: {type(error).__name__}: {error}"], {}, 0
        if not wrong and not first <= number <= last:
            wrong = [f"commits {first} to {last} may be the last, but it has {number}"]
        if not wrong and rows != model.states[number]:
            wrong = [f"its rows are not those of commit {number}"]
        self.report.findings += [f"{what}: {finding}" for finding in wrong]
        self.report.verified += not wrong
        return None if wrong else number


# ---- mistakes that it must find --------------------------------------------------------


@contextlib.contextmanager
def without_log_sync() -> Iterator[None]:
    """A commit returns before its record is synced."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("toydb.log.Log.sync", lambda log, segment: None)
        yield


@contextlib.contextmanager
def without_folder_sync() -> Iterator[None]:
    """A new segment is used before its name is durable."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("toydb.log.sync_directory", lambda path: None)
        yield


@contextlib.contextmanager
def without_page_sync() -> Iterator[None]:
    """A checkpoint removes the log of pages that were written, but not synced."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(FileStore, "sync", lambda store: None)
        yield


@contextlib.contextmanager
def without_write_ahead() -> Iterator[None]:
    """Pages reach the data file before the log has their changes."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("toydb.engine.Engine.sync_log", lambda engine, lsn: engine.pool.advance_durable_lsn(lsn) or lsn)
        yield


BREAKS = {
    "nothing": contextlib.nullcontext,
    "log": without_log_sync,
    "folder": without_folder_sync,
    "pages": without_page_sync,
    "ahead": without_write_ahead,
}


def main() -> None:
    parser = deaths.arguments(__doc__)
    parser.add_argument("--states", type=int, default=1000, help="crash states")
    parser.add_argument("--break", dest="broken", choices=BREAKS, default="nothing", help="what to leave out")
    args = parser.parse_args()
    report = Report()
    with BREAKS[args.broken](), Campaign(report, args.seed) as campaign:
        campaign.run(args.states, until_found=args.broken != "nothing")
    report.tell()


if __name__ == "__main__":
    main()
