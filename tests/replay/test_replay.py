"""The replay: it verifies what is right, finds what is wrong, and leaves nothing behind."""

import io
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from bufferpool.replay import replay as module
from bufferpool.replay import stamped
from bufferpool.replay.replay import Options, Progress, load_trace, replay
from bufferpool.replay.stamped import ReplayFailed, build_file, stamp, stamps, verify, verify_file
from tests.conftest import WAIT, wait_until

SHM = Path("/dev/shm")


def go_on() -> None:
    """Nobody has stopped us."""


def pools_of(pid: int) -> list[Path]:
    return list(SHM.glob(f"replay-{pid}-*"))


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """20,000 accesses to 600 pages, some of them hot."""
    random = np.random.default_rng(5)
    path = tmp_path / "trace.npy"
    np.save(path, np.concatenate([np.arange(600), random.zipf(1.2, 19_400) % 600]) * 3)
    return path


@pytest.fixture
def temp(tmp_path: Path) -> Iterator[Path]:
    """The directory for the file; empty again at the end, and no pool left."""
    folder = tmp_path / "temp"
    folder.mkdir()
    yield folder
    left = pools_of(os.getpid())
    for path in left:
        path.unlink()
    assert not left
    assert list(folder.iterdir()) == []


# ---- stamps ------------------------------------------------------------------------


@pytest.mark.parametrize(("page_no", "version"), [(0, 0), (7, 1), (2**32 - 1, 2**32 - 1)])
def test_a_stamp_says_page_and_version(page_no: int, version: int) -> None:
    page = np.full(512, stamp(page_no, version), np.uint64)
    assert verify(page, page_no, version) == version
    assert stamps(np.uint64([page_no]), np.uint64([version]))[0] == page[0]


def test_a_wrong_page_is_told_apart() -> None:
    page = np.full(512, stamp(3, 4), np.uint64)
    with pytest.raises(ReplayFailed, match="content of page 3"):
        verify(page, 2, 0)
    with pytest.raises(ReplayFailed, match="from version 5 to 4"):
        verify(page, 3, 5)
    with pytest.raises(ReplayFailed, match="or of none"):
        verify(np.zeros(512, np.uint64), 0, 0)
    page[511] = stamp(3, 5)
    with pytest.raises(ReplayFailed, match=r"torn.* 2 different words"):
        verify(page, 3, 0)


def test_a_file_is_verified_to_the_page(tmp_path: Path) -> None:
    path = str(tmp_path / "db")
    build_file(path, 1200, 8192, go_on)
    versions = np.zeros(1200, np.uint64)
    verify_file(path, versions, 8192, go_on)
    versions[1100] = 2
    with pytest.raises(ReplayFailed, match=r"1 of 1200 pages .* page 1100 has version 0, and 2 were published"):
        verify_file(path, versions, 8192, go_on)
    with open(path, "r+b") as file:
        file.seek(1100 * 8192)
        np.full(1024, stamp(1100, 2), np.uint64).tofile(file)
    verify_file(path, versions, 8192, go_on)
    with open(path, "r+b") as file:
        file.seek(9 * 8192 + 4096)
        file.write(b"x")
    with pytest.raises(ReplayFailed, match="page 9 is torn"):
        verify_file(path, versions, 8192, go_on)
    os.truncate(path, 1199 * 8192)
    with pytest.raises(ReplayFailed, match="instead of"):
        verify_file(path, versions, 8192, go_on)


def test_a_file_that_does_not_fit_is_not_begun(tmp_path: Path) -> None:
    with pytest.raises(ReplayFailed, match="--temp"):
        build_file(str(tmp_path / "db"), 1 << 40, 8192, go_on)
    assert not (tmp_path / "db").exists()


# ---- traces ------------------------------------------------------------------------


def test_the_trace_of_the_package() -> None:
    pages = load_trace(None)
    assert len(pages) == 400_000
    assert np.array_equal(np.unique(pages), np.arange(7256))


def test_page_numbers_become_dense_in_order(tmp_path: Path) -> None:
    path = tmp_path / "t.npz"
    np.savez(path, other=np.zeros(3), pages=np.array([10**12, -5, 7, 7, 10**12]))
    assert load_trace(str(path)).tolist() == [2, 0, 1, 1, 2]
    assert load_trace(str(path), 3).tolist() == [2, 0, 1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no array at all", "no .npy or .npz file"),
        (b"", "no .npy or .npz file"),
        (b"PK\x03\x04 a broken archive", "no .npy or .npz file"),
        (np.zeros((3, 3), np.int64), "one row of page numbers"),
        (np.zeros(3), "one row of page numbers"),
        (np.int64(3), "one row of page numbers"),
        (np.zeros(0, np.int64), "one row of page numbers"),
        ({"a": np.zeros(3), "b": np.zeros(3)}, "an array 'pages'"),
    ],
)
def test_a_bad_trace_is_refused(tmp_path: Path, content: object, message: str) -> None:
    path = tmp_path / ("t.npz" if isinstance(content, dict) else "t.npy")
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, dict):
        np.savez(path, **content)
    else:
        np.save(path, content)
    with pytest.raises(ReplayFailed, match=message):
        load_trace(str(path))


@pytest.mark.parametrize(
    "wrong",
    [
        {"processes": 0},
        {"writes": 1.5},
        {"writes": -0.1},
        {"repeat": 0},
        {"limit": 0},
        {"page_size": 5000},
        {"capacity": 1},
    ],
)
def test_bad_options(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Options(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("page_size", [4096, 8192, 1 << 30])
def test_options_need_no_capacity(page_size: int) -> None:
    """The default was checked as a capacity of 1 TiB, which no pool may have any more: `bufferpool doctor` ended in a traceback."""
    assert Options(page_size=page_size).capacity is None


# ---- the whole -----------------------------------------------------------------------


def test_a_replay_verifies(trace: Path, temp: Path) -> None:
    out = io.StringIO()
    report = replay(Options(str(trace), processes=3, page_size=4096, writes=0.3, repeat=3, temp=str(temp)), out)
    stats = report.stats
    assert report.accesses == 60_000
    assert 60_000 <= stats.hits + stats.misses < 60_600  # an evicted page may be missed twice by its write
    assert stats.publishes == report.writes
    assert 0.25 < report.writes / report.accesses < 0.35
    assert stats.resident_bytes == stats.kernel_data_bytes
    assert report.trimmed.pool == report.trimmed.kernel == report.reclaimed["trim"] > 0
    assert report.lowered.pool <= report.reclaimed["budget"]
    assert stats.budget_bytes in (600 * 1024, 600 * 512)  # halved, and mostly restored
    assert "600 of 600" in report.table()
    assert "budget now" in out.getvalue()


@pytest.mark.parametrize(("writes", "processes"), [(0.0, 1), (1.0, 2)])
def test_only_reads_and_only_writes(trace: Path, temp: Path, writes: float, processes: int) -> None:
    report = replay(Options(str(trace), processes=processes, writes=writes, temp=str(temp)), io.StringIO())
    assert report.writes == (20_000 if writes else 0)


def test_more_workers_than_work(trace: Path, temp: Path) -> None:
    assert replay(Options(str(trace), processes=3, limit=10, temp=str(temp)), io.StringIO()).accesses == 10


def test_a_worker_that_reads_a_wrong_page_says_so(trace: Path, temp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def spoiled(path: str, pages: int, page_size: int, may_go_on: object) -> None:
        build_file(path, pages, page_size, go_on)
        with open(path, "r+b") as file:
            file.seek(17 * page_size + 4000)
            file.write(b"spoiled!")

    monkeypatch.setattr(module, "build_file", spoiled)
    with pytest.raises(ReplayFailed, match=r"worker [01]: page 17 is torn"):
        replay(Options(str(trace), processes=2, writes=0.0, temp=str(temp)), io.StringIO())


def test_a_lost_write_is_found(trace: Path, temp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def one_more(path: str, versions: stamped.Words, page_size: int, may_go_on: object) -> None:
        versions[5] += np.uint64(1)
        verify_file(path, versions, page_size, go_on)

    monkeypatch.setattr(module, "verify_file", one_more)
    with pytest.raises(ReplayFailed, match="page 5 has version"):
        replay(Options(str(trace), processes=2, temp=str(temp)), io.StringIO())


def test_a_worker_that_cannot_attach_says_why(trace: Path, temp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.Job, "database", property(lambda self: os.path.join(self.folder, "db")))
    with pytest.raises(ReplayFailed, match=r"worker [01]: FileNotFoundError: .*replay\.db"):
        replay(Options(str(trace), processes=2, temp=str(temp)), io.StringIO())


def test_progress_on_a_terminal_is_one_line(trace: Path, temp: Path) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    out = Terminal()
    stats = replay(Options(str(trace), processes=1, temp=str(temp)), io.StringIO()).stats
    progress = Progress(out, 100)
    progress.show(50, stats)
    progress.show(51, stats)  # too early for another
    progress.show(100, stats, last=True)
    progress.say("said")
    lines = out.getvalue().split("\r")
    assert len(lines) == 3
    assert lines[1].startswith(" 50%  hits ")
    assert lines[2].endswith("\x1b[K\nsaid\n")


# ---- early ends ------------------------------------------------------------------------


def start(temp: Path, *more: str) -> "subprocess.Popen[str]":
    """A replay that would take minutes, at work."""
    command = [sys.executable, "-m", "bufferpool.cli", "replay", "--demo", "--repeat", "1000", "--writes", "0.01"]
    child = subprocess.Popen(
        [*command, "--processes", "2", "--temp", str(temp), *more],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert child.stdout is not None
    for line in child.stdout:
        if "hits" in line:
            return child
    out, err = child.communicate()
    raise AssertionError(f"the replay ended early: {out} {err}")


def finish(child: "subprocess.Popen[str]") -> tuple[int, str]:
    try:
        _, err = child.communicate(timeout=WAIT)
    finally:
        child.kill()
        child.wait()
    left = pools_of(child.pid)
    for path in left:
        path.unlink()
    assert not left
    return child.returncode, err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_cleanly(temp: Path, number: signal.Signals) -> None:
    child = start(temp)
    os.killpg(child.pid, number)
    code, err = finish(child)
    assert code == 128 + number
    assert err.count("\n") == 1
    assert f"stopped by {number.name}" in err


def workers_of(pid: int) -> list[int]:
    """The children of a process that run workers."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes():
                found.append(int(child))
    return found


def runs(pid: int) -> bool:
    """Whether a process runs; one that has ended may stay until somebody asks for its exit code."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_killed_worker_is_reported(temp: Path) -> None:
    child = start(temp)
    os.kill(workers_of(child.pid)[0], signal.SIGKILL)
    code, err = finish(child)
    assert code == 1
    assert "was killed by" in err
    assert "(signal 9)" in err


def test_workers_end_when_the_parent_is_killed(tmp_path: Path) -> None:
    child = start(tmp_path)
    workers = workers_of(child.pid)
    assert len(workers) == 2
    child.kill()
    child.communicate()
    left = pools_of(child.pid)
    for path in left:
        path.unlink()
    assert len(left) == 1
    wait_until(lambda: not any(map(runs, workers)), "the workers end")
