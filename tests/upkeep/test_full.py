"""A tmpfs of 8 MiB that fills up: a typed error or an eviction, never SIGBUS, and everything works once there is room."""

import pytest

from tests.support.children import on_small_tmpfs

_SMALL = """
import os, sys
import numpy as np
import bufferpool as bp
from bufferpool.errors import SharedMemoryFull, PoolExhausted
where = sys.argv[1]
def create(name="pool", capacity="64MiB", **options):
    return bp.Pool.create(name, capacity, page_size=4096, directory=where, **options)
def ballast(room):
    "Fills the file system but for `room` bytes."
    with open(os.path.join(where, "ballast"), "wb") as file:
        free = os.statvfs(where).f_bavail * 4096
        os.posix_fallocate(file.fileno(), 0, free - room)
def full(use):
    try:
        use()
    except SharedMemoryFull as error:
        assert isinstance(error, MemoryError)
        assert "--shm-size" in str(error), error
        return "full"
    return "room"
"""

_CASES = {
    "create": """
ballast(64 << 10)
print(full(create), sorted(os.listdir(where)))
os.unlink(where + "/ballast")
pool = create()
print(full(lambda: pool.open_scratch("work", 4)[0]), pool.check())
""",
    "attach": """
pool = create()
ballast(0)
other = bp.Pool.attach("pool", directory=where)
print(pool.stats().clients, full(lambda: other.open_scratch("work", 1000)), pool.check())
os.unlink(where + "/ballast")
print(full(lambda: other.open_scratch("work", 1000)[5]), pool.check())
""",
    "load": """
path = sys.argv[2]
open(path, "wb").write(bytes(range(256)) * 16 * 4000)
pool = create()
table = pool.open_file(path)
before = pool.stats().kernel_bytes
for n in range(4000):  # 16 MB through 8 MiB: eviction, or an error, never a signal
    assert table[n][7] == 7
stats = pool.stats()
print(stats.resident_bytes < 8 << 20, stats.evictions_recycled > 0, pool.check())
kept = []
print(full(lambda: kept.extend(table[n] for n in range(4000))), len(kept) > 500)
assert all(page[9] == 9 for page in kept)
kept.clear()
print(all(table[n][3] == 3 for n in range(0, 4000, 7)), pool.check())
""",
    "write": """
pool = create()
work = pool.open_scratch("work", 4000)
done = []
def fill():
    for n in range(4000):
        with work.write(n) as page:
            page[:] = n % 251
        done.append(n)
print(full(fill), len(done) > 500)
print(all((work[n] == n % 251).all() for n in done), pool.check())
freed = work.drop(0, 100)
with work.write(3999) as page:
    page[:] = 5
print(freed == 100 * 4096, (work[3999] == 5).all(), all((work[n] == n % 251).all() for n in done[100:]), pool.check())
""",
    "append": """
path = sys.argv[2]
pool = create()
table = pool.open_file(path, "w+")
errors = 0
while len(table) < 3000:
    try:
        with table.append() as page:
            page[:] = (len(table)) % 251
    except SharedMemoryFull:
        errors += 1
        assert pool.trim("1MiB") > 0 and errors < 100
print(len(table), all((table[n] == n % 251).all() for n in range(3000)), pool.check())
""",
    "squeezed": """
pool = create()
work = pool.open_scratch("work", 2000)
for n in range(300):
    with work.write(n) as page:
        page[:] = 1
ballast(0)
done = []
def fill():
    for n in range(300, 2000):
        with work.write(n) as page:
            page[:] = 1
        done.append(n)
print(full(fill), len(done) < 300)
print((work[100] == 1).all(), pool.check())
os.unlink(where + "/ballast")
print(full(lambda: [work.write(1999).__enter__()]), pool.check())
""",
    "entries": """
pool = create(max_pages=1 << 27)
huge = pool.open_scratch("huge", 1 << 26)
ballast(0)
print(full(lambda: huge[1 << 20]), full(lambda: huge.read_many([5, 1 << 25])), pool.check())
os.unlink(where + "/ballast")
print(full(lambda: huge[(1 << 26) - 1]), pool.check())
""",
    "frames": """
pool = create(capacity="512MiB", max_clients=500)
work = pool.open_scratch("work", 100)
ballast(100 << 10)
print(full(lambda: [work[n] for n in range(100)]), pool.check())
os.unlink(where + "/ballast")
print(full(lambda: work[50]), pool.check())
""",
}

_WANT = {
    "create": ["full ['ballast']", "room []"],
    "attach": ["2 full []", "room []"],
    "load": ["True True []", "full True", "True []"],
    "write": ["full True", "True []", "True True True []"],
    "append": ["3000 True []"],
    "squeezed": ["full True", "True []", "room []"],
    "entries": ["full full []", "room []"],
    "frames": ["full []", "room []"],
}


@pytest.mark.kernel
@pytest.mark.parametrize("case", _CASES)
def test_a_full_file_system_is_a_typed_error_never_sigbus(tmp_path, case):
    code = (_SMALL + _CASES[case]).replace("sys.argv[2]", repr(str(tmp_path / "data.db")))
    assert on_small_tmpfs(code, tmp_path).splitlines() == _WANT[case]


# ---- a file system that fills up at every point ----------------------------------------------

_FILLING = """
import os, sys
import bufferpool as bp
from bufferpool.errors import SharedMemoryFull, PoolExhausted
where, path = sys.argv[1], sys.argv[2]
with open(path, "wb") as file:
    file.write(bytes(range(256)) * 16 * 64)
def steps(pool):
    table = pool.open_file(path, "r+", name="table")
    yield
    yield [table[n] for n in range(12)]
    for n in range(20, 26):
        with table.write(n) as page:
            page[:] = n
        yield
    yield pool.open_scratch("huge", 40000)
    work = pool.open_scratch("work", 100)
    for n in range(0, 100, 20):
        with work.write(n) as page:
            page[:] = 1
        yield
    with table.append() as page:
        page[:] = 5
    yield bp.Pool.attach("pool", directory=where)
    yield pool.flush(), pool.trim(), pool.resize("2MiB"), pool.resize("4MiB")
    yield [work[n] for n in range(100)]
full = whole = 0
for room in [*range(0, 640, 4), *range(640, 3600, 200)]:  # KiB
    ballast = os.open(where + "/ballast", os.O_RDWR | os.O_CREAT)
    os.posix_fallocate(ballast, 0, (os.statvfs(where).f_bavail - room // 4) * 4096)
    pool = None
    steps_of = None
    try:
        pool = bp.Pool.create("pool", "4MiB", page_size=4096, extent_size="64KiB", max_clients=64, directory=where)
        steps_of = steps(pool)
        for _ in steps_of:
            pass
        whole += 1
    except SharedMemoryFull:
        full += 1
    os.ftruncate(ballast, 0)
    os.close(ballast)
    if pool is None:
        assert os.listdir(where) == ["ballast"]
        continue
    _ = steps_of = None  # the arrays
    assert pool.check() == [], (room, pool.check())
    with pool.open_file(path, "r+", name="table").write(30) as page:
        page[:] = 7
    assert pool.open_scratch("more", 500)[400].sum() == 0
    pool.unlink(discard=True)
    pool.close()
print(full > 20, whole > 2)
"""


@pytest.mark.kernel
def test_a_file_system_that_fills_up_at_any_point_is_a_typed_error(tmp_path):
    code = _FILLING.replace("sys.argv[2]", repr(str(tmp_path / "data.db")))
    assert on_small_tmpfs(code, tmp_path).splitlines() == ["True True"]


_DAMAGED = """
path = sys.argv[2]
open(path, "wb").write(bytes(64 * 4096))
from bufferpool import _core
from bufferpool.errors import SegmentCorrupt
fields = _core.fields()
pool = bp.Pool.create("pool", 16 * 4096, page_size=4096, directory=where, max_pages=1 << 20, max_capacity="16MiB", max_clients=8)
table = pool.open_file(path, "r+", name="table", max_pages=100000)
work = pool.open_scratch("work", 8)
for n in range(4):
    table[n].sum()
fd = os.open(pool.path, os.O_RDWR)
def word(at):
    return int.from_bytes(os.pread(fd, 8, at), "little")
def put(at, value, size=8):
    os.pwrite(fd, value.to_bytes(size, "little"), at)
def area(name):
    return word(fields["Header.geometry"][0] + fields["Geometry." + name][0])
clients, spaces, frames, entries = (area(name) for name in ("clients_at", "spaces_at", "frames_at", "entries_at"))
ready = fields["Header.frames_ready"][0]
def space(name, index=0):
    return spaces + index * fields["SpaceSlot"][1] + fields["SpaceSlot." + name][0]
def frame(n):
    return frames + n * fields["FrameSlot"][1]
live = next(n for n in range(16) if word(frame(n)) == 3)    # page 0 is there
hole = next(n for n in range(16, 64) if word(frame(n)) == 0)
def die():
    pid = os.fork()
    if pid == 0:
        os.kill(os.getpid(), 9)
    os.waitpid(pid, 0)
    return clients + fields["Client"][1] + fields["Client.intents"][0]
def each(*uses):
    for use in uses:
        try:
            use()
        except (bp.errors.BufferPoolError, BufferError, ValueError):
            pass
def everything():
    each(lambda: [table[n] for n in range(16)], lambda: work[3].sum(), pool.flush, pool.check, pool.trim, pool.reap, pool.frames,
         pool.stats, lambda: table.drop(0, 4), lambda: work.append().__enter__(), lambda: table.prefetch(range(20)), pool.check)
def corrupt(use):
    try:
        use()
    except SegmentCorrupt:
        return
    raise AssertionError("no SegmentCorrupt")
"""

_WORDS = {
    "more pages than entries": """
put(space("span"), word(space("span")) >> 32 << 32 | 300000)
ballast(0)
for use in (lambda: table[250000], lambda: table.read_many([3, 250000]), lambda: table.pin_many([250000]), lambda: table.prefetch([250000]),
            lambda: table.write(250000).__enter__(), lambda: table.pin(250000)):
    corrupt(use)
each(lambda: table.drop(250000, 10))
""",
    "more entries than have memory": """
put(space("entries_ready"), 100000); put(space("entries_ready", 1), 900000); put(space("allocated", 1), word(space("allocated", 1)) | 4000)
ballast(0)
each(lambda: os.utime(path), lambda: pool.open_file(path, name="table"), table.remove, work.remove)
""",
    "an intent over pages without entries": """
at = die()
for i, op in enumerate((1, 2, 3, 4, 5)):
    os.pwrite(fd, b"".join(n.to_bytes(4, "little") for n in (op, 900000, 60, 61, 900001, 0)), at + 32 * i)
ballast(0)
pool.reap()
""",
    "a frame of a page without an entry": "put(frame(live), 900000 << 32 | 3); ballast(0); assert pool.check()",
    "a superseded frame that is a hole": "put(frame(hole), 4); ballast(0); pool.trim(); pool.trim()",
    "a frame of the dead that is a hole": "die(); put(frame(hole), 2 | 2 << 3); ballast(0); pool.reap()",
    "an entry that names a hole": """
put(entries, hole << _core.ENTRY_FRAME_SHIFT | 2)
ballast(0)
corrupt(lambda: table[0])
corrupt(lambda: table.write(0).__enter__())
""",
    "an entry that names the frame of another page": """
put(entries + 8, live << _core.ENTRY_FRAME_SHIFT | 2)
corrupt(lambda: table[1])
""",
    "more frames than there are, in half of the word": "put(ready, 4096, 4); ballast(0)",
    "more frames than there are, in the other half": "put(ready + 4, 4096, 4); ballast(0)",
    "more frames than there are": "put(ready, 4096); ballast(0)",
}


@pytest.mark.parametrize("damage", _WORDS)
def test_a_damaged_word_leads_to_no_memory_that_is_not_there(damage, tmp_path):
    """One word of the segment is damaged, within all bounds; what it leads to is a hole of the file.

    Where the file system has room, a touch allocates memory that nobody counts; where it is full, it was a SIGBUS.
    """
    code = (
        _SMALL
        + _DAMAGED.replace("sys.argv[2]", repr(str(tmp_path / "data.db")))
        + _WORDS[damage]
        + "\neverything()\nos._exit(0)"
    )
    assert on_small_tmpfs(code, tmp_path) == ""
