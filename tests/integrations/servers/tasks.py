"""What a Celery worker works on: the same tiles."""

import os
import signal
import time
from pathlib import Path

from celery import Celery

from tests.integrations.servers.wsgi import pool, tiles

folder = Path(os.environ["BROKER"])
app = Celery("tasks", broker="filesystem://", backend=f"file://{folder / 'results'}")
app.conf.broker_transport_options = {
    "data_folder_in": str(folder / "queue"),
    "data_folder_out": str(folder / "queue"),
    "control_folder": str(folder / "control"),
    "polling_interval": 0.05,
}
app.conf.worker_prefetch_multiplier = 1
app.conf.worker_lost_wait = 0.5  # seconds until the task of a killed worker counts as lost


@app.task
def tile(page_no: int) -> tuple[int, int]:
    time.sleep(0.02)  # so that the other worker takes the next one
    return os.getpid(), int(tiles[page_no][0])


@app.task
def die(page_no: int) -> None:
    """Ends as by the kernel's OOM killer, with a page pinned. If it were killed while it waits for a task, Celery's other workers
    would stop."""
    page = tiles[page_no]
    os.kill(os.getpid(), signal.SIGKILL)
    assert page.size


@app.task
def about_pool() -> tuple[int, list[str]]:
    return pool.stats().loads, pool.check()
