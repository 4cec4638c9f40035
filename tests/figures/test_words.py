"""The frames that the package reads from the words of the segment are those that the core counts."""

import numpy as np

from tests.conftest import WAIT
from tests.support.hanging import Hanging


def row_of(pool, space, page_no):
    """The frame of a page."""
    frames = pool.frames()
    (row,) = frames[(frames["space"] == space.index) & (frames["page_no"] == page_no)]
    return row


def test_the_bits_of_the_words_say_what_the_core_means(pool, threads) -> None:
    """They stood as numbers in the package, and nothing compared them with the core's: with a wrong one no frame was dirty."""
    store, me = Hanging(128), pool.clients()[0].client
    space = pool.open_store("pages", store, "r+")
    for n in [*range(8)] * 4 + [*range(8, 60)]:
        space[n]
    space.prefetch([120, 121])  # into the cold ring
    kept = space[3]
    for n in (3, 5):
        with space.write(n) as page:
            page[:] = n
            assert row_of(pool, space, n)["writer"] == me
    frames, counts = pool.frames(), pool.stats().frames
    assert counts.dirty == 2 == np.count_nonzero(frames["dirty"])
    assert 0 < counts.hot == np.count_nonzero(frames["hot"]) < counts.live
    assert counts.live + counts.retired == np.count_nonzero(frames["page_no"] >= 0)
    assert not row_of(pool, space, 5)["writer"]
    store.writes.shut()
    threads.start(space.flush)
    assert store.writes.came.wait(WAIT)
    assert row_of(pool, space, 5)["flusher"] == me
    store.open()
    threads.join()
    assert not pool.frames()["dirty"].any()
    assert not pool.frames()["flusher"].any()
    assert kept.size
