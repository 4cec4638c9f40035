"""zarr (format 2 and 3, zarr-python 3): a store whose values all processes share, and chunks that are decoded once.

``CachedStore(store, pool.cache("zarr"))`` wraps any store. With
``zarr.config.set({"codec_pipeline.path": PIPELINE})`` the arrays of such stores keep their chunks decoded, and ``DecodedArray(array)`` reads
decoded chunks without a detour through zarr's event loop.

A value is kept under its key's *token*, a random number that the cache has for each key. A write replaces the token, so no value
that was read before the write, or during it, is found again. While a write is under way the key has no token, and readers read from
the store. If the writer is killed, the key remains without a token, and readers read from the store until the next write.
"""

import asyncio
import hashlib
import json
import os
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property
from typing import Any, Final, Self

import numpy as np

from bufferpool.integrations.extras import needs
from bufferpool.objects.cache import Cache, Key, ttl_of

with needs("'bufferpool[zarr]'"):
    from zarr import Array, AsyncArray
    from zarr.abc.store import OffsetByteRequest, RangeByteRequest, Store, SuffixByteRequest
    from zarr.codecs import ShardingCodec
    from zarr.core.chunk_grids import RegularChunkGrid
    from zarr.core.codec_pipeline import BatchedCodecPipeline, fill_value_or_default
    from zarr.core.common import concurrent_map
    from zarr.core.config import config as zarr_config
    from zarr.core.indexing import get_indexer
    from zarr.registry import register_pipeline
    from zarr.storage import FsspecStore, LocalStore, StorePath, WrapperStore

_ABSENT: Final = object()
_WRITING: Final = 0  # in place of a token
_here = threading.local()  # `reading`: this thread reads decoded chunks without an event loop
PIPELINE = "bufferpool.integrations.zarr.DecodedChunks"
"""The codec pipeline that keeps decoded chunks, for zarr's setting ``codec_pipeline.path``."""


def name_of(store: Store) -> str:
    """A name for a store that is the same in every process that opens it, and that no other store has."""
    if isinstance(store, LocalStore):
        return f"file://{store.root.resolve()}"
    if isinstance(store, FsspecStore) and not _is_in_memory(json.loads(store.fs.to_json())):
        options = hashlib.sha256(store.fs.to_json().encode()).hexdigest()[:16]
        return f"{type(store.fs).__module__}:{options}:{store.path}"
    raise ValueError(
        f"{store!r} has no name that is the same in all processes: pass name=, and another one for each store in the cache"
    )


def _is_in_memory(described: Any) -> bool:
    """Whether a file system of fsspec, as its JSON describes it, is one in the memory of this process, or lies over such a one. Its
    paths mean other files in another process."""
    if isinstance(described, dict):
        protocols = [described.get(key) for key in ("protocol", "target_protocol", "remote_protocol")]
        return "memory" in protocols or any(map(_is_in_memory, described.values()))
    return isinstance(described, list) and any(map(_is_in_memory, described))


def _check_store(store: Any) -> None:
    """Raises TypeError."""
    if not isinstance(store, Store):
        raise TypeError(
            f"store must be a store of zarr, such as LocalStore(path) or FsspecStore.from_url(url), not {type(store).__name__}"
        )


class CachedStore(WrapperStore[Store]):  # type: ignore[misc]  # zarr's types are not looked at
    """A store of zarr whose values are read once for all processes: ``CachedStore(store, pool.cache("zarr"))``.

    The cache keeps values, ranges of values, and the information that a key does not exist. All processes of the pool see changes
    at once if they are made through a CachedStore, in any process. Other changes are seen after ``ttl`` seconds (None: not before
    the value is evicted). ``name`` distinguishes the stores of one cache; stores of files and of fsspec have a name already.
    """

    def __init__(self, store: Store, cache: Cache, *, name: str | None = None, ttl: float | None = None) -> None:
        _check_store(store)
        if not isinstance(cache, Cache):
            raise TypeError(
                f'cache must be a cache of a pool, as pool.cache("zarr") returns, not {type(cache).__name__}'
            )
        if not isinstance(name, str | None):
            raise TypeError(f"name must be a string, not {type(name).__name__}")
        super().__init__(store)
        self.cache, self.ttl = cache, ttl_of(ttl)
        self.name = name_of(store) if name is None else name

    @classmethod
    async def open(
        cls, store: Store, cache: Cache, *, name: str | None = None, ttl: float | None = None, read_only: bool = False
    ) -> Self:  # fmt: skip
        """Wraps a store, and opens it."""
        _check_store(store)
        made = cls(store.with_read_only(True) if read_only else store, cache, name=name, ttl=ttl)
        return await made.opened()

    async def opened(self) -> Self:
        """The same store, opened if it was not."""
        await self._ensure_open()
        return self

    @property
    def source(self) -> Store:
        """The wrapped store."""
        return self._store

    def _with_store(self, store: Store) -> Self:
        return type(self)(store, self.cache, name=self.name, ttl=self.ttl)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, CachedStore):
            return False
        return (self.source, self.cache.name, self.name) == (other.source, other.cache.name, other.name)

    __hash__ = None  # type: ignore[assignment]  # as other stores

    def __str__(self) -> str:
        return f"bufferpool::{self._store}"

    def __repr__(self) -> str:
        return f"CachedStore({self._store!r}, {self.cache!r}, name={self.name!r})"

    # ---- reading ---------------------------------------------------------------------

    async def token(self, key: str) -> Any:
        """The token under which the key's values are kept now; 0 while the key is being written, and its values must not be kept."""
        token = self.cache.get((self.name, key), _ABSENT)
        if token is _ABSENT:
            _leave_to_loop()
            token = await self.cache.aget_or_load((self.name, key), _new_token, ttl=self.ttl)
        return token if token == _WRITING else bytes(token)

    async def get(self, key: str, prototype: Any, byte_range: Any = None) -> Any:
        """The value of a key, or a range of it; None if it does not exist."""
        await self._ensure_open()
        part = _part_of(byte_range)
        token = await self.token(key)
        if token == _WRITING or part is None:
            return await self.get_uncached(key, prototype, byte_range)
        if part:
            whole = self.cache.get((self.name, token, key), _ABSENT)
            if whole is not _ABSENT:
                return None if whole is None else prototype.buffer.from_bytes(_cut(whole, byte_range))

        async def load(_: Key) -> Any:
            found = await self.get_uncached(key, prototype, byte_range)
            return None if found is None else memoryview(found.as_numpy_array()).cast("B")

        value = await self.cache.aget_or_load((self.name, token, key, *part), load)
        return None if value is None else prototype.buffer.from_bytes(value)

    async def get_uncached(self, key: str, prototype: Any, byte_range: Any = None) -> Any:
        """The value that the wrapped store returns."""
        return await self._store.get(key, prototype, byte_range)

    async def get_partial_values(self, prototype: Any, key_ranges: Iterable[tuple[str, Any]]) -> list[Any]:
        """Several ranges at once."""
        return list(await asyncio.gather(*(self.get(key, prototype, part) for key, part in key_ranges)))

    async def _get_many(self, requests: Iterable[tuple[str, Any, Any]]) -> AsyncGenerator[tuple[str, Any], None]:
        asked = list(requests)
        for (key, *_), value in zip(asked, await asyncio.gather(*(self.get(*one) for one in asked)), strict=True):
            yield key, value

    async def getsize(self, key: str) -> int:
        """The size of a value, which the wrapped store knows."""
        return int(await self._store.getsize(key))

    async def getsize_prefix(self, prefix: str) -> int:
        """The size of all values whose keys begin with the prefix."""
        return int(await self._store.getsize_prefix(prefix))

    # ---- writing ---------------------------------------------------------------------

    @contextmanager
    def _writing(self, key: str) -> Iterator[None]:
        """The block writes the key's value. Meanwhile no value of the key is kept, and afterwards no older value is found."""
        self._replace_token(key, _WRITING)
        try:
            yield
        finally:
            self._replace_token(key, os.urandom(8))

    def _replace_token(self, key: str, token: Any) -> None:
        if not self.cache.put((self.name, key), token, ttl=self.ttl):  # there is no room for it
            self.cache.delete((self.name, key))

    async def set(self, key: str, value: Any) -> None:
        """Writes a value."""
        with self._writing(key):
            await self._store.set(key, value)

    async def set_if_not_exists(self, key: str, value: Any) -> None:
        """Writes a value, unless there is one."""
        with self._writing(key):
            await self._store.set_if_not_exists(key, value)

    async def _set_many(self, values: Iterable[tuple[str, Any]]) -> None:
        await asyncio.gather(*(self.set(key, value) for key, value in values))

    async def delete(self, key: str) -> None:
        """Deletes a key."""
        with self._writing(key):
            await self._store.delete(key)

    async def delete_dir(self, prefix: str) -> None:
        """Deletes all keys below the prefix."""
        folder = prefix if not prefix or prefix.endswith("/") else f"{prefix}/"
        with await self._writing_all(self._store.list_prefix(folder)):
            await self._store.delete_dir(prefix)

    async def clear(self) -> None:
        """Deletes all keys of the store. Values of other stores in the cache stay."""
        with await self._writing_all(self._store.list()):
            await self._store.clear()

    async def _writing_all(self, keys: AsyncIterator[str]) -> ExitStack:
        """The same as :meth:`_writing` for all these keys; returns the context manager."""
        await self._ensure_open()
        self._check_writable()
        with ExitStack() as stack:
            async for key in keys:
                stack.enter_context(self._writing(key))
            return stack.pop_all()


async def _new_token(_: Key) -> bytes:
    return os.urandom(8)


def _part_of(byte_range: Any) -> tuple[Key, ...] | None:
    """A range as a part of a key: () for the whole value, None for a kind of range that only the store knows."""
    match byte_range:
        case None:
            return ()
        case RangeByteRequest():
            return ("range", int(byte_range.start), int(byte_range.end))
        case OffsetByteRequest():
            return ("offset", int(byte_range.offset))
        case SuffixByteRequest():
            return ("suffix", int(byte_range.suffix))
    return None


def _cut(whole: memoryview, byte_range: Any) -> memoryview:
    """The range of a whole value."""
    match byte_range:
        case RangeByteRequest():
            return whole[byte_range.start : byte_range.end]
        case OffsetByteRequest():
            return whole[byte_range.offset :]
    return whole[max(0, len(whole) - byte_range.suffix) :]


class _ShardBytes:
    """A shard from which inner chunks are decoded. The bytes of its index are kept; those of its chunks are not, because the chunks
    are kept decoded."""

    def __init__(self, getter: StorePath) -> None:
        self._getter = getter

    async def get(self, prototype: Any, byte_range: Any = None) -> Any:
        store, path = self._getter.store, self._getter.path
        is_index = isinstance(byte_range, SuffixByteRequest) or getattr(byte_range, "start", None) == 0
        return await (store.get if is_index else store.get_uncached)(path, prototype, byte_range)


class DecodedChunks(BatchedCodecPipeline):  # type: ignore[misc]
    """A codec pipeline that keeps the decoded chunks of arrays in a :class:`CachedStore`, and leaves others as they are.

    A chunk is read and decoded once for all processes, and its compressed bytes are not kept beside it. Of an array with shards,
    the same is true of each inner chunk. Arrays of Python objects, and those with codecs around their shards, are read in zarr's
    usual way, and the store keeps the bytes that they read.
    """

    @cached_property
    def _codecs(self) -> bytes:
        """Distinguishes chunks that different codecs decode from the same bytes."""
        return hashlib.sha256(repr(tuple(self)).encode()).digest()[:8]

    async def read(self, batch_info: Iterable[tuple[Any, ...]], out: Any, drop_axes: tuple[int, ...] = ()) -> None:
        """Copies the selected parts of chunks into ``out``. Parts of chunks in the cache are copied at once, the others by zarr.

        zarr makes a task for each chunk, which takes as long as to copy a small chunk.
        """
        batch = list(batch_info)
        if not isinstance(to := out.as_ndarray_like(), np.ndarray):
            _leave_to_loop()
            await super().read(batch, out, drop_axes)
            return
        if self._has_shards:
            shards = [one for one in batch if _is_kept(*one[:2])]
            batch = [one for one in batch if not _is_kept(*one[:2])]
            for one in shards:
                await self._read_shard(one, to, drop_axes)
        elif not self.supports_partial_decode:
            batch = [one for one in batch if not self._copied(one, to, drop_axes)]
        if batch:
            _leave_to_loop()
            await super().read(batch, out, drop_axes)

    def _copied(self, one: tuple[Any, ...], to: np.ndarray[Any, Any], drop_axes: tuple[int, ...]) -> bool:
        """Copies a part of a decoded chunk. Returns False if the cache does not have the chunk."""
        getter, spec, selection, out_selection, *_ = one
        if not _is_kept(getter, spec):
            return False
        token: Any = getter.store.cache.get((getter.store.name, getter.path), _WRITING)
        chunk: Any = (
            _ABSENT if token == _WRITING else getter.store.cache.get(self._key(getter, bytes(token), spec), _ABSENT)
        )
        if chunk is _ABSENT:
            return False
        if chunk is None:
            to[out_selection] = fill_value_or_default(spec)
        else:
            part = chunk[selection]
            to[out_selection] = part.squeeze(axis=drop_axes) if drop_axes else part
        return True

    @cached_property
    def _has_shards(self) -> bool:
        return self.supports_partial_decode and isinstance(self.array_bytes_codec, ShardingCodec)

    async def _read_shard(self, one: tuple[Any, ...], to: np.ndarray[Any, Any], drop_axes: tuple[int, ...]) -> None:
        """Copies the selected parts of the inner chunks of a shard."""
        getter, spec, selection, out_selection, *_ = one
        store, inner = getter.store, self.array_bytes_codec.chunk_shape
        indexer = get_indexer(selection, shape=spec.shape, chunk_grid=RegularChunkGrid(chunk_shape=inner))
        parts = [(tuple(map(int, coords)), *places) for coords, *places in indexer]
        await store.opened()
        token = await store.token(getter.path)
        key = None if token == _WRITING else self._key(getter, token, spec)
        found: list[Any] = [
            _ABSENT if key is None else store.cache.get((*key, *coords), _ABSENT) for coords, *_ in parts
        ]
        absent = [n for n, chunk in enumerate(found) if chunk is _ABSENT]
        if absent:
            _leave_to_loop()
            wanted = [(getter, spec, key, parts[n][0]) for n in absent]
            loaded = await concurrent_map(wanted, self._inner_chunk, zarr_config.get("async.concurrency"))
            for n, chunk in zip(absent, loaded, strict=True):
                found[n] = chunk
        axes = out_selection if isinstance(out_selection, tuple) else (out_selection,)
        # By slices alone it is a view, and the values are copied once; by nothing it is a number.
        place_of_all: Any = to[out_selection] if all(isinstance(axis, slice) for axis in axes) else None
        plain = not drop_axes and isinstance(place_of_all, np.ndarray) and place_of_all.shape == indexer.shape
        target: Any = place_of_all if plain else np.empty(indexer.shape, to.dtype)
        for chunk, (_, chunk_selection, place, _) in zip(found, parts, strict=True):
            target[place] = fill_value_or_default(spec) if chunk is None else chunk[chunk_selection]
        if not plain:
            target = target.reshape(getattr(indexer, "sel_shape", target.shape))
            to[out_selection] = target.squeeze(axis=drop_axes) if drop_axes else target

    async def _inner_chunk(
        self, getter: StorePath, spec: Any, key: tuple[Key, ...] | None, coords: tuple[int, ...]
    ) -> Any:
        """An inner chunk of a shard, whole; None if the shard does not exist."""
        inner = self.array_bytes_codec.chunk_shape
        whole = tuple(slice(n * size, (n + 1) * size) for n, size in zip(coords, inner, strict=True))

        async def load(_: Key) -> Any:
            (chunk,) = await self.array_bytes_codec.decode_partial([(_ShardBytes(getter), whole, spec)])
            return None if chunk is None else np.asarray(chunk.as_numpy_array(), order="C")

        return await (load(()) if key is None else getter.store.cache.aget_or_load((*key, *coords), load))

    async def read_batch(
        self, batch_info: Iterable[tuple[Any, ...]], out: Any, drop_axes: tuple[int, ...] = ()
    ) -> None:
        """Copies the selected parts of chunks into ``out``."""
        batch = list(batch_info)
        if not batch or self.supports_partial_decode or not all(_is_kept(getter, spec) for getter, spec, *_ in batch):
            await super().read_batch(batch, out, drop_axes)
            return
        found = [await self._kept(getter, spec) for getter, spec, *_ in batch]
        absent = [n for n, chunk in enumerate(found) if chunk is _ABSENT]
        for n, chunk in zip(absent, await asyncio.gather(*(self._chunk(*batch[n][:2]) for n in absent)), strict=True):
            found[n] = chunk
        for chunk, (_, spec, selection, out_selection, *_) in zip(found, batch, strict=True):
            if chunk is None:
                out[out_selection] = fill_value_or_default(spec)
                continue
            part = spec.prototype.nd_buffer.from_numpy_array(chunk)[selection]
            out[out_selection] = part.squeeze(axis=drop_axes) if drop_axes else part

    def _key(self, getter: StorePath, token: bytes, spec: Any) -> tuple[Key, ...]:
        return (getter.store.name, token, getter.path, self._codecs, spec.dtype.to_native_dtype().str, spec.shape)

    async def _kept(self, getter: StorePath, spec: Any) -> Any:
        """The decoded chunk that the cache has; None if the chunk does not exist; _ABSENT if the cache does not know."""
        token = await getter.store.token(getter.path)
        return _ABSENT if token == _WRITING else getter.store.cache.get(self._key(getter, token, spec), _ABSENT)

    async def _chunk(self, getter: StorePath, spec: Any) -> Any:
        """The decoded chunk, or None if it does not exist. It is read and decoded here, unless another process does so now."""
        store = getter.store

        async def load(_: Key) -> Any:
            found = await store.get_uncached(getter.path, spec.prototype)
            if found is None:
                return None
            (chunk,) = await self.decode_batch([(found, spec)])
            return np.asarray(chunk.as_numpy_array(), order="C")

        await store.opened()
        token = await store.token(getter.path)
        if token == _WRITING:
            return await load(())
        return await store.cache.aget_or_load(self._key(getter, token, spec), load)


def _is_kept(getter: Any, spec: Any) -> bool:
    """Whether the decoded chunk can be kept."""
    shared = isinstance(getter, StorePath) and isinstance(getter.store, CachedStore)
    return shared and not spec.dtype.to_native_dtype().hasobject


# ---- reading without the event loop ----------------------------------------------------------


class _NotKept(Exception):
    """Something that a read needs is not in the cache."""


def _leave_to_loop() -> None:
    """Ends a read without an event loop, which cannot wait for what follows."""
    if getattr(_here, "reading", False):
        raise _NotKept


def _read_here(read: Coroutine[Any, Any, Any]) -> Any:
    """The result of a read whose chunks are all decoded in the cache; _ABSENT if they are not. It does not wait for anything."""
    _here.reading = True
    try:
        read.send(None)
    except StopIteration as done:
        return done.value
    except _NotKept:
        return _ABSENT
    finally:
        _here.reading = False
        read.close()
    return _ABSENT


class DecodedArray(Array):  # type: ignore[misc]
    """An array of zarr whose decoded chunks are copied by the thread that reads: ``DecodedArray(zarr.open_array(CachedStore(…)))``.

    For each selection zarr hands the work to the thread of its event loop, and waits for it. That takes longer than to copy a window out
    of chunks that are decoded in the cache. Here a selection by numbers, slices and, for each axis, arrays is read in the calling thread if all
    of its chunks are in the cache, and in zarr's way otherwise. Everything else is as in the array that is given.

    Raises ValueError if the array is not read with :class:`DecodedChunks`, and TypeError if it is no array of zarr.
    """

    def __init__(self, array: Array | AsyncArray[Any]) -> None:
        if not isinstance(array, Array | AsyncArray):
            raise TypeError(
                f"array must be an array of zarr, such as zarr.open_array(CachedStore(...)), not {type(array).__name__}"
            )
        found = (
            array.async_array if isinstance(array, Array) else array
        )  # zarr's methods make a new array of an AsyncArray
        if not isinstance(found.codec_pipeline, DecodedChunks):
            raise ValueError(
                "the array keeps no decoded chunks: set zarr.config.set({'codec_pipeline.path': PIPELINE}) before it is opened"
            )
        super().__init__(found)

    def get_basic_selection(self, selection: Any = ..., *, out: Any = None, **options: Any) -> Any:
        """What zarr.Array.get_basic_selection returns."""
        if out is None and not any(options.values()):
            found = _read_here(self.async_array.getitem(selection))
            if found is not _ABSENT:
                return found
        return super().get_basic_selection(selection, out=out, **options)

    def get_orthogonal_selection(self, selection: Any, **options: Any) -> Any:
        """What zarr.Array.get_orthogonal_selection returns."""
        if options.get("out") is None:
            found = _read_here(self.async_array.get_orthogonal_selection(selection, **options))
            if found is not _ABSENT:
                return found
        return super().get_orthogonal_selection(selection, **options)


register_pipeline(DecodedChunks)
