"""Damage is found wherever it is, named, and repaired where the text is enough."""

from pathlib import Path

import pytest
import torch

from clara.data.marks import Mark
from clara.index import Damaged, Details, MemoryIndex, MemoryIndexError, checking
from clara.index.snapshot import Snapshot, file_of
from clara.memory.documents import CompressedDocuments

NAMES = ["first", "second#0", "second#1", "third", "fourth"]


def flip(path, needle, skip=1):
    """Change one byte of the only place in an index's files that holds these bytes."""
    for file in Path(path, "data").iterdir():
        data = bytearray(file.read_bytes())
        if needle in data:
            assert data.count(needle) == 1
            data[data.find(needle) + skip] ^= 0xFF
            file.write_bytes(data)
            return
    raise AssertionError(needle)


def raw(memory):
    return memory.contiguous().view(torch.uint8).numpy().tobytes()


@pytest.fixture
def made(make_index, make_documents):
    """An index of two files, and what is in it."""
    index = make_index((2, 8), columns={"note": str}, ranking="mean")
    documents = make_documents(NAMES)
    details = {
        name: Details({"note": f"the note of {name}"}, "s", "d", (Mark(5, "page 2"),))
        for name in ("first", "second", "third", "fourth")
    }
    index.add(documents[:3], {name: details[name] for name in ("first", "second")})
    index.add(documents[3:], {name: details[name] for name in ("third", "fourth")})
    return index, documents


def found(index):
    return list(MemoryIndex.open(index.path).verify(apart=False))


def test_nothing_is_damaged(made):
    index, _ = made
    assert found(index) == []
    index.delete(["second"])
    assert found(index) == []


def test_every_damage_is_named(made):
    index, documents = made
    flip(index.path, raw(documents.memory[2]))
    flip(index.path, documents.texts[0].encode())
    flip(index.path, b"the note of third")
    flip(index.path, raw(documents.memory[4].mean(0)))
    assert found(index) == [
        ("first", "first", "text"),
        ("second", "second#1", "memory"),
        ("third", "third", "metadata"),
        ("fourth", "fourth", "mean"),
    ]


def test_damaged_names(make_index, make_documents):
    index = make_index()
    documents = make_documents(["first", "second", "third"])
    documents.document_ids[1] = "document of row two"
    index.add(documents)
    flip(index.path, b"document of row two", 0)
    (damaged,) = found(index)
    assert damaged.what == "names"
    assert damaged.row in (None, "second")


def test_damage_in_earlier_formats(make_older, make_documents):
    index = make_older()
    index.add(make_documents(["first", "second"]))
    flip(index.path, make_documents(["second"]).texts[0].encode())
    assert found(index) == [("second", "second", "text or memory")]


def test_many_damaged_rows(make_index, make_documents):
    index = make_index((1, 8))
    documents = make_documents([f"d{n}" for n in range(3000)], (1, 8))
    index.add(documents)
    for row in (0, 1500, 1501, 2999):
        flip(index.path, raw(documents.memory[row]))
    assert found(index) == [(f"d{n}", f"d{n}", "memory") for n in (0, 1500, 1501, 2999)]


def compressor(documents, calls):
    """What the model would make of whole documents: the same rows as before."""

    def compress(asked):
        calls.append([document.id for document in asked])
        rows = []
        for document in asked:
            own = [row for row, name in enumerate(documents.document_ids) if name == document.id]
            assert document.text == "".join(documents.texts[row] for row in own)
            assert document.title == documents.titles[own[0]]
            rows += own
        return documents[rows]

    return compress


def test_memory_is_made_again_from_the_text(made, assert_same):
    index, documents = made
    before = {entry.document_id: entry for entry in index.documents()}
    places = {hit.id: hit.place for hit in index.search(torch.ones(1, 8), 9)[0]}
    flip(index.path, raw(documents.memory[2]))
    flip(index.path, raw(documents.memory[4].mean(0)))
    flip(index.path, documents.texts[0].encode())
    flip(index.path, raw(documents.memory[0]))
    calls = []
    mended = MemoryIndex.open(index.path).repair(compressor(documents, calls), apart=False)
    left = [Damaged("first", "first", "text"), Damaged("first", "first", "memory")]
    assert mended == (["second", "fourth"], left)
    assert calls == [["second", "fourth"]]
    index = MemoryIndex.open(index.path)
    assert list(index.verify(apart=False)) == left
    assert index.ids() == ["first", "third", "second#0", "second#1", "fourth"]
    assert_same(index.get_documents(["second", "fourth"]), documents[[1, 2, 4]])
    assert {entry.document_id: entry for entry in index.documents()} == before
    hits = index.search(torch.ones(1, 8), 9, ids=["second", "third", "fourth"])[0]
    del places["first"]
    assert {hit.id: hit.place for hit in hits} == places
    index.delete(["first"])
    assert list(index.verify(apart=False)) == []
    assert index.repair(compressor(documents, calls), apart=False) == ([], [])


def test_a_repair_by_another_model_is_refused(made):
    index, documents = made
    flip(index.path, raw(documents.memory[4]))
    other = CompressedDocuments(
        documents.memory,
        documents.ids,
        documents.document_ids,
        documents.token_counts,
        documents.texts,
        documents.titles,
        "e" * 64,
    )
    with pytest.raises(MemoryIndexError, match="another model"):
        MemoryIndex.open(index.path).repair(compressor(other, []), apart=False)
    assert [each.row for each in found(index)] == ["fourth"]


def test_a_file_that_cannot_be_read_is_named(made):
    index, documents = made
    flip(index.path, raw(documents.memory[4]))
    (first, _) = Snapshot.latest(index.path).fragments
    file = Path(index.path, "data", file_of(first))
    file.write_bytes(file.read_bytes()[:-1])
    assert found(index) == [
        (None, None, f"file {file.name}: it cannot be read"),
        ("fourth", "fourth", "memory"),
    ]


@pytest.mark.slow
@pytest.mark.usefixtures("checked_by_a_new_python")
def test_a_file_that_ends_its_reader_is_named(made):
    """Lance allocates what the end of a file says, however much it is, and aborts."""
    index, documents = made
    flip(index.path, raw(documents.memory[4]))
    (first, _) = Snapshot.latest(index.path).fragments
    file = Path(index.path, "data", file_of(first))
    data = file.read_bytes()
    file.write_bytes(data[:-16] + b"\xff" * 4 + data[-12:])
    assert list(MemoryIndex.open(index.path).verify()) == [
        (None, None, f"file {file.name}: the process that read it ended with signal 6"),
        ("fourth", "fourth", "memory"),
    ]


def test_a_reader_that_does_not_start_blames_no_file(made, monkeypatch):
    index, _ = made
    monkeypatch.setattr(checking, "_MODULE", "clara.index.no_such_module")
    with pytest.raises(MemoryIndexError, match="ended with status 1 before it read a file"):
        list(index.verify())
