"""Page checksums: what is damaged is found, and never shown; what can be repaired is."""

import os
import pickle
import subprocess

import numpy as np
import pytest

import bufferpool as bp
from bufferpool.errors import PageCorrupt, SpaceMismatch, StoreError
from bufferpool.stores import checksum
from bufferpool.stores.checksum import is_whole, seal
from tests.conftest import PAGE, damage, page_of, stamp
from tests.support.children import run_python

xxhash = pytest.importorskip("xxhash")


def body(page_no, version=0):
    """What the engine writes: all but the last eight bytes."""
    return stamp(page_no, version=version)[:-8]


@pytest.fixture
def sealed(tmp_path):
    """A file of 12 pages with right checksums."""
    pages = [stamp(n) for n in range(12)]
    for n, page in enumerate(pages):
        seal(page, n)
    path = tmp_path / "sealed.db"
    path.write_bytes(np.concatenate(pages).tobytes())
    return path


def write_one_of_16(pool, table):
    """Writes page 5 to a file of 16 pages that nobody has written. It is read again, and the others are zeros."""
    with table.write(5) as page:
        page[:] = stamp(5)
    assert pool.flush() == 1
    table.drop()
    assert np.array_equal(table[5][:-8], body(5))
    assert not any(table[n][:-8].any() for n in range(16) if n != 5)
    assert pool.stats().corrupt_pages == 0


# ---- the checksum --------------------------------------------------------------------------


def test_the_checksum_is_xxh3_of_the_page_seeded_with_its_number():
    page = stamp(7)
    seal(page, 7)
    expected = xxhash.xxh3_64_intdigest(page[:-8].tobytes(), seed=7)
    assert int(page[-8:].view("<u8")[0]) == expected
    assert is_whole(page, 7)
    assert not is_whole(page, 8)
    assert not is_whole(np.zeros(PAGE, np.uint8), 3)


def test_every_single_bit_is_covered():
    page = stamp(7)
    seal(page, 7)
    for bit in range(0, PAGE * 8, 61):
        page[bit // 8] ^= 1 << bit % 8
        assert not is_whole(page, 7), bit
        page[bit // 8] ^= 1 << bit % 8
    assert is_whole(page, 7)


def test_what_is_written_comes_back_and_the_file_carries_checksums(pool, tmp_path):
    path = tmp_path / "new.db"
    table = pool.open_file(path, "w+", checksum=True)
    for n in range(8):
        with table.append() as page:
            page[:] = stamp(n)
    with table.write(2) as page:
        page[:] = 0  # a page of zeros that was written is sealed like any other
    assert pool.flush() == 8
    raw = np.fromfile(path, np.uint8).reshape(8, PAGE)
    assert all(is_whole(raw[n], n) and raw[n].any() for n in range(8))
    table.drop()
    for n in range(8):
        assert np.array_equal(table[n][:-8], np.zeros(PAGE - 8) if n == 2 else body(n))
    assert pool.stats().corrupt_pages == 0


# ---- what is found ---------------------------------------------------------------------------


def _torn(path):
    new = stamp(5, version=1)
    seal(new, 5)
    damage(path, 5 * PAGE, new[: PAGE // 2].tobytes())


def _flipped(path):
    damage(path, 5 * PAGE + 100, bytes([page_of(path, 5)[100] ^ 1]))


def _swapped(path):
    five, six = page_of(path, 5), page_of(path, 6)
    damage(path, 5 * PAGE, six + five)


def _cut_to_zeros(path):
    damage(path, 5 * PAGE + 512, bytes(PAGE - 512))


def _no_checksum(path):
    damage(path, 6 * PAGE - 8, bytes(8))


DAMAGE = {"torn": _torn, "flipped": _flipped, "swapped": _swapped, "zeros": _cut_to_zeros, "no checksum": _no_checksum}
WAYS = {
    "index": lambda table: table[5],
    "pin": lambda table: table.pin(5),
    "pin_many": lambda table: table.pin_many([4, 5]),
    "read_many": lambda table: table.read_many([1, 5]),
    "prefetch": lambda table: table.prefetch([5]),
    "scan": lambda table: [page[0] for page in table.scan()],
    "write": lambda table: table.write(5).__enter__(),
}


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_page_is_found_and_the_others_are_read(pool, sealed, how):
    table = pool.open_file(sealed, "r+", checksum=True)
    DAMAGE[how](sealed)
    with pytest.raises(PageCorrupt) as caught:
        table[5]
    error = caught.value
    assert (error.space, error.page_no, error.offset) == ("sealed.db", 5, 5 * PAGE)
    for word in ("page 5", "sealed.db", str(5 * PAGE), "repair"):
        assert word in str(error)
    for n in {*range(12)} - {5, 6}:
        assert np.array_equal(table[n][:-8], body(n))
    stats = pool.stats()
    assert (stats.corrupt_pages, stats.repaired_pages) == (1, 0)
    assert stats.load_failures == 1


@pytest.mark.parametrize("way", WAYS)
def test_it_is_found_by_every_way_to_load_it(pool, sealed, way):
    _torn(sealed)
    table = pool.open_file(sealed, "r+", checksum=True)
    with pytest.raises(PageCorrupt, match="page 5"):
        WAYS[way](table)
    assert pool.stats().corrupt_pages == 1
    frames = pool.frames()
    assert 5 not in frames["page_no"][frames["state"] == bp.FrameState.LIVE]


def test_the_error_travels_between_processes(pool, sealed, child):
    _torn(sealed)
    table = pool.open_file(sealed, "r+", checksum=True)
    with pytest.raises(PageCorrupt) as caught:
        child(_read, table, 5).result()
    assert (caught.value.space, caught.value.page_no, caught.value.offset) == ("sealed.db", 5, 5 * PAGE)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    assert child(_read, table, 4, context="fork").result() == bytes(body(4))


def _read(table, page_no):
    return bytes(table[page_no][:-8])


# ---- zeros -----------------------------------------------------------------------------------


def punch(path, page_no):
    """Makes a hole of one page."""
    subprocess.run(
        ["fallocate", "--punch-hole", "--offset", str(page_no * PAGE), "--length", str(PAGE), str(path)], check=True
    )


@pytest.mark.parametrize("when", ["before the pool saw it", "while the pool has the file"])
def test_zeros_that_were_written_over_a_page_are_damage(pool, sealed, when):
    """A disk that returns zeros, or a program that wrote them, passed for a page that was never written."""
    if when == "before the pool saw it":
        damage(sealed, 5 * PAGE, bytes(PAGE))
        table = pool.open_file(sealed, "r+", checksum=True)
    else:
        table = pool.open_file(sealed, "r+", checksum=True)
        with table.write(5) as page:
            page[:] = 0  # and a page of zeros that was written is no exception
        assert pool.flush() == 1
        assert np.array_equal(table[5][:-8], np.zeros(PAGE - 8))
        table.drop()
        assert not table[5][:-8].any()
        table.drop()
        damage(sealed, 5 * PAGE, bytes(PAGE))
    with pytest.raises(PageCorrupt, match=r"fallocate --punch-hole --offset 20480 --length 4096"):
        table[5]
    assert pool.stats().corrupt_pages == 1


def test_a_damaged_page_can_be_given_up_as_the_message_says(pool, sealed):
    damage(sealed, 5 * PAGE, bytes(PAGE))
    punch(sealed, 5)
    table = pool.open_file(sealed, "r+", checksum=True)
    assert not table[5].any()
    assert pool.stats().corrupt_pages == 0


@pytest.mark.parametrize("how", ["truncate", "fallocate"])
def test_a_file_that_was_made_and_never_written_reads_as_zeros(pool, tmp_path, how):
    path = tmp_path / "made.db"
    path.touch()
    if how == "truncate":
        os.truncate(path, 16 * PAGE)
    else:
        subprocess.run(["fallocate", "--length", str(16 * PAGE), str(path)], check=True)
    table = pool.open_file(path, "r+", checksum=True)
    assert not any(table[n].any() for n in range(16))
    write_one_of_16(pool, table)


def test_pages_that_nobody_published_are_sealed_when_the_file_grows_past_them(pool, tmp_path):
    """Pages of zeros were a hole, or could not be told apart from damage."""
    path = tmp_path / "gaps.db"
    table = pool.open_file(path, "w+", checksum=True)
    writes = [table.append() for _ in range(12)]
    for n, write in enumerate(writes):
        write.__enter__()[:] = stamp(n)
    for n in (3, 4, 9):
        writes[n].__exit__(None, None, None)
    assert pool.flush() == 3
    raw = np.fromfile(path, np.uint8).reshape(-1, PAGE)
    assert len(raw) == 10
    assert all(is_whole(raw[n], n) for n in range(10))
    for n in set(range(12)) - {3, 4, 9}:
        writes[n].__exit__(ValueError, ValueError(), None)
    table.drop()
    for n in range(10):
        assert np.array_equal(table[n][:-8], body(n) if n in (3, 4, 9) else np.zeros(PAGE - 8))
    assert pool.stats().corrupt_pages == 0


def test_the_neighbours_in_a_large_block_are_sealed(pool, tmp_path, monkeypatch):
    """Of a file system with blocks of four pages: a write to one makes the others zeros that are no hole."""
    path = tmp_path / "made.db"
    path.touch()
    os.truncate(path, 16 * PAGE)
    fstat, lseek = os.fstat, os.lseek

    class Large:
        def __init__(self, about):
            self.about = about

        st_blksize = 4 * PAGE

        def __getattr__(self, name):
            return getattr(self.about, name)

    def coarse(fd, offset, how):
        """The first block of four pages that has data in it."""
        if how != os.SEEK_DATA:
            return lseek(fd, offset, how)
        found = lseek(fd, offset // (4 * PAGE) * 4 * PAGE, how)
        return max(offset, found // (4 * PAGE) * 4 * PAGE)

    monkeypatch.setattr(os, "fstat", lambda fd: Large(fstat(fd)))
    monkeypatch.setattr(os, "lseek", coarse)
    monkeypatch.setattr(checksum, "_is_reserved", lambda *_: False)
    write_one_of_16(pool, pool.open_file(path, "r+", checksum=True))


def test_pages_that_somebody_cut_off_are_damaged_when_the_pool_writes_beyond_them(pool, attach, sealed):
    """What is written over a cut on purpose makes the file long again: what it has lost must not pass for zeros."""
    table = pool.open_file(sealed, "r+", checksum=True)
    with table.write(11) as page:
        page[:] = stamp(11, version=1)
    os.truncate(sealed, 4 * PAGE)
    with pytest.raises(bp.errors.FileChanged):
        pool.flush()
    assert pool.overwrite(table.name) == 1
    again = attach(pool).open_file(sealed, "r+", checksum=True)
    assert np.array_equal(again[11][:-8], body(11, 1))
    assert np.array_equal(again[3][:-8], body(3))
    for n in range(4, 11):
        with pytest.raises(PageCorrupt):
            again[n]


def test_a_file_that_ends_early_or_cannot_be_read_is_no_corrupt_page(pool, sealed, monkeypatch):
    table = pool.open_file(sealed, "r+", checksum=True)
    os.truncate(sealed, 5 * PAGE + 10)
    with pytest.raises(bp.errors.ShortRead):
        table[5]
    monkeypatch.setattr(bp.stores.base.FileStore, "read_into", _fail)
    with pytest.raises(StoreError, match="cannot be read"):
        table[4]
    assert pool.stats().corrupt_pages == 0


def _fail(*_):
    raise OSError(5, "Input/output error")


# ---- repair ----------------------------------------------------------------------------------


def test_a_page_is_repaired_once_and_a_flush_mends_the_file(pool, sealed, attach):
    _torn(sealed)
    seen = []

    def repair(page_no, found):
        seen.append((page_no, bytes(found)))
        return stamp(page_no, version=2)

    table = pool.open_file(sealed, "r+", checksum=True, repair=repair)
    torn = page_of(sealed, 5)
    assert np.array_equal(table[5][:-8], body(5, 2))
    assert seen == [(5, torn)]
    assert page_of(sealed, 5) == torn  # the store is written by flushes only
    stats = pool.stats()
    assert (stats.corrupt_pages, stats.repaired_pages, stats.frames.dirty) == (1, 1, 1)
    # Another handle, while the page is dirty: no other program has changed the file.
    assert np.array_equal(attach(pool).open_file(sealed, "r+", checksum=True)[5][:-8], body(5, 2))
    assert pool.flush() == 1
    raw = np.frombuffer(page_of(sealed, 5), np.uint8)
    assert is_whole(raw, 5)
    assert np.array_equal(raw[:-8], body(5, 2))
    table.drop()
    assert np.array_equal(table[5][:-8], body(5, 2))
    assert len(seen) == 1


@pytest.mark.parametrize(
    ("repair", "says"),
    [
        (lambda n, image: None, "no image"),
        (lambda n, image: 1 / 0, "ZeroDivisionError"),
        (lambda n, image: bytes(100), "100 bytes"),
        (lambda n, image: bytes(2 * PAGE), f"{2 * PAGE} bytes"),
        (lambda n, image: "text", "no bytes"),
        (lambda n, image: 17, "no bytes"),
    ],
)
def test_a_repair_that_does_not_help_is_an_error_and_changes_nothing(pool, sealed, repair, says):
    _flipped(sealed)
    before = sealed.read_bytes()
    table = pool.open_file(sealed, "r+", checksum=True, repair=repair)
    with pytest.raises(PageCorrupt, match=says):
        table[5]
    assert sealed.read_bytes() == before
    stats = pool.stats()
    assert (stats.corrupt_pages, stats.repaired_pages, stats.frames.dirty) == (1, 0, 0)


def test_any_buffer_will_do_as_a_repaired_page(pool, sealed):
    table = pool.open_file(sealed, "r+", checksum=True, repair=lambda n, _: stamp(n).view(np.uint64).reshape(2, -1))
    _flipped(sealed)
    assert np.array_equal(table[5][:-8], body(5))


def test_a_read_only_file_is_repaired_in_memory_alone(pool, sealed):
    _flipped(sealed)
    before = sealed.read_bytes()
    table = pool.open_file(sealed, "r", checksum=True, repair=lambda n, _: stamp(n))
    assert np.array_equal(table[5][:-8], body(5))
    assert pool.stats().frames.dirty == 0
    assert pool.flush() == 0
    assert sealed.read_bytes() == before
    table.drop()
    assert np.array_equal(table[5][:-8], body(5))
    assert pool.stats().repaired_pages == 2


def _from_stamp(page_no, _):
    return stamp(page_no)


@pytest.mark.parametrize("context", ["spawn", "fork"])
def test_a_pickled_space_takes_its_repair_along(pool, sealed, child, context):
    _flipped(sealed)
    table = pool.open_file(sealed, "r+", checksum=True, repair=_from_stamp)
    assert child(_read, table, 5, context=context).result() == bytes(body(5))
    assert pool.stats().repaired_pages == 1
    assert pool.flush() == 1


# ---- openers that ask for different checksums ---------------------------------------------------


def test_all_openers_must_agree(pool, sealed, attach):
    table = pool.open_file(sealed, "r+", checksum=True)
    with pytest.raises(SpaceMismatch, match="checksum=True"):
        attach(pool).open_file(sealed, "r+")
    assert np.array_equal(attach(pool).space("sealed.db")[3][:-8], body(3))
    table.remove()
    plain = pool.open_file(sealed, "r+")
    with pytest.raises(SpaceMismatch, match="checksum=False"):
        pool.open_file(sealed, "r+", checksum=True)
    assert plain[3].size == PAGE
    fresh = pool.open_file(sealed, "w+", checksum=True)  # begins anew: so may its kind
    assert len(fresh) == 0


def test_bad_arguments(pool, sealed):
    with pytest.raises(ValueError, match="checksum=True"):
        pool.open_file(sealed, repair=_from_stamp)
    with pytest.raises(TypeError, match="repair"):
        pool.open_file(sealed, checksum=True, repair="yes")


def test_a_flush_of_another_process_seals_the_pages_too(pool, sealed, child, attach):
    table = pool.open_file(sealed, "r+", checksum=True)
    with table.write(5) as page:
        page[:] = stamp(5, version=4)
    assert attach(pool).flush() == 1
    raw = np.frombuffer(page_of(sealed, 5), np.uint8)
    assert is_whole(raw, 5)
    assert np.array_equal(raw[:-8], body(5, 4))


def test_without_the_library_the_error_says_what_to_install(pool, sealed):
    code = f"""
import sys
sys.modules["xxhash"] = None
import bufferpool as bp
pool = bp.Pool.attach({pool.name!r})
try:
    pool.open_file({str(sealed)!r}, checksum=True)
except ImportError as error:
    print(error)
try:
    pool.flush()
except bp.errors.StoreError as error:
    print("flush:", error)
"""
    table = pool.open_file(sealed, "r+", checksum=True)
    with table.write(1) as page:
        page[:] = 1
    done = run_python(code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("pip install xxhash") == 2
    assert "flush:" in done.stdout
    assert pool.flush() == 1
