"""What a read fetches beside its own blocks depends on the link to the origin, and on whether such blocks were read before."""

import itertools
import os
import random
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest

pytest.importorskip("fsspec")
pytest.importorskip("aiohttp")

from bufferpool.integrations.links import LINKS, Link, Window, link_of
from tests.integrations.test_fsspec import BLOCK, content, filesystem

Options = Callable[..., dict[str, Any]]
MIB = 1 << 20
FAST, SLOW = 500e6, 50e6  # bytes per second


def link(rate: float | None, latency_s: float = 0.02, *, n: int = 8) -> Link:
    """A link that has seen small and large requests at a rate; None: no request."""
    made = Link()
    for _ in range(0 if rate is None else n):
        assert rate is not None
        for n_bytes in (BLOCK, 2 * MIB):
            made.note(n_bytes, latency_s + n_bytes / rate)
    return made


# ---- the estimate ------------------------------------------------------------------------


@pytest.mark.parametrize(("rate", "latency_s"), [(500e6, 0.02), (50e6, 0.02), (20e6, 0.2), (1e9, 0.001)])
def test_the_window_is_what_arrives_in_half_a_latency(rate: float, latency_s: float) -> None:
    window = link(rate, latency_s).window_bytes
    assert window == pytest.approx(rate * latency_s / 2, rel=0.15)


def test_nothing_is_known_of_few_requests_or_of_requests_of_one_size() -> None:
    """Equal requests do not say how much of their time is latency: eight of 8 MiB on a slow link passed for a latency of 0.8 s."""
    made = Link()
    assert made.window_bytes == 0
    for _ in range(50):
        made.note(8 * MIB, 0.8)
    assert made.window_bytes == 0
    made.note(BLOCK, 0.02)
    assert made.window_bytes == 0, "one small request may have been an outlier"
    small = Link()
    for _ in range(50):
        small.note(BLOCK, 0.02)
    assert small.window_bytes == 0


@pytest.mark.parametrize("n_bytes", [BLOCK, 2 * MIB])
@pytest.mark.parametrize("seconds", [0.0001, 30.0], ids=["at once", "after a pause"])
def test_one_outlier_does_not_change_the_window(n_bytes: int, seconds: float) -> None:
    """An answer of a nearer cache, and one that had to wait for a process that was stopped."""
    made = link(FAST, n=16)
    before = made.window_bytes
    made.note(n_bytes, seconds)
    assert made.window_bytes == pytest.approx(before, rel=0.2)


def test_the_window_follows_the_link() -> None:
    """A link that has become slow is not taken for a fast one for ever."""
    made = link(FAST)
    for _ in range(20):
        for n_bytes in (BLOCK, 2 * MIB):
            made.note(n_bytes, 0.02 + n_bytes / 10e6)
    assert made.window_bytes < 0.2 * MIB


def test_a_clock_that_stands_still_says_nothing() -> None:
    made = Link()
    for _ in range(20):
        made.note(BLOCK, 0.0)
        made.note(2 * MIB, 0.0)
    assert made.window_bytes == 0


def test_a_link_is_of_a_host_or_of_a_bucket() -> None:
    assert link_of("http://a.example/x/1", b"one") is link_of("http://a.example/y/2", b"another")
    assert link_of("http://a.example/x", b"") is not link_of("http://b.example/x", b"")
    assert link_of("bucket/x", b"one") is link_of("bucket/y/z", b"one")
    assert link_of("bucket/x", b"one") is not link_of("other/x", b"one")
    assert link_of("bucket/x", b"one") is not link_of("bucket/x", b"another account")
    kept = link_of("http://a.example/x/1", b"")
    for n in range(LINKS - 1):
        link_of(f"http://{n}.example/", b"")
    assert link_of("http://a.example/x/1", b"") is kept, "the latest are kept"
    for n in range(LINKS):
        link_of(f"http://{n}.other/", b"")
    assert link_of("http://a.example/x/1", b"") is not kept, "a crawler's million hosts must not remain"


def test_neighbourhoods_that_nobody_reads_are_fetched_no_more() -> None:
    """And they are fetched again when reads are near each other: by those that were only considered."""
    made = link(FAST)
    fetched = [made.is_worth(Window(b"f", 1000 * n, 1000 * n, range(1000 * n, 1000 * n + 50))) for n in range(30)]
    assert sum(fetched) <= 4, "the first guess"
    back = []
    for n in range(100, 110):
        back.append(made.is_worth(Window(b"f", 1000 * n, 1000 * n, range(1000 * n, 1000 * n + 50))))
        made.read(b"f", 1000 * n + 20, 0)
    assert (back[0], back[-1]) == (False, True)
    assert made.is_worth(Window(b"g", 0, 0, range(50))), "of another file of this origin, too"


# ---- what is fetched ---------------------------------------------------------------------------


def reads(
    fs: Any, url: str, places: Iterable[tuple[int, int]], given: Link, data: bytes, most: int | None = None
) -> None:
    """Reads parts of a file whose origin has a link."""
    with fs.open(url, block_size=most) as file:
        object.__setattr__(file.reader.file, "link", given)
        for start, n in places:
            file.seek(start)
            assert file.read(n) == data[start : start + n]


COLUMNS = [
    (group * 4 * MIB + group * group * 70_000 + MIB + column * (230_000 + 900 * group), 200_000)
    for group in range(5)
    for column in (7, 2, 9)
]


def test_a_fast_link_brings_the_columns_beside(origin: Any, options: Options) -> None:
    """Two columns of a row group, before and behind each other: each waited for a latency of its own."""
    data = content(24 * MIB)
    url = origin.put("a.bin", data)
    reads(filesystem(options(budget="128MiB")), url, COLUMNS, link(None), data)
    unknown = origin.count("GET")
    origin.forget()
    reads(filesystem(options(budget="128MiB")), url, COLUMNS, link(FAST), data)
    assert origin.count("GET") <= 2 * len(COLUMNS) // 3 < unknown
    spans = sorted((one.start, one.end) for one in origin.requests if one.method == "GET")
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans)), "each byte once"


@pytest.mark.parametrize("rate", [SLOW, 10e6, 100e6])
def test_a_slow_link_is_read_ahead_as_if_it_were_not_known(origin: Any, options: Options, rate: float) -> None:
    data = content(24 * MIB)
    url = origin.put("a.bin", data)
    in_order = [(at, 100_000) for at in range(0, 3_000_000, 100_000)]
    small = [(at, 100) for at in (5 * MIB, 12 * MIB, 3 * MIB, 9 * MIB)]
    for places in (COLUMNS, in_order, small, [(0, 100), *COLUMNS]):
        asked = []
        for given in (link(None), link(rate)):
            origin.forget()
            reads(filesystem(options(budget="128MiB")), url, places, given, data)
            asked.append(sorted((one.start, one.end) for one in origin.requests if one.method == "GET"))
        assert asked[0] == asked[1]


def test_small_reads_at_random_fetch_their_blocks_only(origin: Any, options: Options) -> None:
    """The pages of a database: a neighbourhood of each would fill the pool with what nobody reads. Only the header has more."""
    data = content(60 * MIB)
    numbers = random.Random(3)
    places = [(0, 100)] + [(numbers.randrange(600) * 100_000, 4096) for _ in range(60)]
    url = origin.put("a.bin", data)
    reads(filesystem(options(budget="128MiB")), url, places, link(FAST), data)
    blocks = {at // BLOCK for start, n in places for at in (start, start + n - 1)}
    header = FAST * 0.02 / 2 / 16
    assert origin.bytes_sent <= len(blocks) * BLOCK + header + 2 * BLOCK


def test_large_reads_far_apart_stop_fetching_their_neighbourhoods(origin: Any, options: Options) -> None:
    """One column of a large Parquet file: nothing beside its chunks is ever read, so four guesses must be enough."""
    data = content(100 * MIB)
    url = origin.put("a.bin", data)
    places = [(n * 8 * MIB + n * n * 4000, 200_000) for n in range(12)]
    costs = []
    for given in (link(None), link(FAST)):
        origin.forget()
        reads(filesystem(options(budget="256MiB")), url, places, given, data)
        costs.append(origin.bytes_sent)
    assert costs[1] <= costs[0] + 4 * 1.3 * FAST * 0.02 / 2


@pytest.mark.parametrize("budget", ["512KiB", "1MiB", "4MiB"])
def test_a_small_budget_has_small_neighbourhoods(origin: Any, options: Options, budget: str) -> None:
    """A neighbourhood of 5 MiB would evict all of a pool of 4 MiB."""
    data = content(24 * MIB)
    url = origin.put("a.bin", data)
    asked = []
    for given in (link(None), link(FAST)):
        origin.forget()
        fs = filesystem(options(budget=budget))
        reads(fs, url, COLUMNS, given, data)
        asked.append(origin.bytes_sent)
        assert fs.blocks.pool.check() == []
    assert asked[1] <= asked[0] + 2 * MIB, "one neighbourhood would be more; with 8 frames a block may be fetched again"


def test_the_block_size_of_an_open_file_bounds_the_neighbourhood(origin: Any, options: Options) -> None:
    data = content(24 * MIB)
    url = origin.put("a.bin", data)
    asked = []
    for given in (link(None), link(FAST)):
        origin.forget()
        reads(filesystem(options(budget="128MiB")), url, COLUMNS, given, data, MIB)
        asked.append(origin.bytes_sent)
    assert asked[0] == asked[1]


def test_requests_are_timed(origin: Any, options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    """By targets with coroutines and without: each request of an origin adds to its link, whichever file system and file it is of."""
    from bufferpool.integrations import origins

    ticks = iter(np.arange(0, 100, 0.01).tolist())
    monkeypatch.setattr(origins, "clock", lambda: next(ticks))
    for n in range(2):
        url = origin.put(f"{n}.bin", content(3 * MIB, n))
        with filesystem(options(budget="32MiB")).open(url) as file:
            file.read(10)
            file.seek(MIB)
            file.read(MIB)
    known = link_of(url, b"")
    assert (len(known._small), len(known._large)) == (2, 2)
    assert known.window_bytes > 0


def test_a_forked_child_keeps_what_is_known() -> None:
    """The locks of a link are renewed in a child; another thread of the parent may have had one when it forked."""
    url = "http://fork.example/x"
    known = link_of(url, b"")
    for n_bytes in (BLOCK, 2 * MIB) * 4:
        known.note(n_bytes, 0.02 + n_bytes / FAST)
    with known._using:
        child = os.fork()
        if child == 0:
            try:
                here = link_of(url, b"")
                here.note(BLOCK, 0.02)
                os._exit(0 if here.window_bytes > 4 * MIB else 1)
            finally:
                os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
