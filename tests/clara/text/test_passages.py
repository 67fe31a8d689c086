"""From documents in any form to passages within the limit."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from clara.data.records import Document
from clara.text.passages import as_documents, prepare_passages, prepare_questions
from clara.text.tokenizer import SafeTokenizer

BASE = Path(__file__).parents[2] / "data" / "reference" / "base"
TEXT = (
    "Bangladesh borders Burma and India. Its coastline is 580 km long; the climate is tropical. "
    "Faroe Islands: Slaettaratindur, 882 m. Guinea-Bissau’s code is .gw 😀.\n\nMore of it follows, "
    "with a <s>literal</s> token or two <|user|> and numbers 1234567890. "
) * 3


@pytest.fixture(scope="module")
def tokenizer():
    return SafeTokenizer(AutoTokenizer.from_pretrained(BASE))


def passages(tokenizer, *texts, limit=40, overflow="chunk"):
    return prepare_passages(tokenizer, as_documents(texts), limit=limit, overflow=overflow)


def test_every_form_becomes_the_same_document():
    given = [
        "text",
        Document(id="a", text="text", title="A"),
        {"contents": "text", "id": "b", "title": "B", "url": "ignored"},
        {"contents": "text"},
        {"contents": "text", "id": None, "title": None},
        {"contents": "text", "id": 7, "title": float("nan")},
        {"contents": np.str_("text"), "id": np.int64(8), "title": np.str_("B")},
        Document(id=9, text="text", title=np.float32("nan")),
    ]
    assert as_documents(iter(given)) == [
        Document(id="0", text="text", title=None),
        Document(id="a", text="text", title="A"),
        Document(id="b", text="text", title="B"),
        Document(id="3", text="text", title=None),
        Document(id="4", text="text", title=None),
        Document(id="7", text="text", title=None),
        Document(id="8", text="text", title="B"),
        Document(id="9", text="text", title=None),
    ]
    for each in as_documents(given):
        assert {type(each.id), type(each.text), type(each.title)} <= {str, type(None)}
    assert as_documents([]) == []


@pytest.mark.parametrize(
    ("documents", "error", "message"),
    [
        ("text", TypeError, "documents must be a list of documents, got a single one"),
        ({"contents": "text"}, TypeError, "documents must be a list of documents"),
        (Document(id="a", text="text"), TypeError, "documents must be a list of documents"),
        (
            ["a", None],
            TypeError,
            "documents[1] must be a string, Document or mapping, got NoneType",
        ),
        (["a", ["b"]], TypeError, "documents[1] must be a string, Document or mapping, got list"),
        (["a", {"text": "b"}], ValueError, "documents[1]: 'contents' must be a string"),
        ([{"contents": None}], ValueError, "documents[0]: 'contents' must be a string"),
        ([Document(id="a", text=None)], ValueError, "documents[0].text must be a string, got null"),
        (["a", "\ud83d"], ValueError, "documents[1] holds half a surrogate pair"),
        ([{"contents": "b\ud83d"}], ValueError, "documents[0]: 'contents' holds half a surrogate"),
        ([Document(id="a", text="\udc00")], ValueError, "documents[0].text holds half a surrogate"),
    ],
)
def test_what_is_no_document_is_named_by_its_position(documents, error, message):
    with pytest.raises(error, match=re.escape(message)):
        as_documents(documents)


@pytest.mark.parametrize("name", [1.0, float("nan"), True, np.True_, ["a"], {}, b"a", " \n"])
def test_ids_that_are_none(name):
    for document, place in (
        ({"contents": "text", "id": name}, "documents[1]: 'id'"),
        (Document(id=name, text="text"), "documents[1].id"),
    ):
        with pytest.raises(ValueError, match=re.escape(place) + " (must be a string or|is empty)"):
            as_documents(["text", document])


@pytest.mark.parametrize("title", [5, True, ["a"], {"a": 1}, "\ud800"])
def test_titles_that_are_none(title):
    for document, place in (
        ({"contents": "text", "title": title}, "documents[0]: 'title'"),
        (Document(id="a", text="text", title=title), "documents[0].title"),
    ):
        with pytest.raises(ValueError, match=re.escape(place) + " (must be a string|holds half)"):
            as_documents([document])


@pytest.mark.parametrize(
    ("documents", "message"),
    [
        (
            [{"contents": "a", "id": 1}, {"contents": "b", "id": "1"}],
            r"documents\[1\]: id '1' is also that of documents\[0\]$",
        ),
        (
            [{"contents": "a", "id": np.int64(1)}, Document("1", "b")],
            r"documents\[1\]: id '1' is also that of documents\[0\]$",
        ),
        (
            ["a", {"contents": "b", "id": 0}],
            r"documents\[1\]: id '0' .* documents\[0\]; a document without an id gets its position",
        ),
        (
            [{"contents": "a", "id": "1"}, "b"],
            r"documents\[1\]: id '1' .* documents\[0\]; a document without an id gets its position",
        ),
    ],
)
def test_an_id_is_given_once(documents, message):
    with pytest.raises(ValueError, match=message):
        as_documents(documents)


def test_rows_of_a_table_are_documents():
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame(
        {"id": [1, 2, 3], "contents": ["a", "b", "c"], "title": ["A", None, pandas.NA]}
    )
    assert as_documents(table.to_dict("records")) == [
        Document("1", "a", "A"),
        Document("2", "b", None),
        Document("3", "c", None),
    ]
    with pytest.raises(TypeError, match="got a DataFrame; pass its rows"):
        as_documents(table)
    with pytest.raises(ValueError, match=r"documents\[0\]: 'id' must be a string or an integer"):
        as_documents([{"contents": "a", "id": pandas.NA}])


def test_a_document_named_like_a_chunk_of_another_is_refused(tokenizer):
    documents = [Document("y#0", "short"), Document("y", TEXT)]
    with pytest.raises(ValueError, match="documents 'y#0' and 'y' both have a part named 'y#0'"):
        prepare_passages(tokenizer, documents, limit=40, overflow="chunk")
    assert prepare_passages(tokenizer, documents, limit=40, overflow="truncate")


@pytest.mark.parametrize("overflow", ["chunk", "truncate", "error"])
def test_a_document_within_the_limit_is_whole(tokenizer, overflow):
    text = "Its coastline is 580 km long."
    ids = tokenizer.encode_texts([text])[0].ids
    (passage,) = passages(tokenizer, text, limit=len(ids), overflow=overflow)
    assert (passage.id, passage.document_id, passage.title) == ("0", "0", None)
    assert (passage.tokens, passage.text, passage.complete) == (ids, text, True)


@pytest.mark.parametrize("limit", [1, 2, 7, 40, 10_000])
def test_chunks_hold_every_token_and_character_once(tokenizer, limit):
    documents = [Document("x", TEXT, "T"), Document("y#0", "short", None), Document("z", TEXT)]
    found = prepare_passages(tokenizer, documents, limit=limit, overflow="chunk")
    assert [p.document_id for p in found] == sorted(p.document_id for p in found)
    for document in documents:
        parts = [p for p in found if p.document_id == document.id]
        whole = tokenizer.encode_texts([document.text])[0].ids
        assert [token for p in parts for token in p.tokens] == whole
        assert "".join(p.text for p in parts) == document.text
        assert all(0 < len(p.tokens) <= limit and p.complete for p in parts)
        assert {p.title for p in parts} == {document.title}
        split = [f"{document.id}#{i}" for i in range(len(parts))]
        assert [p.id for p in parts] == (split if len(parts) > 1 else [document.id])


def test_chunks_read_what_their_text_says(tokenizer):
    """Where chunks are cut between sentences, a chunk's tokens are those of its text."""
    found = passages(tokenizer, TEXT, limit=60)
    assert len(found) > 4
    exact = [tokenizer.encode_texts([p.text])[0].ids == p.tokens for p in found]
    assert all(exact)


def test_a_truncated_document_has_one_token_more_and_no_end(tokenizer):
    ids = tokenizer.encode_texts([TEXT])[0].ids
    for limit in (1, 10, 100, len(ids) - 2):
        (passage,) = passages(tokenizer, TEXT, limit=limit, overflow="truncate")
        assert passage.id == passage.document_id == "0"
        assert passage.tokens == ids[: limit + 1]
        assert not passage.complete
        assert TEXT.startswith(passage.text)
        assert tokenizer.decode(passage.tokens).startswith(passage.text)
    (passage,) = passages(tokenizer, TEXT, limit=len(ids) - 1, overflow="truncate")
    assert (passage.tokens, passage.text, passage.complete) == (ids, TEXT, False)


@pytest.mark.parametrize("text", ["", " ", "\n\t ", "\u3000", "\x1f"])
def test_an_empty_document_is_named(tokenizer, text):
    with pytest.raises(ValueError, match="document 'b' is empty"):
        prepare_passages(
            tokenizer, [Document("a", "x"), Document("b", text)], limit=9, overflow="chunk"
        )


def test_a_document_over_the_limit_is_refused_by_name(tokenizer):
    count = len(tokenizer.encode_texts([TEXT])[0].ids)
    with pytest.raises(ValueError, match=f"document '1' has {count} tokens, the limit is 40"):
        passages(tokenizer, "short", TEXT, overflow="error")


def test_no_documents_no_passages(tokenizer):
    assert passages(tokenizer) == []


def test_questions_are_passages(tokenizer):
    given = ("Where?", "How long is the coastline?")
    for questions in (list(given), given, iter(given)):
        found = prepare_questions(tokenizer, questions, limit=40, overflow="chunk")
        assert [p.text for p in found] == list(given)
        assert [p.tokens for p in found] == [e.ids for e in tokenizer.encode_texts(given)]
    assert prepare_questions(tokenizer, [], limit=40, overflow="chunk") == []


@pytest.mark.parametrize("overflow", ["chunk", "error"])
def test_a_question_is_never_split(tokenizer, overflow):
    with pytest.raises(ValueError, match=r"^'question 1' has \d+ tokens, the limit is 40"):
        prepare_questions(tokenizer, ["Where?", TEXT], limit=40, overflow=overflow)


def test_a_long_question_may_be_cut(tokenizer):
    found = prepare_questions(tokenizer, ["Where?", TEXT], limit=40, overflow="truncate")
    assert [(len(p.tokens) == 41, p.complete) for p in found] == [(False, True), (True, False)]


@pytest.mark.parametrize(
    ("questions", "error", "message"),
    [
        ("Where?", TypeError, "questions must be a list of strings, got a single string"),
        (["Where?", 3], TypeError, "questions[1] must be a string, got int"),
        (["Where?", " "], ValueError, "questions[1] is empty"),
        (["\ud83d"], ValueError, "questions[0] holds half a surrogate pair"),
    ],
)
def test_what_is_no_question_is_named(tokenizer, questions, error, message):
    with pytest.raises(error, match=re.escape(message)):
        prepare_questions(tokenizer, questions, limit=40, overflow="chunk")
