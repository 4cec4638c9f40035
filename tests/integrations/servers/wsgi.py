"""What a WSGI server serves: tiles that are computed once for all workers, and the pool's metrics."""

import os
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

import bufferpool as bp
from bufferpool.errors import SpaceNotFound

PAGES = 64
RELEASE = Path(os.environ["RELEASE_FILE"]).read_text().strip()


def render(page_no: int, out: np.ndarray) -> None:
    with open(os.environ["RENDERED"], "a") as log:
        log.write(f"{RELEASE} {page_no}\n")
    out[:] = page_no + 100 * int(RELEASE)


pool = bp.Pool.open(os.environ["POOL"], capacity="4MiB", page_size=4096)
tiles = pool.open_derived(f"tiles-{RELEASE}", n_pages=PAGES, loader=render, dtype=np.int64)
opened = Path(os.environ["RELEASE_FILE"]).parent
(opened / f"opened-{RELEASE}").touch()

# Workers of the release before may still answer requests; those of older ones have ended.
releases = sorted((space.opened_at, space.name) for space in pool.spaces() if space.name.startswith("tiles-"))
for _, name in releases[:-2]:
    with suppress(SpaceNotFound):  # another worker has removed it
        pool.discard(name)

metrics = bp.prometheus.wsgi_app(pool.name)


def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    path = environ["PATH_INFO"]
    if path == "/metrics":
        return metrics(environ, start_response)
    late = path.endswith("/late")  # a request that is still answered when the workers of the next release have begun
    if late:
        (opened / f"late-{RELEASE}").touch()
    while late and not (opened / f"opened-{int(RELEASE) + 1}").exists():
        time.sleep(0.01)
    page = tiles[int(path.split("/")[1])]
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"{os.getpid()} {page[0]}".encode()]
