"""A signal's handler raises at any line, or at the beginning of any function, of the package: nothing is left held.

An ``__exit__`` written in Python begins with a place where handlers run. What one raised there left a lock of the package
held for ever, or a space marked as being flushed: every later flush of that thread raised WouldDeadlock.
A trace function raises here at each such place in turn.
"""

import ctypes
import dis
import gc
import linecache
import os
import pickle
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import pytest

import bufferpool as bp
from bufferpool.client import segment_file
from bufferpool.errors import BufferPoolError
from bufferpool.machine.pressure import SystemSource
from bufferpool.observer import Observer
from bufferpool.stores.base import FileStore
from bufferpool.upkeep.steward import Settings
from bufferpool.upkeep.working_set import read_working_set
from tests.conftest import PAGE, SHM, fill
from tests.support.hanging import in_time

PACKAGE = os.path.dirname(bp.__file__)
HOLDING = ("_locks.py", "client/jobs.py", "client/threads.py", "spaces/claim.py", "upkeep/flush_jobs.py")
FLUSHING = ("upkeep/writeback.py",)


CALLING = {number for name, number in dis.opmap.items() if name.startswith("CALL")}
HANDLING = dis.opmap["PUSH_EXC_INFO"]


class Told(Exception):
    """What the handler raises."""


def raises_at(
    number: int, files: tuple[str, ...], call: Callable[[], object], where: str = PACKAGE, *, finely: bool = False
) -> bool:
    """Calls, and raises at the place with this number, in files below ``where``; False if the call has fewer.

    ``finely``: after each call of C code, too, before its result is stored.
    """
    seen, before_call = 0, False

    def local(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal seen, before_call
        if finely:
            frame.f_trace_opcodes = True
            if event == "opcode":
                opcode = frame.f_code.co_code[frame.f_lasti]
                after_call, before_call = before_call, opcode in CALLING
                # CPython runs no handler after a call that has raised; a tracer that raises there makes it lose the exception.
                if not after_call or opcode == HANDLING:
                    return local
                seen += 1
                if seen == number:
                    sys.settrace(None)
                    raise Told
                return local
        # CPython runs no handler at a "try", nor at the end of a block, where the tracer sees its first line once more.
        if event == "call" and frame.f_code.co_name == "__del__":
            return local  # what is raised before its first line, nothing can catch
        leaves = event == "line" and linecache.getline(frame.f_code.co_filename, frame.f_lineno).lstrip().startswith(
            ("with ", "try:")
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

    before, handled = sys.gettrace(), sys.exception()
    sys.settrace(tracer)
    try:
        call()
    except (Told, BufferPoolError):  # a store's method cannot tell a handler's error from its own
        pass
    finally:
        sys.settrace(before)
    # Where the tracer raises at the end of an "except" block, CPython never takes back that this thread handles an exception.
    ctypes.pythonapi.PyErr_SetHandledException(ctypes.py_object(handled))
    return seen >= number


@pytest.fixture(autouse=True)
def _nothing_is_handled() -> Iterator[None]:
    """Every later exception of the process had one of these tests' as its context, so that other tests' pickles were larger."""
    yield
    assert sys.exception() is None


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
    joined it, and every use of them raised PoolClosed. Raised while a copy left a shared attachment, it made the next close() end
    the attachment of the other copies.
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


OPENING = (
    "client/client.py", "client/segment_file.py", "machine/descriptor.py", "machine/pressure.py", "observer.py",
    "stores/base.py", "upkeep/working_set.py",
)  # fmt: skip
OPENERS: dict[str, Callable[[bp.Pool, str, str], object]] = {
    "create": lambda pool, path, new: bp.Pool.create(pool.name + "-new", 64 * PAGE, page_size=PAGE).unlink(),
    "attach": lambda pool, path, new: bp.Pool.attach(pool.name).close(),
    "observe": lambda pool, path, new: Observer(pool.name).close(),
    "list": lambda pool, path, new: list(segment_file.find(os.path.dirname(new))),
    "open a file": lambda pool, path, new: FileStore(path, "r+"),
    "create a file": lambda pool, path, new: FileStore(new, "w+"),
    "save and read a working set": lambda pool, path, new: (pool.save_working_set(new), read_working_set(new)),
    "memory pressure": lambda pool, path, new: SystemSource(SHM, trigger=True).close(),
}


def descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def left_open(before: set[str]) -> set[str]:
    """The descriptors that were not open before. Those of objects in a cycle are closed first, which takes long, so only if there are any."""
    if descriptors() <= before:
        return set()
    gc.collect()
    return descriptors() - before


@pytest.mark.parametrize("what", OPENERS)
def test_no_descriptor_is_left_open(pool, data_file, tmp_path, monkeypatch, what) -> None:
    """``fd = os.open(path)``: a handler that raised when the file was open, and its number not yet stored, left it open."""
    monkeypatch.setattr(
        sys, "unraisablehook", lambda _: None
    )  # that of pytest keeps the frames, and so what they opened
    path, new, number, reached = str(data_file(4)), tmp_path / "new", 1, True
    with open(pool.path, "rb") as segment:  # the only one that is listed: /dev/shm has any number of them
        (tmp_path / "segment").write_bytes(segment.read(1 << 16))
    made = SHM / f"{pool.name}-new"
    OPENERS[what](pool, path, str(new))  # what is opened once for the whole process is open now
    gc.collect()
    before = descriptors()
    while reached:
        new.unlink(missing_ok=True)
        reached = raises_at(number, OPENING, lambda: OPENERS[what](pool, path, str(new)), finely=True)
        made.unlink(missing_ok=True)
        assert not left_open(before), f"place {number}"  # what an earlier test left open may be closed meanwhile
        number += 1
    assert number > 5
