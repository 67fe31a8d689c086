"""Fields of nested JSON objects, with errors that name the file, the line and the field."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clara.data.values import DataError, is_missing, kind, shown
from clara.errors.checks import is_number


@dataclass(frozen=True)
class Node:
    """An object of a file; every accessor raises DataError with the place.

    Texts are taken as they are: what is shown of them is made safe where it is shown.

    Attributes:
        place: file, and line where it has several objects.
        values: of the object.
        path: of the object within the outermost one, such as "entries[3].".
    """

    place: str
    values: Mapping[str, Any]
    path: str = ""

    def __contains__(self, name: str) -> bool:
        """Whether there is such a field that is neither null nor NaN."""
        return not is_missing(self.values.get(name))

    def wrong(self, name: str, message: str) -> DataError:
        return DataError(f"{self.place}: field '{self.path}{name}' {message}")

    def get(self, name: str) -> Any:
        """A field that must be there."""
        if name not in self.values:
            raise self.wrong(name, "is missing")
        return self.values[name]

    def text(self, name: str) -> str:
        value = self.get(name)
        if not isinstance(value, str):
            raise self.wrong(name, f"must be a string, got {kind(value)}")
        return value

    def optional_text(self, name: str) -> str | None:
        """A string; None where it is absent or null."""
        return self.text(name) if name in self else None

    def texts(self, name: str) -> tuple[str, ...]:
        """A list of strings; empty where it is absent or null."""
        if name not in self:
            return ()
        values = self._list(name)
        for position, value in enumerate(values):
            if not isinstance(value, str):
                raise self.wrong(f"{name}[{position}]", f"must be a string, got {kind(value)}")
        return tuple(values)

    def number(self, name: str) -> float:
        """A finite number."""
        value = self.get(name)
        if not is_number(value) or not math.isfinite(value):
            raise self.wrong(name, f"must be a finite number, got {kind(value)}")
        return float(value)

    def optional_number(self, name: str) -> float | None:
        """A finite number; None where it is absent or null."""
        return self.number(name) if name in self else None

    def amount(self, name: str) -> float | None:
        """As `optional_number`, but not below 0."""
        value = self.optional_number(name)
        if value is not None and value < 0:
            raise self.wrong(name, f"must not be below 0, got {value:g}")
        return value

    def count(self, name: str) -> int:
        """An integer from 0 on."""
        value = self.number(name)
        if value < 0 or value != int(value):
            raise self.wrong(name, f"must be an integer from 0 on, got {value:g}")
        return int(value)

    def flag(self, name: str) -> bool | None:
        """True or false; None where it is absent or null."""
        if name not in self:
            return None
        value = self.values[name]
        if not isinstance(value, bool):
            raise self.wrong(name, f"must be true, false or null, got {kind(value)}")
        return value

    def node(self, name: str) -> Node:
        """An object that must be there."""
        value = self.get(name)
        if not isinstance(value, dict):
            raise self.wrong(name, f"must be an object, got {kind(value)}")
        return Node(self.place, value, f"{self.path}{name}.")

    def optional_node(self, name: str) -> Node:
        """An object; an empty one where it is absent or null."""
        return self.node(name) if name in self else Node(self.place, {}, f"{self.path}{name}.")

    def nodes(self, name: str) -> list[Node]:
        """A list of objects; empty where it is absent or null."""
        found = []
        for position, value in enumerate(self._list(name) if name in self else []):
            inner = f"{name}[{position}]"
            if not isinstance(value, dict):
                raise self.wrong(inner, f"must be an object, got {kind(value)}")
            found.append(Node(self.place, value, f"{self.path}{inner}."))
        return found

    def _list(self, name: str) -> list[Any]:
        value = self.values[name]
        if not isinstance(value, list):
            raise self.wrong(name, f"must be a list, got {kind(value)}")
        return value


def read_object(path: Path, form: str) -> Node:
    """A file that holds one JSON object of a form.

    Raises:
        DataError: it cannot be read, is no JSON object, or its field "format" names another form.
    """
    try:
        values = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        at = f" at line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise DataError(f"{path}: not valid JSON{at}") from error
    if not isinstance(values, dict):
        raise DataError(f"{path}: must be a JSON object, got {kind(values)}")
    node = Node(str(path), values)
    found = values.get("format")
    if found != form:
        got = shown(found) if isinstance(found, str) else kind(found)
        raise node.wrong("format", f"must be {form!r}, got {got}")
    return node
