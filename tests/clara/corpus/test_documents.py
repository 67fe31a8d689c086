"""Digests and places of documents."""

import doctest
import hashlib

import pytest

from clara.corpus import documents
from clara.corpus.documents import CorpusDocument, digest_of
from clara.data import marks
from clara.data.marks import Mark, place_of


def test_examples_in_docstrings():
    for module in (documents, marks):
        assert doctest.testmod(module) == (0, 1)


def test_a_digest_is_that_of_the_content():
    written = b'["\\u00e9",null,{"a":1},[]]'
    expected = hashlib.sha256(written).hexdigest()
    assert digest_of("é", None, {"b": None, "a": 1}) == digest_of("é", None, {"a": 1}) == expected
    assert CorpusDocument("x", "é", metadata={"a": 1, "b": None}).digest == expected
    assert CorpusDocument("y", "é", metadata={"a": 1, "b": None}, kind="csv").digest == expected
    marked = CorpusDocument("z", "text", marks=(Mark(0, "page 1"),))
    assert marked.digest == hashlib.sha256(b'["text",null,{},[[0,"page 1"]]]').hexdigest()


def test_what_differs_has_another_digest():
    contents = [
        ("text", None, {}),
        ("Text", None, {}),
        ("text", "", {}),
        ("text", "title", {}),
        ("text", None, {"a": 1}),
        ("text", None, {"a": 1.0}),
        ("text", None, {"a": True}),
        ("text", None, {"a": "1"}),
        ("text", None, {"b": 1}),
        ("text", None, {}, [Mark(0, "# a")]),
        ("text", None, {}, [Mark(0, "## a")]),
        ("text", None, {}, [Mark(1, "# a")]),
    ]
    assert len({digest_of(*content) for content in contents}) == len(contents)


@pytest.mark.parametrize(
    ("offset", "label"), [(0, None), (4, None), (5, "page 1"), (8, "page 1"), (9, "page 2")]
)
def test_the_place_of_a_character(offset, label):
    assert place_of([Mark(5, "page 1"), Mark(9, "page 2")], offset) == label
