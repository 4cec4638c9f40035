"""The advice: its error, its memory, and what is left of it after a death or damage."""

import json
import os
import signal
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bufferpool as bp
from bufferpool import _core, cli
from bufferpool.figures import advice
from bufferpool.figures.advice import advise_trace
from tests.conftest import ROOT, wait_until

TRACE = Path(bp.__file__).parent / "replay" / "traces" / "tpcc.npz"
PAGE = 4096
AREA_LIMIT = 512 << 10


@pytest.fixture(scope="module")
def tpcc() -> np.ndarray:
    return np.load(TRACE)["pages"]


def read_all(pool: bp.Pool, path: str, trace: np.ndarray) -> None:
    space = pool.open_file(path)
    for start in range(0, len(trace), 64):
        space.read_many(trace[start : start + 64])


def pages_of(tmp_path: Path, trace: np.ndarray) -> str:
    path = tmp_path / "pages"
    with open(path, "wb") as file:
        file.truncate(PAGE * (int(trace.max()) + 1))
    return str(path)


def exact(trace: np.ndarray, frames: int) -> float:
    return bp.simulate(trace, frames).miss_ratio


def advised(make_pool: Any, tmp_path: Path, trace: np.ndarray, frames: int = 700) -> tuple[bp.Pool, str]:
    pool, path = make_pool(frames * PAGE), pages_of(tmp_path, trace)
    read_all(pool, path, trace)
    return pool, path


def advice_at() -> int:
    return _core.fields()["Geometry.advice_at"][0]


def damage(pool: bp.Pool, byte: int) -> None:
    """Fills the advice area."""
    with open(pool.path, "r+b", buffering=0) as file:
        file.seek(_core.fields()["Header.geometry"][0] + advice_at())
        at, end = struct.unpack("<QQ", file.read(16))  # entries_at follows
        assert 0 < at < end <= at + AREA_LIMIT + 4096
        end = min(end, os.lseek(file.fileno(), at, os.SEEK_HOLE))  # it has memory as far as that
        file.seek(at)
        file.write(bytes([byte]) * (end - at))


@pytest.mark.parametrize("share", [0.05, 0.2])
def test_the_error_on_a_database_trace(tpcc: np.ndarray, share: float) -> None:
    frames = int(share * len(np.unique(tpcc)))
    found = advise_trace(tpcc, frames)
    assert found.frames[0] == round(frames / 8)
    assert found.frames[-1] == 8 * frames
    error = np.abs(found.miss_ratios - [exact(tpcc, n) for n in found.frames])
    assert error.mean() <= 0.02
    assert found.sampling_rate <= 0.5


def test_a_loop_and_a_scan_have_their_share_in_the_sample() -> None:
    loop = np.tile(np.arange(3000), 30)
    found = advise_trace(loop, 1000, least_shift=4)
    assert np.abs(found.miss_ratios - [exact(loop, n) for n in found.frames]).mean() <= 0.03
    scan = np.arange(100_000)
    assert advise_trace(scan, 1000).miss_ratios.min() > 0.97


def test_full_rows_lower_the_rate_and_the_memory_stays() -> None:
    rng = np.random.default_rng(1)
    many = rng.integers(0, 200_000, 600_000)
    found = advise_trace(many, 20_000)
    assert found.area_bytes <= AREA_LIMIT
    assert np.abs(found.miss_ratios - [exact(many, n) for n in found.frames]).mean() <= 0.02
    assert advise_trace(np.arange(10), 2**30).area_bytes <= AREA_LIMIT


def test_there_is_no_advice_before_there_are_references(pool: bp.Pool) -> None:
    found = pool.advise()
    assert (found.points, found.present, found.references) == ((), None, 0)


def test_the_pool_advises_what_the_simulator_says(make_pool, tmp_path: Path, tpcc: np.ndarray) -> None:
    pool, _ = advised(make_pool, tmp_path, tpcc)
    found = pool.advise()
    assert [p.budget_frames for p in found.points][4] == found.budget_frames == 700
    assert [p.budget_bytes for p in found.points] == [p.budget_frames * PAGE for p in found.points]
    miss = np.array([1 - p.hit_ratio for p in found.points])
    assert (np.diff(miss) <= 0).all()
    assert np.abs(miss - [exact(tpcc, p.budget_frames) for p in found.points]).mean() <= 0.1
    for p in found.points:
        assert p.misses_per_s == pytest.approx((1 - p.hit_ratio) * found.references_per_s)
    assert found.references_per_s > 0
    assert found.resets == 1


def test_a_few_references_do_not_blind_it(make_pool, tmp_path: Path) -> None:
    """None of a few has to miss in the smallest shadow: an epoch that is as long as that says would never end."""
    trace = np.random.default_rng(1).integers(0, 600, 60_000)
    pool, path = make_pool(600 * PAGE), pages_of(tmp_path, trace)
    space = pool.open_file(path)
    read_all(pool, path, trace)
    for _ in range(5):
        assert space[5].size
        pool.advise()  # ends the window, as a second does
    for part in np.split(trace, 20):
        space.read_many(part)
        pool.advise()
    smallest = pool.advise().points[0]
    assert smallest.budget_frames == 75
    assert abs(1 - smallest.hit_ratio - exact(trace, 75)) <= 0.1


def test_recording_can_be_switched_off_and_on_again(make_pool, tmp_path: Path, tpcc: np.ndarray) -> None:
    """For the benchmark of what it costs: what is referenced meanwhile is as if it had not been."""
    pool, path = advised(make_pool, tmp_path, tpcc)
    before = pool.advise().references
    for _ in range(2):
        pool.client.seg.sampling(False)
    read_all(pool, path, tpcc)
    for _ in range(2):
        pool.client.seg.sampling(True)
    assert pool.advise().references == before
    read_all(pool, path, tpcc)
    assert pool.advise().references > before


def test_several_processes_feed_it(make_pool, tmp_path: Path, child, tpcc: np.ndarray) -> None:
    pool, path = make_pool(700 * PAGE), pages_of(tmp_path, tpcc)
    workers = [child(read_all, pool, path, tpcc[i::3]) for i in range(3)]
    for worker in workers:
        worker.result()
    found = pool.advise()
    miss = np.array([1 - p.hit_ratio for p in found.points])
    assert np.abs(miss - [exact(tpcc, p.budget_frames) for p in found.points]).mean() <= 0.12


def test_another_budget_moves_the_curve_and_keeps_the_pages(make_pool, tmp_path: Path, tpcc: np.ndarray) -> None:
    pool, _ = advised(make_pool, tmp_path, tpcc)
    before = pool.advise()
    pool.resize(350 * PAGE)
    after = pool.advise()
    assert after.resets == before.resets == 1
    assert after.budget_frames == 350
    assert after.references >= before.references
    ratios = {p.budget_frames: p.hit_ratio for p in before.points}
    shared = [p for p in after.points if p.budget_frames in ratios and p.budget_frames != 350]
    assert len(shared) >= 3


def test_a_client_that_dies_at_work_on_it_costs_the_advice_only(make_pool, tmp_path: Path, tpcc: np.ndarray) -> None:
    pool, path = advised(make_pool, tmp_path, tpcc)
    code = (
        "import sys, time, bufferpool as bp\n"
        "pool = bp.Pool.attach(sys.argv[1])\n"
        "print(max(c.client for c in pool.clients()), flush=True)\n"
        "time.sleep(100)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, pool.name], cwd=ROOT, stdout=subprocess.PIPE) as victim:
        assert victim.stdout is not None
        client = int(victim.stdout.readline())
        with open(pool.path, "r+b", buffering=0) as file:  # as if it were at work
            file.seek(_core.fields()["Header.advice.word"][0])
            file.write(struct.pack("<I", client))
        victim.send_signal(signal.SIGKILL)
        victim.wait()
    found = pool.advise()
    assert found.resets == 2
    assert found.points == ()
    pool.reap()
    read_all(pool, path, tpcc[:100_000])
    assert pool.check() == []


@pytest.mark.parametrize("byte", [0xFF, 0x01, 0x5A])
def test_a_damaged_area_ends_in_figures_not_in_a_crash(byte: int, make_pool, tmp_path: Path, tpcc: np.ndarray) -> None:
    pool, path = advised(make_pool, tmp_path, tpcc[:50_000])
    damage(pool, byte)
    read_all(pool, path, tpcc[:50_000])
    for p in pool.advise().points:
        assert 0 <= p.hit_ratio <= 1


def test_a_forked_child_and_an_idle_pool(make_pool, tmp_path: Path, child, tpcc: np.ndarray) -> None:
    pool, path = make_pool(700 * PAGE), pages_of(tmp_path, tpcc)
    child(read_all, pool, path, tpcc[:100_000], context="fork").result()
    wait_until(lambda: pool.advise().references > 0, "what the child saw")


def test_the_command(make_pool, tmp_path: Path, tpcc: np.ndarray, capsys: pytest.CaptureFixture[str]) -> None:
    pool, _ = advised(make_pool, tmp_path, tpcc)
    assert cli.main(["advise", pool.name]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.endswith("<- now") for line in lines].count(True) == 1
    assert len(lines) == 12
    for kind, magic in (("png", b"\x89PNG"), ("svg", b"<?xml")):
        file = tmp_path / f"curve.{kind}"
        assert cli.main(["advise", pool.name, "--json", "--plot", str(file)]) == 0
        assert file.read_bytes().startswith(magic)
    found = json.loads(capsys.readouterr().out.split("\n}\n")[0] + "}")
    assert (len(found["points"]), found["page_size"]) == (9, PAGE)
    with pytest.raises(SystemExit):
        cli.main(["advise", pool.name, "--plot", "curve.txt"])


def test_a_plot_without_matplotlib_says_what_to_install(
    make_pool, tmp_path: Path, tpcc: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool, _ = advised(make_pool, tmp_path, tpcc[:50_000])
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(bp.errors.BufferPoolError, match="pip install matplotlib"):
        advice.plot(pool.advise(), tmp_path / "curve.png", "curve")
