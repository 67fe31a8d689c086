"""Versions, joined files, and room on the disk."""

import copy
import datetime
import os
import pickle

import lance
import pytest
import torch

from clara.index import Compacted, Details, MemoryIndex, MemoryIndexError, build
from clara.index.snapshot import Snapshot
from clara.memory.documents import CompressedDocuments


@pytest.fixture
def made(make_index, make_documents):
    """An index of four commits after the first, in versions 1 to 5."""
    index = make_index(columns={"year": int})
    index.add(make_documents(["a#0", "a#1", "b"]), {"b": Details({"year": 7})})
    index.add(make_documents(["c", "d"]))
    index.upsert(make_documents(["a#0", "e"]), {"a": Details({"year": 8})})
    index.delete(["c"])
    return index


def files(index):
    return len(os.listdir(os.path.join(index.path, "data")))


def everything(index):
    """What is read and found, to compare."""
    memory = CompressedDocuments.concatenate(index)
    hits = index.search(torch.ones(2, 8), 20)[0]
    return (
        (memory.ids, memory.texts, memory.memory.tolist(), index.ids(), list(index.documents())),
        [(hit.id, hit.row, hit.score, hit.metadata, hit.place) for hit in hits],
    )


def test_each_commit_is_a_version(made):
    before = datetime.datetime.now(datetime.timezone.utc)
    versions = made.versions()
    assert [(each.number, each.documents, each.rows) for each in versions] == [
        (1, 0, 0),
        (2, 2, 3),
        (3, 4, 5),
        (4, 5, 5),
        (5, 4, 4),
    ]
    times = [each.time for each in versions]
    assert times == sorted(times)
    assert before - times[0] < datetime.timedelta(minutes=5)
    assert times[-1] <= before


def test_a_version_is_read_as_it_was(made, make_documents):
    old = MemoryIndex.open(made.path, version=3)
    copies = [old, copy.deepcopy(old), pickle.loads(pickle.dumps(old))]
    made.add(make_documents(["f"]))
    for each in copies:
        assert each.ids() == ["a#0", "a#1", "b", "c", "d"]
        assert each.info()["documents"] == 4
        (hit,) = each.search(make_documents(["c"]).memory, 1)[0]
        assert (hit.id, hit.row) == ("c", 3)
        for change in (
            lambda each=each: each.add(make_documents(["x"])),
            lambda each=each: each.upsert(make_documents(["x"])),
            lambda each=each: each.delete(["a"]),
            each.compact,
            lambda each=each: each.clean_up(keep_versions=1),
        ):
            with pytest.raises(MemoryIndexError, match="version 3 is open, which can only be read"):
                change()
    assert MemoryIndex.open(made.path).ids() == ["b", "d", "a#0", "e", "f"]


@pytest.mark.parametrize("number", [6, 99])
def test_versions_that_are_not_there(made, number):
    for do in (lambda: MemoryIndex.open(made.path, version=number), lambda: made.restore(number)):
        with pytest.raises(MemoryIndexError, match=f"version {number} is not there.* 1 to 5, 5 of"):
            do()
    with pytest.raises(ValueError, match="version must be at least 1, got 0"):
        made.restore(0)
    with pytest.raises(TypeError, match="version must be an integer"):
        MemoryIndex.open(made.path, version="3")


def test_a_version_is_restored(made, make_documents):
    reader = MemoryIndex.open(made.path)
    last = everything(made)
    old = everything(MemoryIndex.open(made.path, version=3))
    reader.search(torch.ones(2, 8), 1)
    made.restore(3)
    assert [each.number for each in made.versions()] == [1, 2, 3, 4, 5, 6]
    for each in (made, reader, MemoryIndex.open(made.path)):
        assert everything(each) == old
    made.restore(6)  # which it is
    assert len(made.versions()) == 6
    reader.add(make_documents(["f"]))
    assert made.ids()[-2:] == ["d", "f"]
    made.restore(5)
    assert everything(reader) == last


def test_a_writer_that_a_restored_version_overtook_writes_again(made, make_documents, monkeypatch):
    plain = build._execute
    for change in (
        lambda: made.upsert(make_documents(["b", "f"])),
        lambda: made.delete(["a"]),
    ):

        def late(builder, table):
            monkeypatch.undo()  # the next try is as always
            MemoryIndex.open(made.path).restore(2)
            return plain(builder, table)

        monkeypatch.setattr(build, "_execute", late)
        change()
    assert made.ids() == MemoryIndex.open(made.path).ids() == ["b"]


def test_an_insertion_that_a_restored_version_overtook(made, make_documents, before_insertion):
    before_insertion(lambda: MemoryIndex.open(made.path).restore(2))
    made.add(make_documents(["f"]))
    assert made.ids() == MemoryIndex.open(made.path).ids() == ["a#0", "a#1", "b", "f"]


def test_compacting_changes_no_answer(made):
    reader = MemoryIndex.open(made.path)
    before = everything(reader)
    assert files(made) == 3
    assert made.compact() == Compacted(removed=3, written=1)
    for each in (made, reader, MemoryIndex.open(made.path)):
        assert everything(each) == before
    dataset = lance.dataset(made.path)
    assert len(dataset.get_fragments()) == 1
    assert dataset.get_fragments()[0].num_deletions == 0
    assert made.compact() == Compacted(0, 0)
    assert lance.dataset(made.path).version == dataset.version
    assert made.upsert(CompressedDocuments.concatenate(made)[[3]]) == (0, 1)
    assert made.ids() == ["b", "d", "a#0", "e"]


def test_one_deleted_row_of_many_is_written_away(make_index, make_documents):
    index = make_index((1, 4))
    names = [str(number) for number in range(2000)]
    index.add(make_documents(names, (1, 4)))
    index.delete(["7"])
    assert index.compact() == Compacted(1, 1)
    assert lance.dataset(index.path).get_fragments()[0].physical_rows == 1999
    assert index.ids() == [name for name in names if name != "7"]


def test_an_empty_index_is_compacted(make_index, make_documents):
    index = make_index()
    assert index.compact() == Compacted(0, 0)
    index.add(make_documents("a"))
    index.delete(["a"])
    index.compact()
    assert index.ids() == MemoryIndex.open(index.path).ids() == []


def test_a_change_while_files_are_joined(made, make_documents, monkeypatch):
    """Lance refuses what was overtaken, and it is done again."""
    latest = Snapshot.latest
    done = []
    assert len(made) == 4

    def stale(path):
        monkeypatch.undo()
        snapshot = latest(path)
        done.append(MemoryIndex.open(path).upsert(make_documents(["b"])))
        return snapshot

    monkeypatch.setattr(Snapshot, "latest", stale)
    assert made.compact().written == 1
    assert done == [(0, 1)]
    assert made.ids() == ["d", "a#0", "e", "b"]


def test_old_versions_are_removed(made, make_documents):
    before = everything(made)
    on_disk = made.info()["bytes"]
    old = MemoryIndex.open(made.path, version=3)
    reader = MemoryIndex.open(made.path)
    assert everything(reader) == before
    made.compact()
    made.clean_up(keep_versions=3)
    assert [each.number for each in made.versions()] == [5, 6, 7]
    grown = made.info()["bytes"]
    freed = made.clean_up(keep_versions=1)
    assert freed == grown - made.info()["bytes"] > 0
    assert made.info()["bytes"] < on_disk
    assert [(each.number, each.documents, each.rows) for each in made.versions()] == [(7, 4, 4)]
    for each in (made, reader, MemoryIndex.open(made.path)):
        assert everything(each) == before
    with pytest.raises(MemoryIndexError, match="version 3 is not there, or was removed"):
        made.restore(3)
    with pytest.raises(MemoryIndexError) as caught:
        old.ids()
    assert "\n" not in str(caught.value)
    made.add(make_documents("x"))
    assert MemoryIndex.open(made.path).ids() == ["b", "d", "a#0", "e", "x"]


@pytest.mark.parametrize("kind", ["data", "_deletions"])
def test_a_version_that_a_killed_clean_up_has_begun_to_remove(made, make_documents, kind):
    made.upsert(make_documents(["b", "d"]))
    made.compact()
    last = Snapshot.latest(made.path)
    kept = {file.path for part in last.dataset.get_fragments() for file in part.data_files()}
    folder = os.path.join(made.path, kind)
    gone = sorted(name for name in os.listdir(folder) if name not in kept)[0]
    os.remove(os.path.join(folder, gone))
    there = [each.number for each in made.versions()]
    assert last.version in there
    assert there != list(range(1, last.version + 1))
    for number in set(range(1, last.version + 1)) - set(there):
        with pytest.raises(MemoryIndexError, match=f"files of version {number} are gone"):
            made.restore(number)
    assert Snapshot.latest(made.path).version == last.version
    made.restore(there[0])
    made.restore(last.version)
    before = everything(made)
    made.clean_up(keep_versions=1)
    assert [each.number for each in made.versions()] == [last.version + 2]
    assert everything(MemoryIndex.open(made.path)) == before


def test_versions_are_removed_by_age(made):
    assert made.clean_up(older_than=datetime.timedelta(hours=1)) == 0
    assert len(made.versions()) == 5
    assert made.clean_up(older_than=datetime.timedelta(0)) > 0
    assert [each.number for each in made.versions()] == [5]


def test_files_that_a_killed_writer_left(made):
    left = os.path.join(made.path, "data", "0" * 24 + "b1c2d3e4f5061728394a5b6c7d.lance")
    with open(left, "wb") as file:
        file.write(bytes(5000))
    made.clean_up(keep_versions=1)
    assert os.path.exists(left)
    made.clean_up(keep_versions=1, unfinished=True)
    assert not os.path.exists(left)
    assert made.ids() == ["b", "d", "a#0", "e"]


@pytest.mark.parametrize(
    ("arguments", "error", "reason"),
    [
        ({}, ValueError, "give one of keep_versions and older_than"),
        ({"keep_versions": 1, "older_than": datetime.timedelta(1)}, ValueError, "give one of"),
        ({"keep_versions": 0}, ValueError, "keep_versions must be at least 1, got 0"),
        ({"keep_versions": True}, TypeError, "keep_versions must be an integer"),
        ({"older_than": 3}, TypeError, "older_than must be a timedelta, got int"),
        ({"older_than": -datetime.timedelta(1)}, ValueError, "must not be negative"),
    ],
)
def test_versions_are_not_removed_by_mistake(made, arguments, error, reason):
    with pytest.raises(error, match=reason):
        made.clean_up(**arguments)
    assert len(made.versions()) == 5


def test_a_read_that_lost_its_files_is_done_again(made, make_documents, monkeypatch):
    """Others may remove a version between its being opened and read."""
    reader = MemoryIndex.open(made.path)
    assert len(reader) == 4
    plain = type(reader)._current
    calls = []

    def current(handle):
        contents = plain(handle)
        if handle is reader and not calls:
            calls.append(None)
            calls.append(made.upsert(make_documents(["b", "d", "a#0", "e"])))
            made.compact()
            made.clean_up(keep_versions=1)
        return contents

    monkeypatch.setattr(type(reader), "_current", current)
    assert reader.get(["e", "b"]).ids == ["e", "b"]
    assert calls[1:] == [(0, 4)]
