"""What each probe varies, and what it keeps."""

import dataclasses

import pytest

from clara.data.factbook.passages import estimated_tokens
from clara.evaluation.answer_types import question_type
from clara.evaluation.errors import EvaluationError
from clara.evaluation.probes import ProbeSettings, is_refusal, probe
from clara.evaluation.probes.needle import NEEDLE

# Copying


def test_values_of_each_kind_are_to_be_copied(settings):
    conditions = dict(probe("copying", settings))
    assert list(conditions) == [
        f"copying/{source}/{kind}"
        for source in ("field", "repeat")
        for kind in ("number", "date", "name")
    ]
    for name, dataset in conditions.items():
        _, source, kind = name.split("/")
        assert len(dataset.questions) == 4
        for question in dataset.questions:
            assert question.candidates == question.positives
            assert len(question.positives) == 1
            (golden,) = question.golden_answers
            if source == "field":
                assert question_type(question) == kind
            else:
                assert question.question.startswith(f"Repeat the {kind}")
                text = dataset.documents[question.positives[0]].text
                assert text.count(golden) == 1
                assert text.count(".") >= 5
    repeated = [q.golden_answers for q in conditions["copying/repeat/number"].questions]
    assert len(set(repeated)) == 4


# Refusal


@pytest.mark.parametrize(
    "answer",
    [
        "",
        " \n",
        "...",
        "Unknown",
        "N/A",
        "None.",
        "The background does not mention the capital.",
        "It is not specified.",
        "Not explicitly stated in the text",
        "I don’t know.",
        "I cannot answer this question",
        "I can't determine it.",
        "There is no information about it.",
        "No answer",
        "The documents don't provide that.",
        "The answer cannot be determined from the background.",
        "Insufficient information",
    ],
)
def test_refusals(answer):
    assert is_refusal(answer)


@pytest.mark.parametrize(
    "answer",
    [
        "Paris",
        "no",
        "0",
        "not Paris",
        "Knowland",
        "Noneville",
        "The country does not have an army",
        "unknown soldier's tomb",
        "Cannes",
        "temperatures cannot be lower than 4",
    ],
)
def test_answers_that_are_no_refusals(answer):
    assert not is_refusal(answer)


def test_the_answer_is_absent_and_present(settings):
    (_, absent), (_, present) = probe("refusal", settings)
    for without, with_gold in zip(absent.questions, present.questions, strict=True):
        assert without.question == with_gold.question
        assert not without.answerable
        assert without.golden_answers == without.positives == ()
        (gold,) = with_gold.positives
        assert gold not in without.candidates
        assert len(without.candidates) == len(with_gold.candidates) == settings.candidates
        assert len(set(without.candidates) & set(with_gold.candidates)) == settings.candidates - 1
        # No other document of the country holds the answer.
        country = gold.split("/")[0]
        own = [name for name in without.candidates if name.split("/")[0] == country]
        assert own
        for name in own:
            text = absent.documents[name].text.casefold()
            assert with_gold.golden_answers[0].casefold() not in text


# Distractors, order


def test_more_and_more_distractors(settings):
    conditions = dict(probe("distractors", settings))
    assert list(conditions) == [f"distractors/{n}" for n in (1, 2, 4, 9, 19)]
    for number in range(4):
        asked = [dataset.questions[number] for dataset in conditions.values()]
        assert len({question.question for question in asked}) == 1
        assert [len(question.candidates) for question in asked] == [2, 3, 5, 10, 20]
        others = [set(q.candidates) - set(q.positives) for q in asked]
        assert [len(each) for each in others] == [1, 2, 4, 9, 19]
        assert all(one < more for one, more in zip(others, others[1:]))
    places = {q.candidates.index(q.positives[0]) for q in conditions["distractors/19"].questions}
    assert len(places) > 1


def test_the_gold_document_at_each_position(settings):
    conditions = dict(probe("order", settings))
    assert list(conditions) == [f"order/{n}" for n in range(1, 6)]
    for number in range(4):
        asked = [dataset.questions[number] for dataset in conditions.values()]
        assert [q.candidates.index(q.positives[0]) for q in asked] == [0, 1, 2, 3, 4]
        rests = {tuple(n for n in q.candidates if n not in q.positives) for q in asked}
        assert len(rests) == 1
        assert len({question.question for question in asked}) == 1
    (alone,) = probe("order", dataclasses.replace(settings, positions=1))
    assert all(q.candidates == q.positives for q in alone.dataset.questions)


# Needles


@pytest.mark.parametrize("length", [64, 128, 1024, 8192])
def test_needles_of_a_length_at_their_depths(length):
    settings = ProbeSettings(lengths=(length,), depths=(0, 30, 100), questions=6)
    conditions = dict(probe("needle", settings))
    assert list(conditions) == [f"needle/{length}/{depth}" for depth in (0, 30, 100)]
    for name, dataset in conditions.items():
        depth = int(name.split("/")[2]) / 100
        assert len(dataset.questions) == 2
        for question in dataset.questions:
            texts = [dataset.documents[each].text for each in question.candidates]
            tokens = sum(map(estimated_tokens, texts))
            assert length - 12 <= tokens <= length
            (value,) = question.golden_answers
            key = question.question.removesuffix("?").split()[-1]
            needle = NEEDLE.format(key=key, value=value)
            whole = " ".join(texts)
            assert whole.count(needle) == whole.count(value) == whole.count(key) == 1
            before, after = (len(part.split()) for part in whole.split(needle))
            assert before / (before + after) == pytest.approx(
                depth, abs=0.12 if length < 999 else 0.03
            )
            (gold,) = question.positives
            assert needle in dataset.documents[gold].text


def test_a_needle_that_does_not_fit():
    long = ProbeSettings(count_tokens=lambda text: 9 * len(text.split()))
    with pytest.raises(EvaluationError, match="the needle has 63 tokens, which do not fit 64 tok"):
        probe("needle", dataclasses.replace(long, document_tokens=48))
