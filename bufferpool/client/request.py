"""The request of a caller of ``Pool.open``: its checks, and its comparison with an existing pool."""

import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bufferpool.client import segment_file
from bufferpool.client.client import Client
from bufferpool.units import format_size, parse_size


@dataclass(frozen=True)
class Difference:
    """One property in which an existing pool differs from the request."""

    what: str
    asked: Any
    found: Any
    remedy: str  # "": the property is fixed at creation
    show: Callable[[Any], str] = str

    def __str__(self) -> str:
        remedy = f" ({self.remedy})" if self.remedy else ""
        return f"{self.what} is {self.show(self.found)}, not {self.show(self.asked)}{remedy}"


@dataclass(frozen=True)
class Request:
    """The arguments of ``Pool.open``. None (for the capacity: "auto") accepts what the pool has, or the default."""

    capacity: int | str
    page_size: int | str | None
    min_capacity: int | str | None
    max_capacity: int | str | None
    extent_size: int | str | None
    max_clients: int | None
    max_pages: int | None
    room: int | str | None
    huge_pages: bool | None
    permissions: int | None

    def check(self) -> None:
        """Raises ValueError or TypeError for values that cannot make a pool, even if the pool exists."""
        sizes = {name: self._bytes(name) for name in (*_SIZES, "page_size")}
        least = segment_file.MIN_FRAMES * (sizes["page_size"] or segment_file.Sizes.page_size)
        bounds = ("capacity", "max_capacity", "min_capacity", "room")
        known = [size for name in bounds if (size := sizes[name]) is not None]
        given = {"max_clients": self.max_clients, "max_pages": self.max_pages, **sizes}
        given["capacity"] = known[0] if known else least  # "auto" chooses a capacity within the given bounds
        given["huge_pages"] = self.huge_pages
        asked: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        segment_file.plan(segment_file.Sizes(**asked))
        if self.permissions is not None:
            segment_file.check_permissions(self.permissions, "permissions")

    def for_creation(self) -> dict[str, Any]:
        """The arguments for ``Pool.create``: those that were given."""
        return {name: value for name, value in vars(self).items() if value is not None}

    def differences(self, client: Client) -> list[Difference]:
        """The differences between the request and the pool. Arguments that were not given are not compared."""
        geometry, status, size = client.geometry, client.seg.status(), client.page_size
        frames = {name: None if (n := self._bytes(name)) is None else n // size for name in _SIZES}
        for name in ("max_capacity", "room"):
            if (n := self._bytes(name)) is not None:  # whole extents
                frames[name] = -(-n // (size * geometry["extent_frames"])) * geometry["extent_frames"]
        extent = self._bytes("extent_size")
        if extent is not None:
            frames["extent_size"] = max(1, extent // size)
        has = {"capacity": status["asked_frames"], "min_capacity": status["min_frames"]}
        has |= {"max_capacity": status["most_frames"], "extent_size": geometry["extent_frames"]}
        has |= {"room": geometry["room_frames"]}
        found = [
            Difference(name, asked * size, has[name] * size, _remedy(name, asked, has), _size)
            for name, asked in frames.items()
            if asked is not None and asked != has[name]
        ]
        for name in ("page_size", "max_clients", "max_pages", "huge_pages"):
            asked = self._bytes(name) if name == "page_size" else getattr(self, name)
            if asked is not None and asked != geometry[name]:
                found.append(Difference(name, asked, geometry[name], ""))
        mode = stat.S_IMODE(os.stat(client.path).st_mode) if self.permissions is not None else None
        if mode != self.permissions:
            found.append(Difference("permissions", self.permissions, mode, f"chmod {client.path}", "{:#o}".format))
        return found

    def _bytes(self, name: str) -> int | None:
        value = getattr(self, name)
        return None if value == ("auto" if name == "capacity" else None) else parse_size(value, name)


_SIZES = ("capacity", "min_capacity", "max_capacity", "extent_size", "room")
FIXED = (
    "what the pool has room for was fixed at creation: to have more, flush, remove the pool and create it with a larger "
    "room= (by default the size of the tmpfs), or on a larger tmpfs"
)


def _remedy(name: str, asked: int, has: dict[str, int]) -> str:
    """How to change an existing pool to the value ``asked``; "" if the property is fixed."""
    if name == "capacity":
        return "pool.resize() changes it" if asked <= has["room"] else FIXED
    if name == "min_capacity":
        lower = asked < has["min_capacity"]
        return (
            "pool.resize() below it lowers it"
            if lower
            else "only a new pool can have more: create it with min_capacity="
        )
    return ""


def _size(n: int) -> str:
    return f"{n} bytes ({format_size(n)})"
