"""What is set up once is in no time of a run."""

import json
import time

import pytest

from clara.data.records import Document
from clara.evaluation import Answered, EvaluatedQuestion, evaluate
from clara.evaluation.rankers.given import GivenRanker, GoldRanker
from clara.evaluation.systems.cached import PrefixCacheSystem
from clara.evaluation.systems.memory import MemorySystem
from clara.evaluation.systems.store import ComputedMemory
from clara.evaluation.warming import MOST_QUESTIONS

SET_UP = 0.5
"""Seconds; what is measured takes a small part of it, on a busy machine too."""

DOCUMENTS = [Document(f"d{n}", f"Country {n} has {7 * n} rivers.") for n in range(20)]
QUESTIONS = [
    EvaluatedQuestion(f"q{n}", f"How many rivers has country {n}?", (str(7 * n),), (f"d{n}",))
    for n in range(20)
]


class Slow:
    """A system that sets something up at its first call, and answers with the first word."""

    name, reads_documents = "slow", True

    def __init__(self):
        self.asked = []

    def answer(self, questions, documents):
        begin = time.perf_counter()
        if not self.asked:
            time.sleep(SET_UP)
        self.asked.append(list(questions))
        took = 1000 * (time.perf_counter() - begin) / len(questions)
        return [Answered(each[0].text.split()[3], 1, {"generate": took}) for each in documents]


class SlowRanker(GoldRanker):
    name = "slow"

    def __init__(self):
        self.asked = []

    def rank(self, questions, documents, k):
        if not self.asked:
            time.sleep(SET_UP)
        self.asked.append([(each.id, each.candidates) for each in questions])
        return super().rank(questions, documents, k)


def times(lines, stage):
    return [line["timings_ms"][stage] for line in lines]


def test_the_first_batch_of_an_entry_is_answered_twice_and_timed_once(tmp_path):
    system = Slow()
    done = evaluate([system], QUESTIONS, DOCUMENTS, rankers=[GoldRanker()], output=tmp_path / "r")
    texts = [each.question for each in QUESTIONS]
    assert system.asked == [texts[:8], texts[:8], texts[8:16], texts[16:]]
    assert max(times(done.answers, "generate")) < 1000 * SET_UP / 8
    assert [line["question"] for line in done.answers] == [each.id for each in QUESTIONS]
    assert done.summary["entries"][0]["scores"]["exact_match"]["mean"] == 1.0
    # A run that goes on warms up with the batch that is missing, and gives the same lines.
    file = tmp_path / "r" / "answers.jsonl"
    written = file.read_text().splitlines(keepends=True)
    file.write_text("".join(written[:8]))
    again = Slow()
    more = evaluate([again], QUESTIONS, DOCUMENTS, rankers=[GoldRanker()], output=tmp_path / "r")
    assert again.asked == [texts[8:16], texts[8:16], texts[16:]]
    assert max(times(more.answers, "generate")) < 1000 * SET_UP / 8
    assert [line["answer"] for line in more.answers] == [line["answer"] for line in done.answers]


def test_every_entry_warms_up_by_itself():
    one, other = Slow(), Slow()
    other.name = "other"
    done = evaluate([one, other], QUESTIONS, DOCUMENTS, rankers=[GoldRanker(), GivenRanker()])
    assert (len(one.asked), len(other.asked)) == (2 * 4, 2 * 4)
    assert max(times(done.answers, "generate")) < 1000 * SET_UP / 8


def test_rankers_warm_up_with_few_questions_and_documents():
    ranker = SlowRanker()
    asked = [EvaluatedQuestion(f"q{n}", "Which?", (), (f"d{n % 20}",)) for n in range(40)]
    done = evaluate([], asked, DOCUMENTS, rankers=[ranker])
    assert max(times(done.rankings, "rank")) < 1000 * SET_UP / 40
    warming, timed = ranker.asked
    assert [name for name, _ in warming] == [each.id for each in asked[:MOST_QUESTIONS]]
    assert {candidates for _, candidates in warming} == {tuple(f"d{n}" for n in range(16))}
    assert timed == [(each.id, None) for each in asked]
    assert all(len(line["ranked"]) == 20 for line in done.rankings)


@pytest.mark.parametrize("kind", ["memory", "prefix-cache"])
def test_compressing_is_timed_without_what_is_set_up_once(tiny_model, kind, monkeypatch, tmp_path):
    monkeypatch.setattr(tiny_model, "compress", slow_at_first(tiny_model.compress))
    if kind == "memory":
        system = MemorySystem(ComputedMemory(tiny_model), max_new_tokens=1)
    else:
        system = PrefixCacheSystem(tiny_model, max_new_tokens=1)
        monkeypatch.setattr(tiny_model, "generating", slow_at_first(tiny_model.generating))
    questions = QUESTIONS[:8]
    evaluate([system], questions, DOCUMENTS, rankers=[GoldRanker()], top_k=1, output=tmp_path / "r")
    (kept,) = map(json.loads, (tmp_path / "r" / "documents.jsonl").read_text().splitlines())
    assert kept["documents"] == 8
    assert 0 < kept["seconds_per_document"] < SET_UP / 8


def slow_at_first(function):
    calls = []

    def slow(*args, **settings):
        if not calls:
            time.sleep(SET_UP)
        calls.append(args)
        return function(*args, **settings)

    return slow
