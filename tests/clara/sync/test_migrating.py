"""An index is compressed again by another model, while others read and change it."""

import os
import threading
from pathlib import Path

import pytest
import torch

from clara.index import MemoryIndex, MemoryIndexError, gate, locks
from clara.index.build import write_empty
from clara.index.header import Header
from clara.index.origins import read_origins, record_origins
from clara.sync import migrating
from clara.sync.migrating import Migration
from tests.clara.sync.migrations import (
    OTHER,
    arguments,
    built_of,
    document,
    put,
    same,
    text_of,
    texts,
)
from tests.clara.sync.stubs import FINGERPRINT, Stub, new_index

# Other models, each with the arguments of an index for its memory.
MODELS = {
    "one of another width": (
        {"shape": (3, 6)},
        {"memory_tokens": 3, "hidden_size": 6, "dtype": "bfloat16"},
    ),
    "one with longer chunks, quantized": (
        {"chunk": 70, "shape": (1, 64)},
        {"memory_tokens": 1, "hidden_size": 64, "storage": "int4"},
    ),
    "one of spans, ranked by means": (
        {"chunk": 24, "shape": (6, 16), "rate": 4},
        {
            "memory_tokens": 6,
            "hidden_size": 16,
            "storage": "int8",
            "settings": {"memory_form": "spans", "compression_rate": 4, "ranking": "mean"},
        },
    ),
}


@pytest.mark.parametrize("kind", MODELS)
def test_it_is_the_index_that_a_build_would_make(index, tmp_path, kind):
    of_stub, of_index = MODELS[kind]
    stub, wanted = Stub(OTHER, **of_stub), arguments(**of_index)
    record_origins(index.path, {"s0": "where"})
    steps = []
    before = texts(index)
    last = index.versions()[-1]
    done = Migration(index.path, wanted, stub).run(
        lambda documents, detail=None: steps.append(documents)
    )
    migrated = MemoryIndex.open(index.path)
    assert texts(migrated) == before
    same(migrated, built_of(migrated, tmp_path / "built", Stub(OTHER, **of_stub), wanted))
    assert list(migrated.verify(apart=False)) == []
    assert (done.changed, done.version, done.resumed) == (True, last.number, 0)
    assert (done.built.added, sum(steps)) == (18, 18)
    assert (done.before, done.after) == (FINGERPRINT, OTHER)
    assert migrated.versions()[-1].number == last.number + 1
    assert read_origins(index.path) == {"s0": "where"}
    assert not os.path.exists(os.path.join(index.path, gate.FOLDER))


def test_earlier_versions_until_they_are_cleaned_up(index, other, tmp_path):
    stub, wanted = other
    before = index.ids()
    old = index.at_this_version()
    done = Migration(index.path, wanted, stub).run()
    with pytest.raises(MemoryIndexError, match=r"index of another model \(eeeeeeeeeeee, not ff"):
        index.search(torch.ones(2, 8), 1)
    with pytest.raises(MemoryIndexError, match=r"open it again"):
        index.delete(["d1"])
    earlier = MemoryIndex.open(index.path, version=done.version)
    assert (earlier.ids(), earlier.fingerprint) == (before, FINGERPRINT)
    assert earlier.search(torch.ones(2, 8), 3) == old.search(torch.ones(2, 8), 3)
    migrated = MemoryIndex.open(index.path)
    migrated.restore(done.version)
    assert (migrated.ids(), migrated.fingerprint) == (before, FINGERPRINT)
    migrated.restore(done.version + 1)
    assert migrated.fingerprint == OTHER
    assert migrated.clean_up(keep_versions=1) > 0
    with pytest.raises(MemoryIndexError, match=rf"version {done.version} is not there"):
        MemoryIndex.open(index.path, version=done.version)
    assert list(migrated.verify(apart=False)) == []


def test_nothing_to_do(index, stub, other):
    present = arguments(fingerprint=FINGERPRINT, settings=index.settings)
    version = index.versions()[-1]
    migration = Migration(index.path, present, stub)
    assert migration.total == 0
    done = migration.run()
    assert (done.changed, done.version, done.built.added) == (False, None, 0)
    assert index.versions()[-1] == version
    assert not os.path.exists(os.path.join(index.path, gate.FOLDER))
    changed = Migration(index.path, {**present, "storage": "int8"}, stub).run()
    assert (changed.changed, MemoryIndex.open(index.path).storage) == (True, "int8")


def test_an_empty_index(other, tmp_path):
    stub, wanted = other
    new_index(tmp_path / "index", {})
    assert Migration(tmp_path / "index", wanted, stub).run().changed
    assert MemoryIndex.open(tmp_path / "index").fingerprint == OTHER
    assert MemoryIndex.open(tmp_path / "index").ids() == []


class Interfering(Stub):
    """A compressor before whose calls something happens."""

    def __init__(self, *happening):
        super().__init__(OTHER)
        self.happening = list(happening)

    def __call__(self, documents, *, on_progress):
        if self.happening:
            self.happening.pop(0)()
        return super().__call__(documents, on_progress=on_progress)


def test_what_others_change_meanwhile_is_taken_up(index, stub, tmp_path, monkeypatch):
    monkeypatch.setattr(migrating, "BATCH", 4)
    writer = MemoryIndex.open(index.path)

    def change():
        put(writer, stub, [1, 14], 7)  # one that is compressed already, and one that is not
        writer.delete(["d2", "d15"])
        put(writer, stub, [30])

    def change_again():
        put(writer, stub, [1, 30], 8)
        writer.compact()
        record_origins(index.path, {"new": "origin"})

    model = Interfering(lambda: None, change, change_again)
    done = Migration(index.path, arguments(), model).run()
    migrated = MemoryIndex.open(index.path)
    found = {name: text for name, text, _ in texts(migrated)}
    assert found["d1"] == text_of(1, 8)
    assert found["d14"] == text_of(14, 7)
    assert "d30" in found
    assert not {"d2", "d15"} & set(found)
    assert read_origins(index.path) == {"new": "origin"}
    earlier = MemoryIndex.open(index.path, version=done.version)
    assert texts(migrated) == texts(earlier)
    same(migrated, built_of(earlier, tmp_path / "built", Stub(OTHER), arguments()))


@pytest.mark.parametrize(
    "change",
    [
        lambda writer, stub: put(writer, stub, [2], 9),
        lambda writer, stub: put(writer, stub, [40]),
        lambda writer, stub: writer.delete(["d1"]),
        lambda writer, stub: writer.restore(2),
    ],
    ids=["replace", "add", "delete", "restore"],
)
def test_a_change_between_the_last_look_and_the_commit(index, stub, tmp_path, monkeypatch, change):
    monkeypatch.setattr(gate, "_PATIENCE", 0.0)  # of who does not know that there is a migration
    monkeypatch.setattr(locks, "PATIENCE", 0.05)
    real, calls = migrating.switch, []

    def late(old, new):
        calls.append(old.version)
        if len(calls) == 1:
            change(MemoryIndex.open(index.path), stub)
            assert not real(old, new)
            return False
        return real(old, new)

    monkeypatch.setattr(migrating, "switch", late)
    done = Migration(index.path, arguments(), Stub(OTHER)).run()
    assert len(calls) == 2
    assert done.version == calls[1] > calls[0]
    migrated = MemoryIndex.open(index.path)
    earlier = MemoryIndex.open(index.path, version=done.version)
    assert texts(migrated) == texts(earlier)
    same(migrated, built_of(earlier, tmp_path / "built", Stub(OTHER), arguments()))
    files = {each.name for each in Path(index.path, "data").iterdir()}
    migrated.clean_up(keep_versions=1, unfinished=True)
    left = {each.name for each in Path(index.path, "data").iterdir()}
    assert len(left) < len(files)
    assert list(migrated.verify(apart=False)) == []


def test_writers_and_readers_go_on_until_the_switch(index, stub, monkeypatch):
    monkeypatch.setattr(migrating, "BATCH", 3)
    acknowledged = {name: text for name, text, _ in texts(index)}
    failures, reads = [], []
    done = threading.Event()

    def write():
        writer = MemoryIndex.open(index.path)
        number = 100
        while not done.is_set():
            number += 1
            name, version = 100 + number % 7, number
            try:
                if number % 5 == 0:
                    writer.delete([f"d{name}"], missing_ok=True)
                    acknowledged.pop(f"d{name}", None)
                else:
                    put(writer, Stub(), [name], version)
                    acknowledged[f"d{name}"] = text_of(name, version)
            except MemoryIndexError as error:
                failures.append(str(error))
                return
            done.wait(0.2)

    def read():
        reader = MemoryIndex.open(index.path)
        while not done.is_set():
            try:
                reads.append(reader.search(torch.ones(2, 8), 1, ids=["d1"])[0][0].text)
            except MemoryIndexError as error:
                failures.append(str(error))
                return

    threads = [threading.Thread(target=each) for each in (write, read)]
    for thread in threads:
        thread.start()
    try:
        Migration(index.path, arguments(), Stub(OTHER)).run()
    finally:
        done.wait(0.3)  # the writer finds the other index
        done.set()
        for thread in threads:
            thread.join()
    assert {name: text for name, text, _ in texts(MemoryIndex.open(index.path))} == acknowledged
    assert all("index of another model" in each for each in failures)
    assert set(reads) <= {text_of(1)[:40], text_of(1)[40:]}
    assert reads


@pytest.mark.parametrize("version", [1, 2])
def test_earlier_formats(stub, other, tmp_path, version):
    model, wanted = other
    identity = None if version == 1 else "identity"
    header = Header(FINGERPRINT, 2, 8, torch.float32, {"overflow": "chunk"}, identity=identity)
    write_empty(header, str(tmp_path / "index"))
    index = MemoryIndex.open(tmp_path / "index")
    index.add(stub([document(n) for n in range(5)], on_progress=print))
    before = texts(index)
    Migration(index.path, wanted, model).run()
    migrated = MemoryIndex.open(index.path)
    assert texts(migrated) == before
    assert migrated.info()["format_version"] == 3
    assert migrated.columns is None


def test_others_change_it_all_the_time(index, stub, other, monkeypatch):
    monkeypatch.setattr(migrating, "_ROUNDS", 3)
    monkeypatch.setattr(migrating, "switch", lambda old, new: False)
    model, wanted = other
    with pytest.raises(MemoryIndexError, match="others change it all the time; migrate it later"):
        Migration(index.path, wanted, model).run()
    monkeypatch.undo()
    assert Migration(index.path, wanted, model).run().built.added == 0
