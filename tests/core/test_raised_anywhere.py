"""A signal's handler raises at any line, or at the beginning of any function, of the package: nothing is left held.

An ``__exit__`` written in Python begins with a place where handlers run. What one raised there left a lock of the package
held for ever, or a space marked as being flushed: every later flush of that thread raised WouldDeadlock.
A trace function raises here at each such place in turn.
"""

import linecache
import os
import pickle
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

import bufferpool as bp
from bufferpool.errors import BufferPoolError
from bufferpool.upkeep.steward import Settings
from tests.conftest import PAGE, fill
from tests.support.hanging import in_time

PACKAGE = os.path.dirname(bp.__file__)
HOLDING = ("_locks.py", "client/jobs.py", "client/threads.py", "spaces/claim.py", "upkeep/flush_jobs.py")
FLUSHING = ("upkeep/writeback.py",)


class Told(Exception):
    """What the handler raises."""


def raises_at(number: int, files: tuple[str, ...], call: Callable[[], object], where: str = PACKAGE) -> bool:
    """Calls, and raises at the place with this number, in files below ``where``; False if the call has fewer."""
    seen = 0

    def local(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal seen
        # At the end of a block the tracer sees its first line once more, where CPython runs no handler.
        leaves = event == "line" and linecache.getline(frame.f_code.co_filename, frame.f_lineno).lstrip().startswith(
            "with "
        )
        if event in ("line", "call") and not leaves:
            seen += 1
            if seen == number:
                sys.settrace(None)
                raise Told
        return local

    def tracer(frame: FrameType, event: str, _: Any) -> Any:
        inside = frame.f_code.co_filename.startswith(where) and frame.f_code.co_filename.endswith(files)
        return local(frame, event, None) if inside else None

    before = sys.gettrace()
    sys.settrace(tracer)
    try:
        call()
    except (Told, BufferPoolError):  # a store's method cannot tell a handler's error from its own
        pass
    finally:
        sys.settrace(before)
    return seen >= number


CALLS: dict[str, tuple[tuple[str, ...], Callable[[bp.Pool, bp.Space, Any], object]]] = {
    "flush": (HOLDING + FLUSHING, lambda pool, table, path: pool.flush()),
    "flush with a timeout": (HOLDING, lambda pool, table, path: pool.flush(timeout=60)),
    "trim": (HOLDING, lambda pool, table, path: pool.trim(8 * PAGE)),
    "open and remove": (HOLDING, lambda pool, table, path: pool.open_file(path, "r+").remove()),
    "steward": (HOLDING, lambda pool, table, path: (pool.start_steward(Settings(pressure=False)), pool.stop_steward())),
    "checkpoint": (HOLDING, lambda pool, table, path: pool.checkpoint(0)),
}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # raised where a generator is closed
@pytest.mark.parametrize("what", CALLS)
def test_nothing_is_left_held(pool, data_file, what) -> None:
    files, call = CALLS[what]
    table, path = pool.open_file(data_file(16), "r+", name="table"), data_file(4)
    number = 1
    while True:
        fill(table, [3, 4], version=number)
        reached = raises_at(number, files, lambda: call(pool, table, path))
        pool.stop_steward()
        fill(table, [5], version=number)
        in_time(pool.flush)  # by another thread
        in_time(lambda: pool.open_file(path, "r+").remove())
        fill(table, [6], version=number)
        pool.flush()  # by the same thread; a flush that the interrupted call has started may have written the page
        assert pool.stats().frames.dirty == 0
        if not reached:
            break
        number += 1
    assert number > 5
    assert pool.check() == []


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_close_that_was_interrupted_can_be_repeated(pool_name, data_file) -> None:
    """What a handler raised after the detaching left a client that counted as attached: copies that were unpickled later
    joined it, and every use of them raised PoolClosed. In the midst of leaving a shared attachment, the next close ended
    that of the others.
    """
    with bp.Pool.create(pool_name, 64 * PAGE, page_size=PAGE) as pool:
        pool.open_file(data_file(16), name="table")
    number, reached = 1, True
    files = ("client/client.py", "pool.py", "_locks.py")
    while reached:
        one = bp.Pool.attach(pool_name)
        made = pickle.dumps(one)
        copy = pickle.loads(made)
        assert copy.space("table")[3].size == PAGE
        reached = raises_at(number, files, copy.close)
        copy.close()
        assert one.space("table")[4].size == PAGE
        reached |= raises_at(number, files, one.close)
        copy = pickle.loads(made)
        assert copy.space("table")[5].size == PAGE
        copy.close()
        one.close()
        number += 1
    assert number > 20
    with bp.Pool.attach(pool_name) as pool:
        assert len(pool.clients()) == 1
        assert pool.check() == []


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_load_that_a_handler_ends_is_not_taken_for_an_overrun(pool) -> None:
    """The guards around a loader's array were compared by np.array_equal(), which swallows every Exception, and says False."""
    made, number, reached = pool.open_derived("made", 4096, lambda n, out: out.fill(n)), 1, True

    def load() -> None:
        try:
            _ = made[number]
        except bp.LoaderOverrun as error:
            pytest.fail(str(error))

    while reached:
        reached = raises_at(number, ("",), load, where="")
        number += 1
    assert number > 10
