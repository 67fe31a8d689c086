"""Readers of text and of tables, and each way in which a file can be bad."""

import csv
import json
import os

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clara.corpus.documents import Failure
from clara.corpus.limits import Limits
from clara.corpus.readers.arrow import dataset_rows, parquet_rows
from clara.corpus.readers.delimited import delimited_rows
from clara.corpus.readers.json_lines import json_rows
from clara.corpus.readers.plain import read_markdown, read_text
from clara.corpus.readers.rows import bounded_lines
from clara.data import DataError

SMALL = Limits(document_mb=0.0001)  # 100 bytes


@pytest.fixture
def opened(tmp_path):
    """A descriptor of a file with some content."""

    def open_file(content, name="file"):
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return os.open(path, os.O_RDONLY)

    return open_file


def outcome(rows):
    """Values of rows and reasons of failures, by place."""
    return [
        (each.where, each.reason if isinstance(each, Failure) else dict(each.values))
        for each in rows
    ]


def test_text_stays_as_it_is(opened):
    assert (
        read_text(opened("  Zürich\r\n\tand tabs \n"), Limits()).text == "  Zürich\r\n\tand tabs \n"
    )
    assert read_text(opened(b"\xef\xbb\xbfwith a mark"), Limits()).text == "with a mark"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "^is empty$"),
        (b" \r\n\t", "^is empty$"),
        (b"\xef\xbb\xbf", "^is empty$"),
        (b"abc\xff\xfe", "^is not valid UTF-8: byte 0xff at offset 3$"),
        (b"\xef\xbb\xbfab\xe4", "^is not valid UTF-8: byte 0xe4 at offset 5$"),
        (b"ab\0c", "^holds a NUL byte at offset 2: it is binary, or text in UTF-16"),
        ("text".encode("utf-16"), "^is text in UTF-16; convert it to UTF-8$"),
        ("text".encode("utf-32"), "^is text in UTF-32; convert it to UTF-8$"),
        ("text".encode("utf-16-be"), "^holds a NUL byte at offset 0"),
        (b"x" * 101, "^the file is longer than 0.0001 MB, the limit document_mb$"),
    ],
)
def test_bad_text(opened, content, message):
    with pytest.raises(DataError, match=message):
        read_text(opened(content), SMALL)


def test_headings_of_markdown(opened):
    text = """---
title: settings, not a heading
---
# Guide

Text of a paragraph
over two lines
---

Rivers
======

```python
# a comment
```

~~~
## no heading
```
~~~
  ## The *north* ##
#nospace
    # code
#

- item
---
> quote
---
### Last
"""
    found = read_markdown(opened(text), Limits())
    labels = ["# Guide", "# Rivers", "## The *north*", "### Last"]
    assert [mark.label for mark in found.marks] == labels
    starts = [found.text[mark.offset :].splitlines()[0] for mark in found.marks]
    assert starts == ["# Guide", "Rivers", "  ## The *north* ##", "### Last"]
    assert (found.text, found.title) == (text, "settings, not a heading")


@pytest.mark.parametrize(
    ("settings", "title"),
    [
        ("---\ntitle: The harbour  \ndate: 2020\n---\n", "The harbour"),
        ('---\r\na: b\r\ntitle: "A: b"\r\n...\r\n', "A: b"),
        ("---\ntitle: 'A # b'\n---\n", "A # b"),
        ("---\ntitle: >\n  folded\n---\n", "Head"),
        ("---\ntitle: [list]\n---\n", "Head"),
        ("---\nsubtitle: no\n---\ntitle: no\n", "Head"),
        ("---\ntitle: never closed\n", "Head"),
    ],
)
def test_the_title_of_markdown(opened, settings, title):
    found = read_markdown(opened(f"{settings}\n# Head\n"), Limits())
    assert found.title == title
    assert found.marks[-1].label == "# Head"
    assert found.text.startswith(settings)


def test_markdown_without_headings(opened):
    found = read_markdown(opened("--- \nnever closed\n\nText\n"), Limits())
    assert (found.title, found.marks) == (None, ())
    crlf = read_markdown(opened("One\r\n===\r\ntext\r\n\r\n## Two\r\n"), Limits())
    assert [tuple(mark) for mark in crlf.marks] == [(0, "# One"), (18, "## Two")]


def test_lines_of_markdown_end_at_line_feeds_and_returns_alone(opened):
    found = read_markdown(opened("a\u2028# no\x0c# no\r# One #\r\n## Two#\n### #\n"), Limits())
    assert [tuple(mark) for mark in found.marks] == [(12, "# One"), (21, "## Two#")]


@pytest.mark.parametrize("content", ["# a{}x\n", "# a{}#\n", "---\ntitle: a{}#\n---\nx"])
def test_markdown_takes_time_in_proportion_to_its_length(opened, content):
    """Half an hour if it were the square of the length."""
    length = 60_000 if "title" in content else 1_000_000
    assert read_markdown(opened(content.format(" " * length)), Limits()).text


def test_lines_are_bounded(opened):
    content = b"a" * 10 + b"\n" + b"b" * 11 + b"\nccc\n" + b"d" * 35 + b"\n\n" + b"e" * 40
    with os.fdopen(opened(content), "rb") as file:
        lines = list(bounded_lines(file, 10))
    assert [line.number for line in lines] == [1, 2, 3, 4, 5, 6]
    assert [line.offset for line in lines] == [0, 11, 23, 27, 63, 64]
    assert [line.raw for line in lines] == [b"a" * 10 + b"\n", None, b"ccc\n", None, b"\n", None]


def test_json_lines(opened):
    content = (
        b'\xef\xbb\xbf{"id": 1}\n\n{"id": 2, "id": 3}\nno\n[1]\n{"x": "\xff"}\n'
        + b'{"id": "' + b"x" * 100 + b'"}\n{"id": 4}'
    )  # fmt: skip
    found = list(json_rows(opened(content), "f", SMALL))
    assert outcome(found) == [
        ("f:1", {"id": 1}),
        ("f:3", {"id": 3}),
        ("f:4", "not valid JSON: Expecting value at column 1"),
        ("f:5", "must be a JSON object, got a list"),
        ("f:6", "not valid UTF-8: byte 0xff at 7"),
        ("f:7", "the line is longer than 0.0001 MB, the limit document_mb"),
        ("f:8", {"id": 4}),
    ]
    assert found[-1].number == 7


def test_a_line_of_100_mb_is_refused_by_default(tmp_path):
    path = tmp_path / "f"
    with path.open("wb") as file:
        file.write(b'{"id": 1}\n{"id": "')
        file.seek(100_000_000, os.SEEK_CUR)  # a hole, which takes no place
        file.write(b'"}\n{"id": 3}\n')
    with os.fdopen(os.open(path, os.O_RDONLY), "rb") as opened_twice:
        found = list(json_rows(os.dup(opened_twice.fileno()), "f", Limits()))
    reason = "the line is longer than 16 MB, the limit document_mb"
    assert outcome(found) == [("f:1", {"id": 1}), ("f:2", reason), ("f:3", {"id": 3})]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"id": 1}]', "^is a JSON array; records are JSON lines"),
        (b"%PDF-1.4", "^is a PDF file"),
        ('{"id": 1}'.encode("utf-16"), "UTF-16"),
    ],
)
def test_what_holds_no_json_lines(opened, content, message):
    with pytest.raises(DataError, match=message):
        list(json_rows(opened(content), "f", Limits()))


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_tables_with_any_delimiter(opened, delimiter):
    rows = ["id,text,n", '1,"a ""b""', 'c",', "", "2,x,3"]
    content = "\r\n".join(rows).replace(",", delimiter)
    assert outcome(delimited_rows(opened(content), "f.csv", Limits())) == [
        ("f.csv:2", {"id": "1", "text": 'a "b"\r\nc', "n": None}),
        ("f.csv:5", {"id": "2", "text": "x", "n": "3"}),
    ]


def test_fields_longer_than_the_csv_module_reads_by_itself(opened):
    before = csv.field_size_limit()
    long = "x" * (before + 1)
    rows = delimited_rows(opened(f"id,text\n1,{long}\n2,y\n"), "f", Limits())
    assert next(rows).values["text"] == long
    assert csv.field_size_limit() == before  # between records, too: it is one for the process
    assert [row.values["text"] for row in rows] == ["y"]


def test_a_table_with_tabs_by_its_name(opened):
    content = "\xef\xbb\xbf".encode("latin-1") + b"a,b,c\td\n1\t2\n"
    assert outcome(delimited_rows(opened(content), "f.TSV", Limits())) == [
        ("f.TSV:2", {"a,b,c": "1", "d": "2"})
    ]


def test_the_index_that_pandas_writes_is_left_out(opened):
    found = outcome(delimited_rows(opened(",text\n0,x\n"), "f", Limits()))
    assert found == [("f:2", {"text": "x"})]


def test_bad_records_do_not_hide_others(opened):
    content = b'id,text\n1,"\xff\nstill 1"\n2\n3,x,y\n4,"a\0"\n5,ok\n'
    found = list(delimited_rows(opened(content), "f", Limits()))
    assert outcome(found) == [
        ("f:2", "is not valid UTF-8: byte 0xff at offset 11"),
        ("f:4", "has 1 fields, the header names 2"),
        ("f:5", "has 3 fields, the header names 2"),
        ("f:6", "holds a NUL byte at offset 34: it is binary, or text in UTF-16; convert it to "
         "UTF-8"),
        ("f:7", {"id": "5", "text": "ok"}),
    ]  # fmt: skip
    assert found[-1].number == 5


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "has no header"),
        ("\n1,2\n", "has no header"),
        ("a,b,a\n", "the header has the column 'a' twice"),
        ('"a"b,c\n', "^header: .*expected after"),
        (",a,\n", "the header has a column without a name twice"),
        ("text,id\n".encode("utf-16"), "is text in UTF-16"),
        (b"a,\xff\n1,2\n", "^is not valid UTF-8: byte 0xff at offset 2$"),
        ('a,b\n1,2\n3,"open\nend', "^record at line 3: unexpected end of data; the rest of"),
        ('a,b\n1,"x"y\n2,3', "^record at line 2: .*expected after.*; the rest of"),
        ('a,b\n1,2\n3,"' + "x\n" * 60, "^record at line 3: the record, perhaps for want of a clos"),
        ("a,b\n1,2\n" + "x" * 101, "^record at line 3: .* longer than 0.0001 MB"),
    ],
)
def test_bad_tables(opened, content, message):
    with pytest.raises(DataError, match=message):
        list(delimited_rows(opened(content), "f", SMALL))


def test_long_fields_of_tables_are_read(opened):
    ((_, values),) = outcome(delimited_rows(opened("text\n" + "x" * 200_000), "f", Limits()))
    assert values == {"text": "x" * 200_000}


def test_parquet(tmp_path, opened):
    table = pa.table(
        {"id": [1, 2, 3], "text": ["a", "b" * 200, None], "w": [0.5, None, 1.5]},
    )
    pq.write_table(table, tmp_path / "t.parquet")
    with open(tmp_path / "t.parquet", "rb") as file:
        found = list(parquet_rows(os.dup(file.fileno()), "t", SMALL))
    assert outcome(found) == [
        ("t: row 1", {"id": 1, "text": "a", "w": 0.5}),
        ("t: row 2", "the row is longer than 0.0001 MB, the limit document_mb"),
        ("t: row 3", {"id": 3, "text": None, "w": 1.5}),
    ]
    assert found[0].columns == ["id", "text", "w"]
    for content in (b"PAR1 and no more", b"", (tmp_path / "t.parquet").read_bytes()[:-9]):
        with pytest.raises(DataError, match=r"cannot be read as Parquet: "):
            list(parquet_rows(opened(content), "t", Limits()))


def test_strings_that_are_not_utf8_are_failures_of_their_rows(tmp_path):
    raw = pa.array([b"fine", b"\xff", b"too"], pa.binary())
    text = pa.StringArray.from_buffers(3, *raw.buffers()[1:])
    pq.write_table(pa.table({"text": text}), tmp_path / "t.parquet")
    found = outcome(parquet_rows(os.open(tmp_path / "t.parquet", os.O_RDONLY), "t", Limits()))
    assert [values for _, values in found[::2]] == [{"text": "fine"}, {"text": "too"}]
    assert found[1][1].startswith("cannot be read: 'utf-8' codec")


def test_folders_that_datasets_saved(tmp_path):
    table = datasets.Dataset.from_dict({"id": ["a", "b"], "text": ["x", "y"]})
    table.save_to_disk(tmp_path / "one", num_shards=2)
    found = list(dataset_rows(str(tmp_path / "one"), "one", Limits()))
    assert [dict(row.values) for row in found] == list(table)
    assert [row.number for row in found] == [1, 2]
    assert found[1].where == "one/data-00001-of-00002.arrow: row 1"

    splits = datasets.DatasetDict({"train": table, "test": table.select([1])})
    splits.save_to_disk(tmp_path / "splits")
    found = list(dataset_rows(str(tmp_path / "splits"), "s", Limits()))
    assert [(row.number, row.values["id"]) for row in found] == [(1, "a"), (2, "b"), (3, "b")]
    assert found[2].where == "s/test/data-00000-of-00001.arrow: row 1"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("state.json", "{", "state.json: not valid JSON"),
        ("state.json", "[]", "state.json: must be a JSON object"),
        ("state.json", "{}", "field '_data_files' must be a list"),
        ("state.json", {"_data_files": [{"filename": "../x"}]}, "must be a list of names"),
        ("state.json", {"_data_files": [{"filename": "gone"}]}, "gone: cannot be read as an Arrow"),
        ("state.json", {"_data_files": [{"filename": "text"}]}, "text: cannot be read as an Arrow"),
        ("state.json", {"_data_files": [{"filename": "link"}]}, "link: is a symbolic link"),
        ("state.json", {"_data_files": [{"filename": "pipe"}]}, "pipe: is not a file, but a pipe"),
        ("state.json", {"_data_files": [{"filename": "none"}]}, "none: cannot be read as an Arrow"),
        ("state.json", {"_data_files": 5}, "field '_data_files' must be a list"),
        ("dataset_dict.json", {"splits": ["out"]}, "state.json: is a symbolic link or lies behind"),
        ("dataset_dict.json", {"splits": ["in"]}, "state.json: is not a file, but a pipe"),
        ("dataset_dict.json", {"splits": ["/etc"]}, "field 'splits' must be a list of names"),
        ("dataset_dict.json", {"splits": ["train"]}, "state.json: No such file"),
    ],
)
def test_folders_that_are_not_as_datasets_saves_them(tmp_path, name, content, message):
    (tmp_path / "text").write_text("no Arrow")
    (tmp_path / "none").write_text("")
    (tmp_path / "in").mkdir()
    for pipe in ("pipe", "in/state.json"):
        os.mkfifo(tmp_path / pipe)
    os.symlink("/etc/passwd", tmp_path / "link")
    os.symlink("/etc", tmp_path / "out")
    (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(DataError, match=message):
        list(dataset_rows(str(tmp_path), "d", Limits()))


def test_damaged_arrow_is_not_followed(tmp_path):
    table = datasets.Dataset.from_dict({"text": ["x" * 50, "y" * 50]})
    table.save_to_disk(tmp_path / "d")
    (file,) = (tmp_path / "d").glob("*.arrow")
    content = file.read_bytes()
    offsets = b"\x32\x00\x00\x00\x64\x00\x00\x00"  # where the second text begins and ends
    assert content.count(offsets) == 1
    file.write_bytes(content.replace(offsets, b"\x32\x00\x00\x00\xff\xff\xff\x7f"))
    with pytest.raises(DataError, match=r"cannot be read as an Arrow stream"):
        list(dataset_rows(str(tmp_path / "d"), "d", Limits()))


def test_names_of_columns_that_are_not_utf8(tmp_path):
    table = pa.table({"text": ["x"], "AAAAAAAA": [1]})
    pq.write_table(table, tmp_path / "t.parquet")
    datasets.Dataset(table).save_to_disk(tmp_path / "d")
    (arrow,) = (tmp_path / "d").glob("*.arrow")
    for file in (tmp_path / "t.parquet", arrow):
        file.write_bytes(file.read_bytes().replace(b"AAAAAAAA", b"\xff" * 8))
    with pytest.raises(DataError, match=r"^cannot be read as Parquet: "):
        list(parquet_rows(os.open(tmp_path / "t.parquet", os.O_RDONLY), "t", Limits()))
    with pytest.raises(DataError, match=r"cannot be read as an Arrow stream: "):
        list(dataset_rows(str(tmp_path / "d"), "d", Limits()))


def test_limits_are_positive_and_have_an_end():
    with pytest.raises(DataError, match=r"limits.seconds must be above 0, got 0"):
        Limits(seconds=0)
    with pytest.raises(DataError, match=r"limits.document_mb must be at most 100,000, got 1e\+304"):
        Limits(document_mb=1e304)
    with pytest.raises(TypeError, match=r"limits.memory_mb must be a number"):
        Limits(memory_mb="1")
