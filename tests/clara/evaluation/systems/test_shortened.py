"""Text that costs the prompt of memory, in a run beside it."""

import pytest

from clara import Clara
from clara.data.records import Document
from clara.evaluation.budget import lead, memory_vectors, sentences, token_count
from clara.evaluation.systems.shortened import ShortenedText

from ...model.of_spans import spans_config

DOCUMENTS = [
    Document("france", "France: Geography\nCoastline: 4,853 km. It borders the Bay of Biscay."),
    Document("kenya", "Kenya: Geography\nCoastline: 536 km\nClimate: varies from hot to arid"),
    Document("salt", "Salt is traded for grain."),
]
QUESTIONS = ["What is the coastline of Kenya?", "What is traded for grain?"]
GIVEN = [DOCUMENTS, DOCUMENTS[2:]]


@pytest.fixture(scope="module")
def model(tiny_backbone):
    return Clara.from_backbone(tiny_backbone(), spans_config(), device="cpu")


@pytest.mark.parametrize("kind", ["lead", "sentences"])
@pytest.mark.parametrize("rate", [2, 4])
def test_answers_are_those_of_the_cut_text(model, kind, rate):
    system = ShortenedText(model, kind, rate, max_new_tokens=6)
    assert (system.name, system.kind, system.rate) == (f"{kind}@{rate}", kind, rate)
    cut = []
    for question, documents in zip(QUESTIONS, GIVEN, strict=True):
        texts = [document.text for document in documents]
        budgets = memory_vectors(model, documents, rate)
        cut.append(
            lead(model.tokenizer, texts, budgets)
            if kind == "lead"
            else sentences(model.tokenizer, texts, question, sum(budgets))
        )
    expected = model.answer_from_text(QUESTIONS, cut, max_new_tokens=6)
    answers = system.answer(QUESTIONS, GIVEN)
    assert [each.text for each in answers] == [text.strip() for text in expected]
    for answered, documents in zip(answers, GIVEN, strict=True):
        budget = sum(memory_vectors(model, documents, rate))
        assert 0 < answered.vectors <= budget
        whole = [token_count(model.tokenizer, document.text) for document in documents]
        assert answered.document_tokens == sum(whole)
        assert answered.prompt_tokens < answered.text_prompt_tokens
        assert set(answered.timings_ms) == {"cut", "generate"}
        assert answered.kept_bytes is None


def test_the_budget_is_that_of_the_models_memory(tiny_model):
    whole = DOCUMENTS[0].text
    assert token_count(tiny_model.tokenizer, whole) > 16
    ours = ShortenedText(tiny_model, "lead", 16)
    # 4 vectors each, whatever the length.
    (kept,) = ours.shortened("Where?", DOCUMENTS[:1])
    assert token_count(tiny_model.tokenizer, kept) <= 4
    bare = ShortenedText(tiny_model, "lead", 16, has_adapters=False)
    assert memory_vectors(tiny_model, DOCUMENTS[:1], 16, by_length=True) != [4]
    assert bare.shortened("Where?", DOCUMENTS[:1]) != [kept]


def test_no_documents(model):
    (answered,) = ShortenedText(model, "sentences", 4, max_new_tokens=2).answer(["Where?"], [[]])
    assert answered.text_prompt_tokens is None
    assert answered.vectors is None
