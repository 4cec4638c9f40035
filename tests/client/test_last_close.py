"""A pool without a name ends with its last process, which lost what nobody had flushed, without a word."""

import gc
import multiprocessing
import os
import pickle
import signal
import warnings

import pytest

import bufferpool as bp
from bufferpool.cli import main
from bufferpool.client import client
from bufferpool.errors import PoolClosed, PoolNameless, StoreError, UnsavedPages, WaitTimeout
from bufferpool.upkeep import nameless
from tests.conftest import PAGE, fill, new_name, page_of, stamp, wait_until
from tests.support.children import exit_code, forked, run_python
from tests.support.disks import Disk, dirty, put

pytestmark = pytest.mark.filterwarnings("ignore::bufferpool.errors.PoolNameless")

REMOVERS = {
    "unlink": lambda pool: pool.unlink(),
    "Pool.remove": lambda pool: bp.Pool.remove(pool.name),
    "rm": lambda pool: os.unlink(pool.path),
    "rm --force": lambda pool: main(["rm", "--force", pool.name]),
}


def written(path) -> bool:
    return page_of(path, 3) == stamp(3, version=1).tobytes()


@pytest.fixture
def nameless_pool(pool, data_file):
    """(pool, path): a pool without a name, which has one dirty page of a file."""
    path = data_file(16)
    space = pool.open_file(path, "r+")
    pool.unlink()
    fill(space, [3], version=1)
    return pool, path


@pytest.mark.parametrize("remover", REMOVERS.values(), ids=REMOVERS)
@pytest.mark.parametrize("how", ["close", "with block", "with block and array", "error"])
def test_the_last_close_writes_what_nobody_has_flushed(pool, data_file, remover, how):
    path = data_file(16)
    space, page = pool.open_file(path, "r+"), None
    remover(pool)
    fill(space, [3], version=1)
    if how == "close":
        pool.close()
    elif how == "error":
        with pytest.raises(ZeroDivisionError), pool:
            1 / 0  # noqa: B018
    else:
        with pool:
            page = space[3] if how == "with block and array" else None
    assert written(path)
    with pytest.raises(PoolClosed):
        pool.stats()
    del page


def test_a_pool_with_a_name_keeps_its_pages_at_a_close(pool, attach, data_file):
    path = data_file(16)
    fill(attach(pool).open_file(path, "r+"), [3], version=1)
    pool.close()
    assert not written(path)


LEFT_OPEN = """
import os, sys
import bufferpool as bp
pool = bp.Pool.attach(sys.argv[1])
space = pool.open_file(sys.argv[2], "r+")
pool.unlink()
with space.write(3) as page:
    page[:] = list(bytes.fromhex(sys.argv[3]))
if sys.argv[4] == "failing":
    os.truncate(sys.argv[2], 4096)
elif sys.argv[4] == "dropped and failing":
    os.truncate(sys.argv[2], 4096)
    del space, pool, page
"""


@pytest.mark.parametrize("how", ["open", "failing", "dropped and failing"])
def test_the_end_of_the_interpreter_writes_them_or_says_that_it_cannot(data_file, how):
    path, name = data_file(16), new_name()
    bp.Pool.create(name, 64 * PAGE, page_size=PAGE).close()
    done = run_python(LEFT_OPEN, name, str(path), stamp(3, version=1).tobytes().hex(), how)
    assert done.returncode == 0
    assert written(path) == (how == "open")
    assert (done.stderr == "") == (how == "open")
    if how != "open":
        assert "PoolNameless" in done.stderr
        assert "FileChanged" not in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("cycle", [False, True])
def test_a_pool_that_was_dropped_is_saved_before_it_detaches(data_file, cycle):
    path = data_file(16)
    pool = bp.Pool.create(new_name(), 64 * PAGE, page_size=PAGE)
    space = pool.open_file(path, "r+")
    pool.unlink()
    fill(space, [3], version=1)
    if cycle:
        pool.round = space
    del pool, space
    gc.collect()
    wait_until(lambda: written(path), "the dropped pool has saved its page")
    wait_until(lambda: not client._dropped, "the dropped pool is closed")


def _write_when_the_parent_has_left(pool, path, gate):
    assert os.read(gate, 1) == b"x"
    fill(pool.space(path.name, "r+"), [4], version=1)
    pool.close()


def test_a_child_that_is_the_last_writes_its_own_pages(nameless_pool):
    pool, path = nameless_pool
    gate, opener = os.pipe()
    pid = forked(_write_when_the_parent_has_left, pool, path, gate)
    pool.close()
    assert written(path)  # it may have been the last
    os.write(opener, b"x")
    assert exit_code(pid) == 0
    os.close(gate)
    os.close(opener)
    assert page_of(path, 4) == stamp(4, version=1).tobytes()


def _write_and_leave(pool, path):
    fill(pool.open_file(path, "r+"), [5], version=1)


def test_a_worker_of_multiprocessing_writes_them_at_its_end(nameless_pool):
    pool, path = nameless_pool
    worker = multiprocessing.get_context("fork").Process(target=_write_and_leave, args=(pool, path))
    worker.start()
    worker.join()
    assert page_of(path, 5) == stamp(5, version=1).tobytes()


def _write_and_die(pool, path):
    fill(pool.open_file(path, "r+"), [6], version=1)
    os.kill(os.getpid(), signal.SIGKILL)


def test_pages_of_a_killed_process_are_written_by_the_next_that_leaves(nameless_pool):
    pool, path = nameless_pool
    assert exit_code(forked(_write_and_die, pool, path)) == -signal.SIGKILL
    pool.close()
    assert page_of(path, 6) == stamp(6, version=1).tobytes()


def test_only_the_last_copy_of_a_process_writes(nameless_pool):
    pool, path = nameless_pool
    again = pickle.loads(pickle.dumps(pool))
    assert again.stats().clients == 1
    pool.close()
    assert not written(path)
    again.close()
    assert written(path)


def test_pages_of_other_sizes_are_written_too(pool, data_file):
    path = data_file(16)
    space = pool.open_file(path, "r+", page_size=2 * PAGE)
    pool.unlink()
    with space.write(1) as page:
        page[PAGE:] = stamp(3, version=1)
    pool.close()
    assert written(path)


def test_a_store_that_fails_keeps_the_pool_open(pool):
    disk = Disk(8)
    space = pool.open_store("disk", disk, mode="r+")
    pool.unlink()
    put(space, 2, 5)
    disk.fails = "sync"
    with pytest.raises(StoreError, match="no sync today") as refused:
        pool.close()
    assert "close(discard=True)" in refused.value.__notes__[0]
    with pytest.raises(StoreError), pool:
        pass
    with pytest.raises(ZeroDivisionError), pytest.warns(PoolNameless, match="no sync today"), pool:
        1 / 0  # noqa: B018
    assert dirty(pool) == 1
    disk.fails = None
    pool.close()
    assert disk.version(2) == 5


@pytest.mark.parametrize("size", [PAGE, 2 * PAGE])
def test_a_store_that_fails_keeps_the_other_page_sizes_open(pool, size):
    """The clients of other page sizes were closed one by one before the store of the next one was asked."""
    spaces = {n: pool.open_scratch(f"work-{n}", 4, page_size=n) for n in (PAGE, 2 * PAGE)}
    disk = Disk(8)
    space = pool.open_store("disk", disk, mode="r+", page_size=size)
    pool.unlink()
    put(space, 2, 5)
    disk.fails = "sync"
    with pytest.raises(StoreError, match="no sync today"):
        pool.close()
    for other in spaces.values():
        assert not other[1].any()
    disk.fails = None
    pool.close()
    assert disk.version(2 * size // PAGE) == 5


def test_a_store_that_hangs_is_waited_for_only_while_pages_get_clean(pool, monkeypatch):
    """Copies of the pool that share its attachment work meanwhile: no lock is held."""
    monkeypatch.setattr(nameless, "STILL_S", 0.2)
    disk = Disk(8)
    again = pickle.loads(pickle.dumps(pool))
    space = pool.open_store("disk", disk, mode="r+")
    pool.unlink()
    put(space, 2, 5)
    hanging, release = bp._locks.Event(), bp._locks.Event()

    def hang():
        hanging.set()
        release.wait()

    disk.before_sync = hang
    with pytest.raises(WaitTimeout, match="'disk'"):
        pool.close()
    assert hanging.is_set()
    assert again.stats().frames.dirty == 1
    again.close()
    release.set()
    pool.close()
    assert disk.version(2) == 5


def test_pages_that_only_another_process_can_write_are_its_own_care_while_it_lives(pool, attach):
    disk, other = Disk(8), attach(pool)
    put(other.open_store("disk", disk, mode="r+"), 2, 5)
    os.unlink(pool.path)
    pool.close()  # the other one has the store
    other.client.stores.clear()
    with pytest.raises(UnsavedPages, match=r"1 dirty page \(1 of 'disk'\).*open_store") as refused:
        other.close()
    assert refused.value.pages == {"disk": 1}
    space = other.open_store("disk", disk, mode="r+")
    del space
    other.close()
    assert disk.version(2) == 5


def test_a_reader_that_is_the_last_says_what_is_lost(pool, data_file):
    path = data_file(16)
    reader = bp.Pool.attach(pool.name, mode="r")
    fill(pool.open_file(path, "r+"), [3], version=1)
    os.unlink(pool.path)
    pool.close(discard=True)
    with pytest.raises(UnsavedPages, match="reading only"):
        reader.close()
    assert [n for n, _ in reader.dirty_pages(path.name)] == [3]
    reader.close(discard=True)
    assert not written(path)


def test_the_log_comes_first(pool):
    disk, synced = Disk(8), []

    def sync(lsn):
        synced.append(lsn)
        return lsn

    space = pool.open_store("disk", disk, mode="r+")
    pool.log_sync = sync
    pool.durable_lsn = 3
    os.unlink(pool.path)
    put(space, 2, 5)
    pool.close()
    assert synced == [5]
    assert disk.version(2) == 5


def test_pages_above_the_durable_lsn_are_not_written(pool):
    disk = Disk(8)
    space = pool.open_store("disk", disk, mode="r+")
    pool.durable_lsn = 3
    os.unlink(pool.path)
    put(space, 2, 5)
    with pytest.raises(UnsavedPages, match="durable_lsn"):
        pool.close()
    assert disk.version(2) == 0
    pool.durable_lsn = 5
    pool.close()
    assert disk.version(2) == 5


DISCARDERS = {
    "unlink": lambda pool: pool.unlink(discard=True),
    "Pool.remove": lambda pool: bp.Pool.remove(pool.name, discard=True),
    "rm --discard": lambda pool: main(["rm", "--force", "--discard", pool.name]),
    "close": lambda pool: os.unlink(pool.path),
}


@pytest.mark.parametrize("discard", DISCARDERS.values(), ids=DISCARDERS)
def test_pages_that_nobody_needs_are_not_written(pool, attach, data_file, discard):
    """The one that removes the pool decides for every process that has it open."""
    path, other = data_file(16), attach(pool)
    fill(pool.open_file(path, "r+"), [3], version=1)
    before = path.read_bytes()
    discard(pool)
    asked = discard is DISCARDERS["close"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pool.close(discard=asked)
        other.close(discard=asked)
    assert path.read_bytes() == before


def test_discard_must_be_a_flag(pool):
    with pytest.raises(TypeError, match="discard"):
        pool.close(discard="yes")
    assert pool.check() == []
