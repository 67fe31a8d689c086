"""Which documents may answer a question."""

import pytest

from clara.data.factbook.facts import BARE_WORDINGS
from clara.data.unanswerable import REFUSAL, holds, may_answer
from clara.evaluation.probes.refusal import is_refusal

KENYA = "Kenya: Geography\nCoastline: 536 km\nClimate: varies from tropical to arid"


def test_evaluation_takes_the_answer_of_training_for_a_refusal():
    assert is_refusal(REFUSAL)


@pytest.mark.parametrize(
    ("text", "answer", "found"),
    [
        ("It has 536 km of coast.", "536 km", True),
        ("It has 1,536 km of coast.", "536 km", False),
        ("The mill of Ada's aunt", "a mill of Ada", True),
        ("ADA built it", "ada", True),
        ("Adam built it", "Ada", False),
        ("", "Ada", False),
    ],
)
def test_whole_words_are_looked_for(text, answer, found):
    assert holds(text, answer) is found


@pytest.mark.parametrize(
    ("question", "answer", "may"),
    [
        ("How long is the coastline of Kenya?", "540 km", True),  # perhaps another edition's answer
        ("How long is the coastline of Togo?", "56 km", False),
        ("How long is Kenya's coastline?", "540 km", True),
        ("How long is Togo's coastline?", "56 km", False),
        ("Coastline?", "56 km", True),
        ("Look up coastline.", "56 km", True),
        ("Look up coastline for Togo.", "56 km", False),
        ("Population?", "9 million", False),
        ("How long is the coastline of Togo?", "536 km", True),
        ("What is it?", "56 km", True),  # which asks about anything
    ],
)
def test_a_question_is_answered_by_its_answer_or_by_its_words(question, answer, may):
    assert may_answer([KENYA], question, answer) is may


@pytest.mark.parametrize("wording", BARE_WORDINGS)
def test_no_wording_of_the_factbook_hides_what_is_asked_for(wording):
    assert may_answer([KENYA], wording.format(field="coastline"), "56 km")
    assert not may_answer([KENYA], wording.format(field="population"), "9 million")


def test_the_words_may_stand_in_several_documents():
    asked = "How long is the coastline of Togo?", "56 km"
    assert may_answer([KENYA, "Togo lies in Africa."], *asked)
    assert not may_answer(["Togo lies in Africa."], *asked)
