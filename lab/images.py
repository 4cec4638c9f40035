"""The files from which a guest boots: Debian's kernels, a root file system made with debootstrap, and a disk with the project.

They lie in CACHE and are made once, except for the disk with the project, which is made for each run.
"""

import fcntl
import functools
import hashlib
import lzma
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).parents[1]
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bufferpool-lab"
MIRROR = "http://deb.debian.org/debian"
KEYS = "/usr/share/keyrings/debian-archive-keyring.gpg"
PACKAGES = (
    "busybox-static,ca-certificates,ccache,crun,dmsetup,e2fsprogs,fuse-overlayfs,g++,kmod,netavark,podman,procps,"
    "python3,python3-dev,strace,util-linux"
)
WHEELS = ("numpy", "prometheus-client", "pytest>=8", "hypothesis>=6.100", "rich", "xxhash", "apsw", "msgspec", "pip",
          "setuptools>=77", "wheel")  # fmt: skip
# Modules of Debian's kernels that a guest may need. A kernel that does not have one of them runs without it.
MODULES = (
    "virtio_pci", "virtio_blk", "virtio_console", "virtio_balloon", "virtio_rng", "ext4", "crc32c_generic", "crc32c-intel",
    "overlay", "fuse", "zram", "lz4", "lzo-rle", "loop", "dm-mod", "dm-flakey", "dm-log-writes", "veth",
)  # fmt: skip
SOURCES = ("bufferpool/core/", "tests/native/", "setup.py", "pyproject.toml")
"""What the compiled core depends on."""
NEEDS = {"qemu-system-x86_64": "qemu-system-x86", "debootstrap": "debootstrap", "cpio": "cpio", "mkfs.ext4": "e2fsprogs",
         "git": "git", "dpkg-deb": "dpkg", "apt-get": "apt"}  # fmt: skip
NEEDS_ARM64 = {"qemu-system-aarch64": "qemu-system-arm", "aarch64-linux-gnu-g++": "g++-aarch64-linux-gnu"}
PACKAGES_ARM64 = "busybox-static,kmod,libstdc++6,procps,python3,python3-dev,util-linux"


@dataclass(frozen=True)
class Kernel:
    """A kernel of the lab: the Debian release that it comes from, and the one whose root file system it boots."""

    name: str
    suite: str
    root: str
    python: str
    arch: str = "amd64"
    user_mode: bool = False
    """Whether it is a process of the host."""
    most_counted: int = 2
    """The most processors of a guest that counts instructions. On amd64, a kernel before 6.5 does not start a second one there: the
    first polls for the second without giving it a turn (seen with qemu 7.2)."""

    @property
    def qemu(self) -> list[str]:
        """The program that emulates it, with its processor."""
        if self.arch == "arm64":
            return ["qemu-system-aarch64", "-machine", "virt", "-cpu", "neoverse-n1"]
        return ["qemu-system-x86_64", "-cpu", "max,la57=off"]

    @property
    def options(self) -> str:
        """Options of the kernel. Its clock is that of the processor, because with another clock each reading is a system call.
        The kernel waits ten ticks for its timer, and panics, when the host is too busy to emulate one."""
        return (
            "console=ttyAMA0" if self.arch == "arm64" else "console=ttyS0 clocksource=tsc tsc=reliable no_timer_check"
        )

    @property
    def triplet(self) -> str:
        """The compiler's name of the machine."""
        return "aarch64-linux-gnu" if self.arch == "arm64" else "x86_64-linux-gnu"


# Debian 11 has Python 3.9 only: its kernel boots the root of Debian 12. The User Mode Linux of Debian 12 failed
# on a processor with AMX, in the function that saves the processor's state; that of Debian 13 was not tried.
KERNELS = {
    kernel.name: kernel
    for kernel in (
        Kernel("5.10", "bullseye", "bookworm", "3.11", most_counted=1),
        Kernel("6.1", "bookworm", "bookworm", "3.11", most_counted=1),
        Kernel("6.12", "trixie", "trixie", "3.13"),
        Kernel("6.1-arm64", "bookworm", "bookworm", "3.11", "arm64"),
        Kernel("UML", "sid", "trixie", "3.13", user_mode=True),
    )
}


@dataclass(frozen=True)
class Images:
    """The files from which a guest boots."""

    kernel: Path
    initrd: Path
    root: Path
    project: Path


def run(*command: str | Path, **options: object) -> None:
    """Runs a command of the host. Its output is shown only when it fails."""
    done = subprocess.run([*map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))} failed:\n{done.stdout.decode(errors='replace')[-4000:]}")


def require_tools(kernels: Iterable[Kernel]) -> None:
    """Ends the program if the host lacks a tool."""
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    needs = NEEDS | (NEEDS_ARM64 if any(kernel.arch == "arm64" for kernel in kernels) else {})
    missing = sorted({package for tool, package in needs.items() if not shutil.which(tool)})
    if missing:
        sys.exit(f"The lab needs: apt-get install --no-install-recommends {' '.join(missing)}")
    if os.geteuid() != 0:
        sys.exit("The lab runs debootstrap and chroot: run it as root, or with `unshare --map-root-user --map-auto`.")


# ---- roots ---------------------------------------------------------------------------


def remove(folder: Path) -> None:
    """Removes a folder that a run which was killed may have left, with file systems such as /proc mounted in it: they are unmounted
    first, so that nothing of them is removed. Raises OSError if one of them cannot be unmounted."""
    for line in reversed(Path("/proc/self/mountinfo").read_text().splitlines()):  # the latest mount first
        place = Path(line.split()[4].encode().decode("unicode_escape"))  # a space is written as \\040
        if place.is_relative_to(folder.resolve()):
            done = subprocess.run(["umount", place], capture_output=True, text=True, check=False)
            if done.returncode:
                raise OSError(f"{place} is mounted and cannot be unmounted: {done.stderr.strip()}")
    if folder.exists():
        shutil.rmtree(folder)


def base_folder(kernel: Kernel) -> Path:
    """The root file system of a release as a folder, with a compiler and Python."""
    packages = PACKAGES_ARM64 if kernel.arch == "arm64" else PACKAGES
    made_of = [packages.encode(), b"compiled"] if kernel.arch == "arm64" else [packages.encode()]
    folder = CACHE / f"root-{kernel.root}-{kernel.arch}-{digest(made_of)}"
    if not folder.exists():
        print(f"debootstrap {kernel.root} {kernel.arch}", flush=True)
        making = folder.with_suffix(".new")
        remove(making)
        (CACHE / "debs").mkdir(exist_ok=True)
        options = ["--variant=minbase", f"--cache-dir={CACHE}/debs", f"--include={packages}", f"--arch={kernel.arch}"]
        if kernel.arch == "arm64":
            run("debootstrap", "--foreign", *options, kernel.root, making, MIRROR)
            unpack(making)
            compile_python(kernel, making / f"usr/lib/python{kernel.python}", f"/usr/lib/python{kernel.python}")
        else:
            run("unshare", "--mount", "debootstrap", *options, kernel.root, making, MIRROR)  # its mounts end with it
        for name in ("lab", "wheels", "disk"):
            (making / name).mkdir()
        making.rename(folder)
    return folder


def root_folder(kernel: Kernel) -> Path:
    """The root file system as a folder, with the wheels that the tests need."""
    folder = base_folder(kernel)
    wheels = folder / wheels_folder().lstrip("/")
    if not wheels.exists():
        making, machine = wheels.with_suffix(".new"), kernel.triplet.partition("-")[0]
        tags = ["--only-binary=:all:", "--implementation=cp", f"--python-version={kernel.python}"]
        tags += [f"--platform=manylinux{glibc}_{machine}" for glibc in ("_2_28", "_2_27", "_2_17", "2014")]
        run(sys.executable, "-m", "pip", "install", "--quiet", "--no-compile", f"--target={making}", *tags, *WHEELS)
        compile_python(kernel, making, wheels_folder())
        making.rename(wheels)
    return folder


def unpack(folder: Path) -> None:
    """Unpacks the packages that debootstrap has fetched for another architecture. They need not be configured."""
    for package in sorted((folder / "var/cache/apt/archives").glob("*.deb")):
        run("dpkg-deb", "-x", package, folder)
    (folder / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/bash\nnobody:x:65534:65534:nobody:/:/bin/false\n")
    (folder / "etc/group").write_text("root:x:0:\nnogroup:x:65534:\n")


def wheels_folder() -> str:
    """The folder of the guest with the wheels that the tests need."""
    return f"/wheels/{digest([''.join(WHEELS).encode(), b'compiled'])}"


def compile_python(kernel: Kernel, folder: Path, place: str) -> None:
    """Compiles the Python files that the guest has at ``place``, except those of other versions: a guest keeps nothing that it
    compiles, so that each process in it would compile all that it imports. Compiled files depend on the version only."""
    script = """mount --bind "$1" "$2/mnt" && chroot "$2" python3 -c "" &&
        { chroot "$2" python3 -m compileall -q -s /mnt -p "$3" /mnt || true; }"""
    run("unshare", "--mount", "sh", "-c", script, "sh", folder, base_folder(replace(kernel, arch="amd64")), place)


def root_image(kernel: Kernel) -> Path:
    """The root file system as an image of ext4."""
    folder = root_folder(kernel)
    image = CACHE / f"{folder.name}-{digest([wheels_folder().encode()])}.ext4"
    if not image.exists():
        make_ext4(image, folder, "3G")
    return image


def make_ext4(image: Path, folder: Path, size: str) -> None:
    """An image of ext4 with the contents of a folder."""
    making = image.with_suffix(".new")
    making.unlink(missing_ok=True)
    run("mkfs.ext4", "-q", "-d", folder, making, size)
    making.rename(image)


def digest(parts: Iterable[bytes]) -> str:
    """A short name for some content."""
    found = hashlib.sha256()
    for part in parts:
        found.update(part)
    return found.hexdigest()[:10]


# ---- kernels -------------------------------------------------------------------------


def kernel_folder(kernel: Kernel) -> Path:
    """The unpacked package of a kernel, from the archive of its release; apt verifies the signatures."""
    folder = CACHE / f"{'uml' if kernel.user_mode else 'kernel'}-{kernel.suite}-{kernel.arch}"
    if folder.exists():
        return folder
    print(f"fetching the kernel of {kernel.suite} {kernel.arch}", flush=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as made:
        place = Path(made)
        (place / "lists").mkdir()
        (place / "sources.list").write_text(f"deb [signed-by={KEYS}] {MIRROR} {kernel.suite} main\n")
        (place / "status").touch()
        options = [
            f"-oDir::Etc::sourcelist={place}/sources.list", "-oDir::Etc::sourceparts=/dev/null",
            f"-oDir::State::lists={place}/lists", f"-oDir::State::status={place}/status", f"-oDir::Cache={place}",
            "-oAPT::Sandbox::User=root", f"-oAPT::Architecture={kernel.arch}", f"-oAPT::Architectures={kernel.arch}",
        ]  # fmt: skip
        run("apt-get", *options, "update", "-q")
        depends = subprocess.run(
            ["apt-cache", *options, "depends", f"linux-image-{kernel.arch}"], capture_output=True, text=True, check=True
        )
        image = next(line.split()[-1] for line in depends.stdout.splitlines() if "Depends: linux-image" in line)
        run("apt-get", *options, "download", "user-mode-linux" if kernel.user_mode else image, cwd=place)
        run("dpkg-deb", "-x", next(place.glob("*.deb")), place / "unpacked")
        (place / "unpacked").rename(folder)
    return folder


def modules_of(folder: Path) -> Iterator[Path]:
    """The modules that guests need, each after those that it depends on."""
    (base,) = (*folder.glob("lib/modules/*"), *folder.glob("usr/lib/modules/*"))
    files = {path.name.split(".ko")[0].replace("-", "_"): path for path in base.rglob("*.ko*")}
    seen: set[str] = set()

    def visit(name: str) -> Iterator[Path]:
        if name in seen or name not in files:
            return
        seen.add(name)
        for needed in depends_of(module_bytes(files[name])):
            yield from visit(needed)
        yield files[name]

    for name in MODULES:
        yield from visit(name.replace("-", "_"))


def module_bytes(path: Path) -> bytes:
    """A module's file, unpacked."""
    return lzma.decompress(path.read_bytes()) if path.suffix == ".xz" else path.read_bytes()


def depends_of(module: bytes) -> list[str]:
    """The modules that a module names in its section .modinfo."""
    found = module.partition(b"\0depends=")[2].partition(b"\0")[0].decode()
    return [name.replace("-", "_") for name in found.split(",") if name]


def initrd(kernel: Kernel) -> Path:
    """A small initrd: busybox, the modules, and the script that mounts the disks and starts the agent."""
    script = (Path(__file__).parent / "init.sh").read_text()
    image = CACHE / f"initrd-{kernel.suite}-{kernel.arch}-{digest([script.encode(), repr(MODULES).encode()])}.cpio"
    if image.exists():
        return image
    with tempfile.TemporaryDirectory(dir=CACHE) as made:
        place = Path(made)
        for name in ("bin", "modules", "proc", "sys", "dev", "newroot"):
            (place / name).mkdir()
        shutil.copy(root_folder(kernel) / "bin/busybox", place / "bin/busybox")
        for number, path in enumerate(modules_of(kernel_folder(kernel))):
            (place / "modules" / f"{number:03}-{path.name.split('.ko')[0]}.ko").write_bytes(module_bytes(path))
        (place / "init").write_text(script)
        (place / "init").chmod(0o755)
        making = image.with_suffix(".new")
        run("sh", "-c", f"find . | cpio --quiet -o -H newc > {making}", cwd=place)
        making.rename(image)
    return image


# ---- the project ---------------------------------------------------------------------


def tree() -> dict[str, bytes]:
    """The files of the tree as it is now, without the documentation: the lab writes its table there."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    names = [name for name in listed.stdout.splitlines() if (ROOT / name).is_file() and not name.startswith("docs/")]
    return {name: (ROOT / name).read_bytes() for name in names}


def project_image(kernel: Kernel) -> Path:
    """A disk with the tree, and in it the core for the guest's Python; made anew when the tree has changed."""
    root, files = root_folder(kernel), tree()
    name = f"project-{kernel.root}-{kernel.arch}"
    image = CACHE / f"{name}-{digest(part for item in files.items() for part in (item[0].encode(), item[1]))}.ext4"
    if image.exists():
        return image
    with tempfile.TemporaryDirectory(dir=root / "lab") as made:
        place = Path(made)
        for file, content in files.items():
            (place / file).parent.mkdir(parents=True, exist_ok=True)
            (place / file).write_bytes(content)
        for built in core(kernel, place, files).iterdir():
            shutil.copy(built, place / "bufferpool" if built.suffix == ".so" else place)
        compile_python(kernel, place, "/lab")
        keep_newest(f"{name}-*.ext4")
        make_ext4(image, place, "512M")
    return image


def core(kernel: Kernel, place: Path, files: dict[str, bytes]) -> Path:
    """The compiled core for the guest's Python, and the races of tests/native, of a tree; compiled on the host, and
    again only when the sources have changed."""
    sources = [part for name, content in files.items() if name.startswith(SOURCES) for part in (name.encode(), content)]
    folder = CACHE / f"core-{kernel.root}-{kernel.arch}-{digest(sources)}"
    if folder.exists():
        return folder
    making = folder.with_suffix(".new")
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir()
    library = place / "bufferpool" / f"_core.cpython-{kernel.python.replace('.', '')}-{kernel.triplet}.so"
    if kernel.arch == "arm64":
        cross_compile(kernel, place, library)
    else:
        compile_inside(kernel, place)
    for built in (library, place / "races"):
        built.rename(making / built.name)  # fails if the core was compiled for another Python
    keep_newest(f"core-{kernel.root}-{kernel.arch}-*")
    making.rename(folder)
    return folder


def keep_newest(pattern: str) -> None:
    """Removes what was made of older trees; the two that were made last stay, for a run that still uses one."""
    for old in sorted(CACHE.glob(pattern), key=lambda path: -path.stat().st_mtime)[2:]:
        shutil.rmtree(old) if old.is_dir() else old.unlink()


RACES = ("-std=c++20", "-O2", "-w", "-pthread", "-static", "-DBP_NO_ADVICE", "-Ibufferpool/core", "-Itests/native",
         "tests/native/races.cpp", "-o", "races")  # fmt: skip


def compile_inside(kernel: Kernel, place: Path) -> None:
    """Compiles the core of a tree in place with the compiler and the Python of the root file system."""
    run("chroot", root_folder(kernel), "bash", "-c", f"""
        cd /lab/{place.name} && export CC='ccache gcc' CXX='ccache g++' CCACHE_DIR=/lab/.ccache CCACHE_BASEDIR=$PWD CCACHE_NOHASHDIR=1 &&
        export PYTHONPATH={wheels_folder()} PYTHONWARNINGS=ignore &&
        python3 setup.py -q build_ext --inplace && rm -rf build *.egg-info && ccache g++ {' '.join(RACES)}""")  # fmt: skip


def cross_compile(kernel: Kernel, place: Path, library: Path) -> None:
    """Compiles the core of a tree for another architecture."""
    root = root_folder(kernel)
    includes = [root / f"usr/include/python{kernel.python}", root / "usr/include", place / "bufferpool/core",
                root / wheels_folder().lstrip("/") / "numpy/_core/include"]  # fmt: skip
    flags = ["-std=c++20", "-O3", "-fPIC", "-shared", "-fno-exceptions", "-fno-rtti", "-fvisibility=hidden", "-w", "-s"]
    run(f"{kernel.triplet}-g++", *flags, *(f"-I{folder}" for folder in includes),
        *sorted((place / "bufferpool/core").rglob("*.cpp")), "-o", library)  # fmt: skip
    run(f"{kernel.triplet}-g++", *RACES, cwd=place)


@functools.cache
def images(kernel: Kernel) -> Images:
    """All that a guest with this kernel boots from; makes what is missing."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (
        ExitStack() as locks
    ):  # courses, and several runs, may need the same; amd64 compiles Python files for arm64, too
        for arch in sorted({kernel.arch, "amd64"}):
            lock = locks.enter_context(open(CACHE / f"lock-{kernel.root}-{arch}", "w"))
            fcntl.flock(lock, fcntl.LOCK_EX)
        root, project, folder = root_image(kernel), project_image(kernel), kernel_folder(kernel)
        if kernel.user_mode:
            return Images(folder / "usr/bin/linux.uml", Path(os.devnull), root, project)
        return Images(next(folder.glob("boot/vmlinuz-*")), initrd(kernel), root, project)
