"""What a type checker finds in the programs of a user.

The package is typed, and what a type checker must find is a promise as any other: a mode that does not exist, a page that
is assigned to, a setting with a typing mistake. ``__setitem__`` was declared to return NoReturn: mypy found nothing wrong
with ``space[n] = x``, and took everything that follows it for unreachable.
"""

import os
import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT

RIGHT = """
import numpy as np
import numpy.typing as npt

import bufferpool as bp


def render(page_no: int, out: npt.NDArray[np.float32]) -> None:
    out[:] = page_no


def main() -> None:
    with bp.Pool.open("typed", capacity="16MiB", page_size="8KiB") as pool:
        table = pool.open_file("orders.db", mode="w+", max_pages=100)
        with table.append(lsn=3) as page:
            page[:5] = list(b"hello")
        with table.write(0, lsn=4) as page:
            page[0] = 1
        first: bytes = bytes(table[0][:5])
        pages: int = len(table)
        many = table.read_many(range(pages))
        with table.pin(0) as pinned, table.pin_many([0]) as held:
            total = int(pinned.sum()) + int(many.sum()) + int(held[0][0])
        tiles = pool.open_derived("tiles", 10, render, dtype=np.float32, version=1)
        for tile in tiles.scan(0, 5):
            total += int(tile.sum())
        scratch = pool.open_scratch("sort", 10, lifetime="process")
        dirty: int = pool.stats().frames.dirty
        names: list[str] = [space.name for space in pool.spaces()]
        for event in pool.events():
            if event.kind is bp.EventKind.CREATED and event.reason is bp.EventReason.ASKED:
                print(event.time)
        steward = pool.start_steward(bp.Settings(idle=600.0, rules=bp.Rules()))
        stewards = [client.is_steward for client in pool.clients()]
        try:
            pool.resize("8MiB")
        except bp.PoolExhausted as error:
            print(error)
        pool.trim()
        pool.trim_idle(5)
        table.flush(timeout=5.0)
        violations: list[str] = table.pool.check()
        print(table.pool.name, table.pool.stats().hits, violations)
        print(first, total, dirty, names, steward.alive, stewards, scratch.page_size, table.path, 3 in table)
        pool.unlink()


main()
"""

WRONG = """
import bufferpool as bp

pool = bp.Pool.open("typed", capactiy="16MiB")  # wrong
bp.Poool  # wrong
table = pool.open_file("orders.db", mode="rw")  # wrong
pool.open_file("orders.db", "a")  # wrong
pool.open_scratch("sort", 10, lifetime="client")  # wrong
pool.open_derived("tiles", 10, 3)  # wrong
pool.open_store("own", object())  # wrong
bp.Pool.attach("typed", mode="w")  # wrong
bp.FileStore("orders.db", "x")  # wrong
pool.space("orders.db", "w+")  # wrong
pool.start_steward(interval=3)  # wrong
bp.Settings(idel=3)  # wrong
pool.trim(bytes=3)  # wrong
pool.stats().frames["dirty"]  # wrong
pool.stats().frames.dirtty  # wrong
pool.spaces()[0].pages = 3  # wrong
pool.events()[0].what  # wrong
pool.steward()  # wrong
table[0] = 3  # wrong
table["first"]  # wrong
table.write("3")  # wrong
table.append(3)  # wrong
page = table.write(3)
page[0] = 1  # wrong
table.pin(0).sum()  # wrong
table.path.upper()  # wrong
table.flush(5)  # wrong
"""


def lines_with_errors(program: str, folder: Path) -> list[int]:
    path = folder / "program.py"
    path.write_text(program)
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "--no-error-summary", str(path)]
    # One cache, of the checkout, as `make lint` uses: without it numpy alone takes half a minute.
    environment = os.environ | {"MYPYPATH": str(ROOT), "MYPY_CACHE_DIR": str(ROOT / ".mypy_cache" / "users")}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert done.stderr == ""
    errors = [line.split(":") for line in done.stdout.splitlines() if ": error:" in line]
    assert {parts[0] for parts in errors} <= {"program.py", str(path)}, done.stdout
    return sorted({int(parts[1]) for parts in errors})


def test_a_right_program_is_clean(tmp_path: Path) -> None:
    assert lines_with_errors(RIGHT, tmp_path) == []


def test_every_mistake_is_found(tmp_path: Path) -> None:
    marked = [number for number, line in enumerate(WRONG.splitlines(), 1) if line.endswith("# wrong")]
    assert lines_with_errors(WRONG, tmp_path) == marked


def test_the_benchmarks_use_the_package_as_its_types_say() -> None:
    """A benchmark that no bar runs in ``make test`` called a function with arguments that it no longer had."""
    command = [sys.executable, "-m", "mypy", "benchmarks"]
    environment = os.environ | {"MYPY_CACHE_DIR": str(ROOT / ".mypy_cache" / "users")}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
