"""``bufferpool export``: the metrics of pools over HTTP, for Prometheus to scrape.

The process attaches to no pool. It may start before the pools and outlive them, and may be killed at any time.
"""

import html
import os
import sys
import threading
from collections.abc import Callable, Iterable
from typing import Any
from wsgiref.simple_server import WSGIServer

from prometheus_client import (
    CollectorRegistry,
    ProcessCollector,
    generate_latest,
    make_asgi_app,
    make_wsgi_app,
    start_http_server,
)

import bufferpool
from bufferpool.client import segment_file
from bufferpool.printable import printable
from bufferpool.prometheus.collector import PoolCollector

PORT = 9184
WSGIApp = Callable[..., Iterable[bytes]]


def registry_of(*names: str, directory: str | os.PathLike[str] | None = None) -> CollectorRegistry:
    """A registry with only the metrics of the named pools, or of all pools if no name is given."""
    registry = CollectorRegistry()
    registry.register(PoolCollector(*names, directory=directory))
    return registry


def wsgi_app(*names: str, directory: str | os.PathLike[str] | None = None) -> Callable[..., Iterable[bytes]]:
    """A WSGI application that serves the metrics, to be mounted at /metrics of a server."""
    app: Callable[..., Iterable[bytes]] = make_wsgi_app(registry_of(*names, directory=directory))
    return app


def asgi_app(*names: str, directory: str | os.PathLike[str] | None = None) -> Callable[..., Any]:
    """An ASGI application that serves the metrics, to be mounted at /metrics of a server."""
    app: Callable[..., Any] = make_asgi_app(registry_of(*names, directory=directory))
    return app


def text_of(*names: str, directory: str | os.PathLike[str] | None = None) -> str:
    """The metrics once, in the text format of Prometheus."""
    return generate_latest(registry_of(*names, directory=directory)).decode()


_PAGE = """\
<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>bufferpool exporter</title></head>
<body><h1>bufferpool exporter</h1>
<p>Version {version}. <a href="/metrics">/metrics</a>: the metrics; <a href="/healthz">/healthz</a>: whether the exporter answers.
One family alone: <a href="/metrics?name[]=bufferpool_up">/metrics?name[]=bufferpool_up</a>.</p>
<table><tr><th>pool</th><th>state</th></tr>{rows}</table></body></html>
"""


def _page(names: tuple[str, ...], directory: str | os.PathLike[str] | None) -> bytes:
    """The page of links, with the pools that there are and those that may not be read."""
    found = {os.path.basename(f.path): f.condition or "readable" for f in segment_file.find(directory)}
    closed = dict.fromkeys(segment_file.closed_to_us(directory), "may not be read by this user; it may be another file")
    states = {**found, **closed}
    shown = {name: states.get(name, "there is no such pool") for name in names} or states
    rows = "".join(f"<tr><td>{_text(name)}</td><td>{state}</td></tr>" for name, state in shown.items())
    return _PAGE.format(version=bufferpool.__version__, rows=rows).encode()


def _text(name: str) -> str:
    return html.escape(printable(name.encode(errors="surrogateescape").decode(errors="replace")))


def _head_of(app: WSGIApp, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Answers a HEAD request with the status and the headers of a GET request, the length of its body included."""
    answers: list[tuple[str, list[tuple[str, str]]]] = []
    body = app({**environ, "REQUEST_METHOD": "GET"}, lambda status, headers: answers.append((status, headers)))
    length = str(sum(len(part) for part in body))
    status, headers = answers[0]
    start_response(status, [*headers, ("Content-Length", length)])
    return [b""]


def site(registry: CollectorRegistry, names: tuple[str, ...], directory: str | os.PathLike[str] | None) -> WSGIApp:
    """The WSGI application of the exporter: ``/``, ``/metrics`` and ``/healthz``, for GET and HEAD."""
    metrics: WSGIApp = make_wsgi_app(registry)

    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        path, method = environ.get("PATH_INFO") or "/", environ["REQUEST_METHOD"]
        head = method == "HEAD"

        def answer(status: str, kind: str, body: bytes) -> Iterable[bytes]:
            start_response(status, [("Content-Type", f"{kind}; charset=utf-8"), ("Content-Length", str(len(body)))])
            return [b"" if head else body]

        if path == "/metrics":
            return metrics(environ, start_response) if not head else _head_of(metrics, environ, start_response)
        if method not in ("GET", "HEAD"):
            return answer("405 Method Not Allowed", "text/plain", b"use GET or HEAD\n")
        if path == "/healthz":  # reads no pool: it says that the exporter answers
            return answer("200 OK", "text/plain", b"ok\n")
        if path == "/":
            return answer("200 OK", "text/html", _page(names, directory))
        return answer("404 Not Found", "text/plain", b"there are /, /metrics and /healthz\n")

    return app


def serve(
    *names: str,
    port: int = PORT,
    address: str = "127.0.0.1",
    directory: str | os.PathLike[str] | None = None,
    tls: tuple[str, str] | None = None,
) -> tuple[WSGIServer, threading.Thread]:
    """Serves ``/``, ``/metrics`` and ``/healthz`` from a thread until ``server.shutdown()``; port 0 takes a free one (``server.server_port``).

    The metrics are those of the pools, and of this process (``process_…``). ``tls``: the files of the certificate and its key.

    Raises OSError if the port is in use, or the address is not one of this machine.
    """
    registry = registry_of(*names, directory=directory)
    ProcessCollector(registry=registry)
    certificate, key = tls or (None, None)
    server, thread = start_http_server(port, address, registry, certfile=certificate, keyfile=key)
    server.set_app(site(registry, names, directory))
    tell = server.handle_error

    def handle_error(request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # a client that has hung up needs no answer
            tell(request, client_address)

    server.handle_error = handle_error  # type: ignore[method-assign]
    return server, thread
