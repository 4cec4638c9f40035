"""Django: a cache backend whose values all workers of a machine share.

CACHES = {
    "default": {
        "BACKEND": "bufferpool.integrations.django.PoolCache",
        "LOCATION": "site",  # the name of the pool
        "OPTIONS": {"size": "256MiB"},
    }
}
"""

import math
from typing import Any, Final

from bufferpool.integrations.extras import needs
from bufferpool.integrations.shared import shared_pool

with needs("django"):
    from django.core.cache.backends.base import DEFAULT_TIMEOUT, BaseCache
    from django.core.exceptions import ImproperlyConfigured

_ABSENT: Final = object()


class PoolCache(BaseCache):  # type: ignore[misc]
    """Django's cache in a pool. ``LOCATION`` is the pool's name; ``OPTIONS``: ``size`` (of the pool, if it is made) and
    ``cache`` (the name of the cache in it, "django" by default).

    ``add``, ``incr`` and ``touch`` are atomic among all processes. ``get`` returns bytes as bytes, arrays as read-only arrays without a copy,
    and other values as pickle makes them. A value that is larger than a quarter of what the cache may take (by default, an eighth of the pool) is not kept. The
    values are limited by their bytes, so there is no MAX_ENTRIES: those that save the least time for their bytes are evicted.
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
            return value

        self._cache.get_or_load(made, first, ttl=seconds)
        return added

    def touch(self, key: str, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None) -> bool:
        made, seconds = self.make_and_validate_key(key, version), self._seconds(timeout)
        if seconds is not None and seconds <= 0:
            return bool(self._cache.delete(made))
        return self._cache.touch(made, ttl=math.inf if seconds is None else seconds)

    def delete(self, key: str, version: int | None = None) -> bool:
        return bool(self._cache.delete(self.make_and_validate_key(key, version)))

    def has_key(self, key: str, version: int | None = None) -> bool:
        return self.make_and_validate_key(key, version) in self._cache

    def incr(self, key: str, delta: int = 1, version: int | None = None) -> Any:
        made = self.make_and_validate_key(key, version)
        number = self._cache.update(made, lambda value: self._given(value) + delta)
        if number is None:
            raise ValueError(f"Key {key!r} not found")
        return number

    def clear(self) -> None:
        self._cache.clear()

    # ---- values

    def _put(self, key: str, value: Any, seconds: float | None) -> None:
        if seconds is not None and seconds <= 0:
            self._cache.delete(key)
        else:
            self._cache.put(key, value, ttl=seconds)

    @staticmethod
    def _given(value: Any) -> Any:
        return bytes(value) if isinstance(value, memoryview) else value

    def _seconds(self, timeout: Any) -> float | None:
        """Seconds from now; None: the value never expires; 0 or less: it has expired already."""
        seconds = self.default_timeout if timeout is DEFAULT_TIMEOUT else timeout
        return None if seconds is None else float(seconds)
