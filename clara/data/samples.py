"""Samples of a file of records, whatever its kind."""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from clara.data.examples import (
    answer_example,
    contrastive_example,
    document_questions,
    pretraining_example,
)
from clara.data.lines import Fields, lines, parsed
from clara.data.values import DataError, shown

# By kind: the fields that tell a record of it, and what checks the record. The first that fits is
# the kind.
_KINDS: dict[str, tuple[tuple[str, ...], Callable[[Fields], Any]]] = {
    "pretraining": (("data_type", "docs", "answers"), pretraining_example),
    "questions of documents": (("docs", "questions", "answers"), document_questions),
    "question with ranked documents": (("question", "docs", "pos_index"), contrastive_example),
    "question with documents": (("question", "docs"), answer_example),
    "question": (("id", "question"), lambda fields: fields.text("question")),
    "document": (("id", "contents"), lambda fields: fields.text("contents")),
}


@dataclass(frozen=True)
class Sample:
    """One record.

    Attributes:
        line: its number in the file.
        kind: such as "document" or "question with documents".
        fields: of the record.
    """

    line: int
    kind: str
    fields: Mapping[str, Any]


@dataclass(frozen=True)
class Samples:
    """Records drawn from a file, in its order.

    Attributes:
        counts: of all records by kind.
    """

    counts: Mapping[str, int]
    drawn: list[Sample]


def draw_samples(path: str | os.PathLike[str], number: int, seed: int = 0) -> Samples:
    """Draw records of a file of JSON lines; every record is looked at.

    Args:
        number: of the records; all of them where there are fewer.
        seed: another one draws others.

    Raises:
        DataError: the file cannot be read, holds no record, or a line is no record of a known kind.

    Example:
        >>> draw_samples("data/factbook/docs.jsonl", 3).counts
        {'document': 33612}
    """
    counts: Counter[str] = Counter()
    chosen: list[Sample] = []
    source = random.Random(seed)
    for place, (line, _, raw) in enumerate(lines(path)):
        where = f"{os.fspath(path)}:{line}"
        fields = parsed(raw, where)
        kind = kind_of(fields, where)
        counts[kind] += 1
        # Each record is kept with the same probability, and the file is read once only.
        keep = place if place < number else source.randrange(place + 1)
        if keep < number:
            sample = Sample(line, kind, fields)
            chosen[keep : keep + 1] = [sample]
    if not counts:
        raise DataError(f"{os.fspath(path)}: holds no records")
    return Samples(dict(counts), sorted(chosen, key=lambda sample: sample.line))


def kind_of(fields: Mapping[str, Any], where: str) -> str:
    """The kind of a record.

    Raises:
        DataError: it is of none, or lacks what its kind needs; the message begins with `where`.
    """
    for kind, (names, check) in _KINDS.items():
        if all(name in fields for name in names):
            check(Fields(where, fields))
            return kind
    known = "; ".join(", ".join(names) for names, _ in _KINDS.values())
    found = ", ".join(fields) or "none"
    raise DataError(
        f"{where}: no record of a known kind: its fields are {shown(found, quoted=False)}; "
        f"a record has {known}"
    )
