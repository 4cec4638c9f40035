"""The doctor: what it finds, and that it finds it."""

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

import bufferpool as bp
from bufferpool import _core
from bufferpool.cli import doctor, main
from bufferpool.machine import mounts
from bufferpool.machine.pressure import Reading, SystemSource
from tests.client.test_segment_damaged import VERSION_AT
from tests.conftest import PAGE, fill
from tests.support.children import on_small_tmpfs

Capture = pytest.CaptureFixture[str]


def test_doctor(capsys: Capture) -> None:
    findings = {f.what: f for f in doctor.examine()}
    for what in ("MADV_REMOVE", "PUNCH_HOLE", "OFD locks", "/dev/shm"):
        assert findings[what].level is not doctor.Level.FAIL, findings[what]
    failed = any(f.level is doctor.Level.FAIL for f in findings.values())
    assert main(["doctor"]) == int(failed)
    assert "MADV_REMOVE" in capsys.readouterr().out
    assert main(["doctor", "--json"]) == int(failed)
    assert {f["what"] for f in json.loads(capsys.readouterr().out)} >= {"kernel", "swap", "RLIMIT_AS"}


def test_doctor_of_a_place_that_will_not_do(tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["doctor", "--directory", str(tmp_path / "none")]) == 1
    assert "does not exist" in capsys.readouterr().out
    monkeypatch.setattr(doctor, "mount_of", lambda directory: mounts.Mount("/", "ext4", ()))
    assert main(["doctor", "--directory", str(tmp_path)]) == 1
    assert "is on ext4 (/), not on a tmpfs" in capsys.readouterr().out


def test_doctor_knows_the_size_of_containers(monkeypatch: pytest.MonkeyPatch) -> None:
    space = os.statvfs("/dev/shm")
    small = os.statvfs_result((4096, 4096, 16384, 16384, 16384, *tuple(space)[5:]))
    monkeypatch.setattr(os, "statvfs", lambda path: small)
    finding = next(f for f in doctor.examine() if f.what == "/dev/shm")
    assert finding.level is doctor.Level.WARN
    assert "--shm-size" in finding.remedy


@pytest.mark.parametrize(
    ("release", "level"), [("6.14.2-1", "FAIL"), ("7.0.0-rc1", "FAIL"), ("7.0.0-rc2", "WARN"), ("6.6.87", "WARN")]
)
def test_doctor_knows_the_kernels_that_return_wrong_data(
    monkeypatch: pytest.MonkeyPatch, release: str, level: str
) -> None:
    monkeypatch.setattr("platform.release", lambda: release)
    monkeypatch.setattr(doctor, "mount_of", lambda directory: mounts.Mount("/dev/shm", "tmpfs", ("huge=always",)))
    monkeypatch.setattr(doctor, "shmem_enabled", lambda: "never")
    finding = next(f for f in doctor.examine() if f.what == "huge pages")
    assert finding.level == level
    assert "huge=never" in finding.remedy
    monkeypatch.setattr(doctor, "shmem_enabled", lambda: "deny")
    assert next(f for f in doctor.examine() if f.what == "huge pages").level == "OK"


def test_doctor_finds_a_reclaim_that_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_madvise", lambda fd, at: None)
    finding = next(f for f in doctor.examine() if f.what == "MADV_REMOVE")
    assert finding.level is doctor.Level.FAIL
    assert "gave 0 bytes back" in finding.text


def test_doctor_finds_leftovers(pool_name: str) -> None:
    with bp.Pool.create(pool_name, "1MiB") as pool:
        assert next(f for f in doctor.examine() if f.what == f"pool {pool_name}").text.endswith("in use")
        assert doctor.in_use(pool.path)
        assert pool.check() == []
    assert not doctor.in_use(pool.path)
    finding = next(f for f in doctor.examine() if f.what == f"pool {pool_name}")
    assert finding.level is doctor.Level.WARN
    assert finding.remedy.endswith(f"bufferpool rm {pool_name}")


def test_doctor_tells_another_layout_version_from_damage(pool_name: str) -> None:
    """A segment that another version of the library had made was called damaged."""
    with bp.Pool.create(pool_name, "1MiB") as pool:
        path = Path(pool.path)
    with path.open("r+b") as file:
        file.seek(VERSION_AT)
        file.write(struct.pack("<I", _core.LAYOUT_VERSION + 1))
    finding = next(f for f in doctor.examine() if f.what == f"pool {pool_name}")
    assert "nobody attached, of another layout version: the segment has layout version" in finding.text
    assert "damaged" not in finding.text


def test_doctor_and_stats_tell_whose_pages_the_kernel_keeps_too(pool: bp.Pool, data_file: Callable[..., Path]) -> None:
    """No test looked at what they say of a file whose pages are in the kernel's page cache as well."""
    if mounts.mount_of(str(data_file(1).parent)).kind == "tmpfs":
        pytest.skip("files here are in the page cache anyway")
    pool.open_file(data_file(2), name="once", cache="pool")
    found = [one.text for one in doctor.examine() if one.what == f"pool {pool.name}"]
    assert not [text for text in found if "page cache" in text]
    pool.open_file(data_file(3), name="twice", cache="kernel")
    assert {space.name: space.cache for space in pool.stats().spaces} == {"once": "pool", "twice": "kernel"}
    found = [one.text for one in doctor.examine() if one.what == f"pool {pool.name}"]
    assert [text for text in found if "the kernel's page cache keeps pages of twice too" in text]


def test_doctor_counts_the_pages_that_are_in_memory_only(pool_name: str, data_file: Callable[..., Path]) -> None:
    """The doctor said of a pool that nobody uses: remove it. It did not say that pages were in it that no file had."""
    with bp.Pool.create(pool_name, "1MiB", page_size=PAGE) as pool:
        fill(pool.open_file(data_file(8), "r+"), [1, 2], version=1)
        fill(pool.open_scratch("temporary", 8), [0])
    finding = next(f for f in doctor.examine() if f.what == f"pool {pool_name}")
    assert finding.text.endswith("nobody attached, 2 dirty pages in memory only")
    assert finding.remedy.startswith(f"bufferpool flush {pool_name} ")
    assert main(["flush", pool_name]) == 0
    finding = next(f for f in doctor.examine() if f.what == f"pool {pool_name}")
    assert finding.text.endswith("nobody attached")


@pytest.mark.parametrize(
    ("table", "files", "limit"),
    [
        ("0::/a/b\n", {"a/memory.max": "1000", "a/b/memory.max": "max"}, 1000),
        ("0::/a/b\n", {"a/memory.max": "1000", "a/b/memory.max": "500"}, 500),
        ("0::/a\n", {"a/memory.max": "max"}, None),
        ("4:memory:/x\n0::/\n", {"memory/x/memory.limit_in_bytes": "777"}, 777),
        ("4:memory:/gone\n", {"memory/memory.limit_in_bytes": "9223372036854771712"}, None),
    ],
)
def test_the_limit_of_the_cgroup(tmp_path: Path, table: str, files: dict[str, str], limit: int | None) -> None:
    (tmp_path / "table").write_text(table)
    for path, text in files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text + "\n")
    assert doctor.cgroup_limit(str(tmp_path), str(tmp_path / "table")) == limit


def test_doctor_warns_of_budgets_that_the_tmpfs_has_no_memory_for(tmp_path: Path) -> None:
    """A pool may be resized as far as the tmpfs is large, independent of other files there: the doctor did not report that it would not fit."""
    code = """
import sys, bufferpool as bp
from bufferpool.cli import doctor
def budgets():
    return next(f for f in doctor.examine(sys.argv[1]) if f.what == "budgets")
a = bp.Pool.create("a", "2MiB", page_size=4096, directory=sys.argv[1], max_clients=8)
b = bp.Pool.create("b", "2MiB", page_size=4096, directory=sys.argv[1], max_clients=8)
print(budgets().level)
b.resize("7MiB")
found = budgets()
print(found.level, "b 7.0 MiB, a 2.0 MiB" in found.text, "bufferpool resize" in found.remedy)
work = a.open_scratch("work", 64)
for n in range(64):
    with work.write(n) as page:
        page[:] = 1
b.resize("2MiB")
print(budgets().level, a.check(), b.check())
"""
    assert on_small_tmpfs(code, tmp_path).splitlines() == ["OK", "WARN True True", "OK [] []"]


@pytest.mark.parametrize(("some", "trigger", "level"), [(1.0, True, "OK"), (1.0, False, "OK"), (None, False, "WARN")])
def test_doctor_names_what_the_kernel_lacks(
    monkeypatch: pytest.MonkeyPatch, some: float | None, trigger: bool, level: str
) -> None:
    """Kernels before 6.14 have no RWF_DONTCACHE, and a kernel may have no PSI, or no trigger: the pool works, silently."""
    monkeypatch.setattr(SystemSource, "read", lambda self: Reading(psi_some=some))
    monkeypatch.setattr(SystemSource, "triggered", trigger)
    monkeypatch.setattr(doctor, "RWF_DONTCACHE", 1 << 30)  # a flag that no kernel has
    findings = {f.what: f for f in doctor.examine()}
    assert findings["PSI"].level == level
    assert ("psi=1" in findings["PSI"].remedy) == (some is None)
    assert findings["RWF_DONTCACHE"].text.startswith("refused")


@pytest.mark.parametrize(
    ("clock", "level"), [("tsc", "OK"), ("kvm-clock", "OK"), ("hpet", "WARN"), ("acpi_pm", "WARN")]
)
def test_doctor_knows_clocks_that_cost_a_system_call(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, clock: str, level: str
) -> None:
    """In an emulated machine with the clock acpi_pm, a miss took four system calls instead of one, and nothing said so."""
    (tmp_path / "clock").write_text(f"{clock}\n")
    monkeypatch.setattr(doctor, "_CLOCK", tmp_path / "clock")
    finding = next(f for f in doctor.examine() if f.what == "clock")
    assert finding.level == level
    assert ("clocksource=tsc" in finding.remedy) == (level == "WARN")
    monkeypatch.setattr(doctor, "_CLOCK", tmp_path / "none")
    assert not any(f.what == "clock" for f in doctor.examine())
