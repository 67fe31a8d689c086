"""Documents and questions as JSON lines: one object on each line, UTF-8."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clara.data.lines import DataError, Fields, identifier, lines, parsed, shown
from clara.data.recognition import CORPUS, QUESTIONS


@dataclass(frozen=True)
class Document:
    """A text to compress, the corpus line `{"id", "contents", "title"?}`."""

    id: str
    text: str
    title: str | None = None


@dataclass(frozen=True)
class Question:
    """A question, the line `{"id", "question", "golden_answers", "positives"?}`.

    Attributes:
        golden_answers: accepted answers, at least one.
        positives: ids of the documents that hold the answer; empty where they are not known.
    """

    id: str
    question: str
    golden_answers: tuple[str, ...]
    positives: tuple[str, ...] = ()


def read_documents(path: str | os.PathLike[str]) -> Iterator[Document]:
    """Read a corpus line by line; only the ids are kept in memory.

    An integer id becomes its decimal digits. Other fields than "id", "contents" and "title" are
    ignored, as are blank lines and a byte order mark at the start.

    Raises:
        DataError: when the iterator gets there. The file cannot be read, or a line is not UTF-8,
            not a JSON object, lacks "id" or "contents" or has them empty or of another type, or
            repeats an id.
    """
    for name, line in _records(path, CORPUS):
        yield Document(id=name, text=line.text("contents"), title=line.optional_text("title"))


def read_questions(path: str | os.PathLike[str]) -> Iterator[Question]:
    """Read questions line by line; see `read_documents` for what is accepted.

    Raises:
        DataError: as `read_documents`, for "id", "question", "golden_answers" (a list of at least
            one string) and "positives" (a list of ids, may be absent).
    """
    for name, line in _records(path, QUESTIONS):
        yield Question(
            id=name,
            question=line.text("question"),
            golden_answers=line.texts("golden_answers"),
            positives=line.ids("positives"),
        )


def write_jsonl(path: str | os.PathLike[str], records: Iterable[Any]) -> None:
    """Write one JSON object per line; `path` holds all of them or what it held before.

    Args:
        path: replaced if it exists. Its folder must exist.
        records: each a `Document`, a `Question`, or a mapping that JSON can hold.

    Raises:
        DataError: a record is of another kind or holds what JSON in UTF-8 cannot; names its
            position.
        OSError: the file cannot be written.
    """
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        with open(temporary, "xb") as file:
            for position, record in enumerate(records):
                file.write(_encoded(record, position))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _encoded(record: Any, position: int) -> bytes:
    if isinstance(record, Document):
        fields: Mapping[str, Any] = {"id": record.id, "contents": record.text}
        if record.title is not None:
            fields = {**fields, "title": record.title}
    elif isinstance(record, Question):
        fields = {
            "id": record.id,
            "question": record.question,
            "golden_answers": record.golden_answers,
            "positives": record.positives,
        }
    elif isinstance(record, Mapping):
        fields = record
    else:
        raise DataError(
            f"records[{position}] must be a Document, Question or mapping, "
            f"got {type(record).__name__}"
        )
    try:
        text = json.dumps(dict(fields), ensure_ascii=False, allow_nan=False)
        return text.encode() + b"\n"
    except (TypeError, ValueError, RecursionError) as error:
        raise DataError(f"records[{position}] cannot be written: {error}") from error


def _records(path: str | os.PathLike[str], expected: str) -> Iterator[tuple[str, Fields]]:
    """Id and fields of each line that is not blank; no line before it has the same id."""
    first_line: dict[str, int] = {}
    for number, _, raw in lines(path, expected):
        place = f"{os.fspath(path)}:{number}"
        fields = parsed(raw, place)
        name = identifier(fields, "id", place)
        if name in first_line:
            raise DataError(f"{place}: id {shown(name)} is also on line {first_line[name]}")
        first_line[name] = number
        yield name, Fields(f"{place}: {shown(name)}", fields)
