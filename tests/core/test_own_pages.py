"""Code that drops or removes pages which its own thread is loading, writing or flushing.

A loader dropped the page that it was loading, and waited for itself: eleven seconds, for an error that blamed others.
The same in the methods of a store, and in a block that writes.
"""

import threading

import pytest

from bufferpool.errors import BufferPoolError, WouldDeadlock
from tests.conftest import PAGE, WAIT, wait_until
from tests.support.memory_store import Memory

# The calls that wait until nobody loads, writes or flushes the pages.
USES = {
    "drop": lambda pool, space: space.drop(0, 1),
    "drop of all": lambda pool, space: space.drop(),
    "remove": lambda pool, space: space.remove(discard=True),
    "discard": lambda pool, space: pool.discard(space.name),
}


def why_not(use, *args):
    with pytest.raises(BufferPoolError) as info:
        use(*args)
    return type(info.value)


@pytest.mark.parametrize("use", USES)
def test_a_loader_that_drops_its_own_page_gets_an_error(pool, use):
    errors = []

    def loader(page_no, out):
        if page_no == 0 and not errors:
            errors.append(why_not(USES[use], pool, space))
        out[:] = page_no + 1

    space = pool.open_derived("made", 8, loader)
    assert [int(space[n][0]) for n in (1, 0, 1)] == [2, 1, 2]
    assert errors == [WouldDeadlock]
    assert pool.stats().loads == 2, "something was dropped before that was known"
    assert pool.check() == []


class Calling(Memory):
    """A store one of whose methods does something once."""

    where, do, error = "", None, None

    def call(self, where):
        if where == self.where and self.error is None:
            self.error = why_not(self.do)

    def read_into(self, offset, buffer):
        self.call("read")
        return super().read_into(offset, buffer)

    def write_from(self, offset, buffer):
        self.call("write")
        return super().write_from(offset, buffer)

    def sync(self):
        self.call("sync")
        super().sync()


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("where", ["read", "write", "sync"])
def test_a_store_that_drops_the_page_that_it_is_called_for_gets_an_error(pool, where, use):
    store = Calling(8)
    space = pool.open_store("kept", store, mode="r+")
    store.do = lambda: USES[use](pool, space)
    if where == "read":
        store.where = where
    with space.write(0) as page:  # which reads it first
        page[:] = 7
    store.where = where
    space.flush()
    assert store.error is WouldDeadlock
    assert store.pages[0] == b"\7" * PAGE
    assert pool.check() == []


@pytest.mark.parametrize("use", USES)
def test_a_drop_of_a_page_in_the_block_that_writes_it_raises(pool, use):
    space = pool.open_scratch("work", 8)
    with space.write(0) as page:
        assert why_not(USES[use], pool, space) is WouldDeadlock
        page[:] = 3
    with space.append():  # which has no page before it ends
        space.drop(1, 7)
    assert space[0][0] == 3
    assert pool.check() == []


def test_a_loader_that_drops_a_page_whose_loader_waits_for_it_gets_an_error(pool, threads):
    """0 waits for 1, whose loader drops 0: neither page is the thread's own, and yet neither load would ever end."""
    begun, errors = threading.Barrier(2), []

    def loader(page_no, out):
        if page_no < 2 and not errors:
            begun.wait(WAIT)
            if page_no == 0:
                space.get(1, timeout=WAIT)
            else:
                wait_until(lambda: pool.stats().wait_load == 1, "page 0 waits for page 1")
                errors.append(why_not(space.drop, 0, 1))
        out[:] = page_no + 1

    space = pool.open_derived("made", 8, loader)
    threads.start(lambda: space[1])
    assert space[0][0] == 1
    threads.join()
    assert errors == [WouldDeadlock]
    assert pool.check() == []
