"""Checks arguments that are numbers: sizes in bytes (integers, or strings such as "256MiB"), timeouts, LSNs."""

import math
import re

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
        value = int(float(found[1]) * _UNITS[found[2].upper()])
    if value < 0:
        raise ValueError(f"{what} must not be negative")
    return value


def format_size(size: float) -> str:
    """A size as text with a unit: '256.0 MiB'."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def seconds_of(timeout: float | None, what: str = "timeout") -> float:
    """Checks a time in seconds, of the argument ``what``; None becomes infinity. Raises TypeError, ValueError."""
    if timeout is None:
        return math.inf
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)):
        raise TypeError(f"{what} must be a number of seconds, or None, not {type(timeout).__name__}")
    if not timeout >= 0:
        raise ValueError(f"{what} must be a number of seconds, at least 0, not {timeout!r}")
    return float(timeout)


def lsn_of(value: int) -> int:
    """Checks an LSN, and returns it. Raises TypeError, ValueError."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"an LSN is an integer, not {type(value).__name__}")
    if not 0 <= value < 2**64:
        raise ValueError(f"an LSN is at least 0 and below 2**64, not {value}")
    return value
