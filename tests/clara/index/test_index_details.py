"""Metadata and origin of documents in an index."""

import json
import math
from dataclasses import replace
from datetime import timedelta
from random import Random

import lance
import pyarrow as pa
import pytest
import torch

from clara.data.marks import Mark, place_of
from clara.index import Details, MemoryIndex, MemoryIndexError
from clara.index.header import Header
from clara.index.sizing import index_bytes
from clara.index.snapshot import Snapshot
from clara.index.storage import STORAGES

COLUMNS = {"author": str, "year": int, "price (EUR)": float, "in.print": bool}
HOSTILE = 'it\'s "quoted" `so` \\ \n\x1b[31m <b>ü</b> <|endoftext|>'


def entries(index):
    return [entry for batch in Snapshot.latest(index.path).entries() for entry in batch]


def test_details_come_back_as_they_were_given(make_index, make_documents):
    index = make_index(columns=COLUMNS)
    documents = make_documents(["a#0", "b", "a#1", "c"])
    metadata = {"author": HOSTILE, "year": -(2**63), "price (EUR)": -0.0, "in.print": False}
    marks = (Mark(0, "page 1"), Mark(len(documents.texts[0]), "page 2"), Mark(99, "page 3"))
    index.add(
        documents,
        {
            "a": Details(metadata, source="books", digest="d" * 64, marks=marks),
            "b": Details({"year": None, "price (EUR)": 3}, marks=(Mark(1, "# Later"),)),
        },
    )
    nothing = dict.fromkeys(COLUMNS)
    for reader in (index, MemoryIndex.open(index.path)):
        assert reader.columns == COLUMNS
        assert reader.info()["columns"] == {
            "author": "str",
            "year": "int",
            "price (EUR)": "float",
            "in.print": "bool",
        }
        found = entries(reader)
        assert [each.id for each in found] == documents.ids
        assert [each.details for each in found] == [
            ("books", "d" * 64, 0, "page 1", metadata, marks[:1]),
            (None, None, 0, None, nothing | {"price (EUR)": 3.0}, (Mark(1, "# Later"),)),
            ("books", "d" * 64, len(documents.texts[0]), "page 2", metadata, marks[1:2]),
            (None, None, 0, None, nothing, ()),
        ]
        assert math.copysign(1, found[0].details.metadata["price (EUR)"]) == -1
        (hit,) = reader.search(documents.memory[2], 1)[0]
        assert (hit.id, hit.metadata, hit.place) == ("a#1", metadata, "page 2")
        assert hit.offset == len(documents.texts[0])
        assert type(hit.metadata["in.print"]) is bool


def test_hits_are_read_at_once(make_index, make_documents, monkeypatch):
    index = make_index(columns={"year": int})
    index.add(make_documents("abc"), {"a": Details({"year": 3})})
    query = make_documents("a").memory[0]
    expected = index.search(query, 2)
    takes, real = [], Snapshot.take_columns
    monkeypatch.setattr(
        Snapshot,
        "take_columns",
        lambda self, rows, columns: takes.append(rows) or real(self, rows, columns),
    )
    assert index.search(query, 2) == expected
    assert len(takes) == 1


def test_an_index_without_columns_says_nothing_of_places(make_index, make_documents):
    index = make_index()
    index.add(make_documents("ab"))
    (hit,) = index.search(make_documents("a").memory[0], 1)[0]
    assert (hit.metadata, hit.offset, hit.place) == ({}, None, None)
    assert index.columns is None
    with pytest.raises(MemoryIndexError, match="no columns for metadata"):
        index.add(make_documents("c"), {"c": Details(source="x")})
    assert index.ids() == ["a", "b"]


@pytest.mark.parametrize("seed", range(3))
def test_marks_come_back_whatever_rows_they_lie_in(make_index, make_documents, seed):
    random = Random(seed)
    index = make_index(columns={})
    parts = [random.randrange(1, 9) for _ in range(8)]
    documents = replace(
        make_documents([f"a#{row}" for row in range(8)]), texts=["x" * size for size in parts]
    )
    offsets = sorted(random.randrange(sum(parts) + 1) for _ in range(random.randrange(9)))
    marks = tuple(Mark(offset, f"{random.randrange(3)}") for offset in offsets)
    index.add(documents, {"a": Details(marks=marks)})
    (entry,) = index.documents()
    assert entry.marks == marks
    begins = [sum(parts[:row]) for row in range(8)]
    assert entry.places == [place_of(marks, begin) for begin in begins]
    for row, begin, size in zip(entries(index), begins, parts, strict=True):
        for offset in range(begin, begin + size):  # what a row knows is enough for its text
            assert place_of(row.details.marks, offset) == place_of(marks, offset)


def test_marks_that_no_index_writes_are_damage(make_index, make_documents, monkeypatch):
    index = make_index(columns={})
    for number, stored in enumerate(["{}", "[[1]]", '[["1", "a"]]', "[[1, 2]]", "[" * 10**6]):
        with monkeypatch.context() as patched:
            patched.setattr("clara.index.details._marks", lambda *arguments, text=stored: text)
            index.add(make_documents([f"d{number}"]), {f"d{number}": Details()})
    found = [each.document_id for each in index.verify(apart=False) if each.what == "metadata"]
    assert found == ["d1", "d2", "d3", "d4"]


def test_the_header_without_columns_is_what_it_was():
    header = Header("f", 2, 8, torch.float32, {}, identity="i", storage="int8")
    ((_, text), _) = sorted(header.metadata.items())
    assert "columns" not in json.loads(text)
    assert not {"source", "offset", "details_digest"} & set(header.schema.names)


def test_no_columns_but_an_origin(make_index, make_documents):
    index = make_index(columns={})
    index.add(make_documents("ab"), {"b": Details(source="s", digest="d")})
    assert MemoryIndex.open(index.path).columns == {}
    assert [each.details[:2] for each in entries(index)] == [(None, None), ("s", "d")]


@pytest.mark.parametrize(
    ("given", "error", "reason"),
    [
        ({"yaer": 1}, MemoryIndexError, "'a': the index has no column 'yaer' .* it has 'author', "),
        ({"year": "1"}, MemoryIndexError, "column 'year' .* an integer of 64 bits, got '1'"),
        ({"year": True}, MemoryIndexError, "must be an integer of 64 bits, got True"),
        ({"year": 2**63}, MemoryIndexError, "must be an integer of 64 bits, got 9223372036854775"),
        ({"author": 1}, MemoryIndexError, "column 'author' .* must be a string, got 1"),
        ({"author": "\ud800"}, MemoryIndexError, "column 'author' holds half a surrogate"),
        ({"price (EUR)": math.nan}, MemoryIndexError, "must be a float, finite, got nan"),
        ({"price (EUR)": 2**53 + 1}, MemoryIndexError, "must be a float, finite"),
        ({"in.print": 1}, MemoryIndexError, "must be a boolean, got 1"),
    ],
)
def test_metadata_that_do_not_fit_are_refused(make_index, make_documents, given, error, reason):
    index = make_index(columns=COLUMNS)
    version = lance.dataset(index.path).version
    with pytest.raises(error, match=reason) as caught:
        index.add(make_documents("ab"), {"a": Details(given)})
    assert "\n" not in str(caught.value)
    assert lance.dataset(index.path).version == version


def test_details_of_another_document_or_type_are_refused(make_index, make_documents):
    index = make_index(columns={})
    with pytest.raises(MemoryIndexError, match="given of 'nope', which is not to be stored"):
        index.add(make_documents("a"), {"nope": Details()})
    with pytest.raises(TypeError, match=r"details\['a'\] must be Details, got dict"):
        index.add(make_documents("a"), {"a": {}})
    with pytest.raises(TypeError, match="must be a mapping"):
        index.add(make_documents("a"), [Details()])
    with pytest.raises(TypeError, match="source must be a string or None, got 3"):
        index.add(make_documents("a"), {"a": Details(source=3)})
    assert len(index) == 0


@pytest.mark.parametrize(
    ("columns", "error", "reason"),
    [
        ({"": str}, ValueError, "1 to 128 characters, got ''"),
        ({" ": str}, ValueError, "1 to 128 characters"),
        ({"x" * 129: str}, ValueError, "1 to 128 characters"),
        ({3: str}, ValueError, "1 to 128 characters, got 3"),
        ({"a\nb": str}, ValueError, r"'a\\nb' holds control characters"),
        ({"\ud800": str}, ValueError, "half a surrogate"),
        ({"title": str}, ValueError, "'title' of metadata needs another name"),
        ({f"c{n}": int for n in range(257)}, ValueError, "at most 256, got 257"),
        ({"a": list}, TypeError, r"columns\['a'\] must be one of the types str, int, float, bool"),
        ({"a": "str"}, TypeError, r"columns\['a'\] must be one of"),
        (["a"], TypeError, "must be a mapping"),
    ],
)
def test_columns_that_cannot_be(make_index, tmp_path, columns, error, reason):
    with pytest.raises(error, match=reason) as caught:
        make_index(columns=columns)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_many_columns(make_index, make_documents):
    columns = {f"c{n}": (str, int, float, bool)[n % 4] for n in range(256)}
    index = make_index(columns=columns)
    given = {name: kind(1) for name, kind in columns.items()}
    index.add(make_documents("a"), {"a": Details(given)})
    assert entries(MemoryIndex.open(index.path))[0].details.metadata == given


@pytest.mark.parametrize(
    "column", ["source", "document_digest", "offset", "marks", "metadata_0", "metadata_1"]
)
def test_another_value_is_noticed(make_index, make_documents, column):
    """Lance is made to store it: not even a changed file that it accepts goes unnoticed."""
    index = make_index(columns={"year": int, "author": str})
    details = Details({"year": 7, "author": "x"}, "s", "d", (Mark(0, "page 1"),))
    index.add(make_documents("ab"), {"a": details, "b": details})
    stored = lance.dataset(index.path)
    value = "8" if pa.types.is_integer(stored.schema.field(column).type) else "'other'"
    stored.update({column: value}, where="id = 'b'")
    index = MemoryIndex.open(index.path)
    with pytest.raises(MemoryIndexError, match=r"document 'b' \(row 1\) is damaged"):
        entries(index)
    with pytest.raises(MemoryIndexError, match="document 'b'"):
        index.search(make_documents("b").memory, 1)
    assert index.search(make_documents("a").memory, 1)[0][0].metadata["year"] == 7


@pytest.mark.parametrize("storage", [*STORAGES])
def test_an_index_with_metadata_takes_what_the_formula_says(make_index, make_documents, storage):
    columns = {"author": str, "year": int, "note": str, "price": float, "none": str}
    index = make_index((2, 64), storage=storage, columns=columns)
    for first in range(0, 1200, 400):
        names = [f"country/section/{number}" for number in range(first, first + 400)]
        details = {
            name: Details(
                {
                    "author": f"author {number % 7}",
                    "year": 1900 + number % 100,
                    "note": "remarkable" if number % 2 else None,
                    "price": number / 7,
                },
                "the source",
                f"{number:064x}",
                (Mark(0, f"page {number % 40}"),),
            )
            for number, name in enumerate(names)
        }
        index.add(make_documents(names, (2, 64)), details)
    lance.dataset(index.path).optimize.compact_files()
    lance.dataset(index.path).cleanup_old_versions(timedelta(0), delete_unverified=True)
    found = index.info()
    share = found["bytes_per_document"] / found["expected_bytes_per_document"]
    assert share == pytest.approx(1, abs=0.03)


def test_the_formula_counts_values():
    fields = {"rows": 10, "vectors": 10, "string_bytes": 100, "with_means": False}
    plain = index_bytes(STORAGES["int8"], 8, **fields)
    assert index_bytes(STORAGES["int8"], 8, **fields, with_details=True) == plain + 10 * 29
