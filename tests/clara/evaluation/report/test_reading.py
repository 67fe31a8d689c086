"""A run is read as it was written, and a file that is not of a run is refused with its place."""

from __future__ import annotations

import json
import shutil

import pytest

from clara.data.values import DataError
from clara.evaluation.answer_types import NO_ANSWER
from clara.evaluation.report.lead import lead
from clara.evaluation.report.reading import read_run
from clara.evaluation.report.records import Score, by_rows


def hashes(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_runs_of_earlier_versions_name_no_rate_of_the_ranking(small_run, tmp_path):
    old = tmp_path / "old"
    old.mkdir()
    for file in small_run.iterdir():
        text = file.read_text(encoding="utf-8").replace("bm25", "clara")
        (old / file.name).write_text(text, encoding="utf-8")
    run = read_run(old)
    names = [(entry.name, entry.ranker_kind, entry.ranker_rate) for entry in run.entries[:2]]
    assert names == [("text+clara", "clara", None), ("clara@4+clara", "clara", None)]
    assert "text with CLaRa's ranking answers" in lead(run)
    assert "CLaRa at rate 4 with its own ranking" in lead(run)
    summary = json.loads((old / "summary.json").read_text())
    summary["entries"][0]["ranker"] = "clara@4"
    (old / "summary.json").write_text(json.dumps(summary))
    text = read_run(old).entries[0]
    assert (text.ranker, text.ranker_kind, text.ranker_rate) == ("clara@4", "clara", 4)


def test_what_is_read(small_run):
    run = read_run(small_run)
    summary = json.loads((small_run / "summary.json").read_text())
    assert (run.name, run.questions, run.documents) == ("small", 40, 800)
    assert [entry.name for entry in run.entries] == [
        "text+bm25",
        "clara@4+bm25",
        "clara-shuffled@4+bm25",
        "clara-none",
        "closed-book",
    ]
    entry, found = run.entries[1], summary["entries"][1]
    assert (entry.system, entry.rate, entry.ranker, entry.control) == ("clara", 4, "bm25", None)
    assert entry.scores["exact_match"] == Score(**found["scores"]["exact_match"])
    assert entry.by_type["date"] == (8, Score(found["by_type"]["date"]["exact_match"]))
    assert (entry.bytes_per_document, entry.prompt_tokens) == (147_456, 340)
    assert entry.timings["read"].median == pytest.approx(294)
    total = entry.total_ms
    assert (total.median, total.low, total.high) == pytest.approx((420, 378, 504))
    assert len(run.answers) == 5 * 40
    assert (run.answers[0].golds, run.answers[0].answer_type) == (
        ("answer 0", "Answer 0"),
        "number",
    )
    assert (run.rankings[0].ranked, run.rankings[0].positives) == (20, 1)
    assert run.kept[0].system == "clara@4"
    assert run.pair("clara@4+bm25", "text+bm25").difference == -summary["pairs"][0]["difference"]


def test_controls_stand_below_what_they_control(run):
    names = [entry.name for entry in by_rows(read_run(run).entries)]
    assert names[:5] == [
        "text+bm25",
        "clara@4+bm25",
        "clara-shuffled@4+bm25",
        "clara@16+bm25",
        "clara-shuffled@16+bm25",
    ]
    # The control without memory is that of all of them, and stands below the last.
    last = names.index("clara@16+gold")
    assert names[last : last + 4] == [
        "clara@16+gold",
        "clara-shuffled@16+gold",
        "clara-none",
        "closed-book",
    ]


def test_a_run_that_was_stopped_is_summarised_and_left_as_it_is(small_run, tmp_path):
    whole = read_run(small_run)
    folder = tmp_path / "stopped"
    shutil.copytree(small_run, folder)
    (folder / "summary.json").unlink()
    text = (folder / "answers.jsonl").read_text().splitlines(keepends=True)
    (folder / "answers.jsonl").write_text("".join(text[:-10]))
    before = hashes(folder)
    run = read_run(folder)
    assert hashes(folder) == before
    assert run.questions == 30
    assert [entry.name for entry in run.entries] == [entry.name for entry in whole.entries]
    right = [
        line.scores["exact_match"]
        for line in whole.answers
        if line.entry == "text+bm25" and int(line.question[1:]) < 30
    ]
    assert run.entries[0].exact_match.mean == pytest.approx(sum(right) / 30)


def test_questions_without_an_answer_are_a_type_of_their_own(changed):
    def change(lines):
        for line in lines:
            if line["question"] == "q3":
                line.update(answerable=False, golds=[], answer_type=None)

    line = next(line for line in read_run(changed("answers.jsonl", change)).answers
                if line.question == "q3")  # fmt: skip
    assert (line.answerable, line.golds, line.answer_type) == (False, (), NO_ANSWER)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("run.json", lambda v: v.update(format="x"),
         "run.json: field 'format' must be 'clara-evaluation/1', got 'x'"),
        ("run.json", lambda v: v.pop("settings"), "run.json: field 'settings' is missing"),
        ("summary.json", lambda v: v.update(format=None),
         "summary.json: field 'format' must be 'clara-evaluation-summary/1', got null"),
        ("summary.json", lambda v: v["entries"][1].pop("scores"),
         "summary.json: field 'entries[1].scores' is missing"),
        ("summary.json", lambda v: v["entries"][1]["scores"]["f1"].update(mean="x"),
         "summary.json: field 'entries[1].scores.f1.mean' must be a finite number, got a string"),
        ("summary.json", lambda v: v["entries"][1]["scores"]["f1"].update(low=0.9, high=0.1),
         "summary.json: field 'entries[1].scores.f1.low' is 0.9, above 'high', which is 0.1"),
        ("summary.json", lambda v: v["entries"][0].update(control="yes"),
         "field 'entries[0].control' must be null, 'shuffled' or 'none', got 'yes'"),
        ("summary.json", lambda v: v["entries"][0].update(entry="other"),
         "summary.json: field 'entries' lacks 'text+bm25', of which answers.jsonl has lines"),
        ("summary.json", lambda v: v["entries"].append(v["entries"][0]),
         "summary.json: field 'entries[0].entry': 'text+bm25' is there 2 times"),
        ("summary.json", lambda v: v["pairs"][0].update(b="nobody"),
         "summary.json: field 'pairs[0].b': 'nobody' is no entry"),
        ("summary.json", lambda v: v["pairs"][0].update(p=float("inf")),
         "summary.json: field 'pairs[0].p' must be a finite number, got the number inf"),
        ("summary.json", lambda v: v["entries"][0].update(prompt_tokens=-1),
         "summary.json: field 'entries[0].prompt_tokens' must not be below 0, got -1"),
        ("summary.json", lambda v: v.update(questions=1.5),
         "summary.json: field 'questions' must be an integer from 0 on, got 1.5"),
        ("summary.json", lambda v: v.update(pairs=3),
         "summary.json: field 'pairs' must be a list, got the number 3"),
        ("answers.jsonl", lambda v: v[6].pop("entry"),
         "answers.jsonl:7: field 'entry' is missing"),
        ("answers.jsonl", lambda v: v[6].update(golds=["a", 1]),
         "answers.jsonl:7: field 'golds[1]' must be a string, got the number 1"),
        ("answers.jsonl", lambda v: v[6].update(gold_rank=0),
         "answers.jsonl:7: field 'gold_rank' must be an integer from 1 on or null, got 0"),
        ("answers.jsonl", lambda v: v[6].update(answerable=1),
         "answers.jsonl:7: field 'answerable' must be true, false or null, got the number 1"),
        ("answers.jsonl", lambda v: v[6].update(question="q5"),
         "answers.jsonl:7: field 'question': 'q5' of entry 'text+bm25' is also at "),
        ("answers.jsonl", lambda v: v[46].update(text="Another?"),
         "answers.jsonl:47: field 'question': 'q6' has another text or other golds than at "),
        ("answers.jsonl", lambda v: v.pop(),
         "answers.jsonl: field 'entry': 39 lines are of 'closed-book', summary.json counts 40"),
        ("answers.jsonl", lambda v: [line["scores"].update(exact_match=0.0) for line in v[:40]],
         "summary.json: field 'entries[0].scores.exact_match' has the mean 0.475, the lines of "
         "answers.jsonl give 0"),
        ("rankings.jsonl", lambda v: v[1].update(ranked="x"),
         "rankings.jsonl:2: field 'ranked' must be a list, got a string"),
        ("documents.jsonl", lambda v: v[0].pop("system"),
         "documents.jsonl:1: field 'system' is missing"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_with_its_place(changed, name, change, message):
    folder = changed(name, change)
    with pytest.raises(DataError) as caught:
        read_run(folder)
    assert message in str(caught.value)
    assert str(caught.value).startswith(str(folder))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("run.json", b"{", "run.json: not valid JSON at line 1"),
        ("run.json", b"[1]", "run.json: must be a JSON object, got a list"),
        ("summary.json", b"\xff", "summary.json: not valid JSON"),
        ("answers.jsonl", b'{"entry": "text', "answers.jsonl:1: not valid JSON"),
        ("answers.jsonl", b"3\n", "answers.jsonl:1: must be a JSON object, got the number 3"),
    ],
)
def test_files_that_are_cut_off_or_of_another_kind(changed, name, content, message):
    folder = changed("run.json", lambda value: None)
    (folder / name).write_bytes(content)
    with pytest.raises(DataError, match=r"(?s)^[^\n]*$") as caught:
        read_run(folder)
    assert message in str(caught.value)


def test_folders_that_are_none(tmp_path, changed):
    with pytest.raises(DataError, match="no such folder"):
        read_run(tmp_path / "nothing")
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="is a file, not the folder of a run"):
        read_run(tmp_path / "file")
    for name in ("run.json", "answers.jsonl"):
        folder = changed("run.json", lambda value: None, f"without {name}")
        (folder / name).unlink()
        with pytest.raises(DataError, match=rf"{name}: No such file|{name}: no such file"):
            read_run(folder)
