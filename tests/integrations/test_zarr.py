"""zarr: its own tests of stores, coherence between processes, and chunks that are decoded once."""

import asyncio
import inspect
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import WAIT, Pools

zarr = pytest.importorskip("zarr", minversion="3.0")

from zarr.abc.store import OffsetByteRequest, RangeByteRequest, SuffixByteRequest  # noqa: E402
from zarr.core.buffer import default_buffer_prototype  # noqa: E402
from zarr.core.buffer.cpu import Buffer  # noqa: E402
from zarr.storage import FsspecStore, LocalStore, MemoryStore, WrapperStore  # noqa: E402
from zarr.testing.store import StoreTests  # noqa: E402

from bufferpool.integrations.zarr import PIPELINE, CachedStore, DecodedArray, DecodedChunks  # noqa: E402

PROTOTYPE = default_buffer_prototype()


class Counting(WrapperStore):  # type: ignore[misc]
    """Counts what is read from the store that it wraps, in a file, so that processes can be added up."""

    def __init__(self, store: Any, log: str) -> None:
        super().__init__(store)
        self.log, self.root = log, store.root

    def _with_store(self, store: Any) -> "Counting":
        return Counting(store, self.log)

    async def get(self, key: str, prototype: Any, byte_range: Any = None) -> Any:
        with open(self.log, "a") as log:
            log.write(f"{key}\n")
        return await super().get(key, prototype, byte_range)


def reads(log: Path, part: str = "c/") -> list[str]:
    return [line for line in log.read_text().splitlines() if part in line] if log.exists() else []


# ---- zarr's own tests ---------------------------------------------------------------------


class TestStore(StoreTests):  # type: ignore[misc]
    """The tests that zarr has for stores. They read and write past the wrapper where they prepare and compare."""

    store_cls = CachedStore
    buffer_cls = Buffer

    @pytest.fixture
    def store_kwargs(self, pools: Pools) -> dict[str, Any]:
        return {"store": MemoryStore(), "cache": pools.create("8MiB").cache("zarr"), "name": "tests"}

    @pytest.fixture
    def store(self, open_kwargs: dict[str, Any]) -> CachedStore:
        return asyncio.run(CachedStore.open(**open_kwargs))

    @pytest.fixture
    def store_not_open(self, store_kwargs: dict[str, Any]) -> CachedStore:
        return CachedStore(**store_kwargs)

    async def set(self, store: CachedStore, key: str, value: Buffer) -> None:
        await store._store.set(key, value)

    async def get(self, store: CachedStore, key: str) -> Buffer:
        return await store._store.get(key, PROTOTYPE)

    def test_store_repr(self, store: CachedStore) -> None:
        assert repr(store).startswith("CachedStore(MemoryStore(")
        assert str(store).startswith("bufferpool::memory://")

    def test_store_supports_writes(self, store: CachedStore) -> None:
        assert store.supports_writes

    def test_store_supports_listing(self, store: CachedStore) -> None:
        assert store.supports_listing


for _name, _test in inspect.getmembers(StoreTests, inspect.iscoroutinefunction):  # they need no plugin of pytest
    if _name.startswith("test_") and _name not in vars(TestStore):

        def _as_function(self: Any, *, _test: Any = _test, **arguments: Any) -> None:
            asyncio.run(_test(self, **arguments))

        _as_function.__signature__ = inspect.signature(_test)  # type: ignore[attr-defined]
        _as_function.__dict__.update(vars(_test))
        _as_function.__name__ = _name
        setattr(TestStore, _name, _as_function)


# ---- one copy of the bytes -----------------------------------------------------------------


@pytest.fixture
def cache(pools: Pools) -> Any:
    return pools.create("16MiB").cache("zarr")


@pytest.fixture
def decoded() -> Iterator[None]:
    with zarr.config.set({"codec_pipeline.path": PIPELINE}):
        yield


def make(folder: Path, **options: Any) -> np.ndarray:
    """An array of 64 chunks, the last of them not written, without the wrapper."""
    values = np.random.default_rng(1).integers(0, 1000, (80, 80)).astype(np.int32)
    values[70:, 70:] = 7
    options = {"chunks": (10, 10), "fill_value": 7, **options}
    made = zarr.create_array(LocalStore(folder), name="table", shape=(80, 80), dtype="i4", **options)
    made[:] = values
    return values


def opened(folder: Path, cache: Any, log: Path, **options: Any) -> Any:
    return zarr.open_array(
        CachedStore(Counting(LocalStore(folder), str(log)), cache, name="table"), path="table", **options
    )


SELECTIONS: list[Any] = [
    (slice(None), slice(None)), (slice(3, 37), slice(11, 12)), 5, (slice(None), -1), (..., 3), (slice(75, 80), slice(65, 80)),
]  # fmt: skip


def sum_in_another_process(cache: Any, folder: Path, log: Path, path: str | None) -> int:
    with zarr.config.set({"codec_pipeline.path": path} if path else {}):
        array = opened(folder, cache, log, mode="r")
        return int(array[:].sum())


@pytest.mark.parametrize(("path", "processes"), [(None, 2), (PIPELINE, 4)], ids=["bytes", "decoded"])
def test_processes_read_each_chunk_once(
    path: str | None, processes: int, cache: Any, tmp_path: Path, child: Any
) -> None:
    """Each process had a cache of its own: four reads of every chunk, and four copies of it."""
    values, log = make(tmp_path / "data"), tmp_path / "log"
    children = [child(sum_in_another_process, cache, tmp_path / "data", log, path) for _ in range(processes)]
    assert [one.result() for one in children] == [values.sum()] * processes
    assert len(reads(log)) == len(set(reads(log))) == 64, "the chunk that does not exist is asked for once, too"


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("layout", ["plain", "big-endian, transposed", "sharded"])
def test_decoded_chunks_are_what_zarr_reads(
    layout: str, zarr_format: int, cache: Any, tmp_path: Path, decoded: None
) -> None:
    options: dict[str, Any] = {"zarr_format": zarr_format}
    if layout == "sharded":
        options["shards"] = (20, 20)
    if layout == "big-endian, transposed":
        options |= {"order": "F"} if zarr_format == 2 else {"filters": [zarr.codecs.TransposeCodec(order=(1, 0))]}
    if layout == "sharded" and zarr_format == 2:
        pytest.skip("format 2 has no shards")
    values, log = make(tmp_path / "data", **options), tmp_path / "log"
    array = opened(tmp_path / "data", cache, log, mode="r")
    assert isinstance(array.async_array.codec_pipeline, DecodedChunks)
    for _ in range(2):
        for selection in SELECTIONS:
            assert np.array_equal(array[selection], values[selection])
        assert np.array_equal(array.oindex[[3, 50], 2:9], values[[3, 50], 2:9])
        assert np.array_equal(array.vindex[[3, 50], [2, 9]], values[[3, 50], [2, 9]])
        before = reads(log)
    opened(tmp_path / "data", cache, log, mode="r")[:]
    assert reads(log) == before, "nothing is read twice"


def no_loop(read: Any, *args: Any, **kwargs: Any) -> Any:
    read.close()
    raise AssertionError("zarr's event loop was asked")


WINDOWS: list[Any] = [
    ..., 7, -1, (3, 4), slice(5, 50), slice(None, None, 7), (slice(11, 99), slice(3, 40)), (slice(0, 0), 1), (5, slice(None, None, 3)),
    (..., 2), ([1, 60, 3], slice(10, 20)),
]  # fmt: skip


@pytest.mark.parametrize("shards", [None, (40, 60)], ids=["chunks", "shards"])
@pytest.mark.parametrize("path", ["", "array"], ids=["root", "group"])
def test_decoded_chunks_are_read_without_the_event_loop(
    shards: Any, path: str, cache: Any, tmp_path: Path, decoded: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each window of a cached array took ten times as long as its copy, because zarr hands it to another thread and waits."""
    values = np.arange(100 * 120, dtype="f4").reshape(100, 120)
    zarr.create_array(LocalStore(tmp_path), name=path or None, data=values, chunks=(20, 30), shards=shards)
    array = DecodedArray(zarr.open_array(CachedStore(LocalStore(tmp_path), cache), path=path, mode="r+"))
    cold = [array[selection] for selection in WINDOWS]
    with monkeypatch.context() as patched:
        patched.setattr("zarr.core.array.sync", no_loop)
        warm = [array[selection] for selection in WINDOWS]
        with pytest.raises(AssertionError, match="event loop"):
            array.vindex[[1, 2], [3, 4]]
    for selection, one, other in zip(WINDOWS, cold, warm, strict=True):
        expected = np.asarray(zarr.open_array(LocalStore(tmp_path), path=path, mode="r")[selection])
        assert np.array_equal(np.asarray(one), expected), selection
        assert np.array_equal(np.asarray(other), expected), selection
        assert (np.asarray(one).dtype, np.shape(one)) == (np.asarray(other).dtype, np.shape(other)), selection
    assert np.array_equal(array.oindex[[2, 50], slice(3, 9)], values[[2, 50]][:, 3:9])
    array[5:25, 7] = -1
    assert (array[5:25, 7] == -1).all(), "it shows what was read before the write"
    out = default_buffer_prototype().nd_buffer.create(shape=(3, 2), dtype="f4")
    assert np.array_equal(array.get_basic_selection((slice(3), slice(2)), out=out), values[:3, :2])


def test_an_array_that_keeps_no_decoded_chunks_is_refused(cache: Any, tmp_path: Path) -> None:
    make(tmp_path)
    with pytest.raises(ValueError, match="PIPELINE"):
        DecodedArray(zarr.open_array(CachedStore(LocalStore(tmp_path), cache), path="table", mode="r"))


@pytest.mark.parametrize("location", ["start", "end"])
def test_inner_chunks_of_shards_are_decoded_once(location: str, cache: Any, tmp_path: Path, decoded: None) -> None:
    """Of an array with shards only the bytes were shared: each process decoded each chunk, again and again."""
    values, log = np.arange(6400).reshape(80, 80), tmp_path / "log"
    codec = zarr.codecs.ShardingCodec(
        chunk_shape=(10, 10), index_location=location, codecs=[zarr.codecs.BytesCodec(), zarr.codecs.ZstdCodec()]
    )
    zarr.create_array(
        LocalStore(tmp_path / "data"), name="table", data=values, chunks=(40, 40), serializer=codec, compressors=None
    )
    array = opened(tmp_path / "data", cache, log, mode="r")
    assert np.array_equal(array[5:25, 5:25], values[5:25, 5:25])
    assert len(reads(log)) == 1 + 9, "the index of the shard, and nine chunks"
    decodes = []
    decode = zarr.codecs.ZstdCodec._decode_single

    async def counted(self: Any, *args: Any) -> Any:
        decodes.append(args)
        return await decode(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zarr.codecs.ZstdCodec, "_decode_single", counted)
        again = opened(tmp_path / "data", cache, log, mode="r")
        assert np.array_equal(again[3:30, 9], values[3:30, 9])
        assert np.array_equal(again.oindex[[5, 17], 2:29], values[[5, 17], 2:29])
        assert decodes == []
        assert np.array_equal(again[:], values)
        assert len(decodes) == 64 - 9
        assert np.array_equal(again.vindex[[3, 70], [2, 9]], values[[3, 70], [2, 9]])
        assert len(decodes) == 64 - 9
    assert len(reads(log)) == 4 + 64
    writer = opened(tmp_path / "data", cache, log, mode="r+")
    writer[5:7, 5:7] = values[5:7, 5:7] = 3
    assert np.array_equal(again[:], values)


@pytest.mark.parametrize(
    ("dtype", "shape"), [("f4", ()), ("datetime64[ns]", (6,)), ("bool", (6,)), ("U5", (6,)), ("c16", (3, 2))]
)
def test_other_types_and_shapes(dtype: str, shape: tuple[int, ...], cache: Any, tmp_path: Path, decoded: None) -> None:
    values = np.arange(np.prod(shape, dtype=int)).astype(dtype if dtype != "U5" else "i4").reshape(shape).astype(dtype)
    source = LocalStore(tmp_path / "data")
    zarr.create_array(source, data=values, chunks=tuple(2 for _ in shape) if shape else "auto", zarr_format=2)
    for _ in range(2):
        array = zarr.open_array(CachedStore(source, cache), mode="r")
        assert array.dtype == values.dtype
        assert np.array_equal(array[...], values)


# ---- writes --------------------------------------------------------------------------------


def sums_before_and_after(cache: Any, folder: Path, log: Path, path: str | None, steps: list[Any]) -> list[int]:
    before = sum_in_another_process(cache, folder, log, path)
    steps[0].set()
    assert steps[1].wait(WAIT)
    return [before, sum_in_another_process(cache, folder, log, path)]


@pytest.mark.parametrize("path", [None, PIPELINE], ids=["bytes", "decoded"])
def test_a_write_is_seen_by_every_process(path: str | None, cache: Any, tmp_path: Path, child: Any, spawn: Any) -> None:
    """zarr's CacheStore still returns what another process has overwritten."""
    values, log, steps = make(tmp_path / "data"), tmp_path / "log", [spawn.Event(), spawn.Event()]
    reader, before = child(sums_before_and_after, cache, tmp_path / "data", log, path, steps), values.sum()
    assert steps[0].wait(WAIT)
    with zarr.config.set({"codec_pipeline.path": path} if path else {}):
        array = opened(tmp_path / "data", cache, log, mode="r+")
        array[5:25, 5:25] = values[5:25, 5:25] = 3
        array[70:, 70:] = values[70:, 70:] = 4  # a chunk that every process knows not to exist
        array[30:40, 30:40] = values[30:40, 30:40] = 7  # all of it is the fill value: the chunk is deleted
        assert np.array_equal(array[:], values)
    steps[1].set()
    assert reader.result() == [before, values.sum()]


class Slow(MemoryStore):  # type: ignore[misc]
    """A store whose reads and writes end when the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.may_end: asyncio.Event | None = None

    async def get(self, key: str, prototype: Any, byte_range: Any = None) -> Any:
        found = await super().get(key, prototype, byte_range)
        if self.may_end is not None:
            await self.may_end.wait()
        return found


def test_what_was_read_before_a_write_ended_is_not_found_after_it(cache: Any) -> None:
    """A slow reader put the old value into the cache when the writer had already removed it from there."""

    async def run() -> None:
        source = Slow()
        store = await CachedStore.open(source, cache, name="slow")
        await store.set("key", Buffer.from_bytes(b"old"))
        source.may_end = asyncio.Event()
        reader = asyncio.create_task(store.get("key", PROTOTYPE))
        await asyncio.sleep(0)
        while not source.may_end._waiters:
            await asyncio.sleep(0.001)
        await store.set("key", Buffer.from_bytes(b"new"))
        source.may_end.set()
        assert (await reader).to_bytes() in (b"old", b"new")
        assert (await store.get("key", PROTOTYPE)).to_bytes() == b"new"

    asyncio.run(run())


def test_a_writer_that_is_killed_leaves_nothing_old(cache: Any) -> None:
    """A value that was written by a process which then died was hidden by the old one in the cache."""

    async def run() -> None:
        source = MemoryStore()
        store = await CachedStore.open(source, cache, name="killed")
        await store.set("key", Buffer.from_bytes(b"old"))
        assert (await store.get("key", PROTOTYPE)).to_bytes() == b"old"
        writing = store._writing("key")
        writing.__enter__()  # the rest of the block never happens
        assert (await store.get("key", PROTOTYPE)).to_bytes() == b"old"
        await source.set("key", Buffer.from_bytes(b"new"))
        assert (await store.get("key", PROTOTYPE)).to_bytes() == b"new"
        writing.__exit__(None, None, None)

    asyncio.run(run())


def test_deleting_a_folder_and_clearing(cache: Any, tmp_path: Path) -> None:
    async def run() -> None:
        stores = [CachedStore(LocalStore(tmp_path / name), cache) for name in ("one", "two")]
        for store in stores:
            for key in ("a/1", "a/2", "ab/1"):
                await store.set(key, Buffer.from_bytes(key.encode()))
                assert (await store.get(key, PROTOTYPE)).to_bytes() == key.encode()
        await stores[0].delete_dir("a")
        found = [await stores[0].get(key, PROTOTYPE) is not None for key in ("a/1", "a/2", "ab/1")]
        assert found == [False, False, True]
        await stores[0].clear()
        assert await stores[0].get("ab/1", PROTOTYPE) is None
        assert (await stores[1].get("ab/1", PROTOTYPE)).to_bytes() == b"ab/1", "the other store keeps its values"

    asyncio.run(run())


def test_ranges_are_kept_and_cut_from_whole_values(cache: Any, tmp_path: Path) -> None:
    async def run() -> None:
        log = tmp_path / "log"
        store = CachedStore(Counting(LocalStore(tmp_path / "data"), str(log)), cache, name="ranges")
        data = bytes(range(100))
        await store.set("c/value", Buffer.from_bytes(data))
        ranges = {
            RangeByteRequest(3, 9): data[3:9], OffsetByteRequest(90): data[90:], SuffixByteRequest(5): data[-5:],
            SuffixByteRequest(200): data, RangeByteRequest(95, 200): data[95:], OffsetByteRequest(100): b"",
        }  # fmt: skip
        for _ in range(2):
            for part, expected in ranges.items():
                assert (await store.get("c/value", PROTOTYPE, part)).to_bytes() == expected
        assert len(reads(log)) == len(ranges)
        assert (await store.get("c/value", PROTOTYPE)).to_bytes() == data
        before = len(reads(log))
        assert (await store.get("c/value", PROTOTYPE, RangeByteRequest(1, 2))).to_bytes() == data[1:2]
        assert (await store.get("c/value", PROTOTYPE, SuffixByteRequest(7))).to_bytes() == data[-7:]
        assert len(reads(log)) == before, "they are parts of the value that the cache has"

    asyncio.run(run())


def test_a_chunk_that_is_deleted_or_of_no_use_any_more(cache: Any, tmp_path: Path, decoded: None) -> None:
    """Caches of zarr showed a chunk that had been deleted, and the values of an array that was made anew under the same name."""
    values = make(tmp_path)
    store = CachedStore(LocalStore(tmp_path), cache)
    array = DecodedArray(zarr.open_array(store, path="table", mode="r+"))
    assert np.array_equal(array[:], values)
    asyncio.run(store.delete("table/c/0/0"))
    assert (array[:10, :10] == 7).all()
    assert np.array_equal(array[10:], values[10:])
    zarr.create_array(store, name="table", data=np.zeros((40, 40), "f8"), chunks=(20, 20), overwrite=True)
    assert (DecodedArray(zarr.open_array(store, path="table", mode="r"))[:] == 0).all()


def test_an_array_that_a_method_of_zarr_makes_is_a_decoded_one(cache: Any, tmp_path: Path, decoded: None) -> None:
    """zarr makes the new array by the class of the old one, of an AsyncArray: setting an attribute raised AttributeError."""
    values = make(tmp_path)
    array = DecodedArray(zarr.open_array(CachedStore(LocalStore(tmp_path), cache), path="table", mode="r+"))
    array.attrs["unit"] = "m"
    assert zarr.open_array(LocalStore(tmp_path), path="table").attrs["unit"] == "m"
    for made in (array.update_attributes({"unit": "s"}), array.with_config({"order": "F"})):
        assert type(made) is DecodedArray
        assert np.array_equal(made[3:17, :5], values[3:17, :5])


def test_a_store_without_a_name_of_its_own_needs_one(cache: Any, tmp_path: Path) -> None:
    """The number of a MemoryStore is another store's in another process."""
    with pytest.raises(ValueError, match="name="):
        CachedStore(MemoryStore(), cache)
    os.chdir(tmp_path)
    assert CachedStore(LocalStore("data"), cache).name == CachedStore(LocalStore(tmp_path / "data"), cache).name


@pytest.mark.parametrize("url", ["memory://data", "bufferpool::memory://data", "simplecache::memory://data"])
def test_a_file_system_in_memory_has_no_name_either(url: str, cache: Any) -> None:
    """memory:// of fsspec is another store in each process: a process got the chunks of another one's array."""
    pytest.importorskip("fsspec")
    store = FsspecStore.from_url(url)
    with pytest.raises(ValueError, match="name="):
        CachedStore(store, cache)
    assert CachedStore(store, cache, name="mine").name == "mine"


def test_a_file_system_of_files_has_a_name(cache: Any, tmp_path: Path) -> None:
    pytest.importorskip("fsspec")
    (tmp_path / "memory").mkdir()
    named = [
        CachedStore(FsspecStore.from_url(f"file://{tmp_path}/{sub}"), cache).name for sub in ("memory", "memory", "b")
    ]
    assert named[0] == named[1] != named[2]


def test_wrong_arguments_are_refused_by_the_constructors(cache: Any, pools: Pools, tmp_path: Path) -> None:
    """They were taken, and failed at the first read: a path is no store, and a pool keeps no values."""
    store = LocalStore(tmp_path)
    for source in (str(tmp_path), tmp_path, {}, np.zeros(3), None):
        for name in (None, "mine"):
            with pytest.raises(TypeError, match=r"store of zarr, such as LocalStore\(path\).*, not "):
                CachedStore(source, cache, name=name)
        with pytest.raises(TypeError, match="store of zarr"):
            asyncio.run(CachedStore.open(source, cache, read_only=True))
    for other in (pools.create("4MiB"), None, "zarr", {}):
        with pytest.raises(TypeError, match=r'as pool.cache\("zarr"\) returns, not '):
            CachedStore(store, other)
    with pytest.raises(TypeError, match="name must be a string, not PosixPath"):
        CachedStore(store, cache, name=tmp_path)
    for ttl, error in ((-1, ValueError), (0, ValueError), ("1h", TypeError), (True, TypeError)):
        with pytest.raises(error, match="ttl must be"):
            CachedStore(store, cache, ttl=ttl)
    zarr.create_group(store)
    for array in (np.zeros(3), None, "array", zarr.open_group(store, mode="r")):
        with pytest.raises(TypeError, match=r"array of zarr, such as zarr\.open_array"):
            DecodedArray(array)


def test_a_store_pickles(cache: Any, tmp_path: Path) -> None:
    store = CachedStore(LocalStore(tmp_path), cache, ttl=60)
    copy = pickle.loads(pickle.dumps(store))
    assert (copy, copy.name, copy.ttl) == (store, store.name, 60)
