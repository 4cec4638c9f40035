"""Makes text from other programs safe for a terminal.

Other users choose the names of pools, spaces, files and programs. An escape sequence in a name can rewrite the screen, a newline
can forge a line of a table, and an override of the writing direction can show another name.
Commands print every text, and errors make every message, with :func:`printable`.
"""

import unicodedata

# Cc: control characters, of 7 and of 8 bits. Cf: formats, among them the overrides of the writing direction. Cs: bytes
# of a name that are no UTF-8. Zl, Zp: line and paragraph separators. Co, Cn: private and unassigned: terminals differ.
_ESCAPED = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp", "Co", "Cn"})


def _escape(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte, encoded by surrogateescape
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("unicode_escape").decode() if code > 0xFF or code < 0x20 else f"\\x{code:02x}"


def printable(text: object) -> str:
    """The text in one line; each character that could control a terminal is replaced by Python's escape for it."""
    found = str(text)
    if found.isascii() and found.isprintable():
        return found
    return "".join(_escape(c) if unicodedata.category(c) in _ESCAPED else c for c in found)


def shown(value: object, most: int = 1000) -> str:
    """A value's repr for a message, cut to ``most`` characters. A repr is foreign code, and may raise."""
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001 - the message names the type instead
        text = f"a value of type {type(value).__name__}"
    return text if len(text) <= most else f"{text[: most - 3]}..."
