"""`clara corpus`: what files hold, shown and written."""

import inspect
import json
import os
import time
from dataclasses import asdict

import psutil
import pytest

from clara.cli.corpus import show, write
from clara.cli.index_build import build
from clara.corpus import Limits
from clara.data import read_documents
from tests.clara.cli.conftest import COMMAND
from tests.clara.corpus.made_files import DEEP, pdf_of


@pytest.fixture
def folder(tmp_path):
    base = tmp_path / "book"
    base.mkdir()
    (base / "a.md").write_text("# Guide\n\nAll of \x1b[31mit\x1b[0m is \u202ehere.\n")
    (base / "b.pdf").write_bytes(pdf_of(["one", "two"], title="Report"))
    (base / "c.csv").write_text("id,text,year\n7,row,2001\n")
    (base / "pic.png").write_bytes(b"")
    (base / ".hidden").write_text("")
    return base


def test_documents_are_shown(clara, folder):
    assert clara("corpus", "show", str(folder)).stdout.splitlines() == [
        "book/a.md [markdown, 40 bytes, 1 mark] Guide: # Guide All of \ufffd[31mit\ufffd[0m is "
        "\ufffdhere.",
        "book/b.pdf [pdf, 8 bytes, 2 marks] Report: one two",
        "7 [csv, 3 bytes] row",
        "3 documents (csv 1, markdown 1, pdf 1); 0 failed; not read: 1 hidden, "
        "1 of other kinds (.png 1)",
    ]


def test_of_many_suffixes_the_most_common_are_named(clara, tmp_path):
    (tmp_path / "a.txt").write_text("text")
    for number, letter in enumerate("bcdefgh", 1):
        for count in range(number):
            (tmp_path / f"{count}.{letter}").write_text("")
    printed = clara("corpus", "show", str(tmp_path)).stdout
    assert "28 of other kinds (.h 7, .g 6, .f 5, .e 4, .d 3, and 2 more suffixes)" in printed


def test_documents_are_shown_as_json(clara, folder):
    arguments = ["--metadata-field", "year:int", "--json"]
    shown = json.loads(clara("corpus", "show", str(folder / "c.csv"), *arguments).stdout)
    (document,) = shown["documents"]
    assert document["metadata"] == {"year": 2001}
    assert document["source"] == "c.csv"
    assert document["where"] == f"{folder}/c.csv:2"
    assert len(document["digest"]) == 64
    assert (shown["counts"], shown["failed"], shown["stopped"]) == ({"csv": 1}, 0, False)


def test_showing_stops_where_it_is_told_to(clara, folder):
    (folder / "d.txt").write_bytes(b"\xff")  # which is not looked at
    lines = clara("corpus", "show", str(folder), "--limit", "2").stdout.splitlines()
    assert len(lines) == 3
    assert lines[-1].startswith("2 documents (markdown 1, pdf 1); 0 failed; not read: ")
    assert lines[-1].endswith("; stopped after 2 documents")
    os.symlink("/etc/passwd", folder / "link.txt")
    result = clara("corpus", "show", str(folder), "--limit", "1", code=1)
    assert "failed: " in result.stderr


def test_failures_are_listed_and_counted(clara, folder):
    (folder / "d.txt").write_bytes(b"\xff")
    result = clara("corpus", "show", str(folder), code=1)
    assert len(result.stdout.splitlines()) == 4
    reason = f"{folder}/d.txt: is not valid UTF-8: byte 0xff at offset 0"
    assert result.stderr.splitlines() == [
        f"failed: {reason}",
        f"error: could not be read: {reason}",
    ]
    result = clara("corpus", "show", str(folder), "--on-error", "skip", quiet=False)
    assert result.stderr.splitlines() == [f"failed: {reason}"]
    assert "; 1 failed; " in result.stdout
    result = clara("corpus", "show", str(folder), "--json", code=1)
    shown = json.loads(result.stdout)
    assert shown["errors"] == [{"where": f"{folder}/d.txt", "reason": reason.partition(": ")[2]}]


def test_of_many_failures_the_first_are_listed(clara, tmp_path):
    file = tmp_path / "bad.jsonl"
    file.write_text("{}\n" * 150)
    result = clara("corpus", "show", str(file), code=1)
    assert len(result.stderr.splitlines()) == 102
    assert result.stderr.splitlines()[-2] == "further failures are only counted"
    assert "error: 150 files or records could not be read, the first is" in result.stderr


def test_documents_are_written(clara, folder, tmp_path):
    file = tmp_path / "docs.jsonl"
    printed = clara("corpus", "write", str(folder), "-o", str(file)).stdout
    assert printed.startswith(f"{file}: ")
    assert ", 3 documents (csv 1, markdown 1, pdf 1); 0 failed; not read: " in printed
    assert [document.id for document in read_documents(file)] == ["book/a.md", "book/b.pdf", "7"]
    before = file.read_bytes()
    result = json.loads(clara("corpus", "write", str(file), "-o", str(file), "--json").stdout)
    assert (result["documents"], result["counts"]) == (3, {"jsonl": 3})
    assert result["bytes"] == len(before)
    assert file.read_bytes() == before


def test_nothing_is_written_after_a_failure(clara, folder, tmp_path):
    file = tmp_path / "docs.jsonl"
    file.write_text("before")
    (folder / "d.txt").write_bytes(b"\xff")
    result = clara("corpus", "write", str(folder), "-o", str(file), code=1)
    assert "error: could not be read: " in result.stderr
    assert file.read_text() == "before"
    clara("corpus", "write", str(folder), "-o", str(file), "--on-error", "skip", quiet=False)
    assert len(list(read_documents(file))) == 3


def test_documents_that_replace_others(clara, tmp_path):
    for name, text in (("one", "old"), ("two", "new")):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"id": "x", "contents": text}) + "\n")
    sources = [str(tmp_path / "one.jsonl"), str(tmp_path / "two.jsonl")]
    file = tmp_path / "docs.jsonl"
    result = clara("corpus", "write", *sources, "-o", str(file), code=1)
    assert "error: 1 document has the id of an earlier document: 'x' (" in result.stderr
    arguments = ["corpus", "write", *sources, "-o", str(file), "--on-duplicate", "replace"]
    printed = clara(*arguments).stdout
    assert printed.endswith(
        "; 1 with the id of an earlier one; 0 failed; the file holds the last 1\n"
    )
    assert [document.text for document in read_documents(file)] == ["new"]


@pytest.mark.parametrize(
    ("arguments", "message", "code"),
    [
        (["missing.md"], "missing.md: no such file or folder", 1),
        (["."], "holds nothing to read", 1),
        ([".", "--max-seconds", "0"], "limits.seconds must be above 0, got 0", 1),
        ([".", "--max-memory-mb", "nan"], "limits.memory_mb must be a finite number", 1),
        ([".", "--text-field", "a", "--id-field", "a"], "field 'a' is named for two uses", 1),
        ([".", "--metadata-field", "a", "--no-metadata"], "exclude each other", 2),
        ([".", "--limit", "0"], "--limit", 2),
        ([".", "--on-error", "stop"], "--on-error", 2),
        ([], "Missing argument", 2),
    ],
)
def test_mistakes(clara, refused, tmp_path, monkeypatch, arguments, message, code):
    monkeypatch.chdir(tmp_path)
    if code == 2 and "--no-metadata" not in arguments:
        result = clara("corpus", "show", *arguments, code=2)
        assert message in result.output
    else:
        assert message in refused("corpus", "show", *arguments, code=code)


def test_mistakes_about_the_output(refused, folder, tmp_path):
    source = ["corpus", "write", str(folder), "--output"]
    assert "is a folder, not a file" in refused(*source, str(tmp_path))
    assert "its folder does not exist" in refused(*source, str(tmp_path / "no" / "d.jsonl"))
    (tmp_path / "file").write_text("")
    assert "is not a folder" in refused(*source, str(tmp_path / "file" / "d.jsonl"))
    os.mkfifo(tmp_path / "pipe")
    assert "is a pipe, socket or device" in refused(*source, str(tmp_path / "pipe"))
    assert (tmp_path / "pipe").is_fifo()
    (folder / "d.jsonl").write_text('{"id": "book/a.md", "contents": "old"}')
    arguments = [*source, str(folder / "d.jsonl"), "--on-duplicate", "replace"]
    assert "lies in a source" in refused(*arguments)
    assert "old" in (folder / "d.jsonl").read_text()


@pytest.fixture
def command():
    """In a new Python: the test below looks at the children of the process that it starts."""
    return COMMAND


@pytest.mark.slow
def test_a_killed_write_leaves_what_was_there_and_can_be_run_again(start, folder, tmp_path):
    (tmp_path / "out").mkdir()
    file = tmp_path / "out" / "docs.jsonl"
    file.write_text("before")
    (folder / "z.html").write_text(DEEP)
    writing = start("corpus", "write", str(folder), "-o", str(file))
    readers = []
    while not readers or readers[0].cpu_times().user < 1.5:  # until it has begun with the page
        assert writing.poll() is None
        time.sleep(0.05)
        readers = psutil.Process(writing.pid).children()
    writing.kill()
    writing.communicate()
    assert psutil.wait_procs(readers, timeout=30)[1] == []
    assert file.read_text() == "before"
    (folder / "z.html").write_text("<p>short")
    again = start("corpus", "write", str(folder), "-o", str(file))
    assert again.communicate()[1] == ""
    assert again.returncode == 0
    assert len(list(read_documents(file))) == 4


def test_rows_of_a_table_need_no_id(clara, tmp_path):
    (tmp_path / "t.csv").write_text("about;n\nA town;5\n")
    printed = clara("corpus", "show", f"towns={tmp_path}/t.csv", "--text-field", "about").stdout
    assert printed.startswith("towns/1 [csv, 6 bytes] A town\n")


def test_limits_of_the_commands_are_those_of_the_library():
    """Written again in the commands, which hardly import anything."""
    limits = asdict(Limits())
    for command in (show, write, build):
        defaults = inspect.signature(command).parameters
        assert {name: defaults[f"max_{name}"].default for name in limits} == limits
