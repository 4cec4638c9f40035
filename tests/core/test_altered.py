"""Single words of a segment are altered on purpose, to the most plausible wrong value. (test_damage.py damages at random.)"""

import os
import signal
import struct
import subprocess
import sys
import time

import pytest

import bufferpool as bp
from bufferpool import _core
from tests.conftest import WAIT


def poke(pool: bp.Pool, struct_at: int, field: str, form: str, value: int) -> None:
    """Writes one field into the segment's file."""
    with open(pool.path, "r+b") as file:
        file.seek(struct_at + _core.fields()[field][0])
        file.write(struct.pack(form, value))


def area(pool: bp.Pool, name: str) -> int:
    """Where an area of the segment begins."""
    fields = _core.fields()
    with open(pool.path, "rb") as file:
        file.seek(fields["Header.geometry"][0] + fields[f"Geometry.{name}"][0])
        return int(struct.unpack("<Q", file.read(8))[0])


@pytest.mark.parametrize(
    "field",
    [f"SpaceSlot.{name}" for name in ("first_entry", "max_pages", "kind", "flags", "name_sum")]
    + ["SpaceTexts.name", "SpaceTexts.path"],
)
def test_a_space_slot_that_was_altered_is_not_taken_for_another_space(pool, data_file, field):
    first, second = pool.open_file(data_file(10), "r+", name="a"), pool.open_file(data_file(20), "r+", name="b")
    held, where = first[3], area(pool, "spaces_at" if field.startswith("SpaceSlot") else "texts_at")
    with open(pool.path, "rb") as file:
        file.seek(where)
        before = file.read(_core.fields()[field.partition(".")[0]][1])
    poke(pool, where, field, "<I", 0x777)
    with pytest.raises(bp.SegmentCorrupt, match="space slot 0"):
        pool.space("a")
    with pytest.raises(bp.SegmentCorrupt):
        pool.stats()
    assert second[5].size == pool.page_size  # open handles still work
    assert held.size == pool.page_size
    with open(pool.path, "r+b") as file:
        file.seek(where)
        file.write(before)
    assert pool.space("a")[3].tobytes() == held.tobytes()


def test_a_dead_client_whose_pid_another_process_has_by_now_is_reaped(pool, data_file):
    path = data_file(10)
    code = (
        f"import bufferpool as bp, sys\np = bp.Pool.attach({pool.name!r})\ns = p.open_file({str(path)!r}, 'r+')\n"
        "held = [s[n] for n in range(5)]\nprint('ready', flush=True)\nsys.stdin.read()\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        (client,) = [c for c in pool.clients() if c.pid == other.pid]
        other.send_signal(signal.SIGKILL)
    # As if the dead client's pid were in use again, by a living process with the same start time: this one.
    slot = area(pool, "clients_at") + (client.client - 1) * _core.fields()["Client"][1]
    me = next(c for c in pool.clients() if c.pid == os.getpid())
    poke(pool, slot, "Client.pid", "<I", me.pid)
    poke(pool, slot, "Client.start_time", "<Q", me.start_time)
    deadline = time.monotonic() + WAIT
    while not pool.reap() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert [c.client for c in pool.clients()] == [me.client]
    assert pool.stats().frames.pinned == 0
    assert pool.stats().pins_broken == 5
