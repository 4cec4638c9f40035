"""Metrics of every pool, for Prometheus.

``import bufferpool`` does not import this package, because most programs do not need ``prometheus_client``.
"""

from bufferpool.prometheus.collector import PoolCollector
from bufferpool.prometheus.server import asgi_app, serve, wsgi_app

__all__ = ["PoolCollector", "asgi_app", "serve", "wsgi_app"]
