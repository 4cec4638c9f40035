"""The check of power failures: it recovers the bank from what a disk may have, and finds commits that are lost."""

import multiprocessing
import shutil
import subprocess
from pathlib import Path

import pytest

from lab.disk import Recording
from lab.power import Notes, verify
from tests.conftest import new_name
from tests.toydb import bank

TRANSFERS = 12
BLOCK = 4096
TOOLS = ("mkfs.ext4", "e2fsck", "debugfs")


def image(path: Path, *options: str) -> bytes:
    """A file system of ext4 of 24 MiB."""
    path.unlink(missing_ok=True)
    subprocess.run(["mkfs.ext4", "-q", "-b", str(BLOCK), *options, str(path), "24M"], check=True)
    return path.read_bytes()


@pytest.fixture
def recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Recording, Notes]:
    """A disk on which a bank was written, flushed, and noted; no guest is needed for it."""
    monkeypatch.setenv("PATH", "/usr/sbin:/sbin", prepend=":")
    if not all(map(shutil.which, TOOLS)):
        pytest.skip("needs e2fsprogs")
    folder, name = tmp_path / "bank", new_name()
    folder.mkdir()
    worker = multiprocessing.get_context("fork").Process(target=bank.work, args=(folder, name, 1, TRANSFERS))
    worker.start()
    worker.join()
    Path("/dev/shm", name).unlink(missing_ok=True)
    assert worker.exitcode == 0
    before, after = image(tmp_path / "image"), image(tmp_path / "image", "-d", str(folder))
    blocks = [at for at in range(0, len(after), BLOCK) if before[at : at + BLOCK] != after[at : at + BLOCK]]
    log = [*((at, after[at : at + BLOCK]) for at in blocks), (-1, b"")]
    notes = Notes(set())
    for line in (folder / "notes-1").read_text().splitlines():
        notes.hear(f"1 {line}", len(log))
    return Recording(before, log), notes


def test_the_bank_is_recovered_from_what_was_flushed(recorded: tuple[Recording, Notes], tmp_path: Path) -> None:
    """A guest recovered it, mounted 27 states in a row, and saw parts of the last one in its cache: on the host none is left."""
    recording, notes = recorded
    end = len(recording.log)
    assert len(notes.committed(end)) > TRANSFERS // 2
    assert verify(recording, notes, [(end, 1), (end, 2), (0, 1)], tmp_path) == []


def test_commits_that_are_lost_or_undone_are_found(recorded: tuple[Recording, Notes], tmp_path: Path) -> None:
    """A check that cannot fail shows nothing."""
    recording, notes = recorded
    end = len(recording.log)
    done = max(notes.committed(end))
    early = Notes({done})
    (lost,) = verify(recording, early, [(0, 1)], tmp_path)
    assert "acknowledged and lost" in lost
    undone = Notes(set(), [(end, done[0], "R", done[1])])
    (there,) = verify(recording, undone, [(end, 1)], tmp_path)
    assert "rolled back and there" in there


def test_a_file_system_that_cannot_be_repaired_is_a_finding(recorded: tuple[Recording, Notes], tmp_path: Path) -> None:
    recording, notes = recorded
    broken = Recording(b"\xff" * len(recording.first), [])
    (found,) = verify(broken, notes, [(0, 1)], tmp_path)
    assert "ext4 is damaged" in found
