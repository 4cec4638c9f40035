"""What a guest boots from: Debian's kernels, a root file system made with debootstrap, and a disk with the project.

All of it lies in CACHE, and is made once; only the disk with the project is made anew for each run.
"""

import functools
import hashlib
import lzma
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
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
# What a guest may need that Debian builds as modules; a kernel without one of them goes without it.
MODULES = (
    "virtio_pci", "virtio_blk", "virtio_console", "virtio_balloon", "virtio_rng", "ext4", "crc32c_generic", "crc32c-intel",
    "overlay", "fuse", "zram", "lz4", "lzo-rle", "loop", "dm-mod", "dm-flakey", "dm-log-writes", "veth",
)  # fmt: skip
NEEDS = {"qemu-system-x86_64": "qemu-system-x86", "debootstrap": "debootstrap", "cpio": "cpio", "mkfs.ext4": "e2fsprogs",
         "dpkg-deb": "dpkg", "apt-get": "apt"}  # fmt: skip
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

    @property
    def qemu(self) -> list[str]:
        """The program that emulates it, with its processor."""
        if self.arch == "arm64":
            return ["qemu-system-aarch64", "-machine", "virt", "-cpu", "neoverse-n1"]
        return ["qemu-system-x86_64", "-cpu", "max,la57=off"]

    @property
    def options(self) -> str:
        """Options of the kernel. Its clock is that of the processor: else each look at the time is a system call."""
        return "console=ttyAMA0" if self.arch == "arm64" else "console=ttyS0 clocksource=tsc tsc=reliable"

    @property
    def triplet(self) -> str:
        """The compiler's name of the machine."""
        return "aarch64-linux-gnu" if self.arch == "arm64" else "x86_64-linux-gnu"


# Debian 11 has Python 3.9 only: its kernel boots the root of Debian 12.
KERNELS = {
    kernel.name: kernel
    for kernel in (
        Kernel("5.10", "bullseye", "bookworm", "3.11"),
        Kernel("6.1", "bookworm", "bookworm", "3.11"),
        Kernel("6.12", "trixie", "trixie", "3.13"),
        Kernel("6.1-arm64", "bookworm", "bookworm", "3.11", "arm64"),
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
    """Runs a command of the host at a low priority. Its output is shown only when it fails."""
    done = subprocess.run(
        ["nice", "-n", "5", *map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options
    )
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


def root_folder(kernel: Kernel) -> Path:
    """The root file system as a folder, with a compiler and Python."""
    packages = PACKAGES_ARM64 if kernel.arch == "arm64" else PACKAGES
    folder = CACHE / f"root-{kernel.root}-{kernel.arch}-{digest([packages.encode()])}"
    if not folder.exists():
        print(f"debootstrap {kernel.root} {kernel.arch}", flush=True)
        making = folder.with_suffix(".new")
        shutil.rmtree(making, ignore_errors=True)
        (CACHE / "debs").mkdir(exist_ok=True)
        options = ["--variant=minbase", f"--cache-dir={CACHE}/debs", f"--include={packages}", f"--arch={kernel.arch}"]
        if kernel.arch == "arm64":
            run("debootstrap", "--foreign", *options, kernel.root, making, MIRROR)
            unpack(making)
        else:
            run("debootstrap", *options, kernel.root, making, MIRROR)
        for name in ("lab", "wheels", "disk"):
            (making / name).mkdir()
        making.rename(folder)
    wheels = folder / "wheels" / digest(["".join(WHEELS).encode()])
    if not wheels.exists():
        making, machine = wheels.with_suffix(".new"), kernel.triplet.partition("-")[0]
        tags = ["--only-binary=:all:", "--implementation=cp", f"--python-version={kernel.python}"]
        tags += [f"--platform=manylinux{glibc}_{machine}" for glibc in ("_2_28", "_2_27", "_2_17", "2014")]
        run(sys.executable, "-m", "pip", "install", "--quiet", f"--target={making}", *tags, *WHEELS)
        making.rename(wheels)
    return folder


def unpack(folder: Path) -> None:
    """Unpacks all that debootstrap has fetched for another architecture: what runs here needs none of it configured."""
    for package in sorted((folder / "var/cache/apt/archives").glob("*.deb")):
        run("dpkg-deb", "-x", package, folder)
    (folder / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/bash\nnobody:x:65534:65534:nobody:/:/bin/false\n")
    (folder / "etc/group").write_text("root:x:0:\nnogroup:x:65534:\n")


def wheels_folder(kernel: Kernel) -> str:
    """The folder of the guest with the wheels that the tests need."""
    return f"/wheels/{digest([''.join(WHEELS).encode()])}"


def root_image(kernel: Kernel) -> Path:
    """The root file system as an image of ext4."""
    folder = root_folder(kernel)
    image = CACHE / f"{folder.name}-{digest([wheels_folder(kernel).encode()])}.ext4"
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
    folder = CACHE / f"kernel-{kernel.suite}-{kernel.arch}"
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
        name = next(line.split()[-1] for line in depends.stdout.splitlines() if "Depends: linux-image" in line)
        run("apt-get", *options, "download", name, cwd=place)
        run("dpkg-deb", "-x", next(place.glob("linux-image*.deb")), place / "unpacked")
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
    """A disk with the tree, and in it the package for the guest's Python; made anew when the tree has changed."""
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
        if kernel.arch == "arm64":
            cross_compile(kernel, place)
        else:
            build_wheel(kernel, place)
        for old in CACHE.glob(f"{name}-*.ext4"):
            old.unlink()
        make_ext4(image, place, "512M")
    return image


def build_wheel(kernel: Kernel, place: Path) -> None:
    """Builds the wheel of a tree inside the root, and unpacks it over the tree."""
    inside = f"/lab/{place.name}"
    run("chroot", root_folder(kernel), "bash", "-c", f"""
        cd {inside} && export CC='ccache gcc' CXX='ccache g++' CCACHE_DIR=/lab/.ccache CCACHE_BASEDIR={inside} CCACHE_NOHASHDIR=1 &&
        export PYTHONPATH={wheels_folder(kernel)} PYTHONWARNINGS=ignore &&
        python3 -m pip wheel -q --no-build-isolation --no-deps --no-index -w dist . && rm -rf build *.egg-info &&
        python3 -m pip install -q --no-deps --no-index --target site dist/*.whl &&
        cp -r site/bufferpool . && mv site/*.dist-info . && rm -rf site && python3 -m compileall -q bufferpool tests""")  # fmt: skip


def cross_compile(kernel: Kernel, place: Path) -> None:
    """Compiles the core of a tree for another architecture, in place."""
    root = root_folder(kernel)
    includes = [root / f"usr/include/python{kernel.python}", root / "usr/include", place / "bufferpool/core",
                root / wheels_folder(kernel).lstrip("/") / "numpy/_core/include"]  # fmt: skip
    flags = ["-std=c++20", "-O3", "-fPIC", "-shared", "-fno-exceptions", "-fno-rtti", "-fvisibility=hidden", "-w", "-s"]
    name = f"_core.cpython-{kernel.python.replace('.', '')}-{kernel.triplet}.so"
    run(f"{kernel.triplet}-g++", *flags, *(f"-I{folder}" for folder in includes),
        *sorted((place / "bufferpool/core").rglob("*.cpp")), "-o", place / "bufferpool" / name)  # fmt: skip


@functools.cache
def images(kernel: Kernel) -> Images:
    """All that a guest with this kernel boots from; makes what is missing."""
    CACHE.mkdir(parents=True, exist_ok=True)
    root = root_image(kernel)
    vmlinuz = next(kernel_folder(kernel).glob("boot/vmlinuz-*"))
    return Images(vmlinuz, initrd(kernel), root, project_image(kernel))
