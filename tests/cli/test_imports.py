"""What a command imports: `ls` in a prompt, or each minute of a cron job, must not load the replay."""

import json
import os
import pwd

import pytest

from bufferpool.cli import MODULES, make_parser
from tests.support.children import run_python

HEAVY = (
    "bufferpool.pool",
    "logging",
    "bufferpool.replay.replay",
    "prometheus_client",
    "multiprocessing",
    "asyncio",
    "matplotlib",
    "textual",
    "http.client",
    "numpy.random",  # these four were half as long to import as numpy itself
    "hashlib",
    "random",
    "uuid",
)


@pytest.mark.parametrize("command", ["ls", "stat", "events", "spaces", "clients"])
def test_a_command_imports_only_what_it_needs(make_pool, command):
    """0.43 s of processor time, most of it for modules that ls never calls, and for the threads of OpenBLAS."""
    pool = make_pool()
    words = [command] if command == "ls" else [command, pool.name]
    code = f"""
import contextlib, io, os, sys
before = set(sys.modules)  # a measurement of coverage imports some of them in each process
from bufferpool.cli import main
with contextlib.redirect_stdout(io.StringIO()):
    assert main({words!r}) == 0
print([name for name in {HEAVY!r} if name in set(sys.modules) - before], len(os.listdir("/proc/self/task")))
"""
    done = run_python(code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[] 1"


def test_every_command_is_found_alone():
    """The table of modules names each command of the whole parser, in the module that has it."""

    def commands(parser):
        return set(next(a.choices for a in parser._actions if a.choices and a.nargs == "A..."))

    whole = commands(make_parser())
    assert {name for names in MODULES.values() for name in names} == whole
    for names in MODULES.values():
        for name in set(names) - {"completion"}:
            assert commands(make_parser(name)) == set(names)


def test_ls_names_the_owner(make_pool, capsys):
    """Several users have pools in one /dev/shm."""
    from bufferpool.cli import main

    pool = make_pool()
    assert main(["ls", "--json"]) == 0
    row = next(row for row in json.loads(capsys.readouterr().out) if row["name"] == pool.name)
    assert row["owner"] == pwd.getpwuid(os.geteuid()).pw_name
    assert main(["ls"]) == 0
    assert "OWNER" in capsys.readouterr().out


def test_frames_in_json_come_one_by_one(make_pool, data_file, capsys):
    """All frames were made into one text first: hundreds of megabytes for a large pool."""
    from bufferpool.cli import main

    pool = make_pool()
    table = pool.open_file(data_file(20))
    for n in range(20):
        table[n]
    assert main(["frames", pool.name, "--json"]) == 0
    text = capsys.readouterr().out
    assert len(json.loads(text)) == 20
    assert len(text.splitlines()) == 22
    assert main(["frames", pool.name, "--json", "--state", "dirty"]) == 0
    assert json.loads(capsys.readouterr().out) == []
