"""One scrape in a form for tests, and a pool in which every kind of event has happened."""

from typing import Any

from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics

import bufferpool as bp
from bufferpool.prometheus import server
from tests.conftest import PAGE

Series = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def read(*names: str) -> Series:
    """One scrape in OpenMetrics by a collector of its own: {(name, labels): value}."""
    text = generate_openmetrics(server.registry_of(*names)).decode()
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for f in parse_openmetrics(text) for s in f.samples}


def get(series: Series, name: str, pool: bp.Pool | str, **labels: str) -> float:
    pool = pool if isinstance(pool, str) else pool.name
    if name.startswith("space_"):
        labels.setdefault("client", "")
    return series[f"bufferpool_{name}", tuple(sorted({"pool": pool, **labels}.items()))]


def busy_pool(make_pool: Any, data_file: Any, max_clients: int = 8) -> bp.Pool:
    """A pool in which every kind of event has happened."""
    pool: bp.Pool = make_pool(64 * PAGE, max_clients=max_clients, max_pages=1 << 21)
    table = pool.open_file(data_file(100), mode="r+", name="table")
    tiles = pool.open_derived("tiles", 50, lambda n, out: out.fill(n))
    work = pool.open_scratch("sort", n_pages=8)
    for n in range(100):
        table[n]
    for n in (*range(20), *range(10)):
        tiles[n]
    for n in range(8):
        with table.write(n) as page:
            page[0] = 1
    pool.flush()
    with work.write(1) as page:
        page[0] = 1
    with table.write(9) as page:
        page[0] = 2
    tiles.drop(0, 3)
    pool.trim(8 * PAGE)
    return pool
