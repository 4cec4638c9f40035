"""How the lab divides its checks among guests: those of one kernel and one machine share a guest."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lab import images
from lab.__main__ import PLANNED, courses
from lab.checks import GROUPS
from lab.images import KERNELS
from tests.conftest import ROOT, WAIT


def test_each_planned_check_runs_once_and_a_machine_boots_once() -> None:
    """Each group booted a guest of its own, and groups with the same machine booted it again and again."""
    found = courses(KERNELS, GROUPS, [])
    ran = sorted((course.kernel.name, name) for course in found for _, name in course.checks)
    assert ran == sorted((kernel, name) for name, kernels in PLANNED.items() for kernel in kernels)
    machines = [(course.kernel.name, course.machine) for course in found]
    assert len(set(machines)) == len(machines)


def test_a_part_runs_only_what_is_named() -> None:
    """A session may have time for some checks on some kernels."""
    (course,) = courses(["6.1", "UML"], ["core", "cgroup"], ["pins", "cgroup: elastic"])
    assert (course.kernel.name, course.checks) == ("6.1", [("core", "pins"), ("cgroup", "cgroup: elastic")])


def test_the_files_of_the_suite_have_tests_that_depend_on_the_kernel() -> None:
    """A file whose tests lost their mark would leave a row of the table without a test: pytest would end with 5 there."""
    text = (ROOT / "lab" / "checks.py").read_text()
    files = sorted({word.strip('",()') for word in text.split() if word.startswith(('tests("tests/', '"tests/'))})
    files = sorted({file.removeprefix('tests("') for file in files if file.endswith(".py")})
    assert len(files) >= 11
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-m", "kernel", "--collect-only", "-p", "no:cacheprovider", *files],
        cwd=ROOT, capture_output=True, text=True, timeout=WAIT, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert [file for file in files if file not in done.stdout] == []


def test_images_of_two_trees_stay_for_a_run_that_uses_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that made the disk of a changed tree removed the one from which a guest of another run was to boot."""
    monkeypatch.setattr(images, "CACHE", tmp_path)
    for n in range(4):
        for made in (tmp_path / f"project-{n}.ext4", tmp_path / f"core-{n}"):
            made.mkdir() if made.name.startswith("core") else made.touch()
            os.utime(made, (1000 + n, 1000 + n))
        images.keep_newest("project-*.ext4")
        images.keep_newest("core-*")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["core-2", "core-3", "project-2.ext4", "project-3.ext4"]


def test_one_line_of_the_document_and_of_the_makefile_installs_all_packages() -> None:
    """The Makefile named three of them, and the run stopped on a fresh machine to name two more."""
    packages = {*images.NEEDS.values(), *images.NEEDS_ARM64.values()} - {"apt", "dpkg"}
    line = f"apt-get install --no-install-recommends {' '.join(sorted(packages))}\n"
    assert f"\n{line}" in (ROOT / "docs" / "lab.md").read_text()
    assert f"\n#     {line}" in (ROOT / "Makefile").read_text()


LEFT = """
import subprocess, sys
from pathlib import Path
from lab import images
folder, kept = Path(sys.argv[1]), Path(sys.argv[2])
(folder / "proc").mkdir(parents=True)
subprocess.run(["mount", "--bind", kept, folder / "proc"], check=True)
images.remove(folder)
images.remove(folder)
"""


def test_what_a_killed_run_mounted_is_not_removed_with_its_folder(tmp_path: Path) -> None:
    """A run that was killed in debootstrap left /proc mounted in its folder, and the next run removed the folder with all that was
    mounted there."""
    namespace = ["unshare", "--map-root-user", "--mount"]
    if subprocess.run(
        [*namespace, "mount", "-t", "tmpfs", "none", tmp_path], capture_output=True, check=False
    ).returncode:
        pytest.skip("this machine lets no process mount a file system in a namespace")
    folder, kept = tmp_path / "root of a.new", tmp_path / "kept"
    kept.mkdir()
    (kept / "file").touch()
    command = [*namespace, sys.executable, "-c", LEFT, folder, kept]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert (kept / "file").exists()
    assert not folder.exists()
