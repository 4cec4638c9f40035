"""A cache as a MutableMapping: for ``cachetools.cached`` and other code that expects a dict.

@cachetools.cached(CacheMapping(pool.cache("squares")))
def square(x): ...
"""

from collections.abc import Callable, Iterator, MutableMapping
from typing import Any, Final, NoReturn

from bufferpool.objects.cache import Cache, Key, plain_key

_ABSENT: Final = object()


class CacheMapping(MutableMapping[Any, Any]):
    """The values of a cache, by item access.

    ``ttl``: seconds until a value that is set here expires. ``key``: a function that turns an item's key into a key of the
    cache. A value may be evicted at any time, and is not kept at all if it is too large. ``setdefault`` is atomic among all
    processes. The cache does not list its keys, so iteration raises TypeError.
    """

    def __init__(self, cache: Cache, *, ttl: float | None = None, key: Callable[[Any], Key] = plain_key) -> None:
        self.cache, self._ttl, self._key = cache, ttl, key

    def __getitem__(self, key: Any) -> Any:
        value = self.cache.get(self._key(key), _ABSENT)
        if value is _ABSENT:
            raise KeyError(key)
        return value

    def __setitem__(self, key: Any, value: Any) -> None:
        self.cache.put(self._key(key), value, ttl=self._ttl)

    def __delitem__(self, key: Any) -> None:
        if not self.cache.delete(self._key(key)):
            raise KeyError(key)

    def __contains__(self, key: object) -> bool:
        return self._key(key) in self.cache

    def __len__(self) -> int:
        return len(self.cache)

    def __iter__(self) -> Iterator[Any]:
        self._unlisted()

    def __bool__(self) -> bool:
        return True

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CacheMapping) and (self.cache, self._ttl) == (other.cache, other._ttl)

    __hash__ = None  # type: ignore[assignment]  # as of every mutable mapping

    def __repr__(self) -> str:
        return f"CacheMapping({self.cache!r})"

    def setdefault(self, key: Any, default: Any = None) -> Any:
        return self.cache.get_or_load(self._key(key), lambda _: default, ttl=self._ttl)

    def popitem(self) -> NoReturn:
        self._unlisted()

    def clear(self) -> None:
        self.cache.clear()

    @staticmethod
    def _unlisted() -> NoReturn:
        raise TypeError("a cache does not list its keys; get, set and delete single ones, or clear() it")
