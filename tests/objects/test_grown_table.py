"""One process extends the hash table of the objects, and another one, which knows the table as it was, uses a key.

That process took the number of buckets for damaged, because it was above the part of the table that the process knew, and
searched the chain in which the key had been before. So its first put made a second entry of the key: put returned True,
and the next get found the older value. A delete found nothing, and an eviction left the entry in its chain. check() said
that the key of an object did not lead to it. It was seen once, at a death, where the load of the machine had let one
process put hundreds of values between two of another.
"""

from typing import Any

import pytest

import bufferpool as bp
from tests.conftest import PAGE, WAIT

KEYS = 2000  # the table begins with 512 buckets, and has one for each value
TRIED = 4  # several keys, because not every one has moved to another chain


def _use_after_growth(name: str, call: str, key: int, ready: Any, grown: Any) -> bool:
    """What this process knows of the table is old when it uses the key."""
    with bp.Pool.attach(name) as pool:
        cache = pool.cache("values")
        cache.put(f"first-{key}", b"value")
        ready.release()
        assert grown.wait(WAIT)
        if call == "put":
            return cache.put(key, b"newer") and bytes(cache.get(key)) == b"newer"
        return cache.delete(key) and cache.get(key) is None


@pytest.mark.parametrize("call", ["put", "delete"])
def test_a_key_in_a_table_that_another_process_has_extended(make_pool, child, spawn, call):
    pool = make_pool(1000 * PAGE)
    cache = pool.cache("values")
    ready, grown = spawn.Semaphore(0), spawn.Event()
    processes = [child(_use_after_growth, pool.name, call, key, ready, grown) for key in range(TRIED)]
    for _ in processes:
        assert ready.acquire(timeout=WAIT)
    for key in range(KEYS):
        assert cache.put(key, b"value")
    grown.set()
    assert [process.result() for process in processes] == [True] * TRIED
    assert pool.check() == []
    for key in range(TRIED):
        found = cache.get(key)
        assert found is None if call == "delete" else bytes(found) == b"newer"
    assert len(cache) == KEYS + TRIED - (TRIED if call == "delete" else 0)
