"""A death at every named point of the core (BP_POINT), one after the other, under load from others."""

import json
import os
import re
import select
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import WAIT
from tests.support.native_build import ROOT, SOURCES


def points_of(sources: Iterable[Path]) -> list[str]:
    """The named points of these files of the core."""
    return sorted({p for source in sources for p in re.findall(r'BP_POINT\("([^"]+)"\)', source.read_text())})


def is_of_objects(source: Path) -> bool:
    """Whether tests/objects/test_object_killpoints.py passes the points of this file."""
    return source.name.startswith("object") or source.name in ("loans.h", "cache.cpp")


POINTS = points_of(source for source in SOURCES if not is_of_objects(source))


class Driver:
    """The program tests/support/killpoints.py, with that build."""

    def __init__(self, package: Path, program: str = "tests.support.killpoints") -> None:
        self.package, self.program = package, program
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> subprocess.Popen[str]:
        environment = {"PATH": os.environ["PATH"], "PYTHONPATH": f"{self.package.parent}:{ROOT}"}
        check = f"import bufferpool; assert bufferpool.__file__.startswith({str(self.package)!r}), bufferpool.__file__"
        code = f"{check}; import {self.program} as k; k.main()"
        return subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=self.package.parent,
            env=environment,
        )

    def kill_at(self, point: str, count: int) -> dict[str, Any]:
        return self.ask(f"{point} {count}")

    def ask(self, line: str) -> dict[str, Any]:
        """The program's answer to a line."""
        if self.process is None or self.process.poll() is not None:
            self.close()
            self.process = self.start()
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()
        ready, _, _ = select.select([self.process.stdout], [], [], 600)
        text = self.process.stdout.readline() if ready else ""
        if not text:
            self.process.kill()
            pytest.fail(f"no answer for {line}")
        answer: dict[str, Any] = json.loads(text)
        return answer

    def close(self) -> None:
        if self.process is not None:
            for stream in (self.process.stdin, self.process.stdout):
                assert stream is not None
                stream.close()
            self.process.wait(WAIT)


@pytest.fixture(scope="session")
def driver(faulty_package: Path) -> Iterator[Driver]:
    made = Driver(faulty_package)
    yield made
    made.close()


def test_the_design_document_lists_every_point_and_no_other() -> None:
    listed = re.findall(
        r"^\| `([a-z]+\.[a-z]+)` \| .+ \| .+ \|$", (ROOT / "docs" / "design.md").read_text(), re.MULTILINE
    )
    assert len(POINTS) > 50
    assert sorted(listed) == points_of(SOURCES)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("point", POINTS)
def test_a_death_at(driver: Driver, point: str, count: int) -> None:
    if point == "grow.plugged":  # the pool grows once per 128 frames
        count = min(count, 2)
    answer = driver.kill_at(point, count)
    assert answer["code"] == -9, f"the victim never came to {point}: {answer}"
    assert point in answer["reached"]
    assert answer["findings"] == []
    assert answer["others"] == [0, 0]
    assert answer["verified"] > 0


FOLD = """
import json, os, sys
import bufferpool as bp
from bufferpool.figures.stats import read_counters
from bufferpool.observer import Observer

name, point, killed = sys.argv[1:]

def seen():
    with Observer(name) as pool:
        counters = read_counters(pool)
        return [*counters.spaces[0].tolist(), counters.plain["loads"], counters.plain["reaped"]]

pid = os.fork()
if pid == 0:
    pool = bp.Pool.create(name, "1MiB", page_size=4096)
    space = pool.open_derived("d", 4, lambda n, out: None)
    for _ in range(7):
        space[1]
    os.environ.update(BUFFERPOOL_KILLED=killed, BUFFERPOOL_KILL=point + ":1")
    pool.close()
    os._exit(1)
status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
dead = seen()
with bp.Pool.attach(name) as pool:
    attached = seen()
    pool.reap()
    reaped = seen()
    print(json.dumps([status, dead, attached, reaped, pool.check()]))
"""


@pytest.mark.parametrize("point", ["fold.filled", "fold.switched", "detach.folded"])
def test_who_dies_in_the_fold_counts_once(driver: Driver, tmp_path: Path, pool_name: str, point: str) -> None:
    """Before it is reaped and afterwards: in its slot or in the totals, never in both, never in neither."""
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(driver.package.parent)}
    done = subprocess.run(
        [sys.executable, "-c", FOLD, pool_name, point, str(tmp_path / "killed")],
        capture_output=True, text=True, timeout=WAIT, check=False, cwd=driver.package.parent, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    status, dead, attached, reaped, violations = json.loads(done.stdout)
    assert status == -9
    assert dead == attached == [6, 1, 1, 0]  # hits, misses, loads, reaped
    assert reaped == [6, 1, 1, 1]
    assert violations == []


RECORD = """
import json, os, sys
import bufferpool as bp

name, path, killed = sys.argv[1:]
pool = bp.Pool.create(name, "1MiB", page_size=4096)
space = pool.open_file(path, mode="r+")
before = int(space[0][0])
with open(path, "r+b") as other:  # another program's change
    other.write(b"b")
os.utime(path, ns=(1, 1))
pid = os.fork()
if pid == 0:
    os.environ.update(BUFFERPOOL_KILLED=killed, BUFFERPOOL_KILL="record.half:1")
    pool.open_file(path, mode="r+")
    os._exit(1)
status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
with space.write(1) as page:
    page[:] = ord("c")
flushed = space.flush()
print(json.dumps([status, before, int(space[0][0]), flushed, pool.check()]))
pool.unlink()
"""


def test_who_dies_while_it_records_a_file_leaves_no_change_of_another_program(
    driver: Driver, tmp_path: Path, pool_name: str
) -> None:
    """A process that had adopted a changed file died among the fields of its record: half of them were the old file's.

    The next flush took the file for changed once more (FileChanged), though nobody had touched it since.
    """
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(driver.package.parent)}
    path = tmp_path / "pages"
    path.write_bytes(b"a" * 4 * 4096)
    done = subprocess.run(
        [sys.executable, "-c", RECORD, pool_name, str(path), str(tmp_path / "killed")],
        capture_output=True, text=True, timeout=WAIT, check=False, cwd=driver.package.parent, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [-9, ord("a"), ord("b"), 1, []]
    assert path.read_bytes() == b"b" + b"a" * 4095 + b"c" * 4096 + b"a" * 2 * 4096


SETTLE = """
import json, os, signal, sys
import bufferpool as bp

name, killed = sys.argv[1:]
pool = bp.Pool.create(name, 16 * 4096, page_size=4096)
space = pool.open_scratch("s", 1)

def put(value):
    with space.write(0) as page:
        page[:] = value

def seen():
    return sorted(set(space[0].tolist()))

put(1)
ready, pinned = os.pipe()
go, let = os.pipe()
reader = os.fork()
if reader == 0:
    view = space[0]
    os.write(pinned, b"1")
    os.read(go, 1)
    os.environ.update(BUFFERPOOL_KILLED=killed, BUFFERPOOL_KILL="settle.looked:1:19")
    del view
    os._exit(0)
os.read(ready, 1)
put(2)
os.write(let, b"1")
_, status = os.waitpid(reader, os.WUNTRACED)
assert os.WIFSTOPPED(status), status
pool.reap()                 # a sweep of superseded frames
put(3)
third = space[0]
put(4)
os.kill(reader, signal.SIGCONT)
ended = os.waitstatus_to_exitcode(os.waitpid(reader, 0)[1])
put(5)
put(6)
print(json.dumps([ended, sorted(set(third.tolist())), seen(), pool.check()]))
"""


def test_a_reader_stopped_while_it_settles_a_frame_takes_no_frame_that_is_pinned(
    driver: Driver, tmp_path: Path, pool_name: str
) -> None:
    """A reader leaves a superseded version, and is stopped after it has seen that nobody else pins the frame.

    Meanwhile the page is published again and again. The frame was once freed by a sweep, held the third version, was
    superseded again and pinned by another client; when the reader continued, it took the frame, because the frame's
    word was the same as before, and the pinned view showed the fifth version.
    """
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(driver.package.parent)}
    done = subprocess.run(
        [sys.executable, "-c", SETTLE, pool_name, str(tmp_path / "killed")],
        capture_output=True, text=True, timeout=WAIT, check=False, cwd=driver.package.parent, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [0, [3], [6], []]
