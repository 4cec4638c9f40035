"""A cache of values by key that every process of a pool shares. Its tables and their protocol are in the core
(``core/protocol/object*.h``). This module has the parts that call the user's code: loaders, pickles and coroutines."""

import contextlib
import contextvars
import functools
import inspect
import os
import pickle
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final, Never, ParamSpec, Protocol, Self, TypeVar, cast

import numpy as np

from bufferpool import _core
from bufferpool.errors import CacheRemoved, LoaderFailed, PoolClosed, WaitTimeout, WouldDeadlock
from bufferpool.figures.stats import CacheStats
from bufferpool.printable import shown
from bufferpool.units import bad_number, flag_of, is_number, is_utf8, limits_of, refuse_reserve_above, seconds_of

if TYPE_CHECKING:
    from bufferpool.client.client import Client

Key = str | bytes | int | tuple["Key", ...]
"""What a key may be. Equal keys are equal in every process; an int is not equal to the str of its digits."""

_P = ParamSpec("_P")
_T = TypeVar("_T")
_MISSING: Final = object()
VALUE, LOAD, FAILED, UNKEPT, BUSY, LATE, STALE = range(7)  # the outcomes of begin(): see core/python/cache.cpp
LOCKED_S: Final = 30.0
"""Seconds for which opening and removing a cache wait for a client that has a lock of the pool."""
END_S, _ASYNC_END_S = 1.0, 0.1
"""Seconds for which the end of a load waits for each lock of the pool. Without the lock only its own caller has the value."""
_POLL_S, _POLL_MOST_S = 0.001, 0.02  # how long a coroutine waits before it asks for another caller's load again


class Opens(Protocol):
    """The pool of a cache; it can be pickled."""

    client: "Client"


_BYTES_MOST = 1 << 62
_PICKLED_MOST, _TEXT_MOST = 16 << 10, 1000  # of an exception, for the callers that wait

LoadOf = tuple[int, str, str, Key]
"""Process, path of the pool, cache and key of a load. A forked child does not continue its parent's loads."""


class Cache(_core.CacheBase):
    """A cache of values by key, in the memory of a pool. :meth:`bufferpool.Pool.cache` makes one.

    All processes that open the name share it. Keys: str, bytes, int, and tuples of them. Values: bytes-like objects
    (they come back as a read-only memoryview), str, None, arrays (they come back read-only, with their type and shape),
    and every object that can be pickled. A view or an array does not change while the caller has it, even if its key is
    overwritten, deleted or evicted.

    ``get``, ``put``, ``touch``, ``delete``, ``in``, ``len`` and ``clear`` may be called by any thread of any process. A value that
    cannot be kept, because it is larger than a quarter of what the cache may take or everything is pinned, is not an error:
    ``put`` returns False, and :meth:`get_or_load` returns the value.
    """

    name: str
    _client: "Client"
    _pool: "Opens"

    # Class attributes, because they end a suspended aget_or_load, and the interpreter may have removed the names of this
    # module by then.
    _loading: ClassVar[contextvars.ContextVar[frozenset[LoadOf]]] = contextvars.ContextVar(
        "_loading", default=frozenset()
    )
    """The keys that this thread, or this task, is loading."""
    _in_threads: ClassVar[set[tuple[int, LoadOf]]] = set()
    """The loads that are under way here, with the thread of each, which may run other tasks or greenlets meanwhile."""
    _suppress_gone: ClassVar = contextlib.suppress(PoolClosed, CacheRemoved)

    def __new__(cls, pool: "Opens", name: str, settings: "Settings | None" = None) -> Self:
        """Opens the cache, or makes it. ``settings`` that are not None replace those that it has."""
        if not isinstance(name, str):
            raise TypeError(f"the name of a cache must be a string, not {type(name).__name__}")
        if "\0" in name or not is_utf8(name):
            raise ValueError(f"the name of a cache must be text that UTF-8 can encode, without NUL, not {name!r}")
        cache = super().__new__(cls, pool.client.seg, name, LOCKED_S)
        cache.name, cache._client, cache._pool = name, pool.client, pool
        if settings is not None:
            cache.configure(settings.ttl_ns, settings.jitter_part, settings.limit, settings.reserve)
        return cache

    def __reduce__(self) -> tuple[Any, ...]:
        return unpickled, (type(self), self._pool, self.name, self.number)

    def _attach(self) -> None:
        """Called by the core when an unpickled cache is first used. It is not made again if it was removed (CacheRemoved)."""
        self.bind(self._client.seg)

    def __repr__(self) -> str:
        return f"<Cache {self.name!r} of pool {self._client.name!r}>"

    def __bool__(self) -> bool:
        """A cache is true, even if it is empty."""
        return True

    # Never: a type checker finds every use.
    def __getitem__(self, key: Never) -> Never:
        raise TypeError(
            "cache[key] would have to raise KeyError whenever a value was evicted: use cache.get(key), which gives None, or "
            "cache.get_or_load(key, load)"
        )

    def __setitem__(self, key: Never, value: Never) -> None:
        raise TypeError("use cache.put(key, value), which returns whether the value is kept")

    def __delitem__(self, key: Never) -> None:
        raise TypeError("use cache.delete(key), which returns whether there was a value")

    def update(self, key: Key, change: Callable[[Any], _T]) -> _T | None:
        """Replaces the value of ``key`` by ``change(value)``, which is atomic among all threads and processes; returns the new value.

        ``change`` is called again if another caller has put, deleted or changed the value meanwhile, so it should do
        nothing else. The new value expires when the old one would have. Without a value ``change`` is not called, and the
        result is None: ``get_or_load(key, lambda: 0)`` makes one. A new value that cannot be kept is returned, and the key
        has no value then. ``change`` may raise: the value remains, and the exception is the caller's.
        """
        if not callable(change):
            raise TypeError(
                f"change must be a function of the present value, not {type(change).__name__}; put(key, value) replaces a value"
            )
        return cast("_T | None", _as_given(self.change(key, change)))

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

        The other callers wait, at most ``timeout`` seconds, and get the same value. If the process that loads it dies,
        one of them loads it. If ``load`` raises, all callers that waited get the exception. (If the exception cannot be
        pickled, or not be made again in the process that waited, that process gets LoaderFailed with its text.) If the
        value cannot be kept, all callers that waited load it for themselves, at the same time.

        ``ttl``: seconds until the value expires (default: the cache's). ``stale_while_loading``: if the value has expired
        and another call is loading the new one, return the expired value.

        All callers get the value in the same form, also the one that loads it: a read-only memoryview for bytes
        (``bytes(value)`` copies it), a read-only array for an array. Raises WaitTimeout, and WouldDeadlock if this thread
        is loading the key already, in this or another task or greenlet.
        """
        seconds = self._checked(load, timeout, ttl, stale_while_loading)
        value = self.look(key, _MISSING, seconds)
        if value is not _MISSING:
            return cast(_T, value)
        load_of = self._load_of(key)
        self._raise_if_loading(load_of)
        loads: list[Any] = []  # begin() adds our load here, so that no exception of a signal's handler loses it
        in_thread = threading.get_native_id(), load_of
        try:
            here = in_thread in self._in_threads  # by another task or greenlet, which cannot end the load while we wait
            outcome, what = self.begin(key, 0.0 if here else seconds, True, False, stale_while_loading, loads)
            if outcome in (VALUE, STALE):
                return cast(_T, what)
            if here and outcome == LATE:
                self._raise_own_load(load_of)
            self._raise_unless_load(outcome, what, key, timeout)
            self._loading.set(self._loading.get() | {load_of})
            self._in_threads.add(in_thread)
            began = time.perf_counter()
            loaded = _require_value(_called(load, key))
            self._store(key, loads, loaded, ttl, began, min(seconds, END_S))
        except BaseException as error:
            self._end(key, loads, error, stale_while_loading, min(seconds, END_S))
            raise
        finally:
            self._loading.set(self._loading.get() - {load_of})
            self._in_threads.discard(in_thread)
        return _as_given(loaded)

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

        seconds = self._checked(load, timeout, ttl, stale_while_loading)
        value = self.look(key, _MISSING, seconds)
        if value is not _MISSING:
            return cast(_T, value)
        load_of = self._load_of(key)
        self._raise_if_loading(load_of)
        end, pause, waited = time.monotonic() + seconds, _POLL_S, False
        loads: list[Any] = []
        in_thread = threading.get_native_id(), load_of
        end_s = min(seconds, _ASYNC_END_S)  # here: a block that ends with the interpreter finds no names of the module
        try:
            while True:
                late = time.monotonic() >= end
                outcome, what = self.begin(key, 0.0 if late else _POLL_S, late, waited, stale_while_loading, loads)
                if outcome in (VALUE, STALE):
                    return cast(_T, what)
                if outcome != BUSY:
                    break
                waited = True
                await sleep(pause)
                pause = min(2 * pause, _POLL_MOST_S)
            self._raise_unless_load(outcome, what, key, timeout)
            self._loading.set(self._loading.get() | {load_of})
            self._in_threads.add(in_thread)
            began = time.perf_counter()
            loaded = await _require_awaitable(_called(load, key))
            self._store(key, loads, loaded, ttl, began, end_s)
        except BaseException as error:
            self._end(key, loads, error, stale_while_loading, end_s)
            raise
        finally:
            self._loading.set(self._loading.get() - {load_of})
            self._in_threads.discard(in_thread)
        return _as_given(loaded)

    @staticmethod
    def _checked(load: object, timeout: float | None, ttl: float | None, stale: bool) -> float:
        """The seconds that a caller waits. Raises TypeError, ValueError, before a loader has run in vain."""
        if not callable(load):
            raise TypeError(
                f"load must be a function that computes the value, not {type(load).__name__}; put(key, value) keeps a value "
                "that is there already"
            )
        flag_of(stale, "stale_while_loading")
        ttl_of(ttl)
        return seconds_of(timeout)

    def _load_of(self, key: Key) -> LoadOf:
        return os.getpid(), self._client.path, self.name, key

    def _raise_if_loading(self, load_of: LoadOf) -> None:
        """Raises WouldDeadlock if this thread or task is loading the key: it would wait for itself."""
        if load_of in self._loading.get():
            raise WouldDeadlock(
                f"this thread or task is loading {shown(load_of[3])} of cache {self.name!r} already; load another key"
            )

    def _raise_own_load(self, load_of: LoadOf) -> Never:
        raise WouldDeadlock(
            f"another task or greenlet of this thread is loading {shown(load_of[3])} of cache {self.name!r}, and cannot end that while "
            "this one waits: await aget_or_load(), or load the key in another thread"
        )

    def _raise_unless_load(self, outcome: int, what: Any, key: Key, timeout: float | None) -> None:
        """Raises the exception of another caller's load, or WaitTimeout if that load takes too long."""
        if outcome == FAILED:
            raise _told_error(what, key)
        if outcome == LATE:
            # Not at the top: what records trouble needs the events, and the pool's figures need this module.
            from bufferpool.client.trouble import tell_late

            tell_late(self._client, lambda one: (one.kind, one.cache) == ("cache_load", self.name))
            raise WaitTimeout(
                f"{shown(key)} of cache {self.name!r} was being loaded for longer than {timeout} seconds by another thread or "
                "process: pool.operations() names it"
            )

    def _store(self, key: Key, loads: list[Any], value: Any, ttl: float | None, began: float, wait_s: float) -> None:
        """Keeps a loaded value. It is not kept if ``loads`` is empty, because there was no room for a load, if the loader has
        closed the pool or removed the cache, or if a lock of the pool is not free within ``wait_s`` seconds."""
        microseconds = min(int((time.perf_counter() - began) * 1e6), 2**32 - 1)
        if loads:
            with self._suppress_gone:
                self.finish(key, loads[0], value, ttl, microseconds, wait_s)

    def _end(self, key: Key, loads: list[Any], error: BaseException, stale: bool, wait_s: float) -> None:
        """Ends a load without a value. The callers that wait get the exception, if the loader has raised it, and the locks of
        the pool are free within ``wait_s`` seconds."""
        if not loads:
            return
        ended = False
        with self._suppress_gone:  # the load has ended with it
            try:
                if isinstance(error, Exception):
                    for most in (_PICKLED_MOST, 0):  # there may be no room for the whole of it
                        ended = ended or self.fail(loads[0], key, _told(error, most), stale, wait_s)
            finally:
                if not ended:
                    self.fail(loads[0], key, None, stale, wait_s)

    # ---- functions ----------------------------------------------------------------------

    def memoize(
        self,
        *function: Never,
        version: int | str = 0,
        ttl: float | None = None,
        timeout: float | None = None,
        key: Callable[..., Key] | None = None,
    ) -> Callable[[Callable[_P, _T]], Callable[_P, _T]]:
        """A decorator: the function's results are kept, and computed once for all processes.

        A coroutine function becomes a coroutine function again. The key of a call consists of the function's name,
        ``version`` (change it together with the code) and the arguments. These are numbers, str, bytes, None, bool,
        classes, or tuples of them; for other arguments, pass a function ``key(*args, **kwargs)`` that returns the key.
        The attribute ``cache_key`` of the decorated function returns the key of a call.

        Functions of one name share their results, also functions that one ``def`` makes several times with other variables
        around it: give each another ``version``. Results have the form that :meth:`get_or_load` returns: bytes are a
        read-only memoryview, and arrays are read-only.

        Raises ValueError for a lambda, and TypeError for a callable without a name or a function that is a generator.
        """

        if function:
            raise TypeError("memoize takes its options by name, and is called: write @cache.memoize()")

        def decorate(function: Callable[_P, _T]) -> Callable[_P, _T]:
            if not hasattr(function, "__qualname__"):
                raise TypeError(
                    f"memoize() takes a function, which has a name, not {type(function).__name__}; define one with def"
                )
            if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
                raise TypeError(f"{function.__qualname__} gives a generator, which cannot be kept; return a list")
            name = f"{function.__module__}.{function.__qualname__}"
            if function.__name__ == "<lambda>":
                raise ValueError(
                    "a lambda has no name of its own, by which its results could be kept; define a function"
                )

            def cache_key(*args: Any, **kwargs: Any) -> Key:
                if key is not None:
                    return (name, version, key(*args, **kwargs))
                named = tuple((word, plain_key(value)) for word, value in sorted(kwargs.items()))
                return (name, version, tuple(map(plain_key, args)), named)

            if inspect.iscoroutinefunction(function):

                @functools.wraps(function)
                async def awaited(*args: _P.args, **kwargs: _P.kwargs) -> Any:
                    return await self.aget_or_load(
                        cache_key(*args, **kwargs), lambda _: function(*args, **kwargs), ttl=ttl, timeout=timeout
                    )

                awaited.cache_key = cache_key  # type: ignore[attr-defined]
                return cast(Callable[_P, _T], awaited)

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
        """The figures of the cache: its values and memory, and the counters of all clients."""
        return CacheStats(name=self.name, **self.counts())


@dataclass(frozen=True)
class Settings:
    """The settings of a cache; None leaves one as it is."""

    ttl_ns: int | None
    jitter_part: int | None  # in 2^-32
    limit: int | None
    reserve: int | None

    @classmethod
    def of(
        cls, ttl: float | None, jitter: float | None, limit: int | str | None, reserve: int | str | None
    ) -> "Settings":
        """Checks the arguments of :meth:`bufferpool.Pool.cache`. Raises ValueError, TypeError."""
        seconds = ttl_of(ttl)
        if jitter is not None and (not is_number(jitter) or not 0 <= jitter < 1):
            raise bad_number(jitter, f"jitter must be 0 to below 1 (a part of the ttl), not {jitter!r}")
        most, least = limits_of(limit, reserve)
        for bytes_, name in ((most, "limit"), (least, "reserve")):
            if bytes_ is not None and bytes_ > _BYTES_MOST:
                raise ValueError(f"{name} must be at most {_BYTES_MOST} bytes (4 EiB), not {bytes_}")
        if most == 0:
            raise ValueError(
                "limit must be above 0 bytes; leave it out for the part of the budget that all caches share"
            )
        refuse_reserve_above(most, least)
        ns = None if seconds is None else max(int(min(seconds, 1e9) * 1e9), 1)  # 0: never
        return cls(ns, None if jitter is None else int(jitter * 2**32), most, least)


def ttl_of(ttl: float | None) -> float | None:
    """The seconds after which a value expires; None: the caller gives none. Raises TypeError, ValueError."""
    seconds = None if ttl is None else seconds_of(ttl, "ttl")
    if seconds == 0:
        raise ValueError("ttl must be above 0 seconds")
    return seconds


def _called(load: Callable[..., _T], key: Key) -> _T:
    """The result of a loader, which takes the key or nothing."""
    try:
        inspect.signature(load).bind(key)
    except TypeError:  # it takes no argument, or cannot be called
        return load()
    except ValueError:  # it is a function of C without a signature
        pass
    return load(key)


def plain_key(value: Any) -> Key:
    """Turns a key of a dict, or an argument of a function, into a key of a cache. Raises TypeError for other types than
    those of :data:`Key`, None, bool, float, integers of numpy, classes, subclasses of these, and tuples of them.

    Values of different types have different keys, even if Python says that they are equal: 1, 1.0 and True. Tuples and
    values of the additional types become tuples with a mark in front, so no two values have the same key.
    """
    if type(value) in (str, bytes, int):
        return cast(Key, value)
    if isinstance(value, tuple):
        return ("(", *map(plain_key, value))
    if value is None:
        return ("=", "None")
    if isinstance(value, np.integer):
        return int(value)
    if isinstance(value, type):
        return ("=", "type", f"{value.__module__}.{value.__qualname__}")
    name = f"{type(value).__module__}.{type(value).__qualname__}"
    if isinstance(value, float):
        return ("=", name, value.hex())
    bases: tuple[Any, ...] = (str, bytes, int)
    for base in bases:
        if isinstance(value, base):
            return ("=", name, base.__getnewargs__(value)[0])
    raise TypeError(
        f"a key is made of numbers, str, bytes, None, bool, classes and tuples of them, not of {type(value).__name__}; "
        "make one of it: memoize(key=…) takes a function for that"
    )


def _require_value(loaded: _T) -> _T:
    """The value that a loader has returned. Raises TypeError if it is a coroutine."""
    if inspect.iscoroutine(loaded):
        loaded.close()
        raise TypeError("the loader is a coroutine function; use aget_or_load()")
    return loaded


def _as_given(loaded: _T) -> _T:
    """A loaded value in the form that get() returns, so that the first caller and later ones get the same types."""
    if type(loaded) is np.ndarray:
        view = cast(np.ndarray[Any, Any], loaded).view()
        view.flags.writeable = False
        return cast(_T, view)
    if type(loaded) in (bytes, bytearray):
        return cast(_T, memoryview(cast(bytes, loaded)).toreadonly())
    if isinstance(loaded, memoryview):
        flat = loaded.cast("B") if loaded.c_contiguous and loaded.nbytes else memoryview(loaded.tobytes())
        return cast(_T, flat.toreadonly())
    return loaded


def _require_awaitable(loaded: Awaitable[_T]) -> Awaitable[_T]:
    if not inspect.isawaitable(loaded):
        raise TypeError(
            f"the loader returned {type(loaded).__name__}, which cannot be awaited; use get_or_load(), or a coroutine function"
        )
    return loaded


def _told(error: Exception, most: int) -> bytes:
    """An exception for the callers that waited: its text, and the exception if it can be pickled in ``most`` bytes."""
    whole = None
    with contextlib.suppress(Exception):  # pickling may run the code of the exception's class
        pickled = pickle.dumps(error, 5) if most else b""
        if 0 < len(pickled) <= most and isinstance(pickle.loads(pickled), Exception):
            whole = pickled
    text = type(error).__name__
    with contextlib.suppress(Exception):  # str() may run the code of the exception's class
        text = f"{text}: {error}"
    return pickle.dumps((text[: _TEXT_MOST if most else _TEXT_MOST // 10], whole), 5)


def _told_error(told: bytes, key: Key) -> Exception:
    """The exception that :func:`_told` has pickled, or LoaderFailed if it cannot be made again in this process."""
    text, whole = pickle.loads(told)
    if whole is not None:
        with contextlib.suppress(Exception):  # its class may be in the loader's __main__ only
            error = pickle.loads(whole)
            if isinstance(error, Exception):
                return error
    return LoaderFailed(f"the load of {shown(key)} raised {text}")


def unpickled(kind: type[Cache], pool: "Opens", name: str, number: int) -> Cache:
    """An unpickled cache. It attaches when it is first used: reading a pickle must not fail because its pool is gone."""
    cache = _core.CacheBase.__new__(kind, number)
    cache.name, cache._client, cache._pool = name, pool.client, pool
    return cache
