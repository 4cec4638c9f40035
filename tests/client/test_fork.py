"""What a fork inherits, and what it leaves."""

import multiprocessing
import os
import signal
import threading

import numpy as np
import pytest

from bufferpool.errors import SpaceNotFound, SpacePrivate, TooManyClients, WrongProcess
from tests.conftest import WAIT, client_of, pins, stamp, wait_until
from tests.support.children import exit_code, forked, run_python

pytestmark = pytest.mark.kernel

CONTEXTS = ["fork", "spawn", "forkserver"]


def _look(view, have, go):
    have.set()
    assert go.wait(WAIT)
    return bytes(view)


@pytest.mark.parametrize("how", ["array", "slice", "pin", "memoryview"])
def test_a_view_that_a_fork_inherits_is_pinned_in_the_childs_own_name(pool, data_file, child, how):
    table = pool.open_file(data_file(100))
    pin = table.pin(3)
    view = {
        "array": lambda: table[3],
        "slice": lambda: table[3][:],
        "pin": lambda: pin.page,
        "memoryview": lambda: memoryview(table[3]),
    }[how]()
    if how != "pin":
        del pin
    context = multiprocessing.get_context("fork")
    have, go = context.Event(), context.Event()
    looking = child(_look, view, have, go, context="fork")
    assert have.wait(WAIT)
    assert pins(pool) == 2
    assert client_of(pool, looking.pid).pins == 1
    del view
    if how == "pin":
        del pin
    looking.process._args = ()  # multiprocessing keeps the arguments
    assert client_of(pool, os.getpid()).pins == 0
    assert client_of(pool, looking.pid).pins == 1
    for n in range(100):  # more pages than the pool has: 3 would go if nobody pinned it
        assert np.array_equal(table[n], stamp(n))
    assert pool.check() == []
    go.set()
    assert looking.result() == stamp(3).tobytes()
    pool.reap()
    assert pins(pool) == 0
    assert pool.stats().clients == 1


def _drop_views(views, dropped, go):
    count = len(views)
    views.clear()
    dropped.set()
    assert go.wait(WAIT)
    return count


def test_views_that_the_child_lets_go_stay_pinned_for_the_parent(pool, data_file, child):
    table = pool.open_file(data_file(100))
    views = [table[n] for n in (1, 2, 2)]
    context = multiprocessing.get_context("fork")
    dropped, go = context.Event(), context.Event()
    dropping = child(_drop_views, views, dropped, go, context="fork")
    assert dropped.wait(WAIT)
    assert client_of(pool, dropping.pid).pins == 0
    assert client_of(pool, os.getpid()).pins == 3
    go.set()
    assert dropping.result() == 3
    assert np.array_equal(views[1], stamp(2))


def _use_after_fork(pool, table, work):
    assert np.array_equal(table[5], stamp(5))
    with table.write(6) as page:
        page[:] = stamp(6, version=1)
    with work.write(0) as page:
        page[:] = 7
    with table.append() as page:
        page[:] = stamp(100)
    own = pool.open_scratch("own", 4, lifetime="process")
    with own.write(0) as page:
        page[:] = 1
    assert pool.flush() == 2
    assert pool.check() == []
    names = [space.name for space in pool.stats().spaces]
    me = client_of(pool, os.getpid())
    pool.close()
    return me.client, names


def test_a_pool_works_in_a_forked_child(pool, data_file, child):
    path = data_file(100)
    table, work = pool.open_file(path, "r+"), pool.open_scratch("work", 4)
    client, names = child(_use_after_fork, pool, table, work, context="fork").result()
    assert client != client_of(pool, os.getpid()).client
    assert names == [path.name, "work", "own"]
    assert np.array_equal(table[6], stamp(6, version=1))
    assert np.array_equal(table[100], stamp(100))
    assert (work[0] == 7).all()
    assert [space.name for space in pool.stats().spaces] == [path.name, "work"]
    assert pool.stats().clients == 1


def _use_private_of_the_parent(pool, work, view):
    assert (view == 5).all()
    pool.reap()
    for use in (
        lambda: work[1],
        lambda: len(work),
        lambda: work.pin(1),
        lambda: work.read_many([1]),
        lambda: work.pin_many([1]),
        lambda: work.write(1),
        lambda: work.append(),
        lambda: work.drop(),
        lambda: list(work.scan()),
        lambda: work.remove(),
        lambda: work.remove(discard=True),
    ):
        with pytest.raises(SpacePrivate, match=r"(belongs|private) to client \d+"):
            use()
    work.close()  # ends nothing that is another's
    with pytest.raises(SpaceNotFound, match="private to client"):
        pool.space("mine")
    own = pool.open_scratch("mine", 4, lifetime="process")
    assert not own[1].any()
    with own.write(1) as page:
        page[:] = 6
    assert (pool.space("mine")[1] == 6).all()
    assert (view == 5).all()
    return [space.name for space in pool.stats().spaces]


def test_private_scratch_of_the_parent_is_not_the_child_s_and_stays_when_it_ends(pool, child):
    """A forked child wrote into its parent's private pages, by name and through the inherited handle."""
    work = pool.open_scratch("mine", 4, lifetime="process")
    with work.write(1) as page:
        page[:] = 5
    view = work[1]
    assert child(_use_private_of_the_parent, pool, work, view, context="fork").result() == ["mine", "mine"]
    pool.reap()
    assert (work[1] == 5).all()
    assert [space.name for space in pool.stats().spaces] == ["mine"]


def _exit_hard(view, space):
    kept = [space[n] for n in range(10)]
    writing = space.write(20)
    writing.__enter__()
    assert len(kept) == 10
    assert view[0] is not None
    os._exit(3)


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_a_child_that_exits_hard_leaves_nothing_after_a_reap(pool, data_file, context):
    table = pool.open_file(data_file(100), "r+")
    view = table[50] if context == "fork" else b"1"
    process = multiprocessing.get_context(context).Process(target=_exit_hard, args=(view, table))
    process.start()
    process.join(WAIT)
    assert process.exitcode == 3
    assert pool.reap() == 1
    del view, process
    assert pins(pool) == 0
    assert pool.stats().clients == 1
    assert pool.frames()["writer"].sum() == 0
    assert pool.check() == []
    with table.write(20, timeout=0):
        pass


def _publish_in_child(write, work):
    with pytest.raises(WrongProcess, match="parent"):
        write.__exit__(None, None, None)
    assert not work[1].any()
    with pytest.raises(TimeoutError):
        work.write(1, timeout=0.05).__enter__()  # the parent has it
    with work.write(2, timeout=0) as page:
        page[:] = 6
    return True


def test_a_write_block_that_a_fork_inherits_is_the_parents(pool, child):
    work = pool.open_scratch("work", 4)
    write = work.write(1)
    with write as page:
        page[:] = 5
        assert child(_publish_in_child, write, work, context="fork").result()
        assert not work[1].any()
    assert (work[1] == 5).all()
    assert (work[2] == 6).all()


def _leave_blocks(writes):
    """The child abandons the blocks in every way; none touches the parent's."""
    writes[0].__exit__(KeyError, KeyError(), None)
    del writes[:]
    return True


def test_blocks_that_a_forked_child_abandons_stay_the_parents(pool, data_file, child):
    table = pool.open_file(data_file(10), "r+")
    write, append = table.write(1), table.append()
    with write as page, append as new:
        page[:] = 5
        new[:] = 6
        assert child(_leave_blocks, [write, append], context="fork").result()
    assert (table[1] == 5).all()
    assert len(table) == 11
    assert (table[10] == 6).all()


def _first_byte(space):
    return int(space[1][0])


def test_a_fork_without_a_free_slot_says_so(make_pool, child):
    pool = make_pool(max_clients=1)
    work = pool.open_scratch("work", 4)
    page = work[1]
    with pytest.raises(TooManyClients, match="max_clients"):
        child(_first_byte, work, context="fork").result()
    assert not page.any()
    assert pool.stats().clients == 1


def test_children_that_never_use_the_pool_leave_nothing(pool, data_file):
    view = pool.open_file(data_file(10))[3]
    for _ in range(30):
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
    pool.reap()
    assert pool.stats().clients == 1
    assert pins(pool) == 1
    assert np.array_equal(view, stamp(3))


def test_more_forks_than_client_slots_one_after_the_other(make_pool):
    pool = make_pool(max_clients=4)
    work = pool.open_scratch("work", 4)
    for i in range(20):
        pid = os.fork()
        if pid == 0:
            try:
                with work.write(i % 4) as page:
                    page[:] = i
                os._exit(0)
            except BaseException:  # noqa: BLE001
                os._exit(1)
        assert os.waitpid(pid, 0)[1] == 0
    assert [int(work[n][0]) for n in range(4)] == [16, 17, 18, 19]


def test_a_fork_of_a_fork(pool):
    work = pool.open_scratch("work", 4)
    page = work[1]
    pid = os.fork()
    if pid == 0:
        inner = os.fork()
        if inner == 0:
            try:
                with work.write(2) as copy:
                    copy[:] = 3
                os._exit(0 if not page.any() else 2)
            except BaseException:  # noqa: BLE001
                os._exit(1)
        os._exit(os.waitstatus_to_exitcode(os.waitpid(inner, 0)[1]))
    assert os.waitpid(pid, 0)[1] == 0
    assert (work[2] == 3).all()
    pool.reap()
    assert pins(pool) == 1


def test_forks_while_threads_read_and_write(pool, data_file, threads):
    table = pool.open_file(data_file(100), "r+")
    stop = threading.Event()

    def work(seed):
        random = np.random.default_rng(seed)
        while not stop.is_set():
            n = int(random.integers(0, 100))
            with table.write(n, timeout=WAIT) as page:
                assert np.array_equal(page, stamp(n))
            assert np.array_equal(table[n], stamp(n))

    for seed in range(3):
        threads.start(work, seed)
    try:
        for _ in range(30):
            assert exit_code(forked(lambda: 0 if np.array_equal(table[7], stamp(7)) else 2)) == 0
    finally:
        stop.set()
        threads.join()
    pool.reap()
    assert pins(pool) == 0
    assert pool.stats().clients == 1


def _killed_by(signum, work):
    kept = work[1]
    os.kill(os.getpid(), signum)
    return kept


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL, signal.SIGHUP])
def test_a_child_that_a_signal_ends_leaves_nothing(pool, signum):
    work = pool.open_scratch("work", 4)
    process = multiprocessing.get_context("fork").Process(target=_killed_by, args=(signum, work))
    process.start()
    process.join(WAIT)
    assert process.exitcode == -signum
    pool.reap()
    assert pool.stats().clients == 1
    assert pins(pool) == 0


# ---- a fork in the loader ---------------------------------------------------------------------


@pytest.mark.parametrize("first", ["parent", "child"])
def test_a_loader_that_forks_and_returns_twice_loads_for_its_own_process(pool, first):
    """The load is the parent's; the child, which returns from the same loader, waits for that."""
    children, (read, write) = [], os.pipe()

    def loader(page_no, out):
        if page_no == 3:
            pid = os.fork()
            children.extend([pid] if pid else [])
            if bool(pid) == (first == "parent"):
                os.write(write, b".")
            else:
                assert os.read(read, 1) == b"."
        out[:] = page_no

    space = pool.open_derived("made", 8, loader)
    outer = pool.open_derived("outer", 8, lambda page_no, out: out.__setitem__(slice(None), int(space[3][0]) + 1))
    parent, code = os.getpid(), 1
    try:
        code = 0 if int(outer[0][0]) == 4 and [int(space[n][0]) for n in range(8)] == list(range(8)) else 2
    finally:
        if os.getpid() != parent:
            os._exit(code)
    assert code == 0
    _, status = os.waitpid(children[0], 0)
    assert os.waitstatus_to_exitcode(status) == 0
    pool.reap()
    assert pool.stats().frames.live == 9, "a frame that no page has"
    assert pool.stats().clients == 1
    assert pins(pool) == 0
    for end in (read, write):
        os.close(end)


_DIES_BEFORE_ITS_CHILD = """
import os, signal, sys
import bufferpool as bp
pool = bp.Pool.attach(sys.argv[1])
view = pool.space("work")[1]
kid = os.fork()
if kid == 0:
    os.close(1)
    os.close(2)
    signal.pause()
print(kid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_dead_parent_is_dead_though_its_child_lives(pool):
    """A mapping keeps the description that it was made with: one with a byte lock kept a dead parent alive in its child."""
    pool.open_scratch("work", 4)
    kid = int(run_python(_DIES_BEFORE_ITS_CHILD, pool.name).stdout)
    try:
        assert pool.reap() == 1
        assert [client.pid for client in pool.clients()] == [os.getpid(), kid]
        assert pins(pool) == 1
    finally:
        os.kill(kid, signal.SIGKILL)
    wait_until(lambda: pool.reap() >= 0 and pool.stats().clients == 1, "the child is reaped")
    assert pool.check() == []
