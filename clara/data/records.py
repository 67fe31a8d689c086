"""Documents and questions as JSON lines: one object on each line, UTF-8."""

from __future__ import annotations

import codecs
import json
import os
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_LONGEST_SHOWN = 80  # characters of a value quoted in a message


class DataError(ValueError):
    """A file of records cannot be read. The message is one line: file, line number, reason."""


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
    for line in _records(path):
        yield Document(id=line.id, text=line.text("contents"), title=line.optional_text("title"))


def read_questions(path: str | os.PathLike[str]) -> Iterator[Question]:
    """Read questions line by line; see `read_documents` for what is accepted.

    Raises:
        DataError: as `read_documents`, for "id", "question", "golden_answers" (a list of at least
            one string) and "positives" (a list of ids, may be absent).
    """
    for line in _records(path):
        yield Question(
            id=line.id,
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


@dataclass(frozen=True)
class _Record:
    """The object on one line; every accessor raises DataError with the line's place."""

    place: str
    id: str
    fields: dict[str, Any]

    def text(self, name: str) -> str:
        """A field that must be there, a string with something in it."""
        value = _string(self.fields, name, self._where)
        if not value.strip():
            raise DataError(f"{self._where}: field '{name}' is empty")
        return value

    def optional_text(self, name: str) -> str | None:
        """A string; None where it is absent or null."""
        if self.fields.get(name) is None:
            return None
        return _string(self.fields, name, self._where)

    def texts(self, name: str) -> tuple[str, ...]:
        """A list that must be there and hold at least one string."""
        if name not in self.fields:
            raise DataError(f"{self._where}: field '{name}' is missing")
        values = self._list(name)
        if not values:
            raise DataError(f"{self._where}: field '{name}' is empty")
        return tuple(
            _string({entry: value}, entry, self._where) for entry, value in _entries(name, values)
        )

    def ids(self, name: str) -> tuple[str, ...]:
        """A list of ids; empty where it is absent or null."""
        if self.fields.get(name) is None:
            return ()
        return tuple(
            _identifier({entry: value}, entry, self._where)
            for entry, value in _entries(name, self._list(name))
        )

    def _list(self, name: str) -> list[Any]:
        value = self.fields[name]
        if not isinstance(value, list):
            raise DataError(
                f"{self._where}: field '{name}' must be a list of strings, got {_kind(value)}"
            )
        return value

    @property
    def _where(self) -> str:
        return f"{self.place}: {_shown(self.id)}"


def _records(path: str | os.PathLike[str]) -> Iterator[_Record]:
    """The object of each line that is not blank, with an id that no line before it has."""
    first_line: dict[str, int] = {}
    for number, raw in _lines(path):
        place = f"{os.fspath(path)}:{number}"
        fields = _parsed(raw, place)
        name = _identifier(fields, "id", place)
        if name in first_line:
            raise DataError(f"{place}: id {_shown(name)} is also on line {first_line[name]}")
        first_line[name] = number
        yield _Record(place, name, fields)


def _lines(path: str | os.PathLike[str]) -> Iterator[tuple[int, bytes]]:
    try:
        with open(path, "rb") as file:
            for number, raw in enumerate(file, 1):
                line = (raw.removeprefix(codecs.BOM_UTF8) if number == 1 else raw).strip()
                if line:
                    yield number, line
    except OSError as error:
        raise DataError(f"{os.fspath(path)}: {error.strerror or error}") from error


def _parsed(raw: bytes, place: str) -> dict[str, Any]:
    try:
        # Tabs and NUL bytes inside a string are taken as they are.
        fields = json.loads(raw.decode("utf-8"), strict=False)
    except UnicodeDecodeError as error:
        raise DataError(
            f"{place}: not valid UTF-8: byte 0x{raw[error.start]:02x} at {error.start}"
        ) from error
    except json.JSONDecodeError as error:
        raise DataError(f"{place}: not valid JSON: {error.msg} at column {error.colno}") from error
    except RecursionError as error:
        raise DataError(f"{place}: not valid JSON: nested too deeply") from error
    except ValueError as error:  # a number with thousands of digits
        raise DataError(f"{place}: not valid JSON: {error}") from error
    if not isinstance(fields, dict):
        raise DataError(f"{place}: must be a JSON object, got {_kind(fields)}")
    return fields


def _identifier(fields: Mapping[str, Any], name: str, where: str) -> str:
    value = fields.get(name)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    text = _string(fields, name, where)
    if not text.strip():
        raise DataError(f"{where}: field '{name}' is empty")
    return text


def _string(fields: Mapping[str, Any], name: str, where: str) -> str:
    if name not in fields:
        raise DataError(f"{where}: field '{name}' is missing")
    value = fields[name]
    if not isinstance(value, str):
        raise DataError(f"{where}: field '{name}' must be a string, got {_kind(value)}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        code = ord(value[error.start])
        raise DataError(
            f"{where}: field '{name}' holds half a surrogate pair, \\u{code:04x}, "
            f"at character {error.start}"
        ) from error
    return value


def _entries(name: str, values: list[Any]) -> Iterator[tuple[str, Any]]:
    for position, value in enumerate(values):
        yield f"{name}[{position}]", value


def _kind(value: Any) -> str:
    """How JSON calls a value."""
    if value is None:
        return "null"
    names = {bool: "a boolean", str: "a string", list: "a list", dict: "an object"}
    return names.get(type(value), "a number")


def _shown(value: str) -> str:
    shown = repr(value)
    return shown if len(shown) <= _LONGEST_SHOWN else shown[: _LONGEST_SHOWN - 1] + "…"
