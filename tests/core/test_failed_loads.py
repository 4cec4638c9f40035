"""A failed loader has run once for all callers that wait for its page; and a wait for a page can have a timeout."""

import os
import time
from math import inf

import numpy as np
import pytest

import bufferpool as bp
from bufferpool import _core
from bufferpool.errors import LoaderFailed, WaitTimeout
from bufferpool.figures import stats
from bufferpool.upkeep import memory
from tests.conftest import PAGE, WAIT, stamp, wait_until
from tests.support.hanging import Gate, in_time


def _who_wait(pool):
    """How many clients have waited for a load."""
    where = _core.fields()
    with open(pool.path, "rb") as file:

        def word(at):
            return int.from_bytes(os.pread(file.fileno(), 8, at), "little")

        first = word(where["Header.geometry"][0] + where["Geometry.clients_at"][0])
        first += where["Client.counters"][0] + 8 * stats.COUNTERS.index("wait_load")
        return sum(word(first + (client.client - 1) * where["Client"][1]) > 0 for client in pool.clients())


def _wait_for_it(name, runs, waiting, go):
    """Asks for page 3, whose loader fails as soon as all other processes wait for the page."""

    def loader(page_no, out):
        with runs.get_lock():
            runs.value += 1
        assert go.wait(WAIT)
        raise ValueError(f"no page {page_no} today")

    with bp.Pool.attach(name) as pool:
        space = pool.open_derived("made", 8, loader)
        waiting.release()
        try:
            _ = space[3]
        except LoaderFailed as error:
            return str(error)
    return ""


def test_a_loader_that_fails_does_so_once_for_all_processes_that_wait(pool, child, spawn):
    """Each process that had waited for a failed load ran the loader again: eight processes took eight seconds."""
    runs, waiting, go = spawn.Value("i", 0), spawn.Semaphore(0), spawn.Event()
    children = [child(_wait_for_it, pool.name, runs, waiting, go) for _ in range(8)]
    for _ in children:
        assert waiting.acquire(timeout=WAIT)
    wait_until(lambda: runs.value == 1 and _who_wait(pool) == 7, "one loads and the others wait")
    go.set()
    told = [process.result() for process in children]
    assert all("ValueError('no page 3 today')" in text for text in told)
    assert sum("which this waited for" in text for text in told) == 7
    assert runs.value == 1
    made = pool.open_derived("made", 8, lambda n, out: out.fill(7))
    assert int(made[3][0]) == 7, "a caller that comes later loads the page"


def test_threads_that_wait_for_a_load_that_fails_get_its_error_and_the_next_call_loads(pool, threads):
    runs, told, gate = [], [], Gate()

    def loader(page_no, out):
        runs.append(page_no)
        gate.pass_through()
        if len(runs) == 1:
            raise OSError(5, "Input/output error")
        out[:] = stamp(page_no)

    def ask():
        with pytest.raises(LoaderFailed) as failed:
            _ = space[1]
        told.append(str(failed.value))

    space = pool.open_derived("made", 4, loader)
    gate.shut()
    for _ in range(2):
        threads.start(ask)
    gate.wait_until_somebody_came()
    wait_until(lambda: pool.stats().wait_load > 0, "the other waits")
    gate.open()
    threads.join()
    assert runs == [1]
    assert all("OSError(5, 'Input/output error')" in text for text in told)
    assert np.array_equal(space[1], stamp(1))
    assert runs == [1, 1]


def _load_and_be_killed(name, begun):
    def loader(page_no, out):
        begun.set()
        time.sleep(2 * WAIT)

    _ = bp.Pool.attach(name).open_derived("made", 4, loader)[2]


def test_a_loader_that_is_killed_has_not_failed(pool, child, spawn, threads):
    """A process that waits for a load loads the page itself if the loading process dies."""
    begun, got = spawn.Event(), []
    other = child(_load_and_be_killed, pool.name, begun)
    assert begun.wait(WAIT)
    space = pool.open_derived("made", 4, lambda n, out: out.fill(9))
    threads.start(lambda: got.append(int(space[2][0])))
    wait_until(lambda: pool.stats().wait_load > 0, "somebody waits")
    other.kill()
    threads.join()
    assert got == [9]


def test_the_failure_of_one_page_is_not_told_of_another(pool, threads):
    """A client remembers its last failed loads by page, so that callers that wait for its other loads do not get these errors."""
    gate = Gate()

    def loader(page_no, out):
        if page_no < 12:
            raise KeyError(page_no)
        gate.pass_through()
        out[:] = stamp(page_no)

    space = pool.open_derived("made", 16, loader)
    gate.shut()
    for _ in range(2):
        threads.start(lambda: np.testing.assert_array_equal(space[14], stamp(14)))
    gate.wait_until_somebody_came()
    wait_until(lambda: pool.stats().wait_load > 0, "the other waits")
    for n in range(12):
        with pytest.raises(LoaderFailed, match=f"page {n}: KeyError"):
            _ = space[n]
    gate.open()
    threads.join()


@pytest.mark.parametrize(
    "ask",
    [
        lambda space: space.get(2, timeout=0.1),
        lambda space: space.pin(2, timeout=0.1),
        lambda space: space.pin_many([1, 2], timeout=0.1),
        lambda space: space.read_many([1, 2], timeout=0.1),
    ],
    ids=["get", "pin", "pin_many", "read_many"],
)
def test_a_wait_for_a_page_that_somebody_else_loads_can_have_a_timeout(pool, threads, ask):
    """A caller waited for a page without limit while its loader hung in another thread or process."""
    gate = Gate()

    def loader(page_no, out):
        if page_no == 2:
            gate.pass_through()
        out[:] = stamp(page_no)

    space = pool.open_derived("made", 4, loader)
    gate.shut()
    threads.start(lambda: space[2] is not None)
    gate.wait_until_somebody_came()
    with pytest.raises(WaitTimeout, match="page 2: client"):
        in_time(ask, space)
    gate.open()
    threads.join()
    assert np.array_equal(space.get(2, timeout=0.0), stamp(2))
    with space.pin(2, timeout=None) as page:
        assert page.shape == (PAGE,)


def test_a_miss_that_finds_no_frame_keeps_its_timeout(pool, data_file):
    """Room is made for as long as the caller waits, and no longer."""
    table = pool.open_file(data_file(100))
    kept = [table[n] for n in range(64)]
    with pytest.raises(bp.errors.PoolExhausted):
        in_time(table.get, 70, timeout=0.0)
    kept.clear()
    assert np.array_equal(table.get(70, timeout=0.0), stamp(70))


def _replaces_both(space, fill):
    with space.pool.publish_many() as group:
        for n in range(2):
            group.write(space, n, timeout=3)[:] = 1
        fill(62)


def _after(call):
    def ask(space, fill):
        fill(64)
        call(space)

    return ask


@pytest.mark.parametrize(
    ("ask", "least_s", "most_s"),
    [
        (_after(lambda space: space.get(5, timeout=3)), 0, 3),
        (_after(lambda space: space.pin(5, timeout=3)), 0, 3),
        (_after(lambda space: space.grow(80, timeout=3)), 0, 3),
        (_replaces_both, inf, inf),
    ],
    ids=["get", "pin", "grow", "group"],
)
def test_only_what_has_been_edited_waits_for_a_frame_without_limit(pool, tmp_path, monkeypatch, ask, least_s, most_s):
    """A growth waited for a slow flush as a write does whose edited copy would be lost, whatever its timeout was."""
    (tmp_path / "data").write_bytes(bytes(64 * PAGE))
    space = pool.open_file(tmp_path / "data", "r+", max_pages=100)
    full = pool.open_derived("full", 64, lambda n, out: out.fill(0))
    held, left = [], []

    def make_room(client, want, found):
        left.append(found.left)
        held.clear()

    monkeypatch.setattr(memory, "make_room", make_room)
    ask(space, lambda pages: held.extend(full[n] for n in range(pages)))
    assert left
    assert all(least_s <= seconds <= most_s for seconds in left)


@pytest.mark.parametrize("wrong", [-1, float("nan"), "1", object()])
def test_a_timeout_that_is_none_is_refused(pool, data_file, wrong):
    table = pool.open_file(data_file(4))
    for ask in (table.get, table.pin):
        with pytest.raises((ValueError, TypeError)):
            ask(1, timeout=wrong)
        with pytest.raises(TypeError):
            ask(1, 2)
        with pytest.raises(TypeError):
            ask(1, wait=1)
