"""Data sets that are built in: what is written by hand holds what it says."""

import json
from collections import Counter

import pytest

from clara.evaluation import evaluate
from clara.evaluation.answer_types import TYPES, question_type
from clara.evaluation.layouts import read_dataset, recognised_layout
from clara.evaluation.rankers.bm25 import Bm25Ranker
from clara.evaluation.suites import PARAGRAPHS, QUESTIONS_PER_PARAGRAPH, SUITES


@pytest.fixture(scope="module")
def articles():
    return json.loads(PARAGRAPHS.read_text(encoding="utf-8"))["data"]


def test_every_answer_stands_where_the_file_says(articles):
    for article in articles:
        (paragraph,) = article["paragraphs"]
        context = paragraph["context"]
        assert 60 <= len(context.split()) <= 140, article["title"]
        for question in paragraph["qas"]:
            for answer in question["answers"]:
                text, start = answer["text"], answer["answer_start"]
                end = start + len(text)
                assert context[start:end] == text, question["id"]
                assert not context[start - 1 : start].isalnum(), question["id"]
                assert not context[end : end + 1].isalnum(), question["id"]


def test_questions_and_paragraphs_are_there_once(articles):
    asked = [paragraph["qas"] for article in articles for paragraph in article["paragraphs"]]
    assert [len(questions) for questions in asked] == [QUESTIONS_PER_PARAGRAPH] * 25
    questions = [each for group in asked for each in group]
    assert len({each["id"] for each in questions}) == 125
    assert len({" ".join(each["question"].casefold().split()) for each in questions}) == 125
    assert len({article["title"] for article in articles}) == 25


def test_the_suite_has_every_subject_among_the_first_questions():
    dataset = SUITES["paragraphs"](None)
    assert len(dataset.questions) == 125
    assert len(dataset.documents) == 25
    for first in range(0, 125, 25):
        told = [each.positives for each in dataset.questions[first : first + 25]]
        assert len(set(told)) == 25
    assert SUITES["paragraphs"](30).questions == dataset.questions[:30]
    assert recognised_layout(PARAGRAPHS) == "squad"
    assert set(read_dataset(PARAGRAPHS).questions) == set(dataset.questions)


def test_answers_are_of_every_type():
    questions = SUITES["paragraphs"](None).questions
    counted = Counter(map(question_type, questions))
    assert set(counted) == set(TYPES)
    assert min(counted.values()) >= 10, counted


def test_words_find_most_paragraphs_but_not_all():
    dataset = SUITES["paragraphs"](None)
    done = evaluate([], dataset.questions, dataset.documents, rankers=[Bm25Ranker()])
    (ranked,) = done.summary["rankers"]
    assert 0.8 < ranked["recall@1"]["mean"] < 1
