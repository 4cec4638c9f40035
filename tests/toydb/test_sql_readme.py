"""The README's section on SQL does what it says."""

import os
import re
import shlex
from pathlib import Path

import pytest

import toydb.sql
from tests.conftest import SHM, remove
from toydb.sql.shell import main

README = Path(__file__).resolve().parents[2] / "examples" / "toydb" / "README.md"


@pytest.fixture
def pool_name():
    name = f"toysql-readme-{os.getpid()}"
    yield name
    remove(SHM / name)


def test_the_commands_and_the_code_do_what_they_say(tmp_path, monkeypatch, capfd, pool_name):
    section = README.read_text(encoding="utf-8").split("\n## Appendix: SQL\n")[1]
    blocks = dict(re.findall(r"```(console|python)\n(.*?)```", section, re.DOTALL))
    monkeypatch.chdir(tmp_path)
    commands = re.findall(r"^\$ python -m toydb (.*)$", blocks["console"], re.MULTILINE)
    assert len(commands) == 3
    for command in commands:
        assert main(["--pool", pool_name, *shlex.split(command)]) == 0
    out, error = capfd.readouterr()
    shown = blocks["console"].splitlines()[len(commands) :]
    assert out.splitlines() + error.splitlines() == shown

    connect = toydb.sql.connect
    monkeypatch.setattr(toydb.sql, "connect", lambda path: connect(path, pool_name=pool_name))
    exec(compile(blocks["python"], str(README), "exec"), {})
    out = capfd.readouterr().out
    assert out.splitlines() == re.findall(r"print\(.*\)  # (\S+)", blocks["python"])
