import math
import subprocess
import sys

import ir_measures
import numpy as np
import pytest

from clara.evaluation.ranking_metrics import (
    MEASURES,
    RankingError,
    id_of_trec,
    ranking_scores,
    trec_id,
    write_qrels,
    write_run,
)

RANKINGS = {
    "q1": ["d4", "d1", "d2", "d9"],
    "q2": [f"d{place}" for place in range(30)],
    "q3": ["d5"],
    "q4": ["d1", "d2"],  # without positives
}
POSITIVES = {"q1": ["d1", "d9"], "q2": ["d11", "d25"], "q3": ["d1"], "q4": [], "q5": ["d2"]}


def test_measures_by_hand():
    scores = ranking_scores(RANKINGS, POSITIVES)
    assert tuple(scores) == MEASURES
    ideal = 1 + 1 / math.log2(3)
    assert {name: values["q1"] for name, values in scores.items()} == pytest.approx(
        {
            "recall@1": 0,
            "recall@3": 1 / 2,
            "recall@5": 1,
            "recall@20": 1,
            "mrr": 1 / 2,
            "ndcg@10": (1 / math.log2(3) + 1 / math.log2(5)) / ideal,
        }
    )
    assert [values["q2"] for values in scores.values()] == pytest.approx(
        [0, 0, 0, 1 / 2, 1 / 12, 0]
    )
    assert all(list(values) == ["q1", "q2", "q3", "q5"] for values in scores.values())
    for values in scores.values():
        assert values["q3"] == values["q5"] == 0.0  # another document; no ranking


def test_the_order_counts_not_the_ids():
    """TREC's tools put equal scores into the order of ids."""
    assert ranking_scores({"q": ["a", "b"]}, {"q": ["a"]})["mrr"] == {"q": 1.0}
    assert ranking_scores({"q": ["b", "a"]}, {"q": ["b"]})["mrr"] == {"q": 1.0}


def test_any_id_can_be_measured():
    """Names that a C string cannot hold, blanks, and halves of surrogate pairs."""
    names = ["a\0b", "a\0c", "a", " ", "\ud83d", "0", "1"]
    rankings = dict.fromkeys(names, names)
    scores = ranking_scores(rankings, {question: [question] for question in names})
    assert scores["mrr"] == pytest.approx({name: 1 / (1 + i) for i, name in enumerate(names)})
    missed = ranking_scores({"q": ["0", "1"]}, {"q": ["2", "3", "1"]})
    assert missed["recall@3"] == pytest.approx({"q": 1 / 3})


def test_nothing_to_measure():
    assert ranking_scores({"q": ["d"]}, {"q": []}) == {name: {} for name in MEASURES}
    assert ranking_scores({}, {"q": ["d"]}) == {name: {"q": 0.0} for name in MEASURES}


def test_files_give_ir_measures_the_same_figures(tmp_path):
    scores = {question: [0.5] * len(ranked) for question, ranked in RANKINGS.items()}
    write_run(tmp_path / "run.trec", RANKINGS, scores)
    write_qrels(tmp_path / "qrels.trec", POSITIVES)
    measures = [ir_measures.RR, ir_measures.nDCG @ 10, ir_measures.R @ 20]
    qrels = list(ir_measures.read_trec_qrels(str(tmp_path / "qrels.trec")))
    run = list(ir_measures.read_trec_run(str(tmp_path / "run.trec")))
    theirs = ir_measures.calc_aggregate(measures, qrels, run)
    ours = ranking_scores(RANKINGS, POSITIVES)
    for measure, name in zip(measures, ("mrr", "ndcg@10", "recall@20")):
        assert theirs[measure] == pytest.approx(np.mean(list(ours[name].values())))


def test_files_line_by_line(tmp_path):
    write_run(tmp_path / "run.trec", {"q 1": ["a b", "c"]}, {"q 1": [2.5, -1]}, name="bm 25")
    assert (tmp_path / "run.trec").read_bytes() == (
        b"q%201 Q0 a%20b 1 2.5 bm%2025\nq%201 Q0 c 2 -1.0 bm%2025\n"
    )
    write_run(tmp_path / "run.trec", {"q": ["a", "b"]})
    assert (tmp_path / "run.trec").read_text() == "q Q0 a 1 1.0 clara\nq Q0 b 2 0.5 clara\n"
    write_qrels(tmp_path / "qrels.trec", {"q 1": ["a b", "c", "c"], "q2": []})
    assert (tmp_path / "qrels.trec").read_bytes() == b"q%201 0 a%20b 1\nq%201 0 c 1\n"


@pytest.mark.parametrize(
    "name",
    [
        "aruba/geography/0",
        "a b",
        "a\tb\nc",
        "50%",
        "%20",
        "Zürich",
        "\u3000北京\u2028\x85",
        "\x1b[31m",
        "😀",
        "a\u200bb",
        "#",
        " ",
    ],
)
def test_ids_survive_the_files(tmp_path, name):
    assert len(trec_id(name).split()) == 1
    assert id_of_trec(trec_id(name)) == name
    write_run(tmp_path / "run.trec", {name: [name]})
    write_qrels(tmp_path / "qrels.trec", {name: [name]})
    with open(tmp_path / "run.trec", encoding="utf-8") as file:
        (scored,) = ir_measures.read_trec_run(file)
    with open(tmp_path / "qrels.trec", encoding="utf-8") as file:
        (judged,) = ir_measures.read_trec_qrels(file)
    for entry in (scored, judged):
        assert (id_of_trec(entry.query_id), id_of_trec(entry.doc_id)) == (name, name)


def test_different_ids_stay_different():
    assert trec_id("a b") != trec_id("a%20b")


def test_equal_scores_are_told_apart_and_others_kept(tmp_path):
    given = [3.0, 3.0, 3.0 - 1e-9, 2.0, 7.0, 0.0, 0.0, -1e-45, -5.0]
    ranked = [f"d{place}" for place in range(len(given))]
    write_run(tmp_path / "run.trec", {"q": ranked}, {"q": given})
    run = list(ir_measures.read_trec_run(str(tmp_path / "run.trec")))
    written = np.array([each.score for each in run], dtype=np.float32)
    assert (np.diff(written) < 0).all()
    assert [each.doc_id for each in run] == ranked
    assert written[[0, 3, 8]].tolist() == [3.0, 2.0, -5.0]
    assert written[4] == pytest.approx(2.0, rel=1e-6)  # not 7: the ranking has it below the 2


@pytest.mark.parametrize(
    ("rankings", "scores", "message"),
    [
        ({"q": ["a"]}, {"q": [1.0, 0.5]}, "question 'q': 1 documents are ranked, with 2 scores"),
        ({"q": ["a"]}, {}, "question 'q': 1 documents are ranked, with 0 scores"),
        ({"q": ["a"]}, {"q": [float("nan")]}, "a score must be a finite 32-bit number, got nan"),
        ({"q": ["a"]}, {"q": [float("-inf")]}, "a score must be a finite 32-bit number, got -inf"),
        ({"q": ["a"]}, {"q": [1e39]}, r"a score must be a finite 32-bit number, got 1e\+39"),
        ({"q": ["a", "b", "a"]}, None, "question 'q': document 'a' is ranked twice"),
        ({"q": [""]}, None, "must not be empty"),
        ({"q": ["\ud83d"]}, None, "cannot be written in UTF-8"),
    ],
)
def test_what_cannot_be_written_leaves_the_old_file(tmp_path, rankings, scores, message):
    (tmp_path / "run.trec").write_text("old")
    with pytest.raises(RankingError, match=message):
        write_run(tmp_path / "run.trec", rankings, scores)
    assert [file.name for file in tmp_path.iterdir()] == ["run.trec"]
    assert (tmp_path / "run.trec").read_text() == "old"


def test_a_document_ranked_twice_is_not_measured():
    with pytest.raises(RankingError, match="question 'q': document 'a' is ranked twice"):
        ranking_scores({"q": ["a", "a"]}, {"q": ["a"]})


def test_without_ir_measures(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "ir_measures", None)
    with pytest.raises(RankingError, match="pip install ir-measures"):
        ranking_scores({"q": ["a"]}, {"q": ["a"]})
    write_run(tmp_path / "run.trec", {"q": ["a"]})  # files need no package


def test_optional_packages_are_imported_only_when_used():
    code = (
        "import sys, clara.evaluation.metrics, clara.evaluation.ranking_metrics\n"
        "import clara.evaluation.statistics\n"
        "print([name for name in ('ir_measures', 'rouge_score', 'nltk', 'scipy', 'torch') "
        "if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout == "[]\n", result.stderr
