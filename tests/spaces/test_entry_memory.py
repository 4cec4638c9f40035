"""The memory of entries leaves with their space.

A space of 2^26 pages kept 512 MiB of entries for ever when it was removed: the next space of the same numbers used them, and
nothing gave them back to the machine. A hit touches an entry without any look at the segment, so the memory may only leave when
no process can have a handle that touches it (core/protocol/entry_memory.h).
"""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest

import bufferpool as bp
from tests.conftest import PAGE, fill, in_step, kernel_bytes, stamp, touch, wait_until

CHUNK = os.sysconf("SC_PAGESIZE") // 8  # pages whose entries share an OS page
BIG = 1 << 22
BYTES = 8 * BIG
LEFT = 3 << 20  # a block of entries that another space has a part of, and some pages


def opened_big(pool: bp.Pool, name: str = "big") -> tuple[bp.Space, int]:
    """A space whose entries all have memory; and the bytes of the segment before."""
    fill(pool.open_scratch("small", 4), range(4))  # and the tables for frames have their memory
    before = kernel_bytes(pool)
    space = pool.open_scratch(name, BIG)
    touch(space, range(0, BIG, CHUNK))
    assert kernel_bytes(pool) > before + BYTES - LEFT
    return space, before


def assert_consistent(pool: bp.Pool) -> None:
    assert pool.check() == []
    stats = in_step(pool)
    assert stats.metadata_bytes + stats.resident_bytes == kernel_bytes(pool)
    for n in range(4):
        assert np.array_equal(pool.space("small")[n], stamp(n))


def test_a_space_that_is_removed_gives_its_entries_back(make_pool):
    """Here: 32 MiB. The handle is still there, and finds that its space is gone."""
    pool = make_pool(64 * PAGE)
    space, before = opened_big(pool)
    space.remove(discard=True)
    assert kernel_bytes(pool) < before + LEFT
    for use in (
        lambda: space[0],
        lambda: space.get(BIG - 1),
        lambda: space.try_get(5),
        lambda: space.resident([0, 5]),
        lambda: space.pin_many([0, CHUNK]),
        lambda: space.read_many([0, CHUNK]),
        lambda: space.prefetch([0, CHUNK]),
        lambda: space.write(0).__enter__(),
        lambda: space.write_many([0], np.zeros((1, PAGE), np.uint8)),
        lambda: space.drop(0, BIG),
    ):
        with pytest.raises(bp.errors.SpaceRemoved):
            use()
    assert kernel_bytes(pool) < before + LEFT, "an old handle gave the entries memory again"
    assert_consistent(pool)


def test_the_next_space_with_the_same_numbers_begins_anew(make_pool):
    """Its pages are evicted and come back, although the rings of the policy have known pages of these numbers before."""
    pool = make_pool(64 * PAGE)
    old, before = opened_big(pool)
    for version in range(3):
        old.remove(discard=True)
        assert kernel_bytes(pool) < before + LEFT
        space = pool.open_derived(f"d{version}", BIG, lambda n, out: np.copyto(out, stamp(n)))
        for n in [*range(0, BIG, 1 << 14), *range(300), *range(300)]:
            assert np.array_equal(space[n], stamp(n))
        with pytest.raises(bp.errors.SpaceRemoved):
            old[0]
        assert np.array_equal(space[0], stamp(0))
        assert_consistent(pool)
        old = space


def test_a_write_that_was_begun_before_does_not_touch_them(make_pool):
    """A write with fresh=True holds nothing before its block ends; and one that has not been entered holds nothing at all."""
    pool = make_pool(64 * PAGE)
    space, before = opened_big(pool)
    unused, fresh = space.write(7), space.write(CHUNK, fresh=True)
    fresh.__enter__()[:] = 1
    space.remove(discard=True)
    assert kernel_bytes(pool) < before + LEFT
    with pytest.raises(bp.errors.SpaceRemoved):
        fresh.__exit__(None, None, None)
    with pytest.raises(bp.errors.SpaceRemoved):
        unused.__enter__()
    assert kernel_bytes(pool) < before + LEFT
    assert_consistent(pool)


OTHER = """
import sys
import bufferpool as bp

with bp.Pool.attach(sys.argv[1]) as pool:
    space = pool.space("big")
    pages = [space[n] for n in range(0, len(space), 1 << 17)]
    print("ready", flush=True)
    for line in sys.stdin:
        try:
            exec(line)
        except bp.errors.SpaceRemoved:
            print("removed", flush=True)
        else:
            print("done", flush=True)
"""


class Other:
    """Another process with a handle of the space."""

    def __init__(self, pool: bp.Pool) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", OTHER, pool.name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.answer() == "ready"

    def answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def does(self, line: str) -> str:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return self.answer()

    def end(self, by: int = 0) -> None:
        if by:
            self.process.send_signal(by)
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("space[0]", "removed"),
        ("del space", "done"),
        ("space.close()", "done"),
        ("pool.open_scratch('another', 1)", "done"),
        ("pool.trim()", "done"),
    ],
    ids=["use", "drop", "close", "open", "trim"],
)
def test_another_process_with_a_handle_keeps_them_until_it_lets_go(make_pool, line, says):
    """As a file that was unlinked keeps its blocks for those who have it open. The arrays over its pages stay valid."""
    pool = make_pool(128 * PAGE)
    space, before = opened_big(pool)
    other = Other(pool)
    try:
        space.remove(discard=True)
        assert kernel_bytes(pool) > before + BYTES - LEFT
        assert other.does(line) == says
        assert other.does("assert not any(page.any() for page in pages)") == "done"
        assert other.does("del pages[:]") == "done"
        pool.trim()
        assert kernel_bytes(pool) < before + LEFT
        assert_consistent(pool)
    finally:
        other.end()


@pytest.mark.parametrize("by", [0, signal.SIGKILL], ids=["exit", "kill"])
def test_another_process_that_ends_lets_go(make_pool, by):
    pool = make_pool(128 * PAGE)
    space, before = opened_big(pool)
    other = Other(pool)
    space.remove(discard=True)
    other.end(by)
    pool.trim()
    assert kernel_bytes(pool) < before + LEFT
    assert_consistent(pool)


@pytest.mark.parametrize("by", [0, signal.SIGKILL], ids=["exit", "kill"])
def test_the_entries_of_a_private_space_leave_with_its_process(make_pool, by):
    pool = make_pool(128 * PAGE)
    fill(pool.open_scratch("small", 4), range(4))
    pool.open_scratch("big", 1)
    before = kernel_bytes(pool)
    other = Other(pool)
    assert other.does(f"own = pool.open_scratch('own', {BIG}, lifetime='process')") == "done"
    assert other.does(f"any(own[n].any() for n in range(0, {BIG}, {CHUNK}))") == "done"
    assert kernel_bytes(pool) > before + BYTES - LEFT
    other.end(by)
    pool.trim()
    assert kernel_bytes(pool) < before + LEFT
    assert_consistent(pool)


def test_a_forked_child_keeps_what_its_handles_may_touch(make_pool):
    """The child has the parent's handles, which know which entries have memory."""
    pool = make_pool(128 * PAGE)
    space, before = opened_big(pool)
    go, went = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.read(go[0], 1)
            try:
                space[0]
            except bp.errors.SpaceRemoved:
                code = 0
            os.write(went[1], b"x")
            os.read(go[0], 1)
        finally:
            os._exit(code)
    space.remove(discard=True)
    assert kernel_bytes(pool) > before + BYTES - LEFT
    os.write(go[1], b"x")
    assert os.read(went[0], 1) == b"x"
    wait_until(lambda: (pool.trim(), kernel_bytes(pool) < before + LEFT)[1], "the entries leave")
    os.write(go[1], b"x")
    assert os.waitpid(pid, 0)[1] == 0
    for end in (*go, *went):
        os.close(end)
    assert_consistent(pool)
