"""A migration switches an index, or a version is restored, while others are in the middle of it."""

import os
import threading

import pytest
import torch

from clara.data import Document
from clara.index import MemoryIndex, MemoryIndexError, build, gate, locks
from clara.index import migration as folders
from clara.sync import migrating
from clara.sync.migrating import Migration
from tests.clara.sync.migrations import OTHER, arguments, put, small, texts
from tests.clara.sync.stubs import Stub


@pytest.fixture
def index(stub, tmp_path):
    return small(tmp_path / "index", stub)


def migrate(index):
    return Migration(index.path, arguments(), Stub(OTHER)).run()


CHANGES = {
    "upsert": lambda index: put(index, Stub(), [3, 99], 7),
    "add": lambda index: index.add(Stub()([Document("new", "text")], on_progress=print)),
    "delete": lambda index: index.delete(["d3"]),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_switch_after_the_last_look_of_a_writer(index, monkeypatch, blind_locks, change):
    # Both models' indexes have the same columns: Lance would store rows of one in the other.
    real, before, late = build._is_of, texts(index), []

    def looked(snapshot, latest):
        found = real(snapshot, latest)
        if not late and snapshot.path == index.path:
            late.append(migrate(index))
        return found

    monkeypatch.setattr(build, "_is_of", looked)
    with pytest.raises(MemoryIndexError, match="replaced by another index of another model"):
        CHANGES[change](index)
    assert late
    assert texts(MemoryIndex.open(index.path)) == before


def test_a_switch_before_a_writer_tries_again(index, monkeypatch, blind_locks):
    real, before, calls = build._execute, texts(index), []

    def contended(builder, table):
        calls.append(len(table))
        if len(calls) == 1:
            monkeypatch.undo()
            migrate(index)
            raise OSError("Too many concurrent writers")
        return real(builder, table)

    monkeypatch.setattr(build, "_execute", contended)
    with pytest.raises(MemoryIndexError, match="replaced by another index of another model"):
        put(index, Stub(), [3, 99], 7)
    assert calls
    assert texts(MemoryIndex.open(index.path)) == before


def test_a_version_of_another_model_restored_after_the_last_look(index, monkeypatch, blind_locks):
    version = migrate(index).version
    writer = MemoryIndex.open(index.path)
    before = texts(MemoryIndex.open(index.path, version=version))
    real, late = build._is_of, []

    def looked(snapshot, latest):
        found = real(snapshot, latest)
        if not late and snapshot.path == index.path:
            late.append(MemoryIndex.open(index.path).restore(version))
        return found

    monkeypatch.setattr(build, "_is_of", looked)
    with pytest.raises(MemoryIndexError, match="replaced by another index of another model"):
        put(writer, Stub(OTHER), [3, 99], 7)
    assert texts(MemoryIndex.open(index.path)) == before


def test_a_switch_that_is_overtaken_keeps_the_files_of_earlier_versions(index, monkeypatch):
    earlier = index.versions()[-1].number
    with monkeypatch.context() as patched:
        patched.setattr("clara.sync.migrating.remove_folder", ended)
        with pytest.raises(KeyboardInterrupt):
            migrate(index)  # killed after the commit
    migrated = MemoryIndex.open(index.path)
    last, before = migrated.versions()[-1].number, texts(migrated)
    migrated.restore(earlier)
    real = migrating.switch

    def late(old, new):
        monkeypatch.setattr(gate, "_PATIENCE", 0.0)
        monkeypatch.setattr(locks, "PATIENCE", 0.05)
        put(MemoryIndex.open(index.path), Stub(), [77], 1)
        assert not real(old, new)
        raise KeyboardInterrupt

    monkeypatch.setattr(migrating, "switch", late)
    with pytest.raises(KeyboardInterrupt):
        migrate(index)
    found = MemoryIndex.open(index.path, version=last)
    assert texts(found) == before
    assert len(found.get(found.ids())) == len(found.ids())


def test_a_clean_up_leaves_what_a_migration_puts_in_place(index, monkeypatch):
    before, freed = texts(index), []
    real = folders.lance.LanceDataset.commit

    def late(*arguments, **options):
        cleaned = MemoryIndex.open(index.path)
        freed.append(cleaned.clean_up(keep_versions=1, unfinished=True))
        return real(*arguments, **options)

    monkeypatch.setattr(folders.lance.LanceDataset, "commit", staticmethod(late))
    assert migrate(index).changed
    assert freed
    migrated = MemoryIndex.open(index.path)
    assert texts(migrated) == before
    assert list(migrated.verify(apart=False)) == []


def ended(*arguments, **options):
    raise KeyboardInterrupt


def test_two_that_were_made_before_either_runs(index):
    models = [Stub(OTHER), Stub(OTHER)]
    first, second = (Migration(index.path, arguments(), model) for model in models)
    assert first.run().changed
    version = MemoryIndex.open(index.path).versions()[-1]
    done = second.run()
    assert (done.changed, done.version, done.before, done.after) == (False, None, OTHER, OTHER)
    assert models[1].calls == 0
    assert MemoryIndex.open(index.path).versions()[-1] == version
    assert not os.path.exists(os.path.join(index.path, gate.FOLDER))


def test_searches_go_on_while_a_writer_of_the_same_handle_waits(index):
    os.mkdir(os.path.join(index.path, gate.FOLDER))
    query, found = torch.ones(2, 8), []
    with gate.closed_gate(index.path):
        writer = threading.Thread(target=lambda: put(index, Stub(), [3], 2))
        writer.start()
        reader = threading.Thread(target=lambda: found.append(index.search(query, 1)))
        writer.join(0.3)
        reader.start()
        reader.join(30)
        assert found
        assert writer.is_alive()
    writer.join()
    assert dict(each[:2] for each in texts(index))["d3"].count("version 2")


def test_a_quiet_index_is_not_read_behind_the_closed_gate(index, monkeypatch):
    real, reads = folders.states, []
    monkeypatch.setattr(migrating, "states", lambda found: reads.append(found.path) or real(found))
    monkeypatch.setattr(migrating, "switch", lambda old, new: reads.append("switch") or False)
    monkeypatch.setattr(migrating, "_ROUNDS", 3)
    with pytest.raises(MemoryIndexError, match="others change it all the time"):
        migrate(index)
    assert reads.index("switch") == len(reads) - 3
