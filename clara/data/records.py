"""Documents and questions as JSON lines: one object on each line, UTF-8."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from clara.data.lines import Fields, identifier, lines, parsed
from clara.data.recognition import CORPUS, QUESTIONS
from clara.data.values import DataError, as_id, as_text, as_title, kind, shown
from clara.files.writing import replacing


@dataclass(frozen=True)
class Document:
    """A document to compress: a corpus line `{"id", "contents", "title"?}`."""

    id: str
    text: str
    title: str | None = None


@dataclass(frozen=True)
class Question:
    """A question: a line `{"id", "question", "golden_answers", "positives"?}`.

    Attributes:
        golden_answers: accepted answers, at least one.
        positives: ids of the documents that hold the answer; empty if they are not known.
    """

    id: str
    question: str
    golden_answers: tuple[str, ...]
    positives: tuple[str, ...] = ()


DocumentLike = str | Document | Mapping[str, Any]
"""A text, a `Document`, or a mapping with "contents" and perhaps "id" and "title"."""


def as_documents(documents: Iterable[DocumentLike]) -> list[Document]:
    """Convert documents from any accepted form; a document without an id gets its position as id.

    Ids and titles follow the rules of `read_documents`: an integer id becomes its decimal digits,
    and a title of NaN or None means that there is no title. NumPy strings and integers become
    plain ones.

    Raises:
        TypeError: `documents` is not a list of documents, or one of them has another type.
        DataError: a document has no usable text, id or title, or the id of an earlier document;
            the message names its position.
    """
    if isinstance(documents, str | Mapping | Document):
        raise TypeError("documents must be a list of documents, got a single one")
    if hasattr(documents, "columns"):  # iterating a table gives its columns
        raise TypeError(
            f"documents must be a list of documents, got a {type(documents).__name__}; "
            "pass its rows, such as table.to_dict('records') of pandas"
        )
    records: list[Document] = []
    first: dict[str, int] = {}
    unnamed: set[int] = set()
    for position, given in enumerate(documents):
        document = _as_document(given, position)
        name = str(position) if document.id is None else document.id
        if document.id is None:
            unnamed.add(position)
        if name in first:
            other = f"documents[{first[name]}]"
            reason = "; a document without an id gets its position as id"
            named = not {position, first[name]} & unnamed
            raise DataError(
                f"documents[{position}]: id {shown(name)} is also that of {other}"
                f"{'' if named else reason}"
            )
        first[name] = position
        records.append(Document(name, document.text, document.title))
    return records


class _Given(NamedTuple):
    """A document whose id may still be missing."""

    id: str | None
    text: str
    title: str | None


def _as_document(given: Any, position: int) -> _Given:
    place = f"documents[{position}]"
    if isinstance(given, str):
        return _Given(None, as_text(given, place), None)
    if isinstance(given, Document):
        return _Given(
            as_id(given.id, f"{place}.id"),
            as_text(given.text, f"{place}.text"),
            as_title(given.title, f"{place}.title"),
        )
    if isinstance(given, Mapping):
        name = given.get("id")
        return _Given(
            None if name is None else as_id(name, f"{place}: 'id'"),
            as_text(given.get("contents"), f"{place}: 'contents'"),
            as_title(given.get("title"), f"{place}: 'title'"),
        )
    raise TypeError(f"{place} must be a string, Document or mapping, got {type(given).__name__}")


def read_documents(path: str | os.PathLike[str]) -> Iterator[Document]:
    """Read a corpus line by line; only the ids are kept in memory.

    An integer id becomes its decimal digits. A title of null or NaN means that there is no title.
    Blank lines, a byte order mark at the start, and fields other than "id", "contents" and "title"
    are ignored.

    Raises:
        DataError: raised when the iterator reaches the line. The file cannot be read; or a line is
            not UTF-8, is not a JSON object, repeats an id, or its "id" or "contents" is missing,
            empty or of another type.
    """
    return (document for document, _ in read_records(path))


def read_records(path: str | os.PathLike[str]) -> Iterator[tuple[Document, Fields]]:
    """The documents of `read_documents`, each with all fields of its line; raises as that does."""
    for name, line in identified(path, CORPUS):
        document = Document(id=name, text=line.text("contents"), title=line.optional_text("title"))
        yield document, line


def read_document_ids(path: str | os.PathLike[str]) -> set[str]:
    """Read and check all of a corpus, and return its ids. The corpus is then read a second time.

    Raises:
        DataError: as `read_documents`; also if the file has no documents, or is a pipe, which
            cannot be read twice.
    """
    place = os.fspath(path)
    if os.path.exists(place) and not (os.path.isfile(place) or os.path.isdir(place)):
        raise DataError(f"{place}: is a pipe or device; a corpus is read twice, use a file")
    ids = {document.id for document in read_documents(path)}
    if not ids:
        raise DataError(f"{place}: holds no documents; {CORPUS}")
    return ids


def read_questions(path: str | os.PathLike[str]) -> Iterator[Question]:
    """Read questions line by line, with the rules of `read_documents`.

    Raises:
        DataError: as `read_documents`, for "id", "question", "golden_answers" (a list of at least
            one string) and "positives" (a list of ids, may be absent).
    """
    for name, line in identified(path, QUESTIONS):
        yield Question(
            id=name,
            question=line.text("question"),
            golden_answers=line.texts("golden_answers"),
            positives=line.ids("positives"),
        )


def write_jsonl(path: str | os.PathLike[str], records: Iterable[Any]) -> None:
    """Write one JSON object per line. After an error the file is as it was before.

    Args:
        path: the file, which is replaced if it exists. Its folder must exist.
        records: each a `Document`, a `Question`, or a JSON-serialisable mapping.

    Raises:
        DataError: a record has another type, or JSON in UTF-8 cannot hold it; the message names
            its position.
        OSError: the file cannot be written.
    """
    target = os.path.realpath(path)
    with replacing(target, sync=True) as unfinished, unfinished.open("wb") as file:
        for position, record in enumerate(records):
            file.write(_encoded(record, position))


def _encoded(record: Any, position: int) -> bytes:
    place = f"records[{position}]"
    if isinstance(record, Document):
        fields: Mapping[str, Any] = _document_fields(record, place)
    elif isinstance(record, Question):
        fields = _question_fields(record, place)
    elif isinstance(record, Mapping):
        fields = record
    else:
        raise DataError(
            f"{place} must be a Document, Question or mapping, got {type(record).__name__}"
        )
    try:
        text = json.dumps(dict(fields), ensure_ascii=False, allow_nan=False)
        return text.encode() + b"\n"
    except (TypeError, ValueError, RecursionError) as error:
        raise DataError(f"{place} cannot be written: {error}") from error


def _document_fields(document: Document, place: str) -> dict[str, Any]:
    """The line of a document; what `read_documents` would refuse is not written."""
    fields: dict[str, Any] = {
        "id": as_id(document.id, f"{place}.id"),
        "contents": as_text(document.text, f"{place}.text"),
    }
    title = as_title(document.title, f"{place}.title")
    return fields if title is None else {**fields, "title": title}


def _question_fields(question: Question, place: str) -> dict[str, Any]:
    return {
        "id": as_id(question.id, f"{place}.id"),
        "question": as_text(question.question, f"{place}.question"),
        "golden_answers": _each(as_text, question.golden_answers, f"{place}.golden_answers"),
        "positives": _each(as_id, question.positives, f"{place}.positives"),
    }


def _each(convert: Callable[[Any, str], str], values: Any, what: str) -> list[str]:
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise DataError(f"{what} must be a list of strings, got {kind(values)}")
    return [convert(value, f"{what}[{row}]") for row, value in enumerate(values)]


def identified(
    path: str | os.PathLike[str], expected: str, name: str = "id"
) -> Iterator[tuple[str, Fields]]:
    """Id and fields of each line that is not blank; no line before it has the same id.

    Args:
        expected: said of a file that holds no JSON lines, such as `CORPUS`.
        name: of the field with the id.

    Raises:
        DataError: as `read_documents`, for the file, the lines and their ids.
    """
    first_line: dict[str, int] = {}
    for number, _, raw in lines(path, expected):
        place = f"{os.fspath(path)}:{number}"
        fields = parsed(raw, place)
        found = identifier(fields, name, place)
        if found in first_line:
            raise DataError(f"{place}: id {shown(found)} is also on line {first_line[found]}")
        first_line[found] = number
        yield found, Fields(f"{place}: {shown(found)}", fields)
