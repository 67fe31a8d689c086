"""Filters of a search: Lance's SQL, in which columns have the names that users gave them.

Lance calls columns of metadata otherwise, see `clara.index.columns`, so a filter is read word by
word. Unknown columns are found that way too. Lance parses the rest, on the stack of its thread: it
ends the process where an expression is nested too deeply, so such a filter is refused before.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from clara.errors import shortened
from clara.index.columns import metadata_column
from clara.index.errors import MemoryIndexError
from clara.index.header import Header

_TOKEN = re.compile(
    r"""(?P<space>\s+)
    |(?P<string>'(?:[^']|'')*')
    |(?P<quoted>`[^`]+`|"[^"]+")
    |(?P<number>(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?(?!\w))
    |(?P<word>[^\W\d]\w*)
    |(?P<operator><=|>=|<>|!=|\|\||[=<>()+\-*/%,])""",
    re.VERBOSE,
)
_NEXT = re.compile(r"\s*(\S)")
_JOINING = ("AND", "OR")
_OPERATORS = ("NOT", "IS", "IN", "LIKE", "ILIKE", "BETWEEN", "ESCAPE", "AS")
_KEYWORDS = (*_JOINING, *_OPERATORS, "NULL", "TRUE", "FALSE", "CASE", "WHEN", "THEN", "ELSE", "END")
_LITERALS = ("DATE", "TIMESTAMP")
# No function that makes a text longer, such as REPEAT: where Lance gets no memory it ends the
# process. Nor one whose value is another each time.
_FUNCTIONS = (
    "ABS",
    "CAST",
    "CEIL",
    "CHARACTER_LENGTH",
    "CHAR_LENGTH",
    "COALESCE",
    "CONTAINS",
    "DATE_PART",
    "ENDS_WITH",
    "FLOOR",
    "LEFT",
    "LENGTH",
    "LOWER",
    "LTRIM",
    "NULLIF",
    "REGEXP_LIKE",
    "REGEXP_MATCH",
    "RIGHT",
    "ROUND",
    "RTRIM",
    "STARTS_WITH",
    "STRPOS",
    "SUBSTR",
    "SUBSTRING",
    "TRIM",
    "UPPER",
)
_OWN = ("document_id", "title", "tokens")
_LONGEST = 1 << 20  # characters
_MOST_TOGETHER = 2000  # operators, AND and OR
_MOST_OPERATORS = 50  # that follow one another without AND, OR or a comma
_PLACED = re.compile(r"\bmetadata_(\d+)\b")
_SHOWN = 200


class Filter(NamedTuple):
    """A filter as Lance reads it.

    Attributes:
        text: as it was given.
        sql: with the names that the columns have in the dataset.
        of_details: it names columns that `clara.index.details` describes.
    """

    text: str
    sql: str
    of_details: bool

    def failed(self, path: str, header: Header, reason: str) -> MemoryIndexError:
        """The error for a filter that Lance refuses, with the names that users know."""
        names = [name for name, _ in header.columns or ()]

        def known(found: re.Match[str]) -> str:
            number = int(found[1])
            return repr(names[number]) if number < len(names) else found[0]

        return MemoryIndexError(
            f"{path}: filter {shortened(repr(self.text), _SHOWN)}: {_PLACED.sub(known, reason)}"
        )


def as_filter(header: Header, text: str, path: str) -> Filter:
    """Read a filter.

    Raises:
        TypeError: `text` is not a string.
        MemoryIndexError: it names a column that the index does not have, holds what no filter has,
            or is too long.
    """
    if not isinstance(text, str):
        raise TypeError(f"filter must be a string, got {type(text).__name__}")
    shown = shortened(repr(text), _SHOWN)
    try:
        if not text.strip():
            raise ValueError("it is empty; leave it out to search all documents")
        if len(text) > _LONGEST:
            raise ValueError(f"it has {len(text)} characters, at most {_LONGEST} are read")
        parts, details = [], False
        for token in _checked(list(_tokens(text))):
            part, of_details = _translated(header, token)
            parts.append(part)
            details = details or of_details
    except ValueError as error:
        raise MemoryIndexError(f"{path}: filter {shown}: {error}") from None
    return Filter(text, "".join(parts), details)


class _Token(NamedTuple):
    """A part of a filter.

    Attributes:
        kind: "space", "string", "quoted", "number", "word" (of SQL), "column" or "operator".
    """

    kind: str
    text: str


def _tokens(text: str) -> Iterator[_Token]:
    place, previous = 0, ""
    while place < len(text):
        found = _TOKEN.match(text, place)
        if found is None:
            what = "a quote without an end" if text[place] in "'\"`" else "what no filter has"
            raise ValueError(f"{what}: {text[place]!r}, character {place + 1}")
        if text.startswith(("--", "/*"), place):
            raise ValueError(f"a comment, which no filter has, at character {place + 1}")
        kind, part = str(found.lastgroup), found[0]
        place = found.end()
        if kind == "word" and _is_called(part, previous, text, place):
            raise ValueError(
                f"no filter has the function {shortened(part, _SHOWN)}, but these: "
                f"{', '.join(_FUNCTIONS).lower()}"
            )
        if kind == "quoted" or (kind == "word" and not _is_of_sql(part, previous, text, place)):
            kind = "column"
        if kind != "space":
            previous = part.upper() if kind == "word" else ""
        yield _Token(kind, part)


def _is_called(word: str, previous: str, text: str, end: int) -> bool:
    """Whether a word is a function that no filter has."""
    upper = word.upper()
    return (
        (found := _NEXT.match(text, end)) is not None
        and found[1] == "("
        and previous != "AS"
        and upper not in (*_KEYWORDS, *_FUNCTIONS)
    )


def _is_of_sql(word: str, previous: str, text: str, end: int) -> bool:
    """Whether a word is a keyword, a function, a type after AS, or says what a string is."""
    found = _NEXT.match(text, end)
    after = found[1] if found else ""
    upper = word.upper()
    return (
        upper in _KEYWORDS
        or previous == "AS"
        or after == "("
        or (upper in _LITERALS and after == "'")
    )


def _checked(tokens: list[_Token]) -> list[_Token]:
    """Refuse what is nested so deeply that Lance could run out of stack."""
    total = 0
    levels = [0]
    previous = ""
    for kind, text in tokens:
        if kind == "space":
            continue
        word = text.upper() if kind == "word" else text
        if kind == "operator" and word == "(":
            levels.append(0)
        elif kind == "operator" and word == ")":
            if len(levels) == 1:
                raise ValueError("a ) without a (")
            levels.pop()
        elif kind == "operator" and word == ",":
            levels[-1] = 0
        elif kind == "word" and word in _JOINING:
            total += 1
            levels[-1] = 0
        elif (kind == "operator" and previous not in ("(", ",")) or (
            kind == "word" and word in _OPERATORS  # what is left is the sign of a number
        ):
            total += 1
            levels[-1] += 1
        if levels[-1] > _MOST_OPERATORS:
            raise ValueError(f"more than {_MOST_OPERATORS} operators in one expression")
        previous = text
    if total > _MOST_TOGETHER:
        raise ValueError(
            f"{total} operators, at most {_MOST_TOGETHER} are read; use IN (…), or `ids`"
        )
    return tokens


def _translated(header: Header, token: _Token) -> tuple[str, bool]:
    """A part as Lance has it, and whether it is a column beside the small ones."""
    if token.kind != "column":
        return token.text, False
    name = token.text[1:-1] if token.text[0] in '`"' else token.text
    names = [column for column, _ in header.columns or ()]
    if name in names:
        return metadata_column(names.index(name)), True
    if name in _OWN:
        return name, False
    if name == "source" and header.columns is not None:
        return name, True
    there = [*_OWN, *(["source"] if header.columns is not None else []), *names]
    hint = "; strings have single quotes" if token.text[0] == '"' else ""
    raise ValueError(
        f"the index has no column {shortened(repr(name), _SHOWN)}{hint}; it has "
        f"{shortened(', '.join(map(repr, there)), 2 * _SHOWN)}"
    )
