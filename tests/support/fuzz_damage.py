"""The places of all words in a segment, and how the fuzzer damages them (fuzz_segment.py)."""

import mmap
import random
import struct
from collections.abc import Callable
from typing import Any

from bufferpool import _core

PAGE, EXTENT = 4096, 16384
FRAMES, MOST, PAGES = 32, 256, 8192
FILE_PAGES, SCRATCH_PAGES, DERIVED_PAGES = 48, 16, 24
CLIENTS = 72  # more than one bank of them
DEAD = 1  # the client of the template, which died

# ---- where things are -----------------------------------------------------------

Place = tuple[int, int]  # offset, bytes


def fields(struct: str, *without: str) -> dict[str, Place]:
    """{field: (offset, bytes)} of a struct of core/layout/layout.h."""
    found = {name.partition(".")[2]: at for name, at in _core.fields().items() if name.startswith(f"{struct}.")}
    return {name: at for name, at in found.items() if name not in without}


def size_of(struct: str) -> int:
    return _core.fields()[struct][1]


HEADER = fields(
    "Header", "magic", "version", "header_bytes", "layout_sum", "uuid", "created_ns", "geometry", "geometry_sum"
)
CLIENT_FIELDS = fields("Client", "intents")
INTENT_FIELDS, SPACE_FIELDS, FRAME_FIELDS = fields("Intent"), fields("SpaceSlot"), fields("FrameSlot", "word")
EVENT_FIELDS, ADVICE_FIELDS, DUEL_FIELDS = fields("Event"), fields("Advice"), fields("Duel")
TEXTS_FIELDS, USES_FIELDS = fields("SpaceTexts"), fields("Uses")
CLIENT, SPACE, FRAME, INTENT, EVENT, TEXTS, USES = (
    size_of(struct) for struct in ("Client", "SpaceSlot", "FrameSlot", "Intent", "Event", "SpaceTexts", "Uses")
)
INTENTS = fields("Client")["intents"][0]
HEADER_KEPT = min(
    offset for offset, _ in HEADER.values()
)  # the words before it are written once, and checked when a client attaches


class Layout:
    """The geometry of one segment."""

    def __init__(self, segment: Any) -> None:
        base = _core.fields()["Header.geometry"][0]
        self._of = {
            name: int.from_bytes(segment[base + at : base + at + size], "little")
            for name, (at, size) in fields("Geometry").items()
        }

    def __getattr__(self, name: str) -> int:
        try:
            return self._of[name]
        except KeyError:
            raise AttributeError(name) from None

    def number(self, segment: Any, at: Place, base: int = 0) -> int:
        return int.from_bytes(segment[base + at[0] : base + sum(at)], "little")

    def space(self, segment: Any, i: int, field: str) -> int:
        return self.number(segment, SPACE_FIELDS[field], self.spaces_at + i * SPACE)


def bitmap_words(layout: Layout, which: int) -> list[int]:
    """The places of the 64-bit words that a set uses for the frames that have slots: its own words, and its summaries."""
    levels = layout.set_bytes & 2**64 - 1, layout.set_bytes >> 64
    base = layout.sets_at + which * sum(levels)
    starts = (
        (1 << 6, base),
        (1 << 12, base + levels[0]),
        (1 << 18, layout.tops_at + 8 * which * -(-layout.max_frames // (1 << 18))),
    )
    return [at + 8 * i for bits, at in starts for i in range(-(-min(layout.max_frames, 128) // bits))]


# ---- changing them ----------------------------------------------------------------


class Mutator:
    """Changes words of a segment, chosen by a seeded generator."""

    def __init__(self, shm: mmap.mmap, rng: random.Random, early: bool) -> None:
        self.shm, self.rng = shm, rng
        self.early = early  # no client is attached yet, so the slot of the dead client is not taken again
        self.layout = Layout(shm)
        self.first_entries = [self.layout.space(shm, i, "first_entry") for i in range(4)]
        self.done: list[str] = []
        self.saved: list[tuple[int, bytes, bytes]] = []

    def client(self) -> int:
        """The number of a client that does not live and never will, because an operation may wait for a living one."""
        return self.rng.choice([0, 7, 8, 9, 200, _core.CLIENTS_LIMIT, DEAD if self.early else 8])

    def never_living(self, entry: int) -> int:
        """The entry word without an owner or flusher that may live."""
        for shift in (_core.ENTRY_OWNER_SHIFT, _core.ENTRY_FLUSHER_SHIFT):
            client = entry >> shift & _core.CLIENTS_LIMIT
            if 1 <= client <= 6 and not (self.early and client == DEAD):
                entry ^= (client ^ 7) << shift
        return entry

    def entry(self) -> int:
        r = self.rng
        most = _core.FRAMES_LIMIT
        frame = r.choice([0, r.randrange(FRAMES), r.randrange(MOST), MOST, MOST - 1, 128, most, r.randrange(most)])
        flusher = r.choice([0, 0, self.client()])
        op = r.choice([0, 0, r.getrandbits(6)])
        high = frame << _core.ENTRY_FRAME_SHIFT | op << _core.ENTRY_OP_SHIFT
        owner = self.client() << _core.ENTRY_OWNER_SHIFT
        return high | flusher << _core.ENTRY_FLUSHER_SHIFT | owner | r.getrandbits(8)

    def frame(self) -> int:
        r = self.rng
        page = r.choice([0, r.randrange(64), r.randrange(PAGES), PAGES, 2**32 - 1, r.getrandbits(32)])
        op = r.choice([0, 0, r.getrandbits(6)])
        return page << 32 | op << _core.FRAME_OP_SHIFT | self.client() << _core.FRAME_CLIENT_SHIFT | r.getrandbits(3)

    def number(self, bits: int) -> int:
        r = self.rng
        near = r.choice([FRAMES, MOST, PAGES, FILE_PAGES, SCRATCH_PAGES, CLIENTS, 128, 432, 1 << 40, 1 << 31, 1 << 61])
        value = r.choice(
            [
                0,
                1,
                2,
                3,
                2**bits - 1,
                2**bits - r.randrange(1, 600),
                near + r.randrange(-2, 3),
                r.getrandbits(bits),
                r.randrange(512),
            ]
        )
        return value % 2**bits

    def field(self, what: str, base: int, of: dict[str, Place]) -> tuple[str, int, int, str]:
        """A field of a struct; of a long one (a name, counters), its first bytes, its last, or some."""
        name = self.rng.choice(sorted(of))
        offset, size = of[name]
        if size > 8 and self.rng.random() < 0.5:
            offset += self.rng.choice([size - 8, self.rng.randrange(size // 8) * 8])
        return f"{what} {name}", base + offset, min(size, 8), "lock" if name.endswith(".word") else "number"

    def place(self) -> tuple[str, int, int, str]:
        """(what, offset, bytes, kind of value)"""
        r, at = self.rng, self.layout
        area = r.choice(["header"] * 5 + ["client", "intent", "intent", "space", "space", "space"] + ["entry"] * 4
                        + ["frame"] * 4 + ["texts", "uses", "pins", "ring", "ring", "bitmap", "bitmap", "chunks", "event", "advice", "duel"])  # fmt: skip
        if area == "header":
            return self.field("header", 0, HEADER)
        if area == "client":
            c = r.randrange(1, 4)
            return self.field(f"client {c + 1}", at.clients_at + c * CLIENT, CLIENT_FIELDS)
        if area == "intent":
            c, i = r.randrange(3), r.randrange(3)
            base = at.clients_at + c * CLIENT + INTENTS + i * INTENT
            if r.random() < 0.5:  # a whole one
                return f"intent {c + 1}.{i}", base, 20, "intent"
            return self.field(f"intent {c + 1}.{i}", base, INTENT_FIELDS)
        if area == "space":
            i = r.choice([0, 1, 2, 3, 4, 15])  # the first step of them has its memory
            return self.field(f"space {i}", at.spaces_at + i * SPACE, SPACE_FIELDS)
        if area == "texts":
            i = r.choice([0, 1, 2, 3, 4, 15])
            return self.field(f"texts of space {i}", at.texts_at + i * TEXTS, TEXTS_FIELDS)
        if area == "uses":
            row, i = r.randrange(6), r.choice([0, 1, 2, 3, 4, 15])
            return self.field(f"uses {row} of space {i}", at.uses_at + row * at.use_row_bytes + i * USES, USES_FIELDS)
        if area == "entry":
            page = r.choice(self.first_entries) + r.randrange(FILE_PAGES)
            return f"entry {page}", at.entries_at + 8 * page, 8, "entry"
        if area == "frame":
            f = r.randrange(FRAMES + 4)
            if r.random() < 0.2:
                return self.field(f"frame {f}", at.frames_at + FRAME * f, FRAME_FIELDS)
            return f"frame {f}", at.frames_at + FRAME * f, 8, "frame"
        if area == "pins":
            f, c = r.randrange(FRAMES), r.randrange(64)  # of the first bank, which has its memory
            stripe, column = c // 64 * 8 + c % 8, c % 64 // 8
            offset = at.pins_at + stripe * at.stripe_bytes + (f * at.stripe_clients + column) * 2
            return f"pins of {c + 1} on {f}", offset, 2, "number"
        if area == "event":
            i = r.choice([0, 1, 2, r.randrange(1024)])
            return self.field(f"event {i}", at.events_at + i * EVENT, EVENT_FIELDS)
        if area == "advice":
            return self.field("advice", at.advice_at, ADVICE_FIELDS)
        if area == "duel":
            return self.field("duel", at.duel_at, DUEL_FIELDS)
        if area == "chunks":
            i = r.randrange(3 * -(-at.max_pages * 8 // at.os_page // 64))  # which stands three times
            tops = 2 * -(-at.max_frames // (1 << 18))  # words of both sets
            return f"chunks of entries {i}", at.tops_at + 8 * (tops + i), 8, "bits"
        if area == "bitmap":
            which = r.randrange(2)
            words = bitmap_words(at, which)
            i = r.randrange(len(words))
            return f"bitmap {('free', 'holes')[which]} {i}", words[i], 8, "bits"
        which, i = r.randrange(2), r.randrange(FILE_PAGES)
        return f"ring {('cold', 'hot')[which]} {i}", at.rings_at + which * at.ring_bytes + 8 * i, 8, "element"

    def mutate(self) -> bool:
        """Changes one word, or a whole intent. Returns whether that changed a byte."""
        r = self.rng
        what, at, size, kind = self.place()
        old = self.shm[at : at + size]
        if kind == "intent":
            page, entry = r.randrange(PAGES), r.choice([r.randrange(512), 2**32 - 1, PAGES, r.getrandbits(32)])
            frame = r.choice([r.randrange(FRAMES), MOST, 2**32 - 1, r.getrandbits(32)])
            new = struct.pack(
                "<5I", r.randrange(8), r.choice([entry, page, r.randrange(48)]), frame, entry, r.choice([page, entry])
            )
        else:
            value = {"entry": self.entry, "frame": self.frame}.get(kind, lambda: self.number(8 * size))()
            if kind == "lock":
                value = self.client() | r.choice([0, 1 << 31, 1 << 30, 3 << 30, r.getrandbits(21) << 9])
            elif kind in ("entry", "frame") and r.random() < 0.3:  # the word of another, or a flipped bit
                value = int.from_bytes(old, "little") ^ 1 << r.randrange(64)
            elif kind == "bits":
                value = r.choice(
                    [0, 2**64 - 1, r.getrandbits(64), int.from_bytes(old, "little") ^ 1 << r.randrange(64)]
                )
            elif kind == "element":
                value = r.choice([r.randrange(64), PAGES - 1, 2**32 - 1, r.randrange(PAGES)]) << 32 | r.getrandbits(32)
            if kind == "entry":
                value = self.never_living(value)
            new = value.to_bytes(size, "little")
        self.shm[at : at + size] = new
        self.saved.append((at, old, new))
        self.done.append(f"{what}: {old[::-1].hex()} -> {new[::-1].hex()}")
        return new != old

    def mend(self, chosen: Callable[[], bool]) -> None:
        """Restores some or all of the words that are still as mutate() has left them."""
        for at, old, new in reversed(self.saved):
            if self.shm[at : at + len(new)] == new and chosen():
                self.shm[at : at + len(old)] = old
        self.saved.clear()
