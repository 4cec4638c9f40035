"""Damaged segments end in a result or a typed error, not in a crash or a hang."""

import os

import pytest

import bufferpool as bp
from tests.conftest import PAGE
from tests.support import fuzz_segment
from tests.support.children import on_small_tmpfs, run_python


def test_a_damaged_segment_ends_in_results_or_typed_errors():
    run = fuzz_segment.fuzz_in_parallel(1, fuzz_segment.Limits(mutations=10_000, findings=3))
    assert [str(finding) for finding in run.found] == []
    assert run.mutations >= 10_000


def test_a_search_for_victims_ends_although_none_of_the_pages_can_be_evicted():
    """The fuzzer found it in a run of a million damages: a shrink tried for ever to evict pages whose frames belong to other
    pages."""
    run = fuzz_segment.fuzz_in_parallel(1_000_502, fuzz_segment.Limits(rounds=1))
    assert [str(finding) for finding in run.found] == []
    assert run.operations > 50


@pytest.mark.soak
def test_a_million_damages_end_in_results_or_typed_errors_under_the_sanitizers():
    limits = fuzz_segment.Limits(mutations=1_000_000, findings=20)
    run = fuzz_segment.fuzz_in_parallel(1_000_000, limits, "address,undefined")
    print(run.mutations, "mutations", run.operations, "operations")
    assert [str(finding) for finding in run.found] == []
    assert run.mutations >= 1_000_000


_DAMAGE = """
import mmap, os, struct, sys
import numpy as np
import bufferpool as bp
from bufferpool import _core
from bufferpool.errors import BufferPoolError
from tests.support.fuzz_damage import bitmap_words, CLIENT, FRAME, HEADER, HEADER_KEPT, INTENTS, SPACE, SPACE_FIELDS, Layout, fields
name, path = sys.argv[1:]
pool = bp.Pool.create(name, 32 * 4096, page_size=4096, extent_size=16384, max_capacity=1 << 20, room=1 << 20, max_clients=8, max_pages=8192)
with open(path, "wb") as file:
    file.write(bytes(48 * 4096))
table = pool.open_file(path, "r+", name="table", max_pages=400)
work = pool.open_scratch("work", 16)
for n in (*range(48), 3, 4, 5):
    table[n].sum()
with table.write(3) as page:
    page[:] = 1
with work.write(0) as page:
    page[:] = 1
shm = mmap.mmap(os.open(pool.path, os.O_RDWR), os.stat(pool.path).st_size)
at = Layout(shm)
FIRST = at.space(shm, 1, 'first_entry')  # of the scratch space
ME = pool.client.seg.status()["client"]
CHUNKS = at.tops_at + 8 * 2 * -(-at.max_frames // (1 << 18))
def put(offset, value, size=8):
    shm[offset : offset + size] = value.to_bytes(size, "little")
def header(field, value):
    put(HEADER[field][0], value, HEADER[field][1])
def space(i, field, value):
    put(at.spaces_at + i * SPACE + SPACE_FIELDS[field][0], value, SPACE_FIELDS[field][1])
def entry(page, state, owner=0, flusher=0, frame=0):
    high = (frame << _core.ENTRY_FRAME_SHIFT) % 2**64
    put(at.entries_at + 8 * page, high | flusher << _core.ENTRY_FLUSHER_SHIFT | owner << _core.ENTRY_OWNER_SHIFT | state)
def typed(use):
    try:
        use()
    except (BufferPoolError, BufferError, ValueError):
        pass
def everything():
    for use in (lambda: [table[n].sum() for n in range(48)], lambda: table.read_many(range(48)), lambda: table.prefetch(range(48)),
                lambda: pool.trim("64KiB"), lambda: pool.trim(), lambda: pool.flush(), lambda: pool.stats(),
                lambda: pool.frames(), lambda: pool.check(), lambda: table.drop(0, 4), lambda: pool.resize("64KiB", timeout=0.1)):
        typed(use)
"""

_DAMAGES = {
    "a ring that begins outside": "header('policy.cold.head', 0xffffffff); header('policy.hot.head', 0x7fffffff); everything()",
    "rings with four billion elements": "header('policy.cold.count', 0xffffffff); header('policy.hot.count', 0xfffffff0); everything()",
    "a budget of the policy that is none": "header('policy.frames', 0xffffffff); header('policy.cold.head', 1 << 30); everything()",
    "the check of endless rings": "header('policy.cold.count', 0xffffffff); typed(pool.check)",
    "a memory lock that nobody can have": "header('memory.word', 511); everything()",
    "a directory lock that nobody can have": "header('directory.word', 9); typed(lambda: pool.open_scratch('more', 4))",
    "a growth lock that nobody can have": "header('growth.word', 9 | 1 << 31); typed(lambda: pool.open_scratch('more', 4))",
    "a flush lock that nobody can have": "space(0, 'flush_lock.word', 300); typed(pool.flush)",
    "a memory lock in our own name": "header('memory.word', ME); everything()",
    "a growth lock in our own name, with waiters": "header('growth.word', ME | 1 << 31); typed(lambda: pool.open_scratch('more', 4))",
    "a directory lock in our own name": "header('directory.word', ME); pool.open_scratch('more', 4)",
    "a flush lock in our own name": "space(0, 'flush_lock.word', ME); typed(pool.flush)",
    "a directory lock of a client that this process was before": """
other = bp.Pool.attach(name)
before = other.client.seg.status()["client"]
assert before != ME
other.close()
header('directory.word', before); pool.open_scratch('more', 4)
""",
    "a flush lock of a client that is none, which seems to flush since now": """
import time
space(0, 'flush_since_ns', time.clock_gettime_ns(time.CLOCK_BOOTTIME)); space(0, 'flush_lock.word', 7)
for n in range(48):  # more than the pool has frames: it flushes the others
    with table.write(n) as page:
        page[:] = 1
""",
    "a page loaded by us": "entry(40, 1, owner=ME); assert table[40].sum() == 0",
    "a page evicted by us": "entry(40, 3, owner=ME, frame=7); typed(lambda: table[40])",
    "a page flushed by us": "entry(40, 2, flusher=ME, frame=4); typed(lambda: table.drop(40, 1)); everything()",
    "a page loaded by nobody": "entry(40, 1); typed(lambda: table[40])",
    "a page loaded by a client that cannot be": "entry(40, 1, owner=400); typed(lambda: table[40])",
    "a page loaded by a dead client without an intent": "entry(40, 1, owner=7); typed(lambda: table[40])",
    "a page evicted by nobody": "entry(40, 3, frame=7); typed(lambda: table[40])",
    "a page evicted from a frame that is none": "entry(40, 3, owner=9, frame=0xffffffff); typed(lambda: table[40])",
    "a page in a frame that is none": "entry(40, 2, frame=0xffffffff); everything()",
    "a page written by a client that cannot be": "entry(40, 2, owner=400, frame=4); typed(lambda: table.drop(40, 1)); everything()",
    "a page flushed by a client that cannot be": "entry(40, 2, flusher=400, frame=4); typed(lambda: table.drop(40, 1)); everything()",
    "a space whose remover died at once": """
held = [work[n] for n in range(8)]; del held
span = int.from_bytes(shm[at.spaces_at + SPACE : at.spaces_at + SPACE + 8], "little")
space(1, 'span', ((span >> 33) + 1) << 33 | 1 << 32)
pool.open_scratch("more", 4)
assert "work" not in [record["name"] for record in pool.client.seg.spaces()], "it is still there"
assert (pool.frames()["space"] != 1).all() or pool.client.seg.spaces()[-1]["name"] == "more"
assert pool.check() == []
new = pool.open_scratch("work", 16)
assert new[0].sum() == 0, "an old page in a new space"
""",
    "scratch spaces that end behind the last entry": "space(1, 'max_pages', 9000); typed(pool.check); everything()",
    "more pages than the space may have": """
generation = int.from_bytes(shm[at.spaces_at : at.spaces_at + 8], "little") >> 33
space(0, 'span', generation << 33 | 0xffffffff)
for use in (lambda: table.read_many([1 << 32, 4000000000]), lambda: table.pin_many([4000000000]), lambda: table.prefetch([4000000000]),
            lambda: table[4000000000], lambda: table.write(4000000000).__enter__(), lambda: table.drop(4000000000, 1)):
    typed(use)
""",
    "an append to a space in no known state": """
space(1, 'state', 7); space(1, 'entries_ready', 0)
typed(lambda: work.append())
""",
    "a first entry that is none, then an append": """
before = os.stat(pool.path).st_blocks
space(1, 'first_entry', 0xfffffe00); space(1, 'entries_ready', 0)
typed(lambda: work.append())
assert os.stat(pool.path).st_blocks <= before + 64, "memory beyond the entries"
""",
    "a page whose frame changes during its write": """
def write():
    with work.write(0) as page:
        entry(FIRST, 2, owner=1, frame=0x3fffff0)
typed(write)
""",
    "an endless count of entries, and a changed file": """
space(0, 'entries_ready', 2**64 - 1)
typed(pool.flush); os.utime(path); typed(lambda: pool.open_file(path, name="table")); typed(lambda: table.remove())
""",
    "a count of entries that wraps, repaired by the growth lock": """
magic = shm[:HEADER_KEPT]
space(1, 'entries_ready', (2**64 - at.entries_at - FIRST * 8) // 8)
header('growth.word', 7)  # dead: its inheritor repairs
typed(lambda: pool.open_scratch('more', 4))
assert shm[:HEADER_KEPT] == magic, "the header was given back to the kernel"
""",
    "a generation of ours that is not ours, while a page is written": """
generation = at.clients_at + (ME - 1) * CLIENT + fields("Client")["generation"][0]
try:
    with work.write(9, timeout=1):
        put(generation, 77)
        raise KeyError("the write is given up")
except KeyError:
    pass
put(generation, 1)
with work.write(9, timeout=1) as page:  # it has no writer any more
    page[:] = 1
""",
    "a client that died in a write, while nobody can see how many frames there are": """
import subprocess
def other(use):
    subprocess.run([sys.executable, "-c", f"import bufferpool as bp; pool = bp.Pool.attach({name!r}); {use}"], check=True)
if os.fork() == 0:
    with work.write(9):
        os._exit(0)
os.wait()
header('frames_ready', 2)
other("pool.reap()")
header('frames_ready', 128 << 32 | 128)
other("pool.space('work', 'r+').write(9, timeout=1).__enter__()")  # a client, perhaps in the slot of the one that died
""",
    "free frames that are pages": """
for word in bitmap_words(at, 0):
    put(word, 2**64 - 1)
kept = {n: table[n].copy() for n in (3, 4, 5)}
with work.write(9) as page:
    page[:] = 9
typed(lambda: [work[n] for n in range(10, 16)])
for n in kept:
    typed(lambda n=n: (table[n] == kept[n]).all() or sys.exit("another page's content"))
""",
    "an intent to flush everything, of a dead client": """
base = at.clients_at + 2 * CLIENT
before = os.stat(pool.path).st_blocks
shm[base + INTENTS : base + INTENTS + 20] = struct.pack("<5I", 5, 0, 0, 0xffffffff, 0)
put(base + fields("Client")["state"][0], 1, 4)
typed(pool.reap)
assert os.stat(pool.path).st_blocks <= before + 16, "entries that no space has got memory"
""",
    "a bitmap of the chunks of entries that has lost one, repaired by the growth lock": """
for copy in range(3):
    put(CHUNKS + 8 * copy, 0)
    header('growth.word', 7)  # dead: its inheritor punches what has no bit
    pool.open_scratch(f'more{copy}', 4)[0]
    assert work[0][0] == 1 and table[3][0] == 1
    with table.write(4) as page:
        page[:] = copy
    pool.flush()
    assert open(path, 'rb').read()[4 * 4096] == copy
assert pool.check() == []
""",
    "a bitmap of the chunks of entries that has all, and an intent to flush everything, of a dead client": """
base = at.clients_at + 2 * CLIENT
before = os.stat(pool.path).st_blocks
for copy in range(3):
    kept = shm[CHUNKS + 8 * copy : CHUNKS + 8 * copy + 8]
    put(CHUNKS + 8 * copy, 2**64 - 1)
    shm[base + INTENTS : base + INTENTS + 20] = struct.pack("<5I", 5, 0, 0, 0xffffffff, 0)
    put(base + fields("Client")["state"][0], 1, 4)
    typed(pool.reap)
    assert os.stat(pool.path).st_blocks <= before + 16, "entries that no space has got memory"
    shm[CHUNKS + 8 * copy : CHUNKS + 8 * copy + 8] = kept
""",
    "a page in a ring that is none": """
e = int.from_bytes(shm[at.entries_at + 24 : at.entries_at + 32], "little")
entry(3, e | 3 << 4)
typed(pool.check); everything()
""",
    "frames that are not ready yet": "header('frames_ready', 0xffffffff); everything()",
    "a budget without end": "header('budget_frames', 0xffffffff); everything()",
    "no budget": "header('budget_frames', 0); everything()",
    "less than no memory in use": "header('resident', 0xfffffff0); everything()",
    "a kind of space that is none": "space(0, 'kind', 77); space(1, 'kind', 0); typed(lambda: pool.space('table')); everything()",
}


@pytest.mark.parametrize("damage", _DAMAGES)
def test_damage(damage, pool_name, tmp_path):
    code = f"{_DAMAGE}\nimport faulthandler; faulthandler.dump_traceback_later(300, exit=True)\n{_DAMAGES[damage]}\nos._exit(0)"
    done = run_python(code, pool_name, str(tmp_path / "data.db"))
    assert done.returncode == 0, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"


def test_a_flush_does_not_write_into_another_file_of_the_same_path(pool_name, tmp_path):
    """The file was replaced; the process that flushes has never opened it."""
    path = tmp_path / "data.db"
    path.write_bytes(bytes(8 * PAGE))
    writer = """
import sys, bufferpool as bp
pool = bp.Pool.create(sys.argv[1], "256KiB", page_size=4096)
with pool.open_file(sys.argv[2], "r+").write(1) as page:
    page[:] = 1
"""
    assert run_python(writer, pool_name, str(path)).returncode == 0
    other = tmp_path / "other.db"
    other.write_bytes(b"\x55" * (8 * PAGE))
    os.replace(other, path)
    with bp.Pool.attach(pool_name) as pool, pytest.raises(bp.errors.StoreError):
        pool.flush()
    assert path.read_bytes() == b"\x55" * (8 * PAGE)


_COUNTS = """
import os, signal, struct, sys
import bufferpool as bp
from bufferpool import _core
from bufferpool.errors import BufferPoolError
where, data, word = sys.argv[1:]
at = _core.fields()[f"Header.{word}"][0]
def use_all(table, fresh):
    pool = table.pool
    def observe():
        with bp.Observer("p", directory=where) as seen:
            seen.stats(), seen.clients(), seen.frames(), seen.events(), seen.operations()
    def attach():
        bp.Pool.attach("p", directory=where).stats()
    uses = [pool.reap, pool.stats, pool.clients, pool.check, pool.frames, pool.extents, pool.operations, pool.snapshots, pool.flush, pool.advise,
            lambda: [table[n] for n in range(20)], lambda: table.read_many(range(20)), lambda: pool.open_scratch("more", 4),
            lambda: [space.name for space in pool.spaces()], lambda: pool.open_scratch("s" * 2000, 4),
            lambda: pool.cache("values").put("k", 1), lambda: pool.trim("64KiB"), lambda: pool.resize("64KiB", timeout=0.1), observe]
    for use in [attach, *uses] if fresh else uses:
        try:
            use()
        except (BufferPoolError, BufferError, ValueError, LookupError):
            pass
def attempt(value, fresh):
    pool = bp.Pool.create("p", 32 * 4096, page_size=4096, extent_size=16384, max_capacity=1 << 20, room=1 << 20, directory=where,
                          max_clients=1000, max_pages=1 << 20)
    table = pool.open_file(data, "r+", name="t", max_pages=4096)
    pool.open_scratch("t" * 2000, 4)
    table.read_many(range(20))
    with table.write(3) as page:
        page[:] = 1
    with open(f"{where}/filler", "wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass
    dead = os.fork()
    if dead == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(dead, 0)
    with open(f"{where}/p", "r+b") as file:
        now = struct.unpack("<Q", os.pread(file.fileno(), 8, at))[0]
        os.pwrite(file.fileno(), struct.pack("<Q", value(now)), at)
    child = os.fork()
    if child == 0:
        use_all(table, fresh)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(word, hex(value(now)), "in a new process" if fresh else "", status)
    os.unlink(f"{where}/filler")
    pool.unlink(discard=True)
    pool.close()
    return status
with open(data, "wb") as file:
    file.write(bytes(64 * 4096))
for value in (lambda now: now & ~0xffffffff | 900, lambda now: now & 0xffffffff | 900 << 32, lambda now: 2**64 - 1, lambda now: now ^ 1 << 7,
              lambda now: now ^ 1 << 42, lambda now: 0x80000000 << 32 | 0x80000000):
    for fresh in (False, True):
        if attempt(value, fresh):
            sys.exit(1)
"""


@pytest.mark.parametrize(
    "word",
    [
        "slots_ready",
        "slots_asked",
        "more_banks",
        "frames_ready",
        "spaces_ready",
        "long_texts",
        "advice_frames",
        "object_bytes",
    ],
)
def test_a_damaged_count_of_what_has_memory_is_no_bound(word, tmp_path):
    """Each count that bounds an access is stored twice in its word. On a full tmpfs an access beyond the true one is SIGBUS."""
    code = f"import sys; sys.argv += [{str(tmp_path / 'data.db')!r}, {word!r}]\n{_COUNTS}"
    assert on_small_tmpfs(code, tmp_path, "12m").count("\n") == 12
