"""The working set, loaded: damage, what has gone since, interruptions, and whether it pays."""

import json
import os
import signal
import threading

import numpy as np
import pytest

import bufferpool as bp
from bufferpool.errors import WorkingSetError
from bufferpool.figures.names import FrameState
from bufferpool.upkeep import working_set
from tests.conftest import PAGE, WAIT, stamp, touch, wait_until


def resident(pool, space):
    frames = pool.frames()
    live = frames[(frames["state"] == FrameState.LIVE) & (frames["space"] == space.index)]
    return set(live["page_no"].tolist())


@pytest.fixture
def saved(make_pool, data_file, tmp_path):
    """A working set of 40 of a file's 200 pages."""
    path, file = tmp_path / "set", data_file(200, name="table.db")
    with bp.Pool.create(f"{make_pool().name}-first", 64 * PAGE, page_size=PAGE) as first:
        table = first.open_file(file)
        touch(table, range(0, 120, 3))
        assert first.save_working_set(path) == 40
        first.unlink()
    return path, file


def test_the_pages_are_there_again_in_the_background(pool, saved):
    path, file = saved
    work = pool.load_working_set(path)
    assert work.wait(WAIT)
    assert work.finished
    assert (work.total, work.done, work.loaded, work.skipped, work.error) == (40, 40, 40, {}, None)
    table = pool.open_file(file)
    assert resident(pool, table) == set(range(0, 120, 3))
    before = pool.stats().misses
    for n in range(0, 120, 3):
        assert np.array_equal(table[n], stamp(n))
    assert pool.stats().misses == before


def test_only_as_many_of_the_hottest_as_find_room(make_pool, saved):
    path, _ = saved
    pool = make_pool(16 * PAGE)
    work = pool.load_working_set(path)
    assert work.wait(WAIT)
    assert (work.total, work.loaded) == (16, 16)
    hottest = working_set.read_working_set(path).page[:16]
    assert resident(pool, pool.space("table.db")) == set(hottest.tolist())
    assert pool.load_working_set(path).total == 0  # the pages that are there are kept


def test_pages_are_read_in_file_order(pool, tmp_path):
    order = []

    def loader(page_no, out):
        order.append(page_no)
        out[:] = page_no % 251

    table = pool.open_derived("made", 100, loader)
    for n in (50, 3, 99, 7, 20, 21, 22):
        assert table[n].size
    pool.save_working_set(tmp_path / "set")
    table.drop()
    order.clear()
    work = pool.load_working_set(tmp_path / "set", [table])
    assert work.wait(WAIT)
    assert order == [3, 7, 20, 21, 22, 50, 99]
    assert work.loaded == 7


def test_spaces_with_a_loader_need_their_handle(pool, tmp_path):
    table = pool.open_derived("made", 100, _make)
    touch(table, range(5))
    pool.save_working_set(tmp_path / "set")
    table.drop()
    work = pool.load_working_set(tmp_path / "set")
    assert work.wait(WAIT)
    assert "spaces=" in work.skipped["made"]
    assert (work.done, work.loaded) == (5, 0)


def _make(page_no, out):
    out[:] = page_no % 251


def test_a_loader_that_raises_is_reported_and_the_others_continue(pool, saved, data_file, tmp_path):
    made, table = pool.open_derived("a", 100, _make), pool.open_file(saved[1])
    touch(made, range(5))
    touch(table, range(5))
    pool.save_working_set(tmp_path / "set")
    made.drop()
    table.drop()
    bad = pool.open_derived("a", 100, lambda n, out: 1 / 0)
    work = pool.load_working_set(tmp_path / "set", [bad])
    assert work.wait(WAIT)
    assert "ZeroDivisionError" in work.skipped["a"]
    assert (work.done, work.loaded) == (10, 5)


def test_a_file_that_has_vanished_shrunk_or_become_another(make_pool, pool, saved, data_file):
    path, file = saved
    other = data_file(4)
    os.truncate(file, 30 * PAGE)
    work = pool.load_working_set(path)
    assert work.wait(WAIT)
    assert (work.done, work.loaded) == (40, 10)
    assert resident(pool, pool.space("table.db")) == set(range(0, 30, 3))
    file.unlink()
    pool = make_pool()
    work = pool.load_working_set(path)
    assert work.wait(WAIT)
    assert "table.db" in work.skipped
    assert (work.done, work.loaded) == (40, 0)
    pool = make_pool()
    pool.open_file(other, name="table.db")
    work = pool.load_working_set(path)
    assert work.wait(WAIT)
    assert "another space" in work.skipped["table.db"]
    assert work.loaded == 0


def test_another_page_size(make_pool, saved):
    with pytest.raises(WorkingSetError, match="pages of 4096 bytes, the pool's have 8192"):
        make_pool("1MiB", page_size=8192).load_working_set(saved[0])


def test_damaged_files_are_typed_errors(pool, saved, tmp_path):
    path, _ = saved
    whole = path.read_bytes()
    bad = tmp_path / "bad"
    rng = np.random.default_rng(1)
    cases = [b"", b"x", b"PK\x03\x04", whole[: len(whole) // 2], whole[:-1], os.urandom(500), json.dumps({}).encode()]
    for _ in range(60):
        copy = bytearray(whole)
        for at in rng.integers(0, len(whole), 3):
            copy[at] ^= int(rng.integers(1, 256))
        cases.append(bytes(copy))
    refused = 0
    for data in cases:
        bad.write_bytes(data)
        try:
            pool.load_working_set(bad).wait(WAIT)
        except WorkingSetError:
            refused += 1
    assert refused > 7
    with pytest.raises(FileNotFoundError):
        pool.load_working_set(tmp_path / "none")


@pytest.mark.parametrize(
    "change",
    [
        {"format": np.uint32(9)},
        {"page": np.zeros(3, np.uint32)},
        {"space": np.full(40, 7, np.uint8)},
        {"space": np.zeros((40, 1), np.uint8), "page": np.zeros((40, 1), np.uint32)},
        {"hot": np.uint32(41)},
        {"page": np.array([b"x"] * 40, object)},
        {"spaces": np.frombuffer(b'[{"name": 3}]', np.uint8)},
        {"spaces": np.frombuffer(b'{"a": 1}', np.uint8)},
        {"spaces": np.frombuffer(b'[{"name": [], "kind": "FILE", "path": 5, "flags": 0}]', np.uint8)},
    ],
)
def test_a_file_that_contradicts_itself_is_refused(pool, saved, tmp_path, change):
    with np.load(saved[0]) as found:
        parts = {name: found[name] for name in found.files}
    np.savez(tmp_path / "bad.npz", **parts | change)
    with pytest.raises(WorkingSetError):
        pool.load_working_set(tmp_path / "bad.npz")


def test_progress_and_cancel(make_pool, tmp_path):
    pool = make_pool("4MiB")
    gate, seen = threading.Semaphore(0), []

    def loader(page_no, out):
        seen.append(page_no)
        gate.acquire()

    table = pool.open_derived("made", 600, _make)
    touch(table, range(600))
    pool.save_working_set(tmp_path / "set")
    table.remove()
    slow = pool.open_derived("made", 600, loader)
    work = pool.load_working_set(tmp_path / "set", [slow])
    for _ in range(working_set.CHUNK_PAGES):
        gate.release()
    wait_until(lambda: work.done == working_set.CHUNK_PAGES, "a chunk is done")
    assert not work.finished
    assert not work.wait(0.01)
    work.cancel()
    for _ in range(working_set.CHUNK_PAGES):
        gate.release()
    assert work.wait(WAIT)
    assert work.done == work.loaded == len(seen) == 2 * working_set.CHUNK_PAGES
    assert work.error is None


def _held_up(pool, path, gate):
    """A load of thirty pages whose loader waits for the gate."""
    table = pool.open_derived("made", 30, _make)
    touch(table, range(30))
    pool.save_working_set(path)
    table.remove()

    def waits(_page_no, _out):
        assert gate.wait(WAIT)

    slow = pool.open_derived("made", 30, waits)
    return pool.load_working_set(path, [slow])


class Interrupted(Exception):
    """What a signal handler raises."""


@pytest.mark.parametrize("how", ["wait", "join"])
def test_an_interrupted_wait_is_no_end(make_pool, tmp_path, how):
    """A thread's join() that a signal interrupts lets CPython 3.11 take the thread for ended."""
    pool, gate = make_pool(), threading.Event()
    work = _held_up(pool, tmp_path / "set", gate)

    def interrupt(_number, _frame):
        raise Interrupted

    def wait():
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        getattr(work, how)()

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with pytest.raises(Interrupted):
            wait()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert not work.finished
    assert not work.wait(0.01)
    gate.set()
    pool.close()  # waits for it, though it was interrupted before
    assert work.finished
    assert (work.loaded, work.error) == (30, None)
    assert not [t for t in threading.enumerate() if t.name.startswith("warm-up")]


def test_a_forked_child_waits_for_no_load_of_its_parents(make_pool, tmp_path, child):
    pool, gate = make_pool(), threading.Event()
    work = _held_up(pool, tmp_path / "set", gate)
    assert child(_look_and_close, pool, work, context="fork").result() == (True, True)
    assert not work.finished
    gate.set()
    assert work.wait(WAIT)
    assert work.loaded == 30


def _look_and_close(pool, work):
    seen = work.finished, work.wait()
    pool.close()
    return seen


def test_closing_the_pool_ends_a_load(pool, tmp_path):
    table = pool.open_derived("made", 60, _make)
    touch(table, range(60))
    pool.save_working_set(tmp_path / "set")
    table.drop()
    work = pool.load_working_set(tmp_path / "set", [table])
    del table
    pool.close()
    assert work.finished
    assert work.error is None
    assert not [t for t in threading.enumerate() if t.name.startswith("warm-up")]


def test_checksummed_files_are_opened_with_checksums(make_pool, tmp_path):
    pytest.importorskip("xxhash")
    pool, file = make_pool(), tmp_path / "sealed.db"
    table = pool.open_file(file, "w+", checksum=True)
    for n in range(10):
        with table.append() as page:
            page[:] = stamp(n)
    pool.flush()
    pool.save_working_set(tmp_path / "set")
    again = make_pool()
    assert again.load_working_set(tmp_path / "set").wait(WAIT)
    assert len(resident(again, again.space("sealed.db"))) == 10


def test_a_hot_set_survives_the_restart(make_pool, data_file, tmp_path):
    """The same requests, before, after a cold start, and after a warm one: misses, side by side."""
    file = data_file(2000)
    rng = np.random.default_rng(7)
    ids = np.minimum(rng.zipf(1.3, 12_000) - 1, 1999)
    ids = np.random.default_rng(8).permutation(2000)[ids]

    def misses(pool, requests):
        table, before = pool.open_file(file), pool.stats().misses
        touch(table, requests)
        return pool.stats().misses - before

    first = make_pool(256 * PAGE)
    misses(first, ids[:8000])
    first.save_working_set(tmp_path / "set")
    before = misses(first, ids[8000:10_000])
    cold = misses(make_pool(256 * PAGE), ids[8000:10_000])
    second = make_pool(256 * PAGE)
    work = second.load_working_set(tmp_path / "set")
    assert work.wait(WAIT)
    after = misses(second, ids[8000:10_000])
    print(f"misses of 2000: before {before}, cold {cold}, warm {after}")
    assert after <= 1.1 * before
    assert cold > 1.2 * after
