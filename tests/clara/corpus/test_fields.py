"""From records to documents: fields, types of metadata, marks."""

import decimal

import pytest

from clara.corpus.fields import Columns, FieldNames, Roles, as_document
from clara.data import DataError
from clara.data.marks import Mark


def document_of(record, names=None, *, table=False, columns=None):
    names = FieldNames() if names is None else names
    roles = Roles.of(names, record.keys(), table=table)
    columns = Columns.of(names) if columns is None else columns
    return as_document(record, roles, columns, "f/1", "f:1")


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"id": "a", "contents": "x", "text": "y"}, ("a", "x", None, {"text": "y"})),
        ({"_id": 7, "text": "y", "title": "t"}, ("7", "y", "t", {})),
        ({"id": "a", "contents": "x", "title": None}, ("a", "x", None, {})),
        ({"id": "a", "contents": "x", "n": float("nan")}, ("a", "x", None, {"n": None})),
    ],
)
def test_fields_have_usual_names(record, expected):
    found = document_of(record)
    assert (found.id, found.text, found.title, found.metadata) == expected


def test_fields_can_be_named():
    names = FieldNames("body", "key", "head", metadata=("year", "a:b"))
    record = {"body": "x", "key": 3, "head": "h", "year": 1, "a:b": "c", "id": "no", "other": [1]}
    found = document_of(record, names)
    assert (found.id, found.text, found.title) == ("3", "x", "h")
    assert found.metadata == {"year": 1, "a:b": "c"}
    assert document_of(record, FieldNames("body", "key", "head", metadata=())).metadata == {}


def test_a_row_of_a_table_may_have_no_id():
    assert document_of({"text": "x"}, table=True).id == "f/1"
    with pytest.raises(
        DataError, match=r"field 'id' is missing; name the field of the id with --id"
    ):
        document_of({"text": "x"})
    with pytest.raises(DataError, match=r"field 'key' is missing"):
        document_of({"text": "x"}, FieldNames(id="key"), table=True)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (FieldNames(text="body"), "'body' is missing; .* with --text-field, there are: id, text"),
        (FieldNames(title="head"), "'head' is missing; .* --title-field"),
    ],
)
def test_what_is_named_must_be_a_column(names, message):
    with pytest.raises(DataError, match=message):
        document_of({"id": "a", "text": "x"}, names, table=True)


def test_a_field_has_one_use():
    with pytest.raises(DataError, match=r"field 'a' is named for two uses"):
        FieldNames(text="a", metadata=("a:int",))


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"contents": ""}, "field 'contents' is empty"),
        ({"contents": 5}, "field 'contents' must be a string, got the number 5"),
        ({"contents": None}, "field 'contents' must be a string, got null"),
        ({"contents": "\ud800"}, "half a surrogate pair"),
        ({"id": ""}, "field 'id' is empty"),
        ({"id": 1.5}, "field 'id' must be a string or an integer"),
        ({"title": 5}, "field 'title' must be a string"),
        ({"n": [1]}, "field 'n' is a list; metadata are .* --metadata-field"),
        ({"n": {}}, "field 'n' is an object"),
        ({"n": 2**63}, "field 'n' does not fit into 64 bits"),
        ({"n": float("inf")}, "field 'n' is inf, not a finite number"),
        ({"n": decimal.Decimal(1)}, "field 'n' is Decimal"),
        ({"n": "\udc80"}, "field 'n' holds half a surrogate pair"),
        ({"\udc80": 1}, "the name of field '.*' holds half a surrogate pair"),
    ],
)
def test_bad_values(record, message):
    with pytest.raises(DataError, match=message):
        document_of({"id": "a", "contents": "x", **record})


def test_types_are_fixed_by_the_first_value():
    columns = Columns()
    assert columns.taken({"a": None, "b": 1.5, "c": True}, "f:1") == {
        "a": None,
        "b": 1.5,
        "c": True,
    }
    assert columns.taken({"a": "x", "b": 2}, "f:2") == {"a": "x", "b": 2.0}
    assert isinstance(columns.taken({"b": 3}, "f:3")["b"], float)
    with pytest.raises(DataError, match=r"^field 'a' is an integer; it is a string, at f:2$"):
        columns.taken({"a": 1}, "f:4")
    with pytest.raises(DataError, match=r"^field 'c' is an integer; it is a boolean, at f:1$"):
        columns.taken({"c": 0}, "f:4")
    assert columns.types == {"a": str, "b": float, "c": bool}


def test_a_refused_record_fixes_no_type():
    columns = Columns()
    with pytest.raises(DataError):
        columns.taken({"new": 1, "bad": []}, "f:1")
    assert columns.taken({"new": "x"}, "f:2") == {"new": "x"}


def test_declared_types_read_strings():
    names = FieldNames(metadata=("i:int", "f:float", "b:bool", "s:str"))
    record = {"id": "a", "text": "x", "i": " 12 ", "f": "1e3", "b": "True", "s": "0"}
    assert document_of(record, names).metadata == {"i": 12, "f": 1000.0, "b": True, "s": "0"}
    empty = {**record, "i": "", "f": None}
    assert document_of(empty, names).metadata == {"i": None, "f": None, "b": True, "s": "0"}
    with pytest.raises(DataError, match=r"field 'i' is 'twelve', which is not an integer"):
        document_of({**record, "i": "twelve"}, names)
    with pytest.raises(DataError, match=r"field 'b' is '1', which is not a boolean"):
        document_of({**record, "b": "1"}, names)
    with pytest.raises(DataError, match=r"field 's' is an integer; it is a string, declared so"):
        document_of({**record, "s": 1}, names)
    with pytest.raises(DataError, match=r"field 'f' is inf, not a finite number"):
        document_of({**record, "f": "inf"}, names)


def test_marks_are_read_and_other_fields_of_that_name_are_metadata():
    record = {"id": "a", "contents": "one two", "marks": [[0, "page 1"], [4, "page 2"]]}
    assert document_of(record).marks == (Mark(0, "page 1"), Mark(4, "page 2"))
    assert document_of(record, FieldNames(metadata=())).marks == document_of(record).marks
    assert document_of({**record, "marks": 90}).metadata == {"marks": 90}
    for bad in (
        [[4, "b"], [0, "a"]],
        [[8, "a"]],
        [[-1, "a"]],
        [[0]],
        [0],
        [[0, 1]],
        [[0, "\ud800"]],
    ):
        with pytest.raises(DataError, match=r"field 'marks' is a list"):
            document_of({**record, "marks": bad})


def test_fixed_columns_leave_other_fields_out_and_refuse_other_types():
    columns = Columns.of(FieldNames(), {"a": int, "b": float})
    assert columns.taken({"a": 1, "c": None, "d": None}, "f:1") == {"a": 1}
    assert columns.left_out == {}
    assert columns.taken({"b": 2, "c": [], "d": "x"}, "f:2") == {"b": 2.0}
    assert columns.taken({"c": 1}, "f:3") == {}
    assert columns.left_out == {"c": "f:2", "d": "f:2"}
    assert columns.types == {"a": int, "b": float}
    message = "^field 'a' is a string; it is an integer, as in the index; NAME:int with --metadata"
    with pytest.raises(DataError, match=message):
        columns.taken({"a": "1"}, "f:4")
    with pytest.raises(DataError, match=r"^field 'a' is a float; it is an integer, as in the ind"):
        columns.taken({"a": 0.5}, "f:5")


def test_types_declared_for_fixed_columns_must_be_the_same():
    declared = FieldNames(metadata=("a:int", "new:str"))
    columns = Columns.of(declared, {"a": int})
    assert columns.taken({"a": " 7 "}, "f:1") == {"a": 7}
    assert columns.types == {"a": int}
    with pytest.raises(DataError, match=r"^field 'a' is declared as an integer; it is a string, a"):
        Columns.of(declared, {"a": str})
