"""Makes the pictures of the README: `python docs/pictures.py` (needs the extras top and plot).

A pool under a small load of its own: readers with a hot set that moves, one writer, a
steward, a budget that is lowered on the way, and a worker that is killed.
"""

import asyncio
import multiprocessing
import os
import signal
import tempfile
import time
from pathlib import Path

import numpy as np

import bufferpool as bp
from bufferpool.cli import main
from bufferpool.cli.top.app import Top

IMAGES = Path(__file__).parent / "images"
NAME, PAGES, PAGE = "orders", 6000, 4096


def work(folder: str, path: str, seed: int) -> None:
    """Reads pages by a Zipf law, writes some, keeps a few pinned."""
    pool = bp.Pool.attach(NAME, directory=folder)
    orders = pool.open_file(path, "r+", name="orders")
    tiles = pool.open_derived("tiles", 4000, lambda page_no, out: out.fill(page_no % 251))
    random, held = np.random.default_rng(seed), []
    while True:
        for n in random.zipf(1.3, 300) % PAGES:
            orders[int(n)]
        tiles.read_many(random.integers(0, 1000, 20))
        if seed == 1:
            with orders.write(int(random.zipf(1.3) % PAGES)) as page:
                page[:8] = seed
        held = [orders[int(n)] for n in random.integers(0, PAGES, 12)]
        time.sleep(0.004)
    del held


async def picture_of_top(folder: str) -> None:
    """One screen of 110 by 32."""
    app = Top(NAME, folder, 1.0)
    async with app.run_test(size=(110, 32)) as pilot:
        await pilot.pause(4.5)
        (IMAGES / "top.svg").write_text(app.export_screenshot(title="bufferpool top orders"))


def make() -> None:
    """The load, the pictures, and no trace of either."""
    with (
        tempfile.TemporaryDirectory(dir="/dev/shm") as folder,
        tempfile.NamedTemporaryFile() as file,
        bp.Pool.create(NAME, "16MiB", page_size=PAGE, max_capacity="32MiB", directory=folder) as pool,
    ):
        file.write(bytes(PAGES * PAGE))
        file.flush()
        workers = [multiprocessing.Process(target=work, args=(folder, file.name, n), daemon=True) for n in range(4)]
        try:
            for worker in workers:
                worker.start()
            pool.start_steward(bp.Settings(flush_every=30.0, pressure=False))
            time.sleep(6)
            pool.resize("12MiB")
            os.kill(workers[3].pid or 0, signal.SIGKILL)
            time.sleep(2)
            asyncio.run(picture_of_top(folder))
            main(["map", NAME, "--directory", folder, "--output", str(IMAGES / "map.png")])
        finally:
            for worker in workers:
                worker.kill()
                worker.join()
            pool.unlink(discard=True)


if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
    make()
