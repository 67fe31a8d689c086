"""JSON lines: one object on each line, UTF-8, with errors that say where."""

from __future__ import annotations

import codecs
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from clara.data import recognition
from clara.data.values import DataError, as_id, as_text, as_title, is_missing, kind
from clara.errors.checks import is_integer


@dataclass(frozen=True)
class Fields:
    """The fields of one object; every accessor raises DataError with `where`."""

    where: str
    values: Mapping[str, Any]

    def __contains__(self, name: str) -> bool:
        """Whether there is such a field that is neither null nor NaN."""
        return not is_missing(self.values.get(name))

    def text(self, name: str) -> str:
        """A field that must be there, a string with something in it."""
        value = string(self.values, name, self.where)
        if not value.strip():
            raise DataError(f"{self.where}: field '{name}' is empty")
        return value

    def optional_text(self, name: str) -> str | None:
        """A string; None where it is absent, null or NaN."""
        return as_title(self.values.get(name), f"{self.where}: field '{name}'")

    def texts(self, name: str) -> tuple[str, ...]:
        """A list that must be there and hold at least one string."""
        if name not in self.values:
            raise DataError(f"{self.where}: field '{name}' is missing")
        values = self._list(name, "strings")
        if not values:
            raise DataError(f"{self.where}: field '{name}' is empty")
        return tuple(
            string({entry: value}, entry, self.where) for entry, value in _entries(name, values)
        )

    def ids(self, name: str) -> tuple[str, ...]:
        """A list of ids; empty where it is absent or null."""
        if name not in self:
            return ()
        return tuple(
            identifier({entry: value}, entry, self.where)
            for entry, value in _entries(name, self._list(name, "strings"))
        )

    def flag(self, name: str, default: bool) -> bool:
        """A truth value; `default` where it is absent or null."""
        if name not in self:
            return default
        value = self.values[name]
        if not isinstance(value, bool):
            raise DataError(f"{self.where}: field '{name}' must be a boolean, got {kind(value)}")
        return value

    def objects(self, name: str) -> list[Fields]:
        """A list of objects that must be there; each says its place in the list."""
        if name not in self.values:
            raise DataError(f"{self.where}: field '{name}' is missing")
        found = []
        for entry, value in _entries(name, self._list(name, "objects")):
            if not isinstance(value, dict):
                raise DataError(f"{self.where}: {entry} must be an object, got {kind(value)}")
            found.append(Fields(f"{self.where}: {entry}", value))
        return found

    def positions(self, name: str, count: int) -> tuple[int, ...]:
        """A list of different integers from 0 to `count - 1`; empty where it is absent or null."""
        if name not in self:
            return ()
        values = self._list(name, "integers")
        for entry, value in _entries(name, values):
            if not is_integer(value):
                raise DataError(
                    f"{self.where}: field '{entry}' must be an integer, got {kind(value)}"
                )
            if not 0 <= int(value) < count:
                raise DataError(f"{self.where}: field '{entry}' is {value}, there are {count}")
        return tuple(dict.fromkeys(int(value) for value in values))

    def _list(self, name: str, of: str) -> list[Any]:
        value = self.values[name]
        if not isinstance(value, list):
            raise DataError(
                f"{self.where}: field '{name}' must be a list of {of}, got {kind(value)}"
            )
        return value


def lines(
    path: str | os.PathLike[str], expected: str = recognition.RECORDS
) -> Iterator[tuple[int, int, bytes]]:
    """Number, byte offset and content of every line that is not blank.

    Args:
        expected: said of a file that holds no JSON lines.

    Raises:
        DataError: the file cannot be read, or is plainly of another kind.
    """
    try:
        with open(path, "rb", buffering=recognition.HEAD) as file:
            message = recognition.foreign(path, _peeked(file), expected)
            if message is not None:
                raise DataError(message)
            offset = 0
            for number, raw in enumerate(file, 1):
                line = raw.removeprefix(codecs.BOM_UTF8) if number == 1 else raw
                if line.strip():
                    yield number, offset + len(raw) - len(line), line.strip()
                offset += len(raw)
    except IsADirectoryError as error:
        raise DataError(recognition.folder(path, expected)) from error
    except OSError as error:
        raise DataError(f"{os.fspath(path)}: {error.strerror or error}") from error


def _peeked(file: Any) -> bytes:
    """What a file begins with; nothing is taken out of it, which matters for a pipe."""
    return bytes(file.peek(recognition.HEAD))


def not_json(error: json.JSONDecodeError) -> str:
    """What is wrong on a line, and in which column."""
    what = error.msg.removesuffix(" at")  # of "Unterminated string starting at"
    return f"not valid JSON: {what} at column {error.colno}"


def parsed(raw: bytes, place: str) -> dict[str, Any]:
    """The object on a line.

    Raises:
        DataError: not UTF-8, not JSON, or not an object.
    """
    try:
        # Tabs and NUL bytes inside a string are taken as they are.
        fields = json.loads(raw.decode("utf-8"), strict=False)
    except UnicodeDecodeError as error:
        raise DataError(
            f"{place}: not valid UTF-8: byte 0x{raw[error.start]:02x} at {error.start}"
        ) from error
    except json.JSONDecodeError as error:
        raise DataError(f"{place}: {not_json(error)}") from error
    except RecursionError as error:
        raise DataError(f"{place}: not valid JSON: nested too deeply") from error
    except ValueError as error:  # a number with thousands of digits
        raise DataError(f"{place}: not valid JSON: {error}") from error
    if not isinstance(fields, dict):
        raise DataError(f"{place}: must be a JSON object, got {kind(fields)}")
    return fields


def identifier(fields: Mapping[str, Any], name: str, where: str) -> str:
    """An id, see `as_id`; it must be there."""
    return as_id(_present(fields, name, where), f"{where}: field '{name}'")


def string(fields: Mapping[str, Any], name: str, where: str) -> str:
    """A string that UTF-8 can hold; it must be there."""
    return as_text(_present(fields, name, where), f"{where}: field '{name}'")


def _present(fields: Mapping[str, Any], name: str, where: str) -> Any:
    if name not in fields:
        raise DataError(f"{where}: field '{name}' is missing")
    return fields[name]


def _entries(name: str, values: list[Any]) -> Iterator[tuple[str, Any]]:
    for position, value in enumerate(values):
        yield f"{name}[{position}]", value
