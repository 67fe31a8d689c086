"""`clara evaluate report`: files in a folder, one line for each finding, one for each error."""

from __future__ import annotations

import json

import pytest

SCORE = {"mean": 0.5, "low": 0.0, "high": 1.0}


@pytest.fixture
def run(tmp_path):
    """A run of one entry and two questions."""
    folder = tmp_path / "run"
    folder.mkdir()
    lines = [
        {
            "entry": "closed-book",
            "question": f"q{number}",
            "text": "Who?",
            "golds": ["me"],
            "answerable": True,
            "ranked": [],
            "gold_rank": None,
            "prompt_tokens": 9,
            "answer": answer,
            "scores": {"exact_match": score, "f1": score},
            "answer_type": "name",
            "timings_ms": {"generate": 10.0},
        }
        for number, (answer, score) in enumerate([("me", 1.0), ("\x1b[2J", 0.0)])
    ]
    (folder / "answers.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    settings = {"entries": [], "top_k": 5}
    record = {"settings": settings, "environment": {"device": "cpu"}}
    (folder / "run.json").write_text(json.dumps({"format": "clara-evaluation/1", **record}))
    entry = {
        "entry": "closed-book",
        "system": "closed-book",
        "rate": None,
        "ranker": None,
        "control": None,
        "questions": 2,
        "scores": {"exact_match": SCORE, "f1": SCORE},
        "prompt_tokens": 9,
        "timings_ms": {},
        "by_type": {},
        "reads_memory": None,
    }
    summary = {"questions": 2, "documents": 3, "entries": [entry], "rankers": [], "pairs": []}
    content = {"format": "clara-evaluation-summary/1", **record, **summary}
    (folder / "summary.json").write_text(json.dumps(content))
    return folder


def test_a_report(clara, run, tmp_path):
    result = clara("evaluate", "report", str(run), "-o", str(tmp_path / "out"))
    page, lead = result.stdout.splitlines()
    assert page == str(tmp_path / "out" / "report.html")
    assert (
        lead == "On 2 questions over 3 documents, the closed book answers 50 % exactly (0 to 100)."
    )
    assert "\x1b" not in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def test_bad_input(refused, run, tmp_path):
    line = refused("evaluate", "report", str(tmp_path / "none"), "-o", str(tmp_path / "out"))
    assert line == f"error: {tmp_path / 'none'}: no such folder"
    text = (run / "answers.jsonl").read_text()
    (run / "answers.jsonl").write_text(text[:-20])
    line = refused("evaluate", "report", str(run), "-o", str(tmp_path / "out"))
    assert line.startswith(f"error: {run / 'answers.jsonl'}:2: not valid JSON")
    assert not (tmp_path / "out").exists()
    (tmp_path / "file").touch()
    line = refused("evaluate", "report", str(run), "-o", str(tmp_path / "file" / "out"))
    assert line == f"error: {tmp_path / 'file' / 'out'}: {tmp_path / 'file'} is not a folder"


def test_no_run_is_bad_usage(clara):
    result = clara("evaluate", "report", code=2)
    assert "RUN" in result.stderr
