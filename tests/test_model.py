"""The whole surface against a plain dict, with several pools attached to one segment, checked at every step."""

import gc
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

import bufferpool as bp
from tests.conftest import EXTENT, PAGE, SHM, kernel_bytes, new_name, pins, remove, stamp

FILE_PAGES, SCRATCH_PAGES, MOST_PAGES, MOST_HELD, POOLS = 60, 6, 90, 6, 3

which = st.integers(0, POOLS - 1)
spaces = st.sampled_from(["file", "work"])
anywhere = st.integers(0, 10**6)


class Mine(Exception):
    """Raised inside a block, by the test."""


class PoolModel(RuleBasedStateMachine):
    """model[space][page] is the version of the page: 0 as the file was made, None for zeros."""

    def __init__(self):
        super().__init__()
        self.name = new_name()
        self.directory = Path(tempfile.mkdtemp(prefix="bptest-model-"))
        self.path = self.directory / "file.db"
        self.path.write_bytes(b"".join(stamp(n).tobytes() for n in range(FILE_PAGES)))
        self.model = {"file": dict.fromkeys(range(FILE_PAGES), 0), "work": dict.fromkeys(range(SCRATCH_PAGES))}
        self.pools = [None] * POOLS
        self.opened = [{} for _ in range(POOLS)]
        self.held = []  # (pool, what looks at the page, page, version)
        self.versions = 0

    @initialize(frames=st.integers(24, 64))
    def create(self, frames):
        self.pools[0] = bp.Pool.create(
            self.name, frames * PAGE, max_capacity=64 * PAGE, page_size=PAGE, extent_size=EXTENT, max_clients=8
        )
        self.open_spaces(0)
        self.attach(1)

    def open_spaces(self, i):
        self.opened[i] = {
            "file": self.pools[i].open_file(self.path, "r+", max_pages=MOST_PAGES),
            "work": self.pools[i].open_scratch("work", SCRATCH_PAGES),
        }

    # ---- helpers ------------------------------------------------------------------

    def pick(self, i):
        """An attached pool, by a number."""
        attached = [k for k in range(POOLS) if self.pools[k] is not None]
        return attached[i % len(attached)]

    def space(self, i, name):
        return self.opened[self.pick(i)][name]

    def page(self, name, n):
        return n % len(self.model[name])

    def content(self, n, version):
        return np.zeros(PAGE, np.uint8) if version is None else stamp(n, version=version)

    def right(self, name, n, page):
        assert np.array_equal(page, self.content(n, self.model[name][n])), (name, n, self.model[name][n])

    def new_version(self):
        self.versions += 1
        return self.versions

    def on_disk(self, n):
        """The version of a page that the file has."""
        with open(self.path, "rb") as file:
            data = np.frombuffer(os.pread(file.fileno(), PAGE, n * PAGE), np.uint8)
        if not data.any():
            return None
        version = int(data[:8].view(np.uint64)[0] >> 44)
        assert np.array_equal(data, stamp(n, version=version))
        return version

    # ---- reading --------------------------------------------------------------------

    @rule(i=which, name=spaces, n=anywhere)
    def read(self, i, name, n):
        n = self.page(name, n)
        self.right(name, n, self.space(i, name)[n])

    @rule(i=which, name=spaces, n=anywhere)
    def pin(self, i, name, n):
        n = self.page(name, n)
        with self.space(i, name).pin(n) as page:
            self.right(name, n, page)
        assert page.size == 0

    @precondition(lambda self: len(self.held) < MOST_HELD)
    @rule(i=which, name=spaces, n=anywhere, how=st.sampled_from(["array", "slice", "memoryview", "pin", "many"]))
    def hold(self, i, name, n, how):
        n = self.page(name, n)
        space = self.space(i, name)
        kept = {
            "array": lambda: space[n],
            "slice": lambda: space[n][:],
            "memoryview": lambda: memoryview(space[n]),
            "pin": lambda: space.pin(n).page,
            "many": lambda: space.pin_many([n])[0],
        }[how]()
        self.held.append((self.pick(i), kept, n, self.model[name][n]))

    @precondition(lambda self: self.held)
    @rule(k=anywhere)
    def release(self, k):
        del self.held[k % len(self.held)]

    @rule(i=which, name=spaces, ids=st.lists(anywhere, max_size=6))
    def pin_many(self, i, name, ids):
        ids = [self.page(name, n) for n in ids]
        with self.space(i, name).pin_many(ids) as pages:
            assert len(pages) == len(ids)
            for k, n in enumerate(ids):
                self.right(name, n, pages[k])

    @rule(i=which, name=spaces, ids=st.lists(anywhere, max_size=20))
    def read_many(self, i, name, ids):
        ids = [self.page(name, n) for n in ids]
        out = self.space(i, name).read_many(ids)
        for k, n in enumerate(ids):
            self.right(name, n, out[k])

    @rule(i=which, name=spaces, ids=st.lists(anywhere, max_size=12))
    def prefetch(self, i, name, ids):
        ids = [self.page(name, n) for n in ids]
        assert self.space(i, name).prefetch(ids) <= len(ids)

    @rule(i=which, name=spaces, start=anywhere, count=st.integers(0, 100))
    def scan(self, i, name, start, count):
        start = self.page(name, start)
        seen = []
        for n, page in enumerate(self.space(i, name).scan(start, start + count), start):
            self.right(name, n, page)
            seen.append(n)
        assert seen == list(range(start, min(start + count, len(self.model[name]))))

    @rule(i=which, name=spaces, n=st.sampled_from([-(10**9), 10**9]))
    def read_what_is_not_there(self, i, name, n):
        with pytest.raises(IndexError):
            self.space(i, name)[n]

    # ---- writing ----------------------------------------------------------------------

    @rule(i=which, name=spaces, n=anywhere)
    def write(self, i, name, n):
        n, version = self.page(name, n), self.new_version()
        with self.space(i, name).write(n) as page:
            self.right(name, n, page)
            page[:] = stamp(n, version=version)
        self.model[name][n] = version

    @rule(i=which, j=which, n=anywhere, m=anywhere)
    def write_one_page_inside_another(self, i, j, n, m):
        n, m = self.page("file", n), self.page("work", m)
        versions = self.new_version(), self.new_version()
        with self.space(i, "file").write(n) as page:
            page[:] = stamp(n, version=versions[0])
            with self.space(j, "work").write(m) as other:
                other[:] = stamp(m, version=versions[1])
            self.right("file", n, self.space(j, "file")[n])
        self.model["file"][n], self.model["work"][m] = versions

    @rule(i=which, name=spaces, n=anywhere)
    def write_that_raises(self, i, name, n):
        n = self.page(name, n)
        with pytest.raises(Mine), self.space(i, name).write(n) as page:  # noqa: PT012
            page[:] = 0xEE
            raise Mine

    @precondition(lambda self: len(self.model["file"]) < MOST_PAGES)
    @rule(i=which, fails=st.booleans())
    def append(self, i, fails):
        version = self.new_version()
        write = self.space(i, "file").append()
        n = write.page_no
        assert n == len(self.model["file"])
        try:
            with write as page:
                assert not page.any()
                page[:] = stamp(n, version=version)
                if fails:
                    raise Mine
        except Mine:
            return
        self.model["file"][n] = version

    @precondition(lambda self: len(self.model["file"]) == MOST_PAGES)
    @rule(i=which)
    def append_to_a_full_space(self, i):
        with pytest.raises(bp.errors.SpaceFull):
            self.space(i, "file").append()

    @rule(i=which, name=spaces, first=anywhere, count=st.integers(0, 20))
    def drop(self, i, name, first, count):
        first = self.page(name, first)
        count = min(count, len(self.model[name]) - first)
        pool = self.pools[self.pick(i)]
        before = kernel_bytes(pool)
        freed = self.space(i, name).drop(first, count)
        assert before - kernel_bytes(pool) == freed
        for n in range(first, first + count):
            self.model[name][n] = self.on_disk(n) if name == "file" else None

    @rule(i=which)
    def flush(self, i):
        self.pools[self.pick(i)].flush()
        for n in self.model["file"]:
            assert self.on_disk(n) == self.model["file"][n]

    # ---- memory ------------------------------------------------------------------------

    @rule(i=which, frames=st.integers(24, 64))
    def resize(self, i, frames):
        pool = self.pools[self.pick(i)]
        before = kernel_bytes(pool)
        given = pool.resize(frames * PAGE)
        assert before - kernel_bytes(pool) == given
        assert pool.stats().resident_bytes <= frames * PAGE

    @rule(i=which, frames=st.one_of(st.none(), st.integers(0, 64)))
    def trim(self, i, frames):
        pool = self.pools[self.pick(i)]
        before, resident = kernel_bytes(pool), pool.stats().resident_bytes
        given = pool.trim() if frames is None else pool.trim(frames * PAGE)
        assert before - kernel_bytes(pool) == given == resident - pool.stats().resident_bytes
        if frames is not None:
            assert given <= frames * PAGE

    @rule(i=which)
    def trim_idle(self, i):
        pool = self.pools[self.pick(i)]
        before = kernel_bytes(pool)
        given = pool.trim_idle(0.0)
        assert before - kernel_bytes(pool) == given

    # ---- clients -----------------------------------------------------------------------

    @rule(i=which)
    def attach(self, i):
        if self.pools[i] is None:
            self.pools[i] = bp.Pool.attach(self.name)
            self.open_spaces(i)

    @rule(i=which)
    def detach(self, i):
        if self.pools[i] is None:
            return
        if any(held[0] == i for held in self.held):
            with pytest.raises(BufferError):
                self.pools[i].close()
            self.held = [held for held in self.held if held[0] != i]
        self.pools[i].close()
        self.pools[i] = None
        self.opened[i] = {}
        if not any(self.pools):
            self.attach(i)

    @rule(i=which)
    def a_short_life(self, i):
        """Another client attaches, writes to its own scratch pages, and detaches: nothing of it remains."""
        with bp.Pool.attach(self.name) as pool:
            own = pool.open_scratch("own", 4, lifetime="process")
            for n in range(4):
                with own.write(n) as page:
                    page[:] = stamp(n)
            assert np.array_equal(own[3], stamp(3))
        assert [s.name for s in self.pools[self.pick(i)].stats().spaces] == ["file.db", "work"]

    # ---- what always holds ----------------------------------------------------------------

    @invariant()
    def all_is_well(self):
        attached = [pool for pool in self.pools if pool is not None]
        if not attached:
            return
        pool = attached[-1]
        assert pool.check() == []
        stats = pool.stats()
        assert stats.kernel_bytes == kernel_bytes(pool)
        assert stats.kernel_data_bytes == stats.resident_bytes <= stats.budget_bytes
        # Somebody else may look at the segment just now (bufferpool ls); of ours there are as many as attached.
        assert [client.pid for client in pool.clients()].count(os.getpid()) == len(attached)
        assert pins(pool) == len(self.held)
        assert sorted(s.pages for s in stats.spaces) == sorted(len(pages) for pages in self.model.values())
        for _, kept, n, version in self.held:
            assert np.array_equal(np.frombuffer(kept, np.uint8), self.content(n, version))

    def teardown(self):
        self.held.clear()
        gc.collect()
        attached = [pool for pool in self.pools if pool is not None]
        try:
            if attached:
                space = next(opened for opened in self.opened if opened)
                for name, pages in self.model.items():
                    for n in pages:
                        self.right(name, n, space[name][n])
                assert attached[0].check() == []
        finally:
            self.opened = [{} for _ in range(POOLS)]
            remove(SHM / self.name)
            shutil.rmtree(self.directory)
            for pool in attached:
                with suppress(BufferError):  # the traceback of a failure holds arrays
                    pool.close(discard=True)  # its name and its files are gone


TestPoolModel = PoolModel.TestCase
TestPoolModel.settings = settings(
    max_examples=80,
    stateful_step_count=60,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
)


@pytest.mark.soak
def test_the_pool_is_its_model_for_long() -> None:
    run_state_machine_as_test(PoolModel, settings=settings(TestPoolModel.settings, max_examples=2000))
