"""Metrics of every pool, for Prometheus.

A module of its own because it imports ``prometheus_client``, which most programs do not need.
"""

from bufferpool.prometheus.collector import PoolCollector
from bufferpool.prometheus.server import serve, wsgi_app

__all__ = ["PoolCollector", "serve", "wsgi_app"]
