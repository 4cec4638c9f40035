"""Appending: a new page at the end of a space, for one writer and for many."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from bufferpool.errors import PageOutOfRange, PoolExhausted, SpaceFull, SpaceReadOnly
from tests.conftest import PAGE, WAIT, stamp
from tests.support.memory_store import Forgetful


def test_append_adds_a_page_of_zeros_at_the_end(pool, table):
    write = table.append()
    assert write.page_no == 100
    assert len(table) == 100
    with write as page:
        assert page.shape == (PAGE,)
        assert not page.any()
        page[:] = stamp(100)
    assert len(table) == 101
    assert np.array_equal(table[100], stamp(100))
    assert pool.stats().appends == 1


def _append_one(space):
    before = len(space)
    write = space.append()
    with write as page:
        page[:] = stamp(write.page_no)
    return before, write.page_no, len(space)


def test_growth_is_seen_by_other_clients(pool, attach, table, child):
    other = attach(pool).open_file(table._wanted.options["path"], "r+")
    assert _append_one(table) == (100, 100, 101)
    assert np.array_equal(other[100], stamp(100))
    assert child(_append_one, table).result() == (101, 101, 102)
    assert len(table) == len(other) == 102
    assert np.array_equal(other[101], stamp(101))
    with pytest.raises(PageOutOfRange):
        table[102]


def test_an_aborted_append_leaves_no_page(table):
    with pytest.raises(KeyError):  # noqa: PT012, SIM117
        with table.append() as page:
            page[:] = 1
            raise KeyError
    unused = table.append()
    assert unused.page_no == 100
    del unused
    assert len(table) == 100
    assert _append_one(table) == (100, 100, 101)


def test_nested_appends_get_pages_of_their_own(table):
    first, second = table.append(), table.append()
    assert (first.page_no, second.page_no) == (100, 101)
    with first as page:
        page[:] = stamp(100)
        with second as inner:
            inner[:] = stamp(101)
        assert not table[100].any()  # not there yet: zeros
    assert len(table) == 102
    assert np.array_equal(table[100], stamp(100))
    assert np.array_equal(table[101], stamp(101))


def test_appends_that_abort_inside_out_leave_no_page(table):
    with pytest.raises(KeyError):  # noqa: SIM117
        with table.append(), table.append(), table.append():
            raise KeyError
    assert _append_one(table) == (100, 100, 101)


def test_many_processes_append_without_losing_a_page(pool, table, child):
    children = [child(_append_many, table, 50) for _ in range(3)]
    numbers = [n for c in children for n in c.result()]
    assert sorted(numbers) == list(range(100, 250))
    assert len(table) == 250
    for n in range(100, 250):
        assert np.array_equal(table[n], stamp(n))
    assert pool.flush() > 0


def _append_many(space, n):
    return [_append_one(space)[1] for _ in range(n)]


def test_append_stops_at_max_pages(pool, data_file):
    space = pool.open_file(data_file(4), "r+", max_pages=6)
    for n in (4, 5):
        assert _append_one(space)[1] == n
    with pytest.raises(SpaceFull, match="max_pages"):
        space.append()
    assert len(space) == 6


def test_append_far_beyond_the_first_entries(make_pool):
    pool = make_pool(max_pages=1 << 20)
    space = pool.open_scratch("work", 1)
    space.drop()
    path_pages = 3000  # entries get memory in steps of 512
    table = pool.open_store("table", Forgetful(), max_pages=path_pages, mode="r+")
    for n in range(path_pages):
        assert _append_one(table)[1] == n
    assert pool.check() == []


def test_a_space_that_is_open_for_reading_is_not_written(pool, data_file):
    space = pool.open_file(data_file(4))
    for use in (lambda: space.write(0), space.append):
        with pytest.raises(SpaceReadOnly, match=r"r\+"):
            use()
    with pytest.raises(TypeError):
        space.write(0)
    derived = pool.open_derived("derived", 4, lambda n, out: None)
    for use in (lambda: derived.write(0), derived.append):
        with pytest.raises(SpaceReadOnly):
            use()


def test_a_number_is_not_given_back_to_the_next_space_in_the_slot(pool):
    """An append of a space that was removed gave "its" number back to the space that has the slot now.

    The next two appends of that one got the same number then, and the first one's page was overwritten.
    """
    old = pool.open_scratch("t", 3)
    stale = old.append()
    old.remove(discard=True)
    new = pool.open_scratch("t", 3)
    assert new.index == old.index
    with new.append() as page:
        del stale
        with new.append() as other:
            page[:], other[:] = 1, 2
    assert len(new) == 5
    assert [int(new[n][0]) for n in (3, 4)] == [1, 2]
    assert pool.check() == []


# ---- growing -------------------------------------------------------------------------------------


def test_a_space_grows_to_a_number_of_pages_in_one_call(pool, data_file):
    """An engine that writes page n of a file had to append every page before it, each with a frame of its own."""
    path = data_file(1)
    space = pool.open_file(path, "r+", max_pages=5000)
    before = pool.stats().frames.live
    assert space.grow(4000) == len(space) == 4000
    assert pool.stats().frames.live == before + 1
    assert not space[1].any()
    assert not space[3999].any()
    with space.write(2000) as page:
        page[:] = stamp(2000)
    assert space.append().page_no == 4000
    assert space.grow(10) == 4000
    pool.flush()
    assert path.stat().st_size == 4000 * PAGE
    space.remove()
    again = pool.open_file(path, "r+")
    assert len(again) == 4000
    assert np.array_equal(again[2000], stamp(2000))
    assert not again[3999].any()
    assert pool.check() == []


def test_a_scratch_space_grows_without_memory_for_its_pages(pool):
    space = pool.open_scratch("space", 2)
    assert space.grow(100) == 100
    assert pool.stats().frames.live == 0
    assert not space[99].any()
    with pytest.raises(SpaceFull, match="open it with more pages"):
        space.grow(1 << 20)
    assert pool.check() == []


def test_a_number_of_pages_that_cannot_be_is_refused(pool, data_file):
    space = pool.open_file(data_file(1), "r+", max_pages=10)
    for wrong in (True, 1.5, "3", None):
        with pytest.raises(TypeError, match="number of pages"):
            space.grow(wrong)
    with pytest.raises(ValueError, match="negative"):
        space.grow(-1)
    for many in (11, 1 << 70):
        with pytest.raises(SpaceFull, match=f"at most 10 pages, and cannot have {many}"):
            space.grow(many)
    assert space.grow(0) == 1
    with pytest.raises(SpaceReadOnly):
        pool.open_derived("made", 1, lambda n, out: None).grow(2)
    with pytest.raises(SpaceReadOnly):
        pool.open_file(data_file(1), "r").grow(2)


def _grow_and_write(space, first, last):
    for n in range(first, last, 3):
        space.grow(n + 1)
        with space.write(n) as page:
            page[:] = stamp(n)
    return [n for n in range(first, last, 3) if not np.array_equal(space[n], stamp(n))]


def test_many_processes_grow_a_space_and_write_its_pages(pool, data_file, child):
    """A space that two processes make longer at once: neither replaces by zeros what the other one has written there."""
    space = pool.open_file(data_file(1), "r+", max_pages=1000)
    children = [child(_grow_and_write, space, first, 300) for first in (1, 2, 3)]
    appended = [_append_one(space)[1] for _ in range(40)]
    assert [one.result() for one in children] == [[], [], []]
    assert len(space) >= 300
    assert len(set(appended)) == 40
    for n in {*range(1, 300)} - {*appended}:
        assert np.array_equal(space[n], stamp(n)), n
    assert pool.check() == []


def test_a_space_that_finds_no_frame_to_grow_can_be_written(make_pool, data_file):
    """A growth that failed for want of a second frame kept the writer field of the new last page, so that nobody could write the
    page, and no test noticed."""
    pool = make_pool(16 * PAGE)
    full = pool.open_derived("full", 16, lambda n, out: out.fill(0))
    space = pool.open_file(data_file(1), "r+", max_pages=10)
    held = [full[n] for n in range(15)]  # one frame is left
    with pytest.raises(PoolExhausted):
        space.grow(5, timeout=0.1)
    assert len(space) == 1
    held.clear()
    with space.append(timeout=WAIT) as page:
        page[:] = stamp(1)
    assert space.grow(5, timeout=WAIT) == 5
    with space.write(4, timeout=WAIT) as page:
        page[:] = stamp(4)
    assert pool.check() == []


GROWING = """
import json, os, signal, sys
import bufferpool as bp

name, path, log, point = sys.argv[1:]
pool = bp.Pool.create(name, "1MiB", page_size=4096)
space = pool.open_file(path, "r+", max_pages=20)
pid = os.fork()
if pid == 0:
    os.environ.update(BUFFERPOOL_KILLED=log, BUFFERPOOL_KILL=f"{point}:1:{int(signal.SIGSTOP)}")
    space.grow(10)
    os._exit(1)
os.waitpid(pid, os.WUNTRACED)
told = []
try:
    told.append(space.grow(10, timeout=0.1))
except bp.errors.WaitTimeout:
    told.append("timeout")
told.append(space.grow(9))  # its last page is another one, or it is longer already
os.kill(pid, signal.SIGKILL)
os.waitpid(pid, 0)
told += [space.grow(10), len(space), pool.check()]
with space.write(9, timeout=20) as page:
    page[:] = 1
print(json.dumps(told))
pool.close()
bp.Pool.remove(name, discard=True)
"""


@pytest.mark.parametrize(("point", "told"), [("lengthen.owned", ["timeout", 9]), ("lengthen.published", [10, 10])])
def test_growing_waits_no_longer_than_it_may_for_one_that_is_stopped(
    faulty_package, tmp_path, pool_name, data_file, point, told
):
    """Corner: a process that makes the file as long is stopped while it has the writer field of the new last page; or when it has
    published that page, and the space is not longer yet. The process that grows the space then releases the page."""
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(faulty_package.parent)}
    done = subprocess.run(
        [sys.executable, "-c", GROWING, pool_name, str(data_file(1)), str(tmp_path / "killed"), point],
        capture_output=True, text=True, timeout=WAIT, check=False, cwd=faulty_package.parent, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "killed").read_text() == point
    assert json.loads(done.stdout) == [*told, 10, 10, []]
