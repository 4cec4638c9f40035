"""The static probes (USDT) of the core: what tools find in the file, and which arguments they get."""

import json
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bufferpool import _core
from tests.conftest import SHM, WAIT, new_name

pytestmark = pytest.mark.skipif(platform.machine() not in ("x86_64", "aarch64"), reason="no probes on this machine")
NAMES = {"load", "evict", "publish", "flush", "reclaim"}

# Loads 0 to 11 into a pool of 8 pages, changes page 7, flushes it, and gives all memory back. With `traced`, it first raises the
# semaphores of all probes, as a tool does that attaches.
WORK = """
import ctypes, json, os, sys
import numpy as np
import bufferpool as bp
from bufferpool import _core

name, path, semaphores = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
base = min(int(line.split("-")[0], 16) for line in open("/proc/self/maps") if _core.__file__ in line)
for at in semaphores:
    ctypes.c_uint16.from_address(base + at).value += 1
with bp.Pool.open(name, capacity=8 * 4096, page_size=4096, extent_size=4096) as pool:
    pool.open_scratch("another", 4)
    space = pool.open_file(path, "r+")
    for page_no in range(12):
        space[page_no]
    with space.write(7) as page:
        page[:] = 1
    space.flush()
    pool.trim()
    number = next(s.number for s in pool.stats().spaces if s.kind == "file")
    reclaimed = sum(pool.stats().reclaimed_bytes.values())
    pool.check()
    print(json.dumps({"inode": os.stat("/dev/shm/" + name).st_ino, "space": number, "reclaimed": reclaimed}))
    pool.unlink()
"""


def notes() -> list[tuple[str, int, str]]:
    """(name, address of the semaphore, arguments) of each probe, as readelf shows it."""
    shown = subprocess.run(["readelf", "-n", _core.__file__], capture_output=True, text=True, check=True).stdout
    found = re.findall(
        r"Provider: bufferpool\s+Name: (\w+)\s+Location: \w+, Base: \w+, Semaphore: (\w+)\s+Arguments: (.+)", shown
    )
    return [(name, int(semaphore, 16), arguments) for name, semaphore, arguments in found]


@pytest.fixture
def work(tmp_path: Path):
    """The command that does the work: work(*semaphores to raise)."""
    script, data, name = tmp_path / "work.py", tmp_path / "data", new_name()
    script.write_text(WORK)
    data.write_bytes(bytes(16 * 4096))
    yield lambda *semaphores: [sys.executable, str(script), name, str(data), json.dumps(semaphores)]
    (SHM / name).unlink(missing_ok=True)


@pytest.mark.skipif(not shutil.which("readelf"), reason="needs readelf")
def test_tools_find_every_probe_with_its_arguments() -> None:
    found = notes()
    assert {name for name, _, _ in found} == NAMES
    assert len({semaphore for _, semaphore, _ in found}) == len(NAMES)
    assert 0 not in {semaphore for _, semaphore, _ in found}
    assert all(re.fullmatch(r"8@\S+ 8@\S+ 8@\S+", arguments) for *_, arguments in found), found


@pytest.mark.skipif(not shutil.which("readelf"), reason="needs readelf")
def test_a_pool_works_while_a_tool_listens(work) -> None:
    done = subprocess.run(work(*{at for _, at, _ in notes()}), capture_output=True, text=True, timeout=WAIT)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["reclaimed"] > 0


@pytest.mark.skipif(not shutil.which("gdb"), reason="needs gdb")
def test_the_probes_tell_what_happens(work, tmp_path: Path) -> None:
    """gdb stops at each probe, and prints what the pool says of itself."""
    commands = ["set pagination off", "set breakpoint pending on"]
    for name in sorted(NAMES):
        told = f'printf "TOLD {name} %lu %lu %lu\\n", $_probe_arg0, $_probe_arg1, $_probe_arg2'
        commands += [f"break -probe-stap bufferpool:{name}", "commands", "silent", told, "continue", "end"]
    script = tmp_path / "commands.gdb"
    script.write_text("\n".join([*commands, "run"]))
    gdb = ["gdb", "-q", "-nx", "-batch", "-x", str(script), "--args", *work()]
    done = subprocess.run(gdb, capture_output=True, text=True, timeout=4 * WAIT)
    if "ptrace" in done.stderr and "not permitted" in done.stderr:
        pytest.skip("this machine lets no process trace another")
    said = json.loads(next(line for line in done.stdout.splitlines() if '"inode"' in line))
    told: dict[str, list[tuple[int, ...]]] = {name: [] for name in NAMES}
    for name, *values in re.findall(r"^TOLD (\w+) (\d+) (\d+) (\d+)$", done.stdout, re.MULTILINE):
        told[name].append(tuple(map(int, values)))
    assert {pool for seen in told.values() for pool, *_ in seen} == {said["inode"]}
    assert [(space, page) for _, space, page in told["load"]][:12] == [(said["space"], n) for n in range(12)]
    assert {space for _, space, _ in told["evict"]} == {said["space"]}
    assert len(told["evict"]) >= 4
    assert [page for *_, page in told["publish"]] == [page for *_, page in told["flush"]] == [7]
    assert sum(length for _, length, _ in told["reclaim"]) == said["reclaimed"]


def test_memory_that_is_given_back_is_counted_and_told_in_one_place() -> None:
    """Frames of a dead client were given back and counted without a probe: a tool's sum was less than the pool's.

    Such a frame is there only while a client dies in the middle of the core, so this looks at the source.
    """
    core = Path(_core.__file__).parent / "core"
    counts = re.compile(r"reclaimed_bytes\[[^]]*\]\.add")
    places = [path.name for path in core.rglob("*.[hc]*") for _ in counts.findall(path.read_text())]
    assert places == ["probes.h"]
