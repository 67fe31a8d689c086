"""`clara compress --resume`: changed documents, other runs at the same time, older indexes."""

from __future__ import annotations

import functools
import json
import re
import shutil
import subprocess
from dataclasses import replace

import pytest
import torch

from clara import Clara
from clara.cli import compress as command_line
from clara.index import MemoryIndex, corpus
from clara.index.build import write_empty
from clara.index.header import Header
from clara.index.layout import encode
from clara.index.snapshot import Snapshot
from clara.model.forward import ClaraCore
from tests.clara.index.rows import append_rows

LONG = "One sentence of a long document. " * 20


@pytest.fixture(scope="module", autouse=True)
def loaded_once():
    """A model is loaded for the first command that needs it: that takes longer than the command."""
    load = functools.cache(Clara.from_pretrained)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Clara, "from_pretrained", staticmethod(load))
        yield


@pytest.fixture
def compress(model):
    """The arguments of `clara compress`."""
    return lambda file, output, *more: (
        *("compress", "--model", model, "--corpus", file, "--output", str(output)),
        *more,
    )


@pytest.fixture
def never_computed(monkeypatch):
    def computed(*arguments, **options):
        raise AssertionError("documents were compressed")

    monkeypatch.setattr(Clara, "compress", computed)


def records(**texts):
    return [{"id": name, "contents": text, "title": f"T {name}"} for name, text in texts.items()]


@pytest.mark.parametrize("overflow", ["chunk", "truncate"])
@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"short": "Another text."}, "1 document has another title or text .* \\('short'\\)"),
        ({"long": "Short by now."}, "\\('long'\\)"),
        ({"long": "Another" + LONG[3:]}, "\\('long'\\)"),
        ({"short": "A short text", "long": LONG[1:]}, "2 documents have .* \\('short', 'long'\\)"),
        ({"short": "A short text. "}, "\\('short'\\)"),
        ({"short": LONG}, "\\('short'\\)"),
    ],
)
def test_a_changed_text_is_refused(
    clara, refused, compress, write_corpus, tmp_path, request, overflow, changed, named
):
    texts = {"short": "A short text.", "long": LONG, "third": "Third."}
    clara(*compress(write_corpus(records(**texts)), tmp_path / "index", "--overflow", overflow))
    before = MemoryIndex.open(tmp_path / "index").ids()
    request.getfixturevalue("never_computed")
    file = write_corpus(records(**texts | changed, fourth="New."))
    line = refused(*compress(file, tmp_path / "index", "--resume"))
    assert line.startswith(f"error: {file}: ")
    assert re.search(named, line), line
    assert "compress the corpus into a new index, or remove " in line
    assert MemoryIndex.open(tmp_path / "index").ids() == before


@pytest.mark.parametrize("title", [None, "", "Another"])
def test_a_changed_title_is_refused(clara, refused, compress, write_corpus, tmp_path, title):
    lines = records(a="A text.", b=LONG)
    clara(*compress(write_corpus(lines), tmp_path / "index"))
    for each in lines:
        each["title"] = title
    line = refused(*compress(write_corpus(lines), tmp_path / "index", "--resume"))
    assert "2 documents have another title or text" in line


def test_the_first_of_many_changed_documents_are_named(
    clara, refused, compress, write_corpus, tmp_path
):
    names = [f"d{n}" for n in range(300)]
    one, two = (records(**{name: f"{text} {name}." for name in names}) for text in ("One", "Two"))
    clara(*compress(write_corpus(one), tmp_path / "index"))
    line = refused(*compress(write_corpus(two), tmp_path / "index", "--resume"))
    assert "300 documents have" in line
    assert "('d0', 'd1', 'd2', 'd3', 'd4', …)" in line


def test_only_the_end_that_was_cut_off_may_change(clara, refused, compress, write_corpus, tmp_path):
    """An index keeps what the model has read."""
    file = write_corpus(records(long=LONG + "The end.", edge="Short."))
    clara(*compress(file, tmp_path / "index", "--overflow", "truncate"))
    kept = MemoryIndex.open(tmp_path / "index").texts(["long"])[0].text
    assert len(kept) < len(LONG)
    for text in (LONG + "Another end.", LONG):
        again = compress(write_corpus(records(long=text)), tmp_path / "index", "--resume", "--json")
        assert json.loads(clara(*again).stdout)["skipped"] == 1
    for text in (kept[:-9], "S" + LONG):
        again = compress(write_corpus(records(long=text)), tmp_path / "index", "--resume")
        assert "('long')" in refused(*again)


def test_an_unchanged_corpus_in_another_order_goes_on(clara, compress, write_corpus, tmp_path):
    texts = {"a": "A text.", "ü": "Nächster", "b": LONG, "c": "  spaces kept \n"}
    clara(*compress(write_corpus(records(**texts)), tmp_path / "index"))
    file = write_corpus(records(new="New.", **dict(reversed(texts.items()))))
    found = json.loads(clara(*compress(file, tmp_path / "index", "--resume", "--json")).stdout)
    assert (found["documents"], found["skipped"], found["added_by_others"]) == (1, 4, 0)


def test_a_damaged_document_is_not_taken_for_a_changed_one(
    clara, refused, compress, write_corpus, tmp_path
):
    file = write_corpus(records(a="A text of the first.", b="Another."))
    clara(*compress(file, tmp_path / "index"))
    (data,) = (tmp_path / "index" / "data").iterdir()
    assert data.read_bytes().count(b"text of the") == 1
    data.write_bytes(data.read_bytes().replace(b"text of the", b"text 0f the"))
    line = refused(*compress(file, tmp_path / "index", "--resume"))
    assert "document 'a' (row 0) is damaged" in line


def test_a_document_named_as_a_chunk_of_the_index(clara, refused, compress, write_corpus, tmp_path):
    clara(*compress(write_corpus(records(a=LONG)), tmp_path / "chunks"))
    again = compress(
        write_corpus([{"id": "a#1", "contents": "x"}]), tmp_path / "chunks", "--resume"
    )
    assert "document 'a#1' has the id of a chunk of document 'a'" in refused(*again)
    clara(*compress(write_corpus([{"id": "a#1", "contents": "x"}]), tmp_path / "whole"))
    again = compress(write_corpus(records(a=LONG)), tmp_path / "whole", "--resume")
    line = refused(*again)
    assert "a chunk of document 'a' would have the id of document 'a#1' in the index" in line


# Other processes at the same time


def another_run(clara, monkeypatch, owner, name, command, *, before):
    """Run a command while the first call of `owner.name` is made."""
    real = getattr(owner, name)

    def interrupted(*arguments, **options):
        monkeypatch.setattr(owner, name, real)
        result = None if before else real(*arguments, **options)
        clara(*command)
        return real(*arguments, **options) if before else result

    monkeypatch.setattr(owner, name, interrupted)


@pytest.mark.parametrize("count", [2, 7])
@pytest.mark.parametrize("moment", ["while compressing", "before the first group"])
def test_two_runs_of_one_corpus(
    clara, compress, write_corpus, tmp_path, monkeypatch, count, moment
):
    monkeypatch.setattr(corpus, "GROUP", 3)
    lines = records(**{f"d{n}": LONG if n == 1 else f"Text {n}." for n in range(7)})
    command = compress(write_corpus(lines), tmp_path / "index", "--resume")
    other = compress(write_corpus(lines[:count]), tmp_path / "index", "--resume")
    clara(*compress(write_corpus(lines[:1]), tmp_path / "index"))
    if moment == "while compressing":
        another_run(clara, monkeypatch, Clara, "compress", other, before=False)
    else:
        another_run(clara, monkeypatch, corpus.Work, "run", other, before=True)
    found = json.loads(clara(*command, "--json").stdout)
    assert (found["documents"], found["skipped"]) == (7 - count, 1)
    assert found["added_by_others"] == count - 1
    index = MemoryIndex.open(tmp_path / "index")
    assert index.info()["documents"] == 7
    assert index.info()["duplicate_ids"] == []
    assert len(index) == len(set(index.ids()))
    assert found["rows"] == len(
        [row for row in index.texts(index.ids()) if int(row.document_id[1:]) >= count]
    )
    memory = torch.cat([batch.memory for batch in index])
    alone = tmp_path / "alone"
    clara(*compress(write_corpus(lines), alone))
    whole = MemoryIndex.open(alone).get(index.ids()).memory
    torch.testing.assert_close(memory, whole, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("read", ["contains", "contains_documents", "ids", "text_digests"])
@pytest.mark.parametrize("before", [True, False])
def test_documents_that_others_add_between_two_reads_of_the_index(
    clara, compress, write_corpus, tmp_path, monkeypatch, read, before
):
    """Whole ones are not taken for chunks, nor chunks for other documents."""
    lines = records(**{f"d{n}": LONG if n == 1 else f"Text {n}." for n in range(4)})
    clara(*compress(write_corpus(lines[:1]), tmp_path / "index"))
    command = compress(write_corpus(lines), tmp_path / "index", "--resume", "--json")
    another_run(clara, monkeypatch, MemoryIndex, read, command, before=before)
    found = json.loads(clara(*command).stdout)
    assert (found["documents"], found["index_documents"]) == (0, 4)
    assert found["skipped"] + found["added_by_others"] == 4


def test_what_others_added_is_compared_without_reading_the_whole_index(
    clara, compress, write_corpus, tmp_path, monkeypatch
):
    """It happens for each group of documents."""

    def read(self):
        raise AssertionError("all texts were read")

    command = compress(write_corpus(count=4), tmp_path / "index", "--resume")
    another_run(clara, monkeypatch, corpus.Work, "run", command, before=True)
    monkeypatch.setattr(MemoryIndex, "text_digests", read)
    found = json.loads(clara(*command, "--json").stdout)
    assert (found["documents"], found["added_by_others"]) == (0, 4)


def test_the_summary_counts_what_others_added(clara, compress, write_corpus, tmp_path, monkeypatch):
    file = write_corpus(count=4)
    command = compress(file, tmp_path / "index", "--resume")
    another_run(clara, monkeypatch, Clara, "compress", command, before=False)
    printed = clara(*command).stdout
    assert printed.startswith("0 documents (4 were added by another process meanwhile), 0 rows")


@pytest.mark.parametrize("resume", [True, False])
def test_an_index_that_another_run_begins_first(
    clara, refused, compress, write_corpus, tmp_path, monkeypatch, resume
):
    file = write_corpus(count=3)
    command = compress(file, tmp_path / "index", *(["--resume"] if resume else []))
    other = compress(write_corpus(count=2), tmp_path / "index")
    another_run(clara, monkeypatch, command_line, "create_index", other, before=True)
    if resume:
        found = json.loads(clara(*command, "--json").stdout)
        assert (found["documents"], found["skipped"]) == (1, 2)
    else:
        assert "exists already; add --resume" in refused(*command)
    assert MemoryIndex.open(tmp_path / "index").info()["documents"] == 2 + resume


@pytest.mark.parametrize("moment", ["compress", "run"])
def test_a_run_of_another_version_of_the_corpus(
    clara, refused, compress, write_corpus, tmp_path, monkeypatch, moment
):
    clara(*compress(write_corpus(records(a="A.")), tmp_path / "index"))
    one = compress(write_corpus(records(b="One.", c="C.")), tmp_path / "index", "--resume")
    two = compress(write_corpus(records(b="Two.", c="C.")), tmp_path / "index", "--resume")
    owner = Clara if moment == "compress" else corpus.Work
    another_run(clara, monkeypatch, owner, moment, two, before=moment == "run")
    line = refused(*one)
    assert "1 document has another title or text than in" in line
    assert "('b')" in line
    assert MemoryIndex.open(tmp_path / "index").texts(["b"])[0].text == "Two."


@pytest.mark.slow
def test_two_processes_compress_one_corpus(warm, environment, compress, write_corpus, tmp_path):
    """Both from the start, with nothing at the path of the index yet."""
    count = 60
    run_it = "from clara.index import corpus; from clara.cli import main; corpus.GROUP = 8; main()"
    command = compress(write_corpus(count=count), tmp_path / "index", "--resume", "--json")
    runs = [
        subprocess.Popen(
            [warm(environment).python, "-c", run_it, *command],
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for _ in range(2)
    ]
    found = []
    for run in runs:
        printed, errors = run.communicate(timeout=300)
        assert (run.returncode, errors) == (0, "")
        found.append(json.loads(printed))
    index = MemoryIndex.open(tmp_path / "index")
    assert sorted(index.ids()) == sorted(f"d{n}" for n in range(count))
    assert sum(each["documents"] for each in found) == count
    for each in found:
        assert each["documents"] + each["skipped"] + each["added_by_others"] == count


# Older indexes


@pytest.fixture
def older(model, tmp_path, monkeypatch):
    """An index of three documents as an earlier release wrote it with the model."""
    sampled = property(lambda self: self.fingerprint[::-1])
    monkeypatch.setattr(ClaraCore, "sampled_fingerprint", sampled)
    loaded = Clara.from_pretrained(model)
    old = loaded.sampled_fingerprint
    compressed = loaded.compress(records(a="A text.", b=LONG, c="Third."))
    folder = str(tmp_path / "older")
    m, width = loaded.config.memory_tokens, loaded.hidden_size
    write_empty(Header(old, m, width, loaded.dtype, {"overflow": "chunk"}), folder)
    compressed = replace(compressed, fingerprint=old)
    MemoryIndex.open(folder).add(compressed)
    return folder


def test_an_older_index_is_searched_and_not_added_to(
    clara, refused, compress, model, other_model, write_corpus, older, tmp_path
):
    asked = ("--model", model, "--index", older, "--json", "A text")
    assert len(json.loads(clara("search", *asked).stdout)["documents"]) == 5
    clara("ask", "--max-new-tokens", "2", *asked)
    file = write_corpus(records(a="A text.", d="New."))
    line = refused(*compress(file, older, "--resume"))
    assert f"run 'clara index upgrade --model {model} {older}' first" in line
    assert "written by another model" in refused(
        *compress(file, older, "--resume", "--model", other_model)
    )
    assert MemoryIndex.open(older).info()["documents"] == 3


def test_an_older_index_is_upgraded(
    clara, refused, compress, model, write_corpus, older, monkeypatch
):
    before = MemoryIndex.open(older)
    printed = clara("index", "upgrade", "--model", model, older).stdout
    assert printed == (
        f"{older}: upgraded, 3 documents; format 1 became 3; it has the fingerprint of all "
        "weights\n"
    )
    fingerprint = Clara.from_pretrained(model).fingerprint
    assert before.fingerprint == fingerprint[::-1]
    before.ids()
    assert before.fingerprint == fingerprint
    file = write_corpus(records(a="A text.", b=LONG, d="New."))
    found = json.loads(clara(*compress(file, older, "--resume", "--json")).stdout)
    assert (found["documents"], found["skipped"], found["index_documents"]) == (1, 2, 4)
    printed = clara("index", "upgrade", "--model", model, older).stdout
    assert printed == f"{older}: has the current format already; nothing was changed\n"
    changed = write_corpus(records(b=LONG[2:]))
    assert "('b')" in refused(*compress(changed, older, "--resume"))


def test_an_upgrade_names_what_was_stored_twice(clara, model, older):
    index = MemoryIndex.open(older)
    snapshot = Snapshot.latest(older)
    append_rows(snapshot, encode(snapshot.header, index.get(["a", "c"])))
    info = json.loads(clara("info", "--json", older).stdout)
    assert (info["count"], info["duplicate_ids"]) == (len(index), ["a", "c"])
    assert "duplicate ids: a, c\n" in clara("info", older).stdout
    shutil.copytree(older, f"{older}-copy")
    printed = clara("index", "upgrade", "--model", model, older).stdout
    assert "; 2 rows were removed whose ids were stored twice ('a', 'c')" in printed
    found = clara("index", "upgrade", "--model", model, "--json", f"{older}-copy").stdout
    assert json.loads(found) == {
        "index": f"{older}-copy",
        "changed": True,
        "format_version": 3,
        "fingerprint": Clara.from_pretrained(model).fingerprint,
        "duplicate_ids": ["a", "c"],
        "removed_rows": 2,
        "index_documents": 3,
        "index_rows": len(index),
    }
    assert "duplicate ids: none\n" in clara("info", older).stdout


def test_an_upgrade_of_what_is_not_that_model_s(
    clara, refused, model, other_model, index, tmp_path
):
    line = refused("index", "upgrade", "--model", other_model, index)
    assert "was written by another model" in line
    assert "name the model that wrote it" in line
    assert "not found" in refused("index", "upgrade", "--model", model, str(tmp_path / "none"))
    assert "--model" in refused("index", "upgrade", str(tmp_path), code=2)


# Paths


@pytest.mark.parametrize("name", ["-index", "~nobody-of-this-name", "s3:index", "ü #?%20 x"])
def test_odd_paths_work(clara, compress, model, write_corpus, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    file = write_corpus(count=2)
    clara(*compress(file, name))
    clara(*compress(file, name, "--resume"))
    clara("search", "--model", model, "--index", name, "What?")
    clara("info", "--", name)
    clara("index", "upgrade", "--model", model, "--", name)
    assert [file.name for file in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["a\tb", "new/a\nb", "a\x1b[31m"])
def test_paths_that_lance_cannot_have_are_one_line(
    refused, compress, write_corpus, tmp_path, monkeypatch, name, never_computed
):
    monkeypatch.chdir(tmp_path)
    line = refused(*compress(write_corpus(count=2), name))
    assert "holds the control character" in line
    assert list(tmp_path.iterdir()) == []
