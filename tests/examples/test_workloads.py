"""The example workloads, in their quick form: they verify what they do, and say so with their exit code."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT, SHM, WAIT, wait_until

FOLDER = ROOT / "examples" / "workloads"
SCRIPTS = sorted(path.stem for path in FOLDER.glob("*.py") if "__main__" in path.read_text())
PNG = b"\x89PNG\r\n\x1a\n"


def run(*arguments: str | Path, **options):
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=WAIT, check=False, cwd=ROOT, **options)


def leftovers(pid):
    """Pools of one run: others may be running on this machine."""
    return [path.name for path in SHM.glob(f"workload-{pid}-*")]


@pytest.mark.parametrize("script", SCRIPTS)
def test_its_quick_form_verifies_something_draws_a_picture_and_leaves_nothing(script, tmp_path):
    if script.startswith("torch"):
        pytest.importorskip("torch")
    picture = tmp_path / "picture.png"
    command = [sys.executable, FOLDER / f"{script}.py", "--quick", "--plot", picture]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, text=True, cwd=ROOT, **pipes) as process:
        printed, errors = process.communicate(timeout=WAIT)
    assert process.returncode == 0, f"{printed}\n{errors}"
    held, _, all_of_them = printed.splitlines()[-1].split()[:3]
    assert held == all_of_them
    assert int(held) > 0
    assert "FAIL" not in printed
    assert picture.read_bytes().startswith(PNG)
    assert 1000 < picture.stat().st_size < 150_000
    assert leftovers(process.pid) == []


def test_their_help_says_what_they_do():
    started = [
        subprocess.Popen([sys.executable, FOLDER / f"{script}.py", "--help"], stdout=subprocess.PIPE, text=True)
        for script in SCRIPTS
    ]
    assert len(started) == 11
    for process in started:
        text, _ = process.communicate(timeout=WAIT)
        assert process.returncode == 0
        assert "--quick" in text
        assert len(text.split("options:")[0].split()) > 40


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ("run.check(1 + 1 == 2, 'sums')", 0),
        ("run.check(1 + 1 == 2, 'sums'); run.check(1 + 1 == 3, 'wrong sums')", 1),
        ("pass", 1),
        ("run.start(run.options.function).get()", 1),
    ],
)
def test_a_check_that_fails_or_no_check_at_all_is_an_exit_code(body, code, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        f'"""A workload."""\nfrom workload import main\n\ndef bad(pipe):\n    raise ValueError("in the worker")\n\n'
        f"def work(run):\n    run.options.function = bad\n    {body}\n\nif __name__ == '__main__':\n    main(work)\n"
    )
    done = run(script, env=os.environ | {"PYTHONPATH": str(FOLDER)})
    assert done.returncode == code, f"{done.stdout}\n{done.stderr}"
    assert ("FAIL wrong sums" in done.stdout) == ("wrong" in body)
    assert ("in the worker" in done.stderr) == ("start" in body)


@pytest.mark.parametrize("arguments", [("--plot", "/nowhere/x.png"), ("--cache", "-3"), ("--cache", "x"), ("--bogus",)])
def test_bad_arguments_are_refused_before_anything_is_done(arguments):
    done = run(FOLDER / "shared_cache.py", *arguments)
    assert done.returncode == 2
    assert done.stdout == ""


def test_pages_in_swap_are_dropped_without_being_read_back_in(tmp_path):
    if os.geteuid():
        pytest.skip("only root can add a swap file")
    done = run(FOLDER / "client_disconnect.py", "--quick", "--swap", tmp_path / "swapfile")
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    found = [line for line in done.stdout.splitlines() if " swap: " in line]
    assert not (tmp_path / "swapfile").exists()
    if "left out" in found[0]:
        pytest.skip(found[0].strip())
    assert len(found) == 5
    assert all(line.startswith("ok ") for line in found)


def test_hotplug_may_plug_all_of_its_blocks():
    """Its pool was as large as its blocks, and scratch pages may have seven eighths of one: PoolExhausted, but in the quick form."""
    done = run(FOLDER / "hotplug.py", "--steps", "150")
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_and_leaves_nothing_behind(tmp_path, number, code):
    process = subprocess.Popen(
        [sys.executable, FOLDER / "hotplug.py", "--steps", "100000"],
        env=os.environ | {"TMPDIR": str(tmp_path)},
        stdout=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ours may be ignored
    )
    wait_until(lambda: any(SHM.glob(f"workload-{process.pid}-*")), "a pool of the workload")
    time.sleep(1)  # into its work; wherever that is, nothing may be left
    process.send_signal(number)
    assert process.wait(WAIT) == code
    assert not list(SHM.glob(f"workload-{process.pid}-*"))
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("workload-")]


def script_beside(tmp_path, body):
    """A script that may import the modules of the workloads, and the environment for it."""
    script = tmp_path / "script.py"
    script.write_text(body)
    return script, os.environ | {"PYTHONPATH": str(FOLDER)}


def test_a_worker_of_the_tile_server_ends_with_its_parent(tmp_path):
    """Its serving thread kept it: by SIGTERM, the workload waited five seconds for each of its workers, and killed it."""
    script, env = script_beside(
        tmp_path,
        f"""
import socket
import tile_server
from workload import Worker

if __name__ == "__main__":
    with socket.create_server(("127.0.0.1", 0)) as listening:
        worker = Worker(tile_server.serve, ("private", 1 << 20, listening))
        assert worker.get() == "ready"
        worker.pipe.close()  # as the end of the parent does
        worker.process.join({WAIT})
        print(worker.process.exitcode)
""",
    )
    done = run(script, env=env)
    assert done.stdout == "0\n", done.stderr


def test_the_users_of_the_tile_server_do_not_keep_it(tmp_path):
    """They waited for answers for up to a minute after SIGTERM, and those that got none printed tracebacks."""
    script, env = script_beside(
        tmp_path,
        """
import http.client
import itertools
import threading
import tile_server
from workload import main

turns = itertools.count()

class Connection(http.client.HTTPConnection):
    def getresponse(self):
        if next(turns) == 0:
            print("one waits", flush=True)
            threading.Event().wait()
        return super().getresponse()

if __name__ == "__main__":
    http.client.HTTPConnection = Connection
    main(tile_server.work, workers=(2, 2, ""), cache=(2.0, 2.0, ""), requests=(10**9, 1, ""))
""",
    )
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, script], text=True, cwd=ROOT, env=env, **pipes) as process:
        assert "one waits" in iter(process.stdout.readline, "").__next__()
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=WAIT)
    assert (process.returncode, errors) == (143, "")


@pytest.mark.soak
@pytest.mark.parametrize("limit", ["cgroup", "tmpfs", "none"])
def test_elastic_under_each_limit_or_it_says_that_there_is_none(limit):
    done = run(FOLDER / "elastic.py", "--quick", "--limit", limit)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert ("a neighbour took" in done.stdout) != ("no limit: this run has no memory pressure" in done.stdout)
    if limit == "none":
        assert "a neighbour took" not in done.stdout
