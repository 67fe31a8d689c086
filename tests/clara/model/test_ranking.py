"""The documents of each question, in every form, and what is refused."""

from __future__ import annotations

import dataclasses
import re

import pytest
import torch

from clara import CompressedDocuments
from clara.data.records import Document
from clara.model.ranking import Candidates, check_top_k, memory_of_each_question

TEXTS = ["The coast is long.", "Salt", "Grain and rivers, and a town.", "Two words", "River"]


@pytest.fixture(scope="module")
def compressed(tiny_model):
    return tiny_model.compress(TEXTS)


@pytest.fixture(scope="module")
def queries(tiny_model):
    return tiny_model.encode_queries(["Where is salt?", "Which river?", "Coast?"])


def gather(model, source, questions):
    return Candidates.gather(
        source, questions, read=model.read_memory, compress=model.compress, device=model.device
    )


def memory_of_each(model, questions, memory):
    return memory_of_each_question(questions, memory, model.read_memory)


def cosines(queries, memory):
    """float64 `[B, N]`."""
    q, d = (x.double().flatten(1) for x in (queries, memory))
    return torch.nn.functional.normalize(q, dim=1) @ torch.nn.functional.normalize(d, dim=1).T


def check_ranking(ranked, queries, memories, k):
    for row, (scores, order) in enumerate(ranked):
        expected = cosines(queries[row : row + 1], memories[row])[0]
        values, best = expected.sort(descending=True, stable=True)
        kept = min(k, len(best))
        assert order.tolist() == best[:kept].tolist()
        assert order.dtype == torch.int64
        torch.testing.assert_close(scores, values[:kept].float(), rtol=0, atol=1e-5)


def forms(compressed):
    """Everything that means the same five documents for each of three questions."""
    memory = compressed.memory
    return {
        "compressed": (compressed, True),
        "memory": (memory, True),
        "texts": (TEXTS, True),
        "tuple of texts": (tuple(TEXTS), True),
        "documents": ([Document(str(i), text) for i, text in enumerate(TEXTS)], True),
        "mappings": (iter([{"contents": text} for text in TEXTS]), True),
        "memory of each": (memory.expand(3, *memory.shape), False),
        "list of memory": ([memory] * 3, False),
        "list of compressed": ([compressed] * 3, False),
        "lists of texts": ([TEXTS, tuple(TEXTS), TEXTS], False),
    }


@pytest.mark.parametrize(
    "form",
    [
        "compressed",
        "memory",
        "texts",
        "tuple of texts",
        "documents",
        "mappings",
        "memory of each",
        "list of memory",
        "list of compressed",
        "lists of texts",
    ],
)
@pytest.mark.parametrize("k", [1, 3, 5, 50])
def test_every_form_ranks_the_same(tiny_model, compressed, queries, form, k):
    source, shared = forms(compressed)[form]
    candidates = gather(tiny_model, source, len(queries))
    assert candidates.shared is shared
    assert len(candidates.memory) == len(queries)
    check_ranking(candidates.rank(queries, k), queries, [compressed.memory] * 3, k)
    if "memory" in form:
        assert candidates.documents is None
    else:
        assert [d.texts for d in candidates.documents] == [TEXTS] * 3


@pytest.mark.parametrize("k", [1, 2, 9])
def test_questions_may_have_unequal_numbers_of_documents(tiny_model, compressed, queries, k):
    parts = [compressed[:1], compressed[[4, 2, 0, 3]], compressed[3:]]
    for source in (parts, [p.memory for p in parts], [p.texts for p in parts]):
        ranked = gather(tiny_model, source, 3).rank(queries, k)
        check_ranking(ranked, queries, [p.memory for p in parts], k)


@pytest.mark.parametrize("shared", [True, False])
def test_equal_documents_come_in_their_order(tiny_model, compressed, queries, shared):
    memory = compressed.memory[[1, 1, 0, 1, 0]]
    source = memory if shared else [memory] * 3
    for _, order in gather(tiny_model, source, 3).rank(queries, 5):
        found = order.tolist()
        assert [i for i in found if i in (0, 1, 3)] == [0, 1, 3]
        assert [i for i in found if i in (2, 4)] == [2, 4]


@pytest.mark.parametrize("shared", [True, False])
def test_memory_of_another_dtype_is_taken(tiny_model, compressed, queries, shared):
    memory = compressed.memory.to(torch.bfloat16)
    source = memory if shared else [memory] * 3
    ranked = gather(tiny_model, source, 3).rank(queries, 5)
    check_ranking(ranked, queries, [memory] * 3, 5)


def test_no_questions(tiny_model, compressed):
    none = torch.empty(0, 4, tiny_model.hidden_size)
    for source in (compressed, compressed.memory, TEXTS):
        assert gather(tiny_model, source, 0).rank(none, 5) == []


def other_model(compressed: CompressedDocuments) -> CompressedDocuments:
    return dataclasses.replace(compressed, fingerprint="0" * 64)


REFUSED = {
    "one text": (lambda c: "text", TypeError, "must be a list of documents, got a single one"),
    "one mapping": (lambda c: {"contents": "a"}, TypeError, "got a single one"),
    "one document": (lambda c: Document("a", "b"), TypeError, "got a single one"),
    "nothing": (lambda c: [], ValueError, "documents is empty: there is nothing to rank"),
    "too few": (lambda c: [c] * 2, ValueError, "documents are given for 2 questions, there are 3"),
    "too many": (
        lambda c: [c.memory] * 4,
        ValueError,
        "documents are given for 4 questions, there are 3",
    ),
    "too few lists": (
        lambda c: [["a"], ["b"]],
        ValueError,
        "documents are given for 2 questions, there are 3",
    ),
    "wrong batch": (
        lambda c: c.memory[None],
        ValueError,
        "documents are given for 1 questions, there are 3",
    ),
    "no rows": (lambda c: c[:0], ValueError, "question 0 has no candidate documents"),
    "no memory": (lambda c: c.memory[:0], ValueError, "question 0 has no candidate documents"),
    "none for one": (
        lambda c: [c, c[:0], c],
        ValueError,
        "question 1 has no candidate documents",
    ),
    "no texts for one": (
        lambda c: [["a"], ["b"], []],
        ValueError,
        "question 2 has no candidate documents",
    ),
    "wider": (
        lambda c: torch.zeros(5, 4, 49),
        ValueError,
        "memory of question 0 must be [N, 4, 48], got [5, 4, 49]",
    ),
    "more memory tokens": (
        lambda c: [c.memory, torch.zeros(2, 5, 48), c.memory],
        ValueError,
        "memory of question 1 must be [N, 4, 48], got [2, 5, 48]",
    ),
    "flattened": (
        lambda c: [c.memory.flatten(1)] * 3,
        ValueError,
        "memory of question 0 must be [N, 4, 48], got [5, 192]",
    ),
    "another model": (other_model, ValueError, "compressed by another model (000000000000, this"),
    "another model for one": (
        lambda c: [c, c, other_model(c)],
        ValueError,
        "compressed by another model",
    ),
    "an empty document": (lambda c: ["a", " "], ValueError, "document '1' is empty"),
    "numbers": (
        lambda c: ["a", 3],
        TypeError,
        "documents[1] must be a string, Document or mapping, got int",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(tiny_model, compressed, case):
    make, error, message = REFUSED[case]
    with pytest.raises(error, match=re.escape(message)):
        gather(tiny_model, make(compressed), 3)


@pytest.mark.parametrize("value", [0, -1, True, 2.0, "5", None])
def test_top_k_is_a_positive_integer(value):
    with pytest.raises(ValueError, match=f"top_k must be a positive integer, got {value!r}"):
        check_top_k(value)


def test_top_k_is_returned():
    assert check_top_k(7) == 7


def test_memory_to_answer_from(tiny_model, compressed):
    memory = compressed.memory
    given = [memory[:2], compressed[2:], memory[:0]]
    found = memory_of_each(tiny_model, ["a", "b", "c"], given)
    for one, expected in zip(found, (memory[:2], memory[2:], memory[:0]), strict=True):
        assert len(one) == len(expected)
        assert all(torch.equal(*pair) for pair in zip(one, expected, strict=True))
    stacked = memory_of_each(tiny_model, ["a", "b"], torch.stack([memory[:2], memory[2:4]]))
    whole = torch.stack([torch.stack(each) for each in stacked])
    assert torch.equal(whole, memory[:4].unflatten(0, (2, 2)))
    listed = memory_of_each(tiny_model, ["a"], [[memory[1], memory[3]]])
    assert torch.equal(torch.stack(listed[0]), memory[[1, 3]])


def test_memory_that_cannot_be_answered_from(tiny_model, compressed):
    memory = compressed.memory
    with pytest.raises(TypeError, match="questions must be a list of strings"):
        memory_of_each(tiny_model, "a", [memory])
    with pytest.raises(ValueError, match="documents are given for 2 questions, there are 1"):
        memory_of_each(tiny_model, ["a"], [memory, memory])
    with pytest.raises(
        ValueError, match=r"memory of question 1 must be \[N, 4, 48\], got \[4, 48\]"
    ):
        memory_of_each(tiny_model, ["a", "b"], [memory, memory[0]])
    with pytest.raises(ValueError, match="compressed by another model"):
        memory_of_each(tiny_model, ["a", "b"], [compressed, other_model(compressed)])
