"""dask: one pool for all workers of a machine, made by the first of them and removed by the last.

``client.register_plugin(PoolPlugin("4GiB"))`` makes a pool on every machine of a cluster. ``worker_pool()`` returns, in a task, the
pool of the worker's machine. Tasks can have spaces and pools as arguments without the plugin, and
``dask.array.from_array(space)`` needs no plugin either.
"""

import fcntl
import os
import secrets
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from distributed import WorkerPlugin

from bufferpool._locks import Lock
from bufferpool.errors import NoWorkerPool, SegmentReplaced
from bufferpool.machine.descriptor import epoll, opened
from bufferpool.pool import Pool

_TRIES = 100


@dataclass
class _Held:
    """The pool of a plugin in this process, which several workers of the process may use."""

    pool: Pool
    file: epoll
    """The segment's file, with a shared flock(2), which says that a worker uses the pool."""
    workers: int


_held: dict[str, _Held] = {}
_holding = Lock()


class PoolPlugin(WorkerPlugin):  # type: ignore[misc]  # dask's types are not looked at
    """Gives each machine of a cluster one pool, which its workers share: ``client.register_plugin(PoolPlugin("4GiB"))``.

    The first worker on a machine creates the pool, the others attach, and the last one that is closed writes dirty pages to
    their files and removes it. A worker that is killed leaves the pool to the others, and attaches again when its nanny
    has restarted it. ``pool_name``: by default a name of its own, so that clusters on one machine do not share a
    pool. ``directory``: another tmpfs than /dev/shm; environment variables in it (``"$BUFFERPOOL_DIRECTORY"``) are
    those of the worker. ``options``: as for :meth:`bufferpool.Pool.open`.
    """

    def __init__(
        self, capacity: int | str = "auto", pool_name: str | None = None, *, directory: str | None = None, **options: Any
    ) -> None:  # fmt: skip
        self.pool_name = f"dask-{secrets.token_hex(4)}" if pool_name is None else pool_name
        self.name = f"bufferpool-{self.pool_name}"  # the name by which dask knows the plugin
        self._capacity, self._directory, self._options = capacity, directory, options

    def setup(self, worker: object) -> None:
        """Called by dask in each worker, when the plugin is registered or the worker starts."""
        with _holding:
            held = _held.get(self.pool_name)
            if held is None:
                _held[self.pool_name] = self._hold()
            else:
                held.workers += 1

    def teardown(self, worker: object) -> None:
        """Called by dask in each worker that is closed, and when the plugin is removed."""
        with _holding:
            held = _held.get(self.pool_name)
            if held is None:
                return
            held.workers -= 1
            if held.workers:
                return
            del _held[self.pool_name]
        _leave(held)

    def _hold(self) -> _Held:
        """Opens the pool, and locks the file as a user of it, unless another process is about to remove the pool."""
        directory = None if self._directory is None else os.path.expandvars(self._directory)
        for _ in range(_TRIES):
            pool = Pool.open(self.pool_name, self._capacity, directory=directory, **self._options)
            with suppress(FileNotFoundError):
                file = opened(pool.path, os.O_RDONLY | os.O_CLOEXEC)
                fcntl.flock(file, fcntl.LOCK_SH)  # waits only for a process that removes the pool
                if _is_at_its_path(pool, file.fileno()):
                    return _Held(pool, file, 1)
                file.close()
            pool.close()
        raise SegmentReplaced(f"pool {self.pool_name!r} was created and removed {_TRIES} times meanwhile")


def _is_at_its_path(pool: Pool, fd: int) -> bool:
    """Whether the pool, the descriptor and the path are still the same file. Raises FileNotFoundError."""
    return pool.seg.status()["links"] > 0 and os.path.samestat(os.fstat(fd), os.stat(pool.path))


def _leave(held: _Held) -> None:
    """Ends the use of a pool by this process; the last process on the machine flushes it and removes it.

    Raises StoreError or UnsavedPages if dirty pages cannot be written; then the pool is kept.
    """
    try:
        try:
            fcntl.flock(held.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return  # another process uses the pool; the attempt has released our own lock
        held.pool.flush()
        held.pool.unlink()
    finally:
        held.file.close()
        with suppress(BufferError), held.pool:  # a task that is still running keeps its pages until it ends
            pass


def worker_pool(pool_name: str | None = None) -> Pool:
    """Returns, in a task, the pool of the worker's machine; ``pool_name`` chooses, if there are several plugins.

    Raises NoWorkerPool.
    """
    with _holding:
        if pool_name is None and len(_held) == 1:
            (held,) = _held.values()
            return held.pool
        if pool_name is not None and pool_name in _held:
            return _held[pool_name].pool
        found = sorted(_held)
    asked = "worker_pool() was called without a name" if pool_name is None else f"there is no pool {pool_name!r}"
    raise NoWorkerPool(
        f"{asked}, and the plugins of this process have the pools {found}: call it in a task, after "
        "client.register_plugin(PoolPlugin(...)), and name the pool if there are several"
    )
