"""bufferpool:: in fsspec's URLs: the bytes are those of the origin, each block is fetched once, and versions never mix."""

import asyncio
import io
import itertools
import os
import pickle
import random
import signal
import threading
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import bufferpool as bp
from bufferpool.errors import RemoteChanged
from tests.conftest import WAIT, wait_until
from tests.support.children import on_small_tmpfs, run_python

fsspec = pytest.importorskip("fsspec")
pytest.importorskip("aiohttp")

from fsspec.asyn import get_loop  # noqa: E402

from bufferpool.integrations.blocks import Blocks  # noqa: E402
from bufferpool.integrations.fsspec import BufferPoolFileSystem  # noqa: E402

Options = Callable[..., dict[str, Any]]
BLOCK = (64 << 10) - 64


def content(n_bytes: int, version: int = 0) -> bytes:
    """Bytes of which every block differs, in every version."""
    return np.random.default_rng(version).bytes(n_bytes)


def filesystem(options: dict[str, Any], target: str = "http", **more: Any) -> Any:
    return fsspec.filesystem(
        "bufferpool",
        target_protocol=target,
        target_options={"skip_instance_cache": True},  # another test has closed the session of that one
        skip_instance_cache=True,
        **options,
        **more,
    )


# ---- what is read --------------------------------------------------------------------


def test_a_url_needs_no_import(origin: Any, options: Options) -> None:
    """`pd.read_parquet("bufferpool::https://...")` must work in a program that has never heard of this package."""
    data = content(200_000)
    url, given = origin.put("a.bin", data), options(steward=True)
    code = f"""
import fsspec
with fsspec.open("bufferpool::{url}", bufferpool={given!r}) as file:
    print(file.read().hex())
"""
    for _ in range(2):
        done = run_python(code)
        assert done.returncode == 0, done.stderr
        assert bytes.fromhex(done.stdout) == data
    assert origin.bytes_sent == len(data)


@pytest.mark.parametrize("size", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 5 * BLOCK, 5 * BLOCK + 17])
def test_ranges_are_those_of_a_slice(origin: Any, options: Options, size: int) -> None:
    """Starts and ends at, before and behind the ends of blocks and of the file, negative ones, and none."""
    data = content(size)
    url, fs = origin.put("a.bin", data), filesystem(options())
    places = [None, 0, 1, -1, -BLOCK, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, size - 1, size, size + 5, -size - 3]
    pairs = [(start, end) for start in places for end in places]
    starts, ends = zip(*pairs, strict=True)
    for _ in range(2):
        found = fs.cat_ranges([url] * len(pairs), list(starts), list(ends))
        assert found == [data[start:end] for start, end in pairs]
    assert fs.cat_file(url) == fs.cat(url) == data
    assert fs.cat_file(url, -3) == data[-3:]


def test_a_file_is_read_as_any_other(origin: Any, options: Options) -> None:
    """seek, tell, readline, readinto, text, and reads beyond the end."""
    data = b"".join(b"line %d\n" % n for n in range(40_000))
    url, fs = origin.put("a.txt", data), filesystem(options())
    with fs.open(url) as file:
        assert (file.size, file.seek(-10, 2), file.read(), file.read(5)) == (len(data), len(data) - 10, data[-10:], b"")
        file.seek(BLOCK - 3)
        assert (file.read(6), file.tell()) == (data[BLOCK - 3 : BLOCK + 3], BLOCK + 3)
        into = bytearray(2 * BLOCK)
        file.seek(7)
        assert (file.readinto(into), bytes(into)) == (2 * BLOCK, data[7 : 7 + 2 * BLOCK])
        file.seek(0)
        assert (file.readline(), file.read()) == (b"line 0\n", data[7:])
    with fs.open(url, "rt") as text:
        assert text.read() == data.decode()
    assert origin.bytes_sent == len(data)


@pytest.mark.parametrize("cache_type", [None, "readahead"])
def test_reading_into_a_buffer(origin: Any, options: Options, cache_type: str | None) -> None:
    """h5py reads so. At each place, cold and warm, and into what is no array of bytes; at the end a part of the buffer is left."""
    data = content(9 * BLOCK + 100)
    url, fs = origin.put("a.bin", data), filesystem(options())
    given = {"cache_type": cache_type} if cache_type else {}
    places = [
        (0, 10),
        (BLOCK - 4, 8),
        (BLOCK, BLOCK),
        (2 * BLOCK + 1, 3 * BLOCK),
        (len(data) - 8, 8),
        (len(data) - 8, 80),
    ]
    for start, n in [*places, *reversed(places), (len(data), 8), (len(data) + 5, 8), (3, 0)]:
        with fs.open(url, **given) as file:
            file.seek(start)
            into = np.full(n, 7, np.uint8)
            there = data[start : start + n]
            assert file.readinto(into) == len(there)
            assert into.tobytes() == there + b"\7" * (n - len(there))
            assert file.tell() == start + len(there)
            assert file.read(5) == data[start + n : start + n + 5]
    with fs.open(url) as file:
        numbers = np.zeros((3, 5), np.float64)
        assert (file.readinto(numbers), numbers.tobytes()) == (120, data[:120])
        with pytest.raises((TypeError, BufferError, ValueError)):
            file.readinto(b"read-only")
        assert file.tell() == 120
    with pytest.raises(ValueError, match="closed"):
        file.readinto(bytearray(5))
    assert origin.bytes_sent <= len(data) * (2 if cache_type else 1)


def test_the_ranges_of_one_call_are_fetched_together(origin: Any, options: Options) -> None:
    """One range after the other costs a round trip for each: here the server answers none before it has all of them."""
    urls = [origin.put(f"{n}.bin", content(BLOCK, n)) for n in range(8)]
    fs = filesystem(options())
    here = threading.Barrier(8, timeout=WAIT)
    origin.before_body = lambda request: here.wait() and None
    found = fs.cat_ranges(urls, 10, 5000)
    assert found == [content(BLOCK, n)[10:5000] for n in range(8)]
    assert origin.count("GET") == 8


def test_neighbouring_blocks_are_one_request(origin: Any, options: Options) -> None:
    data = content(7 * BLOCK)
    url, fs = origin.put("a.bin", data), filesystem(options())
    assert fs.cat_ranges([url] * 7, [n * BLOCK for n in range(7)], [(n + 1) * BLOCK for n in range(7)]) == [
        data[n * BLOCK : (n + 1) * BLOCK] for n in range(7)
    ]
    assert (origin.count("GET"), origin.bytes_sent) == (1, len(data))


def test_reading_in_order_reads_ahead(origin: Any, options: Options) -> None:
    """A request for each block of 64 KiB is slow; a read at random must not fetch what nobody wants."""
    data = content(100 * BLOCK)
    url, fs = origin.put("a.bin", data), filesystem(options(budget="16MiB"))
    with fs.open(url) as file:
        assert b"".join(iter(lambda: file.read(50_000), b"")) == data
    assert origin.count("GET") < 12
    assert origin.bytes_sent == len(data)
    url = origin.put("c.bin", content(40 * BLOCK, 2))
    origin.forget()
    with fs.open(url) as file:
        assert b"".join(iter(lambda: file.read(8000), b"")) == content(40 * BLOCK, 2)
    assert origin.count("GET") < 6
    assert origin.bytes_sent == 40 * BLOCK
    url = origin.put("b.bin", content(100 * BLOCK, 1))
    origin.forget()
    with fs.open(url) as file:
        for n in (90, 40, 70, 10):
            file.seek(n * BLOCK)
            file.read(100)
    assert origin.bytes_sent == 5 * BLOCK  # and the first one, which came with the version


@pytest.fixture
def patient_questions(origin: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The question for a file's version waits until the origin has sent so many bytes; a list of that number, which a test may change."""
    least, ask = [1], BufferPoolFileSystem._info_by_head

    async def waits(fs: Any, path: str) -> Any:
        for _ in range(int(WAIT / 0.01)):
            if origin.bytes_sent >= least[0]:
                return await ask(fs, path)
            await asyncio.sleep(0.01)
        raise TimeoutError

    monkeypatch.setattr(BufferPoolFileSystem, "_info_by_head", waits)
    return least


@pytest.mark.parametrize(("name", "at"), [("a.nc", 0), ("a.parquet", -(64 << 10)), ("small.nc", 0), ("small.zip", 0)])
def test_the_end_of_a_new_file_comes_with_its_version(
    origin: Any, options: Options, patient_questions: list[int], name: str, at: int
) -> None:
    """A reader waited for the version, and then for its first read: twice a latency for each of many small files."""
    data = content(1000 if "small" in name else 20 * BLOCK + 1000)
    url, given = origin.put(name, data), options(budget="32MiB")
    with filesystem(given).open(url) as file:
        file.seek(at, 2 if at else 0)
        assert file.read(64 << 10) == data[at:][: 64 << 10]
        assert (origin.count("HEAD"), origin.count("GET")) == (1, 1 if at or len(data) < BLOCK else 2)
        file.seek(0)
        assert file.read() == data
    assert origin.bytes_sent < len(data) + BLOCK  # the last bytes begin within a block
    patient_questions[0] = 0  # the second one asks for the version only: the pool may have the blocks
    origin.forget()
    with filesystem(given).open(url) as file:
        assert file.read() == data
    assert (origin.count("HEAD"), origin.bytes_sent) == (1, 0)


def test_nobody_waits_long_for_the_end_that_another_one_reads(
    origin: Any, options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first one to open a file may be stopped, or its request hang. Each open of the others would wait for as long again."""
    from bufferpool.integrations import blocks

    monkeypatch.setattr(blocks, "ONCE_S", 0.1)
    data = content(2 * BLOCK)
    url, given, begun, end = origin.put("a.nc", data), options(budget="32MiB"), threading.Event(), threading.Event()

    def hang(request: Any) -> None:
        origin.before_body = lambda request: None
        begun.set()
        end.wait(WAIT)

    origin.before_body = hang
    first = threading.Thread(target=lambda: filesystem(given).open(url).close())
    first.start()
    assert begun.wait(WAIT)
    for seconds in (0.1, 1000 * WAIT):  # the second one does not wait
        monkeypatch.setattr(blocks, "ONCE_S", seconds)
        filesystem(given).open(url).close()
        assert first.is_alive()
    end.set()
    first.join(WAIT)


def test_an_end_of_another_version_is_not_used(origin: Any, options: Options, patient_questions: list[int]) -> None:
    """The first bytes are those of a version that is gone when the version is asked for."""
    data = [content(2 * BLOCK, n) for n in range(2)]
    url, fs, info = origin.put("a.nc", data[0]), filesystem(options(budget="32MiB")), BufferPoolFileSystem._info_by_head

    async def later(fs: Any, path: str) -> Any:
        found = await info(fs, path)  # waits for the first bytes
        origin.put("a.nc", data[1])
        return found if changes_after else await info(fs, path)

    for changes_after in (True, False):
        origin.put("a.nc", data[0])
        patient_questions[0] = origin.bytes_sent + 1
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(BufferPoolFileSystem, "_info_by_head", later)
            with fs.open(url.replace("a.nc", "a.nc" + "?" * changes_after)) as file:
                found = file.read(100)
        assert found == data[0 if changes_after else 1][:100]
    with fs.open(url) as file:
        assert file.read() == data[1]


def test_a_file_of_a_server_without_ranges_is_not_read_twice(options: Options) -> None:
    """Asked for the first bytes, such a server begins to send the whole file."""
    from integrations.origin import Origin

    with Origin(ranges=False) as origin:
        data = content(3 * BLOCK)
        url = origin.put("a.nc", data)
        with filesystem(options(budget="32MiB")).open(url) as file:
            assert file.read() == data


def test_reading_in_strides_reads_the_next_rows(origin: Any, options: Options) -> None:
    """The rows of a window of an image are far apart, each at the same distance: each waited for a request of its own."""
    row, data = 7 * BLOCK + 1000, content(330 * BLOCK)
    url, fs = origin.put("a.bin", data), filesystem(options(budget="64MiB"))
    fetched: list[int] = []
    with fs.open(url) as file:
        for n in range(40):
            file.seek(n * row + 5000)
            assert file.read(20_000) == data[n * row + 5000 : n * row + 25_000]
            fetched.append(origin.bytes_sent)
    rounds = sum(before != now for before, now in itertools.pairwise([0, *fetched]))
    assert rounds < 15, "most rows were there when they were asked for"
    assert origin.bytes_sent <= (2 * 40 + 3 * 8) * BLOCK, "each row, and what was fetched beyond the last one"
    origin.forget()
    numbers = random.Random(5)
    places = [numbers.randrange(300 * BLOCK) for _ in range(30)]
    url = origin.put("b.bin", data)
    with fs.open(url) as file:
        for place in places:
            file.seek(place)
            assert file.read(100) == data[place : place + 100]
    blocks = {at // BLOCK for place in places for at in (place, place + 99)}
    assert origin.bytes_sent <= (len(blocks) + 1) * BLOCK, "at random nothing is fetched ahead"


@pytest.mark.parametrize("piece", [150_000, 40_000])
def test_who_skips_parts_fetches_the_others_only(origin: Any, options: Options, piece: int) -> None:
    """The chunks of one column of a Parquet file lie between those of the others: reading ahead fetched the whole file."""
    lengths, gaps = (150_000, 157_000, 143_000), (400_000, 310_000, 520_000, 370_000)
    data = content(200 * BLOCK)
    url, fs = origin.put("a.bin", data), filesystem(options(budget="64MiB"))
    blocks, at, wanted = set(), 100_000, []
    for n in range(20):
        wanted.append((at, at + lengths[n % 3]))
        blocks |= set(range(at // BLOCK, (at + lengths[n % 3] - 1) // BLOCK + 1))
        at += lengths[n % 3] + gaps[n % 4]
    with fs.open(url) as file:
        for start, end in wanted:
            file.seek(start)
            got = b"".join(file.read(min(piece, end - place)) for place in range(start, end, piece))
            assert got == data[start:end]
    first_guess = (1 << 20) + BLOCK  # before the first skip nothing is known
    assert origin.bytes_sent <= (len(blocks) + 20) * BLOCK + first_guess, (
        "a block for each chunk that is shorter than the last"
    )


def test_coroutines(origin: Any, options: Options) -> None:
    """In an event loop of the caller's: cat_file, cat_ranges, many at once, and files."""
    data = [content(3 * BLOCK, n) for n in range(20)]
    urls = [origin.put(f"{n}.bin", each) for n, each in enumerate(data)]
    given = options(budget="8MiB")

    async def work() -> None:
        fs = filesystem(given, asynchronous=True)
        session = await fs.fs.set_session()
        try:
            assert await asyncio.gather(*(fs._cat_file(url) for url in urls)) == data
            assert await fs._cat_ranges(urls, 5, 2 * BLOCK) == [each[5 : 2 * BLOCK] for each in data]
            assert await fs._cat(urls) == dict(zip(urls, data, strict=True))
            file = await fs.open_async(urls[3])
            assert (await file.read(10), await file.read()) == (data[3][:10], data[3][10:])
            await file.close()
            with pytest.raises(FileNotFoundError):
                await fs._cat_file(f"{origin.url}/none")
        finally:
            await session.close()

    asyncio.run(work())
    assert origin.bytes_sent == sum(map(len, data))


def test_questions_about_files_do_not_fetch_them(origin: Any, options: Options) -> None:
    """pyarrow and DuckDB ask isfile and glob first: HTTPFileSystem answers by GET, so each open began to send the whole file."""
    url, fs = origin.put("a.bin", content(5 * BLOCK)), filesystem(options())
    none = f"{origin.url}/none"
    assert (fs.isfile(url), fs.exists(url), fs.isdir(url), fs.glob(url)) == (True, True, False, [url])
    assert (fs.isfile(none), fs.exists(none), fs.isdir(none), fs.glob(none)) == (False, False, False, [])
    assert (fs.expand_path(url), fs.size(url), fs.info(url)["size"]) == ([url], 5 * BLOCK, 5 * BLOCK)
    assert fs.modified(url).year >= 2024

    async def work() -> None:
        fs = filesystem(options(), asynchronous=True)
        session = await fs.fs.set_session()
        assert (await fs._isfile(url), await fs._exists(url), await fs._isdir(url), await fs._glob(url)) == (
            True,
            True,
            False,
            [url],
        )
        assert (await fs._isfile(none), await fs._exists(none), await fs._isdir(none)) == (False, False, False)
        await session.close()

    asyncio.run(work())
    assert origin.count("GET") == 0


def test_an_absent_file_is_asked_for_once(origin: Any, options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    """rasterio looks for a dozen files beside an image, by isfile(), isdir() and open(): each absent one cost two or three requests."""
    asked: list[str] = []
    answer = origin.answer

    def noted(handler: Any, body: bool) -> None:
        asked.append(handler.command)
        answer(handler, body)

    monkeypatch.setattr(origin, "answer", noted)
    monkeypatch.setattr("bufferpool.integrations.fsspec.SAME_MOMENT_S", WAIT)
    fs, none = filesystem(options()), f"{origin.url}/none"
    for call in (fs.open, fs.info, fs.cat_file):
        with pytest.raises(FileNotFoundError):
            call(none)
    assert asked == ["HEAD"] * 3
    asked.clear()
    assert (fs.isfile(none), fs.isdir(none)) == (False, False)
    assert asked == ["HEAD"]
    asked.clear()
    url = origin.put("a.bin", b"abc")
    assert (fs.isfile(none), fs.isfile(url), fs.isdir(url), fs.isdir(f"{origin.url}/other")) == (
        False,
        True,
        False,
        False,
    )
    assert asked == ["HEAD"] * 4
    monkeypatch.setattr("bufferpool.integrations.fsspec.SAME_MOMENT_S", 0.0)
    asked.clear()
    assert (fs.isfile(none), fs.isdir(none)) == (False, False)
    assert asked == ["HEAD"] * 2, "a later question is asked"


def test_a_server_that_refuses_head_is_asked_by_get(
    origin: Any, options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server of a signed URL refuses HEAD (403), and others have no HEAD (405, 501): HTTPFileSystem asks by GET then, and so do we."""
    data, answer = content(3 * BLOCK), origin.answer
    url = origin.put("a.bin", data)
    for status in (403, 405, 501):

        def refused(handler: Any, body: bool, status: int = status) -> None:
            if body:
                answer(handler, body)
            else:
                handler.send_error(status)

        monkeypatch.setattr(origin, "answer", refused)
        fs = filesystem(options())
        assert fs.info(url)["size"] == len(data)
        with fs.open(url) as file:
            assert file.read() == data


def test_answers_count_for_max_age(origin: Any, options: Options) -> None:
    """A question at every open takes a round trip: max_age= saves it, and what is read is still of one version."""
    old, new = content(3 * BLOCK), content(3 * BLOCK, 1)
    url, fs = origin.put("a.bin", old), filesystem(options(), max_age=3600)
    for _ in range(3):
        assert fs.cat_file(url, 0, 9) == old[:9]
    assert origin.count("HEAD") == 1
    origin.put("a.bin", new)
    assert fs.cat_file(url, 0, 9) == old[:9]
    assert fs.cat_file(url) == new  # the server no longer has the other blocks of that version, so the call starts over
    assert fs.cat_file(url, 0, 9) == new[:9]
    origin.put("a.bin", old)
    fs.invalidate_cache()
    with fs.open(url) as file:
        assert file.read(9) == old[:9]


QUESTIONS = ("isfile", "exists", "size", "isdir", "info", "glob", "sizes")


@pytest.mark.parametrize("first", ["isfile", "exists", "isdir", "info", "glob", "size"])
def test_one_answer_serves_every_question(origin: Any, options: Options, first: str) -> None:
    """pandas asks isfile and info before it opens a file, and does all that twice: isfile passed max_age by, and asked each time."""
    url = origin.put("a.bin", content(3 * BLOCK))

    def asked(fs: Any, name: str) -> Any:
        return getattr(fs, name)([url] if name == "sizes" else url)

    fs = filesystem(options(), max_age=3600)
    asked(fs, first)
    assert origin.count("HEAD") == 1
    answers = [asked(fs, name) for name in QUESTIONS]
    assert answers == [True, True, 3 * BLOCK, False, fs.info(url), [url], [3 * BLOCK]]
    with fs.open(url) as file:
        assert file.size == 3 * BLOCK
    assert origin.count("HEAD") == 1

    async def work() -> None:
        fs = filesystem(options(), asynchronous=True, max_age=3600)
        session = await fs.fs.set_session()
        origin.forget()
        await asked(fs, f"_{first}")
        assert [
            await asked(fs, f"_{name}") if name != "sizes" else await fs._sizes([url]) for name in QUESTIONS
        ] == answers
        await session.close()

    asyncio.run(work())
    assert (origin.count("HEAD"), origin.count("GET")) == (1, 0)
    fs, n = filesystem(options()), len(QUESTIONS)
    origin.forget()
    assert [asked(fs, name) for name in QUESTIONS] == answers
    assert origin.count("HEAD") == n, "without max_age each question is asked"


def test_a_kept_answer_is_no_older_than_max_age(origin: Any, options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that was removed is there for max_age at most; one that was absent is asked for again each time."""
    now = [1000.0]
    monkeypatch.setattr("bufferpool.integrations.fsspec.time", SimpleNamespace(monotonic=lambda: now[0]))
    fs, url = filesystem(options(), max_age=60), f"{origin.url}/a.bin"
    assert (fs.isfile(url), fs.exists(url), fs.glob(url)) == (False, False, [])
    origin.put("a.bin", b"abc")
    assert (fs.isfile(url), fs.exists(url), fs.size(url)) == (True, True, 3)
    del origin.files["a.bin"]
    now[0] += 59
    assert (fs.isfile(url), fs.exists(url), fs.size(url)) == (True, True, 3)
    now[0] += 2
    assert (fs.isfile(url), fs.exists(url), fs.isdir(url), fs.glob(url)) == (False, False, False, [])
    with pytest.raises(FileNotFoundError):
        fs.size(url)
    origin.put("a.bin", b"abc")
    assert fs.isfile(url)
    del origin.files["a.bin"]
    fs.invalidate_cache()
    assert not fs.isfile(url)


def test_own_changes_are_seen_at_once(tmp_path: Path, options: Options) -> None:
    """Not only after max_age: what was said of a file before it was written or removed here is forgotten."""
    fs, path = filesystem(options(), "file", max_age=3600), str(tmp_path / "a.bin")
    assert not fs.exists(path)
    fs.pipe_file(path, b"abc")
    assert (fs.size(path), fs.isfile(path), fs.isdir(path), fs.isdir(str(tmp_path))) == (3, True, False, True)
    fs.pipe_file(path, b"abcdef")
    assert (fs.size(path), fs.sizes([path]), fs.cat_file(path)) == (6, [6], b"abcdef")
    with fs.open(path, "wb") as file:
        file.write(b"ab")
        assert fs.size(path) == 0, "it is in the buffer; what is said now is not kept"
    assert fs.size(path) == 2
    fs.mv(path, f"{path}.old")
    assert (fs.isfile(path), fs.isfile(f"{path}.old")) == (False, True)
    fs.rm(f"{path}.old")
    assert not fs.exists(f"{path}.old")


def test_errors_are_the_targets_and_belong_to_their_range(origin: Any, options: Options) -> None:
    """One missing file of a call must not fail the others, and its error is that of the target."""
    data = content(2 * BLOCK)
    url, fs = origin.put("a.bin", data), filesystem(options())
    found = fs.cat_ranges([url, f"{origin.url}/none", url], [0, 0, BLOCK], [9, 9, BLOCK + 9])
    assert (found[0], type(found[1]), found[2]) == (data[:9], FileNotFoundError, data[BLOCK : BLOCK + 9])
    with pytest.raises(FileNotFoundError):
        fs.cat_ranges([url, f"{origin.url}/none"], 0, 9, on_error="raise")
    with pytest.raises(FileNotFoundError):
        fs.open(f"{origin.url}/none")
    with fs.open(url) as file:
        del origin.files["a.bin"]
        assert file.read(9) == data[:9]  # in the pool
    gone = origin.put("b.bin", content(4 * BLOCK, 1))
    with fs.open(gone) as file:
        del origin.files["b.bin"]
        with pytest.raises(FileNotFoundError):
            file.read(9)


def test_calls_about_nothing(origin: Any, options: Options) -> None:
    url, fs = origin.put("a.bin", b"abc"), filesystem(options())
    assert fs.cat_ranges([], [], []) == []
    assert fs.cat_ranges([url], [2], [1]) == [b""]
    with pytest.raises(ValueError, match="as many starts"):
        fs.cat_ranges([url], [1, 2], [3, 4])
    with fs.open(url) as file:
        assert (file.read(0), file.seek(5), file.read(), file.readline()) == (b"", 5, b"", b"")


def test_files_of_an_archive(origin: Any, options: Options) -> None:
    """A chain of three: the blocks of the members of a remote zip file."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("in/a.bin", content(3 * BLOCK))
    url, given = origin.put("a.zip", packed.getvalue()), options()
    for _ in range(2):
        with fsspec.open(f"bufferpool::zip://in/a.bin::{url}", bufferpool=given) as file:
            file.seek(BLOCK + 5)
            assert file.read() == content(3 * BLOCK)[BLOCK + 5 :]


def test_the_url_of_a_path_can_be_opened(origin: Any, options: Options) -> None:
    """unstrip_protocol() gives bufferpool://http://..., of which fsspec.open() did not find the target; dask and others keep such URLs."""
    data, given = content(2 * BLOCK), options()
    path = origin.put("a.bin", data)
    fs = filesystem(given)
    url = fs.unstrip_protocol(path)
    assert url == f"bufferpool://{path}" == fs.unstrip_protocol(url)
    assert fs.cat_file(url, 0, 5) == data[:5]
    with fsspec.open(url, bufferpool=given) as file:
        assert file.read() == data


def test_references_to_parts_of_remote_files(origin: Any, options: Options) -> None:
    """kerchunk and VirtualiZarr name chunks as parts of files: the file system of references reads them through the pool."""
    data = content(8 * BLOCK)
    url, given = origin.put("a.bin", data), options()
    parts = [(n * BLOCK + 10, 2000) for n in (5, 1, 3)]
    references = {"version": 1, "refs": {f"x/{n}": [url, start, size] for n, (start, size) in enumerate(parts)}}
    for _ in range(2):
        fs = fsspec.filesystem("reference", fo=references, fs={"http": filesystem(given)}, skip_instance_cache=True)
        found = fs.cat([f"x/{n}" for n in range(3)])
        assert found == {f"x/{n}": data[start : start + size] for n, (start, size) in enumerate(parts)}
        assert fs.cat_file("x/1") == data[parts[1][0] : sum(parts[1])]

    async def work() -> None:
        inner = filesystem(given, asynchronous=True)
        options = {"fs": {"http": inner}, "asynchronous": True, "skip_instance_cache": True}
        fs = fsspec.filesystem("reference", fo=references, **options)
        assert await fs._cat_file("x/2") == data[parts[2][0] : sum(parts[2])]
        await (await inner.fs.set_session()).close()

    asyncio.run(work())
    assert origin.bytes_sent <= 8 * BLOCK


def test_a_full_tmpfs(tmp_path: Path) -> None:
    """Other programs have filled /dev/shm: a cache has no room, and that must not fail a read."""
    code = """
import fsspec, os, sys
data = bytes(range(256)) * 4096
with open(f"{sys.argv[1]}/data", "wb") as file:
    file.write(data)
options = dict(pool="full", budget="4MiB", steward=False, directory=sys.argv[1])
fs = fsspec.filesystem("bufferpool", target_protocol="file", **options)
assert fs.cat_file(f"{sys.argv[1]}/data", 0, 1000) == data[:1000]
with open(f"{sys.argv[1]}/filler", "wb", buffering=0) as filler:
    try:
        while filler.write(bytes(4096)):
            pass
    except OSError as error:
        print(error.errno)
for _ in range(2):
    assert fs.cat_file(f"{sys.argv[1]}/data") == data
os.unlink(f"{sys.argv[1]}/filler")
assert fs.cat_file(f"{sys.argv[1]}/data") == data
print(fs.blocks.pool.stats().spaces[0].resident, fs.blocks.pool.check())
"""
    assert on_small_tmpfs(code, tmp_path) == "28\n17 []\n"


def test_a_server_without_ranges_or_lengths(options: Options) -> None:
    """Such files have no blocks; they are read from the target as if the pool were not there."""
    from integrations.origin import Origin

    with Origin(ranges=False) as origin:
        data = content(3 * BLOCK)
        url, fs = origin.put("a.bin", data), filesystem(options())
        assert fs.cat_file(url) == data
        with fs.open(url) as file:
            assert file.read() == data


# ---- versions ------------------------------------------------------------------------


@pytest.mark.parametrize("validators", ["tag", "date", "both", "size"])
def test_a_changed_file_is_read_anew(options: Options, validators: str) -> None:
    """Old blocks of a file that has changed were served with new ones: half a Parquet file of each version."""
    from integrations.origin import Origin

    with Origin(tags=validators in ("tag", "both"), dates=validators in ("date", "both")) as origin:
        old, new = content(4 * BLOCK), content(4 * BLOCK + (validators == "size"), 1)
        url, fs = origin.put("a.bin", old, modified=1e9), filesystem(options())
        assert fs.cat_file(url, 0, 2 * BLOCK) == old[: 2 * BLOCK]
        origin.put("a.bin", new, modified=2e9)
        assert fs.cat_file(url) == new
        with fs.open(url) as file:
            assert file.read() == new


@pytest.mark.parametrize("validators", ["tag", "date", "size"])
def test_a_file_that_changes_between_two_reads(options: Options, validators: str) -> None:
    """The open file keeps the version that it began with: what is in the pool is read, and what is not raises."""
    from integrations.origin import Origin

    with Origin(tags=validators == "tag", dates=validators == "date") as origin:
        old, new = content(4 * BLOCK), content(4 * BLOCK + (validators == "size"), 1)
        url, fs = origin.put("a.bin", old, modified=1e9), filesystem(options())
        with fs.open(url, block_size=1) as file:
            assert file.read(100) == old[:100]
            origin.put("a.bin", new, modified=2e9)
            assert file.read(100) == old[100:200]
            file.seek(2 * BLOCK)
            with pytest.raises(RemoteChanged, match=r"a\.bin was changed.*open it again") as raised:
                file.read(100)
            assert isinstance(raised.value, OSError)
        with fs.open(url) as file:
            assert file.read() == new
        assert fs.cat_file(url) == new


def test_a_file_that_changes_within_one_call(origin: Any, options: Options) -> None:
    """All ranges of one call are of one version: the call starts over, and also gives up what it has had from the pool."""
    old, new = content(6 * BLOCK), content(6 * BLOCK, 1)
    url, fs = origin.put("a.bin", old), filesystem(options())
    assert fs.cat_file(url, 0, 100) == old[:100]

    def change(request: Any) -> None:
        origin.before_body = lambda request: None
        origin.put("a.bin", new)

    origin.before_body = change
    assert fs.cat_ranges([url] * 3, [0, 2 * BLOCK, 4 * BLOCK], [10, 2 * BLOCK + 10, 4 * BLOCK + 10]) == [
        new[start : start + 10] for start in (0, 2 * BLOCK, 4 * BLOCK)
    ]


def test_a_local_file_that_changes(tmp_path: Any, options: Options) -> None:
    """A target without coroutines, whose version is its times and its inode."""
    path, fs = tmp_path / "a.bin", filesystem(options(), "file")
    old, new = content(4 * BLOCK), content(4 * BLOCK, 1)
    path.write_bytes(old)
    with fs.open(str(path), block_size=1) as file:
        assert file.read(10) == old[:10]
        (tmp_path / "new").write_bytes(new)
        (tmp_path / "new").replace(path)
        file.seek(3 * BLOCK)
        with pytest.raises(RemoteChanged):
            file.read(10)
    assert fs.cat_file(str(path)) == new


# ---- processes -------------------------------------------------------------------------


def read_whole(url: str, given: dict[str, Any], go: Any = None) -> bytes:
    """In a child process."""
    fs = filesystem(given)
    if go is not None:
        go.wait(WAIT)
    return bytes(fs.cat_file(url))


def test_four_processes_fetch_each_block_once(origin: Any, options: Options, child: Any, spawn: Any) -> None:
    """Four workers that begin at the same time, and make the pool: the origin sent the file four times."""
    data = content(40 * BLOCK)
    url, given, go = origin.put("a.bin", data), options(), spawn.Barrier(4)
    children = [child(read_whole, url, given, go) for _ in range(4)]
    assert [each.result() for each in children] == [data] * 4
    assert origin.bytes_sent == len(data)


def open_and_read(url: str, given: dict[str, Any], go: Any) -> bytes:
    """In a child process."""
    fs = filesystem(given)
    assert fs.blocks.pool.budget_frames > 256
    go.wait(WAIT)
    with fs.open(url) as file:
        return bytes(file.read())


def test_four_processes_open_a_new_file_at_once(origin: Any, options: Options, child: Any, spawn: Any) -> None:
    """The first one asks for the first block together with the version; the others fetched that block, too, if they came a moment later."""
    data = content(40 * BLOCK)
    url, given, go = origin.put("a.nc", data), options(budget="32MiB"), spawn.Barrier(4)
    origin.latency_s = 0.05
    children = [child(open_and_read, url, given, go) for _ in range(4)]
    assert [each.result() for each in children] == [data] * 4
    assert (origin.bytes_sent, origin.count("HEAD")) == (len(data), 4)


def test_a_block_that_another_process_loads_meanwhile_is_not_fetched_again(
    origin: Any, options: Options, child: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A block was found absent, and loaded by another process; its page was taken for another block's, and its second page loaded."""
    data = content(10 * BLOCK)
    url, given = origin.put("a.bin", data), options()
    fs, obtain = filesystem(given), Blocks._obtain

    def late(blocks: Blocks, *args: Any) -> None:
        monkeypatch.undo()
        assert child(read_whole, url, given).result() == data
        obtain(blocks, *args)

    monkeypatch.setattr(Blocks, "_obtain", late)
    assert fs.cat_file(url) == data
    assert origin.bytes_sent == len(data)


def test_kill_in_the_middle_of_a_fetch(origin: Any, options: Options, child: Any) -> None:
    """The others wait for a process that is killed while it fetches; one of them must fetch instead."""
    data = content(8 * BLOCK)
    url, given = origin.put("a.bin", data), options()
    begun, end = threading.Event(), threading.Event()

    def hang(request: Any) -> None:
        origin.before_body = lambda request: None
        begun.set()
        end.wait(WAIT)

    origin.before_body = hang
    victim = child(read_whole, url, given)
    assert begun.wait(WAIT)
    others = [child(read_whole, url, given) for _ in range(2)]
    wait_until(lambda: origin.count("HEAD") == 3, "the others have asked for the file")
    os.kill(victim.pid, signal.SIGKILL)
    assert [each.result() for each in others] == [data] * 2
    end.set()
    assert origin.bytes_sent - len(data) <= len(data)  # the killed one's, if it is counted, and one more


def test_a_failure_is_not_that_of_another_process(origin: Any, options: Options) -> None:
    """A thread whose connection broke gets the error; another one that waited for the same block fetches it itself."""
    data = content(2 * BLOCK)
    url, given = origin.put("a.bin", data), options()
    begun, go = threading.Event(), threading.Event()

    def fail_once(request: Any) -> None:
        origin.before_body = lambda request: None
        begun.set()
        go.wait(WAIT)
        raise ConnectionResetError

    origin.before_body = fail_once
    found: list[Any] = []

    def read() -> None:
        try:
            found.append(filesystem(given).cat_file(url))
        except Exception as error:  # noqa: BLE001 - looked at below
            found.append(error)

    threads = [threading.Thread(target=read) for _ in range(2)]
    threads[0].start()
    assert begun.wait(WAIT)
    threads[1].start()
    wait_until(lambda: origin.count("HEAD") == 2, "the other has asked for the file")
    go.set()
    for thread in threads:
        thread.join(WAIT)
    assert data in found
    assert all(each == data or isinstance(each, Exception) for each in found)
    assert filesystem(given).cat_file(url) == data


# ---- the pool ----------------------------------------------------------------------------


def test_the_budget_holds(origin: Any, options: Options) -> None:
    """filesystem_spec#510: caches of fsspec grow without a bound. Data of eight times the budget, with a file held open."""
    given = options(budget="2MiB")
    fs = filesystem(given)
    data = [content(20 * BLOCK, n) for n in range(13)]
    urls = [origin.put(f"{n}.bin", each) for n, each in enumerate(data)]
    with fs.open(urls[0]) as first:
        for url, each in zip(urls, data, strict=True):
            assert fs.cat_file(url) == each
            assert first.read(1000) in data[0]
            stats = fs.blocks.pool.stats()
            assert stats.resident_bytes <= 2 << 20
    assert fs.blocks.pool.stats().spaces[0].pages >= 16 * 32


def read_parts(url: str, given: dict[str, Any], data: bytes, seed: int) -> None:
    """In a child process: three threads read parts of 24 blocks at random places."""

    def read(seed: int) -> bool:
        rng = random.Random(seed)
        with filesystem(given).open(url) as file:
            for _ in range(2):
                at = rng.randrange(len(data) - 24 * BLOCK)
                file.seek(at)
                if file.read(24 * BLOCK) != data[at : at + 24 * BLOCK]:
                    return False
        return True

    with ThreadPoolExecutor(3) as threads:
        assert list(threads.map(read, range(3 * seed, 3 * seed + 3))) == [True] * 3


def test_many_readers_of_a_tiny_pool(origin: Any, options: Options, child: Any) -> None:
    """Nine readers of 24 blocks at a time, of a pool of 16 frames, pinned what they had while they waited for frames that the others
    had pinned. Each lack of a frame was half a second, and what one had read ahead another one evicted: seconds became minutes, and the
    origin sent four times what was asked for."""
    data = content(200 * BLOCK)
    url, given = origin.put("a.bin", data), options(budget="1MiB")
    for each in [child(read_parts, url, given, data, seed) for seed in range(3)]:
        each.result()
    assert origin.bytes_sent < 2 * 9 * 2 * 24 * BLOCK


def test_a_read_that_fetches_pins_nothing(origin: Any, options: Options) -> None:
    """What it had pinned was what another read waited for, and the other way round."""
    data = content(30 * BLOCK)
    url, fs, pinned = origin.put("a.bin", data), filesystem(options(budget="1MiB")), set[int]()
    assert fs.cat_file(url, 0, 5 * BLOCK) == data[: 5 * BLOCK]
    origin.before_body = lambda request: pinned.add(fs.blocks.pool.stats().frames.pinned)
    assert fs.cat_file(url) == data
    assert pinned == {0}


def test_a_pool_full_of_pins_is_read_past(origin: Any, options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a frame each block was a request of its own, and each read waited for half a second."""
    from bufferpool.integrations import blocks

    monkeypatch.setattr(blocks, "FULL_S", 1e9)
    data = content(60 * BLOCK)
    url, fs = origin.put("a.bin", data), filesystem(options(budget="1MiB"))
    held = fs.blocks.pool.open_derived("held", 16, lambda n, out: out.fill(n), version="1")
    pages = [held[n] for n in range(16)]
    assert fs.cat_file(url, 0, 24 * BLOCK) == data[: 24 * BLOCK]
    assert origin.count("GET") <= 14
    waits = fs.blocks.pool.stats().exhausted
    origin.forget()
    assert fs.cat_file(url, 24 * BLOCK) == data[24 * BLOCK :]
    assert origin.count("GET") <= 2 + 1
    assert fs.blocks.pool.stats().exhausted == waits
    del pages


def test_what_users_of_other_caches_have_reported(origin: Any, options: Options) -> None:
    """A file that was opened and not read returned zeros at the next opening (fsspec's CachingFileSystem), a call for more than a block
    cache holds fetched all of it twice, and the two ends of a file were taken for one block."""
    data = content(9 << 20)  # the pool has 4 MiB
    url = origin.put("a.bin", data)
    with filesystem(options()).open(url):
        pass
    fs = filesystem(options())
    with fs.open(url) as file:
        assert file.read(1000) == data[:1000]
        file.seek(-1000, 2)
        assert file.read() == data[-1000:]
    origin.forget()
    assert fs.cat_file(url) == data
    assert origin.bytes_sent <= len(data), "parts were fetched twice"
    origin.forget()
    with fs.open(url) as file:
        assert file.read() == data
    assert origin.bytes_sent <= len(data), "parts were fetched twice"


def test_thousands_of_files(tmp_path: Path, options: Options) -> None:
    """A space for each file runs out after 4,096 of them."""
    fs = filesystem(options(budget="16MiB"), "file")
    paths = [f"{tmp_path}/{n}.bin" for n in range(4500)]
    for n, path in enumerate(paths):
        Path(path).write_bytes(b"%d" % n)
    assert fs.cat_ranges(paths, 0, 9) == [b"%d" % n for n in range(4500)]
    assert fs.cat_file(paths[7]) == b"7"
    assert len(fs.blocks.pool.stats().spaces) == 1


def test_blocks_that_want_the_same_page(origin: Any, options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two blocks of one page number thrash, and a reader must never get the other one's bytes: here all have one of three."""
    from bufferpool.integrations import blocks

    monkeypatch.setattr(blocks, "LEAST_PLACES", 1)
    monkeypatch.setattr(blocks, "PLACES_PER_FRAME", 0)
    fs = filesystem(options())
    assert len(fs.blocks.pool.space(blocks.SPACE)) <= 4
    data = content(9 * BLOCK)
    url = origin.put("a.bin", data)
    errors: list[BaseException] = []

    def read(seed: int) -> None:
        try:
            for n in range(40):
                at = (seed * 7 + n * 5) % 9 * BLOCK // 2
                assert fs.cat_file(url, at, at + 3 * BLOCK) == data[at : at + 3 * BLOCK]
        except BaseException as error:  # noqa: BLE001 - raised below
            errors.append(error)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT)
        assert not thread.is_alive()
    assert errors == []


def test_pools_of_other_sizes(origin: Any, options: Options) -> None:
    """An existing pool is accepted as it is, unless a block size is asked for that it does not have."""
    given = options()
    pool = bp.Pool.create(given["pool"], "4MiB", page_size="16KiB")
    data = content(100_000)
    url = origin.put("a.bin", data)
    assert filesystem(given).cat_file(url) == data
    assert (pool.page_size, pool.stats().spaces[0].resident) == (16384, 7)
    with pytest.raises(bp.errors.PoolMismatch, match="page_size is 16384"):
        filesystem(given | {"block_size": "32KiB"}).cat_file(url)
    pool.close()


def test_removed_spaces_are_made_anew(origin: Any, options: Options) -> None:
    """`bufferpool discard` removes the space while files are open: a cache must not fail for that."""
    data = content(3 * BLOCK)
    url, fs = origin.put("a.bin", data), filesystem(options())
    with fs.open(url, block_size=1) as file:
        assert file.read(10) == data[:10]
        fs.blocks.pool.discard("blocks")
        assert file.read() == data[10:]


def test_a_forked_child_reads(origin: Any, options: Options, child: Any) -> None:
    """A child of a process that has read, with locks and threads that only the parent has."""
    data = content(3 * BLOCK)
    url, given = origin.put("a.bin", data), options()
    assert filesystem(given).cat_file(url, 0, 10) == data[:10]
    assert child(read_whole, url, given, context="fork").result() == data


@pytest.mark.parametrize("target", ["http", "file"])
def test_what_the_parent_has_opened_is_read_in_a_forked_child(
    origin: Any, options: Options, target: str, tmp_path: Path
) -> None:
    """torch's workers are forked, with the open files of the dataset. fsspec's file systems raise "not fork-safe" there, and a file that
    was open waited for ever for the thread of an event loop, which only the parent has."""
    data = content(8 * BLOCK)
    path = origin.put("a.bin", data)
    if target == "file":
        path = str(tmp_path / "a.bin")
        Path(path).write_bytes(data)
    fs = filesystem(options(), target)
    with fs.open(path) as file:
        assert file.read(10) == data[:10]

        def read_there(n: int) -> None:
            """Reads blocks in a child, and in a child of it, which are of other processes than the file system."""
            file.seek(n * BLOCK)
            assert file.read(5) == data[n * BLOCK : n * BLOCK + 5]
            assert (
                fs.cat_file(path, (n + 1) * BLOCK, (n + 1) * BLOCK + 3) == data[(n + 1) * BLOCK : (n + 1) * BLOCK + 3]
            )
            assert fs.cat_ranges([path], [20], [25]) == [data[20:25]]
            with fs.open(path) as again:
                assert again.read() == data
            assert fs.info(path)["size"] == len(data)
            assert fs.isfile(path)

        for depth in (1, 2):
            pid = os.fork()
            if pid == 0:
                try:
                    signal.alarm(int(WAIT))
                    if depth == 2:
                        inner = os.fork()
                        if inner:
                            os._exit(os.waitstatus_to_exitcode(os.waitpid(inner, 0)[1]) & 255)
                    read_there(2 * depth)
                    os._exit(0)
                finally:
                    os._exit(1)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        read_there(6)


# ---- the cache type, options ------------------------------------------------------------------


def test_the_cache_type_of_any_file(origin: Any, options: Options) -> None:
    """fs.open(path, cache_type="bufferpool") of a file system that knows nothing of the pool."""
    import bufferpool.integrations.fsspec  # noqa: F401 - registers it

    data = content(5 * BLOCK)
    url, given = origin.put("a.bin", data), options()
    fs = fsspec.filesystem("http", skip_instance_cache=True)
    for _ in range(2):
        with fs.open(url, cache_type="bufferpool", cache_options=given, block_size=1 << 20) as file:
            assert (file.read(10), file.seek(-10, 2), file.read()) == (data[:10], len(data) - 10, data[-10:])
    assert origin.bytes_sent == 2 * BLOCK
    assert filesystem(given).cat_file(url) == data  # the same blocks
    assert origin.bytes_sent == len(data)


def test_other_caches_over_the_blocks(origin: Any, options: Options) -> None:
    """A reader that asks for fsspec's own cache type gets it, over the pool."""
    data = content(5 * BLOCK)
    url, fs = origin.put("a.bin", data), filesystem(options())
    for cache_type in ("readahead", "none", "all", "bytes"):
        with fs.open(url, cache_type=cache_type) as file:
            assert file.read() == data
            assert file.cache.name == cache_type
    assert origin.bytes_sent == len(data)


def test_options_are_not_swallowed(origin: Any, options: Options) -> None:
    url = origin.put("a.bin", b"abc")
    fs = filesystem(options())
    with pytest.raises(TypeError, match="no options \\['compresion'\\]"):
        fs.open(url, compresion="gzip")
    with pytest.raises(TypeError, match="has no option 'budgett': it has max_age, pool, budget, block_size, directory"):
        filesystem(options(budgett="1GiB"))
    with pytest.raises(TypeError, match=r"has no option 'client_kwargs'.* target_options="):
        fsspec.open(f"bufferpool::{url}", bufferpool=options(), client_kwargs={"trust_env": True})
    with pytest.raises(TypeError, match="has no option 'budgett': it has pool, budget, block_size, directory"):
        fs.fs.open(url, cache_type="bufferpool", cache_options=options(budgett="1GiB"))
    with pytest.raises(ValueError, match="name one target"):
        fsspec.filesystem("bufferpool", **options())
    with pytest.raises(NotImplementedError, match="max_gap"):
        fs.cat_ranges([url], 0, 1, max_gap=5)
    assert fs.cat_file(url) == b"abc"


@pytest.mark.parametrize(
    ("given", "error", "match"),
    [
        ({"budget": -5}, ValueError, "budget must not be negative"),
        ({"budget": 5}, ValueError, "budget must be at least 256.0 KiB"),
        ({"budget": "2 apples"}, ValueError, "budget must look like"),
        ({"budget": None}, TypeError, "budget must be a number of bytes"),
        ({"block_size": -1}, ValueError, "block_size must not be negative"),
        ({"block_size": 1000}, ValueError, "block_size must be a power of two"),
        ({"max_age": -1}, ValueError, "max_age must be"),
        ({"idle": -1}, ValueError, "idle must be"),
        ({"steward": "no"}, TypeError, "steward must be True or False"),
    ],
)
def test_wrong_values_are_refused_by_the_options_name(
    given: dict[str, Any], error: type[Exception], match: str
) -> None:
    """A budget of -5 was refused as a "capacity", when the first file was opened, and idle=-1 was no error: no steward ran."""
    with pytest.raises(error, match=match):
        filesystem(given, "memory")


def test_the_options_that_fsspec_gives_to_every_file_system(origin: Any, options: Options) -> None:
    """A URL's chain, copies, pickles, JSON, references and zarr pass them on."""
    url, given = origin.put("a.bin", b"abc"), options()
    more = {"use_listings_cache": False, "listings_expiry_time": 5, "max_paths": 9, "batch_size": 4, "loop": get_loop()}
    fs = filesystem(given, **more)
    assert fs.cat_file(url) == b"abc"
    chained, path = fsspec.core.url_to_fs(
        f"bufferpool::{url}", http={"block_size": 1 << 20}, bufferpool=given, mode="rb"
    )
    assert chained.cat_file(path) == b"abc"
    assert pickle.loads(pickle.dumps(chained)).cat_file(path) == b"abc"
    assert fsspec.AbstractFileSystem.from_json(chained.to_json()).cat_file(path) == b"abc"
    assert fsspec.filesystem("bufferpool", fs=fs.fs, skip_instance_cache=True, **given).cat_file(url) == b"abc"
    references = {"x": [url, 0, 2]}
    reference = fsspec.filesystem(
        "reference", fo=references, remote_protocol="bufferpool", remote_options={"target_protocol": "http", **given}
    )
    assert reference.fss["bufferpool"].cat_file(url) == b"abc"


def test_an_s3_client(origin: Any, options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    """S3 answers a range only of the version that If-Match names: no second question for each fetch."""
    pytest.importorskip("s3fs")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    old, new = content(4 * BLOCK), content(4 * BLOCK, 1)
    origin.put("bucket/a.bin", old)
    s3 = {"endpoint_url": origin.url, "key": "k", "secret": "s", "client_kwargs": {"region_name": "us-east-1"}}
    fs, path = fsspec.core.url_to_fs("bufferpool::s3://bucket/a.bin", s3=s3, **options())
    assert path == "bucket/a.bin"
    with fs.open(path, block_size=1) as file:
        assert file.read(100) == old[:100]
        assert (origin.count("HEAD"), origin.count("GET")) == (1, 1)
        origin.put("bucket/a.bin", new)
        file.seek(2 * BLOCK)
        with pytest.raises(RemoteChanged):
            file.read(100)
    assert fs.cat_file(path) == new
