"""Pools whose name was removed: by systemd at a logout (RemoveIPC), or by rm."""

import os
import re
import warnings

import pytest

import bufferpool as bp
from bufferpool.cli.doctor import Level, examine
from bufferpool.errors import PoolNameless
from tests.conftest import PAGE, fill, page_of, stamp
from tests.support.disks import dirty


@pytest.mark.parametrize("replaced", [False, True])
def test_a_flush_saves_the_pages_and_says_that_the_name_is_gone(pool, data_file, replaced):
    """Two halves of a service worked in two pools of one name, and neither knew."""
    path = data_file(16)
    space = pool.open_file(path, "r+")
    fill(space, [3], version=1)
    os.unlink(pool.path)
    if replaced:
        bp.Pool.create(pool.name, 64 * PAGE, page_size=PAGE).close()
    with pytest.warns(PoolNameless, match="RemoveIPC"):
        assert pool.flush() == 1
    assert page_of(path, 3) == stamp(3, version=1).tobytes()
    assert dirty(pool) == 0
    fill(space, [4], version=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert pool.flush() == 1  # once is enough


def test_opening_a_space_says_so_too(pool, data_file):
    os.unlink(pool.path)
    with pytest.warns(PoolNameless):
        space = pool.open_file(data_file(16), "r+")
    fill(space, [3], version=1)
    assert pool.flush() == 1


@pytest.mark.parametrize("remover", ["this process", "another"])
def test_a_name_that_was_removed_on_purpose_is_no_trouble(pool, attach, data_file, remover):
    """A pool that only its own processes are to find loses its name at once, by unlink."""
    (pool if remover == "this process" else attach(pool)).unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fill(pool.open_file(data_file(16), "r+"), [3], version=1)
        assert pool.flush() == 1


@pytest.mark.parametrize("on_purpose", [False, True])
def test_the_doctor_finds_pools_without_a_name(pool, on_purpose):
    if on_purpose:
        pool.unlink()
    else:
        os.unlink(pool.path)
    (found,) = [f for f in examine() if f.what == f"pool {pool.name}"]
    assert found.level == (Level.OK if on_purpose else Level.WARN)
    assert re.search(rf"name was removed.*pid {os.getpid()}\b", found.text)
    assert ("RemoveIPC" in found.remedy) != on_purpose
