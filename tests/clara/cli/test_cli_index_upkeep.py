"""The commands of `clara index` for an index that is there."""

import json
import os
import warnings
from pathlib import Path

import pytest
import torch

from clara import Clara, ClaraConfig
from clara.cli import index_documents
from clara.cli.examples import EXAMPLES
from clara.cli.index import index as group
from clara.index import MemoryIndex
from clara.sync.migrating import Migration

HOSTILE = "b\u202e\x1b[31m'; --"
LONG = " ".join(f"Sentence {n} of a long document." for n in range(20))
RECORDS = [
    {"id": "a", "contents": LONG, "title": "A", "since": 3},
    {"id": HOSTILE, "contents": "\x1b[2JShort.\r\nYes", "title": "T\x07", "who": "\x1b[1mme"},
    *({"id": f"c{n}", "contents": f"Text {n}."} for n in range(10)),
]


@pytest.fixture(scope="module")
def loaded(model):
    return Clara.from_pretrained(model)


@pytest.fixture
def path(loaded, write_corpus, tmp_path):
    """An index of twelve documents of one source."""
    loaded.build_index(tmp_path / "index", [f"docs={write_corpus(RECORDS)}"])
    return str(tmp_path / "index")


def test_list(clara, path):
    lines = clara("index", "list", path).stdout.splitlines()
    assert len(lines) == 13
    assert lines[0].startswith("a [docs, ")
    assert lines[0].endswith(", since=3] A")
    assert lines[1].startswith("b\ufffd\ufffd[31m'; -- [docs, ")
    assert lines[1].endswith(" who=\ufffd[1mme] T\ufffd")
    assert lines[-1] == f"12 documents of {path}"
    found = json.loads(clara("index", "list", path, "--json", "--limit", "2").stdout)
    assert [each["id"] for each in found["documents"]] == ["a", HOSTILE]
    first = found["documents"][0]
    assert (first["metadata"], first["source"]) == ({"since": 3, "who": None}, "docs")
    assert first["rows"] > 1
    assert len(first["digest"]) == 64
    printed = clara("index", "list", path, "--prefix", "c", "--json").stdout
    assert len(json.loads(printed)["documents"]) == 10
    assert clara("index", "list", path, "--prefix", "'").stdout == f"0 documents of {path}\n"


def test_get(clara, refused, path):
    printed = clara("index", "get", path, "c3", HOSTILE).stdout
    assert printed == (
        "id: c3\nsource: docs\ntokens: "
        + printed.split("tokens: ")[1].split("\n")[0]
        + "\n\nText 3.\n\nid: b\ufffd\ufffd[31m'; --\ntitle: T\ufffd\nsource: docs\n"
        "who: \ufffd[1mme\ntokens: "
        + printed.split("tokens: ")[2].split("\n")[0]
        + "\n\n\ufffd[2JShort.\nYes\n"
    )
    found = json.loads(clara("index", "get", path, "a", "--json").stdout)["documents"]
    assert [each["contents"] for each in found] == [LONG]
    assert "no document has the id 'no\\x1b'" in refused("index", "get", path, "no\x1b")


def test_delete(clara, refused, path):
    index = MemoryIndex.open(path)
    assert (
        clara("index", "delete", path, "a").stdout == f"1 deleted; index of 11 documents: {path}\n"
    )
    line = refused("index", "delete", path, "c1", "c2")
    assert line.endswith(
        f"2 of 11 documents of {path} are more than a tenth; add --yes to delete them"
    )
    assert len(index.digests()) == 11
    found = json.loads(clara("index", "delete", path, "c1", HOSTILE, "--yes", "--json").stdout)
    assert found == {"index": path, "deleted": 2, "index_documents": 9}
    assert "no document has the id 'c1'" in refused("index", "delete", path, "c1", "c2", "--yes")
    assert "1 deleted" in clara("index", "delete", path, "c1", "c2", "--yes", "--missing-ok").stdout
    line = refused("index", "delete", path, "--source", "x\x1b")
    assert line.endswith("no document is of the source 'x\\x1b'; there are: 'docs'")
    for arguments in ((), ("c3", "--source", "docs")):
        assert "give ids of documents" in refused("index", "delete", path, *arguments, code=2)
    clara("index", "delete", path, "--source", "docs", "--yes")
    assert index.digests() == {}


def test_somebody_is_asked_before_a_large_deletion(clara, refused, path, monkeypatch):
    answers = [False, True]
    monkeypatch.setattr(index_documents, "confirmed", lambda question: answers.pop(0))
    assert "add --yes" in refused("index", "delete", path, "c1", "c2")
    clara("index", "delete", path, "c1", "c2")
    assert answers == []


def test_what_is_exported_builds_the_same_documents(clara, refused, path, model, tmp_path):
    file = str(tmp_path / "out.jsonl")
    assert clara("index", "export", path, "-o", file).stdout.startswith(f"{file}: 12 documents, ")
    other = str(tmp_path / "other")
    clara("index", "build", "--model", model, "--output", other, f"docs={file}")
    ids = [each["id"] for each in RECORDS]
    one, two = (
        json.loads(clara("index", "get", each, *ids, "--json").stdout)["documents"]
        for each in (path, other)
    )
    assert one == two  # digests too
    line = clara("index", "build", "--model", model, "--output", path, f"out={file}").stdout
    assert line.startswith("0 added, 0 replaced, 12 unchanged, ")
    found = json.loads(clara("index", "export", path, "-o", file, "--prefix", "c", "--json").stdout)
    assert (found["documents"], found["bytes"]) == (10, os.path.getsize(file))
    assert "is not a file" in refused("index", "export", path, "-o", str(tmp_path))
    nowhere = str(tmp_path / "nowhere" / "file")
    assert f"{tmp_path}/nowhere: no such folder" in refused("index", "export", path, "-o", nowhere)


@pytest.mark.parametrize("command", [("get", "c3"), ("export", "--prefix", "c3")])
def test_documents_are_read_at_one_version(clara, path, loaded, tmp_path, monkeypatch, command):
    """Another process replaces a document between the list of documents and their texts."""
    real = MemoryIndex.texts

    def late(self, ids):
        monkeypatch.setattr(MemoryIndex, "texts", real)
        MemoryIndex.open(path).upsert(loaded.compress([{"id": "c3", "contents": LONG}]))
        return real(self, ids)

    monkeypatch.setattr(MemoryIndex, "texts", late)
    if command[0] == "export":
        file = tmp_path / "out.jsonl"
        clara("index", command[0], path, "-o", str(file), *command[1:])
        (found,) = map(json.loads, file.read_text().splitlines())
    else:
        printed = clara("index", command[0], path, *command[1:], "--json").stdout
        (found,) = json.loads(printed)["documents"]
    assert found["contents"] == "Text 3."
    assert len(MemoryIndex.open(path).entries(["c3"])[0].rows) > 1


def test_import(clara, refused, path, loaded, other_model, write_corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(Clara, "compress", None)  # nothing is compressed
    other = str(tmp_path / "other")
    assert clara("index", "import", other, path).stdout == (
        f"12 added, 0 replaced, 0 unchanged: {other}\n"
    )
    found = json.loads(clara("index", "import", other, path, "--json").stdout)
    assert found == {"index": other, "added": 0, "replaced": 0, "unchanged": 12, "duplicates": 0}
    monkeypatch.undo()
    changed = write_corpus([{"id": "c1", "contents": "Changed.", "since": 1, "who": "x"}])
    loaded.build_index(tmp_path / "third", [changed])
    line = refused("index", "import", other, str(tmp_path / "third"))
    assert line.endswith(
        "holds other documents with the ids 'c1'; choose skip or replace for duplicates"
    )
    arguments = ("index", "import", other, str(tmp_path / "third"), "--on-duplicate")
    assert "1 left out, whose ids are there" in clara(*arguments, "skip").stdout
    assert clara(*arguments, "replace").stdout.startswith("0 added, 1 replaced")
    strange = Clara.from_pretrained(other_model)
    strange.build_index(tmp_path / "strange", [changed])
    assert "another model" in refused("index", "import", other, str(tmp_path / "strange"))


def test_versions_of_hostile_fingerprints(clara, tmp_path):
    path = str(tmp_path / "index")
    kind = {"memory_tokens": 2, "hidden_size": 8}
    MemoryIndex.create(path, fingerprint="\x1b[31mEVIL\n1", **kind)
    Migration(path, {**kind, "fingerprint": "f" * 64}, Clara.compress).run()  # no documents
    first, _ = clara("index", "versions", path).stdout.splitlines()
    assert first.endswith("[31mEVIL 1")
    assert "\x1b" not in first


def test_versions_restore_and_compact(clara, refused, path):
    index = MemoryIndex.open(path)
    clara("index", "delete", path, "c1")
    found = json.loads(clara("index", "versions", path, "--json").stdout)["versions"]
    assert [each["documents"] for each in found] == [0, 0, 12, 11]
    lines = clara("index", "versions", path).stdout.splitlines()
    assert len(lines) == 4
    assert lines[-1].startswith(f"{found[-1]['number']}: 20")
    assert " UTC, 11 documents, " in lines[-1]
    number = found[-2]["number"]
    line = clara("index", "restore", path, str(number)).stdout
    assert line == f"version {number} is the last one again, 12 documents: {path}\n"
    assert "c1" in index.digests()
    assert "version 99" in refused("index", "restore", path, "99")
    clara("index", "delete", path, "c2")
    before = index.info()["bytes"]
    found = json.loads(clara("index", "compact", path, "--keep-versions", "1", "--json").stdout)
    assert (found["files_removed"], found["files_written"]) == (1, 1)
    assert found["bytes_before"] == before
    assert found["index_bytes"] == index.info()["bytes"] < before
    assert found["bytes_freed"] > 0
    assert len(index.versions()) == 1
    assert "nothing to join, 0 bytes freed" in clara("index", "compact", path).stdout
    assert "nothing to join" in clara("index", "compact", path, "--older-than", "7d").stdout
    assert "7d, 12h" in refused("index", "compact", path, "--older-than", "1w", code=2)
    arguments = ("index", "compact", path, "--older-than", "1d", "--keep-versions", "2")
    assert "exclude each other" in refused(*arguments, code=2)


def flip(path, needle: bytes) -> None:
    """Change a byte of the only place in an index's files that holds these bytes."""
    (file,) = [each for each in Path(path, "data").iterdir() if needle in each.read_bytes()]
    data = bytearray(file.read_bytes())
    assert data.count(needle) == 1
    data[data.find(needle) + 1] ^= 0xFF
    file.write_bytes(data)


def test_verify_and_repair(clara, refused, path, model, loaded, tmp_path, monkeypatch):
    assert clara("index", "verify", path).stdout == (f"12 documents, all as written: {path}\n")
    index = MemoryIndex.open(path)
    before = index.get(["a#1", HOSTILE, "c3"]).memory
    for row in before[:2]:
        flip(path, row.numpy().tobytes())
    result = clara("index", "verify", path, code=1)
    assert result.stdout.splitlines() == [
        "damaged: memory of document 'a', row 'a#1'",
        'damaged: memory of document "b\\u202e\\x1b[31m\'; --"',
    ]
    assert result.stderr == (
        f"error: {path}: 2 documents damaged; --repair --model MODEL makes memory again from "
        "the text\n"
    )
    arguments = ("index", "verify", path, "--repair")
    assert "--repair needs --model" in refused(*arguments, code=2)
    with monkeypatch.context() as patched:
        looks, verify = [], MemoryIndex.verify
        patched.setattr(MemoryIndex, "verify", lambda self: looks.append(self) or verify(self))
        found = json.loads(clara(*arguments, "--model", model, "--json").stdout)
    assert len(looks) == 1
    assert found["damaged"][0] == {"document_id": "a", "row": "a#1", "what": "memory"}
    assert (found["repaired"], found["left"]) == (["a", HOSTILE], [])
    assert torch.equal(index.get(["a#1", HOSTILE, "c3"]).memory, before)
    clara("index", "verify", path)
    flip(path, b"Text 3.")
    result = clara(*arguments, "--model", model, code=1)
    assert result.stdout == "damaged: text of document 'c3'\n"
    assert "1 document damaged; delete what cannot be repaired" in result.stderr
    clara("index", "delete", path, "c3")
    clara("index", "verify", path)


def test_a_document_with_damaged_metadata_is_deleted(clara, refused, path):
    flip(path, b"\x1b[1mme")
    result = clara("index", "verify", path, code=1)
    assert result.stdout == 'damaged: metadata of document "b\\u202e\\x1b[31m\'; --"\n'
    assert "damaged" in refused("index", "delete", path, "--source", "docs", "--yes")
    assert "1 deleted; index of 11 documents" in clara("index", "delete", path, HOSTILE).stdout
    assert clara("index", "verify", path).stdout == f"11 documents, all as written: {path}\n"


def test_a_repair_gives_no_second_warning_of_a_rate(clara, backbone, write_corpus, tmp_path):
    """That the model is not trained for it was said when the index was built."""
    config = ClaraConfig(
        memory_form="spans",
        compression_rate=2,
        rates=[2, 8],
        question_rate=2,
        document_length=64,
        dtype="float32",
    )
    spans = Clara.from_backbone(backbone, config)
    spans.save_pretrained(tmp_path / "spans")
    path = str(tmp_path / "index")
    with pytest.warns(UserWarning, match="not trained for compression rate 4"):
        spans.build_index(path, [write_corpus(count=2)], compression_rate=4, any_rate=True)
    index = MemoryIndex.open(path)
    before = index.get(["d1"]).memory
    flip(path, before.numpy().tobytes())
    arguments = ("index", "verify", path, "--repair", "--model", str(tmp_path / "spans"))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "the model is not trained for")
        assert clara(*arguments).stdout.endswith(f"1 document repaired: {path}\n")
    assert torch.equal(index.get(["d1"]).memory, before)


def test_compacting_keeps_where_sources_lie(clara, refused, path, model, tmp_path):
    clara("index", "compact", path, "--keep-versions", "1")
    other = tmp_path / "docs"
    other.mkdir()
    (other / "a.txt").write_text("text")
    line = refused("index", "build", "--model", model, "--index", path, str(other))
    assert "source 'docs' is " in line


def test_an_index_that_is_none(refused, model, tmp_path):
    for name in ("list", "versions", "compact"):
        assert "not an index" in refused("index", name, model)
    assert "not found" in refused("index", "get", str(tmp_path / "none"), "a")
    assert "not an index" in refused("index", "delete", model, "a")
    assert "not an index" in refused("index", "import", str(tmp_path / "new"), model)
    assert "not an index" in refused("index", "export", model, "-o", str(tmp_path / "file"))
    assert os.listdir(tmp_path) == []


def test_every_command_has_examples():
    names = {command.name for command in group.registered_commands}
    assert {f"index {name}" for name in names} <= set(EXAMPLES)
