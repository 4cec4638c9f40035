"""Metrics of every pool, for Prometheus.

A module of its own because it imports ``prometheus_client``, which most programs do not need.
"""

from bufferpool.prometheus.collector import PoolCollector
from bufferpool.prometheus.server import asgi_app, serve, wsgi_app

__all__ = ["PoolCollector", "asgi_app", "serve", "wsgi_app"]
