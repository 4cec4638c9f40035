"""What people read with, through bufferpool::http: values equal to those of the uncached read, and nothing is fetched twice."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

fsspec = pytest.importorskip("fsspec")
pytest.importorskip("aiohttp")

Options = Callable[..., dict[str, Any]]
ROWS = 60_000


def twice(origin: Any, options: Options, read: Callable[[Any, dict[str, Any]], Any]) -> Any:
    """Reads with a new file system and then with another one; the second one fetches nothing. Returns what was read."""
    given = options(budget="16MiB")
    answers = []
    for n in range(2):
        origin.forget()
        fs = fsspec.filesystem("bufferpool", target_protocol="http", skip_instance_cache=True, **given)
        answers.append(read(fs, given))
        assert (origin.bytes_sent > 0) == (n == 0)
    return answers


@pytest.fixture
def parquet(origin: Any) -> tuple[str, Any]:
    """The URL of a Parquet file of several row groups, and its table."""
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    numbers = np.random.default_rng(1)
    table = pa.table({"id": np.arange(ROWS), "x": numbers.random(ROWS), "group": numbers.integers(0, 9, ROWS)})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, row_group_size=7000)
    return origin.put("rows.parquet", sink.getvalue().to_pybytes()), table


def test_pandas(origin: Any, options: Options, parquet: tuple[str, Any]) -> None:
    pandas = pytest.importorskip("pandas")
    url, table = parquet

    def read(fs: Any, given: dict[str, Any]) -> Any:
        return pandas.read_parquet(f"bufferpool::{url}", columns=["id", "x"], storage_options={"bufferpool": given})

    for frame in twice(origin, options, read):
        pandas.testing.assert_frame_equal(frame, pandas.read_parquet(url, columns=["id", "x"]))
        assert len(frame) == table.num_rows


def test_pandas_asks_nothing_within_max_age(origin: Any, options: Options, parquet: tuple[str, Any]) -> None:
    """A warm read sent two questions although max_age was given: pandas asks isfile before each time that it opens the file."""
    pandas = pytest.importorskip("pandas")
    url, given = parquet[0], options(budget="16MiB", max_age=3600)
    for n in range(2):
        origin.forget()
        pandas.read_parquet(f"bufferpool::{url}", storage_options={"bufferpool": given})
        assert origin.count("HEAD") == (n == 0)
    fs, _ = fsspec.core.url_to_fs(f"bufferpool::{url}", bufferpool=given | {"max_age": 0})
    origin.forget()
    with fs.open(url) as file:
        pandas.read_parquet(file)
    assert origin.count("HEAD") == 1


def test_pyarrow_datasets(origin: Any, options: Options, parquet: tuple[str, Any]) -> None:
    """Many files, a filter and columns, by the handler that pyarrow has for fsspec."""
    dataset = pytest.importorskip("pyarrow.dataset")
    from pyarrow.fs import FSSpecHandler, PyFileSystem

    url, table = parquet
    urls = [url, origin.put("more.parquet", origin.files["rows.parquet"].content)]

    def rows(fs: Any) -> Any:
        found = dataset.dataset(urls, filesystem=PyFileSystem(FSSpecHandler(fs)), format="parquet")
        return found.to_table(columns=["id", "x"], filter=dataset.field("group") == 3).sort_by("id")

    expected = rows(fsspec.filesystem("http"))
    assert expected.num_rows == 2 * int((table["group"].to_numpy() == 3).sum())
    for found in twice(origin, options, lambda fs, given: rows(fs)):
        assert found.equals(expected)


def test_arrow_ipc(origin: Any, options: Options, parquet: tuple[str, Any]) -> None:
    pa = pytest.importorskip("pyarrow")
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, parquet[1].schema) as writer:
        for batch in parquet[1].to_batches(max_chunksize=9000):
            writer.write_batch(batch)
    url = origin.put("rows.arrow", sink.getvalue().to_pybytes())

    def read(fs: Any, given: dict[str, Any]) -> Any:
        with fs.open(url) as file, pa.ipc.open_file(pa.PythonFile(file, "r")) as reader:
            return reader.get_batch(3), reader.read_all()

    for batch, table in twice(origin, options, read):
        assert batch.equals(parquet[1].to_batches(max_chunksize=9000)[3])
        assert table.equals(parquet[1])


def test_arrow_buffers_are_the_shared_memory(origin: Any, options: Options) -> None:
    """What pyarrow reads of one block is not copied; and arrays that keep pages leave three quarters of them to the others."""
    pa = pytest.importorskip("pyarrow")
    given = options()  # 64 pages
    fs = fsspec.filesystem("bufferpool", target_protocol="http", skip_instance_cache=True, **given)
    data = np.random.default_rng(7).bytes(40 * 65536)
    url = origin.put("a.bin", data)
    with fs.open(url) as file, pa.PythonFile(file, "r") as arrow:
        assert fs.cat_file(url) == data
        arrow.seek(1000)
        buffers = [arrow.read_buffer(1000) for _ in range(2000)]
        assert [buffer.to_pybytes() for buffer in buffers] == [data[n : n + 1000] for n in range(1000, 2_001_000, 1000)]
        assert 0 < sum(client.pins for client in fs.blocks.pool.clients()) <= 16
        assert fs.blocks.pool.stats().frames.pinned <= 16
        del buffers
    assert sum(client.pins for client in fs.blocks.pool.clients()) == 0


def test_h5py(origin: Any, options: Options, tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    data = np.random.default_rng(2).normal(size=(40, 100, 100))
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("data", data=data, chunks=(4, 50, 50), compression="gzip")
        file.create_group("deep/er").attrs["name"] = "x"
    url = origin.put("a.h5", (tmp_path / "a.h5").read_bytes())

    def read(fs: Any, given: dict[str, Any]) -> Any:
        with fs.open(url) as opened, h5py.File(opened) as file:
            return file["data"][:, 10:60:7, 99], file["data"][17], file["deep/er"].attrs["name"]

    for found in twice(origin, options, read):
        assert np.array_equal(found[0], data[:, 10:60:7, 99])
        assert np.array_equal(found[1], data[17])
        assert found[2] == "x"


def test_xarray(origin: Any, options: Options, tmp_path: Path) -> None:
    xarray = pytest.importorskip("xarray")
    pytest.importorskip("h5netcdf")
    made = xarray.Dataset(
        {"t": (("time", "y", "x"), np.random.default_rng(3).normal(size=(20, 60, 80)))},
        coords={"time": np.arange(20), "y": np.linspace(0, 1, 60)},
    )
    made.to_netcdf(tmp_path / "a.nc", engine="h5netcdf", encoding={"t": {"chunksizes": (5, 60, 80)}})
    url = origin.put("a.nc", (tmp_path / "a.nc").read_bytes())

    def read(fs: Any, given: dict[str, Any]) -> Any:
        with fs.open(url) as opened, xarray.open_dataset(opened, engine="h5netcdf") as found:
            return found["t"].isel(time=slice(3, 9), x=5).load(), found.load()

    for part, whole in twice(origin, options, read):
        assert part.equals(made["t"].isel(time=slice(3, 9), x=5))
        assert whole.equals(made)


@pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")  # of rasterio itself
def test_rasterio(origin: Any, options: Options, tmp_path: Path) -> None:
    rasterio = pytest.importorskip("rasterio")
    from rasterio.windows import Window

    data = np.random.default_rng(4).integers(0, 255, (3, 700, 900), dtype=np.uint8)
    shape = {
        "width": 900,
        "height": 700,
        "count": 3,
        "dtype": "uint8",
        "transform": rasterio.transform.from_origin(5, 50, 0.1, 0.1),
    }
    with rasterio.open(tmp_path / "a.tif", "w", "GTiff", tiled=True, blockxsize=256, blockysize=256, **shape) as file:
        file.write(data)
    url = origin.put("a.tif", (tmp_path / "a.tif").read_bytes())

    def read(fs: Any, given: dict[str, Any]) -> Any:
        with rasterio.open(url, opener=fs) as file:
            part = file.read(2, window=Window(300, 200, 333, 222))
        with rasterio.open(url, opener=lambda path, mode="rb": fs.open(url, mode)) as file:
            same = file.read(2, window=Window(300, 200, 333, 222))
        assert np.array_equal(part, same)
        with fs.open(url) as opened, rasterio.open(opened) as file:
            return part, file.read()

    for part, whole in twice(origin, options, read):
        assert np.array_equal(part, data[1, 200:422, 300:633])
        assert np.array_equal(whole, data)


def test_duckdb(origin: Any, options: Options, parquet: tuple[str, Any]) -> None:
    """DuckDB gives the file system the URL with the scheme that it is registered for."""
    duckdb = pytest.importorskip("duckdb")
    url, table = parquet
    question = "select count(*), sum(id) from '{}' where \"group\" = 3"

    def read(fs: Any, given: dict[str, Any]) -> Any:
        with duckdb.connect() as connection:
            connection.register_filesystem(fs)
            return connection.sql(question.format(f"bufferpool://{url}")).fetchall()[0]

    chosen = table["group"].to_numpy() == 3
    for found in twice(origin, options, read):
        assert found == (chosen.sum(), table["id"].to_numpy()[chosen].sum())
