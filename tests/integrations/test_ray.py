"""Ray: spaces and caches as arguments of remote functions. Its start takes long, so this is a part of the soak."""

import os
import signal
from typing import Any

import numpy as np
import pytest

from tests.conftest import Pools, wait_until

pytestmark = pytest.mark.soak
ray: Any = pytest.importorskip("ray")


def load(n: int, out: np.ndarray) -> None:
    out[:] = n


@pytest.mark.filterwarnings("ignore")  # of Ray itself
def test_spaces_and_caches_are_arguments_of_remote_functions(pools: Pools, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each worker loaded, and kept, what all others had loaded; one that was killed left nothing behind."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    ray.init(num_cpus=2, object_store_memory=80 << 20, include_dashboard=False, log_to_driver=False)
    try:
        pool = pools.create("16MiB")
        space, cache = pool.open_derived("numbers", 50, load, dtype=np.float32), pool.cache("values")

        @ray.remote(max_retries=0)
        def page(space: Any, n: int) -> float:
            return float(space[n][0])

        @ray.remote(max_retries=0)
        def value(cache: Any, n: int) -> float:
            return float(cache.get_or_load(n, lambda key: np.full(1000, float(key))).sum())

        @ray.remote(max_retries=0)
        def die(space: Any) -> None:
            held = space[3]
            os.kill(os.getpid(), signal.SIGKILL)
            assert held.size

        assert ray.get([page.remote(space, n % 50) for n in range(200)]) == [n % 50 for n in range(200)]
        assert ray.get([value.remote(cache, n % 20) for n in range(100)]) == [1000 * (n % 20) for n in range(100)]
        assert (pool.stats().loads, cache.stats().loads) == (50, 20)
        with pytest.raises(ray.exceptions.RayError):
            ray.get(die.remote(space))
        assert ray.get(page.remote(space, 7)) == 7
    finally:
        ray.shutdown()
    wait_until(lambda: pool.check() == [] and pool.stats().clients == 1, "the workers have left")
