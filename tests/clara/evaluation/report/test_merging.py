"""Runs of the same questions are one data set; others are refused or stand side by side."""

from __future__ import annotations

import json
from itertools import combinations

import pytest

from clara.data.values import DataError
from clara.evaluation.report.completing import completed
from clara.evaluation.report.lead import leaders
from clara.evaluation.report.merging import merged
from clara.evaluation.report.reading import read_run
from clara.evaluation.report.records import by_rows
from clara.evaluation.statistics import paired_test


def read(*folders, **options):
    return merged([read_run(folder) for folder in folders], folders, **options)


def test_entries_of_the_same_questions_come_together(make_run, small_run, tmp_path):
    other = make_run(tmp_path / "other", count=40, seed=5)
    (run,), notes = read(small_run, other)
    names = [entry.name for entry in run.entries]
    assert names[:5] == [entry.name for entry in read_run(small_run).entries]
    # The same names with other scores are told apart by the name of their run.
    assert "text+bm25 (other)" in names
    assert "text-tuned+bm25" in names
    assert len(set(names)) == len(names)
    assert {line.entry for line in run.answers} == set(names)
    assert {pair.a for pair in run.pairs} | {pair.b for pair in run.pairs} <= set(names)
    assert notes == []


def test_entries_of_different_runs_are_compared(make_run, small_run, tmp_path):
    other = make_run(tmp_path / "other", count=40, seed=5)
    (run,), _ = read(small_run, other)
    names = [entry.name for entry in leaders(run)]
    a, b = next(pair for pair in combinations(names, 2) if run.pair(*pair) is None)
    found = completed(run).pair(a, b)
    values = [
        [line.scores["exact_match"] for line in run.answers if line.entry == name]
        for name in (a, b)
    ]
    expected = paired_test(*values)
    assert (found.difference, found.low) == pytest.approx((expected.difference, expected.low))


def of_two_rates(make_run, path, models):
    """Folders of two runs: answers of the first model at rate 4, and of the other at rate 16."""
    folders = []
    for name, left_out, rate, model in zip(
        ("four", "sixteen"), ("clara@16", "clara@4"), (4, 16), models, strict=True
    ):
        folder = make_run(path / name, count=40)
        lines = (folder / "answers.jsonl").read_text().splitlines(keepends=True)
        kept = [line for line in lines if not json.loads(line)["entry"].startswith(f"{left_out}+")]
        (folder / "answers.jsonl").write_text("".join(kept))
        record = json.loads((folder / "run.json").read_text())
        entries = record["settings"]["entries"]
        entries[:] = [e for e in entries if not e["entry"].startswith(f"{left_out}+")]
        if model is not None:
            memory = {"rate": rate, "index": {"settings": {"compression_rate": rate, "s": [1]}}}
            record["settings"]["systems"] = {f"clara@{rate}": {"model": model, "memory": memory}}
            record["settings"]["rankers"] = {"bm25": {"stopwords": "en"}}
        (folder / "run.json").write_text(json.dumps(record))
        (folder / "summary.json").unlink()
        folders.append(folder)
    return folders


def test_two_rates_in_two_runs_are_compared(make_run, tmp_path):
    """Such as of two indexes of one model, each built at a rate of its own."""
    (run,), _ = read(*of_two_rates(make_run, tmp_path, ("m", "m")))
    a, b = "clara@4+bm25", "clara@16+bm25"
    assert run.pair(a, b) is None
    found = completed(run).pair(a, b)
    values = [
        [line.scores["exact_match"] for line in run.answers if line.entry == name]
        for name in (a, b)
    ]
    assert found.difference == pytest.approx(paired_test(*values).difference) != 0
    names = {each.name: each for each in run.entries}
    for pair in completed(run).pairs[len(run.pairs) :]:
        assert names[pair.a].control is names[pair.b].control is None


@pytest.mark.parametrize("models", [("m", "n"), ("m", None), (None, None)])
def test_two_rates_of_two_models_are_not(make_run, tmp_path, models):
    """Nor of models that the runs do not tell."""
    (run,), _ = read(*of_two_rates(make_run, tmp_path, models))
    run = completed(run)
    for ranker in ("bm25", "minilm", "gold"):
        a, b = f"clara@4+{ranker}", f"clara@16+{ranker}"
        assert {a, b} <= run.by_name.keys()
        assert run.pair(a, b) is None


def test_the_same_run_twice_is_one(small_run):
    (run,), notes = read(small_run, small_run)
    assert [entry.name for entry in run.entries] == list(read_run(small_run).by_name)
    assert notes == []


def test_other_settings_are_said(small_run, changed):
    folder = changed("run.json", lambda value: value["settings"].update(top_k=3, extra=True))
    _, (note,) = read(small_run, folder)
    assert note == (
        "The runs small and changed differ in more than their entries: top_k was 5, is 3; extra "
        "was not said, is true."
    )


def test_a_run_that_is_not_finished_is_said(changed):
    folder = changed("run.json", lambda value: value["settings"].update(questions=50))
    _, (note,) = read(folder)
    assert note.startswith("The run changed is not finished: 40 of its 50 questions")


def test_other_questions_are_refused_or_stand_side_by_side(make_run, small_run, tmp_path):
    other = make_run(tmp_path / "small", count=10, label="x", small=True)
    with pytest.raises(DataError) as caught:
        read(small_run, other)
    assert str(caught.value) == (
        f"{other}/answers.jsonl: field 'question': 'x0' was not asked as in {small_run}; "
        "--side-by-side shows runs of other questions as data sets of their own"
    )
    runs, _ = read(small_run, other, small_run, side_by_side=True)
    assert [(run.name, run.questions) for run in runs] == [("small", 40), ("small (2)", 10)]


def test_fewer_questions_and_other_golds_are_other_questions(
    make_run, small_run, changed, tmp_path
):
    fewer = make_run(tmp_path / "fewer", count=39, seed=5, small=True)
    with pytest.raises(DataError, match="'q39' is missing, which was asked"):
        read(small_run, fewer)

    def change(lines):
        for line in lines:
            if line["question"] == "q1":
                line["golds"] = ["another"]

    with pytest.raises(DataError, match="'q1' has not the same text and golds"):
        read(small_run, changed("answers.jsonl", change))


def test_controls_stand_below_the_entries_of_their_run(make_run, small_run, tmp_path):
    other = make_run(tmp_path / "other", count=40, seed=5)
    (run,), _ = read(small_run, other)
    names = [entry.name for entry in by_rows(run.entries)]
    place = names.index("clara@4+bm25")
    assert names[place + 1 : place + 3] == ["clara-shuffled@4+bm25", "clara-none"]
    place = names.index("clara@4+bm25 (other)")
    assert names[place + 1] == "clara-shuffled@4+bm25 (other)"
    assert names[names.index("clara-none (other)") - 1] == "clara-shuffled@16+gold"


def test_rankers_and_kept_documents_of_other_figures_are_told_apart(small_run, changed):
    def change(summary):
        summary["rankers"][0]["recall@5"] = 0.123
        summary["rankers"][0]["timings_ms"] = {}

    folder = changed("summary.json", change)
    changed("documents.jsonl", lambda lines: lines[0].update(bytes_per_document=9.0))
    (run,), _ = read(small_run, folder)
    assert [ranker.name for ranker in run.rankers] == ["bm25", "bm25 (changed)"]
    assert [kept.system for kept in run.kept] == ["clara@4", "clara@4 (changed)"]
    timed = changed("documents.jsonl", lambda lines: lines[0].update(seconds_per_document=9.0), "t")
    (run,), _ = read(small_run, timed)
    assert [kept.system for kept in run.kept] == ["clara@4"]


def test_rankers_alone_come_together_with_answers_to_the_same_questions(
    make_run, small_run, changed, tmp_path
):
    folder = changed("run.json", lambda value: value["settings"].update(entries=[]))
    changed("summary.json", lambda v: v.update(entries=[], pairs=[], break_even=[]))
    (folder / "answers.jsonl").unlink()
    runs, _ = read(small_run, folder)
    assert len(runs) == 1
    other = make_run(tmp_path / "other", count=10, label="x", small=True)
    with pytest.raises(DataError, match="'q0' was not asked as in"):
        read(other, folder)


def test_runs_of_the_same_name_are_told_apart(make_run, small_run, tmp_path):
    other = make_run(tmp_path / "small", count=40, seed=5)
    (run,), _ = read(small_run, other)
    assert "text+bm25 (small (2))" in run.by_name
