"""What ``import bufferpool`` brings, and what it says where it cannot."""

import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT, WAIT


def run(code: str, cwd: Path = ROOT, *flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *flags, "-c", code], cwd=cwd, capture_output=True, text=True, timeout=WAIT)


def test_the_source_folder_says_how_to_build(tmp_path: Path) -> None:
    """After ``pip install .`` the checkout shadowed the package: a bare ModuleNotFoundError for bufferpool._core."""
    (tmp_path / "bufferpool").mkdir()
    for source in (ROOT / "bufferpool").glob("*.py"):
        (tmp_path / "bufferpool" / source.name).write_text(source.read_text())
    failed = run("import sys; sys.path.insert(0, '.'); import bufferpool", tmp_path, "-S")
    assert failed.returncode == 1
    assert "pip install --editable ." in failed.stderr.splitlines()[-1]


def test_the_metrics_of_the_readme_need_no_import_of_their_own() -> None:
    """README's ``REGISTRY.register(bufferpool.prometheus.PoolCollector())`` was an AttributeError."""
    done = run("import bufferpool; print(bufferpool.prometheus.PoolCollector.__name__)")
    assert (done.stdout, done.stderr) == ("PoolCollector\n", "")


def test_a_plain_import_and_a_plain_command_bring_no_prometheus_client(tmp_path: Path) -> None:
    code = f"""
import sys
from bufferpool.cli import main
main(["ls", "--json", "--directory", {str(tmp_path)!r}])
print("prometheus_client" in sys.modules)
"""
    done = run(code)
    assert (done.stdout, done.stderr) == ("[]\nFalse\n", "")


def test_each_name_of_the_interface_is_imported_when_it_is_used() -> None:
    """`bufferpool ls` loaded all of them: a third of its processor time was for modules that it never calls."""
    code = """
import sys, bufferpool
print("numpy" in sys.modules, "bufferpool.pool" in sys.modules)
print([name for name in bufferpool.__all__ if name not in dir(bufferpool)])
from bufferpool import *
print([name for name in bufferpool.__all__ if globals()[name] is not getattr(bufferpool, name)], Pool.__module__)
"""
    done = run(code)
    assert (done.stdout, done.stderr) == ("False False\n[]\n[] bufferpool.pool\n", "")
    missing = run("import bufferpool; bufferpool.Poool")
    assert "AttributeError: module 'bufferpool' has no attribute 'Poool'. Did you mean: 'Pool'?" in missing.stderr


def test_the_package_runs_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bufferpool", "--version"], cwd=ROOT, capture_output=True, text=True, timeout=WAIT
    )
    assert done.stdout.startswith("bufferpool ")


def test_a_module_without_epoll_is_no_obstacle(tmp_path: Path) -> None:
    """gevent and eventlet remove ``select.epoll`` before a server imports its application: the package could not be imported there."""
    done = run(f"""
import select, threading
del select.epoll
import bufferpool as bp
from bufferpool.machine.descriptor import opened
with opened({str(tmp_path)!r}, 0) as folder:
    print(folder.fileno() >= 0, type(folder).__name__)
print(bp.Pool.__name__)
""")
    assert (done.stdout, done.stderr) == ("True epoll\nPool\n", "")
