"""What the kernel says of memory: cgroups of both versions from files of our own, and this machine's real PSI."""

import os
import threading
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from bufferpool.machine import pressure
from bufferpool.machine.pressure import Psi, Stall, SystemSource, cgroup_limit, cgroup_room, machine_memory, parse_psi
from bufferpool.prometheus import PoolCollector
from tests.conftest import WAIT

MIB = 1 << 20
TEXT = """some avg10=12.50 avg60=3.00 avg300=1.00 total=123456
full avg10=2.25 avg60=1.00 avg300=0.50 total=23456
"""


def test_a_pressure_file():
    assert parse_psi(TEXT) == Psi((12.5, 2.25), (123456, 23456))
    assert parse_psi("some avg10=1.00 avg60=0.00 avg300=0.00 total=7\n") == Psi((1.0, 0.0), (7, 0))
    with pytest.raises(ValueError, match="no pressure file"):
        parse_psi("nothing of the kind")


def test_a_stall_is_forgotten_in_two_seconds():
    """The kernel's avg10 still says 40 % long after; a governor that believed it would give everything away."""
    stall, total, seen = Stall(), 0, {}
    for tick in range(80):
        now = tick * 0.25
        if 2 <= now < 4:
            total += 125_000  # half of the time
        seen[now] = stall.add(now, Psi((40.0, 0.0), (total, 0)))[0]
    assert seen[0.0] == 40.0  # the first look knows nothing better
    assert seen[1.75] == 0.0
    assert seen[3.75] == pytest.approx(50.0, abs=7)
    assert seen[6.5] == 0.0
    assert all(0 <= share <= 100 for share in seen.values())


@pytest.fixture
def cgroups(tmp_path):
    """A tree of cgroups and the process's table: make(version, {folder: (limit, used, file cache)})."""

    def make(version, folders, path="/a/b"):
        root = tmp_path / "cgroup"
        base = root if version == 2 else root / "memory"
        for name, (limit, used, cache) in folders.items():
            folder = base / name
            folder.mkdir(parents=True, exist_ok=True)
            prefix = "" if version == 2 else "total_"
            (folder / "memory.stat").write_text(
                f"{prefix}inactive_file {cache // 2}\n{prefix}active_file {cache // 2}\nanon 7\n"
            )
            (folder / ("memory.current" if version == 2 else "memory.usage_in_bytes")).write_text(f"{used}\n")
            (folder / ("memory.max" if version == 2 else "memory.limit_in_bytes")).write_text(f"{limit}\n")
        table = tmp_path / "table"
        table.write_text(
            f"0::{path}\n" if version == 2 else f"4:cpu,cpuacct:/x\n9:memory:{path}\n1:name=systemd:/\n0::/\n"
        )
        return str(root), str(table)

    return make


@pytest.mark.parametrize("version", [1, 2])
def test_the_cgroup_with_the_least_room_counts(cgroups, version):
    none = "max" if version == 2 else 0x7FFFFFFFFFFFF000
    where = cgroups(
        version, {"a": (100 * MIB, 90 * MIB, 20 * MIB), "a/b": (200 * MIB, 10 * MIB, 0), ".": (none, MIB, 0)}
    )
    assert cgroup_limit(*where) == 100 * MIB
    name = "/a" if version == 2 else "/memory/a"
    assert cgroup_room(*where) == (100 * MIB, 30 * MIB, name)  # page cache would go first


@pytest.mark.parametrize("version", [1, 2])
def test_no_limit_is_none(cgroups, version):
    none = "max" if version == 2 else 0x7FFFFFFFFFFFF000
    where = cgroups(version, {"a/b": (none, 10 * MIB, 0)})
    assert cgroup_limit(*where) is None
    assert cgroup_room(*where) is None


def test_more_used_than_allowed_is_no_room(cgroups):
    assert cgroup_room(*cgroups(2, {"a/b": (MIB, 2 * MIB, 0)})) == (MIB, 0, "/a/b")


def test_memory_high_is_a_limit(cgroups):
    """Only memory.max counted: the steward saw room where the kernel already stopped each process that took memory."""
    root, table = cgroups(2, {"a": (200 * MIB, 90 * MIB, 0), "a/b": ("max", 10 * MIB, 0)})
    (Path(root) / "a/memory.high").write_text(f"{100 * MIB}\n")
    (Path(root) / "a/b/memory.high").write_text("max\n")
    assert cgroup_limit(root, table) == 100 * MIB
    assert cgroup_room(root, table) == (100 * MIB, 10 * MIB, "/a")


def test_a_cgroup_that_is_not_mounted_here_is_no_limit(tmp_path):
    table = tmp_path / "table"
    table.write_text("9:memory:/elsewhere\n0::/elsewhere\n")
    assert cgroup_room(str(tmp_path / "nothing"), str(table)) is None


def test_the_pressure_of_a_cgroup_is_told_apart_from_the_machines(cgroups, tmp_path, monkeypatch):
    """One series held the cgroup's pressure in a container and the machine's outside, and nothing said which."""
    root, table = cgroups(2, {"a/b": (MIB, 0, 0)})
    machine = tmp_path / "machine"
    monkeypatch.setattr(pressure, "MACHINE_PSI", str(machine))
    assert pressure.psi_files(root, table) == {}
    machine.write_text(TEXT)
    assert pressure.psi_files(root, table) == {"": str(machine)}
    own = Path(root) / "a" / "b"
    for name in ("cgroup.type", "memory.pressure"):
        (own / name).write_text(TEXT)
    files = pressure.psi_files(root, table)
    assert list(files.items()) == [("", str(machine)), ("/a/b", str(own / "memory.pressure"))]


def test_the_exporter_names_the_cgroup_of_each_figure(tmp_path, monkeypatch):
    own = tmp_path / "own"
    own.write_text(TEXT.replace("123456", "5000000"))
    machine = tmp_path / "machine"
    machine.write_text(TEXT)
    monkeypatch.setattr(pressure, "psi_files", lambda: {"": str(machine), "/a/b": str(own)})
    monkeypatch.setattr(pressure, "cgroup_room", lambda: pressure.Room(100 * MIB, 30 * MIB, "/a"))
    registry = CollectorRegistry()
    registry.register(PoolCollector())
    stalled = "bufferpool_memory_pressure_seconds_total"
    assert registry.get_sample_value(stalled, {"cgroup": "", "state": "some"}) == 0.123456
    assert registry.get_sample_value(stalled, {"cgroup": "/a/b", "state": "some"}) == 5.0
    assert registry.get_sample_value("bufferpool_cgroup_free_bytes", {"cgroup": "/a"}) == 30 * MIB


@pytest.mark.kernel
def test_this_machines_memory():
    total, free = machine_memory()
    assert 0 < free < total
    assert total == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


# ---- the real kernel -----------------------------------------------------------------------------

needs_psi = pytest.mark.skipif(
    not Path(pressure.MACHINE_PSI).exists(), reason="this kernel has no PSI (/proc/pressure)"
)


@pytest.fixture
def source():
    made = SystemSource("/dev/shm")
    yield made
    made.close()


def test_a_real_reading(source):
    reading = source.read()
    assert 0 < reading.machine_free < reading.machine_size
    about = os.statvfs("/dev/shm")
    assert reading.shm_size == (about.f_blocks * about.f_frsize or None)
    assert (reading.cgroup_limit is None) == (cgroup_limit() is None)


@pytest.mark.kernel
@needs_psi
def test_the_real_pressure_file_is_read(source):
    reading = source.read()
    assert 0 <= reading.psi_full <= reading.psi_some <= 100
    assert parse_psi(Path(pressure.psi_file()).read_text()).total_us[0] >= 0


@pytest.mark.kernel
@needs_psi
def test_the_kernel_grants_a_trigger(source):
    if not source.triggered:
        pytest.skip("this kernel or container grants this process no PSI trigger")
    assert source.wait(0.01) in (False, True)
    reads = SystemSource("/dev/shm", trigger=False)  # where it grants none, we look
    assert not reads.triggered
    assert reads.read().psi_some is not None
    reads.close()


def test_wake_ends_a_wait_now_and_from_now_on(source):
    thread = threading.Thread(target=source.wait, args=(600,))
    thread.start()
    source.wake()
    thread.join(WAIT)
    assert not thread.is_alive()
    assert source.wait(600) is False


def test_close_gives_every_descriptor_back_and_may_come_twice():
    before = len(os.listdir("/proc/self/fd"))
    source = SystemSource("/dev/shm")
    assert len(os.listdir("/proc/self/fd")) > before
    source.close()
    source.close()
    assert len(os.listdir("/proc/self/fd")) == before
    source.wake()  # no descriptor of other code gets a byte


@pytest.mark.kernel
def test_a_forked_child_has_none_of_the_sources_descriptors(source):
    mine = {os.readlink(f"/proc/self/fd/{fd}") for fd in source._fds() if fd >= 0}
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        found = []
        for fd in os.listdir("/proc/self/fd"):
            try:
                found.append(os.readlink(f"/proc/self/fd/{fd}"))
            except FileNotFoundError:
                continue  # the listing's own
        os.write(write, b"1" if mine & set(found) else b"0")
        os._exit(0)
    os.waitpid(pid, 0)
    assert os.read(read, 1) == b"0"
    os.close(read)
    os.close(write)
    assert source.triggered or source.read() is not None  # the parent's still work
