"""Definitions and paragraphs in short passages."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

from clara.data.definitions.prose import Text
from clara.data.definitions.wordnet import Entry
from clara.data.factbook.passages import estimated_tokens
from clara.data.records import Document


@dataclass(frozen=True)
class Piece:
    """A line of a passage.

    Attributes:
        id: of the passage that begins with it.
        split: whose passages it is in.
        title: heading of the passage; a passage has pieces with the same title only.
        line: what the passage says.
        told: what may be in one split only: the definition without its words, or the line.
        entry: that the line defines, None of prose.
    """

    id: str
    split: str
    title: str
    line: str
    told: str
    entry: Entry | None = None


class Page(NamedTuple):
    """A passage and what it is made of."""

    document: Document
    pieces: list[Piece]


def of_entries(entries: Iterable[Entry]) -> Iterator[Piece]:
    """A piece for each entry, under a heading such as "Dictionary: nouns, animal"."""
    for entry in entries:
        title = f"Dictionary: {entry.part}s{', ' if entry.subject else ''}{entry.subject}"
        name = f"wordnet/{entry.id}"
        yield Piece(name, entry.split, title, entry.line, entry.definition, entry)


def of_texts(texts: Iterable[Text], max_tokens: int) -> Iterator[Piece]:
    """A piece for each paragraph under the title of its file; long ones are cut after sentences."""
    for text in texts:
        lines = [
            line
            for paragraph in text.paragraphs
            for line in _cut(text.title, paragraph, max_tokens)
        ]
        for number, line in enumerate(lines):
            yield Piece(f"python/{text.name}/{number}", text.split, text.title, line, line)


def in_passages(pieces: Iterable[Piece], max_tokens: int) -> Iterator[Page]:
    """Passages of as many pieces as fit under their heading; a piece that is too long is left out.

    Args:
        pieces: of one split, those with the same title in a row.
        max_tokens: limit of a passage by `estimated_tokens`, heading included.
    """
    for title, group in groupby(pieces, key=lambda piece: piece.title):
        start = estimated_tokens(title)
        page: list[Piece] = []
        used = start
        for piece in group:
            cost = estimated_tokens(f"\n{piece.line}")
            if start + cost > max_tokens:
                continue
            if used + cost > max_tokens:
                yield _page(title, page)
                page, used = [], start
            page.append(piece)
            used += cost
        if page:
            yield _page(title, page)


def _page(title: str, pieces: list[Piece]) -> Page:
    text = "\n".join([title, *(piece.line for piece in pieces)])
    return Page(Document(pieces[0].id, text, title), pieces)


def _cut(title: str, paragraph: str, max_tokens: int) -> Iterator[str]:
    """The paragraph, or its sentences in as few lines as fit into passages."""
    room = max_tokens - estimated_tokens(f"{title}\n")
    line = ""
    for sentence in re.split(r"(?<=[.!?]) (?=[A-Z])", paragraph):
        longer = f"{line} {sentence}" if line else sentence
        if line and estimated_tokens(longer) > room:
            yield line
            longer = sentence
        line = longer
    yield line
