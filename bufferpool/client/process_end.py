"""The end of a process that :mod:`multiprocessing` has forked.

Such a process ends by os._exit(), which runs no function of :mod:`atexit`: its client would count as dead, and its pins would
remain until the next reap. multiprocessing runs finalizers of its own before. This module never imports multiprocessing: a
process that it has forked has it loaded.
"""

import os
import sys
import threading
from collections.abc import Callable
from typing import Any


class AtEnd:
    """Calls a function at the end of a process that multiprocessing has started, unless threads that it waits for still run."""

    def __init__(self, call: Callable[[], object]) -> None:
        self._call = call
        self._pid = 0  # of the process that has the finalizer
        os.register_at_fork(after_in_child=self._forked)

    def _forked(self) -> None:
        util: Any = sys.modules.get("multiprocessing.util")
        if util is not None:
            # multiprocessing drops the finalizers of the parent first, and calls then what is registered so.
            util.register_after_fork(self, AtEnd.attached)

    def attached(self) -> None:
        """A pool was attached here, or inherited: the function is to be called."""
        process: Any = sys.modules.get("multiprocessing.process")
        if process is None or self._pid == os.getpid():
            return
        if process.parent_process() is None:
            # A child of the fork server imports this package while it unpickles its work, and only then learns that it is a child.
            if getattr(process.current_process(), "_inheriting", False):
                self._forked()
            return
        self._pid = os.getpid()
        sys.modules["multiprocessing.util"].Finalize(None, self._end, exitpriority=-1000)  # after those of others

    def _end(self) -> None:
        here = threading.current_thread()
        if all(thread is here or thread.daemon for thread in threading.enumerate()):
            self._call()
