"""From a record to a document: which fields are its id, text, title and metadata."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from clara.corpus.documents import CorpusDocument, marks_of
from clara.data.marks import Scalar
from clara.data.values import DataError, as_id, as_text, as_title, is_missing, kind, shown
from clara.errors.checks import is_integer, is_number, surrogate_flaw

TEXT_FIELDS = ("contents", "text")
ID_FIELDS = ("id", "_id")
TITLE_FIELD = "title"
MARKS_FIELD = "marks"

_NAMES = {str: "a string", int: "an integer", float: "a float", bool: "a boolean"}
_TYPES: dict[str, type] = {"str": str, "int": int, "float": float, "bool": bool}
_WORDS = {"true": True, "false": False}
_LONGEST_INTEGER = 64  # bits, with the sign
_DECLARED, _FIXED = "as declared", "as in the index"


@dataclass(frozen=True)
class FieldNames:
    """Names of the fields of a record.

    Attributes:
        text: None takes "contents", or "text" where there is none.
        id: None takes "id" or "_id"; a row of a table that has neither is called after its file
            and number, such as "cities.csv/1".
        title: None takes "title" where there is one.
        metadata: which other fields to keep, as "NAME" or "NAME:TYPE" with one of the types str,
            int, float and bool. None keeps all, an empty tuple none. The values of a CSV file are
            strings unless a type is given.

    Raises:
        DataError: one field is named for two uses.
    """

    text: str | None = None
    id: str | None = None
    title: str | None = None
    metadata: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        chosen = [name for name in (self.text, self.id, self.title) if name is not None]
        chosen += self.declared
        for name in chosen:
            if chosen.count(name) > 1:
                raise DataError(f"field {shown(name)} is named for two uses; name it once")

    @property
    def declared(self) -> dict[str, type | None]:
        """The fields of metadata that are named, with their types; None where none is given."""
        found: dict[str, type | None] = {}
        for given in self.metadata or ():
            name, colon, word = given.rpartition(":")
            known = bool(colon and name) and word in _TYPES
            found[name if known else given] = _TYPES[word] if known else None
        return found


@dataclass
class Columns:
    """Types of the metadata, the same in all records; each is fixed by its first value.

    Attributes:
        types: by the name of the field.
        first: where each had its first value.
        fixed: whether there are no columns but those of `types`.
        left_out: fields with values for which there is no column, and where each was first.
        surveying: whether only types are wanted. A value that metadata cannot have does not hide
            the other fields of its record then.
    """

    types: dict[str, type] = field(default_factory=dict)
    first: dict[str, str] = field(default_factory=dict)
    fixed: bool = False
    left_out: dict[str, str] = field(default_factory=dict)
    surveying: bool = False

    @classmethod
    def of(cls, names: FieldNames, fixed: Mapping[str, type] | None = None) -> Columns:
        """The types that are declared, or those that are fixed beforehand.

        Args:
            fixed: the types of all columns that there are. A type that is declared for one of
                them must be the same.

        Raises:
            DataError: a field is declared with another type.
        """
        types = {name: type_ for name, type_ in names.declared.items() if type_ is not None}
        if fixed is None:
            return cls(types, dict.fromkeys(types, _DECLARED))
        for name, type_ in types.items():
            if name in fixed and fixed[name] is not type_:
                raise DataError(
                    f"field {shown(name)} is declared as {_NAMES[type_]}; it is "
                    f"{_NAMES[fixed[name]]}, as in the index"
                )
        first = {name: _DECLARED if name in types else _FIXED for name in fixed}
        return cls(dict(fixed), first, fixed=True)

    def taken(self, values: Mapping[str, Any], where: str) -> dict[str, Scalar]:
        """The metadata of a record, after which its types are known.

        Integers become floats in a column of floats, and strings what a declared type says. Fields
        without a column are left out where the columns are fixed.

        Raises:
            DataError: a value has another type than earlier ones, which the message locates, or
                one that metadata cannot have.
        """
        taken: dict[str, Scalar] = {}
        for name, value in values.items():
            if flaw := surrogate_flaw(name):
                raise DataError(f"the name of field {shown(name)} {flaw}")
            if self.fixed and name not in self.types:
                if not is_missing(value):
                    self.left_out.setdefault(name, where)
                continue
            try:
                taken[name] = self._fitted(name, _plain(name, value))
            except DataError:
                if not self.surveying or name in self.types:
                    raise
        for name, scalar in taken.items():
            if scalar is not None and name not in self.types:
                self.types[name], self.first[name] = type(scalar), where
        return taken

    def _fitted(self, name: str, value: Scalar) -> Scalar:
        expected = self.types.get(name)
        if value is None or expected is None or type(value) is expected:
            return value
        if expected is float and type(value) is int and abs(value) <= 2**53:
            return float(value)
        first = self.first[name]
        if first == _DECLARED and isinstance(value, str):
            return _converted(name, value, expected)
        place = {_DECLARED: "declared so", _FIXED: _FIXED}.get(first, f"at {first}")
        hint = ""
        if first == _FIXED and isinstance(value, str):
            hint = f"; NAME:{expected.__name__} with --metadata-field reads strings as such"
        raise DataError(
            f"field {shown(name)} is {_NAMES[type(value)]}; it is {_NAMES[expected]}, {place}{hint}"
        )


def _plain(name: str, value: Any) -> Scalar:
    """A value as a plain Python scalar.

    Raises:
        DataError: it cannot be one.
    """
    if is_missing(value):
        return None
    if isinstance(value, bool):
        return value
    if is_integer(value):
        number = int(value)
        if number.bit_length() >= _LONGEST_INTEGER:
            raise DataError(f"field {shown(name)} does not fit into 64 bits")
        return number
    if is_number(value) and isinstance(value, float):
        if not math.isfinite(value):
            raise DataError(f"field {shown(name)} is {value}, not a finite number")
        return float(value)
    if isinstance(value, str):
        return as_text(value, f"field {shown(name)}")
    raise DataError(
        f"field {shown(name)} is {kind(value)}; metadata are strings, numbers, booleans and null: "
        "name the fields to keep with --metadata-field, or keep none with --no-metadata"
    )


def _converted(name: str, value: str, expected: type) -> Scalar:
    """A string of a table as the type that is declared; an empty one is None."""
    text = value.strip()
    if not text:
        return None
    try:
        if expected is bool:
            return _WORDS[text.lower()]
        converted = expected(text)
    except (ValueError, KeyError):
        raise DataError(
            f"field {shown(name)} is {shown(value)}, which is not {_NAMES[expected]}"
        ) from None
    return _plain(name, converted)


@dataclass
class Occurring:
    """Which fields occur, to find one of metadata that is asked for and is in no table at all.

    One that only some tables lack is null in their rows.

    Attributes:
        asked: for which fields.
        there: fields of tables and records.
        lacking: fields that some table lacks.
        unread: the first table or file of records that could not be read, which may have more, and
            why.
    """

    asked: Collection[str]
    there: set[str] = field(default_factory=set)
    lacking: set[str] = field(default_factory=set)
    unread: str | None = None

    def take(self, present: Collection[str], *, table: bool) -> None:
        """Take note of the columns of a table, or of the fields of a record."""
        if self.asked:
            self.there.update(present)
            if table:
                self.lacking.update(name for name in self.asked if name not in present)

    def check(self, known: Collection[str]) -> None:
        """Refuse a field that no table has.

        Args:
            known: fields that the index has, from sources that were read before.

        Raises:
            DataError: names the field, and those that there are.
        """
        for name in self.asked:
            if name in self.lacking and name not in self.there and name not in known:
                more = "" if self.unread is None else f"; not read: {self.unread}"
                raise DataError(_no_field("metadata", name, self.there) + more)


@dataclass(frozen=True)
class Roles:
    """Which of the fields at hand are text, id, title and metadata.

    Attributes:
        id: None: the rows have no ids of their own.
    """

    text: str
    id: str | None
    title: str | None
    metadata: tuple[str, ...]

    @classmethod
    def of(cls, names: FieldNames, present: Collection[str], *, table: bool) -> Roles:
        """Find the fields.

        Args:
            present: names of the record's fields, or of the table's columns.
            table: whether they are columns, so that a row may do without an id, and a title that
                is named must be there.

        Raises:
            DataError: a field that must be there is missing.
        """
        text = _chosen(names.text, TEXT_FIELDS, present)
        if text is None:
            raise DataError(_no_field("text", names.text or TEXT_FIELDS[0], present))
        name = _chosen(names.id, ID_FIELDS, present)
        if name is None and (names.id is not None or not table):
            raise DataError(_no_field("id", names.id or ID_FIELDS[0], present))
        title = _chosen(names.title, (TITLE_FIELD,), present)
        if title is None and names.title is not None and table:
            raise DataError(_no_field("title", names.title, present))
        used = {text, name, title}
        if names.metadata is None:
            metadata = tuple(each for each in present if each not in used)
        else:
            metadata = tuple(each for each in names.declared if each in present)
        return cls(text, name, title, metadata)


def _chosen(asked: str | None, defaults: Sequence[str], present: Collection[str]) -> str | None:
    names = defaults if asked is None else (asked,)
    return next((name for name in names if name in present), None)


def _no_field(use: str, name: str, present: Collection[str]) -> str:
    """The message about a field that is not there, with the option that names another."""
    option = "--metadata-field" if use == "metadata" else f"--{use}-field"
    there = ", ".join(sorted(present)) or "none"
    return (
        f"field '{name}' is missing; name the field of the {use} with {option}, "
        f"there are: {shown(there, quoted=False)}"
    )


def as_document(
    values: Mapping[str, Any],
    roles: Roles,
    columns: Columns,
    fallback: str,
    where: str,
) -> CorpusDocument:
    """A record as a document, which does not know its file yet.

    Args:
        fallback: its id where the rows have none.
        where: the file, with the line or row.

    Raises:
        DataError: a field has a value that it cannot have; says nothing of the place.
    """
    name = fallback if roles.id is None else as_id(values.get(roles.id), f"field '{roles.id}'")
    text = as_text(values.get(roles.text), f"field '{roles.text}'")
    if not text.strip():
        raise DataError(f"field '{roles.text}' is empty")
    title = None
    if roles.title is not None:
        title = as_title(values.get(roles.title), f"field '{roles.title}'") or None
    others = {each: values[each] for each in roles.metadata}
    marks = marks_of(values.get(MARKS_FIELD), text)
    if marks is not None:
        others.pop(MARKS_FIELD, None)
    metadata = columns.taken(others, where)
    return CorpusDocument(name, text, title, metadata, marks or (), where=where)
