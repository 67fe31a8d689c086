"""Ids in a build: of two sources, of chunks and of hostile texts."""

import json

import pytest

from clara.corpus import FieldNames
from clara.data import DataError
from clara.index import MemoryIndex
from clara.sync import BuildError
from tests.clara.sync.books import counts, jsonl, opened


def test_two_sources_with_one_id(build, tmp_path, stub):
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text(jsonl({"id": "x\u202e'", "contents": name}))
    a, b = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    build(a)
    with pytest.raises(BuildError) as raised:
        build(b)
    assert str(raised.value) == (
        '1 document has the id of a document that another source brought: "x\\u202e\'" (of source '
        "'a.jsonl'); rename them, or choose skip or replace for duplicates"
    )
    assert build(b, on_duplicate="skip").duplicates == 1
    assert stub.seen == ["x\u202e'"]
    assert counts(build(b, on_duplicate="replace")) == (0, 1, 0, 0, 0)
    assert opened(tmp_path).digests()["x\u202e'"][0] == "b.jsonl"


def test_of_ids_in_one_build_the_last_remains_and_the_next_build_changes_nothing(
    build, tmp_path, stub
):
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text(jsonl({"id": "x", "contents": name}))
    sources = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    built = build(*sources, on_duplicate="replace")
    assert (built.added, built.duplicates) == (1, 1)
    assert opened(tmp_path).texts(["x"])[0].text == "b"
    stub.seen = []
    assert counts(build(*sources, on_duplicate="replace")) == (0, 0, 1, 0, 0)
    assert stub.seen == []


def test_a_chunk_gets_the_name_of_a_document_that_is_gone(build, tmp_path):
    file = tmp_path / "a.jsonl"
    others = [{"id": f"c{n}", "contents": f"Text {n}."} for n in range(20)]

    def write(*records):
        file.write_text("".join(json.dumps(each) + "\n" for each in [*records, *others]))

    write({"id": "a", "contents": "short"}, {"id": "a#1", "contents": "gone later"})
    build(file)
    write({"id": "a", "contents": "long " * 10})
    built = build(file, on_error="skip")  # without pruning there is no place for it
    assert (built.replaced, built.failed) == (0, 1)
    steps = []
    built = build(file, prune=True, steps=steps)
    assert (built.replaced, built.deleted, built.failed, built.unchanged) == (1, 1, 0, 20)
    assert sum(steps[1:]) == steps[0]
    index = MemoryIndex.open(tmp_path / "index")
    assert index.entries(["a"])[0].rows == ["a#0", "a#1"]
    assert len(index.digests()) == 21
    assert build(file, prune=True).unchanged == 21
    # If deleting is not agreed to, it is a failure still.
    write({"id": "a", "contents": "short"}, *({"id": f"a#{n}", "contents": "x"} for n in (2, 3, 4)))
    build(file)
    write({"id": "a", "contents": "long " * 40})
    with pytest.raises(BuildError, match=r"its chunk would have the id of document 'a#.'"):
        build(file, prune=True)
    assert build(file, prune=True, confirm=lambda gone, of: True).replaced == 1


def test_ids_that_name_chunks_of_others(build, tmp_path):
    long = "A sentence that is longer than forty characters, by far."
    file = tmp_path / "a.jsonl"
    file.write_text(jsonl({"id": "a", "contents": long}, {"id": "a#1", "contents": "Short."}))
    failures = []
    with pytest.raises(BuildError):
        build(file, on_failure=failures.append)
    assert "document 'a#1' has the id of a chunk of another document" in str(failures[0])
    assert opened(tmp_path).ids() == ["a#0", "a#1"]
    other = tmp_path / "b.jsonl"
    other.write_text(jsonl({"id": "b#0", "contents": "Short."}))
    build(other)
    file.write_text(jsonl({"id": "a", "contents": long}, {"id": "b", "contents": long}))
    failures.clear()
    with pytest.raises(BuildError):
        build(file, on_failure=failures.append)
    assert "document 'b': its chunk would have the id of document 'b#0'" in str(failures[0])
    assert opened(tmp_path).texts(["b#0"])[0].text == "Short."


def test_hostile_ids_and_metadata_come_back(build, tmp_path):
    names = ["'; DROP TABLE x; --", '"quoted"', "\u202eevil\x1b[31m", "a\nb", "\U0001f600", "%_\\"]
    file = tmp_path / "a.jsonl"
    records = [{"id": name, "contents": "text", "m\x1b' or 1=1": name} for name in names]
    file.write_text(jsonl(*(dict(each, **{"m' or 1=1": each["id"]}) for each in records)))
    with pytest.raises(DataError, match="control characters"):
        build(file)
    fields = FieldNames(metadata=("m' or 1=1",))
    assert build(file, names=fields).added == len(names)
    entries = {entry.document_id: entry for entry in opened(tmp_path).documents()}
    assert {name: each.metadata for name, each in entries.items()} == {
        name: {"m' or 1=1": name} for name in names
    }
    file.write_text(jsonl(*({"id": name, "contents": "new"} for name in names[1:])))
    built = build(file, names=fields, prune=True, confirm=lambda *numbers: True)
    assert counts(built) == (0, len(names) - 1, 0, 1, 0)
    assert set(opened(tmp_path).digests()) == set(names[1:])
