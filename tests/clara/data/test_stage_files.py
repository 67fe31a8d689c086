"""The data of every stage from a corpus with questions."""

import pytest

from clara.data import DataError, Document, Question, write_jsonl
from clara.data.examples import (
    ExampleFile,
    answer_example,
    pretraining_example,
    ranking_example,
)
from clara.data.stage_files import write_stage_files

NAMES = ("pretrain", "instruct", "end_to_end")


@pytest.fixture
def folder(tmp_path):
    """Eight documents of two subjects, and a question about each of the first three."""
    documents = [
        Document(f"{subject}/{section}/0", f"{subject} {section} is {subject}{section}.")
        for subject in ("a", "b")
        for section in ("s", "t", "u", "v")
    ]
    questions = [
        Question(f"q{i}", f"What is {d.id}?", (d.text.split()[-1][:-1], "other"), (d.id,))
        for i, d in enumerate(documents[:3])
    ]
    write_jsonl(tmp_path / "docs.jsonl", documents)
    write_jsonl(tmp_path / "questions.train.jsonl", questions)
    write_jsonl(tmp_path / "questions.validation.jsonl", questions[:1])
    return tmp_path


def test_what_is_written(folder):
    counts = write_stage_files(folder, candidates=7)
    assert counts == {
        f"{name}{ending}.jsonl": count
        for ending, count in (("", 3), ("_validation", 1))
        for name in NAMES
    }
    for example in ExampleFile(folder / "pretrain.jsonl", pretraining_example):
        assert example.task == "qa"
        assert example.answers[0] in example.documents[0]
    for example in ExampleFile(folder / "instruct.jsonl", answer_example):
        assert len(example.documents) == len(set(example.documents)) == 5
        assert any(example.answer in text for text in example.documents)
    for example in ExampleFile(folder / "end_to_end.jsonl", ranking_example):
        assert len(set(example.documents)) == 7
        (place,) = example.positives
        assert example.answer in example.documents[place]
        # The other documents of the same subject are among the candidates.
        assert sum(text.startswith("a ") for text in example.documents) == 4
    before = {name: (folder / f"{name}.jsonl").read_bytes() for name in NAMES}
    write_stage_files(folder, candidates=7)
    assert before == {name: (folder / f"{name}.jsonl").read_bytes() for name in NAMES}


def test_an_unknown_document(folder):
    write_jsonl(folder / "questions.train.jsonl", [Question("q", "x?", ("y",), ("none/s/0",))])
    with pytest.raises(DataError, match=r"questions\.train\.jsonl: no document 'none/s/0'"):
        write_stage_files(folder)
