"""What another size would give to a cache: the advice, beside caches that have that size."""

import json

import numpy as np
import pytest

import bufferpool as bp
from benchmarks.made_objects import heavy_tailed, zipf
from bufferpool.cli import main
from tests.objects.test_eviction import BUDGET, MakePool, cached


def trace(n: int = 40_000) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(5)
    keys = zipf(rng, n, 6000, 0.8)
    return keys, heavy_tailed(rng, 6000, 2000, 1.6, 60_000)[keys]


def test_the_advice_is_near_what_caches_of_those_sizes_miss(make_pool: MakePool) -> None:
    """Nothing said what a larger cache would gain, and a smaller one lose. It is within 0.06 of the hit ratio of a cache that has that size."""
    keys, sizes = trace()
    pool = make_pool(3 * BUDGET, max_capacity=8 * BUDGET)
    cached(pool, keys, sizes)
    (advice,) = pool.advise_caches()
    assert advice.name == "trace"
    assert advice.uses >= 2000
    assert [p.bytes for p in advice.points][3] == advice.bytes
    for factor in (0.5, 1, 2, 4):
        beside = make_pool(8 * BUDGET)
        missed = 0
        cache, block = beside.cache("trace", limit=int(advice.bytes * factor)), bytes(int(sizes.max()))
        for key, size in zip(keys.tolist(), sizes.tolist(), strict=True):
            if cache.get(key) is None:
                cache.put(key, block[:size])
                missed += size
        stats = cache.stats()
        point = next(p for p in advice.points if p.bytes == int(advice.bytes * factor))
        assert point.hit_ratio == pytest.approx(stats.hits / (stats.hits + stats.misses), abs=0.06), factor
        assert point.byte_hit_ratio == pytest.approx(1 - missed / int(sizes.sum()), abs=0.08), factor
    hit_ratios = [p.hit_ratio for p in advice.points]
    assert hit_ratios == sorted(hit_ratios)


def test_a_cache_whose_keys_all_fit_gains_nothing(make_pool: MakePool) -> None:
    """Hits that no put has followed are not recorded; the curve is that of all lookups all the same."""
    pool = make_pool(BUDGET)
    cache = pool.cache("small")
    for n in range(20_000):
        if cache.get(n % 300) is None:
            cache.put(n % 300, b"x" * 100)
        if n % 40 == 0:
            cache.put("other", n)
    (advice,) = pool.advise_caches()
    now = advice.points[3]
    assert now.hit_ratio > 0.98
    assert advice.points[-1].hit_ratio - now.hit_ratio < 0.01
    assert advice.large < 0.01


def test_a_cache_without_uses_has_no_advice(make_pool: MakePool) -> None:
    pool = make_pool(BUDGET)
    assert pool.advise_caches() == ()
    pool.cache("empty").put("k", b"v")
    (advice,) = pool.advise_caches()
    assert advice.points == ()
    assert pool.check() == []


def test_misses_of_keys_that_are_never_put_are_left_out_and_said(make_pool: MakePool) -> None:
    """Their size is not known: a lookup of what does not exist must not count as a value of no bytes."""
    pool = make_pool(BUDGET)
    cache = pool.cache("some")
    for n in range(2000):
        cache.get(("absent", n))
        if cache.get(n % 500) is None:
            cache.put(n % 500, b"x" * 1000)
    (advice,) = pool.advise_caches()
    assert 0.3 < advice.left_out < 0.7


def test_the_command_shows_the_caches(make_pool: MakePool, capsys: pytest.CaptureFixture[str]) -> None:
    pool = make_pool(BUDGET)
    cache = pool.cache("tiles")
    for n in range(2000):
        if cache.get(n % 700) is None:
            cache.put(n % 700, b"x" * 1000)
    assert main(["advise", pool.name]) == 0
    shown = capsys.readouterr().out
    assert "cache tiles" in shown
    assert "<- now" in shown
    assert main(["advise", pool.name, "--json"]) == 0
    (one,) = json.loads(capsys.readouterr().out)["caches"]
    assert one["name"] == "tiles"
    assert len(one["points"]) == 7
    assert isinstance(pool.advise_caches()[0], bp.CacheAdvice)
