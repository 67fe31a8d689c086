"""BEIR's layout."""

import pytest

from clara.data.records import Document
from clara.data.values import DataError
from clara.evaluation.dataset import EvaluatedQuestion
from clara.evaluation.layouts import read_dataset

from . import layout_files as files


def test_beir(tmp_path):
    folder = files.write_beir(tmp_path)
    dataset = read_dataset(folder)
    assert dataset.questions == [
        EvaluatedQuestion("1", "length of the Alder", (), ("d1", "d3")),
        EvaluatedQuestion("2", "owner of the mill", (), ("d2",)),
    ]
    assert dataset.documents == {
        "d1": Document("d1", "Alder\nThe Alder is 12 km long.", "Alder"),
        "d2": Document("d2", "Ida Marsh owns the mill."),
        "d3": Document("d3", "Old Ford", "Old Ford"),
    }
    assert read_dataset(folder / "queries.jsonl") == dataset
    assert read_dataset(folder / "queries.jsonl", folder / "corpus.jsonl") == dataset
    assert read_dataset(folder, dataset.documents) == dataset
    training = read_dataset(folder / "qrels" / "train.tsv")
    assert [question.id for question in training.questions] == ["3"]


def test_beir_with_one_file_of_judgements(tmp_path):
    folder = files.write_beir(tmp_path)
    (folder / "qrels" / "test.tsv").unlink()
    assert [question.id for question in read_dataset(folder).questions] == ["3"]


@pytest.mark.parametrize(
    ("name", "lines", "message"),
    [
        ("qrels/test.tsv", files.BEIR_QRELS[1:], r"test\.tsv:1: must be the headings query-id"),
        ("qrels/test.tsv", ["a\tb\tc", "1\td1"], r"test\.tsv:2: must have the columns .* got 2"),
        ("qrels/test.tsv", ["a\tb\tc", "1 d1 1"], r"test\.tsv:2: must have the columns .* got 1"),
        ("qrels/test.tsv", ["a\tb\tc", "1\td1\tx"], r"test\.tsv:2: field 'score' must be a number"),
        ("qrels/test.tsv", ["a\tb\tc", "1\td1\tnan"], "field 'score' must be a number, got 'nan'"),
        ("qrels/test.tsv", ["a\tb\tc", "9\td1\t1"], r"test\.tsv:2: field 'query-id' names '9'"),
        ("qrels/test.tsv", ["a\tb\tc", "1\td9\t1"], r"test\.tsv:2: field 'corpus-id' names 'd9'"),
        ("qrels/test.tsv", ["a\tb\tc", "1\td1\t0"], "no judgement has a score above 0"),
        ("qrels/test.tsv", ["a\tb\tc"], "no judgement has a score above 0"),
        ("queries.jsonl", ['{"_id": "1", "te'], r"queries\.jsonl:1: not valid JSON"),
        ("queries.jsonl", [{"_id": "1"}], r"queries\.jsonl:1: '1': field 'text' is missing"),
        ("corpus.jsonl", [{"_id": "d1", "text": ""}], r"corpus\.jsonl:1: 'd1': field 'text' is em"),
        ("corpus.jsonl", [{"id": "d1", "text": "x"}], r"corpus\.jsonl:1: field '_id' is missing"),
        ("corpus.jsonl", files.BEIR_CORPUS[:1] * 2, r"corpus\.jsonl:2: id 'd1' is also on line 1"),
        ("corpus.jsonl", [], r"corpus\.jsonl: holds no documents"),
    ],
)
def test_bad_beir(tmp_path, name, lines, message):
    files.write_lines(files.write_beir(tmp_path) / name, lines)
    with pytest.raises(DataError, match=message) as raised:
        read_dataset(tmp_path)
    assert "\n" not in str(raised.value)


def test_beir_with_files_missing(tmp_path):
    folder = files.write_beir(tmp_path)
    (folder / "qrels" / "test.tsv").rename(folder / "qrels" / "dev.tsv")
    with pytest.raises(DataError, match=r"give one of dev\.tsv, train\.tsv in place of"):
        read_dataset(folder)
    for name in ("dev.tsv", "train.tsv"):
        (folder / "qrels" / name).unlink()
    with pytest.raises(DataError, match=r"no judgements: .* it has no \*\.tsv"):
        read_dataset(folder)
    files.write_beir(folder)
    (folder / "corpus.jsonl").unlink()
    with pytest.raises(DataError, match=r"corpus\.jsonl: No such file"):
        read_dataset(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"query-id\tcorpus-id\tscore\n1\td\xff\t1\n", "not valid UTF-8: byte 0xff"),
        (b"a\tb\tc\n1\t" + b"d" * 200_000 + b"\t1\n", "not a table with tabs between columns"),
        (None, "No such file"),
    ],
)
def test_judgements_that_cannot_be_read(tmp_path, content, message):
    table = files.write_beir(tmp_path) / "qrels" / "dev.tsv"
    if content is not None:
        table.write_bytes(content)
    with pytest.raises(DataError, match=rf"dev\.tsv: {message}"):
        read_dataset(table)
