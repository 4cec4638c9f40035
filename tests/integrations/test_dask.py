"""dask: a cluster of several processes, on what they take for two machines, each with one pool."""

import os
import secrets
import shutil
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bufferpool as bp
from tests.conftest import PAGE, SHM, Pools, new_name, wait_until

pytest.importorskip("distributed")
da = pytest.importorskip("dask.array")

import distributed  # noqa: E402

from bufferpool.errors import NoWorkerPool  # noqa: E402
from bufferpool.integrations.dask import PoolPlugin, worker_pool  # noqa: E402

PAGES, ITEMS = 40, PAGE // 8
MACHINES = ("a", "b")


class Cluster:
    """Two workers on machine a and one on machine b. The machines are two folders of the tmpfs."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.pool_name = folder, new_name()
        for machine in MACHINES:
            (folder / machine).mkdir(parents=True)
        self.cluster = distributed.SpecCluster(
            workers={name: self._worker(folder / name[0]) for name in ("a1", "a2", "b1")},
            scheduler={"cls": distributed.Scheduler, "options": {"dashboard": False, "host": "127.0.0.1"}},
            silence_logs=False,
        )
        self.client = distributed.Client(self.cluster)
        plugin = PoolPlugin("4MiB", self.pool_name, directory="$BP_MACHINE", page_size=PAGE)
        self.client.register_plugin(plugin)

    def _worker(self, machine: Path) -> dict[str, Any]:
        # Out of the project's folder, the workers find the tests by their path only.
        paths = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
        options = {"nthreads": 1, "env": {"BP_MACHINE": str(machine), "PYTHONPATH": paths}, "host": "127.0.0.1"}
        return {"cls": distributed.Nanny, "options": options}

    def pools(self) -> list[str]:
        return sorted(path.parent.name for path in self.folder.glob(f"*/{self.pool_name}"))

    def close(self) -> None:
        self.client.close()
        self.cluster.close()


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    folder = SHM / f"bptest-{os.getpid()}-dask-{secrets.token_hex(3)}"
    made = Cluster(folder)
    yield made
    made.close()
    shutil.rmtree(folder)


def load(n: int, out: np.ndarray) -> None:
    out[:] = np.arange(ITEMS) + 1000 * n


def expected() -> np.ndarray:
    return np.arange(ITEMS) + 1000 * np.arange(PAGES)[:, np.newaxis]


def numbers(pool: bp.Pool) -> bp.Space:
    return pool.open_derived("numbers", PAGES, load, dtype=np.int64, version=1)


# ---- in tasks -----------------------------------------------------------------------------


def about_pool() -> tuple[str, int]:
    return worker_pool().path, sum(client.alive for client in worker_pool().clients())


def sum_of(page_no: int) -> int:
    return int(numbers(worker_pool())[page_no].sum())


def loads() -> int:
    return worker_pool().stats().loads


def first(space: bp.Space, page_no: int) -> int:
    return int(space[page_no][0])


def pages_of(pool: bp.Pool, name: str) -> int:
    return len(pool.space(name))


# ---- the tests ----------------------------------------------------------------------------


def test_each_machine_has_one_pool(cluster: Cluster) -> None:
    """Every worker had a cache of its own: each value was computed, and kept, once per process."""
    found = cluster.client.run(about_pool)
    assert sorted(Path(path).parent.name for path, _ in found.values()) == ["a", "a", "b"]
    assert {Path(path).parent.name: clients for path, clients in found.values()} == {"a": 2, "b": 1}
    futures = [
        cluster.client.submit(sum_of, n, workers=[worker], key=f"{worker}-{n}", pure=False)
        for worker in found
        for n in range(PAGES)
    ]
    sums = expected().sum(axis=1).tolist()
    assert cluster.client.gather(futures) == sums * len(found)
    assert set(cluster.client.run(loads).values()) == {PAGES}, "each machine loads a page once"


def test_a_space_is_an_array_for_dask(cluster: Cluster, pools: Pools) -> None:
    """``da.from_array(space)`` was an AttributeError."""
    array = da.from_array(numbers(pools.create()), chunks=(7, 100))
    assert (array.shape, array.dtype) == ((PAGES, ITEMS), np.int64)
    rows = expected()
    assert np.array_equal(array.compute(), rows)
    assert int(array[3:30:2, 5].sum().compute()) == rows[3:30:2, 5].sum()
    assert np.array_equal(array[[5, 1, 5], 10:20].compute(), rows[[5, 1, 5], 10:20])
    assert np.array_equal(array[array[:, 0] > 5000].compute(), rows[rows[:, 0] > 5000])
    assert np.array_equal(da.from_array(numbers(pools.create())).max(axis=0).compute(), rows.max(axis=0))


def test_spaces_and_pools_are_arguments_of_tasks(cluster: Cluster, pools: Pools) -> None:
    pool = pools.create()
    space = numbers(pool)
    futures = cluster.client.map(lambda n, space: first(space, n % PAGES), range(100), space=space, pure=False)
    assert cluster.client.gather(futures) == [1000 * (n % PAGES) for n in range(100)]
    assert pool.stats().loads == PAGES
    assert pool.stats().clients <= 1 + len(cluster.cluster.workers), "a client for each process, not for each task"
    assert cluster.client.submit(pages_of, pool, "numbers").result() == PAGES


def test_a_result_of_pages_that_change_is_computed_again(cluster: Cluster, pools: Pools) -> None:
    """dask takes a task with the name of a finished one for the same task, and returns the old result."""
    work = pools.create().open_scratch("work", 4)
    held = []
    for value in (1, 2):
        with work.write(3) as page:
            page[:] = value
        held.append(cluster.client.submit(first, work, 3))
        assert held[-1].result() == value


def test_a_worker_that_is_killed_finds_the_pool_again(cluster: Cluster) -> None:
    before = cluster.client.run(about_pool)
    assert cluster.client.submit(sum_of, 1, pure=False).result() == expected()[1].sum()
    victim = next(worker for worker, (path, _) in before.items() if Path(path).parent.name == "a")
    pid = cluster.client.run(os.getpid, workers=[victim])[victim]
    os.kill(pid, signal.SIGKILL)

    def again() -> bool:
        with suppress(OSError):  # the scheduler still talks to the killed worker
            found = cluster.client.run(about_pool, on_error="ignore")
            return victim not in found and sorted(clients for _, clients in found.values()) == [1, 2, 2]
        return False

    wait_until(again, "the nanny starts the worker again, and it attaches")
    assert set(cluster.client.run(loads).values()) == {PAGES}, "the pages are still there"


@pytest.fixture(params=["one process", "processes"])
def notebook(request: pytest.FixtureRequest) -> Iterator[tuple[Any, Path]]:
    """A client with two workers, in one process or in two, and the folder of their pools."""
    folder = SHM / f"bptest-{os.getpid()}-dask-{secrets.token_hex(3)}"
    folder.mkdir()
    cluster = distributed.LocalCluster(
        n_workers=2, threads_per_worker=2, dashboard_address="127.0.0.1:0", processes=request.param == "processes"
    )
    with cluster, distributed.Client(cluster) as client:
        yield client, folder
    assert not list(folder.iterdir()), "no pool is left"
    folder.rmdir()


def while_registered(began: Path, go_on: Path) -> tuple[int, int, bool]:
    """A task under way while the plugin is registered again."""
    pool = worker_pool()
    page = numbers(pool)[3]
    began.touch()
    while not go_on.exists():
        worker_pool()
    total = int(page.sum()), int(numbers(pool)[4].sum())
    del page
    assert pool.check() == []
    return *total, worker_pool().path == pool.path


@pytest.mark.parametrize("again", ["another", "the same name"])
def test_a_plugin_can_be_registered_again(again: str, notebook: tuple[Any, Path], tmp_path: Path) -> None:
    """A notebook's cell that ran twice made a second pool: worker_pool() raised NoWorkerPool from then on, in every task."""
    client, folder = notebook
    name = new_name() if again == "the same name" else None
    settings: dict[str, Any] = {"capacity": "4MiB", "pool_name": name, "directory": str(folder), "page_size": PAGE}
    client.register_plugin(PoolPlugin(**settings))
    workers = list(client.run(os.getpid))
    assert client.submit(sum_of, 1, pure=False).result() == expected()[1].sum()
    before = set(client.run(about_pool).values())
    running = [
        client.submit(while_registered, tmp_path / f"began{n}", tmp_path / "go", workers=[worker], pure=False)
        for n, worker in enumerate(workers)
    ]
    wait_until(lambda: all((tmp_path / f"began{n}").exists() for n in range(len(workers))), "the tasks run")
    client.register_plugin(PoolPlugin(**settings))
    after = set(client.run(about_pool).values())
    assert client.submit(sum_of, 1, pure=False).result() == expected()[1].sum(), "tasks find the pool"
    (tmp_path / "go").touch()
    sums = int(expected()[3].sum()), int(expected()[4].sum())
    assert client.gather(running) == [(*sums, again != "another")] * len(workers), "tasks under way keep their pool"
    assert len(before) == len(after) == 1, "the workers share one pool"
    assert (before == after) == (again != "another")
    assert len(list(folder.iterdir())) == 1, "the pool of the first plugin is removed"
    assert set(client.run(mapped, str(folder)).values()) == {1}, "and detached"


def mapped(folder: str) -> int:
    """How many pools of the folder this process has mapped."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return len({line.split(maxsplit=5)[5] for line in lines if folder in line})


@pytest.mark.parametrize("notebook", ["one process"], indirect=True)
def test_a_plugin_that_is_removed_removes_the_pool(notebook: tuple[Any, Path]) -> None:
    client, folder = notebook
    client.register_plugin(PoolPlugin("4MiB", directory=str(folder)))
    client.register_plugin(PoolPlugin("4MiB", "second", directory=str(folder)))
    assert len(list(folder.iterdir())) == 2
    with pytest.raises(NoWorkerPool, match=r"'second'.*'bufferpool', 'bufferpool-second'.*unregister_worker_plugin"):
        client.submit(about_pool, pure=False).result()
    client.unregister_worker_plugin("bufferpool-second")
    client.submit(about_pool, pure=False).result()
    client.unregister_worker_plugin("bufferpool")
    with pytest.raises(NoWorkerPool, match="register_plugin"):
        client.submit(about_pool, pure=False).result()
    assert not list(folder.iterdir())


@pytest.mark.parametrize("notebook", ["one process"], indirect=True)
def test_a_directory_of_an_unset_variable_is_refused(notebook: tuple[Any, Path]) -> None:
    """The error said that the directory $NOPE does not exist, and asked to create it."""
    client, folder = notebook
    for directory in ("$BP_NOPE", f"{folder}/${{BP_NOPE}}/x"):
        with pytest.raises(bp.errors.SegmentNotFound, match="variable BP_NOPE is not set in this worker"):
            client.register_plugin(PoolPlugin("4MiB", directory=directory))
    client.register_plugin(PoolPlugin("4MiB", directory=str(folder)))
    assert {Path(path).parent for path, _ in client.run(about_pool).values()} == {folder}


def test_without_a_plugin_there_is_no_pool_of_the_worker() -> None:
    with pytest.raises(NoWorkerPool, match="register_plugin"):
        worker_pool()


def test_the_pools_end_with_the_cluster(cluster: Cluster) -> None:
    """The last test of the cluster: a pool that outlived it would keep its memory until somebody found it."""
    assert cluster.pools() == ["a", "b"]
    cluster.close()
    assert cluster.pools() == []
