"""Which features the kernel has, and whether pages are loaded and flushed correctly with what there is."""

import json
import os
import tempfile

import bufferpool as bp
from bufferpool import _core
from bufferpool.cli import doctor
from bufferpool.machine.pressure import SystemSource
from bufferpool.stores.base import RWF_DONTCACHE

PATH, PAGES = "/lab/table.db", 512


def has_uncached() -> bool:
    """Whether preadv2 takes RWF_DONTCACHE, on a file of ext4."""
    with tempfile.TemporaryFile(dir="/lab") as file:
        file.write(bytes(4096))
        file.flush()
        try:
            os.preadv(file.fileno(), [bytearray(1)], 0, RWF_DONTCACHE)
            return True
        except OSError:
            return False


def moves_pages() -> list[str]:
    """Loads many pages of a file, writes one and flushes it; returns what was wrong."""
    with open(PATH, "wb") as out:
        out.write(b"".join(n.to_bytes(8, "little") * 512 for n in range(PAGES)))
    with bp.Pool.create("lab-features", "4MiB", page_size=4096) as pool:
        table = pool.open_file(PATH, "r+", cache="pool")
        wrong = [f"page {n}" for n, page in enumerate(table.read_many(range(PAGES))) if int(page.view("<u8")[7]) != n]
        with table.write(3) as page:
            page[:] = 7
        del page
        pool.flush()
        wrong += pool.check()
        pool.unlink(discard=True)
    with open(PATH, "rb") as file:
        data = file.read()
    return wrong + ["page 3 is not in the file"] * (data[3 * 4096 : 4 * 4096] != bytes([7]) * 4096)


if __name__ == "__main__":
    source = SystemSource("/dev/shm")
    found = {"io_uring": _core.has_io_uring(), "RWF_DONTCACHE": has_uncached(), "PSI trigger": source.triggered}
    source.close()
    told = {finding.what: finding.text for finding in doctor.examine()}
    names = {
        "io_uring": told["io_uring"].startswith("granted"),
        "RWF_DONTCACHE": told["RWF_DONTCACHE"].startswith("granted"),
        "PSI trigger": " wakes the steward " in told["PSI"],
    }
    print(json.dumps({**found, "named": names == found, "told": told, "wrong": moves_pages()}))
