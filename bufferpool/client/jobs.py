"""Jobs: work that may hang runs in threads of its own (flushes, the sync of the log, saving the working set).

A store may hang in any of its methods, and a file's disk in any system call. A caller that needs the result of
such a call waits for it up to its own timeout; it must not delay other callers. So the calls run in daemon
threads, one job at a time for each subject (a space, the log), which also bounds the number of threads.
"""

import os
import threading
import time
from collections.abc import Callable, Hashable
from functools import partial

from bufferpool._locks import Condition
from bufferpool.client.threads import Worker
from bufferpool.errors import ThreadRefused

_here = threading.local()


def underway() -> frozenset[Hashable]:
    """The subjects of the jobs that this thread runs, and of those that wait for this thread."""
    found: frozenset[Hashable] = getattr(_here, "subjects", frozenset())
    return found


class working_on:
    """Marks that this thread works on a subject within the block: it must not wait for a job on the same subject."""

    def __init__(self, subject: Hashable, outer: frozenset[Hashable] | None = None) -> None:
        self._subjects = (underway() if outer is None else outer) | {subject}

    def __enter__(self) -> None:
        self._before = underway()
        _here.subjects = self._subjects

    def __exit__(self, *exc: object) -> None:
        _here.subjects = self._before


class Job:
    """One piece of work that runs in a thread."""

    def __init__(self, subject: Hashable, work: Callable[[], int]) -> None:
        self.subject, self.work = subject, work
        self.began = time.monotonic()
        self.taken = False
        """Whether a thread has begun the work."""
        self.done = False
        self.result = 0
        """The result of the work: for a flush, the number of pages written."""
        self.error: BaseException | None = None


class Jobs:
    """The jobs of one pool in one process. A forked child starts without jobs."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self._changed = Condition()
        self._running: dict[Hashable, Job] = {}

    def running(self, subject: Hashable) -> Job | None:
        """The running job on a subject, or None."""
        return self._running.get(subject)

    def all(self) -> list[Job]:
        """The running jobs."""
        with self._changed:
            return list(self._running.values())

    def start(self, subject: Hashable, work: Callable[[], int]) -> tuple[Job, bool]:
        """Starts a job on a subject unless one runs; returns (the job, whether it is new)."""
        with self._changed:
            job = self._running.get(subject)
            if job is not None:
                return job, False
            job = self._running[subject] = Job(subject, work)
        outer = underway()
        try:
            Worker(partial(self._run, job, outer))
        except (ThreadRefused, MemoryError):
            self._run(job, outer)  # without a thread, but for one that has begun after all
        return job, True

    def _take(self, job: Job) -> bool:
        """Takes the work for this thread; returns False if another thread has taken it."""
        with self._changed:
            if job.taken:
                return False
            job.taken = True
            self._changed.notify_all()
            return True

    def _run(self, job: Job, outer: frozenset[Hashable]) -> None:
        if not self._take(job):
            return
        try:
            with working_on(job.subject, outer):
                job.result = job.work()
        except BaseException as error:  # noqa: BLE001 - not swallowed: the caller that waits for the job raises it
            job.error = error
        if self.pid == os.getpid():  # otherwise the work has forked, and this is the child
            with self._changed:
                job.done = True
                del self._running[job.subject]
                self._changed.notify_all()

    def wait(self, holds: Callable[[], bool], seconds: float, slice_s: float = 0.02) -> bool:
        """Waits at most ``seconds`` until ``holds()``, which is checked when a job ends and every ``slice_s`` seconds."""
        end = time.monotonic() + seconds
        while not holds():
            left = end - time.monotonic()
            if left <= 0:
                return False
            with self._changed:
                if not holds():
                    self._changed.wait(min(left, slice_s))
        return True
