"""Readers of text and of tables, and each way in which a file can be bad."""

import csv
import os

import pytest

from clara.corpus.limits import Limits
from clara.corpus.readers.delimited import delimited_rows
from clara.corpus.readers.json_lines import json_rows
from clara.corpus.readers.plain import read_markdown, read_text
from clara.corpus.readers.rows import bounded_lines
from clara.data import DataError

from .made_files import outcome

SMALL = Limits(document_mb=0.0001)  # 100 bytes


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


def test_limits_are_positive_and_have_an_end():
    with pytest.raises(DataError, match=r"limits.seconds must be above 0, got 0"):
        Limits(seconds=0)
    with pytest.raises(DataError, match=r"limits.document_mb must be at most 100,000, got 1e\+304"):
        Limits(document_mb=1e304)
    with pytest.raises(TypeError, match=r"limits.memory_mb must be a number"):
        Limits(memory_mb="1")
