"""Mistakes beside the right code: a C++ source whose functions make one of several mistakes, chosen when the program runs."""

import re
from collections.abc import Iterator, Mapping

# A comment, a string, a character: no brace in them counts.
_SKIPPED = re.compile(r"""//[^\n]*|/\*.*?\*/|"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)'""", re.DOTALL)
_NO_HEAD = re.compile(r"//[^\n]*|^#[^\n]*|\btemplate\s*<[^>]*>", re.MULTILINE)
_SCOPE = re.compile(r"[^(]*\b(namespace|struct|class|union|enum|extern)\b")
_BEFORE_BODY = re.compile(r"(\)|\bconst|\bnoexcept|\boverride|->[^)]*)\s*$")


def _is_function(head: str) -> bool:
    """Whether a body follows this text, which stands between the last statement and a brace."""
    head = _NO_HEAD.sub("", head)
    return not _SCOPE.match(head) and _BEFORE_BODY.search(head) is not None


def _braces(text: str) -> Iterator[tuple[int, str]]:
    at = 0
    while at < len(text):
        if skipped := _SKIPPED.match(text, at):
            at = skipped.end()
            continue
        if text[at] in "{};":
            yield at, text[at]
        at += 1


def pieces(text: str) -> list[str]:
    """The source in pieces: text outside of functions, a function's body, text outside of functions, and so on."""
    out, cut, head, scopes, depth = [], 0, 0, 0, 0
    for at, sign in _braces(text):
        before, head = text[head:at], at + 1
        if depth:  # inside of a function's body
            depth += {"{": 1, "}": -1, ";": 0}[sign]
            if not depth:
                out.append(text[cut : at + 1])
                cut = at + 1
        elif sign == "{" and _is_function(before):
            out.append(text[cut:at])
            cut, depth = at, 1
        else:
            scopes += {"{": 1, "}": -1, ";": 0}[sign]
    assert depth == scopes == 0, "the braces of the source do not match"
    return [*out, text[cut:]]


def mistakes_beside(text: str, wrong: Mapping[int, str]) -> str:
    """The source in which each changed function runs the body with the number ``bp::mistake``, if there is one."""
    right = pieces(text)
    bodies: list[str] = list(right)
    for number, changed in wrong.items():
        assert changed != text, "the mistake no longer fits the source"
        parts = pieces(changed)
        assert parts[::2] == right[::2], "a mistake changes what stands outside of functions"
        for i in range(1, len(parts), 2):
            if parts[i] != right[i]:
                bodies[i] = f"{{ if (bp::mistake == {number}) {parts[i]} else {bodies[i]} }}"
    return '#include "mistake.h"\n' + "".join(bodies)
