"""Parses just enough SQL to distinguish statements and to rewrite a few.

SQLite parses everything. This module handles what SQLite cannot do for a virtual table: an
ordinary CREATE TABLE becomes CREATE VIRTUAL TABLE, and an INSERT that omits columns
gets their defaults (SQLite would pass NULL for them).
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from string import ascii_lowercase, ascii_uppercase
from typing import NamedTuple

import apsw

# As in SQLite, a name may have any character that is not ASCII, be it a space or an accent of its own.
_TOKEN = re.compile(
    r"""(?P<space>[ \t\n\f\r]+|\ufeff|--[^\n]*|/\*(?:.*?\*/|.*\Z))
      | (?P<string>'(?:[^']|'')*'?)
      | (?P<quoted>"(?:[^"]|"")*"?|`(?:[^`]|``)*`?|\[[^\]]*\]?)
      | (?P<parameter>\?[0-9]*|[:@$\#][A-Za-z0-9_$:\x80-\U0010ffff]+)
      | (?P<word>[A-Za-z_\x80-\U0010ffff][A-Za-z0-9_$\x80-\U0010ffff]*)
      | (?P<number>[0-9][A-Za-z0-9_.]*)
      | (?P<sign>.)""",
    re.DOTALL | re.VERBOSE,
)

_TERM = r"\w+ (?:(?:=|= =|<|< =|>|> =) \?|BETWEEN \? AND \?)"
_COMPARES_VALUES = re.compile(  # (a second SELECT would be a subquery, and SQLite makes terms of WHERE from those of HAVING)
    rf"SELECT (?:(?!SELECT|FROM)\S+ )+FROM \w+ WHERE {_TERM}(?: AND {_TERM})*(?: (?:GROUP|ORDER|LIMIT)(?: (?!SELECT|HAVING)\S+)*)?"
)


class Token(NamedTuple):
    kind: str
    text: str
    start: int
    end: int

    @property
    def word(self) -> str:
        """A keyword in upper case, or the sign itself."""
        if self.kind == "word":
            return self.text.upper() if self.text.isascii() else self.text
        return self.text if self.kind == "sign" else ""

    @property
    def name(self) -> str:
        """An identifier without its quotes."""
        if self.kind == "quoted":
            close = "]" if self.text[0] == "[" else self.text[0]
            return self.text[1:-1].replace(close * 2, close) if close != "]" else self.text[1:-1]
        return self.text[1:-1].replace("''", "'") if self.kind == "string" else self.text


class Pragma(NamedTuple):
    """What a PRAGMA asks for, or sets."""

    place: str | None  # of which database
    name: str  # in upper case
    value: str | None


class Operands(NamedTuple):
    """What a statement compares columns with, which SQLite does not tell a table."""

    in_subquery: bool  # it has, or may have, an IN with anything but a list of values
    in_row: bool  # and one such IN, or more, has a row value on its left side: SQLite shows each column of it as an equality
    values: bool  # it reads one table, and compares columns with values only: none of these has an affinity

    def within(self, other: "Operands | None") -> "Operands":
        """The operands of a statement that may execute another text, too: a view's or a trigger's."""
        if other is None:
            return self
        return Operands(self.in_subquery or other.in_subquery, self.in_row or other.in_row, values=False)


ANY_OPERANDS = Operands(in_subquery=True, in_row=True, values=False)


@dataclass(frozen=True)
class Statement:
    """One statement. ``kind`` is its leading keywords, such as ``CREATE TABLE``."""

    sql: str
    tokens: tuple[Token, ...]
    kind: str
    at: int = 0  # the token after the keywords of ``kind``
    elsewhere: bool = False  # a temporary object, or one in an attached database: SQLite stores it itself
    if_exists: bool = False  # whether it has IF EXISTS or IF NOT EXISTS
    names: tuple[str, ...] = field(default=())  # the created or dropped object: (name,) or (schema, name)

    @cached_property
    def operands(self) -> "Operands":
        found = self._in_subqueries()
        return Operands(bool(found), any(map(self._is_row, found)), self._compares_values())

    def _in_subqueries(self) -> list[int]:
        """The tokens IN before anything but a list of values."""
        return [
            at
            for at, token in enumerate(self.tokens)
            if token.word == "IN" and (self.word(at + 1) != "(" or self.word(at + 2) in ("SELECT", "WITH", "VALUES"))
        ]

    def _is_row(self, at: int) -> bool:
        """Whether a row value may end before this token: parentheses with a comma."""
        if self.word(at - 1) != ")":
            return False
        opening = _partner(self.tokens, at - 1, -1)
        return any(token.word == "," for token in self.tokens[opening:at])

    def _compares_values(self) -> bool:
        words = ("?" if token.kind in ("parameter", "string", "number") else token.word or "X" for token in self.tokens)
        return _COMPARES_VALUES.fullmatch(" ".join(words)) is not None

    @property
    def name(self) -> str:
        return self.names[-1]

    @cached_property
    def pragma(self) -> Pragma:
        """The parts of a PRAGMA statement."""
        at = 3 if self.word(2) == "." else 1
        place = self.tokens[1].name if at == 3 else None
        name = self.tokens[at].name.upper() if at < len(self.tokens) else ""
        value = "".join(token.name for token in self.tokens[at + 2 :] if token.word != ")")
        return Pragma(place, name, value if self.word(at + 1) in ("(", "=") else None)

    def word(self, index: int) -> str:
        return self.tokens[index].word if 0 <= index < len(self.tokens) else ""

    def rest(self, index: int) -> str:
        """The text from a token to the end."""
        return self.sql[self.tokens[index].start :] if index < len(self.tokens) else ""


_SMALL = str.maketrans(ascii_uppercase, ascii_lowercase)


def fold(name: str) -> str:
    """A name as SQLite compares it: it takes only the letters of ASCII for the same in both cases."""
    return name.translate(_SMALL)


def quote(name: str) -> str:
    """A name as a quoted identifier."""
    return '"' + name.replace('"', '""') + '"'


def tokenize(sql: str) -> Iterator[Token]:
    """The tokens of a text, without space and comments."""
    for match in _TOKEN.finditer(sql):
        if match.lastgroup != "space":
            yield Token(str(match.lastgroup), match.group(), match.start(), match.end())


@lru_cache(maxsize=512)
def script(sql: str) -> tuple[Statement, ...]:
    """The statements of a text. A trigger's body belongs to its statement."""
    found: list[Statement] = []
    pending: list[Token] = []
    start = 0
    for token in tokenize(sql):
        if token.text != ";" or token.kind != "sign":
            pending.append(token)
            continue
        trigger = any(t.word == "TRIGGER" for t in pending[:3])
        if trigger and not apsw.complete(sql[start : token.end]):
            pending.append(token)
            continue
        if pending:
            found.append(_statement(sql, pending))
        pending, start = [], token.end
    if pending:
        found.append(_statement(sql, pending))
    return tuple(found)


class Part(NamedTuple):
    """A statement of a trigger's body, and where its text lies in the trigger's."""

    statement: Statement
    start: int
    end: int


def trigger_body(statement: Statement) -> list[Part]:
    """The statements between BEGIN and END of a CREATE TRIGGER."""
    tokens, found = statement.tokens, list[Part]()
    at = _top_level(tokens, ("BEGIN",), statement.at)
    if at is None:
        return found
    pending: list[Token] = []
    for token in tokens[at + 1 :]:
        if token.kind != "sign" or token.text != ";":
            pending.append(token)
        elif pending:
            found.append(Part(_statement(statement.sql, pending), pending[0].start, pending[-1].end))
            pending = []
    return found


def target(statement: Statement) -> str:
    """The table or view of a CREATE INDEX or CREATE TRIGGER: the name after ON."""
    at = _top_level(statement.tokens, ("ON",), statement.at)
    return "" if at is None or at + 1 >= len(statement.tokens) else statement.tokens[at + 1].name


def parameters(statement: Statement) -> int:
    """How many values of a sequence of bindings the statement takes, counted as SQLite does."""
    count = 0
    named: set[str] = set()
    for token in statement.tokens:
        if token.kind != "parameter":
            continue
        if token.text == "?":
            count += 1
        elif token.text[0] == "?":
            count = max(count, int(token.text[1:]))
        elif token.text not in named:
            named.add(token.text)
            count += 1
    return count


OURS = ("main", "toydb")
_MADE = {"TABLE", "INDEX", "VIEW", "TRIGGER", "VIRTUAL"}


def _statement(sql: str, tokens: list[Token]) -> Statement:
    text = sql[tokens[0].start : tokens[-1].end]
    shift = tokens[0].start
    own = tuple(Token(t.kind, t.text, t.start - shift, t.end - shift) for t in tokens)
    first = own[0].word
    if first in ("CREATE", "DROP", "ALTER"):
        return _definition(text, own, first)
    if first in ("WITH", "EXPLAIN"):
        at = _top_level(own, ("INSERT", "REPLACE", "UPDATE", "DELETE", "SELECT"))
        if at is not None and own[at].word in ("INSERT", "REPLACE") and _after(own, at) != "(":
            return Statement(text, own, "INSERT", at + 1)
        return Statement(text, own, own[at].word if first == "WITH" and at is not None else first)
    if first == "REPLACE":
        first = "INSERT"
    if first == "END":
        first = "COMMIT"
    if first == "ROLLBACK" and any(t.word == "TO" for t in own[1:4]):
        first = "ROLLBACK TO"
    return Statement(text, own, first, 1)


def _definition(text: str, tokens: tuple[Token, ...], verb: str) -> Statement:
    at = 1
    temporary = unique = False
    while at < len(tokens) and tokens[at].word in ("TEMP", "TEMPORARY", "UNIQUE"):
        temporary |= tokens[at].word != "UNIQUE"
        unique |= tokens[at].word == "UNIQUE"
        at += 1
    made = tokens[at].word if at < len(tokens) else ""
    if made not in _MADE:
        return Statement(text, tokens, verb, 1)
    at += 2 if made == "VIRTUAL" else 1
    conditional = at < len(tokens) and tokens[at].word == "IF"
    if conditional:
        at += 3 if verb == "CREATE" else 2
    names: tuple[str, ...] = ()
    if at < len(tokens):
        names = (tokens[at].name,)
        at += 1
        if at + 1 < len(tokens) and tokens[at].word == ".":
            names = (names[0], tokens[at + 1].name)
            at += 2
    if len(names) == 2 and fold(names[0]) not in OURS:
        temporary = True
    return Statement(text, tokens, f"{verb} {made}", at, temporary, conditional, names)


def _after(tokens: Sequence[Token], at: int) -> str:
    return tokens[at + 1].word if at + 1 < len(tokens) else ""


def _top_level(tokens: Sequence[Token], words: Sequence[str], start: int = 0) -> int | None:
    """The first of these keywords outside parentheses."""
    depth = 0
    for index in range(start, len(tokens)):
        word = tokens[index].word
        depth += (word == "(") - (word == ")")
        if depth == 0 and word in words:
            return index
    return None


def _partner(tokens: Sequence[Token], at: int, step: int = 1) -> int:
    """The parenthesis that belongs to the one at ``at``: after it, or before it (``step`` -1); the end of the tokens there if it is missing."""
    depth = 0
    while 0 <= at < len(tokens):
        word = tokens[at].word
        depth += (word == "(") - (word == ")")
        if depth == 0:
            break
        at += step
    return max(0, at)


class Parenthesised(NamedTuple):
    inside: str
    after: int  # the token after the closing parenthesis


def parenthesised(statement: Statement, opening: int) -> Parenthesised | None:
    """The content of the parentheses that open at a token, or None if none do."""
    if statement.word(opening) != "(":
        return None
    closing = _partner(statement.tokens, opening)
    if closing == len(statement.tokens):
        return None
    return Parenthesised(statement.sql[statement.tokens[opening].end : statement.tokens[closing].start], closing + 1)


class Target(NamedTuple):
    """The table of an INSERT, its columns if it lists them, and where they end."""

    table: str
    qualified: bool  # whether it says that the table is ours, and no temporary one
    columns: tuple[str, ...] | None
    after_name: int
    source: int


def insert_target(statement: Statement) -> Target | None:
    """The target of an INSERT, or None for a statement of another form."""
    tokens, at = statement.tokens, statement.at
    while at < len(tokens) and tokens[at].word != "INTO":
        at += 1
    at += 1
    if at >= len(tokens):
        return None
    name = tokens[at].name
    qualified = statement.word(at + 1) == "."
    if qualified:
        if fold(name) not in OURS:
            return None
        name = tokens[at + 2].name if at + 2 < len(tokens) else ""
        at += 2
    at += 1
    if statement.word(at) == "AS":
        at += 2
    if statement.word(at) != "(":
        return Target(name, qualified, None, at, at)
    closing = _partner(tokens, at)
    listed = tuple(t.name for t in tokens[at + 1 : closing] if t.word != ",")
    return Target(name, qualified, listed, at, closing + 1)


def returns(statement: Statement) -> bool:
    """Whether a statement has a RETURNING clause."""
    return _top_level(statement.tokens, ("RETURNING",)) is not None


def with_defaults(statement: Statement, target: Target, defaults: dict[str, str]) -> str:
    """The INSERT with the omitted columns and their default expressions."""
    sql, tokens = statement.sql, statement.tokens
    head = sql[: tokens[target.after_name].start].rstrip()
    extra = ", ".join(defaults.values())
    names = [quote(name) for name in (*(target.columns or ()), *defaults)]
    if statement.word(target.source) == "DEFAULT":
        return f"{head}({', '.join(names)}) VALUES({extra}) {statement.rest(target.source + 2)}".rstrip()
    stop = _top_level(tokens, ("RETURNING", "ON"), target.source)
    # ON may belong to a join of the source; then it is not ON CONFLICT.
    while stop is not None and tokens[stop].word == "ON" and _after(tokens, stop) != "CONFLICT":
        stop = _top_level(tokens, ("RETURNING", "ON"), stop + 1)
    end = len(tokens) if stop is None else stop
    tail = "" if stop is None else " " + statement.rest(stop)
    if statement.word(target.source) == "VALUES":
        rows, at = [], target.source + 1
        while at < end and (row := parenthesised(statement, at)) is not None:
            rows.append(f"({row.inside}, {extra})")
            at = row.after + 1
        return f"{head}({', '.join(names)}) VALUES{', '.join(rows)}{tail}"
    source = sql[tokens[target.source].start : tokens[end - 1].end]
    return f"{head}({', '.join(names)}) SELECT *, {extra} FROM ({source}){tail}"
