"""An integration whose library is missing says what to install."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.support.children import run_python

INTEGRATIONS = ROOT / "bufferpool" / "integrations"
WITHOUT = """
import importlib, sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == sys.argv[2]:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
try:
    importlib.import_module(f"bufferpool.integrations.{sys.argv[1]}")
except ImportError as error:
    print(type(error).__name__, error.name, error)
"""


@pytest.mark.parametrize(
    ("module", "library", "packages"),
    [
        ("dask", "distributed", "'bufferpool[dask]'"),
        ("torch", "torch", "'bufferpool[torch]'"),
        ("zarr", "zarr", "'bufferpool[zarr]'"),
        ("fsspec", "fsspec", "'bufferpool[fsspec]'"),
        ("sqlite", "fsspec", "'bufferpool[fsspec]'"),
        ("sqlite", "apsw", "'bufferpool[fsspec]' apsw"),
        ("django", "django", "django"),
        ("dogpile", "dogpile", "dogpile.cache"),
    ],
)
def test_a_missing_library_is_named_with_what_installs_it(module: str, library: str, packages: str) -> None:
    """It said "No module named 'distributed'", which is the extra [dask]."""
    if (module, library) == ("sqlite", "apsw"):
        pytest.importorskip("fsspec")
    done = run_python(WITHOUT, module, library)
    assert done.returncode == 0, done.stderr
    pattern = rf"ModuleNotFoundError ({library}[\w.]*) No module named '\1': pip install {re.escape(packages)}\n"
    assert re.fullmatch(pattern, done.stdout), done.stdout


def test_a_library_that_is_too_old_is_named_too(tmp_path: Path) -> None:
    (tmp_path / "zarr.py").write_text("class Array: pass\n")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\nimport bufferpool.integrations.zarr"
    done = run_python(code)
    assert re.search(
        r"^ImportError: cannot import name 'AsyncArray'.*: pip install 'bufferpool\[zarr\]'", done.stderr, re.MULTILINE
    )


def imports_of(statements: list[ast.stmt]) -> Iterator[str]:
    for node in statements:
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield str(node.module)


@pytest.mark.parametrize("path", sorted(INTEGRATIONS.glob("*.py")), ids=lambda path: path.stem)
def test_each_library_is_imported_with_what_installs_it(path: Path) -> None:
    """So that an integration that comes later says it, too; and the extras that are named exist."""
    module = ast.parse(path.read_text())
    ours = {*sys.stdlib_module_names, "bufferpool", "numpy"}
    assert [name for name in imports_of(module.body) if name.split(".")[0] not in ours] == []
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = re.findall(
        r"bufferpool\[(\w+)\]", "".join(ast.unparse(one) for one in module.body if isinstance(one, ast.With))
    )
    assert set(named) <= set(extras)
