"""A tmpfs of 8 MiB that fills up: a typed error or an eviction, never SIGBUS, and everything works once there is room."""

import pytest

from .children import on_small_tmpfs

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
print(full(lambda: pool.scratch("work", 4)[0]), pool.check())
""",
    "attach": """
pool = create()
ballast(0)
other = bp.Pool.attach("pool", directory=where)
print(pool.stats().clients, full(lambda: other.scratch("work", 1000)), pool.check())
os.unlink(where + "/ballast")
print(full(lambda: other.scratch("work", 1000)[5]), pool.check())
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
work = pool.scratch("work", 4000)
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
        assert pool.trim(bytes="1MiB") > 0 and errors < 100
print(len(table), all((table[n] == n % 251).all() for n in range(3000)), pool.check())
""",
    "squeezed": """
pool = create()
work = pool.scratch("work", 2000)
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
ballast(256 << 10)
print(full(lambda: pool.scratch("huge", 1 << 20)), pool.stats().spaces, pool.check())
os.unlink(where + "/ballast")
print(full(lambda: pool.scratch("small", 1000)[999]), pool.check())
""",
    "frames": """
pool = create(capacity="512MiB", max_clients=500)
ballast(100 << 10)
work = pool.scratch("work", 100)
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
    "entries": ["full [] []", "room []"],
    "frames": ["full []", "room []"],
}


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
    yield pool.scratch("huge", 40000)
    work = pool.scratch("work", 100)
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
    assert pool.scratch("more", 500)[400].sum() == 0
    pool.unlink(discard=True)
    pool.close()
print(full > 20, whole > 2)
"""


def test_a_file_system_that_fills_up_at_any_point_is_a_typed_error(tmp_path):
    code = _FILLING.replace("sys.argv[2]", repr(str(tmp_path / "data.db")))
    assert on_small_tmpfs(code, tmp_path).splitlines() == ["True True"]
