"""The share of a space: its limit, the most bytes that its pages may take, and its reserve, the bytes that other spaces
cannot take from it."""

from enum import IntEnum
from typing import NamedTuple

from bufferpool.client.client import Client, Record
from bufferpool.errors import SpaceRemoved, TooManySpaces
from bufferpool.figures.names import reason_number
from bufferpool.units import format_size, limits_of, refuse_reserve_above

LEAST_PAGES = 8
"""The least limit: several threads load pages at the same time, and each needs a frame."""


class _Set(IntEnum):
    """The results of set_share() in the core: ShareSet in core/protocol/shares.h."""

    DONE = 0
    NO_SPACE = 1
    TOO_MANY = 2
    TOO_MUCH = 3


class Share(NamedTuple):
    """The arguments ``limit`` and ``reserve`` of a call, in bytes; None leaves the space's setting as it is."""

    limit: int | None
    reserve: int | None

    @classmethod
    def of(cls, limit: int | str | None, reserve: int | str | None, page_size: int) -> "Share":
        """Checks the arguments. Raises TypeError, ValueError."""
        most, least = limits_of(limit, reserve)
        if most is not None and most < LEAST_PAGES * page_size:
            raise ValueError(
                f"limit must be at least {LEAST_PAGES} pages ({LEAST_PAGES * page_size} bytes), not {most} bytes; a limit as large as "
                "the pool has no effect"
            )
        refuse_reserve_above(most, least)
        return cls(None if most is None else min(most, 2**62), least)

    @property
    def is_given(self) -> bool:
        """Whether a limit or a reserve was given."""
        return self != (None, None)

    def give(self, client: Client, record: Record, patience: float) -> None:
        """Sets the limit and the reserve of a space; waits up to ``patience`` seconds for each lock of another client.

        Raises ValueError, TooManySpaces, SpaceRemoved, PoolReadOnly, WaitTimeout.
        """
        client.require_writable("set the share of a space")
        limit = record["limit"] if self.limit is None else self.limit
        reserve = record["reserve"] if self.reserve is None else self.reserve
        if limit and reserve > limit:
            raise ValueError(
                f"the reserve of {record['name']!r} ({reserve} bytes) must not be above its limit ({limit} bytes); give both"
            )
        done = client.seg.set_share(record["index"], record["generation"], limit, reserve, patience)
        if done == _Set.NO_SPACE:
            raise SpaceRemoved(f"space {record['name']!r} has been removed meanwhile; open it again")
        if done == _Set.TOO_MANY:
            raise TooManySpaces(
                "64 spaces of a pool may have a limit or a reserve, and so many have one; remove one of these"
            )
        if done == _Set.TOO_MUCH:
            raise ValueError(
                f"reserve={reserve} is too much: the reserves of all spaces together may be seven eighths of the pool's "
                f"capacity ({format_size(client.budget_frames * client.page_size)}); reserve less, or resize the pool"
            )
        client.seg.fit_share(record["index"], patience)
        if reserve:
            client.seg.fit_objects(None, reason_number("budget"), patience)
