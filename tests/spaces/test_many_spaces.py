"""Thousands of spaces: a data set of 62 files was the end of a pool, and names ended at 63 bytes."""

import os
import resource

import numpy as np
import pytest

import bufferpool as bp
from bufferpool import _core
from tests.client.test_limits import in_child
from tests.client.test_segment_damaged import fnv
from tests.conftest import PAGE, fill, in_step, kernel_bytes, stamp
from tests.core.test_altered import area, poke
from tests.support.children import run_python

MANY = 4096


def test_a_data_set_of_thousands_of_files(pools, tmp_path):
    """Each file is a space of its own: all are open at once, read by two processes, and written by one."""
    assert _core.MAX_SPACES >= MANY
    page = np.zeros(PAGE, np.uint8)
    for i in range(MANY):
        page[:8].view(np.uint64)[:] = i
        (tmp_path / f"part-{i:05}.db").write_bytes(page.tobytes())
    name = pools.name()

    def open_all() -> str:
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if hard < 4 * MANY:  # two for each: the file, and the claim on it
            pytest.skip("a process may not have so many files open here")
        resource.setrlimit(resource.RLIMIT_NOFILE, (4 * MANY, hard))
        with bp.Pool.create(name, 256 * PAGE, page_size=PAGE) as pool:
            spaces = [pool.open_file(tmp_path / f"part-{i:05}.db", "r+", dtype=np.uint64) for i in range(MANY)]
            assert [int(space[0][0]) for space in spaces] == list(range(MANY))
            assert pool.space("part-04095.db")[0].view(np.uint64)[0] == 4095
            with spaces[4000].write(0) as array:
                array[:] = 7
            other = run_python(
                "import sys, bufferpool as bp\n"
                "with bp.Pool.attach(sys.argv[1]) as pool:\n"
                "    print(pool.space('part-04000.db')[0][0], len(pool.stats().spaces))\n",
                name,
            )
            assert other.stdout == f"7 {MANY}\n", other.stderr
            assert pool.flush() == 1
            with pytest.raises(bp.errors.TooManySpaces):
                pool.open_scratch("one more", 1)
            spaces[17].remove()
            fill(pool.open_scratch("one more", 1), [0])
            stats = pool.stats()
            return repr((len(stats.spaces), stats.misses - sum(s.misses for s in stats.spaces), pool.check()))

    assert in_child(open_all) == repr((MANY, 1, []))  # the removed space had one
    bp.Pool.attach(name).unlink(discard=True)
    assert np.fromfile(tmp_path / "part-04000.db", np.uint64)[0] == 7


def test_slots_get_their_memory_as_spaces_are_opened(make_pool):
    """A pool with one space does not pay for thousands; and what the pool counts is what the kernel has."""
    pool = make_pool(64 * PAGE)
    empty = kernel_bytes(pool)
    pool.open_scratch("first", 1)
    first = kernel_bytes(pool)
    assert first - empty < 512 << 10
    for i in range(15):
        pool.open_scratch(f"s{i}", 1 << 20)
    assert kernel_bytes(pool) == first, "entries get their memory when their pages are first used"
    for i in range(400):
        pool.open_scratch(f"more{i}", 1)
    stats = in_step(pool)
    assert stats.metadata_bytes + stats.resident_bytes == kernel_bytes(pool)


def test_figures_of_spaces_that_came_later_and_of_clients_that_left(make_pool, attach):
    """The counters of a client that has left stand in the totals, whichever spaces there were when it came."""
    pool = make_pool(64 * PAGE)
    for i in range(40):
        space = pool.open_derived(f"d{i}", 4, lambda n, out: np.copyto(out, stamp(n)))
        other = attach(pool)
        for n in range(4):
            other.open_derived(f"d{i}", 4, lambda n, out: np.copyto(out, stamp(n)))[n]
        other.close()
        assert np.array_equal(space[3], stamp(3))
    assert [(s.misses, s.hits) for s in pool.stats().spaces] == [(4, 1)] * 40
    with bp.observer.Observer(pool.name) as seen:
        assert [(s.misses, s.hits) for s in seen.stats().spaces] == [(4, 1)] * 40


LENGTHS = (64, 1022, 1023, 1024, 1025, 2000, 4094, 4095)


def test_a_name_may_be_as_long_as_a_path(pool, attach):
    """File names of 64 bytes and more were refused, then those of 1,024 bytes and more."""
    names = ["x" * length for length in LENGTHS] + ["ü" * 500, "ü" * 2047]
    assert max(len(name.encode()) for name in names) == _core.LONGEST_TEXT - 1
    for i, name in enumerate(names):
        fill(pool.open_scratch(name, i + 1), [i])
    other = attach(pool)
    for i, name in enumerate(names):
        assert np.array_equal(other.space(name)[i], stamp(i))
        assert pool.space(name).name == name
    assert {space.name for space in pool.stats().spaces} >= set(names)
    with bp.observer.Observer(pool.name) as seen:
        assert {space.name for space in seen.stats().spaces} >= set(names)
    with pytest.raises(bp.SpaceNotFound):
        pool.space("x" * 1026)
    stats = in_step(pool)
    assert stats.metadata_bytes + stats.resident_bytes == kernel_bytes(pool)


def test_a_path_may_be_as_long_as_linux_has_them(pool, attach, tmp_path):
    """A file whose path had 1,024 bytes or more could not be opened."""
    folder = tmp_path
    while len(os.fsencode(folder)) < 4095 - 260:
        folder /= "f" * 200
    folder.mkdir(parents=True)
    path = folder / ("d" * (4094 - len(os.fsencode(folder))))
    assert len(os.fsencode(path)) == 4095
    path.write_bytes(stamp(7).tobytes())
    space = pool.open_file(path, "r+")
    assert (space.path, space.name) == (str(path), path.name)
    with space.write(0) as page:
        page[:] = stamp(8)
    seen = attach(pool).space(path.name, "r")
    assert seen.path == str(path)
    assert np.array_equal(seen[0], stamp(8))
    assert pool.flush() == 1
    assert path.read_bytes() == stamp(8).tobytes()


def test_a_slot_keeps_the_place_of_a_long_name_and_a_short_one_does_not_read_it(pool):
    """The next space of the slot must have its own name, also if it is the beginning of the one before."""
    before = None
    for length in (4000, 1024, 1023, 8, 3000):
        space = pool.open_scratch("y" * length, 1)
        assert pool.space("y" * length).name == "y" * length
        space.remove()
        stats = in_step(pool)
        assert stats.metadata_bytes + stats.resident_bytes == kernel_bytes(pool)
        assert before in (None, stats.metadata_bytes), "each space took memory for its name anew"
        before = stats.metadata_bytes


SUMMED = (
    "kind", "flags", "owner", "owner_generation", "first_entry", "max_pages", "version", "name_sum", "path_sum", "long_texts",
)  # fmt: skip


def alter_slot(pool: bp.Pool, field: str, value: int) -> None:
    """Changes a field of the first space's slot, and its sum (``space_sum`` in ``layout.h``), so that the sum does not show it."""
    fields, at, summed = _core.fields(), area(pool, "spaces_at"), b""
    poke(pool, at, f"SpaceSlot.{field}", "<I", value)
    with open(pool.path, "rb") as file:
        for name in SUMMED:
            offset, size = fields[f"SpaceSlot.{name}"]
            file.seek(at + offset)
            summed += file.read(size).ljust(8, b"\0")
    poke(pool, at, "SpaceSlot.sum", "<Q", fnv(summed))


def test_a_long_name_that_was_altered_is_damage(pool):
    """Neither a name that lost its end, nor a number that leads to a place without memory, may be believed."""
    name = "z" * 2000
    pool.open_scratch(name, 1)
    other = pool.open_scratch("other", 1)
    assert not other[0].any()
    before = kernel_bytes(pool)

    def is_damage() -> None:
        with pytest.raises(bp.SegmentCorrupt, match="space slot 0"):
            pool.space(name)
        with bp.observer.Observer(pool.name) as seen, pytest.raises(bp.SegmentCorrupt):
            seen.stats()
        assert kernel_bytes(pool) == before, "a place without memory was read"
        assert not other[0].any()

    end = area(pool, "long_texts_at") + 1500
    poke(pool, end, "LongTexts.name", "<I", 0x777)
    is_damage()
    poke(pool, end, "LongTexts.name", "<I", int.from_bytes(b"zzzz", "little"))
    for number in (0, 2, 4096, 2**32 - 1):
        alter_slot(pool, "long_texts", number)
        is_damage()
    alter_slot(pool, "long_texts", 1)
    assert pool.space(name).name == name
    poke(pool, 0, "Header.long_texts", "<Q", 1)  # a count that is not stored twice: the last sound one holds
    assert pool.space(name).name == name
    with pytest.raises(bp.SharedMemoryFull):
        pool.open_scratch("w" * 2000, 1)
    poke(pool, 0, "Header.long_texts", "<Q", 1 << 32 | 1)
    assert pool.open_scratch("w" * 2000, 1).name == "w" * 2000


def test_a_space_of_millions_of_pages_costs_what_is_used_of_it(make_pool, attach):
    """A space of 2^26 pages took 512 MiB at once, outside the budget, for entries of pages that nobody had asked for."""
    pool, os_page = make_pool(64 * PAGE), os.sysconf("SC_PAGESIZE")
    assert not pool.open_scratch("first", 1)[0].any()  # the tables for frames have their memory from here on
    before, resident, unit = kernel_bytes(pool), in_step(pool).resident_bytes, os_page // 8
    huge = pool.open_scratch("huge", 1 << 26)
    assert not huge.resident(range(0, 1 << 26, 1 << 12)).any()
    assert huge.try_get((1 << 25) + 1) is None
    assert kernel_bytes(pool) == before, "to ask what is there gives no memory"
    other = attach(pool).open_scratch("huge", 1 << 26)
    pages = [0, 1, unit - 1, unit, 77 * unit, (1 << 26) - 1]
    fill(huge, pages)
    for n in pages:
        assert np.array_equal(other[n], stamp(n))
    assert not other.read_many([5 * unit + 3, 9 * unit]).any()
    stats = in_step(pool)
    assert stats.metadata_bytes + stats.resident_bytes == kernel_bytes(pool)
    chunks = {n // unit for n in (*pages, 5 * unit, 9 * unit)}
    assert kernel_bytes(pool) - before - (stats.resident_bytes - resident) == len(chunks) * os_page
    assert pool.check() == []
    assert huge.drop(1, 1 << 25) == 6 * PAGE
    assert np.array_equal(other[0], stamp(0))
    assert np.array_equal(other[(1 << 26) - 1], stamp((1 << 26) - 1))
    huge.remove(discard=True)
    assert pool.check() == []
    del other
    pool.trim()
    metadata = in_step(pool).metadata_bytes
    fill(pool.open_scratch("next", 1 << 26), pages)
    unit_block = (2 << 20) // 8
    again = {n // unit for n in pages if n // unit_block}  # in the first block, which has other spaces, all was kept
    assert in_step(pool).metadata_bytes == metadata + len(again) * os_page, "its entries have left with the first one"


def test_a_client_that_dies_while_an_entry_gets_its_memory_leaves_none(pool, tmp_path):
    """The chunk that has memory and no bit is given back by the next client that takes the growth lock."""
    huge = pool.open_scratch("huge", 1 << 20)
    for n in range(0, 1 << 20, 1 << 16):
        assert not huge[n].any()
    pid = os.fork()
    if pid == 0:
        try:
            for n in range(1 << 15, 1 << 20, 1 << 16):
                _ = huge[n]
        finally:
            os.kill(os.getpid(), 9)
    os.waitpid(pid, 0)
    for n in range(1 << 15, 1 << 20, 1 << 16):
        assert not huge[n].any()
    assert pool.check() == []
    stats = in_step(pool)
    assert stats.metadata_bytes + stats.resident_bytes == kernel_bytes(pool)


def test_a_space_in_entries_that_have_memory_already_is_emptied_when_it_is_removed(pool):
    """The second space that used the same entries left its pages there, and the third one showed them as its own."""
    for version in range(3):
        space = pool.open_scratch(f"s{version}", 8)
        for n in range(8):
            assert not space[n].any(), "a page of an earlier space"
            with space.write(n) as page:
                page[:] = version + 1
        space.remove(discard=True)
        assert pool.check() == []
    assert pool.stats().frames.live == 0
