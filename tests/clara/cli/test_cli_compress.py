from __future__ import annotations

import json
import os
import pty
import signal
import time
from pathlib import Path

import pytest
import torch

from clara import Clara, Document
from clara.data.marks import Mark
from clara.index import MemoryIndex, corpus
from clara.memory.documents import CompressedDocuments

from ...plugins.warm import kill
from .terminals import read_terminal

LONG = "One sentence of a long document. " * 20


@pytest.fixture
def compress(model):
    """The arguments of `clara compress`."""
    return lambda file, output, *more: (
        *("compress", "--model", model, "--corpus", file, "--output", str(output)),
        *more,
    )


def content(path) -> CompressedDocuments:
    return CompressedDocuments.concatenate(MemoryIndex.open(path))


def assert_same(left: CompressedDocuments, right: CompressedDocuments) -> None:
    for name in ("ids", "document_ids", "token_counts", "texts", "titles", "fingerprint"):
        assert getattr(left, name) == getattr(right, name), name
    assert torch.equal(left.memory, right.memory)


def test_index_holds_what_the_model_compresses(clara, compress, model, write_corpus, tmp_path):
    records = [
        {"id": "a", "contents": "A short text.", "title": "A"},
        {"id": "long", "contents": LONG},
        {"id": 7, "contents": "Third."},
    ]
    printed = clara(*compress(write_corpus(records), tmp_path / "index")).stdout
    documents = [
        Document("a", "A short text.", "A"),
        Document("long", LONG),
        Document("7", "Third."),
    ]
    expected = Clara.from_pretrained(model).compress(documents)
    assert len(expected) > 3
    assert_same(content(tmp_path / "index"), expected)
    (line,) = printed.splitlines()
    assert line.startswith(f"3 documents, {len(expected)} rows, {sum(expected.token_counts)} tok")
    assert f"16x nominal, {expected.effective_compression:.1f}x effective" in line
    assert "documents/s" in line


def test_json_summary(clara, compress, write_corpus, tmp_path):
    file = write_corpus(count=5)
    printed = clara(*compress(file, tmp_path / "index", "--json")).stdout
    found = json.loads(printed)
    kinds = {name: type(value) for name, value in found.items()}
    assert kinds == {
        "index": str,
        "documents": int,
        "skipped": int,
        "added_by_others": int,
        "rows": int,
        "tokens": int,
        "short_documents": int,
        "seconds": float,
        "documents_per_second": float,
        "nominal_compression": int,
        "effective_compression": float,
        "index_documents": int,
        "index_rows": int,
        "index_bytes": int,
    }
    assert len(printed.splitlines()) == 1
    stored = content(tmp_path / "index")
    assert found["index"] == str(tmp_path / "index")
    assert (found["documents"], found["skipped"], found["rows"]) == (5, 0, 5)
    assert found["tokens"] == sum(stored.token_counts)
    assert found["effective_compression"] == stored.effective_compression
    assert found["documents_per_second"] == pytest.approx(5 / found["seconds"])


def test_short_documents_get_one_remark(clara, compress, write_corpus, tmp_path):
    """The model makes 4 memory tokens; chunks of long documents are not short documents."""
    records = [
        {"id": "two", "contents": "hi"},
        {"id": "also", "contents": "a b"},
        {"id": "whole", "contents": "This one has more words than there are memory tokens."},
        {"id": "long", "contents": LONG + "x"},
    ]
    file = write_corpus(records)
    summary, note = clara(*compress(file, tmp_path / "index")).stdout.splitlines()
    stored = content(tmp_path / "index")
    short = [name for name, n in zip(stored.ids, stored.token_counts) if n < 4 and "#" not in name]
    assert short == ["two", "also"]
    assert summary.startswith("4 documents, ")
    assert note.startswith("2 of 4 documents have fewer tokens than the 4 memory tokens")
    assert "--compression-rate" in note
    found = json.loads(clara(*compress(file, tmp_path / "other", "--json")).stdout)
    assert found["short_documents"] == 2
    again = clara(*compress(file, tmp_path / "index", "--resume")).stdout
    assert len(again.splitlines()) == 1


def test_existing_index_needs_resume(clara, refused, compress, write_corpus, tmp_path):
    file = write_corpus(count=3)
    clara(*compress(file, tmp_path / "index"))
    before = content(tmp_path / "index")
    line = refused(*compress(file, tmp_path / "index"))
    assert "exists already" in line
    assert "--resume" in line
    found = json.loads(clara(*compress(file, tmp_path / "index", "--resume", "--json")).stdout)
    assert (found["documents"], found["skipped"], found["index_rows"]) == (0, 3, 3)
    assert_same(content(tmp_path / "index"), before)


def test_resume_adds_what_the_corpus_gained(clara, compress, write_corpus, tmp_path):
    records = [
        {"id": "first", "contents": LONG},
        {"id": "first#1x", "contents": "Named like a chunk."},
        {"id": "second", "contents": "Short."},
    ]
    clara(*compress(write_corpus(records[:1]), tmp_path / "index", "--resume"))
    file = write_corpus(records)
    found = json.loads(clara(*compress(file, tmp_path / "index", "--resume", "--json")).stdout)
    assert (found["documents"], found["skipped"]) == (2, 1)
    assert found["index_documents"] == 3


def test_resume_keeps_to_the_index(clara, refused, compress, other_model, write_corpus, tmp_path):
    clara(*compress(write_corpus(count=2), tmp_path / "index", "--overflow", "truncate"))
    longer = write_corpus([{"id": "long", "contents": LONG}])
    again = compress(longer, tmp_path / "index", "--resume")
    assert "--overflow truncate" in refused(*again, "--overflow", "chunk")
    line = refused(*again, "--model", other_model)
    assert "another model" in line
    clara(*again)
    assert MemoryIndex.open(tmp_path / "index").ids() == ["d0", "d1", "long"]


def test_overflow(clara, refused, compress, model, write_corpus, tmp_path):
    file = write_corpus([{"id": "short", "contents": "Short."}, {"id": "long", "contents": LONG}])
    line = refused(*compress(file, tmp_path / "error", "--overflow", "error"))
    assert "document 'long' has" in line
    assert "the limit is 64" in line
    assert not (tmp_path / "error").exists()
    clara(*compress(file, tmp_path / "cut", "--overflow", "truncate"))
    assert MemoryIndex.open(tmp_path / "cut").ids() == ["short", "long"]
    clara(*compress(file, tmp_path / "split"))
    assert MemoryIndex.open(tmp_path / "split").ids()[:3] == ["short", "long#0", "long#1"]


BAD_LINES = [
    ('{"id": "x", "contents": ', "not valid JSON"),
    ("[1]", "must be a JSON object"),
    ('{"id": "x"}', "'contents' is missing"),
    ('{"contents": "text"}', "'id' is missing"),
    ('{"id": "x", "contents": " "}', "'contents' is empty"),
    ('{"id": "", "contents": "text"}', "'id' is empty"),
    ('{"id": "x", "contents": 5}', "'contents' must be a string"),
    ('{"id": "d1", "contents": "again"}', "id 'd1' is also on line 2"),
]


@pytest.mark.parametrize(("line", "reason"), BAD_LINES)
def test_bad_line_is_found_before_anything_is_written(
    refused, compress, write_corpus, tmp_path, monkeypatch, line, reason
):
    good = [json.dumps({"id": f"d{n}", "contents": f"text {n}"}) for n in range(600)]
    file = write_corpus(lines=[*good, line])

    def too_early(*arguments, **options):
        raise AssertionError("the model was loaded before the corpus was read")

    monkeypatch.setattr("clara.cli.compress.load_model", too_early)
    message = refused(*compress(file, tmp_path / "index"))
    assert f"{file}:601: " in message
    assert reason in message
    assert not (tmp_path / "index").exists()


def test_only_an_error_in_a_document_is_one_line(
    clara, refused, compress, write_corpus, tmp_path, monkeypatch
):
    """Any other ValueError is a bug, and keeps its traceback."""
    file = write_corpus([{"id": "long", "contents": LONG}])
    assert "document 'long'" in refused(*compress(file, tmp_path / "index", "--overflow", "error"))

    def bug(*arguments, **options):
        raise ValueError("a bug")

    monkeypatch.setattr(corpus, "_check_rows", bug)
    result = clara(*compress(file, tmp_path / "index"), code=1)
    assert type(result.exception) is ValueError
    assert result.stderr == ""


def test_chunk_named_as_another_document(refused, clara, compress, write_corpus, tmp_path):
    records = [{"id": "a", "contents": LONG}, {"id": "a#1", "contents": "Short."}]
    line = refused(*compress(write_corpus(records), tmp_path / "index"))
    assert "a chunk of document 'a' would have the id of document 'a#1'" in line
    assert not (tmp_path / "index").exists()
    records[0]["contents"] = "Short enough not to be split."
    file = write_corpus(records)
    clara(*compress(file, tmp_path / "index"))
    assert MemoryIndex.open(tmp_path / "index").ids() == ["a", "a#1"]


def test_document_named_as_a_chunk_is_not_taken_for_its_document(
    clara, compress, write_corpus, tmp_path
):
    records = [{"id": "a#0", "contents": "Short."}, {"id": "a", "contents": "Short, too."}]
    clara(*compress(write_corpus(records[:1]), tmp_path / "index"))
    clara(*compress(write_corpus(records), tmp_path / "index", "--resume"))
    assert MemoryIndex.open(tmp_path / "index").ids() == ["a#0", "a"]


def test_bad_usage(refused, compress, write_corpus, model, tmp_path):
    file, output = write_corpus(count=1), tmp_path / "index"
    assert "No such file" in refused(*compress(str(tmp_path / "none.jsonl"), output))
    assert "is a folder" in refused(*compress(str(tmp_path), output))
    assert "holds no documents" in refused(*compress(write_corpus([]), output))
    assert "--batch-tokens" in refused(*compress(file, output, "--batch-tokens", "0"), code=2)
    assert "--overflow" in refused(*compress(file, output, "--overflow", "wrap"), code=2)
    assert "--device" in refused(*compress(file, output, "--device", "tpu"), code=2)
    assert "--corpus" in refused("compress", "--model", model, "--output", str(output), code=2)
    assert "does not exist" in refused(*compress(file, output, "--model", str(tmp_path / "no")))
    assert "config.json" in refused(*compress(file, output, "--model", str(tmp_path)))
    assert "/no/such" in refused(*compress(file, output, "--backbone", "/no/such"))
    assert not output.exists()
    other = tmp_path / "other"
    other.mkdir()
    (other / "file").write_text("kept")
    assert "not an index" in refused(*compress(file, other, "--resume"))
    assert "--resume" in refused(*compress(file, other / "file"))
    assert (other / "file").read_text() == "kept"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_without_cuda(refused, compress, write_corpus, tmp_path):
    line = refused(*compress(write_corpus(count=1), tmp_path / "index", "--device", "cuda"))
    assert "device 'cuda'" in line
    assert not (tmp_path / "index").exists()


def test_pipe_as_corpus(refused, compress, tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    assert "read twice" in refused(*compress(str(pipe), tmp_path / "index"))


@pytest.mark.usefixtures("without_shipped_models")
def test_sources_make_it_a_build(clara, refused, model, tmp_path):
    """Nothing but the name differs from `clara index build`, not even the messages."""
    folder = tmp_path / "book"
    folder.mkdir()
    (folder / "a.txt").write_text("The harbour is open.")
    (folder / "t.csv").write_text("id,about\ns1,Anna is the master.\n")
    more = ("--text-field", "about", "--json", "--storage", "int8")
    found = []
    for words in (("compress",), ("index", "build")):
        output = str(tmp_path / words[-1])
        printed = clara(*words, "--model", model, "--output", output, str(folder), *more).stdout
        found.append(json.loads(printed))
        digests = MemoryIndex.open(output).digests()
        assert list(digests) == ["book/a.txt", "s1"]
        assert {known[0] for known in digests.values()} == {"book"}
    timed = {"seconds", "documents_per_second", "index", "index_bytes"}
    assert [{name: each[name] for name in each.keys() - timed} for each in found[:1]] == [
        {name: each[name] for name in each.keys() - timed} for each in found[1:]
    ]
    (folder / "a.txt").unlink()
    again = ("--model", model, "--output", str(tmp_path / "compress"), str(folder))
    found = clara("compress", *again, "--text-field", "about", "--prune", "--yes").stdout
    assert found.startswith("0 added, 0 replaced, 1 unchanged, 1 deleted, 0 failed")
    assert "no such file or folder" in refused("compress", *again[:-1], str(tmp_path / "none"))
    assert "--resume" in refused("compress", *again, "--resume", code=2)
    assert "--model" in refused("compress", "--output", "x", str(folder), code=2)


def test_a_build_goes_on_with_the_index(clara, compress, model, write_corpus, tmp_path):
    records = [{"id": "a", "contents": LONG, "title": ""}, {"id": "b", "contents": "B."}]
    records[0]["marks"] = [[0, "page 1"], [len(LONG) - 5, "page 2"]]
    file = write_corpus(records)
    clara(*compress(file, tmp_path / "index"))
    found = {row.document_id: row for row in MemoryIndex.open(tmp_path / "index").documents()}
    assert found["a"].marks == (Mark(0, "page 1"), Mark(len(LONG) - 5, "page 2"))
    assert found["b"].marks == ()
    build = ("index", "build", "--model", model, "--output", str(tmp_path / "index"))
    assert clara(*build, file).stdout.startswith("0 added, 0 replaced, 2 unchanged")
    records[1] = {"id": "b", "contents": "Another.", "year": 3}
    records += [{"id": f"c{n}", "contents": "New."} for n in range(2)]
    Path(file).write_text("".join(json.dumps(each) + "\n" for each in records))
    result = clara(*build, file, quiet=False)
    assert result.stdout.startswith("2 added, 1 replaced, 1 unchanged")
    assert "no column for: 'year'" in result.stderr
    Path(file).write_text(json.dumps(records[0]) + "\n")
    assert "0 added" in clara(*build, file, "--prune", "--yes").stdout
    assert MemoryIndex.open(tmp_path / "index").info()["documents"] == 1


def test_another_file_of_that_name_is_no_source(clara, compress, model, write_corpus, tmp_path):
    """Else pruning one would delete the documents of the other."""
    one, other = write_corpus(count=12), write_corpus([{"id": "x", "contents": "Another file."}])
    assert Path(one).name == Path(other).name
    clara(*compress(one, tmp_path / "index"))
    clara(*compress(other, tmp_path / "index", "--resume"))
    index = MemoryIndex.open(tmp_path / "index")
    assert index.digests()["d0"][0] == "docs.jsonl"
    assert index.digests()["x"][0] is None
    build = ("index", "build", "--model", model, "--output", str(tmp_path / "index"))
    assert "12 unchanged, 0 deleted" in clara(*build, one, "--prune").stdout
    assert index.contains_documents(["x"]) == [True]


def test_an_index_with_metadata_is_gone_on_with(clara, compress, model, write_corpus, tmp_path):
    file = write_corpus([{"id": "a", "contents": "A.", "year": 3}])
    clara("index", "build", "--model", model, "--output", str(tmp_path / "index"), file)
    clara(*compress(write_corpus([{"id": "b", "contents": "B."}]), tmp_path / "index", "--resume"))
    entries = {each.document_id: each for each in MemoryIndex.open(tmp_path / "index").documents()}
    assert entries["a"].metadata == {"year": 3}
    assert entries["b"].metadata == {"year": None}


def wait_for(path: Path, documents: int) -> None:
    """Wait until an index holds as many documents."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        if path.exists() and MemoryIndex.open(path).info()["documents"] >= documents:
            return
        time.sleep(0.02)
    raise TimeoutError(f"{path} has too few documents")


@pytest.mark.slow
def test_killed_and_resumed_gives_the_same_index(
    start_stuck, clara, compress, write_corpus, tmp_path
):
    records = [
        {"id": f"d{n}", "contents": f"Number {n}. " * (1 + n % 30), "title": f"T{n}"}
        for n in range(7 * corpus.GROUP + 17)
    ]
    file = write_corpus(records)
    clara(*compress(file, tmp_path / "whole"))

    for count in (1, 2 * corpus.GROUP):
        killed = start_stuck(3 * corpus.GROUP, *compress(file, tmp_path / "killed", "--resume"))
        wait_for(tmp_path / "killed", count)
        kill(killed)
        assert killed.returncode == -signal.SIGKILL
        killed.communicate()
    stored = MemoryIndex.open(tmp_path / "killed").info()["documents"]
    assert 2 * corpus.GROUP <= stored < len(records)

    found = json.loads(clara(*compress(file, tmp_path / "killed", "--resume", "--json")).stdout)
    assert (found["skipped"], found["documents"]) == (stored, len(records) - stored)
    assert_same(content(tmp_path / "killed"), content(tmp_path / "whole"))


@pytest.mark.slow
def test_interrupt_is_quiet(start, compress, write_corpus, tmp_path):
    running = start(*compress(write_corpus(count=20 * corpus.GROUP), tmp_path / "index"))
    wait_for(tmp_path / "index", 1)
    running.send_signal(signal.SIGINT)
    printed, errors = running.communicate(timeout=300)
    assert running.returncode == 130
    assert printed == ""
    assert errors == ""


@pytest.mark.slow
def test_process_prints_one_line_in_a_pipe(process, compress, write_corpus, tmp_path):
    result = process(*compress(write_corpus(count=3), tmp_path / "index"))
    assert result.returncode == 0
    assert result.stderr == ""
    assert len(result.stdout.splitlines()) == 1


@pytest.mark.slow
def test_terminal_gets_a_bar(process, start, compress, write_corpus, tmp_path):
    ours, theirs = pty.openpty()
    running = start(*compress(write_corpus(count=300), tmp_path / "index"), stderr=theirs)
    os.close(theirs)
    shown = read_terminal(ours)
    printed, _ = running.communicate(timeout=300)
    assert running.returncode == 0
    assert b"300/300" in shown
    assert b"documents/s" in shown
    assert b"x compression" in shown
    assert printed.startswith("300 documents, ")
