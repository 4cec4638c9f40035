"""The tables of the objects in a pool's file, for tests that damage them. core/layout/objects.h says where they lie."""

import mmap

import bufferpool as bp
from bufferpool import _core

FIELDS = _core.fields()
FREE, LOG = 1, 3  # states of a block: core/layout/objects.h
SAMPLES, SAMPLE_BYTES, CACHES = 8192, 16, 64


class Area:
    """The tables of the objects in a pool's file."""

    def __init__(self, pool: bp.Pool) -> None:
        with open(pool.path, "r+b") as file:
            self.shm = mmap.mmap(file.fileno(), 0)
        os_page, most_frames, page = (self._geometry(name) for name in ("os_page", "max_frames", "page_size"))
        most_entries = max(1024, most_frames * page // 256)

        def behind(at: int, size: int) -> int:
            return -(-(at + size) // os_page) * os_page

        self.header = behind(self._geometry("total_bytes"), 0)
        # The header ends with a word for each client that the pool can have.
        header_bytes = FIELDS["ObjectsHeader"][1] - (_core.CLIENTS_LIMIT - self._geometry("max_clients")) * 8
        heads = behind(behind(self.header, header_bytes), SAMPLES * SAMPLE_BYTES)
        self.heads = heads
        self.entries = behind(heads, most_entries * FIELDS["ObjectHead"][1])
        self.blocks = behind(self.entries, most_entries * FIELDS["ObjectEntry"][1])
        most_blocks = 2 * (most_frames * page // 8192) + 64
        row = behind(0, CACHES * FIELDS["CacheUses"][1]) + behind(0, most_blocks * 4)
        rows = behind(self.blocks, most_blocks * FIELDS["ObjectBlock"][1])
        self.os_page, self.values = os_page, behind(rows, self._geometry("max_clients") * row)

    def _geometry(self, name: str) -> int:
        return self._read(FIELDS["Header.geometry"][0] + FIELDS[f"Geometry.{name}"][0], FIELDS[f"Geometry.{name}"][1])

    def _read(self, at: int, size: int) -> int:
        return int.from_bytes(self.shm[at : at + size], "little")

    def at(self, field: str, number: int) -> tuple[int, int]:
        struct_name = field.partition(".")[0]
        base = {
            "ObjectsHeader": self.header,
            "CacheSlot": self.header + FIELDS["ObjectsHeader.caches"][0],
            "ObjectHead": self.heads,
            "ObjectEntry": self.entries,
            "ObjectBlock": self.blocks,
        }[struct_name]
        at, size = FIELDS[field]
        return base + number * FIELDS[struct_name][1] + at, size

    def get(self, field: str, number: int = 0) -> int:
        return self._read(*self.at(field, number))

    def set(self, field: str, value: int, number: int = 0) -> None:
        at, size = self.at(field, number)
        self.shm[at : at + size] = value.to_bytes(size, "little")

    def log_pages(self) -> list[int]:
        """The log pages that are not being filled."""
        high, now = self.get("ObjectsHeader.blocks_high"), self.get("ObjectsHeader.open") - 1
        return [b for b in range(high) if self.get("ObjectBlock.word", b) & 0xFF == LOG and b != now]

    def other_caches(self) -> bytes:
        """The slots of all caches but the first one."""
        at, size = FIELDS["ObjectsHeader.caches"]
        return self.shm[self.header + at + FIELDS["CacheSlot"][1] : self.header + at + size]
