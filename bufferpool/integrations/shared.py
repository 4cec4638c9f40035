"""The pools of this process by name, for frameworks whose settings name a pool."""

from bufferpool._locks import Lock
from bufferpool.pool import Pool

_pools: dict[str, Pool] = {}
_lock = Lock()


def shared_pool(name: str, size: int | str) -> Pool:
    """The pool of this name, opened once for all threads; it remains open as long as the process lives."""
    with _lock:
        if name not in _pools or _pools[name].client.closed:
            _pools[name] = Pool.open(name, size)
        return _pools[name]
