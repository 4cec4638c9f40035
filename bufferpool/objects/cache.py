"""A cache of values by key that every process of a pool shares. Its tables and their protocol are in the core
(``core/protocol/object*.h``); here is what calls other people's code: loaders, pickles and coroutines."""

import contextlib
import contextvars
import functools
import inspect
import pickle
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, ParamSpec, Protocol, Self, TypeVar, cast

from bufferpool import _core
from bufferpool.errors import LoaderFailed, WaitTimeout, WouldDeadlock
from bufferpool.figures.stats import CacheStats
from bufferpool.printable import shown
from bufferpool.units import parse_size, seconds_of

if TYPE_CHECKING:
    from bufferpool.client.client import Client

Key = str | bytes | int | tuple["Key", ...]
"""What a key may be. Equal keys are equal in every process; an int is not equal to the str of its digits."""

_P = ParamSpec("_P")
_T = TypeVar("_T")
_MISSING: Final = object()
VALUE, LOAD, FAILED, UNKEPT, BUSY, LATE, STALE = range(7)  # what begin() says: see core/python/cache.cpp
_POLL_S, _POLL_MOST_S = 0.001, 0.02  # between two looks of a coroutine at another one's load


class Opens(Protocol):
    """The pool of a cache; it can be pickled."""

    client: "Client"


_loading: contextvars.ContextVar[frozenset[tuple[str, str, Key]]] = contextvars.ContextVar(
    "_loading", default=frozenset()
)
"""The keys that this thread, or this task, is loading."""


class Cache(_core.CacheBase):
    """A cache of values by key, in the memory of a pool. :meth:`bufferpool.Pool.cache` makes one.

    All processes that open the name share it. Keys: str, bytes, int, and tuples of them. Values: bytes-like objects
    (they come back as a read-only memoryview), str, None, arrays (they come back read-only, with their type and shape),
    and every object that can be pickled. A view or array stays as it was while it is held, also if its key is overwritten, deleted or evicted.

    ``get``, ``put``, ``delete``, ``in``, ``len`` and ``clear`` may be called by any thread of any process. A value that
    cannot be kept, because it is larger than a quarter of the cache's room or everything is pinned, is not an error:
    ``put`` returns False, and :meth:`get_or_load` returns the value.
    """

    name: str
    _client: "Client"
    _pool: "Opens"

    def __new__(cls, pool: "Opens", name: str, settings: "Settings | None" = None) -> Self:
        """Opens the cache, or makes it. ``settings`` that are not None replace those that it has."""
        if not isinstance(name, str):
            raise TypeError(f"the name of a cache must be a string, not {type(name).__name__}")
        cache = super().__new__(cls, pool.client.seg, name)
        cache.name, cache._client, cache._pool = name, pool.client, pool
        if settings is not None:
            cache.configure(settings.ttl_ns, settings.jitter, settings.limit, settings.reserve)
        return cache

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._pool, self.name)

    def __repr__(self) -> str:
        return f"<Cache {self.name!r} of pool {self._client.name!r}>"

    def __bool__(self) -> bool:
        """A cache is true, even if it is empty."""
        return True

    # ---- loads -----------------------------------------------------------------------

    def get_or_load(
        self,
        key: Key,
        load: Callable[[Any], _T] | Callable[[], _T],
        *,
        timeout: float | None = None,
        ttl: float | None = None,
        stale_while_loading: bool = False,
    ) -> _T:
        """The value of ``key``. If there is none, ``load(key)`` computes it, once for all threads and processes.

        A ``load`` that takes no argument is called without the key.

        The others wait, at most ``timeout`` seconds, and get the same value. If the process that loads it dies, one
        of them loads it; if ``load`` raises, all who waited get the exception. (One that cannot be pickled comes as
        LoaderFailed.) ``ttl``: seconds until the value expires (default: the cache's). ``stale_while_loading``:
        while one process loads a new value in place of one that has expired, the others get the old one.

        The caller that loads gets what ``load`` returned, the others what the cache gives: a read-only memoryview for bytes, a
        read-only array for an array. Raises WaitTimeout, and WouldDeadlock if this thread is loading the key already.
        """
        value = self.get(key, _MISSING)
        if value is not _MISSING:
            return cast(_T, value)
        load_of = self._load_of(key)
        self._raise_if_loading(load_of)
        loads: list[Any] = []  # begin() puts our load into it: an exception of a signal's handler may come at any line
        try:
            outcome, what = self.begin(key, seconds_of(timeout), True, False, stale_while_loading, loads)
            if outcome in (VALUE, STALE):
                return cast(_T, what)
            self._raise_unless_load(outcome, what, key, timeout)
            _loading.set(_loading.get() | {load_of})
            began = time.perf_counter()
            loaded = _called(load, key)
            self._store(key, loads, loaded, ttl, began)
        except BaseException as error:
            self._end(key, loads, error)
            raise
        finally:
            _loading.set(_loading.get() - {load_of})
        return loaded

    async def aget_or_load(
        self,
        key: Key,
        load: Callable[[Any], Awaitable[_T]] | Callable[[], Awaitable[_T]],
        *,
        timeout: float | None = None,
        ttl: float | None = None,
        stale_while_loading: bool = False,
    ) -> _T:
        """The same as :meth:`get_or_load` for a coroutine function; the event loop runs on while it waits."""
        from asyncio import sleep  # not at the top: a command that only looks imports no asyncio

        value = self.get(key, _MISSING)
        if value is not _MISSING:
            return cast(_T, value)
        load_of = self._load_of(key)
        self._raise_if_loading(load_of)
        end, pause, waited = time.monotonic() + seconds_of(timeout), _POLL_S, False
        loads: list[Any] = []
        try:
            while True:
                outcome, what = self.begin(key, 0.0, False, waited, stale_while_loading, loads)
                if outcome in (VALUE, STALE):
                    return cast(_T, what)
                if outcome == BUSY and time.monotonic() >= end:
                    outcome = LATE
                if outcome != BUSY:
                    break
                waited = True
                await sleep(pause)
                pause = min(2 * pause, _POLL_MOST_S)
            self._raise_unless_load(outcome, what, key, timeout)
            _loading.set(_loading.get() | {load_of})
            began = time.perf_counter()
            loaded = await _called(load, key)
            self._store(key, loads, loaded, ttl, began)
        except BaseException as error:
            self._end(key, loads, error)
            raise
        finally:
            _loading.set(_loading.get() - {load_of})
        return loaded

    def _load_of(self, key: Key) -> tuple[str, str, Key]:
        return self._client.path, self.name, key

    def _raise_if_loading(self, load_of: tuple[str, str, Key]) -> None:
        """Raises WouldDeadlock if this thread or task is loading the key: it would wait for itself."""
        if load_of in _loading.get():
            raise WouldDeadlock(
                f"this thread or task is loading {shown(load_of[2])} of cache {self.name!r} already; load another key"
            )

    def _raise_unless_load(self, outcome: int, what: Any, key: Key, timeout: float | None) -> None:
        """Raises what another one's load has raised, or that it takes too long."""
        if outcome == FAILED:
            raise what
        if outcome == LATE:
            raise WaitTimeout(
                f"{shown(key)} of cache {self.name!r} was being loaded for longer than {timeout} seconds by another thread or process"
            )

    def _store(self, key: Key, loads: list[Any], value: Any, ttl: float | None, began: float) -> None:
        """Keeps a loaded value; without a load (there was no room for one) it is only counted."""
        microseconds = min(int((time.perf_counter() - began) * 1e6), 2**32 - 1)
        if loads:
            self.finish(key, loads[0], value, ttl, microseconds)

    def _end(self, key: Key, loads: list[Any], error: BaseException) -> None:
        """Ends a load without a value. Those that wait get the exception, if it is one of the loader's."""
        if not loads:
            return
        told = None
        try:
            told = _pickled(error, key) if isinstance(error, Exception) else None
        finally:
            self.fail(loads[0], key, told)

    # ---- functions ----------------------------------------------------------------------

    def memoize(
        self,
        *,
        version: int | str = 0,
        ttl: float | None = None,
        timeout: float | None = None,
        key: Callable[..., Key] | None = None,
    ) -> Callable[[Callable[_P, _T]], Callable[_P, _T]]:
        """A decorator: the function's results are kept, and computed once for all processes.

        The key is the function's name, ``version`` (change it with the code) and the arguments, which are numbers, str, bytes,
        None, bool or tuples of them; for others, ``key(*args, **kwargs)`` makes one. The function has the attribute
        ``cache_key``, which gives the key of a call. Functions of one name share their results, also if they are made
        several times with other variables around them: give each another ``version``. Raises ValueError for a lambda.
        """

        def decorate(function: Callable[_P, _T]) -> Callable[_P, _T]:
            name = f"{function.__module__}.{function.__qualname__}"
            if function.__name__ == "<lambda>":
                raise ValueError(
                    "a lambda has no name of its own, by which its results could be kept; define a function"
                )

            def cache_key(*args: Any, **kwargs: Any) -> Key:
                if key is not None:
                    return (name, version, key(*args, **kwargs))
                named = tuple((word, _key_part(value)) for word, value in sorted(kwargs.items()))
                return (name, version, tuple(map(_key_part, args)), named)

            @functools.wraps(function)
            def memoized(*args: _P.args, **kwargs: _P.kwargs) -> _T:
                return self.get_or_load(
                    cache_key(*args, **kwargs), lambda _: function(*args, **kwargs), ttl=ttl, timeout=timeout
                )

            memoized.cache_key = cache_key  # type: ignore[attr-defined]
            return memoized

        return decorate

    # ---- figures --------------------------------------------------------------------------

    def stats(self) -> CacheStats:
        """What the cache has, and what all its clients have counted."""
        return CacheStats(name=self.name, **self.counts())


@dataclass(frozen=True)
class Settings:
    """The settings of a cache; None leaves one as it is."""

    ttl_ns: int | None
    jitter: float
    limit: int | None
    reserve: int | None

    @classmethod
    def of(cls, ttl: float | None, jitter: float, limit: int | str | None, reserve: int | str | None) -> "Settings":
        """Checks the arguments of :meth:`bufferpool.Pool.cache`. Raises ValueError, TypeError."""
        seconds = None if ttl is None else seconds_of(ttl, "ttl")
        if seconds == 0:
            raise ValueError("ttl must be above 0 seconds")
        if not isinstance(jitter, int | float) or not 0 <= jitter < 1:
            raise ValueError(f"jitter must be 0 to below 1 (a part of the ttl), not {jitter!r}")
        most, least = (
            None if size is None else parse_size(size, name) for size, name in ((limit, "limit"), (reserve, "reserve"))
        )
        if most is not None and least is not None and least > most:
            raise ValueError(f"reserve ({least} bytes) must not be above limit ({most} bytes)")
        ns = None if seconds is None else int(min(seconds, 1e9) * 1e9)
        return cls(ns, float(jitter), most, least)


def _called(load: Callable[..., _T], key: Key) -> _T:
    """The result of a loader, which takes the key or nothing."""
    try:
        inspect.signature(load).bind(key)
    except TypeError:  # it takes no argument, or cannot be called
        return load()
    except ValueError:  # it is a function of C without a signature
        pass
    return load(key)


def _key_part(value: Any) -> Key:
    """An argument of a function as a part of a key. Only what is marked is a tuple, so no two arguments have the same part."""
    if value is None:
        return ("none",)
    if isinstance(value, bool | float):
        return (type(value).__name__, value.hex() if isinstance(value, float) else int(value))
    if isinstance(value, tuple):
        return ("tuple", *map(_key_part, value))
    if isinstance(value, str | bytes | int):
        return value
    raise TypeError(
        f"an argument of a memoized function is a number, str, bytes, None, bool or a tuple of them, not {type(value).__name__}; "
        "memoize(key=…) makes a key of others"
    )


def _pickled(error: Exception, key: Key) -> bytes | None:
    """The exception for those who waited; LoaderFailed, if it cannot be pickled."""
    with contextlib.suppress(Exception):  # what pickling other people's exceptions may raise
        told = pickle.dumps(error, 5)
        if isinstance(pickle.loads(told), Exception):
            return told
    text = type(error).__name__
    with contextlib.suppress(Exception):  # what other people's exceptions may raise when they are shown
        text = f"{text}: {error}"
    return pickle.dumps(LoaderFailed(f"the load of {shown(key)} raised {text}"), 5)
