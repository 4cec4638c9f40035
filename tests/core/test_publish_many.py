"""Several pages published as one: all of them or none, for readers, after a death, and after an exception."""

import asyncio
import contextvars
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import bufferpool as bp
from bufferpool import errors
from tests.conftest import WAIT, wait_until

PAGE = 4096


def write_as_one(pool: bp.Pool, pages: list[tuple[bp.Space, int]], error: Exception | None = None) -> None:
    with pool.publish_many() as group:
        for space, n in pages:
            group.write(space, n)[:] = 9
        if error:
            raise error


def test_a_reader_never_sees_a_new_page_and_then_an_old_one(pool: bp.Pool) -> None:
    """Pages that were published one by one showed a reader the second one old after the first one new, and a B-tree's
    split without its right half."""
    first, second = pool.open_scratch("first", 1), pool.open_scratch("second", 1)
    over, wrong, seen = threading.Event(), [], set()

    def read() -> None:
        while not over.is_set():
            for one, other in ((first, second), (second, first)):
                older = int(one[0].view(np.uint64)[0])
                newer = int(other[0].view(np.uint64)[0])
                seen.add(newer)
                if newer < older:
                    wrong.append((older, newer))

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    last, until = 0, time.monotonic() + WAIT
    while last < 1500 or (len(seen) < 2 and time.monotonic() < until):
        last += 1
        with pool.publish_many() as group:
            group.write(first, 0).view(np.uint64)[:] = last
            group.write(second, 0).view(np.uint64)[:] = last
    over.set()
    for reader in readers:
        reader.join(WAIT)
    assert wrong == []
    assert len(seen) > 1
    assert int(first[0].view(np.uint64)[0]) == int(second[0].view(np.uint64)[0]) == last
    assert pool.check() == []


def test_spaces_of_every_kind_may_be_mixed_and_each_page_has_its_lsn(pool: bp.Pool, tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(bytes(3 * PAGE))
    file = pool.open_file(tmp_path / "data", "r+", name="data")
    scratch = pool.open_scratch("scratch", 2)
    pool.durable_lsn = 10
    with pool.publish_many() as group:
        group.write(file, 2, lsn=7)[:] = 2
        group.write(file, 0, lsn=12)[:] = 1
        group.write(scratch, 1)[:] = 3
        assert len(group) == 3
        assert not file[2].any(), "the copies are private until the block ends"
    assert (file[2][0], file[0][0], scratch[1][0]) == (2, 1, 3)
    assert pool.flush() == 1  # the LSN of the other page of the file is not durable
    assert (tmp_path / "data").read_bytes() == bytes(2 * PAGE) + b"\2" * PAGE
    pool.durable_lsn = 12
    assert pool.flush() == 1
    assert (tmp_path / "data").read_bytes() == b"\1" * PAGE + bytes(PAGE) + b"\2" * PAGE
    assert pool.check() == []


def test_a_fresh_copy_is_zeros_and_the_old_version_is_the_page_until_the_block_ends(
    pool: bp.Pool, tmp_path: Path
) -> None:
    """A commit that replaces its pages as a whole had to copy each old version before it wrote over it: ``group.write`` had
    no ``fresh=``. The page must have its writer at once, unlike in ``Space.write(fresh=True)``, and keep its LSN."""
    (tmp_path / "data").write_bytes(b"\5" * (3 * PAGE))
    file = pool.open_file(tmp_path / "data", "r+")
    pool.durable_lsn = 10
    with file.write(1, lsn=12) as page:
        page[:] = 6
    with pool.publish_many() as group:
        for n in range(2):
            copy = group.write(file, n, fresh=True)  # page 0 is absent, page 1 resident and dirty
            assert not copy.any()
            copy[:100] = 9
        assert (file[0] == 5).all()
        assert (file[1] == 6).all()
        with pytest.raises(errors.WouldDeadlock):
            group.write(file, 1, fresh=True)
        with pytest.raises(TypeError, match="fresh must be"):
            group.write(file, 2, fresh=1)  # type: ignore[arg-type]
    for n in range(2):
        assert file[n].sum() == 900
    assert pool.flush() == 1, "page 1 keeps its LSN, which is not durable"
    group = pool.publish_many()
    group.__enter__().write(file, 2, fresh=True)
    group.__exit__(KeyError, KeyError(), None)
    assert (file[2] == 5).all()
    with file.write(2, timeout=0) as page:
        page[:] = 7
    assert pool.check() == []


def test_a_block_that_raises_publishes_nothing_and_lets_the_pages_go(pool: bp.Pool) -> None:
    space = pool.open_scratch("space", 4)
    with pytest.raises(KeyError):
        write_as_one(pool, [(space, n) for n in range(3)], KeyError())
    with pytest.raises(errors.PageOutOfRange):
        write_as_one(pool, [(space, 0), (space, 4)])
    group = pool.publish_many()
    group.__enter__().write(space, 1)[:] = 1
    del group
    for n in range(3):
        assert not space[n].any()
        with space.write(n, timeout=0) as page:
            page[:] = 2
    assert pool.check() == []


def test_what_cannot_be_published_as_one_is_refused(pool: bp.Pool, make_pool: Callable[..., bp.Pool]) -> None:
    """Each of these would have been a promise that is not kept, or a wait without an end."""
    space = pool.open_scratch("space", 64)
    with pool.publish_many() as group:
        group.write(space, 0)[:] = 1
        with pytest.raises(ValueError, match="another pool"):
            group.write(make_pool().open_scratch("space", 1), 0)
        with pytest.raises(ValueError, match="discardable"):
            group.write(pool.open_scratch("may go", 1, discardable=True), 0)
        with pytest.raises(errors.SpaceReadOnly):
            group.write(pool.open_derived("made", 1, lambda n, out: None), 0)
        with pytest.raises(TypeError, match="needs a Space"):
            group.write("space", 0)  # type: ignore[arg-type]
        with pytest.raises(errors.WouldDeadlock):
            group.write(space, 0)
        for n in range(1, 16):
            group.write(space, n)[:] = 1
        with pytest.raises(errors.GroupFull, match="a quarter"):
            group.write(space, 16)
        assert len(group) == 16
    assert space[0][0] == space[15][0] == 1
    for use in (lambda: group.write(space, 0), group.__enter__, lambda: group.__exit__(None)):
        with pytest.raises(ValueError, match=r"block|once|not open"):
            use()
    gone = pool.open_scratch("gone", 1)
    gone.remove()
    with pytest.raises(errors.SpaceRemoved):
        write_as_one(pool, [(space, 1), (gone, 0)])
    assert space[1][0] == 1
    assert pool.check() == []


def test_a_forked_child_publishes_nothing_of_its_parent(pool: bp.Pool) -> None:
    """A fork within the block: both processes come to its end, and one of them is not the writer."""
    space = pool.open_scratch("space", 2)
    with pool.publish_many() as group:
        group.write(space, 0)[:] = 1
        group.write(space, 1)[:] = 1
        pid = os.fork()
        if pid == 0:
            try:
                group.__exit__(None, None, None)
            except errors.WrongProcess:
                os._exit(7)
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
        assert not space[0].any()
    assert space[0][0] == space[1][0] == 1
    pool.reap()
    assert pool.check() == []


STOPPED = """
import json, os, signal, sys, time
import bufferpool as bp

name, point, how, log = sys.argv[1:]
pool = bp.Pool.create(name, "1MiB", page_size=4096)
space = pool.open_scratch("space", 2, lifetime="pool")
pid = os.fork()
if pid == 0:
    os.environ.update(BUFFERPOOL_KILLED=log, BUFFERPOOL_KILL=f"{point}:2:{how}")
    with pool.publish_many() as group:
        group.write(space, 0)[:] = 1
        group.write(space, 1)[:] = 1
    os._exit(1)
os.waitpid(pid, os.WUNTRACED)
begin = time.monotonic()
seen = [int(space[n][0]) for n in (0, 1)]  # while the publisher is stopped, or dead and not reaped
took = time.monotonic() - begin
if int(how) == signal.SIGSTOP:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
pool.reap()
print(json.dumps([seen, [int(space[n][0]) for n in (0, 1)], took, pool.check()]))
with space.write(0, timeout=5) as page:
    page[:] = 2
pool.close()
bp.Pool.remove(name, discard=True)
"""


@pytest.mark.parametrize("how", [signal.SIGSTOP, signal.SIGKILL])
@pytest.mark.parametrize(
    ("point", "published"),
    [("group.joined", 0), ("group.pending", 0), ("group.live", 1), ("group.swapped", 1), ("group.settled", 1)],
)
def test_no_reader_waits_for_a_publisher_that_is_stopped_or_dead(
    faulty_package: Path, tmp_path: Path, pool_name: str, point: str, published: int, how: int
) -> None:
    """A reader that waited for the publisher of a page would wait for a stopped one for ever. The point is passed for
    the second page: the first one has all that belongs to the step."""
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(faulty_package.parent)}
    done = subprocess.run(
        [sys.executable, "-c", STOPPED, pool_name, point, str(int(how)), str(tmp_path / "killed")],
        capture_output=True, text=True, timeout=WAIT, check=False, cwd=faulty_package.parent, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    seen, left, _, violations = json.loads(done.stdout)
    assert (tmp_path / "killed").read_text() == point
    assert seen == left == [published, published]
    assert violations == []


def test_an_array_over_the_old_version_keeps_it_until_it_is_released(pool: bp.Pool) -> None:
    """Corner: the old frame is pinned when the group is settled, so its reader frees it, and not the publisher."""
    space = pool.open_scratch("space", 2)
    write_as_one(pool, [(space, 0), (space, 1)])
    old, inner = space[0], space[1][100:200]
    with pool.publish_many() as group:
        for n in (0, 1):
            group.write(space, n)[:] = 5
    assert (old == 9).all()
    assert (inner == 9).all()
    assert pool.stats().frames.retired == 2
    write_as_one(pool, [(space, 0), (space, 1)])
    assert (old == 9).all()
    del old, inner
    assert pool.stats().frames.retired == 0
    assert space[0][0] == space[1][0] == 9
    assert pool.check() == []


def test_a_group_that_finds_no_frames_publishes_nothing_and_keeps_none(make_pool: Callable[..., bp.Pool]) -> None:
    """Corner: a frame was taken for some pages and not for the others. Those that were taken are free again, and so are the pages."""
    pool = make_pool(16 * PAGE)
    space = pool.open_scratch("space", 16, discardable=False)
    held = []
    for n in range(4):
        with space.write(n) as page:
            page[:] = n + 1
    full = pool.open_derived("full", 16, lambda n, out: out.fill(n))
    held = [full[n] for n in range(10)]  # with the four pages above 14 of 16 frames are in use
    group = pool.publish_many()
    group.__enter__()
    for n in range(4):
        group.write(space, n)[:] = 50
    with pytest.raises(errors.PoolExhausted):
        group.__exit__(None, None, None)
    assert [int(space[n][0]) for n in range(4)] == [1, 2, 3, 4]
    assert pool.stats().frames.busy == 0
    assert not pool.frames()["writer"].any()
    del held
    write_as_one(pool, [(space, n) for n in range(4)])
    assert [int(space[n][0]) for n in range(4)] == [9] * 4
    assert pool.check() == []


BESIDE = """
import asyncio, json, os, signal, sys
import numpy as np
import bufferpool as bp

name, point, how, log, path = sys.argv[1:]
pool = bp.Pool.create(name, "1MiB", page_size=4096)
space = pool.open_file(path, "r+")
space[0], space[1]
pid = os.fork()
if pid == 0:
    os.environ.update(BUFFERPOOL_KILLED=log, BUFFERPOOL_KILL=f"{point}:2:{how}")
    with pool.publish_many() as group:
        group.write(space, 0, lsn=7)[:] = 1
        group.write(space, 1, lsn=7)[:] = 1
    os._exit(1)
os.waitpid(pid, os.WUNTRACED)
both = [0, 1]
with space.pin_many(both) as pins:
    pinned = [int(page[0]) for page in pins]
seen = [
    space.read_many(both)[:, 0].tolist(), pinned, space[0:2][:, 0].tolist(), [int(page[0]) for page in space.scan()],
    [int(space.read(n)[0]) for n in both], asyncio.run(space.aread_many(both))[:, 0].tolist(),
    [int(asyncio.run(space.aget(n))[0]) for n in both],
]
space.prefetch(both)
pool.trim_idle(0)
beside = pool.check()
flushed = pool.flush(timeout=20)
if int(how) == signal.SIGSTOP:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
pool.reap()
left = [int(space[n][0]) for n in both]
pool.flush(timeout=20)
stored = [int(n) for n in np.fromfile(path, np.uint8)[:: 4096]]
print(json.dumps([seen, left, stored, beside, pool.check(), int(pool.frames()["dirty"].sum())]))
pool.close()
bp.Pool.remove(name, discard=True)
"""


@pytest.mark.parametrize("how", [signal.SIGSTOP, signal.SIGKILL])
@pytest.mark.parametrize(("point", "published"), [("group.pending", 0), ("group.live", 1), ("group.settled", 1)])
def test_every_kind_of_reader_and_the_flusher_find_one_version(
    faulty_package: Path, tmp_path: Path, pool_name: str, point: str, published: int, how: int
) -> None:
    """Corner: reads of many pages, coroutines, scans, checks and flushes while a publisher is stopped in the midst of
    a group, or dead and not reaped; and what the file has then, of a group that was undone, too."""
    (tmp_path / "data").write_bytes(bytes(2 * PAGE))
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(faulty_package.parent)}
    words = [pool_name, point, str(int(how)), str(tmp_path / "killed")]
    done = subprocess.run(
        [sys.executable, "-c", BESIDE, *words, str(tmp_path / "data")],
        capture_output=True, text=True, timeout=WAIT, check=False, cwd=faulty_package.parent, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    seen, left, stored, beside, violations, dirty = json.loads(done.stdout)
    assert seen == [[published, published]] * 7
    assert left == stored == [published, published]
    assert (beside, violations, dirty) == ([], [], 0)


ALONE: dict[str, Callable[[bp.Space], object]] = {
    "write": lambda space: space.write(1),
    "write_many": lambda space: space.write_many([1], np.zeros((1, PAGE), np.uint8)),
}


@pytest.mark.parametrize("how", ALONE)
def test_a_write_of_a_single_page_in_the_block_is_refused(pool: bp.Pool, attach, how: str) -> None:
    """Such a write published its page by itself, before the group, and also if the block raised. Nothing said so."""
    work = pool.open_scratch("work", 4)
    with pool.publish_many() as group:
        group.write(work, 0)[:] = 1
        with pytest.raises(ValueError, match=r"use group\.write"):
            ALONE[how](work)
        with pool.publish_many() as inner:
            group.write(work, 2)[:] = 1
            inner.write(work, 3)[:] = 1
        with pytest.raises(ValueError, match=r"use group\.write"):
            ALONE[how](work)
        other = attach(pool.name).open_scratch("work", 4)  # another attachment: as another process
        ALONE[how](other)
    ALONE[how](work)
    with pytest.raises(KeyError):
        write_as_one(pool, [(work, 0)], KeyError())
    ALONE[how](work)
    assert [int(work[n][0]) for n in range(4)] == [1, 0, 1, 1]
    assert pool.check() == []


def test_other_threads_tasks_and_loaders_are_not_in_the_block(pool: bp.Pool) -> None:
    work = pool.open_scratch("work", 8)

    def put(n: int) -> None:
        with work.write(n) as page:
            page[:] = n

    def load(n: int, out: np.ndarray) -> None:
        put(4)
        out[:] = n

    made = pool.open_derived("made", 4, load)
    refused: list[int] = []

    async def put_soon(n: int) -> None:
        await asyncio.sleep(0)
        try:
            put(n)
        except ValueError:
            refused.append(n)

    async def both() -> None:
        before = asyncio.create_task(put_soon(1))
        with pool.publish_many() as group:
            group.write(work, 0)[:] = 9
            await before
            await asyncio.create_task(put_soon(2))  # a task of the block
            thread = threading.Thread(target=put, args=(3,))
            thread.start()
            thread.join()
            assert int(made[2][0]) == 2
        await put_soon(5)

    asyncio.run(both())
    assert refused == [2]
    assert [int(work[n][0]) for n in range(6)] == [9, 1, 0, 3, 4, 5]


def test_a_forked_child_is_not_in_the_block(pool: bp.Pool) -> None:
    work = pool.open_scratch("work", 4)
    with pool.publish_many() as group:
        group.write(work, 0)[:] = 1
        child = os.fork()
        if child == 0:
            with work.write(1) as page:
                page[:] = 7
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
    assert (int(work[0][0]), int(work[1][0])) == (1, 7)


@pytest.mark.parametrize("begun", ["generator", "other task"])
def test_a_block_that_ends_elsewhere_is_over(pool: bp.Pool, begun: str) -> None:
    work = pool.open_scratch("work", 4)

    def suspended():
        with pool.publish_many() as group:
            group.write(work, 0)[:] = 1
            yield

    one = suspended()
    if begun == "generator":
        next(one)
        one.close()
    else:
        contextvars.copy_context().run(next, one)
        contextvars.copy_context().run(list, one)
    with work.write(1) as page:
        page[:] = 7
    assert (int(work[0][0]), int(work[1][0])) == (int(begun != "generator"), 7)


def test_a_group_keeps_the_oldest_change_that_a_store_does_not_have(pool: bp.Pool, tmp_path: Path) -> None:
    """Corner: a page that was dirty before the group. Its recovery LSN is that of the first change, or a checkpoint would let
    an engine remove the part of its log that the page needs."""
    (tmp_path / "data").write_bytes(bytes(3 * PAGE))
    file = pool.open_file(tmp_path / "data", "r+")
    pool.durable_lsn = 4  # nothing is flushed
    with file.write(0, lsn=5) as page:
        page[:] = 1
    before = pool.stats().publishes
    with pool.publish_many() as group:
        for n in range(3):
            group.write(file, n, lsn=9)[:] = 2
    assert pool.stats().publishes == before + 3
    assert pool.checkpoint(20) == 5
    pool.durable_lsn = 9
    assert pool.flush() == 3
    assert pool.checkpoint(20) == 21


def test_a_group_leaves_scratch_pages_their_part_of_the_pool_and_no_more(make_pool: Callable[..., bp.Pool]) -> None:
    """Corner: scratch pages that nobody had written become pages that must be kept when the group is published. An eighth
    of the frames is kept for other spaces then too."""
    pool = make_pool(64 * PAGE)
    space = pool.open_scratch("space", 64)
    for n in range(56):
        with space.write(n) as page:
            page[:] = 1
    with pytest.raises(errors.PoolExhausted, match="scratch"):
        write_as_one(pool, [(space, n) for n in (0, 60)])
    assert (space[0][0], space[60][0]) == (1, 0)
    write_as_one(pool, [(space, n) for n in (0, 1)])
    assert space[0][0] == 9
    assert pool.check() == []


def test_the_arguments_of_a_page_are_those_of_write(pool: bp.Pool, attach: Callable[..., bp.Pool]) -> None:
    space = pool.open_scratch("space", 2)
    other = attach(pool).open_scratch("space", len(space))
    with pool.publish_many() as group:
        for wrong in ({"timeout": -1}, {"timeout": True}, {"lsn": -1}, {"lsn": True}, {"fresh": None}):
            with pytest.raises((TypeError, ValueError)):
                group.write(space, 0, **wrong)  # type: ignore[arg-type]
        with other.write(0), pytest.raises(errors.WaitTimeout):
            group.write(space, 0, timeout=0)
        group.write(space, 0)[:] = 1
    assert space[0][0] == 1


def test_a_group_belongs_to_one_thread_at_a_time(pool: bp.Pool, attach: Callable[..., bp.Pool]) -> None:
    """Corner: a thread waits for a page of the group; meanwhile another one would change the list of its pages."""
    space = pool.open_scratch("space", 3)
    other = attach(pool).open_scratch("space", len(space))
    with pool.publish_many() as group:
        with other.write(0):
            waiter = threading.Thread(target=lambda: group.write(space, 0, timeout=WAIT).fill(4))
            waiter.start()
            wait_until(lambda: _refuses(group, space), "the thread waits")
        waiter.join()
        group.write(space, 1)[:] = 5
        assert len(group) == 2
    assert (space[0][0], space[1][0], space[2][0]) == (4, 5, 0)


def _refuses(group: bp._core.PublishGroup, space: bp.Space) -> bool:
    try:
        group.write(space, 2, timeout=0, lsn=-1)  # (refused in any case: no page joins the group here)
    except ValueError as error:
        return "another thread" in str(error)
    return False


def test_the_frames_of_replaced_versions_are_free_again(pool: bp.Pool) -> None:
    """No test noticed a group that kept the frames of the versions which it had replaced: the pool has so many that it would
    have run short only later."""
    space = pool.open_scratch("space", 4)

    def groups(count: int) -> int:
        for _ in range(count):
            write_as_one(pool, [(space, n) for n in range(4)])
        frames = pool.stats().frames
        assert frames.retired == 0
        return frames.busy  # with the client's spare frames

    few = groups(3)
    assert groups(10) <= few
    assert pool.check() == []


def test_recovery_starts_at_the_group_where_the_replaced_version_was_stored(pool: bp.Pool, tmp_path: Path) -> None:
    """No test noticed a group that gave a new version the recovery LSN of the old one, which the store had: a checkpoint was
    held at a change that no recovery needs, and the log grew."""
    (tmp_path / "data").write_bytes(bytes(2 * PAGE))
    file = pool.open_file(tmp_path / "data", "r+")
    pool.durable_lsn = 10
    with file.write(0, lsn=5) as page:
        page[:] = 5
    assert pool.flush() == 1
    for lsn in (50, 60):  # neither is durable, so that the page is not flushed
        with pool.publish_many() as group:
            group.write(file, 0, lsn=lsn)[:] = lsn
        assert pool.checkpoint(70) == 50


@pytest.mark.parametrize("who", ["same thread", "another client"])
def test_no_space_is_removed_between_a_write_and_the_end_of_the_block(
    pool: bp.Pool, attach: Callable[..., bp.Pool], who: str
) -> None:
    """No test tried to remove a space of a group. The removal is refused, as for a page that somebody writes, and the group
    is published whole."""
    kept, asked = pool.open_scratch("kept", 2), pool.open_scratch("asked", 2)
    other, refusal = (pool, errors.WouldDeadlock) if who == "same thread" else (attach(pool.name), errors.SpaceBusy)
    with pool.publish_many() as group:
        group.write(kept, 0)[:] = 1
        group.write(asked, 1)[:] = 1
        with pytest.raises(refusal):
            other.discard("asked")
        with pytest.raises(refusal):
            other.space("asked", "r+").remove()
    assert (kept[0][0], asked[1][0]) == (1, 1)
    assert pool.check() == []


def test_a_group_whose_space_is_removed_all_the_same_publishes_nothing(
    pool: bp.Pool, attach: Callable[..., bp.Pool]
) -> None:
    """Corner: a removal had looked for users of the space just before the group took a page of it, and removes it now. The
    other pages stay as they were, and can be written."""
    kept, gone = pool.open_scratch("kept", 2), pool.open_scratch("gone", 2)
    write_as_one(pool, [(kept, 0), (gone, 0)])
    seg = attach(pool.name).client.seg
    number = next(record["index"] for record in seg.spaces() if record["name"] == "gone")

    def block() -> None:
        with pool.publish_many() as group:
            for space, n in ((kept, 0), (gone, 0), (gone, 1)):
                group.write(space, n)[:] = 1
            with seg.lock_directory(WAIT):
                seg.remove_space(number)

    with pytest.raises(errors.SpaceRemoved, match="gone"):
        block()
    assert kept[0][0] == 9
    assert [space.name for space in pool.spaces()] == ["kept"]
    again = pool.open_scratch("gone", 2)
    assert not again[0].any()
    write_as_one(pool, [(kept, 0), (again, 0), (again, 1)])
    assert (kept[0][0], again[0][0], again[1][0]) == (9, 9, 9)
    assert pool.check() == []


def test_a_group_has_no_more_pages_of_a_space_than_its_limit(pool: bp.Pool) -> None:
    """All pages of a group are in the pool at the same time; a group with too many waited in vain for a frame."""
    space = pool.open_scratch("space", 9, limit=8 * PAGE)
    with pool.publish_many() as group:
        for n in range(8):
            group.write(space, n)[:] = 1
        with pytest.raises(errors.GroupFull, match="8 pages"):
            group.write(space, 8)
