"""Looking at a pool without being its client: it changes nothing, and nothing stands in its way."""

import errno
import hashlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import bufferpool as bp
from bufferpool import _core
from bufferpool.cli import frame_map, main
from bufferpool.cli.top import figures
from bufferpool.observer import Observer
from bufferpool.prometheus.collector import PoolCollector
from tests.conftest import PAGE, SHM, WAIT
from tests.support.children import on_small_tmpfs, run_python
from tests.support.rights import needs_another_user
from tests.support.scrape import busy_pool, get, read

# ---- looking changes nothing ------------------------------------------------------------


def written(file: int, end: int) -> Iterator[tuple[int, bytes]]:
    """The blocks of a file before its byte `end` that are not zero, by place. Holes, which are larger by far, are not read.

    Memory that nobody has written yet is a hole until somebody reads it through a mapping.
    """
    at = 0
    while at < end:
        try:
            at = os.lseek(file, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return  # nothing follows
            raise
        hole = os.lseek(file, at, os.SEEK_HOLE)
        for block_at in range(at, min(hole, end), PAGE):
            if (block := os.pread(file, min(PAGE, end - block_at), block_at)).strip(b"\0"):
                yield block_at, block
        at = hole


def content(pool: bp.Pool | Path) -> tuple[str, int, int]:
    """A hash of all the metadata, read without mapping it, the blocks of the segment, and when it was written last."""
    path, hashed = pool if isinstance(pool, Path) else Path(pool.path), hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        for at, block in written(file.fileno(), _core.geometry(file.fileno())["data_at"]):
            hashed.update(f"{at}: ".encode() + block)
    return hashed.hexdigest(), path.stat().st_blocks, path.stat().st_mtime_ns


def test_a_scrape_writes_nothing_and_allocates_nothing(make_pool, data_file):
    pool = busy_pool(make_pool, data_file)
    fresh = make_pool("16MiB", max_pages=1 << 22)
    before = content(pool), content(fresh)
    for _ in range(3):
        read(pool.name, fresh.name)
        with Observer(pool.name) as observer:
            assert len(observer.frames()) == len(pool.frames())
            assert observer.extents()["live"].sum() == pool.extents()["live"].sum()
            assert [c.pid for c in observer.clients()] == [os.getpid()]
    assert (content(pool), content(fresh)) == before


def test_a_pool_without_a_free_slot_is_seen(make_pool):
    """The refusal names the process: it said "living processes" when one process had opened the pool 256 times."""
    pool = make_pool(max_clients=2)
    with bp.Pool.attach(pool.name):
        with pytest.raises(bp.errors.TooManyClients, match=f"2 of them by process {os.getpid()}"):
            bp.Pool.attach(pool.name)
        series = read(pool.name)
    assert get(series, "up", pool) == 1
    assert get(series, "clients", pool, state="alive") == get(series, "max_clients", pool) == 2


LOOKS = ["ls", "stat", "spaces", "clients", "frames", "extents", "pins", "events", "map", "advise"]


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_commands_that_look_need_no_slot_and_change_nothing(make_pool, data_file, capsys, form):
    pool = busy_pool(make_pool, data_file, max_clients=1)
    held = pool.space("table")[9]
    before = content(pool)
    for command in LOOKS:
        named = [] if command == "ls" else [pool.name]
        assert main([command, *named, *form]) == 0, command
        assert content(pool) == before, command
        assert pool.name in capsys.readouterr().out or named, command
    shown = figures.read_snapshot(pool.name, None)
    assert (shown.stats, shown.clients) == (pool.stats(), pool.clients())
    assert content(pool) == before
    with pytest.raises(bp.errors.TooManyClients):
        bp.Pool.attach(pool.name)
    del held


def test_commands_that_look_leave_the_dead_where_they_are(pools, child, capsys, spawn):
    """Every slot is a dead client's: what it pinned is still shown, and nobody has reaped it."""
    name, ready = pools.name(), spawn.Event()
    dead = child(create_and_hold, name, ready)
    assert ready.wait(WAIT)
    dead.kill()
    before = content(SHM / name)
    for command in LOOKS:
        assert main([command, *([] if command == "ls" else [name]), "--json"]) == 0, command
        assert content(SHM / name) == before, command
        found = json.loads(capsys.readouterr().out)
        if command == "ls":
            assert [row["clients"] for row in found if row["name"] == name] == [0]
        if command in ("clients", "pins"):
            assert [(row["pid"], row["alive"]) for row in found] == [(dead.pid, False)]
    with bp.Pool.attach(name) as pool:
        assert pool.stats().reaped == 1


def create_and_hold(name, ready):
    pool = bp.Pool.create(name, 64 * PAGE, page_size=PAGE, max_clients=1, max_pages=1 << 18)
    held = pool.open_derived("d", 10, lambda n, out: out.fill(n))[3]
    ready.set()
    time.sleep(60)
    del held


@needs_another_user
def test_a_pool_of_another_user_is_listed_and_shown(make_pool, child):
    pool = make_pool(permissions=0o644)
    out = child(look_as_nobody, pool.name, context="fork").result()
    assert out == 0


def look_as_nobody(name):
    os.setgid(65534)
    os.setuid(65534)
    return main(["ls"]) or main(["stat", name]) or main(["pins", name])


def test_an_observer_changes_nothing_and_says_what_to_do(pool):
    with Observer(pool.name) as observer:
        assert observer.stats() == pool.stats()
        for change in (
            observer.seg.reap,
            observer.seg.check,
            lambda: observer.seg.set_budget(5),
            lambda: observer.seg.lead(0.0),
        ):
            with pytest.raises(bp.errors.PoolReadOnly, match="attach"):
                change()
    with pytest.raises(bp.errors.PoolClosed):
        observer.stats()


def test_nothing_is_held_between_scrapes(pool):
    collector = PoolCollector(pool.name)
    list(collector.collect())
    maps = Path("/proc/self/maps").read_text().count(pool.name)
    fds = len(os.listdir("/proc/self/fd"))
    list(collector.collect())
    assert Path("/proc/self/maps").read_text().count(pool.name) == maps
    assert len(os.listdir("/proc/self/fd")) == fds


@needs_another_user
def test_a_pool_of_another_user_is_seen_if_its_mode_allows(make_pool, child):
    seen, hidden = make_pool(permissions=0o644), make_pool()
    up = child(read_as_nobody, seen.name, hidden.name, context="fork").result()
    assert up == {seen.name: 1.0, hidden.name: 0.0}


def read_as_nobody(*names: str) -> dict[str, float]:
    os.setgid(65534)
    os.setuid(65534)
    series = read(*names)
    return {name: get(series, "up", name) for name in names}


@pytest.mark.parametrize("seed", range(4))
def test_commands_that_look_at_noise_print_something_or_say_what_is_wrong(pools, capsys, seed):
    pool = pools.create("1MiB", room="1MiB", max_pages=1 << 18)
    pool.open_derived("d", 100, lambda n, out: None).read_many(range(100))
    copy = SHM / pools.name()
    pools.unchecked.add(copy.name)
    shutil.copyfile(pool.path, copy)  # this writes the holes as well: a pool with little room
    start, end = _core.fields()["Header.geometry_sum"][0] + 8, pool.client.geometry["data_at"]
    random = np.random.default_rng(seed)
    everywhere, here_and_there = [(start, end - start)], [(at, 8) for at in random.integers(start, end, 500)]
    with open(copy, "r+b") as file:
        for at, n in everywhere if seed % 2 else here_and_there:
            file.seek(at)
            file.write(random.bytes(n))
    for command in LOOKS:
        code = main([command, *([] if command == "ls" else [copy.name])])
        captured = capsys.readouterr()
        assert code == 0 or (code == 1 and captured.err.startswith("bufferpool: ")), command


@pytest.mark.parametrize("damage", ["truncated", "longer", "no header", "other layout", "punched", "noise"])
def test_a_damaged_segment_is_down_and_nothing_else(pools, damage):
    pool, sound = pools.create("1MiB", room="1MiB", max_pages=1 << 18), pools.create()
    space = pool.open_derived("d", 100, lambda n, out: None)
    for n in range(100):
        space[n]
    copy = SHM / pools.name()
    pools.unchecked.add(copy.name)
    shutil.copyfile(pool.path, copy)
    fields, at = _core.fields(), pool.client.geometry["data_at"]
    with open(copy, "r+b") as file:
        if damage == "truncated":
            file.truncate(at // 2)
        elif damage == "longer":
            file.truncate(at * 2)
        elif damage == "no header":
            file.write(bytes(4096))
        elif damage == "other layout":
            file.seek(fields["Header.version"][0])
            file.write(b"\x63")
        elif damage == "noise":
            file.seek(fields["Header.geometry_sum"][0] + 8)
            file.write(np.random.default_rng(1).bytes(at - file.tell()))
        elif damage == "punched":
            subprocess.run(["fallocate", "-p", "-o", "16384", "-l", str(at - 16384), copy], check=True)
    done = run_python(SCRAPE, copy.name, sound.name)
    assert done.returncode == 0, done.stderr
    up = dict(line.split() for line in done.stdout.splitlines())
    assert up[sound.name] == "1.0"
    if damage not in ("noise", "punched"):
        assert up[copy.name] == "0.0"


SCRAPE = """
import sys
from bufferpool.prometheus import server
for metric in server.registry_of(*sys.argv[1:]).collect():
    for s in metric.samples:
        if s.name == "bufferpool_up":
            print(s.labels["pool"], s.value)
"""


def test_a_full_tmpfs_does_not_end_a_scrape(tmp_path):
    out = on_small_tmpfs(FULL, tmp_path)
    assert out.split() == ["up", "1.0", "same", "True"]


FULL = """
import os, sys
import bufferpool as bp
from bufferpool.prometheus.collector import PoolCollector
where = sys.argv[1]
pool = bp.Pool.create("small", "4MiB", page_size=4096, max_pages=1 << 20, directory=where)
space = pool.open_derived("d", 100, lambda n, out: None)
space[1]
with open(where + "/filler", "wb", buffering=0) as file:
    try:
        while True:
            file.write(bytes(4096))
    except OSError:
        pass
blocks = os.stat(pool.path).st_blocks
up = [s.value for m in PoolCollector(directory=where).collect() for s in m.samples if s.name == "bufferpool_up"]
print("up", *up, "same", os.stat(pool.path).st_blocks == blocks)
"""


def test_a_frame_whose_pins_are_being_read_is_shown_as_superseded(pool):
    """A client leaves a frame in this state for a moment only, unless it is stopped there: the map had no colour for it."""
    fields = _core.fields()
    space = pool.open_scratch("work", 4)
    with space.write(0) as page:
        page[:] = 1
    free = int(np.flatnonzero(pool.frames()["state"] == bp.FrameState.FREE)[0])
    with open(pool.path, "r+b", buffering=0) as segment:
        where = fields["Header.geometry"][0] + fields["Geometry.frames_at"][0]
        at = int.from_bytes(os.pread(segment.fileno(), 8, where), "little") + free * _core.FRAME_SLOT_BYTES
        before = os.pread(segment.fileno(), 8, at)
        os.pwrite(segment.fileno(), (1 << 3 | _core.SETTLING).to_bytes(8, "little"), at)
        assert pool.frames()["state"][free] == bp.FrameState.RETIRED
        assert pool.stats().frames.retired == 1
        with Observer(pool.name) as seen:
            shown, kinds = frame_map.cells_of(seen, "state")
        assert kinds[shown[free]][0] == "retired"
        os.pwrite(segment.fileno(), before, at)
