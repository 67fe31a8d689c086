"""`clara index build`, `add` and `replace` with a tiny model."""

import json
import os
import pty
import signal
import time

import pytest

from clara import Clara
from clara.cli import index_build
from clara.corpus import Reading
from clara.index import MemoryIndex
from clara.model.index_settings import create_index
from clara.sync import build as building
from tests.clara.cli.terminals import read_terminal
from tests.clara.corpus.made_files import docx_of, pdf_of
from tests.plugins.warm import kill


@pytest.fixture
def folder(tmp_path):
    """A folder of eight files of mixed kinds, with ten documents."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    base = tmp_path / "book"
    base.mkdir()
    (base / "a.txt").write_text("The harbour is open from April to October.")
    (base / "b.md").write_text(
        "# Berths\n\nAsk.\n\n## Prices\n\n" + "A night costs 30 florins. " * 20
    )
    (base / "c.html").write_text("<title>Rules</title><h1>Rules</h1><p>No fires.")
    (base / "d.pdf").write_bytes(pdf_of(["one", "two"], title="Report"))
    (base / "e.docx").write_bytes(docx_of())
    (base / "f.jsonl").write_text('{"id": "n1", "contents": "The crane is broken.", "since": 3}\n')
    (base / "g.csv").write_text(
        "id,text,who\ns1,Anna is the master.,Anna\ns2,Ben repairs.,\x1b[1m\n"
    )
    pq.write_table(
        pa.table({"id": ["t1"], "text": ["High water."], "w": [0.5]}), base / "h.parquet"
    )
    return base


@pytest.fixture
def arguments(model, tmp_path):
    return lambda *more, task="build": (
        *("index", task, "--model", model, "--output", str(tmp_path / "index")),
        *map(str, more),
    )


@pytest.fixture
def compressed(monkeypatch):
    """Ids of the documents that any model compresses."""
    seen = []
    real = Clara.compress

    def counted(self, documents, **options):
        seen.extend(document.id for document in documents)
        return real(self, documents, **options)

    monkeypatch.setattr(Clara, "compress", counted)
    return seen


IDS = [*(f"book/{name}" for name in ("a.txt", "b.md", "c.html", "d.pdf", "e.docx")), "n1"]
IDS += ["s1", "s2", "t1"]


def test_eight_files_changed_and_pruned(clara, refused, arguments, folder, tmp_path, compressed):
    line = clara(*arguments(folder)).stdout
    assert line.startswith("9 added, 0 replaced, 0 unchanged, 0 deleted, 0 failed; ")
    assert "x effective compression; index of 9 documents, " in line
    index = MemoryIndex.open(tmp_path / "index")
    assert list(index.digests()) == IDS == compressed
    assert index.columns == {"since": int, "who": str, "w": float}
    (pdf,) = index.documents("book/d.pdf")
    assert pdf.places == ["page 1"]
    (long,) = index.documents("book/b.md")
    assert long.places[-1] == "## Prices"

    compressed.clear()
    found = json.loads(clara(*arguments(folder, "--json")).stdout)
    assert (found["added"], found["unchanged"], compressed) == (0, 9, [])

    (folder / "a.txt").write_text("The harbour is closed.")
    (folder / "c.html").unlink()
    assert clara(*arguments(folder)).stdout.startswith("0 added, 1 replaced, 7 unchanged, 0 del")
    assert compressed == ["book/a.txt"]
    assert index.texts(["book/a.txt"])[0].text == "The harbour is closed."

    (folder / "d.pdf").write_bytes(b"%PDF-1.4 nothing")
    result = clara(*arguments(folder, "--prune", "--yes"), code=1)
    assert result.stdout.startswith("0 added, 0 replaced, 7 unchanged, 0 deleted, 1 failed; index")
    failed, kept, error = result.stderr.splitlines()
    assert failed.startswith(f"failed: {folder}/d.pdf: is damaged")
    assert kept == (
        "2 documents are gone from their sources and were not deleted: 1 failed, so it is not "
        "certain what is gone"
    )
    assert error.startswith(f"error: could not be read: {folder}/d.pdf: is damaged")
    clara(*arguments(folder, "--prune", "--on-error", "skip"), quiet=False)
    (folder / "d.pdf").unlink()
    result = clara(*arguments(folder, "--prune"), code=1)
    assert result.stdout.startswith("0 added, 0 replaced, 7 unchanged, 0 deleted, 0 failed")
    assert result.stderr == (
        "error: 2 documents are gone from their sources and were not deleted: that is more than a "
        "tenth of the 9 documents of these sources; add --yes to delete them\n"
    )
    assert len(index.digests()) == 9
    found = json.loads(clara(*arguments(folder, "--prune", "--yes", "--json")).stdout)
    assert (found["deleted"], found["index_documents"]) == (2, 7)
    assert set(index.digests()) == set(IDS) - {"book/c.html", "book/d.pdf"}


def test_somebody_at_the_terminal_is_asked(clara, arguments, folder, tmp_path, monkeypatch):
    clara(*arguments(folder))
    (folder / "a.txt").unlink()
    (folder / "b.md").unlink()
    questions = []

    def answer(text, *, err):
        questions.append(text)
        return len(questions) > 1

    monkeypatch.setattr(index_build, "somebody_answers", lambda: True)
    monkeypatch.setattr("typer.confirm", answer)
    assert "0 deleted" in clara(*arguments(folder, "--prune"), code=1).stdout
    assert "2 deleted" in clara(*arguments(folder, "--prune")).stdout
    assert questions == ["2 of 9 documents of these sources are gone from them. Delete them?"] * 2


def test_metadata_of_later_builds(clara, arguments, tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text('{"id": "a", "contents": "Text.", "year": 1}\n')
    clara(*arguments(file))
    file.write_text('{"id": "a", "contents": "Text.", "year": "x"}\n')
    result = clara(*arguments(file), code=1)
    assert f"failed: {file}:1: field 'year' is a string; it is an integer, as in" in result.stderr
    file.write_text('{"id": "a", "contents": "New.", "year": 2, "b\\u001b": 1, "source": "x"}\n')
    result = clara(*arguments(file), quiet=False)
    assert result.stderr == (
        f"left out fields that the index has no column for: 'b\\x1b' ({file}:1), 'source' "
        f"({file}:1)\n"
    )
    assert result.stdout.startswith("0 added, 1 replaced")


def test_a_log_gets_lines(clara, arguments, tmp_path, monkeypatch):
    file = tmp_path / "a.jsonl"
    file.write_text('{"id": "a", "contents": "One."}\n{"id": "b", "contents": "Two."}\n')
    monkeypatch.setattr(index_build, "LINES_EVERY", 0.0)
    lines = clara(*arguments(file), quiet=False).stderr.splitlines()
    assert lines[0].startswith("build: 2 of 2 documents, ")
    assert "x compression, " in lines[-1]
    assert lines[-1].endswith(" kB")


def test_add_and_replace(clara, arguments, tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text('{"id": "a", "contents": "One."}\n')
    result = clara(*arguments(file, task="replace"), code=1)
    assert "is not in the index, so there is nothing to replace" in result.stderr
    assert clara(*arguments(file, task="add")).stdout.startswith("1 added")
    file.write_text('{"id": "a", "contents": "Two."}\n{"id": "b", "contents": "Three."}\n')
    result = clara(*arguments(file, task="add"), code=1)
    assert result.stdout.startswith("1 added, 0 replaced, 0 unchanged, 0 deleted, 1 failed")
    assert "document 'a' is in the index with another content" in result.stderr
    assert clara(*arguments(file, task="replace")).stdout.startswith("0 added, 1 replaced, 1 unch")
    result = clara(*arguments(file, "--prune", task="add"), code=2)
    assert "--prune is for 'clara index build', not for add" in result.stderr


def test_settings_of_the_index_hold(clara, refused, arguments, other_model, folder, tmp_path):
    clara(*arguments(folder / "a.txt", "--storage", "int8", "--overflow", "truncate"))
    index = MemoryIndex.open(tmp_path / "index")
    assert (index.storage, index.settings["overflow"]) == ("int8", "truncate")
    line = refused(*arguments(folder / "a.txt", "--storage", "int4"))
    assert line.endswith("was created with --storage int8; --storage int4 does not match")
    line = refused(*arguments(folder / "a.txt", "--overflow", "chunk"))
    assert line.endswith("was created with --overflow truncate; --overflow chunk does not match")
    line = refused(*arguments(folder / "a.txt", "--compression-rate", "8"))
    assert line.endswith("--compression-rate 16; --compression-rate 8 does not match")
    line = refused(*arguments(folder / "a.txt", "--model", other_model))
    assert "was written by another model" in line
    clara(*arguments(folder / "b.md", "--storage", "int8"))
    assert [entry.rows for entry in index.documents("b.md")] == [["b.md"]]


def test_places_are_found(clara, arguments, model, folder, tmp_path):
    clara(*arguments(folder / "b.md", folder / "f.jsonl"))
    options = ("--model", model, "--index", str(tmp_path / "index"), "--top-k", "9")
    printed = clara("search", *options, "How much is a night?").stdout
    assert "## Prices" in printed
    assert "Berths, # Berths" in printed
    found = json.loads(clara("search", *options, "--json", "How much is a night?").stdout)
    by_id = {each["id"]: each for each in found["documents"]}
    assert (by_id["b.md#0"]["place"], by_id["b.md#1"]["place"]) == ("# Berths", "## Prices")
    assert (by_id["n1"]["place"], by_id["n1"]["metadata"]) == (None, {"since": 3})
    answered = clara("ask", *options, "--max-new-tokens", "2", "How much is a night?").stdout
    assert "## Prices" in answered


def test_filters(clara, refused, arguments, model, folder, tmp_path):
    clara(*arguments(folder))
    options = ("--model", model, "--index", str(tmp_path / "index"), "--top-k", "9")

    def found(where, command="search", *more):
        asked = (command, *options, "--filter", where, "--json", *more, "Who?")
        return {each["id"] for each in json.loads(clara(*asked).stdout)["documents"]}

    assert found("since = 3") == {"n1"}
    assert found("who IS NOT NULL OR w < 1") == {"s1", "s2", "t1"}
    assert found("title = 'Rules'", "ask", "--max-new-tokens", "1") == {"book/c.html"}
    line = refused("search", *options, "--filter", "since = 99", "Who?")
    assert line.endswith("the filter 'since = 99' left no document to search")
    assert "nothing" in refused("search", *options, "--filter", "nothing = 1", "Who?")
    assert "index: " in refused("ask", *options, "--filter", "since = = 1", "Who?")


def test_what_is_too_long_for_overflow_error(clara, arguments, folder, tmp_path):
    result = clara(*arguments(folder / "b.md", f"x={folder}/a.txt", "--overflow", "error"), code=1)
    assert result.stdout.startswith("1 added, 0 replaced, 0 unchanged, 0 deleted, 1 failed")
    assert f"failed: {folder}/b.md: document 'b.md' has " in result.stderr
    assert "the limit is 64" in result.stderr


def test_an_index_without_columns_is_refused(refused, arguments, model, write_corpus, tmp_path):
    """Earlier releases of `clara compress` wrote such."""
    create_index(Clara.from_pretrained(model), tmp_path / "index", "chunk", None, None)
    line = refused(*arguments(write_corpus(count=2)))
    assert line.endswith("does not tell which documents have changed; build a new index")


def test_bad_usage(refused, arguments, folder, tmp_path, monkeypatch):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("kept")
    monkeypatch.delattr(index_build, "load_model")  # nothing of this needs the model
    assert "not an index" in refused(*arguments(folder, "--output", tmp_path / "full"))
    assert "no such file or folder" in refused(*arguments(tmp_path / "none"))
    assert "are both called 'book'" in refused(*arguments(folder, folder))
    assert "exclude each other" in refused(
        *arguments(folder, "--no-metadata", "--metadata-field", "a"), code=2
    )
    assert "limits.seconds must be above 0" in refused(*arguments(folder, "--max-seconds", 0))
    assert "SOURCE" in refused(*arguments(), code=2)
    assert not (tmp_path / "index").exists()


def test_a_folder_that_may_not_be_written(arguments, refused, clara, folder, tmp_path, monkeypatch):
    clara(*arguments(folder / "a.txt"))
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    line = refused(*arguments(folder / "a.txt"))
    assert line.endswith("index: cannot be written: no permission")


def test_python_does_the_same(model, folder, tmp_path):
    loaded = Clara.from_pretrained(model)
    built = loaded.build_index(tmp_path / "index", [str(folder)], storage="int8")
    assert (built.added, built.failed) == (9, 0)
    reading = Reading([str(folder)], on_error="skip")
    (folder / "a.txt").unlink()
    (folder / "b.md").write_text("short")
    built = loaded.build_index(
        tmp_path / "index", reading, prune=True, confirm=lambda gone, documents: True
    )
    assert (built.replaced, built.unchanged, built.failed) == (1, 7, 1)  # it was listed before
    built = loaded.build_index(tmp_path / "index", [str(folder)], prune=True)
    assert (built.unchanged, built.not_deleted) == (8, 1)
    with pytest.raises(ValueError, match="was created with storage=int8; storage=int4 does not"):
        loaded.build_index(tmp_path / "index", [str(folder)], storage="int4")


def stored(path) -> int:
    try:
        return len(MemoryIndex.open(path).digests())
    except ValueError:
        return 0


@pytest.mark.slow
def test_killed_and_built_again(start_stuck, clara, arguments, tmp_path, compressed):
    file = tmp_path / "a.jsonl"
    records = [{"id": f"d{n}", "contents": f"Number {n}. " * (1 + n % 20)} for n in range(1200)]
    file.write_text("".join(json.dumps(each) + "\n" for each in records))
    running = start_stuck(3 * building.BATCH, *arguments(file))
    while running.poll() is None and stored(tmp_path / "index") < building.BATCH:
        time.sleep(0.02)
    kill(running)
    assert (running.returncode, running.communicate()) == (-signal.SIGKILL, ("", ""))
    there = set(MemoryIndex.open(tmp_path / "index").digests())
    assert building.BATCH <= len(there) < len(records)
    found = json.loads(clara(*arguments(file, "--json")).stdout)
    assert (found["unchanged"], found["added"]) == (len(there), len(records) - len(there))
    assert there.isdisjoint(compressed)
    index = MemoryIndex.open(tmp_path / "index")
    assert set(index.digests()) == {each["id"] for each in records}
    texts = {each["id"]: each["contents"] for each in records}
    for entry in index.documents():
        parts = [part.text for part in index.texts(entry.rows)]
        assert "".join(parts) == texts[entry.document_id]


@pytest.mark.slow
def test_a_terminal_gets_a_bar_and_is_asked(process, start, arguments, folder, tmp_path):
    assert process(*arguments(folder)).stderr == ""
    (folder / "a.txt").unlink()
    ours, theirs = pty.openpty()
    running = start(*arguments(folder, "--prune"), stdin=theirs, stderr=theirs)
    os.close(theirs)
    shown = b""
    while b"Delete them?" not in shown:
        shown += os.read(ours, 1 << 16)
    os.write(ours, b"y\n")
    shown += read_terminal(ours)
    printed, _ = running.communicate(timeout=300)
    assert running.returncode == 0
    assert b"8/9" in shown or b"8/8" in shown
    assert "1 deleted" in printed
