import sys

import pytest
from rouge_score import rouge_scorer
from torchmetrics.functional.text import squad

from clara.evaluation.metrics import (
    SCORES,
    MetricError,
    _rouge_scorer,
    answer_scores,
    cover_substring,
    cover_tokens,
    exact_match,
    rouge_l,
    token_f1,
)

PAIRS = [
    ("The mill.", ["river", "Mill"]),
    ("old mill by the river", ["the mill", "a river bank"]),
    ("180 sq km", ["180 sq km"]),
    ("about 180 km", ["180 sq km", "69 sq mi"]),
    ("12 30 N, 69 58 W", ["12 30 N, 69 58 W"]),
    ("km km km", ["km", "km sq km"]),
    ("", ["mill"]),
    ("mill", [""]),
    ("the", ["A"]),
    ("Müllheim (Baden)", ["Müllheim"]),
    ("¿Río Grande?", ["Río Grande"]),
    ("它在北京", ["北京"]),
    ("yes", ["no", "yes indeed"]),
]


@pytest.mark.parametrize(("answer", "golds"), PAIRS)
def test_exact_match_and_f1_are_those_of_torchmetrics(answer, golds):
    target = {"answers": {"answer_start": [0] * len(golds), "text": golds}, "id": "1"}
    theirs = squad({"prediction_text": answer, "id": "1"}, target)
    assert exact_match(answer, golds) * 100 == theirs["exact_match"].item()
    assert token_f1(answer, golds) * 100 == pytest.approx(theirs["f1"].item(), rel=1e-6)


@pytest.mark.parametrize(
    ("answer", "golds", "wanted"),
    [
        ("old mill", ["mill"], 2 / 3),  # precision 1/2, recall 1
        ("mill river mill", ["mill mill"], 4 / 5),  # both occurrences count
        ("mill", ["river", "old mill", "mill on the hill"], 2 / 3),  # the best of them
        ("the a", ["an"], 1.0),  # nothing is left of both
        ("mill", ["river"], 0.0),
    ],
)
def test_f1_by_hand(answer, golds, wanted):
    assert token_f1(answer, golds) == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("answer", "golds", "substring", "tokens"),
    [
        ("It covers 180 sq km.", ["180 sq km"], 1.0, 1.0),
        ("km: 180; sq", ["180 sq km"], 0.0, 1.0),  # the words in another order
        ("1,500 km", ["5"], 0.0, 0.0),  # no word of the answer is 5
        ("5", ["5 km"], 0.0, 0.0),
        ("Windmill mill", ["mill"], 1.0, 1.0),  # within a word first, then a word
        ("Windmill", ["mill"], 0.0, 0.0),
        ("mills", ["mill"], 0.0, 0.0),
        ("mill", ["mill mill"], 0.0, 1.0),  # one occurrence is enough for two
        ("an old mill", ["river", "The mill"], 1.0, 1.0),
        ("它在北京。", ["北京"], 1.0, 0.0),  # no blanks between words
        ("mill", ["The"], 0.0, 0.0),  # nothing is left of the golden answer
        ("the", ["The"], 1.0, 1.0),
        ("", ["mill"], 0.0, 0.0),
        ("mill", [], 0.0, 0.0),  # no document holds an answer
        ("", [], 1.0, 1.0),
    ],
)
def test_cover_by_hand(answer, golds, substring, tokens):
    assert cover_substring(answer, golds) == substring
    assert cover_tokens(answer, golds) == tokens


def test_an_exact_match_is_also_covered():
    for answer, golds in PAIRS:
        scores = answer_scores(answer, golds)
        assert tuple(scores) == SCORES
        assert all(isinstance(score, float) for score in scores.values())
        if scores["exact_match"]:
            assert set(scores.values()) == {1.0}
        assert scores["cover_tokens"] >= scores["cover_substring"] or "北" in answer


def test_silence_is_right_where_there_is_no_answer():
    assert set(answer_scores("", ()).values()) == {1.0}
    assert set(answer_scores("180 sq km", ()).values()) == {0.0}


def test_rouge_l_by_hand():
    # Longest common subsequence "police the gunman" of 4 and 4 words.
    assert rouge_l("police kill the gunman", ["police ended the gunman"]) == pytest.approx(0.75)
    # 2 of 3 words and 2 of 4.
    assert rouge_l("the old mill", ["river", "old mill by river"]) == pytest.approx(4 / 7)
    assert rouge_l("Müllheim", ["müllheim"]) == 1.0
    assert rouge_l("北京", ["北京"]) == 1.0
    assert rouge_l("mill", []) == 0.0
    assert answer_scores("mill", ["mill"], rouge=True)["rouge_l"] == 1.0


def test_rouge_l_is_that_of_the_package_in_english():
    plain = rouge_scorer.RougeScorer(["rougeL"])
    for answer, (gold, *_) in PAIRS:
        if (answer + gold).isascii():
            wanted = plain.score(gold, answer)["rougeL"].fmeasure
            assert rouge_l(answer, [gold]) == pytest.approx(wanted)


def test_rouge_l_without_its_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "rouge_score", None)
    _rouge_scorer.cache_clear()
    with pytest.raises(MetricError, match="pip install rouge-score"):
        rouge_l("mill", ["mill"])


def test_a_single_golden_answer_is_no_list():
    for score in (exact_match, token_f1, cover_substring, cover_tokens):
        with pytest.raises(TypeError, match="golden_answers must be a list"):
            score("mill", "mill")


def test_silence_is_right_where_nothing_is_to_be_said():
    assert set(answer_scores("", [], rouge=True).values()) == {1.0}
    assert set(answer_scores("Paris", [], rouge=True).values()) == {0.0}
