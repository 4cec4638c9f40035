"""Django: a cache backend whose values all workers of a machine share.

CACHES = {
    "default": {
        "BACKEND": "bufferpool.integrations.django.PoolCache",
        "LOCATION": "site",  # the name of the pool
        "OPTIONS": {"size": "256MiB"},
    }
}
"""

import os
import time
from itertools import count
from typing import Any, Final, NamedTuple

from django.core.cache.backends.base import DEFAULT_TIMEOUT, BaseCache
from django.core.exceptions import ImproperlyConfigured

from bufferpool.integrations.shared import shared_pool

_ABSENT: Final = object()
_turns = count()


class _Number(NamedTuple):
    """An int together with its expiry, so that ``incr`` can keep the expiry."""

    value: int
    expires_at: float | None


class _Done(Exception):
    """Ends a turn of ``incr``; the callers that waited for it then take their turns."""

    def __init__(self, whose: tuple[int, int], result: int | None) -> None:
        super().__init__(whose, result)
        self.whose, self.result = whose, result


class PoolCache(BaseCache):  # type: ignore[misc]
    """Django's cache in a pool. ``LOCATION`` is the pool's name; ``OPTIONS``: ``size`` (of the pool, if it is made) and
    ``cache`` (the name of the cache in it, "django" by default).

    ``add`` and ``incr`` are atomic among all processes. ``get`` returns bytes as bytes, arrays as read-only arrays without a copy,
    and other values as pickle makes them. A value that is larger than a quarter of the pool is not kept. The number of values is
    limited by their bytes, so there is no MAX_ENTRIES: the oldest and least used values are evicted.
    """

    def __init__(self, location: str, params: dict[str, Any]) -> None:
        super().__init__(params)
        options = dict(params.get("OPTIONS") or {})
        size, name = options.pop("size", "auto"), options.pop("cache", "django")
        unknown = [*options, *({"MAX_ENTRIES", "max_entries", "CULL_FREQUENCY", "cull_frequency"} & set(params))]
        if unknown:
            raise ImproperlyConfigured(
                f"{type(self).__name__} has no option {unknown[0]}: values are evicted by their bytes; set OPTIONS['size']"
            )
        if not location:
            raise ImproperlyConfigured(f"{type(self).__name__} needs a LOCATION: the name of a pool")
        self._cache = shared_pool(location, size).cache(name)

    # ---- one key

    def get(self, key: str, default: Any = None, version: int | None = None) -> Any:
        value = self._cache.get(self.make_and_validate_key(key, version), _ABSENT)
        return default if value is _ABSENT else self._given(value)

    def set(self, key: str, value: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None) -> None:
        self._put(self.make_and_validate_key(key, version), value, self._seconds(timeout))

    def add(self, key: str, value: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None) -> bool:
        made, seconds = self.make_and_validate_key(key, version), self._seconds(timeout)
        if seconds is not None and seconds <= 0:
            return made not in self._cache
        added = False

        def first(_: object) -> Any:
            nonlocal added
            added = True
            return self._kept(value, seconds)

        self._cache.get_or_load(made, first, ttl=seconds)
        return added

    def touch(self, key: str, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None) -> bool:
        made = self.make_and_validate_key(key, version)
        value = self._cache.get(made, _ABSENT)
        if value is _ABSENT:
            return False
        self._put(made, self._given(value), self._seconds(timeout))
        return True

    def delete(self, key: str, version: int | None = None) -> bool:
        return bool(self._cache.delete(self.make_and_validate_key(key, version)))

    def has_key(self, key: str, version: int | None = None) -> bool:
        return self.make_and_validate_key(key, version) in self._cache

    def incr(self, key: str, delta: int = 1, version: int | None = None) -> int:
        made = self.make_and_validate_key(key, version)
        whose = os.getpid(), next(_turns)

        def turn(_: object) -> Any:
            raise _Done(whose, self._increment(made, delta))

        while True:
            try:  # a load that raises serves as a lock: one process has it at a time, and another one if that process dies
                self._cache.get_or_load(("incr", made), turn)
            except _Done as done:
                if done.whose != whose:
                    continue
                if done.result is None:
                    raise ValueError(f"Key {key!r} not found") from None
                return done.result

    def clear(self) -> None:
        self._cache.clear()

    # ---- values

    def _increment(self, key: str, delta: int) -> int | None:
        value = self._cache.get(key, _ABSENT)
        if value is _ABSENT:
            return None
        number = value if isinstance(value, _Number) else _Number(self._given(value), None)
        left = None if number.expires_at is None else number.expires_at - time.time()
        if left is not None and left <= 0:
            return None
        self._cache.put(key, _Number(number.value + delta, number.expires_at), ttl=left)
        return number.value + delta

    def _put(self, key: str, value: Any, seconds: float | None) -> None:
        if seconds is not None and seconds <= 0:
            self._cache.delete(key)
        else:
            self._cache.put(key, self._kept(value, seconds), ttl=seconds)

    @staticmethod
    def _kept(value: Any, seconds: float | None) -> Any:
        if type(value) is int:
            return _Number(value, None if seconds is None else time.time() + seconds)
        return value

    @staticmethod
    def _given(value: Any) -> Any:
        if isinstance(value, _Number):
            return value.value
        return bytes(value) if isinstance(value, memoryview) else value

    def _seconds(self, timeout: Any) -> float | None:
        """Seconds from now; None: the value never expires; 0 or less: it has expired already."""
        seconds = self.default_timeout if timeout is DEFAULT_TIMEOUT else timeout
        return None if seconds is None else float(seconds)
