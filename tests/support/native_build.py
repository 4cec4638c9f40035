"""bufferpool, compiled for a test: with points that kill, or with sanitizers.

    python -m tests.support.native_build address,undefined   prints the environment to run with

A build is a copy of the package in a directory of its own, in build/. It is used again while its
sources have not changed.
"""

import fcntl
import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy
import pytest

from tests.support.mistakes import mistakes_beside

ROOT = Path(__file__).parents[2]
CORE = ROOT / "bufferpool" / "core"
NATIVE = ROOT / "tests" / "native"
SOURCES = sorted([*CORE.rglob("*.h"), *CORE.rglob("*.cpp")])
COMPILER = shlex.split(os.environ.get("CXX", "g++"))  # a command and its arguments: it may be "ccache g++"
FLAGS = ["-std=c++20", "-fPIC", "-fno-exceptions", "-fno-rtti", "-fvisibility=hidden", "-w"]
if sysconfig.get_config_var("Py_GIL_DISABLED"):
    FLAGS.append("-DBP_FREE_THREADED=1")  # as in setup.py
RUNTIME = {"address": "libasan.so", "thread": "libtsan.so"}


def program(name: str, out: Path, *flags: str, core: Path = CORE, native: Path = NATIVE) -> Path:
    """A program of tests/native, with the headers of the core, or of a copy that a test has altered.

    The test is skipped where there is no compiler, as in the lab's guests for arm64, whose core is compiled outside.
    """
    if not shutil.which(COMPILER[0]):
        pytest.skip(f"there is no compiler here ({COMPILER[0]})")
    wanted = ["-std=c++20", "-O2", "-Wall", "-Wextra", "-Wno-missing-field-initializers", "-Werror", *flags]
    command = [*COMPILER, *wanted, f"-I{core}", f"-I{native}", str(native / f"{name}.cpp"), "-o", str(out)]
    subprocess.run(command, check=True)
    return out


def with_mistakes(to: Path, mistakes: Sequence[tuple[str, Callable[[str], str]]]) -> tuple[Path, Path]:
    """Copies of the core's headers and of tests/native that have every mistake (a file's name, what changes its text).

    A program compiled from them makes the mistake whose number, counted from 1, is in the environment variable MISTAKE. So many
    mistakes need one run of the compiler only.
    """
    core, native = to / "core", to / "native"
    shutil.copytree(CORE, core, ignore=shutil.ignore_patterns("*.cpp"))
    shutil.copytree(NATIVE, native)
    by_file: dict[str, dict[int, Callable[[str], str]]] = {}
    for number, (name, change) in enumerate(mistakes, 1):
        by_file.setdefault(name, {})[number] = change
    for name, changes in by_file.items():
        (file,) = (path for place in (core, native) for path in place.rglob(name))
        text = file.read_text()
        file.write_text(mistakes_beside(text, {number: change(text) for number, change in changes.items()}))
    return core, native


# Two files of the core that are compiled for themselves: module.cpp imports numpy for all, and views.cpp has names of its own
# that others have, too. All others are compiled as one, because most of the time is spent on the same headers.
APART = ("module", "views")


def units(place: Path) -> list[Path]:
    """The sources for the compiler: the files that are compiled separately, and one that includes all others."""
    sources = sorted(CORE.rglob("*.cpp"))
    together = place / "together.cpp"
    together.write_text("".join(f'#include "{source}"\n' for source in sources if source.stem not in APART))
    return [together, *(source for source in sources if source.stem in APART)]


def build(package: Path, flags: Sequence[str]) -> None:
    """A copy of bufferpool whose core is compiled with these flags."""
    skip = shutil.ignore_patterns("*.so", "core", "__pycache__", "traces")
    shutil.copytree(ROOT / "bufferpool", package, ignore=skip)
    includes = [f"-I{CORE}", f"-I{numpy.get_include()}", f"-I{sysconfig.get_path('include')}"]

    def compile_one(source: Path) -> str:
        out = package / f"{source.stem}.o"
        subprocess.run([*COMPILER, *FLAGS, *flags, *includes, "-c", str(source), "-o", str(out)], check=True)
        return str(out)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compile_one, units(package)))
    library = package / f"_core{sysconfig.get_config_var('EXT_SUFFIX')}"
    subprocess.run([*COMPILER, *flags, "-shared", *objects, "-o", str(library)], check=True)
    for made in [*objects, package / "together.cpp"]:
        os.unlink(made)


def kept(name: str, flags: Sequence[str]) -> Path:
    """Such a copy in build/, made by the process that comes first, and used while its sources have not changed."""
    digest = hashlib.sha256(repr((COMPILER, FLAGS, flags, sys.version)).encode())
    for source in sorted([*ROOT.glob("bufferpool/**/*.py"), *NATIVE.glob("*.h"), *SOURCES]):
        digest.update(source.read_bytes())
    builds = ROOT / "build"
    builds.mkdir(exist_ok=True)
    place = builds / f"{name}-{digest.hexdigest()[:16]}"
    with open(builds / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not place.exists():
            for old in builds.glob(f"{name}-{'[0-9a-f]' * 16}*"):
                shutil.rmtree(old)
            making = place.with_suffix(".making")
            build(making / "bufferpool", flags)
            making.rename(place)
    return place / "bufferpool"


def runtime(name: str) -> str | None:
    """The path of the compiler's runtime library, None if it has none."""
    run = subprocess.run([*COMPILER, f"-print-file-name={name}"], capture_output=True, text=True, check=True)
    return os.path.realpath(run.stdout.strip()) if "/" in run.stdout else None


def sanitized(kinds: str) -> dict[str, str] | None:
    """Builds with -fsanitize=kinds; the environment that a Python process needs, None where there is no runtime.

    The address build also surrounds the segment with memory that cannot be accessed, so that accesses beyond either end are found,
    too.
    """
    library = runtime(RUNTIME[kinds.partition(",")[0]])
    if library is None:
        return None
    flags = [f"-fsanitize={kinds}", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-O1", "-g1"]
    if "address" in kinds:
        flags.append("-DBP_GUARD_BYTES=(1ull<<36)")
    place = kept(f"sanitized-{kinds.replace(',', '-')}", flags).parent
    return {
        "PYTHONPATH": f"{place}:{ROOT}",
        "LD_PRELOAD": library,
        "PYTHONMALLOC": "malloc",
        "ASAN_OPTIONS": "detect_leaks=0:handle_segv=0:handle_abort=0:allocator_may_return_null=1",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }


if __name__ == "__main__":
    made = sanitized(sys.argv[1])
    if made is None:
        sys.exit(f"{shlex.join(COMPILER)} has no runtime for -fsanitize={sys.argv[1]}")
    print(" ".join(f"{name}={value}" for name, value in made.items()))
