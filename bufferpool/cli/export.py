"""``bufferpool export``: the metrics of pools over HTTP, for Prometheus."""

import argparse
import os

from bufferpool.cli.common import Commands, pool_name, tell
from bufferpool.client import segment_file
from bufferpool.observer import Observer

SLICE_S = 1.0  # of the wait: Python handles a signal that arrives just before a wait when the wait is over

_ABOUT = """\
Attaches to no pool and takes no client slot; each scrape reads the pools that exist then.
docs/metrics.md lists the metrics, dashboards/ has a Grafana dashboard and alerts.

examples:
  bufferpool export
  bufferpool export --port 9184 --address 0.0.0.0 orders tiles
  bufferpool export --once orders"""


def _export(args: argparse.Namespace) -> int:
    """Serves until interrupted. Raises OSError."""
    from bufferpool.prometheus import (
        server as exporter,
    )  # imported here, because only this command needs prometheus_client

    if args.once:
        for name in args.name:  # a file without its metrics looks like a pool without trouble
            with Observer(name, directory=args.directory):
                pass
        print(exporter.text_of(*args.name, directory=args.directory), end="")
        return 0
    os.statvfs(
        args.directory or segment_file.SHM
    )  # raises if the directory is missing, in which case every scrape would fail
    if args.port is None:
        args.port = exporter.PORT
    try:
        server, thread = exporter.serve(
            *args.name, port=args.port, address=args.address, directory=args.directory, tls=_tls(args)
        )
    except OSError as error:
        where = f"{args.address}:{args.port}"
        raise OSError(f"{where} cannot be served: {error}; choose another --port or --address") from error
    host = f"[{args.address}]" if ":" in args.address else args.address
    what = ", ".join(args.name) or f"every pool in {args.directory or segment_file.SHM}"
    scheme = "http" if args.tls_key is None else "https"
    tell(f"serving {what} at {scheme}://{host}:{server.server_port}/metrics")
    try:
        while thread.is_alive():
            thread.join(SLICE_S)
    finally:
        server.shutdown()
    return 0


def _tls(args: argparse.Namespace) -> tuple[str, str] | None:
    if (args.tls_certificate is None) != (args.tls_key is None):
        args.parser.error("TLS needs both --tls-certificate and --tls-key")
    return None if args.tls_key is None else (args.tls_certificate, args.tls_key)


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"a port is 0 to 65535, not {text!r}")
    return int(text)


def register(commands: Commands) -> None:
    """Adds this command."""
    sub = commands.add("export", _export, "serve the metrics of pools for Prometheus", _ABOUT, pool=False, js=False)
    sub.add_argument("name", metavar="NAME", nargs="*", type=pool_name, help="pools (default: all that you may read)")
    sub.add_argument("--port", type=_port, metavar="N", help="default: 9184; 0 is any free one")
    sub.add_argument("--address", default="127.0.0.1", help="default: %(default)s; 0.0.0.0 is every network")
    sub.add_argument("--tls-certificate", metavar="FILE", help="serve HTTPS with this certificate (PEM)")
    sub.add_argument("--tls-key", metavar="FILE", help="and its key")
    sub.add_argument(
        "--once", action="store_true", help="print the metrics and end (for node_exporter's textfile collector)"
    )
