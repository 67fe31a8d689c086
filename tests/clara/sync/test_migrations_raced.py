"""A migration switches an index, or a version is restored, while others are in the middle of it."""

import pytest

from clara.data import Document
from clara.index import MemoryIndex, MemoryIndexError, build
from clara.sync.migrating import Migration
from tests.clara.sync.conftest import Stub
from tests.clara.sync.migrations import OTHER, arguments, put, small, texts


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
def test_a_switch_after_the_last_look_of_a_writer(index, monkeypatch, change):
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


def test_a_switch_before_a_writer_tries_again(index, monkeypatch):
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


def test_a_version_of_another_model_restored_after_the_last_look(index, monkeypatch):
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
