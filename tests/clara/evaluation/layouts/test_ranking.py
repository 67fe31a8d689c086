"""Records with documents to rank."""

import pytest

from clara.data.records import Document
from clara.data.values import DataError
from clara.evaluation.dataset import EvaluatedQuestion
from clara.evaluation.layouts import read_dataset

from . import layout_files as files


def test_records_with_documents_to_rank(tmp_path):
    dataset = read_dataset(files.write_ranking(tmp_path))
    assert dataset.documents == {
        "0": Document("0", "Ida Marsh owns the mill."),
        "1": Document("1", "The Alder is 12 km long."),
        "2": Document("2", "It rises at Old Ford."),
    }
    assert dataset.questions == [
        EvaluatedQuestion("0", "How long is the Alder?", ("12 km",), ("1",), ("0", "1", "2")),
        EvaluatedQuestion(
            "owner", "Who owns the mill?", ("Ida Marsh", "Marsh"), ("0",), ("2", "0")
        ),
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"docs": []}, r"ranking\.jsonl:2: field 'docs' is empty"),
        ({"docs": ["x", " "], "pos_index": [0]}, r"field 'docs\[1\]' is empty"),
        ({"pos_index": [2]}, r"field 'pos_index\[0\]' is 2, there are 2"),
        ({"golden_answers": []}, "field 'golden_answers' is empty"),
        ({"golden_answers": None, "answer": None}, "field 'answer' is missing"),
        ({"golden_answers": None, "answer": ""}, "field 'answer' is empty"),
        ({"question": None}, "field 'question' is missing"),
        ({"id": "0"}, r"ranking\.jsonl:2: id '0' is also on line 1"),
    ],
)
def test_bad_records_with_documents(tmp_path, changes, message):
    record = files.edited(files.RANKING[1], **changes)
    path = files.write_lines(tmp_path / "ranking.jsonl", [files.RANKING[0], record])
    with pytest.raises(DataError, match=message):
        read_dataset(path)


@pytest.mark.parametrize(
    ("answers", "wanted"),
    [
        ({"answer": "teacher's", "gold_answer": "gold"}, ("gold",)),
        ({"answer": "teacher's", "answers": ["one", "two"]}, ("one", "two")),
        ({"answer": ["one", "two"]}, ("one",)),
    ],
)
def test_golden_answers_come_before_the_teachers(tmp_path, answers, wanted):
    record = {**files.edited(files.RANKING[0], answer=None), **answers}
    path = files.write_lines(tmp_path / "ranking.jsonl", [record])
    assert read_dataset(path).questions[0].golden_answers == wanted
