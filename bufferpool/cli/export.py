"""``bufferpool export``: the metrics of pools over HTTP, for Prometheus."""

import argparse
import os

from bufferpool.cli.common import Commands, pool_name, tell
from bufferpool.client import segment_file

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
        print(exporter.text_of(*args.name, directory=args.directory), end="")
        return 0
    os.statvfs(
        args.directory or segment_file.SHM
    )  # raises if the directory is missing, in which case every scrape would fail
    if args.port is None:
        args.port = exporter.PORT
    try:
        server, thread = exporter.serve(*args.name, port=args.port, address=args.address, directory=args.directory)
    except OSError as error:
        where = f"{args.address}:{args.port}"
        raise OSError(f"{where} cannot be served: {error}; choose another --port or --address") from error
    host = f"[{args.address}]" if ":" in args.address else args.address
    what = ", ".join(args.name) or f"every pool in {args.directory or segment_file.SHM}"
    tell(f"serving {what} at http://{host}:{server.server_port}/metrics")
    try:
        thread.join()
    finally:
        server.shutdown()
    return 0


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
    sub.add_argument(
        "--once", action="store_true", help="print the metrics and end (for node_exporter's textfile collector)"
    )
