import json

import numpy as np
import pytest

from clara.data import DataError
from clara.data.examples import (
    AnswerExample,
    DocumentQuestions,
    ExampleFile,
    ExampleRows,
    PretrainingExample,
    RankingExample,
    answer_example,
    answers_example,
    contrastive_example,
    document_questions,
    open_examples,
    pretraining_example,
    ranking_example,
)
from clara.data.lines import Fields

QA = {"data_type": "qa", "question": ["Who?", "Where?"], "answers": ["Ada", "Ayr"], "docs": ["d"]}
RANKED = {"question": "Who?", "docs": ["a", "b"], "pos_index": [1], "answer": "Ada"}


def file_of(folder, *rows, raw=b""):
    file = folder / "data.jsonl"
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    file.write_bytes(lines + raw)
    return file


def read(parse, **changes):
    base = QA if parse is pretraining_example else RANKED
    fields = {k: v for k, v in {**base, **changes}.items() if v is not ...}
    return parse(Fields("here", fields))


def test_pretraining():
    assert read(pretraining_example) == PretrainingExample(
        "qa", ("Who?", "Where?"), ("Ada", "Ayr"), ("d",)
    )
    paraphrase = read(
        pretraining_example, data_type="paraphrase", question=["Again."], answers=["x"]
    )
    assert paraphrase == PretrainingExample("paraphrase", ("Again.",), ("x",), ("d",))
    for question in ([], None, ...):
        bare = read(pretraining_example, data_type="paraphrase", question=question, answers=["x"])
        assert bare.questions == ()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data_type": "QA"}, "'data_type' must be 'qa' or 'paraphrase', got 'QA'"),
        ({"data_type": ...}, "'data_type' is missing"),
        ({"answers": ["Ada"]}, "there are 2 questions and 1 answers"),
        ({"docs": []}, "'docs' is empty"),
        ({"docs": ["a", 3]}, r"'docs\[1\]' must be a string, got the number 3"),
        ({"question": "Who?"}, "'question' must be a list of strings, got a string"),
    ],
)
def test_pretraining_records_that_are_none(changes, message):
    with pytest.raises(DataError, match=f"here: .*{message}"):
        read(pretraining_example, **changes)


ASKED = {"docs": ["d", "e"], "questions": ["Who?", "Where?"], "answers": ["Ada", "Ayr"]}


def asked(base=ASKED, **changes):
    fields = {k: v for k, v in {**base, **changes}.items() if v is not ...}
    return document_questions(Fields("here", fields))


def test_questions_of_a_document():
    assert asked() == DocumentQuestions(("d", "e"), ("Who?", "Where?"), ("Ada", "Ayr"))
    assert asked(data_type="qa", question="not read") == asked()
    assert asked(QA) == DocumentQuestions(("d",), ("Who?", "Where?"), ("Ada", "Ayr"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"questions": ...}, "'questions' is missing"),
        ({"questions": []}, "'questions' is empty"),
        ({"questions": "Who?"}, "'questions' must be a list of strings, got a string"),
        ({"questions": ["Who?"]}, "there are 1 questions and 2 answers"),
        ({"answers": ["Ada", None]}, r"'answers\[1\]' must be a string, got null"),
        ({"answers": ...}, "'answers' is missing"),
        ({"docs": ...}, "'docs' is missing"),
        ({"docs": []}, "'docs' is empty"),
        ({"data_type": "paraphrase"}, "'data_type' must be 'qa', got 'paraphrase'"),
    ],
)
def test_records_without_questions_of_a_document(changes, message):
    with pytest.raises(DataError, match=f"^here: (field )?{message}$"):
        asked(**changes)


@pytest.mark.parametrize(
    ("changes", "answer"),
    [
        ({}, "Ada"),
        ({"answer": ..., "golden_answers": ["Eve", "Ada"]}, "Eve"),
        ({"answer": ..., "gold_answer": "Ben", "golden_answers": ["Eve"]}, "Ben"),
        ({"answer": ..., "gold_answer": ["Ben"]}, "Ben"),
        ({"answers": ["Cid"]}, "Ada"),
        ({"answer": float("nan"), "answers": ["Cid"]}, "Cid"),
        ({"answer": None, "answers": ["Cid"], "golden_answers": ["Eve"]}, "Cid"),
    ],
)
def test_where_the_answer_is_looked_up(changes, answer):
    assert read(ranking_example, **changes) == RankingExample("Who?", ("a", "b"), (1,), answer)
    assert read(answer_example, **changes) == AnswerExample("Who?", ("a", "b"), answer)


def test_many_questions_of_a_document():
    many = {"docs": ["a", "b"], "questions": ["Who?", "Where?"], "answers": ["Ada", "Ayr"]}
    expected = DocumentQuestions(("a", "b"), ("Who?", "Where?"), ("Ada", "Ayr"))
    assert document_questions(Fields("here", many)) == expected
    assert answers_example(Fields("here", many)) == expected
    assert answers_example(Fields("here", RANKED)) == AnswerExample("Who?", ("a", "b"), "Ada")
    for changes, message in (
        ({"answers": ["Ada"]}, "there are 2 questions and 1 answers"),
        ({"questions": []}, "field 'questions' is empty"),
        ({"docs": []}, "field 'docs' is empty"),
        ({"questions": "Who?"}, "'questions' must be a list of strings, got a string"),
        ({"answers": ["Ada", 3]}, r"'answers\[1\]' must be a string, got the number 3"),
    ):
        with pytest.raises(DataError, match=f"here: .*{message}"):
            answers_example(Fields("here", {**many, **changes}))


def test_positives():
    assert read(contrastive_example, answer=...) == RankingExample("Who?", ("a", "b"), (1,), "")
    assert read(ranking_example, pos_index=...).positives == ()
    assert read(ranking_example, pos_index=None).positives == ()
    assert read(ranking_example, pos_index=[1, 0, 1]).positives == (1, 0)
    (plain,) = read(ranking_example, pos_index=[np.int64(1)]).positives
    assert (plain, type(plain)) == (1, int)
    for index in (2, -1):
        with pytest.raises(DataError, match=rf"'pos_index\[0\]' is {index}, there are 2"):
            read(ranking_example, pos_index=[index])
    for index, kind in (("1", "a string"), (True, "a boolean"), (1.0, "the number 1.0")):
        with pytest.raises(DataError, match=f"must be an integer, got {kind}"):
            read(ranking_example, pos_index=[index])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"answer": ...}, "field 'answer' is missing"),
        ({"answer": " "}, "field 'answer' is empty"),
        ({"answer": ..., "answers": []}, "field 'answers' is empty"),
        ({"question": ...}, "'question' is missing"),
        ({"question": "\ud83d"}, "half a surrogate pair"),
    ],
)
def test_ranking_records_that_are_none(changes, message):
    with pytest.raises(DataError, match=message):
        read(ranking_example, **changes)


def test_a_file_is_read_where_it_is_asked_for(tmp_path):
    rows = [{**RANKED, "answer": f"answer {i} é"} for i in range(5)]
    file = file_of(tmp_path, *rows[:3], raw=b"\n  \r\n" + json.dumps(rows[3]).encode() + b"\r\n")
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes() + json.dumps(rows[4]).encode())
    examples = ExampleFile(file, ranking_example)
    assert len(examples) == 5
    assert [e.answer for e in examples] == [row["answer"] for row in rows]
    assert examples[-1].answer == "answer 4 é"
    assert [e.answer for e in examples[1:3]] == ["answer 1 é", "answer 2 é"]
    with pytest.raises(IndexError):
        examples[5]


def test_errors_name_the_line(tmp_path):
    file = file_of(tmp_path, RANKED, raw=b"\n{broken\n" + json.dumps({"docs": []}).encode())
    examples = ExampleFile(file, ranking_example)
    with pytest.raises(DataError, match=r"data.jsonl:3: not valid JSON"):
        examples[1]
    with pytest.raises(DataError, match=r"data.jsonl:4: field 'docs' is empty"):
        examples[2]


def test_rows_of_a_table():
    datasets = pytest.importorskip("datasets")
    table = datasets.Dataset.from_list([RANKED, {**RANKED, "answer": "Eve"}])
    examples = ExampleRows(table, "table", ranking_example)
    assert [e.answer for e in examples] == ["Ada", "Eve"]
    assert [e.answer for e in examples[1:]] == ["Eve"]
    with pytest.raises(IndexError):
        examples[2]
    with pytest.raises(DataError, match="table: row 1: field 'data_type' is missing"):
        ExampleRows(table, "table", pretraining_example)[1]
    with pytest.raises(DataError, match="holds no examples"):
        ExampleRows(table.select([]), "table", ranking_example)


def test_sources(tmp_path, monkeypatch):
    file = file_of(tmp_path, RANKED)
    assert len(open_examples(str(file), "train", ranking_example)) == 1
    for source, message in (
        (str(tmp_path), "is a folder; records are JSON lines"),
        ("missing.jsonl", "missing.jsonl: no such file"),
        (str(tmp_path / "none"), "no such file"),
    ):
        with pytest.raises(DataError, match=message):
            open_examples(source, "train", ranking_example)
    (tmp_path / "empty.jsonl").write_bytes(b"\n\n")
    with pytest.raises(DataError, match="holds no examples"):
        open_examples(str(tmp_path / "empty.jsonl"), "train", ranking_example)


def test_a_data_set_of_the_library(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    asked = []

    def load_dataset(name, configuration, *, split):
        asked.append((name, configuration, split))
        if name == "no/such":
            raise FileNotFoundError("Dataset 'no/such' doesn't exist")
        return datasets.Dataset.from_list([RANKED])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert len(open_examples("some/set", "train", ranking_example)) == 1
    assert len(open_examples("some/set:part", "dev", ranking_example)) == 1
    assert asked == [("some/set", None, "train"), ("some/set", "part", "dev")]
    with pytest.raises(DataError, match=r"no/such: no such file, and no data set.*doesn't exist"):
        open_examples("no/such", "train", ranking_example)


def test_a_data_set_without_the_library(monkeypatch):
    monkeypatch.setattr("clara.data.examples.find_spec", lambda name: None)
    with pytest.raises(DataError, match="needs the package datasets"):
        open_examples("some/set", "train", ranking_example)
