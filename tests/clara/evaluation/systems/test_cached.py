"""Kept keys and values in a run: the answers of text, and what keeping them takes."""

import json

import pytest

from clara.data.records import Document
from clara.evaluation import EvaluatedQuestion, EvaluationError, evaluate
from clara.evaluation.rankers.given import GivenRanker
from clara.evaluation.systems.cached import PrefixCacheSystem
from clara.evaluation.systems.text import TextSystem

DOCUMENTS = [Document(f"d{n}", f"Country {n} has {7 * n} rivers.") for n in range(4)]
QUESTIONS = [
    EvaluatedQuestion(f"q{n}", f"How many rivers has country {n}?", (str(7 * n),), (), candidates)
    for n, candidates in enumerate([("d0", "d1"), ("d1", "d0"), ("d0", "d1"), ("d3",)])
]


@pytest.fixture(scope="module")
def done(tiny_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cached") / "run"
    systems = [
        TextSystem(tiny_model, max_new_tokens=6),
        PrefixCacheSystem(tiny_model, max_new_tokens=6),
    ]
    rankers = [GivenRanker()]
    return evaluate(systems, QUESTIONS, DOCUMENTS, rankers=rankers, top_k=2, output=folder)


def of_entry(done, name):
    return [line for line in done.answers if line["entry"] == name]


def test_documents_that_do_not_fit_are_refused_at_once(tiny_model):
    system = PrefixCacheSystem(tiny_model)
    long = Document("long", "Country 7 has rivers. " * 600)
    with pytest.raises(EvaluationError, match=r"question 'What\?': its prompt has \d+ tokens"):
        system.check(["What?"], [[long]])


def test_answers_are_those_of_text(done):
    text, cached = of_entry(done, "text+given"), of_entry(done, "prefix-cache+given")
    assert len(text) == len(cached) == 4
    for one, other in zip(text, cached, strict=True):
        same = ("question", "answer", "prompt_tokens", "text_prompt_tokens", "ranked")
        assert [one[name] for name in same] == [other[name] for name in same]
        assert set(other["timings_ms"]) == {"generate"}


def test_documents_are_kept_once_and_measured(done):
    # Three lists of documents, of which one is asked about twice: 2 + 2 + 1 documents.
    lines = (done.folder / "documents.jsonl").read_text().splitlines()
    (kept,) = map(json.loads, lines)
    assert (kept["system"], kept["documents"]) == ("prefix-cache", 5)
    nbytes = [line["kept_bytes"] for line in of_entry(done, "prefix-cache+given")]
    assert nbytes[0] == nbytes[2]
    assert kept["bytes_per_document"] == sum(nbytes[n] for n in (0, 1, 3)) / 5
    # Keys and values of 3 layers with 2 heads of 12 numbers in float32.
    per_token = 2 * 3 * 2 * 12 * 4
    assert kept["bytes_per_document"] == pytest.approx(kept["tokens_per_document"] * per_token)
    assert kept["seconds_per_document"] > 0


def test_it_has_a_break_even(done):
    (line,) = done.summary["break_even"]
    assert line["entry"] == "prefix-cache+given"
    assert line["against"] == "text+given"


def test_candidates_in_the_order_that_is_given(done):
    ranked = [line["ranked"] for line in done.rankings]
    assert ranked == [["d0", "d1"], ["d1", "d0"], ["d0", "d1"], ["d3"]]
