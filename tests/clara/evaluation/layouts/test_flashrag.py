"""FlashRAG's layout."""

import pytest

from clara.data.records import Document
from clara.data.values import DataError
from clara.evaluation.dataset import EvaluatedQuestion
from clara.evaluation.layouts import read_dataset

from . import layout_files as files


def test_flashrag(tmp_path):
    questions, corpus = files.write_flashrag(tmp_path)
    dataset = read_dataset(questions, corpus)
    assert dataset.questions == [
        EvaluatedQuestion("test_0", "how long is the alder", ("12 km",)),
        EvaluatedQuestion("test_1", "Which is a river?", ("the Alder",)),
    ]
    assert dataset.documents == {
        "0": Document("0", '"Alder"\nThe Alder is 12 km long.'),
        "1": Document("1", "Ida Marsh owns the mill.", "Mill"),
    }


def test_flashrag_with_documents_in_memory(tmp_path):
    questions, _ = files.write_flashrag(tmp_path)
    held = {"0": Document("0", "The Alder is 12 km long.")}
    assert read_dataset(questions, held).documents == held
    with pytest.raises(DataError, match="documents are missing"):
        read_dataset(questions)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"golden_answers": [2]}, r"'golden_answers\[0\]' is 2, there are 2 choices"),
        ({"golden_answers": [-1]}, r"'golden_answers\[0\]' is -1, there are 2 choices"),
        ({"golden_answers": [True]}, "must be the number of a choice, got a boolean"),
        ({"golden_answers": []}, "must be a list of numbers of choices, got an empty list"),
        ({"golden_answers": "1"}, "must be a list of numbers of choices, got a string"),
        ({"choices": "the mill"}, "field 'choices' must be a list of strings"),
    ],
)
def test_bad_choices(tmp_path, changes, message):
    _, corpus = files.write_flashrag(tmp_path)
    record = {**files.FLASHRAG_QUESTIONS[1], **changes}
    questions = files.write_lines(tmp_path / "bad.jsonl", [files.FLASHRAG_QUESTIONS[0], record])
    with pytest.raises(DataError, match=rf"bad\.jsonl:2: 'test_1': .*{message}"):
        read_dataset(questions, corpus)
