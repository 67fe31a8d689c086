"""`clara.index.maintenance`: from formats 1 and 2 to the newest, in place."""

import fcntl
import os
import shutil
from pathlib import Path

import lance
import pytest
import torch

from clara.index import DuplicateIdError, MemoryIndex, MemoryIndexError, build, maintenance
from clara.index.header import Header
from clara.index.maintenance import upgrade
from clara.index.snapshot import Snapshot
from clara.memory.documents import CompressedDocuments

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
NEW = "a" * 64


@pytest.fixture(params=[1, 2])
def make_earlier(request, make_older, make_second):
    """An empty index of format 1 or 2."""
    return {1: make_older, 2: make_second}[request.param]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("ranking", ["flattened", "mean"])
def test_documents_stay_as_they_are(make_earlier, make_documents, assert_same, dtype, ranking):
    settings = {"rate": 16, "ranking": ranking}
    index = make_earlier(dtype=dtype, **settings)
    documents = make_documents([f"d{n}#0" for n in range(9)], dtype=dtype)
    index.add(documents[:4])
    index.add(documents[4:])
    files = {file: file.read_bytes() for file in Path(index.path, "data").iterdir()}
    before = MemoryIndex.open(index.path)
    queries = documents.padded.queries(ranking)
    found = [[hit.row for hit in hits] for hits in before.search(queries, 1)]
    version = lance.dataset(index.path).version

    told = []
    done = upgrade(index.path, fingerprint=NEW, on_progress=told.append)
    assert (done.path, done.changed, done.duplicate_ids, done.removed_rows) == (
        index.path,
        True,
        [],
        0,
    )
    assert sum(told) == 9
    assert lance.dataset(index.path).version == version + 1
    expected = CompressedDocuments(**{**vars(documents), "fingerprint": NEW})
    for reader in (index, before, MemoryIndex.open(index.path)):
        assert reader.ids() == documents.ids
        assert_same(CompressedDocuments.concatenate(reader), expected)
        assert [[hit.row for hit in hits] for hits in reader.search(queries, 1)] == found
        info = reader.info()
        assert (info["format_version"], info["fingerprint"]) == (3, NEW)
        assert info["settings"] == settings
    assert {file: file.read_bytes() for file in files} == files
    assert_same(contents_of(index.path, version), documents)
    more = make_documents("xyz", dtype=dtype, fingerprint=NEW)
    index.add(more)
    assert before.ids() == [*documents.ids, "x", "y", "z"]
    with pytest.raises(DuplicateIdError):
        before.add(make_documents(["w", "d3#0"], dtype=dtype, fingerprint=NEW))
    assert not upgrade(index.path, fingerprint=NEW).changed


def contents_of(path, version):
    """All documents of a version of an index."""
    dataset = lance.dataset(path, version=version)
    snapshot = Snapshot(dataset, Header.from_schema(dataset.schema, path), path, None)
    return CompressedDocuments.concatenate(snapshot.batches(100))


def test_means_of_an_upgraded_index_are_in_its_precision(make_second, make_documents):
    index = make_second(dtype=torch.bfloat16, ranking="mean")
    documents = make_documents("abc", dtype=torch.bfloat16)
    index.add(documents)
    assert index._current().corpus.dtype == torch.float32
    upgrade(index.path)
    means = documents.memory.float().mean(1).bfloat16()
    assert torch.equal(index._current().corpus.rows, means)


def test_an_empty_index(make_older, make_documents):
    index = make_older()
    assert upgrade(index.path).changed
    index.add(make_documents("ab"))
    with pytest.raises(DuplicateIdError):
        MemoryIndex.open(index.path).add(make_documents("xb"))
    assert index.ids() == ["a", "b"]


def test_a_new_index_gets_another_fingerprint_or_nothing(make_index, make_documents):
    index = make_index()
    index.add(make_documents("ab"))
    assert not upgrade(index.path).changed
    identity = index._snapshot.identity
    assert upgrade(index.path, fingerprint=NEW).changed
    assert index.ids() == ["a", "b"]
    assert (index.fingerprint, index._snapshot.identity) == (NEW, identity)
    index.add(make_documents("c", fingerprint=NEW))


def test_what_is_stored_twice_is_stored_once(make_older, make_documents, store_again, assert_same):
    index = make_older()
    first = make_documents("abc")
    index.add(first)
    for _ in range(2):
        store_again(index, make_documents("bdc", memory=torch.randn(3, 2, 8)))
    expected = CompressedDocuments.concatenate(index)
    assert expected.ids == ["a", "b", "c", "d"]
    done = upgrade(index.path)
    assert (done.duplicate_ids, done.removed_rows) == (["b", "c", "d"], 5)
    assert lance.dataset(index.path).count_rows() == 4
    for reader in (index, MemoryIndex.open(index.path)):
        assert_same(CompressedDocuments.concatenate(reader), expected)
        assert reader.info()["duplicate_ids"] == []
        assert reader.search(expected.memory[3], 1)[0][0].row == 3
    index.add(make_documents("e"))
    assert MemoryIndex.open(index.path).ids() == ["a", "b", "c", "d", "e"]


@pytest.mark.parametrize("step", ["write", "commit"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_an_upgrade_that_ends_half_way(
    make_older, make_documents, store_again, monkeypatch, step, when
):
    index = make_older()
    index.add(make_documents("abc"))
    store_again(index, make_documents("cd"))
    version = lance.dataset(index.path).version
    owner, name = {
        "write": (maintenance, "write_fragments"),
        "commit": (lance.LanceDataset, "commit"),
    }[step]
    real = getattr(owner, name)

    def killed(*arguments, **options):
        if when == "after":
            real(*arguments, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(owner, name, staticmethod(killed) if step == "commit" else killed)
    with pytest.raises(KeyboardInterrupt):
        upgrade(index.path, fingerprint=NEW)
    monkeypatch.undo()
    committed = step == "commit" and when == "after"
    assert lance.dataset(index.path).version == version + committed
    for reader in (index, MemoryIndex.open(index.path)):
        assert reader.ids() == ["a", "b", "c", "d"]
        assert reader.search(make_documents("d").memory, 1)[0][0].id == "d"
    index.add(make_documents("e", fingerprint=index.fingerprint))
    upgrade(index.path, fingerprint=NEW)
    info = index.info()
    assert (info["format_version"], info["fingerprint"], info["count"]) == (3, NEW, 5)


def test_documents_added_during_an_upgrade_are_kept(
    make_older, make_documents, store_again, monkeypatch
):
    """By a process that this one's lock does not exclude."""
    index = make_older()
    index.add(make_documents("ab"))
    real = maintenance._committed

    def late(*arguments):
        monkeypatch.setattr(maintenance, "_committed", real)
        store_again(index, make_documents("bc"))
        return real(*arguments)

    monkeypatch.setattr(maintenance, "_committed", late)
    done = upgrade(index.path)
    assert (done.duplicate_ids, done.removed_rows) == (["b"], 1)
    assert index.ids() == ["a", "b", "c"]
    assert index.info()["format_version"] == 3
    assert len(list(Path(index.path, "data").iterdir())) == 3  # none is left of the first try


def test_a_commit_that_fails_once_it_is_made_keeps_its_files(
    make_second, make_documents, assert_same, monkeypatch
):
    """As on a full disk, where Lance writes more after the manifest."""
    index = make_second()
    documents = make_documents("ab")
    index.add(documents)
    real = lance.LanceDataset.commit

    def failing(*arguments, **options):
        real(*arguments, **options)
        raise OSError("no space left on device")

    monkeypatch.setattr(lance.LanceDataset, "commit", failing)
    assert upgrade(index.path).changed
    assert index.info()["format_version"] == 3
    assert_same(MemoryIndex.open(index.path).get(["a", "b"]), documents)


def test_an_addition_that_meets_an_upgrade_is_not_lost(
    make_second, make_documents, assert_same, monkeypatch
):
    """The upgrade commits after the writer has looked at the index, before it has committed."""
    index = make_second()
    index.add(make_documents("ab"))
    monkeypatch.setattr(
        build.Snapshot, "latest", upgrading_afterwards(build.Snapshot.latest, index.path)
    )
    added = make_documents("c")
    index.add(added)
    monkeypatch.undo()
    reader = MemoryIndex.open(index.path)
    assert reader.info()["format_version"] == 3
    assert reader.ids() == ["a", "b", "c"]
    assert_same(reader.get(["c"]), added)


@pytest.mark.parametrize("change", ["add", "upsert"])
def test_an_upgrade_while_rows_are_written(
    make_second, make_documents, assert_same, before_insertion, change
):
    """Lance finds that the upgrade has overtaken it when it commits."""
    index = make_second()
    index.add(make_documents("ab"))
    added = make_documents("c")
    before_insertion(lambda: upgrade(index.path))
    getattr(index, change)(added)
    assert_same(index.get(["c"]), added)
    assert index.info()["format_version"] == 3
    assert MemoryIndex.open(index.path).ids() == ["a", "b", "c"]


def test_an_upgrade_while_rows_are_deleted(make_second, make_documents, monkeypatch, blind_locks):
    index = make_second()
    index.add(make_documents("ab"))
    plain = build._execute

    def late(builder, table):
        monkeypatch.undo()  # the next try is as always
        upgrade(index.path)
        return plain(builder, table)

    monkeypatch.setattr(build, "_execute", late)
    index.delete(["a"])
    assert index.info()["format_version"] == 3
    assert MemoryIndex.open(index.path).ids() == ["b"]


def test_an_insertion_that_fails_says_so(make_second, make_documents, before_insertion):
    """Nothing was upgraded: it is not tried again."""
    index = make_second()
    index.add(make_documents("ab"))

    def full():
        raise MemoryIndexError("no room")

    before_insertion(full)
    with pytest.raises(MemoryIndexError, match="no room"):
        index.add(make_documents("c"))
    assert index.ids() == ["a", "b"]


def upgrading_afterwards(latest, path):
    """`Snapshot.latest` that upgrades the index once, after it has read it."""
    state = {"done": False}

    def found(folder):
        snapshot = latest(folder)
        if not state["done"]:
            state["done"] = True
            upgrade(path)
        return snapshot

    return staticmethod(found)


def test_a_file_system_without_locks(make_older, make_documents, monkeypatch):
    index = make_older()

    def refused(file, how):
        raise OSError(38, os.strerror(38))

    monkeypatch.setattr(fcntl, "flock", refused)
    upgrade(index.path)
    index.add(make_documents("ab"))
    assert index.ids() == ["a", "b"]


def test_an_open_handle_of_an_older_index_notices_an_upgraded_copy(
    make_older, make_documents, tmp_path
):
    """The upgraded index keeps the identity that was derived for the older one."""
    index = make_older()
    index.add(make_documents("ab"))
    shutil.copytree(index.path, tmp_path / "copy")
    upgrade(tmp_path / "copy", fingerprint=NEW)
    shutil.rmtree(index.path)
    shutil.move(tmp_path / "copy", index.path)
    assert index.ids() == ["a", "b"]
    assert index.fingerprint == NEW


def test_what_is_no_index_or_damaged_is_refused(tmp_path, make_older, make_documents):
    with pytest.raises(MemoryIndexError, match="not found"):
        upgrade(tmp_path / "nothing")
    index = make_older()
    index.add(make_documents(["first", "second"]))
    file = next(Path(index.path, "data").iterdir())
    file.write_bytes(
        file.read_bytes().replace(b"title of", b"title 0f").replace(b"first", b"f1rst")
    )
    with pytest.raises(MemoryIndexError, match="damaged"):
        upgrade(index.path)
    assert lance.dataset(index.path).version == 2
