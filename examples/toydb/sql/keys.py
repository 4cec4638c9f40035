"""Keys: encodes SQL values as bytes that sort as SQLite sorts the values.

A key is one encoded value after another. No encoding is a prefix of another, so tuples sort
as their bytes do. Source of the idea: FoundationDB's tuple layer.

::

    NULL        05
    integer     14 - n … 14 + n, then the n bytes of the number, big-endian;
                for a negative number the n bytes of (number + 256**n - 1)
    fraction    its floor as an integer, then FF, then the double (below)
    too large   0B or 1D, then the double: beyond the range of 64 bits
    text        30, the UTF-8 bytes with 00 written as 00 FF, then 00
    blob        40, the bytes, likewise

    a double    8 bytes big-endian, the sign bit flipped; all bits if negative

Numbers compare exactly, as in SQLite: 2**53 + 1 is more than the double 2.0**53,
and 5 and 5.0 have the same key. FF never begins a value; so all keys that begin with
the values of K lie in [K, K + FF).
"""

import math
import struct
from collections.abc import Iterable

Value = None | int | float | str | bytes

END = b"\xff"  # K + END is above every key that begins with the values of K
AFTER_NULL = b"\x06"  # between NULL and everything else
NUMBERS = (b"\x0a", b"\x20")  # [from, to) of each storage class
TEXTS = (b"\x30", b"\x31")
BLOBS = (b"\x40", b"\x41")

COLLATIONS = ("BINARY", "NOCASE", "RTRIM")

_ZERO = 0x14
_MIN, _MAX = -(1 << 63), (1 << 63) - 1
_FOLD = {code: code + 32 for code in range(ord("A"), ord("Z") + 1)}  # NOCASE folds ASCII only
_SMALL = [bytes([_ZERO])] + [bytes([_ZERO + 1, number]) for number in range(1, 256)]


def encode(value: Value, collation: str = "BINARY") -> bytes:
    """Encodes one value; text so that it sorts as ``collation`` (one of COLLATIONS, in upper case) compares it."""
    if type(value) is int:
        return _integer(value)
    if isinstance(value, str):
        return b"\x30" + _collated(value, collation).encode("utf-8", "surrogatepass").replace(b"\0", b"\0\xff") + b"\0"
    if value is None:
        return b"\x05"
    if isinstance(value, float):
        return _double(value)
    if isinstance(value, bytes):
        return b"\x40" + value.replace(b"\0", b"\0\xff") + b"\0"
    if isinstance(value, int):
        return _integer(int(value))
    raise TypeError(f"a key takes None, int, float, str or bytes, not {type(value).__name__}")


def encode_all(values: Iterable[Value]) -> bytes:
    """A tuple of values as bytes, text in binary order."""
    return b"".join([encode(value) for value in values])


def decode_integer(key: bytes) -> int:
    """The integer that was encoded as ``key``; for row ids."""
    size = key[0] - _ZERO
    number = int.from_bytes(key[1:], "big")
    return number if size >= 0 else number - (1 << (-8 * size)) + 1


def prefixes(key: bytes) -> list[bytes]:
    """The key cut off after its first value, after its second, and so on."""
    found, at = [], 0
    while at < len(key):
        at = _end(key, at)
        found.append(key[:at])
    return found


def _end(key: bytes, at: int) -> int:
    """The position after the value that begins at ``at``."""
    tag = key[at]
    if tag in (0x30, 0x40):
        at = key.index(0, at + 1)
        while key[at + 1 : at + 2] == END:
            at = key.index(0, at + 1)
        return at + 1
    if tag == 0x05:
        return at + 1
    if tag in (0x0B, 0x1D):
        return at + 9
    at += 1 + abs(tag - _ZERO)
    return at + 9 if key[at : at + 1] == END else at


def _integer(number: int) -> bytes:
    if 0 <= number < 256:
        return _SMALL[number]
    if not _MIN <= number <= _MAX:
        raise OverflowError(f"{number} does not fit in 64 bits")
    size = ((number if number > 0 else -number).bit_length() + 7) >> 3
    if number > 0:
        return bytes((_ZERO + size,)) + number.to_bytes(size, "big")
    return bytes((_ZERO - size,)) + (number + (1 << (8 * size)) - 1).to_bytes(size, "big")


def _double(number: float) -> bytes:
    if math.isnan(number):
        return b"\x05"  # SQLite stores NaN as NULL
    if number >= 9223372036854775808.0:
        return b"\x1d" + _ordered(number)
    if number < -9223372036854775808.0:
        return b"\x0b" + _ordered(number)
    floor = math.floor(number)
    if floor == number:
        return _integer(floor)
    return _integer(floor) + b"\xff" + _ordered(number)


def _ordered(number: float) -> bytes:
    bits = int.from_bytes(struct.pack(">d", number), "big")
    bits = bits ^ 0xFFFF_FFFF_FFFF_FFFF if bits >> 63 else bits | 1 << 63
    return bits.to_bytes(8, "big")


def _collated(text: str, collation: str) -> str:
    if collation == "BINARY":
        return text
    if collation == "NOCASE":
        return text.translate(_FOLD)
    if collation == "RTRIM":
        return text.rstrip(" ")
    raise ValueError(f"keys know the collations {', '.join(COLLATIONS)}, not {collation}")
