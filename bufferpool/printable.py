"""Text of somebody else's making, as a terminal may have it.

Names of pools, spaces, files and programs are bytes that anybody may have chosen: an escape sequence in one
rewrites the screen, a newline forges a line of a table, an override of the writing direction shows another name.
All that is printed, and every error's message, goes through :func:`printable`.
"""

import unicodedata

# Cc: control characters, of 7 and of 8 bits. Cf: formats, among them the overrides of the writing direction. Cs: bytes
# of a name that are no UTF-8. Zl, Zp: line and paragraph separators. Co, Cn: nobody knows what a terminal makes of them.
_ESCAPED = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp", "Co", "Cn"})


def _escape(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte, as surrogateescape has it
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("unicode_escape").decode() if code > 0xFF or code < 0x20 else f"\\x{code:02x}"


def printable(text: object) -> str:
    """The text in one line, with an escape as Python writes it for each character that a terminal would obey."""
    found = str(text)
    if found.isascii() and found.isprintable():
        return found
    return "".join(_escape(c) if unicodedata.category(c) in _ESCAPED else c for c in found)


def shown(value: object, most: int = 1000) -> str:
    """A value's repr for a message, cut to ``most`` characters. The repr is foreign code: it may raise, and an integer may be too long."""
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001 - the message says what can be said
        text = f"a value of type {type(value).__name__}"
    return text if len(text) <= most else f"{text[: most - 3]}..."
