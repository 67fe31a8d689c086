"""The ten questions of `clara demo`."""

import pytest

from clara.data.factbook import load_factbook, split_of
from clara.evaluation import demonstration_questions
from clara.evaluation.demonstration_questions import COUNT, FILE, MOST_DOCUMENTS, sample


def test_documents_answer_the_questions():
    documents, questions = sample()
    assert (len(documents), len(questions)) == (MOST_DOCUMENTS, COUNT)
    assert len({document.id for document in documents}) == MOST_DOCUMENTS
    assert len({question.id.split("/")[0] for question in questions}) == COUNT
    texts = {document.id: document.text for document in documents}
    for question in questions:
        for answer in question.golden_answers:
            assert all(answer in texts[name] for name in question.positives)


@pytest.mark.parametrize("count", [1, 9, 10, 11, 48])
def test_few_documents_are_those_that_answer_questions(count):
    documents, questions = sample(count)
    names = {document.id for document in documents}
    assert len(documents) == len(names) == count
    assert len(questions) == min(count, COUNT)
    assert all(names.issuperset(question.positives) for question in questions)


def test_no_country_is_trained_on():
    splits = {country.slug: split_of(country.code) for country in load_factbook()}
    documents, questions = sample()
    assert {splits[each.id.split("/")[0]] for each in [*documents, *questions]} == {"test"}


@pytest.mark.slow
def test_the_draw_is_the_same_again():
    assert demonstration_questions.drawn() == FILE.read_text(encoding="utf-8")
