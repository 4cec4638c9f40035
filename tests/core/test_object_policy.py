"""The eviction of objects of many sizes: over traces, beside other policies."""

from collections import OrderedDict

import numpy as np
import pytest

import bufferpool as bp
from benchmarks.made_objects import heavy_tailed, zipf
from benchmarks.object_yardsticks import YARDSTICKS, misses_of
from benchmarks.yardsticks import lru_misses


@pytest.fixture(scope="module")
def popular() -> tuple[np.ndarray, np.ndarray]:
    """Popularity by Zipf, and heavy-tailed sizes that do not depend on it."""
    rng = np.random.default_rng(1)
    keys = zipf(rng, 40_000, 4000, 0.9)
    return keys, heavy_tailed(rng, 4000)[keys]


def budget_of(keys: np.ndarray, sizes: np.ndarray, share: float) -> int:
    return int(share * sizes[np.unique(keys, return_index=True)[1]].sum())


def test_what_fits_misses_once_an_object(popular: tuple[np.ndarray, np.ndarray]) -> None:
    keys, sizes = popular
    result = bp.simulate_objects(keys, sizes, 4 * budget_of(keys, sizes, 1))
    assert result.misses == len(np.unique(keys))
    assert result.evictions == result.not_kept == 0
    assert result.missed_bytes == budget_of(keys, sizes, 1)
    assert result.hit_bytes + result.missed_bytes == sizes.sum()


def test_large_objects_are_found_among_many_small_ones() -> None:
    """The fault: samples of all objects hardly ever have one of the few large ones; they stay, and hot small ones leave."""
    rng = np.random.default_rng(2)
    small = zipf(rng, 60_000, 5000, 0.8)
    large = 5000 + np.arange(600)  # each used once, and large enough that ten of them fill half of the cache
    keys = np.insert(small, np.arange(600) * 100, large)
    sizes = np.where(keys < 5000, 200, 60_000)
    result = bp.simulate_objects(keys, sizes, 1_200_000)
    alone = bp.simulate_objects(small, np.full(len(small), 200), 1_200_000)
    assert result.misses <= alone.misses + 600 + 0.01 * len(keys)
    assert misses_of("LRU", zip(keys.tolist(), sizes.tolist(), strict=True), 1_200_000)[0] > 1.5 * result.misses


@pytest.mark.parametrize("share", [0.05, 0.2])
def test_it_is_near_the_best_in_objects_and_in_bytes(popular: tuple[np.ndarray, np.ndarray], share: float) -> None:
    """The fault: a policy that is good in one of the two ratios is up to twice as bad as the best in the other one."""
    keys, sizes = popular
    budget = budget_of(keys, sizes, share)
    others = [misses_of(name, zip(keys.tolist(), sizes.tolist(), strict=True), budget) for name in YARDSTICKS]
    usual, equal, by_bytes = (bp.simulate_objects(keys, sizes, budget, costs=c) for c in (None, sizes * 0 + 1, sizes))
    assert usual.misses <= 1.3 * min(misses for misses, _ in others)
    assert usual.missed_bytes <= 1.15 * min(missed for _, missed in others)
    assert equal.misses <= 1.15 * min(misses for misses, _ in others)
    assert by_bytes.missed_bytes <= 1.05 * min(missed for _, missed in others)


def test_dear_objects_stay_longer() -> None:
    """The fault: a cache that does not know what a load costs evicts the expensive values as readily as the cheap ones."""
    keys = np.random.default_rng(3).integers(0, 2000, 40_000)
    cheap = keys % 2  # the cheap ones are a byte longer, so that the bytes of the hits say how many they are
    result = bp.simulate_objects(keys, 1000 + cheap, 500_000, costs=np.where(cheap, 1.0, 10.0))
    hits_of_cheap = result.hit_bytes - 1000 * result.hits
    assert result.hits - hits_of_cheap > 3 * hits_of_cheap


def test_an_object_that_comes_back_is_remembered() -> None:
    """The fault: an object that is used again just after its eviction starts anew, and is evicted again."""
    rounds, hot, new = 60, np.arange(25), 75
    keys = np.concatenate([np.append(hot, 100 + new * i + np.arange(new)) for i in range(rounds)])
    result = bp.simulate_objects(keys, np.full(len(keys), 1000), 50_000)
    assert result.hits > 0.8 * len(hot) * rounds


def test_larger_than_a_quarter_of_the_budget_is_not_kept() -> None:
    result = bp.simulate_objects([1, 1, 2, 2], [100, 100, 26, 26], 100)
    assert (result.hits, result.misses, result.not_kept) == (0, 4, 4)
    assert bp.simulate_objects([2, 2], [25, 25], 100).hits == 1


def test_a_value_of_another_size_replaces_the_old_one() -> None:
    result = bp.simulate_objects([7, 7, 7, 7], [10, 20, 20, 10], 1000)
    assert (result.hits, result.misses, result.missed_bytes) == (1, 3, 40)


@pytest.mark.parametrize(
    ("keys", "sizes", "budget", "costs", "error"),
    [
        ([1, 2], [1], 100, None, ValueError),
        ([1, 2], [1, 0], 100, None, ValueError),
        ([1, 2], [1.5, 2.0], 100, None, TypeError),
        ([1, 2], [1, 2**32], 100, None, ValueError),
        ([1, 2], [1, 2], 0, None, ValueError),
        ([1, 2], [1, 2], 100, [1.0], ValueError),
        ([1, 2], [1, 2], 100, [1.0, 0.0], ValueError),
        ([1, 2], [1, 2], 100, [1.0, float("nan")], ValueError),
        ([1, 2], [1, 2], 100, [1.0, float("inf")], ValueError),
        ([-1, 2], [1, 2], 100, None, ValueError),
        ([1, 2], [1, 2], 1.5, None, TypeError),
    ],
)
def test_bad_arguments_are_refused(
    keys: list, sizes: list, budget: int, costs: list | None, error: type[Exception]
) -> None:
    with pytest.raises(error):
        bp.simulate_objects(keys, sizes, budget, costs=costs)


def test_an_empty_trace_is_no_error() -> None:
    result = bp.simulate_objects([], np.zeros(0, np.int64), "1MiB")
    assert (result.hits, result.misses) == (0, 0)
    assert np.isnan(result.miss_ratio)
    assert np.isnan(result.byte_miss_ratio)


class TestYardsticks:
    """The policies that the bars speak of are those of their papers: beside plain forms of them."""

    def test_lru_is_that_of_pages_if_all_sizes_are_equal(self) -> None:
        keys = np.random.default_rng(4).integers(0, 300, 5000)
        assert misses_of("LRU", ((k, 10) for k in keys.tolist()), 1000)[0] == lru_misses(keys, 100)

    def test_gdsf_evicts_the_least_value(self) -> None:
        rng = np.random.default_rng(5)
        sizes = rng.integers(1, 30, 60).tolist()
        values: dict[int, float] = {}
        uses, floor, misses, keys = [0] * 60, 0.0, 0, zipf(rng, 3000, 60, 0.8).tolist()
        for key in keys:
            if key not in values:
                misses += 1
                while sum(sizes[k] for k in values) + sizes[key] > 200:
                    floor, victim = min((value, k) for k, value in values.items())
                    del values[victim]
                uses[key] = 0
            uses[key] += 1
            values[key] = floor + uses[key] / sizes[key]
        assert misses_of("GDSF", ((k, sizes[k]) for k in keys), 200)[0] == misses

    def test_s3_fifo_keeps_a_reused_object_through_a_scan(self) -> None:
        uses = [(k, 10) for k in [1, 1, 1, *range(100, 300), 1]]
        policy = YARDSTICKS["S3-FIFO"](1000)
        assert [policy.use(*use) for use in uses][-1]
        assert not [YARDSTICKS["LRU"](1000).use(*use) for use in uses][-1]

    def test_w_tinylfu_does_not_admit_what_is_used_once(self) -> None:
        rng, policy = np.random.default_rng(6), YARDSTICKS["W-TinyLFU"](10_000)
        for key in rng.integers(0, 80, 2000).tolist():
            policy.use(key, 100)
        for key in range(1000, 1500):
            policy.use(key, 100)
        assert sum(policy.use(key, 100) for key in range(80)) > 70

    @pytest.mark.parametrize("name", YARDSTICKS)
    def test_none_holds_more_than_its_budget(self, name: str) -> None:
        """What a policy calls a hit was used before, and its bytes never exceed the budget."""
        rng, policy, seen = np.random.default_rng(7), YARDSTICKS[name](5000), OrderedDict[int, None]()
        sizes = heavy_tailed(rng, 400, 100, 1.0, 3000).tolist()
        for key in zipf(rng, 5000, 400, 0.8).tolist():
            assert not policy.use(key, sizes[key]) or key in seen
            seen[key] = None
            held = {
                "LRU": lambda: sum(policy.sizes.values()),
                "GDSF": lambda: sum(policy.sizes[k] for k in policy.values),
                "S3-FIFO": lambda: sum(policy.small.values()) + sum(policy.main.values()),
                "W-TinyLFU": lambda: sum(sum(queue.values()) for queue in policy.queues.values()),
            }[name]()
            assert held <= 5000
