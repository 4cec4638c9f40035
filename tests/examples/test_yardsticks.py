"""What the policy is measured beside (benchmarks/): OPT is the best there is, and the bars can be missed."""

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.harness import Pairs
from benchmarks.yardsticks import fifo_misses, lru_misses, opt_misses
from tests.conftest import ROOT, WAIT

BENCHMARKS = ROOT / "benchmarks"


def best_misses(pages: tuple[int, ...], frames: int) -> int:
    """By trying every choice."""
    states = {frozenset[int](): 0}
    for page in pages:
        reached: dict[frozenset[int], int] = {}
        for state, misses in states.items():
            if page in state:
                nexts = [(state, misses)]
            elif len(state) < frames:
                nexts = [(state | {page}, misses + 1)]
            else:
                nexts = [(state - {victim} | {page}, misses + 1) for victim in state]
            for after, count in nexts:
                reached[after] = min(count, reached.get(after, count))
        states = reached
    return min(states.values())


def test_opt_is_the_best_of_all_choices() -> None:
    rng = np.random.default_rng(1)
    for _ in range(60):
        pages, frames = rng.integers(0, 7, 40), int(rng.integers(1, 6))
        best = best_misses(tuple(pages.tolist()), frames)
        assert opt_misses(pages, frames) == best
        assert lru_misses(pages, frames) >= best
        assert fifo_misses(pages, frames) >= best


def test_opt_clears_its_heap_on_the_way() -> None:
    loop = np.tile(np.arange(50), 400)
    assert opt_misses(loop, 50) == 50
    assert opt_misses(np.tile(np.arange(3), 4000), 2) == best_misses((0, 1, 2) * 4000, 2)


@pytest.mark.parametrize(("published", "code"), [(None, 0), ("FIFO", 0), ("wrong", 1)])
def test_the_benchmark_ends_by_its_bars(published: str | None, code: int, tmp_path: Path) -> None:
    loop = np.tile(np.arange(200), 30)
    np.savez(tmp_path / "loop.npz", pages=loop)
    command = [sys.executable, str(BENCHMARKS / "policy.py"), str(tmp_path)]
    if published:
        ratio = fifo_misses(loop, 100) / len(loop) - (0.01 if published == "wrong" else 0)
        (tmp_path / "figures.csv").write_text(f"trace,policy,cache_pages,miss_ratio\nloop,FIFO,100,{ratio:.6f}\n")
        command += ["--published", str(tmp_path / "figures.csv")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    assert "bufferpool" in done.stdout


def test_a_trace_that_the_policy_is_bad_at_misses_the_bar(tmp_path: Path) -> None:
    there, back = np.arange(200), np.arange(200)[::-1]
    np.savez(tmp_path / "zigzag.npz", pages=np.tile(np.concatenate([there, back[:110]]), 20))
    command = [sys.executable, str(BENCHMARKS / "policy.py"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT, check=False)
    assert (done.returncode, "MISSED" in done.stdout) == (1, True), done.stdout + done.stderr


def _row_calls() -> "dict[str, ast.Call]":
    """The calls that make rows of the table, by file and line."""
    return {
        f"{path.name}:{node.lineno}": node
        for path in sorted(BENCHMARKS.glob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "row"
    }


def test_every_row_is_made_by_a_call_that_its_method_takes() -> None:
    """`make bench` ended with a TypeError half-way, at the one row whose call had an argument that Pairs.row() had no longer."""
    parameters, calls = inspect.signature(Pairs.row), _row_calls()
    assert len(calls) > 15
    for where, call in calls.items():
        try:
            parameters.bind(None, *call.args, **{str(keyword.arg): keyword.value for keyword in call.keywords})
        except TypeError as error:
            pytest.fail(f"{where}: {error}")
