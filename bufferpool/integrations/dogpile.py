"""dogpile.cache: a backend whose values and locks are shared by all processes of a machine.

from bufferpool.integrations import dogpile  # registers the backend

region = make_region().configure(
    "bufferpool", expiration_time=300, arguments={"pool": "site", "size": "256MiB"}
)
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from bufferpool.integrations.extras import needs
from bufferpool.integrations.shared import shared_pool
from bufferpool.objects.cache import END_S, LOAD, UNKEPT, Cache, Key

with needs("dogpile.cache"):
    from dogpile.cache.api import NO_VALUE, CacheBackend, CacheMutex
    from dogpile.cache.region import register_backend


class PoolMutex(CacheMutex):  # type: ignore[misc]
    """One holder among all threads and processes; if the holder dies, another takes its place."""

    def __init__(self, cache: Cache, key: Key) -> None:
        self._cache, self._key, self._load, self._held = cache, key, None, False

    def acquire(self, wait: bool = True) -> bool:
        while True:
            outcome, load = self._cache.begin(self._key, math.inf if wait else 0.0, wait, False, False)
            if outcome in (LOAD, UNKEPT):  # UNKEPT: the cache has no room at all, so there is no lock either
                self._load, self._held = load, True
                return True
            if not wait:
                return False

    def release(self) -> None:
        load, self._load, self._held = self._load, None, False
        if load is not None:
            self._cache.fail(load, self._key, None, False, END_S)

    def locked(self) -> bool:
        return self._held


class PoolBackend(CacheBackend):  # type: ignore[misc]
    """Arguments: ``pool`` (the name of the pool), ``size`` (of the pool, used if the pool does not exist), ``cache`` (a name,
    "dogpile" by default), ``ttl`` (seconds until the pool drops a value, in addition to the region's own expiry; never by default).
    """

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        unknown = set(arguments) - {"pool", "size", "cache", "ttl"}
        if unknown or "pool" not in arguments:
            what = f"no argument {min(unknown)!r}" if unknown else "no pool: arguments={'pool': NAME}"
            raise ValueError(f"the backend 'bufferpool' has {what}")
        self._ttl = arguments.get("ttl")
        pool = shared_pool(arguments["pool"], arguments.get("size", "auto"))
        self.cache = pool.cache(arguments.get("cache", "dogpile"))

    def get(self, key: str) -> Any:
        return self.cache.get(key, NO_VALUE)

    def get_multi(self, keys: Sequence[str]) -> Sequence[Any]:
        return [self.get(key) for key in keys]

    def set(self, key: str, value: Any) -> None:
        self.cache.put(key, value, ttl=self._ttl)

    def set_multi(self, mapping: Mapping[str, Any]) -> None:
        for key, value in mapping.items():
            self.set(key, value)

    def delete(self, key: str) -> None:
        self.cache.delete(key)

    def delete_multi(self, keys: Sequence[str]) -> None:
        for key in keys:
            self.delete(key)

    def get_mutex(self, key: str) -> CacheMutex:
        return PoolMutex(self.cache, ("mutex", key))


register_backend("bufferpool", __name__, "PoolBackend")
