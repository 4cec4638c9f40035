"""Shares of spaces: a limit that a space cannot exceed, and a reserve that others cannot take."""

import os
import pickle
import signal

import numpy as np
import pytest

import bufferpool as bp
from bufferpool.errors import PoolExhausted, PoolReadOnly, SpaceRemoved, TooManySpaces
from tests.conftest import PAGE

FRAMES = 128


def load(page_no, out):
    out[:] = page_no % 251


@pytest.fixture
def pool(make_pool):
    return make_pool(FRAMES * PAGE, max_capacity=2 * FRAMES * PAGE)


def resident(pool, name):
    return next(s.resident for s in pool.stats().spaces if s.name == name)


def use(space, pages):
    for n in pages:
        assert space[n][0] == n % 251


@pytest.mark.parametrize("how", ["one by one", "read_many", "prefetch", "scan"])
def test_a_scan_of_a_limited_space_leaves_the_others_in_the_pool(pool, how):
    """A tenant that scanned its table took the frames of all others, and no argument prevented it."""
    other = pool.open_derived("other", 64, load)
    use(other, range(64))
    space = pool.open_derived("tenant", 1000, load, limit=16 * PAGE)
    if how == "one by one":
        use(space, range(1000))
    elif how == "read_many":
        assert (space.read_many(range(1000))[:, 0] == np.arange(1000) % 251).all()
    elif how == "prefetch":
        for first in range(0, 1000, 10):
            space.prefetch(range(first, first + 10))
    else:
        assert [int(page[0]) for page in space.scan()] == [n % 251 for n in range(1000)]
    assert 0 < resident(pool, "tenant") <= 16
    assert resident(pool, "other") == 64
    assert pool.check() == []


def test_the_pages_that_are_used_most_are_kept_within_the_limit(pool):
    """What takes the frame of a page of its own space must not be the page that was used last."""
    space = pool.open_derived("tenant", 1000, load, limit=16 * PAGE)
    for n in range(100, 400):
        use(space, [0, 1, 2, n])
    before = next(s.misses for s in pool.stats().spaces)
    use(space, [0, 1, 2])
    assert next(s.misses for s in pool.stats().spaces) == before


def test_a_reserve_is_not_taken_by_scans_of_others(pool):
    """A small table that is used rarely was gone after each scan of a large one."""
    kept = pool.open_derived("kept", 64, load, reserve=40 * PAGE)
    use(kept, range(64))
    use(pool.open_derived("large", 2000, load), range(2000))
    assert resident(pool, "kept") >= 40
    use(pool.open_derived("larger", 2000, load), range(2000))
    assert resident(pool, "kept") >= 40
    use(kept, range(64))
    assert pool.check() == []


def test_a_reserve_is_not_lent_to_caches(pool):
    """A cache without a limit may have half of the pool, and three quarters were reserved."""
    kept = pool.open_derived("kept", 96, load, reserve=96 * PAGE)
    use(kept, range(96))
    cache = pool.cache("values")
    for n in range(4 * FRAMES):
        cache.put(n, bytes(PAGE))
    assert resident(pool, "kept") == 96
    assert pool.stats().lent_bytes <= 32 * PAGE
    assert pool.check() == []


def test_a_reserve_that_comes_late_is_taken_back_from_caches(pool):
    cache = pool.cache("values")
    for n in range(4 * FRAMES):
        cache.put(n, bytes(PAGE))
    space = pool.open_derived("kept", 100, load, reserve=100 * PAGE)
    use(space, range(100))
    assert resident(pool, "kept") == 100
    assert pool.check() == []


def test_a_smaller_limit_holds_at_once(pool):
    space = pool.open_derived("tenant", 100, load)
    use(space, range(100))
    space.set_share(limit=8 * PAGE)
    assert resident(pool, "tenant") <= 8
    space.set_share(limit=64 * PAGE)
    use(space, range(100))
    assert resident(pool, "tenant") == 64


def test_pinned_pages_within_the_limit_raise_what_a_full_pool_raises(pool):
    """The limit is a limit: a tenant that holds its pages may not take the frames of others instead."""
    space = pool.open_derived("tenant", 100, load, limit=8 * PAGE)
    held = [space[n] for n in range(8)]
    with pytest.raises(PoolExhausted, match=r"'tenant' has 8 pages and may have 8.*pinned.*set_share"):
        space[8]
    use(pool.open_derived("other", 100, load), range(100))
    held.pop()
    use(space, range(8, 20))
    assert pool.check() == []


def test_dirty_pages_within_the_limit_are_flushed(pool, tmp_path):
    """A tenant that only writes must be able to continue, within its limit."""
    path = tmp_path / "file"
    path.write_bytes(bytes(200 * PAGE))
    with pool.open_file(path, "r+", limit=8 * PAGE) as space:
        for n in range(200):
            with space.write(n) as page:
                page[:] = n
            assert resident(pool, "file") <= 8
        pool.flush(space)
    assert np.fromfile(path, np.uint8).reshape(200, PAGE)[:, 0].tolist() == list(range(200))


def test_appends_and_drops_are_counted(pool, tmp_path):
    """A page that was dropped left a frame that nobody else of the space could take, or one more than allowed."""
    space = pool.open_file(tmp_path / "file", "w+", limit=8 * PAGE)
    for n in range(40):
        with space.append() as page:
            page[:] = n
        if n % 3 == 0:
            pool.flush(space)
            space.drop(0, n + 1)
    pool.flush(space)
    assert [int(space[n][0]) for n in range(40)] == list(range(40))
    assert resident(pool, "file") == 8
    assert pool.check() == []


def test_a_load_that_fails_is_not_counted(pool):
    """A loader that fails a hundred times had used up the limit."""

    def fails(page_no, out):
        if page_no >= 50:
            raise OSError("gone")
        load(page_no, out)

    space = pool.open_derived("tenant", 100, fails, limit=8 * PAGE)
    for n in range(50, 100):
        with pytest.raises(bp.BufferPoolError):
            space[n]
    held = [space[n] for n in range(8)]
    assert len(held) == 8


def test_who_dies_while_loading_is_not_counted(pool):
    """A process that was killed in a loader left a page that nobody has in the count, for ever."""

    def dies(page_no, out):
        if page_no >= 50:
            os.kill(os.getpid(), signal.SIGKILL)
        load(page_no, out)

    space = pool.open_derived("tenant", 100, dies, limit=8 * PAGE)
    use(space, range(8))
    for n in range(50, 58):
        child = os.fork()
        if child == 0:
            space[n]
            os._exit(0)
        assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
        pool.reap()
    held = [space[n] for n in range(8)]
    assert len(held) == 8
    assert pool.check() == []


def test_the_share_is_set_by_any_process_and_ends_with_the_space(pool):
    """A copy that is unpickled must not bring the share of the time of its pickle back."""
    space = pool.open_derived("tenant", 100, load, limit=16 * PAGE, reserve=8 * PAGE)
    packed = pickle.dumps(space)
    pool.open_derived("tenant", 100, load, limit=32 * PAGE)
    copy = pickle.loads(packed)
    assert copy[3][0] == 3
    one = next(s for s in pool.stats().spaces if s.name == "tenant")
    assert (one.limit, one.reserve) == (32 * PAGE, 8 * PAGE)
    space.remove()
    with pytest.raises(SpaceRemoved):
        space.set_share(limit=16 * PAGE)
    again = pool.open_derived("tenant", 100, load)
    use(again, range(100))
    one = next(s for s in pool.stats().spaces if s.name == "tenant")
    assert (one.limit, one.reserve, one.resident) == (0, 0, 100)


def test_a_pool_that_shrinks_below_its_reserves_keeps_a_part_of_each(make_pool):
    pool = make_pool(FRAMES * PAGE)
    one = pool.open_derived("one", 100, load, reserve=50 * PAGE)
    two = pool.open_derived("two", 100, load, reserve=50 * PAGE)
    use(one, range(50))
    use(two, range(50))
    pool.resize(FRAMES * PAGE // 2)
    use(pool.open_derived("other", 1000, load), range(1000))
    assert resident(pool, "one") >= 20
    assert resident(pool, "two") >= 20
    pool.trim(pool.capacity)
    assert pool.check() == []


def test_wrong_shares_are_refused(pool, make_pool):
    """Each with the name of the argument, before the space is there."""
    for wrong, text in (
        ({"limit": 7 * PAGE}, "limit must be at least 8 pages"),
        ({"limit": 0}, "limit"),
        ({"limit": 10 * PAGE, "reserve": 11 * PAGE}, "reserve .* must not be above limit"),
        ({"reserve": -1}, "reserve must not be negative"),
    ):
        with pytest.raises(ValueError, match=text):
            pool.open_derived("d", 10, load, **wrong)
    with pytest.raises(TypeError, match="limit"):
        pool.open_derived("d", 10, load, limit=1.5)
    assert pool.stats().spaces == []
    space = pool.open_derived("d", 10, load, limit=10 * PAGE)
    with pytest.raises(ValueError, match="must not be above its limit"):
        space.set_share(reserve=11 * PAGE)
    other = pool.open_derived("e", 10, load)
    with pytest.raises(ValueError, match="seven eighths"):
        other.set_share(reserve=FRAMES * PAGE)
    reader = bp.Pool.attach(pool.name, mode="r")
    with pytest.raises(PoolReadOnly):
        reader.open_derived("d", 10, load, limit=10 * PAGE)
    reader.close()


def test_more_than_64_shares_are_refused(pool):
    for n in range(64):
        pool.open_derived(f"d{n}", 10, load, limit=8 * PAGE)
    with pytest.raises(TooManySpaces, match="64 spaces"):
        pool.open_derived("one more", 10, load, limit=8 * PAGE)
    pool.space("d5").remove()
    pool.open_derived("one more", 10, load, limit=8 * PAGE)
    for n in range(6, 64):
        use(pool.open_derived(f"d{n}", 10, load), range(10))
        assert resident(pool, f"d{n}") == 8
    assert pool.check() == []
