"""The core under the compiler's sanitizers.

Memory and undefined behaviour: the tests of the surface, in a process of their own,
with a core built with -fsanitize=address,undefined. Races: tests/native/races.cpp, the
protocol on real threads, with -fsanitize=thread; and mistakes that it must find.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import WAIT
from tests.support import native_build
from tests.support.native_build import COMPILER, CORE, ROOT, runtime, sanitized

# One memory order, made relaxed: (the function of core/os/atomic.h, what it orders).
MISTAKES = {
    "cas_seq_cst": "an entry that says RESIDENT, and a lock that was taken",
    "swap_seq_cst": "a lock that was released",
    "load_seq_cst": "the second look of a pin",
    "sub_seq_cst": "a pin that was taken back, before the frame is used again",
    "store_seq_cst": "a frame's state",
}


def build_races(core: Path, out: Path) -> Path:
    if runtime("libtsan.so") is None:
        pytest.skip(f"{COMPILER} has no thread sanitizer")
    return native_build.program(
        "races", out, "-O1", "-g1", "-w", "-fsanitize=thread", "-pthread", "-DBP_NO_ADVICE", core=core
    )


def race(program: Path, seconds: float, seed: int, least: int = 0) -> subprocess.CompletedProcess[str]:
    """Runs the program for so many seconds, and until so many operations are done: on a busy machine that takes longer."""
    environment = os.environ | {"TSAN_OPTIONS": "halt_on_error=1"}
    command = [str(program), str(seconds), str(seed), str(least)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=seconds * 50 + WAIT)


@pytest.fixture(scope="session")
def races(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_races(CORE, tmp_path_factory.mktemp("races") / "races")


def judge(run: subprocess.CompletedProcess[str], least: int) -> None:
    assert run.returncode == 0, f"exit code {run.returncode}\n{run.stdout}\n{run.stderr}"
    done = re.search(r"(\d+) operations, (\d+) deaths", run.stdout)
    assert done is not None
    print(run.stdout, end="")
    assert int(done[1]) > least
    assert int(done[2]) > least // 1000


def relaxed(name: str, core: Path) -> Path:
    """A copy of the core in which one kind of access orders nothing."""
    shutil.copytree(CORE, core)
    text = (core / "os" / "atomic.h").read_text()
    begin = text.index(f" {name}(")
    end = text.index("\n    }" if name == "cas_seq_cst" else "\n", begin)
    weak = text[begin:end].replace("__ATOMIC_SEQ_CST", "__ATOMIC_RELAXED")
    assert weak != text[begin:end]
    (core / "os" / "atomic.h").write_text(text[:begin] + weak + text[end:])
    return core


def find(name: str, tmp_path: Path) -> None:
    program = build_races(relaxed(name, tmp_path / "core"), tmp_path / "races")
    for seed in range(3):
        run = race(program, 5, seed)
        if "ThreadSanitizer: data race" in run.stderr:
            return
    pytest.fail(f"{name} ({MISTAKES[name]}) was relaxed, and nobody noticed")


def test_threads_do_not_race(races: Path) -> None:
    judge(race(races, 4, 1, 2000), 2000)


def test_a_weaker_order_is_found(tmp_path: Path) -> None:
    find("load_seq_cst", tmp_path)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(2, 8))
def test_threads_do_not_race_for_long(races: Path, seed: int) -> None:
    judge(race(races, 60, seed, 50_000), 50_000)


@pytest.mark.soak
@pytest.mark.parametrize("name", MISTAKES)
def test_each_weaker_order_is_found(tmp_path: Path, name: str) -> None:
    find(name, tmp_path)


# ---- memory, and undefined behaviour ---------------------------------------------------------

# Tests of other things than the core's surface: tools, the steward, builds of their own.
OTHERS = {
    "advice", "altered", "bad_stores", "checksum", "cli", "cli_live", "dashboard", "docs", "events", "explore", "exporter",
    "flush", "budget", "holds", "killpoints", "metrics", "policy", "policy_pool", "pressure", "replay",
    "sanitizers", "steward", "storm", "working_set", "weak", "workloads", "yardsticks",
}  # fmt: skip
TESTS = {
    path.stem.removeprefix("test_"): str(path.relative_to(ROOT))
    for path in sorted((ROOT / "tests").rglob("test_*.py"))
    if "toydb" not in path.parts
}
SURFACE = [name for name in TESTS if name not in OTHERS]
# What a sanitizer disturbs: how many system calls there are, and how much is done in a given time.
NOT_HERE = (
    "not one_system_call and not budget_holds_at_every_moment and not resize_while_others and not under_the_sanitizers"
)


@pytest.mark.soak
@pytest.mark.parametrize("tests", SURFACE)
def test_the_surface_under_the_address_sanitizer(tests: str) -> None:
    extra = sanitized("address,undefined")
    if extra is None:
        pytest.skip(f"{COMPILER} has no address sanitizer")
    check = "import sys, bufferpool, pytest; assert 'sanitized' in bufferpool.__file__, bufferpool.__file__; sys.exit(pytest.main())"
    command = [sys.executable, "-P", "-c", check, "-p", "no:cacheprovider", "-k", NOT_HERE, TESTS[tests]]
    run = subprocess.run(command, cwd=ROOT, env=os.environ | extra, capture_output=True, text=True, timeout=1800)
    assert run.returncode == 0, f"{run.stdout[-6000:]}\n{run.stderr[-6000:]}"
