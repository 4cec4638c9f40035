"""A process that can have no further thread: a typed error, with its errno, and nothing that waits for ever.

``start_steward`` hung where RLIMIT_AS, or RLIMIT_DATA, left no memory for a new thread to begin with:
threading.Thread.start() waits for the thread to say that it runs, without a limit, and the thread had ended silently.
"""

import errno
import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

import bufferpool as bp
from bufferpool.client import threads
from tests.conftest import PAGE, WAIT, new_name, wait_until, write_file


def refuse(work: Callable[..., object], args: tuple[object, ...]) -> int:
    """What CPython does where the system has no room for a thread."""
    raise RuntimeError("can't start new thread")


def end_silently(work: Callable[..., object], args: tuple[object, ...]) -> int:
    """What a thread does that finds no memory for its first call: it never comes to its work."""
    return 1


@pytest.fixture(params=[(refuse, errno.EAGAIN), (end_silently, errno.ENOMEM)], ids=["refused", "ended silently"])
def no_thread(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """The errno of the system that has no thread for this process."""
    how, number = request.param
    monkeypatch.setattr(threads._thread, "start_new_thread", how)
    return int(number)


def test_a_steward_that_finds_no_thread(pool: bp.Pool, no_thread: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says what to raise, and the next start works."""
    with pytest.raises(bp.ThreadRefused, match="ulimit -u") as caught:
        pool.start_steward(bp.Settings(interval=0.01))
    assert caught.value.errno == no_thread
    monkeypatch.undo()
    assert pool.start_steward(bp.Settings(interval=0.01)).alive
    pool.stop_steward()


def test_a_warm_up_that_finds_no_thread(pool: bp.Pool, no_thread: int, tmp_path: Path) -> None:
    """Nothing is loaded, and the caller gets the reason."""
    table = pool.open_file(write_file(tmp_path / "table", 8))
    table.prefetch(range(8))
    pool.save_working_set(tmp_path / "saved")
    with pytest.raises(bp.ThreadRefused) as caught:
        pool.load_working_set(tmp_path / "saved")
    assert caught.value.errno == no_thread


def test_a_flush_that_finds_no_thread(pool: bp.Pool, no_thread: int, tmp_path: Path) -> None:
    """A flush does its work in the thread of its caller."""
    table = pool.open_file(write_file(tmp_path / "table", 8), "r+")
    with table.write(3) as page:
        page[:] = 7
    assert pool.flush() == 1
    assert (tmp_path / "table").read_bytes()[3 * PAGE] == 7


def _start_with(limit: int, more: int) -> str:
    """How the start of a steward ends in a forked child whose memory may grow by so many bytes."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        signal.alarm(int(WAIT))
        said = "failed"
        try:
            pool = bp.Pool.create(new_name(), 64 * PAGE, page_size=PAGE)
            pool.unlink()
            with open("/proc/self/statm") as file:
                size = int(file.read().split()[0 if limit == resource.RLIMIT_AS else 5]) * resource.getpagesize()
            _, hard = resource.getrlimit(limit)
            resource.setrlimit(limit, (size + more, hard))
            try:
                pool.start_steward(bp.Settings(interval=0.01))
                said = "started"
            except (bp.BufferPoolError, MemoryError) as error:
                said = type(error).__name__
            resource.setrlimit(limit, (hard, hard))
            pool.stop_steward()
            os.write(write, said.encode())
        finally:
            os._exit(0)
    os.close(write)
    with open(read, "rb") as file:
        said = file.read().decode()
    return f"{said} {os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}"


@pytest.mark.parametrize("limit", [resource.RLIMIT_AS, resource.RLIMIT_DATA], ids=["address space", "data"])
def test_a_process_with_little_memory_left(limit: int) -> None:
    """Whether the thread, its stack or its first call finds no memory: the start ends, with it or with an error."""
    stack = resource.getrlimit(resource.RLIMIT_STACK)[0]
    stack = stack if 0 < stack <= 64 << 20 else 8 << 20
    said = [_start_with(limit, more) for more in (0, 1 << 20, stack, *(stack + (n << 16) for n in (1, 2, 4)), 1 << 28)]
    assert set(said) <= {"started 0", "ThreadRefused 0", "MemoryError 0"}, said
    assert said[-1] == "started 0"


def test_several_begin_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each thread of a load from a store was waited for before the next one was started.

    On a busy machine a new thread waits some milliseconds for a processor, so 32 threads took as long as two requests to the store.
    """
    events: list[str] = []
    start, wait = threads._thread.start_new_thread, threads.Worker._wait_until_begun
    monkeypatch.setattr(threads._thread, "start_new_thread", lambda *args: (events.append("start"), start(*args))[1])
    monkeypatch.setattr(threads.Worker, "_wait_until_begun", lambda self: (events.append("wait"), wait(self))[1])
    done: list[int] = []
    workers = threads.Worker.several(lambda: done.append(1), 5)
    assert events == ["start"] * 5 + ["wait"] * 5
    assert all(worker.join(WAIT) for worker in workers)
    assert len(done) == 5


@pytest.mark.parametrize("refused_how", [refuse, end_silently], ids=["refused", "ended silently"])
def test_several_of_which_some_cannot_be_had(refused_how: Callable[..., int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that have begun do the work, and only they are returned."""
    start, asked = threads._thread.start_new_thread, 0

    def few(work: Callable[..., object], args: tuple[object, ...]) -> int:
        nonlocal asked
        asked += 1
        return start(work, args) if asked <= 2 else refused_how(work, args)

    monkeypatch.setattr(threads._thread, "start_new_thread", few)
    done: list[int] = []
    workers = threads.Worker.several(lambda: done.append(1), 4)
    assert len(workers) == 2
    assert all(worker.join(WAIT) for worker in workers)
    assert len(done) == 2


class LateLock:
    """The lock by which a thread says that it has begun, of a busy machine: the first wait for it is over just before the thread says so, and
    when the waiter looks at the thread, it has ended."""

    def __init__(self, worker: threads.Worker) -> None:
        self._worker, self._lock, self._waits = worker, worker._begun, 0

    def release(self) -> None:
        self._lock.release()

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        self._waits += 1
        if self._waits == 1:
            wait_until(lambda: self._worker._token() is None, "the thread to end")
            return False
        return self._lock.acquire(blocking, timeout)


def test_a_thread_that_has_ended_when_it_is_looked_at_was_not_refused() -> None:
    """The look took the lock that says that the thread has begun, and then waited for the lock once more: ThreadRefused, of work that was done.

    Seen in load_working_set(), beside seven busy threads.
    """
    done: list[int] = []
    worker = threads.Worker.__new__(threads.Worker)
    worker._start(lambda: done.append(1))
    worker._begun = LateLock(worker)  # type: ignore[assignment]
    worker._wait_until_begun()
    assert done == [1]
    assert worker.ended
