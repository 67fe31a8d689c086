"""The sentence at the top says what was measured, who won, ties and what controls found."""

from __future__ import annotations

from dataclasses import replace

import pytest

from clara.evaluation.report.lead import contestants, lead, leaders, outcome
from clara.evaluation.report.records import Entry, Pair, RankerFigures, RankingLine, Run, Score

FAR, NEAR = (0.32, 0.46), (-0.03, 0.07)


def entry(name, mean, low=None, high=None, *, control=None, reads=None, questions=200):
    start, _, ranker = name.partition("+")
    system, _, rate = start.partition("@")
    return Entry(
        name=name,
        system=system,
        rate=float(rate) if rate else None,
        # Entries leave out a rate that is their own.
        ranker=f"clara@{rate}" if rate and ranker == "clara" else ranker or None,
        control=control,
        questions=questions,
        scores={"exact_match": Score(mean, low, high)},
        by_type={},
        reads_memory=reads,
    )


def run(entries, pairs=(), *, candidates=20, questions=200, documents=2600, rankers=()):
    rankings = [RankingLine("bm25", f"q{i}", candidates, 1) for i in range(3)] if candidates else []
    return Run("r", {}, {}, questions, documents, list(entries), list(rankers), list(pairs),
               [], [], [], rankings)  # fmt: skip


TEXT = entry("text+bm25", 0.41, 0.34, 0.48)
CLARA = entry("clara@4+clara", 0.02, 0.0, 0.05, reads=False)
SHUFFLED = entry("clara-shuffled@4+clara", 0.9, control="shuffled")
GOLD = entry("text+gold", 0.7, 0.6, 0.8)


def pair(a, b, difference, ends):
    return Pair(a.name, b.name, "exact_match", difference, *ends, 0.01)


def test_who_won():
    measured = run([TEXT, CLARA, SHUFFLED, GOLD], [pair(TEXT, CLARA, 0.39, FAR)])
    assert lead(measured) == (
        "On 200 questions with 20 candidates each, text with BM25 answers 41 % exactly (34 to 48) "
        "and CLaRa at rate 4 with its own ranking 2 % exactly (0 to 5): text with BM25 wins by 39 "
        "points (32 to 46); CLaRa's answers do not come from memory."
    )


def test_only_clara_has_a_ranking_of_its_own():
    told = lead(run([entry("text+clara@4", 0.5), CLARA]))
    assert "text with CLaRa's ranking at rate 4 answers" in told
    assert "CLaRa at rate 4 with its own ranking" in told
    other = replace(CLARA, name="clara@4+clara@16", ranker="clara@16")
    assert "CLaRa at rate 4 with CLaRa's ranking at rate 16" in lead(run([TEXT, other]))


def test_the_pair_may_be_the_other_way_round():
    turned = Pair(CLARA.name, TEXT.name, "exact_match", -0.39, -0.46, -0.32, 0.01)
    assert "text with BM25 wins by 39 points (32 to 46)" in lead(run([TEXT, CLARA], [turned]))


def test_a_difference_that_may_be_0_is_a_tie():
    ours = entry("clara@4+bm25", 0.43, 0.36, 0.5, reads=True)
    measured = run([TEXT, ours], [pair(TEXT, ours, -0.02, (-0.07, 0.03))])
    assert lead(measured) == (
        "On 200 questions with 20 candidates each, CLaRa at rate 4 with BM25 answers 43 % exactly "
        "(36 to 50) and text with BM25 41 % exactly (34 to 48): a tie, since the difference of 2 "
        "points (−3 to 7) may be 0; CLaRa's answers come from memory, as its controls show."
    )


def test_without_controls_nothing_says_where_answers_come_from():
    ours = entry("clara@4+bm25", 0.6, 0.5, 0.7)
    measured = run([TEXT, ours], [pair(TEXT, ours, -0.19, (-0.3, -0.1))])
    assert lead(measured).endswith(
        "CLaRa at rate 4 with BM25 wins by 19 points (10 to 30); without controls, nothing says "
        "whether CLaRa's answers come from memory."
    )


@pytest.mark.parametrize("ends", [(0.0, 0.1), (-0.1, 0.0)])
def test_an_interval_that_ends_at_0_is_a_tie(ends):
    assert outcome(pair(TEXT, CLARA, 0.05, ends)) == "tie"


def test_equal_figures_are_a_tie():
    told = lead(run([TEXT, CLARA], [pair(TEXT, CLARA, 0.0, (-0.1, 0.1))]))
    assert "2 % exactly (0 to 5): a tie; CLaRa's answers do not come from memory." in told


def test_outcomes():
    assert outcome(pair(TEXT, CLARA, 0.05, (0.01, 0.1))) == "text+bm25 is better"
    assert outcome(pair(TEXT, CLARA, -0.05, (-0.1, -0.01))) == "clara@4+clara is better"
    assert outcome(pair(TEXT, CLARA, 0.05, (None, None))) == "not tested"


def test_without_a_test_nobody_wins():
    assert "no paired test says which of them is better" in lead(run([TEXT, CLARA]))


def test_controls_and_the_gold_document_win_nothing():
    chosen = contestants(run([SHUFFLED, GOLD, CLARA, TEXT]))
    assert [each.name for each in chosen] == ["text+bm25", "clara@4+clara"]


def test_where_all_are_given_the_gold_document_it_is_said():
    ours = entry("clara@4+gold", 0.5, 0.4, 0.6, reads=True)
    told = lead(run([GOLD, ours, entry("closed-book", 0.05)], [pair(GOLD, ours, 0.2, FAR)]))
    assert "text with the gold document answers 70 % exactly" in told
    assert "CLaRa at rate 4 with the gold document 50 %" in told


def test_kept_keys_and_values_of_the_same_text_are_no_winner():
    cached = entry("prefix-cache+bm25", 0.5)
    assert contestants(run([cached, TEXT, CLARA])) == [TEXT, CLARA]
    assert contestants(run([cached, CLARA])) == [cached, CLARA]


def test_of_many_rates_the_best_is_named():
    rates = [entry("clara@16+bm25", 0.1), entry("clara@4+bm25", 0.2), entry("clara@64+bm25", 0.0)]
    assert [each.name for each in contestants(run([*rates, TEXT]))][1] == "clara@4+bm25"


def test_leaders_are_the_best_of_each_kind():
    entries = [TEXT, CLARA, GOLD, entry("closed-book", 0.1), entry("lead@4+bm25", 0.2),
               entry("mine+bm25", 0.3)]  # fmt: skip
    names = [each.name for each in leaders(run(entries))]
    assert names == ["text+bm25", "clara@4+clara", "mine+bm25", "lead@4+bm25"]


@pytest.mark.parametrize(
    ("candidates", "documents", "words"),
    [
        (20, 2600, "On 200 questions with 20 candidates each, "),
        (1, 2600, "On 200 questions with 1 candidate each, "),
        (100, 2600, "On 200 questions over 2,600 documents, "),
        (5, 5, "On 200 questions over 5 documents, "),
        (0, 1, "On 200 questions over 1 document, "),
    ],
)
def test_what_there_was_to_choose_from(candidates, documents, words):
    told = lead(run([TEXT], candidates=candidates, documents=documents))
    assert told == f"{words}text with BM25 answers 41 % exactly (34 to 48)."


def test_many_questions_give_a_decimal():
    many = entry("text+bm25", 0.4123, 0.4, 0.42, questions=5000)
    assert "41.2 % exactly (40.0 to 42.0)" in lead(run([many], questions=5000))


def test_runs_without_answers():
    ranker = RankerFigures("bm25", {"recall@5": Score(0.8, 0.7, 0.9)})
    others = [RankerFigures(n, {"recall@5": Score(s)}) for n, s in (("gold", 1.0), ("random", 0.2))]
    told = lead(run([], rankers=[*others, ranker]))
    assert told == (
        "On 200 questions with 20 candidates each, bm25 ranks best, with recall@5 of 80 % "
        "(70 to 90)."
    )
    assert lead(run([], candidates=0)).endswith("nothing was measured.")
