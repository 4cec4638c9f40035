"""``bufferpool export``: the metrics of pools over HTTP, for Prometheus to scrape.

The process attaches to no pool. It may start before the pools and outlive them, and may be killed at any time.
"""

import os
import sys
import threading
from collections.abc import Callable, Iterable
from typing import Any
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, generate_latest, make_asgi_app, make_wsgi_app, start_http_server

from bufferpool.prometheus.collector import PoolCollector

PORT = 9184


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


def serve(
    *names: str, port: int = PORT, address: str = "127.0.0.1", directory: str | os.PathLike[str] | None = None
) -> tuple[WSGIServer, threading.Thread]:
    """Serves the metrics from a thread until ``server.shutdown()``; port 0 takes a free one (``server.server_port``).

    Raises OSError if the port is in use, or the address is not one of this machine.
    """
    server, thread = start_http_server(port, address, registry_of(*names, directory=directory))
    tell = server.handle_error

    def handle_error(request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # a client that has hung up needs no answer
            tell(request, client_address)

    server.handle_error = handle_error  # type: ignore[method-assign]
    return server, thread
