"""One pool at a time writes a file."""

import errno
import fcntl
import os
import signal

import numpy as np
import pytest

import bufferpool as bp
from bufferpool.errors import FileInUse, SpaceFull, StoreError
from bufferpool.spaces import claim, directory
from tests.conftest import WAIT, fill, stamp, wait_until
from tests.support.children import run_python
from tests.support.disks import dirty


@pytest.fixture
def two(make_pool):
    """Two pools."""
    return make_pool(), make_pool()


@pytest.mark.parametrize("mode", ["r+", "w+"])
def test_a_second_pool_does_not_write_a_file(two, attach, data_file, mode):
    """Each flushed its own pages over those of the other, and neither noticed."""
    one, other = two
    path = data_file(16)
    before = path.read_bytes()
    fill(one.open_file(path, "r+"), [3], version=1)
    with pytest.raises(FileInUse, match="mode='r'"):
        other.open_file(path, mode)
    assert path.read_bytes() == before
    assert other.stats().spaces == []
    assert np.array_equal(other.open_file(path, "r")[5], stamp(5))
    fill(attach(one).open_file(path, "r+"), [4], version=1)  # but any number of clients of the first
    assert one.flush() == 2


def test_a_pool_that_only_reads_a_file_does_not_keep_others_from_writing_it(two, data_file):
    one, other = two
    path = data_file(16)
    assert one.open_file(path)[3].size
    fill(other.open_file(path, "r+"), [3], version=1)
    assert other.flush() == 1


@pytest.mark.parametrize("how", ["removed", "closed", "killed", "refused"])
def test_a_file_is_free_once_no_process_of_the_first_pool_writes_it(two, data_file, how):
    one, other = two
    path = data_file(16)
    if how == "removed":
        space = one.open_file(path, "r+")
        space.remove()
    elif how == "closed":
        with bp.Pool.attach(one.name) as client:
            client.open_file(path, "r+")
    elif how == "refused":
        with pytest.raises(SpaceFull):
            one.open_file(path, "r+", max_pages=1 << 30)
    else:
        code = f"import bufferpool as bp, os\nbp.Pool.attach({one.name!r}).open_file({str(path)!r}, 'r+')\nos.kill(os.getpid(), 9)"
        assert run_python(code).returncode == -signal.SIGKILL
    fill(other.open_file(path, "r+"), [3], version=1)
    assert other.flush() == 1


@pytest.mark.parametrize("when", ["flush", "open", "reap", "steward"])
def test_a_claim_ends_in_every_process_when_the_space_is_removed_by_one(two, attach, data_file, when):
    """A second client kept its claim on the file, and its descriptors, until its process ended: another pool got FileInUse."""
    one, other = two
    path, unrelated = data_file(16), data_file(16)
    client = attach(one)
    space = one.open_file(path, "r+")
    fill(client.open_file(path, "r+"), [3], version=1)
    assert client.flush() == 1
    space.remove()
    with pytest.raises(FileInUse):
        other.open_file(path, "r+")
    if when == "open":
        client.open_file(unrelated, "r+")
    elif when == "steward":
        client.start_steward(bp.Settings(interval=0.01))
    else:
        getattr(client, when)()
    wait_until(
        lambda: not any(store.path == str(path) for store in list(client.client.claims.values())), "the claim ends"
    )
    assert not any(store.path == str(path) for _, store in client.client.stores.values())
    fill(other.open_file(path, "r+"), [4], version=1)
    assert other.flush() == 1
    assert one.check() == []
    assert other.check() == []


def test_a_claim_is_kept_while_its_space_is_being_opened(two, data_file, monkeypatch):
    """A file is claimed before its space is in the directory: a steward's round in between must not end the claim."""
    one, other = two
    path = data_file(16)
    connect = directory._connect

    def after_a_round(pool, space, truncate):
        claim.drop_unused(pool)
        return connect(pool, space, truncate)

    with monkeypatch.context() as patch:
        patch.setattr(directory, "_connect", after_a_round)
        fill(one.open_file(path, "r+"), [3], version=1)
    with pytest.raises(FileInUse):
        other.open_file(path, "r+")
    assert one.flush() == 1
    assert one.check() == []


def test_a_flush_by_a_process_that_opened_nothing_does_not_write_another_pools_file(two, attach, data_file):
    """The dirty pages of the first are kept, until the second is done with the file."""
    one, other = two
    path = data_file(16)
    with bp.Pool.attach(one.name) as client:
        fill(client.open_file(path, "r+"), [3], version=1)
    second = other.open_file(path, "r+")
    before = path.read_bytes()
    for refused in (one.flush, lambda: one.overwrite(path.name)):
        with pytest.raises(FileInUse):
            refused()
    assert path.read_bytes() == before
    assert dirty(one) == 1
    second.remove()
    assert one.flush() == 1


def test_of_several_that_come_together_at_most_one_gets_the_file(make_pool, data_file, child, spawn):
    pools, path = [make_pool() for _ in range(3)], data_file(16)
    go, done, tried = spawn.Event(), spawn.Event(), [spawn.Event() for _ in range(3)]
    children = [
        child(_claim_it, pool.name, str(path), go, event, done) for pool, event in zip(pools, tried, strict=True)
    ]
    go.set()
    assert all(event.wait(WAIT) for event in tried)
    done.set()
    assert sum(c.result() for c in children) <= 1


def _claim_it(name, path, go, tried, done):
    with bp.Pool.attach(name) as pool:
        go.wait(WAIT)
        try:
            pool.open_file(path, "r+")
        except FileInUse:
            return False
        finally:
            tried.set()
        done.wait(WAIT)
        return len(pool.stats().spaces) == 1


def test_a_lock_of_another_program_over_the_whole_file_is_no_pool(two, data_file):
    one, other = two
    path = data_file(16)
    with open(path, "r+b") as file:
        fcntl.lockf(file, fcntl.LOCK_SH)  # of this process: it does not conflict with itself
        fill(one.open_file(path, "r+"), [3], version=1)
        assert one.flush() == 1
    code = f"""
import fcntl, bufferpool as bp
file = open({str(path)!r}, "r+b")
fcntl.lockf(file, fcntl.LOCK_EX)
import subprocess, sys
run = "import bufferpool as bp; s = bp.Pool.attach({other.name!r}).open_file({str(path)!r}, 'r+'); print(len(s))"
print(subprocess.run([sys.executable, "-c", run], capture_output=True, text=True).stdout)
"""
    one.close()
    assert run_python(code).stdout.strip() == "16"


def test_a_file_system_without_such_locks_does_not_stop_anybody(two, data_file, monkeypatch):
    def none(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(claim.fcntl, "fcntl", none)
    one, other = two
    path = data_file(16)
    fill(one.open_file(path, "r+"), [3], version=1)
    fill(other.open_file(path, "r+"), [4], version=1)
    assert one.flush() == 1
    with pytest.raises(StoreError, match="written by another program"):  # its times tell
        other.flush()
