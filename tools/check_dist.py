"""check_dist.py DIRECTORY: checks that the sdist and the wheel in a folder hold what they should, and no more.

The sdist holds every file of the checkout but those whose path begins with a dot, so that its tests run and its links
lead somewhere. The wheel holds the package without the sources of its core, and an extension without symbols.
"""

import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

GENERATED = ("PKG-INFO", "setup.cfg", "bufferpool.egg-info/")
NEEDED = {"bufferpool/py.typed", "bufferpool/_core.pyi", "bufferpool/__init__.py", "bufferpool/replay/traces/tpcc.npz"}


def check_sdist(path: Path) -> list[str]:
    tracked = subprocess.run(["git", "ls-files", "-z"], check=True, capture_output=True, text=True).stdout.split("\0")
    wanted = {name for name in tracked if name and not name.startswith(".")}
    with tarfile.open(path) as archive:
        held = {member.name.partition("/")[2] for member in archive if member.isfile()}
    return [f"the sdist lacks {name}" for name in sorted(wanted - held)] + [
        f"the sdist has {name}, which is not in the checkout"
        for name in sorted(held - wanted)
        if not name.startswith(GENERATED)
    ]


def check_wheel(path: Path) -> list[str]:
    with zipfile.ZipFile(path) as archive, tempfile.TemporaryDirectory() as folder:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
        extensions = [name for name in held if name.endswith(".so")]
        found = [f"the wheel lacks {name}" for name in sorted(NEEDED - held)]
        found += [f"the wheel has {name}" for name in sorted(held) if not name.startswith("bufferpool/")]
        found += [f"the wheel has the source {name}" for name in sorted(held) if name.endswith((".cpp", ".h"))]
        if len(extensions) != 1:
            return [*found, f"the wheel has {len(extensions)} extensions, not one"]
        extension = archive.extract(extensions[0], folder)
        sections = subprocess.run(["readelf", "-SW", extension], check=True, capture_output=True, text=True).stdout
        return found + [
            f"the extension has {name}: it is not stripped" for name in (".symtab", ".debug_info") if name in sections
        ]


def main(folder: Path) -> int:
    (sdist,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    found = check_sdist(sdist) + check_wheel(wheel)
    for line in found:
        print(line, file=sys.stderr)
    if not found:
        print(f"{sdist.name} and {wheel.name} hold what they should")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
