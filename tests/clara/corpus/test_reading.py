"""The stream of documents over sources of mixed kinds."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clara.corpus import (
    CorpusError,
    Failure,
    FieldNames,
    Limits,
    Reading,
    digest_of,
    write_corpus,
)
from clara.corpus.extraction.process import Extractor
from clara.corpus.reading import Survey
from clara.data import DataError, read_documents

from .made_files import DEEP, docx_of, pdf_of


def jsonl(*records):
    return "".join(json.dumps(record) + "\n" for record in records)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """A folder with a good file of each kind."""
    folder = tmp_path_factory.mktemp("mixed") / "mixed"
    folder.mkdir()
    (folder / "a.txt").write_text("plain text")
    (folder / "b.md").write_text("# Head\n\ntext\n")
    (folder / "c.html").write_text("<title>Page</title><p>text")
    (folder / "d.pdf").write_bytes(pdf_of(["one", "two"]))
    (folder / "e.docx").write_bytes(docx_of())
    (folder / "f.jsonl").write_text(jsonl({"id": "f", "contents": "line", "year": 3}))
    (folder / "g.csv").write_text("text,place\nrow,here\n")
    pq.write_table(pa.table({"id": [9], "text": ["parquet"], "w": [0.5]}), folder / "h.parquet")
    return folder


def test_every_kind(mixed):
    reading = Reading([str(mixed)])
    found = list(reading)
    by_kind = {document.kind: document for document in found}
    assert [document.id for document in found] == [
        *(f"mixed/{name}" for name in ("a.txt", "b.md", "c.html", "d.pdf", "e.docx")),
        *("f", "mixed/g.csv/1", "9"),
    ]
    assert reading.counts == dict.fromkeys(by_kind, 1)
    assert (reading.failures, reading.duplicates) == (0, 0)
    assert by_kind["html"].title == "Page"
    assert by_kind["pdf"].marks[1].label == "page 2"
    assert by_kind["jsonl"].metadata == {"year": 3}
    assert by_kind["csv"].metadata == {"place": "here"}
    assert by_kind["parquet"].metadata == {"w": 0.5}
    assert by_kind["csv"].where == f"{mixed}/g.csv:2"
    assert {document.source for document in found} == {"mixed"}
    assert reading.columns.types == {"year": int, "place": str, "w": float}
    assert by_kind["csv"].digest == digest_of("row", None, {"place": "here"})
    assert list(reading) == found  # again, from the start


def test_a_survey_counts_without_reading_texts(mixed, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(Extractor, "read", None)
        seen: list[Failure] = []
        reading = Reading([str(mixed)], on_failure=seen.append)
        survey = reading.survey()
    assert survey == Survey(8, {"year": int, "place": str, "w": float}, {})
    again = Reading([str(mixed)])
    again.fix_columns({"place": str})
    found = {document.kind: document.metadata for document in again}
    assert (found["csv"], found["jsonl"], found["parquet"]) == ({"place": "here"}, {}, {})
    assert again.columns.left_out == {
        "year": f"{mixed}/f.jsonl:1",
        "w": f"{mixed}/h.parquet: row 1",
    }


def test_a_table_may_lack_a_field_that_another_source_has(mixed, tmp_path):
    names = FieldNames(metadata=("year:int", "place"))
    reading = Reading([str(mixed)], names=names)
    assert reading.survey().types == {"year": int, "place": str}
    found = {document.kind: document.metadata for document in reading}
    assert found["csv"] == {"place": "here"}
    assert found["jsonl"] == {"year": 3}
    assert found["parquet"] == {}
    assert reading.failures == 0


def test_a_field_of_a_source_that_is_still_to_come(tmp_path):
    (tmp_path / "a.csv").write_text("id,text\n1,A.\n")
    (tmp_path / "b.csv").write_text("id,text,year\n2,B.,3\n")
    both = [str(tmp_path / "a.csv"), str(tmp_path / "b.csv")]
    reading = Reading(both, names=FieldNames(metadata=("year",)))
    assert next(iter(reading)).id == "1"
    reading.check()  # as clara corpus show --limit does


def test_a_field_of_a_table_that_cannot_be_read(tmp_path):
    """What is wrong is said, though nothing is known of the fields of that table."""
    (tmp_path / "a.csv").write_text("id,text\n1,A.\n")
    (tmp_path / "b.csv").write_bytes(b"")
    both = [str(tmp_path / "a.csv"), str(tmp_path / "b.csv")]
    reading = Reading(both, names=FieldNames(metadata=("year",)), on_error="skip")
    for read in (reading.survey, lambda: list(reading)):
        with pytest.raises(DataError, match=r"'year' is missing; .*, text; not read: .*b\.csv: "):
            read()


@pytest.mark.parametrize("on_error", ["fail", "skip"])
def test_a_field_that_no_source_has(mixed, on_error):
    names = FieldNames(metadata=("year", "since:int"))
    message = (
        "^field 'since' is missing; name the field of the metadata with --metadata-field, there "
        "are: contents, id, place, text, w, year$"
    )
    reading = Reading([str(mixed)], names=names, on_error=on_error)
    with pytest.raises(CorpusError, match=message):
        list(reading)
    with pytest.raises(DataError, match=message):
        reading.survey()
    reading.fix_columns({"since": int})  # as an index has it, from sources that are gone
    assert len(list(reading)) == 8
    texts = [str(mixed / name) for name in ("a.txt", "f.jsonl")]
    assert len(list(Reading(texts, names=names))) == 2  # records need not have it


def test_a_survey_knows_repeated_ids_and_reports_no_failures(tmp_path):
    (tmp_path / "a.jsonl").write_text(
        jsonl({"id": "x", "contents": "1"}, {"id": "y", "contents": "2"}, {"id": "x"}) + "{\n"
    )
    (tmp_path / "b.jsonl").write_text(jsonl(*[{"id": "x", "contents": "3"}] * 2))
    failures: list[Failure] = []
    reading = Reading([str(tmp_path)], on_failure=failures.append)
    assert reading.survey() == Survey(4, {}, {"x": 3})
    assert failures == []
    with pytest.raises(CorpusError):
        list(reading)
    assert len(failures) == 2  # which reading them reports


@pytest.mark.parametrize("kind", ["Parquet", "data set"])
def test_after_a_survey_nothing_is_taken_of_a_table_that_expands_to_much(kind, tmp_path):
    table = pa.table({"text": pa.array(["x" * 1000] * 5000).dictionary_encode()})
    if kind == "Parquet":
        bomb = tmp_path / "bomb.parquet"
        pq.write_table(table, bomb)
    else:
        bomb = tmp_path / "bomb"
        datasets.Dataset.from_dict({"text": ["x"]}).save_to_disk(bomb)
        (file,) = bomb.glob("*.arrow")  # `datasets` itself writes no dictionaries
        with pa.OSFile(str(file), "wb") as out, pa.ipc.new_stream(out, table.schema) as stream:
            stream.write_table(table)
    (tmp_path / "good.txt").write_text("good")
    failures: list[Failure] = []
    limits = Limits(expanded_mb=1)
    sources = [str(bomb), str(tmp_path / "good.txt")]
    reading = Reading(sources, limits=limits, on_error="skip", on_failure=failures.append)
    assert len(list(reading)) > 500
    assert len(failures) == 1
    reading.survey()
    assert [document.text for document in reading] == ["good"]
    assert len(failures) == 2
    assert failures[0] == failures[1]
    assert "expands to 100 times its size and more than 1 MB, the limit" in failures[0].reason


def test_what_is_written_is_read_back(mixed, tmp_path):
    found = list(Reading([str(mixed)]))
    file = tmp_path / "documents.jsonl"
    assert write_corpus(file, found) == 8
    again = list(Reading([str(file)]))
    assert [document.id for document in again] == [document.id for document in found]
    assert [document.digest for document in again] == [document.digest for document in found]
    assert [document.marks for document in again] == [document.marks for document in found]
    assert list(read_documents(file)) == [document.plain() for document in found]


def test_a_data_set_that_was_saved(tmp_path):
    datasets.Dataset.from_dict({"text": ["a", "b"], "n": [1, 2]}).save_to_disk(tmp_path / "saved")
    found = list(Reading([str(tmp_path / "saved")], names=FieldNames(metadata=("n:float",))))
    assert [(each.id, each.text, each.metadata) for each in found] == [
        ("saved/1", "a", {"n": 1.0}),
        ("saved/2", "b", {"n": 2.0}),
    ]
    assert found[0].kind == "dataset"


@pytest.fixture
def flawed(tmp_path):
    """A folder in which some files, and some records, are bad."""
    folder = tmp_path / "flawed"
    folder.mkdir()
    (folder / "a.txt").write_bytes(b"\xff")
    (folder / "b.html").write_text("<script>")
    (folder / "c.pdf").write_bytes(b"text")
    (folder / "d.jsonl").write_text(
        jsonl({"id": 1, "contents": "x", "n": 1}, {"id": 2, "contents": "x", "n": "2"}, {"id": 3})
    )
    (folder / "e.csv").write_text("a,b\n1,2\n3,4\n")
    (folder / "f.jsonl").write_text("")
    (folder / "z.txt").write_text("good")
    os.symlink("/etc/passwd", folder / "link.txt")
    return folder


def test_failures_are_reported_and_the_rest_goes_on(flawed):
    reported = []
    reading = Reading([str(flawed)], on_error="skip", on_failure=reported.append)
    assert [document.id for document in reading] == ["1", "flawed/z.txt"]
    assert [os.path.basename(each.where) for each in reported] == [
        *("link.txt", "a.txt", "b.html", "c.pdf", "d.jsonl:2", "d.jsonl:3", "e.csv", "f.jsonl")
    ]
    reasons = {os.path.basename(each.where): each.reason for each in reported}
    first = f"{flawed}/d.jsonl:1"
    assert reasons["d.jsonl:2"] == f"field 'n' is a string; it is an integer, at {first}"
    assert reasons["d.jsonl:3"].endswith("with --text-field, there are: id")
    assert reasons["e.csv"].startswith("field 'contents' is missing; name the field of the text")
    assert reasons["f.jsonl"] == "holds no documents"
    assert reading.failures == 8


def test_a_file_that_takes_too_long_is_one_failure(tmp_path):
    for name, content in (("a.html", "<p>a"), ("b.html", DEEP), ("c.html", "<p>c")):
        (tmp_path / name).write_text(content)
    reported = []
    limits = Limits(seconds=0.5)
    reading = Reading([str(tmp_path)], limits=limits, on_error="skip", on_failure=reported.append)
    assert [document.text for document in reading] == ["a", "c"]
    (failure,) = reported
    assert failure.where == f"{tmp_path}/b.html"
    assert "the limit seconds" in failure.reason


def test_failures_are_raised_at_the_end(flawed):
    reading = Reading([str(flawed)])
    found = []
    with pytest.raises(
        CorpusError, match=r"^8 files or records could not be read, the first is .*li"
    ):
        found.extend(reading)
    reading = iter(Reading([str(flawed)]))
    assert next(reading).id == "1"
    one = Reading([str(flawed / "z.txt"), str(flawed / "a.txt")])
    with pytest.raises(CorpusError, match=r"^could not be read: .*a.txt: is not valid UTF-8"):
        list(one)


@pytest.fixture
def repeated(tmp_path):
    (tmp_path / "one.jsonl").write_text(jsonl(*({"id": n, "contents": "old"} for n in range(14))))
    (tmp_path / "two.jsonl").write_text(
        jsonl(*({"id": n, "contents": "new"} for n in range(2, 14)))
    )
    return [str(tmp_path / "one.jsonl"), str(tmp_path / "two.jsonl")]


def test_the_first_ten_repeated_ids_are_listed(repeated):
    one, two = repeated
    with pytest.raises(CorpusError) as raised:
        list(Reading(repeated))
    message = str(raised.value)
    assert message.startswith(f"12 have the id of an earlier document: '2' ({one}:3 and {two}:1")
    assert message.count(two) == 10
    assert "'11'" in message
    assert "'12'" not in message
    assert ", …; rename them" in message
    with pytest.raises(CorpusError, match=r"^1 document has .*jsonl:3 and .*\); rename them"):
        list(Reading([one, write_line(two)]))


def write_line(path):
    """A file beside another, with the first line of that."""
    shorter = Path(path).with_name("three.jsonl")
    shorter.write_text(Path(path).read_text().splitlines()[0])
    return str(shorter)


def test_repeated_ids_can_be_left_out(repeated):
    reading = Reading(repeated, on_duplicate="skip")
    assert {document.text for document in reading} == {"old"}
    assert (sum(reading.counts.values()), reading.duplicates) == (14, 12)


def test_later_documents_can_replace_earlier_ones(repeated, tmp_path):
    reading = Reading(repeated, on_duplicate="replace")
    found = list(reading)
    assert [document.replaces for document in found] == [False] * 14 + [True] * 12
    file = tmp_path / "all.jsonl"
    assert write_corpus(file, reading) == 14
    texts = {document.id: document.text for document in read_documents(file)}
    assert texts == {str(n): "old" if n < 2 else "new" for n in range(14)}


def test_names_of_documents_and_records_do_not_mix_in_silence(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "b.jsonl").write_text(jsonl({"id": f"{tmp_path.name}/a.txt", "contents": "x"}))
    with pytest.raises(CorpusError, match=r"a.txt and .*b.jsonl:1\)"):
        list(Reading([str(tmp_path)]))


def test_limits_are_those_given(tmp_path):
    (tmp_path / "a.txt").write_text("x" * 2000)
    with pytest.raises(CorpusError, match=r"longer than 0.001 MB, the limit document_mb"):
        list(Reading([str(tmp_path)], limits=Limits(document_mb=0.001)))
    assert len(list(Reading([str(tmp_path)], limits=Limits(document_mb=0.002)))) == 1
    assert len(list(Reading([str(tmp_path)], limits=Limits(document_mb=100_000)))) == 1


def test_a_file_that_is_gone_or_changed_since_it_was_listed(tmp_path):
    for name in ("a.txt", "b.txt", "c.txt"):
        (tmp_path / name).write_text("text")
    reported = []
    reading = Reading([str(tmp_path)], on_error="skip", on_failure=reported.append)
    (tmp_path / "a.txt").unlink()
    (tmp_path / "b.txt").unlink()
    os.mkfifo(tmp_path / "b.txt")
    assert [document.id for document in reading] == [f"{tmp_path.name}/c.txt"]
    assert [each.reason for each in reported] == [
        "No such file or directory",
        "is not a file, but a pipe, socket or device",
    ]


def test_files_and_folders_swapped_for_links_since_they_were_listed(tmp_path):
    base, secret = tmp_path / "base", tmp_path / "secret"
    for folder in (base / "in", secret):
        folder.mkdir(parents=True)
        (folder / "b.txt").write_text(folder.name)
    (base / "a.txt").write_text("a")
    os.symlink("in/b.txt", base / "c.txt")
    reported = []
    reading = Reading([str(base)], on_error="skip", on_failure=reported.append)
    assert [document.text for document in reading] == ["a", "in", "in"]
    (base / "a.txt").unlink()
    os.symlink(secret / "b.txt", base / "a.txt")
    os.rename(base / "in", base / "was")
    os.symlink(secret, base / "in")
    assert list(reading) == []
    reason = "is a symbolic link or lies behind one; no link is followed"
    assert [each.reason for each in reported] == [reason] * 3


NOBODY = """
import os, sys
from clara.corpus import Reading
if os.geteuid() == 0:
    os.setuid(65534)
reading = Reading([sys.argv[1]], on_error="skip", on_failure=print)
print([document.id for document in reading])
"""


def test_what_may_not_be_read():
    """As another user than root, who may read everything."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        os.chmod(folder, 0o755)
        base = Path(folder)
        (base / "open.txt").write_text("text")
        (base / "shut.txt").write_text("text")
        (base / "closed").mkdir()
        (base / "closed" / "x.txt").write_text("text")
        os.chmod(base / "shut.txt", 0)
        os.chmod(base / "closed", 0)
        command = [sys.executable, "-c", NOBODY, f"s={folder}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        os.chmod(base / "closed", 0o755)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        f"{folder}/closed: Permission denied",
        f"{folder}/shut.txt: Permission denied",
        "['s/open.txt']",
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"on_error": "stop"}, "on_error must be one of fail, skip, got 'stop'"),
        ({"on_duplicate": "fail"}, "on_duplicate must be one of error, skip, replace, got 'fail'"),
    ],
)
def test_choices(mixed, options, message):
    with pytest.raises(DataError, match=message):
        Reading([str(mixed)], **options)
