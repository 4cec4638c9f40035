"""The command: its output, its exit codes, and that it crashes on nothing that lies in /dev/shm."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import bufferpool as bp
from bufferpool.cli import doctor, main
from bufferpool.figures.names import EventKind
from tests.conftest import WAIT, wait_until
from tests.support.stewards import whats

SHM = Path("/dev/shm")


@pytest.fixture
def name(pool_name: str) -> str:
    """A name for a pool, removed at the end."""
    return pool_name


@pytest.fixture
def pool(name: str, tmp_path: Path) -> Iterator[bp.Pool]:
    """A pool with some pages of a file in it; sound at the end."""
    path = tmp_path / "some.db"
    path.write_bytes(bytes(64 * 4096))
    with bp.Pool.create(name, "1MiB", page_size=4096) as pool:
        space = pool.open_file(path, "r+")
        space.read_many(range(64))
        with space.write(3) as page:
            page[:] = 7
        yield pool
        assert pool.check() == []


def run(*argv: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "bufferpool.cli", *argv]
    return subprocess.run(command, capture_output=True, text=True, timeout=WAIT, check=False)


Capture = pytest.CaptureFixture[str]


def test_version_and_help(capsys: Capture) -> None:
    for argv, expected in (
        (["--version"], "bufferpool 0."),
        (["--help"], "examples:"),
        (["replay", "-h"], "TRACE.npy"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(argv)
        assert ended.value.code == 0
        assert expected.lower() in capsys.readouterr().out.lower()


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["stat"],
        ["stat", "a/b"],
        ["rm"],
        ["no-such-command"],
        ["replay"],
        ["replay", "x.npy", "--demo"],
        ["replay", "--demo", "--writes", "2"],
        ["replay", "--demo", "--capacity", "much"],
        ["replay", "--demo", "--page-size", "5000"],
        ["replay", "--demo", "--processes", "0"],
        ["replay", "--demo", "--repeat", "-1"],
        ["frames", "some", "--limit", "-1"],
        ["events", "some", "--limit", "all"],
        ["trim", "some", "--idle", "-1"],
        ["resize", "some", "1MiB", "--timeout", "nan"],
        ["steward", "some", "--flush-every", "0"],
        ["top", "some", "--interval", "0"],
        ["map", "some", "--output", "map.pdf"],
    ],
)
def test_wrong_usage(argv: list[str], capsys: Capture) -> None:
    with pytest.raises(SystemExit) as ended:
        main(argv)
    assert ended.value.code == 2
    assert "usage: bufferpool" in capsys.readouterr().err


def test_a_pool_that_is_not_there() -> None:
    for command in ("stat", "check", "rm"):
        done = run(command, "no-such-pool")
        assert done.returncode == 1
        assert done.stdout == ""
        assert done.stderr.startswith("bufferpool: there is no pool /dev/shm/no-such-pool")
        assert done.stderr.count("\n") == 1


# ---- ls -----------------------------------------------------------------------------


def listed(capsys: Capture, name: str) -> dict[str, object]:
    assert main(["ls", "--json"]) == 0
    rows = [row for row in json.loads(capsys.readouterr().out) if row["name"] == name]
    assert len(rows) == 1
    row: dict[str, object] = rows[0]
    return row


def test_ls(pool: bp.Pool, capsys: Capture) -> None:
    row = listed(capsys, pool.name)
    assert (row["page_size"], row["resident_bytes"], row["trouble"]) == (4096, pool.stats().resident_bytes, "")
    assert row["budget_bytes"] == 1 << 20
    assert row["clients"] == 1  # this process
    assert row["kernel_bytes"] == os.stat(pool.path).st_blocks * 512
    assert main(["ls"]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == ["NAME", "OWNER", "PAGE", "RESIDENT", "BUDGET", "CLIENTS", "UNSAVED", "KERNEL", "STATE"]
    line = next(line for line in lines if line.startswith(pool.name))
    assert line.endswith("in use")
    assert "1.0 MiB" in line


def test_ls_of_nothing(tmp_path: Path, capsys: Capture) -> None:
    assert main(["ls", "--directory", str(tmp_path)]) == 0
    assert "no pools in" in capsys.readouterr().out
    assert main(["ls", "--directory", str(tmp_path / "none")]) == 1
    assert capsys.readouterr().err.startswith("bufferpool: ")


def test_ls_of_a_pool_without_clients(name: str, capsys: Capture) -> None:
    with bp.Pool.create(name, "1MiB") as pool:
        assert pool.check() == []
    assert listed(capsys, name)["clients"] == 0
    assert main(["ls"]) == 0
    assert "nobody attached" in capsys.readouterr().out


def cut(path: Path) -> None:
    os.truncate(path, 4096)


def scribble(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(8)
        file.write(np.random.default_rng(1).bytes(2000))


@pytest.mark.parametrize("damage", [cut, scribble])
def test_a_damaged_pool(name: str, capsys: Capture, damage: Callable[[Path], None]) -> None:
    with bp.Pool.create(name, "1MiB") as pool:
        assert pool.check() == []
    damage(SHM / name)
    row = listed(capsys, name)
    assert row["trouble"]
    assert row["clients"] is None
    assert main(["ls"]) == 0
    assert name in capsys.readouterr().out
    for command in ("stat", "check"):
        assert main([command, name]) == 1
        assert capsys.readouterr().err.startswith("bufferpool: ")
    finding = next(f for f in doctor.examine() if f.what == f"pool {name}")
    assert (finding.level, finding.remedy) == (doctor.Level.WARN, f"bufferpool rm {name}")
    assert main(["rm", name]) == 0


# ---- stat, check ----------------------------------------------------------------------


def test_stat(pool: bp.Pool, capsys: Capture) -> None:
    assert main(["stat", pool.name]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^some.db +file +64 ", out, re.MULTILINE)
    assert "1 dirty" in out
    assert "clients (1)" in out
    assert str(os.getpid()) in out
    assert main(["stat", "--json", pool.name]) == 0
    about = json.loads(capsys.readouterr().out)
    stats = pool.stats()
    assert about["resident_bytes"] == about["kernel_data_bytes"] == stats.resident_bytes
    assert about["publishes"] == 1
    assert [client["pid"] for client in about["clients"]] == [os.getpid()]


def test_stat_says_the_mode_of_the_policy(pool: bp.Pool, capsys: Capture) -> None:
    """Only metrics and events had it."""
    assert main(["stat", pool.name]) == 0
    assert re.search(r"^policy +adaptive mode; changed 0 times$", capsys.readouterr().out, re.MULTILINE)


def test_flush_tells_scratch_pages_from_those_that_it_could_not_write(pool: bp.Pool, capsys: Capture) -> None:
    """It said that pages were still dirty, and did not say that no flush writes them."""
    with pool.open_scratch("notes", 4).write(0) as page:
        page[:] = 1
    assert main(["flush", pool.name]) == 0
    assert "1 page written and synced; 0 still dirty, and 1 scratch page, which no store has" in capsys.readouterr().out


def test_stat_counts_the_requests_that_found_no_frame(name: str, capsys: Capture) -> None:
    """Only the JSON had the count of PoolExhausted: on a terminal nothing showed that an exhausted pool had recovered.

    A pinned pool grows at once, which is the quick relief.
    """
    with bp.Pool.create(name, "256KiB", page_size=4096, max_capacity="1MiB") as pool:
        space = pool.open_scratch("notes", 128)
        held = []
        with pytest.raises(bp.PoolExhausted):
            held.extend(space[n] for n in range(128))
        assert main(["stat", name]) == 0
        assert re.search(r"^exhausted +1 requests? found", capsys.readouterr().out, re.MULTILINE)
        assert main(["resize", name, "1MiB"]) == 0
        held.extend(space[n] for n in range(len(held), 128))
        del held
        assert pool.check() == []


def test_the_lists_of_clients_name_the_steward(name: str, capsys: Capture) -> None:
    """The mark stood in a column without a name, and the list of clients in stat did not have it."""
    with bp.Pool.create(name, "1MiB") as pool:
        for command in ("stat", "clients"):
            assert main([command, name]) == 0
            head, row = capsys.readouterr().out.splitlines()[-2:]
            assert (head.split()[-1], row.split()[-1]) == ("ROLE", "-")
        pool.start_steward()
        wait_until(lambda: EventKind.STEWARD in whats(pool), "the steward has begun")
        for command in ("stat", "clients"):
            assert main([command, name]) == 0
            assert capsys.readouterr().out.splitlines()[-1].split()[-1] == "steward"
        assert main(["events", name]) == 0
        assert f"steward: client 1 (pid {os.getpid()}) is active now" in capsys.readouterr().out


def test_stat_of_a_new_pool(name: str, capsys: Capture) -> None:
    with bp.Pool.create(name, "1MiB") as pool:
        assert pool.check() == []
    assert main(["stat", name]) == 0
    out = capsys.readouterr().out
    assert "no access yet" in out
    assert "no clients" in out
    assert main(["stat", "--json", name]) == 0
    assert json.loads(capsys.readouterr().out)["hit_ratio"] is None


def test_check(pool: bp.Pool, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["check", pool.name]) == 0
    assert capsys.readouterr().out == f"{pool.name}: clean\n"
    with monkeypatch.context() as patch:
        patch.setattr(bp.Pool, "check", lambda self: ["this is wrong", "and that"])
        assert main(["check", pool.name]) == 1
        assert capsys.readouterr().out == f"{pool.name}: 2 violations\n  this is wrong\n  and that\n"
        assert main(["check", "--json", pool.name]) == 1
        assert json.loads(capsys.readouterr().out)["violations"] == ["this is wrong", "and that"]


# ---- rm -------------------------------------------------------------------------------


def test_rm(name: str, capsys: Capture) -> None:
    with bp.Pool.create(name, "1MiB") as pool:
        scratch = pool.open_scratch("s", 16)
        for n in range(16):
            with scratch.write(n) as page:
                page[:] = n
        assert main(["rm", name]) == 1
        assert "in use by living processes" in capsys.readouterr().err
        assert (SHM / name).exists()
        assert pool.check() == []
    size = os.stat(SHM / name).st_blocks * 512
    assert main(["rm", name, "no-such-pool"]) == 1
    captured = capsys.readouterr()
    assert f"({size:,} B) freed" in captured.out
    assert "no-such-pool" in captured.err
    assert not (SHM / name).exists()


def test_rm_force(pool: bp.Pool, capsys: Capture) -> None:
    assert main(["rm", "--force", "--discard", pool.name]) == 0
    assert "when the last attached process ends" in capsys.readouterr().out
    assert not Path(pool.path).exists()


def test_rm_when_the_client_was_killed(name: str, capsys: Capture) -> None:
    code = f"import bufferpool as bp, sys, time; p = bp.Pool.create({name!r}, '1MiB'); print('up', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as child:
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == b"up\n"
            assert main(["rm", name]) == 1
        finally:
            child.kill()
    assert listed(capsys, name)["clients"] == 0
    with bp.Pool.attach(name) as pool:
        assert pool.check() == []
    assert main(["rm", name]) == 0


def test_rm_takes_nothing_but_pools(name: str, capsys: Capture) -> None:
    (SHM / name).write_bytes(b"somebody else's")
    assert main(["rm", "--force", name]) == 1
    assert "is no pool" in capsys.readouterr().err
    assert (SHM / name).read_bytes() == b"somebody else's"


# ---- replay ---------------------------------------------------------------------------


def test_replay(tmp_path: Path, capsys: Capture) -> None:
    np.save(tmp_path / "t.npy", np.arange(3000) % 300)
    argv = ["replay", str(tmp_path / "t.npy"), "--processes", "2", "--capacity", "1MiB", "--page-size", "4KiB"]
    assert main([*argv, "--temp", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "300 of 300" in out
    assert "clean" in out
    assert main(["replay", str(tmp_path / "none.npy")]) == 1
    assert capsys.readouterr().err.startswith("bufferpool: ")


def test_a_directory_that_is_not_there(tmp_path: Path, capsys: Capture) -> None:
    none = str(tmp_path / "none")
    for argv in (["ls"], ["top"], ["gc"], ["export", "--once"], ["export", "--port", "0"]):
        assert main([*argv, "--directory", none]) == 1
        err = capsys.readouterr().err
        assert err.startswith("bufferpool: ")
        assert none in err
        assert err.count("\n") == 1


def test_a_closed_output_is_no_error(pool: bp.Pool) -> None:
    for command in ("ls", f"map {pool.name}", f"export --once {pool.name}"):
        done = subprocess.run(
            f"exec {sys.executable} -m bufferpool.cli {command} >&-", shell=True, capture_output=True, timeout=WAIT, check=False
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, b"")


def test_a_name_that_is_no_text_is_printed_with_escapes(pool: bp.Pool) -> None:
    raw = os.fsencode(f"{pool.name}-") + b"\xff"
    bp.Pool.create(os.fsdecode(raw), "1MiB").close()
    try:
        for argv in (["ls"], ["stat", raw], ["events", raw, "--json"]):
            command = [sys.executable, "-m", "bufferpool.cli", *argv]
            done = subprocess.run(command, capture_output=True, timeout=WAIT, check=False)
            assert (done.returncode, done.stderr) == (0, b"")
            assert raw[:-1] + b"\\xff" in done.stdout or "--json" in argv
    finally:
        os.unlink(os.fsencode(SHM) + b"/" + raw)


def test_a_reader_that_has_seen_enough() -> None:
    """The reader of the command's output ends first: the command prints no traceback."""
    with subprocess.Popen(
        [sys.executable, "-m", "bufferpool.cli", "doctor", "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        child.stdout.close()
        started = time.monotonic()
        err = child.stderr.read()
        assert child.wait(timeout=WAIT) == 1
        assert err == b""
        assert time.monotonic() - started < 30


def test_an_argument_that_a_command_does_not_have_shows_the_usage_of_the_command(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """``bufferpool trim NAME 1MiB`` printed the usage of ``bufferpool``, which does not have ``--bytes``; and escapes as they were."""
    with pytest.raises(SystemExit) as ended:
        main(["trim", "orders", "1MiB\x1b[31m"])
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert "[--bytes SIZE | --idle S]" in told
    assert "unrecognized arguments: 1MiB\\x1b[31m" in told
