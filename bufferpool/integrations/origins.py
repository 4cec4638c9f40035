"""Versions of remote files, and bytes of exactly one version, from any fsspec file system.

The version of a file is made of values that its server changes with its content: an entity tag, a generation, or a time, and always
the size. Bytes are kept only if they are known to be of the version that was asked for. The answer of an HTTP server contains its
version. An S3 server answers only if the version is the one in ``If-Match``. Any other file system is asked for the version once
more after the bytes have arrived.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import json
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from bufferpool.errors import RemoteChanged, caused
from bufferpool.integrations.blocks import Block, Fetched, Range
from bufferpool.integrations.extras import needs
from bufferpool.integrations.links import Link, link_of

with needs("'bufferpool[fsspec]'"):
    from fsspec.asyn import sync

clock = time.perf_counter
REQUEST_BYTES = 8 << 20
"""The most bytes of one request. A longer run of blocks is fetched by several requests at the same time."""
EXACT = ("version_id", "VersionId", "versionId", "generation", "ETag", "etag", "e_tag", "eTag")
"""Names of the entity tag, which a server changes with every change of the content, unless it begins with W/ (a weak tag)."""
LESS_EXACT = (
    "md5", "md5Hash", "md5Checksum", "Content-MD5", "content_md5", "content_hash", "Digest", "checksum", "chksum", "CRC", "sha", "hex", "blob_id",
    "ino", "mtime", "LastModified", "Last-Modified", "last_modified", "lastModified", "modified", "modifiedTime", "modify",
    "modificationTime", "server_modified", "last_write_time", "updated", "timeModified", "date_time", "created",
)  # fmt: skip
"""The names that file systems of fsspec give to what they know of a file's content and of its last change."""
NOT_OF_THE_ORIGIN = frozenset(
    [
        "asynchronous",
        "loop",
        "skip_instance_cache",
        "use_listings_cache",
        "listings_expiry_time",
        "max_paths",
        "batch_size",
        "block_size",
        "default_block_size",
        "cache_type",
        "cache_options",
        "default_cache_type",
        "default_fill_cache",
        "get_client",
    ]
)
"""Options that determine how a file system is used, not which one it is."""


def version_of(info: dict[str, Any]) -> str:
    """The version of a file, as a text made of what its file system says about it. Equal texts mean equal content."""
    exact = [f"{name}={info[name]}" for name in EXACT if info.get(name)]
    if exact and not any("=W/" in one for one in exact):
        return f"size={info.get('size')} {exact[0]}"
    return " ".join([f"size={info.get('size')}", *exact, *(f"{n}={info[n]}" for n in LESS_EXACT if info.get(n))])


def _plain(value: Any) -> Any:
    """A form of an option's value that is the same in every process. Of an object of another type it is the type."""
    if isinstance(value, dict):
        return {str(name): _plain(one) for name, one in value.items() if name not in NOT_OF_THE_ORIGIN}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(one) for one in (sorted(value) if isinstance(value, set | frozenset) else value)]
    return (
        value
        if isinstance(value, str | int | float | bool | None)
        else f"{type(value).__module__}.{type(value).__qualname__}"
    )


def _origin_of(fs: Any) -> bytes:
    """A text that distinguishes this file system from others whose files may have the same names."""
    said = [type(fs).__module__, type(fs).__qualname__, _plain(fs.storage_args), _plain(fs.storage_options)]
    return json.dumps(said, sort_keys=True).encode()


def _key_of(origin: bytes, path: str, version: str) -> bytes:
    named = b"\0".join((origin, path.encode(errors="surrogateescape"), version.encode()))
    return hashlib.blake2b(named, digest_size=16).digest()


def link_of_file(fs: Any, path: str) -> Link:
    """The link to the origin of a file."""
    return link_of(path, _origin_of(fs))


def key_of_any_version(fs: Any, path: str) -> bytes:
    """Distinguishes a file from others, whatever its version is."""
    return _key_of(_origin_of(fs), path, "any")


_successors: dict[int, tuple[Any, Any]] = {}


def of_this_process(fs: Any) -> Any:
    """The file system that does in this process what ``fs`` does. An asynchronous one has a thread, which a forked child does not have:
    there it is another one, made in the same way.

    The parent's is kept, because its end would close the connections of the parent.
    """
    made_in = getattr(fs, "_pid", None)
    if not fs.async_impl or fs.asynchronous or made_in == os.getpid():
        return fs
    _, found = _successors.get(id(fs), (fs, None))
    if found is None or found._pid != os.getpid():
        found = type(fs)(*fs.storage_args, **fs.storage_options)
        _successors[id(fs)] = fs, found
    return found


@dataclass(frozen=True, eq=False)
class RemoteFile:
    """One version of a remote file."""

    fs: Any
    path: str
    info: dict[str, Any] = field(repr=False)
    size: int
    version: str
    key: bytes = field(repr=False)
    link: Link = field(repr=False)

    @classmethod
    def of(cls, fs: Any, path: str, info: dict[str, Any]) -> RemoteFile:
        """The version that ``info`` describes, which must have a size."""
        version = version_of(info)
        origin = _origin_of(fs)
        key = _key_of(origin, path, version)
        return cls(fs, path, info, int(info["size"]), version, key, link_of(path, origin))

    def changed(self, now: str) -> RemoteChanged:
        """The error that says that the origin has another version now."""
        return caused(
            RemoteChanged(f"{self.path} was changed: {self.version} was opened, and {now} is there now; open it again"),
            errno.ESTALE,
        )


@dataclass
class Wanted:
    """A run of blocks of one file, which one request fetches."""

    file: RemoteFile
    blocks: list[int]
    """The position of each block's content in the answer."""
    start: int
    end: int


def requests_for(blocks: Sequence[Block], files: dict[bytes, RemoteFile], block_size: int) -> list[Wanted]:
    """The requests that fetch blocks. One request fetches neighbouring blocks, up to REQUEST_BYTES."""
    most = max(1, REQUEST_BYTES // block_size)
    found: list[Wanted] = []
    for at in sorted(range(len(blocks)), key=lambda i: blocks[i][:2]):
        block, last = blocks[at], found[-1] if found else None
        file = files[block.file]
        start, end = block.number * block_size, min((block.number + 1) * block_size, file.size)
        if last is not None and last.file is file and last.end == start and len(last.blocks) < most:
            last.blocks.append(at)
            last.end = end
        else:
            found.append(Wanted(file, [at], start, end))
    return found


class Fetches:
    """Fetches blocks of the files of one call. Calls of the file system run in ``loop`` if it is an asynchronous one."""

    def __init__(self, files: Iterable[RemoteFile], block_size: int, loop: asyncio.AbstractEventLoop | None) -> None:
        self._files = {file.key: file for file in files}
        self._block_size = block_size
        self._loop = loop
        self._pid = os.getpid()

    def _renew(self) -> None:
        """In a forked child: the thread of the loop does not exist here."""
        self._files = {key: replace(file, fs=of_this_process(file.fs)) for key, file in self._files.items()}
        self._loop = next((getattr(file.fs, "loop", None) for file in self._files.values()), None)
        self._pid = os.getpid()

    def __call__(self, blocks: list[Block]) -> Sequence[Fetched]:
        if self._pid != os.getpid():
            self._renew()
        wanted = requests_for(blocks, self._files, self._block_size)
        asynchronous = wanted[0].file.fs.async_impl
        answers = sync(self._loop, _fetch_all, wanted) if asynchronous else [_fetch_plainly(one) for one in wanted]
        out: list[Fetched] = [b""] * len(blocks)
        for one, answer in zip(wanted, answers, strict=True):
            for n, at in enumerate(one.blocks):
                first = n * self._block_size
                out[at] = answer if isinstance(answer, Exception) else answer[first : first + self._block_size]
        return out


class Early:
    """An end of a file of an HTTP server, asked for before the server has said which version it has, so that both answers take one latency.

    ``tail``: the last ``n_bytes``, else the first ones. They are used if they are of the wanted version.
    """

    def __init__(self, fs: Any, path: str, n_bytes: int, *, tail: bool) -> None:
        self._n_bytes, self._tail = n_bytes, tail
        self._answer = asyncio.run_coroutine_threadsafe(self._get(fs, path), fs.loop)

    async def _get(self, fs: Any, path: str) -> tuple[Any, bytes, float] | None:
        begin = clock()
        wanted = f"bytes=-{self._n_bytes}" if self._tail else f"bytes=0-{self._n_bytes - 1}"
        try:
            async with await _request(fs, path, wanted) as answer:
                return (answer.headers, await answer.read(), clock() - begin) if answer.status == 206 else None
        except Exception:  # noqa: BLE001 - a read that needs these bytes asks for them once more, and gets the error
            return None

    def range_of(self, file: RemoteFile, block_size: int) -> Range:
        """The bytes of the blocks that it has as a whole."""
        if not self._tail:
            return Range(file.key, 0, min(self._n_bytes // block_size * block_size, file.size))
        return Range(file.key, -(-self._first(file) // block_size) * block_size, file.size)

    def _first(self, file: RemoteFile) -> int:
        return max(0, file.size - self._n_bytes) if self._tail else 0

    def fetch(self, file: RemoteFile, block_size: int, blocks: list[Block]) -> Sequence[Fetched]:
        """The blocks; they are fetched if they did not come, or are not known to be of the wanted version."""
        content = self._content(file)
        if content is None:
            return Fetches([file], block_size, file.fs.loop)(blocks)
        starts = [block.number * block_size - self._first(file) for block in blocks]
        return [memoryview(content)[start : start + block_size] for start in starts]

    def _content(self, file: RemoteFile) -> bytes | None:
        answer = self._answer.result()
        if answer is None:
            return None
        headers, content, seconds = answer
        first = self._first(file)
        try:
            same = _same_version(file, headers, 206)
        except RemoteChanged:  # it has changed between the two answers
            return None
        whole = len(content) == min(self._n_bytes, file.size)
        if not same or not whole or not headers["Content-Range"].startswith(f"bytes {first}-"):
            return None
        file.link.note(len(content), seconds)
        return content


# ---- file systems with plain functions -------------------------------------------


def _fetch_plainly(one: Wanted) -> Fetched:
    file = one.file
    begin = clock()
    try:
        got = file.fs.cat_file(file.path, start=one.start, end=one.end)
        file.link.note(len(got), clock() - begin)
        _forget_listing(file)
        now = version_of(file.fs.info(file.path))
    except Exception as error:  # noqa: BLE001 - raised by the reader of this file; the others go on
        return error
    return _checked(one, got, now)


def _checked(one: Wanted, got: bytes, now: str) -> Fetched:
    if now != one.file.version:
        return one.file.changed(now)
    if len(got) != one.end - one.start:
        short = f"{one.file.path}: bytes {one.start} to {one.end} were asked for, and {len(got)} came; read again"
        return OSError(errno.EIO, short)
    return memoryview(got)


def _forget_listing(file: RemoteFile) -> None:
    """Makes the file system ask its server for the version, instead of using a listing that it has kept."""
    if getattr(file.fs, "dircache", None):
        file.fs.invalidate_cache(file.path.rpartition("/")[0])


# ---- file systems with coroutines ------------------------------------------------


async def _fetch_all(wanted: list[Wanted]) -> list[Fetched]:
    """Sends all requests at once. Afterwards it asks once for each file whether its version is still the wanted one."""
    unproven: dict[bytes, RemoteFile] = {}

    async def fetch(one: Wanted) -> Any:
        begin = clock()
        try:
            got, proven = await _method_of(one.file.fs)(one)
            one.file.link.note(len(got), clock() - begin)
        except Exception as error:  # noqa: BLE001 - raised by the reader of this file; the others go on
            return error
        if not proven:
            unproven[one.file.key] = one.file
        return got

    answers = await asyncio.gather(*map(fetch, wanted))
    versions = await asyncio.gather(*map(_version_now, unproven.values()))
    now = dict(zip(unproven, versions, strict=True))
    out: list[Fetched] = []
    for one, got in zip(wanted, answers, strict=True):
        version = now.get(one.file.key, one.file.version)
        wrong = next((each for each in (got, version) if isinstance(each, Exception)), None)
        out.append(_checked(one, got, version) if wrong is None else wrong)
    return out


async def _version_now(file: RemoteFile) -> Any:
    try:
        _forget_listing(file)
        return version_of(await file.fs._info(file.path))
    except Exception as error:  # noqa: BLE001 - raised by the reader of this file
        return error


def _method_of(fs: Any) -> Any:
    kinds = {kind.__module__ for kind in type(fs).__mro__}
    if "fsspec.implementations.http" in kinds:
        return _get_http
    return _get_s3 if "s3fs.core" in kinds else _get


async def _get(one: Wanted) -> tuple[bytes, bool]:
    return await one.file.fs._cat_file(one.file.path, start=one.start, end=one.end), False


async def _get_s3(one: Wanted) -> tuple[bytes, bool]:
    fs, tag = one.file.fs, one.file.info.get("ETag")
    if not tag:
        return await _get(one)
    bucket, key, version = fs.split_path(one.file.path)
    asked = {"VersionId": version} if version else {}
    asked |= {"Range": f"bytes={one.start}-{one.end - 1}", "IfMatch": tag}
    try:
        answer = await fs._call_s3("get_object", fs.req_kw, Bucket=bucket, Key=key, **asked)
    except OSError as error:
        if _status_of(error) != 412:  # 412 Precondition Failed
            raise
        _forget_listing(one.file)
        raise one.file.changed("another version") from error
    async with answer["Body"] as body:
        return await body.read(), answer.get("ETag") == tag


def _status_of(error: OSError) -> int | None:
    """The HTTP status of the answer that botocore's exception, the cause of the error, has."""
    answer = getattr(error.__cause__, "response", {})
    status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode")
    return None if status is None else int(status)


async def _request(fs: Any, path: str, wanted: str) -> Any:
    """The request for a range of a file of HTTPFileSystem, as an asynchronous context manager."""
    options = dict(fs.kwargs)
    headers = options.pop("headers", {}) | {"Range": wanted, "Accept-Encoding": "identity"}
    session = await fs.set_session()
    return session.get(fs.encode_url(path), headers=headers, **options)


async def _get_http(one: Wanted) -> tuple[bytes, bool]:
    file = one.file
    async with await _request(file.fs, file.path, f"bytes={one.start}-{one.end - 1}") as answer:
        if answer.status == 404:
            raise FileNotFoundError(errno.ENOENT, "the server has no such file any more", file.path)
        if answer.status == 416:
            raise file.changed("a shorter file")
        answer.raise_for_status()
        proven = _same_version(file, answer.headers, answer.status)
        got = await answer.read()
    return (got if answer.status == 206 else got[one.start : one.end]), proven


def _same_version(file: RemoteFile, headers: Any, status: int) -> bool:
    """True if the answer says that it is of the file's version, False if it does not say. Raises RemoteChanged."""
    size = headers.get("Content-Range", "").rpartition("/")[2] if status == 206 else headers.get("Content-Length", "")
    now = {"size": int(size) if size.isdigit() else None}
    now |= {name: headers[name] for name in ("ETag", "Last-Modified") if name in headers}  # those of the whole file
    for name, value in now.items():
        if value is not None and value != file.info.get(name, value):
            raise file.changed(version_of(now))
    return now["size"] is not None and len(now) > 1 and version_of(now) == file.version
