"""A corpus as JSON lines: what the file holds, and what happens to it after an error."""

import json

import pytest

from clara.corpus import CorpusDocument, Mark, write_corpus, writing
from clara.data import DataError


def test_a_line_has_all_of_a_document(tmp_path):
    file = tmp_path / "d.jsonl"
    marks = (Mark(0, "page 1"),)
    document = CorpusDocument("x", "Zürich\n", "T", {"a": None, "b": 1.5}, marks, "pdf", "f.pdf")
    assert write_corpus(file, [document, CorpusDocument("y", "text")]) == 2
    first, second = file.read_text().splitlines()
    assert first == (
        '{"id": "x", "contents": "Zürich\\n", "title": "T", "a": null, "b": 1.5, '
        '"marks": [[0, "page 1"]]}'
    )
    assert json.loads(second) == {"id": "y", "contents": "text"}
    assert write_corpus(file, [document, document]) == 2  # what replaces nothing is kept
    assert len(file.read_text().splitlines()) == 2
    assert write_corpus(file, []) == 0


@pytest.mark.parametrize("block", [1, 7, 1 << 22])
def test_replaced_lines_are_removed(tmp_path, monkeypatch, block):
    monkeypatch.setattr(writing, "_BLOCK", block)
    file = tmp_path / "d.jsonl"
    given = [("a", "1"), ("b", "22"), ("a", "333"), ("c", "4"), ("a", "5"), ("b", "6")]
    seen = set()
    documents = []
    for name, text in given:
        documents.append(CorpusDocument(name, text, replaces=name in seen))
        seen.add(name)
    assert write_corpus(file, documents) == 3
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [(line["id"], line["contents"]) for line in lines] == [
        ("c", "4"),
        ("a", "5"),
        ("b", "6"),
    ]


def test_after_an_error_the_file_is_as_it_was(tmp_path):
    file = tmp_path / "d.jsonl"
    file.write_text("before")

    def documents():
        yield CorpusDocument("a", "text")
        raise DataError("at the end")

    with pytest.raises(DataError, match=r"at the end"):
        write_corpus(file, documents())
    for name in ("id", "contents", "title", "marks"):
        with pytest.raises(DataError, match=f"^f:1: the field '{name}' cannot be written beside"):
            write_corpus(file, [CorpusDocument("a", "b", metadata={name: 1}, where="f:1")])
    assert file.read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["d.jsonl"]
