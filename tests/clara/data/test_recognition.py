"""Files of other kinds, given where JSON lines are read."""

import gzip
import io
import json
import zipfile

import pytest

from clara.data import DataError, read_documents, read_questions
from clara.data.examples import ExampleFile, answer_example
from clara.data.recognition import CORPUS, QUESTIONS, RECORDS

RECORD = {"id": "a", "contents": "Ein Text über Flüsse.", "title": "T"}
LINE = json.dumps(RECORD, ensure_ascii=False) + "\n"


def archive(name: str) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as file:
        file.writestr(name, "x")
    return made.getvalue()


FOREIGN = [
    ("notes.md", b"# Title\n\nSome text.\n", "a Markdown file"),
    ("notes.txt", b"Some text.\n", "a text file"),
    ("table.csv", b"id,contents\na,text\n", "a CSV file"),
    ("table.tsv", b"id\tcontents\n", "a TSV file"),
    ("paper.pdf", b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n", "a PDF file"),
    ("paper", b"%PDF-1.7\n", "a PDF file"),
    ("rows.parquet", b"PAR1\x15\x04\x15", "a Parquet file"),
    ("letter.docx", archive("word/document.xml"), "a Word document"),
    ("sheet.xlsx", archive("xl/workbook.xml"), "an Excel sheet"),
    ("files.zip", archive("a.txt"), "a ZIP archive"),
    ("page.html", b"<!DOCTYPE html>\n<html></html>", "an HTML page"),
    ("page", b"\n  <HTML lang='de'>", "an HTML page"),
    ("feed.xml", b'<?xml version="1.0"?><a/>', "an XML or HTML file"),
    (
        "docs.jsonl.gz",
        gzip.compress(LINE.encode(), mtime=0),
        "compressed with gzip; unpack it first",
    ),
    ("blob", bytes(range(1, 256)) * 3, "a binary file"),
    ("zeros", b"text\0\0\0", "a binary file"),
    ("wide.jsonl", LINE.encode("utf-16"), "text in UTF-16; convert it to UTF-8"),
    ("wide.jsonl", LINE.encode("utf-16-le"), "text in UTF-16; convert it to UTF-8"),
    ("wide.jsonl", LINE.encode("utf-16-be"), "text in UTF-16; convert it to UTF-8"),
    ("docs.json", json.dumps([RECORD]).encode(), "a JSON array"),
    ("docs.json", b"\n[\n  {}\n]", "a JSON array"),
    ("docs.json", json.dumps(RECORD, indent=1).encode(), "one JSON object over several lines"),
    ("docs.json", b'{"id": "a",\n"contents": "b"}\n', "one JSON object over several lines"),
    ("docs.json", b"\xef\xbb\xbf{\n" + b" " * 100_000 + b"}", "one JSON object over several"),
    ("LICENSE", "Grüße\n".encode(), "text without a JSON object"),
]


@pytest.mark.parametrize(("name", "content", "kind"), FOREIGN)
def test_a_file_of_another_kind_is_named(tmp_path, name, content, kind):
    file = tmp_path / name
    file.write_bytes(content)
    readers = [
        (lambda: list(read_documents(file)), CORPUS),
        (lambda: list(read_questions(file)), QUESTIONS),
        (lambda: ExampleFile(file, answer_example), RECORDS),
    ]
    for read, expected in readers:
        with pytest.raises(DataError) as caught:
            read()
        assert str(caught.value).startswith(f"{file}: is {kind}")
        assert str(caught.value).endswith(f"; {expected}")
        assert len(str(caught.value).splitlines()) == 1


def test_a_folder_is_named(tmp_path):
    with pytest.raises(DataError) as caught:
        list(read_documents(tmp_path))
    assert str(caught.value) == f"{tmp_path}: is a folder; {CORPUS}"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("some words\n" + LINE, ":1: not valid JSON"),
        ('{"id": "a", "contents": \n' + LINE, ":1: not valid JSON"),
        ("5\n", ":1: must be a JSON object, got the number 5"),
        ('"text"\n', ":1: must be a JSON object, got a string"),
        (LINE + "[1]\n", ":2: must be a JSON object, got a list"),
    ],
)
def test_a_broken_line_is_named_by_its_number(tmp_path, content, message):
    file = tmp_path / "docs.jsonl"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(DataError) as caught:
        list(read_documents(file))
    assert str(caught.value).startswith(f"{file}{message}")


@pytest.mark.parametrize("name", ["docs.jsonl", "docs.csv", "docs.pdf", "docs"])
@pytest.mark.parametrize("before", ["", "\ufeff", "\n \n"])
def test_content_decides_not_the_name(tmp_path, name, before):
    file = tmp_path / name
    file.write_text(before + LINE, encoding="utf-8")
    (document,) = read_documents(file)
    assert (document.id, document.text, document.title) == ("a", RECORD["contents"], "T")


def test_a_head_cut_within_a_character_is_text(tmp_path):
    file = tmp_path / "long.txt"
    file.write_text("x" + "ü" * 100_000, encoding="utf-8")
    with pytest.raises(DataError, match="is a text file"):
        list(read_documents(file))
