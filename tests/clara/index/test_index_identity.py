"""Which index a handle stands for: rebuilt folders, copies, pickles."""

import copy
import io
import pickle
import shutil
from datetime import timedelta
from types import SimpleNamespace

import lance
import pytest
import torch

from clara.index import MemoryIndex, MemoryIndexError, searching
from clara.index.maintenance import upgrade
from clara.index.snapshot import Snapshot

ROUND = {"fingerprint": "f" * 64, "memory_tokens": 2, "hidden_size": 8}


@pytest.fixture
def rebuild(make_documents, make_older):
    """Delete the folder of an index and build another one there."""

    def build(index, names, commits=1, older=False, **fields):
        shutil.rmtree(index.path)
        new = make_older() if older else MemoryIndex.create(index.path, **(ROUND | fields))
        for start in range(commits):
            new.add(make_documents(names[start::commits], fingerprint=new.fingerprint))
        return new

    return build


@pytest.mark.parametrize("commits", [1, 2, 3])  # the first index has two
@pytest.mark.parametrize("names", ["defg", "bcx", "b"])
@pytest.mark.parametrize("older", [False, True])
def test_a_handle_goes_on_with_an_index_built_anew(
    make_index, make_older, make_documents, rebuild, assert_same, commits, names, older
):
    index = make_older() if older else make_index()
    index.add(make_documents("a"))
    index.add(make_documents("bc"))
    before = make_documents("abc")
    assert index.search(before.memory[1], 1)[0][0].id == "b"
    names = list(names)
    expected = [name for start in range(commits) for name in names[start::commits]]
    after = make_documents(names)
    uses = {
        "len": lambda: len(index),
        "ids": index.ids,
        "contains": lambda: index.contains(["a", names[0]]),
        "get": lambda: index.get(names).ids,
        "search": lambda: index.search(after.memory[-1], 1)[0][0].id,
        "iterate": lambda: [name for batch in index for name in batch.ids],
        "info": lambda: index.info()["count"],
        "texts": lambda: [row.text for row in index.texts(names)],
    }
    right = {
        "len": len(names),
        "ids": expected,
        "contains": [False, True],
        "get": names,
        "search": names[-1],
        "iterate": expected,
        "info": len(names),
        "texts": after.texts,
    }
    for use, call in uses.items():  # each the first to notice
        rebuild(index, names, commits, older)
        assert call() == right[use], use
    rebuild(index, names, commits, older)
    index.add(make_documents("z"))
    assert index.ids() == MemoryIndex.open(index.path).ids() == [*expected, "z"]
    with pytest.raises(MemoryIndexError, match="no document has the id 'a'"):
        index.get(["a"])


@pytest.mark.parametrize(
    "fields",
    [
        {"fingerprint": "e" * 64},
        {"hidden_size": 9},
        {"dtype": torch.float16},
        {"settings": {"a": 1}},
    ],
)
def test_an_index_of_another_kind_is_not_served(make_index, make_documents, rebuild, fields):
    index = make_index()
    index.add(make_documents("ab"))
    iteration = iter(index)
    rebuild(index, [], commits=0, **fields)
    documents = make_documents("cd")
    for use in (
        index.ids,
        index.info,
        lambda: len(index),
        lambda: iter(index),
        lambda: next(iteration),
        lambda: index.get(["a"]),
        lambda: index.contains(["a"]),
        lambda: index.search(documents.memory, 1),
        lambda: index.add(documents),
    ):
        with pytest.raises(MemoryIndexError, match="was replaced by another index") as caught:
            use()
        assert "\n" not in str(caught.value)
    assert MemoryIndex.open(index.path).ids() == []


def test_an_index_that_is_gone_is_not_found_until_it_is_back(make_index, make_documents, rebuild):
    index = make_index()
    index.add(make_documents("ab"))
    folder = shutil.move(index.path, index.path + "-away")
    with pytest.raises(MemoryIndexError, match="not found"):
        index.ids()
    shutil.move(folder, index.path)
    assert index.ids() == ["a", "b"]


def test_a_search_begun_before_the_replacement_finds_the_new_documents(
    make_index, make_documents, rebuild, monkeypatch
):
    index = make_index()
    index.add(make_documents("abc"))
    real = searching.cosine_topk

    def replaced_meanwhile(*arguments):
        monkeypatch.setattr(searching, "cosine_topk", real)
        rebuild(index, list("def"))
        return real(*arguments)

    monkeypatch.setattr(searching, "cosine_topk", replaced_meanwhile)
    memory = make_documents("e").memory
    assert index.search(memory, 1)[0][0].id == "e"


def test_an_iteration_says_that_the_index_was_replaced(make_index, make_documents, rebuild):
    index = make_index()
    index.add(make_documents("ab"))
    iteration = iter(index)  # of the index that is there at this moment
    rebuild(index, list("abc"))
    with pytest.raises(MemoryIndexError, match="replaced by another index while it was read"):
        list(iteration)
    assert [name for batch in index for name in batch.ids] == ["a", "b", "c"]


def test_a_copied_folder_is_the_same_index(tmp_path, make_index, make_documents):
    index = make_index()
    index.add(make_documents("ab"))
    index.search(make_documents("a").memory, 1)
    shutil.copytree(index.path, tmp_path / "copy")
    shutil.rmtree(index.path)
    shutil.move(tmp_path / "copy", index.path)
    contents = index._current()
    assert index.ids() == ["a", "b"]
    assert index._current() is contents  # nothing is read again
    index.add(make_documents("c"))
    assert index.ids() == ["a", "b", "c"]


@pytest.mark.parametrize("older", [False, True])
@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, lambda index: pickle.loads(pickle.dumps(index))]
)
def test_a_copy_is_another_handle_of_the_folder(
    make_index, make_older, make_documents, copied, older
):
    index = make_older() if older else make_index()
    index.add(make_documents("ab"))
    index.search(make_documents("a").memory, 1)
    other = copied(index)
    assert type(other) is MemoryIndex
    assert other.path == index.path
    other.add(make_documents("c"))
    index.add(make_documents("d"))
    assert index.ids() == other.ids() == ["a", "b", "c", "d"]
    assert other.search(make_documents("d").memory, 1)[0][0].id == "d"


def test_a_pickle_holds_no_documents(make_index, make_documents):
    index = make_index((4, 1024))
    index.add(make_documents([f"d{n}" for n in range(50)], (4, 1024)))
    index.search(torch.randn(4, 1024), 1)
    stored = io.BytesIO()
    torch.save(index, stored)
    assert len(stored.getvalue()) < 2000
    assert len(pickle.dumps(index)) < 500


@pytest.mark.parametrize("older", [False, True])
def test_a_pickle_of_an_index_that_was_replaced_says_so(
    make_index, make_older, make_documents, rebuild, older
):
    index = make_older() if older else make_index()
    index.add(make_documents("ab"))
    pickled = pickle.dumps(index)
    rebuild(index, list("ab"), older=older)
    with pytest.raises(MemoryIndexError, match="was replaced by another index; open it again"):
        pickle.loads(pickled)


def test_ids_are_looked_up_in_the_version_that_is_read(
    tmp_path, make_index, make_documents, monkeypatch
):
    """Another index takes the place of the first while its files can still be read."""
    index = make_index()
    index.add(make_documents("ab"))
    other = MemoryIndex.create(tmp_path / "other", **ROUND)
    other.add(make_documents("ba"))
    shutil.copytree(f"{index.path}/data", f"{other.path}/data", dirs_exist_ok=True)
    real = MemoryIndex._current

    def replaced_afterwards(self):
        contents = real(self)
        monkeypatch.setattr(MemoryIndex, "_current", real)
        shutil.rmtree(index.path)
        shutil.move(other.path, index.path)
        return contents

    monkeypatch.setattr(MemoryIndex, "_current", replaced_afterwards)
    assert index.get(["a"]).ids == ["a"]
    assert index.ids() == ["b", "a"]
    assert index.get(["a"]).ids == ["a"]


def test_older_indexes_without_their_first_version_are_told_apart(make_older, make_documents):
    """Lance's own cleanup removes old versions."""
    indexes = [make_older(name) for name in ("one", "two")]
    for index in indexes:
        index.add(make_documents("a"))
        index.add(make_documents("b"))
        lance.dataset(index.path).cleanup_old_versions(older_than=timedelta(0))
        assert [each["version"] for each in lance.dataset(index.path).versions()] == [3]
        assert index.ids() == MemoryIndex.open(index.path).ids() == ["a", "b"]
        upgrade(index.path)
    assert len({Snapshot.latest(index.path).identity for index in indexes}) == 2


def test_documents_without_a_fingerprint_are_not_added(make_index, make_documents):
    index = make_index()
    with pytest.raises(TypeError, match="fingerprint must be a string, got None"):
        index.add(make_documents("a", fingerprint=None))
    documents = make_documents("a")
    object.__setattr__(documents, "fingerprint", None)
    with pytest.raises((TypeError, MemoryIndexError)):
        index.add(documents)
    assert len(index) == 0


def test_states_are_what_they_were(make_index):
    """The files of views are named by them."""

    def part(number, file, rows, deleted=None):
        metadata = SimpleNamespace(
            files=[SimpleNamespace(path=file)], deletion_file=deleted, num_rows=rows
        )
        return SimpleNamespace(fragment_id=number, metadata=metadata, num_deletions=2)

    parts = [
        part(0, "a.lance", 3),
        part(2, "ü.lance", 4, SimpleNamespace(id=7, read_version=9)),
        part(3, "c.lance", 5),
    ]
    states = [
        "609714941904fc136b02e8c60c596077",
        "8f3d3025e9199bf8cc1546f2667793b4",
        "77cade39505493e7912b6474482ca102",
    ]
    path = make_index().path
    empty = Snapshot.latest(path)
    assert (empty.state, empty.beginnings) == ("7ebb3c7c2a87b1a2f8a7ed729ecb040d", {})
    for count in (1, 2, 3):
        snapshot = Snapshot.latest(path)
        snapshot.fragments = parts[:count]
        assert snapshot.state == states[count - 1]
        assert list(snapshot.beginnings.items()) == list(zip(states, [3, 7, 12]))[:count]
