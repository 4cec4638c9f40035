"""An HTTP server with latency, ranges and entity tags, which counts what it sends: the origin of examples, tests and benchmarks.

It also answers what S3 clients ask of one object (HeadObject and GetObject, with ``If-Match``), because these are plain HTTP.

    with Origin(latency_s=0.02) as origin:
        url = origin.put("data.parquet", content)
"""

import hashlib
import re
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self


@dataclass(frozen=True)
class Stored:
    """One version of a file."""

    content: bytes
    headers: dict[str, str]


@dataclass(frozen=True)
class Request:
    """A request that the server has answered, and the bytes of the file that it has sent."""

    method: str
    name: str
    start: int
    end: int


class Line:
    """A link whose connections share a number of bytes per second."""

    PART = 64 << 10
    LATE_S = 0.005
    """A thread that was woken late sends sooner afterwards, but makes up for at most so many seconds."""

    def __init__(self, rate: float | None) -> None:
        self.rate = rate
        self._lock = threading.Lock()
        self._free_at = 0.0

    def send(self, write: Callable[[Any], Any], content: bytes | memoryview) -> None:
        """Writes the content at the rate of the link."""
        if self.rate is None:
            write(content)
            return
        for first in range(0, len(content), self.PART):
            part = content[first : first + self.PART]
            with self._lock:
                self._free_at = max(self._free_at, time.perf_counter() - self.LATE_S) + len(part) / self.rate
                wait = self._free_at - time.perf_counter()
            if wait > 0:
                time.sleep(wait)
            write(part)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that breaks a connection off is no fault of the server."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class Origin:
    """Files, and the server that sends them from threads of this process.

    ``rate``: the bytes per second that all connections share; None: as fast as the machine is.
    """

    def __init__(
        self, latency_s: float = 0.0, *, rate: float | None = None, tags: bool = True, dates: bool = True, ranges: bool = True,
    ) -> None:  # fmt: skip
        self.latency_s, self.tags, self.dates, self.ranges = latency_s, tags, dates, ranges
        self._line = Line(rate)
        self.files: dict[str, Stored] = {}
        self.requests: list[Request] = []
        self.before_body: Callable[[Request], None] = lambda request: None
        """Called for each GET, before an answer is chosen: a test may wait, change the file, or raise ConnectionError."""
        self._server = _Server(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def put(self, name: str, content: bytes, *, modified: float | None = None) -> str:
        """Stores a new version of a file; returns its URL."""
        headers = {"ETag": f'"{hashlib.md5(content, usedforsecurity=False).hexdigest()}"'} if self.tags else {}
        if self.dates:
            headers["Last-Modified"] = formatdate(time.time() if modified is None else modified, usegmt=True)
        self.files[name] = Stored(content, headers)
        return f"{self.url}/{name}"

    @property
    def bytes_sent(self) -> int:
        """The bytes of files that were sent since :meth:`forget`."""
        return sum(request.end - request.start for request in self.requests if request.method == "GET")

    def count(self, method: str) -> int:
        """The requests of one method since :meth:`forget`."""
        return sum(request.method == method for request in self.requests)

    def forget(self) -> None:
        """Begins to count anew."""
        self.requests = []

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        origin = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True
            wbufsize = 1 << 16

            def do_HEAD(self) -> None:
                self.answer(body=False)

            def do_GET(self) -> None:
                self.answer(body=True)

            def answer(self, *, body: bool) -> None:
                origin.answer(self, body)

            def log_message(self, *args: Any) -> None:
                pass

        return Handler

    def answer(self, handler: BaseHTTPRequestHandler, body: bool) -> None:
        """Answers one request."""
        time.sleep(self.latency_s)
        name = handler.path.lstrip("/").partition("?")[0]
        asked = re.fullmatch(r"bytes=(\d*)-(\d*)", handler.headers.get("Range", "")) if self.ranges else None
        if body:
            try:
                self.before_body(Request("GET", name, 0, 0))
            except ConnectionError:
                handler.close_connection = True
                return None
        stored = self.files.get(name)
        if stored is None:
            return self._send(handler, 404)
        tag = handler.headers.get("If-Match")
        if tag is not None and tag != stored.headers.get("ETag"):
            return self._send(handler, 412)
        size = len(stored.content)
        start, end, status = 0, size, 200
        headers = dict(stored.headers) | {"Accept-Ranges": "bytes" if self.ranges else "none"}
        headers["Content-Type"] = "application/octet-stream"
        if asked is not None:
            first, last = asked.groups()
            start = int(first) if first else max(0, size - int(last))
            end = min(size, int(last) + 1) if first and last else size
            if start >= size:
                return self._send(handler, 416, {"Content-Range": f"bytes */{size}"})
            status, headers["Content-Range"] = 206, f"bytes {start}-{end - 1}/{size}"
        self.requests.append(Request("GET" if body else "HEAD", name, start, end))
        return self._send(handler, status, headers, memoryview(stored.content)[start:end], body=body)

    def _send(
        self, handler: BaseHTTPRequestHandler, status: int, headers: dict[str, str] | None = None,
        content: bytes | memoryview = b"", *, body: bool = True,
    ) -> None:  # fmt: skip
        handler.send_response(status)
        for key, value in (headers or {}).items():
            handler.send_header(key, value)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        if body:
            try:
                self._line.send(handler.wfile.write, content)
            except ConnectionError:  # the client has been killed
                handler.close_connection = True
