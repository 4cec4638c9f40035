"""Checks arguments: sizes in bytes (integers, or strings such as "256MiB"), timeouts, LSNs, flags."""

import math
import numbers
import re
from typing import Any

import numpy as np

_DECADES_S = 1e9  # the system's calls take no longer time than this
_UNITS = {"": 1, "B": 1}
for _power, _letter in enumerate("KMGT", start=1):
    _UNITS[_letter] = _UNITS[f"{_letter}IB"] = 1024**_power
    _UNITS[f"{_letter}B"] = 1000**_power


def parse_size(size: int | str, what: str = "size") -> int:
    """Returns a number of bytes.

    KiB, MiB, GiB and TiB (or K, M, G, T) are powers of 1024; KB, MB, GB and TB
    powers of 1000. Raises TypeError or ValueError, naming the argument ``what``.
    """
    if isinstance(size, bool) or not isinstance(size, (int, str)):
        raise TypeError(f"{what} must be a number of bytes or a string such as '256MiB', not {type(size).__name__}")
    if isinstance(size, int):
        value = size
    else:
        found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", size)
        if found is None or found[2].upper() not in _UNITS:
            raise ValueError(f"{what} must look like '256MiB', '1.5GiB' or '8192', not {size!r}")
        try:
            whole, _, part = found[1].partition(".")
            unit = _UNITS[found[2].upper()]
            value = int(whole) * unit + int(part or 0) * unit // 10 ** len(part)
        except ValueError:  # more digits than Python turns into a number
            raise ValueError(f"{what} must be a size that a machine can have, not one of {len(size)} digits") from None
    if value < 0:
        raise ValueError(f"{what} must not be negative")
    return value


def limits_of(limit: int | str | None, reserve: int | str | None) -> tuple[int | None, int | None]:
    """The bytes of the arguments ``limit`` and ``reserve``. Raises TypeError, ValueError."""
    return (
        None if limit is None else parse_size(limit, "limit"),
        None if reserve is None else parse_size(reserve, "reserve"),
    )


def refuse_reserve_above(limit: int | None, reserve: int | None) -> None:
    """Raises ValueError if both are given, and more is reserved than the limit allows."""
    if limit is not None and reserve is not None and reserve > limit:
        raise ValueError(f"reserve ({reserve} bytes) must not be above limit ({limit} bytes)")


def format_size(size: float) -> str:
    """A size as text with a unit: '256.0 MiB'."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def seconds_of(timeout: float | None, what: str = "timeout") -> float:
    """Checks a time in seconds, of the argument ``what``. None becomes infinity, as do decades. Raises TypeError, ValueError."""
    if timeout is None:
        return math.inf
    if not is_number(timeout):
        raise TypeError(f"{what} must be a number of seconds, or None, not {type(timeout).__name__}")
    if not timeout >= 0:
        raise ValueError(f"{what} must be a number of seconds, at least 0, not {timeout!r}")
    return float(timeout) if timeout < _DECADES_S else math.inf


def is_number(value: Any) -> bool:
    """Whether it is a real number, which a bool is not."""
    return type(value) in (int, float) or (isinstance(value, numbers.Real) and not isinstance(value, bool))


def bad_number(value: Any, text: str) -> TypeError | ValueError:
    """The error of an argument that is no number, or a number that is not allowed; ``text`` says what is."""
    return ValueError(text) if is_number(value) else TypeError(text)


def flag_of(value: bool, what: str) -> bool:
    """Checks an argument that is true or false: of "no", 0 or None nobody can tell what the caller meant. Raises TypeError."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{what} must be True or False, not {value!r:.100}")
    return bool(value)


def is_utf8(text: str) -> bool:
    """Whether UTF-8 can encode a text: in Python the bytes of an argument or a file's name that are no UTF-8 are text that it cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def lsn_of(value: int) -> int:
    """Checks an LSN, and returns it. Raises TypeError, ValueError."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"an LSN is an integer, not {type(value).__name__}")
    if not 0 <= value < 2**64:
        raise ValueError(f"an LSN is at least 0 and below 2**64, not {value}")
    return value


def counted(n: int, one: str, many: str = "") -> str:
    """A number of things: "1 dirty page", "2,000 dirty pages"."""
    return f"{n:,} {one if n == 1 else many or one + 's'}"
