"""Jobs: work that may hang runs in threads of its own (flushes, the sync of the log, saving the working set).

A store may hang in any of its methods, and a file's disk in any system call. A caller that needs the result of
such a call waits for it up to its own timeout; it must not delay other callers. So the calls run in daemon
threads, one job at a time for each subject (a space, the log), which also bounds the number of threads.
"""

import os
import threading
import time
import weakref
from collections.abc import Callable, Hashable
from functools import partial

from bufferpool._locks import Condition
from bufferpool.client.threads import Worker
from bufferpool.errors import ThreadRefused

_here = threading.local()


def underway() -> frozenset[Hashable]:
    """The subjects of the jobs that this thread runs, and of those that wait for this thread."""
    marks: list[weakref.ref[working_on]] = getattr(_here, "marks", [])
    return frozenset().union(*(mark.subjects for ref in marks if (mark := ref()) is not None))


class working_on:
    """Marks that this thread works on a subject in the `with` block: it must not wait for a job on the same subject.

    The mark ends with this object, too: a signal's handler may raise before ``__exit__`` comes to its work.
    """

    def __init__(self, subject: Hashable, outer: frozenset[Hashable] = frozenset()) -> None:
        self.subjects = outer | {subject}

    def __enter__(self) -> None:
        _here.marks = [ref for ref in getattr(_here, "marks", []) if ref() is not None] + [weakref.ref(self)]

    def __exit__(self, *exc: object) -> None:
        _here.marks = [ref for ref in _here.marks if ref() not in (None, self)]


class _Start:
    """A token of a job. The thread that starts the job holds it, then the thread that does the work: if neither does, the job is lost."""


class Job:
    """One piece of work that runs in a thread."""

    def __init__(self, subject: Hashable, work: Callable[[], int], start: _Start) -> None:
        self.subject, self.work = subject, work
        self._start = weakref.ref(start)
        self.began = time.monotonic()
        self.taken = False
        """Whether a thread has begun the work."""
        self.ended = False
        self.abandoned = False
        """Whether its caller has given it up: then close() does not wait for it either."""
        self.result = 0
        """The result of the work: for a flush, the number of pages written."""
        self.error: BaseException | None = None

    def given_up(self) -> bool:
        """Whether no thread has begun the work, and none will, because a signal's handler raised in the thread that was starting it."""
        return self._start() is None and not self.taken

    @property
    def done(self) -> bool:
        """Whether the work is over, or will never begin."""
        return self.ended or self.given_up()


class Jobs:
    """The jobs of one pool in one process. A forked child starts without jobs."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self._changed = Condition()
        self._running: dict[Hashable, Job] = {}

    def running(self, subject: Hashable) -> Job | None:
        """The running job on a subject, or None."""
        job = self._running.get(subject)
        return None if job is None or job.given_up() else job

    def all(self) -> list[Job]:
        """The running jobs."""
        with self._changed:
            return [job for job in self._running.values() if not job.given_up()]

    def abandon(self) -> None:
        """Gives up the jobs that run now: :meth:`wait_until_idle` does not wait for them."""
        for job in self.all():
            job.abandoned = True

    def wait_until_idle(self, seconds: float) -> None:
        """Waits at most ``seconds`` until no job runs, but for those that were given up."""
        self.wait(lambda: all(job.abandoned for job in self.all()), seconds)

    def start(self, subject: Hashable, work: Callable[[], int]) -> tuple[Job, bool]:
        """Starts a job on a subject unless one runs; returns (the job, whether it is new)."""
        outer, start = underway(), _Start()
        with self._changed:
            job = self.running(subject)
            if job is not None:
                return job, False
            job = self._running[subject] = Job(subject, work, start)
        try:
            Worker(partial(self._run, job, outer, start))
        except (ThreadRefused, MemoryError):
            self._run(job, outer, start)  # do the work here, unless the new thread has begun it after all
        return job, True

    def _take(self, job: Job) -> bool:
        """Takes the work for this thread; returns False if another thread has taken it."""
        with self._changed:
            if job.taken:
                return False
            job.taken = True
            self._changed.notify_all()
            return True

    def _run(self, job: Job, outer: frozenset[Hashable], start: _Start) -> None:
        if not self._take(job):
            return
        try:
            with working_on(job.subject, outer):
                job.result = job.work()
        except BaseException as error:  # noqa: BLE001 - not swallowed: the caller that waits for the job raises it
            job.error = error
        if self.pid == os.getpid():  # otherwise the work has forked, and this is the child
            with self._changed:
                job.ended = True
                if self._running.get(job.subject) is job:
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
