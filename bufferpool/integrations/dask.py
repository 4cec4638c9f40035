"""dask: one pool for all workers of a machine, made by the first of them and removed by the last.

``client.register_plugin(PoolPlugin("4GiB"))`` makes a pool on every machine of a cluster. ``worker_pool()`` returns, in a task, the
pool of the worker's machine. Tasks can have spaces and pools as arguments without the plugin, and
``dask.array.from_array(space)`` needs no plugin either.
"""

import asyncio
import fcntl
import os
import re
import secrets
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from bufferpool._locks import Lock
from bufferpool.errors import NoWorkerPool, SegmentNotFound, SegmentReplaced
from bufferpool.integrations.extras import needs
from bufferpool.machine.descriptor import epoll, opened
from bufferpool.pool import Pool

with needs("'bufferpool[dask]'"):
    from distributed import WorkerPlugin
    from distributed.core import Status

_TRIES = 100
_RUNNING = (Status.running, Status.paused)


@dataclass
class _Held:
    """The pool of a plugin in this process, which several workers of the process may use."""

    plugin: "PoolPlugin"
    pool: Pool
    file: epoll
    """The segment's file, with a shared flock(2), which says that a worker uses the pool."""
    workers: int = 1


_held: dict[str, _Held] = {}
_holding = Lock()


class PoolPlugin(WorkerPlugin):  # type: ignore[misc]  # dask's types are not looked at
    """Gives each machine of a cluster one pool, which its workers share: ``client.register_plugin(PoolPlugin("4GiB"))``.

    The first worker on a machine creates the pool, the others attach, and the last one that is closed writes dirty pages to
    their files and removes it. A worker that is killed leaves the pool to the others, and attaches again when its nanny
    has restarted it. ``pool_name``: by default a name of its own, so that clusters on one machine do not share a
    pool. ``directory``: another tmpfs than /dev/shm; environment variables in it (``"$BUFFERPOOL_DIRECTORY"``) are
    those of the worker. ``options``: as for :meth:`bufferpool.Pool.open`.

    dask knows the plugin as "bufferpool". So another PoolPlugin takes its place, with a new, empty pool, and tasks under way
    keep the pool that they have. The same one, or one of the same ``pool_name``, keeps the pool with its pages. Plugins
    with different ``pool_name`` are added to each other.
    """

    def __init__(
        self, capacity: int | str = "auto", pool_name: str | None = None, *, directory: str | None = None, **options: Any
    ) -> None:  # fmt: skip
        self.pool_name = f"dask-{secrets.token_hex(4)}" if pool_name is None else pool_name
        # The name by which dask knows the plugin. Of plugins of one name dask keeps the last: a notebook's cell may run twice.
        self.name = "bufferpool" if pool_name is None else f"bufferpool-{pool_name}"
        self._capacity, self._directory, self._options = capacity, directory, options

    def setup(self, worker: object) -> None:
        """Called by dask in each worker, when the plugin is registered or the worker starts."""
        with _holding:
            held = _held.get(self.pool_name)
            if held is None:
                _held[self.pool_name] = self._hold()
                return
            held.workers += 1
            if vars(held.plugin) != vars(self):
                self._open().close()  # warns of what differs
                held.plugin = self

    def teardown(self, worker: object) -> None:
        """Called by dask in each worker that is closed, and when the plugin is removed or replaced."""
        with _holding:
            held = _held.get(self.pool_name)
            if held is None:
                return
            held.workers -= 1
        if getattr(worker, "status", None) in _RUNNING:
            # The setup of a plugin in its place follows in the same turn of the loop: until then tasks need the pool.
            asyncio.get_running_loop().call_soon(_end_use, self.pool_name, False)
        else:
            _end_use(self.pool_name, True)

    def _hold(self) -> _Held:
        """Opens the pool, and locks the file as a user of it, unless another process is about to remove the pool."""
        for _ in range(_TRIES):
            pool = self._open()
            with suppress(FileNotFoundError):
                file = opened(pool.path, os.O_RDONLY | os.O_CLOEXEC)
                fcntl.flock(file, fcntl.LOCK_SH)  # waits only for a process that removes the pool
                if _is_at_its_path(pool, file.fileno()):
                    return _Held(self, pool, file)
                file.close()
            pool.close()
        raise SegmentReplaced(f"pool {self.pool_name!r} was created and removed {_TRIES} times meanwhile")

    def _open(self) -> Pool:
        directory = None if self._directory is None else _expanded(self._directory)
        return Pool.open(self.pool_name, self._capacity, directory=directory, **self._options)


def _expanded(directory: str) -> str:
    """The directory with the environment variables of this worker. Raises SegmentNotFound if one of them is not set."""
    path = os.path.expandvars(directory)
    names = [name.strip("${}") for name in re.findall(r"\$\w+|\$\{[^}]*\}", directory)]
    unset = [name for name in names if name not in os.environ]
    if unset and not os.path.isdir(path):
        raise SegmentNotFound(
            f"directory={directory!r} of the PoolPlugin: the environment variable {unset[0]} is not set in this worker"
        )
    return path


def _is_at_its_path(pool: Pool, fd: int) -> bool:
    """Whether the pool, the descriptor and the path are still the same file. Raises FileNotFoundError."""
    return pool.seg.status()["links"] > 0 and os.path.samestat(os.fstat(fd), os.stat(pool.path))


def _end_use(pool_name: str, closed: bool) -> None:
    """Ends the use of a pool by this process, if no worker in it has the plugin any more. ``closed``: the worker is being closed."""
    with _holding:
        held = _held.get(pool_name)
        if held is None or held.workers > 0:
            return
        del _held[pool_name]
    _leave(held, closed)


def _leave(held: _Held, closed: bool) -> None:
    """Ends the use of a pool by this process; the last process on the machine flushes it and removes it.

    Unless the worker is being closed, tasks under way may need the pool, which is closed when the last of them drops it.
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
        if closed:
            with suppress(BufferError), held.pool:  # a task that is still running keeps its pages until it ends
                pass
        else:
            held.pool.stop_steward()  # its thread would keep the pool


def worker_pool(pool_name: str | None = None) -> Pool:
    """Returns, in a task, the pool of the worker's machine; ``pool_name`` chooses, if there are several plugins.

    Raises NoWorkerPool.
    """
    with _holding:
        plugins = {held.plugin.name for held in _held.values()}
        if pool_name is None and len(plugins) == 1:
            return list(_held.values())[-1].pool  # while a plugin is being replaced, the new one
        if pool_name is not None and pool_name in _held:
            return _held[pool_name].pool
        found = sorted(_held)
    asked = "worker_pool() was called without a name" if pool_name is None else f"there is no pool {pool_name!r}"
    if not found:
        raise NoWorkerPool(
            f"{asked}, and this process has no pool: call it in a task, after client.register_plugin(PoolPlugin(...)); "
            "if the plugin is registered, the log of the worker says why it could not open its pool"
        )
    raise NoWorkerPool(
        f"{asked}, and this process has the pools {found}, of the plugins {sorted(plugins)}: name one of the pools, or "
        "remove a plugin with client.unregister_worker_plugin(name). A PoolPlugin takes the place of one with the same "
        "pool_name, or with none, and is added to all others"
    )
