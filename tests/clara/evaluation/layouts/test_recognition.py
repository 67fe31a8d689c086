"""Which layout a file has."""

import json
import os
import threading

import pytest

from clara.data.values import DataError
from clara.evaluation.layouts import LAYOUTS, read_dataset, recognised_layout

from . import layout_files as files


def test_layouts_are_recognised(tmp_path):
    written = {
        "clara": files.write_own(tmp_path)[0],
        "flashrag": files.write_flashrag(tmp_path / "flashrag")[0],
        "squad": files.write_squad(tmp_path),
        "beir": files.write_beir(tmp_path / "beir"),
        "ranking": files.write_ranking(tmp_path),
    }
    assert set(written) == set(LAYOUTS)
    for layout, path in written.items():
        assert recognised_layout(path) == layout
        assert recognised_layout(str(path)) == layout


def test_a_layout_can_be_named(tmp_path):
    questions, documents = files.write_own(tmp_path)
    assert read_dataset(questions, documents, "clara") == read_dataset(questions, documents)
    with pytest.raises(ValueError, match=r"layout must be one of clara, flashrag, .*, got 'csv'"):
        read_dataset(questions, documents, "csv")


def test_lines_of_squad_longer_than_what_is_looked_at(tmp_path):
    """The file of a data set is one line of many megabytes."""
    whole = {"data": [{"title": "x", "paragraphs": [{"context": "y " * 100_000, "qas": []}]}]}
    whole["data"] += files.SQUAD["data"]
    path = tmp_path / "dev"
    path.write_text(json.dumps(whole))
    assert recognised_layout(path) == "squad"
    assert len(read_dataset(path).documents) == 4


def test_squad_whose_data_are_not_its_first_field(tmp_path):
    path = tmp_path / "dev.jsonl"
    path.write_text(json.dumps({"licence": "none", "data": files.SQUAD["data"]}))
    assert recognised_layout(path) == "squad"


def test_files_that_hold_no_questions(tmp_path):
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    with pytest.raises(DataError, match="holds no questions"):
        read_dataset(empty, {})
    with pytest.raises(DataError, match="holds no questions"):
        read_dataset(empty, {}, "clara")
    with pytest.raises(DataError, match="No such file"):
        read_dataset(tmp_path / "none.jsonl", {})
    with pytest.raises(DataError, match=r"is a folder without queries\.jsonl"):
        read_dataset(tmp_path)
    with pytest.raises(DataError, match=r"documents\.jsonl:1: field 'question' is missing"):
        read_dataset(files.write_own(tmp_path)[1], {})
    archive = tmp_path / "questions.jsonl.gz"
    archive.write_bytes(b"\x1f\x8b\x08")
    with pytest.raises(DataError, match="compressed with gzip"):
        read_dataset(archive, {})


def test_questions_with_documents_take_no_others(tmp_path):
    for path in (files.write_squad(tmp_path), files.write_ranking(tmp_path)):
        with pytest.raises(DataError, match="bring their own documents; leave out"):
            read_dataset(path, files.write_own(tmp_path)[1])


def test_a_pipe_needs_its_layout(tmp_path):
    _, documents = files.write_own(tmp_path)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(DataError, match="is a pipe or device; say which layout it has"):
        read_dataset(pipe, documents)
    content = (tmp_path / "questions.jsonl").read_text()
    writer = threading.Thread(target=pipe.write_text, args=(content,))
    writer.start()
    assert len(read_dataset(pipe, documents, "clara").questions) == 3
    writer.join()
